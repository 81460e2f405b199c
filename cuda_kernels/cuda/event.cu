// A linear layer that multiplies the non-zeros of its input only, alone and with the neurons that follow it, for few rows at a time.
// Compiled at run time, one instantiation at a time (compile.py); the arguments are those of event.py's tables, in their order.
//
// A block owns one row of x and `tiles` times 128 columns of y. It writes the non-zeros of the row to a list in shared memory, SPAN
// inputs at a time, and its warps take turns at the list: for an input a warp reads 128 neighbouring weights (`weight` is [in, out],
// its rows `stride` apart, a multiple of 4). Every y is added up in one order, whatever the batch and the launch, so that a sequence
// gives the same spikes at once, in chunks and step by step.
#include "common.cuh"

namespace SPIKING_NS {

constexpr int WARP = 32, WARPS = THREADS / WARP;
constexpr int EACH = 16;                         // inputs that a thread looks at in turn
constexpr int SPAN = THREADS * EACH;
constexpr int TILE = 4 * WARP;

struct Events {
    u32 counts[THREADS / 4];                     // non-zeros that each thread found, a byte each
    float value[SPAN];
    u16 input[SPAN];
};

// The non-zeros among the SPAN inputs from `start` on, in their order, filled up with zeros to a multiple of `round`, so that the loop
// over them has no rest, whose rows would be waited for one by one; returns how many there are.
template <int round, class IO>
SPIKING_FN int find_events(const IO* x, bool wide, i64 inputs, i64 start, Events& events) {
    float mine[EACH];
    const i64 first = start + threadIdx.x * EACH;
    if (wide && first + EACH <= inputs) {
#pragma unroll
        for (int k = 0; k < EACH; k += 4) {
            float four[4];
            load(x + first + k, four);
#pragma unroll
            for (int j = 0; j < 4; ++j) mine[k + j] = four[j];
        }
    } else {
#pragma unroll
        for (int k = 0; k < EACH; ++k) mine[k] = first + k < inputs ? widen(x[first + k]) : 0.0f;
    }
    int found = 0;
#pragma unroll
    for (int k = 0; k < EACH; ++k) found += mine[k] != 0.0f;
    __syncthreads();                             // the list may still be read
    reinterpret_cast<unsigned char*>(events.counts)[threadIdx.x] = (unsigned char)found;
    __syncthreads();
    // Each thread adds up all counts, four bytes at a time: one barrier, where a scan over the block would take seven.
    int at = 0, total = 0;
    const int word = threadIdx.x / 4, byte = threadIdx.x % 4;
#pragma unroll 8
    for (int i = 0; i < THREADS / 4; ++i) {
        const u32 four = events.counts[i];
        const u32 before = i == word ? four & ((1u << (8 * byte)) - 1u) : i < word ? four : 0u;
        at += int((before * 0x01010101u) >> 24);
        total += int((four * 0x01010101u) >> 24);
    }
#pragma unroll
    for (int k = 0; k < EACH; ++k)
        if (mine[k] != 0.0f) {
            events.value[at] = mine[k];
            events.input[at++] = u16(threadIdx.x * EACH + k);
        }
    const int filled = (total + round - 1) / round * round;
    if (total + threadIdx.x < filled) {
        events.value[total + threadIdx.x] = 0.0f;
        events.input[total + threadIdx.x] = 0;
    }
    __syncthreads();
    return filled;
}

// y[tile] of column first + tile·TILE + threadIdx.x, without the bias.
template <int tiles, class IO>
SPIKING_FN void sum_events(const IO* x, bool wide, const IO* weight, i64 inputs, i64 stride, i64 first, float (&y)[tiles]) {
    Events& events = *reinterpret_cast<Events*>(shared_memory);
    float* const partial = reinterpret_cast<float*>(shared_memory + sizeof(Events));
    constexpr int ahead = 8 / tiles;             // rows of weights on their way at a time
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    i64 column[tiles];                           // beyond the last one: the first again, which spares the loop a branch
    float sum[tiles][4];
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
        column[tile] = first + tile * TILE + 4 * lane;
        column[tile] = column[tile] < stride ? column[tile] : 0;
        fill(sum[tile], 0.0f);
    }
    for (i64 start = 0; start < inputs; start += SPAN) {
        const int n = find_events<WARPS * ahead>(x, wide, inputs, start, events);
        const IO* const rows = weight + start * stride;
        for (int i = warp; i < n; i += WARPS * ahead) {
#pragma unroll
            for (int j = 0; j < ahead; ++j) {
                const int event = i + j * WARPS;
                const IO* const row = rows + events.input[event] * stride;
                const float value = events.value[event];
#pragma unroll
                for (int tile = 0; tile < tiles; ++tile) {
                    float w[4];
                    load(row + column[tile], w);
#pragma unroll
                    for (int k = 0; k < 4; ++k) sum[tile][k] += value * w[k];
                }
            }
        }
    }
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) store(sum[tile], partial + (warp * tiles + tile) * TILE + 4 * lane);
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
        y[tile] = partial[tile * TILE + threadIdx.x];
