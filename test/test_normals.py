"""Surface normals from depth, against planes and spheres whose normals are known, and their torch version."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lix_core.camera import Camera
from lix_core.errors import GeometryError
from lix_core.geometry.normals import DEFAULT, METHODS, normals_from_depth

EXACT_ON_PLANES = ("planes", "one_sided", "central", "3f2n")
CAMERA = Camera.pinhole(97, 61, 80.0, 90.0, 40.0, 33.0)
angles = st.floats(-1.2, 1.2)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def plane(normal: np.ndarray, distance: float, camera: Camera = CAMERA) -> np.ndarray:
    """Depth of the plane n . X = -distance; NaN where a ray does not meet it within 1 km."""
    facing = -(camera.rays.astype(np.float64) @ normal)
    with np.errstate(divide="ignore"):
        depth = distance / facing
    return np.where((facing > 0) & (depth < 1000), depth, np.nan).astype(np.float32)


def sphere(middle: np.ndarray, radius: float, camera: Camera = CAMERA) -> tuple[np.ndarray, np.ndarray]:
    """Depth and normals of a sphere; NaN beside it."""
    rays = camera.rays.astype(np.float64)
    a, b, c = (rays * rays).sum(-1), rays @ middle, middle @ middle - radius**2
    inside = b * b - a * c
    depth = np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, np.nan)
    return depth.astype(np.float32), (rays * depth[..., None] - middle) / radius


def degrees_off(normals: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(normals, truth), axis=-1), (normals * truth).sum(-1)))


def tilted(pitch: float, yaw: float) -> np.ndarray:
    """Unit normal of a plane that faces the camera, turned by two angles [rad]."""
    return np.array([np.sin(yaw), -np.cos(yaw) * np.sin(pitch), -np.cos(yaw) * np.cos(pitch)])


def stereo_noise(depth: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    """Depth with a disparity error of sigma pixels at f b = 100 pixels * m."""
    error = np.random.default_rng(seed).standard_normal(depth.shape)
    return (100 / (100 / depth + sigma * error)).astype(np.float32)


@pytest.mark.parametrize("method", EXACT_ON_PLANES)
@settings(max_examples=25, deadline=None)
@given(pitch=angles, yaw=angles, distance=st.floats(0.3, 50))
def test_a_plane_of_any_slant_has_its_normal_everywhere(method, pitch, yaw, distance):
    normal = tilted(pitch, yaw)
    depth = plane(normal, distance)
    known = ~np.isnan(depth)
    assume(known.mean() > 0.2)
    # A far pixel sees the plane at a grazing angle, where one step of float32 turns it.
    near = known & (depth < 20 * distance)
    normals = normals_from_depth(depth, CAMERA, method)
    found = ~np.isnan(normals[..., 0])
    assert found[known].mean() > 0.95
    assert degrees_off(normals, normal)[near & found].max() < 0.5
    assert np.median(degrees_off(normals, normal)[near & found]) < 0.02


@pytest.mark.parametrize("method", ["d2nt_v2", "d2nt_v3"])
def test_gradients_of_depth_have_the_normal_of_a_moderately_slanted_plane(method):
    normal = tilted(0.4, -0.3)
    off = degrees_off(normals_from_depth(plane(normal, 4.0), CAMERA, method), normal)
    assert np.nanmax(off[2:-2, 2:-2]) < 1.0


@pytest.mark.parametrize("method", METHODS)
def test_normals_are_unit_float32_and_face_the_camera(method):
    depth, _ = sphere(np.array([0.1, -0.1, 3.0]), 1.0)
    depth = np.where(np.isnan(depth), plane(np.array([0.0, -1, 0]), 1.5), depth)
    normals = normals_from_depth(stereo_noise(depth, 0.2), CAMERA, method)
    found = ~np.isnan(normals).any(axis=-1)
    assert normals.dtype == np.float32 and normals.shape == (61, 97, 3)
    assert found.mean() > 0.7
    np.testing.assert_allclose(np.linalg.norm(normals[found], axis=-1), 1, atol=1e-5)
    assert ((normals * CAMERA.rays).sum(-1)[found] < 1e-6).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_wall_straight_ahead_points_back_at_the_camera(method):
    normals = normals_from_depth(np.full((61, 97), 7.0, np.float32), CAMERA, method)
    np.testing.assert_allclose(normals, np.broadcast_to([0, 0, -1.0], normals.shape), atol=1e-6)


@pytest.mark.parametrize(("method", "limit"), [("planes", 2.0), ("one_sided", 1.5), ("central", 1.0), ("d2nt_v3", 4.0), ("3f2n", 3.0)])
def test_a_sphere_is_right_within_the_stated_error_away_from_its_rim(method, limit):
    camera = Camera.pinhole(161, 161, 160.0)  # 80 pixels across; the default takes bends that are everywhere for noise
    depth, truth = sphere(np.array([0.0, 0.0, 4.0]), 1.0, camera)
    off = degrees_off(normals_from_depth(depth, camera, method), truth)
    inside = -(truth * camera.rays).sum(-1) > 0.5
    assert off[inside].max() < limit


def test_the_default_does_not_bend_normals_at_a_step():
    """A wall 3 m before another wall, both slanted: every pixel has the normal of its own wall, up to the edge."""
    near, far = tilted(0.2, 0.5), tilted(-0.1, -0.4)
    left = np.arange(97) < 43
    depth = np.where(left, plane(near, 2.0), plane(far, 5.0))
    truth = np.where(left[:, None], near, far)
    normals = normals_from_depth(depth, CAMERA)
    assert degrees_off(normals, truth).max() < 0.2
    assert degrees_off(normals_from_depth(depth, CAMERA, "central"), truth).max() > 20  # what the others do


def test_the_default_keeps_both_sides_of_a_crease():
    """Road and wall meet: the depth has no jump, only its slope has one."""
    road, wall = np.array([0.0, -1.0, 0.0]), np.array([0.0, 0.0, -1.0])
    depths = plane(road, 1.5), plane(wall, 8.0)
    first = np.nan_to_num(depths[0], nan=np.inf) < depths[1]
    depth, truth = np.where(first, *depths), np.where(first[..., None], road, wall)
    assert degrees_off(normals_from_depth(depth, CAMERA), truth).max() < 0.2


def test_the_default_averages_noise_away_on_either_side_of_a_step():
    near, far = tilted(0.2, 0.5), tilted(-0.1, -0.4)
    left = np.arange(97) < 43
    depth = stereo_noise(np.where(left, plane(near, 2.0), plane(far, 5.0)), 0.2)
    truth = np.where(left[:, None], near, far)
    off = {method: degrees_off(normals_from_depth(depth, CAMERA, method), truth) for method in (DEFAULT, "d2nt_v3")}
    beyond = np.abs(np.arange(97) - 43) > 4
    assert off[DEFAULT].mean() < off["d2nt_v3"].mean() / 3
    assert off[DEFAULT][:, beyond].mean() < 3.5
    assert off[DEFAULT][-1].mean() < 10 and off[DEFAULT][:, -1].mean() < 10  # half cells, where the image's sides are odd


def test_the_default_averages_noise_over_wide_windows_and_not_across_a_step():
    camera, slant = Camera.pinhole(321, 241, 280.0), tilted(0.3, -0.4)
    off = degrees_off(normals_from_depth(stereo_noise(plane(slant, 6.0, camera), 0.3), camera), slant)
    assert np.nanmedian(off) < 1.0
    near, far, from_step = tilted(0.2, 0.5), tilted(-0.1, -0.4), np.arange(321) - 142.5
    depth = stereo_noise(np.where(from_step < 0, plane(near, 2.0, camera), plane(far, 5.0, camera)), 0.2)
    off = degrees_off(normals_from_depth(depth, camera), np.where((from_step < 0)[:, None], near, far))
    assert off[:, np.abs(from_step) < 12].mean() < 15


@pytest.mark.parametrize("method", ["d2nt_v2", "d2nt_v3"])
def test_gradients_of_depth_look_away_from_a_step(method):
    near, far = tilted(0.1, 0.2), tilted(-0.1, -0.2)
    left = np.arange(97) < 43
    depth = np.where(left, plane(near, 2.0), plane(far, 8.0))
    off = degrees_off(normals_from_depth(depth, CAMERA, method), np.where(left[:, None], near, far))
    assert np.nanmax(off[2:-2, 2:-2]) < 2.0


@pytest.mark.parametrize("method", EXACT_ON_PLANES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0.0, 0.5))
def test_holes_stay_holes_and_do_not_touch_their_neighbours(method, seed, share):
    normal = tilted(0.3, -0.5)
    depth = plane(normal, 3.0)
    hole = np.random.default_rng(seed).random(depth.shape) < share
    depth[hole] = np.nan
    normals = normals_from_depth(depth, CAMERA, method)
    assert np.isnan(normals[np.isnan(depth)]).all()
    beside = {axis: np.zeros_like(hole) for axis in (0, 1)}
    for axis, any_side in beside.items():
        known = np.moveaxis(~np.isnan(depth), axis, 0)
        np.moveaxis(any_side, axis, 0)[1:] |= known[:-1]
        np.moveaxis(any_side, axis, 0)[:-1] |= known[1:]
    expected = ~np.isnan(depth) & beside[0] & beside[1]
    assert not np.isnan(normals[expected]).any()
    assert np.nanmax(degrees_off(normals, normal)) < 0.3


def test_nothing_is_pulled_across_a_hole():
    """Two walls with a hole between them: each has its own normal up to the hole."""
    near, far = tilted(0.0, 0.6), tilted(0.3, -0.6)
    column = np.arange(97)
    depth = np.where(column < 40, plane(near, 3.0), plane(far, 3.0))
    depth[:, (column >= 40) & (column < 42)] = np.nan
    truth = np.where((column < 40)[:, None], near, far)
    for method in ("planes", "one_sided", "central"):
        assert np.nanmax(degrees_off(normals_from_depth(depth, CAMERA, method), truth)) < 0.2, method


@pytest.mark.parametrize("method", EXACT_ON_PLANES)
def test_the_scale_of_the_depth_does_not_matter(method):
    depth = stereo_noise(plane(tilted(0.5, 0.3), 4.0), 0.2)
    depth[20:30, 40:50] = np.nan
    one, other = normals_from_depth(depth, CAMERA, method), normals_from_depth(depth * np.float32(2**10), CAMERA, method)
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_mirrored_image_has_mirrored_normals():
    camera = Camera.pinhole(96, 60, 80.0)
    depth, _ = sphere(np.array([0.3, 0.2, 3.0]), 1.0, camera)
    depth = np.where(np.isnan(depth), plane(tilted(0.9, 0.2), 2.0, camera), depth)
    normals, mirrored = normals_from_depth(depth, camera), normals_from_depth(np.ascontiguousarray(depth[:, ::-1]), camera)
    np.testing.assert_allclose(normals, mirrored[:, ::-1] * [-1, 1, 1], atol=2e-3)


def test_the_centre_of_the_top_left_pixel_is_0_0():
    """Few pixels and a wide view: counting from 1 turns this plane by some degrees."""
    camera = Camera.pinhole(21, 15, 12.0, cx=10.0, cy=7.0)
    normal = tilted(0.8, 0.4)
    depth = plane(normal, 2.0, camera)
    from_one = Camera.pinhole(21, 15, 12.0, cx=9.0, cy=6.0)  # as if pixel (0, 0) were (1, 1)
    assert np.nanmax(degrees_off(normals_from_depth(depth, camera), normal)) < 0.05
    assert np.nanmin(degrees_off(normals_from_depth(depth, from_one), normal)) > 1


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_depth_is_unknown(method):
    depth = plane(tilted(0.2, 0.2), 3.0)
    for row, value in ((0, 1e-30), (5, np.finfo(np.float32).max), (10, 0.0), (20, -1.0), (30, np.inf), (40, -np.inf), (50, 2e18)):
        depth[row : row + 3, 30:35] = value
    unknown = ~((depth > 1e-12) & (depth < 1e18))
    expected = normals_from_depth(np.where(unknown, np.nan, depth).astype(np.float32), CAMERA, method)
    np.testing.assert_allclose(normals_from_depth(depth, CAMERA, method), expected, atol=1e-6)
    assert np.isnan(expected[unknown]).all()
    far = np.full(CAMERA.shape, np.finfo(np.float32).max)
    assert np.isnan(normals_from_depth(far, CAMERA, method)).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_depth_in_memory_does_not_matter(method):
    depth = stereo_noise(plane(tilted(0.2, -0.3), 3.0), 0.1)
    depth[20:25, 30:40] = np.nan
    expected = normals_from_depth(depth, CAMERA, method)
    for other in (np.asfortranarray(depth), np.stack([depth, depth], axis=-1)[..., 0], depth[::-1].copy()[::-1]):
        np.testing.assert_allclose(normals_from_depth(other, CAMERA, method), expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2), (3, 5), (7, 64)])
def test_small_and_empty_images_are_no_trouble(method, shape):
    camera = Camera.pinhole(shape[1], shape[0], 50.0)
    nothing = normals_from_depth(np.full(shape, np.nan, np.float32), camera, method)
    assert nothing.shape == (*shape, 3) and np.isnan(nothing).all()
    wall = normals_from_depth(np.full(shape, 2.0, np.float32), camera, method)
    if min(shape) == 1:
        assert np.isnan(wall).all()  # one line of points has no normal
    else:
        np.testing.assert_allclose(wall, np.broadcast_to([0, 0, -1.0], wall.shape), atol=1e-5)


def test_depth_in_float64_is_taken_too():
    depth = plane(tilted(0.2, 0.1), 3.0)
    found = normals_from_depth(depth.astype(np.float64), CAMERA)
    np.testing.assert_allclose(found, normals_from_depth(depth, CAMERA), atol=1e-6)


@pytest.mark.parametrize(
    ("depth", "method", "says"),
    [
        (np.ones((61, 97), np.float32), "magic", "no method 'magic' for normals; there are planes, one_sided"),
        (np.ones((61, 96), np.float32), DEFAULT, "depth is 96x61, its calibration is for 97x61"),
        (np.ones((61, 97), np.uint16), DEFAULT, "got uint16 of shape .61, 97.; divide millimetres by 1000"),
        (np.ones((61, 97, 1), np.float32), DEFAULT, "float array in metres, got float32 of shape"),
        ([[1.0]], DEFAULT, "got list"),
    ],
)
def test_wrong_arguments_are_said(depth, method, says):
    with pytest.raises(GeometryError, match=says):
        normals_from_depth(depth, CAMERA, method)


# The torch version.


def batch(depth: np.ndarray, camera, method: str = DEFAULT) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from lix_core.geometry.batch.normals import normals_from_depth as of_batch

    return of_batch(torch.from_numpy(depth), camera, method).permute(0, 2, 3, 1).numpy()


def street(seed: int, camera: Camera = CAMERA) -> np.ndarray:
    """A road, a wall across, a sphere and holes."""
    rng = np.random.default_rng(seed)
    parts = [plane(np.array([0.0, -1, 0]), 1.5, camera), plane(tilted(0.0, rng.uniform(-0.7, 0.7)), 9.0, camera)]
    parts.append(sphere(np.array([rng.uniform(-1, 1), 0.3, 4.0]), 0.8, camera)[0])
    depth = np.fmin.reduce(parts)
    depth[rng.random(depth.shape) < 0.02] = np.nan
    return depth


@pytest.mark.parametrize("method", ["planes", "one_sided"])
def test_torch_agrees_on_exact_depth(method):
    depth = np.stack([street(seed) for seed in range(3)])
    expected = np.stack([normals_from_depth(d, CAMERA, method) for d in depth])
    np.testing.assert_allclose(batch(depth, CAMERA, method), expected, atol=1e-4)


@pytest.mark.parametrize(("top", "left", "rows", "columns"), [(101, 203, 8, 8), (7, 33, 11, 11), (300, 101, 2, 200), (50, 401, 200, 3)])
def test_a_small_patch_of_noisy_depth_has_normals_in_both_versions(top, left, rows, columns):
    camera = Camera.pinhole(640, 480, 500.0)
    depth = np.full(camera.shape, np.nan, np.float32)
    depth[top : top + rows, left : left + columns] = 10 + 0.1 * np.random.default_rng(0).standard_normal((rows, columns))
    normals = normals_from_depth(depth, camera)
    known = np.isfinite(normals).all(-1)
    assert known.sum() == rows * columns
    np.testing.assert_array_equal(np.isfinite(batch(depth[None], camera)[0]).all(-1), known)


@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_torch_agrees_on_noisy_depth(sigma):
    """To 1e-4, but for the few pixels at edges where the weights of two unlike planes amplify what float32 rounds."""
    depth = np.stack([stereo_noise(street(seed), sigma, seed) for seed in range(4)])
    expected, found = np.stack([normals_from_depth(d, CAMERA) for d in depth]), batch(depth, CAMERA)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    apart = np.abs(found - expected)[~np.isnan(expected)]
    assert (apart < 1e-4).mean() > 0.995
    assert apart.max() < 0.02


@pytest.mark.parametrize("method", ["planes", "one_sided"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2), (2, 40), (3, 1)])
def test_torch_agrees_on_the_smallest_images(method, shape):
    camera = Camera.pinhole(shape[1], shape[0], 50.0)
    depth = plane(tilted(0.2, 0.1), 3.0, camera)
    expected = normals_from_depth(depth, camera, method)
    np.testing.assert_allclose(batch(depth[None], camera, method)[0], expected, atol=1e-4)
    assert np.isnan(expected).all() == (min(shape) == 1)


@pytest.mark.parametrize("method", ["planes", "one_sided"])
def test_torch_knows_nothing_of_what_is_no_depth_either(method):
    depth = plane(tilted(0.2, 0.2), 3.0)
    for row, value in ((0, 1e-30), (5, np.finfo(np.float32).max), (20, -1.0), (30, np.inf), (50, 2e18)):
        depth[row : row + 3, 30:35] = value
    found = batch(depth[None], CAMERA, method)[0]
    assert np.isnan(found[~((depth > 1e-12) & (depth < 1e18))]).all()
    np.testing.assert_allclose(found, normals_from_depth(depth, CAMERA, method), atol=1e-4)
    in_half = np.where(depth < 100, depth, np.inf).astype(np.float16)
    assert np.isnan(batch(in_half[None], CAMERA, method)[0][~(in_half < 100)]).all()


def test_every_sample_of_a_batch_has_its_own_camera_and_its_own_noise():
    torch = pytest.importorskip("torch")
    cameras = [CAMERA, Camera.pinhole(97, 61, 120.0, 100.0, 50.0, 20.0)]
    depth = np.stack([stereo_noise(street(0, cameras[0]), 0.2), street(1, cameras[1])])
    intrinsics = torch.tensor([[c.fx, c.fy, c.cx, c.cy] for c in cameras])
    for found, d, camera in zip(batch(depth[:, None], intrinsics), depth, cameras):
        alone = batch(d[None], camera)[0]
        np.testing.assert_allclose(found, alone, atol=1e-4)
        assert (np.abs(found - normals_from_depth(d, camera))[~np.isnan(alone)] < 1e-4).mean() > 0.995


def test_gradients_reach_the_depth_and_holes_do_not_break_them():
    torch = pytest.importorskip("torch")
    from lix_core.geometry.batch.normals import normals_from_depth as of_batch

    for method in ("planes", "one_sided"):
        depth = torch.from_numpy(stereo_noise(street(2), 0.1))[None].requires_grad_()
        normals = of_batch(depth, CAMERA, method)
        normals[:, 0].nansum().backward()
        assert torch.isfinite(depth.grad).all()
        assert depth.grad[~torch.isnan(depth)].abs().median() > 0


def test_a_plane_can_be_turned_by_descending_on_its_normals():
    """The slope of a learned plane of inverse depth goes to that of the wanted normal."""
    torch = pytest.importorskip("torch")
    from lix_core.geometry.batch.normals import normals_from_depth as of_batch

    wanted = torch.tensor([0.3, -0.2, -0.9]) / torch.tensor([0.3, -0.2, -0.9]).norm()
    rays, slope = torch.from_numpy(CAMERA.rays.copy()), torch.zeros(2, requires_grad=True)
    step = torch.optim.Adam([slope], 0.05)
    for _ in range(60):
        step.zero_grad()
        inverse = 0.5 + 0.5 * (rays[..., :2] @ slope)
        loss = 1 - (of_batch(1 / inverse[None], CAMERA)[0].permute(1, 2, 0) @ wanted).nanmean()
        loss.backward()
        step.step()
    np.testing.assert_allclose(slope.detach(), [0.3 / -0.9, -0.2 / -0.9], atol=0.02)


def test_wrong_batches_are_said():
    torch = pytest.importorskip("torch")
    from lix_core.geometry.batch.normals import normals_from_depth as of_batch

    depth = torch.ones(2, 61, 97)
    for arguments, says in (
        ((depth[0], CAMERA), "must be .B, H, W."),
        ((depth.int(), CAMERA), "torch.int32"),
        ((depth[:, :, 1:], CAMERA), "depth is 96x61, its calibration is for 97x61"),
        ((depth, torch.ones(3, 4)), r"intrinsics must be \(4,\) or \(2, 4\)"),
        ((depth, CAMERA, "3f2n"), "no method '3f2n' for normals of a batch; there are planes, one_sided"),
    ):
        with pytest.raises(GeometryError, match=says):
            of_batch(*arguments)
