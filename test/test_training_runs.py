"""Whole runs: what they leave, that they can be killed, spread over processes and repeated, and how they end when they go wrong."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from torch.nn.modules.batchnorm import _BatchNorm
from typer.testing import CliRunner

import tiny_street
from lix_core.cli.main import app
from lix_core.data.registry import open_dataset
from lix_core.data.sample import Batch, collate
from lix_core.distill.config import DistillConfig, LIXConfig
from lix_core.distill.objective import build_distiller
from lix_core.errors import DataError, SourceError, TrainingError
from lix_core.labels import Label, LabelSet
from lix_core.models.networks import Student, Teacher, partners
from lix_core.training import report
from lix_core.training import run as run_module
from lix_core.training import weights as weights_module
from lix_core.training.callbacks import MovingAverage, SyncedBatchNorms
from lix_core.training.compare import compare, frames_of, short_names
from lix_core.training.config import Config, Source, from_dict, to_dict, to_yaml
from lix_core.training.losses import HardLoss, class_weights
from lix_core.training.module import Learner, outputs
from lix_core.training.provenance import Lineage, description
from lix_core.training.run import Run, RunResult, evaluate, fit
from lix_core.training.weights import load_network
from tiny_street import TINY

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with tiny_street.known():
        yield


def tiny_config(changes: dict | None = None, **data) -> Config:
    """A run of seconds. changes: `a.b` -> value; data: of its `data` section."""
    tree = {
        "name": "tiny",
        "data": {
            "sources": [{"dataset": "tiny", "root": ".", "options": {"noise": 5}}],
            "val": {"dataset": "tiny", "root": ".", "split": "val", "options": {"count": 3}},
            "x": "depth",
            "crop": [32, 64],
            "scale": [0.8, 1.2],
            "batch": 2,
            "workers": 0,
            **data,
        },
        "model": {"kind": "teacher", "encoder": "mobilenetv3_small_050", "weights": "none"},
        "optim": {"steps": 6, "steps_per_epoch": 3, "warmup": 2, "lr": 5e-3},
        "trainer": {"accelerator": "cpu", "sheet_frames": 2},
        "distill": {"method": "kd"},
    }
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return from_dict(tree)


def state_of(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint: averaged and current weights, moments of the optimiser."""
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    moments = {f"{i}.{k}": v for i, state in saved["optimizer_states"][0]["state"].items() for k, v in state.items()}
    return {**{f"ema.{k}": v for k, v in saved["network"].items()}, **saved["state_dict"], **moments}


def counts_of(run: Path, split: str = "val") -> np.ndarray:
    """The confusion matrix of a run alone."""
    (matrix,) = compare([run], split).scores.values()
    return matrix.counts


def assert_same(run: Path, other: Path) -> None:
    first, second = state_of(run), state_of(other)
    assert list(first) == list(second) and len(first) > 500
    assert [k for k in first if not torch.equal(first[k], second[k])] == []


