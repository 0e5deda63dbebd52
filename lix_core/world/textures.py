"""Pictures of surfaces, painted from seeded noise: each tiles, and each is painted once per process.

Every function gives a `Texture`; `variant` is the seed of its noise and of its small differences. Colours are sRGB 0..255 while painting.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Callable, Sequence

import cv2
import numpy as np

from lix_core.world.scene import TEXTURE_SIZE, Texture

N = TEXTURE_SIZE
Colour = tuple[float, float, float]

WINDOW_M, DOOR_M, GARAGE_M, SHOP_M = (1.2, 1.6), (1.15, 2.45), (2.5, 2.2), (4.0, 3.2)
SIGN_M, PLATE_M = (0.7, 0.7), (0.52, 0.11)
"""Width and height of pictures that show one whole thing in one tile [m]."""

SHOP_NAMES = ("BAKERY", "CAFE", "BOOKS", "FLOWERS", "PHARMACY", "PIZZA", "SHOES", "HAIR", "BIKES", "DELI", "OPTIK", "TOYS", "BANK", "TEA")
SIGNS = ("speed", "stop", "yield", "no_entry", "ahead", "crossing", "parking", "warning", "street", "bus", "no_parking", "direction")


def _noise(rng: np.random.Generator, scales: Sequence[int | tuple[int, int]], fade: float = 0.5) -> np.ndarray:
    """(N, N) noise that tiles, mean 0, deviation 1: octaves of `scales` cells a side (or down, across), each weaker by `fade`."""
    total = np.zeros((N, N), np.float32)
    for i, cells in enumerate(scales):
        down, across = (cells, cells) if isinstance(cells, int) else cells
        grid = np.pad(rng.standard_normal((down, across)).astype(np.float32), 2, mode="wrap")
        y, x = N // down, N // across
        wide = cv2.resize(grid, None, fx=x, fy=y, interpolation=cv2.INTER_CUBIC)
        total += fade**i * wide[2 * y : 2 * y + N, 2 * x : 2 * x + N]
    return (total - total.mean()) / max(float(total.std()), 1e-6)


def _base(colour: Colour) -> np.ndarray:
    return np.tile(np.array(colour, np.float32), (N, N, 1))


def _shade(image: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Brighten by a share (N, N) of its own value."""
    return image * (1.0 + amount[..., None])


def _texture(image: np.ndarray, size_m: tuple[float, float]) -> Texture:
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    pixels.flags.writeable = False
    return Texture(pixels, size_m)


def _wrapped(draw: Callable[[np.ndarray], None]) -> np.ndarray:
    """Draw on a 3 x 3 sheet and fold it, so that what crosses an edge comes back at the other."""
    sheet = np.zeros((3 * N, 3 * N), np.uint8)
    draw(sheet)
    return sheet.reshape(3, N, 3, N).max((0, 2)).astype(np.float32) / 255.0


def _masonry(rng: np.random.Generator, columns: int, rows: int, joint: int, offset: bool) -> tuple[np.ndarray, np.ndarray]:
    """(N, N) joint mask 0..1 and a random number of each stone -1..1, in rows shifted by half a stone where offset."""
    y, x = np.mgrid[0:N, 0:N].astype(np.float32)
    row = np.floor(y * rows / N).astype(int)
    shift = (row % 2) * 0.5 * offset
    column_f = x * columns / N + shift
    column = np.floor(column_f).astype(int) % columns
    in_x = (column_f % 1.0) * N / columns
    in_y = y - row * N / rows
    mask = ((in_x < joint) | (in_y < joint)).astype(np.float32)
    return mask, rng.uniform(-1, 1, (rows, columns))[row, column]


