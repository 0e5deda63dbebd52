"""Cars, vans, a lorry and a bus: bodies lofted from sections along their length, wheels, glass and lamps. They face +x, wheels on z = 0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Mapping

import numpy as np

from lix_core.world import textures
from lix_core.world.street.shapes import Shape, Stage, boxes, disc, join, quad, quads, tube


@dataclass(frozen=True)
class Section:
    """A cut across a body at x: half width at the widest, heights of sill, belt line and roof, and half width at the roof [m].

    side, top: what spans from here to the next section above the belt line, `paint`, `glass` or `trim`.
    """

    x: float
    width: float
    sill: float
    belt: float
    roof: float
    roof_width: float
    side: str = "paint"
    top: str = "paint"


def _passenger(length: float, width: float, belt: float, roof: float, marks: tuple[float, ...], tail: str) -> tuple[Section, ...]:
    """A car with a bonnet. marks: x of cowl, roof's front, middle pillar, rear pillar, roof's end, tail of the glass, as shares of length.

    tail: `boot` (a saloon's, from the glass to the end) or `hatch` (the glass ends at the bumper).
    """
    w, front, back = width / 2, length / 2, -length / 2
    cowl, head, middle, rear, end, glass_end = (front - m * length for m in marks)
    top = 0.74 * w
    low = belt - 0.24
    sections = [
        Section(front, 0.78 * w, 0.30, low - 0.08, low - 0.06, 0.70 * w),
        Section(front - 0.09, 0.92 * w, 0.22, low, low + 0.05, 0.78 * w),
        Section(front - 0.45, 0.98 * w, 0.20, belt - 0.1, belt - 0.03, 0.84 * w),
        Section(cowl, w, 0.20, belt, belt + 0.03, 0.84 * w, "glass", "glass"),
        Section(head, w, 0.20, belt + 0.01, roof - 0.02, top, "glass"),
        Section(middle + 0.05, w, 0.20, belt + 0.02, roof, top, "paint"),
        Section(middle - 0.05, w, 0.20, belt + 0.02, roof, top, "glass"),
        Section(rear, w, 0.20, belt + 0.04, roof - 0.03, 0.98 * top, "paint"),
        Section(end, 0.99 * w, 0.21, belt + 0.05, roof - 0.07, 0.95 * top, "paint", "glass"),
    ]
    if tail == "boot":
        sections += [
            Section(glass_end, 0.98 * w, 0.22, belt + 0.02, belt + 0.07, 0.8 * w),
            Section(back + 0.08, 0.93 * w, 0.24, belt, belt + 0.06, 0.76 * w),
            Section(back, 0.84 * w, 0.34, belt - 0.16, belt - 0.14, 0.76 * w),
        ]
    else:
        sections += [
            Section(glass_end, 0.95 * w, 0.24, belt, belt + 0.04, 0.8 * w),
            Section(back, 0.86 * w, 0.34, belt - 0.22, belt - 0.2, 0.78 * w),
        ]
    return tuple(sections)


def _van(length: float, width: float, roof: float, windows: bool) -> tuple[Section, ...]:
    """A van, or with windows all along a minibus."""
    w, front, back = width / 2, length / 2, -length / 2
    side = "glass" if windows else "paint"
    return (
        Section(front, 0.82 * w, 0.32, 0.72, 0.74, 0.76 * w),
        Section(front - 0.1, 0.95 * w, 0.26, 0.85, 0.9, 0.84 * w),
        Section(front - 0.65, w, 0.24, 1.08, 1.12, 0.86 * w, "glass", "glass"),
        Section(front - 1.35, w, 0.24, 1.1, roof - 0.06, 0.84 * w, "glass"),
        Section(front - 1.95, w, 0.24, 1.1, roof, 0.86 * w),
        Section(front - 2.1, w, 0.24, 1.1, roof, 0.86 * w, side),
        Section((front + back) / 2 - 0.35, w, 0.24, 1.1, roof, 0.86 * w),
        Section((front + back) / 2 - 0.5, w, 0.24, 1.1, roof, 0.86 * w, side),
        Section(back + 0.3, w, 0.26, 1.1, roof - 0.01, 0.86 * w),
        Section(back, 0.97 * w, 0.34, 1.1, roof - 0.06, 0.83 * w),
    )


def _bus(length: float, width: float, roof: float) -> tuple[Section, ...]:
    w, front, back = width / 2, length / 2, -length / 2
    sections = [Section(front, 0.93 * w, 0.34, 1.05, roof - 0.1, 0.88 * w), Section(front - 0.12, w, 0.3, 1.1, roof, 0.94 * w, "glass")]
    pillars = np.linspace(front - 1.4, back + 0.9, 6)
    for x in pillars:
        sections += [
            Section(x + 0.07, w, 0.3, 1.1, roof, 0.94 * w),
            Section(x - 0.07, w, 0.3, 1.1, roof, 0.94 * w, "paint" if x == pillars[-1] else "glass"),
        ]
    return (*sections, Section(back, 0.96 * w, 0.36, 1.1, roof - 0.05, 0.92 * w))


@dataclass(frozen=True)
class Body:
    """A kind of vehicle. sections: front to back. axles: x of the wheels. lamps: height of the head and tail lamps [m]."""

    sections: tuple[Section, ...]
    axles: tuple[float, ...]
    wheel: float
    lamps: tuple[float, float]
    cargo: tuple[float, float, float, float] = ()  # a lorry's box: x from, x to, bottom, top

    @property
    def length(self) -> float:
        return self.sections[0].x - (self.cargo[0] if self.cargo else self.sections[-1].x)

    @property
    def width(self) -> float:
        return 2 * max(s.width for s in self.sections)

    @property
    def height(self) -> float:
        return max(s.roof for s in self.sections)


BODIES: Mapping[str, Body] = MappingProxyType(
    {
        "hatchback": Body(_passenger(3.95, 1.72, 0.92, 1.47, (0.25, 0.42, 0.6, 0.83, 0.9, 0.965), "hatch"), (1.22, -1.3), 0.3, (0.64, 0.8)),
        "saloon": Body(_passenger(4.65, 1.8, 0.92, 1.44, (0.28, 0.42, 0.56, 0.7, 0.75, 0.86), "boot"), (1.4, -1.38), 0.32, (0.64, 0.78)),
        "estate": Body(_passenger(4.7, 1.8, 0.92, 1.48, (0.28, 0.41, 0.55, 0.86, 0.93, 0.975), "hatch"), (1.4, -1.36), 0.32, (0.64, 0.82)),
        "suv": Body(_passenger(4.5, 1.86, 1.04, 1.68, (0.25, 0.38, 0.55, 0.84, 0.92, 0.97), "hatch"), (1.36, -1.34), 0.36, (0.74, 0.92)),
        "van": Body(_van(5.1, 1.95, 1.98, False), (1.65, -1.6), 0.33, (0.74, 0.95)),
        "minibus": Body(_van(5.0, 1.92, 1.96, True), (1.6, -1.55), 0.33, (0.74, 0.95)),
        "lorry": Body(
            (
                Section(3.9, 1.08, 0.45, 1.35, 2.35, 0.98),
                Section(3.78, 1.15, 0.42, 1.4, 2.45, 1.04, "glass"),
                Section(2.95, 1.15, 0.42, 1.4, 2.5, 1.06),
                Section(2.2, 1.15, 0.45, 1.4, 2.5, 1.06),
            ),
            (2.95, -2.3),
            0.46,
            (0.75, 0.8),
            (-3.9, 2.05, 1.0, 3.15),
        ),
        "bus": Body(_bus(11.2, 2.5, 2.98), (3.1, -3.0), 0.47, (0.75, 0.9)),
    }
)
"""Kinds of vehicles by name."""


def _ring(s: Section) -> np.ndarray:
    """(6, 3) the right half of a section, from the middle of the floor over the side to the middle of the roof."""
    w, middle = s.width, s.sill + 0.55 * (s.belt - s.sill)
    crown = 0.03 if s.roof - s.belt > 0.2 else 0.02
    y = [0.0, -0.94 * w, -w, -0.97 * w, -s.roof_width, 0.0]
    z = [s.sill, s.sill, middle, s.belt, s.roof, s.roof + crown]
    return np.column_stack([np.full(6, s.x), y, z])


def _loft(body: Body) -> dict[str, list[Shape]]:
    """The skin by material: both sides of every span between two sections, and the closed ends."""
    pieces: dict[str, list[Shape]] = {"paint": [], "glass": [], "trim": []}
    mirror = np.array([1.0, -1.0, 1.0])
    rings = [_ring(s) for s in body.sections]
    for s, a, b in zip(body.sections, rings, rings[1:]):
        for row, material in enumerate(("trim", "paint", "paint", s.side, s.top)):
            right = np.array([b[row], a[row], a[row + 1], b[row + 1]])
            pieces[material].append(quads(np.stack([right, (right * mirror)[[1, 0, 3, 2]]])))
    for ring, tail in ((rings[0], False), (rings[-1], True)):
        left = ring * mirror
        for row in range(1, 4):
            span = np.array([left[row], ring[row], ring[row + 1], left[row + 1]])
            tall = span[2, 2] - span[0, 2] > 0.6 and row == 3
            pieces["glass" if tall else "paint"].append(quads(span if tail else span[[1, 0, 3, 2]]))
        cap = np.array([ring[4], ring[5], left[4]])[None]
        pieces["paint"].append(Shape(cap, cap[..., 1:]) if tail else Shape(cap[:, ::-1], cap[:, ::-1, 1:]))
    return pieces


def _wheels(body: Body) -> dict[str, list[Shape]]:
    pieces: dict[str, list[Shape]] = {"tyre": [], "rim": [], "trim": []}
    r, out = body.wheel, body.width / 2 + 0.012
    arch = np.linspace(0.0, np.pi, 9)
    rim = np.stack([np.cos(arch), np.zeros_like(arch), np.sin(arch)], 1) * (r + 0.07)
    for x in body.axles:
        for side in (-1, 1):
            pieces["tyre"].append(tube([(x, side * (out - 0.22), r), (x, side * out, r)], r, 14))
            face = disc(0.62 * r, 10).moved(x, -out - 0.004, r)
            half = np.stack([np.zeros_like(rim[1:]), rim[:-1], rim[1:]], 1) + [x, -out + 0.008, r]
            for name, shape in (("rim", face), ("trim", Shape(half, half[..., [0, 2]]))):
                if side > 0:
                    shape = Shape((shape.triangles * [1.0, -1.0, 1.0])[:, ::-1], shape.uv[:, ::-1])
                pieces[name].append(shape)
    return pieces


def _fittings(body: Body) -> dict[str, list[Shape]]:
    """Lamps, grille, number plates, mirrors, and a lorry's box."""
    nose, tail = body.sections[0], body.sections[-1]
    back = body.cargo[0] if body.cargo else tail.x
    w, (head_z, tail_z) = nose.width, body.lamps
    pieces: dict[str, list[Shape]] = {"head": [], "tail": [], "trim": [], "plate": [], "cargo": []}
    for side in (-1, 1):
        y0, y1 = sorted((side * 0.62 * w, side * 0.98 * w))
        pieces["head"].append(boxes((nose.x - 0.16, y0, head_z - 0.07), (nose.x + 0.006, y1, head_z + 0.05)))
        y0, y1 = sorted((side * 0.74 * tail.width, side * 0.97 * tail.width))
        pieces["tail"].append(boxes((back - 0.008, y0, tail_z - 0.12), (back + 0.14, y1, tail_z + 0.06)))
        cowl = next(s for s in body.sections if s.side == "glass")
        y0, y1 = sorted((side * 0.96 * cowl.width, side * (cowl.width + 0.15)))
        x = cowl.x - 0.45 if nose.belt < 0.9 else cowl.x - 0.1
        pieces["trim"].append(boxes((x, y0, cowl.belt), (x + 0.1, y1, cowl.belt + 0.14)))
    pieces["trim"].append(boxes((nose.x - 0.1, -0.55 * w, head_z - 0.24), (nose.x + 0.008, 0.55 * w, head_z - 0.04)))
    pieces["trim"].append(boxes((back - 0.012, -0.9 * tail.width, 0.36), (back + 0.2, 0.9 * tail.width, 0.48)))
    pieces["plate"].append(
        quad(
            (nose.x + 0.012, -0.26, 0.4), (nose.x + 0.012, 0.26, 0.4), (nose.x + 0.012, 0.26, 0.51), (nose.x + 0.012, -0.26, 0.51)
        ).covered(textures.PLATE_M)
    )
    pieces["plate"].append(
        quad((back - 0.02, 0.26, 0.5), (back - 0.02, -0.26, 0.5), (back - 0.02, -0.26, 0.61), (back - 0.02, 0.26, 0.61)).covered(
            textures.PLATE_M
        )
    )
    if body.cargo:
        x0, x1, z0, z1 = body.cargo
        pieces["cargo"].append(boxes((x0, -1.2, z0), (x1, 1.2, z1)))
        pieces["trim"].append(boxes((x0 + 0.1, -0.9, 0.55), (x1 + 0.3, 0.9, z0)))
    elif body.height > 2.5:
        pieces["glass"] = [boxes((nose.x - 0.1, -0.88 * w, 1.15), (nose.x + 0.004, 0.88 * w, 2.45), faces=(1,))]
    return pieces


@lru_cache(maxsize=None)
def vehicle(kind: str) -> Mapping[str, Shape]:
    """The shapes of a kind of BODIES by material: paint, glass, trim, tyre, rim, head, tail, plate, cargo."""
    body = BODIES[kind]
    pieces: dict[str, list[Shape]] = {}
    for source in (_loft(body), _wheels(body), _fittings(body)):
        for name, shapes in source.items():
            pieces.setdefault(name, []).extend(shapes)
    return MappingProxyType({name: join(*shapes) for name, shapes in pieces.items() if shapes})


PAINTS = (
    (0.44, 0.45, 0.46),
    (0.30, 0.31, 0.33),
    (0.12, 0.12, 0.13),
    (0.025, 0.026, 0.03),
    (0.66, 0.65, 0.63),
    (0.30, 0.03, 0.03),
    (0.03, 0.07, 0.22),
    (0.05, 0.12, 0.10),
    (0.35, 0.27, 0.14),
    (0.10, 0.20, 0.33),
    (0.45, 0.16, 0.04),
)
"""Car colours (linear), the common ones first."""
GREYS = ((0.24, 0.24, 0.245), (0.3, 0.3, 0.3), (0.36, 0.355, 0.35))
_SHARES = np.array((0.15, 0.15, 0.11, 0.14, 0.12, 0.08, 0.08, 0.04, 0.03, 0.06, 0.04))


def paint_for(rng: np.random.Generator, grey: bool = False) -> tuple[float, ...]:
    """A car colour (linear); grey: one of those of concrete."""
    colours, shares = (GREYS, None) if grey else (PAINTS, _SHARES)
    colour = colours[int(rng.choice(len(colours), p=shares))]
    return tuple(np.round(np.clip(np.array(colour) * rng.uniform(0.85, 1.15), 0.0, 0.85), 3).tolist())


def vehicle_materials(stage: Stage, paint: tuple[float, ...], lamps: bool) -> dict[str, int]:
    """Materials of a vehicle by the names of `vehicle`. lamps: it drives, so its lamps glow at night."""
    plain = textures.plain()
    return {
        "paint": stage.material(plain, paint, gloss=0.22),
        "glass": stage.material(plain, (0.03, 0.035, 0.04), gloss=0.45, reflectivity=0.05),
        "trim": stage.material(plain, (0.025, 0.025, 0.027), gloss=0.03),
        "tyre": stage.material(textures.tyre(), (0.8, 0.8, 0.8)),
        "rim": stage.material(plain, (0.42, 0.43, 0.44), gloss=0.2),
        "head": stage.material(plain, (0.75, 0.76, 0.78), gloss=0.3, glow=6.0 if lamps else 0.0, reflectivity=0.8),
        "tail": stage.material(plain, (0.4, 0.02, 0.02), gloss=0.2, glow=3.0 if lamps else 0.0, reflectivity=0.8),
        "plate": stage.material(textures.number_plate(), reflectivity=0.95),
        "cargo": stage.material(textures.plain(1), (0.68, 0.68, 0.66), gloss=0.05),
    }


@lru_cache(maxsize=16)  # the paints of cars are many
def vehicle_picture(kind: str, paint: tuple[float, ...], backdrop: tuple[float, float, float]) -> textures.Texture:
    """A kind of vehicle seen from its right side, for murals: sRGB backdrop, linear paint."""
    linear = {"paint": paint, "glass": (0.05, 0.06, 0.07), "rim": (0.4, 0.4, 0.41), "head": (0.6, 0.6, 0.6), "tail": (0.35, 0.02, 0.02)}
    pieces = vehicle(kind)
    colours = [np.tile(255 * np.array(linear.get(n, (0.03, 0.03, 0.03))) ** (1 / 2.2), (len(s.triangles), 1)) for n, s in pieces.items()]
    return textures.painted(np.concatenate([s.triangles for s in pieces.values()]), np.concatenate(colours), backdrop)
