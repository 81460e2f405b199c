"""Layers on sequences: folding time, chunked = whole = stepwise, norms over T·B, and clear refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from spiking import layer
from spiking.errors import SpikingError
from spiking.neuron import LIF


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGE_LAYERS = [
    pytest.param(
        lambda: (layer.Conv2d(2, 3, 3, padding=1, stride=2), nn.Conv2d(2, 3, 3, padding=1, stride=2)), id="conv"
    ),
    pytest.param(lambda: (layer.AvgPool2d(2), nn.AvgPool2d(2)), id="avg-pool"),
    pytest.param(lambda: (layer.MaxPool2d(2), nn.MaxPool2d(2)), id="max-pool"),
]


@pytest.mark.parametrize("pair", IMAGE_LAYERS)
def test_each_time_step_is_what_torch_gives(pair):
    ours, theirs = pair()
    theirs.load_state_dict(ours.state_dict())
    x = seeded(4, 3, 2, 7, 6)
    y = ours(x)
    assert y.shape[:2] == (4, 3)
    for t in range(4):
        assert_close(y[t], theirs(x[t]), rtol=1e-6, atol=1e-6)
        assert_close(ours(x[t]), theirs(x[t]), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 3, 2, 6, 6), (4, 0, 2, 6, 6), (1, 1, 2, 6, 6)])
def test_empty_and_single_sequences_keep_their_axes(shape):
    assert layer.Conv2d(2, 5, 3)(torch.zeros(shape)).shape == (*shape[:2], 5, 4, 4)


def test_a_non_contiguous_sequence_gives_the_same():
    conv, x = layer.Conv2d(2, 3, 3), seeded(3, 4, 2, 6, 6)
    assert_close(conv(x.transpose(0, 1).contiguous().transpose(0, 1)), conv(x), rtol=0, atol=0)


def test_linear_is_torchs():
    ours = layer.Linear(5, 2)
    x = seeded(3, 4, 5)
    assert_close(ours(x), nn.functional.linear(x, ours.weight, ours.bias), rtol=0, atol=0)


def test_flatten_keeps_time_and_batch():
    assert layer.Flatten()(torch.zeros(6, 2, 3, 4, 5)).shape == (6, 2, 60)
    assert layer.Flatten()(torch.zeros(6, 2, 3)).shape == (6, 2, 3)


def test_dropout_draws_one_mask_for_all_steps():
    torch.manual_seed(0)
    y = layer.Dropout(0.4)(torch.ones(5, 3, 200))
    assert all(torch.equal(y[0], y[t]) for t in range(5))
    assert y.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert abs((y[0] == 0).float().mean().item() - 0.4) < 0.06  # 600 draws: three standard deviations


def test_dropout_does_nothing_in_evaluation():
    x = seeded(5, 3, 20)
    assert layer.Dropout(0.9).eval()(x) is x


@pytest.mark.parametrize(
    ("kind", "shape", "axes"),
    [
        (layer.BatchNorm1d, (6, 5, 3), (0, 1)),
        (layer.BatchNorm2d, (6, 5, 3, 4, 2), (0, 1, 3, 4)),
    ],
)
def test_batch_norm_takes_its_statistics_over_time_and_batch(kind, shape, axes):
    x = 3 * seeded(*shape) + 2
    mean, var = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
    norm = kind(3)
    assert_close(norm(x), (x - mean) / torch.sqrt(var + norm.eps), rtol=1e-5, atol=1e-5)
    assert_close(norm.running_mean, 0.1 * mean.flatten(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "plain", "shape"),
    [
        (layer.TDBatchNorm1d, layer.BatchNorm1d, (6, 5, 3)),
        (layer.TDBatchNorm2d, layer.BatchNorm2d, (6, 5, 3, 4, 2)),
    ],
)
def test_threshold_dependent_norm_is_batch_norm_times_alpha_threshold(ours, plain, shape):
    x = 3 * seeded(*shape) + 2
    td, bn = ours(3, threshold=0.5, alpha=0.7), plain(3)
    for _ in range(2):
        assert_close(td(x), 0.35 * bn(x), rtol=1e-5, atol=1e-6)
    assert_close(td.running_var, bn.running_var)
    assert td.num_batches_tracked == 2
    td.eval(), bn.eval()
    assert_close(td(x), 0.35 * bn(x), rtol=1e-5, atol=1e-6)


def test_threshold_dependent_norm_has_an_affine_part_on_top():
    td = layer.TDBatchNorm1d(2, threshold=2.0)
    x = seeded(4, 5, 2)
    plain = td(x)
    with torch.no_grad():
        td.weight.copy_(torch.tensor([3.0, 1.0]))
        td.bias.copy_(torch.tensor([0.0, 4.0]))
    assert_close(td(x), plain * torch.tensor([3.0, 1.0]) + torch.tensor([0.0, 4.0]), rtol=1e-5, atol=1e-5)
    assert layer.TDBatchNorm1d(2, affine=False)(x).shape == x.shape


def network() -> layer.Sequential:
    torch.manual_seed(0)
    inner = layer.Sequential(layer.Flatten(), layer.Dropout(0.3), layer.Linear(27, 5), LIF())
    return layer.Sequential(
        layer.Conv2d(2, 3, 3), layer.BatchNorm2d(3), LIF(beta=0.8), layer.MaxPool2d(2), nn.ReLU(), inner
    )


@given(cuts=st.lists(st.integers(1, 8), max_size=3), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_whole_chunked_and_stepwise_agree(cuts, seed):
    net, x = network().eval(), 3 * seeded(9, 2, 2, 8, 8, seed=seed)
    whole = net(x)
    state, parts = None, []
    for start, end in zip([0, *sorted(set(cuts))], [*sorted(set(cuts)), 9]):
        part, state = net(x[start:end], state=state, return_state=True)
        parts.append(part)
    # The same spikes: only the size of the matrix products differs between the three.
    assert_close(torch.cat(parts), whole, rtol=0, atol=0)
    state, parts = None, []
    for x_t in x:
        s_t, state = net.step(x_t, state)
        parts.append(s_t)
    assert_close(torch.stack(parts), whole, rtol=0, atol=0)


def test_dropout_keeps_its_mask_when_a_sequence_is_continued():
    net = layer.Sequential(layer.Dropout(0.5))
    x = torch.ones(6, 2, 50)
    head, state = net(x[:3], return_state=True)
    tail, state = net(x[3:], state=state, return_state=True)
    last, _ = net.step(x[0], state)
    assert torch.equal(head[0], tail[0])
    assert torch.equal(head[0], last)


def test_calls_do_not_remember():
    net, x = network().eval(), seeded(5, 2, 2, 8, 8)
    net(seeded(3, 7, 2, 8, 8, seed=1))
    assert_close(net(x), net(x), rtol=0, atol=0)


def test_gradients_reach_every_parameter():
    net = network()
    net(3 * seeded(5, 2, 2, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: layer.Conv2d(2, 3, 3)(torch.zeros(5, 5, 5)),
            r"Conv2d: got input of shape \[5, 5, 5\]; expected \[T, B, C",
        ),
        (
            lambda: layer.Conv2d(2, 3, 3)(torch.zeros(4, 1, 3, 8, 8)),
            r"Conv2d: got .*\[4, 1, 3, 8, 8\]; expected 2 channels",
        ),
        (lambda: layer.Linear(4, 2)(torch.zeros(2, 3)), r"Linear: got input of shape \[2, 3\]; expected 4 features"),
        (lambda: layer.Flatten()(torch.zeros(2, 3)), r"Flatten: got input of shape \[2, 3\]"),
        (lambda: layer.BatchNorm1d(3)(torch.zeros(2, 2, 3, 4)), r"BatchNorm1d: got input of shape \[2, 2, 3, 4\]"),
        (lambda: layer.TDBatchNorm2d(3)(torch.zeros(2, 3)), r"TDBatchNorm2d: got input of shape \[2, 3\]"),
        (lambda: layer.TDBatchNorm2d(3, threshold=0.0), r"TDBatchNorm2d.threshold: got 0.0"),
        (lambda: layer.TDBatchNorm1d(3, alpha=-1.0), r"TDBatchNorm1d.alpha: got -1.0"),
        (
            lambda: layer.Sequential(nn.Conv2d(2, 3, 3))(torch.zeros(4, 1, 2, 8, 8)),
            r'layer "0": torch\.nn\.Conv2d: got input of shape \[4, 1, 2, 8, 8\]; it knows no time axis\. '
            r"Use spiking\.Conv2d in its place",
        ),
        (
            lambda: layer.Sequential(nn.Conv2d(2, 3, 3)).step(torch.zeros(1, 2, 8, 8)),
            r'layer "0": torch\.nn\.Conv2d: .* Use spiking\.Conv2d',
        ),
        (
            lambda: layer.Sequential(nn.Flatten())(torch.zeros(4, 1, 2, 8, 8)),
            r'layer "0": torch\.nn\.Flatten: .* Use spiking\.Flatten',
        ),
        (
            lambda: layer.Sequential(nn.BatchNorm1d(3))(torch.zeros(3, 3, 3)),
            r'layer "0": torch\.nn\.BatchNorm1d: .* Use spiking\.BatchNorm1d',
        ),
        (lambda: layer.Dropout(1.0), r"Dropout.p: got 1.0; expected 0 <= p < 1"),
        (
            lambda: layer.Sequential(LIF())(torch.zeros(2, 1, 3), state=(None, None)),
            r"Sequential.state: got 2 entries; expected 1",
        ),
        (
            lambda: layer.Sequential(layer.Linear(4, 2))(torch.zeros(2, 1, 3)),
            r'layer "0": Linear: got input of shape \[2, 1, 3\]',
        ),
        (
            lambda: layer.Sequential(layer.Flatten()).step(torch.zeros(2)),
            r'layer "0": Flatten: got input of shape \[1, 2\]',
        ),
    ],
)
def test_refusals_name_the_culprit(call, message):
    with pytest.raises(SpikingError, match=message):
        call()


class Twice(LIF):
    """A neuron with a forward of its own."""

    def forward(self, x, state=None, return_state=False):
        return super().forward(2 * x, state, return_state)


@pytest.mark.parametrize("before", [layer.AvgPool2d(2), layer.MaxPool2d(2)])
def test_a_forward_of_ones_own_is_what_runs_after_a_pool(before):
    x = seeded(4, 2, 3, 6, 6)
    assert torch.equal(layer.Sequential(before, Twice())(x), LIF()(2 * before(x)))
