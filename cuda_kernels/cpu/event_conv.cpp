// Convolution from the spikes of its input, its weight gradient likewise, and the input gradient (dense); optionally with maximum pooling,
// or average pooling and the moments that batch normalisation needs, in which case the full output is never written, neither way.
// Compiled once per instruction set (SPIKING_LEVEL), like neuron.cpp. Forward sums have a fixed order and one rounding an operation, so
// that they are the same on every machine and for every number of threads.
#define SPIKING_GLUE_(a, b) a##b
#define SPIKING_GLUE(a, b) SPIKING_GLUE_(a, b)
#define SPIKING_NS SPIKING_GLUE(spiking_, SPIKING_LEVEL)

#include "event_conv_api.h"
#include "saved.h"
#include "spikes.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace SPIKING_NS {
namespace {

#define SPIKING_ROW __attribute__((noinline))

constexpr i64 LANES = 16;

template <class T> struct VectorOf { typedef T type __attribute__((vector_size(LANES * sizeof(T)))); };
template <class T> using Vector = typename VectorOf<T>::type;
// Places of a vector's lanes: whole numbers as wide as T, and as bytes.
template <class T> struct PlacesOf { typedef int type __attribute__((vector_size(LANES * sizeof(int)))); };
template <> struct PlacesOf<double> { typedef long long type __attribute__((vector_size(LANES * sizeof(long long)))); };
template <class T> using Places = typename PlacesOf<T>::type;
typedef unsigned char Bytes __attribute__((vector_size(LANES)));

// Vectors of 16 that a loop may keep in registers beside one or two operands.
#if defined(__AVX512F__)
constexpr int REGISTERS_FLOAT = 24;
#elif defined(__AVX2__)
constexpr int REGISTERS_FLOAT = 6;
#else
constexpr int REGISTERS_FLOAT = 3;
#endif
template <class T> constexpr int REGISTERS = sizeof(T) == 4 ? REGISTERS_FLOAT : (REGISTERS_FLOAT + 1) / 2;

SPIKING_FN i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
SPIKING_FN i64 larger(i64 a, i64 b) { return a > b ? a : b; }
SPIKING_FN i64 rounded_up(i64 n, i64 step) { return (n + step - 1) / step * step; }

template <class T>
SPIKING_FN Vector<T> load(const T* from) {
    Vector<T> v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
}

template <class T>
SPIKING_FN void store(T* to, const Vector<T>& v) { __builtin_memcpy(to, &v, sizeof(v)); }

// a·b + c; one rounding where the machine has it, which gradients may use and forward sums may not.
SPIKING_FN Vector<float> fused(Vector<float> a, float b, Vector<float> c) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vector<float>>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), _mm512_set1_ps(b), reinterpret_cast<__m512>(c)));
#else
    return a * b + c;
#endif
}
SPIKING_FN Vector<double> fused(Vector<double> a, double b, Vector<double> c) { return a * b + c; }

// --- geometry ---------------------------------------------------------------------------------------------------------------------

struct Picture { i64 image, group; };

SPIKING_FN i64 inputs_of(const ConvShape& s) { return s.inputs / s.groups; }      // of one group
SPIKING_FN i64 outputs_of(const ConvShape& s) { return s.outputs / s.groups; }
SPIKING_FN i64 pictures_of(const ConvShape& s) { return s.images * s.groups; }
SPIKING_FN i64 pixels_of(const ConvShape& s) { return s.height * s.width; }
SPIKING_FN i64 chunks_of(const ConvShape& s) { return (inputs_of(s) + 31) / 32; }
SPIKING_FN i64 taps_of(const ConvShape& s, i64 phase) { return phase < s.kernel_x ? (s.kernel_x - phase + s.stride_x - 1) / s.stride_x : 0; }

// Output channels that are summed together: as many as fit in registers for all taps of a phase.
SPIKING_FN i64 vectors_of(const ConvShape& s) {
    const i64 taps = taps_of(s, 0);
    return taps <= 3 ? 8 : taps <= 6 ? 4 : taps <= 12 ? 2 : 1;
}

struct Block { i64 first, used, width, at; };  // channels of a group, how many, padded, and where its weights begin within the group

SPIKING_FN i64 blocks_of(const ConvShape& s) { return (outputs_of(s) + vectors_of(s) * LANES - 1) / (vectors_of(s) * LANES); }
SPIKING_FN i64 widest_block(const ConvShape& s) { return smaller(vectors_of(s) * LANES, rounded_up(outputs_of(s), LANES)); }

SPIKING_FN Block block_of(const ConvShape& s, i64 index) {
    const i64 full = vectors_of(s) * LANES, first = index * full, used = smaller(full, outputs_of(s) - first);
    return {first, used, rounded_up(used, LANES), first * inputs_of(s) * s.kernel_y * s.kernel_x};
}

SPIKING_FN i64 group_items(const ConvShape& s) {
    return rounded_up(outputs_of(s), LANES) * inputs_of(s) * s.kernel_y * s.kernel_x;
}

// Where the taps of a phase begin within a block, in units of its width.
SPIKING_FN i64 phase_at(const ConvShape& s, i64 phase) {
    i64 taps = 0;
    for (i64 r = 0; r < phase; ++r) taps += taps_of(s, r);
    return taps * s.kernel_y * inputs_of(s);
}

SPIKING_FN Picture picture_of(const ConvShape& s, i64 index) { return {index / s.groups, index % s.groups}; }

// body(item, thread): each thread begins with its own share of the items, and so with the memory that it wrote at the last call, which may
// be far from another core; who is done takes from the others. Results do not depend on who does an item.
template <class Body>
void shared_out(i64 items, int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1 && items > 1) {
        constexpr int MOST = 64;
        struct alignas(64) Share { i64 next, stop; };
        Share shares[MOST];
        const int team = threads < MOST ? threads : MOST;
        for (int k = 0; k < team; ++k) shares[k] = {items * k / team, items * (k + 1) / team};
#pragma omp parallel num_threads(team)
        {
            const int self = omp_get_thread_num();
            for (int turn = 0; turn < team; ++turn) {
                Share& share = shares[(self + turn) % team];
                for (i64 item; (item = __atomic_fetch_add(&share.next, 1, __ATOMIC_RELAXED)) < share.stop;) body(item, self);
            }
        }
        return;
    }
#endif
    (void)threads;
    for (i64 item = 0; item < items; ++item) body(item, 0);
}

// --- sums of listed rows ----------------------------------------------------------------------------------------------------------

// sum [16·M] += Σ over the list of value · rows[entry - base, :]; value is 1 where `ones`.
template <class T, int M, bool ones>
SPIKING_ROW void gather(const u32* list, const T* values, i64 n, i64 base, const T* rows, i64 stride, T* sum) {
    Vector<T> s[M];
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) s[m] = load(sum + m * LANES);
    for (i64 i = 0; i < n; ++i) {
        const T* row = rows + (i64(list[i]) - base) * stride;
        const T value = ones ? T(1) : values[i];
#pragma GCC unroll 24
        for (int m = 0; m < M; ++m) s[m] = ones ? s[m] + load(row + m * LANES) : s[m] + load(row + m * LANES) * value;
    }
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m) store(sum + m * LANES, s[m]);
}

template <class T> using Gather = void (*)(const u32*, const T*, i64, i64, const T*, i64, T*);

template <class T, bool ones, int M = REGISTERS<T>>
Gather<T> gather_of(i64 vectors) {
    if constexpr (M == 1) return gather<T, 1, ones>;
    else return vectors == M ? gather<T, M, ones> : gather_of<T, ones, M - 1>(vectors);
}

