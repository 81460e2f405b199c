// Python bindings of the CPU kernels: pointers, sizes and numbers only. Shapes, dtypes and error messages are Python's job.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "neuron_api.h"
#include "pool_api.h"

namespace nb = nanobind;

void bind_arena(nb::module_& m);
void bind_decode(nb::module_& m);

#if defined(__x86_64__)
namespace spiking_v2 { extern const KernelTable table; extern const PoolTable pool_table; }
namespace spiking_v3 { extern const KernelTable table; extern const PoolTable pool_table; }
namespace spiking_v4 { extern const KernelTable table; extern const PoolTable pool_table; }
#else
namespace spiking_base { extern const KernelTable table; extern const PoolTable pool_table; }
#endif

namespace {

// Widest first: the first one that the processor runs is the default.
struct Level { const KernelTable* neurons; const PoolTable* pool; };

std::vector<Level> usable_levels() {
    std::vector<Level> levels;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (v4) levels.push_back({&spiking_v4::table, &spiking_v4::pool_table});
    if (v3) levels.push_back({&spiking_v3::table, &spiking_v3::pool_table});
    levels.push_back({&spiking_v2::table, &spiking_v2::pool_table});
#else
    levels.push_back({&spiking_base::table, &spiking_base::pool_table});
#endif
    return levels;
}

Level& current() {
    static Level level = usable_levels().front();
    return level;
}

void set_level(const std::string& name) {
    for (const Level& level : usable_levels())
        if (name == level.neurons->level) {
            current() = level;
            return;
        }
    throw std::invalid_argument("this processor does not run instruction set level " + name);
}

template <class T> T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

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

void neuron_forward(uintptr_t x, uintptr_t state0, uintptr_t params, uintptr_t s, uintptr_t state1, uintptr_t saved, long long T,
                    long long N, long long C, long long inner, const std::vector<int>& rule, const std::vector<double>& numbers,
                    int threads) {
    NeuronCall p = call_of(x, state0, params, saved, {T, N, C, inner}, rule, numbers, threads);
    p.s = pointer<void>(s), p.state1 = pointer<void>(state1);
    const KernelTable* table = current().neurons;
    nb::gil_scoped_release release;
    table->forward(p);
}

void neuron_backward(uintptr_t x, uintptr_t state0, uintptr_t params, uintptr_t saved, uintptr_t grad_s, bool grad_s_is_scalar,
                     uintptr_t grad_state1, uintptr_t grad_x, uintptr_t grad_state0, uintptr_t grad_params, long long T, long long N,
                     long long C, long long inner, const std::vector<int>& rule, const std::vector<double>& numbers, int threads) {
    NeuronCall p = call_of(x, state0, params, saved, {T, N, C, inner}, rule, numbers, threads);
    p.grad_s = pointer<const void>(grad_s), p.grad_s_is_scalar = grad_s_is_scalar;
    p.grad_state1 = pointer<const void>(grad_state1), p.grad_x = pointer<void>(grad_x), p.grad_state0 = pointer<void>(grad_state0);
    p.grad_params = pointer<double>(grad_params);
    const KernelTable* table = current().neurons;
    nb::gil_scoped_release release;
    table->backward(p);
}

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
    const PoolTable* table = current().pool;
    nb::gil_scoped_release release;
    table->forward(p);
}

void pool_backward(uintptr_t x, uintptr_t grad_pooled, uintptr_t grad_moments, uintptr_t grad_x, long long images, long long channels,
                   long long height, long long width, long long window, bool wide, int threads) {
    PoolCall p = pool_call(x, {images, channels, height, width, window}, wide, threads);
    p.grad_pooled = pointer<const void>(grad_pooled), p.grad_moments = pointer<const double>(grad_moments);
    p.grad_x = pointer<void>(grad_x);
    const PoolTable* table = current().pool;
    nb::gil_scoped_release release;
    table->backward(p);
}

}  // namespace

NB_MODULE(_cpu, m) {
    m.attr("CHUNK") = CHUNK;
#ifdef _OPENMP
    m.attr("threaded") = true;
#else
    m.attr("threaded") = false;
#endif
    m.def("levels", [] {
        std::vector<std::string> names;
        for (const Level& level : usable_levels()) names.push_back(level.neurons->level);
        return names;
    });
    m.def("level", [] { return std::string(current().neurons->level); });
    m.def("set_level", &set_level);
    m.def("neuron_forward", &neuron_forward);
    m.def("neuron_backward", &neuron_backward);
    m.def("pool_forward", &pool_forward);
    m.def("pool_backward", &pool_backward);
    bind_arena(m);
    bind_decode(m);
}
