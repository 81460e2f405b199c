// A bounded cache of memory blocks for kernel outputs. Fresh pages cost far more than the arithmetic that fills them (a new 128 MB
// block: 250 ms of page faults; a copy into it: 9 ms), so blocks come back here through the DLPack deleter and are handed out again.
// The deleter runs on whatever thread drops the tensor, without the GIL and also at exit: nothing here touches Python after creation.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace nb = nanobind;

namespace {

constexpr size_t HUGE_PAGE = size_t(2) << 20;

// DLPack 0.x, as every consumer reads it (dmlc/dlpack, dlpack.h).
struct DLDevice { int32_t type, id; };
struct DLDataType { uint8_t code, bits; uint16_t lanes; };
struct DLTensor {
    void* data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
struct DLManagedTensor {
    DLTensor tensor;
    void* context;
    void (*deleter)(DLManagedTensor*);
};

// glibc returns free memory at the end of its heap beyond twice the largest block that was ever freed. Where all large blocks are the
// arena's, that stays 256 KB, and what torch allocates, such as results of convolutions, meets a page fault for each of its pages at each
// step. Other systems ignore this. The block is never written, so it takes no memory.
void keep_heap() {
    void* volatile block = std::malloc((size_t(32) << 20) - (size_t(64) << 10));
    std::free(block);
}

void* map_block(size_t bytes) {
#if defined(__unix__) || defined(__APPLE__)
    void* block = mmap(nullptr, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    // Trim to a 2 MB boundary, so that the kernel can back the block with huge pages.
    const uintptr_t start = (uintptr_t(block) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    const size_t head = start - uintptr_t(block);
    if (head) munmap(block, head);
    if (HUGE_PAGE - head) munmap(reinterpret_cast<void*>(start + bytes), HUGE_PAGE - head);
#ifdef MADV_HUGEPAGE
    madvise(reinterpret_cast<void*>(start), bytes, MADV_HUGEPAGE);
#endif
    return reinterpret_cast<void*>(start);
#else
    void* block = std::malloc(bytes);
    if (!block) throw std::bad_alloc();
    return block;
#endif
}

void unmap_block(void* block, size_t bytes) {
#if defined(__unix__) || defined(__APPLE__)
    munmap(block, bytes);
#else
    (void)bytes;
    std::free(block);
#endif
}

// Sizes in eighths of a power of two: at most an eighth is wasted, and nearly equal requests share blocks.
size_t rounded(size_t bytes) {
    size_t step = size_t(128) << 10;
    while (step * 16 < bytes) step *= 2;
    return (bytes + step - 1) / step * step;
}

class Arena {
  public:
    void* take(size_t bytes) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            auto found = free_.find(bytes);
            if (found != free_.end() && !found->second.empty()) {
                void* block = found->second.back();
                found->second.pop_back();
                cached_ -= bytes, in_use_ += bytes, ++hits_;
                return block;
            }
            ++misses_;
        }
        void* block = map_block(bytes);
        std::lock_guard<std::mutex> lock(mutex_);
        in_use_ += bytes;
        return block;
    }

    void give(void* block, size_t bytes) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            in_use_ -= bytes;
            if (cached_ + bytes <= limit_) {
                free_[bytes].push_back(block);
                cached_ += bytes;
                return;
            }
        }
        unmap_block(block, bytes);
    }

    void shrink(size_t to) {
        std::vector<std::pair<void*, size_t>> out;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (auto entry = free_.rbegin(); entry != free_.rend(); ++entry)
                while (cached_ > to && !entry->second.empty()) {
                    out.emplace_back(entry->second.back(), entry->first);
                    entry->second.pop_back();
                    cached_ -= entry->first;
                }
        }
        for (auto& [block, bytes] : out) unmap_block(block, bytes);
    }

    void limit(size_t bytes) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            limit_ = bytes;
        }
        shrink(bytes);
    }

    nb::dict stats() {
        std::lock_guard<std::mutex> lock(mutex_);
        nb::dict d;
        d["limit"] = limit_, d["cached"] = cached_, d["in_use"] = in_use_, d["hits"] = hits_, d["misses"] = misses_;
        return d;
    }

    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

  private:
    std::mutex mutex_;
    std::map<size_t, std::vector<void*>> free_;
    size_t limit_ = 0, cached_ = 0, in_use_ = 0, hits_ = 0, misses_ = 0;
};

Arena& arena() {
    static Arena* one = new Arena;               // never destroyed: tensors may outlive every static
    return *one;
}

struct Block {
    DLManagedTensor managed;
    size_t bytes;
    int64_t dims[1];                             // shape, then strides
};

void drop(DLManagedTensor* managed) {
    Block* block = static_cast<Block*>(managed->context);
    arena().give(managed->tensor.data, block->bytes);
    std::free(block);
}

void drop_unused_capsule(PyObject* capsule) {
    if (PyCapsule_IsValid(capsule, "dltensor")) {
        auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
        managed->deleter(managed);
    }
}

nb::object empty(const std::vector<int64_t>& shape, int code, int bits) {
    size_t items = 1;
    for (int64_t d : shape) items *= size_t(d);
    const size_t n = shape.size();
    auto* block = static_cast<Block*>(std::malloc(sizeof(Block) + 2 * n * sizeof(int64_t)));
    if (!block) throw std::bad_alloc();
    block->bytes = rounded(items * size_t(bits) / 8);
    void* data;
    try {
        data = arena().take(block->bytes);
    } catch (...) {
        std::free(block);
        throw;
    }
    int64_t stride = 1;
    for (size_t d = n; d-- > 0;) {
        block->dims[d] = shape[d];
        block->dims[n + d] = stride;
        stride *= shape[d];
    }
    block->managed = {{data, {1, 0}, int32_t(n), {uint8_t(code), uint8_t(bits), 1}, block->dims, block->dims + n, 0}, block, drop};
    PyObject* capsule = PyCapsule_New(&block->managed, "dltensor", drop_unused_capsule);
    if (!capsule) {
        drop(&block->managed);
        throw nb::python_error();
    }
    return nb::steal(capsule);
}

// Seconds to touch `bytes` of fresh memory, page by page: what each new tensor of that size costs on this machine.
double page_fault_seconds(size_t bytes) {
#if defined(__unix__) || defined(__APPLE__)
    void* block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    const auto start = std::chrono::steady_clock::now();
    for (size_t at = 0; at < bytes; at += 4096) static_cast<volatile char*>(block)[at] = 1;
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    munmap(block, bytes);
    return taken.count();
#else
    (void)bytes;
    return 0.0;
#endif
}

}  // namespace

void bind_arena(nb::module_& m) {
#if defined(__unix__) || defined(__APPLE__)
    // A child forked while another thread holds the lock would wait for ever.
    pthread_atfork([] { arena().lock(); }, [] { arena().unlock(); }, [] { arena().unlock(); });
#endif
    m.def("arena_empty", &empty, nb::arg("shape"), nb::arg("code"), nb::arg("bits"), "A DLPack capsule over a block of the arena.");
    m.def("keep_heap", &keep_heap, "Let malloc keep up to 64 MB that are free, as it does once a block of 32 MB was freed.");
    m.def("arena_limit", [](size_t bytes) { arena().limit(bytes); }, "Bytes of unused blocks to keep at most.");
    m.def("arena_release", [] { arena().shrink(0); }, "Give every unused block back to the system.");
    m.def("arena_stats", [] { return arena().stats(); });
    m.def("page_fault_seconds", &page_fault_seconds, nb::call_guard<nb::gil_scoped_release>());
}
