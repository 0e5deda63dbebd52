"""Bags of ROS 1 and ROS 2, opened and decoded without ROS, through `rosbags`; and damaged ones, as far as they are whole.

Messages of the types in DECODED are read by the layout that ROS gives them, not by the definitions in the bag: these layouts have not
changed since ROS 2 Foxy, Humble's sqlite3 bags carry none, and a broken definition of some other type then spoils nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from lix_core.bags import salvage
from lix_core.bags.salvage import TopicInfo
from lix_core.camera import Camera
from lix_core.errors import DataError, ImageError, LixError, SourceError, first_line
from lix_core.files import UriPath, expanded
from lix_core.pairing import NS
from lix_core.pixels import read_compressed, read_pixels

T = TypeVar("T")
PART_GAP_S = 60.0
"""Longest time between the end of a part of a bag and the beginning of the next: of topics that are slow."""
BAG_SUFFIXES = (".mcap", ".db3", ".bag")
IMAGE_TYPE, COMPRESSED_TYPE, CAMERA_INFO_TYPE, CLOUD_TYPE = (
    f"sensor_msgs/msg/{t}" for t in ("Image", "CompressedImage", "CameraInfo", "PointCloud2")
)
TEXT_TYPE, TF_TYPE = "std_msgs/msg/String", "tf2_msgs/msg/TFMessage"
DECODED = (IMAGE_TYPE, COMPRESSED_TYPE, CAMERA_INFO_TYPE, CLOUD_TYPE, TEXT_TYPE, TF_TYPE)


class DamagedBag(SourceError):
    """A bag, or a part of it, cannot be read by the rules; `whole_of` may still read some."""


class Storage(Protocol):
    """Where messages come from: `rosbags`, or lix_core.bags.salvage. start, end: stamps of the first and last message [ns]."""

    topics: list[TopicInfo]
    start: int
    end: int
    faults: list[str]
    is_ros2: bool

    def messages(self, topics: Collection[str], start: int | None, stop: int | None) -> Iterator[tuple[str, str, int, bytes]]: ...

    def close(self) -> None: ...


class Bag:
    """An open bag, for use with `with`.

    name: its folder's, or its file's without suffix. start, end: stamps at which its first and last message were recorded [ns]; 0 where it
    is empty. count: messages. faults: what of it could not be read, in words; empty unless it was salvaged.

    Raises:
        DamagedBag: it cannot be read; also while messages are read.
    """

    def __init__(self, path: str | Path, salvaged: bool = False):
        """salvaged: read what is whole, by scanning the files and without their indexes."""
        self.path = home_of(path)
        self.name = self.path.name if self.path.is_dir() else self.path.stem
        self.salvaged = salvaged
        try:
            self._storage: Storage = salvage.Salvage(self.path) if salvaged else RosbagsStorage(self.path)
        except LixError:
            raise
        except Exception as error:  # rosbags' storage readers have their own exceptions for damaged files
            raise damaged(self.path, error) from None
        self.topics = self._storage.topics
        self.count = sum(topic.count for topic in self.topics)
        self.start, self.end = (self._storage.start, self._storage.end) if self.count else (0, 0)
        self.faults = self._storage.faults

    def __enter__(self) -> "Bag":
        return self

    def __exit__(self, *_: object) -> None:
        self._storage.close()

    def messages(
        self, topics: Collection[str] = (), start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, recorded [ns], raw) of some topics, or all; recorded at `start` or later and before `stop`.

        In order of time, but for salvaged bags. Raises DamagedBag where the damage begins.
        """
        try:
            yield from self._storage.messages(set(topics), start, stop)
        except Exception as error:
            raise damaged(self.path, error) from None

    def first(self, topic: str) -> tuple[str, int, bytes] | None:
        """(type, recorded [ns], raw) of a topic's first message; None where it has none."""
        for _, kind, recorded, raw in self.messages([topic]):
            return kind, recorded, raw
        return None

    def decode(self, raw: bytes, kind: str) -> Any:
        """The message, with the fields that ROS gives it. Raises SourceError."""
        return decode(raw, kind, self._storage.is_ros2)

    @property
    def is_ros2(self) -> bool:
        return self._storage.is_ros2


