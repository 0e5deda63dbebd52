"""The world's ray caster and sensors against scenes whose answers are known by formula."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

trimesh = pytest.importorskip("trimesh", reason="the extra `test` is not installed")
pytest.importorskip("embreex", reason="the extra `sim` is not installed")

from lix_core.camera import Camera
from lix_core.errors import GeometryError
from lix_core.geometry.lidar import project_cloud
from lix_core.labels import STREET
from lix_core.world import drive as world_drive
from lix_core.world.drive import CAR_FROM_OPTICAL, Drive, Rig
from lix_core.world.render import MIP_LEVELS, Atlas, Renderer
from lix_core.world.scene import Material, Part, Scene, Texture, Weather
from lix_core.world.sensors import LEAST_SIGNAL, Lidar, develop, exposure_of

CAMERA = Camera.pinhole(160, 96, 120.0)
HEIGHT_M = 1.5
NOON = Weather("noon", (0, 0, 1), (0.7, 0.7, 0.7), (0.3, 0.3, 0.3), (0.5, 0.6, 0.7), (0.2, 0.3, 0.6))
ROAD, CAR, SIGN, SKY = (STREET.id_of(name) for name in ("road", "car", "sign", "sky"))
WHITE, RED, GREY = range(3)
ARRAYS = ("rgb", "right", "depth", "normals", "labels", "instances", "cloud", "world_from_camera")
PATH = np.array([[0.0, 0, 0], [100.0, 0, 0]])


def at_height(height: float = HEIGHT_M) -> np.ndarray:
    """world_from_camera of a camera above the origin that looks along x."""
    pose = CAR_FROM_OPTICAL.copy()
    pose[2, 3] = height
    return pose


def ground() -> Part:
    corners = np.array([[-500, -500, 0], [500, -500, 0], [500, 500, 0], [-500, 500, 0]], np.float32)
    return Part(corners[[[0, 1, 2], [0, 2, 3]]], ROAD, WHITE)


def part(mesh: trimesh.Trimesh, label: int, material: int = RED, instance: int = 0) -> Part:
    return Part(mesh.triangles.astype(np.float32), label, material, instance=instance)


def box(size: tuple[float, float, float], centre: tuple[float, float, float], **kwargs: int) -> Part:
    mesh = trimesh.creation.box(size)
    mesh.apply_translation(centre)
    return part(mesh, kwargs.pop("label", CAR), **kwargs)


def scene_of(*parts: Part, weather: Weather = NOON) -> Scene:
    plain = Texture(np.full((256, 256, 3), 255, np.uint8), (1.0, 1.0))
    materials = (Material(0, (0.8, 0.8, 0.8)), Material(0, (0.8, 0.05, 0.05)), Material(0, (0.3, 0.3, 0.3)))
    return Scene.of(parts, materials, [plain], weather, PATH)


def angle_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip(np.sum(a * b, axis=-1), -1, 1)))


# ---- truth


def test_the_ground_has_the_depth_of_its_formula_up_to_the_horizon():
    view = Renderer(scene_of(ground())).view(CAMERA, at_height())
    rows = np.arange(CAMERA.height)
    below = rows - CAMERA.cy > 1
    expected = HEIGHT_M * CAMERA.fy / (rows[below] - CAMERA.cy)
    assert np.allclose(view.depth[below], expected[:, None], rtol=2e-6)
    assert np.isnan(view.depth[rows < CAMERA.cy]).all() and (view.labels[rows < CAMERA.cy] == SKY).all()
    assert (view.labels[below] == ROAD).all()
    assert np.allclose(view.normals[below], [0, -1, 0], atol=1e-6) and np.isnan(view.normals[rows < CAMERA.cy]).all()


def test_a_box_has_exact_faces_a_label_and_an_instance():
    view = Renderer(scene_of(ground(), box((4, 2, 3), (12, 0, 1.5), instance=7))).view(CAMERA, at_height())
    face = view.instances == 7
    assert np.allclose(view.depth[face], 10.0, rtol=1e-6), "the front of a box 4 m deep around x = 12 m"
    assert np.allclose(view.normals[face], [0, 0, -1], atol=1e-6)
    assert (view.labels[face] == CAR).all() and (view.labels == CAR).sum() == face.sum()
    v, u = np.nonzero(face)
    # 2 m wide at 10 m: pixels whose centres lie within 12 pixels of the principal point.
    assert u.min() == np.ceil(CAMERA.cx - 12) and u.max() == np.floor(CAMERA.cx + 12)


@settings(max_examples=20)
@given(yaw=st.floats(-1.2, 1.2), pitch=st.floats(-1.0, 1.0), distance=st.floats(3, 60))
def test_depth_and_normals_of_a_slanted_plane_agree_with_the_plane(yaw, pitch, distance):
    turn = trimesh.transformations.euler_matrix(0.0, pitch, yaw)
    corners = np.array([[0, -400, -400], [0, 400, -400], [0, 400, 400], [0, -400, 400]]) @ turn[:3, :3].T + [distance, 0, HEIGHT_M]
    wall = Part(corners.astype(np.float32)[[[0, 1, 2], [0, 2, 3]]], SIGN, WHITE)
    view = Renderer(scene_of(wall)).view(CAMERA, at_height())
    normal = CAR_FROM_OPTICAL[:3, :3].T @ turn[:3, 0]
    normal = -np.sign(normal[2]) * normal
    depth = (normal[2] * distance) / (CAMERA.rays @ normal)
    seen = np.isfinite(view.depth) & (depth > 0) & (depth < 200)
    assert seen.any()
    assert np.allclose(view.depth[seen], depth[seen], rtol=1e-4)
    assert angle_deg(view.normals[seen], normal).max() < 0.05


def test_a_sphere_of_fine_triangles_has_the_sphere_s_depth_and_normals():
    centre, radius = np.array([0.0, 0.0, 12.0]), 2.0
    ball = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    ball.apply_translation([centre[2], 0, HEIGHT_M])
    view = Renderer(scene_of(part(ball, SIGN))).view(CAMERA, at_height())
    rays = CAMERA.rays.astype(np.float64)
    a, b = np.sum(rays * rays, -1), rays @ centre
    discriminant = b * b - a * (centre @ centre - radius**2)
    inside = discriminant > 0.01 * a * radius**2  # a polygon's outline lies inside the sphere's
    depth = (b - np.sqrt(np.maximum(discriminant, 0))) / a
    normals = (rays * depth[..., None] - centre) / radius
    assert (view.labels[inside] == SIGN).all() and (view.labels[discriminant < 0] == SKY).all()
    assert np.abs(view.depth - depth)[inside].max() < 0.015
    assert angle_deg(view.normals, normals)[inside].mean() < 1.0
    assert (np.sum(view.normals * rays, -1)[inside] < 0).all(), "normals face the camera"


def test_the_right_camera_sees_a_wall_shifted_by_its_disparity():
    renderer, rig = Renderer(scene_of(ground(), box((1, 3, 2.5), (16.5, 0.4, 1.3)))), Rig(CAMERA, baseline=0.4, height=HEIGHT_M)
    pose = at_height()
    left = renderer.view(rig.camera, pose)
    pose[:3, 3] += pose[:3, 0] * rig.baseline
    right = renderer.view(rig.right_camera, pose)
    disparity = rig.camera.fx * rig.baseline / 16.0
    assert disparity == 3.0
    assert np.array_equal(left.labels[:, 3:] == CAR, right.labels[:, :-3] == CAR) and (left.labels == CAR).sum() > 200
    assert rig.right_camera.baseline == pytest.approx(0.4)


def test_depth_unprojects_onto_the_road_it_was_rendered_from():
    """Labels, depth and pose agree: every road pixel's point has height 0 in the world."""
    pose = at_height(2.0)
    turn = trimesh.transformations.rotation_matrix(0.3, [0, 0, 1]) @ trimesh.transformations.rotation_matrix(0.1, [0, 1, 0])
    pose = turn @ pose
    view = Renderer(scene_of(ground(), box((2, 2, 2), (9, 3, 1)))).view(CAMERA, pose)
    points = CAMERA.backproject(view.depth) @ pose[:3, :3].T + pose[:3, 3]
    near = (view.labels == ROAD) & (view.depth < 80)
    assert near.sum() > 1000 and np.abs(points[near][:, 2]).max() < 1e-3
    normals = view.normals @ pose[:3, :3].T
    assert np.allclose(normals[near], [0, 0, 1], atol=1e-5)
    on_box = points[view.labels == CAR]
    inside = np.abs(on_box - [9, 3, 1]).max(axis=1)
    assert np.allclose(inside, 1.0, atol=1e-3), "points of the box lie on its surface"


