"""Stereo matching against exact pairs, the formulas of depth and disparity, and pairs that are no pair."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lix_core.camera import Camera
from lix_core.errors import GeometryError
from lix_core.geometry.limits import within
from lix_core.geometry.stereo import (
    MODES,
    StereoMatcher,
    StereoOptions,
    _smooth_within_edges,
    depth_to_disparity,
    disparity_to_depth,
    pair_fault,
    pair_geometry,
)

WIDTH, HEIGHT, FX, BASELINE = 320, 120, 200.0, 0.4
PLANES = (  # normal and distance of n . X = distance, and the range of x that it fills [m]
    ((0.0, 1.0, 0.0), 1.5, (-np.inf, np.inf)),
    ((0.3, 0.0, 1.0), 16.0, (-np.inf, np.inf)),
    ((0.0, 0.0, 1.0), 4.0, (-0.6, 0.5)),
)
SMALL = StereoOptions(max_disparity=48)


def view(x: float, seed: int = 0, noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) uint8 image and (H, W) float32 depth of PLANES from a camera at x [m]: every ray is cut with every plane."""
    rng = np.random.default_rng(seed)
    frequencies = rng.normal(size=(60, 3)) * np.exp(rng.uniform(np.log(0.5), np.log(20), (60, 1)))
    phases = rng.uniform(0, 2 * np.pi, 60)
    rays = np.ones((HEIGHT, WIDTH, 3))
    rays[..., 0] = (np.arange(WIDTH) - (WIDTH - 1) / 2) / FX
    rays[..., 1] = ((np.arange(HEIGHT) - (HEIGHT - 1) / 2) / FX)[:, None]
    depth = np.full((HEIGHT, WIDTH), np.inf)
    for normal, distance, (low, high) in PLANES:
        slope = rays @ np.array(normal)
        z = np.where(slope > 1e-9, (distance - normal[0] * x) / np.maximum(slope, 1e-9), np.inf)
        across = rays[..., 0] * np.minimum(z, 1e6) + x
        depth = np.where((across >= low) & (across <= high) & (z < depth), z, depth)
    points = rays * depth[..., None] + (x, 0.0, 0.0)
    # Waves finer than the pixels fade, as a lens would have it.
    fade = np.exp(-0.5 * (np.linalg.norm(frequencies, axis=1) * depth[..., None] / FX / 1.2) ** 2)
    image = 120 + 14 * (np.cos(points @ frequencies.T + phases) * fade).sum(-1)
    image += np.random.default_rng([seed, int(1e3 * x)]).normal(0, noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), depth.astype(np.float32)


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Left and right image, disparity of the left one [pixels], and where the right camera sees the same."""
    (left, depth), (right, other) = view(0.0), view(BASELINE)
    disparity = FX * BASELINE / depth
    column = np.rint(np.arange(WIDTH) - disparity).astype(int)
    seen = np.abs(np.take_along_axis(other, column.clip(0), 1) / depth - 1) < 0.02
    return left, right, disparity, seen & (column >= 0)


def shifted(columns: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A wall of blurred noise and the same `columns` farther left."""
    wall = cv2.GaussianBlur(np.random.default_rng(seed).uniform(0, 255, (100, 300)).astype(np.float32), (0, 0), 1.5) * 3 - 255
    other = cv2.warpAffine(wall, np.float32([[1, 0, -columns], [0, 1, 0]]), (300, 100), flags=cv2.INTER_CUBIC)
    return tuple(np.clip(image, 0, 255).astype(np.uint8) for image in (wall, other))


# ---- matching


@pytest.mark.parametrize("mode", MODES)
def test_disparity_of_planes_is_exact_to_a_fraction_of_a_pixel(pair, mode):
    left, right, truth, seen = pair
    found = StereoMatcher(StereoOptions(max_disparity=48, mode=mode)).match(left, right)
    assert found.shape == truth.shape and found.dtype == np.float32
    error = np.abs(found - truth)[seen & np.isfinite(found)]
    assert np.isfinite(found[seen]).mean() > 0.85
    assert np.mean(error > 3) < 0.02 and np.median(error) < 0.2


