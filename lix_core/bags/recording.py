"""A recording that never ends by itself: bag after bag, within the space that it is given.

Callbacks hand their messages over and go on; one thread writes them. What goes wrong with the disk ends a bag, not the recording.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lix_core.bags.space import OwnBag, delete_bag, free_space, mount_point, own_bags
from lix_core.bags.writer import COMPRESSIONS, STORAGES, BagExists, BagWriter, CutShort, RosbagsWriter, Topic, known_types, storage_writer
from lix_core.errors import DataError, SourceError, explain
from lix_core.files import make_folder
from lix_core.pairing import JUMP_NS, NS

OpenWriter = Callable[[Path, str, str], BagWriter]
"""Opens a bag: its folder, its storage, its compression. Raises BagExists where there is something already."""
Report = Callable[[str, str], None]
"""Is told what happens: "info", "warning" or "error", and a sentence. Called in the recording's thread."""
LEAP_NS = 600 * NS
"""A stamp this much further on than time has passed comes from a clock that was set forward, as NTP does where a computer booted without
one; not from a simulation that runs fast."""
TOLD_AGAIN = 5.0
"""Time between two reports of lost messages at least [s]."""
LATCHED_BYTES, LATCHED_MOST = 1_000_000, 100
"""What is remembered of a latched topic beyond what its known publishers would repeat: another publisher may have come since."""
SPACE_TO_GO_ON = 1.1
"""How many times the disk's floor must be free before a recording that had stopped there goes on."""
SPLITS_IN_QUOTA = 4
"""Where the oldest bags are deleted, no bag becomes larger than this part of the quota, or there would be none to delete."""


