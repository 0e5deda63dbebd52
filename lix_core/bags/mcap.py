"""An MCAP file (https://mcap.dev/spec) that is being written, as a storage for the Writer of `rosbags`.

rosbags' own storage copies a message five times on its way to the file, which for two cameras and a LiDAR (100 MB/s) is a fifth of a
core, and hands nothing to the kernel before a megabyte is full. This one gives the kernel the messages from where they are (a fiftieth
of a core), whenever it is told to, and can go back to where it last did so.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lix_core import __version__
from lix_core.bags.salvage import CHANNEL, CHUNK, CHUNK_INDEX, DATA_END, FOOTER, HEAD, MAGIC, MESSAGE, MESSAGE_HEAD, SCHEMA

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

HEADER, MESSAGE_INDEX, STATISTICS, METADATA, METADATA_INDEX, SUMMARY_OFFSET = 0x01, 0x07, 0x0B, 0x0C, 0x0D, 0x0E
CHUNK_SIZE = 1 << 20
"""A chunk ends with the message with which it has so many bytes: readers unpack whole chunks."""
DEFINITIONS_SHARE = 100
"""Definitions are repeated whenever so many times their size was written, so that they cost a hundredth at most."""
MOST_PARTS = 1000
"""Pieces of memory that are given to the kernel at once; Linux takes 1024."""
NEVER = 2**63 - 1


@dataclass(frozen=True)
class Tally:
    """What the summary will say of the chunks so far, but for their records, of which there are `length` bytes. counts: messages by
    channel. start, end: of the messages [ns]."""

    chunks: int = 0
    length: int = 0
    counts: Mapping[int, int] = field(default_factory=dict)
    start: int = NEVER
    end: int = 0

    def with_chunk(self, length: int, counts: Mapping[int, int], start: int, end: int) -> Tally:
        together = {channel: self.counts.get(channel, 0) + counts.get(channel, 0) for channel in (*self.counts, *counts)}
        return Tally(self.chunks + 1, self.length + length, together, min(self.start, start), max(self.end, end))


class McapStorage:
    """The methods of rosbags' StorageWriter, and `flush` and `rollback`. size: bytes so far, with those that wait. Raises OSError."""

    def __init__(self, path: Path, compression: Any):
        """path: folder of the bag. compression: rosbags' CompressionMode; STORAGE compresses chunks with zstd."""
        self.path = path / f"{path.name}.mcap"
        self._compresses = compression.name == "STORAGE"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._at = 0
        self._parts: list[bytes] = []
        self._pending = 0
        self._indexes: dict[int, list[tuple[int, int]]] = defaultdict(list)
        """Of the chunk that waits: (recorded [ns], offset in the chunk) of its messages, by channel."""
        self._sequence: dict[int, int] = defaultdict(int)
        self._schemas: dict[str, bytes] = {}
        self._channels: list[bytes] = []
        self._tally = Tally()
        self._chunk_records = bytearray()
        """One after the other, as the summary has them: a bag of days has a million."""
        self._repeat_at = 0
        """Size of the file with which a chunk begins with all definitions again: the first may be damaged, and a killed file has no
        summary to look them up in."""
        self._put([MAGIC, record(HEADER, text("ros2"), text(f"lix {__version__}"))])
        self._flushed = self._at, self._tally

    @property
    def size(self) -> int:
        return self._at + self._pending

    def add_msgtype(self, connection: Connection) -> None:
        encoding = "ros2msg" if connection.msgdef.format.name == "MSG" else "ros2idl"
        number = struct.pack("<H", len(self._schemas) + 1)
        self._schemas[connection.msgtype] = record(SCHEMA, number, text(connection.msgtype), text(encoding), text(connection.msgdef.data))
        self._define(self._schemas[connection.msgtype])

    def add_connection(self, connection: Connection, offered_qos_profiles: str) -> None:
        schema = list(self._schemas).index(connection.msgtype) + 1
        told = text("offered_qos_profiles") + text(offered_qos_profiles) + text("topic_type_hash") + text(connection.digest)
        channel = record(CHANNEL, struct.pack("<HH", connection.id, schema), text(connection.topic), text("cdr"), sized(told))
        self._channels.append(channel)
        self._define(channel)

    def write(self, connection: Connection, timestamp: int, data: bytes | memoryview) -> None:
        channel = connection.id
        self._indexes[channel].append((timestamp, self._pending))
        head = HEAD.pack(MESSAGE, MESSAGE_HEAD.size + len(data))
        self._append(head + MESSAGE_HEAD.pack(channel, self._sequence[channel] & 0xFFFFFFFF, timestamp, timestamp))
        self._append(bytes(data))  # of bytes, this is no copy
        self._sequence[channel] += 1
        if self._pending >= CHUNK_SIZE:
            self._end_chunk()

    def flush(self) -> None:
        """Whatever was written until now is the kernel's."""
        self._end_chunk()
        self._flushed = self._at, self._tally

    def rollback(self) -> None:
        """Forget what came after the last flush, also of the file; for when writing failed in the middle of a record."""
        self._clear()
        self._at, self._tally = self._flushed
        del self._chunk_records[self._tally.length :]
        os.ftruncate(self._file, self._at)
        os.lseek(self._file, self._at, os.SEEK_SET)

    def close(self, version: int, metadata: str) -> None:
        """End the file with its summary."""
        self._end_chunk()
        metadata_at = self._at
        self._put([record(METADATA, text("rosbag2"), sized(text("serialized_metadata") + text(metadata)))])
        metadata_index = struct.pack("<QQ", metadata_at, self._at - metadata_at) + text("rosbag2")
        self._put([record(DATA_END, bytes(4))])
        groups = [
            (SCHEMA, list(self._schemas.values())),
            (CHANNEL, self._channels),
            (CHUNK_INDEX, [bytes(self._chunk_records)] if self._chunk_records else []),
            (METADATA_INDEX, [record(METADATA_INDEX, metadata_index)]),
            (STATISTICS, [self._statistics()]),
        ]
        summary: list[bytes] = []
        offsets: list[bytes] = []
        at = self._at
        for kind, records in groups:
            if records:
                size = sum(map(len, records))
                offsets.append(record(SUMMARY_OFFSET, struct.pack("<BQQ", kind, at, size)))
                summary += records
                at += size
        footer = record(FOOTER, struct.pack("<QQI", self._at, at, 0))[:-4]
        self._put([*summary, *offsets, footer, struct.pack("<I", checksum_of([*summary, *offsets, footer])), MAGIC])
        self.abort()

    def abort(self) -> None:
        """Close the file as it is."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _define(self, definition: bytes) -> None:
        self._append(definition)
        self._repeat_at = 0  # in the chunk after this

    def _append(self, part: bytes) -> None:
        self._parts.append(part)
        self._pending += len(part)

    def _end_chunk(self) -> None:
        """Write the chunk that waits, if it has messages; a schema or a channel alone waits for the first."""
        if not self._indexes:
            return
        stamps = [stamp for entries in self._indexes.values() for stamp, _ in entries]
        start, end, size, compression = min(stamps), max(stamps), self._pending, ""
        parts: list[bytes] = self._parts
        checksum = checksum_of(parts)
        if self._compresses:
            parts, compression = [compressed(b"".join(parts))], "zstd"
        length = sum(map(len, parts))
        chunk_head = struct.pack("<QQQI", start, end, size, checksum) + text(compression) + struct.pack("<Q", length)
        chunk_at, chunk_length = self._at, HEAD.size + len(chunk_head) + length
        indexes, places, at = [], b"", chunk_at + chunk_length
        for channel, entries in self._indexes.items():
            table = b"".join(struct.pack("<QQ", *entry) for entry in entries)
            indexes.append(record(MESSAGE_INDEX, struct.pack("<H", channel), sized(table)))
            places += struct.pack("<HQ", channel, at)
            at += len(indexes[-1])
        self._put([HEAD.pack(CHUNK, len(chunk_head) + length) + chunk_head, *parts, *indexes])
        where = struct.pack("<QQQQ", start, end, chunk_at, chunk_length) + sized(places)
        sizes = struct.pack("<Q", sum(map(len, indexes))) + text(compression) + struct.pack("<QQ", length, size)
        counts = {channel: len(entries) for channel, entries in self._indexes.items()}
        index = record(CHUNK_INDEX, where, sizes)
        self._chunk_records += index
        self._tally = self._tally.with_chunk(len(index), counts, start, end)
        self._clear()
        if self._at >= self._repeat_at:
            for definition in (*self._schemas.values(), *self._channels):
                self._append(definition)
            self._repeat_at = self._at + DEFINITIONS_SHARE * self._pending

    def _clear(self) -> None:
        self._parts, self._pending = [], 0
        self._indexes.clear()

    def _statistics(self) -> bytes:
        tally = self._tally
        counts = {channel: tally.counts.get(channel, 0) for channel in range(1, len(self._channels) + 1)}
        start = tally.start if tally.chunks else 0
        numbers = sum(counts.values()), len(self._schemas), len(self._channels), 0, 1, tally.chunks, start, tally.end
        table = b"".join(struct.pack("<HQ", *entry) for entry in counts.items())
        return record(STATISTICS, struct.pack("<QHIIIIQQ", *numbers), sized(table))

    def _put(self, parts: Sequence[bytes]) -> None:
        """Give pieces of memory to the kernel, which may take less than all at a time."""
        waiting = [memoryview(part) for part in parts if part]
        first = 0
        while first < len(waiting):
            taken = os.writev(self._file, waiting[first : first + MOST_PARTS])
            self._at += taken
            while first < len(waiting) and taken >= len(waiting[first]):
                taken -= len(waiting[first])
                first += 1
            if taken:
                waiting[first] = waiting[first][taken:]


def record(kind: int, *content: bytes) -> bytes:
    body = b"".join(content)
    return HEAD.pack(kind, len(body)) + body


def sized(content: bytes) -> bytes:
    """Bytes, a map or an array, after their length."""
    return struct.pack("<I", len(content)) + content


def text(words: str) -> bytes:
    return sized(words.encode())


def checksum_of(parts: Sequence[bytes]) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum


def compressed(data: bytes) -> bytes:
    from rosbags.rosbag2.writer import zstd  # the standard library's from Python 3.14 on, a backport before

    return zstd.compress(data)
