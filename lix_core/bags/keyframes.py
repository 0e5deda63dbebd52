"""Which frames of a drive are worth keeping: those from which a student learns, each with the depth that belongs to it.

No ROS in here, no threads and no clock: all follows from stamps, so a bag gives the same keyframes as the drive it was recorded on.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from lix_core.errors import DataError
from lix_core.options import check_ranges, option
from lix_core.pairing import JUMP_NS, NS, Pairer

THUMBNAIL = (32, 24)
"""Width and height at which views are compared."""
LEAST_CONTRAST = 4.0
"""Standard deviation of gray values below which a view counts as having no contrast: noise in the dark is no change of view."""
ALWAYS = 2**63
"""A stamp that is later than all."""
OPINIONS = ("uncertainty", "disagreement")
RECENT, FEWEST = 20, 5
"""Keyframes over which the share that found a partner is taken, and how few say nothing of it."""
REMEMBERED = 200
"""Values of uncertainty that wait for an image that comes after them, at most."""


@dataclass(frozen=True)
class KeyframeSettings:
    """When an image is a keyframe; 0 switches a reason off."""

    uncertainty: float = option(0.3, "keep an image of which the student is at least this uncertain", 0.0, 1.0)
    disagreement: float = option(0.0, "keep an image on whose pixels teacher and student differ at least this much", 0.0, 1.0)
    view: float = option(0.5, "keep an image that differs this much from the last one kept; 1.1 is as much as two unlike scenes do", 0.0)
    interval: float = option(10.0, "keep an image at the latest this long after the last one [s]", 0.0)
    least: float = option(0.5, "and none sooner than this after it, but for triggers [s]", 0.0)
    before: float = option(2.0, "what a trigger keeps of the time before it [s]", 0.0)
    after: float = option(3.0, "what a trigger keeps of the time after it [s]", 0.0)
    buffer: int = option(256_000_000, "bytes held for triggers and partners at most", 1)
    tolerance: float = option(0.05, "largest difference between the stamps of an image and its partner [s]", 0.0)
    patience: float = option(0.5, "how long an image waits for its uncertainty and its partners [s]", 0.0)

    def __post_init__(self) -> None:
        check_ranges(self, "keyframes", DataError)


def nanoseconds(seconds: float) -> int:
    return round(seconds * NS)


def view_of(gray: np.ndarray) -> np.ndarray:
    """(24, 32) float32 of zero mean and unit contrast, of (H, W) uint8 gray values of any size."""
    small = cv2.resize(gray, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
    return (small - small.mean()) / max(float(small.std()), LEAST_CONTRAST)


class KeyframePolicy:
    """Decides image after image, in the order of their stamps."""

    def __init__(self, settings: KeyframeSettings):
        self.settings = settings
        self._last: int | None = None
        """Newest stamp of the images kept [ns]."""
        self._due = 0
        self._view: np.ndarray | None = None

    def rests(self, stamp_ns: int) -> bool:
        """Whether an image comes too soon after the last one kept, or late and was taken before it, so that no more need be known of it."""
        least = nanoseconds(self.settings.least)
        return bool(least) and self._last is not None and -JUMP_NS <= stamp_ns - self._last < least

    def image(
        self,
        stamp_ns: int,
        thumbnail: np.ndarray | None = None,
        uncertainty: float | None = None,
        disagreement: float | None = None,
        triggered: bool = False,
    ) -> list[str]:
        """Why an image is kept; empty where it is not.

        Args:
            stamp_ns: its stamp [ns]. One more than JUMP_NS before that of the last image kept comes from a clock set back, and all begins
                anew.
            thumbnail: (H, W) uint8 gray values; None: not known, as is
            uncertainty: of the student, 0..1,
            disagreement: share of pixels of which teacher and student think differently, 0..1.
            triggered: whether somebody asked for it; it is then kept at any rate.

        Returns:
            of "trigger", "uncertain", "disagreement", "view", "interval", those that hold.
        """
        if self._last is not None and stamp_ns < self._last - JUMP_NS:
            self._last = self._view = None
        reasons = ["trigger"] if triggered else []
        view = None
        if not self.rests(stamp_ns):
            view = view_of(thumbnail) if thumbnail is not None and self.settings.view else None
            reasons += self._reasons(stamp_ns, view, uncertainty, disagreement)
        if reasons:
            self._note(stamp_ns, reasons)
            if view is None and thumbnail is not None and self.settings.view:
                view = view_of(thumbnail)
            self._view = view if view is not None else self._view
        return reasons

    def _reasons(self, stamp: int, view: np.ndarray | None, uncertainty: float | None, disagreement: float | None) -> list[str]:
        settings = self.settings
        reasons = []
        if settings.uncertainty and uncertainty is not None and uncertainty >= settings.uncertainty:
            reasons.append("uncertain")
        if settings.disagreement and disagreement is not None and disagreement >= settings.disagreement:
            reasons.append("disagreement")
        if view is not None and (self._view is None or float(np.abs(view - self._view).mean()) >= settings.view):
            reasons.append("view")
        if settings.interval and (self._last is None or stamp >= self._due):
            reasons.append("interval")
        return reasons

    def _note(self, stamp: int, reasons: list[str]) -> None:
        interval = nanoseconds(self.settings.interval)
        stamp = stamp if self._last is None else max(stamp, self._last)
        # Counted from when it was due, not from when it came: a fixed rate is then kept on average, whatever the rate of the camera.
        on_time = self._last is not None and reasons == ["interval"] and stamp - self._due < interval
        self._due = (self._due if on_time else stamp) + interval
        self._last = stamp


Kept = tuple[str, int, bytes]
"""What is to be written: topic, when it was recorded [ns], raw."""


@dataclass(eq=False)
class Message:
    """A message in the ring. stamp: of its header. recorded: when it came. written: given out already. triggered: somebody asked for it."""

    topic: str
    stamp: int
    recorded: int
    raw: bytes
    written: bool = False
    undecided: bool = False
    triggered: bool = False


class RingBuffer:
    """The messages of the last seconds, up to a number of bytes; the oldest go first."""

    def __init__(self, seconds: float, max_bytes: int):
        self.span, self.max_bytes = nanoseconds(seconds), max_bytes
        self.size = 0
        self.since = -ALWAYS
        """When the last one that had to go was recorded: all that came later is here."""
        self._messages: deque[Message] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self._messages)

    def add(self, message: Message) -> list[Message]:
        """Take a message, in the order in which they are recorded; those that had to make room for it."""
        self._messages.append(message)
        self.size += len(message.raw)
        gone = []
        while self._messages[0].recorded < message.recorded - self.span or (self.size > self.max_bytes and len(self) > 1):
            gone.append(self._messages.popleft())
            self.size -= len(gone[-1].raw)
            self.since = gone[-1].recorded
        return gone

    def clear(self) -> None:
        self._messages.clear()
        self.size, self.since = 0, -ALWAYS


@dataclass(eq=False)
class Keyframe:
    """An image that is kept and still waits for its partners, of topics; astray: those whose clock seems to be off."""

    stamp: int
    recorded: int
    record: dict[str, Any]
    missing: list[str] = field(default_factory=list)
    astray: frozenset[str] = frozenset()


class KeyframeSelector:
    """Takes every message of a drive and gives back those to write: keyframes, their partners, a record of each, and what is always kept.

    An image is decided as soon as the uncertainty of it, or of a later image, is known, or `patience` is over: it is computed from the
    image, so it comes later, and not for every image. Of an image that is kept, the message of each partner topic with the nearest stamp
    is kept too, if it is within `tolerance`; it may come later than the image, by `patience` too. Of a topic whose lag is strange, so that
    its stamps may mean nothing, what came just before and just after the image is kept as well. Then the record is given out. So nothing
    that is to be written is held for longer than `patience`, as long as `tick` is called, but for what a trigger calls back.
    Nothing is given out twice, and not in order of time: bags are read by their stamps. Not for several threads at once.

    Stamps of headers may go back while the time of recording does not, topic after topic: a bag that is played in a loop.

    expected: of "uncertainty" and "disagreement", what somebody says at all; images wait for nothing else. To be set at any time.
    pairers: topic of partners -> its stamps beside those of all images, for what they tell of clocks.
    """

    def __init__(
        self,
        settings: KeyframeSettings,
        image: str,
        partners: Sequence[str] = (),
        always: Sequence[str] = (),
        records: str = "/logger/keyframes",
        gray: Callable[[bytes], np.ndarray | None] | None = None,
    ):
        """
        Args:
            settings: when to keep what.
            image: topic of the images among which keyframes are.
            partners: topics of what belongs to an image: the right camera, clouds, depth, labels.
            always: topics of which all is kept: calibrations, transforms, names of labels.
            records: topic on which the records of keyframes are written, as std_msgs/msg/String of JSON.
            gray: (H, W) uint8 gray values of a raw image, or None where it has none; asked only for images that may be kept.

        Raises:
            DataError: a topic in two roles.
        """
        roles = [image, *partners, *always, records]
        twice = sorted({role for role in roles if roles.count(role) > 1})
        if twice:
            raise DataError(f"a topic is the image, a partner, always kept, or the records: {', '.join(twice)} cannot be two of them")
        self.settings, self.image, self.partners, self.always, self.records = settings, image, tuple(partners), frozenset(always), records
        self.policy = KeyframePolicy(settings)
        self.ring = RingBuffer(max(settings.before, settings.patience) + settings.patience + settings.tolerance, settings.buffer)
        self.pairers = {topic: Pairer[None]((image, topic), settings.tolerance) for topic in partners}
        self._found: dict[str, deque[bool]] = {topic: deque(maxlen=RECENT) for topic in partners}
        """Whether each of the last keyframes found a partner, while messages of the topic came."""
        self.images, self.keyframes = 0, 0
        """How many images came and were kept."""
        self.expected = frozenset(name for name in OPINIONS if getattr(settings, name))
        self._gray = gray
        self._waiting: deque[Message] = deque()
        self._open: list[Keyframe] = []
        self._said: dict[str, dict[int, float]] = {name: {} for name in OPINIONS}
        self._newest: dict[str, int] = {}
        """Stamps of topics and of opinions."""
        self._now = 0
        self._window = (0, -1)

    def add(self, topic: str, stamp_ns: int, raw: bytes, recorded_ns: int | None = None) -> list[Kept]:
        """Take a message; what is to be written now.

        Args:
            topic: one of those named, or any other, which is then kept only around triggers.
            stamp_ns: of its header [ns], by which images and partners go together.
            raw: as it came.
            recorded_ns: when it came [ns], by which the bag is in order and triggers go; the stamp where None.
        """
        recorded = stamp_ns if recorded_ns is None else recorded_ns
        kept = self.tick(recorded)
        if topic in self.always:
            return [*kept, (topic, recorded, raw)]
        message = Message(topic, stamp_ns, recorded, raw)
        went_back = self._note_stamp(topic, stamp_ns)
        for partner, pairer in self.pairers.items():
            if topic in (partner, self.image):
                pairer.add(topic, stamp_ns, None)
        if topic == self.image:
            if went_back:
                kept += self._decide_until(ALWAYS)
                self._forget_opinions()
            self.images += 1
            message.undecided, message.triggered = True, self._window[0] <= recorded <= self._window[1]
            self._waiting.append(message)
        elif self._window[0] <= recorded <= self._window[1]:
            kept += self._write(message)
        for gone in self.ring.add(message):
            if gone.undecided:
                kept += self._decide_until(gone.stamp)
        kept += self._decide_known()
        return kept + self._complete()

    def uncertainty(self, stamp_ns: int, value: float) -> list[Kept]:
        """How uncertain the student is, 0..1, of the image with this stamp; what is to be written now."""
        return self._learn("uncertainty", stamp_ns, value)

    def disagreement(self, stamp_ns: int, value: float) -> list[Kept]:
        """On what share of the image with this stamp teacher and student differ, 0..1; what is to be written now."""
        return self._learn("disagreement", stamp_ns, value)

    def share(self, partner: str) -> float | None:
        """Share of the last keyframes that found a partner on a topic while its messages came, 0..1; None until some are known."""
        found = self._found[partner]
        return sum(found) / len(found) if len(found) >= FEWEST else None

    def held(self, now_ns: int) -> float:
        """How much of the time before now [ns] a trigger would keep [s]: `before`, or less where the buffer is too small for that."""
        return min(self.settings.before, max(0, now_ns - self.ring.since) / NS)

    def trigger(self, now_ns: int) -> list[Kept]:
        """Keep all of the time around now [ns]: what is to be written of the time before."""
        start = now_ns - nanoseconds(self.settings.before)
        end = now_ns + nanoseconds(self.settings.after)
        joined = self._window[0] <= start <= self._window[1]  # a second trigger lengthens the first
        self._window = (self._window[0] if joined else start, end)
        kept: list[Kept] = []
        for message in list(self.ring):
            if start <= message.recorded <= end and not message.written:
                if message.topic != self.image:
                    kept += self._write(message)
                elif message.undecided:
                    message.triggered = True
                else:
                    kept += self._keep(message, ["trigger"])
        return kept + self._complete()

    def tick(self, now_ns: int) -> list[Kept]:
        """What is to be written because time has passed: call it where no messages come."""
        if now_ns < self._now - JUMP_NS:
            kept = self.finish()
            self._forget()
            self._now = now_ns
            return kept
        self._now = max(self._now, now_ns)
        late = self._now - nanoseconds(self.settings.patience)
        kept: list[Kept] = []
        while self._waiting and self._waiting[0].recorded <= late:
            kept += self._decide(self._waiting.popleft())
        return kept + self._complete()

    def finish(self) -> list[Kept]:
        """All that waits is decided with what is known: what is still to be written."""
        kept: list[Kept] = []
        while self._waiting:
            kept += self._decide(self._waiting.popleft())
        return kept + self._complete(give_up=True)

    def _forget(self) -> None:
        """The clock was set back: what was before does not belong to what comes."""
        self.ring.clear()
        self._newest.clear()
        self._forget_opinions()
        self._window = (0, -1)

    def _forget_opinions(self) -> None:
        for said in self._said.values():
            said.clear()

    def _note_stamp(self, what: str, stamp: int) -> bool:
        """Remember how far a topic has come; whether its stamps went back."""
        newest = self._newest.get(what, stamp)
        went_back = stamp < newest - JUMP_NS
        self._newest[what] = stamp if went_back else max(stamp, newest)
        return went_back

    def _reached(self, what: str) -> int:
        """The stamp that a topic has reached; -1 for none, as long as it has not gone back as the images have."""
        newest = self._newest.get(what, -1)
        return newest if newest <= self._newest.get(self.image, newest) + JUMP_NS else -1

    def _learn(self, what: str, stamp: int, value: float) -> list[Kept]:
        self._note_stamp(what, stamp)
        said = self._said[what]
        said[stamp] = value
        while len(said) > REMEMBERED:
            del said[next(iter(said))]
        return self._decide_known() + self._complete()

    def _decide_known(self) -> list[Kept]:
        """Decide those waiting images of which nothing more will come: values come in the order of their images."""
        wanted = [name for name in self.expected if getattr(self.settings, name)]
        return self._decide_until(min(map(self._reached, wanted), default=ALWAYS))

    def _decide_until(self, stamp: int) -> list[Kept]:
        kept: list[Kept] = []
        while self._waiting and self._waiting[0].stamp <= stamp:
            kept += self._decide(self._waiting.popleft())
        return kept

    def _decide(self, image: Message) -> list[Kept]:
        image.undecided = False
        rests = self.policy.rests(image.stamp)
        gray = self._gray(image.raw) if self._gray and self.settings.view and (image.triggered or not rests) else None
        values = {name: said.get(image.stamp) for name, said in self._said.items()}
        reasons = self.policy.image(image.stamp, gray, **values, triggered=image.triggered)
        return self._keep(image, reasons) if reasons else []

    def _keep(self, image: Message, reasons: list[str]) -> list[Kept]:
        self.keyframes += 1
        record: dict[str, Any] = {"stamp": image.stamp, "topic": image.topic, "reasons": reasons}
        record.update({name: said[image.stamp] for name, said in self._said.items() if image.stamp in said})
        record["partners"] = {}
        astray = frozenset(topic for topic, pairer in self.pairers.items() if pairer.strange_lag(topic))
        self._open.append(Keyframe(image.stamp, image.recorded, record, list(self.partners), astray))
        return self._write(image)

    def _write(self, message: Message) -> list[Kept]:
        if message.written:
            return []
        message.written = True
        return [(message.topic, message.recorded, message.raw)]

    def _complete(self, give_up: bool = False) -> list[Kept]:
        """Give the keyframes those partners that have come, and give out the records of those that wait for none."""
        kept: list[Kept] = []
        late = self._now - nanoseconds(self.settings.patience)
        for keyframe in list(self._open):
            over = give_up or keyframe.recorded <= late
            for topic in list(keyframe.missing):
                # Nothing nearer can come once the topic has reached the image: its messages come in the order of their stamps.
                if over or (topic not in keyframe.astray and self._reached(topic) >= keyframe.stamp):
                    keyframe.missing.remove(topic)
                    kept += self._give_partner(keyframe, topic)
            if not keyframe.missing:
                self._open.remove(keyframe)
                kept.append((self.records, keyframe.recorded, keyframe_message(keyframe.record)))
        return kept

    def _give_partner(self, keyframe: Keyframe, topic: str) -> list[Kept]:
        kept: list[Kept] = []
        there = [message for message in self.ring if message.topic == topic]
        nearest = min(there, key=lambda m: abs(m.stamp - keyframe.stamp), default=None)
        if nearest:
            fits = abs(nearest.stamp - keyframe.stamp) <= nanoseconds(self.settings.tolerance)
            self._found[topic].append(fits)
            if fits:
                keyframe.record["partners"][topic] = nearest.stamp
                kept += self._write(nearest)
        if topic in keyframe.astray:
            # By how much is not known well enough to choose one of the two; who reads the bag can.
            before = [message for message in there if message.recorded <= keyframe.recorded][-1:]
            after = [message for message in there if message.recorded > keyframe.recorded][:1]
            for message in before + after:
                kept += self._write(message)
        return kept


def keyframe_message(record: dict[str, Any]) -> bytes:
    """A record as std_msgs/msg/String, serialised as little-endian CDR."""
    text = json.dumps(record).encode() + b"\0"
    return b"\0\1\0\0" + struct.pack("<I", len(text)) + text


def keyframe_record(raw: bytes) -> dict[str, Any]:
    """The record in a message of `keyframe_message`, or of any publisher of such JSON. Raises DataError."""
    try:
        (length,) = struct.unpack_from("<I" if raw[1] & 1 else ">I", raw, 4)
        record = json.loads(raw[8 : 8 + length].rstrip(b"\0"))
        return {**record, "stamp": int(record["stamp"]), "reasons": [str(r) for r in record["reasons"]]}
    except (struct.error, IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"a keyframe's record cannot be read: {error}") from None
