"""Completion of sparse depth: planes, edges, confidence, and figures on a real recording where it is there."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lix_core.camera import Camera
from lix_core.errors import GeometryError
from lix_core.geometry import completion
from lix_core.geometry.completion import BAND, complete

ROOT = Path(__file__).resolve().parents[1]
KITTI = ROOT.parent / "shared" / "data" / "kitti_stream"
CAMERA = Camera.pinhole(320, 160, 200.0)

pytestmark = pytest.mark.filterwarnings("error")


def rings(depth: np.ndarray, spacing: int = 5, step: int = 2) -> np.ndarray:
    """What a LiDAR leaves of a depth image: every `spacing`th row, every `step`th pixel of it."""
    sparse = np.full_like(depth, np.nan)
    sparse[::spacing, ::step] = depth[::spacing, ::step]
    return sparse


def plane(normal: tuple[float, float, float], distance: float) -> np.ndarray:
    """Depth of the plane normal . x = distance in CAMERA."""
    return (distance / (CAMERA.rays @ np.array(normal))).astype(np.float32)


@pytest.mark.parametrize(("normal", "distance"), [((0, 0, 1), 7.0), ((0.5, 0.1, 1), 12.0), ((-0.6, 0.3, 1), 30.0), ((0, 0.9, 0.6), 6.0)])
def test_planes_come_back_whole(normal, distance):
    truth = plane(normal, distance)
    result = complete(rings(truth))
    assert result.depth.dtype == result.confidence.dtype == np.float32
    assert np.isfinite(result.depth).all()
    inner = (slice(10, -10), slice(10, -10))
    error = np.abs(result.depth / truth - 1)
    assert np.median(error[inner]) < 0.005 and error[inner].max() < 0.03 and error.max() < 0.15
    assert np.median(result.confidence) > 0.8


def test_measured_pixels_keep_their_depth_and_are_sure():
    sparse = rings(plane((0.3, 0.4, 1), 9.0))
    result = complete(sparse)
    known = np.isfinite(sparse)
    np.testing.assert_array_equal(result.depth[known], sparse[known])
    assert (result.confidence[known] == 1).all()
    assert (result.confidence[~known] < 1).all() and (result.confidence[~known] > 0).all()


def test_an_edge_stays_an_edge_and_is_unsure():
    truth = np.full((160, 320), 40.0, np.float32)
    truth[:, 150:] = 5.0
    result = complete(rings(truth))
    halfway = (result.depth > 7) & (result.depth < 30)
    assert halfway.mean() < 4 / 320
    assert np.abs(result.depth - truth)[:, np.r_[0:142, 158:320]].max() < 0.25
    assert result.confidence[10:-10, 146:154].mean() < 0.5 * result.confidence[10:-10, :100].mean()


def test_confidence_falls_with_the_distance_to_the_measurement():
    sparse = np.full((101, 101), np.nan, np.float32)
    sparse[50, 50] = 10.0
    result = complete(sparse, reach=24)
    along = result.confidence[50, 50:76]
    assert along[0] == 1 and (np.diff(along) <= 1e-6).all() and along[24] < 0.8 * along[2]
    np.testing.assert_allclose(result.depth[np.isfinite(result.depth)], 10.0, rtol=1e-5)


@pytest.mark.parametrize(("error", "confidence"), [(0.0, 1.0), (0.05, 0.5), (0.15, 0.25)])
def test_confidence_is_one_half_where_depth_is_five_percent_off(monkeypatch, error, confidence):
    monkeypatch.setattr(completion, "expected_error", lambda near_sum, *_: np.full_like(near_sum, error))
    sparse = rings(plane((0, 0, 1), 7.0))
    np.testing.assert_allclose(complete(sparse).confidence[np.isnan(sparse)], confidence, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10**6), st.integers(1, 40))
def test_depth_is_given_within_reach_and_nowhere_else(reach, seed, count):
    rng = np.random.default_rng(seed)
    sparse = np.full((90, 130), np.nan, np.float32)
    places = rng.integers(0, sparse.shape, (count, 2))
    sparse[places[:, 0], places[:, 1]] = rng.uniform(1, 80, count)
    distance = np.abs(np.indices(sparse.shape).reshape(2, -1, 1) - places.T[:, None]).max(0).min(1).reshape(sparse.shape)
    result = complete(sparse, reach)
    np.testing.assert_array_equal(np.isfinite(result.depth), distance <= reach)
    np.testing.assert_array_equal(result.confidence > 0, distance <= reach)
    given = result.depth[distance <= reach]
    assert given.min() >= np.nanmin(sparse) * 0.999 and given.max() <= np.nanmax(sparse) * 1.001


def test_bands_leave_no_seam():
    """Rows are finished in bands; moved by half a band, the same scene must give the same depth."""
    truth = plane((0.2, 0.5, 1), 15.0)
    truth[60:100, 100:140] = 4.0
    sparse = rings(truth)
    moved = np.full((160 + BAND // 2, 320), np.nan, np.float32)
    moved[BAND // 2 :] = sparse
    np.testing.assert_allclose(complete(moved, 8).depth[BAND // 2 + 40 :], complete(sparse, 8).depth[40:], rtol=1e-5)


def test_the_same_input_gives_the_same_bytes_and_is_not_changed():
    sparse = rings(plane((0.2, 0.1, 1), 9.0))
    before = sparse.copy()
    first, second = complete(sparse), complete(sparse)
    assert first.depth.tobytes() == second.depth.tobytes() and first.confidence.tobytes() == second.confidence.tobytes()
    np.testing.assert_array_equal(sparse, before)


def test_the_order_of_the_pixels_in_memory_does_not_matter():
    sparse = rings(plane((0.2, 0.1, 1), 9.0))
    expected = complete(sparse)
    for same in (
        np.asfortranarray(sparse),
        sparse[::-1].copy()[::-1],
        sparse[:, ::-1].copy()[:, ::-1],
        np.repeat(sparse, 2, axis=1)[:, ::2],
    ):
        result = complete(same)
        assert not same.flags.c_contiguous and result.depth.flags.c_contiguous
        np.testing.assert_array_equal(result.depth, expected.depth)
        np.testing.assert_array_equal(result.confidence, expected.confidence)


def test_twice_the_depth_is_twice_the_result():
    sparse = rings(plane((0.2, 0.6, 1), 9.0))
    near, far = complete(sparse), complete(2 * sparse)
    np.testing.assert_allclose(far.depth, 2 * near.depth, rtol=1e-4)
    np.testing.assert_allclose(far.confidence, near.confidence, atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_depth_without_a_measurement_stays_unknown(value):
    result = complete(np.full((30, 40), value, np.float32))
    assert np.isnan(result.depth).all() and not result.confidence.any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 7), (33, 65)])
def test_small_and_odd_images_are_filled(shape):
    sparse = np.full(shape, np.nan)
    sparse[0, 0] = 3.0
    np.testing.assert_allclose(complete(sparse, 70).depth, 3.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("depth", "words"),
    [
        (np.zeros((4, 5), np.float32), "20 pixels have a depth of 0 m or less"),
        (np.full((4, 5), -1.0), "20 pixels have a depth of 0 m or less"),
        (np.zeros((4, 5), np.uint16), "array of floats in metres, got uint16"),
        (np.zeros((4, 5, 1), np.float32), "got float32 of shape"),
        (np.zeros((0, 5), np.float32), "of shape"),
        ("depth.png", "array of floats"),
    ],
)
def test_what_is_no_depth_is_refused(depth, words):
    with pytest.raises(GeometryError, match=words):
        complete(depth)


@pytest.mark.parametrize("reach", [0, -3, 2.5, None])
def test_a_reach_that_is_no_count_of_pixels_is_refused(reach):
    with pytest.raises(GeometryError, match="reach"):
        complete(np.ones((4, 5), np.float32), reach)


def test_the_batched_version_agrees():
    torch = pytest.importorskip("torch")
    from lix_core.geometry.batch import completion as batch

    scene = plane((0.2, 0.5, 1), 15.0)
    scene[60:100, 100:140] = 4.0
    samples = np.stack([rings(scene), rings(plane((0, 0.9, 0.6), 6.0), 13, 3), np.full_like(scene, np.nan)])
    samples[1, :80] = np.nan
    for reach in (6, 24):
        depths, confidences = batch.complete(torch.from_numpy(samples), reach)
        for sample, depth, confidence in zip(samples, depths.numpy(), confidences.numpy()):
            expected = complete(sample, reach)
            np.testing.assert_allclose(depth, expected.depth, rtol=1e-4)
            np.testing.assert_allclose(confidence, expected.confidence, atol=1e-4)
    with pytest.raises(GeometryError, match="above 0 m or NaN"):
        batch.complete(torch.zeros(1, 4, 4))
    with pytest.raises(GeometryError, match="reach"):
        batch.complete(torch.ones(1, 4, 4), 0)


@pytest.mark.skipif(not KITTI.exists(), reason="needs the kitti_stream recording")
def test_held_out_measurements_of_a_real_drive_are_met_and_the_unsure_ones_are_the_wrong_ones():
    spec = importlib.util.spec_from_file_location("bench_completion", ROOT / "bench" / "completion.py")
    bench = sys.modules["bench_completion"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    score = bench.Score()
    for case in list(bench.kitti_cases(KITTI))[::6]:
        score.add(complete(case.sparse), case.truth, np.isfinite(case.truth), 0.0)
    figures, confidence = score.figures(), score.by_confidence()
    assert figures["rmse_m"] < 2.7 and figures["mae_m"] < 0.49 and figures["density"] > 0.999
    relative = confidence["relative error of each tenth"]
    assert relative[9] > 4 * relative[8] > 8 * max(relative[:5])
    risk = confidence["rmse of the surest 10 to 100 % [m]"]
    assert risk[4] < risk[7] < risk[8] < risk[9]
