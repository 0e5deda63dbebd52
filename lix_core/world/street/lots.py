"""Rows of buildings along the streets, their yards and gaps, and what grows behind them."""

from __future__ import annotations

import numpy as np

from lix_core.world import textures
from lix_core.world.street.buildings import PLASTERS, House, draw_look
from lix_core.world.street.furniture import FENCES, fence, garden_wall
from lix_core.world.street.people import OUTFITS, POSES, pedestrian_picture
from lix_core.world.street.plan import DEPTH, StreetPlan
from lix_core.world.street.plants import TREES, VARIANTS, bush, hedge, tree, tree_materials, tree_reach
from lix_core.world.street.shapes import BUILDING, FENCE, PAVEMENT, TREE, Pose, Shape, Stage, quad, quads, stream
from lix_core.world.street.vehicles import paint_for, vehicle_picture

SETBACKS = {"town": (0.0, 0.5), "suburb": (3.2, 6.0), "city": (0.0, 1.5)}
WIDTHS = {"town": (5.5, 10.5), "suburb": (8.0, 12.0), "city": (12.0, 22.0)}
STOREYS = {"town": (2, 5), "suburb": (1, 3), "city": (3, 8)}
GAP_SHARES = {"town": 0.14, "suburb": 1.0, "city": 0.25}
ROW_DEPTH = 11.0


