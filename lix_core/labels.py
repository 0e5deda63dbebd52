"""Label sets: the one home of class names, ids and colours, and of mappings between sets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import yaml

from lix_core.errors import LabelError, first_line
from lix_core.files import expanded, from_yaml, save

LABELS_FILE = "labels.json"
"""What the label set beside masks is called."""
UNLABELLED = 255
"""Id of pixels that belong to no class (void, ignored, or below the confidence threshold)."""


def plain(name: str) -> str:
    """A class name as people compare them: without case, and with spaces for _ and -."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


@dataclass(frozen=True)
class Label:
    """One class: its name and its display colour (r, g, b), each 0..255."""

    name: str
    color: tuple[int, int, int]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise LabelError(f"a label needs a name, got {self.name!r}")
        try:
            color = () if isinstance(self.color, str) else tuple(int(v) for v in self.color)
        except (TypeError, ValueError, OverflowError):
            color = ()
        if len(color) != 3 or any(not 0 <= v <= 255 for v in color):
            raise LabelError(f"colour of label {self.name!r} must be three numbers 0..255, got {self.color!r}")
        object.__setattr__(self, "color", color)


@dataclass(frozen=True)
class LabelSet:
    """An ordered set of classes; the position of a label is its id (0..254; 255 is unlabelled).

    Raises:
        LabelError: no labels, more than 255, or two labels of one name.
    """

    name: str
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if not 1 <= len(self.labels) <= UNLABELLED:
            raise LabelError(f"label set {self.name!r} has {len(self.labels)} labels; 1 to {UNLABELLED} fit 8-bit masks")
        repeated = sorted({n for n in self.names if self.names.count(n) > 1})
        if repeated:
            raise LabelError(f"label set {self.name!r} names {repeated} more than once")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    def id_of(self, name: str) -> int:
        """The id of the class `name`."""
        try:
            return self.names.index(name)
        except ValueError:
            raise LabelError(f"no class {name!r} in label set {self.name!r}; it has {', '.join(self.names)}") from None

    def find(self, name: str) -> int | None:
        """The id of the class that people call `name`: the one of just that name, else the first that is the same to `plain`."""
        same = [i for i, own in enumerate(self.names) if plain(own) == plain(name)]
        return next((i for i in same if self.names[i] == name), same[0] if same else None)

    @cached_property
    def palette(self) -> np.ndarray:
        """(256, 3) uint8 RGB colour of every 8-bit id; black where no class has that id."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = [label.color for label in self.labels]
        table.flags.writeable = False
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: `{"name", "unlabelled", "labels": [{"id", "name", "color"}]}`."""
        return {
            "name": self.name,
            "unlabelled": UNLABELLED,
            "labels": [{"id": i, "name": label.name, "color": list(label.color)} for i, label in enumerate(self.labels)],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LabelSet":
        """Inverse of `to_dict`; ids must run 0, 1, 2, ... in order."""
        try:
            name, rows = str(data["name"]), list(data["labels"])
            labels = tuple(Label(row["name"], row["color"]) for row in rows)
            ids = [row["id"] for row in rows]
        except (KeyError, TypeError) as error:
            raise LabelError(f"not a label set (needs name and labels of id, name, color): {error}") from None
        if ids != list(range(len(ids))):
            raise LabelError(f"ids of label set {name!r} must be 0..{len(ids) - 1} in order, got {ids}")
        return cls(name, labels)

    @classmethod
    def from_json(cls, text: str | bytes) -> "LabelSet":
        """Inverse of `to_json`."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LabelError(str(error)) from None
        return cls.from_dict(data)

    @classmethod
    def load(cls, path: Path) -> "LabelSet":
        """Read what `save` wrote. Raises LabelError where there is none."""
        try:
            return cls.from_json(path.read_bytes())
        except OSError as error:
            raise LabelError(f"cannot read label set {path}: {error.strerror}") from None
        except LabelError as error:
            raise LabelError(f"{path} is not a label set: {first_line(error)}") from None

    def save(self, path: Path) -> None:
        """Write `to_dict` into a JSON file. Raises SourceError."""
        save(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())


@dataclass(frozen=True)
class LabelMapping:
    """Renames and merges the classes of `source` into those of `target`.

    `lut` is (256,) uint8: `lut[source_id]` is the target id; ids without a target become 255.
    """

    source: LabelSet
    target: LabelSet
    lut: np.ndarray

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """Map a (H, W) uint8 mask of source ids to target ids."""
        return self.lut[mask]

    @property
    def lost(self) -> str:
        """In words, the classes of `source` that become unlabelled; empty where there is none."""
        names = [name for name, target_id in zip(self.source.names, self.lut) if target_id == UNLABELLED]
        return f"left unlabelled, as no class has the name: {', '.join(names)}" if names else ""

    @classmethod
    def from_dict(cls, source: LabelSet, data: Mapping[str, Any]) -> "LabelMapping":
        """Build from plain data (config/remap_example.yaml is a commented example).

        `data` is `{"name": str, "classes": [{"name": str, "from": [source names], "color": [r, g, b]}]}`.
        A class without a colour takes that of its first source class. A source class named by no target
        becomes unlabelled (255).

        Raises:
            LabelError: not of that form, an unknown source class, or one used twice.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("classes"), (list, tuple)):
            raise LabelError("a class remap needs a list `classes` of {name, from, color}; see config/remap_example.yaml")
        lut = np.full(256, UNLABELLED, np.uint8)
        labels: list[Label] = []
        for target_id, row in enumerate(data["classes"]):
            if not isinstance(row, Mapping) or "name" not in row or not row.get("from"):
                raise LabelError(f"class {target_id} of the remap needs `name` and a non-empty `from`, got {row!r}")
            sources = [row["from"]] if isinstance(row["from"], str) else row["from"]
            if not isinstance(sources, (list, tuple)):
                raise LabelError(f"class {target_id} of the remap needs a list of names in `from`, got {sources!r}")
            ids = [source.id_of(str(name)) for name in sources]
            for name, source_id in zip(sources, ids):
                if lut[source_id] != UNLABELLED:
                    raise LabelError(f"the remap uses source class {name!r} twice")
                lut[source_id] = target_id
            labels.append(Label(str(row["name"]), row.get("color", source.labels[ids[0]].color)))
        lut.flags.writeable = False
        return cls(source, LabelSet(str(data.get("name", f"{source.name}-remapped")), tuple(labels)), lut)

    @classmethod
    def by_name(cls, source: LabelSet, target: LabelSet) -> "LabelMapping":
        """Classes that both sets have, by their names as `LabelSet.find` compares them; the others become unlabelled.

        Raises LabelError where no name is shared.
        """
        found = [target.find(name) for name in source.names]
        if all(target_id is None for target_id in found):
            raise LabelError(
                f"label sets {source.name!r} ({', '.join(source.names)}) and {target.name!r} ({', '.join(target.names)}) share no class"
            )
        lut = np.full(256, UNLABELLED, np.uint8)
        lut[: len(source)] = [UNLABELLED if target_id is None else target_id for target_id in found]
        lut.flags.writeable = False
        return cls(source, target, lut)

    @classmethod
    def load(cls, source: LabelSet, path: str | Path) -> "LabelMapping":
        """Read `from_dict`'s data from a YAML file. Raises LabelError where there is none or it does not fit."""
        try:
            return cls.from_dict(source, from_yaml(expanded(path).read_text()))
        except OSError as error:
            raise LabelError(f"cannot read class remap {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise LabelError(f"class remap {path} is not YAML: {error}") from None
        except LabelError as error:
            raise LabelError(f"class remap {path}: {error}") from None


STREET = LabelSet(
    "street",
    (
        Label("sky", (70, 130, 180)),
        Label("building", (70, 70, 70)),
        Label("pole", (153, 153, 153)),
        Label("road", (128, 64, 128)),
        Label("pavement", (244, 35, 232)),
        Label("tree", (107, 142, 35)),
        Label("sign", (220, 220, 0)),
        Label("fence", (190, 153, 153)),
        Label("car", (0, 0, 142)),
        Label("pedestrian", (220, 20, 60)),
        Label("cyclist", (119, 11, 32)),
    ),
)
"""The eleven classes of CamVid as commonly evaluated (SegNet's grouping), in that order of ids."""
