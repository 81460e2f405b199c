// y = x·Wᵀ + b from the spikes of x, and dL/dW = dL/dyᵀ·x likewise: both are sums of the rows that a list names, so one routine does both.
// Compiled once per instruction set (SPIKING_LEVEL), like neuron.cpp. Sums follow the list, one rounding a spike.
#define SPIKING_GLUE_(a, b) a##b
#define SPIKING_GLUE(a, b) SPIKING_GLUE_(a, b)
#define SPIKING_NS SPIKING_GLUE(spiking_, SPIKING_LEVEL)

#include "event_linear_api.h"
#include "gather.h"
#include "spikes.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace SPIKING_NS {
namespace {

template <class W> using Kind = Summed<W>;

constexpr i64 FEW_ROWS = 4;    // with more rows the panel is in L2 anyway, and prefetching costs more than it saves

SPIKING_FN i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
SPIKING_FN i64 panels_of(i64 outputs) { return (outputs + PANEL - 1) / PANEL; }

// Numbers between the first of one panel and the first of the next.
template <class W>
SPIKING_FN i64 panel_stride(i64 inputs) { return PANEL * inputs + PANEL_GAP / i64(sizeof(W)); }

SPIKING_FN i64 used_width(i64 panel, i64 outputs) { return smaller(PANEL, outputs - panel * PANEL); }
SPIKING_FN i64 padded_width(i64 used) { return (used + LANES - 1) / LANES * LANES; }

// body(first, last) over equal shares of [0, items).
template <class Body>
void shared_out(i64 items, int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1 && items > 1) {
#pragma omp parallel num_threads(threads)
        {
            const i64 team = omp_get_num_threads(), self = omp_get_thread_num();
            body(items * self / team, items * (self + 1) / team);
        }
        return;
    }
#endif
    (void)threads;
    body(i64(0), items);
}

// Which of the threads of shared_out this is.
SPIKING_FN i64 thread_of(int threads) {
#ifdef _OPENMP
    return threads > 1 ? omp_get_thread_num() : 0;
#else
    (void)threads;
    return 0;
#endif
}

// --- lists ------------------------------------------------------------------------------------------------------------------------

template <class W>
i64 count_rows(const EventCall& p) {
    const i64 words = (p.inputs + 63) / 64, whole = p.inputs / 64;
    const W* x = static_cast<const W*>(p.x);
    const auto word = [&](i64 at) { return spike_word(x + at / whole * p.x_stride + at % whole * 64); };
    if (looks_busy(whole * p.rows, double(p.rows) * double(p.inputs), p.limit, word)) return -1;
    i64 total = 0;
    int other = 0;
    shared_out(p.rows, p.threads, [&](i64 first, i64 last) {
        for (i64 r = first; r < last; ++r) {
            if (__atomic_load_n(&total, __ATOMIC_RELAXED) > p.limit) return;
            const Spikes spikes = pack_nonzeros(x + r * p.x_stride, p.inputs, p.bits + r * words);
            p.counts[r] = spikes.count;
            if (!spikes.ones) __atomic_store_n(&other, 1, __ATOMIC_RELAXED);
            __atomic_fetch_add(&total, spikes.count, __ATOMIC_RELAXED);
        }
        if (!p.per_input) return;
        int* per_input = p.per_input + thread_of(p.threads) * p.inputs;
        for (i64 r = first; r < last; r += 255) add_columns(p.bits + r * words, smaller(255, last - r), p.inputs, per_input);
    });
    return total > p.limit ? -1 : total * 2 + (other ? 0 : 1);
}

