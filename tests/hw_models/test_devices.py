"""Memory cells: every published table, distributions at fixed seeds, what belongs to a device, and files that are wrong.

golden/devices/devices.npz: σ, ν, drift and read noise of IBM's aihwkit 1.2 with its Gaussian draws replaced by 0 or 1, and of
CrossSim's fits; conductances in µS, times in seconds. Its arithmetic is ours in float64, so parity is to 1e-12.
"""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.hw_models import cellfile, draws
from spiking.hw_models.cellfile import available_cells, load_cell
from spiking.hw_models.curves import Constant, Inverse, Proportional
from spiking.hw_models.devices import Cell, Devices
from spiking.hw_models.effects import (
    MICRO,
    AgedSpread,
    Draws,
    Faults,
    FlickerNoise,
    Forming,
    LogNormal,
    PowerLawDrift,
    ProgrammingNoise,
    Range,
    Telegraph,
    Temperature,
    WhiteNoise,
    flicker_sequence,
)
from torch.testing import assert_close

from spiking import SpikingError

N = 100_000


@pytest.fixture(scope="module")
def tables(golden):
    return np.load(golden / "devices" / "devices.npz")


def exact(found, expected) -> None:
    assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-12, atol=1e-12)


# Published tables


@pytest.mark.parametrize(
    ("prefix", "preset", "g_max"),
    [("pcm", "pcm", 25.0), ("pcm40", "pcm", 40.0), ("hermes1", "hermes-1", 10.35), ("hermes2", "hermes-2", 20.7)],
)
def test_phase_change_tables(tables, prefix, preset, g_max):
    cell = load_cell(preset)
    g, span = torch.from_numpy(tables[f"{prefix}_g"]), Range(0.0, g_max)
    drift, (read,) = cell.retention, cell.reads
    exact(cell.programming.sigma(g, g_max), tables[f"{prefix}_sigma_prog"])
    nu = drift.nu_mean(g, g_max)
    exact(nu, tables[f"{prefix}_nu_mean"])
    exact(drift.nu_std(g, g_max), tables[f"{prefix}_nu_sigma"])
    for i, t in enumerate(tables["t_s"].tolist()):
        now = drift.drifted(g, nu, t)
        exact(now, tables[f"{prefix}_g_drift"][i])
        exact(read.std(now, g, t, span), tables[f"{prefix}_sigma_read"][i])


def test_state_independent_tables(tables):
    g, span = torch.from_numpy(tables["pcm_g"]), Range(0.0, 25.0)
    drift, read = PowerLawDrift(Constant(0.1), Constant(0.05), 20.0), FlickerNoise(Constant(0.04), 20.0, 250e-9)
    exact(Constant(0.2)(g, 25.0), tables["stateindep_sigma_prog"])
    exact(drift.nu_std(g, 25.0), tables["stateindep_nu_sigma"])
    for i, t in enumerate(tables["t_s"].tolist()):
        now = drift.drifted(g, drift.nu_mean(g, 25.0), t)
        exact(now, tables["stateindep_g_drift"][i])
        exact(read.std(now, g, t, span), tables["stateindep_sigma_read"][i])


def test_wan_tables(tables):
    g, aged = torch.from_numpy(tables["wan_g"]), load_cell("rram-wan").retention
    for i, t in enumerate(tables["wan_t_s"].tolist()):
        exact(aged.sigma(g, t, Range(1.0, 40.0)), tables["wan_sigma"][i])
    exact(
        load_cell("rram-wan-xs").programming.sigma(torch.from_numpy(tables["wan_xs_g"]), 39.26), tables["wan_xs_sigma"]
    )


def test_wan_spread_is_linear_in_the_logarithm_of_time_and_held_outside():
    aged, g, span = load_cell("rram-wan").retention, torch.tensor([10.0], dtype=torch.float64), Range(1.0, 40.0)
    second, day, two = (float(aged.sigma(g, t, span)) for t in (1.0, 86_400.0, 172_800.0))
    assert float(aged.sigma(g, math.sqrt(86_400.0), span)) == pytest.approx((second + day) / 2)
    assert float(aged.sigma(g, 0.0, span)) == second
    assert float(aged.sigma(g, 1e9, span)) == two


