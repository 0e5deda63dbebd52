"""The geometry node, in a process of its own, spoken to over Fast DDS, on scenes whose depth and normals are known."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator, Mapping

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2: neither an installation is sourced nor are the wheels installed")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image, PointCloud2  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from stereo_msgs.msg import DisparityImage  # noqa: E402

from lix_core import viz  # noqa: E402
from lix_core.camera import Camera  # noqa: E402
from lix_core.errors import GeometryError  # noqa: E402
from lix_core.geometry.poses import matrix_from_pose  # noqa: E402
from lix_core.geometry.stereo import StereoOptions  # noqa: E402
from lix_ros import geometry_node, geometry_sensors, messages  # noqa: E402
from lix_ros.diagnostics import pairing_values  # noqa: E402
from lix_ros.geometry_node import GeometryNode  # noqa: E402
from lix_ros.geometry_sensors import StereoPair  # noqa: E402
from lix_ros.parameters import GeometryParameters  # noqa: E402
from lix_ros.stream_node import MEMORY_S  # noqa: E402
from ros import (  # noqa: E402
    Diagnostics,
    Peer,
    answer_to,
    exchange,
    image_message,
    node_here,
    node_starter,
    pixels_of,
    stamp_ns,
    wait_for,
)

NODE = "/geometry"
LEFT = Camera.pinhole(320, 96, 200.0)
RIGHT = Camera.pinhole(320, 96, 200.0, baseline=0.5)
DISPARITY = 10
"""[pixels] of a wall at 200 * 0.5 / 10 = 10 m."""
EXTRINSICS = [0.0, -0.1, -0.2, 0.5, -0.5, 0.5, 0.5]
"""A LiDAR 0.1 m above and 0.2 m behind the camera, both looking ahead; x forward, y left, z up."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    with node_starter("geometry_node", tmp_path, diagnostics_period=0.1) as start_node:
        yield start_node


def texture(height: int = 96, width: int = 340) -> np.ndarray:
    noise = np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.2)


WALL = texture()
LEFT_IMAGE, RIGHT_IMAGE = (np.ascontiguousarray(WALL[:, shift : shift + 320]) for shift in (0, DISPARITY))


def header_at(stamp: int, frame_id: str = "camera_optical_frame") -> Header:
    header = Header(frame_id=frame_id)
    header.stamp.sec, header.stamp.nanosec = divmod(stamp, 10**9)
    return header


class Stereo:
    """A stereo camera. send(): one pair of the wall, each time with new stamps."""

    def __init__(self, peer: Peer, cameras: tuple[Camera, Camera] = (LEFT, RIGHT)):
        self.cameras = dict(zip(("left", "right"), cameras))
        self.images = {side: peer.publisher(Image, f"/{side}/image") for side in self.cameras}
        self.infos = {side: peer.publisher(CameraInfo, f"/{side}/camera_info") for side in self.cameras}

    def send(
        self,
        left: np.ndarray = LEFT_IMAGE,
        right: np.ndarray | None = RIGHT_IMAGE,
        late: int = 0,
        infos: Mapping[str, Callable[[], CameraInfo]] | None = None,
    ) -> int:
        """The left stamp. late: by which the right one is later [ns]. infos: make others than the cameras' own."""
        stamp = time.time_ns()
        for side, image, stamped in (("left", left, stamp), ("right", right, stamp + late)):
            info = infos[side]() if infos and side in infos else messages.camera_info(self.cameras[side], Header())
            info.header = header_at(stamped)
            self.infos[side].publish(info)
            if image is not None:
                self.images[side].publish(image_message(image, "rgb8", stamped, f"{side}_optical_frame"))
        return stamp


class Lidar:
    """A LiDAR and a camera. send(): one scan."""

    def __init__(self, peer: Peer):
        self.points = peer.publisher(PointCloud2, "/points")
        self.info = peer.publisher(CameraInfo, "/camera_info")

    def send(self, cloud: PointCloud2, late: int = 5_000_000) -> int:
        """The camera's stamp. late: by which the cloud's is later [ns]."""
        stamp = time.time_ns()
        cloud.header = header_at(stamp + late, "lidar")
        self.points.publish(cloud)
        self.info.publish(messages.camera_info(LEFT, header_at(stamp)))
        return stamp


def wall_cloud(step: float = 0.02) -> PointCloud2:
    """A wall 10 m ahead of the camera, as the LiDAR of EXTRINSICS sees it, with two points that are no numbers."""
    y, z = np.meshgrid(np.arange(-9, 9, 4 * step), np.arange(-3, 3, 4 * step))
    points = np.stack([np.full(y.size, 10.2), y.ravel(), z.ravel(), np.full(y.size, 0.5), np.zeros(y.size)], axis=1)
    points[:2, :3] = np.nan
    return messages.points_to_cloud(points, Header())


def until_told(send: Callable[[], Any], diagnostics: Diagnostics, words: str) -> bytes:
    """Send, ten times a second, until the diagnostics' message has `words`; its level."""

    def told() -> bool:
        send()
        time.sleep(0.1)
        return bool(diagnostics.latest) and words in diagnostics.latest.message

    wait_for(told, lambda: f"diagnostics never said {words!r}; the last was {diagnostics.latest}")
    return diagnostics.latest.level