def _letters(image: np.ndarray, text: str, middle: tuple[int, int], scale: float, colour: Colour, weight: int) -> None:
    """Write words on an image, in place, around a pixel (x, y)."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, weight)
    ink = np.zeros((N, N), np.uint8)  # OpenCV writes on 8-bit images only
    cv2.putText(ink, text, (middle[0] - width // 2, middle[1] + height // 2), cv2.FONT_HERSHEY_DUPLEX, scale, 255, weight, cv2.LINE_AA)
    share = ink[..., None] / 255.0
    image[:] = image * (1 - share) + np.array(colour, np.float32) * share


@lru_cache(maxsize=None)
def plain(variant: int = 0) -> Texture:
    """Near white with a breath of noise: paint, metal, skin, plastic; coloured by the material's tint."""
    rng = np.random.default_rng([1, variant])
    return _texture(_shade(_base((246, 246, 246)), 0.004 * _noise(rng, (4, 16, 64), 0.7)), (1.0, 1.0))


@lru_cache(maxsize=None)
def asphalt(variant: int = 0) -> Texture:
    """Worn asphalt: grain, patches and cracks."""
    rng = np.random.default_rng([2, variant])
    base = (112, 111, 110) if variant % 2 else (98, 99, 102)
    image = _shade(_base(base), 0.05 * _noise(rng, (4, 8, 16), 0.7) + 0.055 * rng.standard_normal((N, N)))

    def cracks(sheet: np.ndarray) -> None:
        for _ in range(3 + variant % 3):
            start = rng.uniform(N, 2 * N, 2)
            walk = start + np.cumsum(rng.normal(0, 5, (22, 2)) + rng.normal(0, 5, 2), 0)
            cv2.polylines(sheet, [walk.astype(np.int32).reshape(-1, 1, 2)], False, 255, 1, cv2.LINE_AA)

    def patches(sheet: np.ndarray) -> None:
        for _ in range(1 + variant % 2):
            x, y = rng.integers(N, 2 * N, 2)
            w, h = rng.integers(25, 110, 2)
            cv2.rectangle(sheet, (int(x), int(y)), (int(x + w), int(y + h)), 255, -1)

    image = _shade(image, -0.32 * _wrapped(cracks))
    return _texture(_shade(image, (0.1 if variant % 3 else -0.13) * _wrapped(patches)), (7.0, 7.0))


@lru_cache(maxsize=None)
def slabs(variant: int = 0) -> Texture:
    """Paving: square slabs, oblong flags, small setts or red clinker."""
    rng = np.random.default_rng([3, variant])
    colour, columns, rows, offset = (
        ((158, 154, 147), 4, 4, False),
        ((146, 145, 143), 3, 6, True),
        ((128, 124, 119), 14, 16, True),
        ((141, 112, 99), 10, 20, True),
    )[variant % 4]
    mask, stone = _masonry(rng, columns, rows, 2 if columns > 6 else 1, offset)
    image = _shade(_base(colour), 0.055 * stone + 0.035 * _noise(rng, (4, 8, 32)) + 0.03 * rng.standard_normal((N, N)))
    return _texture(_shade(image, -0.3 * mask), (2.4, 2.4))


@lru_cache(maxsize=None)
def kerb_stone(variant: int = 0) -> Texture:
    """Granite or concrete kerb stones, 0.9 m long."""
    rng = np.random.default_rng([4, variant])
    image = _shade(_base(((164, 161, 156), (142, 141, 141))[variant % 2]), 0.05 * _noise(rng, (8, 32)) + 0.06 * rng.standard_normal((N, N)))
    image[:, :2] *= 0.6
    return _texture(image, (0.9, 0.9))


BRICKS = ((138, 74, 58), (158, 96, 72), (172, 143, 106), (116, 70, 60), (189, 171, 142), (122, 104, 94))


