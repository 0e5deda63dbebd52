"""The launch files: what they start, with which parameters, names and environment. Real launches of stand-in executables that
write down how they were called, and one of the real nodes."""

from __future__ import annotations

import ast
import html
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest
import yaml

from lix_ros.parameters import ReplayParameters
from lix_ros.paths import TRANSPORT_VARIABLE, USER_CHOICES, profile_variable

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "launch").glob("*.launch.py"))
PAGES = {"segmentation": "segmentation.md", "geometry": "geometry.md", "teacher": "teacher.md", "record": "record.md", "demo": "replay.md"}
"""Launch file -> the page that lists its arguments."""
LAUNCH_TIMEOUT_S = 60.0
PROFILE = profile_variable(os.environ)

needs_launch = pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None, reason="no launch_ros: a ROS 2 installation has it, the wheels do not"
)

RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

file, *arguments = sys.argv[1:]
service = LaunchService(noninteractive=True)
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(
    PythonLaunchDescriptionSource(file), launch_arguments=[a.split(":=", 1) for a in arguments])]))
sys.exit(service.run())
"""

STAND_IN = f"""#!{sys.executable}
import json, os, sys, yaml

call = {{"executable": os.path.basename(sys.argv[0]), "remaps": {{}}, "parameters": {{}}, "rest": [], "environment": dict(os.environ)}}
arguments = iter(sys.argv[1:])
for argument in arguments:
    if argument == "-r":
        source, target = next(arguments).split(":=", 1)
        call["remaps"][source] = target
    elif argument == "--params-file":
        for node in yaml.safe_load(open(next(arguments))).values():
            call["parameters"].update(node["ros__parameters"])
    elif argument != "--ros-args":
        call["rest"].append(argument)
with open(os.path.join(os.environ["LIX_TEST_CALLS"], f"{{os.getpid()}}.json"), "w") as file:
    json.dump(call, file)
