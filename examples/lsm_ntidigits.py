"""A liquid state machine on spoken digits beside raw counts: a fixed random reservoir, and only its readout is fitted.

python examples/lsm_ntidigits.py [--data DIR] [--neurons N] [--seed N] [--quick]
"""

import argparse

import torch
from spiking.datasets import Cochlea, open_sound

from spiking.models import LiquidStateMachine
from spiking.models.lsm import LinearReadout, diagnose
from spiking.split import proportion

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", help="folder or file with sound or its events; simulated digits without it")
parser.add_argument("--neurons", type=int, default=1000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--quick", action="store_true", help="a few recordings and neurons, for a look")
arguments = parser.parse_args()

STEPS = 129
train, test = open_sound(arguments.data, Cochlea(model="gammatone"))
print(train.describe())
indices = [range(0, len(part), 4) if arguments.quick else range(len(part)) for part in (train, test)]
labels = [part.labels[list(which)] for part, which in zip((train, test), indices)]
neurons = 100 if arguments.quick else arguments.neurons

lsm = LiquidStateMachine(
    train.n_channels, neurons, out=len(train.classes), beta=0.9, threshold=5.3, const=0.3, device="gaussian",
    seed=arguments.seed,
)  # fmt: skip
frames = [torch.from_numpy(part.frames(STEPS, indices=list(which))) for part, which in zip((train, test), indices)]
features = [torch.cat([lsm.features(x) for x in part.split(250, dim=1)]) for part in frames]
counts = [
    torch.from_numpy(part.frames(1, binary=False, indices=list(which))[0])
    for part, which in zip((train, test), indices)
]
print(f"spikes per neuron and step: {diagnose(lsm, frames[0][:, :50]).firing_rate:.3f}")
mark = "SIMULATED " if train.simulated else ""
for name, (mine, theirs) in {"reservoir": features, "counts of events": counts}.items():
    readout = LinearReadout(mine.shape[1], len(train.classes))
    readout.fit(mine, labels[0], "ridge")
    hits = int((readout(theirs).argmax(1).numpy() == labels[1]).sum())
    print(f"{mark}{name}, ridge regression: accuracy {proportion(hits, len(labels[1]))}")
