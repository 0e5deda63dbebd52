"""What is exported of a network, the losses and the data of the model `street`."""

from __future__ import annotations

import math
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from timm.layers import Conv2dSame

from lix_core.data.camvid import CamVidDataset
from lix_core.data.sample import Sample
from lix_core.export import CameraGraph, StaticSame, with_static_padding
from lix_core.labels import STREET, UNLABELLED
from lix_core.models.encoders import build_encoder
from lix_core.models.networks import Student
from lix_core.training.street import (
    MEAN,
    STD,
    TransformedCamVid,
    class_weights,
    normalise,
    soft_dice_loss,
    train_transform,
    validate,
)

LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(scope="module", autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def student() -> Student:
    """An untrained student, its batch norms away from the identity."""
    torch.manual_seed(0)
    network = Student(5, LITE0, weights="none")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


# What is exported.


@torch.inference_mode()
@settings(max_examples=25)
@given(
    kernel=st.sampled_from([1, 2, 3, 5, 7]),
    stride=st.sampled_from([1, 2, 4]),
    dilation=st.sampled_from([1, 2]),
    size=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    bias=st.booleans(),
    depthwise=st.booleans(),
)
def test_static_padding_equals_tensorflows_same_padding_on_multiples_of_the_stride(kernel, stride, dilation, size, bias, depthwise):
    conv = Conv2dSame(4, 8, kernel, stride=stride, dilation=dilation, groups=4 if depthwise else 1, bias=bias)
    image = torch.randn(1, 4, 32 * size[0], 32 * size[1])
    assert torch.allclose(StaticSame(conv)(image), conv(image), atol=1e-5)


@torch.inference_mode()
def test_a_network_with_static_padding_computes_the_same():
    torch.manual_seed(0)
    network = build_encoder(LITE0, "none").eval()
    image = torch.randn(1, 3, 64, 96)
    expected = network(image)
    dynamic = sum(isinstance(m, Conv2dSame) for m in network.modules())
    with_static_padding(network)
    assert dynamic > 0 and not any(isinstance(m, Conv2dSame) for m in network.modules())
    assert sum(isinstance(m, StaticSame) for m in network.modules()) == dynamic
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(network(image), expected, strict=True))


@torch.inference_mode()
def test_the_camera_graph_is_normalisation_network_argmax_and_softmax(student):
    pixels = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    mask, confidence, logits = CameraGraph(student, (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)).eval()(pixels)
    x = ((pixels[0].numpy() - np.array([100.0, 110.0, 120.0])) / [50.0, 60.0, 70.0]).transpose(2, 0, 1)[None]
    image = torch.from_numpy(x).float()
    expected = student.coarse_logits(image)
    assert torch.allclose(logits, expected, atol=1e-4)
    assert (mask == student(image).argmax(1)).float().mean() > 0.999
    assert mask.dtype == torch.uint8 and mask.shape == (1, 64, 96)
    assert torch.allclose(confidence, expected.softmax(1).amax(1), atol=1e-5)


# The loss.


def naive_dice(logits: np.ndarray, labels: np.ndarray) -> float:
    """1 - Dice per class over all valid pixels of the batch, averaged over classes that occur; by loops."""
    overlap, total, present = {}, {}, set()
    for b, row, column in np.ndindex(labels.shape):
        truth = labels[b, row, column]
        if truth == UNLABELLED:
            continue
        present.add(int(truth))
        odds = np.exp(logits[b, :, row, column])
        for c, p in enumerate(odds / odds.sum()):
            overlap[c] = overlap.get(c, 0.0) + (p if c == truth else 0.0)
            total[c] = total.get(c, 0.0) + p + (c == truth)
    return float(np.mean([1 - 2 * overlap[c] / total[c] for c in present]))


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.floats(0, 0.9))
def test_soft_dice_equals_its_definition(seed, void):
    random = np.random.default_rng(seed)
    logits, labels = random.normal(0, 2, (2, 4, 3, 5)), random.integers(0, 3, (2, 3, 5))
    labels[random.random(labels.shape) < void] = UNLABELLED
    labels[0, 0, 0] = 2
    loss = soft_dice_loss(torch.from_numpy(logits), torch.from_numpy(labels))
    assert loss.item() == pytest.approx(naive_dice(logits, labels), abs=1e-9)


def test_soft_dice_is_zero_for_a_certain_right_answer_and_one_for_a_wrong_one():
    labels = torch.tensor([[[0, 1, 2, UNLABELLED]]])
    right = 50.0 * torch.nn.functional.one_hot(labels.clamp(max=2), 3).movedim(-1, 1).float()
    assert soft_dice_loss(right, labels).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_loss(-right, labels).item() == pytest.approx(1, abs=0.5)
    assert soft_dice_loss(right.roll(1, 1), labels).item() == pytest.approx(1, abs=1e-6)


def test_unlabelled_pixels_have_no_gradient():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    labels = torch.tensor([[[0, UNLABELLED], [1, UNLABELLED]]])
    soft_dice_loss(logits, labels).backward()
    assert not logits.grad[..., 1].any() and logits.grad[..., 0].abs().min() > 0


# A CamVid tree.


