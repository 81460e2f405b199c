// What every check shares: random numbers, buffers of exactly the promised size, and the loop over random calls.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <vector>

#ifndef SPIKING_LEVEL
#define SPIKING_LEVEL base
#endif
#define SPIKING_GLUE_(a, b) a##b
#define SPIKING_GLUE(a, b) SPIKING_GLUE_(a, b)
#define LEVEL SPIKING_GLUE(spiking_, SPIKING_LEVEL)

inline std::mt19937& generator() {
    static std::mt19937 own;
    return own;
}

inline int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator()); }
inline bool chance(double p) { return std::bernoulli_distribution(p)(generator()); }

// Codes of a 16-bit float that are 1; dtype: 0 float, 1 double, 2 bf16, 3 f16.
inline size_t size_of(int dtype) { return dtype == 0 ? 4 : dtype == 1 ? 8 : 2; }
inline int one_of(int dtype) { return dtype == 2 ? 0x3f80 : 0x3c00; }

// Memory of exactly n items of `width` bytes: one byte past the end is the sanitizer's. It begins at any item of a cache line, as a view does.
class Buffer {
public:
    Buffer(size_t items, size_t width) : items_(items), width_(width) {
        const size_t skipped = size_t(draw(0, 3)) * width;
        if (posix_memalign(&block_, 64, skipped + items * width + (skipped + items * width == 0)) != 0) throw std::bad_alloc();
        data_ = static_cast<char*>(block_) + skipped;
        std::memset(data_, 0, items * width);
    }
    Buffer(Buffer&& other) noexcept : block_(other.block_), data_(other.data_), items_(other.items_), width_(other.width_) { other.block_ = nullptr; }
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(block_); }

    template <class T = void> T* as() { return reinterpret_cast<T*>(data_); }

    void set(size_t at, double value, int sixteen) {
        if (width_ == 4) as<float>()[at] = float(value);
        else if (width_ == 8) as<double>()[at] = value;
        else as<uint16_t>()[at] = uint16_t(sixteen);
    }

private:
    void* block_ = nullptr;
    char* data_ = nullptr;
    size_t items_, width_;
};

inline Buffer zeros(size_t items, size_t width) { return Buffer(items, width); }

// Normal numbers; of 16 bits, any: infinities and NaN too.
inline Buffer numbers(size_t items, size_t width) {
    Buffer found(items, width);
    std::normal_distribution<double> normal(0, 1);
    for (size_t i = 0; i < items; ++i) found.set(i, normal(generator()), draw(0, 0xffff));
    return found;
}

// Mostly silence: ones, or with `values` other numbers, infinity and NaN too.
inline Buffer spikes(size_t items, int dtype, double density, bool values) {
    Buffer found(items, size_of(dtype));
    const double odd[] = {0.5, -2, 1e30, INFINITY, NAN, 1};
    for (size_t i = 0; i < items; ++i) {
        if (!chance(density)) continue;
        found.set(i, values ? odd[draw(0, 5)] : 1.0, values ? draw(1, 0xffff) : one_of(dtype));
    }
    return found;
}

inline double a_density() {
    const double some[] = {0, 0.02, 0.2, 1};
    return some[draw(0, 3)];
}

// Arguments: rounds, seed.
template <class Call>
int check(const char* what, int argc, char** argv, const Call& call) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 400;
    generator().seed(argc > 2 ? unsigned(std::atoi(argv[2])) : 0u);
    for (int round = 0; round < rounds; ++round) call();
    std::printf("%s kernels: %d random calls under the sanitizers, nothing found\n", what, rounds);
    return 0;
}
