"""CamVid in SegNet's eleven-class grouping: `<root>/<split>/{image,label}/<stem>.{jpg,png}`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from lix_core.errors import DataError
from lix_core.files import read_mask
from lix_core.labels import STREET, UNLABELLED

VOID = 11
"""The id that the files use for void."""


class CamVid:
    """One split, read into memory: `self[i]` is (image_HWC uint8 RGB, mask_HW uint8 of `STREET` ids, 255 void).

    Raises:
        DataError: a folder or a label file is missing, an image cannot be decoded, or a label has unknown ids.
    """

    labels = STREET

    def __init__(self, root: str | Path, split: str):
        folder = Path(root) / split
        self.paths = sorted((folder / "image").glob("*.jpg")) + sorted((folder / "image").glob("*.png"))
        if not self.paths:
            raise DataError(f"no images in {folder / 'image'}; CamVid needs <root>/{split}/image and <root>/{split}/label")
        self.samples = [self._read(p, folder / "label" / f"{p.stem}.png") for p in self.paths]

    @staticmethod
    def _read(image_path: Path, label_path: Path) -> tuple[np.ndarray, np.ndarray]:
        mask = read_mask(label_path)
        image = cv2.imread(str(image_path), cv2.IMREAD_COLOR)
        if image is None:
            raise DataError(f"cannot decode {image_path}; fetch it again")
        if image.shape[:2] != mask.shape:
            raise DataError(f"{image_path.name} is {image.shape[:2]} but its label is {mask.shape}")
        if mask.max() > VOID:
            raise DataError(f"{label_path} has id {mask.max()}; CamVid's eleven classes and void are 0..{VOID}")
        mask[mask == VOID] = UNLABELLED
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), mask

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.samples[index]
