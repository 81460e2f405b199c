// One time step of a reservoir's neuron, which fires above its threshold and not at it. Oracle: reference.py::reservoir.
#pragma once
#include "portable.h"

namespace SPIKING_NS {

// `in` and `rec` are the currents of the inputs (bias included) and of the neurons that fired a step ago, `s` whether this one did.
template <class T>
SPIKING_FN void reservoir_step(T in, T rec, T beta, T threshold, T& u, T& s) {
    const T h = beta * u * (T(1) - s) + in + rec;
    u = h;
    s = select(h > threshold, T(1), T(0));
}

}  // namespace SPIKING_NS
