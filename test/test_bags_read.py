"""Reading bags of every kind, damaged ones too: messages, roles of topics, pairing in time, and what `lix bag check` says of them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.interfaces import ConnectionExtRosbag1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.storage_mcap import zstd

import bags
import recorded
from bags import MS, STORE
from lix_core.bags.check import check, check_all, lines_of
from lix_core.bags.extract import ExtractedFrame, Extraction, extract
from lix_core.bags.index import NS, Frames, Options, nearest, pair
from lix_core.bags.reader import Bag, DamagedBag, bags_in, decode, header_stamp, is_latched, whole_of
from lix_core.bags.repair import repair
from lix_core.bags.sensors import FrameReader, to_metres
from lix_core.bags.topics import MADE_BY_LIX, find_topics, shows_rectified
from lix_core.bags.writer import Qos, RosbagsWriter, Topic
from lix_core.camera import Camera
from lix_core.errors import GeometryError, SourceError
from lix_core.geometry.poses import matrix_from_pose, pose_from_matrix
from lix_ros.parameters import GEOMETRY_OUTPUTS, OUTPUTS, TEACHER_OUTPUTS
from recorded import PERIOD, START, Recorded, data_file, drive, write, write_humble
from trees import world_frame

WRITERS = {
    "mcap of Kilted": lambda path, messages: write(path, messages, "mcap", 9),
    "mcap of Jazzy": lambda path, messages: write(path, messages, "mcap", 8),
    "sqlite3 of Jazzy": lambda path, messages: write(path, messages, "sqlite3", 8),
    "sqlite3 of Humble": write_humble,
    "sqlite3 of Foxy": lambda path, messages: write_humble(path, messages, 4),
    "mcap in zstd": lambda path, messages: compressed(path, messages, StoragePlugin.MCAP, CompressionMode.STORAGE),
    "sqlite3, messages in zstd": lambda path, messages: compressed(path, messages, StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
    "sqlite3, file in zstd": lambda path, messages: compressed(path, messages, StoragePlugin.SQLITE3, CompressionMode.FILE),
}


def compressed(path: Path, messages: list[Recorded], storage: StoragePlugin, mode: CompressionMode) -> Path:
    writer = Writer(path, version=9, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for m in messages:
            if m.topic not in connections:
                connections[m.topic] = writer.add_connection(m.topic, m.message.__msgtype__, typestore=STORE)
            writer.write(connections[m.topic], m.time, STORE.serialize_cdr(m.message, m.message.__msgtype__))
    return path


def rows(messages: list[Recorded]) -> list[tuple[str, str, int, bytes]]:
    """What a reader should give of messages, in order of time."""
    found = [(m.topic, m.message.__msgtype__, m.time, bytes(STORE.serialize_cdr(m.message, m.message.__msgtype__))) for m in messages]
    return sorted(found, key=lambda row: (row[2], row[0]))


def read(bag: Bag, *topics: str) -> list[tuple[str, str, int, bytes]]:
    return sorted(((t, k, at, bytes(raw)) for t, k, at, raw in bag.messages(topics)), key=lambda row: (row[2], row[0]))


def roles(path: Path, **named: str) -> dict[str, str]:
    with Bag(path) as bag:
        topics, _ = find_topics(bag, named)
    return {role: topic for role, topic in vars(topics).items() if topic}


# Every kind of bag.


@pytest.mark.parametrize("writer", WRITERS)
def test_every_kind_of_bag_gives_the_same_messages(tmp_path, writer):
    messages = drive(2)
    with Bag(WRITERS[writer](tmp_path / "bag", messages)) as bag:
        assert read(bag) == rows(messages)
        assert read(bag, "/depth", "/label_names") == rows([m for m in messages if m.topic in ("/depth", "/label_names")])
        assert (bag.name, bag.count, bag.faults) == ("bag", len(messages), [])
        assert (bag.start, bag.end) == (START + 5 * MS, START + PERIOD + 5 * MS)
        some = list(bag.messages(["/image"], START + PERIOD, bag.end + 1))
        assert [at for _, _, at, _ in some] == [START + PERIOD + 5 * MS]
        image = bag.decode(some[0][3], some[0][1])
        assert (image.width, image.height, image.encoding, image.header.frame_id) == (160, 64, "rgb8", "camera")


def test_what_is_latched_is_known(tmp_path):
    with Bag(write(tmp_path / "bag", drive(1))) as bag:
        assert {topic.name for topic in bag.topics if topic.latched} == {"/label_names", "/tf_static"}


def test_what_is_latched_in_a_ros_1_bag_is_known_too():
    kinds = [SimpleNamespace(ext=ConnectionExtRosbag1(None, latching)) for latching in (None, 0, 1)]
    assert [is_latched(connection) for connection in kinds] == [False, False, True]


def test_a_type_with_a_broken_definition_spoils_nothing(tmp_path):
    messages = drive(1)
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        odd = writer.add_connection("/odd", "acme_msgs/msg/Odd", msgdef="this is ~ no definition [", rihs01="RIHS01_00")
        writer.write(odd, START, b"\0\1\0\0what")
        for m in messages:
            connection = writer.add_connection(m.topic, m.message.__msgtype__, typestore=STORE)
            writer.write(connection, m.time, STORE.serialize_cdr(m.message, m.message.__msgtype__))
    report = check(tmp_path / "bag")
    assert (report.frames, report.with_depth, report.with_labels, report.faults) == (1, 1, 1, [])


@given(seconds=st.integers(-(2**31), 2**31 - 1), nanoseconds=st.integers(0, 10**9 - 1))
def test_a_stamp_is_read_as_the_message_says_it(seconds, nanoseconds):
    message = recorded.text("")
    header = recorded.kind("std_msgs/msg/Header")(
        stamp=recorded.kind("builtin_interfaces/msg/Time")(sec=seconds, nanosec=nanoseconds), frame_id="a"
    )
    info = recorded.kind("sensor_msgs/msg/CompressedImage")(header=header, format="", data=np.zeros(0, np.uint8))
    for little in (True, False):
        raw = bytes(STORE.serialize_cdr(info, info.__msgtype__, little_endian=little))
        assert header_stamp(raw) == seconds * NS + nanoseconds
    assert header_stamp(bytes(STORE.serialize_cdr(message, message.__msgtype__))[:5]) is None


def test_bytes_that_are_no_message_are_an_error_of_lix():
    with pytest.raises(SourceError, match="a message of type sensor_msgs/msg/Image cannot be deserialised"):
        decode(b"\0\1\0\0ab", "sensor_msgs/msg/Image")


def test_bags_are_found_in_a_folder_and_a_split_bag_is_one(tmp_path):
    write(tmp_path / "many" / "b", drive(1)), write(tmp_path / "many" / "a", drive(1))
    assert [path.name for path in bags_in(tmp_path / "many")] == ["a", "b"]
    assert bags_in(data_file(tmp_path / "many" / "a")) == [tmp_path / "many" / "a"]
    split = tmp_path / "split"
    split.mkdir()
    for number in range(2):
        shutil.copy(data_file(tmp_path / "many" / "a"), split / f"split_{number}.mcap")
    assert bags_in(split) == [split]
    (split / "split_1.mcap").rename(split / "other.mcap")
    assert [path.name for path in bags_in(split)] == ["other.mcap", "split_0.mcap"]
    shutil.copytree(tmp_path / "many" / "b", split / "b")
    (split / "old.bag").touch()
    assert [path.name for path in bags_in(split)] == ["b", "old.bag", "other.mcap", "split_0.mcap"]
    (split / "other.mcap").rename(split / "split_1.mcap")
    assert [path.name for path in bags_in(split)] == ["b", "old.bag", "split"]
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="holds no bag: no folder with metadata.yaml, and no .mcap, .db3 or .bag file"):
        bags_in(tmp_path / "none")
    with pytest.raises(SourceError, match="no such bag: "):
        bags_in(tmp_path / "nowhere")


def test_recordings_of_several_days_are_not_the_parts_of_one_bag(tmp_path):
    """Tools put a date or a number at the end of a file's name too; parts follow each other in number and in time."""
    for day, name in enumerate(("drive_20240101", "drive_20240102")):
        write(tmp_path / name, drive(2, start=START + day * 86400 * NS))
        shutil.copy(data_file(tmp_path / name), tmp_path / f"{name}.mcap")
        shutil.rmtree(tmp_path / name)
    files = [tmp_path / "drive_20240101.mcap", tmp_path / "drive_20240102.mcap"]
    folder = tmp_path / "parts"
    folder.mkdir()
    for apart, together in ((60, True), (61, False)):
        first, later = drive(2), drive(2, start=START + apart * NS + PERIOD)
        for number, messages in ((4, first), (5, later)):
            write(tmp_path / "part", messages)
            data_file(tmp_path / "part").rename(folder / f"drive_{number}.mcap")
            shutil.rmtree(tmp_path / "part")
        assert bags_in(folder) == ([folder] if together else [folder / "drive_4.mcap", folder / "drive_5.mcap"])
    (folder / "drive_5.mcap").rename(folder / "drive_6.mcap")
    assert bags_in(folder) == [folder / "drive_4.mcap", folder / "drive_6.mcap"], "one is missing between"
    assert bags_in(tmp_path) == [folder, *files]
    with pytest.raises(SourceError, match="drive_4.mcap, drive_6.mcap in .* are not the parts of one bag.*; repair them one by one"):
        repair(folder)
    assert not (folder / "metadata.yaml").exists()


