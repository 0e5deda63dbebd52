"""Trees, hedges and bushes: a trunk with boughs, a crown of rough lumps, and leaves as loose triangles that break its outline."""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType
from typing import Mapping

import numpy as np

from lix_core.world import textures
from lix_core.world.street.shapes import Shape, Stage, ball, join, quads, tube

TREES = ("broad", "round", "tall", "conifer", "birch", "bare")
VARIANTS = 4
LEAF_TINTS = ((1.0, 1.0, 1.0), (0.8, 0.95, 0.7), (1.25, 1.15, 0.7), (0.75, 0.85, 0.85), (1.5, 1.05, 0.5))


def leaf_cards(rng: np.random.Generator, triangles: np.ndarray, count: int, size: float) -> Shape:
    """Loose leaf triangles scattered on the surface `triangles`, turned about at random but mostly along it."""
    a, b, c = triangles[rng.integers(0, len(triangles), count)].transpose(1, 0, 2)
    s, t = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    middle = (1 - s) * a + s * (1 - t) * b + s * t * c
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    normal = normal + 0.75 * rng.standard_normal((count, 3))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    right = np.cross(normal, rng.standard_normal((count, 3)))
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    up = np.cross(normal, right)
    turn = np.array([0.5, 2.6, 4.7])
    spread = size * rng.uniform(0.5, 1.2, (count, 3, 1))
    corners = middle[:, None] + spread * (np.cos(turn)[:, None] * right[:, None] + np.sin(turn)[:, None] * up[:, None])
    offset = rng.uniform(0, 2.0, (count, 1, 2))
    return Shape(corners, offset + (spread * np.stack([np.cos(turn), np.sin(turn)], 1)))


def _rough(rng: np.random.Generator, depth: float = 0.24):
    """A bumpy surface for `ball`: the same at the same direction, so that it stays closed."""
    waves, phase = rng.normal(0, 3.2, (6, 3)), rng.uniform(0, 2 * np.pi, 6)
    return lambda unit: 1.0 + depth * np.sin(unit @ waves.T + phase).sum(-1) / 2.0


def _lumps(rng: np.random.Generator, kind: str) -> tuple[list[Shape], list[tuple[float, float, float]]]:
    """Crown lumps and their middles, of a tree about 8 m high."""
    if kind == "tall":
        spots = [(0.0, 0.0, z, r, 1.3 * r) for z, r in ((2.6, 0.8), (4.0, 1.05), (5.5, 1.0), (7.0, 0.75), (8.3, 0.45))]
    elif kind == "conifer":
        spots = [(0.0, 0.0, 1.6 + 1.15 * i, 1.9 - 0.29 * i, 0.75) for i in range(6)]
    else:
        reach, low, high, count = {"broad": (1.5, 4.2, 6.4, 8), "round": (1.0, 3.9, 5.5, 6), "birch": (1.0, 3.6, 7.2, 8)}[kind]
        angle = np.arange(count) * 2.4 + rng.uniform(0, 6.28)
        out = reach * np.sqrt(rng.uniform(0.15, 1.0, count))
        height = rng.uniform(low, high, count)
        size = rng.uniform(0.95, 1.4, count) * (0.72 if kind == "birch" else 1.0)
        spots = [(o * np.cos(a), o * np.sin(a), z, r, 0.85 * r) for o, a, z, r in zip(out, angle, height, size)]
        spots.append((0.0, 0.0, (low + high) / 2 + 0.2, 1.25 * size.mean(), 1.3 * size.mean()))
    lumps = [ball((x, y, z), (r, r, up), 1, _rough(rng)) for x, y, z, r, up in spots]
    return lumps, [(x, y, z) for x, y, z, _, _ in spots]


def _bare(rng: np.random.Generator) -> list[Shape]:
    """Boughs and twigs of a tree without leaves."""
    shapes = []
    for _ in range(9):
        base = np.array([0.0, 0.0, rng.uniform(2.6, 4.6)])
        angle, length = rng.uniform(0, 6.28), rng.uniform(1.8, 3.0)
        way = np.array([np.cos(angle), np.sin(angle), rng.uniform(0.7, 1.5)])
        tip = base + length * way / np.linalg.norm(way) + [0, 0, 0.3]
        middle = (base + tip) / 2 - [0, 0, 0.12]
        shapes.append(tube([base, middle, tip], [0.07, 0.045, 0.012], 4, caps=False))
        for _ in range(5):
            start = middle + (tip - middle) * rng.random()
            shapes.append(tube([start, start + rng.normal(0, 0.45, 3) + 0.35 * way], [0.02, 0.006], 3, caps=False))
    return shapes


