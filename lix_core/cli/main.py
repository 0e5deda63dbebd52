"""The command `lix`. Commands of other packages (the ROS ones) come in through the entry point group `lix.commands`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, entry_points, requires

import typer
from rich.console import Console

from lix_core import __version__
from lix_core.cli import bag, compare, doctor, evaluate, export, models, predict, reproduce, retrain, train, world
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


@contextmanager
def told() -> Iterator[None]:
    """Ends the process with one line and status 2 for an error of lix, a path that the system refuses or a package that is missing, with
    130 for Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except LixError as error:
        refuse(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:  # a folder that one may not enter, a name that is too long, ...
        if error.filename is None:
            raise
        refuse(f"{error.filename}: {error.strerror}")
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not (extra := extra_with(module)):
            raise
        refuse(
            f"this needs {module}, which the extra `{extra}` brings: pip install -c constraints.txt -e '.[{extra}]' in the sources of lix"
        )


def extra_with(module: str) -> str:
    """The extra of lix that brings a module, "" where none does. Their distributions are called as their modules are."""
    try:
        lines = requires("lix") or []
    except PackageNotFoundError:  # run from the sources, not installed
        return ""
    pairs = (re.fullmatch(r"([\w.-]+).*extra == ['\"](\w+)['\"]", line) for line in lines)
    extras = {pair[2] for pair in pairs if pair and pair[1] == module} - {"test", "dev"}
    return min(extras, default="")


def refuse(reason: str) -> None:
    Console(stderr=True).print(f"lix: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


def main() -> None:
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # of a name that is no UTF-8 nothing is lost, and nothing ends
    with told():
        add_plugin_commands()
        app(list(map(at_home, sys.argv[1:])))


if __name__ == "__main__":
    main()
