// Python bindings of mask.cpp: pointers, sizes and numbers only.
#include <nanobind/nanobind.h>

#include "levels.h"
#include "mask_api.h"

namespace nb = nanobind;

SPIKING_TABLE(MaskTable, mask_table)

namespace {

void draw_mask(uintptr_t mask, long long n, unsigned long long seed, double p, float kept, int threads) {
    const MaskCall call{pointer<float>(mask), n, seed, p, kept, threads};
    const MaskTable& table = mask_table();
    nb::gil_scoped_release release;
    table.draw(call);
}

}  // namespace

void bind_mask(nb::module_& m) { m.def("draw_mask", &draw_mask); }
