"""Inference backends behind one small interface. A new one is one new file here and one line in REGISTRY."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import MappingProxyType
from typing import Mapping, Protocol, Sequence

import numpy as np

from lix_core.errors import BackendError, first_line

REGISTRY = {
    "openvino": ("lix_core.runtime.backends.openvino_backend", "OpenVinoBackend", ("openvino",)),
    "onnxruntime": ("lix_core.runtime.backends.onnxruntime_backend", "OnnxRuntimeBackend", ("onnxruntime",)),
    "torch": ("lix_core.runtime.backends.torch_backend", "TorchBackend", ("torch", "onnx", "onnx2torch")),
}
"""name -> (module, class, the packages it needs), in the order in which `auto` tries them."""
INSTALL_HINT = {
    "onnxruntime": "pip install onnxruntime",
    "openvino": "pip install openvino",
    "torch": "pip install torch torchvision onnx onnx2torch",
}
DEFAULT_BACKEND = "onnxruntime"
BACKEND_HELP = "onnxruntime, openvino, torch or auto."
NOTHING: Mapping[str, np.ndarray] = MappingProxyType({})
MAX_THREADS = 256
PRECISIONS = ("auto", "f32", "bf16", "f16")


@dataclass(frozen=True)
class BackendOptions:
    """How to run: CPU threads (0 = every core) and arithmetic precision (`auto` = the backend's own choice)."""

    threads: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= MAX_THREADS:
            raise BackendError(f"threads must be 0 (every core) to {MAX_THREADS}, got {self.threads}")
        if self.precision not in PRECISIONS:
            raise BackendError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")


class Backend(Protocol):
    """A loaded graph; `inputs` and `outputs` are their names, in its order. The first input is the image, whatever its name."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    description: str

    def run(self, image: np.ndarray, outputs: Sequence[str], others: Mapping[str, np.ndarray] = NOTHING) -> list[np.ndarray]:
        """Feed the image, and by name whatever other inputs the graph has.

        Returns the named outputs, which stay valid until the next call.
        """
        ...


def available_backends() -> dict[str, list[str]]:
    """name -> the packages it still lacks (an empty list: ready to use). Imports none of them."""
    return {name: [p for p in packages if importlib.util.find_spec(p) is None] for name, (_, _, packages) in REGISTRY.items()}


def resolve_backend(name: str) -> str:
    """The backend to use for `name`, where `auto` takes the first of REGISTRY that is installed.

    Raises:
        BackendError: unknown, or not installed.
    """
    missing = available_backends()
    if name == "auto":
        ready = [candidate for candidate, lacking in missing.items() if not lacking]
        if not ready:
            raise BackendError(f"no inference backend is installed; try: {INSTALL_HINT[DEFAULT_BACKEND]}")
        return ready[0]
    if name not in REGISTRY:
        raise BackendError(f"unknown backend {name!r}; there are auto, {', '.join(REGISTRY)}")
    if missing[name]:
        raise BackendError(f"backend {name!r} needs {', '.join(missing[name])}: {INSTALL_HINT[name]}")
    return name


def load_backend(name: str, graph: bytes, options: BackendOptions) -> Backend:
    """Load a serialised ONNX graph into the backend `name` (or `auto`).

    Raises:
        BackendError: see `resolve_backend`; or the backend cannot load or run this graph.
    """
    resolved = resolve_backend(name)
    module, class_name, _ = REGISTRY[resolved]
    try:
        return getattr(importlib.import_module(module), class_name)(graph, options)
    except BackendError:
        raise
    except Exception as error:  # every library has its own exceptions for a graph it cannot load
        raise BackendError(f"backend {resolved!r} cannot load the graph: {first_line(error)}") from error
