"""Bags to files: what of every kind of bag lies in the extraction, that it goes on where it was stopped, and what bad bags leave."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

import recorded
from bags import MS
from lix_core.bags.check import check, check_all
from lix_core.bags.extract import Extraction, extract
from lix_core.bags.index import NS, Options
from lix_core.bags.reader import Bag, bags_in
from lix_core.bags.repair import repair
from lix_core.bags.sensors import to_file, to_metres
from lix_core.camera import Camera
from lix_core.cli import bag
from lix_core.errors import DataError, SourceError
from lix_core.labels import STREET
from recorded import PERIOD, START, Recorded, data_file, drive, write, write_humble
from trees import WORLD_CAMERA, world_frame

ROOT = Path(__file__).resolve().parents[1]
DISTORTED = Camera(160, 64, (100, 0, 79.5, 0, 100, 31.5, 0, 0, 1), "plumb_bob", (-0.3, 0.1, 0.002, -0.001, 0.0))


def lix(*arguments: object) -> Result:
    """`lix bag` in this process; errors of lix are in `exception`."""
    return CliRunner().invoke(bag.app, [str(argument) for argument in arguments])


def png(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return image if image.ndim == 2 else image[..., ::-1]


def files(out: Path) -> dict[str, bytes]:
    """Every file of an extraction but its description, by name."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.name != "extraction.json"}


def only(messages: list[Recorded], *topics: str) -> list[Recorded]:
    return [m for m in messages if m.topic in topics]


# What lies in it.


def test_images_labels_and_depth_come_out_as_they_were(tmp_path):
    (outcome,) = extract([write(tmp_path / "bag", drive(3))], tmp_path / "out")
    assert (outcome.done, outcome.before, outcome.with_depth, outcome.with_labels, outcome.left_out) == (3, 0, 3, 3, {})
    found = Extraction.open(tmp_path / "out")
    assert [frame.stamp for frame in found.frames] == [START + i * PERIOD for i in range(3)]
    of = found.calibration("bag")
    assert (of.camera, of.baseline, of.frame_id) == (WORLD_CAMERA.rectified(), pytest.approx(0.54), "camera")
    assert found.label_set("bag", "bag") == STREET
    for index, frame in enumerate(found.frames):
        truth = world_frame(index)
        assert (frame.name, frame.geometry, frame.partners) == (f"bag/{frame.stamp}", "depth", {"/depth": 0, "/labels": 0})
        assert np.array_equal(png(frame.image), truth.rgb) and np.array_equal(png(frame.labels), truth.labels)
        depth = png(frame.depth)
        assert depth.dtype == np.uint16 and not depth[np.isnan(truth.depth)].any()
        known = np.isfinite(truth.depth)
        assert np.array_equal(depth[known], np.rint(truth.depth[known] * 256))


def test_compressed_depth_is_depth(tmp_path):
    messages = [
        Recorded("/depth/compressedDepth", m.time, recorded.compressed_depth(START, world_frame(0).depth)) if m.topic == "/depth" else m
        for m in drive(1)
    ]
    extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    (frame,) = Extraction.open(tmp_path / "out").frames
    assert (frame.geometry, frame.partners["/depth/compressedDepth"]) == ("depth", 0)
    truth = world_frame(0).depth
    known = np.isfinite(truth) & (truth < 65)
    assert known.any() and np.abs(png(frame.depth)[known] / 256 - truth[known]).max() < 0.0005 + 0.5 / 256 + 1e-4


@pytest.mark.parametrize(("geometry", "tolerance"), [("stereo", 0.02), ("lidar", 0.005)])
def test_depth_of_pair_and_lidar_is_near_the_truth(tmp_path, geometry, tolerance):
    path = write(tmp_path / "bag", drive(2, offsets={"right/image": 2 * MS, "points": -4 * MS}))
    extract([path], tmp_path / "out", Options(geometry=geometry))
    topic, offset = {"stereo": ("/right/image", 2 * MS), "lidar": ("/points", -4 * MS)}[geometry]
    for index, frame in enumerate(Extraction.open(tmp_path / "out").frames):
        assert frame.geometry == geometry and frame.partners == {topic: offset, "/labels": 0}
        truth, depth = world_frame(index).depth, to_metres(png(frame.depth))
        both = np.isfinite(depth) & np.isfinite(truth)
        assert both[10:, 20:].mean() > 0.8
        assert np.median(np.abs(depth - truth)[both] / truth[both]) < tolerance


def test_depth_in_files_is_exact_to_half_a_unit_and_unknown_beyond_its_range():
    depth = np.array([[np.nan, 0.0, 0.001, 0.5, 12.3456, 255.9, 300.0, np.inf, -3.0]], np.float32)
    back = to_metres(to_file(depth))
    assert np.isnan(back[0, [0, 1, 2, 6, 7, 8]]).all()
    np.testing.assert_allclose(back[0, 3:6], depth[0, 3:6], atol=0.5 / 256)


@pytest.mark.parametrize("writer", ["humble", "sqlite3", "jazzy", "moved"])
def test_every_kind_of_bag_makes_the_same_files(tmp_path, writer):
    messages = drive(2)
    extract([write(tmp_path / "kilted" / "bag", messages)], tmp_path / "expected")
    path = tmp_path / writer / "bag"
    if writer == "humble":
        write_humble(path, messages)
    elif writer == "moved":
        path = data_file(write(path, messages)).rename(tmp_path / "bag.mcap")
    else:
        write(path, messages, "sqlite3" if writer == "sqlite3" else "mcap", 8)
    extract([path], tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "expected")


