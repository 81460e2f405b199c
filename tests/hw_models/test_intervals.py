"""Sums of uncertain prices: bounds, draws, tornado, ratios; scaling between nodes; the validation table."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.hw_models import intervals, scaling, validation
from spiking.hw_models.energy import break_even_rate
from spiking.hw_models.intervals import Interval, Term

from spiking import hw_models
from spiking.errors import SpikingError

MODELS = json.loads((validation.DATA / "models.json").read_text())
GOLDEN = MODELS["interval"]
TERMS = [Term("", "", t["count"], Interval(t["low"], t["value"], t["high"]), t["group"]) for t in GOLDEN["terms"]]


def test_the_tornado_is_the_golden_one():
    found = intervals.tornado(TERMS)
    expected = GOLDEN["expect_pJ"]["tornado"]
    assert found.keys() == expected.keys()
    for group, ends in expected.items():
        assert found[group] == pytest.approx(ends, rel=1e-12)
    spans = [high - low for low, high in found.values()]
    assert spans == sorted(spans, reverse=True)


def test_draws_meet_the_golden_moments():
    draws = intervals.drawn(TERMS)
    expected = GOLDEN["expect_pJ"]
    assert draws.mean() == pytest.approx(expected["mc_mean_exact"], rel=0.02)
    assert list(intervals.quantiles(draws)) == pytest.approx(
        [expected["mc"][q] for q in ("q05", "q50", "q95")], rel=0.02
    )
    assert expected["low"] <= draws.min()
    assert draws.max() <= expected["high"]


@given(st.floats(0.1, 10), st.floats(1.01, 30))
@settings(deadline=None, max_examples=20)
def test_draws_are_log_uniform(low, spread):
    high = low * spread
    draws = intervals.drawn([Term("", "", 1.0, Interval(low, low, high), "a")], n=200_000)
    mean = (high - low) / math.log(spread)
    assert draws.mean() == pytest.approx(mean, rel=0.01)
    assert draws.var() == pytest.approx((high**2 - low**2) / (2 * math.log(spread)) - mean**2, rel=0.05)


def test_groups_move_together_and_shares_add_up():
    a = Term("", "", 1.0, Interval(1.0, 2.0, 4.0), "a")
    assert intervals.drawn([a, a]).var() == pytest.approx(4 * intervals.drawn([a]).var())
    shares = intervals.shares(
        [a, a._replace(group="b", amount=3.0), a._replace(group="c", price=Interval(2.0, 2.0, 2.0))]
    )
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares) == ["b", "a", "c"]
    assert shares["c"] == 0


def test_draws_depend_on_the_group_and_the_seed_only():
    a, b = (Term("", "", 1.0, Interval(1.0, 2.0, 4.0), name) for name in "ab")
    assert (intervals.drawn([a]) == intervals.drawn([a])).all()
    np.testing.assert_allclose(intervals.drawn([a, b]) - intervals.drawn([b]), intervals.drawn([a]))
    assert not (intervals.drawn([a]) == intervals.drawn([b])).all()
    assert not (intervals.drawn([a], seed=0) == intervals.drawn([a], seed=1)).all()


def test_a_ratio_may_be_largest_inside_its_corners():
    """x / (1 + 0.1·x²) with x from 1 to 10 is largest at √10: no corner shows it."""
    top = [Term("", "", 1.0, Interval(1.0, 3.0, 10.0), "g")]
    bottom = [Term("", "", 1.0, Interval(1.0, 1.0, 1.0), "one"), Term("", "", 0.1, Interval(1.0, 9.0, 100.0), "g")]
    found = intervals.ratio_of(top, bottom)
    assert found.high == pytest.approx(math.sqrt(10) / 2, rel=1e-4)
    assert found.low == pytest.approx(10 / 11)


def test_many_groups_are_no_obstacle():
    terms = [Term("", "", 1.0 + i, Interval(1.0, 2.0, 3.0), f"{i}") for i in range(40)]
    assert intervals.ratio_of(terms, terms) == (1, 1, 1)
    found = intervals.ratio_of(terms[:20], terms[20:])
    assert found.low == pytest.approx(found.nominal / 3)
    assert found.high == pytest.approx(found.nominal * 3)


def test_prices_of_nothing_may_be_low():
    found = intervals.drawn([Term("", "", 2.0, Interval(0.0, 1.0, 3.0), "a")], n=100_000)
    assert found.mean() == pytest.approx(3.0, rel=0.02)
    assert math.isnan(intervals.ratio_of(TERMS, []).nominal)


# scaling


@pytest.mark.parametrize("case", MODELS["node_scaling"], ids=lambda c: f"{c['node1']}-{c['node2']}")
def test_energies_scale_as_published(case):
    factor = scaling.energy_factor(case["node2"], case["V2"]) / scaling.energy_factor(case["node1"], case["V1"])
    assert case["E1_pJ"] * factor == pytest.approx(case["E2_pJ"], rel=1e-6)


def test_scaling_has_an_interval_and_nodes_between_are_interpolated():
    fourteen, thirty = scaling.scale(45, 0.9, 14, 0.75), scaling.scale(45, 0.9, 28, 0.9)
    assert fourteen.low < fourteen.nominal < fourteen.high < 1
    exact = [scaling.scale(45, 0.9, n, 0.9).nominal for n in (32, 20)]
    assert exact[1] < thirty.nominal < exact[0]
    assert scaling.area_factor(65, 45) == pytest.approx(1 / 1.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scaling.scale(45, 0.9, 5, 0.7), "scale: got a node of 5 nm; expected 7 to 130 nm"),
        (lambda: scaling.energy_factor("HP28", 0.9), "energy_factor: got process 'HP28'; expected one of 130, 90"),
        (lambda: scaling.area_factor(45, 28), "area_factor: got node 28 nm; expected one of 7, 10"),
    ],
)
def test_nodes_outside_of_the_table_are_refused(call, message):
    with pytest.raises(SpikingError, match=message):
        call()


# break-even


@pytest.mark.parametrize("case", MODELS["break_even"], ids=lambda c: c["name"])
def test_break_even_rates_are_the_golden_ones(case):
    per_rate = case["T"] * case["ac_layer_connections"] * case["e_ac_total_pJ"]
    fixed = case["fixed_first_layer_pJ"] + case["fixed_neuron_pJ"]
    rate = break_even_rate(case["e_ann_pJ"], fixed, per_rate)
    assert rate == pytest.approx(case["r_star"], rel=1e-12)
    assert rate * case["T"] == pytest.approx(case["spikes_per_synapse"], rel=1e-12)


# the validation table


def test_every_validation_case_is_reproduced():
    rows = hw_models.verify()
    failed = [f"{row.name}: expected {row.expected}, found {row.found}" for row in rows if not row.passed]
    assert not failed
    ids = " ".join(row.name for row in rows)
    for case in json.loads((validation.DATA / "published.json").read_text()):
        assert case["id"] in ids, case["id"]


def test_a_wrong_figure_is_seen():
    row = validation.Check("x", 2.0, 2.1, 0.01, "")
    assert not row.passed
    assert row.error == pytest.approx(0.05)
    assert validation.Check("zero", 0.0, 0.0, 0.0, "").passed


def test_the_published_sum_is_reproduced_by_the_estimator():
    trace = validation.counted(ac=6517540940, mac=347329512)
    found = hw_models.estimate(trace, "digital-45nm", accounting="published")
    assert found.energy.nominal * 1e3 == pytest.approx(7.4635026, rel=1e-7)


def test_claims_with_the_rate_applied_twice_are_corrected():
    joules, ratio, warnings = hw_models.check_claim(18.39e6, 0.1366, 3.09e-7)
    assert joules == pytest.approx(2.2608666e-6)
    assert ratio == pytest.approx(37.41662599642102)
    assert [w.code for w in warnings] == ["W05"]
    assert "should read 2.261e-06 J" in warnings[0].text
    assert hw_models.check_claim(18.39e6, 0.1366, 2.26e-6)[2] == []


def test_average_figures_are_right_at_one_point_only():
    """26 pJ per synaptic operation mispredicts the chip's own sweep at both ends; the affine model does not."""
    chip = hw_models.load("truenorth")
    events = 2**20 * 128
    for rate, published, average_error in ((11.58, 68e-3, -0.41), (95.93, 94e-3, 2.56)):
        affine = chip["static_power"].value + events * rate * chip["synop"].value
        assert affine == pytest.approx(published, rel=1e-9)
        assert events * rate * 26e-12 / published - 1 == pytest.approx(average_error, abs=0.01)


def test_np_floats_do_not_leak():
    assert all(isinstance(v, float) for v in intervals.quantiles(np.arange(10.0)))
