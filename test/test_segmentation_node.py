"""The segmentation node, in a process of its own, spoken to over Fast DDS as a robot would."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2: neither an installation is sourced nor are the wheels installed")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from lifecycle_msgs.msg import State, Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from rclpy.impl.implementation_singleton import rclpy_implementation  # noqa: E402
from rclpy.lifecycle.node import LifecycleNodeMixin, TransitionCallbackReturn  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402
from std_msgs.msg import String  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402

import bundles  # noqa: E402
from lix_core import viz  # noqa: E402
from lix_core.labels import LabelSet  # noqa: E402
from lix_core.runtime.bundle import SHIPPED, XSpec  # noqa: E402
from lix_core.runtime.segmenter import Segmenter  # noqa: E402
from lix_ros import messages, qos  # noqa: E402
from lix_ros.parameters import OUTPUTS  # noqa: E402
from lix_ros.segmentation_node import SegmentationNode  # noqa: E402
from lix_ros.stream_node import LOG_PERIOD_S  # noqa: E402
from ros import ROOT, Peer, exchange, image_message, node_here, node_starter, pixels_of, stamp_ns, wait_for  # noqa: E402

NODE = "/segmentation"
PICTURE = bundles.blocks(np.random.default_rng(3).integers(0, 5, (6, 8)), 20)
"""(120, 160, 3) RGB: squares of the five class colours of the tiny model."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return bundles.camera_bundle().save(tmp_path / "tiny.lix")


@pytest.fixture
def start(tmp_path: Path, model: Path) -> Iterator[Any]:
    with node_starter("segmentation_node", tmp_path, model=str(model), diagnostics_period=0.1) as start_node:
        yield start_node


def as_encoding(rgb: np.ndarray, encoding: str) -> np.ndarray:
    conversion = {"bgr8": cv2.COLOR_RGB2BGR, "rgba8": cv2.COLOR_RGB2RGBA, "bgra8": cv2.COLOR_RGB2BGRA}
    return rgb if encoding == "rgb8" else cv2.cvtColor(rgb, conversion[encoding])


@pytest.mark.parametrize("reliability", ["best_effort", "reliable"])
def test_mask_is_the_segmenters_own_for_every_encoding(start: Any, peer: Peer, model: Path, reliability: str) -> None:
    start()
    image = bundles.random_image(375, 621)
    expected = Segmenter(model).segment(image).mask
    assert len(np.unique(expected)) == len(bundles.COLOURS)
    masks = peer.listen(Image, f"{NODE}/mask")
    camera = peer.publisher(Image, "/image", reliability)
    for encoding in ("rgb8", "bgr8", "rgba8", "bgra8"):
        for padding in (0, 13):
            sent = image_message(as_encoding(image, encoding), encoding, frame_id=f"lens_{encoding}", padding=padding)
            mask = exchange(camera, masks, sent)
            assert (mask.header.frame_id, mask.encoding) == (f"lens_{encoding}", "mono8")
            assert (mask.height, mask.width, mask.step) == (375, 621, 621)
            np.testing.assert_array_equal(pixels_of(mask), expected, err_msg=f"{encoding}, {padding} bytes of padding")


def test_outputs_agree_with_the_mask(start: Any, peer: Peer) -> None:
    start(overlay_alpha=0.25)
    topics = {name: peer.listen(Image, f"{NODE}/{name}") for name in ("mask", "color", "overlay", "confidence")}
    camera = peer.publisher(Image, "/image")
    image = bundles.random_image(90, 130)
    sent = image_message(image, "rgb8")
    mask = pixels_of(exchange(camera, topics["mask"], sent))
    answers = {name: exchange(camera, received, sent) for name, received in topics.items() if name != "mask"}
    np.testing.assert_array_equal(pixels_of(answers["color"]), bundles.PALETTE[mask])
    blended = 0.75 * image + 0.25 * bundles.PALETTE[mask]
    assert np.abs(pixels_of(answers["overlay"]) - blended).max() <= 1
    assert [answers[n].encoding for n in ("color", "overlay", "confidence")] == ["rgb8", "rgb8", "mono8"]
    assert np.abs(pixels_of(answers["confidence"]) - 255 * bundles.winner_probability(image)).max() <= 1


