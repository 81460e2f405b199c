"""SpikeGPT: golden blocks, models and initial values; the parameter counts; one forward however a text is cut."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import spiking
from spiking import SpikingError
from spiking.models.spikegpt import Block, SpikeGPT, SpikeGPTConfig, language_loss
from spiking.models.spikegpt.model import STATE_ROWS


@pytest.fixture
def files(golden):
    return lambda name: np.load(golden / "spikegpt" / f"{name}.npz")


def weights(file, prefix="w.", dtype=torch.float64):
    return {n.removeprefix(prefix): torch.tensor(file[n]).to(dtype) for n in file.files if n.startswith(prefix)}


def off_by(got, expected):
    got, expected = got.detach().double(), torch.as_tensor(expected, dtype=torch.float64).reshape(got.shape)
    return ((got - expected).abs().max() / expected.abs().max()).item()


def config(vocab, layers, width, **changes):
    plain = {"dropout": 0.0, "init": "published"}
    return SpikeGPTConfig(vocab_size=vocab, n_layer=layers, n_embd=width, **{**plain, **changes})


def golden_model(file, vocab, layers, width, dtype=torch.float64, **changes):
    lm = SpikeGPT(config(vocab, layers, width, **changes)).to(dtype)
    lm.load_state_dict(weights(file, dtype=dtype))
    return lm, torch.tensor(file["idx"])


DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


@pytest.mark.parametrize("name", ["block_l0", "block_l1"])
@pytest.mark.parametrize(("dtype", "most"), DTYPES)
def test_golden_block(files, name, dtype, most):
    file = files(name)
    block = Block(config(1, int(file["n_layer"]), 24), int(file["layer_id"])).to(dtype)
    block.load_state_dict(weights(file, dtype=dtype))
    seen = {}
    for part in ("lif1", "lif2"):
        block.get_submodule(part).register_forward_hook(
            lambda m, i, out, part=part: seen.__setitem__(part, (i[0], out[0]))
        )
    x = torch.tensor(file["x"], dtype=dtype).transpose(0, 1).contiguous().requires_grad_()
    y, _ = block(x, SpikeGPT(config(1, 1, 24)).to(dtype).initial_state(2)[0])
    assert off_by(y.transpose(0, 1), file["y"]) <= most
    for part, current, spikes in (("lif1", "att", "s1"), ("lif2", "ffn", "s2")):
        assert off_by(seen[part][0].transpose(0, 1), file[current]) <= most
        assert np.array_equal(seen[part][1].transpose(0, 1).detach().numpy(), file[spikes])
    y.backward(torch.tensor(file["gy"], dtype=dtype).transpose(0, 1))
    assert off_by(x.grad.transpose(0, 1), file["gx"]) <= most
    for key, parameter in block.named_parameters():
        assert off_by(parameter.grad, file[f"g.{key}"]) <= most, key


@pytest.mark.parametrize(("dtype", "most"), DTYPES)
def test_golden_model(files, dtype, most):
    file = files("tiny_model")
    lm, tokens = golden_model(file, 40, 2, 32, dtype)
    spikes = {}
    for layer, block in enumerate(lm.blocks):
        for part in ("lif1", "lif2"):
            block.get_submodule(part).register_forward_hook(
                lambda m, i, out, key=f"s.b{layer}.{part}": spikes.__setitem__(key, out[0])
            )
    logits, state = lm(tokens)
    targets = torch.tensor(file["tgt"])
    loss = language_loss(logits, targets, damper=0.0)
    assert off_by(logits, file["logits"]) <= most
    assert off_by(loss, file["loss"]) <= most
    for key, found in spikes.items():
        assert np.array_equal(found.transpose(0, 1).detach().numpy(), file[key]), key
    loss.backward(retain_graph=True)
    for key, parameter in lm.named_parameters():
        assert off_by(parameter.grad, file[f"g.{key}"]) <= most, key
    lm.zero_grad()
    language_loss(logits, targets).backward()
    for key in (n.removeprefix("gl2.") for n in file.files if n.startswith("gl2.")):
        assert off_by(lm.get_parameter(key).grad, file[f"gl2.{key}"]) <= most, key
    names = {"time_x": "att_x", "p": "P", "q": "Q", "channel_x": "ffn_x", "time_v": "v1", "channel_v": "v2", "o": "O"}
    cut = int(file["cut"])
    for label, found in (("end", state), ("cut", lm(tokens[:, :cut])[1])):
        for layer in range(2):
            for row, key in enumerate(STATE_ROWS[:7]):
                assert off_by(found[layer, row], file[f"{label}.st.b{layer}.{names[key]}"]) <= most, key


def test_golden_greedy_text(files):
    file = files("tiny_model")
    lm, _ = golden_model(file, 40, 2, 32)
    logits, state = lm(torch.tensor(file["greedy_prompt"]).reshape(1, -1))
    found = []
    for _ in file["greedy"]:
        found.append(int(logits[0, -1].argmax()))
        logits, state = lm(torch.tensor([[found[-1]]]), state)
    assert found == file["greedy"].tolist()


def test_golden_feed_forward_in_front(files):
    file = files("tiny_ffnpre")
    lm, tokens = golden_model(file, 19, 2, 16, ffn_pre=True)
    logits, _ = lm(tokens)
    assert off_by(logits, file["logits"]) <= 1e-12
    assert off_by(language_loss(logits, torch.tensor(file["tgt"]), 0.0), file["loss"]) <= 1e-12


def test_golden_first_values(files):
    file = files("init_c8_l3")
    found = dict(SpikeGPT(config(5, 3, 8)).named_parameters())
    for key in file.files:
        assert_close(found[key].detach(), torch.tensor(file[key]).float(), rtol=2e-6, atol=1e-7, msg=key)


def test_golden_training_steps(files):
    file = files("train6")
    lm = SpikeGPT(config(30, 2, 16)).double()
    lm.load_state_dict(weights(file, "w0."))
    optimizer = torch.optim.Adam(lm.parameters(), lr=6e-4, betas=(0.9, 0.99), eps=4e-9)
    for tokens, loss, norm, rate in zip(torch.tensor(file["tokens"]), file["losses"], file["grad_norms"], file["lrs"]):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        logits, _ = lm(tokens[:, :-1].contiguous())
        assert off_by(language_loss(logits, tokens[:, 1:], 0.0), loss) <= 1e-11
        language_loss(logits, tokens[:, 1:]).backward()
        assert torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0).item() == pytest.approx(float(norm), rel=1e-9)
        optimizer.step()
    for key, expected in weights(file, "w6.").items():
        assert_close(lm.state_dict()[key], expected, rtol=0, atol=1e-8, msg=key)


@pytest.mark.parametrize(
    ("preset", "changes", "count"),
    [
        ("45m", {}, 41_226_240),
        ("45m", {"vocab_size": 5458}, 46_553_088),
        ("216m", {}, 215_399_424),
        ("tiny", {"n_layer": 2, "n_embd": 32, "vocab_size": 40}, 30_016),
    ],
)
def test_parameters_are_as_many_as_published(preset, changes, count):
    with torch.device("meta"):
        lm = SpikeGPT(SpikeGPTConfig.preset(preset, init="published", **changes))
    assert sum(p.numel() for p in lm.parameters()) == count


VARIANTS = {
    "published": {},
    "pre": {"placement": "pre"},
    "binary": {"placement": "pre", "activation": "spike"},
    "spike": {"activation": "spike"},
    "twin": {"spiking": False},
    "ffn_pre": {"ffn_pre": True},
}


def small(variant, seed=0):
    torch.manual_seed(seed)
    return SpikeGPT(SpikeGPTConfig(vocab_size=13, n_layer=3, n_embd=24, **VARIANTS[variant])).double().eval()


@pytest.mark.parametrize("variant", VARIANTS)
@given(cuts=st.lists(st.integers(1, 19), max_size=3), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=6)
def test_a_text_may_be_cut_anywhere(variant, cuts, seed):
    lm = small(variant, seed)
    tokens = torch.randint(13, (2, 20), generator=torch.Generator().manual_seed(seed))
    fired = []
    for block in lm.blocks:
        if block.lif1 is not None:
            block.lif1.register_forward_hook(lambda m, i, out, block=block: fired.append((block, out[0])))

    def run(edges):
        fired.clear()
        parts, state = [], None
        for start, stop in zip([0, *edges], [*edges, 20]):
            logits, state = lm(tokens[:, start:stop], state)
            parts.append(logits)
        spikes = [torch.cat([s for b, s in fired if b is block]) for block in lm.blocks if block.lif1 is not None]
        return torch.cat(parts, 1), state, spikes

    whole, last, spikes = run([])
    for edges in (sorted(set(cuts)), list(range(1, 20))):
        logits, state, also = run(edges)
        assert (logits - whole).abs().max() <= 1e-12
        assert_close(state, last, rtol=1e-12, atol=1e-12)
        assert all(torch.equal(a, b) for a, b in zip(also, spikes))


def test_later_tokens_and_other_texts_change_nothing():
    lm = small("published")
    tokens = torch.randint(13, (3, 12), generator=torch.Generator().manual_seed(1))
    other = tokens.clone()
    other[0, 7:] = 0
    assert torch.equal(lm(other)[0][0, :7], lm(tokens)[0][0, :7])
    assert_close(lm(other)[0][1:], lm(tokens)[0][1:], rtol=1e-12, atol=1e-12)
    _, state = lm(tokens)
    assert_close(lm(tokens[1:2])[1], state[:, :, 1:2], rtol=1e-12, atol=1e-12)


def test_gradients_flow_through_the_state():
    lm = small("published")
    tokens = torch.randint(13, (2, 16), generator=torch.Generator().manual_seed(2))
    whole = lm(tokens)[0].square().sum()
    first, state = lm(tokens[:, :9])
    cut = first.square().sum() + lm(tokens[:, 9:], state)[0].square().sum()
    for a, b in zip(*(torch.autograd.grad(loss, list(lm.parameters())) for loss in (whole, cut))):
        assert_close(a, b, rtol=1e-9, atol=1e-9 * b.abs().max().item())


def rates(lm, tokens):
    found = []
    handles = [
        m.register_forward_hook(lambda m, i, out: found.append(out[0].float().mean().item()))
        for name, m in lm.named_modules()
        if name.endswith(("lif1", "lif2", "ffn.neuron")) and m is not None
    ]
    lm(tokens)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("variant", ["published", "pre", "spike", "binary", "ffn_pre"])
def test_it_fires_from_the_start_and_begins_at_ln_v(variant):
    torch.manual_seed(0)
    lm = SpikeGPT(SpikeGPTConfig(vocab_size=256, n_layer=3, n_embd=64, **VARIANTS[variant]))
    tokens = torch.randint(256, (4, 65))
    found = rates(lm.eval(), tokens[:, :-1])
    assert all(0.05 < rate < 0.4 for rate in found), found
    loss = language_loss(lm(tokens[:, :-1])[0], tokens[:, 1:], 0.0).item()
    assert loss == pytest.approx(np.log(256), rel=0.01)


def test_the_published_start_is_silent():
    torch.manual_seed(0)
    lm = SpikeGPT(SpikeGPTConfig(vocab_size=256, n_layer=3, n_embd=64, init="published"))
    assert max(rates(lm.eval(), torch.randint(256, (4, 64)))) < 1e-3


def test_operands_of_the_binary_variant_are_spikes_and_every_product_is_recorded():
    lm, seen = small("binary").eval(), {}
    tokens = torch.randint(13, (2, 10))

    def note(name):
        def hook(layer, given):
            operations = given[0].count_nonzero(2).sum(1) * layer.out_features
            seen.setdefault(name, []).append((operations.tolist(), set(given[0].unique().tolist()) <= {0.0, 1.0}))

        return hook

    products = {name: layer for name, layer in lm.named_modules() if isinstance(layer, torch.nn.Linear)}
    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in products.items()]
    with torch.no_grad():
        lm(tokens)
        for hook in hooks:
            hook.remove()
        with spiking.record(lm, steps=10) as trace:
            lm(tokens)
    rows = {row.name: row for row in trace.layers if row.kind == "linear"}
    assert len(rows) == 3 * (3 * 2 + 2 * 2 + 2) + 1
    for name, calls in seen.items():
        for call, (operations, binary) in enumerate(calls):
            row = rows[name if call == 0 else f"{name}#{call + 1}"]
            if name == "head" or name.endswith("att.output"):
                assert row.operand_class == "analogue"
                continue
            assert binary
            assert row.operand_class == "binary"
            assert row.ac.tolist() == operations
            assert not row.mac.any()


def test_it_learns_a_hundred_characters_by_heart():
    text = "Now is the winter of our discontent made glorious summer by this sun of York; and all the clouds that l"
    letters = sorted(set(text))
    tokens = torch.tensor([[letters.index(c) for c in text]])
    torch.manual_seed(0)
    lm = SpikeGPT(SpikeGPTConfig(vocab_size=len(letters), n_layer=2, n_embd=64, dropout=0.0))
    optimizer = torch.optim.AdamW(lm.parameters(), lr=3e-3)
    for _step in range(200):
        loss = language_loss(lm(tokens[:, :-1])[0], tokens[:, 1:], 0.0)
        if loss.item() < 0.05:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
    assert loss.item() < 0.05


def test_bfloat16_autocast_trains():
    lm = SpikeGPT(SpikeGPTConfig(vocab_size=13, n_layer=2, n_embd=16))
    tokens = torch.randint(13, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        logits, state = lm(tokens)
    assert state.dtype == torch.float32
    language_loss(logits.float(), tokens).backward()
    assert all(torch.isfinite(p.grad).all() for p in lm.parameters())


LM = SpikeGPT(SpikeGPTConfig(vocab_size=13, n_layer=2, n_embd=16))
TOKENS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LM(TOKENS + 13), "SpikeGPT: got token 13; expected 0 to 12. Use the tokenizer"),
        (lambda: LM(TOKENS - 1), "SpikeGPT: got token -1; expected 0 to 12."),
        (lambda: LM(TOKENS.float()), "SpikeGPT: got tokens torch.float32 [2, 3]; expected int64 [B, T]"),
        (lambda: LM(TOKENS[:, :0]), "SpikeGPT: got tokens torch.int64 [2, 0]; expected int64 [B, T] with at least one"),
        (lambda: LM([1]), "SpikeGPT: got tokens list; expected int64"),
        (lambda: LM(TOKENS, LM.initial_state(3)), "SpikeGPT: got a state of [2, 11, 3, 16]; expected [2, 11, 2, 16]"),
        (lambda: LM(TOKENS, (1,)), "SpikeGPT: got a state of tuple; expected [2, 11, 2, 16]"),
        (lambda: SpikeGPTConfig.preset("7b"), 'SpikeGPTConfig.preset: got "7b"; expected one of tiny, 45m, 216m.'),
        (lambda: SpikeGPTConfig(placement="mid"), 'SpikeGPTConfig.placement: got "mid"; expected post or pre.'),
        (lambda: SpikeGPTConfig(activation="gelu"), 'SpikeGPTConfig.activation: got "gelu"; expected relu2 or spike.'),
        (lambda: SpikeGPTConfig(init="zero"), 'SpikeGPTConfig.init: got "zero"; expected firing or published.'),
        (lambda: SpikeGPTConfig(n_layer=0), "SpikeGPTConfig.n_layer: got 0; expected a whole number of at least 1."),
        (lambda: SpikeGPTConfig(dropout=1.0), "SpikeGPTConfig.dropout: got 1.0; expected 0 <= dropout < 1."),
        (lambda: SpikeGPTConfig(surrogate_alpha=0.0), "SpikeGPTConfig.surrogate_alpha: got 0.0; expected a finite"),
        (lambda: SpikeGPTConfig(ffn_pre=True, activation="spike"), "SpikeGPTConfig.ffn_pre: cannot be combined"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(SpikingError, match=re.escape(message)):
        call()
