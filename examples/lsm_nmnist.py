"""A fixed random reservoir on N-MNIST: accuracy beside its controls, on memory cells, and what it would cost in energy.

    python examples/lsm_nmnist.py [--quick] [--data FOLDER] [--instances 20]

Without --data the recordings are SIMULATED. The readout is a ridge regression, fitted through the same cells that it is used on; a
second column shows what is left where it was fitted on exact weights.
"""

import argparse
import statistics
from dataclasses import replace

import torch

import spiking
from spiking import hw_models
from spiking.models.lsm import ReservoirNetwork
from spiking.models.lsm.run import Recipe, instances, open_recordings, reservoir, run, shown

CHIPS = ("rram-crossbar", "digital-45nm", "digital-sram", "gpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="N-MNIST: a folder or an archive")
    parser.add_argument("--instances", type=int, default=20, help="chips with the same preset")
    parser.add_argument("--quick", action="store_true", help="few recordings, neurons and chips")
    arguments = parser.parse_args()
    recipe = Recipe(data=arguments.data)
    if arguments.quick:
        recipe, arguments.instances = replace(recipe, limit=100, neurons=60, seeds=1), 2

    found = run(recipe)
    mark = "SIMULATED " if found["simulated"] else ""
    print(found["recordings"])
    for name, row in found["rows"].items():
        print(f"{mark}{name:<40} {shown(row)}")

    columns = instances(replace(recipe, cell="rram-40nm", device="rram-40nm"), arguments.instances)
    print(f"\nrram-40nm, {arguments.instances} instances (published: software 89.11, hardware 89.66 %)")
    for name, accuracies in columns.items():
        print(f"{mark}{name:<40} {100 * statistics.mean(accuracies):.1f} ± {100 * statistics.stdev(accuracies):.1f} %")

    recordings = open_recordings(recipe)
    lsm = reservoir(recipe, recordings, 0)
    network = ReservoirNetwork(lsm)
    with torch.no_grad(), spiking.record(network, data_id="N-MNIST", seed=0) as trace:
        for x in recordings.batches():
            network(x)
    print("\nenergy of a recording (readout not fitted: it costs the same)")
    for chip in CHIPS:
        estimate = hw_models.estimate(trace, chip)
        print(
            f"{chip:<16} event-driven {hw_models.si(estimate.energy.nominal, 'J'):>9}   the same dense "
            f"{hw_models.si(estimate.ann.nominal, 'J'):>9}   ratio {estimate.ratio.nominal:.3f}"
        )


if __name__ == "__main__":
    main()
