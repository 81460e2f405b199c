// Fuzzes decode.h: decoder, framing straight from bytes, framing of arrays through a map of the pixels. Built with
// libFuzzer it is a usual target; without, main() mutates inputs of its own: decode_fuzz SECONDS [SEED]. The invariants
// below must hold for any input; the sanitizers watch the rest.
#include "decode.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

namespace ev = spiking::events;

namespace {

void demand(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "decode_fuzz: broken: %s\n", what);
    std::abort();
}

// Exactly as large as needed, so that one byte beyond is caught (a vector's spare capacity would hide it).
template <class T>
std::unique_ptr<T[]> exact(int64_t n) {
    return std::unique_ptr<T[]>(new T[size_t(n)]());
}

template <class Out>
void frames(const uint8_t* bytes, int64_t size, const ev::Cut& cut, int64_t width, int64_t height, int64_t channels,
            bool clip) {
    const int64_t words = size / ev::word_bytes;
    auto out = exact<Out>(cut.bins * channels * width * height);
    auto t = exact<int64_t>(words), edges = exact<int64_t>(2 * cut.bins + 2);
    auto pixel = exact<uint32_t>(words);
    const ev::Frames<Out> target{out.get(), channels * width * height, width, height, channels};
    const ev::Fault fault = ev::bin_to_frames(bytes, size, cut, clip, target, t.get(), pixel.get(), edges.get());
    if (fault != ev::Fault::none || clip || cut.tonic || cut.window) return;
    double sum = 0;
    for (int64_t i = 0; i < cut.bins * target.size(); ++i) sum += double(out[size_t(i)]);
    int64_t events = 0;
    for (int64_t i = 0; i < words; ++i) events += bytes[i * ev::word_bytes + 1] != ev::overflow_row;
    demand(sum == double(events), "frames do not sum to the number of events");
}

template <class Time>
void arrays(const uint8_t* bytes, int64_t words, int64_t width, int64_t height, const ev::Cut& cut, const ev::Map* map,
            bool unordered) {
    auto t = exact<Time>(words);
    auto x = exact<int16_t>(words), y = exact<int16_t>(words);
    auto p = exact<uint8_t>(words);
    const ev::Scan scan = ev::decode_bin(bytes, words, width, height, t.get(), x.get(), y.get(), p.get());
    demand(scan.events >= 0 && scan.events <= words, "more events than words");
    demand(scan.outside < scan.events && scan.backwards < scan.events, "a fault beyond the last event");
    const int64_t n = scan.events;
    if (scan.outside < 0)
        for (int64_t i = 0; i < n; ++i)
            demand(x[i] >= 0 && y[i] >= 0 && p[i] <= 1, "an event outside that was not told");
    if (unordered && n > 1) std::swap(t[0], t[n - 1]);
    const int64_t to_width = map ? 1 + width / 2 : width, to_height = map ? 1 + height / 2 : height;
    auto out = exact<float>(cut.bins * 2 * to_width * to_height);
    auto table = exact<int32_t>(map ? width * height : 0);
    auto edges = exact<int64_t>(2 * cut.bins + 2);
    const ev::Frames<float> target{out.get(), 2 * to_width * to_height, to_width, to_height, 2};
    const ev::Fault fault = ev::arrays_to_frames(t.get(), x.get(), y.get(), p.get(), n, width, height, map, cut, false,
                                                 target, table.get(), edges.get());
    double sum = 0;
    for (int64_t i = 0; i < cut.bins * target.size(); ++i) sum += double(out[size_t(i)]);
    if (fault == ev::Fault::none) demand(sum <= double(n), "more events in frames than there are");
    if (fault == ev::Fault::none && !map && !cut.window) demand(sum == double(n), "an event lost on the way to frames");
}

