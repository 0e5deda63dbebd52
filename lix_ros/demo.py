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
from lix_core.errors import LixError, first_line
from lix_core.files import make_folder, save, save_image
from lix_core.labels import LabelSet
from lix_core.progress import progress_bar
from lix_core.runtime.backends import BACKEND_HELP, DEFAULT_BACKEND
from lix_core.runtime.bundle import DEFAULT_MODEL, find_bundle
from lix_core.runtime.sources import open_source
from lix_ros import messages, qos
from lix_ros.paths import localhost_environment, sample_clip, transport_environment
from lix_ros.running import ending_signals

NAMESPACE = f"/lix_demo_{os.getpid()}"
"""Of one demo: others on this machine, or of a colleague, must not be recorded too."""
SHEET_FRAMES = 8
START_TIMEOUT_S = 60.0
QUIET_S = 3.0
"""Without a frame for this long after the replay has ended, the run is over."""
LAST_WORD_S = 1.5
"""Time for a last message of diagnostics after the last frame."""


class DemoError(LixError):
    """The demo's processes did not do what they were started for."""


class VideoFile:
    """Writes RGB frames and a legend to an mp4, in a thread of its own. fault: why there is no video."""

    def __init__(self, path: Path, labels: LabelSet, rate: float):
        self._path, self._labels, self._rate = path, labels, rate
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue()
        self.fault = ""
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._thread = threading.Thread(target=self._run, name="video", daemon=True)
        self._thread.start()

    def add(self, image: np.ndarray) -> None:
        if not self.fault:
            self._queue.put(image)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._writer is not None:
            self._writer.release()
        if self.fault:
            self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        try:
            self._write()
        except Exception as error:  # OpenCV's too: the demo goes on without a video
            self.fault = first_line(error)

    def _write(self) -> None:
        while (image := self._queue.get()) is not None:
            if self._writer is None:
                # Codecs want even sides; a video keeps the size of its first frame.
                self._size = (image.shape[1] // 2 * 2, image.shape[0] // 2 * 2)
                if not all(self._size):
                    raise DemoError(f"frames of {image.shape[1]}x{image.shape[0]} are too small for a video")
                self._legend = viz.legend(self._labels, self._size[0])
                whole = (self._size[0], self._size[1] + self._legend.shape[0])
                rate = max(0.1, round(self._rate, 1))  # MPEG-4 has no room for 89.987
                self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter_fourcc(*"mp4v"), rate, whole)
                if not self._writer.isOpened():
                    raise DemoError("this OpenCV cannot write mp4")
            if (image.shape[1], image.shape[0]) != self._size:
                image = cv2.resize(image[: self._size[1], : self._size[0]], self._size)
            self._writer.write(cv2.cvtColor(np.vstack([image, self._legend]), cv2.COLOR_RGB2BGR))


@dataclass
class Recording:
    """What came out of the run. sheet: a few overlays, evenly spread; latencies [s] from stamp to arrival here; video_fault: why there is
    no video."""

    labels: LabelSet | None = None
    frames: int = 0
    latencies: list[float] = field(default_factory=list)
    first_time: float = 0.0
    last_time: float = 0.0
    sheet: list[np.ndarray] = field(default_factory=list)
    video_fault: str = ""
    diagnostics: dict[str, dict[str, str]] = field(default_factory=dict)


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
        self.recording.labels = LabelSet.from_json(message.data)
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

    def close(self) -> None:
        if self._video:
            self._video.close()
            self.recording.video_fault = self._video.fault


