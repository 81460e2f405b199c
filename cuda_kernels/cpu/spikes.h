// Rows of spikes in one pass: lists of active indices, bits, counts. A spike is any value that is not zero (NaN and infinity are; -0 is not).
// Everything is built on words of 64 neurons, so that lists and bits cannot disagree; bit k of word w stands for neuron 64·w + k.
#pragma once
#include "portable.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace SPIKING_NS {

constexpr i64 LIST_SLACK = 16;  // list_nonzeros and expand_bits write whole vectors: room for this many more entries than neurons

struct Spikes {
    i64 count;
    bool ones;                  // every spike is exactly 1 (also true of no spikes at all)
};

struct SpikeWord { u64 active, ones; };

#if defined(__AVX512F__) && defined(__AVX512BW__)

SPIKING_FN SpikeWord spike_word(const float* at) {
    u64 active = 0, ones = 0;
    for (int k = 0; k < 4; ++k) {
        const __m512 v = _mm512_loadu_ps(at + 16 * k);
        active |= u64(_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ)) << (16 * k);
        ones |= u64(_mm512_cmp_ps_mask(v, _mm512_set1_ps(1.0f), _CMP_EQ_OQ)) << (16 * k);
    }
    return {active, ones};
}

SPIKING_FN SpikeWord spike_word(const double* at) {
    u64 active = 0, ones = 0;
    for (int k = 0; k < 8; ++k) {
        const __m512d v = _mm512_loadu_pd(at + 8 * k);
        active |= u64(_mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_NEQ_UQ)) << (8 * k);
        ones |= u64(_mm512_cmp_pd_mask(v, _mm512_set1_pd(1.0), _CMP_EQ_OQ)) << (8 * k);
    }
    return {active, ones};
}

SPIKING_FN SpikeWord spike_word_16(const u16* at, u16 one) {
    u64 active = 0, ones = 0;
    for (int k = 0; k < 2; ++k) {
        const __m512i v = _mm512_loadu_si512(at + 32 * k);
        active |= u64(_mm512_test_epi16_mask(v, _mm512_set1_epi16(0x7fff))) << (32 * k);
        ones |= u64(_mm512_cmpeq_epi16_mask(v, _mm512_set1_epi16(short(one)))) << (32 * k);
    }
    return {active, ones};
}

#elif defined(__SSE2__)

SPIKING_FN SpikeWord spike_word(const float* at) {
    u64 active = 0, ones = 0;
    for (int k = 0; k < 16; ++k) {
        const __m128 v = _mm_loadu_ps(at + 4 * k);
        active |= u64(_mm_movemask_ps(_mm_cmpneq_ps(v, _mm_setzero_ps()))) << (4 * k);
        ones |= u64(_mm_movemask_ps(_mm_cmpeq_ps(v, _mm_set1_ps(1.0f)))) << (4 * k);
    }
    return {active, ones};
}

SPIKING_FN SpikeWord spike_word(const double* at) {
    u64 active = 0, ones = 0;
    for (int k = 0; k < 32; ++k) {
        const __m128d v = _mm_loadu_pd(at + 2 * k);
        active |= u64(_mm_movemask_pd(_mm_cmpneq_pd(v, _mm_setzero_pd()))) << (2 * k);
        ones |= u64(_mm_movemask_pd(_mm_cmpeq_pd(v, _mm_set1_pd(1.0)))) << (2 * k);
    }
    return {active, ones};
}

SPIKING_FN SpikeWord spike_word_16(const u16* at, u16 one) {
    u64 silent = 0, ones = 0;
    const __m128i magnitude = _mm_set1_epi16(0x7fff), unit = _mm_set1_epi16(short(one));
    for (int k = 0; k < 4; ++k) {
        const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 16 * k));
        const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 16 * k + 8));
        const __m128i za = _mm_cmpeq_epi16(_mm_and_si128(a, magnitude), _mm_setzero_si128());
        const __m128i zb = _mm_cmpeq_epi16(_mm_and_si128(b, magnitude), _mm_setzero_si128());
        silent |= u64(_mm_movemask_epi8(_mm_packs_epi16(za, zb))) << (16 * k);
        ones |= u64(_mm_movemask_epi8(_mm_packs_epi16(_mm_cmpeq_epi16(a, unit), _mm_cmpeq_epi16(b, unit)))) << (16 * k);
    }
    return {~silent, ones};
}

#else

template <class T>
SPIKING_FN SpikeWord spike_word(const T* at) {
    u64 active = 0, ones = 0;
    for (int k = 0; k < 64; ++k) active |= u64(at[k] != T(0)) << k, ones |= u64(at[k] == T(1)) << k;
    return {active, ones};
}

SPIKING_FN SpikeWord spike_word_16(const u16* at, u16 one) {
    u64 active = 0, ones = 0;
    for (int k = 0; k < 64; ++k) active |= u64((at[k] & 0x7fff) != 0) << k, ones |= u64(at[k] == one) << k;
    return {active, ones};
}

#endif

SPIKING_FN SpikeWord spike_word(const bf16* at) { return spike_word_16(&at->raw, 0x3f80); }
SPIKING_FN SpikeWord spike_word(const f16* at) { return spike_word_16(&at->raw, 0x3c00); }

