// Python bindings of the neuron kernels: pointers, sizes and numbers only.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <stdexcept>
#include <vector>

#include "levels.h"
#include "neuron_api.h"

namespace nb = nanobind;

SPIKING_TABLE(KernelTable, neuron_table)

namespace {

// rule: dtype, save, kind, reset, surrogate, refractory, then the six flags; numbers: beta, threshold, beta_syn, v_reset, v_leak,
// beta_adapt, adapt_scale, a, b. The same order stands in ops.py.
NeuronCall call_of(uintptr_t x, uintptr_t state0, uintptr_t params, uintptr_t saved, const std::array<long long, 4>& sizes,
                   const std::vector<int>& rule, const std::vector<double>& numbers, int threads) {
    if (rule.size() != 12 || numbers.size() != 9) throw std::invalid_argument("neuron call: 12 rule integers and 9 numbers expected");
    NeuronCall p{};
    p.x = pointer<const void>(x), p.state0 = pointer<const void>(state0), p.params = pointer<const void>(params);
    p.saved = pointer<void>(saved);
    p.T = sizes[0], p.N = sizes[1], p.C = sizes[2], p.inner = sizes[3];
    p.dtype = rule[0], p.save = rule[1], p.kind = rule[2], p.reset = rule[3], p.surrogate = rule[4], p.refractory = rule[5];
    p.tie_gt = rule[6], p.decay_input = rule[7], p.detach_reset = rule[8], p.reset_delay = rule[9], p.residual_reset = rule[10];
    p.normalize = rule[11];
    p.beta = numbers[0], p.threshold = numbers[1], p.beta_syn = numbers[2], p.v_reset = numbers[3], p.v_leak = numbers[4];
    p.beta_adapt = numbers[5], p.adapt_scale = numbers[6], p.a = numbers[7], p.b = numbers[8];
    p.threads = threads;
    return p;
}

// drive: empty, or maximum, window, channels, height, width, numbers of a step, and the addresses of scale, shift and their gradient.
using Drive = std::vector<long long>;

const DriveCall* drive_of(const Drive& v, DriveCall& d) {
    if (v.empty()) return nullptr;
    if (v.size() != 9) throw std::invalid_argument("neuron call: 9 numbers of a drive expected");
    d = {v[0] != 0, v[1], v[2], v[3], v[4], v[5], pointer<const void>(uintptr_t(v[6])), pointer<const void>(uintptr_t(v[7])),
         pointer<double>(uintptr_t(v[8]))};
    return &d;
}

// tally: empty, or the number of neurons of a sample, the addresses of the counters and of two fans, and how many counters a thread has.
// Returns whether every output is 0 or 1, where that was counted.
bool neuron_forward(uintptr_t x, uintptr_t state0, uintptr_t params, uintptr_t s, uintptr_t state1, uintptr_t saved, long long T,
                    long long N, long long C, long long inner, const std::vector<int>& rule, const std::vector<double>& numbers,
                    int threads, const Drive& drive, const std::vector<long long>& tally, bool x_is_constant) {
    NeuronCall p = call_of(x, state0, params, saved, {T, N, C, inner}, rule, numbers, threads);
    p.x_is_constant = x_is_constant;
    DriveCall d{};
    p.drive = drive_of(drive, d);
    TallyCall counts{};
    if (!tally.empty()) {
        if (tally.size() != 5) throw std::invalid_argument("neuron call: 5 numbers of a tally expected");
        counts = {tally[0], pointer<int>(uintptr_t(tally[1])), {pointer<const int>(uintptr_t(tally[2])), pointer<const int>(uintptr_t(tally[3]))}};
        p.tally = &counts;
    }
    p.s = pointer<void>(s), p.state1 = pointer<void>(state1);
    const KernelTable& table = neuron_table();
    nb::gil_scoped_release release;
    table.forward(p);
    bool binary = true;
    if (p.tally)
        for (int thread = 1; thread <= threads; ++thread) binary &= counts.counts[thread * tally[4] - 1] == 0;
    return binary;
}

void neuron_backward(uintptr_t x, uintptr_t state0, uintptr_t params, uintptr_t saved, uintptr_t grad_s, bool grad_s_is_scalar,
                     uintptr_t grad_state1, uintptr_t grad_x, uintptr_t grad_state0, uintptr_t grad_params, long long T, long long N,
                     long long C, long long inner, const std::vector<int>& rule, const std::vector<double>& numbers, int threads,
                     const Drive& drive, bool x_is_constant) {
    NeuronCall p = call_of(x, state0, params, saved, {T, N, C, inner}, rule, numbers, threads);
    p.x_is_constant = x_is_constant;
    DriveCall d{};
    p.drive = drive_of(drive, d);
    p.grad_s = pointer<const void>(grad_s), p.grad_s_is_scalar = grad_s_is_scalar;
    p.grad_state1 = pointer<const void>(grad_state1), p.grad_x = pointer<void>(grad_x), p.grad_state0 = pointer<void>(grad_state0);
    p.grad_params = pointer<double>(grad_params);
    const KernelTable& table = neuron_table();
    nb::gil_scoped_release release;
    table.backward(p);
}

}  // namespace

void bind_neuron(nb::module_& m) {
    m.attr("CHUNK") = CHUNK;
    m.def("neuron_forward", &neuron_forward);  // drive: [] where x is the input itself; tally: [] where nothing is counted
    m.def("neuron_backward", &neuron_backward);
}
