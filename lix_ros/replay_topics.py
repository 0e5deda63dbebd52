"""What the replay node publishes of a frame: one camera's topics, or those of every sensor of the world."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
from builtin_interfaces.msg import Time as TimeMessage
from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header, String

from lix_core.camera import Camera
from lix_core.errors import SourceError
from lix_core.geometry.poses import pose_from_matrix
from lix_core.pixels import as_uint8, to_rgb
from lix_core.runtime.sources import Frame, Source, open_source
from lix_ros import messages, qos
from lix_ros.parameters import ReplayParameters
from lix_ros.paths import sample_clip

if TYPE_CHECKING:
    from lix_core.world.drive import WorldFrame
    from lix_core.world.source import Moment, WorldSource

try:
    from tf2_msgs.msg import TFMessage
except ImportError:  # not among the PyPI wheels
    TFMessage = None

FROM_RGB = {
    "rgb8": None,
    "bgr8": cv2.COLOR_RGB2BGR,
    "mono8": cv2.COLOR_RGB2GRAY,
    "rgba8": cv2.COLOR_RGB2RGBA,
    "bgra8": cv2.COLOR_RGB2BGRA,
}
JPEG_QUALITY = 90
LIVE_RATE_HZ = 5.0
"""Of a world that is rendered live, where the parameter `rate` is 0: what two cores manage of every sensor."""


def encode(image: np.ndarray, order: str, encoding: str) -> np.ndarray:
    """(H, W[, C]) of channel order `order` -> the uint8 pixels of ROS encoding `encoding`, unchanged where they agree.

    Raises ImageError for what is no image (floats out of 0..1 as in depth, NaN).
    """
    image = as_uint8(image, order)
    if encoding == f"{order}8" or (order == "gray" and encoding == "mono8"):
        return image
    rgb = to_rgb(image, order)
    return rgb if FROM_RGB[encoding] is None else cv2.cvtColor(rgb, FROM_RGB[encoding])


class Topics(Protocol):
    """What the node needs of a kind of source.

    source: has `name`, `rate` [Hz] and `len` (0 = endless or unknown), and yields frames with a `stem` and a `time` [s].
    awaited: the first frame waits for a subscriber of one of these.
    """

    source: Source | WorldSource
    awaited: list[Publisher]

    def prepare(self, frame: Frame | Moment) -> object:
        """Load a frame, which takes its time. Raises LixError where that cannot be."""
        ...

    def publish(self, prepared: object, now: Time) -> None: ...


def open_topics(node: Node, settings: ReplayParameters) -> Topics:
    """The topics for the parameter `input`. Raises LixError where there is nothing to play."""
    if not settings.input:
        return ImageTopics(node, settings, open_source(sample_clip()))
    # Only here: the world needs packages that robots do without.
    from lix_core.world import source as world

    seed = world.seed_of(settings.input)
    if seed is not None:
        rate = settings.rate or LIVE_RATE_HZ
        live = world.live_source(seed, settings.world_size, settings.world_weather, settings.world_speed, rate)
        return WorldTopics(node, settings, live)
    if world.WorldFolder.is_one(settings.input):
        return WorldTopics(node, settings, world.folder_source(settings.input))
    return ImageTopics(node, settings, open_source(settings.input, settings.topic))


class CameraTopics:
    """`image`, `camera_info` and, where asked, `image/compressed` of one camera, below a prefix."""

    def __init__(self, node: Node, settings: ReplayParameters, prefix: str = "", calibrated: bool = True):
        profile = qos.stream(settings.reliability, settings.depth)
        self._encoding = settings.encoding
        self.image_out = node.create_publisher(Image, f"{prefix}image", profile)
        self._info_out = node.create_publisher(CameraInfo, f"{prefix}camera_info", profile) if calibrated else None
        compressed = settings.compressed
        self._compressed_out = node.create_publisher(CompressedImage, f"{prefix}image/compressed", profile) if compressed else None
        self.publishers = [p for p in (self.image_out, self._info_out, self._compressed_out) if p]

    def publish(self, pixels: np.ndarray, camera: Camera | None, header: Header) -> None:
        """Send (H, W[, C]) uint8 pixels of the parameter `encoding`, its calibration first."""
        if self._info_out and camera:
            self._info_out.publish(messages.camera_info(camera, header))
        self.image_out.publish(messages.array_to_image(pixels, self._encoding, header))
        if self._compressed_out and self._compressed_out.get_subscription_count():
            bgr = encode(pixels, self._encoding.removesuffix("8").replace("mono", "gray"), "bgr8")
            _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            self._compressed_out.publish(messages.compressed_image(jpeg, "jpeg", header))


class ImageTopics:
    """One camera: `image`, `camera_info` where a calibration is known, `image/compressed` where asked."""

    def __init__(self, node: Node, settings: ReplayParameters, source: Source):
        self.source, self._settings = source, settings
        self._camera = Camera.load(settings.camera_info) if settings.camera_info else source.camera
        self._topics = CameraTopics(node, settings, calibrated=self._camera is not None)
        self.awaited = self._topics.publishers

    def prepare(self, frame: Frame) -> np.ndarray:
        image, order = frame.load()
        return encode(image, order, self._settings.encoding)

    def publish(self, prepared: np.ndarray, now: Time) -> None:
        self._topics.publish(prepared, self._camera, Header(stamp=now.to_msg(), frame_id=self._settings.frame_id))


@dataclass(frozen=True)
class PreparedWorld:
    """A frame of the world, its pictures in the parameter `encoding`, and whether right camera (None: not) and LiDAR are in it.

    Who subscribes after it was prepared gets them from the next frame on, and no empty ones of this.
    """

    frame: WorldFrame
    left: np.ndarray
    right: np.ndarray | None
    has_cloud: bool


class WorldTopics:
    """Every sensor of the world. The right camera and the LiDAR are rendered only for those who listen."""

    def __init__(self, node: Node, settings: ReplayParameters, source: WorldSource):
        if settings.camera_info:
            raise SourceError(f"camera_info is {settings.camera_info!r}, but a world knows its own cameras; leave it empty")
        self.source, self._settings, self._logger = source, settings, node.get_logger()
        profile = qos.stream(settings.reliability, settings.depth)
        self._left, self._right = CameraTopics(node, settings), CameraTopics(node, settings, "right/")
        self._depth_out, self._normals_out, self._labels_out = (
            node.create_publisher(Image, n, profile) for n in ("depth", "normals", "labels")
        )
        self._points_out = node.create_publisher(PointCloud2, "points", profile)
        self.awaited = [*self._left.publishers, *self._right.publishers]
        self.awaited += [self._depth_out, self._normals_out, self._labels_out, self._points_out]
        self._names_out = node.create_publisher(String, "label_names", qos.latched())
        self._names_out.publish(String(data=source.labels.to_json()))
        self._transform_out = node.create_publisher(TFMessage, "/tf_static", qos.latched()) if TFMessage else None
        self._placed = False
        """Whether it has been told where the LiDAR is."""
        self._dice = random.Random(source.name)

    def prepare(self, frame: Moment) -> PreparedWorld:
        right = any(p.get_subscription_count() for p in self._right.publishers)
        cloud = self._points_out.get_subscription_count() > 0
        world, encoding = frame.load(right, cloud), self._settings.encoding
        return PreparedWorld(world, encode(world.rgb, "rgb", encoding), encode(world.right, "rgb", encoding) if right else None, cloud)

    def publish(self, prepared: PreparedWorld, now: Time) -> None:
        frame, right = prepared.frame, prepared.right
        settings = self._settings
        header = Header(stamp=now.to_msg(), frame_id=settings.frame_id)
        if not self._placed:
            self._place_lidar(frame.camera_from_lidar, header)
        self._left.publish(prepared.left, frame.camera, header)
        if right is not None and not self._drops():
            self._right.publish(right, frame.right_camera, Header(stamp=shifted(now, settings.right_offset), frame_id=settings.frame_id))
        for publisher, pixels, encoding in (
            (self._depth_out, frame.depth, "32FC1"),
            (self._normals_out, frame.normals, "32FC3"),
            (self._labels_out, frame.labels, "mono8"),
        ):
            if publisher.get_subscription_count():
                publisher.publish(messages.array_to_image(pixels, encoding, header))
        if prepared.has_cloud and not self._drops():
            stamp = shifted(now, settings.points_offset)
            self._points_out.publish(messages.points_to_cloud(frame.cloud, Header(stamp=stamp, frame_id=settings.lidar_frame_id)))

    def _place_lidar(self, camera_from_lidar: np.ndarray, header: Header) -> None:
        """Tell where the LiDAR is: on TF where tf2_msgs is installed, and in the log."""
        self._placed = True
        if self._transform_out:
            self._transform_out.publish(TFMessage(transforms=[transform(camera_from_lidar, header, self._settings.lidar_frame_id)]))
        pose = [round(v, 6) + 0.0 for v in pose_from_matrix(camera_from_lidar)]
        self._logger.info(f"the LiDAR's pose in the camera's frame, for the geometry node's parameter extrinsics: {pose}")

    def _drops(self) -> bool:
        return self._dice.random() < self._settings.dropout


def shifted(time: Time, seconds: float) -> TimeMessage:
    return (time + Duration(nanoseconds=round(seconds * 1e9))).to_msg()


def transform(parent_from_child: np.ndarray, header: Header, child: str) -> TransformStamped:
    """A message of a rigid (4, 4) transform [m]; the parent is the header's frame."""
    place, turn = Vector3(), Quaternion()
    place.x, place.y, place.z, turn.x, turn.y, turn.z, turn.w = pose_from_matrix(parent_from_child)
    return TransformStamped(header=header, child_frame_id=child, transform=Transform(translation=place, rotation=turn))