def rows_of(run: Path) -> list[dict[str, str]]:
    """metrics.csv, without the time."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


# Runs in processes of their own.


class Server:
    """`tiny_street.serve` in another process: imports once, forks a process for each run."""

    def __init__(self):
        paths = os.pathsep.join([str(ROOT), str(ROOT / "test")])
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, str(ROOT / "test" / "tiny_street.py")]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, config: Config, out: Path, **env: str) -> int:
        job = {"config": to_dict(config), "out": str(out), "teacher": None, "env": env}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self, pid: int, seconds: float = 200) -> None:
        end = time.monotonic() + seconds
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < end, "the run does not end"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.kill()
    server.process.wait()


def resumable(workers: int) -> Config:
    """Eight epochs of two steps with everything that has a state: averaging, moments, accumulation, warm-up, dropout, validation."""
    optim = {"steps": 15, "steps_per_epoch": 2, "accumulate": 2, "clip": 1.0, "warmup": 4, "lr": 5e-3}
    return tiny_config(
        {"optim": optim, "trainer.val_every": 3, "loss": {"dice": 0.5, "class_weight_power": 0.5}}, workers=workers, x_dropout=0.3
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    fit(resumable(0), out, quiet=True)
    return out


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_is_killed_twice_and_resumed_has_the_weights_of_one_that_was_not(server, uninterrupted, tmp_path, workers):
    out, last, random = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt", np.random.default_rng(workers)
    for _ in range(2):
        before = last.stat().st_mtime_ns if last.exists() else 0
        pid = server.start(resumable(workers), out)
        while not (last.exists() and last.stat().st_mtime_ns != before):
            assert Path(f"/proc/{pid}").exists(), "it ended by itself"
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        server.wait(pid)
    assert not (out / "result.json").exists() and len(rows_of(out)) < 8
    fit(resumable(workers), out, quiet=True)
    assert_same(out, uninterrupted)
    assert rows_of(out) == rows_of(uninterrupted)
    best, other = (torch.load(run / "checkpoints" / "best.ckpt", weights_only=True) for run in (out, uninterrupted))
    assert best["record"]["step"] == other["record"]["step"] and best["record"]["val_counts"] == other["record"]["val_counts"]


def test_a_run_killed_before_its_result_was_written_only_writes_it(uninterrupted):
    before, weights = RunResult.load(uninterrupted), (uninterrupted / "checkpoints" / "last.ckpt").read_bytes()
    (uninterrupted / "result.json").unlink()
    after = fit(resumable(0), uninterrupted, quiet=True)
    assert after.val == before.val and (uninterrupted / "checkpoints" / "last.ckpt").read_bytes() == weights


def test_two_processes_score_as_one_and_each_validation_frame_once(server, tmp_path):
    splits = {split: {"dataset": "tiny", "root": ".", "split": split, "options": {"count": 5}, "groups": "4$"} for split in ("val", "test")}
    config = tiny_config({"trainer.devices": 2, "trainer.val_batch": 1, "optim.steps": 3}, **splits)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    shared |= {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    for pid in [server.start(config, tmp_path, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]:
        server.wait(pid)
    result = RunResult.load(tmp_path)
    network, record = load_network(tmp_path)
    for split, score in (("val", result.val), ("test", result.test)):
        frames = open_dataset("tiny", ".", split, x="depth", count=5)
        assert evaluate(network, frames, 1).counts.tolist() == score["counts"]
        assert np.sum(score["counts"]) == sum((frames[i].labels != 255).sum() for i in range(5))
    assert set(result.test["groups"]) == {"4"} and record.step == 3 and len(rows_of(tmp_path)) == 1


# What a run leaves.


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    fit(tiny_config({"optim.steps": 24, "optim.steps_per_epoch": 12}, batch=4), out, quiet=True)
    return out


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "student"
    config = tiny_config({"model.kind": "student"}, test={"dataset": "tiny", "root": ".", "split": "test", "options": {"count": 2}})
    fit(config, out, teacher, quiet=True)
    return out


def test_a_run_folder_holds_what_the_docs_say(student):
    names = {path.name for path in student.iterdir()}
    assert names == {"config.yaml", "result.json", "checkpoints", "metrics.csv", "tensorboard", "curves.png", "sheet.png"}
    assert {path.name for path in (student / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert cv2.imread(str(student / "curves.png")).std() > 5 and any((student / "tensorboard").glob("events*"))
    # Two rows of RGB, X, truth, teacher, student and errors, each 320 wide with a margin, above a legend.
    sheet = cv2.imread(str(student / "sheet.png"))
    assert sheet.shape[1] == 6 * (320 + 4) and sheet.shape[0] > 2 * 213
    rows = rows_of(student)
    assert [row["step"] for row in rows] == ["3", "6"] and {"loss", "ce", "kd", "lr", "val_miou"} <= set(rows[0])
    assert float(rows[0]["loss"]) == pytest.approx(float(rows[0]["ce"]) + float(rows[0]["kd"]), rel=1e-4)


def test_the_weights_of_the_controller_are_drawn_for_each_frame(student, teacher, tmp_path):
    (seen, record), (taught, _) = load_network(student), load_network(teacher)
    config = DistillConfig("lix", lix=LIXConfig(feature=0))
    distiller = build_distiller(config, seen.feature_channels, taught.feature_channels, len(record.labels), taught.x_channels)
    frames = open_dataset("tiny", ".", "val", x="depth", count=2)
    report.weights(seen, taught, distiller, [frames[0], frames[1]], tmp_path / "weights.png")
    picture = cv2.imread(str(tmp_path / "weights.png"))
    upper, lower = np.array_split(picture, 2)
    # Five pictures a row, each with something in it, and the rows are of different frames.
    assert all(column.std() > 10 for row in (upper, lower) for column in np.array_split(row, 5, axis=1))
    assert np.abs(upper[: len(lower)].astype(int) - lower).mean() > 1


def test_the_weights_of_the_controller_are_those_of_training(student, teacher, tmp_path, monkeypatch):
    """Each network sees the picture normalised as its own encoder wants it, and frames of any size."""
    (seen, record), (taught, _) = load_network(student), load_network(teacher)
    seen.mean = (100.0, 90.0, 80.0)
    config = DistillConfig("lix", lix=LIXConfig(feature=0))
    distiller = build_distiller(config, seen.feature_channels, taught.feature_channels, len(record.labels), taught.x_channels)
    maps, said = distiller.maps, []
    monkeypatch.setattr(distiller, "maps", lambda s, t, b: said.append((s, t, b)) or maps(s, t, b))
    report.weights(seen, taught, distiller, [open_dataset("tiny", ".", "val", x="depth", sizes=[(70, 90)])[0]], tmp_path / "weights.png")
    ((student_said, teacher_said, batch),) = said
    assert batch.image.shape[-2:] == (96, 96) and (batch.labels[:, 70:] == 255).all() and not batch.known[..., 90:].any()
    with torch.inference_mode():
        torch.testing.assert_close(student_said.logits, outputs(seen, batch).logits)
        torch.testing.assert_close(teacher_said.logits, outputs(taught, batch).logits)


@pytest.mark.parametrize("logit, size", [(1.0, None), (1.0, [45, 70]), (0.0, None)])
def test_a_run_of_lix_draws_what_its_controller_does_and_one_without_it_does_not(teacher, tmp_path, logit, size):
    lix = {"model.kind": "student", "distill.method": "lix", "distill.lix.logit": logit, "optim.steps": 1}
    fit(tiny_config(lix, eval_size=size), tmp_path, teacher, quiet=True)
    assert (tmp_path / "sheet.png").exists() and (tmp_path / "weights.png").exists() == bool(logit)


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_run_its_result(tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("no colours left")

    monkeypatch.setattr(report, "sheet", refuse)
    with pytest.warns(UserWarning, match="the pictures of .* are not whole: no colours left"):
        assert fit(tiny_config({"optim.steps": 1}), tmp_path, quiet=True).val["miou"] >= 0
    assert RunResult.load(tmp_path).steps == 1 and (tmp_path / "curves.png").exists()


def test_a_result_says_what_was_done_and_its_scores_are_those_of_the_weights_it_names(student, teacher):
    result = RunResult.load(student)
    network, record = load_network(student)
    for split, score in (("val", result.val), ("test", result.test)):
        (matrix,) = compare([student], split).scores.values()
        assert matrix.counts.tolist() == score["counts"] and matrix.summary(TINY.names)["iou"] == score["iou"]
    assert result.test["names"] == list(TINY.names) == list(record.labels.names)
    assert (result.steps, result.torch, record.x_kind) == (6, torch.__version__, "depth")
    assert result.seconds > 0 and result.device and len(result.teacher) == 64 and len(result.git_revision.removesuffix("-dirty")) in (7, 40)
    assert result.parameters == sum(p.numel() for p in network.parameters()) and not network.training
    assert record.config == from_dict(result.config)


def test_the_teacher_is_no_part_of_the_students_checkpoint_and_stays_as_it_was(student, teacher):
    saved = torch.load(student / "checkpoints" / "last.ckpt", weights_only=True)
    assert {key.split(".")[0] for key in saved["state_dict"]} <= {"network", "distiller"}
    learner = Run(tiny_config({"model.kind": "student"}), student.parent / "other", [teacher]).learner
    learner.train()
    assert not learner.teachers[0].training and not any(p.requires_grad for p in learner.teachers[0].parameters())
    assert not {id(p) for p in learner.teachers[0].parameters()} & {id(p) for p in learner.parameters()}


def test_a_finished_run_is_returned_without_training_or_data(student, teacher, monkeypatch):
    monkeypatch.setattr(Run, "__init__", lambda *_: pytest.fail("it was trained again"))
    config = from_dict(RunResult.load(student).config)
    config.data.workers, config.data.sources[0].root = 5, "moved"
    assert fit(config, student, teacher) == RunResult.load(student)


def test_a_finished_run_of_another_teacher_or_start_is_no_result(student, teacher, tmp_path):
    config = from_dict(RunResult.load(student).config)
    shutil.copytree(teacher, tmp_path / "other")
    saved = torch.load(tmp_path / "other" / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save({**saved, "more": 1}, tmp_path / "other" / "checkpoints" / "best.ckpt")
    with pytest.raises(TrainingError, match="holds a finished run with another teacher than .*other; name another folder"):
        fit(config, student, tmp_path / "other", quiet=True)
    with pytest.raises(TrainingError, match="holds a finished run with another start than"):
        fit(config, student, teacher, quiet=True, start=teacher)
    with pytest.raises(TrainingError, match="nowhere is no run folder"):
        fit(config, student, tmp_path / "nowhere", quiet=True)


def test_options_that_came_to_be_since_a_run_do_not_make_it_another(student, teacher, tmp_path):
    shutil.copytree(student, tmp_path / "old")
    tree = yaml.safe_load((tmp_path / "old" / "config.yaml").read_text())
    del tree["distill"]["class_weights"], tree["optim"]["accumulate"]
    (tmp_path / "old" / "config.yaml").write_text(yaml.safe_dump(tree))
    assert fit(from_dict(RunResult.load(student).config), tmp_path / "old", teacher, quiet=True).steps == 6


def test_a_teacher_that_was_never_without_x_teaches_nothing_on_frames_without(teacher, tmp_path):
    run = Run(tiny_config({"model.kind": "student"}, x_dropout=0.9, x_holes=0.9), tmp_path, [teacher])
    learner = run.learner
    run.data.trainer = learner.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=0)
    batch = next(iter(run.data.train_dataloader()))
    assert learner.teacher_needs_x and (batch.x != 0).flatten(1).any(1).all()  # dropping X is for teachers
    assert (run.data.config.x_dropout, run.data.config.x_holes) == (0, 0)  # and so are holes
    image = learner.network.normalise(batch.image)
    said = learner.network.outputs(image)
    lost = dataclasses.replace(batch, known=batch.known.clone(), x=batch.x.clone())
    lost.known[0], lost.x[0] = False, 0.0
    second = torch.tensor([False, True])
    whole, half = learner._lesson(said, batch)["kd"], learner._lesson(said, lost)["kd"]
    torch.testing.assert_close(half, learner._lesson(said.only(second), batch.only(second))["kd"])
    assert batch.only(second).names == batch.names[1:] and abs(whole - half) > 1e-3
    lost.known[1] = False
    assert learner._lesson(said, lost)["kd"].item() == 0
    # Nor does a pixel of them count for the processes beside this one.
    counted, terms = [], learner.distiller.terms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.distiller, "terms", lambda s, t, b: counted.append(learner.distiller.lesson(s, t, b)) or terms(s, t, b))
        learner._lesson(said, lost)
    assert (counted[0].classes == 255).all()
    # One that was sometimes without X has something to say of every frame.
    learner.teacher_needs_x = False
    assert learner._lesson(said, lost)["kd"].item() > 0


def test_a_folder_of_another_run_is_refused_with_what_differs(student, teacher):
    config = from_dict(RunResult.load(student).config)
    config.optim.lr = 0.5
    with pytest.raises(TrainingError, match=r"holds a run of other settings \(optim.lr: 0.005 -> 0.5\)"):
        fit(config, student, teacher)


def test_tasks_of_a_cluster_that_do_not_fit_the_run_are_told(tmp_path, monkeypatch):
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    for key, value in job.items():
        monkeypatch.setenv(key, value)
    for tasks, devices, words in (
        ({"SLURM_NTASKS": "2"}, 1, "trainer.devices=1, trainer.nodes=1 cannot be had here: You set `--ntasks=2`"),
        (
            {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"},
            2,
            "trainer.devices=2, trainer.nodes=1 cannot be had here: You set `devices=2`",
        ),
    ):
        with monkeypatch.context() as patch:
            for key, value in tasks.items():
                patch.setenv(key, value)
            with pytest.raises(TrainingError, match=re.escape(words)):
                fit(tiny_config({"trainer.devices": devices, "trainer.accelerator": "cpu"}), tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())


def test_views_that_the_teacher_cannot_take_are_told_before_training(teacher, tmp_path, monkeypatch):
    def of_stride_64(run):
        network, record = load_network(run)
        network.stride = 64
        return network, record

    monkeypatch.setattr(run_module, "load_network", of_stride_64)
    with pytest.raises(TrainingError, match=f"data.crop is .*: both must be multiples of 64, the stride of .*, of the teacher {teacher}"):
        fit(tiny_config({"model.kind": "student"}), tmp_path, teacher, quiet=True)


def test_a_mistake_that_was_told_does_not_keep_the_folder(tmp_path):
    right = tiny_config({"optim.steps": 1})
    for wrong, words in (
        (tiny_config({"optim.steps": 1}, crop=[32, 50]), "multiples of 32"),
        (
            tiny_config({"optim.steps": 1, "trainer.accelerator": "gppu"}),
            "trainer.accelerator=gppu, trainer.devices=1, trainer.nodes=1 cannot be had here",
        ),
    ):
        with pytest.raises(TrainingError, match=words):
            fit(wrong, tmp_path, quiet=True)
    assert fit(right, tmp_path, quiet=True).steps == 1
    (tmp_path / "config.yaml").write_text("{")
    for resume in (True, False):
        with pytest.raises(TrainingError, match="config.yaml is there, and no run wrote it"):
            fit(right, tmp_path, resume=resume, quiet=True)
    (tmp_path / "config.yaml").write_text(to_yaml(right))
    (tmp_path / "result.json").unlink()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"broken")
    with pytest.raises(TrainingError, match="last.ckpt cannot be read"):
        fit(right, tmp_path, quiet=True)


def test_a_teacher_is_the_same_run_however_its_students_are_distilled(teacher):
    config = from_dict(RunResult.load(teacher).config)
    config.distill.lix.logit = 0.5
    assert fit(config, teacher).checkpoint_step == RunResult.load(teacher).checkpoint_step


def test_without_resuming_a_run_is_trained_anew_and_other_files_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    first = fit(tiny_config({"optim.steps": 1}), tmp_path, quiet=True)
    second = fit(tiny_config({"optim.steps": 2}), tmp_path, resume=False, quiet=True)
    assert (first.checkpoint_step, second.checkpoint_step) == (1, 2) and len(rows_of(tmp_path)) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"
    # Not where there is nothing to put in its place.
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for config, options, words in (
        (tiny_config(crop=[32, 50]), {}, "multiples of 32"),
        (tiny_config(scale=[2.0, 0.5]), {}, "scale"),
        (tiny_config({"trainer.accelerator": "gppu"}), {}, "cannot be had here"),
        (tiny_config({"trainer.devices": 3}), {}, "data.batch is 2, for 3 processes"),
        (tiny_config(), {"start": tmp_path}, "cannot be the folder of a run and its start"),
        (tiny_config({"model.kind": "student"}), {"teacher": tmp_path}, "cannot be the folder of a run and its teacher"),
    ):
        with pytest.raises((TrainingError, DataError), match=words):
            fit(config, tmp_path, resume=False, quiet=True, **options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_what_no_run_left_is_neither_removed_nor_replaced(tmp_path):
    mine = {name: tmp_path / name for name in ("checkpoints/mine.pt", "tensorboard/notes", "sheet.png")}
    for path in mine.values():
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    fit(tiny_config({"optim.steps": 1, "trainer.sheet_frames": 0}), tmp_path, resume=False, quiet=True)
    fit(tiny_config({"optim.steps": 2, "trainer.sheet_frames": 0}), tmp_path, resume=False, quiet=True)
    del mine["sheet.png"]  # a run's name
    assert all(path.read_text() == "mine" for path in mine.values()) and len(list(tmp_path.glob("tensorboard/events*"))) == 1
    config = tmp_path / "other" / "config.yaml"
    config.parent.mkdir()
    config.write_text("# mine\noptim: {steps: 1}\n")
    for resume in (True, False):
        with pytest.raises(TrainingError, match="other/config.yaml is there, and no run wrote it"):
            fit(tiny_config(), config.parent, resume=resume, quiet=True)
    assert config.read_text().startswith("# mine")
    (config.parent / "checkpoints").mkdir()
    mine = [config, *(config.parent / "checkpoints" / name for name in ("last.ckpt", "epoch=9.ckpt"))]  # of another program that trains
    for path in mine[1:]:
        path.write_text("mine")
    for path, words in ((config, "config.yaml is there, and no run wrote it"), (None, "has files as of a run, and no config.yaml")):
        for resume in (True, False):
            with pytest.raises(TrainingError, match=words):
                fit(tiny_config(), config.parent, resume=resume, quiet=True)
        assert all(path.read_text().lstrip("# ").startswith("mine") for path in mine if path.exists())
        config.unlink(missing_ok=True)
    shutil.rmtree(config.parent / "checkpoints")
    config.write_text(to_yaml(tiny_config({"optim.steps": 4})))  # of a run that was stopped before its first epoch ended
    assert fit(tiny_config({"optim.steps": 1}), config.parent, quiet=True).steps == 1


def test_a_folder_in_which_another_process_trains_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "LEFT_OVER_S", 0.2)
    slow = tiny_config({"optim.steps": 400}, sources=[{"dataset": "tiny", "root": ".", "options": {"delay": 0.05}}])
    pid = server.start(slow, tmp_path)
    while not (tmp_path / "config.yaml").exists():
        time.sleep(0.02)
    with pytest.raises(TrainingError, match="another process trains in .*: wait for its end, or name another folder"):
        fit(slow, tmp_path, quiet=True)
    os.kill(pid, signal.SIGKILL)
    server.wait(pid)
    fit(tiny_config({"optim.steps": 1}), tmp_path, resume=False, quiet=True)


def test_the_result_of_another_process_that_trains_in_the_folder_is_waited_for(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_module, "LEFT_OVER_S", 0.1)
    slow = tiny_config({"optim.steps": 8}, sources=[{"dataset": "tiny", "root": ".", "options": {"delay": 0.05}}])
    pid = server.start(slow, tmp_path)
    while not (tmp_path / "config.yaml").exists():
        time.sleep(0.02)
    monkeypatch.setattr(Run, "train", lambda self: pytest.fail("trained"))
    assert fit(slow, tmp_path, quiet=True, wait=True).steps == 8
    assert f"another process trains in {tmp_path}: waiting for its end" in capsys.readouterr().out
    server.wait(pid)


def test_a_run_is_made_with_the_numbers_of_its_configuration(tmp_path):
    optim = {"steps": 15, "steps_per_epoch": 4, "accumulate": 3, "clip": 0.7, "ema": 0.8}
    loss = {"dice": 0.3, "ohem": 0.6, "ohem_keep": 0.25, "class_weight_power": 0.5}
    trainer = {"val_every": 2, "val_batch": 3, "precision": "bf16-mixed", "accelerator": "cpu"}
    run = Run(tiny_config({"optim": optim, "loss": loss, "trainer": trainer}, eval_size=[32, 48]), tmp_path)
    run.set_up(quiet=True)
    hard, made = run.learner.hard, run.trainer
    assert (hard.dice, hard.ohem, hard.ohem_keep) == (0.3, 0.6, 0.25)
    torch.testing.assert_close(hard.weights, class_weights(run.data.count_pixels(), 0.5))
    assert (made.accumulate_grad_batches, made.gradient_clip_val, made.precision, made.max_epochs) == (3, 0.7, "bf16-mixed", 4)
    assert (run.data.accumulate, run.data.steps_per_epoch, run.journal.every, run.journal.epochs) == (3, 4, 2, 4)
    assert [callback.decay for callback in made.callbacks if isinstance(callback, MovingAverage)] == [0.8]
    found, expected = run.journal.score(run.learner.network), evaluate(run.learner.network, run.data.val, 3, (32, 48))
    assert found.counts.tolist() == expected.counts.tolist() and found.counts.sum() < 3 * 32 * 48


def test_the_initial_weights_do_not_depend_on_the_method(teacher, tmp_path):
    runs = [Run(tiny_config({"model.kind": "student", "distill.method": m}), tmp_path, t) for m, t in (("none", []), ("mgd", [teacher]))]
    plain, taught = (run.learner.network.state_dict() for run in runs)
    assert all(torch.equal(plain[key], taught[key]) for key in plain)
    other = Run(tiny_config({"model.kind": "student", "distill.method": "none", "seed": 1}), tmp_path).learner.network.state_dict()
    assert not torch.equal(plain["decoder.head.weight"], other["decoder.head.weight"])


def test_a_teacher_of_fewer_stages_is_compared_stride_by_stride():
    student = Student(3, "mobilenetv3_small_050", weights="none")  # five stages, from a stride of 2 on
    teacher = Teacher(3, 1, "convnext_atto", weights="none")  # four, from 4 on
    names = partners(student, teacher)
    assert names == {"stage1": "stage2", "stage2": "stage3", "stage3": "stage4", "stage4": "stage5", "decoder": "decoder"}
    assert partners(teacher, student) == {other: own for own, other in names.items()}
    image, known = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.ones(2, 64, 96, dtype=torch.bool)
    labels, labelled = torch.zeros(2, 64, 96, dtype=torch.int64), torch.ones(2, dtype=torch.bool)
    batch = Batch(image, labels, torch.randn(2, 1, 64, 96), known, labelled, known, ["a", "b"])
    learner = Learner(tiny_config(), student, HardLoss(None), [teacher])
    seen, taught = outputs(student, batch), learner._taught(batch)
    assert [*taught.features] == ["stage2", "stage3", "stage4", "stage5", "decoder"]
    own = outputs(teacher, batch).features
    for name, wanted in (("stage2", "stage1"), ("stage5", "stage4")):
        assert torch.equal(taught.features[name], own[wanted]) and own[wanted].shape[-2:] == seen.features[name].shape[-2:]


@pytest.mark.parametrize("encoder", ["efficientnet_lite0", "mobilenetv3_small_050", "resnet18"])
def test_batch_norms_that_are_synchronised_leave_the_network_what_it_is(encoder):
    """Activations that timm has in its batch norms too: PyTorch's own conversion takes them out."""
    torch.manual_seed(0)
    network = Student(3, encoder, weights="none").eval()
    image = torch.rand(1, 3, 64, 96)
    before, keys, norms = network(image), list(network.state_dict()), sum(isinstance(m, _BatchNorm) for m in network.modules())
    sync = SyncedBatchNorms()
    synced = sync.revert(sync.apply(network))
    assert torch.equal(synced(image), before) and list(synced.state_dict()) == keys
    assert sum(isinstance(m, torch.nn.SyncBatchNorm) for m in synced.modules()) == norms > 0


