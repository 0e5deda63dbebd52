"""How every command of lix ends that cannot go on."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires

from rich.console import Console

from lix_core.errors import LixError


@contextmanager
def told() -> Iterator[None]:
    """Ends the process with one line and status 2 for an error of lix or a package that is missing, with 130 for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except LixError as error:
        refuse(str(error))
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
