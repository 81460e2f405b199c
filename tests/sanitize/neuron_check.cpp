// Runs the CPU kernels of the host's widest instruction set on buffers of exactly the promised size, over random sizes, rules and save
// modes, so that the sanitizers see any access outside them. Results are checked elsewhere; here only memory and arithmetic are.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "neuron_api.h"

namespace spiking_base { extern const KernelTable neuron_table; }

namespace {

std::mt19937 generator;
int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

// Exactly n items on the heap: one byte past the end is the sanitizer's.
std::vector<unsigned char> buffer(size_t items, size_t width, bool numbers) {
    std::vector<unsigned char> bytes(items * width);
    for (size_t i = 0; i < items; ++i) {
        const double value = numbers ? std::normal_distribution<double>(0, 1)(generator) : 0;
        if (width == 4) reinterpret_cast<float*>(bytes.data())[i] = float(value);
        else if (width == 8) reinterpret_cast<double*>(bytes.data())[i] = value;
        else reinterpret_cast<uint16_t*>(bytes.data())[i] = uint16_t(numbers ? draw(0, 0xffff) : 0);  // any 16 bits: infinities and NaN too
    }
    bytes.shrink_to_fit();
    return bytes;
}

void one() {
    NeuronCall p{};
    p.dtype = draw(0, 3), p.kind = draw(0, 2), p.reset = draw(0, 2), p.surrogate = draw(0, 8), p.threads = draw(1, 3);
    p.T = draw(0, 40), p.C = draw(0, 1) ? 1 : draw(1, 7), p.inner = draw(1, 9);
    p.N = p.C == 1 && draw(0, 1) ? draw(0, 3000) : p.C * p.inner * draw(0, 40);
    if (draw(0, 39) == 0) p.C = p.inner = 1, p.T = draw(1, 5), p.N = draw(1100000, 1200000) / p.T;   // large enough to be streamed
    p.tie_gt = draw(0, 1), p.detach_reset = draw(0, 1);
    p.decay_input = p.kind != 1 && draw(0, 1);
    p.refractory = p.kind != 1 && draw(0, 2) == 0 ? draw(1, 4) : 0;
    p.reset_delay = p.kind == 0 && !p.refractory && draw(0, 3) == 0;
    p.residual_reset = p.kind == 0 && !p.refractory && !p.reset_delay && p.reset == 0 && draw(0, 3) == 0;
    p.normalize = p.kind == 0 && draw(0, 3) == 0;
    p.beta = 0.9, p.threshold = 1, p.beta_syn = 0.5, p.v_reset = draw(0, 1) * -0.25, p.v_leak = draw(0, 1) * 0.1;
    p.beta_adapt = 0.8, p.adapt_scale = 0.5, p.a = 2, p.b = 1;
    const bool recompute = p.kind != 0 || p.refractory || p.residual_reset;
    p.save = recompute ? 3 : p.reset_delay ? (draw(0, 1) ? 1 : 3) : draw(1, 3);
    const size_t io = p.dtype == 1 ? 8 : p.dtype == 0 ? 4 : 2, wide = p.dtype == 1 ? 8 : 4;
    const size_t states = 1 + (p.kind != 0) + (p.refractory > 0), all = size_t(p.T * p.N);
    const size_t borders = p.T > 0 ? size_t((p.T + CHUNK - 1) / CHUNK - 1) : 0;
    auto x = buffer(all, io, true), s = buffer(all, io, false), grad_s = buffer(all, io, true), grad_x = buffer(all, io, false);
    auto state0 = buffer(states * p.N, wide, true), state1 = buffer(states * p.N, wide, false);
    auto grad1 = buffer(states * p.N, wide, true), grad0 = buffer(states * p.N, wide, false);
    auto params = buffer(3 * p.C, wide, true);
    auto saved = p.save == 1   ? buffer(all, wide, false)
                 : p.save == 2 ? buffer(all, 2, false)
                               : buffer(borders * states * p.N, wide, false);
    std::vector<double> grad_params(size_t(p.threads) * 3 * p.C);
    p.x = x.data(), p.s = s.data(), p.saved = saved.data(), p.state1 = state1.data();
    p.state0 = draw(0, 1) ? state0.data() : nullptr;
    p.params = draw(0, 1) ? params.data() : nullptr;
    if (!p.params) p.C = p.inner = 1;
    spiking_base::neuron_table.forward(p);
    p.grad_s = draw(0, 3) ? grad_s.data() : nullptr;
    p.grad_s_is_scalar = draw(0, 3) == 0 && all > 0;
    p.grad_state1 = draw(0, 1) ? grad1.data() : nullptr;
    p.grad_x = grad_x.data(), p.grad_state0 = p.state0 ? grad0.data() : nullptr;
    p.grad_params = p.params && draw(0, 1) ? grad_params.data() : nullptr;
    // Where neither the replay nor the decayed input's gradient reads x, the caller hands over none.
    if (p.save != 3 && !(p.decay_input && p.params)) p.x = nullptr;
    spiking_base::neuron_table.backward(p);
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 500;
    generator.seed(argc > 2 ? unsigned(std::atoi(argv[2])) : 0u);
    for (int round = 0; round < rounds; ++round) one();
    std::printf("neuron kernels: %d random calls under the sanitizers, nothing found\n", rounds);
}