def test_cmo_tables(tables):
    cell, g = load_cell("rram-cmo"), torch.from_numpy(tables["cmo_g"])
    relaxation, (read,) = cell.retention, cell.reads
    exact(cell.programming.sigma(g, cell.span.high), tables["cmo_sigma_prog"])
    for i, t in enumerate(tables["cmo_t_s"].tolist()):
        exact(relaxation.mean(g, t, cell.span), tables["cmo_g_mean"][i])
        exact(relaxation.std(t), float(tables["cmo_sigma_relax"][i]))
        exact(read.std(relaxation.mean(g, t, cell.span), g, t, cell.span), tables["cmo_sigma_read"][i])


def test_milo_tables(tables):
    cell, g = load_cell("rram-milo"), torch.from_numpy(tables["milo_g"])
    exact(cell.programming.sigma(g, 225.0), tables["milo_sigma"])
    amperes = cell.current.current(g / MICRO, float(tables["milo_V"]))
    exact(amperes * MICRO, tables["milo_I"] * MICRO)


def test_joshi_and_sonos_tables(tables):
    exact(load_cell("pcm-joshi").programming.sigma(torch.from_numpy(tables["joshi_g"]), 25.0), tables["joshi_sigma"])
    cell = load_cell("sonos")
    nano = cell.v_read * 1e3  # nA of a µS
    g = torch.from_numpy(tables["sonos_I_nA"]) / nano
    exact(cell.retention.sigma(g, 0.0, cell.span) * nano, tables["sonos_sigma_prog_nA"])
    exact(cell.reads[0].std(g, g, 0.0, cell.span) * nano, tables["sonos_sigma_read_nA"])


