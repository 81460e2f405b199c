// Bindings of decode.h: event files to arrays and frames. Arrays come in with the right dtype and size; faults go back
// as numbers.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "decode.h"

namespace nb = nanobind;
namespace ev = spiking::events;

namespace {

template <class T>
using Array = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Block = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

struct Recording {
    const uint8_t* bytes;
    int64_t size;
};

struct Scratch {   // one a thread, sized before any thread starts
    std::vector<int64_t> t, edges;
    std::vector<uint32_t> pixel;
    std::vector<int32_t> table;
};

// work(i, thread) for every recording; one thread enters no parallel region.
template <class Work>
void for_each(int64_t n, int threads, Work work) {
#ifdef _OPENMP
    if (threads > 1 && n > 1) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8)
        for (int64_t i = 0; i < n; ++i) work(i, omp_get_thread_num());
        return;
    }
#endif
    (void)threads;
    for (int64_t i = 0; i < n; ++i) work(i, 0);
}

std::vector<Recording> recordings_of(const nb::list& list) {
    std::vector<Recording> out;
    out.reserve(list.size());
    for (nb::handle item : list) {
        nb::bytes bytes = nb::cast<nb::bytes>(item);   // the list keeps the object alive
        out.push_back({static_cast<const uint8_t*>(bytes.data()), int64_t(bytes.size())});
    }
    return out;
}

std::vector<Recording> recordings_of(const Array<const uint8_t>& buffer, const Array<const int64_t>& offsets) {
    std::vector<Recording> out;
    for (size_t i = 0; i + 1 < offsets.shape(0); ++i)
        out.push_back({buffer.data() + offsets(i), offsets(i + 1) - offsets(i)});
    return out;
}

using Found = std::tuple<int64_t, int64_t, int64_t, int64_t>;

Found found(const ev::Scan& s) { return {s.events, s.backwards, s.outside, s.too_late}; }

Found decode(Array<const uint8_t> bytes, int64_t width, int64_t height, Array<int64_t> t, Array<int16_t> x,
             Array<int16_t> y, Array<uint8_t> p) {
    return found(ev::decode_bin(bytes.data(), int64_t(bytes.shape(0)) / ev::word_bytes, width, height, t.data(),
                                x.data(), y.data(), p.data()));
}

// All recordings into one store; the words of recording i start at word `first[i]`. status: [N, 2] = events, fault.
void decode_many(const std::vector<Recording>& all, int64_t width, int64_t height, int32_t* t, int16_t* x, int16_t* y,
                 uint8_t* p, int64_t* status, int threads) {
    std::vector<int64_t> first(all.size() + 1, 0);
    for (size_t i = 0; i < all.size(); ++i) first[i + 1] = first[i] + all[i].size / ev::word_bytes;
    for_each(int64_t(all.size()), threads, [&](int64_t i, int) {
        const int64_t at = first[size_t(i)];
        const Recording r = all[size_t(i)];
        const ev::Scan s =
            ev::decode_bin(r.bytes, r.size / ev::word_bytes, width, height, t + at, x + at, y + at, p + at);
        ev::Fault fault = ev::Fault::none;
        if (r.size % ev::word_bytes) fault = ev::Fault::cut;
        else if (s.events == 0) fault = ev::Fault::empty;
        else if (s.outside >= 0) fault = ev::Fault::outside;
        else if (s.too_late >= 0) fault = ev::Fault::span;
        else if (s.backwards >= 0) fault = ev::Fault::backwards;
        status[2 * i] = s.events;
        status[2 * i + 1] = int64_t(fault);
    });
}

void decode_list(nb::list list, int64_t width, int64_t height, Array<int32_t> t, Array<int16_t> x, Array<int16_t> y,
                 Array<uint8_t> p, Block<int64_t> status, int threads) {
    const auto all = recordings_of(list);
    nb::gil_scoped_release unlocked;
    decode_many(all, width, height, t.data(), x.data(), y.data(), p.data(), status.data(), threads);
}

