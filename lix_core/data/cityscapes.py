"""Cityscapes: 2975 + 500 frames with 19 classes and disparity; the labels of its test split are withheld.

Cordts et al., CVPR 2016. Ids: cityscapesscripts/helpers/labels.py. Disparity: README of cityscapesScripts.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lix_core.camera import Camera
from lix_core.data.readers import FrameSet, IdMap, check_choice, check_x, pairs, read_rgb, read_uint16
from lix_core.data.sample import Sample
from lix_core.errors import DataError
from lix_core.files import expanded
from lix_core.geometry.encodings import encode
from lix_core.labels import UNLABELLED, Label, LabelSet

CITYSCAPES = LabelSet(
    "cityscapes",
    (
        Label("road", (128, 64, 128)),
        Label("sidewalk", (244, 35, 232)),
        Label("building", (70, 70, 70)),
        Label("wall", (102, 102, 156)),
        Label("fence", (190, 153, 153)),
        Label("pole", (153, 153, 153)),
        Label("traffic light", (250, 170, 30)),
        Label("traffic sign", (220, 220, 0)),
        Label("vegetation", (107, 142, 35)),
        Label("terrain", (152, 251, 152)),
        Label("sky", (70, 130, 180)),
        Label("person", (220, 20, 60)),
        Label("rider", (255, 0, 0)),
        Label("car", (0, 0, 142)),
        Label("truck", (0, 0, 70)),
        Label("bus", (0, 60, 100)),
        Label("train", (0, 80, 100)),
        Label("motorcycle", (0, 0, 230)),
        Label("bicycle", (119, 11, 32)),
    ),
)
"""The 19 classes that are evaluated, in the order of their train ids."""

OFFICIAL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""`labelIds` of the 19 classes, in that order."""
LABEL_IDS = IdMap({**dict.fromkeys(range(34), UNLABELLED), **{official: train for train, official in enumerate(OFFICIAL_IDS)}})
"""`labelIds` 0..33 -> train ids; also those of KITTI Semantics."""

ENDINGS = {"leftImg8bit": "_leftImg8bit.png", "gtFine": "_gtFine_labelIds.png", "disparity": "_disparity.png", "camera": "_camera.json"}


class CityscapesDataset(FrameSet):
    """One official split: `<root>/{leftImg8bit,gtFine,disparity,camera}/<split>/<city>/<city>_<sequence>_<frame>_<ending>`.

    split: train, val or test; frames of test come without labels. x: a kind of lix_core.geometry.encodings, from the disparity that
    Cityscapes was published with (semi-global matching: with holes and errors); it needs disparity/ and camera/.

    Raises:
        DataError: a file is missing, named; from `self[i]`, a file that is no such file, or ids that do not occur.
    """

    labels = CITYSCAPES
    licence = "Cityscapes licence: non-commercial use; https://www.cityscapes-dataset.com/license/"
    source = "https://www.cityscapes-dataset.com/downloads/: leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip; for X also \
disparity_trainvaltest.zip and camera_trainvaltest.zip, unpacked into one folder"

    def __init__(self, root: str | Path, split: str, x: str = ""):
        check_choice("split", split, ("train", "val", "test"))
        check_x(x)
        self.root, self.split = expanded(root), split
        self.labelled = split != "test"
        parts = ["leftImg8bit", *(["gtFine"] if self.labelled else []), *(["disparity", "camera"] if x else [])]
        stems = pairs({self.root / part / split: ENDINGS[part] for part in parts}, f"get it from {self.source}")
        super().__init__(stems, x)

    def path(self, part: str, index: int) -> Path:
        """A file of a frame; part: a key of ENDINGS."""
        return self.root / part / self.split / f"{self.names[index]}{ENDINGS[part]}"

    def read(self, index: int) -> Sample:
        image = read_rgb(self.path("leftImg8bit", index))
        labels = LABEL_IDS.read(self.path("gtFine", index)) if self.labelled else None
        if not self.x_kind:
            return self.sample(index, image, labels)
        camera, baseline = read_camera(self.path("camera", index), image.shape[:2])
        disparity = read_disparity(self.path("disparity", index), camera.shape)
        return self.sample(index, image, labels, encode(self.x_kind, disparity=disparity, camera=camera, baseline=baseline), camera)


def read_disparity(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 disparity [pixels], NaN where it is unknown: (p - 1) / 256 of the 16-bit p, 0 = unknown. Raises DataError."""
    codes = read_uint16(path, shape).astype(np.float32)
    return np.where(codes > 0, (codes - 1) / 256, np.float32(np.nan))


def read_camera(path: Path, shape: tuple[int, int]) -> tuple[Camera, float]:
    """The left camera and the baseline [m] of a camera file. Raises DataError."""
    try:
        data = json.loads(path.read_text())
        k, baseline = data["intrinsic"], float(data["extrinsic"]["baseline"])
        if not 0 < baseline < np.inf:
            raise ValueError(f"its baseline is {baseline} m")
        return Camera.pinhole(shape[1], shape[0], k["fx"], k["fy"], k["u0"], k["v0"]), baseline
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no camera file of Cityscapes ({type(error).__name__}: {error}); fetch it again") from None
