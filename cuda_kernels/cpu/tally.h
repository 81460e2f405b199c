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

struct Yes { static constexpr bool value = true; };
struct No { static constexpr bool value = false; };

struct Tally {
    int *active, *spikes, *images, *beyond, *reached[2], *per_neuron, *odd;
};

SPIKING_FN i64 planes_of(const NeuronCall& p) { return 2 + (p.drive ? 2 : 0) + (p.tally->fans[0] ? 1 : 0) + (p.tally->fans[1] ? 1 : 0); }

SPIKING_FN Tally tally_of(const NeuronCall& p, int thread) {
    const i64 rows = p.T * (p.N / p.tally->features), features = p.tally->features;
    int* at = p.tally->counts + thread * (planes_of(p) * rows + features + 1);
    const auto plane = [&](bool wanted) {
        int* here = at;
        at += wanted ? rows : 0;
        return wanted ? here : nullptr;
    };
    Tally to{};
    to.active = plane(true), to.spikes = plane(true), to.images = plane(p.drive), to.beyond = plane(p.drive);
    to.reached[0] = plane(p.tally->fans[0]), to.reached[1] = plane(p.tally->fans[1]);
    to.per_neuron = at, to.odd = at + features;
    return to;
}

template <class T>
SPIKING_FN int count_nonzero(const T* __restrict x, i64 n) {
    int found = 0;
    for (i64 k = 0; k < n; ++k) found += widen(x[k]) != 0 ? 1 : 0;
    return found;
}

template <class T>
SPIKING_FN int fans_of_spikes(const T* __restrict s, const int* __restrict fan, i64 n) {
    int found = 0;
    for (i64 k = 0; k < n; ++k) found += s[k] != T(0) ? fan[k] : 0;
    return found;
}

// Adds neurons with a current and spikes to a row [sample at a step]; NaN spikes are odd.
template <class T>
SPIKING_FN void add_to(const Tally& to, i64 row, T active, T spikes) {
    to.active[row] += int(active);
    if (spikes == spikes) to.spikes[row] += int(spikes);
    else *to.odd = 1;
}

// hits [n] collects the spikes of each neuron of the block over time. Outputs are 0, 1 or NaN, so that their sum is their number, or NaN.
template <class T>
__attribute__((noinline)) void tally_row(const NeuronCall& p, const Tally& to, i64 t, i64 first, i64 n, const T* __restrict x,
                                         const T* __restrict s, T* __restrict hits) {
    over_samples(p, t, first, n, [&](i64 from, i64 run, i64 row) {
        T spikes[PARTS] = {}, total = T(0);
        int active[PARTS] = {}, moved = 0;
        i64 k = from;
        for (; k + PARTS <= from + run; k += PARTS)
            for (i64 l = 0; l < PARTS; ++l) {
                active[l] += x[k + l] != T(0) ? 1 : 0;
                spikes[l] += s[k + l];
                hits[k + l] += s[k + l];
            }
        for (; k < from + run; ++k) {
            moved += x[k] != T(0) ? 1 : 0;
            total += s[k];
            hits[k] += s[k];
        }
        for (i64 l = 0; l < PARTS; ++l) moved += active[l], total += spikes[l];
        add_to(to, row, T(moved), total);
        for (int i = 0; i < 2; ++i)
            if (to.reached[i]) to.reached[i][row] += fans_of_spikes(s + from, p.tally->fans[i] + (first + from) % p.tally->features, run);
    });
}

// The images whose windows drive the block, at step t: of each, the rows of windows that begin in the block, with what lies below the
// last one. Those are one run of numbers, which is several times quicker to count than window by window. Where all of them are not zero,
// as behind a normalisation, so is what lies beyond the windows; else that is counted too.
template <class IO>
__attribute__((noinline)) void tally_images(const NeuronCall& p, const Tally& to, i64 t, i64 first, i64 n) {
    const DriveCall& d = *p.drive;
    const i64 features = p.tally->features, samples = p.N / features;
    const i64 rows = d.height / d.window, columns = d.width / d.window, in_sample = features / columns;
    const i64 right = d.width - columns * d.window, below = (d.height - rows * d.window) * d.width;
    const auto at = [&](i64 row) { return (row / rows * d.height + row % rows * d.window) * d.width; };
    const IO* x = static_cast<const IO*>(p.x) + t * d.step_items;
    const i64 end = (first + n + columns - 1) / columns;
    for (i64 row = (first + columns - 1) / columns; row < end;) {
        const i64 sample = row / in_sample, stop = (sample + 1) * in_sample < end ? (sample + 1) * in_sample : end;
        const i64 all = at(stop) - at(row), found = count_nonzero(x + at(row), all);
        to.images[t * samples + sample] += int(found);
        i64 beyond = 0;
        if (right + below == 0) {
        } else if (found == all) {
            beyond = (stop - row) * d.window * right + (stop / rows - row / rows) * below;
        } else {
            for (i64 r = row; r < stop; ++r) {
                const IO* line = x + at(r);
                for (i64 i = 0; i < d.window; ++i) beyond += count_nonzero(line + i * d.width + columns * d.window, right);
                if (r % rows == rows - 1) beyond += count_nonzero(line + d.window * d.width, below);
            }
        }
        to.beyond[t * samples + sample] += int(beyond);
        row = stop;
    }
}

// The spikes of each neuron of a block [first, first + n).
template <class T>
SPIKING_FN void tally_neurons(const NeuronCall& p, const Tally& to, i64 first, i64 n, const T* __restrict hits) {
    over_samples(p, 0, first, n, [&](i64 from, i64 run, i64) {
        int* __restrict at = to.per_neuron + (first + from) % p.tally->features;
        for (i64 k = 0; k < run; ++k) at[k] += hits[from + k] == hits[from + k] ? int(hits[from + k]) : 0;
    });
}

}  // namespace SPIKING_NS
