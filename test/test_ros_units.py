"""The parts of the nodes that need no conversation: worker, rate limit, statistics, messages, parameters, paths."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from array import array
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
import yaml
from hypothesis import given

pytest.importorskip("rclpy", reason="no ROS 2: neither an installation is sourced nor are the wheels installed")

from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import CameraInfo, PointCloud2, PointField  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

import bundles  # noqa: E402
from lix_core.camera import Camera  # noqa: E402
from lix_core.errors import DataError, GeometryError, ImageError, SourceError  # noqa: E402
from lix_ros import diagnostics, messages, parameters, paths  # noqa: E402
from lix_ros.diagnostics import FrameStatistics, percentile, rate  # noqa: E402
from lix_ros.parameters import NODES, GeometryParameters, ParameterError, SegmentationParameters, validate  # noqa: E402
from lix_ros.worker import NewestItemWorker, RateLimit  # noqa: E402
from ros import NodeProcess, wait_for  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def test_the_worker_takes_the_newest_item_and_says_what_it_replaced() -> None:
    handled, gate, begun = [], threading.Event(), threading.Event()

    def handle(item: int) -> None:
        begun.set()
        gate.wait()
        handled.append(item)

    worker = NewestItemWorker(handle, "test")
    assert worker.offer(1)
    begun.wait()
    assert [worker.offer(i) for i in (2, 3, 4)] == [True, False, False]
    gate.set()
    while len(handled) < 2:
        time.sleep(0.001)
    worker.stop()
    assert handled == [1, 4]


def test_a_stopped_worker_drops_what_waits() -> None:
    handled: list[int] = []
    worker = NewestItemWorker(handled.append, "test")
    worker.stop()
    worker.offer(1)
    assert handled == []


@given(st.floats(0.5, 50), st.lists(st.floats(0, 0.2), min_size=50, max_size=200))
def test_a_rate_limit_never_admits_more_than_its_rate(limit: float, gaps: list[float]) -> None:
    times = np.cumsum(gaps)
    gate = RateLimit(limit)
    admitted = [t for t in times if gate.admits(t)]
    assert len(admitted) <= limit * (times[-1] - times[0]) + 2


@pytest.mark.parametrize(("limit", "expected"), [(0.0, 1000), (9.0, 900), (10.0, 1000), (5.0, 500), (3.0, 300), (30.0, 1000)])
def test_a_rate_limit_gives_its_rate_from_a_steady_camera(limit: float, expected: int) -> None:
    gate = RateLimit(limit)
    assert abs(sum(gate.admits(i / 10) for i in range(1000)) - expected) <= 2


def test_statistics_count_gaps_in_the_publishers_numbers() -> None:
    statistics = FrameStatistics()
    for sequence in (4, 5, 8, 9, None, 20, 21, 3, 4):  # a gap of two; then unknown, then a camera that started again
        statistics.on_received(sequence)
    assert (statistics.received, statistics.missed) == (9, 2)


def test_where_rclpy_tells_no_numbers_what_was_missed_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = FrameStatistics()
    assert statistics.values()["frames missed (never taken)"] == "0"
    monkeypatch.setattr(diagnostics, "COUNTS_MISSED", False)  # as before Jazzy
    assert statistics.values()["frames missed (never taken)"] == "unknown (before Jazzy)"


def test_what_was_published_between_two_subscriptions_is_not_missed() -> None:
    statistics = FrameStatistics()
    statistics.on_received(5)
    statistics.begin()  # deactivated and activated again
    for sequence in (90, 92):
        statistics.on_received(sequence)
    assert (statistics.received, statistics.missed) == (3, 1)


def test_latency_of_another_clock_is_not_believed() -> None:
    statistics = FrameStatistics()
    for latency in (1.7e9, -1.7e9):  # the stamp counts from the start of the camera, or the node's clock from that of a simulation
        statistics.on_published(latency, processing=0.02)
    assert statistics.values()["latency stamp to publication p50 [ms]"] == "unknown"
    for latency in (0.01, 0.02, 0.03):
        statistics.on_published(latency, 0.005)
    values = statistics.values()
    assert (values["latency stamp to publication p50 [ms]"], values["frames out"]) == ("20.0", "5")
    assert float(values["latency stamp to publication p95 [ms]"]) == pytest.approx(29.0, abs=0.1)


def test_rate_and_percentile_by_hand() -> None:
    assert rate(deque([0.0, 100.0, 100.5, 101.0]), now=101.0) == 2.0
    assert rate(deque([1.0]), now=1.0) == 0.0
    assert percentile(deque(), 50) == "unknown"


@pytest.mark.parametrize(("encoding", "channels"), [("rgb8", 3), ("bgra8", 4), ("mono8", 1)])
def test_an_image_message_round_trips(encoding: str, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 11, channels), np.uint8)
    pixels = pixels[..., 0] if channels == 1 else pixels
    message = messages.array_to_image(pixels, encoding, Header(frame_id="lens"))
    assert (message.height, message.width, message.step, message.header.frame_id) == (7, 11, 11 * channels, "lens")
    np.testing.assert_array_equal(messages.image_to_array(message)[0], pixels)


def test_reading_a_plain_image_copies_nothing() -> None:
    message = messages.array_to_image(bundles.random_image(4, 5), "rgb8", Header())
    view, order = messages.image_to_array(message)
    message.data[0] ^= 0xFF
    assert (view[0, 0, 0], order) == (message.data[0], "rgb")
    assert not view.flags.writeable


def test_camera_info_carries_the_calibration() -> None:
    camera = Camera(640, 480, (500, 0, 320, 0, 501, 240, 0, 0, 1), d=(0.1, 0.2, 0, 0, 0))
    message = messages.camera_info(camera, Header(frame_id="lens"))
    assert (message.width, message.height, list(message.d)) == (640, 480, [0.1, 0.2, 0, 0, 0])
    np.testing.assert_array_equal(message.p.reshape(3, 4)[:, :3], message.k.reshape(3, 3))


def test_an_unknown_encoding_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "CvBridge", None)
    message = messages.array_to_image(bundles.random_image(4, 5), "nv99", Header())
    with pytest.raises(ImageError, match="nv99"):
        messages.image_to_array(message)


def cloud_of(
    layout: list[tuple[str, str, int]], values: dict[str, list[float]], point_step: int, rows: int = 1, padding: int = 0
) -> PointCloud2:
    """A cloud of any layout: (field, NumPy type, offset) of each field, `padding` bytes of noise after each row."""
    count = len(next(iter(values.values())))
    names, kinds, offsets = zip(*layout)
    dtype = np.dtype({"names": names, "formats": kinds, "offsets": offsets, "itemsize": point_step})
    packed = np.frombuffer(np.random.default_rng(0).bytes(count * point_step), dtype).copy()
    for name, column in values.items():
        packed[name] = column
    lines = packed.view(np.uint8).reshape(rows, -1)
    noise = np.random.default_rng(1).integers(0, 256, (rows, padding), np.uint8)
    numbers = {np.dtype(kind): number for number, kind in messages.CLOUD_FORMATS.items()}
    return PointCloud2(
        height=rows,
        width=count // rows,
        fields=[PointField(name=n, offset=o, datatype=numbers[np.dtype(k).newbyteorder("=")], count=1) for n, k, o in layout],
        is_bigendian=kinds[0].startswith(">"),
        point_step=point_step,
        row_step=lines.shape[1] + padding,
        data=np.hstack([lines, noise]).tobytes(),
    )


XYZ = {"x": [1.5, -2.0, 3.0, 0.25, 5.0, 6.0], "y": [0.5, 1.0, -7.0, 8.0, 9.0, 10.0], "z": [-1.0, 0.0, 1.0, 2.0, np.nan, 4.0]}
LAYOUTS = {
    "float32 in order": ([("x", "<f4", 0), ("y", "<f4", 4), ("z", "<f4", 8)], 12, 1, 0),
    "padded points of an organised cloud with padded rows": ([("x", "<f4", 0), ("y", "<f4", 4), ("z", "<f4", 8)], 32, 2, 13),
    "float64, in another order": ([("z", "<f8", 3), ("x", "<f8", 11), ("y", "<f8", 20)], 29, 3, 0),
    "big endian": ([("x", ">f4", 4), ("y", ">f8", 8), ("z", ">f4", 0)], 16, 2, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cloud_of_any_layout_is_read(layout: str) -> None:
    fields, point_step, rows, padding = LAYOUTS[layout]
    points = messages.cloud_to_points(cloud_of(fields, XYZ, point_step, rows, padding))
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, np.stack(list(XYZ.values()), axis=1))


def test_a_cloud_of_impossible_size_takes_no_memory() -> None:
    message = cloud_of(LAYOUTS["float32 in order"][0], XYZ, 12)
    message.height = message.width = 2**20
    message.row_step = 12 * 2**20
    with pytest.raises(GeometryError, match="is it truncated"):
        messages.cloud_to_points(message)


def test_a_double_beyond_float32_is_infinite() -> None:
    layout = [("x", "<f8", 0), ("y", "<f8", 8), ("z", "<f8", 16)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = messages.cloud_to_points(cloud_of(layout, {name: [1e300] * 6 for name in "xyz"}, 24))
    assert np.isinf(points).all()


def test_a_cloud_round_trips_with_intensity_and_ring() -> None:
    points = np.random.default_rng(2).uniform(-50, 50, (40, 5)).astype(np.float32)
    points[:, 4] = np.arange(40) * 1600
    message = messages.points_to_cloud(points, Header(frame_id="lidar"))
    assert (message.width, message.height, message.header.frame_id, message.is_dense) == (40, 1, "lidar", True)
    assert [(f.name, f.datatype) for f in message.fields] == [("x", 7), ("y", 7), ("z", 7), ("intensity", 7), ("ring", 4)]
    np.testing.assert_array_equal(messages.cloud_to_points(message, messages.CLOUD_FIELDS), points)
    points[3, 1] = np.nan
    assert not messages.points_to_cloud(points, Header()).is_dense
    empty = messages.points_to_cloud(points[:0], Header())
    assert messages.cloud_to_points(empty).shape == messages.cloud_to_points(PointCloud2()).shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": b"1234"}, "4 bytes, but 6x1 points of 12 bytes at row_step 72 take 72; is it truncated"),
        ({"height": 2, "width": 3, "row_step": 5}, "at row_step 5"),
        ({"point_step": 10}, "field z of the cloud is at byte 8, outside of a point of 10 bytes"),
        ({"fields": []}, "no field x, y, z; it has none"),
        ({"fields": [PointField(name=n, datatype=9) for n in "xyz"]}, "datatype 9"),
    ],
)
def test_a_cloud_that_cannot_be_is_refused(changes: dict, words: str) -> None:
    message = cloud_of(*LAYOUTS["float32 in order"][:1], XYZ, 12)
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(GeometryError, match=words):
        messages.cloud_to_points(message)


def test_float_images_round_trip_and_depth_is_read_as_rep_118_says() -> None:
    depth = np.array([[1.5, 0.0, np.nan], [np.inf, -1.0, 80.25]], np.float32)
    expected = np.array([[1.5, np.nan, np.nan], [np.nan, np.nan, 80.25]], np.float32)
    message = messages.array_to_image(depth, "32FC1", Header())
    assert (message.step, message.encoding) == (12, "32FC1")
    np.testing.assert_array_equal(messages.image_to_depth(message), expected)
    message = messages.array_to_image(np.array([[1, 0, 65535]], ">u2").view(np.uint8), "16UC1", Header())
    message.width, message.is_bigendian = 3, 1
    np.testing.assert_allclose(messages.image_to_depth(message), [[0.001, np.nan, 65.535]], rtol=1e-6)
    message.encoding = "rgb8"
    with pytest.raises(ImageError, match="'rgb8' is not a depth image; lix reads 32FC1, 16UC1, mono16"):
        messages.image_to_depth(message)


def test_a_disparity_message_says_what_is_unknown_as_ros_does() -> None:
    camera = Camera.pinhole(3, 1, 500.0)
    message = messages.disparity_image(np.array([[2.5, np.nan, 0.0]], np.float32), camera, 0.5, 64, Header(frame_id="lens"))
    np.testing.assert_array_equal(messages.image_to_array(message.image)[0], [[2.5, -1.0, 0.0]])
    assert (message.f, message.t, message.max_disparity, message.header.frame_id) == (500.0, 0.5, 64.0, "lens")


def test_a_calibration_round_trips_and_one_of_zeros_is_refused() -> None:
    camera = Camera(640, 480, (500, 0, 320, 0, 501, 240, 0, 0, 1), d=(0.1, 0.2, 0, 0, 0), p=(480, 0, 321, -240, 0, 480, 241, 0, 0, 0, 1, 0))
    assert messages.camera_from_info(messages.camera_info(camera, Header())) == camera
    with pytest.raises(DataError, match="focal lengths above 0"):
        messages.camera_from_info(CameraInfo(width=640, height=480))


@pytest.mark.parametrize("name", NODES)
def test_config_says_what_the_dataclass_says(name: str) -> None:
    cls = NODES[name]
    assert (ROOT / "config" / f"{name}.yaml").read_text() == parameters.to_yaml(cls), "run python -m lix_ros.parameters"
    values = yaml.safe_load(parameters.to_yaml(cls))["/**"]["ros__parameters"]
    assert values == dataclasses.asdict(cls())


@pytest.mark.parametrize("page", parameters.PAGES)
def test_tables_say_what_the_dataclass_says(page: str) -> None:
    text = (ROOT / page).read_text()
    assert text == parameters.replace_table(text, parameters.PAGES[page]), "run python -m lix_ros.parameters"
    assert text.count("\n| `") >= len(dataclasses.fields(NODES[parameters.PAGES[page]]))


@pytest.mark.parametrize("module", ["segmentation_node", "teacher_node", "geometry_node", "replay_node", "logger_node"])
def test_a_node_that_ends_takes_its_shared_memory_with_it(module: str, ros: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the logger makes its folder
    monkeypatch.setenv("ROS_DOMAIN_ID", str(101 + os.getpid() % 100))  # nobody else's memory is mapped there
    node = NodeProcess(module, tmp_path, {})
    wait_for(lambda: f"[{module.removesuffix('_node')}]: " in node.output, lambda: f"the node says nothing: {node.output}")
    segments = set(re.findall(r"/dev/shm/fastdds_[0-9a-f]{16}\b", Path(f"/proc/{node.process.pid}/maps").read_text()))
    assert node.stop() == 0, node.output
    assert segments and not any(Path(segment).exists() for segment in segments)


@pytest.mark.parametrize("name", NODES)
def test_every_default_passes_its_own_check(name: str) -> None:
    cls = NODES[name]
    for key, value in dataclasses.asdict(cls()).items():
        assert validate(cls, key, value) == value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("overlay_alpha", 1.01, "overlay_alpha must be 0.0 to 1.0"),
        ("backend", "tensorrt", "backend must be one of auto"),
        ("outputs", ["mask", "depth"], "unknown \\['depth'\\]"),
        ("outputs", "mask", "outputs must be a list, such as .mask., got 'mask'"),
        ("outputs", 5, "outputs must be a list, such as .mask., got 5"),
        ("model", 3, "model must be str"),
        ("max_rate", float("nan"), "max_rate must be"),
        ("threads", True, "threads must be int"),
    ],
)
def test_a_bad_value_is_refused_with_name_value_and_cure(name: str, value: object, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        validate(SegmentationParameters, name, value)


def test_whole_numbers_pass_for_doubles() -> None:
    assert validate(SegmentationParameters, "max_rate", 5) == 5.0
    numbers = validate(GeometryParameters, "extrinsics", array("q", [0, 0, 0, 0, 0, 0, 1]))
    assert numbers == [0.0] * 6 + [1.0] and all(type(n) is float for n in numbers)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1.0, 2.0], "must hold 0 or 7 numbers, got 2"),
        ([1.0] * 6 + [float("nan")], "must hold finite numbers"),
        (["a"] * 7, "must be a list of numbers"),
        ("1234567", "must be a list of numbers"),
        (1.0, "must be a list of numbers"),
        ([True] * 7, "must be a list of numbers"),
    ],
)
def test_a_list_of_numbers_is_checked(value: object, words: str) -> None:
    with pytest.raises(ParameterError, match=f"extrinsics {words}"):
        validate(GeometryParameters, "extrinsics", value)


def test_a_parameter_that_the_node_does_not_have_is_told_with_the_nearest_name(ros: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "inptu": "clip",
        "rate": 5,
        "use_sim_time": False,
        "start_type_description_service": True,
        "qos_overrides./image.publisher.depth": 3,
    }
    node = Node("probe", parameter_overrides=[Parameter(name, value=value) for name, value in given.items()])
    told: list[str] = []
    monkeypatch.setattr(node, "get_logger", lambda: SimpleNamespace(warning=told.append))
    try:
        assert parameters.declare(node, parameters.ReplayParameters).rate == 5.0
    finally:
        node.destroy_node()
    assert told == ["there is no parameter inptu; its value is ignored (did you mean input?)"]


def test_the_transport_profile_is_set_unless_the_user_chose() -> None:
    profile = str(ROOT / "config" / "fastdds.xml")
    assert paths.transport_environment("", {"ROS_DISTRO": "kilted"}) == {"FASTDDS_DEFAULT_PROFILES_FILE": profile}
    assert paths.transport_environment("", {"ROS_DISTRO": "jazzy"}) == {"FASTRTPS_DEFAULT_PROFILES_FILE": profile}
    for chosen in ({v: "x"} for v in paths.USER_CHOICES):
        assert paths.transport_environment("", chosen) == {}
    assert paths.transport_environment("", {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}) == {}
    assert paths.transport_environment("", {"LIX_TRANSPORT": "default"}) == {}
    assert paths.transport_environment(profile, {"ROS_DISTRO": "kilted", "FASTDDS_BUILTIN_TRANSPORTS": "UDPv4"}) == {
        "LIX_TRANSPORT": profile,
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
    }
    with pytest.raises(SourceError, match="no Fast DDS profile at /no/such.xml"):
        paths.transport_environment("/no/such.xml", {})


def test_humble_on_this_machine_only_has_a_profile_of_its_own() -> None:
    def used(**environ: str) -> tuple[str, str]:
        ((variable, path),) = paths.transport_environment("", environ).items()
        return variable, Path(path).name

    assert used(ROS_DISTRO="humble", ROS_LOCALHOST_ONLY="1") == ("FASTRTPS_DEFAULT_PROFILES_FILE", "fastdds_localhost.xml")
    assert used(ROS_DISTRO="humble", ROS_LOCALHOST_ONLY="0")[1] == used(ROS_DISTRO="humble")[1] == "fastdds.xml"
    assert used(ROS_DISTRO="jazzy", ROS_LOCALHOST_ONLY="1")[1] == used(ROS_DISTRO="kilted", ROS_LOCALHOST_ONLY="1")[1] == "fastdds.xml"
    assert paths.localhost_environment({"ROS_DISTRO": "humble"}) == {"ROS_LOCALHOST_ONLY": "1"}
    assert paths.localhost_environment({"ROS_DISTRO": "iron"}) == {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    common, local = ((ROOT / "config" / name).read_text().split("-->")[1] for name in ("fastdds.xml", "fastdds_localhost.xml"))
    assert re.sub(r"\s*<interfaceWhiteList>.*</interfaceWhiteList>", "", local, flags=re.DOTALL) == common


HUMBLES_OWN = """
      <transport_descriptor>
        <transport_id>humble_udp</transport_id>
        <type>UDPv4</type>
        <interfaceWhiteList>
          <address>127.0.0.1</address>
        </interfaceWhiteList>
      </transport_descriptor>
      <transport_descriptor>
        <transport_id>humble_shm</transport_id>
        <type>SHM</type>
      </transport_descriptor>
