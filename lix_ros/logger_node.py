"""The logger node: a camera, and what belongs to its images, into bags that never end by themselves. See docs/record.md."""

from __future__ import annotations

import importlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from lix_core.bags.keyframes import Kept, KeyframeSelector, KeyframeSettings
from lix_core.bags.reader import header_stamp, load_image
from lix_core.bags.recording import Recording, RecordingSettings
from lix_core.bags.writer import Qos, Topic
from lix_core.errors import DataError, LixError, explain, first_line
from lix_core.files import expanded
from lix_core.pairing import NS
from lix_core.pixels import to_rgb
from lix_ros import messages, qos, running
from lix_ros.diagnostics import COUNTS_MISSED, LOW_SHARE, STEADY, Arrivals, complaint_of_lag, diagnostic_array, missed_value
from lix_ros.parameters import LOGGED, LoggerParameters, declare

LOOK_PERIOD_S = 0.5
"""How often the node looks for publishers that are new, gone, or offer something else."""
TICK_PERIOD_S = 0.1
"""How often the node looks whether images have waited long enough."""
KEYFRAME_FLUSH_S = 0.25
"""How often what was chosen is made safe against kill -9; sooner than all there is in mode `everything`, as images have waited before."""
PARTNERS = ("right_image", "depth", "points", "labels")
"""Inputs that belong to an image by their stamps; the other ones are recorded whole."""
KEYFRAMES = "~/keyframes"
STREAMS = ("image", "camera_info", "right_image", "right_camera_info", "depth", "depth_camera_info", "points", "labels")
"""Inputs that come all the time, so that their silence is worth a warning."""
CLOCK_CURE = "set it right; `lix bag extract --offset {:.1f}` pairs what is recorded meanwhile"
LATCHED_DEPTH = 1000
"""Of latched topics, what each publisher holds for those who come late."""


@dataclass
class Input:
    """One topic that is recorded.

    name: absolute. asked: before remapping, for rclpy, which remaps whatever it is given. subscriptions: one, or two where some
    publishers are latched and others not. stamped: whether its messages begin with a header. stamp: the last one [ns], and moved: when it
    began to be that. since: when it was subscribed. said: of each of two subscriptions, what it alone has heard of late: the other may yet.
    """

    name: str
    asked: str
    arrivals: Arrivals
    since: float = 0.0
    subscriptions: list[Subscription] = field(default_factory=list)
    profiles: list[QoSProfile] = field(default_factory=list)
    said: tuple[deque[bytes], ...] = ()
    topic: Topic | None = None
    stamped: bool = False
    stamp: int | None = None
    moved: float = 0.0
    trouble: str = "nobody publishes it"


