"""What the data sets share: a sequence of frames, files that name themselves when they are missing or wrong, and ids to train ids."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from lix_core.camera import Camera
from lix_core.data.sample import Sample
from lix_core.errors import DataError, SourceError
from lix_core.files import files_below, make_folder, read_mask, save
from lix_core.geometry.encodings import ENCODINGS
from lix_core.labels import UNLABELLED, LabelSet
from lix_core.pixels import decoded

Encoded = tuple[np.ndarray, np.ndarray]
"""X (Cx, H, W) float32, 0 where unknown, and where it is known (H, W) bool."""
OWN_KINDS = ("transformed_disparity",)
"""Kinds of X that one data set has alone (pothole). Those without X go along with them, those that make X of geometry cannot."""


class FrameSet:
    """Base of the data sets: `len(self)` frames, `self[i]` a Sample; files are read when a frame is asked for.

    A subclass gives `labels`, `licence`, `source` (where to get it) and `read(index)`, and calls this constructor with the frames' names,
    which are unique, the kind of X that its samples carry ("" for none) and, where that is not one of `lix_core.geometry.encodings`, its
    channels. Raises DataError without any frame, or where there is no such kind.
    """

    labels: LabelSet
    licence: str
    source: str

    def __init__(self, names: Sequence[str], x_kind: str = "", x_channels: int | None = None):
        self.names = list(names)
        if not self.names:
            raise DataError(f"there are no frames: its options leave none, or its files are not there; get them from {self.source}")
        if x_channels is None:
            check_x(x_kind)
        self.x_kind = x_kind
        self.x_channels = x_channels if x_channels is not None else (ENCODINGS[x_kind].channels if x_kind else 0)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        return self.read(index % len(self))

    def read(self, index: int) -> Sample:
        raise NotImplementedError

    def sample(
        self, index: int, image: np.ndarray, labels: np.ndarray | None, encoded: Encoded | None = None, camera: Camera | None = None
    ) -> Sample:
        """The frame's Sample from its parts."""
        x, known = encoded if encoded is not None else (None, None)
        return Sample(self.names[index], image, labels, x, known, self.x_kind if encoded is not None else "", camera)


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Raises DataError where `value` is none of the choices."""
    choices = list(choices)
    if value not in choices:
        raise DataError(f"there is no {what} {value!r}; there are {', '.join(repr(choice) for choice in choices)}")


def check_x(x: str, others: Iterable[str] = ()) -> None:
    """Raises DataError where `x` is no kind of lix_core.geometry.encodings, none of the others, and not empty."""
    check_choice("kind of X", x, ("", *ENCODINGS, *others))


def require(paths: Iterable[Path], cure: str) -> None:
    """Raises DataError, naming the first of the files that is missing and where to get it."""
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} is missing; {cure}")


def pairs(folders: Mapping[Path, str], cure: str) -> list[str]:
    """Stems of the files that every folder has.

    folders: folder -> how its files end; what comes before is the stem, with subfolders, which may be links.

    Raises:
        DataError: a folder is missing or empty, or lacks a stem that another one has; names the first file that is missing.
    """
    require(folders, cure)
    found = {
        folder: {path.relative_to(folder).as_posix()[: -len(ending)] for path in files_below(folder) if path.name.endswith(ending)}
        for folder, ending in folders.items()
    }
    stems = sorted(set().union(*found.values()))
    if not stems:
        folder, ending = next(iter(folders.items()))
        raise DataError(f"no *{ending} in {folder}; {cure}")
    for stem in stems:
        require((folder / f"{stem}{ending}" for folder, ending in folders.items() if stem not in found[folder]), cure)
    return stems


def decode(path: Path, flags: int, shape: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels in a file, as OpenCV has them. Raises DataError where it is missing, no image, or not of (height, width) `shape`."""
    try:
        image = decoded(path.read_bytes(), flags)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; fetch it again") from None
    if image is None:
        raise DataError(f"{path} cannot be decoded; fetch it again")
    if shape not in (None, image.shape[:2]):
        raise DataError(f"{path} is {image.shape[1]}x{image.shape[0]}, its image {shape[1]}x{shape[0]}; fetch it again")
    return image


