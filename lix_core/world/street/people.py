"""Pedestrians and cyclists: jointed figures of tubes, in mid-step. They face +x, their soles on z = 0."""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType
from typing import Mapping

import numpy as np

from lix_core.world import textures
from lix_core.world.street.shapes import Shape, Stage, ball, boxes, join, quad, tube

OUTFITS = ("trousers", "coat", "skirt", "jacket", "child")
POSES = 6


def _limb(
    start: np.ndarray, angles: tuple[float, float], lengths: tuple[float, float], radii: tuple[float, float, float], out: float = 0.0
):
    """A limb of two bones from `start`; angles from straight down, forward positive [rad]. -> shape, its end."""
    points = [np.asarray(start, np.float64)]
    for angle, length in zip(angles, lengths):
        points.append(points[-1] + length * np.array([np.sin(angle), out, -np.cos(angle)]))
    return tube(points, radii, 7), points[-1]


def _shoe(ankle: np.ndarray, size: float, pitch: float) -> Shape:
    heel = ankle + [-0.05 * size, 0, -0.02 * size]
    toe = heel + 0.23 * size * np.array([np.cos(pitch), 0.0, np.sin(pitch)])
    return tube([heel, toe], [0.055 * size, 0.035 * size], 6, flat=0.8)


def _head(neck: np.ndarray, h: float, long_hair: bool) -> dict[str, list[Shape]]:
    middle = neck + [0.02 * h, 0.0, 0.075 * h]
    hair = [ball(middle + [-0.012 * h, 0, 0.017 * h], (0.055 * h, 0.047 * h, 0.06 * h), 1)]
    if long_hair:
        hair.append(tube([middle + [-0.04 * h, 0, 0.02 * h], middle + [-0.05 * h, 0, -0.11 * h]], [0.045 * h, 0.025 * h], 6))
    skin = [ball(middle, (0.052 * h, 0.043 * h, 0.066 * h), 1), tube([neck - [0, 0, 0.02 * h], middle], 0.03 * h, 6)]
    return {"skin": skin, "hair": hair}


@lru_cache(maxsize=None)
def pedestrian(outfit: str, pose: int) -> Mapping[str, Shape]:
    """A person of OUTFITS in one of POSES: shapes skin, hair, top, legs, shoes, bag."""
    rng = np.random.default_rng([40, OUTFITS.index(outfit), pose])
    child = outfit == "child"
    h = rng.uniform(1.05, 1.4) if child else rng.uniform(1.58, 1.9)
    stride = 0.0 if pose == 0 else rng.uniform(0.28, 0.5)
    swing = stride * np.sin(2 * np.pi * pose / POSES + 0.9)
    hip, shoulder = np.array([0, 0, 0.5 * h]), np.array([0.01 * h, 0, 0.815 * h])
    pieces: dict[str, list[Shape]] = {"skin": [], "hair": [], "top": [], "legs": [], "shoes": []}
    lift = 1.0
    for side in (-1, 1):
        leg = side * swing
        bend = 0.1 + (0.55 if leg < -0.05 else 0.0)
        limb, ankle = _limb(
            hip + [0, side * 0.05 * h, 0.02 * h], (leg, leg - bend), (0.25 * h, 0.235 * h), (0.056 * h, 0.043 * h, 0.03 * h)
        )
        pieces["legs"].append(limb)
        pieces["shoes"].append(_shoe(ankle, h / 1.75, -bend * 0.8 if leg < -0.05 else 0.0))
        lift = min(lift, float(pieces["shoes"][-1].triangles[..., 2].min()))
        arm = -side * swing * 0.9
        start = shoulder + [0, side * 0.1 * h, -0.03 * h]
        limb, hand = _limb(start, (arm, arm + 0.35), (0.165 * h, 0.15 * h), (0.031 * h, 0.029 * h, 0.022 * h), out=side * 0.1)
        pieces["top"].append(limb)
        pieces["skin"].append(ball(hand + [0, 0, -0.02 * h], 0.024 * h, 0))
    waist = [
        hip - [0, 0, 0.03 * h],
        hip + [0, 0, 0.1 * h],
        shoulder - [0, 0, 0.09 * h],
        shoulder - [0, 0, 0.005 * h],
        shoulder + [0, 0, 0.035 * h],
    ]
    pieces["top"].append(tube(waist, np.array([0.06, 0.052, 0.066, 0.06, 0.022]) * h, 10, flat=1.5))
    if outfit in ("coat", "skirt"):
        low = 0.30 * h if outfit == "coat" else 0.27 * h
        name = "top" if outfit == "coat" else "legs"
        hem = [np.array([0, 0, low]), hip + [0, 0, 0.04 * h]]
        pieces[name].append(tube(hem, np.array([0.105, 0.062]) * h, 10, flat=1.15))
    for name, shapes in _head(shoulder + [0.005 * h, 0, 0.04 * h], h, outfit == "skirt" or rng.random() < 0.3).items():
        pieces[name] += shapes
    if outfit == "jacket":
        pieces["bag"] = [boxes(shoulder + [-0.19 * h, -0.085 * h, -0.24 * h], shoulder + [-0.05 * h, 0.085 * h, -0.01 * h])]
    return MappingProxyType({name: join(*shapes).moved(z=-lift) for name, shapes in pieces.items() if shapes})


