"""The `spiking` command. Verbs are loaded when they are used, so that one that cannot be loaded breaks no other."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from spiking.errors import SpikingError

VERBS = {  # in the order of the help page
    "train": "spiking.cli.train",
    "iir": "spiking.cli.iir",
    "diffusion": "spiking.cli.diffusion",
    "lsm": "spiking.cli.lsm",
    "lm": "spiking.cli.lm",
    "energy": "spiking.cli.energy",
    "deploy": "spiking.cli.deploy",
    "data": "spiking.cli.data",
    "bench": "spiking.cli.bench",
    "doctor": "spiking.cli.doctor",
}


class Verbs(TyperGroup):
    """The verbs, each imported at its first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = _load(cmd_name)
        return self.commands[cmd_name]


def _load(verb: str) -> Any:
    try:
        app = _app(importlib.import_module(VERBS[verb]), verb)
    except ImportError as err:
        app = _unavailable(verb, str(err))
    command = typer.main.get_command(app)
    command.name = verb
    return command


def _app(module: ModuleType, verb: str) -> typer.Typer:
    """A module's `app`, or its function of the verb's name as a command without sub-commands."""
    if hasattr(module, "app"):
        return module.app
    app = typer.Typer(rich_markup_mode="rich")
    app.command()(getattr(module, verb))
    return app


def _unavailable(verb: str, reason: str) -> typer.Typer:
    """A verb that says why it cannot run."""
    app = typer.Typer()

    @app.command(
        help=f"Not available here: {reason}.",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def say_why(ctx: typer.Context) -> None:
        raise SpikingError(f"spiking {verb}: not available here: {reason}. Install the package that is missing.")

    return app


app = typer.Typer(cls=Verbs, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")


def _version(wanted: bool) -> None:
    if wanted:
        from spiking import __version__

        typer.echo(f"spiking {__version__}")
        raise typer.Exit


@app.callback()
def spiking(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, run and price spiking neural networks.

    Start with:  [bold]spiking train nmnist[/bold]   (minutes on a laptop; ends with an energy report)
    """


def run() -> None:
    """The entry point: bad input ends with one line on standard error and exit code 2, never with a traceback."""
    try:
        app()
    except SpikingError as err:
        print(f"spiking: {' '.join(str(err).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as err:  # a full or read-only disk under a figure, say
        where = f"{err.filename}: " if err.filename else ""
        print(f"spiking: {where}{err.strerror or err}. Free space or name another folder with --out.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("spiking: stopped", file=sys.stderr)
        sys.exit(130)


__all__ = ["app", "run"]