@pytest.mark.parametrize(("mode", "least"), list(zip(MODES, (0.95, 0.92, 0.9, 0.68))))
def test_large_windows_lose_hardly_any_matches(pair, mode, least):
    left, right, truth, seen = pair
    found = StereoMatcher(StereoOptions(max_disparity=48, block_size=21, mode=mode)).match(left, right)
    assert np.isfinite(found[seen]).mean() > least
    assert np.mean(np.abs(found - truth)[seen & np.isfinite(found)] > 2) < 0.06


@pytest.mark.parametrize("columns", [1, 12, 12.5, 20.75, 30.25])
def test_a_shifted_wall_has_its_shift_everywhere(columns):
    found = StereoMatcher(SMALL).match(*shifted(columns))[10:-10, 60:-40]
    assert np.isfinite(found).mean() > 0.99
    assert np.nanmax(np.abs(found - columns)) < 0.5 and abs(np.nanmedian(found) - columns) < 0.1


def test_the_check_removes_what_only_the_left_camera_sees(pair):
    left, right, truth, seen = pair
    hidden = ~cv2.erode((~seen).astype(np.uint8), np.ones((1, 3))).astype(bool)
    hidden = ~hidden & (np.arange(WIDTH) > 48)
    share = {}
    for consistency in (0.0, 1.0):
        found = StereoMatcher(StereoOptions(max_disparity=48, consistency=consistency, speckle=0)).match(left, right)
        share[consistency] = np.isfinite(found[hidden]).mean()
    assert hidden.sum() > 200 and share[0.0] > 0.5 and share[1.0] < 0.25 * share[0.0]


def test_the_left_border_is_known_where_the_right_camera_sees_it():
    for consistency in (0.0, 1.0):
        found = StereoMatcher(StereoOptions(max_disparity=48, consistency=consistency)).match(*shifted(12))
        # What the correction of fractions adds is at most 0.11 pixels.
        assert np.nanmax(found - np.arange(found.shape[1])) <= 0.11 and np.isfinite(found[10:-10, 20:48]).mean() > 0.95


def test_the_quick_check_finds_nearly_the_same(pair):
    left, right, truth, seen = pair
    for max_disparity in (48, 64):
        found = StereoMatcher(StereoOptions(max_disparity=max_disparity, quick_check=True)).match(left, right)
        error = np.abs(found - truth)[seen & np.isfinite(found)]
        assert np.isfinite(found[seen]).mean() > 0.7 and np.mean(error > 3) < 0.02


def test_each_mode_matches_in_its_own_way(pair):
    found = [StereoMatcher(StereoOptions(max_disparity=48, mode=mode)).match(*pair[:2]) for mode in MODES]
    assert len({disparity.tobytes() for disparity in found}) == len(MODES)


def test_the_less_consistent_matches_need_be_the_more_are_kept(pair):
    options = [StereoOptions(max_disparity=48, speckle=0, consistency=consistency) for consistency in (0.25, 1.0, 3.0)]
    shares = [np.isfinite(StereoMatcher(each).match(*pair[:2])).mean() for each in options]
    assert shares[0] + 0.01 < shares[1] < shares[2]


def test_the_blur_is_that_of_the_images(pair):
    left, right = pair[:2]
    expected = StereoMatcher(replace(SMALL, blur=0.0)).match(*(cv2.GaussianBlur(image, (0, 0), 1.5) for image in (left, right)))
    np.testing.assert_array_equal(StereoMatcher(replace(SMALL, blur=1.5)).match(left, right), expected)


def test_a_slanted_surface_is_no_speckle():
    """Its disparity grows by a quarter of a pixel from column to column."""
    wall, _ = shifted(0.0)
    columns = np.arange(300, dtype=np.float32)
    place = (columns + 4) / 0.75  # column of the left image that is seen in each column of the right one: u - (4 + u / 4)
    right = cv2.remap(wall, np.tile(place, (100, 1)), np.tile(np.arange(100, dtype=np.float32)[:, None], 300), cv2.INTER_CUBIC)
    found = StereoMatcher(StereoOptions(max_disparity=96, speckle=5000)).match(wall, right)[10:-10, 40:-40]
    assert np.isfinite(found).mean() > 0.9
    assert np.nanmedian(np.abs(found - (4 + columns[40:-40] / 4))) < 0.3


