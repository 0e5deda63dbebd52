"""`lix retrain`: a bag of another domain makes a better model there, step by step, and only a better model is taken."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from typer.testing import CliRunner

import tiny_street
from bundles import COLOURS, PALETTE, camera_bundle
from lix_core.bags.extract import extract
from lix_core.bags.index import Options
from lix_core.bags.pseudo import PseudoSettings
from lix_core.camera import Camera
from lix_core.cli.main import app
from lix_core.data.bag import BagDataset
from lix_core.errors import BundleError, DataError, LabelError, SourceError, TrainingError
from lix_core.labels import Label, LabelSet
from lix_core.runtime.bundle import Bundle
from lix_core.runtime.segmenter import Segmenter
from lix_core.training import retrain as module
from lix_core.training.config import Source, from_dict
from lix_core.training.provenance import Lineage
from lix_core.training.retrain import (
    NEW,
    OLD,
    Comparison,
    Retraining,
    answer,
    first_of,
    kind_of_labels,
    known_judge,
    matching_lines,
    note_inputs,
    old_frames,
    refuse_other_blocks,
    retrain,
    tuned,
    verdict,
)
from lix_core.training.run import fit
from lix_core.training.weights import load_network
from recorded import PERIOD, START, Recorded, camera_info, image, text, write
from small_networks import use_small_parts
from tiny_street import TINY, TinyStreet

CAMERA = Camera(96, 64, (60.0, 0, 48, 0, 60.0, 32, 0, 0, 1))


NEW_FRAMES, VAL_FRAMES = Source("bag", "x", "train"), Source("bag", "x", "val")


def old_config(kind: str, steps: int) -> object:
    tree = {
        "name": kind,
        "data": {
            "sources": [{"dataset": "tiny", "root": ".", "options": {"noise": 5}}],
            "val": {"dataset": "tiny", "root": ".", "split": "val", "options": {"count": 3}},
            "x": "depth",
            "crop": [64, 96],
            "scale": [1.0, 1.0],
            "colour": 0.0,
            "batch": 4,
            "workers": 0,
        },
        "model": {"kind": kind, "encoder": "mobilenetv3_small_050", "weights": "none"},
        "optim": {"steps": steps, "steps_per_epoch": steps, "warmup": 2, "lr": 1e-2, "encoder_lr": 1.0, "ema": 0.5},
        "trainer": {"accelerator": "cpu", "sheet_frames": 0},
        "distill": {"method": "none", "lix": {"features": ["stage3", "decoder"]}},
    }
    return from_dict(tree)


def line_of(config: object, start: Lineage | None = None) -> Lineage:
    """A run of which no more is asked than its configuration, and that it started from."""
    return Lineage(SimpleNamespace(config=config), start=start)


def write_drive(path: Path, frames: int = 40, labels: bool = True, night: bool = True) -> Path:
    """A bag of the tiny street, at night with inverted colours; depth and labels as they are by day."""
    street, messages = TinyStreet(split="night", x="depth", count=frames, noise=5), []
    messages.append(Recorded("label_names", START, text(TINY.to_dict())))
    for index in range(frames):
        stamp, sample = START + index * PERIOD, street[index]
        depth = np.where(sample.labels == 1, 30, np.where(sample.labels == 0, 8, np.nan)).astype(np.float32)
        messages += [
            Recorded("image", stamp, image(stamp, 255 - sample.image if night else sample.image, "rgb8")),
            Recorded("camera_info", stamp, camera_info(stamp, CAMERA)),
            Recorded("depth", stamp, image(stamp, depth, "32FC1")),
            *([Recorded("labels", stamp, image(stamp, sample.labels, "mono8"))] if labels else []),
        ]
    return write(path, messages)


def once(make_bundle: Callable[..., Any]) -> Callable[..., Any]:
    """`make_bundle` that exports a run once: exporting takes longer than all else."""
    made = {}

    def made_once(run: Path, which: str, name: str, behind: list[Path]) -> Any:
        key = (module.checksum(run), which, name, *behind)
        if key not in made:
            made[key] = make_bundle(run, which, name, behind)
        return made[key]

    return made_once


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """Folders of a teacher and a student of the tiny street by day, and a bag of it by night."""
    root = tmp_path_factory.mktemp("retrain")
    with tiny_street.known(), pytest.MonkeyPatch.context() as patch:
        use_small_parts(patch)
        patch.setattr(module, "make_bundle", once(module.make_bundle))
        for kind in ("teacher", "student"):
            fit(old_config(kind, 30), root / kind, quiet=True)
        write_drive(root / "night")
        yield root


def task_of(old: Path, out: Path, **changes) -> Retraining:
    steps = {"teacher_steps": 15, "student_steps": 30, "lr": 1.0, "block": 0.4, "held_out": 0.25, "forgetting": 1.0}
    return Retraining(**{"bags": (old / "night",), "out": out, "teacher": old / "teacher", "student": old / "student", **steps, **changes})


@pytest.fixture(scope="module")
def retrained(old, tmp_path_factory):
    out, steps = tmp_path_factory.mktemp("out"), []
    found = retrain(task_of(old, out), steps.append, quiet=True)
    assert steps == ["frames of the bags", "teacher", "student", "comparison"]
    return out, found


def test_a_bag_of_another_domain_makes_a_model_that_is_better_there(retrained):
    out, found = retrained
    assert found.better and found.kind == "bag"
    assert found.after[NEW]["miou"] > found.before[NEW]["miou"] + 0.2
    assert json.loads((out / "comparison.json").read_text())["after"] == found.after
    street = TinyStreet(split="other night", count=4, noise=5)
    right = [Segmenter(out / "model.lix").segment(255 - s.image).mask == s.labels for s in (street[i] for i in range(4))]
    assert np.mean(right) > 0.7


def test_the_new_bundle_names_all_that_is_behind_it(retrained):
    out, _ = retrained
    manifest = Bundle.load(out / "model.lix").manifest
    uses = {(entry["use"], entry["name"]) for entry in manifest.data}
    assert {
        ("training", "bag train"),
        ("training of the teacher", "bag train"),
        ("training of the run it started from", "tiny train"),
    } <= uses
    assert manifest.training["teacher"]["start"]["run"] == "teacher" and manifest.training["start"]["run"] == "student"


def test_the_report_has_the_figures_of_both_and_a_picture(retrained):
    out, found = retrained
    text = (out / "report.md").read_text()
    before, after = found.before[NEW]["miou"], found.after[NEW]["miou"]
    assert f"| **mean** | {before:.3f} | {after:.3f} | {100 * (after - before):+.1f} |" in text
    assert "| night | 40 | 40 | 40 | 0 |" in text and f"## IoU on {OLD}" in text and "labels of kind `bag`" in text
    assert (out / "report.jpg").stat().st_size > 5000


@pytest.fixture(scope="module")
def old_bundles(old):
    """The bundles of both old runs, which do not say where their data is."""
    return {kind: module.make_bundle(old / kind, "best", "", [])[0].save(old / f"{kind}.lix") for kind in ("teacher", "student")}


def test_bundles_are_retrained_as_their_runs(retrained, old, old_bundles, tmp_path):
    task = task_of(old, tmp_path / "out", **old_bundles, data={"tiny": "."})
    found = retrain(task, quiet=True)
    assert found.before == retrained[1].before and found.better and found.after[NEW]["miou"] > found.before[NEW]["miou"] + 0.2
    of_runs, of_bundles = (Bundle.load(out / "model.lix").manifest for out in (retrained[0], tmp_path / "out"))
    assert of_bundles.data == of_runs.data and of_bundles.licence == of_runs.licence
    for key in ("start", "teacher"):
        ours, theirs = of_bundles.training[key], of_runs.training[key]
        assert ours["run"] == theirs["run"] and ours["metrics"].keys() == theirs["metrics"].keys()
    start = of_bundles.training["start"]
    assert start["sha256"] == hashlib.sha256(old_bundles["student"].read_bytes()).hexdigest()
    assert start["metrics"] == Bundle.load(old_bundles["student"]).manifest.metrics
    new = replace(task, student=tmp_path / "out" / "model.lix", teacher=tmp_path / "out" / "teacher", behind=(task.teacher,))
    lines = matching_lines(replace(new, data={"tiny": ".", "bag": "x"}))
    first = first_of(lines["student"])
    assert first.name == "student" and first.data.val.root == "."  # of the run before the last retraining
    bags = {name: line.record.config.data.sources[-1].root for name, line in lines.items()}
    assert bags == {"teacher": str(tmp_path / "out" / "extraction"), "student": "x"}  # a run folder knows where its bags' frames are
    with pytest.raises(TrainingError, match="the student was trained on bags that its bundle does not name, .*: give --held-out 0.25"):
        refuse_other_blocks(
            replace(new, share=1.0, held_out=0.5, out=task.out), {"student": matching_lines(replace(new, share=1.0))["student"]}
        )


def test_data_of_bundles_is_asked_for_where_it_is_trained_on(old, old_bundles, tmp_path, monkeypatch):
    task = task_of(old, tmp_path / "out", **old_bundles)
    with pytest.raises(
        TrainingError, match="teacher.lix does not say where tiny is, .* --data tiny=FOLDER, or train on new frames .*--share 1"
    ):
        retrain(task, quiet=True)
    with pytest.raises(TrainingError, match="--data camvid: the old runs had tiny"):
        retrain(replace(task, data={"camvid": "."}), quiet=True)
    with pytest.raises(TrainingError, match="student.lix does not say where tiny is"):  # a teacher that stays as it is needs none
        retrain(replace(task, teacher_steps=0), quiet=True)
    lines = []
    found = retrain(replace(task, share=1.0, teacher_steps=0, student_steps=2), quiet=True, tell=lines.append)
    assert any(f"no {OLD}" in line for line in lines) and list(found.before) == [NEW]
    with pytest.raises(TrainingError, match="student.lix is the run of a student, not of a teacher"):
        retrain(replace(task, teacher=old_bundles["student"]), quiet=True)


def test_nothing_is_done_twice(retrained, old, monkeypatch):
    out, found = retrained
    monkeypatch.setattr(module, "make_bundle", lambda *_: pytest.fail("exported again"))
    monkeypatch.setattr("lix_core.training.run.Run.train", lambda *_: pytest.fail("trained again"))
    assert retrain(task_of(old, out), quiet=True).after == found.after


def test_pseudo_labels_of_the_old_teacher_do_where_nobody_labelled_and_what_is_not_better_is_not_taken(old, tmp_path):
    write_drive(tmp_path / "bare", frames=12, labels=False)
    steps = []
    changes = {"teacher_steps": 0, "student_steps": 1, "gain": 1.0, "held_out": 0.4, "share": 0.3}
    task = task_of(old, tmp_path / "out", bags=(tmp_path / "bare",), **changes)
    found = retrain(task, steps.append, quiet=True)
    assert steps == ["frames of the bags", "pseudo-labels", "student", "comparison"] and found.kind == "pseudo"
    assert not found.better and "not more than 100.0" in found.why and not (tmp_path / "out" / "model.lix").exists()
    report = (tmp_path / "out" / "report.md").read_text()
    assert "**Not taken: " in report and "pseudo-labels, which favour a model trained with them" in report
    assert "25% of each batch new frames" in report  # one of four


def test_a_model_that_was_taken_and_is_no_more_goes_with_a_word(retrained, old, tmp_path):
    shutil.copytree(retrained[0], tmp_path / "out")
    found = retrain(task_of(old, tmp_path / "out", gain=1.0), quiet=True)
    assert not found.better and not (tmp_path / "out" / "model.lix").exists()
    words = "model.lix, taken by an earlier comparison, is removed, candidate.lix is the same"
    assert found.why.endswith(words) and words in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "candidate.lix").read_bytes() == (retrained[0] / "model.lix").read_bytes()
    (tmp_path / "out" / "inputs.json").write_text('{"a":')
    with pytest.raises(TrainingError, match="inputs.json cannot be read .*, so nobody knows what the runs are made of"):
        retrain(task_of(old, tmp_path / "out"), quiet=True)


@pytest.mark.parametrize("name", ["report.md", "model.lix"])
def test_files_that_no_retraining_wrote_are_not_replaced(old, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(TrainingError, match=f"{name} is there, and of no retraining"):
        retrain(task_of(old, tmp_path), quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_held_out_frames_without_a_label_are_told_before_anything_is_trained(old, tmp_path, monkeypatch):
    monkeypatch.setattr("lix_core.training.run.Run.train", lambda *_: pytest.fail("trained"))
    task = task_of(old, tmp_path / "out", bags=(write_drive(tmp_path / "bare", 12, labels=False),), held_out=0.4)
    extract(list(task.bags), task.out / "extraction", Options(), 1)
    masks = task.out / "extraction" / "masks"
    (masks / "bare").mkdir(parents=True)
    (masks / "labels.json").write_text(TINY.to_json())
    for name in BagDataset(task.out / "extraction", "val", labels="none", held_out=0.4, block=0.4).names:
        cv2.imwrite(str(masks / f"{name}.png"), np.full((64, 96), 255, np.uint8))
    with pytest.raises(TrainingError, match="no pixel of the held-out frames of the bags has a label .masks., so that .* label others"):
        retrain(task, quiet=True)


def test_old_data_keep_their_share_of_every_batch_and_the_schedule_is_the_tasks(old, tmp_path):
    task = task_of(old, tmp_path, share=0.25, lr=0.1, overrides=("optim.ema=0.7",))
    config = tuned(task, line_of(load_network(old / "student")[1].config), NEW_FRAMES, VAL_FRAMES, 7, "student")
    assert [(s.dataset, s.per_batch) for s in config.data.sources] == [("tiny", 0), ("bag", 1)]
    assert (config.optim.steps, config.optim.lr, config.optim.ema, config.distill.method) == (7, pytest.approx(1e-3), 0.7, "lix")
    assert (config.data.val.split, config.data.val.dataset) == ("val", "bag")
    assert tuned(task, line_of(config), NEW_FRAMES, None, 7, "student").data.val is None
    alone = tuned(replace(task, share=1.0), line_of(config), NEW_FRAMES, VAL_FRAMES, 7, "student")
    assert [s.dataset for s in alone.data.sources] == ["bag"]
    blind = old_config("student", 30)  # trained from labels alone: its new teacher sees X
    blind.data.x = ""
    assert [tuned(task, line_of(blind), NEW_FRAMES, None, 7, "student", x).data.x for x in ("", "depth")] == ["", "depth"]
    with pytest.raises(TrainingError, match="name=week1: by their names"):
        task_of(old, tmp_path, overrides=("name=week1",))


@pytest.mark.parametrize(("steps", "epoch", "warmup"), [(9, 9, 0), (15, 15, 1), (80, 30, 2)])
def test_a_shorter_run_has_shorter_epochs_and_a_shorter_warm_up(tmp_path, steps, epoch, warmup):
    task, config = Retraining((), tmp_path, tmp_path, tmp_path), old_config("student", 30)
    config.data.test = VAL_FRAMES
    optim = tuned(task, line_of(config), NEW_FRAMES, VAL_FRAMES, steps, "student").optim
    assert (optim.steps, optim.steps_per_epoch, optim.warmup, optim.lr) == (steps, epoch, warmup, pytest.approx(3e-3))
    assert tuned(task, line_of(config), NEW_FRAMES, VAL_FRAMES, steps, "student").data.test is None
    config.data.sources[0].per_batch = 4  # a quota of the old run, which there is no room for
    assert [s.per_batch for s in tuned(task, line_of(config), NEW_FRAMES, None, steps, "student").data.sources] == [0, 2]
    assert tuned(task, line_of(old_config("teacher", 30)), NEW_FRAMES, None, steps, "teacher").distill.method == "none"


def test_what_a_model_says_is_compared_in_the_ids_of_the_data():
    names = ("white", "green", "black", "cyan")
    labels = LabelSet("other", tuple(Label(name, (i, i, i)) for i, name in enumerate(names)))
    assert answer(Segmenter(camera_bundle()), PALETTE[None], labels).tolist() == [[2, 255, 1, 255, 0]]
    assert answer(Segmenter(camera_bundle()), PALETTE[None], COLOURS).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("after", "gain", "taken", "why"),
    [
        ((0.6, 0.7), 0.0, True, "+10.0 mIoU points on held-out frames of the bags, -2.0 on old validation frames"),
        ((0.6, 0.6), 0.0, False, "-12.0 on old validation frames: it may lose 3.0 there"),
        ((0.6, 0.7), 0.2, False, "not more than 20.0"),
        ((0.6, 0.69), 0.0, True, "-3.0 on old validation frames"),  # just what it may lose
        ((0.8, 0.7), 0.3, False, "+30.0 mIoU points on held-out frames of the bags: not more than 30.0"),
        ((0.5, 0.9), 0.0, False, "+0.0 mIoU points"),
    ],
)
def test_a_model_is_taken_where_it_gains_enough_and_forgets_little(tmp_path, after, gain, taken, why):
    figures = Comparison("bag", {NEW: {"miou": 0.5}, OLD: {"miou": 0.72}}, {NEW: {"miou": after[0]}, OLD: {"miou": after[1]}})
    better, words = verdict(Retraining((), tmp_path, tmp_path, tmp_path, gain=gain), figures)
    assert better is taken and why in words


def test_a_batch_keeps_room_for_old_frames_whatever_its_size(old, tmp_path):
    config = load_network(old / "student")[1].config
    tasks = [task_of(old, tmp_path, share=share, overrides=(f"data.batch={batch}",)) for share, batch in ((0.5, 2), (0.9, 2), (0.5, 1))]
    for task in tasks[:2]:
        assert [s.per_batch for s in tuned(task, line_of(config), NEW_FRAMES, None, 7, "student").data.sources] == [0, 1]
    with pytest.raises(TrainingError, match="a batch of 1 has no room for new frames"):
        tuned(tasks[2], line_of(config), NEW_FRAMES, None, 7, "student")


def test_frames_on_which_nothing_is_labelled_make_no_model_better(tmp_path):
    nothing = Comparison("bag", {NEW: {"miou": None}}, {NEW: {"miou": None}})
    assert verdict(Retraining((), tmp_path, tmp_path, tmp_path), nothing)[0] is False


def test_a_folder_is_not_gone_on_with_for_other_bags_or_runs(retrained, old):
    out, _ = retrained
    with pytest.raises(TrainingError, match="were trained with other teacher; name another folder"):
        note_inputs(task_of(old, out, teacher=old / "student"), "bag")
    with pytest.raises(TrainingError, match="were trained with other labels, pseudo; name"):
        note_inputs(task_of(old, out), "pseudo")
    note_inputs(task_of(old, out, gain=0.5, pseudo=PseudoSettings(confidence=0.5)), "bag")


def test_masks_of_some_frames_and_pseudo_labels_of_the_others_train_together(old, tmp_path):
    """As docs/retrain.md has it: people label what is held out, which is then what decides; the rest learns from the teacher."""
    write_drive(tmp_path / "bare", frames=12, labels=False, night=False)
    task = task_of(old, tmp_path / "out", bags=(tmp_path / "bare",), teacher_steps=0, student_steps=1, held_out=0.4)
    lix = partial(CliRunner().invoke, app, catch_exceptions=False)
    assert lix(["bag", "extract", str(tmp_path / "bare"), "--out", str(task.out / "extraction")]).exit_code == 0
    (tmp_path / "t.json").write_text(TINY.to_json())
    given = [
        "bag",
        "label",
        str(task.out / "extraction"),
        "--export",
        "png",
        "--out",
        str(tmp_path / "people"),
        "--label-set",
        str(tmp_path / "t.json"),
    ]
    assert lix([*given, "--held-out", "0.4", "--block", "0.4"]).exit_code == 0
    held = sorted(int(path.stem) for path in (tmp_path / "people" / "images").rglob("*.png"))
    street = TinyStreet(split="night", x="depth", count=12, noise=5)
    for stamp in held:
        path = tmp_path / "people" / "masks" / "bare" / f"{stamp}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), street[(stamp - START) // PERIOD].labels)
    assert lix(["bag", "label", str(task.out / "extraction"), "--masks", str(tmp_path / "people")]).exit_code == 0
    assert kind_of_labels(task) == ("best", True)
    steps = []
    found = retrain(task, steps.append, quiet=True)
    assert steps == ["frames of the bags", "pseudo-labels", "student", "comparison"] and found.kind == "masks"
    config = load_network(task.out / "student")[1].config
    train = BagDataset(config.data.sources[1].root, "train", **config.data.sources[1].options)
    val = BagDataset(config.data.val.root, "val", **config.data.val.options)
    assert sorted(int(name.split("/")[1]) for name in val.names) == held and 0 < len(train.names) <= 12 - len(held)


def test_masks_of_training_frames_alone_leave_the_comparison_to_pseudo_labels(old, tmp_path):
    task = task_of(old, tmp_path / "out", bags=(write_drive(tmp_path / "bare", 12, labels=False),), held_out=0.4)
    extract(list(task.bags), task.out / "extraction", Options(), 1)
    masks = task.out / "extraction" / "masks"
    first = BagDataset(task.out / "extraction", "train", labels="none", held_out=0.4, block=0.4).names[0]
    (masks / "bare").mkdir(parents=True)
    cv2.imwrite(str(masks / f"{first}.png"), TinyStreet(split="night", count=1)[0].labels)
    (masks / "labels.json").write_text(TINY.to_json())
    assert kind_of_labels(task) == ("best", True) and known_judge(task, load_network(old / "student")[1]) is None


def test_masks_that_lack_a_class_of_the_models_judge_and_judge_again(old, tmp_path):
    """People drew what they saw, by their names for it; the command that is given again goes on with the run that the same frames chose."""
    bare = write_drive(tmp_path / "bare", 12, labels=False, night=False)
    task = task_of(old, tmp_path / "out", bags=(bare,), held_out=0.4, teacher_steps=0, student_steps=1)
    extract(list(task.bags), task.out / "extraction", Options(), 1)
    masks, street = task.out / "extraction" / "masks", TinyStreet(split="night", x="depth", count=12, noise=5)
    held = BagDataset(task.out / "extraction", "val", labels="none", held_out=0.4, block=0.4).names
    (masks / "bare").mkdir(parents=True)
    for name in held:  # ids: 0 tractor, 1 ground, 2 sky
        truth = street[(int(name.split("/")[1]) - START) // PERIOD].labels
        cv2.imwrite(str(masks / f"{name}.png"), np.choose(np.minimum(truth, 3), [1, 255, 2, 255]).astype(np.uint8))
    drawn = LabelSet("masks", (Label("tractor", (9, 9, 9)), Label("Ground", TINY.labels[0].color), TINY.labels[2]))
    (masks / "labels.json").write_text(drawn.to_json())
    kind, frames = known_judge(task, load_network(old / "student")[1])
    assert (kind, frames.labels, frames.names) == ("masks", TINY, held)
    truth = street[(int(held[0].split("/")[1]) - START) // PERIOD].labels
    assert np.array_equal(frames[0].labels, np.where(truth == 1, 255, truth))
    told = []
    first = retrain(task, quiet=True, tell=told.append)
    assert first.kind == "masks" and first.before[NEW]["iou"]["sky"] is not None
    (lost,) = (text for text in told if "tractor" in text)
    assert lost == "labels 'masks': left unlabelled, as no class has the name: tractor"
    assert f"- L{lost[1:]}.\n" in (task.out / "report.md").read_text()
    again = retrain(task, quiet=True)
    assert again == first and load_network(task.out / "student")[1].config.data.val.options["labels"] == "masks"


def test_labels_that_cannot_judge_are_an_error_and_no_reason_to_take_others(old, tmp_path):
    task = task_of(old, tmp_path / "out", bags=(write_drive(tmp_path / "bare", 12, labels=False),), held_out=0.4)
    extract(list(task.bags), task.out / "extraction", Options(), 1)
    masks = task.out / "extraction" / "masks"
    (masks / "bare").mkdir(parents=True)
    for name in BagDataset(task.out / "extraction", "val", labels="none", held_out=0.4, block=0.4).names:
        cv2.imwrite(str(masks / f"{name}.png"), np.zeros((64, 96), np.uint8))
    with pytest.raises(DataError, match="masks/labels.json is missing: it says what the ids mean"):
        known_judge(task, load_network(old / "student")[1])
    (masks / "labels.json").write_text(LabelSet("farm", (Label("tractor", (9, 9, 9)),)).to_json())
    with pytest.raises(LabelError, match="'farm' .tractor. and 'tiny' .ground, wall, sky. share no class"):
        known_judge(task, load_network(old / "student")[1])


def test_bags_that_are_not_named_and_models_that_do_not_exist_are_refused_first(old, retrained, tmp_path, monkeypatch):
    out, _ = retrained
    monkeypatch.setattr("lix_core.training.run.Run.train", lambda *_: pytest.fail("trained"))
    write_drive(tmp_path / "other", frames=4)
    with pytest.raises(TrainingError, match="has frames of other bags too .night.: name these as well"):
        retrain(task_of(old, out, bags=(tmp_path / "other",)), quiet=True)
    with pytest.raises(BundleError, match="no model"):
        retrain(task_of(old, tmp_path / "a", current="no model"), quiet=True)
    assert not (tmp_path / "a").exists()


def test_old_frames_are_where_the_options_say(old, tmp_path):
    task = task_of(old, tmp_path, overrides=("data.val.options={count: 5}", "data.sources.0.root=/moved"))
    record = load_network(old / "student")[1]
    assert len(old_frames(task, line_of(record.config))) == 5
    config = tuned(task, line_of(record.config), NEW_FRAMES, VAL_FRAMES, 7, "student")
    assert [source.root for source in config.data.sources] == ["/moved", "x"] and config.data.val == VAL_FRAMES


def test_weekly_retrainings_go_by_the_first_runs_schedule_and_validation_frames(old, tmp_path):
    """However many there were: no learning rate that shrinks from week to week, and nothing forgotten that the first run knew."""
    line = line_of(load_network(old / "student")[1].config)
    for week in range(3):
        task = task_of(old, tmp_path / str(week), lr=0.3, overrides=("data.val.options={count: 5}",))
        assert len(old_frames(task, line)) == 5 and old_frames(task, line).split == "val"
        config = tuned(task, line, Source("bag", str(week), "train"), VAL_FRAMES if week else None, 100, "student")
        assert (config.optim.lr, config.optim.steps_per_epoch, config.optim.warmup) == (pytest.approx(3e-3), 30, 2)
        assert [source.root for source in config.data.sources] == [".", *map(str, range(week + 1))]
        line = line_of(config, line)
    # What started from other weights without being a retraining has a schedule of its own.
    other = line_of(old_config("student", 30), line)
    assert module.first_of(line_of(tuned(task, other, NEW_FRAMES, None, 9, "student"), other)) is other.record.config


def test_bags_recorded_and_deleted_since_do_not_keep_a_retraining_from_going_on(retrained, old, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(retrained[0], out)
    monkeypatch.setattr("lix_core.training.run.Run.train", lambda *_: pytest.fail("trained again"))
    later, told = write_drive(tmp_path / "later", frames=4), []
    before = sorted(path.name for path in (out / "extraction").rglob("*"))
    found = retrain(task_of(old, out, bags=(old / "night", later)), quiet=True, tell=told.append)
    assert found.after == retrained[1].after and before == sorted(path.name for path in (out / "extraction").rglob("*"))
    assert "later: remark: left out: the runs began without it; another --out trains on it too" in told
    assert "| night | 40 | 40 | 40 | 0 |" in (out / "report.md").read_text()
    # The quota has deleted the bag; its frames are there.
    description = json.loads((out / "extraction" / "extraction.json").read_text())
    description["bags"][0]["path"] = str(tmp_path / "deleted")
    (out / "extraction" / "extraction.json").write_text(json.dumps(description))
    told.clear()
    assert retrain(task_of(old, out, bags=(later,)), quiet=True, tell=told.append).after == found.after
    assert f"night: remark: {tmp_path / 'deleted'} is gone; its frames, made before, are used" in told
    with pytest.raises(SourceError, match="was extracted with other options: every 1, not 2"):
        retrain(task_of(old, out, bags=(later,), extraction=Options(every=2)), quiet=True)


def test_what_is_wrong_with_bags_is_told_before_anything_is_trained(old, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "broken_0.mcap").write_bytes(b"no bag")
    told = []
    with pytest.raises(BaseException, match="trained"):
        retrain(task_of(old, tmp_path / "out", bags=(old / "night", broken)), quiet=True, tell=told.append)
    assert any(line.startswith("broken: fault: cannot read bag") for line in told)


def test_frames_that_an_old_run_has_seen_do_not_judge(retrained, old, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained"))
    week = {"student": retrained[0] / "student", "teacher": retrained[0] / "teacher", "behind": (old / "student", old / "teacher")}
    words = (
        "the teacher was trained on [0-9]+ frames of night that would be held out now, and judge what has seen them: "
        "give --held-out 0.25 --block 0.4 as then, or leave these bags out"
    )
    with pytest.raises(TrainingError, match=words):
        retrain(task_of(old, tmp_path / "other", block=0.8, **week), quiet=True)
    with pytest.raises(BaseException, match="trained"):  # held out now as then
        retrain(task_of(old, tmp_path / "same", **week), quiet=True)


def test_frames_that_an_old_run_has_seen_do_not_judge_as_another_stretch_or_a_longer_one(retrained, old, tmp_path):
    """Of a part of a bag, or of more of it, other blocks are held out by the same settings."""
    week = {"student": retrained[0] / "student", "teacher": retrained[0] / "teacher", "behind": (old / "student", old / "teacher")}
    lines = matching_lines(task_of(old, tmp_path, **week))

    def names(extraction: Path, split: str) -> set[str]:
        return set(BagDataset(extraction, split, labels="none", held_out=0.25, block=0.4).names)

    seen = names(retrained[0] / "extraction", "train")
    grown = write_drive(tmp_path / "grown" / "night", 90)
    cases = [*((old / "night", options) for options in (Options(end=1.0), Options(end=2.2), Options(every=2))), (grown, Options())]
    for number, (path, options) in enumerate(cases):
        task = task_of(old, tmp_path / str(number), bags=(path,), extraction=options)
        extract([path], task.out / "extraction", options)
        if path == grown:
            description = json.loads((task.out / "extraction" / "extraction.json").read_text())
            description["bags"][0]["path"] = str((old / "night").resolve())
            (task.out / "extraction" / "extraction.json").write_text(json.dumps(description))
        leaked = names(task.out / "extraction", "val") & seen
        assert bool(leaked) == (options.every == 1)
        if not leaked:
            refuse_other_blocks(task, lines)
            continue
        words = f"trained on {len(leaked)} frames of night that would be held out now.*: take the same stretch of them as then, or leave"
        with pytest.raises(TrainingError, match=words):
            refuse_other_blocks(task, lines)


def test_pseudo_labels_that_somebody_made_otherwise_are_not_replaced(old, tmp_path, monkeypatch):
    bare = write_drive(tmp_path / "bare", 12, labels=False)
    task = task_of(old, tmp_path / "out", bags=(bare,), held_out=0.4)
    extract([bare], task.out / "extraction", Options(), 1)
    own = task.out / "extraction" / "pseudo" / "pseudo.json"
    own.parent.mkdir()
    own.write_text(json.dumps({"model": {"path": "/models/other.lix"}}))
    with pytest.raises(TrainingError, match="has pseudo-labels of /models/other.lix, which those of .*teacher would replace"):
        retrain(task, quiet=True)
    own.write_text(json.dumps({"model": {"path": str(task.out / "old-teacher.lix")}}))
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(BaseException, match="trained"):
        retrain(task, quiet=True)


def test_the_command_reads_bags_as_extract_does(old, tmp_path, monkeypatch):
    tasks = []
    monkeypatch.setattr(module, "retrain", lambda task, watch, tell: tasks.append(task) or Comparison("bag", better=True, why="so"))
    given = [
        "--image",
        "/image",
        "--label-topic",
        "/labels",
        "--offset",
        "0.1",
        "--from",
        "1",
        "--extrinsics",
        "0 0 0 0 0 0 1",
        "--every",
        "2",
    ]
    runs = ["--teacher", str(old / "teacher"), "--student", str(old / "student"), "--out", str(tmp_path / "o")]
    assert CliRunner().invoke(app, ["retrain", str(old / "night"), *runs, *given], catch_exceptions=False).exit_code == 0
    wanted = Options(
        topics={"image": "/image", "labels": "/labels"}, offset=0.1, begin=1.0, extrinsics=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0), every=2
    )
    assert tasks[0].extraction == wanted


def test_without_labels_the_comparison_goes_by_pseudo_labels(old, tmp_path):
    write_drive(tmp_path / "bare", frames=12, labels=False)
    steps = []
    task = task_of(old, tmp_path / "out", bags=(tmp_path / "bare",), labels="none", teacher_steps=0, student_steps=1, held_out=0.4)
    found = retrain(task, steps.append, quiet=True)
    assert steps == ["frames of the bags", "pseudo-labels", "student", "comparison"] and found.kind == "pseudo"


def test_what_can_be_known_before_training_is_told_before_it(old, retrained, tmp_path, monkeypatch):
    out, _ = retrained
    monkeypatch.setattr("lix_core.training.run.Run.train", lambda *_: pytest.fail("trained"))
    with pytest.raises(DataError, match="make block shorter"):  # one block: nothing can be held out
        retrain(task_of(old, tmp_path / "a", block=1000.0), quiet=True)
    with pytest.raises(TrainingError, match="name its folder"):
        retrain(task_of(old, tmp_path / "b", student=out / "student"), quiet=True)
    with pytest.raises(TrainingError, match="labels is one of auto, masks, bag, pseudo, none, got 'people'"):
        task_of(old, tmp_path / "c", labels="people")
    for block in (1e-10, float("inf")):
        with pytest.raises(DataError, match=f"block a finite time of at least 1e-09 s, got 0.25 and {block}"):
            task_of(old, tmp_path / "d", block=block)


def test_runs_that_do_not_fit_are_refused_before_anything_is_done(old, tmp_path):
    with pytest.raises(TrainingError, match="student is the run of a student, not of a teacher"):
        retrain(task_of(old, tmp_path / "out", teacher=old / "student"), quiet=True)
    assert not (tmp_path / "out" / "extraction").exists()
    for teacher, words in (("x/t", "share is above 0"), ("t", "there is no run folder t, and no model 't'; known are ")):
        command = ["retrain", str(old / "night"), "--teacher", teacher, "--student", "x/s", "--out", str(tmp_path / "o"), "--share", "0"]
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, TrainingError) and words in str(done.exception)


@pytest.mark.parametrize("changes", [{"forgetting": 3.0}, {"gain": 2.0}, {"gain": math.nan}, {"forgetting": math.nan}, {"lr": math.inf}])
def test_points_for_shares_of_miou_and_numbers_that_are_none_are_refused(tmp_path, changes):
    words = "lr above 0 and finite" if "lr" in changes else "of which 0.03 is 3 points; got"
    with pytest.raises(TrainingError, match=words):
        Retraining((), tmp_path, tmp_path, tmp_path, **changes)
