// The engine on random chains of stages: as they come, linear and by table, with pooling, norms, every neuron; on frames and on events.
#include <deque>

#include "check.h"
#include "engine_api.h"

namespace LEVEL { extern const EngineTable engine_table; }

namespace {

using Size = long long;
constexpr Size LANES = 16, CELLS = 64;

Size padded(Size n) { return (n + LANES - 1) / LANES * LANES; }

// A network and the memory that its stages point to.
struct Net {
    std::deque<Buffer> kept;
    std::vector<EngineStage> stages;
    Size state = 0, n_in = 0;
    bool wide = draw(0, 1);
    size_t item() const { return wide ? 8 : 4; }

    void* keep(Buffer buffer) {
        kept.push_back(std::move(buffer));
        return kept.back().as();
    }
    void* some(Size items) { return keep(numbers(size_t(items), item())); }
    unsigned* places(Size items, Size below) {
        Buffer found = zeros(size_t(items), 4);
        for (Size i = 0; i < items; ++i) found.as<unsigned>()[i] = unsigned(draw(0, int(below - 1)));
        return static_cast<unsigned*>(keep(std::move(found)));
    }

    void link(EngineStage& st) {
        st.link = draw(0, 2);
        if (st.link == 0) {
            st.n_acc = st.n_in;
            if (chance(0.5)) st.bias = some(st.n_acc);
            return;
        }
        if (st.link == 1) {
            st.n_acc = padded(draw(1, 200));
            st.weights = some(st.n_in * st.n_acc);
            st.dense_above = draw(0, int(st.n_in));
        } else if (chance(0.5)) {
            window(st);
        } else {
            st.n_acc = draw(1, 300);
            table(st, 1 + draw(0, int(st.n_acc) - 1), st.n_acc);
        }
        st.bias = some(st.n_acc);
    }

    // Runs of `length` weights at random places; some inputs reach nothing.
    void table(EngineStage& st, Size longest, Size n_acc) {
        const Size n_weights = longest * draw(1, 4);
        st.weight_stride = draw(0, int(longest)), st.target_stride = draw(0, int(longest));
        st.weights = some(n_weights);
        Buffer entries = zeros(size_t(st.n_in), sizeof(EngineEntry));
        for (Size i = 0; i < st.n_in; ++i) {
            EngineEntry& e = entries.as<EngineEntry>()[i];
            Size length = draw(0, int(longest)), rows = draw(0, 4);
            if (chance(0.5)) length = length / LANES * LANES;
            while (rows > 0 && ((rows - 1) * st.weight_stride + length > n_weights || (rows - 1) * st.target_stride + length > n_acc)) --rows;
            if (rows == 0) continue;
            e.rows = unsigned(rows), e.length = unsigned(length);
            e.weight = unsigned(draw(0, int(n_weights - length - (rows - 1) * st.weight_stride)));
            e.target = unsigned(draw(0, int(n_acc - length - (rows - 1) * st.target_stride)));
        }
        st.table = static_cast<EngineEntry*>(keep(std::move(entries)));
    }

    // A convolution with both ways to run it.
    void window(EngineStage& st) {
        st.channels_in = draw(1, 5), st.channels_out = LANES * draw(1, 2), st.rows_out = draw(1, 4), st.columns_out = draw(1, 19);
        st.window = draw(1, 3), st.step = draw(1, 2);
        const Size tall = (st.rows_out - 1) * st.step + st.window, broad = (st.columns_out - 1) * st.step + st.window;
        st.image_in = broad * st.channels_in, st.n_framed = tall * st.image_in + 1;
        st.framed = places(st.n_in, st.n_framed);
        st.n_acc = st.rows_out * st.columns_out * st.channels_out;
        st.dense_weights = some(st.channels_out * st.window * st.window * st.channels_in);
        st.dense_above = draw(0, int(st.n_in));
        table(st, st.columns_out * st.channels_out, st.n_acc);
    }

    void neuron(EngineStage& st) {
        st.neuron = true, st.kind = draw(0, 2), st.reset = draw(0, 2), st.tie_gt = draw(0, 1);
        st.decay_input = st.kind != 1 && draw(0, 1);
        st.refractory = st.kind != 1 && draw(0, 2) == 0 ? draw(1, 4) : 0;
        st.reset_delay = st.kind == 0 && !st.refractory && draw(0, 3) == 0;
        st.residual_reset = st.kind == 0 && !st.refractory && !st.reset_delay && st.reset == 0 && draw(0, 3) == 0;
        st.normalize = st.kind == 0 && draw(0, 3) == 0;
        st.v_reset = draw(0, 1) * -0.25, st.v_leak = draw(0, 1) * 0.1, st.beta_adapt = 0.8, st.adapt_scale = 0.5;
        st.alike = draw(0, 1);
        const Size cells = st.alike ? CELLS : st.n;
        void* of[3];
        for (void*& cell : of) {
            Buffer values = zeros(size_t(cells), item());
            for (Size k = 0; k < cells; ++k) values.set(size_t(k), st.alike ? 0.5 : draw(1, 9) / 10.0, 0);
            cell = keep(std::move(values));
        }
        st.beta = of[0], st.threshold = of[1], st.beta_syn = of[2];
        if (!st.pool && st.link != 2 && st.n % LANES == 0 && chance(0.3)) st.recurrent = some(st.n * st.n);
        st.state = state;
        state += st.n * (1 + (st.kind != 0) + (st.refractory > 0) + (st.recurrent != nullptr));
    }

