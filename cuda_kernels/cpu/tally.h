// Counts for a recording of what passes through a block of neurons, made while its numbers are in the caches; see TallyCall.
#pragma once
#include "drive.h"
#include "neuron_api.h"

namespace SPIKING_NS {

// body(k, n, row): runs of neurons [k, k + n) of a block that belong to one sample, and the row [T, samples] of that sample at step t.
template <class Body>
SPIKING_FN void over_samples(const NeuronCall& p, i64 t, i64 first, i64 n, const Body& body) {
    const i64 features = p.tally->features, samples = p.N / features;
    i64 sample = first / features, within = first % features;
    for (i64 k = 0; k < n; ++sample, within = 0) {
        const i64 run = features - within < n - k ? features - within : n - k;
        body(k, run, t * samples + sample);
        k += run;
    }
}

struct Tally {
    int *active, *spikes, *pooled, *per_neuron, *odd;
};

SPIKING_FN Tally tally_of(const NeuronCall& p, int thread) {
    const i64 rows = p.T * (p.N / p.tally->features);
    int* at = p.tally->counts + thread * (3 * rows + p.tally->features + 1);
    return {at, at + rows, at + 2 * rows, at + 3 * rows, at + 3 * rows + p.tally->features};
}

template <class T>
SPIKING_FN int count_nonzero(const T* __restrict x, i64 n) {
    int found = 0;
    for (i64 k = 0; k < n; ++k) found += widen(x[k]) != 0 ? 1 : 0;
    return found;
}

// hits [n] collects the spikes of each neuron of the block over time.
template <class T>
__attribute__((noinline)) void tally_row(const NeuronCall& p, const Tally& to, i64 t, i64 first, i64 n, const T* __restrict x,
                                         const T* __restrict s, int* __restrict hits) {
    int odd = 0;
    over_samples(p, t, first, n, [&](i64 from, i64 run, i64 row) {
        int active = 0, spikes = 0;
        for (i64 k = from; k < from + run; ++k) {
            const int spike = s[k] != T(0) ? 1 : 0;
            active += x[k] != T(0) ? 1 : 0;
            spikes += spike;
            odd |= spike - (s[k] == T(1) ? 1 : 0);
            hits[k] += spike;
        }
        to.active[row] += active, to.spikes[row] += spikes;
    });
    if (odd) *to.odd = 1;
}

// What the windows that drive the block hold at step t.
template <class IO>
__attribute__((noinline)) void tally_windows(const NeuronCall& p, const Tally& to, i64 t, i64 first, i64 n) {
    const DriveCall& d = *p.drive;
    const IO* x = static_cast<const IO*>(p.x);
    const i64 samples = p.N / p.tally->features;
    over_windows(d, t, first, n, [&](i64 k, i64 windows, i64 source, i64) {
        int found = 0;
        for (i64 r = 0; r < d.window; ++r) found += count_nonzero(x + source + r * d.width, windows * d.window);
        to.pooled[t * samples + (first + k) / p.tally->features] += found;
    });
}

// The spikes of each neuron of a block [first, first + n).
SPIKING_FN void tally_neurons(const NeuronCall& p, const Tally& to, i64 first, i64 n, const int* __restrict hits) {
    over_samples(p, 0, first, n, [&](i64 from, i64 run, i64) {
        int* __restrict at = to.per_neuron + (first + from) % p.tally->features;
        for (i64 k = 0; k < run; ++k) at[k] += hits[from + k];
    });
}

}  // namespace SPIKING_NS
