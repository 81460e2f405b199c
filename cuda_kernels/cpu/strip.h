// The plain float neuron over a strip of a few time steps, with the membrane (forward) or its gradient (backward) held in a register from
// step to step and every result written once: a third of the loads and stores of a pass over rows.
#pragma once
#include "neuron.h"
#include "wide.h"

namespace SPIKING_NS {

#if SPIKING_WIDE
constexpr int STRIP = 4;       // steps; more would open more rows at once than the translation buffer likes

// Rows of one block: row t lies `stride` floats after row t - 1, of the input `x_stride` (0: the same at every step). `ahead` (floats; 0:
// none) leads to the rows that come next.
struct Strip { i64 n, stride, ahead, x_stride; };

SPIKING_FN Rule<Wide> widened(const Rule<float>& r) {
    return {Wide(r.v_reset), Wide(r.v_leak), Wide(r.beta_adapt), Wide(r.adapt_scale), Wide(r.a), Wide(r.b), Wide(r.on_tie), Wide(r.decay_input),
            Wide(r.attach), Wide(r.reset_delay), Wide(r.residual_reset), Wide(r.normalize), Wide(r.refractory), r.surrogate};
}

SPIKING_FN void put(float* to, Wide v, bool stream) {
    if (stream) stream_wide(to, v); else store_wide(to, v);
}

// What a recording wants to know of a strip; sums of 0 and 1 in floats, or NaN. `hits` collects the spikes of each neuron, [n].
struct StripCounts { float *hits, spikes[STRIP], active[STRIP]; };

SPIKING_FN float across(Wide v) {
    float lanes[SPIKING_WIDE], total = 0.0f;
    store_wide(lanes, v);
    for (float lane : lanes) total += lane;
    return total;
}

template <Reset reset, int steps, bool stream, bool keep, bool counts>
void forward_strip(const float* x, float* s, float* h, float* v, const float* beta, const float* threshold, const Rule<float>& rule, Strip at,
                   StripCounts* to) {
    const Rule<Wide> wide = widened(rule);
    i64 k = 0;
    Wide spikes[steps], active[steps];
    if constexpr (counts)
        for (int t = 0; t < steps; ++t) spikes[t] = active[t] = Wide(0.0f);
    for (; k + SPIKING_WIDE <= at.n; k += SPIKING_WIDE) {
        Wide vk = load_wide(v + k), none = Wide(0.0f), hk;
        const Wide bk = load_wide(beta + k), thk = load_wide(threshold + k);
        Wide hits = none;
        if constexpr (counts) hits = load_wide(to->hits + k);
#pragma GCC unroll 8
        for (int t = 0; t < steps; ++t) {
            const i64 here = t * at.stride + k, there = t * at.x_stride + k;
            if (at.ahead) __builtin_prefetch(x + there + at.ahead, 0, 2);
            const Wide xk = load_wide(x + there);
            const Wide sk = neuron_step<Kind::lif, reset, Flags::plain>(xk, vk, none, none, bk, thk, none, wide, hk);
            put(s + here, sk, stream);
            if (keep) put(h + here, hk, stream);
            if constexpr (counts) {
                hits += sk, spikes[t] += sk;
                active[t] += select(xk == Wide(0.0f), Wide(0.0f), Wide(1.0f));
            }
        }
        store_wide(v + k, vk);
        if constexpr (counts) store_wide(to->hits + k, hits);
    }
    if constexpr (counts)
        for (int t = 0; t < steps; ++t) to->spikes[t] = across(spikes[t]), to->active[t] = across(active[t]);
    for (; k < at.n; ++k) {
        float none = 0.0f, hk;
        for (int t = 0; t < steps; ++t) {
            const i64 here = t * at.stride + k;
            s[here] = neuron_step<Kind::lif, reset, Flags::plain>(x[t * at.x_stride + k], v[k], none, none, beta[k], threshold[k], none, rule, hk);
            if (keep) h[here] = hk;
            if constexpr (counts) {
                to->hits[k] += s[here], to->spikes[t] += s[here];
                to->active[t] += x[t * at.x_stride + k] == 0.0f ? 0.0f : 1.0f;
            }
        }
    }
}

// From the last row of the strip to the first; `h`, `gs` and `gx` point to the first. grad_stride 0: one row of gradients serves every step.
template <Reset reset, Surrogate kind, int steps, bool stream>
void backward_strip(const float* h, const float* gs, i64 grad_stride, float* gx, float* carry, const float* beta, const float* threshold,
                    const Rule<float>& rule, Strip at) {
    const Rule<Wide> wide = widened(rule);
    i64 k = 0;
    const auto step = [&](auto zero, const auto& r, auto hk, auto gk, auto& ck, auto bk, auto thk) {
        const auto u = hk - thk;
        auto none_e = zero, none_s = zero, grad_beta = zero, grad_threshold = zero, grad_beta_syn = zero;
        return neuron_adjoint<Kind::lif, reset, Flags::plain>(zero, hk, u, surrogate_grad<kind>(u, r.a, r.b), gk, zero, zero, zero, ck, none_e, none_s,
                                                              bk, thk, zero, r, grad_beta, grad_threshold, grad_beta_syn);
    };
    for (; k + SPIKING_WIDE <= at.n; k += SPIKING_WIDE) {
        Wide ck = load_wide(carry + k);
        const Wide bk = load_wide(beta + k), thk = load_wide(threshold + k);
#pragma GCC unroll 8
        for (int t = steps - 1; t >= 0; --t) {
            const i64 here = t * at.stride + k;
            if (at.ahead) {
                __builtin_prefetch(h + here + at.ahead, 0, 2);
                if (grad_stride) __builtin_prefetch(gs + here + at.ahead, 0, 2);
            }
            put(gx + here, step(Wide(0.0f), wide, load_wide(h + here), load_wide(gs + t * grad_stride + k), ck, bk, thk), stream);
        }
        store_wide(carry + k, ck);
    }
    for (; k < at.n; ++k)
        for (int t = steps - 1; t >= 0; --t) {
            const i64 here = t * at.stride + k;
            gx[here] = step(0.0f, rule, h[here], gs[t * grad_stride + k], carry[k], beta[k], threshold[k]);
        }
}
#endif

}  // namespace SPIKING_NS
