"""What the nodes have in common that turn a stream of frames into outputs: lifecycle, worker, parameters, diagnostics."""

from __future__ import annotations

import ctypes
import dataclasses
import sys
import time
from threading import Lock
from typing import Any, Callable, ClassVar, Mapping

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.subscription import Subscription
from rclpy.timer import Timer
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header
from std_srvs.srv import SetBool

from lix_core.errors import explain
from lix_ros import messages, qos
from lix_ros.diagnostics import COUNTS_MISSED, STEADY, FrameStatistics, diagnostic_array
from lix_ros.parameters import declare, validate
from lix_ros.worker import NewestItemWorker, RateLimit

LOG_PERIOD_S = 5.0
"""At most one line of log about frames that fail in this time."""
MEMORY_S = 10.0
"""How long diagnostics speak of a frame that failed or was doubtful."""


class StreamNode(LifecycleNode):
    """A lifecycle node that works on the newest frame, one at a time, and on none that nobody wants.

    A subclass names its parameters, a dataclass with `outputs`, `max_rate`, `autostart`, `output_reliability`, `output_depth` and
    `diagnostics_period`, and says in the methods that end this class how it loads what it works with (`pipeline`), listens and works.
    """

    PARAMETERS: ClassVar[type]
    DOING: ClassVar[str]
    DONE: ClassVar[str]
    """What happens to frames, for people: `segmenting`, `segmented`."""
    exit_status = None

    def __init__(self, name: str, **kwargs: Any):
        super().__init__(name, **kwargs)
        self._settings = declare(self, self.PARAMETERS)
        self._statistics = FrameStatistics()
        self._limit = RateLimit(self._settings.max_rate)
        self._pipeline: Any = None
        self._fault = ""
        """Why there is no pipeline, where one could not be loaded."""
        self._shut_down = False
        """Whether the lifecycle has ended: nothing leads out of that."""
        self._enabled = True
        self._active_since: float | None = None
        self._worker: NewestItemWorker | None = None
        self._frame_lock = Lock()
        """Held while a frame is worked on; whoever holds it may swap the pipeline between two frames."""
        self._arrival_lock = Lock()
        """Held while an arrival is looked at; who has it may take the stream down."""
        self._outputs: dict[str, Publisher] = {}
        self._info_out: Publisher | None = None
        self._subscriptions_held: list[Subscription] = []
        self._start_timer: Timer | None = None
        self._last_log, self._unlogged = float("-inf"), 0
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.stream("reliable", 10))
        self._timer = self.create_timer(self._settings.diagnostics_period, self._publish_diagnostics, clock=STEADY)
        self.create_service(SetBool, "~/set_enabled", self._on_set_enabled)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._answer_bad_transitions()

    def _start(self) -> None:
        try:
            if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
                self.trigger_activate()
        except rclpy_implementation.RCLError as error:  # up to Jazzy; a manager was faster
            self.get_logger().error(f"not started: {explain(error)}")

    # ---- lifecycle

    def _answer_bad_transitions(self) -> None:
        """Up to Jazzy, rclpy lets the error of a transition that cannot be out of the service: the node would end, and not answer."""
        (service,) = (s for s in self.services if s.srv_type is ChangeState)
        change = service.callback

        def answer(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            try:
                return change(request, response)
            except rclpy_implementation.RCLError as error:
                self.get_logger().error(f"transition refused: {explain(error)}")
                response.success = False
                return response

        service.callback = answer

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            pipeline = self._load(self._settings)
        except Exception as error:  # rclpy swallows what a transition raises
            self._fault = explain(error)
            self.get_logger().error(f"not configured: {self._fault}")
            return TransitionCallbackReturn.FAILURE
        self._open_outputs()
        self._swap(pipeline)
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._worker = NewestItemWorker(self._work, self.get_name())
        self._statistics.begin()
        # A group of its own for the inputs: services and parameters never hold them up. A new one each time: on Humble, one whose
        # subscription was destroyed just before its message was taken stays busy for ever (ros2/rclpy issue 1147).
        self._input_group = MutuallyExclusiveCallbackGroup()
        self._listen()
        self._active_since = time.monotonic()
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
        self._shut_down, self._fault = True, ""
        return TransitionCallbackReturn.SUCCESS

    def _open_outputs(self) -> None:
        profile = qos.stream(self._settings.output_reliability, self._settings.output_depth)
        self._outputs = {name: self.create_publisher(kind, f"~/{name}", profile) for name, kind in self._output_types().items()}
        self._info_out = self.create_publisher(CameraInfo, "~/camera_info", profile)

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
        for publisher in (*self._outputs.values(), self._info_out):
            if publisher is not None:
                self.destroy_publisher(publisher)
        self._outputs, self._info_out = {}, None
        self._pipeline = None

    def close(self) -> None:
        """End the worker; called once before the node is destroyed."""
        if self._worker:
            self._worker.stop()

    def _subscribe(self, kind: type, topic: str, reliability: str, depth: int, take: Callable[[Any, int | None], None]) -> Subscription:
        """Listen to a topic while the node is active; `take` gets each message and its publisher's running number, or None."""
        full_name = self.resolve_topic_name(topic)

        def with_info(message: Any, info: dict[str, Any]) -> None:
            # Sequence numbers run per publisher; with several they say nothing.
            take(message, info.get("publication_sequence_number") if self.count_publishers(full_name) == 1 else None)

        def without_info(message: Any) -> None:
            take(message, None)

        callback = with_info if COUNTS_MISSED else without_info
        subscription = self.create_subscription(kind, topic, callback, qos.stream(reliability, depth), callback_group=self._input_group)
        self._subscriptions_held.append(subscription)
        return subscription

    def _swap(self, pipeline: Any) -> None:
        """Take `pipeline` into use between two frames."""
        with self._frame_lock:
            self._take_over(pipeline)
        release_freed_memory()

    def _take_over(self, pipeline: Any) -> None:
        self._pipeline, self._fault = pipeline, ""

    # ---- parameters and services

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """All or nothing: everything is checked, and a new pipeline loaded, before anything changes.

        While none can be loaded, a value with which that is still so is taken all the same: of two at fault, neither could be mended.
        """
        changes = {p.name: p.value for p in parameters if p.name in self.PARAMETERS.__dataclass_fields__}
        waiting = self._pipeline is None and bool(self._fault)
        try:
            values = {name: validate(self.PARAMETERS, name, value) for name, value in changes.items()}
        except Exception as error:  # what leaves a callback ends the node
            return self._refused(error)
        settings = dataclasses.replace(self._settings, **values)
        try:
            pipeline = self._reload(settings, changes.keys())
        except Exception as error:
            if not waiting:
                return self._refused(error)
            pipeline, self._fault = None, explain(error)
            self.get_logger().error(f"still not configured: {self._fault}")
        self._settings = settings
        if "max_rate" in changes:
            self._limit = RateLimit(settings.max_rate)
        if pipeline and self._pipeline:
            self._swap(pipeline)
            self.get_logger().info(f"now running {pipeline.description}")
        elif pipeline and waiting and not settings.autostart:
            self._fault = ""
        elif pipeline and waiting and self._start_timer is None:
            # A transition is not made inside the service that sets the parameter, but right after it; of several parameters, once.
            self._start_timer = self.create_timer(0.0, self._start_once, clock=STEADY)
        return SetParametersResult(successful=True)

    def _refused(self, error: Exception) -> SetParametersResult:
        self.get_logger().error(f"parameter refused: {explain(error)}")
        return SetParametersResult(successful=False, reason=explain(error))

    def _start_once(self) -> None:
        self.destroy_timer(self._start_timer)
        self._start_timer = None
        if self._pipeline is None:
            self._start()

    def _on_set_enabled(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        response.success, response.message = True, "enabled" if request.data else f"disabled: frames are not {self.DONE}"
        return response

    # ---- frames

    def _offer(self, frame: Any) -> None:
        """Give a frame to the worker, unless it is to be left out."""
        with self._arrival_lock:
            if not self._enabled or self._worker is None or not self._wanted() or not self._limit.admits(time.monotonic()):
                self._statistics.count("skipped")
            elif not self._worker.offer(frame):
                self._statistics.count("dropped")

    def _wanted(self) -> set[str]:
        """Outputs that are switched on and that somebody listens to."""
        return {name for name, out in self._outputs.items() if name in self._settings.outputs and out.get_subscription_count() > 0}

    def _work(self, frame: Any) -> None:
        started = time.monotonic()
        try:
            with self._frame_lock:
                if self._pipeline is None:
                    return
                header = self._process(frame, self._pipeline)
        except Exception as error:  # a bad frame, or a fault in a library, must not end the node
            self._on_frame_error(explain(error))
            return
        latency = self.get_clock().now().nanoseconds * 1e-9 - messages.seconds(header.stamp)
        self._statistics.on_published(latency, time.monotonic() - started)

    def _on_frame_error(self, error: str) -> None:
        self._statistics.on_failed(error)
        now = time.monotonic()
        if now - self._last_log < LOG_PERIOD_S:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more since the last message)" if self._unlogged else ""
        self._last_log, self._unlogged = now, 0
        self.get_logger().error(f"frame not {self.DONE}: {error}{more}")

    # ---- diagnostics

    def _publish_diagnostics(self) -> None:
        level, text = self._health()
        hardware_id, values = self._description()
        stamp = self.get_clock().now().to_msg()
        name = f"{self.get_fully_qualified_name().lstrip('/')}: frames"
        self._diagnostics.publish(diagnostic_array(stamp, name, hardware_id, level, text, values))

    def _health(self) -> tuple[bytes, str]:
        if self._shut_down:
            return DiagnosticStatus.OK, "shut down: end the process and start it anew"
        if self._pipeline is None:
            if self._fault:
                return DiagnosticStatus.ERROR, f"not configured: {self._fault}"
            return DiagnosticStatus.OK, "not configured: waiting for a lifecycle manager"
        active_since = self._active_since
        if active_since is None:
            return DiagnosticStatus.OK, "inactive"
        if not self._enabled:
            return DiagnosticStatus.OK, "disabled by ~/set_enabled"
        now = time.monotonic()
        troubles, statistics = self._troubles(now, active_since), self._statistics
        error, age = statistics.last_error, now - statistics.last_error_time
        if age < MEMORY_S and not any(error in text for _, text in troubles):
            troubles.append((DiagnosticStatus.WARN, f"a frame failed {age:.0f} s ago: {error}"))
        if troubles:
            return max(level for level, _ in troubles), "; ".join(text for _, text in troubles)
        if statistics.received and not self._wanted():
            return DiagnosticStatus.OK, "idle: nobody subscribes to an output that is switched on"
        return DiagnosticStatus.OK, self.DOING if statistics.published else "ready"

    def _why_silent(self, subscription: Subscription, topic: str, reliability: str, other_type: str) -> str:
        """Why nothing comes on a topic, and what to do.

        Args:
            topic: its name before remapping. reliability: the parameter with which it is subscribed. other_type: what to do where
                the topic carries another type.
        """
        publishers = self.get_publishers_info_by_topic(topic)  # which it remaps
        if not publishers:
            return f"nobody publishes it; remap `{topic}`, or check the driver, ROS_DOMAIN_ID and the network"
        kind = subscription.msg_type
        if types := {p.topic_type for p in publishers} - {f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"}:
            return f"it carries {', '.join(sorted(types))}; {other_type}"
        wanted = qos.RELIABILITY[getattr(self._settings, reliability)]
        if wanted == qos.RELIABILITY["reliable"] and all(p.qos_profile.reliability != wanted for p in publishers):
            return f"{len(publishers)} publishers, QoS incompatible: they are best effort; set {reliability} to best_effort"
        return f"{len(publishers)} publishers, none sends, or the transport loses every frame (see docs/transport.md)"

    # ---- what a subclass says

    def _load(self, settings: Any) -> Any:
        """What works on frames, for these settings; it has a `description`. What it raises is told on /diagnostics."""
        raise NotImplementedError

    def _reload(self, settings: Any, changed: Any) -> Any:
        """A pipeline for settings of which those named `changed` are new; None where the present one will do."""
        raise NotImplementedError

    def _output_types(self) -> Mapping[str, type]:
        """Outputs by the name of the topic under `~/` -> their message type."""
        raise NotImplementedError

    def _listen(self) -> None:
        """Subscribe the inputs; frames go to `_offer`."""
        raise NotImplementedError

    def _process(self, frame: Any, pipeline: Any) -> Header:
        """Work on a frame and publish what is wanted; the header of the outputs."""
        raise NotImplementedError

    def _troubles(self, now: float, active_since: float) -> list[tuple[bytes, str]]:
        """(level, text) of what stands in the way at monotonic time `now` [s]."""
        raise NotImplementedError

    def _description(self) -> tuple[str, dict[str, str]]:
        """hardware_id and values for /diagnostics."""
        raise NotImplementedError


def release_freed_memory() -> None:
    """Give back what the model before took, of which glibc keeps more with each load. Without glibc, nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim:
        trim(0)