def test_a_stereo_pair_of_a_wall_gives_its_depth_disparity_and_normals(start: Any, peer: Peer) -> None:
    start(max_disparity=64)
    kinds = {"depth": Image, "disparity": DisparityImage, "normals": Image, "normals_color": Image, "camera_info": CameraInfo}
    received = {name: peer.listen(kind, f"{NODE}/{name}") for name, kind in kinds.items()}
    camera = Stereo(peer)
    stamps: list[int] = []

    def all_answered() -> bool:
        stamps.append(stamp_ns(answer_to(camera.send, received["depth"])))
        return all(any(stamp_ns(m) == stamps[-1] for m in list_) for list_ in received.values())

    wait_for(all_answered, "not every output came")
    got = {name: next(m for m in list_ if stamp_ns(m) == stamps[-1]) for name, list_ in received.items()}
    assert {m.header.frame_id for m in got.values()} == {"left_optical_frame"}
    encodings = {name: m.encoding for name, m in got.items() if isinstance(m, Image)}
    assert encodings == {"depth": "32FC1", "normals": "32FC3", "normals_color": "rgb8"}
    depth, normals = pixels_of(got["depth"]), pixels_of(got["normals"])
    known = np.isfinite(depth)
    assert known[10:-10, 150:-10].mean() > 0.95 and not known[:, : DISPARITY - 2].any()
    assert np.abs(np.median(depth[known]) - 10) < 0.05 and np.percentile(np.abs(depth[known] - 10), 90) < 0.2
    facing = normals[np.isfinite(normals[..., 0])]
    np.testing.assert_allclose(np.median(facing, axis=0), (0, 0, -1), atol=0.05)
    np.testing.assert_array_equal(pixels_of(got["normals_color"]), viz.normals_color(normals))
    message = got["disparity"]
    disparity = pixels_of(message.image)
    assert (message.f, message.t, message.min_disparity, message.max_disparity, message.delta_d) == (200.0, 0.5, 0.0, 64.0, 0.0625)
    assert (message.valid_window.width, message.valid_window.height, message.image.encoding) == (320, 96, "32FC1")
    np.testing.assert_allclose(disparity[known], 200 * 0.5 / depth[known], rtol=1e-5)
    assert (disparity[~known] <= 0).all()
    assert (list(got["camera_info"].p), got["camera_info"].width) == (list(LEFT.p), 320)


def test_a_lidar_scan_of_a_wall_gives_depth_at_its_points_with_the_cameras_stamp(start: Any, peer: Peer) -> None:
    start(input="lidar", extrinsics=EXTRINSICS, completion_reach=0)
    depths, confidences = (peer.listen(Image, f"{NODE}/{name}") for name in ("depth", "confidence"))
    lidar = Lidar(peer)
    message = answer_to(lambda: lidar.send(wall_cloud()), depths)
    depth = pixels_of(message)
    known = np.isfinite(depth)
    assert (message.header.frame_id, depth.shape) == ("camera_optical_frame", (96, 320))
    np.testing.assert_allclose(depth[known], 10.0, atol=1e-4)
    # 0.08 m between points are 1.6 pixels at 10 m.
    assert 0.3 < known.mean() < 0.5
    confidence = answer_to(lambda: lidar.send(wall_cloud()), confidences)
    assert confidence.encoding == "mono8"
    np.testing.assert_array_equal(pixels_of(confidence), np.where(known, 255, 0))
    assert peer.set_parameter(NODE, "completion_reach", 24).successful
    filled = pixels_of(answer_to(lambda: lidar.send(wall_cloud()), depths))
    assert np.isfinite(filled[10:-10, 10:-10]).all()
    np.testing.assert_allclose(filled[np.isfinite(filled)], 10.0, atol=1e-3)
    assert peer.set_parameter(NODE, "max_depth", 9.0).successful
    assert not np.isfinite(pixels_of(answer_to(lambda: lidar.send(wall_cloud()), depths))).any()
    assert not pixels_of(answer_to(lambda: lidar.send(wall_cloud()), confidences)).any(), "no confidence in unknown depth"


def test_a_depth_image_of_a_slope_gives_its_exact_normal(start: Any, peer: Peer) -> None:
    start(input="depth")
    depths, normals_out = (peer.listen(Image, f"{NODE}/{name}") for name in ("depth", "normals"))
    images, infos = peer.publisher(Image, "/depth/image"), peer.publisher(CameraInfo, "/depth/camera_info")
    normal = np.array([0.3, -0.8, -0.52]) / np.linalg.norm([0.3, -0.8, -0.52])
    slope = (-4.0 / (LEFT.rays @ normal)).astype(np.float32)
    slope[(slope < 0) | (slope > 30)] = np.nan
    for encoding, sent in (("32FC1", slope), ("16UC1", np.where(np.isnan(slope), 0, np.rint(slope * 1e3)).astype(np.uint16))):

        def send() -> int:
            infos.publish(messages.camera_info(LEFT, Header()))
            message = image_message(sent.view(np.uint8).reshape(96, -1), encoding, padding=6)
            message.width = 320
            images.publish(message)
            return stamp_ns(message)

        got = pixels_of(answer_to(send, normals_out))
        known = np.isfinite(got[..., 0])
        assert known.sum() > 0.8 * np.isfinite(slope).sum()
        error = np.degrees(np.arccos(np.clip(got[known] @ normal.astype(np.float32), -1, 1)))
        assert np.median(error) < (0.1 if encoding == "32FC1" else 3.0)
        np.testing.assert_allclose(pixels_of(answer_to(send, depths)), slope, atol=6e-4)
    assert peer.set_parameter(NODE, "max_depth", 6.0).successful
    assert peer.set_parameter(NODE, "min_depth", 5.0).successful
    near = pixels_of(answer_to(send, depths))
    inside = (slope > 5.001) & (slope < 5.999)
    np.testing.assert_array_equal(np.isfinite(near), np.isfinite(near) & (slope > 4.999) & (slope < 6.001))
    assert np.isfinite(near[inside]).all()