def test_breakdown_table(golden):
    forming = load_cell("rram-40nm").forming
    with open(golden / "devices" / "breakdown_sparsity.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        voltage, sparsity = float(row["V_program_V"]), float(row["sparsity_fraction_unformed"])
        assert forming.sparsity(voltage) == pytest.approx(sparsity, rel=1e-12)
        assert forming.voltage(sparsity) == pytest.approx(voltage, rel=1e-9)


# Distributions: 10⁵ draws, moments within 4 standard errors


def within(sample: torch.Tensor, mean: float, std: float, errors: float = 4) -> None:
    """Mean and standard deviation of a sample, the latter's error from the sample's own fourth moment."""
    n, deviation = sample.numel(), sample - sample.mean()
    assert abs(float(sample.mean()) - mean) <= errors * std / math.sqrt(n)
    fourth = float((deviation**4).mean() / (deviation**2).mean() ** 2)
    assert abs(float(sample.std()) / std - 1) <= errors * math.sqrt((fourth - 1) / (4 * n))


def many(cell: Cell, micro: float, seed: int = 0) -> Devices:
    return Devices(cell, torch.full((N,), micro / MICRO, dtype=torch.float64), seed)


def test_draws_are_standard_and_independent():
    index = torch.arange(N)
    x = torch.stack([draws.normal(s, stream, index) for s, stream in ((0, "a"), (0, "b"), (1, "a"))])
    for row in x:
        within(row, 0.0, 1.0)
    lagged = torch.corrcoef(torch.cat([x[:, 1:], x[:, :-1]]))
    assert float((lagged - torch.eye(6)).abs().max()) < 5 / math.sqrt(N)
    u = draws.uniform(7, "c", index)
    assert 0 < float(u.min()) < float(u.max()) < 1
    counts = torch.histc(u, 100, 0, 1)
    assert float(((counts - N / 100) ** 2 / (N / 100)).sum()) < 99 + 4 * math.sqrt(2 * 99)


@pytest.mark.parametrize(
    "name", ["pcm", "pcm-joshi", "hermes-1", "hermes-2", "rram-wan-xs", "rram-milo", "rram-cmo", "rram-40nm"]
)
def test_written_conductances_have_the_published_spread(name):
    cell = load_cell(name)
    middle = (cell.span.low + 2 * cell.span.high) / 3
    sigma = float(cell.programming.sigma(torch.tensor([middle], dtype=torch.float64), cell.span.high))
    within(many(replace(cell, retention=None), middle).at(0.0) * MICRO, middle, sigma)


def test_uniform_programming_noise_spans_sigma():
    cell = Cell("uniform", 0.0, 1e-4, programming=ProgrammingNoise(Constant(2.0), "uniform"))
    written = many(cell, 50.0).at() * MICRO
    within(written, 50.0, 2 / math.sqrt(12))
    assert 49 <= float(written.min()) < float(written.max()) <= 51


def test_inverse_noise_grows_as_conductance_falls():
    assert Inverse(0.01)(torch.tensor([10.0, 100.0]), 100.0).tolist() == [10.0, 1.0]


def test_drift_has_the_published_exponents():
    cell = replace(load_cell("pcm"), programming=None)
    g = torch.tensor([10.0], dtype=torch.float64)
    mean, std = float(cell.retention.nu_mean(g, 25.0)), float(cell.retention.nu_std(g, 25.0))
    now = many(cell, 10.0).at(20 * (math.e - 1)) * MICRO  # (t + t0)/t0 = e: G = 10·exp(-ν)
    within(-torch.log(now / 10), mean, std)


def test_relaxation_and_aged_spread():
    cell = replace(load_cell("rram-cmo"), programming=None)
    t = 3600.0
    within(many(cell, 50.0).at(t) * MICRO, 50 - 0.08900206 * math.log(t), cell.retention.std(t))
    wan = load_cell("rram-wan")
    within(
        many(wan, 20.0).at(86_400.0) * MICRO, 20.0, float(wan.retention.sigma(torch.tensor([20.0]), 86_400.0, wan.span))
    )


def test_log_normal_spread_keeps_the_mean():
    cell = Cell("spread", 1e-6, 1e-4, spread=LogNormal(0.1, 0.5))
    for micro, sigma in ((100.0, 0.1), (1.0, 0.5)):
        within(many(cell, micro).at() * MICRO, micro, micro * math.sqrt(math.expm1(sigma**2)))


@pytest.mark.parametrize("name", ["pcm", "hermes-1", "hermes-2", "rram-wan", "rram-cmo", "rram-40nm", "sonos"])
@pytest.mark.parametrize("t", [1.0, 86_400.0])
def test_reads_have_the_moments_that_are_stated(name, t):
    cell = load_cell(name)
    one = Devices(cell, torch.tensor([0.6 * cell.G_max]), seed=3)
    mean, std = one.read_moments(t)
    reads = one.read(torch.Generator().manual_seed(1), N, t) * MICRO
    within(reads[:, 0], float(mean[0]) * MICRO, float(std[0]) * MICRO)


def test_telegraph_reads_have_the_moments_that_are_stated():
    cell = Cell(
        "trap", 0.0, 1e-4, telegraph=Telegraph(1.0, 0.5, 1e5, 1e-6, 1.0), reads=(WhiteNoise(Proportional(0.02)),)
    )
    one = Devices(cell, torch.tensor([5e-6, 50e-6]), seed=3)
    mean, std = one.read_moments()
    reads = one.read(torch.Generator().manual_seed(1), N)
    for k in range(2):
        within(reads[:, k] * MICRO, float(mean[k]) * MICRO, float(std[k]) * MICRO)


def test_telegraph_sequence_is_a_stationary_markov_chain():
    trap = Telegraph(1.0, 0.5, 1e5, 1e-3, 1.0)
    own = Draws(5, torch.zeros(2000, dtype=torch.int64))  # one device, 2,000 times over
    free, trapped = (float(v[0]) for v in trap.times(own))
    p, dt = trapped / (free + trapped), 0.5 / (1 / free + 1 / trapped)
    x = trap.sequence(50, dt, own, torch.Generator().manual_seed(0)).double()
    at_once = torch.tensor([float(x[0].mean()), float(x[-1].mean())])
    assert float((at_once - p).abs().max()) < 4 * math.sqrt(p * (1 - p) / 2000)
    for lag in (1, 2):
        correlation = float(((x[:-lag] - p) * (x[lag:] - p)).mean()) / (p * (1 - p))
        assert correlation == pytest.approx(math.exp(-0.5 * lag), abs=0.05)
    assert float(own.uniform("trap").lt(0.2).double().mean()) in (0.0, 1.0)
    g = torch.tensor([10.0], dtype=torch.float64)  # 100 kΩ: half the largest amplitude
    assert float(trap.depth(g, Draws(0, torch.zeros(1, dtype=torch.int64)))) == pytest.approx(0.25)


def test_flicker_sequence_has_variance_one_and_a_falling_spectrum():
    x = flicker_sequence((400,), 512, torch.Generator().manual_seed(0))
    assert float(x.var()) == pytest.approx(1.0, abs=0.05)
    power = torch.fft.rfft(x, dim=0).abs().square().mean(1)
    f = torch.arange(4, 65).double()
    slope = np.polyfit(np.log(f.numpy()), np.log(power[4:65].numpy()), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.2)


def test_faults_are_one_draw_a_device():
    cell = Cell("faulty", 1e-6, 1e-4, faults=Faults(lrs=0.0904, hrs=0.0175, open=0.01))
    g = many(cell, 50.0).at() * MICRO
    for value, share in ((100.0, 0.0904), (1.0, 0.0175), (0.0, 0.01), (50.0, 1 - 0.1179)):
        found = float(torch.isclose(g, torch.tensor(value, dtype=torch.float64), atol=1e-9).double().mean())
        assert abs(found - share) <= 4 * math.sqrt(share * (1 - share) / N)


def test_a_stuck_device_neither_drifts_nor_takes_programming_noise():
    cell = replace(load_cell("pcm"), faults=Faults(lrs=1.0))
    assert_close(many(cell, 3.0).at(1e6), torch.full((N,), 25e-6, dtype=torch.float64))


def test_forming_gives_the_stated_random_weights():
    forming = Forming(3.433, 0.114, 50.0, 4.676, 0.0)
    for p in (0.3, 0.8):
        voltage = forming.voltage(1 - p)
        plus, minus = (forming.conductance(voltage, seed, torch.arange(N)) * MICRO for seed in (0, 1))
        difference = plus - minus
        within(difference, 0.0, math.sqrt(2 * p * (4.676**2 + (1 - p) * 50**2)))
        none = float((difference == 0).double().mean())
        assert abs(none - (1 - p) ** 2) <= 4 * math.sqrt(none * (1 - none) / N)


def test_a_higher_pulse_only_forms_more_cells():
    forming, index = load_cell("rram-40nm").forming, torch.arange(5000)
    before = torch.zeros(5000, dtype=torch.bool)
    for voltage in np.arange(3.0, 3.9, 0.1):
        formed = forming.conductance(float(voltage), 2, index) > 1e-6
        assert bool((formed | ~before).all())
        before = formed


def test_formed_pairs_have_the_published_weight_spread():
    forming = load_cell("rram-40nm").forming
    plus, minus = (forming.conductance(10.0, seed, torch.arange(N)) * MICRO for seed in (0, 1))
    within(plus - minus, 0.0, 6.61329)


def test_levels_are_equidistant():
    cell = Cell("levels", 1e-6, 4e-6, bits=2)
    g = Devices(cell, torch.linspace(0, 6e-6, 101)).at() * MICRO
    assert_close(g.unique(), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))


