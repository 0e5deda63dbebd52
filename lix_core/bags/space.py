"""The room that recordings take: free space, the bags of a prefix, and which of them may go."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lix_core.errors import SourceError
from lix_core.files import locks

ABANDONED_S = 3600.0
"""An unfinished bag that nobody holds and has written to for so long was left by a recorder that was killed [s]."""
BAG_FILE = re.compile(r"(\.?metadata\.yaml((\.\d+)?\.part|\.tmp)?|.*\.(mcap|db3)(\.zstd)?(-journal|-wal|-shm)?)$")


@dataclass(frozen=True)
class OwnBag:
    """A bag that a recording made. size: of its files [bytes]. written: when its last message was [s since 1970]. deletable: nobody writes
    it, and nothing of others is in it."""

    path: Path
    size: int
    written: float
    deletable: bool


def free_space(folder: Path) -> int:
    """Bytes free on the disk of a folder, or of the nearest folder above that exists; 0 where it cannot be told."""
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return 0
    return 0


def mount_point(folder: Path) -> Path:
    """Where the disk of a folder is mounted."""
    place = Path(os.path.realpath(folder))
    return next(path for path in (place, *place.parents) if os.path.ismount(path))


def own_bags(folder: Path, prefix: str) -> list[OwnBag]:
    """The bags named <prefix>_<date>_<time>[_<number>] in a folder, in order of their last messages, then by name. Links are not followed,
    and what cannot be looked at is left out.

    A name has the time at which its logger began, so that names alone would put all bags of one logger before those of another.
    """
    pattern = re.compile(re.escape(prefix) + r"_(\d{8})_(\d{6})(?:_(\d+))?")
    found = []
    try:
        paths = list(folder.iterdir())
    except OSError:  # the folder was removed
        paths = []
    for path in paths:
        match = pattern.fullmatch(path.name)
        with suppress(OSError):  # a bag that was removed meanwhile, or cannot be looked at, hides none of the others
            if match and path.is_dir() and not path.is_symlink():
                bag = _own_bag(path)
                found.append(((bag.written, match[1], match[2], int(match[3] or 0)), bag))
    return [bag for _, bag in sorted(found, key=lambda item: item[0])]


def _own_bag(path: Path) -> OwnBag:
    files = {file: file.lstat() for file in path.iterdir()}
    ours = all(BAG_FILE.fullmatch(file.name) and file.is_file() and not file.is_symlink() for file in files)
    newest = max((status.st_mtime for status in files.values()), default=path.stat().st_mtime)
    # Whoever ends a bag later, as `lix bag repair` does, adds metadata.yaml.
    written = max((status.st_mtime for file, status in files.items() if "metadata.yaml" not in file.name), default=newest)
    finished = path / "metadata.yaml" in files or (time.time() - newest > ABANDONED_S and not is_held(path))
    return OwnBag(path, sum(status.st_size for status in files.values()), written, ours and finished)


def hold(bag: Path) -> int:
    """Mark a bag as being written, for other processes too, until the descriptor that is returned is closed; a killed process holds none.

    Raises OSError.
    """
    folder = os.open(bag, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks: the age of what was written last must do
        fcntl.flock(folder, fcntl.LOCK_SH)
    return folder


def is_held(bag: Path) -> bool:
    """Whether somebody is writing a bag, however long ago the last message came. Raises OSError where it is gone."""
    folder = os.open(bag, os.O_RDONLY)
    try:
        return not locks(folder)
    finally:
        os.close(folder)


def delete_bag(bag: Path) -> None:
    """Delete the files of a bag, which nobody must be writing, and its folder, which must hold nothing else. Raises SourceError."""
    try:
        if is_held(bag):
            raise SourceError(f"bag {bag} is not deleted: another process is writing it")
        for file in bag.iterdir():
            if BAG_FILE.fullmatch(file.name):
                file.unlink()
        bag.rmdir()
    except OSError as error:
        raise SourceError(f"cannot delete bag {bag}: {error.strerror}") from None
