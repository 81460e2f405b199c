"""The network for spoken digits: frames and their augmentation, the network, held-out speakers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from spiking.datasets import AudioSet
from torch.testing import assert_close

import spiking
from spiking.errors import SpikingError
from spiking.models import NTIDIGITSConfig, NTIDIGITSNet
from spiking.models.ntidigits import FrameConfig, Recipe, Recordings, SoundBatches, build, optimizer, split
from spiking.training import TrainConfig

STILL = {"stretch": 0.0, "late": 0.0, "shift": 0.0, "thin": 0.0}


class Few(AudioSet):
    """Recordings from arrays, two speakers."""

    classes, n_channels = ("a", "b"), 8

    def __init__(self, n=6):
        super().__init__(None, None)
        rng = np.random.default_rng(0)
        self.recordings = [
            (np.sort(rng.uniform(0.1, 0.5, 60)), rng.integers(0, 8, 60).astype(np.int16)) for _ in range(n)
        ]
        self.labels = np.arange(n) % 2
        self.speakers = np.array(["ann", "bob"])[np.arange(n) // 2 % 2]

    def describe(self):
        return f"{len(self)} recordings."

    def arrays(self, index):
        return self.recordings[index]


def test_frames_hold_every_event_once():
    sound = Few()
    for time in ("recording", "fixed"):
        x, labels = SoundBatches(sound, FrameConfig(steps=60, counts="linear", time=time)).batch(np.arange(6), None)
        assert x.shape == (60, 6, 8)
        assert x.sum((0, 2)).tolist() == [60.0] * 6
        assert labels.tolist() == sound.labels.tolist()


def test_a_recording_spans_the_same_frames_at_any_tempo():
    sound = Few()
    config = FrameConfig(steps=20, span=0.5, counts="linear")
    x, _ = SoundBatches(sound, config).batch(np.arange(2), None)
    slow = Few()
    slow.recordings = [(3 * t, c) for t, c in slow.recordings]
    assert x[9].sum() > 0
    assert not x[10:].any()
    assert_close(SoundBatches(slow, config).batch(np.arange(2), None)[0], x, rtol=0, atol=0)


def test_counts_are_clipped_or_rooted():
    sound = Few()
    linear, root, clip = (
        SoundBatches(sound, FrameConfig(steps=5, counts=c)).batch(np.arange(6), None)[0]
        for c in ("linear", "root", "clip")
    )
    assert linear.max() > 1
    assert_close(root, linear.sqrt())
    assert_close(clip, (linear > 0).float())


def test_augmentation_depends_on_seed_epoch_and_recording_alone():
    sound = Few()
    data = SoundBatches(sound, FrameConfig(), seed=3)
    first, _ = data.batch(np.array([4, 1]), 7)
    again, _ = data.subset([1, 4]).batch(np.array([0]), 7)
    assert_close(first[:, 1:], again, rtol=0, atol=0)
    assert not torch.equal(data.batch(np.array([1]), 8)[0], again)
    assert not torch.equal(SoundBatches(sound, FrameConfig(), seed=4).batch(np.array([1]), 7)[0], again)
    still = SoundBatches(sound, FrameConfig(**STILL))
    assert_close(still.batch(np.arange(6), 0)[0], still.batch(np.arange(6), None)[0], rtol=0, atol=0)


def test_each_augmentation_does_what_it_says():
    sound = Few()

    def frames(**options):
        config = FrameConfig(steps=200, counts="linear", **{**STILL, **options})
        return SoundBatches(sound, config).batch(np.arange(6), 0)[0]

    plain = frames()
    shifted = frames(shift=2.0)
    moved = [next(s for s in range(-2, 3) if torch.equal(
        torch.roll(shifted[:, b], -s, 1)[:, max(0, -s) : 8 - max(0, s)],
        plain[:, b, max(0, -s) : 8 - max(0, s)])) for b in range(6)]  # fmt: skip
    assert set(moved) > {0}
    assert frames(thin=1.0).sum() < plain.sum()
    assert (frames(late=10.0)[:3].sum() < plain[:3].sum()).item()
    assert torch.equal(frames(stretch=0.5).sum((0, 2)) <= plain.sum((0, 2)), torch.ones(6, dtype=torch.bool))


def test_silence_is_a_recording_too():
    sound = Few()
    sound.recordings[0] = (np.zeros(0), np.zeros(0, np.int16))
    x, _ = SoundBatches(sound).batch(np.arange(1), 0)
    assert not x.any()


@pytest.mark.parametrize("config", [NTIDIGITSConfig(), NTIDIGITSConfig(max_delay=0), NTIDIGITSConfig(recurrent=False)])
def test_a_network_streams_and_comes_back_from_its_folder(config, tmp_path):
    net = NTIDIGITSNet(replace(config, inputs=8, hidden=16, classes=3)).eval()
    x = (torch.rand(12, 2, 8) < 0.4).float()
    spikes = net(x)
    assert spikes.shape == (12, 2, 3)
    state, found = None, []
    for x_t in x:
        s, state = net.step(x_t, state)
        found.append(s)
    assert_close(torch.stack(found), spikes)
    net.save_pretrained(tmp_path)
    again = NTIDIGITSNet.from_pretrained(tmp_path)
    assert again.config == net.config
    assert_close(again(x), spikes)


def test_counts_of_a_recording_are_exact():
    net = NTIDIGITSNet(NTIDIGITSConfig(inputs=8, hidden=16, classes=3)).eval()
    x = (torch.rand(12, 2, 8) < 0.4).float()
    hidden = []
    for name in ("lif1", "lif2"):
        getattr(net.body, name).register_forward_hook(
            lambda m, i, o: hidden.append(o[0] if isinstance(o, tuple) else o)
        )
    with torch.no_grad(), spiking.record(net) as trace:
        net(x)
    rows = {row.name: int(row.counts["syn"].sum()) for row in trace.layers if row.is_weight_layer}
    first, second = hidden
    assert rows["body.linear1"] == int(x.sum()) * 16
    assert rows["body.lif1.recurrent"] == int(first[:-1].sum()) * 16
    assert rows["body.linear2"] == int(first.sum()) * 16
    assert rows["body.linear"] == int(second.sum()) * 3


def test_delays_learn_faster_and_do_not_decay():
    net = NTIDIGITSNet(NTIDIGITSConfig(inputs=8, hidden=4, classes=2))
    weights, delays = optimizer(net, TrainConfig(weight_decay=0.1)).param_groups
    assert delays["lr_scale"] == 20.0
    assert (weights["weight_decay"], delays["weight_decay"]) == (0.1, 0.0)
    assert len(delays["params"]) == 2
    assert len(optimizer(NTIDIGITSNet(NTIDIGITSConfig(max_delay=0)), TrainConfig()).param_groups) == 1


def test_the_width_of_delays_falls_over_its_share_of_the_training():
    recipe = Recipe(train=TrainConfig(epochs=10, batch_size=4))
    assert build(recipe, 40).body.linear1.anneal == 50


def test_a_speaker_is_held_out():
    sound = Few(8)
    recordings = Recordings(sound, sound, "", ())
    training, held_out = split(Recipe(validation="bob"), recordings)
    assert set(sound.speakers[held_out]) == {"bob"}
    assert set(sound.speakers[training]) == {"ann"}
    assert len(split(Recipe(), recordings)[1]) == 0
    with pytest.raises(SpikingError, match=r"Recipe\.validation: got 'eve'; expected one of several .*: ann, bob"):
        split(Recipe(validation="eve"), recordings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NTIDIGITSConfig(max_delay=-1), r"NTIDIGITSConfig\.max_delay: got -1; expected 0 to 1000"),
        (lambda: NTIDIGITSConfig(readout="vote"), r'NTIDIGITSConfig\.readout: got "vote"; expected membrane or rate'),
        (lambda: NTIDIGITSConfig(dropout=1.0), r"NTIDIGITSConfig\.dropout: got 1\.0"),
        (lambda: FrameConfig(time="slow"), r'FrameConfig\.time: got "slow"; expected recording or fixed'),
        (lambda: FrameConfig(span=0.0), r"FrameConfig\.span: got 0\.0"),
        (lambda: Recipe(cochlea="ear"), r'Recipe\.cochlea: got "ear"'),
        (lambda: Recipe(label_smoothing=1.0), r"Recipe\.label_smoothing: got 1\.0"),
    ],
)
def test_numbers_out_of_range_are_named(make, message):
    with pytest.raises(SpikingError, match=message):
        make()
