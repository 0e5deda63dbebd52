"""`lix demo`: three processes, real topics, and files at the end that hold what they should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest

pytest.importorskip("rclpy", reason="no ROS 2: neither an installation is sourced nor are the wheels installed")

import bags  # noqa: E402
import bundles  # noqa: E402
from lix_core.errors import ImageError, SourceError  # noqa: E402
from lix_ros import demo as demo_module  # noqa: E402
from lix_ros.paths import profile_variable  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import typer
from lix_core.errors import LixError
from lix_ros.demo import demo
try:
    typer.run(demo)
except LixError as error:
    raise SystemExit(str(error))
"""


def run_demo(*arguments: object) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "ROS_DOMAIN_ID": str(101 + os.getpid() % 100),
    }
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=200, env=environment
    )


@pytest.mark.parametrize(
    ("distribution", "local", "profile"),
    [
        ("humble", ("ROS_LOCALHOST_ONLY", "1"), "fastdds_localhost.xml"),
        ("kilted", ("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST"), "fastdds.xml"),
    ],
)
def test_it_keeps_to_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: str, local: tuple[str, str], profile: str
) -> None:
    monkeypatch.setattr(os, "environ", {"ROS_DISTRO": distribution})
    monkeypatch.setattr(demo_module, "ending_signals", list)
    begun: list[dict[str, str]] = []
    monkeypatch.setattr(demo_module.rclpy, "init", lambda **_: begun.append(dict(os.environ)))
    monkeypatch.setattr(demo_module, "Recorder", lambda *_: SimpleNamespace(recording=None))
    monkeypatch.setattr(demo_module, "SingleThreadedExecutor", lambda: SimpleNamespace(add_node=lambda node: None))
    demo_module.Run(tmp_path, 1, 10.0)
    assert local in begun[0].items() and Path(begun[0][profile_variable(begun[0])]).name == profile


def test_every_frame_goes_in_and_comes_out(tmp_path: Path) -> None:
    frames = tmp_path / "frames \U0001f600"
    frames.mkdir()
    for index in range(15):
        cv2.imwrite(str(frames / f"{index:02d}.png"), bundles.random_image(96, 128, index))
    model = bundles.camera_bundle().save(tmp_path / "tiny.lix")
    done = run_demo(frames, "--out", tmp_path / "out", "--model", model)
    assert done.returncode == 0, done.stderr + done.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["frames published by the camera"] == summary["frames segmented and received"] == 15
    assert summary["frames lost in transport"] == summary["frames dropped (a newer one came)"] == 0
    assert summary["latency stamp to overlay received p95 [ms]"] >= summary["latency stamp to overlay received p50 [ms]"] > 0
    video = cv2.VideoCapture(str(tmp_path / "out" / "overlay.mp4"))
    assert (int(video.get(cv2.CAP_PROP_FRAME_COUNT)), int(video.get(cv2.CAP_PROP_FRAME_WIDTH))) == (15, 128)
    sheet = cv2.imread(str(tmp_path / "out" / "sheet.png"))
    assert sheet.shape[1] > 128 and sheet.std() > 10


def test_bad_arguments_are_told_before_anything_starts(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    for arguments, words in (
        (("/no/such", *out), "no such input"),
        (("--model", "nobody", *out), "no model 'nobody'"),
        (("--out", "/proc/out"), "cannot write to output folder /proc/out"),
    ):
        done = run_demo(*arguments)
        assert done.returncode != 0
        assert words in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("size", "named"), [((1, 1), "none: frames of 1x1 are too small for a video"), ((2, 5760), "overlay.mp4"), ((6, 8), "overlay.mp4")]
)
def test_a_report_names_a_video_only_where_there_is_one(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], named: str
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    # A rate as bags have it, for which MPEG-4 has no room.
    video = demo_module.VideoFile(tmp_path / "overlay.mp4", bundles.COLOURS, 89.987)
    image = bundles.random_image(*size)
    for _ in range(2):
        video.add(image)
    video.close()
    recording = demo_module.Recording(bundles.COLOURS, 2, [0.01, 0.02], 1.0, 1.1, [image], video.fault)
    demo_module.report(recording, tmp_path)
    printed = capfd.readouterr()
    assert named in printed.out and "Traceback" not in printed.err
    assert (tmp_path / "overlay.mp4").exists() == (named == "overlay.mp4")
    assert (tmp_path / "sheet.png").exists() and json.loads((tmp_path / "summary.json").read_text())["frames per second"] == 10.0


def test_the_figures_are_kept_where_no_sheet_can_be_drawn(tmp_path: Path) -> None:
    recording = demo_module.Recording(bundles.COLOURS, 1, [0.01], sheet=[])
    with pytest.raises(ImageError, match="at least one image"):
        demo_module.report(recording, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["frames segmented and received"] == 1


class Started:
    """In place of Run: starts no process, and remembers what would have been started, with which parameters."""

    def __init__(self, out: Path, expected: int, rate: float):
        self.expected, self.nodes, self.recording = expected, {}, None
        Started.last = self

    def start(self, module: str, **parameters: object) -> None:
        self.nodes[module] = parameters

    def __getattr__(self, name: str) -> Any:
        return lambda: None


def test_of_a_bag_with_several_cameras_the_one_that_is_named_is_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [("/front/image_raw", 3), ("/rear/image_raw", 5)]
    messages = [
        (topic, 10**18 + i * bags.MS, bags.image_message(10**18 + i * bags.MS, bundles.random_image(6, 8, i)))
        for topic, count in frames
        for i in range(count)
    ]
    bag = bags.write_bag(tmp_path / "bag", messages)
    monkeypatch.setattr(demo_module, "Run", Started)
    monkeypatch.setattr(demo_module, "report", lambda recording, out: None)
    given = {"input": str(bag), "out": tmp_path / "out", "rate": 0.0, "model": "street", "backend": "onnxruntime"}
    with pytest.raises(SourceError, match="several image topics; choose one with --topic: /front/image_raw, /rear/image_raw"):
        demo_module.demo(topic="", **given)
    demo_module.demo(topic="/rear/image_raw", **given)
    assert Started.last.expected == 5
    assert Started.last.nodes["replay_node"] == {"input": str(bag), "topic": "/rear/image_raw", "rate": 0.0}
