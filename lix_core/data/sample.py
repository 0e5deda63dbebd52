"""The one type between data sets and networks: `Sample`, a frame as NumPy; and `Batch`, what a step sees of several.

Shape letters: B batch, Cx channels of X, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from lix_core.camera import Camera
from lix_core.errors import DataError
from lix_core.labels import UNLABELLED


@dataclass
class Sample:
    """One frame as a data set gives it.

    name: unique within its data set. image: (H, W, 3) uint8 RGB.
    labels: (H, W) uint8 train ids, 255 = ignored; None: a frame without labels.
    x: (Cx, H, W) float32, an encoding of lix_core.geometry.encodings or of the data set's own, 0 where it is unknown; None: no X.
    known: (H, W) bool, where x is known; None without x. x_kind: which encoding, "" without x.
    camera: calibration of the image where the data set has one; its size is the image's.
    shown: (H, W) bool, False where a view is padded and shows nothing of the frame; None: it shows something everywhere.

    Raises:
        DataError: arrays of other types, or of sizes that differ; names the frame.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray | None
    x: np.ndarray | None = None
    known: np.ndarray | None = None
    x_kind: str = ""
    camera: Camera | None = None
    shown: np.ndarray | None = None

    def __post_init__(self) -> None:
        size = self.image.shape[:2]
        self._check("image", self.image, np.uint8, ("H", "W", 3))
        for name in ("image", "labels", "x", "known", "shown"):
            array = getattr(self, name)
            # Such as BGR read backwards, or the bytes of a message: no tensor has negative strides, or is read-only.
            if isinstance(array, np.ndarray) and (min(array.strides, default=0) < 0 or not array.flags.writeable):
                setattr(self, name, array.copy())
        if self.labels is not None:
            self._check("labels", self.labels, np.uint8, size)
        if (self.x is None) != (self.known is None) or (self.x is None) != (not self.x_kind):
            raise DataError(f"{self.name}: x, known and x_kind come together or not at all, got x_kind {self.x_kind!r}")
        if self.x is not None:
            self._check("x", self.x, np.float32, ("Cx", *size))
            self._check("known", self.known, np.bool_, size)
        if self.shown is not None:
            self._check("shown", self.shown, np.bool_, size)
        if self.camera is not None and self.camera.shape != size:
            height, width = self.camera.shape
            raise DataError(f"{self.name}: the image is {size[1]}x{size[0]}, its calibration is for {width}x{height}")

    def _check(self, what: str, array: np.ndarray, dtype: type, shape: tuple[int | str, ...]) -> None:
        """Raises DataError where the array is of another type or shape; a name in the shape stands for any length."""
        fits = array.ndim == len(shape) and all(isinstance(n, str) or n == found for n, found in zip(shape, array.shape))
        if array.dtype != dtype or not fits:
            beside = f" (its image is {self.image.shape})" if what != "image" else ""
            expected = f"{np.dtype(dtype)} of ({', '.join(map(str, shape))})"
            raise DataError(f"{self.name}: {what} must be {expected}, got {array.dtype} of {array.shape}{beside}")


@dataclass
class Batch:
    """Tensors of one step.

    image: (B, 3, H, W) uint8 RGB. labels: (B, H, W) int64, 255 = ignored; all 255 in frames without labels.
    x: (B, Cx, H, W) float32, 0 where unknown; Cx is 0 where the run has no X. known: (B, H, W) bool, False everywhere where a frame has
    no X. labelled: (B,) bool, whether the frame came with labels. shown: (B, H, W) bool, False where a view is padded.
    names: of the frames.
    """

    image: Tensor
    labels: Tensor
    x: Tensor
    known: Tensor
    labelled: Tensor
    shown: Tensor
    names: list[str]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; a DataLoader calls this."""
        return self._each(Tensor.pin_memory)

    def only(self, chosen: Tensor) -> "Batch":
        """Some of the frames; chosen: (B,) bool."""
        some = self._each(lambda tensor: tensor[chosen])
        return replace(some, names=[name for name, kept in zip(self.names, chosen.tolist()) if kept])

    def _each(self, change) -> "Batch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "names"}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})

    def __len__(self) -> int:
        return len(self.names)


def collate(samples: Sequence[Sample], x_channels: int | None = None) -> Batch:
    """Samples of one size -> a batch.

    x_channels: Cx of the run; left out, that of the samples that have X (0 where none has). Give it where a batch may happen to have no X.

    Raises:
        DataError: no samples, sizes that differ, or kinds of X that differ.
    """
    if not samples:
        raise DataError("a batch needs at least one sample")
    sizes = {sample.image.shape[:2] for sample in samples}
    if len(sizes) > 1:
        raise DataError(f"images of a batch differ in size: {sorted(sizes)}; crop or resize them to one")
    kinds = {(s.x_kind, len(s.x)) for s in samples if s.x is not None}
    found = {channels for _, channels in kinds}
    if len(kinds) > 1 or (x_channels is not None and found - {x_channels}):
        raise DataError(f"X of a batch differs: {sorted(kinds)}, {x_channels} channels are asked for; one run has one kind of X")
    (height, width), count = sizes.pop(), len(samples)
    channels = x_channels if x_channels is not None else (found.pop() if found else 0)
    # One copy each, straight into the batch.
    images = torch.empty(count, 3, height, width, dtype=torch.uint8)
    labels = torch.full((count, height, width), UNLABELLED, dtype=torch.int64)
    x = torch.zeros(count, channels, height, width)
    known = torch.zeros(count, height, width, dtype=torch.bool)
    shown = torch.ones(count, height, width, dtype=torch.bool)
    for i, sample in enumerate(samples):
        images[i] = torch.from_numpy(sample.image).permute(2, 0, 1)
        if sample.labels is not None:
            labels[i] = torch.from_numpy(sample.labels)
        if sample.x is not None:
            x[i], known[i] = torch.from_numpy(sample.x), torch.from_numpy(sample.known)
        if sample.shown is not None:
            shown[i] = torch.from_numpy(sample.shown)
    labelled = torch.tensor([sample.labels is not None for sample in samples])
    return Batch(images, labels, x, known, labelled, shown, [sample.name for sample in samples])
