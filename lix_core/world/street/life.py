"""What stands and moves on the street: lamps, signs, street trees, cars, cyclists, people. Nothing takes another's room."""

from __future__ import annotations

from typing import Mapping

import numpy as np

from lix_core.world import textures
from lix_core.world.street import furniture, people, vehicles
from lix_core.world.street.lots import SETBACKS, plant_tree
from lix_core.world.street.plan import DEPTH, StreetPlan
from lix_core.world.street.shapes import CAR, CYCLIST, PEDESTRIAN, POLE, SIGN, Shape, Stage, stream

CORRIDOR = 1.1
"""Half width of the free way along the path [m]."""


class Places:
    """Who stands where: circles on the ground."""

    def __init__(self) -> None:
        self._taken = np.zeros((0, 3))

    def take(self, x: float, y: float, radius: float, length: float = 0.0, angle: float = 0.0) -> bool:
        """Claim a circle, or a row of them along `length` [m] at `angle`; False, and nothing claimed, where it is not free."""
        steps = np.linspace(-0.5, 0.5, 1 + int(np.ceil(length / max(radius, 0.3)))) if length else np.zeros(1)
        reach = max(length - 2 * radius, 0.0)
        mine = np.column_stack([x + reach * steps * np.cos(angle), y + reach * steps * np.sin(angle), np.full(len(steps), radius)])
        gaps = np.hypot(*(mine[:, None, :2] - self._taken[None, :, :2]).transpose(2, 0, 1)) - mine[:, None, 2] - self._taken[None, :, 2]
        if (gaps < 0).any():
            return False
        self._taken = np.concatenate([self._taken, mine])
        return True


