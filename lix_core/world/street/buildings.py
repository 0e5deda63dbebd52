"""Buildings: walls pierced by recessed windows and doors, roofs, and what sticks out. They stand at 0, their front on y = 0, facing -y."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from lix_core.world import textures
from lix_core.world.street.shapes import BUILDING, Pose, Shape, Stage, boxes, join, quad, quads

RECESS = 0.14
"""Windows and doors lie this far behind the wall [m]."""
LIT_SHARE = 0.4
"""Share of the windows that have a light on at night."""
PLASTERS = (
    (0.86, 0.83, 0.76),
    (0.78, 0.70, 0.55),
    (0.72, 0.60, 0.48),
    (0.62, 0.66, 0.68),
    (0.74, 0.74, 0.72),
    (0.66, 0.50, 0.42),
    (0.60, 0.65, 0.55),
    (0.84, 0.76, 0.66),
    (0.45, 0.47, 0.50),
)
GREY_WALL = (0.42, 0.42, 0.42)


@dataclass(frozen=True)
class Look:
    """Materials and habits of one building. window: size of its windows [m]; bay: their spacing [m].

    lit_glass: of the windows that have a light on at night."""

    wall: int
    base: int
    trim: int
    roof: int
    glass: tuple[int, ...]
    lit_glass: tuple[int, ...]
    door: int
    window: tuple[float, float]
    bay: float
    storey: float
    pitched: bool
    ground: str  # what its ground floor has: house, shop, garage or office
    night: bool


def draw_look(stage: Stage, rng: np.random.Generator, style: str, night: bool, grey: bool) -> Look:
    """A building's look in a style of StreetPlan; grey: of bare concrete."""
    brick_share = {"town": 0.5, "suburb": 0.4, "city": 0.25}[style]
    draw = rng.random()
    tint = tuple(np.round(np.array(PLASTERS[int(rng.integers(len(PLASTERS)))]) * rng.uniform(0.85, 1.1), 3).tolist())
    if grey:
        wall = (
            stage.material(textures.concrete(0), (1.0, 1.0, 1.0)) if rng.random() < 0.5 else stage.material(textures.plaster(0), GREY_WALL)
        )
    elif draw < brick_share:
        wall = stage.material(textures.brick(int(rng.integers(len(textures.BRICKS)))), (rng.choice((0.8, 0.95, 1.1)),) * 3)
    elif style == "city" and draw < 0.6:
        wall = stage.material(textures.concrete(int(rng.integers(2))), tuple(np.round(0.55 + 0.6 * np.array(tint), 3).tolist()))
    elif style == "town" and draw < 0.62:
        wall = stage.material(textures.ashlar(int(rng.integers(2))))
    elif style == "suburb" and draw < 0.55:
        wall = stage.material(textures.boards(0), tint)
    else:
        wall = stage.material(textures.plaster(int(rng.integers(2))), tint)
    office = style == "city" and rng.random() < 0.4
    kind = 5 if office else int(rng.integers(5))
    width, height = (2.1, 1.75) if office else (rng.uniform(0.95, 1.3), rng.uniform(1.35, 1.75))
    glass = tuple(stage.material(textures.window(kind, v), gloss=0.3, reflectivity=0.15) for v in range(3))
    pitched = rng.random() < {"town": 0.75, "suburb": 0.95, "city": 0.1}[style]
    grounds = {"town": ("shop", "house"), "suburb": ("house", "garage"), "city": ("shop", "office")}[style]
    night_glass = tuple(
        stage.material(textures.lit_window(kind, v), gloss=0.2, glow=1.0, reflectivity=0.15) if night else day
        for v, day in enumerate(glass)
    )
    return Look(
        wall=wall,
        base=stage.material(textures.concrete(1), (0.6, 0.6, 0.6)) if rng.random() < 0.5 else wall,
        trim=stage.material(textures.plain(), (rng.choice((0.75, 0.5, 0.2)),) * 3),
        roof=stage.material(textures.roof_tiles(int(rng.integers(4)))) if pitched else stage.material(textures.gravel()),
        glass=glass,
        lit_glass=night_glass,
        door=stage.material(textures.door(int(rng.integers(len(textures.DOOR_COLOURS))))),
        window=(width, height),
        bay=width + rng.uniform(0.9, 1.5),
        storey=rng.uniform(2.85, 3.3),
        pitched=bool(pitched),
        ground=str(rng.choice(grounds)),
        night=night,
    )


