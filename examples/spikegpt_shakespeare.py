"""A spiking language model beside its own twin without neurons: curves of both in one figure, rates, and text that each writes.

    python examples/spikegpt_shakespeare.py [--data FILE] [--steps N] [--out DIR] [--quick]

FILE is a text, such as tiny Shakespeare; without it the documentation that Python ships. Four models of equal size are trained one after
the other: the published form ("post"), its twin without neurons, one whose matrix products read spikes ("prespike"), and the published
form with a penalty on firing ("quiet"). A run that was stopped goes on where it was when the same line is given again.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from spiking.models.spikegpt import run
from spiking.progress import Display

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="", help="a text file; Python's documentation without it")
parser.add_argument("--steps", type=int, default=1200)
parser.add_argument("--out", type=Path, default=Path("runs/spikegpt_shakespeare"))
parser.add_argument("--quick", action="store_true", help="small models and few steps, for a look")
arguments = parser.parse_args()

recipe = run.Recipe(data=arguments.data, steps=arguments.steps)
if arguments.quick:
    model = replace(recipe.model, n_layer=2, n_embd=32, ctx_len=32)
    recipe = replace(recipe, steps=40, eval_every=20, eval_tokens=2_000, model=model)

variants = {
    "post": {},
    "twin": {"spiking": False},
    "prespike": {"placement": "pre", "activation": "spike"},
    "quiet": {},
}
labels = {
    "post": "spiking, as published",
    "twin": "its twin without neurons",
    "prespike": "spikes before the products",
    "quiet": "with a penalty on firing",
}
found = {}
corpus = run.open_data(recipe)
print(corpus.description)
for name, changes in variants.items():
    wanted = replace(recipe, model=replace(recipe.model, **changes), rate_weight=5.0 if name == "quiet" else 0.0)
    folder = arguments.out / name
    display = Display() if arguments.quick else None
    found[name] = run.train(
        wanted.completed(corpus.tokenizer.vocab_size), corpus, folder, resume=folder.exists(), display=display
    )

axes = Figure(figsize=(6.5, 3.8), layout="constrained").subplots()
for name in variants:
    records = [json.loads(line) for line in (arguments.out / name / "metrics.jsonl").read_text().splitlines()]
    steps = [(record["epoch"] + 1) * recipe.eval_every for record in records]
    axes.plot(steps, [record["validation_loss"] for record in records], marker="o", label=labels[name])
axes.set(xlabel="step", ylabel=f"validation loss (nats per {found['post']['unit']})")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
for suffix in ("png", "svg"):
    axes.figure.savefig(arguments.out / f"curves.{suffix}", dpi=150)

console = Console(width=118)
table = Table("model", "nats", "to the twin", "bits / byte", "mean rate", "rates by layer", "seconds")
for name, metrics in found.items():
    nats = metrics["validation"]["nats_per_token"]
    rates = metrics["firing_rates"].values()
    table.add_row(
        name,
        f"{nats:.3f}",
        f"{nats - found['twin']['validation']['nats_per_token']:+.3f}",
        f"{metrics['validation']['bits_per_byte']:.3f}",
        f"{metrics['mean_rate']:.3f}" if rates else "",
        f"{min(rates):.2f}–{max(rates):.2f}" if rates else "",
        f"{metrics['seconds_training']:.0f}",
    )
console.print(table)
print(f"\n{found['post']['sample']['text']}\n\ncurves: {arguments.out / 'curves.png'}")
