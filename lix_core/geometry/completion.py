"""Sparse depth, as a LiDAR gives it, to dense depth with a confidence; edges stay edges."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from lix_core.errors import GeometryError
from lix_core.geometry.lidar import check_depth

FADE = 0.02
"""What a coarser level counts beside the next finer one: little, so that it only speaks where that is silent."""
ROW_SIGMA = 1.5
"""Blur along the rows at full size [pixels]: a spinning LiDAR's neighbours on a ring are near, the next ring is not."""
LEVEL_SIGMA = 1.3
"""Blur at every coarser level, in its own pixels."""
SPLIT_CELL, SPLIT_SIGMA = 4, 2.0
"""Cells [pixels] and blur [cells] of the local mean that tells near from far."""
SOFT_SPLIT = 0.1
"""Relative distance from that mean at which a measurement is all near or all far."""
BAND = 32
"""Rows that are finished at a time; even."""
TINY = np.float32(1e-30)
GAP_ERROR = 0.0025
"""Relative error in a pixel amid measurements; it grows with the distance to them. Fitted on simulated streets."""
TOLERANCE = 0.05
"""Expected relative error at which the confidence is one half."""


@dataclass(frozen=True)
class Completion:
    """depth: (H, W) float32 [m], NaN = unknown. confidence: (H, W) float32 from 0 (unknown) to 1 (measured)."""

    depth: np.ndarray
    confidence: np.ndarray


