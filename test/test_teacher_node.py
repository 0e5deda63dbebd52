"""The teacher node, in a process of its own, spoken to over Fast DDS as a robot would."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2: neither an installation is sourced nor are the wheels installed")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402
from std_msgs.msg import Header, String  # noqa: E402

import bundles  # noqa: E402
from lix_core.camera import Camera  # noqa: E402
from lix_core.geometry.encodings import encode  # noqa: E402
from lix_core.labels import Label, LabelSet  # noqa: E402
from lix_core.runtime.bundle import XSpec  # noqa: E402
from lix_core.runtime.segmenter import Segmenter  # noqa: E402
from lix_ros import messages, qos  # noqa: E402
from lix_ros.teacher_node import COMPARED, TeacherNode  # noqa: E402
from ros import Peer, answer_to, image_message, node_here, node_starter, pixels_of, stamp_ns, wait_for  # noqa: E402

NODE = "/teacher"
IMAGE = bundles.random_image(60, 80)
DEPTH = np.random.default_rng(2).uniform(1, 60, (60, 80)).astype(np.float32)
DEPTH[:20] = np.nan
CAMERA = Camera(80, 60, (50.0, 0, 40, 0, 50.0, 30, 0, 0, 1))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return bundles.camera_bundle(x=XSpec("normals", 3)).save(tmp_path / "teacher.lix")


@pytest.fixture
def start(tmp_path: Path, model: Path) -> Iterator[Any]:
    with node_starter("teacher_node", tmp_path, model=str(model), diagnostics_period=0.1) as start_node:
        yield start_node


class Robot:
    """What a camera, the geometry node and the student send."""

    def __init__(self, peer: Peer):
        self.image, self.depth = peer.publisher(Image, "/image"), peer.publisher(Image, "/depth")
        self.info, self.mask = peer.publisher(CameraInfo, "/camera_info"), peer.publisher(Image, "/student/mask")
        self.labels = peer.node.create_publisher(String, "/student/labels", qos.latched())

    def send(
        self, image: np.ndarray = IMAGE, depth: np.ndarray = DEPTH, late: int = 0, mask: np.ndarray | None = None, after: int = 0
    ) -> int:
        """One frame of all of them, stamped `after` from now, depth `late` (nanoseconds); the stamp of the image."""
        stamp = time.time_ns() + after
        self.info.publish(messages.camera_info(CAMERA, image_message(image, "rgb8", stamp).header))
        time.sleep(0.02)
        self.depth.publish(image_message(depth, "32FC1", stamp + late))
        self.image.publish(image_message(image, "rgb8", stamp))
        if mask is not None:
            self.mask.publish(image_message(mask, "mono8", stamp))
        return stamp


def taught(model: Path) -> np.ndarray:
    """(60, 80) uint8: what the model says of the picture and its normals."""
    x, known = encode("normals", depth=DEPTH, camera=CAMERA)
    return Segmenter(model).segment(IMAGE, "rgb", x, known).mask


def test_the_mask_is_the_models_own_of_the_image_and_the_normals_of_its_depth(start: Any, peer: Peer, model: Path) -> None:
    start()
    masks = peer.listen(Image, f"{NODE}/mask")
    mask = answer_to(Robot(peer).send, masks)
    assert (mask.header.frame_id, mask.encoding) == ("camera_optical_frame", "mono8")
    np.testing.assert_array_equal(pixels_of(mask), taught(model))
    assert (taught(model) != Segmenter(model).segment(IMAGE).mask).mean() > 0.1, "normals decide nothing in this picture"


def test_what_the_teacher_is_not_sure_of_is_unlabelled(ros: None, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[np.ndarray] = []
    with node_here(TeacherNode, model=str(model), min_confidence=0.6) as node:
        monkeypatch.setattr(node, "_publish", lambda result, *rest: said.append(result.mask))
        node._on_camera_info(messages.camera_info(CAMERA, Header()), None)
        node._process((image_message(IMAGE, "rgb8"), image_message(DEPTH, "32FC1")), node._pipeline)
    expected = Segmenter(model).segment(IMAGE, "rgb", *encode("normals", depth=DEPTH, camera=CAMERA)).rejecting(0.6).mask
    assert 0.1 < (expected == 255).mean() < 0.9
    np.testing.assert_array_equal(said, [expected])


@pytest.mark.parametrize("kind", ["depth", "inverse_depth"])
def test_what_follows_from_depth_alone_needs_no_calibration_not_even_a_right_one(
    ros: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model = bundles.camera_bundle(x=XSpec(kind, 1)).save(tmp_path / "teacher.lix")
    said: list[np.ndarray] = []
    with node_here(TeacherNode, model=str(model)) as node:
        monkeypatch.setattr(node, "_publish", lambda result, *rest: said.append(result.mask))
        for info in (None, CameraInfo(width=80, height=60), CameraInfo()):  # those of a driver of an uncalibrated camera
            node._camera_info = info
            node._process((image_message(IMAGE, "rgb8"), image_message(DEPTH, "32FC1")), node._pipeline)
    expected = Segmenter(model).segment(IMAGE, "rgb", *encode(kind, depth=DEPTH)).mask
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(said, [expected] * 3)


@pytest.mark.parametrize("wrong", [0.0, -37.0])
def test_depth_of_a_clock_that_is_wrong_is_told_with_an_offset_and_slow_depth_with_the_stamps_of_its_images_is_not(
    ros: None, model: Path, wrong: float
) -> None:
    late = 15
    with node_here(TeacherNode, model=str(model), offset=0.5) as node:
        for number in range(100, 200):  # images of 10 Hz; depth comes 1.5 s after its image, with a stamp 0.5 s late
            node._on_image(image_message(IMAGE, "rgb8", number * 100_000_000), None)
            stamp = (number - late) * 100_000_000 + 500_000_000 + round(wrong * 1e9)
            node._on_depth(image_message(DEPTH, "32FC1", stamp), None)
        told = "; ".join(text for _, text in node._troubles(time.monotonic(), time.monotonic()))
        assert node._pairer.lag("depth") == pytest.approx(1.5 - wrong, abs=0.11)
        assert node._description()[1]["depth lag [s]"] == f"{node._pairer.lag('depth'):.2f}"
    assert ("set offset to -38.0" in told and "0 % of the depth found its image" in told) if wrong else "offset" not in told


def test_the_students_mask_of_the_frame_that_is_worked_on_waits_however_long_that_takes(ros: None, model: Path) -> None:
    mask = np.zeros((60, 80), np.uint8)
    with node_here(TeacherNode, model=str(model)) as node:
        node._working = 1
        for stamp in range(1, COMPARED + 11):
            node._compare("student", image_message(mask, "mono8", stamp).header, mask)
        assert list(node._masks["student"]) == [1, *range(12, COMPARED + 11)]


def test_depth_within_slop_belongs_to_an_image_and_later_depth_to_none(start: Any, peer: Peer) -> None:
    start(slop=0.02)
    masks, told, robot = peer.listen(Image, f"{NODE}/mask"), peer.diagnostics("teacher"), Robot(peer)
    answer_to(lambda: robot.send(late=10_000_000), masks)
    unpaired, complaint = set(), "% of the depth found its image within 20 ms; see slop and offset"
    # The newest message displaces one that a busy node has not taken: some ten must arrive, however many that takes.
    for second in range(600):
        unpaired.add(robot.send(late=100_000_000, after=second * 10**9))
        if told.latest and complaint in told.latest.message:
            break
    assert told.wait(complaint, DiagnosticStatus.WARN)
    assert not unpaired & {stamp_ns(mask) for mask in masks}


def test_depth_that_comes_thirty_images_late_finds_its_own(start: Any, peer: Peer) -> None:
    start(image_depth=50, image_reliability="reliable")
    masks, robot, told = peer.listen(Image, f"{NODE}/mask"), Robot(peer), peer.diagnostics("teacher")
    answer_to(robot.send, masks)
    # As fast a camera and as slow a geometry node as there are: the depth of one image in thirty, when thirty more have come.
    first = time.time_ns()
    for index in range(12 * 30 + 1):
        robot.image.publish(image_message(IMAGE, "rgb8", first + index * 33_000_000))
        if index and index % 30 == 0:
            robot.depth.publish(image_message(DEPTH, "32FC1", first + (index - 30) * 33_000_000))
            with suppress(AssertionError):  # a slow machine must not lose images of which 50 fit the queue
                wait_for(lambda: first + (index - 30) * 33_000_000 in {stamp_ns(mask) for mask in masks}, "", 3.0)
        time.sleep(0.005)
    expected = {first + index * 33_000_000 for index in range(0, 12 * 30, 30)}
    wait_for(lambda: len(expected & {stamp_ns(mask) for mask in masks}) >= 10, lambda: f"{len(masks)} masks came; {told.latest}")
    assert float(told.value("depth paired [%]")) > 80 and "found its image" not in told.latest.message


def test_depth_that_comes_when_its_image_waits_no_more_is_told_as_late(start: Any, peer: Peer) -> None:
    start(image_depth=50, image_reliability="reliable")
    masks, robot, told = peer.listen(Image, f"{NODE}/mask"), Robot(peer), peer.diagnostics("teacher")
    answer_to(robot.send, masks)
    first, late = time.time_ns(), "after its image, which waits for"
    for index in range(3000):
        robot.image.publish(image_message(IMAGE, "rgb8", first + index * 10_000_000))
        if index >= 200 and index % 2 == 0:
            robot.depth.publish(image_message(DEPTH, "32FC1", first + (index - 200) * 10_000_000))
        time.sleep(0.01)
        if told.latest and late in told.latest.message:
            break
    found = told.wait(late, DiagnosticStatus.WARN)
    # About 2 s: less by images that were lost since, more by depth that waited in the queue.
    assert re.search(r"% of the depth found its image within 20 ms; it comes (1\.[5-9]|2\.\d) s after its image", found.message)


def test_disagreement_is_where_both_have_a_class_and_not_the_same(start: Any, peer: Peer, model: Path) -> None:
    start()
    answers, robot = peer.listen(Image, f"{NODE}/disagreement"), Robot(peer)
    # The student has two of the teacher's five classes, in another order, and one that the teacher does not know.
    student = LabelSet("student", (Label("white", (255, 255, 255)), Label("sand", (9, 9, 9)), Label("black", (0, 0, 0))))
    robot.labels.publish(String(data=student.to_json()))
    said = np.random.default_rng(5).choice(np.array([0, 1, 2, 255], np.uint8), (60, 80))
    names = np.array([*bundles.COLOURS.names])[taught(model)]
    expected = ((said == 0) & (names != "white")) | ((said == 2) & (names != "black"))
    answer = answer_to(lambda: robot.send(mask=said), answers)
    assert answer.encoding == "mono8"
    np.testing.assert_array_equal(pixels_of(answer), np.where(expected, 255, 0))


def test_depth_of_another_size_and_masks_without_labels_are_told_and_end_nothing(start: Any, peer: Peer) -> None:
    start()
    masks, told, robot = peer.listen(Image, f"{NODE}/mask"), peer.diagnostics("teacher"), Robot(peer)
    answer_to(robot.send, masks)
    robot.send(depth=DEPTH[:30])
    told.wait("depth is 80x30, the image 80x60: give the image that the depth is registered to", DiagnosticStatus.WARN)
    peer.listen(Image, f"{NODE}/disagreement")
    answer_to(lambda: robot.send(mask=np.zeros((60, 80), np.uint8)), masks)
    told.wait("remap `student/labels` beside `student/mask`", DiagnosticStatus.WARN)
    answer_to(robot.send, masks)


def test_frames_before_the_first_camera_info_are_skipped_and_a_missing_one_is_told(start: Any, peer: Peer) -> None:
    start(silence_timeout=0.3)
    masks, told, robot = peer.listen(Image, f"{NODE}/mask"), peer.diagnostics("teacher"), Robot(peer)
    info, robot.info = robot.info, SimpleNamespace(publish=lambda message: None)
    complaint = "no camera_info on /camera_info, without which depth has no normals: 1 publishers, none sends"
    skipped = "frames skipped (on purpose)"
    wait_for(
        lambda: robot.send() and told.latest and complaint in told.latest.message and told.value(skipped) != "0", lambda: str(told.latest)
    )
    assert told.value("frames failed") == "0" and not masks
    robot.info = info
    answer_to(robot.send, masks)


def test_silent_depth_is_told(start: Any, peer: Peer) -> None:
    start(silence_timeout=0.3)
    told = peer.diagnostics("teacher")
    peer.listen(Image, f"{NODE}/mask")
    told.wait("no depth on /depth for", DiagnosticStatus.WARN)


@pytest.mark.parametrize(
    ("bundle", "complaint"),
    [
        (None, "model is empty"),
        (bundles.camera_bundle(), "sees RGB alone; the teacher node needs the bundle of an RGB + X teacher"),
        (bundles.camera_bundle(x=bundles.X), "sees X 'two'; from depth come"),
        (bundles.camera_bundle(x=XSpec("disparity", 1)), "sees X 'disparity'; from depth come normals, depth, inverse_depth"),
    ],
)
def test_a_model_that_is_no_teacher_of_depth_is_refused(start: Any, peer: Peer, tmp_path: Path, bundle: Any, complaint: str) -> None:
    start(model=str(bundle.save(tmp_path / "other.lix")) if bundle else "")
    peer.diagnostics("teacher").wait(complaint, DiagnosticStatus.ERROR)
