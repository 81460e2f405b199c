"""What do 8 and 4 bits cost in accuracy, and what do they save? The same network at each precision, side by side.

    python examples/precision.py [--data DIR] [--pretrained] [--epochs N] [--seed N] [--quick]

A network is trained in floating point, then its weights and its membranes get 8 or 4 bits: rounded as they are, and again
after a few more epochs in which the rounding took part. Without --data the recordings are SIMULATED.

Energy is that of each network's own run. No source gives the energy of a 4-bit addition, so that digital logic prices 4
bits as int8; in arrays of memory cells a weight of 4 bits needs half the cells and converters of one of 8.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch
from torch import nn

import spiking
from spiking import datasets, hw_models
from spiking.models import NMNISTNet
from spiking.models.nmnist import EventBatches, Recipe, build, hold_out, objective, proportion
from spiking.training import Trainer

CALIBRATION = 64  # training recordings from which the ranges of the membranes are taken
TRACED = 100  # test recordings that an estimate rests on


def array_of(bits: int) -> hw_models.Hardware:
    """The memory-array chip with weights of so many bits."""
    chip = hw_models.load("rram-crossbar")
    width = replace(chip.constants["weight_bits"], value=float(bits), low=float(bits), high=float(bits))
    return replace(chip, constants={**chip.constants, "weight_bits": width})


def show(name: str, network: nn.Module, trainer: Trainer, frames: EventBatches) -> None:
    """One row: accuracy on all test recordings, energy on some of them."""
    found = trainer.evaluate(frames)
    hits = int((found.predictions == found.labels).sum())
    network.cpu().eval()
    stated = getattr(network, "precision", None) or hw_models.Precision()
    network.precision = stated.measured(found.accuracy, len(frames))  # the trace carries it to every estimate
    x, _ = frames.batch(np.arange(min(TRACED, len(frames))), None)
    with torch.no_grad(), spiking.record(network) as trace:
        network(x)
    bits, accuracy = stated.weight_bits, found.accuracy
    digital = hw_models.estimate(trace, "digital-sram", precision="fp32" if bits == 32 else "int8", accuracy=accuracy)
    energies = [hw_models.si(digital.energy.nominal, "J")]
    if bits <= 8:
        array = hw_models.estimate(trace, array_of(bits), precision="int8", accuracy=accuracy)
        energies.append(hw_models.si(array.energy.nominal, "J"))
    rates = " ".join(f"{rate:.3f}" for rate in trace.firing_rates.values())
    print(f"{name:<28} {proportion(hits, len(frames))!s:<54} {energies[0]:>12} {([*energies, '–'])[1]:>13}   {rates}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder or archive with N-MNIST; simulated recordings without it")
    parser.add_argument("--pretrained", action="store_true", help="the network that ships with the package")
    parser.add_argument("--epochs", type=int, default=10, help="in floating point; a third as many at each precision")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a hundred recordings, one epoch")
    arguments = parser.parse_args()

    train, test = datasets.NMNIST(arguments.data, train=True), datasets.NMNIST(arguments.data, train=False)
    events, test_events = train.events(), test.events()
    if arguments.quick:
        events, test_events, arguments.epochs = events.select(np.arange(100)), test_events.select(np.arange(50)), 1
    recipe = Recipe()
    recipe = replace(recipe, train=replace(recipe.train, epochs=arguments.epochs, seed=arguments.seed))
    frames = EventBatches(events, config=recipe.frames, seed=arguments.seed)
    test_frames = EventBatches(test_events, config=recipe.frames)
    training, validation = hold_out(events.labels, recipe.validation, arguments.seed)
    judge = objective(recipe.label_smoothing)

    network = NMNISTNet.pretrained() if arguments.pretrained else build(recipe)
    trainer = Trainer(network, judge, recipe.train)
    if not arguments.pretrained:
        trainer.fit(frames.subset(training), frames.subset(validation))

    print(f"{'SIMULATED ' if train.simulated else ''}N-MNIST, {len(test_events)} test recordings; energy per sample")
    print(f"{'weights and membranes':<28} {'accuracy':<54} {'digital-sram':>12} {'rram-crossbar':>13}   firing rates")
    show("floating point", network, trainer, test_frames)
    calibration = [frames.batch(training[:CALIBRATION], None)]
    again = replace(recipe.train, epochs=max(1, arguments.epochs // 3), lr=recipe.train.lr / 4, warmup_epochs=0.0)
    for bits in (8, 4):
        rounded = hw_models.quantize(network, bits, bits, calibration=calibration)
        show(f"{bits} bits, rounded", rounded, Trainer(rounded, judge, again), test_frames)
        aware = hw_models.quantize(network, bits, bits, calibration=calibration, aware=True)
        trainer = Trainer(aware, judge, again)
        trainer.fit(frames.subset(training), frames.subset(validation))
        show(f"{bits} bits, trained so", hw_models.bake(aware), trainer, test_frames)


if __name__ == "__main__":
    main()