void decode_buffer(Array<const uint8_t> buffer, Array<const int64_t> offsets, int64_t width, int64_t height,
                   Array<int32_t> t, Array<int16_t> x, Array<int16_t> y, Array<uint8_t> p, Block<int64_t> status,
                   int threads) {
    const auto all = recordings_of(buffer, offsets);
    nb::gil_scoped_release unlocked;
    decode_many(all, width, height, t.data(), x.data(), y.data(), p.data(), status.data(), threads);
}

using Window = std::optional<std::tuple<int64_t, int64_t>>;

ev::Cut cut_of(int64_t bins, bool by_events, bool tonic, double overlap, const Window& window) {
    return {bins,
            by_events,
            tonic,
            overlap,
            window.has_value(),
            window ? std::get<0>(*window) : 0,
            window ? std::get<1>(*window) : 0};
}

std::vector<Scratch> scratch_for(int threads, int64_t events, int64_t bins, int64_t pixels) {
    std::vector<Scratch> all(size_t(std::max(threads, 1)));
    for (Scratch& s : all) {
        s.t.resize(size_t(events));
        s.pixel.resize(size_t(events));
        s.edges.resize(size_t(2 * bins + 2));
        s.table.resize(size_t(pixels));
    }
    return all;
}

// out: [N, T, P, H, W], or [T, N, P, H, W] if time_major.
template <class Out>
void bin_frames(const std::vector<Recording>& all, const ev::Cut& cut, bool clip, bool time_major, int64_t width,
                int64_t height, int64_t channels, Out* out, int64_t* status, int threads) {
    int64_t most = 0;
    for (const Recording& r : all) most = std::max(most, r.size / ev::word_bytes);
    std::vector<Scratch> scratch = scratch_for(threads, most, cut.bins, 0);
    const int64_t n = int64_t(all.size()), frame = width * height * channels;
    for_each(n, threads, [&](int64_t i, int thread) {
        Scratch& s = scratch[size_t(thread)];
        const ev::Frames<Out> frames{out + i * frame * (time_major ? 1 : cut.bins), frame * (time_major ? n : 1), width,
                                     height, channels};
        status[i] = int64_t(ev::bin_to_frames(all[size_t(i)].bytes, all[size_t(i)].size, cut, clip, frames, s.t.data(),
                                              s.pixel.data(), s.edges.data()));
    });
}

template <class Out>
void frames_list(nb::list list, int64_t bins, bool by_events, bool tonic, double overlap, Window window, bool clip,
                 bool time_major, int64_t width, int64_t height, int64_t channels, Block<Out> out,
                 Array<int64_t> status, int threads) {
    const auto all = recordings_of(list);
    nb::gil_scoped_release unlocked;
    bin_frames(all, cut_of(bins, by_events, tonic, overlap, window), clip, time_major, width, height, channels,
               out.data(), status.data(), threads);
}

template <class Out>
void frames_buffer(Array<const uint8_t> buffer, Array<const int64_t> offsets, int64_t bins, bool by_events, bool tonic,
                   double overlap, Window window, bool clip, bool time_major, int64_t width, int64_t height,
                   int64_t channels, Block<Out> out, Array<int64_t> status, int threads) {
    const auto all = recordings_of(buffer, offsets);
    nb::gil_scoped_release unlocked;
    bin_frames(all, cut_of(bins, by_events, tonic, overlap, window), clip, time_major, width, height, channels,
               out.data(), status.data(), threads);
}

// (first event that runs backwards, first event outside), -1 where there is none.
template <class Time>
std::tuple<int64_t, int64_t> scan(Array<const Time> t, Array<const int16_t> x, Array<const int16_t> y,
                                  Array<const uint8_t> p, int64_t width, int64_t height) {
    const int64_t n = int64_t(t.shape(0));
    return {ev::first_backwards(t.data(), n), ev::first_outside(x.data(), y.data(), p.data(), n, width, height)};
}

