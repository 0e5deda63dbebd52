"""nuImages: 93000 annotated camera frames with masks of the driveable surface and of objects. RGB only.

Caesar et al., CVPR 2020; tables: docs/schema_nuimages.md of nutonomy/nuscenes-devkit. Objects are drawn over surfaces, these in the order
of their table, objects in that of their tokens, as that devkit does. The tables' intrinsics are not given as a Camera: its images have
lens distortion.
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from lix_core.bags.regions import decompressed, region_of
from lix_core.data.readers import OWN_KINDS, FrameSet, check_choice, check_x, read_rgb, require
from lix_core.data.sample import Sample
from lix_core.errors import DataError
from lix_core.files import expanded
from lix_core.labels import UNLABELLED, Label, LabelSet

NUIMAGES = LabelSet(
    "nuimages",
    (
        Label("other", (120, 120, 120)),
        Label("driveable_surface", (0, 207, 191)),
        Label("car", (255, 158, 0)),
        Label("truck", (255, 99, 71)),
        Label("bus", (255, 69, 0)),
        Label("trailer", (255, 140, 0)),
        Label("construction_vehicle", (233, 150, 70)),
        Label("bicycle", (220, 20, 60)),
        Label("motorcycle", (255, 61, 99)),
        Label("pedestrian", (0, 0, 230)),
        Label("traffic_cone", (47, 79, 79)),
        Label("barrier", (112, 128, 144)),
    ),
)
"""The ten classes of nuScenes' detection task, the driveable surface, and what no mask covers."""

CATEGORIES = {
    "flat.driveable_surface": "driveable_surface",
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.trailer": "trailer",
    "vehicle.construction": "construction_vehicle",
    "vehicle.bicycle": "bicycle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "movable_object.barrier": "barrier",
}
"""Official category -> class. All others (animals, debris, bicycle racks, emergency vehicles, the car itself, ...) are ignored."""

SPLITS = ("train", "val", "test", "mini")


class NuImagesDataset(FrameSet):
    """The annotated camera frames of one official version: tables `<root>/v1.0-<split>/*.json`, images by their `filename` below root.

    split: train, val, test (frames without labels) or mini. x: accepted and not there, so that nuImages mixes with data that have X.

    Raises:
        DataError: a table or an image is missing, named, or a table is damaged; from `self[i]`, a mask that is not of its image.
    """

    labels = NUIMAGES
    licence = "CC BY-NC-SA 4.0 with nuScenes' terms of use: non-commercial; https://www.nuscenes.org/terms-of-use"
    source = "https://www.nuscenes.org/nuimages#download: nuimages-v1.0-all-metadata.tgz and nuimages-v1.0-all-samples.tgz \
(or nuimages-v1.0-mini.tgz), unpacked into one folder"

    def __init__(self, root: str | Path, split: str, x: str = ""):
        check_choice("split", split, SPLITS)
        check_x(x, OWN_KINDS)
        self.root, self.tables = expanded(root), expanded(root) / f"v1.0-{split}"
        self.labelled = split != "test"
        cure = f"get it from {self.source}"
        needed = ["sample", "sample_data", *(["category", "object_ann", "surface_ann"] if self.labelled else [])]
        require((self.tables / f"{name}.json" for name in needed), cure)
        keys = {key for (key,) in self._table("sample", "key_camera_token")}
        if not keys:
            raise DataError(f"{self.tables / 'sample.json'} has no rows; fetch it again")
        frames = sorted((filename, token) for filename, token in self._table("sample_data", "filename", "token") if token in keys)
        self._check_tokens("sample_data", keys, {token for _, token in frames})
        super().__init__([filename for filename, _ in frames])
        # One text of all masks: of a million small objects each worker would get its own copy, by counting references to them.
        masks = self._annotations(keys) if self.labelled else {}
        texts = [json.dumps(masks.pop(token, [])).encode() for _, token in frames]
        self._ends = np.cumsum([0, *map(len, texts)])
        self._masks = b"".join(texts)
        require((self.root / name for name in self.names), cure)

    def _table(self, name: str, *keys: str) -> list[list[Any]]:
        """What the rows of a table have under these keys: text, but for masks. Raises DataError."""
        path = self.tables / f"{name}.json"
        try:
            rows = [[row[key] for key in keys] for row in json.loads(path.read_text())]
            if wrong := [row for row in rows if not all(isinstance(v, str) for key, v in zip(keys, row) if key != "mask")]:
                raise TypeError(f"{', '.join(keys)} of a row are {wrong[0]}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error!r}); fetch it again") from None
        return rows

    def _check_tokens(self, name: str, wanted: set[str], found: Iterable[str]) -> None:
        """Raises DataError where a table lacks a row that another one names."""
        if lost := wanted.difference(found):
            raise DataError(f"{self.tables / f'{name}.json'} has no row {min(lost)!r}, which another table names; fetch it again")

    def _annotations(self, tokens: set[str]) -> dict[str, list[tuple[int, Any]]]:
        """Token of a frame -> (train id, mask) of its annotations, in the order in which they are drawn."""
        ids = {token: category_id(name) for token, name in self._table("category", "token", "name")}
        masks = defaultdict(list)
        for table in ("surface_ann", "object_ann"):
            rows = self._table(table, "token", "sample_data_token", "category_token", "mask")
            self._check_tokens("category", {category for _, _, category, _ in rows}, ids)
            if table == "object_ann":
                rows.sort(key=itemgetter(0))
            for _, token, category, mask in rows:
                # Some objects have no mask: they are hidden.
                if token in tokens and mask is not None:
                    masks[token].append((ids[category], mask))
        return dict(masks)

    def read(self, index: int) -> Sample:
        image = read_rgb(self.root / self.names[index])
        if not self.labelled:
            return self.sample(index, image, None)
        labels = np.full(image.shape[:2], NUIMAGES.id_of("other"), np.uint8)
        for train_id, mask in json.loads(self._masks[self._ends[index] : self._ends[index + 1]]):
            covered = decode_mask(mask, self.names[index])
            if covered.shape != labels.shape:
                raise DataError(f"{self.names[index]} is {labels.shape} but one of its masks is {covered.shape}; fetch both again")
            labels[covered] = train_id
        return self.sample(index, image, labels)


def category_id(name: str) -> int:
    """The train id of an official category; 255 for ignored ones."""
    return NUIMAGES.id_of(CATEGORIES[name]) if name in CATEGORIES else UNLABELLED


def decode_mask(mask: dict[str, Any], name: str) -> np.ndarray:
    """(H, W) bool of a mask `{"size": [H, W], "counts": base64 of COCO's text}`; `name` is for the error. Raises DataError."""
    try:
        height, width = mask["size"]
        return region_of(decompressed(base64.b64decode(mask["counts"], validate=True).decode("ascii")), (height, width))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"a mask of {name} is damaged ({error}); fetch the tables again") from None
