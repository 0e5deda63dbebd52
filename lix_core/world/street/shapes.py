"""Triangles with surface coordinates, and the stage on which a street is put together.

Everything here is in street coordinates [m]: x along the centreline, y to its left, z up; `Stage.scene` bends them into the world.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Callable, Mapping, NamedTuple, Sequence

import numpy as np

from lix_core.labels import STREET
from lix_core.world.scene import Material, Part, Scene, Texture, Weather

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, CYCLIST = range(len(STREET))


class Shape(NamedTuple):
    """triangles: (F, 3, 3) float64 corners [m], counter-clockwise from outside. uv: (F, 3, 2) surface coordinates [m]."""

    triangles: np.ndarray
    uv: np.ndarray

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> "Shape":
        return Shape(self.triangles + np.array([x, y, z]), self.uv)

    def turned(self, angle: float) -> "Shape":
        """Turned about z [rad], counter-clockwise from above."""
        return Shape(self.triangles @ turn_z(angle).T, self.uv)

    def flipped(self) -> "Shape":
        """The other side out."""
        return Shape(self.triangles[:, ::-1], self.uv[:, ::-1])

    def covered(self, size_m: tuple[float, float]) -> "Shape":
        """Surface coordinates stretched so that a picture of this size [m] covers the shape just once."""
        low = self.uv.min((0, 1))
        span = np.maximum(self.uv.max((0, 1)) - low, 1e-9)
        # Not quite to the edge, where the picture begins anew.
        return Shape(self.triangles, (0.004 + 0.992 * (self.uv - low) / span) * size_m)


Pose = Callable[[Shape], Shape]
"""Puts a shape in its place."""


def turn_z(angle: float) -> np.ndarray:
    """(3, 3) rotation about z [rad]."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def join(*shapes: Shape) -> Shape:
    """One shape of many."""
    return Shape(np.concatenate([s.triangles for s in shapes]), np.concatenate([s.uv for s in shapes]))


def quads(corners: np.ndarray, uv: np.ndarray | None = None) -> Shape:
    """(Q, 4, 3) corners, counter-clockwise from outside -> 2 Q triangles. Without uv, u runs along the first edge, v along the last [m]."""
    corners = np.asarray(corners, np.float64).reshape(-1, 4, 3)
    if uv is None:
        width = np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1)
        height = np.linalg.norm(corners[:, 3] - corners[:, 0], axis=1)
        zero = np.zeros_like(width)
        uv = np.stack([zero, zero, width, zero, width, height, zero, height], 1)
    uv = np.asarray(uv, np.float64).reshape(-1, 4, 2)
    order = [0, 1, 2, 0, 2, 3]
    return Shape(corners[:, order].reshape(-1, 3, 3), uv[:, order].reshape(-1, 3, 2))


def quad(a: Sequence[float], b: Sequence[float], c: Sequence[float], d: Sequence[float]) -> Shape:
    """One quad of four corners, counter-clockwise from outside."""
    return quads(np.array([[a, b, c, d]], np.float64))


# Corners of a box (bit 0: x, bit 1: y, bit 2: z), counter-clockwise from outside, the first edge horizontal: -y, +x, +y, -x, +z, -z.
_FACES = np.array([[0, 1, 5, 4], [1, 3, 7, 5], [3, 2, 6, 7], [2, 0, 4, 6], [4, 5, 7, 6], [2, 3, 1, 0]])


def boxes(low: np.ndarray, high: np.ndarray, faces: Sequence[int] = range(6)) -> Shape:
    """Boxes along the axes between corners low and high, (N, 3) or (3,). faces: which of -y, +x, +y, -x, +z, -z."""
    ends = np.stack([np.atleast_2d(np.asarray(low, np.float64)), np.atleast_2d(np.asarray(high, np.float64))])
    bits = np.arange(8)[:, None] >> np.arange(3) & 1
    corners = ends[bits, :, np.arange(3)].transpose(2, 0, 1)
    return quads(corners[:, _FACES[list(faces)]].reshape(-1, 4, 3))


