"""Where frames come from: images, folders, videos and bags."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bags
from bags import MS
from lix_core.errors import ImageError, LixError, SourceError
from lix_core.runtime.mp4 import shown_seconds
from lix_core.runtime.sources import ImageSource, VideoSource, open_source


def picture(seed: int = 0, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_images(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Files of random pictures; stem -> BGR array."""
    folder.mkdir(exist_ok=True)
    written = {}
    for seed, name in enumerate(names):
        written[Path(name).stem] = picture(seed)
        assert cv2.imwrite(str(folder / name), written[Path(name).stem])
    return written


def write_video(path: Path, grays: list[int], rate: float = 25.0) -> Path:
    """A video of plain gray frames."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, (64, 48))
    assert writer.isOpened()
    for gray in grays:
        writer.write(np.full((48, 64, 3), gray, np.uint8))
    writer.release()
    return path


def raw(index: int, topic: str = "/camera/image_raw") -> tuple:
    return topic, 10**18 + index * 50 * MS, bags.image_message(10**18 + index * 50 * MS, picture(index))


def compressed(index: int, topic: str = "/camera/image_raw/compressed") -> tuple:
    return topic, 10**18 + index * 50 * MS, bags.compressed_message(10**18 + index * 50 * MS, picture(index))


def info(index: int = 0, topic: str = "/camera/camera_info", focal: float = 5.0) -> tuple:
    return topic, 10**18 + index * 50 * MS, bags.camera_info_message(10**18 + index * 50 * MS, 8, 6, focal)


# Images and folders.


def test_a_folder_gives_its_images_in_natural_order(tmp_path):
    written = write_images(tmp_path / "clip", ["frame10.png", "frame9.png", "frame1.BMP", "frame2.png"])
    (tmp_path / "clip" / "notes.txt").write_text("no image")
    source = open_source(tmp_path / "clip")
    frames = list(source)
    assert [frame.stem for frame in frames] == ["frame1", "frame2", "frame9", "frame10"]
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert (source.name, len(source), source.rate, source.camera) == ("clip", 4, 10.0, None)
    for frame in frames:
        image, order = frame.load()
        assert order == "bgr" and np.array_equal(image, written[frame.stem])


def test_one_image_is_a_source_of_one_frame(tmp_path):
    written = write_images(tmp_path, ["street.png", "other.png"])
    source = open_source(str(tmp_path / "street.png"))
    (frame,) = source
    assert (source.name, len(source), frame.stem, frame.time) == ("street", 1, "street", 0)
    assert np.array_equal(frame.load()[0], written["street"])


def test_where_stems_repeat_full_names_are_used_for_the_whole_folder(tmp_path):
    names = ["a.jpg", "a.jpg.png", "a.png", "b.png"]
    write_images(tmp_path, names)
    assert [frame.stem for frame in open_source(tmp_path)] == names


def test_a_source_can_be_read_again(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    source = open_source(tmp_path)
    assert [f.stem for f in source] == [f.stem for f in source] == ["a", "b"]


def test_a_calibration_beside_the_images_is_read(tmp_path):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "camera_info.yaml").write_text(
        "{image_width: 8, image_height: 6, distortion_model: plumb_bob, camera_matrix: {data: [5, 0, 4, 0, 5, 3, 0, 0, 1]},"
        " distortion_coefficients: {data: [0, 0, 0, 0, 0]}, rectification_matrix: {data: [1, 0, 0, 0, 1, 0, 0, 0, 1]},"
        " projection_matrix: {data: [5, 0, 4, 0, 0, 5, 3, 0, 0, 0, 1, 0]}}"
    )
    camera = open_source(tmp_path).camera
    assert (camera.width, camera.height, camera.k[0], camera.p[2]) == (8, 6, 5, 4)


def test_a_damaged_calibration_is_an_error_and_not_ignored(tmp_path):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "camera_info.yaml").write_text("nothing")
    source = open_source(tmp_path)
    assert len(list(source)) == 1, "who needs no calibration does not read it"
    with pytest.raises(LixError, match="camera_info.yaml is not a camera_calibration YAML file"):
        source.camera


def test_a_corrupt_image_fails_alone_and_by_name(tmp_path):
    write_images(tmp_path, ["a.png", "c.png"])
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    (tmp_path / "d.png").write_bytes(b"")
    (tmp_path / "e.png").mkdir()
    good, cut, other, empty, folder = open_source(tmp_path)
    messages = (r"b.png \(20 bytes\) cannot be decoded", r"d.png \(0 bytes\) cannot be decoded", "cannot read .*e.png: Is a directory")
    for frame, message in zip((cut, empty, folder), messages):
        with pytest.raises(ImageError, match=message):
            frame.load()
    assert good.load()[0].shape == other.load()[0].shape == (6, 8, 3)


def test_an_image_that_vanished_meanwhile_is_named(tmp_path):
    write_images(tmp_path, ["a.png"])
    (frame,) = open_source(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match="cannot read .*a.png: No such file"):
        frame.load()


def test_of_a_folder_of_simulated_streets_the_images_of_one_are_named(tmp_path):
    for scene in ("Scene02", "Scene01"):
        (tmp_path / scene / "clear" / "frames" / "rgb" / "Camera_0").mkdir(parents=True)
    with pytest.raises(SourceError, match="simulated streets; give the images of one .*/Scene01/clear/frames/rgb/Camera_0$"):
        open_source(tmp_path)


def test_a_live_world_is_for_the_replay_node(tmp_path):
    for name in ("world", "world:7"):
        with pytest.raises(SourceError, match=f"no such input: {name}; a live world is played by the replay node alone"):
            open_source(name)


def test_a_topic_of_what_is_no_bag_is_refused(tmp_path):
    write_images(tmp_path, ["a.png"])
    with pytest.raises(SourceError, match="topics are of bags, .* leave out the topic /image"):
        open_source(tmp_path, "/image")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"holds no images \(.jpg, .*\) and is no bag \(no metadata.yaml\)"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["none", "none.mp4", "none.mcap", "none.png"])
def test_a_missing_input_is_refused(tmp_path, name):
    with pytest.raises(SourceError, match=f"no such input: .*{name}"):
        open_source(tmp_path / name)


@pytest.mark.parametrize("name", ["notes.txt", "noextension", "weights.onnx"])
def test_a_file_of_another_kind_is_refused_with_its_suffix(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(SourceError, match=f"{name} is no image, video or bag that lix knows by its suffix '{Path(name).suffix}'"):
        open_source(tmp_path / name)


# Videos.


def test_a_video_gives_its_frames_in_order_at_its_rate(tmp_path):
    source = open_source(write_video(tmp_path / "drive.avi", [20, 90, 160, 230], rate=25))
    assert isinstance(source, VideoSource) and (source.name, len(source), source.rate) == ("drive", 4, 25)
    frames = [(frame.stem, frame.time, *frame.load()) for frame in source]
    assert [f[0] for f in frames] == [f"drive_{i:06d}" for i in range(4)]
    assert [f[1] for f in frames] == pytest.approx([0, 0.04, 0.08, 0.12])
    for (_, _, image, order), gray in zip(frames, [20, 90, 160, 230]):
        assert order == "bgr" and image.shape == (48, 64, 3)
        assert np.abs(image.astype(int) - gray).max() <= 3


def test_a_frame_of_a_video_stays_what_it_was(tmp_path):
    frames = list(open_source(write_video(tmp_path / "drive.avi", [20, 230])))
    assert frames[0].load()[0].mean() < 40 and frames[1].load()[0].mean() > 200


def test_a_cut_video_gives_the_frames_it_has_and_tells_once_which_it_has_not(tmp_path):
    path = write_video(tmp_path / "drive.avi", [20] * 20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    *whole, lost = open_source(path)
    assert 5 < len(whole) < 20 and all(frame.load()[0].shape == (48, 64, 3) for frame in whole)
    assert lost.stem == f"drive_{len(whole):06d}"
    with pytest.raises(ImageError, match=rf"frames {len(whole)} to 19 of .*drive.avi cannot be decoded"):
        lost.load()


class Reads:
    """In place of cv2.VideoCapture: a video whose header counts `count` frames, of which those in `bad`, and those after `end`, fail."""

    def __init__(self, count: int, end: int, bad: range):
        self.count, self.end, self.bad, self.tried = count, end, bad, 0

    def read(self) -> tuple[bool, np.ndarray | None]:
        index, self.tried = self.tried, self.tried + 1
        good = index < self.end and index not in self.bad
        return good, np.full((2, 2, 3), index, np.uint8) if good else None

    def grab(self) -> bool:
        return self.read()[0]

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_FRAME_COUNT: self.count}[what]

    isOpened = release = lambda self: True


def told(path: Path) -> list[tuple[int, object]]:
    """Of each frame its number in the stem and time, and what is in it or why not."""
    found = []
    for frame in open_source(path):
        try:
            content: object = int(frame.load()[0].mean())
        except ImageError as error:
            content = str(error).partition(" of ")[0]
        assert frame.stem == f"drive_{round(frame.time * 10):06d}"
        found.append((int(frame.stem[-6:]), content))
    return found


@pytest.mark.parametrize(
    ("suffix", "count", "end", "bad", "expected"),
    [
        (".mp4", 6, 6, range(2, 4), [(0, 0), (1, 1), (2, "frame 2"), (3, "frame 3"), (4, 4), (5, 5)]),
        (".mp4", 3, 3, range(0, 1), [(0, "frame 0"), (1, 1), (2, 2)]),
        (".mp4", 900, 2, range(0), [(0, 0), (1, 1), (2, "frames 2 to 899")]),
        (".mp4", 10**12, 2, range(0), [(0, 0), (1, 1), (2, f"frames 2 to {10**12 - 1}")]),
        (".mp4", 3, 2, range(0), [(0, 0), (1, 1), (2, "frame 2")]),
        (".mkv", 900, 3, range(1, 2), [(0, 0), (1, "frame 1"), (2, 2)]),  # its count is an estimate
        (".mp4", 0, 3, range(2, 3), [(0, 0), (1, 1)]),  # a stream
        (".mp4", 1, 3, range(0), [(0, 0), (1, 1), (2, 2)]),  # more than it counts
    ],
)
def test_frames_of_a_video_that_cannot_be_decoded_are_told(tmp_path, monkeypatch, suffix, count, end, bad, expected):
    (tmp_path / f"drive{suffix}").touch()
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: Reads(count, end, bad))
    assert told(tmp_path / f"drive{suffix}") == expected


def test_a_hole_in_a_video_costs_its_frames_and_no_others(tmp_path):
    path = tmp_path / "drive.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no mp4")
    noise = np.random.default_rng(0)
    for index in range(50):
        writer.write(noise.integers(4 * index, 4 * index + 50, (48, 64, 3), np.uint8))
    writer.release()
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    path.write_bytes(data)
    lost = [(number, why) for number, why in told(path) if isinstance(why, str)]
    assert 0 < len(lost) < 25 and lost == [(number, f"frame {number}") for number in range(lost[0][0], lost[-1][0] + 1)]
    whole = np.array([(number, content) for number, content in told(path) if isinstance(content, int)])
    assert len(whole) + len(lost) == 50 and whole[-1, 0] == 49
    # Those right after the hole are made of what is lost.
    assert np.abs(whole[whole[:, 0] > 40] @ [4, -1] + 25).max() < 12
    assert np.abs(whole[whole[:, 0] < lost[0][0]] @ [4, -1] + 25).max() < 12


def mp4_of(path: Path, frames: int) -> bytearray:
    """A video of 10 Hz; skips the test where OpenCV writes none."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no mp4")
    for index in range(frames):
        writer.write(np.full((48, 64, 3), 6 * index, np.uint8))
    writer.release()
    return bytearray(path.read_bytes())