int64_t number(const uint8_t*& data, size_t& size, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes && size > 0; ++i, ++data, --size) value = value << 8 | *data;
    return int64_t(value);
}

}   // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const int64_t flags = number(data, size, 1);
    ev::Cut cut{};
    cut.bins = 1 + number(data, size, 1) % 24;
    cut.by_events = flags & 1;
    cut.tonic = flags & 2;
    cut.overlap = double(number(data, size, 1)) / 256.0 * double((flags >> 2) & 1);
    cut.window = flags & 8;
    const int64_t wide = flags & 16 ? 8 : 3;   // windows of any 64 bits, or of recordings' size
    cut.start = number(data, size, int(wide));
    cut.end = number(data, size, int(wide));
    const int64_t width = 1 + number(data, size, 1) % 40, height = 1 + number(data, size, 1) % 40;
    double map[6];
    for (double& m : map) {
        const int64_t bits = number(data, size, flags & 32 ? 8 : 1);
        if (flags & 32) std::memcpy(&m, &bits, sizeof m);   // any double: infinities and NaN too
        else m = double(bits - 128) / 64.0;
    }
    double warp[2 * 3 * 3];
    for (double& d : warp) d = double(number(data, size, 1) - 128) / 16.0;
    const ev::Map affine{map}, warped{map, warp, 3};
    const auto bytes = exact<uint8_t>(int64_t(size));
    if (size) std::memcpy(bytes.get(), data, size);
    const int64_t n = int64_t(size), words = n / ev::word_bytes;
    const int64_t channels = 1 + ((flags >> 6) & 1);
    frames<int32_t>(bytes.get(), n, cut, width, height, channels, flags & 128);
    frames<int16_t>(bytes.get(), n - n % ev::word_bytes, cut, width, height, channels, flags & 128);
    arrays<int64_t>(bytes.get(), words, width, height, cut, nullptr, flags & 4);
    arrays<int32_t>(bytes.get(), words, width, height, cut, flags & 1 ? &affine : &warped, flags & 4);
    return 0;
}

#ifndef DECODE_FUZZ_LIBFUZZER
int main(int argc, char** argv) {
    const double seconds = argc > 1 ? std::atof(argv[1]) : 10.0;
    std::mt19937_64 draw(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
    const auto begin = std::chrono::steady_clock::now();
    const auto elapsed = [&] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    const auto below = [&](uint64_t n) { return n ? draw() % n : 0; };
    std::vector<uint8_t> input;
    uint64_t runs = 0;
    for (; elapsed() < seconds; ++runs) {
        if (runs % 16 == 0) {   // a fresh start: settings, then a recording that is well formed
            input.clear();
            for (int i = 0; i < 64; ++i) input.push_back(uint8_t(draw()));
            if (below(2)) input[0] &= uint8_t(~8);
            uint64_t t = below(1000);
            for (uint64_t i = below(300); i > 0; --i) {
                t += below(2000);
                const uint8_t word[] = {uint8_t(below(20)), uint8_t(below(20)),
                                        uint8_t((t >> 16 & 127) | below(2) << 7), uint8_t(t >> 8), uint8_t(t)};
                input.insert(input.end(), word, word + 5);
            }
        }
        for (uint64_t i = below(4); i > 0 && !input.empty(); --i) {
            const size_t at = size_t(below(input.size()));
            switch (below(6)) {
                case 0: input[at] ^= uint8_t(1u << below(8)); break;
                case 1: input[at] = uint8_t(draw()); break;
                case 2: input[at] = 240; break;                                            // the overflow mark
                case 3: input.resize(input.size() - below(std::min<uint64_t>(input.size(), 7))); break;
                case 4: input.insert(input.begin() + int64_t(at), uint8_t(below(2) * 255)); break;
                default: input[at] = uint8_t(below(2) ? 255 : 0);
            }
        }
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    std::printf("decode_fuzz: %llu inputs in %.0f s, nothing broken\n", static_cast<unsigned long long>(runs),
                elapsed());
    return 0;
}
#endif
