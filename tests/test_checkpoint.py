"""Checkpoints: there and back to the bit, whole or not at all, and every wrong file refused by name."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from spiking import checkpoint as ckpt
from spiking.errors import SpikingError


def trained(seed: int = 0, hidden: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 2)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **state: object) -> Path:
    average = {name: value + 1 for name, value in model.state_dict().items()}
    ckpt.save(
        path,
        ckpt.Checkpoint(
            model.state_dict(), ckpt.identity(model), optimizer and optimizer.state_dict(), average, dict(state)
        ),
    )
    return path


@pytest.fixture
def file(tmp_path):
    return save(tmp_path / "last.safetensors", *trained(), epoch=3, note="ä", ratio=0.1)


def test_there_and_back_to_the_bit(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path / "a.safetensors", model, optimizer, epoch=3, lr=0.1 + 0.2)
    other, other_optimizer = trained(seed=1)
    found = ckpt.restore(path, other, other_optimizer)
    assert found.state == {"epoch": 3, "lr": 0.1 + 0.2}
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
        assert torch.equal(found.average[name], value + 1)
    for (_, a), (_, b) in zip(optimizer.state_dict()["state"].items(), other_optimizer.state_dict()["state"].items()):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert other_optimizer.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_training_goes_on_as_if_nothing_had_happened(tmp_path):
    model, optimizer = trained()
    other, other_optimizer = trained(seed=1)
    ckpt.restore(save(tmp_path / "a.safetensors", model, optimizer), other, other_optimizer)
    x = torch.randn(8, 2)
    for m, o in ((model, optimizer), (other, other_optimizer)):
        o.zero_grad()
        m(x).square().mean().backward()
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_tied_weights_survive(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    path = save(tmp_path / "a.safetensors", model)
    assert torch.equal(ckpt.load(path, model).model["1.weight"], model[0].weight)


def test_the_file_holds_no_pickle_and_opens_with_safetensors_alone(file):
    from safetensors import safe_open

    with safe_open(file, framework="pt") as f:
        header = json.loads(f.metadata()["spiking"])
        names = set(f.keys())
    assert header["format_version"] == 1
    assert header["state"]["epoch"] == 3
    assert {"model.0.weight", "optimizer.0.exp_avg", "average.0.weight"} <= names


def test_a_full_disk_keeps_the_previous_checkpoint(file):
    before = file.read_bytes()
    file.with_name(f".{file.name}.part").symlink_to("/dev/full")
    with pytest.raises(
        SpikingError, match=r"last\.safetensors: cannot write \d+ bytes: No space left.*previous one is untouched"
    ):
        save(file, *trained(seed=5))
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]
    save(file, *trained(seed=5))
    assert file.read_bytes() != before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpikingError, match=r"file/a\.safetensors: cannot write .*Choose another folder"):
        save(tmp_path / "file" / "a.safetensors", trained()[0])


def test_a_kill_while_writing_leaves_the_previous_one(file, monkeypatch):
    """Stopped between the data and the rename: the old file is whole, the half-written neighbour is ignored."""
    before = file.read_bytes()

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save(file, *trained(seed=5))
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert ckpt.load(file).state["epoch"] == 3
    save(file, *trained(seed=5), epoch=4)
    assert ckpt.load(file).state["epoch"] == 4


@given(cut=st.floats(0, 0.9999))
@settings(deadline=None, max_examples=40)
def test_a_cut_file_is_refused_by_name(tmp_path_factory, cut):
    path = save(tmp_path_factory.mktemp("cut") / "a.safetensors", *trained())
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(SpikingError, match=r"a\.safetensors: not a whole safetensors file of \d+ bytes"):
        ckpt.load(path)


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=60)
def test_any_other_bytes_are_refused_by_name(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("junk") / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(SpikingError, match=r"a\.safetensors: "):
        ckpt.load(path)


def test_a_lying_header_length_is_refused_without_allocating(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(SpikingError, match=r"a\.safetensors: not a whole"):
        ckpt.load(path)


def test_another_models_checkpoint_is_refused(file):
    with pytest.raises(
        SpikingError, match=r"last\.safetensors: got a checkpoint of .*Sequential; expected one of .*Linear\."
    ):
        ckpt.load(file, nn.Linear(2, 3))


def test_another_configuration_is_refused_by_its_field(tmp_path):
    from dataclasses import dataclass

    @dataclass
    class Config:
        width: int = 3

    model, _ = trained()
    model.config = Config()
    path = save(tmp_path / "a.safetensors", model)
    model.config = Config(width=4)
    with pytest.raises(SpikingError, match=r"the checkpoint's model has width=3; this one has width=4"):
        ckpt.load(path, model)


def test_another_shape_is_refused_by_tensor_and_changes_nothing(file):
    model, optimizer = trained(seed=1, hidden=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SpikingError, match=r'model tensor "0\.weight" has shape \[3, 2\]; the model expects \[4, 2\]'):
        ckpt.restore(file, model, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_dtype_is_refused(file):
    with pytest.raises(SpikingError, match=r'"0\.weight" has dtype torch\.float32; the model expects torch\.float64'):
        ckpt.load(file, trained()[0].double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h: t.pop("model.0.bias"), r'model tensor "0\.bias" is missing'),
        (lambda t, h: t.update({"model.9.bias": torch.zeros(1)}), r'model tensor "9\.bias" is unknown'),
        (
            lambda t, h: t.update({"extra.x": torch.zeros(1)}),
            r'got tensor "extra\.x"; expected names starting with model',
        ),
        (lambda t, h: h.update(format_version=2), r"got checkpoint format 2; this version of spiking reads up to 1"),
        (lambda t, h: h.pop("format_version"), r"the header is not that of a checkpoint"),
        (lambda t, h: h.pop("state"), r'header entry "state" is missing'),
        (lambda t, h: h["optimizer"].pop("state"), r"the optimizer state is damaged"),
        (
            lambda t, h: h["optimizer"].update(param_groups=[]),
            r"optimizer groups hold \[\] parameters; this optimizer has \[6\]",
        ),
        (lambda t, h: h["optimizer"]["param_groups"][0].pop("betas"), r"the optimizer state has options \['betas'\]"),
        (
            lambda t, h: t.update({"optimizer.0.exp_avg": torch.zeros(7)}),
            r'optimizer tensor "0\.exp_avg" has shape \[7\]',
        ),
        (
            lambda t, h: t.update({"optimizer.17.exp_avg": torch.zeros(7)}),
            r"optimizer state 17 belongs to none of the 6",
        ),
        (lambda t, h: t.update({"optimizer.x.exp_avg": torch.zeros(7)}), r"the optimizer state is damaged"),
        (lambda t, h: h.update(optimizer=None), r"without optimizer state"),
    ],
)
def test_each_damage_is_named(file, change, message):
    from safetensors import safe_open
    from safetensors.torch import load_file

    tensors = load_file(file)
    with safe_open(file, framework="pt") as f:
        header = json.loads(f.metadata()["spiking"])
    change(tensors, header)
    save_file(tensors, file, metadata={"spiking": json.dumps(header)})
    with pytest.raises(SpikingError, match=message) as caught:
        ckpt.restore(file, *trained())
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_safetensors_file_of_others_is_told_from_ours(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(SpikingError, match=r"w\.safetensors: a safetensors file, but not a checkpoint"):
        ckpt.load(tmp_path / "w.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpikingError, match=r"none\.safetensors: there is no checkpoint here"):
        ckpt.load(tmp_path / "none.safetensors")
