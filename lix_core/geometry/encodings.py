"""X: geometry as channels for a network, about zero mean and unit spread, 0 where it is unknown, with a mask of what is known.

| kind | of | channels | formula |
| --- | --- | --- | --- |
| normals | unit normals | 3 | the vector itself: x right, y down, z forward; no vector is 0, so that 0 says unknown by itself |
| depth | depth [m] | 1 | (ln z - ln 15) / 0.75: equal steps are equal ratios, near and far count alike |
| inverse_depth | depth [m] | 1 | (1 / z - 0.09) / 0.07: disparity without the camera's focal length and baseline |
| disparity | disparity [pixels] | 1 | (d / width - 0.028) / 0.022: what this camera measures, as a share of the width |

Depth counts within 1 to 100 m and disparity up to a quarter of the width; what lies beyond takes the limit. The constants are rounded
means and spreads over simulated streets (fx / width 0.58, baseline 0.54 m); they are fixed, as a trained network depends on them.

What changes with the picture: a mirrored one needs `Encoding.flip`, because the x of normals changes its sign. Cropping, and resizing
by the same factor in both directions, keep all four; but encode disparity before cropping, for its width is that of the whole image.
Resize to the nearest pixel: the mean of a known and an unknown pixel is neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lix_core.camera import Camera
from lix_core.errors import GeometryError
from lix_core.geometry.normals import normals_from_depth
from lix_core.geometry.stereo import depth_to_disparity, disparity_to_depth

CURVES = {"linear": (np.positive, np.positive), "log": (np.log, np.exp), "inverse": (np.reciprocal, np.reciprocal)}
"""What is normalised, by name: a function of the quantity and its inverse."""


@dataclass(frozen=True)
class Encoding:
    """One kind of X: (curve(quantity within low..high) - mean) / std, and 0 where the quantity is unknown.

    quantity: `normals` (H, W, 3), `depth` (H, W) [m] or `disparity` (H, W) [pixels]; NaN is unknown. channels: of the encoding.
    low, high: limits of the quantity; of disparity as a share of the image's width. curve: one of CURVES.
    """

    kind: str
    quantity: str
    channels: int
    low: float
    high: float
    curve: str = "linear"
    mean: float = 0.0
    std: float = 1.0

    def encode(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The quantity -> channels (C, H, W) float32 and mask (H, W) bool, True where it is known.

        Known is finite, and above 0 for depth and disparity. Raises GeometryError on another shape or on integers.
        """
        self._check(values)
        planes = np.moveaxis(values, 2, 0) if self.channels > 1 else values[None]
        with np.errstate(all="ignore"):
            planes = planes.astype(np.float32)
        known = np.isfinite(planes).all(0) & ((planes != 0).any(0) if self.channels > 1 else planes[0] > 0)
        # Any value within the limits: it keeps the curve from warnings.
        planes = np.where(known, planes, np.float32(self.high))
        x = (CURVES[self.curve][0](np.clip(planes / self.unit(values.shape[1]), self.low, self.high)) - self.mean) / self.std
        return np.where(known, x, 0).astype(np.float32), known

    def decode(self, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Channels (C, H, W) and mask (H, W) -> the quantity within its limits, float32, NaN where the mask is False.

        Raises GeometryError on other shapes.
        """
        if x.ndim != 3 or len(x) != self.channels or mask.shape != x.shape[1:]:
            raise GeometryError(f"{self.kind} is ({self.channels}, H, W) with a mask (H, W), got {x.shape} and {mask.shape}")
        curve, inverse = CURVES[self.curve]
        bounds = sorted((curve(self.low), curve(self.high)))
        planes = inverse(np.clip(np.where(mask, x, np.float32(0)) * self.std + self.mean, *bounds))
        values = np.where(mask, planes * self.unit(x.shape[2]), np.nan).astype(np.float32)
        return np.moveaxis(values, 0, 2) if self.channels > 1 else values[0]

    def flip(self, x: np.ndarray) -> np.ndarray:
        """Channels (..., C, H, W) of the picture mirrored left to right. (The mask is mirrored by `mask[..., ::-1]`.)"""
        mirrored = x[..., ::-1].copy()
        if self.quantity == "normals":
            mirrored[..., 0, :, :] *= -1
        return mirrored

    def unit(self, width: int) -> float:
        """What the quantity is counted in: the image's width for disparity."""
        return float(width) if self.quantity == "disparity" else 1.0

    def _check(self, values: np.ndarray) -> None:
        shape = "(H, W, 3)" if self.channels > 1 else "(H, W)"
        array = isinstance(values, np.ndarray)
        right = array and values.dtype.kind == "f" and values.ndim == len(shape.split(",")) and values.shape[2:] in ((), (3,))
        if not right:
            found = f"{values.dtype} of shape {values.shape}" if array else type(values).__name__
            raise GeometryError(f"{self.quantity} must be a float array of shape {shape}, got {found}")


ENCODINGS = {
    encoding.kind: encoding
    for encoding in (
        Encoding("normals", "normals", 3, -1.0, 1.0),
        Encoding("depth", "depth", 1, 1.0, 100.0, "log", mean=float(np.log(15.0)), std=0.75),
        Encoding("inverse_depth", "depth", 1, 1.0, 100.0, "inverse", mean=0.09, std=0.07),
        Encoding("disparity", "disparity", 1, 0.0, 0.25, mean=0.028, std=0.022),
    )
}
"""Every kind of X."""


def encode(
    kind: str,
    *,
    depth: np.ndarray | None = None,
    disparity: np.ndarray | None = None,
    normals: np.ndarray | None = None,
    camera: Camera | None = None,
    baseline: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """X of a kind from whatever is known: the quantity itself, or what it follows from.

    kind: a key of ENCODINGS. depth: (H, W) [m]. disparity: (H, W) [pixels]. normals: (H, W, 3). camera: the left one, needed to get one
    quantity from another; baseline: of the pair [m], needed between depth and disparity.

    Returns:
        channels (C, H, W) float32 and mask (H, W) bool, as Encoding.encode.

    Raises:
        GeometryError: an unknown kind, or too little given.
    """
    if kind not in ENCODINGS:
        raise GeometryError(f"there is no encoding {kind!r}; there are {', '.join(ENCODINGS)}")
    quantity = ENCODINGS[kind].quantity
    given = {"depth": depth, "disparity": disparity, "normals": normals}[quantity]
    if given is None:
        given = _derived(kind, quantity, depth, disparity, camera, baseline)
    return ENCODINGS[kind].encode(given)


def _derived(
    kind: str, quantity: str, depth: np.ndarray | None, disparity: np.ndarray | None, camera: Camera | None, baseline: float
) -> np.ndarray:
    if camera is None or (depth is None and disparity is None):
        others = [name for name in ("depth", "disparity") if name != quantity]
        raise GeometryError(f"the encoding {kind} needs {quantity}, or {' or '.join(others)} and the camera")
    if quantity == "disparity":
        return depth_to_disparity(depth, camera.fx, baseline)
    if depth is None:
        depth = disparity_to_depth(disparity, camera.fx, baseline)
    return depth if quantity == "depth" else normals_from_depth(depth, camera)