// Recordings `indices` of a ragged store to frames, each through its own map of the pixels where `affine` [N, 2, 3] is
// given, displaced by `warp` [N, 2, K, K] where that is given too.
template <class Time, class Out>
void frames_ragged(Array<const Time> t, Array<const int16_t> x, Array<const int16_t> y, Array<const uint8_t> p,
                   Array<const int64_t> offsets, Array<const int64_t> indices, int64_t bins, bool by_events,
                   Window window, std::optional<Block<const double>> affine,
                   std::optional<Block<const double>> warp, int64_t knots, bool clip, bool time_major, int64_t width,
                   int64_t height, int64_t out_width, int64_t out_height, int64_t channels, Block<Out> out,
                   Array<int64_t> status, int threads) {
    const ev::Cut cut = cut_of(bins, by_events, false, 0.0, window);
    const int64_t n = int64_t(indices.shape(0)), frame = out_width * out_height * channels;
    const double *maps = affine ? affine->data() : nullptr, *warps = warp ? warp->data() : nullptr;
    const int64_t *starts = offsets.data(), *which = indices.data();
    const Time* times = t.data();
    const int16_t *xs = x.data(), *ys = y.data();
    const uint8_t* ps = p.data();
    Out* to = out.data();
    int64_t* faults = status.data();
    nb::gil_scoped_release unlocked;
    std::vector<Scratch> scratch = scratch_for(threads, 0, bins, maps ? width * height : 0);
    for_each(n, threads, [&](int64_t i, int thread) {
        Scratch& s = scratch[size_t(thread)];
        const int64_t at = starts[which[i]];
        const ev::Frames<Out> frames{to + i * frame * (time_major ? 1 : bins), frame * (time_major ? n : 1), out_width,
                                     out_height, channels};
        const ev::Map map{maps ? maps + 6 * i : nullptr, warps ? warps + 2 * knots * knots * i : nullptr, knots};
        faults[i] = int64_t(ev::arrays_to_frames(times + at, xs + at, ys + at, ps + at, starts[which[i] + 1] - at,
                                                 width, height, maps ? &map : nullptr, cut, clip, frames,
                                                 s.table.data(), s.edges.data()));
    });
}

// Frames from slices of one recording that were planned in Python (any rule, overlapping or not). False: an event lies
// outside.
template <class Out>
bool frames_slices(Array<const int16_t> x, Array<const int16_t> y, Array<const uint8_t> p, Array<const int64_t> starts,
                   Array<const int64_t> ends, bool clip, int64_t width, int64_t height, int64_t channels,
                   Block<Out> out) {
    const ev::Frames<Out> frames{out.data(), width * height * channels, width, height, channels};
    if (ev::first_outside(x.data(), y.data(), p.data(), int64_t(x.shape(0)), width, height) >= 0) return false;
    ev::add_slices(x.data(), y.data(), p.data(), starts.data(), ends.data(), int64_t(starts.shape(0)), clip, frames);
    return true;
}

template <class Out>
void bind_outputs(nb::module_& m) {
    m.def("frames_list", &frames_list<Out>);
    m.def("frames_buffer", &frames_buffer<Out>);
    m.def("frames_ragged", &frames_ragged<int32_t, Out>);
    m.def("frames_ragged", &frames_ragged<int64_t, Out>);
    m.def("frames_slices", &frames_slices<Out>);
}

}   // namespace

void bind_decode(nb::module_& m) {
    m.def("decode_bin", &decode);
    m.def("decode_list", &decode_list);
    m.def("decode_buffer", &decode_buffer);
    m.def("scan_events", &scan<int32_t>);
    m.def("scan_events", &scan<int64_t>);
    bind_outputs<int16_t>(m);
    bind_outputs<int32_t>(m);
    bind_outputs<float>(m);
}
