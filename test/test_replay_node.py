"""The replay node, in a process of its own: every frame arrives, once, in order, with the right pixels; of the world, all that is true."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2: neither an installation is sourced nor are the wheels installed")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from rclpy.duration import Duration  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2  # noqa: E402
from std_msgs.msg import Header, String  # noqa: E402

import bags  # noqa: E402
import bundles  # noqa: E402
from lix_core.geometry.poses import matrix_from_pose  # noqa: E402
from lix_core.labels import STREET, LabelSet  # noqa: E402
from lix_ros import messages, qos, replay_node, replay_topics  # noqa: E402
from lix_ros.parameters import ReplayParameters  # noqa: E402
from lix_ros.replay_node import ReplayNode  # noqa: E402
from ros import NodeProcess, Peer, node_here, node_starter, pixels_of, stamp_ns, wait_for  # noqa: E402

CALIBRATION = """\
image_width: 64
image_height: 48
distortion_model: plumb_bob
camera_matrix: {data: [50, 0, 32, 0, 51, 24, 0, 0, 1]}
distortion_coefficients: {data: [0.1, 0, 0, 0, 0]}
rectification_matrix: {data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}
projection_matrix: {data: [50, 0, 32, 0, 0, 51, 24, 0, 0, 0, 1, 0]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve PNG images whose first pixel tells which one it is, numbered without leading zeros."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(12):
        image = bundles.random_image(48, 64, index)
        image[0, 0] = (index, 0, 0)
        cv2.imwrite(str(folder / f"{index}.png"), image[..., ::-1])
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    with node_starter("replay_node", tmp_path, rate=50.0, depth=50) as start_node:
        yield start_node


def finish(node: NodeProcess) -> int:
    return node.process.wait(timeout=30)


@pytest.mark.parametrize("encoding", ["bgr8", "rgb8", "mono8", "bgra8"])
def test_a_folder_arrives_whole_in_natural_order(start: Any, peer: Peer, folder: Path, encoding: str) -> None:
    images = peer.listen(Image, "/image")
    node = start(input=str(folder), encoding=encoding, frame_id="front")
    assert finish(node) == 0
    wait_for(lambda: len(images) >= 12, lambda: f"{len(images)} of 12 images; {node.output}")
    assert (len(images), {m.encoding for m in images}, {m.header.frame_id for m in images}) == (12, {encoding}, {"front"})
    stamps = [stamp_ns(m) for m in images]
    assert stamps == sorted(set(stamps))
    conversion = {"rgb8": None, "bgr8": cv2.COLOR_RGB2BGR, "mono8": cv2.COLOR_RGB2GRAY, "bgra8": cv2.COLOR_RGB2BGRA}[encoding]
    for index, message in enumerate(images):
        rgb = cv2.imread(str(folder / f"{index}.png"))[..., ::-1]
        expected = rgb if conversion is None else cv2.cvtColor(np.ascontiguousarray(rgb), conversion)
        np.testing.assert_array_equal(pixels_of(message), expected)


def test_camera_info_beside_the_images_is_published_with_their_stamps(start: Any, peer: Peer, folder: Path) -> None:
    (folder / "camera_info.yaml").write_text(CALIBRATION)
    images, infos = peer.listen(Image, "/image"), peer.listen(CameraInfo, "/camera_info")
    assert finish(start(input=str(folder))) == 0
    wait_for(lambda: min(len(images), len(infos)) >= 12, lambda: f"{len(images)} images and {len(infos)} camera_info of 12")
    assert [stamp_ns(m) for m in infos] == [stamp_ns(m) for m in images]
    assert (list(infos[0].k), list(infos[0].d), infos[0].width) == ([50, 0, 32, 0, 51, 24, 0, 0, 1], [0.1, 0, 0, 0, 0], 64)


def test_rate_is_kept_and_loop_starts_again(start: Any, peer: Peer, folder: Path) -> None:
    images = peer.listen(Image, "/image")
    start(input=str(folder), rate=40.0, loop=True)
    wait_for(lambda: len(images) >= 30, "it did not loop")
    assert [int(pixels_of(m)[0, 0, 2]) for m in images[:30]] == [i % 12 for i in range(30)]
    gaps = np.diff([stamp_ns(m) for m in images[:30]]) / 1e6
    assert gaps.min() > 8  # no double frame where a round ends
    assert abs(np.median(gaps) - 25) < 5


def test_compressed_is_the_same_picture_as_jpeg(start: Any, peer: Peer, tmp_path: Path) -> None:
    folder = tmp_path / "smooth"
    folder.mkdir()
    smooth = cv2.resize(bundles.random_image(3, 4), (64, 48), interpolation=cv2.INTER_LINEAR)
    cv2.imwrite(str(folder / "a.png"), smooth[..., ::-1])
    compressed = peer.listen(CompressedImage, "/image/compressed")
    start(input=str(folder), compressed=True, loop=True)
    wait_for(lambda: compressed, "nothing on image/compressed")
    decoded = cv2.imdecode(np.frombuffer(compressed[0].data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert compressed[0].format == "jpeg"
    assert np.abs(decoded.astype(int) - smooth).mean() < 3


def test_a_bag_is_played_with_its_own_calibration_and_timing(start: Any, peer: Peer, tmp_path: Path) -> None:
    frames = [bundles.random_image(48, 64, seed) for seed in range(6)]
    written = []
    for time_ms, frame in zip((0, 50, 100, 350, 400, 450), frames):  # frames are missing in the middle
        stamp = 10**9 + time_ms * bags.MS
        written.append(("/cam/image_raw", stamp, bags.image_message(stamp, frame, "rgb8")))
        written.append(("/cam/camera_info", stamp, bags.camera_info_message(stamp, 64, 48, focal=70.0)))
    bag = bags.write_bag(tmp_path / "bag", written)
    images, infos = peer.listen(Image, "/image"), peer.listen(CameraInfo, "/camera_info")
    assert finish(start(input=str(bag), rate=0.0, encoding="rgb8")) == 0
    wait_for(lambda: min(len(images), len(infos)) >= 6, lambda: f"{len(images)} images and {len(infos)} camera_info of 6")
    for message, frame in zip(images, frames, strict=True):
        np.testing.assert_array_equal(pixels_of(message), frame)
    assert [m.k[0] for m in infos] == [70.0] * 6
    gaps = np.diff([stamp_ns(m) for m in images]) / 1e6
    assert abs(np.median(gaps) - 50) < 10 and abs(gaps[2] - 250) < 50


def bag_of(folder: Path, *times: float) -> Path:
    """Images of these times [s]."""
    stamps = [10**9 + round(time * 1000) * bags.MS for time in times]
    image = bundles.random_image(48, 64)
    return bags.write_bag(folder / "bag", [("/image", stamp, bags.image_message(stamp, image, "rgb8")) for stamp in stamps])


def test_a_bag_whose_clock_was_set_forward_is_played_on_at_once_and_that_is_told(start: Any, peer: Peer, tmp_path: Path) -> None:
    """As of a computer that booted in 1970, until NTP knew better."""
    images = peer.listen(Image, "/image")
    node = start(input=str(bag_of(tmp_path, 0, 0.2, 0.4, 1.7e9, 1.7e9 + 0.2, 1.7e9 + 0.4)), rate=0.0)
    assert finish(node) == 0
    wait_for(lambda: len(images) >= 6, lambda: f"{len(images)} of 6 images")
    gaps = np.diff([stamp_ns(m) for m in images]) / 1e9
    assert np.abs(gaps[[0, 1, 3, 4]] - 0.2).max() < 0.1 and gaps[2] < 0.15
    assert node.output.count("the clock of bag leaps by 1700000000 s here: it plays on at once") == 1


def test_a_long_wait_for_the_next_frame_is_told_while_it_lasts(ros: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_node, "LONG_WAIT_S", 2.0)
    said: list[str] = []
    with node_here(ReplayNode, input=str(bag_of(tmp_path, 0, 0.1, 3.1)), rate=0.0, wait_for_subscriber=0.5) as node:
        monkeypatch.setattr(node, "get_logger", lambda: SimpleNamespace(info=said.append))
        wait_for(lambda: node._published == 2, "nothing is played")
        wait_for(lambda: node._waiting(), "the wait is not told")
        told = "waits 3 s for the next frame: bag has a gap here; `rate` plays without it"
        assert node._health() == (DiagnosticStatus.OK, told) and said.count(told) == 1
        wait_for(lambda: node._published == 3, "it waits for longer")
        assert node._waiting() == "" and "waits" not in node._health()[1]


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_at_a_rate_that_is_asked_for_there_is_neither_leap_nor_gap(ros: None, tmp_path: Path, rate: float) -> None:
    with node_here(ReplayNode, input=str(bag_of(tmp_path, 0, 500)), rate=rate, wait_for_subscriber=0.0) as node:
        wait_for(lambda: node._published == 1 and len(node._recent) == 2, "nothing is played")
        wait_for(lambda: rate or node._waiting(), "the wait is not told")
        time.sleep(0.2)
        assert node._published == 1 and bool(node._waiting()) == (not rate)


def test_an_unreadable_frame_is_left_out_and_told(start: Any, peer: Peer, folder: Path) -> None:
    (folder / "5.png").write_bytes(b"not an image")
    images, diagnostics = peer.listen(Image, "/image"), peer.diagnostics("replay")
    node = start(input=str(folder))
    assert finish(node) == 0
    wait_for(lambda: len(images) >= 11, f"{len(images)} of 11 images")
    assert "5" in node.output and "cannot be decoded" in node.output
    assert diagnostics.wait("1 frames could not be read", DiagnosticStatus.WARN)


@pytest.mark.parametrize(
    ("parameters", "status", "words"),
    [
        ({"input": "/no/such/place"}, 2, "no such input"),
        ({"camera_info": "/no/such.yaml"}, 2, "cannot read calibration"),
        ({"encoding": "yuv9"}, 2, "encoding must be one of"),
        ({"rate": -1.0}, 2, "rate"),
        ({"depth": "many"}, 2, "depth"),
        ({"input": "world:one"}, 2, "must be a whole number"),
        ({"input": "world", "world_size": "12"}, 2, "a size is width x height"),
        ({"input": "world", "world_weather": "meteors"}, 2, "'meteors'"),
        ({"input": "world", "camera_info": "a.yaml"}, 2, "a world knows its own cameras"),
    ],
)
def test_bad_input_ends_the_node_with_a_reason(start: Any, ros: None, folder: Path, parameters: dict, status: int, words: str) -> None:
    node = start(**{"input": str(folder), **parameters})
    assert finish(node) == status
    assert words in node.output


class Hung:
    """The publisher of a reliable subscriber that receives nothing any more, such as a viewer that was stopped."""

    topic_name = "/image"

    def get_subscription_count(self) -> int:
        return 1

    def wait_for_all_acked(self, timeout: Duration) -> bool:
        time.sleep(timeout.nanoseconds * 1e-9)
        return False


@pytest.mark.parametrize("loop", [True, False])
def test_subscribers_that_hang_hold_up_the_end_no_longer_than_all_together_may(
    ros: None, folder: Path, monkeypatch: pytest.MonkeyPatch, loop: bool
) -> None:
    monkeypatch.setattr(replay_node, "DISCOVERY_S", 0.0)
    monkeypatch.setattr(replay_node, "DELIVERY_S", 0.5)
    with node_here(ReplayNode, input=str(folder), rate=200.0, loop=loop) as node:
        node._topics.awaited = [Hung()] * 6
        wait_for(lambda: node._published >= 12, "nothing is played")
        begun = time.monotonic()
        if loop:  # stopped by hand
            node.close()
        wait_for(lambda: node.exit_status is not None, "it does not end")
        assert node.exit_status == 0
        assert (0.0 if loop else 0.4) < time.monotonic() - begun < 3.0


def test_a_folder_of_rubbish_is_an_error(start: Any, peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "rubbish").mkdir()
    (tmp_path / "rubbish" / "a.png").write_bytes(b"no")
    peer.listen(Image, "/image")
    node = start(input=str(tmp_path / "rubbish"))
    assert finish(node) == 1
    assert "no frame of rubbish could be read" in node.output


def test_the_shipped_clip_is_the_default(start: Any, peer: Peer) -> None:
    images, infos = peer.listen(Image, "/image"), peer.listen(CameraInfo, "/camera_info")
    start(rate=30)  # a whole number is a rate too
    wait_for(lambda: len(images) >= 3 and infos, "the clip does not play")
    assert (images[0].height, images[0].width, infos[0].k[0]) == (375, 1242, 721.5377)


# ---- the world

SIZE = "96x48"
TOPICS = {
    "image": Image,
    "camera_info": CameraInfo,
    "right/image": Image,
    "right/camera_info": CameraInfo,
    "depth": Image,
    "normals": Image,
    "labels": Image,
    "points": PointCloud2,
}


@pytest.fixture
def world() -> Any:
    """The module lix_core.world.source, where the ray caster is installed."""
    pytest.importorskip("embreex", reason="the extra `sim` is not installed")
    from lix_core.world import source

    return source


def test_the_lidar_is_placed_in_the_cameras_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(replay_topics, "TFMessage", lambda transforms: transforms)
    topics = replay_topics.WorldTopics.__new__(replay_topics.WorldTopics)
    topics._transform_out, topics._logger = SimpleNamespace(publish=sent.append), SimpleNamespace(info=lambda text: None)
    topics._settings = ReplayParameters(lidar_frame_id="top")
    pose = [0.1, -0.2, 0.3, 0.5, -0.5, 0.5, 0.5]
    topics._place_lidar(matrix_from_pose(pose), Header(frame_id="front"))
    ((told,),) = sent
    t, q = told.transform.translation, told.transform.rotation
    assert (told.header.frame_id, told.child_frame_id) == ("front", "top")
    assert [t.x, t.y, t.z, q.x, q.y, q.z, q.w] == pytest.approx(pose)


def listen_to_all(peer: Peer) -> dict[str, list[Any]]:
    return {topic: peer.listen(kind, f"/{topic}") for topic, kind in TOPICS.items()}


def assert_is_frame(received: dict[str, list[Any]], number: int, truth: Any) -> None:
    """The messages of that number carry the values of the frame, to the last bit."""
    found = {topic: messages_[number] for topic, messages_ in received.items()}
    np.testing.assert_array_equal(pixels_of(found["image"]), truth.rgb)
    np.testing.assert_array_equal(pixels_of(found["right/image"]), truth.right)
    np.testing.assert_array_equal(pixels_of(found["labels"]), truth.labels)
    np.testing.assert_array_equal(messages.image_to_depth(found["depth"]), truth.depth)
    np.testing.assert_array_equal(np.frombuffer(found["normals"].data, np.float32).reshape(truth.normals.shape), truth.normals)
    np.testing.assert_array_equal(messages.cloud_to_points(found["points"], messages.CLOUD_FIELDS), truth.cloud)
    assert messages.camera_from_info(found["camera_info"]) == truth.camera
    assert messages.camera_from_info(found["right/camera_info"]) == truth.right_camera
    encodings = {topic: found[topic].encoding for topic in ("image", "right/image", "labels", "depth", "normals")}
    assert encodings == {"image": "rgb8", "right/image": "rgb8", "labels": "mono8", "depth": "32FC1", "normals": "32FC3"}


def test_a_live_world_is_the_drive_of_its_seed_on_every_topic(start: Any, peer: Peer, world: Any) -> None:
    received = listen_to_all(peer)
    names = peer.listen(String, "/label_names", qos.latched())
    node = start(input="world:5", world_size=SIZE, rate=4.0, world_speed=6.0, encoding="rgb8", frame_id="front", lidar_frame_id="top")
    wait_for(lambda: min(map(len, received.values())) >= 3, lambda: f"{ {t: len(m) for t, m in received.items()} }; {node.output}")
    drive = world.Drive(5, world.rig_of(SIZE), frames_per_scene=world.ONE_STREET, spacing=1.5, rate=4.0)
    for number in range(3):
        assert_is_frame(received, number, drive.frame(number))
        stamps = {stamp_ns(m[number]) for m in received.values()}
        assert len(stamps) == 1
    assert {topic: m[0].header.frame_id for topic, m in received.items()} == {**dict.fromkeys(TOPICS, "front"), "points": "top"}
    wait_for(lambda: names, "the names of the labels are not latched")
    assert LabelSet.from_dict(json.loads(names[0].data)) == STREET
    assert "extrinsics: [0.0, -0.08, -0.27, " in node.output


def test_a_rendered_folder_is_played_with_all_its_sensors(start: Any, peer: Peer, world: Any, tmp_path: Path) -> None:
    drive = world.Drive(2, world.rig_of(SIZE), frames_per_scene=2)
    folder = world.WorldFolder.create(tmp_path / "w", drive, 3)
    for scene, indices in folder.missing().items():
        for index in indices:
            folder.write(drive.frame(index))
        folder.finish_scene(scene)
    received = listen_to_all(peer)
    node = start(input=str(tmp_path / "w"), rate=10.0, encoding="rgb8")
    assert finish(node) == 0, node.output
    wait_for(lambda: min(map(len, received.values())) >= 3, lambda: node.output)
    for number, truth in enumerate(folder):
        assert_is_frame(received, number, truth)
    assert {len(m) for m in received.values()} == {3}


def test_a_half_rendered_folder_is_refused_with_the_file(start: Any, ros: None, world: Any, tmp_path: Path) -> None:
    world.WorldFolder.create(tmp_path / "w", world.Drive(2, world.rig_of(SIZE)), 3)
    node = start(input=str(tmp_path / "w"))
    assert finish(node) == 2
    assert "is not whole" in node.output and "meta_00000.json" in node.output


def test_offsets_shift_stamps_and_dropout_loses_frames(start: Any, peer: Peer, world: Any) -> None:
    received = {topic: peer.listen(TOPICS[topic], f"/{topic}") for topic in ("image", "right/image", "right/camera_info", "points")}
    start(input="world:5", world_size=SIZE, rate=20.0, right_offset=0.25, points_offset=-0.125, dropout=0.5)
    wait_for(lambda: len(received["image"]) >= 40, "too few frames")
    left = {stamp_ns(m) for m in received["image"]}
    right, points = ([stamp_ns(m) for m in received[topic]] for topic in ("right/image", "points"))
    assert {stamp - 250_000_000 for stamp in right} <= left and {stamp + 125_000_000 for stamp in points} <= left
    assert [stamp_ns(m) for m in received["right/camera_info"]][: len(right)] == right
    assert 8 <= len(right) <= len(left) - 8 and 8 <= len(points) <= len(left) - 8
    assert {stamp - 250_000_000 for stamp in right} != {stamp + 125_000_000 for stamp in points}  # each is lost by itself


def test_who_subscribes_late_gets_no_empty_cloud_or_image(start: Any, peer: Peer, world: Any) -> None:
    images = peer.listen(Image, "/image")
    start(input="world:5", world_size=SIZE, rate=2.0)
    late: dict[str, list[Any]] = {}
    wait_for(lambda: images, "the world does not play")
    for topic in ("points", "right/image"):  # between two frames, one of which is prepared
        late[topic] = peer.listen(TOPICS[topic], f"/{topic}")
    wait_for(lambda: min(map(len, late.values())) >= 2, lambda: f"{ {t: len(m) for t, m in late.items()} }")
    assert all(m.width > 1000 for m in late["points"]) and all(m.width == 96 for m in late["right/image"])


def test_a_world_too_slow_for_its_rate_goes_slower_and_says_so(start: Any, peer: Peer, world: Any) -> None:
    images, diagnostics = peer.listen(Image, "/image"), peer.diagnostics("replay")
    start(input="world:5", world_size="320x96", rate=500.0)
    wait_for(lambda: len(images) >= 60, lambda: f"{len(images)} images")
    diagnostics.wait("of 500.0 Hz: a frame takes", DiagnosticStatus.WARN)

    def rates() -> tuple[float, float]:
        """[Hz] what it says, the mean over its last frames, and what comes; a busy moment is in the one before it is in the other."""
        said = diagnostics.latest.message.split()
        return float(said[1]) if said[0] == "plays" else 0.0, 1e9 / np.median(np.diff([stamp_ns(m) for m in images[-20:]]))

    wait_for(lambda: (r := rates())[0] < 250 and r[1] / 2 < r[0] < 2 * r[1], lambda: f"says {rates()[0]:.1f}, plays {rates()[1]:.1f} Hz")
    assert float(diagnostics.value("preparing p50 [ms]")) > 2
