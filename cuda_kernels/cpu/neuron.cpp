// CPU loops over include/neuron.h: threads over blocks of neurons, time inside a block, SIMD over the neurons of a row.
// Compiled once per instruction set (SPIKING_LEVEL); no standard-library templates here, see portable.h.
#define SPIKING_GLUE_(a, b) a##b
#define SPIKING_GLUE(a, b) SPIKING_GLUE_(a, b)
#define SPIKING_NS SPIKING_GLUE(spiking_, SPIKING_LEVEL)

#include "blocks.h"
#include "drive.h"
#include "neuron_api.h"
#include "rows.h"
#include "saved.h"
#include "strip.h"
#include "tally.h"

namespace SPIKING_NS {
namespace {

// The state rows of a block stay in L1 while time runs; longer rows help the hardware prefetcher.
constexpr i64 BLOCK = 1024;
constexpr i64 RECOMPUTE_BLOCK = 256;
constexpr i64 STREAM_BYTES = i64(6) << 20;
constexpr i64 PIECE = 256;     // neurons between two looks ahead at the next row

// Numbers from the input of one step to that of the next.
SPIKING_FN i64 x_step(const NeuronCall& p) { return p.x_is_constant ? 0 : p.N; }

template <class IO, class T>
SPIKING_FN const T* input_row(const NeuronCall& p, i64 t, i64 first, i64 n, T* buffer) {
    if (!p.drive) return load_row(static_cast<const IO*>(p.x) + t * x_step(p) + first, buffer, n);
    driven_row<IO>(p, t, first, n, buffer);
    return buffer;
}

template <class T> struct Cells { const T *beta, *threshold, *beta_syn; };
template <class T> struct States { T *v, *e, *c; };         // e: synaptic current or adaptation

// State rows in memory: v, then e where the kind has it, then the refractory counter where there is one.
template <Kind kind> constexpr int extra_states() { return kind == Kind::lif ? 0 : 1; }

template <class T>
Rule<T> rule_of(const NeuronCall& p) {
    return {T(p.v_reset), T(p.v_leak), T(p.beta_adapt), T(p.adapt_scale), T(p.a), T(p.b), T(p.tie_gt ? 0 : 1), T(p.decay_input),
            T(p.detach_reset ? 0 : 1), T(p.reset_delay), T(p.residual_reset), T(p.normalize), T(p.refractory), p.surrogate};
}

// Whether the distance in units of the threshold is all that a rule with every flag asks for: neurons of the ladder to one time step.
template <class T>
SPIKING_FN bool only_normalized(const Rule<T>& rule) {
    return rule.normalize > T(0) && rule.decay_input + rule.reset_delay + rule.residual_reset + rule.refractory == T(0);
}

// neuron_step and neuron_adjoint for these, with a soft reset and all that would be multiplied by 0 left out: the same bits.
template <class T>
SPIKING_ROW void normalized_step_row(const T* __restrict x, T* __restrict v, Cells<T> cells, const Rule<T> rule, T* __restrict s,
                                     T* __restrict h, i64 n, const void* next, i64 width) {
    const T* __restrict beta = cells.beta;
    const T* __restrict threshold = cells.threshold;
    for (i64 piece = 0; piece < n; piece += PIECE) {
        const i64 stop = piece + PIECE < n ? piece + PIECE : n;
        if (next) prefetch_row(static_cast<const char*>(next) + piece * width, (stop - piece) * width);
        for (i64 k = piece; k < stop; ++k) {
            const T charged = beta[k] * v[k] + x[k] + (T(1) - beta[k]) * rule.v_leak;
            const T fired = fires<Flags::all>(charged / threshold[k] - T(1), rule);
            h[k] = charged;
            v[k] = charged - threshold[k] * fired;
            s[k] = select(charged == charged, fired, charged);
        }
    }
}

template <class T>
SPIKING_ROW void normalized_adjoint_row(const T* __restrict h, const T* __restrict u, const T* __restrict gs, const T* __restrict v,
                                        T* __restrict cv, Cells<T> cells, const Rule<T> rule, T* __restrict gx, double* __restrict gb,
                                        double* __restrict gt, i64 n) {
    const T* __restrict beta = cells.beta;
    const T* __restrict threshold = cells.threshold;
    with_surrogate(rule.surrogate, [&](auto tag) {
        const T a = rule.a, b = rule.b;
        for (i64 k = 0; k < n; ++k) {
            const T theta = threshold[k], incoming = cv[k];
            const T through = (gs[k] - rule.attach * theta * incoming) * surrogate_grad<decltype(tag)::value>(u[k], a, b);
            const T gh = incoming + through / theta;
            gb[k] += double((v[k] - rule.v_leak) * gh);
            gt[k] += double(T(0) - fires<Flags::all>(u[k], rule) * incoming - through * h[k] / (theta * theta));
            cv[k] = beta[k] * gh;
            gx[k] = gh;
        }
    });
}

template <Kind kind, Reset reset, Flags flags, class T>
SPIKING_ROW void step_row(const T* __restrict x, States<T> st, Cells<T> cells, const Rule<T> rule, T* __restrict s, T* __restrict h, i64 n,
                          const void* next, i64 width) {
    if constexpr (kind == Kind::lif && reset == Reset::subtract && flags == Flags::all)
        if (only_normalized(rule)) return normalized_step_row(x, st.v, cells, rule, s, h, n, next, width);
    T* __restrict v = st.v;
    T* __restrict e = st.e;
    T* __restrict c = st.c;
    const T* __restrict beta = cells.beta;
    const T* __restrict threshold = cells.threshold;
    const T* __restrict beta_syn = cells.beta_syn;
    for (i64 piece = 0; piece < n; piece += PIECE) {
        const i64 stop = piece + PIECE < n ? piece + PIECE : n;
        if (next) prefetch_row(static_cast<const char*>(next) + piece * width, (stop - piece) * width);
        for (i64 k = piece; k < stop; ++k) {
            T vk = v[k], ek = T(0), ck = T(0), hk, y = T(0);
            if constexpr (kind != Kind::lif) ek = e[k];
            if constexpr (kind == Kind::cuba) y = beta_syn[k];
            if constexpr (flags != Flags::plain) ck = c[k];
            s[k] = neuron_step<kind, reset, flags>(x[k], vk, ek, ck, beta[k], threshold[k], y, rule, hk);
            h[k] = hk;
            v[k] = vk;
            if constexpr (kind != Kind::lif) e[k] = ek;
            if constexpr (flags != Flags::plain) c[k] = ck;
        }
    }
}

template <class T>
SPIKING_ROW void encode_row(const T* __restrict h, const T* __restrict threshold, const Rule<T> rule, u16* __restrict out, i64 n) {
    for (i64 k = 0; k < n; ++k) out[k] = encode_half<Flags::all>(h[k], threshold[k], rule);
}

template <class T>
SPIKING_ROW void decode_row(const u16* __restrict from, const T* __restrict threshold, const Rule<T> rule, T* __restrict u, T* __restrict h, i64 n) {
    for (i64 k = 0; k < n; ++k) h[k] = decode_half<Flags::all>(from[k], threshold[k], rule, u[k]);
}

template <class T>
SPIKING_ROW void distance_row(const T* __restrict h, const T* __restrict theta, const Rule<T> rule, T* __restrict u, i64 n) {
    if (rule.normalize > T(0))
        for (i64 k = 0; k < n; ++k) u[k] = h[k] / theta[k] - T(1);
    else
        for (i64 k = 0; k < n; ++k) u[k] = h[k] - theta[k];
}

// The membrane that entered the next step, from the membrane before the spike.
template <Reset reset, class T>
SPIKING_ROW void after_reset_row(const T* __restrict h, const T* __restrict u, const T* __restrict theta, const Rule<T> rule, T* __restrict v,
                                 i64 n) {
    for (i64 k = 0; k < n; ++k)
        v[k] = after_spike<reset>(h[k], fires<Flags::all>(u[k], rule), theta[k], rule.v_reset);
}

template <class T>
SPIKING_ROW void slope_row(const T* __restrict u, const Rule<T> rule, T* __restrict slope, i64 n) {
    with_surrogate(rule.surrogate, [&](auto tag) {
        const T a = rule.a, b = rule.b;
        for (i64 k = 0; k < n; ++k) slope[k] = surrogate_grad<decltype(tag)::value>(u[k], a, b);
    });
}

template <class T> struct CarryRows { T *v, *e, *s; };
struct GradRows { double *beta, *threshold, *beta_syn; };

template <Kind kind, Reset reset, Flags flags, bool params, class T>
SPIKING_ROW void adjoint_row(const T* __restrict x, const T* __restrict h, const T* __restrict u, const T* __restrict slope, const T* __restrict gs,
                 const T* __restrict before_v, const T* __restrict before_e, const T* __restrict before_c, CarryRows<T> carry,
                 Cells<T> cells, const Rule<T> rule, GradRows grads, T* __restrict gx, i64 n) {
    T* __restrict cv = carry.v;
    T* __restrict ce = carry.e;
    T* __restrict cs = carry.s;
    const T* __restrict beta = cells.beta;
    const T* __restrict threshold = cells.threshold;
    const T* __restrict beta_syn = cells.beta_syn;
    double* __restrict gb = grads.beta;
    double* __restrict gt = grads.threshold;
    double* __restrict gy = grads.beta_syn;
    for (i64 k = 0; k < n; ++k) {
        T flow_v = cv[k], flow_e = T(0), flow_s = T(0), v = T(0), e = T(0), c = T(0), xk = T(0), y = T(0), hk = T(0);
        T grad_beta = T(0), grad_threshold = T(0), grad_beta_syn = T(0);
        if constexpr (params || flags == Flags::all) v = before_v[k];
        if constexpr (kind != Kind::lif) e = before_e[k], flow_e = ce[k];
        if constexpr (kind == Kind::cuba) y = beta_syn[k];
        if constexpr (flags != Flags::plain) c = before_c[k];
        if constexpr (flags != Flags::plain && params) xk = x[k];
        if constexpr (flags == Flags::all) flow_s = cs[k];
        if constexpr (flags == Flags::all || reset == Reset::zero) hk = h[k];
        gx[k] = neuron_adjoint<kind, reset, flags>(xk, hk, u[k], slope[k], gs[k], v, e, c, flow_v, flow_e, flow_s, beta[k], threshold[k], y,
                                                   rule, grad_beta, grad_threshold, grad_beta_syn);
        cv[k] = flow_v;
        if constexpr (kind != Kind::lif) ce[k] = flow_e;
        if constexpr (flags == Flags::all) cs[k] = flow_s;
        if constexpr (params) {
            gb[k] += double(grad_beta);
            gt[k] += double(grad_threshold);
            if constexpr (kind == Kind::cuba) gy[k] += double(grad_beta_syn);
        }
    }
}

// adjoint_row of the plain neuron without parameter gradients, surrogate included: what a training step of most networks runs.
template <Reset reset, class T>
SPIKING_ROW void plain_adjoint_row(const T* __restrict h, const T* __restrict gs, T* __restrict cv, Cells<T> cells, const Rule<T> rule,
                                   T* __restrict gx, i64 n, const void* next_h, const void* next_gs, i64 width) {
    const T* __restrict beta = cells.beta;
    const T* __restrict threshold = cells.threshold;
    with_surrogate(rule.surrogate, [&](auto tag) {
        const T a = rule.a, b = rule.b;
        for (i64 piece = 0; piece < n; piece += PIECE) {
            const i64 stop = piece + PIECE < n ? piece + PIECE : n;
            if (next_h) prefetch_row(static_cast<const char*>(next_h) + piece * i64(sizeof(T)), (stop - piece) * i64(sizeof(T)));
            if (next_gs) prefetch_row(static_cast<const char*>(next_gs) + piece * width, (stop - piece) * width);
            for (i64 k = piece; k < stop; ++k) {
                const T u = h[k] - threshold[k], slope = surrogate_grad<decltype(tag)::value>(u, a, b);
                T flow = cv[k], none_e = T(0), none_s = T(0), grad_beta, grad_threshold, grad_beta_syn;
                gx[k] = neuron_adjoint<Kind::lif, reset, Flags::plain>(T(0), h[k], u, slope, gs[k], T(0), T(0), T(0), flow, none_e, none_s, beta[k],
                                                                       threshold[k], T(0), rule, grad_beta, grad_threshold, grad_beta_syn);
                cv[k] = flow;
            }
        }
    });
}

template <class T>
SPIKING_ROW void fill(T* to, i64 n, T value) {
    for (i64 k = 0; k < n; ++k) to[k] = value;
}

template <class T>
SPIKING_ROW void copy(const T* from, T* to, i64 n) {
    for (i64 k = 0; k < n; ++k) to[k] = from[k];
}

// Null: at rest, where the membrane is v_leak and nothing else is charged.
template <class T>
SPIKING_ROW void load_state(const T* from, i64 stride, int extra, int counter, const Rule<T>& rule, T* v, T* e, T* c, i64 n) {
    if (from) copy(from, v, n); else fill(v, n, rule.v_leak);
    if (from && extra) copy(from + stride, e, n); else fill(e, n, T(0));
    if (from && counter) copy(from + counter * stride, c, n); else fill(c, n, T(0));
}

// Outputs that do not fit the caches anyway are streamed past them.
template <class IO>
bool streams(const NeuronCall& p) {
    return p.T * p.N * i64(sizeof(IO)) >= STREAM_BYTES;
}

// What the strips cover: float in and out, states kept as values or not at all, no flag in use.
template <Kind kind, Flags flags, class IO>
bool in_strips(const NeuronCall& p) {
    (void)p;
    if constexpr (SPIKING_WIDE && kind == Kind::lif && flags == Flags::plain && sizeof(IO) == 4) return p.save <= 1 && !p.drive;
    return false;
}

bool aligned(const NeuronCall& p, const void* row) { return (reinterpret_cast<u64>(row) | u64(p.N * 4)) % 64 == 0; }

constexpr i64 FEW_NEURONS = 64;  // of a sample: below, strips would be cut too often to be counted on the way

template <Reset reset>
void forward_strips(const NeuronCall& p, i64 first, i64 n, float* v, const float* beta, const float* threshold, const Rule<float>& rule,
                    const Tally& tally, float* hits) {
#if SPIKING_WIDE
    const float* x = static_cast<const float*>(p.x) + first;
    float* s = static_cast<float*>(p.s) + first;
    float* h = p.save ? static_cast<float*>(p.saved) + first : nullptr;
    const i64 features = p.tally ? p.tally->features : p.N, samples = p.N / features;
    const bool on_the_way = p.tally && features >= FEW_NEURONS && !p.tally->fans[0], afterwards = p.tally && !on_the_way;
    const bool stream = streams<float>(p) && aligned(p, p.s) && (!h || aligned(p, p.saved)) && !afterwards && features % SPIKING_WIDE == 0;
    for (i64 t = 0; t < p.T;) {
        const i64 steps = p.T - t >= STRIP ? STRIP : 1, at = t * p.N;
        // After the last step: the rows of the block that this thread takes next.
        const i64 ahead = t + 2 * steps <= p.T ? steps * p.N : first + 2 * n <= p.N ? n - at : 0;
        const auto strip = [&](i64 k, i64 width, auto counts, StripCounts* to) {
            constexpr bool counted = decltype(counts)::value;
            const Strip rows{width, p.N, p.x_is_constant ? 0 : ahead, x_step(p)};
            const auto run = [&](auto body) {
                body(x + t * x_step(p) + k, s + at + k, h ? h + at + k : nullptr, v + k, beta + k, threshold + k, rule, rows, to);
            };
            if (steps == STRIP)
                h ? stream ? run(forward_strip<reset, STRIP, true, true, counted>) : run(forward_strip<reset, STRIP, false, true, counted>)
                  : stream ? run(forward_strip<reset, STRIP, true, false, counted>) : run(forward_strip<reset, STRIP, false, false, counted>);
            else
                h ? run(forward_strip<reset, 1, false, true, counted>) : run(forward_strip<reset, 1, false, false, counted>);
        };
        if (on_the_way)
            over_samples(p, t, first, n, [&](i64 k, i64 width, i64 row) {
                StripCounts found{};
                found.hits = hits + k;
                strip(k, width, Yes{}, &found);
                for (i64 i = 0; i < steps; ++i) add_to(tally, row + i * samples, found.active[i], found.spikes[i]);
            });
        else
            strip(0, n, No{}, nullptr);
        for (i64 i = 0; afterwards && i < steps; ++i) tally_row(p, tally, t + i, first, n, x + (t + i) * x_step(p), s + at + i * p.N, hits);
        t += steps;
    }
    if (stream) stream_end();
#endif
}

template <Reset reset>
void backward_strips(const NeuronCall& p, i64 first, i64 n, const float* flat, float* carry, const float* beta, const float* threshold,
                     const Rule<float>& rule) {
#if SPIKING_WIDE
    const float* h = static_cast<const float*>(p.saved) + first;
    const bool given = p.grad_s && !p.grad_s_is_scalar;
    const float* gs = given ? static_cast<const float*>(p.grad_s) + first : flat;
    float* gx = static_cast<float*>(p.grad_x) + first;
    const bool stream = streams<float>(p) && aligned(p, p.grad_x);
    with_surrogate(rule.surrogate, [&](auto tag) {
        constexpr Surrogate kind = decltype(tag)::value;
        if constexpr (!needs_exponential(kind)) {
            for (i64 t = p.T; t > 0;) {
                const i64 steps = t >= STRIP ? STRIP : 1;
                t -= steps;
                const i64 at = t * p.N;
                const i64 ahead = t >= steps ? -steps * p.N : first + 2 * n <= p.N ? (p.T - STRIP) * p.N - at + n : 0;
                const Strip rows{n, p.N, ahead, p.N};
                const float* g = given ? gs + at : gs;
                const auto run = [&](auto strip) { strip(h + at, g, given ? p.N : 0, gx + at, carry, beta, threshold, rule, rows); };
                if (steps == STRIP) stream ? run(backward_strip<reset, kind, STRIP, true>) : run(backward_strip<reset, kind, STRIP, false>);
                else run(backward_strip<reset, kind, 1, false>);
            }
        }
    });
    if (stream) stream_end();
#endif
}

template <Kind kind, Reset reset, Flags flags, class IO>
void forward_block(const NeuronCall& p, i64 first, i64 n, int thread) {
    using T = typename StateOf<IO>::type;
    alignas(64) T beta[BLOCK], threshold[BLOCK], beta_syn[BLOCK], v[BLOCK], e[BLOCK], c[BLOCK], xb[BLOCK], sb[BLOCK], hb[BLOCK];
    const Rule<T> rule = rule_of<T>(p);
    fill_cells(p, first, n, beta, threshold, beta_syn);
    constexpr int extra = extra_states<kind>();
    const int counter = p.refractory > 0 ? 1 + extra : 0, n_states = 1 + extra + (counter ? 1 : 0);
    load_state(p.state0 ? static_cast<const T*>(p.state0) + first : nullptr, p.N, extra, counter, rule, v, e, c, n);

    const auto store_state = [&](T* to) {
        copy(v, to, n);
        if (extra) copy(e, to + p.N, n);
        if (counter) copy(c, to + counter * p.N, n);
    };
    const Tally tally = p.tally ? tally_of(p, thread) : Tally{};
    T hits[BLOCK];
    if (p.tally) fill(hits, n, T(0));
    if (in_strips<kind, flags, IO>(p)) {
        if constexpr (sizeof(IO) == 4) forward_strips<reset>(p, first, n, v, beta, threshold, rule, tally, hits);
        store_state(static_cast<T*>(p.state1) + first);
        if (p.tally) tally_neurons(p, tally, first, n, hits);
        return;
    }
    const bool stream = streams<IO>(p);
    for (i64 t = 0; t < p.T; ++t) {
        const i64 at = t * p.N + first;
        if (p.save == 3 && t > 0 && t % CHUNK == 0) store_state(static_cast<T*>(p.saved) + (t / CHUNK - 1) * n_states * p.N + first);
        if (p.tally && p.drive) tally_images<IO>(p, tally, t, first, n);  // before, so that these numbers are in the caches when they drive
        const T* x = input_row<IO>(p, t, first, n, xb);
        IO* out = static_cast<IO*>(p.s) + at;
        constexpr bool direct = sizeof(IO) == sizeof(T);
        // After the last step: the first row of the block that this thread takes next.
        const i64 after = t + 1 < p.T ? at + p.N : first + n < p.N ? first + n : -1;
        const void* next = after >= 0 && !p.drive && !p.x_is_constant ? static_cast<const IO*>(p.x) + after : nullptr;
        T* s = direct && !stream ? reinterpret_cast<T*>(out) : sb;
        T* h = p.save == 1 && !stream ? static_cast<T*>(p.saved) + at : hb;
        step_row<kind, reset, flags>(x, States<T>{v, e, c}, Cells<T>{beta, threshold, beta_syn}, rule, s, h, n, next, sizeof(IO));
        if (p.tally) tally_row(p, tally, t, first, n, x, s, hits);
        if (s == sb) store_row(sb, out, n, stream);
        if (p.save == 1 && stream) store_row(hb, static_cast<T*>(p.saved) + at, n, true);
        if (p.save == 2) encode_row(h, threshold, rule, static_cast<u16*>(p.saved) + at, n);
    }
    store_state(static_cast<T*>(p.state1) + first);
    if (p.tally) tally_neurons(p, tally, first, n, hits);
    if (stream) stream_end();
}

template <Kind kind, Reset reset, Flags flags, bool params, class IO>
void backward_block(const NeuronCall& p, i64 first, i64 n, double* grad_params, double* grad_affine) {
    using T = typename StateOf<IO>::type;
    constexpr i64 W = BLOCK;
    constexpr int extra = extra_states<kind>();
    alignas(64) T beta[W], threshold[W], beta_syn[W], cv[W], ce[W], cs[W], gsb[W], gxb[W], slope[W], ub[W] = {}, xb[W];
    alignas(64) double gb[W], gt[W], gy[W];
    Rule<T> rule = rule_of<T>(p);
    fill_cells(p, first, n, beta, threshold, beta_syn);
    const Cells<T> cells{beta, threshold, beta_syn};
    const int counter = p.refractory > 0 ? 1 + extra : 0, n_states = 1 + extra + (counter ? 1 : 0);
    if (p.grad_state1) {
        const T* g1 = static_cast<const T*>(p.grad_state1) + first;
        copy(g1, cv, n);
        if (extra) copy(g1 + p.N, ce, n); else fill(ce, n, T(0));
    } else {
        fill(cv, n, T(0)), fill(ce, n, T(0));
    }
    fill(cs, n, T(0));
    if constexpr (params) fill(gb, n, 0.0), fill(gt, n, 0.0), fill(gy, n, 0.0);
    if (!p.grad_s) fill(gsb, n, T(0));
    else if (p.grad_s_is_scalar) fill(gsb, n, T(widen(*static_cast<const IO*>(p.grad_s))));

    const bool stream = streams<IO>(p);
    const auto grad_row = [&](i64 t) -> const T* {
        if (!p.grad_s || p.grad_s_is_scalar) return gsb;
        const IO* row = static_cast<const IO*>(p.grad_s) + t * p.N + first;
        if (t > 0) prefetch_row(row - p.N, n * i64(sizeof(IO)));
        return load_row(row, gsb, n);
    };
    constexpr bool may_be_normalized = kind == Kind::lif && reset == Reset::subtract && flags == Flags::all && params;
    const bool normalized = may_be_normalized && !p.drive && only_normalized(rule);
    const auto adjoint = [&](i64 t, const T* x, const T* h, const T* u, const T* bv, const T* be, const T* bc) {
        const i64 at = t * p.N + first;
        if (!normalized) slope_row(u, rule, slope, n);
        const T* gs = grad_row(t);
        IO* out = static_cast<IO*>(p.grad_x) + at;
        T* gx = sizeof(IO) == sizeof(T) && !stream && !p.drive ? reinterpret_cast<T*>(out) : gxb;
        if (normalized) normalized_adjoint_row(h, u, gs, bv, cv, cells, rule, gx, gb, gt, n);
        else adjoint_row<kind, reset, flags, params>(x, h, u, slope, gs, bv, be, bc, CarryRows<T>{cv, ce, cs}, cells, rule, GradRows{gb, gt, gy}, gx, n);
        if (p.drive) undriven_row<IO>(p, t, first, n, gxb, slope, grad_affine);
        else if (gx == gxb) store_row(gxb, out, n, stream);
    };

    if (!params && p.save == 1 && in_strips<kind, flags, IO>(p) && !needs_exponential(Surrogate(rule.surrogate))) {
        if constexpr (sizeof(IO) == 4) backward_strips<reset>(p, first, n, gsb, cv, beta, threshold, rule);
    } else if (p.save == 3) {                    // recompute a chunk forward, then walk it backward
        constexpr i64 R = RECOMPUTE_BLOCK;
        alignas(64) T hs[CHUNK][R], vs[CHUNK][R], es[CHUNK][R], counts[CHUNK][R], v[R], e[R], c[R], spikes[R];
        for (i64 chunk = (p.T + CHUNK - 1) / CHUNK - 1; chunk >= 0; --chunk) {
            const i64 start = chunk * CHUNK, stop = start + CHUNK < p.T ? start + CHUNK : p.T;
            const T* from = chunk > 0 ? static_cast<const T*>(p.saved) + (chunk - 1) * n_states * p.N + first
                            : p.state0 ? static_cast<const T*>(p.state0) + first
                                       : nullptr;
            load_state(from, p.N, extra, counter, rule, v, e, c, n);
            for (i64 t = start; t < stop; ++t) {
                copy(v, vs[t - start], n), copy(e, es[t - start], n), copy(c, counts[t - start], n);
                const T* x = input_row<IO>(p, t, first, n, xb);
                step_row<kind, reset, flags>(x, States<T>{v, e, c}, cells, rule, spikes, hs[t - start], n, nullptr, 0);
            }
            for (i64 t = stop - 1; t >= start; --t) {
                const T *h = hs[t - start], *be = es[t - start];
                const T* theta = threshold;
                if constexpr (kind == Kind::adaptive) {
                    for (i64 k = 0; k < n; ++k) xb[k] = threshold[k] + rule.adapt_scale * be[k];
                    theta = xb;
                }
                distance_row(h, theta, rule, ub, n);
                const T* x = input_row<IO>(p, t, first, n, xb);
                adjoint(t, x, h, ub, vs[t - start], be, counts[t - start]);
            }
        }
    } else if (flags == Flags::plain && !params && p.save == 1) {   // the common case in one pass over each row
        for (i64 t = p.T - 1; t >= 0; --t) {
            const T* h = static_cast<const T*>(p.saved) + t * p.N + first;
            const bool given = p.grad_s && !p.grad_s_is_scalar;
            const IO* row = static_cast<const IO*>(p.grad_s) + t * p.N + first;
            const T* gs = given ? load_row(row, gsb, n) : gsb;
            IO* out = static_cast<IO*>(p.grad_x) + t * p.N + first;
            T* gx = sizeof(IO) == sizeof(T) && !stream && !p.drive ? reinterpret_cast<T*>(out) : gxb;
            const i64 step = t > 0 ? -p.N : first + n < p.N ? (p.T - 1) * p.N + n : 0;
            plain_adjoint_row<reset>(h, gs, cv, cells, rule, gx, n, step ? h + step : nullptr, step && given ? row + step : nullptr, sizeof(IO));
            if (p.drive) undriven_row<IO>(p, t, first, n, gxb, slope, grad_affine);
            else if (gx == gxb) store_row(gxb, out, n, stream);
        }
    } else if constexpr (kind == Kind::lif) {    // value or half: h is at hand, the state before a step follows from the row before
        alignas(64) T hb[2][W], uprev[W], vb[W], zero[W];
        const bool half = p.save == 2, need_v = params || flags == Flags::all;
        fill(zero, n, T(0));
        if (half) rule.on_tie = T(1);            // the code's sign holds the spike whatever the tie rule was
        const auto fetch = [&](i64 t, T* u, T* buffer) -> const T* {
            const i64 at = t * p.N + first;
            if (half) {
                decode_row(static_cast<const u16*>(p.saved) + at, threshold, rule, u, buffer, n);
                return buffer;
            }
            const T* h = static_cast<const T*>(p.saved) + at;
            distance_row(h, threshold, rule, u, n);
            return h;
        };
        const T* h = p.T > 0 ? fetch(p.T - 1, ub, hb[0]) : nullptr;
        for (i64 t = p.T - 1; t >= 0; --t) {
            const T *hprev = nullptr, *bv = zero;
            if (t > 0 && need_v) {
                hprev = fetch(t - 1, uprev, hb[t % 2 == (p.T - 1) % 2 ? 1 : 0]);
                if (p.reset_delay) {
                    bv = hprev;
                } else {
                    after_reset_row<reset>(hprev, uprev, threshold, rule, vb, n);
                    bv = vb;
                }
            } else if (need_v) {
                if (p.state0) copy(static_cast<const T*>(p.state0) + first, vb, n); else fill(vb, n, rule.v_leak);
                bv = vb;
            }
            const T* x = zero;
            if (params && flags != Flags::plain && p.x) x = input_row<IO>(p, t, first, n, xb);
            adjoint(t, x, h, ub, bv, zero, zero);
            if (t > 0) {
                if (need_v) {
                    copy(uprev, ub, n);
                    h = hprev;
                } else {
                    h = fetch(t - 1, ub, hb[0]);
                }
            }
        }
    }

    if (flags == Flags::all && p.reset_delay) {
        alignas(64) T v0[W];
        if (p.state0) copy(static_cast<const T*>(p.state0) + first, v0, n); else fill(v0, n, rule.v_leak);
        distance_row(v0, threshold, rule, ub, n);
        slope_row(ub, rule, slope, n);
        for (i64 k = 0; k < n; ++k) {
            T grad_threshold = T(0);
            initial_adjoint(v0[k], slope[k], cs[k], threshold[k], rule, cv[k], grad_threshold);
            if constexpr (params) gt[k] += double(grad_threshold);
        }
    }
    if (p.grad_state0) {
        T* g0 = static_cast<T*>(p.grad_state0) + first;
        copy(cv, g0, n);
        if (extra) copy(ce, g0 + p.N, n);
        if (counter) fill(g0 + counter * p.N, n, T(0));
    }
    if (stream) stream_end();
    if constexpr (params) {
        for (i64 k = 0; k < n; ++k) {
            const i64 index = p.C == 1 ? 0 : ((first + k) / p.inner) % p.C;
            grad_params[index] += gb[k];
            grad_params[p.C + index] += gt[k];
            grad_params[2 * p.C + index] += gy[k];
        }
    }
}

template <Kind kind, Reset reset, Flags flags, class IO>
void run(const NeuronCall& p, bool backward) {
    if (!backward) {
        over_blocks(p, BLOCK, [&](i64 first, i64 n, int thread) { forward_block<kind, reset, flags, IO>(p, first, n, thread); });
        return;
    }
    const i64 largest = p.save == 3 ? RECOMPUTE_BLOCK : BLOCK;
    const auto affine = [&](int thread) { return p.drive && p.drive->grad_affine ? p.drive->grad_affine + thread * 2 * p.drive->channels : nullptr; };
    if (p.grad_params)
        over_blocks(p, largest, [&](i64 first, i64 n, int thread) {
            backward_block<kind, reset, flags, true, IO>(p, first, n, p.grad_params + thread * 3 * p.C, affine(thread));
        });
    else
        over_blocks(p, largest,
                    [&](i64 first, i64 n, int thread) { backward_block<kind, reset, flags, false, IO>(p, first, n, nullptr, affine(thread)); });
}

template <Kind kind, Reset reset, Flags flags>
void by_dtype(const NeuronCall& p, bool backward) {
    if (p.dtype == 0) run<kind, reset, flags, float>(p, backward);
    if (p.dtype == 1) run<kind, reset, flags, double>(p, backward);
    if (p.dtype == 2) run<kind, reset, flags, bf16>(p, backward);
    if (p.dtype == 3) run<kind, reset, flags, f16>(p, backward);
}

template <Reset reset>
void by_kind(const NeuronCall& p, bool backward) {
    const Flags flags = flags_of(p);
    if (p.kind == 1) by_dtype<Kind::cuba, reset, Flags::common>(p, backward);
    else if (p.kind == 2) by_dtype<Kind::adaptive, reset, Flags::common>(p, backward);
    else if (flags == Flags::all) by_dtype<Kind::lif, reset, Flags::all>(p, backward);
    else if (flags == Flags::common) by_dtype<Kind::lif, reset, Flags::common>(p, backward);
    else by_dtype<Kind::lif, reset, Flags::plain>(p, backward);
}

void dispatch(const NeuronCall& p, bool backward) {
    if (p.reset == 0) by_kind<Reset::subtract>(p, backward);
    if (p.reset == 1) by_kind<Reset::zero>(p, backward);
    if (p.reset == 2) by_kind<Reset::none>(p, backward);
}

void forward(const NeuronCall& p) { dispatch(p, false); }
void backward(const NeuronCall& p) { dispatch(p, true); }

}  // namespace

extern const KernelTable neuron_table;
const KernelTable neuron_table{forward, backward};

}  // namespace SPIKING_NS
