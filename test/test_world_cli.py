"""`lix world`, started as users start it: the same bytes however it is run, and a tree that can always go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("embreex", reason="the extra `sim` is not installed")

from typer.testing import CliRunner

from lix_core.cli import main
from lix_core.errors import LixError
from lix_core.files import save_image
from lix_core.world.drive import Drive
from lix_core.world.folder import FILES, WorldFolder
from lix_core.world.source import rig_of
from lix_core.world.weather import WEATHERS
from trees import contents

ROOT = Path(__file__).resolve().parents[1]
SIZE = "64x48"
FRAMES, PER_SCENE = 12, 6
OPTIONS = ("--frames", FRAMES, "--frames-per-scene", PER_SCENE, "--size", SIZE, "--seed", 5)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lix_core.cli.main", "world", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "COLUMNS": "200"}


def world(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=240, env=environment(), **options)


def marks(folder: Path) -> int:
    """How many frames are whole."""
    return len(list(folder.glob("Scene*/*/frames/meta/*.json")))


def in_this_process(*arguments: object) -> str:
    """What the command prints; raises what it raises."""
    result = CliRunner().invoke(main.app, ["world", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames of two streets, rendered in one go by one process."""
    out = tmp_path_factory.mktemp("world") / "rendered"
    output = in_this_process("render", "--out", out, *OPTIONS, "--jobs", 1)
    assert f"12 frames of 2 streets in {out} (12 rendered, " in output.replace("\n", "") and "frames/s" in output
    return out


def test_the_files_are_the_frames_of_the_drive(rendered: Path) -> None:
    folder, drive = WorldFolder.open(rendered), Drive(5, rig_of(SIZE), frames_per_scene=PER_SCENE)
    for index in (7, 9):
        found, truth = folder[index], drive.frame(index)
        for name in ("depth", "labels", "instances", "cloud", "world_from_camera"):
            np.testing.assert_array_equal(getattr(found, name), getattr(truth, name))
        assert (found.weather, found.scene_seed, found.camera) == (truth.weather, truth.scene_seed, truth.camera)
        assert np.abs(found.rgb.astype(int) - truth.rgb).mean() < 4


def test_two_processes_write_the_same_bytes_as_one(rendered: Path, tmp_path: Path) -> None:
    done = world("render", "--out", tmp_path / "w", *OPTIONS, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "w") == contents(rendered)


def test_what_was_stopped_and_killed_goes_on_and_ends_as_if_it_had_not(tmp_path: Path) -> None:
    # So many and so large that on a busy machine they are not done before this process gets to look.
    frames = 5 * FRAMES
    options = [*OPTIONS, "--frames", frames, "--frames-per-scene", 5 * PER_SCENE, "--size", "320x128"]
    out = tmp_path / "w"
    whole = 0
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        # What is started in the background of a shell ignores Ctrl-C, and so would its children.
        listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        started = {"stderr": subprocess.PIPE, "env": environment(), "start_new_session": True, "preexec_fn": listens}
        with subprocess.Popen(command("render", "--out", out, *options, "--jobs", 2), **started) as process:
            end = time.monotonic() + 60
            while marks(out) <= whole:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.002)
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # as a terminal does on Ctrl-C
            else:
                process.kill()
            _, errors = process.communicate(timeout=60)
        assert process.returncode == status
        assert b"Traceback" not in errors
        time.sleep(0.3 if number == signal.SIGKILL else 0.0)  # orphans see that they are, at the end of their frame
        whole = marks(out)
        time.sleep(0.3)
        assert marks(out) == whole < frames, "a worker outlived its parent"
    assert f"({frames - whole} rendered, " in in_this_process("render", "--out", out, *options, "--jobs", 1).replace("\n", "")
    in_this_process("render", "--out", tmp_path / "reference", *options, "--jobs", 1)
    assert contents(out) == contents(tmp_path / "reference")


