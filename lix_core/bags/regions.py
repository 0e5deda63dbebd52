"""Regions of an image as COCO writes them: run lengths, plain and compressed, and polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lix_core.errors import DataError

FARTHEST = 1e7
"""No corner of a polygon is so far from the image [pixels]."""


def run_lengths(region: np.ndarray) -> np.ndarray:
    """(H, W) bool -> int64 lengths of its runs of False, True, False, ... down the columns; the first may be 0."""
    flat = region.ravel(order="F").astype(bool)
    bounds = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    lengths = np.diff(bounds)
    return np.concatenate([[0], lengths]) if flat.size and flat[0] else lengths


def region_of(lengths: Any, shape: tuple[int, int]) -> np.ndarray:
    """Inverse of `run_lengths`: (H, W) bool. Raises DataError where the runs do not fill the image."""
    try:
        lengths = np.asarray(lengths, np.int64)
    except (TypeError, ValueError, OverflowError):
        raise DataError("run lengths must be whole numbers") from None
    # The sum could overflow where one length is absurd.
    if lengths.ndim != 1 or lengths.size == 0 or lengths.min() < 0 or lengths.max() > shape[0] * shape[1]:
        raise DataError(f"run lengths must be from 0 to the number of pixels, {shape[0] * shape[1]}")
    if lengths.sum() != shape[0] * shape[1]:
        raise DataError(f"run lengths add up to {lengths.sum()} pixels, the image has {shape[0]} x {shape[1]} = {shape[0] * shape[1]}")
    return np.repeat(np.arange(lengths.size) % 2 == 1, lengths).reshape(shape, order="F")


def compressed(lengths: np.ndarray) -> str:
    """COCO's text for run lengths: each as the difference to the one before the last (from the fourth on), five bits a character.

    As maskApi.c of https://github.com/cocodataset/cocoapi: low bits first, in two's complement, 32 says that more follow, 48 is added.
    """
    rest = np.array(lengths, np.int64)
    rest[3:] -= np.asarray(lengths, np.int64)[1:-2]
    columns, alive = [], np.ones(rest.size, bool)
    while alive.any():
        low, rest = rest & 31, rest >> 5
        more = np.where(low & 16, rest != -1, rest != 0)
        columns.append(np.where(alive, low | more.astype(np.int64) << 5, -1))
        alive &= more
    table = np.stack(columns, 1) if columns else np.zeros((0, 0), np.int64)
    return (table[table >= 0] + 48).astype(np.uint8).tobytes().decode("ascii")


def decompressed(text: str) -> np.ndarray:
    """Inverse of `compressed`. Raises DataError where it is no such text."""
    bits = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if not bits.size or bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        raise DataError(f"compressed run lengths {text[:20]!r} are cut off or have characters that do not occur in such")
    last = np.flatnonzero(bits & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(bits.size) - np.repeat(first, last - first + 1)
    if place.max() > 10:
        raise DataError(f"compressed run lengths {text[:20]!r} have a number of more than 55 bits")
    values = np.add.reduceat((bits & 31) << 5 * place, first)
    values -= np.where(bits[last] & 16, np.int64(1) << 5 * (place[last] + 1), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def polygon_region(polygon: Sequence[float], shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: pixels whose centre is inside [x, y, x, y, ...], by the even-odd rule; (0, 0) is the image's corner, not a centre.

    Raises DataError where it is no polygon. (cv2.fillPoly counts the outline in, which makes thin things thicker.)
    """
    try:
        points = np.asarray(polygon, np.float64)
    except (TypeError, ValueError):
        points = np.zeros(0)
    if points.ndim != 1 or points.size < 6 or points.size % 2 or not (np.abs(points) < FARTHEST).all():
        raise DataError(f"a polygon needs three points or more, x, y, x, y, ..., got {str(polygon)[:60]}")
    height, width = shape
    toggles = np.zeros((height, width + 1), bool)
    corners = points.reshape(-1, 2)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0)):
        # Rows whose centres are between the ends; the upper end counts, the lower does not, so that a corner counts once.
        ends = np.ceil(np.clip(sorted((y1, y2)), -1, height + 1) - 0.5).astype(int)
        rows = np.arange(max(ends[0], 0), min(ends[1], height))
        if rows.size:
            crossing = x1 + (rows + 0.5 - y1) * ((x2 - x1) / (y2 - y1))
            toggles[rows, np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)] ^= True
    return np.logical_xor.accumulate(toggles[:, :width], axis=1)
