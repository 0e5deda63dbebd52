"""What `lix doctor` says of ROS: distribution, middleware, whether images really arrive, and the optional packages."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from typing import Iterator

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from lix_core.cli.doctor import ABSENT, FAULT, OK, Check
from lix_core.errors import LixError
from lix_ros import messages, qos
from lix_ros.paths import PROFILE_VARIABLES, TRANSPORT_VARIABLE, USER_CHOICES, transport_environment

OPTIONAL = {
    "cv_bridge": "reads rarer image encodings",
    "vision_msgs": "publishes ~/label_info",
    "launch_ros": "runs the launch files; without: `lix demo`, or the node's executable",
}
PROBE_TOPIC = "/lix_doctor/image_"
"""Followed by the process that asks, so that two doctors do not count each other's images."""
PROBE_FRAMES = 30
PROBE_SHAPE = (375, 1242, 3)


def checks() -> Iterator[Check]:
    """Every check of the ROS side; the transport one starts a second process and takes some seconds."""
    chosen = [f"{v}={os.environ[v]}" for v in USER_CHOICES if os.environ.get(v)]
    try:
        os.environ.update(transport_environment())
    except LixError as error:
        yield Check("transport", FAULT, str(error), f"unset {TRANSPORT_VARIABLE}, or name a file that is there")
        return
    distribution = os.environ.get("ROS_DISTRO") or "wheels from PyPI (no ROS installation is sourced)"
    try:
        rclpy.init(args=[])
    except Exception as error:  # rclpy reports a missing middleware by exceptions of several kinds
        yield Check(
            "ROS 2",
            FAULT,
            f"{distribution}: rclpy does not start: {error}",
            "install an RMW: ros-<distro>-rmw-fastrtps-cpp, or pip install '.[ros]' in the sources of lix",
        )
        return
    try:
        yield Check("ROS 2", OK, f"{distribution}, domain {os.environ.get('ROS_DOMAIN_ID', '0')}")
        rmw = get_rmw_implementation_identifier()
        used = [v for v in PROFILE_VARIABLES if os.environ.get(v)]
        profile = ", ".join(chosen) or (f"{os.environ[used[0]]}, set by lix" if used else "none, as Fast DDS or the RMW comes")
        yield Check("middleware", OK, f"{rmw}; profile: {profile}")
        yield transport_check()
    finally:
        rclpy.try_shutdown()
    yield shared_memory_check()
    for package, use in OPTIONAL.items():
        found = importlib.util.find_spec(package) is not None
        yield Check(package, OK if found else ABSENT, use, "" if found else f"sudo apt install ros-<distro>-{package.replace('_', '-')}")


def transport_check() -> Check:
    """Send images from a second process with best effort, the way cameras do, and count those that come."""
    node = Node("lix_doctor")
    received: list[int] = []
    topic = f"{PROBE_TOPIC}{os.getpid()}"
    node.create_subscription(Image, topic, lambda _: received.append(1), qos.stream("best_effort", 5))
    sender = subprocess.Popen([sys.executable, "-m", "lix_ros.doctor", topic], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while time.monotonic() < end and (sender.poll() is None) and len(received) < PROBE_FRAMES:
        rclpy.spin_once(node, timeout_sec=0.1)
    sender.terminate()
    sender.wait()
    node.destroy_node()
    finding = f"{len(received)} of {PROBE_FRAMES} best-effort images of 1242x375 arrived from another process"
    if len(received) >= 0.9 * PROBE_FRAMES:
        return Check("transport", OK, finding)
    return Check(
        "transport", FAULT, finding, "unset your own Fast DDS profile or transports, or give them 64 MB of shared memory: docs/transport.md"
    )


def shared_memory_check() -> Check:
    try:
        free = shutil.disk_usage("/dev/shm").free / 1e6
    except OSError:
        return Check("shared memory", FAULT, "there is no /dev/shm", "mount one; in Docker: --shm-size=1g, or --ipc=host")
    if free < 256:
        return Check(
            "shared memory",
            FAULT,
            f"{free:.0f} MB free in /dev/shm; each node takes 64 MB",
            "in Docker: --shm-size=1g; else `fastdds shm clean`",
        )
    return Check("shared memory", OK, f"{free:.0f} MB free in /dev/shm")


def send_probe(topic: str) -> None:
    """The other end of transport_check."""
    rclpy.init(args=[])
    node = Node("lix_doctor_sender")
    publisher = node.create_publisher(Image, topic, qos.stream("best_effort", 5))
    end = time.monotonic() + 10
    while publisher.get_subscription_count() == 0 and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.3)  # discovery is done on this side, maybe not yet on the other
    pixels = np.zeros(PROBE_SHAPE, np.uint8)
    for _ in range(PROBE_FRAMES):
        publisher.publish(messages.array_to_image(pixels, "bgr8", Header(stamp=node.get_clock().now().to_msg())))
        time.sleep(0.03)
    time.sleep(0.5)
    rclpy.try_shutdown()


if __name__ == "__main__":
    send_probe(sys.argv[1])
