"""`lix demo`: replay a source as a camera, segment it in a second process, and record what comes out."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import rclpy
import typer
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sensor_msgs.msg import Image
from std_msgs.msg import String

from lix_core import viz
from lix_core.cli.predict import encode, make_folder, save
from lix_core.cli.progress import progress_bar
from lix_core.errors import LixError
from lix_core.labels import LabelSet
from lix_core.runtime.bundle import find_bundle
from lix_core.runtime.sources import open_source
from lix_ros import messages, qos
from lix_ros.paths import sample_clip, transport_environment

NAMESPACE = "/lix_demo"
SHEET_FRAMES = 8
START_TIMEOUT_S = 60.0
QUIET_S = 3.0
"""Without a frame for this long after the replay has ended, the run is over."""


class DemoError(LixError):
    """The demo's processes did not do what they were started for."""


class VideoFile:
    """Writes RGB frames and a legend to an mp4, in a thread of its own."""

    def __init__(self, path: Path, labels: LabelSet, rate: float):
        self._path, self._labels, self._rate = path, labels, rate
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue()
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._thread = threading.Thread(target=self._run, name="video", daemon=True)
        self._thread.start()

    def add(self, image: np.ndarray) -> None:
        self._queue.put(image)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._writer is not None:
            self._writer.release()

    def _run(self) -> None:
        while (image := self._queue.get()) is not None:
            if self._writer is None:
                # Codecs want even sides; a video keeps the size of its first frame.
                self._legend = viz.legend(self._labels, image.shape[1] // 2 * 2)
                self._size = (image.shape[1] // 2 * 2, image.shape[0] // 2 * 2)
                whole = (self._size[0], self._size[1] + self._legend.shape[0])
                self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter_fourcc(*"mp4v"), self._rate, whole)
                if not self._writer.isOpened():
                    raise DemoError(f"cannot write video {self._path}")
            if (image.shape[1], image.shape[0]) != self._size:
                image = cv2.resize(image[: self._size[1], : self._size[0]], self._size)
            self._writer.write(cv2.cvtColor(np.vstack([image, self._legend]), cv2.COLOR_RGB2BGR))


@dataclass
class Recording:
    """What came out of the run. sheet: a few overlays, evenly spread; latencies [s] from stamp to arrival here."""

    labels: LabelSet | None = None
    frames: int = 0
    latencies: list[float] = field(default_factory=list)
    first_time: float = 0.0
    last_time: float = 0.0
    sheet: list[np.ndarray] = field(default_factory=list)
    diagnostics: dict[str, dict[str, str]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)


class Recorder(Node):
    """Subscribes to the segmentation's overlay, labels and diagnostics."""

    def __init__(self, folder: Path, expected: int, rate: float):
        super().__init__("recorder", namespace=NAMESPACE)
        self.recording = Recording()
        self._folder, self._rate = folder, rate
        self._every = max(1, expected // SHEET_FRAMES)
        self._video: VideoFile | None = None
        self.create_subscription(String, "segmentation/labels", self._on_labels, qos.latched())
        self.create_subscription(Image, "segmentation/overlay", self._on_overlay, qos.stream("reliable", 20))
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.stream("reliable", 20))

    def _on_labels(self, message: String) -> None:
        self.recording.labels = LabelSet.from_dict(json.loads(message.data))
        if self._video is None:
            self._video = VideoFile(self._folder / "overlay.mp4", self.recording.labels, self._rate)

    def _on_overlay(self, message: Image) -> None:
        now = self.get_clock().now().nanoseconds * 1e-9
        record = self.recording
        image, _ = messages.image_to_array(message)
        record.latencies.append(now - messages.seconds(message.header.stamp))
        record.first_time = record.first_time or time.monotonic()
        record.last_time = time.monotonic()
        if record.frames % self._every == 0 and len(record.sheet) < SHEET_FRAMES:
            record.sheet.append(image)
        record.frames += 1
        if self._video:
            self._video.add(image)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(NAMESPACE.strip("/")):
                node = status.name.split("/")[-1].split(":")[0]
                self.recording.diagnostics[node] = {v.key: v.value for v in status.values}
                self.recording.messages[node] = status.message

    def close(self) -> None:
        if self._video:
            self._video.close()


def start_node(module: str, folder: Path, **parameters: object) -> subprocess.Popen:
    """A node in a process of its own, under NAMESPACE; its output goes to <folder>/<module>.log."""
    arguments = ["--ros-args", "-r", f"__ns:={NAMESPACE}"]
    for name, value in parameters.items():
        arguments += ["-p", f"{name}:={json.dumps(value)}"]
    with (folder / f"{module}.log").open("w") as log:
        return subprocess.Popen([sys.executable, "-m", f"lix_ros.{module}", *arguments], stdout=log, stderr=subprocess.STDOUT)


def stop_node(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


def demo(
    input: str = typer.Argument("", help="Folder of images, video or bag; the clip that ships with the sources when left out."),
    out: Path = typer.Option(Path("out/demo"), "--out", "-o", help="Folder for overlay.mp4, sheet.png, summary.json and the logs."),
    rate: float = typer.Option(0.0, min=0.0, help="Frames per second [Hz]; 0 keeps the source's own (10 for folders)."),
    model: str = typer.Option("street", help="Model name or path of a bundle."),
    backend: str = typer.Option("onnxruntime", help="onnxruntime, openvino, torch or auto."),
) -> None:
    """Segment a clip over real ROS 2 topics: a replay node, the segmentation node, and a recording of what comes out."""
    source = open_source(input or sample_clip())
    find_bundle(model)
    make_folder(out)
    # On this machine only, and not in the way of a robot's own nodes.
    os.environ.update(transport_environment())
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    signalled: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: signalled.append(n))
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    recorder = Recorder(out, len(source), rate or source.rate)
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)
    processes: list[subprocess.Popen] = []
    try:
        processes.append(start_node("segmentation_node", out, model=model, backend=backend, output_depth=20, image_depth=5))
        wait_until_ready(recorder, executor, processes[0], out, signalled)
        processes.append(start_node("replay_node", out, input=str(input), rate=rate))
        record_run(recorder, executor, processes, out, len(source), signalled)
    finally:
        for process in reversed(processes):
            stop_node(process)
        recorder.close()
        executor.shutdown()
        recorder.destroy_node()
        rclpy.try_shutdown()
    report(recorder.recording, out)


