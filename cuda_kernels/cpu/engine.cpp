// A whole network over all time steps in one call, batch rows shared out between threads. Stages take turns over a few steps of a few rows,
// so that weights and membranes stay in the nearest caches; between stages spikes travel as lists of indices.
// Compiled once per instruction set (SPIKING_LEVEL). Neuron maths is neuron.h's; sums over inputs follow the list, one rounding an input.
#define SPIKING_GLUE_(a, b) a##b
#define SPIKING_GLUE(a, b) SPIKING_GLUE_(a, b)
#define SPIKING_NS SPIKING_GLUE(spiking_, SPIKING_LEVEL)

#include "engine_api.h"
#include "gather.h"
#include "neuron.h"
#include "spikes.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace SPIKING_NS {
namespace {

constexpr i64 MOST_ITEMS = 16;                   // (row, step) pairs that a stage runs before the next stage takes its turn
constexpr i64 ITEM_BYTES = i64(8) << 20;         // and the memory that their signals may take
constexpr u32 NOWHERE = 0xffffffffu;
constexpr i64 CELLS = 64;                        // neurons that share a word

SPIKING_FN i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
SPIKING_FN i64 larger(i64 a, i64 b) { return a > b ? a : b; }

// One row of values of one time step. Listed: idx names what is not zero; where not all of it is 1, dense holds the values at these places.
template <class T>
struct Signal {
    const u32* idx;
    i64 count;
    const T* dense;
    bool listed, ones;
};

// --- scratch ----------------------------------------------------------------------------------------------------------------------

struct Scratch {
    char* at;
    template <class U>
    U* take(i64 n) {
        U* here = reinterpret_cast<U*>(at);
        at += (n * i64(sizeof(U)) + 63) / 64 * 64;
        return here;
    }
};

// What one stage works in; its output may lie elsewhere.
template <class T>
struct Desk {
    u32 *list, *last;                            // indices of its input, and of its own last spikes
    T *current, *pooled, *heard, *frame;
};

struct Widths { i64 values, inputs, currents, framed; };

Widths widths_of(const EngineCall& p) {
    Widths w{p.n_in, p.n_in, 0, 0};
    for (int s = 0; s < p.n_stages; ++s) {
        w.values = larger(w.values, p.stages[s].n);
        w.inputs = larger(w.inputs, larger(p.stages[s].n_in, p.stages[s].n));
        w.currents = larger(w.currents, larger(p.stages[s].n_acc, p.stages[s].n));
        w.framed = larger(w.framed, p.stages[s].n_framed);
    }
    return w;
}

template <class T>
Desk<T> desk_of(Scratch& from, const Widths& w) {
    Desk<T> d;
    d.list = from.take<u32>(w.inputs + LIST_SLACK), d.last = from.take<u32>(w.inputs + LIST_SLACK);
    d.current = from.take<T>(w.currents), d.pooled = from.take<T>(w.currents), d.heard = from.take<T>(w.currents);
    d.frame = from.take<T>(w.framed);
    return d;
}

i64 desk_bytes(const Widths& w, i64 size) { return 2 * 4 * (w.inputs + LIST_SLACK) + size * (3 * w.currents + w.framed) + 6 * 64; }

i64 signal_bytes(const Widths& w, i64 size) { return 4 * (w.values + LIST_SLACK) + size * w.values + 2 * 64; }

i64 items_of(const EngineCall& p, const Widths& w) {
    const i64 fit = ITEM_BYTES / (2 * signal_bytes(w, p.wide ? 8 : 4));
    return p.margin >= 0 ? 1 : larger(1, smaller(MOST_ITEMS, fit));
}

long long scratch_bytes(const EngineCall& p) {
    const Widths w = widths_of(p);
    const i64 size = p.wide ? 8 : 4, readout = size * p.n_out + 64;
    if (p.t) {
        const i64 words = 8 * ((p.n_in + 63) / 64) + 64;
        return (p.n_stages + 1) * (desk_bytes(w, size) + signal_bytes(w, size)) + words + readout + size * p.n_in + 64;
    }
    return desk_bytes(w, size) + 2 * items_of(p, w) * signal_bytes(w, size) + readout;
}

// --- links ------------------------------------------------------------------------------------------------------------------------

template <class T> using VectorOf = typename Summed<T>::Vector;

// `rows` runs of V vectors of weights, times value, added to the currents.
template <class T, int V, bool ones>
SPIKING_FN void spread_runs(T* to, const T* from, const EngineStage& st, i64 rows, T value) {
    for (i64 r = 0; r < rows; ++r, to += st.target_stride, from += st.weight_stride)
        for (int v = 0; v < V; ++v) {
            VectorOf<T> sum, w;
            load(to + v * LANES, sum);
            load(from + v * LANES, w);
            if constexpr (ones) sum += w;
            else fused(w, value, sum);
            __builtin_memcpy(to + v * LANES, &sum, sizeof(sum));
        }
}

template <class T>
void spread_any(T* to, const T* from, const EngineStage& st, i64 rows, i64 length, T value) {
    for (i64 r = 0; r < rows; ++r, to += st.target_stride, from += st.weight_stride) {
        i64 k = 0;
        for (; k + LANES <= length; k += LANES) spread_runs<T, 1, false>(to + k, from + k, st, 1, value);
        for (; k < length; ++k) to[k] += from[k] * value;
    }
}

template <class T, bool ones>
void spread(const EngineStage& st, const Signal<T>& in, T* currents) {
    const T* weights = static_cast<const T*>(st.weights);
    for (i64 i = 0; i < in.count; ++i) {
        const u32 index = in.idx[i];
        const EngineEntry entry = st.table[index];
        const T value = ones ? T(1) : in.dense[index];
        T* to = currents + entry.target;
        const T* from = weights + entry.weight;
        switch (entry.length) {
            case 1 * LANES: spread_runs<T, 1, ones>(to, from, st, entry.rows, value); break;
            case 2 * LANES: spread_runs<T, 2, ones>(to, from, st, entry.rows, value); break;
            case 3 * LANES: spread_runs<T, 3, ones>(to, from, st, entry.rows, value); break;
            case 4 * LANES: spread_runs<T, 4, ones>(to, from, st, entry.rows, value); break;
            case 5 * LANES: spread_runs<T, 5, ones>(to, from, st, entry.rows, value); break;
            case 6 * LANES: spread_runs<T, 6, ones>(to, from, st, entry.rows, value); break;
            default: spread_any(to, from, st, entry.rows, entry.length, value);
        }
    }
}

template <class T>
void copy(const T* from, T* to, i64 n) {
    if (n > 0) __builtin_memcpy(to, from, u64(n) * sizeof(T));
}

template <class T>
void clear(T* to, i64 n) { __builtin_memset(to, 0, u64(n) * sizeof(T)); }

// out = start + Σ of the listed rows of a weight [inputs, outputs] in panels; outputs is a multiple of 16.
template <class T>
void gather_panels(const T* weights, i64 inputs, i64 outputs, const Signal<T>& in, const T* start, T* out) {
    for (i64 first = 0; first < outputs; first += PANEL) {
        const i64 width = smaller(PANEL, outputs - first);
        gather_of<T>(width, in.ones, inputs * outputs * i64(sizeof(T)) > ITEM_BYTES / 16)(
            weights + first * inputs, in.idx, in.count, in.dense, 1, start + first, out + first);
    }
}

// Rows of inputs that one load of a weight serves: as many as leave their sums of 16 outputs in registers.
template <class T>
constexpr int rows_at_once() {
#if defined(__AVX512F__)
    return 8;
#elif defined(__AVX2__)
    return sizeof(T) == 4 ? 5 : 3;
#else
    return sizeof(T) == 4 ? 3 : 1;
#endif
}

// sum[k] += Σ of x[k][j] · weights[j·apart …+ 16], j < n.
template <class T, int P>
SPIKING_FN void multiply(const T* const* x, i64 n, const T* weights, i64 apart, VectorOf<T>* sum) {
    for (i64 j = 0; j < n; ++j, weights += apart) {
        VectorOf<T> w;
        load(weights, w);
        for (int k = 0; k < P; ++k) fused(w, x[k][j], sum[k]);
    }
}

// Neighbouring output pixels, 16 channels each, over the whole window.
template <class T, int P>
void window_pixels(const EngineStage& st, const T* corner, const T* weights, const T* bias, T* out) {
    VectorOf<T> sum[P];
    const T* x[P];
    for (int k = 0; k < P; ++k) load(bias + k * st.channels_out, sum[k]);
    const i64 run = st.window * st.channels_in, apart = st.step * st.channels_in;
    for (i64 line = 0; line < st.window; ++line, corner += st.image_in, weights += run * LANES) {
        for (int k = 0; k < P; ++k) x[k] = corner + k * apart;
        multiply<T, P>(x, run, weights, LANES, sum);
    }
    for (int k = 0; k < P; ++k) __builtin_memcpy(out + k * st.channels_out, &sum[k], sizeof(sum[k]));
}

template <class T>
using Window = void (*)(const EngineStage&, const T*, const T*, const T*, T*);

template <class T, int P>
Window<T> window_of(i64 pixels) {
    if constexpr (P > 1)
        if (pixels < P) return window_of<T, P - 1>(pixels);
    return window_pixels<T, P>;
}

// A convolution over every input. Several inputs may share a place in the frame: those of a window that is averaged before the weights.
template <class T>
void every_pixel(const EngineStage& st, const Signal<T>& in, T* frame, T* currents) {
    clear(frame, st.n_framed);
    for (i64 i = 0; i < in.count; ++i) frame[st.framed[in.idx[i]]] += in.ones ? T(1) : in.dense[in.idx[i]];
    const T* bias = static_cast<const T*>(st.bias);
    constexpr int P = rows_at_once<T>();
    for (i64 channel = 0; channel < st.channels_out; channel += LANES) {
        const T* weights = static_cast<const T*>(st.dense_weights) + channel * st.window * st.window * st.channels_in;
        for (i64 line = 0; line < st.rows_out; ++line)
            for (i64 column = 0; column < st.columns_out;) {
                const i64 left = st.columns_out - column, at = (line * st.columns_out + column) * st.channels_out + channel;
                const T* corner = frame + line * st.step * st.image_in + column * st.step * st.channels_in;
                const i64 taken = left <= P ? left : left < 2 * P ? (left + 1) / 2 : P;
                window_of<T, P>(taken)(st, corner, weights, bias + at, currents + at);
                column += taken;
            }
    }
}

// A linear layer over every input of several rows: out[k] = bias + x[k] · W.
template <class T, int P>
void every_input(const EngineStage& st, const T* const* x, T* const* out) {
    const T *weights = static_cast<const T*>(st.weights), *bias = static_cast<const T*>(st.bias);
    for (i64 first = 0; first < st.n_acc; first += LANES) {
        const i64 panel = first / PANEL * PANEL, width = smaller(PANEL, st.n_acc - panel);
        VectorOf<T> sum[P];
        for (int k = 0; k < P; ++k) load(bias + first, sum[k]);
        multiply<T, P>(x, st.n_in, weights + panel * st.n_in + first - panel, width, sum);
        for (int k = 0; k < P; ++k) __builtin_memcpy(out[k] + first, &sum[k], sizeof(sum[k]));
    }
}

template <class T>
Signal<T> listed(const Signal<T>& in, i64 n, u32* list) {
    if (in.listed) return in;
    const Spikes found = list_nonzeros(in.dense, n, list);
    return {list, found.count, in.dense, true, found.ones};
}

// The currents of one step, before the neuron: link, pooling, scale and shift.
template <class T>
const T* currents_of(const EngineStage& st, const Signal<T>& given, const Desk<T>& desk) {
    const T* bias = static_cast<const T*>(st.bias);
    const T* now = desk.current;
    if (st.link == 0 && !given.listed && !bias) {
        now = given.dense;
    } else if (st.link == 0) {
        if (bias) copy(bias, desk.current, st.n_acc); else clear(desk.current, st.n_acc);
        const Signal<T> in = listed(given, st.n_in, desk.list);
        for (i64 i = 0; i < in.count; ++i) desk.current[in.idx[i]] += in.ones ? T(1) : in.dense[in.idx[i]];
    } else {
        const Signal<T> in = listed(given, st.n_in, desk.list);
        if (in.count == 0) {
            now = bias;
        } else if (st.link == 1) {
            gather_panels(static_cast<const T*>(st.weights), st.n_in, st.n_acc, in, bias, desk.current);
        } else if (st.dense_weights && in.count > st.dense_above) {
            every_pixel(st, in, desk.frame, desk.current);
        } else {
            copy(bias, desk.current, st.n_acc);
            if (in.ones) spread<T, true>(st, in, desk.current);
            else spread<T, false>(st, in, desk.current);
        }
    }
    if (st.pool) {
        for (i64 k = 0; k < st.n; ++k) {
            const u32* taps = st.pool + k * st.taps;
            T most = now[taps[0]];
            for (i64 j = 1; j < st.taps; ++j) {
                const T other = now[taps[j]];
                most = other > most || other != other ? other : most;
            }
            desk.pooled[k] = most;
        }
        now = desk.pooled;
    }
    if (st.scale) {
        const T *scale = static_cast<const T*>(st.scale), *shift = static_cast<const T*>(st.shift);
        for (i64 k = 0; k < st.n; ++k) desk.pooled[k] = now[k] * scale[k] + shift[k];
        now = desk.pooled;
    }
    return now;
}

// --- neurons ----------------------------------------------------------------------------------------------------------------------

template <class T> struct Rows { T *v, *e, *c, *spikes; };   // a stage's state of one batch row; null where the neuron has none

template <class T>
Rows<T> rows_of(const EngineStage& st, T* state) {
    Rows<T> rows{state + st.state, nullptr, nullptr, nullptr};
    T* next = rows.v + st.n;
    if (st.kind != 0) rows.e = next, next += st.n;
    if (st.refractory > 0) rows.c = next, next += st.n;
    if (st.recurrent) rows.spikes = next;
    return rows;
}

template <class T>
Rule<T> rule_of(const EngineStage& st) {
    return {T(st.v_reset), T(st.v_leak), T(st.beta_adapt), T(st.adapt_scale), T(0), T(0), T(st.tie_gt ? 0 : 1), T(st.decay_input),
            T(0), T(st.reset_delay), T(st.residual_reset), T(st.normalize), T(st.refractory), 0};
}

// One step of all neurons of a row. Spikes go to the list, and to `values` where one of them is not 1 (it is NaN then).
template <Kind kind, Reset reset, Flags flags, class T>
__attribute__((noinline)) Signal<T> fire(const EngineStage& st, const T* x, const Rows<T>& rows, u32* list, T* values) {
    const Rule<T> rule = rule_of<T>(st);
    alignas(64) T s[CELLS], none[CELLS] = {};
    const auto word_at = [&](i64 first, i64 n) {
        const i64 cell = st.alike ? 0 : first;
        const T* __restrict current = x + first;
        const T* __restrict beta = static_cast<const T*>(st.beta) + cell;
        const T* __restrict threshold = static_cast<const T*>(st.threshold) + cell;
        const T* __restrict beta_syn = static_cast<const T*>(st.beta_syn) + cell;
        T* __restrict v = rows.v + first;
        T* __restrict e = rows.e ? rows.e + first : none;
        T* __restrict c = rows.c ? rows.c + first : none;
        T* __restrict out = s;
        for (i64 k = 0; k < n; ++k) {
            T vk = v[k], ek = T(0), ck = T(0), h, y = T(0);
            if constexpr (kind != Kind::lif) ek = e[k];
            if constexpr (kind == Kind::cuba) y = beta_syn[k];
            if constexpr (flags != Flags::plain) ck = c[k];
            out[k] = neuron_step<kind, reset, flags>(current[k], vk, ek, ck, beta[k], threshold[k], y, rule, h);
            v[k] = vk;
            if constexpr (kind != Kind::lif) e[k] = ek;
            if constexpr (flags != Flags::plain) c[k] = ck;
        }
    };
    u32* end = list;
    bool ones = true;
    for (i64 first = 0; first < st.n; first += CELLS) {
        const i64 n = smaller(CELLS, st.n - first);
        if (n == CELLS) word_at(first, CELLS);
        else clear(s, CELLS), word_at(first, n);
        const SpikeWord word = spike_word(s);
        const u64 active = word.active & st.valid[first / CELLS];
        if (ones && active & ~word.ones) {       // from here on values are kept, and those of the spikes before were 1
            ones = false;
            for (const u32* i = list; i < end; ++i) values[*i] = T(1);
        }
        if (!ones) copy(s, values + first, n);
        if (rows.spikes) copy(s, rows.spikes + first, n);
        end = append_word(active, u32(first), end);
    }
    return {list, i64(end - list), values, true, ones};
}

template <class T>
using Fire = Signal<T> (*)(const EngineStage&, const T*, const Rows<T>&, u32*, T*);

template <Reset reset, class T>
Fire<T> fire_of(const EngineStage& st) {
    const Flags flags = flags_of(st);
    if (st.kind == int(Kind::cuba)) return fire<Kind::cuba, reset, Flags::common, T>;
    if (st.kind == int(Kind::adaptive)) return fire<Kind::adaptive, reset, Flags::common, T>;
    if (flags == Flags::all) return fire<Kind::lif, reset, Flags::all, T>;
    if (flags == Flags::common) return fire<Kind::lif, reset, Flags::common, T>;
    return fire<Kind::lif, reset, Flags::plain, T>;
}

template <class T>
Fire<T> fire_of(const EngineStage& st) {
    if (st.reset == int(Reset::subtract)) return fire_of<Reset::subtract, T>(st);
    if (st.reset == int(Reset::zero)) return fire_of<Reset::zero, T>(st);
    return fire_of<Reset::none, T>(st);
}

// What a recurrent layer hears of its own last spikes, added to its currents.
template <class T>
const T* with_own_spikes(const EngineStage& st, const T* currents, const Rows<T>& rows, const Desk<T>& desk) {
    if (!rows.spikes) return currents;
    const Signal<T> own = listed(Signal<T>{nullptr, 0, rows.spikes, false, false}, st.n, desk.last);
    if (own.count == 0) return currents;
    gather_panels(static_cast<const T*>(st.recurrent), st.n, st.n, own, currents, desk.heard);
    return desk.heard;
}

// --- what leaves the network ------------------------------------------------------------------------------------------------------

// The last stage's output in the order of the plain network; what the readout reads of it.
template <class T>
struct Readout {
    const EngineCall& p;
    T* v;                                        // of the integrator, one row; null: not wanted

