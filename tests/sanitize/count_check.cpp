// The counting pass over operands.
#include "check.h"
#include "count_api.h"

namespace LEVEL { extern const CountTable count_table; }

namespace {

void one() {
    CountCall p{};
    p.dtype = draw(0, 3), p.threads = draw(1, 3), p.steps = draw(1, 4);
    p.rows = p.steps * draw(1, 6), p.n = chance(0.1) ? draw(16000, 40000) : draw(1, 700);
    Buffer x = chance(0.3) ? numbers(size_t(p.rows * p.n), size_of(p.dtype)) : spikes(size_t(p.rows * p.n), p.dtype, a_density(), chance(0.3));
    Buffer fan = zeros(size_t(p.n), 4), fan_nonzero = zeros(size_t(p.n), 4);
    for (int k = 0; k < p.n; ++k) fan.as<int>()[k] = draw(0, (1 << 17) - 1), fan_nonzero.as<int>()[k] = draw(0, fan.as<int>()[k]);
    Buffer nonzero = zeros(size_t(p.rows), 8), synops = zeros(size_t(2 * p.rows), 8), magnitude = zeros(size_t(p.rows), 8);
    Buffer per_element = zeros(size_t(p.n), 8), levels = zeros(size_t(p.threads * p.steps * LEVELS), 8);
    Buffer n_levels = zeros(size_t(p.threads * p.steps), 4), negative = zeros(size_t(p.threads * p.steps), 4);
    p.x = x.as(), p.nonzero = nonzero.as<long long>(), p.synops = synops.as<long long>(), p.magnitude = magnitude.as<double>();
    p.per_element = per_element.as<long long>();
    if (chance(0.6)) p.fan = fan.as<int>();
    if (p.fan && chance(0.5)) p.fan_nonzero = fan_nonzero.as<int>();
    if (chance(0.6)) p.levels = levels.as<double>();
    p.n_levels = n_levels.as<int>(), p.negative = negative.as<int>();
    LEVEL::count_table.count(p);
}

}  // namespace

int main(int argc, char** argv) { return check("counting", argc, argv, one); }
