"""Lamp posts, bollards, signs, traffic lights and fences. Each stands at 0; what faces traffic faces -x."""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType
from typing import Mapping

import numpy as np

from lix_core.world import textures
from lix_core.world.street.shapes import Shape, boxes, disc, join, quads, tube

LAMP_HEIGHTS = (6.0, 5.0, 4.2)
FENCES = ("picket", "rail", "iron", "boards", "mesh")


@lru_cache(maxsize=None)
def lamp_post(kind: int) -> Mapping[str, Shape]:
    """A street lamp: an arm that reaches over +y, a short arm, or a lantern on top. Shapes metal and light; see `lamp_head`."""
    h = LAMP_HEIGHTS[kind]
    foot = tube([(0, 0, -0.05), (0, 0, 0.9)], 0.09, 8, caps=False)
    head = lamp_head(kind)
    if kind == 2:
        post = tube([(0, 0, 0.9), (0, 0, h - 0.3)], [0.06, 0.045], 8)
        light = tube([(0, 0, h - 0.3), (0, 0, h + 0.1)], [0.1, 0.17], 6)
        hat = tube([(0, 0, h + 0.1), (0, 0, h + 0.3)], [0.2, 0.03], 6)
        return MappingProxyType({"metal": join(foot, post, hat), "light": light})
    reach = head[1]
    arm = [(0, 0, 0.9), (0, 0, h - 0.8), (0, 0.12 * reach, h - 0.25), (0, 0.5 * reach, h), (0, reach, h + 0.05)]
    post = tube(np.array(arm), [0.07, 0.055, 0.05, 0.045, 0.04], 8)
    box = boxes((-0.14, reach - 0.15, h), (0.14, reach + 0.5, h + 0.12), faces=(0, 1, 2, 3, 4))
    light = boxes((-0.13, reach - 0.1, h - 0.03), (0.13, reach + 0.45, h + 0.01))
    return MappingProxyType({"metal": join(foot, post, box), "light": light})


def lamp_head(kind: int) -> tuple[float, float, float]:
    """Where the light of a `lamp_post` is [m]."""
    return (0.0, (1.6, 0.8, 0.0)[kind], LAMP_HEIGHTS[kind] - (0.0 if kind == 2 else 0.1))


@lru_cache(maxsize=None)
def bollard(kind: int) -> Shape:
    """A bollard about 1 m high."""
    if kind == 0:
        return join(tube([(0, 0, -0.05), (0, 0, 0.95)], [0.06, 0.055], 8), tube([(0, 0, 0.78), (0, 0, 0.86)], 0.07, 8))
    return tube([(0, 0, -0.05), (0, 0, 0.6), (0, 0, 0.95), (0, 0, 1.02)], [0.11, 0.08, 0.1, 0.03], 8)


SIGN_SHAPES = {
    "speed": "disc",
    "no_parking": "disc",
    "no_entry": "disc",
    "ahead": "disc",
    "stop": "octagon",
    "yield": "down",
    "warning": "up",
    "crossing": "square",
    "parking": "square",
    "bus": "square",
    "street": "plate",
    "direction": "board",
}


@lru_cache(maxsize=None)
def sign(kind: str) -> Mapping[str, Shape]:
    """A traffic sign on its post: shapes post, face (towards -x) and back. Its lower edge is 2.1 m up, street name plates 2.4 m."""
    form = SIGN_SHAPES[kind]
    if form in ("disc", "octagon"):
        sides = 20 if form == "disc" else 8
        face = disc(0.32 if form == "disc" else 0.4, sides)
    elif form in ("up", "down"):
        z = -0.4 if form == "up" else 0.4
        corners = np.array([(-0.45, 0, z), (0.45, 0, z), (0, 0, -z)])
        corners = corners if form == "up" else corners[[1, 0, 2]]
        face = Shape(corners[None], corners[None][..., [0, 2]])
    else:
        w, h = {"square": (0.3, 0.3), "plate": (0.45, 0.12), "board": (0.7, 0.4)}[form]
        face = quads(np.array([[(-w, 0, -h), (w, 0, -h), (w, 0, h), (-w, 0, h)]]))
    low = -float(face.triangles[..., 2].min())
    middle = (2.4 if form == "plate" else 2.1) + low
    front = face.covered(textures.SIGN_M).turned(-np.pi / 2).moved(x=-0.05, z=middle)
    back = face.flipped().turned(-np.pi / 2).moved(x=-0.045, z=middle)
    post = tube([(0, 0, -0.05), (0, 0, middle + 0.8 * low)], 0.035, 8)
    return MappingProxyType({"post": post, "face": front, "back": back})


