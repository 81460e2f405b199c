// Event recordings to arrays and frames. Plain C++17: pointers and sizes in and out, no Python, no allocation, no I/O,
// so that a fuzz harness includes it as it is. Every function returns what it found; messages are Python's job.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace spiking {
namespace events {

// One word of the N-MNIST layout: x, y, then 24 bits big-endian: polarity, 23 bits of time in µs.
constexpr int64_t word_bytes = 5;
constexpr uint32_t overflow_row = 240;       // y == 240 is no event: every later time grows by overflow_step
constexpr int64_t overflow_step = 1 << 13;   // µs

struct Scan {
    int64_t events = 0;       // events written
    int64_t backwards = -1;   // first event whose time is below its predecessor's; -1: none
    int64_t outside = -1;     // first event beyond the sensor; -1: none
    int64_t too_late = -1;    // first event whose time does not fit the time type; -1: none
};

struct Word {
    uint32_t x, y, p, t;
};

inline Word unpack(uint64_t bits) {   // bits: the five bytes in the upper 40
    return {uint32_t(bits >> 56), uint32_t(bits >> 48) & 255u, uint32_t(bits >> 47) & 1u,
            uint32_t(bits >> 24) & 0x7fffffu};
}

inline uint64_t load_big_endian(const uint8_t* b) {   // compilers make this one load and one byte swap
    return uint64_t(b[0]) << 56 | uint64_t(b[1]) << 48 | uint64_t(b[2]) << 40 | uint64_t(b[3]) << 32 |
           uint64_t(b[4]) << 24 | uint64_t(b[5]) << 16 | uint64_t(b[6]) << 8 | uint64_t(b[7]);
}

inline Word word_at(const uint8_t* bytes, int64_t i) {   // reads exactly five bytes
    const uint8_t* b = bytes + i * word_bytes;
    return unpack(uint64_t(b[0]) << 56 | uint64_t(b[1]) << 48 | uint64_t(b[2]) << 40 | uint64_t(b[3]) << 32 |
                  uint64_t(b[4]) << 24);
}

// Calls sink(i, x, y, p, t) for every word in turn, overflow words included. True where every word is an event inside
// width × height (zero: not checked) and times never decrease; the checks cost one sign bit each.
template <class Sink>
bool each_word(const uint8_t* bytes, int64_t words, int64_t width, int64_t height, Sink sink) {
    const int32_t x_last = width > 0 && width < 256 ? int32_t(width) - 1 : 255;
    const int32_t y_last =
        height > 0 && height < int32_t(overflow_row) ? int32_t(height) - 1 : int32_t(overflow_row) - 1;
    int32_t before = 0, wrong = 0;
    const auto step = [&](int64_t i, const Word w) {
        wrong |= (x_last - int32_t(w.x)) | (y_last - int32_t(w.y)) | (int32_t(w.t) - before);
        before = int32_t(w.t);
        sink(i, w.x, w.y, w.p, w.t);
    };
    // The wide load reads three bytes of the next word, so the last word is read byte by byte.
    for (int64_t i = 0; i + 1 < words; ++i) step(i, unpack(load_big_endian(bytes + i * word_bytes)));
    if (words > 0) step(words - 1, word_at(bytes, words - 1));
    return wrong >= 0;
}

// Calls sink(i, x, y, p, t) for every event, with the overflow words taken out, and remembers where things are wrong.
template <class Time, class Sink>
Scan each_event_checked(const uint8_t* bytes, int64_t words, int64_t width, int64_t height, Sink sink) {
    Scan scan;
    int64_t n = 0, shift = 0, before = 0;
    for (int64_t i = 0; i < words; ++i) {
        const Word w = word_at(bytes, i);
        if (w.y == overflow_row) {
            shift += overflow_step;
            continue;
        }
        const int64_t t = int64_t(w.t) + shift;
        const bool inside = (width <= 0 || int64_t(w.x) < width) && (height <= 0 || int64_t(w.y) < height);
        if (scan.outside < 0 && !inside) scan.outside = n;
        if (scan.backwards < 0 && t < before) scan.backwards = n;
        if (scan.too_late < 0 && t > int64_t(std::numeric_limits<Time>::max())) scan.too_late = n;
        before = t;
        sink(n, w.x, w.y, w.p, t);
        ++n;
    }
    scan.events = n;
    return scan;
}

// Bytes to a structure of arrays, each with room for `words` events.
template <class Time>
Scan decode_bin(const uint8_t* bytes, int64_t words, int64_t width, int64_t height, Time* t, int16_t* x, int16_t* y,
                uint8_t* p) {
    const auto store = [=](int64_t i, uint32_t ex, uint32_t ey, uint32_t ep, int64_t et) {
        t[i] = Time(et);
        x[i] = int16_t(ex);
        y[i] = int16_t(ey);
        p[i] = uint8_t(ep);
    };
    Scan scan;
    scan.events = words;
    if (each_word(bytes, words, width, height, store)) return scan;
    return each_event_checked<Time>(bytes, words, width, height, store);
}

// First event beyond the sensor (or with a polarity that is neither 0 nor 1); -1: none. Sizes of zero: only signs are
// checked.
inline int64_t first_outside(const int16_t* x, const int16_t* y, const uint8_t* p, int64_t n, int64_t width,
                             int64_t height) {
    const int32_t x_end = width > 0 && width < 32768 ? int32_t(width) : 32768,
                  y_end = height > 0 && height < 32768 ? int32_t(height) : 32768;
    int16_t max_x = 0, max_y = 0, min_x = 0, min_y = 0;
    uint8_t max_p = 0;
    for (int64_t i = 0; i < n; ++i) {
        max_x = x[i] > max_x ? x[i] : max_x;
        min_x = x[i] < min_x ? x[i] : min_x;
        max_y = y[i] > max_y ? y[i] : max_y;
        min_y = y[i] < min_y ? y[i] : min_y;
        max_p = p[i] > max_p ? p[i] : max_p;
    }
    if (max_x < x_end && max_y < y_end && min_x >= 0 && min_y >= 0 && max_p <= 1) return -1;
    int64_t i = 0;
    while (x[i] >= 0 && y[i] >= 0 && x[i] < x_end && y[i] < y_end && p[i] <= 1) ++i;
    return i;
}

// First event whose time is negative or below its predecessor's; -1: none.
template <class Time>
int64_t first_backwards(const Time* t, int64_t n) {
    uint32_t backwards = n > 0 && t[0] < 0;
    for (int64_t i = 1; i < n; ++i) backwards |= t[i] < t[i - 1];
    if (!backwards) return -1;
    int64_t i = 0;
    while (t[i] >= (i ? t[i - 1] : Time(0))) ++i;
    return i;
}

// First index whose time is not below `edge`, in times that never decrease.
template <class Time, class Edge>
int64_t lower_bound(const Time* t, int64_t n, Edge edge) {
    int64_t low = 0;
    while (n > 0) {
        const int64_t half = n / 2;
        if (Edge(t[low + half]) < edge) {
            low += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return low;
}

// `bins` bins of equal width over [start, end], each closed at the left, the last one at both sides. Exact in integers.
struct TimeBins {
    int64_t start, span, bins;

    // False where the products below would not fit 63 bits.
    static bool make(int64_t start, int64_t end, int64_t bins, TimeBins& out) {
        if (bins < 1 || end < start) return false;
        const uint64_t span = uint64_t(end) - uint64_t(start);
        if (span >= uint64_t(std::numeric_limits<int64_t>::max()) / (uint64_t(bins) + 1)) return false;
        out = {start, span ? int64_t(span) : 1, bins};
        return true;
    }
    int64_t edge(int64_t bin) const { return start + (bin * span + bins - 1) / bins; }   // first time of a bin
    int64_t bin(int64_t t, int64_t end) const {   // -1: outside [start, end]
        if (t < start || t > end) return -1;
        const int64_t b = (t - start) * bins / span;
        return b < bins ? b : bins - 1;
    }
};

// [starts[b], ends[b]) of every bin, for times that never decrease.
template <class Time>
void time_slices(const Time* t, int64_t n, const TimeBins& rule, int64_t end, int64_t* starts, int64_t* ends) {
    int64_t at = lower_bound(t, n, rule.start);
    for (int64_t b = 0; b < rule.bins; ++b) {
        starts[b] = at;
        if (b + 1 < rule.bins) {
            at += lower_bound(t + at, n - at, rule.edge(b + 1));
        } else if (end < std::numeric_limits<int64_t>::max()) {
            at += lower_bound(t + at, n - at, end + 1);
        } else {
            at = n;
        }
        ends[b] = at;
    }
}

// tonic's SliceByTimeBins, losses and drifting overlap included: windows half open, their width rounded down.
template <class Time>
void tonic_time_slices(const Time* t, int64_t n, int64_t bins, double overlap, int64_t* starts, int64_t* ends) {
    const double width = n ? double((int64_t(t[n - 1]) - int64_t(t[0])) / bins) * (1.0 + overlap) : 0.0;
    const double stride = width * (1.0 - overlap);
    for (int64_t b = 0; b < bins; ++b) {
        const double from = double(b) * stride + (n ? double(t[0]) : 0.0);
        starts[b] = lower_bound(t, n, from);
        ends[b] = lower_bound(t, n, from + width);
    }
}

// Equal counts: event i goes to bin i·bins / n, so that sizes differ by one at most and none is lost.
inline void event_slices(int64_t n, int64_t bins, int64_t* starts, int64_t* ends) {
    for (int64_t b = 0; b < bins; ++b) {
        starts[b] = (b * n + bins - 1) / bins;
        ends[b] = ((b + 1) * n + bins - 1) / bins;
    }
}

// tonic's SliceByEventBins: the last n mod bins events are lost.
inline void tonic_event_slices(int64_t n, int64_t bins, double overlap, int64_t* starts, int64_t* ends) {
    const int64_t count = int64_t(double(n / bins) * (1.0 + overlap)),
                  stride = int64_t(double(count) * (1.0 - overlap));
    for (int64_t b = 0; b < bins; ++b) {
        const int64_t from = b * stride, to = from + count;
        starts[b] = from < n ? from : n;
        ends[b] = to < n ? to : n;
    }
}

// Output of any framing: P channels of height × width a time bin, bins `stride` values apart. Empty of meaning after a
// fault.
template <class Out>
struct Frames {
    Out* data;
    int64_t stride, width, height, channels;

    int64_t size() const { return width * height * channels; }
    // Frame b, emptied. Each frame is emptied just before it is filled, while it fits the first-level cache.
    Out* fresh(int64_t b) const {
        std::memset(data + b * stride, 0, size_t(size()) * sizeof(Out));
        return data + b * stride;
    }
};

template <class Out>
inline void count(Out& pixel, bool clip) {
    pixel = clip ? Out(1) : Out(pixel + Out(1));
}

// Adds events [starts[b], ends[b]) into frame b. Coordinates must lie inside (scan first).
template <class Out>
void add_slices(const int16_t* x, const int16_t* y, const uint8_t* p, const int64_t* starts, const int64_t* ends,
                int64_t bins, bool clip, const Frames<Out>& frames) {
    const int64_t plane = frames.channels > 1 ? frames.width * frames.height : 0;
    for (int64_t b = 0; b < bins; ++b) {
        Out* frame = frames.fresh(b);
        for (int64_t i = starts[b]; i < ends[b]; ++i) count(frame[p[i] * plane + y[i] * frames.width + x[i]], clip);
    }
}

// How a whole recording is cut into a fixed number of frames.
struct Cut {
    int64_t bins;
    bool by_events, tonic;
    double overlap;   // tonic only
    bool window;   // start and end given; else first and last event
    int64_t start, end;
};

enum class Fault : int64_t { none = 0, cut = 1, backwards = 2, outside = 3, span = 4, empty = 5 };

// Times at which frame 0, 1, … begin and the last one ends, where frames follow each other without gap or overlap.
inline bool boundaries(const Cut& cut, int64_t first, int64_t last, int64_t* edges) {
    if (cut.tonic) {
        if (cut.overlap != 0.0) return false;
        for (int64_t b = 0; b <= cut.bins; ++b) edges[b] = first + b * ((last - first) / cut.bins);
        return true;
    }
    TimeBins rule;
    const int64_t start = cut.window ? cut.start : first, end = cut.window ? cut.end : last;
    if (end == std::numeric_limits<int64_t>::max() || !TimeBins::make(start, end, cut.bins, rule)) return false;
    for (int64_t b = 0; b < cut.bins; ++b) edges[b] = rule.edge(b);
    edges[cut.bins] = end + 1;
    return true;
}

// One N-MNIST recording straight to frames. `t` and `pixel` are scratch with room for size / 5 events, `edges` for
// 2·bins + 2.
template <class Out>
Fault bin_to_frames(const uint8_t* bytes, int64_t size, const Cut& cut, bool clip, const Frames<Out>& frames,
                    int64_t* t, uint32_t* pixel, int64_t* edges) {
    if (size % word_bytes) return Fault::cut;
    const int64_t words = size / word_bytes;
    if (words == 0) return Fault::empty;
    const uint32_t width = uint32_t(frames.width),
                   plane = frames.channels > 1 ? uint32_t(frames.width * frames.height) : 0u;
    int64_t *starts = edges, *ends = edges + cut.bins + 1;
    const auto add = [&] {
        for (int64_t b = 0; b < cut.bins; ++b) {
            Out* frame = frames.fresh(b);
            for (int64_t i = starts[b]; i < ends[b]; ++i) count(frame[pixel[i]], clip);
        }
    };
    // In one pass, as long as nothing is wrong: pixels to scratch, and the event at which each frame begins.
    if (!cut.by_events && boundaries(cut, word_at(bytes, 0).t, word_at(bytes, words - 1).t, edges)) {
        int64_t* cuts = ends;
        int64_t bin = 0, next = edges[0];
        const bool right = each_word(bytes, words, frames.width, frames.height,
                                     [&](int64_t i, uint32_t x, uint32_t y, uint32_t p, uint32_t time) {
                                         pixel[i] = p * plane + y * width + x;
                                         while (int64_t(time) >= next) {
                                             cuts[bin] = i;
                                             next =
                                                 ++bin <= cut.bins ? edges[bin] : std::numeric_limits<int64_t>::max();
                                         }
                                     });
        if (right) {
            while (bin <= cut.bins) cuts[bin++] = words;
            for (int64_t b = 0; b < cut.bins; ++b) {
                starts[b] = cuts[b];
                ends[b] = cuts[b + 1];
            }
            add();
            return Fault::none;
        }
    }
    const Scan scan = each_event_checked<int64_t>(bytes, words, frames.width, frames.height,
                                                  [=](int64_t i, uint32_t x, uint32_t y, uint32_t p, int64_t time) {
                                                      t[i] = time;
                                                      pixel[i] = p * plane + y * width + x;
                                                  });
    const int64_t n = scan.events;
    if (scan.outside >= 0) return Fault::outside;
    if (scan.backwards >= 0) return Fault::backwards;
    if (n == 0) return Fault::empty;
    if (cut.by_events) {
        cut.tonic ? tonic_event_slices(n, cut.bins, cut.overlap, starts, ends)
                  : event_slices(n, cut.bins, starts, ends);
    } else if (cut.tonic) {
        tonic_time_slices(t, n, cut.bins, cut.overlap, starts, ends);
    } else {
        TimeBins rule;
        const int64_t start = cut.window ? cut.start : t[0], end = cut.window ? cut.end : t[n - 1];
        if (!TimeBins::make(start, end, cut.bins, rule)) return Fault::span;
        time_slices(t, n, rule, end, starts, ends);
    }
    add();
    return Fault::none;
}

// How pixels move on their way into a frame: (u, v) = A·(x, y, 1), six numbers, rows of a 2×3 matrix; then, where there is a warp, plus
// its displacement at (u, v): [2, knots, knots] pixels at evenly spread knots of the output, bilinear between them.
struct Map {
    const double* affine = nullptr;
    const double* warp = nullptr;
    int64_t knots = 0;
};

inline double displacement(const double* field, int64_t knots, double gx, double gy) {
    const int64_t i = int64_t(gx) < knots - 2 ? int64_t(gx) : knots - 2, j = int64_t(gy) < knots - 2 ? int64_t(gy) : knots - 2;
    const double fx = gx - double(i), fy = gy - double(j);
    const double* corner = field + j * knots + i;
    return (corner[0] * (1 - fx) + corner[1] * fx) * (1 - fy) + (corner[knots] * (1 - fx) + corner[knots + 1] * fx) * fy;
}

// Where a map sends pixel (x, y): its row-major index among width × height, nearest pixel, -1 outside (and for NaN).
inline int64_t mapped(const Map& map, int64_t x, int64_t y, int64_t width, int64_t height) {
    const double* m = map.affine;
    double u = m[0] * double(x) + m[1] * double(y) + m[2];
    double v = m[3] * double(x) + m[4] * double(y) + m[5];
    if (map.warp) {
        const double right = width > 1 ? double(width - 1) : 1.0, bottom = height > 1 ? double(height - 1) : 1.0;
        const double gx = (u >= 0.0 ? (u <= right ? u : right) : 0.0) / right * double(map.knots - 1);   // NaN: 0
        const double gy = (v >= 0.0 ? (v <= bottom ? v : bottom) : 0.0) / bottom * double(map.knots - 1);
        u += displacement(map.warp, map.knots, gx, gy);
        v += displacement(map.warp + map.knots * map.knots, map.knots, gx, gy);
    }
    u = std::floor(u + 0.5);
    v = std::floor(v + 0.5);
    if (!(u >= 0.0 && u < double(width) && v >= 0.0 && v < double(height))) return -1;
    return int64_t(v) * width + int64_t(u);
}

// Events as arrays to `cut.bins` frames, through a map of the pixels (null: as they are). `table` is scratch of width × height entries,
// used where a map is given and there are more events than pixels. Events outside the window or the output are dropped.
template <class Time, class Out>
Fault arrays_to_frames(const Time* t, const int16_t* x, const int16_t* y, const uint8_t* p, int64_t n, int64_t width,
                       int64_t height, const Map* map, const Cut& cut, bool clip, const Frames<Out>& frames,
                       int32_t* table, int64_t* edges) {
    if (n == 0) {
        for (int64_t b = 0; b < cut.bins; ++b) frames.fresh(b);
        return Fault::none;
    }
    if (first_outside(x, y, p, n, width, height) >= 0) return Fault::outside;
    const bool ordered = first_backwards(t, n) < 0;
    const bool tabled = map && n > width * height;
    if (tabled)
        for (int64_t row = 0; row < height; ++row)
            for (int64_t column = 0; column < width; ++column)
                table[row * width + column] = int32_t(mapped(*map, column, row, frames.width, frames.height));
    else if (!map && (frames.width < width || frames.height < height)) return Fault::outside;
    const int64_t plane = frames.channels > 1 ? frames.width * frames.height : 0;
    const auto add = [&](Out* frame, int64_t i) {
        if (!map) {
            count(frame[p[i] * plane + y[i] * frames.width + x[i]], clip);
            return;
        }
        const int64_t to = tabled ? table[int64_t(y[i]) * width + x[i]] : mapped(*map, x[i], y[i], frames.width, frames.height);
        if (to >= 0) count(frame[p[i] * plane + to], clip);
    };
    int64_t *starts = edges, *ends = edges + cut.bins;
    if (cut.by_events) {
        event_slices(n, cut.bins, starts, ends);
    } else {
        int64_t start = cut.start, end = cut.end;
        if (!cut.window) {
            start = end = int64_t(t[0]);
            if (ordered) end = int64_t(t[n - 1]);
            else
                for (int64_t i = 1; i < n; ++i) {
                    start = int64_t(t[i]) < start ? int64_t(t[i]) : start;
                    end = int64_t(t[i]) > end ? int64_t(t[i]) : end;
                }
        }
        TimeBins rule;
        if (!TimeBins::make(start, end, cut.bins, rule)) return Fault::span;
        if (!ordered) {   // no order to walk along: one division an event
            for (int64_t b = 0; b < cut.bins; ++b) frames.fresh(b);
            for (int64_t i = 0; i < n; ++i) {
                const int64_t b = rule.bin(int64_t(t[i]), end);
                if (b >= 0) add(frames.data + b * frames.stride, i);
            }
            return Fault::none;
        }
        time_slices(t, n, rule, end, starts, ends);
    }
    for (int64_t b = 0; b < cut.bins; ++b) {
        Out* frame = frames.fresh(b);
        for (int64_t i = starts[b]; i < ends[b]; ++i) add(frame, i);
    }
    return Fault::none;
}

}   // namespace events
}   // namespace spiking
