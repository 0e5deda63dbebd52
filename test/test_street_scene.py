"""Procedural streets: the same seed gives the same bytes, every class and special case is there, sizes are true, and the way is free."""

import hashlib
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from lix_core.errors import GeometryError
from lix_core.labels import STREET
from lix_core.world import textures
from lix_core.world.scene import Scene
from lix_core.world.street import StreetPlan, build_street
from lix_core.world.street.people import OUTFITS, POSES, cyclist, pedestrian
from lix_core.world.street.plants import TREES, VARIANTS, tree, tree_reach
from lix_core.world.street.vehicles import BODIES, GREYS, vehicle
from lix_core.world.weather import WEATHERS, draw_weather

SEEDS = range(8)
SOME_SEEDS = range(5)
STUFF = ("building", "road", "pavement", "fence")
THINGS = ("pole", "sign", "car", "pedestrian", "cyclist")
MURALS = (0, 3, 4)
LABEL = {name: i for i, name in enumerate(STREET.names)}


@lru_cache(maxsize=None)
def street(seed: int, weather: str = "clear") -> Scene:
    return build_street(seed, weather)


def digest(scene: Scene) -> str:
    arrays = (scene.triangles, scene.uv, scene.label, scene.instance, scene.material, scene.path, scene.lamp_positions)
    state = hashlib.sha256(b"".join(a.tobytes() for a in arrays))
    state.update(b"".join(t.pixels.tobytes() for t in scene.textures))
    state.update(repr((scene.materials, scene.weather)).encode())
    return state.hexdigest()


def things(scene: Scene, name: str) -> list[np.ndarray]:
    """The corners (N, 3) of each instance of a class."""
    chosen = scene.label == LABEL[name]
    order = np.argsort(scene.instance[chosen], kind="stable")
    triangles, instances = scene.triangles[chosen][order], scene.instance[chosen][order]
    starts = np.flatnonzero(np.diff(instances)) + 1
    return [t.reshape(-1, 3) for t in np.split(triangles, starts) if len(t)]


def test_the_same_seed_gives_the_same_bytes_in_this_and_another_process():
    again = "import sys; sys.path.insert(0, 'test'); import test_street_scene as t; print(t.digest(t.build_street(3)))"
    root = Path(__file__).resolve().parent.parent
    out = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, cwd=root, check=True)
    first = digest(build_street(3))
    assert first == digest(build_street(3)) == out.stdout.strip()
    assert first != digest(build_street(4))


def test_the_weather_changes_the_light_alone():
    day, night = street(1), street(1, "night")
    for name in ("triangles", "label", "instance", "path", "lamp_positions"):
        np.testing.assert_array_equal(getattr(day, name), getattr(night, name))
    assert night.weather.lamps and not day.weather.lamps and len(night.lamp_positions) > 8
    assert sum(m.glow > 0 for m in night.materials) > sum(m.glow > 0 for m in day.materials)


def test_every_class_but_the_sky_is_in_most_streets():
    seen = {name: sum(bool((street(s).label == LABEL[name]).any()) for s in SEEDS) for name in STREET.names}
    assert seen.pop("sky") == 0
    assert min(seen.values()) >= 7, seen


@pytest.mark.parametrize("seed", SOME_SEEDS)
def test_a_street_is_finite_and_of_a_size_to_render(seed):
    scene = street(seed)
    assert np.isfinite(scene.triangles).all() and np.isfinite(scene.uv).all()
    assert 60_000 < len(scene.triangles) < 270_000
    sides = np.diff(scene.triangles[:, [0, 1, 2, 0]].astype(np.float64), axis=1)
    areas = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
    assert (areas > 0).mean() > 0.98
    assert scene.path_length >= 120.0


@pytest.mark.parametrize("seed", SOME_SEEDS)
def test_each_instance_has_one_label_and_things_have_one_each(seed):
    scene = street(seed)
    pairs = np.unique(np.stack([scene.instance, scene.label]), axis=1)
    numbers = pairs[0][pairs[0] > 0]
    assert len(numbers) == len(np.unique(numbers))
    np.testing.assert_array_equal(np.sort(numbers), np.arange(1, len(numbers) + 1))
    for name in THINGS:
        assert (scene.instance[scene.label == LABEL[name]] > 0).all(), name
    for name in set(STUFF) - {"building"}:
        assert (scene.instance[scene.label == LABEL[name]] == 0).all(), name


@pytest.mark.parametrize("seed", SOME_SEEDS)
def test_the_countable_things_of_a_wall_are_pictures(seed):
    """Two triangles each, upright, in one plane, of the size of a person or a car."""
    scene = street(seed)
    painted = (scene.label == LABEL["building"]) & (scene.instance > 0)
    for number in np.unique(scene.instance[painted]):
        corners = scene.triangles[scene.instance == number].astype(np.float64).reshape(-1, 3)
        assert len(corners) == 6, number
        width, height = np.linalg.norm(np.ptp(corners[:, :2], axis=0)), np.ptp(corners[:, 2])
        assert 0.2 < width < 8.0 and 1.0 < height < 3.2, (number, width, height)
        flat = np.linalg.svd(corners - corners.mean(0), compute_uv=False)
        assert flat[2] < 1e-4 * flat[0], number
    assert painted.any() == (seed in MURALS)


