"""LiDAR scans into the camera: projection, z-buffer, and removal of points that the camera cannot see."""

from __future__ import annotations

import cv2
import numpy as np

from lix_core.camera import Camera
from lix_core.errors import GeometryError

LEAST_LANDED = 0.01
"""Share of a cloud's points that a camera looking the LiDAR's way receives at the very least; of one with a narrow lens a tenth of the
share that it sees of all directions."""

SLACK = 1
"""How far over the middle a point may lie and still be on a side [pixels]: what rounding to pixels does to two points."""
WIDEST = 100.0
"""Ring spacing that is measured at most [pixels]: rings 2 degrees apart through a lens of f = 2900 pixels. What is sparser has no rings."""
AT_ONCE = 2**20
"""Pixels of windows that are looked through at a time; bounds the memory."""


def project_cloud(
    points: np.ndarray, camera: Camera, camera_from_lidar: np.ndarray, hidden_gap: float = 0.05, ring_spacing: float = 0.0
) -> np.ndarray:
    """LiDAR points -> sparse depth in the rectified image; of several points on one pixel the nearest counts.

    Points that are NaN, infinite or 0, 0, 0 (no return), not in front of the camera or outside the image are left out. An empty cloud
    is legal and gives no depth at all; `cloud_fault` tells a cloud that misses the image.

    Args:
        points: (N, >= 3) numbers, x, y, z [m] in the LiDAR's frame, then anything.
        camera_from_lidar: (4, 4) rigid transform, x_camera = camera_from_lidar @ [x_lidar, 1], to the rectified optical frame.
        hidden_gap, ring_spacing: see `remove_hidden`; a gap of 0 keeps the hidden points.

    Returns:
        (H, W) float32 depth [m], NaN where no point falls.

    Raises:
        GeometryError: points of another shape or no numbers, a transform that is not rigid, options out of their range.
    """
    points, transform = check_cloud(points), check_rigid(camera_from_lidar, "camera_from_lidar")
    check_options(hidden_gap, ring_spacing)
    # In float64, so that float32 points fall on the same pixel here and in batch.lidar, whatever the order of the sums.
    projection = camera.matrix @ transform[:3]
    with np.errstate(all="ignore"):
        u, v, z = projection[:, :3] @ points[:, :3].T.astype(np.float64) + projection[:, 3:]
        u, v = np.floor(u / z + 0.5), np.floor(v / z + 0.5)
        returned = (points[:, :3] != 0).any(axis=1)
        seen = np.flatnonzero(returned & (z > 0) & (z < np.inf) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height))
    depth = np.full(camera.shape, np.inf, np.float32)
    np.minimum.at(depth, (v[seen].astype(np.intp), u[seen].astype(np.intp)), z[seen].astype(np.float32))
    depth[np.isinf(depth)] = np.nan
    return remove_hidden(depth, camera, transform[:3, 3], hidden_gap, ring_spacing) if hidden_gap > 0 else depth


def remove_hidden(
    sparse_depth: np.ndarray, camera: Camera, lidar_position: np.ndarray, gap: float = 0.05, ring_spacing: float = 0.0
) -> np.ndarray:
    """Sparse depth without the points that the LiDAR sees past a nearer surface and the camera does not: they shine through it.

    A point goes if nearer points surround it as the camera sees them, and do not as the LiDAR does. Surrounded means nearer points on
    both sides: upper left and lower right, or upper right and lower left. On a plane, however slanted, never both are nearer. The
    LiDAR's view is the camera's after a parallax of f |c| (1 / z_near - 1 / z_far) pixels, c the LiDAR's offset across the ray; a far
    point amid nearer ones in both views is seen through a gap, such as between the bars of a fence, and stays.

    Args:
        sparse_depth: (H, W) float [m], NaN = no point.
        lidar_position: (3,) the LiDAR's origin in the camera's optical frame [m].
        gap: how much nearer the points around must be, as a share of the point's depth.
        ring_spacing: rows between neighbouring rings in the image [pixels]; 0 takes `measure_ring_spacing`.

    Returns:
        (H, W) float32, a new array.

    Raises:
        GeometryError: not an image of depth of the camera's size, or options out of their range.
    """
    sparse_depth = check_depth(sparse_depth)
    camera.check_size(sparse_depth, "the sparse depth")
    check_options(gap, ring_spacing)
    rows, columns = window(ring_spacing or measure_ring_spacing(sparse_depth), sparse_depth.shape)
    known = np.isfinite(sparse_depth)
    filled = np.where(known, sparse_depth, np.float32(np.inf))
    cover = surrounding_depth(filled, rows, columns)
    visible = sparse_depth.copy()
    doubtful = np.argwhere(known & (cover < filled * np.float32(1 - gap)))
    # Column by column, so that the points within a window are few runs of them.
    places = np.flatnonzero(known.T)
    step = points_at_once(rows, columns)
    for start in range(0, len(doubtful), step):
        v, u = doubtful[start : start + step].T
        point, place = neighbours(v, u, places, len(known), rows, columns)
        column, row = np.divmod(place, len(known))
        inverse = 1 / filled[v, u]
        parallax = 1 / filled[row, column] - inverse[point]
        # The points around that belong to the surface in front, not to the point's own: nearer than the middle between them.
        front = 1 / filled[row, column] >= ((inverse + 1 / cover[v, u]) / 2)[point]
        point, row, column, parallax = point[front], row[front], column[front], parallax[front]
        rays = camera.rays[v, u]
        across_x = camera.fx * (lidar_position[0] - lidar_position[2] * rays[:, 0])
        across_y = camera.fy * (lidar_position[1] - lidar_position[2] * rays[:, 1])
        x, y = column - u[point] - across_x[point] * parallax, row - v[point] - across_y[point] * parallax
        hidden = ~surrounded(x, y, point, len(v))
        visible[v[hidden], u[hidden]] = np.nan
    return visible


