// Python bindings of the pooling kernels: pointers, sizes and numbers only.
#include <nanobind/nanobind.h>

#include <array>

#include "levels.h"
#include "pool_api.h"

namespace nb = nanobind;

SPIKING_TABLE(PoolTable, pool_table)

namespace {

PoolCall pool_call(uintptr_t x, const std::array<long long, 5>& sizes, bool wide, int threads) {
    PoolCall p{};
    p.x = pointer<const void>(x), p.wide = wide, p.threads = threads;
    p.images = sizes[0], p.channels = sizes[1], p.height = sizes[2], p.width = sizes[3], p.window = sizes[4];
    return p;
}

void pool_forward(uintptr_t x, uintptr_t pooled, uintptr_t moments, long long images, long long channels, long long height, long long width,
                  long long window, bool wide, int threads) {
    PoolCall p = pool_call(x, {images, channels, height, width, window}, wide, threads);
    p.pooled = pointer<void>(pooled), p.moments = pointer<double>(moments);
    const PoolTable& table = pool_table();
    nb::gil_scoped_release release;
    table.forward(p);
}

void pool_backward(uintptr_t x, uintptr_t grad_pooled, uintptr_t grad_moments, uintptr_t grad_x, long long images, long long channels,
                   long long height, long long width, long long window, bool wide, int threads) {
    PoolCall p = pool_call(x, {images, channels, height, width, window}, wide, threads);
    p.grad_pooled = pointer<const void>(grad_pooled), p.grad_moments = pointer<const double>(grad_moments);
    p.grad_x = pointer<void>(grad_x);
    const PoolTable& table = pool_table();
    nb::gil_scoped_release release;
    table.backward(p);
}

}  // namespace

void bind_pool(nb::module_& m) {
    m.def("pool_forward", &pool_forward);
    m.def("pool_backward", &pool_backward);
}
