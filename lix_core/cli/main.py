"""The command `lix`. Commands of other packages (the ROS ones) come in through the entry point group `lix.commands`."""

from __future__ import annotations

import re
import sys
from importlib.metadata import entry_points

import typer

from lix_core import __version__
from lix_core.cli import bag, compare, doctor, evaluate, export, models, predict, reproduce, retrain, train, world
from lix_core.command import told
from lix_core.errors import LixError
from lix_core.files import expanded

app = typer.Typer(
    name="lix",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Camera perception for ROS 2: segments the street that one camera sees, and learns from what sensors with depth have recorded.",
)
app.command()(predict.predict)
app.command()(models.models)
app.command()(evaluate.evaluate)
app.command()(train.train)
app.command()(train.distill)
app.command()(compare.compare)
app.command()(export.export)
app.command()(retrain.retrain)
app.command()(reproduce.ablate)
app.command()(reproduce.reproduce)
app.command()(doctor.doctor)
app.add_typer(world.app, name="world")
app.add_typer(bag.app, name="bag")


def add_plugin_commands() -> None:
    """Commands whose packages do not import here (no ROS) say so when they are called, not before."""
    for point in entry_points(group="lix.commands"):
        try:
            app.command(name=point.name)(point.load())
        except ImportError as error:
            app.command(
                name=point.name,
                help=f"(not available: {error})",
                context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
            )(unavailable(point.name, str(error)))


def unavailable(name: str, reason: str):
    def command(context: typer.Context) -> None:
        raise LixError(f"lix {name} needs ROS 2: {reason}. Source a ROS 2 installation, or pip install '.[ros]' in the sources of lix")

    return command


@app.callback(invoke_without_command=True)
def common(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def at_home(argument: str) -> str:
    """An argument with the `~` of its path resolved: no shell does that in quotes or after `--out=`."""
    option, path = re.fullmatch(r"(--[\w-]+=|-o)?(.*)", argument, re.DOTALL).groups("")
    return f"{option}{expanded(path)}" if path.startswith("~/") else argument


def main() -> None:
    with told():
        add_plugin_commands()
        app(list(map(at_home, sys.argv[1:])))


if __name__ == "__main__":
    main()
