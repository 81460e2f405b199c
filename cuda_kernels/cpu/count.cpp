// What an operand touches, in one pass over it: non-zeros, synaptic operations, magnitudes, and how often each element was not zero.
// Compiled once per instruction set (SPIKING_LEVEL), like neuron.cpp.
#define SPIKING_GLUE_(a, b) a##b
#define SPIKING_GLUE(a, b) SPIKING_GLUE_(a, b)
#define SPIKING_NS SPIKING_GLUE(spiking_, SPIKING_LEVEL)

#include "count_api.h"
#include "saved.h"

namespace SPIKING_NS {
namespace {

constexpr i64 BLOCK = 16384;   // elements whose fan-out and counts stay in L2 while the rows go by; shorter pieces of a row read slower
constexpr i64 LANES = 16;      // independent partial sums, so that the loops vectorise

struct Found { bool ones, finite; };

// 32-bit sums: a block of fan-outs below 2^17 cannot overflow them.
template <bool fans, bool sparse, class T>
Found count_row(const T* __restrict x, const int* __restrict fan, const int* __restrict fan_nonzero, int* __restrict per_element, i64 n,
                i64& nonzero, i64& synops, i64& effective, double& magnitude, bool values) {
    int hits = 0, odd = 0, reached = 0, useful = 0;
    for (i64 k = 0; k < n; ++k) {
        const int hit = x[k] != T(0) ? 1 : 0;
        hits += hit;
        odd += x[k] != T(0) && x[k] != T(1) ? 1 : 0;
        per_element[k] += hit;
        if constexpr (fans) reached += hit ? fan[k] : 0;
        if constexpr (sparse) useful += hit ? fan_nonzero[k] : 0;
    }
    nonzero += hits, synops += reached, effective += useful;
    if (!odd || !values) {
        magnitude += double(hits);
        return {!odd, true};
    }
    double sums[LANES] = {};
    i64 k = 0;
    for (; k + LANES <= n; k += LANES)
        for (i64 l = 0; l < LANES; ++l) sums[l] += double(x[k + l] < T(0) ? -x[k + l] : x[k + l]);
    for (; k < n; ++k) sums[0] += double(x[k] < T(0) ? -x[k] : x[k]);
    double sum = 0;
    for (i64 l = 0; l < LANES; ++l) sum += sums[l];
    magnitude += sum;
    return {false, sum - sum == 0};
}

// Adds what is new in x to the magnitudes met so far; each look compares all of x with one more magnitude.
template <class T>
void collect_levels(const T* __restrict x, i64 n, double* met, int& n_met, int& negative) {
    if (n_met > LEVELS) return;
    int below = 0;
    for (i64 k = 0; k < n; ++k) below += x[k] < T(0) ? 1 : 0;
    negative |= below ? 1 : 0;
    int known[BLOCK];
    for (i64 k = 0; k < n; ++k) known[k] = x[k] == T(0) ? 1 : 0;
    const auto mark = [&](T value) {
        int left = 0;
        for (i64 k = 0; k < n; ++k) {
            known[k] |= x[k] == value || x[k] == -value ? 1 : 0;
            left += 1 - known[k];
        }
        return left;
    };
    int left = 1;
    for (int i = 0; i < n_met && left; ++i) left = mark(T(met[i]));
    for (i64 k = 0; k < n && left; ++k) {
        if (known[k]) continue;
        if (n_met == LEVELS) {
            ++n_met;
            return;
        }
        const T value = x[k] < T(0) ? -x[k] : x[k];
        met[n_met++] = double(value);
        left = mark(value);
    }
}

// Non-zeros alone, and the sum of fan over them.
template <bool fans, class T>
Found count_bare(const T* __restrict x, const int* __restrict fan, const int*, int*, i64 n, i64& nonzero, i64& synops, i64&, double&, bool) {
    int hits[LANES] = {}, reached[LANES] = {};
    i64 k = 0;
    for (; k + LANES <= n; k += LANES)
        for (i64 l = 0; l < LANES; ++l) {
            hits[l] += x[k + l] != T(0) ? 1 : 0;
            if constexpr (fans) reached[l] += x[k + l] != T(0) ? fan[k + l] : 0;
        }
    for (; k < n; ++k) {
        hits[0] += x[k] != T(0) ? 1 : 0;
        if constexpr (fans) reached[0] += x[k] != T(0) ? fan[k] : 0;
    }
    for (i64 l = 0; l < LANES; ++l) nonzero += hits[l], synops += reached[l];
    return {false, true};
}

// Rows [begin, end) in blocks of elements.
template <class IO>
Found count_rows(const CountCall& p, i64 begin, i64 end, int thread) {
    using T = typename StateOf<IO>::type;
    Found all{true, true};
    for (i64 first = 0; first < p.n; first += BLOCK) {
        const i64 n = first + BLOCK < p.n ? BLOCK : p.n - first;
        int hits[BLOCK] = {};
        T buffer[BLOCK];
        const int *fan = p.fan ? p.fan + first : nullptr, *fan_nonzero = p.fan_nonzero ? p.fan_nonzero + first : nullptr;
        for (i64 r = begin; r < end; ++r) {
            const IO* from = static_cast<const IO*>(p.x) + r * p.n + first;
            const T* x;
            if constexpr (sizeof(IO) == sizeof(T)) {
                x = from;
            } else {
                for (i64 k = 0; k < n; ++k) buffer[k] = widen(from[k]);
                x = buffer;
            }
            i64 nonzero = 0, synops = 0, effective = 0;
            double magnitude = 0;
            const auto count = [&](auto tally) { return tally(x, fan, fan_nonzero, hits, n, nonzero, synops, effective, magnitude, p.levels); };
            const Found found = !p.per_element ? (fan ? count(count_bare<true, T>) : count(count_bare<false, T>))
                                : !fan         ? count(count_row<false, false, T>)
                                : fan_nonzero  ? count(count_row<true, true, T>)
                                               : count(count_row<true, false, T>);
            const bool fresh = first == 0;
            p.nonzero[r] = nonzero + (fresh ? 0 : p.nonzero[r]);
            p.synops[r] = synops + (fresh ? 0 : p.synops[r]);
            p.synops[p.rows + r] = (fan_nonzero ? effective : synops) + (fresh ? 0 : p.synops[p.rows + r]);
            p.magnitude[r] = magnitude + (fresh ? 0.0 : p.magnitude[r]);
            const i64 set = thread * p.steps + r / (p.rows / p.steps);
            if (p.levels && !found.ones && found.finite) collect_levels(x, n, p.levels + set * LEVELS, p.n_levels[set], p.negative[set]);
            all.ones &= found.ones;
            all.finite &= found.finite;
        }
        if (!p.per_element) continue;
        long long* to = p.per_element + first;
#ifdef _OPENMP
#pragma omp critical(spiking_count)
#endif
        for (i64 k = 0; k < n; ++k) to[k] += hits[k];
    }
    return all;
}

template <class IO>
int count_all(const CountCall& p) {
    int odd = 0, wild = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(p.threads) schedule(static) reduction(| : odd, wild) if (p.threads > 1)
#endif
    for (int thread = 0; thread < p.threads; ++thread) {
        const Found found = count_rows<IO>(p, p.rows * thread / p.threads, p.rows * (thread + 1) / p.threads, thread);
        odd |= !found.ones, wild |= !found.finite;
    }
    return (odd ? 0 : 1) | (wild ? 0 : 2);
}

int count(const CountCall& p) {
    if (p.dtype == 1) return count_all<double>(p);
    if (p.dtype == 2) return count_all<bf16>(p);
    if (p.dtype == 3) return count_all<f16>(p);
    return count_all<float>(p);
}

void fold(const FoldCall& p) {
    const i64 cells = p.planes * p.steps * p.samples, all = cells + p.elements + p.spare;
    for (i64 pass = 0; pass < p.passes; ++pass)
        for (int thread = 0; thread < p.threads; ++thread) {
            int* __restrict from = p.counts[pass] + thread * all;
            for (i64 row = 0; row < p.planes * p.steps; ++row) {
                long long* __restrict to = p.by_sample + (row / p.steps * p.passes + pass) * p.samples;
                i64 total = 0;
                for (i64 k = 0; k < p.samples; ++k) {
                    const int value = from[row * p.samples + k];
                    to[k] += value;
                    total += value;
                }
                p.by_step[row] += total;
            }
            long long* __restrict to = p.by_element;
            for (i64 k = 0; k < p.elements; ++k) to[k] += from[cells + k];
            for (i64 k = 0; k < all && p.clear; ++k) from[k] = 0;
        }
}

}  // namespace

extern const CountTable count_table;
const CountTable count_table{count, fold};

}  // namespace SPIKING_NS