# Corners of the faces of a wall cell with a recess: which x and z (0 the cell's from, 1 and 2 the hole's, 3 the cell's to), and 1 for the
# depth of the recess. Four faces of wall around the hole, its four reveals, its pane.
_WALL = np.array(
    [[(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)] for x0, x1, z0, z1 in ((0, 1, 0, 3), (2, 3, 0, 3), (1, 2, 0, 1), (1, 2, 2, 3))]
    + [
        [(1, 0, 1), (1, 1, 1), (1, 1, 2), (1, 0, 2)],
        [(2, 1, 1), (2, 0, 1), (2, 0, 2), (2, 1, 2)],
        [(1, 0, 1), (2, 0, 1), (2, 1, 1), (1, 1, 1)],
        [(1, 1, 2), (2, 1, 2), (2, 0, 2), (1, 0, 2)],
        [(1, 1, 1), (2, 1, 1), (2, 1, 2), (1, 1, 2)],
    ]
)


def pierced(
    cells: np.ndarray, holes: np.ndarray, picture_m: tuple[float, float] = textures.WINDOW_M, depth: float = RECESS
) -> tuple[Shape, Shape]:
    """A wall in the plane y = 0 that faces -y, with a recess in each cell -> wall with reveals, and the panes at their bottoms.

    cells, holes: (N, 4) x from, x to, z from, z to [m]. A picture of size picture_m [m] covers each pane once.
    """
    x = np.stack([cells[:, 0], *holes.T[:2], cells[:, 1]])
    z = np.stack([cells[:, 2], *holes.T[2:], cells[:, 3]])
    corners = np.stack([x[_WALL[..., 0]], np.broadcast_to((depth * _WALL[..., 1])[..., None], (9, 4, x.shape[1])), z[_WALL[..., 2]]], -1)
    corners = corners.transpose(0, 2, 1, 3)
    flat, reveals, panes = corners[:4].reshape(-1, 4, 3), corners[4:8].reshape(-1, 4, 3), corners[8]
    unit = np.array([(0.004, 0.004), (0.996, 0.004), (0.996, 0.996), (0.004, 0.996)])
    return join(quads(flat, flat[..., [0, 2]]), quads(reveals)), quads(panes, np.broadcast_to(unit * picture_m, panes.shape[:2] + (2,)))


def plain_wall(width: float, z0: float, z1: float) -> Shape:
    """A blank wall in the plane y = 0 that faces -y."""
    corners = np.array([[(0.0, 0.0, z0), (width, 0.0, z0), (width, 0.0, z1), (0.0, 0.0, z1)]])
    return quads(corners, corners[..., [0, 2]])


