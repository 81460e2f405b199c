// CPU loops over include/wkv.h: threads over blocks of channels of one sequence, time inside a block, SIMD over the channels of a row.
// Compiled once per instruction set (SPIKING_LEVEL), like neuron.cpp.
#define SPIKING_GLUE_(a, b) a##b
#define SPIKING_GLUE(a, b) SPIKING_GLUE_(a, b)
#define SPIKING_NS SPIKING_GLUE(spiking_, SPIKING_LEVEL)

#include "rows.h"
#include "wkv.h"
#include "wkv_api.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace SPIKING_NS {
namespace {

constexpr i64 FORWARD_BLOCK = 256;       // channels: long rows help the prefetcher, and their state stays in L1
constexpr i64 BACKWARD_BLOCK = 128;      // what is kept of a chunk, 32 KB, stays in the nearest caches
constexpr i64 STREAM_BYTES = i64(6) << 20;

template <class T> struct Past { T *p, *q, *o; };

// Rows of a [3, B, C] state; a past that is not given is empty.
template <class T>
void load_past(const void* from, i64 stride, i64 at, Past<T> past, i64 n) {
    const T* row = from ? static_cast<const T*>(from) + at : nullptr;
    for (i64 k = 0; k < n; ++k) {
        past.p[k] = row ? row[k] : T(0);
        past.q[k] = row ? row[stride + k] : T(0);
        past.o[k] = row ? row[2 * stride + k] : WKV_REST<T>;
    }
}

template <class T>
void store_past(Past<T> past, void* to, i64 stride, i64 at, i64 n) {
    T* row = static_cast<T*>(to) + at;
    for (i64 k = 0; k < n; ++k) row[k] = past.p[k], row[stride + k] = past.q[k], row[2 * stride + k] = past.o[k];
}

template <class T>
SPIKING_ROW void output_row(const T* __restrict k, const T* __restrict v, const T* __restrict w, const T* __restrict u, T* __restrict p,
                            T* __restrict q, T* __restrict o, T* __restrict y, i64 n) {
    for (i64 c = 0; c < n; ++c) {
        T pc = p[c], qc = q[c], oc = o[c];
        y[c] = wkv_output(k[c], v[c], u[c], pc, qc, oc);
        wkv_advance(k[c], v[c], w[c], pc, qc, oc);
        p[c] = pc, q[c] = qc, o[c] = oc;
    }
}

// A step without its output; keeps what the adjoint will need.
template <class T>
SPIKING_ROW void replay_row(const T* __restrict k, const T* __restrict v, const T* __restrict w, const T* __restrict u, T* __restrict p,
                            T* __restrict q, T* __restrict o, T* __restrict kept_p, T* __restrict kept_q, T* __restrict now,
                            T* __restrict next, i64 n) {
    for (i64 c = 0; c < n; ++c) {
        T pc = p[c], qc = q[c], oc = o[c];
        kept_p[c] = pc, kept_q[c] = qc;
        now[c] = lesser_weight(oc, u[c] + k[c]);
        next[c] = wkv_advance(k[c], v[c], w[c], pc, qc, oc);
        p[c] = pc, q[c] = qc, o[c] = oc;
    }
}

template <class T>
SPIKING_ROW void adjoint_row(const T* __restrict v, const T* __restrict p, const T* __restrict q, const T* __restrict now,
                             const T* __restrict next, const T* __restrict grad_y, T* __restrict gp, T* __restrict gq,
                             T* __restrict grad_k, T* __restrict grad_v, T* __restrict grad_w, T* __restrict grad_u, i64 n) {
    for (i64 c = 0; c < n; ++c) {
        T gpc = gp[c], gqc = gq[c], gk, gv, gw = grad_w[c], gu = grad_u[c];
        wkv_adjoint(v[c], p[c], q[c], now[c], next[c], grad_y[c], gpc, gqc, gk, gv, gw, gu);
        gp[c] = gpc, gq[c] = gqc, grad_k[c] = gk, grad_v[c] = gv, grad_w[c] = gw, grad_u[c] = gu;
    }
}

template <class IO>
bool streams(const WkvCall& p) {
    return p.T * p.B * p.C * i64(sizeof(IO)) >= STREAM_BYTES;
}

template <class IO, class T = typename StateOf<IO>::type>
void forward_block(const WkvCall& call, i64 b, i64 first, i64 n) {
    const i64 width = call.B * call.C, column = b * call.C + first;
    const IO *k = static_cast<const IO*>(call.k) + column, *v = static_cast<const IO*>(call.v) + column;
    const T *w = static_cast<const T*>(call.w) + first, *u = static_cast<const T*>(call.u) + first;
    IO* y = static_cast<IO*>(call.y) + column;
    T p[FORWARD_BLOCK], q[FORWARD_BLOCK], o[FORWARD_BLOCK], keys[FORWARD_BLOCK], values[FORWARD_BLOCK], row[FORWARD_BLOCK];
    const Past<T> past{p, q, o};
    load_past(call.state0, width, column, past, n);
    const bool stream = streams<IO>(call);
    for (i64 t = 0; t < call.T; ++t, k += width, v += width, y += width) {
        if (call.saved && t > 0 && t % CHUNK == 0)
            store_past(past, static_cast<T*>(call.saved) + (t / CHUNK - 1) * 3 * width, width, column, n);
        if (t + 1 < call.T) prefetch_row(k + width, n * i64(sizeof(IO))), prefetch_row(v + width, n * i64(sizeof(IO)));
        output_row(load_row(k, keys, n), load_row(v, values, n), w, u, p, q, o, row, n);
        store_row(row, y, n, stream);
    }
    if (stream) stream_end();
    store_past(past, call.state1, width, column, n);
}

template <class IO, class T = typename StateOf<IO>::type>
void backward_block(const WkvCall& call, i64 b, i64 first, i64 n) {
    constexpr i64 W = BACKWARD_BLOCK;
    const i64 width = call.B * call.C, column = b * call.C + first;
    const IO *k = static_cast<const IO*>(call.k) + column, *v = static_cast<const IO*>(call.v) + column;
    const IO* grad_y = call.grad_y ? static_cast<const IO*>(call.grad_y) + column : nullptr;
    const T *w = static_cast<const T*>(call.w) + first, *u = static_cast<const T*>(call.u) + first;
    IO *grad_k = static_cast<IO*>(call.grad_k) + column, *grad_v = static_cast<IO*>(call.grad_v) + column;
    T p[W], q[W], o[W], keys[W], values[W], gy[W] = {}, gk[W], gv[W], gp[W], gq[W], unused[W];
    T kept_p[CHUNK][W], kept_q[CHUNK][W], now[CHUNK][W], next[CHUNK][W];
    double sum_w[W] = {}, sum_u[W] = {};
    const Past<T> past{p, q, o};
    load_past(call.grad_state1, width, column, Past<T>{gp, gq, unused}, n);
    const bool stream = streams<IO>(call);
    for (i64 start = (call.T - 1) / CHUNK * CHUNK; start >= 0; start -= CHUNK) {
        const T* saved = static_cast<const T*>(call.saved);
        load_past(start > 0 ? saved + (start / CHUNK - 1) * 3 * width : call.state0, width, column, past, n);
        const i64 steps = call.T - start < CHUNK ? call.T - start : CHUNK;
        for (i64 i = 0; i < steps; ++i) {
            const i64 at = (start + i) * width;
            replay_row(load_row(k + at, keys, n), load_row(v + at, values, n), w, u, p, q, o, kept_p[i], kept_q[i], now[i], next[i], n);
        }
        T grad_w[W] = {}, grad_u[W] = {};
        for (i64 i = steps - 1; i >= 0; --i) {
            const i64 at = (start + i) * width;
            const T* of_y = grad_y ? load_row(grad_y + at, gy, n) : gy;
            adjoint_row(load_row(v + at, values, n), kept_p[i], kept_q[i], now[i], next[i], of_y, gp, gq, gk, gv, grad_w, grad_u, n);
            store_row(gk, grad_k + at, n, stream);
            store_row(gv, grad_v + at, n, stream);
        }
        for (i64 c = 0; c < n; ++c) sum_w[c] += double(grad_w[c]), sum_u[c] += double(grad_u[c]);
    }
    if (stream) stream_end();
    for (i64 c = 0; c < n; ++c) call.grad_params[column + c] = sum_w[c], call.grad_params[width + column + c] = sum_u[c];
    if (!call.grad_state0) return;
    for (i64 c = 0; c < n; ++c) unused[c] = T(0);
    store_past(Past<T>{gp, gq, unused}, call.grad_state0, width, column, n);
}

template <class Body>
void over_blocks(const WkvCall& call, i64 block, const Body& body) {
    const i64 per_row = (call.C + block - 1) / block, blocks = call.B * per_row;
    const auto run = [&](i64 index) {
        const i64 first = index % per_row * block;
        body(index / per_row, first, call.C - first < block ? call.C - first : block);
    };
#ifdef _OPENMP
    if (call.threads > 1 && blocks > 1) {
#pragma omp parallel for num_threads(call.threads) schedule(static)
        for (i64 index = 0; index < blocks; ++index) run(index);
        return;
    }
#endif
    for (i64 index = 0; index < blocks; ++index) run(index);
}

// Too few blocks would leave threads without work: narrower ones, but whole cache lines.
i64 block_for(const WkvCall& call, i64 widest) {
    i64 block = widest;
    while (block > 32 && call.B * ((call.C + block - 1) / block) < call.threads) block /= 2;
    return block;
}

template <class Body>
void with_dtype(int dtype, const Body& body) {
    if (dtype == 0) body(float());
    if (dtype == 1) body(double());
    if (dtype == 2) body(bf16());
    if (dtype == 3) body(f16());
}

void forward(const WkvCall& call) {
    with_dtype(call.dtype, [&](auto io) {
        over_blocks(call, block_for(call, FORWARD_BLOCK), [&](i64 b, i64 first, i64 n) { forward_block<decltype(io)>(call, b, first, n); });
    });
}

void backward(const WkvCall& call) {
    with_dtype(call.dtype, [&](auto io) {
        over_blocks(call, block_for(call, BACKWARD_BLOCK), [&](i64 b, i64 first, i64 n) { backward_block<decltype(io)>(call, b, first, n); });
    });
}

}  // namespace

extern const WkvTable wkv_table;
const WkvTable wkv_table{forward, backward};

}  // namespace SPIKING_NS
