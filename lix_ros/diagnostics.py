"""What a node tells of itself on /diagnostics: counts, rates and latencies of its frames."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Mapping

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.subscription import Subscription

from lix_core.pairing import Pairer

STEADY = Clock(clock_type=ClockType.STEADY_TIME)
"""For timers: with use_sim_time the node's own clock stands still when the simulator does, just when words are needed."""
WINDOW = 300
"""Frames over which latency percentiles are taken."""
RATE_WINDOW_S = 5.0
LOW_SHARE = 0.4
"""Diagnostics warn when a smaller share of messages finds a partner; a LiDAR of twice the camera's rate has half."""
COUNTS_MISSED = hasattr(Subscription, "CallbackType")
"""Whether callbacks are told the publishers' sequence numbers: rclpy tells them from Jazzy on."""
LATENCY_LIMIT_S = 3600.0
"""A stamp further away than this from now comes from another clock, and says nothing of latency."""


@dataclass
class Arrivals:
    """Thread-safe count of the messages of one topic.

    received: taken from the subscription. missed: published but never taken (by the publisher's sequence numbers), lost in
    transport or replaced in the subscription's queue.
    """

    received: int = 0
    missed: int = 0
    last_received_time: float = float("-inf")
    _arrivals: deque = field(default_factory=lambda: deque(maxlen=2000))
    _sequence: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def on_received(self, sequence: int | None = None) -> None:
        """Count an arrival; `sequence` is the publisher's running number, where there is one publisher and it has one."""
        with self._lock:
            self.received += 1
            self.last_received_time = time.monotonic()
            self._arrivals.append(self.last_received_time)
            if sequence is not None and self._sequence is not None and sequence > self._sequence:
                self.missed += sequence - self._sequence - 1
            self._sequence = sequence

    def begin(self) -> None:
        """A new subscription: what was published before it is not missed."""
        with self._lock:
            self._sequence = None

    @property
    def rate(self) -> float:
        """Messages per second [Hz] of late."""
        with self._lock:
            return rate(self._arrivals, time.monotonic())


@dataclass
class FrameStatistics(Arrivals):
    """Thread-safe counts of what became of every frame.

    dropped: replaced by a newer frame while waiting. skipped: left out on purpose (max_rate, disabled, no subscriber).
    failed: could not be worked on. published: went out.
    """

    dropped: int = 0
    skipped: int = 0
    failed: int = 0
    published: int = 0
    last_error: str = ""
    last_error_time: float = float("-inf")
    _departures: deque = field(default_factory=lambda: deque(maxlen=2000))
    _latencies: deque = field(default_factory=lambda: deque(maxlen=WINDOW))
    _processing: deque = field(default_factory=lambda: deque(maxlen=WINDOW))

    def count(self, what: str) -> None:
        """Add one to `dropped` or `skipped`."""
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)

    def on_failed(self, error: str) -> None:
        with self._lock:
            self.failed += 1
            self.last_error, self.last_error_time = error, time.monotonic()

    def on_published(self, latency: float, processing: float) -> None:
        """Count a departure; `latency` [s] from stamp to publication, `processing` [s] from taking to publication."""
        with self._lock:
            self.published += 1
            self._departures.append(time.monotonic())
            self._processing.append(processing)
            if abs(latency) < LATENCY_LIMIT_S:
                self._latencies.append(latency)

    def values(self) -> dict[str, str]:
        """Name -> value, as /diagnostics shows them."""
        with self._lock:
            now = time.monotonic()
            return {
                "frames in": str(self.received),
                "frames out": str(self.published),
                "frames dropped (busy)": str(self.dropped),
                "frames missed (never taken)": missed_value(self.missed),
                "frames skipped (on purpose)": str(self.skipped),
                "frames failed": str(self.failed),
                "input rate [Hz]": f"{rate(self._arrivals, now):.1f}",
                "output rate [Hz]": f"{rate(self._departures, now):.1f}",
                "latency stamp to publication p50 [ms]": percentile(self._latencies, 50),
                "latency stamp to publication p95 [ms]": percentile(self._latencies, 95),
                "processing p50 [ms]": percentile(self._processing, 50),
                "processing p95 [ms]": percentile(self._processing, 95),
                "last error": self.last_error,
            }


def missed_value(missed: int) -> str:
    """How many messages are known to have been missed, as /diagnostics shows it: none is known where nobody counts them."""
    return str(missed) if COUNTS_MISSED else "unknown (before Jazzy)"


def rate(times: deque, now: float) -> float:
    """Events per second [Hz] over the last RATE_WINDOW_S."""
    recent = [t for t in times if now - t <= RATE_WINDOW_S]
    if len(recent) < 2:
        return 0.0
    return (len(recent) - 1) / (recent[-1] - recent[0]) if recent[-1] > recent[0] else 0.0


def percentile(values: deque, q: float) -> str:
    """[ms] of values in [s], as text; `unknown` where there are none."""
    return f"{1e3 * float(np.percentile(values, q)):.1f}" if values else "unknown"


def diagnostic_array(stamp: Time, name: str, hardware_id: str, level: bytes, message: str, values: Mapping[str, str]) -> DiagnosticArray:
    status = DiagnosticStatus(
        level=level, name=name, hardware_id=hardware_id, message=message, values=[KeyValue(key=k, value=v) for k, v in values.items()]
    )
    array = DiagnosticArray(status=[status])
    array.header.stamp = stamp
    return array


def complaint_of_lag(pairer: Pairer, offset: float, cure: str = "set offset to {:.1f}, then look again") -> str:
    """What the strange lag of the second stream may mean, in words; "" where it has none.

    Args:
        offset: that of the second stream [s]. cure: of a clock that is off, with the place of the offset that it takes [s].
    """
    first, second = list(pairer.streams)[:2]
    lag = pairer.strange_lag(second)
    if not lag:
        return ""
    way, slow = ("later", second) if lag > 0 else ("earlier", first)
    return (
        f"{second} comes {abs(lag):.1f} s {way} after its stamp than {first}: either a clock is off ({cure.format(offset - lag)}) "
        f"or {slow} is that slow"
    )


def pairing_values(pairer: Pairer, paced: str) -> dict[str, str]:
    second = list(pairer.streams)[1]
    share, difference, lag = pairer.share(paced), pairer.difference(second), pairer.lag(second)
    return {
        f"{paced} paired [%]": "unknown" if share is None else f"{100 * share:.0f}",
        "stamp difference p50 [ms]": "unknown" if difference is None else f"{1e3 * difference:.1f}",
        f"{second} lag [s]": "unknown" if lag is None else f"{lag:.2f}",
        **{f"{name} unpaired": str(stream.unpaired) for name, stream in pairer.streams.items()},
    }
