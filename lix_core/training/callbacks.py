"""What happens around the steps of a run: averaging, scoring, the journal, checkpoints, progress."""

from __future__ import annotations

import copy
import csv
import io
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import LayerSync
from timm.layers import convert_sync_batchnorm
from torch import nn

from lix_core.errors import TrainingError
from lix_core.files import save
from lix_core.metrics import ConfusionMatrix
from lix_core.progress import progress_bar
from lix_core.training.module import Learner


class MovingAverage(Callback):
    """Exponential moving average of the network's weights and running statistics; it becomes `Learner.scored`.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that a short run is not an average with its initial weights.
    Not Lightning's EMAWeightAveraging: that one averages the whole module tensor by tensor, has no such warm-up, and swaps weights back
    and forth for every validation.
    """

    def __init__(self, decay: float):
        self.decay, self.updates, self._seen = decay, 0, 0

    def setup(self, trainer: pl.Trainer, module: Learner, stage: str) -> None:
        module.keep_average(copy.deepcopy(module.network).eval().requires_grad_(False))

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, module: Learner, *_: Any) -> None:
        if trainer.global_step == self._seen:  # gradients are still being accumulated
            return
        self._seen = trainer.global_step
        self.updates += 1
        share = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        average, current = ([*n.parameters(), *n.buffers()] for n in (module.scored, module.network))
        numbers = [(a, c) for a, c in zip(average, current) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in numbers], [c for _, c in numbers], share)
        for a, c in zip(average, current):
            if not a.is_floating_point():
                a.copy_(c)

    def state_dict(self) -> dict[str, int]:
        return {"updates": self.updates, "seen": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.updates, self._seen = state["updates"], state["seen"]

    def on_load_checkpoint(self, trainer: pl.Trainer, module: Learner, checkpoint: dict[str, Any]) -> None:
        module.scored.load_state_dict(checkpoint["network"])


class Journal(Callback):
    """One row for each epoch: step, losses, learning rate, score, seconds; as metrics.csv, for TensorBoard, and in the checkpoint.

    The rows come back with the checkpoint, so that a resumed run's files are those of an uninterrupted one.

    score: counts the confusion matrix of a network over the validation frames; all processes call it together. None: no validation.
    Attributes: rows; matrix, of the epoch just ended or None.
    """

    def __init__(self, folder: Path, epochs: int, every: int, score: Callable[[Any], ConfusionMatrix] | None):
        self.folder, self.epochs, self.every, self.score = folder, epochs, every, score
        self.rows: list[dict[str, float]] = []
        self.matrix: ConfusionMatrix | None = None
        self._since, self._before = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """Time spent on the run so far, by all its pieces [s]."""
        return self._before + time.monotonic() - self._since

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Learner) -> None:
        epoch = len(self.rows) + 1
        row: dict[str, float] = {"epoch": epoch, "step": trainer.global_step, **module.take_terms()}
        row["lr"] = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        due = epoch == self.epochs or (self.every > 0 and epoch % self.every == 0)
        self.matrix = self.score(same_everywhere(module.scored)) if self.score and due else None
        if self.matrix is not None:
            row |= {"val_miou": self.matrix.miou, "val_pixel_accuracy": self.matrix.pixel_accuracy}
        row["seconds"] = self.seconds
        self.rows.append(row)
        if trainer.is_global_zero:
            save(self.folder / "metrics.csv", as_csv(self.rows).encode())
            for logger in trainer.loggers:
                logger.log_metrics({key: value for key, value in row.items() if key not in ("step", "epoch")}, int(row["step"]))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self._before, self._since = list(state["rows"]), state["seconds"], time.monotonic()


class Board(TensorBoardLogger):
    """TensorBoard's files. On a full disk they are left as they are: what stops the run is the checkpoint, which says why."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        try:
            super().log_metrics(metrics, step)
        except (OSError, ValueError) as error:  # Lightning takes whatever goes wrong for a value that cannot be logged
            if not isinstance(error.__cause__ or error, OSError):
                raise

    def save(self) -> None:
        with suppress(OSError):
            super().save()

    def finalize(self, status: str) -> None:
        with suppress(OSError):
            super().finalize(status)


def as_csv(rows: list[dict[str, float]]) -> str:
    """Rows as CSV, a column for every key that occurs; nothing where a row has no value."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def same_everywhere(network: torch.nn.Module) -> torch.nn.Module:
    """The network with the running statistics of process 0 in all processes: what is scored is what is saved."""
    if torch.distributed.is_initialized():
        for tensor in network.buffers():
            torch.distributed.broadcast(tensor, 0)
    return network


