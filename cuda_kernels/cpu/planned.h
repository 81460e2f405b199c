// What plans of calls without gradients share: a weight that is looked at before each of them, and scratch memory of the calling thread.
#pragma once
#include <cstddef>
#include <vector>

constexpr long long STALE = -2;                  // the weight is no longer what a plan was made from

// A number that changes when the memory does: all of it is read where it is small, else some places all over it.
inline unsigned long long memory_sample(const char* memory, long long bytes) {
    constexpr long long ALL = 4096, SOME = 64, LANES = 4;  // words; independent sums, so that one multiplication need not wait for another
    const long long words = bytes / 8, step = words <= ALL ? 1 : words / SOME | 1;  // odd: not one column of a matrix
    unsigned long long sums[LANES] = {1, 2, 3, 4};
    const auto mix = [&](unsigned long long& sum, long long at, long long width) {
        unsigned long long word = 0;
        __builtin_memcpy(&word, memory + at, size_t(width));
        sum = (sum ^ word) * 0x9e3779b97f4a7c15ull;
        sum ^= sum >> 29;
    };
    long long at = 0;
    for (; at + (LANES - 1) * step < words; at += LANES * step)
        for (long long lane = 0; lane < LANES; ++lane) mix(sums[lane], 8 * (at + lane * step), 8);
    for (; at < words; at += step) mix(sums[0], 8 * at, 8);
    if (bytes % 8) mix(sums[1], 8 * words, bytes % 8);
    unsigned long long sample = 0;
    for (unsigned long long sum : sums) sample = (sample ^ sum) * 0x9e3779b97f4a7c15ull;
    return sample;
}

// The memory of a weight and what `memory_sample` found there before its plan was made. No bytes: not looked at.
struct Watched {
    const char* weight;
    long long bytes;
    unsigned long long sample;

    bool changed() const { return bytes && memory_sample(weight, bytes) != sample; }
};

// Room for n numbers that never shrinks within a call; what was in it is lost.
template <class T>
T* room(std::vector<T>& v, long long n) {
    if (static_cast<long long>(v.size()) < n) v = std::vector<T>(size_t(n));
    return v.data();
}
