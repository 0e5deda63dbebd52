"""A test's side of a conversation over real DDS: nodes under test run in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Callable, Iterator, TypeVar

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import SetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from lix_ros import messages, qos

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 30.0


class NodeProcess:
    """A lix node started as users start it, with its output in a file."""

    def __init__(self, module: str, folder: Path, parameters: dict[str, Any], remaps: dict[str, str] | None = None):
        arguments = ["--ros-args"]
        for name, value in parameters.items():
            arguments += ["-p", f"{name}:={json.dumps(value, ensure_ascii=False)}"]
        for name, target in (remaps or {}).items():
            arguments += ["-r", f"{name}:={target}"]
        self.log = folder / f"{module}_{time.monotonic_ns()}.log"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "PYTHONUNBUFFERED": "1"}
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"lix_ros.{module}", *arguments], stdout=stream, stderr=subprocess.STDOUT, env=environment
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, signals: int = 1) -> int:
        """Send SIGINT, as often as asked; the exit status."""
        for _ in range(signals):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                time.sleep(0.02)
        try:
            return self.process.wait(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the node did not end on SIGINT; its log:\n{self.output}") from None


@contextmanager
def node_starter(module: str, folder: Path, **defaults: Any) -> Iterator[Callable[..., NodeProcess]]:
    """Yields a function that starts nodes with parameters; in the end every one must stop cleanly."""
    started: list[NodeProcess] = []

    def start(remaps: dict[str, str] | None = None, **parameters: Any) -> NodeProcess:
        started.append(NodeProcess(module, folder, {**defaults, **parameters}, remaps))
        return started[-1]

    yield start
    for node in started:
        if node.process.poll() is None:
            assert node.stop() == 0, node.output
        assert "Traceback" not in node.output, node.output


@contextmanager
def node_here(kind: Callable[..., T], **parameters: Any) -> Iterator[T]:
    """A lix node in this process, for what can be asked of it without a conversation."""
    node = kind(parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()])
    try:
        yield node
    finally:
        node.close()
        node.destroy_node()


class Peer:
    """The test's own node: publishes, listens and calls, with an executor in a thread."""

    def __init__(self) -> None:
        self.node = Node(f"test_peer_{time.monotonic_ns()}")
        self._clients: dict[str, Any] = {}
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while True:
            try:
                return self._executor.spin()
            except rclpy_implementation.InvalidHandle:
                continue  # a test destroyed a publisher that the executor was about to wait on
            except ExternalShutdownException:
                return

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()

    def listen(self, kind: type, topic: str, profile: Any = None) -> list[Any]:
        """A list that fills with the messages of a topic."""
        received: list[Any] = []
        self.node.create_subscription(kind, topic, received.append, profile or qos.stream("reliable", 50))
        return received

    def diagnostics(self, node: str) -> "Diagnostics":
        return Diagnostics(self.listen(DiagnosticArray, "/diagnostics"), node)

    def publisher(self, kind: type, topic: str, reliability: str = "reliable") -> Any:
        """A publisher that already has its subscriber."""
        publisher = self.node.create_publisher(kind, topic, qos.stream(reliability, 20))
        wait_for(lambda: publisher.get_subscription_count() > 0, f"nobody subscribes to {topic}")
        return publisher

    def call(self, kind: type, name: str, request: Any, tries: int = 1) -> Any:
        """The answer of a service. tries: DDS may lose an answer to a client that the service has just met; what may be asked twice is."""
        if new := name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        client = self._clients[name]
        assert client.wait_for_service(timeout_sec=TIMEOUT_S), f"no service {name}"
        if new:
            time.sleep(0.2)  # the service gets to know of the client a little later
        for last in (False,) * (tries - 1) + (True,):
            future = client.call_async(request)
            with nullcontext() if last else suppress(AssertionError):
                wait_for(future.done, f"service {name} does not answer", TIMEOUT_S / tries)
                break
        return future.result()

    def set_parameter(self, node: str, name: str, value: Any) -> Any:
        """Set one parameter of another node; the rcl_interfaces/SetParametersResult."""
        return self.set_parameters(node, {name: value})[0]

    def set_parameters(self, node: str, values: dict[str, Any]) -> list[Any]:
        """Set several in one call; a SetParametersResult of each."""
        parameters: list[ParameterMessage] = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        return self.call(SetParameters, f"{node}/set_parameters", SetParameters.Request(parameters=parameters), tries=3).results


class Diagnostics:
    """What one node says of itself on /diagnostics."""

    def __init__(self, received: list[DiagnosticArray], node: str):
        self._received, self._node = received, node

    @property
    def latest(self) -> Any:
        """The newest DiagnosticStatus of the node, or None."""
        for array in reversed(self._received):
            for status in array.status:
                if status.name.split(":")[0].split("/")[-1] == self._node:
                    return status
        return None

    def value(self, key: str) -> str:
        return next(v.value for v in self.latest.values if v.key == key) if self.latest else ""

    def wait(self, text: str, level: bytes | None = None) -> Any:
        """Until the node says `text` (at `level`)."""
        wait_for(
            lambda: self.latest and text in self.latest.message and level in (None, self.latest.level),
            lambda: f"diagnostics never said {text!r}; the last was {self.latest}",
        )
        return self.latest


def wait_for(condition: Callable[[], Any], complaint: str | Callable[[], str], timeout: float = TIMEOUT_S) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, complaint() if callable(complaint) else complaint
        time.sleep(0.01)


def exchange(publisher: Any, received: list, message: Any) -> Any:
    """Publish one message and wait for its answer, the one with its stamp."""

    def send() -> int:
        publisher.publish(message)
        return stamp_ns(message)

    return answer_to(send, received)


def answer_to(send: Callable[[], int], received: list) -> Any:
    """The answer to what `send` publishes, the message with the stamp [ns] that it returns.

    Each side finds the other in its own time: until then a frame is not received, or not answered, and is sent again.
    """
    for _ in range(60):
        stamp = send()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            if answers := [m for m in received if stamp_ns(m) == stamp]:
                return answers[0]
            time.sleep(0.005)
    raise AssertionError("no answer to the frame")


def image_message(pixels: np.ndarray, encoding: str, stamp_ns: int = 0, frame_id: str = "camera_optical_frame", padding: int = 0) -> Image:
    """An Image whose rows end in `padding` bytes of noise."""
    header = Header(frame_id=frame_id)
    header.stamp.sec, header.stamp.nanosec = divmod(stamp_ns or time.time_ns(), 10**9)
    message = messages.array_to_image(pixels, encoding, header)
    if padding:
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        noise = np.random.default_rng(1).integers(0, 256, (message.height, padding), np.uint8)
        message.data = np.hstack([rows, noise]).tobytes()
        message.step += padding
    return message


def stamp_ns(message: Any) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def pixels_of(message: Image) -> np.ndarray:
    return messages.image_to_array(message)[0]
