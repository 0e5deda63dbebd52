"""X encodings: values, round trips, masks, mirroring, and the torch versions beside the NumPy ones."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lix_core.camera import Camera
from lix_core.errors import GeometryError
from lix_core.geometry.encodings import ENCODINGS, encode
from lix_core.geometry.normals import normals_from_depth
from lix_core.geometry.stereo import depth_to_disparity

WIDTH, HEIGHT = 60, 40
CAMERA = Camera.pinhole(WIDTH, HEIGHT, 35.0, cx=22.0)
MIRRORED = Camera.pinhole(WIDTH, HEIGHT, 35.0, cx=WIDTH - 1 - 22.0)
BASELINE = 0.5
NAN = np.nan


def depth_image() -> np.ndarray:
    """(H, W) float32 depth [m] of a slanted wall over a road, with a hole."""
    wall = 9.0 / (1 + 0.3 * CAMERA.rays[..., 0])
    road = 1.4 / np.maximum(CAMERA.rays[..., 1], 1e-6)
    depth = np.minimum(wall, road).astype(np.float32)
    depth[5:12, 8:20] = NAN
    return depth


def quantities() -> dict[str, np.ndarray]:
    """What each kind encodes, with unknown pixels."""
    depth = depth_image()
    normals = normals_from_depth(depth, CAMERA)
    return {"normals": normals, "depth": depth, "inverse_depth": depth, "disparity": depth_to_disparity(depth, CAMERA.fx, BASELINE)}


def test_the_kinds_are_the_four_of_the_docs():
    assert {kind: encoding.channels for kind, encoding in ENCODINGS.items()} == {
        "normals": 3,
        "depth": 1,
        "inverse_depth": 1,
        "disparity": 1,
    }


@pytest.mark.parametrize(
    ("kind", "value", "x"),
    [
        ("depth", 15.0, 0.0),
        ("depth", 15 * np.exp(0.75), 1.0),
        ("depth", 500.0, (np.log(100) - np.log(15)) / 0.75),
        ("depth", 0.2, -np.log(15) / 0.75),
        ("inverse_depth", 1 / 0.09, 0.0),
        ("inverse_depth", 1 / 0.16, 1.0),
        ("inverse_depth", 0.1, (1 - 0.09) / 0.07),
        ("disparity", 0.028 * WIDTH, 0.0),
        ("disparity", 0.05 * WIDTH, 1.0),
        ("disparity", 55.0, (0.25 - 0.028) / 0.022),
    ],
)
def test_values_follow_the_documented_formulas(kind, value, x):
    channels, mask = ENCODINGS[kind].encode(np.full((2, WIDTH), value, np.float32))
    assert channels.shape == (1, 2, WIDTH) and channels.dtype == np.float32 and mask.all()
    np.testing.assert_allclose(channels, x, atol=2e-6)


def test_normals_are_their_own_encoding():
    normals = quantities()["normals"]
    channels, mask = ENCODINGS["normals"].encode(normals)
    np.testing.assert_array_equal(channels[:, mask], normals[mask].T)
    np.testing.assert_array_equal(mask, np.isfinite(normals).all(2))


@pytest.mark.parametrize("kind", ["depth", "inverse_depth", "disparity"])
def test_what_is_not_above_zero_and_finite_is_unknown_and_zero(kind):
    values = np.array([[NAN, np.inf, -np.inf, 0.0, -0.0, -3.0, 2.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        channels, mask = ENCODINGS[kind].encode(values)
    np.testing.assert_array_equal(mask, [[False] * 6 + [True]])
    assert (channels[0, :, :6] == 0).all() and channels[0, 0, 6] != 0


def test_normals_of_zero_length_or_half_known_are_unknown():
    values = np.array([[[0, 0, 0], [NAN, 0, -1], [0, -1, 0]]], np.float32)
    channels, mask = ENCODINGS["normals"].encode(values)
    np.testing.assert_array_equal(mask, [[False, False, True]])
    np.testing.assert_array_equal(channels[:, 0].T, [[0, 0, 0], [0, 0, 0], [0, -1, 0]])


def test_nothing_known_is_all_zero_and_decodes_to_nothing():
    for encoding in ENCODINGS.values():
        channels, mask = encoding.encode(np.full((4, 5, 3)[: 3 if encoding.channels == 3 else 2], NAN, np.float32))
        assert not mask.any() and not channels.any()
        assert np.isnan(encoding.decode(channels, mask)).all()


@given(st.sampled_from(["depth", "inverse_depth"]), arrays(np.float32, (4, 5), elements=st.floats(1, 100, width=32)))
def test_depth_comes_back(kind, depth):
    channels, mask = ENCODINGS[kind].encode(depth)
    np.testing.assert_allclose(ENCODINGS[kind].decode(channels, mask), depth, rtol=1e-4)


@given(arrays(np.float32, (4, 64), elements=st.floats(0.0625, 16, width=32)))
def test_disparity_comes_back(disparity):
    channels, mask = ENCODINGS["disparity"].encode(disparity)
    np.testing.assert_allclose(ENCODINGS["disparity"].decode(channels, mask), disparity, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ENCODINGS)
def test_a_scene_comes_back_with_its_holes(kind):
    values = quantities()[kind]
    channels, mask = ENCODINGS[kind].encode(values)
    assert 0.5 < mask.mean() < 1
    np.testing.assert_allclose(
        ENCODINGS[kind].decode(channels, mask), np.where(mask[..., None] if values.ndim == 3 else mask, values, NAN), 1e-4
    )


@pytest.mark.parametrize("kind", ["depth", "inverse_depth", "disparity"])
def test_what_a_network_makes_up_decodes_to_the_limits(kind):
    encoding = ENCODINGS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = encoding.decode(np.array([[[-1e3, -1.2857143, 1e3]]], np.float32), np.ones((1, 3), bool))
    assert (values >= encoding.low * encoding.unit(3)).all() and (values <= encoding.high * encoding.unit(3) * 1.0001).all()


@pytest.mark.parametrize("kind", ENCODINGS)
def test_mirroring_x_is_the_x_of_the_mirrored_scene(kind):
    depth = depth_image()
    channels, mask = encode(kind, depth=depth, camera=CAMERA, baseline=BASELINE)
    expected, mirrored_mask = encode(kind, depth=np.ascontiguousarray(depth[:, ::-1]), camera=MIRRORED, baseline=BASELINE)
    np.testing.assert_array_equal(mask[:, ::-1], mirrored_mask)
    flipped = ENCODINGS[kind].flip(channels)
    np.testing.assert_allclose(flipped, expected, atol=2e-3 if kind == "normals" else 1e-6)
    np.testing.assert_array_equal(ENCODINGS[kind].flip(flipped), channels)


def test_each_kind_is_found_from_depth_from_disparity_and_from_itself():
    depth, given_ones = depth_image(), quantities()
    for kind, encoding in ENCODINGS.items():
        own = encode(kind, **{encoding.quantity: given_ones[kind]})
        for source in ({"depth": depth}, {"disparity": given_ones["disparity"]}):
            channels, mask = encode(kind, **source, camera=CAMERA, baseline=BASELINE)
            np.testing.assert_array_equal(mask, own[1])
            np.testing.assert_allclose(channels, own[0], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "hha", "depth": np.ones((2, 2))}, "no encoding 'hha'; there are normals, depth, inverse_depth, disparity"),
        ({"kind": "normals"}, "the encoding normals needs normals, or depth or disparity and the camera"),
        ({"kind": "disparity", "depth": np.ones((2, 2))}, "the encoding disparity needs disparity, or depth and the camera"),
        ({"kind": "depth", "disparity": np.ones((2, 2))}, "the encoding depth needs depth, or disparity and the camera"),
        ({"kind": "disparity", "depth": np.ones((2, 2)), "camera": CAMERA}, "baseline of a stereo pair must be above 0 m, got 0.0"),
        ({"kind": "depth", "depth": np.ones((2, 2), np.uint16)}, r"depth must be a float array of shape \(H, W\), got uint16"),
        ({"kind": "depth", "depth": np.ones(3)}, r"depth must be a float array of shape \(H, W\), got float64 of shape \(3,\)"),
        ({"kind": "normals", "normals": np.ones((2, 2))}, r"normals must be a float array of shape \(H, W, 3\), got"),
        ({"kind": "normals", "normals": np.ones((2, 2, 4))}, r"shape \(H, W, 3\), got float64 of shape \(2, 2, 4\)"),
        ({"kind": "disparity", "disparity": [[1.0]]}, "disparity must be a float array .*, got list"),
    ],
)
def test_what_cannot_be_encoded_is_refused_in_words(arguments, words):
    with pytest.raises(GeometryError, match=words):
        encode(**arguments)


def test_channels_of_another_shape_are_not_decoded():
    with pytest.raises(GeometryError, match=r"depth is \(1, H, W\) with a mask \(H, W\), got \(3, 4, 5\) and \(4, 5\)"):
        ENCODINGS["depth"].decode(np.zeros((3, 4, 5), np.float32), np.ones((4, 5), bool))


# ---- torch


@pytest.fixture
def batch():
    pytest.importorskip("torch")
    from lix_core.geometry.batch import encodings

    return encodings


def as_batch(values: np.ndarray):
    """The quantity and its mirror image, as a batch with channels first."""
    import torch

    stacked = np.stack([values, values[:, ::-1]])
    return torch.tensor(stacked.transpose(0, 3, 1, 2) if values.ndim == 3 else stacked)


@pytest.mark.parametrize("kind", ENCODINGS)
def test_the_torch_versions_agree(batch, kind):
    values = quantities()[kind]
    values[0, :4] = np.array([0, -1, np.inf, 1e4], np.float32)[:, None] if values.ndim == 3 else [0, -1, np.inf, 1e4]
    expected = [ENCODINGS[kind].encode(v) for v in (values, values[:, ::-1])]
    channels, mask = batch.encode(kind, as_batch(values))
    np.testing.assert_allclose(channels.numpy(), [x for x, _ in expected], atol=1e-5)
    np.testing.assert_array_equal(mask.numpy(), [m for _, m in expected])
    decoded = batch.decode(kind, channels, mask)
    truth = ENCODINGS[kind].decode(*expected[0])
    np.testing.assert_allclose(decoded[0].numpy(), truth.transpose(2, 0, 1) if truth.ndim == 3 else truth, rtol=1e-4)
    np.testing.assert_array_equal(batch.flip(kind, channels)[0].numpy(), ENCODINGS[kind].flip(channels[0].numpy()))


@pytest.mark.parametrize("kind", ENCODINGS)
def test_gradients_are_those_of_the_formula_and_zero_where_unknown(batch, kind):
    import torch

    values = as_batch(quantities()[kind]).requires_grad_()
    channels, mask = batch.encode(kind, values)
    channels.sum().backward()
    known = (mask.unsqueeze(1) if values.ndim == 4 else mask).expand(values.shape).numpy()
    number = values.detach().numpy()
    slope = {
        "normals": np.ones_like,
        "depth": lambda depth: 1 / depth / 0.75,
        "inverse_depth": lambda depth: -1 / depth**2 / 0.07,
        "disparity": lambda disparity: np.full_like(disparity, 1 / WIDTH / 0.022),
    }[kind](number)
    limits = ENCODINGS[kind].unit(WIDTH)
    inside = known & (number > ENCODINGS[kind].low * limits) & (number < ENCODINGS[kind].high * limits)
    np.testing.assert_allclose(values.grad.numpy()[inside], slope[inside], rtol=1e-4)
    assert (values.grad.numpy()[~known] == 0).all() and torch.isfinite(values.grad).all()


def test_torch_refuses_other_kinds_and_shapes_in_words(batch):
    import torch

    for function in (batch.encode, batch.flip):
        with pytest.raises(GeometryError, match="no encoding 'hha'"):
            function("hha", torch.zeros(1, 4, 5))
    with pytest.raises(GeometryError, match=r"depth must be a float tensor of shape \(B, H, W\), got torch.float32 of \(4, 5\)"):
        batch.encode("depth", torch.zeros(4, 5))
    with pytest.raises(GeometryError, match=r"normals must be a float tensor of shape \(B, 3, H, W\)"):
        batch.encode("normals", torch.zeros(1, 4, 5))
    with pytest.raises(GeometryError, match=r"depth is \(B, 1, H, W\) with a mask"):
        batch.decode("depth", torch.zeros(1, 3, 4, 5), torch.ones(1, 4, 5, dtype=torch.bool))