"""


def calls_in(tree: ast.AST, name: str) -> list[dict[str, ast.expr]]:
    """The keyword arguments of each call of `name`; the positional ones under their numbers."""
    calls = [c for c in ast.walk(tree) if isinstance(c, ast.Call) and getattr(c.func, "id", None) == name]
    return [{**{str(i): a for i, a in enumerate(c.args)}, **{k.arg: k.value for k in c.keywords if k.arg}} for c in calls]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_every_argument_is_described_and_every_executable_is_installed(file: Path) -> None:
    tree = ast.parse(file.read_text())
    declared = calls_in(tree, "DeclareLaunchArgument")
    assert len(declared) >= 7
    for argument in declared:
        assert ast.literal_eval(argument["description"]).endswith("."), ast.dump(argument["0"])
    executables = [ast.literal_eval(n["executable"]) for n in calls_in(tree, "Node") if ast.literal_eval(n["package"]) == "lix_ros"]
    assert executables
    for executable in executables:
        assert os.access(ROOT / "scripts" / executable, os.X_OK)


def argument_table(file: Path) -> str:
    """The arguments of a launch file, as the page of its node lists them."""
    rows = ["| argument | default | meaning |", "| --- | --- | --- |"]
    for argument in calls_in(ast.parse(file.read_text()), "DeclareLaunchArgument"):
        default = argument["default_value"]
        value = default.value if isinstance(default, ast.Constant) else f"config/{ast.literal_eval(default.args[0].right)}"
        meaning = html.escape(ast.literal_eval(argument["description"]), quote=False)
        rows.append(f"| `{argument['0'].value}` |{f' `{value}`' if value else ''} | {meaning} |")
    return "\n".join(rows)


@pytest.mark.parametrize(("launch", "page"), PAGES.items())
def test_the_pages_list_the_arguments_of_the_launch_files(launch: str, page: str) -> None:
    expected = argument_table(ROOT / "launch" / f"{launch}.launch.py")
    assert expected in (ROOT / "docs" / page).read_text(), f"the arguments of {launch}.launch.py in docs/{page} must be\n{expected}"


def test_the_logger_may_write_for_a_minute_before_launch_ends_it_otherwise() -> None:
    (node,) = calls_in(ast.parse((ROOT / "launch" / "record.launch.py").read_text()), "Node")
    (timeout,) = calls_in(node["sigterm_timeout"], "LaunchConfiguration")
    assert {key: ast.literal_eval(value) for key, value in timeout.items()} == {"0": "sigterm_timeout", "default": "60"}


def test_rviz_shows_the_topics_of_the_default_arguments() -> None:
    config = yaml.safe_load((ROOT / "config" / "lix.rviz").read_text())["Visualization Manager"]
    shown = {d["Name"]: (d["Class"].split("/")[1], d["Topic"]["Value"]) for d in config["Displays"]}
    assert shown == {
        "Image": ("Image", "/camera/image_raw"),
        "Overlay": ("Image", "/segmentation/overlay"),
        "Classes": ("Image", "/segmentation/color"),
        "Camera": ("Camera", "/segmentation/overlay"),
    }
    assert config["Global Options"]["Fixed Frame"] == ReplayParameters().frame_id


def test_rviz_shows_the_topics_of_the_default_arguments_of_geometry() -> None:
    config = yaml.safe_load((ROOT / "config" / "geometry.rviz").read_text())["Visualization Manager"]
    topics = {d["Name"]: d.get("Depth Map Topic") or d["Topic"]["Value"] for d in config["Displays"]}
    assert topics == {
        "Image": "/left/image_rect",
        "Depth": "/geometry/depth",
        "Normals": "/geometry/normals_color",
        "Points of depth": "/geometry/depth",
        "LiDAR": "/points",
    }
    assert config["Global Options"]["Fixed Frame"] == ReplayParameters().frame_id


class Launches:
    """Launches with stand-ins for the executables of lix_ros and rviz2."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.prefix = folder / "prefix"
        self.environment: dict[str, str] = {}
        self.output = ""
        for script in sorted((ROOT / "scripts").iterdir()):
            self.install("lix_ros", script.name)

    def install(self, package: str, executable: str, text: str = STAND_IN) -> None:
        marker = self.prefix / "share" / "ament_index" / "resource_index" / "packages" / package
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        file = self.prefix / "lib" / package / executable
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)

    def start(self, file: Path, **arguments: str) -> subprocess.Popen:
        calls = self._folder / "calls"
        calls.mkdir(exist_ok=True)
        inherited = {k: v for k, v in os.environ.items() if k not in (*USER_CHOICES, TRANSPORT_VARIABLE)}
        environment = {
            **inherited,
            "AMENT_PREFIX_PATH": str(self.prefix),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "PYTHONUNBUFFERED": "1",
            "LIX_TEST_CALLS": str(calls),
            "ROS_LOG_DIR": str(self._folder / "log"),
            **self.environment,
        }
        given = [f"{k}:={v}" for k, v in arguments.items()]
        return subprocess.Popen(
            [sys.executable, "-c", RUN, str(file), *given], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def calls(self, file: Path | str, **arguments: str) -> list[dict[str, Any]]:
        """Launch until all processes have ended; how each was called, by executable and name."""
        launch = self.start(ROOT / "launch" / file, **arguments)
        self.output, _ = launch.communicate(timeout=LAUNCH_TIMEOUT_S)
        assert launch.returncode == 0, self.output
        calls = [json.loads(f.read_text()) for f in (self._folder / "calls").iterdir()]
        return sorted(calls, key=lambda c: (c["executable"], c["remaps"].get("__node", "")))


@pytest.fixture
def launches(tmp_path: Path, ros: None) -> Launches:
    return Launches(tmp_path)


@needs_launch
def test_defaults_leave_the_parameters_to_the_file(launches: Launches) -> None:
    (node,) = launches.calls("segmentation.launch.py")
    assert node["parameters"] == yaml.safe_load((ROOT / "config" / "segmentation.yaml").read_text())["/**"]["ros__parameters"]
    assert node["remaps"]["__node"] == "segmentation"
    assert node["remaps"]["image"] == "camera/image_raw"
    assert node["remaps"]["camera_info"] == "camera/camera_info"
    assert node["environment"][PROFILE] == str(ROOT / "config" / "fastdds.xml")
    assert node["rest"] == ["--log-level", "info"]


@needs_launch
def test_arguments_win_over_the_parameter_file(launches: Launches, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("/**:\n  ros__parameters:\n    model: from_file\n    backend: openvino\n    threads: 3\n")
    (node,) = launches.calls(
        "segmentation.launch.py",
        params_file=str(file),
        model="5",
        use_sim_time="True",
        namespace="robot",
        name="front",
        image="/front/image_raw",
        log_level="debug",
    )
    assert node["parameters"] == {"model": "5", "backend": "openvino", "threads": 3, "use_sim_time": True}
    assert node["remaps"] == {
        "__node": "front",
        "__ns": "/robot",
        "image": "/front/image_raw",
        "image/compressed": "/front/image_raw/compressed",
        "camera_info": "/front/camera_info",
    }
    assert node["rest"] == ["--log-level", "debug"]


@needs_launch
@pytest.mark.parametrize("variable", USER_CHOICES)
def test_a_transport_that_the_user_chose_is_kept(launches: Launches, variable: str) -> None:
    launches.environment = {variable: "/mine.xml"}
    (node,) = launches.calls("segmentation.launch.py")
    assert {v: node["environment"].get(v) for v in USER_CHOICES} == {v: "/mine.xml" if v == variable else None for v in USER_CHOICES}


@needs_launch
def test_default_transport_sets_no_profile_and_a_path_sets_that_profile(launches: Launches, tmp_path: Path) -> None:
    profile = tmp_path / "mine.xml"
    profile.write_text("<dds/>")
    replay, node = launches.calls("demo.launch.py", transport=str(profile), rviz="false")
    assert replay["environment"][PROFILE] == str(profile)
    assert node["environment"][PROFILE] == str(profile)
    for file in (tmp_path / "calls").iterdir():
        file.unlink()
    (node,) = launches.calls("segmentation.launch.py", transport="default")
    assert PROFILE not in node["environment"]
    assert node["environment"][TRANSPORT_VARIABLE] == "default"


@needs_launch
def test_demo_plays_what_segmentation_listens_to(launches: Launches) -> None:
    replay, node = launches.calls(
        "demo.launch.py", namespace="robot", input="/data/a b.mp4", topic="/front", rate="5", model="big", rviz="false"
    )
    for topic in ("image", "image/compressed", "camera_info"):
        assert replay["remaps"][topic] == node["remaps"][topic]
    assert replay["remaps"]["__ns"] == node["remaps"]["__ns"] == "/robot"
    given = {k: v for k, v in replay["parameters"].items() if k in ("input", "topic", "rate", "loop")}
    assert given == {"input": "/data/a b.mp4", "topic": "/front", "rate": 5.0, "loop": True}
    assert type(given["rate"]) is float
    assert node["parameters"]["model"] == "big"


@needs_launch
def test_rviz_follows_the_names_of_the_node(launches: Launches) -> None:
    launches.install("rviz2", "rviz2")
    arguments = {"namespace": "robot", "name": "front", "image": "/cam/image", "rviz_frame": "cam"}
    rviz, node = launches.calls("segmentation.launch.py", rviz="true", **arguments)
    assert rviz["rest"][:4] == ["-d", str(ROOT / "config" / "lix.rviz"), "-f", "cam"]
    assert rviz["remaps"] == {
        "__ns": "/robot",
        "/camera/image_raw": "/cam/image",
        "/segmentation/overlay": "front/overlay",
        "/segmentation/color": "front/color",
        "/segmentation/camera_info": "front/camera_info",
    }
    assert rviz["environment"][PROFILE] == node["environment"][PROFILE]


@needs_launch
def test_demo_gives_rviz_a_frame(launches: Launches) -> None:
    launches.install("rviz2", "rviz2")
    launches.install("tf2_ros", "static_transform_publisher")
    calls = {c["executable"]: c for c in launches.calls("demo.launch.py")}
    assert set(calls) == {"replay", "rviz2", "segmentation", "static_transform_publisher"}
    transform = calls["static_transform_publisher"]["rest"]
    assert transform[transform.index("--child-frame-id") + 1] == ReplayParameters().frame_id


@needs_launch
def test_geometry_takes_its_defaults_from_the_file_and_finds_camera_info_beside_the_images(launches: Launches) -> None:
    (node,) = launches.calls("geometry.launch.py", left="/stereo/left/image_rect/", namespace="robot")
    assert node["executable"] == "geometry"
    assert node["parameters"] == yaml.safe_load((ROOT / "config" / "geometry.yaml").read_text())["/**"]["ros__parameters"]
    assert node["remaps"] == {
        "__node": "geometry",
        "__ns": "/robot",
        "left/image": "/stereo/left/image_rect",
        "left/camera_info": "/stereo/left/camera_info",
        "right/image": "right/image_rect",
        "right/camera_info": "right/camera_info",
        "depth/image": "camera/depth/image_rect_raw",
        "depth/camera_info": "camera/depth/camera_info",
        "points": "points",
        "camera_info": "camera/camera_info",
    }
    assert node["environment"][PROFILE] == str(ROOT / "config" / "fastdds.xml")


@needs_launch
def test_arguments_of_geometry_win_over_the_parameter_file(launches: Launches) -> None:
    extrinsics = "[0.0, -0.1, -0.2, 0.5, -0.5, 0.5, 0.5]"
    (node,) = launches.calls("geometry.launch.py", input="lidar", extrinsics=extrinsics, rectify="true", points="/velodyne_points")
    given = {name: node["parameters"][name] for name in ("input", "extrinsics", "rectify")}
    assert given == {"input": "lidar", "extrinsics": [0.0, -0.1, -0.2, 0.5, -0.5, 0.5, 0.5], "rectify": True}
    assert node["remaps"]["points"] == "/velodyne_points"


@needs_launch
def test_the_teacher_listens_to_the_geometry_and_segmentation_nodes_beside_it(launches: Launches) -> None:
    (node,) = launches.calls("teacher.launch.py", model="teacher.lix", student="front", namespace="robot")
    assert (node["executable"], node["parameters"]["model"]) == ("teacher", "teacher.lix")
    assert node["remaps"] == {
        "__node": "teacher",
        "__ns": "/robot",
        "image": "camera/image_raw",
        "image/compressed": "camera/image_raw/compressed",
        "depth": "geometry/depth",
        "camera_info": "geometry/camera_info",
        "student/mask": "front/mask",
        "student/labels": "front/labels",
    }


@needs_launch
def test_the_logger_records_a_camera_with_the_calibrations_beside_its_images(launches: Launches) -> None:
    given = {"mode": "everything", "folder": "~/my bags", "extra": "/odom /gps"}
    (node,) = launches.calls("record.launch.py", image="front/image_raw", **given)
    assert node["parameters"] == yaml.safe_load((ROOT / "config" / "record.yaml").read_text())["/**"]["ros__parameters"] | given
    remaps = node["remaps"]
    assert (node["executable"], remaps["image"], remaps["image/compressed"], remaps["camera_info"], remaps["right/camera_info"]) == (
        "logger",
        "front/image_raw",
        "front/image_raw/compressed",
        "front/camera_info",
        "right/camera_info",
    )
    assert (remaps["confidence"], remaps["disagreement"]) == ("segmentation/confidence", "teacher/disagreement")


@needs_launch
def test_the_logger_records_the_calibration_beside_its_depth(launches: Launches) -> None:
    (node,) = launches.calls("record.launch.py", depth="/geometry/depth")
    assert (node["remaps"]["depth"], node["remaps"]["depth/camera_info"]) == ("/geometry/depth", "/geometry/camera_info")


@needs_launch
def test_where_student_and_teacher_differ_becomes_a_reason_to_record(launches: Launches) -> None:
    (node,) = launches.calls("record.launch.py", disagreement="1", teacher="front_teacher")
    assert (node["parameters"]["disagreement"], type(node["parameters"]["disagreement"])) == (1.0, float)
    assert node["remaps"]["disagreement"] == "front_teacher/disagreement"


@needs_launch
def test_rviz_follows_the_names_of_the_geometry_node(launches: Launches) -> None:
    launches.install("rviz2", "rviz2")
    _, rviz = launches.calls("geometry.launch.py", rviz="true", namespace="robot", name="front", left="cam/l")
    assert rviz["rest"][:4] == ["-d", str(ROOT / "config" / "geometry.rviz"), "-f", "camera_optical_frame"]
    assert rviz["remaps"] == {
        "__ns": "/robot",
        "/left/image_rect": "cam/l",
        "/points": "points",
        "/geometry/depth": "front/depth",
        "/geometry/normals_color": "front/normals_color",
        "/geometry/camera_info": "front/camera_info",
    }


@needs_launch
def test_demo_goes_on_without_rviz(launches: Launches) -> None:
    assert [c["executable"] for c in launches.calls("demo.launch.py")] == ["replay", "segmentation"]
    assert "rviz2 is not installed" in launches.output


@needs_launch
def test_two_cameras_in_one_launch_file(launches: Launches, tmp_path: Path) -> None:
    """Included twice in groups: the pushed namespace holds, and neither arguments nor environment reach the outside."""
    file = tmp_path / "two.launch.py"
    file.write_text(f"""
from launch import LaunchDescription
from launch.actions import ExecuteProcess, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import PushRosNamespace

def segmentation(**arguments):
    return IncludeLaunchDescription(
        PythonLaunchDescriptionSource({str(ROOT / "launch" / "segmentation.launch.py")!r}), launch_arguments=arguments.items())

def generate_launch_description():
    return LaunchDescription([
        GroupAction([PushRosNamespace("robot"), segmentation(name="front", image="front/image_raw", model="big")]),
        GroupAction([PushRosNamespace("robot"), segmentation(name="rear")]),
        ExecuteProcess(cmd=[{str(launches.prefix / "lib" / "lix_ros" / "outside")!r}]),
    ])
""")
    launches.install("lix_ros", "outside")
    outside, front, rear = launches.calls(file)
    assert [c["remaps"]["__node"] for c in (front, rear)] == ["front", "rear"]
    assert [c["remaps"]["__ns"] for c in (front, rear)] == ["/robot", "/robot"]
    assert [c["remaps"]["image"] for c in (front, rear)] == ["front/image_raw", "camera/image_raw"]
    assert [c["parameters"]["model"] for c in (front, rear)] == ["big", "street"]
    assert not set(USER_CHOICES) & set(outside["environment"])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    import bundles

    return bundles.camera_bundle().save(tmp_path / "tiny.lix")


@pytest.fixture
def demo(launches: Launches, model: Path) -> Iterator[subprocess.Popen]:
    """The real nodes on the shipped clip."""
    for executable in ("segmentation", "replay"):
        launches.install("lix_ros", executable, (ROOT / "scripts" / executable).read_text())
    process = launches.start(ROOT / "launch" / "demo.launch.py", rviz="false", rate="5", model=str(model), namespace="launched")
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)  # killed, it would leave its nodes behind
        process.communicate(timeout=LAUNCH_TIMEOUT_S)


@needs_launch
def test_demo_segments_the_clip_and_ends_cleanly(peer: Any, demo: subprocess.Popen, model: Path) -> None:
    from sensor_msgs.msg import Image

    from lix_core.runtime.segmenter import Segmenter
    from ros import pixels_of, stamp_ns, wait_for

    images = peer.listen(Image, "/launched/camera/image_raw")
    masks = peer.listen(Image, "/launched/segmentation/mask")
    pairs: list[tuple[Image, Image]] = []

    def answered() -> bool:
        pairs[:] = [(i, m) for m in masks[:] for i in images[:] if stamp_ns(i) == stamp_ns(m)]
        return len(pairs) >= 3

    wait_for(answered, "no mask came", timeout=LAUNCH_TIMEOUT_S)
    for image, mask in pairs[:3]:
        assert (mask.encoding, mask.width, mask.height, mask.header.frame_id) == ("mono8", 1242, 375, "camera_optical_frame")
        expected = Segmenter(model).segment(np.ascontiguousarray(pixels_of(image)[..., ::-1])).mask
        assert np.array_equal(pixels_of(mask), expected)
        assert len(np.unique(expected)) == 5
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=LAUNCH_TIMEOUT_S)
    assert demo.returncode == 0, output
    assert output.count("process has finished cleanly") == 2, output
    assert "Traceback" not in output, output
