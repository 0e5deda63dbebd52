"""`lix doctor`: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from typing import Iterator

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lix_core import __version__
from lix_core.errors import LixError
from lix_core.runtime.backends import DEFAULT_BACKEND, INSTALL_HINT, available_backends
from lix_core.runtime.bundle import list_bundles
from lix_core.runtime.segmenter import Segmenter
from lix_core.workers import cores

OK, ABSENT, FAULT = "ok", "absent", "fault"
STYLE = {OK: "green", ABSENT: "yellow", FAULT: "red"}


@dataclass(frozen=True)
class Check:
    """One line of the report. status: ok, absent (works without it) or fault; remedy: what to do about it."""

    subject: str
    status: str
    finding: str
    remedy: str = ""


def doctor() -> None:
    """Report what of ROS, transport, backends and GPU works here. Exit status 1 where something is at fault."""
    console = Console()
    table = Table("", "status", "finding", "what to do")
    faults = 0
    with console.status("checking") as status:
        for check in all_checks():
            faults += check.status == FAULT
            table.add_row(check.subject, Text(check.status, STYLE[check.status]), Text(check.finding), Text(check.remedy))
            status.update(f"checked {check.subject}")
    console.print(table)
    if faults:
        raise typer.Exit(1)


def all_checks() -> Iterator[Check]:
    yield Check("lix", OK, f"{__version__} on Python {platform.python_version()}, {platform.machine()}, {cores()} cores")
    yield from backend_checks()
    yield gpu_check()
    yield world_check()
    for point in entry_points(group="lix.checks"):
        try:
            checks = point.load()
        except ImportError as error:
            yield Check(
                point.name,
                ABSENT,
                str(error),
                "source a ROS 2 installation, or pip install '.[ros]' in the sources of lix; `lix predict` works without",
            )
            continue
        yield from checks()


def backend_checks() -> Iterator[Check]:
    """Runs the first model there is on every installed backend."""
    paths = list(list_bundles())
    if not paths:
        yield Check("models", FAULT, "no model bundle is found", "install the package again, or put one into ~/.local/share/lix/models")
        return
    yield Check("models", OK, ", ".join(p.stem for p in paths))
    image = np.zeros((375, 1242, 3), np.uint8)
    for name, missing in available_backends().items():
        if missing:
            status = FAULT if name == DEFAULT_BACKEND else ABSENT
            yield Check(f"backend {name}", status, f"not installed: {', '.join(missing)}", INSTALL_HINT[name])
            continue
        try:
            segmenter = Segmenter(paths[0], name)
            times = []
            for _ in range(8):
                start = time.perf_counter()
                segmenter.segment(image)
                times.append(time.perf_counter() - start)
            speed = f"{1e3 * float(np.median(times[2:])):.0f} ms per 1242x375 image"
            yield Check(f"backend {name}", OK, f"{segmenter.description}: {speed}")
        except LixError as error:
            yield Check(f"backend {name}", FAULT, str(error), "the message says what; `lix models` tells whether the bundle is whole")


def gpu_check() -> Check:
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    if not found:
        return Check("GPU", ABSENT, "no NVIDIA GPU", "none needed: the models run on CPUs")
    users = gpu_users()
    if users:
        return Check("GPU", OK, f"{found}; used by {', '.join(users)}")
    return Check(
        "GPU", ABSENT, f"{found}, unused", "for CUDA: pip install onnxruntime-gpu in place of onnxruntime, or a CUDA build of torch"
    )


def world_check() -> Check:
    try:
        import embreex.rtcore_scene  # noqa: F401
    except ImportError as error:
        # A part of embreex, or what it needs, may be missing by itself.
        if isinstance(error, ModuleNotFoundError) and error.name == "embreex":
            cure = "pip install -c constraints.txt -e '.[sim]' in the sources of lix, for `lix world` and the replay of a live world"
            return Check("world", ABSENT, "no ray caster (embreex)", cure)
        return Check("world", FAULT, f"embreex does not load: {error}", "pip install --force-reinstall embreex")
    return Check("world", OK, f"embreex {version('embreex')}")


def gpu_users() -> list[str]:
    """Backends that can use CUDA here; their libraries are loaded already where the backends were tried."""
    users = []
    if "onnxruntime" in sys.modules and "CUDAExecutionProvider" in sys.modules["onnxruntime"].get_available_providers():
        users.append("onnxruntime")
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        users.append("torch")
    return users
