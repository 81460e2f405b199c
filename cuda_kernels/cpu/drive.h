// What drives a block of neurons in one step where it is not the input itself but windows of it, pooled, and scaled by channel: the pooled
// currents are made in the caches as they are needed, and their gradient likewise, so that neither is ever in memory.
#pragma once
#include "neuron_api.h"
#include "saved.h"

namespace SPIKING_NS {

// body(k, windows, source, channel): runs of neurons [k, k + windows) of one row of a plane, and where their first window begins.
template <class Body>
SPIKING_FN void over_windows(const DriveCall& d, i64 step_items, i64 t, i64 first, i64 n, const Body& body) {
    const i64 rows = d.height / d.window, columns = d.width / d.window;
    for (i64 k = 0; k < n;) {
        const i64 neuron = first + k, column = neuron % columns, row = neuron / columns % rows, plane = neuron / columns / rows;
        const i64 windows = columns - column < n - k ? columns - column : n - k;
        body(k, windows, t * step_items + (plane * d.height + row * d.window) * d.width + column * d.window, plane % d.channels);
        k += windows;
    }
}

template <class IO, class T>
SPIKING_FN void average_row(const IO* __restrict x, i64 width, i64 window, i64 n, T* __restrict out) {
    if (window == 1) {
        for (i64 j = 0; j < n; ++j) out[j] = T(widen(x[j]));
    } else if (window == 2) {
        const IO* __restrict below = x + width;
        for (i64 j = 0; j < n; ++j)
            out[j] = (T(widen(x[2 * j])) + T(widen(x[2 * j + 1])) + T(widen(below[2 * j])) + T(widen(below[2 * j + 1]))) / T(4);
    } else {
        for (i64 j = 0; j < n; ++j) {
            T total = T(0);
            for (i64 r = 0; r < window; ++r)
                for (i64 c = 0; c < window; ++c) total += T(widen(x[r * width + j * window + c]));
            out[j] = total / T(window * window);
        }
    }
}

// The first of the largest, row by row; a NaN is larger than any number.
template <class IO>
SPIKING_FN i64 place_of_maximum(const IO* x, i64 width, i64 window) {
    i64 best = 0;
    for (i64 r = 0; r < window; ++r)
        for (i64 c = 0; c < window; ++c) {
            const auto v = widen(x[r * width + c]);
            if (v > widen(x[best]) || v != v) best = r * width + c;
        }
    return best;
}

// The pooled input of neurons [first, first + n) at step t, before scale and shift.
template <class IO, class T>
__attribute__((noinline)) void pooled_row(const NeuronCall& p, i64 t, i64 first, i64 n, T* out) {
    const DriveCall& d = *p.drive;
    const IO* x = static_cast<const IO*>(p.x);
    over_windows(d, d.step_items, t, first, n, [&](i64 k, i64 windows, i64 source, i64) {
        if (!d.maximum) average_row(x + source, d.width, d.window, windows, out + k);
        else
            for (i64 j = 0; j < windows; ++j) {
                const IO* at = x + source + j * d.window;
                out[k + j] = T(widen(at[place_of_maximum(at, d.width, d.window)]));
            }
    });
}

template <class IO, class T>
__attribute__((noinline)) void driven_row(const NeuronCall& p, i64 t, i64 first, i64 n, T* out) {
    const DriveCall& d = *p.drive;
    pooled_row<IO>(p, t, first, n, out);
    // As if the pooled numbers had been in memory: neurons behave as after a pooling layer of its own.
    if constexpr (sizeof(IO) == 2)
        for (i64 k = 0; k < n; ++k) {
            IO rounded;
            narrow(out[k], rounded);
            out[k] = widen(rounded);
        }
    if (!d.scale) return;
    const T *scale = static_cast<const T*>(d.scale), *shift = static_cast<const T*>(d.shift);
    over_windows(d, d.step_items, t, first, n, [&](i64 k, i64 windows, i64, i64 channel) {
        const T a = scale[channel], b = shift[channel];
        for (i64 j = k; j < k + windows; ++j) out[j] = b + out[j] * a;
    });
}

// dL/dx of the windows of neurons [first, first + n) at step t from their gradient g [n], and what scale and shift are owed.
template <class IO, class T>
__attribute__((noinline)) void undriven_row(const NeuronCall& p, i64 t, i64 first, i64 n, T* g, T* pooled, double* grad_affine) {
    const DriveCall& d = *p.drive;
    const IO* x = static_cast<const IO*>(p.x);
    IO* out = static_cast<IO*>(p.grad_x);
    const T* scale = static_cast<const T*>(d.scale);
    const T share = T(1) / T(d.window * d.window);
    if (scale) pooled_row<IO>(p, t, first, n, pooled);
    over_windows(d, d.step_items, t, first, n, [&](i64 k, i64 windows, i64 source, i64 channel) {
        if (scale) {
            T with = T(0), alone = T(0);
            for (i64 j = k; j < k + windows; ++j) with += g[j] * pooled[j], alone += g[j], g[j] *= scale[channel];
            grad_affine[channel] += double(with), grad_affine[d.channels + channel] += double(alone);
        }
        if (d.maximum) {
            for (i64 j = 0; j < windows; ++j) {
                const i64 at = source + j * d.window, best = place_of_maximum(x + at, d.width, d.window);
                for (i64 r = 0; r < d.window; ++r)
                    for (i64 c = 0; c < d.window; ++c) narrow(r * d.width + c == best ? g[k + j] : T(0), out[at + r * d.width + c]);
            }
        } else if (d.window == 1) {
            for (i64 j = 0; j < windows; ++j) narrow(g[k + j], out[source + j]);
        } else {
            for (i64 r = 0; r < d.window; ++r)
                for (i64 j = 0; j < windows; ++j)
                    for (i64 c = 0; c < d.window; ++c) narrow(g[k + j] * share, out[source + r * d.width + j * d.window + c]);
        }
    });
}

}  // namespace SPIKING_NS