def test_gray_and_rgb_give_the_same_and_so_does_a_second_call(pair):
    left, right = pair[:2]
    matcher = StereoMatcher(SMALL)
    first = matcher.match(left, right)
    np.testing.assert_array_equal(matcher.match(*(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) for image in (left, right))), first)
    np.testing.assert_array_equal(matcher.match(left[:, ::-1][:, ::-1], right), first)
    colours = [np.dstack([image, 255 - image, image // 2]) for image in (left, right)]
    grays = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in colours]
    np.testing.assert_array_equal(matcher.match(*colours), matcher.match(*grays))


def test_the_edge_filter_smooths_noise_and_knows_the_same_pixels(pair):
    (left, _), (right, _) = view(0.0, noise=8.0), view(BASELINE, noise=8.0)
    truth = pair[2]
    plain, smooth = (StereoMatcher(StereoOptions(max_disparity=48, edge_filter=e)).match(left, right) for e in (False, True))
    np.testing.assert_array_equal(np.isfinite(plain), np.isfinite(smooth))
    assert np.nanmedian(np.abs(smooth - truth)) < 0.9 * np.nanmedian(np.abs(plain - truth))


def test_the_edge_filter_leaves_what_is_flat_and_steps_at_edges_of_the_image():
    guide = np.where(np.arange(40) < 20, 40, 200).astype(np.uint8) * np.ones((30, 1), np.uint8)
    hole = np.random.default_rng(0).random(guide.shape) < 0.3
    for disparity in (np.full(guide.shape, 12, np.float32), np.where(guide < 100, 10, 20).astype(np.float32)):
        disparity[hole] = np.nan
        np.testing.assert_allclose(_smooth_within_edges(disparity, guide), disparity, atol=0.15)


def test_what_shows_nothing_has_no_disparity():
    blank = np.full((100, 300), 90, np.uint8)
    assert np.isnan(StereoMatcher(SMALL).match(blank, blank)).all()
    noise = [np.random.default_rng(seed).integers(0, 256, (100, 300), np.uint8) for seed in (0, 1)]
    assert np.isfinite(StereoMatcher(SMALL).match(*noise)).mean() < 0.05


IMAGE = np.zeros((60, 200), np.uint8)


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (IMAGE, IMAGE[:, 1:], "left and right image differ in size, 200x60 and 199x60"),
        (IMAGE.astype(np.float32), IMAGE, r"the left image must be .* uint8, got float32 of shape \(60, 200\)"),
        (IMAGE, IMAGE[..., None], r"the right image must be .*got uint8 of shape \(60, 200, 1\)"),
        (IMAGE, None, "the right image must be .*got NoneType"),
        (IMAGE[:0], IMAGE[:0], r"the left image must be .*got uint8 of shape \(0, 200\)"),
    ],
)
def test_images_that_are_no_pair_are_refused_in_words(left, right, words):
    with pytest.raises(GeometryError, match=words):
        StereoMatcher(SMALL).match(left, right)
    with pytest.raises(GeometryError, match=words):
        pair_fault(left, right)


def test_images_narrower_than_the_search_are_refused():
    with pytest.raises(GeometryError, match="max_disparity 208 does not fit into images 200 pixels wide"):
        StereoMatcher(StereoOptions(max_disparity=208)).match(IMAGE, IMAGE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_disparity": 100}, "multiple of 16 pixels, got 100; take 96"),
        ({"max_disparity": 0}, "multiple of 16 pixels, got 0; take 16"),
        ({"max_disparity": 2048}, "max_disparity must be up to 2032 pixels, .*; got 2048"),
        ({"block_size": 4}, "block_size must be odd and 1 to 21 pixels, got 4"),
        ({"mode": "sgbm"}, "no stereo mode 'sgbm'; there are three_paths"),
        ({"consistency": -1.0}, "consistency must be 0 to 16, got -1.0"),
        ({"consistency": float("nan")}, "consistency must be 0 to 16, got nan"),
        ({"uniqueness": 101}, "uniqueness must be 0 to 100, got 101"),
        ({"speckle": -5}, "speckle must be 0 to 10000, got -5"),
        ({"blur": 9.0}, "blur must be 0 to 5, got 9.0"),
    ],
)
def test_options_that_cannot_be_are_refused_in_words(options, words):
    with pytest.raises(GeometryError, match=words):
        StereoOptions(**options)


# ---- depth and disparity