class Checkpoints(Checkpoint):
    """`last.ckpt` after every epoch, `best.ckpt` when the validation mIoU is the highest so far; every time where there is no validation.

    Both hold `network`, the weights that are scored, and `record`, what they are; `last.ckpt` holds Lightning's whole state beside it.
    Weights that are not finite are refused, so that what is on disk stays good. Best is written before last: a run killed between the two
    goes on from the last one and comes to the same best.
    """

    def __init__(self, folder: Path, journal: Journal, record: dict[str, Any]):
        self.folder, self.journal, self.record, self.best = folder, journal, record, -1.0

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Learner) -> None:
        self._check(trainer, module)
        matrix = self.journal.matrix
        if self.journal.score is None or (matrix is not None and matrix.miou > self.best):
            self.best = self.best if matrix is None else matrix.miou
            if trainer.is_global_zero:
                trainer.strategy.checkpoint_io.save_checkpoint(self._kept(trainer, module), self.folder / "best.ckpt")
        trainer.save_checkpoint(self.folder / "last.ckpt")

    def _check(self, trainer: pl.Trainer, module: Learner) -> None:
        for network in (module.network, module.scored):
            for name, tensor in network.state_dict().items():
                if not torch.isfinite(tensor).all():
                    raise TrainingError(
                        f"after step {trainer.global_step} the weights {name} are not finite; the last checkpoint is whole. "
                        "Lower optim.lr, set optim.clip, or train in 32-true"
                    )

    def _kept(self, trainer: pl.Trainer, module: Learner) -> dict[str, Any]:
        matrix = self.journal.matrix
        counts = None if matrix is None else matrix.counts.tolist()
        return {"network": module.scored.state_dict(), "record": {**self.record, "step": trainer.global_step, "val_counts": counts}}

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Learner, checkpoint: dict[str, Any]) -> None:
        checkpoint |= self._kept(trainer, module)

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.best = state["best"]


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that are written whole or not at all: beside the old one first, and moved over it when they are on the disk.

    Raises TrainingError where that fails, a full disk above all; the checkpoint that was there is left as it is.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        temporary = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()  # torch's own writer turns a full disk into an error without a reason
            torch.save(checkpoint, content)
            with temporary.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            room = "what was saved before is whole, and the run goes on from there when there is room"
            raise TrainingError(f"cannot write checkpoint {path}: {error.strerror}; {room}") from None


class SyncedBatchNorms(LayerSync):
    """Batch norms with the statistics of all processes, on GPUs. timm's have an activation in them, which the conversion of PyTorch, and so
    Lightning's sync_batchnorm, would take out of the network."""

    def apply(self, model: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        return model


class Progress(Callback):
    """A bar with the time left on a terminal; elsewhere one line for each epoch. To stderr."""

    def __init__(self, name: str, steps: int, journal: Journal):
        self.name, self.steps, self.journal = name, steps, journal
        self._bar: Any = None
        self._task: Any = None

    def on_train_start(self, trainer: pl.Trainer, module: Learner) -> None:
        self._started, self._first = time.monotonic(), trainer.global_step
        if sys.stderr.isatty() and trainer.is_global_zero:
            self._bar = progress_bar()
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=self.steps, completed=trainer.global_step, note="")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._bar:
            self._bar.update(self._task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Learner) -> None:
        note = self._note()
        if self._bar:
            self._bar.update(self._task, note=note)
        if self._bar or not trainer.is_global_zero:
            return
        step, spent = trainer.global_step, time.monotonic() - self._started
        left = spent / max(1, step - self._first) * (self.steps - step)
        print(f"{self.name}: step {step}/{self.steps}  {note}  {readable(left)} left", file=sys.stderr, flush=True)

    def _note(self) -> str:
        row = self.journal.rows[-1]
        scores = [r["val_miou"] for r in self.journal.rows if "val_miou" in r]
        score = f"  val mIoU {scores[-1]:.3f} (best {max(scores):.3f})" if scores else ""
        return f"loss {row.get('loss', float('nan')):.3f}{score}"

    def on_train_end(self, trainer: pl.Trainer, module: Learner) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, module: Learner, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def readable(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
