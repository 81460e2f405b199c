// One time step of neurons with graded spikes, forward and adjoint. Oracle: reference.py::graded.
//
//     h = beta·v + x + (1 - beta)·v_leak
//     s = floor(h / threshold) within 0…levels                          (Spacing::linear)
//     s = 2^k where 2^k < h / threshold <= 2^(k + 1), k < levels        (Spacing::octave; no upper end for the last; below: 0)
//     v = h - threshold·s
#pragma once
#include "portable.h"

namespace SPIKING_NS {

enum class Spacing : int { linear = 0, octave = 1 };

#ifdef __CUDACC__
SPIKING_FN float whole(float q) { return floorf(q); }
SPIKING_FN double whole(double q) { return floor(q); }
#else
SPIKING_FN float whole(float q) { return __builtin_floorf(q); }
SPIKING_FN double whole(double q) { return __builtin_floor(q); }
#endif

// What a membrane sends; NaN where it is NaN.
template <Spacing spacing, class T>
SPIKING_FN T sent(T h, T threshold, int levels) {
    if constexpr (spacing == Spacing::linear) {
        const T q = whole(h / threshold), most = T(levels);
        return select(q < T(0), T(0), select(q > most, most, q));
    } else {
        T s = T(0), edge = threshold, size = T(1);
        for (int k = 0; k < levels; ++k) {
            s = select(h > edge, size, s);
            edge = edge + edge, size = size + size;
        }
        return select(h == h, s, h);
    }
}

// ds/dh by the surrogate: straight through where nothing is clipped, or a triangle of height 0.3 at either edge of each lane, weighed by
// what the lane sends (the edge between two lanes belongs to both).
template <Spacing spacing, class T>
SPIKING_FN T sent_slope(T h, T threshold, int levels) {
    if constexpr (spacing == Spacing::linear) {
        return select(h > T(0) && h < (T(levels) + T(1)) * threshold, T(1) / threshold, T(0));
    } else {
        T slope = T(0), edge = threshold, size = T(1);
        for (int k = 0; k < levels; ++k) {
            const T z = h / edge - T(1), tip = T(1) - select(z < T(0), -z, z);
            slope += T(0.3) * select(tip < T(0), T(0), tip) * size / edge;
            edge = edge + edge, size = k == 0 ? T(3) : size + size;
        }
        return slope;
    }
}

// Advances v by one step; returns the spike and, in `h`, the membrane before it.
template <Spacing spacing, class T>
SPIKING_FN T graded_step(T x, T& v, T beta, T threshold, T v_leak, int levels, T& h) {
    h = beta * v + x + (T(1) - beta) * v_leak;
    const T s = sent<spacing>(h, threshold, levels);
    v = h - threshold * s;
    return s;
}

// The adjoint of graded_step; returns dL/dx. v is the membrane that entered the step; `carry` is the gradient of the membrane after the
// step on entry and of the one before it on return. The reset passes gradient to the threshold, not through the spike.
template <Spacing spacing, class T>
SPIKING_FN T graded_adjoint(T h, T grad_s, T v, T& carry, T beta, T threshold, T v_leak, int levels, T& grad_beta, T& grad_threshold) {
    const T through = grad_s * sent_slope<spacing>(h, threshold, levels);
    const T gh = carry + through;
    grad_threshold = -(carry * sent<spacing>(h, threshold, levels) + through * h / threshold);
    grad_beta = (v - v_leak) * gh;
    carry = beta * gh;
    return gh;
}

}  // namespace SPIKING_NS
