"""Reading and writing files, with errors a user can act on."""

from __future__ import annotations

import fcntl
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import yaml

from lix_core.errors import DataError, SourceError, first_line
from lix_core.pixels import decoded


def expanded(path: str | Path) -> Path:
    """The path with `~` resolved; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


class UriPath(type(Path())):
    """A path that reads as it must in a `file:` URI, for libraries that put paths there as they are: `#`, `?` and `%` mean something."""

    def __str__(self) -> str:
        return quote(os.fsencode(self))

    def __fspath__(self) -> str:
        return super().__str__()


def natural_key(text: str) -> list[Any]:
    """Sort key by which frame2 comes before frame10."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", text)]


def files_below(folder: Path, seen: dict[str, None] | None = None) -> Iterator[Path]:
    """The files below a folder, also in folders that are links to elsewhere, each folder once. Raises SourceError where one cannot be read.

    seen: real paths of folders that were entered, the uppermost one first.
    """
    seen = {os.path.realpath(folder): None} if seen is None else seen
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"cannot read {folder}: {error.strerror}") from None
    for entry in entries:
        path = folder / entry.name
        if path.is_dir():
            home = os.path.realpath(path)
            within = entry.is_symlink() and f"{home}{os.sep}".startswith(f"{next(iter(seen))}{os.sep}")
            if home not in seen and not within:
                seen[home] = None
                yield from files_below(path, seen)
        elif path.is_file():
            yield path


def make_folder(path: Path) -> None:
    """Create an output folder, and try whether it can be written, before any work is done. Raises SourceError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SourceError(f"cannot write to output folder {path}: {error.strerror}; name another") from None


def make_place(path: Path) -> None:
    """The same for the folder of an output file, in whose place there must be no folder. Raises SourceError."""
    if path.is_dir():
        raise SourceError(f"{path} is a folder, and a file is to be written: name one in it")
    if not is_device(path):
        make_folder(path.parent)


def make_picture_folder(path: Path) -> None:
    """The same for a picture, whose suffix must be one that `save_image` has. Raises SourceError."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise SourceError(f"a picture is a PNG or JPEG by its suffix, got {path}")
    make_place(path)


@contextmanager
def locked(folder: Path, wait_s: float = math.inf) -> Iterator[bool]:
    """While it lasts no other process gets past here for the same folder. Yields False, and holds nothing, where another one does not leave
    within `wait_s` seconds; True where the file system has no locks.
    """
    handle, end, free = os.open(folder, os.O_RDONLY), time.monotonic() + wait_s, False
    try:
        while not (free := locks(handle)) and time.monotonic() < end:
            time.sleep(0.1)
        yield free
    finally:
        if free:
            with suppress(OSError):  # expressly: children that were forked meanwhile have the handle too
                fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def locks(handle: int) -> bool:
    """Whether nobody else has the lock; this process has it then."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def is_device(path: Path) -> bool:
    """Whether a path is that of a device or pipe, in whose place no file is to be put."""
    return path.exists() and not path.is_file() and not path.is_dir()


def save(path: Path, content: bytes, synced: bool = True) -> None:
    """Write a file whole or not at all, whatever other processes write there meanwhile: that which a link leads to, where it is one. What
    is no file, as /dev/stdout, is written to. Raises SourceError.

    synced: whole after a power cut too, which takes the disk some milliseconds. Without, it may be empty then.
    """
    device = is_device(path)  # a link to one, as /dev/stdout, leads nowhere that has a name
    path = path.resolve() if path.is_symlink() and not device else path
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if device:
            path.write_bytes(content)
            return
        temporary.write_bytes(content)
        if synced:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise SourceError(f"cannot write {path}: {error.strerror}; what was written before is whole") from None


def save_image(path: Path, image: np.ndarray) -> None:
    """Write (H, W) uint8 or (H, W, 3) uint8 RGB in the format of the suffix. Raises SourceError."""
    try:
        encoded = cv2.imencode(path.suffix, np.ascontiguousarray(image[..., ::-1] if image.ndim == 3 else image))[1]
        content = encoded.tobytes()
    except (cv2.error, AttributeError) as error:  # formats have limits of size: OpenCV's bindings show them in both ways
        raise SourceError(
            f"an image of {image.shape[1]}x{image.shape[0]} cannot be written as {path.suffix!r}: {first_line(error)}"
        ) from None
    save(path, content, synced=False)  # there are thousands of them


def read_mask(path: Path) -> np.ndarray:
    """(H, W) uint8 class ids of a PNG. Raises DataError where it is missing, or holds colours or wider numbers."""
    if not path.exists():
        raise DataError(f"label {path} is missing")
    try:
        mask = decoded(path.read_bytes(), cv2.IMREAD_UNCHANGED)
    except OSError as error:
        raise DataError(f"cannot read label {path}: {error.strerror}") from None
    if mask is None:
        raise DataError(f"label {path} cannot be decoded; fetch it again")
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(f"label {path} has shape {mask.shape} of {mask.dtype}; ids must be one 8-bit channel, without a palette")
    return mask


class YamlLoader(yaml.SafeLoader):
    """PyYAML's, which takes the last of several values of one key, but for that."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node, lines = super().compose_mapping_node(anchor), {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"):
            line = key.start_mark.line + 1
            if before := lines.get((key.tag, key.value)):
                again = f" and in line {line}" if line != before else ""
                raise yaml.composer.ComposerError(problem=f"the key {key.value} is there twice, in line {before}{again}")
            lines[key.tag, key.value] = line
        return node


def from_yaml(text: str) -> Any:
    """The data in a text. Raises yaml.YAMLError where it is no YAML, a value cannot be (a 99th month), or a key is in one place twice."""
    try:
        return yaml.load(text, YamlLoader)
    except (ValueError, OverflowError, RecursionError) as error:
        raise yaml.YAMLError(first_line(error)) from None
