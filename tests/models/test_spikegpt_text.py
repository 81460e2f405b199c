"""SpikeGPT on text: sampling as the golden numbers say, states that go on, windows, bits, classifying, and the shipped model."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.datasets.text import CharTokenizer
from torch.nn import functional as tf
from torch.testing import assert_close

from spiking import SpikingError
from spiking.models import SpikeGPT, SpikeGPTConfig
from spiking.models.spikegpt import (
    SpikeGPTClassifier,
    TextWindows,
    Writer,
    load_state,
    next_token_probabilities,
    save_state,
    score,
)
from spiking.models.spikegpt.run import adamw
from spiking.models.spikegpt.windows import objective
from spiking.progress import Display
from spiking.training import TrainConfig, Trainer


def small(vocab=11, seed=0, **changes):
    torch.manual_seed(seed)
    return SpikeGPT(SpikeGPTConfig(vocab_size=vocab, n_layer=2, n_embd=16, dropout=0.0, **changes)).eval()


def test_golden_sampling(golden):
    file = np.load(golden / "spikegpt" / "sampling.npz")
    for i in range(int(file["n"])):
        p = next_token_probabilities(
            torch.tensor(file[f"logits{i}"]), temperature=float(file[f"temp{i}"]), top_p=float(file[f"top_p{i}"])
        )
        assert_close(p, torch.tensor(file[f"ref_probs{i}"]), rtol=1e-5, atol=1e-7)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=20, unique=True), st.floats(0.1, 3), st.integers(1, 20))
@settings(deadline=None, max_examples=50)
def test_sampling_keeps_its_limits(logits, temperature, top_k):
    logits = [value / 10 for value in logits]
    found = next_token_probabilities(torch.tensor(logits), temperature=temperature, top_k=top_k, ban=[0])
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert found[0] == 0
    assert int((found > 0).sum()) <= top_k
    one = next_token_probabilities(torch.tensor(logits), temperature=temperature, top_k=1)
    assert one.tolist() == next_token_probabilities(torch.tensor(logits), temperature=0).tolist()
    cold = next_token_probabilities(torch.tensor(logits), temperature=1e-4, top_p=0.9)
    assert bool(torch.isfinite(cold).all())


def test_the_order_of_temperature_and_top_p_matters():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    first = next_token_probabilities(logits, temperature=3, top_p=0.6, order="top_p_first")
    last = next_token_probabilities(logits, temperature=3, top_p=0.6, order="temperature_first")
    assert [int((p > 0).sum()) for p in (first, last)] == [1, 2]


def test_a_text_written_in_two_parts_is_the_same(tmp_path):
    lm = small()
    whole = list(lm.generate([1, 2, 3], 30, seed=4, temperature=0))
    first = lm.generate([1, 2, 3], 10, temperature=0)
    beginning = list(first)
    save_state(tmp_path / "state", first)
    rest = list(lm.generate([], 20, temperature=0, **load_state(tmp_path / "state", lm)))
    assert beginning + rest == whole
    stopped = list(lm.generate([1, 2, 3], 30, temperature=0, stop=[whole[4]]))
    assert stopped == whole[: whole.index(whole[4]) + 1]


def test_a_long_prompt_is_read_in_pieces_as_if_at_once():
    lm = small().double()
    tokens = torch.randint(11, (2500,), generator=torch.Generator().manual_seed(0)).tolist()
    writer = lm.generate(tokens, 1, temperature=0)
    logits, state = lm(torch.tensor([tokens]))
    assert next(writer) == int(logits[0, -1].argmax())
    assert_close(writer.state, state, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: Writer(lm, [], 3), "generate: got an empty prompt; expected one token at least, or a state"),
        (lambda lm: Writer(lm, [1], 3, ban=[11]), "ban: got [11]; expected tokens 0 to 10"),
        (lambda lm: Writer(lm, [1], 3, order="top"), 'order: got "top"; expected top_p_first or temperature_first'),
        (lambda lm: next(Writer(lm, [12], 3)), "SpikeGPT: got token 12; expected 0 to 10"),
        (lambda lm: lm.write("a", 3), "SpikeGPT.write: the model has no tokenizer"),
        (lambda lm: save_state("x", Writer(lm, [1], 3)), "x: nothing was read yet; expected a writer with a state"),
        (lambda lm: load_state("nowhere", lm), "nowhere: not a state that was saved"),
        (lambda lm: SpikeGPTClassifier(lm, 2, "max"), 'SpikeGPTClassifier.pool: got "max"; expected mean or last'),
        (lambda lm: SpikeGPTClassifier(lm, 2)(torch.full((1, 3), -1)), "SpikeGPTClassifier: got a text without tokens"),
        (lambda lm: TextWindows(np.arange(8), 8), "TextWindows: got a text of 8 tokens; expected more than a window of 8"),
        (lambda lm: score(lm, np.array([1]), ""), "lm eval: got a text of 1 tokens; expected two at least"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(SpikingError, match=re.escape(message)):
        call(small())


def test_logits_that_are_not_finite_end_the_writing():
    lm = small()
    with torch.no_grad():
        lm.head.weight.fill_(math.nan)
    with pytest.raises(SpikingError, match=r"generate: the logits are not finite\. Load other weights"):
        next(lm.generate([1], 1))


def test_a_saved_model_keeps_its_tokenizer_and_half_precision_is_widened(tmp_path):
    lm = small(vocab=3)
    lm.tokenizer = CharTokenizer("abc")
    lm.half().float().save_pretrained(tmp_path / "full")
    lm.half().save_pretrained(tmp_path / "half")
    full, half = (SpikeGPT.from_pretrained(tmp_path / name) for name in ("full", "half"))
    assert half.head.weight.dtype == torch.float32
    assert all(torch.equal(value, half.state_dict()[name]) for name, value in full.state_dict().items())
    assert half.tokenizer.characters == "abc"
    assert full.write("ab", 9, seed=1) == half.write("ab", 9, seed=1)


def test_random_windows_depend_on_seed_and_epoch_only():
    tokens = np.arange(1000) % 7
    a, b, c = (TextWindows(tokens, 16, 40, seed) for seed in (0, 0, 1))
    at = np.array([3, 30])
    assert torch.equal(a.batch(at, 2)[0], b.batch(at, 2)[0])
    assert torch.equal(a.batch(at[1:], 2)[0], a.batch(at, 2)[0][1:])
    assert not torch.equal(a.batch(at, 2)[0], a.batch(at, 3)[0])
    assert not torch.equal(a.batch(at, 2)[0], c.batch(at, 2)[0])
    x, y = a.batch(at, 0)
    assert torch.equal(x[:, 1:], y[:, :-1])


@torch.no_grad()
def test_every_target_counts_once_however_it_is_scored():
    lm = small().double()
    tokens = np.random.default_rng(0).integers(11, size=200)
    text = "é" * 199
    whole = tf.cross_entropy(lm(torch.tensor(tokens[None, :-1]))[0][0], torch.tensor(tokens[1:]), reduction="sum")
    found = score(lm, tokens, text)
    assert found.nats == pytest.approx(float(whole), rel=1e-9)
    assert found.bits_per_character == pytest.approx(2 * found.bits_per_byte)
    assert found.perplexity == pytest.approx(math.exp(float(whole) / 199))
    assert score(lm, tokens, text, window=300, stride=7).nats == pytest.approx(float(whole), rel=1e-9)
    nats = 0.0
    for end in [64, *range(80, 200, 16), 199]:  # by hand
        counted = 64 if end == 64 else 16 if end % 16 == 0 else end - 192
        begin = max(0, end - 64)
        logits = lm(torch.tensor(tokens[None, begin:end]))[0][0, -counted:]
        nats += float(tf.cross_entropy(logits, torch.tensor(tokens[end - counted + 1 : end + 1]), reduction="sum"))
    assert score(lm, tokens, text, window=64, stride=16).nats == pytest.approx(nats, rel=1e-9)


def fit(steps=12, **settings):
    lm = small(vocab=5)
    windows = TextWindows(np.random.default_rng(0).integers(5, size=400), 16, steps * 8)
    rate = settings.pop("rate_weight", 0.0)
    config = TrainConfig(**{"epochs": 1, "batch_size": 8, "lr": 1e-2, "ema_decay": 0.0, "device": "cpu", **settings})
    judge = objective(lm, rate_limit=0.05, rate_weight=rate)
    return lm, Trainer(lm, judge, config, display=Display(), optimizer=adamw).fit(windows)


def test_parts_of_a_step_add_up_to_it():
    (whole, a), (parts, b) = fit(steps=1), fit(steps=1, accumulate=3)
    assert a[0]["loss"] == pytest.approx(b[0]["loss"], rel=1e-5)
    for name, value in whole.state_dict().items():
        # Adam's first step is the sign of the gradient, where that is not zero up to rounding
        assert float(((value - parts.state_dict()[name]).abs() > 1e-4).float().mean()) < 0.01, name


def test_a_penalty_quietens_the_neurons():
    rates = [np.mean(list(fit(steps=40, rate_weight=weight)[1][0]["rates"].values())) for weight in (0.0, 30.0)]
    assert rates[1] < 0.8 * rates[0]


def test_only_matrices_decay():
    lm = small()
    decayed, others = adamw(lm, TrainConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert len(decayed["params"]) + len(others["params"]) == len(list(lm.parameters()))


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_padding_does_not_change_a_class(pool):
    net = SpikeGPTClassifier(small().double(), 3, pool).double()
    texts = [torch.randint(11, (n,), generator=torch.Generator().manual_seed(n)) for n in (4, 9)]
    alone = torch.cat([net(text[None]) for text in texts])
    for longest in (9, 30):
        padded = torch.full((2, longest), -1)
        for row, text in zip(padded, texts):
            row[: len(text)] = text
        assert_close(net(padded), alone, rtol=0, atol=1e-12)


def test_the_shipped_model_is_small_fires_and_predicts_its_text(shared):
    folder = Path(__import__("spiking.models.spikegpt", fromlist=["x"]).__file__).parent / "pretrained"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000
    lm = SpikeGPT.pretrained()
    text = (shared / "data" / "text" / "tinyshakespeare.txt").read_text()[-111_540:][:10_000]
    rates = {}

    def keep(name):
        def read(layer, given, output):
            rates[name] = float(output[0].mean())

        return read

    for name, layer in lm.named_modules():
        if re.fullmatch(r"blocks\.\d\.lif\d", name):
            layer.register_forward_hook(keep(name))
    found = score(lm, lm.tokenizer.encode(text), text[1:])
    assert found.nats / found.tokens == pytest.approx(1.528, abs=0.005)  # the whole tenth: 1.640
    assert len(rates) == 2 * lm.config.n_layer
    assert all(0.05 < rate < 0.4 for rate in rates.values())
    assert (folder / "README.md").read_text().count("tiny Shakespeare") >= 1
