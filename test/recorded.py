"""Bags of a small drive, as the replay node of a world gives it: camera, pair, depth, LiDAR, labels, TF. No ROS."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import Writer

from bags import MS, STORAGES, STORE
from lix_core.camera import Camera
from lix_core.geometry.poses import pose_from_matrix
from lix_core.labels import STREET
from trees import world_frame

START = 1_700_000_000 * 10**9
"""Stamp of the first image [ns]."""
PERIOD = 100 * MS
SENSORS = ("image", "right/image", "depth", "points", "labels")
ALL = (*SENSORS, "camera_info", "right/camera_info", "label_names", "/tf_static")
LATCHED = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    QosTime(0, 0),
    QosTime(0, 0),
    QosLiveliness.AUTOMATIC,
    QosTime(0, 0),
    False,
)


@dataclass(frozen=True)
class Recorded:
    """One message: when it was recorded [ns], on what topic, and what it says."""

    topic: str
    time: int
    message: object


def kind(name: str) -> type:
    return STORE.types[name]


def header(stamp: int, frame: str = "camera") -> object:
    time = kind("builtin_interfaces/msg/Time")(sec=stamp // 10**9, nanosec=stamp % 10**9)
    return kind("std_msgs/msg/Header")(stamp=time, frame_id=frame)


def image(stamp: int, pixels: np.ndarray, encoding: str) -> object:
    """sensor_msgs/Image of an array of any type."""
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).view(np.uint8).ravel()
    return kind("sensor_msgs/msg/Image")(
        header=header(stamp), height=height, width=width, encoding=encoding, is_bigendian=0, step=data.size // height, data=data
    )


def jpeg(stamp: int, rgb: np.ndarray) -> object:
    data = cv2.imencode(".jpg", rgb[..., ::-1])[1].ravel()
    return kind("sensor_msgs/msg/CompressedImage")(header=header(stamp), format="jpeg", data=data)


def compressed_depth(stamp: int, metres: np.ndarray) -> object:
    """Depth as image_transport's compressedDepth sends 16UC1: a header of 12 bytes, and a PNG of millimetres, 0 = unknown."""
    millimetres = np.nan_to_num(np.rint(1000 * metres), posinf=0).clip(0, 65535).astype(np.uint16)
    data = np.concatenate([np.zeros(12, np.uint8), cv2.imencode(".png", millimetres)[1].ravel()])
    return kind("sensor_msgs/msg/CompressedImage")(header=header(stamp), format="16UC1; compressedDepth png", data=data)


