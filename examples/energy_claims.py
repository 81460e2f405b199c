"""What papers count and what a reviewer would count, for three kinds of networks, in one table.

    python examples/energy_claims.py [--quick] [--out claims.html]

The first ratio of each row is the paper's way: one rate times 0.9 pJ for every connection of the spiking network (its first layer
once as multiply-accumulates where the paper says so), 4.6 pJ for every connection of the conventional one. The others are counted
from the run: what the operands really were, every step, neuron updates, then the memory that moves, and at last beside the network
that could stand in its place: activations of no more bits than the spikes can say. Ratios are SNN / ANN: below 1 the spiking
network is cheaper.

Two networks are small, with random weights, and only wired like their papers' (SpikeGPT, arXiv 2302.13939; IIR-SNN, arXiv
2110.05929): their firing rates are those that the table states, not the papers'. The third is the N-MNIST network that ships with the
library, on SIMULATED recordings. --out writes the report of the three, each counted in three ways in one table.

A second table is about the rate of spikes at which both networks cost the same: what Yan et al. print (arXiv 2409.08290v4), the
same from the constants of that paper that are known, and what this library's digital processor says of a layer of their size.
"""

import argparse

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import spiking
from spiking import hw_models
from spiking.layer import Sequential

E_AC, E_MAC = 0.9e-12, 4.6e-12  # joules, 45 nm, fp32: what both papers take