    explicit Net(Size inputs) : n_in(inputs) {
        const int n_stages = draw(1, 4);
        for (int s = 0; s < n_stages; ++s) {
            EngineStage st{};
            st.n_in = inputs;
            link(st);
            st.n = st.n_acc;
            if (st.link != 1 && chance(0.2)) st.n = draw(1, int(st.n_acc)), st.taps = draw(1, 4), st.pool = places(st.n * st.taps, st.n_acc);
            if (chance(0.3)) st.scale = some(st.n), st.shift = some(st.n);
            Buffer valid = zeros(size_t((st.n + CELLS - 1) / CELLS), 8);
            for (Size k = 0; k < st.n; ++k)
                if (chance(0.9)) valid.as<unsigned long long>()[k / CELLS] |= 1ull << (k % CELLS);
            st.valid = static_cast<unsigned long long*>(keep(std::move(valid)));
            if (chance(0.8)) neuron(st);
            stages.push_back(st);
            inputs = st.n;
        }
    }
};

void one() {
    EngineCall p{};
    const Size width = draw(1, 12), height = draw(1, 12);
    p.polarities = draw(1, 2), p.sensor_width = width, p.sensor_height = height;
    Net net(p.polarities * width * height);
    p.stages = net.stages.data(), p.n_stages = int(net.stages.size()), p.n_in = net.n_in, p.wide = net.wide;
    p.T = draw(0, 30), p.B = draw(1, 5), p.S = net.state, p.threads = draw(1, 3);
    const bool events = chance(0.4);
    if (events) p.B = p.threads = 1;
    const Size last = net.stages.back().n;
    Buffer place = zeros(size_t(last), 4);
    for (Size k = 0; k < last; ++k) place.as<unsigned>()[k] = net.stages.back().valid[k / CELLS] >> (k % CELLS) & 1 ? unsigned(p.n_out++) : 0xffffffffu;
    p.place = place.as<unsigned>();
    const size_t all = size_t(p.T * p.B * p.n_out), item = net.item();
    Buffer x = spikes(size_t(p.T * p.B * p.n_in), net.wide ? 1 : 0, a_density(), chance(0.3)), out = zeros(all, item), membrane = zeros(all, item);
    Buffer rest = zeros(size_t(p.S), item), state0 = zeros(size_t(p.B * p.S), item), state1 = zeros(size_t(p.B * p.S), item);
    Buffer sums = zeros(size_t(p.B * p.n_out), 8), steps = zeros(size_t(p.B), 8);
    p.out = out.as(), p.rest = rest.as(), p.state1 = state1.as(), p.state0 = chance(0.5) ? state0.as() : nullptr;
    if (chance(0.4)) p.membrane = membrane.as(), p.membrane_beta = 0.9;
    p.margin = !events && chance(0.3) ? 0.1 : -1;
    if (p.margin >= 0) p.sums = sums.as<double>(), p.steps = steps.as<long long>();

    const Size n = events ? draw(0, 400) : 0;
    Buffer t = zeros(size_t(n), 8), column = zeros(size_t(n), 2), line = zeros(size_t(n), 2), polarity = zeros(size_t(n), 1);
    Size now = 0;
    for (Size k = 0; k < n; ++k) {
        t.as<long long>()[k] = now += draw(0, 30) ? draw(0, 9) : draw(0, 3000);
        column.as<short>()[k] = short(draw(0, int(width) - 1)), line.as<short>()[k] = short(draw(0, int(height) - 1));
        polarity.as<unsigned char>()[k] = static_cast<unsigned char>(draw(0, 1));
    }
    if (events) {
        p.t = t.as<long long>(), p.column = column.as<short>(), p.line = line.as<short>(), p.polarity = polarity.as<unsigned char>();
        p.n_events = n, p.start = draw(0, 200), p.width = draw(1, 300), p.clip = draw(0, 1);
    } else {
        p.x = x.as();
    }
    p.scratch_bytes = (LEVEL::engine_table.scratch_bytes(p) + 63) / 64 * 64;
    void* scratch = std::aligned_alloc(64, size_t(p.scratch_bytes * p.threads));
    p.scratch = scratch;
    if (events) LEVEL::engine_table.run_events(p);
    else LEVEL::engine_table.run(p);
    std::free(scratch);
}

}  // namespace

int main(int argc, char** argv) { return check("engine", argc, argv, one); }
