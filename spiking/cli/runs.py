"""What the commands that train have in common: folders of runs, and settings from options and files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from spiking.errors import SpikingError

T = TypeVar("T")


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """Options that were given, as nested settings.

    >>> nested({"data": None, "train.seed": 1})
    {'train': {'seed': 1}}
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        if value is not None:
            section, _, key = name.rpartition(".")
            (found.setdefault(section, {}) if section else found)[key] = value
    return found


def option(path: str) -> str:
    """The option of a setting: "train.batch_size" is --batch-size."""
    return "--model" if path == "model.kind" else "--" + path.rpartition(".")[2].replace("_", "-")


def holds(settings: dict[str, Any], path: str) -> bool:
    """Whether nested settings say anything about "section.name"."""
    section, _, key = path.rpartition(".")
    part = settings.get(section) if section else settings
    return isinstance(part, dict) and key in part


def writer(file: Path | None, settings: dict[str, Any], given: dict[str, Any]) -> Callable[[str], str]:
    """How the user wrote a setting: as an option, else as a key of the file, else not at all ("")."""

    def name_of(path: str) -> str:
        if holds(given, path):
            return option(path)
        return f"{file}: {path.replace('.', ': ')}" if holds(settings, path) else ""

    return name_of


def recipe(defaults: T, file: Path | None, settings: dict[str, Any], given: dict[str, Any], command: str) -> T:
    """Defaults, then the file, then the line. A setting that the line replaces is not looked at in the file."""
    from spiking.cli.config import override

    merged = dict(settings)
    for name, value in given.items():
        below = merged.get(name, {})
        if not isinstance(value, dict):
            merged[name] = value
        elif isinstance(below, dict):  # another kind of value is left for `override` to refuse
            merged[name] = {**below, **value}
    return override(defaults, merged, str(file or command))


def check_resumed(
    folder: Path, started: Any, wanted: Any, given: dict[str, Any], epochs_advice: str = "", longer: bool = False
) -> None:
    """Options may repeat what the run was started with, and raise the number of epochs if it may be made longer."""
    old_settings, new_settings = asdict(started), asdict(wanted)
    for section, value in given.items():
        for name in value if isinstance(value, dict) else [""]:
            old, new = (r[section][name] if name else r[section] for r in (old_settings, new_settings))
            path = f"{section}.{name}" if name else section
            if old == new or (path == "train.epochs" and new > old and longer):
                continue
            advice = "Leave the option out, or start another run."
            if path == "train.epochs" and epochs_advice:
                advice = epochs_advice
            raise SpikingError(f"{option(path)}: got {new!r}; the run in {folder} was started with {old!r}. {advice}")


def folder(kind: str, out: Path | None, resume: bool) -> Path:
    """The folder of a run: --out, or the next free runs/KIND-N, or with --resume the latest of them."""
    start = len(kind) + 1
    runs = sorted(
        (p for p in Path("runs").glob(f"{kind}-*") if p.name[start:].isdigit() and p.is_dir()),
        key=lambda p: int(p.name[start:]),
    )
    if out is None and resume:
        if not runs:
            raise SpikingError("--resume: got no --out, and there is no run in runs/; expected a run that was stopped.")
        return runs[-1]
    if out is None:
        return Path("runs") / f"{kind}-{int(runs[-1].name[start:]) + 1 if runs else 1}"
    if resume and not (out / "config.yaml").is_file():
        raise SpikingError(f"{out}: there is no run to resume here (no config.yaml). Leave --resume out to start one.")
    if not resume and out.exists() and not out.is_dir():
        raise SpikingError(f"{out}: is a file; expected a folder for the run. Name another with --out.")
    # A run that stopped before its first checkpoint left nothing to lose.
    if not resume and out.exists() and any(path.name != "config.yaml" for path in out.iterdir()):
        raise SpikingError(f"{out}: is not empty. Add --resume to go on with the run in it, or name another folder.")
    return out


def keep(folder: Path, settings: Any) -> None:
    """Write the settings of the run, so that it can be resumed with them."""
    from spiking.checkpoint import write_atomically
    from spiking.cli.config import to_yaml

    write_atomically(folder / "config.yaml", to_yaml(settings).encode())
