"""Spikes, states and gradients of other libraries' neurons, number by number (tests/golden/interop, tests/golden/iir_snn)."""

import json

import numpy as np
import pytest
import torch

from spiking import LIF, CuBaLIF, ParametricLIF
from spiking import functional as F
from spiking import surrogate as sg

STATE, GRADIENT = 1e-5, 1e-4  # relative to the largest entry: float32 sums in another order than the peer's


def _names(golden_file):
    from pathlib import Path

    return sorted(json.loads((Path(__file__).parent / "golden" / golden_file).read_text()))


def _surrogate(text):
    family, _, argument = text.partition("(")
    value = float(argument.rstrip(")").split("=")[1])
    return {"ATan": sg.ATan, "Sigmoid": sg.Sigmoid, "atan": sg.ATan, "fast_sigmoid": sg.FastSigmoid}[family](value)


def _spikingjelly(p):
    common = {
        "threshold": p["v_threshold"],
        "reset": "subtract" if p["v_reset"] is None else "zero",
        "v_reset": p["v_reset"] or 0.0,
        "surrogate": _surrogate(p["surrogate"]),
    }
    leak = {"decay_input": p.get("decay_input", False), "v_leak": p["v_reset"] or 0.0}
    if p["cls"] == "IFNode":
        return LIF(beta=1.0, detach_reset=p["detach_reset"], **common)
    if p["cls"] == "LIFNode":
        return LIF(beta=1 - 1 / p["tau"], detach_reset=p["detach_reset"], **leak, **common)
    if p["cls"] == "ParametricLIFNode":
        return ParametricLIF(beta=1 - 1 / p["init_tau"], **leak, **common)
    return CuBaLIF(beta=p["v_decay"], beta_syn=p["c_decay"], **common)


def _snntorch(p, golden):
    delay = p.get("reset_delay", True)
    vector = next((golden[key] for key in ("p_beta", "beta_vec", "p_beta_vec") if key in golden), None)
    beta = p["beta"] if vector is None else torch.tensor(vector)
    reset = p.get("reset_mechanism", "subtract")
    learn = "g_beta" in golden
    start = beta.clamp(0, 1) if isinstance(beta, torch.Tensor) else min(beta, 1.0)
    layer = LIF(
        beta=start,
        threshold=p["threshold"],
        reset=reset,
        surrogate=_surrogate(p["surrogate"]),
        tie="gt",
        detach_reset=delay,
        reset_delay=delay,
        residual_reset=not delay and reset == "subtract",
        learn_beta=learn,
        learn_threshold="g_threshold" in golden,
    )
    if learn:
        layer.beta.data.copy_(beta)
    return layer


def _check(layer, g, states):
    x = torch.tensor(g["x"]).requires_grad_()
    start = None
    if "v" in g and layer.rule.v_reset:
        start = layer.state_type(torch.full(x.shape[1:], layer.rule.v_reset))
    spikes, last = layer(x, state=start, return_state=True)
    assert torch.equal(spikes.detach(), torch.tensor(g["s"]))
    if states:
        _close(last.v.detach(), g["v"][-1], STATE)
    (spikes * torch.tensor(g["c"])).sum().backward()
    _close(x.grad, g["gx"], GRADIENT)
    for name, p in layer.named_parameters():
        _close(p.grad, g[f"g_{name}"], GRADIENT)


def _close(got, expected, relative):
    expected = torch.as_tensor(expected)
    assert (got - expected).abs().max() <= relative * expected.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("name", [n for n in _names("interop/neurons.json") if n.startswith("sj.")])
def test_spikingjelly_neurons(name, golden):
    params = json.loads((golden / "interop/neurons.json").read_text())[name]["params"]
    with np.load(golden / "interop/neurons.npz") as arrays:
        g = {key.split("/")[1]: arrays[key] for key in arrays.files if key.startswith(name + "/")}
    _check(_spikingjelly(params), g, states=True)


@pytest.mark.parametrize("name", [n for n in _names("interop/neurons.json") if n.startswith("snn.")])
def test_snntorch_leaky_in_all_its_resets(name, golden):
    params = json.loads((golden / "interop/neurons.json").read_text())[name]["params"]
    with np.load(golden / "interop/neurons.npz") as arrays:
        g = {key.split("/")[1]: arrays[key] for key in arrays.files if key.startswith(name + "/")}
    # With a delayed reset to zero the peer stores the membrane before the reset, as ours does.
    _check(_snntorch(params, g), g, states=True)


TIES = {
    "sj": {},
    "sinabs": {},
    "norse": {"tie": "gt"},
    "snn_delay": {"tie": "gt", "reset_delay": True},
    "snn_nodelay": {"tie": "gt", "residual_reset": True},
}


def test_exact_threshold_hits(golden):
    with np.load(golden / "interop/ties.npz") as ties:
        x = torch.tensor(ties["x"])
        cases = [key for key in ties.files if key != "x"]
        for key in cases:
            peer, setting = key.split("/")
            beta, reset = setting.removeprefix("beta").split("_")
            flags = dict(TIES[peer])
            if reset == "zero":
                flags.pop("residual_reset", None)
            spikes, _ = F.lif(x, beta=float(beta), reset=reset, **flags)
            assert torch.equal(spikes, torch.tensor(ties[key]).to(spikes.dtype)), key
    assert len(cases) == 16


