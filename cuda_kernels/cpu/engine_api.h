// What the bindings hand to engine.cpp: a network as a row of stages, and one call that runs all of them over all time steps.
//
// A stage is  input -> link -> max pooling -> scale and shift -> neuron,  each part but the link optional. Its input and output are one row
// of values a time step: as a list of what is not zero where it comes from a neuron, as plain values elsewhere. Rows of images lie
// channels last, channels padded; the stage before says how, so that the tables of the stage after it know.
#pragma once

struct EngineEntry {           // where one input goes: `rows` runs of `length` weights, added to as many runs of currents
    unsigned weight, target, rows, length;
};

struct EngineStage {
    int link;                  // 0: input is the current; 1: linear, weights in panels (gather.h); 2: by table
    long long n_in, n_acc;     // inputs; currents that the link makes
    const void* weights;
    const void* bias;          // [n_acc], null only for link 0
    const EngineEntry* table;  // [n_in]
    long long weight_stride, target_stride;  // between the runs of an entry

    // The same link over every input, active or not: a window of `window` × `window` slides over rows of images that are framed with zeros.
    const void* dense_weights; // [channels_out / 16, window, window, channels_in, 16]; null: there is none
    long long channels_in, image_in, channels_out, rows_out, columns_out;  // image_in: values a framed input image row holds
    long long window, step;
    const unsigned* framed;    // [n_in]: where an input lies in the frame
    long long n_framed;
    long long dense_above;     // active inputs above which all inputs are taken (links 1 and 2)

    const unsigned* pool;      // [n, taps]: currents that each pooled current is the largest of; null: no pooling
    long long taps;
    const void* scale;         // [n] or null
    const void* shift;         // [n] where there is a scale

    bool neuron;
    int kind, reset, refractory;
    bool tie_gt, decay_input, reset_delay, residual_reset, normalize;
    double v_reset, v_leak, beta_adapt, adapt_scale;
    const void *beta, *threshold, *beta_syn;  // [n], or 64 equal numbers each where the cells are alike
    bool alike;
    const unsigned long long* valid;          // [(n + 63) / 64]: bits of the neurons that exist
    const void* recurrent;     // panels [n, n] of the weights from the last spikes; null: none
    long long n;               // values that leave the stage, padding included
    long long state;           // where its state begins: v [n], then e, then c, then the last spikes
};

struct EngineCall {
    const EngineStage* stages;
    int n_stages;
    const void* x;             // [T, B, n_in]
    void* out;                 // [T, B, n_out]
    const unsigned* place;     // [n of the last stage]: index in out, 2^32 - 1 for padding
    long long n_in, n_out;
    const void* state0;        // [B, S]; null: at rest
    const void* rest;          // [S]
    void* state1;              // [B, S]
    long long T, B, S;
    void* membrane;            // [T, B, n_out]: the last stage's current through a leaky integrator that starts at 0; null: not wanted
    double membrane_beta;
    double margin;             // stop a row where its best sum leads by margin·T; below 0: never
    double* sums;              // [B, n_out]: of the membrane, else of the output; null: not wanted
    long long* steps;          // [B]: steps that were run

    // Events instead of x, one row (B = 1): events of step k have start + k·width <= t < start + (k + 1)·width.
    const long long* t;
    const short *column, *line;
    const unsigned char* polarity;
    long long n_events, start, width, sensor_width, sensor_height, polarities;
    bool clip;                 // at most one event a pixel and step

    void* scratch;             // [threads, scratch_bytes]
    long long scratch_bytes;
    int threads;
    bool wide;                 // double, else float
};

struct EngineTable {
    long long (*scratch_bytes)(const EngineCall&);
    void (*run)(const EngineCall&);
    long long (*run_events)(const EngineCall&);  // steps that were jumped over, summed over the stages
};
