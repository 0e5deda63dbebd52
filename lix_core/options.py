"""Options of configurations: dataclass fields that know what they mean and which values they take."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import field, fields
from typing import Any

from lix_core.errors import LixError


def option(default: Any, meaning: str, least: float | None = None, most: float | None = None, size: int = 0) -> Any:
    """A field with what the reference says of it, the range of its value (of each of them, in a list), and how many a list holds."""
    metadata = {"meaning": meaning, "least": least, "most": most, "size": size}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_ranges(settings: Any, of: str, error: type[LixError]) -> None:
    """Raises the error where a value of a dataclass, whose options are `of` something, is out of its option's range."""
    for f in fields(settings):
        least, most, value = f.metadata["least"], f.metadata["most"], getattr(settings, f.name)
        # Written so that NaN is in no range.
        if (least is not None and not value >= least) or (most is not None and not value <= most):
            raise error(f"{f.name} of {of} must be {limits(least, most)}, got {value}")


def limits(least: float | None, most: float | None) -> str:
    """A range in words; one of the two is given."""
    return f"{least} to {most}" if None not in (least, most) else f"at least {least}" if most is None else f"at most {most}"


def nearest(word: object, known: Iterable[object], path: str = "") -> str:
    """` (did you mean b?)`, or nothing where no known word is near; `a.b` of those below the path `a`."""
    found = difflib.get_close_matches(str(word), list(map(str, known)), 1)
    return f" (did you mean {path + '.' if path else ''}{found[0]}?)" if found else ""