def wait_until_ready(recorder: Recorder, executor: SingleThreadedExecutor, process: subprocess.Popen, out: Path, signalled: list[int]) -> None:
    """Until the labels have come: the model is loaded and the outputs are there."""
    end = time.monotonic() + START_TIMEOUT_S
    while recorder.recording.labels is None or recorder.count_publishers("segmentation/overlay") == 0:
        executor.spin_once(timeout_sec=0.05)
        if process.poll() is not None or time.monotonic() > end or signalled:
            raise DemoError(f"the segmentation node did not get ready; its log is {out / 'segmentation_node.log'}\n{tail(out / 'segmentation_node.log')}")


def record_run(
    recorder: Recorder, executor: SingleThreadedExecutor, processes: list[subprocess.Popen], out: Path, expected: int, signalled: list[int]
) -> None:
    """Until every frame has come, or the replay has ended and no more come."""
    segmentation, replay = processes
    record = recorder.recording
    with progress_bar() as progress:
        task = progress.add_task("segmenting", total=expected or None, note="")
        ended = None
        while not signalled:
            executor.spin_once(timeout_sec=0.05)
            progress.update(task, completed=record.frames, note=f"{frames_per_second(record):.1f} frames/s")
            if segmentation.poll() is not None:
                raise DemoError(f"the segmentation node ended; its log is {out / 'segmentation_node.log'}\n{tail(out / 'segmentation_node.log')}")
            if replay.poll() is None:
                continue
            ended = ended or time.monotonic()
            if replay.returncode != 0 or (record.frames == 0 and time.monotonic() - ended > QUIET_S):
                raise DemoError(f"nothing came out; see {out}/*.log\n{tail(out / 'replay_node.log')}")
            # One more round of diagnostics after the last frame tells the final counts.
            if time.monotonic() - max(ended, record.last_time) > (1.5 if record.frames >= expected else QUIET_S):
                return


def frames_per_second(record: Recording) -> float:
    span = record.last_time - record.first_time
    return (record.frames - 1) / span if span > 0 else 0.0


def tail(path: Path, lines: int = 6) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def report(record: Recording, out: Path) -> None:
    """Write sheet.png and summary.json, print the table."""
    if not record.frames:
        raise DemoError("stopped before the first frame")
    segmentation, replay = (record.diagnostics.get(n, {}) for n in ("segmentation", "replay"))
    sheet = viz.contact_sheet(record.sheet, record.labels)
    save(out / "sheet.png", encode(".png", sheet[..., ::-1]))
    p50, p95 = (1e3 * float(np.percentile(record.latencies, q)) for q in (50, 95))
    published = int(replay.get("frames published", record.frames))
    summary = {
        "frames published by the camera": published,
        "frames segmented and received": record.frames,
        "frames lost in transport": published - int(segmentation.get("frames in", published)),
        "frames dropped (a newer one came)": int(segmentation.get("frames dropped (busy)", 0)),
        "frames per second": round(frames_per_second(record), 1),
        "latency stamp to overlay received p50 [ms]": round(p50, 1),
        "latency stamp to overlay received p95 [ms]": round(p95, 1),
        "model": segmentation.get("backend", "unknown"),
    }
    save(out / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    table = Table(show_header=False)
    for name, value in summary.items():
        table.add_row(Text(name), Text(str(value)))
    for name, file in (("video", "overlay.mp4"), ("contact sheet", "sheet.png"), ("these figures", "summary.json")):
        table.add_row(name, Text(str(out / file), no_wrap=True))
    Console().print(table)