class SpikingBlock(nn.Module):
    """A block of SpikeGPT: time mixing and channel mixing, each behind a norm and followed by spikes that are added to the stream.

    The weighted sum over past tokens is a plain decay here; its element-wise products are in no row of the table.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.key, self.value, self.receptance = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.lif1, self.lif2 = (spiking.LIF(0.5, 0.08, reset="zero", decay_input=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm1(x)
        mixed = torch.zeros_like(x[0])
        past = []
        for kv in torch.exp(self.key(n).clamp(max=2)) * self.value(n):
            mixed = 0.5 * mixed + kv
            past.append(mixed)
        x = x + self.lif1(self.out(torch.sigmoid(self.receptance(n)) * torch.stack(past)))
        n = self.norm2(x)
        return x + self.lif2(torch.sigmoid(self.gate(n)) * self.down(torch.relu(self.up(n)) ** 2))


def spikegpt_like(samples: int) -> spiking.EventTrace:
    """Two blocks of width 64 on 16 tokens, whose embeddings are binary."""
    width = 64
    net = nn.Sequential(
        SpikingBlock(width), SpikingBlock(width), nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
    )
    with torch.no_grad(), spiking.record(net.eval(), data_id="random binary embeddings", seed=0) as trace:
        net((torch.rand(16, samples, width) < 0.5).float())
    return trace


def iir_like(samples: int) -> spiking.EventTrace:
    """A small VGG whose first layer reads the image itself, in each of 5 steps."""
    lif = {"beta": 1.0, "threshold": 0.6, "reset": "subtract"}
    net = Sequential(
        spiking.Conv2d(3, 16, 3, padding=1, bias=False), spiking.LIF(**lif), spiking.AvgPool2d(2), spiking.LIF(**lif),
        spiking.Conv2d(16, 32, 3, padding=1, bias=False), spiking.LIF(**lif), spiking.AvgPool2d(2), spiking.LIF(**lif),
        spiking.Flatten(), spiking.Linear(32 * 8 * 8, 128, bias=False), spiking.LIF(**lif),
        spiking.Linear(128, 10, bias=False),
    ).eval()  # fmt: skip
    images = torch.rand(samples, 3, 32, 32)
    with torch.no_grad(), spiking.record(net, data_id="random images", seed=0) as trace:
        net(images.expand(5, *images.shape))
    return trace


def nmnist(samples: int) -> spiking.EventTrace:
    """The network that ships with the library, on SIMULATED test recordings."""
    from spiking.datasets import NMNIST

    from spiking.models.nmnist import EventBatches, FrameConfig, NMNISTNet

    batches = EventBatches(NMNIST(train=False).events(1), config=FrameConfig(), seed=0, threads=1)
    net = NMNISTNet.pretrained().eval()
    frames, _ = batches.batch(np.arange(samples), None)
    with torch.no_grad(), spiking.record(net, data_id="SIMULATED N-MNIST", seed=0) as trace:
        net(frames)
    return trace


def claimed(trace: spiking.EventTrace, passes: int) -> float:
    """SNN / ANN as the papers write it: every layer behind the first costs rate · steps · connections · 0.9 pJ.

    The rate of a layer is that of the spikes that it reads, or, where it reads no spikes, that of all neurons.
    """
    spikes = sum(int(row.counts["spikes"].sum()) for row in trace.neurons)
    mean = spikes / sum(int(row.counts["updates"].sum()) for row in trace.neurons)
    rows = [row for row in trace.layers if row.is_weight_layer]
    snn = 0.0
    for i, row in enumerate(rows):
        rate = mean if row.operand_class == "analogue" else row.counts["in_nnz"].sum() / row.counts["in_numel"].sum()
        image = i == 0 and row.operand_class == "analogue" and row.repeated_input
        snn += row.dense_padded * (E_MAC if image else E_AC * float(rate) * trace.n_steps)
    return snn / (E_MAC * passes * sum(row.dense_padded for row in rows))


def crossover_on(chip: str, zeros: float, samples: int) -> float:
    """Rate below which 5 steps of a layer of 4096 inputs cost less than 3-bit activations of which `zeros` are zero."""
    net = nn.Sequential(spiking.IF(), spiking.Linear(4096, 64, bias=False))
    with torch.no_grad(), spiking.record(net) as trace:
        net((torch.rand(5, samples, 4096) < 0.057).float())
    found = hw_models.estimate(trace, chip, precision="int8", ann_zeros=zeros)
    return found.fair.break_even.nominal


def crossover(samples: int) -> Table:
    """Rates of equal energy: published, from the paper's constants, and on a processor without a network on chip."""
    table = Table(title="Spikes per neuron and step at which both networks cost the same", title_justify="left")
    for name in ("counted by", "case", "published", "found"):
        table.add_column(name, justify="left" if name in ("counted by", "case") else "right")
    for row in hw_models.verify():
        if row.name.startswith("crossover"):
            case = row.name.partition(", ")[2].removesuffix(": rate")
            table.add_row("the paper's constants", case, f"{100 * row.expected:.4g} %", f"{100 * row.found:.4g} %")
    for zeros in (0.0, 0.71):
        case = f"T = 5, 8-bit weights, the twin skips {100 * zeros:.0f} % of its work"
        table.add_row("digital-sram", case, "", f"{100 * crossover_on('digital-sram', zeros, samples):.4g} %")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples")
    parser.add_argument("--out", help="a page to write: the report of the three networks")
    arguments = parser.parse_args()
    samples = 4 if arguments.quick else 100
    torch.manual_seed(0)
    counted: dict[str, hw_models.Estimate] = {}
    table = Table(title="SNN / ANN energy per sample", title_justify="left")
    for name in (
        "network",
        "steps",
        "rate",
        "as papers count",
        "operations",
        "with memory",
        "fair twin",
        "low – high",
        "warnings",
    ):
        table.add_column(name, justify="left" if name in ("network", "warnings") else "right")
    for name, make in (("SpikeGPT-like", spikegpt_like), ("IIR-like", iir_like), ("N-MNIST, SIMULATED", nmnist)):
        trace = make(samples)
        passes = trace.n_steps if make is spikegpt_like else 1  # a language model reads every token, spiking or not
        operations = hw_models.estimate(trace, "digital-45nm", accounting="operations", ann_steps=passes)
        memory = hw_models.estimate(trace, "digital-sram", accounting="with-memory", ann_steps=passes)
        spikes = sum(int(row.counts["spikes"].sum()) for row in trace.neurons)
        counted[name], fair = memory, memory.fair.ratio
        table.add_row(
            name,
            str(trace.n_steps),
            f"{spikes / sum(int(row.counts['updates'].sum()) for row in trace.neurons):.3f}",
            hw_models.figure(claimed(trace, passes)),
            hw_models.figure(operations.ratio.nominal),
            hw_models.figure(memory.ratio.nominal),
            hw_models.figure(fair.nominal),
            f"{hw_models.figure(fair.low)} – {hw_models.figure(fair.high)}",
            " ".join(sorted({w.code for e in (operations, memory) for w in e.warnings})),
        )
    Console(width=140).print(table)
    Console(width=140).print(crossover(samples))
    if arguments.out:
        title = "What papers count, and what a reviewer would count"
        hw_models.report(list(counted.values()), arguments.out, labels=list(counted), title=title)
        print(f"report: {arguments.out}")


if __name__ == "__main__":
    main()
