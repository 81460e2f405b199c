// The neuron kernels over random sizes, rules and save modes.
#include "check.h"
#include "neuron_api.h"

namespace LEVEL { extern const KernelTable neuron_table; }

namespace {

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
    auto x = numbers(all, io), s = zeros(all, io), grad_s = numbers(all, io), grad_x = zeros(all, io);
    auto state0 = numbers(states * p.N, wide), state1 = zeros(states * p.N, wide);
    auto grad1 = numbers(states * p.N, wide), grad0 = zeros(states * p.N, wide);
    auto params = numbers(3 * p.C, wide);
    auto saved = p.save == 1   ? zeros(all, wide)
                 : p.save == 2 ? zeros(all, 2)
                               : zeros(borders * states * p.N, wide);
    auto grad_params = zeros(size_t(p.threads) * 3 * p.C, 8);
    p.x = x.as(), p.s = s.as(), p.saved = saved.as(), p.state1 = state1.as();
    p.state0 = draw(0, 1) ? state0.as() : nullptr;
    p.params = draw(0, 1) ? params.as() : nullptr;
    if (!p.params) p.C = p.inner = 1;
    LEVEL::neuron_table.forward(p);
    p.grad_s = draw(0, 3) ? grad_s.as() : nullptr;
    p.grad_s_is_scalar = draw(0, 3) == 0 && all > 0;
    p.grad_state1 = draw(0, 1) ? grad1.as() : nullptr;
    p.grad_x = grad_x.as(), p.grad_state0 = p.state0 ? grad0.as() : nullptr;
    p.grad_params = p.params && draw(0, 1) ? grad_params.as<double>() : nullptr;
    // Where neither the replay nor the decayed input's gradient reads x, the caller hands over none.
    if (p.save != 3 && !(p.decay_input && p.params)) p.x = nullptr;
    LEVEL::neuron_table.backward(p);
}

}  // namespace

int main(int argc, char** argv) { return check("neuron", argc, argv, one); }