def complete(sparse_depth: np.ndarray, reach: int = 24) -> Completion:
    """Fill the gaps between depth measurements.

    Normalised convolution (Knutsson and Westin, CVPR 1993) of inverse depth, which is linear in the image on every plane, over a
    pyramid: blurs along the rows first, then round ones of twice the size per level, each counting FADE of the one before. It is done
    for two layers, measurements nearer and farther than the local mean. With their weights w and weighted sums s, inverse depth is

        (w_near s_near + w_far s_far) / (w_near^2 + w_far^2),

    the mean of both where they agree, and where they do not, nearly that of the layer with more weight here: no depths halfway between
    a pole and the wall behind it. Confidence is 1 / (1 + error / TOLERANCE), the error being that of `expected_error`.

    Args:
        sparse_depth: (H, W) float [m], NaN or infinite = unknown.
        reach: rows and columns to the nearest measurement beyond which depth stays unknown [pixels].

    Returns:
        Depth and confidence; measured pixels keep their depth, with confidence 1.

    Raises:
        GeometryError: not an image of floats, a depth that is not above 0, or a reach below 1.
    """
    sparse_depth = check_depth(sparse_depth)
    check_reach(reach)
    known = np.isfinite(sparse_depth)
    check_positive(sparse_depth, known)
    # Rows one after the other, whatever the order of the input: OpenCV writes into parts of them.
    depth, confidence = np.full(sparse_depth.shape, np.nan, np.float32), np.zeros(sparse_depth.shape, np.float32)
    if not known.any():
        return Completion(depth, confidence)
    levels = level_count(reach)
    v, u = np.divmod(np.flatnonzero(known), sparse_depth.shape[1])
    # Rows above the first measurement's reach cost time and say nothing. Whole cells of the coarsest level stay whole.
    top = max(0, (v[0] - reach) // 2**levels * 2**levels - 2**levels)
    height, width = (-(-size // 2**levels) * 2**levels for size in (sparse_depth.shape[0] - top, sparse_depth.shape[1]))
    values = split_layers(v - top, u, 1 / sparse_depth[known], height, width)
    coarse = coarse_levels(v - top, u, values, height, width, levels)
    reached = cv2.dilate(known.view(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    # In bands of rows, whose arrays stay in the cache; the finest level blurs along the rows only, so that bands do not matter to it.
    for start in range(top, sparse_depth.shape[0], BAND):
        half = slice((start - top) // 2, (start - top + BAND) // 2 + 2)
        fine = np.zeros((4, 2 * (coarse[:, half].shape[1] - 2), width), np.float32)
        inside = slice(*np.searchsorted(v, (start, start + BAND)))
        fine[:, v[inside] - start, u[inside]] = values[:, inside]
        band = slice(start, start + BAND)
        rows, columns = depth[band].shape
        for result, out in zip(finish(fine, coarse[:, half]), (depth, confidence)):
            cv2.copyTo(result[:rows, :columns], reached[band], out[band])
    depth[known], confidence[known] = sparse_depth[known], 1.0
    return Completion(depth, confidence)


def finish(fine: np.ndarray, coarse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A band's values (4, h, w) and its coarser levels (4, h / 2 + 2, w / 2), a row more on either side -> (h, w) depth, confidence."""
    height, width = fine.shape[1:]
    # The four planes below each other are one image: the blur stays within rows, and the rows more keep the planes apart.
    blurred = cv2.sepFilter2D(fine.reshape(-1, width), -1, blur_kernel(ROW_SIGMA), np.ones(1, np.float32), borderType=cv2.BORDER_CONSTANT)
    upsampled = cv2.resize(coarse.reshape(-1, width // 2), None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    near_sum, near, far_sum, far = blurred.reshape(4, height, width) + upsampled.reshape(4, height + 4, width)[:, 2:-2]
    with np.errstate(all="ignore"):  # out of reach all four are 0
        inverse = (near * near_sum + far * far_sum) / (near * near + far * far)
        error = expected_error(near_sum, near, far_sum, far, inverse)
        return 1 / inverse, 1 / (1 + error / np.float32(TOLERANCE))


def expected_error(near_sum: np.ndarray, near: np.ndarray, far_sum: np.ndarray, far: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Relative error that a completed pixel is likely to have, float32: the layers' disagreement and the distance to measurements.

    Disagreement is the standard deviation of the two layers' inverse depths under their weights, over the inverse depth. The distance
    doubles from level to level while the weight falls by FADE, so it goes with a power of the weight.
    """
    weight, product = near + far, near * far
    gap = np.abs(near_sum * far - far_sum * near)
    disagreement = gap / (np.sqrt(np.maximum(product, TINY)) * weight * inverse)
    return disagreement + GAP_ERROR / np.sqrt(np.sqrt(weight))


def level_count(reach: int) -> int:
    """Levels of half, quarter, ... size that it takes for every pixel within reach to hear of a measurement."""
    return max(2, int(np.ceil(np.log2(reach / (blur_kernel(LEVEL_SIGMA).size // 2)))))


def blur_kernel(sigma: float) -> np.ndarray:
    """(K,) float32 Gaussian weights that sum to 1."""
    radius = int(np.ceil(2.5 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def split_layers(v: np.ndarray, u: np.ndarray, inverse: np.ndarray, height: int, width: int) -> np.ndarray:
    """Measurements (N,) at rows v and columns u -> (4, N) float32: inverse depth times weight, and weight, in the near and far layer."""
    kernel = blur_kernel(SPLIT_SIGMA)
    rows, columns = height // SPLIT_CELL, width // SPLIT_CELL
    cell = v // SPLIT_CELL * columns + u // SPLIT_CELL
    sums, counts = (np.bincount(cell, weights, rows * columns).reshape(rows, columns) for weights in (inverse, np.ones_like(inverse)))
    sums, counts = (cv2.sepFilter2D(grid, -1, kernel, kernel, borderType=cv2.BORDER_CONSTANT).ravel()[cell] for grid in (sums, counts))
    mean = (sums / counts).astype(np.float32)
    near = np.clip(0.5 + (inverse - mean) / (2 * SOFT_SPLIT * mean), 0, 1)
    return np.stack([near * inverse, near, (1 - near) * inverse, 1 - near])


def coarse_levels(v: np.ndarray, u: np.ndarray, values: np.ndarray, height: int, width: int, levels: int) -> np.ndarray:
    """(4, N) values at rows v and columns u -> (4, height / 2 + 2, width / 2) float32: the levels from half size on, blurred and summed.

    Each counts FADE of the finer one, the first already so; the two rows more repeat the first and the last.
    """
    rows, columns = height // 2, width // 2
    place = v // 2 * columns + u // 2
    kernel = blur_kernel(LEVEL_SIGMA)
    planes = np.empty((4, rows + 2, columns), np.float32)
    for plane, channel in zip(planes, values):
        sums = np.bincount(place, channel * FADE, rows * columns).astype(np.float32).reshape(rows, columns)
        blurred = [cv2.sepFilter2D(sums, -1, kernel, kernel, borderType=cv2.BORDER_CONSTANT)]
        for _ in range(levels - 1):
            # Means over cells of 2 x 2, hence the 4: every level counts measurements.
            sums = cv2.resize(sums, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) * np.float32(4 * FADE)
            blurred.append(cv2.sepFilter2D(sums, -1, kernel, kernel, borderType=cv2.BORDER_CONSTANT))
        total = blurred.pop()
        while blurred:
            total = cv2.resize(total, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR) + blurred.pop()
        plane[1:-1], plane[0], plane[-1] = total, total[0], total[-1]
    return planes


def check_reach(reach: int) -> None:
    """Raises GeometryError where the reach is not a whole number above 0."""
    if not (isinstance(reach, (int, np.integer)) and reach >= 1):
        raise GeometryError(f"the reach of a completion is a whole number of pixels from 1, got {reach!r}")


def check_positive(depth: np.ndarray, known: np.ndarray) -> None:
    """Raises GeometryError where a known depth is not above 0."""
    wrong = int(np.count_nonzero(depth[known] <= 0))
    if wrong:
        raise GeometryError(f"{wrong} pixels have a depth of 0 m or less; a depth is above 0, and NaN where it is unknown")