@dataclass(frozen=True)
class RecordingSettings:
    """How to record; 0 switches a limit off.

    prefix: with which the names of bags begin. storage: "mcap" or "sqlite3". compression: "none" or "zstd". split_size: of a bag [bytes].
    split_duration: of a bag [s]. floor: free space at which recording stops [bytes]. quota: what all bags of this prefix in the folder
    may take [bytes]; `delete_oldest` makes room by deleting the oldest of them, otherwise recording stops. queue: what may wait for the
    disk [bytes]. flush: how often what was written is made safe against kill -9 [s]. retry: pause after a failure of the disk [s]. late: by
    how much a message may be older than one handed over before it [s]; beyond a second more, the clock was set back.
    """

    prefix: str = "lix"
    storage: str = "mcap"
    compression: str = "none"
    split_size: int = 4_000_000_000
    split_duration: float = 0.0
    floor: int = 2_000_000_000
    quota: int = 0
    delete_oldest: bool = False
    queue: int = 256_000_000
    flush: float = 0.5
    retry: float = 5.0
    late: float = 0.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.prefix):
            raise DataError(f"prefix {self.prefix!r} cannot begin the name of a bag; use letters, digits, '_', '.' and '-'")
        if self.storage not in STORAGES or self.compression not in COMPRESSIONS:
            raise DataError(f"storage is one of {STORAGES}, compression of {COMPRESSIONS}; got {self.storage}, {self.compression}")
        negative = {n: v for n, v in vars(self).items() if isinstance(v, (int, float)) and v < 0}
        if negative or not self.queue or not self.flush:
            raise DataError(f"sizes and times must not be negative, queue and flush must be positive; got {negative or vars(self)}")
        if self.delete_oldest and not self.quota:
            raise DataError("delete_oldest deletes what exceeds the quota: set a quota")

    @property
    def largest_bag(self) -> int:
        """Size at which a bag is ended [bytes]; 0: never."""
        sizes = [self.split_size, self.quota // SPLITS_IN_QUOTA if self.delete_oldest else 0]
        return min((size for size in sizes if size), default=0)


@dataclass(frozen=True)
class RecordingStatistics:
    """state: "waiting" for a first message, "recording", "paused", "stopped" by the disk, for the `reason` given, or "closed".
    bag: that is being written. bags: how many were begun. size: of the bag, disk_free [bytes]. messages, bytes: written. lost: came, but
    could not be recorded. queued: waits for the disk [bytes]."""

    state: str
    reason: str
    bag: Path | None
    bags: int
    size: int
    messages: int
    bytes: int
    lost: int
    queued: int
    disk_free: int


@dataclass(frozen=True)
class Item:
    """What waits for the thread: a message."""

    topic: str
    stamp: int
    data: bytes | memoryview


class Recording:
    """Writes messages into bags below a folder, named <prefix>_<date>_<time>, and the same with _1, _2, ... when one is full.

    Each is a whole bag, and begins with what was latched. A bag is begun with the first message, so there are no empty ones. Methods may
    be called from several threads and never wait for the disk, except `close`.

    Raises:
        SourceError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        settings: RecordingSettings,
        open_writer: OpenWriter = RosbagsWriter,
        clock: Callable[[], float] = time.monotonic,
        report: Report = lambda level, text: None,
        wall_clock: Callable[[], float] = time.time,
    ):
        """clock: for durations [s]. wall_clock: for names [s since 1970]."""
        self.folder, self.settings = Path(folder), settings
        make_folder(self.folder)
        self._disk = mount_point(self.folder)
        """Where the disk of the folder is mounted. A folder that is made anew when it is gone would be on the system's disk."""
        self._open_writer, self._clock, self._tell, self._wall_clock = open_writer, clock, report, wall_clock
        self._changed = threading.Condition()
        # What both sides touch, under the condition's lock:
        self._topics: dict[str, Topic] = {}
        self._queue: deque[Item | None] = deque()
        self._queued = self._messages = self._bytes = self._lost = 0
        self._paused = self._closing = False
        self._unreported: Counter[str] = Counter()
        # What only the thread touches, others read:
        self._writer: BagWriter | None = None
        self._bag: Path | None = None
        self._bags = 0
        self._stem = ""
        self._number = 0
        self._bag_began = self._looked_at = clock()
        self._others = 0
        """Bytes of the other bags of this prefix."""
        self._safe = 0
        """Messages in the bag that a flush has made safe; the others by topic, and their bytes:"""
        self._unsafe: Counter[str] = Counter()
        self._unsafe_bytes = 0
        self._latched: dict[str, deque[bytes]] = {}
        self._newest, self._newest_at = 0, 0.0
        self._trouble = ""
        self._retry_at = self._told_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        self._thread.start()

    def add(self, topic: Topic) -> None:
        """Record a topic; again, where its publishers have changed: the next bag then notes what they offer. Raises DataError."""
        with self._changed:
            known = self._topics.get(topic.name)
            if known and known.type != topic.type:
                raise DataError(f"{topic.name} is recorded as {known.type} and cannot become {topic.type}; begin a new recording")
            self._topics[topic.name] = topic

    def write(self, topic: str, stamp_ns: int, data: bytes | memoryview) -> bool:
        """Hand a message over, recorded at stamp_ns [ns]. False where it is not recorded: paused, closed, or the queue is full.

        Latched messages are recorded during a pause too: they tell what others mean. Raises DataError for a topic that was not added.
        """
        with self._changed:
            if topic not in self._topics:
                raise DataError(f"topic {topic} was not added to the recording; it has {sorted(self._topics)}")
            if self._closing or (self._paused and not self._topics[topic].latched):
                return False
            if self._queued + len(data) > self.settings.queue:
                self._lose(topic, 1)
                return False
            self._queue.append(Item(topic, stamp_ns, data))
            self._queued += len(data)
            self._changed.notify()
        return True

    def pause(self) -> None:
        """Record nothing until `resume`; the bag stays open."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    @property
    def paused(self) -> bool:
        return self._paused

    def split(self) -> None:
        """End the bag behind what was handed over until now; the next message begins a new one."""
        with self._changed:
            self._queue.append(None)
            self._changed.notify()

    def close(self) -> None:
        """Write what waits, end the bag, end the thread. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def statistics(self) -> RecordingStatistics:
        with self._changed:
            messages, size, lost, queued = self._messages, self._bytes, self._lost, self._queued
        writer, trouble = self._writer, self._trouble
        state = "paused" if self._paused else "stopped" if trouble else "recording" if writer else "waiting"
        return RecordingStatistics(
            state="closed" if self._closing else state,
            reason=trouble,
            bag=self._bag,
            bags=self._bags,
            size=writer.size if writer else 0,
            messages=messages,
            bytes=size,
            lost=lost,
            queued=queued,
            disk_free=free_space(self.folder),
        )

    def _lose(self, topic: str, count: int) -> None:
        """Note messages that are lost; the lock is held."""
        self._lost += count
        self._unreported[topic] += count

    # From here on, all is done by the thread.

    def _report(self, level: str, text: str) -> None:
        with suppress(Exception):  # whoever is told must not end the recording
            self._tell(level, text)

    def _run(self) -> None:
        if self._open_writer is RosbagsWriter:
            with suppress(Exception):  # both take a while, which is better now than when the first messages wait; a bag tells what fails
                storage_writer()
                known_types()
        closing = False
        while not closing:
            with self._changed:
                due = self._looked_at + self.settings.flush - self._clock()  # not later, or what waits for it is not safe in time
                self._changed.wait_for(lambda: self._queue or self._closing, timeout=max(due, 0.0))
                items, self._queue = self._queue, deque()
                closing = self._closing
            for item in items:
                self._take(item)
                self._outlive(self._look_after)
            self._outlive(self._look_after)
        self._outlive(self._end)
        self._tell_losses()

    def _outlive(self, step: Callable[..., bool | None], *given: Any) -> bool | None:
        """What a step returns. Whatever the disk, the system or a library says to it ends a bag, never the recording."""
        try:
            return step(*given)
        except Exception as error:
            self._fail(error)
            return None

    def _take(self, item: Item | None) -> None:
        if item is None:
            self._outlive(self._end)
            return
        with self._changed:
            topic = self._topics[item.topic]
        recorded = self._outlive(self._record, topic, item)
        with self._changed:
            self._queued -= len(item.data)
            if not recorded:
                self._lose(item.topic, 1)

    def _look_after(self) -> None:
        """Every so often: make safe what was written, and see whether there is room for more."""
        now = self._clock()
        if now - self._looked_at < self.settings.flush:
            return
        self._looked_at = now
        if self._writer:
            self._writer.flush()
            self._safe += self._unsafe.total()
            self._unsafe.clear()
            self._unsafe_bytes = 0
            if trouble := self._lack_of_room():
                self._end()
                self._stop(trouble)
        if now - self._told_at >= TOLD_AGAIN and not self._trouble:
            self._tell_losses()

    def _record(self, topic: Topic, item: Item) -> bool:
        """Write a message; False where there is no bag for it."""
        if topic.latched:
            self._remember(topic, bytes(item.data))
        if item.stamp < self._newest - JUMP_NS - round(NS * self.settings.late):
            back = (self._newest - item.stamp) / NS
            self._report("warning", f"the clock went back by {back:.1f} s; what comes is recorded as it is, in the same bag")
            self._newest = item.stamp
        leap = item.stamp - self._newest - round(NS * (self._clock() - self._newest_at))
        if self._newest and leap > LEAP_NS:
            self._report("warning", f"the clock went forward by {leap / NS:.0f} s; a new bag is begun, for one would play that long")
            self._end()
            self._stem, self._number = "", 0  # its name is of the time that it is now
        if item.stamp >= self._newest:
            self._newest, self._newest_at = item.stamp, self._clock()
        if self._writer and self._is_full():
            self._end()
        if self._writer is None:
            with self._changed:
                # Stamp 0 is before the first /clock; a bag that began then would play for half a century.
                waits = topic.latched and (not item.stamp or not all(t.latched for t in self._topics.values()))
            if waits:
                return True  # the next bag begins with it
            if not self._begin(item.stamp):
                return topic.latched
            if topic.latched:
                return True  # the bag began with it
        self._append(topic, item.stamp, item.data)
        return True

    def _append(self, topic: Topic, stamp: int, data: bytes | memoryview) -> None:
        assert self._writer
        self._writer.add(topic)
        self._writer.write(topic.name, stamp, data)
        self._unsafe[topic.name] += 1
        self._unsafe_bytes += len(data)
        with self._changed:
            self._messages += 1
            self._bytes += len(data)

    def _remember(self, topic: Topic, data: bytes) -> None:
        """Keep a latched message for the bags to come: as many as its publishers would repeat, and a few more of small ones."""
        repeated = sum(qos.depth for qos in topic.qos if qos.durability == "transient_local")
        kept = self._latched.setdefault(topic.name, deque())
        if data in kept:
            kept.remove(data)
        kept.append(data)
        while len(kept) > max(repeated, 1) and (len(kept) > LATCHED_MOST or sum(map(len, kept)) > LATCHED_BYTES):
            kept.popleft()

    def _is_full(self) -> bool:
        assert self._writer
        largest, longest = self.settings.largest_bag, self.settings.split_duration
        return bool(largest and self._writer.size >= largest) or bool(longest and self._clock() - self._bag_began >= longest)

    def _begin(self, stamp: int) -> bool:
        """Begin a bag, with all that is latched; False where there is no room, or it is too soon to try again."""
        if self._clock() < self._retry_at:
            return False
        if not os.path.ismount(self._disk):
            self._stop(f"the disk of {self.folder} is not mounted any more: mount it at {self._disk} again")
            return False
        make_folder(self.folder)
        self._disk = mount_point(self.folder)
        if trouble := self._lack_of_room(anew=True):
            self._stop(trouble)
            return False
        self._bag, self._writer = self._open()
        self._bags += 1
        self._bag_began, self._safe = self._clock(), 0
        with self._changed:
            topics = list(self._topics.values())
        for topic in topics:
            self._writer.add(topic)
        for topic in topics:
            for data in self._latched.get(topic.name, ()):
                self._append(topic, stamp, data)
        self._report("info", f"{'records again' if self._trouble else 'records'} into {self._bag}")
        self._trouble = ""
        self._tell_losses()
        return True

    def _open(self) -> tuple[Path, BagWriter]:
        """A bag of the next name that is free; another recording may want the same at the same time."""
        if not self._stem:
            self._stem = f"{self.settings.prefix}_{time.strftime('%Y%m%d_%H%M%S', time.localtime(self._wall_clock()))}"
        while True:
            path = self.folder / (f"{self._stem}_{self._number}" if self._number else self._stem)
            try:
                return path, self._open_writer(path, self.settings.storage, self.settings.compression)
            except BagExists:
                self._number += 1

    def _end(self) -> None:
        """End the bag, if there is one."""
        writer, self._writer = self._writer, None
        bag, self._bag = self._bag, None
        if writer is None or bag is None:
            return
        self._number += 1
        try:
            writer.close()
        except CutShort as error:
            self._give_up_unsafe()
            self._report("error", f"{error}; the bag ends where it was last flushed")
        except Exception as error:
            self._give_up_unsafe()
            if os.path.exists(bag):  # unlike the path's own, it takes an error for an answer
                self._report("error", f"{bag} could not be ended: {explain(error)}; `lix bag repair {bag}` does it once there is room")
            elif not self._trouble:
                self._report("error", explain(error))
        messages = self._safe + self._unsafe.total()
        self._unsafe.clear()
        self._unsafe_bytes = 0
        if messages:
            self._report("info", f"ended {bag}: {messages} messages")
        else:
            with suppress(SourceError):
                delete_bag(bag)

    def _fail(self, error: Exception) -> None:
        """The disk refused something: end the bag where it is safe, and try again later."""
        self._give_up_unsafe()
        self._stop(explain(error))
        with suppress(Exception):  # told already
            self._end()

    def _give_up_unsafe(self) -> None:
        """What was written since the last flush is not in the bag."""
        with self._changed:
            self._messages -= self._unsafe.total()
            self._bytes -= self._unsafe_bytes
            for topic, count in self._unsafe.items():
                self._lose(topic, count)
        self._unsafe.clear()
        self._unsafe_bytes = 0

    def _stop(self, trouble: str) -> None:
        """Record nothing for a while. Said once, however often it is tried again."""
        if not self._trouble:
            again = f"recording is tried again every {self.settings.retry:g} s, in a new bag"
            self._report("error", f"{trouble}; what was recorded before is kept; {again}")
        self._trouble = trouble
        self._retry_at = self._clock() + self.settings.retry

    def _tell_losses(self) -> None:
        with self._changed:
            lost, self._unreported = self._unreported, Counter()
        if lost:
            self._told_at = self._clock()
            topics = ", ".join(f"{topic} {count}" for topic, count in lost.most_common())
            self._report("warning", f"{lost.total()} messages are lost, because the disk was too slow or full: {topics}")

    def _lack_of_room(self, anew: bool = False) -> str:
        """What keeps from recording, having deleted old bags if that is wanted; empty where nothing does."""
        settings = self.settings
        floor = settings.floor * (SPACE_TO_GO_ON if self._trouble else 1.0)
        free = free_space(self.folder)
        if free < floor:
            return f"the disk of {self.folder} has {megabytes(free)} free, and recording needs {megabytes(floor)} (floor): make room"
        if not settings.quota:
            return ""
        size = self._writer.size if self._writer else 0
        if anew or self._others + size > settings.quota:
            bags = [bag for bag in own_bags(self.folder, settings.prefix) if bag.path != self._bag or not self._writer]
            self._others = sum(bag.size for bag in bags)
            if settings.delete_oldest:
                self._delete_oldest([bag for bag in bags if bag.deletable], size)
        if self._others + size <= settings.quota:
            return ""
        taken = f"the bags {settings.prefix}_* in {self.folder} take {megabytes(self._others + size)}"
        return f"{taken}, more than the quota of {megabytes(settings.quota)}: move some away, or let the oldest be deleted"

    def _delete_oldest(self, bags: list[OwnBag], size: int) -> None:
        for bag in bags:
            if self._others + size <= self.settings.quota:
                return
            try:
                delete_bag(bag.path)
            except SourceError as error:
                self._report("warning", str(error))
                continue
            self._others -= bag.size
            self._report("info", f"deleted {bag.path}, the oldest, for the quota of {megabytes(self.settings.quota)}")


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"