// A list is written in whole vectors and runs over its end: into lists after it, which are written later, except where they belong to
// another thread. So what could reach the end of a share is written number by number.
void list_rows(const u64* bits, i64 words, i64 n, const i64* offsets, u32* lists, i64 rows, int threads) {
    shared_out(rows, threads, [&](i64 first, i64 last) {
        for (i64 r = first; r < last; ++r) {
            const u64* row = bits + r * words;
            u32* out = lists + offsets[r];
            if (offsets[r + 1] + LIST_SLACK <= offsets[last]) {
                expand_bits(row, n, out);
                continue;
            }
            for (i64 w = 0; w < words; ++w)
                for (u64 word = row[w]; word; word &= word - 1) *out++ = u32(64 * w) + u32(__builtin_ctzll(word));
        }
    });
}

// --- forward ----------------------------------------------------------------------------------------------------------------------

template <class W>
void forward_share(const EventCall& p, i64 first, i64 last) {
    using Sum = typename Kind<W>::Sum;
    alignas(64) Sum start[PANEL], out[PANEL];
    const bool ones = p.x == nullptr;
    for (i64 unit = first; unit < last;) {           // a unit is one row of one panel
        const i64 panel = unit / p.rows, row = unit % p.rows, stop = smaller(p.rows, row + last - unit);
        const i64 used = used_width(panel, p.outputs), width = padded_width(used);
        const W* weights = static_cast<const W*>(p.panels) + panel * panel_stride<W>(p.inputs);
        const W* bias = static_cast<const W*>(p.bias) + panel * PANEL;
        for (i64 k = 0; k < width; ++k) start[k] = p.bias && k < used ? widened(bias[k]) : Sum(0);
        const Gather<W> run = gather_of<W>(width, ones, p.rows <= FEW_ROWS);
        for (i64 r = row; r < stop; ++r) {
            const W* x = ones ? nullptr : static_cast<const W*>(p.x) + r * p.x_stride;
            W* y = static_cast<W*>(p.y) + r * p.outputs + panel * PANEL;
            const bool direct = sizeof(W) == sizeof(Sum) && used == width;
            run(weights, p.lists + p.offsets[r], p.offsets[r + 1] - p.offsets[r], x, 1, start, direct ? reinterpret_cast<Sum*>(y) : out);
            if (!direct)
                for (i64 k = 0; k < used; ++k) narrowed(out[k], y[k]);
        }
        unit += stop - row;
    }
}

template <class W>
void forward_all(const EventCall& p) {
    shared_out(panels_of(p.outputs) * p.rows, p.threads, [&](i64 first, i64 last) { forward_share<W>(p, first, last); });
}

// --- panels -----------------------------------------------------------------------------------------------------------------------

template <class W>
bool pack_panels(const PanelCall& p) {
    using Sum = typename Kind<W>::Sum;
    const i64 blocks = (p.inputs + LANES - 1) / LANES;
    int finite = 1;
    shared_out(panels_of(p.outputs) * blocks, p.threads, [&](i64 first, i64 last) {
        Sum odd = 0;                                 // stays 0: v - v is 0 unless v is infinite or NaN
        for (i64 unit = first; unit < last; ++unit) {
            const i64 panel = unit / blocks, k = unit % blocks * LANES, n = smaller(LANES, p.inputs - k);
            const i64 used = used_width(panel, p.outputs), width = padded_width(used);
            const W* from = static_cast<const W*>(p.weight) + panel * PANEL * p.row_stride + k * p.column_stride;
            W* to = static_cast<W*>(p.panels) + panel * panel_stride<W>(p.inputs) + k * width;
            if (p.row_stride == 1) {
                for (i64 i = 0; i < n; ++i)
                    for (i64 j = 0; j < used; ++j) {
                        const W v = from[i * p.column_stride + j];
                        odd += widened(v) - widened(v);
                        to[i * width + j] = v;
                    }
            } else {
                for (i64 j = 0; j < used; ++j)
                    for (i64 i = 0; i < n; ++i) {
                        const W v = from[j * p.row_stride + i * p.column_stride];
                        odd += widened(v) - widened(v);
                        to[i * width + j] = v;
                    }
            }
            for (i64 i = 0; i < n; ++i)
                for (i64 j = used; j < width; ++j) to[i * width + j] = W{};
        }
        if (!(odd == Sum(0))) __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
    });
    return finite != 0;
}