def shown(data: bytearray, begin: float, seconds: float) -> bytearray:
    """The same video with an edit list that shows a part of it [s]."""
    scales = {kind: struct.unpack_from(">I", data, data.index(kind) + 16)[0] for kind in (b"mvhd", b"mdhd")}
    place = data.index(b"elst")
    assert struct.unpack_from(">I", data, place + 8)[0] == 1
    struct.pack_into(">Ii", data, place + 12, round(seconds * scales[b"mvhd"]), round(begin * scales[b"mdhd"]))
    return data


@pytest.mark.parametrize("begin, seconds", [(0.5, 3.5), (0.0, 4.0), (1.5, 1.0), (0.1, 3.9)])
def test_a_trimmed_video_is_whole(tmp_path, begin, seconds):
    """As `ffmpeg -ss ... -c copy` and phones write it: its file counts frames that its edit list hides."""
    data = shown(mp4_of(tmp_path / "drive.mp4", 40), begin, seconds)
    (tmp_path / "drive.mp4").write_bytes(data)
    source = open_source(tmp_path / "drive.mp4")
    assert len(source) == round(10 * seconds)
    found = [frame.load()[0].mean() for frame in source]
    assert abs(len(found) - 10 * seconds) <= 1
    assert found == pytest.approx([6 * (round(10 * begin) + i) for i in range(len(found))], abs=5)
    # What is missing of such a video is told all the same: here everything behind two thirds of its frames.
    where = data.index(b"mdat")
    size = struct.unpack_from(">I", data, where - 4)[0]
    data[where + 4 + size * 2 // 3 : where - 4 + size] = bytes(size - 8 - size * 2 // 3)
    (tmp_path / "drive.mp4").write_bytes(data)
    if begin + seconds > 3:
        assert any(isinstance(content, str) for _, content in told(tmp_path / "drive.mp4"))


@pytest.mark.parametrize("wide", [False, True])
def test_an_edit_list_is_that_of_the_pictures_in_either_width_of_numbers(tmp_path, wide):
    """As files of more than 4 GB have them, with the sound before the pictures, and half a second of nothing before both."""

    def box(kind: bytes, *content: bytes) -> bytes:
        size = 8 + 8 * wide + sum(map(len, content))
        return b"".join([struct.pack(">I4sQ", 1, kind, size) if wide else struct.pack(">I4s", size, kind), *content])

    def full_box(kind: bytes, *content: bytes) -> bytes:
        return box(kind, bytes([wide, 0, 0, 0]), *content)

    def track(kind: bytes, *edits: tuple[int, int]) -> bytes:
        entries = [struct.pack(">QqI" if wide else ">IiI", ticks, begin, 1 << 16) for ticks, begin in edits]
        listed = box(b"edts", full_box(b"elst", struct.pack(">I", len(entries)), *entries))
        return box(b"trak", listed, box(b"mdia", full_box(b"hdlr", bytes(4), kind, bytes(12))))

    head = full_box(b"mvhd", bytes(16 if wide else 8), struct.pack(">I", 600), bytes(80))
    movie = box(b"moov", head, track(b"soun", (6000, 0)), track(b"vide", (300, -1), (1500, 40)))
    (tmp_path / "drive.mp4").write_bytes(box(b"ftyp", b"isom") + box(b"mdat", bytes(100)) + movie)
    assert shown_seconds(tmp_path / "drive.mp4") == 2.5


def test_files_that_are_no_mp4_have_no_edit_list(tmp_path):
    rng = np.random.default_rng(1)
    data = mp4_of(tmp_path / "drive.mp4", 4)
    assert shown_seconds(tmp_path / "drive.mp4") == pytest.approx(0.4)
    assert shown_seconds(tmp_path / "none.mp4") is None
    for _ in range(300):  # damage anywhere is no exception
        harmed = data.copy()
        for place in rng.integers(0, len(data), 30):
            harmed[place] = rng.integers(256)
        (tmp_path / "harmed.mp4").write_bytes(harmed[: rng.integers(len(data))])
        assert isinstance(shown_seconds(tmp_path / "harmed.mp4"), (float, type(None)))


@pytest.mark.parametrize("name", ["2024-05-01T10:30:00.avi", "cam:front.avi"])
def test_a_colon_in_the_name_of_a_video_is_no_protocol(tmp_path, monkeypatch, name):
    write_video(tmp_path / "drive.avi", [20, 230]).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(list(open_source(name))) == 2


@pytest.mark.parametrize("data", [b"", b"not a video", bytes(5000)])
def test_what_is_no_video_is_refused(tmp_path, data):
    path = tmp_path / "drive.mp4"
    path.write_bytes(data)
    with pytest.raises(SourceError, match="drive.mp4"):
        open_source(path)


# Bags.


@pytest.mark.parametrize("storage", bags.STORAGES)
@pytest.mark.parametrize("message", [raw, compressed])
def test_a_bag_gives_images_stamps_rate_and_camera(tmp_path, storage, message):
    path = bags.write_bag(tmp_path / "bag", [info(), *(message(i) for i in range(4))], storage)
    source = open_source(path)
    assert (source.name, len(source), source.rate) == ("bag", 4, pytest.approx(20))
    assert (source.camera.width, source.camera.height, source.camera.k[0], source.camera.d[0]) == (8, 6, 5, -0.3)
    assert source.camera.p[:3] == (5, 0, 4)
    frames = list(source)
    assert [frame.time for frame in frames] == pytest.approx([0, 0.05, 0.1, 0.15])
    assert [frame.stem for frame in frames] == [str(10**18 + i * 50 * MS) for i in range(4)]


@pytest.mark.parametrize("storage", bags.STORAGES)
@pytest.mark.parametrize("message", [raw, compressed])
def test_images_of_a_bag_can_be_loaded_while_it_is_read(tmp_path, storage, message):
    source = open_source(bags.write_bag(tmp_path / "bag", [message(i) for i in range(3)], storage))
    for index, frame in enumerate(source):
        image, order = frame.load()
        assert order == "bgr" and np.array_equal(image, picture(index))


@pytest.mark.parametrize("storage", bags.STORAGES)
def test_frames_recorded_at_one_time_have_names_of_their_own(tmp_path, storage):
    messages = [(topic, 10**18 + time * MS, message) for (topic, _, message), time in zip(map(raw, range(6)), (0, 0, 0, 50, 100, 100))]
    source = open_source(bags.write_bag(tmp_path / "bag", messages, storage))
    start, last = 10**18, 10**18 + 100 * MS
    assert [frame.stem for frame in source] == [f"{start}", f"{start}_1", f"{start}_2", str(start + 50 * MS), f"{last}", f"{last}_1"]
    assert all(np.array_equal(frame.load()[0], picture(index)) for index, frame in enumerate(source))


@pytest.mark.parametrize(("encoding", "order"), [("rgb8", "rgb"), ("bgra8", "bgra"), ("mono8", "gray")])
def test_a_bag_keeps_the_encoding_and_skips_the_padding_of_rows(tmp_path, encoding, order):
    channels = {"rgb": 3, "bgra": 4, "gray": 1}[order]
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    path = bags.write_bag(tmp_path / "bag", [("/image", 0, bags.image_message(0, image, encoding, padding=11))])
    (loaded,) = [frame.load() for frame in open_source(path)]
    assert loaded[1] == order and np.array_equal(loaded[0].reshape(image.shape), image)


@pytest.mark.parametrize("storage", bags.STORAGES)
def test_the_file_in_a_bag_folder_opens_like_the_folder(tmp_path, storage):
    path = bags.write_bag(tmp_path / "bag", [raw(0), raw(1)], storage)
    (data,) = (p for p in path.iterdir() if p.suffix in (".mcap", ".db3"))
    assert [frame.time for frame in open_source(data)] == pytest.approx([0, 0.05])


@pytest.mark.parametrize("storage", bags.STORAGES)
def test_a_data_file_without_its_folder_is_a_bag(tmp_path, storage):
    path = bags.write_bag(tmp_path / "bag", [raw(0), raw(1)], storage)
    (data,) = (p for p in path.iterdir() if p.suffix in (".mcap", ".db3"))
    alone = data.rename(tmp_path / f"alone{data.suffix}")
    source = open_source(alone)
    assert source.name == "alone" and [np.array_equal(f.load()[0], picture(i)) for i, f in enumerate(source)] == [True, True]


def test_a_ros_1_bag_is_read_too(tmp_path):
    messages = [("/camera/camera_info", 0, bags.ros1_camera_info(8, 6, 5.0))]
    messages += [("/camera/image_raw", i * 50 * MS, bags.ros1_image(picture(i))) for i in range(3)]
    source = open_source(bags.write_ros1_bag(tmp_path / "old.bag", messages))
    assert (source.name, len(source), source.rate, source.camera.k[0]) == ("old", 3, pytest.approx(20), 5)
    assert all(np.array_equal(frame.load()[0], picture(i)) for i, frame in enumerate(source))


def test_images_of_a_bag_can_be_loaded_after_it_was_read(tmp_path):
    frames = list(open_source(bags.write_bag(tmp_path / "bag", [raw(0), compressed(1, "/camera/image_raw/compressed"), raw(2)])))
    assert [np.array_equal(frame.load()[0], picture(i)) for frame, i in zip(frames, (0, 2), strict=True)] == [True, True]


def test_other_topics_of_a_bag_are_passed_over(tmp_path):
    others = [("/chat", 10**18, bags.text_message("hello")), info(), info(topic="/other/camera_info", focal=9.0)]
    source = open_source(bags.write_bag(tmp_path / "bag", [*others, raw(0), raw(1)]))
    assert source.topic == "/camera/image_raw" and len(source) == len(list(source)) == 2
    assert source.camera.k[0] == 5


def test_one_camera_recorded_raw_and_compressed_is_read_raw(tmp_path):
    path = bags.write_bag(tmp_path / "bag", [compressed(0), raw(0)])
    assert open_source(path).topic == "/camera/image_raw"
    assert open_source(path, "/camera/image_raw/compressed").topic == "/camera/image_raw/compressed"


@pytest.mark.parametrize("kept", ["/camera/image_raw", "/camera/image_raw/compressed"])
def test_empty_topics_are_no_cameras_unless_named(tmp_path, kept):
    """As a logger leaves them of cameras that said nothing."""
    path, store = tmp_path / "bag", bags.STORE
    empty = {"/rear/image_raw", "/camera/image_raw"} - {kept}
    with bags.Writer(path, version=9, storage_plugin=bags.STORAGES["mcap"]) as writer:
        for topic in sorted(empty):
            writer.add_connection(topic, "sensor_msgs/msg/Image", typestore=store)
        for topic, stamp, message in [(raw if kept.endswith("raw") else compressed)(i, kept) for i in range(2)]:
            connection = next((c for c in writer.connections if c.topic == topic), None)
            connection = connection or writer.add_connection(topic, message.__msgtype__, typestore=store)
            writer.write(connection, stamp, store.serialize_cdr(message, message.__msgtype__))
    assert open_source(path).topic == kept and len(open_source(path)) == 2
    with pytest.raises(SourceError, match="topic /rear/image_raw of bag .* has no messages"):
        open_source(path, "/rear/image_raw")


def test_two_cameras_ask_for_a_choice_and_take_it(tmp_path):
    path = bags.write_bag(tmp_path / "bag", [raw(0, "/left/image_raw"), raw(1, "/right/image_raw"), info(topic="/right/camera_info")])
    with pytest.raises(SourceError, match="several image topics; choose one with --topic: /left/image_raw, /right/image_raw"):
        open_source(path)
    assert np.array_equal(next(iter(open_source(path, "/right/image_raw"))).load()[0], picture(1))
    assert open_source(path, "/left/image_raw").camera is None and open_source(path, "/right/image_raw").camera


def test_a_topic_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    path = bags.write_bag(tmp_path / "bag", [raw(0), info()])
    for topic in ("/nothing", "/camera/camera_info"):
        with pytest.raises(SourceError, match=f"no image topic {topic}; it has /camera/image_raw"):
            open_source(path, topic)


def test_a_bag_without_images_is_refused(tmp_path):
    path = bags.write_bag(tmp_path / "bag", [info()])
    with pytest.raises(SourceError, match="no topic of sensor_msgs/msg/Image or sensor_msgs/msg/CompressedImage"):
        open_source(path)


def test_an_uncalibrated_camera_in_a_bag_is_none(tmp_path):
    assert open_source(bags.write_bag(tmp_path / "bag", [info(focal=0.0), raw(0)])).camera is None


def test_one_message_has_the_rate_of_a_folder(tmp_path):
    assert open_source(bags.write_bag(tmp_path / "bag", [raw(0)])).rate == 10


def test_a_bad_image_in_a_bag_fails_alone(tmp_path):
    topic, stamp, message = raw(1)
    message.data = message.data[:10]
    first, cut, last = [], [], []
    source = open_source(bags.write_bag(tmp_path / "bag", [raw(0), (topic, stamp, message), raw(2)]))
    for frame, results in zip(source, (first, cut, last)):
        try:
            results.append(frame.load()[0].shape)
        except ImageError as error:
            results.append(str(error))
    assert first == last == [(6, 8, 3)]
    assert cut == ["data has 10 bytes, but 8x6 bgr8 at step 24 takes 144; is it truncated?"]


@pytest.mark.parametrize("name", ["drive.mcap", "drive.db3", "drive.bag"])
@pytest.mark.parametrize("data", [b"", b"not a bag", bytes(3000)])
def test_what_is_no_bag_is_refused(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SourceError, match=f"cannot read bag .*{name}"):
        open_source(path)


def test_a_bag_folder_without_its_data_or_with_bad_metadata_is_refused(tmp_path):
    path = bags.write_bag(tmp_path / "bag", [raw(0)])
    (path / "bag.mcap").rename(path / "elsewhere")
    with pytest.raises(SourceError, match="cannot read bag .*bag"):
        open_source(path)
    (path / "metadata.yaml").write_text("nothing: [")
    with pytest.raises(SourceError, match="cannot read bag .*bag"):
        open_source(path)


def read_all(path: Path) -> None:
    """Read a bag to its end; errors of lix are fine, others are not."""
    try:
        for frame in open_source(path):
            try:
                frame.load()
            except ImageError:
                pass
    except LixError as error:
        assert "bag" in str(error)


@pytest.fixture(params=bags.STORAGES)
def bag_data(request, tmp_path) -> tuple[Path, bytes]:
    """The data file of a small bag, and what is in it."""
    folder = bags.write_bag(tmp_path / "bag", [info(), raw(0), compressed(1)], request.param)
    (path,) = (p for p in folder.iterdir() if p.suffix in (".mcap", ".db3"))
    return path, path.read_bytes()


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_bag_is_read_or_refused_but_never_ends_in_a_foreign_error(bag_data, data):
    path, good = bag_data
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 100)) | st.just(len(good)))
    path.write_bytes(good[:start] + data.draw(st.binary(max_size=20)) + good[end:])
    read_all(path)


def test_an_index_that_counts_messages_which_are_not_there_is_told(bag_data, monkeypatch):
    monkeypatch.setattr("lix_core.bags.reader.Bag.messages", lambda *_: iter(()))
    with pytest.raises(SourceError, match="has no messages: its index counts 1, but is damaged; `lix bag repair`"):
        open_source(bag_data[0])


def test_kinds_of_sources_are_told_apart(tmp_path):
    write_images(tmp_path / "clip", ["a.png"])
    assert isinstance(open_source(tmp_path / "clip"), ImageSource)