def test_a_file_that_metadata_does_not_name_is_a_bag_of_its_own(tmp_path):
    bag, other = write(tmp_path / "bag", drive(1)), write(tmp_path / "other", drive(2))
    own, stray = data_file(bag), bag / "stray.mcap"
    shutil.copy(data_file(other), stray)
    assert bags_in(stray) == [stray] and bags_in(own) == [bag]
    with Bag(stray) as opened:
        assert read(opened) == rows(drive(2))


def test_what_may_not_be_looked_at_is_passed_over_in_a_folder_and_named_by_itself(tmp_path, monkeypatch):
    write(tmp_path / "bag", drive(1))
    (tmp_path / "lost+found").mkdir()
    stat = Path.stat

    def guarded(path: Path, **options: bool) -> os.stat_result:
        if path.parent.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", guarded)
    assert bags_in(tmp_path) == [tmp_path / "bag"]
    with pytest.raises(SourceError, match="lost.found.* cannot be looked at: Permission denied"):
        bags_in(tmp_path / "lost+found")


def edited(bag: Path, **changes: object) -> Path:
    """A bag whose metadata.yaml tells otherwise."""
    content = yaml.safe_load((bag / "metadata.yaml").read_text())
    content["rosbag2_bagfile_information"].update(changes)
    (bag / "metadata.yaml").write_text(yaml.safe_dump(content))
    return bag


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize(
    "changes",
    [
        {"duration": {"nanoseconds": 0}},
        {"duration": {"nanoseconds": -5}},
        {"starting_time": {"nanoseconds_since_epoch": 0}},
        {"starting_time": {"nanoseconds_since_epoch": START + 2 * NS}},
        {"topics_with_message_count": []},
        {"message_count": 0},
    ],
)
def test_what_the_files_hold_counts_whatever_metadata_says(tmp_path, storage, changes):
    messages = drive(3)
    path = write(tmp_path / "bag", messages, storage)
    with Bag(path) as bag:
        whole = bag.start, bag.end, bag.count, sorted((topic.name, topic.count) for topic in bag.topics)
    with Bag(edited(path, **changes)) as bag:
        assert (bag.start, bag.end, bag.count, sorted((topic.name, topic.count) for topic in bag.topics)) == whole
        assert sorted(read(bag)) == sorted(rows(messages)) and bag.faults == []


def test_a_file_that_metadata_does_not_name_is_told_and_repair_takes_it_in(tmp_path):
    first, second = drive(2), [Recorded(m.topic, m.time + 9 * NS, m.message) for m in drive(3)]
    path, other = write(tmp_path / "bag", first), write(tmp_path / "other", second)
    shutil.copy(next(other.glob("*.mcap")), path / "bag_1.mcap")
    with Bag(path) as bag:
        (fault,) = bag.faults
        assert fault.startswith("bag_1.mcap lies beside metadata.yaml, which does not name it, and is not read") and bag.count == len(first)
    report = repair(path)
    assert (report.changed, report.messages) == ("new", len(first) + len(second))


@pytest.mark.parametrize("qos", ["''", "[]"])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_messages_are_read_whatever_metadata_says_of_their_qos(tmp_path, storage, qos):
    """People empty it, by hand, so that Humble plays the bags of newer distributions."""
    messages = [*drive(2), Recorded("/tf_static", START + 1, recorded.transform("base", "lidar", np.eye(4)))]
    path = write(tmp_path / "bag", messages, storage)
    content = yaml.safe_load((path / "metadata.yaml").read_text())
    for topic in content["rosbag2_bagfile_information"]["topics_with_message_count"]:
        topic["topic_metadata"]["offered_qos_profiles"] = yaml.safe_load(qos)
    (path / "metadata.yaml").write_text(yaml.safe_dump(content))
    with Bag(path) as bag:
        assert sorted(read(bag)) == sorted(rows(messages)) and bag.faults == []