// --- weight gradient --------------------------------------------------------------------------------------------------------------

// Bit c of word r becomes bit r of word c (Warren 2002, Hacker's Delight, section 7-3).
SPIKING_FN void transpose_bits(u64* a) {
    u64 mask = 0x00000000ffffffffull;
    for (int j = 32; j; j >>= 1, mask ^= mask << j)
        for (int base = 0; base < 64; base += 2 * j)
            for (int k = base; k < base + j; ++k) {
                const u64 swap = ((a[k] >> j) ^ a[k + j]) & mask;
                a[k] ^= swap << j;
                a[k + j] ^= swap;
            }
}

void turn(const WeightGradCall& p) {
    const i64 words = (p.inputs + 63) / 64, deep = (p.rows + 63) / 64;
    shared_out(words, p.threads, [&](i64 first, i64 last) {
        for (i64 w = first; w < last; ++w) {
            const i64 n = smaller(64, p.inputs - 64 * w);
            for (i64 k = 0; k < n; ++k) p.counts[64 * w + k] = 0;
            for (i64 d = 0; d < deep; ++d) {
                u64 block[64] = {}, any = 0;
                const i64 high = smaller(64, p.rows - 64 * d);
                for (i64 r = 0; r < high; ++r) any |= block[r] = p.bits[(64 * d + r) * words + w];
                if (any) transpose_bits(block);
                for (i64 k = 0; k < n; ++k) {
                    p.turned[(64 * w + k) * deep + d] = block[k];
                    p.counts[64 * w + k] += __builtin_popcountll(block[k]);
                }
            }
        }
    });
}

// Columns of grad_y side by side, as many as are gathered at once: their own stride may be a power of two, and few sets of a cache hold it.
// Returns whether all are finite.
template <class W>
bool pack_grads(const WeightGradCall& p, i64 panel, W* to) {
    using Sum = typename Kind<W>::Sum;
    const i64 used = used_width(panel, p.outputs), width = padded_width(used), step = p.column_stride;
    const W* from = static_cast<const W*>(p.grad_y) + panel * PANEL * step;
    Sum odd[PANEL] = {}, total = 0;                  // stays 0: v - v is 0 unless v is infinite or NaN
    for (i64 r = 0; r < p.rows; ++r, from += p.row_stride, to += width) {
        if (step == 1 && used == PANEL) {
            for (i64 j = 0; j < PANEL; ++j) odd[j] += widened(from[j]) - widened(from[j]);
            __builtin_memcpy(to, from, PANEL * sizeof(W));
            continue;
        }
        for (i64 j = 0; j < used; ++j) odd[j] += widened(from[j * step]) - widened(from[j * step]), to[j] = from[j * step];
        for (i64 j = used; j < width; ++j) to[j] = W{};
    }
    for (i64 j = 0; j < PANEL; ++j) total += odd[j];
    return total == Sum(0);
}

template <class W>
bool weight_grad_all(const WeightGradCall& p) {
    using Sum = typename Kind<W>::Sum;
    int finite = 1;
    const i64 blocks = (p.inputs + LANES - 1) / LANES;
    shared_out(panels_of(p.outputs) * blocks, p.threads, [&](i64 first, i64 last) {
        alignas(64) Sum zero[PANEL] = {}, out[LANES][PANEL];
        W* grads = static_cast<W*>(p.panels) + thread_of(p.threads) * p.rows * PANEL;
        i64 packed = -1;
        for (i64 unit = first; unit < last; ++unit) {
            const i64 panel = unit / blocks, k = unit % blocks * LANES, n = smaller(LANES, p.inputs - k);
            const i64 used = used_width(panel, p.outputs), width = padded_width(used);
            if (panel != packed && !pack_grads(p, packed = panel, grads)) {
                __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
                return;
            }
            const Gather<W> run = gather_of<W>(width, p.x == nullptr, false);
            for (i64 i = 0; i < n; ++i) {
                const W* x = p.x ? static_cast<const W*>(p.x) + k + i : nullptr;
                run(grads, p.lists + p.offsets[k + i], p.offsets[k + i + 1] - p.offsets[k + i], x, p.x_stride, zero, out[i]);
            }
            W* to = static_cast<W*>(p.grad_weight) + panel * PANEL * p.inputs + k;
            for (i64 j = 0; j < used; ++j)
                for (i64 i = 0; i < n; ++i) narrowed(out[i][j], to[j * p.inputs + i]);
        }
    });
    return finite != 0;
}

