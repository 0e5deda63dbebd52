"""Damaged bags made whole, without touching what was recorded."""

from __future__ import annotations

import sqlite3
import struct
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, Writer

from bags import MS, STORAGES, STORE, contents, text_message, write_bag
from lix_core.bags.reader import Bag, whole_of
from lix_core.bags.repair import repair
from lix_core.bags.writer import NO_HASH, Qos, RosbagsWriter, Topic
from lix_core.errors import SourceError

LATCHED = Qos(durability="transient_local", depth=1)
TEXT = "std_msgs/msg/String"


def raw(number: int, size: int = 300) -> bytes:
    return b"\0\1\0\0" + number.to_bytes(4, "little") + bytes([number % 251]) * size


def killed_bag(folder: Path, count: int = 40, storage: str = "mcap", compression: str = "none", is_closed: bool = False) -> Path:
    """A bag as kill -9 leaves it: flushed every ten messages, without summary and metadata.yaml. Stamps are the numbers of messages."""
    writer = RosbagsWriter(folder, storage, compression)
    writer.add(Topic("/names", TEXT, (LATCHED,)))
    writer.add(Topic("/a", "sensor_msgs/msg/Image", (Qos("best_effort"),)))
    for number in range(count):
        writer.write("/names" if number == 0 else "/a", number, raw(number))
        if number % 10 == 9:
            writer.flush()
    if is_closed:
        writer.close()
    return folder


def chunks_of(data: bytes) -> list[tuple[int, int]]:
    """Where the chunks of an MCAP file begin and end, read record by record."""
    found, at = [], 8
    while at < len(data) - 8:
        kind, length = struct.unpack_from("<BQ", data, at)
        if kind == 6:
            found.append((at, at + 9 + length))
        at += 9 + length
    return found


def salvaged(file: Path) -> tuple[list[int], list[str]]:
    """The stamps of the messages that are found, which are as they were, and the faults."""
    with Bag(file, salvaged=True) as bag:
        messages = list(bag.messages())
        assert len(messages) == bag.count
        assert all(data == raw(stamp) and topic == ("/names" if stamp == 0 else "/a") for topic, _, stamp, data in messages)
        assert {kind for _, kind, _, _ in messages} <= {TEXT, "sensor_msgs/msg/Image"}
        return [stamp for _, _, stamp, _ in messages], bag.faults


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("is_closed", [False, True])
def test_damage_in_the_first_chunk_costs_that_chunk_alone(tmp_path, compression, is_closed):
    """All topics are defined in it: what comes after has to say again what it is."""
    bag = killed_bag(tmp_path / "bag", compression=compression, is_closed=is_closed)
    (file,) = bag.glob("*.mcap")
    data = bytearray(file.read_bytes())
    begin, end = chunks_of(data)[0]
    for at in range(begin + 60, begin + 84):
        data[at] ^= 0xFF
    file.write_bytes(data)
    stamps, faults = salvaged(bag)
    assert stamps == list(range(10, 40))
    assert sum("is damaged and left out" in fault for fault in faults) == 1
    report = repair(bag)
    assert (report.changed, report.messages, report.dropped) == ("new", 30, end - begin - 9)
    with Reader(report.bag) as reader:
        (image,) = reader.connections
        assert "uint8[] data" in image.msgdef.data and image.ext.offered_qos_profiles[0].reliability.name == "BEST_EFFORT"
    assert contents(report.bag) == [("/a", number, raw(number)) for number in range(10, 40)]


def test_a_single_wrong_byte_of_an_image_is_noticed(tmp_path):
    bag = killed_bag(tmp_path / "bag", is_closed=True)
    (file,) = bag.glob("*.mcap")
    data = bytearray(file.read_bytes())
    data[data.index(raw(25)) + 100] ^= 1
    file.write_bytes(data)
    assert whole_of(bag, lambda b: [stamp for _, _, stamp, _ in b.messages()]) == [*range(20), *range(30, 40)]
    assert any("checksum" in fault for fault in salvaged(bag)[1])