    void row(const Signal<T>& last, i64 t, i64 b) const {
        T* out = static_cast<T*>(p.out) + (t * p.B + b) * p.n_out;
        if (last.listed) {
            clear(out, p.n_out);
            for (i64 i = 0; i < last.count; ++i) out[p.place[last.idx[i]]] = last.ones ? T(1) : last.dense[last.idx[i]];
        } else {
            const i64 n = p.stages[p.n_stages - 1].n;
            for (i64 k = 0; k < n; ++k)
                if (p.place[k] != NOWHERE) out[p.place[k]] = last.dense[k];
        }
        if (p.sums && !v) add(out, b);
    }

    void integrate(const T* currents, i64 t, i64 b) const {
        if (!v) return;
        T* out = static_cast<T*>(p.membrane) + (t * p.B + b) * p.n_out;
        const T beta = T(p.membrane_beta);
        const i64 n = p.stages[p.n_stages - 1].n;
        for (i64 k = 0; k < n; ++k) {
            if (p.place[k] == NOWHERE) continue;
            T& now = v[p.place[k]];
            out[p.place[k]] = now = beta * now + currents[k];
        }
        if (p.sums) add(out, b);
    }

    void add(const T* values, i64 b) const {
        for (i64 k = 0; k < p.n_out; ++k) p.sums[b * p.n_out + k] += double(values[k]);
    }