def test_the_last_epoch_may_be_shorter_and_without_validation_the_last_weights_are_kept(tmp_path):
    result = fit(tiny_config({"optim.steps": 5}, val=None), tmp_path, quiet=True)
    assert [row["step"] for row in rows_of(tmp_path)] == ["3", "5"]
    assert result.val is None and result.checkpoint_step == 5


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_training_in_lower_precision_scores_in_float32(tmp_path, precision):
    result = fit(tiny_config({"trainer.precision": precision}), tmp_path, quiet=True)
    assert counts_of(tmp_path).tolist() == result.val["counts"]


def test_frames_without_labels_train_too(teacher, tmp_path):
    config = tiny_config({"model.kind": "student", "distill.method": "lix", "optim.steps": 2})
    config.data.sources[0].labelled = 0.0
    fit(config, tmp_path, teacher, quiet=True)
    row = rows_of(tmp_path)[0]
    assert float(row["ce"]) == 0 and float(row["loss"]) > 0


# How runs go wrong.


def test_a_loss_that_is_no_number_names_the_frame_and_leaves_the_checkpoint_before(tmp_path):
    sources = [{"dataset": "tiny", "root": ".", "options": {"count": 6, "poison": 4}}]
    config = tiny_config({"optim": {"steps": 8, "steps_per_epoch": 1, "warmup": 0}}, sources=sources, scale=[0.5, 0.5], flip=0)
    with pytest.raises(
        TrainingError, match=r"the loss of step [12] is not finite \(ce nan\): X of train4 are not finite; the last checkpoint"
    ):
        fit(config, tmp_path, quiet=True)
    assert all(torch.isfinite(v).all() for v in state_of(tmp_path).values())


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    with pytest.raises(TrainingError, match="not finite"):
        fit(tiny_config({"optim.lr": 1e38, "optim.warmup": 0, "optim.ema": 0.0}), tmp_path, quiet=True)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_disk_that_fills_up_stops_the_run_which_then_goes_on_as_if_nothing_had_been(uninterrupted, tmp_path, monkeypatch):
    calls, fsync = [], os.fsync

    def full(descriptor):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="cannot write checkpoint .*: No space left on device; what was saved before is whole"):
        fit(resumable(0), tmp_path, quiet=True)
    monkeypatch.undo()
    fit(resumable(0), tmp_path, quiet=True)
    assert_same(tmp_path, uninterrupted)


