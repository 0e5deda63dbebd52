"""Files that are written, and that are found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from lix_core.errors import SourceError
from lix_core.files import files_below, from_yaml, make_place, save


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


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    make_place(path)
    save(path, b"figures")
    assert os.read(reader, 100) == b"figures" and path.is_fifo() and list(tmp_path.iterdir()) == [path]
    os.close(reader)


def test_files_are_found_behind_links_to_folders_once(tmp_path: Path) -> None:
    for name in ("root/a/1", "root/2", "disk/b/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    links = {"x": "disk", "y": "disk/b", "latest": "root/a", "a/up": "root", "gone": "nothing", "self": "root/self", "4": "root/2"}
    for name, target in links.items():
        (tmp_path / "root" / name).symlink_to(tmp_path / target)
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "root" / "a")
    found = [path.relative_to(tmp_path / "root").as_posix() for path in files_below(tmp_path / "root")]
    assert found == ["2", "4", "a/1", "x/b/3"]
    with pytest.raises(SourceError, match="cannot read .*nowhere: No such file"):
        list(files_below(tmp_path / "nowhere"))


def test_yaml_is_that_of_pyyaml_but_for_keys_that_are_there_twice() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, <<: *a, y: 4}\n1: one\n'1': text\n"
    found = from_yaml(text)
    assert found == yaml.safe_load(text) and found["b"] == {"x": 3, "y": 2} and found["c"]["y"] == 4 and found[1] != found["1"]
    with pytest.raises(yaml.YAMLError, match="the key x is there twice, in line 3 and in line 5"):
        from_yaml("a:\n- b:\n    x: 1\n    y: 2\n    x: 1\n")


@pytest.mark.parametrize("text", ["lr: 2024-99-99", "a: !!int foo", "a: " + 5000 * "["])
def test_values_that_cannot_be_are_no_yaml(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        from_yaml(text)
