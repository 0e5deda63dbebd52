"""The ground of a street: road, markings, kerbs, pavements, the grass behind the houses, and the land around."""

from __future__ import annotations

import numpy as np

from lix_core.world import textures
from lix_core.world.street.plan import DEPTH, StreetPlan
from lix_core.world.street.shapes import PAVEMENT, ROAD, TREE, Shape, Stage, ground, quads, stream

KERB_WIDTH = 0.14
PAINT = 0.004
"""Markings lie this far above the road [m]."""


def lay_ground(stage: Stage, plan: StreetPlan) -> None:
    """Everything level: each ray straight down over the street meets it."""
    rng = stream(plan.seed, "ground")
    asphalt = stage.material(textures.asphalt(int(rng.integers(6))), tint=(rng.uniform(0.8, 1.1),) * 3)
    if plan.one_surface:
        paving = kerb = asphalt
    else:
        paving = stage.material(textures.slabs(int(rng.integers(4))), tint=(rng.uniform(0.75, 1.1),) * 3)
        kerb = stage.material(textures.kerb_stone(int(rng.integers(2))))
    grass = stage.material(textures.grass(int(rng.integers(2))), tint=tuple(rng.uniform(0.75, 1.05, 3)))
    stage.add(_carriageway(plan), ROAD, asphalt)
    for side in (1, -1):
        for a, b in plan.crossings:
            stage.add(_level(a, b, plan.kerb_line(side), side * DEPTH, plan.gutter), ROAD, asphalt)
        for a, b in plan.blocks:
            _block(stage, plan, side, a, b, asphalt, kerb, paving, grass)
    for way, x in ((-1, plan.start - plan.cross), (1, plan.end + plan.cross)):
        _closing_block(stage, plan, way, x, kerb, paving, grass)
    _markings(stage, plan, rng)


def _level(x0: float, x1: float, y0: float, y1: float, z: float) -> Shape:
    """A level rectangle that faces up, cut every 3 m along x to follow the bend."""
    x = np.linspace(min(x0, x1), max(x0, x1), 2 + int(abs(x1 - x0) / 3.0))
    low, high = min(y0, y1), max(y0, y1)
    corners = [[(a, low, z), (b, low, z), (b, high, z), (a, high, z)] for a, b in zip(x, x[1:])]
    return ground(np.array(corners))


def _carriageway(plan: StreetPlan) -> Shape:
    """The main road from end to end, with its crown."""
    ends = [plan.start - plan.cross, plan.start, plan.start + 6.0, plan.end - 6.0, plan.end, plan.end + plan.cross]
    x = np.unique(np.concatenate([ends, np.arange(plan.start + 9.0, plan.end - 6.0, 3.0)]))
    y = np.array([-plan.wide[1], 0.0, plan.wide[0]])
    grid = np.stack(np.broadcast_arrays(x[:, None], y[None], plan.surface(x[:, None], y[None])), -1)
    return ground(np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], 2))


def _kerb_line(plan: StreetPlan, a: float, b: float, wide: float, broad: float) -> np.ndarray:
    """(P, 3, 2) along a block of the left side, its kerb seen from the road: kerb point, the stone's back edge, the pavement's back edge.

    It comes down one cross street, turns a round corner, follows the road and leaves up the other cross street.
    """
    radius = 0.8 * broad
    turn = np.linspace(np.pi, 1.5 * np.pi, 7)
    corner = np.stack([np.cos(turn), np.sin(turn)], 1)
    points, inward, back = [], [], []

    def put(point: np.ndarray, normal: np.ndarray, edge: tuple[float, float]) -> None:
        points.append(point)
        inward.append(normal)
        back.append(edge)

    for y in (DEPTH, wide + broad):
        put(np.array([a, y]), np.array([1.0, 0.0]), (a + broad, y))
    for d in corner:
        put(np.array([a + radius, wide + radius]) + radius * d, -d, (a + broad, wide + broad))
    for x in np.linspace(a + broad, b - broad, 2 + int((b - a) / 3.0)):
        put(np.array([x, wide]), np.array([0.0, 1.0]), (x, wide + broad))
    for d in corner[::-1] * [-1, 1]:
        put(np.array([b - radius, wide + radius]) + radius * d, -d, (b - broad, wide + broad))
    for y in (wide + broad, DEPTH):
        put(np.array([b, y]), np.array([-1.0, 0.0]), (b - broad, y))
    kerb = np.array(points)
    return np.stack([kerb, kerb + KERB_WIDTH * np.array(inward), np.array(back)], 1)


