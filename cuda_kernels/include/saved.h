// What lies in memory between forward and backward, and how a value goes in and out of it.
#pragma once
#include "chunk.h"
#include "neuron.h"

namespace SPIKING_NS {

template <class IO> struct StateOf { using type = float; };
template <> struct StateOf<double> { using type = double; };

SPIKING_FN float widen(float v) { return v; }
SPIKING_FN double widen(double v) { return v; }
SPIKING_FN void narrow(float v, float& to) { to = v; }
SPIKING_FN void narrow(double v, double& to) { to = v; }
SPIKING_FN void narrow(float v, bf16& to) { to = narrow_bf16(v); }
SPIKING_FN void narrow(float v, f16& to) { to = narrow_f16(v); }

// 16 bits for u: the sign bit says "no spike", so the spike survives rounding and no spike bits are kept.
template <Flags flags, class T>
SPIKING_FN u16 encode_half(T h, T threshold, const Rule<T>& rule) {
    const T u = distance<flags>(h, threshold, rule);
    const float m = float(magnitude(u));
    const u32 code = narrow_f16(m > 65504.0f ? 65504.0f : m).raw;
    const u32 silent = 0x8000u | (code == 0u ? 1u : code);
    return u16(fires<flags>(u, rule) > T(0) ? code : silent);
}

// Whoever decodes sets rule.on_tie = 1: a code of 0 is a spike whatever the tie rule was.
template <Flags flags, class T>
SPIKING_FN T decode_half(u16 code, T threshold, const Rule<T>& rule, T& u) {
    u = T(widen(f16{code}));
    if constexpr (flags == Flags::all) return rule.normalize > T(0) ? (u + T(1)) * threshold : u + threshold;
    return u + threshold;
}

// The membrane after the spike; a delayed reset leaves it alone.
template <Reset reset, class T>
SPIKING_FN T after_spike(T h, T fired, T threshold, T v_reset) {
    if constexpr (reset == Reset::subtract) return h - threshold * fired;
    if constexpr (reset == Reset::zero) return fired > T(0) ? v_reset : h;
    return h;
}

}  // namespace SPIKING_NS
