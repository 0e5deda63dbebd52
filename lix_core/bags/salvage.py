"""What is whole of a damaged bag: its files are scanned from their start, without index, summary or metadata.yaml.

MCAP (https://mcap.dev/spec) is a sequence of records of known length; a chunk whose checksum fails is passed over, and a file that ends
in mid-record ends there. Of sqlite3 the rows are read one after another, and those on damaged pages are leapt over.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from lix_core.errors import first_line

if TYPE_CHECKING:
    from lix_core.bags.reader import TopicInfo

MAGIC = b"\x89MCAP0\r\n"
SCHEMA, CHANNEL, MESSAGE, CHUNK, DATA_END, FOOTER, LAST_OPCODE = 0x03, 0x04, 0x05, 0x06, 0x0F, 0x02, 0x0F
HEAD = struct.Struct("<BQ")
"""Of every record: its kind and its length [bytes]."""
MESSAGE_HEAD = struct.Struct("<HIQQ")
"""Of a message: channel, sequence number, when it was recorded, when it was sent [ns]."""
SUFFIXES = (".mcap", ".db3")
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""Begins what is compressed in zstd. Messages themselves begin with a zero byte."""


def files_of(folder: Path) -> list[Path]:
    """The data files in a bag's folder, in the order of their names."""
    from lix_core.pixels import natural_key

    return sorted((p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file()), key=lambda p: natural_key(p.name))


class Part(Protocol):
    """One file. counts: (topic, type) -> messages. start, end: of its messages [ns]. faults: in words."""

    counts: Counter[tuple[str, str]]
    start: int
    end: int
    faults: list[str]

    def messages(self, topics: Collection[str], start: int, stop: int) -> Iterator[tuple[str, str, int, bytes]]: ...


class Salvage:
    """The whole messages of a bag's files, as lix_core.bags.reader.Storage. Within a chunk or a table, they come as they were written."""

    is_ros2 = True

    def __init__(self, path: Path):
        from lix_core.bags.reader import TopicInfo

        files = files_of(path) if path.is_dir() else [path] * (path.suffix in SUFFIXES)
        self._parts: list[Part] = [McapPart(file) if file.suffix == ".mcap" else SqlitePart(file) for file in files]
        self.faults = [fault for part in self._parts for fault in part.faults]
        if path.is_dir() and not (path / "metadata.yaml").exists():
            self.faults.insert(0, f"{path / 'metadata.yaml'} is missing: the recorder was killed; `lix bag repair` writes it")
        total: Counter[tuple[str, str]] = Counter()
        for part in self._parts:
            total.update(part.counts)
        self.topics: list[TopicInfo] = [TopicInfo(*key, count) for key, count in total.items()]
        filled = [part for part in self._parts if part.counts]
        self.start, self.end = min((p.start for p in filled), default=0), max((p.end for p in filled), default=0)

    def messages(self, topics: Collection[str], start: int | None, stop: int | None) -> Iterator[tuple[str, str, int, bytes]]:
        for part in self._parts:
            for topic, kind, recorded, raw in part.messages(topics, start or 0, 2**63 - 1 if stop is None else stop):
                yield topic, kind, recorded, decompressed(raw) if raw[:4] == ZSTD_MAGIC else raw

    def close(self) -> None:
        """Files are open only while they are read."""


@dataclass(frozen=True)
class Run:
    """A stretch of an MCAP file that holds whole messages: the records of a chunk, or a loose one.

    offset, length: in the file; size: uncompressed [bytes]. compression: "" for none. start, end: of its messages [ns].
    """

    offset: int
    length: int
    compression: str
    size: int
    start: int
    end: int


