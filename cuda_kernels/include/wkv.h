// One time step of RWKV-4's WKV and its adjoint, in the form whose exponents never exceed 0. Oracle: reference.py::wkv.
//
//     P = p·exp(o), Q = q·exp(o)                      sums over the past of exp(k)·v and exp(k), each decayed by exp(w) per step
//     y = (P + exp(u + k)·v) / (Q + exp(u + k))
//     P = exp(w)·P + exp(k)·v;   Q = exp(w)·Q + exp(k)
//
// o is only a scale: gradients hold it constant. Each of the two sums weighs an old and a new term by exp(x) and exp(y) over the larger
// of them, so that one weight is exactly 1; the other is kept with a sign that says which one it is.
//
// A weight is an exponential, the cost of a step. The two sums differ by the bonus alone: times exp(w), the output's weights are those of
// the next state with the old one times exp(-u - w), its `gain`. So one exponential serves both, unless w or u is so large that the
// product would lose digits; such a channel is `apart`, and its output has weights of its own.
#pragma once
#include "surrogate.h"

namespace SPIKING_NS {

template <class T> constexpr T WKV_REST = T(-1e38);              // the exponent of an empty past

SPIKING_FN bool negative(float x) { return (bits<u32>(x) >> 31) != 0u; }
SPIKING_FN bool negative(double x) { return (bits<u64>(x) >> 63) != 0ull; }
SPIKING_FN float minus_magnitude(float x) { return bits<float>(bits<u32>(x) | 0x80000000u); }
SPIKING_FN double minus_magnitude(double x) { return bits<double>(bits<u64>(x) | 0x8000000000000000ull); }

// exp(x) for x <= 0; 0 where a normal float (double) cannot hold it, since a decay rate of -1e34 is multiplied with what is left. Held at
// the exponent whose power of two is 0.
SPIKING_FN float least_exponent(float) { return -88.0f; }
SPIKING_FN double least_exponent(double) { return -709.2; }

template <class E, class T>
SPIKING_FN T falling(T x) {
    const T least = T(least_exponent(E()));
    return exponential_of<E>(select(x < least, least, x));
}

// Weights of exponents x (old) and y (new). Which one is 1 is known before the exponential: a step need not wait for that of the one before.
template <class T> struct Weights { T past, entry, code; };

// The smaller weight is what is kept, as a code: positive where it is the new one's, else negative, -0 included.
template <class T> SPIKING_FN T old_weight(T code) { return select(negative(code), -code, T(1)); }
template <class T> SPIKING_FN T new_weight(T code) { return select(negative(code), T(1), code); }

template <class E, class T>
SPIKING_FN Weights<T> weights_of(T x, T y) {
    const T d = x - y, e = falling<E>(minus_magnitude(d));
    const auto older = d >= T(0);
    return {select(older, T(1), e), select(older, e, T(1)), select(older, e, -e)};
}

// What the old weight of the next state is multiplied with to be that of the output; -1: the channel is apart.
template <class T>
SPIKING_FN T wkv_gain(T w, T u) {
    const bool close = w >= T(-32) && w <= T(32) && u >= T(-32) && u <= T(32);
    return close ? exponential_within(-w) * exponential_within(-u) : T(-1);
}

// What the adjoint of a step needs: the past weighed by `next`, the code of the next state's weights. Where the channel is apart p and q
// are not yet weighed, and `now` is the code of the output's weights.
template <class T> struct WkvKept { T p, q, next, now; };

// The output of a step, which takes the state to the next one. `mixed`: channels may be apart. E: float or double, of which T has one or
// several.
template <bool mixed, class E, class T>
SPIKING_FN T wkv_step(T k, T v, T w, T u, T gain, T& p, T& q, T& o, WkvKept<T>& kept) {
    const T decayed = w + o;
    const Weights<T> next = weights_of<E>(decayed, k);
    const T old_p = next.past * p, old_q = next.past * q, new_p = next.entry * v;
    kept = {old_p, old_q, next.code, next.code};
    T y = (gain * old_p + new_p) / (gain * old_q + next.entry);
    if constexpr (mixed) {
        const auto apart = gain < T(0);
        const Weights<T> now = weights_of<E>(o, u + k);
        y = select(apart, (now.past * p + now.entry * v) / (now.past * q + now.entry), y);
        kept = {select(apart, p, old_p), select(apart, q, old_q), next.code, now.code};
    }
    p = old_p + new_p;
    q = old_q + next.entry;
    o = select(decayed - k >= T(0), decayed, k);
    return y;
}

// The exact adjoint of wkv_step. On entry gp, gq are the gradients of p and q after the step, on return of those before it; grad_w and
// grad_u are added to.
template <bool mixed, class T>
SPIKING_FN void wkv_adjoint(const WkvKept<T>& kept, T v, T gain, T grad_y, T& gp, T& gq, T& grad_k, T& grad_v, T& grad_w, T& grad_u) {
    const T decay = old_weight(kept.next), entry = new_weight(kept.next);
    const T scale = T(1) / (gain * kept.q + entry), y = (gain * kept.p + entry * v) * scale, c = grad_y * scale, past = gain * c;
    T of_bonus = entry * (c * (v - y)), of_value = entry * (c + gp);
    T of_decay = kept.p * gp + kept.q * gq, of_p = decay * (past + gp), of_q = decay * (gq - past * y);
    if constexpr (mixed) {
        const auto apart = gain < T(0);
        const T old = old_weight(kept.now), b = new_weight(kept.now);
        const T own_scale = T(1) / (old * kept.q + b), own_y = (old * kept.p + b * v) * own_scale, own = grad_y * own_scale;
        of_bonus = select(apart, b * (own * (v - own_y)), of_bonus), of_value = select(apart, b * own + entry * gp, of_value);
        of_decay = select(apart, decay * of_decay, of_decay);
        of_p = select(apart, old * own + decay * gp, of_p), of_q = select(apart, decay * gq - old * own * own_y, of_q);
    }
    grad_v = of_value;
    grad_k = of_bonus + entry * (gp * v + gq);
    grad_u += of_bonus;
    grad_w += of_decay;
    gp = of_p, gq = of_q;
}

}  // namespace SPIKING_NS
