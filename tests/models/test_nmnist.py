"""The N-MNIST networks and their frames: shapes, streaming, saving, and augmentation that depends on nothing but its seed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from spiking.datasets import NMNIST, Events, RaggedEvents
from torch.testing import assert_close

from spiking import LIF
from spiking.classify import integrate
from spiking.errors import SpikingError
from spiking.models import NMNISTConfig, NMNISTNet
from spiking.models.nmnist import EventBatches, FrameConfig, Recipe, build, hold_out, objective, proportion
from spiking.models.nmnist.baseline import counts
from spiking.models.nmnist.data import undo_saccades

CONFIGS = [
    pytest.param(
        NMNISTConfig(kind=kind, norm=norm, pool=pool, readout=readout, dropout=dropout), id=f"{kind}-{norm}-{pool}"
    )
    for kind, norm, pool, readout, dropout in (
        ("conv", "batch", "avg", "membrane", 0.0),
        ("conv", "td", "max", "rate", 0.2),
        ("conv", "none", "avg", "membrane", 0.0),
        ("mlp", "batch", "avg", "rate", 0.1),
        ("mlp", "td", "avg", "membrane", 0.0),
        ("mlp", "none", "avg", "rate", 0.0),
    )
]


def frames(T: int = 5, B: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.poisson(torch.full((T, B, 2, 34, 34), 0.4), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=CONFIGS)
def net(request) -> NMNISTNet:
    torch.manual_seed(0)
    net = NMNISTNet(request.param)
    with torch.no_grad():
        net(frames(seed=1))  # running statistics that are not those of a fresh norm
    return net


def test_frames_become_output_spikes(net):
    spikes = net(frames())
    assert spikes.shape == (5, 3, 10)
    assert set(spikes.unique().tolist()) <= {0.0, 1.0}


def test_whole_chunked_and_stepwise_agree(net):
    net.eval()
    x = frames()
    whole, membrane = net(x, return_membrane=True)
    head, state = net(x[:2], return_state=True)
    tail, last = net(x[2:], state=state, return_state=True)
    assert_close(torch.cat([head, tail]), whole, rtol=0, atol=0)
    state, steps = None, []
    for x_t in x:
        s_t, state = net.step(x_t, state)
        steps.append(s_t)
    assert_close(torch.stack(steps), whole, rtol=0, atol=0)
    assert_close(state[1].v, last[1].v, rtol=0, atol=0)
    assert membrane.shape == (5, 3, 10)


def test_the_readout_is_the_membrane_or_the_rate(net):
    net.eval()
    x = frames()
    spikes, membrane = net(x, return_membrane=True)
    expected = spikes.mean(0) if net.config.readout == "rate" else membrane.mean(0)
    assert_close(net.scores(x), expected, rtol=0, atol=0)
    labels = torch.tensor([1, 2, 3])
    found = objective()(net, x, labels)
    scores = spikes.sum(0) if net.config.readout == "rate" else membrane.mean(0)
    assert_close(found.loss, torch.nn.functional.cross_entropy(scores, labels))


def test_the_output_membrane_is_that_of_the_output_neuron(net):
    """Without a reset the integrator and the output LIF hold the same potential, so the readout is the neuron's own."""
    net.eval()
    _, membrane, (_, output) = net(frames(), return_membrane=True, return_state=True)
    assert_close(membrane[-1], output.v, rtol=0, atol=0)


def test_integration_is_a_weighted_sum_of_the_past():
    x = torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor(
        [[0.9 ** (t - s) if s <= t else 0.0 for s in range(6)] for t in range(6)], dtype=torch.float64
    )
    assert_close(integrate(x, 0.9, LIF().stored), torch.einsum("ts,sbc->tbc", weights, x))


def test_gradients_reach_every_parameter(net):
    net.train()
    objective(0.1)(net, 5 * frames(), torch.tensor([1, 2, 3])).loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_saved_and_loaded_is_the_same_model(net, tmp_path):
    net.save_pretrained(tmp_path / "model", model_card_kwargs={"trained_on": "made-up frames", "results": "none"})
    again = NMNISTNet.from_pretrained(tmp_path / "model")
    assert again.config == net.config
    assert not again.training
    assert_close(again(frames()), net.eval()(frames()), rtol=0, atol=0)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "library_name: spiking" in card
    assert "made-up frames" in card
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_a_model_folder_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(
        SpikingError, match=r"there is no model\.safetensors here; expected a folder made by save_pretrained"
    ):
        NMNISTNet.from_pretrained(tmp_path)
    NMNISTNet().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(SpikingError, match=r"model\.safetensors: not a whole safetensors file"):
        NMNISTNet.from_pretrained(tmp_path)
    file.write_bytes(whole)
    with pytest.raises(SpikingError, match=r'model\.safetensors: model tensor "body\.linear1\.weight" is missing'):
        NMNISTNet.from_pretrained(tmp_path, config=NMNISTConfig(kind="mlp"))


