"""How much of an MP4 or QuickTime file is shown: its edit list, after ISO/IEC 14496-12, 8.6.6.

A clip that was trimmed without encoding it anew holds the frames from the key frame before the cut on, and an edit list that hides the
first of them. FFmpeg counts them all, and gives those that are shown.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

SUFFIXES = (".mp4", ".mov", ".m4v")


class Box(NamedTuple):
    """A part of the file. kind: its four letters. start, end: of its content [bytes]."""

    kind: bytes
    start: int
    end: int


def boxes(file: BinaryIO, start: int, end: int) -> Iterator[Box]:
    """The boxes between two places, as far as they make sense."""
    while start + 8 <= end:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        content = start + 8
        if size == 1:
            size, content = struct.unpack(">Q", file.read(8))[0], start + 16
        size = size or end - start
        if size < content - start:
            return
        yield Box(kind, content, min(start + size, end))
        start += size


def inside(file: BinaryIO, box: Box, *kinds: bytes) -> Box | None:
    """The first box of each kind within the one before it, or None."""
    for kind in kinds:
        box = next((each for each in boxes(file, box.start, box.end) if each.kind == kind), None)
        if box is None:
            return None
    return box


def shown_seconds(path: Path) -> float | None:
    """How long the edit list of the first track of pictures shows it [s]; None without a list, or where the file makes no sense."""
    try:
        with path.open("rb") as file:
            whole = Box(b"", 0, path.stat().st_size)
            movie = inside(file, whole, b"moov")
            if movie is None or (head := inside(file, movie, b"mvhd")) is None:
                return None
            for track in boxes(file, movie.start, movie.end):
                if track.kind == b"trak" and handler_of(file, track) == b"vide":
                    edits = inside(file, track, b"edts", b"elst")
                    return edited(read(file, edits)) / timescale(read(file, head)) if edits else None
    except (OSError, struct.error, IndexError, ZeroDivisionError):
        return None
    return None


def read(file: BinaryIO, box: Box) -> bytes:
    file.seek(box.start)
    return file.read(box.end - box.start)


def handler_of(file: BinaryIO, track: Box) -> bytes:
    """What a track is of: `vide`, `soun`, ..."""
    handler = inside(file, track, b"mdia", b"hdlr")
    return read(file, handler)[8:12] if handler else b""


def timescale(head: bytes) -> int:
    """Ticks of a second, by a movie header."""
    return struct.unpack_from(">I", head, 20 if head[0] else 12)[0]


def edited(edits: bytes) -> int:
    """How long an edit list shows the track [ticks]; pauses, whose media time is -1, show nothing."""
    entry = ">QqI" if edits[0] else ">IiI"
    (count,) = struct.unpack_from(">I", edits, 4)
    found = [struct.unpack_from(entry, edits, 8 + i * struct.calcsize(entry)) for i in range(min(count, len(edits)))]
    return sum(duration for duration, begin, _ in found if begin >= 0)