class Row:
    """A row of lots along a street: local x runs along it, y away from the street, y = 0 is the back of the pavement."""

    def __init__(
        self, stage: Stage, plan: StreetPlan, name: str, x: float, y: float, angle: float, night: bool, grey: bool = False
    ) -> None:
        self.stage, self.plan, self.night, self.grey = stage, plan, night, grey
        self.rng = stream(plan.seed, "row", name)
        self.x, self.y, self.angle = x, y, angle
        self.setback = self.rng.uniform(*SETBACKS[plan.style])
        self.border = str(self.rng.choice(("hedge", "wall", *FENCES)))

    def pose(self, x: float = 0.0, y: float = 0.0, turn: float = 0.0) -> Pose:
        """Places a shape of the row's frame in the street."""
        return lambda shape: shape.turned(turn).moved(x, y).turned(self.angle).moved(self.x, self.y, self.plan.top)

    def fill(self, length: float, sides: tuple[bool, bool] = (False, False)) -> None:
        """Build along `length` metres. sides: whether the row's first and last walls face a street, and may carry a mural."""
        rng, style = self.rng, self.plan.style
        murals = 2 if self.plan.murals else 0
        x, first = 0.0, True
        if style != "suburb":
            self._paved(0.0, length, 0.0, max(self.setback, 0.5), self.stage.material(textures.slabs(int(rng.integers(4))), (0.9,) * 3))
        while length - x > 4.5:
            gap = rng.uniform(2.2, 4.0) if style == "suburb" else rng.uniform(5.0, 8.5)
            wants_gap = rng.random() < GAP_SHARES[style] or (murals and not first and rng.random() < 0.4)
            if wants_gap and not first and length - x > gap + 6.0:
                self._gap(x, gap, mural=murals > 0 and gap > 5.4)
                murals -= gap > 5.4
                x += gap
            width = min(rng.uniform(*WIDTHS[style]), length - x)
            if length - x - width < 5.0:
                width = length - x
            self._lot(x, width, (first and sides[0], x + width > length - 0.1 and sides[1]))
            x, first = x + width, False

    def _lot(self, x: float, width: float, corner: tuple[bool, bool]) -> None:
        rng, plan = self.rng, self.plan
        look = draw_look(self.stage, rng, plan.style, self.night, self.grey)
        depth = rng.uniform(8.5, ROW_DEPTH)
        storeys = int(rng.integers(STOREYS[plan.style][0], STOREYS[plan.style][1] + 1))
        inset = 0.0 if plan.style != "suburb" else 0.6
        house = House(self.stage, rng, look, width - 2 * inset, depth, storeys)
        mural = [c and plan.murals and bool(rng.random() < 0.6) for c in corner]
        open_side = plan.style == "suburb"
        house.build(
            self.pose(x + inset, self.setback),
            (not mural[0] and (corner[0] or open_side), open_side, not mural[1] and (corner[1] or open_side)),
        )
        for wanted, turn, at in zip(mural, (-np.pi / 2, np.pi / 2), ((inset, depth), (width - inset, 0.0))):
            if wanted:
                self._mural(self.pose(x + at[0], self.setback + at[1], turn), depth)
        if plan.style == "suburb":
            self._yard(x, width)

    def _yard(self, x: float, width: float) -> None:
        """A garden between pavement and house: a path, a border, bushes and perhaps a tree."""
        rng = self.rng
        paving = self.stage.material(textures.slabs(int(rng.integers(4))), (0.9, 0.9, 0.9))
        gate = rng.uniform(0.3, 0.7) * width
        self._paved(x + gate - 0.6, x + gate + 0.6, 0.0, self.setback, paving)
        self._border(x + 0.1, gate - 0.9)
        self._border(x + gate + 0.8, width - gate - 0.9)
        leaves = self.stage.material(textures.leaves(int(rng.integers(3))), reflectivity=0.45)
        for at in rng.uniform(0.8, width - 0.8, int(rng.integers(0, 4))):
            if abs(at - gate) > 1.6:
                self.stage.add(self.pose(x + at, self.setback - 1.0)(bush(int(rng.integers(6)))), TREE, leaves, self.stage.thing())
        if self.setback > 4.0 and rng.random() < 0.5:
            at = gate + (2.6 if gate < width / 2 else -2.6)
            self.tree(x + at, self.setback / 2, self.setback / 2 - 0.3)

    def _paved(self, x0: float, x1: float, y0: float, y1: float, material: int) -> None:
        # A centimetre above the grass, so that it covers it; cut every 3 m to follow the bend.
        x, z = np.linspace(x0, x1, 2 + int((x1 - x0) / 3.0)), 0.01
        shape = self.pose()(quads(np.array([[(a, y0, z), (b, y0, z), (b, y1, z), (a, y1, z)] for a, b in zip(x, x[1:])])))
        self.stage.add(Shape(shape.triangles, shape.triangles[..., :2]), PAVEMENT, material)

    def _border(self, x: float, length: float, kind: str = "") -> None:
        """A fence, hedge or wall along the pavement."""
        if length < 0.6:
            return
        rng, kind, pose = self.rng, kind or self.border, self.pose(x, 0.3)
        if kind == "hedge":
            leaves = self.stage.material(textures.leaves(1), (0.85, 0.95, 0.8), reflectivity=0.45)
            self.stage.add(pose(hedge(rng, length, rng.uniform(0.9, 1.7), 0.55)), TREE, leaves)
        elif kind == "wall":
            wall = self.stage.material(textures.brick(self.plan.seed % len(textures.BRICKS)))
            self.stage.add(pose(garden_wall(length, rng.uniform(0.6, 1.2))), BUILDING, wall)
        else:
            wooden = kind in ("picket", "rail", "boards")
            tint = (0.82, 0.82, 0.8) if kind == "picket" else (0.32, 0.22, 0.15) if wooden else (0.06, 0.08, 0.07)
            material = self.stage.material(textures.boards(1) if wooden else textures.plain(), tint)
            self.stage.add(pose(fence(kind, length)), FENCE, material)

    def _gap(self, x: float, width: float, mural: bool) -> None:
        """Between two houses: a painted wall, or a fence with trees behind it."""
        rng = self.rng
        if mural:
            tint = PLASTERS[int(rng.integers(len(PLASTERS)))]
            self.stage.add(self.pose(x, 0.3)(garden_wall(width, 2.6)), BUILDING, self.stage.material(textures.plaster(0), tint))
            self._mural(self.pose(x, 0.19), width)
        else:
            self._border(x, width, "" if self.plan.style == "suburb" else str(rng.choice(("boards", "iron", "mesh", "wall"))))
        if width > 4.0:
            self.tree(x + width / 2, self.setback + rng.uniform(3.0, 8.0), width / 2 - 0.3)
        elif self.plan.style == "suburb":
            self.stage.add(
                self.pose(x, self.setback + 2.5)(fence("boards", width)), FENCE, self.stage.material(textures.boards(1), (0.35, 0.27, 0.2))
            )

    def _mural(self, pose: Pose, length: float) -> None:
        """Cars and people painted on a wall as large as life; the wall runs along +x from 0. Label: building, each a thing."""
        rng, z = self.rng, 0.05
        backdrop = tuple(float(v) for v in rng.choice(((196, 190, 176), (170, 172, 172), (188, 168, 140), (150, 160, 168))))
        pictures = [vehicle_picture(str(rng.choice(("hatchback", "saloon", "estate", "suv", "van"))), paint_for(rng), backdrop)]
        pictures += [pedestrian_picture(str(rng.choice(OUTFITS)), int(rng.integers(1, POSES)), backdrop) for _ in range(2)]
        at = 0.25
        for i in rng.permutation(len(pictures)):
            wide, high = pictures[i].size_m
            if at + wide < length - 0.25:
                shape = quad((at, -0.015, z), (at + wide, -0.015, z), (at + wide, -0.015, z + high), (at, -0.015, z + high))
                picture = self.stage.material(pictures[i])
                self.stage.add(pose(shape.covered(pictures[i].size_m)), BUILDING, picture, self.stage.thing())
                at += wide + rng.uniform(0.1, 0.5)

    def tree(self, x: float, y: float, reach: float) -> None:
        """A tree no wider than `reach` from its trunk."""
        rng = self.rng
        plant_tree(self.stage, rng, self.pose(x, y, rng.uniform(0, 6.28)), reach)


