"""`spiking lm`: spiking language models (SpikeGPT)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from spiking.datasets.text import Tokenizer
    from spiking.models.spikegpt import SpikeGPT

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Model = Annotated[
    Path | None, typer.Option("--model", help="A run's folder, or its model/; the model that ships with the package without it.")
]  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


@app.callback()
def lm() -> None:
    """Spiking language models: train, evaluate, write, classify (SpikeGPT)."""


TRAIN_HELP = """Train a spiking language model on a text.

--data takes a text file (.gz and .zip too), a folder with train, valid and test files (WikiText), or tokens in an .npy file; without it \
the documentation that Python ships. A file called enwik8 is split 90/5/5, others 90/10.

Examples:

  spiking lm train                                            (minutes)

  spiking lm train --data shakespeare.txt --steps 3000

  spiking lm train --data enwik8.zip --tokenizer bytes --preset 45m --mixed-precision bf16

  spiking lm train --data shakespeare.txt --placement pre --activation spike   (products of spikes)

  spiking lm train --resume --steps 4000                      (go on with the latest, for longer)

Ctrl-C saves the run; --resume continues it to the same bits. On several processes: torchrun --nproc-per-node 2 $(which spiking) lm train …

Into the run's folder go config.yaml, metrics.jsonl (one line an evaluation), checkpoint.safetensors, best-NNNN.safetensors, metrics.json \
and model/ (weights, config.json, tokenizer.json and a card), which the other commands take.
"""


@app.command(help=TRAIN_HELP, epilog="All settings, with their defaults: any run's config.yaml, which --config reads.")
def train(
    data: Annotated[Path | None, typer.Option(help="Text, folder of texts, or .npy tokens.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="characters (default), bytes, or a tokenizer file.")] = None,
    preset: Annotated[str, typer.Option(help="Size: tiny, 45m or 216m.")] = "tiny",
    steps: Annotated[int | None, typer.Option(help="Weight updates.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Updates between evaluations, each with a checkpoint.")] = None,
    n_layer: Annotated[int | None, typer.Option(help="Blocks, in place of the preset's.")] = None,
    n_embd: Annotated[int | None, typer.Option(help="Width, in place of the preset's.")] = None,
    ctx_len: Annotated[int | None, typer.Option(help="Tokens of a training window.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Share of the stream left out in training.")] = None,
    placement: Annotated[str | None, typer.Option(help="post (published) or pre: neurons before the products.")] = None,
    activation: Annotated[str | None, typer.Option(help="relu2 (published) or spike.")] = None,
    spiking: Annotated[bool, typer.Option("--spiking/--no-spiking", help="Without: the twin without neurons.")] = True,
    rate_weight: Annotated[float | None, typer.Option(help="Weight of the penalty on firing; 0 is off.")] = None,
    rate_limit: Annotated[float | None, typer.Option(help="Rate above which a neuron is penalised.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Round the trained weights to half precision.")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Windows a step, over all processes.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Parts in which a step is computed.")] = None,
    lr: Annotated[float | None, typer.Option(help="Largest learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.")] = None,
    log_with: Annotated[str | None, typer.Option(help="none, tensorboard or wandb.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; runs/lm-1, -2, … without it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or with the latest.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with settings; options on this line go before it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    from dataclasses import replace

    from spiking.cli import runs
    from spiking.cli.config import named_as_written, read_yaml
    from spiking.models.spikegpt import SpikeGPTConfig, run
    from spiking.training import Interrupted

    given = runs.nested(
        {
            "data": None if data is None else str(data),
            "tokenizer": tokenizer,
            "steps": steps,
            "eval_every": eval_every,
            "rate_weight": rate_weight,
            "rate_limit": rate_limit,
            "half": half or None,
            "model.n_layer": n_layer,
            "model.n_embd": n_embd,
            "model.ctx_len": ctx_len,
            "model.dropout": dropout,
            "model.placement": placement,
            "model.activation": activation,
            "model.spiking": None if spiking else False,
            "train.batch_size": batch_size,
            "train.accumulate": accumulate,
            "train.lr": lr,
            "train.seed": seed,
            "train.device": device,
            "train.mixed_precision": mixed_precision,
            "train.log_with": log_with,
        }
    )
    folder = runs.folder("lm", out, resume)
    file = folder / "config.yaml" if resume else config
    settings = {} if file is None else read_yaml(file)
    try:
        with named_as_written(run.Recipe, runs.writer(file, settings, given)):
            start = replace(run.Recipe(), model=SpikeGPTConfig.preset(preset))
            recipe = runs.recipe(start, file, settings, given, "spiking lm train")
            if resume:
                started = runs.recipe(start, file, settings, {}, "spiking lm train")
                _check_resumed(folder, started, recipe, given)
            recipe.train.check_machine()
            corpus = run.open_data(recipe)
            recipe = recipe.completed(corpus.tokenizer.vocab_size)
            runs.keep(folder, recipe)
            typer.echo(f"{corpus.description}\nrun in {folder}", err=True)
            metrics = run.train(recipe, corpus, folder, resume)
    except Interrupted as err:
        typer.echo(f"stopped and saved; go on with: spiking lm train --out {folder} --resume", err=True)
        raise typer.Exit(128 + err.signum) from err
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
        return
    rates = "" if metrics["mean_rate"] is None else f"; firing rate {metrics['mean_rate']:.3f}"
    typer.echo(
        f"{metrics['sample']['text']}\n\n"
        f"{metrics['parameters']:,} parameters{rates}\n"
        f"validation: {_scored(metrics['validation'], metrics['unit'])}\n"
        f"model: {folder / 'model'}"
    )


@app.command(name="eval")
def evaluate(
    data: Annotated[Path | None, typer.Option(help="Text, folder of texts, or .npy tokens; as for train.")] = None,
    model: Model = None,
    split: Annotated[str, typer.Option(help="train, validation, test, or all: the whole source.")] = "validation",
    window: Annotated[int, typer.Option(help="Windows of so many tokens, each from nothing; 0 carries the state.")] = 0,
    stride: Annotated[int, typer.Option(help="By how much windows move on; the window without it.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Bits per byte and character, and perplexity, of a model on a text.

    Without --window the state is carried through the text, so that every token is predicted from all before it.
    """
    import numpy as np

    from spiking.datasets.text import SPLITS, open_corpus
    from spiking.errors import SpikingError
    from spiking.models.spikegpt.run import described, score_text, unit

    if split not in (*SPLITS, "all"):
        raise SpikingError(f"--split: got {split}; expected train, validation, test or all.")
    network = _open(model)
    tokenizer = network.tokenizer
    assert tokenizer is not None
    corpus = open_corpus("" if data is None else data, tokenizer)
    tokens = np.concatenate(corpus[:3]) if split == "all" else getattr(corpus, split)
    if len(tokens) < 2:
        raise SpikingError(f"--split: {corpus.description} has no text for {split}. Name another split.")
    found = described(score_text(network, tokens, tokenizer, window, stride))
    if as_json:
        typer.echo(json.dumps({"corpus": corpus.description, "split": split, **found}, indent=2))
        return
    typer.echo(f"{corpus.description}\n{split}: {_scored(found, unit(tokenizer))}")


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "",
    model: Model = None,
    n: Annotated[int, typer.Option("--tokens", help="Tokens to write.")] = 300,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token always.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens that make up so much.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep so many tokens; 0 keeps all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show every token as it comes.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="File to go on from, if it exists, and to leave the state in afterwards.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write text. Each token costs the same time and memory, however long the text before it.

    Examples:

      spiking lm generate --prompt "ROMEO:" --stream

      spiking lm generate --prompt "ROMEO:" --state play.state     (and again, without a prompt, to go on)
    """
    from spiking.models.spikegpt import load_state, save_state

    network = _open(model)
    tokenizer = network.tokenizer
    assert tokenizer is not None
    before: dict[str, Any] = load_state(state, network) if state is not None and state.exists() else {}
    writer = network.generate(
        tokenizer.encode(prompt).tolist() if prompt or before else _beginning(tokenizer),
        n,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        **before,
    )
    if stream and not as_json:
        typer.echo(prompt, nl=False)
        for piece in tokenizer.pieces(writer):
            typer.echo(piece, nl=False)
        typer.echo()
    else:
        text = tokenizer.decode(writer)
        typer.echo(json.dumps({"prompt": prompt, "text": text}) if as_json else prompt + text)
    if state is not None:
        save_state(state, writer)


@app.command()
def classify(
    data: Annotated[Path | None, typer.Option(help="Folder with the files of the task.")] = None,
    task: Annotated[str | None, typer.Option(help="sst2 (default) or mr.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A trained run to start from; without it a small network over words starts from nothing."),
    ] = None,
    pool: Annotated[str | None, typer.Option(help="mean of all tokens (default), or last.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training sentences.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sentences a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Largest learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random, the split of mr too.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; runs/classify-1, -2, … without it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or with the latest.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a classifier of movie reviews (SST-2 or MR), beside a bag of words.

    The epoch is chosen on the validation sentences, and the test sentences are used once. Nothing is downloaded: --data names a folder
    with train.tsv, dev.tsv and test.tsv (lines `sentence TAB label`), or with rt-polarity.pos and rt-polarity.neg; .gz too.
    """
    from spiking.cli import runs
    from spiking.cli.config import named_as_written, read_yaml
    from spiking.models.spikegpt import classify as classifying
    from spiking.split import Proportion
    from spiking.training import Interrupted

    start = None if model is None else model / "model" if (model / "model").is_dir() else model
    given = runs.nested(
        {
            "data": None if data is None else str(data),
            "task": task,
            "start": None if start is None else str(start),
            "pool": pool,
            "train.epochs": epochs,
            "train.batch_size": batch_size,
            "train.lr": lr,
            "train.seed": seed,
            "train.device": device,
        }
    )
    folder = runs.folder("classify", out, resume)
    file = folder / "config.yaml" if resume else None
    settings = {} if file is None else read_yaml(file)
    try:
        with named_as_written(classifying.ClassifyRecipe, runs.writer(file, settings, given)):
            recipe = runs.recipe(classifying.ClassifyRecipe(), file, settings, given, "spiking lm classify")
            if resume:
                started = runs.recipe(classifying.ClassifyRecipe(), file, settings, {}, "spiking lm classify")
                runs.check_resumed(folder, started, recipe, given, longer=True)
            recipe.train.check_machine()
            sentences = classifying.open_sentences(recipe)
            runs.keep(folder, recipe)
            metrics = classifying.classify(recipe, sentences, folder, resume)
    except Interrupted as err:
        typer.echo(f"stopped and saved; go on with: spiking lm classify --out {folder} --resume", err=True)
        raise typer.Exit(128 + err.signum) from err
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
        return
    typer.echo(
        f"{metrics['task']}: {', '.join(f'{n:,} {split}' for split, n in metrics['sizes'].items())} sentences\n"
        f"accuracy {Proportion(**metrics['accuracy'])}\n"
        f"bag of words {Proportion(**metrics['bag_of_words'])}; majority {100 * metrics['majority']:.1f} %"
    )


