// Runs a __global__ function on the CPU: blocks one after another, each thread of a block a fiber that yields at __syncthreads().
// Shared memory starts as NaN in every block, and what lies beyond the size that a launch asked for must still be NaN afterwards.
#pragma once
#include <ucontext.h>

#include <cstring>
#include <vector>

#define __global__
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct Index { unsigned x, y, z; };
static Index blockIdx, threadIdx, blockDim, gridDim;

__attribute__((aligned(16))) unsigned char shared_memory[1 << 17];

namespace fibers {

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    bool waiting = false, done = false;
};

static ucontext_t scheduler;
static std::vector<Fiber> all;
static void (*entry)(void*);
static void* closure;

static void main_of_fiber() {
    entry(closure);
    all[threadIdx.x].done = true;
    swapcontext(&all[threadIdx.x].context, &scheduler);
}

// 0: well; 1: some threads left while others waited at a barrier; 2: more shared memory used than asked for.
static int run_block(unsigned threads) {
    if (all.size() < threads) all = std::vector<Fiber>(threads);
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = all[i];
        fiber.done = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, main_of_fiber, 0);
    }
    for (unsigned done = 0; done < threads;) {
        unsigned waiting = 0;
        for (unsigned i = 0; i < threads; ++i) {
            Fiber& fiber = all[i];
            if (fiber.done) continue;
            threadIdx = {i, 0, 0};
            fiber.waiting = false;
            swapcontext(&scheduler, &fiber.context);
            done += fiber.done;
            waiting += fiber.waiting;
        }
        if (waiting > 0 && done > 0) return 1;
    }
    return 0;
}

}  // namespace fibers

static void __syncthreads() {
    fibers::Fiber& fiber = fibers::all[threadIdx.x];
    fiber.waiting = true;
    swapcontext(&fiber.context, &fibers::scheduler);
}

static double atomicAdd(double* to, double value) {
    const double before = *to;
    *to = before + value;
    return before;
}

template <class Kernel>
static int launch(unsigned blocks, unsigned threads, unsigned shared, Kernel kernel) {
    if (shared > sizeof shared_memory) return 2;
    blockDim = {threads, 1, 1};
    gridDim = {blocks, 1, 1};
    fibers::entry = [](void* closure) { (*static_cast<Kernel*>(closure))(); };
    fibers::closure = &kernel;
    for (unsigned b = 0; b < blocks; ++b) {
        blockIdx = {b, 0, 0};
        std::memset(shared_memory, 0xff, sizeof shared_memory);
        const int fault = fibers::run_block(threads);
        if (fault) return fault;
        for (size_t i = shared; i < sizeof shared_memory; ++i)
            if (shared_memory[i] != 0xff) return 2;
    }
    return 0;
}
