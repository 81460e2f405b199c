// CPU loops over include/graded.h: threads over blocks of neurons, time inside a block, SIMD over the neurons of a row.
// Compiled once per instruction set (SPIKING_LEVEL), like neuron.cpp.
#define SPIKING_GLUE_(a, b) a##b
#define SPIKING_GLUE(a, b) SPIKING_GLUE_(a, b)
#define SPIKING_NS SPIKING_GLUE(spiking_, SPIKING_LEVEL)

#include "graded_api.h"

#include "blocks.h"
#include "graded.h"

namespace SPIKING_NS {
namespace {

constexpr i64 BLOCK = 1024;

template <class T> struct Cells { T beta[BLOCK], threshold[BLOCK], unused[BLOCK]; };

template <class T>
SPIKING_ROW void start_row(const void* from, i64 first, i64 n, T otherwise, T* row) {
    const T* given = static_cast<const T*>(from);
    for (i64 k = 0; k < n; ++k) row[k] = given ? given[first + k] : otherwise;
}

template <Spacing spacing, class T>
SPIKING_ROW void step_row(const T* __restrict x, T* __restrict v, const Cells<T>& cells, T v_leak, int levels, T* __restrict s,
                          T* __restrict h, i64 n) {
    const T* __restrict beta = cells.beta;
    const T* __restrict threshold = cells.threshold;
    for (i64 k = 0; k < n; ++k) {
        T vk = v[k], hk;
        s[k] = graded_step<spacing>(x[k], vk, beta[k], threshold[k], v_leak, levels, hk);
        h[k] = hk;
        v[k] = vk;
    }
}

template <Spacing spacing, class T>
SPIKING_ROW void after_row(const T* __restrict h, const T* __restrict threshold, int levels, T* __restrict v, i64 n) {
    for (i64 k = 0; k < n; ++k) v[k] = h[k] - threshold[k] * sent<spacing>(h[k], threshold[k], levels);
}

template <Spacing spacing, class T>
SPIKING_ROW void adjoint_row(const T* __restrict h, const T* __restrict gs, const T* __restrict v, T* __restrict carry,
                             const Cells<T>& cells, T v_leak, int levels, T* __restrict gx, double* __restrict gb, double* __restrict gt,
                             i64 n) {
    const T* __restrict beta = cells.beta;
    const T* __restrict threshold = cells.threshold;
    for (i64 k = 0; k < n; ++k) {
        T back = carry[k], grad_beta, grad_threshold;
        gx[k] = graded_adjoint<spacing>(h[k], gs[k], v[k], back, beta[k], threshold[k], v_leak, levels, grad_beta, grad_threshold);
        carry[k] = back;
        gb[k] += double(grad_beta), gt[k] += double(grad_threshold);
    }
}

template <Spacing spacing, class IO>
void forward_block(const GradedCall& p, i64 first, i64 n) {
    using T = typename StateOf<IO>::type;
    alignas(64) Cells<T> cells;
    alignas(64) T v[BLOCK], xb[BLOCK], s[BLOCK], h[BLOCK];
    fill_cells(p, first, n, cells.beta, cells.threshold, cells.unused);
    start_row(p.state0, first, n, T(p.v_leak), v);
    for (i64 t = 0; t < p.T; ++t) {
        const i64 at = t * p.N + first;
        const T* x = load_row(static_cast<const IO*>(p.x) + at, xb, n);
        step_row<spacing>(x, v, cells, T(p.v_leak), p.levels, s, p.saved ? static_cast<T*>(p.saved) + at : h, n);
        store_row(s, static_cast<IO*>(p.s) + at, n, false);
    }
    __builtin_memcpy(static_cast<T*>(p.state1) + first, v, u64(n) * sizeof(T));
}

template <Spacing spacing, class IO>
void backward_block(const GradedCall& p, i64 first, i64 n, int thread) {
    using T = typename StateOf<IO>::type;
    alignas(64) Cells<T> cells;
    alignas(64) T v[BLOCK], carry[BLOCK], gsb[BLOCK], gx[BLOCK];
    alignas(64) double gb[BLOCK], gt[BLOCK];
    fill_cells(p, first, n, cells.beta, cells.threshold, cells.unused);
    start_row(p.grad_state1, first, n, T(0), carry);
    for (i64 k = 0; k < n; ++k) gsb[k] = T(0), gb[k] = gt[k] = 0.0;
    const T* saved = static_cast<const T*>(p.saved);
    for (i64 t = p.T - 1; t >= 0; --t) {
        const i64 at = t * p.N + first;
        if (t > 0) after_row<spacing>(saved + at - p.N, cells.threshold, p.levels, v, n);
        else start_row(p.state0, first, n, T(p.v_leak), v);
        const T* gs = p.grad_s ? load_row(static_cast<const IO*>(p.grad_s) + at, gsb, n) : gsb;
        adjoint_row<spacing>(saved + at, gs, v, carry, cells, T(p.v_leak), p.levels, gx, gb, gt, n);
        store_row(gx, static_cast<IO*>(p.grad_x) + at, n, false);
    }
    if (p.grad_state0) __builtin_memcpy(static_cast<T*>(p.grad_state0) + first, carry, u64(n) * sizeof(T));
    if (!p.grad_params) return;
    double* grads = p.grad_params + thread * 3 * p.C;
    for (i64 k = 0; k < n; ++k) {
        const i64 index = p.C == 1 ? 0 : ((first + k) / p.inner) % p.C;
        grads[index] += gb[k], grads[p.C + index] += gt[k];
    }
}

template <Spacing spacing, class IO>
void run(const GradedCall& p, bool backward) {
    over_blocks(p, BLOCK, [&](i64 first, i64 n, int thread) {
        if (backward) backward_block<spacing, IO>(p, first, n, thread);
        else forward_block<spacing, IO>(p, first, n);
    });
}

template <Spacing spacing>
void by_dtype(const GradedCall& p, bool backward) {
    if (p.dtype == 0) run<spacing, float>(p, backward);
    if (p.dtype == 1) run<spacing, double>(p, backward);
    if (p.dtype == 2) run<spacing, bf16>(p, backward);
    if (p.dtype == 3) run<spacing, f16>(p, backward);
}

void dispatch(const GradedCall& p, bool backward) {
    if (p.spacing == int(Spacing::linear)) by_dtype<Spacing::linear>(p, backward);
    else by_dtype<Spacing::octave>(p, backward);
}

void forward(const GradedCall& p) { dispatch(p, false); }
void backward(const GradedCall& p) { dispatch(p, true); }

}  // namespace

extern const GradedTable graded_table;
const GradedTable graded_table{forward, backward};

}  // namespace SPIKING_NS
