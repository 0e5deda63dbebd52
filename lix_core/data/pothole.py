"""The stereo pothole data set: 67 real frames of RGB, transformed disparity and labels, in three sets. Two classes.

Fan, Ozgunalp, Hosking, Liu, Pitas, "Pothole Detection Based on Disparity Transformation and Road Surface Modeling", IEEE TIP 2020.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lix_core.data.readers import Encoded, FrameSet, IdMap, check_choice, read_rgb, read_uint16, require
from lix_core.data.sample import Sample
from lix_core.errors import DataError
from lix_core.files import expanded
from lix_core.labels import UNLABELLED, Label, LabelSet

POTHOLE = LabelSet("pothole", (Label("road", (128, 64, 128)), Label("pothole", (220, 20, 60))))
IDS = IdMap({0: 0, 1: 1})

FOLDS = (
    (("set1", 1, 4), ("set2", 1, 8), ("set3", 1, 1)),
    (("set1", 5, 8), ("set2", 9, 15), ("set3", 2, 2)),
    (("set1", 9, 14), ("set2", 16, 23), ("set3", 3, 3)),
    (("set1", 15, 18), ("set2", 24, 30), ("set3", 4, 4)),
    (("set1", 19, 22), ("set2", 31, 40), ("set3", 5, 5)),
)
"""This project's five folds, stratified by set: (set, first frame, last frame). Neighbouring frames show one pothole from several sides, so
a fold has consecutive ones, and in set2 no pothole is in two folds. In set1 (three potholes) and set3 (one) that cannot be; set3_01 and
set3_02 are even one picture, which was seen when figures of these folds had been published."""

X_KIND = "transformed_disparity"
SPREAD = 4000.0
"""[codes]: the spread of (code - median of its frame), all frames together."""
LOWEST, HIGHEST = -6.0, 3.0
"""Limits of the encoded X: what lies beyond is matching errors. Potholes lie about 4 below the road."""


def frames_of(fold: int) -> list[str]:
    """Names of a fold's frames."""
    return [f"{name}_{number:02d}" for name, first, last in FOLDS[fold] for number in range(first, last + 1)]


def names_of(split: str, fold: int, inner: int | None) -> list[str]:
    """Names of a split's frames, see PotholeDataset. Raises DataError."""
    count = len(FOLDS)
    if fold not in range(count) or inner not in (None, *range(count - 1)):
        raise DataError(f"fold must be 0..{count - 1} and inner 0..{count - 2} or left out, got fold {fold!r} and inner {inner!r}")
    rest = [f for f in range(count) if f != fold]
    if inner is None:
        folds = {"train": rest, "test": [fold], "all": list(range(count))}
    else:
        folds = {"train": [f for f in rest if f != rest[inner]], "val": [rest[inner]]}
    if split not in folds:
        reason = "with inner, the reported fold is not seen" if inner is not None else "choosing is done on inner folds: give inner"
        raise DataError(f"there is no split {split!r} here, there are {', '.join(folds)}; {reason}")
    return sorted(name for f in folds[split] for name in frames_of(f))


def encode(codes: np.ndarray) -> Encoded:
    """(H, W) uint16 transformed disparity -> X (1, H, W), (code - median) / SPREAD within limits, and where it is known (code not 0).

    The transformation makes undamaged road nearly constant within a frame, at a level of its own in each published file (46,000 to 61,500),
    which says nothing; potholes lie some 15,000 below it. Most of a frame is road, so the median is that level. The spread is one constant
    for all frames: dividing by a frame's own would make deep potholes look shallow. (As published each file's largest code is 65535, one
    matching error: its unit hangs on that.)
    """
    known = codes > 0
    if not known.any():
        return np.zeros((1, *codes.shape), np.float32), known
    x = (codes.astype(np.float32) - np.float32(np.median(codes[known]))) / np.float32(SPREAD)
    return np.where(known, x.clip(LOWEST, HIGHEST), np.float32(0))[None], known


def labels_of_threshold(encoded: Encoded, threshold: float) -> np.ndarray:
    """Potholes as X alone tells them, without any network: (H, W) uint8, 1 where X is below the threshold, 0 elsewhere, 255 unknown.

    X is 0 on the road and about -4 in potholes: -2 lies half-way, and asks for no label.
    """
    x, known = encoded
    return np.where(known, (x[0] < threshold).astype(np.uint8), np.uint8(UNLABELLED))


class PotholeDataset(FrameSet):
    """Frames `<root>/{rgb/<name>.jpg,label/<name>.png,disparity/<name>.png}`, `<name>` set1_01 to set3_05.

    split: `train` and `test` (the fold) or `all`; with `inner`, `train` and `val` (the inner fold) out of the four folds that are not
    `fold`: for every choice that the reported fold must not see. x: `transformed_disparity`, or "".
    fold: 0..4. inner: 0..3. threshold: for `labels_of_threshold` of X instead of people's labels.

    Raises:
        DataError: a file is missing, named; no such split or fold; from `self[i]`, a file that is no such file, or other ids than 0 and 1.
    """

    labels = POTHOLE
    licence = "MIT"
    source = "https://github.com/ruirangerfan/stereo_pothole_datasets"

    def __init__(self, root: str | Path, split: str, x: str = "", fold: int = 0, inner: int | None = None, threshold: float | None = None):
        check_choice("kind of X of this data set", x, ("", X_KIND))
        self.root, self.threshold = expanded(root), threshold
        super().__init__(names_of(split, fold, inner), x, 1 if x else 0)
        self._kept: dict[int, Sample] = {}
        parts = ("rgb", "label", *(["disparity"] if x or threshold is not None else []))
        require((self.path(part, i) for i in range(len(self)) for part in parts), f"get it from {self.source}, as docs/data.md says")

    def path(self, part: str, index: int) -> Path:
        """A file of a frame; part: rgb, label or disparity."""
        return self.root / part / f"{self.names[index]}{'.jpg' if part == 'rgb' else '.png'}"

    def read(self, index: int) -> Sample:
        # All frames take 120 MB, and reading one takes three times as long as a training view of it.
        if index not in self._kept:
            image, labels = read_rgb(self.path("rgb", index)), IDS.read(self.path("label", index))
            encoded = encode(read_uint16(self.path("disparity", index))) if self.x_kind or self.threshold is not None else None
            if self.threshold is not None:
                labels = labels_of_threshold(encoded, self.threshold)
            self._kept[index] = self.sample(index, image, labels, encoded if self.x_kind else None)
        return self._kept[index]
