// Python bindings of the event-driven convolution: pointers, sizes and numbers only. The order of `shape` is that of ConvShape.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <utility>
#include <vector>

#include "event_conv_api.h"
#include "levels.h"
#include "planned.h"

namespace nb = nanobind;

SPIKING_TABLE(ConvTable, conv_table)

namespace {

using Shape = std::vector<long long>;
using Addresses = std::vector<uintptr_t>;

constexpr long long WORTH_A_THREAD = 850000;     // sums (an output costs as much as 40) below which waking a second thread costs more

ConvShape shape_of(const Shape& v) {
    if (v.size() != 14) throw std::invalid_argument("convolution: 14 sizes expected");
    return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13]};
}

// flags: x_last, y_last, ones, dtype, window, threads, teams.
ConvCall call_of(const Shape& shape, const std::vector<int>& flags) {
    if (flags.size() != 7) throw std::invalid_argument("convolution: 7 flags expected");
    ConvCall p{};
    p.s = shape_of(shape);
    p.x_last = flags[0], p.y_last = flags[1], p.ones = flags[2], p.dtype = flags[3];
    p.window = flags[4], p.threads = flags[5], p.teams = flags[6];
    return p;
}

// spikes: x, masks, scratch.
void spikes_of(ConvCall& p, const Addresses& a) {
    if (a.size() != 3) throw std::invalid_argument("convolution: 3 addresses of spikes expected");
    p.x = pointer<const void>(a[0]), p.masks = pointer<unsigned int>(a[1]), p.scratch = pointer<void>(a[2]);
}

std::pair<long long, long long> conv_items(const Shape& shape) {
    const ConvShape s = shape_of(shape);
    return {conv_table().block_items(s), conv_table().back_items(s)};
}

// Bytes for each thread; in the backward more is needed, and more still for grad_x.
long long conv_scratch(const Shape& shape, const std::vector<int>& flags, bool backward, bool grad_x) {
    ConvCall p = call_of(shape, flags);
    static const char some = 0;
    if (backward) p.grad_y = &some;
    if (grad_x) p.back_weights = &some;
    return conv_table().scratch_bytes(p);
}

bool conv_pack(const Shape& shape, uintptr_t weight, int dtype, uintptr_t blocks, uintptr_t back) {
    ConvWeights p{};
    p.s = shape_of(shape), p.weight = pointer<const void>(weight), p.dtype = dtype;
    p.blocks = pointer<void>(blocks), p.back = pointer<void>(back);
    const ConvTable& table = conv_table();
    nb::gil_scoped_release release;
    return table.pack(p);
}

void conv_unpack(const Shape& shape, uintptr_t grad_blocks, int teams, uintptr_t grad_weight, int dtype) {
    ConvWeights p{};
    p.s = shape_of(shape), p.grad_blocks = pointer<const void>(grad_blocks), p.teams = teams;
    p.grad_weight = pointer<void>(grad_weight), p.dtype = dtype;
    const ConvTable& table = conv_table();
    nb::gil_scoped_release release;
    table.unpack(p);
}

long long conv_count(const Shape& shape, const std::vector<int>& flags, const Addresses& spikes, long long limit) {
    ConvCall p = call_of(shape, flags);
    spikes_of(p, spikes);
    p.limit = limit;
    const ConvTable& table = conv_table();
    nb::gil_scoped_release release;
    return table.count(p);
}

// outputs: y, or pooled and moments, or pooled and places.
void conv_forward(const Shape& shape, const std::vector<int>& flags, const Addresses& spikes, uintptr_t weights, uintptr_t bias,
                  const Addresses& outputs) {
    if (outputs.size() != 4) throw std::invalid_argument("convolution: 4 addresses of outputs expected");
    ConvCall p = call_of(shape, flags);
    spikes_of(p, spikes);
    p.weights = pointer<const void>(weights), p.bias = pointer<const void>(bias), p.y = pointer<void>(outputs[0]);
    p.pooled = pointer<void>(outputs[1]), p.moments = pointer<double>(outputs[2]), p.places = pointer<unsigned char>(outputs[3]);
    const ConvTable& table = conv_table();
    nb::gil_scoped_release release;
    table.forward(p);
}