class RosbagsStorage:
    """A bag by the rules, through rosbags: folders with metadata.yaml, single .mcap, .db3 and ROS 1 .bag files."""

    def __init__(self, path: Path):
        from rosbags import rosbag1, rosbag2

        if left := [journal.name for file in salvage.files_of(path) for journal in salvage.journals_of(file)]:
            raise DamagedBag(f"{path} was not closed, as {', '.join(left)} beside it says: `lix bag repair` takes in what is there too")
        self.faults: list[str] = []
        self.is_ros2 = path.suffix != ".bag"
        self._reader = rosbag2.Reader(UriPath(path)) if self.is_ros2 else rosbag1.Reader(path)
        self._reader.open()
        # The files themselves: metadata.yaml may be wrong, and of a folder, rosbags passes over topics whose QoS is another there.
        self._parts = getattr(self._reader.storage, "storages", [self._reader.storage]) if self.is_ros2 else [self._reader]
        told, found = counts_of(self._reader.connections), counts_of(c for part in self._parts for c in part.connections)
        if gone := [f"{topic} ({kind})" for (topic, kind), count in told.items() if count and (topic, kind) not in found]:
            raise DamagedBag(f"{path}: its files have none of the topics {', '.join(gone)} that its metadata.yaml tells of")
        if beside := files_beside(path, self._parts) if self.is_ros2 else []:
            names = ", ".join(beside)
            self.faults.append(f"{names} lies beside metadata.yaml, which does not name it, and is not read: `lix bag repair` takes it in")
        latched = {(c.topic, c.msgtype) for c in self._reader.connections if is_latched(c)}
        # Not every writer counts the messages of each topic in its files.
        self.topics = [TopicInfo(*key, count or told.get(key, 0), key in latched) for key, count in (told | found).items()]
        extents = [part.metadata if self.is_ros2 else part for part in self._parts]
        filled = [extent for extent in extents if extent.message_count] or [self._reader]
        self.start = min(extent.start_time for extent in filled)
        self.end = max(extent.end_time for extent in filled) - 1  # rosbags' end is behind the last message

    def messages(self, topics: Collection[str], start: int | None, stop: int | None) -> Iterator[tuple[str, str, int, bytes]]:
        for part in self._parts:
            chosen = [c for c in part.connections if not topics or c.topic in topics]
            for connection, recorded, raw in part.messages(chosen, start, stop) if chosen else ():
                if (whole := salvage.decompressed(raw) if self.is_ros2 else raw) is None:
                    raise ValueError(f"a message of {connection.topic} cannot be decompressed")
                yield connection.topic, connection.msgtype, recorded, bytes(whole)

    def close(self) -> None:
        self._reader.close()


def counts_of(connections: Iterable[Any]) -> dict[tuple[str, str], int]:
    """(topic, type) -> messages, of connections of rosbags."""
    counts: Counter[tuple[str, str]] = Counter()
    for c in connections:
        counts[c.topic, c.msgtype] += c.msgcount
    return dict(counts)


def files_beside(path: Path, parts: Sequence[Any]) -> list[str]:
    """Names of data files in a bag's folder that are none of its parts."""
    named = {os.path.basename(os.fspath(part.path)) for part in parts}
    return [file.name for file in salvage.files_of(path) if file.name not in named and path.is_dir()]


def is_latched(connection: Any) -> bool:
    """Whether a connection of rosbags offers what it has to those who come late."""
    profiles = getattr(connection.ext, "offered_qos_profiles", None)
    if profiles is not None:
        return any(profile.durability.name.lower() == "transient_local" for profile in profiles)
    return bool(getattr(connection.ext, "latching", 0))


def home_of(path: str | Path) -> Path:
    """What of a bag to open: its folder where it has metadata.yaml, also for the file in it. Raises SourceError where there is no bag."""
    path = expanded(path)
    try:
        if not path.exists():
            raise SourceError(f"no such bag: {path}")
        if path.suffix in (".mcap", ".db3") and names_file(path.parent, path.name):
            return path.parent
        if path.is_dir() and not (path / "metadata.yaml").exists() and not salvage.files_of(path):
            raise SourceError(f"{path} is no bag: neither metadata.yaml nor a .mcap or .db3 file is in it")
    except OSError as error:
        raise SourceError(f"bag {path} cannot be looked at: {error.strerror}") from None
    return path


def names_file(folder: Path, name: str) -> bool:
    """Whether a folder's metadata.yaml is there, and names a file, or cannot be read: a bag that is damaged has the files in its folder."""
    if not (folder / "metadata.yaml").exists():
        return False
    text = (folder / "metadata.yaml").read_text(errors="replace")
    return "relative_file_paths" not in text or name in text


def is_bag(path: Path) -> bool:
    """Whether a path looks like a bag: a file with a bag's suffix, a folder with metadata.yaml, or one with the files of a bag. What may
    not be looked at, as lost+found of a disk, is none."""
    try:
        if path.is_dir():
            return (path / "metadata.yaml").exists() or bool(salvage.files_of(path))
        return path.suffix in BAG_SUFFIXES and path.is_file()
    except OSError:
        return False


def bags_in(path: str | Path) -> list[Path]:
    """The bag at a path, or those in a folder of bags, by name. Raises SourceError where there is none, or it may not be looked at."""
    path = expanded(path)
    try:
        is_folder = path.is_dir() and not (path / "metadata.yaml").exists()
        entries = sorted(path.iterdir()) if is_folder else []
    except OSError as error:
        raise SourceError(f"{path} cannot be looked at: {error.strerror}") from None
    if is_folder:
        files = salvage.files_of(path)
        others = [p for p in entries if is_bag(p) and p not in files]
        # Files of one split bag share a stem but for a number; several bags beside each other are folders, or files of their own.
        together = one_bag(files) if len(files) > 1 else not others
        found = [*others, *([path] if files and together else files)]
        if not found:
            raise SourceError(f"{path} holds no bag: no folder with metadata.yaml, and no .mcap, .db3 or .bag file")
        return found
    return [home_of(path)]


