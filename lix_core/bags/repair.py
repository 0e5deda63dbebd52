"""Bags of recorders that were killed, made whole: what was recorded stays as it is; what is missing is added, or a new bag is written."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lix_core.bags.reader import one_bag, repaired_of
from lix_core.bags.salvage import SCHEMA, McapPart, SqlitePart, files_of, journals_of, read_text
from lix_core.bags.space import delete_bag, free_space
from lix_core.bags.writer import NO_HASH, Qos, RosbagsWriter, Topic, definition_of, metadata_version
from lix_core.errors import SourceError
from lix_core.files import UriPath, expanded, save

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

STORAGE = {".mcap": "mcap", ".db3": "sqlite3"}


@dataclass(frozen=True)
class RepairReport:
    """bag: the whole one. changed: "nothing", as it was whole; "metadata", which was added; or "new", where bag is beside the damaged one.

    messages, start, end: how many it has, and when the first and last were recorded [ns]. dropped: bytes of damaged
    records of MCAP files. faults: what was damaged, in words.
    """

    bag: Path
    changed: str
    messages: int
    start: int
    end: int
    dropped: int
    faults: tuple[str, ...]

    def __str__(self) -> str:
        done = {"nothing": "is whole", "metadata": "has its metadata.yaml again", "new": "is new, and the damaged one as it was"}
        seconds = f"{self.messages} messages, until {(self.end - self.start) / 1e9:.1f} s after the first"
        return f"{self.bag} {done[self.changed]}: {seconds}" + (f"; {self.dropped} bytes dropped" if self.dropped else "")


def repair(bag: str | Path, out: str | Path | None = None) -> RepairReport:
    """Make a bag whole.

    If its files are whole and only metadata.yaml is missing, that is written. Otherwise all whole messages are copied to a new bag,
    under the stamps at which they were recorded, in the same storage.

    Args:
        bag: a folder, or a .mcap or .db3 file.
        out: folder of the new bag, if one is needed; left out: <bag>_repaired beside it.

    Raises:
        SourceError: there is no bag, nothing of it can be read, or the new one cannot be written.
    """
    bag = expanded(bag).resolve()  # `.` has no name
    files = _files_in(bag)
    target = expanded(out) if out else repaired_of(bag)
    with _workshop(files, target) as folder:
        parts = [_part(file, folder) for file in files]
        whole = not folder and not any(part.faults for part in parts)
        has_metadata = bag.is_file() or (bag / "metadata.yaml").exists()
        connections = _connections(files, bag if has_metadata else None) if whole else None
        faults = tuple(fault for part in parts for fault in part.faults)
        if connections is not None and (has_metadata or out is None):
            if not has_metadata:
                _add_metadata(bag, files, parts, connections)
            return _report(bag, "nothing" if has_metadata else "metadata", parts, 0, faults)
        if not any(part.counts for part in parts):
            raise SourceError(f"nothing can be recovered of {bag}: " + ("; ".join(faults) or "it holds no whole message"))
        faults += _copy(parts, target)
        return _report(target, "new", parts, sum(part.dropped for part in parts), faults)


def _report(bag: Path, changed: str, parts: list["Part"], dropped: int, faults: tuple[str, ...]) -> RepairReport:
    filled = [part for part in parts if part.counts]
    start, end = min((p.start for p in filled), default=0), max((p.end for p in filled), default=0)
    return RepairReport(bag, changed, sum(part.counts.total() for part in parts), start, end, dropped, faults)


def _files_in(bag: Path) -> list[Path]:
    if not bag.exists():
        raise SourceError(f"no such bag: {bag}")
    files = files_of(bag)
    if not files:
        raise SourceError(f"{bag} is no bag of ROS 2: it has no .mcap or .db3 file; where one is compressed (.zstd), unpack it first")
    if len({file.suffix for file in files}) > 1:
        raise SourceError(f"{bag} has both .mcap and .db3 files; repair them one by one")
    if len(files) > 1 and not (bag / "metadata.yaml").exists() and not one_bag(files):
        names = ", ".join(file.name for file in files)
        raise SourceError(f"{names} in {bag} are not the parts of one bag, by their names or the times in them; repair them one by one")
    return files


@contextmanager
def _workshop(files: list[Path], target: Path) -> Iterator[Path | None]:
    """A folder for copies of those files that have journals, beside the bag that is to be made; None where none has. Raises SourceError."""
    files = [file for file in files if journals_of(file)]
    if not files:
        yield None
        return
    _check_space(files, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(prefix=".repair-", dir=target.parent)
    except OSError as error:
        raise SourceError(f"cannot write to {target.parent}: {error.strerror}; name another place with --out") from None
    with folder as name:
        yield Path(name)


def _check_space(files: Iterable[Path], target: Path) -> None:
    """Raises SourceError where a copy of the files would not fit."""
    size = sum(file.stat().st_size for file in files)
    if free_space(target.parent) < size:
        raise SourceError(
            f"a whole copy of the bag needs {size / 1e6:.0f} MB, more than is free for {target}; name a folder on another disk"
        )


class WholeMcap(McapPart):
    """What is whole of an MCAP file, with the definitions (`texts`, by type) and the QoS (`offers`, by topic) that it notes."""

    def __init__(self, path: Path):
        self.file = path
        self.texts: dict[str, str] = {}
        self.offers: dict[str, str] = {}
        super().__init__(path)

    @property
    def compressed(self) -> bool:
        return self.zstd or any(run.compression for run in self._runs)

    def _define(self, kind: int, record: bytes) -> None:
        super()._define(kind, record)
        with suppress(struct.error, UnicodeDecodeError):
            if kind == SCHEMA:
                name = read_text(record, 2)
                encoding_at = 2 + 4 + len(name.encode())
                encoding = read_text(record, encoding_at)
                self.texts.setdefault(name, read_text(record, encoding_at + 4 + len(encoding.encode())))
                return
            topic = read_text(record, 4)
            at = 4 + 4 + len(topic.encode())
            at += 4 + len(read_text(record, at).encode()) + 4
            while at < len(record):  # pairs of a name and a value
                name = read_text(record, at)
                at += 4 + len(name.encode())
                value = read_text(record, at)
                at += 4 + len(value.encode())
                if name == "offered_qos_profiles":
                    self.offers.setdefault(topic, value)


class WholeSqlite(SqlitePart):
    """The same of an sqlite3 file."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.file = path
        self.texts = self._pairs("SELECT topic_type, encoded_message_definition FROM message_definitions")
        self.offers = self._pairs("SELECT name, offered_qos_profiles FROM topics")

    @property
    def compressed(self) -> bool:
        return self.zstd

    def _pairs(self, query: str) -> dict[str, str]:
        """Empty where a bag of an older ROS has no such table or column."""
        with suppress(sqlite3.Error), closing(self._connect()) as database:
            return dict(database.execute(query).fetchall())
        return {}