@lru_cache(maxsize=None)
def brick(variant: int = 0) -> Texture:
    """Brick in stretcher bond, bricks of 0.225 x 0.075 m; six colours."""
    rng = np.random.default_rng([5, variant])
    mask, stone = _masonry(rng, 8, 24, 2, True)
    hue = np.array(BRICKS[variant % len(BRICKS)], np.float32)
    image = _shade(_base(tuple(hue)), 0.13 * stone + 0.02 * _noise(rng, (4, 8)) + 0.04 * _noise(rng, (64, 128)))
    image[..., 0] += 6 * stone
    mortar = np.array((170, 163, 152), np.float32) if variant % 2 else hue * 0.75 + 25
    image = image * (1 - mask[..., None]) + mortar * mask[..., None]
    return _texture(_shade(image, 0.025 * rng.standard_normal((N, N))), (1.8, 1.8))


@lru_cache(maxsize=None)
def plaster(variant: int = 0) -> Texture:
    """Painted render, near white for the tint to colour, with faint stains that run down."""
    rng = np.random.default_rng([6, variant])
    runs = _noise(rng, ((2, 32), (2, 64)))
    image = _shade(_base((224, 221, 214)), 0.015 * _noise(rng, (4, 8, 16)) + 0.015 * runs + 0.02 * rng.standard_normal((N, N)))
    return _texture(image, (5.0, 5.0))


@lru_cache(maxsize=None)
def concrete(variant: int = 0) -> Texture:
    """Cast concrete panels with joints and tie holes."""
    rng = np.random.default_rng([7, variant])
    image = _shade(_base((150, 149, 146)), 0.035 * _noise(rng, (4, 8, 16, 32), 0.7) + 0.025 * rng.standard_normal((N, N)))
    image[:2] *= 0.72
    image[:, :2] *= 0.72
    for x in (64, 192):
        for y in (64, 192):
            cv2.circle(image, (x, y), 2, (95, 95, 95), -1, cv2.LINE_AA)
    return _texture(image, (2.8, 2.8))


@lru_cache(maxsize=None)
def ashlar(variant: int = 0) -> Texture:
    """Dressed stone blocks, sand or grey."""
    rng = np.random.default_rng([8, variant])
    mask, stone = _masonry(rng, 3, 6, 2, True)
    colour = ((187, 174, 149), (160, 156, 150))[variant % 2]
    image = _shade(_base(colour), 0.06 * stone + 0.02 * _noise(rng, (4, 16, 64)) + 0.02 * rng.standard_normal((N, N)))
    return _texture(_shade(image, -0.25 * mask), (2.1, 2.1))


@lru_cache(maxsize=None)
def boards(variant: int = 0) -> Texture:
    """Wooden boards, near white for the tint: level cladding (even variants) or upright planks (odd)."""
    rng = np.random.default_rng([9, variant])
    step = N // 8
    board = np.repeat(rng.uniform(-0.09, 0.05, 8), step)[:, None]
    grain = 0.035 * _noise(rng, ((128, 4), (128, 16)))
    lap = np.tile(np.linspace(0.04, -0.04, step), 8)[:, None]
    image = _shade(_base((214, 210, 202)), board + grain + lap)
    image.reshape(8, step, N, 3)[:, -3:] *= 0.5
    return _texture(image.transpose(1, 0, 2) if variant % 2 else image, (1.2, 1.2))


@lru_cache(maxsize=None)
def roof_tiles(variant: int = 0) -> Texture:
    """Clay tiles, slates or grey concrete tiles in courses."""
    rng = np.random.default_rng([10, variant])
    colour = ((142, 78, 58), (84, 87, 95), (110, 84, 74), (104, 102, 100))[variant % 4]
    mask, stone = _masonry(rng, 10, 10, 2, variant % 2 == 1)
    course = (np.arange(N) * 10 / N % 1.0)[:, None]
    image = _shade(_base(colour), 0.1 * stone + 0.1 * (course - 0.5) + 0.06 * _noise(rng, (4, 8, 32)))
    return _texture(_shade(image, -0.3 * mask), (2.6, 2.6))


@lru_cache(maxsize=None)
def gravel(variant: int = 0) -> Texture:
    """Flat roofs: bitumen and gravel."""
    rng = np.random.default_rng([11, variant])
    return _texture(_shade(_base((124, 120, 114)), 0.1 * rng.standard_normal((N, N)) + 0.06 * _noise(rng, (4, 8))), (3.0, 3.0))


