"""Writing rosbag2 bags without ROS, through `rosbags`, so that a killed process loses next to nothing.

`RosbagsWriter.flush` hands over to the kernel what was written; that outlives the process, though not a power cut: of that, the kernel's
own delay of writing (some 30 s) is lost, and an sqlite3 file may then be damaged, an MCAP file only shorter.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lix_core.bags.space import delete_bag, hold
from lix_core.errors import SourceError, first_line
from lix_core.files import UriPath

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

STORAGES, COMPRESSIONS = ("mcap", "sqlite3"), ("none", "zstd")
NO_HASH = f"RIHS01_{'0' * 64}"
"""In the place of the hash of a type of which nothing but its name is known."""


@dataclass(frozen=True)
class Qos:
    """What a publisher offers, in ROS's own words; "transient_local" is what makes a topic latched."""

    reliability: str = "reliable"
    durability: str = "volatile"
    history: str = "keep_last"
    depth: int = 10


@dataclass(frozen=True)
class Topic:
    """A topic of a bag. name: absolute. type: as "sensor_msgs/msg/Image". qos: what its publishers offer, one each; `ros2 bag play` offers
    the same."""

    name: str
    type: str
    qos: tuple[Qos, ...] = ()

    @property
    def latched(self) -> bool:
        """Whether those who come late still get its messages."""
        return any(qos.durability == "transient_local" for qos in self.qos)


class BagExists(SourceError):
    """Where a bag was to be written there is something already, which is not this writer's."""


class CutShort(SourceError):
    """A bag was ended whole, but without what came after its last flush."""


class BagWriter(Protocol):
    """One bag folder that is being written. Everything may raise, as the disk decides; `close` is then still to be called.

    What opens one makes its folder, which must not exist (BagExists), and leaves nothing behind where that fails.

    size: bytes on disk so far, about; other threads read it.
    """

    size: int

    def add(self, topic: Topic) -> None:
        """Make a topic known, before its first message."""

    def write(self, topic: str, stamp_ns: int, data: bytes | memoryview) -> None:
        """Append a message, serialised as CDR, recorded at stamp_ns [ns]."""

    def flush(self) -> None:
        """Whatever was written until now survives the death of this process."""

    def close(self) -> None:
        """End the bag, so that others can read it. A second call does nothing. CutShort: what was not flushed was lost just now."""


@dataclass(frozen=True)
class Flushed:
    """What a bag has for sure: messages by connection, stamps of the first and the last [ns]."""

    counts: dict[int, int]
    start: int
    end: int


