// CPU loops over include/wkv.h: threads over blocks of channels of one sequence, chunks of time inside a block, and inside a chunk one
// vector of channels after another, whose state stays in registers from step to step.
// Compiled once per instruction set (SPIKING_LEVEL), like neuron.cpp.
#define SPIKING_GLUE_(a, b) a##b
#define SPIKING_GLUE(a, b) SPIKING_GLUE_(a, b)
#define SPIKING_NS SPIKING_GLUE(spiking_, SPIKING_LEVEL)

#include "lanes.h"
#include "rows.h"
#include "wkv.h"
#include "wkv_api.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace SPIKING_NS {
namespace {

constexpr i64 FORWARD_BLOCK = 256;       // channels
constexpr i64 BACKWARD_BLOCK = 128;

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

// Rows of one block and chunk: row i lies `stride` numbers after row i - 1. `ahead` (0: none) leads to the chunk that comes next.
template <class T> struct Rows {
    T* at;
    i64 stride, ahead;
    SPIKING_FN T* operator()(i64 i, i64 c) const { return at + i * stride + c; }
    template <class V> SPIKING_FN void ask_early(i64 i, i64 c) const {
        if (ahead) prefetch_row(at + i * stride + c + ahead, i64(sizeof(V)));
    }
};

// What a block knows of its channels; `gain` as in wkv.h.
template <class T> struct Cells { const T *w, *u, *gain; };

template <class V, class T> struct State {
    V p, q, o;
    SPIKING_FN State(Past<T> past, i64 c) : p(load_as<V>(past.p + c)), q(load_as<V>(past.q + c)), o(load_as<V>(past.o + c)) {}
};

// `steps` steps of the channels from c on that V holds.
template <bool mixed, class V, class T>
SPIKING_FN void forward_vector(Rows<const T> k, Rows<const T> v, Rows<T> y, Cells<T> cells, Past<T> past, i64 c, i64 steps) {
    State<V, T> now(past, c);
    const V w = load_as<V>(cells.w + c), u = load_as<V>(cells.u + c), gain = load_as<V>(cells.gain + c);
    for (i64 i = 0; i < steps; ++i) {
        k.template ask_early<V>(i, c), v.template ask_early<V>(i, c);
        WkvKept<V> unused;
        store_as(y(i, c), wkv_step<mixed, T>(load_as<V>(k(i, c)), load_as<V>(v(i, c)), w, u, gain, now.p, now.q, now.o, unused));
    }
    store_as(past.p + c, now.p), store_as(past.q + c, now.q), store_as(past.o + c, now.o);
}

// Gradients of a block that are carried from chunk to chunk, and those of w and u within one.
template <class T> struct Carried { T *gp, *gq, *grad_w, *grad_u; };

// A chunk is run forward again, what the adjoint needs kept in the nearest cache, and then walked backward. `past` is left alone.
template <bool mixed, class V, class T>
SPIKING_FN void backward_vector(Rows<const T> k, Rows<const T> v, Rows<const T> grad_y, Rows<T> grad_k, Rows<T> grad_v, Cells<T> cells,
                                Past<T> past, Carried<T> carried, i64 c, i64 steps) {
    WkvKept<V> kept[CHUNK];
    const V w = load_as<V>(cells.w + c), u = load_as<V>(cells.u + c), gain = load_as<V>(cells.gain + c);
    State<V, T> now(past, c);
    for (i64 i = 0; i < steps; ++i) {
        k.template ask_early<V>(i, c), v.template ask_early<V>(i, c);
        wkv_step<mixed, T>(load_as<V>(k(i, c)), load_as<V>(v(i, c)), w, u, gain, now.p, now.q, now.o, kept[i]);
    }
    V gp = load_as<V>(carried.gp + c), gq = load_as<V>(carried.gq + c), grad_w = V(0), grad_u = V(0);
    for (i64 i = steps - 1; i >= 0; --i) {
        V gk, gv;
        grad_y.template ask_early<V>(i, c);
        wkv_adjoint<mixed>(kept[i], load_as<V>(v(i, c)), gain, load_as<V>(grad_y(i, c)), gp, gq, gk, gv, grad_w, grad_u);
        store_as(grad_k(i, c), gk), store_as(grad_v(i, c), gv);
    }
    store_as(carried.gp + c, gp), store_as(carried.gq + c, gq), store_as(carried.grad_w + c, grad_w), store_as(carried.grad_u + c, grad_u);
}

// Calls body(example of a vector, first channel) until all n channels are done.
template <class T, class Body>
SPIKING_FN void over_vectors(i64 n, const Body& body) {
    i64 c = 0;
    for (; c + Lanes<T>::count <= n; c += Lanes<T>::count) body(Lanes<T>(0), c);
    for (; c < n; ++c) body(T(0), c);
}

template <bool mixed, class T>
SPIKING_ROW void forward_chunk(Rows<const T> k, Rows<const T> v, Rows<T> y, Cells<T> cells, Past<T> past, i64 n,
                               i64 steps) {
    over_vectors<T>(n, [&](auto vector, i64 c) {
        forward_vector<mixed, decltype(vector)>(k, v, y, cells, past, c, steps);
    });
}

template <bool mixed, class T>
SPIKING_ROW void backward_chunk(Rows<const T> k, Rows<const T> v, Rows<const T> grad_y, Rows<T> grad_k,
                                Rows<T> grad_v, Cells<T> cells, Past<T> past, Carried<T> carried, i64 n, i64 steps) {
    over_vectors<T>(n, [&](auto vector, i64 c) {
        backward_vector<mixed, decltype(vector)>(k, v, grad_y, grad_k, grad_v, cells, past, carried, c, steps);
    });
}

// A chunk of a tensor: where it lies, or widened into a buffer.
template <class IO, class T>
Rows<const T> rows_of(const IO* from, i64 width, T* buffer, i64 n, i64 steps, i64 ahead) {
    if constexpr (sizeof(IO) == sizeof(T)) {
        (void)buffer, (void)n, (void)steps;
        return {from, width, ahead};
    } else {
        for (i64 i = 0; i < steps; ++i) load_row(from + i * width, buffer + i * n, n);
        return {buffer, n, 0};
    }
}

template <class IO, class T>
Rows<T> rows_for(IO* to, i64 width, T* buffer, i64 n) {
    if constexpr (sizeof(IO) == sizeof(T)) return (void)buffer, (void)n, Rows<T>{to, width, 0};
    else return (void)to, (void)width, Rows<T>{buffer, n, 0};
}

template <class IO, class T>
void finish_rows(const T* buffer, IO* to, i64 width, i64 n, i64 steps) {
    if constexpr (sizeof(IO) != sizeof(T))
        for (i64 i = 0; i < steps; ++i) store_row(buffer + i * n, to + i * width, n, false);
    (void)buffer, (void)to, (void)width, (void)n, (void)steps;
}

// Room for widened rows; none where numbers are worked on where they lie.
template <class IO, class T, i64 block> struct Buffer { T at[sizeof(IO) == sizeof(T) ? 1 : CHUNK * block]; };

template <class T>
bool find_gains(const T* w, const T* u, T* gain, i64 n) {
    bool mixed = false;
    for (i64 c = 0; c < n; ++c) gain[c] = wkv_gain(w[c], u[c]), mixed |= gain[c] < T(0);
    return mixed;
}

template <class IO, class T = typename StateOf<IO>::type>
void forward_block(const WkvCall& call, i64 b, i64 first, i64 n) {
    const i64 width = call.B * call.C, column = b * call.C + first;
    const IO *k = static_cast<const IO*>(call.k) + column, *v = static_cast<const IO*>(call.v) + column;
    IO* y = static_cast<IO*>(call.y) + column;
    T p[FORWARD_BLOCK], q[FORWARD_BLOCK], o[FORWARD_BLOCK], gain[FORWARD_BLOCK];
    Buffer<IO, T, FORWARD_BLOCK> keys, values, outputs;
    const Past<T> past{p, q, o};
    const Cells<T> cells{static_cast<const T*>(call.w) + first, static_cast<const T*>(call.u) + first, gain};
    const bool mixed = find_gains(cells.w, cells.u, gain, n);
    load_past(call.state0, width, column, past, n);
    for (i64 start = 0; start < call.T; start += CHUNK) {
        if (call.saved && start > 0) store_past(past, static_cast<T*>(call.saved) + (start / CHUNK - 1) * 3 * width, width, column, n);
        const i64 steps = call.T - start < CHUNK ? call.T - start : CHUNK, at = start * width;
        const i64 ahead = start + 2 * CHUNK <= call.T ? CHUNK * width : 0;
        const Rows<const T> of_k = rows_of(k + at, width, keys.at, n, steps, ahead), of_v = rows_of(v + at, width, values.at, n, steps, ahead);
        const Rows<T> of_y = rows_for(y + at, width, outputs.at, n);
        if (mixed) forward_chunk<true>(of_k, of_v, of_y, cells, past, n, steps);
        else forward_chunk<false>(of_k, of_v, of_y, cells, past, n, steps);
        finish_rows(outputs.at, y + at, width, n, steps);
    }
    store_past(past, call.state1, width, column, n);
}

template <class IO, class T = typename StateOf<IO>::type>
void backward_block(const WkvCall& call, i64 b, i64 first, i64 n) {
    constexpr i64 W = BACKWARD_BLOCK;
    const i64 width = call.B * call.C, column = b * call.C + first;
    const IO *k = static_cast<const IO*>(call.k) + column, *v = static_cast<const IO*>(call.v) + column;
    const IO* grad_y = call.grad_y ? static_cast<const IO*>(call.grad_y) + column : nullptr;
    IO *grad_k = static_cast<IO*>(call.grad_k) + column, *grad_v = static_cast<IO*>(call.grad_v) + column;
    T p[W], q[W], o[W], gain[W], gp[W], gq[W], unused[W], grad_w[W], grad_u[W];
    const T none[W] = {};
    Buffer<IO, T, W> keys, values, of_outputs, of_keys, of_values;
    double sum_w[W] = {}, sum_u[W] = {};
    const Past<T> past{p, q, o};
    const Cells<T> cells{static_cast<const T*>(call.w) + first, static_cast<const T*>(call.u) + first, gain};
    const Carried<T> carried{gp, gq, grad_w, grad_u};
    const bool mixed = find_gains(cells.w, cells.u, gain, n);
    load_past(call.grad_state1, width, column, Past<T>{gp, gq, unused}, n);
    for (i64 start = (call.T - 1) / CHUNK * CHUNK; start >= 0; start -= CHUNK) {
        const T* saved = static_cast<const T*>(call.saved);
        load_past(start > 0 ? saved + (start / CHUNK - 1) * 3 * width : call.state0, width, column, past, n);
        const i64 steps = call.T - start < CHUNK ? call.T - start : CHUNK, at = start * width, ahead = start > 0 ? -CHUNK * width : 0;
        const Rows<const T> of_k = rows_of(k + at, width, keys.at, n, steps, ahead), of_v = rows_of(v + at, width, values.at, n, steps, ahead);
        const Rows<const T> of_y = grad_y ? rows_of(grad_y + at, width, of_outputs.at, n, steps, ahead) : Rows<const T>{none, 0, 0};
        const Rows<T> to_k = rows_for(grad_k + at, width, of_keys.at, n), to_v = rows_for(grad_v + at, width, of_values.at, n);
        if (mixed) backward_chunk<true>(of_k, of_v, of_y, to_k, to_v, cells, past, carried, n, steps);
        else backward_chunk<false>(of_k, of_v, of_y, to_k, to_v, cells, past, carried, n, steps);
        finish_rows(of_keys.at, grad_k + at, width, n, steps);
        finish_rows(of_values.at, grad_v + at, width, n, steps);
        for (i64 c = 0; c < n; ++c) sum_w[c] += double(grad_w[c]), sum_u[c] += double(grad_u[c]);
    }
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