def test_topics_that_metadata_has_under_other_names_are_salvaged(tmp_path):
    messages = drive(2)
    path = write(tmp_path / "bag", messages)
    metadata = (path / "metadata.yaml").read_text()
    (path / "metadata.yaml").write_text(metadata.replace("name: /image\n", "name: /front\n"))
    assert (path / "metadata.yaml").read_text() != metadata
    found, faults = whole_of(path, lambda bag: (read(bag), bag.faults))
    assert found == rows(messages)
    assert "its files have none of the topics /front (sensor_msgs/msg/Image) that its metadata.yaml tells of" in faults[0]


# Damaged bags.


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_killed_recording_without_metadata_is_read_and_said_so(tmp_path, storage):
    messages = drive(3)
    path = write(tmp_path / "bag", messages, storage)
    (path / "metadata.yaml").unlink()
    with pytest.raises(DamagedBag):
        Bag(path)
    found, faults = whole_of(path, lambda bag: (read(bag), bag.faults))
    assert found == rows(messages)
    assert any("metadata.yaml is missing: the recorder was killed; `lix bag repair` writes it" in fault for fault in faults)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_mcap_gives_every_message_before_the_cut(tmp_path, share):
    messages = drive(6)
    path = write(tmp_path / "bag", messages)
    content = data_file(path).read_bytes()
    cut = int(len(content) * share)
    data_file(path).write_bytes(content[:cut])
    found, faults = whole_of(path, lambda bag: (read(bag), bag.faults))
    # A message is whole where all of its bytes, that occur nowhere else, are before the cut.
    whole = [row for row in rows(messages) if content.index(row[3]) + len(row[3]) <= cut]
    assert [row for row in found if row[0] == "/image"] == [row for row in whole if row[0] == "/image"]
    assert len(found) == sum(content.find(struct.pack("<QQ", at, at) + raw) + 16 + len(raw) <= cut for _, _, at, raw in rows(messages))
    assert faults[0].startswith("cannot read bag") and "bytes from byte" in faults[1]


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_damage_anywhere_gives_messages_or_an_error_of_lix(damage_bag, data):
    path, content = damage_bag
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 200)) | st.just(len(content)))
    data_file(path).write_bytes(content[:start] + data.draw(st.binary(max_size=20)) + content[end:])
    try:
        whole_of(path, lambda bag: read(bag))
    except SourceError as error:
        assert "bag" in str(error)


@pytest.fixture(params=["mcap", "sqlite3"])
def damage_bag(request, tmp_path):
    path = write(tmp_path / "bag", drive(1, ("image", "camera_info")), request.param)
    return path, data_file(path).read_bytes()


@pytest.mark.parametrize("place", ["checksum", "data"])
def test_a_damaged_chunk_is_passed_over_and_the_rest_is_read(tmp_path, place):
    messages = []
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 256, (300, 400, 3), np.uint8)
        stamp = START + index * PERIOD
        messages.append(Recorded("/image", stamp, recorded.image(stamp, pixels, "rgb8")))
    path = WRITERS["mcap in zstd"](tmp_path / "bag", messages)
    content = bytearray(data_file(path).read_bytes())
    second = content.index(b"\x28\xb5\x2f\xfd", content.index(b"\x28\xb5\x2f\xfd") + 1)  # where a frame of zstd begins
    # Before it are length, name and length of the name of the compression, and the checksum.
    at = second - 20 if place == "checksum" else second
    content[at : at + 4] = b"\x01\x02\x03\x04"
    data_file(path).write_bytes(content)
    with Bag(path) as bag, pytest.raises(DamagedBag):
        list(bag.messages())
    found, faults = whole_of(path, lambda bag: (read(bag), bag.faults))
    # 3 images of 360 kB make a chunk of more than 1 MiB: one of four is lost.
    assert len(found) == 9 and set(found) < set(rows(messages))
    assert {found[0], found[-1]} == {rows(messages)[0], rows(messages)[-1]}
    assert "the chunk at byte" in faults[1] and "is damaged and left out" in faults[1]


def test_messages_compressed_one_by_one_are_read_from_the_file_alone_and_salvaged_too(tmp_path):
    messages = drive(2)
    path = WRITERS["sqlite3, messages in zstd"](tmp_path / "bag", messages)
    shutil.copy(data_file(path), tmp_path / "alone.db3")
    with Bag(tmp_path / "alone.db3") as bag:
        assert read(bag) == rows(messages) and bag.faults == []
    (path / "metadata.yaml").unlink()
    assert whole_of(path, read) == rows(messages)


@pytest.mark.parametrize("journal", ["-wal", "-journal"])
def test_a_journal_beside_a_file_is_told(tmp_path, journal):
    messages = drive(2)
    path = write(tmp_path / "bag", messages, "sqlite3")
    file = data_file(path)
    beside = file.with_name(file.name + journal)
    beside.touch()
    with Bag(path) as bag:
        assert read(bag) == rows(messages)
    beside.write_bytes(b"what was not written yet")
    found, faults = whole_of(path, lambda bag: (read(bag), bag.faults))
    assert found == rows(messages)
    assert f"was not closed, as {beside.name} beside it says: `lix bag repair` takes in what is there too" in faults[0]


@pytest.mark.parametrize("storage", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_a_message_that_cannot_be_decompressed_is_left_out_alone(tmp_path, storage):
    messages = drive(3, ("image", "depth"))
    raw = [STORE.serialize_cdr(m.message, m.message.__msgtype__) for m in messages]
    packed = [zstd.compress(bytes(data)) for data in raw]
    packed[3] = packed[3][:4] + bytes(len(packed[3]))
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=storage)
    with writer:
        topics = {topic: writer.add_connection(topic, "sensor_msgs/msg/Image", typestore=STORE) for topic in ("/image", "/depth")}
        for m, data in zip(messages, packed):
            writer.write(topics[m.topic], m.time, data)
    (tmp_path / "bag" / "metadata.yaml").unlink()
    with Bag(tmp_path / "bag", salvaged=True) as bag:
        assert read(bag) == rows([*messages[:3], *messages[4:]])
        assert {topic.name: topic.count for topic in bag.topics} == {"/image": 3, "/depth": 2} and bag.count == 5
        assert bag.faults[1:] == [f"1 messages of {data_file(bag.path).name} cannot be decompressed and are left out"]
        assert "is missing: the recorder was killed" in bag.faults[0]


