"""What a recording says of models that are not called as it expects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spiking
from spiking import hw_models
from spiking.errors import SpikingError

STEPS, BATCH = 4, 3


def chain() -> spiking.Sequential:
    torch.manual_seed(0)
    layers = (
        spiking.Conv2d(1, 2, 3),
        spiking.LIF(0.5, 0.1),
        spiking.Flatten(),
        spiking.Linear(32, 5),
        spiking.LIF(0.5, 0.1),
    )
    return spiking.Sequential(*layers).eval()


def images(batch: int = BATCH) -> Tensor:
    return (torch.rand(STEPS, batch, 1, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.4).float()


@torch.no_grad()
def drive(net: spiking.Sequential, x: Tensor) -> Tensor:
    out, state = [], None
    for x_t in x:
        s, state = net.step(x_t, state)
        out.append(s)
    return torch.stack(out)


@pytest.mark.parametrize("batch", [1, BATCH])
def test_a_model_that_is_driven_by_step_is_recorded_as_if_it_ran_at_once(batch: int) -> None:
    net, x = chain(), images(batch)
    with spiking.record(net, steps=STEPS, step_by_step=True, keep_spikes=1) as trace:
        for _ in range(3):
            drive(net, x)
    with torch.no_grad(), spiking.record(net, keep_spikes=1) as whole:
        for _ in range(3):
            net(x)
    assert (trace.n_steps, trace.n_samples) == (whole.n_steps, whole.n_samples) == (STEPS, 3 * batch)
    for mine, other in zip(trace.layers, whole.layers, strict=True):
        assert (mine.name, mine.in_shape, mine.operand_of) == (other.name, other.in_shape, other.operand_of)
        for counter, values in mine.counts.items():
            np.testing.assert_array_equal(values, other.counts[counter], f"{mine.name} {counter}")
        np.testing.assert_array_equal(mine.spike_count, other.spike_count)
        np.testing.assert_array_equal(mine.syn_sample, other.syn_sample)
    np.testing.assert_array_equal(trace.recordings[0].input, whole.recordings[0].input)
    np.testing.assert_array_equal(trace.recordings[0].output, whole.recordings[0].output)


def test_steps_that_are_counted_as_samples_are_spoken_of_once() -> None:
    net = chain()
    match = r"Sequential is given the state .* of 1 step\. .*step_by_step=True"
    with spiking.record(net) as trace, pytest.warns(UserWarning, match=match) as said:
        drive(net, images())
    assert len(said) == 1
    assert (trace.n_steps, trace.n_samples) == (1, STEPS * BATCH)


@pytest.mark.parametrize("options", [{}, {"steps": STEPS, "step_by_step": True}])
def test_a_model_that_is_never_called_itself_is_refused(options: dict[str, int]) -> None:
    net = spiking.models.NMNISTNet().eval()
    match = r"record: NMNISTNet itself was never called, but its layer body\.\w+ was"
    with pytest.raises(SpikingError, match=match), torch.no_grad(), spiking.record(net, **options):
        net.step(torch.zeros(2, 2, 34, 34))


class SpikingNeuron(nn.Module):
    """What the recorder knows a neuron of snnTorch by: where its class lies, and what that extends."""

    __module__ = "snntorch._neurons.neurons"
    reset_mechanism = "subtract"


class Leaky(SpikingNeuron):
    __module__ = "snntorch._neurons.leaky"

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.5 * v + x
        s = (v > 0.1).float()
        return s, v - 0.1 * s


class Looping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.leaky = nn.Linear(6, 5), Leaky()

    def forward(self, x: Tensor) -> Tensor:
        v, out = torch.zeros(len(x), 5), []
        for _ in range(STEPS):
            s, v = self.leaky(self.linear(x.flatten(1)), v)
            out.append(s)
        return torch.stack(out)


def test_a_model_that_loops_over_time_itself_is_asked_for_its_steps() -> None:
    net, x = Looping(), torch.rand(BATCH, 1, 6)
    match = rf"leaky ran {STEPS} times in one pass.*record\(\.\.\., steps={STEPS}\)"
    with torch.no_grad(), spiking.record(net):
        with pytest.warns(UserWarning, match=match):
            net(x)
        net(x)  # said once: a second warning would be an error
    with torch.no_grad(), spiking.record(net, steps=STEPS) as trace:
        net(x)
    assert (trace.n_steps, trace.n_samples) == (STEPS, BATCH)


@pytest.mark.parametrize("wrap", [lambda trace: trace, lambda trace: [trace]])
def test_a_report_of_a_trace_is_refused(wrap, tmp_path) -> None:
    net = chain()
    with torch.no_grad(), spiking.record(net) as trace:
        net(images())
    with pytest.raises(SpikingError, match=r"report: got EventTrace; expected estimates\. Call hw_models\.estimate"):
        hw_models.report(wrap(trace), tmp_path / "report.html")