Part = WholeMcap | WholeSqlite


def _part(file: Path, folder: Path | None) -> Part:
    """A file; one with a journal is copied into the folder, and rolled back there to what was flushed."""
    if file.suffix == ".mcap":
        return WholeMcap(file)
    if journals := journals_of(file):
        assert folder
        copy = folder / file.name
        try:
            for source in [file, *journals]:
                shutil.copyfile(source, copy.with_name(source.name))
        except OSError as error:
            raise SourceError(f"{file} cannot be copied to {folder.parent}: {error.strerror}") from None
        with suppress(sqlite3.Error), closing(sqlite3.connect(copy)) as database:
            database.execute("SELECT count(*) FROM topics").fetchone()
            database.execute("PRAGMA journal_mode = DELETE")
        return WholeSqlite(copy)
    return WholeSqlite(file)


def _connections(files: list[Path], bag: Path | None) -> list[Connection] | None:
    """Topics of whole files, with counts over all of them; None where rosbags does not think them, or the bag with metadata, whole,
    or these do not fit them."""
    from rosbags.rosbag2 import Reader

    found: dict[tuple[str, str], Connection] = {}
    try:
        if bag:
            with Reader(UriPath(bag)) as reader:
                told = (reader.start_time, reader.end_time, reader.message_count) if bag.is_dir() else None
        extents = []
        for file in files:
            with Reader(UriPath(file)) as reader:
                extents += [(reader.start_time, reader.end_time, reader.message_count)]
                for connection in reader.connections:
                    key = connection.topic, connection.msgtype
                    count = connection.msgcount + (found[key].msgcount if key in found else 0)
                    digest = connection.digest or _definition(connection.msgtype, connection.msgdef.data)[1]
                    found[key] = connection._replace(msgcount=count, digest=digest)
    except Exception:  # whatever a damaged file makes rosbags raise
        return None
    starts, ends, counts = zip(*extents)
    if bag and told and told != (min(starts), max(ends), sum(counts)):  # rosbags gives what is empty a start behind, an end before all
        return None
    return list(found.values())


