"""Camera calibrations."""

from __future__ import annotations

import pytest
import yaml

from lix_core.camera import Camera
from lix_core.errors import DataError

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


def test_a_calibration_file_is_read_in_full(tmp_path):
    path = tmp_path / "camera_info.yaml"
    path.write_text(yaml.safe_dump(calibration()))
    assert Camera.load(path) == Camera(640, 480, K, "plumb_bob", (-0.3, 0.1, 0.0, 0.001, 0.0), IDENTITY, P)


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


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot read calibration .*none.yaml: No such file"):
        Camera.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("missing", sorted(set(calibration()) - {"camera_name"}))
def test_a_file_without_one_field_is_refused(tmp_path, missing):
    path = tmp_path / "camera_info.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in calibration().items() if name != missing}))
    with pytest.raises(DataError, match=f"camera_info.yaml is not a camera_calibration YAML file: .*{missing}"):
        Camera.load(path)


@pytest.mark.parametrize("text", ["", "just text", "[1, 2]", "a: [", "\x00", "camera_matrix: 3", "camera_matrix: {data: 3}"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "camera_info.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match="camera_info.yaml is not a camera_calibration YAML file"):
        Camera.load(path)


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
