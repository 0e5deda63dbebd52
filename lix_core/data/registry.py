"""Data sets by name. A new one is a file with a class beside this one, and a line in DATASETS; docs/data.md shows how."""

from __future__ import annotations

import inspect
from importlib import import_module
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from lix_core.data.readers import FrameSet
from lix_core.errors import DataError, first_line
from lix_core.files import expanded
from lix_core.labels import LabelSet
from lix_core.options import nearest

DATASETS = {
    "bag": ("lix_core.data.bag", "BagDataset"),
    "camvid": ("lix_core.data.camvid", "CamVidDataset"),
    "cityscapes": ("lix_core.data.cityscapes", "CityscapesDataset"),
    "kitti": ("lix_core.data.kitti", "KittiDataset"),
    "nuimages": ("lix_core.data.nuimages", "NuImagesDataset"),
    "pothole": ("lix_core.data.pothole", "PotholeDataset"),
    "vkitti2": ("lix_core.data.vkitti2", "Vkitti2Dataset"),
    "world": ("lix_core.data.world", "WorldDataset"),
}
"""Name -> module and class."""


def open_dataset(name: str, root: str | Path, split: str, x: str = "", **options: Any) -> FrameSet:
    """A split of a data set: a sequence of `Sample`.

    name: a key of DATASETS. root: its folder, `~` is understood. x: the kind of X wanted, "" for none. options: of its class.

    Raises:
        DataError: no such data set, folder, split, kind of X or option, or a file is missing; names it.
    """
    if name not in DATASETS:
        raise DataError(f"there is no data set {name!r}{nearest(name, DATASETS)}; there are {', '.join(DATASETS)}")
    module, kind = DATASETS[name]
    dataset = getattr(import_module(module), kind)
    signature = inspect.signature(dataset)
    known = [option for option in signature.parameters if option not in ("root", "split", "x")]
    for option, value in options.items():
        if option not in known:
            raise DataError(f"the data set {name} has no option {option!r}; it has {', '.join(known) or 'none'}")
        if wanted := unlike(value, signature.parameters[option].annotation):
            raise DataError(f"the data set {name} does not understand {option}={value!r}: it takes {wanted}")
    if not str(root):
        raise DataError(
            f"where is the data set {name}? Name its folder (--data {name}=FOLDER, or root of the source); it is had from {dataset.source}"
        )
    if not expanded(root).is_dir():
        raise DataError(
            f"there is no folder {expanded(root).absolute()} for the data set {name}: name where it is (root of the source, or --data), "
            f"or get it from {dataset.source}"
        )
    try:
        signature.bind(root, split, x=x, **options)
    except TypeError as error:  # one that the class itself meets is its author's to see, with the traceback
        given = ", ".join(options) or "no options"
        raise DataError(f"the data set {name} cannot be opened with root, split, x and {given}: {first_line(error)}") from None
    return dataset(root, split, x=x, **options)


def unlike(value: Any, annotation: Any) -> str:
    """What an option takes that is said to be a number or a sequence, in words; "" where the value is such, and for other options."""
    kind = inspect.formatannotation(annotation).strip("'")
    if kind in ("int", "float"):
        return "" if isinstance(value, Integral if kind == "int" else Real) else f"a {'whole ' if kind == 'int' else ''}number"
    empty = value is None and "None" not in kind
    return "a list" if "Sequence" in kind and (empty or isinstance(value, Real)) else ""


def difference(first: LabelSet, other: LabelSet) -> str:
    """Where two label sets whose names differ do so, in words."""
    parts = []
    for one, two in ((first, other), (other, first)):
        if own := [name for name in one.names if name not in two.names]:
            parts.append(f"only {one.name!r} has {', '.join(own)}")
    if not parts:
        name = next(a for a, b in zip(first.names, other.names) if a != b)
        parts = [f"{name} is {first.id_of(name)} in {first.name!r} and {other.id_of(name)} in {other.name!r}"]
    return "; ".join(parts)
