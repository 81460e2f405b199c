// Rows of numbers between memory and the loops of a kernel: widened, narrowed, asked for early, or written past the caches.
#pragma once
#include "saved.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace SPIKING_NS {
namespace {

// Rows are functions of their own, not inlined into each dtype's loop over time: a third of the compile time, no measurable cost.
#define SPIKING_ROW __attribute__((noinline))

template <class IO, class T>
SPIKING_ROW const T* load_row(const IO* from, T* buffer, i64 n) {
    if constexpr (sizeof(IO) == sizeof(T)) {
        (void)buffer, (void)n;
        return from;
    } else {
        for (i64 k = 0; k < n; ++k) buffer[k] = widen(from[k]);
        return buffer;
    }
}

// Writes past the caches: an ordinary store first reads the line that it overwrites, a third more traffic where memory is the floor.
SPIKING_ROW void stream_bytes(const void* from, void* to, i64 bytes) {
    const char* source = static_cast<const char*>(from);
    char* target = static_cast<char*>(to);
#if defined(__AVX512F__)
    using Wide = __m512i;
#elif defined(__AVX2__)
    using Wide = __m256i;
#elif defined(__SSE2__)
    using Wide = __m128i;
#endif
#if defined(__SSE2__)
    constexpr i64 W = sizeof(Wide);
    const i64 misfit = i64(reinterpret_cast<u64>(target) % u64(W));
    const i64 head = misfit == 0 ? 0 : (W - misfit < bytes ? W - misfit : bytes);
    __builtin_memcpy(target, source, u64(head));
    i64 at = head;
    for (; at + W <= bytes; at += W) {
        Wide line;
        __builtin_memcpy(&line, source + at, sizeof(line));
#if defined(__AVX512F__)
        _mm512_stream_si512(reinterpret_cast<Wide*>(target + at), line);
#elif defined(__AVX2__)
        _mm256_stream_si256(reinterpret_cast<Wide*>(target + at), line);
#else
        _mm_stream_si128(reinterpret_cast<Wide*>(target + at), line);
#endif
    }
    __builtin_memcpy(target + at, source + at, u64(bytes - at));
#else
    __builtin_memcpy(target, source, u64(bytes));
#endif
}

// Streamed stores are weakly ordered: they have to be out before another thread may read.
SPIKING_FN void stream_end() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// A row of one block is only a few pages: hardware prefetchers start anew at each, so the next row is asked for while this one is used.
SPIKING_FN void prefetch_row(const void* row, i64 bytes) {
    for (i64 at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(row) + at, 0, 2);
}

template <class IO, class T>
SPIKING_ROW void store_row(const T* __restrict from, IO* __restrict to, i64 n, bool stream) {
    if constexpr (sizeof(IO) == sizeof(T)) {
        if (stream) stream_bytes(from, to, n * i64(sizeof(T)));
        else __builtin_memcpy(to, from, u64(n) * sizeof(T));
    } else {
        for (i64 k = 0; k < n; ++k) narrow(from[k], to[k]);
    }
}

}  // namespace
}  // namespace SPIKING_NS