# ---- light


def test_a_roof_throws_a_shadow_on_the_road():
    roof = box((4, 40, 0.2), (12, 0, 6), label=SIGN)
    view = Renderer(scene_of(ground(), roof)).view(CAMERA, at_height())
    x = HEIGHT_M * CAMERA.fy / (np.arange(CAMERA.height) - CAMERA.cy)
    middle = view.radiance[:, CAMERA.width // 2].mean(axis=-1)
    shaded = middle[(x > 10.5) & (x < 13.5)].mean()
    lit = middle[((x > 4) & (x < 9)) | ((x > 15) & (x < 30))].mean()
    assert shaded < 0.45 * lit and lit == pytest.approx(0.8, rel=0.05), "sun and sky on a surface of albedo 0.8"


def test_fog_takes_contrast_exponentially_with_distance():
    weather = dataclasses.replace(NOON, fog=0.03)
    wall = box((1, 60, 60), (40.5, 0, 0), label=SIGN, material=GREY)
    clear, foggy = (Renderer(scene_of(wall, weather=w)).view(CAMERA, at_height()) for w in (NOON, weather))
    v, u = CAMERA.height // 2, CAMERA.width // 2
    seen = np.exp(-0.03 * 40.0)
    expected = clear.radiance[v, u] * seen + np.array(NOON.sky_horizon) * (1 - seen)
    assert np.allclose(foggy.radiance[v, u], expected, rtol=0.02)
    assert np.array_equal(clear.depth, foggy.depth, equal_nan=True), "weather changes no truth"


def test_at_night_lamps_and_headlights_light_the_road():
    night = Weather("night", (0, 0, -1), (0, 0, 0), (0.01, 0.01, 0.02), (0.01, 0.01, 0.02), (0, 0, 0.01), lamps=True)
    scene = dataclasses.replace(scene_of(ground(), weather=night), lamp_positions=np.array([[30.0, 0.0, 6.0]]))
    view = Renderer(scene).view(CAMERA, at_height())
    x = HEIGHT_M * CAMERA.fy / (np.arange(CAMERA.height) - CAMERA.cy)
    middle = view.radiance[:, CAMERA.width // 2].mean(axis=-1)
    dark = Renderer(dataclasses.replace(scene, weather=dataclasses.replace(night, lamps=False))).view(CAMERA, at_height())
    assert dark.radiance[-10:].max() < 0.02
    assert middle[(x > 4) & (x < 10)].mean() > 0.1, "headlights"
    assert middle[(x > 27) & (x < 33)].mean() > 1.5 * middle[(x > 17) & (x < 22)].mean(), "the lamp's pool of light"


def test_the_same_view_twice_is_the_same_to_the_bit():
    renderer = Renderer(scene_of(ground(), box((2, 2, 2), (9, 1, 1))))
    first, second = (renderer.view(CAMERA, at_height()) for _ in range(2))
    assert np.array_equal(first.radiance, second.radiance)


def test_textures_are_looked_up_as_by_hand():
    rng = np.random.default_rng(0)
    textures = [Texture(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8), (1.0, 1.0)) for _ in range(3)]
    atlas = Atlas(textures)
    s, t = rng.uniform(-3, 3, (2, 500)).astype(np.float32)
    which = rng.integers(0, 3, 500)
    found = atlas.sample(s, t, atlas.column[which], atlas.row[which], np.zeros(500, np.float32))
    x, y = (s % 1) * 256 - 0.5, (1 - t % 1) * 256 - 0.5
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    texel = [[textures[w].pixels for w in which]]
    pixel = lambda dy, dx: np.array([p[(j + dy) % 256, (i + dx) % 256] for p, j, i in zip(texel[0], y0, x0)], float)  # noqa: E731
    bilinear = (pixel(0, 0) * (1 - fx) + pixel(0, 1) * fx) * (1 - fy) + (pixel(1, 0) * (1 - fx) + pixel(1, 1) * fx) * fy
    assert np.abs(found.T - (bilinear / 255) ** 2.2).max() < 0.05  # OpenCV interpolates in steps of 1/32 pixel
    coarse = atlas.sample(s, t, atlas.column[which], atlas.row[which], np.full(500, 99, np.float32))
    assert np.ptp(coarse) < 0.2 < np.ptp(found), f"level {MIP_LEVELS} is nearly the texture's mean"


# ---- sensors


def test_a_lidar_without_noise_measures_the_box_and_the_ground():
    lidar = Lidar(rings=32, columns=720, noise=0.0, dropout=0.0)
    renderer = Renderer(scene_of(ground(), box((4, 8, 3), (12, 0, 1.5))))
    pose = np.eye(4)
    pose[2, 3] = 1.73
    cloud = lidar.scan(renderer, pose, np.random.default_rng(0))
    world = cloud[:, :3] + [0, 0, 1.73]
    front = (np.abs(world[:, 0] - 10) < 1e-3) & (np.abs(world[:, 1]) < 4.001)
    on_ground = np.abs(world[:, 2]) < 1e-3
    sides = np.abs(np.abs(world[:, 1]) - 4) < 1e-3
    assert front.sum() > 100 and on_ground.sum() > 5000 and (front | on_ground | sides).all()
    assert cloud.dtype == np.float32 and set(cloud[:, 4]) <= set(range(32))
    elevation = np.degrees(np.arctan2(cloud[:, 2], np.hypot(cloud[:, 0], cloud[:, 1])))
    assert np.allclose(elevation, np.linspace(-24.8, 2.0, 32)[cloud[:, 4].astype(int)], atol=1e-3)


def test_range_noise_and_dropout_are_those_asked_for():
    renderer = Renderer(scene_of(box((1, 30, 30), (8.5, 0, 0), material=WHITE)))
    quiet, noisy = Lidar(columns=512, noise=0.0, dropout=0.0), Lidar(columns=512, noise=0.05, dropout=0.25)
    clean = quiet.scan(renderer, np.eye(4), np.random.default_rng(1))
    cloud = noisy.scan(renderer, np.eye(4), np.random.default_rng(1))
    assert len(cloud) / len(clean) == pytest.approx(0.75, abs=0.03)
    error = np.linalg.norm(cloud[:, :3], axis=1) * (cloud[:, 0] / np.linalg.norm(cloud[:, :3], axis=1))
    along = (error - 8.0) / (cloud[:, 0] / np.linalg.norm(cloud[:, :3], axis=1))
    assert along.std() == pytest.approx(0.05, rel=0.1) and abs(along.mean()) < 0.005


def test_a_lidar_turns_clockwise_from_behind():
    level = Lidar(rings=1, columns=4, lowest=0.0, highest=0.0).directions
    np.testing.assert_allclose(level, [[-1, 0, 0], [0, 1, 0], [1, 0, 0], [0, -1, 0]], atol=1e-6)
    ramps = Lidar(rings=3, columns=2, lowest=-30.0, highest=30.0).directions.reshape(3, 2, 3)
    np.testing.assert_allclose(ramps[:, 1], [[0.75**0.5, 0, -0.5], [1, 0, 0], [0.75**0.5, 0, 0.5]], atol=1e-6)


def test_fog_takes_from_an_echo_on_both_ways():
    """So much that the signal of a wall is the least that is heard, of which half the beams hear it."""
    distance, reflectivity, lidar = 60.0, 0.5, Lidar(noise=0.0, dropout=0.0, reach=120.0)
    clear = reflectivity * (lidar.reach / distance) ** 2
    foggy = dataclasses.replace(NOON, rain=0.0, fog=np.log(clear / LEAST_SIGNAL) / (2 * distance))
    wall = lambda pose, beams: (np.full(len(beams), distance), np.full(len(beams), reflectivity))  # noqa: E731
    cloud = lidar.scan(SimpleNamespace(echoes=wall, scene=SimpleNamespace(weather=foggy)), np.eye(4), np.random.default_rng(0))
    assert len(cloud) / len(lidar.directions) == pytest.approx(0.5, abs=0.02)


def test_far_and_dark_surfaces_send_no_echo():
    black = Scene.of(
        [box((1, 90, 90), (100.5, 0, 0), material=0)],
        [Material(0, reflectivity=0.02)],
        [Texture(np.full((256, 256, 3), 255, np.uint8), (1, 1))],
        NOON,
        PATH,
    )
    bright = dataclasses.replace(black, materials=(Material(0, reflectivity=0.9),))
    lidar = Lidar(columns=512)
    counts = [len(lidar.scan(Renderer(s), np.eye(4), np.random.default_rng(0))) for s in (black, bright)]
    assert counts[0] == 0 and counts[1] > 1000


def test_cloud_and_camera_see_the_same_surfaces_through_the_rig_s_extrinsics():
    rig = Rig(CAMERA, lidar=Lidar(noise=0.0, dropout=0.0), height=HEIGHT_M)
    renderer = Renderer(scene_of(ground(), box((4, 2, 3), (12, 0, 1.5)), box((2, 2, 2), (8, -3, 1))))
    pose = at_height()
    cloud = rig.lidar.scan(renderer, pose @ rig.camera_from_lidar, np.random.default_rng(0))
    sparse = project_cloud(cloud, CAMERA, rig.camera_from_lidar)
    depth = renderer.view(CAMERA, pose).depth
    measured = np.isfinite(sparse) & np.isfinite(depth)
    ratio = sparse[measured] / depth[measured]
    assert measured.sum() > 1500 and np.mean(np.abs(ratio - 1) < 0.06) > 0.97
    assert abs(np.median(ratio) - 1) < 2e-3


def test_the_camera_turns_light_into_bytes_with_noise_that_grows_with_gain():
    grey = np.full((64, 64, 3), 0.27, np.float32)
    assert exposure_of(grey, NOON) == pytest.approx(1.0, rel=0.01)
    assert exposure_of(grey * 1.25, NOON) == pytest.approx(0.8, rel=0.01)
    assert exposure_of(grey * 1e-3, NOON) == 2.0, "no more than the range"
    day = develop(grey, 1.0, NOON, np.random.default_rng(0))
    night = develop(grey / 8, 1.0, dataclasses.replace(NOON, noise=6.0), np.random.default_rng(0))
    assert day.dtype == np.uint8 and day[32, 32].mean() == pytest.approx(124, abs=8)
    assert day[24:40, 24:40].std() < 5 < night[24:40, 24:40].std()
    assert np.array_equal(day, develop(grey, 1.0, NOON, np.random.default_rng(0)))


def test_drops_of_rain_are_in_front_of_what_the_beam_hits():
    rain, lidar = dataclasses.replace(NOON, rain=1.0, fog=0.0), Lidar(noise=0.0, dropout=0.0)
    wall = lambda pose, beams: (np.full(len(beams), 5.0, np.float32), np.full(len(beams), 0.5, np.float32))  # noqa: E731
    cloud = lidar.scan(SimpleNamespace(echoes=wall, scene=SimpleNamespace(weather=rain)), np.eye(4), np.random.default_rng(0))
    distance = np.linalg.norm(cloud[:, :3], axis=1)
    drops = np.isclose(cloud[:, 3], 0.03)
    assert drops.sum() > 20 and distance[drops].min() < 2 and distance.max() < 5.001 and np.allclose(distance[~drops], 5, atol=1e-3)


def test_rain_draws_streaks_and_leaves_truth_alone():
    grey = np.full((96, 160, 3), 0.19, np.float32)
    rain = dataclasses.replace(NOON, rain=1.0)
    wet, dry = (develop(grey, 1.0, w, np.random.default_rng(0)).astype(float) for w in (rain, NOON))
    assert wet.mean() > dry.mean() + 0.5 and wet.std() > 1.2 * dry.std()


# ---- bad input


def test_scenes_that_cannot_be_are_refused():
    plain = [Texture(np.full((256, 256, 3), 255, np.uint8), (1.0, 1.0))]
    with pytest.raises(GeometryError, match="at least one triangle"):
        Scene.of([], [Material()], plain, NOON, PATH)
    with pytest.raises(GeometryError, match="not finite"):
        Scene.of([Part(np.full((1, 3, 3), np.nan), ROAD, 0)], [Material()], plain, NOON, PATH)
    with pytest.raises(GeometryError, match="beyond them"):
        Scene.of([Part(np.zeros((1, 3, 3)), ROAD, 1)], [Material()], plain, NOON, PATH)
    with pytest.raises(GeometryError, match=r"\(256, 256, 3\) uint8"):
        Texture(np.zeros((8, 8, 3), np.uint8), (1.0, 1.0))


@pytest.mark.parametrize("wrong", [{"rings": 0}, {"reach": 0.0}, {"noise": -1.0}, {"dropout": 1.0}, {"lowest": 5.0}])
def test_a_lidar_that_cannot_be_is_refused(wrong):
    with pytest.raises(GeometryError, match="LiDAR"):
        Lidar(**wrong)


def test_a_rig_needs_a_rectified_left_camera():
    with pytest.raises(GeometryError, match="rectified"):
        Rig(Camera.pinhole(64, 48, 50.0, baseline=0.5))
    with pytest.raises(GeometryError, match="above 0 m"):
        Rig(baseline=0.0)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"spacing": float("inf")}, {"spacing": 0.0}, {"rate": float("nan")}, {"weather": "snow"}])
