// A reservoir over whole sequences: a block owns a sample, lists the inputs and neurons that were active, and adds up their rows.
// Compiled at run time, one instantiation at a time (compile.py); the arguments are those of reservoir.py's table, in their order.
//
// Weights lie by sender, [inputs, neurons] and [neurons, neurons], so that neighbouring threads read neighbouring weights; sparse
// recurrent ones as lists by sender. Every sum follows the order of the senders, as cpu/reservoir.cpp's does: the same bits.
#include "common.cuh"
#include "reservoir.h"

namespace SPIKING_NS {

// The indices of the non-zeros of a row of n, in their order; returns how many there are.
template <class T>
SPIKING_FN i64 list_active(const T* row, i64 n, u32* list, u32* counts) {
    const i64 each = (n + blockDim.x - 1) / blockDim.x, first = threadIdx.x * each;
    const i64 last = first + each < n ? first + each : n;
    u32 mine = 0;
    for (i64 i = first; i < last; ++i) mine += row[i] != T(0);
    __syncthreads();                             // counts and list may still be read
    counts[threadIdx.x] = mine;
    __syncthreads();
    u32 at = 0, total = 0;
    for (unsigned i = 0; i < blockDim.x; ++i) {
        at += i < threadIdx.x ? counts[i] : 0u;
        total += counts[i];
    }
    for (i64 i = first; i < last; ++i)
        if (row[i] != T(0)) list[at++] = u32(i);
    __syncthreads();
    return i64(total);
}

template <class T>
__global__ void __launch_bounds__(THREADS, BLOCKS<T>) reservoir(
    const T* __restrict__ x, const T* __restrict__ in_rows, const T* __restrict__ bias, const T* __restrict__ rec_rows,
    const i64* __restrict__ rec_offsets, const u32* __restrict__ rec_receivers, const T* __restrict__ rec_weights, T* u, T* s, T* spikes,
    T* membrane, T* features, const int* __restrict__ bin, const T* __restrict__ worth, u32* lists, T* currents, i64* events, i64 steps,
    i64 batch, i64 inputs, i64 neurons, T beta, T threshold) {
    u32* const counts = reinterpret_cast<u32*>(shared_memory);
    const i64 sample = blockIdx.x, at = sample * neurons;
    u32* const active = lists + sample * (inputs + neurons);
    u32* const fired = active + inputs;
    i64 sent = 0, seen = 0;
    i64 n_fired = list_active(s + at, neurons, fired, counts);
    for (i64 t = 0; t < steps; ++t) {
        const T* const row = x + (t * batch + sample) * inputs;
        const i64 n_active = list_active(row, inputs, active, counts);
        seen += n_active, sent += n_fired;
        if (rec_offsets) {
            for (i64 k = threadIdx.x; k < neurons; k += blockDim.x) currents[at + k] = T(0);
            for (i64 i = 0; i < n_fired; ++i) {
                __syncthreads();                 // one sender after the other; its receivers are all different
                for (i64 e = rec_offsets[fired[i]] + threadIdx.x; e < rec_offsets[fired[i] + 1]; e += blockDim.x)
                    currents[at + rec_receivers[e]] += rec_weights[e];
            }
            __syncthreads();
        }
        for (i64 k = threadIdx.x; k < neurons; k += blockDim.x) {
            T in = bias ? bias[k] : T(0), rec = T(0);
            for (i64 i = 0; i < n_active; ++i) in += in_rows[i64(active[i]) * neurons + k] * row[active[i]];
            if (rec_offsets) rec = currents[at + k];
            else if (rec_rows)
                for (i64 i = 0; i < n_fired; ++i) rec += rec_rows[i64(fired[i]) * neurons + k];
            T v = u[at + k], z = s[at + k];
            reservoir_step(in, rec, beta, threshold, v, z);
            u[at + k] = v, s[at + k] = z;
            if (z > T(0)) features[(bin[t] * batch + sample) * neurons + k] += worth[t];
            if (spikes) spikes[t * batch * neurons + at + k] = z;
            if (membrane) membrane[t * batch * neurons + at + k] = v;
        }
        __syncthreads();
        n_fired = list_active(s + at, neurons, fired, counts);
    }
    if (threadIdx.x == 0) events[2 * sample] = seen, events[2 * sample + 1] = sent;
}

}  // namespace SPIKING_NS
