"""Spiking layers in a plain torch loop: copy this, put in your data and your layers.

python examples/own_network.py [--quick]
"""

import argparse

import torch

import spiking
from spiking import encode, loss, surrogate

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="a few steps only")
steps = 20 if parser.parse_args().quick else 200

torch.manual_seed(0)
TIME_BINS, CLASSES = 8, 4

# Anything that gives [B, features] in 0…1 and class numbers [B] will do: here, noisy patterns to tell apart.
patterns = torch.rand(CLASSES, 32)


def batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(CLASSES, (n,))
    return (patterns[labels] + 0.3 * torch.randn(n, 32)).clamp(0, 1), labels


# Layers take [T, B, …] and give [T, B, …]; nothing is remembered between calls.
network = spiking.Sequential(
    spiking.Linear(32, 64),
    spiking.BatchNorm1d(64),
    spiking.LIF(beta=0.9, surrogate=surrogate.ATan(alpha=2.0)),
    spiking.Linear(64, CLASSES),
    spiking.LIF(beta=0.9),
)
optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)

for step in range(steps):
    x, labels = batch(64)
    spikes = network(encode.rate(x, TIME_BINS))  # values become spikes [T, B, 32], spikes come out [T, B, 4]
    value = loss.rate(spikes, labels, scale=TIME_BINS)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1:3d}  loss {value.item():.3f}")

network.eval()
x, labels = batch(500)
with torch.no_grad():
    accuracy = (encode.spike_count(network(encode.rate(x, TIME_BINS))).argmax(1) == labels).float().mean().item()
print(f"accuracy on fresh samples {100 * accuracy:.1f} % (chance {100 / CLASSES:.0f} %)")

# Step by step, as data arrives; the state is yours.
state, first = None, x[:1]
for t in range(TIME_BINS):
    spikes_now, state = network.step(first, state)
    print(f"t={t}  output spikes {spikes_now[0].int().tolist()}")
