"""The Lightning module of a run: network, hard loss, distillation, optimiser. A teacher and a student differ in two lines of it.

Shape letters: B batch, C classes, H W pixels, s output stride.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lix_core.data.sample import Batch
from lix_core.errors import TrainingError
from lix_core.labels import UNLABELLED
from lix_core.models.networks import Network, Output, Student, Teacher, partners
from lix_core.training.config import Config, ModelConfig, OptimConfig
from lix_core.training.cpu import use_onednn
from lix_core.training.data import seed_of
from lix_core.training.losses import HardLoss


def build_network(config: ModelConfig, num_classes: int, x_channels: int, weights: str | None = None) -> Network:
    """The untrained network of a configuration, its encoders with their initial weights; `weights` instead of the configuration's.

    Raises TrainingError for a teacher without X.
    """
    weights = config.weights if weights is None else weights
    if config.kind == "student":
        return Student(num_classes, config.encoder, config.decoder, weights)
    if not x_channels:
        raise TrainingError("a teacher needs X: set data.x (normals, depth, inverse_depth or disparity)")
    return Teacher(num_classes, x_channels, config.encoder, config.x_encoder, config.fusion, config.decoder, weights)


def outputs(network: Network, batch: Batch) -> Output:
    """What the network makes of a batch: a teacher sees X, a student does not."""
    image = network.normalise(batch.image)
    return network.outputs(image, batch.x, batch.known) if isinstance(network, Teacher) else network.outputs(image)


def joined(answers: Sequence[Output], place: Tensor) -> Output:
    """Answers to parts of a batch as one; place: (B,) int64, of each frame of the batch in the parts one after the other."""
    features = {name: torch.cat([answer.features[name] for answer in answers])[place] for name in answers[0].features}
    return Output(torch.cat([answer.logits for answer in answers])[place], features)


def full_logits(coarse_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Coarse logits at the size of the labels, float32, interpolated bilinearly as the networks do."""
    return F.interpolate(coarse_BChw.float(), size=size, mode="bilinear", align_corners=False)


def learning_rate(config: OptimConfig, step: int) -> float:
    """Share of the peak learning rate at a step (0 and up): linear warm-up, then the schedule, which ends at 0 after the last step."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    curves = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "poly": (1 - done) ** config.power, "constant": 1.0}
    return curves[config.schedule]


CONTAINERS = (nn.Sequential, nn.ModuleList)


def encoder_depths(encoder: nn.Module) -> dict[int, int]:
    """id of each parameter -> how many blocks follow its own: 0 in the last block. Blocks are what the encoder's containers hold."""
    children = list(encoder.children())
    while len(children) == 1 and not isinstance(children[0], CONTAINERS) and any(True for _ in children[0].children()):
        children = list(children[0].children())  # timm puts some networks into a wrapper
    blocks: list[nn.Module] = []
    for child in children:
        blocks += child.children() if isinstance(child, CONTAINERS) else [child]
    blocks = [block for block in blocks if any(True for _ in block.parameters())]
    return {id(p): len(blocks) - 1 - i for i, block in enumerate(blocks) for p in block.parameters()}