@lru_cache(maxsize=None)
def tree(kind: str, variant: int) -> Mapping[str, Shape]:
    """A tree of TREES about 8 m high, its foot at 0: shapes bark and leaves."""
    rng = np.random.default_rng([30, TREES.index(kind), variant])
    lean = rng.normal(0, 0.12, 2)
    top = 5.2 if kind != "conifer" else 8.0
    thick = 0.11 if kind == "birch" else 0.17
    trunk = [
        np.array([0.0, 0.0, -0.05]),
        np.array([0.3 * lean[0], 0.3 * lean[1], 1.8]),
        np.array([*lean, 3.4]),
        np.array([*(1.3 * lean), top]),
    ]
    wood = [tube(np.array(trunk), np.array([1.35, 1.0, 0.8, 0.2]) * thick, 8, caps=False)]
    if kind == "bare":
        return MappingProxyType({"bark": join(*wood, *_bare(rng))})
    lumps, middles = _lumps(rng, kind)
    if kind in ("broad", "round", "birch"):
        for spot in middles[:5]:
            base = np.array([*lean, rng.uniform(2.4, 3.4)])
            wood.append(tube([base, np.array(spot)], [0.4 * thick, 0.12 * thick], 5, caps=False))
    skin = np.concatenate([s.triangles for s in lumps])
    cards = leaf_cards(rng, skin, 420 if kind != "tall" else 300, 0.26 if kind == "conifer" else 0.36)
    # A birch is mostly loose leaves: its lumps shrink until the sky shows between them.
    if kind == "birch":
        lumps = [ball(m, 0.42, 1, _rough(rng)) for m in middles]
    return MappingProxyType({"bark": join(*wood), "leaves": join(*lumps, cards)})


@lru_cache(maxsize=None)
def tree_reach(kind: str, variant: int) -> float:
    """How far a tree's crown is from its foot, seen from above [m]."""
    corners = np.concatenate([s.triangles.reshape(-1, 3) for s in tree(kind, variant).values()])
    return float(np.hypot(corners[:, 0], corners[:, 1]).max())


def tree_materials(stage: Stage, rng: np.random.Generator, kind: str) -> dict[str, int]:
    pale = kind == "birch"
    tint = np.array(LEAF_TINTS[3 if kind == "conifer" else int(rng.choice(5, p=(0.35, 0.3, 0.15, 0.15, 0.05)))]) * rng.uniform(0.85, 1.1)
    return {
        "bark": stage.material(textures.bark(int(rng.integers(2))), (2.2, 2.1, 2.0) if pale else (0.9, 0.9, 0.9)),
        "leaves": stage.material(textures.leaves(int(rng.integers(3))), tuple(np.round(tint, 2).tolist()), reflectivity=0.45),
    }


def hedge(rng: np.random.Generator, length: float, height: float, thick: float = 0.7) -> Shape:
    """A clipped hedge along +x from 0, its middle on y = 0."""
    x = np.linspace(0.0, length, 2 + int(length / 0.5))
    profile = np.array([(-0.5, -0.05), (-0.5, 0.85), (-0.36, 1.0), (0.36, 1.0), (0.5, 0.85), (0.5, -0.05)]) * [thick, height]
    grid = np.concatenate([np.broadcast_to(x[:, None, None], (len(x), 6, 1)), np.broadcast_to(profile, (len(x), 6, 2))], 2)
    grid = grid + rng.normal(0, 0.035, grid.shape) * [0, 1, 1]
    cells = np.stack([grid[1:, :-1], grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:]], 2).reshape(-1, 4, 3)[:, ::-1]
    ends = np.stack([grid[[0, -1]][:, [i, i + 1, 4 - i, 5 - i]] for i in (0, 1)], 1).reshape(-1, 4, 3)
    ends[:2] = ends[:2, ::-1]
    skin = quads(np.concatenate([cells, ends]))
    return join(skin, leaf_cards(rng, skin.triangles, int(28 * length), 0.13))


@lru_cache(maxsize=None)
def bush(variant: int) -> Shape:
    """A bush about 1.3 m high, its foot at 0."""
    rng = np.random.default_rng([31, variant])
    lumps = [ball((*rng.normal(0, 0.35, 2), rng.uniform(0.3, 0.75)), rng.uniform(0.4, 0.65), 1, _rough(rng)) for _ in range(3)]
    return join(*lumps, leaf_cards(rng, np.concatenate([s.triangles for s in lumps]), 110, 0.16))
