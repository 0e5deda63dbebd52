"""The logger node, in a process of its own: what is published over Fast DDS is in the bag, and told when it is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2: neither an installation is sourced nor are the wheels installed")

from builtin_interfaces.msg import Time  # noqa: E402
from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from rclpy.qos import HistoryPolicy, QoSProfile  # noqa: E402
from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402
from std_msgs.msg import Int32, String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

import bundles  # noqa: E402
from lix_core.bags.index import Options  # noqa: E402
from lix_core.bags.keyframes import keyframe_record  # noqa: E402
from lix_core.bags.reader import Bag, bags_in, whole_of  # noqa: E402
from lix_core.bags.sensors import open_frames, to_metres  # noqa: E402
from lix_core.bags.topics import find_topics  # noqa: E402
from lix_core.bags.writer import Qos  # noqa: E402
from lix_core.camera import Camera as Calibration  # noqa: E402
from lix_ros import messages, qos  # noqa: E402
from lix_ros.logger_node import LATCHED_DEPTH, LoggerNode, offer_of, profiles_for  # noqa: E402
from lix_ros.paths import profile_variable  # noqa: E402
from ros import NodeProcess, Peer, image_message, node_here, node_starter, wait_for  # noqa: E402

SECOND = 10**9
DISCOVERY_S = 0.5
"""Each side finds the other in its own time: a publisher that has its subscriber may not yet be heard."""
QUIET = {"uncertainty": 0.0, "view": 0.0, "interval": 0.0}
"""Keyframes for no reason but a trigger."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "recordings"


@pytest.fixture
def start(tmp_path: Path, folder: Path) -> Iterator[Callable[..., NodeProcess]]:
    with node_starter("logger_node", tmp_path, diagnostics_period=0.1, disk_floor=0, silence_timeout=60.0) as start_node:
        yield partial(start_node, folder=str(folder))


def read(folder: Path) -> list[tuple[str, bytes]]:
    """(topic, raw) of all that is in the bags of a folder, as recorded."""
    found = []
    for path in bags_in(folder):
        with Bag(path) as bag:
            found += [(topic, bytes(raw)) for topic, _, _, raw in bag.messages([t.name for t in bag.topics])]
    return found


def of(messages: list[tuple[str, bytes]], topic: str) -> list[bytes]:
    return [raw for name, raw in messages if name == topic]


def images(messages: list[tuple[str, bytes]], topic: str = "/image") -> list[Image]:
    """The images of a topic. Bytes are not compared: what CDR fills up with is whatever was there before."""
    return [deserialize_message(raw, Image) for raw in of(messages, topic)]


class Camera:
    """Publishes images with ascending stamps, and remembers them."""

    def __init__(self, peer: Peer, topic: str = "/image", kind: type = Image):
        told, self.publisher = peer.diagnostics("logger"), peer.publisher(kind, topic)
        # The subscriber may be that of a test before, whose end is not known yet.
        unknown = f"; {topic}: nobody publishes it"
        wait_for(lambda: told.latest and unknown not in told.latest.message, f"the logger does not see {topic}")
        self.sent, self.start = [], time.time_ns()
        time.sleep(DISCOVERY_S)

    def send(self, index: int, pixels: np.ndarray | None = None) -> int:
        """Image `index` of ten a second; its stamp."""
        stamp = self.start + index * SECOND // 10
        message = image_message(bundles.random_image(12, 16, index) if pixels is None else pixels, "rgb8", stamp)
        self.sent.append(message)
        self.publisher.publish(message)
        return stamp