def _canonical(entry, name):
    defaults = {
        "snn.atan": 2.0,
        "snn.fast_sigmoid": 25.0,
        "snn.sigmoid": 25.0,
        "sj.PiecewiseQuadratic": 1.0,
        "sj.PiecewiseExp": 1.0,
        "sj.Sigmoid": 4.0,
        "sj.SoftSign": 2.0,
        "sj.SuperSpike": 1.0,
        "sj.ATan": 2.0,
        "sj.Erf": 2.0,
        "sj.Rect": 1.0,
    }
    params = entry["params"]
    family = name.rsplit(".", 1)[0]
    value = defaults.get(family) if params == "defaults" else next(iter(params.values()))
    table = {
        "snn.straight_through_estimator": lambda: sg.StraightThrough(),
        "snn.atan": lambda: sg.ATan(value),
        "snn.fast_sigmoid": lambda: sg.FastSigmoid(value),
        "snn.sigmoid": lambda: sg.Sigmoid(value),
        "sj.PiecewiseQuadratic": lambda: sg.Triangle(value),
        "sj.PiecewiseExp": lambda: sg.Exponential(value),
        "sj.Sigmoid": lambda: sg.Sigmoid(value),
        "sj.SoftSign": lambda: sg.FastSigmoid(value, scale=value / 2),
        "sj.SuperSpike": lambda: sg.SuperSpike(value),
        "sj.ATan": lambda: sg.ATan(value),
        "sj.Erf": lambda: sg.Gaussian(value),
        "sj.PiecewiseLeakyReLU": lambda: (
            sg.PiecewiseLeakyReLU() if params == "defaults" else sg.PiecewiseLeakyReLU(params["w"], params["c"])
        ),
        "sj.Rect": lambda: sg.Rectangle(value),
        "sj.DeterministicPass": lambda: sg.StraightThrough(),
        "no.super": lambda: sg.FastSigmoid(1.0),
        "no.tanh": lambda: sg.Sigmoid(2 * value, scale=2 / value),
        "no.triangle": lambda: sg.Triangle(1.0, scale=value),
        "no.heavi_erfc": lambda: sg.Gaussian(value, scale=2 / value),
        "si.SingleExponential.Single.th1": lambda: sg.Exponential(2.0, scale=2.0),  # 2·scale·Exp(1/(w·theta)), w = .5
        "si.Gaussian.Single.th1": lambda: sg.Gaussian(1 / (0.5 * 2**0.5)),
    }
    return table[family.removesuffix(".0")]()


@pytest.mark.parametrize("name", _names("interop/surrogates.json"))
def test_canonical_surrogates(name, golden):
    entry = json.loads((golden / "interop/surrogates.json").read_text())[name]
    curve = _canonical(entry, name)
    with np.load(golden / "interop/surrogates.npz") as arrays:
        u, expected = torch.tensor(arrays["x"]), torch.tensor(arrays[f"{name}/d"])
    got = curve.grad(u)
    assert got.isfinite().all()
    usable = expected.isfinite()  # one peer overflows to NaN far below the threshold; ours must be finite there
    if name.startswith(("sj.Rect", "sj.PiecewiseLeakyReLU")):
        half_width = curve.width if isinstance(curve, sg.PiecewiseLeakyReLU) else 0.5 / curve.alpha
        usable &= (u.abs() - half_width).abs() > 1e-6  # float rounding decides at the very edge
    assert (got - expected)[usable].abs().max() <= 1e-5 * max(1.0, expected[usable].abs().max().item())
    assert usable.sum() > 100


@pytest.mark.parametrize("case", ["dyadic", "dyadic_leak", "edge", "randn", "t1"])
def test_the_normalised_neuron_of_iir_snn(case, golden):
    with np.load(golden / "iir_snn/neuron.npz") as arrays:
        g = {key.split("/")[1]: torch.tensor(arrays[key]) for key in arrays.files if key.startswith(case + "/")}
    x = g["I"].unsqueeze(1).requires_grad_()
    beta, threshold = g["leak"].clone().requires_grad_(), g["v"].clone().requires_grad_()
    spikes, v = F.lif(
        x,
        beta=beta,
        threshold=threshold,
        tie="gt",
        normalize=True,
        detach_reset=True,
        surrogate=sg.Triangle(1.0, scale=0.3),
    )
    assert torch.equal(spikes.squeeze(1), g["spike"])
    torch.testing.assert_close(v.squeeze(0), g["u"][-1], rtol=0, atol=1e-14)
    (spikes.squeeze(1) * g["grad_spike"]).sum().add((v.squeeze(0) * g["grad_u_final"]).sum()).backward()
    torch.testing.assert_close(x.grad.squeeze(1), g["grad_I"], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(beta.grad, g["grad_leak"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(threshold.grad, g["grad_v"], rtol=1e-12, atol=1e-12)
