"""`spiking lm`: a text becomes a model that is evaluated and writes, and bad input ends with one line."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from spiking import checkpoint as ckpt
from spiking.cli import runs
from spiking.models import SpikeGPT, SpikeGPTConfig
from spiking.models.spikegpt import language_loss, windows
from spiking.models.spikegpt.run import Recipe, open_data, train
from spiking.progress import Display

COMMAND = Path(sys.executable).with_name("spiking")
SMALL = (
    "--n-layer",
    "2",
    "--n-embd",
    "16",
    "--ctx-len",
    "32",
    "--batch-size",
    "8",
    "--steps",
    "12",
    "--eval-every",
    "6",
)
TEXT = "the cat sat on the mat. the dog sat on the log. " * 60


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run made once, as the command makes it."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(TEXT)
    model = SpikeGPTConfig(n_layer=2, n_embd=16, ctx_len=32)
    start = Recipe(data=str(text), steps=12, eval_every=6, model=model)
    start = replace(start, train=replace(start.train, batch_size=8, device="cpu"))
    corpus = open_data(start)
    recipe = start.completed(corpus.tokenizer.vocab_size)
    folder = tmp_path_factory.mktemp("lm") / "run"
    train(recipe, corpus, folder, display=Display())
    runs.keep(folder, recipe)
    return folder


@pytest.fixture
def run(spiking, text, trained):
    shutil.copytree(trained, "run")
    return Path("run")


def subprocess_of(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([COMMAND, *map(str, arguments)], env=environment, text=True, **options)


def test_a_text_becomes_a_model(spiking, text):
    code, out, err = spiking("lm", "train", "--data", text, *SMALL, "--json")
    assert code == 0, err
    folder = Path("runs/lm-1")
    help_page = " ".join(spiking("lm", "train", "--help")[1].split())
    for path in folder.rglob("*"):
        if path.is_file() and path.parent == folder:
            assert ("best-NNNN.safetensors" if path.name.startswith("best-") else path.name) in help_page
    metrics = json.loads(out)
    assert metrics == json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 12
    assert metrics["unit"] == "character"
    assert metrics["validation"]["bits_per_byte"] == metrics["validation"]["bits_per_character"]
    assert set(metrics["firing_rates"]) == {f"blocks.{i}.lif{j}" for i in (0, 1) for j in (1, 2)}
    assert err.splitlines()[0].startswith("text.txt: 2,592 train, 288 validation characters, ")
    lines = [line for line in err.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert all(word in lines[0] for word in ("loss", "bits/character", "validation", "tokens/s", "rate 0."))
    lm = SpikeGPT.from_pretrained(folder / "model")
    assert lm.tokenizer is not None
    assert lm.config.vocab_size == lm.tokenizer.vocab_size == len(set(TEXT))
    card = (folder / "model" / "README.md").read_text()
    assert "bits a byte" in card
    assert "SpikeGPT.from_pretrained" in card


def test_the_model_is_evaluated_whole_and_in_windows(spiking, run, text):
    metrics = json.loads((run / "metrics.json").read_text())
    code, out, _ = spiking("lm", "eval", "--model", run, "--data", text, "--json")
    assert code == 0
    assert json.loads(out)["bits_per_byte"] == pytest.approx(metrics["validation"]["bits_per_byte"], abs=1e-6)
    code, out, _ = spiking("lm", "eval", "--model", run, "--data", text, "--window", 16, "--stride", 4)
    assert code == 0
    assert "windows of 16, the last 4 counted" in out
    assert "perplexity" in out


def test_writing_goes_on_from_a_saved_state(spiking, run):
    options = ("lm", "generate", "--model", run, "--temperature", 0)
    whole = spiking(*options, "--prompt", "the cat", "--tokens", 20)[1]
    first = spiking(*options, "--prompt", "the cat", "--tokens", 12, "--state", "s.safetensors")[1]
    second = spiking(*options, "--tokens", 8, "--state", "s.safetensors")[1]
    assert first.removesuffix("\n") + second == whole
    assert Path("s.safetensors").stat().st_size < 10_000
    streamed = spiking(*options, "--prompt", "the cat", "--tokens", 20, "--stream")[1]
    assert streamed == whole


def test_the_seed_decides_what_is_written(spiking, run):
    options = ("lm", "generate", "--model", run, "--prompt", "the ", "--tokens", 30, "--top-k", 20, "--top-p", 0.95)
    texts = [spiking(*options, "--seed", seed, "--json")[1] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(json.loads(texts[0])["text"]) == 30


def test_the_shipped_model_writes_at_once(spiking):
    code, out, err = spiking("lm", "generate", "--prompt", "ROMEO:", "--tokens", 60, "--seed", 1)
    assert code == 0, err
    assert out.startswith("ROMEO:")
    assert len(out) == len("ROMEO:") + 60 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--prompt", "CAT"), r"CharTokenizer: got 'C' (U+0043) at character 0; expected one of the"),
        (("generate", "--top-p", "0"), "top_p: got 0.0; expected 0 < top_p <= 1"),
        (("generate", "--temperature", "-1"), "temperature: got -1.0; expected a number of at least 0"),
        (("generate", "--top-k", "-1"), "top_k: got -1; expected 0 (all) or more"),
        (("generate", "--tokens", "-1"), "generate: got -1 tokens to write; expected 0 or more"),
        (("generate", "--state", "text.txt"), "text.txt: not a state that was saved"),
        (("generate", "--state", "run/model/model.safetensors"), "a safetensors file, but no state of a SpikeGPT"),
        (("eval", "--data", "empty.txt"), "empty.txt: the file is empty; expected a text"),
        (("eval", "--data", "text.txt", "--split", "test"), "has no text for test. Name another split"),
        (("eval", "--data", "text.txt", "--split", "dev"), "--split: got dev; expected train, validation, test or all"),
        (("eval", "--data", "text.txt", "--window", "4", "--stride", "5"), "--window, --stride: got 4 and 5; expected"),
        (("eval", "--data", "other.txt"), "got '€' (U+20AC) at character"),
    ],
)
def test_bad_input_ends_with_one_line(spiking, run, arguments, message):
    Path("empty.txt").touch()
    Path("other.txt").write_text("sat € " * 30)
    code, out, err = spiking("lm", arguments[0], "--model", run, *arguments[1:])
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "empty.txt"), "empty.txt: the file is empty"),
        (
            ("--data", "short.txt"),
            "short.txt: train split: got a text of 90 tokens; expected more than a window of 128",
        ),
        (("--data", "latin.txt"), "latin.txt: got byte 0xE9 at 3, which is no UTF-8"),
        (("--preset", "huge"), 'SpikeGPTConfig.preset: got "huge"; expected one of tiny, 45m, 216m'),
        (("--steps", "0"), "--steps: got 0; expected at least 1"),
        (("--rate-limit", "2"), "--rate-limit: got 2.0; expected 0 < rate_limit <= 1"),
        (("--placement", "left"), "placement: got 'left'; expected post or pre"),
        (("--tokenizer", "words.json"), "words.json: no such file or directory; expected bytes, characters or"),
        (("--accumulate", "0"), "--accumulate: got 0; expected at least 1"),
    ],
)
def test_bad_training_input_ends_with_one_line(spiking, text, arguments, message):
    Path("empty.txt").touch()
    Path("short.txt").write_text("x" * 100)
    Path("latin.txt").write_bytes(b"caf\xe9" * 100)
    code, _, err = spiking("lm", "train", "--data", text, *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_state_or_checkpoint_of_another_model_is_refused(spiking, run, text):
    spiking("lm", "generate", "--model", run, "--prompt", "the", "--tokens", 3, "--state", "s.safetensors")
    assert spiking("lm", "train", "--data", text, *SMALL, "--seed", 1, "--out", "other")[0] == 0
    code, _, err = spiking("lm", "generate", "--model", "other", "--state", "s.safetensors")
    assert code == 2
    assert "s.safetensors: got the state of another model; expected one that this model's weights made" in err
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["model"]["n_embd"] = 8
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    code, _, err = spiking("lm", "train", "--out", run, "--resume")
    assert code == 2
    assert "the checkpoint's model has n_embd=16; this one has n_embd=8" in err


def test_a_loss_that_is_not_a_number_leaves_the_last_good_checkpoint(spiking, run, monkeypatch):
    def broken(logits, targets, damper):
        return language_loss(logits, targets, damper) * math.nan

    good = (run / "checkpoint.safetensors").read_bytes()
    monkeypatch.setattr(windows, "language_loss", broken)
    code, _, err = spiking("lm", "train", "--resume", "--out", run, "--steps", 24)
    assert code == 2
    assert "Trainer: epoch 2, step 0: loss or scores are not finite" in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith(f"The last good state is in {run / 'checkpoint.safetensors'}.")
    assert (run / "checkpoint.safetensors").read_bytes() == good


def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, text):
    options = ["lm", "train", "--data", text, *SMALL[:-4], "--steps", "40", "--eval-every", "20", "--accumulate", "2"]
    through = subprocess_of(
        *options, "--out", tmp_path / "through", stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    cut = subprocess_of(*options, "--out", tmp_path / "cut", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert cut.stderr is not None
    with cut.stderr:
        for line in cut.stderr:
            if line.startswith("epoch 1/2"):
                cut.send_signal(signal.SIGTERM)
                break
        rest = cut.stderr.read()
    assert cut.wait(120) == 128 + signal.SIGTERM
    assert f"stopped and saved; go on with: spiking lm train --out {tmp_path / 'cut'} --resume" in rest
    again = subprocess_of("lm", "train", "--out", tmp_path / "cut", "--resume", stderr=subprocess.DEVNULL)
    assert again.wait(120) == 0
    assert through.wait(120) == 0
    a, b = (ckpt.load(tmp_path / name / "checkpoint.safetensors") for name in ("through", "cut"))
    assert all(bool((value == b.model[name]).all()) for name, value in a.model.items())


def test_a_prompt_longer_than_the_context_streams(trained):
    options = ["lm", "generate", "--model", trained, "--prompt", TEXT, "--tokens", "5", "--stream"]
    found = subprocess_of(*options, stdout=subprocess.PIPE)
    out, _ = found.communicate(timeout=120)
    assert found.returncode == 0
    assert len(out) == len(TEXT) + 5 + 1  # ctx_len is 32


def test_sentences_are_classified_beside_a_bag_of_words(spiking, tmp_path):
    folder = tmp_path / "sst2"
    folder.mkdir()
    lines = [f"{'good' if i % 2 else 'bad'} film number {i % 7}\t{i % 2}\n" for i in range(60)]
    for name in ("train", "dev", "test"):
        (folder / f"{name}.tsv").write_text("".join(lines))
    code, out, err = spiking("lm", "classify", "--data", folder, "--epochs", 8, "--lr", 5e-3, "--batch-size", 8)
    assert code == 0, err
    assert out.splitlines()[0] == "sst2: 60 train, 60 validation, 60 test sentences"
    assert out.splitlines()[1].startswith("accuracy 100.0 %")
    assert out.splitlines()[2].startswith("bag of words 100.0 %")
    metrics = json.loads(Path("runs/classify-1/metrics.json").read_text())
    assert metrics["sizes"] == {"train": 60, "validation": 60, "test": 60}


def test_classifying_begins_with_a_trained_model_and_names_bad_input(spiking, run, tmp_path):
    folder = tmp_path / "mr"
    folder.mkdir()
    for name in ("pos", "neg"):
        (folder / f"rt-polarity.{name}").write_text("the cat sat\n" * 20)
    options = ("lm", "classify", "--task", "mr", "--data", folder, "--model", run, "--epochs", 1)
    code, out, err = spiking(*options, "--json")
    assert code == 0, err
    assert json.loads(out)["recipe"]["start"] == "run/model"
    code, _, err = spiking("lm", "classify")
    assert code == 2
    assert "--data: got nothing; expected the folder with the sentences" in err
    code, _, err = spiking("lm", "classify", "--data", folder, "--task", "imdb")
    assert code == 2
    assert "got 'imdb'; expected sst2 or mr" in err


def test_weights_are_saved_without_a_pickle(run):
    with safe_open(run / "model" / "model.safetensors", framework="pt") as file:
        assert "emb.weight" in list(file.keys())
