"""Tables of runs: the figures in them, and that a table goes on where it was left."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import tiny_street
from lix_core.cli.main import app
from lix_core.distill.config import LIXConfig
from lix_core.errors import DataError, LixError, TrainingError
from lix_core.labels import STREET
from lix_core.training import reproduce as module
from lix_core.training import table as tables
from lix_core.training.reproduce import reproduce
from lix_core.training.results import Record, check_run, gains_of, page, summary
from lix_core.training.table import OF_CONTROLLERS, OF_TERMS, Table, cells, filled, table_names, values_of
from lix_core.world.folder import WorldFolder

BASE = {
    "data": {
        "sources": [{"dataset": "tiny", "options": {"count": 8}}],
        "test": {"dataset": "tiny", "split": "test", "options": {"count": 4}},
        "x": "depth",
        "crop": [64, 96],
        "batch": 4,
        "workers": 0,
    },
    "model": {"encoder": "tf_efficientnet_lite0", "weights": "none"},
    "optim": {"steps": 20, "steps_per_epoch": 20, "warmup": 2, "lr": 0.01, "encoder_lr": 1.0, "ema": 0.5},
    "trainer": {"val_every": 0, "sheet_frames": 0, "accelerator": "cpu"},
}
ROOTS = {"tiny": "."}


@pytest.fixture(autouse=True)
def tiny():
    with tiny_street.known():
        yield


def table(**changes) -> Table:
    data = {"title": "Tiny", "metric": "miou", "base": BASE, "teachers": {"teacher": []}, "seeds": [0, 1]}
    rows = {"control": {"set": ["distill.method=none"]}, "kd": {"set": ["distill.method=kd"]}}
    return Table.from_dict("tiny", {**data, "rows": rows, **changes})


def run(counts, **more):
    plain = {"groups": {}, "seconds": 36, "device": "cpu", "git_revision": "abc", "names": ["road", "pothole"]}
    return {"counts": counts, **plain, **more}


def test_a_row_scores_all_folds_of_a_seed_together_and_not_their_mean():
    two = table(metric="pothole", folds=[0, 1], seeds=[0, 1])
    runs = {
        "control/fold0/seed0": run([[90, 0], [5, 5]]),
        "control/fold1/seed0": run([[0, 10], [0, 90]]),
        "control/fold0/seed1": run([[10, 0], [0, 10]]),
    }
    row = summary(two, runs, [])["rows"]["control"]
    # 95 hits over 95 + 5 missed + 10 false; seed 1 lacks a fold, so that it has no figure yet.
    assert row["seeds"] == [0] and row["iou"] == {"mean": 0.8636, "std": None, "per_seed": [0.8636]}
    runs["control/fold1/seed1"] = run([[10, 0], [0, 10]])
    row = summary(two, runs, [])["rows"]["control"]
    assert row["iou"]["per_seed"] == [0.8636, 1.0] and row["iou"]["mean"] == 0.9318
    assert row["iou"]["std"] == pytest.approx(np.std([95 / 110, 1.0], ddof=1), abs=1e-4)


def test_groups_and_classes_are_shown_apart():
    one = table(metric="pothole", seeds=[0])
    runs = {"control/fold0/seed0": run([[8, 2], [1, 4]], groups={"set1": [[8, 0], [0, 4]], "set2": [[0, 2], [1, 0]]})}
    assert summary(one, runs, [])["rows"]["control"]["groups"]["set1"]["mean"] == 1.0
    many = table(seeds=[0], shown={"thin": ["pole", "sign"]})
    runs = {"control/fold0/seed0": run([[4, 0, 0], [1, 1, 0], [0, 0, 3]], names=["road", "pole", "sign"])}
    row = summary(many, runs, [])["rows"]["control"]
    assert row["shown"]["thin"]["mean"] == 0.75 and row["classes"]["pole"]["mean"] == 0.5
    assert row["miou"]["mean"] == pytest.approx((0.8 + 0.5 + 1) / 3, abs=1e-4)
    one = table(metric="sign", seeds=[0])  # a class of three
    data = summary(one, runs, [])
    assert data["rows"]["control"]["iou"]["mean"] == 1.0 and "| control | 1.000 | - | 1 |" in page(one, data)


def test_the_page_pairs_rows_with_the_control_seed_by_seed():
    pair = table(metric="pothole")
    runs = {f"control/fold0/seed{s}": run(c) for s, c in ((0, [[1, 1], [0, 1]]), (1, [[1, 0], [0, 1]]))}
    runs["kd/fold0/seed0"] = run([[1, 0], [0, 1]])
    text = page(pair, summary(pair, runs, ["optim.steps=2"]))
    assert "| kd | 1.000 | +50.0 | 1 |" in text and "| control | 0.750 ± 0.354 | - | 2 |" in text
    assert "`lix reproduce tiny --data tiny=FOLDER optim.steps=2 --out OUT`" in text and "3 runs, 0.03 hours on cpu" in text
    assert "no seed has whole yet: `teacher`." in text
    runs["kd/fold0/seed1"] = runs.pop("kd/fold0/seed0")  # of the other seed alone
    assert "| kd | 1.000 | +0.0 | 1 |" in page(pair, summary(pair, runs, []))
    runs |= {f"teacher/fold0/seed{s}": run([[1, 0], [0, 1]]) for s in (0, 1)}
    assert "yet" not in page(pair, summary(pair, runs, []))


def test_the_page_tells_each_seed_and_in_how_many_folds_a_row_is_ahead():
    whole, half, none = [[1, 0], [0, 1]], [[1, 1], [0, 1]], [[1, 1], [1, 0]]
    two = table(metric="pothole", folds=[0, 1])
    found = {("control", 0): (half, half), ("kd", 0): (whole, half), ("control", 1): (whole, half), ("kd", 1): (none, whole)}
    runs = {f"{name}/fold{fold}/seed{seed}": run(c) for (name, seed), counts in found.items() for fold, c in enumerate(counts)}
    data = summary(two, runs, [])
    assert data["rows"]["kd"]["per_fold"] == [[1.0, 0.5], [0.0, 1.0]]
    # seed 0: control 2 of 4, KD 2 of 3; seed 1: control 2 of 3, KD 1 of 3. The second fold of seed 0 is a tie, not ahead.
    assert "| kd | 0.500 ± 0.236 | -8.3 (+16.7, -33.3) | 2 of 4 | 2 |" in page(two, data)
    assert "| control | 0.583 ± 0.118 | - | - | 2 |" in page(two, data) and "folds ahead" in page(two, data)
    one = table(metric="pothole", folds=[0])
    assert "folds ahead" not in page(one, summary(one, runs, []))
    runs = {key: {**each, "counts": [[0, 0], [0, 0]]} for key, each in runs.items()}  # no pothole in truth or answer: no figure
    assert "| kd | - | - | - | 2 |" in page(two, summary(two, runs, []))


def test_the_terminal_shows_what_rows_are_set_against(monkeypatch, capsys):
    from lix_core.cli.reproduce import show

    monkeypatch.setenv("COLUMNS", "120")
    rows = {"few": {"set": ["distill.method=none"], "control": "few"}, "kd": {"set": ["distill.method=kd"], "control": "few"}}
    own = table(rows=rows, seeds=[0])
    counts = {"few": [[1, 1], [0, 1]], "kd": [[1, 0], [0, 1]], "teacher": [[1, 0], [0, 1]]}
    show(summary(own, {f"{name}/fold0/seed0": run(each) for name, each in counts.items()}, []), own, Path("results/tiny.md"))
    lines = [[word.strip() for word in each.split("│")[1:-1]] for each in capsys.readouterr().out.splitlines() if "│" in each]
    assert lines == [
        ["few", "0.5000", "-", "-", "1"],
        ["kd", "1.0000", "-", "+50.0 against few", "1"],
        ["teacher", "1.0000", "-", "-", "1"],
    ]


def test_the_picture_of_a_table_has_what_its_rows_gain_and_is_there_once_one_is(tmp_path):
    whole, half = [[1, 0], [0, 1]], [[1, 1], [0, 1]]
    two = table(metric="pothole", folds=[0, 1])
    record = Record(two, tmp_path)
    for name, fold, seed, counts in (("control", 0, 0, half), ("control", 1, 0, whole), ("teacher", 0, 0, whole), ("teacher", 1, 0, whole)):
        record.runs[f"{name}/fold{fold}/seed{seed}/x"] = run(counts)
    record.write()
    assert not (tmp_path / "tiny.png").exists() and "png" not in (tmp_path / "tiny.md").read_text()
    record.runs |= {"kd/fold0/seed0/x": run(whole), "kd/fold1/seed0/x": run(half)}
    record.write()
    seeds, folds = gains_of(two, record.data)["kd"]
    assert list(gains_of(two, record.data)) == ["kd"] and seeds == pytest.approx([0], abs=1e-9) and folds == [50, -50]
    assert "(tiny.png)" in (tmp_path / "tiny.md").read_text() and cv2.imread(str(tmp_path / "tiny.png")).std() > 1


def test_the_page_of_several_classes_shows_the_iou_of_each():
    many = table(seeds=[0])
    runs = {"control/fold0/seed0": run([[4, 0, 0], [1, 1, 0], [0, 0, 0]], names=["road", "pole", "sign"])}
    text = page(many, summary(many, runs, []))
    assert "| row | road | pole | sign |\n| --- | --- | --- | --- |\n| control | 0.800 | 0.500 | - |\n" in text
    two = table(metric="pothole", seeds=[0])
    assert "each class" not in page(two, summary(two, {"control/fold0/seed0": run([[4, 0], [0, 4]])}, []))


def test_a_teacher_that_is_scored_on_other_frames_is_not_set_against_the_control():
    runs = {f"{row}/fold0/seed0": run([[4, 0], [0, 4]]) for row in ("control", "teacher")}
    for changes, difference in (([], "+0.0"), (["data.test={dataset: tiny, split: val}"], "-")):
        one = table(seeds=[0], teachers={"teacher": changes})
        assert f"| teacher | 1.000 | {difference} | 1 |" in page(one, summary(one, runs, []))


def test_a_result_tells_whose_weights_a_row_begins_with_and_what_it_is_set_against(tmp_path):
    plain = {"set": ["distill.method=none"]}
    rows = {"control": plain, "first": plain, "kd": {"set": ["distill.method=kd"]}, "then": {**plain, "start": "kd", "control": "first"}}
    one = table(seeds=[0], rows=rows)
    runs = {f"{name}/fold0/seed0": run([[4, 0], [0, 4]]) for name in rows}
    data = summary(one, runs, [])
    told = {"control": {}, "first": {}, "kd": {"teacher": "teacher"}, "then": {"start": "kd", "control": "first"}}
    assert data["protocol"]["rows"] == {name: {"set": rows[name]["set"], **others} for name, others in told.items()}
    text = page(one, data)
    assert "| then | 1.000 | +0.0 against first | 1 |" in text and "| kd | 1.000 | +0.0 | 1 |" in text
    assert list(gains_of(one, data)) == ["first", "kd", "then\nagainst first"]


def test_folds_and_seeds_are_filled_in_as_numbers():
    assert filled({"a": ["{fold}", "x{fold}", 1], "b": "{seed}"}, {"fold": 3, "seed": 7}) == {"a": [3, "x{fold}", 1], "b": 7}


def test_a_fingerprint_is_of_what_decides_the_numbers():
    def prints(**changes):
        roots = changes.pop("roots", ROOTS)
        overrides = changes.pop("overrides", ())
        return {cell.key: cell.fingerprint for unit in cells(table(**changes), roots, overrides) for cell in unit}

    plain = prints()
    assert len(set(plain.values())) == 6
    assert prints(roots={"tiny": "elsewhere"}) == plain and prints(overrides=["data.workers=2"]) == plain
    assert not set(prints(overrides=["optim.lr=0.5"]).values()) & set(plain.values())
    # Options of every distillation are nothing to those that are not distilled.
    for override in ("distill.class_weights=true", "distill.edge=2"):
        other = prints(overrides=[override])
        assert {key.split("/")[0] for key in plain if other[key] != plain[key]} == {"kd"}
    # An option that came later is in no fingerprint while it is what it was, so that results stay results.
    lix = prints(overrides=["distill.method=lix"])
    for option, old, new in (("sampling", "pooled", "points"), ("pseudo", 0, 1), ("threshold", 0.9, 0.8)):
        assert prints(overrides=["distill.method=lix", f"distill.lix.{option}={old}"]) == lix
        assert prints(overrides=["distill.method=lix", f"distill.lix.{option}={new}"])["kd/fold0/seed0"] != lix["kd/fold0/seed0"]
    # A teacher that learns otherwise makes another student, but not another control.
    taught = prints(teachers={"teacher": ["optim.lr=0.5"]})
    assert taught["kd/fold0/seed0"] != plain["kd/fold0/seed0"] and taught["control/fold0/seed0"] == plain["control/fold0/seed0"]


def test_what_decides_in_the_trainer_is_in_the_fingerprint_where_it_differs_from_what_is_usual():
    def print_of(*overrides, **base):
        return cells(table(base={**BASE, **base}), ROOTS, overrides)[0][0].fingerprint

    assert print_of("trainer.val_batch=2") == print_of() != print_of("trainer.precision=bf16-mixed")
    assert print_of("trainer.val_every=1") == print_of()  # without anything to be scored
    val = {**BASE["data"], "val": {"dataset": "tiny", "split": "val"}}
    assert print_of(data=val) != print_of("trainer.val_every=1", data=val)


def test_runs_of_other_settings_stay_in_the_file_and_count_nowhere(tmp_path):
    one = table(seeds=[0])
    record = Record(one, tmp_path)
    for row, right in (("control", 4), ("kd", 8)):
        record.runs[f"{row}/fold0/seed0/{row}"] = run([[right, 2], [2, right]])
    record.write()
    assert set(record.data["rows"]) == {"control", "kd"}
    later = Record(one, tmp_path, ["optim.steps=9"], {"control/fold0/seed0": "other", "kd/fold0/seed0": "kd"})
    later.write()
    assert set(later.data["rows"]) == {"kd"} and later.data["protocol"]["runs"] == 1 and len(later.data["runs"]) == 2
    assert "has 1 runs of other settings too" in (tmp_path / "tiny.md").read_text()


def test_values_of_variations_may_be_lists():
    assert values_of("1,2") == ["1", "2"] and values_of("[160,256]") == ["[160,256]"]
    assert values_of("[a,b],[c],{d: [1,2], e: 3},4") == ["[a,b]", "[c]", "{d: [1,2], e: 3}", "4"]


def test_mistakes_in_a_table_are_named():
    with pytest.raises(TrainingError, match="unknown key sedes .did you mean seeds"):
        table(sedes=[1])
    with pytest.raises(TrainingError, match="row kd of table tiny learns from 'techer'"):
        table(rows={"kd": {"teacher": "techer"}})
    with pytest.raises(TrainingError, match="row kd of table tiny starts from 'control', which is no teacher and no row above it"):
        table(rows={"kd": {"start": "control"}, "control": {}})
    with pytest.raises(TrainingError, match="row kd of table tiny is set against 'contrl', which is no row .did you mean control"):
        table(rows={"kd": {"control": "contrl"}, "control": {}})
    with pytest.raises(TrainingError, match="no row 'kdd' .did you mean kd"):
        table().narrowed(["kdd"])
    with pytest.raises(TrainingError, match="has seeds 0, 1, not 7"):
        table().narrowed(seeds=[7])
    with pytest.raises(TrainingError, match="has folds 0, not 4"):
        table().narrowed(folds=[4])
    with pytest.raises(TrainingError, match="no table 'potholes' .did you mean pothole"):
        Table.load("potholes")
    with pytest.raises(DataError, match="--data tiny=FOLDER"):
        cells(table(), {})


@pytest.mark.parametrize("name", table_names())
def test_tables_that_come_with_lix_are_whole(name):
    loaded = Table.load(name)
    roots = {key: "." for key in ("pothole", "world", "camvid", "vkitti2", "kitti")}
    units = cells(loaded, roots)
    keys = [cell.key for unit in units for cell in unit]
    names = {row.name for row in loaded.rows}
    assert len(keys) == len(set(keys)) and all(row.control in names or not row.control for row in loaded.rows)
    assert len(loaded.seeds) >= 3


def test_a_table_goes_on_where_it_was_left(tmp_path, monkeypatch):
    done = []
    first = reproduce(table(seeds=[0]), tmp_path / "results", tmp_path / "work", ROOTS, report=lambda text, *_: done.append(text))
    assert done[0] == "0 of 3 runs are there" and len(done) == 4
    assert set(first["rows"]) == {"control", "kd", "teacher"} and first["protocol"]["runs"] == 3
    counts = np.array(next(run for key, run in first["runs"].items() if key.startswith("kd/fold0/seed0/"))["counts"])
    assert counts.shape == (3, 3) and counts.sum() == 4 * 62 * 96  # every valid pixel of the four frames
    # Only teachers are kept; nothing is trained that is in the file, not even the teacher, nor is data made ready for it.
    assert [p.name.split("-")[0] for p in (tmp_path / "work").iterdir()] == ["teacher"]
    monkeypatch.setattr(module, "run_cell", lambda *_: pytest.fail("trained again"))
    where = tmp_path / "results", tmp_path / "work", ROOTS
    assert reproduce(table(seeds=[0]), *where, prepare=lambda: pytest.fail("made ready"))["rows"] == first["rows"]
    asked = []
    monkeypatch.setattr(module, "run_cell", lambda cell, *_: asked.append(cell.key) or run([[1, 0], [0, 1]]))
    changed = table(seeds=[0], rows={"control": {"set": ["distill.method=none"]}, "kd": {"set": ["distill.method=kd", "distill.kd.tau=2"]}})
    reproduce(changed, *where, prepare=lambda: asked.append("data"))
    assert asked == ["data", "kd/fold0/seed0"]


def test_a_row_that_starts_from_another_has_its_weights_and_their_fingerprint(tmp_path, monkeypatch):
    def rows(steps):
        return {
            "first": {"set": ["distill.method=none", f"optim.steps={steps}"]},
            "tuned": {"start": "first", "set": ["distill.method=kd"]},
        }

    (teacher, first, tuned), (_, _, other) = (cells(table(seeds=[0], rows=rows(steps)), ROOTS)[0] for steps in (20, 30))
    assert tuned.start is first and tuned.fingerprint != other.fingerprint
    calls = []
    monkeypatch.setattr(
        "lix_core.training.run.fit",
        lambda config, out, teacher, start, wait: calls.append((out, teacher, start)) or pytest.fail("enough"),
    )
    with pytest.raises(pytest.fail.Exception):
        module.run_cell(tuned, tmp_path, 0)
    out, taught_by, begun_with = (module.folder(tmp_path, cell) for cell in (tuned, teacher, first))
    assert calls == [(out, [taught_by], begun_with)]
    # Only the one row is asked for: what it starts from is made too.
    narrowed = table(seeds=[0], rows=rows(20)).narrowed(["tuned"])
    assert [cell.row for cell in cells(narrowed, ROOTS)[0]] == ["teacher", "first", "tuned"]
    chain = table(seeds=[0], rows={**rows(20), "again": {"start": "tuned", "set": ["distill.method=kd"]}, "other": {}})
    *_, again = cells(chain.narrowed(["again"]), ROOTS)[0]
    assert again.fingerprint == next(cell for cell in cells(chain, ROOTS)[0] if cell.row == "again").fingerprint
    assert again.start.start.row == "first" and len(chain.narrowed(["again"]).rows) == 3


def test_a_row_that_starts_from_a_teacher_has_its_weights_even_without_distillation():
    rows = {"inherited": {"start": "teacher", "set": ["distill.method=none"]}, "control": {"set": ["distill.method=none"]}}
    narrowed = table(seeds=[0], rows=rows).narrowed(["inherited"])
    teacher, inherited = cells(narrowed, ROOTS)[0]
    assert inherited.start is teacher and inherited.teachers == ()
    control = cells(table(seeds=[0], rows=rows), ROOTS)[0][-1]
    assert control.fingerprint != inherited.fingerprint


def test_a_row_that_learns_from_a_row_above_is_made_after_it_and_keeps_its_weights(tmp_path, monkeypatch):
    rows = {
        "control": {"set": ["distill.method=none"]},
        "pseudo by control": {"teacher": "control", "set": ["distill.method=pseudo", "distill.rgb_teacher=true"]},
        "pseudo": {"set": ["distill.method=pseudo"]},
    }
    narrowed = table(seeds=[0], rows=rows).narrowed(["pseudo by control"])
    control, by_control = cells(narrowed, ROOTS)[0]
    assert by_control.teachers == (control,) and by_control.taught_by == control.fingerprint and control.row == "control"
    taught = {"teacher": ["teacher", "control"], "set": ["distill.method=lix", "distill.rgb_teacher=true"]}
    both = {"control": rows["control"], "lix": taught}
    *_, by_both = cells(table(seeds=[0], rows=both), ROOTS)[0]
    assert by_both.taught_by == "+".join(cell.fingerprint for cell in by_both.teachers)
    assert [cell.row for cell in by_both.teachers] == ["teacher", "control"] == [cell.row for cell in by_both.needs]
    assert summary(table(seeds=[0], rows=both), {}, [])["protocol"]["rows"]["lix"]["teacher"] == ["teacher", "control"]
    *_, by_teacher = cells(table(seeds=[0], rows=rows), ROOTS)[0]
    assert by_teacher.teachers[0].row == "teacher" and by_teacher.fingerprint != by_control.fingerprint
    there = []

    def train(config, out, teacher, start, wait):
        (out / "checkpoints").mkdir(parents=True)
        for file in ("result.json", "checkpoints/best.ckpt"):
            (out / file).touch()
        there.append([teacher and [(run / "result.json").exists() for run in teacher], out.name.split("-")[0]])
        return SimpleNamespace(test={**run([[1, 0], [0, 1]]), "iou": {"a": 1, "b": 1}}, val=None, seconds=1, device="cpu", git_revision="")

    monkeypatch.setattr("lix_core.training.run.fit", train)
    reproduce(narrowed, tmp_path, tmp_path / "runs", ROOTS)
    assert there == [[None, "control"], [[True], "pseudo_by_control"]]
    assert [path.name.split("-")[0] for path in (tmp_path / "runs").iterdir()] == ["control"], "weights that others need stay"


def test_a_row_that_does_not_learn_from_its_teacher_is_made_without_it():
    narrowed = table(seeds=[0]).narrowed(["control"])
    assert [cell.row for cell in cells(narrowed, ROOTS)[0]] == ["control"]
    plain = table(seeds=[0], base={**BASE, "distill": {"method": "none"}}, rows={"control": {}, "kd": {"set": ["distill.method=kd"]}})
    assert [[cell.row for cell in cells(plain.narrowed([row]), ROOTS)[0]] for row in ("control", "kd")] == [["control"], ["teacher", "kd"]]


def test_overrides_that_several_rows_share_may_be_a_list_in_their_lists():
    shared = ["optim.steps=30", ["optim.lr=0.5"]]
    nested = table(teachers={"teacher": [shared, "data.x=normals"]}, rows={"kd": {"set": ["distill.method=kd", shared]}})
    assert nested.teachers == {"teacher": ("optim.steps=30", "optim.lr=0.5", "data.x=normals")}
    assert nested.rows[0].overrides == ("distill.method=kd", "optim.steps=30", "optim.lr=0.5")


def test_other_options_and_other_processes_leave_each_others_runs_in_the_file(tmp_path, monkeypatch):
    counts = {"control": [[4, 0], [0, 4]], "kd": [[4, 2], [2, 4]], "teacher": [[1, 1], [1, 1]]}
    monkeypatch.setattr(module, "run_cell", lambda cell, *_: run(counts[cell.row]))
    plain = reproduce(table(seeds=[0]), tmp_path, tmp_path / "work", ROOTS)
    tried = reproduce(table(seeds=[0]), tmp_path, tmp_path / "work", ROOTS, ["optim.steps=1"])
    assert len(tried["runs"]) == 6 and tried["protocol"]["runs"] == 3 and set(plain["runs"]) < set(tried["runs"])
    assert (
        tried["protocol"]["base"]["optim"]["steps"] == 1
        and tried["protocol"]["command"] == "lix reproduce tiny --data tiny=FOLDER optim.steps=1 --out OUT"
    )
    again = reproduce(table(seeds=[0]), tmp_path, tmp_path / "work", ROOTS)
    assert again["rows"] == plain["rows"] and len(again["runs"]) == 6
    # Two records that were opened before the other had anything.
    one, other = (Record(table(), tmp_path) for _ in range(2))
    one.runs["control/fold0/seed1/a"] = other.runs["control/fold0/seed2/b"] = run(counts["control"])
    one.write()
    other.write()
    assert len(other.data["runs"]) == 8 == len(json.loads((tmp_path / "tiny.json").read_text())["runs"])


def test_a_page_is_not_replaced_by_runs_of_other_options(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(module, "run_cell", lambda cell, *_: trained.append(cell) or run(np.eye(2, dtype=int).tolist()))
    monkeypatch.setattr(tables, "TABLES", tmp_path)

    def typed(*words, out="out", **changes):
        rows = {"control": {"set": "distill.method=none"}, "kd": {"set": "distill.method=kd"}, **changes}
        content = {"title": "T", "metric": "miou", "base": BASE, "teachers": {"teacher": []}, "rows": rows, "seeds": [0, 1]}
        (tmp_path / "tiny.yaml").write_text(json.dumps(content))
        where = ["--data", f"tiny={tmp_path}", "--out", str(tmp_path / out), "--work", str(tmp_path / "work")]
        trained.clear()
        done = CliRunner().invoke(app, ["reproduce", "tiny", *words, *where])
        return len(trained) if done.exit_code == 0 else str(done.exception)

    assert typed("--seeds", "0") == 3
    page = (tmp_path / "out" / "tiny.md").read_text()
    refused = f"{tmp_path}/out/tiny.json has runs of the table as it is, whose page this would replace: give another --out"
    assert typed("optim.steps=9") == typed("optim.steps=9", "--rows", "control") == refused
    assert (tmp_path / "out" / "tiny.md").read_text() == page
    assert typed("optim.steps=9", "--seeds", "0", out="other") == 3 and typed("optim.steps=9", out="other") == 3
    refused = f"{tmp_path}/other/tiny.json has runs made with optim.steps=9, whose page this would replace: give another --out"
    assert typed("optim.lr=1", out="other") == typed(out="other") == refused
    # What is in no fingerprint changes no page, and neither does a row that has changed since.
    assert typed("data.workers=1", "--seeds", "0") == 0 and typed("--rows", "kd", "--seeds", "1") == 2
    other = {"set": "distill.method=dkd"}  # whose teachers are trained again
    assert typed(kd=other) == 5 and typed("optim.steps=9", out="other", kd=other) == 4
    (tmp_path / "other" / "tiny.json").write_text("{}")
    assert "not a result of `lix reproduce`" in typed("optim.steps=9", out="other")


ENDLESS = """
import sys
from pathlib import Path
import test_reproduce, tiny_street
from lix_core.training import reproduce
reproduce.run_cell = tiny_street.endless
work = Path(sys.argv[1])
with tiny_street.known():
    reproduce.reproduce(test_reproduce.table(), work, work / "runs", test_reproduce.ROOTS, jobs=2)