def test_temperature_blends_the_two_states():
    cell = Cell("hot", 1e-6, 1e-4, temperature=Temperature(1e-3, 0.1 * 1.602176634e-19, 1.2 * 1.602176634e-19))
    g = Devices(cell, torch.tensor([1e-6, 1e-4])).at(0.0, 400.0) * MICRO
    activated = math.exp(0.1 / 8.617333262e-5 * (1 / 300 - 1 / 400))
    assert g.tolist() == pytest.approx([activated, 100 / 1.1])
    assert cell.temperature.aged(1.0, 353.15) == pytest.approx(math.exp(1.2 / 8.617333262e-5 * (1 / 300 - 1 / 353.15)))
    room = Devices(cell, torch.tensor([1e-6, 1e-4]))
    assert torch.equal(room.at(0.0), room.at(0.0, 300.0))


def test_heat_ages_faster():
    devices_ = many(load_cell("rram-wan"), 20.0)
    month = 30 * 86_400.0
    hot = replace(
        load_cell("rram-wan"), temperature=replace(load_cell("rram-wan").temperature, alpha=0.0, activation=0.0)
    )
    assert not torch.equal(devices_.at(10.0, 300.0), many(hot, 20.0).at(10.0, 353.15))
    aged = hot.temperature.aged(10.0, 353.15)
    assert torch.equal(many(hot, 20.0).at(10.0, 353.15), devices_.at(aged))
    assert aged < month


# What belongs to a device


def everything() -> Cell:
    return Cell(
        "everything", 1e-6, 1e-4, spread=LogNormal(0.1, 0.5), cycle_spread=LogNormal(0.05, 0.1), faults=Faults(0.02, 0.02, 0.02),
        programming=ProgrammingNoise(Constant(1.0)), retention=PowerLawDrift(Constant(0.05), Constant(0.02), 20.0),
        telegraph=Telegraph(0.2, 0.5, 1e5, 1e-6, 1.0), reads=(WhiteNoise(Proportional(0.02)),),
    )  # fmt: skip