@lru_cache(maxsize=None)
def traffic_light() -> Mapping[str, Shape]:
    """A traffic light: post, head, and its lamps red, amber, green towards -x."""
    post = tube([(0, 0, -0.05), (0, 0, 3.3)], 0.055, 8)
    head = boxes((-0.22, -0.16, 2.4), (-0.06, 0.16, 3.3))
    board = boxes((-0.07, -0.24, 2.32), (-0.055, 0.24, 3.38))
    lamps = {}
    for name, z in (("red", 3.14), ("amber", 2.86), ("green", 2.58)):
        lamps[name] = disc(0.1, 12).turned(-np.pi / 2).moved(x=-0.224, z=z)
    return MappingProxyType({"post": post, "head": join(head, board), **lamps})


def fence(kind: str, length: float) -> Shape:
    """A fence of FENCES along +x from 0, its middle on y = 0."""
    posts = np.linspace(0.05, length - 0.05, 2 + int(length / 2.0))

    def bars(x: np.ndarray, half: float, thick: float, z0: float, z1: float, y: float = 0.0) -> Shape:
        low = np.column_stack([x - half, np.full_like(x, y - thick), np.full_like(x, z0)])
        high = np.column_stack([x + half, np.full_like(x, y + thick), np.full_like(x, z1)])
        return boxes(low, high, faces=(0, 1, 2, 3, 4))

    def rail(z: float, half: float = 0.04, y: float = 0.0, thick: float = 0.02) -> Shape:
        return boxes((0.0, y - thick, z - half), (length, y + thick, z + half))

    if kind == "picket":
        return join(
            bars(np.arange(0.06, length, 0.14), 0.04, 0.01, 0.03, 1.0, -0.035),
            rail(0.3),
            rail(0.78),
            bars(posts, 0.045, 0.045, -0.05, 0.95, 0.05),
        )
    if kind == "rail":
        return join(rail(0.35, 0.06), rail(0.85, 0.06), bars(posts, 0.06, 0.05, -0.05, 1.0, 0.06))
    if kind == "iron":
        return join(
            bars(np.arange(0.06, length, 0.13), 0.01, 0.01, 0.0, 1.15),
            rail(0.12, 0.02),
            rail(1.05, 0.02),
            bars(posts, 0.03, 0.03, -0.05, 1.25),
        )
    if kind == "boards":
        return join(boxes((0.0, -0.015, 0.0), (length, 0.015, 1.75)), bars(posts, 0.05, 0.04, -0.05, 1.8, 0.05))
    wires = [rail(z, 0.006, thick=0.006) for z in np.arange(0.1, 1.5, 0.15)]
    return join(*wires, bars(np.arange(0.1, length, 0.15), 0.006, 0.006, 0.05, 1.45), bars(posts, 0.03, 0.03, -0.05, 1.5))


def garden_wall(length: float, height: float) -> Shape:
    """A wall along +x from 0 with a coping, its middle on y = 0."""
    return join(
        boxes((0.0, -0.11, -0.05), (length, 0.11, height), faces=(0, 1, 2, 3)),
        boxes((-0.02, -0.14, height), (length + 0.02, 0.14, height + 0.07)),
    )