def read_rgb(path: Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB as it is stored, not turned by an EXIF orientation, of `shape` if that is given. Raises DataError."""
    return cv2.cvtColor(decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, shape), cv2.COLOR_BGR2RGB)


def read_uint16(path: Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """(H, W) uint16 of a PNG, of `shape` if that is given. Raises DataError where it is missing or of another depth."""
    plane = decode(path, cv2.IMREAD_UNCHANGED, shape)
    if plane.ndim != 2 or plane.dtype != np.uint16:
        raise DataError(f"{path} has shape {plane.shape} of {plane.dtype}; one 16-bit channel is expected")
    return plane


class IdMap:
    """From the ids in a data set's files to train ids.

    table: official id (0..255) -> train id, or 255 for ids that are ignored. Other ids do not occur.
    """

    def __init__(self, table: Mapping[int, int]):
        self.table, self.allowed = dict(table), sorted(table)
        self._lut = np.full(256, -1, np.int16)
        self._lut[list(table)] = list(table.values())

    def __call__(self, mask: np.ndarray, path: Path) -> np.ndarray:
        """(H, W) uint8 official ids -> train ids. Raises DataError, naming ids that do not occur, and `path`, their file."""
        train = self._lut[mask]
        if train.min(initial=0) < 0:
            wrong = ", ".join(map(str, np.unique(mask[train < 0])))
            raise DataError(f"label {path} has ids {wrong}; allowed are {spans(self.allowed)}")
        return train.astype(np.uint8)

    def read(self, path: Path) -> np.ndarray:
        """(H, W) uint8 train ids of a PNG of official ids. Raises DataError."""
        return self(read_mask(path), path)


def spans(numbers: Sequence[int]) -> str:
    """Sorted whole numbers in words: [0, 1, 2, 255] -> "0..2, 255"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}..{high}" for low, high in runs)


def subset(labels: LabelSet, names: Sequence[str]) -> tuple[LabelSet, np.ndarray]:
    """The label set of some classes, in the order given, and (256,) uint8: old id -> new id, 255 for the others. Raises LabelError."""
    lut = np.full(256, UNLABELLED, np.uint8)
    ids = [labels.id_of(name) for name in names]
    lut[ids] = range(len(ids))
    return LabelSet(labels.name, tuple(labels.labels[i] for i in ids)), lut


class XCache:
    """Encoded X in files of float16, for X that is slow to make. What is read back is what the first `get` gave.

    folder: of the files; None: nothing is kept. A folder that cannot be written is gone without.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        if folder is not None:
            try:
                make_folder(folder)
            except SourceError:
                self.folder = None

    def get(self, name: str, shape: tuple[int, int, int], make: Callable[[], Encoded]) -> Encoded:
        """X of the frame `name`, (Cx, H, W) `shape`: out of its file, or made and kept there. A damaged or outdated file is made again.

        Rounded to float16 either way (2^-11 of the value), so that a frame is the same before and after it is kept.
        """
        path = self.folder / f"{name}.npy" if self.folder is not None else None
        half = read_half(path) if path is not None else None
        if half is None or half.shape != shape:
            x, known = make()
            half = np.where(known, x, np.float32(np.nan)).astype(np.float16)
            if path is not None:
                content = io.BytesIO()
                np.save(content, half)
                try:
                    save(path, content.getvalue(), synced=False)
                except SourceError:
                    if self.folder.exists():  # it may be deleted meanwhile, and comes back with the next data set
                        self.folder = None
        return unpack(half)


def read_half(path: Path) -> np.ndarray | None:
    """The float16 array in a file; None where there is none."""
    try:
        with path.open("rb") as file:
            half = np.lib.format.read_array(file)
    except Exception:  # NumPy's parser fails in many ways on a damaged file
        return None
    return half if half.dtype == np.float16 else None


def unpack(half: np.ndarray) -> Encoded:
    """(Cx, H, W) float16, NaN = unknown -> X and where it is known."""
    known = ~np.isnan(half[0])
    return np.where(known, half, np.float16(0)).astype(np.float32), known
