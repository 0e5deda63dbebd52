"""What the segmentation node costs over the bare network, and beside the pipeline that is written first.

    python bench/segmentation_latency.py --images FOLDER [--backend onnxruntime] [--out results/segmentation_latency]

Part 1, one process, the three ways taking turns on every frame (so that noise falls on all alike), messages in to messages
published, with a subscriber in another process:
  bare       the backend's call alone, on a prepared input
  lix        the node's own worker: message -> mask and overlay messages
  usual      the pipeline most people write: the same network at the same size as an eager torch model, `tobytes` into the
             messages, softmax and argmax in NumPy, colours by fancy indexing
Part 2, two processes over DDS: from publishing an image to receiving its mask; time to ready; resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "test"))

from lix_ros.paths import transport_environment  # noqa: E402

os.environ.update(transport_environment())
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("ROS_DOMAIN_ID", "87")

import rclpy  # noqa: E402
import torch  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import String  # noqa: E402

from lix_core.models.networks import Student  # noqa: E402
from lix_core.runtime.segmenter import Segmenter  # noqa: E402
from lix_core.runtime.sources import open_source  # noqa: E402
from lix_ros import qos  # noqa: E402
from lix_ros.segmentation_node import SegmentationNode  # noqa: E402
from ros import NodeProcess, Peer, image_message, stamp_ns, wait_for  # noqa: E402

WARM_UP = 20


class UsualPipeline:
    """The first version of many a segmentation node. Its network has the shipped one's layers, untrained: as fast, not as right."""

    def __init__(self, node: rclpy.node.Node, segmenter: Segmenter):
        self.canvas, self.content = segmenter._fit.canvas, segmenter._fit.content
        self.spec = segmenter.bundle.manifest.input
        self.model = Student(len(segmenter.labels), weights="none")
        with torch.no_grad():  # gives the batch norms statistics, so that no activation vanishes
            self.model.train()(torch.randn(2, 3, 64, 64))
        self.model.eval()
        self.palette = np.array(segmenter.labels.palette)
        self.mask_out = node.create_publisher(Image, "usual/mask", 10)
        self.overlay_out = node.create_publisher(Image, "usual/overlay", 10)

    @torch.no_grad()
    def __call__(self, message: Image) -> None:
        image = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        padded = np.zeros((*self.canvas, 3), np.uint8)
        padded[: self.content[0], : self.content[1]] = cv2.resize(rgb, (self.content[1], self.content[0]))
        normalised = (padded.astype(np.float32) - np.float32(self.spec.mean)) / np.float32(self.spec.std)
        logits = self.model(torch.from_numpy(normalised.transpose(2, 0, 1)[None]))
        logits = logits[0, :, : self.content[0], : self.content[1]].numpy()
        exponential = np.exp(logits - logits.max(0))
        probability = exponential / exponential.sum(0)
        mask = probability.argmax(0).astype(np.uint8)
        mask = cv2.resize(mask, (message.width, message.height), interpolation=cv2.INTER_NEAREST)
        overlay = (0.5 * rgb + 0.5 * self.palette[mask]).astype(np.uint8)
        for publisher, pixels, encoding in ((self.mask_out, mask, "mono8"), (self.overlay_out, overlay, "rgb8")):
            out = Image(header=message.header, height=message.height, width=message.width, encoding=encoding)
            out.step = pixels.nbytes // message.height
            out.data = pixels.tobytes()
            publisher.publish(out)


def listener(topics: list[str]) -> None:
    """A process that takes every message of the topics, as rviz would."""
    rclpy.init(args=[])
    node = rclpy.create_node("bench_listener")
    for topic in topics:
        node.create_subscription(Image, topic, lambda m: None, qos.stream("reliable", 5))
    rclpy.spin(node)


def percentiles(seconds: list[float]) -> dict[str, float]:
    values = 1e3 * np.array(seconds[WARM_UP:])
    return {
        "p50_ms": round(float(np.percentile(values, 50)), 2),
        "p95_ms": round(float(np.percentile(values, 95)), 2),
        "frames": len(values),
    }


