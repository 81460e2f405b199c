// __global__ wrappers over include/: one thread owns `width` neighbouring neurons and walks through time with their state in registers.
// Compiled at run time, one instantiation at a time (compile.py); the arguments are those of launch.py's tables, in their order.
//
// Sums over neurons (parameter gradients) are taken in double; blocks add theirs in no fixed order, so that the last bits of a
// double may differ between runs.
#include "common.cuh"

namespace SPIKING_NS {

template <Kind kind, Reset reset, Flags flags, class IO, int save, int width, class T = typename StateOf<IO>::type>
__global__ void __launch_bounds__(THREADS, BLOCKS<T>) neuron_forward(
    const IO* __restrict__ x, const T* __restrict__ state0, const T* __restrict__ params, IO* __restrict__ s, T* __restrict__ state1,
    void* __restrict__ saved, i64 steps, i64 neurons, i64 n_params, i64 inner, T beta, T threshold, T beta_syn, T v_reset, T v_leak,
    T beta_adapt, T adapt_scale, T a, T b, int refractory, int tie_gt, int decay_input, int detach_reset, int reset_delay,
    int residual_reset, int normalize) {
    const i64 first = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * width;
    if (first >= neurons) return;
    const Rule<T> rule = rule_of(v_reset, v_leak, beta_adapt, adapt_scale, a, b, refractory, tie_gt, decay_input, detach_reset,
                                 reset_delay, residual_reset, normalize);
    const i64 index = n_params == 1 ? 0 : first / inner % n_params;
    const Cells<T> cell = cells_of(params, n_params, index, beta, threshold, beta_syn);
    const i64 n_states = 1 + (kind == Kind::lif ? 0 : 1) + (refractory > 0 ? 1 : 0);

    T v[width], e[width], c[width];
    load_state<kind, flags>(state0 ? state0 + first : nullptr, neurons, rule, v, e, c);
    for (i64 start = 0; start < steps; start += CHUNK) {
        if constexpr (save == 3)
            if (start > 0)
                store_state<kind, flags>(static_cast<T*>(saved) + (start / CHUNK - 1) * n_states * neurons + first, neurons, rule, v, e, c);
        const int n = start + CHUNK < steps ? CHUNK : int(steps - start);
#pragma unroll 4
        for (int i = 0; i < n; ++i) {
            const i64 at = (start + i) * neurons + first;
            T drive[width], spikes[width], h[width];
            load(x + at, drive);
#pragma unroll
            for (int k = 0; k < width; ++k)
                spikes[k] = neuron_step<kind, reset, flags>(drive[k], v[k], e[k], c[k], cell.beta, cell.threshold, cell.beta_syn, rule, h[k]);
            store(spikes, s + at);
            if constexpr (save == 1) store(h, static_cast<T*>(saved) + at);
            if constexpr (save == 2) {
                Pack<u16, width> codes;
#pragma unroll
                for (int k = 0; k < width; ++k) codes.at[k] = encode_half<flags>(h[k], cell.threshold, rule);
                *reinterpret_cast<Pack<u16, width>*>(static_cast<u16*>(saved) + at) = codes;
            }
        }
    }
    store_state<kind, flags>(state1 + first, neurons, rule, v, e, c);
}

// The membrane of a step and its distance from the threshold, as the forward kept them.
template <Flags flags, int save, class T, int width>
SPIKING_FN void load_saved(const void* saved, i64 at, T threshold, const Rule<T>& rule, T (&h)[width], T (&u)[width]) {
    if constexpr (save == 2) {
        const Pack<u16, width> codes = *reinterpret_cast<const Pack<u16, width>*>(static_cast<const u16*>(saved) + at);
#pragma unroll
        for (int k = 0; k < width; ++k) h[k] = decode_half<flags>(codes.at[k], threshold, rule, u[k]);
    } else {
        load(static_cast<const T*>(saved) + at, h);
#pragma unroll
        for (int k = 0; k < width; ++k) u[k] = distance<flags>(h[k], threshold, rule);
    }
}

// Adds what the threads of a block found to grad_params [3, C]: in shared memory where all their neurons share one cell.
template <Kind kind>
SPIKING_FN void add_params(double (&sum)[3], double* grad_params, i64 n_params, i64 index, bool mine, bool one_cell) {
    constexpr int rows = kind == Kind::cuba ? 3 : 2;
    if (!one_cell) {
        if (mine)
            for (int r = 0; r < rows; ++r) atomicAdd(grad_params + r * n_params + index, sum[r]);
        return;
    }
    double* sums = reinterpret_cast<double*>(shared_memory);
    __syncthreads();                             // the same memory held the recomputed states
    for (int r = 0; r < rows; ++r) sums[r * blockDim.x + threadIdx.x] = sum[r];
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half)
            for (int r = 0; r < rows; ++r) sums[r * blockDim.x + threadIdx.x] += sums[r * blockDim.x + threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0)
        for (int r = 0; r < rows; ++r) atomicAdd(grad_params + r * n_params + index, sums[r * blockDim.x]);
}