template <class T>
struct Gathers {                   // a table, since the search above costs more than a short list
    Gather<T> of[REGISTERS<T> + 1];
    explicit Gathers(bool ones) {
        for (int m = 1; m <= REGISTERS<T>; ++m) of[m] = ones ? gather_of<T, true>(m) : gather_of<T, false>(m);
    }
    SPIKING_FN void operator()(i64 vectors, const u32* list, const T* values, i64 n, i64 base, const T* rows, i64 stride, T* sum) const {
        for (; vectors > REGISTERS<T>; vectors -= REGISTERS<T>, rows += REGISTERS<T> * LANES, sum += REGISTERS<T> * LANES)
            of[REGISTERS<T>](list, values, n, base, rows, stride, sum);
        of[vectors](list, values, n, base, rows, stride, sum);
    }
};

// --- between channels last and planes -----------------------------------------------------------------------------------------------

// to[c·to_stride + r] = from[r·from_stride + c]; writes few lines at a time, since they may all fall into the same set of a cache.
template <class T>
void turn(const T* from, i64 from_stride, i64 rows, i64 columns, T* to, i64 to_stride) {
    i64 c = 0;
#if defined(__SSE2__)
    if constexpr (sizeof(T) == 4) {
        for (; c + 4 <= columns; c += 4) {
            i64 r = 0;
            for (; r + 4 <= rows; r += 4) {
                const float* at = from + r * from_stride + c;
                __m128 a = _mm_loadu_ps(at), b = _mm_loadu_ps(at + from_stride), d = _mm_loadu_ps(at + 2 * from_stride),
                       e = _mm_loadu_ps(at + 3 * from_stride);
                _MM_TRANSPOSE4_PS(a, b, d, e);
                float* out = to + c * to_stride + r;
                _mm_storeu_ps(out, a), _mm_storeu_ps(out + to_stride, b);
                _mm_storeu_ps(out + 2 * to_stride, d), _mm_storeu_ps(out + 3 * to_stride, e);
            }
            for (; r < rows; ++r)
                for (i64 k = 0; k < 4; ++k) to[(c + k) * to_stride + r] = from[r * from_stride + c + k];
        }
    }
#endif
    for (; c < columns; ++c)
        for (i64 r = 0; r < rows; ++r) to[c * to_stride + r] = from[r * from_stride + c];
}

template <class IO, class T>
SPIKING_FN void copy_out(const T* from, IO* to, i64 n) {
    for (i64 k = 0; k < n; ++k) narrow(from[k], to[k]);
}

template <class IO, class T>
SPIKING_FN void copy_in(const IO* from, T* to, i64 n) {
    for (i64 k = 0; k < n; ++k) to[k] = widen(from[k]);
}

// One row of pixels [n, width] of which `used` channels count -> a tensor [images, channels, height, n].
template <class IO, class T>
void store_pixels(const T* row, i64 n, i64 width, i64 used, void* tensor, bool last, i64 image, i64 channels, i64 channel, i64 height, i64 y,
                  T* buffer) {
    IO* to = static_cast<IO*>(tensor);
    if (last) {
        to += ((image * height + y) * n) * channels + channel;
        for (i64 x = 0; x < n; ++x) copy_out(row + x * width, to + x * channels, used);
        return;
    }
    to += ((image * channels + channel) * height + y) * n;
    if constexpr (sizeof(IO) == sizeof(T)) {
        turn(row, width, n, used, to, height * n);
    } else {
        turn(row, width, n, used, buffer, n);
        for (i64 c = 0; c < used; ++c) copy_out(buffer + c * n, to + c * height * n, n);
    }
}

// The other way: a row of a tensor -> pixels [n, width]; channels beyond `used` become 0.
template <class IO, class T>
void load_pixels(const void* tensor, bool last, i64 image, i64 channels, i64 channel, i64 height, i64 y, i64 n, i64 width, i64 used, T* row,
                 T* buffer) {
    const IO* from = static_cast<const IO*>(tensor);
    if (last) {
        from += ((image * height + y) * n) * channels + channel;
        for (i64 x = 0; x < n; ++x) copy_in(from + x * channels, row + x * width, used);
    } else {
        from += ((image * channels + channel) * height + y) * n;
        if constexpr (sizeof(IO) == sizeof(T)) {
            turn(from, height * n, used, n, row, width);
        } else {
            for (i64 c = 0; c < used; ++c) copy_in(from + c * height * n, buffer + c * n, n);
            turn(buffer, n, used, n, row, width);
        }
    }
    for (i64 x = 0; x < n; ++x)
        for (i64 c = used; c < width; ++c) row[x * width + c] = T(0);
}

// --- spikes -----------------------------------------------------------------------------------------------------------------------

SPIKING_FN bool is_active(float v) { return v != 0.0f; }
SPIKING_FN bool is_active(double v) { return v != 0.0; }
SPIKING_FN bool is_active(bf16 v) { return (v.raw & 0x7fff) != 0; }
SPIKING_FN bool is_active(f16 v) { return (v.raw & 0x7fff) != 0; }
SPIKING_FN bool is_one(float v) { return v == 1.0f; }
SPIKING_FN bool is_one(double v) { return v == 1.0; }
SPIKING_FN bool is_one(bf16 v) { return v.raw == 0x3f80; }
SPIKING_FN bool is_one(f16 v) { return v.raw == 0x3c00; }

template <class IO>
SPIKING_FN const IO* pixels_at(const ConvCall& p, Picture at) {
    const i64 pixels = pixels_of(p.s), channel = at.group * inputs_of(p.s);
    return static_cast<const IO*>(p.x) + (p.x_last ? at.image * pixels * p.s.inputs + channel : (at.image * p.s.inputs + channel) * pixels);
}

SPIKING_FN i64 pixel_step(const ConvCall& p) { return p.x_last ? p.s.inputs : 1; }
SPIKING_FN i64 channel_step(const ConvCall& p) { return p.x_last ? 1 : pixels_of(p.s); }

// masks of one plane's pixels |= its bit; returns whether an active number is not 1.
template <class IO>
SPIKING_ROW bool mask_plane(const IO* __restrict plane, i64 pixels, u32 bit, u32* __restrict masks) {
    u32 other = 0;
    for (i64 k = 0; k < pixels; ++k) {
        const u32 active = is_active(plane[k]) ? ~0u : 0u, one = is_one(plane[k]) ? ~0u : 0u;
        masks[k] |= active & bit;
        other |= active & ~one;
    }
    return other != 0;
}

// Masks [pixels, chunks] of one picture; returns whether every spike is 1.
template <class IO>
bool mask_picture(const ConvCall& p, Picture at, u32* masks, u32* row) {
    const i64 channels = inputs_of(p.s), pixels = pixels_of(p.s), chunks = chunks_of(p.s);
    const IO* from = pixels_at<IO>(p, at);
    bool ones = true;
    if (p.x_last) {
        u64 other = 0;
        for (i64 k = 0; k < pixels; ++k, from += p.s.inputs)
            for (i64 c = 0; c < channels; c += 64) {
                const SpikeWord word = spike_word_of(from, c, channels);
                other |= word.active ^ word.ones;
                masks[k * chunks + c / 32] = u32(word.active);
                if (c + 32 < channels) masks[k * chunks + c / 32 + 1] = u32(word.active >> 32);
            }
        return other == 0;
    }
    for (i64 chunk = 0; chunk < chunks; ++chunk) {
        u32* to = chunks == 1 ? masks : row;
        for (i64 k = 0; k < pixels; ++k) to[k] = 0;
        for (i64 c = 32 * chunk; c < smaller(channels, 32 * chunk + 32); ++c)
            ones &= !mask_plane(from + c * pixels, pixels, u32(1) << (c % 32), to);
        if (chunks > 1)
            for (i64 k = 0; k < pixels; ++k) masks[k * chunks + chunk] = row[k];
    }
    return ones;
}

