// Surrogate gradients ds/du, one branch per kernel_id of spiking/surrogate.py. a and b are that surrogate's kernel_parameters.
#pragma once
#include "portable.h"

namespace SPIKING_NS {

enum class Surrogate : int {
    atan = 0, sigmoid = 1, fast_sigmoid = 2, triangle = 3, rectangle = 4,
    gaussian = 5, exponential = 6, piecewise_leaky_relu = 7, straight_through = 8, count = 9
};

SPIKING_FN constexpr bool needs_exponential(Surrogate kind) {
    return kind == Surrogate::sigmoid || kind == Surrogate::gaussian || kind == Surrogate::exponential;
}

template <class T> SPIKING_FN T magnitude(T u) { return select(u < T(0), -u, u); }

template <Surrogate kind, class T>
SPIKING_FN T surrogate_grad(T u, T a, T b) {
    if constexpr (kind == Surrogate::atan) {
        const T w = T(1.57079632679489661923) * a * u;
        return b * a / T(2) / (T(1) + w * w);
    } else if constexpr (kind == Surrogate::sigmoid) {
        const T e = exponential(-magnitude(a * u));
        return b * a * e / ((T(1) + e) * (T(1) + e));
    } else if constexpr (kind == Surrogate::fast_sigmoid) {
        const T d = T(1) + a * magnitude(u);
        return b / (d * d);
    } else if constexpr (kind == Surrogate::triangle) {
        const T d = T(1) - a * magnitude(u);
        return b * a * select(d < T(0), T(0), d);
    } else if constexpr (kind == Surrogate::rectangle) {
        return b * a * select(magnitude(u) < T(0.5) / a, T(1), T(0)) + T(0) * u;
    } else if constexpr (kind == Surrogate::gaussian) {
        const T w = a * u;
        return b * a * T(0.56418958354775628695) * exponential(-(w * w));
    } else if constexpr (kind == Surrogate::exponential) {
        return b * a / T(2) * exponential(-a * magnitude(u));
    } else if constexpr (kind == Surrogate::piecewise_leaky_relu) {
        return select(magnitude(u) < a, T(0.5) / a, b) + T(0) * u;
    } else {
        return b + T(0) * u;
    }
}

// Calls body(std-free integral constant) with the surrogate as a compile-time value, so that inner loops hold no switch.
template <Surrogate kind> struct SurrogateTag { static constexpr Surrogate value = kind; };

template <class Body>
SPIKING_FN void with_surrogate(int id, Body&& body) {
    switch (Surrogate(id)) {
        case Surrogate::atan: body(SurrogateTag<Surrogate::atan>{}); break;
        case Surrogate::sigmoid: body(SurrogateTag<Surrogate::sigmoid>{}); break;
        case Surrogate::fast_sigmoid: body(SurrogateTag<Surrogate::fast_sigmoid>{}); break;
        case Surrogate::triangle: body(SurrogateTag<Surrogate::triangle>{}); break;
        case Surrogate::rectangle: body(SurrogateTag<Surrogate::rectangle>{}); break;
        case Surrogate::gaussian: body(SurrogateTag<Surrogate::gaussian>{}); break;
        case Surrogate::exponential: body(SurrogateTag<Surrogate::exponential>{}); break;
        case Surrogate::piecewise_leaky_relu: body(SurrogateTag<Surrogate::piecewise_leaky_relu>{}); break;
        default: body(SurrogateTag<Surrogate::straight_through>{}); break;
    }
}

}  // namespace SPIKING_NS