def repaired_of(home: Path) -> Path:
    """Where `lix bag repair` puts the whole copy of a damaged bag, if it is not told another place."""
    return home.with_name(f"{home.stem if home.suffix in BAG_SUFFIXES and not home.is_dir() else home.name}_repaired")


def one_bag(files: Sequence[Path]) -> bool:
    """Whether files, in the order of their names, are the parts of one bag: named <stem>_0, <stem>_1, ..., and each begun where the one
    before ends, as far as the files tell; recordings of several days may be numbered too."""
    names = [file.stem.rpartition("_") for file in files]
    if len({stem for stem, _, _ in names}) > 1 or not all(number.isdecimal() for _, _, number in names):
        return False
    if any(int(after) - int(before) != 1 for (_, _, before), (_, _, after) in pairwise(names)):
        return False
    spans = [span_of(file) for file in files]
    return all(not before or not after or abs(after[0] - before[1]) <= PART_GAP_S * NS for before, after in pairwise(spans))


def span_of(file: Path) -> tuple[int, int] | None:
    """When the first and the last message of a file were recorded [ns]; None where it is damaged, or has none."""
    from rosbags.rosbag2 import Reader

    try:
        with Reader(UriPath(file)) as reader:
            return (reader.start_time, reader.end_time) if reader.message_count else None
    except Exception:  # whatever a damaged file makes rosbags raise
        return None


def whole_of(path: str | Path, use: Callable[[Bag], T]) -> T:
    """use(bag) with an open bag; where it turns out to be damaged, once more with what is whole of it.

    Raises:
        DamagedBag: nothing of it can be read.
    """
    try:
        with Bag(path) as bag:
            return use(bag)
    except DamagedBag as damage:
        with Bag(path, salvaged=True) as bag:
            if not bag.count:
                raise (DamagedBag(f"cannot read bag {bag.path}: {'; '.join(bag.faults)}") if bag.faults else damage) from None
            bag.faults.insert(0, str(damage))
            return use(bag)


def damaged(path: Path, error: Exception) -> DamagedBag:
    return DamagedBag(f"cannot read bag {path}; is it damaged? ({first_line(error)})")


@lru_cache(maxsize=2)
def typestore(is_ros2: bool) -> Any:
    """The layouts of ROS's own types; building them takes 0.2 s."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.LATEST if is_ros2 else Stores.ROS1_NOETIC)


def decode(raw: bytes, kind: str, is_ros2: bool = True) -> Any:
    """A message of one of the types DECODED. Raises SourceError where its bytes are not those of such a message."""
    store = typestore(is_ros2)
    try:
        return store.deserialize_cdr(raw, kind) if is_ros2 else store.deserialize_ros1(raw, kind)
    except Exception as error:  # struct, Unicode and rosbags' own errors, by where the damage is
        raise SourceError(f"a message of type {kind} cannot be deserialised; is the bag damaged? ({first_line(error)})") from None


def header_stamp(raw: bytes, is_ros2: bool = True) -> int | None:
    """The stamp [ns] in the header of a message that begins with one, without deserialising it; None where it is too short."""
    if len(raw) < 12:
        return None
    # After the four bytes of CDR's encapsulation, or of ROS 1's seq; CDR says in its second byte whether it is little-endian.
    order = "little" if not is_ros2 or raw[1] & 1 else "big"
    seconds = int.from_bytes(raw[4:8], order, signed=is_ros2)
    return seconds * 10**9 + int.from_bytes(raw[8:12], order)


def image_of(message: Any, kind: str, name: str = "image") -> tuple[np.ndarray, str]:
    """(H, W[, C]) pixels of an Image or CompressedImage, and their channel order. Raises ImageError."""
    if kind == COMPRESSED_TYPE:
        return read_compressed(message.data, name)
    return read_pixels(message.data, message.height, message.width, message.step, message.encoding, bool(message.is_bigendian))


def load_image(raw: bytes, kind: str, topic: str, is_ros2: bool = True) -> tuple[np.ndarray, str]:
    """As `image_of`, of a raw message. Raises ImageError."""
    try:
        message = decode(raw, kind, is_ros2)
    except SourceError as error:
        raise ImageError(f"{topic}: {error}") from None
    return image_of(message, kind, topic)


def camera_of(message: Any) -> Camera | None:
    """The calibration in a CameraInfo of ROS 1 or 2; None for what an uncalibrated camera publishes."""
    k, d, r, p = (getattr(message, n, None) if hasattr(message, n) else getattr(message, n.upper()) for n in "kdrp")
    try:
        return Camera(message.width, message.height, k, message.distortion_model, d, r, p)
    except DataError:
        return None