def _at(points: np.ndarray, z: float) -> np.ndarray:
    return np.concatenate([points, np.full((*points.shape[:-1], 1), z)], -1)


def _strip(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """(P, 3) twice -> (P - 1, 4, 3) quads between two lines."""
    return np.stack([lower[:-1], lower[1:], upper[1:], upper[:-1]], 1)


def _block(stage: Stage, plan: StreetPlan, side: int, a: float, b: float, asphalt: int, kerb: int, paving: int, grass: int) -> None:
    wide, broad = (plan.wide[0], plan.pavement[0]) if side > 0 else (plan.wide[1], plan.pavement[1])
    line = _kerb_line(plan, a, b, wide, broad)

    def add(corners: np.ndarray, label: int, material: int, level: bool = True) -> None:
        # The right side is the mirror image of the left, so its corners run the other way round.
        corners = corners if side > 0 else (corners * [1.0, -1.0, 1.0])[:, ::-1]
        stage.add(ground(corners) if level else quads(corners), label, material)

    top = plan.top
    add(_strip(_at(line[:, 0], plan.gutter - 0.02), _at(line[:, 0], top)), PAVEMENT, kerb, level=False)
    add(_strip(_at(line[:, 0], top), _at(line[:, 1], top)), PAVEMENT, kerb)
    add(_strip(_at(line[:, 1], top), _at(line[:, 2], top)), PAVEMENT, paving)
    for x, arc in ((a, line[2:9, 0]), (b, line[-9:-2, 0])):
        corner = np.broadcast_to([x, wide, plan.gutter], (6, 3))
        rim = _at(arc, plan.gutter)
        add(np.stack([corner, rim[1:], rim[:-1]], 1), ROAD, asphalt)
    x = np.linspace(a + broad, b - broad, 2 + int((b - a) / 3.0))
    near, far = np.full_like(x, wide + broad), np.full_like(x, DEPTH)
    add(_strip(_at(np.stack([x, near], 1), top), _at(np.stack([x, far], 1), top)), TREE, grass)


def _closing_block(stage: Stage, plan: StreetPlan, way: int, x: float, kerb: int, paving: int, grass: int) -> None:
    """The block across the road's end: its kerb faces the street. way: 1 at the far end, -1 at the near one."""
    broad = plan.pavement[0]
    z0, z1 = plan.gutter - 0.02, plan.top
    face = np.array([[(x, DEPTH, z0), (x, -DEPTH, z0), (x, -DEPTH, z1), (x, DEPTH, z1)]])
    stage.add(quads(face if way > 0 else face[:, [1, 0, 3, 2]]), PAVEMENT, kerb)
    stage.add(_level(x, x + way * KERB_WIDTH, -DEPTH, DEPTH, z1), PAVEMENT, kerb)
    stage.add(_level(x + way * KERB_WIDTH, x + way * broad, -DEPTH, DEPTH, z1), PAVEMENT, paving)
    stage.add(_level(x + way * broad, x + way * (broad + 45.0), -DEPTH, DEPTH, z1), TREE, grass)


def _markings(stage: Stage, plan: StreetPlan, rng: np.random.Generator) -> None:
    """Centre dashes, edge lines, parking bays, a zebra crossing, and stop lines at the cross streets. Label: road."""
    white = stage.material(textures.plain(), tint=(rng.uniform(0.55, 0.75),) * 3, reflectivity=0.7)
    strips: list[tuple[float, float, float, float]] = []
    clear = [(a - 4.0, b + 4.0) for a, b in plan.crossings] + [(plan.zebra - 2.5, plan.zebra + 5.5)]

    def free(x: float, length: float) -> bool:
        return all(x + length < a or x > b for a, b in clear)

    for x in np.arange(plan.start + 6.0, plan.end - 9.0, 6.0):
        if free(x, 3.0):
            strips.append((x, x + 3.0, -0.06, 0.06))
    for side, parked in zip((1, -1), plan.parking):
        y = side * (plan.lane + 0.15)
        if parked:
            for x in np.arange(plan.start + 8.0, plan.end - 8.0, 6.0):
                if free(x, 0.1):
                    strips.append((x, x + 0.1, y, plan.kerb_line(side)))
        else:
            for x in np.arange(plan.start + 6.0, plan.end - 6.0, 2.0):
                if free(x, 2.0):
                    strips.append((x, x + 2.0, y - 0.05, y + 0.05))
    strips += [
        (plan.zebra, plan.zebra + 3.5, y, y + 0.5) for y in np.arange(-plan.wide[1] + 0.3, plan.wide[0] - 0.5, 1.0) if not -0.5 < y < 0.0
    ]
    for a, b in plan.crossings[1:]:
        strips.append((a - 1.6, a - 1.2, -plan.lane, -0.1))
        if b < plan.end:
            strips.append((b + 1.2, b + 1.6, 0.1, plan.lane))
    pieces = []
    for x0, x1, y0, y1 in strips:
        for low, high in _halves(min(y0, y1), max(y0, y1)):
            corners = np.array([(x0, low), (x1, low), (x1, high), (x0, high)])
            z = plan.surface(corners[:, 0], corners[:, 1]) + PAINT
            pieces.append(np.column_stack([corners, z]))
    stage.add(ground(np.array(pieces)), ROAD, white)


def _halves(low: float, high: float) -> list[tuple[float, float]]:
    """A span of y, cut at the crown."""
    return [(low, 0.0), (0.0, high)] if low < 0.0 < high else [(low, high)]


def lay_land(stage: Stage, plan: StreetPlan) -> None:
    """The plain around the street and hills to the horizon, not bent with it. Label: tree, as vegetation."""
    rng = stream(plan.seed, "land")
    radius = np.array([0.0, 90.0, 180.0, 230.0, 300.0, 400.0, 520.0, 700.0, 1000.0, 1600.0, 3000.0])
    angle = np.linspace(0.0, 2 * np.pi, 49)
    phase, waves = rng.uniform(0, 2 * np.pi, 4), np.array([2, 3, 5, 9])
    shape = 0.5 + 0.5 * (np.sin(angle[:, None] * waves + phase) @ np.array([0.4, 0.3, 0.2, 0.15]))
    rise = np.clip((radius - 200.0) / 500.0, 0.0, 1.0) * rng.uniform(12.0, 55.0)
    z = -0.3 + rise[:, None] * np.clip(shape, 0.05, None)[None] + np.where(radius > 1000.0, 8.0, 0.0)[:, None]
    grid = np.stack(np.broadcast_arrays(radius[:, None] * np.cos(angle), radius[:, None] * np.sin(angle), z), -1)
    cells = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], 2)
    middle = plan.bend(np.array([plan.end / 2, 0.0, 0.0]))
    field = stage.material(textures.grass(1), tint=(0.85, 0.9, 0.85))
    wood = stage.material(textures.leaves(0), tint=(0.8, 0.9, 0.85))
    for rings, material in ((cells[:3], field), (cells[3:], wood)):
        stage.add(ground(rings + middle), TREE, material, bent=False)
