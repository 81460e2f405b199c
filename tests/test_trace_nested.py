"""Recordings inside of one another, other threads, and layers with a forward of their own."""

from __future__ import annotations

import threading

import pytest
import torch
from spiking.cuda_kernels import watch
from torch import Tensor
from torch.testing import assert_close

import spiking
from spiking import hw_models
from spiking.errors import SpikingError


@pytest.fixture
def net() -> spiking.Sequential:
    torch.manual_seed(0)
    layers = (
        spiking.Conv2d(2, 8, 3),
        spiking.MaxPool2d(2),
        spiking.LIF(threshold=0.3),
        spiking.Flatten(),
        spiking.Linear(72, 5),
        spiking.LIF(),
    )
    return spiking.Sequential(*layers).eval()


@pytest.fixture
def x() -> Tensor:
    return (torch.rand(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def spikes(trace: spiking.EventTrace) -> list[int]:
    return [int(row.counts["spikes"].sum()) for row in trace.layers]


@torch.no_grad()
def test_recordings_of_one_model_inside_of_one_another_count_alike(net, x):
    expected = net(x)
    with spiking.record(net) as alone:
        net(x)
    with spiking.record(net) as outer, spiking.record(net) as inner:
        assert torch.equal(net(x), expected)
    assert spikes(outer) == spikes(inner) == spikes(alone)
    assert sum(spikes(alone)) > 0
    assert watch.current() is None
    assert torch.equal(net(x), expected)


def test_an_energy_loss_around_a_recording(net, x):
    with hw_models.energy_loss(net, "digital-sram") as energy, spiking.record(net) as trace:
        net(x)
    assert energy().item() > 0
    assert sum(spikes(trace)) > 0


@torch.no_grad()
def test_passes_of_other_threads_are_not_counted(net, x):
    expected, others = net(x), []
    with spiking.record(net) as trace:
        thread = threading.Thread(target=lambda: others.append(net(x)))
        thread.start()
        thread.join()
        net(x)
    assert torch.equal(others[0], expected)
    assert trace.n_samples == x.shape[1]


class Twice:
    """Gives double of what the layer would."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)  # type: ignore[misc]


class TwiceConv(Twice, spiking.Conv2d):
    pass


class TwiceMax(Twice, spiking.MaxPool2d):
    pass


class TwiceAverage(Twice, spiking.AvgPool2d):
    pass


class TwiceNorm(Twice, spiking.BatchNorm2d):
    pass


@pytest.mark.parametrize("mode", ["never", "auto", "always"])
@pytest.mark.parametrize(
    "layers",
    [
        lambda: (TwiceConv(2, 3, 3), spiking.MaxPool2d(2)),
        lambda: (TwiceConv(2, 3, 3), spiking.AvgPool2d(2)),
        lambda: (TwiceConv(2, 3, 3, bias=False), spiking.BatchNorm2d(3), spiking.AvgPool2d(2), spiking.LIF()),
        lambda: (spiking.Conv2d(2, 3, 3, bias=False), TwiceNorm(3), spiking.AvgPool2d(2), spiking.LIF()),
        lambda: (spiking.Conv2d(2, 3, 3), TwiceMax(2)),
        lambda: (spiking.Conv2d(2, 3, 3), TwiceMax(2), spiking.LIF()),
        lambda: (spiking.Conv2d(2, 3, 3), TwiceAverage(2), spiking.LIF()),
    ],
)
def test_a_forward_of_ones_own_is_never_passed_over(layers, mode, x):
    torch.manual_seed(0)
    whole = spiking.Sequential(*layers()).double()
    torch.manual_seed(0)
    apart = spiking.Sequential(*layers()).double()
    with spiking.event_driven(mode):
        expected = x.double()
        for layer in apart:
            expected = layer(expected)
        assert_close(whole(x.double()), expected)
        with spiking.record(whole.eval()), torch.no_grad():
            found = whole(x.double())
        assert_close(whole(x.double()), found)


def test_a_forward_that_an_instance_was_given_is_never_passed_over(x):
    conv = spiking.Conv2d(2, 3, 3)
    net = spiking.Sequential(conv, spiking.MaxPool2d(2))
    expected = 2 * net(x)
    plain = conv.forward
    conv.forward = lambda given: 2 * plain(given)
    assert_close(net(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"to": "none/trace.h5"},
            r"'none/trace\.h5': the trace cannot be written: expected the name of a file in a folder that exists",
        ),
        ({"to": "."}, r"'\.': the trace cannot be written"),
        ({"to": ""}, r"'': the trace cannot be written"),
        ({"to": 5}, r"to=5; expected the name of a file"),
        ({"steps": 2.5}, r"steps=2\.5; expected 1 or more, a whole number"),
    ],
)
def test_what_cannot_be_recorded_is_refused_at_the_start(net, options, message):
    with pytest.raises(SpikingError, match=message), spiking.record(net, **options):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("empty", [(4, 0), (0, 3)])
def test_an_empty_batch_is_refused(net, empty):
    with pytest.raises(SpikingError, match=r"expected at least one step of one sample"), spiking.record(net):
        net(torch.zeros(*empty, 2, 8, 8))


@pytest.mark.parametrize("layer", [spiking.Linear(2, 1), spiking.Conv2d(2, 1, 1)])
def test_complex_numbers_do_not_lose_their_imaginary_part(layer):
    with pytest.raises(RuntimeError):
        layer(torch.full((1, 2, 2, 2), 1j))