// weights: blocks, bias, back weights. grads: of y, of pooled, of moments, and places. outputs: grad_weights, grad_bias, grad_x.
void conv_backward(const Shape& shape, const std::vector<int>& flags, const Addresses& spikes, const Addresses& weights,
                   const Addresses& grads, const Addresses& outputs) {
    if (weights.size() != 3 || grads.size() != 4 || outputs.size() != 3) throw std::invalid_argument("convolution: 3, 4 and 3 addresses expected");
    ConvCall p = call_of(shape, flags);
    spikes_of(p, spikes);
    p.weights = pointer<const void>(weights[0]), p.bias = pointer<const void>(weights[1]), p.back_weights = pointer<const void>(weights[2]);
    p.grad_y = pointer<const void>(grads[0]), p.grad_pooled = pointer<const void>(grads[1]), p.grad_moments = pointer<const double>(grads[2]);
    p.places = pointer<unsigned char>(grads[3]);
    p.grad_weights = pointer<void>(outputs[0]), p.grad_bias = pointer<void>(outputs[1]), p.grad_x = pointer<void>(outputs[2]);
    const ConvTable& table = conv_table();
    nb::gil_scoped_release release;
    table.backward(p);
}

// Calls without gradients of one shape. Weights in blocks, or 0: then they only count. `weight`, `bytes` and `sample` as in EventPlan.
class ConvPlan {
public:
    ConvPlan(const Shape& shape, bool last, int dtype, uintptr_t blocks, uintptr_t weight, long long bytes, unsigned long long sample)
        : watched_{pointer<const char>(weight), bytes, sample} {
        call_.s = shape_of(shape), call_.x_last = call_.y_last = last, call_.dtype = dtype, call_.weights = pointer<const void>(blocks);
    }

    // Counts, and where there are at most `limit` spikes, computes y; the return value is that of conv_count, or STALE.
    long long run(uintptr_t x, long long limit, uintptr_t bias, uintptr_t y, int threads) const {
        thread_local std::vector<unsigned int> masks;
        thread_local std::vector<char> scratch;
        constexpr long long LINE = 64, KEPT = 64ll << 20;  // bytes that a thread keeps between calls
        ConvCall p = call_;
        const ConvShape& s = p.s;
        const ConvTable& table = conv_table();
        nb::gil_scoped_release release;
        if (watched_.changed()) return STALE;
        const auto take = [&](long long bytes) {
            char* start = room(scratch, bytes + LINE);
            return start + (LINE - reinterpret_cast<uintptr_t>(start) % LINE) % LINE;
        };
        const long long pixels = s.height * s.width, chunks = (s.inputs / s.groups + 31) / 32, sums = s.outputs / s.groups * s.kernel_y * s.kernel_x;
        p.x = pointer<const void>(x), p.limit = limit, p.bias = pointer<const void>(bias), p.y = pointer<void>(y);
        p.masks = room(masks, s.images * s.groups * pixels * chunks);
        p.threads = s.images * s.inputs * pixels < WORTH_A_THREAD ? 1 : threads;
        p.scratch = take(p.threads * (pixels * 4 + LINE));
        const long long found = table.count(p);
        if (found < 0 || !p.weights) return found;
        p.ones = found & 1;
        p.threads = found / 2 * sums + 40 * s.images * s.outputs * s.out_height * s.out_width < WORTH_A_THREAD ? 1 : threads;
        p.scratch = take(p.threads * table.scratch_bytes(p));
        table.forward(p);
        if (static_cast<long long>(scratch.size() + masks.size() * 4) > KEPT) scratch = {}, masks = {};
        return found;
    }

private:
    ConvCall call_{};
    Watched watched_;
};

}  // namespace

void bind_event_conv(nb::module_& m) {
    nb::class_<ConvPlan>(m, "ConvPlan")
        .def(nb::init<const Shape&, bool, int, uintptr_t, uintptr_t, long long, unsigned long long>())
        .def("run", &ConvPlan::run);
    m.def("conv_items", &conv_items);
    m.def("conv_scratch", &conv_scratch);
    m.def("conv_pack", &conv_pack);
    m.def("conv_unpack", &conv_unpack);
    m.def("conv_count", &conv_count);
    m.def("conv_forward", &conv_forward);
    m.def("conv_backward", &conv_backward);
}
