// What the bindings hand to count.cpp: an operand x [rows, n] in `dtype`, rows contiguous, and the fan-out of its n elements.
#pragma once

struct CountCall {
    const void* x;
    const int* fan;            // [n] stored weights that an element reaches; null: not wanted
    const int* fan_nonzero;    // [n] those of them that are not zero; null: all of them
    long long* nonzero;        // [rows]
    long long* synops;         // [2, rows]: sums of fan and of fan_nonzero over the non-zeros
    double* magnitude;         // [rows] sum of |x|
    long long* per_element;    // [n] non-zeros of each element over the rows, zeroed by the caller; null: `nonzero` and the first
                               // half of `synops` are all that is wanted
    double* levels;            // [threads, steps, LEVELS]: the distinct magnitudes that are not zero, as they were met; null: neither
                               // magnitudes nor what is not finite are looked for
    int* n_levels;             // [threads, steps], zeroed by the caller; LEVELS + 1: there are more
    int* negative;             // [threads, steps], zeroed by the caller: 1 where a value is below zero
    long long rows, n, steps;  // the rows of a step follow one another
    int dtype, threads;        // dtype: 0 float32, 1 float64, 2 bfloat16, 3 float16
};

constexpr int LEVELS = 40;     // more than spiking._counters calls graded

// Counters of several threads and passes, each [threads, planes·steps·samples + elements + spare] as kernels leave them, added up.
struct FoldCall {
    int* const* counts;        // [passes]
    long long passes, planes, steps, samples, elements, spare;
    long long* by_step;        // [planes, steps], added to
    long long* by_sample;      // [planes, passes, samples], added to
    long long* by_element;     // [elements], added to
    int threads;
    bool clear;                // leave zeros behind, for other counts
};

struct CountTable {
    int (*count)(const CountCall&);  // bit 0: every value is 0 or 1; bit 1: every value is finite
    void (*fold)(const FoldCall&);
};
