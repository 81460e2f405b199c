// A vector of floats with the operators that include/neuron.h and include/surrogate.h use, so that one source also runs with the membrane
// held in a register over several time steps. Only where the instruction set has one (WIDE is 0 elsewhere).
#pragma once
#include "portable.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace SPIKING_NS {

#if defined(__AVX512F__)
#define SPIKING_WIDE 16
#define SPIKING_OP(name, ...) _mm512_##name##_ps(__VA_ARGS__)
using Lanes = __m512;
using Mask = __mmask16;
SPIKING_FN Mask compare_ge(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
SPIKING_FN Mask compare_gt(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
SPIKING_FN Mask compare_eq(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
SPIKING_FN Lanes choose(Mask c, Lanes a, Lanes b) { return _mm512_mask_blend_ps(c, b, a); }
#elif defined(__AVX2__)
#define SPIKING_WIDE 8
#define SPIKING_OP(name, ...) _mm256_##name##_ps(__VA_ARGS__)
using Lanes = __m256;
struct Mask { __m256 raw; };
SPIKING_FN Mask compare_ge(Lanes a, Lanes b) { return {_mm256_cmp_ps(a, b, _CMP_GE_OQ)}; }
SPIKING_FN Mask compare_gt(Lanes a, Lanes b) { return {_mm256_cmp_ps(a, b, _CMP_GT_OQ)}; }
SPIKING_FN Mask compare_eq(Lanes a, Lanes b) { return {_mm256_cmp_ps(a, b, _CMP_EQ_OQ)}; }
SPIKING_FN Lanes choose(Mask c, Lanes a, Lanes b) { return _mm256_blendv_ps(b, a, c.raw); }
#elif defined(__SSE4_1__)
#define SPIKING_WIDE 4
#define SPIKING_OP(name, ...) _mm_##name##_ps(__VA_ARGS__)
using Lanes = __m128;
struct Mask { __m128 raw; };
SPIKING_FN Mask compare_ge(Lanes a, Lanes b) { return {_mm_cmpge_ps(a, b)}; }
SPIKING_FN Mask compare_gt(Lanes a, Lanes b) { return {_mm_cmpgt_ps(a, b)}; }
SPIKING_FN Mask compare_eq(Lanes a, Lanes b) { return {_mm_cmpeq_ps(a, b)}; }
SPIKING_FN Lanes choose(Mask c, Lanes a, Lanes b) { return _mm_blendv_ps(b, a, c.raw); }
#else
#define SPIKING_WIDE 0
#endif

#if SPIKING_WIDE
struct Wide {
    Lanes raw;
    Wide() = default;
    SPIKING_FN Wide(Lanes from) : raw(from) {}
    SPIKING_FN explicit Wide(float from) : raw(SPIKING_OP(set1, from)) {}
    SPIKING_FN explicit Wide(double from) : raw(SPIKING_OP(set1, float(from))) {}
    SPIKING_FN explicit Wide(int from) : raw(SPIKING_OP(set1, float(from))) {}
};

SPIKING_FN Wide operator+(Wide a, Wide b) { return SPIKING_OP(add, a.raw, b.raw); }
SPIKING_FN Wide operator-(Wide a, Wide b) { return SPIKING_OP(sub, a.raw, b.raw); }
SPIKING_FN Wide operator*(Wide a, Wide b) { return SPIKING_OP(mul, a.raw, b.raw); }
SPIKING_FN Wide operator/(Wide a, Wide b) { return SPIKING_OP(div, a.raw, b.raw); }
SPIKING_FN Wide& operator+=(Wide& a, Wide b) { return a = a + b; }
SPIKING_FN Wide& operator-=(Wide& a, Wide b) { return a = a - b; }
SPIKING_FN Wide operator-(Wide a) { return Wide(-0.0f) - a; }
SPIKING_FN Mask operator>=(Wide a, Wide b) { return compare_ge(a.raw, b.raw); }
SPIKING_FN Mask operator>(Wide a, Wide b) { return compare_gt(a.raw, b.raw); }
SPIKING_FN Mask operator<(Wide a, Wide b) { return compare_gt(b.raw, a.raw); }
SPIKING_FN Mask operator==(Wide a, Wide b) { return compare_eq(a.raw, b.raw); }
SPIKING_FN Wide select(Mask c, Wide a, Wide b) { return choose(c, a.raw, b.raw); }

SPIKING_FN Wide load_wide(const float* from) { return SPIKING_OP(loadu, from); }
SPIKING_FN void store_wide(float* to, Wide v) { SPIKING_OP(storeu, to, v.raw); }
SPIKING_FN void stream_wide(float* to, Wide v) { SPIKING_OP(stream, to, v.raw); }
#endif

}  // namespace SPIKING_NS
