// What drives a block of neurons in one step where it is not the input itself but windows of it, pooled, and scaled by channel: the pooled
// currents are made in the caches as they are needed, and their gradient likewise, so that neither is ever in memory.
#pragma once
#include "neuron_api.h"
#include "saved.h"

namespace SPIKING_NS {

// body(k, windows, source, channel): runs of neurons [k, k + windows) whose windows lie side by side in one channel, and where the first
// of these windows begins. Windows of one pixel need not stop at the end of a row.
template <class Body>
SPIKING_FN void over_windows(const DriveCall& d, i64 t, i64 first, i64 n, const Body& body) {
    const bool whole = d.window == 1;
    const i64 rows = whole ? 1 : d.height / d.window, columns = whole ? d.height * d.width : d.width / d.window;
    i64 column = first % columns, row = first / columns % rows, plane = first / columns / rows;
    for (i64 k = 0; k < n;) {
        const i64 windows = columns - column < n - k ? columns - column : n - k;
        body(k, windows, t * d.step_items + (plane * d.height + row * d.window) * d.width + column * d.window, plane % d.channels);
        k += windows, column = 0;
        if (++row == rows) row = 0, ++plane;
    }
}

constexpr i64 PARTS = 16;          // sums apart, so that no addition waits for the one before

template <class T>
SPIKING_FN T summed(const T* __restrict a, i64 n) {
    T parts[PARTS] = {}, total = T(0);
    i64 k = 0;
    for (; k + PARTS <= n; k += PARTS)
        for (i64 l = 0; l < PARTS; ++l) parts[l] += a[k + l];
    for (; k < n; ++k) total += a[k];
    for (i64 l = 0; l < PARTS; ++l) total += parts[l];
    return total;
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

// Whether `v` takes the maximum over from `best`, which comes before it; a NaN is larger than any number.
template <class T>
SPIKING_FN bool beats(T v, T best) { return v > best || v != v; }

template <class IO, class T>
SPIKING_FN void maximum_row(const IO* __restrict x, i64 width, i64 window, i64 n, T* __restrict out) {
    if (window == 2) {
        const IO* __restrict below = x + width;
        for (i64 j = 0; j < n; ++j) {
            const T a = T(widen(x[2 * j])), b = T(widen(x[2 * j + 1])), c = T(widen(below[2 * j])), d = T(widen(below[2 * j + 1]));
            T best = beats(b, a) ? b : a;
            best = beats(c, best) ? c : best;
            out[j] = beats(d, best) ? d : best;
        }
        return;
    }
    for (i64 j = 0; j < n; ++j) {
        T best = T(widen(x[j * window]));
        for (i64 r = 0; r < window; ++r)
            for (i64 c = 0; c < window; ++c) {
                const T v = T(widen(x[r * width + j * window + c]));
                best = beats(v, best) ? v : best;
            }
        out[j] = best;
    }
}

// Each window's gradient goes to the first of its largest, row by row.
template <class IO, class T>
SPIKING_FN void to_maximum(const IO* __restrict x, i64 width, i64 window, i64 n, const T* __restrict g, IO* __restrict out) {
    if (window == 2) {
        const IO* __restrict below = x + width;
        IO* __restrict out_below = out + width;
        for (i64 j = 0; j < n; ++j) {
            const T a = T(widen(x[2 * j])), b = T(widen(x[2 * j + 1])), c = T(widen(below[2 * j])), d = T(widen(below[2 * j + 1]));
            const bool by_b = beats(b, a);
            const T ab = by_b ? b : a;
            const bool by_c = beats(c, ab);
            const T abc = by_c ? c : ab;
            const bool by_d = beats(d, abc);
            const T of_c = by_d ? T(0) : g[j], of_b = by_c ? T(0) : of_c;
            narrow(by_b ? T(0) : of_b, out[2 * j]);
            narrow(by_b ? of_b : T(0), out[2 * j + 1]);
            narrow(by_c ? of_c : T(0), out_below[2 * j]);
            narrow(by_d ? g[j] : T(0), out_below[2 * j + 1]);
        }
        return;
    }
    for (i64 j = 0; j < n; ++j) {
        i64 best = 0;
        for (i64 r = 0; r < window; ++r)
            for (i64 c = 0; c < window; ++c)
                if (beats(T(widen(x[r * width + j * window + c])), T(widen(x[j * window + best])))) best = r * width + c;
        for (i64 r = 0; r < window; ++r)
            for (i64 c = 0; c < window; ++c) narrow(r * width + c == best ? g[j] : T(0), out[r * width + j * window + c]);
    }
}

template <class IO, class T>
SPIKING_FN void to_average(i64 width, i64 window, i64 n, const T* __restrict g, IO* __restrict out) {
    const T share = T(1) / T(window * window);
    if (window == 1) {
        for (i64 j = 0; j < n; ++j) narrow(g[j], out[j]);
    } else if (window == 2) {
        IO* __restrict below = out + width;
        for (i64 j = 0; j < n; ++j) {
            IO part;
            narrow(g[j] * share, part);
            out[2 * j] = part, out[2 * j + 1] = part, below[2 * j] = part, below[2 * j + 1] = part;
        }
    } else {
        for (i64 r = 0; r < window; ++r)
            for (i64 j = 0; j < n * window; ++j) narrow(g[j / window] * share, out[r * width + j]);
    }
}

// The pooled input of neurons [first, first + n) at step t, before scale and shift.
template <class IO, class T>
__attribute__((noinline)) void pooled_row(const NeuronCall& p, i64 t, i64 first, i64 n, T* out) {
    const DriveCall& d = *p.drive;
    const IO* x = static_cast<const IO*>(p.x);
    over_windows(d, t, first, n, [&](i64 k, i64 windows, i64 source, i64) {
        if (d.maximum) maximum_row(x + source, d.width, d.window, windows, out + k);
        else average_row(x + source, d.width, d.window, windows, out + k);
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
    over_windows(d, t, first, n, [&](i64 k, i64 windows, i64, i64 channel) {
        const T a = scale[channel], b = shift[channel];
        for (i64 j = k; j < k + windows; ++j) out[j] = b + out[j] * a;
    });
}

// dL/dx of the windows of neurons [first, first + n) at step t from their gradient g [n], and what scale and shift are owed.
template <class IO, class T>
__attribute__((noinline)) void undriven_row(const NeuronCall& p, i64 t, i64 first, i64 n, T* __restrict g, T* __restrict pooled,
                                            double* grad_affine) {
    const DriveCall& d = *p.drive;
    const IO* x = static_cast<const IO*>(p.x);
    IO* out = static_cast<IO*>(p.grad_x);
    const T* scale = static_cast<const T*>(d.scale);
    if (scale) pooled_row<IO>(p, t, first, n, pooled);
    over_windows(d, t, first, n, [&](i64 k, i64 windows, i64 source, i64 channel) {
        if (scale) {
            grad_affine[d.channels + channel] += double(summed(g + k, windows));
            for (i64 j = k; j < k + windows; ++j) pooled[j] *= g[j], g[j] *= scale[channel];
            grad_affine[channel] += double(summed(pooled + k, windows));
        }
        if (d.maximum) to_maximum(x + source, d.width, d.window, windows, g + k, out + source);
        else to_average(d.width, d.window, windows, g + k, out + source);
    });
}

}  // namespace SPIKING_NS