def test_damaged_pages_of_sqlite_are_leapt_over(tmp_path):
    messages = drive(20, ("image",))
    path = write(tmp_path / "bag", messages, "sqlite3")
    content = bytearray(data_file(path).read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = bytes(4096)
    data_file(path).write_bytes(content)

    def stamps_of(bag: Bag) -> list[int]:
        return [at for _, _, at, _ in read(bag)]

    found = whole_of(path, stamps_of)
    assert 15 <= len(found) and {found[0], found[-1]} == {messages[0].time, messages[-1].time}
    data_file(path).write_bytes(content[: len(content) * 2 // 3 // 4096 * 4096])
    cut, faults = whole_of(path, lambda bag: (stamps_of(bag), bag.faults))
    assert 5 <= len(cut) < 15 and cut[0] == messages[0].time
    assert any("are damaged" in fault for fault in faults)


@pytest.mark.parametrize(("content", "fault"), [(b"no mcap" * 100, "does not begin as an MCAP file does"), (b"", "is empty")])
@pytest.mark.parametrize("metadata", [True, False])
def test_a_bag_of_which_nothing_is_whole_is_refused(tmp_path, content, fault, metadata):
    path = write(tmp_path / "bag", drive(1))
    data_file(path).write_bytes(content)
    if not metadata:
        (path / "metadata.yaml").unlink()
    why = f"cannot read bag {path}: {data_file(path).name} {fault}"
    with pytest.raises(SourceError) as refused:
        check(path)
    assert str(refused.value) == why
    (report,) = check_all([path])
    assert (report.frames, report.faults) == (0, [why])


# Roles of topics.

RGB, GRAY, METRES, MM = (np.zeros((4, 6, 3), np.uint8), "rgb8"), (np.zeros((4, 6), np.uint8), "mono8"), "32FC1", "16UC1"


def some_bag(tmp_path: Path, **topics: str) -> Path:
    """A bag with one message on each topic; kinds: rgb, gray, metres, mm, jpeg, info, cloud, text."""
    make = {
        "rgb": lambda: recorded.image(START, *RGB),
        "gray": lambda: recorded.image(START, *GRAY),
        "metres": lambda: recorded.image(START, np.ones((4, 6), np.float32), METRES),
        "normals": lambda: recorded.image(START, np.ones((4, 6, 3), np.float32), "32FC3"),
        "mm": lambda: recorded.image(START, np.ones((4, 6), np.uint16), MM),
        "jpeg": lambda: recorded.jpeg(START, RGB[0]),
        "packed": lambda: recorded.compressed_depth(START, np.ones((4, 6))),
        "info": lambda: recorded.camera_info(START, Camera.pinhole(6, 4, 5.0)),
        "cloud": lambda: recorded.cloud(START, np.ones((3, 3))),
        "text": lambda: recorded.text("{}"),
    }
    return write(tmp_path / "bag", [Recorded(topic, START, make[kind]()) for topic, kind in topics.items()])


@pytest.mark.parametrize(
    ("topics", "expected"),
    [
        (
            {"/left/image_raw": "rgb", "/left/camera_info": "info", "/right/image_raw": "rgb", "/right/camera_info": "info"},
            {"image": "/left/image_raw", "right_image": "/right/image_raw", "right_camera_info": "/right/camera_info"},
        ),
        (
            {"/stereo/left/image_rect": "gray", "/stereo/right/image_rect": "gray", "/stereo/left/camera_info": "info"},
            {"image": "/stereo/left/image_rect", "right_image": "/stereo/right/image_rect", "camera_info": "/stereo/left/camera_info"},
        ),
        (  # the defaults of record.launch.py
            {"/camera/image_raw": "rgb", "/camera/camera_info": "info", "/right/image_raw": "rgb", "/right/camera_info": "info"},
            {"image": "/camera/image_raw", "right_image": "/right/image_raw", "right_camera_info": "/right/camera_info"},
        ),
        (  # those of demo.launch.py, in a namespace
            {"/robot/camera/image_raw": "rgb", "/robot/camera/camera_info": "info", "/robot/right/image": "rgb"},
            {"image": "/robot/camera/image_raw", "right_image": "/robot/right/image"},
        ),
        (
            {"/cam/image_raw/compressed": "jpeg", "/cam/image_raw": "rgb", "/cam/image_rect": "rgb", "/cam/camera_info": "info"},
            {"image": "/cam/image_raw", "camera_info": "/cam/camera_info"},
        ),
        (
            {"/c/color/image_raw": "rgb", "/c/depth/image_rect_raw": "mm", "/c/aligned_depth_to_color/image_raw": "mm"},
            {"image": "/c/color/image_raw", "depth": "/c/aligned_depth_to_color/image_raw"},
        ),
        (
            {"/image": "rgb", "/labels": "gray", "/label_names": "text", "/normals": "normals", "/segmentation/mask": "gray"},
            {"image": "/image", "labels": "/labels", "label_names": "/label_names"},
        ),
        (
            {
                "/image": "rgb",
                "/geometry/depth": "metres",
                "/velodyne": "cloud",
                "/logger/keyframes": "text",
                "/segmentation/overlay": "rgb",
            },
            {"image": "/image", "depth": "/geometry/depth", "points": "/velodyne", "keyframes": "/logger/keyframes"},
        ),
        ({"/front/camera": "rgb", "/calib": "info"}, {"image": "/front/camera", "camera_info": "/calib"}),
        (
            {"/front/camera": "rgb", "/calib": "info", "/geometry/depth": "metres", "/geometry/camera_info": "info"},
            {"image": "/front/camera", "camera_info": "/calib", "depth": "/geometry/depth"},
        ),
        (
            {"/cam/image_raw": "rgb", "/cam/depth/image/compressedDepth": "packed"},
            {"image": "/cam/image_raw", "depth": "/cam/depth/image/compressedDepth"},
        ),
        (
            {"/cam/image_raw": "rgb", "/cam/depth/image/compressedDepth": "packed", "/cam/depth/image": "mm"},
            {"image": "/cam/image_raw", "depth": "/cam/depth/image"},
        ),
        (
            {"/depth_camera/image": "rgb", "/depth_camera/camera_info": "info", "/depth_camera/depth_image": "metres"},
            {"image": "/depth_camera/image", "camera_info": "/depth_camera/camera_info", "depth": "/depth_camera/depth_image"},
        ),
        (
            {"/depth_rig/front/image": "rgb", "/depth_rig/front/depth/image_rect/compressed": "jpeg", "/depth_rig/depth_view": "rgb"},
            {"image": "/depth_rig/front/image"},
        ),
        ({"image": "rgb", "depth": "metres"}, {"image": "image", "depth": "depth"}),  # no name of ROS, yet some bags have such
    ],
)
def test_topics_get_their_roles_by_type_and_custom(tmp_path, topics, expected):
    found = roles(some_bag(tmp_path, **topics))
    assert {role: topic for role, topic in found.items() if role in expected} == expected
    assert "labels" in expected or "labels" not in found


def test_what_the_nodes_publish_is_no_camera():
    assert set(MADE_BY_LIX) == {*OUTPUTS, *TEACHER_OUTPUTS, *GEOMETRY_OUTPUTS} - {"depth"}


def test_the_right_camera_is_that_of_the_left_one(tmp_path):
    rig = ("camera", "left", "right")
    pictures, infos = ({f"/{side}/{topic}": kind for side in rig} for topic, kind in (("image_raw", "rgb"), ("camera_info", "info")))
    path = some_bag(tmp_path, **pictures, **infos)
    assert roles(path, image="/left/image_raw")["right_image"] == "/right/image_raw"
    assert "right_image" not in roles(path, image="/camera/image_raw")


def test_a_right_camera_beside_any_other_one_makes_no_pair(tmp_path):
    """But beside one called `camera`."""
    with Bag(some_bag(tmp_path, **{"/front/image_raw": "rgb", "/right/image_raw": "rgb"})) as bag:
        topics, remarks = find_topics(bag)
    assert (topics.image, topics.right_image) == ("", "") and any("several cameras; choose one" in remark for remark in remarks)


def test_cameras_of_arms_are_paired_within_each(tmp_path):
    sides = [f"/{arm}_arm/{side}/image_raw" for arm in ("left", "right") for side in ("left", "right")]
    path = some_bag(tmp_path, **dict.fromkeys(sides, "rgb"))
    for arm in ("left", "right"):
        assert roles(path, image=f"/{arm}_arm/left/image_raw")["right_image"] == f"/{arm}_arm/right/image_raw"


def test_two_pictures_of_one_camera_are_no_pair(tmp_path):
    path = some_bag(tmp_path, **{"/right/image_raw": "rgb", "/right/image": "rgb", "/right/camera_info": "info"})
    assert roles(path) == {"image": "/right/image_raw", "camera_info": "/right/camera_info"}


@pytest.mark.parametrize(
    ("names", "frames", "several"),
    [
        (("front", "rear", "side"), ("front", "rear", "side"), True),
        (("image_front", "image_rear"), ("", ""), True),
        (("image_raw", "thermal"), ("color", "infrared"), True),
        (("image_raw", "thermal"), ("color", "color"), False),
        (("image_raw", "image_color"), ("", "color"), False),
    ],
)
def test_cameras_in_one_namespace_are_told_apart_by_frame_and_name(tmp_path, names, frames, several):
    messages = [Recorded(f"/cams/{name}", START, recorded.image(START, *RGB)) for name in names]
    for m, frame in zip(messages, frames):
        m.message.header.frame_id = frame
    with Bag(write(tmp_path / "bag", messages)) as bag:
        topics, remarks = find_topics(bag)
    assert topics.image == ("" if several else f"/cams/{names[0]}" if "color" not in names[1] else "/cams/image_raw")
    assert any("several cameras; choose one with --image: /cams/" in remark for remark in remarks) == several


@pytest.mark.parametrize("name", ["image_rect", "image_rect_color", "rect", "left_rectified", "image_rect/compressed", "image_rect0"])
def test_a_topic_says_by_a_word_of_its_name_that_it_is_rectified(name):
    assert shows_rectified(f"/cam/{name}")


@pytest.mark.parametrize("name", ["image_raw", "image_color_corrected", "image_direct", "image_unrectified", "rectangle", "rect/image_raw"])
def test_letters_within_a_word_say_nothing_of_rectification(name):
    assert not shows_rectified(f"/cam/{name}")


def test_roles_can_be_named_and_refused(tmp_path):
    path = some_bag(tmp_path, **{"/a/image": "rgb", "/b/image": "rgb", "/depth": "metres"})
    with Bag(path) as bag:
        topics, remarks = find_topics(bag)
        assert topics.image == "" and remarks[0] == "several cameras; choose one with --image: /a/image, /b/image"
        topics, _ = find_topics(bag, {"image": "/b/image", "depth": "none"})
        assert (topics.image, topics.depth) == ("/b/image", "")
        with pytest.raises(SourceError, match="has no topic /c for image; of its type it has /a/image, /b/image, /depth"):
            find_topics(bag, {"image": "/c"})
        with pytest.raises(SourceError, match="there is no role 'imge' for a topic; there are image,"):
            find_topics(bag, {"imge": "/a/image"})


@pytest.mark.parametrize(("role", "name"), [("depth", "depth/image"), ("labels", "labels")])
def test_depth_and_labels_of_another_camera_are_not_taken_for_the_images(tmp_path, role, name):
    def of(frame: str, topic: str) -> Recorded:
        message = recorded.image(START, np.ones((4, 6), np.float32), METRES) if role == "depth" else recorded.image(START, *GRAY)
        message.header.frame_id = frame
        return Recorded(topic, START, message)

    pictures = [Recorded(f"/{side}/image", START, recorded.image(START, *RGB)) for side in ("front", "rear")]
    pictures[0].message.header.frame_id, pictures[1].message.header.frame_id = "front", "rear"
    rear = of("rear", f"/rear/{name}")
    cases = {
        "front": ([rear], {"": "", "/front/image": "", "/rear/image": f"/rear/{name}"}),
        "named": ([rear, of("/front", f"/front/{name}")], {"/front/image": f"/front/{name}", "/rear/image": f"/rear/{name}"}),
        "unnamed": ([of("", f"/any/{name}")], {"/front/image": f"/any/{name}"}),
    }
    for case, (others, expected) in cases.items():
        with Bag(write(tmp_path / case, pictures + others)) as bag:
            for image, topic in expected.items():
                found, remarks = find_topics(bag, {"image": image})
                if image:
                    assert getattr(found, role) == topic
                told = [r for r in remarks if f"/rear/{name} (rear) is of another frame than /front/image (front)" in r]
                assert len(told) == (image == "/front/image" and not topic)
            assert getattr(find_topics(bag, {"image": "/front/image", role: others[0].topic})[0], role) == others[0].topic


# Time.


def brute_pair(stamps: list[int], others: list[int], slop: int) -> list[int]:
    """The partner of each stamp, by looking at all of both."""
    found = []
    for s in stamps:
        j = min(range(len(others)), key=lambda k: (abs(others[k] - s), k))
        i = min(range(len(stamps)), key=lambda k: (abs(stamps[k] - others[j]), k))
        found.append(j if stamps[i] == s and abs(others[j] - s) <= slop else -1)
    return found


STAMPS = st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True).map(sorted)


@given(stamps=STAMPS, others=STAMPS, slop=st.integers(0, 30), offset=st.integers(-20, 20))
@settings(max_examples=200)
def test_partners_are_nearest_to_each_other_and_used_once(stamps, others, slop, offset):
    found = pair(np.array(stamps), np.array(others), slop, offset)
    assert found.tolist() == brute_pair(stamps, [o - offset for o in others], slop)
    used = found[found >= 0].tolist()
    assert len(used) == len(set(used))


@given(stamps=STAMPS, wanted=STAMPS)
def test_the_nearest_stamp_is_found(stamps, wanted):
    expected = [min(range(len(stamps)), key=lambda k: (abs(stamps[k] - w), k)) for w in wanted]
    assert nearest(np.array(stamps), np.array(wanted)).tolist() == expected


def test_nothing_pairs_with_nothing():
    empty = np.zeros(0, np.int64)
    assert pair(empty, np.array([1]), 5).tolist() == [] and pair(np.array([1, 2]), empty, 5).tolist() == [-1, -1]


def pair_of(report, topic):
    return next(p for p in report.pairs if p.topic == topic)


def test_the_report_tells_rates_gaps_offsets_and_frames_without_partner(tmp_path):
    messages = drive(20, offsets={"points": 12 * MS, "right/image": -3 * MS})
    lost = {("/points", START + i * PERIOD + 17 * MS) for i in (4, 5, 6)} | {("/depth", START + 19 * PERIOD + 5 * MS)}
    kept = [m for m in messages if (m.topic, m.time) not in lost]
    report = check(write(tmp_path / "bag", kept))
    points = next(s for s in report.streams if s.topic == "/points")
    assert (points.messages, points.rate, points.gaps, points.missing) == (17, pytest.approx(10), 1, 3)
    assert (points.longest, points.longest_at) == (pytest.approx(0.4), pytest.approx(0.315))
    fit = pair_of(report, "/points")
    assert (fit.images, fit.paired, fit.alone) == (20, 17, 3) and fit.first_alone == pytest.approx((0.4, 0.5, 0.6))
    assert (fit.offset, fit.spread) == (pytest.approx(0.012), pytest.approx(0, abs=1e-9)) and fit.overlap == pytest.approx(1.888)
    assert pair_of(report, "/right/image").offset == pytest.approx(-0.003)
    assert (report.frames, report.geometry, report.with_depth, report.with_labels) == (20, "depth", 19, 20)
    assert "/points has 1 gaps, in which some 3 messages are missing" in report.remarks
    text = "\n".join(lines_of(report, Options()))
    assert "frames 20, with depth 19 (from depth), with labels 20" in text and "+12.0 ms" in text
    assert json.loads(json.dumps(report.to_dict()))["frames"] == 20


def test_sensors_of_which_nothing_was_recorded_are_named(tmp_path):
    kinds = {"/points": "sensor_msgs/msg/PointCloud2", "/depth": "sensor_msgs/msg/Image", "/tf": "tf2_msgs/msg/TFMessage"}
    for images in (3, 0):
        writer = RosbagsWriter(tmp_path / f"bag{images}")
        for name, kind in {"/image": "sensor_msgs/msg/Image", "/student/overlay": "sensor_msgs/msg/Image", **kinds}.items():
            writer.add(Topic(name, kind, (Qos(),)))
        for message in drive(images, ("image",)):
            writer.write("/image", message.time, STORE.serialize_cdr(message.message, "sensor_msgs/msg/Image"))
        writer.close()
    told = "there are images, but no message of /points, /depth: nothing came"
    assert [remark.startswith(told) for remark in check(tmp_path / "bag3").remarks if "/points" in remark] == [True]
    (empty,) = check_all([tmp_path / "bag0"])
    assert told not in str(empty)


def test_the_p95_of_offsets_is_of_the_differences_from_the_median(tmp_path):
    messages = drive(21, ("image", "camera_info"))
    jitter = np.linspace(-10, 10, 21).astype(int)
    at = [START + i * PERIOD + int(j) * MS for i, j in enumerate(jitter)]
    messages += [Recorded("/points", t, recorded.cloud(t, np.ones((5, 3)))) for t in at]
    fit = pair_of(check(write(tmp_path / "bag", messages), Options(slop=0.05)), "/points")
    assert (fit.offset, fit.spread) == (pytest.approx(0, abs=1e-9), pytest.approx(np.percentile(np.abs(jitter), 95) / 1e3))


def test_a_constant_offset_is_named_and_taken_off(tmp_path):
    path = write(tmp_path / "bag", drive(12, ("image", "camera_info", "points", "/tf_static"), {"points": 30 * MS}))
    report = check(path)
    assert (report.with_depth, pair_of(report, "/points").alone) == (0, 12)
    cure = "its stamps are +30 ms off: give --offset 0.030 with --geometry lidar if that is constant"
    told = f"12 of 12 images have no partner on /points; {cure}"
    assert told in report.remarks
    (outcome,) = extract([path], tmp_path / "out")
    assert outcome.with_depth == 0 and told in outcome.remarks
    (outcome,) = extract([path], tmp_path / "without", Options(geometry="none"))
    assert told not in outcome.remarks
    assert check(path, Options(offset=0.03)).with_depth == 12
    assert check(path, Options(slop=0.04)).with_depth == 12


def test_an_offset_of_about_half_an_interval_may_be_to_the_other_side(tmp_path):
    path = write(tmp_path / "bag", drive(12, ("image", "camera_info", "points", "/tf_static"), {"points": 60 * MS}))
    (remark,) = (remark for remark in check(path).remarks if "/points" in remark)
    assert (
        "its stamps are -40 ms off: give --offset -0.040, or 0.060 where that is the nearer to the truth, with --geometry lidar" in remark
    )
    assert check(path, Options(offset=0.06)).with_depth == 12


def test_frames_are_of_images_and_a_bag_without_any_is_told_in_two_lines(tmp_path):
    with pytest.raises(SourceError, match="name the camera's topic as image"):
        Options(topics={"image": "none"})
    for wrong in (10, 0, 100):
        with pytest.raises(SourceError, match=f"max_disparity is a multiple of 16, at least 16, got {wrong}"):
            Options(max_disparity=wrong)
    path = write(tmp_path / "bag", drive(2))
    lines = lines_of(check_all([path], Options(topics={"image": "/nope"}))[0], Options())
    assert lines[0] == "bag: no frame can be made of it" and len(lines) == 2 and "has no topic /nope for image" in lines[1]


def test_sensors_that_never_overlap_are_told_and_images_are_used(tmp_path):
    late = drive(5, ("points", "/tf_static"), {"points": 3600 * NS})
    late = [Recorded(m.topic, m.time - 3600 * NS if m.topic == "/points" else m.time, m.message) for m in late]
    path = write(tmp_path / "bag", sorted([*drive(5, ("image", "camera_info")), *late], key=lambda m: m.time))
    report = check(path)
    assert (report.frames, report.with_depth, pair_of(report, "/points").overlap) == (5, 0, 0)
    assert any("never overlap in time by their stamps; do their clocks agree? try --clock recorded" in r for r in report.remarks)
    by_recorder = check(path, Options(clock="recorded"))
    assert (by_recorder.with_depth, by_recorder.geometry) == (5, "lidar")
    with pytest.raises(SourceError, match="no depth from lidar: no message of /points is near an image in time"):
        check(path, Options(geometry="lidar"))


def test_messages_without_stamps_count_when_they_were_recorded(tmp_path):
    messages = drive(4, ("image", "camera_info", "points", "/tf_static"))
    for m in messages:
        if m.topic == "/points":
            m.message.header.stamp.sec = m.message.header.stamp.nanosec = 0
    report = check(write(tmp_path / "bag", messages), Options(slop=0.006))
    assert report.with_depth == 4 and pair_of(report, "/points").offset == pytest.approx(0.005)
    assert "4 of 4 messages of /points have no stamp: the time of recording counts" in report.remarks


def test_few_messages_without_stamps_are_left_out_and_the_others_keep_theirs(tmp_path):
    messages = []
    for m in drive(8, ("image", "camera_info", "depth")):
        if m.topic == "/image":  # 65 ms on their way; the first was taken before the clock was there
            stamp = recorded.header(0 if m.time < START + PERIOD else m.time - 5 * MS)
            m = Recorded(m.topic, m.time + 60 * MS, dataclasses.replace(m.message, header=stamp))
        messages.append(m)
    report = check(write(tmp_path / "bag", messages))
    assert (report.frames, report.with_depth) == (7, 7)
    assert "1 of 8 messages of /image have no stamp: they are left out" in report.remarks


def test_a_clock_set_back_is_told_and_repeated_stamps_are_left_out(tmp_path):
    again = [Recorded(m.topic, m.time + 10 * NS, m.message) for m in drive(3)]
    report = check(write(tmp_path / "bag", [*drive(3), *again]))
    image = next(s for s in report.streams if s.role == "image")
    assert (report.frames, image.repeated, image.backwards) == (3, 3, 1)
    assert any("the stamps of /image go back 1 times" in remark for remark in report.remarks)


def test_reasons_of_keyframes_are_counted_and_gaps_between_them_are_none(tmp_path):
    messages = [m for m in drive(10) if m.time < START + PERIOD or m.time > START + 6 * PERIOD or not m.topic.endswith("image")]
    records = {START: ["interval"], START + 7 * PERIOD: ["uncertain", "view"], START + 8 * PERIOD: ["view"], "x": None}
    for stamp, reasons in records.items():
        content = {"stamp": stamp, "reasons": reasons} if reasons else "no record"
        messages.append(Recorded("/logger/keyframes", START + 2 * NS, recorded.text(content)))
    report = check(write(tmp_path / "bag", messages))
    assert report.reasons == {"view": 2, "interval": 1, "uncertain": 1}
    assert next(s for s in report.streams if s.role == "image").gaps == 1
    assert not any("gaps" in remark for remark in report.remarks)


# Calibration and places.


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        (lambda m: [x for x in m if "camera_info" not in x.topic], "no camera_info for /image: without it no depth can be made"),
        (lambda m: changed(m, "/camera_info", lambda i: i.k.fill(0)), "/camera_info is of an uncalibrated camera"),
        (lambda m: changed(m, "/camera_info", lambda i: setattr(i, "width", 80)), "/camera_info is for 80x64, /image is 160x64"),
        (
            lambda m: changed(m, "/camera_info", lambda i: (setattr(i, "distortion_model", "equidistant"), setattr(i, "d", np.ones(4)))),
            "distortion model 'equidistant' cannot be rectified here",
        ),
    ],
)
def test_without_a_usable_calibration_images_and_labels_remain(tmp_path, change, remark):
    report = check(write(tmp_path / "bag", change(drive(2))))
    assert (report.frames, report.with_depth, report.with_labels, report.calibration) == (2, 0, 2, "none that is usable")
    assert any(remark in r for r in report.remarks)


