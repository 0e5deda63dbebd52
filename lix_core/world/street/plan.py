"""The plan of a street: every choice that its parts share, drawn from the seed before anything is built."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lix_core.world.street.shapes import stream

DEPTH = 70.0
"""How far the blocks reach to each side of the centreline [m]."""
LEAD_IN = 28.0
"""The street begins this far behind the path's start [m]."""


@dataclass(frozen=True)
class StreetPlan:
    """Choices of one street, in street coordinates: x along the centreline, y to its left, the path from x = 0 [m].

    style: town (terraces and shops), suburb (houses and gardens) or city (tall blocks). lane: width of a lane. wide: half width of the
    road to the left and right, kerb to centreline. parking: parked cars left, right. pavement: width left, right. kerb: height.
    path_length: free drive. end: where the cross street that closes the road begins. cross: width of the cross streets. junction: x of the
    middle of a cross street in between, NaN for none. turn: the heading's change along the path [rad]. zebra: x of the zebra crossing.

    What makes geometry matter: one_surface (road, kerb and pavement of one material), murals (cars and people painted on walls, as large
    as life), grey_on_grey (grey cars parked before grey walls).
    """

    seed: int
    style: str
    lane: float
    wide: tuple[float, float]
    parking: tuple[bool, bool]
    pavement: tuple[float, float]
    kerb: float
    path_length: float
    end: float
    cross: float
    junction: float
    turn: float
    zebra: float
    one_surface: bool
    murals: bool
    grey_on_grey: bool

    @classmethod
    def draw(cls, seed: int) -> "StreetPlan":
        """The plan of street `seed`. Shares: one_surface 1/3, murals 1/2, grey_on_grey 1/3, a junction 4/5, a bend 2/3."""
        rng = stream(seed, "plan")
        style = ("town", "suburb", "city")[rng.choice(3, p=(0.45, 0.3, 0.25))]
        lane = rng.uniform(3.0, 3.5)
        parking = (bool(rng.random() < 0.7), bool(rng.random() < 0.7))
        width = rng.uniform(2.3, 4.2)
        path_length = rng.uniform(124.0, 140.0)
        junction = rng.uniform(45.0, 0.75 * path_length) if rng.random() < 0.8 else float("nan")
        one_surface, murals, grey_on_grey = rng.random(3) < (1 / 3, 1 / 2, 1 / 3)
        if grey_on_grey:
            parking = (parking[0], True)
        return cls(
            seed=seed,
            style=style,
            lane=lane,
            wide=tuple(lane + (2.5 if p else 0.45) for p in parking),
            parking=parking,
            pavement=(width, width + rng.uniform(-0.3, 0.8)),
            kerb=rng.uniform(0.105, 0.155),
            path_length=path_length,
            end=path_length + rng.uniform(24.0, 44.0),
            cross=rng.uniform(6.0, 8.0),
            junction=junction,
            turn=rng.uniform(0.1, 0.42) * rng.choice((-1, 1)) if rng.random() < 2 / 3 else 0.0,
            zebra=rng.uniform(16.0, 0.25 * path_length),
            one_surface=bool(one_surface),
            murals=bool(murals),
            grey_on_grey=bool(grey_on_grey),
        )

    @property
    def start(self) -> float:
        return -LEAD_IN

    @property
    def gutter(self) -> float:
        """Height of the road at the kerb; the crown of the road is at 0 [m]."""
        return -0.06

    @property
    def top(self) -> float:
        """Height of the pavements [m]."""
        return self.gutter + self.kerb

    @property
    def crossings(self) -> list[tuple[float, float]]:
        """(from, to) along x of the cross streets, the two that close the ends among them."""
        inner = [] if np.isnan(self.junction) else [(self.junction - self.cross / 2, self.junction + self.cross / 2)]
        return [(self.start - self.cross, self.start), *inner, (self.end, self.end + self.cross)]

    @property
    def blocks(self) -> list[tuple[float, float]]:
        """(from, to) along x of the blocks between the cross streets."""
        cuts = self.crossings
        return [(a[1], b[0]) for a, b in zip(cuts, cuts[1:])]

    def surface(self, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        """Height of the road at street coordinates: a crown that flattens out towards both ends [m]."""
        side = np.where(np.asarray(y) > 0, *self.wide)
        fade = np.clip(np.minimum(np.asarray(x) - self.start, self.end - np.asarray(x)) / 6.0, 0.0, 1.0)
        rise = 1.0 - np.minimum(np.abs(y) / side, 1.0)
        return self.gutter * (1.0 - fade * rise)

    def kerb_line(self, side: int) -> float:
        """y of the kerb of the left (1) or right (-1) side."""
        return self.wide[0] if side > 0 else -self.wide[1]

    def front_line(self, side: int) -> float:
        """y where the pavement of a side ends."""
        return self.wide[0] + self.pavement[0] if side > 0 else -self.wide[1] - self.pavement[1]

    @cached_property
    def _centreline(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x of the samples, their points (P, 2) in the world, and their headings [rad]."""
        x = np.arange(self.start - 120.0, self.end + 120.0, 0.25)
        part = np.clip((x + 10.0) / (self.end + 10.0), 0.0, 1.0)
        heading = self.turn * (part * part * (3 - 2 * part) - 0.04)
        steps = np.stack([np.cos(heading), np.sin(heading)], 1) * 0.25
        points = np.cumsum(steps, 0)
        return x, points - [np.interp(0.0, x, points[:, 0]), np.interp(0.0, x, points[:, 1])], heading

    def bend(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) street coordinates -> (..., 3) world: x follows the curved centreline, y stands square to it."""
        x, line, heading = self._centreline
        at = np.interp(points[..., 0], x, heading)
        east = np.interp(points[..., 0], x, line[:, 0]) - points[..., 1] * np.sin(at)
        north = np.interp(points[..., 0], x, line[:, 1]) + points[..., 1] * np.cos(at)
        return np.stack([east, north, points[..., 2]], -1)

    @property
    def path(self) -> np.ndarray:
        """(P, 3) points under the camera car, in street coordinates: the middle of the right lane, every 2 m."""
        x = np.append(np.arange(0.0, self.path_length, 2.0), self.path_length)
        y = np.full_like(x, -self.lane / 2)
        return np.stack([x, y, self.surface(x, y)], 1)