def test_a_drive_that_cannot_be_is_refused_at_once(wrong):
    with pytest.raises(GeometryError, match="needs a seed|no weather 'snow'; there is clear"):
        Drive(**{"seed": 1, **wrong})


def test_a_street_has_as_many_frames_as_are_asked_for_or_have_room():
    assert [Drive(1, frames_per_scene=40, spacing=spacing).frames_per_scene for spacing in (1e-320, 1.0, 1e300)] == [40, 40, 1]


def test_every_frame_of_a_drive_is_a_function_of_seed_and_index():
    """Several bands of rays, whatever is rendered before, with or without the other sensors."""
    rig = Rig(Camera.pinhole(320, 96, 185.0), lidar=Lidar(rings=16, columns=256))
    first, second = Drive(3, rig, "night"), Drive(3, rig, "night")
    frames = [first.frame(i) for i in (0, 1)]
    again = second.frame(1)
    assert all(np.array_equal(getattr(frames[1], n), getattr(again, n), equal_nan=n in ("depth", "normals")) for n in ARRAYS)
    assert not np.array_equal(frames[0].rgb, frames[1].rgb)
    alone = second.frame(0, right=False, cloud=False)
    assert np.array_equal(alone.rgb, frames[0].rgb) and alone.right.size == alone.cloud.size == 0