@lru_cache(maxsize=None)
def grass(variant: int = 0) -> Texture:
    """Mown grass (even variants) or a rough meadow (odd)."""
    rng = np.random.default_rng([12, variant])
    colour = ((92, 112, 54), (112, 112, 62))[variant % 2]
    image = _shade(_base(colour), 0.1 * _noise(rng, (4, 8, 16), 0.8) + 0.14 * _noise(rng, (64, 128), 0.9))
    image[..., 0] += 7 * _noise(rng, (8, 32))
    return _texture(image, (4.0, 4.0))


@lru_cache(maxsize=None)
def leaves(variant: int = 0) -> Texture:
    """Foliage: thousands of small leaves, light over dark."""
    rng = np.random.default_rng([13, variant])
    low, high = np.array(((26, 38, 16), (112, 132, 62)), np.float32)

    def draw(sheet: np.ndarray) -> None:
        for level in np.linspace(70, 255, 5):
            for x, y, angle, size in zip(*rng.uniform(0, 1, (4, 420))):
                spot, axes = (int(N + x * N), int(N + y * N)), (int(5 + 4 * size), 3)
                cv2.ellipse(sheet, spot, axes, angle * 360, 0, 360, int(level * (0.75 + 0.25 * size)), -1)

    light = _wrapped(draw)[..., None]
    image = low + (high - low) * light
    image[..., 0] += 8 * _noise(rng, (8, 16))
    return _texture(image, (2.2, 2.2))


@lru_cache(maxsize=None)
def bark(variant: int = 0) -> Texture:
    """Bark with upright furrows."""
    rng = np.random.default_rng([14, variant])
    furrow = _noise(rng, ((8, 32), (16, 64)))
    image = _shade(_base((94, 80, 66)), 0.2 * furrow + 0.06 * rng.standard_normal((N, N)))
    return _texture(image, (0.8, 1.6))


@lru_cache(maxsize=None)
def tyre() -> Texture:
    rng = np.random.default_rng([15])
    image = _shade(_base((38, 38, 40)), 0.05 * _noise(rng, (16, 64)))
    image[::16] *= 0.7
    return _texture(image, (0.4, 0.4))


@lru_cache(maxsize=None)
def cloth(variant: int = 0) -> Texture:
    """Woven cloth, near white for the tint: plain, striped, checked, mottled."""
    rng = np.random.default_rng([16, variant])
    image = _shade(_base((222, 222, 222)), 0.03 * rng.standard_normal((N, N)) + 0.05 * _noise(rng, (4, 8)))
    if variant % 4 == 1:
        image.reshape(8, 32, N, 3)[:, :12] *= 0.55
    if variant % 4 == 2:
        image.reshape(8, 32, N, 3)[:, :10] *= 0.72
        image.reshape(N, 8, 32, 3)[:, :, :10] *= 0.72
    if variant % 4 == 3:
        image = _shade(image, 0.14 * np.sign(_noise(rng, (16, 32))))
    return _texture(image, (0.6, 0.6))