    bool decided(i64 b) const {
        double first = -__builtin_inf(), second = first;
        for (i64 k = 0; k < p.n_out; ++k) {
            const double sum = p.sums[b * p.n_out + k];
            if (sum > first) second = first, first = sum;
            else if (sum > second) second = sum;
        }
        return first - second >= p.margin * double(p.T);
    }
};

// A linear stage runs those of its items in which most inputs are active side by side: their currents are `ready` in `out`. Inputs come in
// the order of the lists, so that the sums are those of the spikes alone, bit by bit. What was a list is written out in `spare`.
template <class T>
void side_by_side(const EngineStage& st, const Signal<T>* signals, i64 items, T* const* spare, T* const* out, bool* ready) {
    constexpr int P = rows_at_once<T>();
    for (i64 i = 0; i < items; ++i) ready[i] = false;
    if (st.link != 1 || st.scale || items < P || P == 1) return;
    const T* x[MOST_ITEMS];
    T* to[MOST_ITEMS];
    i64 busy = 0;
    for (i64 i = 0; i < items; ++i) {
        const Signal<T>& in = signals[i];
        const i64 active = in.listed ? in.count : count_nonzeros(in.dense, st.n_in);
        ready[i] = active > st.dense_above;
        if (!ready[i]) continue;
        x[busy] = in.dense, to[busy] = out[i];
        if (in.listed) {
            T* row = spare[i];
            i64 next = 0;
            for (i64 k = 0; k < in.count; ++k) {  // in.dense may be this row: what it holds between the spikes is overwritten
                const i64 at = in.idx[k];
                clear(row + next, at - next);
                row[at] = in.ones ? T(1) : in.dense[at];
                next = at + 1;
            }
            clear(row + next, st.n_in - next);
            x[busy] = row;
        }
        ++busy;
    }
    i64 i = 0;
    for (; i + P <= busy; i += P) every_input<T, P>(st, x + i, to + i);
    for (; i < busy; ++i) every_input<T, 1>(st, x + i, to + i);
}

// --- frames -----------------------------------------------------------------------------------------------------------------------

template <class T>
void run_rows(const EngineCall& p, i64 first, i64 last, i64 n_items, char* memory) {
    const Widths widths = widths_of(p);
    Scratch scratch{memory};
    const Desk<T> desk = desk_of<T>(scratch, widths);
    u32* lists[2][MOST_ITEMS];
    T* values[2][MOST_ITEMS];
    for (int side = 0; side < 2; ++side)
        for (i64 i = 0; i < n_items; ++i)
            lists[side][i] = scratch.take<u32>(widths.values + LIST_SLACK), values[side][i] = scratch.take<T>(widths.values);
    const Readout<T> readout{p, p.membrane ? scratch.take<T>(p.n_out) : nullptr};

    const i64 block = larger(1, n_items / larger(1, p.T)), stretch = smaller(p.T, n_items);
    for (i64 b0 = first; b0 < last; b0 += block) {
        const i64 b1 = smaller(last, b0 + block);
        for (i64 b = b0; b < b1; ++b) {
            const T* from = p.state0 ? static_cast<const T*>(p.state0) + b * p.S : static_cast<const T*>(p.rest);
            copy(from, static_cast<T*>(p.state1) + b * p.S, p.S);
            if (p.steps) p.steps[b] = p.T;
        }
        Signal<T> signals[MOST_ITEMS];
        for (i64 t0 = 0; t0 < p.T; t0 += stretch) {
            const i64 t1 = smaller(p.T, t0 + stretch), steps = t1 - t0, items = (b1 - b0) * steps;
            for (i64 i = 0; i < items; ++i)
                signals[i] = {nullptr, 0, static_cast<const T*>(p.x) + ((t0 + i % steps) * p.B + b0 + i / steps) * p.n_in, false, false};
            for (int s = 0; s < p.n_stages; ++s) {
                const EngineStage& st = p.stages[s];
                const Fire<T> run = fire_of<T>(st);
                bool ready[MOST_ITEMS];
                side_by_side(st, signals, items, values[1 - s % 2], values[s % 2], ready);
                for (i64 i = 0; i < items; ++i) {
                    const i64 b = b0 + i / steps, t = t0 + i % steps;
                    const T* currents = ready[i] ? values[s % 2][i] : currents_of(st, signals[i], desk);
                    if (s + 1 == p.n_stages) {
                        if (readout.v && t == 0) clear(readout.v, p.n_out);
                        readout.integrate(currents, t, b);
                    }
                    if (st.neuron) {
                        const Rows<T> rows = rows_of(st, static_cast<T*>(p.state1) + b * p.S);
                        signals[i] = run(st, with_own_spikes(st, currents, rows, desk), rows, lists[s % 2][i], values[s % 2][i]);
                    } else {
                        if (!ready[i]) copy(currents, values[s % 2][i], st.n);
                        signals[i] = {nullptr, 0, values[s % 2][i], false, false};
                    }
                    if (s + 1 == p.n_stages) readout.row(signals[i], t, b);
                }
            }
            if (p.margin >= 0 && readout.decided(b0)) {
                p.steps[b0] = t1;
                break;
            }
        }
    }
}

void run(const EngineCall& p) {
    const i64 items = items_of(p, widths_of(p));
    const auto share = [&](i64 first, i64 last, int thread) {
        char* memory = static_cast<char*>(p.scratch) + thread * p.scratch_bytes;
        if (p.wide) run_rows<double>(p, first, last, items, memory);
        else run_rows<float>(p, first, last, items, memory);
    };
#ifdef _OPENMP
    if (p.threads > 1 && p.B > 1) {
#pragma omp parallel num_threads(p.threads)
        {
            const i64 team = omp_get_num_threads(), self = omp_get_thread_num();
            share(p.B * self / team, p.B * (self + 1) / team, int(self));
        }
        return;
    }
#endif
    share(0, p.B, 0);
}

// --- events -----------------------------------------------------------------------------------------------------------------------

// n steps of constant input at once:  v' = v·on_v + e·on_e + x·x_v + leak·leak_v;  e' = e·decay_e + x·x_e.
struct Leap { double on_v, on_e, x_v, leak_v, decay_e, x_e; };

Leap then(const Leap& a, const Leap& b) {
    return {b.on_v * a.on_v,
            b.on_v * a.on_e + b.on_e * a.decay_e,
            b.on_v * a.x_v + b.on_e * a.x_e + b.x_v,
            b.on_v * a.leak_v + b.leak_v,
            b.decay_e * a.decay_e,
            b.decay_e * a.x_e + b.x_e};
}

Leap leap_of(Leap step, i64 n) {
    Leap all{1, 0, 0, 0, 1, 0};
    for (; n; n >>= 1, step = then(step, step))
        if (n & 1) all = then(all, step);
    return all;
}

// All neurons of a row, n steps ahead under constant currents: by the closed form where surely none of them fires on the way, and true then.
// The bound on rounding keeps clear of any membrane for which stepping and leaping might not agree.
template <class T>
bool leap(const EngineStage& st, const T* x, const Rows<T>& rows, i64 n, T* v_after, T* e_after) {
    constexpr double EPSILON = sizeof(T) == 4 ? 1.2e-7 : 2.3e-16;
    const Kind kind = Kind(st.kind);
    const double fade = kind == Kind::adaptive ? __builtin_pow(T(st.beta_adapt), double(n)) : 0;
    const double fade_before = kind == Kind::adaptive ? __builtin_pow(T(st.beta_adapt), double(n - 1)) : 0;
    double beta = -1, beta_syn = -1;
    Leap far{}, one{};
    for (i64 k = 0; k < st.n; ++k) {
        if (!(st.valid[k / CELLS] >> (k % CELLS) & 1)) {
            v_after[k] = rows.v[k];
            if (rows.e) e_after[k] = rows.e[k];
            continue;
        }
        const i64 cell = st.alike ? 0 : k;
        const double b = static_cast<const T*>(st.beta)[cell], y = static_cast<const T*>(st.beta_syn)[cell];
        const double threshold = static_cast<const T*>(st.threshold)[cell];
        if (b != beta || y != beta_syn) {
            beta = b, beta_syn = y;
            one = kind == Kind::cuba ? Leap{b, y, 1, 1, y, 1} : Leap{b, 0, 1, 1, 1, 0};
            far = leap_of(one, n);
        }
        const double v = rows.v[k], e = rows.e ? double(rows.e[k]) : 0.0, leak = (1 - b) * st.v_leak;
        const double drive = kind == Kind::cuba ? double(x[k]) : (st.decay_input ? 1 - b : 1.0) * double(x[k]);
        const double after = v * far.on_v + e * far.on_e + drive * far.x_v + leak * far.leak_v;
        // The membrane moves one way under a constant current, so its ends bound it; a synaptic current is bounded by its own ends.
        double steady = drive + leak, least = threshold;
        if (kind == Kind::cuba) {
            const double early = e * y + drive, late = e * far.decay_e + drive * far.x_e;
            steady = (early > late ? early : late) + leak;
        }
        if (kind == Kind::adaptive) {
            const double early = st.adapt_scale * e, late = early * fade_before;
            least += early < late ? early : late;
        }
        const double first = b * v + steady, last = v * far.on_v + steady * far.leak_v;
        double most = first > last ? first : last;
        if ((st.reset_delay || st.residual_reset) && v > most) most = v;
        const double sizes[] = {v, first, last, steady, threshold};
        double size = 0;
        for (const double each : sizes) size = __builtin_fabs(each) > size ? __builtin_fabs(each) : size;
        if (!(most < least - 8 * EPSILON * (far.leak_v + 2) * size)) return false;
        if (rows.c && rows.c[k] > T(0)) return false;
        if (rows.spikes && rows.spikes[k] != T(0)) return false;
        v_after[k] = T(after);
        if (kind == Kind::cuba) e_after[k] = T(e * far.decay_e + drive * far.x_e);
        if (kind == Kind::adaptive) e_after[k] = T(e * fade);
    }
    copy(v_after, rows.v, st.n);
    if (rows.e) copy(e_after, rows.e, st.n);
    return true;
}

template <class T>
struct Stream {
    const EngineCall& p;
    Readout<T> readout;
    Desk<T>* desks;
    u32** lists;
    T** values;
    i64 jumped;

