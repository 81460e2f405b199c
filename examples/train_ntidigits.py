"""Train a recurrent network with learned synaptic delays on spoken digits: what `spiking train ntidigits` does, written out.

python examples/train_ntidigits.py [--data DIR] [--epochs N] [--seed N] [--max-delay N] [--quick]
"""

import argparse
from dataclasses import replace

import numpy as np
import torch

import spiking
from spiking import hw_models
from spiking.classify import objective
from spiking.models.ntidigits import Recipe, SoundBatches, build, open_recordings, optimizer
from spiking.split import proportion
from spiking.training import Trainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", default="", help="folder or file with sound or its events; simulated digits without it")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--max-delay", type=int, default=12, help="longest learned delay in steps; 0 for none")
parser.add_argument("--quick", action="store_true", help="one epoch of a hundred recordings, for a look")
arguments = parser.parse_args()

recipe = Recipe(data=arguments.data)
recipe = replace(
    recipe,
    model=replace(recipe.model, max_delay=arguments.max_delay),
    train=replace(recipe.train, epochs=1 if arguments.quick else arguments.epochs, seed=arguments.seed),
)
recordings = open_recordings(recipe)
print(recordings.description)
size = {"inputs": recordings.train.n_channels, "classes": len(recordings.train.classes)}
recipe = replace(recipe, model=replace(recipe.model, **size))

# Events become frames [T, B, channels] batch by batch, under another tempo, tract and colour of the voice in every epoch.
frames = SoundBatches(recordings.train, recipe.frames, recipe.train.seed)
test_frames = SoundBatches(recordings.test, recipe.frames)
if arguments.quick:
    rng = np.random.default_rng(0)
    frames, test_frames = (f.subset(rng.permutation(len(f))[:100]) for f in (frames, test_frames))

network = build(recipe, len(frames))
trainer = Trainer(network, objective(recipe.label_smoothing), recipe.train, optimizer=optimizer)
trainer.fit(frames)

found = trainer.evaluate(test_frames)
mark = "SIMULATED " if recordings.simulated else ""
print(f"{mark}accuracy {proportion(int((found.predictions == found.labels).sum()), len(found.labels))}")
if arguments.max_delay:
    steps = torch.cat([network.body.linear1.steps.flatten(), network.body.linear2.steps.flatten()])
    print(f"delays: {' '.join(map(str, torch.bincount(steps, minlength=arguments.max_delay + 1).tolist()))} synapses")

# What a run did, counted spike by spike, and what that would cost beside the equal network without spikes.
network.cpu().eval()
x, _ = test_frames.batch(np.arange(min(50, len(test_frames))), None)
with torch.no_grad(), spiking.record(network) as trace:
    network(x)
print(hw_models.estimate(trace, "digital-45nm", accuracy=found.accuracy).summary())
