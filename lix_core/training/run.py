"""A run: from a configuration to a folder with trained weights and their figures. `fit`, `evaluate`, `RunResult`."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import platform
import signal
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lix_core.data.registry import difference
from lix_core.distill.objective import LIX, build_distiller
from lix_core.errors import LixError, TrainingError, first_line
from lix_core.export import renormalising
from lix_core.files import locked, make_folder, save
from lix_core.labels import LabelSet
from lix_core.metrics import ConfusionMatrix
from lix_core.models.networks import Network, partners
from lix_core.training import report
from lix_core.training.callbacks import Board, Checkpoints, Journal, MovingAverage, Progress, SyncedBatchNorms, WholeFiles
from lix_core.training.config import FREE, Config, Source, differences, from_dict, to_dict, to_yaml
from lix_core.training.data import AtSize, Frames, TrainingData, learned, own_words, seed_of
from lix_core.training.losses import HardLoss, class_weights
from lix_core.training.module import Learner, build_network, outputs
from lix_core.training.scoring import chance, evaluate
from lix_core.training.weights import Record, Which, checksum, is_bundle, load_checkpoint, load_network

__all__ = ["RunResult", "evaluate", "fit"]

SHAPES = ("kind", "encoder", "x_encoder", "fusion", "decoder")
"""What a run and the one that it starts from have in common, of `config.model`."""
NORM_VIEWS = 32
"""Views on which the batch normalisations of a bundle's network find what they are to normalise by, before it is trained on."""
INHERITED = ("encoder", "decoder")
"""The parts of a teacher that a student which starts from it has too: the teacher without X is that student."""


