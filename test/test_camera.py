"""Camera calibrations."""

from __future__ import annotations

import dataclasses
import warnings

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lix_core.camera import Camera
from lix_core.errors import DataError, GeometryError

K = (500.0, 0.0, 320.0, 0.0, 501.0, 240.0, 0.0, 0.0, 1.0)
P = (400.0, 0.0, 310.0, -40.0, 0.0, 400.0, 230.0, 0.0, 0.0, 0.0, 1.0, 0.0)
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def calibration() -> dict:
    """What the camera_calibration package writes."""
    return {
        "image_width": 640,
        "image_height": 480,
        "camera_name": "front",
        "distortion_model": "plumb_bob",
        "camera_matrix": {"rows": 3, "cols": 3, "data": list(K)},
        "distortion_coefficients": {"rows": 1, "cols": 5, "data": [-0.3, 0.1, 0.0, 0.001, 0]},
        "rectification_matrix": {"rows": 3, "cols": 3, "data": list(IDENTITY)},
        "projection_matrix": {"rows": 3, "cols": 4, "data": list(P)},
    }


def test_a_calibration_file_is_read_in_full(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "camera_info.yaml").write_text(yaml.safe_dump(calibration()))
    assert Camera.load("~/camera_info.yaml") == Camera(640, 480, K, "plumb_bob", (-0.3, 0.1, 0.0, 0.001, 0.0), IDENTITY, P)


def test_without_a_projection_the_raw_intrinsics_are_used():
    camera = Camera(640, 480, K)
    assert camera.p == (500, 0, 320, 0, 0, 501, 240, 0, 0, 0, 1, 0)
    assert camera.d == (0,) * 5 and camera.r == IDENTITY


@pytest.mark.parametrize("lengths", [{"k": K[:8]}, {"k": K, "r": K[:3]}, {"k": K, "p": K}])
def test_matrices_of_wrong_size_are_refused_with_their_sizes(lengths):
    with pytest.raises(DataError, match="needs 9 values of k, 9 of r and 12 of p, got"):
        Camera(640, 480, **lengths)


@pytest.mark.parametrize(("width", "height", "k"), [(0, 480, K), (640, -1, K), (640, 480, (0.0,) * 9), (640, 480, (-1.0, *K[1:]))])
def test_an_uncalibrated_camera_is_refused(width, height, k):
    with pytest.raises(DataError, match="needs a size and focal lengths above 0, got"):
        Camera(width, height, k)


def test_pixels_that_the_raw_image_does_not_show_are_those_of_the_maps_and_their_neighbours():
    assert not Camera.pinhole(64, 48, 50.0).unseen(3).any()
    camera = Camera(64, 48, (100, 0, 31.5, 0, 100, 23.5, 0, 0, 1), p=(50, 0, 31.5, 0, 0, 50, 23.5, 0, 0, 0, 1, 0))  # shows the middle half
    shown = np.zeros((48, 64), bool)
    shown[12:36, 16:48] = True
    assert np.array_equal(camera.unseen(), ~shown)
    shown[:], shown[15:33, 19:45] = False, True
    assert np.array_equal(camera.unseen(3), ~shown)
    # A quarter of a pixel beyond the middle of the last column or row there is some of the black in it; rounding alone hides no edge.
    for side, past in (("right", (0.25, 0)), ("bottom", (0, 0.25))):
        camera = Camera(64, 48, (50, 0, 31.5 + past[0], 0, 50, 23.5 + past[1], 0, 0, 1), p=(50, 0, 31.5, 0, 0, 50, 23.5, 0, 0, 0, 1, 0))
        shown = np.ones((48, 64), bool)
        shown[:, -1] = side != "right"
        shown[-1] &= side != "bottom"
        assert np.array_equal(camera.unseen(), ~shown), side


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot read calibration .*none.yaml: No such file"):
        Camera.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("missing", sorted(set(calibration()) - {"camera_name"}))
