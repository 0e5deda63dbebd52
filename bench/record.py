"""What the logger node costs and loses: two cameras of 1242x375 at 30 Hz, a LiDAR of 120,000 points at 10 Hz, calibrations.

    python bench/record.py [--seconds 60] [--folder FOLDER ON THE DISK TO WRITE TO] [--out results/record]

The publisher is a process of its own and numbers its messages in their stamps, so that what is missing in the bag is known message by
message. Counted are those after the first second: each side of DDS finds the other in its own time. CPU is that of the logger's process
alone, user and system, as a share of one core.
  logger, everything    the node, over Fast DDS with shared memory
  logger, keyframes     the same in its default mode: it looks at the images and keeps few
  rosbags, ceiling      `rosbags` alone writing the same bytes at the same pace, without DDS or node
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lix_ros.paths import transport_environment  # noqa: E402

os.environ.update(transport_environment())
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("ROS_DOMAIN_ID", "88")

TICK_HZ, LIDAR_EVERY = 30, 3
HEIGHT, WIDTH, POINTS = 375, 1242, 120_000
FIRST_COUNTED = TICK_HZ
"""The first tick that counts."""
TOPICS = {
    "/image": "sensor_msgs/msg/Image",
    "/right/image": "sensor_msgs/msg/Image",
    "/camera_info": "sensor_msgs/msg/CameraInfo",
    "/right/camera_info": "sensor_msgs/msg/CameraInfo",
    "/points": "sensor_msgs/msg/PointCloud2",
}
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def raw_messages() -> dict[str, bytearray]:
    """One serialised message of each topic; its stamp is at bytes 4 to 12."""
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import CameraInfo
    from std_msgs.msg import Header

    from lix_ros import messages

    random, header = np.random.default_rng(0), Header(frame_id="sensor")
    image = serialize_message(messages.array_to_image(random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), "bgr8", header))
    cloud = serialize_message(messages.points_to_cloud(random.normal(0, 10, (POINTS, 5)).astype(np.float32), header))
    info = serialize_message(CameraInfo(header=header, width=WIDTH, height=HEIGHT))
    return {
        topic: bytearray({"Image": image, "CameraInfo": info, "PointCloud2": cloud}[kind.split("/")[2]]) for topic, kind in TOPICS.items()
    }


def ticks(seconds: float):
    """(number, topics) thirty times a second."""
    start = time.monotonic()
    for number in range(int(seconds * TICK_HZ)):
        time.sleep(max(0.0, start + number / TICK_HZ - time.monotonic()))
        yield number, [topic for topic in TOPICS if topic != "/points" or number % LIDAR_EVERY == 0]


def numbered(message: bytearray, number: int) -> bytes:
    message[4:12] = (1 + number // TICK_HZ).to_bytes(4, "little") + (number % TICK_HZ * (10**9 // TICK_HZ)).to_bytes(4, "little")
    return bytes(message)


def publish(seconds: float, told: multiprocessing.Queue) -> None:
    """Publishes; tells when it begins, and at the end how late the latest tick was [s]."""
    import importlib

    import rclpy

    from lix_ros import qos

    rclpy.init()
    node = rclpy.create_node("bench_publisher")
    raw = raw_messages()
    publishers = {}
    for topic, kind in TOPICS.items():
        package, _, name = kind.split("/")
        publishers[topic] = node.create_publisher(
            getattr(importlib.import_module(f"{package}.msg"), name), topic, qos.stream("reliable", 10)
        )
    while not all(publisher.get_subscription_count() for publisher in publishers.values()):
        time.sleep(0.05)
    time.sleep(1.0)
    told.put(0.0)
    start, latest = time.monotonic(), 0.0
    for number, topics in ticks(seconds):
        for topic in topics:
            publishers[topic].publish(numbered(raw[topic], number))
        latest = max(latest, time.monotonic() - start - number / TICK_HZ)
    told.put(latest)
    time.sleep(2.0)
    rclpy.shutdown()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def with_logger(mode: str, seconds: float, folder: Path) -> dict:
    """Record with the node; what it cost and what is missing."""
    command = [sys.executable, "-m", "lix_ros.logger_node", "--ros-args", "-p", f"folder:={folder}", "-p", f"mode:={mode}"]
    log = (folder.parent / f"{mode}.log").open("w")
    logger = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=subprocess.STDOUT)
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    publisher = context.Process(target=publish, args=(seconds, told))
    publisher.start()
    while True:  # until it has found the logger
        try:
            told.get(timeout=1.0)
            break
        except queue.Empty:
            if logger.poll() is not None:
                publisher.kill()
                raise SystemExit(f"the logger ended: {Path(log.name).read_text().strip()}") from None
    # From the first message to the last: idle time would flatter the node.
    before, begun = cpu_seconds(logger.pid), time.monotonic()
    late = told.get()
    share = (cpu_seconds(logger.pid) - before) / (time.monotonic() - begun)
    publisher.join()
    logger.send_signal(signal.SIGINT)
    logger.wait(30)
    return {"cpu": round(share, 3), "late_ms": round(1e3 * late, 1), **counted(folder, seconds, mode == "everything")}


def with_rosbags(seconds: float, folder: Path) -> dict:
    """Write the same with `rosbags` alone."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    raw, store = raw_messages(), get_typestore(Stores.LATEST)
    folder.mkdir(parents=True)
    with Writer(folder / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {topic: writer.add_connection(topic, kind, typestore=store) for topic, kind in TOPICS.items()}
        before, begun = time.process_time(), time.monotonic()
        for number, topics in ticks(seconds):
            for topic in topics:
                writer.write(connections[topic], time.time_ns(), numbered(raw[topic], number))
        share = (time.process_time() - before) / (time.monotonic() - begun)
    return {"cpu": round(share, 3), **counted(folder, seconds, True)}


def counted(folder: Path, seconds: float, whole: bool) -> dict:
    """Messages published, and those missing in the bags of a folder, after start-up."""
    from lix_core.bags.reader import Bag, bags_in, header_stamp

    found: dict[str, set[int]] = {topic: set() for topic in TOPICS}
    size = 0
    for path in bags_in(folder):
        size += sum(file.stat().st_size for file in path.iterdir())
        with Bag(path) as bag:
            for topic, _, _, data in bag.messages(list(TOPICS)):
                found[topic].add(header_stamp(data))
    total = missing = 0
    for number in range(FIRST_COUNTED, int(seconds * TICK_HZ)):
        stamp = (1 + number // TICK_HZ) * 10**9 + number % TICK_HZ * (10**9 // TICK_HZ)
        for topic in TOPICS:
            if topic != "/points" or number % LIDAR_EVERY == 0:
                total += 1
                missing += stamp not in found[topic]
    recorded = sum(map(len, found.values()))
    return {"published": total, "recorded": recorded, **({"missing": missing} if whole else {}), "mb": round(size / 1e6)}


def page(record: dict) -> str:
    lines = [
        "# Recording two cameras, a LiDAR and their calibrations",
        "",
        f"{record['seconds']:g} s: 2 images of {WIDTH}x{HEIGHT} bgr8 at {TICK_HZ} Hz, clouds of {POINTS} points at "
        f"{TICK_HZ // LIDAR_EVERY} Hz, calibrations; {record['machine']}, {record['cores']} cores.",
        "",
        "| | CPU of one core | published after start-up | missing in the bag | bag |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in record["rows"].items():
        lines.append(
            f"| {name} | {row['cpu']:.0%} | {row['published']} | {row.get('missing', 'kept: ' + str(row['recorded']))} | {row['mb']} MB |"
        )
    return "\n".join([*lines, "", f"Made by `{record['command']}`.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "record")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        rows = {
            "logger, everything": with_logger("everything", args.seconds, folder / "everything"),
            "logger, keyframes": with_logger("keyframes", args.seconds, folder / "keyframes"),
            "rosbags, ceiling": with_rosbags(args.seconds, folder / "rosbags"),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    record = {
        "command": shlex.join(["python", "bench/record.py", *sys.argv[1:]]),
        "seconds": args.seconds,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(page(record))
    print(page(record))


if __name__ == "__main__":
    main()
