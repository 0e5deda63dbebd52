"""Options of configurations: dataclass fields that know what they mean and which values they take."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import field
from typing import Any


def option(default: Any, meaning: str, least: float | None = None, most: float | None = None, size: int = 0) -> Any:
    """A field with what the reference says of it, the range of its value (of each of them, in a list), and how many a list holds."""
    metadata = {"meaning": meaning, "least": least, "most": most, "size": size}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def nearest(word: object, known: Iterable[object], path: str = "") -> str:
    """` (did you mean b?)`, or nothing where no known word is near; `a.b` of those below the path `a`."""
    found = difflib.get_close_matches(str(word), list(map(str, known)), 1)
    return f" (did you mean {path + '.' if path else ''}{found[0]}?)" if found else ""