template <class IO>
i64 count_all(const ConvCall& p) {
    const IO* x = static_cast<const IO*>(p.x);
    const i64 all = p.s.images * p.s.inputs * pixels_of(p.s);
    if (looks_busy(all / 64, double(all), p.limit, [&](i64 at) { return spike_word(x + at * 64); })) return -1;
    const i64 items = pixels_of(p.s) * chunks_of(p.s);
    i64 total = 0;
    int other = 0;
    shared_out(pictures_of(p.s), p.threads, [&](i64 index, int thread) {
        if (__atomic_load_n(&total, __ATOMIC_RELAXED) > p.limit) return;
        u32* row = reinterpret_cast<u32*>(static_cast<char*>(p.scratch) + thread * rounded_up(pixels_of(p.s) * i64(sizeof(u32)), 64));
        u32* masks = p.masks + index * items;
        if (!mask_picture<IO>(p, picture_of(p.s, index), masks, row)) __atomic_store_n(&other, 1, __ATOMIC_RELAXED);
        i64 count = 0;
        for (i64 k = 0; k < items; ++k) count += __builtin_popcount(masks[k]);
        __atomic_fetch_add(&total, count, __ATOMIC_RELAXED);
    });
    return total > p.limit ? -1 : total * 2 + (other ? 0 : 1);
}

// --- forward ----------------------------------------------------------------------------------------------------------------------

struct Column { i64 vectors, weights, step, sums; };   // how many vectors a spike there reaches, and where in weights and sums

template <class T>
struct Scratch {
    Column* columns;
    T *start, *sums, *buffer, *pooled, *grads, *grad_x, *entry_values, *values, *picked_values;
    u32 *entries, *starts, *list, *picked, *place;
    i64* counts;
    i64 bytes;
};

SPIKING_FN i64 left_of(const ConvShape& s) { return taps_of(s, 0) - 1; }  // zero pixels left of a row of gradients
SPIKING_FN i64 grads_width(const ConvShape& s) {
    return left_of(s) + larger(s.out_width, (s.width - 1 + s.pad_x) / s.stride_x + 1);
}
// One row of grad_x with the padding on both sides, in numbers.
SPIKING_FN i64 grad_x_items(const ConvShape& s) {
    return larger((s.out_width - 1) * s.stride_x + s.kernel_x, s.width + s.pad_x) * inputs_of(s);
}

// Few spikes under a column of the kernel: each is better added to all sums that it reaches than listed for every sum.
SPIKING_FN bool spreads(const ConvShape& s) { return inputs_of(s) * s.kernel_y <= 16; }

// Output rows that are worked on together: of sums that stay in the caches, or one by one.
constexpr i64 TILE_BYTES = 96 << 10;
SPIKING_FN i64 tile_rows(const ConvShape& s, i64 item) {
    return spreads(s) ? larger(1, smaller(s.out_height, TILE_BYTES / (s.out_width * widest_block(s) * item))) : s.out_height;
}

// The parts of a thread's scratch memory; with a null base only their size.
template <class T>
Scratch<T> scratch_of(const ConvCall& p, int thread) {
    const ConvShape& s = p.s;
    const i64 width = widest_block(s), pixels = pixels_of(s), row = larger(s.out_width, s.width) * larger(width, inputs_of(s));
    const bool backward = p.grad_y || p.grad_pooled;
    const i64 most = pixels * inputs_of(s), listed = backward ? (pixels + LIST_SLACK) * inputs_of(s) : 0;
    Scratch<T> parts{};
    i64 at = 0;
    const auto take = [&](i64 items, i64 size) {
        const i64 here = at;
        at += rounded_up(items * size + 64, 64);
        return here;
    };
    const i64 start = take(width, sizeof(T)), sums = take((spreads(s) ? tile_rows(s, sizeof(T)) : 1) * s.out_width * width, sizeof(T)), buffer = take(row, sizeof(T));
    const i64 pooled = take(p.window ? 2 * (s.out_width / p.window + 1) * width : 0, sizeof(T));
    const i64 grads = take(backward ? s.out_height * grads_width(s) * width : 0, sizeof(T));
    const i64 grad_x = take(p.back_weights ? s.height * grad_x_items(s) : 0, sizeof(T));
    const i64 entries = take(most + LIST_SLACK, sizeof(u32)), starts = take(pixels + 1, sizeof(u32)), entry_values = take(p.ones ? 0 : most, sizeof(T));
    const i64 values = take(p.ones ? 0 : listed, sizeof(T)), picked_values = take(backward ? pixels : 0, sizeof(T));
    const i64 list = take(listed, sizeof(u32)), picked = take(backward ? pixels : 0, sizeof(u32));
    const i64 columns = take(s.width, sizeof(Column)), place = take(backward ? 2 * pixels : 0, sizeof(u32)), counts = take(backward ? inputs_of(s) : 0, sizeof(i64));
    parts.bytes = at;
    if (!p.scratch) return parts;
    char* base = static_cast<char*>(p.scratch) + thread * parts.bytes;
    const auto items = [&](i64 offset) { return reinterpret_cast<T*>(base + offset); };
    const auto numbers = [&](i64 offset) { return reinterpret_cast<u32*>(base + offset); };
    parts.start = items(start), parts.sums = items(sums), parts.buffer = items(buffer), parts.pooled = items(pooled);
    parts.grads = items(grads), parts.grad_x = items(grad_x), parts.entry_values = items(entry_values), parts.values = items(values), parts.picked_values = items(picked_values);
    parts.entries = numbers(entries), parts.starts = numbers(starts), parts.list = numbers(list), parts.picked = numbers(picked), parts.place = numbers(place);
    parts.counts = reinterpret_cast<i64*>(base + counts), parts.columns = reinterpret_cast<Column*>(base + columns);
    return parts;
}

// Appends base + k for every bit k of a mask of `channels` (at most 32); returns where the next entry goes. Without branches, since
// nobody can predict how many spikes a pixel has.
SPIKING_FN u32* append_mask(u32 mask, i64 channels, u32 base, u32* out) {
#if defined(__AVX512F__)
    const __m512i index = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(int(base)));
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(__mmask16(mask), index));
    out += __builtin_popcount(mask & 0xffffu);
    if (channels <= 16) return out;
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(__mmask16(mask >> 16), _mm512_add_epi32(index, _mm512_set1_epi32(16))));
    return out + __builtin_popcount(mask >> 16);
#else
    (void)channels;
    return append_word(u64(mask), base, out);
#endif
}

// The spikes of input rows [top, bottom) in the order (column, row, channel): entries (row - top)·channels + channel, with their values,
// and where each pixel's begin, starts [width·rows + 1]. The sums of gather_row follow this order, whatever the tile.
template <class IO, class T>
void list_columns(const ConvCall& p, i64 picture, i64 top, i64 bottom, const Scratch<T>& own) {
    const ConvShape& s = p.s;
    const i64 channels = inputs_of(s), chunks = chunks_of(s);
    const u32* masks = p.masks + picture * pixels_of(s) * chunks;
    const IO* x = p.ones ? nullptr : pixels_at<IO>(p, picture_of(s, picture));
    u32* out = own.entries;
    u32* start = own.starts;
    for (i64 column = 0; column < s.width; ++column)
        for (i64 y = top; y < bottom; ++y) {
            u32* const first = out;
            *start++ = u32(first - own.entries);
            const i64 pixel = y * s.width + column, base = (y - top) * channels;
            for (i64 chunk = 0; chunk < chunks; ++chunk)
                out = append_mask(masks[pixel * chunks + chunk], channels - 32 * chunk, u32(base + 32 * chunk), out);
            if (!x) continue;
            T* value = own.entry_values + (first - own.entries);
            for (const u32* entry = first; entry < out; ++entry)
                *value++ = widen(x[pixel * pixel_step(p) + (i64(*entry) - base) * channel_step(p)]);
        }
    *start = u32(out - own.entries);
}

