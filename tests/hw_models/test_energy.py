"""Estimates: golden energies, laws that any estimate obeys, warnings with a positive and a negative case each."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from golden_nets import FOLDER, Frames, Neuron, recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.hw_models import validation
from spiking.hw_models.digital import Prices
from spiking.hw_models.energy import sample_energies
from spiking.hw_models.intervals import Interval, Term, ratio_of, total
from torch import Tensor, nn

import spiking
from spiking import EventTrace, hw_models, record
from spiking.errors import SpikingError

GOLDEN = {net["name"]: net for net in json.loads((FOLDER / "energy.json").read_text())}
MODELS = json.loads((validation.DATA / "models.json").read_text())
CASES = [(name, e["precision"]) for name, net in GOLDEN.items() for e in net["estimates"]]


@pytest.fixture(scope="module")
def traces():
    return {name: recorded(name) for name in GOLDEN}


def golden(name: str, precision: str) -> dict[str, Any]:
    return next(e for e in GOLDEN[name]["estimates"] if e["precision"] == precision)


def picojoules(value: float, trace: EventTrace) -> float:
    """Golden figures are sums over the samples."""
    return value * trace.n_samples * 1e12


# golden energies


@pytest.mark.parametrize(("name", "precision"), CASES)
@pytest.mark.parametrize("accounting", ["published", "operations", "with-memory"])
def test_energies_equal_the_golden_ones(traces, name, precision, accounting):
    trace, expected = traces[name], golden(name, precision)
    found = hw_models.estimate(trace, "digital-45nm", precision=precision.lower(), accounting=accounting)
    key = accounting.replace("-", "_")
    assert picojoules(found.energy.nominal, trace) == pytest.approx(expected["total_pJ"][key], rel=1e-6)
    for row in found.per_layer:
        layer = expected["per_layer_pJ"][row.name]
        value = layer["operations"] + layer["memory"] if accounting == "with-memory" else layer[accounting]
        assert picojoules(row.energy.nominal, trace) == pytest.approx(value, rel=1e-6, abs=1e-9), row.name


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_the_equal_ann_is_the_golden_one(traces, name, precision):
    trace, expected = traces[name], golden(name, precision)
    found = hw_models.estimate(trace, precision=precision.lower())
    assert picojoules(found.ann.nominal, trace) == pytest.approx(expected["total_pJ"]["ann_operations"], rel=1e-6)
    assert found.ratio.nominal == pytest.approx(1 / expected["total_pJ"]["ratio_ann_over_snn_operations"], rel=1e-6)
    for row in found.per_layer:
        value = expected["per_layer_pJ"][row.name]["ann_operations"]
        assert picojoules(row.ann.nominal, trace) == pytest.approx(value, rel=1e-6, abs=1e-9), row.name


@pytest.mark.parametrize("case", MODELS["sram_pJ_per_word"], ids=lambda c: f"{c['capacity_bytes']}B-{c['bits']}b")
def test_words_cost_what_the_memory_model_says(case):
    price, _ = Prices(hw_models.load("digital-45nm"), "fp32").word(case["capacity_bytes"], case["bits"])
    assert [p * 1e12 for p in price] == pytest.approx([case["low"], case["nominal"], case["high"]], rel=1e-6)


def test_corners_equal_the_golden_ones():
    case = MODELS["interval"]
    terms = [Term("", "", t["count"], Interval(t["low"], t["value"], t["high"]), t["group"]) for t in case["terms"]]
    expected = case["expect_pJ"]
    assert list(total(terms)) == pytest.approx([expected["low"], expected["nominal"], expected["high"]], rel=1e-12)


def test_the_published_ann_counts_padding(traces):
    found = hw_models.estimate(traces["conv"], accounting="published")
    conv0 = next(row for row in found.per_layer if row.name == "conv0")
    assert conv0.ann.nominal == pytest.approx(traces["conv"]["conv0"].dense_padded * 4.6e-12)


def test_recurrent_anns_see_every_step(traces):
    assert hw_models.estimate(traces["recurrent"]).ann_steps == traces["recurrent"].n_steps
    once = hw_models.estimate(traces["recurrent"], ann_steps=1)
    assert once.ann.nominal * traces["recurrent"].n_steps == pytest.approx(
        hw_models.estimate(traces["recurrent"]).ann.nominal
    )


def test_a_static_input_may_be_reused(traces):
    trace = traces["conv"]
    plain, reused = (hw_models.estimate(trace, reuse_static=r) for r in (False, True))
    row = trace["conv0"]
    spared = 3 * row.dense * 4.6e-12
    added = 3 * row.n_outputs * 0.9e-12
    assert plain.energy.nominal - reused.energy.nominal == pytest.approx(spared - added, rel=1e-9)


# laws


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("accounting", ["published", "operations", "with-memory"])
def test_parts_add_up(traces, name, accounting):
    found = hw_models.estimate(traces[name], accounting=accounting, precision="int32")
    assert sum(row.energy.nominal for row in found.per_layer) == pytest.approx(found.energy.nominal, rel=1e-12)
    assert sum(found.by_source.values()) == pytest.approx(found.energy.nominal, rel=1e-12)
    assert sum(row.ann.high for row in found.per_layer) == pytest.approx(found.ann.high, rel=1e-12)
    energies = sample_energies(found.trace, found.terms)
    assert energies.mean() == pytest.approx(found.energy.nominal, rel=1e-12)
    for values in (found.energy, found.ann, found.ratio, found.sampling, found.ratio_sampling):
        assert values.low <= values.nominal <= values.high


@pytest.mark.parametrize("accounting", ["operations", "with-memory"])
def test_merged_traces_cost_the_mean(accounting):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), spiking.LIF(threshold=0.3), nn.Linear(6, 3))
    parts = []
    for seed in (1, 2):
        x = (torch.rand(4, 3, 8, generator=torch.Generator().manual_seed(seed)) < 0.4).float()
        with record(model) as trace, torch.no_grad():
            model(x)
        parts.append(trace)
    each = [hw_models.estimate(t, accounting=accounting).energy.nominal for t in parts]
    merged = hw_models.estimate(EventTrace.merge(parts), accounting=accounting).energy.nominal
    assert merged == pytest.approx(sum(each) / 2, rel=1e-12)


def test_a_ratio_with_itself_is_one_without_an_interval(traces):
    found = hw_models.estimate(traces["mlp"], precision="int32", accounting="with-memory")
    assert found.energy.high > 2 * found.energy.low
    assert hw_models.ratio(found, found) == (1, 1, 1)


def test_shared_constants_cancel_in_the_ratio(traces):
    found = hw_models.estimate(traces["mlp"], precision="int32", accounting="with-memory")
    apart = (found.energy.low / found.ann.high, found.energy.high / found.ann.low)
    assert apart[0] < found.ratio.low < found.ratio.nominal < found.ratio.high < apart[1]


@given(
    counts=st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=5),
    prices=st.lists(st.tuples(st.floats(0.1, 10), st.floats(1, 4), st.floats(1, 4)), min_size=5, max_size=5),
    u=st.lists(st.floats(0, 1), min_size=5, max_size=5),
)
@settings(deadline=None, max_examples=60)
def test_no_choice_of_constants_leaves_the_interval_of_the_ratio(counts, prices, u):
    a, b, at = [], [], [[], []]
    for g, (n, m) in enumerate(counts):
        low, up, further = prices[g]
        price = Interval(low, low * up, low * up * further)
        drawn = low * (up * further) ** u[g]
        for side, (terms, count) in enumerate(((a, n), (b, m + 1))):
            terms.append(Term("", "", count, price, str(g)))
            at[side].append(count * drawn)
    found = ratio_of(a, b)
    assert found.low * (1 - 1e-9) <= sum(at[0]) / sum(at[1]) <= found.high * (1 + 1e-9)


@pytest.mark.parametrize("name", ["fp32_add", "fp32_mul", "sram_8KiB"])
def test_a_dearer_constant_moves_what_holds_it(traces, name):
    chip = hw_models.load("digital-45nm")
    c = chip[name]
    dearer = dataclasses.replace(c, value=c.value * 1.01, high=c.high * 1.01)
    other = dataclasses.replace(chip, constants={**chip.constants, name: dearer})
    for accounting in ("published", "operations", "with-memory"):
        before, after = (hw_models.estimate(traces["conv"], h, accounting=accounting) for h in (chip, other))
        used = c in before.constants and (accounting == "with-memory" or name != "sram_8KiB")
        assert (after.energy.nominal > before.energy.nominal) == used
        for row, more in zip(before.per_layer, after.per_layer):
            assert more.energy.nominal >= row.energy.nominal


def test_twice_the_spikes_cost_twice_the_accumulates():
    layer = nn.Linear(16, 5, bias=False)
    few = torch.zeros(2, 3, 16)
    few[:, :, :4] = 1
    many = few.clone()
    many[:, :, 4:8] = 1
    with record(layer) as a:
        layer(few)
    with record(layer) as b:
        layer(many)
    assert hw_models.estimate(b).energy.nominal == pytest.approx(2 * hw_models.estimate(a).energy.nominal, rel=1e-12)


def test_the_bootstrap_is_as_wide_as_the_samples_differ():
    layer = nn.Linear(10, 4, bias=False)
    x = torch.zeros(1, 200, 10)
    for b in range(200):
        x[0, b, : b % 10] = 1
    with record(layer) as trace:
        layer(x)
    found = hw_models.estimate(trace)
    energies = np.array([(b % 10) * 4 * 0.9e-12 for b in range(200)])
    np.testing.assert_allclose(sample_energies(trace, found.terms), energies, rtol=1e-12)
    error = energies.std() / np.sqrt(200)
    assert found.sampling.low == pytest.approx(energies.mean() - 1.645 * error, rel=0.02)
    assert found.sampling.high == pytest.approx(energies.mean() + 1.645 * error, rel=0.02)
    assert hw_models.estimate(trace, seed=0).sampling == found.sampling


@pytest.mark.parametrize(
    ("neuron", "price"),
    [
        (spiking.IF(reset="zero"), 2 * 0.9),
        (spiking.IF(), 3 * 0.9),
        (spiking.LIF(reset="zero"), 3.7 + 2 * 0.9),
        (spiking.LIF(), 3.7 + 3 * 0.9),
        (spiking.LIF(decay_input=True, threshold=0.1), 2 * 3.7 + 3 * 0.9),
        (spiking.CuBaLIF(), 2 * 3.7 + 4 * 0.9),
        (spiking.AdaptiveLIF(), 2 * 3.7 + 6 * 0.9),
    ],
    ids=lambda v: str(v)[:30],
)
def test_one_update_with_one_spike_costs_what_the_neuron_states(neuron, price):
    model = nn.Sequential(neuron)
    with record(model) as trace, torch.no_grad():
        model(torch.full((1, 1, 1), 2.0))
    assert trace.layers[0].counts["spikes"].tolist() == [1]
    assert hw_models.estimate(trace).energy.nominal == pytest.approx(price * 1e-12)


def test_leakage_counts_where_a_chip_states_it(traces, leaky):
    found = hw_models.estimate(traces["mlp"], leaky)
    plain = hw_models.estimate(traces["mlp"])
    assert found.by_source["leakage"] == pytest.approx(6 * 2e-3 * 5e-9)
    assert found.energy.nominal - plain.energy.nominal == pytest.approx(6 * 2e-3 * 5e-9)
    assert found.ann.nominal - plain.ann.nominal == pytest.approx(1 * 2e-3 * 5e-9)
    assert found.latency == pytest.approx((30e-9, 30e-9, 36e-9))
    assert plain.latency is None


@pytest.fixture
def leaky(tmp_path):
    """The 45 nm chip with an interval for every constant used here, static power and a step time."""
    from spiking.hw_models import hardware

    text = (hardware._CHIPS / "digital-45nm.toml").read_text(encoding="utf-8")
    text = text.replace("value = 0.9\nunit", "value = 0.9\nhigh = 1.0\nunit").replace(
        "value = 3.7", "value = 3.7\nhigh = 4.0"
    )
    extra = (
        '[[constant]]\nname = "static_power"\nvalue = 2\nhigh = 3\nunit = "mW"\nsource = "horowitz2014"\nmark = "D"\n'
        '[[constant]]\nname = "step_time"\nvalue = 5\nhigh = 6\nunit = "ns"\nsource = "horowitz2014"\nmark = "D"\n'
    )
    path = tmp_path / "leaky.toml"
    path.write_text(
        text.replace("[sources]", extra + "[sources]").replace('"digital-45nm"', '"leaky"', 1), encoding="utf-8"
    )
    return path


# warnings


def spikes(*shape: int, rate: float = 0.4, seed: int = 0) -> Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


class Chain(nn.Module):
    """Linear, neurons, an optional function of the spikes, linear."""

    def __init__(self, change: Any = None, bias: bool = True, threshold: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.lif, self.second = (
            nn.Linear(8, 6, bias),
            spiking.LIF(threshold=threshold),
            nn.Linear(6, 3, bias),
        )
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        s = self.lif(self.first(x))
        return self.second(s if self.change is None else self.change(s))


def found_by(model: nn.Module, x: Tensor, **options: Any) -> dict[str, list[str]]:
    """Warnings by code of one recorded pass."""
    with record(model) as trace, torch.no_grad():
        model(x)
    return by_code(hw_models.estimate(trace, **options))


def by_code(found: hw_models.Estimate) -> dict[str, list[str]]:
    codes: dict[str, list[str]] = {}
    for code, text in found.warnings:
        codes.setdefault(code, []).append(text)
    return codes


def test_w01_analogue_operands_inside():
    bad = found_by(Chain(lambda s: s * torch.linspace(0.1, 0.77, 6).exp()), spikes(4, 2, 8))
    assert bad["W01"][0].startswith("second gets analogue values")
    assert "W01" not in found_by(Chain(), spikes(4, 2, 8))
    assert "W01" not in found_by(Chain(), torch.rand(4, 2, 8))  # the first layer is W02's


def test_w02_direct_coding():
    bad = found_by(Chain(), torch.rand(4, 2, 8))
    assert bad["W02"] == ["first reads analogue input: its operations are MACs, not accumulates."]
    sparse = torch.rand(4, 2, 8, generator=torch.Generator().manual_seed(0)) * spikes(4, 2, 8, rate=0.25)
    share = int((sparse != 0).sum()) / sparse.numel()
    assert found_by(Chain(), sparse)["W02"] == [
        "first reads analogue input: its operations are MACs, not accumulates; "
        f"hardware that skips zeros would need {share:.0%} of them."
    ]
    assert "W02" not in found_by(Chain(), spikes(4, 2, 8))


def test_w03_graded_operands():
    bad = found_by(Chain(lambda s: s + s.roll(1, -1)), spikes(4, 2, 8))
    assert "second gets graded values (after an addition or a scaling; multiples of 1)" in bad["W03"][0]
    counts = found_by(Chain(), spikes(4, 2, 8) + spikes(4, 2, 8, seed=1))
    assert "first gets graded values (event counts as input" in counts["W03"][0]
    assert "W03" not in found_by(Chain(), spikes(4, 2, 8))


def test_w03_says_what_the_published_accounting_does(traces):
    texts = by_code(hw_models.estimate(traces["conv"], accounting="published"))["W03"]
    assert texts == [
        "conv1 gets graded values (after average pooling; multiples of 0.25): priced as accumulates, as papers do."
    ]


def test_w04_static_input():
    still = spikes(1, 2, 8).expand(4, 2, 8)
    assert found_by(Chain(), still)["W04"][0].endswith("its operations are counted in all 4 steps.")
    assert found_by(Chain(), still, reuse_static=True)["W04"][0].endswith("counted only once.")
    assert "W04" not in found_by(Chain(), spikes(4, 2, 8))


def test_w07_padding(traces):
    texts = by_code(hw_models.estimate(traces["conv"], accounting="published"))["W07"]
    assert texts == ["conv0: multiplications with zero padding are counted, 19% more than there are."]
    assert "W07" not in by_code(hw_models.estimate(traces["conv"]))
    assert "W07" not in by_code(hw_models.estimate(traces["mlp"], accounting="published"))


def test_w08_dropped_operations(traces):
    text = by_code(hw_models.estimate(traces["mlp"], accounting="published"))["W08"][0]
    share = 1 - golden("mlp", "FP32")["total_pJ"]["published"] / golden("mlp", "FP32")["total_pJ"]["operations"]
    assert text.startswith(f"{share:.0%} of the operations' energy is dropped")
    assert "most of it at lif0" in text
    assert "W08" not in by_code(hw_models.estimate(traces["mlp"]))
    assert "W08" not in found_by(nn.Linear(8, 4, bias=False), spikes(2, 2, 8), accounting="published")


def test_w09_memory(traces):
    assert "W09" in by_code(hw_models.estimate(traces["mlp"]))
    assert "W09" not in by_code(hw_models.estimate(traces["mlp"], accounting="with-memory"))


def test_w06_means_are_no_rates():
    quarter = spikes(4, 2, 8) * 0.25
    text = found_by(Chain(), quarter, accounting="published")["W06"][0]
    rate = float((quarter != 0).float().mean())
    assert text.startswith(f"first: the mean of the operand ({rate / 4:.3g}) is not its rate of events ({rate:.3g})")
    assert "W06" not in found_by(Chain(), spikes(4, 2, 8), accounting="published")
    assert "W06" not in found_by(Chain(), quarter)


def test_w10_precision():
    texts = found_by(Chain(), spikes(4, 2, 8), hardware="loihi", precision="fp32")["W10"]
    assert texts[0].startswith("loihi computes with integers; an FP32 network beside it compares different precisions")
    assert "W10" not in found_by(Chain(), spikes(4, 2, 8), hardware="loihi")
    assert "W10" not in found_by(Chain(), spikes(4, 2, 8), precision="fp32")
    assert "W10" not in found_by(Chain(), spikes(4, 2, 8), hardware="cpu", precision="fp32")


def test_w11_a_network_of_few_bits_is_the_fair_twin(traces):
    found = hw_models.estimate(traces["mlp"])
    assert by_code(found)["W11"] == [
        f"6 steps of spikes say no more than 3-bit activations: against that network the ratio is "
        f"{found.fair.ratio.nominal:.3g}, not {found.ratio.nominal:.3g}."
    ]
    assert "W11" not in by_code(hw_models.estimate(traces["mlp"], "cpu"))


def test_w12_batch_norm():
    def net() -> nn.Module:
        return nn.Sequential(Frames(nn.Conv2d(1, 2, 3)), Frames(nn.BatchNorm2d(2)), Neuron())

    x = spikes(2, 2, 1, 5, 5)
    assert found_by(net().train(), x)["W12"] == [
        "1.layer was recorded in training mode; call model.eval() before recording."
    ]
    lone = nn.Sequential(Neuron(), Frames(nn.BatchNorm2d(1))).eval()
    assert "1.layer cannot be folded" in found_by(lone, x)["W12"][0]
    assert "W12" not in found_by(net().eval(), x)


class Attention(nn.Module):
    """Two heads of spikes (or of floats) that multiply each other, over [T, B, tokens, features]."""

    def __init__(self, spiking_heads: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k = nn.Linear(8, 6), nn.Linear(8, 6)
        self.fire = spiking.LIF(threshold=0.2) if spiking_heads else nn.Identity()
        self.fire_k = spiking.LIF(threshold=0.2) if spiking_heads else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.fire(self.q(x)), self.fire_k(self.k(x))
        return q @ k.transpose(-1, -2)


def test_w13_products_of_attention():
    floats = found_by(Attention(False), spikes(3, 2, 5, 8))["W13"]
    macs = 3 * 5 * 5 * 6
    assert floats == [
        f"q@k is a matrix product of two operands that are not spikes: priced as {macs} MACs per sample, not accumulates."
    ]
    assert "W13" not in found_by(Attention(True), spikes(3, 2, 5, 8))
    assert found_by(Attention(True), spikes(3, 2, 5, 8), accounting="published")["W13"][0].endswith("as papers do.")


def test_products_of_spikes_cost_the_pairs_that_meet():
    model, x = Attention(True), spikes(3, 2, 5, 8)
    with record(model) as trace, torch.no_grad():
        scores = model(x)
    row = next(r for r in trace.layers if r.kind == "matmul")
    assert row.ac.tolist() == scores.flatten(1).sum(1).long().tolist()  # of zeros and ones: the products themselves
    assert not row.mac.any()
    price = hw_models.estimate(trace).per_layer[trace.layers.index(row)].energy.nominal
    assert price * 2 == pytest.approx(float(scores.sum()) * 0.9e-12)


def test_w14_silent_layers():
    assert found_by(Chain(threshold=1e6), spikes(4, 2, 8))["W14"][0].startswith("lif is silent (rate 0.0e+00)")
    half_dead = Chain()
    with torch.no_grad():
        half_dead.first.weight[:4] = 0
        half_dead.first.bias[:4] = -1
        half_dead.first.bias[4:] = 1
    assert found_by(half_dead, spikes(4, 2, 8))["W14"] == ["lif: 67% of the neurons never spiked."]
    lively = Chain()
    with torch.no_grad():
        lively.first.bias += 1
    assert "W14" not in found_by(lively, spikes(4, 2, 8))


def test_w15_accuracy(traces):
    assert "W15" in by_code(hw_models.estimate(traces["mlp"]))
    assert "W15" not in by_code(hw_models.estimate(traces["mlp"], accuracy=0.9))


def test_w16_converters():
    plain = found_by(nn.Linear(200, 4), spikes(4, 2, 200), hardware="rram-crossbar")
    assert "W16" not in plain
    few = found_by(nn.Linear(200, 4), spikes(4, 2, 200), hardware="rram-crossbar", adc_bits=6)
    assert few["W16"] == ["rram-crossbar: converters of 6 bits; 9 lose nothing. State the accuracy with 6."]
    cells = found_by(nn.Linear(200, 4), spikes(4, 2, 200), hardware="rram-crossbar", accounting="published")
    assert cells["W16"] == ["rram-crossbar: the figure has no converters, buffers or neurons in it."]


def test_w17_mixed_sources(traces):
    assert by_code(hw_models.estimate(traces["mlp"], "digital-sram"))["W17"][0].startswith(
        "digital-sram: constants of other nodes: "
    )
    assert by_code(hw_models.estimate(traces["mlp"], "loihi"))["W17"] == [
        "what loihi cannot do, and the equal ANN, are priced with digital-45nm, scaled to 14 nm."
    ]
    assert "not scaled to 22 nm" in by_code(hw_models.estimate(traces["mlp"], "seneca"))["W17"][0]
    assert "W17" not in by_code(hw_models.estimate(traces["mlp"]))


def test_w21_operating_points(traces):
    assert by_code(hw_models.estimate(traces["mlp"], "seneca"))["W21"][0].startswith(
        "seneca: the price per event is an average"
    )
    assert "W21" not in by_code(hw_models.estimate(traces["mlp"], "truenorth"))


def test_w22_models_and_pre_silicon(traces):
    assert by_code(hw_models.estimate(traces["mlp"], "loihi"))["W22"][0].startswith(
        "loihi: the constants come from a model"
    )
    assert "W22" not in by_code(hw_models.estimate(traces["mlp"], "loihi-sanafe"))


def test_w18_single_sources(traces, leaky):
    assert by_code(hw_models.estimate(traces["mlp"]))["W18"] == [
        "digital-45nm: no interval is known for fp32_add, fp32_mul: one source each."
    ]
    assert "W18" not in by_code(hw_models.estimate(traces["mlp"], leaky))
    assert "W18" not in by_code(hw_models.estimate(traces["mlp"], precision="int32"))


def test_w19_leakage(traces, leaky):
    assert "digital-45nm: leakage is not included" in by_code(hw_models.estimate(traces["mlp"]))["W19"][0]
    assert "W19" not in by_code(hw_models.estimate(traces["mlp"], leaky))


def test_w20_few_samples():
    assert found_by(Chain(), spikes(4, 99, 8))["W20"] == ["only 99 samples recorded; 100 or more give a stable mean."]
    assert "W20" not in found_by(Chain(), spikes(4, 100, 8))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_networks_raise_the_expected_warnings(traces, name):
    from golden_nets import NETS

    codes = by_code(hw_models.estimate(traces[name]))
    for expected in NETS[name]["expected_warnings"]:
        code, layer = expected.split()[:2]
        assert any(text.startswith(layer) for text in codes[code]), expected
    unwanted = {"W01", "W02", "W03", "W04"} - {e.split()[0] for e in NETS[name]["expected_warnings"]}
    assert not unwanted & set(codes)


# errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "got precision='fp8'; expected one of fp32, fp16, int32, int8"),
        ({"accounting": "all"}, "got accounting='all'; expected one of published, operations, with-memory"),
        ({"accuracy": 97.0}, "got accuracy=97.0; expected a fraction between 0 and 1"),
        ({"ann_steps": 0}, "got ann_steps=0; expected 1 or more"),
        ({"ann_zeros": 1.0}, "got ann_zeros=1.0; expected a fraction from 0 to less than 1"),
        ({"hardware": "loihi9"}, "got 'loihi9'; expected a .toml file or a known chip"),
    ],
)
def test_wrong_arguments_are_named(traces, options, message):
    with pytest.raises(SpikingError, match=message):
        hw_models.estimate(traces["mlp"], **options)


def test_empty_traces_and_other_things_are_refused():
    with pytest.raises(SpikingError, match="got a trace of zero samples"):
        hw_models.estimate(EventTrace())
    with pytest.raises(SpikingError, match="got str; expected an EventTrace"):
        hw_models.estimate("run.h5")  # type: ignore[arg-type]


def test_unknown_neurons_are_named(traces):
    class Odd(Neuron):
        def describe(self) -> dict[str, Any]:
            return {"type": "Odd", "state_vars": 1}

    model = nn.Sequential(Odd())
    with record(model) as trace:
        model(torch.rand(2, 1, 3))
    with pytest.raises(SpikingError, match="layer 0: got a neuron of type Odd without its operations"):
        hw_models.estimate(trace)


def test_ratios_want_equal_terms(traces):
    a, b = (hw_models.estimate(traces["mlp"], precision=p) for p in ("fp32", "fp16"))
    with pytest.raises(SpikingError, match="ratio: got precision fp32 and fp16"):
        hw_models.ratio(a, b)


def test_compare_prices_one_trace_on_each_chip(traces, leaky):
    found = hw_models.compare(traces["mlp"], ["digital-45nm", leaky], precision="fp16")
    assert [(e.hardware.name, e.precision) for e in found] == [("digital-45nm", "fp16"), ("leaky", "fp16")]


def test_summaries_say_both_intervals(traces):
    text = hw_models.estimate(traces["mlp"], precision="int32", accuracy=0.9).summary()
    assert text.startswith("SNN/ANN energy 3.69 (ANN, int32 weights, 3-bit activations; ")
    assert "over the constants; " in text
    assert "over 2 samples" in text
    unknown = hw_models.estimate(traces["mlp"], "arm")
    assert "constants without a known interval" in unknown.summary()


# twins, draws, other hardware


def test_the_fair_twin_has_as_many_bits_as_the_steps_can_say():
    for steps, name in ((1, "q1"), (3, "q2"), (5, "q3"), (7, "q3"), (8, "q4"), (10, "q4"), (255, "q8")):
        trace = validation.counted(ac=1000, dense=1000, n_steps=steps)
        found = hw_models.estimate(trace)
        assert [t.name for t in found.twins] == [name, "int8", "fp32"]
        assert found.fair is found.twins[0]


def test_multipliers_follow_the_width_of_the_activation():
    """Energy of a product is a power of both widths; the exponent comes from the 8 and the 32 bit multiplier."""
    prices = Prices(hw_models.load("digital-45nm"), "int8")
    exponent = np.log(3.1 / 0.2) / np.log(16)
    for bits in (2, 3, 4):
        price, group = prices.multiplication(bits)
        assert price.nominal == pytest.approx(0.2e-12 * (bits / 8) ** exponent)
        assert price.high == pytest.approx(0.2e-12)
        assert group == f"horowitz-mul at {bits} bit"
    assert prices.multiplication(8) == prices.operation("mul")
    wide, _ = Prices(hw_models.load("digital-45nm"), "fp32").multiplication(3)
    assert wide.nominal == pytest.approx(3.7e-12 * (3 / 24) ** (np.log(3.7 / 1.1) / (2 * np.log(24 / 11))))


def test_twins_of_one_bit_add_only():
    trace = validation.counted(ac=10, dense=1000)
    assert hw_models.estimate(trace).fair.energy.nominal == pytest.approx(1000 * 0.9e-12)


def test_at_the_break_even_rate_both_cost_the_same():
    torch.manual_seed(0)
    for rate in (0.1, 0.3):
        model = Chain(bias=False)
        with record(model) as trace, torch.no_grad():
            model(spikes(4, 8, 8, rate=rate))
        found = hw_models.estimate(trace, "digital-sram")
        for twin in found.twins:
            r = twin.break_even.nominal / found.spike_rate
            active = [t for t in found.terms if t.follows in ("syn", "spikes")]
            moving = total(active).nominal
            assert found.energy.nominal - moving + r * moving == pytest.approx(twin.energy.nominal, rel=1e-9)
            assert (twin.ratio.nominal < 1) == (found.spike_rate < twin.break_even.nominal)


def test_silent_networks_have_no_break_even():
    model = Chain(threshold=1e6, bias=False)
    with record(model) as trace, torch.no_grad():
        model(torch.zeros(4, 2, 8))
    assert all(twin.break_even is None for twin in hw_models.estimate(trace).twins)


@pytest.mark.parametrize("chip", hw_models.available())
@pytest.mark.parametrize("name", GOLDEN)
def test_every_chip_prices_every_network(traces, name, chip):
    found = hw_models.estimate(traces[name], chip)
    assert 0 < found.energy.low <= found.energy.nominal <= found.energy.high
    assert sum(found.by_source.values()) == pytest.approx(found.energy.nominal, rel=1e-12)
    rows = sum(row.energy.nominal for row in found.per_layer)
    assert rows + found.by_source["leakage"] == pytest.approx(found.energy.nominal, rel=1e-12)
    drawn, bounds = found.energy_drawn, found.energy
    assert bounds.low * (1 - 1e-9) <= drawn.low <= drawn.nominal <= drawn.high <= bounds.high * (1 + 1e-9)
    for twin in found.twins:
        assert twin.ratio.low * (1 - 1e-6) <= twin.ratio_drawn.low
        assert twin.ratio_drawn.high <= twin.ratio.high * (1 + 1e-6)
        assert twin.ratio.low <= twin.ratio.nominal <= twin.ratio.high
    assert set(found.sources) >= {c.source for c in found.constants}
    assert set(found.accountings()) == {"published", "operations", "with-memory"}
    assert hw_models.ratio(found, found) == (1, 1, 1)
    shares = found.shares
    assert sum(shares.values()) == pytest.approx(1) or not any(shares.values())
    assert all(term.source in found.by_source for term in (*found.terms, *found.ann_terms))


@pytest.mark.parametrize("chip", hw_models.available())
def test_a_dearer_constant_moves_every_chip_that_uses_it(traces, chip):
    """Of each constant that an estimate used: 1 % more never lowers the energy, and energies move for the others not."""
    hardware = hw_models.load(chip)
    before = hw_models.estimate(traces["mlp"], hardware)
    for c in before.constants:
        if c.chip != hardware.name or c.si_unit not in ("J", "W"):
            continue
        dearer = dataclasses.replace(c, value=c.value * 1.01, high=max(c.high, c.value * 1.01))
        changed = dataclasses.replace(hardware, constants={**hardware.constants, c.name: dearer})
        after = hw_models.estimate(traces["mlp"], changed)
        moved = after.energy.nominal / before.energy.nominal - 1
        assert -1e-12 <= moved <= 0.01 + 1e-12


def test_low_bounds_of_a_processor_that_reuses_what_it_read():
    """Registers hold the accumulators, and each weight is read once per step and sample."""
    layer = nn.Linear(64, 32, bias=False)
    with record(layer) as trace, torch.no_grad():
        layer(torch.ones(3, 2, 64))
    found = hw_models.estimate(trace, "digital-sram")
    events = 3 * 64 * 32
    accumulators = next(t for t in found.terms if t.source == "accumulators")
    assert accumulators.amount == 2 * events
    assert accumulators.price.low == pytest.approx(32 * 0.009e-12)
    assert accumulators.price.nominal == pytest.approx(5e-12)
    weights = next(t for t in found.terms if t.source == "weights")
    assert weights.amount == events
    assert weights.price.low == pytest.approx(0.5 * 10e-12)  # every weight is needed in every step: nothing to save


def test_analogue_input_runs_on_the_host_of_an_event_processor():
    model = Chain()
    with record(model) as trace, torch.no_grad():
        model(torch.rand(4, 2, 8))
    found = hw_models.estimate(trace, "truenorth")
    assert found.by_source["host"] > 0
    texts = by_code(found)["W02"]
    assert texts == ["first reads analogue input: its operations are MACs on a digital host, not accumulates."]
    assert hw_models.estimate(trace, "cpu").by_source["host"] == 0


def test_processors_that_do_not_skip_zeros_pay_every_step():
    trace = validation.counted(ac=10, dense=1000, n_steps=5)
    found = hw_models.estimate(trace, "cpu")
    assert found.energy.nominal == pytest.approx(5 * 1000 * 8.6e-9)
    assert found.ratio.nominal == pytest.approx(5)


def test_static_power_is_paid_at_the_tick_and_in_real_time():
    trace = validation.counted(ac=1000, n_steps=4)
    found = hw_models.estimate(trace, "truenorth")
    assert found.latency.nominal == pytest.approx(4e-3)
    assert found.by_source["leakage"] == pytest.approx(4e-3 * 64.43058684e-3)
    odin = hw_models.estimate(trace, "odin")
    assert odin.latency.nominal == pytest.approx(1000 * 2 / 75e6)
    assert odin.realtime.nominal == pytest.approx(1000 * 8.43e-12 + 4e-3 * (27.3e-6 + 75 * 1.78e-6))
    assert hw_models.estimate(trace, "seneca").realtime is None


def test_lanes_and_a_clock_give_a_time(tmp_path):
    from spiking.hw_models import hardware

    text = (hardware._CHIPS / "digital-45nm.toml").read_text(encoding="utf-8")
    extra = "".join(
        f'[[constant]]\nname = "{name}"\nvalue = {value}\nunit = "{unit}"\nsource = "horowitz2014"\nmark = "D"\n'
        for name, value, unit in (("lanes", 4, "1"), ("clock", 100, "MHz"), ("bandwidth", 1, "GB/s"))
    )
    path = tmp_path / "timed.toml"
    path.write_text(text.replace("[sources]", extra + "[sources]"), encoding="utf-8")
    trace = validation.counted(ac=1000)
    assert hw_models.estimate(trace, path).latency.nominal == pytest.approx(1000 / 4e8)
    with_memory = hw_models.estimate(trace, path, accounting="with-memory")
    assert with_memory.latency.nominal == pytest.approx(3000 * 4 / 1e9)


def test_chips_must_be_one_or_more(traces):
    with pytest.raises(SpikingError, match="estimate: got chips=0; expected 1 or more"):
        hw_models.estimate(traces["mlp"], "loihi", chips=0)


def test_unknown_accountings_are_named(traces):
    with pytest.raises(
        SpikingError, match="got accounting='honest'; expected one of published, operations, with-memory"
    ):
        hw_models.estimate(traces["mlp"], accounting="honest")


def test_the_published_crossover_needs_a_twin_that_skips_its_zeros():
    """Without reuse, digital-sram crosses at T·r = 1: 20 % at T = 5. 5.7 % follows if the twin skips 71 % of its work."""
    rates = []
    for zeros in (0.0, 0.71):
        trace = validation.counted(ac=5 * 14_592, dense=256_000, updates=5_000, n_steps=5)
        trace.layers.insert(0, trace.layers.pop())  # neurons first: the weights read activations
        found = hw_models.estimate(trace, "digital-sram", precision="int8", ann_zeros=zeros)
        rates.append(found.fair.break_even.nominal)
    assert rates == pytest.approx([0.2, 0.057], abs=0.002)
