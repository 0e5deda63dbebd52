"""The replay node, in a process of its own: every frame arrives, once, in order, with the right pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2: neither an installation is sourced nor are the wheels installed")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402

import bags  # noqa: E402
import bundles  # noqa: E402
from ros import NodeProcess, Peer, node_starter, pixels_of, stamp_ns, wait_for  # noqa: E402

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
    wait_for(lambda: len(infos) >= 12, f"{len(infos)} of 12 camera_info")
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
    for index, frame in enumerate(frames):
        stamp = 10**9 + index * 50 * bags.MS
        written.append(("/cam/image_raw", stamp, bags.image_message(stamp, frame, "rgb8")))
        written.append(("/cam/camera_info", stamp, bags.camera_info_message(stamp, 64, 48, focal=70.0)))
    bag = bags.write_bag(tmp_path / "bag", written)
    images, infos = peer.listen(Image, "/image"), peer.listen(CameraInfo, "/camera_info")
    assert finish(start(input=str(bag), rate=0.0, encoding="rgb8")) == 0
    wait_for(lambda: len(images) >= 6, f"{len(images)} of 6 images")
    for message, frame in zip(images, frames, strict=True):
        np.testing.assert_array_equal(pixels_of(message), frame)
    assert [m.k[0] for m in infos] == [70.0] * 6
    gaps = np.diff([stamp_ns(m) for m in images]) / 1e6
    assert abs(np.median(gaps) - 50) < 10


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
    ],
)
def test_bad_input_ends_the_node_with_a_reason(start: Any, ros: None, folder: Path, parameters: dict, status: int, words: str) -> None:
    node = start(**{"input": str(folder), **parameters})
    assert finish(node) == status
    assert words in node.output


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
