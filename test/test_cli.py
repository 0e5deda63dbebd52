"""The command line, started as users start it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest

import bundles
from lix_core.cli import main
from lix_core.files import save_image
from lix_core.labels import Label, LabelSet
from lix_core.runtime.bundle import XSpec

ROOT = Path(__file__).resolve().parents[1]


def lix(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "lix_core.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **environment},
    )


def installed() -> bool:
    try:
        return bool(metadata.requires("lix"))
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return bundles.camera_bundle(metrics={"test": {"miou": 0.5}}).save(tmp_path / "models" / "tiny.lix")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"frame{index}.png"), bundles.random_image(30, 40, index)[..., ::-1])
    return folder


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return image if image.ndim == 2 else image[..., ::-1]


def test_predict_writes_masks_by_stem(model: Path, images: Path, tmp_path: Path) -> None:
    done = lix("predict", images, "--out", tmp_path / "out", "--output", "mask", "--model", model)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["frame0.png", "frame1.png", "frame2.png", "labels.json"]
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert LabelSet.from_dict(labels) == bundles.COLOURS
    for index in range(3):
        mask = read(tmp_path / "out" / f"frame{index}.png")
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, bundles.nearest_colour(bundles.random_image(30, 40, index)))


def test_predict_color_npz_and_overlay(model: Path, images: Path, tmp_path: Path) -> None:
    image = images / "frame0.png"
    expected = bundles.nearest_colour(bundles.random_image(30, 40, 0))
    plain = np.full((32, 48, 3), (200, 60, 40), np.uint8)
    cv2.imwrite(str(tmp_path / "plain.png"), plain[..., ::-1])
    for output in ("color", "npz"):
        assert lix("predict", image, "-o", tmp_path / output, "--output", output, "--model", model).returncode == 0
    np.testing.assert_array_equal(read(tmp_path / "color" / "frame0.png"), bundles.PALETTE[expected])
    with np.load(tmp_path / "npz" / "frame0.npz") as arrays:
        np.testing.assert_array_equal(arrays["mask"], expected)
        np.testing.assert_allclose(arrays["confidence"], bundles.winner_probability(bundles.random_image(30, 40, 0)), atol=1e-3)
    given = ("--output", "overlay", "--alpha", 0.25, "--model", model)
    assert lix("predict", tmp_path / "plain.png", "-o", tmp_path / "overlay", *given).returncode == 0
    blended = 0.75 * plain + 0.25 * bundles.PALETTE[bundles.nearest_colour(plain)]
    assert np.abs(read(tmp_path / "overlay" / "plain.jpg") - blended).max() <= 4  # of JPEG


def test_predict_with_remap_and_threshold(model: Path, images: Path, tmp_path: Path) -> None:
    remap = tmp_path / "remap.yaml"
    remap.write_text("classes: [{name: dark, from: [black]}, {name: rest, from: [red, green, blue, white]}]")
    given = ("--output", "mask", "--model", model, "--remap", remap, "--min-confidence", 0.9)
    assert lix("predict", images / "frame1.png", "-o", tmp_path / "out", *given).returncode == 0
    image = bundles.random_image(30, 40, 1)
    sure = bundles.winner_probability(image)
    expected = np.where(sure < 0.9, 255, np.array([0, 1, 1, 1, 1])[bundles.nearest_colour(image)])
    clear = np.abs(sure - 0.9) > 1e-4
    np.testing.assert_array_equal(read(tmp_path / "out" / "frame1.png")[clear], expected[clear])


def test_predict_never_writes_over_an_image_that_it_is_to_segment(model: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(images)
    before = {path: path.read_bytes() for path in images.iterdir()}
    one, link = images / "frame2.png", tmp_path / "link"
    for given, out, output, words in (
        (one, link, "color", f"a result would overwrite {link}/frame2.png"),
        (images, images, "overlay", f"--out {images} is the folder of the images"),
        (images, link, "color", f"--out {link} is the folder of the images"),
        (one, one, "color", f"cannot write to output folder {one}: File exists; name another"),
    ):
        done = lix("predict", given, "-o", out, "--output", output, "--model", model)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert words in done.stderr and "another" in done.stderr
    assert {path: path.read_bytes() for path in images.iterdir()} == before
    # The overlay of one PNG is a JPEG: beside it, it is in nobody's way.
    assert lix("predict", one, "-o", images, "--model", model).returncode == 0
    assert {path: path.read_bytes() for path in before} == before and (images / "frame2.jpg").exists()


def test_predict_never_writes_over_masks_of_people_or_of_other_classes(model: Path, images: Path, tmp_path: Path) -> None:
    people = tmp_path / "label"
    people.mkdir()
    cv2.imwrite(str(people / "frame0.png"), np.zeros((30, 40), np.uint8))
    before = (people / "frame0.png").read_bytes()
    done = lix("predict", images, "-o", people, "--output", "mask", "--model", model)
    assert done.returncode == 2 and f"{people} holds .png files and no labels.json: it is no folder of results" in done.stderr
    (people / "labels.json").write_text('{"mine": 1}')
    done = lix("predict", images, "-o", people, "--output", "mask", "--model", model)
    assert done.returncode == 2 and f"{people / 'labels.json'} tells of other classes than these results have" in done.stderr
    assert (people / "frame0.png").read_bytes() == before and (people / "labels.json").read_text() == '{"mine": 1}'
    for _ in range(2):  # what it wrote itself it writes again
        assert lix("predict", images, "-o", tmp_path / "out", "--output", "mask", "--model", model).returncode == 0


def test_a_path_that_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    done = lix("predict", "x" * 300, "-o", tmp_path / "out")
    assert done.returncode == 2 and done.stderr == f"lix: {'x' * 300}: File name too long\n"


def test_figures_in_a_pipe_are_whole_and_json_goes_to_stdout_and_through_links(model: Path, images: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    assert lix("predict", images, "-o", labels, "--output", "mask", "--model", model).returncode == 0
    (tmp_path / "there.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "there.json")
    done = lix("evaluate", images, labels, "--model", model, "--json", tmp_path / "link.json", COLUMNS="10")
    assert done.returncode == 0 and "1.000" in done.stdout and all(name in done.stdout for name in bundles.COLOURS.names)
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "there.json").read_text())["miou"] == 1
    done = lix("evaluate", images, labels, "--model", model, "--json", "/dev/stdout")
    assert done.returncode == 0 and json.loads(done.stdout[: done.stdout.index("\n}\n") + 3])["miou"] == 1


def test_a_table_that_is_not_named_is_asked_for() -> None:
    done = lix("reproduce", "--rows", "control")
    assert done.returncode == 2 and "lix: --rows: of which table? There are camvid, " in done.stderr


def test_predict_leaves_out_what_it_cannot_read_and_says_so(model: Path, images: Path, tmp_path: Path) -> None:
    (images / "frame1.png").write_bytes(b"broken")
    done = lix("predict", images, "-o", tmp_path / "out", "--model", model)
    assert done.returncode == 1
    assert "lix: 1 of 3 frames could not be read; the others are done\n" in done.stderr
    assert sorted(p.stem for p in (tmp_path / "out").iterdir()) == ["frame0", "frame2"]
    named = images / f"{'frame' * 20}.png"
    named.write_bytes(b"broken")
    done = lix("predict", named, "-o", tmp_path / "out", "--model", model, COLUMNS="80")
    assert f"left out {named.stem}: {named.name} (6 bytes) cannot be decoded" in done.stderr
    assert done.returncode == 2 and "lix: 1 of 1 frames could not be read\n" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("predict", "/no/such/input", "-o", "out"), "no such input: /no/such/input"),
        (("predict", "IMAGES", "-o", "/proc/out"), "cannot write to output folder /proc/out"),
        (("predict", "IMAGES", "-o", "out", "--model", "nobody"), "no model 'nobody'; known are"),
        (("predict", "IMAGES", "-o", "out", "--backend", "tensorrt"), "unknown backend 'tensorrt'"),
        (("predict", "IMAGES", "-o", "out", "--remap", "/no/remap.yaml"), "cannot read class remap /no/remap.yaml"),
        (("models", "nobody"), "no model 'nobody'"),
        (("evaluate", "IMAGES", "IMAGES", "--json", "IMAGES"), "is a folder, and a file is to be written: name one in it"),
        (("evaluate", "IMAGES", "/no/labels"), "3 of 3 labels are missing in /no/labels: frame0.png, frame1.png, frame2.png\n"),
        (("evaluate", "IMAGES", "l", "--split", "val", "--data", "d"), "lix: leave out --split, --data: only with --run RUN\n"),
        (("evaluate", "--run", "r", "--max-pixels", "0"), "leave out --max-pixels: only for a model on folders, without --run\n"),
    ],
)
def test_errors_are_one_line_and_no_traceback(model: Path, images: Path, tmp_path: Path, arguments: tuple, words: str) -> None:
    given = [str(images) if a == "IMAGES" else a for a in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "lix_core.cli.main", *given],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "LIX_MODEL_PATH": str(model.parent),
        },
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_home_of_a_path_is_found_where_no_shell_has_looked(model: Path, images: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(images, home / "images")
    for out in (("--out=~/a",), ("-o", "~/b"), ("-o~/c",)):
        assert lix("predict", "~/images/frame0.png", *out, "--model", model, HOME=str(home)).returncode == 0
    assert sorted(p.name for p in home.glob("[a-z]*")) == ["a", "b", "c", "images"]
    assert main.at_home("key=~/x") == "key=~/x" and main.at_home("~x") == "~x"


def test_ctrl_c_while_the_command_is_imported_is_no_traceback() -> None:
    stopped = """
