"""What is whole of a damaged bag: its files are scanned from their start, without index, summary or metadata.yaml.

MCAP (https://mcap.dev/spec) is a sequence of records of known length; a chunk whose checksum fails is passed over, damage between chunks
is leapt over if there is a summary that says where the next one is, and a file that ends in mid-record ends there. Of sqlite3 the rows
are read one after another, and those on damaged pages are leapt over. Of either, a message that is compressed by itself and cannot be
decompressed is left out alone.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

from lix_core.errors import first_line
from lix_core.files import natural_key

MAGIC = b"\x89MCAP0\r\n"
SCHEMA, CHANNEL, MESSAGE, CHUNK, CHUNK_INDEX, DATA_END, FOOTER, LAST_OPCODE = 0x03, 0x04, 0x05, 0x06, 0x08, 0x0F, 0x02, 0x0F
HEAD = struct.Struct("<BQ")
"""Of every record: its kind and its length [bytes]."""
MESSAGE_HEAD = struct.Struct("<HIQQ")
"""Of a message: channel, sequence number, when it was recorded, when it was sent [ns]."""
FOOTER_SIZE = HEAD.size + 20 + len(MAGIC)
"""Of the last record of a file and the magic behind it [bytes]; it says where the summary begins, and the checksum of that."""
LONGEST_NAME = 16
"""Of a compression; a longer one is none."""
SUFFIXES = (".mcap", ".db3")
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""Begins what is compressed in zstd. Messages themselves begin with a zero byte."""


@dataclass(frozen=True)
class TopicInfo:
    """A topic of a bag: its messages are of one type. latched: offered as transient local, hence once and for all."""

    name: str
    type: str
    count: int
    latched: bool = False


def files_of(bag: Path) -> list[Path]:
    """The data files of a bag: those in its folder, in the order of their names, or itself."""
    if not bag.is_dir():
        return [bag] * (bag.suffix in SUFFIXES)
    return sorted((p for p in bag.iterdir() if p.suffix in SUFFIXES and p.is_file()), key=lambda p: natural_key(p.name))


def journals_of(file: Path) -> list[Path]:
    """What SQLite leaves beside a file whose writer was killed, where it holds something: without it the file may be neither here nor
    there."""
    found = (file.with_name(file.name + suffix) for suffix in ("-journal", "-wal"))
    return [journal for journal in found if file.suffix == ".db3" and journal.exists() and journal.stat().st_size]


class Part(Protocol):
    """One file. counts: (topic, type) -> messages. start, end: of its messages [ns]. faults: in words. dropped: bytes of damaged records,
    where they are known. zstd: whether messages are compressed one by one; `messages` are not."""

    counts: Counter[tuple[str, str]]
    zstd: bool
    start: int
    end: int
    faults: list[str]
    dropped: int

    def messages(self, topics: Collection[str], start: int, stop: int) -> Iterator[tuple[str, str, int, bytes]]: ...


class Salvage:
    """The whole messages of a bag's files, as lix_core.bags.reader.Storage. Within a chunk or a table, they come as they were written."""

    is_ros2 = True

    def __init__(self, path: Path):
        self._parts: list[Part] = [McapPart(file) if file.suffix == ".mcap" else SqlitePart(file) for file in files_of(path)]
        self.faults = [fault for part in self._parts for fault in part.faults]
        total: Counter[tuple[str, str]] = Counter()
        for part in self._parts:
            total.update(part.counts)
        if total and path.is_dir() and not (path / "metadata.yaml").exists():
            self.faults.insert(0, f"{path / 'metadata.yaml'} is missing: the recorder was killed; `lix bag repair` writes it")
        self.topics: list[TopicInfo] = [TopicInfo(*key, count) for key, count in total.items()]
        filled = [part for part in self._parts if part.counts]
        self.start, self.end = min((p.start for p in filled), default=0), max((p.end for p in filled), default=0)

    def messages(self, topics: Collection[str], start: int | None, stop: int | None) -> Iterator[tuple[str, str, int, bytes]]:
        for part in self._parts:
            yield from part.messages(topics, start or 0, 2**63 - 1 if stop is None else stop)

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


Extent = tuple[int, int, int]
"""Of the messages of a channel: how many, and when the first and the last were recorded [ns]."""