def surrounding_depth(filled: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(H, W) depth, inf = unknown -> (H, W): the least depth z such that points of z or nearer lie on both sides of the pixel.

    `rows`, `columns`: how far the four windows reach. Points up to SLACK pixels on the other side count too: straight above a pixel is
    both left and right of it.
    """
    height, width = filled.shape
    # The four windows are of one size: each is the same minimum, taken where its upper left corner is.
    padded = cv2.copyMakeBorder(filled, rows, rows, columns, columns, cv2.BORDER_CONSTANT, value=np.inf)
    kernel = np.ones((rows + 1 + SLACK, columns + 1 + SLACK), np.uint8)
    least = cv2.erode(padded, kernel, anchor=(0, 0), borderType=cv2.BORDER_CONSTANT, borderValue=np.inf)
    upper_left, upper_right, lower_left, lower_right = (
        least[top : top + height, left : left + width] for top in (0, rows - SLACK) for left in (0, columns - SLACK)
    )
    return np.minimum(np.maximum(upper_left, lower_right), np.maximum(upper_right, lower_left))


def neighbours(v: np.ndarray, u: np.ndarray, places: np.ndarray, height: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Which points lie within `rows` and `columns` of pixels at rows v and columns u (N,).

    Args:
        places: ascending places of the points, column * height + row.

    Returns:
        Of each pair the pixel's number in v and u, and the point's place.
    """
    across = (u[:, None] + np.arange(-columns, columns + 1)) * height
    first = np.searchsorted(places, across + np.maximum(v - rows, 0)[:, None])
    count = np.searchsorted(places, across + np.minimum(v + rows, height - 1)[:, None], side="right") - first
    run = np.repeat(np.arange(count.size), count.ravel())
    within = np.arange(len(run)) - (np.cumsum(count) - count.ravel())[run]
    return run // across.shape[1], places[first.ravel()[run] + within]


def surrounded(x: np.ndarray, y: np.ndarray, point: np.ndarray, count: int) -> np.ndarray:
    """Which of `count` points have neighbours on both sides; x, y (K,): neighbours' offsets [pixels], point (K,): whose they are."""
    left, right, above, below = x <= SLACK, x >= -SLACK, y <= SLACK, y >= -SLACK
    sides = np.zeros((4, count), bool)
    for side, there in zip(sides, (left & above, right & below, right & above, left & below)):
        side[point[there]] = True
    return (sides[0] & sides[1]) | (sides[2] & sides[3])


def measure_ring_spacing(sparse_depth: np.ndarray) -> float:
    """Rows between neighbouring rings in the image [pixels], the median over it, WIDEST at most; 1 where there are too few to tell.

    Args:
        sparse_depth: (H, W) float, NaN = no point.
    """
    height, width = sparse_depth.shape
    # Points of a ring are a few pixels apart; within a band of eight columns every ring shows.
    bands = np.isfinite(np.pad(sparse_depth, ((0, 1), (0, -width % 8)), constant_values=np.nan)).reshape(height + 1, -1, 8).any(axis=2)
    hits = np.flatnonzero(bands.T)
    steps = np.diff(hits)[np.diff(hits // (height + 1)) == 0]
    steps = steps[steps > 1]
    return min(float(np.median(steps)), WIDEST) if len(steps) else 1.0


def window(ring_spacing: float, size: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) from a point to the far ends of its windows in `remove_hidden` [pixels]: to the next ring, half as far sideways, and
    no farther than the image is large; size: its (H, W)."""
    rows = int(np.ceil(1.2 * ring_spacing)) + 1
    return min(rows, size[0]), min(rows // 2 + 1, size[1])


def points_at_once(rows: int, columns: int) -> int:
    """Of how many points the windows are looked through at a time."""
    return max(1, AT_ONCE // ((2 * rows + 1) * (2 * columns + 1)))


def cloud_fault(points: np.ndarray, depth: np.ndarray, camera: Camera, camera_from_lidar: np.ndarray) -> str:
    """What is wrong with a cloud that hardly shows in the image, or does so by a pose that was inverted, in words for the user; "" where
    nothing is, and for clouds of next to no points.

    By an inverted pose of a camera that looks ahead, to the left or back, the LiDAR lies on its side, and by the inverse it stands
    upright; points beside the car may well fall into the image then.

    Args:
        points: (N, >= 3), camera, camera_from_lidar: as given to `project_cloud`. depth: (H, W), what that returned.
    """
    if -camera_from_lidar[1, 2] < 0.5 and -camera_from_lidar[2, 1] > 0.8:
        return (
            "by camera_from_lidar the LiDAR lies on its side, by its inverse it stands upright: is it the camera's pose in the LiDAR's "
            "frame? The LiDAR's in the camera's optical frame is meant"
        )
    places = check_cloud(points)[:, :3]
    with np.errstate(all="ignore"):
        finite = int(np.count_nonzero(np.isfinite(np.sum(places, axis=1)) & (places != 0).any(axis=1)))
    landed = int(np.count_nonzero(np.isfinite(depth)))
    seen = camera.width * camera.height / (camera.fx * camera.fy) / (4 * np.pi)
    if finite < 100 or landed >= min(LEAST_LANDED, seen / 10) * min(finite, depth.size):
        return ""
    return (
        f"only {landed} of {finite} LiDAR points fall into the image: camera_from_lidar is wrong (it must lead to the optical "
        "frame: x right, y down, z forward) or the LiDAR looks elsewhere"
    )


def check_cloud(points: np.ndarray) -> np.ndarray:
    """The points as an array. Raises GeometryError where they are not (N, >= 3) numbers."""
    points = np.asarray(points)
    if points.dtype.kind not in "fiu" or points.ndim != 2 or points.shape[1] < 3:
        raise GeometryError(f"a cloud is an (N, 3 or more) array of numbers, got {points.dtype} of shape {points.shape}")
    return points


def check_depth(depth: np.ndarray) -> np.ndarray:
    """The depth as float32. Raises GeometryError where it is not a (H, W) image of floats."""
    depth = np.asarray(depth)
    if depth.dtype.kind != "f" or depth.ndim != 2 or not depth.size:
        raise GeometryError(f"depth is a (height, width) array of floats in metres, got {depth.dtype} of shape {depth.shape}")
    return depth.astype(np.float32, copy=False)


def check_options(gap: float, ring_spacing: float) -> None:
    """Raises GeometryError where the options of `remove_hidden` cannot be meant."""
    if not (0 <= gap < 1 and 0 <= ring_spacing < np.inf):
        raise GeometryError(f"the gap is a share from 0 to 1 and the ring spacing pixels from 0, got {gap} and {ring_spacing}")


def check_rigid(transform: np.ndarray, name: str) -> np.ndarray:
    """The transform as (4, 4) float64. Raises GeometryError, with `name`, where it is not a rotation and a translation."""
    try:
        transform = np.asarray(transform, np.float64)
    except (TypeError, ValueError):
        raise GeometryError(f"{name} is a (4, 4) matrix, got {transform!r:.80}") from None
    if transform.shape != (4, 4) or not np.isfinite(transform).all():
        raise GeometryError(f"{name} is a (4, 4) matrix of finite numbers, got shape {transform.shape}: {transform.ravel()[:16]}")
    rotation = transform[:3, :3]
    slack = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if slack > 1e-3 or np.linalg.det(rotation) < 0 or not np.allclose(transform[3], (0, 0, 0, 1), atol=1e-9):
        raise GeometryError(
            f"{name} is not a rigid transform: its rotation is off by {slack:.3g}, its determinant {np.linalg.det(rotation):.3g} "
            f"(should be 1), its last row {transform[3].tolist()} (should be 0 0 0 1); [rotation translation] in metres is meant"
        )
    return transform
