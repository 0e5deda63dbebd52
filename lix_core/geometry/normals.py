"""Surface normals from depth: unit vectors in the camera's optical frame that face the camera.

On a plane the inverse depth w = 1 / z is an affine function of the pixel (u, v): with n . X = -d and X = z (x, y, 1),
x = (u - cx) / fx, y = (v - cy) / fy,

    -d w = nx x + ny y + nz,    so    n ~ -(fx dw/du, fy dw/dv, w - (u - cx) dw/du - (v - cy) dw/dv).

Gradients of w are therefore exact on planes at any distance and slant, which gradients of z are not; and a stereo camera's noise,
sigma_z = z^2 sigma_d / (f b), is the same sigma_d / (f b) in w at every distance. The sign makes n . (x, y, 1) = -w: it faces the camera.
The centre of the top left pixel is (0, 0), see lix_core.camera (the `d2nt` package counts from 1).

The methods, by name in METHODS; all but `planes` look at the nearest pixels only, and are for depth without noise:
- planes: the default. One-sided gradients where the depth is exact, planes fitted to ever larger windows where it is noisy.
- one_sided: on each axis the gradient to the left, to the right or across, whichever bends least. The fastest.
- central: differences across the pixel, to one side beside a hole.
- d2nt_v2, d2nt_v3: discontinuity-aware gradients of depth, and with a refinement (Feng et al., "D2NT: A High-Performing
  Depth-to-Normal Translator", ICRA 2023).
- 3f2n: gradients of w, and a median over eight neighbours for nz (Fan et al., "Three-Filters-to-Normal", IEEE RA-L 2021).
bench/normals.py measures all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

from lix_core.camera import Camera
from lix_core.errors import GeometryError

DEFAULT = "planes"
NAN = np.float32(np.nan)
NEAREST, FARTHEST = 1e-12, 1e18
"""[m]: within them the squares of inverse depths and of their slopes stay in float32; beyond them normals would be no unit vectors."""

STAGES = ((3, 5), (2, 5), (1, 3))
"""The plane fits, from coarse to fine: (halvings of the image, cells on a side of the window): 40, 20 and 6 pixels."""
FLOOR = np.float32(1e-6)
"""Least error of a slope, of the typical inverse depth per pixel: what float32 leaves of an exact one."""
REACH = np.float32(3)
"""A pixel this many times the typical distance off a plane does not belong to it."""
LIMIT = np.float32(300)
"""Distances count up to this many times REACH, so that their eighth power and the weights stay in float32."""
UNIT = np.float32(1e9)
"""Square root of the weight of an error of FLOOR: high, so that float32 does not lose the weights of large ones."""
SIGMA_OF_CHANGE = np.float32(1 / 0.954)
"""Standard deviation of normal noise over the median size of the difference of two."""
STEP, ONE = np.array([-1, 1], np.float32), np.ones(1, np.float32)
NEVER = 1e19
"""Error of a slope that is not there; its square is in float32 still."""
TINY = np.float32(1e-30)
"""Weight of no vote, to divide by."""
STRIP = 48
"""Rows worked on at a time at full size, so that the arrays between stay in a core's cache."""


def normals_from_depth(depth: np.ndarray, camera: Camera, method: str = DEFAULT) -> np.ndarray:
    """Unit normals of the surface seen in every pixel.

    depth: (H, W) float, z [m] in the rectified image; NaN and what is not within NEAREST and FARTHEST are unknown. camera: of
        that image.
    method: a key of METHODS.

    Returns:
        (H, W, 3) float32 in the optical frame (x right, y down, z forward), n . ray < 0; NaN where the depth is unknown or has no
        neighbours to tell a slope from. Depth is never taken from the far side of a hole by a gradient.

    Raises:
        GeometryError: depth that is not a float image of the camera's size, or a method that is not there.
    """
    if method not in METHODS:
        raise GeometryError(f"there is no method {method!r} for normals; there are {', '.join(METHODS)}")
    if not isinstance(depth, np.ndarray) or depth.ndim != 2 or depth.dtype.kind != "f":
        found = f"{depth.dtype} of shape {depth.shape}" if isinstance(depth, np.ndarray) else type(depth).__name__
        raise GeometryError(f"depth must be an (H, W) float array in metres, got {found}; divide millimetres by 1000")
    camera.check_size(depth, "depth")
    with np.errstate(all="ignore"):
        return METHODS[method](_inverse(depth), camera)