def changed(messages, topic, change):
    for m in messages:
        if m.topic == topic:
            change(m.message)
    return messages


def test_the_tree_of_frames_is_walked_both_ways():
    base_camera, base_lidar = matrix_from_pose((1, 2, 3, 0.5, -0.5, 0.5, -0.5)), matrix_from_pose((-1, 0, 2, 0, 0, 1, 0))
    frames = Frames()
    for parent, child, matrix in (("base", "mast", np.eye(4)), ("mast", "camera", base_camera), ("/base", "/lidar", base_lidar)):
        frames.add(recorded.transform(parent, child, matrix).transforms[0])
    expected = np.linalg.inv(base_camera) @ base_lidar
    np.testing.assert_allclose(frames.lookup("camera", "lidar"), expected, atol=1e-12)
    np.testing.assert_allclose(frames.lookup("lidar", "camera"), np.linalg.inv(expected), atol=1e-12)
    with pytest.raises(GeometryError, match="the bag's TF has no transform from radar to camera"):
        frames.lookup("camera", "radar")
    frames.add(recorded.transform("base", "mast", matrix_from_pose((0, 0, 1, 0, 0, 0, 1))).transforms[0])
    assert frames.moving == {"mast"}
    np.testing.assert_allclose(frames.lookup("camera", "lidar"), expected, atol=1e-12)


