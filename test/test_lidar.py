"""LiDAR points in the camera: known places, an independent z-buffer, hidden points, and what cannot be projected."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lix_core.camera import Camera
from lix_core.errors import GeometryError
from lix_core.geometry.lidar import SLACK, check_rigid, cloud_fault, measure_ring_spacing, project_cloud, remove_hidden, window

CAMERA = Camera.pinhole(64, 48, 50.0)
STREET = Camera.pinhole(1242, 375, 720.0)
AXES = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
"""From x forward, y left, z up to the optical frame, both at one place."""

pytestmark = pytest.mark.filterwarnings("error")


def beside(forward: float, left: float, up: float) -> np.ndarray:
    """camera_from_lidar of a LiDAR with the camera's directions, displaced from it [m]."""
    transform = AXES.copy()
    transform[:3, 3] = AXES[:3, :3] @ (forward, left, up)
    return transform


def rotation(axis: tuple[float, float, float], angle: float) -> np.ndarray:
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def post_before_wall(camera_from_lidar: np.ndarray, rings: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A scan of a post 0.4 m wide at 5 m and a wall at 20 m -> points (N, 3), and which of them the camera sees (N,)."""
    elevation, azimuth = np.meshgrid(np.radians(np.linspace(2, -14, rings)), np.radians(np.arange(-30, 30, 0.17)), indexing="ij")
    rays = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1).reshape(-1, 3)
    place = camera_from_lidar[:3, 3]
    rays = rays @ camera_from_lidar[:3, :3].T
    on_post = place + rays * ((5 - place[2]) / rays[:, 2:])
    on_wall = place + rays * ((20 - place[2]) / rays[:, 2:])
    points = np.where(np.abs(on_post[:, :1]) < 0.2, on_post, on_wall)
    visible = (points[:, 2] < 10) | (np.abs(points[:, 0] / points[:, 2]) > 0.2 / 5)
    back = np.linalg.inv(camera_from_lidar)
    return points @ back[:3, :3].T + back[:3, 3], visible


def slow_depth(points: np.ndarray, camera: Camera, camera_from_lidar: np.ndarray) -> np.ndarray:
    """Point by point, as the words say it."""
    depth = np.full(camera.shape, np.nan, np.float32)
    for point in points[:, :3].astype(float):
        if not np.isfinite(point).all():
            continue
        x, y, z = camera_from_lidar[:3, :3] @ point + camera_from_lidar[:3, 3]
        if z <= 0:
            continue
        u, v = np.floor(camera.fx * x / z + camera.cx + 0.5), np.floor(camera.fy * y / z + camera.cy + 0.5)
        if 0 <= u < camera.width and 0 <= v < camera.height and not depth[int(v), int(u)] <= z:
            depth[int(v), int(u)] = z
    return depth


def test_a_point_on_the_principal_ray_falls_on_the_principal_point():
    camera = Camera.pinhole(65, 49, 50.0)
    depth = project_cloud(np.array([[7.0, 0, 0, 0.5, 3]], np.float32), camera, AXES)
    assert depth.dtype == np.float32 and depth[24, 32] == 7.0
    assert np.isfinite(depth).sum() == 1


def test_left_of_the_lidar_is_left_in_the_image_and_up_is_up():
    depth = project_cloud(np.array([[10.0, 2, 0.98]]), CAMERA, AXES)
    (v, u), z = np.argwhere(np.isfinite(depth))[0], depth[np.isfinite(depth)]
    assert (u, v) == (round(31.5 - 10), round(23.5 - 5 + 0.1)) and z == 10


def test_a_wall_has_its_depth_and_not_its_distance():
    y, z = np.meshgrid(np.linspace(-4, 4, 200), np.linspace(-3, 3, 200))
    wall = np.stack([np.full_like(y, 6.0), y, z], -1).reshape(-1, 3)
    depth = project_cloud(wall, CAMERA, AXES)
    assert np.isfinite(depth).all()
    np.testing.assert_allclose(depth[np.isfinite(depth)], 6.0, rtol=1e-6)


def test_of_two_points_on_one_pixel_the_nearer_one_counts():
    points = np.array([[4.0, 0, 0], [2, 0, 0], [8, 0, 0]])
    depth = project_cloud(points, CAMERA, AXES)
    assert depth[np.isfinite(depth)].tolist() == [2.0]


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, (60, 4), elements=st.floats(-30, 30, width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1e30])),
    st.floats(-3, 3),
)
def test_the_fast_z_buffer_is_the_slow_one(points, angle):
    transform = beside(0.3, -0.2, 0.5)
    transform[:3, :3] = rotation((1, 2, 3), angle) @ transform[:3, :3]
    depth = project_cloud(points, CAMERA, transform, hidden_gap=0)
    np.testing.assert_allclose(depth, slow_depth(points, CAMERA, transform), rtol=1e-6)


def test_the_order_of_the_points_does_not_matter():
    transform = beside(-0.27, 0.1, 0.5)
    points, _ = post_before_wall(transform)
    shuffled = points[np.random.default_rng(0).permutation(len(points))]
    np.testing.assert_array_equal(project_cloud(points, STREET, transform), project_cloud(shuffled, STREET, transform))


def test_points_and_extrinsics_moved_together_give_the_same_depth():
    transform = beside(-0.27, 0.1, 0.5)
    points, _ = post_before_wall(transform)
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = rotation((3, -1, 2), 1.1), (4, 5, -6)
    there = points @ moved[:3, :3].T + moved[:3, 3]
    a, b = project_cloud(points, STREET, transform), project_cloud(there, STREET, transform @ np.linalg.inv(moved))
    assert (np.isfinite(a) != np.isfinite(b)).mean() < 1e-4
    both = np.isfinite(a) & np.isfinite(b)
    assert np.isclose(a[both], b[both], rtol=1e-5).mean() > 0.999


@pytest.mark.parametrize(("place", "recall"), [((-0.27, 0.3, 0.0), 0.9), ((0.0, -0.5, 0.1), 0.9), ((-0.3, 0.15, 0.4), 0.75)])
def test_wall_points_that_shine_through_a_post_vanish_and_the_others_stay(place, recall):
    transform = beside(*place)
    points, visible = post_before_wall(transform)
    depth = project_cloud(points, STREET, transform, hidden_gap=0)
    seen = project_cloud(points[visible], STREET, transform, hidden_gap=0)
    hidden = np.isfinite(depth) & ~np.isfinite(seen)
    dropped = np.isfinite(depth) & ~np.isfinite(remove_hidden(depth, STREET, transform[:3, 3]))
    assert hidden.sum() > 150
    assert (dropped & hidden).sum() / hidden.sum() > recall
    # On the post's very edge a rounded pixel decides; off it nothing visible may go.
    edge = np.abs(np.abs(np.arange(STREET.width) - STREET.cx) - STREET.fx * 0.2 / 5) < 2
    assert not (dropped & ~hidden)[:, ~edge].any()


@pytest.mark.parametrize("place", [(0, 0.03, 0.0), (0, 0.05, 0.05), (0, -0.05, 0.05)])
def test_the_side_on_which_the_lidar_is_decides(place):
    """A parallax smaller than the windows: on the wrong side it would lead deeper behind the post."""
    transform = beside(*place)
    points, visible = post_before_wall(transform, rings=32)
    depth = project_cloud(points, STREET, transform, hidden_gap=0)
    hidden = np.isfinite(depth) & ~np.isfinite(project_cloud(points[visible], STREET, transform, hidden_gap=0))
    right, wrong = (np.isnan(remove_hidden(depth, STREET, side * transform[:3, 3]))[hidden].mean() for side in (1, -1))
    assert right > 0.9 and wrong < 0.1


@pytest.mark.parametrize("forward", [-0.2, 0.2])
def test_behind_or_before_the_camera_the_parallax_grows_away_from_the_middle_of_the_image(forward):
    """A bar across the image, low in it, at 5 m, with a wall at 20 m."""
    camera, transform = Camera.pinhole(400, 400, 720.0, cy=60.0), beside(forward, 0, 0)
    down, right = np.meshgrid(np.radians(np.linspace(-2, 22, 64)), np.radians(np.arange(-30, 30, 0.17)), indexing="ij")
    rays = np.stack([np.tan(right), np.tan(down) / np.cos(right), np.ones_like(right)], -1).reshape(-1, 3)
    near, far = (transform[:3, 3] + rays * (z - forward) for z in (5, 20))
    points = np.where(np.abs(near[:, 1:2] - 1.2) < 0.2, near, far)
    visible = (points[:, 2] < 10) | (np.abs(points[:, 1] / points[:, 2] - 1.2 / 5) > 0.2 / 5)
    points = (points - transform[:3, 3]) @ transform[:3, :3]
    depth = project_cloud(points, camera, transform, hidden_gap=0)
    hidden = np.isfinite(depth) & ~np.isfinite(project_cloud(points[visible], camera, transform, hidden_gap=0))
    right, wrong = (np.isnan(remove_hidden(depth, camera, side * transform[:3, 3]))[hidden].mean() for side in (1, -1))
    assert hidden.sum() > 100 and right > 0.9 and wrong < 0.5


def opposite_sides(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Which offsets (N,) [pixels] are upper left and lower right, and which upper right and lower left."""
    left, right, above, below = x <= SLACK, x >= -SLACK, y <= SLACK, y >= -SLACK
    return [(left & above, right & below), (right & above, left & below)]


def slow_visible(depth: np.ndarray, camera: Camera, place: np.ndarray, gap: float) -> np.ndarray:
    """Point by point, as the words say it, in the same float32."""
    rows, columns = window(measure_ring_spacing(depth), depth.shape)
    points, visible = np.argwhere(np.isfinite(depth)), depth.copy()
    for v, u in points:
        dv, du = (points - (v, u)).T
        far = (np.abs(dv) > rows) | (np.abs(du) > columns)
        dv, du, around = dv[~far], du[~far], depth[tuple(points[~far].T)]
        cover = min(max(around[one].min(), around[other].min()) for one, other in opposite_sides(du, dv))
        if not cover < depth[v, u] * np.float32(1 - gap):
            continue
        front = 1 / around >= (1 / depth[v, u] + 1 / cover) / 2
        parallax = 1 / around[front] - 1 / depth[v, u]
        x = du[front] - camera.fx * (place[0] - place[2] * camera.rays[v, u, 0]) * parallax
        y = dv[front] - camera.fy * (place[1] - place[2] * camera.rays[v, u, 1]) * parallax
        if not any(one.any() and other.any() for one, other in opposite_sides(x, y)):
            visible[v, u] = np.nan
    return visible


@pytest.mark.parametrize("rings", [8, 32])
def test_what_is_removed_is_what_a_look_at_every_point_removes(rings):
    transform = beside(-0.3, 0.15, 0.4)
    depth = project_cloud(post_before_wall(transform, rings)[0], STREET, transform, hidden_gap=0)
    visible = remove_hidden(depth, STREET, transform[:3, 3])
    np.testing.assert_array_equal(visible, slow_visible(depth, STREET, transform[:3, 3], 0.05))
    assert 20 < np.isfinite(depth).sum() - np.isfinite(visible).sum() < 1000


@pytest.mark.parametrize("count", [1500, 10_000])
def test_points_strewn_over_a_large_image_take_little_memory(count):
    """Leaves, say: no rings, many points amid nearer ones, and so few that a window over the steps between them would be huge."""
    camera, random, place = Camera.pinhole(3840, 2160, 2200.0), np.random.default_rng(0), np.array([0.0, -0.1, -0.1])
    depth = np.full(camera.shape, np.nan, np.float32)
    depth[random.integers(0, 2160, count), random.integers(0, 3840, count)] = random.uniform(2, 40, count)
    assert camera.rays.shape == (2160, 3840, 3)  # the camera keeps them
    tracemalloc.start()
    visible = remove_hidden(depth, camera, place)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * depth.nbytes
    assert np.isfinite(depth).sum() - np.isfinite(visible).sum() > 0.05 * count
    if count == 1500:
        np.testing.assert_array_equal(visible, slow_visible(depth, camera, place, 0.05))


def test_a_window_larger_than_the_image_is_as_large_as_that():
    depth = np.full(CAMERA.shape, np.nan, np.float32)
    depth[::5, ::3] = np.random.default_rng(0).uniform(2, 40, depth[::5, ::3].shape)
    whole, beyond = (remove_hidden(depth, CAMERA, np.array([0.3, 0, 0]), ring_spacing=spacing) for spacing in (200, 1e9))
    np.testing.assert_array_equal(beyond, whole)
    assert np.isfinite(whole).sum() < np.isfinite(depth).sum()


def test_a_lidar_at_the_camera_has_no_hidden_points():
    points, visible = post_before_wall(AXES)
    assert visible.all()
    depth = project_cloud(points, STREET, AXES, hidden_gap=0)
    np.testing.assert_array_equal(remove_hidden(depth, STREET, np.zeros(3)), depth)


def test_a_slanted_plane_hides_nothing_of_itself():
    transform = beside(-0.27, 0.1, 0.5)
    distance, left = np.meshgrid(np.geomspace(4, 40, 50), np.linspace(-1, 1, 400), indexing="ij")
    road = np.stack([distance, left * distance, np.full_like(distance, -1.7)], -1).reshape(-1, 3)
    depth = project_cloud(road, STREET, transform, hidden_gap=0)
    np.testing.assert_array_equal(remove_hidden(depth, STREET, transform[:3, 3]), depth)


def test_the_ring_spacing_is_read_from_the_image():
    depth = np.full((100, 80), np.nan, np.float32)
    depth[10::7, ::3] = 5.0
    assert measure_ring_spacing(depth) == 7.0
    assert measure_ring_spacing(np.full((4, 5), np.nan, np.float32)) == 1.0


def test_neither_wide_gaps_between_rings_nor_rings_of_two_rows_count_for_their_spacing():
    depth = np.full((120, 80), np.nan, np.float32)
    for row in (10, 16, 22, 28, 34, 60, 66, 72, 110):
        depth[row : row + 2, ::3] = 5.0
    assert measure_ring_spacing(depth) == 5.0


def test_points_that_did_not_return_are_not_where_the_lidar_is():
    ahead = AXES.copy()
    ahead[2, 3] = 0.2
    assert np.isnan(project_cloud(np.zeros((100, 3), np.float32), CAMERA, ahead)).all()


@pytest.mark.parametrize("points", [np.zeros((0, 5), np.float32), np.full((200, 3), np.nan), np.full((9, 4), np.inf), np.zeros((5, 3))])
def test_clouds_without_a_usable_point_give_no_depth_and_no_crash(points):
    depth = project_cloud(points, CAMERA, AXES)
    assert depth.shape == CAMERA.shape and np.isnan(depth).all()
    assert cloud_fault(points, depth, CAMERA, AXES) == ""


def test_a_cloud_that_misses_the_image_is_told():
    points, _ = post_before_wall(AXES)
    backwards = beside(0, 0, 0) @ np.diag([-1.0, -1, 1, 1])
    assert "points fall into the image" in cloud_fault(points, project_cloud(points, STREET, backwards), STREET, backwards)
    assert cloud_fault(points, project_cloud(points, STREET, AXES), STREET, AXES) == ""


def around(count: int = 20_000) -> np.ndarray:
    """(N, 3): a LiDAR's points 10 m away in all directions, up to 30 degrees above and below."""
    random = np.random.default_rng(0)
    azimuth, up = random.uniform(-np.pi, np.pi, count), np.radians(random.uniform(-30, 30, count))
    return 10 * np.column_stack([np.cos(up) * np.cos(azimuth), np.cos(up) * np.sin(azimuth), np.sin(up)])


def told(camera: Camera, transform: np.ndarray) -> str:
    points = around()
    return cloud_fault(points, project_cloud(points, camera, transform, 0), camera, transform)


@pytest.mark.parametrize("yaw", [0.0, 0.4, np.pi / 2, np.pi])
def test_a_pose_that_was_inverted_is_told_though_points_fall_into_the_image(yaw):
    turned = np.eye(4)
    turned[:3, :3] = rotation((0, 0, 1), yaw)
    right = beside(0.2, 0.0, 0.1) @ turned.T
    assert told(STREET, right) == "" and "is it the camera's pose in the LiDAR's frame?" in told(STREET, np.linalg.inv(right))


@pytest.mark.parametrize("axis, angle", [((1, 0, 0), np.pi / 2), ((1, 0, 0), np.pi), ((0, 1, 0), 0.7)])
def test_a_camera_that_was_mounted_on_its_side_is_no_inverted_pose(axis, angle):
    turned = np.eye(4)
    turned[:3, :3] = rotation(axis, angle)
    assert "inverse" not in told(STREET, AXES @ turned)


@pytest.mark.parametrize("degrees", [10, 20, 60, 100])
def test_the_points_that_must_be_seen_are_fewer_through_a_narrow_lens(degrees):
    camera = Camera.pinhole(640, 480, 320 / np.tan(np.radians(degrees / 2)))
    assert told(camera, AXES) == ""
    assert "points fall into the image" in told(camera, np.eye(4))  # as if the LiDAR's frame were the optical one


def test_a_cloud_of_more_points_than_the_image_can_show_is_no_fault():
    points = np.ones((400_000, 3), np.float32)
    assert cloud_fault(points, np.ones(CAMERA.shape, np.float32), CAMERA, AXES) == ""
    assert "only 20 of 400000" in cloud_fault(points, np.where(np.arange(48 * 64).reshape(CAMERA.shape) < 20, 1, np.nan), CAMERA, AXES)


def test_points_that_did_not_return_are_no_reason_to_doubt_the_extrinsics():
    """A sensor that sends 0, 0, 0 for each beam without an echo, with 90 echoes in the image, and with 99 beside it."""
    points = np.zeros((20_000, 3), np.float32)
    points[:90] = (5.0, 0.0, 0.0)
    assert cloud_fault(points, project_cloud(points, CAMERA, AXES), CAMERA, AXES) == ""
    points[:99] = (-5.0, 0.0, 0.0)
    assert cloud_fault(points, project_cloud(points, CAMERA, AXES), CAMERA, AXES) == ""
    points[99] = (-5.0, 0.0, 0.0)
    assert cloud_fault(points, project_cloud(points, CAMERA, AXES), CAMERA, AXES).startswith(
        "only 0 of 100 LiDAR points fall into the image"
    )


@pytest.mark.parametrize("points", [np.zeros(3), np.zeros((5, 2)), np.zeros((2, 5, 3)), np.array([["a", "b", "c"]]), [[None] * 3]])
def test_points_of_another_shape_are_refused(points):
    with pytest.raises(GeometryError, match="a cloud is an"):
        project_cloud(points, CAMERA, AXES)


@pytest.mark.parametrize(
    "transform",
    [
        np.eye(3),
        np.zeros((4, 4)),
        np.diag([2.0, 2, 2, 1]),
        np.diag([1.0, 1, -1, 1]),
        np.full((4, 4), np.nan),
        np.eye(4) + np.eye(4)[::-1] * 0.1,
        AXES.T @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 2, 3, 1]]),
        None,
        "identity",
        [[1, 2], [3]],
    ],
)
def test_extrinsics_that_are_no_rigid_transform_are_refused(transform):
    with pytest.raises(GeometryError, match="camera_from_lidar is"):
        project_cloud(np.zeros((1, 3)), CAMERA, transform)