def test_unrectified_images_and_their_labels_are_rectified(tmp_path):
    messages = drive(1, ("image", "labels", "label_names"))
    messages.append(Recorded("/camera_info", START, recorded.camera_info(START, DISTORTED)))
    extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    found, truth = Extraction.open(tmp_path / "out"), world_frame(0)
    (frame,) = found.frames
    assert np.array_equal(png(frame.image), DISTORTED.rectify(truth.rgb)) and not np.array_equal(png(frame.image), truth.rgb)
    assert found.calibration("bag").camera == DISTORTED.rectified()
    columns, rows = (np.rint(m).astype(int) for m in DISTORTED.rectification_maps())
    inside = (columns >= 0) & (columns < 160) & (rows >= 0) & (rows < 64)
    labels = png(frame.labels)
    # A pixel may lie halfway between two: OpenCV rounds in fixed point.
    assert (labels[inside] == truth.labels[rows[inside], columns[inside]]).mean() > 0.97
    assert set(np.unique(labels)) <= {*range(11), 255}
    assert json.loads((tmp_path / "out/bag/camera.json").read_text())["rectified"] == "from /image by its plumb_bob calibration"


def test_where_the_rectified_image_is_black_nothing_is_labelled(tmp_path):
    p = Camera.pinhole(160, 64, 90.0).p
    camera = Camera(160, 64, (180, 0, 79.5, 0, 180, 31.5, 0, 0, 1), p=p)  # shows the middle of the rectified image
    messages = [
        Recorded("/camera_info", START, recorded.camera_info(START, camera)),
        Recorded("/image", START, recorded.image(START, np.full((64, 160, 3), 90, np.uint8), "rgb8")),
        Recorded("/labels", START, recorded.image(START, np.full((64, 160), 3, np.uint8), "mono8")),
    ]
    extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    (frame,) = Extraction.open(tmp_path / "out").frames
    expected = np.full((64, 160), 255, np.uint8)
    expected[16:48, 40:120] = 3
    np.testing.assert_array_equal(png(frame.labels), expected)


def test_a_raw_pair_has_no_depth_where_its_rectified_images_are_black(tmp_path):
    texture = cv2.GaussianBlur(np.random.default_rng(5).integers(0, 256, (96, 340), np.uint8), (0, 0), 1.2)
    messages = []
    for side, shift, baseline in (("", 0, 0.0), ("/right", 10, 0.5)):
        p = Camera.pinhole(320, 96, 200.0, baseline=baseline).p
        camera = Camera(320, 96, (400, 0, 159.5, 0, 400, 47.5, 0, 0, 1), p=p)  # shows the middle of the rectified image
        image = np.ascontiguousarray(texture[:, shift : shift + 320])
        messages.append(Recorded(f"{side}/camera_info", START, recorded.camera_info(START, camera)))
        messages.append(Recorded(f"{side}/image", START, recorded.image(START, image, "mono8")))
    extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    (frame,) = Extraction.open(tmp_path / "out").frames
    known = np.isfinite(to_metres(png(frame.depth)))
    assert known[30:66, 120:230].mean() > 0.9 and not known[:, :80].any() and not known[:, 240:].any() and not known[:24].any()


@pytest.mark.parametrize("topic", ["/aligned_depth/image_raw", "/aligned_depth/image_rect", "/aligned_depth/image_raw/compressedDepth"])
def test_depth_of_unrectified_pixels_is_rectified_with_its_image(tmp_path, topic):
    lens = Camera(160, 64, DISTORTED.k, "plumb_bob", (0.3, 0.1, 0.002, -0.001, 0.0))  # whose picture ends within the rectified one
    depth = np.full((64, 160), 10, np.float32)
    depth[5:25, 5:45] = 3.0  # a box in the corner, where the lens bends most
    gray = np.where(depth == 3, np.uint8(230), np.uint8(40))
    packed = "compressed" in topic
    messages = [
        Recorded("/cam/image_raw", START, recorded.image(START, gray, "mono8")),
        Recorded("/cam/camera_info", START, recorded.camera_info(START, lens)),
        Recorded(topic, START, recorded.compressed_depth(START, depth) if packed else recorded.image(START, depth, "32FC1")),
    ]
    extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    (frame,) = Extraction.open(tmp_path / "out").frames
    found, image = to_metres(png(frame.depth)), png(frame.image)[..., 0]
    if "rect" in topic:
        assert np.array_equal(found, depth)
        return
    columns, rows = lens.rectification_maps()
    beyond = (columns < -1) | (columns > 160) | (rows < -1) | (rows > 64)
    assert beyond.any() and np.isnan(found[beyond]).all()
    assert set(np.unique(found[np.isfinite(found)])) == {3.0, 10.0}, "no depth between near and far is made up"
    assert ((found == 3) == (image > 135))[~beyond].mean() > 0.995 and not np.array_equal(found == 3, depth == 3)


def a_box_beside(image: str, topic: str, info: str, camera: Camera | None) -> tuple[list[Recorded], np.ndarray]:
    """A picture of a lens, and depth with a box in its corner; camera: what `info` says of the depth, None where there is none."""
    depth = np.full((64, 160), 10, np.float32)
    depth[5:25, 5:45] = 3.0
    messages = [
        Recorded(image, START, recorded.image(START, world_frame(0).rgb, "rgb8")),
        Recorded("/cam/camera_info", START, recorded.camera_info(START, DISTORTED)),
        Recorded(topic, START, recorded.image(START, depth, "32FC1")),
    ]
    return messages + ([Recorded(info, START, recorded.camera_info(START, camera))] if camera else []), depth


@pytest.mark.parametrize(
    ("info", "beside", "warped"),
    [
        ("camera_info", DISTORTED.rectified(), False),
        ("depth/camera_info", DISTORTED.rectified(), False),  # as the logger calls it where nothing is remapped
        ("camera_info", None, True),
        ("camera_info", DISTORTED, True),
        ("camera_info", Camera.pinhole(160, 64, 77.0), True),
    ],
)
def test_depth_beside_a_calibration_of_the_rectified_image_is_not_rectified_again(tmp_path, info, beside, warped):
    """As the geometry node publishes it, beside a camera's raw picture."""
    messages, depth = a_box_beside("/cam/image_raw", "/geometry/depth", f"/geometry/{info}", beside)
    (outcome,) = extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    (frame,) = Extraction.open(tmp_path / "out").frames
    assert np.array_equal(to_metres(png(frame.depth)), depth) != warped
    doubt = "/geometry/depth is taken for depth of the raw /cam/image_raw, and rectified with it: there is no /geometry/camera_info to tell"
    assert [doubt in remark for remark in outcome.remarks] == ([] if beside else [True])


