"""The replay node: plays images, a video or a bag as a camera, or the simulated world as a car full of sensors. See docs/replay.md."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.duration import Duration
from rclpy.node import Node

from lix_core.bags.recording import LEAP_NS
from lix_core.errors import DataError, ImageError, SourceError, explain
from lix_core.pairing import NS
from lix_ros import qos, running
from lix_ros.diagnostics import STEADY, diagnostic_array
from lix_ros.parameters import ReplayParameters, declare
from lix_ros.replay_topics import open_topics

DISCOVERY_S = 0.5
"""Each side finds the other in its own time: a subscriber seen here may need this long before it can receive."""
RECENT = 20
"""Frames over which diagnostics judge whether the rate is kept."""
DELIVERY_S = 3.0
"""How long the subscribers, all together, may take to receive the last messages [s]; less than `close` waits for the thread."""
LONG_WAIT_S = 10.0
"""A wait for the next frame that is longer is told [s]."""
LATE_SHARE = 0.1
"""Delay, as a share of the time of these frames, from which on diagnostics warn of it."""


class ReplayNode(Node):
    """Publishes `image`, `camera_info` (where a calibration is known), `image/compressed` (where asked) and `/diagnostics`; of the
    world also `right/image`, `right/camera_info`, `depth`, `normals`, `labels`, `label_names` and `points`.

    Stamps are the time of publication. Raises LixError where there is nothing to play.
    """

    def __init__(self, **kwargs: Any):
        super().__init__("replay", **kwargs)
        self.exit_status: int | None = None
        self._settings = settings = declare(self, ReplayParameters)
        self._topics = open_topics(self, settings)
        self._source = self._topics.source
        self._rate = settings.rate or self._source.rate
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.stream("reliable", 10))
        self._published = self._failed = 0
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        """Of each frame played: how long it took to prepare, and how late it was then [s]."""
        self._gap_ends = float("-inf")
        """When the next frame is due, where the wait for it is a long one [s of the monotonic clock]."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._play, name="replay", daemon=True)
        self._thread.start()
        self.create_timer(1.0, self._publish_diagnostics, clock=STEADY)

    def close(self) -> None:
        """End the playing thread; called once before the node is destroyed."""
        self._stopping.set()
        self._thread.join(timeout=5.0)

    def _play(self) -> None:
        status = 1
        try:
            try:
                self._play_all()
                status = 0
            finally:
                self._finish()
        except Exception as error:  # whatever it is, the process must end and say it
            self.get_logger().fatal(explain(error))
        self.exit_status = status

    def _play_all(self) -> None:
        self._wait_for_subscriber()
        frames = f"{len(self._source)} frames" if len(self._source) else "frames without end"
        self.get_logger().info(f"playing {self._source.name}: {frames} at {self._rate:.1f} Hz on {self._topics.awaited[0].topic_name}")
        self._play_once()
        while self._settings.loop and not self._stopping.wait(1.0 / self._rate):
            self._play_once()

    def _finish(self) -> None:
        """Say what was played, and wait until all of it is received; not where the node is stopped: a subscriber may hang for ever."""
        self.get_logger().info(f"played {self._published} frames" + (f", {self._failed} could not be read" if self._failed else ""))
        self._publish_diagnostics()
        end = time.monotonic() + DELIVERY_S
        for publisher in (*self._topics.awaited, self._diagnostics):
            while not self._stopping.is_set() and time.monotonic() < end:
                if publisher.wait_for_all_acked(Duration(seconds=0.1)):
                    break

    def _wait_for_subscriber(self) -> None:
        end = time.monotonic() + self._settings.wait_for_subscriber
        while time.monotonic() < end and not self._stopping.is_set():
            if any(p.get_subscription_count() for p in self._topics.awaited):
                self._stopping.wait(DISCOVERY_S)
                return
            self._stopping.wait(0.02)

    def _play_once(self) -> None:
        start: float | None = None
        offset = 0.0
        failed = self._failed
        for index, frame in enumerate(self._source):
            # Prepared before it is due, so that the time of publication is even.
            begun = time.monotonic()
            prepared = self._prepare(frame)
            ready = time.monotonic()
            before, offset = offset, index / self._rate if self._settings.rate else frame.time
            leaps = not self._settings.rate and offset - before > LEAP_NS / NS
            if leaps:
                self.get_logger().warning(f"the clock of {self._source.name} leaps by {offset - before:.0f} s here: it plays on at once")
            due = ready if start is None or leaps else start + offset
            # What comes late moves all that follows: slower, but even, and never a burst.
            start = max(due, ready) - offset
            self._recent.append((ready - begun, max(0.0, ready - due)))
            self._tell_wait(due)
            if self._stopping.wait(max(0.0, due - time.monotonic())):
                return
            if prepared is not None:
                self._topics.publish(prepared, self.get_clock().now())
                self._published += 1
        if self._failed - failed >= max(1, len(self._source)):
            raise SourceError(f"no frame of {self._source.name} could be read")

    def _tell_wait(self, due: float) -> None:
        is_long = not self._settings.rate and due - time.monotonic() > LONG_WAIT_S
        self._gap_ends = due if is_long else float("-inf")
        if is_long:
            self.get_logger().info(self._waiting())

    def _waiting(self) -> str:
        """That the next frame comes only after a gap, in words; "" where it does not."""
        wait = self._gap_ends - time.monotonic()
        return f"waits {wait:.0f} s for the next frame: {self._source.name} has a gap here; `rate` plays without it" if wait > 0 else ""

    def _prepare(self, frame: Any) -> object | None:
        try:
            return self._topics.prepare(frame)
        except (ImageError, DataError) as error:
            self._failed += 1
            self.get_logger().error(f"frame {frame.stem} left out: {error}")
            return None

    def _publish_diagnostics(self) -> None:
        level, message = self._health()
        recent = list(self._recent)
        values = {
            "frames published": str(self._published),
            "frames unreadable": str(self._failed),
            "source": self._source.name,
            "rate asked [Hz]": f"{self._rate:.1f}",
            "preparing p50 [ms]": f"{1e3 * float(np.median([p for p, _ in recent])):.1f}" if recent else "unknown",
        }
        name = f"{self.get_fully_qualified_name().lstrip('/')}: frames"
        self._diagnostics.publish(diagnostic_array(self.get_clock().now().to_msg(), name, self._source.name, level, message, values))

    def _health(self) -> tuple[bytes, str]:
        if self._failed:
            return DiagnosticStatus.WARN, f"{self._failed} frames could not be read"
        if waiting := self._waiting():
            return DiagnosticStatus.OK, waiting
        recent = list(self._recent)
        late = sum(lateness for _, lateness in recent)
        if late > LATE_SHARE * len(recent) / self._rate:
            rate = len(recent) / (len(recent) / self._rate + late)
            busy = 1e3 * float(np.mean([p for p, _ in recent]))
            return DiagnosticStatus.WARN, f"plays {rate:.1f} of {self._rate:.1f} Hz: a frame takes {busy:.0f} ms to prepare; lower the rate"
        return DiagnosticStatus.OK, "playing"


def main() -> None:
    raise SystemExit(running.run(ReplayNode, threads=1))


if __name__ == "__main__":
    main()