def test_a_hub_name_that_cannot_be_had_is_one_line(tmp_path):
    with pytest.raises(SpikingError, match=r"nobody/none: no such folder, and not to be had from the hub"):
        NMNISTNet.from_pretrained("nobody/none", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(SpikingError, match=r"no/such/folder: no such folder, and not to be had from the hub"):
        NMNISTNet.from_pretrained("no/such/folder", cache_dir=tmp_path)


def store(n: int = 12, events: int = 300, seed: int = 0) -> RaggedEvents:
    """Recordings of random events."""
    rng = np.random.default_rng(seed)
    parts = [
        Events(
            np.sort(rng.integers(0, 310_000, events)),
            rng.integers(8, 26, events),
            rng.integers(8, 26, events),
            rng.integers(0, 2, events),
            (34, 34),
        )
        for _ in range(n)
    ]
    return RaggedEvents.from_events(parts, np.arange(n) % 10)


@pytest.mark.parametrize("saccades", ["undo", "keep"])
def test_augmentation_depends_on_seed_epoch_and_index_alone(saccades):
    config = FrameConfig(saccades=saccades)
    data, again = EventBatches(store(), config=config), EventBatches(store(), config=config, threads=2)
    together, labels = data.batch(np.array([0, 5, 7]), 3)
    assert labels.tolist() == [0, 5, 7]
    again.batch(np.array([1]), 2)
    assert torch.equal(again.batch(np.array([7]), 3)[0][:, 0], together[:, 2])
    assert torch.equal(data.subset([5, 7]).batch(np.array([1]), 3)[0][:, 0], together[:, 2])
    assert not torch.equal(data.batch(np.array([7]), 4)[0][:, 0], together[:, 2])
    other = EventBatches(store(), config=config, seed=1)
    assert not torch.equal(other.batch(np.array([7]), 3)[0][:, 0], together[:, 2])


def test_without_augmentation_frames_are_the_recordings_counts():
    events = store()
    x, _ = EventBatches(events, config=FrameConfig(saccades="keep", counts="linear")).batch(np.arange(12), None)
    expected = np.zeros((6, 12, 2, 34, 34))
    for i in range(12):
        e = events[i]
        np.add.at(expected, (e.t * 6 // 315_000, i, e.p, e.y, e.x), 1)
    assert np.array_equal(x.numpy(), expected)
    logs = EventBatches(events, config=FrameConfig(saccades="keep", counts="log")).batch(np.arange(12), None)[0]
    assert torch.equal(logs, x.log1p())
    clipped = EventBatches(events, config=FrameConfig(saccades="keep")).batch(np.arange(12), None)[0]
    assert torch.equal(clipped, x.clamp(max=1))


def test_augmented_events_land_where_the_map_says():
    """One event per recording, mapped by hand: rotation · zoom · shear about the centre, then the shift."""
    config = FrameConfig(time_bins=1, saccades="keep", counts="linear", elastic=0.0)
    parts = [Events([5], [x], [y], [1], (34, 34)) for x, y in ((10, 12), (20, 9), (16, 16), (25, 22))]
    data = EventBatches(RaggedEvents.from_events(parts, np.zeros(4, int)), config=config)
    x, _ = data.batch(np.arange(4), 0)
    draws = data._draws[1]
    for i, part in enumerate(parts):
        angle, zoom, shear = math.radians(15) * draws[i, 0], 1 + 0.15 * draws[i, 1], 0.2 * draws[i, 2]
        rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        place = zoom * rotation @ np.array([[1, shear], [0, 1]]) @ [part.x[0] - 16.5, part.y[0] - 16.5]
        column, row = np.rint(place + 16.5 + 3 * draws[i, 3:5]).astype(int)
        assert x[0, i, 1, row, column] == 1
        assert x[0, i].sum() == 1


def test_elastic_displacements_are_new_each_epoch_and_the_same_for_a_seed():
    config = FrameConfig(rotation=0.0, zoom=0.0, shear=0.0, shift=0.0, elastic=1.5)
    data = EventBatches(store(), config=config, seed=4)
    first, again, next_epoch = (data.batch(np.arange(4), epoch)[0] for epoch in (0, 0, 1))
    plain, _ = data.batch(np.arange(4), None)
    assert torch.equal(first, again)
    assert not torch.equal(first, next_epoch)
    assert not torch.equal(first, plain)
    alone, _ = EventBatches(store(), config=config, seed=4).batch(np.array([2]), 0)
    assert torch.equal(alone[:, 0], first[:, 2])


def test_undoing_the_saccades_makes_a_moving_point_stand_still():
    """A point of the scene as the moving sensor sees it: the inverse of the motion, rounded to pixels."""
    t = np.arange(0, 315_000, 500)
    leg, u = t // 105_000, t % 105_000 / 105_000
    x = 20 - np.choose(leg, [4 - 3.5 * u, 0.5 - 3.5 * u, -3 + 7 * u])
    y = 15 - np.choose(leg, [2 - 7 * u, -5 + 7 * u, 2 + 0 * u])
    moving = RaggedEvents.from_events([Events(t, np.rint(x).astype(int), np.rint(y).astype(int), t * 0, (34, 34))], [0])
    still, _ = EventBatches(moving, config=FrameConfig(counts="linear")).batch(np.array([0]), None)
    row, column = divmod(int(still.sum((0, 1, 2)).argmax()), 34)
    assert (row, column) == (15, 20)
    near = still[:, 0, :, 14:17, 19:22].sum() / still.sum()
    assert near == 1
    moved, _ = EventBatches(moving, config=FrameConfig(saccades="keep", counts="linear")).batch(np.array([0]), None)
    assert moved[:, 0, :, 14:17, 19:22].sum() / moved.sum() < 0.5


def test_holding_out_keeps_the_mix_of_classes_and_every_recording():
    labels = np.repeat(np.arange(10), 20)
    train, held_out = hold_out(labels, 0.1, seed=0)
    assert sorted([*train, *held_out]) == list(range(200))
    assert np.bincount(labels[held_out]).tolist() == [2] * 10
    assert np.array_equal(hold_out(labels, 0.1, seed=0)[1], held_out)
    assert not np.array_equal(hold_out(labels, 0.1, seed=1)[1], held_out)
    assert [len(part) for part in hold_out(labels, 0.0, seed=0)] == [200, 0]


def test_the_baseline_sees_every_event_once():
    assert counts(store()).sum(1).tolist() == [300.0] * 12
    x, _ = EventBatches(store(), config=FrameConfig(saccades="keep", counts="linear")).batch(np.arange(12), None)
    assert np.array_equal(counts(store(), time_bins=6), x.transpose(0, 1).flatten(1).numpy())


def test_the_interval_is_wilsons():
    found = proportion(97, 100)
    z, n, p = 1.959963984540054, 100, 0.97
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert found[:3] == pytest.approx((0.97, centre - half, centre + half), abs=1e-12)
    assert proportion(5, 5).high == 1.0


def test_first_weights_depend_on_the_seed_alone():
    recipe = Recipe()
    torch.manual_seed(1)
    a = build(recipe)
    torch.manual_seed(2)
    b = build(recipe)
    c = build(replace(recipe, train=replace(recipe.train, seed=1)))
    assert torch.equal(a.body.conv1.weight, b.body.conv1.weight)
    assert not torch.equal(a.body.conv1.weight, c.body.conv1.weight)


def test_the_network_that_ships_knows_real_digits(shared, tmp_path):
    test = NMNIST(shared / "data" / "nmnist", train=False, cache_dir=tmp_path)
    x, labels = EventBatches(test.events()).batch(np.arange(len(test)), None)
    with torch.no_grad():
        right = (NMNISTNet.pretrained().scores(x).argmax(1) == labels).sum().item()
    # 98 where it was trained; convolutions that add in another order may flip a spike, and one recording either way.
    assert len(test) == 100
    assert 97 <= right <= 99


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NMNISTConfig(kind="rnn"), r'NMNISTConfig\.kind: got "rnn"; expected conv or mlp'),
        (lambda: NMNISTConfig(beta=-0.1), r"NMNISTConfig\.beta: got -0\.1; expected 0 to 1"),
        (lambda: NMNISTConfig(dropout=1.0), r"NMNISTConfig\.dropout: got 1\.0"),
        (lambda: NMNISTConfig(hidden=0), r"NMNISTConfig\.hidden: got 0; expected at least 1"),
        (lambda: FrameConfig(counts="sqrt"), r'FrameConfig\.counts: got "sqrt"; expected log or clip or linear'),
        (lambda: FrameConfig(window_us=0), r"FrameConfig\.window_us: got 0; expected at least 1"),
        (lambda: Recipe(validation=1.0), r"Recipe\.validation: got 1\.0; expected 0 to 0\.9"),
        (lambda: hold_out(np.array([0, 0, 1]), 0.5, 0), r"Recipe\.validation: got 0\.5 of 3 recordings"),
        (lambda: EventBatches(store(), np.zeros(3)), r"EventBatches\.labels: got shape \[3\]; expected \[12\]"),
        (
            lambda: undo_saccades(RaggedEvents.from_events([Events([0], [0], [0], [0], (8, 8))], [0])),
            r"undo_saccades: got a sensor of \(8, 8, 2\); expected 34 by 34 pixels",
        ),
    ],
)
def test_refusals_name_the_culprit(call, message):
    with pytest.raises(SpikingError, match=message):
        call()