// How the columns of the input meet the columns of the output: taps [first, last] of the phase reach outputs from `output` on.
struct Reach { i64 phase, taps, first, last, output; };

template <class Body>
SPIKING_FN void over_columns(const ConvShape& s, const Body& body) {
    i64 phase = s.pad_x % s.stride_x, q = s.pad_x / s.stride_x;
    for (i64 column = 0; column < s.width; ++column) {
        const i64 taps = taps_of(s, phase), last = smaller(taps - 1, q), first = larger(0, q - s.out_width + 1);
        if (first <= last) body(column, Reach{phase, taps, first, last, q - last});
        if (++phase == s.stride_x) phase = 0, ++q;
    }
}

// One output row from the lists of input rows that begin at `top`.
template <class T>
void gather_row(const ConvShape& s, const T* weights, i64 width, const Gathers<T>& gathers, const Scratch<T>& own, bool ones, i64 row, i64 top,
                i64 bottom, T* sums) {
    const i64 vectors = width / LANES, listed = bottom - top, above = row * s.stride_y - s.pad_y;
    const i64 low = larger(top, above), high = smaller(bottom, above + s.kernel_y);
    if (high <= low) return;
    // An entry counts from `top`, its weight from `above`.
    over_columns(s, [&](i64 column, const Reach& reach) {
        const u32 begin = own.starts[column * listed + low - top], end = own.starts[column * listed + high - top];
        if (begin < end)
            gathers((reach.last - reach.first + 1) * vectors, own.entries + begin, ones ? nullptr : own.entry_values + begin, end - begin,
                    (above - top) * inputs_of(s), weights + (phase_at(s, reach.phase) + reach.taps - 1 - reach.last) * width, reach.taps * width,
                    sums + reach.output * width);
    });
}

// sums [rows, …] += value · weights [kernel row, …]: M vectors of each of n rows, downwards in the sums and upwards in the weights.
template <class T, int M, bool ones>
SPIKING_ROW void spread(const T* weights, i64 weights_step, T value, i64 n, T* sums, i64 sums_step) {
    for (i64 r = 0; r < n; ++r, weights += weights_step, sums += sums_step)
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            if constexpr (ones) store(sums + m * LANES, load(sums + m * LANES) + load(weights + m * LANES));
            else store(sums + m * LANES, load(sums + m * LANES) + load(weights + m * LANES) * value);
        }
}

template <class T> using Spread = void (*)(const T*, i64, T, i64, T*, i64);
constexpr i64 MOST_VECTORS = 12;   // that one pass spreads

template <class T, bool ones, int M = MOST_VECTORS>
Spread<T> spread_of(i64 vectors) {
    if constexpr (M == 1) return spread<T, 1, ones>;
    else return vectors == M ? spread<T, M, ones> : spread_of<T, ones, M - 1>(vectors);
}

// Bits of the pixels of a row that have a spike, at most 64; one chunk of channels.
SPIKING_FN u64 active_pixels(const u32* masks, i64 n) {
    u64 active = 0;
#if defined(__AVX512F__)
    for (i64 k = 0; k < n; k += 16) {
        const __mmask16 there = n - k >= 16 ? __mmask16(0xffff) : __mmask16((1u << (n - k)) - 1u);
        const __m512i some = _mm512_maskz_loadu_epi32(there, masks + k);
        active |= u64(_mm512_test_epi32_mask(some, some)) << k;
    }
#else
    for (i64 k = 0; k < n; ++k) active |= u64(masks[k] != 0) << k;
#endif
    return active;
}

// All spikes of input rows [top, bottom) on the sums of output rows [first, stop), in the order (row, column, channel).
template <class IO, class T, bool ones>
void spread_tile(const ConvCall& p, i64 picture, const T* weights, i64 width, const Scratch<T>& own, i64 first, i64 stop, i64 top, i64 bottom) {
    const ConvShape& s = p.s;
    const i64 channels = inputs_of(s), vectors = width / LANES, row_items = s.out_width * width;
    const u32* masks = p.masks + picture * pixels_of(s);
    const IO* x = ones ? nullptr : pixels_at<IO>(p, picture_of(s, picture));
    for (i64 column = 0; column < s.width; ++column) own.columns[column].vectors = 0;
    over_columns(s, [&](i64 column, const Reach& reach) {
        own.columns[column] = {(reach.last - reach.first + 1) * vectors, (phase_at(s, reach.phase) + reach.taps - 1 - reach.last) * width,
                               reach.taps * width, reach.output * width};
    });
    Spread<T> of[MOST_VECTORS + 1] = {};
    for (i64 m = 1; m <= MOST_VECTORS; ++m) of[m] = spread_of<T, ones>(m);
    for (i64 y = top; y < bottom; ++y) {
        // Kernel rows that meet output rows: those of the stride's phase, from the last output row upwards.
        const i64 down = y + s.pad_y, lowest = smaller(stop - 1, down / s.stride_y);
        const i64 highest = larger(first, down - s.kernel_y + 1 <= 0 ? 0 : (down - s.kernel_y + s.stride_y) / s.stride_y);
        if (highest > lowest) continue;
        const i64 ky = down - lowest * s.stride_y;
        T* sums = own.sums + (lowest - first) * row_items;
        for (i64 group = 0; group < s.width; group += 64)
            for (u64 some = active_pixels(masks + y * s.width + group, smaller(64, s.width - group)); some; some &= some - 1) {
                const i64 column = group + __builtin_ctzll(some), pixel = y * s.width + column;
                const auto& at = own.columns[column];
                for (u32 left = masks[pixel]; left; left &= left - 1) {
                    const i64 channel = __builtin_ctz(left);
                    const T value = ones ? T(1) : T(widen(x[pixel * pixel_step(p) + channel * channel_step(p)]));
                    const T* from = weights + at.weights + (ky * channels + channel) * at.step;
                    for (i64 m = 0; m < at.vectors; m += MOST_VECTORS)
                        of[smaller(MOST_VECTORS, at.vectors - m)](from + m * LANES, s.stride_y * channels * at.step, value, lowest - highest + 1,
                                                                  sums + at.sums + m * LANES, -row_items);
                }
            }
    }
}

// The output rows [first, stop) of one picture and block: finish(row, sums [out_width, block.width]) in order.
template <class IO, class T, class Finish>
void conv_rows(const ConvCall& p, i64 picture, const Block& block, const Gathers<T>& gathers, const Scratch<T>& own, i64 first, i64 stop,
               const Finish& finish) {
    const ConvShape& s = p.s;
    const Picture at = picture_of(s, picture);
    const i64 width = block.width, row_items = s.out_width * width;
    const T* weights = static_cast<const T*>(p.weights) + at.group * group_items(s) + block.at;
    for (i64 c = 0; c < width; ++c) own.start[c] = T(0);
    if (p.bias)
        __builtin_memcpy(own.start, static_cast<const T*>(p.bias) + at.group * outputs_of(s) + block.first, u64(block.used) * sizeof(T));
    const auto prepare = [&](i64 pixels) {
        for (i64 c = 0; c < width; c += LANES) {
            const Vector<T> start = load(own.start + c);
            for (i64 k = 0; k < pixels; ++k) store(own.sums + k * width + c, start);
        }
    };
    const i64 step = tile_rows(s, sizeof(T));
    for (i64 tile = first; tile < stop; tile += step) {
        const i64 end = smaller(stop, tile + step);
        const i64 top = smaller(s.height, larger(0, tile * s.stride_y - s.pad_y));
        const i64 bottom = larger(top, smaller(s.height, (end - 1) * s.stride_y - s.pad_y + s.kernel_y));
        if (spreads(s)) {
            prepare((end - tile) * s.out_width);
            if (p.ones) spread_tile<IO, T, true>(p, picture, weights, width, own, tile, end, top, bottom);
            else spread_tile<IO, T, false>(p, picture, weights, width, own, tile, end, top, bottom);
            for (i64 row = tile; row < end; ++row) finish(row, own.sums + (row - tile) * row_items);
        } else {
            list_columns<IO>(p, picture, top, bottom, own);
            for (i64 row = tile; row < end; ++row) {
                prepare(s.out_width);
                gather_row(s, weights, width, gathers, own, p.ones, row, top, bottom, own.sums);
                finish(row, own.sums);
            }
        }
    }
}

