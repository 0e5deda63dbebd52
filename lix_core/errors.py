"""The errors a user of lix meets: each says what was wrong, with the value, and what to do."""

from __future__ import annotations


class LixError(ValueError):
    """Base of every error that lix raises on purpose."""


def first_line(error: Exception) -> str:
    """What a library's exception says, without its stack; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def explain(error: Exception) -> str:
    """An error for a user: lix's own speak for themselves, a library's need their type."""
    return str(error) if isinstance(error, LixError) else f"{type(error).__name__}: {error}"


class ImageError(LixError):
    """An image cannot be segmented: wrong shape, dtype, size or values."""


class BundleError(LixError):
    """A model bundle is missing, damaged or does not describe its own graph."""


class BackendError(LixError):
    """An inference backend is unknown, not installed or cannot run the model."""


class LabelError(LixError):
    """A label set or a mapping between label sets is inconsistent."""


class SourceError(LixError):
    """An input (image, folder, video or bag) cannot be read."""


class DataError(LixError):
    """A data set on disk is incomplete or has values its format does not allow."""


class GeometryError(LixError):
    """Images, depth, clouds and calibrations that do not fit together, or cannot be what they are said to be."""


class TrainingError(LixError):
    """A training run cannot start or go on: its configuration, its teacher, its losses or its folder."""
