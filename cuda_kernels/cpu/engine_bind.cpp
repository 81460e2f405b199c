// Python bindings of the engine: a plan holds the stages of a network; pointers, sizes and numbers only. The caller keeps the arrays alive.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

#include "engine_api.h"
#include "levels.h"

namespace nb = nanobind;

SPIKING_TABLE(EngineTable, engine_table)

namespace {

// Working memory of the calling thread, kept between calls: fresh pages would cost more than a step of a small network.
char* scratch_of(size_t bytes) {
    struct Free { void operator()(char* p) const { std::free(p); } };
    thread_local std::unique_ptr<char, Free> memory;
    thread_local size_t size = 0;
    if (size < bytes) {
        memory.reset();
        size = 0;
        memory.reset(static_cast<char*>(std::aligned_alloc(64, bytes)));
        if (!memory) throw std::bad_alloc();
        size = bytes;
    }
    return memory.get();
}

class EnginePlan {
public:
    // addresses: place, rest; sizes: n_in, n_out, S.
    EnginePlan(const std::vector<uintptr_t>& addresses, const std::vector<long long>& sizes, bool wide) {
        if (addresses.size() != 2 || sizes.size() != 3) throw std::invalid_argument("engine plan: 2 addresses and 3 sizes expected");
        call_.place = pointer<const unsigned>(addresses[0]), call_.rest = pointer<const void>(addresses[1]);
        call_.n_in = sizes[0], call_.n_out = sizes[1], call_.S = sizes[2], call_.wide = wide, call_.margin = -1;
    }

    // The order of the three lists is that of engine.py.
    void add(const std::vector<uintptr_t>& addresses, const std::vector<long long>& sizes, const std::vector<double>& numbers) {
        if (addresses.size() != 13 || sizes.size() != 26 || numbers.size() != 4)
            throw std::invalid_argument("engine stage: 13 addresses, 26 sizes and 4 numbers expected");
        EngineStage st{};
        st.weights = pointer<const void>(addresses[0]), st.bias = pointer<const void>(addresses[1]);
        st.table = pointer<const EngineEntry>(addresses[2]), st.dense_weights = pointer<const void>(addresses[3]);
        st.framed = pointer<const unsigned>(addresses[4]), st.pool = pointer<const unsigned>(addresses[5]);
        st.scale = pointer<const void>(addresses[6]), st.shift = pointer<const void>(addresses[7]);
        st.beta = pointer<const void>(addresses[8]), st.threshold = pointer<const void>(addresses[9]);
        st.beta_syn = pointer<const void>(addresses[10]), st.valid = pointer<const unsigned long long>(addresses[11]);
        st.recurrent = pointer<const void>(addresses[12]);
        const long long* z = sizes.data();
        st.link = int(z[0]), st.n_in = z[1], st.n_acc = z[2], st.weight_stride = z[3], st.target_stride = z[4];
        st.channels_in = z[5], st.image_in = z[6], st.channels_out = z[7], st.rows_out = z[8], st.columns_out = z[9];
        st.window = z[10], st.step = z[11], st.n_framed = z[12], st.dense_above = z[13], st.taps = z[14];
        st.neuron = z[15] != 0, st.kind = int(z[16]), st.reset = int(z[17]), st.refractory = int(z[18]);
        st.tie_gt = z[19] != 0, st.decay_input = z[20] != 0, st.reset_delay = z[21] & 1, st.residual_reset = z[21] & 2;
        st.normalize = z[22] != 0, st.alike = z[23] != 0, st.n = z[24], st.state = z[25];
        st.v_reset = numbers[0], st.v_leak = numbers[1], st.beta_adapt = numbers[2], st.adapt_scale = numbers[3];
        stages_.push_back(st);
    }

    void run(uintptr_t x, uintptr_t out, uintptr_t state0, uintptr_t state1, long long T, long long B, int threads, uintptr_t membrane,
             double membrane_beta, double margin, uintptr_t sums, uintptr_t steps) const {
        EngineCall p = call_of(out, state0, state1, T, B, membrane, membrane_beta);
        p.x = pointer<const void>(x), p.margin = margin, p.sums = pointer<double>(sums), p.steps = pointer<long long>(steps);
        p.threads = threads;
        const EngineTable& table = engine_table();
        nb::gil_scoped_release release;
        work_in(p, table);
        table.run(p);
    }

    // fields: t (int64), x, y (int16), p (uint8); numbers: events, start, width, sensor width, height, polarities.
    long long run_events(const std::vector<uintptr_t>& fields, const std::vector<long long>& numbers, bool clip, uintptr_t out,
                         uintptr_t state0, uintptr_t state1, long long T, uintptr_t membrane, double membrane_beta) const {
        if (fields.size() != 4 || numbers.size() != 6) throw std::invalid_argument("engine events: 4 fields and 6 numbers expected");
        EngineCall p = call_of(out, state0, state1, T, 1, membrane, membrane_beta);
        p.t = pointer<const long long>(fields[0]), p.column = pointer<const short>(fields[1]);
        p.line = pointer<const short>(fields[2]), p.polarity = pointer<const unsigned char>(fields[3]);
        p.n_events = numbers[0], p.start = numbers[1], p.width = numbers[2];
        p.sensor_width = numbers[3], p.sensor_height = numbers[4], p.polarities = numbers[5], p.clip = clip, p.threads = 1;
        const EngineTable& table = engine_table();
        nb::gil_scoped_release release;
        work_in(p, table);
        return table.run_events(p);
    }

private:
    EngineCall call_of(uintptr_t out, uintptr_t state0, uintptr_t state1, long long T, long long B, uintptr_t membrane, double beta) const {
        EngineCall p = call_;
        p.stages = stages_.data(), p.n_stages = int(stages_.size());
        p.out = pointer<void>(out), p.state0 = pointer<const void>(state0), p.state1 = pointer<void>(state1), p.T = T, p.B = B;
        p.membrane = pointer<void>(membrane), p.membrane_beta = beta;
        return p;
    }

    static void work_in(EngineCall& p, const EngineTable& table) {
        p.scratch_bytes = (table.scratch_bytes(p) + 4095) / 4096 * 4096;
        p.scratch = scratch_of(size_t(p.scratch_bytes) * size_t(p.threads));
    }

    EngineCall call_{};
    std::vector<EngineStage> stages_;
};

}  // namespace

void bind_engine(nb::module_& m) {
    nb::class_<EnginePlan>(m, "EnginePlan")
        .def(nb::init<const std::vector<uintptr_t>&, const std::vector<long long>&, bool>())
        .def("add", &EnginePlan::add)
        .def("run", &EnginePlan::run)
        .def("run_events", &EnginePlan::run_events);
}
