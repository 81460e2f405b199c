// Sums of the rows of a panel of weights that a list names: what a linear layer computes from spikes.
#pragma once
#include "portable.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace SPIKING_NS {

constexpr i64 PANEL = 64;      // columns that are summed in registers: four vectors of 16
constexpr i64 LANES = 16;
constexpr i64 AHEAD = 8;       // spikes between a prefetch and its use; measured on 64 MB of weights

using f32x16 = float __attribute__((vector_size(64)));
using f64x16 = double __attribute__((vector_size(128)));
using u16x16 = u16 __attribute__((vector_size(32)));
using u32x16 = u32 __attribute__((vector_size(64)));

template <class W> struct Summed { using Sum = float; using Vector = f32x16; };  // what weights of type W are summed in
template <> struct Summed<double> { using Sum = double; using Vector = f64x16; };

SPIKING_FN float widened(float v) { return v; }
SPIKING_FN double widened(double v) { return v; }
SPIKING_FN float widened(bf16 v) { return widen(v); }
SPIKING_FN void narrowed(float v, float& to) { to = v; }
SPIKING_FN void narrowed(double v, double& to) { to = v; }
SPIKING_FN void narrowed(float v, bf16& to) { to = narrow_bf16(v); }

template <class W>
SPIKING_FN void load(const W* from, typename Summed<W>::Vector& to) {
    if constexpr (sizeof(W) == 2) {
        u16x16 raw;
        __builtin_memcpy(&raw, from, sizeof(raw));
        const u32x16 wide = __builtin_convertvector(raw, u32x16) << 16;
        __builtin_memcpy(&to, &wide, sizeof(to));
    } else {
        __builtin_memcpy(&to, from, sizeof(to));
    }
}

// sum += w·x, rounded once where the level can.
#if defined(__AVX512F__)
SPIKING_FN void fused(const f32x16& w, float x, f32x16& sum) { sum = f32x16(_mm512_fmadd_ps(__m512(w), _mm512_set1_ps(x), __m512(sum))); }
SPIKING_FN void fused(const f64x16& w, double x, f64x16& sum) {
    __m512d sums[2], weights[2];
    __builtin_memcpy(sums, &sum, sizeof(sum));
    __builtin_memcpy(weights, &w, sizeof(w));
    for (int k = 0; k < 2; ++k) sums[k] = _mm512_fmadd_pd(weights[k], _mm512_set1_pd(x), sums[k]);
    __builtin_memcpy(&sum, sums, sizeof(sum));
}
#elif defined(__FMA__)
SPIKING_FN void fused(const f32x16& w, float x, f32x16& sum) {
    __m256 sums[2], weights[2];
    __builtin_memcpy(sums, &sum, sizeof(sum));
    __builtin_memcpy(weights, &w, sizeof(w));
    for (int k = 0; k < 2; ++k) sums[k] = _mm256_fmadd_ps(weights[k], _mm256_set1_ps(x), sums[k]);
    __builtin_memcpy(&sum, sums, sizeof(sum));
}
SPIKING_FN void fused(const f64x16& w, double x, f64x16& sum) {
    __m256d sums[4], weights[4];
    __builtin_memcpy(sums, &sum, sizeof(sum));
    __builtin_memcpy(weights, &w, sizeof(w));
    for (int k = 0; k < 4; ++k) sums[k] = _mm256_fmadd_pd(weights[k], _mm256_set1_pd(x), sums[k]);
    __builtin_memcpy(&sum, sums, sizeof(sum));
}
#else
SPIKING_FN void fused(const f32x16& w, float x, f32x16& sum) { sum += w * x; }
SPIKING_FN void fused(const f64x16& w, double x, f64x16& sum) { sum += w * x; }
#endif

// out [16·NV] = start + Σ over the list of x[index·x_step] · panel[index, :]; x is 1 where `ones`.
template <class W, int NV, bool ones, bool ahead>
__attribute__((noinline)) void gather(const W* panel, const u32* list, i64 n, const W* x, i64 x_step,
                                      const typename Summed<W>::Sum* start, typename Summed<W>::Sum* out) {
    using Vector = typename Summed<W>::Vector;
    constexpr i64 width = NV * LANES;
    Vector sum[NV];
    for (int v = 0; v < NV; ++v) __builtin_memcpy(&sum[v], start + v * LANES, sizeof(Vector));
    for (i64 i = 0; i < n; ++i) {
        if constexpr (ahead)
            if (i + AHEAD < n) {
                const char* next = reinterpret_cast<const char*>(panel + i64(list[i + AHEAD]) * width);
                for (i64 at = 0; at < width * i64(sizeof(W)); at += 64) __builtin_prefetch(next + at, 0, 3);
            }
        const i64 index = i64(list[i]);
        const W* row = panel + index * width;
        if constexpr (ones) {
            for (int v = 0; v < NV; ++v) {
                Vector w;
                load(row + v * LANES, w);
                sum[v] += w;
            }
        } else {
            const typename Summed<W>::Sum value = widened(x[index * x_step]);
            for (int v = 0; v < NV; ++v) {
                Vector w;
                load(row + v * LANES, w);
                fused(w, value, sum[v]);
            }
        }
    }
    for (int v = 0; v < NV; ++v) __builtin_memcpy(out + v * LANES, &sum[v], sizeof(Vector));
}

template <class W>
using Gather = void (*)(const W*, const u32*, i64, const W*, i64, const typename Summed<W>::Sum*, typename Summed<W>::Sum*);

template <class W, bool ones, bool ahead>
Gather<W> gather_of(i64 width) {
    if (width == 16) return gather<W, 1, ones, ahead>;
    if (width == 32) return gather<W, 2, ones, ahead>;
    if (width == 48) return gather<W, 3, ones, ahead>;
    return gather<W, 4, ones, ahead>;
}

template <class W>
Gather<W> gather_of(i64 width, bool ones, bool ahead) {
    if (ahead) return ones ? gather_of<W, true, true>(width) : gather_of<W, false, true>(width);
    return ones ? gather_of<W, true, false>(width) : gather_of<W, false, false>(width);
}

}  // namespace SPIKING_NS
