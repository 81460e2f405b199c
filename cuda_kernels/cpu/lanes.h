// A vector of floats or doubles with the operators that include/wkv.h uses, made by the compiler for every instruction set; each lane does
// what a single number does. (wide.h has the floats of neurons, written with intrinsics.)
#pragma once
#include "portable.h"

namespace SPIKING_NS {

#if defined(__AVX512F__)
#define SPIKING_VECTOR 64
#elif defined(__AVX2__)
#define SPIKING_VECTOR 32
#else
#define SPIKING_VECTOR 16
#endif

template <class E> struct Vector;
template <> struct Vector<float> {
    typedef float Raw __attribute__((vector_size(SPIKING_VECTOR)));
    typedef int Mask __attribute__((vector_size(SPIKING_VECTOR)));
};
template <> struct Vector<double> {
    typedef double Raw __attribute__((vector_size(SPIKING_VECTOR)));
    typedef long long Mask __attribute__((vector_size(SPIKING_VECTOR)));
};

template <class E>
struct Lanes {
    using Raw = typename Vector<E>::Raw;
    using Mask = typename Vector<E>::Mask;
    static constexpr int count = SPIKING_VECTOR / int(sizeof(E));
    Raw raw;
    Lanes() = default;
    SPIKING_FN Lanes(Raw from) : raw(from) {}
    SPIKING_FN explicit Lanes(double from) : raw(E(from) - Raw{}) {}
    SPIKING_FN explicit Lanes(int from) : Lanes(double(from)) {}
};

template <class E> SPIKING_FN Lanes<E> operator+(Lanes<E> a, Lanes<E> b) { return a.raw + b.raw; }
template <class E> SPIKING_FN Lanes<E> operator-(Lanes<E> a, Lanes<E> b) { return a.raw - b.raw; }
template <class E> SPIKING_FN Lanes<E> operator*(Lanes<E> a, Lanes<E> b) { return a.raw * b.raw; }
template <class E> SPIKING_FN Lanes<E> operator/(Lanes<E> a, Lanes<E> b) { return a.raw / b.raw; }
template <class E> SPIKING_FN Lanes<E>& operator+=(Lanes<E>& a, Lanes<E> b) { return a = a + b; }
template <class E> SPIKING_FN Lanes<E> operator-(Lanes<E> a) { return -a.raw; }
template <class E> SPIKING_FN typename Lanes<E>::Mask operator>=(Lanes<E> a, Lanes<E> b) { return a.raw >= b.raw; }
template <class E> SPIKING_FN typename Lanes<E>::Mask operator<(Lanes<E> a, Lanes<E> b) { return a.raw < b.raw; }
template <class E> SPIKING_FN Lanes<E> select(typename Lanes<E>::Mask c, Lanes<E> a, Lanes<E> b) { return c ? a.raw : b.raw; }

template <class E> SPIKING_FN typename Lanes<E>::Mask negative(Lanes<E> x) { return (typename Lanes<E>::Mask)x.raw < 0; }
template <class E> SPIKING_FN Lanes<E> minus_magnitude(Lanes<E> x) {
    using Mask = typename Lanes<E>::Mask;
    return (typename Lanes<E>::Raw)((Mask)x.raw | (Mask)(-typename Lanes<E>::Raw{}));
}
SPIKING_FN Lanes<float> power_of_two(Lanes<float> shifted) { return (Vector<float>::Raw)(((Vector<float>::Mask)shifted.raw + 127) << 23); }
SPIKING_FN Lanes<double> power_of_two(Lanes<double> shifted) { return (Vector<double>::Raw)(((Vector<double>::Mask)shifted.raw + 1023) << 52); }

// V is Lanes<E>, or E itself for what is left of a row.
template <class V, class E>
SPIKING_FN V load_as(const E* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
}

template <class V, class E>
SPIKING_FN void store_as(E* to, V v) { __builtin_memcpy(to, &v, sizeof(v)); }

}  // namespace SPIKING_NS
