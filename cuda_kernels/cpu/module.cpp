// Python bindings of the CPU kernels: pointers, sizes and numbers only. Shapes, dtypes and error messages are Python's job.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_arena(nb::module_& m);
void bind_decode(nb::module_& m);

NB_MODULE(_cpu, m) {
    bind_arena(m);
    bind_decode(m);
}