@pytest.fixture(scope="module")
def closed(tmp_path_factory) -> bytes:
    return next(killed_bag(tmp_path_factory.mktemp("closed") / "bag", is_closed=True).glob("*.mcap")).read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(place=0.9259600989175558, flips=[1])  # makes a channel of the summary look like a message
@example(place=0.0, flips=[3])  # makes the header look like the footer
@given(place=st.floats(0, 1), flips=st.lists(st.integers(1, 255), min_size=1, max_size=24))
def test_wherever_damage_is_the_chunks_beside_it_are_recovered_and_it_is_told(closed, tmp_path_factory, place, flips):
    data, chunks = bytearray(closed), chunks_of(closed)
    at = 8 + int(place * (len(data) - 8 - len(flips)))  # behind what says that it is an MCAP file
    for number, flip in enumerate(flips):
        data[at + number] ^= flip
    file = tmp_path_factory.mktemp("flipped") / "bag.mcap"
    file.write_bytes(data)
    stamps, faults = salvaged(file)
    hit = {number for number, (begin, end) in enumerate(chunks) if at < end and at + len(flips) > begin}
    assert set(stamps) >= {stamp for stamp in range(40) if stamp // 10 not in hit}
    assert stamps == sorted(set(stamps)) and (len(stamps) == 40 or faults)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> bytes:
    return next(killed_bag(tmp_path_factory.mktemp("killed") / "bag").glob("*.mcap")).read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 17_200))