def test_a_teacher_no_better_than_chance_does_not_teach(tmp_path):
    fit(tiny_config({"optim": {"steps": 1, "lr": 0.0, "warmup": 0}}), tmp_path / "teacher", quiet=True)
    with pytest.raises(
        TrainingError, match=r"has mIoU 0\.\d+ on 3 frames, always answering the most frequent class 0\.\d+: it has nothing"
    ):
        fit(tiny_config({"model.kind": "student"}), tmp_path / "student", tmp_path / "teacher", quiet=True)


def test_a_teacher_is_checked_on_labelled_frames_that_it_can_see(teacher, tmp_path):
    fit(tiny_config({"optim": {"steps": 1, "lr": 0.0, "warmup": 0}}), tmp_path / "bad", quiet=True)
    few = {"sources": [{"dataset": "tiny", "root": ".", "options": {"noise": 5}, "labelled": 0.05}], "val": None}
    student = {"model.kind": "student", "optim.steps": 1, "trainer.teacher_frames": 1}
    assert fit(tiny_config(student, **few), tmp_path / "a", teacher, quiet=True).steps == 1  # the one labelled frame is not the first
    with pytest.raises(TrainingError, match="on 1 frames, always answering the most frequent class .*: it has nothing"):
        fit(tiny_config(student, **few), tmp_path / "b", tmp_path / "bad", quiet=True)
    bare = {"sources": [{"dataset": "tiny", "root": ".", "options": {"unlabelled": True}}, *few["sources"]], "val": None}
    with pytest.raises(TrainingError, match="on 1 frames, always"):  # a source without labels of its own is passed over
        fit(tiny_config(student, **bare), tmp_path / "d", tmp_path / "bad", quiet=True)
    few["sources"][0]["labelled"] = 0.0
    assert fit(tiny_config(student, **few), tmp_path / "c", tmp_path / "bad", quiet=True).steps == 1