import sys
class Stop:
    def find_spec(self, name, *rest):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Stop())
from lix_core.cli.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", stopped], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_models_lists_and_prints_cards(model: Path) -> None:
    listed = lix("models", LIX_MODEL_PATH=str(model.parent))
    assert "tiny" in listed.stdout and "0.500 (test)" in listed.stdout
    assert "tiny" in lix("models", "tiny", LIX_MODEL_PATH=str(model.parent)).stdout
    narrow = lix("models", LIX_MODEL_PATH=str(model.parent), COLUMNS="80").stdout
    assert "\u2026" not in narrow and f"tiny: {model}\n" in narrow


def test_evaluate_scores_one_confusion_matrix(model: Path, images: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    hits = np.zeros(5)
    total = np.zeros(5)
    for index in range(3):
        truth = bundles.nearest_colour(bundles.random_image(30, 40, index))
        wrong = np.where(truth == 1, 2, truth).astype(np.uint8)  # red is called green in the truth
        wrong[:3] = 11  # beyond the classes: not counted
        cv2.imwrite(str(labels / f"frame{index}.png"), wrong)
        for c in range(5):
            seen, said = wrong[3:] == c, truth[3:] == c
            hits[c] += (seen & said).sum()
            total[c] += (seen | said).sum()
    done = lix("evaluate", images, labels, "--model", model, "--json", tmp_path / "score.json")
    assert done.returncode == 0, done.stderr
    score = json.loads((tmp_path / "score.json").read_text())
    assert list(score["iou"].values()) == pytest.approx(list(hits / total), abs=1e-4)
    assert score["miou"] == pytest.approx((hits / total).mean(), abs=1e-4)


def test_evaluate_names_a_label_of_another_size(model: Path, images: Path, tmp_path: Path) -> None:
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"frame{index}.png"), np.zeros((5, 7), np.uint8))
    done = lix("evaluate", images, tmp_path, "--model", model)
    assert done.returncode == 2 and "frame0.png is 7x5, its image " in done.stderr