class Run:
    """The processes of one demo and what is recorded of them. A signal ends it early, with a report of what came."""

    def __init__(self, out: Path, expected: int, rate: float):
        self._out, self._expected = out, expected
        self._signals: list[int] = []
        for number in ending_signals():
            signal.signal(number, lambda n, _: self._signals.append(n))
        # On this machine only, and not in the way of a robot's own nodes.
        for variable, value in localhost_environment(os.environ).items():
            os.environ.setdefault(variable, value)
        os.environ.update(transport_environment())
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._recorder = Recorder(out, expected, rate)
        self.recording = self._recorder.recording
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._recorder)
        self._processes: dict[str, subprocess.Popen] = {}

    def start(self, module: str, **parameters: object) -> None:
        """Start a node in a process of its own, under NAMESPACE; its output goes to <out>/<module>.log."""
        arguments = ["--ros-args", "-r", f"__ns:={NAMESPACE}"]
        for name, value in parameters.items():
            arguments += ["-p", f"{name}:={json.dumps(value, ensure_ascii=False)}"]
        with self._log(module).open("w") as log:
            command = [sys.executable, "-m", f"lix_ros.{module}", *arguments]
            self._processes[module] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def wait_until_ready(self) -> None:
        """Until the labels have come: the model is loaded and the outputs are there."""
        end = time.monotonic() + START_TIMEOUT_S
        while self.recording.labels is None or self._recorder.count_publishers("segmentation/overlay") == 0:
            self._executor.spin_once(timeout_sec=0.05)
            self._check("segmentation_node")
            if time.monotonic() > end or self._signals:
                raise DemoError(f"the segmentation node did not get ready\n{self._tail('segmentation_node')}")

    def record(self) -> None:
        """Until every frame has come, or the replay has ended and no more come."""
        record, ended = self.recording, None
        with progress_bar() as progress:
            task = progress.add_task("segmenting", total=self._expected or None, note="")
            while not self._signals:
                self._executor.spin_once(timeout_sec=0.05)
                progress.update(task, completed=record.frames, note=f"{frames_per_second(record):.1f} frames/s")
                self._check("segmentation_node")
                if self._check("replay_node") is None:
                    continue
                ended = ended or time.monotonic()
                # One more round of diagnostics after the last frame tells the final counts.
                if time.monotonic() - max(ended, record.last_time) > (LAST_WORD_S if record.frames >= self._expected else QUIET_S):
                    return

    def close(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self._processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
        self._recorder.close()
        self._executor.shutdown()
        self._recorder.destroy_node()
        rclpy.try_shutdown()

    def _check(self, module: str) -> int | None:
        """The exit status of a node that has ended well, None while it runs; DemoError where it failed."""
        status = self._processes[module].poll()
        if status is not None and (status != 0 or module == "segmentation_node"):
            raise DemoError(f"{module} ended with status {status}\n{self._tail(module)}")
        return status

    def _log(self, module: str) -> Path:
        return self._out / f"{module}.log"

    def _tail(self, module: str, lines: int = 6) -> str:
        path = self._log(module)
        return "\n".join([f"the end of its log, {path}:", *path.read_text(errors="replace").splitlines()[-lines:]])


def demo(
    input: str = typer.Argument("", help="Folder of images, video or bag; the clip that ships with the sources when left out."),
    out: Path = typer.Option(Path("out/demo"), "--out", "-o", help="Folder for overlay.mp4, sheet.png, summary.json and the logs."),
    topic: str = typer.Option("", help="Image topic of a bag that has several."),
    rate: float = typer.Option(0.0, min=0.0, help="Frames per second [Hz]; 0 keeps the source's own (10 for folders)."),
    model: str = typer.Option(DEFAULT_MODEL, help="Model name or path of a bundle."),
    backend: str = typer.Option(DEFAULT_BACKEND, help=BACKEND_HELP),
) -> None:
    """Segment a clip over real ROS 2 topics: a replay node, the segmentation node, and a recording of what comes out."""
    source = open_source(input or sample_clip(), topic)
    find_bundle(model)
    make_folder(out)
    run = Run(out, len(source), rate or source.rate)
    try:
        run.start("segmentation_node", model=model, backend=backend, output_depth=20, image_depth=5)
        run.wait_until_ready()
        run.start("replay_node", input=input, topic=topic, rate=rate)
        run.record()
    finally:
        run.close()
    report(run.recording, out)


def frames_per_second(record: Recording) -> float:
    span = record.last_time - record.first_time
    return (record.frames - 1) / span if span > 0 else 0.0


def report(record: Recording, out: Path) -> None:
    """Write summary.json and sheet.png, print the table."""
    if not record.frames:
        raise DemoError("stopped before the first frame")
    segmentation, replay = (record.diagnostics.get(n, {}) for n in ("segmentation", "replay"))
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
    save_image(out / "sheet.png", viz.contact_sheet(record.sheet, record.labels))
    table = Table(show_header=False)
    for name, value in summary.items():
        table.add_row(Text(name), Text(str(value)))
    video = f"none: {record.video_fault}" if record.video_fault else str(out / "overlay.mp4")
    for name, file in (("video", video), ("contact sheet", str(out / "sheet.png")), ("these figures", str(out / "summary.json"))):
        table.add_row(name, Text(file, overflow="fold"))
    Console().print(table)