def ground(corners: np.ndarray) -> Shape:
    """(Q, 3 or 4, 3) corners, counter-clockwise from above; the texture lies fixed in x, y, so that neighbours join."""
    corners = np.asarray(corners, np.float64)
    if corners.shape[-2] == 3:
        return Shape(corners, corners[..., :2])
    return quads(corners, corners.reshape(-1, 4, 3)[..., :2])


def tube(points: np.ndarray, radii: np.ndarray | float, sides: int = 8, caps: bool = True, flat: float = 1.0) -> Shape:
    """A tube through points (P, 3) with radii (P,) [m]; flat squeezes its section along y."""
    points = np.asarray(points, np.float64)
    radii = np.broadcast_to(np.asarray(radii, np.float64), len(points))
    along = np.gradient(points, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12)
    side = np.cross([0.0, 1.0, 0.0], along)
    weak = np.linalg.norm(side, axis=1) < 0.2
    side[weak] = np.cross([1.0, 0.0, 0.0], along[weak])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    other = np.cross(along, side)
    turn = np.arange(sides + 1) * (2 * np.pi / sides)
    ring = np.cos(turn)[None, :, None] * side[:, None] + np.sin(turn)[None, :, None] * other[:, None]
    ring = points[:, None] + ring * radii[:, None, None] * np.array([1.0, flat, 1.0])
    run = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    u = np.broadcast_to(turn * radii.max(), ring.shape[:2])
    uv = np.stack([u, np.broadcast_to(run[:, None], ring.shape[:2])], -1)
    skin = quads(_cells(ring), _cells(uv))
    if not caps:
        return skin
    ends = [_fan(ring[0, ::-1], points[0]), _fan(ring[-1], points[-1])]
    return join(skin, *ends)


def _cells(grid: np.ndarray) -> np.ndarray:
    """(A, B, C) grid -> ((A-1) (B-1), 4, C) quads."""
    return np.stack([grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]], 2).reshape(-1, 4, grid.shape[-1])


def _fan(ring: np.ndarray, centre: np.ndarray) -> Shape:
    """Triangles from a centre to a closed ring (N + 1, 3)."""
    triangles = np.stack([np.broadcast_to(centre, ring[1:].shape), ring[:-1], ring[1:]], 1)
    flat = triangles - centre
    return Shape(triangles, flat[..., np.argsort(-np.ptp(flat, (0, 1)))[:2]])


def disc(radius: float, sides: int = 16) -> Shape:
    """A disc in the x, z plane that faces -y, its middle at 0."""
    turn = np.arange(sides + 1) * (2 * np.pi / sides) + np.pi / sides
    ring = radius * np.stack([np.cos(turn), np.zeros_like(turn), np.sin(turn)], 1)
    shape = _fan(ring, np.zeros(3))
    return Shape(shape.triangles, shape.triangles[..., [0, 2]])


@lru_cache(maxsize=None)
def _sphere(detail: int) -> np.ndarray:
    """(20 * 4 ** detail, 3, 3) triangles of the unit sphere: an icosahedron, each triangle cut in four `detail` times."""
    g = (1 + 5**0.5) / 2
    p = np.array([[0, i, j * g] for i in (-1, 1) for j in (-1, 1)], np.float64)
    points = np.concatenate([p, p[:, [2, 0, 1]], p[:, [1, 2, 0]]])
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)
    near = (gaps > 0.1) & (gaps < 2.1)
    faces = [(a, b, c) for a in range(12) for b in range(a) for c in range(b) if near[a, b] and near[b, c] and near[a, c]]
    triangles = points[np.array(faces)]
    inward = np.einsum("fi,fi->f", np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), triangles[:, 0]) < 0
    triangles[inward] = triangles[inward][:, ::-1]
    for _ in range(detail):
        a, b, c = triangles.transpose(1, 0, 2)
        ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
        triangles = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    triangles = triangles / np.linalg.norm(triangles, axis=-1, keepdims=True)
    triangles.flags.writeable = False
    return triangles