def test_rigid_transforms_printed_with_few_digits_pass():
    transform = AXES.copy()
    transform[:3, :3] = np.round(rotation((1, 1, 0), 0.4) @ AXES[:3, :3], 4)
    np.testing.assert_array_equal(check_rigid(transform.tolist(), "x"), transform)


@pytest.mark.parametrize("options", [(-0.1, 0), (1.0, 0), (np.nan, 0), (0.1, -1), (0.1, np.inf)])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(GeometryError, match="the gap is a share"):
        project_cloud(np.zeros((1, 3)), CAMERA, AXES, *options)


def test_depth_of_another_camera_is_refused():
    with pytest.raises(GeometryError, match="the sparse depth is 10x10"):
        remove_hidden(np.zeros((10, 10), np.float32), CAMERA, np.zeros(3))
    with pytest.raises(GeometryError, match="array of floats"):
        remove_hidden(np.zeros((48, 64), np.uint16), CAMERA, np.zeros(3))


@pytest.mark.parametrize("at_once", [None, 1000])
def test_the_batched_version_agrees_whatever_it_looks_at_in_one_go(monkeypatch, at_once):
    torch = pytest.importorskip("torch")
    from lix_core.geometry.batch import lidar as batch

    transforms = [beside(-0.27, 0.3, 0.0), beside(-0.3, 0.15, 0.4)]
    clouds = [post_before_wall(t)[0].astype(np.float32) for t in transforms]
    clouds[1] = clouds[1][::2]
    padded = np.full((2, max(map(len, clouds)), 3), np.nan, np.float32)
    for row, cloud in zip(padded, clouds):
        row[: len(cloud)] = cloud
    matrix, extrinsics = torch.from_numpy(STREET.matrix), torch.from_numpy(np.stack(transforms))
    expected = {gap: [project_cloud(cloud, STREET, transform, gap) for cloud, transform in zip(clouds, transforms)] for gap in (0.0, 0.05)}
    monkeypatch.setattr(batch.lidar, "AT_ONCE", at_once or batch.lidar.AT_ONCE)
    for gap, wanted in expected.items():
        depths = batch.project_clouds(torch.from_numpy(padded), matrix, extrinsics, STREET.shape, gap)
        np.testing.assert_allclose(depths.numpy(), wanted, rtol=1e-6)
    empty = batch.project_clouds(torch.full((1, 0, 3), torch.nan), matrix, extrinsics[0], STREET.shape)
    assert empty.isnan().all()
    with pytest.raises(GeometryError, match="clouds are"):
        batch.project_clouds(torch.zeros(4, 3), matrix, extrinsics[0], STREET.shape)
    with pytest.raises(GeometryError, match="not a rigid transform"):
        batch.project_clouds(torch.zeros(1, 4, 3), matrix, 2 * extrinsics[0], STREET.shape)