def test_a_student_is_no_teacher(student, tmp_path):
    with pytest.raises(TrainingError, match="is the run of a student, not of a teacher; set distill.rgb_teacher=true where one that sees"):
        fit(tiny_config({"model.kind": "student"}), tmp_path, student, quiet=True)


def test_a_student_teaches_where_that_is_asked_for(student, tmp_path):
    """Self-training: what beside it is taught with X tells what X is worth."""
    changes = {"model.kind": "student", "distill.method": "kd", "distill.rgb_teacher": True, "optim.steps": 2, "optim.steps_per_epoch": 2}
    result = fit(tiny_config(changes), tmp_path, student, quiet=True)
    network, record = load_network(tmp_path)
    assert result.steps == 2 and record.teacher == result.teacher == weights_module.checksum(student)
    line = Lineage(record, (Lineage(load_network(student)[1]),))
    assert description(line).endswith("with the decoder fast_fpn, taught by an RGB teacher (kd).")


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> list[Path]:
    """Teachers that have each learned the labels of one half of the frames."""
    outs = [tmp_path_factory.mktemp("halves") / name for name in ("first", "second")]
    for out, part in zip(outs, ("1/2", "2/2")):
        source = {"dataset": "tiny", "root": ".", "options": {"noise": 5}, "part": part}
        fit(tiny_config({"optim.steps": 24, "optim.steps_per_epoch": 12, "name": out.name}, batch=4, sources=[source]), out, quiet=True)
    return outs


def test_of_several_teachers_each_frame_is_taught_by_one_that_has_not_learned_its_label(halves, tmp_path):
    """Frames that none has learned are taught in turns, whether the student sees their labels or not."""
    source = {"dataset": "tiny", "root": ".", "options": {"noise": 5}, "per_batch": 2}
    sources = [source, {**source, "labelled": 0, "keep": "unlabelled", "per_batch": 1}, {**source, "split": "other", "per_batch": 1}]
    config = tiny_config({"model.kind": "student"}, sources=sources, batch=4)
    run = Run(config, tmp_path / "run", halves)
    assert [run.learner.speaks[f"train{i}"] for i in range(12)] == [1] * 6 + [0] * 6
    assert [run.learner.speaks[f"other{i}"] for i in range(4)] == [0, 1, 0, 1]
    frames = tiny_street.TinyStreet(x="depth", noise=5)
    batch = collate([frames[i] for i in (7, 2, 9, 11, 0)])
    student = outputs(run.learner.network, batch)
    taught, (first, second) = run.learner._taught(batch), (outputs(load_network(half)[0], batch) for half in halves)
    for place, answer in enumerate((first, second, first, first, second)):
        torch.testing.assert_close(taught.logits[place], answer.logits[place])
        torch.testing.assert_close(taught.features["decoder"][place], answer.features["decoder"][place])
    assert not torch.allclose(first.logits, second.logits) and taught.features.keys() == student.features.keys()
    alone = run.learner._taught(batch.only(torch.tensor([True, False, True, False, False])))
    torch.testing.assert_close(alone.logits, first.logits[[0, 2]])
    result = fit(config, tmp_path / "run", halves, quiet=True)
    assert result.teacher == "+".join(map(weights_module.checksum, halves)) and fit(config, tmp_path / "run", halves).steps == 6
    with pytest.raises(TrainingError, match="another teacher than .*second and .*first"):
        fit(config, tmp_path / "run", halves[::-1], quiet=True)


def test_what_a_run_started_from_had_learned_it_has_learned_too(halves, tmp_path):
    """Of a chain of runs the first ones' labels count as well: for who speaks of a frame, and in what `compare` remarks."""
    other = {"dataset": "tiny", "root": ".", "split": "other"}
    for n, begun in enumerate([halves[0], tmp_path / "tuned0"]):
        fit(tiny_config({"optim.lr": 0}, sources=[other]), tmp_path / f"tuned{n}", start=begun, quiet=True)
    record = load_network(tmp_path / "tuned1")[1]
    assert [(source.split, source.part) for source in record.sources] == [("other", ""), ("other", ""), ("train", "1/2")]
    run = Run(tiny_config({"model.kind": "student"}), tmp_path / "run", [tmp_path / "tuned1", halves[1]])
    assert [run.learner.speaks[f"train{i}"] for i in range(12)] == [1] * 6 + [0] * 6


def test_teachers_that_cannot_teach_together_are_refused(halves, teacher, tmp_path):
    config = tiny_config({"model.kind": "student"})
    with pytest.raises(TrainingError, match=f"the teacher {halves[0]} is named twice"):
        fit(config, tmp_path, [halves[0], halves[0]], quiet=True)
    other = tmp_path / "other"
    fit(tiny_config({"model.fusion": "gated", "optim.steps": 24}, batch=4), other, quiet=True)
    with pytest.raises(TrainingError, match="teachers of one student are of one build; fusion of .*first is 'sum', of .*other 'gated'"):
        fit(config, tmp_path / "run", [halves[0], other], quiet=True)
    run = Run(config, tmp_path / "run", [teacher, halves[0]])  # the first has learned all frames, the second half of them
    assert [run.learner.speaks[f"train{i}"] for i in range(12)] == [i % 2 for i in range(6)] + [1] * 6


def test_a_frame_name_that_means_two_teachers_is_refused(halves, tmp_path, monkeypatch):
    """Names are all that a batch says of its frames."""

    def learned(sources, frames):
        return {"train0"} if sources[0].part[0] == frames.source.split[-1] else set()

    monkeypatch.setattr(run_module, "learned", learned)
    source = {"dataset": "tiny", "root": "."}
    monkeypatch.setattr(run_module.Frames, "name", lambda frames, place: f"train{place}")
    with pytest.raises(TrainingError, match="two sources have a frame train0: of several teachers, the name tells which one speaks of it"):
        Run(tiny_config({"model.kind": "student"}, sources=[{**source, "split": "a1"}, {**source, "split": "a2"}]), tmp_path, halves)


BLIND = {"dataset": "tiny", "root": ".", "options": {"blind": True}}


