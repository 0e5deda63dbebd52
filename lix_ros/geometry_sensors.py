"""The kinds of input of the geometry node: what messages each takes, and how it makes depth of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Protocol, Sequence

import numpy as np
from rclpy.clock import ClockType
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from lix_core.bags.topics import shows_rectified
from lix_core.camera import Camera
from lix_core.errors import GeometryError
from lix_core.geometry.completion import Completion, complete
from lix_core.geometry.lidar import cloud_fault, project_cloud
from lix_core.geometry.poses import matrix_from_pose
from lix_core.geometry.stereo import UNRECTIFIED, StereoMatcher, StereoOptions, disparity_to_depth, pair_fault, pair_geometry
from lix_core.pairing import NS
from lix_core.pixels import as_uint8, to_rgb
from lix_ros import messages
from lix_ros.parameters import GeometryParameters

try:
    from tf2_ros import Buffer, TransformException, TransformListener
except ImportError:  # not among the PyPI wheels
    Buffer = None

FIRST_CHECKS = 3
"""Stereo pairs at the start that are all looked at for faults; after them one in CHECK_PERIOD_S."""
CHECK_PERIOD_S = 5.0
SENSOR_PARAMETERS = {
    "rectify",
    "depth_image",
    "max_disparity",
    "block_size",
    "consistency",
    "edge_filter",
    "extrinsics",
    "hidden_gap",
    "completion_reach",
    "offset",
}
"""Parameters of which a sensor is made."""


@dataclass(frozen=True)
class Measurement:
    """What a sensor says of one frame.

    header: of the camera, what the outputs carry. camera: rectified. depth: (H, W) float32 [m], NaN = unknown. disparity: (H, W)
    float32 [pixels], NaN = unknown. baseline: [m]. confidence: (H, W) float32 0..1. warning: what makes it doubtful, in words.
    """

    header: Header
    camera: Camera
    depth: np.ndarray
    disparity: np.ndarray | None = None
    baseline: float = 0.0
    confidence: np.ndarray | None = None
    warning: str = ""


class Transforms:
    """The transforms on /tf and /tf_static, where tf2_ros_py is installed."""

    def __init__(self, node: Node):
        self._node = node
        self._buffer: Any = None

    def listen(self) -> None:
        if Buffer is not None and self._buffer is None:
            self._buffer = Buffer()
            self._listener = TransformListener(self._buffer, self._node)

    def clear(self) -> None:
        """Forget all but the static ones: after a jump back in time, tf2 takes no transform for as long as it remembers later ones."""
        if self._buffer is not None:
            self._buffer.clear()

    def lookup(self, target: str, source: str, stamp: int) -> np.ndarray:
        """(4, 4) float64 `target_from_source` at a stamp [ns]. Raises GeometryError where it is not known."""
        unknown = f"no transform from {source or 'a frame without a name'} to {target or 'a frame without a name'}"
        if self._buffer is None:
            raise GeometryError(f"{unknown}: tf2_ros_py is not installed; install it, or set the parameter extrinsics")
        try:
            transform = self._buffer.lookup_transform(target, source, Time(nanoseconds=stamp, clock_type=ClockType.ROS_TIME)).transform
        except TransformException as error:
            raise GeometryError(f"{unknown}: {error}; publish it on /tf_static, or set the parameter extrinsics") from None
        t, q = transform.translation, transform.rotation
        return matrix_from_pose((t.x, t.y, t.z, q.x, q.y, q.z, q.w))


class Sensor(Protocol):
    """One kind of input, made of the node's parameters, its transforms, and what gives the names of topics after remapping; raises
    LixError where they cannot be.

    STREAMS: topic -> type of the messages that make a frame; the others are paired with the first. PACE: the one of them whose every
    message should find a partner. INFOS: topics of calibrations that need no partner, since they do not change. OUTPUTS: what comes
    out of it. fault: what makes its frames useless, in words.
    """

    STREAMS: Mapping[str, type]
    PACE: str
    INFOS: tuple[str, ...]
    OUTPUTS: tuple[str, ...]
    description: str
    fault: str

    def measure(self, frame: Sequence[Any], infos: Mapping[str, CameraInfo]) -> Measurement:
        """From the messages of one frame, in the order of STREAMS. Raises LixError where they are not what they should be."""


class StereoPair:
    """`input` stereo."""

    STREAMS = {"left/image": Image, "right/image": Image}
    PACE = "left/image"
    INFOS = ("left/camera_info", "right/camera_info")
    OUTPUTS = ("depth", "disparity", "normals", "normals_color")

    def __init__(self, settings: GeometryParameters, transforms: Transforms, resolve: Callable[[str], str] = str):
        self._rectify = settings.rectify
        self._matcher = StereoMatcher(
            StereoOptions(
                max_disparity=settings.max_disparity,
                block_size=settings.block_size,
                consistency=settings.consistency,
                edge_filter=settings.edge_filter,
            )
        )
        self._checks, self._next_check = 0, float("-inf")
        self.description = f"stereo, disparities up to {settings.max_disparity} pixels"
        self.fault = self._warning = ""

    def measure(self, frame: Sequence[Image], infos: Mapping[str, CameraInfo]) -> Measurement:
        raw = [messages.camera_of(infos[topic]) for topic in self.INFOS]
        left, right = (messages.one_of_equal(camera.rectified()) for camera in raw)
        baseline, infinity = pair_geometry(left, right)
        images = self._images(frame, raw)
        self._look_for_faults(*images, infinity)
        disparity = self._matcher.match(*images, infinity)
        # The black beside what the camera sees has an edge, which matches. What was rectified elsewhere may have k, d, r of another.
        if self._rectify:
            disparity[raw[0].unseen(self._matcher.options.block_size)] = np.nan
        depth = disparity_to_depth(disparity, left.fx, baseline)
        return Measurement(frame[0].header, left, depth, disparity, baseline, warning=self._warning)

    def _images(self, frame: Sequence[Image], cameras: Sequence[Camera]) -> list[np.ndarray]:
        read = [messages.image_to_array(message) for message in frame]
        gray = all(order == "gray" for _, order in read)
        images = [as_uint8(pixels, order) if gray else to_rgb(pixels, order) for pixels, order in read]
        for image, camera, side in zip(images, cameras, ("left", "right")):
            camera.check_size(image, f"the {side} image")
        return [camera.rectify(image) for image, camera in zip(images, cameras)] if self._rectify else images

    def _look_for_faults(self, left: np.ndarray, right: np.ndarray, infinity: float) -> None:
        """Now and then, and at every pair while it has one. Raises GeometryError where depth would be garbage."""
        now = time.monotonic()
        if self._checks >= FIRST_CHECKS and now < self._next_check and not self.fault:
            return
        self._checks, self._next_check = self._checks + 1, now + CHECK_PERIOD_S
        found = pair_fault(left, right, infinity)
        self.fault, self._warning = ("", found) if found.startswith(UNRECTIFIED) else (found, "")
        if self.fault:
            raise GeometryError(self.fault)


class LidarInCamera:
    """`input` lidar."""

    STREAMS = {"camera_info": CameraInfo, "points": PointCloud2}
    PACE = "points"
    INFOS = ()
    OUTPUTS = ("depth", "normals", "normals_color", "confidence")
    fault = ""

    def __init__(self, settings: GeometryParameters, transforms: Transforms, resolve: Callable[[str], str] = str):
        self._hidden_gap, self._reach = settings.hidden_gap, settings.completion_reach
        self._offset = round(settings.offset * NS)
        self._extrinsics = matrix_from_pose(settings.extrinsics) if settings.extrinsics else None
        self._transforms = transforms
        if self._extrinsics is None:
            transforms.listen()
        self.description = f"LiDAR in the camera, extrinsics from {'TF' if self._extrinsics is None else 'parameters'}"

    def measure(self, frame: Sequence[Any], infos: Mapping[str, CameraInfo]) -> Measurement:
        info, cloud = frame
        camera = messages.one_of_equal(messages.camera_of(info).rectified())
        transform = self._extrinsics
        if transform is None:
            taken = max(0, messages.nanoseconds(cloud.header.stamp) - self._offset)  # by the clock of the robot
            transform = self._transforms.lookup(info.header.frame_id, cloud.header.frame_id, taken)
        points = messages.cloud_to_points(cloud)
        depth = project_cloud(points, camera, transform, self._hidden_gap)
        known = np.isfinite(depth)
        warning = cloud_fault(points, depth, camera, transform) or (
            "" if known.any() else f"none of the cloud's {len(points)} points is in the image"
        )
        filled = complete(depth, self._reach) if self._reach else Completion(depth, known.astype(np.float32))
        return Measurement(info.header, camera, filled.depth, confidence=filled.confidence, warning=warning)


class DepthCamera:
    """`input` depth."""

    STREAMS = {"depth/image": Image}
    PACE = "depth/image"
    INFOS = ("depth/camera_info",)
    OUTPUTS = ("depth", "normals", "normals_color")
    fault = ""

    def __init__(self, settings: GeometryParameters, transforms: Transforms, resolve: Callable[[str], str] = str):
        auto, topic = settings.depth_image == "auto", resolve(self.PACE)
        self._rectified = shows_rectified(topic) if auto else settings.depth_image == "rectified"
        self.description = f"depth camera, {'rectified' if self._rectified else 'raw'}{f' by the name {topic}' if auto else ''}"

    def measure(self, frame: Sequence[Image], infos: Mapping[str, CameraInfo]) -> Measurement:
        camera = messages.camera_of(infos[self.INFOS[0]])
        depth = messages.image_to_depth(frame[0])
        camera.check_size(depth, "the depth image")
        if not self._rectified:
            depth = camera.rectify_nearest(depth, np.nan)
        warning = "" if np.isfinite(depth).any() else "no pixel of the depth image is known"
        return Measurement(frame[0].header, messages.one_of_equal(camera.rectified()), depth, warning=warning)


SENSORS: dict[str, type[Sensor]] = {"stereo": StereoPair, "lidar": LidarInCamera, "depth": DepthCamera}
