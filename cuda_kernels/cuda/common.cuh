// What the __global__ wrappers share: wide loads and stores, and a neuron's rule, cells and state as they lie in memory.
#pragma once
#define SPIKING_NS spiking_cuda
#include "saved.h"

extern __shared__ __align__(16) unsigned char shared_memory[];

namespace SPIKING_NS {

constexpr int THREADS = 128;   // most threads of a block; a power of two

// Blocks that share a processor at least: bounds the registers of a thread to 96, of a float64 thread to 128.
template <class T> constexpr int BLOCKS = sizeof(T) == 8 ? 4 : 5;

template <class E, int width> struct alignas(sizeof(E) * width) Pack { E at[width]; };

template <class E, class T, int width>
SPIKING_FN void load(const E* from, T (&to)[width]) {
    const Pack<E, width> pack = *reinterpret_cast<const Pack<E, width>*>(from);
#pragma unroll
    for (int k = 0; k < width; ++k) to[k] = widen(pack.at[k]);
}

template <class E, class T, int width>
SPIKING_FN void store(const T (&from)[width], E* to) {
    Pack<E, width> pack;
#pragma unroll
    for (int k = 0; k < width; ++k) narrow(from[k], pack.at[k]);
    *reinterpret_cast<Pack<E, width>*>(to) = pack;
}

template <class T, int width>
SPIKING_FN void fill(T (&to)[width], T value) {
#pragma unroll
    for (int k = 0; k < width; ++k) to[k] = value;
}

template <class T>
SPIKING_FN Rule<T> rule_of(T v_reset, T v_leak, T beta_adapt, T adapt_scale, T a, T b, int refractory, int tie_gt, int decay_input,
                           int detach_reset, int reset_delay, int residual_reset, int normalize) {
    return {v_reset, v_leak, beta_adapt, adapt_scale, a, b, tie_gt ? T(0) : T(1), T(decay_input), detach_reset ? T(0) : T(1),
            T(reset_delay), T(residual_reset), T(normalize), T(refractory), 0};
}

template <class T> struct Cells { T beta, threshold, beta_syn; };

// The neurons of a thread share one cell: n_params is 1, or `width` divides `inner`.
template <class T>
SPIKING_FN Cells<T> cells_of(const T* params, i64 n_params, i64 index, T beta, T threshold, T beta_syn) {
    if (!params) return {beta, threshold, beta_syn};
    return {params[index], params[n_params + index], params[2 * n_params + index]};
}

// State rows in memory: v, then e where the kind has it, then the refractory counter where there is one. Null: at rest.
template <Kind kind, Flags flags, class T, int width>
SPIKING_FN void load_state(const T* from, i64 stride, const Rule<T>& rule, T (&v)[width], T (&e)[width], T (&c)[width]) {
    fill(v, rule.v_leak), fill(e, T(0)), fill(c, T(0));
    if (!from) return;
    load(from, v);
    if constexpr (kind != Kind::lif) load(from + stride, e);
    if constexpr (flags != Flags::plain)
        if (rule.refractory > T(0)) load(from + (kind == Kind::lif ? 1 : 2) * stride, c);
}

template <Kind kind, Flags flags, class T, int width>
SPIKING_FN void store_state(T* to, i64 stride, const Rule<T>& rule, const T (&v)[width], const T (&e)[width], const T (&c)[width]) {
    store(v, to);
    if constexpr (kind != Kind::lif) store(e, to + stride);
    if constexpr (flags != Flags::plain)
        if (rule.refractory > T(0)) store(c, to + (kind == Kind::lif ? 1 : 2) * stride);
}

}  // namespace SPIKING_NS
