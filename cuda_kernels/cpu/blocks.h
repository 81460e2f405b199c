// Blocks of neurons: what threads share, and the parameters of each neuron of one.
#pragma once
#include "rows.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace SPIKING_NS {
namespace {

// A call's parameters of n neurons from `first` on.
template <class T, class Call>
SPIKING_ROW void fill_cells(const Call& p, i64 first, i64 n, T* beta, T* threshold, T* beta_syn) {
    if (!p.params || p.C == 1) {
        const T* all = static_cast<const T*>(p.params);
        const T b = all ? all[0] : T(p.beta), th = all ? all[1] : T(p.threshold), bs = all ? all[2] : T(p.beta_syn);
        for (i64 k = 0; k < n; ++k) beta[k] = b, threshold[k] = th, beta_syn[k] = bs;
        return;
    }
    const T* all = static_cast<const T*>(p.params);
    i64 within = first % p.inner, index = (first / p.inner) % p.C;
    for (i64 k = 0; k < n; ++k) {
        beta[k] = all[index], threshold[k] = all[p.C + index], beta_syn[k] = all[2 * p.C + index];
        if (++within == p.inner) {
            within = 0;
            if (++index == p.C) index = 0;
        }
    }
}

// body(first, n, thread) over blocks of a call's neurons, the threads sharing them.
template <class Call, class Body>
void over_blocks(const Call& p, i64 largest, const Body& body) {
    if (p.N == 0) return;
    const i64 share = ((p.N + p.threads - 1) / p.threads + 63) / 64 * 64;
    const i64 width = share < largest ? share : largest;
    const i64 blocks = (p.N + width - 1) / width;
    const auto one = [&](i64 block, int thread) {
        const i64 first = block * width;
        body(first, first + width < p.N ? width : p.N - first, thread);
    };
#ifdef _OPENMP
    if (p.threads > 1 && blocks > 1) {
#pragma omp parallel for num_threads(p.threads) schedule(static)
        for (i64 block = 0; block < blocks; ++block) one(block, omp_get_thread_num());
        return;
    }
#endif
    for (i64 block = 0; block < blocks; ++block) one(block, 0);
}

}  // namespace
}  // namespace SPIKING_NS
