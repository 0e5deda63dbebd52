"""The pinhole camera: intrinsics, distortion and stereo baseline, as sensor_msgs/CameraInfo has them.

Conventions, here and in lix_core.geometry:
- Optical frame: x right, y down, z forward [m].
- The centre of the top left pixel is (u, v) = (0, 0), as in OpenCV and ROS; u counts columns, v rows.
- Depth is z in the optical frame [m], not the distance along the ray; NaN where it is unknown.
- Everything but `rectification_maps` speaks of the *rectified* image, whose matrix is the left 3x3 of `p`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import cv2
import numpy as np
import yaml

from lix_core.errors import DataError, GeometryError
from lix_core.files import expanded, from_yaml

COEFFICIENTS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14)}
"""Distortion models that can be rectified, and how many coefficients each may have."""

ROUNDED = 1 / 64
"""[pixels]: half a step of the maps that images are rectified by. A pixel that is so little beside the raw image is on its edge."""

NO_ROTATION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Camera:
    """Calibration of one camera.

    width, height: [pixels]. k: (9,) row-major 3x3 intrinsic matrix of the raw image [pixels].
    distortion_model, d: `plumb_bob` or `rational_polynomial`, and its coefficients.
    r: (9,) rectifying rotation; all zero (what messages have by default), there is none. p: (12,) projection matrix of the rectified
    image [pixels; 4th column pixels * m]; left out or all zero, it is k.

    Raises:
        DataError: a size or focal length that is not above 0 (an uncalibrated camera), or matrices of the wrong size.
    """

    width: int
    height: int
    k: tuple[float, ...]
    distortion_model: str = "plumb_bob"
    d: tuple[float, ...] = (0.0,) * 5
    r: tuple[float, ...] = NO_ROTATION
    p: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("k", "d", "r", "p"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        if not any(self.r):
            object.__setattr__(self, "r", NO_ROTATION)
        if not any(self.p):
            k = self.k
            object.__setattr__(self, "p", (*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0))
        if (len(self.k), len(self.r), len(self.p)) != (9, 9, 12):
            raise DataError(f"a calibration needs 9 values of k, 9 of r and 12 of p, got {len(self.k)}, {len(self.r)}, {len(self.p)}")
        if self.width <= 0 or self.height <= 0 or not (self.k[0] > 0 and self.k[4] > 0):
            raise DataError(f"a calibration needs a size and focal lengths above 0, got {self.width}x{self.height}, k = {self.k}")
        if not (self.p[0] > 0 and self.p[5] > 0) or not np.isfinite((*self.k, *self.d, *self.r, *self.p)).all():
            raise DataError(
                f"a calibration needs finite numbers and focal lengths above 0 in p, got k = {self.k}, d = {self.d}, p = {self.p}"
            )

    @classmethod
    def pinhole(
        cls,
        width: int,
        height: int,
        fx: float,
        fy: float | None = None,
        cx: float | None = None,
        cy: float | None = None,
        baseline: float = 0.0,
    ) -> "Camera":
        """A camera without distortion [pixels]; fy is fx and the principal point the middle of the image unless given.

        baseline: [m] from the left camera, for the right one of a rectified pair.
        """
        fy = fx if fy is None else fy
        cx = (width - 1) / 2 if cx is None else cx
        cy = (height - 1) / 2 if cy is None else cy
        return cls(width, height, (fx, 0, cx, 0, fy, cy, 0, 0, 1), p=(fx, 0, cx, 0.0 - fx * baseline, 0, fy, cy, 0, 0, 0, 1, 0))

    @property
    def fx(self) -> float:
        """Horizontal focal length of the rectified image [pixels]."""
        return self.p[0]

    @property
    def fy(self) -> float:
        """Vertical focal length of the rectified image [pixels]."""
        return self.p[5]

    @property
    def cx(self) -> float:
        """Column of the rectified image's principal point [pixels]."""
        return self.p[2]

    @property
    def cy(self) -> float:
        """Row of the rectified image's principal point [pixels]."""
        return self.p[6]

    @property
    def baseline(self) -> float:
        """Distance from the left camera of the pair [m]: -p[3] / fx; 0 for the left one itself."""
        return 0.0 - self.p[3] / self.p[0]

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) float64 intrinsic matrix of the rectified image [pixels]."""
        return np.reshape(self.p, (3, 4))[:, :3].copy()

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) [pixels], as arrays have it."""
        return self.height, self.width

    @property
    def is_rectified(self) -> bool:
        """Whether the raw image is already the rectified one: no distortion, no rotation, the same matrix."""
        return (
            self._lens_known
            and not any(self.d)
            and np.allclose(self.r, np.eye(3).ravel())
            and np.allclose(self.matrix, np.reshape(self.k, (3, 3)))
        )

    @property
    def _lens_known(self) -> bool:
        """Whether the distortion model is one of COEFFICIENTS, or none; others bend light even where their coefficients are 0."""
        return self.distortion_model in ("", *COEFFICIENTS)

    @cached_property
    def rays(self) -> np.ndarray:
        """(H, W, 3) float32 direction through every pixel of the rectified image, optical frame, z = 1; times depth: points. Read-only."""
        rays = np.ones((self.height, self.width, 3), np.float32)
        rays[..., 0] = ((np.arange(self.width) - self.cx) / self.fx).astype(np.float32)
        rays[..., 1] = ((np.arange(self.height) - self.cy) / self.fy).astype(np.float32)[:, None]
        rays.flags.writeable = False
        return rays

    def project(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) points in the rectified optical frame [m] -> (..., 2) pixels (u, v); NaN for points that are not in front."""
        points = np.asarray(points)
        with np.errstate(all="ignore"):
            z = np.where(points[..., 2] > 0, points[..., 2], np.nan)
            return np.stack([points[..., 0] / z * self.fx + self.cx, points[..., 1] / z * self.fy + self.cy], axis=-1)

    def backproject(self, depth: np.ndarray) -> np.ndarray:
        """(H, W) depth [m] -> (H, W, 3) points in the rectified optical frame [m]; NaN stays NaN. Raises GeometryError on another size."""
        self.check_size(depth, "depth")
        return self.rays * depth[..., None]

    def check_size(self, array: np.ndarray, what: str) -> None:
        """Raises GeometryError where it is no array, or its first two axes are not the camera's height and width."""
        if not isinstance(array, np.ndarray):
            raise GeometryError(f"{what} must be an array, got {type(array).__name__}; cv2.imread gives None for a file it cannot read")
        if array.shape[:2] != self.shape:
            found = f"{array.shape[1]}x{array.shape[0]}" if array.ndim >= 2 else f"of shape {array.shape}"
            raise GeometryError(f"{what} is {found}, its calibration is for {self.width}x{self.height}; both must be of one camera mode")

    def rectification_maps(self) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) float32 maps for cv2.remap: for each rectified pixel the raw column and row.

        Raises:
            GeometryError: a distortion model other than plumb_bob and rational_polynomial, or a wrong number of coefficients.
        """
        d, model = np.array(self.d), self.distortion_model
        if not self._lens_known or (d.any() and not model):
            raise GeometryError(f"distortion model {model!r} cannot be rectified here; {' and '.join(COEFFICIENTS)} can")
        if d.any() and len(d) not in COEFFICIENTS[model]:
            raise GeometryError(f"distortion model {model} has {' or '.join(map(str, COEFFICIENTS[model]))} coefficients, got {len(d)}")
        k, r = np.reshape(self.k, (3, 3)), np.reshape(self.r, (3, 3))
        return cv2.initUndistortRectifyMap(k, d if d.any() else None, r, self.matrix, (self.width, self.height), cv2.CV_32FC1)

    def rectify(self, image: np.ndarray) -> np.ndarray:
        """A raw (H, W[, C]) image -> the rectified one, bilinear, black outside. Raises GeometryError."""
        self.check_size(image, "the image")
        if self.is_rectified:
            return image
        return cv2.remap(image, *self._maps, cv2.INTER_LINEAR)

    def rectify_nearest(self, values: np.ndarray, unknown: float) -> np.ndarray:
        """Raw (H, W) values of which none is a mean of two (depth, class ids) -> the rectified ones: those of the nearest pixel, `unknown`
        outside. Raises GeometryError."""
        self.check_size(values, "the image")
        if self.is_rectified:
            return values
        return cv2.remap(values, self._nearest, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=unknown)

    @lru_cache(maxsize=8)
    def unseen(self, margin: int = 0) -> np.ndarray:
        """(H, W) bool, read-only: pixels of the rectified image that the raw one does not show, and those up to `margin` pixels beside."""
        unseen = np.zeros(self.shape, np.uint8)
        if not self.is_rectified:
            u, v = self.rectification_maps()
            right, bottom = self.width - 1 + ROUNDED, self.height - 1 + ROUNDED
            unseen[(u < -ROUNDED) | (u > right) | (v < -ROUNDED) | (v > bottom)] = 1
        unseen = cv2.dilate(unseen, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)).view(bool)
        unseen.flags.writeable = False
        return unseen

    @cached_property
    def _maps(self) -> tuple[np.ndarray, np.ndarray]:
        # Fixed point: the same to 1/32 pixel, and twice as fast.
        return cv2.convertMaps(*self.rectification_maps(), cv2.CV_16SC2)

    @cached_property
    def _nearest(self) -> np.ndarray:
        return cv2.convertMaps(*self.rectification_maps(), cv2.CV_16SC2, nninterpolation=True)[0]

    def rectified(self) -> "Camera":
        """The calibration of the rectified image: no distortion, k is p's, the baseline stays."""
        return Camera(self.width, self.height, tuple(self.matrix.ravel()), p=self.p)

    def scaled(self, width: int, height: int) -> "Camera":
        """The calibration of the same image resized to width x height [pixels]; pixel areas scale, so centres move by half a pixel."""
        sx, sy = width / self.width, height / self.height
        grow = np.array([[sx, 0.0, (sx - 1) / 2], [0.0, sy, (sy - 1) / 2], [0.0, 0.0, 1.0]])
        k, p = grow @ np.reshape(self.k, (3, 3)), grow @ np.reshape(self.p, (3, 4))
        return replace(self, width=width, height=height, k=tuple(k.ravel()), p=tuple(p.ravel()))

    @classmethod
    def load(cls, path: str | Path) -> "Camera":
        """Read a YAML file as the ROS camera_calibration package writes it.

        Raises:
            DataError: no such file, or not such a calibration.
        """
        try:
            data = from_yaml(expanded(path).read_text())
            if not isinstance(data, dict):
                raise TypeError("it holds no `key: value` pairs" if data is not None else "it is empty")
            matrices = ("camera_matrix", "distortion_coefficients", "rectification_matrix", "projection_matrix")
            k, d, r, p = (data[name]["data"] for name in matrices)
            return cls(int(data["image_width"]), int(data["image_height"]), k, str(data["distortion_model"]), d, r, p)
        except OSError as error:
            raise DataError(f"cannot read calibration {path}: {error.strerror}") from None
        except (yaml.YAMLError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, DataError):
                raise DataError(f"{path}: {error}") from None
            raise DataError(f"{path} is not a camera_calibration YAML file: {error}") from None

    def to_yaml(self) -> str:
        """The YAML text that `load` reads."""
        matrices = {"camera_matrix": (3, 3, self.k), "distortion_coefficients": (1, len(self.d), self.d)}
        matrices |= {"rectification_matrix": (3, 3, self.r), "projection_matrix": (3, 4, self.p)}
        head = {"image_width": self.width, "image_height": self.height, "distortion_model": self.distortion_model}
        body = {name: {"rows": rows, "cols": cols, "data": list(data)} for name, (rows, cols, data) in matrices.items()}
        return yaml.safe_dump({**head, **body}, sort_keys=False, default_flow_style=None)