def _inverse(depth: np.ndarray) -> np.ndarray:
    """(H, W) float32 1 / depth [1 / m], NaN where the depth is unknown."""
    # Row by row in memory, whatever the order of the depth: the methods flatten it.
    inverse = np.divide(np.float32(1), depth, dtype=np.float32, casting="same_kind", order="C")
    bad = (inverse < np.float32(1 / FARTHEST)) | (inverse > np.float32(1 / NEAREST))
    if bad.any():
        inverse[bad] = NAN
    return inverse


def _ramps(camera: Camera, width: int, height: int, pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(width,) and (height, 1) float32 [pixels] from the principal point, of the image with `pad` pixels more to the left and the top."""
    x = np.arange(width, dtype=np.float32) - np.float32(camera.cx + pad)
    y = np.arange(height, dtype=np.float32) - np.float32(camera.cy + pad)
    return x, y[:, None]


def _unit(gu: np.ndarray, gv: np.ndarray, w: np.ndarray, x: np.ndarray, y: np.ndarray, camera: Camera) -> list[np.ndarray]:
    """Inverse depth and its slopes [1 / (m pixel)] -> the three coordinates of the normals. Works in gu and gv."""
    nz, t = gu * x, gv * y
    nz += t
    nz -= w
    gu *= np.float32(-camera.fx)
    gv *= np.float32(-camera.fy)
    cv2.magnitude(gu, gv, t)
    cv2.magnitude(t, nz, t)
    np.divide(np.float32(1), t, out=t)
    for n in (gu, gv, nz):
        n *= t
    return [gu, gv, nz]


# One-sided gradients.


def _one_sided(flat: np.ndarray, first: int, count: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Slope along one axis, and how far it may be off, for pixels first..first + count of a flattened image padded with NaN.

    step: to the next pixel of the axis in `flat`. Of the slopes to the left, to the right and across, takes the one whose second
    difference is least; beside a hole, or on something two pixels wide, a slope's own size stands for it.
    Returns (count,) float32 slopes and errors; without a neighbour NaN and NEVER.
    """
    part = flat[first - 2 * step : first + count + 2 * step]
    slope = part[step:] - part[:-step]
    bend = cv2.absdiff(slope[step:], slope[:-step]).ravel()
    left, right = slope[step : step + count], slope[2 * step :][:count]
    size = np.abs(slope[step : 2 * step + count])
    cv2.patchNaNs(size, NEVER)
    error_left, error = np.fmin(size[:count], bend[:count]), np.fmin(size[step:], bend[2 * step :])
    best = right.copy()
    cv2.copyTo(left, (error_left < error).view(np.uint8), best)
    np.minimum(error, error_left, out=error)
    across = bend[step : step + count]
    middle = left + right
    middle *= np.float32(0.5)
    cv2.copyTo(middle, (across <= error).view(np.uint8), best)
    np.fmin(error, across, out=error)
    return best, error


def _slopes(padded: np.ndarray, top: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One-sided slopes of `rows` rows from row `top` of a padded image: along u, along v, and their squared error, each (rows, W)."""
    width = padded.shape[1]
    flat, first, count = padded.ravel(), top * width, rows * width
    # Rows above and below are of the image; to the left and right of a row there are always two NaN.
    gu, eu = _one_sided(flat, first, count, 1)
    gv, ev = _one_sided(flat, first, count, width)
    eu *= eu
    ev *= ev
    eu += ev
    return gu.reshape(rows, width), gv.reshape(rows, width), eu.reshape(rows, width)


def _padded(w: np.ndarray) -> np.ndarray:
    """The image with two NaN around it, and even sides."""
    return cv2.copyMakeBorder(w, 2, 2 + w.shape[0] % 2, 2, 2 + w.shape[1] % 2, cv2.BORDER_CONSTANT, value=float("nan"))


def one_sided(w: np.ndarray, camera: Camera) -> np.ndarray:
    """On each axis the slope of the inverse depth to the left, to the right or across, whichever bends least."""
    image = _padded(w)
    x, y = _ramps(camera, *image.shape[::-1], pad=2)
    normals = np.empty((*w.shape, 3), np.float32)
    for strip in _strips(len(w)):
        gu, gv, _ = _slopes(image, strip.start, strip.stop - strip.start)
        _write(_unit(gu, gv, image[strip], x, y[strip], camera), strip, normals)
    return normals


def _strips(height: int) -> list[slice]:
    """Rows of the padded image, an even number in each, that together cover the `height` rows of the image."""
    end = 2 + height + height % 2
    return [slice(top, min(top + STRIP, end)) for top in range(2, end, STRIP)]


def _write(planes: list[np.ndarray], strip: slice, normals: np.ndarray) -> None:
    """Coordinates of the normals of a strip of the padded image -> their place in the image's own."""
    rows = normals[strip.start - 2 : strip.stop - 2]
    cv2.merge([plane[: len(rows), 2 : 2 + rows.shape[1]] for plane in planes], rows)


# Planes. The votes on cells are [weight, slope along u, slope along v, value at the cell's middle], arrays of the cells' shape.


def planes(w: np.ndarray, camera: Camera) -> np.ndarray:
    """Planes of the inverse depth, fitted to windows of several sizes, of which every pixel takes those that explain it best.

    A window votes, on all its pixels, with the weight 1 / error^4. Its error is what its slopes scatter by (measured on this very
    image, so no noise need be known) and what it bends by beyond the typical window. From coarse to fine, planes lose their weight
    where they do not run through the finer cells; at last each pixel's one-sided slopes join as one vote more.
    So an image is smoothed as much as its noise asks for, on either side of an edge. Where most of it bends no more than float32
    rounds, nothing asks for it: then the one-sided slopes are the answer. (Depth in coarse steps, of a centimetre say, looks exact.)
    """
    image = _padded(w)
    floor = _typical(w) * FLOOR
    steps = image[::4, 1:] - image[::4, :-1]
    # Where nothing of the sampled grid is known (a small patch of depth), there is no telling either.
    if not _typical(steps[:, 1:] - steps[:, :-1]) > floor:
        return one_sided(w, camera)
    pyramid = [image]
    while len(pyramid) <= STAGES[0][0]:
        pyramid.append(_halved(pyramid[-1]))
    votes = [np.zeros_like(pyramid[-1])] * 4
    for level, window in STAGES:
        cells = pyramid[level]
        if votes[0].shape != cells.shape:
            finer = [_doubled(vote) for vote in votes[:3]] + [_between(votes[3], votes[1], votes[2], 2**level)]
            votes = [vote[: cells.shape[0], : cells.shape[1]] for vote in finer]
        mine = _fit(cells, 2**level, window, floor)
        residual = votes[3] - cells
        reach = REACH * np.nan_to_num(_typical(residual)) + floor
        _join(mine, votes, cv2.patchNaNs(residual, 0), reach)  # nothing speaks against votes on a hole
        votes = mine
    return _pixels(image, votes, w.shape, camera, floor)


def _typical(values: np.ndarray, apart: int = 0) -> np.float32:
    """The lower median size of some 2000 values on a regular grid, those that are not NaN; NaN where there are none.

    apart: of what changes between values so many columns apart, where it is not 0.
    """
    stride = max(1, int((values.size / 2000) ** 0.5))
    some = values[::stride, apart::stride]
    if apart:
        some = some - values[::stride, :-apart:stride]
    sizes = np.abs(some[~np.isnan(some)])
    return np.partition(sizes, (sizes.size - 1) // 2)[(sizes.size - 1) // 2] if sizes.size else NAN


def _scatter(slopes: np.ndarray, apart: int) -> np.float32:
    """Standard deviation of slopes, from what changes between those `apart` columns, which share no pixel; NaN where there are none."""
    return _typical(slopes, apart) * SIGMA_OF_CHANGE


def _weigh(error: np.ndarray, floor: np.float32) -> None:
    """Squared errors of slopes, in place -> weights of votes, 0 for NaN."""
    np.divide(UNIT * floor * floor, error, out=error)
    error *= error
    cv2.patchNaNs(error, 0)


@lru_cache
def _kernels(window: int) -> tuple[np.ndarray, ...]:
    """For `window` cells on a line, float32: mean, slope out of their steps, mean of their second differences, sum, sum of places."""
    place = np.arange(window, dtype=np.float32) - window // 2
    ones = np.ones(window, np.float32)
    slope = np.cumsum(place[:0:-1])[::-1] / (place @ place)
    return ones / window, slope, ones[2:] / (window - 2), ones, place


def _filter(image: np.ndarray, along_u: np.ndarray, along_v: np.ndarray, anchor: tuple[int, int] = (-1, -1)) -> np.ndarray:
    """Correlation with two lines; anchor: their places on the pixel itself, -1: the middle."""
    return cv2.sepFilter2D(image, -1, along_u, along_v, anchor=anchor, borderType=cv2.BORDER_CONSTANT)


def _fit(cells: np.ndarray, scale: int, window: int, floor: np.float32) -> list[np.ndarray]:
    """Least squares planes of all windows without a NaN -> the votes on every cell.

    scale: pixels on a side of a cell. The cells' outermost ring is NaN, so that no window looks out of the image.
    """
    mean, slope, narrow, total, place = _kernels(window)
    middle = window // 2
    # All but the value from the steps between cells, which are small, so that float32 rounds them little.
    du, dv = _filter(cells, STEP, ONE, (0, 0)), _filter(cells, ONE, STEP, (0, 0))
    gu, gv = _filter(du, slope / scale, mean, (middle, -1)), _filter(dv, mean, slope / scale, (-1, middle))
    value = _filter(cells, mean, mean)
    weight, bend = _filter(du, STEP, mean, (1, -1)), _filter(dv, mean, STEP, (-1, 1))
    weight *= weight
    bend *= bend
    if len(narrow) > 1:
        weight, bend = _filter(weight, narrow, ONE), _filter(bend, ONE, narrow)
    weight += bend
    weight -= _typical(weight)
    weight += np.abs(weight)  # twice what is above 0; cv2.max would lose the NaN
    weight *= np.float32(0.5 / scale**2)
    weight += np.maximum(_scatter(gu, window), _scatter(gv, window)) ** 2 + floor * floor
    _weigh(weight, floor)
    planes = [cv2.patchNaNs(np.multiply(weight, plane, out=plane), 0) for plane in (gu, gv, value)]
    votes = [_filter(part, total, total) for part in (weight, *planes)]
    # A window's value is that at its own middle: its slopes lead to the cell's.
    votes[3] -= _filter(planes[0], place * scale, total)
    votes[3] -= _filter(planes[1], total, place * scale)
    votes[0] += TINY
    share = np.divide(np.float32(1), votes[0])
    for vote in votes[1:]:
        vote *= share
    return votes


def _join(mine: list[np.ndarray], theirs: list[np.ndarray], residual: np.ndarray, reach: np.float32) -> None:
    """Add their votes to mine, in place, the less weighty the further `residual` is beyond `reach`. Works in residual.

    Planes of theirs that mine has not are left out.
    """
    residual *= 1 / reach
    residual *= residual
    cv2.min(residual, float(LIMIT * LIMIT), dst=residual)
    residual *= residual
    residual *= residual
    residual += 1
    share = np.divide(theirs[0], residual, out=residual)
    mine[0] += share
    share /= mine[0]
    for plane, other in zip(mine[1:], theirs[1:]):
        cv2.accumulateProduct(cv2.subtract(other, plane), share, plane)


def _halved(cells: np.ndarray) -> np.ndarray:
    """Cells of twice the side: the mean of both diagonals of 2x2, or of the one without a NaN. Either is exact on a plane."""
    height, width = cells.shape
    if height % 2 or width % 2:
        cells = cv2.copyMakeBorder(cells, 0, height % 2, 0, width % 2, cv2.BORDER_CONSTANT, value=float("nan"))
    one, other = cells[::2, ::2] + cells[1::2, 1::2], cells[::2, 1::2] + cells[1::2, ::2]
    half = np.fmax(one, other)
    half += np.fmin(one, other)
    half *= np.float32(0.25)
    return half


def _doubled(cells: np.ndarray) -> np.ndarray:
    """Every cell as 2x2."""
    height, width = cells.shape
    return np.repeat(cv2.merge((cells, cells)).reshape(height, 2 * width), 2, axis=0)


def _pixels(image: np.ndarray, votes: list[np.ndarray], shape: tuple[int, int], camera: Camera, floor: np.float32) -> np.ndarray:
    """The votes on cells of 2x2 pixels and the pixels' own slopes -> (H, W, 3) normals."""
    weight, gu, gv, value = votes
    for axis, slope in enumerate((gv, gu)):
        if shape[axis] % 2:  # nobody votes on the half cells at the end: the planes beside them go on
            last = (shape[axis] + 1) // 2
            for vote in votes:
                vote.swapaxes(0, axis)[last] = vote.swapaxes(0, axis)[last - 1]
            value.swapaxes(0, axis)[last] += 2 * slope.swapaxes(0, axis)[last]
    weight[weight <= 10 * TINY] = 0  # where nobody votes, 0 / 0 makes the normal NaN
    corner = value - np.float32(0.5) * (gu + gv)
    corner -= image[::2, ::2]
    reach = REACH * np.nan_to_num(_typical(corner)) + floor
    steps = image[::4, 1:] - image[::4, :-1]
    least = np.nan_to_num(_scatter(steps, 3)) ** 2 + floor * floor

    x, y = _ramps(camera, *image.shape[::-1], pad=2)
    normals = np.empty((*shape, 3), np.float32)
    for strip in _strips(shape[0]):
        half = slice(strip.start // 2, strip.stop // 2)
        own_u, own_v, own = _slopes(image, strip.start, strip.stop - strip.start)
        own += least
        _weigh(own, floor)
        cv2.patchNaNs(own_u, 0)
        cv2.patchNaNs(own_v, 0)
        residual = _between(value[half], gu[half], gv[half], 1)
        residual -= image[strip]
        _join([own, own_u, own_v], [_doubled(vote[half]) for vote in (weight, gu, gv)], residual, reach)
        _write(_unit(own_u, own_v, image[strip], x, y[strip], camera), strip, normals)
    return normals


def _between(value: np.ndarray, gu: np.ndarray, gv: np.ndarray, scale: int) -> np.ndarray:
    """Values at the middles of cells and the slopes there -> the values at the middles of their quarters, `scale` pixels wide."""
    height, width = value.shape
    across, down = np.float32(scale / 2) * gu, np.float32(scale / 2) * gv
    middle = cv2.merge((value - across, value + across)).reshape(height, 2 * width)
    down = cv2.merge((down, down)).reshape(height, 2 * width)
    pixels = np.empty((height, 2, 2 * width), np.float32)
    np.subtract(middle, down, out=pixels[:, 0])
    np.add(middle, down, out=pixels[:, 1])
    return pixels.reshape(2 * height, 2 * width)


# Published methods that look at the nearest pixels.


def _steps(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) change from the pixel before along the axis, and to the pixel after; NaN without one."""
    values = np.moveaxis(values, axis, 0)
    gap = np.full_like(values[:1], NAN)
    change = np.concatenate([gap, values[1:] - values[:-1], gap])
    return np.moveaxis(change[:-1], 0, axis), np.moveaxis(change[1:], 0, axis)


def _across(w: np.ndarray, axis: int) -> np.ndarray:
    before, after = _steps(w, axis)
    return (np.fmax(before, after) + np.fmin(before, after)) / 2


def central(w: np.ndarray, camera: Camera) -> np.ndarray:
    """Slopes of the inverse depth across the pixel, or on the one side that there is."""
    return cv2.merge(_unit(_across(w, 1), _across(w, 0), w, *_ramps(camera, w.shape[1], w.shape[0]), camera))


def _aware(z: np.ndarray, axis: int) -> np.ndarray:
    """D2NT's gradient of depth: from left and right, weighted by e^-|second difference| there; one of them alone beyond a ratio of e."""
    before, after = _steps(z, axis)
    left, right = (np.nan_to_num(bend, nan=np.inf) for bend in _neighbours(np.abs(after - before), axis))
    difference = left - right
    share = np.where(np.abs(difference) > 1, difference < 0, 1 / (1 + np.exp(difference)))
    share = np.where(np.isnan(before), 0, np.where(np.isnan(after), 1, np.where(np.isnan(difference), 0.5, share)))
    gradient = share * np.nan_to_num(before) + (1 - share) * np.nan_to_num(after)
    return np.where(np.isnan(before) & np.isnan(after), NAN, gradient).astype(np.float32)


def _neighbours(bend: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The bend of the pixel before along the axis, and of the one after; NaN without one."""
    bend = np.moveaxis(bend, axis, 0)
    gap = np.full_like(bend[:1], NAN)
    return np.moveaxis(np.concatenate([gap, bend[:-1]]), 0, axis), np.moveaxis(np.concatenate([bend[1:], gap]), 0, axis)


def d2nt_v2(w: np.ndarray, camera: Camera) -> np.ndarray:
    """D2NT with its discontinuity-aware gradient."""
    z = 1 / w
    gu, gv = (-_aware(z, axis) * w * w for axis in (1, 0))  # dw = -dz / z^2
    return cv2.merge(_unit(gu, gv, w, *_ramps(camera, w.shape[1], w.shape[0]), camera))


def d2nt_v3(w: np.ndarray, camera: Camera) -> np.ndarray:
    """D2NT with its refinement: of a pixel and its four neighbours, the normal of the one whose depth bends least."""
    normals, z = d2nt_v2(w, camera), np.pad(1 / w, 1, constant_values=NAN)
    bend = np.abs(4 * z[1:-1, 1:-1] - z[1:-1, :-2] - z[1:-1, 2:] - z[:-2, 1:-1] - z[2:, 1:-1])
    bend = np.where(np.isnan(bend) | np.isnan(normals[..., 0]), np.inf, bend)
    bends, around = np.pad(bend, 1, constant_values=np.inf), np.pad(normals, ((1, 1), (1, 1), (0, 0)))
    best, refined = bend.copy(), normals.copy()
    height, width = w.shape
    for down, right in ((1, 0), (1, 2), (0, 1), (2, 1)):
        place = slice(down, down + height), slice(right, right + width)
        better = (bends[place] < best) & ~np.isnan(w)
        best[better], refined[better] = bends[place][better], around[place][better]
    return _facing(refined, camera)


def three_filters(w: np.ndarray, camera: Camera) -> np.ndarray:
    """3F2N: nx and ny from the slopes of the inverse depth, nz the median of what the eight neighbours ask for."""
    nx, ny = np.float32(camera.fx) * _across(w, 1), np.float32(camera.fy) * _across(w, 0)
    height, width = w.shape
    points = camera.rays / w[..., None]
    around = np.pad(points, ((1, 1), (1, 1), (0, 0)), constant_values=NAN)
    asked = np.empty((8, height, width), np.float32)
    for i, (down, right) in enumerate((d, r) for d in range(3) for r in range(3) if (d, r) != (1, 1)):
        dx, dy, dz = np.moveaxis(around[down : down + height, right : right + width] - points, -1, 0)
        asked[i] = -(dx * nx + dy * ny) / dz
    asked[~np.isfinite(asked)] = NAN
    asked.sort(axis=0)  # NaN last
    count = 8 - np.isnan(asked).sum(axis=0)
    low, high = (np.take_along_axis(asked, np.maximum(i, 0)[None], 0)[0] for i in ((count - 1) // 2, count // 2))
    frontal = (count == 0) | (nx == 0) & (ny == 0)
    nz = np.where(frontal, -w, (low + high) / 2)
    normals = np.stack([nx, ny, nz], axis=-1)
    return _facing(normals / np.linalg.norm(normals, axis=-1, keepdims=True), camera)


def _facing(normals: np.ndarray, camera: Camera) -> np.ndarray:
    """Normals turned towards the camera."""
    away = np.einsum("hwc,hwc->hw", normals, camera.rays) > 0
    return np.where(away[..., None], -normals, normals).astype(np.float32)


METHODS: dict[str, Callable[[np.ndarray, Camera], np.ndarray]] = {
    "planes": planes,
    "one_sided": one_sided,
    "central": central,
    "d2nt_v2": d2nt_v2,
    "d2nt_v3": d2nt_v3,
    "3f2n": three_filters,
}
"""Inverse depth (H, W) float32 [1 / m], NaN unknown, and its camera -> normals (H, W, 3) float32."""