def recorded(peer: Peer, count: int, key: str = "messages recorded") -> Any:
    """Wait until the logger says that it has so many."""
    told = peer.diagnostics("logger")
    wait_for(lambda: told.value(key).isdigit() and int(told.value(key)) >= count, lambda: f"the last was {told.latest}")
    return told


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_everything_is_recorded_as_it_came_with_what_its_publishers_offer(start: Any, peer: Peer, folder: Path, storage: str) -> None:
    names = peer.node.create_publisher(String, "/label_names", qos.latched())
    names.publish(String(data=json.dumps({"road": 0})))
    own = peer.node.create_publisher(Int32, "/wheel/ticks", qos.stream("best_effort", 5))
    node = start(mode="everything", storage=storage, extra="/wheel/ticks")
    camera = Camera(peer)
    wait_for(lambda: own.get_subscription_count() > 0, "the extra topic is not recorded")
    time.sleep(DISCOVERY_S)
    for index in range(20):
        camera.send(index)
        own.publish(Int32(data=index))
        time.sleep(0.01)
    recorded(peer, 41)
    assert node.stop() == 0
    messages = read(folder)
    assert images(messages) == camera.sent
    assert of(messages, "/wheel/ticks") == [serialize_message(Int32(data=i)) for i in range(20)]
    assert of(messages, "/label_names") == [serialize_message(String(data=json.dumps({"road": 0})))]
    (path,) = bags_in(folder)
    with Bag(path) as bag:
        assert {t.name: (t.type, t.latched) for t in bag.topics} == {
            "/image": ("sensor_msgs/msg/Image", False),
            "/wheel/ticks": ("std_msgs/msg/Int32", False),
            "/label_names": ("std_msgs/msg/String", True),
        }
        assert find_topics(bag)[0].image == "/image"
    assert "41 messages" in node.output


def test_depth_is_recorded_with_the_calibration_that_says_of_which_pixels_it_is(start: Any, peer: Peer, folder: Path) -> None:
    node = start({"depth": "/geometry/depth", "depth/camera_info": "/geometry/camera_info"}, mode="everything")
    raw = Calibration(64, 48, (60.0, 0, 32, 0, 60.0, 24, 0, 0, 1), "plumb_bob", (-0.3, 0.08, 0, 0, 0))
    pictures, depths = Camera(peer), Camera(peer, "/geometry/depth")
    infos = {Camera(peer, "/camera_info", CameraInfo): raw, Camera(peer, "/geometry/camera_info", CameraInfo): raw.rectified()}
    depth = np.full((48, 64), 20, np.float32)
    depth[5:15, 5:20] = 3.0
    stamp = pictures.send(0, np.zeros((48, 64, 3), np.uint8))
    depths.publisher.publish(image_message(depth, "32FC1", stamp))
    for source, calibration in infos.items():
        source.publisher.publish(messages.camera_info(calibration, pictures.sent[0].header))
    recorded(peer, 4)
    assert node.stop() == 0
    _, plans, reader = open_frames(*bags_in(folder), Options())
    ((_, frame),) = reader.read(plans)
    np.testing.assert_array_equal(to_metres(frame.depth), depth)


@pytest.mark.parametrize(
    ("remaps", "published"),
    [
        ({"image": "/right/image", "right/image": "/left/image"}, ["/right/image", "/left/image"]),
        ({"image": "/right/image", "right/image": "right/image_raw"}, ["/right/image"]),
    ],
    ids=["swapped", "as record.launch.py has it"],
)
def test_a_topic_that_has_the_name_of_another_input_is_recorded_as_itself(
    start: Any, peer: Peer, folder: Path, remaps: dict[str, str], published: list[str]
) -> None:
    node = start(remaps, mode="everything", topics=["image", "right_image"])
    cameras = {topic: Camera(peer, topic) for topic in published}
    for place, camera in enumerate(cameras.values()):
        for index in range(3):
            camera.send(3 * place + index)
    recorded(peer, 3 * len(cameras))
    assert node.stop() == 0
    messages = read(folder)
    assert {topic: images(messages, topic) for topic in {name for name, _ in messages}} == {t: c.sent for t, c in cameras.items()}


