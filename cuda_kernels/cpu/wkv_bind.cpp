// Python bindings of the WKV kernels: pointers, sizes and numbers only.
#include <nanobind/nanobind.h>

#include <array>

#include "levels.h"
#include "wkv_api.h"

namespace nb = nanobind;

SPIKING_TABLE(WkvTable, wkv_table)

namespace {

using Inputs = std::array<uintptr_t, 5>;       // w, u, k, v, state0

WkvCall wkv_call(const Inputs& inputs, uintptr_t saved, long long steps, long long batch, long long channels, int dtype, int threads) {
    WkvCall p{};
    p.w = pointer<const void>(inputs[0]), p.u = pointer<const void>(inputs[1]);
    p.k = pointer<const void>(inputs[2]), p.v = pointer<const void>(inputs[3]), p.state0 = pointer<const void>(inputs[4]);
    p.saved = pointer<void>(saved), p.T = steps, p.B = batch, p.C = channels, p.dtype = dtype, p.threads = threads;
    return p;
}

void wkv_forward(uintptr_t w, uintptr_t u, uintptr_t k, uintptr_t v, uintptr_t state0, uintptr_t y, uintptr_t state1, uintptr_t saved,
                 long long steps, long long batch, long long channels, int dtype, int threads) {
    WkvCall p = wkv_call({w, u, k, v, state0}, saved, steps, batch, channels, dtype, threads);
    p.y = pointer<void>(y), p.state1 = pointer<void>(state1);
    const WkvTable& table = wkv_table();
    nb::gil_scoped_release release;
    table.forward(p);
}

void wkv_backward(uintptr_t w, uintptr_t u, uintptr_t k, uintptr_t v, uintptr_t state0, uintptr_t saved, uintptr_t grad_y,
                  uintptr_t grad_state1, uintptr_t grad_k, uintptr_t grad_v, uintptr_t grad_state0, uintptr_t grad_params, long long steps,
                  long long batch, long long channels, int dtype, int threads) {
    WkvCall p = wkv_call({w, u, k, v, state0}, saved, steps, batch, channels, dtype, threads);
    p.grad_y = pointer<const void>(grad_y), p.grad_state1 = pointer<const void>(grad_state1);
    p.grad_k = pointer<void>(grad_k), p.grad_v = pointer<void>(grad_v), p.grad_state0 = pointer<void>(grad_state0);
    p.grad_params = pointer<double>(grad_params);
    const WkvTable& table = wkv_table();
    nb::gil_scoped_release release;
    table.backward(p);
}

}  // namespace

void bind_wkv(nb::module_& m) {
    m.def("wkv_forward", &wkv_forward);
    m.def("wkv_backward", &wkv_backward);
}