def test_a_whole_folder_is_left_as_it_is(rendered: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in rendered.rglob("frames/**/*.*")}
    assert "(all were there)" in in_this_process("render", "--out", rendered, *OPTIONS).replace("\n", "")
    assert {p: p.stat().st_mtime_ns for p in rendered.rglob("frames/**/*.*")} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seed", 6), "seed is 5 there, 6 here"),
        (("--weather", "night"), 'weather is "" there, "night" here'),
        (("--frames", 5), "is of 12 frames, 5 are asked for"),
        (("--size", "64x40"), "rig.camera.height is 48 there, 40 here"),
        (("--size", "0x192"), "a size is width x height of 32 to 4096 pixels each, as 640x192; got '0x192'"),
        (("--size", "big"), "got 'big'"),
        (("--spacing", "0"), "spacing"),
        (("--spacing", "nan"), "spacing"),
        (("--out", "/proc/world"), "cannot write to output folder /proc/world"),
    ],
)
def test_what_cannot_be_done_is_told_and_changes_nothing(rendered: Path, arguments: tuple, words: str) -> None:
    before = contents(rendered)
    with pytest.raises(LixError) as error:
        in_this_process("render", "--out", rendered, *OPTIONS, *arguments)
    assert words in str(error.value)
    assert contents(rendered) == before


def test_an_unknown_weather_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(LixError) as error:
        in_this_process("render", "--out", tmp_path / "w", "--weather", "meteors")
    assert "'meteors'" in str(error.value) and all(name in str(error.value) for name in WEATHERS)
    assert not (tmp_path / "w").exists()


def test_a_preview_that_is_no_picture_is_refused_before_anything_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drive, "frame", lambda *_: pytest.fail("rendered"))
    with pytest.raises(LixError, match=r"a picture is a PNG or JPEG by its suffix, got .*new/x.txt"):
        in_this_process("preview", "--out", tmp_path / "new" / "x.txt")
    assert not (tmp_path / "new").exists()
    with pytest.raises(LixError, match=r"^an image of 3x2 cannot be written as '.txt': [^\n]*$"):
        save_image(tmp_path / "x.txt", np.zeros((2, 3, 3), np.uint8))


def test_a_full_disk_ends_all_processes_with_a_reason(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: both make a write fail."""
    limited = f"""
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
sys.argv = {command("render", "--out", tmp_path / "w", *OPTIONS, "--jobs", 2)[2:]!r}
runpy.run_module("lix_core.cli.main", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr and "the same command goes on" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob(".*.part"))


def test_without_the_ray_caster_the_cure_is_named(tmp_path: Path) -> None:
    (tmp_path / "embreex").mkdir()
    (tmp_path / "embreex" / "__init__.py").write_text("raise ImportError('none')")
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    for arguments in (("render", "--out", tmp_path / "w"), ("preview", "--out", tmp_path / "w.png")):
        done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, env={**environment(), "PYTHONPATH": path})
        assert done.returncode == 2 and "pip install -c constraints.txt -e '.[sim]'" in done.stderr and "Traceback" not in done.stderr


def test_a_preview_shows_every_sensor_of_every_street(tmp_path: Path) -> None:
    in_this_process("preview", "--out", tmp_path / "a.png", "--frames", 2, "--size", "96x48", "--seed", 1)
    sheet = cv2.imread(str(tmp_path / "a.png"))
    assert sheet.shape[1] > 2 * 400 and sheet.shape[0] > 8 * 200
    assert sheet.reshape(-1, 3).std(axis=0).min() > 20


def test_every_file_of_the_layout_is_there(rendered: Path) -> None:
    names = set(contents(rendered))
    homes = {name.split("/frames/")[0] for name in names if "/frames/" in name}
    assert len(homes) == 2
    expected = {f"{home}/frames/{file.format(n)}" for home in homes for file in FILES.values() for n in range(PER_SCENE)}
    expected |= {f"{home}/{text}" for home in homes for text in ("colors.txt", "extrinsic.txt", "intrinsic.txt")}
    assert names == expected | {"world.json"}
