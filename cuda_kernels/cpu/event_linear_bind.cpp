// Python bindings of the event-driven linear kernels: pointers, sizes and numbers only. Scratch memory belongs to the calling thread.
#include <nanobind/nanobind.h>

#include <vector>

#include "event_linear_api.h"
#include "levels.h"
#include "planned.h"

namespace nb = nanobind;

SPIKING_TABLE(EventTable, event_table)

namespace {

using Size = long long;

constexpr Size SLACK = 16;                       // lists are written in whole vectors
constexpr Size KEPT = Size(64) << 20;            // bytes of scratch that a thread keeps between calls
constexpr Size WORTH_A_THREAD = 100000;          // sums below which waking a second thread costs more than it saves

struct Scratch {
    std::vector<unsigned long long> bits, turned;
    std::vector<Size> counts, offsets;
    std::vector<unsigned int> lists;

    void trim() {
        const Size bytes = Size(bits.size() + turned.size() + counts.size() + offsets.size()) * 8 + Size(lists.size()) * 4;
        if (bytes > KEPT) *this = Scratch{};
    }
};

Scratch& scratch() {
    thread_local Scratch own;
    return own;
}

Size words_of(Size n) { return (n + 63) / 64; }

const Size* running_sum(Scratch& s, const Size* counts, Size n) {
    Size* offsets = room(s.offsets, n + 1);
    Size total = 0;
    for (Size i = 0; i < n; ++i) offsets[i] = total, total += counts[i];
    offsets[n] = total;
    return offsets;
}

int enough_threads(Size sums, int threads) { return sums < WORTH_A_THREAD ? 1 : threads; }

// Where to leave the spikes of each row [rows] and of each input [threads, inputs], zeroed; 0: nobody wants to know.
struct Tally { uintptr_t per_row, per_input; };

void tallied(EventCall& p, Scratch& s, Tally to) {
    p.counts = to.per_row ? pointer<Size>(to.per_row) : room(s.counts, p.rows);
    p.per_input = pointer<int>(to.per_input);
}

// bits: where to leave the spikes as bits [rows, words]; 0: they are not wanted.
Size event_count(uintptr_t x, Size x_stride, uintptr_t bits, Size limit, Size rows, Size inputs, int dtype, int threads, uintptr_t per_row,
                 uintptr_t per_input) {
    EventCall p{};
    const EventTable& table = event_table();
    nb::gil_scoped_release release;
    Scratch& s = scratch();
    p.x = pointer<const void>(x), p.x_stride = x_stride, p.limit = limit;
    p.bits = bits ? pointer<unsigned long long>(bits) : room(s.bits, rows * words_of(inputs));
    p.rows = rows, p.inputs = inputs, p.dtype = dtype, p.threads = enough_threads(rows * inputs, threads);
    tallied(p, s, {per_row, per_input});
    const Size found = table.count(p);
    s.trim();
    return found;
}

unsigned long long event_sample(uintptr_t address, Size bytes) { return memory_sample(pointer<const char>(address), bytes); }

// A weight in panels, ready for calls. `weight` and `bytes` say where it lies and `sample` what event_sample found there before the panels
// were made: no call computes with panels of another weight.
class EventPlan {
public:
    EventPlan(uintptr_t panels, uintptr_t weight, Size bytes, unsigned long long sample, Size inputs, Size outputs, int dtype)
        : watched_{pointer<const char>(weight), bytes, sample} {
        call_.panels = pointer<const void>(panels), call_.inputs = inputs, call_.outputs = outputs, call_.dtype = dtype;
    }