class RosbagsWriter:
    """A BagWriter that needs no ROS: metadata of `metadata_version`, with type hashes, definitions and offered QoS.

    Definitions are rosbags' own, or those of the ROS installation; a topic of a type that neither knows is recorded without one, and plays
    where the type is installed. When the disk is full, or a write fails for another reason, the bag ends where it was last flushed; whoever
    made that write is told, be it the last one, of `close`.

    Raises:
        BagExists: the folder exists already. Of several writers that want the same one, it is made by exactly one.
        SourceError: it cannot be made, storage or compression is unknown; from `write` and `flush`, that the disk is full, the bag was
            removed, and the like.
    """

    def __init__(self, folder: Path, storage: str = "mcap", compression: str = "none"):
        from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, WriterError

        if storage not in STORAGES or compression not in COMPRESSIONS:
            raise SourceError(f"a bag's storage is one of {STORAGES}, its compression one of {COMPRESSIONS}; got {storage}, {compression}")
        self.folder, self._is_mcap = Path(folder), storage == "mcap"
        self._connections: dict[str, Connection] = {}
        self._failed = self._closed = False
        self._held = -1
        with self._told():
            try:
                self._writer = storage_writer()(self.folder, version=metadata_version(), storage_plugin=StoragePlugin[storage.upper()])
                self.folder.mkdir(0o755, parents=True)
            except (WriterError, FileExistsError):
                raise BagExists(f"{self.folder} exists already and is not written over; name another") from None
        if compression == "zstd":
            # MCAP compresses its chunks, which every reader undoes; of sqlite3 bags, rosbag2 compresses each message.
            self._writer.set_compression(CompressionMode.STORAGE if self._is_mcap else CompressionMode.MESSAGE, CompressionFormat.ZSTD)
        try:
            self._open()
        except SourceError:
            self._writer.abort()
            self._let_go()
            with suppress(SourceError):
                delete_bag(self.folder)
            raise

    def _open(self) -> None:
        """Begin the file, in a folder that is this writer's own."""
        with self._told():
            self._held = hold(self.folder)
            self._writer.open()
            self._storage: Any = self._writer.storage
            if not self._is_mcap:
                self._storage.conn.execute("PRAGMA synchronous = OFF")  # as rosbag2 does; its journal is enough against kill -9
        self.file = Path(self._storage.path)
        self.size = 0
        self.flush()

    def add(self, topic: Topic, definition: tuple[str, str] | None = None) -> None:
        """Make a topic known. definition: its type's text and hash, where they are known from elsewhere."""
        if topic.name not in self._connections:
            text, digest = definition or definition_of(topic.type)
            with self._told():
                self._connections[topic.name] = self._writer.add_connection(
                    topic.name, topic.type, msgdef=text, rihs01=digest, offered_qos_profiles=[rosbags_qos(qos) for qos in topic.qos]
                )

    def write(self, topic: str, stamp_ns: int, data: bytes | memoryview) -> None:
        """Append a message, serialised as CDR."""
        if topic not in self._connections:
            raise SourceError(f"topic {topic} was not added to bag {self.folder}; it has {sorted(self._connections)}")
        self._check()
        with self._told():
            self._writer.write(self._connections[topic], stamp_ns, data)
            self.size = self._storage.size if self._is_mcap else self.size + len(data)

    def flush(self) -> None:
        """Hand over to the kernel what was written; it then survives kill -9."""
        self._check()
        with self._told():
            self._storage.flush() if self._is_mcap else self._storage.conn.commit()
            if not self.file.exists():  # writing would go on for ever, into a file without a name
                raise FileNotFoundError(2, "it was removed or moved", str(self.file))
            self.size = self.file.stat().st_size
        self._flushed = Flushed(dict(self._writer.counts), self._writer.min_timestamp, self._writer.max_timestamp)

    def close(self) -> None:
        """End the bag with its index and metadata.yaml; after a failure, where it was last flushed. Idempotent."""
        if self._closed:
            return
        lost: SourceError | None = None
        try:
            if not self._failed:
                try:
                    self.flush()
                except SourceError as error:
                    lost = error
                else:
                    with suppress(SourceError), self._told():
                        self._writer.close()
            if self._failed:
                with self._told():
                    self._end_short()
        finally:
            self._closed = True
            self._storage.abort() if self._is_mcap else self._storage.conn.close()
            self._let_go()
        if lost:
            raise CutShort(str(lost))

    def _let_go(self) -> None:
        held, self._held = self._held, -1
        if held >= 0:
            os.close(held)

    def _check(self) -> None:
        """Behind half a record nothing may follow."""
        if self._failed or self._closed:
            raise SourceError(f"bag {self.folder} was {'closed' if self._closed else 'cut short by a failure'}; begin another")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tells what the disk says as lix does, and remembers that the file's end is not to be trusted."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            self._failed = True
            reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
            raise SourceError(f"cannot write bag {self.folder}: {reason}") from None

    def _end_short(self) -> None:
        """Give up what was not flushed, and end the bag behind the rest: that makes some room on a full disk."""
        writer, flushed = self._writer, self._flushed
        if not self.file.exists():
            raise FileNotFoundError(2, "it was removed or moved", str(self.file))
        if writer.storage is None:
            raise OSError(28, "its file is whole, but there was no room for metadata.yaml")
        self._storage.rollback() if self._is_mcap else self._storage.conn.rollback()
        writer.counts.update({connection.id: flushed.counts.get(connection.id, 0) for connection in writer.connections})
        writer.min_timestamp, writer.max_timestamp = flushed.start, flushed.end
        writer.close()