"""


@pytest.mark.parametrize("end", ["the table is killed", "the table is interrupted", "one process dies"])
def test_no_process_trains_on_when_the_table_has_ended(tmp_path, end):
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]), "OMP_NUM_THREADS": "1"}
    listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell may have turned off for what it runs in the background
    started = {"env": environment, "stderr": subprocess.PIPE, "text": True, "preexec_fn": listens}
    table = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], **started)
    wait_for(lambda: len(list(tmp_path.glob("runs/*.pid"))) == 2)
    workers = [int(path.stem) for path in tmp_path.glob("runs/*.pid")]
    if end == "one process dies":
        os.kill(workers[0], signal.SIGKILL)
    else:
        table.send_signal(signal.SIGKILL if end == "the table is killed" else signal.SIGINT)
    wait_for(lambda: not any(map(runs, workers)))
    assert ("a process that trains died" in table.communicate(timeout=60)[1]) == (end == "one process dies")


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_table_file_with_a_slip_is_named_and_the_others_are_listed(tmp_path, monkeypatch):
    whole = {"title": "T", "metric": "miou", "base": BASE, "rows": {"control": {}}}
    slips = {
        "cut": ("title: [", "table cut cannot be read: while parsing"),
        "twice": (
            "rows: {a: {}}\nrows: {b: {}}",
            "twice cannot be read: the key rows is there twice, in line 1 and in line 2",
        ),
        "empty": ("", "table empty: it must be keys with values, got None"),
        "rows": (json.dumps({**whole, "rows": ["control"]}), r"rows must be keys with values, got \['control'\]"),
        "base": (json.dumps({**whole, "base": "world_lix"}), "base must be keys with values, got 'world_lix'"),
        "row": (json.dumps({**whole, "rows": {"a": "b"}}), "row a of table row: it must be keys with values, got 'b'"),
        "no seeds": (json.dumps({**whole, "seeds": []}), "table no seeds: seeds is an empty list; leave it out, or name some"),
        "key": (json.dumps({**whole, "rows": {"a": {"sett": []}}}), "row a of table key: unknown key sett .did you mean set"),
        "options": (json.dumps({**whole, "teachers": {"a": {"b": 1}}}), "teacher a of table options: options are texts"),
    }
    monkeypatch.setattr(tables, "TABLES", tmp_path)
    (tmp_path / "whole.yaml").write_text(json.dumps({**whole, "rows": {"control": {"set": "loss.dice=1"}}}))
    assert Table.load("whole").rows[0].overrides == ("loss.dice=1",)
    for name, (text, message) in slips.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        with pytest.raises(TrainingError, match=message):
            Table.load(name)
    own = tmp_path / "own" / "mine.yaml"
    own.parent.mkdir()
    own.write_text((tmp_path / "whole.yaml").read_text())
    assert Table.load(str(own)).command == "lix reproduce mine.yaml --data tiny=FOLDER" and Table.load(str(own)).name == "mine"
    with pytest.raises(TrainingError, match="whole.yaml has the name of a table that comes with lix"):
        Table.load(str(own.rename(own.with_name("whole.yaml"))))
    with pytest.raises(TrainingError, match="table mine cannot be read: .*No such file"):
        Table.load(str(own))
    listed = CliRunner().invoke(app, ["reproduce"]).output.splitlines()
    assert len(listed) == 10 and listed[-1].split() == ["whole", "T"]
    refused = CliRunner().invoke(app, ["reproduce", "whole", "--data", "tyny=x"])
    assert "--data tyny: needed is tiny (did you mean tiny" in str(refused.exception)


def test_what_another_process_made_meanwhile_is_not_made_again(tmp_path, monkeypatch):
    made, eye = [], np.eye(2, dtype=int).tolist()
    other = Record(table(), tmp_path)

    def run_cell(cell, *_):
        made.append(cell.key)
        for unit in cells(table(), ROOTS)[1:] if len(made) == 1 else ():
            for theirs in unit:
                other.add(theirs, run(eye))
        return run(eye)

    monkeypatch.setattr(module, "run_cell", run_cell)
    found = reproduce(table(), tmp_path, tmp_path / "work", ROOTS)
    assert made == [f"{row}/fold0/seed0" for row in ("teacher", "control", "kd")] and len(found["runs"]) == 6


def test_what_cannot_be_scored_is_told_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_cell", lambda *_: pytest.fail("trained"))
    with pytest.raises(TrainingError, match="'wal', is not miou nor a class .did you mean wall"):
        reproduce(table(seeds=[0], metric="wal"), tmp_path, tmp_path / "work", ROOTS)
    data = {**BASE["data"], "test": None}
    with pytest.raises(TrainingError, match="nothing would be scored in teacher of table tiny: set data.val or data.test"):
        reproduce(table(base={**BASE, "data": data}), tmp_path, tmp_path / "work", ROOTS)


def test_streets_are_rendered_for_runs_that_are_missing_and_for_no_mistake(tmp_path, monkeypatch):
    pytest.importorskip("embreex")
    monkeypatch.setattr(tables, "WORLD_FRAMES", {"train": (1, 101), "test": (1, 103)})
    scored = run(np.eye(11, dtype=int).tolist(), names=list(STREET.names))
    monkeypatch.setattr(module, "run_cell", lambda *_: scored)
    streets, given = tmp_path / "table_world", ["--out", str(tmp_path), "--work", str(tmp_path / "runs")]
    one = ["reproduce", "world", "--rows", "control", "--seeds", "0", *given]
    wrong = CliRunner().invoke(app, [*one, "optim.stepz=1"])
    assert "did you mean optim.steps" in str(wrong.exception) and not streets.exists()
    done = CliRunner().invoke(app, one)
    assert done.exit_code == 0, done.output
    assert len(WorldFolder.open(streets / "train")) == 1 and "1.0000" in done.output
    shutil.rmtree(streets)
    assert CliRunner().invoke(app, one).exit_code == 0 and not streets.exists()


def test_a_class_that_does_not_occur_in_a_seed_has_no_difference():
    pair = table(metric="pothole")
    runs = {f"{row}/fold0/seed0": run([[4, 0], [0, 0]]) for row in ("control", "kd")}
    assert "| kd | - | - | 1 |" in page(pair, summary(pair, runs, []))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed=5", "seed=5: seed of a run is not for a change to say; choose seeds with --seeds"),
        ("model.kind=teacher", "model.kind of a run is not for a change to say; rows are students"),
        ("name=mine", "name of a run is not for a change to say"),
        ("data.test={split: test}", "a source of data has no `dataset`"),
        ("data.sources=pothole", "data.sources must be a list of sections, got 'pothole'"),
        ("data=3", "data must be `key: value` pairs"),
    ],
)
def test_changes_that_a_table_cannot_heed_are_refused(change, words):
    for refused in (lambda: cells(table(), ROOTS, [change]), lambda: cells(table(rows={"kd": {"set": [change]}}), ROOTS)):
        with pytest.raises(LixError) as found:
            refused()
        assert words in str(found.value)


def test_variations_of_what_a_table_decides_are_refused(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({**BASE, "distill": {"method": "kd"}}))
    with pytest.raises(TrainingError, match="choose seeds with --seeds"):
        Table.of_variations("a", config, ["optim.lr=0.1,0.2", "seed=3"], "miou", [0])
    with pytest.raises(TrainingError, match="choose seeds with --seeds"):
        cells(Table.of_variations("a", config, ["seed=3,4"], "miou", [0]), ROOTS)
    done = CliRunner().invoke(app, ["ablate", str(config), "optim.lr=0.1,0.2", "--name", "pothole", "--out", str(tmp_path)])
    assert "'pothole' is a table of `lix reproduce`" in str(done.exception) and not (tmp_path / "pothole.md").exists()


def test_runs_have_folders_that_they_can_go_on_in(tmp_path):
    def name(row="kd", *overrides):
        unit = cells(table(seeds=[0], rows={row: {"set": ["distill.method=kd"]}}), ROOTS, overrides)[0]
        return module.folder(tmp_path, unit[-1]).name

    assert name() == name("kd", "data.workers=2") == name("kd", "trainer.val_batch=1") and name().startswith("kd-fold0-seed0-")
    others = {name("kd", change) for change in ("trainer.devices=2", "distill.mgd.weight=2", "optim.lr=0.5")}
    assert len(others | {name()}) == 4  # no weight depends on the options of MGD, and a run is told apart by them
    long = [name("x" * 300 + end) for end in "ab"]
    assert long[0] != long[1] and max(map(len, long)) < 120


def test_the_data_sets_of_a_table_are_those_of_its_rows():
    camvid = Table.load("camvid")
    assert camvid.narrowed(["camvid alone"]).datasets == {"camvid"} and camvid.datasets == {"camvid", "world"}
    assert Table.load("pothole").datasets == {"pothole"}


def test_the_figure_of_a_run_that_is_made_again_stays_whoever_made_it(tmp_path):
    unit = cells(table(seeds=[0]), ROOTS)[0]
    first, other = Record(table(seeds=[0]), tmp_path), Record(table(seeds=[0]), tmp_path)
    first.add(unit[0], run([[1, 0], [0, 1]]))
    other.add(unit[0], run([[2, 0], [0, 2]]))
    first.add(unit[1], run([[3, 0], [0, 3]]))
    found = json.loads((tmp_path / "tiny.json").read_text())["runs"]
    assert [found[cell.entry]["counts"][0][0] for cell in unit[:2]] == [1, 3]


@pytest.mark.parametrize(
    "changes",
    [{"counts": None}, {"counts": [[1, float("nan")], [0, 1]]}, {"counts": [[1, -1], [0, 1]]}, {"counts": [[1]]}, {"seconds": "2"}],
)
def test_runs_that_are_not_whole_are_told_before_another_is_made(changes):
    run = {"counts": [[1, 0], [0, 1]], "names": ["a", "b"], "groups": {}, "seconds": 2, "device": "cpu", "git_revision": "1"}
    check_run("kd/fold0/seed0/1", run)
    with pytest.raises(ValueError, match="run kd/fold0/seed0/1 (is not whole|counts no pixels)"):
        check_run("kd/fold0/seed0/1", {**run, **changes})


def test_a_damaged_result_file_is_not_overwritten(tmp_path):
    (tmp_path / "tiny.json").write_text("{}")
    with pytest.raises(DataError, match="not a result of `lix reproduce`"):
        reproduce(table(), tmp_path, tmp_path / "work", ROOTS)
    assert (tmp_path / "tiny.json").read_text() == "{}"


def test_variations_of_further_seeds_join_those_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_cell", lambda cell, *_: run([[4, 0], [0, 4 - cell.seed]]))
    config = tmp_path / "c.yaml"
    tree = copy.deepcopy(BASE)
    tree["data"]["sources"][0]["root"] = tree["data"]["test"]["root"] = "."
    config.write_text(json.dumps(tree | {"distill": {"method": "none"}}))
    for seeds in ("0", "2", "1"):
        typed = ["ablate", config, "optim.lr=0.1,0.2", "--seeds", seeds, "--out", tmp_path, "--work", tmp_path / "work"]
        done = CliRunner().invoke(app, [str(word) for word in typed])
        assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "ablation.json").read_text())
    assert [row["seeds"] for row in data["rows"].values()] == [[0, 1, 2]] * 3 and data["protocol"]["command"].endswith("--seeds 0,1,2")
    assert "of other settings" not in (tmp_path / "ablation.md").read_text()
    done = CliRunner().invoke(app, [str(word) for word in [*typed, "optim.steps=9"]])
    assert f"ablation.json is of 'Variations of {config}', whose page this would replace" in str(done.exception)
    done = CliRunner().invoke(app, [str(word) for word in [*typed[:2], "optim.lr=0.2,0.3", *typed[3:]]])
    assert "ablation.json has the rows optim.lr=0.1 too: ask for them again" in str(done.exception)
    assert json.loads((tmp_path / "ablation.json").read_text()) == data


def test_rows_that_differ_in_their_names_alone_are_one_run(tmp_path, monkeypatch):
    trained = []

    def run_cell(cell, *_):
        trained.append(cell.key)
        return run([[4, len(trained)], [0, 4]])

    monkeypatch.setattr(module, "run_cell", run_cell)
    tree = copy.deepcopy(BASE)
    tree["data"]["sources"][0]["root"] = tree["data"]["test"]["root"] = "."
    (tmp_path / "c.yaml").write_text(json.dumps(tree | {"distill": {"method": "none"}}))
    for seeds in ([0], [0, 1]):
        made = Table.of_variations("own", tmp_path / "c.yaml", ["optim.lr=0.01,0.1", "data.flip=0.5"], "miou", seeds)
        found = reproduce(made, tmp_path, tmp_path / "work", {})
    assert trained == [f"{row}/fold0/seed{seed}" for seed in (0, 1) for row in ("control", "optim.lr=0.1")]
    assert [row["seeds"] for row in found["rows"].values()] == [[0, 1]] * 3
    assert found["rows"]["optim.lr=0.01"] == found["rows"]["control"] != found["rows"]["optim.lr=0.1"]
    assert len(found["runs"]) == found["protocol"]["runs"] == 4 and found["protocol"]["hours"] == 0.04
    assert "| optim.lr=0.01 | 0.686" in (page := (tmp_path / "own.md").read_text()) and "of other settings" not in page


@pytest.mark.parametrize("root", ["", "/elsewhere"])
def test_variations_are_told_where_data_sets_are(tmp_path, monkeypatch, root):
    seen = set()

    def run_cell(cell, *_):
        seen.update(source.root for source in cell.config.data.all_sources)
        return run([[4, 0], [0, 4]])

    monkeypatch.setattr(module, "run_cell", run_cell)
    tree = copy.deepcopy(BASE)
    tree["data"]["sources"][0]["root"] = tree["data"]["test"]["root"] = root
    (tmp_path / "c.yaml").write_text(json.dumps(tree | {"distill": {"method": "none"}}))
    typed = ["ablate", tmp_path / "c.yaml", "optim.lr=0.1,0.2", "--seeds", "0", "--out", tmp_path, "--work", tmp_path / "work"]
    done = CliRunner().invoke(app, [str(word) for word in (*typed, "--data", f"tiny={tmp_path}")])
    assert done.exit_code == 0, done.output
    assert seen == {str(tmp_path)}


def test_variations_make_one_row_for_each_value(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({**BASE, "distill": {"method": "kd"}}))
    made = Table.of_variations("a", str(config), ["distill.kd.tau=1,2", "optim.lr=0.1"], "miou", [0])
    assert made.base["data"]["test"]["dataset"] == "tiny"
    config.with_name("v.yaml").write_text(json.dumps({**BASE, "data": {**BASE["data"], "val": BASE["data"]["test"]}}))
    assert Table.of_variations("a", str(config.with_name("v.yaml")), ["optim.lr=0.1,0.2"], "miou", [0]).base["data"]["test"] is None
    assert [row.name for row in made.rows] == ["control", "distill.kd.tau=1", "distill.kd.tau=2"]
    tau = [cell.config.distill.kd.tau for cell in cells(made, {"tiny": "."})[0]]
    assert tau == [4.0, 1.0, 2.0] and made.base["optim"]["lr"] == 0.1
    with pytest.raises(TrainingError, match="nothing varies"):
        Table.of_variations("a", str(config), ["optim.lr=0.1"], "miou", [0])
    for variations, words in (
        (["optim.lr=0.1,0.2,0.1"], "optim.lr=0.1 is given twice"),
        (["distill.method=none", "distill.kd.tau=1,2"], "distill.kd.tau changes nothing where distill.method is none"),
        (["distill.method=none", "distill.edge=0,2"], "distill.edge changes nothing where distill.method is none: name a method, as"),
        (["distill.method=lix", "distill.kd.tau=1,2"], "distill.method is lix: name a method, as distill.method=kd"),
        (
            ["distill.method=kd,lix", "distill.lix.tau=1,2"],
            "distill.lix.tau changes nothing where distill.method is kd: name a method",
        ),
        (["model.fusion=sum,gated"], "model.fusion changes nothing of a student"),
        (
            ["distill.method=lix", "distill.lix.alpha=1,2"],
            "alpha changes nothing under distill.lix.controller=dynamic: it belongs to fixed",
        ),
        (["distill.method=lix", "distill.lix.controller=fixed", "distill.lix.tau_w=1,2"], "it belongs to dynamic and dynamic_coupled"),
        (["distill.method=lix", "distill.lix.threshold=0.8,0.9"], "threshold changes nothing where distill.lix.pseudo is 0"),
        (
            ["distill.method=lix", "distill.lix.feature=0", "distill.lix.cka=linear,rbf"],
            "cka changes nothing where distill.lix.feature is 0",
        ),
    ):
        with pytest.raises(TrainingError, match=words):
            Table.of_variations("a", str(config), variations, "miou", [0])
    options = {option.name for option in dataclasses.fields(LIXConfig)}
    assert {name for names in (*OF_CONTROLLERS.values(), *OF_TERMS.values()) for name in names} | {*OF_TERMS, "warmup"} == options
    free = ["distill.method=lix", "distill.lix.controller=fixed", "distill.lix.alpha=1,2", "distill.lix.tau=1,4", "distill.lix.x=0,1"]
    assert len(Table.of_variations("a", str(config), free, "miou", [0]).rows) == 7