class LoggerNode(Node):
    """Records `image`, `camera_info` and the other inputs of LOGGED as they come, serialised; for keyframes it looks at the images, at
    `confidence` and at `disagreement`. Services `~/trigger`, `~/pause`, `~/resume`, `~/split`; publishes `~/keyframes`, the record of
    each keyframe as JSON, and `/diagnostics`.

    Raises LixError where the settings or the folder do not do.
    """

    exit_status = None

    def __init__(self, **kwargs: Any):
        super().__init__("logger", **kwargs)
        self._settings = settings = declare(self, LoggerParameters)
        names = {self.resolve_topic_name(asked): asked for asked in self._topic_names()}
        self._inputs = {name: Input(name, asked, Arrivals()) for name, asked in names.items()}
        self._lock = threading.Lock()
        """The selector is not for several threads."""
        self._selector = self._make_selector()
        self._keyframes = self.create_publisher(String, KEYFRAMES, qos.stream("reliable", 10))
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.stream("reliable", 10))
        self._opinions: dict[str, str] = {}
        """Topics of student and teacher -> the parameter that makes them a reason."""
        self._recording = Recording(expanded(settings.folder), recording_settings(settings), report=self._report)
        if self._selector:
            self._recording.add(Topic(self._keyframes.topic_name, "std_msgs/msg/String", (Qos(),)))
            self._listen_to_opinions()
            self.create_timer(TICK_PERIOD_S, self._tick, clock=STEADY)
            self._tick()
        for name in ("trigger", "pause", "resume", "split"):
            self.create_service(Trigger, f"~/{name}", getattr(self, f"_on_{name}"))
        self.create_timer(LOOK_PERIOD_S, self._look, clock=STEADY)
        self.create_timer(settings.diagnostics_period, self._publish_diagnostics, clock=STEADY)
        self._look()
        self.get_logger().info(f"recording {settings.mode} of {len(self._inputs)} topics into {self._recording.folder}")

    def close(self) -> None:
        """Write what waits and end the bag; called once before the node is destroyed."""
        try:
            if self._selector:
                with self._lock:
                    self._write(self._selector.finish())
        finally:  # whatever happens before, a bag without an end is not to be left behind
            self._recording.close()
        self.get_logger().info(self._told())

    # ---- what is recorded

    def _topic_names(self) -> list[str]:
        """Names before remapping, each once."""
        images = ("image", "right_image") if self._settings.image_transport == "compressed" else ()
        chosen = {role: f"{LOGGED[role]}/compressed" if role in images else LOGGED[role] for role in self._settings.topics}
        self._roles = {role: self.resolve_topic_name(name) for role, name in chosen.items()}
        extra = self._settings.extra.split()
        for name in extra:
            try:
                self.resolve_topic_name(name)
            except Exception as error:  # of rcl or rclpy
                raise DataError(f"extra: {name!r} is no name of a topic ({first_line(error)})") from None
        return list(dict.fromkeys([*chosen.values(), *extra]))

    def _make_selector(self) -> KeyframeSelector | None:
        settings = self._settings
        if settings.mode == "everything":
            return None
        if "image" not in self._roles:
            raise DataError(f"mode {settings.mode!r} chooses among images: `topics` must have image")
        partners = [self._roles[role] for role in PARTNERS if role in self._roles]
        always = [name for name in self._inputs if name != self._roles["image"] and name not in partners]
        records = self.resolve_topic_name(KEYFRAMES)
        return KeyframeSelector(keyframe_settings(settings), self._roles["image"], partners, always, records, self._gray)

    def _listen_to_opinions(self) -> None:
        """Subscribe to what student and teacher think of the images, where that is a reason to keep one."""
        settings, profile = self._settings, qos.stream("best_effort", 10)
        if settings.mode == "keyframes" and settings.uncertainty:
            unsure = round(255 * settings.least_confidence)
            judge = self._opinion("uncertainty", lambda pixels: float((pixels < unsure).mean()))
            self._opinions[self.create_subscription(Image, "confidence", judge, profile).topic_name] = "uncertainty"
        if settings.mode == "keyframes" and settings.disagreement:
            judge = self._opinion("disagreement", lambda pixels: float((pixels > 0).mean()))
            self._opinions[self.create_subscription(Image, "disagreement", judge, profile).topic_name] = "disagreement"

    def _opinion(self, what: str, share: Callable[[np.ndarray], float]) -> Callable[[Image], None]:
        def take(message: Image) -> None:
            try:
                pixels, _ = messages.image_to_array(message)
            except LixError as error:  # what leaves a callback ends the node
                self.get_logger().error(f"{what}: {error}", throttle_duration_sec=5.0)
                return
            with self._lock:
                self._write(getattr(self._selector, what)(messages.nanoseconds(message.header.stamp), share(pixels)))

        return take

    def _gray(self, raw: bytes) -> np.ndarray | None:
        """(H, W) uint8 of a serialised image; None where it cannot be read, which is no reason not to record it."""
        image = self._inputs[self._roles["image"]]
        try:
            pixels, order = load_image(raw, image.topic.type, image.name)
            return to_rgb(pixels, order)[..., 1]
        except Exception as error:  # of a type that is no image, say; what leaves a callback ends the node
            self.get_logger().error(f"view of an image: {explain(error)}", throttle_duration_sec=5.0)
            return None

    # ---- publishers come and go

    def _look(self) -> None:
        for entry in self._inputs.values():
            try:
                self._follow(entry)
            except Exception as error:  # a topic that cannot be recorded must not end the recording of the others
                if entry.trouble != explain(error):
                    self.get_logger().error(f"{entry.name} is not recorded: {explain(error)}")
                entry.trouble = explain(error)

    def _follow(self, entry: Input) -> None:
        """Subscribe as the publishers of a topic offer it; again where they offer something else now."""
        offers = self.get_publishers_info_by_topic(entry.asked)
        if not offers:
            # What is latched is said once; who said it may go.
            said = entry.topic is not None and entry.topic.latched and entry.arrivals.received
            entry.trouble = "" if said else "nobody publishes it any more" if entry.arrivals.received else "nobody publishes it"
            return
        kinds = sorted({offer.topic_type for offer in offers})
        kind = entry.topic.type if entry.topic else kinds[0]
        if kind not in kinds:
            raise DataError(f"it was {kind} and now carries {', '.join(kinds)}, which one recording cannot hold; start the logger anew")
        offered = tuple(offer_of(o.qos_profile) for o in offers if o.topic_type == kind)
        profiles = profiles_for(offered, self._settings.input_depth)
        message_type = type_named(kind)
        if entry.topic is None or entry.topic.qos != offered:
            entry.topic = Topic(entry.name, kind, offered)
            self._recording.add(entry.topic)
        if entry.profiles != profiles:
            entry.stamped = next(iter(message_type.get_fields_and_field_types().values()), "") == "std_msgs/Header"
            for subscription in entry.subscriptions:
                self.destroy_subscription(subscription)
            entry.arrivals.begin()
            entry.said = tuple(deque(maxlen=LATCHED_DEPTH) for _ in profiles)
            entry.subscriptions = [self._subscribe(message_type, entry, profile, place) for place, profile in enumerate(profiles)]
            entry.profiles, entry.since = profiles, time.monotonic()
            self.get_logger().info(f"records {entry.name} ({kind}, {profiles[0].reliability.name.lower()})")
        silence = self._silence(entry, len(offers)) or self._standstill(entry)
        entry.trouble = silence if len(kinds) == 1 else f"it carries {', '.join(kinds)}; only {kind} is recorded"

    def _silence(self, entry: Input, publishers: int) -> str:
        quiet = time.monotonic() - max(entry.arrivals.last_received_time, entry.since)
        if quiet < self._settings.silence_timeout or entry.name not in [self._roles.get(role) for role in STREAMS]:
            return ""
        return f"no message for {quiet:.0f} s: {publishers} publishers, none sends, or the transport loses all (see docs/transport.md)"

    def _standstill(self, entry: Input) -> str:
        """That messages come whose stamps do not move, in words; a stamp of 0 is none, and the time of arrival taken for it."""
        stood = entry.arrivals.last_received_time - entry.moved
        by_stamps = entry.name in [self._roles.get(role) for role in ("image", *PARTNERS)]
        if not by_stamps or not entry.stamp or stood < self._settings.silence_timeout:
            return ""
        return (
            f"its stamp has stood still at {entry.stamp / NS:.3f} s for {stood:.0f} s, and by stamps images are chosen and find what "
            "belongs to them: see to the clock of its driver"
        )

    def _subscribe(self, message_type: type, entry: Input, profile: QoSProfile, place: int) -> Subscription:
        def with_info(raw: bytes, info: dict[str, Any]) -> None:
            # Sequence numbers run per publisher; with several they say nothing.
            take(raw, info.get("publication_sequence_number") if len(entry.topic.qos) == 1 else None)

        def take(raw: bytes, sequence: int | None = None) -> None:
            for other in entry.said[:place] + entry.said[place + 1 :]:
                if raw in other:
                    other.remove(raw)
                    return
                entry.said[place].append(raw)
            entry.arrivals.on_received(sequence)
            self._take(entry, raw)

        callback = with_info if COUNTS_MISSED else take
        return self.create_subscription(message_type, entry.asked, callback, profile, raw=True)

    # ---- messages

    def _take(self, entry: Input, raw: bytes) -> None:
        stamp = header_stamp(raw) if entry.stamped else None
        if stamp != entry.stamp:
            entry.stamp, entry.moved = stamp, time.monotonic()
        now = self.get_clock().now().nanoseconds
        if not now and not entry.topic.latched:
            return  # use_sim_time before the first /clock: a bag that began in 1970 would play for half a century
        if self._selector is None:
            self._recording.write(entry.name, now, raw)
            return
        if self._recording.paused and not entry.topic.latched:
            return  # what comes after a pause would be compared with what was chosen in it, and not kept
        with self._lock:
            self._write(self._selector.add(entry.name, stamp or now, raw, now))

    def _tick(self) -> None:
        """An image may wait for what never comes, where no other message comes either; for what nobody publishes it need not wait."""
        with self._lock:
            self._selector.expected = frozenset(reason for topic, reason in self._opinions.items() if self.count_publishers(topic))
            self._write(self._selector.tick(self.get_clock().now().nanoseconds))

    def _write(self, kept: list[Kept]) -> None:
        for topic, recorded, raw in kept:
            if self._recording.write(topic, recorded, raw) and topic == self._selector.records:
                self._keyframes.publish(raw)

    # ---- services

    def _on_trigger(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        settings = self._settings
        if self._selector is None:
            response.success, response.message = False, "mode everything records all there is; a trigger adds nothing"
            return response
        found = self._recording.statistics
        if found.state in ("paused", "stopped"):
            response.success, response.message = False, f"nothing is kept: {found.reason if found.state == 'stopped' else 'paused'}"
            return response
        with self._lock:
            held = self._held()
            kept = self._selector.trigger(self.get_clock().now().nanoseconds)
            self._write(kept)
        response.success = True
        short = f" ({short})" if (short := self._complaint_of_buffer(held)) else ""
        response.message = f"kept {len(kept)} messages of the {held:.3g} s before{short}; all of the next {settings.after:g} s follows"
        return response

    def _complaint_of_partner(self, topic: str) -> str:
        """Why few keyframes have a partner on a topic, or the wrong one, in words; "" where nothing speaks for it."""
        settings, share, pairer = self._settings, self._selector.share(topic), self._selector.pairers[topic]
        lags, lag, difference = complaint_of_lag(pairer, 0.0, CLOCK_CURE), pairer.lag(topic) or 0.0, pairer.difference(topic) or 0.0
        if lag > settings.patience:
            lags = lags or f"{topic} comes {lag:.1f} s after its image"
            lags += f"; an image waits for it {settings.patience:g} s: raise patience where it is slow"
        if share is None or share >= LOW_SHARE:
            return lags
        text = f"{100 * share:.0f} % of the keyframes found a partner on {topic} within {1e3 * settings.slop:.0f} ms"
        if lags:
            return f"{text}; {lags}"
        near = f"its nearest stamp is typically {1e3 * abs(difference):.0f} ms"
        if abs(difference) <= settings.slop:
            return f"{text}, though {near} away: many are lost, or it is slower than the keyframes"
        return f"{text}; {near} {'later' if difference > 0 else 'earlier'}: set a larger slop"

    def _complaint_of_buffer(self, held: float) -> str:
        """That less than `before` is held for a trigger [s], in words; "" where it is not."""
        before = self._settings.before
        return f"the buffer holds {held:.2f} of the {before:g} s of `before`; raise `buffer`" if held < before else ""

    def _on_pause(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._selector:
            with self._lock:  # images that wait are decided with what is known
                self._write(self._selector.finish())
        self._recording.pause()
        response.success, response.message = True, f"paused; {self._told()}"
        return response

    def _on_resume(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._recording.resume()
        response.success, response.message = True, self._told()
        return response

    def _on_split(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        bag = self._recording.statistics.bag
        self._recording.split()
        response.success, response.message = True, f"ends {bag}" if bag else "there is no bag yet"
        return response

    # ---- what it tells

    def _report(self, level: str, text: str) -> None:
        # One line each: rclpy refuses another severity from the same place in the sources.
        if level == "error":
            self.get_logger().error(text)
        elif level == "warning":
            self.get_logger().warning(text)
        else:
            self.get_logger().info(text)

    def _told(self) -> str:
        found = self._recording.statistics
        lost = f", {found.lost} lost" if found.lost else ""
        return f"{found.messages} messages, {found.bytes / 1e6:.1f} MB{lost}, in {found.bags} bags in {self._recording.folder}"

    def _publish_diagnostics(self) -> None:
        level, text = self._health()
        name = f"{self.get_fully_qualified_name().lstrip('/')}: recording"
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(diagnostic_array(stamp, name, str(self._recording.folder), level, text, self._values()))

    def _health(self) -> tuple[bytes, str]:
        found = self._recording.statistics
        if found.state == "stopped":
            return DiagnosticStatus.ERROR, f"not recording: {found.reason}"
        missing = [f"{entry.name}: {entry.trouble}" for entry in self._inputs.values() if entry.trouble]
        missing += [
            f"{topic}: nobody publishes it, so there is no keyframe for it; set {reason} to 0 if that is meant"
            for topic, reason in self._opinions.items()
            if not self.count_publishers(topic)
        ]
        if not self.get_clock().now().nanoseconds:
            missing.append("/clock: no time yet (use_sim_time), so nothing is recorded")
        if self._selector:
            with self._lock:
                come = [topic for topic in self._selector.partners if not self._inputs[topic].trouble]
                complaints = [*map(self._complaint_of_partner, come), self._complaint_of_buffer(self._held())]
            missing += filter(None, complaints)
        lost = [f"{found.lost} messages lost: the disk is too slow, full or gone"] if found.lost else []
        told = "; ".join([found.state, *lost, *missing])
        return (DiagnosticStatus.WARN if lost or missing else DiagnosticStatus.OK), told

    def _held(self) -> float:
        """How much of the time before now a trigger would keep [s]; the lock is held."""
        return self._selector.held(self.get_clock().now().nanoseconds)

    def _values_of_partners(self) -> dict[str, str]:
        values = {}
        for topic, pairer in self._selector.pairers.items():
            share, difference, lag = self._selector.share(topic), pairer.difference(topic), pairer.lag(topic)
            values[f"{topic} found for keyframes [%]"] = "unknown" if share is None else f"{100 * share:.0f}"
            values[f"{topic} stamp difference p50 [ms]"] = "unknown" if difference is None else f"{1e3 * difference:.1f}"
            values[f"{topic} lag [s]"] = "unknown" if lag is None else f"{lag:.2f}"
        return values

    def _values(self) -> dict[str, str]:
        found = self._recording.statistics
        values = {
            "state": found.state,
            "bag": str(found.bag or "none"),
            "bags": str(found.bags),
            "size of the bag [MB]": f"{found.size / 1e6:.1f}",
            "messages recorded": str(found.messages),
            "recorded [MB]": f"{found.bytes / 1e6:.1f}",
            "messages lost (disk)": str(found.lost),
            "messages missed (transport)": missed_value(sum(entry.arrivals.missed for entry in self._inputs.values())),
            "waiting for the disk [MB]": f"{found.queued / 1e6:.1f}",
            "disk free [GB]": f"{found.disk_free / 1e9:.1f}",
        }
        if self._selector:
            values |= {"images": str(self._selector.images), "keyframes": str(self._selector.keyframes)}
            with self._lock:
                values |= {"held for a trigger [s]": f"{self._held():.2f}", **self._values_of_partners()}
        for name, entry in self._inputs.items():
            values[f"{name} received"] = f"{entry.arrivals.received} at {entry.arrivals.rate:.1f} Hz"
        return values


def recording_settings(settings: LoggerParameters) -> RecordingSettings:
    same = ("prefix", "storage", "compression", "split_size", "split_duration", "quota", "delete_oldest", "queue")
    chosen = {name: getattr(settings, name) for name in same} | {"floor": settings.disk_floor}
    if settings.mode != "everything":
        # A trigger hands over all that is buffered at once.
        chosen["queue"] += settings.buffer
        # So long may the selector hold a message.
        chosen |= {"late": settings.before + settings.patience + settings.slop, "flush": KEYFRAME_FLUSH_S}
    return RecordingSettings(**chosen)


def keyframe_settings(settings: LoggerParameters) -> KeyframeSettings:
    """Mode `rate` is keyframes by the interval alone."""
    always = ("before", "after", "buffer", "patience")
    common = {name: getattr(settings, name) for name in always} | {"tolerance": settings.slop}
    if settings.mode == "rate":
        return KeyframeSettings(uncertainty=0, disagreement=0, view=0, interval=1 / settings.rate, least=0, **common)
    reasons = {name: getattr(settings, name) for name in ("uncertainty", "disagreement", "view", "interval")}
    return KeyframeSettings(**reasons, least=settings.least_interval, **common)


def type_named(kind: str) -> type:
    """The message class of `package/msg/Name`. Raises DataError where its package is not installed."""
    package, _, name = kind.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError):
        raise DataError(f"type {kind} is not installed here; install {package.replace('_', '-')}") from None


def offer_of(profile: QoSProfile) -> Qos:
    """What a publisher offers, as bags keep it. DDS does not tell the history of others: unknown ones count as the default."""
    history = "keep_all" if profile.history == HistoryPolicy.KEEP_ALL else "keep_last"
    reliability = "best_effort" if profile.reliability == ReliabilityPolicy.BEST_EFFORT else "reliable"
    durability = "transient_local" if profile.durability == DurabilityPolicy.TRANSIENT_LOCAL else "volatile"
    return Qos(reliability, durability, history, profile.depth or 10)


def profiles_for(offered: tuple[Qos, ...], depth: int) -> list[QoSProfile]:
    """What receives all that these publishers say: reliable where all are. Where some are latched and others not, a volatile one, which
    hears all of them, and a latched one, which is told what was said before it."""
    latched = [offer for offer in offered if offer.durability == "transient_local"]

    def profile(heard: Sequence[Qos], depth: int, durability: DurabilityPolicy) -> QoSProfile:
        reliable = all(offer.reliability == "reliable" for offer in heard)
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=reliability, durability=durability)

    volatile = [profile(offered, depth, DurabilityPolicy.VOLATILE)] if len(latched) < len(offered) else []
    return volatile + ([profile(latched, max(depth, LATCHED_DEPTH), DurabilityPolicy.TRANSIENT_LOCAL)] if latched else [])


def main() -> None:
    raise SystemExit(running.run(LoggerNode, threads=1))


if __name__ == "__main__":
    main()