def test_a_file_without_one_field_is_refused(tmp_path, missing):
    path = tmp_path / "camera_info.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in calibration().items() if name != missing}))
    with pytest.raises(DataError, match=f"camera_info.yaml is not a camera_calibration YAML file: .*{missing}"):
        Camera.load(path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "just text", "[1, 2]", "a: [", "\x00", "camera_matrix: 3", "camera_matrix: {data: 3}"),
        yaml.safe_dump({**calibration(), "image_width": np.inf}),
        pytest.param("[" * 5000, id="5000 brackets"),
    ],
)
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "camera_info.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match="camera_info.yaml is not a camera_calibration YAML file"):
        Camera.load(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *(("", "it is empty"), ("[1, 2]", "it holds no `key: value` pairs")),
        (f"image_width: 3\n{yaml.safe_dump(calibration())}", "the key image_width is there twice, in line 1 and in line"),
    ],
)
def test_what_a_file_lacks_is_told(tmp_path, text, words):
    (tmp_path / "camera_info.yaml").write_text(text)
    with pytest.raises(DataError, match=words):
        Camera.load(tmp_path / "camera_info.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "camera_info.yaml"
    path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(DataError, match="not a camera_calibration YAML file"):
        Camera.load(path)


def test_values_that_are_no_calibration_name_the_file(tmp_path):
    path = tmp_path / "camera_info.yaml"
    path.write_text(yaml.safe_dump({**calibration(), "image_width": 0}))
    with pytest.raises(DataError, match="camera_info.yaml: a calibration needs a size"):
        Camera.load(path)


# ---- values that no camera has


@pytest.mark.parametrize("place", range(9))
def test_a_number_that_is_none_is_refused_wherever_it_stands(place):
    k = tuple(np.nan if i == place else v for i, v in enumerate(K))
    with pytest.raises(DataError, match="a calibration needs .*nan"):
        Camera(640, 480, k)
    with pytest.raises(DataError, match="a calibration needs finite numbers .*nan"):
        Camera(640, 480, K, p=tuple(np.nan if i == place else v for i, v in enumerate(P)))


def test_a_projection_of_zeros_is_filled_from_k_and_a_half_empty_one_is_refused():
    assert Camera(640, 480, K, p=(0.0,) * 12) == Camera(640, 480, K)
    with pytest.raises(DataError, match="focal lengths above 0 in p"):
        Camera(640, 480, K, p=(0.0, *P[1:]))


# ---- projection


def test_a_point_lies_at_its_known_pixel():
    camera = Camera(640, 480, K, p=P)
    pixels = camera.project(np.array([[0, 0, 5], [1, -0.5, 2], [1, 1, 0], [1, 1, -3], [np.nan, 0, 1], [np.inf, 0, np.inf]]))
    expected = [[310, 230], [510, 130], *[[np.nan] * 2] * 2, [np.nan, 230], [np.nan, 230]]
    np.testing.assert_allclose(pixels, expected)


def test_projecting_says_nothing_on_points_that_are_no_numbers():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Camera(640, 480, K).project(np.array([[np.inf, np.nan, np.inf], [1e300, 1, 1e-300], [0, 0, 0]]))


@given(
    depth=arrays(np.float32, (6, 8), elements=st.floats(0.25, 300, width=32)),
    fx=st.floats(3, 900),
    fy=st.floats(3, 900),
    cx=st.floats(-5, 20),
    cy=st.floats(-5, 20),
)
def test_backprojected_pixels_project_to_where_they_were(depth, fx, fy, cx, cy):
    camera = Camera.pinhole(8, 6, fx, fy, cx, cy)
    points = camera.backproject(depth)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points[..., 2], depth)
    columns, rows = np.meshgrid(np.arange(8), np.arange(6))
    np.testing.assert_allclose(camera.project(points), np.stack([columns, rows], -1), atol=2e-4)


def test_unknown_depth_gives_unknown_points():
    points = Camera.pinhole(2, 1, 10.0).backproject(np.array([[np.nan, 2.0]], np.float32))
    np.testing.assert_allclose(points, [[[np.nan] * 3, [0.1, 0, 2]]])


def test_rays_are_shared_and_cannot_be_written():
    camera = Camera.pinhole(4, 3, 10.0)
    with pytest.raises(ValueError, match="read-only"):
        camera.rays[0, 0, 0] = 1.0


