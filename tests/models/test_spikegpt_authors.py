"""Checkpoints of the authors' layout, written here: they load, compute what they did, and say what does not fit."""

import re

import pytest
import torch

from spiking import SpikingError
from spiking.models.spikegpt import SpikeGPT, SpikeGPTConfig


def published(**changes):
    torch.manual_seed(0)
    return SpikeGPT(SpikeGPTConfig(vocab_size=11, n_layer=3, n_embd=16, init="published", **changes)).eval()


@pytest.mark.parametrize("ffn_pre", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_of_the_published_layout_loads(tmp_path, ffn_pre, prefix):
    lm = published(ffn_pre=ffn_pre)
    file = tmp_path / "SpikeGPT.pth"
    weights = {prefix + name: tensor.bfloat16() for name, tensor in lm.state_dict().items()}
    torch.save({**weights, prefix + "copy_mask": torch.zeros(4, 4), prefix + "head_q.weight": torch.zeros(0, 16)}, file)
    loaded = SpikeGPT.from_authors(file, dropout=0.0).eval()
    assert loaded.config == SpikeGPTConfig(
        vocab_size=11, n_layer=3, n_embd=16, ctx_len=1024, ffn_pre=ffn_pre, init="published", dropout=0.0
    )
    lm.load_state_dict({name: tensor.bfloat16().float() for name, tensor in lm.state_dict().items()})
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(loaded(tokens)[0], lm(tokens)[0])
    assert all(p.requires_grad and p.dtype == torch.float32 for p in loaded.parameters())


class Harmful:
    def __reduce__(self):
        return (print, ("this must never run",))


def without(name):
    return {key: tensor for key, tensor in published().state_dict().items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"emb.weight": Harmful()}, "SpikeGPT.pth: holds more than tensors, or is cut; expected a state_dict"),
        ([1, 2], "SpikeGPT.pth: got list; expected a state_dict, names and tensors."),
        ({"epoch": 3}, "SpikeGPT.pth: got dict; expected a state_dict, names and tensors."),
        (
            {"weight": torch.zeros(2)},
            "got emb.weight and head.weight of shapes []; expected [vocabulary, width] twice.",
        ),
        (
            without("blocks.1.att.time_decay"),
            "SpikeGPT.pth: got no tensor blocks.1.att.time_decay; expected one in a model",
        ),
        (
            {**without(""), "extra": torch.zeros(1)},
            "SpikeGPT.pth: got an unknown tensor extra; expected none in a model",
        ),
        (
            {**without(""), "blocks.2.ffn.key.weight": torch.zeros(16, 64)},
            "blocks.2.ffn.key.weight: got shape [16, 64]; expected [64, 16].",
        ),
        (
            {**without(""), "ln_out.bias": torch.full((16,), torch.nan)},
            "ln_out.bias: got a number that is not finite. Download the file again.",
        ),
        (
            {k: v for k, v in without("").items() if not k.startswith("blocks.1.")},
            "SpikeGPT.pth: got blocks [0, 2]; expected 0, 1, 2, … without a gap.",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, capsys, content, message):
    file = tmp_path / "SpikeGPT.pth"
    torch.save(content, file)
    with pytest.raises(SpikingError, match=re.escape(message)):
        SpikeGPT.from_authors(file)
    assert "must never run" not in capsys.readouterr().out


def test_a_cut_or_missing_file_is_named(tmp_path):
    file = tmp_path / "SpikeGPT.pth"
    torch.save(published().state_dict(), file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SpikingError, match=r"SpikeGPT\.pth: holds more than tensors, or is cut"):
        SpikeGPT.from_authors(file)
    with pytest.raises(SpikingError, match=r"none\.pth: cannot be read: No such file"):
        SpikeGPT.from_authors(tmp_path / "none.pth")