@pytest.mark.parametrize("edge_filter", [False, True])
def test_infinity_is_taken_off_and_what_is_farther_is_unknown(edge_filter):
    """A wall at disparity 10: 14 where infinity is at -4, 3 where it is at 7, next to nothing where it is at 12."""
    left, right = shifted(10.0)
    matcher = StereoMatcher(replace(SMALL, edge_filter=edge_filter))
    plain, inner = matcher.match(left, right), np.s_[:, 24:-16]
    for infinity in (-4.0, -3.5, 7.0, 7.25):
        found = matcher.match(left, right, infinity)
        np.testing.assert_allclose(found[inner], (plain - np.float32(infinity))[inner], atol=1e-3)
        assert np.nanmedian(found) == pytest.approx(10 - infinity, abs=0.1)
    assert np.isnan(matcher.match(left, right, 12.0)).mean() > 0.9


@pytest.mark.parametrize("options", [{}, {"quick_check": True}], ids=["full", "quick"])
@pytest.mark.parametrize("columns", [-70, -20, 40])
def test_the_search_begins_at_infinity_wherever_the_principal_points_put_it(pair, columns, options):
    """With the right image moved, disparities of 5 to 20 lie below 0 or beyond max_disparity, and the depth stays what it was."""
    left, right, truth, seen = pair
    matcher = StereoMatcher(StereoOptions(max_disparity=48, **options))
    there = np.zeros_like(right)
    there[:, max(-columns, 0) : WIDTH + min(-columns, 0)] = right[:, max(columns, 0) : WIDTH + min(columns, 0)]
    plain, moved_too = matcher.match(left, right), matcher.match(left, there, float(columns))
    target = np.arange(WIDTH) - truth - columns
    inside = (target >= 8) & (target < WIDTH - 8)
    both = np.isfinite(plain) & np.isfinite(moved_too) & inside
    assert both.sum() > 0.9 * (np.isfinite(plain) & inside).sum()
    assert np.mean(np.abs(moved_too - plain)[both] < 0.2) > 0.97
    # The match must lie in the right image, and not in the border beyond it.
    column = np.arange(WIDTH) - moved_too - columns
    assert np.nanmin(column) >= -0.11 and np.nanmax(column) <= WIDTH - 1 + 0.11
    assert np.isnan(moved_too[(target < -5) | (target > WIDTH + 5)]).mean() > 0.99


@pytest.mark.parametrize("infinity", [300.0, -300.0, -299.5, float("nan")])
def test_principal_points_farther_apart_than_the_image_is_wide_are_refused(infinity):
    with pytest.raises(GeometryError, match=f"{infinity:.1f} columns apart in images 300 pixels wide"):
        StereoMatcher(SMALL).match(*shifted(10.0), infinity)


def test_depth_beyond_its_limits_is_unknown():
    depth = np.float32([[np.nan, 1, 2], [5, 8, 9]])
    assert within(depth, 0, 0) is depth
    for limits, expected in (
        ((2, 8), [[np.nan, np.nan, 2], [5, 8, np.nan]]),
        ((0, 5), [[np.nan, 1, 2], [5, np.nan, np.nan]]),
        ((5, 0), [[np.nan, np.nan, np.nan], [5, 8, 9]]),
    ):
        limited = within(depth, *limits)
        np.testing.assert_array_equal(limited, np.float32(expected))
        assert limited.dtype == np.float32


