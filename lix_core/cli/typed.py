"""Which options a user gave."""

from __future__ import annotations

from collections.abc import Iterable

import typer


def typed(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Of parameters, by their Python names, the options that were given on the command line, as they are written there."""
    written = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    return [written[name] for name in names if context.get_parameter_source(name).name == "COMMANDLINE"]