def side_by_side(frames: list[np.ndarray], model: str, backend: str, count: int) -> dict[str, dict[str, float]]:
    node = SegmentationNode(parameter_overrides=[Parameter("model", value=model), Parameter("backend", value=backend)])
    segmenter = node._pipeline.segmenter
    segmenter.segment(frames[0], "bgr")
    usual = UsualPipeline(node, segmenter)
    topics = ["/segmentation/mask", "/segmentation/overlay", "/usual/mask", "/usual/overlay"]
    listening = subprocess.Popen([sys.executable, __file__, "--listen", *topics])
    wait_for(lambda: all(node.count_subscribers(t) for t in topics), "the listener does not come")
    wait_for(lambda: node._wanted() >= {"mask", "overlay"}, "the listener is not matched")
    tensor = segmenter._tensor().copy()
    ways = {
        "bare": lambda message: segmenter._backend.run(tensor, ("mask", "confidence")),
        "lix": node._work,
        "usual": usual,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(count + WARM_UP):
        for name, way in ways.items():
            message = image_message(frames[index % len(frames)], "bgr8")
            start = time.perf_counter()
            way(message)
            seconds[name].append(time.perf_counter() - start)
        if index % 50 == 0:
            print(f"\rpart 1: {index}/{count + WARM_UP}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    listening.send_signal(signal.SIGKILL)
    listening.wait()
    node.close()
    node.destroy_node()
    return {name: percentiles(values) for name, values in seconds.items()}


def round_trip(frames: list[np.ndarray], model: str, backend: str, count: int, logs: Path) -> dict[str, float]:
    peer = Peer()
    labels, masks = peer.listen(String, "/segmentation/labels", qos.latched()), peer.listen(Image, "/segmentation/mask")
    camera = peer.node.create_publisher(Image, "/image", qos.stream("reliable", 5))
    start = time.perf_counter()
    node = NodeProcess("segmentation_node", logs, {"model": model, "backend": backend})
    wait_for(lambda: "active:" in node.output, lambda: node.output)
    ready = time.perf_counter() - start
    wait_for(lambda: labels and camera.get_subscription_count(), lambda: node.output)
    time.sleep(0.5)
    seconds = []
    for index in range(count + WARM_UP):
        message = image_message(frames[index % len(frames)], "bgr8")
        start, wanted = time.perf_counter(), stamp_ns(message)
        camera.publish(message)
        while not (masks and stamp_ns(masks[-1]) == wanted):
            if time.perf_counter() - start > 5:
                raise SystemExit("a frame did not come back")
            time.sleep(0.0002)
        seconds.append(time.perf_counter() - start)
        del masks[:-1]
        time.sleep(0.01)
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    node.stop()
    peer.close()
    return {**percentiles(seconds), "ready_s": round(ready, 2), "resident_mb": round(memory / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=ROOT / "assets" / "kitti_clip")
    parser.add_argument("--model", default="street")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "segmentation_latency")
    parser.add_argument("--round-trip", action="store_true", help="part 2 alone, as JSON")
    parser.add_argument("--listen", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.listen:
        return listener(args.listen)
    rclpy.init(args=[])
    frames = [frame.load()[0] for frame in open_source(args.images)]
    if args.round_trip:
        print(json.dumps(round_trip(frames, args.model, args.backend, args.frames, Path(tempfile.mkdtemp()))))
        return rclpy.try_shutdown()
    ways = side_by_side(frames, args.model, args.backend, args.frames)
    rclpy.try_shutdown()
    # In a process of its own, where nothing of part 1 still runs.
    second = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--round-trip"], stdout=subprocess.PIPE, check=True)
    trip = json.loads(second.stdout)
    segmenter = Segmenter(args.model, args.backend)
    record = {
        "command": shlex.join(["python", "bench/segmentation_latency.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "image": f"{frames[0].shape[1]}x{frames[0].shape[0]} bgr8",
        "model": segmenter.description,
        "ways": ways,
        "ratios": {
            "lix / bare": round(ways["lix"]["p50_ms"] / ways["bare"]["p50_ms"], 2),
            "usual / lix": round(ways["usual"]["p50_ms"] / ways["lix"]["p50_ms"], 2),
        },
        "two processes over DDS": trip,
    }
    write(args.out, record)


def write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    rows = [f"| {name} | {v['p50_ms']:.1f} | {v['p95_ms']:.1f} | {v['frames']} |" for name, v in record["ways"].items()]
    trip = record["two processes over DDS"]
    rows.append(
        f"| lix, image published to mask received by another process | {trip['p50_ms']:.1f} | {trip['p95_ms']:.1f} | {trip['frames']} |"
    )
    ratios = ", ".join(f"{name} = {value}" for name, value in record["ratios"].items())
    text = (
        f"`{record['command']}`\n\n{record['model']}; {record['image']}; {record['machine']}\n\n"
        f"| message in to messages out (mask and overlay) | p50 [ms] | p95 [ms] | frames |\n| --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + f"\n\nRatios of medians: {ratios}. Ready {trip['ready_s']} s after its start; {trip['resident_mb']} MB resident.\n"
    )
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
