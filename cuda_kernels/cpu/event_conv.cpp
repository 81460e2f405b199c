// Convolution from the spikes of its input, its weight gradient likewise, and the input gradient (dense); optionally with average pooling
// and the moments that batch normalisation needs, in which case the full output is never written, neither way.
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

constexpr i64 LANES = 16;

template <class T> struct VectorOf { typedef T type __attribute__((vector_size(LANES * sizeof(T)))); };
template <class T> using Vector = typename VectorOf<T>::type;

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
SPIKING_FN i64 words_of(const ConvShape& s) { return (pixels_of(s) + 63) / 64; }
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

// body(item, thread): items in turn to whoever is free; their results do not depend on who that is.
template <class Body>
void shared_out(i64 items, int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1 && items > 1) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (i64 item = 0; item < items; ++item) body(item, omp_get_thread_num());
        return;
    }
#endif
    (void)threads;
    for (i64 item = 0; item < items; ++item) body(item, 0);
}

// --- sums of listed rows ----------------------------------------------------------------------------------------------------------

// sum [16·M] += Σ over the list of value · rows[entry - base, :]; value is 1 where `ones`.
template <class T, int M, bool ones>
__attribute__((noinline)) void gather(const u32* list, const T* values, i64 n, i64 base, const T* rows, i64 stride, T* sum) {
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

// to[c·to_stride + r] = from[r·from_stride + c]
template <class T>
void turn(const T* from, i64 from_stride, i64 rows, i64 columns, T* to, i64 to_stride) {
    i64 r = 0;
#if defined(__SSE2__)
    if constexpr (sizeof(T) == 4) {
        for (; r + 4 <= rows; r += 4) {
            i64 c = 0;
            for (; c + 4 <= columns; c += 4) {
                const float* at = from + r * from_stride + c;
                __m128 a = _mm_loadu_ps(at), b = _mm_loadu_ps(at + from_stride), d = _mm_loadu_ps(at + 2 * from_stride),
                       e = _mm_loadu_ps(at + 3 * from_stride);
                _MM_TRANSPOSE4_PS(a, b, d, e);
                float* out = to + c * to_stride + r;
                _mm_storeu_ps(out, a), _mm_storeu_ps(out + to_stride, b);
                _mm_storeu_ps(out + 2 * to_stride, d), _mm_storeu_ps(out + 3 * to_stride, e);
            }
            for (; c < columns; ++c)
                for (i64 k = 0; k < 4; ++k) to[c * to_stride + r + k] = from[(r + k) * from_stride + c];
        }
    }
#endif
    for (; r < rows; ++r)
        for (i64 c = 0; c < columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
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

SPIKING_FN bool active(float v) { return v != 0.0f; }
SPIKING_FN bool active(double v) { return v != 0.0; }
SPIKING_FN bool active(bf16 v) { return (v.raw & 0x7fff) != 0; }
SPIKING_FN bool active(f16 v) { return (v.raw & 0x7fff) != 0; }

template <class IO>
SPIKING_FN const IO* plane_of(const ConvCall& p, i64 image, i64 channel) {
    const i64 pixels = pixels_of(p.s);
    return static_cast<const IO*>(p.x) + (p.x_last ? image * pixels * p.s.inputs + channel : (image * p.s.inputs + channel) * pixels);
}

// Bits of the planes of one picture, and spikes per pixel; returns whether all are ones.
template <class IO>
bool scan_planes(const ConvCall& p, Picture at, u64* bits, u32* per_pixel) {
    const i64 channels = inputs_of(p.s), pixels = pixels_of(p.s), words = words_of(p.s);
    u64 other = 0;
    for (i64 c = 0; c < channels; ++c) {
        const IO* plane = plane_of<IO>(p, at.image, at.group * channels + c);
        for (i64 k = 0; k < pixels; ++k) per_pixel[k] += active(plane[k]) ? 1u : 0u;
        for (i64 w = 0; w < words; ++w) {
            const SpikeWord word = spike_word_of(plane, 64 * w, pixels);
            bits[c * words + w] = word.active;
            other |= word.active ^ word.ones;
        }
    }
    return other == 0;
}

template <class IO>
bool scan_pixels(const ConvCall& p, Picture at, u64* bits, u32* per_pixel) {
    const i64 channels = inputs_of(p.s), pixels = pixels_of(p.s), words = words_of(p.s);
    u64 other = 0;
    for (i64 k = 0; k < channels * words; ++k) bits[k] = 0;
    const IO* first = plane_of<IO>(p, at.image, at.group * channels);
    for (i64 k = 0; k < pixels; ++k) {
        const IO* pixel = first + k * p.s.inputs;
        for (i64 c = 0; c < channels; c += 64) {
            const SpikeWord word = spike_word_of(pixel, c, channels);
            other |= word.active ^ word.ones;
            per_pixel[k] += u32(__builtin_popcountll(word.active));
            for (u64 left = word.active; left; left &= left - 1)
                bits[(c + __builtin_ctzll(left)) * words + k / 64] |= u64(1) << (k % 64);
        }
    }
    return other == 0;
}

template <class IO>
i64 count_all(const ConvCall& p) {
    const i64 pixels = pixels_of(p.s), height = p.s.height, width = p.s.width, plane_words = inputs_of(p.s) * words_of(p.s);
    i64 total = 0;
    int other = 0;
    shared_out(pictures_of(p.s), p.threads, [&](i64 index, int thread) {
        if (__atomic_load_n(&total, __ATOMIC_RELAXED) > p.limit) return;
        u32* per_pixel = reinterpret_cast<u32*>(static_cast<char*>(p.scratch) + thread * rounded_up(pixels * i64(sizeof(u32)), 64));
        for (i64 k = 0; k < pixels; ++k) per_pixel[k] = 0;
        u64* bits = p.bits + index * plane_words;
        const Picture at = picture_of(p.s, index);
        const bool ones = p.x_last ? scan_pixels<IO>(p, at, bits, per_pixel) : scan_planes<IO>(p, at, bits, per_pixel);
        // Shifted by one, so that filling the lists moves each mark to where it belongs.
        u32* starts = p.starts + index * (pixels + 1);
        u32 sum = 0;
        starts[0] = 0;
        for (i64 x = 0; x < width; ++x)
            for (i64 y = 0; y < height; ++y) starts[x * height + y + 1] = sum, sum += per_pixel[y * width + x];
        p.counts[index] = i64(sum);
        if (!ones) __atomic_store_n(&other, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&total, i64(sum), __ATOMIC_RELAXED);
    });
    return total > p.limit ? -1 : total * 2 + (other ? 0 : 1);
}

template <class IO>
void list_all(const ConvCall& p) {
    using T = typename StateOf<IO>::type;
    const i64 pixels = pixels_of(p.s), channels = inputs_of(p.s), words = words_of(p.s), height = p.s.height, width = p.s.width;
    u32* slot_of = static_cast<u32*>(p.scratch);
    u32* row_of = slot_of + pixels;
    for (i64 y = 0; y < height; ++y)
        for (i64 x = 0; x < width; ++x) slot_of[y * width + x] = u32(x * height + y + 1), row_of[y * width + x] = u32(y * channels);
    const i64 step = p.x_last ? p.s.inputs : 1;
    shared_out(pictures_of(p.s), p.threads, [&](i64 index, int) {
        const Picture at = picture_of(p.s, index);
        u32* starts = p.starts + index * (pixels + 1);
        u32* entries = p.entries + p.offsets[index];
        T* values = p.values ? static_cast<T*>(p.values) + p.offsets[index] : nullptr;
        const u64* bits = p.bits + index * channels * words;
        for (i64 c = 0; c < channels; ++c) {
            const IO* plane = values ? plane_of<IO>(p, at.image, at.group * channels + c) : nullptr;
            for (i64 w = 0; w < words; ++w)
                for (u64 left = bits[c * words + w]; left; left &= left - 1) {
                    const i64 pixel = 64 * w + __builtin_ctzll(left);
                    const u32 to = starts[slot_of[pixel]]++;
                    entries[to] = row_of[pixel] + u32(c);
                    if (values) values[to] = widen(plane[pixel * step]);
                }
        }
    });
}

// --- forward ----------------------------------------------------------------------------------------------------------------------

// One picture's spikes, and one block's weights.
template <class T>
struct Sources {
    const u32* starts;
    const u32* entries;
    const T* values;
    const T* weights;
    const T* bias;                 // null: none
};

template <class T>
Sources<T> sources_of(const ConvCall& p, i64 picture, const Block& block) {
    const Picture at = picture_of(p.s, picture);
    const T* bias = static_cast<const T*>(p.bias);
    return {p.starts + picture * (pixels_of(p.s) + 1), p.entries + p.offsets[picture],
            p.values ? static_cast<const T*>(p.values) + p.offsets[picture] : nullptr,
            static_cast<const T*>(p.weights) + at.group * group_items(p.s) + block.at,
            bias ? bias + at.group * outputs_of(p.s) + block.first : nullptr};
}

// sums [out_width, block.width] of one output row.
template <class T>
void conv_row(const ConvShape& s, const Sources<T>& from, const Block& block, const Gathers<T>& gathers, i64 row, T* sums) {
    const i64 width = block.width, vectors = width / LANES;
    for (i64 x = 0; x < s.out_width; ++x)
        for (i64 c = 0; c < width; ++c) sums[x * width + c] = from.bias && c < block.used ? from.bias[c] : T(0);
    const i64 top = row * s.stride_y - s.pad_y, low = larger(0, top), high = smaller(s.height, top + s.kernel_y);
    if (high <= low) return;
    const i64 base = top * inputs_of(s), phase_rows = s.kernel_y * inputs_of(s) * width;
    i64 phase = s.pad_x % s.stride_x, q = s.pad_x / s.stride_x;
    const T* weights = from.weights + phase_at(s, phase) * width;
    for (i64 x = 0; x < s.width; ++x) {
        const i64 taps = taps_of(s, phase);
        const u32 begin = from.starts[x * s.height + low], end = from.starts[x * s.height + high];
        const i64 last = smaller(taps - 1, q), first = larger(0, q - s.out_width + 1);
        if (begin < end && first <= last)
            gathers((last - first + 1) * vectors, from.entries + begin, from.values ? from.values + begin : nullptr, end - begin, base,
                    weights + (taps - 1 - last) * width, taps * width, sums + (q - last) * width);
        weights += taps * phase_rows;
        if (++phase == s.stride_x) phase = 0, ++q, weights = from.weights;
    }
}

template <class T>
struct Scratch {
    T *sums, *buffer, *pooled, *grads, *grad_x, *values, *picked_values;
    u32 *list, *picked, *place;
    i64 bytes;
};

SPIKING_FN i64 phases_of(const ConvShape& s) { return smaller(s.stride_x, s.kernel_x) * smaller(s.stride_y, s.kernel_y); }
SPIKING_FN i64 left_of(const ConvShape& s) { return taps_of(s, 0) - 1; }  // zero pixels left of a row of gradients
SPIKING_FN i64 grads_width(const ConvShape& s) {
    return left_of(s) + larger(s.out_width, (s.width - 1 + s.pad_x) / s.stride_x + 1);
}
SPIKING_FN i64 grad_x_width(const ConvShape& s) { return rounded_up(inputs_of(s), LANES); }

// The parts of a thread's scratch memory; with a null base only their size.
template <class T>
Scratch<T> scratch_of(const ConvCall& p, int thread) {
    const ConvShape& s = p.s;
    const i64 width = widest_block(s), pixels = pixels_of(s), row = larger(s.out_width, s.width) * larger(width, grad_x_width(s));
    const bool backward = p.grad_y || p.grad_pooled;
    Scratch<T> parts{};
    i64 at = 0;
    const auto take = [&](i64 items, i64 size) {
        const i64 here = at;
        at += rounded_up(items * size + 64, 64);
        return here;
    };
    const i64 sums = take(s.out_width * width, sizeof(T)), buffer = take(row, sizeof(T));
    const i64 pooled = take(p.window ? (s.out_width / p.window + 1) * width : 0, sizeof(T));
    const i64 grads = take(backward ? s.out_height * grads_width(s) * width : 0, sizeof(T));
    const i64 grad_x = take(p.back_weights ? pixels * grad_x_width(s) : 0, sizeof(T));
    const i64 values = take(backward ? pixels : 0, sizeof(T)), picked_values = take(backward ? pixels : 0, sizeof(T));
    const i64 list = take(backward ? pixels + LIST_SLACK : 0, sizeof(u32)), picked = take(backward ? pixels : 0, sizeof(u32));
    const i64 place = take(backward ? 2 * pixels : 0, sizeof(u32));
    parts.bytes = larger(at, 2 * rounded_up(pixels * i64(sizeof(u32)), 64));
    if (!p.scratch) return parts;
    char* base = static_cast<char*>(p.scratch) + thread * parts.bytes;
    const auto items = [&](i64 offset) { return reinterpret_cast<T*>(base + offset); };
    const auto numbers = [&](i64 offset) { return reinterpret_cast<u32*>(base + offset); };
    parts.sums = items(sums), parts.buffer = items(buffer), parts.pooled = items(pooled), parts.grads = items(grads);
    parts.grad_x = items(grad_x), parts.values = items(values), parts.picked_values = items(picked_values);
    parts.list = numbers(list), parts.picked = numbers(picked), parts.place = numbers(place);
    return parts;
}

template <class IO>
void forward_rows(const ConvCall& p) {
    using T = typename StateOf<IO>::type;
    const ConvShape& s = p.s;
    const i64 pictures = pictures_of(s), blocks = blocks_of(s);
    // Blocks outermost: their weights stay in the caches while all pictures pass. Few pictures are cut into strips of rows.
    const i64 strips = larger(1, smaller(s.out_height, p.threads > 1 ? 4 * p.threads / (pictures * blocks) : 1));
    const Gathers<T> gathers(p.values == nullptr);
    shared_out(blocks * pictures * strips, p.threads, [&](i64 unit, int thread) {
        const i64 strip = unit % strips, picture = unit / strips % pictures;
        const Block block = block_of(s, unit / strips / pictures);
        const Scratch<T> own = scratch_of<T>(p, thread);
        const Sources<T> from = sources_of<T>(p, picture, block);
        const Picture at = picture_of(s, picture);
        const i64 channel = at.group * outputs_of(s) + block.first;
        for (i64 row = s.out_height * strip / strips; row < s.out_height * (strip + 1) / strips; ++row) {
            conv_row(s, from, block, gathers, row, own.sums);
            store_pixels<IO>(own.sums, s.out_width, block.width, block.used, p.y, p.y_last, at.image, s.outputs, channel, s.out_height, row,
                             own.buffer);
        }
    });
}

template <class T>
void add_moments(const T* sums, i64 n, i64 width, i64 used, double* sum, double* square) {
    for (i64 c = 0; c < width; c += LANES) {
        Vector<T> total = {}, squares = {};
        for (i64 x = 0; x < n; ++x) {
            const Vector<T> v = load(sums + x * width + c);
            total += v;
            squares += v * v;
        }
        for (i64 k = c; k < smaller(used, c + LANES); ++k) sum[k] += double(total[k - c]), square[k] += double(squares[k - c]);
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

template <class IO>
void forward_pooled(const ConvCall& p) {
    using T = typename StateOf<IO>::type;
    const ConvShape& s = p.s;
    const i64 pictures = pictures_of(s), rows = s.out_height / p.window, columns = s.out_width / p.window;
    const Gathers<T> gathers(p.values == nullptr);
    const T share = T(1) / T(p.window * p.window);
    shared_out(blocks_of(s) * pictures, p.threads, [&](i64 unit, int thread) {
        const Block block = block_of(s, unit / pictures);
        const i64 picture = unit % pictures;
        const Scratch<T> own = scratch_of<T>(p, thread);
        const Sources<T> from = sources_of<T>(p, picture, block);
        const Picture at = picture_of(s, picture);
        const i64 channel = at.group * outputs_of(s) + block.first;
        double* moments = p.moments + i64(thread) * 2 * s.outputs + channel;
        for (i64 row = 0; row < s.out_height; ++row) {
            conv_row(s, from, block, gathers, row, own.sums);
            add_moments(own.sums, s.out_width, block.width, block.used, moments, moments + s.outputs);
            const i64 within = row % p.window;
            if (row / p.window >= rows) continue;
            if (within == 0)
                for (i64 k = 0; k < columns * block.width; ++k) own.pooled[k] = T(0);
            add_windows(own.sums, columns, p.window, block.width, own.pooled);
            if (within + 1 < p.window) continue;
            for (i64 k = 0; k < columns * block.width; ++k) own.pooled[k] *= share;
            store_pixels<IO>(own.pooled, columns, block.width, block.used, p.pooled, p.y_last, at.image, s.outputs, channel, rows,
                             row / p.window, own.buffer);
        }
    });
}

// --- backward ---------------------------------------------------------------------------------------------------------------------

// The gradient of one picture and block as pixels [out_height, grads_width, block.width], zeros on both sides of each row.
template <class IO, class T>
void load_grads(const ConvCall& p, i64 picture, const Block& block, const Gathers<T>& gathers, const Scratch<T>& own) {
    const ConvShape& s = p.s;
    const Picture at = picture_of(s, picture);
    const i64 channel = at.group * outputs_of(s) + block.first, left = left_of(s), total = grads_width(s), width = block.width;
    const i64 rows = p.window ? s.out_height / p.window : 0, columns = p.window ? s.out_width / p.window : 0;
    const T share = p.window ? T(1) / T(p.window * p.window) : T(0);
    for (i64 row = 0; row < s.out_height; ++row) {
        T* to = own.grads + row * total * width;
        for (i64 k = 0; k < left * width; ++k) to[k] = T(0);
        for (i64 k = (left + s.out_width) * width; k < total * width; ++k) to[k] = T(0);
        to += left * width;
        if (p.grad_y) {
            load_pixels<IO>(p.grad_y, p.y_last, at.image, s.outputs, channel, s.out_height, row, s.out_width, width, block.used, to, own.buffer);
            continue;
        }
        // dL/dy = dL/dsum + 2·y·dL/dsquare + dL/dpooled / window²
        conv_row(s, sources_of<T>(p, picture, block), block, gathers, row, to);
        for (i64 c = 0; c < width; c += LANES) {
            Vector<T> constant = {}, slope = {};
            for (i64 k = c; k < smaller(block.used, c + LANES); ++k)
                constant[k - c] = T(p.grad_moments[channel + k]), slope[k - c] = T(2 * p.grad_moments[s.outputs + channel + k]);
            for (i64 x = 0; x < s.out_width; ++x) store(to + x * width + c, constant + slope * load(to + x * width + c));
        }
        if (row / p.window >= rows) continue;
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
    }
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

// grad_weights of one channel += the gradients that each of its spikes meets.
template <class IO, class T>
void add_weight_grads(const ConvCall& p, i64 picture, const Block& block, i64 channel, const Gathers<T>& gathers, const Scratch<T>& own,
                      T* grad_block) {
    const ConvShape& s = p.s;
    const Picture at = picture_of(s, picture);
    const i64 channels = inputs_of(s), words = words_of(s), pixels = pixels_of(s), width = block.width, vectors = width / LANES;
    const i64 n = expand_bits(p.bits + (picture * channels + channel) * words, pixels, own.list);
    if (n == 0) return;
    const bool ones = p.x == nullptr;
    if (!ones) {
        const IO* plane = plane_of<IO>(p, at.image, at.group * channels + channel);
        const i64 step = p.x_last ? s.inputs : 1;
        for (i64 i = 0; i < n; ++i) own.values[i] = widen(plane[i64(own.list[i]) * step]);
    }
    const bool plain = s.stride_x == 1 && s.stride_y == 1;
    for (i64 phase_y = 0; phase_y < smaller(s.stride_y, s.kernel_y); ++phase_y)
        for (i64 phase_x = 0; phase_x < smaller(s.stride_x, s.kernel_x); ++phase_x) {
            i64 m = 0;
            if (plain) {
                for (i64 i = 0; i < n; ++i) own.picked[i] = own.place[own.list[i]];
                m = n;
            } else {
                const u32 phase = u32(phase_y * s.stride_x + phase_x);
                for (i64 i = 0; i < n; ++i) {
                    own.picked[m] = own.place[own.list[i]];
                    if (!ones) own.picked_values[m] = own.values[i];
                    m += own.place[pixels + own.list[i]] == phase;
                }
            }
            const T* values = ones ? nullptr : plain ? own.values : own.picked_values;
            const i64 taps = taps_of(s, phase_x), row_items = grads_width(s);
            T* grad = grad_block + phase_at(s, phase_x) * width;
            i64 low = 0, high = 0;               // the spikes that meet an output row: neighbours, since lists go down the image
            for (i64 ky = phase_y, up = 0; ky < s.kernel_y; ky += s.stride_y, ++up) {
                while (low < m && i64(own.picked[low]) < up * row_items) ++low;
                high = larger(high, low);
                while (high < m && i64(own.picked[high]) < (s.out_height + up) * row_items) ++high;
                if (low < high)
                    gathers(taps * vectors, own.picked + low, ones ? nullptr : values + low, high - low, up * row_items, own.grads, width,
                            grad + (ky * channels + channel) * taps * width);
            }
        }
}

// out [P pixels, 16·NV] += Σ over n of g[pixel, k] · weights[k, 16·NV]
template <class T, int P, int NV>
__attribute__((noinline)) void product(const T* g, i64 g_stride, const T* weights, i64 w_stride, i64 n, T* out, i64 out_stride) {
    Vector<T> s[P][NV];
#pragma GCC unroll 24
    for (int i = 0; i < P; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) s[i][v] = load(out + i * out_stride + v * LANES);
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
        for (int v = 0; v < NV; ++v) store(out + i * out_stride + v * LANES, s[i][v]);
}

template <class T> using Product = void (*)(const T*, i64, const T*, i64, i64, T*, i64);

template <class T, int NV> constexpr int PIXELS = REGISTERS<T> / NV > 0 ? REGISTERS<T> / NV : 1;

template <class T, int NV, int P = PIXELS<T, NV>>
Product<T> product_of(i64 pixels) {
    if constexpr (P == 1) return product<T, 1, NV>;
    else return pixels == P ? product<T, P, NV> : product_of<T, NV, P - 1>(pixels);
}

template <class T>
struct Products {
    Product<T> one[PIXELS<T, 1> + 1], two[PIXELS<T, 2> + 1], four[PIXELS<T, 4> + 1];
    Products() {
        for (int i = 1; i <= PIXELS<T, 1>; ++i) one[i] = product_of<T, 1>(i);
        for (int i = 1; i <= PIXELS<T, 2>; ++i) two[i] = product_of<T, 2>(i);
        for (int i = 1; i <= PIXELS<T, 4>; ++i) four[i] = product_of<T, 4>(i);
    }
    // All columns of `vectors`, all pixels.
    void operator()(i64 pixels, i64 vectors, const T* g, i64 g_stride, const T* weights, i64 w_stride, i64 n, T* out, i64 out_stride) const {
        for (i64 v = 0; v < vectors;) {
            const i64 nv = vectors - v >= 4 ? 4 : vectors - v >= 2 ? 2 : 1;
            const Product<T>* of = nv == 4 ? four : nv == 2 ? two : one;
            const i64 most = nv == 4 ? PIXELS<T, 4> : nv == 2 ? PIXELS<T, 2> : PIXELS<T, 1>, parts = (pixels + most - 1) / most;
            for (i64 part = 0; part < parts; ++part) {
                const i64 first = pixels * part / parts, stop = pixels * (part + 1) / parts;
                of[stop - first](g + first * g_stride, g_stride, weights + v * LANES, w_stride, n, out + first * out_stride + v * LANES, out_stride);
            }
            v += nv;
        }
    }
};

// Rows [first, stop) of grad_x of one picture += what one block contributes.
template <class T>
void add_input_grads(const ConvCall& p, i64 picture, const Block& block, const Products<T>& products, const Scratch<T>& own, i64 first, i64 stop) {
    const ConvShape& s = p.s;
    const i64 group = picture_of(s, picture).group, deep = grad_x_width(s), total = grads_width(s);
    for (i64 y = first; y < stop; ++y)
        for (i64 ky = 0; ky < s.kernel_y; ++ky) {
            const i64 down = y + s.pad_y - ky, row = down / s.stride_y;
            if (down < 0 || down % s.stride_y || row >= s.out_height) continue;
            for (i64 kx = 0; kx < s.kernel_x; ++kx) {
                const i64 begin = s.pad_x > kx ? (s.pad_x - kx + s.stride_x - 1) / s.stride_x : 0;
                const i64 reach = s.width - 1 + s.pad_x - kx, end = reach < 0 ? 0 : smaller(s.out_width, reach / s.stride_x + 1);
                if (begin >= end) continue;
                const T* weights = static_cast<const T*>(p.back_weights) +
                                   (((group * s.kernel_y + ky) * s.kernel_x + kx) * outputs_of(s) + block.first) * deep;
                products(end - begin, deep / LANES, own.grads + (row * total + left_of(s) + begin) * block.width, block.width, weights, deep,
                         block.used, own.grad_x + (y * s.width + begin * s.stride_x + kx - s.pad_x) * deep, s.stride_x * deep);
            }
        }
}

template <class IO>
void backward_share(const ConvCall& p, i64 team, i64 member, i64 members, int thread) {
    using T = typename StateOf<IO>::type;
    const ConvShape& s = p.s;
    const Scratch<T> own = scratch_of<T>(p, thread);
    const i64 channels = inputs_of(s), blocks = blocks_of(s), deep = grad_x_width(s), groups = s.groups;
    const i64 items = groups * group_items(s);
    const i64 first_row = s.height * member / members, last_row = s.height * (member + 1) / members;
    const Gathers<T> recompute(p.values == nullptr), gathers(p.x == nullptr);
    const Products<T> products;
    find_places(s, own.place);
    for (i64 picture = s.images * team / p.teams * groups; picture < s.images * (team + 1) / p.teams * groups; ++picture) {
        const Picture at = picture_of(s, picture);
        if (p.back_weights)
            for (i64 k = first_row * s.width * deep; k < last_row * s.width * deep; ++k) own.grad_x[k] = T(0);
        for (i64 b = 0; b < blocks; ++b) {
            const Block block = block_of(s, b);
            load_grads<IO>(p, picture, block, recompute, own);
            if (p.grad_bias && member == 0) {
                T* to = static_cast<T*>(p.grad_bias) + team * s.outputs + at.group * outputs_of(s) + block.first;
                for (i64 pixel = 0; pixel < s.out_height * grads_width(s); ++pixel)
                    for (i64 c = 0; c < block.used; ++c) to[c] += own.grads[pixel * block.width + c];
            }
            if (p.grad_weights) {
                T* to = static_cast<T*>(p.grad_weights) + team * items + at.group * group_items(s) + block.at;
                for (i64 c = channels * member / members; c < channels * (member + 1) / members; ++c)
                    add_weight_grads<IO>(p, picture, block, c, gathers, own, to);
            }
            if (p.back_weights) add_input_grads(p, picture, block, products, own, first_row, last_row);
        }
        if (!p.back_weights) continue;
        for (i64 y = first_row; y < last_row; ++y)
            store_pixels<IO>(own.grad_x + y * s.width * deep, s.width, deep, channels, p.grad_x, p.x_last, at.image, s.inputs, at.group * channels,
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
    const i64 channels = inputs_of(s), deep = grad_x_width(s);
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
            for (i64 ky = 0; ky < s.kernel_y; ++ky)
                for (i64 kx = 0; kx < s.kernel_x; ++kx) {
                    T* to = back + (((group * s.kernel_y + ky) * s.kernel_x + kx) * outputs_of(s) + within) * deep;
                    for (i64 c = 0; c < deep; ++c)
                        to[c] = c < channels ? T(widen(weight[((o * channels + c) * s.kernel_y + ky) * s.kernel_x + kx])) : T(0);
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
long long back_items(const ConvShape& s) { return s.kernel_y * s.kernel_x * s.outputs * grad_x_width(s); }
long long scratch_bytes(const ConvCall& p) { return p.dtype == 1 ? scratch_of<double>(p, 0).bytes : scratch_of<float>(p, 0).bytes; }
bool pack(const ConvWeights& p) { return with_dtype(p.dtype, [&](auto of) { return pack_all<decltype(of)>(p); }); }
void unpack(const ConvWeights& p) { with_dtype(p.dtype, [&](auto of) { unpack_all<decltype(of)>(p); }); }
long long count(const ConvCall& p) { return with_dtype(p.dtype, [&](auto of) { return count_all<decltype(of)>(p); }); }
void list(const ConvCall& p) { with_dtype(p.dtype, [&](auto of) { list_all<decltype(of)>(p); }); }
void forward(const ConvCall& p) {
    with_dtype(p.dtype, [&](auto of) {
        if (p.window) forward_pooled<decltype(of)>(p);
        else forward_rows<decltype(of)>(p);
    });
}
void backward(const ConvCall& p) { with_dtype(p.dtype, [&](auto of) { backward_all<decltype(of)>(p); }); }

}  // namespace

extern const ConvTable conv_table;
const ConvTable conv_table{block_items, back_items, scratch_bytes, pack, unpack, count, list, forward, backward};

}  // namespace SPIKING_NS