def test_evaluate_names_all_labels_that_are_missing_before_it_begins(model: Path, images: Path, tmp_path: Path) -> None:
    for index in range(3, 10):
        shutil.copy(images / "frame0.png", images / f"frame{index}.png")
    (tmp_path / "labels").mkdir()
    cv2.imwrite(str(tmp_path / "labels" / "frame0.png"), np.zeros((5, 7), np.uint8))
    done = lix("evaluate", images, tmp_path / "labels", "--model", model, "--json", tmp_path / "new" / "score.json")
    names = ", ".join(f"frame{index}.png" for index in range(1, 6))
    assert done.stderr == f"lix: 9 of 10 labels are missing in {tmp_path / 'labels'}: {names}, ...\n"
    assert (done.returncode, (tmp_path / "new").is_dir()) == (2, True)


@pytest.mark.parametrize(
    ("training", "refused"),
    [({"config": {"data": {"x_dropout": 0.0}}}, True), ({"config": {"data": {"x_dropout": 0.1}}}, False), ({}, False)],
)
def test_evaluate_says_that_a_teacher_is_without_its_x(images: Path, tmp_path: Path, training: dict, refused: bool) -> None:
    teacher = bundles.camera_bundle(x=XSpec("normals", 3), training=training).save(tmp_path / "teacher.lix")
    labels = tmp_path / "labels"
    labels.mkdir()
    for index in range(3):
        cv2.imwrite(str(labels / f"frame{index}.png"), np.zeros((30, 40), np.uint8))
    done = lix("evaluate", images, labels, "--model", teacher, "--json", tmp_path / "score.json")
    predicted = lix("predict", images, "--model", teacher, "--out", tmp_path / "out")
    warned = "never was without normals: what it says of images alone means nothing" in predicted.stderr
    assert (predicted.returncode, warned) == (0, refused), predicted.stderr
    if refused:
        assert done.returncode == 2 and "is a teacher that never was without normals" in done.stderr
        assert not (tmp_path / "score.json").exists()
    else:
        assert done.stdout.endswith(", without normals)\n"), done.stdout + done.stderr
        assert json.loads((tmp_path / "score.json").read_text())["backend"].endswith(", without normals")


