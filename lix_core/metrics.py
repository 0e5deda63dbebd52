"""Segmentation metrics from one confusion matrix per data set (never averages of per-image figures)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lix_core.errors import LixError
from lix_core.labels import UNLABELLED


@dataclass
class ConfusionMatrix:
    """Counts of (true class, predicted class) over the valid pixels of a whole data set.

    `counts` is (C, C) int64, rows truth, columns prediction. Pixels whose truth is 255 are not counted. A
    prediction of 255 (unlabelled) on a valid pixel is wrong for every class: it is counted in `rejected` (C,),
    so that abstaining cannot raise a score.
    """

    num_classes: int
    counts: np.ndarray = field(init=False)
    rejected: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.num_classes, self.num_classes), np.int64)
        self.rejected = np.zeros(self.num_classes, np.int64)

    @classmethod
    def of(cls, counts: Any) -> "ConfusionMatrix":
        """That of counts made before: (C, C) integers, rows truth, columns prediction."""
        matrix = cls(len(counts))
        matrix.counts[:] = counts
        return matrix

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Add one image: (H, W) integer ids of truth and prediction."""
        if truth.shape != prediction.shape:
            raise LixError(f"truth is {truth.shape} but prediction is {prediction.shape}; sizes must agree")
        truth, prediction = truth.ravel().astype(np.int64), prediction.ravel().astype(np.int64)
        valid = truth != UNLABELLED
        truth, prediction = truth[valid], prediction[valid]
        for name, ids in (("truth", truth), ("prediction", prediction[prediction != UNLABELLED])):
            if ids.size and not 0 <= ids.min() <= ids.max() < self.num_classes:
                raise LixError(f"{name} has ids {ids.min()}..{ids.max()}, outside 0..{self.num_classes - 1}")
        decided = prediction != UNLABELLED
        index = truth[decided] * self.num_classes + prediction[decided]
        self.counts += np.bincount(index, minlength=self.num_classes**2).reshape(self.counts.shape)
        self.rejected += np.bincount(truth[~decided], minlength=self.num_classes)

    @property
    def truth_pixels(self) -> np.ndarray:
        """(C,) number of valid pixels of each true class."""
        return self.counts.sum(1) + self.rejected

    @property
    def iou(self) -> np.ndarray:
        """(C,) intersection over union; NaN for a class absent from both truth and prediction."""
        hit = np.diag(self.counts).astype(float)
        union = self.truth_pixels + self.counts.sum(0) - hit
        return np.divide(hit, union, out=np.full(self.num_classes, np.nan), where=union > 0)

    @property
    def recall(self) -> np.ndarray:
        """(C,) share of each true class that is found; NaN where the class has no true pixel."""
        hit, total = np.diag(self.counts).astype(float), self.truth_pixels
        return np.divide(hit, total, out=np.full(self.num_classes, np.nan), where=total > 0)

    @property
    def miou(self) -> float:
        return float(np.nanmean(self.iou)) if np.isfinite(self.iou).any() else float("nan")

    @property
    def mean_accuracy(self) -> float:
        return float(np.nanmean(self.recall)) if np.isfinite(self.recall).any() else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        total = self.truth_pixels.sum()
        return float(np.trace(self.counts) / total) if total else float("nan")

    @property
    def frequency_weighted_iou(self) -> float:
        total = self.truth_pixels.sum()
        return float(np.nansum(self.truth_pixels / total * self.iou)) if total else float("nan")

    def summary(self, names: tuple[str, ...]) -> dict:
        """Plain data for JSON: the means, and IoU per class by name (None where there was nothing to measure)."""
        return {
            "miou": rounded(self.miou),
            "pixel_accuracy": rounded(self.pixel_accuracy),
            "mean_accuracy": rounded(self.mean_accuracy),
            "frequency_weighted_iou": rounded(self.frequency_weighted_iou),
            "iou": {n: rounded(v) for n, v in zip(names, self.iou, strict=True)},
        }


def rounded(value: float) -> float | None:
    """Four digits, as JSON has them; None for NaN."""
    return None if np.isnan(value) else round(float(value), 4)
