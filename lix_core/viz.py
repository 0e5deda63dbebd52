"""Pictures for people: colour masks, overlays, legends and contact sheets. All images are RGB uint8."""

from __future__ import annotations

import math
from typing import Sequence

import cv2
import numpy as np

from lix_core.errors import GeometryError, ImageError, LixError
from lix_core.labels import UNLABELLED, LabelSet


def check(what: str, array: np.ndarray, shape: tuple[int | str, ...], kind: type, error: type[LixError] = ImageError) -> None:
    """Raises `error` where an array is not of a dtype of `kind` and of a shape, in which texts stand for any length above 0."""
    found = np.shape(array)
    fits = len(found) == len(shape) and all(n == want if isinstance(want, int) else n for n, want in zip(found, shape))
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, kind) or not fits:
        got = f"{array.dtype} {found}" if isinstance(array, np.ndarray) else type(array).__name__
        raise error(f"{what} must be an array ({', '.join(map(str, shape))}) of {kind.__name__}, got {got}")


def colorize(mask: np.ndarray, labels: LabelSet) -> np.ndarray:
    """(H, W) uint8 ids -> (H, W, 3) uint8 RGB; unlabelled pixels are black. Raises ImageError for another shape or dtype."""
    check("the mask", mask, ("H", "W"), np.uint8)
    return cv2.LUT(cv2.merge([mask, mask, mask]), labels.palette[None])


def overlay(image: np.ndarray, mask: np.ndarray, labels: LabelSet, alpha: float = 0.5) -> np.ndarray:
    """Blend class colours over an image, `alpha` of them; unlabelled pixels keep the camera's colour.

    Shape:
        image (H, W, 3) uint8 RGB, mask (H, W) uint8 -> (H, W, 3) uint8 RGB

    Raises:
        ImageError: another shape or dtype, or two sizes.
    """
    check("the image", image, ("H", "W", 3), np.uint8)
    check("the mask of this image", mask, image.shape[:2], np.uint8)
    blended = cv2.addWeighted(image, 1.0 - alpha, colorize(mask, labels), alpha, 0.0)
    # Not cv2.compare: it cannot tell a scalar from a mask of one pixel.
    unlabelled = (mask == UNLABELLED).view(np.uint8)
    if cv2.countNonZero(unlabelled):
        cv2.copyTo(image, unlabelled, blended)
    return blended


def legend(labels: LabelSet, width: int) -> np.ndarray:
    """A strip of colour patches and names, `width` pixels wide, as many rows as it needs. Raises ImageError where width is below 1."""
    if width < 1:
        raise ImageError(f"a legend must be at least 1 pixel wide, got {width}")
    font, scale, pad, patch, row_height = cv2.FONT_HERSHEY_SIMPLEX, 0.5, 8, 14, 24
    cells = [(i, patch + 2 * pad + cv2.getTextSize(labels.names[i], font, scale, 1)[0][0] + pad) for i in range(len(labels))]
    rows: list[list[tuple[int, int]]] = [[]]
    for cell in cells:
        if rows[-1] and sum(w for _, w in rows[-1]) + cell[1] > width:
            rows.append([])
        rows[-1].append(cell)
    strip = np.full((row_height * len(rows), width, 3), 24, np.uint8)
    for r, row in enumerate(rows):
        x, y = 0, r * row_height
        for i, cell_width in row:
            color = tuple(int(v) for v in labels.palette[i])
            cv2.rectangle(strip, (x + pad, y + 5), (x + pad + patch, y + 5 + patch), color, -1)
            cv2.putText(strip, labels.names[i], (x + 2 * pad + patch, y + 17), font, scale, (235, 235, 235), 1, cv2.LINE_AA)
            x += cell_width
    return strip