@pytest.mark.parametrize("seed", (0, 2, 4))
def test_nothing_stands_in_the_way_of_the_camera_car(seed):
    scene = street(seed)
    path = np.concatenate([np.linspace(a, b, 8, endpoint=False) for a, b in zip(scene.path, scene.path[1:])])[:, :2]
    solid = scene.triangles[scene.label != LABEL["road"]].astype(np.float64)
    middle = solid.mean(1)
    reach = np.linalg.norm(solid - middle[:, None], axis=-1).max(1)
    way = np.sqrt(((middle[:, None, :2] - path[None, ::8]) ** 2).sum(-1).min(1))
    steps = np.linspace(0.0, 1.0, 5)
    weights = np.array([(a, b, 1 - a - b) for a in steps for b in steps if a + b <= 1.0])
    points = np.einsum("wk,fkc->fwc", weights, solid[way < reach + 2.0]).reshape(-1, 3)
    points = points[(points[:, 2] > 0.0) & (points[:, 2] < 3.0)]
    points = points[(np.abs(points[:, None, :2] - path[None, ::8]).max(-1) < 3.0).any(1)]
    gaps = np.sqrt(((points[:, None, :2] - path[None]) ** 2).sum(-1).min(1))
    assert gaps.min() > 1.1


@pytest.mark.parametrize("seed", SOME_SEEDS)
def test_things_have_plausible_sizes_and_stand_on_the_ground(seed):
    scene = street(seed)
    for name, long, tall in (
        ("car", (3.4, 12.0), (1.3, 3.3)),
        ("pedestrian", (0.15, 1.9), (1.0, 2.0)),
        ("cyclist", (1.5, 2.0), (1.5, 1.95)),
    ):
        for corners in things(scene, name):
            size = sorted(cv2.minAreaRect(np.ascontiguousarray(corners[:, :2]))[1])
            assert long[0] < size[1] < long[1] and size[0] < 2.9, (name, size)
            height = np.ptp(corners[:, 2])
            assert tall[0] < height < tall[1], (name, height)
            assert -0.12 < corners[:, 2].min() < 0.15, (name, corners[:, 2].min())
    for corners in things(scene, "pole"):
        assert -0.1 < corners[:, 2].min() < 0.15 and 0.8 < np.ptp(corners[:, 2]) < 7.0


@pytest.mark.parametrize("seed", SOME_SEEDS)
def test_nothing_stands_inside_a_car(seed):
    scene = street(seed)
    others = [c[c[:, 2] < 1.3] for name in THINGS for c in things(scene, name)]
    for i, car in enumerate(things(scene, "car")):
        (x, y), (w, h), angle = cv2.minAreaRect(np.ascontiguousarray(car[:, :2]))
        turn = np.deg2rad(angle)
        frame = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        for other in others:
            if len(other) and np.hypot(*(other[0, :2] - (x, y))) < 15 and not np.isin(other[0], car).all():
                inside = (np.abs((other[:, :2] - (x, y)) @ frame) < np.array([w, h]) / 2 - 0.01).all(1)
                assert not inside.any(), (seed, i)


@pytest.mark.parametrize("seed", SOME_SEEDS)
def test_road_and_pavement_face_up_and_a_kerb_parts_them(seed):
    scene, plan = street(seed), StreetPlan.draw(seed)
    a, b, c = scene.triangles.astype(np.float64).transpose(1, 0, 2)
    normals = np.cross(b - a, c - a)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    assert (normals[scene.label == LABEL["road"], 2] > 0.99).all()
    paved = scene.label == LABEL["pavement"]
    level, upright = normals[paved, 2] > 0.99, np.abs(normals[paved, 2]) < 1e-3
    assert (level | upright).all() and upright.any()
    kerb = scene.triangles[paved][level][..., 2].min() - scene.triangles[scene.label == LABEL["road"]][..., 2].min()
    assert 0.1 <= kerb <= 0.16 and kerb == pytest.approx(plan.kerb, abs=1e-4)


@pytest.mark.parametrize("seed", (0, 1, 5))
def test_every_ray_straight_down_meets_the_ground(seed):
    pytest.importorskip("embreex")
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene = street(seed)
    embree = EmbreeScene()
    TriangleMesh(embree, scene.triangles)
    rng = np.random.default_rng(seed)
    around = rng.uniform(-1000, 1000, (4000, 2))
    along = scene.path[rng.integers(len(scene.path), size=20_000), :2] + rng.uniform(-60, 60, (20_000, 2))
    origins = np.column_stack([np.concatenate([around, along]), np.full(24_000, 150.0)]).astype(np.float32)
    hit = embree.run(origins, np.tile(np.array([0, 0, -1], np.float32), (24_000, 1)), output=True)["primID"]
    assert (hit >= 0).all()