def test_depth_is_focal_length_times_baseline_over_disparity():
    disparity = np.array([[1, 38.88, 0, -3], [np.nan, np.inf, 1e-42, 77.76]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        depth = disparity_to_depth(disparity, 720.0, 0.54)
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, [[388.8, 10, np.nan, np.nan], [np.nan, np.nan, np.nan, 5]], rtol=1e-6)


@given(arrays(np.float32, (3, 4), elements=st.floats(0.1015625, 512, width=32)), st.floats(50, 3000), st.floats(0.02, 3))
def test_depth_and_disparity_undo_each_other(disparity, fx, baseline):
    np.testing.assert_allclose(depth_to_disparity(disparity_to_depth(disparity, fx, baseline), fx, baseline), disparity, rtol=1e-5)


@pytest.mark.parametrize(
    ("fx", "baseline", "words"),
    [
        (0.0, 0.5, "fx must be above 0 pixels, got 0.0; .*uncalibrated"),
        (np.nan, 0.5, "fx must be above 0 pixels, got nan"),
        (700.0, 0.0, r"must be above 0 m, got 0.0; p\[3\] of the right camera_info"),
        (700.0, -0.5, "must be above 0 m, got -0.5; left and right camera_info are swapped"),
        (700.0, np.inf, "must be above 0 m, got inf"),
    ],
)
def test_impossible_calibrations_are_refused_in_words(fx, baseline, words):
    for convert in (disparity_to_depth, depth_to_disparity):
        with pytest.raises(GeometryError, match=words):
            convert(np.ones((2, 2), np.float32), fx, baseline)


def test_the_torch_versions_agree_and_have_gradients_only_where_known():
    torch = pytest.importorskip("torch")
    from lix_core.geometry.batch import stereo as batch

    disparity = np.random.default_rng(0).uniform(0.5, 100, (2, 5, 7)).astype(np.float32)
    disparity[0, 0] = [0, -1, np.nan, np.inf, -np.inf, 1e-42, 3]
    expected = np.stack([disparity_to_depth(d, fx, b) for d, fx, b in zip(disparity, (700, 400), (0.5, 0.1))])
    tensor = torch.tensor(disparity, requires_grad=True)
    depth = batch.disparity_to_depth(tensor, torch.tensor([700.0, 400.0]), torch.tensor([0.5, 0.1]))
    np.testing.assert_allclose(depth.detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(
        batch.depth_to_disparity(depth, 700.0, 0.5)[0].detach().numpy(), depth_to_disparity(expected[0], 700, 0.5), rtol=1e-5
    )
    depth[torch.isfinite(depth)].sum().backward()
    known = np.isfinite(expected)
    np.testing.assert_allclose(tensor.grad.numpy()[known], (-expected / disparity)[known], rtol=1e-4)
    assert (tensor.grad.numpy()[~known] == 0).all()
    with pytest.raises(GeometryError, match="baseline of a stereo pair must be above 0, got 0.0"):
        batch.disparity_to_depth(tensor, 700.0, 0.0)


# ---- pairs that are no pair


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray]:
    """Left and right (300, 600) uint8: three walls of noise at disparities 6, 15 and 30."""
    rng = np.random.default_rng(3)
    wall = cv2.GaussianBlur(rng.uniform(0, 255, (300, 700)).astype(np.float32), (0, 0), 2.0) * 4 - 382
    left, right = wall[:, 50:650].copy(), wall[:, 56:656].copy()
    for rows, columns, disparity in ((slice(80, 200), slice(100, 250), 15), (slice(150, 300), slice(350, 520), 30)):
        left[rows, columns] = wall[rows, columns][:, ::-1]
        right[rows, columns.start - disparity : columns.stop - disparity] = left[rows, columns]
    return tuple(np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8) for image in (left, right))


def moved(image: np.ndarray, rows: float = 0.0, degrees: float = 0.0) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((image.shape[1] / 2, image.shape[0] / 2), degrees, 1.0)
    matrix[1, 2] += rows
    return cv2.warpAffine(image, matrix, image.shape[::-1], borderMode=cv2.BORDER_REFLECT)


def test_a_right_pair_has_no_fault(scene, pair):
    assert pair_fault(*scene) == "" and pair_fault(*pair[:2]) == ""
    assert pair_fault(*(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) for image in scene)) == ""
    assert pair_fault(scene[0], moved(scene[1], rows=0.5)) == ""


def test_a_pair_that_sees_only_far_things_is_not_swapped(scene):
    noise = np.random.default_rng(0).normal(0, 3, scene[0].shape)
    assert pair_fault(scene[0], np.clip(scene[0] + noise, 0, 255).astype(np.uint8)) == ""


def test_swapped_images_are_said(scene):
    assert pair_fault(scene[1], scene[0]) == "left and right are swapped"


@pytest.mark.parametrize("rows", [-9.0, 1.6, 4.2, 25.0])
def test_rows_that_differ_are_said_and_measured(scene, rows):
    fault = pair_fault(scene[0], moved(scene[1], rows=rows))
    assert fault.startswith("not rectified: rows differ by ")
    assert abs(float(re.search(r"by ([\d.]+) px", fault).group(1)) - abs(rows)) < 0.3
    assert pair_fault(scene[0], moved(scene[1], rows=rows), row_tolerance=40) == ""