def _panes(image: np.ndarray, columns: Sequence[int], rows: Sequence[int], bar: int, colour: Colour) -> None:
    """Window bars at these pixel columns and rows."""
    for x in columns:
        image[:, max(x - bar // 2, 0) : x + (bar + 1) // 2] = colour
    for y in rows:
        image[max(y - bar // 2, 0) : y + (bar + 1) // 2] = colour


WINDOW_KINDS = 6


@lru_cache(maxsize=None)
def window(kind: int = 0, variant: int = 0) -> Texture:
    """A whole window in one tile: sash, casement, cross, one pane, three lights, dark office glass; curtains by variant."""
    rng = np.random.default_rng([17, kind, variant])
    fall = np.linspace(1.25, 0.75, N, dtype=np.float32)[:, None]
    slant = np.add.outer(np.arange(N), np.arange(N)) / (2 * N)
    gleam = 0.35 * (np.abs(slant - rng.uniform(0.3, 0.7)) < rng.uniform(0.04, 0.12))
    image = _shade(_base((58, 66, 76)) * fall[..., None], gleam.astype(np.float32) + 0.06 * _noise(rng, (4, 8)))
    if kind != 5 and variant % 3 == 1:
        folds = (0.08 * np.sin(np.arange(N) * rng.uniform(0.25, 0.4)))[None, :].astype(np.float32)
        drape = _shade(_base((176, 170, 160)), np.repeat(folds, N, 0) - 0.25)
        width = int(rng.integers(40, 80))
        image[:, :width], image[:, -width:] = drape[:, :width], drape[:, -width:]
    if kind != 5 and variant % 3 == 2:
        low = int(rng.integers(50, 150))
        image[:low] = _shade(_base((188, 184, 172)), -0.06 * (np.arange(N)[:, None] % 16 < 3) * np.ones((1, N)))[:low]
    white, dark = (226, 224, 218), (74, 76, 80)
    frame, columns, rows, bar, edge = (
        (white, (128,), (128,), 9, 14),
        (white, (128,), (), 16, 16),
        (white, (128,), (80,), 14, 16),
        (dark, (), (), 8, 12),
        (white, (85, 171), (), 12, 14),
        (dark, (128,), (190,), 6, 7),
    )[kind % WINDOW_KINDS]
    _panes(image, columns, rows, bar, frame)
    for side in (image[:edge], image[-edge:], image[:, :edge], image[:, -edge:]):
        side[:] = frame
    return _texture(image, WINDOW_M)


@lru_cache(maxsize=None)
def lit_window(kind: int = 0, variant: int = 0) -> Texture:
    """The same window at night with its light on."""
    rng = np.random.default_rng([18, kind, variant])
    day = window(kind, variant).pixels.astype(np.float32)
    glass = (day.max(-1) < 150)[..., None]
    warm = _shade(_base((255, 205, 132)), 0.1 * _noise(rng, (2, 4, 8)) - 0.12)
    return _texture(np.where(glass, warm, day * (0.55, 0.45, 0.3)), WINDOW_M)


DOOR_COLOURS = ((92, 38, 34), (38, 58, 78), (46, 66, 50), (58, 54, 52), (120, 92, 66), (206, 202, 194))


@lru_cache(maxsize=None)
def door(variant: int = 0) -> Texture:
    """A house door in one tile, with panels, a light over it, a knob."""
    rng = np.random.default_rng([19, variant])
    colour = np.array(DOOR_COLOURS[variant % len(DOOR_COLOURS)], np.float32)
    image = _shade(_base(tuple(colour)), 0.03 * _noise(rng, (4, 16)))
    for x0, x1 in ((34, 116), (140, 222)):
        for y0, y1 in ((84, 152), (168, 236)):
            cv2.rectangle(image, (x0, y0), (x1, y1), tuple((colour * 0.7).tolist()), 4)
    image[14:62, 20:-20] = (70, 78, 86)
    for side in (image[:10], image[:, :12], image[:, -12:], image[62:68]):
        side[:] = (214, 210, 202)
    cv2.circle(image, (216, 162), 7, (180, 160, 90), -1, cv2.LINE_AA)
    return _texture(image, DOOR_M)


@lru_cache(maxsize=None)
def garage(variant: int = 0) -> Texture:
    """A garage or roller door in one tile."""
    colour = ((196, 194, 188), (98, 102, 108), (126, 100, 78))[variant % 3]
    image = _shade(_base(colour), np.where(np.arange(N)[:, None] % 21 < 3, -0.22, 0.0) * np.ones((1, N)))
    return _texture(image, GARAGE_M)


SHOP_COLOURS = ((64, 78, 66), (104, 42, 44), (42, 56, 84), (60, 58, 60), (148, 116, 66), (96, 86, 104), (188, 180, 164))


@lru_cache(maxsize=None)
def shop(variant: int = 0) -> Texture:
    """A shop front in one tile, about 4 x 3.2 m: sign board with a name, display window with goods, stall board, glass door."""
    rng = np.random.default_rng([20, variant])
    colour = np.array(SHOP_COLOURS[variant % len(SHOP_COLOURS)], np.float32)
    image = _shade(_base(tuple(colour)), 0.02 * _noise(rng, (8, 32)))
    image[58:66] *= 0.6
    name = SHOP_NAMES[int(rng.integers(len(SHOP_NAMES)))]
    ink = (236, 230, 214) if colour.mean() < 130 else (60, 48, 44)
    _letters(image, name, (128, 28), 1.15, ink, 2)
    fall = np.linspace(0.8, 1.2, N, dtype=np.float32)[:, None, None]
    inside = np.clip(_shade(_base((66, 66, 66)) * fall, 0.12 * _noise(rng, (4, 8, 16))), 0, 255)
    for x in range(24, 176, 12):
        top = int(rng.integers(130, 190))
        goods = rng.uniform(50, 150) * rng.uniform(0.8, 1.15, 3)
        cv2.rectangle(inside, (x, top), (x + int(rng.integers(5, 12)), 210), tuple(goods.tolist()), -1)
    inside[150:153, 20:176] *= 1.5
    for x0, x1, y0, y1 in ((16, 176, 72, 212), (190, 242, 72, 244)):
        image[y0:y1, x0:x1] = inside[y0:y1, x0:x1]
        cv2.rectangle(image, (x0, y0), (x1, y1), tuple((colour * 0.6 + 20).tolist()), 5)
    cv2.line(image, (96, 72), (96, 212), tuple((colour * 0.6 + 20).tolist()), 4)
    return _texture(image, SHOP_M)


@lru_cache(maxsize=None)
def lit_shop(variant: int = 0) -> Texture:
    """The same shop front at night: bright window and sign."""
    day = shop(variant).pixels.astype(np.float32)
    light = np.full((N, N, 1), 0.18, np.float32)
    light[72:212, 16:176] = light[72:244, 190:242] = 2.3
    light[:58] = 0.9
    return _texture(day * light * (1.0, 0.86, 0.66), SHOP_M)


@lru_cache(maxsize=None)
def marquee(variant: int = 0) -> Texture:
    """Striped awning cloth."""
    colour = ((150, 52, 46), (48, 84, 66), (52, 70, 112), (176, 140, 72))[variant % 4]
    image = _base((222, 216, 202))
    image.reshape(N, 8, 32, 3)[:, :, :16] = colour
    return _texture(image, (1.6, 1.6))


@lru_cache(maxsize=None)
def number_plate() -> Texture:
    image = _base((226, 224, 214))
    _letters(image, "LX 42", (140, 128), 2.0, (30, 30, 30), 10)
    image[:, :26] = (40, 70, 140)
    image = cv2.resize(image[95:161], (N, N), interpolation=cv2.INTER_AREA)
    return _texture(image, PLATE_M)


@lru_cache(maxsize=None)
def sign_face(kind: str, variant: int = 0) -> Texture:
    """The face of a traffic sign in one tile; its outline is the geometry's. kind: one of SIGNS."""
    red, blue, white, black, green = (176, 32, 38), (30, 78, 152), (236, 236, 232), (26, 26, 28), (26, 104, 74)
    image = _base(white).astype(np.uint8)  # OpenCV smooths edges on 8-bit images only
    if kind in ("speed", "no_parking"):
        cv2.circle(image, (128, 128), 128, red, -1, cv2.LINE_AA)
        cv2.circle(image, (128, 128), 96, white if kind == "speed" else blue, -1, cv2.LINE_AA)
        if kind == "speed":
            _letters(image, ("30", "50", "20", "40")[variant % 4], (128, 128), 3.4, black, 12)
        else:
            cv2.line(image, (56, 56), (200, 200), red, 28, cv2.LINE_AA)
    elif kind == "stop":
        image[:] = red
        _letters(image, "STOP", (128, 128), 2.5, white, 10)
    elif kind in ("yield", "warning"):
        image[:] = red
        up = kind == "warning"
        cv2.fillPoly(
            image, [np.array([(128, 60 if up else 205), (52, 214 if up else 46), (204, 214 if up else 46)], np.int32)], white, cv2.LINE_AA
        )
        if up:
            cv2.line(image, (128, 120), (128, 172), black, 16)
            cv2.circle(image, (128, 196), 10, black, -1)
    elif kind == "no_entry":
        image[:] = red
        image[104:152, 36:220] = white
    elif kind == "ahead":
        image[:] = blue
        cv2.arrowedLine(image, (128, 214), (128, 44), white, 28, cv2.LINE_AA, tipLength=0.42)
    elif kind == "crossing":
        image[:] = blue
        cv2.fillPoly(image, [np.array([(128, 30), (28, 222), (228, 222)], np.int32)], white, cv2.LINE_AA)
        cv2.circle(image, (132, 98), 13, black, -1)
        for a, b in (
            ((130, 112), (126, 160)),
            ((126, 160), (104, 206)),
            ((126, 160), (150, 206)),
            ((128, 122), (158, 146)),
            ((128, 122), (104, 150)),
        ):
            cv2.line(image, a, b, black, 13)
    elif kind == "parking":
        image[:] = blue
        _letters(image, "P", (128, 128), 6.0, white, 24)
    elif kind == "bus":
        image[:] = (222, 180, 60)
        cv2.circle(image, (128, 128), 104, green, -1, cv2.LINE_AA)
        _letters(image, "H", (128, 128), 4.6, (222, 180, 60), 20)
    else:
        image[:] = blue if kind == "street" else (green if variant % 2 else white)
        ink = white if image[0, 0].mean() < 200 else black
        for row, y in enumerate((70, 128, 186)):
            cv2.rectangle(image, (30, y - 12), (30 + 90 + 37 * ((row * 7 + variant) % 3), y + 12), ink, -1)
    return _texture(image, SIGN_M)


PAINTED_MARGIN = 0.06
"""Share of a painted picture on each side of the thing it shows."""


def painted(triangles: np.ndarray, colours: np.ndarray, backdrop: Colour) -> Texture:
    """A picture of a thing in one tile, as a painter sees it who looks along +y: triangles (F, 3, 3) [m], colours (F, 3) sRGB.

    The picture is as large as the thing, with PAINTED_MARGIN around it. It is what the ray caster would show of the same triangles on a
    dull day (shade by normal), on a wall of colour `backdrop`.
    """
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    normal = np.cross(b - a, c - a)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    light = np.clip(0.62 + 0.3 * normal @ np.array([0.35, -0.55, 0.76]), 0.25, 1.0)
    shown = (colours * light[:, None]).tolist()
    low, high = triangles.min((0, 1)), triangles.max((0, 1))
    scale = np.array([N, -N]) * (1 - 2 * PAINTED_MARGIN) / (high - low)[[0, 2]]
    flat = (triangles[..., [0, 2]] - low[[0, 2]]) * scale + [PAINTED_MARGIN * N, N * (1 - 0.3 * PAINTED_MARGIN)]
    image = _base(backdrop)
    cv2.ellipse(image, (N // 2, N - 6), (int(N * 0.46), 6), 0, 0, 360, tuple(0.55 * v for v in backdrop), -1, cv2.LINE_AA)
    for i in np.argsort(-triangles[..., 1].mean(1), kind="stable"):
        if normal[i, 1] < 0.0:
            cv2.fillConvexPoly(image, np.rint(flat[i]).astype(np.int32), shown[i])
    width, _, height = (high - low) / (1 - 2 * PAINTED_MARGIN)
    return _texture(image, (float(width), float(height)))
