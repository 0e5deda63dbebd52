"""What a bundle says of the run that its weights come from: the manifest.

Everything that went into the weights is named with its licence: the training data, the initial weights of the encoders, and the same
of the teacher of a distilled student, of that teacher's teacher, and so on.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm

from lix_core import __version__
from lix_core.data.registry import DATASETS
from lix_core.errors import TrainingError
from lix_core.export import OUTPUTS
from lix_core.models.encoders import PYPI_WEIGHTS
from lix_core.models.networks import Network, Teacher, parameter_counts
from lix_core.runtime.bundle import InputSpec, Manifest, SizePolicy, XSpec
from lix_core.training.config import Config, ModelConfig, Source, to_dict
from lix_core.training.run import Record, RunResult, load_checkpoint, matrix_of

NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE)


def lineage(record: Record, runs: Sequence[Path]) -> list[Record]:
    """The teachers behind a record, the nearest first, found among run folders by the checksum that the student keeps.

    Raises TrainingError where one of them is not there.
    """
    folders = {hashlib.sha256((run / "checkpoints" / "best.ckpt").read_bytes()).hexdigest(): run for run in map(checked_run, runs)}
    teachers: list[Record] = []
    while record.teacher:
        if record.teacher not in folders:
            given = ", ".join(map(str, runs)) or "none is named"
            raise TrainingError(
                f"{record.config.name!r} was taught by a run whose best.ckpt has the SHA-256 {record.teacher[:12]}...; {given}. "
                "Its data and licences belong to this model too: name its folder with --teacher"
            )
        record = Record.from_dict(load_checkpoint(folders[record.teacher] / "checkpoints" / "best.ckpt")["record"])
        teachers.append(record)
    return teachers


def checked_run(run: Path) -> Path:
    if not (run / "checkpoints" / "best.ckpt").is_file():
        raise TrainingError(f"{run} is no run folder: there is no checkpoints/best.ckpt")
    return run


def manifest_of(name: str, network: Network, record: Record, result: RunResult | None = None, teachers: Sequence[Record] = ()) -> Manifest:
    """The manifest of a run's network.

    result: of the finished run; None: it is not finished, and there are no test figures. teachers: see `lineage`.
    """
    data = [*data_of(record.config), *(entry for teacher in teachers for entry in data_of(teacher.config, " of the teacher"))]
    return Manifest(
        name=name,
        labels=record.labels,
        description=description(record, teachers),
        input=InputSpec(mean=network.mean, std=network.std),
        size=size_policy(record.config, network.stride),
        outputs=OUTPUTS,
        licence=licence_of(data),
        data=tuple(data),
        training={**training_of(record, teachers), "parameters": parameter_counts(network), **cost_of(result)},
        metrics=metrics_of(record, result),
        x=XSpec(record.x_kind, record.x_channels) if isinstance(network, Teacher) else None,
    )


def description(record: Record, teachers: Sequence[Record] = ()) -> str:
    model = record.config.model
    sees = f"RGB and {record.x_kind}" if model.kind == "teacher" else "RGB"
    taught = f", taught by an RGB + {teachers[0].x_kind} teacher ({record.config.distill.method})" if teachers else ""
    return f"{len(record.labels)} classes ({record.labels.name}) from {sees}: {model.encoder} with the decoder {model.decoder}{taught}."


def size_policy(config: Config, stride: int) -> SizePolicy:
    """Images are scaled down to the number of pixels at which the run was scored; where that was their own size, to the default."""
    if config.data.eval_size is None:
        return SizePolicy(multiple_of=stride)
    height, width = config.data.eval_size
    return SizePolicy(multiple_of=stride, max_pixels=max(height * width, stride**2))


# What the weights come from.


def data_of(config: Config, whose: str = "") -> list[dict[str, str]]:
    """`{"use", "name", "licence", "source"}` of all that went into the weights of a run, each once."""
    entries = [source_entry(source, f"training{whose}") for source in config.data.sources]
    if config.data.val:
        entries.append(source_entry(config.data.val, f"choice of the checkpoint{whose}"))
    model = config.model
    encoders = [model.encoder, model.x_encoder or model.encoder] if model.kind == "teacher" else [model.encoder]
    if model.weights != "none":
        entries += [weights_entry(encoder, model, f"initial weights{whose}") for encoder in encoders]
    return [entry for place, entry in enumerate(entries) if entry not in entries[:place]]


def source_entry(source: Source, use: str) -> dict[str, str]:
    dataset = getattr(importlib.import_module(DATASETS[source.dataset][0]), DATASETS[source.dataset][1])
    share = f"{source.labelled:.3g} of its frames with labels"
    parts = {"all": f" ({share})", "labelled": f" (only the {share})", "unlabelled": f" (without labels, and without the {share})"}
    return {
        "use": use,
        "name": f"{source.dataset} {source.split}{parts[source.keep] if source.labelled < 1 else ''}",
        "licence": str(getattr(dataset, "licence", "") or "unknown"),
        "source": str(getattr(dataset, "source", "") or "unknown"),
    }


def weights_entry(encoder: str, model: ModelConfig, use: str) -> dict[str, str]:
    """Pretrained weights as `lix_core.models.encoders.build_encoder` takes them: from a PyPI package, or from timm."""
    if model.weights == "pypi" or model.weights == "auto" and encoder in PYPI_WEIGHTS:
        licence = "Apache-2.0; images under ImageNet's terms of access"
        source = f"PyPI package {PYPI_WEIGHTS[encoder][0].replace('_', '-')}"
    else:
        weights = timm.get_pretrained_cfg(encoder)
        licence = f"{weights.license or 'unknown'}; images under the terms of their data set"
        source = f"timm, {weights.hf_hub_id or weights.url or encoder}"
    return {"use": use, "name": f"pretrained {encoder}", "licence": licence, "source": source}


def licence_of(data: Sequence[dict[str, str]]) -> str:
    """Of the weights, as far as it follows from what they were made of."""
    names: dict[str, list[str]] = {}
    for entry in data:
        names.setdefault(entry["licence"], []).append(entry["name"])
    restricted = [f"{licence} ({', '.join(dict.fromkeys(n))})" for licence, n in names.items() if NON_COMMERCIAL.search(licence)]
    if restricted:
        return f"made from data under {'; '.join(restricted)}: for non-commercial use"
    unknown = [name for licence, n in names.items() if licence.startswith("unknown") for name in n]
    if unknown:
        return f"unknown: made from {', '.join(dict.fromkeys(unknown))}, whose licence is not known"
    return f"made from data under {'; '.join(names)}"


# How they came to be, and how good they are.


def training_of(record: Record, teachers: Sequence[Record] = ()) -> dict[str, Any]:
    """The record of a run and, nested in it, of its teacher. Folders are left out: they are those of the machine that trained."""
    config = to_dict(record.config)
    for source in (*config["data"]["sources"], config["data"]["val"], config["data"]["test"]):
        if source:
            del source["root"]
    facts = {
        "lix": __version__,
        "run": record.config.name,
        "method": record.config.distill.method if record.teacher else "supervised",
        "seed": record.config.seed,
        "step": record.step,
        "git_revision": record.git_revision,
        "torch": record.torch,
        "x": record.x_kind,
        "config": config,
    }
    if teachers:
        nearest, *others = teachers
        facts["teacher"] = {"sha256": record.teacher, **training_of(nearest, others), "metrics": metrics_of(nearest, None)}
    return facts


def cost_of(result: RunResult | None) -> dict[str, Any]:
    return {"seconds": result.seconds, "device": result.device} if result else {}


def metrics_of(record: Record, result: RunResult | None) -> dict[str, Any]:
    """Figures of this very checkpoint, each under the split it was measured on."""
    data, metrics = record.config.data, {}
    if data.val and record.val_counts is not None:
        metrics[f"{data.val.dataset} {data.val.split}"] = matrix_of(record.val_counts).summary(record.labels.names)
    if data.test and result and result.test and result.checkpoint_step == record.step:
        metrics[f"{data.test.dataset} {data.test.split}"] = {k: v for k, v in result.test.items() if k != "counts"}
    return metrics
