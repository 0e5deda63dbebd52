"""Small bags, written without ROS."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
STORE = get_typestore(Stores.ROS2_JAZZY)
ROS1_STORE = get_typestore(Stores.ROS1_NOETIC)
MS = 1_000_000
"""Nanoseconds."""


def contents(bag: Path) -> list[tuple[str, int, bytes]]:
    """All that is in a bag, as rosbags reads it."""
    with Reader(bag) as reader:
        return [(c.topic, stamp, bytes(raw)) for c, stamp, raw in reader.messages(reader.connections)]


def _type(name: str) -> type:
    return STORE.types[name]


def _header(stamp: int) -> object:
    time = _type("builtin_interfaces/msg/Time")(sec=stamp // 10**9, nanosec=stamp % 10**9)
    return _type("std_msgs/msg/Header")(stamp=time, frame_id="camera")


def image_message(stamp: int, image: np.ndarray, encoding: str = "bgr8", padding: int = 0) -> object:
    """sensor_msgs/Image of an (H, W, C) uint8 array, with `padding` bytes after each row."""
    height, width = image.shape[:2]
    rows = np.pad(image.reshape(height, -1), ((0, 0), (0, padding)))
    return _type("sensor_msgs/msg/Image")(
        header=_header(stamp), height=height, width=width, encoding=encoding, is_bigendian=0, step=rows.shape[1], data=rows.ravel()
    )


def compressed_message(stamp: int, image: np.ndarray) -> object:
    """sensor_msgs/CompressedImage: PNG of a BGR array."""
    data = cv2.imencode(".png", image)[1].ravel()
    return _type("sensor_msgs/msg/CompressedImage")(header=_header(stamp), format="png", data=data)


def camera_info_message(stamp: int, width: int, height: int, focal: float) -> object:
    k = np.array([focal, 0, width / 2, 0, focal, height / 2, 0, 0, 1])
    p = np.insert(k, (3, 6, 9), 0.0)
    roi = _type("sensor_msgs/msg/RegionOfInterest")(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return _type("sensor_msgs/msg/CameraInfo")(
        header=_header(stamp),
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=np.array([-0.3, 0.1, 0, 0, 0]),
        k=k,
        r=np.eye(3).ravel(),
        p=p,
        binning_x=0,
        binning_y=0,
        roi=roi,
    )


def text_message(text: str) -> object:
    return _type("std_msgs/msg/String")(data=text)


def write_bag(path: Path, messages: Iterable[tuple[str, int, object]], storage: str = "mcap") -> Path:
    """Write (topic, stamp [ns], message) triples as a bag folder."""
    with Writer(path, version=9, storage_plugin=STORAGES[storage]) as writer:
        connections = {}
        for topic, stamp, message in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], stamp, STORE.serialize_cdr(message, kind))
    return path


def _ros1_header() -> object:
    types = ROS1_STORE.types
    return types["std_msgs/msg/Header"](seq=0, stamp=types["builtin_interfaces/msg/Time"](sec=0, nanosec=0), frame_id="camera")


def ros1_image(image: np.ndarray) -> object:
    """sensor_msgs/Image of a (H, W, 3) uint8 BGR array."""
    height, width = image.shape[:2]
    return ROS1_STORE.types["sensor_msgs/msg/Image"](
        header=_ros1_header(), height=height, width=width, encoding="bgr8", is_bigendian=0, step=3 * width, data=image.ravel()
    )


def ros1_camera_info(width: int, height: int, focal: float) -> object:
    info = camera_info_message(0, width, height, focal)
    roi = ROS1_STORE.types["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return ROS1_STORE.types["sensor_msgs/msg/CameraInfo"](
        header=_ros1_header(),
        height=height,
        width=width,
        distortion_model="plumb_bob",
        D=info.d,
        K=info.k,
        R=info.r,
        P=info.p,
        binning_x=0,
        binning_y=0,
        roi=roi,
    )


def write_ros1_bag(path: Path, messages: Iterable[tuple[str, int, object]]) -> Path:
    """Write (topic, stamp [ns], message) triples as a ROS 1 bag file."""
    with Ros1Writer(path) as writer:
        connections = {}
        for topic, stamp, message in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=ROS1_STORE)
            writer.write(connections[topic], stamp, ROS1_STORE.serialize_ros1(message, kind))
    return path
