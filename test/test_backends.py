"""The inference backends: one answer from all, and clear words where one cannot run."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest

from bundles import X, camera_bundle, colour_logits, logits_bundle, nearest_colour, random_image, random_x, winner_probability, x_logits
from lix_core.errors import BackendError
from lix_core.runtime import backends
from lix_core.runtime.backends import REGISTRY, BackendOptions, available_backends, load_backend, resolve_backend
from lix_core.runtime.segmenter import Segmenter

F32 = BackendOptions(threads=1, precision="f32")
INSTALLED = [name for name, lacking in available_backends().items() if not lacking]
SIZES = [(1, 1), (37, 53), (64, 96)]


@pytest.fixture(params=INSTALLED)
def backend(request) -> str:
    return request.param


def installed_packages(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make it look as if of the backends' packages only these were installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in names else None)


# One answer.


@pytest.mark.parametrize("make", [camera_bundle, logits_bundle])
def test_every_backend_gives_the_known_answer(backend, make):
    runner = Segmenter(make(), backend, F32)
    for size in SIZES:
        image = random_image(*size)
        result = runner.segment(image)
        assert np.array_equal(result.mask, nearest_colour(image))
        assert np.allclose(result.confidence, winner_probability(image), atol=1e-5)


@pytest.mark.parametrize("make", [camera_bundle, logits_bundle])
@pytest.mark.parametrize("canvas", [(0, 0), (64, 96)])
def test_every_backend_gives_the_masks_of_the_default_one_at_stride_4(backend, make, canvas):
    bundle = make(canvas, stride=4)
    reference, runner = Segmenter(bundle, options=F32), Segmenter(bundle, backend, F32)
    for size in SIZES:
        image = np.repeat(np.repeat(random_image(*size), 7, 0), 7, 1)
        expected, result = reference.segment(image), runner.segment(image)
        # Interpolated logits may tie to within rounding on single pixels.
        assert (result.mask != expected.mask).mean() < 1e-3
        assert np.allclose(result.coarse_confidence, expected.coarse_confidence, atol=1e-5)


def test_outputs_are_named_as_in_the_graph(backend):
    assert load_backend(backend, camera_bundle((8, 12)).graph, F32).outputs == ("mask", "confidence", "logits")
    assert load_backend(backend, logits_bundle().graph, F32).outputs == ("logits",)


def test_the_outputs_asked_for_come_in_the_order_asked(backend):
    image = random_image(8, 12)
    logits, mask = load_backend(backend, camera_bundle().graph, F32).run(image[None], ("logits", "mask"))
    assert np.allclose(logits[0], colour_logits(image), atol=1e-4) and logits.dtype == np.float32
    assert np.array_equal(mask[0], nearest_colour(image)) and mask.dtype == np.uint8


@pytest.mark.parametrize("size", SIZES)
def test_every_backend_takes_x_and_known_by_name(backend, size):
    image, (x, known) = random_image(*size), random_x(*size)
    x = np.where(known, x, np.float32(0))
    runner = load_backend(backend, camera_bundle(x=X).graph, F32)
    assert runner.inputs == ("image", "x", "known")
    for mask in (known, np.zeros_like(known)):
        planes = x * mask
        (logits,) = runner.run(image[None], ("logits",), {"known": mask[None], "x": planes[None]})
        assert np.allclose(logits[0], colour_logits(image) + x_logits(planes, mask), atol=1e-4)


def test_inputs_are_named_as_in_the_graph(backend):
    assert load_backend(backend, camera_bundle((8, 12)).graph, F32).inputs == ("image",)


def test_a_result_of_the_segmenter_outlives_the_next_call(backend):
    runner = Segmenter(camera_bundle(), backend, F32)
    image = random_image(32, 32)
    result = runner.segment(image)
    mask, confidence = result.mask.copy(), result.coarse_confidence.copy()
    runner.segment(255 - image)
    assert np.array_equal(result.mask, mask) and np.array_equal(result.coarse_confidence, confidence)


def test_the_description_names_library_version_and_threads(backend):
    description = load_backend(backend, camera_bundle().graph, F32).description
    assert description.startswith(f"{backend} ") and "f32" in description
    assert "1 threads" in description or "CUDA" in description or backend == "torch"


@pytest.mark.skipif("openvino" not in INSTALLED, reason="needs openvino")
def test_openvino_in_bf16_is_near_f32_or_refused_with_what_the_cpu_has():
    image = np.repeat(np.repeat(random_image(8, 8), 16, 0), 16, 1)
    try:
        runner = Segmenter(camera_bundle(), "openvino", BackendOptions(threads=1, precision="bf16"))
    except BackendError as error:
        assert "this CPU has no bf16; OpenVINO finds" in str(error)
        return
    assert (runner.segment(image).mask == nearest_colour(image)).mean() > 0.9


@pytest.mark.skipif("torch" not in INSTALLED, reason="needs torch and onnx2torch")
def test_torch_in_bf16_is_near_f32():
    image = np.repeat(np.repeat(random_image(8, 8), 16, 0), 16, 1)
    runner = Segmenter(camera_bundle(), "torch", BackendOptions(threads=1, precision="bf16"))
    assert (runner.segment(image).mask == nearest_colour(image)).mean() > 0.9


# What cannot be.


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_onnxruntime_refuses_other_precisions_and_says_who_has_them(precision):
    with pytest.raises(BackendError, match=f"onnxruntime runs in f32 only, not {precision}; try backend openvino"):
        load_backend("onnxruntime", camera_bundle().graph, BackendOptions(precision=precision))


@pytest.mark.parametrize("graph", [b"", b"no graph", camera_bundle().graph[:-200]])
def test_a_graph_that_is_none_is_refused(backend, graph):
    with pytest.raises(BackendError, match=f"backend '{backend}' cannot load the graph: ."):
        load_backend(backend, graph, F32)


def test_bad_options_are_refused_with_their_value():
    for threads in (-1, 257):
        with pytest.raises(BackendError, match=rf"threads must be 0 \(every core\) to 256, got {threads}"):
            BackendOptions(threads=threads)
    with pytest.raises(BackendError, match="precision must be one of auto, f32, bf16, f16, got 'int8'"):
        BackendOptions(precision="int8")


def test_zero_threads_are_the_cores_this_process_may_use():
    description = load_backend("onnxruntime", camera_bundle().graph, BackendOptions()).description
    assert f" {len(os.sched_getaffinity(0))} threads" in description


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(BackendError, match="unknown backend 'tensorrt'; there are auto, openvino, onnxruntime, torch"):
        resolve_backend("tensorrt")


@pytest.mark.parametrize(
    ("packages", "chosen"),
    [
        (("openvino",), "openvino"),
        (("openvino", "onnxruntime"), "openvino"),
        (("onnxruntime", "torch"), "onnxruntime"),
        (("torch", "onnx", "onnx2torch"), "torch"),
    ],
)
def test_auto_takes_the_first_that_is_installed(monkeypatch, packages, chosen):
    installed_packages(monkeypatch, *packages)
    assert resolve_backend("auto") == chosen


def test_auto_without_any_backend_says_what_to_install(monkeypatch):
    installed_packages(monkeypatch)
    with pytest.raises(BackendError, match="no inference backend is installed; try: pip install onnxruntime"):
        resolve_backend("auto")


@pytest.mark.parametrize(("name", "packages"), [(name, entry[2]) for name, entry in REGISTRY.items()])
def test_a_backend_that_is_not_installed_names_its_packages_and_the_cure(monkeypatch, name, packages):
    installed_packages(monkeypatch)
    assert available_backends()[name] == list(packages)
    with pytest.raises(BackendError, match=f"backend '{name}' needs {', '.join(packages)}: pip install"):
        resolve_backend(name)


def test_every_backend_has_an_install_hint():
    assert set(backends.INSTALL_HINT) == set(REGISTRY) and backends.DEFAULT_BACKEND in REGISTRY