// The last, cut word of a row; what lies beyond n is silent.
template <class T>
SPIKING_FN SpikeWord spike_word_cut(const T* at, i64 n) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    if constexpr (sizeof(T) == 4) {
        u64 active = 0, ones = 0;
        for (i64 k = 0; k < n; k += 16) {
            const __mmask16 there = n - k >= 16 ? __mmask16(0xffff) : __mmask16((1u << (n - k)) - 1u);
            const __m512 v = _mm512_maskz_loadu_ps(there, at + k);
            active |= u64(_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ)) << k;
            ones |= u64(_mm512_cmp_ps_mask(v, _mm512_set1_ps(1.0f), _CMP_EQ_OQ)) << k;
        }
        return {active, ones};
    }
#endif
    T whole[64] = {};
    __builtin_memcpy(whole, at, u64(n) * sizeof(T));
    return spike_word(whole);
}

template <class T>
SPIKING_FN SpikeWord spike_word_of(const T* row, i64 at, i64 n) {
    return n - at >= 64 ? spike_word(row + at) : spike_word_cut(row + at, n - at);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
struct Positions { u64 of[256]; };  // the set bits of a byte, one byte each, lowest first

constexpr Positions positions_of_bytes() {
    Positions table{};
    for (int byte = 0; byte < 256; ++byte) {
        int found = 0;
        for (int bit = 0; bit < 8; ++bit)
            if (byte >> bit & 1) table.of[byte] |= u64(bit) << (8 * found++);
    }
    return table;
}

constexpr Positions POSITIONS = positions_of_bytes();
#endif

// Appends base + k for every bit k of a word; returns where the next entry goes.
SPIKING_FN u32* append_word(u64 active, u32 base, u32* out) {
    if (active == 0) return out;
#if defined(__AVX512F__)
    const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int k = 0; k < 4; ++k) {   // compressed in a register: compressing into memory is microcoded on Zen 4
        const __mmask16 mask = __mmask16(active >> (16 * k));
        const __m512i index = _mm512_add_epi32(iota, _mm512_set1_epi32(int(base + 16u * u32(k))));
        _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(mask, index));
        out += __builtin_popcount(mask);
    }
#elif defined(__AVX2__)
    for (int k = 0; k < 8; ++k) {
        const u32 byte = u32(active >> (8 * k)) & 255u;
        const __m256i index = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(POSITIONS.of[byte])));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_add_epi32(index, _mm256_set1_epi32(int(base + 8u * u32(k)))));
        out += __builtin_popcount(byte);
    }
#else
    for (; active; active &= active - 1) *out++ = base + u32(__builtin_ctzll(active));
#endif
    return out;
}

// Indices of the spikes of row [n], ascending, into out [n + LIST_SLACK].
template <class T>
SPIKING_FN Spikes list_nonzeros(const T* row, i64 n, u32* out) {
    const u32* start = out;
    u64 other = 0;
    for (i64 at = 0; at < n; at += 64) {
        const SpikeWord word = spike_word_of(row, at, n);
        other |= word.active ^ word.ones;
        out = append_word(word.active, u32(at), out);
    }
    return {i64(out - start), other == 0};
}

// Spikes of row [n] as bits, into words [(n + 63) / 64]; bits beyond n are 0.
template <class T>
SPIKING_FN Spikes pack_nonzeros(const T* row, i64 n, u64* words) {
    i64 count = 0;
    u64 other = 0;
    for (i64 at = 0; at < n; at += 64) {
        const SpikeWord word = spike_word_of(row, at, n);
        other |= word.active ^ word.ones;
        words[at / 64] = word.active;
        count += __builtin_popcountll(word.active);
    }
    return {count, other == 0};
}

// Indices of the set bits of words [(n + 63) / 64], ascending, into out [n + LIST_SLACK]; returns their number.
SPIKING_FN i64 expand_bits(const u64* words, i64 n, u32* out) {
    const u32* start = out;
    for (i64 at = 0; at < n; at += 64) out = append_word(words[at / 64], u32(at), out);
    return i64(out - start);
}

// counts [n] += how often each bit is set in rows of words [rows, (n + 63) / 64], for at most 255 rows.
SPIKING_FN void add_columns(const u64* words, i64 rows, i64 n, int* counts) {
    const i64 wide = (n + 63) / 64;
    for (i64 w = 0; w < wide; ++w) {
        const i64 used = n - 64 * w < 64 ? n - 64 * w : 64;
        alignas(64) unsigned char found[64] = {};
#if defined(__AVX512BW__)
        __m512i sums = _mm512_setzero_si512();
        for (i64 r = 0; r < rows; ++r) sums = _mm512_mask_add_epi8(sums, words[r * wide + w], sums, _mm512_set1_epi8(1));
        _mm512_store_si512(found, sums);
#else
        for (i64 r = 0; r < rows; ++r)
            for (u64 word = words[r * wide + w]; word; word &= word - 1) ++found[__builtin_ctzll(word)];
#endif
        for (i64 k = 0; k < used; ++k) counts[64 * w + k] += found[k];
    }
}

template <class T>
SPIKING_FN i64 count_nonzeros(const T* row, i64 n) {
    i64 count = 0;
    for (i64 at = 0; at < n; at += 64) count += __builtin_popcountll(spike_word_of(row, at, n).active);
    return count;
}

constexpr i64 PROBES = 32;

// Whether a few of `words`, scattered, already say that `numbers` of them hold more spikes than the limit: then they need not be read.
template <class Word>
SPIKING_FN bool looks_busy(i64 words, double numbers, i64 limit, const Word& word) {
    const i64 step = words / PROBES;
    if (step < 4) return false;
    i64 found = 0;
    for (i64 i = 0; i < PROBES; ++i) found += __builtin_popcountll(word(i * step + i * 7919 % step).active);
    return double(found) / double(PROBES * 64) * numbers > double(limit);
}

}  // namespace SPIKING_NS
