// Bindings of decode.h: event files to arrays and frames.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_decode(nb::module_& m) { (void)m; }
