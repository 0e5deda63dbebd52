"""The replay node: plays images, a video or a bag as a camera. See docs/replay.md."""

from __future__ import annotations

import threading
import time
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.duration import Duration
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from lix_core.camera import Camera
from lix_core.errors import ImageError, SourceError, explain
from lix_core.pixels import as_uint8, to_rgb
from lix_core.runtime.sources import Frame, open_source
from lix_ros import messages, qos, running
from lix_ros.diagnostics import STEADY, diagnostic_array
from lix_ros.parameters import ReplayParameters, declare
from lix_ros.paths import sample_clip

FROM_RGB = {
    "rgb8": None,
    "bgr8": cv2.COLOR_RGB2BGR,
    "mono8": cv2.COLOR_RGB2GRAY,
    "rgba8": cv2.COLOR_RGB2RGBA,
    "bgra8": cv2.COLOR_RGB2BGRA,
}
JPEG_QUALITY = 90
DISCOVERY_S = 0.5
"""Each side finds the other in its own time: a subscriber seen here may need this long before it can receive."""


def encode(image: np.ndarray, order: str, encoding: str) -> np.ndarray:
    """(H, W[, C]) of channel order `order` -> the uint8 pixels of ROS encoding `encoding`, unchanged where they agree.

    Raises ImageError for what is no image (floats out of 0..1 as in depth, NaN).
    """
    image = as_uint8(image, order)
    if encoding == f"{order}8" or (order == "gray" and encoding == "mono8"):
        return image
    rgb = to_rgb(image, order)
    return rgb if FROM_RGB[encoding] is None else cv2.cvtColor(rgb, FROM_RGB[encoding])


class ReplayNode(Node):
    """Publishes `image`, `camera_info` (where a calibration is known), `image/compressed` (where asked) and `/diagnostics`.

    Stamps are the time of publication. Raises SourceError or DataError where there is nothing to play.
    """

    def __init__(self, **kwargs: Any):
        super().__init__("replay", **kwargs)
        self.exit_status: int | None = None
        self._settings = settings = declare(self, ReplayParameters)
        self._source = open_source(settings.input or sample_clip(), settings.topic)
        self._camera: Camera | None = Camera.load(settings.camera_info) if settings.camera_info else self._source.camera
        self._period = 1.0 / settings.rate if settings.rate else 0.0
        profile = qos.stream(settings.reliability, settings.depth)
        self._image_out = self.create_publisher(Image, "image", profile)
        self._info_out = self.create_publisher(CameraInfo, "camera_info", profile) if self._camera else None
        self._compressed_out = self.create_publisher(CompressedImage, "image/compressed", profile) if settings.compressed else None
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.stream("reliable", 10))
        self._published = self._failed = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._play, name="replay", daemon=True)
        self._thread.start()
        self.create_timer(1.0, self._publish_diagnostics, clock=STEADY)

    def close(self) -> None:
        """End the playing thread; called once before the node is destroyed."""
        self._stopping.set()
        self._thread.join(timeout=5.0)

    def _play(self) -> None:
        try:
            self._wait_for_subscriber()
            rate = self._settings.rate or self._source.rate
            self.get_logger().info(
                f"playing {self._source.name}: {len(self._source)} frames at {rate:.1f} Hz on {self._image_out.topic_name}"
            )
            self._play_once()
            while self._settings.loop and not self._stopping.wait(1.0 / rate):
                self._play_once()
            self._image_out.wait_for_all_acked(Duration(seconds=2.0))
            status = 0
        except Exception as error:  # whatever it is, the process must end and say it
            self.get_logger().fatal(explain(error))
            status = 1
        self.get_logger().info(f"played {self._published} frames" + (f", {self._failed} could not be read" if self._failed else ""))
        self._publish_diagnostics()
        self._diagnostics.wait_for_all_acked(Duration(seconds=1.0))
        self.exit_status = status

    def _wait_for_subscriber(self) -> None:
        end = time.monotonic() + self._settings.wait_for_subscriber
        listened = (self._image_out, self._compressed_out) if self._compressed_out else (self._image_out,)
        while time.monotonic() < end and not self._stopping.is_set():
            if any(p.get_subscription_count() for p in listened):
                self._stopping.wait(DISCOVERY_S)
                return
            self._stopping.wait(0.02)

    def _play_once(self) -> None:
        start: float | None = None
        failed = self._failed
        for index, frame in enumerate(self._source):
            # Decoded before it is due, so that the time of publication is even.
            pixels = self._decode(frame)
            offset = index * self._period if self._period else frame.time
            start = start or time.monotonic() - offset
            if self._stopping.wait(max(0.0, start + offset - time.monotonic())):
                return
            if pixels is not None:
                self._publish(pixels)
        if self._failed - failed >= max(1, len(self._source)):
            raise SourceError(f"no frame of {self._source.name} could be read")

    def _decode(self, frame: Frame) -> np.ndarray | None:
        try:
            image, order = frame.load()
            return encode(image, order, self._settings.encoding)
        except ImageError as error:
            self._failed += 1
            self.get_logger().error(f"frame {frame.stem} left out: {error}")
            return None

    def _publish(self, pixels: np.ndarray) -> None:
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._settings.frame_id)
        if self._info_out:
            self._info_out.publish(messages.camera_info(self._camera, header))
        self._image_out.publish(messages.array_to_image(pixels, self._settings.encoding, header))
        if self._compressed_out and self._compressed_out.get_subscription_count():
            bgr = encode(pixels, self._settings.encoding.removesuffix("8").replace("mono", "gray"), "bgr8")
            _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            self._compressed_out.publish(messages.compressed_image(jpeg, "jpeg", header))
        self._published += 1

    def _publish_diagnostics(self) -> None:
        level = DiagnosticStatus.WARN if self._failed else DiagnosticStatus.OK
        values = {"frames published": str(self._published), "frames unreadable": str(self._failed), "source": self._source.name}
        name = f"{self.get_fully_qualified_name().lstrip('/')}: frames"
        message = f"{self._failed} frames could not be read" if self._failed else "playing"
        self._diagnostics.publish(diagnostic_array(self.get_clock().now().to_msg(), name, self._source.name, level, message, values))


def main() -> None:
    raise SystemExit(running.run(ReplayNode, threads=1))


if __name__ == "__main__":
    main()
