"""What a table of methods is: rows, teachers, folds and seeds, and the runs (cells) that these come to.

A table is a YAML file beside this one in tables/ (`TABLES`). It names one configuration for all rows, one for each teacher, the
folds and seeds, and what sets each row apart. A cell of it (row, fold, seed) is one run of `lix_core.training.run.fit`; cells that
share fold and seed share teacher, initial weights, order, views and schedule.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lix_core.distill.config import DistillConfig
from lix_core.errors import DataError, TrainingError
from lix_core.files import from_yaml
from lix_core.options import nearest
from lix_core.training.config import Config, TrainerConfig, from_dict, load_config, override, to_dict

TABLES = resources.files("lix_core.training") / "tables"
TEACHER, CONTROL = "teacher", "control"
"""Names of the teacher that rows learn from, and of the row that they are set against, where a table does not say otherwise."""

LATER = {"lix": {"sampling": "pooled", "pseudo": 0.0, "threshold": 0.9}}
"""Options of methods that came when there were results, and what these were made with: such a value is in no fingerprint."""

WORLD_FRAMES = {"train": (480, 101), "val": (60, 102), "test": (160, 103)}
"""Frames and seed of each split of the simulated street that the tables are of, the other options of `lix world render` as they are."""


@dataclass(frozen=True)
class Row:
    """One row.

    overrides: what sets its configuration apart, as `a.b=value`. teachers: those that it learns from, or rows above that do for one.
    control: the row that it is set against, "" for none. start: the row above, or the teacher, whose weights it begins with, "" for those
    of the configuration.
    """

    name: str
    overrides: tuple[str, ...] = ()
    teachers: tuple[str, ...] = (TEACHER,)
    control: str = CONTROL
    start: str = ""


@dataclass(frozen=True)
class Table:
    """What is measured, and on what.

    title: of the Markdown page. metric: `miou`, or the name of the class whose IoU counts. base: configuration of every run.
    teachers: name -> overrides of a teacher's run. shown: groups of classes shown apart, name -> class names. folds: values of
    `{fold}` in the configuration. seeds: of the runs. notes: paragraphs for the page. command: that makes it, without overrides; empty:
    `lix reproduce` with its name.
    """

    name: str
    title: str
    metric: str
    base: dict[str, Any]
    teachers: dict[str, tuple[str, ...]]
    rows: tuple[Row, ...]
    folds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0, 1, 2)
    shown: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: str = ""
    command: str = ""
    whole: "Table | None" = None
    """Of a part of a table, the table: a result file is always of all of it."""

    @property
    def key(self) -> str:
        """Of the score in the rows of its result file."""
        return "miou" if self.metric == "miou" else "iou"

    @classmethod
    def load(cls, name: str) -> "Table":
        """A table by its name, or by the path of its YAML file, which names it. Raises TrainingError where there is none, where its file
        does not hold one, or where a file is called as a table that comes with lix."""
        names, file = table_names(), TABLES / f"{name}.yaml"
        if name.endswith(".yaml"):
            file, name = Path(name).expanduser(), Path(name).stem
            if name in names:
                raise TrainingError(f"{file} has the name of a table that comes with lix, whose results it would replace: rename it")
        elif name not in names:
            raise TrainingError(f"there is no table {name!r}{nearest(name, names)}; there are {', '.join(names)}, or a file NAME.yaml")
        try:
            data = from_yaml(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise TrainingError(f"table {name} cannot be read: {' '.join(str(error).split())}") from None
        table = cls.from_dict(name, data)
        return table if name in names else replace(table, command=table.typed(file.name))

    @classmethod
    def from_dict(cls, name: str, data: Mapping[str, Any]) -> "Table":
        """Raises TrainingError where a key is unknown, missing or no such thing, or a row learns from a teacher that there is none of."""
        known = {"title": str, "metric": str, "base": dict, "teachers": dict, "rows": dict, "folds": list, "seeds": list}
        known |= {"shown": dict, "notes": str}
        check_kinds(f"table {name}", data, known)
        unknown = [key for key in data if key not in known]
        missing = [key for key in ("title", "metric", "base", "rows") if key not in data]
        if unknown or missing:
            wrong = f"unknown key {unknown[0]}{nearest(unknown[0], known)}" if unknown else f"{missing[0]} is missing"
            raise TrainingError(f"table {name}: {wrong}")
        teachers = {str(key): flat(value or (), f"teacher {key} of table {name}") for key, value in data.get("teachers", {}).items()}
        rows = []
        for key, value in data["rows"].items():
            value, where = value or {}, f"row {key} of table {name}"
            check_kinds(where, value, {"control": str, "start": str})
            if other := [word for word in value if word not in ROW]:
                raise TrainingError(f"{where}: unknown key {other[0]}{nearest(other[0], ROW)}; there are {', '.join(ROW)}")
            taught = flat(value.get("teacher", TEACHER if TEACHER in teachers else ""), f"teacher of {where}")
            taught = tuple(name for name in taught if name)
            start = value.get("start", "")
            if start and start not in [*teachers, *(row.name for row in rows)]:
                raise TrainingError(f"{where} starts from {start!r}, which is no teacher and no row above it")
            if unknown := [name for name in taught if name not in [*teachers, *(row.name for row in rows)]]:
                named = f"{unknown[0]!r}, which is no row above it; its teachers are {', '.join(teachers)}"
                raise TrainingError(f"{where} learns from {named}")
            rows.append(Row(str(key), flat(value.get("set", ()), where), taught, value.get("control", CONTROL), start))
        names = [row.name for row in rows]
        for key, value in data["rows"].items():
            control = (value or {}).get("control", "")
            if control and control not in names:
                raise TrainingError(f"row {key} of table {name} is set against {control!r}, which is no row{nearest(control, names)}")
        sequences = {key: tuple(data[key]) for key in ("folds", "seeds") if key in data}
        if empty := [key for key, values in sequences.items() if not values]:
            raise TrainingError(f"table {name}: {empty[0]} is an empty list; leave it out, or name some")
        shown = {str(key): tuple(value) for key, value in data.get("shown", {}).items()}
        texts = {key: str(data[key]) for key in ("title", "metric")} | {"notes": str(data.get("notes", ""))}
        return cls(name, base=dict(data["base"]), teachers=teachers, rows=tuple(rows), shown=shown, **sequences, **texts)

    @classmethod
    def of_variations(cls, name: str, config: str | Path, variations: Sequence[str], metric: str, seeds: Sequence[int]) -> "Table":
        """The table of `lix ablate`: a row for the configuration as it is and one for each value of `a.b=v,v`, every option alone.

        `a.b=v` with one value changes all rows. Options are chosen on validation frames: where the configuration has `data.val`, these are
        scored and not `data.test`. Raises TrainingError on what `load_config` refuses, and where nothing varies.
        """
        split = [(key, values_of(values)) for key, equals, values in (text.partition("=") for text in variations)]
        fixed = [f"{key}={values[0]}" for key, values in split if len(values) == 1]
        refuse_decided(fixed)
        base = to_dict(load_config(config, fixed))
        if base["data"]["val"]:
            base["data"]["test"] = None
        rows = [Row(f"{key}={value}", (f"{key}={value}",), ()) for key, values in split if len(values) > 1 for value in values]
        if not rows:
            raise TrainingError(f"nothing varies in {' '.join(variations)}: give an option several values, as distill.lix.tau=1,2,4")
        varied = [key for key, values in split if len(values) > 1]
        names = [row.name for row in rows]
        if twice := [name for name in names if names.count(name) > 1]:
            raise TrainingError(f"{twice[0]} is given twice: one row for each value")
        method = base["distill"]["method"]
        for key in (key for key in varied if key.startswith("distill.") and key != "distill.method"):
            part = key.split(".")[1]
            of_method = isinstance(base["distill"].get(part), dict)
            if method == "none" or (of_method and part != method):
                cure = f"name a method, as distill.method={part if of_method else 'lix'}"
                raise TrainingError(f"{key} changes nothing where distill.method is {method}: {cure}")
        for key in varied:
            if needs := idle(key, base["distill"]["lix"]):
                raise TrainingError(f"{key} changes nothing {needs}")
        title = f"Variations of {config}" + (f" with {' '.join(fixed)}" if fixed else "")
        return cls(name, title, metric, base, {}, (Row(CONTROL, (), ()), *rows), seeds=tuple(seeds) or (0, 1, 2))

    @property
    def datasets(self) -> set[str]:
        """Names of the data sets that its rows and teachers are trained and scored on."""
        parts = [*self.teachers.values(), *(row.overrides for row in self.rows)]
        places = {"fold": self.folds[0], "seed": self.seeds[0]}
        return {source.dataset for changes in parts for source in from_dict(filled(self.tree(changes), places)).data.all_sources}

    def typed(self, name: str = "") -> str:
        """The command that makes it, under its name or another: the simulated street need not be there."""
        return " ".join(["lix reproduce", name or self.name, *(f"--data {name}=FOLDER" for name in sorted(self.datasets - {"world"}))])

    def tree(self, changes: Sequence[str]) -> dict[str, Any]:
        """Its base with some options changed. Raises TrainingError."""
        refuse_decided(changes)
        tree = copy.deepcopy(self.base)
        for change in changes:
            override(tree, change)
        return tree

    def narrowed(self, rows: Sequence[str] = (), seeds: Sequence[int] = (), folds: Sequence[int] = ()) -> "Table":
        """The same with some of its rows (and the teachers and rows that they learn or start from), seeds and folds only.

        Raises TrainingError on a row, fold or seed that it does not have.
        """
        names = [row.name for row in self.rows]
        for word in rows:
            if word not in names and word not in self.teachers:
                raise TrainingError(f"table {self.name} has no row {word!r}{nearest(word, names)}; it has {', '.join(names)}")
        for what, some, every in (("folds", folds, self.folds), ("seeds", seeds, self.seeds)):
            for number in some:
                if number not in every:
                    raise TrainingError(f"table {self.name} has {what} {', '.join(map(str, every))}, not {number}")
        wanted = set(rows)
        for row in reversed(self.rows):  # what a row starts or learns from is above it
            wanted |= {row.start, *self.taught_by(row)} if row.name in wanted else set()
        kept = tuple(row for row in self.rows if not rows or row.name in wanted)
        taught = {teacher for row in kept for teacher in (*self.taught_by(row), row.start)}
        teachers = {name: changes for name, changes in self.teachers.items() if not rows or name in rows or name in taught}
        some = {"rows": kept, "teachers": teachers, "seeds": tuple(seeds) or self.seeds, "folds": tuple(folds) or self.folds}
        return replace(self, **some, whole=self.whole or self)

    def control_of(self, name: str) -> str:
        """The row that a row or teacher is set against; "" for none, as for a teacher with test frames of its own."""
        own = {row.name: row.control for row in self.rows}
        own |= {teacher: "" for teacher, changes in self.teachers.items() if any(change.startswith("data.test") for change in changes)}
        return own.get(name, CONTROL)

    def other_control(self, name: str) -> str:
        """The row that a row is set against, where a reader would take it for another one: where it is not called a control."""
        control = self.control_of(name)
        return control if control != name and not control.startswith(CONTROL) else ""

    def taught_by(self, row: Row) -> tuple[str, ...]:
        """The teachers that a row learns from; none where its method is none."""
        method = self.tree(row.overrides).get("distill", {}).get("method", DistillConfig().method)
        return row.teachers if method != "none" else ()


def idle(key: str, lix: Mapping[str, Any]) -> str:
    """Why an option changes nothing of a student whose options of LIX are these, in words; "" where it may."""
    if key in OF_TEACHERS:
        return "of a student, and rows are students"
    option = key.removeprefix("distill.lix.")
    for controllers, options in OF_CONTROLLERS.items():
        if option in options and lix["controller"] not in controllers and key != option:
            return f"under distill.lix.controller={lix['controller']}: it belongs to {' and '.join(controllers)}"
    for term, options in OF_TERMS.items():
        if option in options and not lix[term] and key != option:
            return f"where distill.lix.{term} is 0: give that a weight"
    return ""


OF_TEACHERS = ("model.fusion", "model.x_encoder", "data.x_dropout", "data.x_holes")
OF_CONTROLLERS = {("fixed",): ("alpha", "beta"), ("dynamic", "dynamic_coupled"): ("tau_w",), ("learned",): ("uncertainty",)}
OF_TERMS = {
    "logit": ("tau", "controller", "alpha", "beta", "tau_w", "uncertainty", "gate"),
    "feature": ("features", "tokens", "sampling", "kernel", "cka", "unbiased"),
    "x": ("x_feature",),
    "pseudo": ("threshold",),
}
"""Options of LIX that are read under some controllers only, or belong to a term."""

ROW = ("teacher", "control", "start", "set")
DECIDED = {
    "seed": "choose seeds with --seeds",
    "name": "it is made of the table's, the row's, the fold and the seed",
    "model.kind": "rows are students, and teachers have a place of their own in a table",
}
"""Options that a table sets itself, and what to do instead of changing them."""


def refuse_decided(changes: Sequence[str]) -> None:
    """Raises TrainingError where one is of an option that the table decides of."""
    for change in changes:
        if (key := change.partition("=")[0].strip()) in DECIDED:
            raise TrainingError(f"{change}: {key} of a run is not for a change to say; {DECIDED[key]}")


def check_kinds(what: str, data: Any, kinds: Mapping[str, type]) -> None:
    """Raises TrainingError unless `data` is a mapping whose values are of the kinds that YAML gives for them."""
    words = {str: "text", dict: "keys with values", list: "a list"}
    for key, value, kind in (("", data, dict), *((key, data[key], kinds[key]) for key in kinds if isinstance(data, dict) and key in data)):
        if not isinstance(value, kind):
            raise TrainingError(f"{what}: {key or 'it'} must be {words[kind]}, got {value!r}")


def flat(overrides: Any, where: str) -> tuple[str, ...]:
    """Overrides out of one text, or a list that may hold lists, as YAML's aliases of lists make them. Raises TrainingError."""
    if isinstance(overrides, str):
        return (overrides,)
    if not isinstance(overrides, (list, tuple)):
        raise TrainingError(f"{where}: options are texts as optim.lr=0.001, in a list; got {overrides!r}")
    return tuple(text for part in overrides for text in flat(part, where))


