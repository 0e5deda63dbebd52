"""Procedural streets: from a seed to a scene with roads, houses, trees, cars and people, at true scale.

What carries which label of `lix_core.labels.STREET` (the grouping of CamVid's 32 classes into eleven):
- sky: no triangle at all; a ray that meets nothing.
- building: houses and all fixed to them (roofs, balconies, awnings, steps), walls, murals.
- pole: lamp posts, posts of signs and traffic lights, bollards. - sign: faces of signs, heads of traffic lights.
- road: carriageways with their markings and parking bays. - pavement: kerbs, footways, paved yards and garden paths.
- tree: all that grows: trees, hedges, bushes, lawns, fields and hills. - fence: fences and railings of wood and iron.
- car: cars, vans, lorries, buses. - pedestrian: people on foot, with bags. - cyclist: rider and bicycle.
"""

from __future__ import annotations

from lix_core.errors import GeometryError
from lix_core.world.scene import Scene
from lix_core.world.street.life import populate
from lix_core.world.street.lots import build_rows
from lix_core.world.street.plan import StreetPlan
from lix_core.world.street.road import lay_ground, lay_land
from lix_core.world.street.shapes import Stage, stream
from lix_core.world.weather import draw_weather

__all__ = ["StreetPlan", "build_street"]


def build_street(seed: int, weather: str = "") -> Scene:
    """Street number `seed`: the same seed and weather give the same bytes. The weather changes the light alone, never the triangles.

    weather: a kind of `weather.WEATHERS`, or "" for any by the seed. `StreetPlan.draw(seed)` says what is in the street.

    Raises:
        GeometryError: a seed below 0, or no such weather.
    """
    if seed < 0:
        raise GeometryError(f"a street's seed is 0 or above, got {seed}")
    air = draw_weather(weather, stream(seed, "weather"))
    plan, stage = StreetPlan.draw(seed), Stage()
    lay_ground(stage, plan)
    lay_land(stage, plan)
    build_rows(stage, plan, air.lamps)
    populate(stage, plan, air.lamps)
    return stage.scene(air, plan.path, plan.bend)
