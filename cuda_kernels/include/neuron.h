// One time step of the integrate-and-fire family, forward and adjoint. Oracle: reference.py.
//
//     e = beta_syn·e + x                              (Kind::cuba: e is the synaptic current; otherwise the drive is gain·x)
//     h = beta·v + drive + (1 - beta)·v_leak          membrane before the spike
//     s = step(h - theta)                             theta = threshold (+ adapt_scale·e for Kind::adaptive)
//     v = h - theta·s | s ? v_reset : h | h           reset subtract | zero | none
//     e = beta_adapt·e + (1 - beta_adapt)·s           (Kind::adaptive: e is the adaptation)
//
// Scalars only, selects instead of branches: structs in a loop body keep compilers from vectorising it.
#pragma once
#include "surrogate.h"

namespace SPIKING_NS {

enum class Kind : int { lif = 0, cuba = 1, adaptive = 2 };
enum class Reset : int { subtract = 0, zero = 1, none = 2 };

// How many of the flags a neuron may use, so that a default neuron pays for none.
enum class Flags : int {
    plain = 0,                 // none: tie "ge", reset to 0
    common = 1,                // tie, decay_input, v_reset, v_leak, refractory
    all = 2                    // these and reset_delay, residual_reset, normalize
};

// What a call's flags add up to; cuba and adaptive neurons take `common` whatever it says.
template <class Call>
SPIKING_FN Flags flags_of(const Call& p) {
    if (p.reset_delay || p.residual_reset || p.normalize) return Flags::all;
    const bool some = p.tie_gt || p.decay_input || p.refractory > 0 || p.v_leak != 0.0 || (p.reset == int(Reset::zero) && p.v_reset != 0.0);
    return some ? Flags::common : Flags::plain;
}

template <class T>
struct Rule {                  // the same for all neurons of a launch; flags are 0 or 1 in T
    T v_reset, v_leak, beta_adapt, adapt_scale;
    T a, b;                    // parameters of the surrogate
    T on_tie;                  // the spike where u is exactly 0
    T decay_input, attach;     // attach = 0: the reset is detached
    T reset_delay, residual_reset, normalize;
    T refractory;
    int surrogate;
};

template <Flags flags, class T>
SPIKING_FN T distance(T h, T theta, const Rule<T>& rule) {
    if constexpr (flags == Flags::all) return select(rule.normalize > T(0), h / theta - T(1), h - theta);
    return h - theta;
}

template <Flags flags, class T>
SPIKING_FN T fires(T u, const Rule<T>& rule) {
    if constexpr (flags == Flags::plain) return select(u >= T(0), T(1), T(0));
    return select(u > T(0), T(1), select(u == T(0), rule.on_tie, T(0)));
}

// Whether a reset of the step before is still to come (reset_delay) or was not enough (residual_reset).
template <Flags flags, class T>
SPIKING_FN T reset_due(T v, T theta, const Rule<T>& rule) {
    if constexpr (flags != Flags::all) return T(0);
    return (rule.reset_delay + rule.residual_reset) * fires<flags>(distance<flags>(v, theta, rule), rule);
}

template <Kind kind, class T>
SPIKING_FN T theta_of(T e, T threshold, const Rule<T>& rule) {
    if constexpr (kind == Kind::adaptive) return threshold + rule.adapt_scale * e;
    return threshold;
}

// Advances the state (v, e, and c: refractory steps left) by one step; returns the spike (NaN where the membrane is NaN) and, in `h`,
// the membrane before the spike.
template <Kind kind, Reset reset, Flags flags, class T>
SPIKING_FN T neuron_step(T x, T& v, T& e, T& c, T beta, T threshold, T beta_syn, const Rule<T>& rule, T& h) {
    if constexpr (flags == Flags::plain) {
        h = beta * v + x;
        const T s = select(h >= threshold, T(1), T(0));
        if constexpr (reset == Reset::subtract) v = h - threshold * s;
        if constexpr (reset == Reset::zero) v = select(h >= threshold, T(0), h);
        if constexpr (reset == Reset::none) v = h;
        return select(h == h, s, h);
    } else {
        const T theta = theta_of<kind>(e, threshold, rule);
        const T due = reset_due<flags>(v, theta, rule);
        T drive = (T(1) - rule.decay_input * beta) * x;
        if constexpr (kind == Kind::cuba) drive = e = beta_syn * e + x;
        T held = v;
        if constexpr (flags == Flags::all && reset == Reset::zero) held = due * rule.reset_delay > T(0) ? rule.v_reset : v;
        T charged = beta * held + drive + (T(1) - beta) * rule.v_leak;
        if constexpr (flags == Flags::all && reset == Reset::subtract) charged = charged - theta * due;
        const T fired = fires<flags>(distance<flags>(charged, theta, rule), rule);
        T after = charged;
        if constexpr (reset == Reset::subtract) after = charged - theta * (fired - due * rule.residual_reset);
        if constexpr (reset == Reset::zero) after = fired > T(0) ? rule.v_reset : charged;
        if constexpr (flags == Flags::all) after = rule.reset_delay > T(0) ? charged : after;

        const T left = c, before = v;                          // refractory: the membrane is held and the input ignored
        h = left > T(0) ? before : charged;
        v = left > T(0) ? before : after;
        T s = left > T(0) ? T(0) : fired;
        c = left > T(0) ? left - T(1) : s * rule.refractory;
        s = h == h ? s : h;
        if constexpr (kind == Kind::adaptive) e = rule.beta_adapt * e + (T(1) - rule.beta_adapt) * s;
        return s;
    }
}

// The exact adjoint of neuron_step; returns dL/dx. v, e, c are the state that entered the step, `u` the distance from the threshold and
// `slope` the surrogate at u; grad_s is dL/ds. On entry carry_v and carry_e are the gradients with respect to the state after the step,
// on return with respect to the state before it; carry_s is what a delayed reset owes to the spike of the step before.
template <Kind kind, Reset reset, Flags flags, class T>
SPIKING_FN T neuron_adjoint(T x, T h, T u, T slope, T grad_s, T v, T e, T c, T& carry_v, T& carry_e, T& carry_s, T beta, T threshold,
                            T beta_syn, const Rule<T>& rule, T& grad_beta, T& grad_threshold, T& grad_beta_syn) {
    const T theta = theta_of<kind>(e, threshold, rule);
    const T s = fires<flags>(u, rule);
    const T due = reset_due<flags>(v, theta, rule);
    const T incoming = carry_v;
    T total = grad_s;
    if constexpr (flags == Flags::all) total += carry_s;
    if constexpr (kind == Kind::adaptive) total += (T(1) - rule.beta_adapt) * carry_e;
    T gh = incoming, gtheta = T(0);
    T now = T(1);
    if constexpr (flags == Flags::all) now = T(1) - rule.reset_delay;        // a delayed reset does not act in this step
    if constexpr (reset == Reset::subtract) {
        gtheta -= now * (s - due * rule.residual_reset) * incoming;
        total -= now * rule.attach * theta * incoming;
    }
    if constexpr (reset == Reset::zero) {
        gh = select(now * s > T(0), T(0), incoming);
        total += now * rule.attach * (rule.v_reset - h) * incoming;
    }
    const T through = total * slope;
    if constexpr (flags == Flags::all) {
        gh += rule.normalize > T(0) ? through / theta : through;
        gtheta -= rule.normalize > T(0) ? through * h / (theta * theta) : through;
    } else {
        gh += through;
        gtheta -= through;
    }

    T gv = beta * gh, held = v;
    if constexpr (flags == Flags::all) {
        T owed = T(0);
        if constexpr (reset == Reset::subtract) {
            gtheta -= due * gh;
            owed = -theta * gh;
        }
        if constexpr (reset == Reset::zero) {
            owed = (rule.v_reset - v) * gv;
            held = due * rule.reset_delay > T(0) ? rule.v_reset : v;
            gv = due * rule.reset_delay > T(0) ? T(0) : gv;
        }
        carry_s = rule.reset_delay * rule.attach > T(0) ? owed : T(0);
    }
    if constexpr (flags == Flags::plain) {
        grad_beta = held * gh;
        grad_threshold = gtheta;
        carry_v = gv;
        return gh;
    } else {
        const bool resting = c > T(0);
        T gx = resting ? T(0) : (T(1) - rule.decay_input * beta) * gh;
        if constexpr (kind == Kind::cuba) {                    // the current flows on while the membrane rests
            gx = resting ? carry_e : carry_e + gh;
            grad_beta_syn = e * gx;
            carry_e = beta_syn * gx;
        }
        if constexpr (kind == Kind::adaptive) carry_e = rule.beta_adapt * carry_e + (resting ? T(0) : rule.adapt_scale * gtheta);
        grad_beta = resting ? T(0) : (held - rule.decay_input * x - rule.v_leak) * gh;
        grad_threshold = resting ? T(0) : gtheta;
        carry_v = resting ? incoming : gv;
        return gx;
    }
}

// What a delayed reset owes to the spike that the initial membrane v0 stands for; adds to carry_v and grad_threshold.
template <class T>
SPIKING_FN void initial_adjoint(T v0, T slope, T carry_s, T threshold, const Rule<T>& rule, T& carry_v, T& grad_threshold) {
    const T through = carry_s * slope;
    carry_v += rule.normalize > T(0) ? through / threshold : through;
    grad_threshold -= rule.normalize > T(0) ? through * v0 / (threshold * threshold) : through;
}

}  // namespace SPIKING_NS