class McapPart:
    """An MCAP file, but for its damage. dropped: bytes of damaged records."""

    def __init__(self, path: Path):
        self._path = path
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.dropped = self._undone = 0
        self.zstd = False
        self._schemas: dict[int, str] = {}
        self._channels: dict[int, tuple[str, int]] = {}
        self._found: list[tuple[Run, dict[int, Extent]]] = []
        """What runs hold, by channel."""
        self._runs: list[Run] = []
        self.start, self.end = 2**63 - 1, 0
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                self.faults.append(f"{path.name} {'is empty' if not path.stat().st_size else 'does not begin as an MCAP file does'}")
                return
            self._scan(file, path.stat().st_size)
        self._count()

    def _scan(self, file: BinaryIO, size: int) -> None:
        at, places, is_data = len(MAGIC), [*self._read_summary(file, size), size], True
        while True:
            file.seek(at)
            head = file.read(HEAD.size)
            kind, length = HEAD.unpack(head) if len(head) == HEAD.size else (0, 0)
            is_record, end = 0 < kind <= LAST_OPCODE, at + HEAD.size + length
            limit = places[min(bisect_right(places, at), len(places) - 1)]
            is_whole, dropped = is_record and end <= limit, self.dropped
            is_data &= (kind, length) != (DATA_END, 4)
            # Behind the data no record is a message, but a damaged one of the summary may look like it.
            if (is_whole or kind == CHUNK) and (is_data or kind not in (MESSAGE, CHUNK)):
                self._note(file, kind, at + HEAD.size, min(end, limit))
            if is_whole:
                if kind == FOOTER and self._ends(file, end):
                    return
                at = end
                continue
            self.dropped = dropped + limit - at
            if limit < size:
                self.faults.append(f"{self._path.name} is damaged at byte {at}: it is read on from byte {limit}")
                at = limit
                continue
            if is_record:
                self.faults.append(f"{self._path.name} ends in the middle of a record: {size - at} bytes from byte {at} on are not whole")
            else:
                left = f"the last {size - at} bytes are left out" if size > at else "its end is missing"
                self.faults.append(f"{self._path.name} has no record at byte {at}: {left}")
            return

    @staticmethod
    def _ends(file: BinaryIO, end: int) -> bool:
        """Whether a file's closing magic is there; a damaged record may look like the footer before it."""
        file.seek(end)
        return file.read(len(MAGIC)) == MAGIC

    def _read_summary(self, file: BinaryIO, size: int) -> list[int]:
        """Take note of what the summary at the end defines; where chunks and the summary begin, ascending. Empty where it has none."""
        file.seek(max(size - FOOTER_SIZE, 0))
        tail = file.read()
        if not tail.startswith(HEAD.pack(FOOTER, FOOTER_SIZE - HEAD.size - len(MAGIC))) or not tail.endswith(MAGIC):
            return []
        begin, checksum = struct.unpack_from("<Q8xI", tail, HEAD.size)
        if not begin:
            return []
        file.seek(min(begin, size))
        summary = file.read()[: -len(MAGIC) - 4]
        if checksum and zlib.crc32(summary) != checksum:
            self.faults.append(f"the summary of {self._path.name} is damaged")
            return []
        places = [begin]
        for kind, body in records(memoryview(summary)):
            if kind == CHUNK_INDEX and len(body) > 24:
                places.append(struct.unpack_from("<16xQ", body)[0])
            elif kind in (SCHEMA, CHANNEL):
                self._define(kind, bytes(body))
        return sorted(place for place in places if place < size)

    def _note(self, file: BinaryIO, kind: int, offset: int, end: int) -> None:
        """Remember what a record of the file says, whose content is from `offset` to `end`."""
        if kind == CHUNK:
            try:
                self._note_run(file, *read_chunk_head(file, offset), end)
            except Exception as error:  # of whatever library decompresses
                self.faults.append(f"the chunk at byte {offset} of {self._path.name} is damaged and left out ({first_line(error)})")
                self.dropped += end - offset
        elif kind == MESSAGE:
            self._note_run(file, Run(offset - HEAD.size, end - offset + HEAD.size, "", end - offset + HEAD.size, 0, 0), 0, end)
        elif kind in (SCHEMA, CHANNEL):
            file.seek(offset)
            self._define(kind, file.read(end - offset))

    def _note_run(self, file: BinaryIO, run: Run, checksum: int, end: int) -> None:
        """Look through a run in a record that goes to `end`, where the file may be cut off. Raises what the decompressor does."""
        is_cut = run.offset + run.length > end
        run = replace(run, length=max(0, min(run.length, end - run.offset)))
        data = read_run(file, run)
        if checksum and (len(data) == run.size or not is_cut) and zlib.crc32(data) != checksum:
            raise ValueError("its checksum is wrong")
        extents: dict[int, Extent] = {}
        whole = 0
        for kind, body in records(data):
            whole += HEAD.size + len(body)
            if kind == MESSAGE and len(body) >= MESSAGE_HEAD.size:
                channel, _, recorded, _ = MESSAGE_HEAD.unpack_from(body)
                self.zstd |= is_compressed(body[MESSAGE_HEAD.size :])
                if decompressed(body[MESSAGE_HEAD.size :]) is None:
                    self._undone += 1
                    continue
                count, first, last = extents.get(channel, (0, recorded, recorded))
                extents[channel] = count + 1, min(first, recorded), max(last, recorded)
            elif kind in (SCHEMA, CHANNEL):
                self._define(kind, bytes(body))
        if whole < len(data) and not is_cut:
            self.faults.append(
                f"the chunk at byte {run.offset} of {self._path.name} is damaged: its last {len(data) - whole} bytes are left out"
            )
        self._found.append((run, extents))

    def _count(self) -> None:
        """Only now, as what defines a channel may stand behind its messages: where the chunk that did so first is damaged."""
        lost = 0
        for run, extents in self._found:
            known = {channel: extent for channel, extent in extents.items() if channel in self._channels}
            lost += sum(count for channel, (count, _, _) in extents.items() if channel not in known)
            if known:
                for channel, (count, _, _) in known.items():
                    self.counts[self._key(channel)] += count
                run = replace(run, start=min(first for _, first, _ in known.values()), end=max(last for *_, last in known.values()))
                self._runs.append(run)
                self.start, self.end = min(self.start, run.start), max(self.end, run.end)
        if lost:
            self.faults.append(f"{lost} messages of {self._path.name} are left out: what says of which topics they are is damaged")
        self.faults += undone(self._undone, self._path)

    def _define(self, kind: int, record: bytes) -> None:
        """Take note of a schema (id, name) or a channel (id, schema, topic). Repetitions are the same, so the first counts."""
        try:
            if kind == SCHEMA:
                self._schemas.setdefault(struct.unpack_from("<H", record)[0], read_text(record, 2))
            else:
                number, schema = struct.unpack_from("<HH", record)
                self._channels.setdefault(number, (read_text(record, 4), schema))
        except (struct.error, UnicodeDecodeError):
            pass  # its messages are then of an unknown channel

    def _key(self, channel: int) -> tuple[str, str]:
        """Topic and type of a known channel."""
        topic, schema = self._channels[channel]
        return topic, self._schemas.get(schema, "")

    def messages(self, topics: Collection[str], start: int, stop: int) -> Iterator[tuple[str, str, int, bytes]]:
        with self._path.open("rb") as file:
            for run in self._runs:
                if run.start < stop and run.end >= start:
                    for kind, body in records(read_run(file, run)):
                        if kind != MESSAGE or len(body) < MESSAGE_HEAD.size:
                            continue
                        channel, _, recorded, _ = MESSAGE_HEAD.unpack_from(body)
                        if channel in self._channels and start <= recorded < stop:
                            topic, message_type = self._key(channel)
                            if not topics or topic in topics:
                                raw = decompressed(body[MESSAGE_HEAD.size :])
                                if raw is not None:
                                    yield topic, message_type, recorded, bytes(raw)