@given(seed=st.integers(0, 2**40), order=st.permutations(range(12)), cut=st.integers(1, 11))
@settings(deadline=None, max_examples=40)
def test_a_device_is_the_same_in_any_batch_and_order(seed, order, cut):
    target = torch.linspace(1e-6, 1e-4, 12)
    whole = Devices(everything(), target, seed)
    index = torch.tensor(order)
    shuffled = Devices(everything(), target[index], seed, index)
    first = Devices(everything(), target[:cut].reshape(1, -1), seed)
    for t in (0.0, 1e4):
        assert torch.equal(whole.at(t)[index], shuffled.at(t))
        assert torch.equal(whole.at(t)[:cut], first.at(t)[0])
        assert torch.equal(whole.read_moments(t)[1][index], shuffled.read_moments(t)[1])


def test_seeds_are_other_devices_and_times_are_not():
    target = torch.full((1000,), 5e-5)
    a, b = Devices(everything(), target, 0), Devices(everything(), target, 1)
    assert not torch.equal(a.at(), b.at())
    late = a.at(1e5)
    a.at(7.0)
    assert torch.equal(late, a.at(1e5))


def test_writing_again_keeps_the_device_and_redraws_the_write():
    cell = Cell("spread", 1e-6, 1e-4, spread=LogNormal(0.1, 0.1), programming=ProgrammingNoise(Constant(0.01)))
    once = many(cell, 50.0)
    twice = once.rewritten()
    assert not torch.equal(once.at(), twice.at())
    assert float(torch.corrcoef(torch.stack([once.at(), twice.at()]))[0, 1]) > 0.99
    only_cycle = replace(cell, spread=None, cycle_spread=LogNormal(0.1, 0.1))
    once = many(only_cycle, 50.0)
    assert abs(float(torch.corrcoef(torch.stack([once.at(), once.rewritten().at()]))[0, 1])) < 4 / math.sqrt(N)


def test_only_reads_are_fresh():
    one = many(everything(), 50.0)
    generator = torch.Generator().manual_seed(0)
    first, second = one.read(generator)[0], one.read(generator)[0]
    assert not torch.equal(first, second)
    assert torch.equal(first, one.read(torch.Generator().manual_seed(0))[0])


# Files and bad input


def test_every_preset_is_whole():
    assert set(available_cells()) >= {"rram-40nm", "rram-wan", "rram-milo", "rram-cmo", "pcm", "pcm-joshi", "hermes-1",
                                      "hermes-2", "sonos", "ideal"}  # fmt: skip
    for name in available_cells():
        cell = load_cell(name)
        assert cell.name == name
        for constant in cell.constants.values():
            assert constant.low <= constant.value <= constant.high
            assert "title" in cell.sources[constant.source]
        g = Devices(cell, torch.linspace(cell.G_min, cell.G_max, 50), seed=1).at(1e5)
        assert bool(torch.isfinite(g).all())
        assert float(g.min()) >= 0


def test_ideal_cells_hold_what_they_are_told():
    target = torch.linspace(1e-6, 1e-4, 9, dtype=torch.float64)
    ideal = Devices(load_cell("ideal"), target)
    assert_close(ideal.at(1e9), target, rtol=1e-12, atol=0)
    assert not ideal.read_moments()[1].any()


@pytest.fixture
def edited(tmp_path):
    """A preset with a piece of its text replaced."""

    def edit(preset: str, old: str, new: str):
        path = tmp_path / "mine.toml"
        text = (cellfile._CELLS / f"{preset}.toml").read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return path

    return edit


def test_a_file_of_ones_own(edited):
    assert load_cell(edited("pcm", 'name = "pcm"', 'name = "mine"')).name == "mine"


