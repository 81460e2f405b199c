// Average pooling and the two moments that batch normalisation needs, in one pass over the images; and its adjoint, in one more.
// Compiled once per instruction set (SPIKING_LEVEL), like neuron.cpp.
#define SPIKING_GLUE_(a, b) a##b
#define SPIKING_GLUE(a, b) SPIKING_GLUE_(a, b)
#define SPIKING_NS SPIKING_GLUE(spiking_, SPIKING_LEVEL)

#include "portable.h"
#include "pool_api.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace SPIKING_NS {
namespace {

constexpr i64 LANES = 16;      // independent partial sums: without them the additions of a row could not be vectorised

template <class T>
void add_moments(const T* __restrict row, i64 n, T* __restrict sum, T* __restrict square) {
    i64 k = 0;
    for (; k + LANES <= n; k += LANES)
        for (i64 l = 0; l < LANES; ++l) sum[l] += row[k + l], square[l] += row[k + l] * row[k + l];
    for (; k < n; ++k) sum[k % LANES] += row[k], square[k % LANES] += row[k] * row[k];
}

template <class T>
void pool_row(const T* __restrict top, i64 width, i64 window, i64 columns, T* __restrict out) {
    const T share = T(1) / T(window * window);
    if (window == 2) {
        const T* __restrict bottom = top + width;
        for (i64 j = 0; j < columns; ++j) out[j] = (top[2 * j] + top[2 * j + 1] + bottom[2 * j] + bottom[2 * j + 1]) * share;
        return;
    }
    for (i64 j = 0; j < columns; ++j) {
        T total = T(0);
        for (i64 r = 0; r < window; ++r)
            for (i64 c = 0; c < window; ++c) total += top[r * width + j * window + c];
        out[j] = total * share;
    }
}

template <class T>
void forward_plane(const PoolCall& p, i64 plane, double* moments) {
    const T* x = static_cast<const T*>(p.x) + plane * p.height * p.width;
    const i64 rows = p.height / p.window, columns = p.width / p.window, channel = plane % p.channels;
    T* out = static_cast<T*>(p.pooled) + plane * rows * columns;
    T sum[LANES] = {}, square[LANES] = {};
    if (moments) add_moments(x, p.height * p.width, sum, square);
    for (i64 i = 0; i < rows; ++i) pool_row(x + i * p.window * p.width, p.width, p.window, columns, out + i * columns);
    if (!moments) return;
    double s = 0, q = 0;
    for (i64 l = 0; l < LANES; ++l) s += double(sum[l]), q += double(square[l]);
    moments[channel] += s;
    moments[p.channels + channel] += q;
}

// dL/dx = dL/dpooled / window², and zero where no window is
template <class T>
void spread_plane(const PoolCall& p, i64 plane) {
    const i64 rows = p.height / p.window, columns = p.width / p.window, covered = columns * p.window;
    const T* g = static_cast<const T*>(p.grad_pooled) + plane * rows * columns;
    T* out = static_cast<T*>(p.grad_x) + plane * p.height * p.width;
    const T share = T(1) / T(p.window * p.window);
    for (i64 i = 0; i < p.height; ++i) {
        T* __restrict to = out + i * p.width;
        const bool inside = i < rows * p.window;
        if (inside && i % p.window) {
            __builtin_memcpy(to, to - p.width, u64(p.width) * sizeof(T));
            continue;
        }
        const T* __restrict row = g + i / p.window * columns;
        if (inside && p.window == 2)
            for (i64 j = 0; j < columns; ++j) to[2 * j] = row[j] * share, to[2 * j + 1] = row[j] * share;
        else if (inside)
            for (i64 j = 0; j < covered; ++j) to[j] = row[j / p.window] * share;
        for (i64 j = inside ? covered : 0; j < p.width; ++j) to[j] = T(0);
    }
}

// dL/dx = dL/dsum + 2·x·dL/dsquare + dL/dpooled / window²
template <class T>
void backward_plane(const PoolCall& p, i64 plane) {
    const i64 rows = p.height / p.window, columns = p.width / p.window, channel = plane % p.channels;
    const T* x = static_cast<const T*>(p.x) + plane * p.height * p.width;
    const T* g = static_cast<const T*>(p.grad_pooled) + plane * rows * columns;
    T* out = static_cast<T*>(p.grad_x) + plane * p.height * p.width;
    const T constant = T(p.grad_moments[channel]), slope = T(2.0 * p.grad_moments[p.channels + channel]);
    const T share = T(1) / T(p.window * p.window);
    for (i64 i = 0; i < p.height; ++i) {
        const T* __restrict from = x + i * p.width;
        T* __restrict to = out + i * p.width;
        for (i64 j = 0; j < p.width; ++j) to[j] = constant + slope * from[j];
        if (i / p.window >= rows) continue;
        const T* __restrict row = g + i / p.window * columns;
        if (p.window == 2)
            for (i64 j = 0; j < columns; ++j) to[2 * j] += row[j] * share, to[2 * j + 1] += row[j] * share;
        else
            for (i64 j = 0; j < columns * p.window; ++j) to[j] += row[j / p.window] * share;
    }
}

template <class Body>
void over_planes(const PoolCall& p, const Body& body) {
    const i64 planes = p.images * p.channels;
#ifdef _OPENMP
    if (p.threads > 1 && planes > 1) {
#pragma omp parallel for num_threads(p.threads) schedule(static)
        for (i64 plane = 0; plane < planes; ++plane) body(plane, omp_get_thread_num());
        return;
    }
#endif
    for (i64 plane = 0; plane < planes; ++plane) body(plane, 0);
}

void forward(const PoolCall& p) {
    over_planes(p, [&](i64 plane, int thread) {
        double* moments = p.moments ? p.moments + thread * 2 * p.channels : nullptr;
        if (p.wide) forward_plane<double>(p, plane, moments);
        else forward_plane<float>(p, plane, moments);
    });
}

void backward(const PoolCall& p) {
    over_planes(p, [&](i64 plane, int) {
        if (p.grad_moments) p.wide ? backward_plane<double>(p, plane) : backward_plane<float>(p, plane);
        else p.wide ? spread_plane<double>(p, plane) : spread_plane<float>(p, plane);
    });
}

}  // namespace

extern const PoolTable pool_table;
const PoolTable pool_table{forward, backward};

}  // namespace SPIKING_NS