@pytest.mark.parametrize(
    ("shape", "found"), [((3, 4), "4x3"), ((6, 8, 3), None), ((8, 6), "6x8"), ((5,), r"of shape \(5,\)"), ((), r"of shape \(\)")]
)
def test_arrays_of_another_size_are_refused_with_both_sizes(shape, found):
    camera = Camera.pinhole(8, 6, 10.0)
    if found is None:
        return camera.check_size(np.zeros(shape), "the image")
    for method in (lambda array: camera.check_size(array, "depth"), camera.backproject):
        with pytest.raises(GeometryError, match=f"depth is {found}, its calibration is for 8x6; both must be of one camera mode"):
            method(np.zeros(shape))
    with pytest.raises(GeometryError, match=f"the image is {found}"):
        camera.rectify(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("image", [None, [[0] * 8] * 6], ids=["None", "list"])
def test_what_is_no_array_is_refused_with_the_likely_cause(image):
    words = f"the image must be an array, got {type(image).__name__}; cv2.imread gives None for a file it cannot read"
    with pytest.raises(GeometryError, match=words):
        Camera.pinhole(8, 6, 10.0).rectify(image)


# ---- the stereo pair


def test_the_baseline_is_that_of_the_projection():
    assert Camera.pinhole(640, 480, 500.0, baseline=0.12).baseline == pytest.approx(0.12)
    assert Camera(640, 480, K, p=P).baseline == pytest.approx(0.1)
    left = Camera.pinhole(640, 480, 500.0)
    assert left.baseline == 0 and "-0.0" not in repr((left, left.baseline))


# ---- rectification

SMALL = {"plumb_bob": 5, "rational_polynomial": 8}


@st.composite
def distorted_cameras(draw: st.DrawFn) -> Camera:
    """Cameras 64x48 whose lens and rectification are as mild as real ones."""
    model = draw(st.sampled_from(sorted(SMALL)))
    number = lambda limit: st.floats(-limit, limit)  # noqa: E731
    d = [draw(number(0.2)), draw(number(0.05)), draw(number(0.005)), draw(number(0.005)), draw(number(0.01))]
    if model == "rational_polynomial":
        d += [draw(number(0.1)), draw(number(0.02)), draw(number(0.005))]
    r, _ = cv2.Rodrigues(np.array([draw(number(0.03)) for _ in range(3)]))
    k = (60 + draw(number(10)), 0, 31 + draw(number(3)), 0, 60 + draw(number(10)), 24 + draw(number(3)), 0, 0, 1)
    f = 58 + draw(number(8))
    return Camera(
        64, 48, k, model, tuple(d), tuple(r.ravel()), (f, 0, 32 + draw(number(3)), -6.0, 0, f, 23 + draw(number(3)), 0, 0, 0, 1, 0)
    )


@settings(max_examples=60, deadline=None)
@given(distorted_cameras())
def test_the_maps_lead_to_the_raw_pixels_that_undistort_to_the_rectified_ones(camera):
    columns, rows = camera.rectification_maps()
    assert columns.shape == rows.shape == camera.shape and columns.dtype == rows.dtype == np.float32
    k, r = np.reshape(camera.k, (3, 3)), np.reshape(camera.r, (3, 3))
    raw = np.stack([columns, rows], -1).reshape(-1, 1, 2)
    back = cv2.undistortPoints(raw, k, np.array(camera.d), R=r, P=camera.matrix).reshape(48, 64, 2)
    grid = np.stack(np.meshgrid(np.arange(64), np.arange(48)), -1)
    # OpenCV inverts the lens by five steps of a fixed point.
    assert np.abs(back - grid)[8:-8, 8:-8].max() < 0.05


@settings(max_examples=60, deadline=None)
@given(distorted_cameras())
def test_the_maps_follow_the_published_distortion_formula(camera):
    k1, k2, p1, p2, k3, k4, k5, k6 = (*camera.d, 0.0, 0.0, 0.0)[:8]
    rays = np.linalg.inv(np.reshape(camera.r, (3, 3))) @ camera.rays.reshape(-1, 3).astype(np.float64).T
    x, y = rays[:2] / rays[2]
    r2 = x * x + y * y
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    x, y = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    columns, rows = camera.rectification_maps()
    np.testing.assert_allclose(columns.ravel(), x * camera.k[0] + camera.k[2], atol=1e-3)
    np.testing.assert_allclose(rows.ravel(), y * camera.k[4] + camera.k[5], atol=1e-3)


def test_a_rectified_camera_leaves_images_alone_and_another_moves_them():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    camera = Camera.pinhole(64, 48, 60.0)
    assert camera.is_rectified and camera.rectify(image) is image
    moved = Camera(64, 48, camera.k, p=(60, 0, camera.cx + 3, 0, 0, 60, camera.cy - 2, 0, 0, 0, 1, 0))
    assert not moved.is_rectified
    np.testing.assert_array_equal(moved.rectify(image)[:-2, 3:], image[2:, :-3])
    assert (moved.rectify(image)[:, :3] == 0).all()
    turned = Camera(64, 48, camera.k, r=(0, -1, 0, 1, 0, 0, 0, 0, 1))  # a quarter turn, and the same matrix on either side
    assert not turned.is_rectified
    np.testing.assert_array_equal(turned.rectify(image)[:, 8:56], np.rot90(image[:, 8:56], -1))


def test_what_has_no_mean_is_rectified_by_the_nearest_pixel():
    ids = np.random.default_rng(0).integers(0, 9, (48, 64), np.uint8)
    camera = Camera.pinhole(64, 48, 60.0)
    assert camera.rectify_nearest(ids, 255) is ids
    moved = Camera(64, 48, camera.k, p=(60, 0, camera.cx + 3.4, 0, 0, 60, camera.cy - 2.4, 0, 0, 0, 1, 0)).rectify_nearest(ids, 255)
    np.testing.assert_array_equal(moved[:-2, 3:], ids[2:, :-3])
    assert (moved[-2:] == 255).all() and (moved[:, :3] == 255).all()
    with pytest.raises(GeometryError, match="the image is 64x24"):
        camera.rectify_nearest(ids[:24], 255)


@pytest.mark.parametrize(
    ("model", "d", "words"),
    [
        ("equidistant", (0.1,) * 4, "distortion model 'equidistant' cannot be rectified here; plumb_bob and rational_polynomial can"),
        ("equidistant", (0.0,) * 4, "distortion model 'equidistant' cannot"),
        ("", (0.1,) * 5, "distortion model '' cannot"),
        ("plumb_bob", (0.1,) * 8, "distortion model plumb_bob has 4 or 5 coefficients, got 8"),
        ("rational_polynomial", (0.1,) * 5, "distortion model rational_polynomial has 8 or 12 or 14 coefficients, got 5"),
    ],
)
def test_lenses_nobody_can_rectify_are_refused_in_words(model, d, words):
    with pytest.raises(GeometryError, match=words):
        Camera(640, 480, K, model, d).rectification_maps()


@pytest.mark.parametrize(("model", "d"), [("plumb_bob", ()), ("", ()), ("", (0.0,) * 5)])
def test_a_lens_without_distortion_needs_no_model(model, d):
    columns, rows = Camera(64, 48, Camera.pinhole(64, 48, 60.0).k, model, d).rectification_maps()
    grid = np.meshgrid(np.arange(64), np.arange(48))
    np.testing.assert_allclose([columns, rows], grid, atol=1e-4)


def test_a_rectifying_rotation_of_zeros_is_none():
    camera = Camera(64, 48, Camera.pinhole(64, 48, 60.0).k, r=(0.0,) * 9)
    assert camera.r == IDENTITY and camera.is_rectified


def test_the_calibration_of_the_rectified_image_keeps_projection_and_baseline():
    camera = Camera(640, 480, K, "plumb_bob", (-0.3, 0.1, 0.0, 0.001, 0.0), p=P)
    rectified = camera.rectified()
    assert rectified.is_rectified and not camera.is_rectified
    assert rectified.p == P and rectified.baseline == camera.baseline and rectified.k == (400, 0, 310, 0, 400, 230, 0, 0, 1)


# ---- other sizes


@given(st.integers(8, 2000), st.integers(6, 2000), arrays(np.float64, (5, 2), elements=st.floats(-2, 2)))
def test_in_a_scaled_image_points_keep_their_share_of_its_area(width, height, directions):
    camera = Camera(640, 480, K, p=P)
    scaled = camera.scaled(width, height)
    points = np.column_stack([directions, np.ones(5)])
    share, expected = (scaled.project(points) + 0.5) / (width, height), (camera.project(points) + 0.5) / (640, 480)
    np.testing.assert_allclose(share, expected, atol=1e-9)
    assert scaled.baseline == pytest.approx(camera.baseline) and scaled.shape == (height, width)
    assert Camera(640, 480, K).scaled(width, height).is_rectified
    assert dataclasses.replace(camera.scaled(640, 480), d=camera.d) == camera


def test_a_size_of_nothing_is_refused():
    with pytest.raises(DataError, match="got 0x480"):
        Camera(640, 480, K).scaled(0, 480)


# ---- files


@settings(deadline=None)
@given(distorted_cameras())
def test_a_calibration_written_is_read_back_bit_by_bit(tmp_path_factory, camera):
    path = tmp_path_factory.mktemp("calibration") / "camera_info.yaml"
    path.write_text(camera.to_yaml())
    assert Camera.load(path) == camera
