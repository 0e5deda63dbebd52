"""What a run reads: sources mixed into batches, each a pure function of (seed, number of the batch), and frames for scoring.

Nothing here remembers where it is: batch 700 is the same after a resume, with any number of workers, and over any number of processes,
each of which takes every n-th place of it.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lix_core.data.registry import difference, open_dataset
from lix_core.data.sample import Batch, Sample, collate
from lix_core.data.transforms import SampleTransform, eval_transform, train_transform
from lix_core.errors import DataError, LixError, TrainingError
from lix_core.files import expanded
from lix_core.labels import UNLABELLED, LabelSet
from lix_core.training.config import DataConfig, Source


class Frames(Dataset):
    """The frames of one source that the run uses; some without the labels that their data set has.

    `subset_seed` puts the frames in an order of which the first share `labelled` keeps its labels: shares are nested.
    """

    def __init__(self, source: Source, x: str):
        self.source = source
        try:
            re.compile(source.groups)
        except re.error as error:
            raise TrainingError(
                f"groups of {source.dataset} {source.split}, {source.groups!r}, is no regular expression: {error}"
            ) from None
        self.dataset = open_dataset(source.dataset, source.root, source.split, x=x, **source.options)
        count = len(self.dataset)
        order = np.random.default_rng(source.subset_seed).permutation(count)
        self.labelled = np.zeros(count, bool)
        self.labelled[order[: int(np.ceil(round(source.labelled * count, 6)))]] = True  # 0.07 of 100 is 7, whatever floats make of it
        wanted = {"all": np.ones(count, bool), "labelled": self.labelled, "unlabelled": ~self.labelled}[source.keep]
        self.indices = np.flatnonzero(wanted)
        self.labels: LabelSet = self.dataset.labels
        if source.part:
            k, n = source.part_of
            runs = (np.array_split(group.indices, n)[k - 1] for group in self.groups().values())
            self.indices = np.sort(np.concatenate([np.empty(0, int), *runs]))
        if not len(self.indices):
            part = f" and part={source.part}" if source.part else ""
            raise TrainingError(
                f"{source.dataset} {source.split}: of {count} frames none is {source.keep} with labelled={source.labelled}{part}"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        place = int(self.indices[index])
        sample = self.dataset[place]
        if not self.labelled[place]:
            return replace(sample, labels=None)
        if sample.labels is not None:
            check_labels(sample.name, sample.labels, len(self.labels))
        return sample

    def name(self, index: int) -> str:
        return self.dataset.names[self.indices[index]]

    def alike(self, index: int) -> np.ndarray:
        """The frames that have labels as that one has, or have none as it has none; itself among them."""
        labelled = self.labelled[self.indices]
        return np.flatnonzero(labelled == labelled[index])

    def has_labels(self) -> bool:
        """Whether one of the frames has a labelled pixel. Reads frames until there is one."""
        places = np.flatnonzero(self.labelled[self.indices])
        found = (self[place].labels for place in np.random.default_rng(0).permutation(places))
        return any(labels is not None and bool((labels != UNLABELLED).any()) for labels in found)

    def only(self, places: Sequence[int]) -> "Frames":
        """Some of these frames."""
        some = copy.copy(self)
        some.indices = self.indices[list(places)]
        return some

    def groups(self) -> dict[str, "Frames"]:
        """The frames by what `groups` of the source finds in their names; all of them under "" without it."""
        found: dict[str, list[int]] = {}
        for place, index in enumerate(self.indices):
            match = re.search(self.source.groups, self.dataset.names[index])
            found.setdefault(match.group() if match else "", []).append(place)
        return {group: self.only(places) for group, places in sorted(found.items())}

    def spread(self, count: int) -> "Frames":
        """At most `count` of these frames, from the first to the last at equal distances."""
        return self.only(np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)))


def seen(trained: Frames, scored: Frames) -> list[str]:
    """Names of the frames of `scored` that are in `trained` with their labels: of one data set in one folder. As many data sets number the
    frames of each split anew, the picture of the first tells whether a name means one frame."""
    one, other = trained.source, scored.source
    if one.dataset != other.dataset or expanded(one.root).resolve() != expanded(other.root).resolve():
        return []
    places = {scored.dataset.names[index]: place for place, index in enumerate(scored.indices)}
    both = trained.only([place for place, index in enumerate(trained.indices) if trained.labelled[index] and trained.name(place) in places])
    if not len(both) or not np.array_equal(both[0].image, scored[places[both.name(0)]].image) or not both.has_labels():
        return []
    return [both.name(place) for place in range(len(both))]


def learned(sources: Sequence[Source], frames: Frames) -> set[str]:
    """Names of the frames whose labels a network trained on such sources has learned. A folder that they do not name, or that is gone, is
    taken to be that of the frames. Raises LixError where it cannot be told."""
    names: set[str] = set()
    for source in sources:
        if source.dataset == frames.source.dataset:
            root = source.root if source.root and expanded(source.root).is_dir() else frames.source.root
            names.update(seen(Frames(replace(source, root=root), ""), frames))
    return names


def refuse_seen(trained: Frames, scored: Frames, key: str) -> None:
    """Raises TrainingError where labelled frames that are trained on are among those scored as `key`."""
    if names := seen(trained, scored):
        raise TrainingError(
            f"{len(names)} of the {len(scored)} frames of {key} are trained on with their labels, the first {names[0]} of "
            f"{trained.source.dataset}: a score on them says nothing. Take other frames (split or options of a source); a last model may "
            f"be trained on all frames where none is scored ({key}=null)"
        )


def check_labels(name: str, labels: np.ndarray, num_classes: int) -> None:
    """Raises DataError, naming the frame, where a label is neither a class nor 255."""
    highest = int((labels + np.uint8(1)).max()) - 1  # 255 becomes 0
    if highest >= num_classes:
        raise DataError(f"{name} has the label {highest}; its classes are 0..{num_classes - 1}, and 255 is for pixels of none")


@dataclass(frozen=True)
class Draw:
    """One place of one batch: which frame of which source, and the key of its view."""

    source: int
    frame: int
    key: tuple[int, int]
    """(number of the batch, place in it)"""


class Mixture:
    """Endless shuffled streams, joined into batches with a quota of places for each.

    A source with `per_batch` has a stream of its own; those without are shuffled together and fill the places left. A stream goes through
    all its frames in a new order each time.
    """

    def __init__(self, sizes: Sequence[int], quotas: Sequence[int], batch: int, seed: int):
        self.batch, self.seed = batch, seed
        pool = [(s, f) for s, size in enumerate(sizes) if not quotas[s] for f in range(size)]
        streams = [([(s, f) for f in range(sizes[s])], quota) for s, quota in enumerate(quotas) if quota]
        left = batch - sum(quotas)
        if left < 0 or (left == 0) == bool(pool):
            shared = f"; {left} are left for the sources without one" if pool else f" and no source is without, but a batch has {batch}"
            raise TrainingError(f"data.batch is {batch}: per_batch of the sources are {list(quotas)}, together {sum(quotas)}{shared}")
        self.streams = [*streams, *([(pool, left)] if pool else [])]
        self._order = lru_cache(maxsize=4 * len(self.streams))(self._shuffled)

    def _shuffled(self, stream: int, turn: int) -> np.ndarray:
        return np.random.default_rng((self.seed, stream, turn)).permutation(len(self.streams[stream][0]))

    def draws(self, number: int) -> list[Draw]:
        """The places of batch `number`, 0 and up."""
        frames = []
        for stream, (members, quota) in enumerate(self.streams):
            for position in range(number * quota, (number + 1) * quota):
                turn, place = divmod(position, len(members))
                frames.append(members[self._order(stream, turn)[place]])
        return [Draw(source, frame, (number, place)) for place, (source, frame) in enumerate(frames)]


class Views(Dataset):
    """What training sees at a `Draw`: the frame, changed by `transform` under a generator of (seed, *key).

    cutmix: probability that a rectangle of the view is cut out of a view of another frame of the source; one with labels is mixed with
    one with labels, one without with one without.
    """

    def __init__(self, frames: Sequence[Frames], transform: SampleTransform, seed: int, cutmix: float = 0.0):
        self.frames, self.transform, self.seed, self.cutmix = frames, transform, seed, cutmix

    def __getitem__(self, draw: Draw) -> Sample:
        frames = self.frames[draw.source]
        view = self.transform(frames[draw.frame], seed_of(self.seed, *draw.key))
        random = np.random.default_rng((self.seed, *draw.key, 1))
        if random.random() >= self.cutmix:
            return view
        other = int(random.choice(frames.alike(draw.frame)))
        return pasted(view, self.transform(frames[other], seed_of(self.seed, *draw.key, 1)), random)


def pasted(view: Sample, other: Sample, random: np.random.Generator) -> Sample:
    """A view with a rectangle of another of its size in the same place: half of its area, of any shape that fits (CutMix as of French et
    al., BMVC 2020, arXiv 1906.01916). Image, labels, X, where it is known and what is shown; the camera is no longer that of every pixel,
    and left out."""
    height, width = view.image.shape[:2]
    tall = np.exp(random.uniform(np.log(0.5), 0))  # the rectangle's height as a share of the view's; 0.5 / tall is its width's
    rows, columns = round(tall * height), round(0.5 / tall * width)
    top, left = int(random.integers(height - rows + 1)), int(random.integers(width - columns + 1))
    inside = np.zeros((height, width), bool)
    inside[top : top + rows, left : left + columns] = True

    def shown(sample: Sample) -> np.ndarray:
        return np.ones((height, width), bool) if sample.shown is None else sample.shown

    def joined(name: str, empty: np.generic) -> np.ndarray | None:
        ours, theirs = getattr(view, name), getattr(other, name)
        if ours is None and theirs is None:
            return None
        return np.where(inside, empty if theirs is None else theirs, empty if ours is None else ours)

    return replace(
        view,
        image=np.where(inside[..., None], other.image, view.image),
        labels=joined("labels", np.uint8(UNLABELLED)),
        x=joined("x", np.float32(0)),
        known=joined("known", np.False_),
        shown=np.where(inside, shown(other), shown(view)),
        x_kind=view.x_kind or other.x_kind,
        camera=None,
    )


def seed_of(*key: int) -> int:
    """A 63-bit seed out of several numbers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