@pytest.mark.parametrize(
    ("changes", "data", "words"),
    [
        (
            {},
            {"sources": [{"dataset": "tiny", "root": ".", "options": {"names": ["ground", "wall", "water"]}}], "val": None},
            "other labels",
        ),
        ({}, {"x": "normals"}, "sees X 'depth', this data gives 'normals': set data.x=depth"),
        ({}, {"sources": [BLIND]}, "sees X 'depth', no frames of tiny train have any: add a data set that has"),
        ({}, {"sources": [{"dataset": "tiny", "root": ".", "options": {"names": ["ground"]}}], "val": None}, "has one class, ground"),
        ({}, {"crop": [32, 32], "batch": 1}, "one view of 32x32 pixels, one cell at stride 32, over which batch normalisation"),
        ({}, {"crop": [32, 50]}, "data.crop is 32x50: both must be multiples of 32"),
        ({"distill.class_weights": True}, {}, "takes the weights of L_H, which has none: set loss.class_weight_power above 0"),
        ({"distill.lix.features": ["stage9"], "distill.method": "lix"}, {}, "no feature 'stage9'"),
    ],
)
def test_a_teacher_and_data_that_do_not_fit_are_refused(teacher, tmp_path, changes, data, words):
    with pytest.raises(TrainingError, match=words):
        fit(tiny_config({"model.kind": "student", **changes}, **data), tmp_path, teacher, quiet=True)


def test_class_weights_reach_the_distiller(teacher, tmp_path):
    changes = {"model.kind": "student", "distill.class_weights": True, "loss.class_weight_power": 0.5}
    learner = Run(tiny_config(changes), tmp_path, [teacher]).learner
    torch.testing.assert_close(learner.distiller.class_weights, learner.hard.weights)


def test_a_teacher_that_can_do_without_x_teaches_on_frames_without(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "_check_teacher", lambda *_: None)  # after three steps it has little to say
    fit(tiny_config({"optim.steps": 3}, x_dropout=0.5), tmp_path / "dropped", quiet=True)
    mixed = [{"dataset": "tiny", "root": "."}, BLIND]
    fit(tiny_config({"optim.steps": 3}, sources=mixed, val={**BLIND, "split": "val"}), tmp_path / "mixed", quiet=True)
    assert [load_network(tmp_path / run)[1].needs_x for run in ("dropped", "mixed")] == [False, False]
    for teacher in ("dropped", "mixed"):
        run = Run(tiny_config({"model.kind": "student"}, sources=[BLIND], val=None), tmp_path / "student", [tmp_path / teacher])
        run.data.trainer = run.learner.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=0)
        batch = next(iter(run.data.train_dataloader()))
        assert not batch.known.any() and not batch.x.any() and batch.x.shape[1] == 1
        said = run.learner.network.outputs(run.learner.network.normalise(batch.image))
        assert run.learner._lesson(said, batch)["kd"] > 0
        with pytest.raises(TrainingError, match="this data gives '': set data.x=depth"):  # which was forgotten
            Run(tiny_config({"model.kind": "student"}, x=""), tmp_path / "student", [tmp_path / teacher])


def test_the_revision_of_a_run_is_that_of_the_sources(tmp_path, monkeypatch):
    sources, results = tmp_path / "lix_core" / "training" / "run.py", tmp_path / "results" / "table.json"
    monkeypatch.setattr(run_module, "__file__", str(sources))
    for path in (sources, results):
        path.parent.mkdir(parents=True)
        path.write_text("1")
    assert run_module.git_revision() == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    results.write_text("2")
    assert run_module.git_revision() == commit
    sources.write_text("2")
    assert run_module.git_revision() == f"{commit}-dirty"
    installed = tmp_path / ".venv" / "lix_core" / "training" / "run.py"  # in a repository that it is no part of
    installed.parent.mkdir(parents=True)
    installed.write_text("1")
    monkeypatch.setattr(run_module, "__file__", str(installed))
    assert run_module.git_revision() == "unknown"


def test_a_run_that_starts_from_another_has_its_weights_and_names_it(student, tmp_path):
    still = tiny_config({"model.kind": "student", "distill.method": "none", "optim.lr": 0, "optim.weight_decay": 0, "optim.ema": 0})
    fit(still, tmp_path / "tuned", start=student, quiet=True)
    (first, _), (tuned, record) = load_network(student), load_network(tmp_path / "tuned")
    assert record.start == hashlib.sha256((student / "checkpoints" / "best.ckpt").read_bytes()).hexdigest() and not record.teacher
    for (name, before), after in zip(first.named_parameters(), tuned.parameters()):
        assert torch.equal(before, after), name
    other = dataclasses.replace(still, model=dataclasses.replace(still.model, fusion="late", x_encoder="resnet18"))  # a student has neither
    assert fit(other, tmp_path / "other", start=student, quiet=True).steps == 6
    (tmp_path / "tuned" / "result.json").unlink()  # as if it had been stopped: it does not go on as a run of its own
    with pytest.raises(TrainingError, match="was begun with the weights of another run; name that one"):
        fit(still, tmp_path / "tuned", quiet=True)


def test_a_student_that_starts_from_a_teacher_is_that_teacher_without_x(teacher, student, tmp_path):
    still = tiny_config({"model.kind": "student", "distill.method": "none", "optim.lr": 0, "optim.weight_decay": 0, "optim.ema": 0})
    fit(still, tmp_path / "run", start=teacher, quiet=True)
    (whole, _), (rgb, record) = load_network(teacher), load_network(tmp_path / "run")
    assert record.start == hashlib.sha256((teacher / "checkpoints" / "best.ckpt").read_bytes()).hexdigest() and not record.teacher
    for name in ("encoder", "decoder"):
        for (key, theirs), ours in zip(getattr(whole, name).named_parameters(), getattr(rgb, name).parameters(), strict=True):
            assert torch.equal(theirs, ours), key
    with pytest.raises(TrainingError, match="its kind is 'student', here it is 'teacher'"):  # which has no encoder of X
        fit(tiny_config(), tmp_path / "other", start=student, quiet=True)


def test_weights_that_are_replaced_at_once_are_not_fetched(student, tmp_path, monkeypatch):
    asked, build = [], run_module.build_network
    for module in (run_module, weights_module):
        monkeypatch.setattr(module, "build_network", lambda *given, weights: asked.append(weights) or build(*given, weights="none"))
    config = tiny_config({"model.kind": "student", "model.weights": "timm", "distill.method": "none", "optim.steps": 1})
    Run(config, tmp_path)
    Run(config, tmp_path, start=student)
    fit(tiny_config({"model.kind": "student", "distill.method": "none", "optim.steps": 1}), tmp_path / "begun", quiet=True)
    Run(config, tmp_path / "begun")
    fetched, loaded = None, "none"
    assert asked == [fetched, "none", loaded, fetched, loaded, "none"]


def test_a_run_cannot_start_from_another_network(teacher, tmp_path):
    for changes, words in (
        (
            {"model.kind": "student", "distill.method": "none", "model.decoder": "upernet"},
            "its decoder is 'fast_fpn', here it is 'upernet'",
        ),
        ({"model.encoder": "mobilenetv3_small_075"}, "its encoder is 'mobilenetv3_small_050', here it is 'mobilenetv3_small_075'"),
    ):
        with pytest.raises(TrainingError, match=f"a run cannot start from {re.escape(str(teacher))}: {words}"):
            fit(tiny_config(changes), tmp_path / "run", start=teacher, resume=False, quiet=True)
    with pytest.raises(TrainingError, match="its X is 'depth', here it is 'inverse_depth'"):
        fit(tiny_config(x="inverse_depth"), tmp_path / "run", start=teacher, resume=False, quiet=True)


def test_distilling_without_a_teacher_and_a_teacher_without_x_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="distill.method 'kd' needs a teacher"):
        fit(tiny_config({"model.kind": "student"}), tmp_path)
    with pytest.raises(TrainingError, match="a teacher needs X: set data.x"):
        fit(tiny_config(x=""), tmp_path)


