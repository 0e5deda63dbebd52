"""Bags as they are written: readable by others, safe against kill -9, full disks and vanishing folders."""

from __future__ import annotations

import errno
import gc
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
import yaml
from rosbags.rosbag2 import Reader
from rosbags.rosbag2.metadata import parse_qos

from bags import contents
from lix_core.bags.reader import Bag
from lix_core.bags.recording import Recording, RecordingSettings
from lix_core.bags.repair import repair
from lix_core.bags.space import delete_bag, free_space, mount_point, own_bags
from lix_core.bags.writer import NO_HASH, BagExists, Qos, RosbagsWriter, Topic, definition_of
from lix_core.errors import DataError, SourceError

ROOT = Path(__file__).resolve().parents[1]
LATCHED = Qos(durability="transient_local", depth=1)
TEXT = "std_msgs/msg/String"
IMAGE = "sensor_msgs/msg/Image"
S = 1_000_000_000


def text(words: str) -> bytes:
    """std_msgs/String as CDR, laid out by hand."""
    data = words.encode() + b"\0"
    return b"\0\1\0\0" + len(data).to_bytes(4, "little") + data


def wait_until(condition, what: str, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Log(list):
    def __call__(self, level: str, text: str) -> None:
        self.append((level, text))

    def said(self, words: str, level: str | None = None) -> int:
        return sum(words in text and level in (None, given) for given, text in self)


# The writer


@pytest.mark.parametrize("storage, compression", [("mcap", "none"), ("mcap", "zstd"), ("sqlite3", "none"), ("sqlite3", "zstd")])
def test_what_is_written_comes_back_with_types_hashes_and_qos(tmp_path, storage, compression):
    expected = [("/names", 5, text("road")), ("/image", 7, b"\0\1\0\0" + b"x" * 2_000_000), ("/names", 9, text("car" * 100))]
    writer = RosbagsWriter(tmp_path / "bag", storage, compression)
    writer.add(Topic("/names", TEXT, (LATCHED,)))
    writer.add(Topic("/image", IMAGE, (Qos("best_effort"), Qos("reliable", "volatile", "keep_all", 3))))
    for topic, stamp, raw in expected:
        writer.write(topic, stamp, memoryview(raw))
    assert writer.size > (100 if compression == "zstd" else 2_000_000)
    writer.close()
    writer.close()
    assert contents(tmp_path / "bag") == expected

    with Reader(tmp_path / "bag") as reader:
        names, image = sorted(reader.connections, key=lambda c: c.topic, reverse=True)
        assert (names.msgtype, names.msgcount, image.msgtype, image.msgcount) == (TEXT, 2, IMAGE, 1)
        # The hash of std_msgs/msg/String in ROS 2 Jazzy and Kilted, from its published type description.
        assert names.digest == "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"
        assert "uint8[] data" in image.msgdef.data and "std_msgs/Header" in image.msgdef.data
        (profile,) = names.ext.offered_qos_profiles
        assert (profile.durability.name, profile.depth, profile.reliability.name) == ("TRANSIENT_LOCAL", 1, "RELIABLE")
        assert [(q.reliability.name, q.history.name, q.depth) for q in image.ext.offered_qos_profiles] == [
            ("BEST_EFFORT", "KEEP_LAST", 10),
            ("RELIABLE", "KEEP_ALL", 3),
        ]
    information = yaml.safe_load((tmp_path / "bag/metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert information["message_count"] == 3 and information["storage_identifier"] == storage
    assert information["starting_time"]["nanoseconds_since_epoch"] == 5 and information["duration"]["nanoseconds"] == 4
    assert information["compression_mode"] == ("message" if (storage, compression) == ("sqlite3", "zstd") else "")


def test_memory_of_a_bag_of_days_stays_small(tmp_path):
    """Four flushes a second, as the logger makes; of each no more is kept than what the summary says of its chunk."""
    writer, sizes = RosbagsWriter(tmp_path / "bag"), []
    topics = ("/a", "/b", "/c")
    for topic in topics:
        writer.add(Topic(topic, TEXT))
    tracemalloc.start()
    try:
        for _ in range(2):
            for stamp in range(2000):
                for topic in topics:
                    writer.write(topic, stamp, text("x"))
                writer.flush()
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    writer.close()
    assert (sizes[1] - sizes[0]) / 2000 < 200
    assert len(contents(tmp_path / "bag")) == 12000


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("distribution, version", [("humble", 8), ("iron", 8), ("jazzy", 9), ("", 9)])
def test_metadata_is_as_rosbag2_of_the_installation_reads_it(tmp_path, monkeypatch, storage, distribution, version):
    monkeypatch.setenv("ROS_DISTRO", distribution)
    writer = RosbagsWriter(tmp_path / "bag", storage)
    writer.add(Topic("/names", TEXT, (LATCHED,)))
    writer.write("/names", 5, text("road"))
    writer.close()
    written = yaml.safe_load((tmp_path / "bag/metadata.yaml").read_text())
    (tmp_path / "bag/metadata.yaml").unlink()
    assert repair(tmp_path / "bag").changed == "metadata"
    assert yaml.safe_load((tmp_path / "bag/metadata.yaml").read_text()) == written
    assert contents(tmp_path / "bag") == [("/names", 5, text("road"))]
    information = written["rosbag2_bagfile_information"]
    (topic,) = information["topics_with_message_count"]
    offered = topic["topic_metadata"]["offered_qos_profiles"]
    assert (information["version"], type(offered)) == (version, str if version == 8 else list)
    (profile,) = yaml.safe_load(offered) if version == 8 else offered
    assert (profile["durability"], profile["depth"]) == (1 if version == 8 else "transient_local", 1)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("folder", ["lap#1", "lap 50%20", "lap?2", "ü & [x]"])
def test_a_bag_may_be_in_a_folder_of_any_name(tmp_path, storage, folder):
    place = tmp_path / folder / folder
    writer = RosbagsWriter(place, storage)
    writer.add(Topic("/names", TEXT, (LATCHED,)))
    writer.write("/names", 5, text("road"))
    writer.close()
    assert writer.file.parent == place and writer.file.is_file()
    for path in (place, writer.file):
        with Bag(path) as bag:
            assert not bag.faults and [(recorded, bytes(raw)) for _, _, recorded, raw in bag.messages()] == [(5, text("road"))]
    assert repair(place).changed == "nothing"


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_what_was_flushed_is_on_disk_and_what_was_not_is_not(tmp_path, storage):
    writer = RosbagsWriter(tmp_path / "bag", storage)
    writer.add(Topic("/a", TEXT))
    writer.write("/a", 1, text("needle one"))
    writer.flush()
    writer.write("/a", 2, text("needle two"))
    on_disk = writer.file.read_bytes()
    assert b"needle one" in on_disk and b"needle two" not in on_disk
    writer.close()


def test_a_kernel_that_takes_little_at_a_time_gets_all(tmp_path, monkeypatch):
    really = os.writev

    def meager(file: int, parts: list) -> int:
        return really(file, [b"".join(parts)[:777]])

    monkeypatch.setattr(os, "writev", meager)
    writer = RosbagsWriter(tmp_path / "bag")
    writer.add(Topic("/a", TEXT))
    for number in range(2000):
        writer.write("/a", number, text(str(number)))
    writer.close()
    assert contents(tmp_path / "bag") == [("/a", number, text(str(number))) for number in range(2000)]


def test_the_hash_of_a_type_is_the_one_that_ros_itself_has(monkeypatch):
    """Compared with the type descriptions that a ROS installation brings, where one is."""
    import json

    share = Path(sys.prefix, "share")
    kinds = [TEXT, IMAGE, "sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/CameraInfo", "diagnostic_msgs/msg/DiagnosticArray"]
    files = {kind: share / f"{kind}.json" for kind in kinds}
    if not all(file.exists() for file in files.values()):
        pytest.skip("no ROS installation")
    for kind, file in files.items():
        hashes = {entry["type_name"]: entry["hash_string"] for entry in json.loads(file.read_text())["type_hashes"]}
        assert definition_of(kind)[1] == hashes[kind]


def test_a_type_of_the_installation_is_recorded_with_its_definition(tmp_path, monkeypatch):
    messages = tmp_path / "share/farm_msgs/msg"
    messages.mkdir(parents=True)
    (messages / "Furrow.msg").write_text("# A furrow.\nstd_msgs/Header header\nfarm_msgs/Clod[] clods\n")
    (messages / "Clod.msg").write_text("float32 weight  # [kg]\n")
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere{os.pathsep}{tmp_path}")
    words, digest = definition_of("farm_msgs/msg/Furrow")
    assert "farm_msgs/Clod[] clods" in words and "MSG: farm_msgs/Clod\nfloat32 weight" in words and "MSG: std_msgs/Header" in words
    assert re.fullmatch("RIHS01_[0-9a-f]{64}", digest) and digest != NO_HASH


def test_a_type_that_is_another_in_the_installation_is_recorded_as_it_is_there(tmp_path, monkeypatch):
    """Humble's Range has no variance: by a newer definition its messages could not be read."""
    newer, its_digest = definition_of("sensor_msgs/msg/Range")
    messages = tmp_path / "share/sensor_msgs/msg"
    messages.mkdir(parents=True)
    (messages / "Range.msg").write_text("std_msgs/Header header\nuint8 ULTRASOUND=0\nfloat32 range\n")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    words, digest = definition_of("sensor_msgs/msg/Range")
    assert "float32 variance" in newer and "float32 range" in words and "variance" not in words and digest != its_digest


def test_a_topic_of_a_type_that_nobody_knows_is_recorded_all_the_same(tmp_path):
    writer = RosbagsWriter(tmp_path / "bag")
    writer.add(Topic("/secret", "nobody_msgs/msg/Secret"))
    writer.write("/secret", 3, b"\0\1\0\0abc")
    writer.close()
    assert contents(tmp_path / "bag") == [("/secret", 3, b"\0\1\0\0abc")]


def test_the_reference_reader_of_mcap_agrees(tmp_path):
    reader = pytest.importorskip("mcap.reader")
    writer = RosbagsWriter(tmp_path / "bag")
    writer.add(Topic("/names", TEXT, (LATCHED,)))
    writer.add(Topic("/image", IMAGE))
    writer.add(Topic("/silent", IMAGE))
    for number in range(100):  # several chunks, one of them not in the order of time
        writer.write("/names", number * 10, text(str(number)))
        writer.write("/image", 1000 - number, bytes(50_000))
    writer.close()
    with writer.file.open("rb") as file:
        seeking = reader.SeekingReader(file, validate_crcs=True)
        summary = seeking.get_summary()
        assert summary.statistics.channel_message_counts == {1: 100, 2: 100, 3: 0} and len(summary.chunk_indexes) > 3
        assert [summary.statistics.message_start_time, summary.statistics.message_end_time] == [0, 1000]
        messages = [(channel.topic, message.log_time) for _, channel, message in seeking.iter_messages()]
        assert messages == sorted(messages, key=lambda m: m[1]) and len(messages) == 200
        file.seek(0)
        in_order = reader.NonSeekingReader(file, validate_crcs=True).iter_messages()  # meets the definitions again and again
        assert sorted((channel.topic, message.log_time) for _, channel, message in in_order) == sorted(messages)
        (names,) = [channel for channel in summary.channels.values() if channel.topic == "/names"]
        assert names.metadata["topic_type_hash"].startswith("RIHS01_df668c74")
        assert [qos.durability.name for qos in parse_qos(names.metadata["offered_qos_profiles"])] == ["TRANSIENT_LOCAL"]


def test_the_indexes_of_an_mcap_file_lead_to_its_messages(tmp_path):
    """Laid out by hand after https://mcap.dev/spec: readers that seek, such as rosbag2's, go by them."""
    reader = pytest.importorskip("mcap.reader")
    writer = RosbagsWriter(tmp_path / "bag")
    for name in ("/names", "/image"):
        writer.add(Topic(name, TEXT))
    for number in range(60):
        writer.write("/names", number * 10, text(str(number)))
        writer.write("/image", 1000 - number, bytes(50_000))
    writer.close()
    data, found = writer.file.read_bytes(), set()
    with writer.file.open("rb") as file:
        chunks = reader.make_reader(file).get_summary().chunk_indexes
    for chunk in chunks:
        compression = struct.unpack_from("<I", data, chunk.chunk_start_offset + 9 + 28)[0]
        begin = chunk.chunk_start_offset + 9 + 28 + 4 + compression + 8
        lengths = []
        for channel, place in chunk.message_index_offsets.items():
            kind, length, own, size = struct.unpack_from("<BQHI", data, place)
            assert (kind, own, length) == (0x07, channel, 6 + size)
            lengths.append(9 + length)
            for recorded, offset in struct.iter_unpack("<QQ", data[place + 15 : place + 15 + size]):
                kind, _, own, number, *times = struct.unpack_from("<BQHIQQ", data, begin + offset)
                assert (kind, own, times) == (0x05, channel, [recorded, recorded])
                found.add((channel, number, recorded))
        assert chunk.message_index_length == sum(lengths)
    # A message's number, by which players see what is missing.
    assert found == {(1, number, number * 10) for number in range(60)} | {(2, number, 1000 - number) for number in range(60)}
    summary, _, checksum = struct.unpack("<QQI", data[-28:-8])
    assert len(chunks) > 1 and checksum == zlib.crc32(data[summary:-12])


def test_writing_where_something_is_or_what_nobody_added_says_so(tmp_path):
    with pytest.raises(SourceError, match="exists already"):
        RosbagsWriter(tmp_path)
    with pytest.raises(SourceError, match="one of .*'mcap', 'sqlite3'.*got bag, none"):
        RosbagsWriter(tmp_path / "bag", "bag")
    writer = RosbagsWriter(tmp_path / "bag")
    with pytest.raises(SourceError, match="/b was not added"):
        writer.write("/b", 0, b"")
    writer.close()


def test_of_two_writers_that_want_the_same_folder_the_slower_one_leaves_it_alone(tmp_path, monkeypatch):
    """Another process makes the folder after this one has seen that there was none."""
    really = Path.mkdir

    def overtaken(path: Path, *args, **kwargs) -> None:
        really(path, *args, **kwargs)
        (path / "of_another.mcap").write_text("theirs")
        really(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    with pytest.raises(BagExists, match="exists already and is not written over"):
        RosbagsWriter(tmp_path / "bag")
    assert (tmp_path / "bag/of_another.mcap").read_text() == "theirs"


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_writer_that_cannot_begin_its_file_leaves_no_folder(tmp_path, monkeypatch, storage):
    def no_room(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lix_core.bags.mcap.McapStorage.__init__", no_room)
    monkeypatch.setattr("rosbags.rosbag2.storage_sqlite3.Sqlite3Writer.__init__", no_room)
    with pytest.raises(SourceError, match="No space left on device"):
        RosbagsWriter(tmp_path / "bag", storage)
    assert list(tmp_path.iterdir()) == []


def test_what_defines_the_topics_is_repeated_at_a_hundredth_of_the_file_at_most(tmp_path):
    words = b"uint8 is_bigendian"
    assert words.decode() in definition_of(IMAGE)[0]
    writer = RosbagsWriter(tmp_path / "bag")
    writer.add(Topic("/a", IMAGE))
    for number in range(40):  # the second chunk begins with it, the others are too small
        writer.write("/a", number, bytes(100))
        writer.flush()
    assert writer.file.read_bytes().count(words) == 2
    for number in range(4):
        writer.write("/a", number, bytes(1_500_000))
    writer.flush()
    size = len(definition_of(IMAGE)[0])
    assert 2 < writer.file.read_bytes().count(words) <= 2 + 6_000_000 / (100 * size)
    writer.close()


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from lix_core.bags.writer import RosbagsWriter, Topic
from lix_core.errors import SourceError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit, size = int(sys.argv[3]), int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
writer = RosbagsWriter(Path(sys.argv[1]), sys.argv[2])
writer.add(Topic("/a", "std_msgs/msg/String"))
safe = 0
try:
    for number in range(100):
        writer.write("/a", number, b"\\0\\1\\0\\0" + number.to_bytes(4, "little") + b"x" * size)
        if number % 7 == 6:
            writer.flush()
            safe = number + 1
except SourceError as error:
    print(error)
try:
    writer.write("/a", 1000, b"a disk that has room again is no help to this bag")
except SourceError as error:
    print(error)
writer.close()
print(safe)
"""


@pytest.mark.parametrize("storage, limit, size", [("mcap", 400_000, 10_000), ("mcap", 11_000_000, 400_000), ("sqlite3", 400_000, 10_000)])
def test_a_bag_whose_disk_is_full_ends_whole_where_it_was_last_flushed(tmp_path, storage, limit, size):
    """A limit on the size of files in a process of its own: writes fail half-way, as on a full disk. A chunk has a hundred messages, or
    three, so that some of them were whole and are given up."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "bag"), storage, str(limit), str(size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    *complaint, safe = done.stdout.splitlines()
    assert len(complaint) == 2 and f"cannot write bag {tmp_path / 'bag'}: " in complaint[0]
    assert "was cut short by a failure; begin another" in complaint[1]
    assert int(safe) > 20
    found = contents(tmp_path / "bag")
    assert [stamp for _, stamp, _ in found] == list(range(int(safe)))
    assert all(int.from_bytes(raw[4:8], "little") == stamp for _, stamp, raw in found)
    assert repair(tmp_path / "bag").changed == "nothing"


def test_a_bag_whose_folder_was_removed_says_so_at_the_next_flush(tmp_path):
    writer = RosbagsWriter(tmp_path / "bag")
    writer.add(Topic("/a", TEXT))
    writer.write("/a", 1, text("lost"))
    writer.file.unlink()
    with pytest.raises(SourceError, match="it was removed or moved"):
        writer.flush()
    with pytest.raises(SourceError, match="it was removed or moved"):
        writer.close()
    writer.close()
    assert not (tmp_path / "bag/metadata.yaml").exists()


# Killed


WRITE_FOR_EVER = """
import sys, time
from pathlib import Path
from lix_core.bags.recording import Recording, RecordingSettings
from lix_core.bags.writer import Qos, Topic

settings = RecordingSettings(prefix="drive", storage=sys.argv[2], compression=sys.argv[3], floor=0)
recording = Recording(Path(sys.argv[1]), settings)
recording.add(Topic("/names", "std_msgs/msg/String", (Qos(durability="transient_local", depth=1),)))
recording.add(Topic("/image", "sensor_msgs/msg/Image", (Qos("best_effort"),)))
recording.write("/names", time.time_ns(), b"\\0\\1\\0\\0\\5\\0\\0\\0road\\0")
for number in range(100_000):
    recording.write("/image", time.time_ns(), b"\\0\\1\\0\\0" + number.to_bytes(4, "little") * 25_000)
    print(number, flush=True)
    time.sleep(0.01)
"""


@pytest.mark.parametrize("storage, compression", [("mcap", "none"), ("mcap", "zstd"), ("sqlite3", "none"), ("sqlite3", "zstd")])
def test_kill_9_in_mid_recording_loses_less_than_a_second(tmp_path, storage, compression):
    command = [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path), storage, compression]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    written = next(int(line) + 1 for line in child.stdout if int(line) == 120)
    child.send_signal(signal.SIGKILL)
    killed = time.time_ns()
    written += sum(1 for _ in child.stdout)
    child.wait()
    (bag,) = tmp_path.iterdir()
    assert not (bag / "metadata.yaml").exists()
    before = {file.name: file.read_bytes() for file in bag.iterdir()}

    report = repair(bag)
    # Between two transactions of sqlite3, nothing is missing but the metadata.
    assert report.changed == "new" or storage == "sqlite3"
    assert report.bag == (tmp_path / f"{bag.name}_repaired" if report.changed == "new" else bag)
    found = contents(report.bag)
    images = [(stamp, raw) for topic, stamp, raw in found if topic == "/image"]
    # In order, without a gap from the first on, byte for byte, and until less than a second before the end.
    assert [int.from_bytes(raw[4:8], "little") for _, raw in images] == list(range(len(images)))
    assert all(raw[4:] == raw[4:8] * 25_000 for _, raw in images)
    assert killed - images[-1][0] < S and written - len(images) < 100
    assert [raw for topic, _, raw in found if topic == "/names"] == [text("road")]
    assert report.messages == len(found) and report.end == found[-1][1] and str(report.messages) in str(report)
    assert {name: (bag / name).read_bytes() for name in before} == before, "the damaged bag was touched"
    with Reader(report.bag) as reader:
        names = next(c for c in reader.connections if c.topic == "/names")
        assert names.ext.offered_qos_profiles[0].durability.name == "TRANSIENT_LOCAL" and names.digest.startswith("RIHS01_df668c74")
        assert "string data" in names.msgdef.data


# Recording


def recorded(folder: Path) -> dict[str, list[tuple[str, int, bytes]]]:
    return {bag.name: contents(bag) for bag in sorted(folder.iterdir(), key=lambda p: (len(p.name), p.name))}


def recording_in(folder: Path, log: Log | None = None, clock=time.monotonic, **settings) -> Recording:
    defaults = {"floor": 0, "flush": 0.02, "retry": 0.05}
    begun = Recording(folder, RecordingSettings(**{**defaults, **settings}), clock=clock, report=Log() if log is None else log)
    begun.add(Topic("/a", TEXT))
    begun.add(Topic("/names", TEXT, (LATCHED,)))
    return begun


def drained(recording: Recording) -> None:
    wait_until(lambda: recording.statistics.queued == 0, "the queue never became empty")


def test_a_recording_writes_one_bag_with_all_that_came(tmp_path):
    log = Log()
    recording = recording_in(tmp_path, log)
    for number in range(50):
        assert recording.write("/a", number, text(str(number)))
    drained(recording)
    recording.close()
    recording.close()
    ((name, messages),) = recorded(tmp_path).items()
    assert re.fullmatch(r"lix_\d{8}_\d{6}", name)
    assert messages == [("/a", number, text(str(number))) for number in range(50)]
    assert log.said(f"records into {tmp_path / name}", "info") == 1 and log.said(f"ended {tmp_path / name}: 50 messages") == 1
    statistics = recording.statistics
    assert (statistics.state, statistics.messages, statistics.lost, statistics.bags) == ("closed", 50, 0, 1)
    assert statistics.bytes == sum(len(text(str(n))) for n in range(50))
    assert not recording.write("/a", 60, b"late")


def test_whoever_is_told_and_fails_does_not_end_the_recording(tmp_path):
    def deaf(level: str, words: str) -> None:
        raise RuntimeError("does not listen")

    recording = recording_in(tmp_path, log=deaf)
    recording.add(Topic("/text", "std_msgs/msg/String"))
    for stamp in (5 * 10**9, 1, 2):  # begins a bag, and then goes back in time: both are told
        recording.write("/text", stamp, text("words"))
    recording.close()
    assert sum(len(messages) for messages in recorded(tmp_path).values()) == 3


def test_a_recording_without_messages_leaves_no_bag(tmp_path):
    recording = recording_in(tmp_path)
    recording.write("/names", 1, text("road"))
    time.sleep(0.05)
    assert recording.statistics.state == "waiting"
    recording.close()
    assert list(tmp_path.iterdir()) == []


def test_a_recording_of_latched_topics_alone_is_a_bag(tmp_path):
    recording = Recording(tmp_path, RecordingSettings(floor=0))
    recording.add(Topic("/names", TEXT, (LATCHED,)))
    recording.write("/names", 1, text("road"))
    recording.close()
    assert list(recorded(tmp_path).values()) == [[("/names", 1, text("road"))]]


def test_every_split_is_a_whole_bag_that_begins_with_what_was_latched(tmp_path):
    clock = Clock()
    recording = recording_in(tmp_path, clock=clock, split_duration=10.0)
    recording.write("/names", 1, text("old names"))
    recording.write("/a", 2, text("one"))
    recording.write("/names", 3, text("new names"))
    drained(recording)
    clock.now += 10.0
    recording.write("/a", 4, text("two"))
    recording.split()
    recording.write("/a", 5, text("three"))
    recording.close()
    first, second, third = recorded(tmp_path).items()
    assert second[0] == f"{first[0]}_1" and third[0] == f"{first[0]}_2"
    assert first[1] == [("/names", 2, text("old names")), ("/a", 2, text("one")), ("/names", 3, text("new names"))]
    # What was latched before is repeated in its order: the newest is the last, which is what late subscribers get.
    assert second[1] == [("/names", 4, text("old names")), ("/names", 4, text("new names")), ("/a", 4, text("two"))]
    assert third[1][-2:] == [("/names", 5, text("new names")), ("/a", 5, text("three"))]
    with Reader(tmp_path / third[0]) as reader:
        names = next(c for c in reader.connections if c.topic == "/names")
    assert names.ext.offered_qos_profiles[0].durability.name == "TRANSIENT_LOCAL"


def test_of_what_is_latched_a_bag_repeats_what_late_subscribers_may_still_need(tmp_path):
    recording = Recording(tmp_path, RecordingSettings(floor=0))
    depths = {"/again": 1, "/small": 1, "/large": 1, "/deep": 120}
    for name, depth in depths.items():
        recording.add(Topic(name, TEXT, (Qos(durability="transient_local", depth=depth),)))
    recording.add(Topic("/a", TEXT))
    said = {
        "/again": [text("b"), text("c"), text("b")],  # said again: once, and as the newest
        "/small": [text(f"{number}") for number in range(150)],  # of another publisher each, for all that is known
        "/large": [text(f"{number}" * 400_000) for number in range(3)],
        "/deep": [text(f"{number}") for number in range(150)],
    }
    for name, messages in said.items():
        for raw in messages:
            recording.write(name, 1, raw)
    recording.write("/a", 2, text("x"))
    recording.close()
    ((_, messages),) = recorded(tmp_path).items()
    repeated = {name: [raw for topic, _, raw in messages if topic == name] for name in depths}
    assert repeated["/again"] == [text("c"), text("b")]
    assert repeated["/small"] == said["/small"][-100:] and repeated["/deep"] == said["/deep"][-120:]
    assert repeated["/large"] == said["/large"][-2:]


def test_a_bag_names_the_topics_on_which_nothing_came(tmp_path):
    recording = recording_in(tmp_path)
    recording.write("/a", 1, text("x"))
    recording.close()
    (bag,) = tmp_path.iterdir()
    with Reader(bag) as reader:
        assert {c.topic: c.msgcount for c in reader.connections} == {"/a": 1, "/names": 0}


def test_bags_are_split_by_size(tmp_path):
    recording = recording_in(tmp_path, split_size=100_000)
    for number in range(30):
        recording.write("/a", number, text("x" * 20_000))
    recording.close()
    bags = recorded(tmp_path)
    assert [len(messages) for messages in bags.values()] == [5] * 6
    assert [stamp for messages in bags.values() for _, stamp, _ in messages] == list(range(30))


def test_nothing_but_what_is_latched_is_recorded_during_a_pause(tmp_path):
    recording = recording_in(tmp_path)
    recording.write("/a", 1, text("before"))
    recording.pause()
    assert not recording.write("/a", 2, text("meanwhile"))
    assert recording.write("/names", 3, text("road")) and recording.statistics.state == "paused"
    recording.resume()
    recording.write("/a", 4, text("after"))
    recording.close()
    ((_, messages),) = recorded(tmp_path).items()
    assert messages == [("/a", 1, text("before")), ("/names", 3, text("road")), ("/a", 4, text("after"))]
    assert recording.statistics.lost == 0


def test_a_clock_that_is_set_forward_begins_a_new_bag(tmp_path):
    """NTP on a robot that booted without a clock: no bag that plays for half a century; a pause with a clock that goes on is none."""
    log, passed = Log(), 0.0
    recording = recording_in(tmp_path, log, clock=lambda: passed)
    recording.write("/names", 100 * S, text("road"))
    late = 1_700_000_000
    for passed, stamp in ((0.0, 100), (1.0, 101), (5001.0, 5101), (5002.0, late), (5003.0, late + 1), (5003.5, late + 601)):
        recording.write("/a", stamp * S, text(str(stamp)))
        drained(recording)
    recording.close()
    bags = [[(topic, stamp // S) for topic, stamp, _ in messages] for messages in recorded(tmp_path).values()]
    assert sorted(bags, key=lambda bag: bag[0][1]) == [
        [("/names", 100), ("/a", 100), ("/a", 101), ("/a", 5101)],
        [("/names", late), ("/a", late), ("/a", late + 1), ("/a", late + 601)],
    ]
    assert log.said("the clock went forward by 1699994898 s", "warning") == 1 == log.said("the clock went")


def test_a_clock_that_is_set_back_is_accepted_and_reported_once(tmp_path):
    log = Log()
    recording = recording_in(tmp_path, log)
    stamps = [100 * S, 101 * S, 40 * S, 41 * S, 42 * S]
    for stamp in stamps:
        recording.write("/a", stamp, text(str(stamp)))
    recording.close()
    ((_, messages),) = recorded(tmp_path).items()
    assert [stamp for _, stamp, _ in messages] == sorted(stamps) and {raw for *_, raw in messages} == {text(str(s)) for s in stamps}
    assert log.said("the clock went back by 61.0 s", "warning") == 1 == log.said("the clock went back")


def test_what_waited_for_others_may_be_late_by_so_much_and_a_second(tmp_path):
    log = Log()
    recording = recording_in(tmp_path, log, late=0.7)
    for stamp in (100.0, 98.35, 100.1, 98.35):
        recording.write("/a", round(stamp * S), text("x"))
    recording.close()
    assert log.said("the clock went back by 1.8 s", "warning") == 1 == log.said("the clock went back")


class NotingWriter:
    """Notes when it is flushed."""

    def __init__(self, *_) -> None:
        self.size, self.flushes = 0, []

    def add(self, topic: Topic) -> None: ...

    def write(self, topic: str, stamp_ns: int, data: bytes) -> None: ...

    def flush(self) -> None:
        self.flushes.append(time.monotonic())

    def close(self) -> None: ...


def test_what_was_written_is_flushed_in_time_however_few_messages_come(tmp_path):
    writer = NotingWriter()
    recording = Recording(tmp_path, RecordingSettings(floor=0, flush=0.8), lambda *_: writer)
    recording.add(Topic("/a", TEXT))
    began = time.monotonic()
    recording.write("/a", 1, text("early"))
    time.sleep(0.6)
    recording.write("/a", 2, text("late"))
    wait_until(lambda: writer.flushes, "it was never flushed")
    assert writer.flushes[0] - began < 1.2
    recording.close()


class SlowWriter:
    """A disk that answers when it is told to."""

    def __init__(self, gate) -> None:
        self.gate, self.size, self.written = gate, 0, []

    def add(self, topic: Topic) -> None: ...

    def write(self, topic: str, stamp_ns: int, data: bytes) -> None:
        self.gate.wait(10)
        self.written.append(stamp_ns)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def test_callers_never_wait_for_the_disk_and_what_does_not_fit_is_counted(tmp_path):
    import threading

    gate, log, opened = threading.Event(), Log(), []

    def open_writer(folder: Path, storage: str, compression: str) -> SlowWriter:
        opened.append(SlowWriter(gate))
        return opened[-1]

    settings = RecordingSettings(floor=0, queue=10_000, flush=0.02)
    recording = Recording(tmp_path, settings, open_writer, report=log)
    recording.add(Topic("/a", TEXT))
    began = time.monotonic()
    taken = [recording.write("/a", number, b"x" * 1000) for number in range(25)]
    assert time.monotonic() - began < 0.5
    assert taken == [True] * 10 + [False] * 15
    assert (recording.statistics.queued, recording.statistics.lost) == (10_000, 15)
    gate.set()
    recording.close()
    assert opened[0].written == list(range(10))
    assert log.said("15 messages are lost", "warning") == 1 and log.said("/a 15") == 1
    assert (recording.statistics.messages, recording.statistics.lost) == (10, 15)


# What the disk does


def test_the_room_for_a_folder_that_is_not_there_yet_is_that_of_the_disk_it_will_be_on(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    assert abs(free_space(tmp_path / "not" / "there") - free) < 0.1 * free
    (tmp_path / "file").write_text("")
    assert free_space(tmp_path / "file" / "below") == 0, "it cannot be told"


def test_recording_stops_before_the_disk_is_full_and_goes_on_when_there_is_room(tmp_path, monkeypatch):
    free = [10_000_000]
    monkeypatch.setattr("lix_core.bags.recording.free_space", lambda folder: free[0])
    log = Log()
    recording = recording_in(tmp_path, log, floor=5_000_000)
    recording.write("/a", 1, text("one"))
    wait_until(lambda: recording.statistics.messages == 1, "nothing was written")
    free[0] = 4_000_000
    wait_until(lambda: recording.statistics.state == "stopped", "it never stopped")
    assert log.said("4 MB free, and recording needs 5 MB", "error") == 1
    recording.write("/a", 2, text("lost"))
    free[0] = 5_200_000  # not enough to be worth it
    time.sleep(0.1)
    recording.write("/a", 3, text("lost"))
    drained(recording)
    assert recording.statistics.lost == 2 and recording.statistics.state == "stopped"
    assert "5 MB free" in recording.statistics.reason and log.said("free", "error") == 1
    free[0] = 6_000_000
    time.sleep(0.1)
    recording.write("/a", 4, text("two"))
    recording.close()
    assert [[stamp for _, stamp, _ in messages] for messages in recorded(tmp_path).values()] == [[1], [4]]
    assert log.said("records again into") == 1 and log.said("2 messages are lost", "warning") == 1


def test_a_folder_that_is_removed_ends_the_bag_and_the_recording_goes_on_in_a_new_one(tmp_path):
    log, folder = Log(), tmp_path / "drives"
    recording = recording_in(folder, log)
    recording.write("/names", 1, text("road"))
    recording.write("/a", 1, text("one"))
    wait_until(lambda: list(folder.glob("*/*.mcap")), "nothing was written")
    shutil.rmtree(folder)
    wait_until(lambda: recording.statistics.state == "stopped", "nobody noticed")
    assert log.said("it was removed or moved", "error") == 1
    time.sleep(0.1)
    recording.write("/a", 2, text("two"))
    recording.close()
    ((_, messages),) = recorded(folder).items()
    assert messages == [("/names", 2, text("road")), ("/a", 2, text("two"))]


def test_when_the_disk_of_the_folder_is_gone_nothing_is_recorded_onto_the_disk_below_it(tmp_path, monkeypatch):
    log, disk, ismount = Log(), tmp_path / "disk", os.path.ismount
    folder, mounted = disk / "drives", [disk]
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) in mounted or ismount(path))
    recording = recording_in(folder, log)
    recording.write("/a", 1, text("one"))
    wait_until(lambda: list(folder.glob("*/*.mcap")), "nothing was written")
    disk.rename(tmp_path / "pulled")
    mounted.clear()
    disk.mkdir()  # the mount point stays
    wait_until(lambda: recording.statistics.state == "stopped", "nobody noticed")
    for stamp in (2, 3):
        time.sleep(0.1)
        recording.write("/a", stamp, text("lost"))
        drained(recording)
    assert recording.statistics.reason == f"the disk of {folder} is not mounted any more: mount it at {disk} again"
    assert list(disk.iterdir()) == [] and recording.statistics.lost >= 2
    disk.rmdir()
    (tmp_path / "pulled").rename(disk)
    mounted.append(disk)
    time.sleep(0.1)
    recording.write("/a", 4, text("two"))
    recording.close()
    assert contents(max(folder.iterdir(), key=lambda bag: len(bag.name))) == [("/a", 4, text("two"))]
    assert mount_point(folder / "not" / "there") == disk and mount_point(Path("/")) == Path("/")


class FailingWriter(RosbagsWriter):
    """Refuses to write on demand, as a full disk does."""

    full = False

    def write(self, topic: str, stamp_ns: int, data: bytes | memoryview) -> None:
        if FailingWriter.full:
            with self._told():
                raise OSError(28, "No space left on device")
        super().write(topic, stamp_ns, data)


def test_a_disk_that_is_full_ends_the_bag_as_it_was_and_nothing_earlier_is_lost(tmp_path, monkeypatch):
    log = Log()
    monkeypatch.setattr(FailingWriter, "full", False)
    recording = Recording(tmp_path, RecordingSettings(floor=0, flush=0.02, retry=0.05), FailingWriter, report=log)
    recording.add(Topic("/a", TEXT))
    for number in range(20):
        recording.write("/a", number, text(str(number)))
    drained(recording)
    time.sleep(0.1)  # a flush
    FailingWriter.full = True
    recording.write("/a", 20, text("lost"))
    wait_until(lambda: recording.statistics.state == "stopped", "it went on")
    for number in (21, 22):
        time.sleep(0.1)
        recording.write("/a", number, text("lost"))
        drained(recording)
    assert log.said("No space left on device", "error") == 1 + log.said("records again") and recording.statistics.lost == 3
    FailingWriter.full = False
    time.sleep(0.1)
    recording.write("/a", 23, text("again"))
    recording.close()
    bags = list(recorded(tmp_path).values())
    assert [[stamp for _, stamp, _ in messages] for messages in bags] == [list(range(20)), [23]]
    assert recording.statistics.messages == 21 and log.said("3 messages are lost") + log.said("1 messages are lost") >= 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES])
def test_a_disk_that_answers_nothing_but_errors_does_not_end_the_recording(tmp_path, monkeypatch, number):
    """As a stick or a network drive that dies: not even whether a file is there can be asked."""
    log, stat = Log(), Path.stat
    recording = recording_in(tmp_path, log)
    recording.write("/a", 1, text("one"))
    wait_until(lambda: recording.statistics.bag, "nothing was written")
    time.sleep(0.1)  # a flush
    bag = str(recording.statistics.bag)

    def refuse(path: Path, **named):
        if str(path).startswith(bag):
            raise OSError(number, os.strerror(number), str(path))
        return stat(path, **named)

    monkeypatch.setattr(Path, "stat", refuse)
    wait_until(lambda: recording.statistics.state == "stopped", "nobody noticed")
    assert os.strerror(number) in recording.statistics.reason
    recording.write("/a", 2, text("lost"))
    drained(recording)
    monkeypatch.undo()
    time.sleep(0.1)
    recording.write("/a", 3, text("two"))
    wait_until(lambda: recording.statistics.state == "recording", "it never went on")
    after = recording.statistics.bag
    recording.close()
    assert (recording.statistics.messages, recording.statistics.lost) == (2, 1) and contents(after) == [("/a", 3, text("two"))]
    assert log.said(os.strerror(number), "error") >= 1 and log.said("1 messages are lost", "warning") == 1


def test_what_nobody_expects_is_told_and_the_recording_goes_on_in_a_new_bag(tmp_path, monkeypatch):
    log, end, errors = Log(), Recording._end, [RuntimeError("nobody expects it")]

    def fail_once(recording: Recording) -> None:
        if errors:
            raise errors.pop()
        end(recording)

    monkeypatch.setattr(Recording, "_end", fail_once)
    recording = recording_in(tmp_path, log)
    recording.write("/a", 1, text("one"))
    wait_until(lambda: recording.statistics.messages == 1, "nothing was written")
    time.sleep(0.1)  # a flush
    recording.split()
    wait_until(lambda: recording.statistics.state == "stopped", "nobody noticed")
    time.sleep(0.1)
    recording.write("/a", 2, text("two"))
    recording.close()
    assert log.said("RuntimeError: nobody expects it; what was recorded before is kept", "error") == 1
    assert [[stamp for _, stamp, _ in messages] for messages in recorded(tmp_path).values()] == [[1], [2]]
    assert (recording.statistics.messages, recording.statistics.lost) == (2, 0)


def test_after_a_failure_the_disk_is_left_alone_for_a_while(tmp_path):
    clock, opened = Clock(), []

    def refuse(*_) -> RosbagsWriter:
        opened.append(clock.now)
        raise SourceError("no room for a folder")

    recording = Recording(tmp_path, RecordingSettings(floor=0, retry=5.0), refuse, clock=clock)
    recording.add(Topic("/a", TEXT))
    began = clock.now
    for later in (0.0, 1.0, 4.9, 5.0, 9.9):
        clock.now = began + later
        recording.write("/a", 1, text("x"))
        drained(recording)
    assert opened == [began, began + 5.0]
    assert (recording.statistics.state, recording.statistics.lost) == ("stopped", 5)
    recording.close()


def test_what_a_failure_takes_with_it_is_counted_as_lost(tmp_path, monkeypatch):
    log = Log()
    monkeypatch.setattr(FailingWriter, "full", False)
    recording = Recording(tmp_path, RecordingSettings(floor=0, flush=100.0, retry=100.0), FailingWriter, report=log)
    recording.add(Topic("/a", TEXT))
    for number in range(5):
        recording.write("/a", number, text("not flushed"))
    wait_until(lambda: recording.statistics.messages == 5, "nothing was written")
    FailingWriter.full = True
    recording.write("/a", 5, text("lost"))
    recording.close()
    statistics = recording.statistics
    assert (statistics.messages, statistics.bytes, statistics.lost) == (0, 0, 6)
    assert list(tmp_path.iterdir()) == [], "a bag without messages is none"
    assert log.said("6 messages are lost", "warning") == 1


FULL_AT_THE_END = """
import resource, signal, sys, time
from pathlib import Path
from lix_core.bags.recording import Recording, RecordingSettings
from lix_core.bags.writer import Topic

def write(stamps):
    for stamp in stamps:
        recording.write("/a", stamp, b"\\0\\1\\0\\0" + bytes(100_000))
    while recording.statistics.queued:
        time.sleep(0.01)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
now = [0.0]
settings = RecordingSettings(storage=sys.argv[2], floor=0, flush=1.0)
recording = Recording(Path(sys.argv[1]), settings, clock=lambda: now[0], report=lambda level, told: print(level, told))
recording.add(Topic("/a", "std_msgs/msg/String"))
write(range(4))
now[0] = 2.0  # the next message is followed by a flush
write([4])
write(range(5, 8))
file = recording._writer.file
resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 100_000, resource.RLIM_INFINITY))
if sys.argv[3] == "split":
    recording.split()
    time.sleep(0.5)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    write([8])
recording.close()
print(recording.statistics.messages, recording.statistics.bytes, recording.statistics.lost)
"""


@pytest.mark.parametrize("end", ["close", "split"])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_what_the_last_flush_of_a_bag_cannot_write_is_told_and_counted_as_lost(tmp_path, storage, end):
    """A limit on the size of files, in a process of its own, that is reached when the bag is ended."""
    command = [sys.executable, "-c", FULL_AT_THE_END, str(tmp_path), storage, end]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    *told, counted = done.stdout.splitlines()
    first, *others = recorded(tmp_path).items()
    assert [stamp for _, stamp, _ in first[1]] == list(range(5)) and repair(tmp_path / first[0]).changed == "nothing"
    assert [[stamp for _, stamp, _ in messages] for _, messages in others] == ([[8]] if end == "split" else [])
    safe = 6 if end == "split" else 5
    assert counted == f"{safe} {safe * 100_004} 3"
    (error,) = [line for line in told if line.startswith("error")]
    assert error.startswith(f"error cannot write bag {tmp_path / first[0]}: ")
    assert error.endswith("; the bag ends where it was last flushed")
    assert f"info ended {tmp_path / first[0]}: 5 messages" in told
    assert "warning 3 messages are lost, because the disk was too slow or full: /a 3" in told


def test_the_oldest_bags_go_for_the_quota_and_nothing_that_is_not_a_bag_of_this_prefix(tmp_path):
    def bag(name: str, size: int = 40_000, **files: str) -> Path:
        writer = RosbagsWriter(tmp_path / name)
        writer.add(Topic("/a", TEXT))
        writer.write("/a", 1, text("x" * size))
        writer.close()
        for file, words in files.items():
            (tmp_path / name / file).write_text(words)
        return tmp_path / name

    oldest, older, noted = bag("lix_20200101_000000"), bag("lix_20200101_000000_2"), bag("lix_20200101_000000_1", notes="keep this drive")
    others = [bag("lix_20200101_000000_repaired"), bag("lixer_20200101_000000"), bag("lix_2020_000000"), bag("farm_20200101_000000")]
    (tmp_path / "lix_20190101_000000").symlink_to(others[0], target_is_directory=True)
    unfinished = bag("lix_20180101_000000")
    (unfinished / "metadata.yaml").unlink()

    log = Log()
    recording = recording_in(tmp_path, log, quota=160_000, delete_oldest=True)
    for number in range(8):
        recording.write("/a", number, text("x" * 20_000))
        drained(recording)
        time.sleep(0.03)
    recording.close()
    assert not oldest.exists() and not older.exists()
    assert all(path.exists() for path in [noted, unfinished, *others]) and (noted / "notes").read_text() == "keep this drive"
    assert (tmp_path / "lix_20190101_000000").is_symlink() and len(contents(others[0])) == 1
    assert log.said(f"deleted {oldest}, the oldest", "info") == 1
    assert sum(b.size for b in own_bags(tmp_path, "lix")) <= 160_000 + 45_000
    newest = own_bags(tmp_path, "lix")[-1].path
    assert contents(newest)[-1][1] == 7


def test_a_bag_that_cannot_be_looked_at_hides_none_of_the_others(tmp_path, monkeypatch):
    names = [f"lix_20200101_00000{number}" for number in range(4)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.mcap").write_bytes(bytes(1000))
    iterdir = Path.iterdir

    def refusing(path: Path):
        if path.name == names[1]:
            raise OSError(errno.EIO, "Input/output error")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    assert {(bag.path.name, bag.size) for bag in own_bags(tmp_path, "lix")} == {(name, 1000) for name in names if name != names[1]}
    assert own_bags(tmp_path / "gone", "lix") == []


def test_of_several_loggers_the_oldest_bags_go_whoever_wrote_them(tmp_path):
    hours = time.time() // 3600
    for number in range(12):  # two loggers that began five seconds apart and then ended a bag every hour
        stem = "lix_20240101_080000" if number < 6 else "lix_20240101_080005"
        writer = RosbagsWriter(tmp_path / (f"{stem}_{number % 6}" if number % 6 else stem))
        writer.add(Topic("/a", TEXT))
        writer.write("/a", 1, text("x" * 40_000))
        writer.close()
        for path in writer.folder.iterdir():
            os.utime(path, (0, 3600 * (hours - 12 + number % 6)))
    (tmp_path / "lix_20240101_080000" / "metadata.yaml").touch()  # as `lix bag repair` may have written it later
    names = [bag.path.name for bag in own_bags(tmp_path, "lix")]
    assert names[:3] == ["lix_20240101_080000", "lix_20240101_080005", "lix_20240101_080000_1"]
    assert names[-3:] == ["lix_20240101_080005_4", "lix_20240101_080000_5", "lix_20240101_080005_5"]

    quota = sum(bag.size for bag in own_bags(tmp_path, "lix")[4:]) + 20_000  # room for what the new one has, should it be counted already
    recording = recording_in(tmp_path, quota=quota, delete_oldest=True)
    recording.write("/a", 2, text("x"))
    recording.close()
    assert [bag.path.name for bag in own_bags(tmp_path, "lix")][:-1] == names[4:]


def test_a_recording_whose_name_is_taken_meanwhile_takes_the_next_and_leaves_the_other_bag_alone(tmp_path):
    others: list[RosbagsWriter] = []

    def overtaken(folder: Path, storage: str, compression: str) -> RosbagsWriter:
        if not others:  # another process was faster, between the choice of the name and this
            others.append(RosbagsWriter(folder))
            others[0].add(Topic("/theirs", TEXT))
            others[0].write("/theirs", 1, text("theirs"))
            others[0].flush()
        return RosbagsWriter(folder, storage, compression)

    log = Log()
    recording = Recording(tmp_path, RecordingSettings(floor=0), overtaken, report=log, wall_clock=lambda: 0.0)
    recording.add(Topic("/ours", TEXT))
    for number in range(3):
        recording.write("/ours", number, text("ours"))
    recording.close()
    others[0].close()
    (theirs, found), (ours, rest) = recorded(tmp_path).items()
    assert ours == f"{theirs}_1" and found == [("/theirs", 1, text("theirs"))]
    assert rest == [("/ours", number, text("ours")) for number in range(3)]
    assert recording.statistics.lost == 0 and not [entry for entry in log if entry[0] != "info"]


WRITE_AND_REST = """
import sys, time
from pathlib import Path
from lix_core.bags.writer import RosbagsWriter, Topic

writer = RosbagsWriter(Path(sys.argv[1]), sys.argv[2])
writer.add(Topic("/a", "std_msgs/msg/String"))
writer.write("/a", 1, b"\\0\\1\\0\\0" + b"x" * 50_000)
writer.flush()
print("written", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bag_that_another_process_writes_is_not_deleted_however_long_it_rests(tmp_path, storage):
    """Nor if a clock was set: all that is known of the last message is the time that the disk has of it."""
    bag = tmp_path / "lix_20200101_000000"
    child = subprocess.Popen([sys.executable, "-c", WRITE_AND_REST, str(bag), storage], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "written\n"
    for path in bag.iterdir():
        os.utime(path, (0, 0))
    assert [found.deletable for found in own_bags(tmp_path, "lix")] == [False]
    with pytest.raises(SourceError, match="another process is writing it"):
        delete_bag(bag)
    child.kill()
    child.wait()
    assert [found.deletable for found in own_bags(tmp_path, "lix")] == [True]

    recording = recording_in(tmp_path, quota=40_000, delete_oldest=True)
    recording.write("/a", 1, text("x" * 20_000))
    recording.close()
    assert not bag.exists() and len(own_bags(tmp_path, "lix")) == 1


def test_without_the_option_a_full_quota_stops_the_recording_and_deletes_nothing(tmp_path):
    log = Log()
    recording = recording_in(tmp_path, log, quota=50_000)
    for number in range(6):
        recording.write("/a", number, text("x" * 20_000))
        drained(recording)
        time.sleep(0.03)
    assert recording.statistics.state == "stopped" and "more than the quota of 0 MB" in recording.statistics.reason
    recording.close()
    ((_, messages),) = recorded(tmp_path).items()
    assert [stamp for _, stamp, _ in messages] == [0, 1, 2] and recording.statistics.lost == 3
    assert log.said("quota", "error") == 1


@pytest.mark.parametrize(
    "settings, complaint",
    [
        ({"prefix": "../lix"}, "cannot begin the name"),
        ({"storage": "rosbag1"}, "storage is one of"),
        ({"split_size": -1}, "split_size"),
        ({"queue": 0}, "must be positive"),
        ({"delete_oldest": True}, "set a quota"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, complaint):
    with pytest.raises(DataError, match=complaint):
        RecordingSettings(**settings)


def test_a_topic_cannot_change_its_type_nor_be_written_before_it_was_added(tmp_path):
    recording = recording_in(tmp_path)
    with pytest.raises(DataError, match="recorded as std_msgs/msg/String"):
        recording.add(Topic("/a", IMAGE))
    with pytest.raises(DataError, match="/b was not added"):
        recording.write("/b", 0, b"")
    recording.close()


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot write to output folder"):
        Recording(tmp_path / "file", RecordingSettings())