def _add_metadata(bag: Path, files: list[Path], parts: list[Part], connections: list[Connection]) -> None:
    extents = [Extent(file, part.start, part.end, part.counts.total()) for file, part in zip(files, parts)]
    compression = ("message", "zstd") if any(part.zstd for part in parts) else ("", "")
    write_metadata(bag, STORAGE[files[0].suffix], connections, extents, compression)


@dataclass(frozen=True)
class Extent:
    """Of a file in a bag: when its first and its last message were recorded [ns], and how many there are."""

    path: Path
    start: int
    end: int
    messages: int


def write_metadata(
    folder: Path, storage: str, connections: Sequence[Connection], files: Sequence[Extent], compression: tuple[str, str] = ("", "")
) -> None:
    """Write a bag's metadata.yaml, of `metadata_version`.

    Args:
        folder: the bag.
        storage: "mcap" or "sqlite3".
        connections: of rosbags, with digests and counts of messages.
        files: its data files, in order.
        compression: of single messages or whole files: (mode, format), as ("message", "zstd").

    Raises:
        SourceError: it cannot be written.
    """
    import yaml
    from rosbags.rosbag2.metadata import dump_qos_v8, dump_qos_v9

    version = metadata_version()
    dump_qos = dump_qos_v9 if version == 9 else dump_qos_v8

    def spanned(extents: Sequence[Extent]) -> dict[str, Any]:
        filled = [e for e in extents if e.messages]
        start = min((e.start for e in filled), default=0)
        return {
            "starting_time": {"nanoseconds_since_epoch": start},
            "duration": {"nanoseconds": max((e.end for e in filled), default=start) - start},
            "message_count": sum(e.messages for e in filled),
        }

    information = {
        "version": version,
        "storage_identifier": storage,
        "relative_file_paths": [e.path.name for e in files],
        **spanned(files),
        "topics_with_message_count": [
            {
                "topic_metadata": {
                    "name": c.topic,
                    "type": c.msgtype,
                    "serialization_format": c.ext.serialization_format,
                    "offered_qos_profiles": dump_qos(c.ext.offered_qos_profiles),
                    "type_description_hash": c.digest,
                },
                "message_count": c.msgcount,
            }
            for c in connections
        ],
        "compression_mode": compression[0],
        "compression_format": compression[1],
        "files": [{"path": e.path.name, **spanned([e])} for e in files],
        "custom_data": None,
        "ros_distro": "rosbags",
    }
    text = yaml.safe_dump({"rosbag2_bagfile_information": information}, sort_keys=False)
    save(folder / "metadata.yaml", text.encode())


def _copy(parts: list[Part], out: Path) -> tuple[str, ...]:
    """Write all whole messages into a new bag; nothing is left of it where that fails. Returns what could not be, in words: a topic of the
    new bag is of one type."""
    _check_space((part.file for part in parts), out)
    compression = "zstd" if any(part.compressed for part in parts) else "none"
    writer = RosbagsWriter(out, STORAGE[parts[0].file.suffix], compression)
    try:
        known: dict[str, str] = {}
        others: Counter[tuple[str, str]] = Counter()
        for part in parts:
            for topic, kind, recorded, raw in part.messages((), 0, 2**63 - 1):
                if known.get(topic, kind) != kind:
                    others[topic, kind] += 1
                    part.counts[topic, kind] -= 1
                    continue
                if topic not in known:
                    known[topic] = kind
                    writer.add(Topic(topic, kind, _offered(part.offers.get(topic, ""))), _definition(kind, part.texts.get(kind, "")))
                writer.write(topic, recorded, raw)
        writer.close()
    except BaseException:
        with suppress(SourceError):
            writer.close()
        with suppress(SourceError):
            delete_bag(out)
        raise
    return tuple(f"{n} messages of {topic} are of another type ({kind}) than its first and left out" for (topic, kind), n in others.items())


def _offered(text: str) -> tuple[Qos, ...]:
    """QoS as bags note it; empty where that is damaged."""
    from rosbags.rosbag2.metadata import parse_qos

    try:
        profiles: list[Any] = parse_qos(text)
    except Exception:  # of rosbags and of what it parses with
        return ()
    return tuple(Qos(p.reliability.name.lower(), p.durability.name.lower(), p.history.name.lower(), p.depth) for p in profiles)


def _definition(kind: str, text: str) -> tuple[str, str]:
    """A type's text and hash: as the bag has it, for its messages were written so; otherwise by its name."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    if not text:
        return definition_of(kind)
    store = get_typestore(Stores.EMPTY)
    try:
        store.register(get_types_from_msg(text, kind))
        return text, store.hash_rihs01(kind)
    except Exception:  # the text may be in another language (IDL), or damaged: it is kept, its hash is not known
        return text, NO_HASH
