// One time step of the integrate-and-fire family, forward and adjoint. Equations: DESIGN "Membrane"; oracle: reference.py.
//
//     i = beta_syn·i + x                              (Kind::cuba only; otherwise the drive is gain·x)
//     h = beta·v + drive + (1 - beta)·v_leak          membrane before the spike
//     s = step(h - theta)                             theta = threshold (+ adapt_scale·b for Kind::adaptive)
//     v = h - theta·s | s ? v_reset : h | h           reset subtract | zero | none
//
// `general = false` is the plain neuron (no flag set, tie "ge"), which pays for none of the others.
#pragma once
#include "surrogate.h"

namespace SPIKING_NS {

enum class Kind : int { lif = 0, cuba = 1, adaptive = 2 };
enum class Reset : int { subtract = 0, zero = 1, none = 2 };

template <class T>
struct Rule {                  // the same for all neurons of a launch
    T v_reset, v_leak, beta_adapt, adapt_scale;
    T a, b;                    // parameters of the surrogate
    int surrogate, refractory;
    bool tie_gt, decay_input, detach_reset, reset_delay, residual_reset, normalize;
};

template <class T> struct Cell { T beta, threshold, beta_syn; };     // one neuron's parameters
template <class T> struct State { T v, i, b, c; };                   // membrane, current, adaptation, refractory steps left
template <class T> struct Carry { T v, i, b, s; };                   // gradients that flow to the step before
template <class T> struct CellGrad { T beta, threshold, beta_syn; };

template <class T>
SPIKING_FN T distance(T h, T theta, const Rule<T>& rule) {
    return rule.normalize ? h / theta - T(1) : h - theta;
}

template <class T>
SPIKING_FN bool fires(T u, const Rule<T>& rule) {
    return rule.tie_gt ? u > T(0) : u >= T(0);
}

template <Kind kind, class T>
SPIKING_FN T theta_of(const State<T>& before, const Cell<T>& cell, const Rule<T>& rule) {
    if constexpr (kind == Kind::adaptive) return cell.threshold + rule.adapt_scale * before.b;
    return cell.threshold;
}

// Advances `state` by one step; returns the spike (NaN where the membrane is NaN) and, in `h`, the membrane before the spike.
template <Kind kind, Reset reset, bool general, class T>
SPIKING_FN T neuron_step(T x, State<T>& state, const Cell<T>& cell, const Rule<T>& rule, T& h) {
    if constexpr (!general) {
        static_assert(kind == Kind::lif, "the plain neuron is a LIF");
        h = cell.beta * state.v + x;
        const T s = h >= cell.threshold ? T(1) : T(0);
        if constexpr (reset == Reset::subtract) state.v = h - cell.threshold * s;
        if constexpr (reset == Reset::zero) state.v = h >= cell.threshold ? T(0) : h;
        if constexpr (reset == Reset::none) state.v = h;
        return h == h ? s : h;
    } else {
        const T theta = theta_of<kind>(state, cell, rule);
        const bool due = (rule.reset_delay || rule.residual_reset) && fires(distance(state.v, theta, rule), rule);
        T drive = rule.decay_input ? (T(1) - cell.beta) * x : x;
        if constexpr (kind == Kind::cuba) {
            state.i = cell.beta_syn * state.i + x;
            drive = state.i;
        }
        T v = state.v;
        if constexpr (reset == Reset::zero) v = due && rule.reset_delay ? rule.v_reset : v;
        T charged = cell.beta * v + drive + (T(1) - cell.beta) * rule.v_leak;
        if constexpr (reset == Reset::subtract) charged = charged - theta * (due ? T(1) : T(0));
        const bool fired = fires(distance(charged, theta, rule), rule);
        T after = charged;
        if constexpr (reset == Reset::subtract)
            after = charged - theta * ((fired ? T(1) : T(0)) - (due && rule.residual_reset ? T(1) : T(0)));
        if constexpr (reset == Reset::zero) after = fired ? rule.v_reset : charged;
        after = rule.reset_delay ? charged : after;

        const bool resting = state.c > T(0);                   // refractory: the membrane is held and the input ignored
        h = resting ? state.v : charged;
        T s = fired && !resting ? T(1) : T(0);
        state.c = resting ? state.c - T(1) : s * T(rule.refractory);
        state.v = resting ? state.v : after;
        s = h == h ? s : h;
        if constexpr (kind == Kind::adaptive) state.b = rule.beta_adapt * state.b + (T(1) - rule.beta_adapt) * s;
        return s;
    }
}

// The exact adjoint of neuron_step. `before` is the state that entered the step, `u` its distance from the threshold and `slope` the
// surrogate at u; `grad_s` is dL/ds. On return `carry` holds the gradients with respect to `before`, and `grad` has grown.
// (carry.s: what a delayed reset owes to the spike of the step before.)
template <Kind kind, Reset reset, bool general, class T>
SPIKING_FN T neuron_adjoint(T x, T h, T u, T slope, T grad_s, const State<T>& before, Carry<T>& carry, const Cell<T>& cell,
                            const Rule<T>& rule, CellGrad<T>& grad) {
    if constexpr (!general) {
        const T s = u >= T(0) ? T(1) : T(0);
        T total = grad_s;
        T gh = carry.v;
        if constexpr (reset == Reset::subtract) {
            grad.threshold -= s * carry.v;
            if (!rule.detach_reset) total -= cell.threshold * carry.v;
        }
        if constexpr (reset == Reset::zero) {
            gh = u >= T(0) ? T(0) : carry.v;
            if (!rule.detach_reset) total -= h * carry.v;
        }
        gh += total * slope;
        grad.threshold -= total * slope;
        grad.beta += before.v * gh;
        carry.v = cell.beta * gh;
        return gh;
    } else {
        const T theta = theta_of<kind>(before, cell, rule);
        const bool fired = fires(u, rule);
        const bool due = (rule.reset_delay || rule.residual_reset) && fires(distance(before.v, theta, rule), rule);
        const bool resting = before.c > T(0);
        const T s = fired ? T(1) : T(0), r = due ? T(1) : T(0);
        T total = grad_s + carry.s;
        if constexpr (kind == Kind::adaptive) total += (T(1) - rule.beta_adapt) * carry.b;
        T gh = carry.v, gtheta = T(0);
        if (!rule.reset_delay) {
            if constexpr (reset == Reset::subtract) {
                gtheta -= (rule.residual_reset ? s - r : s) * carry.v;
                if (!rule.detach_reset) total -= theta * carry.v;
            }
            if constexpr (reset == Reset::zero) {
                gh = fired ? T(0) : carry.v;
                if (!rule.detach_reset) total += (rule.v_reset - h) * carry.v;
            }
        }
        gh += rule.normalize ? total * slope / theta : total * slope;
        gtheta -= rule.normalize ? total * slope * h / (theta * theta) : total * slope;

        T gv = cell.beta * gh, owed = T(0), v = before.v;
        if (rule.reset_delay || rule.residual_reset) {
            if constexpr (reset == Reset::subtract) {
                gtheta -= r * gh;
                owed = -theta * gh;
            }
            if constexpr (reset == Reset::zero) {
                owed = (rule.v_reset - before.v) * gv;
                v = due ? rule.v_reset : v;
                gv = due ? T(0) : gv;
            }
        }
        T gx = rule.decay_input ? (T(1) - cell.beta) * gh : gh;
        if constexpr (kind == Kind::cuba) {
            gx = carry.i + gh;
            grad.beta_syn += before.i * gx;
            carry.i = cell.beta_syn * gx;
        }
        if constexpr (kind == Kind::adaptive)
            carry.b = rule.beta_adapt * carry.b + (resting ? T(0) : rule.adapt_scale * gtheta);
        grad.beta += resting ? T(0) : (v - (rule.decay_input ? x : T(0)) - rule.v_leak) * gh;
        grad.threshold += resting ? T(0) : gtheta;
        carry.s = rule.reset_delay && !rule.detach_reset ? owed : T(0);
        carry.v = resting ? carry.v : gv;
        return resting ? T(0) : gx;
    }
}

// What a delayed reset owes to the spike that the initial membrane stands for.
template <class T>
SPIKING_FN void initial_adjoint(T v0, T slope, Carry<T>& carry, const Cell<T>& cell, const Rule<T>& rule, CellGrad<T>& grad) {
    const T through = carry.s * slope;
    carry.v += rule.normalize ? through / cell.threshold : through;
    grad.threshold -= rule.normalize ? through * v0 / (cell.threshold * cell.threshold) : through;
}

}  // namespace SPIKING_NS