def write_frame(root: Path, split: str, stem: str, mask: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """One frame of a CamVid tree; returns its RGB image."""
    image = np.random.default_rng(len(stem)).integers(0, 256, (*mask.shape, 3), np.uint8) if image is None else image
    for kind, pixels in (("image", image[..., ::-1]), ("label", mask)):
        folder = root / split / kind
        folder.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / f"{stem}.png"), np.ascontiguousarray(pixels))
    return image


def two_class_mask() -> np.ndarray:
    """(32, 32): a quarter road, a quarter void, the rest sky."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:16, :16], mask[16:, 16:] = STREET.id_of("road"), 11
    return mask


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("street", "--data /no/camvid --out OUT/run", "no images in /no/camvid/train/image; CamVid needs"),
        ("street", "--data OUT/camvid --out /proc/run", "cannot write to output folder /proc/run"),
        ("street_bundle", "--checkpoint /no/best.pt --data /no/camvid --out OUT/s.lix", "there is no checkpoint /no/best.pt"),
        (
            "street_bundle",
            "--checkpoint OUT/no.pt --data /no/camvid --out OUT/s.lix",
            "no.pt is not the best.pt of lix_core.training.street: ",
        ),
    ],
)
def test_paths_that_cannot_be_used_are_told_in_one_line(tmp_path, monkeypatch, capfd, script, arguments, words):
    for split in ("train", "val"):
        write_frame(tmp_path / "camvid", split, "a", two_class_mask())
    (tmp_path / "no.pt").write_bytes(b"no checkpoint")
    monkeypatch.setattr(sys, "argv", [script, *arguments.replace("OUT", str(tmp_path)).split()])
    monkeypatch.delitem(sys.modules, f"lix_core.training.{script}", raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"lix_core.training.{script}", run_name="__main__")
    said = capfd.readouterr().err
    assert end.value.code == 2 and said.startswith("lix: ") and words in said and said.count("\n") == 1


# Training's parts.


def test_class_weights_are_inverse_frequency_to_the_power_and_of_mean_one_over_pixels():
    class TwoClasses(list):
        labels = ("a", "b")

    mask = np.repeat(np.uint8([0, 1, UNLABELLED]), [6, 2, 5])[None]
    data = TwoClasses([Sample("a", np.zeros((1, 13, 3), np.uint8), mask)])

    frequency = np.array([0.75, 0.25])
    for power in (0.0, 0.5, 1.0):
        weights = class_weights(data, power).numpy()
        assert weights[1] / weights[0] == pytest.approx(3**power)
        assert (weights * frequency).sum() == pytest.approx(1)


def test_normalise_is_what_the_bundle_says_of_itself():
    image = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    expected = (image.numpy() - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert np.allclose(normalise(image).numpy(), expected, atol=1e-6)


def test_image_and_mask_are_transformed_alike_and_padding_is_unlabelled(tmp_path):
    mask = two_class_mask()
    image = np.zeros((32, 32, 3), np.uint8)
    image[mask == 3], image[mask == 11] = 255, 100
    write_frame(tmp_path, "train", "a", mask, image)
    torch.manual_seed(0)
    geometry = train_transform((48, 48), (32, 32))
    geometry.transforms = [t for t in geometry.transforms if type(t).__name__ in ("ScaleJitter", "RandomCrop", "RandomHorizontalFlip")]
    assert len(geometry.transforms) == 3
    data = TransformedCamVid(CamVidDataset(tmp_path, "train"), geometry)
    for _ in range(10):
        pixels, labels = data[0]
        assert pixels.shape == (3, 48, 48) and pixels.dtype == torch.uint8 and labels.dtype == torch.int64
        assert set(labels.unique().tolist()) <= {0, STREET.id_of("road"), UNLABELLED}
        bright, dark = pixels[0] > 250, pixels[0] < 5
        assert (labels[bright] == STREET.id_of("road")).float().mean() > 0.9
        assert (labels[dark] == 0).float().mean() > 0.9


def test_validate_scores_images_of_any_size_at_their_own_size(tmp_path):
    class KnowsSky(torch.nn.Module):
        """Says sky where the picture is dark, road elsewhere; insists on the stride."""

        def forward(self, image):
            assert image.shape[-2] % 32 == image.shape[-1] % 32 == 0
            logits = torch.zeros(1, len(STREET), *image.shape[-2:])
            logits[:, 0], logits[:, 3] = -image[:, 0], image[:, 0]
            return logits

    mask = np.zeros((37, 45), np.uint8)
    mask[:10], mask[10:12], mask[12:14] = STREET.id_of("road"), 11, STREET.id_of("car")
    image = np.zeros((37, 45, 3), np.uint8)
    image[:14] = 255
    write_frame(tmp_path, "val", "a", mask, image)
    matrix = validate(KnowsSky(), CamVidDataset(tmp_path, "val"), 32, torch.device("cpu"))
    assert matrix.truth_pixels.sum() == 45 * 35
    assert matrix.iou[0] == 1 and matrix.iou[3] == pytest.approx(10 / 12) and matrix.iou[8] == 0
    assert math.isnan(matrix.iou[1])
