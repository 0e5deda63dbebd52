"""The plane that the robot stands on, out of one depth image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lix_core.camera import Camera

SAMPLES, HYPOTHESES = 4000, 300
"""Points that planes are judged by, and planes that are tried."""
REFINEMENTS = 5
LEAST_POINTS = 200
BELOW_COSTS = 0.5
"""What a point beneath a plane costs it, in points on it: there is hardly anything beneath the ground, but much beneath a roof."""


@dataclass(frozen=True)
class Ground:
    """A plane in the rectified optical frame. down: (3,) float64 unit normal, towards the ground. height: of the camera above it [m].

    share: of the points that it was fitted to, how many are on it, 0..1.
    """

    down: np.ndarray
    height: float
    share: float

    def above(self, depth: np.ndarray, camera: Camera) -> np.ndarray:
        """(H, W) float32: how high above the plane each pixel's point is [m]; NaN where depth (H, W) [m] is. Raises GeometryError."""
        camera.check_size(depth, "depth")
        sink = (camera.rays @ self.down.astype(np.float32)) * depth.astype(np.float32, copy=False)
        return np.float32(self.height) - sink

    def elevation(self, camera: Camera) -> np.ndarray:
        """(H, W) float32: the angle of each pixel's ray over the plane's horizon [degrees]; the plane is seen below 0."""
        sines = (camera.rays @ self.down.astype(np.float32)) / np.linalg.norm(camera.rays, axis=2)
        return -np.degrees(np.arcsin(np.clip(sines, -1, 1)))


def fit_ground(
    depth: np.ndarray,
    camera: Camera,
    farthest: float = 40.0,
    tilt: float = 20.0,
    heights: tuple[float, float] = (0.2, 4.0),
    tolerance: float = 0.05,
    growth: float = 0.01,
    least_share: float = 0.2,
) -> Ground | None:
    """The ground plane, by random sampling (RANSAC: Fischler and Bolles 1981, doi:10.1145/358669.358692) and least squares on its points.

    The same depth gives the same plane. Where the ground is not a plane, that of the part that most points are on.

    Args:
        depth: (H, W) float [m], NaN unknown. farthest: points beyond [m] are left out. tilt: largest angle between the plane's normal and
            the image's y axis [degrees]. heights: least and largest height of the camera [m]. tolerance: how far from the plane a point on
            it may be, at the camera [m], and growth: per metre of depth more.
        least_share: of the points beneath the horizon, how many must be on the plane.

    Returns:
        None where no plane is found.

    Raises:
        GeometryError: depth is not of the camera's size.
    """
    points = points_below(depth, camera, farthest)
    if len(points) < LEAST_POINTS:
        return None
    slack = tolerance + growth * points[:, 2]
    plane = best_plane(points, slack, np.cos(np.radians(tilt)), heights)
    for _ in range(REFINEMENTS):
        if plane is None:
            return None
        # Tukey's biweight: what is hardly on the plane, as the foot of a wall, hardly bends it.
        weights = np.maximum(1 - ((plane[1] - points @ plane[0]) / slack) ** 2, 0) ** 2
        if np.count_nonzero(weights) < LEAST_POINTS // 2:
            return None
        plane = checked(least_squares(points, weights / slack**2), np.cos(np.radians(tilt)), heights)
    if plane is None:
        return None
    share = float((np.abs(plane[1] - points @ plane[0]) < slack).mean())
    return Ground(plane[0], plane[1], share) if share >= least_share else None


Plane = tuple[np.ndarray, float]
"""Unit normal n (3,) and h, of the points p with n . p = h."""


def points_below(depth: np.ndarray, camera: Camera, farthest: float) -> np.ndarray:
    """(N, 3) float64 points beneath the horizon of a level camera, at most SAMPLES of them, chosen by a generator of a fixed seed."""
    camera.check_size(depth, "depth")
    rows, columns = np.nonzero((depth > 0) & (depth < farthest) & (camera.rays[..., 1] > 0))
    if len(rows) > SAMPLES:
        chosen = np.random.default_rng(0).choice(len(rows), SAMPLES, replace=False)
        rows, columns = rows[chosen], columns[chosen]
    return camera.rays[rows, columns].astype(np.float64) * depth[rows, columns, None]


def best_plane(points: np.ndarray, slack: np.ndarray, least_cosine: float, heights: tuple[float, float]) -> Plane | None:
    """Of planes through three points each, the one with the most points on it and the fewest beneath; None where none is possible."""
    corners = points[np.random.default_rng(1).integers(0, len(points), (HYPOTHESES, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    normals, corners = normals[lengths > 1e-6] / lengths[lengths > 1e-6, None], corners[lengths > 1e-6]
    normals *= np.where(normals[:, 1:2] < 0, -1.0, 1.0)
    offsets = (normals * corners[:, 0]).sum(1)
    possible = (normals[:, 1] >= least_cosine) & (offsets >= heights[0]) & (offsets <= heights[1])
    normals, offsets = normals[possible], offsets[possible]
    if not len(normals):
        return None
    above = offsets[:, None] - normals @ points.T
    score = (np.abs(above) < slack).sum(1) - BELOW_COSTS * (above < -3 * slack).sum(1)
    best = int(score.argmax())
    return normals[best], float(offsets[best])


def least_squares(points: np.ndarray, weights: np.ndarray) -> Plane:
    """The plane with the least weighted sum of squared distances."""
    weights = weights[:, None]
    centre = (points * weights).sum(0) / weights.sum()
    offsets = points - centre
    normal = np.linalg.eigh((offsets * weights).T @ offsets)[1][:, 0]
    normal = normal if normal[1] >= 0 else -normal
    return normal, float(normal @ centre)


def checked(plane: Plane, least_cosine: float, heights: tuple[float, float]) -> Plane | None:
    return plane if plane[0][1] >= least_cosine and heights[0] <= plane[1] <= heights[1] else None