def test_evaluate_refuses_colours_for_labels(model: Path, images: Path) -> None:
    done = lix("evaluate", images, images, "--model", model)
    assert (done.returncode, "ids must be one 8-bit channel" in done.stderr) == (2, True)


def test_names_in_brackets_are_shown_as_they_are(images: Path, tmp_path: Path) -> None:
    names = ("car [parked]", "pole[/x]", "[red]", "b", "c")
    labels = LabelSet("odd", tuple(Label(name, (10 * i, 0, 0)) for i, name in enumerate(names)))
    path = bundles.camera_bundle(name="odd", labels=labels).save(tmp_path / "odd.lix")
    truth = tmp_path / "truth"
    truth.mkdir()
    for image in images.iterdir():
        save_image(truth / f"{image.stem}.png", np.zeros(cv2.imread(str(image)).shape[:2], np.uint8))
    done = lix("evaluate", images, truth, "--model", path)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in names)


def test_an_odd_bundle_spoils_only_its_own_line(model: Path) -> None:
    bundles.camera_bundle(name="odd", licence="[/red]", metrics={"test": {"miou": None}}).save(model.parent / "odd.lix")
    done = lix("models", LIX_MODEL_PATH=str(model.parent))
    assert done.returncode == 0, done.stderr
    assert "[/red]" in done.stdout and "0.500 (test)" in done.stdout


def test_doctor_reports_and_is_well_here() -> None:
    done = lix("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "onnxruntime" in done.stdout and "street" in done.stdout


@pytest.mark.skipif(not installed(), reason="lix is not installed: its extras are not known")
def test_an_extra_that_is_not_installed_is_named_in_one_line(tmp_path: Path) -> None:
    masked = "import sys; sys.modules['torch'] = None; from lix_core.cli.main import main; main()"
    arguments = ("train", "student", "world_lix", "--out", tmp_path / "run")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", masked, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 2, done.stderr
    assert "lix: this needs torch, which the extra `train` brings: pip install" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_help_names_every_command() -> None:
    text = lix("--help").stdout
    for command in ("predict", "models", "evaluate", "doctor"):
        assert command in text
