"""Crossbars: tiling, converters, wires solved node by node, and what a run costs on arrays."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from golden_nets import Frames
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.hw_models import crossbar, validation
from spiking.hw_models.digital import Prices
from torch import nn

import spiking
from spiking import hw_models, record
from spiking.errors import SpikingError

XBAR = json.loads((validation.DATA / "xbar.json").read_text())
MODELS = json.loads((validation.DATA / "models.json").read_text())


@pytest.mark.parametrize("case", XBAR["tilings"], ids=lambda c: c["name"])
def test_tilings_are_the_golden_ones(case):
    found = validation.tiling_of(case)
    assert {name: getattr(found, name) for name in case["expect"]} == pytest.approx(case["expect"], rel=1e-15)


@pytest.mark.parametrize("case", XBAR["arrays"], ids=lambda c: c["name"])
def test_nodal_reads_are_the_golden_ones(case):
    g = crossbar.conductances(np.array(case["weights_out_in"]), case["g_min_S"], case["g_max_S"])
    v = np.array(case["input_spikes"]) * case["v_read"]
    found = crossbar.read_array(g, v, case["t_read_s"], case["r_word_ohm"], case["r_bit_ohm"])
    for values, name in (
        (found.ideal_currents, "ideal_column_current_A"),
        (found.currents, "nodal_column_current_A"),
        (found.row_currents, "nodal_row_current_A"),
    ):
        np.testing.assert_allclose(values, case[name], rtol=1e-6, atol=1e-15)
    assert found.energy_ideal == pytest.approx(case["energy_ideal_J"], rel=1e-6)
    assert found.energy_ideal == pytest.approx(case["energy_fast_formula_J"], rel=1e-6)
    assert found.energy == pytest.approx(case["energy_nodal_J"], rel=1e-6)
    assert found.worst_column == pytest.approx(case["worst_column_error"], rel=1e-6, abs=1e-12)


def test_one_column_by_hand():
    """One cell between two wire segments: three conductances in series."""
    found = crossbar.read_array(np.array([[1e-3]]), np.array([0.5]), 1e-9, 10.0, 20.0)
    assert found.currents[0] == pytest.approx(0.5 / (1000 + 30))
    assert found.energy == pytest.approx(1e-9 * 0.25 / 1030)
    assert found.error == pytest.approx(0.03)


@given(st.integers(1, 6), st.integers(1, 5), st.floats(0.1, 20), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_wires_only_take_current_away(rows, cols, ohm, seed):
    rng = np.random.default_rng(seed)
    g, v = rng.uniform(1e-6, 1e-4, (rows, cols)), rng.integers(0, 2, rows) * 0.2
    found = crossbar.read_array(g, v, 1e-8, ohm, ohm)
    assert (found.currents <= found.ideal_currents * (1 + 1e-9) + 1e-18).all()
    assert found.energy <= found.energy_ideal * (1 + 1e-9)
    assert found.currents.sum() == pytest.approx(found.row_currents.sum(), rel=1e-9, abs=1e-15)  # nothing is lost


@pytest.mark.parametrize("case", MODELS["adc_pJ"], ids=lambda c: f"{c['model']}-{c['bits']}b")
def test_converters_cost_what_their_models_say(case):
    if case["model"] == "survey":
        found = crossbar.adc_survey(case["bits"], case["nm"], case["rate_hz"])
    else:
        found = crossbar.adc_k1k2(case["bits"], case["V"])
    assert found * 1e12 == pytest.approx(case["pJ"], rel=1e-6)


def test_converter_intervals_span_every_model():
    chip = hw_models.load("rram-crossbar")
    for bits in range(4, 11):
        c = chip[f"adc_{bits}b"]
        for rate in (1e8, 1.2e9):
            assert c.low <= crossbar.adc_survey(bits, 32, rate) * (1 + 1e-9) <= c.high * (1 + 2e-9)
        assert c.low <= crossbar.adc_k1k2(bits, 0.9) * (1 + 1e-9) <= c.high * (1 + 2e-9)
    eight = chip["adc_8b"]
    assert (eight.low, eight.value, eight.high) == pytest.approx((0.145e-12, 1.67e-12, 2.58e-12))
    for bits in (1, 3, 12, 16):  # beyond the published widths
        price, _ = crossbar.adc_price(Prices(chip, "int8"), "isaac", bits)
        assert 0 < price.low <= price.nominal <= price.high


# a run


def spikes(*shape: int, rate: float = 0.3, seed: int = 0) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def trace_of(model: nn.Module, x: torch.Tensor, **options: Any) -> spiking.EventTrace:
    with record(model, **options) as trace, torch.no_grad():
        model(x)
    return trace


def test_one_read_by_hand():
    """100 inputs of which 30 spike, 10 outputs: one array, 80 columns of 4 slices and 2 signs."""
    x = torch.zeros(1, 1, 100)
    x[..., :30] = 1
    found = hw_models.estimate(trace_of(nn.Linear(100, 10, bias=False), x), "rram-crossbar", accounting="operations")
    tiling = found.facts["tilings"]["Linear"]
    assert (tiling.tiles, tiling.phys_columns, tiling.adc_bits_lossless) == (1, 80, 9)
    cells, dac, hold, adc, shift = 30 * 80 * 1.83e-3, 30 * 0.391, 80 * 0.98e-3, 80 * 1.97, 4 * 10 * 0.021
    assert found.energy.nominal * 1e12 == pytest.approx(cells + dac + hold + adc + shift, rel=1e-9)
    assert found.by_source["converters"] * 1e12 == pytest.approx(dac + hold + adc, rel=1e-9)
    assert found.latency.nominal == pytest.approx(100e-9 + 80 / 1.2e9)


def test_converters_decide_the_interval():
    found = hw_models.estimate(trace_of(nn.Linear(512, 64, bias=False), spikes(4, 2, 512)), "rram-crossbar")
    assert next(iter(found.tornado)) == "adc"
    assert next(iter(found.shares)) == "adc"


def test_recorded_row_blocks_are_exact_and_lie_within_the_bounds():
    torch.manual_seed(0)
    model = nn.Sequential(
        Frames(nn.Conv2d(8, 4, 3, padding=1)), spiking.LIF(threshold=0.3), nn.Flatten(2), nn.Linear(256, 5)
    )
    x = spikes(3, 2, 8, 8, 8, rate=0.02)
    plain, exact = (trace_of(model, x, active_rows=rows) for rows in (False, True))
    for name in ("0.layer", "3"):
        row = exact[name]
        tiling = crossbar._tiling(row, hw_models.load("rram-crossbar"), 8, 8, True)
        blocks = crossbar.active_blocks(row, tiling, 128, True)
        bounds = crossbar.active_blocks(plain[name], tiling, 128, True)
        assert bounds.low <= blocks.nominal <= bounds.high
        assert blocks.low == blocks.high
    fields = nn.functional.unfold(x.flatten(0, 1), 3, padding=1).transpose(1, 2)  # [6, 64, 72]
    assert exact["0.layer"].active_rows[64] == int(
        (fields[..., :64] != 0).any(-1).sum() + (fields[..., 64:] != 0).any(-1).sum()
    )
    assert exact["0.layer"].active_rows[128] == int((fields != 0).any(-1).sum())


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 6, 3, stride=2, groups=2, dilation=2), nn.Conv3d(2, 3, 2)])
def test_row_blocks_of_other_convolutions(layer):
    shape = (2, 3, layer.in_channels, *(9, 5, 4)[: len(layer.kernel_size)])
    x = spikes(*shape, rate=0.1)
    found = trace_of(Frames(layer), x, active_rows=True).layers[0].active_rows[64]
    expected = 0
    per_group = layer.in_channels // layer.groups
    with torch.no_grad():
        layer.weight.fill_(1.0)
        for g in range(layer.groups):
            only = torch.zeros_like(x)
            only[:, :, g * per_group : (g + 1) * per_group] = x[:, :, g * per_group : (g + 1) * per_group]
            out = layer(only.flatten(0, 1)) - (0 if layer.bias is None else layer.bias.view(1, -1, *[1] * (x.ndim - 3)))
            expected += int((out[:, g * layer.out_channels // layer.groups].abs() > 1e-6).sum())
    assert found == expected


def test_gating_saves_only_where_whole_blocks_are_silent():
    x = torch.zeros(4, 1, 512)
    x[0, :, :10] = 1  # one block of four, in one step of four
    trace = trace_of(nn.Linear(512, 16, bias=False), x, active_rows=True)
    gated, plain = (
        hw_models.estimate(trace, "rram-crossbar", gating=g, accounting="operations") for g in (True, False)
    )
    cells = 10 * 128 * 1.83e-15 + 10 * 0.391e-12
    assert (plain.energy.nominal - cells) / (gated.energy.nominal - cells) == pytest.approx(16, rel=1e-9)


def test_converters_are_paid_in_every_step():
    """The bill of the converters grows with T, whatever the rate, unless row blocks are silent."""
    few, many = (trace_of(nn.Linear(64, 16), spikes(t, 1, 64, rate=0.5)) for t in (2, 8))
    costs = [hw_models.estimate(t, "rram-crossbar", gating=False).by_source["converters"] for t in (few, many)]
    assert costs[1] / costs[0] == pytest.approx(4, rel=0.05)


def test_a_quantised_network_needs_a_phase_per_bit():
    trace = trace_of(nn.Linear(64, 16, bias=False), spikes(7, 1, 64))
    found = hw_models.estimate(trace, "rram-crossbar", accounting="operations")
    quantised, eight, _ = found.twins
    assert (quantised.name, eight.name) == ("q3", "int8")
    assert eight.energy.nominal / quantised.energy.nominal == pytest.approx(8 / 3, rel=1e-9)


def test_a_macro_costs_whole_array_reads():
    x = torch.zeros(2, 1, 300)
    x[0, 0, 0] = 1  # one spike: one of two row blocks, in one of two steps
    trace = trace_of(nn.Linear(300, 10, bias=False), x, active_rows=True)
    found = hw_models.estimate(trace, "pcm-crossbar")
    assert found.energy.nominal == pytest.approx(256 * 256 * 2 / 10.5e12)
    assert hw_models.estimate(trace, "pcm-crossbar", gating=False).energy.nominal == pytest.approx(
        4 * 256 * 256 * 2 / 10.5e12
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adc": "sar"}, "got adc='sar'; expected one of isaac, survey, k1k2"),
        ({"adc_bits": 20}, "got converters of 20 bits; expected 1 to 16"),
    ],
)
def test_wrong_converters_are_named(options, message):
    trace = trace_of(nn.Linear(8, 4), spikes(2, 1, 8))
    with pytest.raises(SpikingError, match=message):
        hw_models.estimate(trace, "rram-crossbar", **options)


def test_converter_models_are_a_choice():
    trace = trace_of(nn.Linear(200, 30), spikes(4, 1, 200))
    bills = {m: hw_models.estimate(trace, "rram-crossbar", adc=m, adc_bits=8) for m in crossbar.ADC_MODELS}
    assert len({round(e.energy.nominal * 1e15) for e in bills.values()}) == 3
    assert len({round(e.energy.high * 1e15) for e in bills.values()}) == 1


def test_arrays_are_read_with_sensible_shapes():
    with pytest.raises(SpikingError, match=r"read_array: got conductance \[2, 2\] and voltages \[3\]"):
        crossbar.read_array(np.ones((2, 2)), np.ones(3), 1e-8, 1, 1)
    with pytest.raises(SpikingError, match=r"Wires\.word: got -1 ohms; expected 0 or more"):
        crossbar.read_array(np.ones((2, 2)), np.ones(2), 1e-8, -1, 1)
    assert crossbar.read_array(np.full((2, 2), 1e-3), np.ones(2), 1e-8, 0, 0).error == 0
    with pytest.raises(SpikingError, match="adc_survey: got 3 bits; expected 4 or more"):
        crossbar.adc_survey(3, 32, 1e8)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv1d(2, 3, 3, dilation=2, padding=2),
        nn.Conv2d(2, 2, 3, padding="same"),
    ],
)
def test_rows_meet_what_the_unfolded_operand_holds(layer):
    size = (6, 5)[: len(layer.kernel_size)]
    x = spikes(3, 2, layer.in_channels, *size)
    row = trace_of(Frames(layer), x).layers[0]
    counts = crossbar.row_counts(row)
    with torch.no_grad():
        per_row = layer.weight.abs().flatten(1).unflatten(0, (layer.groups, -1)).sum(1).flatten()
        layer.weight.abs_()
        if layer.bias is not None:
            layer.bias.zero_()
        out = layer(x.flatten(0, 1)).sum()
    assert float(counts @ per_row.numpy()) == pytest.approx(float(out), rel=1e-5)


@pytest.fixture
def cells(tmp_path):
    """A design with one cell per weight and sign, and its conductances; `r` ohms per segment of wire."""
    from spiking.hw_models import hardware

    text = (hardware._CHIPS / "rram-crossbar.toml").read_text(encoding="utf-8")

    def make(r: float | None = None) -> Any:
        more = [("g_min", 1, "uS"), ("g_max", 100, "uS"), ("v_read", 0.2, "V")]
        more += [("r_word", r, "ohm"), ("r_bit", r, "ohm")] if r else []
        extra = "".join(
            f'[[constant]]\nname = "{n}"\nvalue = {v}\nunit = "{u}"\nsource = "shafiee2016"\nmark = "D"\n\n'
            for n, v, u in more
        )
        path = tmp_path / f"cells{r}.toml"
        path.write_text(
            text.replace('name = "cell_bits"\nvalue = 2', 'name = "cell_bits"\nvalue = 7').replace(
                "[sources]", extra + "[sources]"
            ),
            encoding="utf-8",
        )
        return hw_models.load(path)

    return make


def test_conductances_price_the_cells_of_the_weights_themselves(cells):
    torch.manual_seed(0)
    layer = nn.Linear(60, 20, bias=False)
    x = spikes(1, 1, 60)
    found = hw_models.estimate(trace_of(layer, x), cells())
    g = crossbar.conductances(layer.weight.detach().double().numpy(), 1e-6, 100e-6)
    ideal = 0.2**2 * 100e-9 * float(x.reshape(-1).double().numpy() @ g.sum(1))
    joules = sum(t.amount * t.price.nominal for t in found.terms if t.group == "g_max")
    assert joules == pytest.approx(ideal, rel=1e-6)


def test_old_traces_have_no_magnitudes(cells):
    trace = trace_of(nn.Linear(60, 20), spikes(1, 1, 60))
    trace.layers[0].row_abs_w = np.zeros(0, np.float32)
    with pytest.raises(
        SpikingError, match="the file states conductances, and the trace has no weight magnitudes for layer Linear"
    ):
        hw_models.estimate(trace, cells())


def test_lossy_wires_are_flagged(cells):
    trace = trace_of(nn.Linear(60, 20), spikes(2, 1, 60))
    lossy = [w.text for w in hw_models.estimate(trace, cells(5.0)).warnings if w.code == "W16"]
    assert lossy
    assert "the wires of its arrays take" in lossy[0]
    assert not [w for w in hw_models.estimate(trace, cells(0.001)).warnings if w.code == "W16"]
    assert not [w for w in hw_models.estimate(trace, cells()).warnings if w.code == "W16"]
