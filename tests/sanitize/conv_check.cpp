// The event-driven convolution: masks, blocks of weights, forward with and without pooling, backward.
#include "check.h"
#include "event_conv_api.h"

namespace LEVEL { extern const ConvTable conv_table; }

namespace {

using Size = long long;
const ConvTable& table = LEVEL::conv_table;

ConvShape a_shape() {
    ConvShape s{};
    s.groups = chance(0.2) ? draw(2, 3) : 1;
    s.images = draw(1, 4), s.inputs = s.groups * (chance(0.2) ? draw(30, 70) : draw(1, 12)), s.outputs = s.groups * (chance(0.2) ? draw(60, 140) : draw(1, 20));
    s.height = draw(1, 12), s.width = draw(1, 12);
    s.kernel_y = draw(1, 5), s.kernel_x = draw(1, 5), s.stride_y = draw(1, 3), s.stride_x = draw(1, 3), s.pad_y = draw(0, 3), s.pad_x = draw(0, 3);
    s.out_height = (s.height + 2 * s.pad_y - s.kernel_y) / s.stride_y + 1, s.out_width = (s.width + 2 * s.pad_x - s.kernel_x) / s.stride_x + 1;
    return s;
}

void one() {
    ConvCall p{};
    p.s = a_shape();
    const ConvShape& s = p.s;
    if (s.height + 2 * s.pad_y < s.kernel_y || s.width + 2 * s.pad_x < s.kernel_x) return;
    p.dtype = draw(0, 3), p.threads = draw(1, 3);
    const size_t item = size_of(p.dtype), wide = p.dtype == 1 ? 8 : 4;
    const size_t n_x = size_t(s.images * s.inputs * s.height * s.width), n_y = size_t(s.images * s.outputs * s.out_height * s.out_width);
    p.x_last = chance(0.5), p.y_last = chance(0.5);
    const Size chunks = (s.inputs / s.groups + 31) / 32;
    Buffer x = spikes(n_x, p.dtype, a_density(), chance(0.3)), masks = zeros(size_t(s.images * s.groups * s.height * s.width * chunks), 4);
    p.x = x.as(), p.masks = masks.as<unsigned>(), p.limit = chance(0.2) ? draw(0, int(n_x)) : Size(1) << 62;
    Buffer count_scratch = zeros(size_t(table.scratch_bytes(p) * p.threads / 8), 8);
    p.scratch = count_scratch.as();
    const Size found = table.count(p);
    if (found < 0) return;
    p.ones = found & 1;

    const size_t items = size_t(table.block_items(s));
    Buffer weight = numbers(size_t(s.outputs * s.inputs / s.groups * s.kernel_y * s.kernel_x), item), blocks = zeros(items, wide);
    Buffer back = zeros(size_t(table.back_items(s)), wide), bias = numbers(size_t(s.outputs), wide), y = zeros(n_y, item);
    ConvWeights w{};
    w.s = s, w.weight = weight.as(), w.dtype = p.dtype, w.blocks = blocks.as(), w.back = back.as();
    table.pack(w);
    p.weights = blocks.as(), p.bias = chance(0.5) ? bias.as() : nullptr;
    if (chance(0.4)) p.window = draw(1, 3);
    if (p.window > s.out_height || p.window > s.out_width) p.window = 0;
    const size_t n_pooled = p.window ? size_t(s.images * s.outputs * (s.out_height / p.window) * (s.out_width / p.window)) : 0;
    Buffer pooled = zeros(n_pooled, item), moments = zeros(size_t(p.threads * 2 * s.outputs), 8);
    if (p.window) p.bias = nullptr, p.pooled = pooled.as(), p.moments = moments.as<double>();
    else p.y = y.as();
    if (p.ones) p.x = nullptr;
    p.scratch = nullptr;
    Buffer scratch = zeros(size_t(table.scratch_bytes(p) * p.threads / 8), 8);
    p.scratch = scratch.as();
    if (!p.ones) p.x = x.as();
    table.forward(p);

    p.teams = draw(1, p.threads < s.images ? p.threads : int(s.images));
    Buffer grad_y = numbers(n_y, item), grad_pooled = numbers(n_pooled, item), grad_moments = numbers(size_t(2 * s.outputs), 8);
    Buffer grad_weights = zeros(size_t(p.teams) * items, wide), grad_bias = zeros(size_t(p.teams * s.outputs), wide), grad_x = zeros(n_x, item);
    if (p.window) p.grad_pooled = grad_pooled.as(), p.grad_moments = grad_moments.as<double>();
    else p.grad_y = grad_y.as();
    if (chance(0.7)) p.grad_weights = grad_weights.as();
    if (chance(0.3)) p.grad_bias = grad_bias.as();
    if (chance(0.5)) p.back_weights = back.as(), p.grad_x = grad_x.as();
    p.scratch = nullptr;
    Buffer more = zeros(size_t(table.scratch_bytes(p) * p.threads / 8), 8);
    p.scratch = more.as();
    table.backward(p);
    Buffer grad_weight = zeros(size_t(s.outputs * s.inputs / s.groups * s.kernel_y * s.kernel_x), item);
    w.grad_blocks = grad_weights.as(), w.grad_weight = grad_weight.as(), w.teams = p.teams;
    table.unpack(w);
}

}  // namespace

int main(int argc, char** argv) { return check("event-driven convolution", argc, argv, one); }