#pragma unroll
        for (int other = 1; other < WARPS; ++other) y[tile] += partial[(other * tiles + tile) * TILE + threadIdx.x];
    }
}

template <class IO>
SPIKING_FN IO with_bias(float sum, const IO* bias, i64 column) {
    IO y;
    narrow(bias ? sum + widen(bias[column]) : sum, y);
    return y;
}

template <class IO, int tiles>
__global__ void __launch_bounds__(THREADS, tiles == 1 ? 8 : 6) event_linear(
    const IO* __restrict__ x, const IO* __restrict__ weight, const IO* __restrict__ bias, IO* __restrict__ y, i64 rows, i64 inputs,
    i64 outputs, i64 stride, int wide) {
    // Rows run fastest: blocks that run together read the same columns of the weights, which then stay in the second-level cache.
    const i64 row = blockIdx.x % rows, first = blockIdx.x / rows * (tiles * TILE);
    float sum[tiles];
    sum_events(x + row * inputs, wide, weight, inputs, stride, first, sum);
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
        const i64 column = first + tile * TILE + threadIdx.x;
        if (column < outputs) y[row * outputs + column] = with_bias(sum[tile], bias, column);
    }
}

// The neurons that a linear layer drives, over all steps, with their state in registers; `neurons` is batch·outputs. The current is
// rounded to IO as it would be between two kernels, so that the spikes are those of event_linear and neuron_forward.
template <Kind kind, Reset reset, Flags flags, class IO, class T = float>
__global__ void __launch_bounds__(THREADS, 8) event_neuron(
    const IO* __restrict__ x, const IO* __restrict__ weight, const IO* __restrict__ bias, const T* __restrict__ state0,
    const T* __restrict__ params, IO* __restrict__ s, T* __restrict__ state1, i64 inputs, i64 outputs, i64 stride, int wide, i64 steps,
    i64 neurons, i64 n_params, i64 inner, T beta, T threshold, T beta_syn, T v_reset, T v_leak, T beta_adapt, T adapt_scale, T a, T b,
    int refractory, int tie_gt, int decay_input, int detach_reset, int reset_delay, int residual_reset, int normalize) {
    const i64 batch = neurons / outputs, sample = blockIdx.x % batch, first = blockIdx.x / batch * TILE;
    const i64 column = first + threadIdx.x, neuron = sample * outputs + column;
    const bool mine = column < outputs;
    const Rule<T> rule = rule_of(v_reset, v_leak, beta_adapt, adapt_scale, a, b, refractory, tie_gt, decay_input, detach_reset,
                                 reset_delay, residual_reset, normalize);
    const i64 index = n_params == 1 || !mine ? 0 : column / inner % n_params;
    const Cells<T> cell = cells_of(params, n_params, index, beta, threshold, beta_syn);
    T v[1], e[1], c[1];
    load_state<kind, flags>(state0 && mine ? state0 + neuron : nullptr, neurons, rule, v, e, c);
    for (i64 t = 0; t < steps; ++t) {
        float sum[1];
        sum_events(x + (t * batch + sample) * inputs, wide, weight, inputs, stride, first, sum);
        if (!mine) continue;
        T h;
        const T drive = widen(with_bias(sum[0], bias, column));
        const T spike = neuron_step<kind, reset, flags>(drive, v[0], e[0], c[0], cell.beta, cell.threshold, cell.beta_syn, rule, h);
        narrow(spike, s[t * neurons + neuron]);
    }
    if (mine) store_state<kind, flags>(state1 + neuron, neurons, rule, v, e, c);
}

}  // namespace SPIKING_NS