def _hoop(x: float, radius: float) -> Shape:
    """A bicycle's tyre and spokes around (x, 0, radius)."""
    turn = np.linspace(0.0, 2 * np.pi, 17)
    inner = radius - 0.035
    sides = []
    for a, b in zip(turn, turn[1:]):
        for r0, r1, y0, y1 in ((radius, inner, 0.0, 0.018), (inner, radius, -0.018, 0.0)):
            p = [(x + r * np.cos(t), y, radius + r * np.sin(t)) for t, r, y in ((a, r0, y0), (b, r0, y0), (b, r1, y1), (a, r1, y1))]
            sides.append(quad(*p))
            sides.append(sides[-1].flipped())
    spokes = [
        tube([(x, 0, radius), (x + inner * np.cos(t), 0, radius + inner * np.sin(t))], 0.004, 3, caps=False)
        for t in np.arange(8) * np.pi / 4
    ]
    return join(*sides, *spokes)


@lru_cache(maxsize=None)
def cyclist(pose: int) -> Mapping[str, Shape]:
    """A rider on a bicycle: shapes skin, hair (a helmet for some), top, legs, shoes, frame, tyre."""
    rng = np.random.default_rng([41, pose])
    pieces: dict[str, list[Shape]] = {"skin": [], "hair": [], "top": [], "legs": [], "shoes": [], "frame": [], "tyre": []}
    r, rear, front = 0.34, -0.5, 0.54
    crank, saddle, head = np.array([-0.05, 0, 0.29]), np.array([-0.24, 0, 0.92]), np.array([0.4, 0, 0.82])
    bars = np.array([0.42, 0, 1.02])
    pieces["tyre"] += [_hoop(rear, r), _hoop(front, r)]
    for a, b in ((crank, saddle), (crank, head - [0, 0, 0.08]), (saddle - [0, 0, 0.12], head), (head, (front, 0, r)), (head, bars)):
        pieces["frame"].append(tube([a, b], 0.018, 6))
    for end in (crank, saddle - [0, 0, 0.15]):
        pieces["frame"].append(tube([(rear, 0, r), end], 0.013, 5))
    pieces["frame"].append(tube([bars + [0, -0.27, 0.02], bars, bars + [0, 0.27, 0.02]], 0.014, 5))
    pieces["tyre"].append(tube([saddle + [-0.13, 0, 0.02], saddle + [0.13, 0, 0.01]], [0.07, 0.03], 6))
    phase = 2 * np.pi * pose / POSES
    hip = saddle + [0.02, 0, 0.1]
    for side in (-1, 1):
        pedal = crank + 0.17 * np.array([np.cos(phase + side * np.pi / 2), 0, np.sin(phase + side * np.pi / 2)]) + [0, side * 0.11, 0.06]
        start = hip + [0, side * 0.09, 0]
        knee = _joint(start, pedal, 0.44, 0.45, bend=1.0)
        pieces["legs"].append(tube([start, knee, pedal], [0.085, 0.06, 0.045], 7))
        pieces["shoes"].append(_shoe(pedal, 1.0, 0.0))
    shoulder = hip + [0.26 + 0.08 * rng.random(), 0, 0.46]
    pieces["top"].append(
        tube([hip - [0, 0, 0.05], (hip + shoulder) / 2, shoulder, shoulder + [0.03, 0, 0.06]], [0.11, 0.105, 0.1, 0.04], 9, flat=1.5)
    )
    for side in (-1, 1):
        start, grip = shoulder + [0.02, side * 0.18, -0.02], bars + [0, side * 0.24, 0.04]
        pieces["top"].append(tube([start, _joint(start, grip, 0.3, 0.3, bend=-1.0), grip], [0.055, 0.042, 0.034], 7))
        pieces["skin"].append(ball(grip, 0.045, 0))
    for name, shapes in _head(shoulder + [0.06, 0, 0.06], 1.75, False).items():
        pieces[name] += shapes
    return MappingProxyType({name: join(*shapes) for name, shapes in pieces.items()})


