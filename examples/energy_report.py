"""What would this network cost in hardware? Record a run, price it in three accountings, write the report.

    python examples/energy_report.py [--quick] [--out report.html]

The network is untrained and its input is a moving ring of events, so that the script needs no data; put your own
model and a batch of your own recordings [T, B, C, H, W] in their place.
"""

import argparse

import torch
from torch import Tensor

import spiking
from spiking import hw_models
from spiking.layer import Conv2d, Flatten, Linear, MaxPool2d, Sequential


def moving_ring(time_steps: int, batch: int, seed: int) -> Tensor:
    """Events of a ring that wanders over a 34 × 34 sensor: OFF inside its edge, ON outside; [T, B, 2, 34, 34]."""
    noise = torch.Generator().manual_seed(seed)
    start = 6 + 8 * torch.rand(batch, 2, generator=noise)
    pixels = torch.arange(34.0)
    frames = []
    for t in range(time_steps):
        centre = start + 1.2 * t
        distance = torch.hypot(pixels - centre[:, :1, None], pixels[:, None] - centre[:, 1:, None])
        edges = torch.stack([(distance - 4.5).abs() < 1, (distance - 6.5).abs() < 1], 1)
        frames.append(edges & (torch.rand(edges.shape, generator=noise) < 0.6))
    return torch.stack(frames).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="report.html", help="the page to write; its figures go beside it as JSON")
    parser.add_argument("--quick", action="store_true", help="one pass of a few recordings")
    arguments = parser.parse_args()
    passes, batch = (1, 4) if arguments.quick else (4, 32)

    torch.manual_seed(0)
    model = Sequential(
        Conv2d(2, 12, 5),
        MaxPool2d(2),
        spiking.LIF(beta=0.9, threshold=0.5),
        Conv2d(12, 32, 5),
        MaxPool2d(2),
        spiking.LIF(beta=0.9, threshold=0.3),
        Flatten(),
        Linear(800, 10),
        spiking.LIF(beta=0.9, threshold=0.3),
    ).eval()

    with torch.no_grad(), spiking.record(model, keep_spikes=1, data_id="moving rings", seed=0, dt=0.03) as trace:
        for seed in range(passes):
            model(moving_ring(10, batch, seed))

    estimates = [hw_models.estimate(trace, "digital-45nm", accounting=a) for a in ("operations", "with-memory")]
    for found in estimates:
        print(f"{found.accounting:<12} {hw_models.si(found.energy.nominal, 'J')} per sample; {found.summary()}")
    hw_models.report(estimates, arguments.out, title="An untrained network on moving rings")
    print(f"report: {arguments.out}")


if __name__ == "__main__":
    main()