def test_the_cases_that_need_geometry_come_as_often_as_stated():
    plans = [StreetPlan.draw(seed) for seed in range(600)]
    for name, share in (("one_surface", 1 / 3), ("murals", 1 / 2), ("grey_on_grey", 1 / 3)):
        assert np.mean([getattr(p, name) for p in plans]) == pytest.approx(share, abs=0.07), name
    assert np.mean([not np.isnan(p.junction) for p in plans]) == pytest.approx(0.8, abs=0.06)
    assert np.mean([p.turn != 0 for p in plans]) == pytest.approx(2 / 3, abs=0.07)
    weathers = [draw_weather("", np.random.default_rng(s)).name for s in range(1000)]
    for name, (share, _) in WEATHERS.items():
        assert weathers.count(name) / 1000 == pytest.approx(share, abs=0.05), name


def test_road_and_pavement_share_one_material_only_where_the_plan_says_so():
    for seed in SEEDS:
        scene = street(seed)
        road, paved = (set(scene.material[scene.label == LABEL[n]].tolist()) for n in ("road", "pavement"))
        assert bool(road & paved) == StreetPlan.draw(seed).one_surface


def test_murals_are_pictures_of_cars_and_people_on_buildings():
    for seed in SEEDS:
        scene = street(seed)
        sizes = {tuple(np.round(t.size_m, 3)) for t in (scene.textures[scene.materials[m].texture] for m in np.unique(scene.material))}
        cars = {
            tuple(np.round(np.ptp(np.concatenate([s.triangles for s in vehicle(k).values()]), (0, 1))[[0, 2]] / 0.88, 3)) for k in BODIES
        }
        painted = sizes & cars
        if not StreetPlan.draw(seed).murals:
            assert not painted
        for size in painted:
            chosen = [i for i, m in enumerate(scene.materials) if tuple(np.round(scene.textures[m.texture].size_m, 3)) == size]
            assert set(scene.label[np.isin(scene.material, chosen)]) == {LABEL["building"]}
    assert any(StreetPlan.draw(seed).murals for seed in SEEDS)


def test_grey_cars_stand_before_grey_walls_where_the_plan_says_so():
    seed = next(s for s in range(100) if StreetPlan.draw(s).grey_on_grey)
    scene = build_street(seed)
    tints = np.array([m.tint for m in scene.materials])
    grey = (np.ptp(tints, 1) < 0.02) & (tints.mean(1) > 0.8 * GREYS[0][0]) & (tints.mean(1) < 1.2 * GREYS[2][0])
    shiny = np.array([m.gloss == 0.22 for m in scene.materials])
    parked = np.flatnonzero(grey & shiny)
    assert len(np.unique(scene.instance[np.isin(scene.material, parked)])) >= 3


def test_prefabricated_figures_stand_on_the_ground_and_are_of_a_size_to_render():
    for kind in BODIES:
        corners = np.concatenate([s.triangles.reshape(-1, 3) for s in vehicle(kind).values()])
        assert corners[:, 2].min() == pytest.approx(0.0, abs=0.02)
        np.testing.assert_allclose(corners[:, 1].min(), -corners[:, 1].max(), atol=1e-9)
    for outfit in OUTFITS:
        for pose in range(POSES):
            corners = np.concatenate([s.triangles.reshape(-1, 3) for s in pedestrian(outfit, pose).values()])
            assert abs(corners[:, 2].min()) < 1e-9
    for pose in range(POSES):
        assert np.concatenate([s.triangles.reshape(-1, 3) for s in cyclist(pose).values()])[:, 2].min() == pytest.approx(0, abs=0.02)
    for kind in TREES:
        for variant in range(VARIANTS):
            count = sum(len(s.triangles) for s in tree(kind, variant).values())
            assert 200 < count < 1400 and 0.8 < tree_reach(kind, variant) < 5.0


@pytest.mark.parametrize("paint", (textures.asphalt, textures.plaster, textures.grass, textures.bark, textures.boards, textures.leaves))
def test_a_texture_goes_on_at_its_edges(paint):
    for variant in (0, 1):
        pixels = paint(variant).pixels.astype(np.float32)
        for axis in (0, 1):
            inner = np.abs(np.diff(pixels, axis=axis)).mean(axis=(1 - axis, 2))
            seam = np.abs(np.take(pixels, 0, axis) - np.take(pixels, -1, axis)).mean()
            assert seam < 1.5 * inner.max() + 1


@pytest.mark.parametrize("name", WEATHERS)
def test_weathers_are_physical(name):
    for seed in range(20):
        air = draw_weather(name, np.random.default_rng(seed))
        assert air.name == name and np.linalg.norm(air.sun) == pytest.approx(1.0)
        colours = np.array([air.sun_light, air.sky_light, air.sky_horizon, air.sky_zenith])
        assert (colours >= 0).all() and (colours < 1.5).all()
        assert (air.sun[2] < 0) == (name == "night") and 0 <= air.fog < 0.05 and 0 <= air.wet <= 1 and 0 <= air.rain <= 1


def test_a_bad_seed_or_weather_is_told():
    with pytest.raises(GeometryError, match="0 or above, got -1"):
        build_street(-1)
    with pytest.raises(GeometryError, match="no weather 'hail'; there is clear"):
        build_street(0, "hail")