// --- input gradient ---------------------------------------------------------------------------------------------------------------

constexpr i64 DOTS = 8;        // products that share each load of grad_y

// The neurons 64·w … of a row whose derivative may be other than 0, as bits. Where rounding leaves a doubt, and for NaN, it may.
template <class T>
SPIKING_FN u64 free_word(const T* row, i64 n, T threshold, T reach) {
    u64 word = 0;
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        if (n >= 64) {
            for (int k = 0; k < 4; ++k) {
                const __m512 u = _mm512_abs_ps(_mm512_sub_ps(_mm512_loadu_ps(row + 16 * k), _mm512_set1_ps(threshold)));
                word |= u64(_mm512_cmp_ps_mask(u, _mm512_set1_ps(reach), _CMP_NGE_UQ)) << (16 * k);
            }
            return word;
        }
#endif
    for (i64 k = 0; k < smaller(n, 64); ++k) {
        const T u = row[k] - threshold, size = u < T(0) ? -u : u;
        word |= u64(!(size >= reach)) << k;
    }
    return word;
}

SPIKING_FN u64 free_word(const u16* row, i64 n, u16 reach) {
    u64 word = 0;
    for (i64 k = 0; k < smaller(n, 64); ++k) {
        const u32 size = row[k] & 0x7fffu;
        word |= u64(size <= reach || size > 0x7c00u) << k;
    }
    return word;
}

template <class Sum>
SPIKING_FN u64 free_word(const InputGradCall& p, i64 row, i64 w) {
    const i64 at = row * p.inputs + 64 * w, n = p.inputs - 64 * w;
    if (!p.codes) return free_word(static_cast<const Sum*>(p.membrane) + at, n, Sum(p.threshold), Sum(p.reach * 1.000001));
    return free_word(static_cast<const u16*>(p.membrane) + at, n, narrow_f16(float(p.reach * 1.002)).raw);
}

template <class Sum>
double free_share(const InputGradCall& p) {
    const i64 words = (p.inputs + 63) / 64, all = words * p.rows, probes = smaller(all, 64);
    i64 found = 0, seen = 0;
    for (i64 i = 0; i < probes; ++i) {
        const i64 at = all * i / probes, row = at / words, w = at % words;
        found += __builtin_popcountll(free_word<Sum>(p, row, w));
        seen += smaller(64, p.inputs - 64 * w);
    }
    return double(found) / double(seen);
}

template <class W>
__attribute__((noinline)) void dots(const InputGradCall& p, const typename Kind<W>::Sum* grads, const u32* list, W* row) {
    using Vector = typename Kind<W>::Vector;
    using Sum = typename Kind<W>::Sum;
    Vector sum[DOTS] = {};
    for (i64 panel = 0; panel < panels_of(p.outputs); ++panel) {
        const i64 width = padded_width(used_width(panel, p.outputs));
        const W* weights = static_cast<const W*>(p.panels) + panel * panel_stride<W>(p.inputs);
        for (i64 v = 0; v < width; v += LANES) {
            Vector g;
            load(grads + panel * PANEL + v, g);
            for (i64 j = 0; j < DOTS; ++j) {
                Vector w;
                load(weights + i64(list[j]) * width + v, w);
                sum[j] += w * g;
            }
        }
    }
    for (i64 j = 0; j < DOTS; ++j) {
        Sum parts[LANES];
        __builtin_memcpy(parts, &sum[j], sizeof(parts));
        for (i64 half = LANES / 2; half; half /= 2)
            for (i64 l = 0; l < half; ++l) parts[l] += parts[l + half];
        narrowed(parts[0], row[list[j]]);
    }
}