def test_labels_are_latched_and_camera_info_takes_the_frames_stamp(start: Any, peer: Peer) -> None:
    start()
    masks = peer.listen(Image, f"{NODE}/mask")
    infos = peer.listen(CameraInfo, f"{NODE}/camera_info")
    camera = peer.publisher(Image, "/image")
    calibration = peer.publisher(CameraInfo, "/camera_info")
    stamps = []

    def informed() -> bool:
        calibration.publish(CameraInfo(width=160, height=120, k=[99.0] + [0.0] * 8))
        stamps.append(stamp_ns(exchange(camera, masks, image_message(PICTURE, "rgb8"))))
        return bool(infos)

    wait_for(informed, "no camera_info beside the mask")
    assert stamp_ns(infos[0]) in stamps
    assert (infos[0].k[0], infos[0].header.frame_id) == (99.0, "camera_optical_frame")
    late = peer.listen(String, f"{NODE}/labels", qos.latched())
    wait_for(lambda: late, "labels are not latched")
    assert LabelSet.from_dict(json.loads(late[0].data)) == bundles.COLOURS


def test_nothing_is_computed_without_a_subscriber(start: Any, peer: Peer) -> None:
    start()
    diagnostics = peer.diagnostics("segmentation")
    camera = peer.publisher(Image, "/image")

    def skipped() -> bool:
        camera.publish(image_message(PICTURE, "rgb8"))
        return int(diagnostics.value("frames skipped (on purpose)") or 0) >= 5

    wait_for(skipped, lambda: str(diagnostics.latest))
    diagnostics.wait("nobody subscribes", DiagnosticStatus.OK)
    assert diagnostics.value("frames out") == "0"


def test_outputs_that_are_switched_off_stay_silent(start: Any, peer: Peer) -> None:
    start(outputs=["mask"])
    masks, overlays = peer.listen(Image, f"{NODE}/mask"), peer.listen(Image, f"{NODE}/overlay")
    camera = peer.publisher(Image, "/image")
    exchange(camera, masks, image_message(PICTURE, "rgb8"))
    assert not overlays
    assert peer.set_parameter(NODE, "outputs", ["mask", "overlay"]).successful
    exchange(camera, overlays, image_message(PICTURE, "rgb8"))
    assert peer.set_parameter(NODE, "outputs", ["overlay"]).successful
    assert peer.set_parameter(NODE, "max_rate", 1000).successful


@pytest.mark.parametrize(("name", "value"), [("threads", 1), ("max_pixels", 4096), ("backend", "auto")])
def test_how_the_model_runs_can_be_changed_live(start: Any, peer: Peer, name: str, value: Any) -> None:
    start()
    masks = peer.listen(Image, f"{NODE}/mask")
    camera = peer.publisher(Image, "/image")
    exchange(camera, masks, image_message(PICTURE, "rgb8"))
    assert peer.set_parameter(NODE, name, value).successful
    assert pixels_of(exchange(camera, masks, image_message(PICTURE, "rgb8"))).shape == PICTURE.shape[:2]