@pytest.mark.parametrize("order", [1, -1])
def test_a_bad_transform_says_nothing_of_those_beside_it(tmp_path, order):
    good, bad = (recorded.transform("camera", child, np.eye(4)).transforms[0] for child in ("lidar", "antenna"))
    bad.transform.rotation.w = 0.0
    message = recorded.transform("camera", "lidar", np.eye(4))
    message.transforms = [bad, good][::order]
    with Bag(write(tmp_path / "bag", [Recorded("/tf_static", START, message)])) as bag:
        np.testing.assert_allclose(Frames.read(bag, "camera", "lidar").lookup("camera", "lidar"), np.eye(4))


def test_of_moving_frames_only_those_that_are_needed_are_read(tmp_path):
    turned = matrix_from_pose((1, 2, 3, 0.5, -0.5, 0.5, -0.5))
    messages = [Recorded("/tf_static", START, recorded.transform("camera", "lidar", turned))]
    messages += [Recorded("/tf", START + n, recorded.transform("odom", "camera", np.eye(4))) for n in range(3)]
    with Bag(write(tmp_path / "bag", messages)) as bag:
        static, all_of_them = Frames.read(bag, "camera", "lidar"), Frames.read(bag, "odom", "lidar")
    assert set(static.parents) == {"lidar"} and set(all_of_them.parents) == {"lidar", "camera"}
    np.testing.assert_allclose(all_of_them.lookup("odom", "lidar"), turned, atol=1e-12)


