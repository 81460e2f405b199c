// __global__ wrappers over include/wkv.h: one thread owns a channel of a sequence and walks through time with its state in registers.
// Compiled at run time, one instantiation at a time (compile.py); the arguments are those of wkv.py's tables, in their order.
#include "common.cuh"
#include "wkv.h"

namespace SPIKING_NS {

template <class T>
SPIKING_FN void load_past(const T* from, i64 stride, T& p, T& q, T& o) {
    p = from ? from[0] : T(0);
    q = from ? from[stride] : T(0);
    o = from ? from[2 * stride] : WKV_REST<T>;
}

template <class T>
SPIKING_FN void store_past(T p, T q, T o, T* to, i64 stride) {
    to[0] = p, to[stride] = q, to[2 * stride] = o;
}

// One channel a thread: only channels that are apart pay for the second exponential.
template <class T>
SPIKING_FN T step_of(T k, T v, T w, T u, T gain, T& p, T& q, T& o, WkvKept<T>& kept) {
    if (gain < T(0)) return wkv_step<true, T>(k, v, w, u, gain, p, q, o, kept);
    return wkv_step<false, T>(k, v, w, u, gain, p, q, o, kept);
}

template <class IO, class T = typename StateOf<IO>::type>
__global__ void __launch_bounds__(THREADS, BLOCKS<T>) wkv_forward(
    const T* __restrict__ w, const T* __restrict__ u, const IO* __restrict__ k, const IO* __restrict__ v, const T* __restrict__ state0,
    IO* __restrict__ y, T* __restrict__ state1, T* __restrict__ saved, i64 steps, i64 batch, i64 channels) {
    const i64 width = batch * channels, at = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= width) return;
    const T decay = w[at % channels], bonus = u[at % channels], gain = wkv_gain(decay, bonus);
    T p, q, o;
    load_past(state0 ? state0 + at : nullptr, width, p, q, o);
    for (i64 start = 0; start < steps; start += CHUNK) {
        if (saved && start > 0) store_past(p, q, o, saved + (start / CHUNK - 1) * 3 * width + at, width);
        const int n = start + CHUNK < steps ? CHUNK : int(steps - start);
#pragma unroll 4
        for (int i = 0; i < n; ++i) {
            const i64 here = (start + i) * width + at;
            WkvKept<T> unused;
            narrow(step_of(T(widen(k[here])), T(widen(v[here])), decay, bonus, gain, p, q, o, unused), y[here]);
        }
    }
    store_past(p, q, o, state1 + at, width);
}

// A chunk is run forward again, its states and weights kept in shared memory, and then walked backward.
template <class IO, class T = typename StateOf<IO>::type>
__global__ void __launch_bounds__(THREADS, BLOCKS<T>) wkv_backward(
    const T* __restrict__ w, const T* __restrict__ u, const IO* __restrict__ k, const IO* __restrict__ v, const T* __restrict__ state0,
    const T* __restrict__ saved, const IO* __restrict__ grad_y, const T* __restrict__ grad_state1, IO* __restrict__ grad_k,
    IO* __restrict__ grad_v, T* __restrict__ grad_state0, double* __restrict__ grad_params, i64 steps, i64 batch, i64 channels) {
    const i64 width = batch * channels, at = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= width) return;
    const T decay = w[at % channels], bonus = u[at % channels], gain = wkv_gain(decay, bonus);
    const int stride = int(blockDim.x);
    T* const kept = reinterpret_cast<T*>(shared_memory) + threadIdx.x;
    T gp, gq, unused;
    load_past(grad_state1 ? grad_state1 + at : nullptr, width, gp, gq, unused);
    double sum_w = 0.0, sum_u = 0.0;
    for (i64 start = (steps - 1) / CHUNK * CHUNK; start >= 0; start -= CHUNK) {
        const int n = start + CHUNK < steps ? CHUNK : int(steps - start);
        T p, q, o;
        const T* from = start > 0 ? saved + (start / CHUNK - 1) * 3 * width + at : state0 ? state0 + at : nullptr;
        load_past(from, width, p, q, o);
#pragma unroll 4
        for (int i = 0; i < n; ++i) {
            const i64 here = (start + i) * width + at;
            WkvKept<T> step;
            step_of(T(widen(k[here])), T(widen(v[here])), decay, bonus, gain, p, q, o, step);
            kept[(4 * i) * stride] = step.p, kept[(4 * i + 1) * stride] = step.q;
            kept[(4 * i + 2) * stride] = step.next, kept[(4 * i + 3) * stride] = step.now;
        }
        T of_w = T(0), of_u = T(0);
#pragma unroll 2
        for (int i = n - 1; i >= 0; --i) {
            const i64 here = (start + i) * width + at;
            T gk, gv;
            const WkvKept<T> step{kept[(4 * i) * stride], kept[(4 * i + 1) * stride], kept[(4 * i + 2) * stride], kept[(4 * i + 3) * stride]};
            wkv_adjoint<true>(step, T(widen(v[here])), gain, grad_y ? T(widen(grad_y[here])) : T(0), gp, gq, gk, gv, of_w, of_u);
            narrow(gk, grad_k[here]);
            narrow(gv, grad_v[here]);
        }
        sum_w += double(of_w), sum_u += double(of_u);
    }
    grad_params[at] = sum_w, grad_params[width + at] = sum_u;
    if (grad_state0) store_past(gp, gq, T(0), grad_state0 + at, width);
}

}  // namespace SPIKING_NS
