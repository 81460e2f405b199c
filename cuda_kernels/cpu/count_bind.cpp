// Python bindings of the counting pass: pointers and sizes only.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "count_api.h"
#include "levels.h"

namespace nb = nanobind;

SPIKING_TABLE(CountTable, count_table)

namespace {

int count(uintptr_t x, uintptr_t fan, uintptr_t fan_nonzero, uintptr_t nonzero, uintptr_t synops, uintptr_t magnitude, uintptr_t per_element,
          uintptr_t levels, uintptr_t n_levels, uintptr_t negative, long long rows, long long n, long long steps, int dtype, int threads) {
    CountCall p{};
    p.x = pointer<const void>(x), p.fan = pointer<const int>(fan), p.fan_nonzero = pointer<const int>(fan_nonzero);
    p.nonzero = pointer<long long>(nonzero), p.synops = pointer<long long>(synops), p.magnitude = pointer<double>(magnitude);
    p.per_element = pointer<long long>(per_element);
    p.levels = pointer<double>(levels), p.n_levels = pointer<int>(n_levels), p.negative = pointer<int>(negative);
    p.rows = rows, p.n = n, p.steps = steps, p.dtype = dtype, p.threads = threads;
    const CountTable& table = count_table();
    nb::gil_scoped_release release;
    return table.count(p);
}

void fold(const std::vector<uintptr_t>& counts, int threads, long long planes, long long steps, long long samples, long long elements,
          long long spare, uintptr_t by_step, uintptr_t by_sample, uintptr_t by_element, bool clear) {
    std::vector<int*> passes;
    for (uintptr_t one : counts) passes.push_back(pointer<int>(one));
    FoldCall p{passes.data(), (long long)(passes.size()), planes, steps, samples, elements, spare, pointer<long long>(by_step),
               pointer<long long>(by_sample), pointer<long long>(by_element), threads, clear};
    count_table().fold(p);
}

}  // namespace

void bind_count(nb::module_& m) {
    m.attr("LEVELS") = LEVELS;
    m.def("count", &count);
    m.def("fold", &fold);
}