def test_an_uncertain_image_is_kept_with_its_depth_and_a_record_of_why(start: Any, peer: Peer, folder: Path) -> None:
    node = start(**{**QUIET, "uncertainty": 0.5}, least_confidence=0.6, least_interval=0.0, slop=0.02, patience=5.0)
    live = peer.listen(String, "/logger/keyframes")
    camera, depth, confidence = Camera(peer), Camera(peer, "/depth"), Camera(peer, "/confidence")
    depth.start, confidence.start = camera.start + 5_000_000, camera.start
    for index in range(10):
        camera.send(index)
        depth.send(index)
        # 152 is just below 0.6 of 255: of image 4, 60 % of the pixels are not sure, of the others 40 %.
        unsure = 0.6 if index == 4 else 0.4
        pixels = np.where(np.arange(100) < 100 * unsure, 152, 153).astype(np.uint8).reshape(10, 10)
        confidence.publisher.publish(image_message(pixels, "mono8", camera.start + index * SECOND // 10))
        time.sleep(0.02)
    recorded(peer, 3)
    assert node.stop() == 0
    messages = read(folder)
    assert images(messages) == [camera.sent[4]] and images(messages, "/depth") == [depth.sent[4]]
    (raw,) = of(messages, "/logger/keyframes")
    record = keyframe_record(raw)
    assert record["reasons"] == ["uncertain"] and record["stamp"] == camera.start + 4 * SECOND // 10
    assert record["uncertainty"] == pytest.approx(0.6) and record["partners"] == {"/depth": record["stamp"] + 5_000_000}
    wait_for(lambda: live, "no record on /logger/keyframes")
    assert [json.loads(message.data)["stamp"] for message in live] == [record["stamp"]]


def test_a_trigger_keeps_what_was_before_and_what_comes_after(start: Any, peer: Peer, folder: Path) -> None:
    node = start(**QUIET, before=1.0, after=0.4, patience=0.1, queue=1)  # a trigger needs room for all that is buffered
    camera = Camera(peer)
    told = peer.diagnostics("logger")
    for index in range(5):
        camera.send(index)
        time.sleep(0.05)
    wait_for(lambda: told.value("images") == "5", "the images did not come")
    time.sleep(0.3)
    assert told.value("messages recorded") == "0"
    answer = peer.call(Trigger, "/logger/trigger", Trigger.Request())
    assert answer.success and "of the 1 s before; all of the next 0.4 s follows" in answer.message
    camera.send(5)
    time.sleep(1.0)
    camera.send(6)
    time.sleep(0.3)
    assert node.stop() == 0
    assert images(read(folder)) == camera.sent[:6]


def test_a_buffer_that_is_too_small_for_a_trigger_is_told(start: Any, peer: Peer, folder: Path) -> None:
    node = start(**QUIET, before=5.0, after=0.0, buffer=3 * 1000)  # four images of 576 bytes and a header
    told, camera = peer.diagnostics("logger"), Camera(peer)
    camera.send(0)
    wait_for(lambda: told.value("images") == "1", "the image did not come")
    assert told.value("held for a trigger [s]") == "5.00" and "buffer" not in told.latest.message
    for index in range(1, 12):
        camera.send(index)
        time.sleep(0.1)
    told.wait("of the 5 s of `before`; raise `buffer`", DiagnosticStatus.WARN)
    assert 0.3 < float(told.value("held for a trigger [s]")) < 2.0
    answer = peer.call(Trigger, "/logger/trigger", Trigger.Request())
    assert answer.success and "of the 5 s of `before`; raise `buffer`)" in answer.message and "of the 5 s before" not in answer.message
    assert node.stop() == 0
    kept = images(read(folder))
    assert 2 < len(kept) < 6 and kept == camera.sent[-len(kept) :]


@pytest.mark.parametrize("wrong", [37, -37])
def test_a_wrong_clock_is_told_and_what_comes_with_it_is_recorded(start: Any, peer: Peer, folder: Path, wrong: int) -> None:
    node = start(mode="rate", rate=5.0, patience=0.3, topics=["image", "depth"])
    told, camera, depth = peer.diagnostics("logger"), Camera(peer), Camera(peer, "/depth")
    depth.start = camera.start + wrong * SECOND
    for index in range(30):
        camera.send(index)
        depth.send(index)
        time.sleep(0.1)
    told.wait("0 % of the keyframes found a partner on /depth within 50 ms; /depth comes 3", DiagnosticStatus.WARN)
    offset = re.search(r"set it right; `lix bag extract --offset (-?[\d.]+)` pairs what is recorded", told.latest.message)
    assert offset and abs(float(offset[1]) - wrong) < 0.2, told.latest.message
    assert ("earlier after its stamp than /image" in told.latest.message) == (wrong > 0) != ("raise patience" in told.latest.message)
    assert told.value("/depth found for keyframes [%]") == "0" and abs(float(told.value("/depth lag [s]")) + wrong) < 0.2
    assert node.stop() == 0
    messages = read(folder)
    places = {
        topic: {camera.sent.index(i) if topic == "/image" else depth.sent.index(i) for i in images(messages, topic)}
        for topic in ("/image", "/depth")
    }
    late = {place for place in places["/image"] if place >= 16}
    assert len(late) >= 6 and all(places["/depth"] & {place - 1, place, place + 1} for place in late)


def partners_of(node: LoggerNode, count: int = 100, late: int = 0, wrong: int = 0, every: int = 1) -> str:
    """What diagnostics say of depth after images of 10 Hz, one in `every` with depth that comes `late` and is stamped `wrong` [ms]."""
    images = [(ms, "/image", ms) for ms in range(0, 100 * count, 100)]
    depths = [(ms + late, "/depth", ms + wrong) for ms in range(0, 100 * count, 100 * every)]
    for now, topic, stamp in sorted(images + depths, key=lambda message: message[0]):
        node._selector.add(topic, 100 * SECOND + stamp * 1_000_000, b"", 100 * SECOND + now * 1_000_000)
    return node._complaint_of_partner("/depth")


@pytest.mark.parametrize(
    ("drive", "words"),
    [
        ({}, None),
        ({"late": 300}, None),
        (
            {"late": 800},
            "0 % of the keyframes found a partner on /depth within 20 ms; /depth comes 0.8 s after its image; an image waits for it 0.5 s",
        ),
        ({"wrong": 30}, "0 % of the keyframes found a partner on /depth within 20 ms; its nearest stamp is typically 30 ms later: set a"),
        (
            {"every": 5},
            "20 % of the keyframes found a partner on /depth within 20 ms, though its nearest stamp is typically 0 ms away: many are",
        ),
    ],
)
def test_why_few_keyframes_find_a_partner_is_told(ros: None, folder: Path, drive: dict, words: str | None) -> None:
    chosen = {"mode": "rate", "rate": 10.0, "slop": 0.02, "topics": ["image", "depth"]}
    with node_here(LoggerNode, folder=str(folder), disk_floor=0, **chosen) as node:
        told = partners_of(node, **drive)
        assert told == "" if words is None else told.startswith(words)
        node._inputs["/depth"].trouble = ""
        health = node._health()[1]
        assert words in health if words else "/depth found" not in health and "of the keyframes" not in health
        node._inputs["/depth"].trouble = "nobody publishes it any more"
        assert "of the keyframes" not in node._health()[1]


def test_the_view_and_the_interval_are_reasons(start: Any, peer: Peer, folder: Path) -> None:
    node = start(uncertainty=0.0, view=0.3, interval=1.5, least_interval=0.0, patience=0.1)
    camera = Camera(peer)
    dark, bright = (np.indices((24, 32)).sum(0) * 4 + 20).astype(np.uint8), (np.indices((24, 32)).sum(0)[:, ::-1] * 4).astype(np.uint8)
    for index in range(30):
        camera.send(index, np.dstack([bright if index >= 7 else dark] * 3))
        time.sleep(0.01)
    recorded(peer, 6)
    assert node.stop() == 0
    messages = read(folder)
    reasons = {
        (keyframe_record(raw)["stamp"] - camera.start) // (SECOND // 10): keyframe_record(raw)["reasons"]
        for raw in of(messages, "/logger/keyframes")
    }
    assert reasons == {0: ["view", "interval"], 7: ["view"], 22: ["interval"]}


def test_rate_takes_an_image_in_every_so_many(start: Any, peer: Peer, folder: Path) -> None:
    node = start(mode="rate", rate=2.0, patience=0.1)
    camera = Camera(peer)
    for index in range(21):
        camera.send(index)
        time.sleep(0.01)
    recorded(peer, 10)
    assert node.stop() == 0
    assert images(read(folder)) == [camera.sent[i] for i in (0, 5, 10, 15, 20)]


def test_pause_resume_and_split(start: Any, peer: Peer, folder: Path) -> None:
    names = peer.node.create_publisher(String, "/label_names", qos.latched())
    names.publish(String(data="{}"))
    node = start(mode="everything")
    camera = Camera(peer)
    camera.send(0)
    recorded(peer, 2)
    assert peer.call(Trigger, "/logger/pause", Trigger.Request()).message.startswith("paused; 2 messages")
    told = peer.diagnostics("logger")
    camera.send(1)
    wait_for(lambda: told.value("/image received").startswith("2 "), "the image did not come")
    assert peer.call(Trigger, "/logger/resume", Trigger.Request()).success
    assert peer.call(Trigger, "/logger/split", Trigger.Request()).message.startswith(f"ends {folder}")
    camera.send(2)
    recorded(peer, 4)
    assert peer.call(Trigger, "/logger/trigger", Trigger.Request()).success is False
    assert node.stop() == 0
    first, second = (read(path) for path in bags_in(folder))
    assert images(first) == [camera.sent[0]] and images(second) == [camera.sent[2]]
    assert len(of(first, "/label_names")) == len(of(second, "/label_names")) == 1, "a bag must say by itself what its labels mean"


def test_in_a_pause_nothing_is_chosen_so_what_comes_after_it_is_new(start: Any, peer: Peer, folder: Path) -> None:
    node = start(uncertainty=0.0, view=0.3, interval=0.0, least_interval=0.0, patience=0.1, topics=["image"])
    camera, told = Camera(peer), peer.diagnostics("logger")
    ramp = (np.indices((24, 32)).sum(0) * 4 + 20).astype(np.uint8)
    for index, pixels in enumerate([ramp, ramp[:, ::-1], ramp[:, ::-1]]):
        camera.send(index, np.dstack([pixels] * 3))
        wait_for(lambda: told.value("/image received").startswith(f"{index + 1} "), "the image did not come")
        if index == 0:
            recorded(peer, 2)
        assert peer.call(Trigger, "/logger/pause" if index == 0 else "/logger/resume", Trigger.Request()).success
    recorded(peer, 4)
    assert told.value("keyframes") == "2"
    assert node.stop() == 0
    messages = read(folder)
    assert images(messages) == [camera.sent[0], camera.sent[2]]
    stamps = [keyframe_record(raw)["stamp"] for raw in of(messages, "/logger/keyframes")]
    assert stamps == [camera.start, camera.start + 2 * SECOND // 10]


def test_what_was_latched_is_recorded_once_though_another_publisher_is_not(start: Any, peer: Peer, folder: Path) -> None:
    latched = peer.node.create_publisher(String, "/label_names", qos.latched())
    latched.publish(String(data="a"))
    volatile = peer.node.create_publisher(String, "/label_names", qos.stream("reliable", 5))
    node = start(mode="everything")
    camera = Camera(peer)
    wait_for(lambda: volatile.get_subscription_count() == 1 and latched.get_subscription_count() == 2, "it is not recorded")
    camera.send(0)
    recorded(peer, 2)
    for _ in range(3):
        volatile.publish(String(data="b"))  # who says a thing again is recorded again
    latched.publish(String(data="c"))
    recorded(peer, 6)
    assert node.stop() == 0
    said = sorted(deserialize_message(raw, String).data for raw in of(read(folder), "/label_names"))
    assert said == ["a", "b", "b", "b", "c"]


def test_of_both_cameras_compressed_images_are_recorded_where_that_is_asked_for(ros: None, folder: Path) -> None:
    chosen = ["image", "right_image", "camera_info", "depth"]
    for transport, suffix in (("raw", ""), ("compressed", "/compressed")):
        with node_here(LoggerNode, folder=str(folder), disk_floor=0, topics=chosen, image_transport=transport) as node:
            assert list(node._inputs) == [f"/image{suffix}", f"/right/image{suffix}", "/camera_info", "/depth"]


def test_what_student_and_teacher_say_is_a_share_of_the_pixels(ros: None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, int, float]] = []
    reasons = {"uncertainty": 0.3, "disagreement": 0.3, "least_confidence": 0.6}
    with node_here(LoggerNode, folder=str(folder), disk_floor=0, **reasons) as node:
        for what in ("uncertainty", "disagreement"):
            monkeypatch.setattr(node._selector, what, lambda stamp, share, what=what: said.append((what, stamp, share)) or [])
        pixels = np.repeat(np.uint8([255, 0]), [30, 70]).reshape(10, 10)  # sure, and of two minds, on 30 %
        for subscription in node.subscriptions:
            if subscription.topic_name in ("/confidence", "/disagreement"):
                subscription.callback(image_message(pixels, "mono8", 7))
    assert sorted(said) == [("disagreement", 7, 0.3), ("uncertainty", 7, 0.7)]


def test_a_topic_is_heard_as_all_of_its_publishers_offer_it() -> None:
    reliable, loose, latched = Qos(), Qos("best_effort"), Qos(durability="transient_local", depth=1)

    def heard(*offers: Qos) -> list[tuple[str, str, int]]:
        return [(p.reliability.name, p.durability.name, p.depth) for p in profiles_for(offers, 50)]

    assert heard(reliable, reliable) == [("RELIABLE", "VOLATILE", 50)]
    assert heard(reliable, loose) == [("BEST_EFFORT", "VOLATILE", 50)], "a reliable subscription hears no best effort publisher"
    assert heard(latched) == [("RELIABLE", "TRANSIENT_LOCAL", LATCHED_DEPTH)]
    assert heard(latched, loose) == [("BEST_EFFORT", "VOLATILE", 50), ("RELIABLE", "TRANSIENT_LOCAL", LATCHED_DEPTH)]


def test_what_publishers_offer_is_noted_anew_where_they_change(ros: None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volatile, latched = (
        SimpleNamespace(topic_type="std_msgs/msg/String", qos_profile=p) for p in (qos.stream("reliable", 5), qos.latched())
    )
    noted: list[tuple[Qos, ...]] = []
    with node_here(LoggerNode, folder=str(folder), disk_floor=0, mode="everything", topics=["label_names"]) as node:
        add = node._recording.add
        monkeypatch.setattr(node._recording, "add", lambda topic: (noted.append(topic.qos), add(topic)))
        monkeypatch.setattr(node, "get_publishers_info_by_topic", lambda name: offers)
        for offers in ([volatile], [volatile], [volatile, latched]):
            node._look()
    assert noted == [(Qos(depth=5),), (Qos(depth=5), Qos(durability="transient_local", depth=1))]


def test_what_is_offered_is_noted_as_bags_have_it() -> None:
    assert offer_of(qos.latched()) == Qos("reliable", "transient_local", "keep_last", 1)
    assert offer_of(qos.stream("best_effort", 7)) == Qos("best_effort", "volatile", "keep_last", 7)
    assert offer_of(QoSProfile(history=HistoryPolicy.KEEP_ALL)) == Qos("reliable", "volatile", "keep_all", 10)


def test_what_nobody_publishes_is_told_and_recorded_when_somebody_does(start: Any, peer: Peer, folder: Path) -> None:
    node = start(mode="everything", topics=["image", "camera_info"])
    told = peer.diagnostics("logger")
    told.wait("/camera_info: nobody publishes it", DiagnosticStatus.WARN)
    camera, info = Camera(peer), peer.publisher(CameraInfo, "/camera_info", "best_effort")
    told.wait("waiting", DiagnosticStatus.OK)
    camera.send(0)
    info.publish(CameraInfo(width=7))
    recorded(peer, 2)
    told.wait("recording", DiagnosticStatus.OK)
    assert node.stop() == 0
    assert len(of(read(folder), "/camera_info")) == 1


def test_what_waited_for_its_partners_is_no_jump_of_the_clock(start: Any, peer: Peer, folder: Path) -> None:
    node = start(uncertainty=0.9, view=0.0, interval=0.1, least_interval=0.0, patience=0.7, topics=["image", "camera_info", "depth"])
    Camera(peer, "/confidence")
    camera, info = Camera(peer), peer.publisher(CameraInfo, "/camera_info")
    end = time.monotonic() + 2.5
    index = 0
    while time.monotonic() < end:  # neither confidence nor depth ever comes: images wait for 0.7 s, calibrations do not
        camera.send(index)
        info.publish(CameraInfo())
        index += 1
        time.sleep(0.05)
    assert node.stop() == 0 and "the clock went back" not in node.output
    assert len(images(read(folder))) == index


def test_images_do_not_wait_for_a_student_that_is_not_there(start: Any, peer: Peer, folder: Path) -> None:
    node = start(uncertainty=0.3, view=0.0, interval=0.1, least_interval=0.0, patience=60.0, topics=["image"])
    told, camera = peer.diagnostics("logger"), Camera(peer)
    camera.send(0)
    wait_for(lambda: told.value("keyframes") == "1", lambda: f"the image still waits: {told.latest}")
    Camera(peer, "/confidence")
    camera.send(1)
    wait_for(lambda: told.value("images") == "2", "the image did not come")
    assert told.value("keyframes") == "1", "its student may still say something"
    assert node.stop() == 0 and len(images(read(folder))) == 2


def test_kill_9_loses_less_than_a_second_of_keyframes_whose_student_says_nothing(
    start: Any, peer: Peer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the patience of the default: every image waits, and then for the disk. Without shared memory, which who is killed cannot
    put in order for the nodes after it."""
    monkeypatch.delenv(profile_variable(os.environ), raising=False)
    monkeypatch.setenv("FASTDDS_BUILTIN_TRANSPORTS", "UDPv4")
    node = start(view=0.0, interval=0.05, least_interval=0.0, topics=["image"])
    camera, _ = Camera(peer), Camera(peer, "/confidence")
    sent = []
    for index in range(25):
        camera.send(index)
        sent.append(time.monotonic())
        time.sleep(0.1)
    killed = time.monotonic()
    node.process.kill()
    node.process.wait()
    (path,) = bags_in(folder)
    found = images(whole_of(path, lambda bag: [(topic, bytes(raw)) for topic, _, _, raw in bag.messages()]))
    assert found == camera.sent[: len(found)]
    assert len(found) == len(sent) or killed - sent[len(found)] < 1.0


def test_an_image_that_cannot_be_looked_at_is_told_and_the_node_goes_on(start: Any, peer: Peer, folder: Path) -> None:
    node = start(uncertainty=0.0, view=0.1, interval=0.2, least_interval=0.0, patience=0.1)
    told, camera = peer.diagnostics("logger"), Camera(peer)
    for index in range(1, 100):
        broken = image_message(bundles.random_image(12, 16), "rgb8", camera.start + index * SECOND // 10 - SECOND // 20)
        broken.encoding = "no such encoding"
        camera.publisher.publish(broken)
        camera.send(index)
        time.sleep(0.05)
        if int(told.value("messages recorded") or 0) >= 4:
            break
    assert node.stop() == 0 and "no such encoding" in node.output
    found = images(read(folder))
    assert any(image in found for image in camera.sent)


def test_an_image_topic_that_carries_something_else_is_recorded_and_ends_nothing(start: Any, peer: Peer, folder: Path) -> None:
    node = start(uncertainty=0.0, view=0.1, interval=0.2, least_interval=0.0, patience=0.1)
    texts = peer.publisher(String, "/image")
    time.sleep(DISCOVERY_S)
    for index in range(3):
        texts.publish(String(data=f"picture {index}"))
        time.sleep(0.3)
    recorded(peer, 4)
    assert node.stop() == 0 and "view of an image" in node.output
    assert [deserialize_message(raw, String).data for raw in of(read(folder), "/image")][:2] == ["picture 0", "picture 1"]


@pytest.mark.parametrize("under_nohup", [False, True])
def test_a_closed_terminal_ends_the_bag_but_not_under_nohup(start: Any, peer: Peer, folder: Path, under_nohup: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if under_nohup else signal.SIG_DFL)
    node = start(mode="everything", topics=["image"])  # inherits it
    signal.signal(signal.SIGHUP, before)
    camera = Camera(peer)
    camera.send(0)
    recorded(peer, 1)
    node.process.send_signal(signal.SIGHUP)
    if under_nohup:
        camera.send(1)
        recorded(peer, 2)
        assert node.stop() == 0
    assert node.process.wait(timeout=30) == 0
    (path,) = bags_in(folder)
    assert (path / "metadata.yaml").exists() and images(read(folder)) == camera.sent


def test_a_removed_folder_is_told_and_recording_goes_on_in_a_new_one(start: Any, peer: Peer, folder: Path) -> None:
    node = start(mode="everything", topics=["image"])
    told, camera = peer.diagnostics("logger"), Camera(peer)
    camera.send(0)
    recorded(peer, 1)
    (gone,) = bags_in(folder)
    shutil.rmtree(folder)
    told.wait("not recording: cannot write bag", DiagnosticStatus.ERROR)
    assert f"{gone}: it was removed or moved" in told.latest.message
    index = 1

    def recording_again() -> bool:
        nonlocal index
        camera.send(index)
        index += 1
        time.sleep(0.1)
        return told.value("state") == "recording" and told.value("messages recorded") != "0"

    wait_for(recording_again, lambda: node.output)
    assert node.stop() == 0 and "records again into" in node.output
    found = images(read(folder))
    assert found and found == camera.sent[-len(found) :]


def test_a_topic_that_falls_silent_goes_or_changes_its_type_is_told(start: Any, peer: Peer, folder: Path) -> None:
    node = start(mode="everything", topics=["image"], extra="/odd", silence_timeout=0.6)
    told, camera = peer.diagnostics("logger"), Camera(peer)
    odd = peer.publisher(String, "/odd")
    told.wait("/image: no message for 1 s: 1 publishers", DiagnosticStatus.WARN)
    assert "/odd" not in told.latest.message, "events may be rare"
    camera.send(0)
    odd.publish(String(data="a"))
    recorded(peer, 2)
    peer.node.destroy_publisher(camera.publisher)
    peer.node.destroy_publisher(odd)
    told.wait("/image: nobody publishes it any more; /odd: nobody publishes it any more", DiagnosticStatus.WARN)
    peer.node.create_publisher(Int32, "/odd", qos.stream("reliable", 5)).publish(Int32(data=7))
    told.wait("/odd: it was std_msgs/msg/String and now carries std_msgs/msg/Int32", DiagnosticStatus.WARN)
    assert node.stop() == 0
    assert [deserialize_message(raw, String).data for raw in of(read(folder), "/odd")] == ["a"]


@pytest.mark.parametrize("mode", ["everything", "rate"])
def test_a_camera_whose_stamp_stands_still_is_told_until_it_moves(start: Any, peer: Peer, mode: str) -> None:
    node = start(mode=mode, rate=10.0, topics=["image"], silence_timeout=0.6)
    told, camera = peer.diagnostics("logger"), Camera(peer)
    camera.start = 1700000000 * SECOND

    def says(words: str, index: Callable[[], int]) -> bool:
        camera.send(index())
        time.sleep(0.05)
        return words in told.latest.message

    complaint = "/image: its stamp has stood still at 1700000000.000 s for 1 s, and by stamps images are chosen"
    wait_for(lambda: says(complaint, lambda: 0), lambda: f"the last was {told.latest}")
    assert told.latest.level == DiagnosticStatus.WARN
    assert mode == "everything" or told.value("keyframes") == "1"
    wait_for(lambda: says("recording", lambda: len(camera.sent)) and "stood still" not in told.latest.message, lambda: str(told.latest))
    assert told.latest.level == DiagnosticStatus.OK and node.stop() == 0


def test_before_the_first_clock_nothing_is_recorded_and_that_is_told(start: Any, peer: Peer, folder: Path) -> None:
    node = start(mode="everything", topics=["image"], use_sim_time=True)
    told, camera = peer.diagnostics("logger"), Camera(peer)
    camera.send(0)
    wait_for(lambda: told.value("/image received").startswith("1 "), "the image did not come")
    told.wait("/clock: no time yet", DiagnosticStatus.WARN)
    clock = peer.publisher(Clock, "/clock", "best_effort")
    time.sleep(DISCOVERY_S)
    clock.publish(Clock(clock=Time(sec=1000)))
    told.wait("waiting", DiagnosticStatus.OK)
    camera.send(1)
    recorded(peer, 1)
    assert node.stop() == 0
    (path,) = bags_in(folder)
    with Bag(path) as bag:
        assert [recorded_at for _, _, recorded_at, _ in bag.messages(["/image"])] == [1000 * SECOND]


def test_a_student_that_is_missing_and_a_trigger_in_vain_are_told(start: Any, peer: Peer, folder: Path) -> None:
    node = start(topics=["image"], view=0.0, interval=0.0)
    told = peer.diagnostics("logger")
    told.wait("/confidence: nobody publishes it, so there is no keyframe for it; set uncertainty to 0", DiagnosticStatus.WARN)
    peer.node.create_publisher(Image, "/confidence", 1)
    wait_for(lambda: "/confidence" not in told.latest.message, "the student was not found")
    peer.call(Trigger, "/logger/pause", Trigger.Request())
    answer = peer.call(Trigger, "/logger/trigger", Trigger.Request())
    assert (answer.success, answer.message) == (False, "nothing is kept: paused")
    assert node.stop() == 0


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"delete_oldest": True}, "set a quota"),
        ({"prefix": "a/b"}, "prefix 'a/b' cannot begin the name of a bag"),
        ({"topics": ["depth"]}, "mode 'keyframes' chooses among images: `topics` must have image"),
        ({"mode": "all"}, "mode must be one of everything, rate, keyframes, got 'all'"),
        ({"extra": "/fine topic!"}, "extra: 'topic!' is no name of a topic"),
        ({"folder": "/proc/nowhere"}, "/proc/nowhere"),
    ],
)
def test_settings_that_do_not_do_are_refused_in_words(tmp_path: Path, parameters: dict, words: str) -> None:
    given = [text for name, value in parameters.items() for text in ("-p", f"{name}:={json.dumps(value)}")]
    done = subprocess.run(
        [sys.executable, "-m", "lix_ros.logger_node", "--ros-args", *given], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
