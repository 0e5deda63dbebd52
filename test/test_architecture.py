"""The import rules of the house, read out of the sources and tried in a fresh interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from bundles import camera_bundle

ROOT = Path(__file__).resolve().parents[1]
CORE = sorted((ROOT / "lix_core").rglob("*.py"))
NODES = sorted((ROOT / "lix_ros").rglob("*.py"))
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in [*CORE, *NODES]}

LEARNING = {"torch", "torchvision", "timm", "lightning", "pytorch_lightning", "torchmetrics", "onnx", "onnx2torch"}
TORCH_BACKEND = "lix_core.runtime.backends.torch_backend"
RUNTIME = [
    name
    for name in MODULES
    if name in {f"lix_core.{part}" for part in ("labels", "camera", "pixels", "pairing", "errors", "metrics", "viz", "progress")}
    or name.startswith(("lix_core.runtime", "lix_core.geometry", "lix_core.cli", "lix_core.bags"))
    and name != TORCH_BACKEND
    and not name.startswith("lix_core.geometry.batch")
]
WORLD = [name for name in MODULES if name.startswith("lix_core.world")]
SIMULATION = {"embreex"}


def is_ros(package: str) -> bool:
    """Whether a top-level package is of ROS or this project's ROS half."""
    return (
        package in ("lix_ros", "launch", "cv_bridge")
        or package.startswith(("rcl", "ament", "launch_"))
        or package.endswith(("_msgs", "_srvs", "_interfaces"))
    )


def imported_by(node: ast.AST) -> list[str]:
    """Full names that one import statement may load: `from a import b` may load a and a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def executed(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported: no function bodies, nothing for type checkers only."""
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            continue
        yield statement
        for block in ("body", "orelse", "finalbody"):
            yield from executed(getattr(statement, block, []))
        for handler in getattr(statement, "handlers", []):
            yield from executed(handler.body)


@cache
def imports_on_load(name: str) -> frozenset[str]:
    tree = ast.parse(MODULES[name].read_text())
    return frozenset(module for statement in executed(tree.body) for module in imported_by(statement))


@cache
def imports_anywhere(name: str) -> frozenset[str]:
    return frozenset(module for node in ast.walk(ast.parse(MODULES[name].read_text())) for module in imported_by(node))


def loaded_with(name: str) -> set[str]:
    """Names of all that importing the module `name` loads, through modules of this project."""
    found, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        if module in MODULES:
            waiting += [*imports_on_load(module), *(parent for parent in [module.rpartition(".")[0]] if parent)]
    return found


def packages(modules: set[str] | frozenset[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_the_rules_look_at_real_files():
    assert {"lix_core.labels", "lix_core.runtime.segmenter", "lix_ros.parameters", TORCH_BACKEND} <= set(MODULES)
    assert "torch" in packages(loaded_with("lix_core.export")) and "torch" in packages(loaded_with(TORCH_BACKEND))
    assert "torch" in packages(loaded_with("lix_core.geometry.batch.normals")) and "embreex" in packages(
        loaded_with("lix_core.world.drive")
    )
    assert "numpy" in packages(loaded_with("lix_core.runtime.sources"))


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("lix_core")])
def test_the_core_knows_nothing_of_ros(name):
    assert not {package for package in packages(imports_anywhere(name)) if is_ros(package)}


@pytest.mark.parametrize("name", RUNTIME)
def test_the_runtime_loads_nothing_of_learning(name):
    loaded = loaded_with(name)
    assert not packages(loaded) & LEARNING
    assert not {
        m for m in loaded if m.startswith(("lix_core.models", "lix_core.training", "lix_core.data", "lix_core.distill", "lix_core.export"))
    }


@pytest.mark.parametrize("name", RUNTIME)
def test_the_runtime_loads_nothing_of_the_simulation(name):
    loaded = loaded_with(name)
    assert not packages(loaded) & SIMULATION and not {m for m in loaded if m.startswith("lix_core.world")}


@pytest.mark.parametrize("name", WORLD)
def test_the_world_loads_nothing_of_learning_and_no_inference(name):
    loaded = loaded_with(name)
    assert not packages(loaded) & LEARNING and not {m for m in loaded if m.startswith("lix_core.runtime")}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("lix_ros")])
def test_the_nodes_load_nothing_of_learning(name):
    assert not packages(loaded_with(name)) & LEARNING


@pytest.mark.parametrize("name", [name for name in RUNTIME if name.startswith("lix_core.runtime") and "backends" not in name])
def test_no_inference_library_is_loaded_before_it_is_chosen(name):
    assert not packages(loaded_with(name)) & {"onnxruntime", "openvino", "rosbags"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(("lix_core.models", "lix_core.data", "lix_core.distill"))])
def test_networks_and_data_know_nothing_of_the_runtime(name):
    assert not {module for module in loaded_with(name) if module.startswith("lix_core.runtime")}


def test_nothing_outside_the_command_line_imports_it_but_the_command_that_ros_adds():
    users = {name for name in MODULES if any(module.startswith("lix_core.cli") for module in imports_anywhere(name))}
    assert {name for name in users if not name.startswith("lix_core.cli")} == {"lix_ros.doctor"}


def in_a_fresh_interpreter(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_running_a_model_loads_neither_torch_nor_another_backend(tmp_path):
    path = camera_bundle().save(tmp_path / "tiny.lix")
    unwanted = sorted(LEARNING | {"openvino", "rosbags", "rclpy", "lix_ros"})
    code = f"""
import sys
import numpy as np
from lix_core.runtime.segmenter import Segmenter
result = Segmenter({str(path)!r}).segment(np.full((5, 7, 3), 255, np.uint8))
assert result.mask.tolist() == [[4] * 7] * 5
print(*[package for package in {unwanted!r} if package in sys.modules])
"""
    assert in_a_fresh_interpreter(code) == ""


def test_errors_of_lix_are_value_errors_of_one_family():
    from lix_core import errors

    own = [c for c in vars(errors).values() if isinstance(c, type)]
    assert len(own) >= 7 and all(issubclass(c, errors.LixError) and issubclass(c, ValueError) for c in own)
