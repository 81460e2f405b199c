// What the bindings hand to graded.cpp: neurons [N] over T steps, in `dtype`; states, parameters and `saved` in the state's type.
#pragma once

struct GradedCall {
    const void* x;             // [T, N]
    void* s;                   // [T, N]
    void* saved;               // h [T, N]; null: not wanted
    const void* state0;        // [N]; null: v_leak
    void* state1;              // [N]
    const void* params;        // [3, C]: beta, threshold, and a row that nobody reads; null: the numbers below
    double beta, threshold, beta_syn;
    // Backward.
    const void* grad_s;        // [T, N]; null: zero
    const void* grad_state1;   // [N]; null: zero
    void* grad_x;              // [T, N]
    void* grad_state0;         // [N]; null: not wanted
    double* grad_params;       // [threads, 3, C], zeroed by the caller; null: not wanted

    long long T, N, C, inner;  // neuron n uses parameter (n / inner) % C
    double v_leak;
    int levels, spacing;       // Spacing of include/graded.h
    int dtype;                 // 0 float32, 1 float64, 2 bfloat16, 3 float16
    int threads;
};

struct GradedTable {
    void (*forward)(const GradedCall&);
    void (*backward)(const GradedCall&);
};