def camera_info(stamp: int, camera: Camera) -> object:
    roi = kind("sensor_msgs/msg/RegionOfInterest")(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    arrays = {name: np.array(getattr(camera, name), np.float64) for name in "dkrp"}
    return kind("sensor_msgs/msg/CameraInfo")(
        header=header(stamp),
        height=camera.height,
        width=camera.width,
        distortion_model=camera.distortion_model,
        **arrays,
        binning_x=0,
        binning_y=0,
        roi=roi,
    )


def cloud(stamp: int, points: np.ndarray, frame: str = "lidar") -> object:
    """sensor_msgs/PointCloud2 of (N, >= 3) points."""
    xyz = np.ascontiguousarray(points[:, :3], np.float32)
    fields = [kind("sensor_msgs/msg/PointField")(name=n, offset=4 * i, datatype=7, count=1) for i, n in enumerate("xyz")]
    return kind("sensor_msgs/msg/PointCloud2")(
        header=header(stamp, frame),
        height=1,
        width=len(xyz),
        fields=fields,
        is_bigendian=False,
        point_step=12,
        row_step=12 * len(xyz),
        data=xyz.view(np.uint8).ravel(),
        is_dense=True,
    )


def text(content: object) -> object:
    return kind("std_msgs/msg/String")(data=content if isinstance(content, str) else json.dumps(content))


def transform(parent: str, child: str, parent_from_child: np.ndarray) -> object:
    """tf2_msgs/TFMessage of one transform."""
    x, y, z, qx, qy, qz, qw = pose_from_matrix(parent_from_child)
    place = kind("geometry_msgs/msg/Vector3")(x=x, y=y, z=z)
    turn = kind("geometry_msgs/msg/Quaternion")(x=qx, y=qy, z=qz, w=qw)
    moved = kind("geometry_msgs/msg/Transform")(translation=place, rotation=turn)
    stamped = kind("geometry_msgs/msg/TransformStamped")(header=header(START, parent), child_frame_id=child, transform=moved)
    return kind("tf2_msgs/msg/TFMessage")(transforms=[stamped])


def drive(
    frames: int = 4,
    topics: Sequence[str] = ALL,
    offsets: dict[str, int] | None = None,
    period: int = PERIOD,
    start: int = START,
    prefix: str = "/",
) -> list[Recorded]:
    """Messages of a drive past textured walls 5 m away. offsets: topic -> how much later than the image it is stamped [ns].

    Every message is recorded 5 ms after its stamp.
    """
    offsets = offsets or {}
    found = []

    def add(topic: str, stamp: int, message: object) -> None:
        if topic in topics:
            found.append(Recorded(topic if topic.startswith("/") else prefix + topic, stamp + 5 * MS, message))

    for index in range(frames):
        frame, stamp = world_frame(index), start + index * period
        at = {topic: stamp + offsets.get(topic, 0) for topic in SENSORS}
        if index == 0:
            add("label_names", stamp, text(STREET.to_json()))
            add("/tf_static", stamp, transform("camera", "lidar", frame.camera_from_lidar))
        add("camera_info", stamp, camera_info(stamp, frame.camera))
        add("right/camera_info", stamp, camera_info(stamp, frame.right_camera))
        add("image", stamp, image(stamp, frame.rgb, "rgb8"))
        add("right/image", at["right/image"], image(at["right/image"], frame.right, "rgb8"))
        add("depth", at["depth"], image(at["depth"], frame.depth, "32FC1"))
        add("labels", at["labels"], image(at["labels"], frame.labels, "mono8"))
        add("points", at["points"], cloud(at["points"], frame.cloud))
    return found


def write(path: Path, messages: Iterable[Recorded], storage: str = "mcap", version: int = 9) -> Path:
    """A bag folder, as rosbags writes it: metadata version 8 (Jazzy) or 9 (Kilted)."""
    with Writer(path, version=version, storage_plugin=STORAGES[storage]) as writer:
        connections: dict[tuple[str, str], object] = {}
        for recorded in messages:
            key = recorded.topic, recorded.message.__msgtype__
            if key not in connections:
                qos = [LATCHED] if key[0].endswith(("tf_static", "label_names")) else []
                connections[key] = writer.add_connection(*key, typestore=STORE, offered_qos_profiles=qos)
            writer.write(connections[key], recorded.time, STORE.serialize_cdr(recorded.message, key[1]))
    return path


def write_humble(path: Path, messages: Iterable[Recorded], version: int = 5) -> Path:
    """A bag as Humble's rosbag2 writes it by default: sqlite3 of schema 3, metadata version 5, no definitions and no hashes of types."""
    path.mkdir(parents=True)
    messages = list(messages)
    topics = sorted({(m.topic, m.message.__msgtype__) for m in messages})
    with closing(sqlite3.connect(path / f"{path.name}_0.db3")) as database:
        database.executescript(
            "CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);"
            "CREATE TABLE metadata(id INTEGER PRIMARY KEY, metadata_version INTEGER NOT NULL, metadata TEXT NOT NULL);"
            "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, serialization_format TEXT NOT NULL,"
            " offered_qos_profiles TEXT NOT NULL);"
            "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL, data BLOB NOT NULL);"
            "CREATE INDEX timestamp_idx ON messages (timestamp ASC);"
            "INSERT INTO schema(schema_version, ros_distro) VALUES (3, 'humble');"
        )
        for number, (name, type_name) in enumerate(topics, 1):
            database.execute("INSERT INTO topics VALUES (?, ?, ?, 'cdr', '')", (number, name, type_name))
        numbers = {key: number for number, key in enumerate(topics, 1)}
        for m in messages:
            data = bytes(STORE.serialize_cdr(m.message, m.message.__msgtype__))
            number = numbers[m.topic, m.message.__msgtype__]
            database.execute("INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)", (number, m.time, data))
        database.commit()
    times = [m.time for m in messages]
    counts = [sum((m.topic, m.message.__msgtype__) == topic for m in messages) for topic in topics]
    start, duration = {"nanoseconds_since_epoch": min(times)}, {"nanoseconds": max(times) - min(times)}
    file = {"path": f"{path.name}_0.db3", "starting_time": start, "duration": duration, "message_count": len(messages)}
    information = {
        "version": version,
        "storage_identifier": "sqlite3",
        "duration": duration,
        "starting_time": start,
        "message_count": len(messages),
        "topics_with_message_count": [
            {
                "topic_metadata": {"name": name, "type": type_name, "serialization_format": "cdr", "offered_qos_profiles": ""},
                "message_count": count,
            }
            for (name, type_name), count in zip(topics, counts)
        ],
        "compression_format": "",
        "compression_mode": "",
        "relative_file_paths": [f"{path.name}_0.db3"],
        **({"files": [file]} if version >= 5 else {}),
    }
    (path / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": information}, sort_keys=False))
    return path


def data_file(bag: Path) -> Path:
    """The one data file of a bag's folder."""
    (path,) = (p for p in bag.iterdir() if p.suffix in (".mcap", ".db3"))
    return path