template <class IO>
void forward_rows(const ConvCall& p) {
    using T = typename StateOf<IO>::type;
    const ConvShape& s = p.s;
    const i64 pictures = pictures_of(s), blocks = blocks_of(s);
    // Blocks outermost: their weights stay in the caches while all pictures pass. Few pictures are cut into strips of rows.
    const i64 strips = larger(1, smaller(s.out_height, p.threads > 1 ? 4 * p.threads / (pictures * blocks) : 1));
    const Gathers<T> gathers(p.ones);
    shared_out(blocks * pictures * strips, p.threads, [&](i64 unit, int thread) {
        const i64 strip = unit % strips, picture = unit / strips % pictures;
        const Block block = block_of(s, unit / strips / pictures);
        const Scratch<T> own = scratch_of<T>(p, thread);
        const Picture at = picture_of(s, picture);
        const i64 channel = at.group * outputs_of(s) + block.first;
        conv_rows<IO>(p, picture, block, gathers, own, s.out_height * strip / strips, s.out_height * (strip + 1) / strips, [&](i64 row, T* sums) {
            store_pixels<IO>(sums, s.out_width, block.width, block.used, p.y, p.y_last, at.image, s.outputs, channel, s.out_height, row,
                             own.buffer);
        });
    });
}

template <class T>
void add_moments(const T* sums, i64 n, i64 width, i64 used, double* sum, double* square) {
    for (i64 c = 0; c < width; c += LANES) {
        Vector<T> total[4] = {}, squares[4] = {};    // apart, so that no addition waits for the one before
        i64 x = 0;
        for (; x + 4 <= n; x += 4)
            for (int k = 0; k < 4; ++k) {
                const Vector<T> v = load(sums + (x + k) * width + c);
                total[k] += v, squares[k] += v * v;
            }
        for (; x < n; ++x) {
            const Vector<T> v = load(sums + x * width + c);
            total[0] += v, squares[0] += v * v;
        }
        total[0] = (total[0] + total[1]) + (total[2] + total[3]), squares[0] = (squares[0] + squares[1]) + (squares[2] + squares[3]);
        for (i64 k = c; k < smaller(used, c + LANES); ++k) sum[k] += double(total[0][k - c]), square[k] += double(squares[0][k - c]);
    }
}

// pooled [n / window, width] += the sums of each window's part of this row.
template <class T>
void add_windows(const T* sums, i64 columns, i64 window, i64 width, T* pooled) {
    for (i64 j = 0; j < columns; ++j)
        for (i64 c = 0; c < width; c += LANES) {
            Vector<T> total = load(pooled + j * width + c);
            for (i64 k = 0; k < window; ++k) total += load(sums + (j * window + k) * width + c);
            store(pooled + j * width + c, total);
        }
}

// pooled [columns, width] and their places, from row `within` of the windows; a NaN is larger than any number.
template <class T>
void take_largest(const T* sums, i64 columns, i64 window, i64 within, i64 width, T* pooled, T* places) {
    for (i64 j = 0; j < columns; ++j)
        for (i64 c = 0; c < width; c += LANES) {
            Vector<T> best = load(within ? pooled + j * width + c : sums + j * window * width + c);
            Places<T> place = {};
            if (within) __builtin_memcpy(&place, places + j * width + c, sizeof(place));
            for (i64 k = within ? 0 : 1; k < window; ++k) {
                const Vector<T> v = load(sums + (j * window + k) * width + c);
                const auto larger_one = (v > best) | (v != v);
                best = larger_one ? v : best;
                place = larger_one ? Places<T>{} + int(within * window + k) : place;
            }
            store(pooled + j * width + c, best);
            __builtin_memcpy(places + j * width + c, &place, sizeof(place));
        }
}

// Where the places of one row of windows begin, [columns, outputs of a group].
SPIKING_FN unsigned char* places_at(const ConvCall& p, i64 picture, i64 row) {
    const i64 rows = p.s.out_height / p.window, columns = p.s.out_width / p.window;
    return p.places + (picture * rows + row) * columns * outputs_of(p.s);
}

template <class IO>
void forward_largest(const ConvCall& p) {
    using T = typename StateOf<IO>::type;
    const ConvShape& s = p.s;
    const i64 pictures = pictures_of(s), rows = s.out_height / p.window, columns = s.out_width / p.window, outputs = outputs_of(s);
    const Gathers<T> gathers(p.ones);
    shared_out(blocks_of(s) * pictures, p.threads, [&](i64 unit, int thread) {
        const Block block = block_of(s, unit / pictures);
        const i64 picture = unit % pictures, width = block.width;
        const Scratch<T> own = scratch_of<T>(p, thread);
        const Picture at = picture_of(s, picture);
        T* places = own.pooled + columns * width;
        conv_rows<IO>(p, picture, block, gathers, own, 0, rows * p.window, [&](i64 row, T* sums) {
            take_largest(sums, columns, p.window, row % p.window, width, own.pooled, places);
            if ((row + 1) % p.window) return;
            store_pixels<IO>(own.pooled, columns, width, block.used, p.pooled, p.y_last, at.image, s.outputs, at.group * outputs + block.first, rows,
                             row / p.window, own.buffer);
            unsigned char* to = places_at(p, picture, row / p.window) + block.first;
            for (i64 j = 0; j < columns; ++j)
                for (i64 c = 0; c < block.used; c += LANES) {
                    Places<T> wide;
                    __builtin_memcpy(&wide, places + j * width + c, sizeof(wide));
                    const Bytes narrow_ones = __builtin_convertvector(wide, Bytes);
                    __builtin_memcpy(to + j * outputs + c, &narrow_ones, u64(smaller(LANES, block.used - c)));
                }
        });
    });
}

template <class IO>
void forward_pooled(const ConvCall& p) {
    using T = typename StateOf<IO>::type;
    const ConvShape& s = p.s;
    const i64 pictures = pictures_of(s), rows = s.out_height / p.window, columns = s.out_width / p.window;
    const T share = T(1) / T(p.window * p.window);
    const Gathers<T> gathers(p.ones);
    shared_out(blocks_of(s) * pictures, p.threads, [&](i64 unit, int thread) {
        const Block block = block_of(s, unit / pictures);
        const i64 picture = unit % pictures;
        const Scratch<T> own = scratch_of<T>(p, thread);
        const Picture at = picture_of(s, picture);
        const i64 channel = at.group * outputs_of(s) + block.first;
        double* moments = p.moments + i64(thread) * 2 * s.outputs + channel;
        conv_rows<IO>(p, picture, block, gathers, own, 0, s.out_height, [&](i64 row, T* sums) {
            add_moments(sums, s.out_width, block.width, block.used, moments, moments + s.outputs);
            const i64 within = row % p.window;
            if (row / p.window >= rows) return;
            if (within == 0)
                for (i64 k = 0; k < columns * block.width; ++k) own.pooled[k] = T(0);
            add_windows(sums, columns, p.window, block.width, own.pooled);
            if (within + 1 < p.window) return;
            for (i64 k = 0; k < columns * block.width; ++k) own.pooled[k] *= share;
            store_pixels<IO>(own.pooled, columns, block.width, block.used, p.pooled, p.y_last, at.image, s.outputs, channel, rows,
                             row / p.window, own.buffer);
        });
    });
}

