"""Classify event-camera recordings as their events come in, with a trained network compiled for it.

python examples/stream_events.py [--data DIR] [--quick]
"""

import argparse
import time

import torch

import spiking
from spiking import datasets
from spiking.models import NMNISTNet

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", help="folder or archive with N-MNIST; simulated recordings without it")
parser.add_argument("--quick", action="store_true", help="a few recordings only")
arguments = parser.parse_args()
n = 10 if arguments.quick else 100

# Recordings are events (t in µs, x, y, p); the camera's own motion is taken out, as the network learned them.
recordings = datasets.NMNIST(arguments.data, train=False, stabilize=True)
print(recordings.describe())

# The network that ships with the package, trained on six frames of 52.5 ms each; compiled, it costs what its spikes cost.
STEPS, STEP_US = 6, 52_500
network = spiking.compile_events(NMNISTNet.pretrained(), torch.zeros(1, 1, 2, 34, 34))
print(network.report())

# 1. Whole recordings, events in, scores out: no frames are made.
hits, seconds = 0, 0.0
for k in range(n):
    events, label = recordings[k * (len(recordings) // n)]
    start = time.perf_counter()
    _, membrane = network.run_events(events, STEP_US / 1e6, start=0, steps=STEPS, clip=True, return_membrane=True)
    seconds += time.perf_counter() - start
    hits += int(membrane.mean(0).argmax() == label)
print(f"{hits} of {n} recordings recognised, {1e6 * seconds / n:.0f} µs each")

# 2. As a camera would deliver them: one packet of events a step, the state handed on, a guess at any time.
events, label = recordings[0]
state, total = None, torch.zeros(10)
for step in range(STEPS):
    begin = step * STEP_US
    packet = events[(events.t >= begin) & (events.t < begin + STEP_US)]
    spikes, state = network.run_events(
        packet, STEP_US / 1e6, start=begin, steps=1, clip=True, state=state, return_state=True
    )
    total += state[1].v[0]  # the output membrane, which adds up the evidence
    print(
        f"t={(begin + STEP_US) / 1000:5.1f} ms  {len(packet):4d} events  guess {int(total.argmax())} (it is a {label})"
    )

# 3. Frames, one by one: the same network, any source of frames.
frame = torch.zeros(1, 2, 34, 34)
frame[0, 1, 10:24, 16] = 1
spikes, state = network.step(frame, state)
print(f"one more frame: output spikes {spikes[0].int().tolist()}")
