"""The segmentation node: camera images in; class mask, colours, overlay and confidence out. See docs/segmentation.md."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from threading import Lock
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String
from std_srvs.srv import SetBool, Trigger

from lix_core import viz
from lix_core.errors import explain
from lix_core.labels import LabelMapping, LabelSet
from lix_core.pixels import to_rgb
from lix_core.runtime.backends import BackendOptions
from lix_core.runtime.segmenter import Segmenter
from lix_ros import messages, qos, running
from lix_ros.diagnostics import STEADY, FrameStatistics, diagnostic_array
from lix_ros.parameters import OUTPUTS, SegmentationParameters, declare, validate
from lix_ros.worker import NewestItemWorker, RateLimit

LOG_PERIOD_S = 5.0
"""At most one line of log about frames that fail in this time."""
RELOADING = {"model", "backend", "threads", "precision", "max_pixels"}
"""Parameters whose change loads the model anew."""
ERROR_MEMORY_S = 10.0
"""How long diagnostics warn of a frame that failed."""


@dataclass(frozen=True)
class Pipeline:
    """A loaded model with the label remap that fits it; swapped as one."""

    segmenter: Segmenter
    mapping: LabelMapping | None

    @property
    def labels(self) -> LabelSet:
        return self.mapping.target if self.mapping else self.segmenter.labels


class SegmentationNode(LifecycleNode):
    """Subscribes `image` and `camera_info`; publishes `~/mask`, `~/color`, `~/overlay`, `~/confidence`, `~/camera_info`,
    `~/labels` (and `~/label_info` where vision_msgs is installed) and `/diagnostics`."""

    exit_status = None

    def __init__(self, **kwargs: Any):
        super().__init__("segmentation", **kwargs)
        self._settings = declare(self, SegmentationParameters)
        self._statistics = FrameStatistics()
        self._limit = RateLimit(self._settings.max_rate)
        self._pipeline: Pipeline | None = None
        self._model_error = ""
        self._enabled = True
        self._active_since: float | None = None
        self._worker: NewestItemWorker | None = None
        self._camera_info: CameraInfo | None = None
        self._frame_lock = Lock()
        """Held while a frame is worked on; whoever holds it may swap the pipeline between two frames."""
        self._arrival_lock = Lock()
        """Held while an arrival is looked at; who has it may take the stream down."""
        self._image_group = MutuallyExclusiveCallbackGroup()
        self._outputs: dict[str, Publisher] = {}
        self._info_out: Publisher | None = None
        self._labels_out: Publisher | None = None
        self._label_info_out: Publisher | None = None
        self._subscriptions_held: list[Any] = []
        self._last_log, self._unlogged = float("-inf"), 0
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.stream("reliable", 10))
        self._timer = self.create_timer(self._settings.diagnostics_period, self._publish_diagnostics, clock=STEADY)
        self.create_service(SetBool, "~/set_enabled", self._on_set_enabled)
        self.create_service(Trigger, "~/reload", self._on_reload)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        if self._settings.autostart:
            self._start()

    def _start(self) -> None:
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # ---- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            pipeline = self._load(self._settings)
        except Exception as error:  # rclpy swallows what a transition raises
            self._model_error = explain(error)
            self.get_logger().error(f"not configured: {self._model_error}")
            return TransitionCallbackReturn.FAILURE
        output = qos.stream(self._settings.output_reliability, self._settings.output_depth)
        self._outputs = {name: self.create_publisher(Image, f"~/{name}", output) for name in OUTPUTS}
        self._info_out = self.create_publisher(CameraInfo, "~/camera_info", output)
        self._labels_out = self.create_publisher(String, "~/labels", qos.latched())
        self._label_info_out = self.create_publisher(messages.LabelInfo, "~/label_info", qos.latched()) if messages.LabelInfo else None
        self._swap(pipeline)
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._worker = NewestItemWorker(self._work, "segmentation")
        profile = qos.stream(self._settings.image_reliability, self._settings.image_depth)
        kind, topic = (Image, "image") if self._settings.image_transport == "raw" else (CompressedImage, "image/compressed")
        # The images have a callback group of their own: services and parameters never hold them up.
        # Before Jazzy, callbacks are not told the publisher's sequence numbers.
        callback = self._on_image_with_info if hasattr(Subscription, "CallbackType") else self._on_image
        self._image_in = self.create_subscription(kind, topic, callback, profile, callback_group=self._image_group)
        self._image_topic = self._image_in.topic_name
        info_in = self.create_subscription(CameraInfo, "camera_info", self._on_camera_info, qos.stream(self._settings.image_reliability, 1))
        self._subscriptions_held = [self._image_in, info_in]
        self._active_since = time.monotonic()
        self.get_logger().info(f"active: {self._pipeline.segmenter.description}; images from {self._image_topic}")
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop_stream()
        return super().on_deactivate(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop_stream()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop_stream()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def _stop_stream(self) -> None:
        self._active_since = None
        with self._arrival_lock:
            worker, self._worker = self._worker, None
        for subscription in self._subscriptions_held:
            self.destroy_subscription(subscription)
        self._subscriptions_held = []
        if worker:
            worker.stop()

    def _release(self) -> None:
        for publisher in (*self._outputs.values(), self._info_out, self._labels_out, self._label_info_out):
            if publisher is not None:
                self.destroy_publisher(publisher)
        self._outputs, self._info_out, self._labels_out, self._label_info_out = {}, None, None, None
        self._pipeline = None

    def close(self) -> None:
        """End the worker; called once before the node is destroyed."""
        if self._worker:
            self._worker.stop()

    # ---- model

    def _load(self, settings: SegmentationParameters) -> Pipeline:
        segmenter = Segmenter(settings.model, settings.backend, BackendOptions(settings.threads, settings.precision), settings.max_pixels)
        return self._pipeline_of(segmenter, settings)

    @staticmethod
    def _pipeline_of(segmenter: Segmenter, settings: SegmentationParameters) -> Pipeline:
        path = settings.class_remap
        return Pipeline(segmenter, LabelMapping.load(segmenter.labels, path) if path else None)

    def _swap(self, pipeline: Pipeline) -> None:
        """Take `pipeline` into use between two frames, and tell the labels if they changed."""
        with self._frame_lock:
            old, self._pipeline = self._pipeline, pipeline
            self._model_error = ""
            if old is None or old.labels != pipeline.labels:
                self._labels_out.publish(String(data=pipeline.labels.to_json()))
                if self._label_info_out:
                    header = Header(stamp=self.get_clock().now().to_msg())
                    self._label_info_out.publish(messages.label_info(pipeline.labels, header))

    # ---- parameters and services

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """All or nothing: everything is checked, and a new model loaded, before anything changes."""
        changes = {p.name: p.value for p in parameters if p.name in SegmentationParameters.__dataclass_fields__}
        try:
            values = {name: validate(SegmentationParameters, name, value) for name, value in changes.items()}
            settings = dataclasses.replace(self._settings, **values)
            pipeline = None
            if RELOADING & changes.keys() or ("class_remap" in changes and self._pipeline is None):
                pipeline = self._load(settings)
            elif "class_remap" in changes:
                pipeline = self._pipeline_of(self._pipeline.segmenter, settings)
        except Exception as error:  # what leaves a callback ends the node
            self.get_logger().error(f"parameter refused: {explain(error)}")
            return SetParametersResult(successful=False, reason=explain(error))
        waiting_for_model = self._pipeline is None and bool(self._model_error)
        self._settings = settings
        if "max_rate" in changes:
            self._limit = RateLimit(settings.max_rate)
        if pipeline and self._pipeline:
            self._swap(pipeline)
            self.get_logger().info(f"now running {pipeline.segmenter.description}")
        elif pipeline and waiting_for_model and settings.autostart:
            # A transition is not made inside the service that sets the parameter, but right after it.
            self._start_timer = self.create_timer(0.0, self._start_once, clock=STEADY)
        return SetParametersResult(successful=True)

    def _start_once(self) -> None:
        self.destroy_timer(self._start_timer)
        self._start()

    def _on_set_enabled(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        response.success, response.message = True, "enabled" if request.data else "disabled: images are not segmented"
        return response

    def _on_reload(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._pipeline is None:
            response.success, response.message = False, "the node is not configured"
            return response
        try:
            pipeline = self._load(self._settings)
        except Exception as error:  # what leaves a callback ends the node
            self.get_logger().error(f"reload refused, the old model goes on: {explain(error)}")
            response.success, response.message = False, explain(error)
            return response
        self._swap(pipeline)
        response.success, response.message = True, f"reloaded {pipeline.segmenter.description}"
        return response

    # ---- frames

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_info = message

    def _on_image_with_info(self, message: Image | CompressedImage, info: dict[str, Any]) -> None:
        self._on_image(message, info.get("publication_sequence_number"))

    def _on_image(self, message: Image | CompressedImage, sequence: int | None = None) -> None:
        # Sequence numbers run per publisher; with several they say nothing.
        if sequence is not None and self.count_publishers(self._image_topic) != 1:
            sequence = None
        self._statistics.on_received(sequence)
        with self._arrival_lock:
            if not self._enabled or self._worker is None or not self._wanted() or not self._limit.admits(time.monotonic()):
                self._statistics.count("skipped")
            elif not self._worker.offer(message):
                self._statistics.count("dropped")

    def _wanted(self) -> set[str]:
        """Outputs that are switched on and that somebody listens to."""
        return {name for name in self._settings.outputs if self._outputs[name].get_subscription_count() > 0}

    def _work(self, message: Image | CompressedImage) -> None:
        started = time.monotonic()
        try:
            with self._frame_lock:
                if self._pipeline is None:
                    return
                self._segment(message, self._pipeline)
        except Exception as error:  # a bad image, or a fault in a library, must not end the node
            self._on_frame_error(explain(error))
            return
        latency = self.get_clock().now().nanoseconds * 1e-9 - messages.seconds(message.header.stamp)
        self._statistics.on_published(latency, time.monotonic() - started)

    def _segment(self, message: Image | CompressedImage, pipeline: Pipeline) -> None:
        settings, wanted, header = self._settings, self._wanted(), message.header
        image, order = messages.image_to_array(message)
        result = pipeline.segmenter.segment(image, order).rejecting(settings.min_confidence)
        if pipeline.mapping:
            result = result.remapped(pipeline.mapping)
        if "mask" in wanted:
            self._outputs["mask"].publish(messages.array_to_image(result.mask, "mono8", header))
        if "color" in wanted:
            self._outputs["color"].publish(messages.array_to_image(viz.colorize(result.mask, result.labels), "rgb8", header))
        if "overlay" in wanted:
            blended = viz.overlay(to_rgb(image, order), result.mask, result.labels, settings.overlay_alpha)
            self._outputs["overlay"].publish(messages.array_to_image(blended, "rgb8", header))
        if "confidence" in wanted:
            self._outputs["confidence"].publish(messages.array_to_image(result.confidence_u8, "mono8", header))
        self._publish_camera_info(header)

    def _publish_camera_info(self, header: Header) -> None:
        """The camera's calibration with the frame's stamp, beside the outputs, where tools look for it."""
        if self._camera_info is not None and self._info_out.get_subscription_count() > 0:
            info = self._camera_info
            info.header = header
            self._info_out.publish(info)

    def _on_frame_error(self, error: str) -> None:
        self._statistics.on_failed(error)
        now = time.monotonic()
        if now - self._last_log < LOG_PERIOD_S:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more since the last message)" if self._unlogged else ""
        self._last_log, self._unlogged = now, 0
        self.get_logger().error(f"frame not segmented: {error}{more}")

    # ---- diagnostics

    def _publish_diagnostics(self) -> None:
        level, text = self._health()
        pipeline = self._pipeline
        values = {
            "model": self._settings.model,
            "backend": pipeline.segmenter.description if pipeline else "none",
            **self._statistics.values(),
        }
        stamp = self.get_clock().now().to_msg()
        name = f"{self.get_fully_qualified_name().lstrip('/')}: frames"
        self._diagnostics.publish(diagnostic_array(stamp, name, self._settings.model, level, text, values))

    def _health(self) -> tuple[bytes, str]:
        statistics = self._statistics
        if self._pipeline is None:
            if self._model_error:
                return DiagnosticStatus.ERROR, f"not configured: {self._model_error}"
            return DiagnosticStatus.OK, "not configured: waiting for a lifecycle manager"
        if self._active_since is None:
            return DiagnosticStatus.OK, "inactive"
        if not self._enabled:
            return DiagnosticStatus.OK, "disabled by ~/set_enabled"
        now = time.monotonic()
        silent = now - max(statistics.last_received_time, self._active_since)
        if silent > self._settings.silence_timeout:
            return DiagnosticStatus.WARN, self._explain_silence(silent)
        if now - statistics.last_error_time < ERROR_MEMORY_S:
            return DiagnosticStatus.WARN, f"a frame failed {now - statistics.last_error_time:.0f} s ago: {statistics.last_error}"
        if statistics.received and not self._wanted():
            return DiagnosticStatus.OK, "idle: nobody subscribes to an output that is switched on"
        return DiagnosticStatus.OK, "segmenting" if statistics.published else "ready"

    def _explain_silence(self, silent: float) -> str:
        topic = self._image_topic
        publishers = self.get_publishers_info_by_topic(topic)
        text = f"no image on {topic} for {silent:.0f} s: "
        if not publishers:
            return text + "nobody publishes it; remap `image`, or check the camera driver, ROS_DOMAIN_ID and the network"
        types = {p.topic_type for p in publishers} - {f"sensor_msgs/msg/{self._image_in.msg_type.__name__}"}
        if types:
            return text + f"it carries {', '.join(sorted(types))}; see the parameter image_transport"
        wanted = qos.RELIABILITY[self._settings.image_reliability]
        if wanted == qos.RELIABILITY["reliable"] and all(p.qos_profile.reliability != wanted for p in publishers):
            return text + f"{len(publishers)} publishers, QoS incompatible: they are best effort; set image_reliability to best_effort"
        return text + f"{len(publishers)} publishers, none sends, or the transport loses every frame (see docs/transport.md)"


def main() -> None:
    raise SystemExit(running.run(SegmentationNode))


if __name__ == "__main__":
    main()
