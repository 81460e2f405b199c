// Sound to events: filter banks of a silicon cochlea, hair cells, and one integrate-and-fire neuron a channel. Plain double arithmetic in
// one order, compiled once without contraction: the same events on every machine. Shapes and messages are Python's job.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <vector>

namespace nb = nanobind;

namespace {

template <class T> using Array1 = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T> using Array2 = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Low-pass sections in a row; band k is the difference of the outputs of sections k and k + 1. sections [channels + 1, 5]: b0 b1 b2 a1 a2.
void cascade(Array1<const double> audio, Array2<const double> sections, Array2<double> bands) {
    const int64_t n = int64_t(audio.shape(0)), stages = int64_t(sections.shape(0)), channels = stages - 1;
    const double *x = audio.data(), *c = sections.data();
    double* out = bands.data();
    std::vector<double> state(size_t(2 * stages), 0.0);
    nb::gil_scoped_release release;
    for (int64_t t = 0; t < n; ++t) {
        double v = x[t], before = 0.0;
        for (int64_t k = 0; k < stages; ++k) {
            const double* s = c + 5 * k;
            double *z = state.data() + 2 * k;
            const double y = s[0] * v + z[0];
            z[0] = s[1] * v - s[3] * y + z[1];
            z[1] = s[2] * v - s[4] * y;
            if (k) out[t * channels + k - 1] = before - y;
            before = y, v = y;
        }
    }
}

// Four complex one-pole filters in a row for each channel. poles [channels, 3]: real and imaginary part, gain.
void gammatone(Array1<const double> audio, Array2<const double> poles, Array2<double> bands) {
    const int64_t n = int64_t(audio.shape(0)), channels = int64_t(poles.shape(0));
    const double *x = audio.data(), *p = poles.data();
    double* out = bands.data();
    std::vector<double> state(size_t(8 * channels), 0.0);
    nb::gil_scoped_release release;
    for (int64_t t = 0; t < n; ++t)
        for (int64_t k = 0; k < channels; ++k) {
            const double re = p[3 * k], im = p[3 * k + 1];
            double* z = state.data() + 8 * k;
            double a = x[t] * p[3 * k + 2], b = 0.0;
            for (int stage = 0; stage < 4; ++stage) {
                const double u = z[2 * stage], w = z[2 * stage + 1];
                a += re * u - im * w;
                b += re * w + im * u;
                z[2 * stage] = a, z[2 * stage + 1] = b;
            }
            out[t * channels + k] = a;
        }
}

// Inner hair cells, forward Euler: membrane motion s to the probability of release, in place. constants: y g l r x A B h M.
void hair_cells(Array2<double> bands, double rate, Array1<const double> constants) {
    const int64_t n = int64_t(bands.shape(0)), channels = int64_t(bands.shape(1));
    const double *m = constants.data(), dt = 1.0 / rate;
    const double y = m[0], g = m[1], l = m[2], r = m[3], x = m[4], A = m[5], B = m[6], h = m[7], M = m[8];
    const double k0 = g * A / (A + B), c0 = M * y * k0 / (l * k0 + y * (l + r));
    const auto positive = [](double v) { return v > 0.0 ? v : 0.0; };
    double* v = bands.data();
    nb::gil_scoped_release release;
    for (int64_t channel = 0; channel < channels; ++channel) {
        double c = c0, q = c0 * (l + r) / k0, w = c0 * r / x;
        for (int64_t t = 0; t < n; ++t) {
            const double s = v[t * channels + channel];
            const double k = s + A > 0.0 ? g * (s + A) / (s + A + B) : 0.0;
            const double eject = k * q * dt, replenish = y * dt * positive(M - q), reuptake = x * dt * w, lost = (l + r) * dt * c;
            const double reprocess = r * dt * c;
            q = positive(q + replenish - eject + reuptake);
            c = positive(c + eject - lost);
            w = positive(w + reprocess - reuptake);
            v[t * channels + channel] = h * c * dt;
        }
    }
}

// One neuron a channel: v += rate·dt outside of the refractory period, an event wherever v reaches the threshold. bands [n, channels] are
// rectified and times gain the rate; the events go to times and channel, as far as there is room; returns how many there are.
int64_t fire(Array2<const double> bands, double rate, Array1<const double> gain, Array1<const double> threshold, double refractory,
             Array1<double> times, Array1<int16_t> channel) {
    const int64_t n = int64_t(bands.shape(0)), channels = int64_t(bands.shape(1)), room = int64_t(times.shape(0));
    const double *band = bands.data(), *g = gain.data(), *theta = threshold.data(), dt = 1.0 / rate;
    double* out = times.data();
    int16_t* which = channel.data();
    std::vector<double> charge(size_t(channels), 0.0), ready(size_t(channels), 0.0);
    int64_t found = 0;
    nb::gil_scoped_release release;
    for (int64_t t = 0; t < n; ++t) {
        const double start = double(t) * dt, end = double(t + 1) * dt;
        for (int64_t k = 0; k < channels; ++k) {
            const double y = g[k] * band[t * channels + k];
            if (!(y > 0.0) || ready[size_t(k)] >= end) continue;
            double v = charge[size_t(k)], from = ready[size_t(k)] > start ? ready[size_t(k)] : start;
            v += y * (end - from);
            while (v >= theta[k]) {
                const double at = end - (v - theta[k]) / y;
                if (found < room) out[found] = at, which[found] = int16_t(k);
                ++found;
                ready[size_t(k)] = at + refractory;
                v = ready[size_t(k)] < end ? y * (end - ready[size_t(k)]) : 0.0;
            }
            charge[size_t(k)] = v;
        }
    }
    return found;
}

}  // namespace

void bind_cochlea(nb::module_& m) {
    m.def("cochlea_cascade", &cascade);
    m.def("cochlea_gammatone", &gammatone);
    m.def("cochlea_hair_cells", &hair_cells);
    m.def("cochlea_fire", &fire);
}