class Life:
    """Puts things on a street, one kind after another."""

    def __init__(self, stage: Stage, plan: StreetPlan, moving_lamps: bool) -> None:
        self.stage, self.plan, self.lamps_on = stage, plan, moving_lamps
        self.places = Places()
        self.kerb_free = [(a - 3.0, b + 3.0) for a, b in plan.crossings] + [(plan.zebra - 1.5, plan.zebra + 5.0)]

    def populate(self) -> None:
        for step in (self._signs, self._lamps, self._parked, self._traffic, self._trees, self._bollards, self._cyclists, self._people):
            step(stream(self.plan.seed, step.__name__))

    def _put(
        self, pieces: Mapping[str, Shape], materials: Mapping[str, int], label: int, x: float, y: float, z: float, angle: float
    ) -> None:
        self.stage.add_all(pieces, materials, label, self.stage.thing(), lambda s: s.turned(angle).moved(x, y, z))

    def _clear(self, x: float, margin: float = 0.0) -> bool:
        """Away from cross streets and the zebra crossing."""
        return all(not a - margin < x < b + margin for a, b in self.kerb_free)

    def _along(self, rng: np.random.Generator, step: float) -> np.ndarray:
        """Places along the street, about `step` apart."""
        x = np.arange(self.plan.start + 4.0 + rng.uniform(0, step), self.plan.end - 4.0, step)
        return x + rng.uniform(-0.12, 0.12, len(x)) * step

    def _metal(self, tint: tuple[float, float, float]) -> int:
        return self.stage.material(textures.plain(), tint, gloss=0.08)

    # Street furniture

    def _signs(self, rng: np.random.Generator) -> None:
        plan, grey = self.plan, self._metal((0.38, 0.39, 0.40))
        wanted = [(plan.zebra - 0.9, -1, "crossing"), (plan.zebra + 4.4, 1, "crossing")]
        lights = rng.random() < 0.5
        for a, b in plan.crossings[1:]:
            if lights and b < plan.end:
                wanted += [(a - 1.3, -1, "light"), (b + 1.3, 1, "light"), (b + 1.3, -1, "street")]
            else:
                wanted += [(a - 2.2, -1, str(rng.choice(("stop", "yield")))), (a - 3.8, 1, "street")]
                wanted += [(b + 2.2, 1, str(rng.choice(("stop", "yield"))))] if b < plan.end else []
        wanted.append((plan.end - 7.0, -1, "direction"))
        free = [k for k in textures.SIGNS if k not in ("stop", "yield", "crossing", "street", "direction")]
        for side in (1, -1):
            wanted += [(x, side, str(rng.choice(free))) for x in self._along(rng, 31.0) if self._clear(x) and rng.random() < 0.7]
        for x, side, kind in wanted:
            y, angle = plan.kerb_line(side) + side * 0.5, 0.0 if side < 0 else np.pi
            if not self.places.take(x, y, 0.3):
                continue
            if kind == "light":
                self._traffic_light(x, y, angle, red=False)
                continue
            pieces = furniture.sign(kind)
            face = self.stage.material(textures.sign_face(kind, int(rng.integers(4))), reflectivity=0.95)
            self._put({"post": pieces["post"]}, {"post": grey}, POLE, x, y, plan.top, angle)
            plate = {"face": pieces["face"], "back": pieces["back"]}
            self._put(plate, {"face": face, "back": grey}, SIGN, x, y, plan.top, angle)

    def _traffic_light(self, x: float, y: float, angle: float, red: bool) -> None:
        pieces = dict(furniture.traffic_light())
        dark = self._metal((0.04, 0.05, 0.045))
        self._put({"post": pieces.pop("post")}, {"post": dark}, POLE, x, y, self.plan.top, angle)
        lit = {"red": red, "amber": False, "green": not red}
        colours = {"red": (0.8, 0.05, 0.04), "amber": (0.7, 0.4, 0.03), "green": (0.05, 0.65, 0.35)}
        materials = {"head": dark}
        for name, colour in colours.items():
            tint = colour if lit[name] else tuple(0.12 * v for v in colour)
            materials[name] = self.stage.material(textures.plain(), tint, glow=3.0 if lit[name] else 0.0)
        self._put(pieces, materials, SIGN, x, y, self.plan.top, angle)

    def _lamps(self, rng: np.random.Generator) -> None:
        plan, kind = self.plan, int(rng.integers(3))
        metal = self._metal(((0.30, 0.31, 0.32), (0.06, 0.07, 0.07), (0.05, 0.09, 0.07))[int(rng.integers(3))])
        light = self.stage.material(textures.plain(), (0.95, 0.9, 0.78), glow=5.0)
        for i, x in enumerate(self._along(rng, rng.uniform(13.0, 17.0))):
            side = 1 if i % 2 else -1
            y = plan.kerb_line(side) + side * 0.45
            if self._clear(x) and self.places.take(x, y, 0.3):
                angle = 0.0 if side < 0 else np.pi
                self._put(furniture.lamp_post(kind), {"metal": metal, "light": light}, POLE, x, y, plan.top, angle)
                _, out, up = furniture.lamp_head(kind)
                self.stage.lamps.append((x, y - side * out, plan.top + up - 0.15))

    def _bollards(self, rng: np.random.Generator) -> None:
        plan, kind = self.plan, int(rng.integers(2))
        metal = self._metal(((0.05, 0.05, 0.05), (0.3, 0.3, 0.3), (0.4, 0.08, 0.06))[int(rng.integers(3))])
        corners = [x for a, b in plan.crossings[1:-1] for x in (a - 3.4, a - 4.9, b + 3.4, b + 4.9)]
        rows = [(x, side) for x in corners for side in (1, -1)] if rng.random() < 0.6 else []
        if rng.random() < 0.6:
            start, side = rng.uniform(0.0, plan.path_length - 20.0), int(rng.choice((-1, 1)))
            rows += [(start + 1.6 * i, side) for i in range(int(rng.integers(5, 14)))]
        for x, side in rows:
            y = plan.kerb_line(side) + side * 0.42
            if self._clear(x, -1.0) and self.places.take(x, y, 0.2):
                self._put({"metal": furniture.bollard(kind)}, {"metal": metal}, POLE, x, y, plan.top, 0.0)

    def _trees(self, rng: np.random.Generator) -> None:
        """Street trees at the kerb, where the pavement is broad enough."""
        plan = self.plan
        kinds = tuple(str(k) for k in rng.choice(("broad", "round", "birch", "bare", "round"), 2))
        for side in (1, -1):
            broad = plan.pavement[0 if side > 0 else 1]
            if broad < 2.6 or rng.random() < 0.25:
                continue
            way = plan.lane / 2 + CORRIDOR + 0.25 if side < 0 else plan.lane + 0.1
            reach = min(broad + SETBACKS[plan.style][0] - 0.95, 0.7 + abs(plan.kerb_line(side)) - way)
            for x in self._along(rng, rng.uniform(8.0, 13.0)):
                y = plan.kerb_line(side) + side * 0.7
                if self._clear(x) and rng.random() < 0.8 and self.places.take(x, y, 0.35):
                    turn = rng.uniform(0, 6.28)
                    plant_tree(self.stage, rng, lambda s, x=x, y=y, turn=turn: s.turned(turn).moved(x, y, plan.top), reach, kinds)

    # Vehicles

    def _vehicle(self, rng: np.random.Generator, kind: str, x: float, y: float, angle: float, moving: bool, grey: bool = False) -> bool:
        body = vehicles.BODIES[kind]
        if not self.places.take(x, y, body.width / 2 + 0.1, body.length + 0.5, angle):
            return False
        materials = vehicles.vehicle_materials(self.stage, vehicles.paint_for(rng, grey), self.lamps_on and moving)
        z = float(min(self.plan.surface(x, y + s * body.width / 2) for s in (-1, 1)))
        self._put(vehicles.vehicle(kind), materials, CAR, x, y, z, angle)
        return True

    def _parked(self, rng: np.random.Generator) -> None:
        plan = self.plan
        kinds, shares = ("hatchback", "saloon", "estate", "suv", "van", "minibus"), (0.34, 0.2, 0.16, 0.18, 0.08, 0.04)
        for side, parked in zip((1, -1), plan.parking):
            share = rng.uniform(0.45, 0.9)
            for x in np.arange(plan.start + 11.0, plan.end - 11.0, 6.0):
                if parked and self._clear(x, 2.2) and rng.random() < share:
                    kind = str(rng.choice(kinds, p=shares))
                    y = plan.kerb_line(side) - side * (rng.uniform(0.15, 0.28) + vehicles.BODIES[kind].width / 2)
                    angle = (0.0 if side < 0 else np.pi) + (np.pi if rng.random() < 0.12 else 0.0) + rng.normal(0, 0.012)
                    self._vehicle(rng, kind, x + rng.uniform(-0.25, 0.25), y, angle, False, plan.grey_on_grey and side < 0)
        for a, b in plan.crossings:
            for side in (1, -1):
                for y in np.arange(abs(plan.front_line(side)) + 6.0, DEPTH - 6.0, 6.5):
                    if rng.random() < 0.4:
                        kind = str(rng.choice(kinds, p=shares))
                        x = a + 0.25 + vehicles.BODIES[kind].width / 2
                        self._vehicle(rng, kind, x, side * y, rng.choice((-1, 1)) * np.pi / 2, False)
                if rng.random() < 0.4:
                    # Waiting to turn into the street; it keeps to its own right.
                    x = a + 0.28 * (b - a) if side > 0 else b - 0.28 * (b - a)
                    self._vehicle(rng, "hatchback", x, side * (abs(plan.kerb_line(side)) + 5.2), -side * np.pi / 2, True)

    def _traffic(self, rng: np.random.Generator) -> None:
        plan = self.plan
        kinds = ("hatchback", "saloon", "estate", "suv", "van", "lorry", "bus")
        shares = (0.28, 0.2, 0.14, 0.16, 0.1, 0.05, 0.07)
        x = rng.uniform(6.0, 34.0)
        while x < plan.end - 8.0:
            kind = str(rng.choice(kinds, p=shares))
            half = vehicles.BODIES[kind].length / 2
            if not plan.zebra - 1.0 - half < x < plan.zebra + 4.5 + half:
                self._vehicle(rng, kind, x, plan.lane / 2 + rng.normal(0, 0.08), np.pi, True)
            x += half + rng.uniform(14.0, 55.0)
        ahead = plan.path_length + rng.uniform(13.0, plan.end - plan.path_length - 6.0)
        self._vehicle(rng, str(rng.choice(kinds[:5])), ahead, -plan.lane / 2, 0.0, True)
        self._vehicle(rng, str(rng.choice(kinds[:5])), rng.uniform(-18.0, -12.0), -plan.lane / 2, 0.0, True)
        for x0, x1 in (plan.crossings[0], plan.crossings[-1]):
            side = int(rng.choice((-1, 1)))
            x = x0 + 0.3 * (x1 - x0) if side > 0 else x1 - 0.3 * (x1 - x0)
            self._vehicle(rng, str(rng.choice(kinds[:5])), x, rng.uniform(-12.0, 12.0), -side * np.pi / 2, True)

    # People

    def _cyclists(self, rng: np.random.Generator) -> None:
        plan = self.plan
        spots = [(x, -(plan.lane / 2 + CORRIDOR + 0.36), 0.0) for x in rng.uniform(8.0, plan.path_length, int(rng.integers(1, 4)))]
        spots += [(x, plan.lane - 0.1, np.pi) for x in rng.uniform(8.0, plan.end - 8.0, int(rng.integers(1, 3)))]
        for x, y, angle in spots:
            if self.places.take(x, y, 0.3, 1.9):
                z = float(plan.surface(x, y))
                self._put(people.cyclist(int(rng.integers(people.POSES))), people.clothes(self.stage, rng), CYCLIST, x, y, z, angle)

    def _person(self, rng: np.random.Generator, x: float, y: float, z: float, angle: float) -> None:
        if self.places.take(x, y, 0.4):
            # The streets of all seeds hang on these six weights, hence coats twice.
            outfit = str(rng.choice((*people.OUTFITS, "coat"), p=(0.28, 0.2, 0.14, 0.2, 0.12, 0.06)))
            pieces = people.pedestrian(outfit, int(rng.integers(people.POSES)))
            self._put(pieces, people.clothes(self.stage, rng), PEDESTRIAN, x, y, z, angle)

    def _people(self, rng: np.random.Generator) -> None:
        plan = self.plan
        count = {"town": 15, "suburb": 6, "city": 18}[plan.style]
        for side in (1, -1):
            low, high = abs(plan.kerb_line(side)) + 0.95, abs(plan.front_line(side)) - 0.6
            for x in rng.uniform(plan.start + 3.0, plan.end - 3.0, int(rng.integers(count // 2, count + 1))):
                if any(a - 1.0 < x < b + 1.0 for a, b in plan.crossings):
                    continue
                y, angle = side * rng.uniform(low, high), rng.choice((0.0, np.pi)) + rng.normal(0, 0.25)
                self._person(rng, x, y, plan.top, angle)
                if rng.random() < 0.25:
                    self._person(rng, x + rng.uniform(-0.2, 0.2), y + rng.choice((-0.8, 0.8)), plan.top, angle)
        for _ in range(int(rng.integers(0, 4))):
            # On the crossing, but not before the camera car.
            x, y = plan.zebra + rng.uniform(0.5, 3.0), rng.uniform(0.7, plan.wide[0] - 0.4)
            self._person(rng, x, y, float(plan.surface(x, y)), rng.choice((-1, 1)) * np.pi / 2)
        for side in (1, -1):
            x, y = plan.zebra + rng.uniform(0.6, 2.9), plan.kerb_line(side) + side * 0.7
            if rng.random() < 0.5:
                self._person(rng, x, y, plan.top, -side * np.pi / 2)
        for a, b in plan.crossings[1:]:
            side = int(rng.choice((-1, 1)))
            if rng.random() < 0.6:
                x, y = rng.uniform(a + 0.5, b - 0.5), side * (abs(plan.kerb_line(side)) + rng.uniform(1.0, 2.0))
                self._person(rng, x, y, plan.gutter, rng.choice((0.0, np.pi)))


def populate(stage: Stage, plan: StreetPlan, night: bool) -> None:
    """Everything that stands or moves on the ground. night: driven cars have their lamps lit."""
    Life(stage, plan, night).populate()