def test_validation_frames_without_a_label_are_refused_before_training(tmp_path):
    for val in ({"labelled": 0.0}, {"options": {"unlabelled": True}}):
        with pytest.raises(TrainingError, match="not one labelled pixel"):
            fit(tiny_config({"trainer.val_every": 0}, val={"dataset": "tiny", "root": ".", **val}), tmp_path, quiet=True)
        assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data, words",
    [
        ({"sources": [BLIND]}, "a teacher needs X, and no frames of tiny train have any"),  # though val has
        ({"val": BLIND}, "data.val has no X, without which a teacher that never was without it"),
        ({"test": BLIND}, "data.test has no X, without which"),
        ({"sources": [{"dataset": "tiny", "root": ".", "labelled": 0.0}]}, "no frame of tiny train has a labelled pixel"),
    ],
)
def test_what_a_teacher_cannot_learn_from_or_be_scored_on_is_refused_before_training(tmp_path, data, words):
    with pytest.raises(TrainingError, match=words):
        fit(tiny_config(**data), tmp_path, quiet=True)
    assert not any(tmp_path.iterdir())


def test_a_teacher_that_can_do_without_x_is_scored_without(tmp_path):
    result = fit(tiny_config({"optim.steps": 1}, val=BLIND, x_dropout=0.5), tmp_path, quiet=True)
    assert result.val["counts"] == counts_of(tmp_path).tolist()


def test_kernels_that_are_not_deterministic_are_told_of(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("x_cuda does not have a deterministic implementation, but you set ...")

    monkeypatch.setattr(HardLoss, "forward", refuse)
    with pytest.raises(TrainingError, match="trainer.deterministic=true cannot be had with these losses here: x_cuda does not"):
        fit(tiny_config({"trainer.deterministic": True}), tmp_path, quiet=True)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "frames, words",
    [
        ({"options": {"names": ["ground", "wall"]}}, "has other labels than .*teacher: only 'tiny' has sky"),
        ({"x": ""}, "has no X, and .*teacher is of a teacher that never was without depth"),
    ],
)
def test_a_run_is_not_scored_on_other_labels_nor_a_teacher_without_its_x(teacher, tmp_path, frames, words):
    shutil.copytree(teacher, tmp_path / "teacher")
    path = tmp_path / "teacher" / "checkpoints" / "best.ckpt"
    saved = torch.load(path, weights_only=True)
    data = saved["record"]["config"]["data"]
    data["val"]["options"] = frames.get("options", {})
    data["x"] = frames.get("x", data["x"])
    torch.save(saved, path)
    with pytest.raises(TrainingError, match=words):
        compare([tmp_path / "teacher"], "val")


def test_checkpoints_that_are_none_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="there is no .*best.ckpt; checkpoints there: none"):
        load_network(tmp_path)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "best.ckpt").write_bytes(b"broken")
    with pytest.raises(TrainingError, match="best.ckpt cannot be read"):
        load_network(tmp_path)
    torch.save({"a": 1}, folder / "best.ckpt")
    with pytest.raises(TrainingError, match="is no checkpoint of lix"):
        load_network(tmp_path)


def test_a_checkpoint_of_which_a_bit_has_flipped_is_refused(student, tmp_path):
    path = tmp_path / "checkpoints" / "best.ckpt"
    path.parent.mkdir()
    content = bytearray((student / "checkpoints" / "best.ckpt").read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(TrainingError, match="best.ckpt cannot be read: the checksum of .* in it is wrong"):
        load_network(tmp_path)


@pytest.mark.parametrize("part", ["record", "network"])
def test_a_checkpoint_of_another_version_is_refused_in_one_line(student, tmp_path, part):
    saved = torch.load(student / "checkpoints" / "best.ckpt", weights_only=True)
    saved[part]["new"] = torch.zeros(3)
    (tmp_path / "checkpoints").mkdir()
    torch.save(saved, tmp_path / "checkpoints" / "best.ckpt")
    with pytest.raises(TrainingError, match="best.ckpt is of another version of lix or of timm than this one .*new.*: export it with"):
        load_network(tmp_path)


def test_the_best_checkpoint_is_that_of_the_highest_score(tmp_path, monkeypatch):
    scores = iter([0.5, 0.7, 0.6])

    def score(matrix):
        if "score" not in vars(matrix):
            matrix.score = next(scores, 0.0)
        return matrix.score

    monkeypatch.setattr("lix_core.metrics.ConfusionMatrix.miou", property(score))
    monkeypatch.setattr(Run, "_finish", lambda run: None)
    fit(tiny_config({"optim.steps": 3, "optim.steps_per_epoch": 1}), tmp_path, quiet=True)
    best, last = (load_network(tmp_path, which)[1].step for which in ("best", "last"))
    assert (best, last) == (2, 3)


# The command line.


def lix(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_runs_are_compared_on_the_same_frames(teacher, student, tmp_path):
    found = compare([teacher, student], "val")
    for name, run in (("teacher", teacher), ("student", student)):
        assert (found.scores[name].counts == counts_of(run)).all()
    done: list[tuple[int, int]] = []
    compare([teacher, student], "val", on_frames=lambda count, total: done.append((count, total)))
    assert {total for _, total in done} == {sum(count for count, _ in done)} == {2 * len(found.frames)}
    found.draw(tmp_path / "sheet.png", 2)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 5 * (320 + 4)  # RGB, X, truth and two answers
    compare([student], "val").draw(tmp_path / "one.png", 9)
    assert cv2.imread(str(tmp_path / "one.png")).shape[1] == 3 * (320 + 4)
    picture = tmp_path / "by" / "command.jpg"
    figures = tmp_path / "figures.json"
    done = lix("compare", student, teacher, "--split", "val", "--out", picture, "--frames", 1, "--json", figures)
    assert done.exit_code == 0 and f"{found.scores['student'].miou:.4f}" in done.output and picture.is_file()
    told = json.loads(figures.read_text())
    assert (told["split"], told["images"], told["remarks"]) == ("val", len(found.frames), {})
    assert told["runs"] == {name: matrix.summary(found.labels.names) for name, matrix in reversed(found.scores.items())}


def test_runs_that_were_trained_on_the_frames_they_are_compared_on_are_marked(teacher, student, tmp_path, monkeypatch):
    """As a run of another fold may be."""
    assert compare([teacher, student], "val").remarks == {}
    network, record = load_network(student)
    runs = {run.name: load_network(run) for run in (teacher, student)}

    def other(**changes):
        sources = [Source("tiny", ".", "other"), Source(**{"dataset": "tiny", "root": ".", "split": "val", **changes})]
        config = dataclasses.replace(record.config, data=dataclasses.replace(record.config.data, sources=sources))
        runs["fold1"] = network, dataclasses.replace(record, config=config)
        return compare([teacher, student, tmp_path / "fold1"], "val")

    monkeypatch.setattr("lix_core.training.compare.load_network", lambda run, *_: runs[Path(run).name])
    for changes in ({}, {"root": ""}, {"root": str(tmp_path / "gone")}):
        assert other(**changes).remarks == {"fold1": "trained with the labels of 3 of the 3 frames that it is scored on here"}
    assert other(labelled=0.5, options={"count": 4}).remarks["fold1"].startswith("trained with the labels of 2 of the 3 frames")
    assert other(labelled=0.0).remarks == other(dataset="camvid").remarks == other(root=str(tmp_path)).remarks == {}
    assert "cannot be told: the data set tiny has no option 'fold'" in other(options={"fold": 1}).remarks["fold1"]
    other()
    done = lix("compare", teacher, tmp_path / "fold1", "--split", "val", "--out", tmp_path / "sheet.png", "--frames", "1")
    assert "fold1 *: trained with the labels of 3 of the 3 frames" in done.stdout and "teacher *" not in done.stdout


def test_runs_are_compared_at_the_size_of_the_first(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "small")
    path = tmp_path / "small" / "checkpoints" / "best.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["record"]["config"]["data"]["eval_size"] = [32, 48]
    torch.save(saved, path)
    scores = compare([tmp_path / "small", teacher], "val").scores
    expected = counts_of(tmp_path / "small")
    assert 0 < expected.sum() <= 3 * 32 * 48 and all((matrix.counts == expected).all() for matrix in scores.values())


def test_runs_that_cannot_be_compared_are_named(teacher, student, tmp_path):
    for runs, split, words in (
        ([], "val", "there is no run to compare"),
        ([student, teacher, student], "val", f"the run {student} is named twice"),
        ([student, tmp_path / "none"], "val", "there is no .*none/checkpoints/best.ckpt"),
        ([student], "train", "a run is scored on val or test, got 'train'"),
        ([teacher, student], "test", f"the configuration of {re.escape(str(teacher))} has no data.test"),
    ):
        with pytest.raises(TrainingError, match=words):
            compare(runs, split)
    with pytest.raises(TrainingError, match="the checkpoint of a run is best or last, got 'first'"):
        compare([student], "val", "first")
    done = CliRunner().invoke(app, ["compare", str(student), "--out", str(tmp_path / "sheet.gif")])
    assert isinstance(done.exception, SourceError) and "PNG or JPEG" in str(done.exception)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": LabelSet("two", (Label("a", (0, 0, 0)), Label("b", (9, 9, 9))))}, "the runs teacher and other have different labels"),
        ({"x_kind": "normals"}, "the teachers see different X .teacher: depth, other: normals."),
    ],
)
def test_runs_of_other_labels_and_teachers_of_other_x_are_not_compared(teacher, monkeypatch, change, words):
    network, record = load_network(teacher)
    runs = {"teacher": (network, record), "other": (network, dataclasses.replace(record, **change))}
    monkeypatch.setattr("lix_core.training.compare.load_network", lambda run, *_: runs[Path(run).name])
    with pytest.raises(TrainingError, match=words):
        compare([teacher, teacher.parent / "other"], "val")


