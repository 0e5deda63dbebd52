"""Point clouds as sensor_msgs/PointCloud2 packs them, to arrays. Any object with that message's fields will do; no ROS is needed."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from lix_core.errors import GeometryError

CLOUD_FORMATS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""Datatypes of a PointField, INT8 to FLOAT64 -> NumPy's."""
CLOUD_FIELDS = ("x", "y", "z", "intensity", "ring")
"""Columns of a cloud in lix: metres in the LiDAR's frame, 0..1, and the number of the laser."""


def read_cloud(message: Any, fields: Sequence[str] = CLOUD_FIELDS[:3]) -> np.ndarray:
    """(N, len(fields)) float32 points of a cloud in the order of its data, NaN points among them; N may be 0.

    Any layout is read: fields in any order and of any datatype, padded points and rows, either byte order. A structured dtype
    does that in one view of the data, which is all that sensor_msgs_py would do, and that is not among the PyPI wheels.

    Raises:
        GeometryError: a field that is missing or lies outside of its point, or data that is truncated.
    """
    known, height, width = {f.name: f for f in message.fields}, message.height, message.width
    if not known and not height * width:  # a message as it is made
        return np.zeros((0, len(fields)), np.float32)
    if missing := [name for name in fields if name not in known]:
        raise GeometryError(f"the cloud has no field {', '.join(missing)}; it has {', '.join(known) or 'none'}")
    if not height * width:
        return np.zeros((0, len(fields)), np.float32)
    order = ">" if message.is_bigendian else "<"
    for name in fields:
        field = known[name]
        if field.datatype not in CLOUD_FORMATS:
            raise GeometryError(f"field {name} of the cloud has datatype {field.datatype}; 1 (INT8) to 8 (FLOAT64) are known")
        if field.offset + np.dtype(CLOUD_FORMATS[field.datatype]).itemsize > message.point_step:
            raise GeometryError(f"field {name} of the cloud is at byte {field.offset}, outside of a point of {message.point_step} bytes")
    row_bytes = width * message.point_step
    needed = message.row_step * (height - 1) + row_bytes
    if (height > 1 and message.row_step < row_bytes) or len(message.data) < needed:
        raise GeometryError(
            f"the cloud has {len(message.data)} bytes, but {width}x{height} points of {message.point_step} bytes at row_step "
            f"{message.row_step} take {needed}; is it truncated?"
        )
    layout = {
        "names": list(fields),
        "formats": [order + CLOUD_FORMATS[known[name].datatype] for name in fields],
        "offsets": [known[name].offset for name in fields],
        "itemsize": message.point_step,
    }
    view = np.ndarray((height, width), np.dtype(layout), message.data, strides=(message.row_step, message.point_step))
    points = np.empty((height * width, len(fields)), np.float32)
    with np.errstate(over="ignore"):  # a double that float32 cannot hold becomes infinite, and such points are left out
        for column, name in enumerate(fields):
            points[:, column] = view[name].reshape(-1)
    return points
