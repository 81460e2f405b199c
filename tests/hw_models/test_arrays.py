"""Arrays: nodal solutions, converters and products against published ones, physics, noise against resampled devices.

golden/devices: xbar_* are badcrossbar 1.1.0's nodal solutions (own matrices for G_eff), parity to 1e-9; converters and weight maps are
computed as their sources do, to 1e-12; crosssim_mvm are CrossSim's products, in float32 inside, to 1e-6.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.hw_models.arrays import Crossbar
from spiking.hw_models.cellfile import load_cell
from spiking.hw_models.curves import Constant, Proportional
from spiking.hw_models.devices import Cell
from spiking.hw_models.effects import Faults, ProgrammingNoise, Telegraph, WhiteNoise
from spiking.hw_models.placement import ArrayConfig, affine, place, sign_magnitude
from spiking.hw_models.wires import Wires, effective_matrix, solve_nodes
from torch.testing import assert_close

from spiking import SpikingError

ARRAYS = ("1x6", "6x1", "3x5", "8x8", "12x12_rb0", "12x12_rw0", "16x10_asym", "32x32_sparse", "64x64")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64)


def plain(**effects) -> Cell:
    return Cell("plain", 1e-6, 40e-6, **effects)


# Wires


@pytest.mark.parametrize("name", ARRAYS)
def test_nodal_solutions(golden, name):
    with np.load(golden / "devices" / f"xbar_{name}.npz") as d:
        table = dict(d)
    G, V = torch.from_numpy(table["G_S"]), torch.from_numpy(table["V_V"])
    wires = Wires(float(table["r_wl_ohm"]), float(table["r_bl_ohm"]))
    found, matrix = solve_nodes(G, V, wires), effective_matrix(G, wires)

    def near(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())

    near(found.I_out, table["I_out_A"])
    near((V.T @ matrix).numpy(), table["I_out_A"])
    for key, ours in (("V_wl", found.V_wl), ("V_bl", found.V_bl), ("I_device_A", found.I_device)):
        if key in table:
            near(ours.reshape(table[key].shape), table[key])
    if "G_eff_S" in table:
        np.testing.assert_allclose(matrix.numpy(), table["G_eff_S"], rtol=1e-9, atol=0)
    near((V.T @ effective_matrix(G, Wires())).numpy(), table["I_ideal_A"])


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
OHMS = st.floats(0.01, 100)


@given(size=SIZES, word=OHMS, bit=OHMS, ends=st.tuples(st.floats(0, 500), st.floats(0, 500)), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_the_effective_matrix_is_the_nodal_solution(size, word, bit, ends, seed):
    G, V = rand(*size, seed=seed) * 1e-4, rand(size[0], 2, seed=seed + 1)
    G[rand(*size, seed=seed + 2) < 0.3] = 0
    wires = Wires(word, bit, *ends)
    exact = torch.from_numpy(solve_nodes(G, V, wires).I_out)
    assert_close(V.T @ effective_matrix(G, wires), exact, rtol=1e-9, atol=1e-15)


@given(size=SIZES, word=OHMS, bit=OHMS, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_reciprocity(size, word, bit, seed):
    """Driving the outputs and reading at the inputs is the same circuit, seen in a mirror."""
    G = rand(*size, seed=seed) * 1e-4
    there = solve_nodes(G, torch.eye(size[0], dtype=torch.float64), Wires(word, bit)).I_out
    mirrored = G.T.flip(0, 1)
    back = solve_nodes(mirrored, torch.eye(size[1], dtype=torch.float64), Wires(bit, word)).I_out
    np.testing.assert_allclose(back[::-1, ::-1].T, there, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("wires", [Wires(2.0, 5.0), Wires(0.5, 0.5, 300.0, 50.0), Wires(0.0, 3.0), Wires(3.0, 0.0)])
def test_currents_and_power_are_conserved(wires):
    G, V = rand(12, 7) * 1e-4, rand(12, 1, seed=1)
    found = solve_nodes(G, V, wires)
    w, b, I = found.V_wl[..., 0], found.V_bl[..., 0], found.I_device[..., 0]
    drivers = I.sum(1)
    assert found.I_out.sum() == pytest.approx(drivers.sum(), rel=1e-10)
    dissipated = (I * (w - b)).sum()
    along_word = np.cumsum(I[:, ::-1], axis=1)[:, ::-1]  # current in each piece of a word line
    along_bit = np.cumsum(I, axis=0)
    dissipated += wires.word * (along_word**2).sum() + wires.driver * (along_word[:, 0] ** 2).sum()
    dissipated += wires.bit * (along_bit**2).sum() + wires.sense * (along_bit[-1] ** 2).sum()
    assert (drivers * V[:, 0].numpy()).sum() == pytest.approx(dissipated, rel=1e-10)


def test_sneak_paths_reach_outputs_without_a_device():
    G = rand(10, 10) * 1e-3
    G[2, 3] = 0
    matrix = effective_matrix(G, Wires(5.0, 5.0))
    assert float(matrix[2, 3]) > 0
    assert bool((matrix.sum(1) <= G.sum(1)).all())


def test_a_floating_row_carries_sneak_current_and_a_grounded_one_does_not():
    G, V = rand(4, 4) * 1e-3, torch.tensor([[1.0], [0], [0], [0]], dtype=torch.float64)
    floating = torch.tensor([False, True, True, True])
    wires = Wires(1.0, 1.0)
    found = solve_nodes(G, V, wires, floating)
    assert float(np.abs(found.I_device[1:]).max()) > 1e-9
    assert_close(V.T @ effective_matrix(G, wires, floating), torch.from_numpy(found.I_out), rtol=1e-9, atol=0)
    G[1] = 0  # hangs on nothing
    assert bool(torch.isfinite(effective_matrix(G, wires, floating)).all())


def test_a_batch_of_arrays_is_each_array():
    G = rand(3, 2, 5, 4) * 1e-4
    wires = Wires(1.0, 2.0)
    each = torch.stack([torch.stack([effective_matrix(g, wires) for g in row]) for row in G])
    assert_close(effective_matrix(G, wires), each, rtol=1e-12, atol=0)


# Weights on devices, converters


def test_weight_maps(golden):
    with np.load(golden / "devices" / "devices.npz") as d:
        W, table = torch.from_numpy(d["conv_W"]).T, dict(d)
    single = place(W, Cell("a", 1e-6, 25e-6))
    assert_close(single.targets[0] * 1e6, torch.from_numpy(table["conv_single_G"]), rtol=1e-12, atol=1e-12)
    several = place(W, Cell("a", 0.5e-6, 25e-6), ArrayConfig(significance=(1.0, 4.0)))
    assert_close(several.targets.flatten(0, 1) * 1e6, torch.from_numpy(table["conv_npair_G"]), rtol=1e-12, atol=1e-12)
    one = place(W, Cell("a", 9e-6, 88.199997e-6), ArrayConfig(pairing="offset"))
    assert_close(one.targets[0, 0] * 1e6, torch.from_numpy(table["conv_sdev_G"]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        ArrayConfig(pairing="one-sided"),
        ArrayConfig(pairing="two-sided"),
        ArrayConfig(pairing="offset"),
        ArrayConfig(pairing="offset", scale="column"),
        ArrayConfig(scale="column"),
        ArrayConfig(significance=(1.0, 4.0)),
        ArrayConfig(rows=5, columns=3),
        ArrayConfig(rows=5, input_bits=24, adc_bits=28),
        ArrayConfig(weight_bits=24, slices=3, pairing="two-sided"),
        ArrayConfig(input_bits=24, serial_bits=5),
        ArrayConfig(pairing="offset", input_bits=24),
    ],
    ids=repr,
)
def test_every_way_of_placing_weights_is_the_same_product(config):
    weight, x = torch.randn(7, 12, generator=generator(), dtype=torch.float64), rand(4, 12) - 0.5
    assert_close(Crossbar(weight, "ideal", config)(x), x @ weight.T, rtol=1e-5, atol=1e-5)


def test_converters(golden):
    with np.load(golden / "devices" / "converters.npz") as d:
        x = torch.from_numpy(d["x"])
        for bits in (2, 4, 8):
            for name, found in (
                (f"adc_affine_{bits}", affine(x, bits, -1, 1)),
                (f"adc_signmag_{bits}", sign_magnitude(x, bits)),
                (f"dac_unsigned_{bits}", affine(x.abs(), bits)),
            ):
                assert_close(found, torch.from_numpy(d[name]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "bits", "config"),
    [
        ("y_ideal", 0, {}),
        ("y_wbits8", 7, {}),
        ("y_wbits4", 3, {}),
        ("y_dac4", 0, {"input_bits": 4}),
        ("y_adc6", 0, {"adc_bits": 6}),
        ("y_adc8dac8", 0, {"adc_bits": 8, "input_bits": 8}),
        ("y_slice2", 0, {"weight_bits": 8, "slices": 2}),
        ("y_slice4", 0, {"weight_bits": 8, "slices": 4}),
    ],
)
def test_crosssims_products(golden, name, bits, config):
    with np.load(golden / "devices" / "crosssim_mvm.npz") as d:
        W, x, y = (torch.from_numpy(d[key]) for key in ("W", "x", name))
    array = Crossbar(W, replace(plain(), bits=bits), ArrayConfig(input_range=1.0, **config))
    assert_close(array(x), y, rtol=0, atol=1e-6)


@given(
    bits=st.integers(3, 9),
    slices=st.integers(1, 4),
    inputs=st.integers(3, 8),
    serial=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_lossless_slicing_is_the_integer_product(bits, slices, inputs, serial, seed):
    slices = min(slices, bits - 1)
    top, full = 2 ** (bits - 1) - 1, 2 ** (inputs - 1) - 1
    W = torch.randint(-top, top + 1, (5, 9), generator=generator(seed)).double()
    x = torch.randint(-full, full + 1, (3, 9), generator=generator(seed + 1)).double()
    W[0, 0], x[:, 0] = top, full
    config = ArrayConfig(weight_bits=bits, slices=slices, input_bits=inputs, serial_bits=serial)
    assert_close(Crossbar(W, plain(), config)(x), x @ W.T, rtol=1e-9, atol=1e-7)


def test_a_granular_converter_loses_nothing_where_it_has_a_level_for_every_step():
    W = torch.tensor([[3.0, -2, 1, 0], [1, 1, -3, 2]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0]], dtype=torch.float64)
    config = ArrayConfig(weight_bits=3, adc_bits=6, adc_range="granular")
    assert_close(Crossbar(W, plain(), config)(x), x @ W.T, rtol=1e-12, atol=1e-12)


def test_analogue_and_digital_sums_agree_without_a_converter_and_differ_with_one():
    W, x = torch.randn(5, 9, generator=generator(), dtype=torch.float64), rand(3, 9)
    bits = {"input_bits": 6, "serial_bits": 1}
    digital, analogue = (Crossbar(W, plain(), ArrayConfig(**bits, analogue_sum=a))(x) for a in (False, True))
    assert_close(digital, analogue, rtol=1e-9, atol=1e-12)
    coarse = [Crossbar(W, plain(), ArrayConfig(**bits, analogue_sum=a, adc_bits=5))(x) for a in (False, True)]
    assert not torch.equal(*coarse)


def test_a_calibrated_converter_resolves_what_occurs():
    W, x = torch.randn(8, 64, generator=generator(), dtype=torch.float64), (rand(200, 64) < 0.1).double()
    errors = []
    for adc_range in ("max", "calibrated"):
        array = Crossbar(W, plain(), ArrayConfig(adc_bits=6, adc_range=adc_range))
        if adc_range == "calibrated":
            with pytest.raises(SpikingError, match="got 'calibrated' before any data were seen"):
                array(x)
            array.calibrate(x)
        errors.append(float((array(x) - x @ W.T).square().mean().sqrt()))
    assert errors[1] < errors[0] / 4
    assert array.clipped < 0.01


def test_converter_noise_and_offset():
    W, x = torch.zeros(50, 4, dtype=torch.float64), torch.ones(400, 4, dtype=torch.float64)
    noisy = Crossbar(W, plain(), ArrayConfig(adc_noise=0.04))
    unit = 1.0  # of a weight that is fully on, W_max = 1 for weights of 0
    assert float(noisy(x).std()) == pytest.approx(0.04 * unit, rel=0.03)
    assert not torch.equal(noisy(x), noisy(x))
    offset = Crossbar(W, plain(), ArrayConfig(adc_offset=0.04), seed=4)
    assert torch.equal(offset(x), offset(x))
    assert bool((offset(x) == offset(x)[0]).all())
    assert 0.02 < float(offset(x)[0].std()) < 0.06


# Tiles


def test_each_tile_has_a_converter_of_its_own():
    W, x = torch.randn(5, 20, generator=generator(), dtype=torch.float64), rand(3, 20)
    whole = Crossbar(W, plain(), ArrayConfig(adc_bits=6, adc_range=4.0))
    tiled = Crossbar(W, plain(), ArrayConfig(adc_bits=6, adc_range=4.0, rows=7))
    top = float(W.abs().max())
    parts = [
        sign_magnitude(x[:, i : i + 7] / x.amax(1, keepdim=True) @ W[:, i : i + 7].T / top, 6, 4.0) for i in (0, 7, 14)
    ]
    assert_close(tiled(x), sum(parts) * top * x.amax(1, keepdim=True), rtol=1e-9, atol=1e-9)
    assert not torch.equal(whole(x), tiled(x))
    assert (whole.n_tiles, tiled.n_tiles) == (2, 6)


def test_wires_are_those_of_each_tile():
    W = torch.randn(9, 12, generator=generator(), dtype=torch.float64)
    config = ArrayConfig(rows=5, columns=4, wires=Wires(20.0, 20.0))
    array, targets = Crossbar(W, plain(), config), place(W, plain()).targets[0]
    expected = torch.empty_like(targets)
    for rows in (slice(0, 5), slice(5, 10), slice(10, 12)):
        for columns in (slice(0, 4), slice(4, 8), slice(8, 9)):
            for side in (0, 1):
                block = targets[side][rows, columns]
                volts = torch.eye(len(block), dtype=torch.float64)
                expected[side][rows, columns] = torch.from_numpy(solve_nodes(block, volts, config.wires).I_out)
    weights = (expected[0] - expected[1]) * float(W.abs().max()) / 39e-6
    assert_close(array.matrix, weights.T, rtol=1e-9, atol=1e-9)


def test_devices_do_not_depend_on_the_tiles():
    W = torch.randn(9, 12, generator=generator())
    noisy = plain(programming=ProgrammingNoise(Constant(1.0)))
    assert torch.equal(
        Crossbar(W, noisy, seed=3).matrix, Crossbar(W, noisy, ArrayConfig(rows=5, columns=4), seed=3).matrix
    )


# Noise


@pytest.mark.parametrize(
    ("cell", "config"),
    [
        ("rram-40nm", ArrayConfig()),
        ("pcm", ArrayConfig(wires=Wires(0.35, 0.35))),
        ("rram-wan", ArrayConfig(weight_bits=6, slices=2)),
        ("rram-cmo", ArrayConfig(pairing="offset")),
        (plain(telegraph=Telegraph(0.5, 0.5, 1e5, 1e-6, 1.0), reads=(WhiteNoise(Proportional(0.05)),)), ArrayConfig()),
    ],
    ids=str,
)
def test_output_moments_are_those_of_resampled_devices(cell, config):
    """2,000 reads of every device: mean and standard deviation of each output within 5 % of the latter."""
    W, x = torch.randn(6, 40, generator=generator(), dtype=torch.float64), (rand(1, 40) < 0.6).double()
    n = 2000
    moments = Crossbar(W, cell, config, seed=2).age(3600.0)
    explicit = Crossbar(W, cell, replace(config, read="resample"), seed=2).age(3600.0)
    assert torch.equal(moments.matrix, explicit.matrix)
    sampled, direct = explicit(x.expand(n, -1)), moments(x.expand(n, -1))
    mean, std = x @ moments.matrix.T, (x**2 @ moments.variance.T).sqrt()
    for y in (sampled, direct):
        assert_close(y.std(0), std[0], rtol=0.08, atol=0)  # the worst of 6 outputs; on the average within 5 %
        assert float((y.std(0) / std[0]).mean()) == pytest.approx(1.0, abs=0.05)
        assert float(((y.mean(0) - mean[0]) / std[0]).abs().max()) < 4 / math.sqrt(n)


def test_noise_is_that_of_both_devices_not_of_their_difference():
    cell = Cell("pair", 20e-6, 80e-6, pairing="two-sided", reads=(WhiteNoise(Proportional(0.02)),))
    W = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    std = Crossbar(W, cell).variance.sqrt()[0] * 60  # µS
    assert_close(std, torch.tensor([math.hypot(1.6, 0.4), math.sqrt(2)], dtype=torch.float64))


def test_reads_repeat_with_the_seed_and_differ_from_call_to_call():
    W, x = torch.randn(6, 40, generator=generator()), rand(3, 40).float()
    a, b = (Crossbar(W, "rram-40nm", seed=5) for _ in range(2))
    first, second = a(x), a(x)
    assert not torch.equal(first, second)
    assert torch.equal(first, b(x))
    assert torch.equal(copy.deepcopy(a)(x), a(x))
    assert not torch.equal(Crossbar(W, "rram-40nm", seed=6).matrix, a.matrix)


def test_without_reads_a_product_is_its_matrix():
    W, x = torch.randn(6, 40, generator=generator()), rand(3, 40).float()
    array = Crossbar(W, "pcm", ArrayConfig(read="none"))
    assert_close(array(x), x @ array.matrix.T)
    assert torch.equal(array(x), array(x))


def test_time_goes_both_ways_and_compensation_takes_the_drift_off():
    W = torch.randn(20, 50, generator=generator(), dtype=torch.float64)
    array = Crossbar(W, "pcm", seed=1)
    new = array.matrix.clone()
    month = 30 * 86_400.0
    old = array.age(month).matrix.clone()
    assert float(old.abs().sum() / new.abs().sum()) < 0.6
    for by in ("array", "column"):
        compensated = array.age(month).compensate(by).matrix
        assert float(compensated.abs().sum()) == pytest.approx(float(new.abs().sum()), rel=1e-6)
        assert float((compensated - new).norm() / new.norm()) < 0.3 * float((old - new).norm() / new.norm())
    assert_close(compensated.abs().sum(1), new.abs().sum(1))
    assert torch.equal(array.age(0.0).matrix, new)
    x = rand(4, 50)
    converted = Crossbar(W, "pcm", ArrayConfig(input_bits=20, read="none"), seed=1).age(month).compensate("column")
    assert_close(converted(x), x @ converted.matrix.T, rtol=1e-4, atol=1e-4)


def test_a_curved_current_is_the_published_one():
    cell = replace(load_cell("rram-milo"), programming=None)
    W = torch.tensor([[1.0], [0.5]], dtype=torch.float64)
    y = Crossbar(W, cell)(torch.tensor([[1.0]], dtype=torch.float64))
    targets = place(W, cell).targets[0]  # [sides, 1, n]
    currents = cell.current.current(targets, cell.v_read)
    expected = (currents[0] - currents[1]) / (cell.v_read * (cell.G_max - cell.G_min))
    assert_close(y, expected)


# Shapes, dtypes, bad input


def test_shapes_and_dtypes():
    array = Crossbar(torch.randn(3, 5), "ideal", ArrayConfig(adc_bits=8))
    assert array(torch.rand(2, 4, 5)).shape == (2, 4, 3)
    assert array(torch.rand(5)).shape == (3,)
    assert array(torch.rand(0, 5)).shape == (0, 3)
    assert array(torch.rand(2, 5)).dtype == torch.float32
    assert Crossbar(torch.zeros(3, 5), "ideal")(torch.ones(1, 5)).tolist() == [[0, 0, 0]]
    assert "5×3, ideal, ArrayConfig(adc_bits=8)" in repr(array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adc_bits": 0}, r"ArrayConfig\.adc_bits: got 0 bits; expected 2 to 32, or None"),
        ({"input_bits": 1}, r"ArrayConfig\.input_bits: got 1 bits"),
        ({"weight_bits": 40}, r"ArrayConfig\.weight_bits: got 40 bits"),
        ({"rows": 0}, r"ArrayConfig\.rows: got 0; expected a whole number, 1 or more"),
        ({"rows": 2.5}, r"ArrayConfig\.rows: got 2\.5; expected a whole number"),
        ({"adc_bits": 3.5}, r"ArrayConfig\.adc_bits: got 3\.5 bits"),
        ({"adc_noise": -1.0}, r"ArrayConfig\.adc_noise: got -1\.0"),
        ({"read": "often"}, r"ArrayConfig\.read: got 'often'"),
        ({"scale": "row"}, r"ArrayConfig\.scale: got 'row'"),
        ({"pairing": "both"}, r"ArrayConfig\.pairing: got 'both'"),
        ({"adc_range": "wide"}, r"ArrayConfig\.adc_range: got 'wide'"),
        ({"adc_range": -2.0}, r"ArrayConfig\.adc_range: got -2\.0"),
        ({"input_range": 0.0}, r"ArrayConfig\.input_range: got 0\.0"),
        ({"slices": 2}, r"ArrayConfig\.slices: got 2 with weight_bits=None"),
        ({"slices": 8, "weight_bits": 8}, r"ArrayConfig\.slices: got 8 with weight_bits=8"),
        ({"significance": (4.0, 1.0)}, r"ArrayConfig\.significance: got \(4\.0, 1\.0\)"),
        ({"significance": (1.0, 4.0), "weight_bits": 8}, r"ArrayConfig\.significance: got several pairs"),
        ({"serial_bits": 1}, r"ArrayConfig\.serial_bits: got it without input_bits"),
        ({"wires": Wires(-1.0)}, r"Wires\.word: got -1\.0 ohms"),
        ({"wires": Wires(0.0, 1.0, 50.0)}, r"Wires\.driver: got 50\.0 ohms at the end of a wire of 0 ohms"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_names_the_field(change, message):
    with pytest.raises(SpikingError, match=message):
        ArrayConfig(**change)


def test_bad_arrays_are_refused():
    W = torch.randn(3, 5)
    with pytest.raises(
        SpikingError, match=r"ArrayConfig\.rows: got 1024; expected at most 512, those of a rram-40nm macro"
    ):
        Crossbar(W, "rram-40nm", ArrayConfig(rows=1024))
    with pytest.raises(SpikingError, match=r"Crossbar: got 1 weights that are NaN or infinite"):
        Crossbar(torch.tensor([[1.0, float("nan")]]), "ideal")
    with pytest.raises(SpikingError, match=r"Crossbar: got weights of shape \[3\]"):
        Crossbar(torch.zeros(3), "ideal")
    with pytest.raises(SpikingError, match=r"Crossbar: got input of shape \[2, 4\]; expected 5"):
        Crossbar(W, "ideal")(torch.zeros(2, 4))
    with pytest.raises(SpikingError, match=r"got t=-1; expected seconds since programming"):
        Crossbar(W, "ideal").age(-1)
    with pytest.raises(SpikingError, match=r"Crossbar\.compensate: got 'row'"):
        Crossbar(W, "pcm").compensate("row")
    with pytest.raises(SpikingError, match=r"ArrayConfig\.wires: got Wires\(.*rram-milo"):
        Crossbar(W, "rram-milo", ArrayConfig(wires=Wires(1.0, 1.0)))
    with pytest.raises(SpikingError, match=r"got 'offset' with weight_bits"):
        Crossbar(W, "ideal", ArrayConfig(pairing="offset", weight_bits=4))
    with pytest.raises(SpikingError, match=r"got 'granular' with continuous weights"):
        Crossbar(W, "ideal", ArrayConfig(adc_bits=4, adc_range="granular"))(torch.ones(5))


def test_bad_circuits_are_refused():
    with pytest.raises(SpikingError, match=r"got 1 conductances that are negative or not finite"):
        effective_matrix(torch.tensor([[1.0, -1.0]]), Wires(1.0, 1.0))
    with pytest.raises(SpikingError, match=r"got conductances of shape \[3\]"):
        effective_matrix(torch.ones(3), Wires())
    with pytest.raises(SpikingError, match=r"got voltages of shape \[3\]; expected \[2, p\]"):
        solve_nodes(torch.ones(2, 2), torch.ones(3), Wires())
    floating = torch.tensor([True, False])
    for solve in (lambda: effective_matrix(torch.ones(2, 2), Wires(0.0, 1.0), floating),
                  lambda: solve_nodes(torch.ones(2, 2), torch.ones(2, 1), Wires(0.0, 1.0), floating)):  # fmt: skip
        with pytest.raises(SpikingError, match=r"got floating rows with word lines of 0 ohms"):
            solve()


def test_faults_reach_the_product():
    W = torch.zeros(30, 40, dtype=torch.float64)
    stuck = Crossbar(W, Cell("stuck", 20e-6, 80e-6, pairing="two-sided", faults=Faults(lrs=0.5, hrs=0.5))).matrix
    assert set(stuck.unique().round(decimals=6).tolist()) == {-1.0, 0.0, 1.0}
