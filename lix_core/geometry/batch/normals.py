"""Surface normals of a batch of depth images, for training: lix_core.geometry.normals in torch, on any device.

Differentiable with respect to the depth; what is measured on the image (noise, typical bends) and which neighbour is taken count as
constants. Shapes: B samples, H rows, W columns. Images here are filled with 0 where they are unknown and go with a mask, since the
gradient of a NaN is NaN even where it has no part in the result.

The normals are those of the NumPy version to 1e-4, everywhere on exact depth. On noisy depth up to three pixels in a hundred, at an
edge, is further off (to 0.005, seldom 0.02), since there the weights of two unlike planes amplify what float32 rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from lix_core.camera import Camera
from lix_core.errors import GeometryError
from lix_core.geometry.normals import DEFAULT, FARTHEST, FLOOR, LIMIT, NEAREST, NEVER, REACH, SIGMA_OF_CHANGE, STAGES, TINY, UNIT, _kernels

METHODS = ("planes", "one_sided")


def normals_from_depth(depth: Tensor, camera: Camera | Tensor, method: str = DEFAULT) -> Tensor:
    """Unit normals of the surface seen in every pixel, as lix_core.geometry.normals.normals_from_depth finds them.

    depth: (B, H, W) or (B, 1, H, W) float, z [m] in the rectified image; NaN and what is not within NEAREST and FARTHEST
        are unknown.
    camera: of all images, or (B, 4) or (4,) fx, fy, cx, cy [pixels] of each; the centre of the top left pixel is (0, 0).
    method: `planes` or `one_sided`.

    Returns:
        (B, 3, H, W) float32 in the optical frame, facing the camera; NaN where there is no estimate.

    Raises:
        GeometryError: depth or intrinsics of another shape, depth that is not float, or a method that is not there.
    """
    if method not in METHODS:
        raise GeometryError(f"there is no method {method!r} for normals of a batch; there are {', '.join(METHODS)}")
    if depth.ndim == 4 and depth.shape[1] == 1:
        depth = depth[:, 0]
    if depth.ndim != 3 or not depth.is_floating_point():
        raise GeometryError(f"depth must be (B, H, W) or (B, 1, H, W) float in metres, got {depth.dtype} of shape {tuple(depth.shape)}")
    if isinstance(camera, Camera):
        if depth.shape[1:] != camera.shape:
            raise GeometryError(f"depth is {depth.shape[2]}x{depth.shape[1]}, its calibration is for {camera.width}x{camera.height}")
        camera = torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy], dtype=torch.float64)
    if camera.shape not in ((4,), (len(depth), 4)):
        raise GeometryError(f"intrinsics must be (4,) or ({len(depth)}, 4): fx, fy, cx, cy, got shape {tuple(camera.shape)}")
    depth = depth.float()
    known = (depth >= NEAREST) & (depth <= FARTHEST)
    w = torch.where(known, 1 / torch.where(known, depth, 1), 0)
    fx, fy, cx, cy = camera.to(depth.device).expand(len(depth), 4).T[:, :, None, None]
    return (_planes if method == "planes" else _only_one_sided)(w, known, fx.float(), fy.float(), cx, cy)


def _ramps(shape: torch.Size, cx: Tensor, cy: Tensor, border: int = 0) -> tuple[Tensor, Tensor]:
    """(B, 1, W) and (B, H, 1) [pixels] from the principal point, of images with `border` more pixels to the left and the top."""
    x = torch.arange(shape[2], device=cx.device) - (cx + border).float()
    y = torch.arange(shape[1], device=cx.device)[:, None] - (cy + border).float()
    return x.float(), y.float()


def _unit(gu: Tensor, gv: Tensor, w: Tensor, known: Tensor, ramps: tuple[Tensor, Tensor], fx: Tensor, fy: Tensor) -> Tensor:
    """Inverse depth and its slopes [1 / (m pixel)] -> (B, 3, H, W) normals, NaN where not known."""
    nz = torch.where(known, gu * ramps[0] + gv * ramps[1] - w, -1)
    normals = torch.stack([-fx * gu, -fy * gv, nz], dim=1)
    return torch.where(known[:, None], normals / normals.norm(dim=1, keepdim=True), torch.nan)


def _padded(w: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    border = (2, 2 + w.shape[2] % 2, 2, 2 + w.shape[1] % 2)
    return pad(w, border), pad(known, border)


def _one_sided(w: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, W) slope along the columns, and how far it may be off; 0 and NEVER without a neighbour."""
    there = known[..., 1:] & known[..., :-1]
    slope = torch.where(there, w[..., 1:] - w[..., :-1], 0)
    bend = torch.where(there[..., 1:] & there[..., :-1], (slope[..., 1:] - slope[..., :-1]).abs(), torch.inf)
    # Cut after padding, since an image one pixel wide has no bend to pad.
    bend, width = pad(bend, (2, 2), value=torch.inf), w.shape[2]
    size = torch.where(there, slope.abs(), NEVER)
    left, right = pad(slope, (1, 0)), pad(slope, (0, 1))
    error_left = torch.minimum(pad(size, (1, 0), value=NEVER), bend[..., :width])
    error = torch.minimum(pad(size, (0, 1), value=NEVER), bend[..., 2 : width + 2])
    best = torch.where(error_left < error, left, right)
    error = torch.minimum(error, error_left)
    across = bend[..., 1 : width + 1]
    return torch.where(across <= error, (left + right) * 0.5, best), torch.minimum(error, across)


