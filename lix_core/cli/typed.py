"""Which options a user gave."""

from __future__ import annotations

from collections.abc import Iterable

import typer


def typed(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Of parameters, by their Python names, the options that were given on the command line, as they are written there."""
    given = [name for name in names if context.get_parameter_source(name).name == "COMMANDLINE"]
    written = {parameter.name: parameter for parameter in context.command.params}
    off = {name for name in given if context.params[name] is False and written[name].secondary_opts}
    return [(written[name].secondary_opts if name in off else written[name].opts)[0] for name in given]