@dataclass
class RunResult:
    """What a finished run came to; `result.json` in its folder.

    seconds: of training and scoring while training, over all pieces of the run [s]. steps: optimiser steps. checkpoint: whose figures these
    are. val, test: `ConfusionMatrix.summary` with `names` of the classes and `counts`, the matrix itself (rows truth, columns
    prediction), or None; in test also `groups`, the counts of each group of frames (`groups` of its source).
    """

    name: str
    config: dict[str, Any]
    git_revision: str
    torch: str
    device: str
    seconds: float
    steps: int
    checkpoint: Which
    checkpoint_step: int
    parameters: int
    teacher: str = ""
    val: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    folder: str = field(default="", metadata={"saved": False})

    def save(self, folder: Path) -> None:
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata.get("saved", True)}
        save(folder / "result.json", (json.dumps(data, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> "RunResult":
        """Raises TrainingError where the folder holds no finished run."""
        try:
            return cls(**json.loads((folder / "result.json").read_text()), folder=str(folder))
        except OSError:
            raise TrainingError(f"{folder} holds no finished run: there is no result.json") from None
        except (ValueError, TypeError) as error:
            raise TrainingError(
                f"{folder / 'result.json'} is not a result of this version ({first_line(error)}): delete that file, and the same "
                "command scores the run again"
            ) from None


def summary(matrix: ConfusionMatrix, labels: LabelSet) -> dict[str, Any]:
    return {**matrix.summary(labels.names), "names": list(labels.names), "counts": matrix.counts.tolist()}


def fit(
    config: Config,
    out: str | Path,
    teacher: str | Path | Sequence[str | Path] | None = None,
    resume: bool = True,
    quiet: bool = False,
    start: str | Path | None = None,
    wait: bool = False,
) -> RunResult:
    """Train the network of a configuration into the run folder `out`, or go on where a run in it was stopped.

    teacher: run folder of the teacher, or its bundle, needed where `distill.method` is not `none`; or several of one build, of which each
    frame is taught by one that has not learned its label (in turns, where more than one has not, or all have). start: run folder or bundle
    of the same network on the same labels and X, whose best weights are the first ones (fine-tuning); of a teacher, a student takes its
    RGB encoder and decoder. resume: without it, what is in `out` is trained anew. quiet: no progress. wait: where another process trains
    in `out`, wait for its end and take its result, instead of refusing.

    A finished run is returned without training. A run that was killed and resumed comes to the same weights as one that was not, on
    CPUs bit by bit.

    Returns the result, which is also in `out/result.json`; beside it: config.yaml, checkpoints/{best,last}.ckpt, metrics.csv, tensorboard/,
    curves.png, sheet.png and, of LIX, weights.png.

    Raises:
        TrainingError: settings, data, teacher and folder that do not fit together; a loss that is not finite; a full disk.
        DataError: what the data sets find.
    """
    out = Path(out)
    distilled = config.model.kind == "student" and config.distill.method != "none"
    teachers = [Path(run) for run in ([teacher] if isinstance(teacher, (str, Path)) else teacher or [])]
    if distilled and not teachers:
        raise TrainingError(f"distill.method {config.distill.method!r} needs a teacher: name its run, or set distill.method=none")
    for what, run in (*(("teacher", run) for run in teachers), ("start", start)):
        if run and Path(run).resolve() == out.resolve():
            raise TrainingError(f"{out} cannot be the folder of a run and its {what}: name another one for the run")
    if twice := [run for run in teachers if teachers.count(run) > 1]:
        raise TrainingError(f"the teacher {twice[0]} is named twice")
    lead = rank_zero()
    if lead:
        make_folder(out)
    with alone_in(out, wait) if lead else nullcontext(True) as free:
        if not free:
            raise TrainingError(f"another process trains in {out}: wait for its end, or name another folder")
        return train_in(out, config, teachers if distilled else [], resume, quiet, Path(start) if start else None, lead)


@contextmanager
def alone_in(out: Path, wait: bool) -> Iterator[bool]:
    """`locked`, for as long as what is left of a killed run may take to end; with `wait`, which it says, for as long as a run may take."""
    with locked(out, LEFT_OVER_S) as free:
        if free or not wait:
            yield free
            return
    print(f"another process trains in {out}: waiting for its end", flush=True)
    with locked(out) as free:
        yield free


LEFT_OVER_S = 15.0
"""How long a folder may be held by what is left of a run that was killed: the workers that read data for it end within seconds."""


def train_in(out: Path, config: Config, teachers: Sequence[Path], resume: bool, quiet: bool, start: Path | None, lead: bool) -> RunResult:
    """`fit` in a folder that no other run uses. lead: whether this is the process that writes."""
    if lead or resume:
        refuse_foreign_config(out)
    if resume and holds_run(out):
        refuse_another_run(config, out)
        if (out / "result.json").exists():
            refuse_other_weights(out, teachers, start)
            return RunResult.load(out)
    silence()
    try:
        run = Run(config, out, teachers, resume, start)
        run.set_up(quiet)
        if lead:  # not before it is known that there is a run to put in its place
            if not resume:
                clear(out)
            save(out / "config.yaml", to_yaml(config).encode())
        return run.train()
    except LixError as error:
        raise type(error)(own_words(error)) from None


ANEW = "train anew (--no-resume of lix train and lix distill)"
FILES = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "checkpoints/.*.part", "tensorboard/events.out.*", "tensorboard/hparams.yaml")
"""What a run leaves in its folders; patterns."""


def holds_run(out: Path) -> bool:
    """Whether a folder has a run that is finished, or was stopped after an epoch."""
    return any((out / name).exists() for name in ("result.json", "checkpoints/last.ckpt"))


def clear(out: Path) -> None:
    """Remove what an earlier run left in its folder, and nothing else."""
    if not holds_run(out):
        return
    names = ("result.json", "metrics.csv", "curves.png", "sheet.png", "weights.png", "config.yaml")  # the last tells whose they are
    for path in (*(path for pattern in FILES for path in out.glob(pattern)), *(out / name for name in names)):
        path.unlink(missing_ok=True)
    for name in ("checkpoints", "tensorboard"):
        with suppress(OSError):  # somebody else's files are in it
            (out / name).rmdir()


def refuse_foreign_config(out: Path) -> None:
    """A TrainingError where the config.yaml of the folder is no run's, or is missing beside what seems to be a run: that is somebody
    else's, and would be overwritten, or taken for a run.

    A run's own of another version of lix may have options that this one does not know; it has the same sections.
    """
    path, held = out / "config.yaml", holds_run(out)
    if not held and not path.exists():
        return
    with suppress(OSError, ValueError, yaml.YAMLError, LixError):
        text = path.read_text()
        tree = yaml.safe_load(text)
        if held and isinstance(tree, dict) and set(to_dict(Config())) <= set(tree) or to_yaml(from_dict(tree)) == text:
            return
    what = f"{path} is there, and no run wrote it" if path.exists() else f"{out} has files as of a run, and no config.yaml"
    raise TrainingError(f"{what}: the run's own would replace what is there; name another folder for the run")


def refuse_another_run(config: Config, out: Path) -> None:
    """A TrainingError where the folder holds a run of other settings."""
    old = yaml.safe_load((out / "config.yaml").read_text())
    with suppress(TrainingError):
        old = to_dict(from_dict(old))  # options that came to be since then have their defaults
    new = yaml.safe_load(to_yaml(config))  # with lists for tuples, as the file has them
    free = (*FREE, "distill.") if config.model.kind == "teacher" else FREE  # a teacher is not distilled
    changed = {key: change for key, change in differences(old, new).items() if not key.startswith(free) and not key.endswith(".root")}
    if changed:
        words = "; ".join(f"{key}: {before!r} -> {after!r}" for key, (before, after) in list(changed.items())[:4])
        raise TrainingError(f"{out} holds a run of other settings ({words}); name another folder, or {ANEW}")


def refuse_other_weights(out: Path, teachers: Sequence[Path], start: Path | None) -> None:
    """A TrainingError where the folder holds a finished run with other teachers, or from another start."""
    if not (out / "checkpoints" / "best.ckpt").exists():
        return
    record = load_checkpoint(out / "checkpoints" / "best.ckpt")["record"]
    for what, runs in (("teacher", teachers), ("start", [start] if start else [])):
        if record.get(what, "") != "+".join(map(checksum, runs)):
            named = " and ".join(map(str, runs)) or "none"
            raise TrainingError(f"{out} holds a finished run with another {what} than {named}; name another folder, or {ANEW}")


class Run:
    """One run being trained: its data, networks and callbacks."""

    def __init__(self, config: Config, out: Path, teachers: Sequence[Path] = (), resume: bool = True, start: Path | None = None):
        self.config, self.out = config, out
        optim, trainer = config.optim, config.trainer
        self.epochs = math.ceil(optim.steps / optim.steps_per_epoch)
        last = out / "checkpoints" / "last.ckpt"
        self.begun = last if resume and last.exists() else None
        self.begun_record = load_checkpoint(self.begun)["record"] if self.begun else {}
        data = config.data
        if config.model.kind == "student":  # which never sees X: what is dropped of it would only be missing in the teacher's lesson
            data = dataclasses.replace(data, x_dropout=0.0, x_holes=0.0)
        self.data = TrainingData(data, config.seed, optim.accumulate, min(optim.steps, optim.steps_per_epoch))
        self.labels = self.data.labels
        self.evaluate = partial(evaluate, batch=trainer.val_batch, size=config.data.eval_size, workers=config.data.workers)
        if config.model.kind == "teacher" and config.data.x and not self.data.x_channels:
            raise TrainingError(f"a teacher needs X, and no frames of {self._sources()} have any: add a data set that has {config.data.x}")
        if not teachers and not any(frames.has_labels() for frames in self.data.frames):
            raise TrainingError(f"no frame of {self._sources()} has a labelled pixel, and there is no teacher: there is nothing to learn")
        torch.manual_seed(seed_of(config.seed, 1))
        replaced = "none" if start or self.begun else None  # no initial weights are fetched where others take their place
        network = build_network(config.model, len(self.labels), self.data.x_channels, weights=replaced).to(
            memory_format=torch.channels_last
        )
        check_crop(config, network, config.model.encoder)
        self.start_hash, earlier = self._start(start, network) if start else ("", [])
        if not start:
            self._check_begun("start", "", "with the weights of another run")
        weights = class_weights(self.data.count_pixels(), config.loss.class_weight_power) if config.loss.class_weight_power else None
        networks, distiller, speaks, self.teacher_hash, self.teacher_needs_x = [], None, {}, "", False
        if teachers:
            if config.distill.class_weights and weights is None:
                raise TrainingError("distill.class_weights takes the weights of L_H, which has none: set loss.class_weight_power above 0")
            taught = [self._teacher(run) for run in teachers]
            networks, speaks = [network for network, _ in taught], self._speaks(teachers, [record for _, record in taught])
            self.teacher_hash = "+".join(map(checksum, teachers))
            self._check_begun("teacher", self.teacher_hash, f"with another teacher than {' and '.join(map(str, teachers))}")
            # After the network, from a seed of its own: the initial weights of a student do not depend on how it is taught.
            torch.manual_seed(seed_of(config.seed, 2))
            wanted = {name: networks[0].feature_channels[own] for own, name in partners(network, networks[0]).items()}
            distiller = build_distiller(config.distill, network.feature_channels, wanted, len(self.labels), self.data.x_channels, weights)
        hard = HardLoss(weights, config.loss.dice, config.loss.ohem, config.loss.ohem_keep)
        self.learner = Learner(config, network, hard, networks, distiller, speaks, self.teacher_needs_x)
        facts = (config, self.labels, self.data.x_kind, self.data.x_channels, 0, git_revision(), str(torch.__version__))
        always_x = all(frames.dataset.x_kind for frames in self.data.frames)
        self.record = Record(*facts, self.teacher_hash, start=self.start_hash, always_x=always_x, earlier=earlier)
        self._check_scored()
        score = partial(self.evaluate, dataset=self.data.val) if self.data.val else None
        self.journal = Journal(out, self.epochs, trainer.val_every, score)

    def _speaks(self, runs: Sequence[Path], records: Sequence[Record]) -> dict[str, int]:
        """Name of each frame -> which of several teachers speaks of it: one that has not learned its label."""
        for run, record in zip(runs[1:], records[1:]):
            for key in SHAPES:
                ours, theirs = getattr(records[0].config.model, key), getattr(record.config.model, key)
                if ours != theirs:
                    raise TrainingError(f"teachers of one student are of one build; {key} of {runs[0]} is {ours!r}, of {run} {theirs!r}")
        speaks: dict[str, int] = {}
        for frames in self.data.frames if len(runs) > 1 else ():
            knows = [learned(record.sources, frames) for record in records]
            for place in range(len(frames)):
                name = frames.name(place)
                able = [n for n, names in enumerate(knows) if name not in names] or list(range(len(knows)))
                if speaks.setdefault(name, able[place % len(able)]) not in able:
                    raise TrainingError(f"two sources have a frame {name}: of several teachers, the name tells which one speaks of it")
        return speaks

    def _teacher(self, run: Path) -> tuple[Network, Record]:
        """A teacher, found fit to teach on this data."""
        network, record = load_network(run)
        sees_x = record.config.model.kind == "teacher"
        if not sees_x and not self.config.distill.rgb_teacher:
            cure = "set distill.rgb_teacher=true where one that sees RGB alone shall teach"
            raise TrainingError(f"{run} is the run of a {record.config.model.kind}, not of a teacher; {cure}")
        if record.labels.names != self.labels.names:
            unlike = difference(record.labels, self.labels)
            raise TrainingError(f"the teacher {run} was trained on other labels than this data has: {unlike}")
        if sees_x and record.x_channels and record.x_kind != self.data.x_kind:
            has = f"this data gives {self.data.x_kind!r}: set data.x={record.x_kind}"
            if record.x_kind == self.config.data.x:
                has = f"no frames of {self._sources()} have any: add a data set that has, or train the teacher with data.x_dropout"
            if record.needs_x or record.x_kind != self.config.data.x or self.data.x_kind:
                raise TrainingError(f"the teacher {run} sees X {record.x_kind!r}, {has}")
            self.data.x_kind, self.data.x_channels = record.x_kind, record.x_channels  # all of it unknown
        check_crop(self.config, network, f"{record.config.model.encoder}, of the teacher {run}")
        self.teacher_needs_x = self.teacher_needs_x or record.needs_x
        if not self.begun:
            self._check_teacher(network, run)
        return network, record

    def _check_scored(self) -> None:
        """A TrainingError where val or test frames cannot be scored: of a teacher that never is without X, those without."""
        for what, frames in (("val", self.data.val), ("test", self.data.test)):
            if frames and self.record.needs_x and not frames.dataset.x_kind:
                raise TrainingError(
                    f"data.{what} has no X, without which a teacher that never was without it does not know what it says: name frames that "
                    "have it, none, or train with data.x_dropout"
                )
        if self.data.val and not self.data.val.has_labels():
            raise TrainingError("the validation frames have not one labelled pixel; name others in data.val, or none")

    def _sources(self) -> str:
        return ", ".join(f"{source.dataset} {source.split}" for source in self.config.data.sources)

    def _start(self, run: Path, network: Network) -> tuple[str, list[Source]]:
        """Give the network the best weights of a run, a student those of a teacher's RGB encoder and decoder too; the hash of its
        checkpoint, and what they were trained on.
        """
        weights, record = load_network(run)
        inherits = self.config.model.kind == "student" and record.config.model.kind == "teacher"
        students = self.config.model.kind == record.config.model.kind == "student"
        same = INHERITED if inherits or students else SHAPES
        pairs = [(key, getattr(self.config.model, key), getattr(record.config.model, key)) for key in same]
        pairs += [("labels", self.labels.names, record.labels.names)]
        pairs += [("X", self.data.x_kind, record.x_kind)] if self.config.model.kind == "teacher" else []
        for what, mine, theirs in pairs:
            if mine != theirs:
                raise TrainingError(f"a run cannot start from {run}: its {what} is {theirs!r}, here it is {mine!r}")
        digest = checksum(run)
        self._check_begun("start", digest, f"from other weights than those of {run}")
        for name in INHERITED if inherits else ():
            getattr(network, name).load_state_dict(getattr(weights, name).state_dict())
        if not inherits:
            network.load_state_dict(weights.state_dict())
        if is_bundle(run) and not self.begun:
            with renormalising(network), torch.no_grad():
                for batch in self.data.first_batches(NORM_VIEWS):
                    outputs(network, batch)
        return digest, record.sources

    def _check_begun(self, what: str, digest: str, otherwise: str) -> None:
        """A TrainingError where the run that is gone on with was begun on another checkpoint than that of `digest`, "" for none."""
        if self.begun and self.begun_record.get(what, "") != digest:
            raise TrainingError(f"{self.out} was begun {otherwise}; name that one, or {ANEW}")

    def _check_teacher(self, network: Network, run: Path) -> None:
        """A TrainingError where the teacher is not better than chance on labelled frames spread over the validation data, else over the
        first source that has any; of data without X only where the teacher can do without."""
        able = [f for f in (self.data.val, *self.data.frames) if f and (f.dataset.x_kind or not self.teacher_needs_x)]
        labelled = (f.only(np.flatnonzero(f.labelled[f.indices])) for f in able)
        for frames in (f.spread(self.config.trainer.teacher_frames) for f in labelled if len(f)):
            matrix = evaluate(network, frames, self.config.trainer.val_batch, self.config.data.eval_size)
            if not matrix.truth_pixels.any():
                continue  # nothing to be checked against
            floor = chance(matrix).miou
            if not matrix.miou > floor:
                raise TrainingError(
                    f"the teacher {run} has mIoU {matrix.miou:.3f} on {len(frames)} frames, always answering the most frequent class "
                    f"{floor:.3f}: it has nothing to teach. Train it longer, or look at its data"
                )
            return

    def set_up(self, quiet: bool) -> None:
        """Make the trainer. Raises TrainingError where this machine, or the batch, is not made for it."""
        config = self.config
        try:
            self.trainer = trainer = self._trainer(self.record.to_dict(), quiet)
            if cluster := getattr(trainer.strategy, "cluster_environment", None):
                cluster.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            wanted = ", ".join(f"trainer.{key}={getattr(config.trainer, key)}" for key in ("accelerator", "devices", "nodes"))
            raise TrainingError(f"{wanted} cannot be had here: {first_line(error)}") from None
        processes = trainer.num_devices * trainer.num_nodes
        if config.data.batch % processes:
            raise TrainingError(f"data.batch is {config.data.batch}, for {processes} processes: it must be a multiple of their number")
        network = self.learner.network
        if config.data.batch == processes and max(config.data.crop) <= network.stride:
            raise TrainingError(
                f"data.batch gives each process one view of {config.data.crop[0]}x{config.data.crop[1]} pixels, one cell at stride "
                f"{network.stride}, over which batch normalisation has nothing to average: take larger views, or more of them"
            )

    def train(self) -> RunResult:
        try:
            self.trainer.fit(self.learner, datamodule=self.data, ckpt_path=self.begun, weights_only=True)
        except RuntimeError as error:
            if not self.config.trainer.deterministic or "deterministic" not in str(error):
                raise
            raise TrainingError(f"trainer.deterministic=true cannot be had with these losses here: {first_line(error)}") from None
        except SystemExit:  # Lightning's answer to Ctrl-C, after which it leaves the signal ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        return self._finish()

    def _trainer(self, record: dict[str, Any], quiet: bool) -> pl.Trainer:
        config, options, optim = self.config, self.config.trainer, self.config.optim
        folder = self.out / "checkpoints"
        averaging = [MovingAverage(optim.ema)] if optim.ema else []
        spread = options.devices * options.nodes > 1
        synced = [SyncedBatchNorms()] if spread and torch.cuda.is_available() and options.accelerator != "cpu" else []
        # A term without a pixel to look at leaves the distiller's own weights without gradients.
        unused = self.learner.distiller is not None and any(True for _ in self.learner.distiller.parameters())
        progress = [] if quiet else [Progress(config.name, optim.steps, self.journal)]
        return pl.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            strategy=DDPStrategy(find_unused_parameters=unused) if spread else "auto",
            precision=options.precision,
            deterministic=options.deterministic,
            benchmark=False,
            max_epochs=self.epochs,
            accumulate_grad_batches=optim.accumulate,
            gradient_clip_val=optim.clip or None,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=Board(self.out, "tensorboard", ""),
            callbacks=[*averaging, self.journal, *progress, Checkpoints(folder, self.journal, record)],
            plugins=[WholeFiles(), *synced],
            default_root_dir=self.out,
        )

    def _finish(self) -> RunResult:
        """Score the test frames, draw the pictures, write the result. All processes score; the first writes."""
        self.trainer.strategy.barrier()
        device = self.trainer.strategy.root_device
        network, record = load_network(self.out, device=device)
        val = None if record.val_counts is None else ConfusionMatrix.of(record.val_counts)
        test = self._score_test(network, self.data.test) if self.data.test else None
        result = RunResult(
            name=self.config.name,
            config=to_dict(self.config),
            git_revision=record.git_revision,
            torch=record.torch,
            device=device_name(device),
            seconds=round(self.journal.seconds, 1),
            steps=self.config.optim.steps,
            checkpoint="best",
            checkpoint_step=record.step,
            parameters=sum(p.numel() for p in network.parameters()),
            teacher=self.teacher_hash,
            val=None if val is None else summary(val, self.labels),
            test=test,
            folder=str(self.out),
        )
        if self.trainer.is_global_zero:
            try:
                self._draw(network)
            except Exception as error:  # hours of training do not wait for a picture
                warnings.warn(f"the pictures of {self.out} are not whole: {first_line(error)}", stacklevel=2)
            result.save(self.out)
        self.trainer.strategy.barrier()
        return result

    def _score_test(self, network: Network, frames: Frames) -> dict[str, Any]:
        """Summary of the test frames; with `groups`, the counts of each group too. The whole is the sum of its groups."""
        matrices = {group: self.evaluate(network, some) for group, some in frames.groups().items()}
        whole = ConfusionMatrix.of(sum(matrix.counts for matrix in matrices.values()))
        apart = {group: matrix.counts.tolist() for group, matrix in matrices.items() if group}
        return {**summary(whole, self.labels), "groups": apart}

    def _draw(self, network: Network) -> None:
        report.curves(self.journal.rows, self.out / "curves.png", self.config.name)
        frames = self.data.val or self.data.test
        if frames and self.config.trainer.sheet_frames:
            some = AtSize(frames.spread(self.config.trainer.sheet_frames), self.config.data.eval_size)
            samples = [some[i] for i in range(len(some))]
            report.sheet(network, next(iter(self.learner.teachers), None), samples, self.labels, self.out / "sheet.png")
            distiller = self.learner.distiller
            if isinstance(distiller, LIX) and self.config.distill.lix.logit:
                distiller.to(self.trainer.strategy.root_device)  # Lightning puts it back on the CPU
                report.weights(network, self.learner.teachers[0], distiller, samples, self.out / "weights.png")


def check_crop(config: Config, network: Network, encoder: str) -> None:
    """Raises TrainingError where a network, whose encoder is named, cannot take the views of training."""
    height, width = config.data.crop
    if height % network.stride or width % network.stride:
        raise TrainingError(f"data.crop is {height}x{width}: both must be multiples of {network.stride}, the stride of {encoder}")


def git_revision() -> str:
    """The commit of the sources, with `-dirty` where `lix_core` was changed since; `unknown` where they are in no repository.

    Result files that a table writes into its own repository do not count.
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=here, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    if not git("ls-files", "--", Path(__file__).name):
        return "unknown"  # a repository that lix is installed in, and not part of
    commit = git("rev-parse", "HEAD")
    return commit + ("-dirty" if git("status", "--porcelain", "--untracked-files=no", "--", "..") else "") if commit else "unknown"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return f"{model[0] if model else platform.machine()}, {torch.get_num_threads()} threads"


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def rank_zero() -> bool:
    """Whether this is the first process of the run, by what torchrun, Lightning and SLURM tell a process of its rank."""
    return all(os.environ.get(name, "0") in ("", "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def silence() -> None:
    """Lightning's tips, and warnings about what is meant to be so."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for words in (".*does not have many workers.*", ".*Checkpoint directory.*", ".*LeafSpec.*", ".*smaller than the logging interval.*"):
        warnings.filterwarnings("ignore", words)
