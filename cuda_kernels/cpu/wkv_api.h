// What the bindings hand to wkv.cpp; w, u, states and checkpoints are double where k is, else float.
#pragma once
#include "chunk.h"

struct WkvCall {
    const void *w, *u;             // [C]
    const void *k, *v;             // [T, B, C]
    const void* state0;            // [3, B, C]: p, q, o; null: an empty past
    void* y;                       // [T, B, C]
    void* state1;                  // [3, B, C]
    void* saved;                   // [ceil(T / CHUNK) - 1, 3, B, C]: the state that entered each chunk but the first; null: not kept
    const void* grad_y;            // [T, B, C]; null: zero
    const void* grad_state1;       // [3, B, C]; null: zero
    void *grad_k, *grad_v;         // [T, B, C]
    void* grad_state0;             // [3, B, C]; null: not wanted
    double* grad_params;           // [2, B, C]: of w and of u, each sequence's own
    long long T, B, C;
    int dtype;                     // 0 float, 1 double, 2 bf16, 3 f16
    int threads;
};

struct WkvTable {
    void (*forward)(const WkvCall&);
    void (*backward)(const WkvCall&);
};