def test_whatever_is_cut_off_all_before_it_is_recovered(killed, tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cut")
    file = folder / "bag.mcap"
    file.write_bytes(killed[: len(killed) - cut])
    # Of each message, the file has the head and the 300 equal bytes that end it; those that are there in full are to be recovered.
    expected = [number for number in range(40) if 0 <= killed.find(raw(number)) <= len(killed) - cut - len(raw(0))]
    if not expected:
        with pytest.raises(SourceError, match="nothing can be recovered"):
            repair(file)
        assert [path.name for path in folder.iterdir()] == ["bag.mcap"]
        return
    report = repair(file)
    found = contents(report.bag)
    assert found == [("/names" if number == 0 else "/a", number, raw(number)) for number in expected]
    assert (report.messages, report.start, report.end, report.changed) == (len(expected), 0, expected[-1], "new")
    assert 0 <= report.dropped <= len(killed) and report.faults
    assert file.read_bytes() == killed[: len(killed) - cut]


def test_what_is_dropped_is_counted(killed, tmp_path):
    (tmp_path / "bag.mcap").write_bytes(killed + b"\x05\xff\0\0\0\0\0\0\0half a message")
    report = repair(tmp_path / "bag.mcap", tmp_path / "whole")
    assert report.bag == tmp_path / "whole" and report.dropped == 9 + len("half a message")
    assert str(report).endswith("40 messages, until 0.0 s after the first; 23 bytes dropped")
    assert any("23 bytes from byte" in fault for fault in report.faults)


@pytest.mark.parametrize("storage, compression", [("mcap", "none"), ("mcap", "zstd"), ("sqlite3", "none"), ("sqlite3", "zstd")])
def test_where_only_the_metadata_is_missing_only_that_is_added(tmp_path, storage, compression):
    bag = tmp_path / "bag"
    writer = RosbagsWriter(bag, storage, compression)
    writer.add(Topic("/names", TEXT, (LATCHED,)))
    writer.add(Topic("/silent", TEXT))
    for number in range(5):
        writer.write("/names", 7 + number, raw(number))
    writer.close()
    was, expected = yaml.safe_load((bag / "metadata.yaml").read_text()), contents(bag)
    (bag / "metadata.yaml").unlink()
    before = writer.file.read_bytes()

    report = repair(bag)
    assert (report.changed, report.bag, report.messages, report.dropped, report.faults) == ("metadata", bag, 5, 0, ())
    assert yaml.safe_load((bag / "metadata.yaml").read_text()) == was
    assert writer.file.read_bytes() == before and contents(bag) == expected
    assert repair(bag).changed == "nothing"


def test_metadata_that_a_power_cut_left_empty_is_no_metadata(tmp_path):
    bag = write_bag(tmp_path / "bag", [("/a", n * MS, text_message(str(n))) for n in range(4)])
    (bag / "metadata.yaml").write_bytes(b"")
    report = repair(bag)
    assert (report.changed, report.messages, report.dropped) == ("new", 4, 0)
    assert len(contents(report.bag)) == 4 and (bag / "metadata.yaml").read_bytes() == b""


def test_a_split_bag_of_ros2_bag_record_gets_metadata_of_all_its_files(tmp_path):
    bag = tmp_path / "drive"
    for part in range(3):
        split = write_bag(tmp_path / f"part{part}", [("/a", (part * 10 + n) * MS, text_message(str(n))) for n in range(part + 1)])
        bag.mkdir(exist_ok=True)
        (split / f"part{part}.mcap").rename(bag / f"drive_{part}.mcap")
    report = repair(bag)
    assert (report.changed, report.messages, report.end) == ("metadata", 6, 22 * MS)
    assert [stamp // MS for _, stamp, _ in contents(bag)] == [0, 10, 11, 20, 21, 22]
    information = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert [file["message_count"] for file in information["files"]] == [1, 2, 3]

    # And where the last one was being written, all is copied.
    (bag / "metadata.yaml").unlink()
    last = bag / "drive_2.mcap"
    last.write_bytes(last.read_bytes()[:-30])
    report = repair(bag)
    assert (report.changed, report.messages) == ("new", 6) and len(contents(report.bag)) == 6
    assert report.dropped == 37 - 30, "of a footer and the closing magic"


@pytest.mark.parametrize("storage, compression", [("mcap", "zstd"), ("sqlite3", "zstd")])
def test_a_repaired_bag_keeps_storage_compression_qos_and_types(tmp_path, storage, compression):
    bag = killed_bag(tmp_path / "bag", storage=storage, compression=compression)
    report = repair(bag, tmp_path / "whole")
    target = report.bag if report.changed == "new" else bag
    with Reader(target) as reader:
        names, image = sorted(reader.connections, key=lambda c: c.topic, reverse=True)
        assert names.ext.offered_qos_profiles[0].durability.name == "TRANSIENT_LOCAL"
        assert image.ext.offered_qos_profiles[0].reliability.name == "BEST_EFFORT"
        assert names.digest.startswith("RIHS01_df668c74") and "uint8[] data" in image.msgdef.data
    assert contents(target) == [("/names" if n == 0 else "/a", n, raw(n)) for n in range(40)]
    data = b"".join(file.read_bytes() for file in target.iterdir())
    assert raw(7)[4:] not in data, "it is not compressed"
    assert report.changed == "new" and {file.suffix for file in target.iterdir()} == {
        ".yaml",
        {"mcap": ".mcap", "sqlite3": ".db3"}[storage],
    }


@pytest.mark.parametrize("has_metadata", [True, False])
def test_a_message_that_cannot_be_decompressed_is_noticed_and_left_out_of_the_copy(tmp_path, has_metadata):
    bag = killed_bag(tmp_path / "bag", storage="sqlite3", compression="zstd", is_closed=has_metadata)
    with sqlite3.connect(bag / "bag.db3") as database:
        ((data,),) = database.execute("SELECT data FROM messages WHERE timestamp = 7").fetchall()
        database.execute("UPDATE messages SET data = ? WHERE timestamp = 7", (data[:4] + bytes(len(data) - 4),))
    database.close()
    report = repair(bag)
    assert (report.bag, report.changed, report.messages) == (tmp_path / "bag_repaired", "new", 39)
    assert report.faults == ("1 messages of bag.db3 cannot be decompressed and are left out",)
    assert contents(report.bag) == [("/names" if n == 0 else "/a", n, raw(n)) for n in range(40) if n != 7]
    assert whole_of(bag, lambda opened: [stamp for _, _, stamp, _ in opened.messages()]) == [n for n in range(40) if n != 7]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_metadata_that_is_added_says_that_messages_are_compressed_one_by_one(tmp_path, storage):
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=STORAGES[storage])
    writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with writer:
        topic = writer.add_connection("/a", TEXT, typestore=STORE)
        for number in range(5):
            writer.write(topic, number, raw(number))
    (tmp_path / "bag" / "metadata.yaml").unlink()
    report = repair(tmp_path / "bag")
    assert (report.changed, report.messages) == ("metadata", 5)
    assert contents(report.bag) == [("/a", number, raw(number)) for number in range(5)]


class FullAtTheEnd(RosbagsWriter):
    """Can flush nothing, as on a disk that became full meanwhile."""

    def flush(self) -> None:
        with self._told():
            if self._connections:
                raise OSError(28, "No space left on device")
        super().flush()


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_copy_whose_last_messages_do_not_fit_on_the_disk_is_no_success_and_nothing_is_left_of_it(tmp_path, monkeypatch, storage):
    bag = killed_bag(tmp_path / "bag", storage=storage, compression="zstd")
    if storage == "sqlite3":  # that of mcap lacks its summary; this one is to need a copy too
        with sqlite3.connect(bag / "bag.db3") as database:
            database.execute("UPDATE messages SET data = CAST(substr(data, 1, 4) || x'00' AS BLOB) WHERE timestamp = 7")
        database.close()
    monkeypatch.setattr("lix_core.bags.repair.RosbagsWriter", FullAtTheEnd)
    with pytest.raises(SourceError, match=f"cannot write bag {tmp_path / 'bag_repaired'}: No space left on device$"):
        repair(bag)
    assert list(tmp_path.iterdir()) == [bag]
    monkeypatch.undo()
    assert repair(bag).messages == (40 if storage == "mcap" else 39)


def test_a_transaction_that_was_cut_off_is_taken_back_in_the_copy(tmp_path):
    """sqlite3 has changed pages of the file already, and tells in its journal how they were."""
    bag, left = killed_bag(tmp_path / "living", storage="sqlite3"), tmp_path / "left"
    database = sqlite3.connect(bag / "living.db3")
    database.execute("PRAGMA cache_size = 1")
    database.execute("DELETE FROM messages WHERE id != 7")
    left.mkdir()
    for file in bag.iterdir():
        (left / file.name).write_bytes(file.read_bytes())
    database.close()
    before = {file: file.read_bytes() for file in left.iterdir()}
    assert len(before) == 2
    report = repair(left)
    assert report.changed == "new" and [stamp for _, stamp, _ in contents(report.bag)] == list(range(40))
    assert {file: file.read_bytes() for file in left.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["left", "left_repaired", "living"], "what was needed on the way is gone"
    assert contents(repair(left, tmp_path / "other" / "disk" / "whole").bag) == contents(report.bag)
    assert [path.name for path in (tmp_path / "other" / "disk").iterdir()] == ["whole"], "nothing is written beside the bag"


def test_messages_of_a_topics_second_type_are_left_out_of_the_copy_and_told(tmp_path):
    with Writer(tmp_path / "two", version=9, storage_plugin=STORAGES["mcap"]) as writer:
        for number, kind in enumerate((TEXT, "sensor_msgs/msg/Image", TEXT)):
            connection = next((c for c in writer.connections if c.msgtype == kind), None)
            writer.write(connection or writer.add_connection("/a", kind, typestore=STORE), number, raw(number))
    (tmp_path / "two" / "metadata.yaml").unlink()
    (file,) = (tmp_path / "two").iterdir()
    file.write_bytes(file.read_bytes()[:-30])
    report = repair(tmp_path / "two")
    assert contents(report.bag) == [("/a", 0, raw(0)), ("/a", 2, raw(2))] and report.messages == 2
    assert report.faults[-1] == "1 messages of /a are of another type (sensor_msgs/msg/Image) than its first and left out"


def test_a_definition_that_only_the_bag_knows_is_kept(tmp_path):
    writer = RosbagsWriter(tmp_path / "bag")
    definition = "std_msgs/Header header\nfloat32 moisture\n\n" + "=" * 80 + "\nMSG: std_msgs/Header\nbuiltin_interfaces/Time stamp\n"
    definition += "string frame_id\n\n" + "=" * 80 + "\nMSG: builtin_interfaces/Time\nint32 sec\nuint32 nanosec\n"
    writer.add(Topic("/soil", "farm_msgs/msg/Soil"), (definition, NO_HASH))
    writer.add(Topic("/odd", "farm_msgs/msg/Odd"), ("this is no definition", NO_HASH))
    writer.write("/soil", 1, raw(1))
    writer.write("/odd", 2, raw(2))
    writer.flush()
    with Reader(repair(tmp_path / "bag").bag) as reader:
        soil, odd = sorted(reader.connections, key=lambda c: c.topic, reverse=True)
        assert soil.msgdef.data == definition and soil.digest != NO_HASH
        assert odd.msgdef.data == "this is no definition" and odd.digest == NO_HASH


def test_a_bag_of_an_older_ros_without_definitions_is_repaired(tmp_path):
    """The tables of Foxy's and Humble's sqlite3 bags; definitions and hashes come from the names of the types."""
    bag = write_bag(tmp_path / "bag", [("/a", n * MS, text_message(str(n))) for n in range(4)], "sqlite3")
    with sqlite3.connect(bag / "bag.db3") as database:
        for table in ("message_definitions", "metadata", "schema"):
            database.execute(f"DROP TABLE {table}")
        database.execute("ALTER TABLE topics DROP COLUMN type_description_hash")
    database.close()
    (bag / "metadata.yaml").unlink()
    report = repair(bag)
    assert report.messages == 4 and len(contents(report.bag)) == 4
    with Reader(report.bag) as reader:
        assert reader.connections[0].digest.startswith("RIHS01_df668c74")


def test_what_cannot_be_repaired_says_why(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="no such bag"):
        repair(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="no .mcap or .db3 file"):
        repair(tmp_path)
    for name in ("empty.mcap", "empty.db3"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(SourceError, match="nothing can be recovered"):
            repair(tmp_path / name)
    (tmp_path / "both").mkdir()
    for name in ("a.mcap", "a.db3"):
        (tmp_path / "both" / name).write_bytes(b"")
    with pytest.raises(SourceError, match="both .mcap and .db3"):
        repair(tmp_path / "both")
    bag = killed_bag(tmp_path / "bag")
    with pytest.raises(SourceError, match="exists already"):
        repair(bag, tmp_path / "both")
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["a.db3", "a.mcap"]
    monkeypatch.setattr("lix_core.bags.repair.free_space", lambda folder: 1000)
    with pytest.raises(SourceError, match="name a folder on another disk"):
        repair(bag)
    assert not (tmp_path / "bag_repaired").exists()


def test_a_damaged_name_of_a_topic_costs_no_other_one_and_rows_of_none_are_told(tmp_path):
    bag = killed_bag(tmp_path / "bag", storage="sqlite3", is_closed=True)
    with sqlite3.connect(bag / "bag.db3") as database:
        database.execute("UPDATE topics SET name = CAST(x'2f6eff' AS TEXT) WHERE name = '/names'")
        database.execute("UPDATE messages SET topic_id = 77 WHERE id = 5")
        database.execute("UPDATE messages SET timestamp = 'noon' WHERE id = 6")
    report = repair(bag)
    assert (report.changed, report.messages) == ("new", 38)
    assert report.faults == ("2 messages of bag.db3 are of no topic, or damaged, and are left out",)