template <Kind kind, Reset reset, Flags flags, Surrogate surrogate, class IO, int save, bool want_params, int width,
          class T = typename StateOf<IO>::type>
__global__ void __launch_bounds__(THREADS, BLOCKS<T>) neuron_backward(
    const IO* __restrict__ x, const T* __restrict__ state0, const T* __restrict__ params, const void* __restrict__ saved,
    const IO* __restrict__ grad_s, int grad_s_is_scalar, const T* __restrict__ grad_state1, IO* __restrict__ grad_x,
    T* __restrict__ grad_state0, double* grad_params, i64 steps, i64 neurons, i64 n_params, i64 inner, T beta, T threshold, T beta_syn,
    T v_reset, T v_leak, T beta_adapt, T adapt_scale, T a, T b, int refractory, int tie_gt, int decay_input, int detach_reset,
    int reset_delay, int residual_reset, int normalize) {
    static_assert(save == 3 || kind == Kind::lif, "only the membrane of a LIF neuron can be read back");
    const i64 first = (i64(blockIdx.x) * blockDim.x + threadIdx.x) * width;
    const bool mine = first < neurons;
    const i64 index = n_params == 1 || !mine ? 0 : first / inner % n_params;
    double sum[3] = {0.0, 0.0, 0.0};             // of beta, threshold, beta_syn
    if (mine) {
        Rule<T> rule = rule_of(v_reset, v_leak, beta_adapt, adapt_scale, a, b, refractory, tie_gt, decay_input, detach_reset, reset_delay,
                               residual_reset, normalize);
        if constexpr (save == 2) rule.on_tie = T(1);                     // the code's sign holds the spike whatever the tie rule was
        const Cells<T> cell = cells_of(params, n_params, index, beta, threshold, beta_syn);
        const i64 n_states = 1 + (kind == Kind::lif ? 0 : 1) + (refractory > 0 ? 1 : 0);

        T carry_v[width], carry_e[width], carry_s[width], gs[width];
        fill(carry_v, T(0)), fill(carry_e, T(0)), fill(carry_s, T(0));
        if (grad_state1) {
            load(grad_state1 + first, carry_v);
            if constexpr (kind != Kind::lif) load(grad_state1 + neurons + first, carry_e);
        }
        fill(gs, grad_s && grad_s_is_scalar ? T(widen(*grad_s)) : T(0));
        const bool read_gs = grad_s && !grad_s_is_scalar;

        const auto adjoint = [&](i64 at, const T(&drive)[width], const T(&h)[width], const T(&u)[width], const T(&v)[width],
                                 const T(&e)[width], const T(&c)[width]) {
            if (read_gs) load(grad_s + at, gs);
            T gx[width];
#pragma unroll
            for (int k = 0; k < width; ++k) {
                T grad_beta = T(0), grad_threshold = T(0), grad_beta_syn = T(0);
                const T slope = surrogate_grad<surrogate>(u[k], rule.a, rule.b);
                gx[k] = neuron_adjoint<kind, reset, flags>(drive[k], h[k], u[k], slope, gs[k], v[k], e[k], c[k], carry_v[k], carry_e[k],
                                                           carry_s[k], cell.beta, cell.threshold, cell.beta_syn, rule, grad_beta,
                                                           grad_threshold, grad_beta_syn);
                if constexpr (want_params) {
                    sum[0] += double(grad_beta);
                    sum[1] += double(grad_threshold);
                    if constexpr (kind == Kind::cuba) sum[2] += double(grad_beta_syn);
                }
            }
            store(gx, grad_x + at);
        };

        T v[width], e[width], c[width], drive[width], h[width], u[width];
        if constexpr (save == 3) {               // run a chunk forward again, then walk it backward
            static_assert(width == 1, "the states of a chunk fill the shared memory");
            constexpr int rows = 1 + (kind == Kind::lif ? 0 : 1) + (flags == Flags::plain ? 0 : 1);
            T* const kept = reinterpret_cast<T*>(shared_memory) + threadIdx.x;
            for (i64 chunk = (steps + CHUNK - 1) / CHUNK - 1; chunk >= 0; --chunk) {
                const i64 start = chunk * CHUNK;
                const int n = start + CHUNK < steps ? CHUNK : int(steps - start);
                const T* from = chunk > 0 ? static_cast<const T*>(saved) + (chunk - 1) * n_states * neurons + first
                                : state0  ? state0 + first
                                          : nullptr;
                load_state<kind, flags>(from, neurons, rule, v, e, c);
#pragma unroll 4
                for (int i = 0; i < n; ++i) {
                    kept[(i * rows) * blockDim.x] = v[0];
                    if constexpr (kind != Kind::lif) kept[(i * rows + 1) * blockDim.x] = e[0];
                    if constexpr (flags != Flags::plain) kept[(i * rows + rows - 1) * blockDim.x] = c[0];
                    load(x + (start + i) * neurons + first, drive);
                    neuron_step<kind, reset, flags>(drive[0], v[0], e[0], c[0], cell.beta, cell.threshold, cell.beta_syn, rule, h[0]);
                }
#pragma unroll 2
                for (int i = n - 1; i >= 0; --i) {
                    const i64 at = (start + i) * neurons + first;
                    v[0] = kept[(i * rows) * blockDim.x];
                    if constexpr (kind != Kind::lif) e[0] = kept[(i * rows + 1) * blockDim.x];
                    if constexpr (flags != Flags::plain) c[0] = kept[(i * rows + rows - 1) * blockDim.x];
                    load(x + at, drive);
                    T v_after = v[0], e_after = e[0], c_after = c[0];
                    neuron_step<kind, reset, flags>(drive[0], v_after, e_after, c_after, cell.beta, cell.threshold, cell.beta_syn, rule, h[0]);
                    u[0] = distance<flags>(h[0], theta_of<kind>(e[0], cell.threshold, rule), rule);
                    adjoint(at, drive, h, u, v, e, c);
                }
            }
        } else {                                 // h is at hand; the state before a step follows from the row before
            fill(drive, T(0)), fill(h, T(0)), fill(u, T(0)), fill(e, T(0)), fill(c, T(0));
            if (steps > 0) load_saved<flags, save>(saved, (steps - 1) * neurons + first, cell.threshold, rule, h, u);
#pragma unroll 2
            for (i64 t = steps - 1; t >= 0; --t) {
                const i64 at = t * neurons + first;
                T h_before[width], u_before[width];
                fill(h_before, T(0)), fill(u_before, T(0));
                if (t > 0) {
                    load_saved<flags, save>(saved, at - neurons, cell.threshold, rule, h_before, u_before);
#pragma unroll
                    for (int k = 0; k < width; ++k) {
                        const T fired = reset_delay ? T(0) : fires<flags>(u_before[k], rule);
                        v[k] = after_spike<reset>(h_before[k], fired, cell.threshold, rule.v_reset);
                    }
                } else {
                    load_state<Kind::lif, Flags::plain>(state0 ? state0 + first : nullptr, neurons, rule, v, e, c);
                }
                if constexpr (want_params && flags != Flags::plain)
                    if (x) load(x + at, drive);
                adjoint(at, drive, h, u, v, e, c);
#pragma unroll
                for (int k = 0; k < width; ++k) h[k] = h_before[k], u[k] = u_before[k];
            }
        }

        if constexpr (flags == Flags::all)
            if (reset_delay) {
                load_state<Kind::lif, Flags::plain>(state0 ? state0 + first : nullptr, neurons, rule, v, e, c);
#pragma unroll
                for (int k = 0; k < width; ++k) {
                    T grad_threshold = T(0);
                    const T slope = surrogate_grad<surrogate>(distance<flags>(v[k], cell.threshold, rule), rule.a, rule.b);
                    initial_adjoint(v[k], slope, carry_s[k], cell.threshold, rule, carry_v[k], grad_threshold);
                    sum[1] += double(grad_threshold);
                }
            }
        if (grad_state0) {
            fill(c, T(0));                       // the refractory counter has no gradient
            store_state<kind, flags>(grad_state0 + first, neurons, rule, carry_v, carry_e, c);
        }
    }
    if constexpr (want_params) {
        const i64 block_first = i64(blockIdx.x) * blockDim.x * width, beyond = block_first + i64(blockDim.x) * width;
        const bool one_cell = n_params == 1 || block_first / inner == ((beyond < neurons ? beyond : neurons) - 1) / inner;
        add_params<kind>(sum, grad_params, n_params, index, mine, one_cell);
    }
}

}  // namespace SPIKING_NS
