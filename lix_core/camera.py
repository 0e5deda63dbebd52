"""The pinhole camera: intrinsics and distortion, as sensor_msgs/CameraInfo has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from lix_core.errors import DataError


@dataclass(frozen=True)
class Camera:
    """Calibration of one camera.

    width, height: [pixels]. k: (9,) row-major 3x3 intrinsic matrix of the raw image [pixels].
    distortion_model, d: `plumb_bob` or `rational_polynomial`, and its coefficients.
    r: (9,) rectifying rotation. p: (12,) projection matrix of the rectified image [pixels; 4th column pixels * m].
    """

    width: int
    height: int
    k: tuple[float, ...]
    distortion_model: str = "plumb_bob"
    d: tuple[float, ...] = (0.0,) * 5
    r: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    p: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("k", "d", "r", "p"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        if not self.p:
            k = self.k
            object.__setattr__(self, "p", (*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0))
        if (len(self.k), len(self.r), len(self.p)) != (9, 9, 12):
            raise DataError(f"a calibration needs 9 values of k, 9 of r and 12 of p, got {len(self.k)}, {len(self.r)}, {len(self.p)}")
        if self.width <= 0 or self.height <= 0 or self.k[0] <= 0 or self.k[4] <= 0:
            raise DataError(f"a calibration needs a size and focal lengths above 0, got {self.width}x{self.height}, k = {self.k}")

    @classmethod
    def load(cls, path: str | Path) -> "Camera":
        """Read a YAML file as the ROS camera_calibration package writes it.

        Raises:
            DataError: no such file, or not such a calibration.
        """
        try:
            data = yaml.safe_load(Path(path).read_text())
            matrices = ("camera_matrix", "distortion_coefficients", "rectification_matrix", "projection_matrix")
            k, d, r, p = (data[name]["data"] for name in matrices)
            return cls(int(data["image_width"]), int(data["image_height"]), k, str(data["distortion_model"]), d, r, p)
        except OSError as error:
            raise DataError(f"cannot read calibration {path}: {error.strerror}") from None
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise DataError(f"{path}: {error}") from None
            raise DataError(f"{path} is not a camera_calibration YAML file: {error}") from None