def metadata_version() -> int:
    """The newest that rosbag2 reads here. Humble and Iron fail on the QoS of version 9, no longer a text (ros2/rosbag2#2013)."""
    return 8 if os.environ.get("ROS_DISTRO") in ("humble", "iron") else 9


def rosbags_qos(qos: Qos) -> Any:
    """The same in rosbags' words, what it leaves open being the default, as rosbag2 notes it: no deadline, no end of life."""
    from rosbags.interfaces import Qos as Profile
    from rosbags.interfaces import QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    for_ever = QosTime(9223372036, 854775807)
    return Profile(
        QosHistory[qos.history.upper()],
        qos.depth,
        QosReliability[qos.reliability.upper()],
        QosDurability[qos.durability.upper()],
        for_ever,
        for_ever,
        QosLiveliness.AUTOMATIC,
        for_ever,
        False,
    )


@lru_cache(maxsize=1)
def storage_writer() -> Any:
    """The Writer of rosbags, with lix's own MCAP files, which `open` begins in a folder that is there. Importing rosbags takes a while."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    from lix_core.bags.mcap import McapStorage

    class StorageWriter(Writer):
        STORAGE_PLUGINS = {**Writer.STORAGE_PLUGINS, StoragePlugin.MCAP: McapStorage}

        def open(self) -> None:
            self.storage = self.STORAGE_PLUGINS[self.storage_plugin](UriPath(self.path), self.compression_mode)

    return StorageWriter


@lru_cache(maxsize=1)
def known_types() -> Any:
    """The types of ROS itself, as rosbags knows them. Building it takes 0.2 s."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.LATEST)


def definition_of(kind: str) -> tuple[str, str]:
    """The text of a message type with all that it consists of, and its hash (REP 2011); ("", NO_HASH) for a type nobody knows."""
    from rosbags.typesys import Stores, TypesysError, get_typestore

    store = get_typestore(Stores.EMPTY)
    try:
        store.register(types_in(kind))
        return store.generate_msgdef(kind, ros_version=2)[0], store.hash_rihs01(kind)
    except (SourceError, TypesysError, KeyError):
        return "", NO_HASH


def types_in(kind: str) -> dict[str, Any]:
    """Definitions of a type and of all in it: of the ROS installation, in which they may be others (Humble's Range lacks a field), or else
    rosbags' own. Raises SourceError for a type that neither has."""
    found: dict[str, Any] = {}
    waiting = [kind]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        definition = installed_type(name) or known_types().fielddefs.get(name)
        if definition is None:
            raise SourceError(f"type {name} is not known, and not installed: no {name}.msg below share/ of AMENT_PREFIX_PATH")
        found[name] = definition
        waiting += _parts_of(definition)
    return found


def installed_type(name: str) -> Any | None:
    """Definition of a type by its .msg file in the ROS installation; None where there is none."""
    from rosbags.typesys import get_types_from_msg

    files = [Path(root, "share", f"{name}.msg") for root in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if root]
    file = next((file for file in files if file.is_file()), None)
    return get_types_from_msg(file.read_text(), name)[name] if file else None


def _parts_of(definition: Any) -> Iterator[str]:
    """Names of the message types in a field definition of rosbags, which nests tuples for sequences and arrays."""
    from rosbags.interfaces import Nodetype

    _, fields = definition
    for _, (node, inner) in fields:
        while node in (Nodetype.ARRAY, Nodetype.SEQUENCE):
            node, inner = inner[0]
        if node == Nodetype.NAME:
            yield inner