@pytest.mark.parametrize("nameless", ["image", "points"])
def test_a_frame_without_a_name_is_connected_to_none(tmp_path, nameless):
    messages = drive(2, ("image", "camera_info", "points"))
    for m in messages:
        if nameless == "image" or m.topic == "/points":
            m.message.header.frame_id = ""
    report = check(write(tmp_path / "bag", messages))
    assert report.with_depth == 0
    camera = "a frame without a name" if nameless == "image" else "camera"
    told = f"the bag's TF has no transform from a frame without a name to {camera}; give it as --extrinsics"
    assert any(told in remark for remark in report.remarks)


def test_a_first_cloud_that_is_damaged_costs_the_depth_of_its_frame_alone(tmp_path):
    messages = drive(3, ("image", "camera_info", "points", "/tf_static"))
    path = write(tmp_path / "bag", messages)
    first = next(m.message for m in messages if m.topic == "/points")
    content = bytearray(data_file(path).read_bytes())
    raw = bytes(STORE.serialize_cdr(first, first.__msgtype__))
    at = content.index(raw)
    content[at + 12 : at + 16] = b"\xff\xff\xff\x7f"  # the length of the frame's name
    data_file(path).write_bytes(content)
    report = check(path)
    assert (report.frames, report.with_depth, report.geometry) == (3, 3, "lidar")
    (outcome,) = extract([path], tmp_path / "out")
    assert [bool(frame.depth) for frame in Extraction.open(tmp_path / "out").frames] == [False, True, True]
    assert [(count, text.split(";")[0]) for text, count in outcome.warnings.items()] == [
        (1, "no depth: a message of type sensor_msgs/msg/PointCloud2 cannot be deserialised")
    ]


