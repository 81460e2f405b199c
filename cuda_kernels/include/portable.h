// What every kernel source shares: compiled by g++/clang++ (three instruction sets) and by NVRTC. No system headers, no allocation, no I/O.
#pragma once

#if defined(__CUDACC__)
#define SPIKING_FN __device__ __forceinline__
#else
#define SPIKING_FN inline __attribute__((always_inline))
#endif

// One namespace per instruction set: the linker must never choose a wide instantiation for a narrow machine.
#ifndef SPIKING_NS
#define SPIKING_NS spiking_base
#endif

namespace SPIKING_NS {

using i64 = long long;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

template <class To, class From>
SPIKING_FN To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
#if defined(__CUDACC__)
    union { From f; To t; } pun;
    pun.f = from;
    to = pun.t;
#else
    __builtin_memcpy(&to, &from, sizeof(to));
#endif
    return to;
}

// A choice that a vector of neurons can make too (cpu/wide.h).
template <class T> SPIKING_FN T select(bool c, T a, T b) { return c ? a : b; }

// 16-bit floats are stored as raw bits, so that one source serves machines with and without native support.
struct bf16 { u16 raw; };
struct f16 { u16 raw; };

SPIKING_FN float widen(bf16 h) { return bits<float>(u32(h.raw) << 16); }

SPIKING_FN bf16 narrow_bf16(float f) {                   // round to nearest even; a NaN stays a NaN
    const u32 x = bits<u32>(f);
    const u32 rounded = x + 0x7fffu + ((x >> 16) & 1u);
    return bf16{u16(f == f ? rounded >> 16 : (x >> 16) | 0x40u)};
}

SPIKING_FN float widen(f16 h) {
    const u32 sign = u32(h.raw & 0x8000u) << 16, magnitude = h.raw & 0x7fffu;
    const u32 normal = (magnitude << 13) + (112u << 23);
    const float tiny = float(int(magnitude)) * 5.9604644775390625e-08f;  // 2^-24: subnormal halves are normal floats
    const u32 special = 0x7f800000u | (magnitude << 13);
    const u32 value = magnitude >= 0x7c00u ? special : magnitude < 0x400u ? bits<u32>(tiny) : normal;
    return bits<float>(sign | value);
}

SPIKING_FN f16 narrow_f16(float f) {                     // round to nearest even; overflow gives infinity
    const u32 x = bits<u32>(f), sign = (x >> 16) & 0x8000u, magnitude = x & 0x7fffffffu;
    const u32 normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 0.5 aligns a small value so that the float adder itself rounds it to a multiple of 2^-24.
    const u32 tiny = bits<u32>(bits<float>(magnitude) + 0.5f) - bits<u32>(0.5f);
    const u32 big = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const u32 value = magnitude >= 0x47800000u ? big : magnitude < 0x38800000u ? tiny : normal;
    return f16{u16(sign | value)};
}

// 2^k, where the low bits of `shifted` hold k; 0 for the least k that a float (double) has an exponent for, -127 (-1023).
SPIKING_FN float power_of_two(float shifted) { return bits<float>((bits<u32>(shifted) + 127u) << 23); }
SPIKING_FN double power_of_two(double shifted) { return bits<double>((bits<u64>(shifted) + 1023ull) << 52); }

// exp to about 1 ulp (float) and 1e-15 (double), the same operations on every machine and for a vector (cpu/lanes.h); x must lie in
// [-87, 88] ([-700, 700]).
template <class T>
SPIKING_FN T exponential_of_floats(T x) {    const T shifted = x * T(1.44269504088896341f) + T(12582912.0f);      // 1.5·2^23: rounds to an integer
    const T k = shifted - T(12582912.0f);
    const T r = (x - k * T(0.693359375f)) - k * T(-2.12194440e-4f);
    T p = T(1.9875691500e-4f);
    p = p * r + T(1.3981999507e-3f);
    p = p * r + T(8.3334519073e-3f);
    p = p * r + T(4.1665795894e-2f);
    p = p * r + T(1.6666665459e-1f);
    p = p * r + T(5.0000001201e-1f);
    p = p * r * r + r + T(1.0f);
    return p * power_of_two(shifted);
}

template <class T>
SPIKING_FN T exponential_of_doubles(T x) {
    const T shifted = x * T(1.4426950408889634074) + T(6755399441055744.0);
    const T k = shifted - T(6755399441055744.0);
    const T r = (x - k * T(6.93145751953125e-1)) - k * T(1.42860682030941723212e-6);
    T p = T(1.0 / 6227020800.0);
    p = p * r + T(1.0 / 479001600.0);
    p = p * r + T(1.0 / 39916800.0);
    p = p * r + T(1.0 / 3628800.0);
    p = p * r + T(1.0 / 362880.0);
    p = p * r + T(1.0 / 40320.0);
    p = p * r + T(1.0 / 5040.0);
    p = p * r + T(1.0 / 720.0);
    p = p * r + T(1.0 / 120.0);
    p = p * r + T(1.0 / 24.0);
    p = p * r + T(1.0 / 6.0);
    p = p * r + T(0.5);
    p = p * r * r + r + T(1.0);
    return p * power_of_two(shifted);
}

// T holds numbers of E, one or several.
template <class E, class T>
SPIKING_FN T exponential_of(T x) {
    if constexpr (sizeof(E) == 8) return exponential_of_doubles(x);
    else return exponential_of_floats(x);
}

SPIKING_FN float exponential_within(float x) { return exponential_of_floats(x); }
SPIKING_FN double exponential_within(double x) { return exponential_of_doubles(x); }

// For every x: held at the ends of that range.
SPIKING_FN float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    return exponential_within(x > 88.0f ? 88.0f : x);
}

SPIKING_FN double exponential(double x) {
    x = x < -700.0 ? -700.0 : x;
    return exponential_within(x > 700.0 ? 700.0 : x);
}

}  // namespace SPIKING_NS
