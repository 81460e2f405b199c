// One time step of RWKV-4's WKV and its adjoint, in the form whose exponents never exceed 0. Oracle: reference.py::wkv.
//
//     P = p·exp(o), Q = q·exp(o)                      sums over the past of exp(k)·v and exp(k), each decayed by exp(w) per step
//     y = (P + exp(u + k)·v) / (Q + exp(u + k))
//     P = exp(w)·P + exp(k)·v;   Q = exp(w)·Q + exp(k)
//
// o is only a scale: gradients hold it constant. Each of the two sums weighs an old and a new term by exp(x) and exp(y) over the larger
// of them, so that one weight is exactly 1; the other is kept with a sign that says which one it is.
#pragma once
#include "surrogate.h"

namespace SPIKING_NS {

template <class T> constexpr T WKV_REST = T(-1e38);              // the exponent of an empty past

SPIKING_FN bool negative(float x) { return (bits<u32>(x) >> 31) != 0u; }
SPIKING_FN bool negative(double x) { return (bits<u64>(x) >> 63) != 0ull; }

// exp(x) for x <= 0; 0 where a normal float (double) cannot hold it, since a decay rate of -1e34 is multiplied with what is left.
SPIKING_FN float falling(float x) { return select(x < -87.0f, 0.0f, exponential_within(x)); }
SPIKING_FN double falling(double x) { return select(x < -700.0, 0.0, exponential_within(x)); }

// The smaller of the weights of exponents x (old) and y (new): positive where it is the new one's, else negative, -0 included.
template <class T>
SPIKING_FN T lesser_weight(T x, T y) {
    const T d = x - y, e = falling(-magnitude(d));
    return select(d >= T(0), e, -e);
}

template <class T> SPIKING_FN T old_weight(T code) { return select(negative(code), -code, T(1)); }
template <class T> SPIKING_FN T new_weight(T code) { return select(negative(code), T(1), code); }

// Takes the state to the next step; returns the code of its weights.
template <class T>
SPIKING_FN T wkv_advance(T k, T v, T w, T& p, T& q, T& o) {
    const T decayed = w + o, code = lesser_weight(decayed, k);
    const T a = old_weight(code), b = new_weight(code);
    p = a * p + b * v;
    q = a * q + b;
    o = select(negative(code), k, decayed);
    return code;
}

// The output of a step, from the state that entered it.
template <class T>
SPIKING_FN T wkv_output(T k, T v, T u, T p, T q, T o) {
    const T code = lesser_weight(o, u + k);
    const T a = old_weight(code), b = new_weight(code);
    return (a * p + b * v) / (a * q + b);
}

// The exact adjoint of wkv_output (weights `now`) and wkv_advance (weights `next`) of one step; p, q are the state that entered it. On
// entry gp, gq are the gradients of p and q after the step, on return of those before it; grad_w and grad_u are added to.
template <class T>
SPIKING_FN void wkv_adjoint(T v, T p, T q, T now, T next, T grad_y, T& gp, T& gq, T& grad_k, T& grad_v, T& grad_w, T& grad_u) {
    const T a = old_weight(now), b = new_weight(now);
    const T scale = T(1) / (a * q + b), y = (a * p + b * v) * scale, c = grad_y * scale;
    const T of_bonus = b * c * (v - y);
    const T decay = old_weight(next), entry = new_weight(next);
    grad_v = b * c + entry * gp;
    grad_k = of_bonus + entry * (gp * v + gq);
    grad_u += of_bonus;
    grad_w += decay * (p * gp + q * gq);
    gp = a * c + decay * gp;
    gq = decay * gq - a * c * y;
}

}  // namespace SPIKING_NS