// --- backward ---------------------------------------------------------------------------------------------------------------------

// The gradient of one picture and block where each window's goes to its largest number.
template <class IO, class T>
void spread_largest(const ConvCall& p, i64 picture, const Block& block, const Scratch<T>& own) {
    const ConvShape& s = p.s;
    const Picture at = picture_of(s, picture);
    const i64 rows = s.out_height / p.window, columns = s.out_width / p.window, width = block.width, outputs = outputs_of(s);
    const i64 step = grads_width(s) * width, channel = at.group * outputs + block.first;
    for (i64 row = 0; row < s.out_height; ++row)
        for (i64 k = 0; k < s.out_width * width; ++k) own.grads[row * step + left_of(s) * width + k] = T(0);
    for (i64 row = 0; row < rows; ++row) {
        load_pixels<IO>(p.grad_pooled, p.y_last, at.image, s.outputs, channel, rows, row, columns, width, block.used, own.pooled, own.buffer);
        const unsigned char* places = places_at(p, picture, row) + block.first;
        for (i64 j = 0; j < columns; ++j)
            for (i64 c = 0; c < block.used; c += LANES) {
                Bytes narrow_ones = {};
                __builtin_memcpy(&narrow_ones, places + j * outputs + c, u64(smaller(LANES, block.used - c)));
                const Places<T> place = __builtin_convertvector(narrow_ones, Places<T>);
                const Vector<T> g = load(own.pooled + j * width + c), none = {};
                for (i64 r = 0; r < p.window; ++r) {
                    T* to = own.grads + (row * p.window + r) * step + (left_of(s) + j * p.window) * width + c;
                    for (i64 k = 0; k < p.window; ++k) store(to + k * width, place == Places<T>{} + int(r * p.window + k) ? g : none);
                }
            }
    }
}

// The gradient of one picture and block as pixels [out_height, grads_width, block.width], zeros on both sides of each row.
template <class IO, class T>
void load_grads(const ConvCall& p, i64 picture, const Block& block, const Gathers<T>& gathers, const Scratch<T>& own) {
    const ConvShape& s = p.s;
    const Picture at = picture_of(s, picture);
    const i64 channel = at.group * outputs_of(s) + block.first, left = left_of(s), total = grads_width(s), width = block.width;
    for (i64 row = 0; row < s.out_height; ++row) {
        T* to = own.grads + row * total * width;
        for (i64 k = 0; k < left * width; ++k) to[k] = T(0);
        for (i64 k = (left + s.out_width) * width; k < total * width; ++k) to[k] = T(0);
        if (p.grad_y)
            load_pixels<IO>(p.grad_y, p.y_last, at.image, s.outputs, channel, s.out_height, row, s.out_width, width, block.used,
                            to + left * width, own.buffer);
    }
    if (p.grad_y) return;
    if (p.places) return spread_largest<IO>(p, picture, block, own);
    // dL/dy = dL/dsum + 2·y·dL/dsquare + dL/dpooled / window²
    const i64 rows = s.out_height / p.window, columns = s.out_width / p.window;
    const T share = T(1) / T(p.window * p.window);
    conv_rows<IO>(p, picture, block, gathers, own, 0, s.out_height, [&](i64 row, const T* y) {
        T* to = own.grads + (row * total + left) * width;
        for (i64 c = 0; c < width; c += LANES) {
            Vector<T> constant = {}, slope = {};
            for (i64 k = c; k < smaller(block.used, c + LANES); ++k)
                constant[k - c] = T(p.grad_moments[channel + k]), slope[k - c] = T(2 * p.grad_moments[s.outputs + channel + k]);
            for (i64 x = 0; x < s.out_width; ++x) store(to + x * width + c, constant + slope * load(y + x * width + c));
        }
        if (row / p.window >= rows) return;
        if (row % p.window == 0)
            load_pixels<IO>(p.grad_pooled, p.y_last, at.image, s.outputs, channel, rows, row / p.window, columns, width, block.used, own.pooled,
                            own.buffer);
        for (i64 j = 0; j < columns; ++j)
            for (i64 c = 0; c < width; c += LANES) {
                const Vector<T> g = load(own.pooled + j * width + c) * share;
                for (i64 k = 0; k < p.window; ++k) {
                    T* pixel = to + (j * p.window + k) * width + c;
                    store(pixel, load(pixel) + g);
                }
            }
    });
}

// place[pixel]: where the gradients of a pixel's leftmost tap begin, in pixels of `grads`; place[pixels + pixel]: its phase.
void find_places(const ConvShape& s, u32* place) {
    for (i64 y = 0; y < s.height; ++y)
        for (i64 x = 0; x < s.width; ++x) {
            const i64 phase_y = (y + s.pad_y) % s.stride_y, phase_x = (x + s.pad_x) % s.stride_x, taps = taps_of(s, phase_x);
            const i64 row = (y + s.pad_y) / s.stride_y, column = (x + s.pad_x) / s.stride_x + left_of(s) - (taps - 1);
            place[y * s.width + x] = u32(row * grads_width(s) + (taps ? column : 0));
            place[pixels_of(s) + y * s.width + x] = u32(phase_y * s.stride_x + phase_x);
        }
}

// The spikes of channels [first, stop) of one picture, channel by channel, each list going down the image.
template <class IO, class T>
void list_channels(const ConvCall& p, i64 picture, const Scratch<T>& own, i64 first, i64 stop) {
    const i64 pixels = pixels_of(p.s), chunks = chunks_of(p.s), room = pixels + LIST_SLACK;
    const u32* masks = p.masks + picture * pixels * chunks;
    for (i64 c = first; c < stop; ++c) own.counts[c] = 0;
#if defined(__AVX512F__)
    const __m512i every = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(int(chunks)));
    for (i64 pixel = 0; pixel < pixels; pixel += 16) {
        const __mmask16 there = pixels - pixel >= 16 ? __mmask16(0xffff) : __mmask16((1u << (pixels - pixel)) - 1u);
        for (i64 chunk = first / 32; 32 * chunk < stop; ++chunk) {
            const u32* at = masks + pixel * chunks + chunk;
            const __m512i some = chunks == 1 ? _mm512_maskz_loadu_epi32(there, at)
                                             : _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), there, every, at, 4);
            if (_mm512_test_epi32_mask(some, some) == 0) continue;
            const i64 base = 32 * chunk, end = smaller(stop, base + 32);
            for (i64 c = larger(first, base); c < end; ++c) {
                const __mmask16 active = _mm512_test_epi32_mask(some, _mm512_set1_epi32(int(1u << (c - base))));
                own.counts[c] = append_mask(active, 16, u32(pixel), own.list + c * room + own.counts[c]) - (own.list + c * room);
            }
        }
    }
#else
    for (i64 chunk = first / 32; 32 * chunk < stop; ++chunk) {
        const i64 base = 32 * chunk;
        u32 wanted = ~0u;
        if (first > base) wanted &= ~0u << (first - base);
        if (stop < base + 32) wanted &= ~(~0u << (stop - base));
        for (i64 pixel = 0; pixel < pixels; ++pixel)
            for (u32 left = masks[pixel * chunks + chunk] & wanted; left; left &= left - 1) {
                const i64 channel = base + __builtin_ctz(left);
                own.list[channel * room + own.counts[channel]++] = u32(pixel);
            }
    }
