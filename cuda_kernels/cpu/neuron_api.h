// What the bindings hand to the kernels of one instruction set: plain pointers and numbers, so that this header holds no inline code.
#pragma once
#include "chunk.h"

// The input is pooled, and scaled by channel, on its way in: x [T, B, channels, height, width], one neuron for each window.
struct DriveCall {
    bool maximum;              // else the average
    long long window, channels, height, width, step_items;  // step_items: numbers of x in one step
    const void *scale, *shift; // [channels] in the state's type; null: 1 and 0
    double* grad_affine;       // [threads, 2, channels], zeroed by the caller: of scale and shift
};

// What a recording wants to know of a forward call, counted while the numbers are in the caches. Each thread has counters of its own,
// zeroed by the caller: [threads, planes·T·samples + features + 1]. Planes [T, samples], those that are wanted:
//   neurons whose current is not zero; spikes; with a drive, numbers of its images that are not zero, and those of them that lie beyond
//   the last whole window; with fans, sums of them over the spikes, each.
// Then [features] spikes of each neuron; and 1 where an output is neither 0 nor 1.
struct TallyCall {
    long long features;        // neurons of one sample
    int* counts;
    const int* fans[2];        // [features] what a spike of each neuron reaches; null: not wanted
};

struct NeuronCall {
    const DriveCall* drive;    // null: x is the input of the neurons, [T, N]
    const TallyCall* tally;    // forward; null: nobody wants to know
    // Forward: x [T, N] in `dtype`, or [N] where x_is_constant (and there is no drive); everything else in the state's type (double for float64, else float).
    const void* x;
    void* s;                   // [T, N] in `dtype`
    void* saved;               // value: h [T, N]; half: h - threshold [T, N] in 16 bits; recompute: states at chunk borders
    const void* state0;        // [S, N]; null: at rest
    void* state1;              // [S, N]
    const void* params;        // [3, C]: beta, threshold, beta_syn; null: the three numbers below
    double beta, threshold, beta_syn;
    // Backward.
    const void* grad_s;        // [T, N], or one number where grad_s_is_scalar; null: zero
    const void* grad_state1;   // [S, N]; null: zero
    void* grad_x;              // [T, N] in `dtype`
    void* grad_state0;         // [S, N]; null: not wanted
    double* grad_params;       // [threads, 3, C], zeroed by the caller; null: not wanted
    bool grad_s_is_scalar, x_is_constant;

    long long T, N, C, inner;  // neuron n uses parameter (n / inner) % C
    int dtype;                 // 0 float32, 1 float64, 2 bfloat16, 3 float16
    int save;                  // 0 nothing, 1 value, 2 half, 3 recompute
    int kind, reset, surrogate, refractory, threads;
    bool tie_gt, decay_input, detach_reset, reset_delay, residual_reset, normalize;
    double v_reset, v_leak, beta_adapt, adapt_scale, a, b;
};

struct KernelTable {
    void (*forward)(const NeuronCall&);
    void (*backward)(const NeuronCall&);
};