def test_a_turned_camera_is_not_rectified(scene):
    # Turned by 1 degree, rows change by 0.0175 a column: by 2.6 pixels in the mean over 600 columns.
    fault = pair_fault(scene[0], moved(scene[1], degrees=1.0))
    assert fault.startswith("not rectified") and 2 < float(re.search(r"by ([\d.]+) px", fault).group(1)) < 3.5


def test_a_swapped_pair_that_is_not_rectified_has_both_faults(scene):
    assert re.fullmatch("left and right are swapped; not rectified: rows differ by .*", pair_fault(moved(scene[1], 5.0), scene[0]))


def test_infinity_tells_swapped_cameras_from_principal_points_that_differ(scene):
    """The pair's disparities are 6 to 30; with another column of the right principal point all are 40 less."""
    left, right = scene
    behind = np.ascontiguousarray(np.roll(right, 40, axis=1))
    assert "swapped" in pair_fault(left, behind) and pair_fault(left, behind, infinity=-40.0) == ""
    assert pair_fault(right, left, infinity=-40.0) == "" and "swapped" in pair_fault(right, left)


def test_faults_of_wide_images_are_measured_in_their_own_pixels(scene):
    left, right = (cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for image in scene)
    fault = pair_fault(left, moved(right, rows=9.0))
    assert abs(float(re.search(r"by ([\d.]+) px", fault).group(1)) - 9.0) < 0.6
    assert pair_fault(left, moved(right, rows=1.3), row_tolerance=1.6) == ""
    ahead = np.ascontiguousarray(np.roll(right, -200, axis=1))  # disparities of 212 to 260
    assert pair_fault(left, ahead, infinity=200.0) == "" and "swapped" in pair_fault(left, ahead, infinity=280.0)


def test_the_geometry_of_a_pair_is_its_baseline_and_where_infinity_is():
    left = Camera.pinhole(320, 96, 200.0, baseline=-0.2)
    assert pair_geometry(left, Camera.pinhole(320, 96, 200.0, cx=left.cx + 4, baseline=0.3)) == (pytest.approx(0.5), -4.0)
    for right, words in (
        (Camera.pinhole(320, 96, 200.0, baseline=-0.2), r"p\[3\] of right/camera_info is 0"),
        (Camera.pinhole(320, 96, 200.0, baseline=-0.5), "left and right camera_info are swapped"),
        (Camera.pinhole(320, 96, 210.0, baseline=0.5), "fx 200.00 and 210.00"),
        (Camera.pinhole(300, 96, 200.0, baseline=0.5), "is for 320x96, the right one for 300x96"),
    ):
        with pytest.raises(GeometryError, match=words):
            pair_geometry(left, right)


@pytest.mark.parametrize("name", ["max_disparity", "block_size", "uniqueness", "speckle"])
def test_options_of_whole_numbers_take_no_others(name):
    with pytest.raises(GeometryError, match=f"{name} must be a whole number, got 32.0"):
        StereoOptions(**{name: 32.0})


def test_different_scenes_and_one_camera_twice_are_said(scene):
    (left, _), (_, right) = scene, shifted(10, seed=8)
    assert "left and right show different scenes" in pair_fault(left, cv2.resize(right, (600, 300)))
    assert "the same image" in pair_fault(scene[0], scene[0].copy())


@pytest.mark.parametrize("gain", [0.0, 0.02, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [2.0, 8.0, 25.0])
def test_darkness_full_of_noise_is_no_fault(scene, gain, sigma):
    rng = np.random.default_rng(0)
    left, right = (np.clip(image * gain + rng.normal(5, sigma, image.shape), 0, 255).astype(np.uint8) for image in scene)
    assert pair_fault(left, right) == ""


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (40, 20), (20, 3000), (480, 640)])
def test_images_that_show_nothing_have_no_fault(shape):
    blank = np.full(shape, 7, np.uint8)
    assert pair_fault(blank, blank) == ""


@pytest.mark.parametrize("weather", ["clear", "night", "fog", "rain"])
def test_simulated_streets_have_no_fault_until_they_are_swapped(weather):
    pytest.importorskip("embreex")
    from lix_core.world.drive import Drive

    frame = Drive(7, weather=weather).frame(0, cloud=False)
    assert pair_fault(frame.rgb, frame.right) == ""
    assert pair_fault(frame.right, frame.rgb) in (
        ("", "left and right are swapped") if weather == "fog" else ("left and right are swapped",)
    )
