"""Files that are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from lix_core.errors import SourceError
from lix_core.files import save


def test_a_file_is_new_or_as_it_was_and_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    save(path, b"before")
    whole = Path.write_bytes

    def half(target: Path, content: bytes) -> None:
        whole(target, content[:2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", half)
        with pytest.raises(SourceError, match="cannot write .*report.json: No space left on device; what was written before is whole"):
            save(path, b"after")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    save(path, b"after")
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path]