def test_a_calibration_that_changes_is_told_and_the_one_of_the_stretch_is_taken(tmp_path):
    before, after = Camera.pinhole(6, 4, 50.0), Camera.pinhole(6, 4, 100.0)
    messages = []
    for n in range(40):
        stamp = START + n * PERIOD
        messages.append(Recorded("/image", stamp, recorded.image(stamp, *RGB)))
        messages.append(Recorded("/camera_info", stamp, recorded.camera_info(stamp, before if n < 20 else after)))
    path = write(tmp_path / "bag", messages)
    change = f"/camera_info says something else from {20 * PERIOD / NS:.1f} s on: the first calibration is taken"
    for options, focal, is_told in (
        (Options(), 50.0, True),
        (Options(end=10 * PERIOD / NS), 50.0, False),
        (Options(begin=35 * PERIOD / NS), 100.0, False),
    ):
        report = check(path, options)
        assert report.calibration.startswith(f"fx {focal:.1f} px")
        assert any(change in remark for remark in report.remarks) == is_told
    late = [*messages[:1], *[m for m in messages[1:] if m.topic == "/image"], messages[1]]
    assert check(write(tmp_path / "late", late), Options(begin=1.0)).calibration.startswith("fx 50.0 px"), "recorded once, at the start"


@pytest.mark.parametrize("lag", [0, 700 * MS])
def test_images_have_their_partners_of_the_same_run_of_a_clock_that_was_set_back(tmp_path, monkeypatch, lag):
    """A simulation begins anew: its stamps do, the time of recording goes on. Depth may take a while to be made."""
    rng, messages = np.random.default_rng(0), []
    for run, (frames, metres, begun) in enumerate([(40, 2.0, 0), (24, 9.0, 40)]):
        for n in range(frames):
            stamp, recorded_at = START + n * PERIOD, START + (begun + n) * PERIOD
            jitter = int(rng.integers(1, 4 * MS))
            pixels = np.full((4, 6, 3), 100 + run, np.uint8)
            messages.append(Recorded("/image", recorded_at, recorded.image(stamp + run * MS, pixels, "rgb8")))
            depth = recorded.image(stamp + run * MS + jitter, np.full((4, 6), metres, np.float32), "32FC1")
            messages.append(Recorded("/depth", recorded_at + lag, depth))
            messages.append(Recorded("/camera_info", recorded_at, recorded.camera_info(stamp, Camera.pinhole(6, 4, 5.0))))
    path = write(tmp_path / "bag", sorted(messages, key=lambda m: m.time))
    read_on, fetch, count, is_fetching = Bag.messages, FrameReader._fetch, 0, False

    def counted(bag, *args):
        nonlocal count
        for message in read_on(bag, *args):
            count += is_fetching
            yield message

    def fetching(reader, plans):
        nonlocal is_fetching
        is_fetching = len(plans) > 1  # not of the few that are looked at before
        found = fetch(reader, plans)
        is_fetching = False
        return found

    monkeypatch.setattr(Bag, "messages", counted)
    monkeypatch.setattr(FrameReader, "_fetch", fetching)
    frames = extracted(path, tmp_path / "out")
    runs = {frame.stamp: int(cv2.imread(str(frame.image))[0, 0, 0]) - 100 for frame in frames}
    depths = {frame.stamp: float(to_metres(cv2.imread(str(frame.depth), cv2.IMREAD_UNCHANGED))[0, 0]) for frame in frames if frame.depth}
    assert len(frames) == 64 and len(depths) == 64
    assert all(depth == (2.0, 9.0)[runs[stamp]] for stamp, depth in depths.items())
    assert 2 * 64 <= count < 4 * 64, "a stretch of the bag is read for its own frames"


def test_a_lidar_of_unknown_place_is_told_with_the_cure(tmp_path):
    messages = drive(2, ("image", "camera_info", "points"))
    path = write(tmp_path / "bag", messages)
    report = check(path)
    assert report.with_depth == 0
    assert any("TF has no transform from lidar to camera; give it as --extrinsics 'x y z qx qy qz qw'" in r for r in report.remarks)
    assert check(path, Options(extrinsics=tuple(pose_from_matrix(world_frame(0).camera_from_lidar)))).with_depth == 2
    wrong = check(path, Options(extrinsics=(0, 0, 0, 0, 0, 0, 1)))
    assert wrong.with_depth == 0 and any("lidar: " in r and "camera_from_lidar is wrong" in r for r in wrong.remarks)


def extracted(path: Path, out: Path) -> list[ExtractedFrame]:
    extract([path], out)
    return Extraction.open(out).frames


def test_a_ros_1_bag_has_the_same_report(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    messages = [("/camera/camera_info", 0, bags.ros1_camera_info(8, 6, 5.0))]
    messages += [("/camera/image_raw", NS + i * 50 * MS, bags.ros1_image(pixels)) for i in range(3)]
    report = check(bags.write_ros1_bag(tmp_path / "old.bag", messages))
    assert (report.frames, report.size) == (3, (6, 8)) and "plumb_bob, will be rectified" in report.calibration
    assert "3 of 3 messages of /camera/image_raw have no stamp: the time of recording counts" in report.remarks


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"geometry": "radar"}, "there is no geometry 'radar'; there are auto, depth, stereo, lidar and none"),
        ({"clock": "sun"}, "there is no clock 'sun'"),
        ({"begin": 5.0, "end": 2.0}, "from 5.0 s to 2.0 s is no stretch of time"),
        ({"every": 0}, "every is 1 or more"),
        ({"offset": float("inf")}, "times are finite numbers of seconds, got offset inf"),
        ({"slop": float("nan"), "end": float("inf")}, "times are finite numbers of seconds, got end inf, slop nan"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(SourceError, match=words):
        Options(**options)
