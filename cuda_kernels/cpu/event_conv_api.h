// What the bindings hand to event_conv.cpp. A convolution with groups is seen as images·groups images of inputs/groups channels each,
// called pictures here.
//
// Spikes travel as masks, one bit for each input channel of a pixel.
//
// Weights lie in blocks of output channels (16·vectors_of, the last one cut to a multiple of 16 and filled with zeros):
// [groups, block, phase, kernel row, input, tap, output], where the taps of a phase are those kernel columns that meet the same input
// columns under the stride, from right to left: a spike meets neighbouring outputs from left to right.
#pragma once

struct ConvShape {
    long long images, inputs, height, width, outputs, out_height, out_width, kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, groups;
};

struct ConvCall {
    ConvShape s;
    const void* x;                 // [images, inputs, height, width]; null where every spike is 1 and masks say it all
    bool x_last, y_last;           // channels last in memory: x and grad_x, y and grad_y
    bool ones;                     // every spike is exactly 1
    int dtype;                     // of x, y and their gradients: 0 float, 1 double, 2 bf16, 3 f16; sums and weights: double for double, else float
    unsigned int* masks;           // [pictures, pixels, chunks], chunks = (inputs / groups + 31) / 32
    long long limit;               // count: more spikes than this: stop
    const void* weights;           // in blocks
    const void* bias;              // [outputs] or null
    void* y;                       // [images, outputs, out_height, out_width]
    // Windows instead of y: the largest and its place where there are places, else averages, and moments.
    long long window;
    void* pooled;                  // [images, outputs, out_height / window, out_width / window]
    unsigned char* places;         // [pictures, out_height / window, out_width / window, outputs / groups]: row·window + column, of the first
    double* moments;               // [threads, 2, outputs], zeroed
    // Backward.
    const void* grad_y;            // null: grad_pooled, with places or with grad_moments, for which y is computed again
    const void* grad_pooled;
    const double* grad_moments;    // [2, outputs]
    void* grad_weights;            // [teams, the size of weights], zeroed; null: not wanted
    void* grad_bias;               // [teams, outputs], zeroed; null: not wanted
    const void* back_weights;      // [groups, kernel_y, outputs / groups, kernel_x·inputs / groups padded to 16]; null: grad_x is not wanted
    void* grad_x;                  // [images, inputs, height, width]
    void* scratch;                 // scratch_bytes for each thread
    int threads, teams;            // teams of threads share the images; the threads of a team share the input channels
};

// weight [outputs, inputs / groups, kernel_y, kernel_x] (dtype) <-> blocks.
struct ConvWeights {
    ConvShape s;
    const void* weight;
    int dtype;
    void* blocks;                  // null: not wanted
    void* back;                    // null: not wanted
    const void* grad_blocks;       // [teams, …]; read by unpack
    void* grad_weight;
    int teams;
};

struct ConvTable {
    long long (*block_items)(const ConvShape&);     // items of weights in blocks
    long long (*back_items)(const ConvShape&);
    long long (*scratch_bytes)(const ConvCall&);    // for each thread
    bool (*pack)(const ConvWeights&);               // whether every weight is finite
    void (*unpack)(const ConvWeights&);
    long long (*count)(const ConvCall&);            // fills masks; spikes·2 + (are all exactly 1), or -1 beyond the limit
    void (*forward)(const ConvCall&);
    void (*backward)(const ConvCall&);
};
