"""A model over the frames of an extraction: their images, X out of their depth, and averages over views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from lix_core.bags.extract import BagCalibration, ExtractedFrame, Extraction, depth_units_of, image_of
from lix_core.bags.sensors import to_metres
from lix_core.errors import DataError, GeometryError, ImageError
from lix_core.geometry.encodings import ENCODINGS, encode
from lix_core.pixels import scaled
from lix_core.runtime.backends import DEFAULT_BACKEND, BackendOptions
from lix_core.runtime.bundle import Bundle
from lix_core.runtime.segmenter import Segmenter


@dataclass(frozen=True)
class Teacher:
    """A model that sees RGB, or RGB and X, and how it is asked; until then it can be sent to another process.

    calibrations: of each bag. bundle: the model itself, for its file may be replaced meanwhile. scales: of what the network sees, over
    which its answers are averaged; 1 alone for a canvas of fixed size. flip: average with the mirrored image.
    """

    calibrations: dict[str, BagCalibration]
    bundle: Bundle
    backend: str = DEFAULT_BACKEND
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @cached_property
    def segmenter(self) -> Segmenter:
        """The model in this process, one thread, with room for the largest scale."""
        size = self.bundle.manifest.size
        pixels = 0 if size.height else max(size.max_pixels, int(np.ceil(size.max_pixels * max(self.scales) ** 2)))
        # One thread, however many processes there are: a sum's last digit may depend on their number.
        return Segmenter(self.bundle, self.backend, BackendOptions(threads=1), pixels)

    def has_depth(self, frame: ExtractedFrame) -> bool:
        """Whether X can be made of a frame: it has depth, and a camera to it."""
        return frame.depth is not None and self.calibrations[frame.bag].camera is not None

    def speaks_of(self, frame: ExtractedFrame) -> bool:
        """Whether what it says of a frame means anything: a model that never was without X needs depth."""
        return not self.bundle.manifest.needs_x or self.has_depth(frame)

    def silence(self, frames: Sequence[ExtractedFrame]) -> str:
        """Of how many frames it says nothing, and why; empty where it speaks of all."""
        count = sum(not self.speaks_of(frame) for frame in frames)
        return f"{count} of {len(frames)} frames have no depth: they get no labels, for {self.bundle.manifest.needs_x}" if count else ""

    def probabilities(self, frame: ExtractedFrame) -> np.ndarray:
        """(C, H, W) float32 of a frame; a model with X goes by the image alone where a frame has no depth.

        Raises DataError: the image or depth cannot be read, or X cannot be made of it.
        """
        spec, calibration = self.bundle.manifest.x, self.calibrations[frame.bag]
        depth = depth_of(frame, calibration) if spec else None
        x = known = None
        try:
            if depth is not None:
                x, known = encode(spec.kind, depth=depth, camera=calibration.camera, baseline=calibration.baseline)
            return averaged(self.segmenter, image_of(frame), x, known, self.scales, self.flip)
        except (ImageError, GeometryError) as error:
            raise DataError(f"frame {frame.name}: {error}") from None

    def mask(self, frame: ExtractedFrame) -> np.ndarray | None:
        """(H, W) uint8: the most probable class of each pixel of a frame; None where it says nothing of it. Raises DataError."""
        return self.probabilities(frame).argmax(0).astype(np.uint8) if self.speaks_of(frame) else None


def calibrations_of(extraction: Extraction) -> dict[str, BagCalibration]:
    """Of each bag. Raises DataError."""
    return {bag["name"]: extraction.calibration(bag["name"]) for bag in extraction.bags}


def depth_of(frame: ExtractedFrame, calibration: BagCalibration) -> np.ndarray | None:
    """(H, W) float32 depth of a frame [m], NaN unknown; None where it has none, or no camera to it. Raises DataError."""
    units = depth_units_of(frame, calibration.camera.shape) if calibration.camera else None
    return None if units is None else to_metres(units)


def averaged(
    segmenter: Segmenter,
    image: np.ndarray,
    x: np.ndarray | None = None,
    known: np.ndarray | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
) -> np.ndarray:
    """(C, H, W) float32: a model's probabilities, averaged over scales of what it sees and, with `flip`, the mirrored image.

    Scale 1 is the size that the bundle itself gives an image; a canvas of fixed size has no other. X is mirrored by its encoding: a
    normal's x changes its sign.

    Args: image (H, W, 3) uint8 RGB; x (Cx, H, W) float32 and known (H, W) bool, or None.
    Raises: ImageError, as Segmenter.segment; X of an unknown encoding with `flip`.
    """
    manifest, (height, width) = segmenter.bundle.manifest, image.shape[:2]
    if flip and x is not None and manifest.x.kind not in ENCODINGS:
        raise ImageError(f"X of kind {manifest.x.kind!r} is not one of lix, which does not know how to mirror it; average without flip")
    rows, columns = manifest.size.fit(height, width).content
    total = np.zeros((len(segmenter.labels), height, width), np.float32)
    for scale in scales:
        # Rounded down, so that the segmenter does not scale once more; 1e-9 forgives the product's last digit.
        size = (height, width) if manifest.size.height else tuple(max(1, int(side * scale + 1e-9)) for side in (rows, columns))
        view = scaled(image, size)
        x_view = known_view = None
        if x is not None:
            x_view = np.stack([resized(plane, size, cv2.INTER_NEAREST_EXACT) for plane in x])
            known_view = resized(known.view(np.uint8), size, cv2.INTER_NEAREST_EXACT).view(bool)
        for mirrored in (False, True)[: 1 + flip]:
            planes = probabilities_of(segmenter, view, x_view, known_view, mirrored)
            for target, plane in zip(total, planes):
                target += resized(plane, (height, width), cv2.INTER_LINEAR)
    return total / (len(scales) * (1 + flip))


def probabilities_of(segmenter: Segmenter, image: np.ndarray, x: np.ndarray | None, known: np.ndarray | None, mirrored: bool) -> np.ndarray:
    if not mirrored:
        return segmenter.probabilities(image, "rgb", x, known)
    if x is not None:
        x, known = ENCODINGS[segmenter.bundle.manifest.x.kind].flip(x), known[:, ::-1]
    return segmenter.probabilities(np.ascontiguousarray(image[:, ::-1]), "rgb", x, known)[..., ::-1]


def resized(plane: np.ndarray, size: tuple[int, int], method: int) -> np.ndarray:
    return plane if plane.shape[:2] == size else cv2.resize(np.ascontiguousarray(plane), size[::-1], interpolation=method)
