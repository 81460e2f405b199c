// What the bindings hand to mask.cpp: so many numbers, each `kept` with probability 1 - p and else 0.
#pragma once

struct MaskCall {
    float* mask;               // [n]
    long long n;
    unsigned long long seed;
    double p;                  // probability of 0
    float kept;                // what the others are
    int threads;
};

struct MaskTable {
    void (*draw)(const MaskCall&);
};