#endif
    if (p.ones) return;
    const IO* x = pixels_at<IO>(p, picture_of(p.s, picture));
    for (i64 c = first; c < stop; ++c)
        for (i64 i = 0; i < own.counts[c]; ++i)
            own.values[c * room + i] = widen(x[i64(own.list[c * room + i]) * pixel_step(p) + c * channel_step(p)]);
}

// grad_weights of one channel += the gradients that each of its spikes meets.
template <class T>
void add_weight_grads(const ConvCall& p, const Block& block, i64 channel, const Gathers<T>& gathers, const Scratch<T>& own, T* grad_block) {
    const ConvShape& s = p.s;
    const i64 pixels = pixels_of(s), width = block.width, vectors = width / LANES, n = own.counts[channel];
    if (n == 0) return;
    const u32* list = own.list + channel * (pixels + LIST_SLACK);
    const T* all_values = own.values + channel * (pixels + LIST_SLACK);
    const bool plain = s.stride_x == 1 && s.stride_y == 1;
    for (i64 phase_y = 0; phase_y < smaller(s.stride_y, s.kernel_y); ++phase_y)
        for (i64 phase_x = 0; phase_x < smaller(s.stride_x, s.kernel_x); ++phase_x) {
            i64 m = 0;
            if (plain) {
                for (i64 i = 0; i < n; ++i) own.picked[i] = own.place[list[i]];
                m = n;
            } else {
                const u32 phase = u32(phase_y * s.stride_x + phase_x);
                for (i64 i = 0; i < n; ++i) {
                    own.picked[m] = own.place[list[i]];
                    if (!p.ones) own.picked_values[m] = all_values[i];
                    m += own.place[pixels + list[i]] == phase;
                }
            }
            const T* values = p.ones ? nullptr : plain ? all_values : own.picked_values;
            const i64 taps = taps_of(s, phase_x), row_items = grads_width(s);
            T* grad = grad_block + phase_at(s, phase_x) * width;
            i64 low = 0, high = 0;               // the spikes that meet an output row: neighbours, since lists go down the image
            for (i64 ky = phase_y, up = 0; ky < s.kernel_y; ky += s.stride_y, ++up) {
                while (low < m && i64(own.picked[low]) < up * row_items) ++low;
                high = larger(high, low);
                while (high < m && i64(own.picked[high]) < (s.out_height + up) * row_items) ++high;
                if (low < high)
                    gathers(taps * vectors, own.picked + low, p.ones ? nullptr : values + low, high - low, up * row_items, own.grads, width,
                            grad + (ky * inputs_of(s) + channel) * taps * width);
            }
        }
}

// out [n] += add; lanes beyond n are left alone.
template <class T>
SPIKING_FN void add_lanes(T* out, const Vector<T>& add, i64 n) {
    if (n >= LANES) {
        store(out, load(out) + add);
        return;
    }
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
        const __mmask16 some = __mmask16((1u << n) - 1u);
        _mm512_mask_storeu_ps(out, some, _mm512_add_ps(_mm512_maskz_loadu_ps(some, out), reinterpret_cast<__m512>(add)));
        return;
    }
#endif
    for (i64 k = 0; k < n; ++k) out[k] += add[k];
}

// out [P pixels, lanes] += Σ over n of g[pixel, k] · weights[k, lanes], lanes at most 16·NV
template <class T, int P, int NV>
SPIKING_ROW void product(const T* g, i64 g_stride, const T* weights, i64 w_stride, i64 n, T* out, i64 out_stride, i64 lanes) {
    Vector<T> s[P][NV] = {};
    for (i64 k = 0; k < n; ++k) {
        Vector<T> w[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) w[v] = load(weights + k * w_stride + v * LANES);
#pragma GCC unroll 24
        for (int i = 0; i < P; ++i)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) s[i][v] = fused(w[v], g[i * g_stride + k], s[i][v]);
    }
#pragma GCC unroll 24
    for (int i = 0; i < P; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) add_lanes(out + i * out_stride + v * LANES, s[i][v], lanes - v * LANES);
}

template <class T> using Product = void (*)(const T*, i64, const T*, i64, i64, T*, i64, i64);

template <class T, int NV> constexpr int PIXELS = REGISTERS<T> / NV > 0 ? REGISTERS<T> / NV : 1;

template <class T, int NV, int P = PIXELS<T, NV>>
Product<T> product_of(i64 pixels) {
    if constexpr (P == 1) return product<T, 1, NV>;
    else return pixels == P ? product<T, P, NV> : product_of<T, NV, P - 1>(pixels);
}

template <class T>
struct Products {
    Product<T> of[5][REGISTERS<T> + 1] = {};     // by vectors and pixels
    i64 most[5] = {0, PIXELS<T, 1>, PIXELS<T, 2>, PIXELS<T, 3>, PIXELS<T, 4>};
    Products() {
        for (int i = 1; i <= PIXELS<T, 1>; ++i) of[1][i] = product_of<T, 1>(i);
        for (int i = 1; i <= PIXELS<T, 2>; ++i) of[2][i] = product_of<T, 2>(i);
        for (int i = 1; i <= PIXELS<T, 3>; ++i) of[3][i] = product_of<T, 3>(i);
        for (int i = 1; i <= PIXELS<T, 4>; ++i) of[4][i] = product_of<T, 4>(i);
    }
    // All lanes, all pixels, in parts that fit in registers.
    void operator()(i64 pixels, i64 lanes, const T* g, i64 g_stride, const T* weights, i64 w_stride, i64 n, T* out, i64 out_stride) const {
        const i64 vectors = (lanes + LANES - 1) / LANES, slices = (vectors + 3) / 4;
        for (i64 slice = 0; slice < slices; ++slice) {
            const i64 v = vectors * slice / slices, nv = vectors * (slice + 1) / slices - v, parts = (pixels + most[nv] - 1) / most[nv];
            for (i64 part = 0; part < parts; ++part) {
                const i64 first = pixels * part / parts, stop = pixels * (part + 1) / parts;
                of[nv][stop - first](g + first * g_stride, g_stride, weights + v * LANES, w_stride, n, out + first * out_stride + v * LANES,
                                     out_stride, lanes - v * LANES);
            }
        }
    }
};

// Rows [first, stop) of grad_x of one picture += what one block contributes. An output pixel reaches kernel_x pixels of a row, which are
// neighbours in memory: one product gives all of them.
template <class T>
void add_input_grads(const ConvCall& p, i64 picture, const Block& block, const Products<T>& products, const Scratch<T>& own, i64 first, i64 stop) {
    const ConvShape& s = p.s;
    const i64 group = picture_of(s, picture).group, channels = inputs_of(s), lanes = s.kernel_x * channels, deep = rounded_up(lanes, LANES);
    for (i64 y = first; y < stop; ++y)
        for (i64 ky = 0; ky < s.kernel_y; ++ky) {
            const i64 down = y + s.pad_y - ky, row = down / s.stride_y;
            if (down < 0 || down % s.stride_y || row >= s.out_height) continue;
            const T* weights = static_cast<const T*>(p.back_weights) + ((group * s.kernel_y + ky) * outputs_of(s) + block.first) * deep;
            products(s.out_width, lanes, own.grads + (row * grads_width(s) + left_of(s)) * block.width, block.width, weights, deep, block.used,
                     own.grad_x + y * grad_x_items(s), s.stride_x * channels);
        }
}

