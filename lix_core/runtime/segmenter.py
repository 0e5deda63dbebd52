"""From an image to its segmentation: fit to the network, run the backend, bring ids back to the image's size."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from lix_core.errors import BackendError, BundleError, ImageError, first_line
from lix_core.labels import UNLABELLED, LabelMapping, LabelSet
from lix_core.pixels import TO_RGB, as_uint8, scaled
from lix_core.runtime.backends import DEFAULT_BACKEND, BackendOptions, load_backend
from lix_core.runtime.bundle import DEFAULT_MODEL, Bundle, Fit, XSpec, find_bundle

PADDING = 127
"""Grey level of the letterbox; close to every ImageNet mean, so that the network sees next to nothing there."""


@dataclass(frozen=True)
class Segmentation:
    """The labels of one image.

    mask: (H, W) uint8 ids of `labels`, 255 = unlabelled, at the image's own size.
    coarse_confidence: (h, w) float32, 0..1, the winning class's probability at the network's output size.
    cells: rows and columns of coarse_confidence that the image covers, the last ones maybe in part; None: all.
    """

    mask: np.ndarray
    labels: LabelSet
    coarse_confidence: np.ndarray
    cells: tuple[float, float] | None = None

    @cached_property
    def confidence(self) -> np.ndarray:
        """(H, W) float32, 0..1: the probability of the winning class, interpolated to the image's size."""
        return self._resize(self.coarse_confidence)

    @cached_property
    def confidence_u8(self) -> np.ndarray:
        """(H, W) uint8: the confidence as 0..255; interpolated after rounding, which is cheaper."""
        return self._resize(cv2.convertScaleAbs(self.coarse_confidence, alpha=255.0))

    def _resize(self, values: np.ndarray) -> np.ndarray:
        height, width = self.mask.shape
        rows, columns = self.cells or values.shape
        if (rows, columns) == values.shape:
            return cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
        # By factors, since a size would stretch the cells that lie in the image only in part; the rest of them is cut off.
        whole = cv2.resize(values, None, fx=width / columns, fy=height / rows, interpolation=cv2.INTER_LINEAR)
        return np.ascontiguousarray(whole[:height, :width])

    def rejecting(self, min_confidence: float) -> "Segmentation":
        """The same, with pixels below `min_confidence` unlabelled (255)."""
        if min_confidence <= 0:
            return self
        mask = np.where(self.confidence >= min_confidence, self.mask, np.uint8(UNLABELLED))  # a NaN is not sure of anything
        return dataclasses.replace(self, mask=mask)

    def remapped(self, mapping: LabelMapping) -> "Segmentation":
        """The same in another label set. Confidence stays that of the source class."""
        if mapping.source != self.labels:
            raise ImageError(f"the remap is from {mapping.source.name!r}, the segmentation is in {self.labels.name!r}")
        return dataclasses.replace(self, mask=cv2.LUT(self.mask, mapping.lut), labels=mapping.target)

    def differs_from(self, mask: np.ndarray, mapping: LabelMapping) -> np.ndarray:
        """(H, W) bool: where another mask of the image has another class, and both have one.

        Args:
            mask: (H, W) uint8, in the source classes of `mapping`, whose target is this one's label set.

        Raises:
            ImageError: another size or label set.
        """
        if mapping.target != self.labels or mask.shape != self.mask.shape:
            raise ImageError(
                f"masks to compare must be of one size and label set, got {mask.shape} in {mapping.target.name!r} "
                f"and {self.mask.shape} in {self.labels.name!r}"
            )
        other = cv2.LUT(mask, mapping.lut)
        return (other != self.mask) & (other != UNLABELLED) & (self.mask != UNLABELLED)


