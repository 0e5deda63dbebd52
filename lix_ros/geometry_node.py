"""The geometry node: a stereo pair, a LiDAR or a depth camera in; depth, disparity and normals out. See docs/geometry.md."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Sequence

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.parameter import Parameter
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from stereo_msgs.msg import DisparityImage

from lix_core import viz
from lix_core.geometry.limits import within
from lix_core.geometry.normals import normals_from_depth
from lix_core.pairing import Pairer
from lix_ros import messages, running
from lix_ros.diagnostics import LOW_SHARE, Arrivals, complaint_of_lag, missed_value, pairing_values
from lix_ros.geometry_sensors import SENSOR_PARAMETERS, SENSORS, Sensor, Transforms
from lix_ros.parameters import GEOMETRY_OUTPUTS, GeometryParameters, ParameterError
from lix_ros.stream_node import MEMORY_S, StreamNode

LIMITS = {"min_depth", "max_depth"}
"""Parameters that must agree with each other."""
SMALL_WAITING = 1000
"""Calibrations that wait for a cloud, which may come seconds after its image; they take little memory."""


class GeometryNode(StreamNode):
    """Subscribes what the parameter `input` asks for; publishes `~/depth`, `~/disparity`, `~/normals`, `~/normals_color`,
    `~/confidence`, `~/camera_info` and `/diagnostics`."""

    PARAMETERS = GeometryParameters
    DOING, DONE = "measuring", "measured"

    def __init__(self, **kwargs: Any):
        super().__init__("geometry", **kwargs)
        self._transforms = Transforms(self)
        self._inputs: dict[str, Subscription] = {}
        self._arrivals: dict[str, Arrivals] = {}
        self._infos: dict[str, CameraInfo] = {}
        self._pairer: Pairer | None = None
        self._known: float | None = None
        self._warning, self._warning_time = "", float("-inf")
        self._looked_time = float("-inf")
        if self._settings.autostart:
            self._start()

    # ---- inputs and outputs

    def _load(self, settings: GeometryParameters) -> Sensor:
        if 0 < settings.max_depth <= settings.min_depth:
            raise ParameterError(f"max_depth must be above min_depth, or 0; got {settings.max_depth} and {settings.min_depth} m")
        return SENSORS[settings.input](settings, self._transforms, self.resolve_topic_name)

    def _reload(self, settings: GeometryParameters, changed: Any) -> Sensor | None:
        return self._load(settings) if (SENSOR_PARAMETERS | LIMITS) & changed else None

    def _output_types(self) -> dict[str, type]:
        offered = SENSORS[self._settings.input].OUTPUTS
        return {name: DisparityImage if name == "disparity" else Image for name in GEOMETRY_OUTPUTS if name in offered}

    def _listen(self) -> None:
        settings, sensor = self._settings, SENSORS[self._settings.input]
        topics = {**sensor.STREAMS, **dict.fromkeys(sensor.INFOS, CameraInfo)}
        self._arrivals = {topic: Arrivals() for topic in topics}
        self._infos, self._known, self._warning = {}, None, ""
        self._begin_pairing()
        self._inputs = {
            topic: self._subscribe(kind, topic, settings.input_reliability, settings.input_depth, partial(self._on_message, topic))
            for topic, kind in topics.items()
        }
        names = ", ".join(self._inputs[topic].topic_name for topic in sensor.STREAMS)
        self.get_logger().info(f"active: {self._pipeline.description}; frames from {names}")

    def _begin_pairing(self) -> None:
        settings, streams = self._settings, tuple(SENSORS[self._settings.input].STREAMS)
        with self._arrival_lock:
            rooms = {name: SMALL_WAITING for name, kind in SENSORS[settings.input].STREAMS.items() if kind is CameraInfo}
            self._pairer = Pairer(streams, settings.slop, {streams[1]: settings.offset}, rooms) if len(streams) > 1 else None

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        result = super()._on_set_parameters(parameters)
        if result.successful and {"slop", "offset"} & {p.name for p in parameters}:
            self._begin_pairing()
        return result

    # ---- frames

    def _on_message(self, topic: str, message: Any, sequence: int | None) -> None:
        self._arrivals[topic].on_received(sequence)
        if topic in SENSORS[self._settings.input].INFOS:
            self._infos[topic] = message
            return
        for frame in self._paired(topic, message):
            self._statistics.on_received()
            if self._infos.keys() < set(SENSORS[self._settings.input].INFOS):
                self._statistics.count("skipped")
            else:
                self._offer(frame)

    def _paired(self, topic: str, message: Any) -> list[tuple[Any, ...]]:
        with self._arrival_lock:
            if not self._pairer:
                return [(message,)]
            restarts = self._pairer.restarts
            frames = self._pairer.add(topic, messages.nanoseconds(message.header.stamp), message, messages.size_of(message))
            if self._pairer.restarts > restarts:
                self._transforms.clear()
            return frames

    def _process(self, frame: Sequence[Any], sensor: Sensor) -> Header:
        settings, wanted = self._settings, self._wanted()
        self._looked_time = time.monotonic()
        measured = sensor.measure(frame, self._infos)
        header, camera = measured.header, measured.camera
        depth = within(measured.depth, settings.min_depth, settings.max_depth)
        self._known = float(np.isfinite(depth).mean())
        nothing = "" if self._known else "no pixel has a depth (dark, covered, or all nearer than min_depth or farther than max_depth?)"
        self._warning, self._warning_time = measured.warning or nothing, time.monotonic()
        if "depth" in wanted:
            self._outputs["depth"].publish(messages.array_to_image(depth, "32FC1", header))
        if "disparity" in wanted:
            disparity = messages.disparity_image(measured.disparity, camera, measured.baseline, settings.max_disparity, header)
            self._outputs["disparity"].publish(disparity)
        if wanted & {"normals", "normals_color"}:
            normals = normals_from_depth(depth, camera, settings.normals_method)
            if "normals" in wanted:
                self._outputs["normals"].publish(messages.array_to_image(normals, "32FC3", header))
            if "normals_color" in wanted:
                self._outputs["normals_color"].publish(messages.array_to_image(viz.normals_color(normals), "rgb8", header))
        if "confidence" in wanted:
            confidence = np.rint(np.where(np.isnan(depth), 0, measured.confidence) * 255).astype(np.uint8)
            self._outputs["confidence"].publish(messages.array_to_image(confidence, "mono8", header))
        if self._info_out.get_subscription_count() > 0:
            self._info_out.publish(messages.camera_info(camera, header))
        return header

    # ---- diagnostics

    def _troubles(self, now: float, active_since: float) -> list[tuple[bytes, str]]:
        found = []
        for topic, subscription in self._inputs.items():
            silent = now - max(self._arrivals[topic].last_received_time, active_since)
            if silent > self._settings.silence_timeout:
                why = self._why_silent(subscription, topic, "input_reliability", f"remap `{topic}`, or see the parameter input")
                found.append((DiagnosticStatus.WARN, f"no message on {subscription.topic_name} for {silent:.0f} s: {why}"))
        if self._pipeline.fault and now - self._looked_time < MEMORY_S:  # without a subscriber nobody looks
            found.append((DiagnosticStatus.ERROR, self._pipeline.fault))
        complaints = (self._complaint_of_pairs(), self._warning if now - self._warning_time < MEMORY_S else "")
        return found + [(DiagnosticStatus.WARN, text) for text in complaints if text]

    def _complaint_of_pairs(self) -> str:
        """Why few messages find a partner, or the wrong one, in words; "" where nothing speaks for it."""
        paced, slop, offset = SENSORS[self._settings.input].PACE, self._settings.slop, self._settings.offset
        with self._arrival_lock:
            if not self._pairer:
                return ""
            second = list(self._pairer.streams)[1]
            share, difference, lags = self._pairer.share(paced), self._pairer.difference(second), complaint_of_lag(self._pairer, offset)
        if share is None or share >= LOW_SHARE:
            return lags
        text = f"{100 * share:.0f} % of {paced} found a partner within {1e3 * slop:.0f} ms"
        if lags or difference is None:  # the nearest stamp that is remembered is not the nearest then
            return f"{text}; {lags}" if lags else text
        if abs(difference) <= slop:
            return f"{text}, though {second} is typically {1e3 * abs(difference):.0f} ms away: many are lost, or stamps repeat or go back"
        way = "later" if difference > 0 else "earlier"
        cure = f"set offset to {offset + difference:.3f} if that is constant, or a larger slop"
        return f"{text}; the nearest of {second} is typically {1e3 * abs(difference):.0f} ms {way}: {cure}"

    def _description(self) -> tuple[str, dict[str, str]]:
        sensor = self._pipeline
        values = {"input": sensor.description if sensor else "none", **self._statistics.values()}
        values["frames missed (never taken)"] = missed_value(sum(a.missed for a in self._arrivals.values()))
        values["known depth [%]"] = "unknown" if self._known is None else f"{100 * self._known:.1f}"
        with self._arrival_lock:
            if self._pairer:
                values |= pairing_values(self._pairer, SENSORS[self._settings.input].PACE)
        for topic, arrivals in self._arrivals.items():
            values |= {f"{topic} received": str(arrivals.received), f"{topic} rate [Hz]": f"{arrivals.rate:.1f}"}
        return self._settings.input, values


def main() -> None:
    raise SystemExit(running.run(GeometryNode))


if __name__ == "__main__":
    main()