def parameter_groups(network: nn.Module, extra: nn.Module | None, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay: vectors (norms, biases) do not decay, encoders learn slower, first blocks slowest."""
    rates: dict[int, float] = {}
    for encoder in (getattr(network, "encoder", None), getattr(network, "x_encoder", None)):
        depths = encoder_depths(encoder) if encoder is not None else {}
        rates |= {key: config.encoder_lr * config.layer_decay**depth for key, depth in depths.items()}
        rates |= {id(p): config.encoder_lr for p in (encoder.parameters() if encoder is not None else ()) if id(p) not in rates}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in [*network.parameters(), *(extra.parameters() if extra else ())]:
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rates.get(id(parameter), 1.0), decay), []).append(parameter)
    return [{"params": members, "lr": config.lr * rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


class Learner(pl.LightningModule):
    """Trains `network` by L = L_H + the terms of the distiller, which compares it with a frozen teacher, or several of one build.

    The teachers and the averaged weights live outside of the module tree: Lightning neither trains nor saves nor synchronises them, and
    a teacher's `train()` is never called.

    speaks: name of a frame -> which teacher speaks of it, else the first. teacher_needs_x: frames without any X are then left out of the
    terms.

    Attributes: scored, the network that is scored and kept: the averaged one where there is an average. terms: sums of the loss's terms
    since they were last taken.
    """

    def __init__(
        self,
        config: Config,
        network: Network,
        hard: HardLoss,
        teachers: Sequence[Network] = (),
        distiller: nn.Module | None = None,
        speaks: Mapping[str, int] = MappingProxyType({}),
        teacher_needs_x: bool = False,
    ):
        super().__init__()
        self.config, self.network, self.hard, self.distiller = config, network, hard, distiller
        self.speaks, self.teacher_needs_x = speaks, teacher_needs_x
        self.teachers = tuple(teacher.eval().requires_grad_(False) for teacher in teachers)  # a tuple: no modules of this one
        self._outside = {f"teacher {n}": teacher for n, teacher in enumerate(self.teachers)}
        self._partners = partners(network, teachers[0]) if teachers else {}
        self._terms: dict[str, Tensor] = {}
        self._batches = 0
        self._previous: list[str] = []

    @property
    def scored(self) -> Network:
        return self._outside.get("average", self.network)

    def keep_average(self, network: Network) -> None:
        self._outside["average"] = network

    def on_fit_start(self) -> None:
        for network in self._outside.values():
            network.to(self.device)
        if self.device.type == "cpu":
            for network in (self, *self._outside.values()):
                use_onednn(network)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        # The last epoch may be shorter. (Not by Lightning's max_steps: with it, a run does not go on at the place where it was saved.)
        return -1 if self.global_step >= self.config.optim.steps else None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Dropout is a function of seed, step and process, so that a resumed run needs no state of the generators.
        torch.manual_seed(seed_of(self.config.seed, self.global_step, batch_idx % self.trainer.accumulate_grad_batches, self.global_rank))
        student = outputs(self.network, batch)
        terms = self.hard(full_logits(student.logits, batch.labels.shape[-2:]), batch.labels)
        if self.distiller is not None:
            terms |= self._lesson(student, batch)
        loss = sum(terms.values())
        if not torch.isfinite(loss):
            raise TrainingError(self._complaint(batch, student, terms))
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, 0.0) + value.detach()
        self._batches += 1
        self._previous = batch.names
        return loss

    def _lesson(self, student: Output, batch: Batch) -> dict[str, Tensor]:
        """The terms of the distiller, over the frames of which the teacher has something to say."""
        seen = batch.known.flatten(1).any(1)
        if seen.all() or not self.teacher_needs_x:
            return self.distiller(student, self._taught(batch), batch)
        share = float(seen.any())
        if not share:
            seen[0] = True  # computed all the same, so that every process has the same graph; no pixel of it counts
        batch = batch.only(seen)
        if not share:
            batch = replace(batch, labels=torch.full_like(batch.labels, UNLABELLED), labelled=torch.ones_like(batch.labelled))
        return {name: share * term for name, term in self.distiller(student.only(seen), self._taught(batch), batch).items()}

    @torch.no_grad()
    def _taught(self, batch: Batch) -> Output:
        """The teachers' answers to the very views that the student sees, their features under the names of the student's."""
        who = torch.tensor([self.speaks.get(name, 0) for name in batch.names], device=batch.image.device)
        frames = [(who == n).nonzero().flatten() for n in range(len(self.teachers))]
        answers = [outputs(teacher, batch.only(who == n)) for n, teacher in enumerate(self.teachers) if len(frames[n])]
        answer = answers[0] if len(answers) == 1 else joined(answers, torch.cat(frames).argsort())
        return answer._replace(features={name: answer.features[own] for own, name in self._partners.items()})

    def _complaint(self, batch: Batch, student: Output, terms: dict[str, Tensor]) -> str:
        """Why the loss is no number, as far as can be seen: the samples, or the step before."""
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
        flaws = {"X": ~torch.isfinite(batch.x).flatten(1).all(1), "logits": ~torch.isfinite(student.logits).flatten(1).all(1)}
        what = f"the loss of step {self.global_step} is not finite ({values})"
        cure = "the last checkpoint is whole. Lower optim.lr, set optim.clip, or train in 32-true"
        if not all(torch.isfinite(p).all() for p in self.network.parameters()):
            return f"{what}: the weights are not finite since the step before, on {', '.join(self._previous) or 'nothing'}; {cure}"
        for part, bad in flaws.items():
            if bad.any():
                names = [name for name, b in zip(batch.names, bad.tolist()) if b]
                return f"{what}: {part} of {', '.join(names)} are not finite; {cure}"
        return f"{what} on {', '.join(batch.names)}; {cure}"

    def take_terms(self) -> dict[str, float]:
        """Means of the loss (`loss`) and its terms over the batches since the last call, over all processes."""
        if not self._batches:
            return {}
        names = sorted(self._terms)
        means = torch.stack([self._terms[name].float() for name in names]) / self._batches
        means = self.trainer.strategy.reduce(means, reduce_op="mean").tolist()
        self._terms, self._batches = {}, 0
        return {"loss": sum(means), **dict(zip(names, means))}

    def configure_optimizers(self) -> dict[str, Any]:
        config = self.config.optim
        # Fused on CPUs only: there it saves a kernel per tensor, while Lightning refuses to clip after a fused optimiser under 16-mixed.
        fused = self.device.type == "cpu" and self.config.trainer.precision != "16-mixed"
        optimizer = torch.optim.AdamW(parameter_groups(self.network, self.distiller, config), fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(config, step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
