"""The weights that a run or a bundle holds, with the record of what they are: `load_network`, `Record`."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from lix_core.errors import LixError, TrainingError, first_line
from lix_core.export import read_network
from lix_core.labels import LabelSet
from lix_core.models.networks import Network
from lix_core.runtime.bundle import SUFFIX, Bundle, Manifest
from lix_core.training.config import Config, Source, from_dict, to_dict
from lix_core.training.module import build_network

Which = Literal["best", "last"]


@dataclass
class Record:
    """What the weights of a checkpoint are: enough to build their network and to say where it comes from."""

    config: Config
    labels: LabelSet
    x_kind: str
    x_channels: int
    step: int
    git_revision: str
    torch: str
    teacher: str = ""
    """SHA-256 of the teacher's checkpoint; of several, joined by `+`; empty without one."""
    val_counts: list[list[int]] | None = None
    """The confusion matrix on the validation frames; None where they were not scored at that step."""
    start: str = ""
    """SHA-256 of the checkpoint whose weights were the first ones of this run; empty without one."""
    always_x: bool = True
    """Whether every source of training frames had X."""
    earlier: list[Source] = dataclasses.field(default_factory=list)
    """What was trained on by the run that this one started from, by the one that that one started from, and so on."""

    @property
    def sources(self) -> list[Source]:
        """All that these weights were trained on, by this run and by those before it."""
        return [*self.config.data.sources, *self.earlier]

    @property
    def needs_x(self) -> bool:
        """Whether the network never was without X in training, so that without it it does not know what it says."""
        return self.config.model.kind == "teacher" and self.config.data.x_dropout == 0 and self.always_x

    def to_dict(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {"config": to_dict(self.config), "labels": self.labels.to_dict(), "earlier": [dataclasses.asdict(s) for s in self.earlier]}
        return {**fields, **plain}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Record":
        earlier = [Source(**source) for source in data.get("earlier", ())]  # older ones do not say it
        return cls(**{**data, "config": from_dict(data["config"]), "labels": LabelSet.from_dict(data["labels"]), "earlier": earlier})


def load_network(run: str | Path, which: Which = "best", device: str | torch.device = "cpu") -> tuple[Network, Record]:
    """The network of a run, or of a bundle that was exported from one, in eval mode, with the record of its weights. Loading executes no
    code from the file. A bundle's network has yet to learn what its batch normalisations are to normalise by before it is trained on, see
    `lix_core.export.read_network`.

    Raises TrainingError where the checkpoint is missing or damaged, or the bundle is of no training run.
    """
    if which not in get_args(Which):
        raise TrainingError(f"the checkpoint of a run is best or last, got {which!r}")
    if is_bundle(run):
        if which != "best":
            raise TrainingError(f"{run} is a bundle, which holds one checkpoint: there is no {which} one")
        return network_of_bundle(run, device)
    path = Path(run) / "checkpoints" / f"{which}.ckpt"
    saved = load_checkpoint(path)
    try:
        record = Record.from_dict(saved["record"])
        network = build_network(record.config.model, len(record.labels), record.x_channels, weights="none")
        network.load_state_dict(saved["network"])
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:
        what = " ".join(str(error).split())
        raise TrainingError(
            f"checkpoint {path} is of another version of lix or of timm than this one ({what:.200}): export it with that one"
        ) from None
    return network.to(device, memory_format=torch.channels_last).eval(), record


def is_bundle(run: str | Path) -> bool:
    """Whether a path is that of a bundle, and not of a run folder."""
    return Path(run).suffix == SUFFIX and not Path(run).is_dir()


def network_of_bundle(path: str | Path, device: str | torch.device = "cpu") -> tuple[Network, Record]:
    """`load_network` of a bundle."""
    with of_bundle(path) as bundle:
        record = record_of(bundle.manifest)
        network = build_network(record.config.model, len(record.labels), record.x_channels, weights="none")
        read_network(bundle.graph, network)
    return network.to(device, memory_format=torch.channels_last).eval(), record


@contextmanager
def of_bundle(path: str | Path) -> Iterator[Bundle]:
    """A bundle, for what a run is asked for; errors name it."""
    bundle = Bundle.load(path)
    try:
        yield bundle
    except LixError as error:
        raise TrainingError(f"{path} does not do for a run: {error}") from None


def teacher_keys(count: int) -> list[str]:
    """Under which a manifest tells of this many teachers of a run."""
    return [f"teacher {n}" if n > 1 else "teacher" for n in range(1, count + 1)]


def runs_behind(training: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a manifest tells of the teachers of a run, and of the run that it started from: none or one."""
    taught = [training[key] for key in teacher_keys(len(training)) if key in training]
    return taught, [training[key] for key in ("start",) if key in training]


def sources_of(runs: Iterable[dict[str, Any]]) -> list[Source]:
    """What the runs of a manifest, and those that they started from, were trained on."""
    return [source for run in runs for source in (*from_dict(run["config"]).data.sources, *sources_of(runs_behind(run)[1]))]


def record_of(manifest: Manifest) -> Record:
    """What a bundle says of its weights, as the record of a run.

    Raises TrainingError where it does not say it, or not of its data, which is behind whatever is made of these weights.
    """
    if not manifest.data or not all({"name", "licence"} <= entry.keys() for entry in manifest.data):
        raise TrainingError("its manifest does not tell name and licence of all that it was trained on")
    x, training = manifest.x, manifest.training
    try:
        facts = (int(training["step"]), str(training["git_revision"]), str(training["torch"]))
        taught, started = runs_behind(training)
        if not all("metrics" in run for run in (*taught, *started)):
            raise KeyError("metrics")
        behind = {"teacher": "+".join(run["sha256"] for run in taught), "start": "".join(run["sha256"] for run in started)}
        config, kind, channels = from_dict(training["config"]), training["x"], x.channels if x else 0
        always_x = training.get("needs_x", True)  # older ones do not say it; see Manifest.needs_x
        return Record(config, manifest.labels, kind, channels, *facts, **behind, always_x=always_x, earlier=sources_of(started))
    except LixError:  # of the configuration
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise TrainingError(f"its manifest does not tell of a training run as `lix export` does ({what})") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as archive:  # whose checksums torch does not look at
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} in it is wrong")
    except FileNotFoundError:
        others = sorted(p.stem for p in path.parent.glob("*.ckpt"))
        raise TrainingError(f"there is no {path}; checkpoints there: {', '.join(others) or 'none'}") from None
    except Exception as error:
        raise TrainingError(f"checkpoint {path} cannot be read: {first_line(error)}") from None
    if not isinstance(saved, dict) or not {"network", "record"} <= set(saved):
        raise TrainingError(f"{path} is no checkpoint of lix")
    return saved


def checksum(run: Path) -> str:
    """SHA-256 of a run's best checkpoint, or of a bundle. Raises TrainingError where there is none."""
    path = run if is_bundle(run) else run / "checkpoints" / "best.ckpt"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        lacking = f"there is no bundle {run}" if is_bundle(run) else f"{run} is no run folder: there is no checkpoints/best.ckpt"
        raise TrainingError(lacking) from None