MALFORMED = {
    "unknown encoding": (dict(encoding="nv99"), "nv99"),
    "empty": (dict(width=0, height=0), "empty"),
    "truncated": (dict(data=b"\x00" * 100), "truncated"),
    "step": (dict(step=7), "step is 7"),
    "not a number": (dict(encoding="32FC3", step=160 * 12, data=np.full(120 * 160 * 3, np.nan, np.float32).tobytes()), "NaN"),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_image_is_reported_and_the_next_good_one_segmented(start: Any, peer: Peer, fault: str) -> None:
    start()
    diagnostics, masks = peer.diagnostics("segmentation"), peer.listen(Image, f"{NODE}/mask")
    camera = peer.publisher(Image, "/image")
    exchange(camera, masks, image_message(PICTURE, "rgb8"))
    changes, words = MALFORMED[fault]
    bad = image_message(PICTURE, "rgb8")
    for name, value in changes.items():
        setattr(bad, name, value)
    camera.publish(bad)
    assert words in diagnostics.wait(words, DiagnosticStatus.WARN).message
    assert (diagnostics.value("frames failed"), words in diagnostics.value("last error")) == ("1", True)
    mask = exchange(camera, masks, image_message(PICTURE, "rgb8"))
    np.testing.assert_array_equal(pixels_of(mask), bundles.nearest_colour(PICTURE))


def test_a_fault_that_repeats_is_logged_once_in_a_while(start: Any, peer: Peer) -> None:
    node = start()
    diagnostics = peer.diagnostics("segmentation")
    masks = peer.listen(Image, f"{NODE}/mask")
    camera = peer.publisher(Image, "/image")
    exchange(camera, masks, image_message(PICTURE, "rgb8"))
    begin = time.monotonic()

    def failed_often() -> bool:
        """As many as it takes: of a depth-1 subscription a busy machine takes few."""
        camera.publish(image_message(PICTURE, "rgb8"))
        bad = image_message(PICTURE, "rgb8")
        bad.encoding = f"nv{len(masks)}"  # the words differ each time
        camera.publish(bad)
        time.sleep(0.03)
        return int(diagnostics.value("frames failed") or 0) > 5

    wait_for(failed_often, lambda: str(diagnostics.latest))
    periods = (time.monotonic() - begin) // LOG_PERIOD_S
    assert 1 <= node.output.count("frame not segmented") <= 1 + periods, node.output


def test_the_camera_may_change_its_resolution(start: Any, peer: Peer) -> None:
    start()
    masks = peer.listen(Image, f"{NODE}/mask")
    camera = peer.publisher(Image, "/image")
    for height, width in ((120, 160), (64, 333), (1, 1), (120, 160)):
        image = bundles.random_image(height, width, seed=height)
        mask = exchange(camera, masks, image_message(image, "rgb8"))
        np.testing.assert_array_equal(pixels_of(mask), bundles.nearest_colour(image))


def test_compressed_images_and_gray_ones(start: Any, peer: Peer) -> None:
    start(image_transport="compressed")
    masks = peer.listen(Image, f"{NODE}/mask")
    camera = peer.publisher(CompressedImage, "/image/compressed")
    header = image_message(PICTURE, "rgb8").header
    png = cv2.imencode(".png", PICTURE[..., ::-1])[1]
    mask = exchange(camera, masks, messages.compressed_image(png, "png", header))
    np.testing.assert_array_equal(pixels_of(mask), bundles.nearest_colour(PICTURE))


def test_wide_and_gray_encodings(start: Any, peer: Peer) -> None:
    start()
    masks = peer.listen(Image, f"{NODE}/mask")
    camera = peer.publisher(Image, "/image")
    gray = bundles.random_image(40, 50)[..., 0]
    expected = bundles.nearest_colour(np.dstack([gray] * 3))
    mono = exchange(camera, masks, image_message(gray, "mono8"))
    np.testing.assert_array_equal(pixels_of(mono), expected)
    wide = image_message(np.dstack([np.zeros_like(gray), gray]), "mono16")  # little endian: the high byte comes second
    np.testing.assert_array_equal(pixels_of(exchange(camera, masks, wide)), expected)


def test_a_model_is_swapped_live_between_two_frames(start: Any, peer: Peer, tmp_path: Path) -> None:
    start()
    swapped = LabelSet("swapped", tuple(reversed(bundles.COLOURS.labels)))
    other = bundles.camera_bundle(labels=swapped, name="other").save(tmp_path / "other.lix")
    masks, labels = peer.listen(Image, f"{NODE}/mask"), peer.listen(String, f"{NODE}/labels", qos.latched())
    camera = peer.publisher(Image, "/image")
    exchange(camera, masks, image_message(PICTURE, "rgb8"))
    wait_for(lambda: labels, "no labels")  # a latched topic keeps the last message only: these must come before the next
    assert peer.set_parameter(NODE, "model", str(other)).successful
    exchange(camera, masks, image_message(PICTURE, "rgb8"))
    wait_for(lambda: len(labels) == 2, "the new labels were not published")
    assert [LabelSet.from_dict(json.loads(m.data)) for m in labels] == [bundles.COLOURS, swapped]


def test_a_teacher_that_never_was_without_its_x_is_warned_of(start: Any, peer: Peer, tmp_path: Path) -> None:
    training = {"config": {"data": {"x_dropout": 0.0}}}
    teacher = bundles.camera_bundle(name="deep", x=XSpec("normals", 3), training=training).save(tmp_path / "deep.lix")
    node = start()
    assert peer.set_parameter(NODE, "model", str(teacher)).successful
    warning = "deep is a teacher that never was without normals: what it says of images alone means nothing; the teacher node runs it"
    wait_for(lambda: warning in node.output, lambda: node.output)
    masks = peer.listen(Image, f"{NODE}/mask")
    exchange(peer.publisher(Image, "/image"), masks, image_message(PICTURE, "rgb8"))


def test_frames_go_on_while_a_model_is_loaded(start: Any, peer: Peer) -> None:
    start(image_reliability="reliable", image_depth=20)
    other = SHIPPED / "street.lix"  # takes longer to load than the tiny ones
    masks, diagnostics = peer.listen(Image, f"{NODE}/mask"), peer.diagnostics("segmentation")
    camera = peer.publisher(Image, "/image")
    exchange(camera, masks, image_message(PICTURE, "rgb8"))
    sent, swapped = [stamp_ns(masks[0])], threading.Event()

    def swap() -> None:
        assert peer.set_parameter(NODE, "model", str(other)).successful
        swapped.set()

    setting = threading.Thread(target=swap)
    while not swapped.is_set():
        message = image_message(PICTURE, "rgb8")
        sent.append(stamp_ns(message))
        camera.publish(message)
        wait_for(lambda: any(stamp_ns(m) == sent[-1] for m in masks), f"frame {len(sent)} did not come back")
        if len(sent) == 5:
            setting.start()
    setting.join()
    assert list(dict.fromkeys(stamp_ns(m) for m in masks)) == sent  # the first may have been sent, and answered, more than once
    assert len(sent) > 6  # frames went through while the model was loaded
    wait_for(lambda: diagnostics.value("model") == str(other), lambda: str(diagnostics.latest))


def corrupt(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    return path


def hostile(path: Path) -> Path:
    """The bundle with a canvas that no memory holds."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members["manifest.json"])
    manifest["size"].update(height=10**6, width=10**6)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, "manifest.json": json.dumps(manifest)}.items():
            archive.writestr(name, content)
    return path


def bad_bundles(folder: Path) -> dict[str, tuple[Path, str]]:
    """What is wrong -> (bundle, words of the reason)."""
    too_many = LabelSet("six", (*bundles.COLOURS.labels, bundles.Label("sixth", (1, 2, 3))))
    return {
        "missing": (folder / "missing.lix", "no bundle"),
        "corrupt": (corrupt(bundles.camera_bundle().save(folder / "corrupt.lix")), "damaged"),
        "hostile size": (hostile(bundles.camera_bundle().save(folder / "hostile.lix")), "sizes must be whole numbers"),
        "no such user": (Path("~nobody_of_that_name/x.lix"), "no bundle"),
        "wrong class count": (bundles.camera_bundle(labels=too_many).save(folder / "six.lix"), "names 6 classes"),
    }


@pytest.mark.parametrize("fault", ["missing", "corrupt", "wrong class count", "hostile size", "no such user"])
def test_a_bad_bundle_is_refused_and_the_old_model_goes_on(start: Any, peer: Peer, tmp_path: Path, fault: str) -> None:
    node = start()
    path, words = bad_bundles(tmp_path)[fault]
    masks = peer.listen(Image, f"{NODE}/mask")
    camera = peer.publisher(Image, "/image")
    result = peer.set_parameter(NODE, "model", str(path))
    assert not result.successful
    assert words in result.reason
    mask = exchange(camera, masks, image_message(PICTURE, "rgb8"))
    np.testing.assert_array_equal(pixels_of(mask), bundles.nearest_colour(PICTURE))
    assert words in node.output


@pytest.mark.parametrize("fault", ["missing", "corrupt", "wrong class count", "hostile size", "no such user"])
def test_a_node_that_starts_with_a_bad_bundle_waits_for_a_good_one(start: Any, peer: Peer, model: Path, tmp_path: Path, fault: str) -> None:
    path, words = bad_bundles(tmp_path)[fault]
    start(model=str(path))
    diagnostics = peer.diagnostics("segmentation")
    diagnostics.wait(words, DiagnosticStatus.ERROR)
    assert peer.set_parameter(NODE, "model", str(model)).successful
    masks = peer.listen(Image, f"{NODE}/mask")
    camera = peer.publisher(Image, "/image")
    exchange(camera, masks, image_message(PICTURE, "rgb8"))
    diagnostics.wait("segmenting", DiagnosticStatus.OK)


def test_several_parameters_that_cure_a_node_in_one_call_start_it_once(start: Any, peer: Peer, model: Path) -> None:
    node = start(model="nosuch")
    peer.diagnostics("segmentation").wait("not configured", DiagnosticStatus.ERROR)
    results = peer.set_parameters(NODE, {"model": str(model), "max_pixels": 4000})
    assert [result.successful for result in results] == [True, True]
    masks = peer.listen(Image, f"{NODE}/mask")
    exchange(peer.publisher(Image, "/image"), masks, image_message(PICTURE, "rgb8"))
    assert node.output.count("active: ") == 1 and "transition" not in node.output


def test_a_cured_node_that_a_lifecycle_manager_is_to_start_waits_for_it(start: Any, peer: Peer, model: Path) -> None:
    start(model="nosuch", autostart=False)
    configure = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    told = peer.diagnostics("segmentation")
    assert not peer.call(ChangeState, f"{NODE}/change_state", configure).success
    told.wait("not configured: no model 'nosuch'", DiagnosticStatus.ERROR)
    assert peer.set_parameter(NODE, "model", str(model)).successful
    told.wait("not configured: waiting for a lifecycle manager", DiagnosticStatus.OK)
    assert peer.call(ChangeState, f"{NODE}/change_state", configure).success


def test_models_that_were_replaced_do_not_stay_in_memory(start: Any, peer: Peer) -> None:
    node = start(model=str(SHIPPED / "street.lix"), threads=1)

    def megabytes() -> float:
        status = Path(f"/proc/{node.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 1e3

    def reload() -> None:
        assert peer.call(Trigger, f"{NODE}/reload", Trigger.Request()).success

    reload()
    before = megabytes()
    for _ in range(30):
        reload()
    assert megabytes() - before < 80


def test_reload_reads_the_file_again(start: Any, peer: Peer, model: Path) -> None:
    start()
    labels = peer.listen(String, f"{NODE}/labels", qos.latched())
    wait_for(lambda: labels, "no labels")
    renamed = LabelSet("renamed", bundles.COLOURS.labels)
    bundles.camera_bundle(labels=renamed).save(model)
    answer = peer.call(Trigger, f"{NODE}/reload", Trigger.Request())
    assert answer.success, answer.message
    wait_for(lambda: len(labels) == 2, "the new labels were not published")
    assert json.loads(labels[1].data)["name"] == "renamed"
    corrupt(model)
    answer = peer.call(Trigger, f"{NODE}/reload", Trigger.Request())
    assert (answer.success, "damaged" in answer.message) == (False, True)


def test_min_confidence_and_class_remap_are_live(start: Any, peer: Peer, tmp_path: Path) -> None:
    start()
    masks, labels = peer.listen(Image, f"{NODE}/mask"), peer.listen(String, f"{NODE}/labels", qos.latched())
    camera = peer.publisher(Image, "/image")
    image = bundles.random_image(60, 70)
    full = bundles.nearest_colour(image)
    assert peer.set_parameter(NODE, "min_confidence", 0.8).successful
    mask = pixels_of(exchange(camera, masks, image_message(image, "rgb8")))
    sure = bundles.winner_probability(image)
    clear = np.abs(sure - 0.8) > 1e-4
    np.testing.assert_array_equal(mask[clear], np.where(sure < 0.8, 255, full)[clear])
    assert 0 < (mask == 255).mean() < 1
    assert peer.set_parameter(NODE, "min_confidence", 0.0).successful
    remap = tmp_path / "remap.yaml"
    remap.write_text("{name: bright, classes: [{name: primary, from: [red, green, blue], color: [9, 9, 9]}, {name: white, from: white}]}")
    assert peer.set_parameter(NODE, "class_remap", str(remap)).successful
    mask = pixels_of(exchange(camera, masks, image_message(image, "rgb8")))
    np.testing.assert_array_equal(mask, np.array([255, 0, 0, 0, 1], np.uint8)[full])
    wait_for(lambda: labels and json.loads(labels[-1].data)["name"] == "bright", "the labels of the remap were not published")
    remap.write_text("classes: [{name: sea, from: [ocean]}]")
    result = peer.set_parameter(NODE, "class_remap", str(remap))
    assert (result.successful, "ocean" in result.reason) == (False, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("overlay_alpha", 1.5), ("min_confidence", -0.1), ("max_rate", -1.0), ("outputs", ["mask", "depth"]), ("image_depth", 4)],
)
def test_values_out_of_range_and_read_only_parameters_are_refused(start: Any, peer: Peer, name: str, value: Any) -> None:
    start()
    result = peer.set_parameter(NODE, name, value)
    assert not result.successful
    assert name in result.reason or "read-only" in result.reason or "range" in result.reason


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_topics_have_the_reliability_and_depth_that_are_asked_for(ros: None, model: Path, transport: str) -> None:
    asked = {"image_reliability": "reliable", "image_depth": 7, "output_reliability": "best_effort", "output_depth": 3}
    with node_here(SegmentationNode, model=str(model), image_transport=transport, **asked) as node:
        profiles = {end.topic_name: end.qos_profile for end in (*node.publishers, *node.subscriptions)}
    found = {topic: (profile.reliability, profile.depth) for topic, profile in profiles.items()}
    image = "/image" if transport == "raw" else "/image/compressed"
    assert (found[image], found["/camera_info"]) == ((ReliabilityPolicy.RELIABLE, 7), (ReliabilityPolicy.RELIABLE, 1))
    for name in (*OUTPUTS, "camera_info"):
        assert found[f"{NODE}/{name}"] == (ReliabilityPolicy.BEST_EFFORT, 3)


def test_latency_counts_from_the_stamp_and_processing_from_when_the_frame_is_taken(
    ros: None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with node_here(SegmentationNode, model=str(model)) as node:
        monkeypatch.setattr(node, "_process", lambda frame, pipeline: time.sleep(0.05) or frame.header)
        node._work(image_message(PICTURE, "rgb8", time.time_ns() - 100 * 10**9))
        values = node._statistics.values()
    assert 100e3 < float(values["latency stamp to publication p50 [ms]"]) < 200e3
    assert 50 <= float(values["processing p50 [ms]"]) < 10e3


def test_max_rate_and_set_enabled_skip_frames(start: Any, peer: Peer) -> None:
    start(image_depth=20, image_reliability="reliable")
    masks, diagnostics = peer.listen(Image, f"{NODE}/mask"), peer.diagnostics("segmentation")
    camera = peer.publisher(Image, "/image")
    exchange(camera, masks, image_message(PICTURE, "rgb8"))
    assert peer.call(SetBool, f"{NODE}/set_enabled", SetBool.Request(data=False)).success
    diagnostics.wait("disabled")
    count, into, skipped = len(masks), *(int(diagnostics.value(k)) for k in ("frames in", "frames skipped (on purpose)"))
    for _ in range(5):
        camera.publish(image_message(PICTURE, "rgb8"))
        time.sleep(0.02)
    wait_for(lambda: int(diagnostics.value("frames skipped (on purpose)")) == skipped + 5, lambda: str(diagnostics.latest))
    assert len(masks) == count
    assert peer.call(SetBool, f"{NODE}/set_enabled", SetBool.Request(data=True)).success
    assert peer.set_parameter(NODE, "max_rate", 1.0).successful
    for _ in range(10):
        camera.publish(image_message(PICTURE, "rgb8"))
        time.sleep(0.02)
    wait_for(lambda: int(diagnostics.value("frames in")) == into + 15, lambda: str(diagnostics.latest))
    assert len(masks) - count in (1, 2)  # two where the ten take longer than the second


def test_the_newest_frame_wins(start: Any, peer: Peer) -> None:
    start(image_depth=20, image_reliability="reliable")
    masks, diagnostics = peer.listen(Image, f"{NODE}/mask"), peer.diagnostics("segmentation")
    camera = peer.publisher(Image, "/image")
    exchange(camera, masks, image_message(PICTURE, "rgb8"))
    burst = [image_message(bundles.random_image(720, 1280, seed), "rgb8") for seed in range(8)]
    for message in burst:
        camera.publish(message)
    wait_for(lambda: any(stamp_ns(m) == stamp_ns(burst[-1]) for m in masks), "the newest frame was not segmented")
    stamps = [stamp_ns(m) for m in masks]
    assert stamps == sorted(stamps)

    def accounted() -> bool:
        names = ("frames in", "frames out", "frames dropped (busy)", "frames skipped (on purpose)")
        into, out, dropped, skipped = (int(diagnostics.value(k) or 0) for k in names)
        return into == out + dropped + skipped and out == len(masks) and dropped > 0

    wait_for(accounted, lambda: str(diagnostics.latest))


def test_of_two_cameras_on_one_topic_no_frame_is_taken_for_missed(start: Any, peer: Peer) -> None:
    """Each numbers its own frames."""
    start(image_depth=20, image_reliability="reliable")
    diagnostics = peer.diagnostics("segmentation")
    first, second = (peer.publisher(Image, "/image") for _ in range(2))
    time.sleep(0.5)  # until the node knows of both
    for camera in (*[first] * 10, second, first, second):
        camera.publish(image_message(PICTURE, "rgb8"))
        time.sleep(0.01)
    wait_for(lambda: diagnostics.value("frames in") == "13", lambda: str(diagnostics.latest))
    assert diagnostics.value("frames missed (never taken)") == "0"


def test_silence_is_explained(start: Any, peer: Peer) -> None:
    start(silence_timeout=0.5, image_reliability="reliable")
    diagnostics = peer.diagnostics("segmentation")
    diagnostics.wait("nobody publishes it", DiagnosticStatus.WARN)
    publisher = peer.node.create_publisher(Image, "/image", qos.stream("best_effort", 1))
    diagnostics.wait("QoS incompatible", DiagnosticStatus.WARN)
    peer.node.destroy_publisher(publisher)


def test_qos_is_blamed_only_where_no_publisher_fits(ros: None, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with node_here(SegmentationNode, model=str(model), image_reliability="reliable") as node:

        def why(*reliabilities: str) -> str:
            offers = [SimpleNamespace(topic_type="sensor_msgs/msg/Image", qos_profile=qos.stream(name, 1)) for name in reliabilities]
            monkeypatch.setattr(node, "get_publishers_info_by_topic", lambda topic: offers)
            return node._why_silent(node._image_in, "image", "image_reliability", "see elsewhere")

        assert why("best_effort", "best_effort").startswith("2 publishers, QoS incompatible")
        assert why("best_effort", "reliable").startswith("2 publishers, none sends")


@pytest.mark.parametrize(("transport", "topic", "kind"), [("raw", "image", Image), ("compressed", "image/compressed", CompressedImage)])
def test_a_remapped_topic_is_asked_after_where_it_went(peer: Peer, model: Path, transport: str, topic: str, kind: type) -> None:
    """The second rule is of another topic, which a robot may well have."""
    rules = ["--ros-args", "-r", f"{topic}:=/front/image", "-r", "/front/image:=/elsewhere"]
    with node_here(partial(SegmentationNode, cli_args=rules), model=str(model), image_transport=transport) as node:

        def told() -> str:
            now = time.monotonic()
            ((_, text),) = node._troubles(now + 10.0, now)
            return text

        assert told().startswith(f"no image on /front/image for 10 s: nobody publishes it; remap `{topic}`,")
        publisher = peer.node.create_publisher(kind, "/front/image", 1)
        wait_for(lambda: "1 publishers, none sends" in told(), told)
        peer.node.destroy_publisher(publisher)


def test_a_lifecycle_manager_may_drive_the_node(start: Any, peer: Peer) -> None:
    start(autostart=False)
    masks = peer.listen(Image, f"{NODE}/mask")

    def transition(which: int) -> int:
        request = ChangeState.Request(transition=Transition(id=which))
        assert peer.call(ChangeState, f"{NODE}/change_state", request).success
        return peer.call(GetState, f"{NODE}/get_state", GetState.Request(), tries=3).current_state.id

    assert peer.call(GetState, f"{NODE}/get_state", GetState.Request(), tries=3).current_state.id == State.PRIMARY_STATE_UNCONFIGURED
    assert transition(Transition.TRANSITION_CONFIGURE) == State.PRIMARY_STATE_INACTIVE
    assert transition(Transition.TRANSITION_ACTIVATE) == State.PRIMARY_STATE_ACTIVE
    camera = peer.publisher(Image, "/image")
    exchange(camera, masks, image_message(PICTURE, "rgb8"))
    told = peer.diagnostics("segmentation")
    wait_for(lambda: told.value("frames in"), "no diagnostics")
    missed = told.value("frames missed (never taken)")
    assert transition(Transition.TRANSITION_DEACTIVATE) == State.PRIMARY_STATE_INACTIVE
    wait_for(lambda: camera.get_subscription_count() == 0, "an inactive node still subscribes")
    for _ in range(20):
        camera.publish(image_message(PICTURE, "rgb8"))
    assert transition(Transition.TRANSITION_ACTIVATE) == State.PRIMARY_STATE_ACTIVE
    wait_for(lambda: camera.get_subscription_count() == 1, "the node does not subscribe again")
    frames = int(told.value("frames in"))
    exchange(camera, masks, image_message(PICTURE, "rgb8"))
    wait_for(lambda: int(told.value("frames in")) > frames, "the frame is not counted")
    assert told.value("frames missed (never taken)") == missed, "what came while nobody listened is not missed"
    assert transition(Transition.TRANSITION_DEACTIVATE) == State.PRIMARY_STATE_INACTIVE
    assert transition(Transition.TRANSITION_CLEANUP) == State.PRIMARY_STATE_UNCONFIGURED


def rclpy_up_to_jazzy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transition that cannot be is an error there; Kilted's logs it and goes on."""
    method = "_LifecycleNodeMixin__change_state"
    change = getattr(LifecycleNodeMixin, method)

    def raising(node: SegmentationNode, which: int) -> TransitionCallbackReturn:
        if (result := change(node, which)) == TransitionCallbackReturn.ERROR:
            raise rclpy_implementation.RCLError("Transition is not registered.")
        return result

    monkeypatch.setattr(LifecycleNodeMixin, method, raising)


def test_a_transition_that_cannot_be_is_refused_where_rclpy_raises_it_too(ros: None, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with node_here(SegmentationNode, model=str(model)) as node:
        rclpy_up_to_jazzy(monkeypatch)
        (service,) = (s for s in node.services if s.srv_type is ChangeState)

        def succeeds(which: int) -> bool:
            return service.callback(ChangeState.Request(transition=Transition(id=which)), ChangeState.Response()).success

        assert not succeeds(Transition.TRANSITION_CONFIGURE), "it is active already"
        assert succeeds(Transition.TRANSITION_DEACTIVATE) and not succeeds(Transition.TRANSITION_DEACTIVATE)
        assert succeeds(Transition.TRANSITION_ACTIVATE)


def test_a_group_that_humble_leaves_busy_ends_with_its_subscriptions(ros: None, model: Path) -> None:
    """As where a subscription is destroyed between its turn and the taking of its message: rclpy before Jazzy never frees its group."""
    with node_here(SegmentationNode, model=str(model)) as node:
        (image, *_) = node._subscriptions_held
        assert image.callback_group.beginning_execution(image)
        assert node.trigger_deactivate() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        (image, *_) = node._subscriptions_held
        assert image.callback_group.can_execute(image)


def test_a_faulty_node_that_is_shut_down_says_so_and_starts_no_more(ros: None, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with node_here(SegmentationNode, model="nosuch") as node:
        rclpy_up_to_jazzy(monkeypatch)
        level, text = node._health()
        assert level == DiagnosticStatus.ERROR and text.startswith("not configured: no model 'nosuch'")
        assert node.set_parameters([Parameter("model", value=str(model))])[0].successful and node._start_timer is not None
        assert node.trigger_shutdown() == TransitionCallbackReturn.SUCCESS
        told = (DiagnosticStatus.OK, "shut down: end the process and start it anew")
        assert node._health() == told
        node._start_once()  # what was due when it was shut down
        assert node._pipeline is None and node._health() == told
        assert node.set_parameters([Parameter("model", value=str(model))])[0].successful
        assert node._start_timer is None


@pytest.mark.parametrize("first", ["model", "class_remap"])
def test_of_two_parameters_at_fault_each_can_be_mended_first(ros: None, model: Path, first: str) -> None:
    good = {"model": str(model), "class_remap": ""}
    with node_here(SegmentationNode, model="nosuch", class_remap="/no/such.yaml") as node:
        last, words = {"model": ("class_remap", "/no/such.yaml"), "class_remap": ("model", "no model 'nosuch'")}[first]
        assert node.set_parameters([Parameter(first, value=good[first])])[0].successful
        assert words in node._health()[1] and node._start_timer is None
        (refused,) = node.set_parameters([Parameter("max_pixels", value=-1)])
        assert not refused.successful and words in node._health()[1]
        assert node.set_parameters([Parameter(last, value=good[last])])[0].successful
        node._start_once()
        assert node._health()[0] == DiagnosticStatus.OK and node._settings.model == str(model)
        assert not node.set_parameters([Parameter("model", value="nosuch")])[0].successful, "now there is one to keep"


@pytest.mark.parametrize("signals", [1, 2])
def test_sigint_once_or_twice_ends_the_node_cleanly(start: Any, peer: Peer, signals: int) -> None:
    node = start()
    peer.publisher(Image, "/image")
    assert node.stop(signals) == 0
    assert "Traceback" not in node.output


def test_sigterm_ends_the_node_cleanly_while_frames_flow(start: Any, peer: Peer) -> None:
    node = start()
    masks = peer.listen(Image, f"{NODE}/mask")
    camera = peer.publisher(Image, "/image")
    exchange(camera, masks, image_message(PICTURE, "rgb8"))
    for index in range(60):
        camera.publish(image_message(PICTURE, "rgb8"))
        if index == 30:
            node.process.terminate()
        time.sleep(0.01)
    assert node.process.wait(timeout=30) == 0
    assert "Traceback" not in node.output


@pytest.mark.parametrize("parameters", [{"use_sim_time": 5}, {"model": 3}, {"silence_timeout": -1.0}])
def test_parameters_that_cannot_be_are_told_without_a_traceback(start: Any, ros: None, parameters: dict) -> None:
    node = start(**parameters)
    assert node.process.wait(timeout=30) == 2
    assert "cannot start" in node.output and next(iter(parameters)) in node.output


def test_diagnostics_go_on_when_simulated_time_stands_still(start: Any, peer: Peer) -> None:
    start(use_sim_time=True, silence_timeout=0.3)
    peer.diagnostics("segmentation").wait("nobody publishes it", DiagnosticStatus.WARN)


def test_the_node_loads_no_training_library() -> None:
    script = (
        "import sys, lix_ros.segmentation_node; from lix_core.runtime.segmenter import Segmenter; import numpy;"
        "Segmenter('street').segment(numpy.zeros((9, 9, 3), numpy.uint8));"
        "print([m for m in ('torch', 'torchvision', 'timm', 'lightning', 'onnx', 'openvino') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_overlay_of_bgr_and_rgb_input_is_the_same(start: Any, peer: Peer) -> None:
    start()
    overlays = peer.listen(Image, f"{NODE}/overlay")
    camera = peer.publisher(Image, "/image")
    image = bundles.random_image(50, 60)
    expected = viz.overlay(image, bundles.nearest_colour(image), bundles.COLOURS, 0.5)
    for encoding in ("rgb8", "bgra8"):
        np.testing.assert_array_equal(
            pixels_of(exchange(camera, overlays, image_message(as_encoding(image, encoding), encoding))), expected
        )
