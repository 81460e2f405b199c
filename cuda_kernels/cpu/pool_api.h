// What the bindings hand to pool.cpp: x [images, channels, height, width], windows of window × window, stride the same, no padding.
#pragma once

struct PoolCall {
    const void* x;
    void* pooled;              // [images, channels, height / window, width / window]
    double* moments;           // [threads, 2, channels], zeroed by the caller: sums of x and of x²; null: not wanted
    const void* grad_pooled;
    const double* grad_moments;  // [2, channels]; null: zero, and x is not read
    void* grad_x;
    long long images, channels, height, width, window;
    int threads;
    bool wide;                 // double, else float
};

struct PoolTable {
    void (*forward)(const PoolCall&);
    void (*backward)(const PoolCall&);
};
