// The WKV kernels over random sizes, states and dtypes.
#include "check.h"
#include "wkv_api.h"

namespace LEVEL { extern const WkvTable wkv_table; }

namespace {

void one() {
    WkvCall p{};
    p.dtype = draw(0, 3), p.threads = draw(1, 3), p.T = draw(0, 50), p.B = draw(1, 3), p.C = draw(0, 3) ? draw(1, 70) : draw(1, 600);
    if (draw(0, 39) == 0) p.T = draw(300, 400), p.B = 4, p.C = draw(1000, 1100);   // large enough to be streamed
    const size_t io = p.dtype == 1 ? 8 : p.dtype == 0 ? 4 : 2, wide = p.dtype == 1 ? 8 : 4;
    const size_t width = size_t(p.B * p.C), all = size_t(p.T) * width;
    const size_t borders = p.T > 0 ? size_t((p.T + CHUNK - 1) / CHUNK - 1) : 0;
    auto w = numbers(p.C, wide), u = numbers(p.C, wide), k = numbers(all, io), v = numbers(all, io), grad_y = numbers(all, io);
    auto state0 = numbers(3 * width, wide), state1 = zeros(3 * width, wide), grad1 = numbers(3 * width, wide), grad0 = zeros(3 * width, wide);
    auto y = zeros(all, io), grad_k = zeros(all, io), grad_v = zeros(all, io), saved = zeros(borders * 3 * width, wide);
    auto grad_params = zeros(2 * width, 8);
    p.w = w.as(), p.u = u.as(), p.k = k.as(), p.v = v.as(), p.y = y.as(), p.state1 = state1.as(), p.saved = saved.as();
    p.state0 = draw(0, 1) ? state0.as() : nullptr;
    LEVEL::wkv_table.forward(p);
    p.grad_y = draw(0, 3) ? grad_y.as() : nullptr, p.grad_state1 = draw(0, 1) ? grad1.as() : nullptr;
    p.grad_k = grad_k.as(), p.grad_v = grad_v.as(), p.grad_state0 = draw(0, 1) ? grad0.as() : nullptr;
    p.grad_params = grad_params.as<double>();
    LEVEL::wkv_table.backward(p);
}

}  // namespace

int main(int argc, char** argv) { return check("wkv", argc, argv, one); }
