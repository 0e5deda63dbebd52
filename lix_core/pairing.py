"""Pairing of the frames of several sensors by their nearest stamps. No ROS in here."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Mapping, Sequence, TypeVar

import numpy as np

from lix_core.errors import GeometryError

T = TypeVar("T")
NS = 1_000_000_000
"""Nanoseconds of a second."""
JUMP_NS = NS
"""A stamp this much older than the newest of its stream comes from a clock that was set back (a bag that starts again), not late."""
RECENT, REMEMBERED = 10, 100
"""Stamps of a stream whose shortest interval tells how soon the next may come, and how many are remembered: a second of 100 Hz, so that
those that are nearest to a sensor which comes late are among them."""
WAITING = 60
"""Items of a stream that wait for a partner by default: two seconds of a camera of 30 Hz, as stereo of large images takes a good part of
one."""
WAITING_BYTES = 256_000_000
"""What the waiting items of a stream may hold together: 41 images of 1920x1080, 10 of 3840x2160."""
WINDOW, ENOUGH = 100, 10
"""Items of a stream over which shares and typical differences are taken, and how few say nothing of shares."""
LAG_S = 0.5
"""A lag of so much is told, be it a clock that is wrong or a slow sensor: transport takes less [s]."""
NOBODY, OPEN = -1, -2
"""In the place of a partner: there will be none; it is not decided yet."""


@dataclass
class Stream(Generic[T]):
    """One sensor's side of a Pairer; stamps are corrected for its offset [ns].

    interval: what is taken for the time between two stamps until two have come [ns]. room: items that may wait. waiting, items, sizes:
    stamps in ascending order, what came with them and its bytes, until their fate is decided. stamps: the last that came. decided: stamp
    of the last one whose fate is. outcomes: whether each of the last decided items found its partners. differences: from stamps of the
    first stream to the nearest of this one [ns]. lags: how much older this one's last stamp was than the first stream's whenever one came
    after the other [ns]. after_first: whether of these two streams the first was the last to come.
    """

    offset: int
    interval: int
    room: int
    waiting: list[int] = field(default_factory=list)
    items: list[T] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    stamps: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    decided: int | None = None
    unpaired: int = 0
    outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    differences: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    lags: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    after_first: bool = False

    def insert(self, stamp: int, item: T, size: int) -> bool:
        """Put an item among those that wait; False where its stamp is there already, or its time is over."""
        place = bisect_left(self.waiting, stamp)
        if (self.decided is not None and stamp <= self.decided) or self.waiting[place : place + 1] == [stamp]:
            self._lose(1)
            return False
        self.waiting.insert(place, stamp)
        self.items.insert(place, item)
        self.sizes.insert(place, size)
        self.stamps.append(stamp)
        return True

    def take(self, place: int) -> T:
        """The waiting item at `place`; those before it have missed their partners."""
        item = self.items[place]
        self._lose(place)
        self._forget(place + 1)
        self.outcomes.append(True)
        return item

    def drop(self, count: int) -> None:
        """The first `count` waiting items stay without a partner."""
        if count:
            self._lose(count)
            self._forget(count)

    def clear(self) -> None:
        """Begin anew after a jump of the clock; what waits stays without a partner."""
        self.drop(len(self.waiting))
        self.stamps.clear()
        self.lags.clear()
        self.decided = None

    @property
    def surplus(self) -> int:
        """How many of the oldest waiting items there is no room for. The youngest may always wait."""
        count, held = max(0, len(self.waiting) - self.room), sum(self.sizes)
        held -= sum(self.sizes[:count])
        while held > WAITING_BYTES and count < len(self.waiting) - 1:
            held, count = held - self.sizes[count], count + 1
        return count

    @property
    def newest(self) -> int | None:
        return max(self.stamps) if self.stamps else None

    @property
    def soonest(self) -> int | None:
        """The earliest stamp that the next item may have, if the stream keeps its shortest interval."""
        stamps = sorted(self.stamps)[-RECENT:]
        return stamps[-1] + min((b - a for a, b in zip(stamps, stamps[1:])), default=self.interval) if stamps else None

    def _lose(self, count: int) -> None:
        self.unpaired += count
        self.outcomes.extend([False] * count)

    def _forget(self, count: int) -> None:
        self.decided = self.waiting[count - 1]
        del self.waiting[:count], self.items[:count], self.sizes[:count]


class Pairer(Generic[T]):
    """Brings together the items of two or more streams whose stamps are nearest to each other.

    An item of the first stream goes with the item of each other stream whose stamp is nearest and at most `slop` away, unless that one
    is nearer to another item of the first. Each item is used once. A set is given out as soon as no item can still come that would
    fit better: where stamps are equal or the other stream is later, at once; otherwise it relies on the other stream's keeping its
    shortest interval of late. An item is dropped, and counted, as soon as its partner cannot come any more (streams come in order
    of their stamps), or when as many younger ones wait as its stream has room for, or with them WAITING_BYTES. Nothing ever waits by
    the clock.

    Single items out of order are sorted in while they wait; repeated stamps, and those older than what was decided, are dropped. A
    stamp more than a second back is a clock set back: all begins anew, and `restarts` counts it.
    """

    def __init__(
        self, streams: Sequence[str], slop: float, offsets: Mapping[str, float] | None = None, rooms: Mapping[str, int] | None = None
    ):
        """
        Args:
            streams: names, the first being the one that the others are paired with.
            slop: largest difference between the stamps of a pair [s].
            offsets: by how much a stream's stamps are late [s]; it is taken off them. 0 for streams left out.
            rooms: items of a stream that may wait; WAITING for streams left out.

        Raises:
            GeometryError: fewer than two streams, a negative slop, no room, or an offset or room of an unknown stream.
        """
        offsets, rooms = dict(offsets or {}), dict(rooms or {})
        if len(set(streams)) < 2 or len(set(streams)) != len(streams):
            raise GeometryError(f"pairing needs two or more streams of different names, got {list(streams)}")
        if slop < 0 or min(rooms.values(), default=1) < 1 or not {*offsets, *rooms} <= set(streams):
            raise GeometryError(
                f"slop must be 0 or more, rooms 1 or more, offsets and rooms of {list(streams)}; got {slop}, {rooms}, {offsets}"
            )
        self.slop, self.paired, self.restarts = slop, 0, 0
        self._slop = round(slop * NS)
        self.streams = {name: Stream[T](round(offsets.get(name, 0.0) * NS), 2 * self._slop, rooms.get(name, WAITING)) for name in streams}
        self._first, *self._others = self.streams.values()

    def add(self, stream: str, stamp: int, item: T, size: int = 0) -> list[tuple[T, ...]]:
        """Take an item with its stamp [ns] and its size [bytes]; the sets that are decided now, oldest first, items in the order of the
        streams."""
        side = self.streams[stream]
        stamp -= side.offset
        if side.newest is not None and stamp < side.newest - JUMP_NS:
            self.restarts += 1
            for each in self.streams.values():
                each.clear()
        if not side.insert(stamp, item, size):
            return []
        self._note_lags(side)
        sets = self._decide()
        for _ in range(self._first.surplus):
            self._drop_oldest()
        for other in self._others:
            other.drop(other.surplus)
        return sets

    def share(self, stream: str) -> float | None:
        """Share of a stream's last items that found their partners, 0..1; None until some ten are decided. A sensor that is faster than
        another has items without a partner by nature."""
        outcomes = self.streams[stream].outcomes
        return sum(outcomes) / len(outcomes) if len(outcomes) >= ENOUGH else None

    def difference(self, stream: str) -> float | None:
        """How much later the nearest stamp of `stream` typically is than one of the first stream, after its offset: median [s]."""
        differences = self.streams[stream].differences
        return float(np.median(differences)) / NS if differences else None

    def lag(self, stream: str) -> float | None:
        """How much later after its stamp an item of `stream` comes than one of the first stream, after its offset, at the least [s]; None
        until some ten have come.

        Stamps of a clock that is wrong by seconds find partners all the same where a sensor is fast; this tells them, and sensors that
        are slow. It compares stamps of items that come one after the other, so it holds for a bag at whatever speed.
        """
        lags = self.streams[stream].lags
        if len(lags) < ENOUGH:
            return None
        # Turn by turn too small and too large by the time between the two; what either leaves open is no lag.
        least, most = np.percentile(lags, (25, 75))
        return float(max(least, 0) + min(most, 0)) / NS

    def strange_lag(self, stream: str) -> float:
        """The lag where transport does not explain it: either a clock is off or a sensor is slow; else 0, as where stamps that are paired
        are equal: these are of one clock, and a sensor is slow [s]."""
        lag = self.lag(stream)
        return 0.0 if lag is None or abs(lag) < LAG_S or self.difference(stream) == 0 else lag

    def _decide(self) -> list[tuple[T, ...]]:
        sets = []
        while self._first.waiting:
            places = [self._partner(other) for other in self._others]
            if NOBODY in places:
                self._drop_oldest()
            elif OPEN in places:
                break
            else:
                self._note_differences()
                sets.append((self._first.take(0), *(other.take(place) for other, place in zip(self._others, places))))
        self.paired += len(sets)
        self._drop_hopeless()
        return sets

    def _partner(self, other: Stream[T]) -> int:
        """Where the partner of the oldest waiting item of the first stream waits in `other`, or NOBODY, or OPEN."""
        stamp, *later = self._first.waiting[:2]
        # What is nearer to the next item of the first stream belongs to that one.
        reach = min(stamp + self._slop, (stamp + later[0]) // 2) if later else stamp + self._slop
        complete = other.newest is not None and other.newest >= reach
        within = [place for place, s in enumerate(other.waiting) if stamp - self._slop <= s <= reach]
        if not within:
            return NOBODY if complete else OPEN
        place = min(within, key=lambda p: abs(other.waiting[p] - stamp))
        partner = other.waiting[place]
        distance = abs(partner - stamp)
        nearest_there = complete or other.soonest >= stamp + distance
        nearest_here = bool(later) or self._first.soonest >= partner + distance
        return place if nearest_there and nearest_here else OPEN

    def _drop_hopeless(self) -> None:
        """Items of the other streams that are too old for any item of the first that waits or will come."""
        oldest = self._first.waiting[0] if self._first.waiting else self._first.newest
        if oldest is not None:
            for other in self._others:
                other.drop(bisect_left(other.waiting, oldest - self._slop))

    def _drop_oldest(self) -> None:
        self._note_differences()
        self._first.drop(1)

    def _note_lags(self, side: Stream[T]) -> None:
        """Remember by how much the stamps differ that come one after the other in two streams; of a run in one stream its end alone, so
        that a stream which fell silent says nothing."""
        for other in self._others if side is self._first else (side,):
            if self._first.stamps and other.stamps and other.after_first == (side is other):
                other.lags.append(self._first.stamps[-1] - other.stamps[-1])
            other.after_first = side is self._first

    def _note_differences(self) -> None:
        """Remember how far from the oldest item of the first stream, whose fate is being decided, those are to which it is the nearest."""
        stamp = self._first.waiting[0]
        for other in self._others:
            if other.stamps:
                nearest = min(other.stamps, key=lambda s: abs(s - stamp))
                # A faster first stream has items that are nearest to none; they would blur the median.
                if min(abs(nearest - s) for s in self._first.stamps) >= abs(nearest - stamp):
                    other.differences.append(nearest - stamp)