    // Counts, and where there are at most `limit` spikes, computes y; the return value is that of `count`, or STALE.
    // bits: where to leave the spikes as bits, or with `given` where they are (then x is 0 where all spikes are 1); 0: they are not wanted.
    Size run(uintptr_t x, Size x_stride, uintptr_t bits, bool given, Size limit, uintptr_t bias, uintptr_t y, Size rows, int threads,
             uintptr_t per_row, uintptr_t per_input) const {
        EventCall p = call_;
        const EventTable& table = event_table();
        nb::gil_scoped_release release;
        if (watched_.changed()) return STALE;
        Scratch& s = scratch();
        const Size words = words_of(p.inputs);
        p.x = pointer<const void>(x), p.x_stride = x_stride, p.limit = limit, p.rows = rows;
        p.bits = bits ? pointer<unsigned long long>(bits) : room(s.bits, rows * words);
        tallied(p, s, {per_row, per_input});
        p.threads = enough_threads(rows * p.inputs, threads);
        Size found;
        if (given) {
            found = 0;
            for (Size r = 0; r < rows; ++r) {
                p.counts[r] = 0;
                for (Size w = 0; w < words; ++w) p.counts[r] += __builtin_popcountll(p.bits[r * words + w]);
                found += p.counts[r];
            }
            found = found * 2 + (x == 0);
        } else {
            found = table.count(p);
            if (found < 0) return found;
            if (found & 1) p.x = nullptr;
        }
        p.offsets = running_sum(s, p.counts, rows);
        p.lists = room(s.lists, found / 2 + SLACK);
        table.list(p);
        p.bias = pointer<const void>(bias), p.y = pointer<void>(y);
        p.threads = enough_threads(found / 2 * p.outputs, threads);
        table.forward(p);
        s.trim();
        return found;
    }

private:
    EventCall call_{};
    Watched watched_;
};

Size event_panel_items(Size inputs, Size outputs, int dtype) {
    return event_table().panel_items(inputs, outputs, dtype);
}

bool event_panels(uintptr_t weight, Size row_stride, Size column_stride, Size inputs, Size outputs, uintptr_t panels, int dtype,
                  int threads) {
    PanelCall p{};
    p.weight = pointer<const void>(weight), p.row_stride = row_stride, p.column_stride = column_stride;
    p.inputs = inputs, p.outputs = outputs, p.panels = pointer<void>(panels);
    p.dtype = dtype, p.threads = enough_threads(inputs * outputs, threads);
    const EventTable& table = event_table();
    nb::gil_scoped_release release;
    return table.pack(p);
}

// panels: room for [threads, rows × 64] numbers. x: 0 where every spike is 1. False: grad_y is not finite, and only the dense product right.
bool event_weight_grad(uintptr_t grad_y, Size row_stride, Size column_stride, uintptr_t panels, uintptr_t bits, uintptr_t x, Size x_stride,
                       uintptr_t grad_weight, Size rows, Size inputs, Size outputs, int dtype, int threads) {
    const EventTable& table = event_table();
    nb::gil_scoped_release release;
    Scratch& s = scratch();
    WeightGradCall p{};
    p.bits = pointer<const unsigned long long>(bits), p.x = pointer<const void>(x), p.x_stride = x_stride;
    p.grad_y = pointer<const void>(grad_y), p.row_stride = row_stride, p.column_stride = column_stride;
    p.turned = room(s.turned, inputs * words_of(rows));
    p.counts = room(s.counts, inputs);
    p.panels = pointer<void>(panels), p.grad_weight = pointer<void>(grad_weight);
    p.rows = rows, p.inputs = inputs, p.outputs = outputs, p.dtype = dtype, p.threads = enough_threads(rows * inputs, threads);
    table.turn(p);
    p.offsets = running_sum(s, p.counts, inputs);
    p.lists = room(s.lists, p.offsets[inputs] + SLACK);
    table.turned_list(p);
    p.threads = enough_threads(inputs * outputs, threads);
    const bool finite = table.weight_grad(p);
    s.trim();
    return finite;
}

// False where more than `most` of the derivatives are not zero: then nothing was computed.
bool event_input_grad(uintptr_t membrane, bool codes, double threshold, double reach, double most, uintptr_t panels, uintptr_t grad_y,
                      uintptr_t grad_x, Size rows, Size inputs, Size outputs, int dtype, int threads) {
    const EventTable& table = event_table();
    nb::gil_scoped_release release;
    Scratch& s = scratch();
    InputGradCall p{};
    p.membrane = pointer<const void>(membrane), p.codes = codes, p.threshold = threshold, p.reach = reach, p.most = most;
    p.panels = pointer<const void>(panels), p.grad_y = pointer<const void>(grad_y), p.grad_x = pointer<void>(grad_x);
    p.rows = rows, p.inputs = inputs, p.outputs = outputs, p.dtype = dtype;
    p.threads = enough_threads(rows * inputs, threads);
    p.lists = room(s.lists, p.threads * (inputs + SLACK));
    p.grads = room(s.bits, p.threads * words_of(outputs) * 64);  // 8 bytes a number, whatever their type
    return table.input_grad(p);
}

}  // namespace

void bind_event_linear(nb::module_& m) {
    m.attr("EVENT_STALE") = STALE;
    nb::class_<EventPlan>(m, "EventPlan")
        .def(nb::init<uintptr_t, uintptr_t, Size, unsigned long long, Size, Size, int>())
        .def("run", &EventPlan::run);
    m.def("event_count", &event_count);
    m.def("event_panel_items", &event_panel_items);
    m.def("event_panels", &event_panels);
    m.def("event_sample", &event_sample);
    m.def("event_input_grad", &event_input_grad);
    m.def("event_weight_grad", &event_weight_grad);
}