def _open(folder: Path | None) -> SpikeGPT:
    """The model of a run, of a folder, or of the package; ready to run, with its tokenizer."""
    from spiking.errors import SpikingError
    from spiking.models import SpikeGPT

    if folder is None:
        return SpikeGPT.pretrained()
    inside = folder / "model"
    model = SpikeGPT.from_pretrained(inside if inside.is_dir() else folder)
    if model.tokenizer is None:
        raise SpikingError(f"{folder}: the model has no tokenizer.json; expected one beside its weights.")
    return model


def _beginning(tokenizer: Tokenizer) -> list[int]:
    """What stands before a text without a prompt: the end of a line, or where the vocabulary has none its first token."""
    from spiking.errors import SpikingError

    try:
        return tokenizer.encode("\n").tolist()
    except SpikingError:
        return [0]


def _scored(found: dict[str, Any], unit: str) -> str:
    return (
        f"{found['bits_per_byte']:.3f} bits/byte, {found['bits_per_character']:.3f} bits/character, "
        f"{found['nats_per_token']:.3f} nats/{unit}, perplexity {found['perplexity']:.2f} a {unit} ({found['protocol']})"
    )


def _check_resumed(folder: Path, started: Any, recipe: Any, given: dict[str, Any]) -> None:
    """Options may repeat what the run was started with, and raise the number of steps; nothing else."""
    from spiking.cli import runs

    if recipe.steps > started.steps:
        given = {name: value for name, value in given.items() if name != "steps"}
    runs.check_resumed(folder, started, recipe, given)
