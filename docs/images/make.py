"""Make the pictures of README and docs: python docs/images/make.py [RUN]

report.png is the top of the report of a finished run (runs/nmnist-1, say) as a browser shows it, and is made where RUN is given;
membrane.png, surrogates.png, frames.png, cells.png and digits_diffusion.png need the library only.
event_conv.png and event_linear.png (and .svg) are what spiking bench draws with --figure: timed anew each time, so made on an idle machine.
device_noise.png is what examples/device_noise.py draws of real recordings.
spikegpt_shakespeare.png is what examples/spikegpt_shakespeare.py draws of tiny Shakespeare.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from spiking.benchmarks import run
from spiking.hw_models.wires import Wires, effective_matrix

import spiking
from spiking import datasets, hw_models, plot, surrogate
from spiking.errors import SpikingError
from spiking.models import SpikingDiffusion
from spiking.models.diffusion.run import save_grid

HERE = Path(__file__).parent
DPI = 110


def report(page: Path, picture: Path, width: int = 1000, height: int = 1420) -> None:
    """A photograph of the first screen of a page."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SpikingError(f"{picture}: found no chromium; expected a browser that takes pictures. Install chromium.")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=3000",
             f"--window-size={width},{height}", f"--screenshot={shot}", page.resolve().as_uri()],
            check=True, capture_output=True,
        )  # fmt: skip
        shutil.move(shot, picture)


def membrane(picture: Path) -> None:
    """One neuron under one input, with each of the three resets."""
    x = torch.full((30, 1, 1), 0.3)
    x[18:] = 0
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    for ax, reset in zip(figure.subplots(3, 1, sharex=True), ("subtract", "zero", "none")):
        layer, state, potentials, spikes = spiking.LIF(beta=0.9, reset=reset), None, [], []
        for x_t in x:
            s, state = layer.step(x_t, state)
            potentials.append(state.v)
            spikes.append(s)
        plot.membrane(torch.stack(potentials)[:, 0], ax, threshold=1.0, spikes=torch.stack(spikes)[:, 0])
        ax.set_title(f'reset="{reset}"', loc="left", fontsize=9)
        ax.set_ylabel("v")
        ax.label_outer()
    figure.savefig(picture, dpi=DPI)


def surrogates(picture: Path) -> None:
    """Every surrogate with its default parameters."""
    u = torch.linspace(-2, 2, 801)
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(2, 5, sharex=True, sharey=True).flat
    for ax, kind in zip(axes, surrogate.ALL):
        ax.plot(u, kind().grad(u), color="#1b2a3a")
        ax.set_title(kind.__name__, fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("u = h - threshold", fontsize=9)
    figure.supylabel("ds/du", fontsize=9)
    figure.savefig(picture, dpi=DPI)


def frames(picture: Path) -> None:
    """One simulated recording in nine time bins: three a saccade."""
    with tempfile.TemporaryDirectory() as folder:
        recordings = datasets.SimulatedNMNIST(train=False, limit=6, cache_dir=folder)
        events, _ = recordings[5]
    figure = plot.frames(datasets.ToFrames(time_bins=9)(events))
    figure.savefig(picture, dpi=DPI)


def cells(picture: Path) -> None:
    """Written over target conductance, conductance over a year, and what the wires of an array leave of its devices."""
    figure = Figure(figsize=(9.5, 3.1), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    names = ("rram-wan", "rram-40nm", "pcm")
    times = torch.logspace(0, 7.5, 40).tolist()
    for name, colour in zip(names, (plot.BLUE, plot.ORANGE, plot.INK)):
        cell = hw_models.load_cell(name)
        target = torch.linspace(cell.G_min, cell.G_max, 300)
        left.plot(1e6 * target, 1e6 * hw_models.Devices(cell, target).at(), ".", markersize=2, color=colour, label=name)
        many = hw_models.Devices(cell, torch.full((1000,), 0.7 * cell.G_max))
        g = torch.stack([many.at(t) for t in times]) * 1e6
        middle.fill_between(
            times, *torch.quantile(g, torch.tensor([0.05, 0.95]).double(), dim=1), color=colour, alpha=0.18
        )
        middle.plot(times, g.mean(1), color=colour, label=name)
    left.set(xlabel="target (µS)", ylabel="written (µS)")
    left.legend(frameon=False, fontsize=8)
    middle.set(xscale="log", xlabel="seconds since writing", ylabel="conductance (µS): mean, 5–95 %")
    G = torch.full((128, 128), 50e-6)
    share = effective_matrix(G, Wires(1.0, 1.0)) / G
    shown = right.imshow(100 * share, cmap="viridis", vmin=0)
    figure.colorbar(shown, ax=right, label="share of each device (%)")
    right.set(xlabel="bit line", ylabel="word line", title="128 × 128 at 50 µS, wires of 1 Ω")
    right.title.set_fontsize(9)
    for ax in (left, middle):
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=DPI)


def event_conv(picture: Path) -> None:
    """Event-driven convolutions against torch's, over density."""
    run.draw(run.run([picture.stem])["rows"], str(picture.parent))


def event_linear(picture: Path) -> None:
    """The event-driven linear layer against torch's, over density."""
    run.draw(run.run([picture.stem])["rows"], str(picture.parent))


def digits_diffusion(picture: Path) -> None:
    """64 digits of the model that ships."""
    save_grid(SpikingDiffusion.pretrained().sample(64, 8, seed=0).images, picture)


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise SystemExit(__doc__)
    for make in (membrane, surrogates, frames, cells, digits_diffusion, event_conv, event_linear):
        make(HERE / f"{make.__name__}.png")
    if arguments:
        report(Path(arguments[0]) / "report.html", HERE / "report.png")


if __name__ == "__main__":
    main(sys.argv[1:])
