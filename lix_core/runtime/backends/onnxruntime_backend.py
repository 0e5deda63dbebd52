"""ONNX Runtime: the default; CPU, or CUDA where onnxruntime-gpu is installed."""

from __future__ import annotations

from typing import Mapping, Sequence

import numpy as np
import onnxruntime

from lix_core.errors import BackendError
from lix_core.runtime.backends import NOTHING, BackendOptions
from lix_core.workers import cores


class OnnxRuntimeBackend:
    """Runs in float32: on CPUs ONNX Runtime computes float convolutions in no other precision."""

    def __init__(self, graph: bytes, options: BackendOptions):
        if options.precision not in ("auto", "f32"):
            raise BackendError(f"onnxruntime runs in f32 only, not {options.precision}; try backend openvino")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads or cores()
        settings.log_severity_level = 3
        # Threads that wait for the next frame must not take the cores from the camera driver and the other nodes.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in onnxruntime.get_available_providers()]
        self._session = onnxruntime.InferenceSession(graph, settings, providers=providers)
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())
        device = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self.description = f"onnxruntime {onnxruntime.__version__} {device} f32 {settings.intra_op_num_threads} threads"

    def run(self, image: np.ndarray, outputs: Sequence[str], others: Mapping[str, np.ndarray] = NOTHING) -> list[np.ndarray]:
        return self._session.run(list(outputs), {self.inputs[0]: image, **others})