def test_teachers_are_not_compared_without_the_x_that_they_need(teacher, tmp_path):
    config = tiny_config({"model.kind": "student", "distill.method": "none", "optim.steps": 1}, val=BLIND)
    fit(config, tmp_path / "blind", quiet=True)
    with pytest.raises(TrainingError, match="has no X, and teacher is of a teacher that never was without depth"):
        compare([tmp_path / "blind", teacher], "val")


def test_no_x_is_made_for_students_to_be_scored(student, monkeypatch):
    """It may cost stereo matching, or files that are not there."""
    asked = []

    def ask(run, record, split, places, x):
        asked.append(x)
        return frames_of(run, record, split, places, x)

    monkeypatch.setattr("lix_core.training.compare.frames_of", ask)
    compare([student], "val")
    assert asked == [""]


def test_options_that_are_tuples_make_no_other_run(tmp_path):
    config = tiny_config({"optim.steps": 1})
    config.data.sources[0].options["sizes"] = ((64, 96), (32, 64))
    fit(config, tmp_path, quiet=True)
    assert fit(config, tmp_path, quiet=True).steps == 1


def test_names_of_compared_runs_are_as_short_as_they_can_be():
    assert short_names(["a/control", "a/lix"]) == ["control", "lix"]
    assert short_names(["a/lix", "b/lix", "b/kd"]) == ["a/lix", "b/lix", "b/kd"]


def test_train_distill_and_evaluate_by_command(teacher, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(tiny_config()))
    done = lix("train", "student", config, "optim.steps=2", "--out", tmp_path / "control")
    assert done.exit_code == 0, done.output
    assert "mIoU" in done.output and "2 steps" in done.output
    assert RunResult.load(tmp_path / "control").config["distill"]["method"] == "none"
    done = lix("distill", config, "optim.steps=2", "--teacher", teacher, "--out", tmp_path / "kd")
    assert done.exit_code == 0, done.output
    assert RunResult.load(tmp_path / "kd").config["model"]["kind"] == "student"
    done = lix("evaluate", "--run", tmp_path / "kd", "--split", "val", "--json", tmp_path / "score.json")
    assert done.exit_code == 0, done.output
    score = json.loads((tmp_path / "score.json").read_text())
    assert score["images"] == 3 and score["miou"] == RunResult.load(tmp_path / "kd").val["miou"]
    done = lix("distill", config, "distill.method=none", "--teacher", teacher, "--out", tmp_path / "none")
    assert "distill.method is none" in str(done.exception) and not (tmp_path / "none").exists()
    for kind, change in (("student", "distill.method=kd"), ("teacher", "model.kind=student")):
        done = lix("train", kind, config, change, "--out", tmp_path / "none")
        assert f"{change}: lix train {kind} decides" in str(done.exception) and not (tmp_path / "none").exists()
    done = lix("evaluate", "--run", tmp_path / "kd", "--data", f"tiny={tmp_path / 'moved'}")
    assert "moved for the data set tiny" in str(done.exception)  # it is looked for there
    for command in (("evaluate", "--run"), ("compare",)):
        done = lix(
            *command, tmp_path / "kd", "--split", "val", "--data", "camvid=/data", *(("--frames", "0") if command[0] == "compare" else ())
        )
        assert str(done.exception) == f"--data camvid: {tmp_path / 'kd'} is scored on tiny, say --data tiny=FOLDER"


def test_the_command_says_where_data_sets_are(tmp_path):
    tree = to_dict(tiny_config({"optim.steps": 1}))
    sources = [*tree["data"]["sources"], tree["data"]["val"], tree["data"]["test"]]
    for source in filter(None, sources):
        source["root"] = ""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    for given, words in [
        ((), "where is the data set tiny? Name its folder (--data tiny=FOLDER"),
        (("--data", "tiny"), "--data is written NAME=FOLDER"),
        (("--data", "tiny=a", "--data", "tiny=b"), "--data tiny is given twice, a and b"),
        (("--data", "tyny=."), "--data tyny: needed is tiny (did you mean tiny?)"),
        (("--data", f"tiny={tmp_path}/nowhere"), "nowhere for the data set tiny"),
    ]:
        done = lix("train", "student", tmp_path / "tiny.yaml", *given, "--out", tmp_path / "run")
        assert words in str(done.exception), (given, done.exception)
        assert not (tmp_path / "run" / "config.yaml").exists()
    done = lix("train", "student", tmp_path / "tiny.yaml", "--data", f"tiny={tmp_path}", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    data = RunResult.load(tmp_path / "run").config["data"]
    assert {source["root"] for source in (*data["sources"], data["val"], data["test"]) if source} == {str(tmp_path)}


def test_a_run_that_was_stopped_says_how_to_go_on_and_not_how_to_lose_it(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "fit", stop)
    for given, words in (((), "the same command goes on"), (("--no-resume",), "the same command without --no-resume goes on")):
        done = lix("train", "student", "world_lix", *given, "--out", tmp_path)
        assert done.exit_code == 130 and done.stderr == f"\nstopped; {words} from the last epoch that was finished\n"


def test_wrong_commands_say_what_is_right(tmp_path):
    for arguments, words in [
        (("train", "techer", "world_lix", "--out", tmp_path), "teacher or student"),
        (("train", "student", "world_lx", "--out", tmp_path), "did you mean world_lix"),
        (("distill", "world_lix", "optim.lrr=1", "--teacher", tmp_path, "--out", tmp_path), "did you mean optim.lr"),
        (("evaluate", "--run", tmp_path), "there is no"),
        (("evaluate", "--run", tmp_path, "--split", "train"), "val or test"),
        (("evaluate",), "or --run RUN"),
        (("export", tmp_path, "-o", tmp_path / "a.zip"), "a bundle is named NAME.lix, got"),
        (("evaluate", "a", "b", "--run", tmp_path), "leave out --run"),
    ]:
        done = lix(*arguments)
        assert words in str(done.exception), (arguments, done.exception)