class Batches(Sampler):
    """`count` batches from number `first()` on; of each, the places rank, rank + world, ..."""

    def __init__(self, mixture: Mixture, first: Callable[[], int], count: int, rank: int = 0, world: int = 1):
        self.mixture, self.first, self.count, self.rank, self.world = mixture, first, count, rank, world

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[Draw]]:
        first = self.first()
        for number in range(first, first + self.count):
            yield self.mixture.draws(number)[self.rank :: self.world]


def one_thread(_: int) -> None:
    """Workers are the parallelism: OpenCV's own threads in each would only fight over the cores."""
    cv2.setNumThreads(0)


class TrainingData(pl.LightningDataModule):
    """The data of a run, opened and found to fit together.

    Attributes: frames (one `Frames` per source), val and test (`Frames` or None), labels, x_kind, x_channels.

    Raises:
        TrainingError: no source, a single class, label sets that differ, frames that are scored and trained on with labels, quotas that do
            not add up, or views that cannot be made.
        DataError: what the data sets find.
    """

    def __init__(self, config: DataConfig, seed: int, accumulate: int = 1, steps_per_epoch: int = 1):
        super().__init__()
        if not config.sources:
            raise TrainingError("data.sources is empty: name at least one data set to train on")
        self.config, self.seed, self.accumulate, self.steps_per_epoch = config, seed, accumulate, steps_per_epoch
        self.frames = [Frames(source, config.x) for source in config.sources]
        self.val = Frames(config.val, config.x) if config.val else None
        self.test = Frames(config.test, config.x) if config.test else None
        first = self.frames[0].dataset
        self.labels: LabelSet = first.labels
        if len(self.labels) < 2:
            raise TrainingError(
                f"{config.sources[0].dataset} has one class, {', '.join(self.labels.names)}, and all else is unlabelled: whatever a "
                "network says would be right. Name at least two classes"
            )
        self.x_kind: str = first.x_kind
        self.x_channels: int = first.x_channels
        others = [*zip(config.sources[1:], self.frames[1:]), *((s, f) for s, f in ((config.val, self.val), (config.test, self.test)) if s)]
        for source, frames in others:
            if frames.labels.names != self.labels.names:
                unlike = difference(self.labels, frames.labels)
                raise TrainingError(f"the label sets of {config.sources[0].dataset} and {source.dataset} {source.split} differ: {unlike}")
            if frames.dataset.x_kind not in ("", self.x_kind) and self.x_kind:
                raise TrainingError(f"{source.dataset} has X {frames.dataset.x_kind!r}, {config.sources[0].dataset} {self.x_kind!r}")
            if not self.x_kind and frames in self.frames:  # X of frames that are scored teaches nothing
                self.x_kind, self.x_channels = frames.dataset.x_kind, frames.dataset.x_channels
        for key, scored in (("data.val", self.val), ("data.test", self.test)):
            for frames in self.frames if scored else ():
                refuse_seen(frames, scored, key)
        self.views = Views(self.frames, training_transform(config), seed, config.cutmix)
        self.mixture = Mixture([len(f) for f in self.frames], [s.per_batch for s in config.sources], config.batch, seed)

    def train_dataloader(self) -> DataLoader:
        """An epoch from the trainer's step on: this process's places of each batch."""
        trainer, config = self.trainer, self.config
        batches = Batches(
            self.mixture,
            lambda: trainer.global_step * self.accumulate,
            self.steps_per_epoch * self.accumulate,
            trainer.global_rank,
            trainer.world_size,
        )
        return DataLoader(
            self.views,
            batch_sampler=batches,
            collate_fn=partial(collate, x_channels=self.x_channels),
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            worker_init_fn=one_thread,
            pin_memory=torch.cuda.is_available(),
        )

    def first_batches(self, views: int) -> Iterator[Batch]:
        """Whole batches from the first of training on, with at least `views` views together."""
        for number in range(math.ceil(views / self.config.batch)):
            yield collate([self.views[draw] for draw in self.mixture.draws(number)], self.x_channels)

    def count_pixels(self, frames: int = 256) -> torch.Tensor:
        """(C,) int64 pixels of each class in the first frames that training will draw, before they are changed."""
        counts = np.zeros(256, np.int64)
        seen: set[tuple[int, int]] = set()
        for number in range(max(1, frames // self.config.batch)):
            seen.update((draw.source, draw.frame) for draw in self.mixture.draws(number))
        for source, frame in sorted(seen):
            labels = self.frames[source][frame].labels
            if labels is not None:
                counts += np.bincount(labels.ravel(), minlength=256)
        return torch.from_numpy(counts[: len(self.labels)])


def training_transform(config: DataConfig) -> SampleTransform:
    """The views of training, as the configuration says."""
    return train_transform(
        config.crop,
        base=config.eval_size,
        scale=config.scale,
        flip=config.flip,
        colour=config.colour,
        x_dropout=config.x_dropout,
        x_holes=config.x_holes,
    )


class AtSize(Dataset):
    """Frames of a data set as they are scored: at (height, width) `size`, or their own."""

    def __init__(self, dataset: Any, size: Sequence[int] | None):
        self.dataset, self.transform = dataset, eval_transform(size)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.transform(self.dataset[index])


def scoring_batches(
    dataset: Any, batch: int, size: Sequence[int] | None, x_channels: int, workers: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Frames rank, rank + world, ... of a data set, each once, in batches of one size; no frame is repeated to even the processes out."""
    loader = DataLoader(
        AtSize(dataset, size),
        sampler=range(rank, len(dataset), world),
        batch_size=batch,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=one_thread,
    )
    try:
        for samples in loader:
            for shape in dict.fromkeys(s.image.shape for s in samples):
                yield collate([s for s in samples if s.image.shape == shape], x_channels)
    except LixError as error:
        raise type(error)(own_words(error)) from None


def own_words(error: LixError) -> str:
    """What an error said before it crossed a process: a DataLoader puts a traceback around it."""
    text = str(error)
    return text.strip().splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text
