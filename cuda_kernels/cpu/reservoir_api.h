// What the bindings hand to reservoir.cpp: a recurrent layer of fixed weights and leaky neurons over whole sequences.
//
// Weights lie by sender in panels of 64 receivers as in event_linear_api.h, without gaps; sparse recurrent ones as lists by sender instead.
#pragma once

struct ReservoirCall {
    const void* x;                      // [steps, batch, inputs]
    const void* in_panels;              // [inputs × neurons] in panels
    const void* bias;                   // [neurons] or null
    const void* rec_panels;             // [neurons × neurons] in panels, or null
    const long long* rec_offsets;       // [neurons + 1] or null: where each sender's receivers begin
    const unsigned int* rec_receivers;
    const void* rec_weights;
    void* u;                            // [batch, neurons]: membrane before the reset, updated
    void* s;                            // [batch, neurons]: spikes of the step before, updated
    void* spikes;                       // [steps, batch, neurons] or null
    void* membrane;                     // [steps, batch, neurons] or null
    void* features;                     // [bins, batch, neurons] or null, zeroed by the caller
    const int* bin;                     // [steps]: which features a step's spikes count in
    const void* worth;                  // [steps]: what a spike of the step counts
    unsigned int* lists;                // [batch, inputs + neurons + 2·16]: scratch
    void* currents;                     // [batch, neurons]: scratch, null unless sparse
    long long* events;                  // [batch, 2], added to: inputs that were not zero, spikes that were sent on
    long long steps, batch, inputs, neurons;
    double beta, threshold;
    int threads;
    bool wide;                          // double, else float
};

struct ReservoirTable {
    void (*run)(const ReservoirCall&);
};
