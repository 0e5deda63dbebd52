"""Poses as seven numbers, as ROS prints and parameters hold them: x, y, z [m] and the quaternion qx, qy, qz, qw."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from lix_core.errors import GeometryError

NORM_SLACK = 0.01
"""A quaternion printed with three decimals has a norm this near to 1; others are mistakes."""


def matrix_from_pose(pose: Sequence[float]) -> np.ndarray:
    """The (4, 4) float64 transform `target_from_source` of the source frame's pose (7 numbers) in the target frame.

    Raises:
        GeometryError: not seven finite numbers, or a quaternion whose norm is not 1.
    """
    values = np.array(pose, np.float64)
    if values.shape != (7,) or not np.isfinite(values).all():
        raise GeometryError(f"a pose is x y z qx qy qz qw, seven finite numbers; got {list(pose)}")
    norm = float(np.linalg.norm(values[3:]))
    if abs(norm - 1) > NORM_SLACK:
        raise GeometryError(f"the quaternion of a pose must have norm 1, got {norm:.3g}: qx qy qz qw = {values[3:].tolist()}")
    x, y, z, w = values[3:] / norm
    matrix = np.eye(4)
    matrix[:3, 3] = values[:3]
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return matrix


def pose_from_matrix(matrix: np.ndarray) -> list[float]:
    """The seven numbers of a rigid (4, 4) transform; qw is not negative."""
    r = np.asarray(matrix, np.float64)[:3, :3]
    # Four times q q^T: its largest column has no small divisor (Shepperd 1978, doi:10.2514/3.55767b).
    outer = np.empty((4, 4))
    outer[:3, :3] = r + r.T + (1 - np.trace(r)) * np.eye(3)
    outer[3, :3] = outer[:3, 3] = r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]
    outer[3, 3] = 1 + np.trace(r)
    column = outer[np.argmax(np.diagonal(outer))]
    quaternion = column / np.linalg.norm(column)
    return [*np.asarray(matrix, np.float64)[:3, 3].tolist(), *(quaternion * (1 if quaternion[3] >= 0 else -1)).tolist()]
