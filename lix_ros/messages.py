"""NumPy to ROS messages and back, without copies that are not needed."""

from __future__ import annotations

from array import array

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from lix_core.camera import Camera
from lix_core.errors import ImageError
from lix_core.labels import UNLABELLED, LabelSet
from lix_core.pixels import ENCODINGS, read_compressed, read_pixels

try:
    from cv_bridge import CvBridge, CvBridgeError
except ImportError:  # not among the PyPI wheels
    CvBridge = None
try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # not among the PyPI wheels
    LabelInfo = None


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


def array_to_image(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """A message of a C-contiguous (H, W) or (H, W, channels) uint8 array.

    An `array.array` is the only type that rclpy takes without looking at every byte.
    """
    data = array("B")
    data.frombytes(memoryview(np.ascontiguousarray(pixels)).cast("B"))
    height, width = pixels.shape[:2]
    return Image(header=header, height=height, width=width, encoding=encoding, is_bigendian=0, step=len(data) // height, data=data)


def compressed_image(encoded: np.ndarray | bytes, kind: str, header: Header) -> CompressedImage:
    """A message of an encoded image; `kind` is jpeg or png."""
    data = array("B")
    data.frombytes(memoryview(encoded).cast("B"))
    return CompressedImage(header=header, format=kind, data=data)


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


def label_info(labels: LabelSet, header: Header) -> "LabelInfo | None":
    """vision_msgs/LabelInfo, or None where vision_msgs is not installed."""
    if LabelInfo is None:
        return None
    classes = [VisionClass(class_id=i, class_name=name) for i, name in enumerate(labels.names)]
    return LabelInfo(header=header, class_map=[*classes, VisionClass(class_id=UNLABELLED, class_name="unlabelled")])


def seconds(stamp: Time) -> float:
    """[s] of a stamp; exact to about a microsecond, enough for latencies."""
    return stamp.sec + stamp.nanosec * 1e-9