def table_names() -> list[str]:
    """Names of the tables that come with lix."""
    return sorted(path.name.removesuffix(".yaml") for path in TABLES.iterdir() if path.name.endswith(".yaml"))


@dataclass(frozen=True)
class Cell:
    """One run of a table. settings: what the table says of its configuration. taught_by: fingerprint of its teachers, "" without one.
    start: whose weights it begins with."""

    row: str
    fold: int
    seed: int
    config: Config
    settings: dict[str, Any]
    teachers: "tuple[Cell, ...]" = ()
    taught_by: str = ""
    start: "Cell | None" = None

    @property
    def needs(self) -> "list[Cell]":
        """Those whose weights it is made with."""
        return [*self.teachers, *([self.start] if self.start else [])]

    @property
    def key(self) -> str:
        return f"{self.row}/fold{self.fold}/seed{self.seed}"

    @property
    def entry(self) -> str:
        """Its key among the runs of a result file, which may have runs of other settings."""
        return f"{self.key}/{self.fingerprint}"

    @property
    def is_teacher(self) -> bool:
        return self.config.model.kind == "teacher"

    @cached_property
    def fingerprint(self) -> str:
        """Of what decides the numbers: the settings but for places and how the run is carried out, the method's options, the teacher.

        Other options that a table leaves as they are do not count, so that a new one does not spoil all results; the revision of the
        sources is kept beside each.
        """
        plain = {key: value for key, value in copy.deepcopy(self.settings).items() if key not in ("name", "trainer", "distill")}
        for source in sources_of(plain["data"]):
            source.pop("root", None)
        plain["data"].pop("workers", None)
        distill = self.config.distill
        method = distill.method
        options = {} if self.is_teacher else to_dict(self.config)["distill"].get(method, {})
        options = {key: value for key, value in options.items() if (key, value) not in LATER.get(method, {}).items()}
        if distill.class_weights and method != "none" and not self.is_teacher:
            options["class_weights"] = True
        if distill.edge and method != "none" and not self.is_teacher:
            options["edge"] = distill.edge
        trainer, usual = self.config.trainer, TrainerConfig()
        carried = {"precision": trainer.precision} if trainer.precision != usual.precision else {}
        if self.config.data.val and trainer.val_every != usual.val_every:  # which decides what is the best checkpoint
            carried["val_every"] = trainer.val_every
        parts = [plain, method, options, self.taught_by, *([self.start.fingerprint] if self.start else []), *([carried] if carried else [])]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def sources_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sources in plain data of a DataConfig, those of validation and test too."""
    return [source for source in (*data.get("sources", []), data.get("val"), data.get("test")) if source]


def cells(table: Table, roots: Mapping[str, str], overrides: Sequence[str] = (), taught_by: str = "") -> list[list[Cell]]:
    """The cells, in units of one fold and seed: its teachers first, then its rows. taught_by: of the rows of a table without teachers."""
    return [unit_of(table, fold, seed, roots, overrides, taught_by) for seed in table.seeds for fold in table.folds]


def unit_of(table: Table, fold: int, seed: int, roots: Mapping[str, str], overrides: Sequence[str], taught_by: str) -> list[Cell]:
    def cell(name: str, changes: Sequence[str], kind: str, teachers: Sequence[Cell] = (), by: str = "", start: Cell | None = None) -> Cell:
        tree = table.tree([*changes, *overrides])
        for change in (f"model.kind={kind}", f"seed={seed}"):
            override(tree, change)
        tree = filled(tree, {"fold": fold, "seed": seed})
        config = from_dict({**tree, "name": f"{table.name} {name} fold {fold} seed {seed}"})
        for source in config.data.all_sources:
            source.root = source.root or root_of(source.dataset, roots)
        if not (config.data.test or config.data.val):
            raise TrainingError(f"nothing would be scored in {name} of table {table.name}: set data.val or data.test")
        if config.distill.method == "none":
            teachers, by = (), ""
        return Cell(name, fold, seed, config, tree, tuple(teachers), "+".join(t.fingerprint for t in teachers) or by, start)

    teachers = {name: cell(name, changes, "teacher") for name, changes in table.teachers.items()}
    students: dict[str, Cell] = {}
    for row in table.rows:
        above = {**teachers, **students}
        taught = [above[name] for name in row.teachers if name in above]
        students[row.name] = cell(row.name, row.overrides, "student", taught, taught_by, above.get(row.start))
    return [*teachers.values(), *students.values()]


def filled(value: Any, words: Mapping[str, Any]) -> Any:
    """Plain data with `{fold}` and `{seed}` replaced; a text that is nothing else becomes the number."""
    if isinstance(value, dict):
        return {key: filled(item, words) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, words) for item in value]
    whole = {"{" + key + "}": item for key, item in words.items()}
    return whole.get(value, value) if isinstance(value, str) else value


def root_of(dataset: str, roots: Mapping[str, str]) -> str:
    """Raises DataError where nobody has said."""
    if not dataset:
        raise DataError("a source of data has no `dataset`: write which one it is of, beside its split")
    try:
        return roots[dataset]
    except KeyError:
        raise DataError(
            f"the data set {dataset} is needed: say where it is with --data {dataset}=FOLDER, or as root of its source"
        ) from None


def values_of(text: str) -> list[str]:
    """`a,b` and `[a,b],[c]` in parts, at the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