@pytest.mark.parametrize(
    ("preset", "old", "new", "message"),
    [
        ("pcm", 'name = "g_min"\nvalue = 0.0', 'name = "g_min"\nvalue = 25.0', r"mine\.toml: got G_min=2\.5e-05 S and G_max=2\.5e-05 S"),
        ("pcm", 'source = "rasch2021"\nmark = "R"', 'mark = "R"', r"mine\.toml: g_min: the constant has no source"),
        ("pcm", 'unit = "uS"', 'unit = "nS"', r"mine\.toml: g_min: got unit 'nS'"),
        ("pcm", 'name = "t0"\nvalue = 20.0\nunit = "s"', 'name = "t0"\nvalue = 20.0\nunit = "uS"', r"t0: got unit 'uS'; expected ns or us"),
        ("pcm", 'name = "t0"', 'name = "t1"', r"t0: the constant is missing"),
        ("pcm", "value = 0.049", "value = nan", r"nu_mean_low: got value=nan; expected a finite number\."),
        ("rram-40nm", "low = 0.005", "low = 0.5", r"white_fraction: got low=0\.5, value=0\.02"),
        ("pcm", 'flicker = "inverse-power"', "", r"t_read: no effect in \[forms\] uses this constant"),
        ("pcm", 'flicker = "inverse-power"', 'flicker = "wavy"', r"got flicker='wavy'; expected one of constant"),
        ("pcm", 'flicker = "inverse-power"', 'flikker = "inverse-power"', r"\[forms\]: got 'flikker'"),
        ("pcm", 'retention = "power-law"', 'retention = "power"', r"got retention='power'"),
        ("rram-wan", 'aging = "log"', 'aging = "cubic"', r"got aging='cubic'; expected log or linear"),
        ("rram-wan", 'aging = "log"', 'programming = "constant"\naging = "log"', r"programming_value: the constant is missing"),
        ("rram-40nm", 'pairing = "two-sided"', 'pairing = "twin"', r"got pairing='twin'"),
        ("pcm", 'mark = "R"', 'mark = "X"', r"g_min: got mark 'X'; expected .*A \(assumed"),
        ("pcm", 'name = "pcm"', "name = 5", r"got name=5; every cell states"),
        ("pcm", "value = 0.2\nlow = 0.05", "value = 0.0\nlow = 0.0", r"got v_read=0\.0; expected volts above 0"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_the_constant(edited, preset, old, new, message):
    with pytest.raises(SpikingError, match=message):
        load_cell(edited(preset, old, new))


def test_two_descriptions_of_what_is_written_are_refused(edited, tmp_path):
    path = edited("rram-wan", "[forms]", '[forms]\nprogramming = "constant"')
    text = path.read_text(encoding="utf-8")
    more = '[[constant]]\nname = "programming_value"\nvalue = 1.0\nunit = "uS"\nsource = "wan2022"\nmark = "2"\n\n[sources]'
    path.write_text(text.replace("[sources]", more), encoding="utf-8")
    with pytest.raises(SpikingError, match=r"got programming and retention = 'aged'; expected one of them"):
        load_cell(path)


def test_an_unknown_preset_names_its_neighbours(tmp_path):
    with pytest.raises(
        SpikingError, match=r"cell: got 'rram-40'; expected a \.toml file or a known preset, such as rram-40nm"
    ):
        load_cell("rram-40")
    with pytest.raises(SpikingError, match=r"none\.toml: the cell file cannot be read"):
        load_cell(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"G_min": 1e-4}, r"Cell x: got G_min=0\.0001 S and G_max=0\.0001 S; expected 0 <= G_min < G_max"),
        ({"bits": -1}, r"Cell x: got bits=-1; expected at least 0"),
        ({"rows": 0}, r"Cell x: got rows=0; expected at least 1"),
        ({"r_wire": float("nan")}, r"Cell x: got r_wire=nan"),
    ],
)
def test_a_wrong_cell_is_refused(change, message):
    with pytest.raises(SpikingError, match=message):
        Cell(**{"name": "x", "G_min": 0.0, "G_max": 1e-4, **change})


def test_bad_use_is_refused():
    one = Devices(load_cell("pcm"), torch.tensor([1e-5]))
    with pytest.raises(SpikingError, match=r"Devices\.at: got t=-1\.0; expected seconds since programming, 0 or more"):
        one.at(-1.0)
    with pytest.raises(SpikingError, match=r"Devices\.at: got 80 K; expected kelvin from 150 to 700"):
        one.at(0.0, 80)
    with pytest.raises(SpikingError, match=r"Devices: got 1 target conductances that are not finite"):
        Devices(load_cell("pcm"), torch.tensor([float("nan"), 1e-5]))
    with pytest.raises(SpikingError, match=r"Faults: got lrs=0\.9, hrs=0\.2"):
        Faults(0.9, 0.2)
    with pytest.raises(SpikingError, match=r"Forming\.voltage: got a sparsity of 1"):
        load_cell("rram-40nm").forming.voltage(1)


def test_cells_travel_with_the_package():
    assert shutil.os.path.isdir(cellfile._CELLS)
    assert isinstance(load_cell("sonos").retention, AgedSpread)
