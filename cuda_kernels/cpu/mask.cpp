// Bernoulli masks from a counter: number i of a seed is the same whatever the threads and the instruction set.
// Compiled once per instruction set (SPIKING_LEVEL), like neuron.cpp.
#define SPIKING_GLUE_(a, b) a##b
#define SPIKING_GLUE(a, b) SPIKING_GLUE_(a, b)
#define SPIKING_NS SPIKING_GLUE(spiking_, SPIKING_LEVEL)

#include "mask_api.h"
#include "portable.h"

namespace SPIKING_NS {
namespace {

// A bijection of 32-bit words in which each input bit changes each output bit in half of all cases (Wellons, hash-prospector, "lowbias32").
inline u32 mixed(u32 x) {
    x = (x ^ (x >> 16)) * 0x7feb352dU;
    x = (x ^ (x >> 15)) * 0x846ca68bU;
    return x ^ (x >> 16);
}

void draw(const MaskCall& p) {
    const u32 low = u32(p.seed), high = u32(p.seed >> 32);
    const u32 silenced = u32(p.p * 4294967296.0);  // p < 1
    constexpr i64 BLOCK = 1 << 14;
    const i64 blocks = (p.n + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(p.threads) if (p.threads > 1 && blocks > 1)
    for (i64 b = 0; b < blocks; ++b) {
        const i64 end = b * BLOCK + BLOCK < p.n ? b * BLOCK + BLOCK : p.n;
        float* __restrict mask = p.mask;
        const u32 above = mixed(u32(u64(b * BLOCK) >> 32) + high);
        for (i64 i = b * BLOCK; i < end; ++i) mask[i] = mixed(mixed(u32(i) ^ low) + above) >= silenced ? p.kept : 0.0f;
    }
}

}  // namespace

extern const MaskTable mask_table;
const MaskTable mask_table = {draw};

}  // namespace SPIKING_NS