template <class W>
bool input_grad_all(const InputGradCall& p) {
    using Sum = typename Kind<W>::Sum;
    if (free_share<Sum>(p) > p.most) return false;
    const i64 words = (p.inputs + 63) / 64, padded = padded_width(p.outputs);
    shared_out(p.rows, p.threads, [&](i64 first, i64 last) {
        const i64 self = thread_of(p.threads);
        u32* list = p.lists + self * (p.inputs + LIST_SLACK);
        Sum* grads = static_cast<Sum*>(p.grads) + self * padded;
        for (i64 k = p.outputs; k < padded; ++k) grads[k] = Sum(0);
        for (i64 r = first; r < last; ++r) {
            u32* end = list;
            for (i64 w = 0; w < words; ++w) end = append_word(free_word<Sum>(p, r, w), u32(64 * w), end);
            const W* from = static_cast<const W*>(p.grad_y) + r * p.outputs;
            for (i64 k = 0; k < p.outputs; ++k) grads[k] = widened(from[k]);
            W* row = static_cast<W*>(p.grad_x) + r * p.inputs;
            for (i64 k = 0; k < p.inputs; ++k) row[k] = W{};
            const i64 n = i64(end - list);
            for (i64 i = n; i < (n + DOTS - 1) / DOTS * DOTS; ++i) list[i] = list[n - 1];  // the last products are made more than once
            for (i64 i = 0; i < n; i += DOTS) dots<W>(p, grads, list + i, row);
        }
    });
    return true;
}

// --- table ------------------------------------------------------------------------------------------------------------------------

template <class W>
i64 items_of(i64 inputs, i64 outputs) {
    const i64 last = panels_of(outputs) - 1;
    return last * panel_stride<W>(inputs) + padded_width(used_width(last, outputs)) * inputs;
}

long long panel_items(long long inputs, long long outputs, int dtype) {
    if (dtype == 0) return items_of<float>(inputs, outputs);
    return dtype == 1 ? items_of<double>(inputs, outputs) : items_of<bf16>(inputs, outputs);
}

long long count(const EventCall& p) {
    return p.dtype == 0 ? count_rows<float>(p) : p.dtype == 1 ? count_rows<double>(p) : count_rows<bf16>(p);
}

void list(const EventCall& p) {
    list_rows(p.bits, (p.inputs + 63) / 64, p.inputs, p.offsets, p.lists, p.rows, p.threads);
}

void forward(const EventCall& p) {
    if (p.dtype == 0) forward_all<float>(p);
    else if (p.dtype == 1) forward_all<double>(p);
    else forward_all<bf16>(p);
}

bool pack(const PanelCall& p) {
    return p.dtype == 0 ? pack_panels<float>(p) : p.dtype == 1 ? pack_panels<double>(p) : pack_panels<bf16>(p);
}

void turned_list(const WeightGradCall& p) {
    list_rows(p.turned, (p.rows + 63) / 64, p.rows, p.offsets, p.lists, p.inputs, p.threads);
}

bool weight_grad(const WeightGradCall& p) {
    return p.dtype == 0 ? weight_grad_all<float>(p) : p.dtype == 1 ? weight_grad_all<double>(p) : weight_grad_all<bf16>(p);
}

bool input_grad(const InputGradCall& p) {
    return p.dtype == 0 ? input_grad_all<float>(p) : p.dtype == 1 ? input_grad_all<double>(p) : input_grad_all<bf16>(p);
}

}  // namespace

extern const EventTable event_table;
const EventTable event_table{panel_items, count, list, forward, pack, turn, turned_list, weight_grad, input_grad};

}  // namespace SPIKING_NS