@pytest.mark.parametrize(("beside", "warped"), [(DISTORTED, True), (DISTORTED.rectified(), False), (None, False)])
def test_raw_depth_beside_a_rectified_image_is_rectified_with_the_lens(tmp_path, beside, warped):
    """camera_info is that of the lens on both, by the conventions of ROS: D is not zero beside image_rect."""
    messages, depth = a_box_beside("/cam/image_rect", "/cam/aligned_depth/image_raw", "/cam/aligned_depth/camera_info", beside)
    extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    (frame,) = Extraction.open(tmp_path / "out").frames
    assert np.array_equal(png(frame.image), world_frame(0).rgb)
    expected = DISTORTED.rectify_nearest(depth, np.nan) if warped else depth
    np.testing.assert_array_equal(to_metres(png(frame.depth)), expected)


def test_one_bag_is_open_at_a_time_and_one_process_extracts_into_a_folder(tmp_path, monkeypatch):
    """Of a thousand bags the descriptors would not do, and of compressed files each that is open is a copy."""
    paths = [write(tmp_path / f"bag{n}", drive(2, ("image",), start=START + n * NS)) for n in range(3)]
    opened, most, refused = set(), 0, []
    begin, end = Bag.__init__, Bag.__exit__

    def opening(bag, path, *args):
        nonlocal most
        begin(bag, path, *args)
        opened.add(bag)
        most = max(most, len(opened))

    def closing(bag, *args):
        opened.discard(bag)
        end(bag, *args)

    def on_frame():
        with pytest.raises(SourceError, match="another process extracts bags into .*out: wait for its end, or name another folder"):
            extract(paths[:1], tmp_path / "out")
        refused.append(True)

    monkeypatch.setattr(Bag, "__init__", opening)
    monkeypatch.setattr(Bag, "__exit__", closing)
    extract(paths, tmp_path / "out", on_frame=on_frame)
    assert (most, opened, len(refused)) == (1, set(), 6)
    assert len(Extraction.open(tmp_path / "out").frames) == 6


def test_a_topic_that_is_rectified_already_is_not_rectified_again(tmp_path):
    messages = [Recorded("/cam/image_rect", START, recorded.image(START, world_frame(0).rgb, "rgb8"))]
    messages.append(Recorded("/cam/camera_info", START, recorded.camera_info(START, DISTORTED)))
    extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    (frame,) = Extraction.open(tmp_path / "out").frames
    assert np.array_equal(png(frame.image), world_frame(0).rgb)


@pytest.mark.parametrize(("camera", "suffix"), [(WORLD_CAMERA, "jpg"), (None, "jpg"), (DISTORTED, "png")])
def test_jpeg_stays_as_it_came_where_it_is_rectified(tmp_path, camera, suffix):
    message = recorded.jpeg(START, world_frame(0).rgb)
    messages = [Recorded("/image/compressed", START, message)]
    if camera:
        messages.append(Recorded("/camera_info", START, recorded.camera_info(START, camera)))
    extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    (frame,) = Extraction.open(tmp_path / "out").frames
    assert frame.image.name == f"{START}.{suffix}"
    pixels = cv2.imdecode(message.data, cv2.IMREAD_COLOR)[..., ::-1]
    if suffix == "jpg":
        assert frame.image.read_bytes() == message.data.tobytes()
    else:
        assert np.array_equal(png(frame.image), DISTORTED.rectify(np.ascontiguousarray(pixels)))


