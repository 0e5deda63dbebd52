"""The parts of the nodes that need no conversation: worker, rate limit, statistics, messages, parameters, paths."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import yaml
from hypothesis import given

pytest.importorskip("rclpy", reason="no ROS 2: neither an installation is sourced nor are the wheels installed")

from std_msgs.msg import Header  # noqa: E402

import bundles  # noqa: E402
from lix_core.camera import Camera  # noqa: E402
from lix_core.errors import ImageError, SourceError  # noqa: E402
from lix_ros import messages, parameters, paths  # noqa: E402
from lix_ros.diagnostics import FrameStatistics, percentile, rate  # noqa: E402
from lix_ros.parameters import NODES, ParameterError, SegmentationParameters, validate  # noqa: E402
from lix_ros.worker import NewestItemWorker, RateLimit  # noqa: E402

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


def test_latency_of_another_clock_is_not_believed() -> None:
    statistics = FrameStatistics()
    statistics.on_published(latency=1.7e9, processing=0.02)
    assert statistics.values()["latency stamp to publication p50 [ms]"] == "unknown"
    for latency in (0.01, 0.02, 0.03):
        statistics.on_published(latency, 0.005)
    values = statistics.values()
    assert (values["latency stamp to publication p50 [ms]"], values["frames out"]) == ("20.0", "4")
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


def test_the_transport_profile_is_set_unless_the_user_chose() -> None:
    profile = str(ROOT / "config" / "fastdds.xml")
    assert paths.transport_environment("lix", {"ROS_DISTRO": "kilted"}) == {"FASTDDS_DEFAULT_PROFILES_FILE": profile}
    assert paths.transport_environment("lix", {"ROS_DISTRO": "jazzy"}) == {"FASTRTPS_DEFAULT_PROFILES_FILE": profile}
    for chosen in ({v: "x"} for v in paths.USER_CHOICES):
        assert paths.transport_environment("lix", chosen) == {}
    assert paths.transport_environment("lix", {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}) == {}
    assert paths.transport_environment("default", {}) == {"LIX_TRANSPORT": "default"}
    assert paths.transport_environment("", {"LIX_TRANSPORT": "default"}) == {"LIX_TRANSPORT": "default"}
    assert paths.transport_environment(profile, {"ROS_DISTRO": "kilted", "FASTDDS_BUILTIN_TRANSPORTS": "UDPv4"}) == {
        "FASTDDS_DEFAULT_PROFILES_FILE": profile
    }
    with pytest.raises(SourceError, match="no Fast DDS profile at /no/such.xml"):
        paths.transport_environment("/no/such.xml", {})
