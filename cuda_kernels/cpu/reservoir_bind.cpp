// Python bindings of the reservoir: pointers, sizes and numbers only; address 0 means that there is none.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include <array>

#include "levels.h"
#include "reservoir_api.h"

namespace nb = nanobind;

SPIKING_TABLE(ReservoirTable, reservoir_table)

namespace {

void reservoir_run(const std::array<uintptr_t, 17>& at, const std::array<long long, 4>& sizes, double beta, double threshold, bool wide,
                   int threads) {
    ReservoirCall p{};
    p.x = pointer<const void>(at[0]), p.in_panels = pointer<const void>(at[1]), p.bias = pointer<const void>(at[2]);
    p.rec_panels = pointer<const void>(at[3]), p.rec_offsets = pointer<const long long>(at[4]);
    p.rec_receivers = pointer<const unsigned int>(at[5]), p.rec_weights = pointer<const void>(at[6]);
    p.u = pointer<void>(at[7]), p.s = pointer<void>(at[8]), p.spikes = pointer<void>(at[9]), p.membrane = pointer<void>(at[10]);
    p.features = pointer<void>(at[11]), p.bin = pointer<const int>(at[12]), p.worth = pointer<const void>(at[13]);
    p.lists = pointer<unsigned int>(at[14]), p.currents = pointer<void>(at[15]), p.events = pointer<long long>(at[16]);
    p.steps = sizes[0], p.batch = sizes[1], p.inputs = sizes[2], p.neurons = sizes[3];
    p.beta = beta, p.threshold = threshold, p.wide = wide, p.threads = threads;
    const ReservoirTable& table = reservoir_table();
    nb::gil_scoped_release release;
    table.run(p);
}

}  // namespace

void bind_reservoir(nb::module_& m) { m.def("reservoir_run", &reservoir_run); }
