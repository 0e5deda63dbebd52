"""OpenVINO on CPUs; in bf16 where the CPU has it."""

from __future__ import annotations

import io
from typing import Mapping, Sequence

import numpy as np
import openvino

from lix_core.errors import BackendError
from lix_core.runtime.backends import NOTHING, BackendOptions
from lix_core.workers import cores


class OpenVinoBackend:
    """One synchronous infer request on the CPU, tuned for latency."""

    def __init__(self, graph: bytes, options: BackendOptions):
        core = openvino.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if options.precision in ("bf16", "f16") and {"bf16": "BF16", "f16": "FP16"}[options.precision] not in capabilities:
            raise BackendError(f"this CPU has no {options.precision}; OpenVINO finds {', '.join(capabilities)}")
        threads = options.threads or cores()
        settings: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        if options.precision != "auto":
            settings["INFERENCE_PRECISION_HINT"] = options.precision
        compiled = core.compile_model(core.read_model(io.BytesIO(graph)), "CPU", settings)
        self._request = compiled.create_infer_request()
        self.inputs = tuple(port.any_name for port in compiled.inputs)
        self.outputs = tuple(port.any_name for port in compiled.outputs)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.description = f"openvino {openvino.__version__.split('-')[0]} CPU {used} {threads} threads"

    def run(self, image: np.ndarray, outputs: Sequence[str], others: Mapping[str, np.ndarray] = NOTHING) -> list[np.ndarray]:
        self._request.infer({self.inputs[0]: image, **others}, share_inputs=True)
        return [self._request.get_tensor(name).data for name in outputs]
