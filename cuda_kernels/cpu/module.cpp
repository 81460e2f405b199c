// The compiled module: which instruction set runs, and the bindings of every kernel file. Shapes, dtypes and messages are Python's job.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "levels.h"

namespace nb = nanobind;

void bind_arena(nb::module_& m);
void bind_cochlea(nb::module_& m);
void bind_count(nb::module_& m);
void bind_decode(nb::module_& m);
void bind_engine(nb::module_& m);
void bind_event_conv(nb::module_& m);
void bind_event_linear(nb::module_& m);
void bind_graded(nb::module_& m);
void bind_mask(nb::module_& m);
void bind_neuron(nb::module_& m);
void bind_pool(nb::module_& m);
void bind_reservoir(nb::module_& m);
void bind_wkv(nb::module_& m);

namespace {

#if defined(__x86_64__)
const char* const NAMES[] = {"v2", "v3", "v4"};

int widest() {
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return v4 ? 2 : v3 ? 1 : 0;
}
#else
const char* const NAMES[] = {"base"};

int widest() { return 0; }
#endif

int& level() {
    static int index = widest();
    return index;
}

void set_level(const std::string& name) {
    for (int index = widest(); index >= 0; --index)
        if (name == NAMES[index]) {
            level() = index;
            return;
        }
    throw std::invalid_argument("this processor does not run instruction set level " + name);
}

}  // namespace

int level_in_use() { return level(); }

NB_MODULE(_cpu, m) {
#ifdef _OPENMP
    m.attr("threaded") = true;
#else
    m.attr("threaded") = false;
#endif
    m.def("levels", [] {
        std::vector<std::string> names;  // widest first
        for (int index = widest(); index >= 0; --index) names.push_back(NAMES[index]);
        return names;
    });
    m.def("level", [] { return std::string(NAMES[level()]); });
    m.def("set_level", &set_level);
    bind_arena(m);
    bind_cochlea(m);
    bind_count(m);
    bind_decode(m);
    bind_engine(m);
    bind_event_conv(m);
    bind_event_linear(m);
    bind_graded(m);
    bind_mask(m);
    bind_neuron(m);
    bind_pool(m);
    bind_reservoir(m);
    bind_wkv(m);
}
