"""Poses of seven numbers and transforms, against OpenCV's rotations."""

from __future__ import annotations

import cv2
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given

from lix_core.errors import GeometryError
from lix_core.geometry.poses import matrix_from_pose, pose_from_matrix

number = st.floats(-1, 1).map(lambda v: round(v, 3))


@given(st.tuples(number, number, number), st.tuples(number, number, number, number))
def test_a_pose_is_the_rotation_that_opencv_makes_of_its_axis_and_round_trips(place: tuple, quaternion: tuple) -> None:
    assume(np.linalg.norm(quaternion) > 0.01)
    q = np.array(quaternion) / np.linalg.norm(quaternion)
    matrix = matrix_from_pose([*place, *q])
    sine = np.linalg.norm(q[:3])
    axis = q[:3] / sine if sine > 0 else np.zeros(3)
    np.testing.assert_allclose(matrix[:3, :3], cv2.Rodrigues(axis * 2 * np.arctan2(sine, q[3]))[0], atol=1e-9)
    np.testing.assert_array_equal(matrix[:, 3], [*place, 1])
    back = pose_from_matrix(matrix)
    np.testing.assert_allclose(back, [*place, *(q * np.sign(back[3:] @ q))], atol=1e-9)
    assert back[6] >= 0


def test_a_lidar_that_looks_ahead_is_turned_into_the_optical_frame() -> None:
    matrix = matrix_from_pose([0.0, -0.1, -0.2, 0.5, -0.5, 0.5, 0.5])
    np.testing.assert_allclose(matrix @ [10.0, 2.0, 1.0, 1.0], [-2.0, -1.1, 9.8, 1.0])


def test_three_decimals_of_a_quaternion_are_enough() -> None:
    matrix = matrix_from_pose([0, 0, 0, 0.707, 0, 0, 0.707])
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("pose", "words"), [([0.0] * 6, "seven finite numbers"), ([0.0] * 7, "norm 1, got 0"), ([0, 0, 0, 0, 0, 1, np.nan], "seven finite")]
)
def test_what_is_no_pose_is_refused(pose: list[float], words: str) -> None:
    with pytest.raises(GeometryError, match=words):
        matrix_from_pose(pose)