class McapPart:
    """An MCAP file, up to its damage."""

    def __init__(self, path: Path):
        self._path = path
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self._schemas: dict[int, str] = {}
        self._channels: dict[int, tuple[str, str]] = {}
        self._runs: list[Run] = []
        self.start, self.end = 2**63 - 1, 0
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                self.faults.append(f"{path.name} does not begin as an MCAP file does")
                return
            self._scan(file, path.stat().st_size)

    def _scan(self, file: BinaryIO, size: int) -> None:
        while True:
            at = file.tell()
            head = file.read(HEAD.size)
            kind, length = HEAD.unpack(head) if len(head) == HEAD.size else (0, 0)
            if kind in (DATA_END, FOOTER):
                return
            if not 0 < kind <= LAST_OPCODE:
                left = f"the last {size - at} bytes are left out" if size > at else "its end is missing"
                self.faults.append(f"{self._path.name} has no record at byte {at}: {left}")
                return
            cut = at + HEAD.size + length > size
            self._note(file, kind, at + HEAD.size, min(length, size - at - HEAD.size))
            if cut:
                self.faults.append(f"{self._path.name} ends in the middle of a record: {size - at} bytes from byte {at} on are not whole")
                return
            file.seek(at + HEAD.size + length)

    def _note(self, file: BinaryIO, kind: int, offset: int, length: int) -> None:
        """Remember what a record of the file says."""
        if kind == CHUNK:
            try:
                run, checksum = read_chunk_head(file, offset)
            except (struct.error, UnicodeDecodeError):
                return
            self._note_run(file, run, checksum, offset)
        elif kind == MESSAGE:
            self._note_run(file, Run(offset - HEAD.size, length + HEAD.size, "", length + HEAD.size, 0, 0), 0, offset)
        elif kind in (SCHEMA, CHANNEL):
            file.seek(offset)
            self._define(kind, file.read(length))

    def _note_run(self, file: BinaryIO, run: Run, checksum: int, at: int) -> None:
        try:
            data = read_run(file, run)
            if checksum and len(data) == run.size and zlib.crc32(data) != checksum:
                raise ValueError("its checksum is wrong")
            found = [(channel, stamp) for channel, stamp, _ in self._records(data)]
        except Exception as error:  # of whatever library decompresses
            self.faults.append(f"the chunk at byte {at} of {self._path.name} is damaged and left out ({first_line(error)})")
            return
        known = [(channel, stamp) for channel, stamp in found if channel in self._channels]
        if known:
            stamps = [stamp for _, stamp in known]
            self.counts.update(self._channels[channel] for channel, _ in known)
            self._runs.append(replace(run, start=min(stamps), end=max(stamps)))
            self.start, self.end = min(self.start, *stamps), max(self.end, *stamps)

    def _records(self, data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """(channel, recorded [ns], raw) of whole messages; what defines channels is taken note of."""
        at = 0
        while at + HEAD.size <= len(data):
            kind, length = HEAD.unpack_from(data, at)
            at += HEAD.size
            if at + length > len(data):
                return
            if kind == MESSAGE and length >= MESSAGE_HEAD.size:
                channel, _, recorded, _ = MESSAGE_HEAD.unpack_from(data, at)
                yield channel, recorded, data[at + MESSAGE_HEAD.size : at + length]
            elif kind in (SCHEMA, CHANNEL):
                self._define(kind, bytes(data[at : at + length]))
            at += length

    def _define(self, kind: int, record: bytes) -> None:
        """Take note of a schema (id, name) or a channel (id, schema, topic)."""
        try:
            if kind == SCHEMA:
                self._schemas[struct.unpack_from("<H", record)[0]] = read_text(record, 2)
            else:
                number, schema = struct.unpack_from("<HH", record)
                self._channels[number] = read_text(record, 4), self._schemas.get(schema, "")
        except (struct.error, UnicodeDecodeError):
            pass  # its messages are then of an unknown channel

    def messages(self, topics: Collection[str], start: int, stop: int) -> Iterator[tuple[str, str, int, bytes]]:
        with self._path.open("rb") as file:
            for run in self._runs:
                if run.start < stop and run.end >= start:
                    for channel, recorded, raw in self._records(read_run(file, run)):
                        topic, kind = self._channels.get(channel, ("", ""))
                        if topic and (not topics or topic in topics) and start <= recorded < stop:
                            yield topic, kind, recorded, bytes(raw)


def read_chunk_head(file: BinaryIO, offset: int) -> tuple[Run, int]:
    """Where the records of the chunk at `offset` are, when is not known yet, and their checksum; 0 is none."""
    file.seek(offset)
    size, checksum, name_length = struct.unpack("<16xQII", file.read(32))
    compression = file.read(name_length).decode()
    (length,) = struct.unpack("<Q", file.read(8))
    return Run(file.tell(), length, compression, size, 0, 0), checksum


def read_run(file: BinaryIO, run: Run) -> memoryview:
    """The records of a run, uncompressed. Raises what the decompressor does."""
    file.seek(run.offset)
    data = file.read(run.length)
    if run.compression:
        from rosbags.rosbag2.storage_mcap import DECOMPRESSORS

        data = DECOMPRESSORS[run.compression](data, run.size)
    return memoryview(data)


def decompressed(raw: bytes) -> bytes:
    """A message that rosbag2 compressed by itself. Raises what the decompressor does."""
    from rosbags.rosbag2.storage_mcap import DECOMPRESSORS

    return DECOMPRESSORS["zstd"](raw, 0)


def read_text(record: bytes, offset: int) -> str:
    """A string of MCAP: its length in four bytes, then UTF-8."""
    (length,) = struct.unpack_from("<I", record, offset)
    return record[offset + 4 : offset + 4 + length].decode()


class SqlitePart:
    """An sqlite3 file, but for its damaged pages."""

    def __init__(self, path: Path):
        self._path = path
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.start, self.end = 2**63 - 1, 0
        try:
            with closing(self._connect()) as database:
                rows = database.execute("SELECT id, name, type FROM topics").fetchall()
        except sqlite3.Error as error:
            self._topics: dict[int, tuple[str, str]] = {}
            self.faults.append(f"{path.name}: its table of topics cannot be read ({error})")
            return
        self._topics = {number: (name, kind) for number, name, kind in rows}
        for key, _, recorded, _ in self._rows("substr(data, 1, 1)", 0, 2**63 - 1, self.faults):
            self.counts[key] += 1
            self.start, self.end = min(self.start, recorded), max(self.end, recorded)

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        # Without, SQLite refuses a file that is shorter than its header says.
        database.execute("PRAGMA writable_schema = ON")
        return database

    def _rows(self, data: str, start: int, stop: int, faults: list[str]) -> Iterator[tuple[tuple[str, str], int, int, bytes]]:
        """Rows by their number, as the table itself has them: the index may be damaged too."""
        query = f"SELECT id, topic_id, timestamp, {data} FROM messages WHERE id >= ? AND +timestamp >= ? AND +timestamp < ? ORDER BY id"
        with closing(self._connect()) as database:
            following, leap, lost = 0, 1, None
            while leap < 2**40:
                try:
                    for number, topic, recorded, raw in database.execute(query, (following, start, stop)):
                        if lost is not None:
                            faults.append(f"{self._path.name}: up to {number - lost} messages from number {lost} on are damaged")
                        following, leap, lost = number + 1, 1, None
                        if topic in self._topics and isinstance(raw, bytes):
                            yield self._topics[topic], number, recorded, raw
                    break
                except sqlite3.Error:
                    lost = following if lost is None else lost
                    following, leap = following + leap, 2 * leap
            if lost is not None:
                faults.append(f"{self._path.name}: the messages from number {lost} on are damaged")

    def messages(self, topics: Collection[str], start: int, stop: int) -> Iterator[tuple[str, str, int, bytes]]:
        for (topic, kind), _, recorded, raw in self._rows("data", start, stop, []):
            if not topics or topic in topics:
                yield topic, kind, recorded, raw
