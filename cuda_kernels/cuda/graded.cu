// __global__ wrappers over include/graded.h: one thread owns a neuron and walks through time with its membrane in a register.
// Compiled at run time, one instantiation at a time (compile.py); the arguments are those of graded.py's tables, in their order.
#include "common.cuh"
#include "graded.h"

namespace SPIKING_NS {

template <Spacing spacing, class IO, class T = typename StateOf<IO>::type>
__global__ void __launch_bounds__(THREADS, BLOCKS<T>) graded_forward(
    const IO* __restrict__ x, const T* __restrict__ state0, const T* __restrict__ params, IO* __restrict__ s, T* __restrict__ state1,
    T* __restrict__ saved, i64 steps, i64 neurons, i64 n_params, i64 inner, int levels, T beta, T threshold, T v_leak) {
    const i64 first = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (first >= neurons) return;
    const i64 index = n_params == 1 ? 0 : first / inner % n_params;
    const T decay = params ? params[index] : beta, edge = params ? params[n_params + index] : threshold;
    T v = state0 ? state0[first] : v_leak;
    for (i64 t = 0; t < steps; ++t) {
        const i64 at = t * neurons + first;
        T h;
        narrow(graded_step<spacing>(T(widen(x[at])), v, decay, edge, v_leak, levels, h), s[at]);
        if (saved) saved[at] = h;
    }
    state1[first] = v;
}

template <Spacing spacing, class IO, class T = typename StateOf<IO>::type>
__global__ void __launch_bounds__(THREADS, BLOCKS<T>) graded_backward(
    const T* __restrict__ state0, const T* __restrict__ params, const T* __restrict__ saved, const IO* __restrict__ grad_s,
    const T* __restrict__ grad_state1, IO* __restrict__ grad_x, T* __restrict__ grad_state0, double* grad_params, i64 steps, i64 neurons,
    i64 n_params, i64 inner, int levels, T beta, T threshold, T v_leak) {
    const i64 first = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (first >= neurons) return;
    const i64 index = n_params == 1 ? 0 : first / inner % n_params;
    const T decay = params ? params[index] : beta, edge = params ? params[n_params + index] : threshold;
    T carry = grad_state1 ? grad_state1[first] : T(0);
    double on_beta = 0.0, on_threshold = 0.0;
    T h = steps > 0 ? saved[(steps - 1) * neurons + first] : T(0);
    for (i64 t = steps - 1; t >= 0; --t) {
        const i64 at = t * neurons + first;
        T before = T(0), v = state0 ? state0[first] : v_leak;
        if (t > 0) {
            before = saved[at - neurons];
            v = before - edge * sent<spacing>(before, edge, levels);
        }
        T grad_beta, grad_threshold;
        const T gs = grad_s ? T(widen(grad_s[at])) : T(0);
        narrow(graded_adjoint<spacing>(h, gs, v, carry, decay, edge, v_leak, levels, grad_beta, grad_threshold), grad_x[at]);
        on_beta += double(grad_beta), on_threshold += double(grad_threshold);
        h = before;
    }
    if (grad_state0) grad_state0[first] = carry;
    if (!grad_params) return;
    atomicAdd(grad_params + index, on_beta);
    atomicAdd(grad_params + n_params + index, on_threshold);
}

}  // namespace SPIKING_NS