    // n steps of the same input enter stage s at step t; what leaves it enters the next stage, depth first.
    void push(int s, const Signal<T>& in, i64 t, i64 n) {
        if (s == p.n_stages) {
            if (!in.listed || in.count || p.sums)
                for (i64 k = 0; k < n; ++k) readout.row(in, t + k, 0);
            return;
        }
        const EngineStage& st = p.stages[s];
        const T* currents = currents_of(st, in, desks[s]);
        if (s + 1 == p.n_stages)
            for (i64 k = 0; k < n; ++k) readout.integrate(currents, t + k, 0);
        if (!st.neuron) {
            push(s + 1, {nullptr, 0, currents, false, false}, t, n);
            return;
        }
        const Rows<T> rows = rows_of(st, static_cast<T*>(p.state1));
        while (n > 0) {
            if (n > 1 && leap(st, currents, rows, n, desks[s].heard, values[s])) {
                jumped += n;
                push(s + 1, {lists[s], 0, values[s], true, true}, t, n);
                return;
            }
            const Signal<T> out = fire_of<T>(st)(st, with_own_spikes(st, currents, rows, desks[s]), rows, lists[s], values[s]);
            push(s + 1, out, t, 1);
            ++t, --n;
        }
    }
};

template <class T>
i64 stream_events(const EngineCall& p) {
    const Widths widths = widths_of(p);
    Scratch scratch{static_cast<char*>(p.scratch)};
    Desk<T>* desks = scratch.take<Desk<T>>(p.n_stages);
    u32** lists = scratch.take<u32*>(p.n_stages);
    T** values = scratch.take<T*>(p.n_stages);
    for (int s = 0; s < p.n_stages; ++s) {
        desks[s] = desk_of<T>(scratch, widths);
        lists[s] = scratch.take<u32>(widths.values + LIST_SLACK);
        values[s] = scratch.take<T>(widths.values);
    }
    u32* list = scratch.take<u32>(widths.values + LIST_SLACK);
    T* counts = scratch.take<T>(p.n_in);
    u64* words = scratch.take<u64>((p.n_in + 63) / 64);
    clear(counts, p.n_in), clear(words, (p.n_in + 63) / 64);
    Readout<T> readout{p, p.membrane ? scratch.take<T>(p.n_out) : nullptr};
    if (readout.v) clear(readout.v, p.n_out);
    copy(static_cast<const T*>(p.state0 ? p.state0 : p.rest), static_cast<T*>(p.state1), p.S);

    Stream<T> stream{p, readout, desks, lists, values, 0};
    const i64 plane = p.sensor_width * p.sensor_height;
    i64 at = 0, t = 0;
    while (at < p.n_events && p.t[at] < p.start) ++at;
    while (t < p.T) {
        const i64 next = at < p.n_events ? smaller((p.t[at] - p.start) / p.width, p.T) : p.T;
        if (next > t) stream.push(0, {list, 0, counts, true, true}, t, next - t);
        t = next;
        if (t == p.T) break;
        bool ones = true;
        for (const i64 end = p.start + (t + 1) * p.width; at < p.n_events && p.t[at] < end; ++at) {
            const i64 index = (p.polarities > 1 ? p.polarity[at] * plane : 0) + p.line[at] * p.sensor_width + p.column[at];
            const u64 bit = u64(1) << (index % 64);
            if (words[index / 64] & bit && !p.clip) ones = false;
            words[index / 64] |= bit;
            counts[index] = p.clip ? T(1) : counts[index] + T(1);
        }
        const i64 count = expand_bits(words, p.n_in, list);
        stream.push(0, {list, count, counts, true, ones}, t, 1);
        for (i64 i = 0; i < count; ++i) counts[list[i]] = T(0), words[list[i] / 64] = 0;
        ++t;
    }
    return stream.jumped;
}

long long run_events(const EngineCall& p) { return p.wide ? stream_events<double>(p) : stream_events<float>(p); }

}  // namespace

extern const EngineTable engine_table;
const EngineTable engine_table{scratch_bytes, run, run_events};

}  // namespace SPIKING_NS
