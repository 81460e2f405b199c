"""Sentences of movie reviews, good or bad: a spiking language model with a classifying head, beside a bag of words.

    python examples/spikegpt_sentiment.py [--data DIR] [--task sst2|mr] [--start MODEL] [--epochs N] [--quick]

DIR holds train.tsv, dev.tsv and test.tsv of SST-2, or rt-polarity.pos and rt-polarity.neg of MR. Without it MADE-UP sentences stand in.
--start names the folder of a trained model, whose weights and tokenizer the classifier then begins with.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from spiking.datasets.text import Sentences

from spiking.models.spikegpt.classify import ClassifyRecipe, classify, open_sentences
from spiking.progress import Display
from spiking.split import Proportion

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="", help="folder with the sentences; MADE-UP ones without it")
parser.add_argument("--task", default="sst2", choices=["sst2", "mr"])
parser.add_argument("--start", default="", help="folder of a trained model")
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--out", type=Path, default=Path("runs/spikegpt_sentiment"))
parser.add_argument("--quick", action="store_true", help="few sentences and a small network, for a look")
arguments = parser.parse_args()


def made_up(n: int, seed: int) -> Sentences:
    """Sentences whose label hangs on one word, turned round by a "not" before it."""
    rng = np.random.default_rng(seed)
    nouns, words = ("film", "plot", "score", "cast"), (("dull", "bad", "flat"), ("fine", "good", "warm"))
    texts, labels = [], []
    for _ in range(n):
        sign, turned = (int(v) for v in rng.integers(2, size=2))
        texts.append(f"the {rng.choice(nouns)} is {'not ' if turned else ''}{rng.choice(words[sign])}")
        labels.append(sign ^ turned)
    return Sentences(texts, np.array(labels))


recipe = ClassifyRecipe(task=arguments.task, data=arguments.data, start=arguments.start)
recipe = replace(recipe, train=replace(recipe.train, epochs=arguments.epochs))
if not arguments.data:
    sizes = (300, 60, 60) if arguments.quick else (2000, 200, 400)
    sentences = {name: made_up(n, seed) for seed, (name, n) in enumerate(zip(("train", "validation", "test"), sizes))}
    recipe = replace(recipe, model=replace(recipe.model, n_embd=32), train=replace(recipe.train, lr=5e-3))
else:
    sentences = open_sentences(recipe)

display = Display() if arguments.quick else None
metrics = classify(recipe, sentences, arguments.out, resume=arguments.out.exists(), display=display)
name = {"sst2": "SST-2", "mr": "MR"}[arguments.task] if arguments.data else "MADE-UP sentences"
print(f"{name}: {metrics['sizes']['train']:,} sentences to train, {metrics['sizes']['test']:,} to test")
print(f"SpikeGPT      {Proportion(**metrics['accuracy'])}")
print(f"bag of words  {Proportion(**metrics['bag_of_words'])}")