def ball(
    centre: Sequence[float], radii: Sequence[float] | float, detail: int = 1, rough: Callable[[np.ndarray], np.ndarray] | None = None
) -> Shape:
    """An ellipsoid; rough(unit directions (F, 3, 3)) -> (F, 3) factors on its radius."""
    unit = _sphere(detail)
    swell = 1.0 if rough is None else rough(unit)[..., None]
    triangles = unit * swell * np.asarray(radii, np.float64) + np.asarray(centre, np.float64)
    return Shape(triangles, in_plane(triangles))


def in_plane(triangles: np.ndarray) -> np.ndarray:
    """(F, 3, 2) surface coordinates in each triangle's own plane, offset by where it is, so that neighbours do not look alike."""
    a, b, c = triangles.transpose(1, 0, 2)
    right = (b - a) / np.maximum(np.linalg.norm(b - a, axis=1, keepdims=True), 1e-12)
    side = c - a
    along = (side * right).sum(1)
    across = np.linalg.norm(side - along[:, None] * right, axis=1)
    zero = np.zeros_like(along)
    local = np.stack([zero, zero, np.linalg.norm(b - a, axis=1), zero, along, across], 1).reshape(-1, 3, 2)
    return local + 7.3 * a[:, None, :2] + 3.1 * a[:, None, 2:]


class Stage:
    """Collects the parts, materials and lamps of a street while it is built."""

    def __init__(self) -> None:
        self._parts: list[tuple[Part, bool]] = []
        self.lamps: list[tuple[float, float, float]] = []
        self._materials: dict[tuple, int] = {}
        self._textures: dict[int, tuple[int, Texture]] = {}
        self._instances = 0

    def thing(self) -> int:
        """The instance number of a new countable thing."""
        self._instances += 1
        return self._instances

    def material(
        self,
        texture: Texture,
        tint: Sequence[float] = (1.0, 1.0, 1.0),
        gloss: float = 0.0,
        glow: float = 0.0,
        reflectivity: float | None = None,
    ) -> int:
        """Index of such a material, the same for the same arguments. reflectivity None: the mean of the tint."""
        index, _ = self._textures.setdefault(id(texture), (len(self._textures), texture))
        key = (index, tuple(float(v) for v in tint), gloss, glow, reflectivity)
        return self._materials.setdefault(key, len(self._materials))

    def add(self, shape: Shape, label: int, material: int, instance: int = 0, bent: bool = True) -> None:
        """Add triangles. bent: they are in street coordinates; otherwise in the world frame."""
        self._parts.append((Part(shape.triangles, label, material, shape.uv, instance), bent))

    def add_all(self, pieces: Mapping[str, Shape], materials: Mapping[str, int], label: int, instance: int, pose: Pose) -> None:
        """Add a prefabricated thing: its pieces by the name of their material, each put in place by `pose`."""
        for name, shape in pieces.items():
            self.add(pose(shape), label, materials[name], instance)

    def scene(self, weather: Weather, path: np.ndarray, bend: Callable[[np.ndarray], np.ndarray]) -> Scene:
        """The scene, with every corner, the path and the lamps bent by `bend` ((..., 3) street -> world)."""
        ends = np.cumsum([0, *(len(p.triangles) for p, is_bent in self._parts if is_bent)])
        bent = bend(np.concatenate([p.triangles for p, is_bent in self._parts if is_bent])).astype(np.float32)
        pieces = iter(bent[a:b] for a, b in zip(ends, ends[1:]))
        parts = [replace(p, triangles=next(pieces)) if is_bent else p for p, is_bent in self._parts]
        materials = [
            Material(index, tint, gloss, glow, float("nan") if reflectivity is None else reflectivity)
            for index, tint, gloss, glow, reflectivity in self._materials
        ]
        lamps = bend(np.array(self.lamps).reshape(-1, 3))
        return Scene.of(parts, materials, [t for _, t in self._textures.values()], weather, bend(path), lamps)


def stream(seed: int, *name: int | str) -> np.random.Generator:
    """Random numbers of one part of a street, the same whatever the other parts draw."""
    words = [int(v) if isinstance(v, (int, np.integer)) else int.from_bytes(v.encode(), "little") for v in name]
    return np.random.default_rng([seed, *words])