def _joint(a: np.ndarray, b: np.ndarray, first: float, second: float, bend: float) -> np.ndarray:
    """Knee or elbow between two ends of a limb, forward for bend 1, back and down for -1."""
    gap = np.linalg.norm(b - a)
    along = (b - a) / gap
    share = (first**2 - second**2 + gap**2) / (2 * gap)
    rise = np.sqrt(max(first**2 - share**2, 0.0))
    across = np.cross([0.0, 1.0, 0.0], along)
    return a + share * along + bend * rise * across * (-1.0 if across[0] < 0 else 1.0)


SKINS = ((0.62, 0.40, 0.29), (0.50, 0.31, 0.21), (0.28, 0.16, 0.10), (0.70, 0.48, 0.37))
HAIRS = ((0.04, 0.03, 0.025), (0.12, 0.07, 0.04), (0.35, 0.24, 0.12), (0.4, 0.4, 0.4))
CLOTHES = (
    (0.04, 0.05, 0.09),
    (0.03, 0.03, 0.035),
    (0.16, 0.16, 0.17),
    (0.42, 0.40, 0.36),
    (0.30, 0.05, 0.05),
    (0.08, 0.14, 0.28),
    (0.10, 0.16, 0.09),
    (0.40, 0.30, 0.16),
    (0.60, 0.58, 0.55),
    (0.45, 0.33, 0.05),
    (0.26, 0.14, 0.22),
    (0.55, 0.22, 0.08),
)


def clothes(stage: Stage, rng: np.random.Generator) -> dict[str, int]:
    """Materials of a person by the names of `pedestrian` and `cyclist`."""
    plain = textures.plain()

    def pick(colours: tuple) -> tuple[float, ...]:
        return tuple(np.round(np.array(colours[int(rng.integers(len(colours)))]) * rng.uniform(0.8, 1.2), 3).tolist())

    pattern = int(rng.choice(4, p=(0.7, 0.12, 0.12, 0.06)))
    return {
        "skin": stage.material(plain, pick(SKINS)),
        "hair": stage.material(plain, pick(HAIRS)),
        "top": stage.material(textures.cloth(pattern), pick(CLOTHES)),
        "legs": stage.material(textures.cloth(0), pick(CLOTHES[:6])),
        "shoes": stage.material(plain, (0.05, 0.045, 0.04) if rng.random() < 0.6 else (0.5, 0.5, 0.5)),
        "bag": stage.material(textures.cloth(0), pick(CLOTHES)),
        "frame": stage.material(plain, pick(CLOTHES), gloss=0.2),
        "tyre": stage.material(textures.tyre()),
    }


@lru_cache(maxsize=None)
def pedestrian_picture(outfit: str, pose: int, backdrop: tuple[float, float, float]) -> textures.Texture:
    """A person seen from the side, for murals: sRGB backdrop."""
    rng = np.random.default_rng([42, OUTFITS.index(outfit), pose])
    pieces = pedestrian(outfit, pose)
    linear = {"skin": SKINS[0], "hair": HAIRS[1], "shoes": (0.05, 0.045, 0.04), "bag": CLOTHES[7]}
    linear |= {"top": CLOTHES[int(rng.integers(4, 12))], "legs": CLOTHES[int(rng.integers(0, 3))]}
    colours = [np.tile(255 * np.array(linear[n]) ** (1 / 2.2), (len(s.triangles), 1)) for n, s in pieces.items()]
    return textures.painted(np.concatenate([s.triangles for s in pieces.values()]), np.concatenate(colours), backdrop)