template <class IO>
void backward_share(const ConvCall& p, i64 team, i64 member, i64 members, int thread) {
    using T = typename StateOf<IO>::type;
    const ConvShape& s = p.s;
    const Scratch<T> own = scratch_of<T>(p, thread);
    const i64 channels = inputs_of(s), blocks = blocks_of(s), row_items = grad_x_items(s), groups = s.groups;
    const i64 items = groups * group_items(s);
    const i64 first_row = s.height * member / members, last_row = s.height * (member + 1) / members;
    const i64 first_channel = channels * member / members, last_channel = channels * (member + 1) / members;
    const Gathers<T> gathers(p.ones);
    const Products<T> products;
    find_places(s, own.place);
    for (i64 picture = s.images * team / p.teams * groups; picture < s.images * (team + 1) / p.teams * groups; ++picture) {
        const Picture at = picture_of(s, picture);
        if (p.back_weights)
            for (i64 k = first_row * row_items; k < last_row * row_items; ++k) own.grad_x[k] = T(0);
        if (p.grad_weights) list_channels<IO>(p, picture, own, first_channel, last_channel);
        for (i64 b = 0; b < blocks; ++b) {
            const Block block = block_of(s, b);
            load_grads<IO>(p, picture, block, gathers, own);
            if (p.grad_bias && member == 0) {
                T* to = static_cast<T*>(p.grad_bias) + team * s.outputs + at.group * outputs_of(s) + block.first;
                for (i64 pixel = 0; pixel < s.out_height * grads_width(s); ++pixel)
                    for (i64 c = 0; c < block.used; ++c) to[c] += own.grads[pixel * block.width + c];
            }
            if (p.grad_weights) {
                T* to = static_cast<T*>(p.grad_weights) + team * items + at.group * group_items(s) + block.at;
                for (i64 c = first_channel; c < last_channel; ++c) add_weight_grads(p, block, c, gathers, own, to);
            }
            if (p.back_weights) add_input_grads(p, picture, block, products, own, first_row, last_row);
        }
        if (!p.back_weights) continue;
        for (i64 y = first_row; y < last_row; ++y)
            store_pixels<IO>(own.grad_x + y * row_items + s.pad_x * channels, s.width, channels, channels, p.grad_x, p.x_last, at.image, s.inputs, at.group * channels,
                             s.height, y, own.buffer);
    }
}

template <class IO>
void backward_all(const ConvCall& p) {
#ifdef _OPENMP
    if (p.threads > 1) {
#pragma omp parallel num_threads(p.threads)
        {
            const i64 self = omp_get_thread_num();
            // However many threads came: each share is done by somebody.
            for (i64 share = self; share < p.threads; share += omp_get_num_threads()) {
                const i64 team = share % p.teams;
                const i64 members = (p.threads - team + p.teams - 1) / p.teams;
                backward_share<IO>(p, team, share / p.teams, members, int(self));
            }
        }
        return;
    }
#endif
    backward_share<IO>(p, 0, 0, 1, 0);
}

// --- weights ----------------------------------------------------------------------------------------------------------------------

// body(offset in the blocks, offset in the weight) for every weight.
template <class Body>
void over_weights(const ConvShape& s, const Body& body) {
    const i64 channels = inputs_of(s), outputs = outputs_of(s);
    for (i64 group = 0; group < s.groups; ++group)
        for (i64 b = 0; b < blocks_of(s); ++b) {
            const Block block = block_of(s, b);
            for (i64 kx = 0; kx < s.kernel_x; ++kx) {
                const i64 phase = kx % s.stride_x, taps = taps_of(s, phase), j = taps - 1 - kx / s.stride_x, at = phase_at(s, phase);
                for (i64 ky = 0; ky < s.kernel_y; ++ky)
                    for (i64 c = 0; c < channels; ++c) {
                        const i64 to = group * group_items(s) + block.at + (at + (ky * channels + c) * taps + j) * block.width;
                        for (i64 k = 0; k < block.used; ++k)
                            body(to + k, (((group * outputs + block.first + k) * channels + c) * s.kernel_y + ky) * s.kernel_x + kx);
                    }
            }
        }
}

template <class IO>
bool pack_all(const ConvWeights& p) {
    using T = typename StateOf<IO>::type;
    const ConvShape& s = p.s;
    const IO* weight = static_cast<const IO*>(p.weight);
    T* blocks = static_cast<T*>(p.blocks);
    T* back = static_cast<T*>(p.back);
    const i64 channels = inputs_of(s), deep = rounded_up(s.kernel_x * channels, LANES);
    T odd = T(0);                                // stays 0: v - v is 0 unless v is infinite or NaN
    if (blocks) {
        for (i64 k = 0; k < s.groups * group_items(s); ++k) blocks[k] = T(0);
        over_weights(s, [&](i64 to, i64 from) {
            const T v = widen(weight[from]);
            odd += v - v;
            blocks[to] = v;
        });
    }
    if (back)
        for (i64 o = 0; o < s.outputs; ++o) {
            const i64 group = o / outputs_of(s), within = o % outputs_of(s);
            for (i64 ky = 0; ky < s.kernel_y; ++ky) {
                T* to = back + ((group * s.kernel_y + ky) * outputs_of(s) + within) * deep;
                for (i64 k = s.kernel_x * channels; k < deep; ++k) to[k] = T(0);
                for (i64 kx = 0; kx < s.kernel_x; ++kx)
                    for (i64 c = 0; c < channels; ++c)
                        to[kx * channels + c] = widen(weight[((o * channels + c) * s.kernel_y + ky) * s.kernel_x + kx]);
            }
        }
    return odd == T(0);
}

template <class IO>
void unpack_all(const ConvWeights& p) {
    using T = typename StateOf<IO>::type;
    const T* blocks = static_cast<const T*>(p.grad_blocks);
    IO* weight = static_cast<IO*>(p.grad_weight);
    const i64 items = p.s.groups * group_items(p.s);
    over_weights(p.s, [&](i64 from, i64 to) {
        T sum = T(0);
        for (int team = 0; team < p.teams; ++team) sum += blocks[team * items + from];
        narrow(sum, weight[to]);
    });
}

// --- table ------------------------------------------------------------------------------------------------------------------------

template <class Run>
SPIKING_FN auto with_dtype(int dtype, const Run& run) {
    switch (dtype) {
        case 0: return run(float{});
        case 1: return run(double{});
        case 2: return run(bf16{});
        default: return run(f16{});
    }
}

long long block_items(const ConvShape& s) { return s.groups * group_items(s); }
long long back_items(const ConvShape& s) { return s.kernel_y * s.outputs * rounded_up(s.kernel_x * inputs_of(s), LANES); }
long long scratch_bytes(const ConvCall& p) { return p.dtype == 1 ? scratch_of<double>(p, 0).bytes : scratch_of<float>(p, 0).bytes; }
bool pack(const ConvWeights& p) { return with_dtype(p.dtype, [&](auto of) { return pack_all<decltype(of)>(p); }); }
void unpack(const ConvWeights& p) { with_dtype(p.dtype, [&](auto of) { unpack_all<decltype(of)>(p); }); }
long long count(const ConvCall& p) { return with_dtype(p.dtype, [&](auto of) { return count_all<decltype(of)>(p); }); }
void forward(const ConvCall& p) {
    with_dtype(p.dtype, [&](auto of) {
        if (p.places) forward_largest<decltype(of)>(p);
        else if (p.window) forward_pooled<decltype(of)>(p);
        else forward_rows<decltype(of)>(p);
    });
}
void backward(const ConvCall& p) { with_dtype(p.dtype, [&](auto of) { backward_all<decltype(of)>(p); }); }

}  // namespace

extern const ConvTable conv_table;
const ConvTable conv_table{block_items, back_items, scratch_bytes, pack, unpack, count, forward, backward};

}  // namespace SPIKING_NS