def test_both_cameras_have_one_exposure_and_noise_of_their_own(monkeypatch):
    measured, taken = iter((1.0, 1.5)), []

    def note(radiance: np.ndarray, exposure: float, weather: Weather, rng: np.random.Generator) -> np.ndarray:
        taken.append((exposure, rng, rng.bit_generator.state["state"]))
        return develop(radiance, exposure, weather, rng)

    monkeypatch.setattr(world_drive, "exposure_of", lambda radiance, weather: next(measured))
    monkeypatch.setattr(world_drive, "develop", note)
    monkeypatch.setattr(Drive, "scene_of", lambda drive, index: (1, Renderer(scene_of(ground()))))
    Drive(3, Rig(Camera.pinhole(64, 32, 40.0))).frame(0, cloud=False)
    (first, left, begun), (second, right, begun_too) = taken
    assert first == second == 1.0 and left is not right and begun != begun_too


def test_the_path_is_followed_with_its_heading():
    corner = dataclasses.replace(scene_of(ground()), path=np.array([[0.0, 0, 0], [10, 0, 0], [10, 10, 0]]))
    assert corner.path_length == 20
    assert np.allclose(corner.pose_at(5), [[1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert np.allclose(corner.pose_at(15), [[0, -1, 0, 10], [1, 0, 0, 5], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert np.allclose(corner.pose_at(99)[:3, 3], [10, 10, 0]), "held at its end"
    rotation = corner.pose_at(10)[:3, :3]
    assert np.allclose(rotation @ rotation.T, np.eye(3)) and np.allclose(rotation[:2, 0], np.sqrt(0.5))
