"""Do images and spoken digits of a class that neither branch saw find each other? All pairs of digits, beside controls.

    python examples/zero_shot.py [--quick] [--data NMNIST --sound FSDD] [--preset published] [--out zero_shot]

Without --data and --sound the recordings are SIMULATED. Into the folder go confusion matrices and a picture of the embeddings.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from spiking.models.lsm.pairing import PRESETS, ZeroShotRecipe, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="N-MNIST: a folder or an archive")
    parser.add_argument(
        "--sound", default="", help="spoken digits: a folder or a zip file of wav files, or n-tidigits.hdf5"
    )
    parser.add_argument("--preset", default="label-aware", choices=PRESETS, help="how projections are trained")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("zero_shot"), help="folder for the pictures")
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs, small reservoirs")
    arguments = parser.parse_args()
    recipe = ZeroShotRecipe(arguments.data, arguments.sound, arguments.preset, seeds=arguments.seeds)
    if arguments.quick:
        recipe = replace(recipe, seeds=1, epochs=2, neurons=50, limit=300)
    found = run(recipe, print, arguments.out)
    print(*found["recordings"], sep="\n")
    for way, skilled in found["shows_skill"].items():
        verdict = "lies above" if skilled else "does not lie above"
        print(f"{way}: the interval over pairs of unseen classes {verdict} chance (50 %)")


if __name__ == "__main__":
    main()