def plant_tree(stage: Stage, rng: np.random.Generator, pose: Pose, reach: float, kinds: tuple[str, ...] = TREES) -> bool:
    """Add a tree of a kind that fits `reach` [m] at a size of at least 0.6; False where none does."""
    kind, variant = str(rng.choice(kinds)), int(rng.integers(VARIANTS))
    if reach / tree_reach(kind, variant) < 0.6:
        kind = "tall"
    size = min(reach / tree_reach(kind, variant), rng.uniform(0.85, 1.25))
    if size < 0.6:
        return False
    instance = stage.thing()
    materials = tree_materials(stage, rng, kind)
    scaled = {name: Shape(s.triangles * size, s.uv * size) for name, s in tree(kind, variant).items()}
    stage.add_all(scaled, materials, TREE, instance, pose)
    return True


def build_rows(stage: Stage, plan: StreetPlan, night: bool) -> None:
    """All buildings of the street: along it, up its cross streets, and across its ends."""
    for side, word in ((1, "left"), (-1, "right")):
        front, broad = plan.front_line(side), plan.pavement[0 if side > 0 else 1]
        inner = abs(front) + SETBACKS[plan.style][1] + ROW_DEPTH + 3.0
        for i, (a, b) in enumerate(plan.blocks):
            length = b - a - 2 * broad - 0.6
            x, angle = (a + broad + 0.3, 0.0) if side > 0 else (b - broad - 0.3, np.pi)
            grey = plan.grey_on_grey and side < 0
            Row(stage, plan, f"{word}{i}", x, front, angle, night, grey).fill(length, (True, True))
            for end, x in (("a", a + broad), ("b", b - broad)):
                away = end == "b"
                y = (inner if side > 0 else -DEPTH + 2.0) if away else (DEPTH - 2.0 if side > 0 else -inner)
                Row(stage, plan, f"{word}{i}{end}", x, y, np.pi / 2 if away else -np.pi / 2, night).fill(DEPTH - 2.0 - inner)
            _back_gardens(stage, plan, f"{word}{i}", side, a + broad + 20.0, b - broad - 20.0, inner)
    far, near = plan.end + plan.cross + plan.pavement[0], plan.start - plan.cross - plan.pavement[0]
    Row(stage, plan, "far", far, 58.0, -np.pi / 2, night).fill(116.0)
    Row(stage, plan, "near", near, -58.0, np.pi / 2, night).fill(116.0)


def _back_gardens(stage: Stage, plan: StreetPlan, name: str, side: int, x0: float, x1: float, inner: float) -> None:
    """Trees behind the houses, which close the view through gaps."""
    rng = stream(plan.seed, "gardens", name)
    for x in np.arange(x0, x1, 8.0):
        y = side * rng.uniform(inner + 4.0, inner + 14.0)
        at, turn = x + rng.uniform(-1.5, 1.5), rng.uniform(0, 6.28)
        plant_tree(stage, rng, lambda s, at=at, y=y, turn=turn: s.turned(turn).moved(at, y, plan.top), 3.6)
