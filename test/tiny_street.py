"""A data set that needs no files: small frames of three classes, told apart by colour, and by depth where colour is noise."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from contextlib import contextmanager

import numpy as np

from lix_core.data.sample import Sample
from lix_core.geometry.encodings import ENCODINGS
from lix_core.labels import UNLABELLED, Label, LabelSet

TINY = LabelSet("tiny", (Label("ground", (120, 60, 120)), Label("wall", (70, 70, 70)), Label("sky", (70, 130, 180))))


class TinyStreet:
    """`count` frames of `size`: sky above, a wall and the ground below, with a void border; every other split other frames.

    sizes: frames take turns at these (height, width). delay: seconds that a frame takes. poison: number of a frame whose X holds NaN.
    names: of the classes, where they shall be other ones. unlabelled: whether it has no labels. blind: whether it has no X, whatever is
    asked for.
    """

    labels = TINY
    licence, source = "none", "drawn out of numbers"

    def __init__(
        self,
        root="",
        split="train",
        x="",
        count=12,
        sizes=((64, 96),),
        delay=0.0,
        poison=-1,
        names=(),
        noise=20.0,
        unlabelled=False,
        blind=False,
    ):
        self.split, self.count, self.sizes, self.delay, self.poison, self.noise = split, count, sizes, delay, poison, noise
        self.unlabelled = unlabelled
        x = "" if blind else x
        self.x_kind, self.x_channels = x, ENCODINGS[x].channels if x else 0
        self.names = [f"{split}{i}" for i in range(count)]
        if names:
            self.labels = LabelSet("other", tuple(Label(name, (i, i, i)) for i, name in enumerate(names)))

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        time.sleep(self.delay)
        random = np.random.default_rng((sum(map(ord, self.split)), index))
        height, width = self.sizes[index % len(self.sizes)]
        labels = np.zeros((height, width), np.uint8)
        horizon, edge = random.integers(height // 4, height // 2), random.integers(width // 4, 3 * width // 4)
        labels[:horizon] = 2
        labels[horizon : horizon + height // 4, :edge] = 1
        depth = np.where(labels == 1, 30.0, np.where(labels == 0, 8.0, np.nan)).astype(np.float32)
        image = np.array(TINY.palette)[labels] + random.normal(0, self.noise, (height, width, 3))
        labels[:2] = UNLABELLED
        x = known = None
        if self.x_kind:
            x, known = ENCODINGS[self.x_kind].encode(depth)
            if index == self.poison:
                x[0, 5, 5] = np.nan
                known[5, 5] = True
        labels = None if self.unlabelled else labels
        return Sample(self.names[index], image.clip(0, 255).astype(np.uint8), labels, x, known, self.x_kind)


def endless(cell, work, *_):
    """In place of `reproduce.run_cell`: a run that says which process it is in, as a file in `work`, and does not end."""
    work.mkdir(parents=True, exist_ok=True)
    (work / f"{os.getpid()}.pid").touch()
    time.sleep(600)


@contextmanager
def known():
    """Within it `tiny` is a data set, and PyTorch has one thread: small networks are faster so, and the same on every machine."""
    import torch

    from lix_core.data.registry import DATASETS

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    DATASETS["tiny"] = ("tiny_street", "TinyStreet")
    try:
        yield
    finally:
        del DATASETS["tiny"]
        torch.set_num_threads(before)


def serve():
    """Start each run that stdin asks for, {config, out, teacher, env}, in a process of its own that can be killed, and print its number.

    One process imports everything and forks; it computes nothing itself, so that its children are as good as fresh ones.
    """
    from lix_core.training.config import from_dict
    from lix_core.training.run import fit

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.environ.update(job["env"])
            try:
                fit(from_dict(job["config"]), job["out"], job["teacher"])
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    with known():
        serve()