def _slopes(w: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One-sided slopes along u and along v, and their squared error."""
    gu, eu = _one_sided(w, known)
    gv, ev = (image.transpose(1, 2) for image in _one_sided(w.transpose(1, 2), known.transpose(1, 2)))
    return gu, gv, eu * eu + ev * ev


def _only_one_sided(w: Tensor, known: Tensor, fx: Tensor, fy: Tensor, cx: Tensor, cy: Tensor) -> Tensor:
    gu, gv, error = _slopes(w, known)
    return _unit(gu, gv, w, known & (error < NEVER), _ramps(w.shape, cx, cy), fx, fy)


def _typical(values: Tensor, known: Tensor, apart: int = 0) -> Tensor:
    """(B, 1, 1) lower median size of some 2000 values on a regular grid, of what changes between `apart` columns if that is not 0."""
    stride = max(1, int((values[0].numel() / 2000) ** 0.5))
    some, there = values.detach()[:, ::stride, apart::stride], known[:, ::stride, apart::stride]
    if apart:
        some, there = some - values.detach()[:, ::stride, :-apart:stride], there & known[:, ::stride, :-apart:stride]
    if not some[0].numel():
        return values.new_full((len(values), 1, 1), torch.nan)
    return torch.where(there, some.abs(), torch.nan).flatten(1).nanmedian(dim=1).values[:, None, None]


def _filter(image: Tensor, along_u: Tensor, along_v: Tensor, anchor: tuple[int, int] = (-1, -1)) -> Tensor:
    """Correlation with two lines, 0 beyond the border; anchor: their places on the pixel itself, -1: the middle.

    By shifts, since a convolution on a GPU may round to 10 bits.
    """
    for axis, line, at in ((2, along_u, anchor[0]), (1, along_v, anchor[1])):
        before = len(line) // 2 if at < 0 else at
        after = len(line) - 1 - before
        wide = pad(image, (before, after, 0, 0) if axis == 2 else (0, 0, before, after))
        image = sum(k * wide.narrow(axis, i, image.shape[axis]) for i, k in enumerate(line.tolist()))
    return image


def _fit(w: Tensor, known: Tensor, scale: int, window: int, floor: Tensor) -> list[Tensor]:
    """Least squares planes of all windows without an unknown cell -> the votes on every cell: weight, slopes, value at its middle."""
    mean, slope, narrow, ones, place = (torch.from_numpy(kernel.copy()) for kernel in _kernels(window))
    step, one, middle = torch.tensor([-1.0, 1.0]), torch.ones(1), window // 2
    full = max_pool2d((~known).float()[:, None], window, 1, window // 2)[:, 0] == 0
    du, dv = _filter(w, step, one, (0, 0)), _filter(w, one, step, (0, 0))
    gu, gv = _filter(du, slope / scale, mean, (middle, -1)), _filter(dv, mean, slope / scale, (-1, middle))
    value = _filter(w, mean, mean)
    bend = _filter(_filter(du, step, mean, (1, -1)) ** 2, narrow, one) + _filter(_filter(dv, mean, step, (-1, 1)) ** 2, one, narrow)
    scatter = torch.maximum(_typical(gu, full, window), _typical(gv, full, window)) * float(SIGMA_OF_CHANGE)
    error = (bend - _typical(bend, full)).clamp(min=0) / scale**2 + scatter**2 + floor**2
    weight = torch.where(full & ~error.isnan(), float(UNIT) * floor**2 / torch.where(error > 0, error, 1), 0) ** 2
    votes = [_filter(part, ones, ones) for part in (weight, weight * gu, weight * gv, weight * value)]
    votes[3] = votes[3] - _filter(weight * gu, place * scale, ones) - _filter(weight * gv, ones, place * scale)
    total = votes[0] + float(TINY)
    return [total, *(vote / total for vote in votes[1:])]


def _join(mine: list[Tensor], theirs: list[Tensor], residual: Tensor, reach: Tensor) -> list[Tensor]:
    """Their votes added to mine, the less weighty the further `residual` is beyond `reach`."""
    beyond = torch.where(reach > 0, residual / reach, 0).abs().clamp(max=float(LIMIT))
    share = theirs[0] / (1 + beyond**8)
    total = mine[0] + share
    share = share / torch.where(total > 0, total, 1)
    return [total, *(plane + share * (other - plane) for plane, other in zip(mine[1:], theirs[1:]))]


def _halved(w: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Cells of twice the side: the mean of both diagonals of 2x2, or of the one that is known."""
    border = (0, w.shape[2] % 2, 0, w.shape[1] % 2)
    w, known = pad(w, border), pad(known, border)
    one, other = w[:, ::2, ::2] + w[:, 1::2, 1::2], w[:, ::2, 1::2] + w[:, 1::2, ::2]
    has_one, has_other = known[:, ::2, ::2] & known[:, 1::2, 1::2], known[:, ::2, 1::2] & known[:, 1::2, ::2]
    half = (torch.where(has_one, one, other) + torch.where(has_other, other, one)) * 0.25
    return torch.where(has_one | has_other, half, 0), has_one | has_other


def _quartered(votes: list[Tensor], scale: int, shape: torch.Size) -> list[Tensor]:
    """The votes on the quarters of every cell, `scale` pixels wide: the same planes, the value at the quarter's own middle."""
    weight, gu, gv, value = (vote.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2) for vote in votes)
    side = torch.tensor([-scale / 2, scale / 2], device=value.device)
    across, down = side.repeat(value.shape[2] // 2), side.repeat(value.shape[1] // 2)[:, None]
    return [vote[:, : shape[1], : shape[2]] for vote in (weight, gu, gv, value + across * gu + down * gv)]


def _planes(w: Tensor, known: Tensor, fx: Tensor, fy: Tensor, cx: Tensor, cy: Tensor) -> Tensor:
    image, mask = _padded(w, known)
    floor = _typical(w, known) * float(FLOOR)
    floor = torch.where(floor.isnan(), 1, floor)
    pyramid = [(image, mask)]
    while len(pyramid) <= STAGES[0][0]:
        pyramid.append(_halved(*pyramid[-1]))
    votes = [torch.zeros_like(pyramid[-1][0])] * 4
    for level, window in STAGES:
        cells, there = pyramid[level]
        if votes[0].shape != cells.shape:
            votes = _quartered(votes, 2**level, cells.shape)
        residual = torch.where(there, votes[3] - cells, 0)
        reach = float(REACH) * _typical(residual, there).nan_to_num() + floor
        votes = _join(_fit(cells, there, 2**level, window, floor), votes, residual, reach)

    weight, gu, gv, value = votes = [vote.clone() for vote in votes]
    for axis, slope in ((1, gv), (2, gu)):
        if w.shape[axis] % 2:
            last = (w.shape[axis] + 1) // 2
            for vote in votes:
                vote.select(axis, last).copy_(vote.select(axis, last - 1).clone())
            value.select(axis, last).add_(2 * slope.select(axis, last).clone())
    votes[0] = torch.where(weight <= 10 * float(TINY), 0, weight)
    corner = value - 0.5 * (gu + gv) - image[:, ::2, ::2]
    reach = float(REACH) * _typical(corner, mask[:, ::2, ::2]).nan_to_num() + floor
    rows, there = image[:, ::4], mask[:, ::4]
    steps, there = rows[..., 1:] - rows[..., :-1], there[..., 1:] & there[..., :-1]
    scatter = (_typical(steps, there, 3) * float(SIGMA_OF_CHANGE)).nan_to_num()

    own_u, own_v, error = _slopes(image, mask)
    own = (float(UNIT) * floor**2 / (error + scatter**2 + floor**2)) ** 2
    votes = _quartered(votes, 1, image.shape)
    total, gu, gv = _join([own, own_u, own_v], votes[:3], votes[3] - image, reach)
    inside = (slice(None), slice(2, 2 + w.shape[1]), slice(2, 2 + w.shape[2]))
    normals = _unit(gu[inside], gv[inside], w, known & (total[inside] > 0), _ramps(w.shape, cx, cy), fx, fy)

    bends = (steps[..., 1:] - steps[..., :-1], there[..., 1:] & there[..., :-1])
    exact = ~(_typical(*bends) > floor)
    return torch.where(exact[:, None], _only_one_sided(w, known, fx, fy, cx, cy), normals)
