// Python bindings of the kernels of graded spikes: pointers, sizes and numbers only.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <stdexcept>
#include <vector>

#include "graded_api.h"
#include "levels.h"

namespace nb = nanobind;

SPIKING_TABLE(GradedTable, graded_table)

namespace {

// rule: dtype, spacing, levels; numbers: beta, threshold, v_leak. The same order stands in graded_ops.py.
GradedCall call_of(uintptr_t x, uintptr_t state0, uintptr_t params, uintptr_t saved, const std::array<long long, 4>& sizes,
                   const std::vector<int>& rule, const std::vector<double>& numbers, int threads) {
    if (rule.size() != 3 || numbers.size() != 3) throw std::invalid_argument("graded call: 3 rule integers and 3 numbers expected");
    GradedCall p{};
    p.x = pointer<const void>(x), p.state0 = pointer<const void>(state0), p.params = pointer<const void>(params);
    p.saved = pointer<void>(saved);
    p.T = sizes[0], p.N = sizes[1], p.C = sizes[2], p.inner = sizes[3];
    p.dtype = rule[0], p.spacing = rule[1], p.levels = rule[2];
    p.beta = numbers[0], p.threshold = numbers[1], p.v_leak = numbers[2];
    p.threads = threads;
    return p;
}

void graded_forward(uintptr_t x, uintptr_t state0, uintptr_t params, uintptr_t s, uintptr_t state1, uintptr_t saved, long long T,
                    long long N, long long C, long long inner, const std::vector<int>& rule, const std::vector<double>& numbers,
                    int threads) {
    GradedCall p = call_of(x, state0, params, saved, {T, N, C, inner}, rule, numbers, threads);
    p.s = pointer<void>(s), p.state1 = pointer<void>(state1);
    const GradedTable& table = graded_table();
    nb::gil_scoped_release release;
    table.forward(p);
}

void graded_backward(uintptr_t state0, uintptr_t params, uintptr_t saved, uintptr_t grad_s, uintptr_t grad_state1, uintptr_t grad_x,
                     uintptr_t grad_state0, uintptr_t grad_params, long long T, long long N, long long C, long long inner,
                     const std::vector<int>& rule, const std::vector<double>& numbers, int threads) {
    GradedCall p = call_of(0, state0, params, saved, {T, N, C, inner}, rule, numbers, threads);
    p.grad_s = pointer<const void>(grad_s), p.grad_state1 = pointer<const void>(grad_state1);
    p.grad_x = pointer<void>(grad_x), p.grad_state0 = pointer<void>(grad_state0), p.grad_params = pointer<double>(grad_params);
    const GradedTable& table = graded_table();
    nb::gil_scoped_release release;
    table.backward(p);
}

}  // namespace

void bind_graded(nb::module_& m) {
    m.def("graded_forward", &graded_forward);
    m.def("graded_backward", &graded_backward);
}
