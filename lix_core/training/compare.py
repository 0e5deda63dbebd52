"""Runs side by side: each scored on the same frames, and pictures of what each makes of some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch

from lix_core.data.registry import difference
from lix_core.errors import LixError, TrainingError
from lix_core.labels import LabelSet
from lix_core.metrics import ConfusionMatrix
from lix_core.models.networks import Network
from lix_core.training import report
from lix_core.training.data import AtSize, Frames, learned
from lix_core.training.scoring import evaluate
from lix_core.training.weights import Record, Which, load_network


@dataclass
class Comparison:
    """Networks, the records of their weights and their scores by the names of their runs, on the same frames.

    size: height and width at which the frames are scored; None: their own.
    """

    frames: Frames
    size: Sequence[int] | None
    networks: dict[str, Network]
    records: dict[str, Record]
    scores: dict[str, ConfusionMatrix]

    @property
    def labels(self) -> LabelSet:
        return self.frames.labels

    @cached_property
    def remarks(self) -> dict[str, str]:
        """`remark_on` those runs of which there is something to remark."""
        return {name: remark for name, record in self.records.items() if (remark := remark_on(record, self.frames))}

    def marked(self, name: str) -> str:
        """The name of a run, with a star where there is a remark on it."""
        return f"{name} *" if name in self.remarks else name

    def draw(self, path: Path, count: int) -> None:
        """A sheet of at most `count` frames, spread over all, a row for each: RGB, X where a run sees it, truth, and each run's answer."""
        some = AtSize(self.frames.spread(count), self.size)
        captions = {name: f"{self.marked(name)}: mIoU {matrix.miou:.3f}" for name, matrix in self.scores.items()}
        networks = {captions[name]: network for name, network in self.networks.items()}
        report.comparison(networks, [some[i] for i in range(len(some))], self.labels, path)


def compare(
    runs: Sequence[str | Path],
    split: str = "test",
    which: Which = "best",
    places: Mapping[str, str] = MappingProxyType({}),
    on_frames: Callable[[int, int], None] = lambda count, total: None,
) -> Comparison:
    """Score runs, students and teachers, on the `val` or `test` frames of the first one's configuration, at its size.

    places: name of its data set -> its folder, where that has moved since. on_frames: told how many frames were just done, and how many
    there are for all runs together.

    Raises:
        TrainingError: runs of different label sets, teachers that see different X, a run without a checkpoint, no such frames.
        DataError: what the data set finds.
    """
    if split not in ("val", "test"):  # before anything is loaded
        raise TrainingError(f"a run is scored on val or test, got {split!r}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = {name: load_network(run, which, device) for name, run in zip(short_names(runs), runs, strict=True)}
    records = {name: record for name, (_, record) in loaded.items()}
    (first, reference), *others = records.items()
    for name, record in others:
        if record.labels.names != reference.labels.names:
            raise TrainingError(f"the runs {first} and {name} have different labels: {difference(reference.labels, record.labels)}")
    x, _ = x_of(records)
    frames, data, trainer = frames_of(runs[0], reference, split, places, x), reference.config.data, reference.config.trainer
    for name, record in others:
        check_x(name, record, frames)
    networks = {name: network for name, (network, _) in loaded.items()}
    total = len(frames) * len(networks)
    scores = {
        name: evaluate(network, frames, trainer.val_batch, data.eval_size, data.workers, lambda count: on_frames(count, total))
        for name, network in networks.items()
    }
    return Comparison(frames, data.eval_size, networks, records, scores)


def frames_of(run: str | Path, record: Record, split: str, places: Mapping[str, str], x: str) -> Frames:
    """The `val` or `test` frames of a run's configuration, with X of the kind `x`. See `compare`."""
    source = getattr(record.config.data, split)
    if source is None:
        raise TrainingError(f"the configuration of {run} has no data.{split}")
    if unknown := set(places) - {source.dataset}:
        raise TrainingError(f"--data {min(unknown)}: {run} is scored on {source.dataset}, say --data {source.dataset}=FOLDER")
    root = places.get(source.dataset, source.root)
    if not root:
        raise TrainingError(f"{run} does not say where its data set {source.dataset} is: name it with --data {source.dataset}=FOLDER")
    frames = Frames(replace(source, root=root), x)
    if frames.labels.names != record.labels.names:
        raise TrainingError(f"{frames.source.root} has other labels than {run}: {difference(record.labels, frames.labels)}")
    check_x(run, record, frames)
    return frames


def check_x(run: str | Path, record: Record, frames: Frames) -> None:
    """Raises TrainingError where frames lack the X that a run's network needs."""
    if record.needs_x and not frames.dataset.x_kind:
        raise TrainingError(f"{frames.source.root} has no X, and {run} is of a teacher that never was without {record.x_kind}")


def remark_on(record: Record, frames: Frames) -> str:
    """That a run was trained on some of the frames with their labels, or that this cannot be told; "" where it was not."""
    try:
        names = learned(record.sources, frames)
    except LixError as error:
        return f"whether it was trained on frames that it is scored on here cannot be told: {error}"
    return f"trained with the labels of {len(names)} of the {len(frames)} frames that it is scored on here" if names else ""


def x_of(records: Mapping[str, Record]) -> tuple[str, int]:
    """Kind and channels of the X that the teachers among some runs see; "" and 0 where there is no teacher.

    Raises TrainingError where they see different X.
    """
    teachers = {name: record for name, record in records.items() if record.config.model.kind == "teacher"}
    if len({record.x_kind for record in teachers.values()}) > 1:
        kinds = ", ".join(f"{name}: {record.x_kind}" for name, record in teachers.items())
        raise TrainingError(f"the teachers see different X ({kinds}): compare them apart")
    return next(((record.config.data.x, record.x_channels) for record in teachers.values()), ("", 0))


def short_names(runs: Sequence[str | Path]) -> list[str]:
    """The shortest ends of the runs' paths by which all differ. Raises TrainingError where a run is named twice, or none is."""
    paths = [Path(run).resolve() for run in runs]
    if not paths:
        raise TrainingError("there is no run to compare: name run folders")
    twice = next((str(run) for i, run in enumerate(runs) if paths[i] in paths[:i]), None)
    if twice:
        raise TrainingError(f"the run {twice} is named twice")
    parts = 1
    while len({path.parts[-parts:] for path in paths}) < len(paths):
        parts += 1
    return ["/".join(path.parts[-parts:]) for path in paths]
