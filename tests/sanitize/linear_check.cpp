// The event-driven linear kernels: counting, lists, panels, forward, weight gradient, input gradient.
#include "check.h"
#include "event_linear_api.h"

namespace LEVEL { extern const EventTable event_table; }

namespace {

using Size = long long;
constexpr Size SLACK = 16;
constexpr Size NO_LIMIT = Size(1) << 62;
const EventTable& table = LEVEL::event_table;

Size words_of(Size n) { return (n + 63) / 64; }
Size padded(Size n) { return (n + 15) / 16 * 16; }

std::vector<Size> running_sum(const Size* counts, Size n) {
    std::vector<Size> sums(size_t(n + 1), 0);
    for (Size i = 0; i < n; ++i) sums[size_t(i + 1)] = sums[size_t(i)] + counts[i];
    return sums;
}

Buffer panels_of(Buffer& weight, Size inputs, Size outputs, Size row_stride, Size column_stride, int dtype, int threads) {
    Buffer panels = zeros(size_t(table.panel_items(inputs, outputs, dtype)), size_of(dtype));
    PanelCall p{};
    p.weight = weight.as(), p.row_stride = row_stride, p.column_stride = column_stride, p.inputs = inputs, p.outputs = outputs;
    p.panels = panels.as(), p.dtype = dtype, p.threads = threads;
    table.pack(p);
    return panels;
}

void one() {
    const int dtype = draw(0, 2), threads = draw(1, 3);
    const size_t item = size_of(dtype);
    const bool large = chance(0.02);
    const Size rows = large ? draw(1, 3) : draw(1, 150), inputs = large ? draw(16000, 40000) : draw(1, 300), outputs = draw(1, 200);
    const Size stride = inputs + (chance(0.3) ? draw(0, 9) : 0);
    const bool values = chance(0.3);
    Buffer x = spikes(size_t((rows - 1) * stride + inputs), dtype, a_density(), values);
    Buffer weight = numbers(size_t(inputs * outputs), item), bias = numbers(size_t(outputs), item), y = zeros(size_t(rows * outputs), item);
    Buffer bits = zeros(size_t(rows * words_of(inputs)), 8), counts = zeros(size_t(rows), 8);
    const bool turned_weight = chance(0.3);
    Buffer panels = panels_of(weight, inputs, outputs, turned_weight ? 1 : inputs, turned_weight ? outputs : 1, dtype, threads);

    EventCall p{};
    p.x = x.as(), p.x_stride = stride, p.bits = bits.as<unsigned long long>(), p.counts = counts.as<Size>();
    p.limit = chance(0.3) ? draw(0, int(rows * inputs)) : NO_LIMIT;
    p.rows = rows, p.inputs = inputs, p.outputs = outputs, p.dtype = dtype, p.threads = threads;
    const Size found = table.count(p);
    if (found < 0) return;
    if (found & 1) p.x = nullptr;
    const std::vector<Size> offsets = running_sum(p.counts, rows);
    Buffer lists = zeros(size_t(found / 2 + SLACK), 4);
    p.offsets = offsets.data(), p.lists = lists.as<unsigned>();
    table.list(p);
    p.panels = panels.as(), p.bias = chance(0.5) ? bias.as() : nullptr, p.y = y.as();
    table.forward(p);

    Buffer grad_y = numbers(size_t(rows * outputs), item), grad_weight = zeros(size_t(inputs * outputs), item);
    const bool turned_grad = chance(0.3);
    Buffer grad_panels = zeros(size_t(threads * rows * 64), item);
    Buffer turned = zeros(size_t(inputs * words_of(rows)), 8), turned_counts = zeros(size_t(inputs), 8);
    WeightGradCall g{};
    g.bits = p.bits, g.turned = turned.as<unsigned long long>(), g.counts = turned_counts.as<Size>();
    g.x = p.x, g.x_stride = stride, g.grad_y = grad_y.as(), g.row_stride = turned_grad ? 1 : outputs, g.column_stride = turned_grad ? rows : 1;
    g.panels = grad_panels.as(), g.grad_weight = grad_weight.as();
    g.rows = rows, g.inputs = inputs, g.outputs = outputs, g.dtype = dtype, g.threads = threads;
    table.turn(g);
    const std::vector<Size> turned_offsets = running_sum(g.counts, inputs);
    Buffer turned_lists = zeros(size_t(turned_offsets.back() + SLACK), 4);
    g.offsets = turned_offsets.data(), g.lists = turned_lists.as<unsigned>();
    table.turned_list(g);
    table.weight_grad(g);

    const size_t wide = dtype == 1 ? 8 : 4;
    InputGradCall d{};
    d.codes = chance(0.3);
    Buffer membrane = numbers(size_t(rows * inputs), d.codes ? 2 : wide), grad_x = zeros(size_t(rows * inputs), item);
    Buffer own_lists = zeros(size_t(threads * (inputs + SLACK)), 4), grads = zeros(size_t(threads * padded(outputs)), wide);
    d.membrane = membrane.as(), d.threshold = 1, d.reach = draw(0, 20) / 10.0, d.most = chance(0.5) ? 1 : 0.3;
    d.panels = panels.as(), d.grad_y = grad_y.as(), d.grad_x = grad_x.as(), d.lists = own_lists.as<unsigned>(), d.grads = grads.as();
    d.rows = rows, d.inputs = inputs, d.outputs = outputs, d.dtype = dtype, d.threads = threads;
    table.input_grad(d);
}

}  // namespace

int main(int argc, char** argv) { return check("event-driven linear", argc, argv, one); }