class House:
    """One building under construction: its pieces by material, in its own frame."""

    def __init__(self, stage: Stage, rng: np.random.Generator, look: Look, width: float, depth: float, storeys: int) -> None:
        self.stage, self.rng, self.look = stage, rng, look
        self._pieces: dict[tuple[int, bool], list[Shape]] = {}
        self.width, self.depth, self.storeys = width, depth, storeys
        self.first = look.storey + (0.5 if look.ground in ("shop", "office") else 0.15)
        self.height = self.first + (storeys - 1) * look.storey

    def add(self, shape: Shape, material: int, lit: bool = False) -> None:
        """lit: it glows at night, so that it stays apart by day too, and the order of triangles is the same in every light."""
        self._pieces.setdefault((material, lit), []).append(shape)

    def build(self, pose: Pose, windows: Sequence[bool]) -> None:
        """Put it on the stage. windows: whether the left wall, back wall and right wall have windows."""
        turns = ((-np.pi / 2, 0.0, self.depth), (np.pi, self.width, self.depth), (np.pi / 2, self.width, 0.0))
        self._upper(self.width, lambda s: s, self.rng.random() < 0.5)
        self._ground_floor()
        for pierce, length, (angle, x, y) in zip(windows, (self.depth, self.width, self.depth), turns):

            def side(shape: Shape, angle: float = angle, x: float = x, y: float = y) -> Shape:
                return shape.turned(angle).moved(x, y)

            if pierce:
                self.add(side(plain_wall(length, -0.3, self.first)), self.look.wall)
                self._upper(length, side, False)
            else:
                self.add(side(plain_wall(length, -0.3, self.height)), self.look.wall)
        (self._pitched_roof if self.look.pitched else self._flat_roof)()
        for (material, _), shapes in self._pieces.items():
            self.stage.add(pose(join(*shapes)), BUILDING, material)

    def _panes(self, panes: Shape, pose: Pose) -> None:
        """Give each window its glass, some lit at night."""
        count = len(panes.triangles) // 2
        kinds = self.rng.choice(3, count, p=(0.5, 0.3, 0.2))
        lit = self.rng.random(count) < LIT_SHARE
        for on, materials in ((False, self.look.glass), (True, self.look.lit_glass)):
            for kind, material in enumerate(materials):
                chosen = np.repeat((kinds == kind) & (lit == on), 2)
                if chosen.any():
                    self.add(pose(Shape(panes.triangles[chosen], panes.uv[chosen])), material, on)

    def _upper(self, length: float, pose: Pose, fancy: bool) -> None:
        """Upper storeys of a wall with windows, sills, and on a fancy front balconies."""
        bays = max(int(length / self.look.bay), 1)
        rows = self.storeys - 1
        if rows < 1:
            return
        step, (w, h) = length / bays, self.look.window
        column, row = (v.ravel() for v in np.meshgrid(np.arange(bays), np.arange(rows)))
        z = self.first + row * self.look.storey
        x = (column + 0.5) * step
        w = min(w, 0.85 * step)
        low = z + 0.8
        holes = np.column_stack([x - w / 2, x + w / 2, low, np.minimum(low + h, z + self.look.storey - 0.2)])
        cells = np.column_stack([x - step / 2, x + step / 2, z, z + self.look.storey])
        wall, panes = pierced(cells, holes)
        self.add(pose(wall), self.look.wall)
        self._panes(panes, pose)
        sills = boxes(
            np.column_stack([holes[:, 0] - 0.06, np.full_like(x, -0.08), low - 0.07]),
            np.column_stack([holes[:, 1] + 0.06, np.full_like(x, 0.02), low]),
            faces=(0, 1, 3, 4, 5),
        )
        self.add(pose(sills), self.look.trim)
        if fancy and self.look.ground != "garage":
            self._balconies(x[column % 2 == bays % 2], z[column % 2 == bays % 2], min(step, 2.4))

    def _balconies(self, x: np.ndarray, z: np.ndarray, width: float) -> None:
        if not len(x) or self.storeys < 3:
            return
        out, half = 0.95, 0.48 * width

        def block(x: np.ndarray, z: np.ndarray, low: tuple[float, float, float], high: tuple[float, float, float]) -> Shape:
            at = np.column_stack([x, np.zeros_like(x), z])
            return boxes(at + low, at + high)

        bars = np.linspace(-half, half, 9)
        rails = [block(x + s * half, z, (-0.02, -out, 1.0), (0.02, 0.0, 1.06)) for s in (-1, 1)]
        grille = block((x[:, None] + bars).ravel(), np.repeat(z, len(bars)), (-0.012, -out, 0.12), (0.012, -out + 0.024, 1.0))
        slab = block(x, z, (-half, -out, -0.02), (half, 0.0, 0.12))
        self.add(join(slab, block(x, z, (-half, -out, 1.0), (half, -out + 0.04, 1.06)), *rails, grille), self.look.trim)

    def _ground_floor(self) -> None:
        """Shop fronts, or a door with windows beside it, or a garage."""
        look, rng = self.look, self.rng
        bay = {"shop": 4.2, "office": 3.4}.get(look.ground, look.bay)
        bays = max(int(self.width / bay), 1)
        step = self.width / bays
        x = (np.arange(bays) + 0.5) * step
        kinds = np.full(bays, {"shop": "shop", "office": "window"}.get(look.ground, "window"), object)
        entry = int(rng.integers(bays))
        if look.ground != "shop" or bays > 2:
            kinds[entry] = "door"
        if look.ground == "garage" and bays > 2:
            kinds[(entry + 1 + bays // 2) % bays] = "garage"
        size = {
            "shop": (step - 0.35, 0.0, self.first - 0.35, textures.SHOP_M),
            "door": (min(1.15, 0.8 * step), 0.0, 2.45, textures.DOOR_M),
            "garage": (min(2.5, 0.92 * step), 0.0, 2.2, textures.GARAGE_M),
            "window": (min(look.window[0] * (1.25 if look.ground == "office" else 1.0), 0.85 * step), 0.85, 2.45, textures.WINDOW_M),
        }
        for kind in ("shop", "door", "garage", "window"):
            at = x[kinds == kind]
            if not len(at):
                continue
            w, low, high, picture_m = size[kind]
            level = np.zeros_like(at)
            cells = np.column_stack([at - step / 2, at + step / 2, level - 0.3, level + self.first])
            holes = np.column_stack([at - w / 2, at + w / 2, level + low, level + high])
            wall, panes = pierced(cells, holes, picture_m, RECESS if kind != "door" else 0.25)
            self.add(wall, look.base)
            if kind == "window":
                self._panes(panes, lambda s: s)
            elif kind == "shop":
                for i, (a, b) in enumerate(holes[:, :2]):
                    self._shop(Shape(panes.triangles[2 * i : 2 * i + 2], panes.uv[2 * i : 2 * i + 2]), a, b)
            else:
                material = look.door if kind == "door" else self.stage.material(textures.garage(int(rng.integers(3))))
                self.add(panes, material)
            if kind == "door":
                self.add(boxes((at[0] - w / 2 - 0.15, -0.35, -0.3), (at[0] + w / 2 + 0.15, 0.26, 0.04)), look.trim)

    def _shop(self, pane: Shape, x0: float, x1: float) -> None:
        """One shop front, perhaps with an awning."""
        rng, variant = self.rng, int(self.rng.integers(24))
        lit = rng.random() < 2 * LIT_SHARE
        glows = lit and self.look.night
        texture = textures.lit_shop(variant) if glows else textures.shop(variant)
        self.add(pane, self.stage.material(texture, gloss=0.15, glow=float(glows), reflectivity=0.25), lit)
        if rng.random() < 0.35:
            z, out = self.first - 0.95, 0.9
            cloth = quads(np.array([[(x0, -out, z - 0.35), (x1, -out, z - 0.35), (x1, 0.0, z + 0.2), (x0, 0.0, z + 0.2)]]))
            drop = quads(np.array([[(x0, -out, z - 0.55), (x1, -out, z - 0.55), (x1, -out, z - 0.35), (x0, -out, z - 0.35)]]))
            shape = join(cloth, drop)
            self.add(join(shape, shape.flipped()), self.stage.material(textures.marquee(int(rng.integers(4)))))

    def _flat_roof(self) -> None:
        w, d, h = self.width, self.depth, self.height
        rise = 0.5
        self.add(quad((0, 0, h), (w, 0, h), (w, d, h), (0, d, h)), self.look.roof)
        walls = [(0, 0, w, 0.25), (0, d - 0.25, w, d), (0, 0.25, 0.25, d - 0.25), (w - 0.25, 0.25, w, d - 0.25)]
        low, high = np.array([(a, b, h) for a, b, _, _ in walls]), np.array([(a, b, h + rise) for _, _, a, b in walls])
        self.add(boxes(low, high, faces=range(5)), self.look.wall)
        self.add(boxes((-0.0, -0.12, h + rise - 0.12), (w, 0.27, h + rise + 0.02)), self.look.trim)
        if self.rng.random() < 0.6 and w > 6:
            x = self.rng.uniform(1.0, w - 4.0)
            self.add(boxes((x, 0.45 * d, h), (x + 2.6, 0.45 * d + 2.4, h + 2.2), faces=range(5)), self.look.base)

    def _pitched_roof(self) -> None:
        """A gable roof, its ridge along the street, with eaves, a gutter, chimneys and perhaps dormers."""
        w, d, h, rng = self.width, self.depth, self.height, self.rng
        rise, eave, over = 0.5 * d * rng.uniform(0.6, 0.95), 0.35, 0.12
        slope = rise / (d / 2)
        z_eave, ridge = h - eave * slope, h + rise + 0.14
        front = quad((-over, -eave, z_eave + 0.14), (w + over, -eave, z_eave + 0.14), (w + over, d / 2, ridge), (-over, d / 2, ridge))
        back = quad((w + over, d + eave, z_eave + 0.14), (-over, d + eave, z_eave + 0.14), (-over, d / 2, ridge), (w + over, d / 2, ridge))
        self.add(join(front, back), self.look.roof)
        soffit = quad((-over, d / 2, ridge - 0.14), (w + over, d / 2, ridge - 0.14), (w + over, -eave, z_eave), (-over, -eave, z_eave))
        under = quad((w + over, d / 2, ridge - 0.14), (-over, d / 2, ridge - 0.14), (-over, d + eave, z_eave), (w + over, d + eave, z_eave))
        edge = boxes((-over, -eave - 0.1, z_eave), (w + over, -eave, z_eave + 0.14))
        rims = [
            quads(
                np.array(
                    [
                        [(x, -eave, z_eave), (x, d / 2, ridge - 0.14), (x, d / 2, ridge), (x, -eave, z_eave + 0.14)],
                        [(x, d / 2, ridge - 0.14), (x, d + eave, z_eave), (x, d + eave, z_eave + 0.14), (x, d / 2, ridge)],
                    ]
                )
            )
            for x in (-over, w + over)
        ]
        self.add(join(soffit, under, edge, rims[0].flipped(), rims[1]), self.look.trim)
        gable = np.array([[(0, d, h), (0, 0, h), (0, d / 2, h + rise)], [(w, 0, h), (w, d, h), (w, d / 2, h + rise)]], np.float64)
        self.add(Shape(gable, gable[..., [1, 2]]), self.look.wall)
        for x in rng.uniform(0.5, max(w - 1.2, 0.6), int(rng.integers(0, 3))):
            self.add(boxes((x, d / 2 - 0.35, h + rise - 0.9), (x + 0.7, d / 2 + 0.35, h + rise + 1.0), faces=range(5)), self.look.wall)
        if rise > 2.4 and rng.random() < 0.5:
            self._dormers(h, slope)

    def _dormers(self, h: float, slope: float) -> None:
        """Windows that stand out of the front slope of a roof."""
        count = max(int(self.width / 4.0), 1)
        x = (np.arange(count) + 0.5) * self.width / count
        y0, half, tall = 0.9, 0.75, 1.35
        z0 = h + y0 * slope - 0.15
        y1 = y0 + (tall + 0.3) / slope
        level = np.full_like(x, z0)
        cells = np.column_stack([x - half, x + half, level, level + tall + 0.15])
        wall, panes = pierced(cells, np.column_stack([x - half + 0.12, x + half - 0.12, level + 0.25, level + tall]), depth=0.08)
        self.add(wall.moved(y=y0), self.look.trim)
        self._panes(panes, lambda s: s.moved(y=y0))
        low = np.column_stack([x - half - 0.1, np.full_like(x, y0 - 0.15), level + tall + 0.15])
        self.add(boxes(low, low + [2 * half + 0.2, y1 - y0 + 0.15, 0.12]), self.look.roof)
        cheeks = boxes(
            np.column_stack([x - half, np.full_like(x, y0), level]),
            np.column_stack([x + half, np.full_like(x, y1), level + tall + 0.15]),
            (1, 3),
        )
        self.add(cheeks, self.look.wall)