def test_only_what_is_subscribed_is_computed_and_with_the_parameters_for_it(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []
    options: dict[str, Any] = {}
    for module, name in ((geometry_node, "normals_from_depth"), (geometry_sensors, "complete"), (geometry_sensors, "project_cloud")):

        def note(*given: Any, _function: Any = getattr(module, name), _name: str = name) -> Any:
            computed.append(_name)
            options[_name] = given[-1]
            return _function(*given)

        monkeypatch.setattr(module, name, note)
    values = {"input": "lidar", "extrinsics": EXTRINSICS, "hidden_gap": 0.25, "completion_reach": 7, "normals_method": "one_sided"}
    with node_here(GeometryNode, **values) as node:
        frame = (messages.camera_info(LEFT, header_at(time.time_ns())), wall_cloud())

        def work(*names: str) -> list[str]:
            monkeypatch.setattr(node, "_wanted", lambda: set(names))
            computed.clear()
            counts, before = node._statistics, node._statistics.published + node._statistics.skipped
            node._offer(frame)
            wait_for(lambda: counts.published + counts.skipped > before, lambda: counts.last_error)
            return list(computed)

        assert work() == []
        assert work("depth") == ["project_cloud", "complete"]
        assert work("normals_color") == ["project_cloud", "complete", "normals_from_depth"]
        assert options == {"project_cloud": 0.25, "complete": 7, "normals_from_depth": "one_sided"}


def test_a_cloud_that_comes_seconds_after_its_image_finds_the_calibration_of_its_time(ros: None) -> None:
    with node_here(GeometryNode, input="lidar", extrinsics=EXTRINSICS, slop=0.01) as node:
        for number in range(1, 301):  # ten seconds of 30 Hz
            assert node._paired("camera_info", CameraInfo(width=number, header=header_at(number * 33_000_000))) == []
        ((info, _),) = node._paired("points", PointCloud2(header=header_at(5 * 33_000_000)))
        assert info.width == 5


def play(node: GeometryNode, wrong: float = 0.0, late: float = 0.03, phase: float = 0.004) -> int:
    """Twenty seconds of a camera of 30 Hz and a LiDAR of 10 Hz, whose clock is wrong and whose clouds come late [s]; how many pairs."""
    infos = [(i / 30, "camera_info", i / 30) for i in range(600)]
    clouds = [(i / 10 + late, "points", i / 10 + phase + wrong) for i in range(200)]
    messages_of = {"camera_info": CameraInfo, "points": PointCloud2}
    return sum(
        len(node._paired(topic, messages_of[topic](header=header_at(round((1000 + stamp) * 1e9)))))
        for _, topic, stamp in sorted(infos + clouds)
    )


@pytest.mark.parametrize("wrong, way, slow", [(37.0, "earlier", "camera_info"), (-37.0, "later", "points"), (-3.0, "later", "points")])
def test_a_clock_that_is_wrong_by_seconds_is_told_with_an_offset_that_mends_it(ros: None, wrong: float, way: str, slow: str) -> None:
    with node_here(GeometryNode, input="lidar", extrinsics=EXTRINSICS) as node:
        play(node)
        assert node._complaint_of_pairs() == ""
        node._begin_pairing()
        play(node, wrong)
        told = (
            f"points comes {abs(wrong):.1f} s {way} after its stamp than camera_info: either a clock is off (set offset to {wrong:.1f}, "
            f"then look again) or {slow} is that slow"
        )
        assert node._complaint_of_pairs().endswith(told)
        assert node.set_parameters([Parameter("offset", value=wrong)])[0].successful
        assert play(node, wrong) > 190 and node._complaint_of_pairs() == ""


def test_a_slow_sensor_is_told_as_one_unless_its_stamps_are_the_cameras(ros: None) -> None:
    with node_here(GeometryNode, input="lidar", extrinsics=EXTRINSICS) as node:
        assert play(node, late=1.5) > 180
        told = node._complaint_of_pairs()
        assert told.startswith("points comes 1.5 s later after its stamp") and told.endswith("or points is that slow")
        assert pairing_values(node._pairer, "points")["points lag [s]"] == f"{node._pairer.lag('points'):.2f}"
        node._begin_pairing()
        assert play(node, late=1.5, phase=0.0) > 180 and node._complaint_of_pairs() == ""


def test_pairs_before_both_calibrations_are_skipped(ros: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with node_here(GeometryNode) as node:
        offered: list[Any] = []
        monkeypatch.setattr(node, "_offer", offered.append)
        for number, side in enumerate(("left", "right"), start=1):
            node._on_message(f"{side}/camera_info", messages.camera_info(LEFT, Header()), None)
            for topic in ("left/image", "right/image"):
                node._on_message(topic, image_message(LEFT_IMAGE, "rgb8", number * 10**9), None)
            assert (len(offered), node._statistics.skipped, node._statistics.received) == (number - 1, 1, number)


@pytest.mark.parametrize(
    ("kind", "outputs", "inputs"),
    [
        ("stereo", "depth disparity normals normals_color", "left/image right/image left/camera_info right/camera_info"),
        ("lidar", "depth normals normals_color confidence", "points camera_info"),
        ("depth", "depth normals normals_color", "depth/image depth/camera_info"),
    ],
)
def test_an_input_has_its_own_topics_with_the_reliability_and_depth_that_are_asked_for(
    ros: None, kind: str, outputs: str, inputs: str
) -> None:
    values = {"input_reliability": "reliable", "input_depth": 7, "output_reliability": "best_effort", "output_depth": 3}
    with node_here(GeometryNode, input=kind, extrinsics=EXTRINSICS, **values) as node:
        for ends, prefix, names, expected in (
            (node.publishers, f"{NODE}/", f"{outputs} camera_info", (ReliabilityPolicy.BEST_EFFORT, 3)),
            (node.subscriptions, "/", inputs, (ReliabilityPolicy.RELIABLE, 7)),
        ):
            found = {end.topic_name: (end.qos_profile.reliability, end.qos_profile.depth) for end in ends}
            own = {name: profile for name, profile in found.items() if name not in ("/diagnostics", "/rosout", "/parameter_events")}
            own = {name: profile for name, profile in own.items() if "transition_event" not in name}
            assert own == {f"{prefix}{name}": expected for name in names.split()}


def test_without_a_subscriber_pairs_are_counted_and_skipped(start: Any, peer: Peer) -> None:
    start()
    diagnostics, camera = peer.diagnostics("geometry"), Stereo(peer)

    def skipped() -> bool:
        camera.send()
        time.sleep(0.05)
        return int(diagnostics.value("frames skipped (on purpose)") or 0) >= 12

    wait_for(skipped, lambda: str(diagnostics.latest))
    diagnostics.wait("nobody subscribes", DiagnosticStatus.OK)
    assert (diagnostics.value("frames out"), diagnostics.value("left/image paired [%]")) == ("0", "100")


def test_an_offset_between_the_cameras_is_told_and_taken_off(start: Any, peer: Peer) -> None:
    start()
    depths, diagnostics, camera = peer.listen(Image, f"{NODE}/depth"), peer.diagnostics("geometry"), Stereo(peer)
    words = "0 % of left/image found a partner within 20 ms; the nearest of right/image is typically 30 ms later: set offset to 0.030"
    assert until_told(lambda: camera.send(late=30_000_000), diagnostics, words) == DiagnosticStatus.WARN
    assert not depths
    assert peer.set_parameter(NODE, "offset", 0.03).successful
    answer = answer_to(lambda: camera.send(late=30_000_000), depths)
    assert answer.header.frame_id == "left_optical_frame"
    wait_for(lambda: diagnostics.value("stamp difference p50 [ms]") == "0.0", lambda: str(diagnostics.latest))


def test_an_image_without_its_partner_is_counted_and_not_waited_for(start: Any, peer: Peer) -> None:
    start(input_reliability="reliable")
    depths, diagnostics, camera = peer.listen(Image, f"{NODE}/depth"), peer.diagnostics("geometry"), Stereo(peer)
    answer_to(camera.send, depths)
    wait_for(lambda: diagnostics.value("frames out") not in ("", "0"), lambda: str(diagnostics.latest))
    before = int(diagnostics.value("left/image unpaired"))
    camera.send(right=None)
    time.sleep(0.03)
    sent = camera.send()
    wait_for(lambda: any(stamp_ns(m) == sent for m in depths), "the pair after a lonely image was not answered", timeout=2.0)
    wait_for(lambda: int(diagnostics.value("left/image unpaired")) == before + 1, lambda: str(diagnostics.latest))


def test_swapped_cameras_are_said_and_nothing_of_them_is_published(start: Any, peer: Peer) -> None:
    node = start()
    depths, diagnostics, camera = peer.listen(Image, f"{NODE}/depth"), peer.diagnostics("geometry"), Stereo(peer)
    level = until_told(lambda: camera.send(RIGHT_IMAGE, LEFT_IMAGE), diagnostics, "left and right are swapped")
    assert level == DiagnosticStatus.ERROR and "left and right are swapped" in node.output
    assert not depths
    answer_to(camera.send, depths)
    wait_for(lambda: diagnostics.latest.level != DiagnosticStatus.ERROR, lambda: str(diagnostics.latest))


def measure(left: np.ndarray, right: np.ndarray, cameras: tuple[Camera, Camera] = (LEFT, RIGHT)) -> geometry_sensors.Measurement:
    """What the stereo sensor makes of one pair, without a node around it."""
    sensor = geometry_sensors.StereoPair(GeometryParameters(), geometry_sensors.Transforms(None))
    infos = dict(zip(sensor.INFOS, (messages.camera_info(camera, Header()) for camera in cameras)))
    return sensor.measure([image_message(image, "rgb8") for image in (left, right)], infos)


def test_the_parameters_of_stereo_are_the_matchers(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[StereoOptions] = []
    monkeypatch.setattr(geometry_sensors, "StereoMatcher", made.append)
    StereoPair(GeometryParameters(max_disparity=64, block_size=7, consistency=2.5, edge_filter=True), geometry_sensors.Transforms(None))
    assert made == [StereoOptions(max_disparity=64, block_size=7, consistency=2.5, edge_filter=True)]


@pytest.mark.parametrize("kind", geometry_sensors.SENSORS)
def test_what_is_measured_is_of_the_rectified_camera(kind: str) -> None:
    """Its calibration is published beside the outputs: who reads it must not rectify them once more."""
    raw, right = (
        Camera(320, 96, (210, 0, 158, 0, 210, 47, 0, 0, 1), d=(0.1, 0, 0, 0, 0), r=(0, 0, 0, 0, 0, 0, 0, 0, 0), p=c.p)
        for c in (LEFT, RIGHT)
    )
    infos = {"left/camera_info": raw, "right/camera_info": right, "depth/camera_info": raw}
    frames = {
        "stereo": [image_message(image, "rgb8") for image in (LEFT_IMAGE, RIGHT_IMAGE)],
        "lidar": [messages.camera_info(raw, Header()), wall_cloud()],
        "depth": [image_message(np.full((96, 320), 10, np.float32), "32FC1")],
    }
    sensor = geometry_sensors.SENSORS[kind](GeometryParameters(extrinsics=EXTRINSICS), geometry_sensors.Transforms(None))
    measured = sensor.measure(frames[kind], {topic: messages.camera_info(camera, Header()) for topic, camera in infos.items()})
    assert measured.camera == LEFT and measured.camera.is_rectified
    np.testing.assert_allclose(np.nanmedian(measured.depth), 10.0, atol=0.05)


@pytest.mark.parametrize("offset", [0.0, 37.0, -0.5])
def test_the_transform_is_that_of_the_clouds_frame_at_its_time(offset: float) -> None:
    """By the robot's clock: the offset is by how much the LiDAR's is ahead of it."""
    asked: list[tuple[str, str, int]] = []

    class Known(geometry_sensors.Transforms):
        def listen(self) -> None: ...

        def lookup(self, target: str, source: str, stamp: int) -> np.ndarray:
            asked.append((target, source, stamp))
            return matrix_from_pose(EXTRINSICS)

    cloud = changed(wall_cloud(), header=header_at(102_000_000_003 + round(offset * 1e9), "lidar"))
    info = messages.camera_info(LEFT, header_at(102_010_000_000, "lens"))
    measured = geometry_sensors.LidarInCamera(GeometryParameters(input="lidar", offset=offset), Known(None)).measure([info, cloud], {})
    assert asked == [("lens", "lidar", 102_000_000_003)] and measured.header == info.header
    assert np.nanmedian(measured.depth) == pytest.approx(10.0, abs=1e-3)


def test_infinity_is_where_the_principal_points_say_and_the_baseline_is_between_both_cameras() -> None:
    left = Camera.pinhole(320, 96, 200.0, baseline=-0.2)
    right = Camera.pinhole(320, 96, 200.0, cx=LEFT.cx + 4, baseline=0.3)
    measured = measure(LEFT_IMAGE, np.ascontiguousarray(WALL[:, DISPARITY - 4 : DISPARITY + 316]), (left, right))
    assert measured.baseline == pytest.approx(0.5)
    assert np.nanmedian(measured.depth) == pytest.approx(10.0, abs=0.05)
    assert np.nanmedian(measured.disparity) == pytest.approx(DISPARITY, abs=0.05)


def test_rows_that_disagree_are_a_warning_and_one_camera_twice_a_fault() -> None:
    assert measure(LEFT_IMAGE, RIGHT_IMAGE).warning == ""
    assert measure(LEFT_IMAGE, np.roll(RIGHT_IMAGE, 4, axis=0)).warning.startswith("not rectified: rows differ by 4")
    with pytest.raises(GeometryError, match="the same image"):
        measure(LEFT_IMAGE, LEFT_IMAGE)


def test_pairs_are_checked_at_first_then_now_and_then_and_while_they_have_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    now, looked, fault = 0.0, [], ""
    monkeypatch.setattr(geometry_sensors, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(geometry_sensors, "pair_fault", lambda *pair: looked.append(now) or fault)
    sensor = StereoPair(GeometryParameters(), geometry_sensors.Transforms(None))
    infos = dict(zip(sensor.INFOS, (messages.camera_info(camera, Header()) for camera in (LEFT, RIGHT))))
    pair = [image_message(image, "rgb8") for image in (LEFT_IMAGE, RIGHT_IMAGE)]
    period = geometry_sensors.CHECK_PERIOD_S
    for now, fault in (
        (0, ""),
        (1, ""),
        (2, ""),
        (3, ""),
        (1.9 + period, ""),
        (2.1 + period, "swapped"),
        (2.2 + period, ""),
        (2.3 + period, ""),
    ):
        with pytest.raises(GeometryError, match="swapped") if fault else nullcontext():
            sensor.measure(pair, infos)
    assert looked == [0, 1, 2, 2.1 + period, 2.2 + period]


def test_the_pair_is_checked_where_principal_points_differ_too() -> None:
    cameras = LEFT, Camera.pinhole(320, 96, 200.0, cx=LEFT.cx + 4, baseline=0.5)
    near = np.ascontiguousarray(WALL[:, DISPARITY - 4 : DISPARITY + 316])
    assert measure(LEFT_IMAGE, near, cameras).warning == ""
    assert measure(LEFT_IMAGE, np.roll(near, 4, axis=0), cameras).warning.startswith("not rectified: rows differ by")
    with pytest.raises(GeometryError, match="swapped"):
        measure(near, LEFT_IMAGE, (LEFT, Camera.pinhole(320, 96, 200.0, cx=LEFT.cx - 4, baseline=0.5)))


def test_a_covered_lens_and_limits_that_leave_nothing_are_said(start: Any, peer: Peer) -> None:
    start()
    diagnostics, camera = peer.diagnostics("geometry"), Stereo(peer)
    peer.listen(Image, f"{NODE}/depth")
    assert until_told(lambda: camera.send(right=np.zeros_like(RIGHT_IMAGE)), diagnostics, "no pixel has a depth") == DiagnosticStatus.WARN
    assert peer.set_parameter(NODE, "max_depth", 5.0).successful
    until_told(camera.send, diagnostics, "no pixel has a depth")
    refused = peer.set_parameter(NODE, "min_depth", 6.0)
    assert not refused.successful and "max_depth must be above min_depth" in refused.reason
    assert peer.set_parameter(NODE, "max_depth", 5.5).successful, "the refused min_depth of 6 m has changed nothing"


def test_limits_that_contradict_each_other_at_start_are_said_until_they_are_put_right(start: Any, peer: Peer) -> None:
    start(min_depth=12.0, max_depth=12.0)
    words = "not configured: max_depth must be above min_depth, or 0; got 12.0 and 12.0 m"
    peer.diagnostics("geometry").wait(words, DiagnosticStatus.ERROR)
    assert peer.set_parameter(NODE, "min_depth", 8.0).successful
    depth = pixels_of(answer_to(Stereo(peer).send, peer.listen(Image, f"{NODE}/depth")))
    assert np.nanmedian(depth) == pytest.approx(10.0, abs=0.05)


def test_of_two_parameters_at_fault_one_is_mended_after_the_other(ros: None) -> None:
    with node_here(GeometryNode, max_disparity=100, block_size=4) as node:
        for name, value in (("max_disparity", 96), ("block_size", 5)):
            assert node.set_parameters([Parameter(name, value=value)])[0].successful
            assert node._health()[0] == DiagnosticStatus.ERROR and "block_size must be odd" in node._health()[1]
        node._start_once()
        assert node._health() == (DiagnosticStatus.OK, "ready")
        assert node._pipeline.description == "stereo, disparities up to 96 pixels"


def info(camera: Camera, **changes: Any) -> CameraInfo:
    message = messages.camera_info(camera, Header())
    for name, value in changes.items():
        setattr(message, name, value)
    return message


BAD_PAIRS: dict[str, tuple[dict[str, Callable[[], CameraInfo]], str]] = {
    "zeros in k": ({"left": lambda: info(LEFT, k=[0.0] * 9)}, "focal lengths above 0"),
    "another size": (
        {"left": lambda: info(LEFT.scaled(640, 192)), "right": lambda: info(RIGHT.scaled(640, 192))},
        "the left image is 320x96, its calibration is for 640x192",
    ),
    "two sizes": (
        {"right": lambda: info(Camera.pinhole(300, 96, 200.0, baseline=0.5))},
        "the left camera_info is for 320x96, the right one for 300x96",
    ),
    "no baseline": ({"right": lambda: info(LEFT)}, "p[3] of right/camera_info is 0"),
    "infos swapped": ({"left": lambda: info(RIGHT), "right": lambda: info(LEFT)}, "left and right camera_info are swapped"),
    "two lenses": ({"right": lambda: info(Camera.pinhole(320, 96, 210.0, baseline=0.5))}, "fx 200.00 and 210.00"),
}


def test_calibrations_that_cannot_be_are_said_and_the_next_good_pair_goes_on(start: Any, peer: Peer) -> None:
    start()
    depths, diagnostics, camera = peer.listen(Image, f"{NODE}/depth"), peer.diagnostics("geometry"), Stereo(peer)
    answer_to(camera.send, depths)
    for infos, words in BAD_PAIRS.values():
        assert until_told(lambda: camera.send(infos=infos), diagnostics, words) == DiagnosticStatus.WARN
        answer_to(camera.send, depths)


def test_an_error_that_nobody_looks_for_any_more_is_not_told_for_ever(start: Any, peer: Peer) -> None:
    start()
    depth = peer.node.create_subscription(Image, f"{NODE}/depth", lambda message: None, 1)
    diagnostics, camera = peer.diagnostics("geometry"), Stereo(peer)
    until_told(lambda: camera.send(RIGHT_IMAGE, LEFT_IMAGE), diagnostics, "left and right are swapped")
    peer.node.destroy_subscription(depth)
    wait_for(lambda: camera.send() and "swapped" not in diagnostics.latest.message, "still told", 2 * MEMORY_S)


def test_what_the_raw_image_does_not_show_has_no_depth() -> None:
    """The rectified image of a narrow raw one: black around it."""
    raw = [Camera(320, 96, (400, 0, c.cx, 0, 400, c.cy, 0, 0, 1), p=c.p) for c in (LEFT, RIGHT)]
    unseen = raw[0].unseen()
    assert unseen.any() and not unseen[30:60, 100:200].any()
    images = [image_message(c.rectify(image), "rgb8", 0) for c, image in zip((LEFT, RIGHT), (LEFT_IMAGE, RIGHT_IMAGE))]
    measured = StereoPair(GeometryParameters(rectify=True, max_disparity=64), None).measure(
        images, dict(zip(StereoPair.INFOS, (messages.camera_info(c, images[0].header) for c in raw)))
    )
    assert np.isnan(measured.depth[unseen]).all() and np.isnan(measured.depth[raw[0].unseen(3)]).all() and np.isfinite(measured.depth).any()


def test_a_pair_rectified_elsewhere_is_described_by_p_alone() -> None:
    """Its k, d and r may be those of a larger raw image, or of a lens that nobody here knows."""
    expected = measure(LEFT_IMAGE, RIGHT_IMAGE).depth
    for lens in (("plumb_bob", (-0.3, 0.1, 0, 0, 0)), ("equidistant", (0.1,) * 4)):
        cameras = tuple(Camera(320, 96, (260, 0, 200, 0, 260, 70, 0, 0, 1), *lens, p=c.p) for c in (LEFT, RIGHT))
        np.testing.assert_array_equal(measure(LEFT_IMAGE, RIGHT_IMAGE, cameras).depth, expected)


def test_rectify_takes_the_raw_images_with_their_own_calibrations(start: Any, peer: Peer) -> None:
    # Raw principal points 6 pixels right and 4 pixels left of the rectified ones: raw columns disagree by 10 more than disparity.
    raw = [Camera(320, 96, (200, 0, c.cx + shift, 0, 200, c.cy, 0, 0, 1), p=c.p) for c, shift in ((LEFT, 6), (RIGHT, -4))]
    images = [np.ascontiguousarray(np.roll(image, shift, axis=1)) for image, shift in ((LEFT_IMAGE, 6), (RIGHT_IMAGE, -4))]
    start(rectify=True)
    depths, camera = peer.listen(Image, f"{NODE}/depth"), Stereo(peer, tuple(raw))
    depth = pixels_of(answer_to(lambda: camera.send(*images), depths))
    assert np.nanmedian(depth) == pytest.approx(10.0, abs=0.05)
    assert peer.set_parameter(NODE, "rectify", False).successful
    depth = pixels_of(answer_to(lambda: camera.send(*images), depths))
    assert np.nanmedian(depth) == pytest.approx(5.0, abs=0.05)


def changed(cloud: PointCloud2, **changes: Any) -> PointCloud2:
    for name, value in changes.items():
        setattr(cloud, name, value)
    return cloud


def test_bad_clouds_are_said_and_an_empty_one_gives_depth_that_is_unknown(start: Any, peer: Peer) -> None:
    start(input="lidar", extrinsics=EXTRINSICS)
    depths, diagnostics, lidar = peer.listen(Image, f"{NODE}/depth"), peer.diagnostics("geometry"), Lidar(peer)
    for make, words in (
        (lambda: changed(wall_cloud(), data=wall_cloud().data[:500]), "is it truncated?"),
        (lambda: changed(wall_cloud(), fields=wall_cloud().fields[:2]), "the cloud has no field z"),
    ):
        until_told(lambda: lidar.send(make()), diagnostics, words)
    empty = messages.points_to_cloud(np.zeros((0, 5)), Header())
    assert np.isnan(pixels_of(answer_to(lambda: lidar.send(empty), depths))).all()
    diagnostics.wait("none of the cloud's 0 points is in the image", DiagnosticStatus.WARN)
    assert np.isfinite(pixels_of(answer_to(lambda: lidar.send(wall_cloud()), depths))).any()
    # Forgetting that the optical frame looks along z puts the wall beside the camera.
    assert peer.set_parameter(NODE, "extrinsics", [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]).successful
    answer_to(lambda: lidar.send(wall_cloud()), depths)
    diagnostics.wait("LiDAR points fall into the image", DiagnosticStatus.WARN)
    refused = peer.set_parameter(NODE, "extrinsics", [0.0] * 7)
    assert (refused.successful, "norm 1" in refused.reason) == (False, True)
    refused = peer.set_parameter(NODE, "extrinsics", [0.0, 1.0])
    assert (refused.successful, "0 or 7 numbers" in refused.reason) == (False, True)


@pytest.mark.parametrize("name", ["image_raw", "image_rect"])
def test_raw_depth_is_rectified_by_the_nearest_pixel_and_depth_named_rectified_stays(start: Any, peer: Peer, name: str) -> None:
    start({"depth/image": f"/cam/{name}"}, input="depth")
    raw = Camera(320, 96, (200, 0, 160, 0, 200, 47, 0, 0, 1), d=(0.3, 0.1, 0.002, -0.001, 0))  # its picture ends within the rectified one
    depth = np.full((96, 320), 20, np.float32)
    depth[10:40, 20:80] = 5.0
    depths, calibrations = peer.listen(Image, f"{NODE}/depth"), peer.listen(CameraInfo, f"{NODE}/camera_info")
    images, infos = peer.publisher(Image, f"/cam/{name}"), peer.publisher(CameraInfo, "/depth/camera_info")

    def send() -> int:
        infos.publish(messages.camera_info(raw, Header()))
        images.publish(message := image_message(depth, "32FC1"))
        return stamp_ns(message)

    found = pixels_of(answer_to(send, depths))
    wait_for(lambda: calibrations, "no calibration came")
    assert messages.camera_from_info(calibrations[-1]) == raw.rectified()
    if name == "image_rect":
        np.testing.assert_array_equal(found, depth)
        return
    columns, rows = (np.rint(m).astype(int) for m in raw.rectification_maps())
    inside = (columns >= 0) & (columns < 320) & (rows >= 0) & (rows < 96)
    expected = np.where(inside, depth[rows.clip(0, 95), columns.clip(0, 319)], np.nan)
    assert (~inside).sum() > 1000 and (inside & (expected != depth)).sum() > 100
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("chosen", "topic", "description"),
    [
        ("auto", "/depth/image_rect", "depth camera, rectified by the name /depth/image_rect"),
        ("auto", "/depth/image", "depth camera, raw by the name /depth/image"),
        ("rectified", "/depth/image", "depth camera, rectified"),
        ("raw", "/depth/image_rect", "depth camera, raw"),
    ],
)
def test_depth_of_a_lens_that_cannot_be_rectified_is_refused_unless_it_is_rectified_already(
    chosen: str, topic: str, description: str
) -> None:
    fisheye, depth = Camera(320, 96, LEFT.k, "equidistant", (0.1,) * 4), np.full((96, 320), 10, np.float32)
    settings = GeometryParameters(input="depth", depth_image=chosen)
    sensor = geometry_sensors.DepthCamera(settings, geometry_sensors.Transforms(None), lambda _: topic)
    assert sensor.description == description
    with pytest.raises(GeometryError, match="'equidistant'") if "raw" in description else nullcontext():
        measured = sensor.measure([image_message(depth, "32FC1")], {"depth/camera_info": messages.camera_info(fisheye, Header())})
        np.testing.assert_array_equal(measured.depth, depth)


def test_whether_depth_is_rectified_is_told_and_may_be_set(ros: None) -> None:
    with node_here(GeometryNode, input="depth") as node:
        assert node._description()[1]["input"] == "depth camera, raw by the name /depth/image"
        assert node.set_parameters([Parameter("depth_image", value="rectified")])[0].successful
        assert node._description()[1]["input"] == "depth camera, rectified"


def test_bad_depth_images_are_said(start: Any, peer: Peer) -> None:
    start(input="depth")
    depths, diagnostics = peer.listen(Image, f"{NODE}/depth"), peer.diagnostics("geometry")
    images, infos = peer.publisher(Image, "/depth/image"), peer.publisher(CameraInfo, "/depth/camera_info")
    for pixels, encoding, words in (
        (np.zeros((96, 320, 3), np.uint8), "rgb8", "'rgb8' is not a depth image"),
        (np.ones((10, 20), np.float32), "32FC1", "the depth image is 20x10, its calibration is for 320x96"),
    ):

        def send() -> None:
            infos.publish(messages.camera_info(LEFT, Header()))
            images.publish(image_message(pixels, encoding))

        until_told(send, diagnostics, words)
    assert np.isnan(pixels_of(exchange(images, depths, image_message(np.zeros((96, 320), np.float32), "32FC1")))).all()
    diagnostics.wait("no pixel of the depth image is known", DiagnosticStatus.WARN)


TF_STAND_IN = f"""
import builtin_interfaces.msg
from types import SimpleNamespace as S

class TransformException(Exception):
    pass

class Buffer:
    def lookup_transform(self, target, source, time):
        if source != "lidar":
            raise TransformException(f'"{{source}}" passed to lookupTransform argument source_frame does not exist.')
        assert target == "camera_optical_frame" and time.nanoseconds > 0
        x, y, z, qx, qy, qz, qw = {EXTRINSICS}
        return S(transform=S(translation=S(x=x, y=y, z=z), rotation=S(x=qx, y=qy, z=qz, w=qw)))

class TransformListener:
    def __init__(self, buffer, node):
        pass
"""


def test_extrinsics_come_from_tf_where_it_is_installed(start: Any, peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tf2_ros.py").write_text(TF_STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    start(input="lidar")
    depths, lidar, diagnostics = peer.listen(Image, f"{NODE}/depth"), Lidar(peer), peer.diagnostics("geometry")
    depth = pixels_of(answer_to(lambda: lidar.send(wall_cloud()), depths))
    np.testing.assert_allclose(depth[np.isfinite(depth)], 10.0, atol=1e-3)
    lost = messages.points_to_cloud(np.zeros((1, 5)), header_at(time.time_ns(), "velodyne"))
    stamp = stamp_ns(lost)
    lidar.points.publish(lost)
    lidar.info.publish(messages.camera_info(LEFT, header_at(stamp)))
    diagnostics.wait('no transform from velodyne to camera_optical_frame: "velodyne" passed to', DiagnosticStatus.WARN)


class MovingBuffer:
    """tf2's buffer with one dynamic transform: it remembers ten seconds, and takes nothing that is older."""

    def __init__(self) -> None:
        self.stamps: list[int] = []

    def take(self, stamp: int) -> None:
        oldest = max(self.stamps, default=0) - 10 * 10**9
        if stamp >= oldest:
            self.stamps = [s for s in (*self.stamps, stamp) if s >= oldest]

    def clear(self) -> None:
        self.stamps.clear()

    def lookup_transform(self, target: str, source: str, at: Any) -> Any:
        if at.nanoseconds not in self.stamps:
            raise LookupError("Lookup would require extrapolation")
        x, y, z, qx, qy, qz, qw = EXTRINSICS
        rotation = SimpleNamespace(x=qx, y=qy, z=qz, w=qw)
        return SimpleNamespace(transform=SimpleNamespace(translation=SimpleNamespace(x=x, y=y, z=z), rotation=rotation))


def test_transforms_of_a_bag_that_starts_again_are_taken_again(ros: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry_sensors, "Buffer", MovingBuffer)
    monkeypatch.setattr(geometry_sensors, "TransformListener", lambda buffer, node: None, raising=False)
    monkeypatch.setattr(geometry_sensors, "TransformException", LookupError, raising=False)
    with node_here(GeometryNode, input="lidar") as node:
        for _ in range(2):
            unknown = 0
            for number in range(10_000, 10_300):  # thirty seconds of 10 Hz
                header = header_at(number * 100_000_000, "lidar")
                node._transforms._buffer.take(number * 100_000_000)
                node._paired("camera_info", CameraInfo(header=header))
                node._paired("points", PointCloud2(header=header))
                try:
                    np.testing.assert_allclose(node._transforms.lookup("lens", "lidar", number * 100_000_000), matrix_from_pose(EXTRINSICS))
                except GeometryError:
                    unknown += 1
            assert unknown <= 1  # what came just before the first message that tells the jump


@pytest.mark.skipif(geometry_sensors.Buffer is not None, reason="tf2_ros is installed")
def test_without_tf_and_extrinsics_the_cure_is_said(start: Any, peer: Peer) -> None:
    start(input="lidar", extrinsics=[])
    depths, diagnostics, lidar = peer.listen(Image, f"{NODE}/depth"), peer.diagnostics("geometry"), Lidar(peer)
    words = "no transform from lidar to camera_optical_frame: tf2_ros_py is not installed; install it, or set the parameter extrinsics"
    assert until_told(lambda: lidar.send(wall_cloud()), diagnostics, words) == DiagnosticStatus.WARN
    assert int(diagnostics.value("frames failed")) > 0
    assert peer.set_parameter(NODE, "extrinsics", EXTRINSICS).successful
    assert np.isfinite(pixels_of(answer_to(lambda: lidar.send(wall_cloud()), depths))).any()


def test_a_topic_that_is_silent_is_named(start: Any, peer: Peer) -> None:
    start(silence_timeout=0.4)
    diagnostics = peer.diagnostics("geometry")
    camera = peer.publisher(Image, "/left/image")

    def named() -> bool:
        camera.publish(image_message(LEFT_IMAGE, "rgb8"))
        text = diagnostics.latest.message if diagnostics.latest and diagnostics.latest.level == DiagnosticStatus.WARN else ""
        wanted = ("no message on /right/camera_info", "no message on /right/image for", "remap `right/image`")
        return all(words in text for words in wanted) and "/left/image " not in text

    wait_for(named, lambda: str(diagnostics.latest))


@pytest.mark.parametrize("parameters", [{"input": "sonar"}, {"extrinsics": ["a"]}, {"slop": -1.0}])
def test_parameters_that_cannot_be_are_told_without_a_traceback(start: Any, ros: None, parameters: dict) -> None:
    node = start(**parameters)
    assert node.process.wait(timeout=30) == 2
    assert "cannot start" in node.output and next(iter(parameters)) in node.output


def test_sigint_twice_ends_the_node_cleanly_while_frames_flow(start: Any, peer: Peer) -> None:
    node = start()
    depths, camera = peer.listen(Image, f"{NODE}/depth"), Stereo(peer)
    answer_to(camera.send, depths)
    for _ in range(5):
        camera.send()
    assert node.stop(2) == 0
    assert "Traceback" not in node.output