def test_every_from_and_to_choose_frames_and_partners_stay_theirs(tmp_path):
    path = write(tmp_path / "bag", drive(12, offsets={"points": 8 * MS}))
    cases = [
        (Options(every=5), [0, 5, 10]),
        (Options(begin=0.35, end=0.75), [4, 5, 6, 7]),
        (Options(begin=0.35, every=3), [4, 7, 10]),
        (Options(end=0.25), [0, 1, 2]),
    ]
    for number, (options, expected) in enumerate(cases):
        extract([path], tmp_path / str(number), options)
        frames = Extraction.open(tmp_path / str(number)).frames
        assert [(frame.stamp - START) // PERIOD for frame in frames] == expected
        assert all(np.array_equal(png(f.labels), world_frame((f.stamp - START) // PERIOD).labels) for f in frames)
    bare = write(tmp_path / "bare", drive(6, ("image",)))  # that it has no calibration is not the reason
    with pytest.raises(SourceError, match="no frames: no image is in the stretch of time asked for, from 100 s to its end; .* 0.5 s long$"):
        extract([bare], tmp_path / "none", Options(begin=100))


def test_keyframes_keep_their_reasons(tmp_path):
    records = {START: ["interval"], START + 2 * PERIOD: ["uncertain", "view"]}
    texts = [recorded.text({"stamp": stamp, "topic": "/image", "reasons": reasons}) for stamp, reasons in records.items()]
    messages = [*drive(3), *(Recorded("/logger/keyframes", START + NS, text) for text in texts)]
    extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    assert [f.reasons for f in Extraction.open(tmp_path / "out").frames] == [("interval",), (), ("uncertain", "view")]


def test_what_the_logger_recorded_with_a_keyframe_is_its_partner(tmp_path):
    messages = drive(3, ("image", "camera_info", "points", "/tf_static"), {"points": 40 * MS})
    record = {"stamp": START + PERIOD, "reasons": ["view"], "partners": {"/points": START + PERIOD + 40 * MS, "/gone": 1}}
    texts = [recorded.text(record), recorded.text("no record"), recorded.text({"stamp": 1, "reasons": [], "partners": 3})]
    messages += [Recorded("/logger/keyframes", START + NS, text) for text in texts]
    extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    frames = Extraction.open(tmp_path / "out").frames
    assert [f.geometry for f in frames] == ["none", "lidar", "none"] and frames[1].partners == {"/points": 40 * MS}


def test_an_offset_counts_for_keyframes_too(tmp_path):
    """The logger took what was nearest by stamps that are 80 ms late: the scan of the image before."""
    messages = drive(4, ("image", "camera_info", "points", "/tf_static"), {"points": 80 * MS})
    records = [
        {"stamp": START + i * PERIOD, "reasons": ["view"], "partners": {"/points": START + (i - 1) * PERIOD + 80 * MS}} for i in (1, 2)
    ]
    messages += [Recorded("/logger/keyframes", START + NS, recorded.text(record)) for record in records]
    path = write(tmp_path / "bag", messages)
    for offset, late in ((0.0, 80 * MS - PERIOD), (0.08, 80 * MS)):
        extract([path], tmp_path / str(offset), Options(offset=offset))
        frames = Extraction.open(tmp_path / str(offset)).frames
        assert [frame.partners for frame in frames[1:3]] == [{"/points": late}] * 2 and frames[1].reasons == ("view",)


def test_keyframes_are_found_where_the_time_of_recording_counts(tmp_path):
    messages = [Recorded(m.topic, m.time + 7 * MS, m.message) for m in drive(3, ("image", "camera_info", "depth"), {"depth": 40 * MS})]
    record = {"stamp": START + PERIOD, "reasons": ["view"], "partners": {"/depth": START + 40 * MS}}
    messages.append(Recorded("/logger/keyframes", START + NS, recorded.text(record)))
    extract([write(tmp_path / "bag", messages)], tmp_path / "out", Options(clock="recorded"))
    frame = Extraction.open(tmp_path / "out").frames[1]
    assert frame.reasons == ("view",) and frame.partners == {"/depth": 40 * MS - PERIOD}


@pytest.mark.parametrize("first", ["drive", "a drive"])
def test_a_bag_that_was_renamed_keeps_its_frames_where_another_took_its_name(tmp_path, first):
    """Whichever of the two is seen first: masks are people's work."""
    old = write(tmp_path / "drive", drive(3))
    extract([old], tmp_path / "out")
    masks = tmp_path / "out" / "masks" / "drive"
    masks.mkdir(parents=True)
    for frame in Extraction.open(tmp_path / "out").frames:
        cv2.imwrite(str(masks / f"{frame.stamp}.png"), np.zeros((64, 160), np.uint8))
    moved = old.rename(tmp_path / "a drive")
    later = [Recorded(m.topic, m.time + 60 * NS, m.message) for m in drive(2, start=START + 60 * NS)]
    new = write(tmp_path / "drive", later)
    bags = [new, moved] if first == "drive" else [moved, new]
    outcomes = {outcome.path.name: outcome for outcome in extract(bags, tmp_path / "out")}
    assert (outcomes["a drive"].name, outcomes["a drive"].before, outcomes["a drive"].done) == ("drive", 3, 0)
    assert (outcomes["drive"].name, outcomes["drive"].done) == ("drive-2", 2)
    found = Extraction.open(tmp_path / "out")
    assert [found.label_path(frame, "masks") is not None for frame in found.frames] == [True] * 3 + [False] * 2
    assert not any("are of no frame" in remark for outcome in outcomes.values() for remark in outcome.remarks)
    cv2.imwrite(str(masks / "17.png"), np.zeros((64, 160), np.uint8))
    (outcome,) = extract([moved], tmp_path / "out")
    assert f"1 masks in {masks} are of no frame of this bag" in outcome.remarks


def test_messages_recorded_at_the_same_time_are_told_apart(tmp_path):
    # A simulated clock that ticks every other frame; partners are recorded in another order than their images.
    at = {m.time: START + (m.time - START) // (2 * PERIOD) * 2 * PERIOD + 3 * PERIOD for m in drive(6)}
    messages = [Recorded(m.topic, at[m.time], m.message) for m in drive(6)]
    path = write(tmp_path / "bag", [*only(messages, "/labels")[::-1], *(m for m in messages if m.topic != "/labels")])
    extract([path], tmp_path / "out")
    for index, frame in enumerate(Extraction.open(tmp_path / "out").frames):
        truth = world_frame(index)
        assert np.array_equal(png(frame.image), truth.rgb) and np.array_equal(png(frame.labels), truth.labels)
    extract([path], tmp_path / "all", Options(every=2))
    assert [np.array_equal(png(f.image), world_frame(2 * i).rgb) for i, f in enumerate(Extraction.open(tmp_path / "all").frames)] == 3 * [
        True
    ]
    # By the time of recording, they are one.
    extract([path], tmp_path / "recorded", Options(clock="recorded"))
    frames = Extraction.open(tmp_path / "recorded").frames
    assert [f.stamp for f in frames] == sorted(set(at.values())) and np.array_equal(png(frames[1].image), world_frame(2).rgb)


# Going on, several bags, several processes.


def test_an_extraction_goes_on_and_does_nothing_twice(tmp_path):
    path, out = write(tmp_path / "bag", drive(6)), tmp_path / "out"
    seen = []

    def stop_after_three() -> None:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract([path], out, on_frame=stop_after_three)
    begun = Extraction.open(out)
    assert 1 <= len(begun.frames) <= 3 and all(f.image.exists() and f.depth.exists() for f in begun.frames)
    lost = begun.frames[0].labels
    lost.unlink()
    times = {f.image: f.image.stat().st_mtime_ns for f in begun.frames[1:]}
    (outcome,) = extract([path], out)
    assert (outcome.before, outcome.done) == (len(begun.frames) - 1, 6 - len(begun.frames) + 1)
    assert lost.exists() and all(path.stat().st_mtime_ns == at for path, at in times.items())
    extract([path], tmp_path / "at once")
    assert files(out) == files(tmp_path / "at once")
    (outcome,) = extract([path], out)
    assert (outcome.before, outcome.done) == (6, 0)


def test_a_killed_extraction_goes_on(tmp_path):
    path, out = write(tmp_path / "bag", drive(60)), tmp_path / "out"
    code = f"from lix_core.bags.extract import extract; extract([{str(path)!r}], __import__('pathlib').Path({str(out)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(list(out.glob("bag/labels/*.png"))) < 9 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = len(list(out.glob("bag/labels/*.png")))
    assert 9 <= made < 60
    (outcome,) = extract([path], out)
    assert outcome.before + outcome.done == 60
    assert [len(list((out / "bag" / kind).glob("*.png"))) for kind in ("image", "depth", "labels")] == [60, 60, 60]


def test_other_options_are_refused_and_other_bags_are_added(tmp_path):
    a, b = write(tmp_path / "a", drive(2)), write(tmp_path / "b", drive(3, start=START + 100 * NS))
    extract([a], tmp_path / "out", Options(every=2))
    with pytest.raises(SourceError, match="was extracted with other options: every 2, not 1; give the same ones, or another folder"):
        extract([a], tmp_path / "out")
    first, second = extract([a, b], tmp_path / "out", Options(every=2))
    assert (first.before, first.done, second.before, second.done) == (1, 0, 0, 2)
    found = Extraction.open(tmp_path / "out")
    assert [bag["name"] for bag in found.bags] == ["a", "b"] and len(found.frames) == 3


def test_two_bags_of_one_name_are_kept_apart(tmp_path):
    paths = [write(tmp_path / day / "drive", drive(1, start=START + i * NS)) for i, day in enumerate(("monday", "tuesday"))]
    extract(paths, tmp_path / "out")
    extract(paths[::-1], tmp_path / "out")
    assert [f.name for f in Extraction.open(tmp_path / "out").frames] == [f"drive/{START}", f"drive-2/{START + NS}"]


def test_a_bag_that_changed_is_made_anew(tmp_path):
    path = write(tmp_path / "bag", drive(2))
    extract([path], tmp_path / "out")
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    write(path, drive(4, start=START + 50 * NS))
    (outcome,) = extract([path], tmp_path / "out")
    assert (outcome.before, outcome.done) == (0, 4)
    assert [f.stamp for f in Extraction.open(tmp_path / "out").frames] == [START + 50 * NS + i * PERIOD for i in range(4)]


def test_bags_that_changed_are_made_anew_though_it_was_killed_before_they_were(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    bags = [tmp_path / "a", tmp_path / "b"]
    for topics in (("image", "camera_info"), ("image", "camera_info", "depth")):
        for number, path in enumerate(bags):
            shutil.rmtree(path, ignore_errors=True)
            write(path, drive(2, topics, start=START + number * 100 * NS))
        if "depth" in topics:
            with monkeypatch.context() as patch, pytest.raises(Killed):
                patch.setattr("lix_core.bags.extract.make_frames", kill)
                extract(bags, tmp_path / "out")
        outcomes = extract(bags, tmp_path / "out")
    assert [(o.before, o.done, o.with_depth) for o in outcomes] == [(0, 2, 2), (0, 2, 2)]


def test_a_moved_bag_is_the_same_bag_and_a_copy_is_told(tmp_path):
    path = write(tmp_path / "monday" / "drive", drive(2, ("image",)))
    extract([path], tmp_path / "out")
    moved = path.rename(tmp_path / "drive of monday")
    (outcome,) = extract([moved], tmp_path / "out")
    assert (outcome.name, outcome.before, outcome.done) == ("drive", 2, 0)
    found = Extraction.open(tmp_path / "out")
    assert [(bag["name"], bag["path"]) for bag in found.bags] == [("drive", str(moved))] and len(found.frames) == 2
    copy = shutil.copytree(moved, tmp_path / "copy")
    first, second = extract([moved, copy], tmp_path / "out")
    assert (first.name, second.name) == ("drive", "copy")
    assert f"it looks like a copy of bag drive ({moved}): all its frames are here twice" in second.remarks


def test_a_damaged_bag_gives_way_to_what_was_repaired_of_it(tmp_path):
    path = write(tmp_path / "bags" / "drive", drive(10, ("image", "labels")))
    content = data_file(path).read_bytes()
    data_file(path).write_bytes(content[: len(content) // 2])
    (damaged,) = extract([path], tmp_path / "out")
    assert damaged.faults and damaged.done >= 3
    repair(path)
    repaired, left_out = extract(bags_in(tmp_path / "bags"), tmp_path / "out")
    # It keeps the name, hence what people labelled of it, and what was made of it already.
    assert (repaired.name, repaired.before, repaired.done, repaired.faults) == ("drive", damaged.done, 0, [])
    assert (left_out.done, left_out.faults) == (0, []) and left_out.remarks == [
        "left out: it is damaged, and drive_repaired is what is whole of it"
    ]
    assert len(Extraction.open(tmp_path / "out").frames) == damaged.done
    again, _ = extract(bags_in(tmp_path / "bags"), tmp_path / "out")
    assert (again.name, again.before, again.done) == ("drive", damaged.done, 0)


def test_several_processes_write_the_same_files(tmp_path):
    paths = [write(tmp_path / name, drive(10, start=START + i * 10 * NS)) for i, name in enumerate("ab")]
    told = []
    extract(paths, tmp_path / "one")
    extract(paths, tmp_path / "two", jobs=2, on_start=lambda frames, done: told.append((frames, done)), on_frame=lambda: told.append(1))
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert told == [(20, 0), *[1] * 20]


# Bad bags.


def test_frames_that_cannot_be_made_are_left_out_and_told(tmp_path):
    stamps = [START + i * PERIOD for i in range(5)]
    cut = recorded.image(stamps[1], world_frame(1).rgb, "rgb8")
    cut.data = cut.data[:100]
    wrong = {
        ("/image", stamps[1]): cut,
        ("/image", stamps[2]): recorded.image(stamps[2], np.zeros((32, 80, 3), np.uint8), "rgb8"),
        ("/depth", stamps[3]): recorded.image(stamps[3], np.ones((32, 80), np.float32), "32FC1"),
        ("/labels", stamps[4]): recorded.image(stamps[4], world_frame(4).rgb, "rgb8"),
    }
    messages = [Recorded(m.topic, m.time, wrong.get((m.topic, m.time - 5 * MS), m.message)) for m in drive(5)]
    (outcome,) = extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    assert (outcome.done, outcome.with_depth, outcome.with_labels) == (3, 2, 2)
    truncated, resized = outcome.left_out[START + PERIOD], outcome.left_out[START + 2 * PERIOD]
    assert "is it truncated" in truncated and "the image is 80x32, the first is 160x64" in resized
    rows = [json.loads(line) for line in (tmp_path / "out/bag/frames.jsonl").read_text().splitlines()]
    assert rows[1]["warnings"] == ["no depth: the depth image is 80x32, the image 160x64: record depth registered to it"]
    assert rows[1]["geometry"] == "none" and rows[1]["depth"] is None
    assert rows[2]["warnings"] == ["no labels: labels must be mono8 ids, got 'rgb8'"]
    assert outcome.warnings == {rows[1]["warnings"][0]: 1, rows[2]["warnings"][0]: 1}
    told = lix("extract", tmp_path / "bag", "-o", tmp_path / "out", "--jobs", 1)
    assert "  1 frames: no depth: the depth image is 80x32, the image 160x64: record depth registered to it\n" in told.output


def test_images_of_another_size_are_left_out_without_a_calibration_too(tmp_path):
    small = recorded.image(START + PERIOD, np.zeros((32, 80, 3), np.uint8), "rgb8")
    messages = [Recorded(m.topic, m.time, small if m.time == START + PERIOD + 5 * MS else m.message) for m in drive(3, ("image",))]
    (outcome,) = extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    assert outcome.left_out == {START + PERIOD: "the image is 80x32, the first is 160x64; both must be of one camera mode"}
    assert [png(frame.image).shape for frame in Extraction.open(tmp_path / "out").frames] == [(64, 160, 3)] * 2


def of_half_size(messages: list[Recorded], topic: str) -> list[Recorded]:
    """The messages with those images at half their size."""

    def half(m: Recorded) -> Recorded:
        pixels = m.message.data.view({"32FC1": np.float32, "mono8": np.uint8}[m.message.encoding]).reshape(64, 160)
        return Recorded(m.topic, m.time, recorded.image(m.time - 5 * MS, pixels[::2, ::2], m.message.encoding))

    return [half(m) if m.topic == topic else m for m in messages]


@pytest.mark.parametrize("others", [("points", "/tf_static"), ()])
def test_depth_that_cannot_be_made_is_told_before_and_the_next_sensor_is_taken(tmp_path, others):
    path = write(tmp_path / "bag", of_half_size(drive(6, ("image", "camera_info", "depth", *others)), "/depth"))
    why = "the depth image is 80x32, the image 160x64: record depth registered to it"
    report, (outcome,) = check(path), extract([path], tmp_path / "out")
    geometry = "lidar" if others else "none"
    assert (report.geometry, report.with_depth) == (geometry, outcome.with_depth) == (geometry, 6 if others else 0)
    assert {frame.geometry for frame in Extraction.open(tmp_path / "out").frames} == {geometry}
    assert report.remarks == outcome.remarks == [f"depth: {why}"] and outcome.warnings == {}
    with pytest.raises(SourceError, match=f"no depth from depth: {why}"):
        extract([path], tmp_path / "depth", Options(geometry="depth"))


@pytest.mark.parametrize(("kept", "geometry"), [(1, "lidar"), (4, "lidar"), (5, "depth"), (10, "depth")])
def test_auto_takes_no_sensor_that_fits_few_images_for_one_that_fits_all(tmp_path, kept, geometry):
    messages = drive(10, ("image", "camera_info", "depth", "points", "/tf_static"))
    path = write(tmp_path / "bag", [m for m in messages if m.topic != "/depth" or m.time < START + kept * PERIOD])
    report, (outcome,) = check(path), extract([path], tmp_path / "out")
    assert (report.geometry, report.with_depth, outcome.with_depth) == (geometry, *[10 if geometry == "lidar" else kept] * 2)
    told = f"depth fits {kept} images, lidar 10: depth is made of lidar; --geometry depth takes the other"
    lacks = f"{10 - kept} of 10 images have no partner on /depth; it is slower than the camera, or has gaps: those images get none"
    lacking = [lacks] if kept < 10 else []
    assert outcome.remarks == ([told] if geometry == "lidar" else lacking) and set(outcome.remarks) <= set(report.remarks)
    (named,) = extract([path], tmp_path / "named", Options(geometry="depth"))
    assert named.with_depth == kept and named.remarks == lacking


def test_a_sensor_that_fits_few_images_is_taken_where_the_other_gives_no_depth(tmp_path):
    messages = drive(6, ("image", "camera_info", "points", "/tf_static"))
    blind = [Recorded(m.topic, m.time, recorded.cloud(m.time - 5 * MS, np.zeros((0, 3)))) for m in only(messages, "/points")]
    others = only(messages, "/image", "/camera_info", "/tf_static")
    report = check(write(tmp_path / "bag", [*others, *blind, *drive(1, ("depth",))]))
    assert (report.geometry, report.with_depth) == ("depth", 1)
    assert any(remark.startswith("lidar: ") for remark in report.remarks) and not any(" fits " in remark for remark in report.remarks)


def test_compressed_depth_that_cannot_be_read_is_told_before(tmp_path):
    packed = recorded.compressed_depth(START, world_frame(0).depth)
    packed.format = "16UC1; compressedDepth rvl"
    messages = [Recorded("/depth/compressedDepth", START, packed), *drive(1, ("image", "camera_info", "points", "/tf_static"))]
    report = check(write(tmp_path / "bag", messages))
    assert (report.geometry, report.with_depth) == ("lidar", 1)
    assert any(remark.startswith("depth: ") and "rvl" in remark for remark in report.remarks)


def test_labels_that_cannot_be_taken_are_told_before(tmp_path):
    path = write(tmp_path / "bag", of_half_size(drive(4, ("image", "camera_info", "depth", "labels", "label_names")), "/labels"))
    report, (outcome,) = check(path), extract([path], tmp_path / "out")
    assert (report.with_labels, outcome.with_labels, report.with_depth) == (0, 0, 4)
    assert report.remarks == outcome.remarks == ["labels: labels are 80x32, the image 160x64"]


def test_ids_beyond_the_label_set_become_unlabelled(tmp_path):
    messages = drive(1)
    (labels,) = only(messages, "/labels")
    labels.message.data[:160] = 77
    extract([write(tmp_path / "bag", messages)], tmp_path / "out")
    (frame,) = Extraction.open(tmp_path / "out").frames
    expected = world_frame(0).labels.copy()
    expected[0] = 255
    assert np.array_equal(png(frame.labels), expected)


def test_without_camera_info_images_and_labels_are_extracted(tmp_path):
    (outcome,) = extract([write(tmp_path / "bag", only(drive(2), "/image", "/depth", "/labels"))], tmp_path / "out")
    assert (outcome.done, outcome.with_depth, outcome.with_labels) == (2, 0, 2)
    assert any("no camera_info for /image" in remark for remark in outcome.remarks)
    found = Extraction.open(tmp_path / "out")
    assert found.calibration("bag").camera is None
    with pytest.raises(DataError, match="bag/labels.json is missing: it says what the ids mean"):
        found.label_set("bag", "bag")


def test_the_same_picture_twice_is_no_pair_and_the_lidar_is_taken(tmp_path):
    blocks = np.kron(np.random.default_rng(0).integers(0, 256, (30, 40), np.uint8), np.ones((8, 8), np.uint8))
    cameras = {"/camera_info": Camera.pinhole(320, 240, 200.0), "/right/camera_info": Camera.pinhole(320, 240, 200.0, baseline=0.5)}
    messages = [Recorded(topic, START, recorded.camera_info(START, camera)) for topic, camera in cameras.items()]
    messages += [Recorded(topic, START, recorded.image(START, blocks, "mono8")) for topic in ("/image", "/right/image")]
    path = write(tmp_path / "bag", [*messages, *only(drive(1), "/points", "/tf_static")])
    (outcome,) = extract([path], tmp_path / "out")
    assert "stereo: left and right are the same image; one camera is published as both" in outcome.remarks
    assert [frame.geometry for frame in Extraction.open(tmp_path / "out").frames] == ["lidar"]
    with pytest.raises(SourceError, match="no depth from stereo: left and right are the same image"):
        extract([path], tmp_path / "stereo", Options(geometry="stereo"))


def test_a_truncated_bag_gives_its_whole_frames(tmp_path):
    path = write(tmp_path / "bag", drive(10))
    content = data_file(path).read_bytes()
    data_file(path).write_bytes(content[: len(content) // 2])
    (outcome,) = extract([path], tmp_path / "out", jobs=2)
    assert 3 <= outcome.done <= 5 and outcome.left_out == {} and "cannot read bag" in outcome.faults[0]
    for frame in Extraction.open(tmp_path / "out").frames:
        assert np.array_equal(png(frame.image), world_frame((frame.stamp - START) // PERIOD).rgb)


def test_bags_that_cannot_be_read_do_not_stop_the_others(tmp_path):
    good, bad = write(tmp_path / "good", drive(1)), write(tmp_path / "bad", drive(1))
    data_file(bad).write_bytes(b"nothing")
    empty = write(tmp_path / "empty", only(drive(1), "/camera_info"))
    outcomes = {o.name: o for o in extract([bad, good, empty], tmp_path / "out")}
    assert outcomes["good"].done == 1
    assert "cannot read bag" in outcomes["bad"].faults[0] and "is a camera's picture" in outcomes["empty"].faults[0]
    with pytest.raises(SourceError, match="cannot read bag .*bad"):
        extract([bad], tmp_path / "other")


def test_a_bag_without_an_image_that_can_be_decoded_does_not_stop_the_others(tmp_path):
    good, bad = write(tmp_path / "good", drive(1)), tmp_path / "bad"
    messages = drive(3)
    for message in only(messages, "/image"):
        message.message.encoding = "custom42"
    write(bad, messages)
    (report,) = check_all([bad])
    (fault,) = report.faults
    assert f"bag {bad}: none of the first 3 images of /image can be decoded: " in fault and "custom42" in fault
    outcomes = {o.name: o for o in extract([bad, good], tmp_path / "out")}
    assert outcomes["good"].done == 1 and outcomes["bad"].faults == [fault]
    assert [frame.name for frame in Extraction.open(tmp_path / "out").frames] == [f"good/{START}"]
    with pytest.raises(SourceError, match="none of the first 3 images"):
        extract([bad], tmp_path / "none")


def test_what_is_no_extraction_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match="extraction.json is missing; make it with `lix bag extract BAG --out"):
        Extraction.open(tmp_path)
    (tmp_path / "extraction.json").write_text("{}")
    with pytest.raises(DataError, match="extraction.json is of no format that this version reads"):
        Extraction.open(tmp_path)
    extract([write(tmp_path / "bag", drive(1))], tmp_path / "out")
    (tmp_path / "out/bag/frames.jsonl").write_text('{"stamp": "x"}\n')
    with pytest.raises(DataError, match="frames.jsonl has a line that is no frame"):
        Extraction.open(tmp_path / "out")


# The command.


def test_the_command_tells_checks_and_extracts(tmp_path):
    a, b = write(tmp_path / "bags" / "a", drive(3)), write_humble(tmp_path / "bags" / "b", only(drive(2), "/image"))
    told = lix("info", tmp_path / "bags")
    assert told.exit_code == 0, told.output
    assert f"{a}: " in told.output and f"{b}: 2 messages in 0.1 s" in told.output
    line = next(line for line in told.output.splitlines() if "/right/image" in line)
    assert line.split() == ["/right/image", "sensor_msgs/msg/Image", "3", "10.0", "Hz", "right_image"]
    checked = lix("check", a, b, "--json", tmp_path / "report.json")
    assert checked.exit_code == 0, checked.output
    assert "frames 3, with depth 3 (from depth), with labels 3" in checked.output and "remark: no camera_info for /image" in checked.output
    assert [report["frames"] for report in json.loads((tmp_path / "report.json").read_text())] == [3, 2]
    done = lix("extract", a, b, "-o", tmp_path / "out", "--every", 2, "--from", 0.05, "--jobs", 1)
    assert done.exit_code == 0, done.output
    assert "a: 1 frames (1 new), 1 with depth, 1 with labels" in done.output
    assert "b: 1 frames (1 new), 0 with depth, 0 with labels" in done.output


def test_the_command_repairs_what_extract_reads_only_in_part(tmp_path):
    path = write(tmp_path / "bag", drive(2))
    (path / "metadata.yaml").unlink()
    assert lix("repair", path).exit_code == 0
    told = lix("info", path)
    assert told.exit_code == 0 and "damaged" not in told.output and f"{path}: {len(drive(2))} messages" in told.output


def test_the_command_says_what_is_damaged_and_refuses_what_cannot_be(tmp_path):
    path = write(tmp_path / "bag", drive(2))
    content = data_file(path).read_bytes()
    data_file(path).write_bytes(content[: len(content) // 2])
    damaged = lix("check", path)
    assert damaged.exit_code == 1 and "fault: cannot read bag" in damaged.output
    told = lix("info", path)
    assert told.exit_code == 1 and "damaged" in told.output and "fault: cannot read bag" in told.output
    partial = lix("extract", path, "-o", tmp_path / "part", "--jobs", 1)
    assert partial.exit_code == 1 and "bag: 1 frames (1 new)" in partial.output and "fault: cannot read bag" in partial.output
    for arguments, words in (
        (("check", tmp_path / "nowhere"), "no such bag: "),
        (("extract", path, "-o", tmp_path / "out", "--depth", "/nothing"), "has no topic /nothing for depth"),
        (("check", path, "--extrinsics", "1 2 x"), "--extrinsics takes seven numbers"),
    ):
        refused = lix(*arguments)
        assert isinstance(refused.exception, SourceError) and words in str(refused.exception)


def test_the_command_repairs_several_bags_and_goes_on_where_one_is_beyond_it(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        write(tmp_path / "recs" / name, drive(1))
        (tmp_path / "recs" / name / "metadata.yaml").unlink()
    data_file(tmp_path / "recs" / "b").write_bytes(b"nothing")
    done = lix("repair", tmp_path / "recs")
    assert (
        done.exit_code == 1
        and "fault: nothing can be recovered of" in done.output
        and done.output.count("has its metadata.yaml again") == 2
    )
    alone = lix("repair", tmp_path / "recs" / "b")
    assert isinstance(alone.exception, SourceError) and "nothing can be recovered of" in str(alone.exception)
    told = lix("info", tmp_path / "recs")
    assert (
        told.exit_code == 1
        and f"fault: cannot read bag {tmp_path / 'recs' / 'b'}" in told.output
        and f"c: {len(drive(1))} messages" in told.output
    )
    assert [(tmp_path / "recs" / name / "metadata.yaml").exists() for name in ("a", "b", "c")] == [True, False, True]
    refused = lix("repair", tmp_path / "recs" / "a", tmp_path / "recs" / "c", "--out", tmp_path / "new")
    assert isinstance(refused.exception, SourceError) and "--out is the folder of one new bag, got 2 bags" in str(refused.exception)


def test_the_command_repairs_the_bag_that_it_is_started_in(tmp_path, monkeypatch):
    path = write(tmp_path / "drive", drive(4))
    content = data_file(path).read_bytes()
    data_file(path).write_bytes(content[: len(content) // 2])
    monkeypatch.chdir(path)
    repaired = lix("repair", ".")
    assert repaired.exit_code == 1 and "fault: " in repaired.output  # what was cut off is lost
    with Bag(tmp_path / "drive_repaired") as repaired:
        assert repaired.count > 4 and sorted(p.name for p in tmp_path.iterdir()) == ["drive", "drive_repaired"]


def test_files_that_a_power_cut_left_empty_are_made_again(tmp_path):
    path = write(tmp_path / "drive", drive(2))
    extract([path], tmp_path / "out")
    image = Extraction.open(tmp_path / "out").frames[0].image
    content = image.read_bytes()
    image.write_bytes(b"")
    assert extract([path], tmp_path / "out")[0].done == 1 and image.read_bytes() == content


def test_files_of_others_are_not_replaced_by_those_of_an_extraction(tmp_path):
    path, mine = write(tmp_path / "drive", drive(2)), tmp_path / "out" / "drive" / "camera.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(SourceError, match="out/drive is not empty and not of frames of a bag, and files in it would be replaced"):
        extract([path], tmp_path / "out")
    assert mine.read_text() == "mine" and list(mine.parent.iterdir()) == [mine]


@pytest.mark.parametrize("out", ["recs", "recs/drive", "recs/drive/frames", "recs/night"])
def test_frames_are_not_written_among_the_files_of_a_bag(tmp_path, out):
    path, night = write(tmp_path / "recs" / "drive", drive(1)), write(tmp_path / "recs" / "night", drive(1))
    before = {p: p.read_bytes() for p in (tmp_path / "recs").rglob("*") if p.is_file()}
    with pytest.raises(SourceError, match=f"frames of bag {path} would be written to .*, among the files of a bag; give another --out"):
        extract([path], tmp_path / out)
    other = write(tmp_path / "elsewhere" / "night", drive(1))
    with pytest.raises(SourceError, match=f"frames of bag {other} would be written to "):
        extract([other], night.parent)
    assert {p: p.read_bytes() for p in (tmp_path / "recs").rglob("*") if p.is_file()} == before


def test_lix_has_the_commands_on_bags_and_errors_are_one_line(tmp_path):
    asked = [sys.executable, "-m", "lix_core.cli.main", "bag", "info", str(tmp_path / "nowhere")]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stderr) == (2, f"lix: no such bag: {tmp_path / 'nowhere'}\n")