def depth_color(depth: np.ndarray, near: float = 3.0, far: float = 80.0) -> np.ndarray:
    """Depth -> colours from red (`near` and nearer) over green to blue (`far` and farther), even in log depth; unknown is black.

    Shape:
        depth (H, W) float [m], NaN = unknown -> (H, W, 3) uint8 RGB

    Raises:
        GeometryError: another shape or dtype, or not 0 < near < far.
    """
    check("depth [m]", depth, ("H", "W"), np.floating, GeometryError)
    if not 0 < near < far:
        raise GeometryError(f"depth colours need 0 < near < far, got near = {near}, far = {far}")
    known = np.isfinite(depth)
    # fmin and fmax take NaN to a bound, so that the cast below never sees one.
    clipped = np.fmin(np.fmax(depth, np.float32(near)), np.float32(far))
    # The two ends of the colour map are too dark to be told from black.
    levels = 16 + cv2.log(np.float32(far) / clipped) * np.float32(224 / math.log(far / near))
    colours = cv2.cvtColor(cv2.applyColorMap(levels.astype(np.uint8), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    colours[~known] = 0
    return colours


def normals_color(normals: np.ndarray) -> np.ndarray:
    """Unit normals in the optical frame -> RGB = (1 - n) / 2: red faces left, green up, blue the camera; unknown is black.

    Shape:
        normals (H, W, 3) float, NaN = unknown -> (H, W, 3) uint8 RGB

    Raises:
        GeometryError: another shape or dtype.
    """
    check("normals", normals, ("H", "W", 3), np.floating, GeometryError)
    known = np.array(normals, np.float32, order="C")
    cv2.patchNaNs(known, 1.0)
    return cv2.convertScaleAbs(known, alpha=-127.5, beta=127.5)


def draw_depth_points(image: np.ndarray, sparse_depth: np.ndarray, near: float = 3.0, far: float = 80.0, size: int = 2) -> np.ndarray:
    """A copy of the image with every known depth as a square of `size` pixels in its `depth_color`; nearer points lie on top.

    Shape:
        image (H, W, 3) uint8 RGB, sparse_depth (H, W) float [m], NaN = no point -> (H, W, 3) uint8 RGB

    Raises:
        ImageError, GeometryError: another shape or dtype; the two are not of one size; not 0 < near < far.
    """
    check("the image", image, ("H", "W", 3), np.uint8)
    check("depth [m] to draw over this image", sparse_depth, image.shape[:2], np.floating, GeometryError)
    known = np.where(np.isfinite(sparse_depth), sparse_depth, np.inf).astype(np.float32)
    grown = cv2.erode(known, np.ones((size, size), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=np.inf)
    return np.where(np.isfinite(grown)[..., None], depth_color(grown, near, far), image)


def contact_sheet(images: Sequence[np.ndarray], labels: LabelSet, columns: int = 2, cell_width: int = 620) -> np.ndarray:
    """Images side by side in rows, each scaled to `cell_width`, over a legend; for judging many frames at a glance.

    What would be more than twice as high as it is wide is scaled to that height, and padded. Raises ImageError where there is no
    image, or one is not (H, W, 3) uint8 RGB.
    """
    if not len(images):
        raise ImageError("a contact sheet needs at least one image")
    cells = []
    for image in images:
        check("an image of the sheet", image, ("H", "W", 3), np.uint8)
        scale = min(cell_width / image.shape[1], 2 * cell_width / image.shape[0])
        size = [max(1, round(side * scale)) for side in (image.shape[1], image.shape[0])]
        cell = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        cells.append(cv2.copyMakeBorder(cell, 0, 0, 0, cell_width - size[0], cv2.BORDER_CONSTANT, value=(24, 24, 24)))
    columns = max(1, min(columns, len(cells)))
    rows = []
    for r in range(math.ceil(len(cells) / columns)):
        row = cells[r * columns : (r + 1) * columns]
        height = max(c.shape[0] for c in row)
        row = [cv2.copyMakeBorder(c, 2, height - c.shape[0] + 2, 2, 2, cv2.BORDER_CONSTANT, value=(24, 24, 24)) for c in row]
        row += [np.full_like(row[0], 24)] * (columns - len(row))
        rows.append(np.hstack(row))
    body = np.vstack(rows)
    return np.vstack([body, legend(labels, body.shape[1])])
