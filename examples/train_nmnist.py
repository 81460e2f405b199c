"""Train the tutorial network on event-camera digits: what `spiking train nmnist` does, written out, with its result.

python examples/train_nmnist.py [--data DIR] [--epochs N] [--seed N] [--quick]
"""

import argparse
from dataclasses import replace

import numpy as np
import torch

import spiking
from spiking import datasets, hw_models
from spiking.models.nmnist import EventBatches, Recipe, build, default_epochs, hold_out, objective, proportion
from spiking.training import Trainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", help="folder or archive with N-MNIST; simulated recordings without it")
parser.add_argument("--epochs", type=int)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--quick", action="store_true", help="one epoch of a hundred recordings, for a look")
arguments = parser.parse_args()

# Recordings are events (t, x, y, p); they become frames [T, B, 2, 34, 34] batch by batch, turned and shifted anew each epoch.
train, test = datasets.NMNIST(arguments.data, train=True), datasets.NMNIST(arguments.data, train=False)
print(train.describe())
train_events, test_events = train.events(), test.events()
if arguments.quick:
    train_events, test_events = train_events.select(np.arange(100)), test_events.select(np.arange(50))

# Every number has a name and a default: Recipe().model, .frames, .train.
recipe = Recipe()
epochs = (
    1
    if arguments.quick
    else arguments.epochs or default_epochs(round(len(train_events) * (1 - recipe.validation)), train.simulated)
)
recipe = replace(recipe, train=replace(recipe.train, epochs=epochs, seed=arguments.seed))
frames = EventBatches(train_events, config=recipe.frames, seed=recipe.train.seed)
test_frames = EventBatches(test_events, config=recipe.frames)

# The epoch is chosen on a tenth of the training recordings, never on the test set.
training, validation = hold_out(train_events.labels, recipe.validation, recipe.train.seed)

network = build(recipe)
trainer = Trainer(network, objective(recipe.label_smoothing), recipe.train)
trainer.fit(frames.subset(training), frames.subset(validation))

found = trainer.evaluate(test_frames)
mark = "SIMULATED " if train.simulated else ""
print(f"{mark}accuracy {proportion(int((found.predictions == found.labels).sum()), len(found.labels))}")

# What a run did, counted spike by spike, and what that would cost beside the equal network without spikes.
network.cpu()
x, _ = test_frames.batch(np.arange(min(50, len(test_frames))), None)
with torch.no_grad(), spiking.record(network) as trace:
    network(x)
print(hw_models.estimate(trace, "digital-45nm", accuracy=found.accuracy).summary())