class Segmenter:
    """A model ready to run. Not for use by two threads at once: it keeps its canvas between calls.

    Args:
        model: a bundle, or a model's name or path.
        backend: `auto` or a name in `lix_core.runtime.backends.REGISTRY`.
        options: threads and precision.
        max_pixels: largest image content given to the network; 0 = the bundle's own. No effect on a fixed canvas.

    Raises:
        BundleError: the bundle is missing or damaged, or its graph does not do what its manifest says.
        BackendError: the backend is unknown, not installed, or cannot run the graph; or max_pixels is too small.
    """

    def __init__(
        self,
        model: Bundle | str | Path = DEFAULT_MODEL,
        backend: str = DEFAULT_BACKEND,
        options: BackendOptions = BackendOptions(),
        max_pixels: int = 0,
    ):
        self.bundle = model if isinstance(model, Bundle) else Bundle.load(find_bundle(model))
        manifest = self.bundle.manifest
        self.labels = manifest.labels
        least = manifest.size.multiple_of**2
        if max_pixels and max_pixels < least:
            raise BackendError(f"max_pixels must be 0 or at least {least} for model {manifest.name!r}, got {max_pixels}")
        self._size = dataclasses.replace(manifest.size, max_pixels=max_pixels) if max_pixels else manifest.size
        self._input, self._x = manifest.input, manifest.x
        self._backend = load_backend(backend, self.bundle.graph, options)
        self._fast = "mask" in manifest.outputs and "confidence" in manifest.outputs
        self._shape: tuple[int, int] | None = None
        self._check_graph()

    @property
    def description(self) -> str:
        """What runs: model, backend, its version, device and precision."""
        return f"{self.bundle.manifest.name} on {self._backend.description}"

    def segment(self, image: np.ndarray, order: str = "rgb", x: np.ndarray | None = None, known: np.ndarray | None = None) -> Segmentation:
        """Label every pixel of one image.

        Args:
            image: (H, W, 3) or (H, W, 4), or (H, W) for `gray`; uint8, or float of range 0..1. Rows may be padded
                (any strides over whole pixels).
            order: what the channels are: rgb, bgr, rgba, bgra or gray.
            x: (Cx, H, W) float, the geometry of this image in the encoding `bundle.manifest.x.kind`, for a model that sees X.
                Without it, such a model goes by the image alone.
            known: (H, W) bool, given with x: where x is known. What x holds elsewhere is not looked at.

        Raises:
            ImageError: empty, of another shape or dtype, or with NaN or values out of range; or X for a model of RGB alone.
        """
        height, width = self._lay(image, order, x, known)
        mask, confidence = self._infer()
        covered = zip(self._fit.content, confidence.shape, self._fit.canvas)
        cells = tuple(max(1.0, content * side / canvas) for content, side, canvas in covered)
        mask, confidence = self._crop(mask), self._crop(confidence)
        if mask.shape != (height, width):
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        else:
            mask = mask.copy()  # the backend may reuse its output at the next call
        return Segmentation(mask, self.labels, confidence.copy(), cells)

    def probabilities(
        self, image: np.ndarray, order: str = "rgb", x: np.ndarray | None = None, known: np.ndarray | None = None
    ) -> np.ndarray:
        """(C, H, W) float32: the probability of every class at every pixel, for averaging over views; much slower than `segment`.

        Args and errors as of `segment`. Where the image is not scaled to fit the network, the most probable class is the
        mask of `segment`, but for pixels where two classes are the same to the last digits.
        """
        height, width = self._lay(image, order, x, known)
        (logits,) = self._backend.run(self._tensor(), ("logits",), self._others)
        rows, columns = self._fit.canvas
        planes = [self._crop(cv2.resize(plane, (columns, rows), interpolation=cv2.INTER_LINEAR)) for plane in logits[0]]
        odds = np.stack(planes).astype(np.float32, copy=False)
        odds = np.exp(odds - odds.max(0))
        odds /= odds.sum(0)
        if odds.shape[1:] == (height, width):
            return odds
        return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in odds])

    def _lay(self, image: np.ndarray, order: str, x: np.ndarray | None, known: np.ndarray | None) -> tuple[int, int]:
        """Put an image, and its X, on the canvas; its (height, width)."""
        pixels = as_uint8(image, order)
        height, width = pixels.shape[:2]
        if self._shape != (height, width):
            self._prepare(height, width)
        rows, columns = self._fit.content
        target = self._canvas[:rows, :columns]
        pixels = scaled(pixels, (rows, columns))
        if TO_RGB[order] is None:
            target[...] = pixels
        else:
            cv2.cvtColor(pixels, TO_RGB[order], dst=target)
        if self._x is not None or x is not None or known is not None:
            self._lay_x(x, known)
        return height, width

    def _prepare(self, height: int, width: int) -> None:
        self._fit: Fit = self._size.fit(height, width)
        self._canvas = np.full((*self._fit.canvas, 3), PADDING, np.uint8)
        self._others: dict[str, np.ndarray] = {}
        if self._x is not None:
            x, known = np.zeros((1, self._x.channels, *self._fit.canvas), np.float32), np.zeros((1, *self._fit.canvas), bool)
            self._others = {"x": x, "known": known}
        self._shape = (height, width)

    def _lay_x(self, x: np.ndarray | None, known: np.ndarray | None) -> None:
        """Put X on the canvas; the padding, and a frame without X, is unknown."""
        if self._x is None:
            raise ImageError(f"model {self.bundle.manifest.name!r} sees RGB alone and takes no X; leave out x and known")
        check_x(x, known, self._x, self._shape)
        rows, columns = self._fit.content
        x_canvas, known_canvas = self._others["x"][0, :, :rows, :columns], self._others["known"][0, :rows, :columns]
        if x is None:
            x_canvas[...], known_canvas[...] = 0, False
            return
        known_canvas[...] = nearest(known.view(np.uint8), rows, columns)
        for target, plane in zip(x_canvas, x):
            target[...] = nearest(plane.astype(np.float32, copy=False), rows, columns)
        np.copyto(x_canvas, 0, where=~known_canvas)
        with np.errstate(all="ignore"):
            total = x_canvas.sum()
        # The sum shows any NaN, in a fraction of the time of a test of each value.
        if not np.isfinite(total) and not np.isfinite(x_canvas).all():
            raise ImageError(f"x has {np.count_nonzero(~np.isfinite(x_canvas))} values that are NaN or infinite where known is True")

    def _tensor(self) -> np.ndarray:
        tensor = self._canvas[None]
        if self._input.dtype == "float32":
            mean, std = np.float32(self._input.mean), np.float32(self._input.std)
            tensor = (tensor - mean) / std
        return tensor if self._input.layout == "NHWC" else np.ascontiguousarray(tensor.transpose(0, 3, 1, 2))

    def _infer(self) -> tuple[np.ndarray, np.ndarray]:
        """(h, w) uint8 ids and (h', w') float32 confidence of the whole canvas, each at the graph's own size."""
        if self._fast:
            mask, confidence = self._backend.run(self._tensor(), ("mask", "confidence"), self._others)
            return mask[0], confidence[0]
        (logits,) = self._backend.run(self._tensor(), ("logits",), self._others)
        return winner(logits[0], self._fit.canvas)

    def _crop(self, values: np.ndarray) -> np.ndarray:
        """The part of a canvas-wide array, at any resolution, that shows the image."""
        (rows, columns), (canvas_rows, canvas_columns) = self._fit.content, self._fit.canvas
        return values[: max(1, -(-rows * values.shape[0] // canvas_rows)), : max(1, -(-columns * values.shape[1] // canvas_columns))]

    def _check_graph(self) -> None:
        """Run once: warms the backend up, and shows whether the graph does what the manifest says."""
        manifest, outputs = self.bundle.manifest, self._backend.outputs
        missing = [name for name in manifest.outputs if name not in outputs]
        if missing:
            raise BundleError(f"the graph of {manifest.name!r} lacks outputs {', '.join(missing)}; it has {', '.join(outputs)}")
        others = {"x", "known"} if self._x else set()
        if set(self._backend.inputs[1:]) != others:
            wanted = ", ".join(["an image", *sorted(others, reverse=True)])
            found = ", ".join(self._backend.inputs)
            raise BundleError(f"by its manifest the graph of {manifest.name!r} takes {wanted}; its inputs are {found}")
        self._prepare(480, 640)
        try:
            results = dict(zip(manifest.outputs, self._backend.run(self._tensor(), manifest.outputs, self._others), strict=True))
        except Exception as error:  # every library has its own exceptions for inputs that do not fit
            raise BundleError(f"the graph of {manifest.name!r} cannot take its input: {first_line(error)}") from error
        logits = results["logits"]
        if logits.ndim != 4 or logits.shape[1] != len(self.labels):
            raise BundleError(
                f"bundle {manifest.name!r} names {len(self.labels)} classes, but its graph's logits are {logits.shape}, "
                f"not (1, {len(self.labels)}, h, w)"
            )
        if logits.dtype != np.float32:
            raise BundleError(f"logits of bundle {manifest.name!r} must be float32, got {logits.dtype}: let its graph end with a Cast")
        if not np.isfinite(logits).all():
            raise BundleError(f"logits of bundle {manifest.name!r} are not finite: its weights are damaged, or did not converge")
        if not self._fast:
            return
        mask, confidence = results["mask"], results["confidence"]
        if mask.shape != (1, *self._fit.canvas) or mask.dtype != np.uint8:
            raise BundleError(f"mask of bundle {manifest.name!r} must be uint8 {(1, *self._fit.canvas)}, got {mask.dtype} {mask.shape}")
        if len(odd := np.setdiff1d(mask, [*range(len(self.labels)), UNLABELLED])):
            raise BundleError(f"mask of bundle {manifest.name!r} has the id {odd[0]}, its classes are 0..{len(self.labels) - 1}")
        if confidence.ndim != 3 or confidence.dtype != np.float32:
            raise BundleError(
                f"confidence of bundle {manifest.name!r} must be float32 (1, h, w), got {confidence.dtype} {confidence.shape}"
            )


def check_x(x: np.ndarray | None, known: np.ndarray | None, spec: XSpec, size: tuple[int, int]) -> None:
    """Whether x and known are what a model with `spec` takes beside an image of `size` (H, W); both None are. Raises ImageError."""
    if x is None and known is None:
        return
    if not isinstance(x, np.ndarray) or not isinstance(known, np.ndarray):
        raise ImageError(f"x and its mask known are two arrays, or both None; got {type(x).__name__} and {type(known).__name__}")
    if x.shape != (spec.channels, *size) or x.dtype.kind != "f":
        wanted = f"a float array {(spec.channels, *size)}, {spec.kind} at the size of the image"
        raise ImageError(f"x must be {wanted}; got {x.dtype} {x.shape}")
    if known.shape != size or known.dtype != bool:
        raise ImageError(f"known must be a bool array {size}, the size of the image; got {known.dtype} {known.shape}")


def nearest(plane: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A plane (H, W) of any scale at (rows, columns): of each new pixel, the old one at its centre."""
    if plane.shape == (rows, columns):
        return plane
    return cv2.resize(plane, (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT)


def winner(logits: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(C, h, w) logits -> (H, W) uint8 ids after bilinear upsampling to `size`, and (h, w) float32 confidence."""
    height, width = size
    top = logits.max(0)
    confidence = 1 / np.exp(logits - top).sum(0)
    best = cv2.resize(logits[0], (width, height), interpolation=cv2.INTER_LINEAR)
    mask = np.zeros(size, np.uint8)
    for index in range(1, len(logits)):
        plane = cv2.resize(logits[index], (width, height), interpolation=cv2.INTER_LINEAR)
        mask[plane > best] = index
        np.maximum(best, plane, out=best)
    return mask, confidence