"""
"""What rmw_fastrtps of Humble adds to a profile's transports where ROS_LOCALHOST_ONLY is 1."""
LOOK = """
import os, re, time
from pathlib import Path
import rclpy
from lix_ros.doctor import transport_check
rclpy.init(args=[])
print(transport_check().finding)
node = rclpy.create_node("look")
ends = {os.readlink(end) for end in Path("/proc/self/fd").iterdir() if end.is_symlink()}
for _, address, *_, inode in (line.split()[:10] for line in Path("/proc/net/udp").read_text().splitlines()[1:]):
    if f"socket:[{inode}]" in ends:
        print("bound to", ".".join(str(byte) for byte in bytes.fromhex(address[:8])[::-1]))
node.destroy_node()
rclpy.shutdown()
"""


@pytest.mark.skipif(not Path("/proc/net/udp").exists(), reason="needs Linux's list of sockets")
@pytest.mark.parametrize(("name", "elsewhere"), [("fastdds_localhost.xml", False), ("fastdds.xml", True)])
def test_beside_humbles_own_transports_images_arrive_and_the_network_is_closed(tmp_path: Path, name: str, elsewhere: bool) -> None:
    text = (ROOT / "config" / name).read_text()
    text = text.replace("    </transport_descriptors>", f"{HUMBLES_OWN}    </transport_descriptors>")
    added = "".join(f"<transport_id>humble_{kind}</transport_id>" for kind in ("udp", "shm"))
    (tmp_path / "profile.xml").write_text(text.replace("</userTransports>", f"{added}</userTransports>"))
    kept = {k: v for k, v in os.environ.items() if k not in (*paths.USER_CHOICES, "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY")}
    profile = {paths.profile_variable(os.environ): str(tmp_path / "profile.xml")}
    environment = {**kept, **profile, "PYTHONPATH": str(ROOT), "ROS_DOMAIN_ID": str(101 + os.getpid() % 100)}
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    arrived, *bound = done.stdout.splitlines()
    assert int(arrived.split()[0]) > 0.9 * int(arrived.split()[2])
    here = {"bound to 127.0.0.1", "bound to 239.255.0.1"}  # the multicast group too is joined on the loopback alone
    assert "bound to 127.0.0.1" in bound and bool(set(bound) - here) == elsewhere


def test_what_a_launch_file_is_told_of_the_transport_holds_in_its_nodes_too(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.xml", tmp_path / "other.xml"
    for file in (mine, other):
        file.touch()
    used = {"": str(mine), "lix": str(ROOT / "config" / "fastdds.xml"), str(other): str(other), "default": None}
    for argument, expected in used.items():
        environment = {"ROS_DISTRO": "kilted", "LIX_TRANSPORT": str(mine)}
        environment |= paths.transport_environment(argument, environment)  # of the launch file, for the node
        environment |= paths.transport_environment("", environment)  # of the node, for itself
        assert environment.get("FASTDDS_DEFAULT_PROFILES_FILE") == expected
    assert paths.transport_environment("lix", {"FASTDDS_BUILTIN_TRANSPORTS": "UDPv4"}) == {"LIX_TRANSPORT": "lix"}
