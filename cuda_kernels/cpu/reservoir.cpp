// A reservoir over whole sequences in one call: u[t] = beta·u[t-1]·(1 - s[t-1]) + W_in·x[t] + W_rec·s[t-1], s[t] = u[t] > threshold.
// Only the rows of inputs and neurons that were active are touched. Compiled once per instruction set (SPIKING_LEVEL), like neuron.cpp.
#define SPIKING_GLUE_(a, b) a##b
#define SPIKING_GLUE(a, b) SPIKING_GLUE_(a, b)
#define SPIKING_NS SPIKING_GLUE(spiking_, SPIKING_LEVEL)

#include "gather.h"
#include "reservoir.h"
#include "reservoir_api.h"
#include "spikes.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace SPIKING_NS {
namespace {

constexpr i64 LARGE = 1024;    // neurons from which rows are no longer in L2 when they are needed
constexpr i64 SENDERS_AHEAD = 3;  // senders between a prefetch of a sparse row and its use

struct List {
    u32* at;
    i64 n;
    bool ones;
};

// As `gather`, with products rounded before they are added: the same bits at every level, since spikes follow from them.
template <class W>
void scaled_rows(const W* panel, i64 width, const List& list, const W* x, W* sums) {
    for (i64 i = 0; i < list.n; ++i) {
        const W value = x[list.at[i]];
        const W* __restrict row = panel + i64(list.at[i]) * width;
        for (i64 k = 0; k < width; ++k) sums[k] += row[k] * value;
    }
}

// The sparse recurrent currents of one sample.
template <class W>
void scatter(const ReservoirCall& p, const List& fired, W* currents) {
    const W* weights = static_cast<const W*>(p.rec_weights);
    for (i64 k = 0; k < p.neurons; ++k) currents[k] = W(0);
    for (i64 i = 0; i < fired.n; ++i) {
        if (i + SENDERS_AHEAD < fired.n) {
            const u32 next = fired.at[i + SENDERS_AHEAD];
            for (i64 e = p.rec_offsets[next]; e < p.rec_offsets[next + 1]; e += 16) {
                __builtin_prefetch(p.rec_receivers + e, 0, 3);
                for (i64 k = 0; k < i64(sizeof(W)) / 4; ++k) __builtin_prefetch(weights + e + 8 * k, 0, 3);
            }
        }
        const i64 last = p.rec_offsets[fired.at[i] + 1];
        for (i64 e = p.rec_offsets[fired.at[i]]; e < last; ++e) currents[p.rec_receivers[e]] += weights[e];
    }
}

template <class W>
void panel_step(const ReservoirCall& p, i64 t, i64 b, i64 panel, i64 width, const List& input, const List& fired) {
    alignas(64) W start[PANEL] = {}, in[PANEL], rec[PANEL] = {};
    const i64 first = panel * PANEL, used = p.neurons - first < PANEL ? p.neurons - first : PANEL;
    const bool large = p.neurons > LARGE;
    if (p.bias)
        for (i64 k = 0; k < used; ++k) start[k] = static_cast<const W*>(p.bias)[first + k];
    const W* weights = static_cast<const W*>(p.in_panels) + first * p.inputs;
    if (input.ones) {
        gather_of<W>(width, true, large)(weights, input.at, input.n, nullptr, 1, start, in);
    } else {
        for (i64 k = 0; k < PANEL; ++k) in[k] = start[k];
        scaled_rows(weights, width, input, static_cast<const W*>(p.x) + (t * p.batch + b) * p.inputs, in);
    }
    if (p.rec_panels) {
        const W* recurrent = static_cast<const W*>(p.rec_panels) + first * p.neurons;
        for (i64 k = 0; k < PANEL; ++k) start[k] = W(0);
        gather_of<W>(width, true, large)(recurrent, fired.at, fired.n, nullptr, 1, start, rec);
    } else if (p.currents) {
        const W* currents = static_cast<const W*>(p.currents) + b * p.neurons + first;
        for (i64 k = 0; k < used; ++k) rec[k] = currents[k];
    }
    const W beta = W(p.beta), threshold = W(p.threshold);
    W* __restrict u = static_cast<W*>(p.u) + b * p.neurons + first;
    W* __restrict s = static_cast<W*>(p.s) + b * p.neurons + first;
    for (i64 k = 0; k < used; ++k) reservoir_step(in[k], rec[k], beta, threshold, u[k], s[k]);
}

template <class W>
void keep(void* to, const void* from, i64 t, i64 b, const ReservoirCall& p) {
    const u64 bytes = u64(p.neurons) * sizeof(W);
    if (to) __builtin_memcpy(static_cast<W*>(to) + (t * p.batch + b) * p.neurons, static_cast<const W*>(from) + b * p.neurons, bytes);
}

// Samples [first, last): all of them pass over a panel before the next one is read.
template <class W>
void run_share(const ReservoirCall& p, i64 first, i64 last) {
    const i64 panels = (p.neurons + PANEL - 1) / PANEL, room = p.inputs + p.neurons + 2 * LIST_SLACK;
    const auto input_list = [&](i64 b) { return p.lists + b * room; };
    const auto fired_list = [&](i64 b) { return p.lists + b * room + p.inputs + LIST_SLACK; };
    const W* x = static_cast<const W*>(p.x);
    const W* s = static_cast<const W*>(p.s);
    constexpr i64 GROUP = 32;      // samples whose list lengths are held at once
    List inputs[GROUP], fired[GROUP];
    for (i64 from = first; from < last; from += GROUP) {
        const i64 n = last - from < GROUP ? last - from : GROUP;
        for (i64 i = 0; i < n; ++i) {
            const Spikes before = list_nonzeros(s + (from + i) * p.neurons, p.neurons, fired_list(from + i));
            fired[i] = {fired_list(from + i), before.count, true};
        }
        for (i64 t = 0; t < p.steps; ++t) {
            for (i64 i = 0; i < n; ++i) {
                const i64 b = from + i;
                const Spikes now = list_nonzeros(x + (t * p.batch + b) * p.inputs, p.inputs, input_list(b));
                inputs[i] = {input_list(b), now.count, now.ones};
                p.events[2 * b] += now.count, p.events[2 * b + 1] += fired[i].n;
                if (p.currents) scatter(p, fired[i], static_cast<W*>(p.currents) + b * p.neurons);
            }
            for (i64 panel = 0; panel < panels; ++panel) {
                const i64 used = p.neurons - panel * PANEL < PANEL ? p.neurons - panel * PANEL : PANEL;
                const i64 width = (used + LANES - 1) / LANES * LANES;
                for (i64 i = 0; i < n; ++i) panel_step<W>(p, t, from + i, panel, width, inputs[i], fired[i]);
            }
            for (i64 i = 0; i < n; ++i) {
                const i64 b = from + i;
                fired[i].n = list_nonzeros(s + b * p.neurons, p.neurons, fired[i].at).count;
                keep<W>(p.spikes, p.s, t, b, p);
                keep<W>(p.membrane, p.u, t, b, p);
                if (!p.features) continue;
                W* feature = static_cast<W*>(p.features) + (p.bin[t] * p.batch + b) * p.neurons;
                const W worth = static_cast<const W*>(p.worth)[t];
                for (i64 k = 0; k < fired[i].n; ++k) feature[fired[i].at[k]] += worth;
            }
        }
    }
}

template <class W>
void run_all(const ReservoirCall& p) {
#ifdef _OPENMP
    if (p.threads > 1 && p.batch > 1) {
#pragma omp parallel num_threads(p.threads)
        {
            const i64 team = omp_get_num_threads(), self = omp_get_thread_num();
            run_share<W>(p, p.batch * self / team, p.batch * (self + 1) / team);
        }
        return;
    }
#endif
    run_share<W>(p, 0, p.batch);
}

void run(const ReservoirCall& p) {
    if (p.wide) run_all<double>(p);
    else run_all<float>(p);
}

}  // namespace

extern const ReservoirTable reservoir_table;
const ReservoirTable reservoir_table{run};

}  // namespace SPIKING_NS
