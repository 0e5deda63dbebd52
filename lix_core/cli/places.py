"""Where data sets and trained networks are, as a user says it: `--data NAME=FOLDER`, and a run folder or the name of a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import typer

from lix_core.errors import BundleError, TrainingError
from lix_core.options import nearest
from lix_core.runtime.bundle import SUFFIX, find_bundle

DATA = typer.Option([], "--data", help="Where a data set is, as NAME=FOLDER; may be repeated.")


def places_of(pairs: Iterable[str], needed: Iterable[str], also: Iterable[str] = ()) -> dict[str, str]:
    """Name of a data set -> its folder. needed: data sets that there is use for. also: others that do no harm.

    Raises TrainingError on words that are no NAME=FOLDER, on a data set that nothing needs, and on two folders of one.
    """
    found: dict[str, str] = {}
    for name, path in (pair.partition("=")[::2] for pair in pairs):
        if not path:
            raise TrainingError(f"--data is written NAME=FOLDER, for example --data camvid=~/data/camvid; got {name!r}")
        if name not in {*needed, *also}:
            raise TrainingError(f"--data {name}: needed is {', '.join(sorted(needed))}{nearest(name, needed)}")
        if found.setdefault(name, path) != path:
            raise TrainingError(f"--data {name} is given twice, {found[name]} and {path}: name one folder")
    return found


def origin(path: Path) -> Path:
    """A run folder as it is; else the bundle of that path or, of a word that is no folder here, that model's.

    Raises TrainingError where there is neither.
    """
    if path.is_dir() or path.suffix != SUFFIX and os.sep in str(path):
        return path
    try:
        found = find_bundle(path)
        if found != path:
            print(f"lix: {path} is the model {found}", file=sys.stderr)
        return found
    except BundleError as error:
        raise TrainingError(f"there is no run folder {path}, and {error}") from None