def records(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Kind and content of the whole records in memory, until one is not whole."""
    at = 0
    while at + HEAD.size <= len(data):
        kind, length = HEAD.unpack_from(data, at)
        at += HEAD.size
        if at + length > len(data):
            return
        yield kind, data[at : at + length]
        at += length


def read_chunk_head(file: BinaryIO, offset: int) -> tuple[Run, int]:
    """Where the records of the chunk at `offset` are, when is not known yet, and their checksum; 0 is none. Raises ValueError."""
    file.seek(offset)
    try:
        size, checksum, name_length = struct.unpack("<16xQII", file.read(32))
        compression = file.read(min(name_length, LONGEST_NAME)).decode()
        (length,) = struct.unpack("<Q", file.read(8))
    except struct.error:
        raise ValueError("its head is not whole") from None
    return Run(file.tell(), length, compression, size, 0, 0), checksum


def read_run(file: BinaryIO, run: Run) -> memoryview:
    """The records of a run, uncompressed. Raises what the decompressor does."""
    file.seek(run.offset)
    data = file.read(run.length)
    if run.compression:
        from rosbags.rosbag2.storage_mcap import DECOMPRESSORS

        data = DECOMPRESSORS[run.compression](data, run.size)
    return memoryview(data)


def is_compressed(raw: bytes | memoryview) -> bool:
    """Whether rosbag2 compressed a message by itself."""
    return raw[:4] == ZSTD_MAGIC


def decompressed(raw: bytes | memoryview) -> bytes | memoryview | None:
    """A message as it was sent, whether it is compressed or not; None where that cannot be told any more."""
    if not is_compressed(raw):
        return raw
    from rosbags.rosbag2.storage_mcap import DECOMPRESSORS

    try:
        return DECOMPRESSORS["zstd"](raw, 0)
    except Exception:  # of whatever library decompresses
        return None


def undone(count: int, path: Path) -> list[str]:
    """The fault of a file with so many messages that cannot be decompressed."""
    return [f"{count} messages of {path.name} cannot be decompressed and are left out"] if count else []


def read_text(record: bytes, offset: int) -> str:
    """A string of MCAP: its length in four bytes, then UTF-8."""
    (length,) = struct.unpack_from("<I", record, offset)
    return record[offset + 4 : offset + 4 + length].decode()


class SqlitePart:
    """An sqlite3 file, but for its damaged pages."""

    dropped = 0

    def __init__(self, path: Path):
        self._path, self.zstd, count = path, False, 0
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
        self._topics = {number: (name, kind) for number, name, kind in rows if isinstance(name, str) and isinstance(kind, str)}
        # The others are not read: a byte of them will do.
        data = f"CASE WHEN substr(data, 1, 4) = x'{ZSTD_MAGIC.hex()}' THEN data ELSE substr(data, 1, 1) END"
        for key, _, recorded, raw in self._rows(data, 0, 2**63 - 1, self.faults):
            self.zstd |= is_compressed(raw)
            if decompressed(raw) is None:
                count += 1
                continue
            self.counts[key] += 1
            self.start, self.end = min(self.start, recorded), max(self.end, recorded)
        self.faults += undone(count, path)

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        database.text_factory = lambda text: text.decode(errors="replace")
        # Without, SQLite refuses a file that is shorter than its header says.
        database.execute("PRAGMA writable_schema = ON")
        return database

    def _rows(self, data: str, start: int, stop: int, faults: list[str]) -> Iterator[tuple[tuple[str, str], int, int, bytes]]:
        """Rows by their number, as the table itself has them: the index may be damaged too."""
        within = "(typeof(timestamp) <> 'integer' OR +timestamp >= ? AND +timestamp < ?)"
        query = f"SELECT id, topic_id, timestamp, {data} FROM messages WHERE id >= ? AND {within} ORDER BY id"
        with closing(self._connect()) as database:
            following, leap, lost, odd = 0, 1, None, 0
            while leap < 2**40:
                try:
                    for number, topic, recorded, raw in database.execute(query, (following, start, stop)):
                        if lost is not None:
                            faults.append(f"{self._path.name}: up to {number - lost} messages from number {lost} on are damaged")
                        following, leap, lost = number + 1, 1, None
                        if topic in self._topics and isinstance(raw, bytes) and isinstance(recorded, int):
                            yield self._topics[topic], number, recorded, raw
                        else:
                            odd += 1
                    break
                except sqlite3.Error:
                    lost = following if lost is None else lost
                    following, leap = following + leap, 2 * leap
            if lost is not None:
                faults.append(f"{self._path.name}: the messages from number {lost} on are damaged")
            if odd:
                faults.append(f"{odd} messages of {self._path.name} are of no topic, or damaged, and are left out")

    def messages(self, topics: Collection[str], start: int, stop: int) -> Iterator[tuple[str, str, int, bytes]]:
        for (topic, kind), _, recorded, raw in self._rows("data", start, stop, []):
            if (not topics or topic in topics) and (whole := decompressed(raw)) is not None:
                yield topic, kind, recorded, whole
