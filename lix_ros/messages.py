"""NumPy to ROS messages and back, without copies that are not needed."""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import Sequence

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField, RegionOfInterest
from std_msgs.msg import Header
from stereo_msgs.msg import DisparityImage

from lix_core.camera import Camera
from lix_core.errors import ImageError
from lix_core.geometry.clouds import CLOUD_FIELDS, CLOUD_FORMATS, read_cloud
from lix_core.labels import UNLABELLED, LabelSet
from lix_core.pixels import ENCODINGS, read_compressed, read_depth, read_pixels

try:
    from cv_bridge import CvBridge, CvBridgeError
except ImportError:  # not among the PyPI wheels
    CvBridge = None
try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # not among the PyPI wheels
    LabelInfo = None

DISPARITY_STEP = 1 / 16
"""Smallest difference between two disparities of OpenCV's matchers [pixels]."""
CLOUD_POINT = np.dtype({"names": CLOUD_FIELDS, "formats": ["<f4", "<f4", "<f4", "<f4", "<u2"]}, align=True)


def image_to_array(message: Image | CompressedImage) -> tuple[np.ndarray, str]:
    """The pixels of a message and their channel order; a view of the message's data for plain 8-bit encodings.

    Encodings that lix_core.pixels does not read go through cv_bridge, where that is installed.

    Raises:
        ImageError: zero-sized, truncated, an impossible step, or an encoding nobody reads.
    """
    if isinstance(message, CompressedImage):
        return read_compressed(message.data, f"compressed image ({message.format})")
    if message.encoding not in ENCODINGS and CvBridge is not None and message.height and message.width:
        try:
            return CvBridge().imgmsg_to_cv2(message, "rgb8"), "rgb"
        except (CvBridgeError, TypeError, ValueError) as error:
            raise ImageError(f"cv_bridge cannot convert encoding {message.encoding!r}: {error}") from None
    return read_pixels(message.data, message.height, message.width, message.step, message.encoding, bool(message.is_bigendian))


def image_to_depth(message: Image) -> np.ndarray:
    """(H, W) float32 depth [m] of a depth image (REP 118: 32FC1 metres or 16UC1 millimetres), NaN where unknown.

    Raises:
        ImageError: zero-sized, truncated, an impossible step, or an encoding that is not of a depth image.
    """
    return read_depth(message.data, message.height, message.width, message.step, message.encoding, bool(message.is_bigendian))


def array_to_image(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """A message of an (H, W) or (H, W, channels) array: uint8 as in `rgb8`, float32 as in `32FC1`."""
    height, width = pixels.shape[:2]
    data = as_bytes(pixels)
    return Image(header=header, height=height, width=width, encoding=encoding, is_bigendian=0, step=len(data) // height, data=data)


def compressed_image(encoded: np.ndarray | bytes, kind: str, header: Header) -> CompressedImage:
    """A message of an encoded image; `kind` is jpeg or png."""
    return CompressedImage(header=header, format=kind, data=as_bytes(encoded))


def as_bytes(values: np.ndarray | bytes) -> array:
    """The bytes of an array in the only type that rclpy takes without looking at every one of them."""
    data = array("B")
    data.frombytes(memoryview(np.ascontiguousarray(values)).cast("B") if isinstance(values, np.ndarray) else values)
    return data


def disparity_image(disparity: np.ndarray, camera: Camera, baseline: float, max_disparity: float, header: Header) -> DisparityImage:
    """A message of (H, W) float32 disparities [pixels], NaN = unknown.

    In the message 0 is the smallest disparity that is valid, and -1 stands for unknown, as stereo_image_proc has it.

    Args:
        baseline: [m]. max_disparity: the largest one searched [pixels].
    """
    return DisparityImage(
        header=header,
        image=array_to_image(np.where(disparity >= 0, disparity, np.float32(-1.0)), "32FC1", header),
        f=camera.fx,
        t=baseline,
        valid_window=RegionOfInterest(width=camera.width, height=camera.height),
        min_disparity=0.0,
        max_disparity=float(max_disparity),
        delta_d=DISPARITY_STEP,
    )


def cloud_to_points(message: PointCloud2, fields: Sequence[str] = CLOUD_FIELDS[:3]) -> np.ndarray:
    """(N, len(fields)) float32 points of a cloud: lix_core.geometry.clouds.read_cloud. Raises GeometryError."""
    return read_cloud(message, fields)


def points_to_cloud(points: np.ndarray, header: Header) -> PointCloud2:
    """A message of an (N, 5) cloud with the columns of CLOUD_FIELDS: float32, ring uint16; one row, N may be 0."""
    packed = np.zeros(len(points), CLOUD_POINT)
    for column, name in enumerate(CLOUD_FIELDS):
        packed[name] = points[:, column]
    kinds = {np.dtype(kind): datatype for datatype, kind in CLOUD_FORMATS.items()}
    return PointCloud2(
        header=header,
        height=1,
        width=len(points),
        fields=[PointField(name=n, offset=offset, datatype=kinds[kind], count=1) for n, (kind, offset) in CLOUD_POINT.fields.items()],
        point_step=CLOUD_POINT.itemsize,
        row_step=CLOUD_POINT.itemsize * len(points),
        data=as_bytes(packed),
        is_dense=bool(np.isfinite(points[:, :3]).all()),
    )


def camera_from_info(message: CameraInfo) -> Camera:
    """The calibration that a message carries. Binning and regions of interest are not applied.

    Raises:
        DataError: zeros in k (an uncalibrated camera), or matrices that cannot be.
    """
    return Camera(message.width, message.height, message.k, message.distortion_model, message.d, message.r, message.p)


@lru_cache(maxsize=8)
def one_of_equal(camera: Camera) -> Camera:
    """The first camera that was equal to this one: it has its rays and rectification maps already."""
    return camera


def camera_of(message: CameraInfo) -> Camera:
    return one_of_equal(camera_from_info(message))


def camera_info(camera: Camera, header: Header) -> CameraInfo:
    return CameraInfo(
        header=header,
        width=camera.width,
        height=camera.height,
        distortion_model=camera.distortion_model,
        d=list(camera.d),
        k=list(camera.k),
        r=list(camera.r),
        p=list(camera.p),
    )


def label_info(labels: LabelSet, header: Header) -> "LabelInfo":
    """vision_msgs/LabelInfo, where vision_msgs is installed."""
    classes = [VisionClass(class_id=i, class_name=name) for i, name in enumerate(labels.names)]
    return LabelInfo(header=header, class_map=[*classes, VisionClass(class_id=UNLABELLED, class_name="unlabelled")])


def nanoseconds(stamp: Time) -> int:
    return stamp.sec * 10**9 + stamp.nanosec


def size_of(message: Image | PointCloud2 | CameraInfo) -> int:
    """[bytes] of the data in a message; 0 where it has none."""
    return len(getattr(message, "data", ()))


def seconds(stamp: Time) -> float:
    """[s] of a stamp; exact to about a microsecond, enough for latencies."""
    return stamp.sec + stamp.nanosec * 1e-9
