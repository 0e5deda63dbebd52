"""From a drive to a better model: the steps of `lix retrain`, each of which leaves its files in one folder and is not done twice.

<out>/extraction/     frames of the bags (lix_core.bags.extract), with pseudo-labels where those are used
<out>/teacher/        run: the old teacher, tuned on old and new frames
<out>/student/        run: the old student, distilled from it on old and new frames
<out>/inputs.json     what the runs were made of; another --out is needed where that changes
<out>/comparison.json figures of the model before and after on held-out frames of the bags and on the old validation frames
<out>/candidate.lix   the new student's bundle;  <out>/model.lix   the same, where it is better
<out>/report.md, report.jpg
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lix_core.bags.extract import BagOutcome, Extraction, begun_with, extract, known_as
from lix_core.bags.index import Options
from lix_core.bags.pseudo import PseudoSettings, make_pseudo_labels
from lix_core.bags.reader import home_of
from lix_core.data.bag import BEST, NS, BagDataset, check_blocks, split_places
from lix_core.data.registry import open_dataset
from lix_core.errors import DataError, TrainingError
from lix_core.files import make_folder, save, save_image
from lix_core.labels import LabelMapping, LabelSet
from lix_core.metrics import ConfusionMatrix
from lix_core.runtime.bundle import SUFFIX, Bundle, find_bundle
from lix_core.runtime.segmenter import Segmenter
from lix_core.training.config import Config, Source, from_dict, override, to_dict
from lix_core.training.data import Frames
from lix_core.training.provenance import Lineage, line_of, make_bundle
from lix_core.training.report import captioned, error_picture
from lix_core.training.run import RunResult, fit
from lix_core.training.weights import Record, checksum, is_bundle
from lix_core.viz import colorize, contact_sheet

Labels = Literal["auto", "masks", "bag", "pseudo", "none"]
TRUE_KINDS = ("masks", "bag")
"""Labels that somebody knows to be right, the best first; a model may be judged by them."""
SCORED = ("data.val", "data.test")
"""Options that say on which frames the first runs were scored."""
FRAMES = ("data.sources", *SCORED)
"""Options that say which frames the old runs had."""
RETRAINED = "retrained "
"""Begins the names of the runs that are made here."""
SHOWN = 6
"""Held-out frames in the picture of the report."""


@dataclass(frozen=True)
class Retraining:
    """What is asked for.

    bags: paths. out: the folder. teacher, student: folders of the runs that the robot's models come from, or their bundles. behind: the
    same of the runs behind those, for data and licences. data: name of a data set -> its folder, where the old runs' data is not where it
    was; bundles do not know where. current: the bundle to beat, by name or path; None: the student's. labels: what the new frames are
    trained with; auto: each with people's masks, else the bags' label topic, else pseudo-labels of the teacher. share: of a batch that is
    new frames. teacher_steps, student_steps: length of the runs; 0 steps of the teacher keep the old one. lr: peak learning rates, as a
    share of those of the first runs, which were no retraining. held_out, block: see BagDataset. gain: mIoU by which the new model must be
    better. forgetting: mIoU that it may lose on the old validation frames. extraction, pseudo: how bags are read and pseudo-labels made.
    jobs: processes for both. overrides: `a.b=value` for both runs.
    """

    bags: tuple[Path, ...]
    out: Path
    teacher: Path
    student: Path
    behind: tuple[Path, ...] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    current: str | Path | None = None
    labels: Labels = "auto"
    share: float = 0.5
    teacher_steps: int = 600
    student_steps: int = 1200
    lr: float = 0.3
    held_out: float = 0.2
    block: float = 10.0
    gain: float = 0.0
    forgetting: float = 0.03
    extraction: Options = Options()
    pseudo: PseudoSettings = PseudoSettings()
    jobs: int = 1
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.teacher_steps < 0 or self.student_steps < 1 or not 0 < self.lr < math.inf:
            raise TrainingError(
                f"share is above 0 and at most 1, student-steps at least 1, teacher-steps at least 0, lr above 0 and finite; "
                f"got {self.share}, {self.student_steps}, {self.teacher_steps}, {self.lr}"
            )
        if not (-1 <= self.gain <= 1 and 0 <= self.forgetting <= 1):
            raise TrainingError(f"gain and forgetting are mIoU, of which 0.03 is 3 points; got {self.gain} and {self.forgetting}")
        if self.labels not in get_args(Labels):
            raise TrainingError(f"labels is one of {', '.join(get_args(Labels))}, got {self.labels!r}")
        if not 0 < self.held_out < 1:
            raise TrainingError(f"held_out is a share between 0 and 1, got {self.held_out}")
        check_blocks(self.held_out, self.block)
        if named := [change for change in self.overrides if change.partition("=")[0].strip() == "name"]:
            raise TrainingError(f"{named[0]}: by their names the next retraining tells these runs from the first ones; leave it out")


@dataclass
class Comparison:
    """How the model before and the one after do. Each figure: name of the frames -> `ConfusionMatrix.summary`.

    kind: of the labels that the held-out frames are judged by. better: whether the new model is taken. why: in words.
    """

    kind: str
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    better: bool = False
    why: str = ""


NEW, OLD = "held-out frames of the bags", "old validation frames"


def retrain(
    task: Retraining, watch: Callable[[str], None] = lambda step: None, quiet: bool = False, tell: Callable[[str], None] = lambda line: None
) -> Comparison:
    """Carry out what is asked for, or go on with it; the last step writes the report.

    watch: told of each step as it begins. tell: told line by line what a user should know of bags and labels before hours of training.

    Raises:
        SourceError: no bag can be read. TrainingError, DataError: runs, bags, labels and old data that do not fit together, all found
            out before anything is trained.
    """
    lines = matching_lines(task)
    record = lines["student"].record
    current = model_to_beat(task, record.labels)
    old = old_frames(task, lines["student"])
    make_folder(task.out)
    refuse_foreign_files(task.out)
    watch("frames of the bags")
    outcomes = frames_there(task) if begun(task.out) else extract(list(task.bags), task.out / "extraction", task.extraction, task.jobs)
    outcomes += gone(task, outcomes)
    refuse_other_bags(task, outcomes)
    refuse_other_blocks(task, lines)
    for outcome in outcomes:
        for text in outcome.lines():
            tell(f"{outcome.name}: {text}")
    if old is None:
        tell(f"no {OLD}: the first run had none, or they are gone; what is forgotten is not looked at")
    kind, needs_pseudo = kind_of_labels(task)
    notes: list[str] = []
    note_inputs(task, kind)
    judge = known_judge(task, record)
    if needs_pseudo or judge is None:
        watch("pseudo-labels")
        refuse_other_pseudo_labels(task)
        bundle_of(task.teacher, task.out / f"old-teacher{SUFFIX}", task.behind)
        made = make_pseudo_labels(Extraction.open(task.out / "extraction"), task.out / f"old-teacher{SUFFIX}", task.pseudo, jobs=task.jobs)
        for text in (*made.notes, *(f"left out {name}: {why}" for name, why in made.left_out.items())):
            notes.append(f"pseudo-labels: {text}")
            tell(notes[-1])
    held = judge or ("pseudo", frames_of(task, "val", "pseudo", record))
    train = frames_of(task, "train", kind, record)  # what is wrong with them is told before anything is trained
    for text in dict.fromkeys((*held[1].notes, *train.notes)):
        notes.append(text)
        tell(text)
    if not Frames(source_of(task, "val", held[0], record), "").has_labels():
        how = "lower --confidence, or label some of them" if held[0] == "pseudo" else "label others, or give another --block or --held-out"
        raise TrainingError(f"no pixel of the {NEW} has a label ({held[0]}), so that nothing could be compared: {how}")
    new = source_of(task, "train", kind, record)
    val = source_of(task, "val", judge[0], record) if judge else None
    teacher = task.teacher
    if task.teacher_steps:
        watch("teacher")
        config = tuned(task, lines["teacher"], new, val, task.teacher_steps, "teacher")
        teacher = Path(fit(config, task.out / "teacher", quiet=quiet, start=task.teacher).folder)
    watch("student")
    config = tuned(task, lines["student"], new, val, task.student_steps, "student", lines["teacher"].record.x_kind)
    student = fit(config, task.out / "student", teacher, quiet=quiet, start=task.student)
    watch("comparison")
    behind = dict.fromkeys((*task.behind, task.teacher, task.student, teacher))
    candidate = bundle_of(Path(student.folder), task.out / f"candidate{SUFFIX}", tuple(behind))
    before = current or bundle_of(task.student, task.out / f"before{SUFFIX}", (*task.behind, task.teacher))
    comparison, taken = compare(task, before, candidate, held, old), task.out / f"model{SUFFIX}"
    if taken.exists() and not comparison.better:
        comparison.why += f"; {taken.name}, taken by an earlier comparison, is removed, candidate{SUFFIX} is the same"
    save(task.out / "comparison.json", (json.dumps(dataclasses.asdict(comparison), indent=1) + "\n").encode())
    if comparison.better:
        candidate.save(taken)
    else:
        taken.unlink(missing_ok=True)
    report(task, outcomes, notes, kind, comparison, held[1], student, (before, candidate))
    return comparison


def matching_lines(task: Retraining) -> dict[str, Lineage]:
    """Teacher and student with the runs behind them, by these names; their data where `task.data` has it.

    Raises TrainingError where teacher and student are not what they are called, differ in their labels, a run behind them is not named,
    without which no bundle can say what is in it, or nobody says where data is that is to be trained on.
    """
    runs = {"teacher": task.teacher, "student": task.student}
    lines = {name: line_of(run, (*task.behind, task.teacher, task.student)) for name, run in runs.items()}
    teacher, student = (line.record for line in lines.values())
    for name, run in runs.items():
        if (kind := lines[name].record.config.model.kind) != name:
            raise TrainingError(f"{run} is the run of a {kind}, not of a {name}")
    if teacher.labels.names != student.labels.names:
        raise TrainingError(
            f"teacher and student must have one label set, got {', '.join(teacher.labels.names)} and {', '.join(student.labels.names)}"
        )
    sources = [source for line in lines.values() for each in whole_line(line) for source in each.record.config.data.all_sources]
    if unused := set(task.data) - {source.dataset for source in sources}:
        raise TrainingError(f"--data {unused.pop()}: the old runs had {', '.join(sorted({source.dataset for source in sources}))}")
    for name, line in lines.items():
        lost = [source for source in line.record.config.data.sources if source.dataset == "bag" and not source.root]
        if len(lost) > 1 and "bag" in task.data:
            raise TrainingError(f"{runs[name]} was trained on several folders of bags, which --data cannot tell apart: name its run folder")
    for source in sources:
        if source.dataset != "bag" or not source.root:  # each week's bags have a folder of their own
            source.root = task.data.get(source.dataset, source.root)
    for name, line in lines.items():
        trained = overridden(line.record.config, unscored(task.overrides)).data.sources
        used = task.share < 1 and (name == "student" or task.teacher_steps)
        if used and (lost := [source.dataset for source in trained if not source.root]):
            raise TrainingError(
                f"{runs[name]} does not say where {lost[0]} is, on which it was trained: give --data {lost[0]}=FOLDER, or train on new "
                "frames alone with --share 1"
            )
    return lines


def whole_line(line: Lineage) -> list[Lineage]:
    """A run and all behind it."""
    return [line, *(each for *_, other in line.behind for each in whole_line(other))]


def first_of(line: Lineage) -> Config:
    """The configuration of the run that a chain of retrainings began with: learning rates are shares of its, and its validation frames are
    those on which nothing may be forgotten, however many weeks ago it was."""
    while line.record.config.name.startswith(RETRAINED) and line.start:
        line = line.start
    return line.record.config


def model_to_beat(task: Retraining, labels: LabelSet) -> Bundle | None:
    """The bundle that was named. Raises BundleError where there is none, TrainingError where it knows none of the runs' classes."""
    if task.current is None:
        return None
    bundle = Bundle.load(find_bundle(str(task.current)))
    if all(labels.find(name) is None for name in bundle.manifest.labels.names):
        raise TrainingError(f"{task.current} knows none of the classes {', '.join(labels.names)}: it cannot be compared with")
    return bundle


def old_frames(task: Retraining, student: Lineage) -> Any | None:
    """The frames on which the first student was validated or tested; None where its run had none, or where no old data is asked for and
    they are gone. Raises DataError."""
    data = overridden(first_of(student), [change for change in task.overrides if change.startswith(SCORED)]).data
    old = data.val or data.test
    try:
        return open_dataset(old.dataset, old.root, old.split, **old.options) if old else None
    except DataError:
        if task.share == 1:
            return None
        raise


def begun(out: Path) -> bool:
    """Whether one of the runs in a folder has begun: what it is made of may not change any more."""
    return any((out / run / "checkpoints").exists() for run in ("teacher", "student"))


def note_inputs(task: Retraining, kind: str) -> None:
    """Keep what the runs in the folder are made of. Raises TrainingError where they were made of something else."""
    found, path = Extraction.open(task.out / "extraction"), task.out / "inputs.json"
    masks = [mask.read_bytes() for frame in found.frames if kind in ("masks", BEST) and (mask := found.label_path(frame, "masks"))]
    inputs = {
        "teacher": checksum(task.teacher),
        "student": checksum(task.student),
        "bags": {bag["name"]: bag["fingerprint"] for bag in found.bags},
        "labels": kind,
        "masks": hashlib.sha256(b"".join(masks)).hexdigest() if masks else "",
        "held out": [task.held_out, task.block],
        "pseudo": dataclasses.asdict(task.pseudo) if kind in ("pseudo", BEST) else {},
    }
    inputs = json.loads(json.dumps(inputs))
    try:
        before = json.loads(path.read_bytes()) if begun(task.out) and path.exists() else inputs
        if not isinstance(before, dict):
            raise ValueError("it holds no inputs")
    except ValueError as error:
        raise TrainingError(f"{path} cannot be read ({error}), so nobody knows what the runs are made of; name another folder") from None
    if other := [name for name, value in inputs.items() if before.get(name) != value]:
        raise TrainingError(f"the runs in {task.out} were trained with other {', '.join(other)}; name another folder")
    save(path, (json.dumps(inputs, indent=1) + "\n").encode())


def refuse_foreign_files(out: Path) -> None:
    """Raises TrainingError where the folder has files that a retraining would replace, and no retraining wrote them."""
    if not (out / "inputs.json").exists():
        bundles = (f"{name}{SUFFIX}" for name in ("model", "candidate", "before", "old-teacher"))
        for name in ("report.md", "report.jpg", "comparison.json", *bundles):
            if (out / name).exists():
                raise TrainingError(f"{out / name} is there, and of no retraining: it would be replaced; name another folder")


def frames_there(task: Retraining) -> list[BagOutcome]:
    """The frames that the runs in the folder began with, of the bags that are named. What was recorded since comes too late for them, and a
    bag that has grown keeps the frames that it had.

    Raises SourceError where the options are others.
    """
    root = task.out / "extraction"
    begun_with(root, task.extraction)
    found, outcomes = Extraction.open(root), []
    for home, name in known_as([home_of(path).resolve() for path in task.bags], found.bags).items():
        outcomes.append(there(found, name, home) if name else BagOutcome(home.name, home, remarks=[TOO_LATE]))
    return outcomes


TOO_LATE = "left out: the runs began without it; another --out trains on it too"


def there(found: Extraction, name: str, home: Path, *remarks: str) -> BagOutcome:
    """What an extraction has of a bag."""
    entry = next(bag for bag in found.bags if bag["name"] == name)
    frames = [frame for frame in found.frames if frame.bag == name]
    depths, labels = sum(frame.depth is not None for frame in frames), sum(frame.labels is not None for frame in frames)
    texts = [*remarks, *entry.get("remarks", ())]
    return BagOutcome(name, home, 0, len(frames), depths, labels, remarks=texts, faults=list(entry.get("faults", ())))


def gone(task: Retraining, outcomes: Sequence[BagOutcome]) -> list[BagOutcome]:
    """Bags of which the folder has frames, and which are no longer where they were: for a quota, say. Their frames stay."""
    found, named = Extraction.open(task.out / "extraction"), {outcome.name for outcome in outcomes}
    left = [(bag["name"], Path(bag["path"])) for bag in found.bags if bag["name"] not in named and not Path(bag["path"]).exists()]
    return [there(found, name, path, f"{path} is gone; its frames, made before, are used") for name, path in left]


def refuse_other_blocks(task: Retraining, lines: Mapping[str, Lineage]) -> None:
    """Raises TrainingError where an old run was trained on frames that would be held out here: of the same bags in other blocks, in
    other stretches of them, or before they grew."""
    here = Extraction.open(task.out / "extraction")
    keys = [(frame.bag, frame.stamp) for frame in here.frames]
    held = {keys[place] for place in split_places(keys, "val", task.held_out, round(task.block * NS))}
    for name, line in lines.items():
        for source in overridden(line.record.config, unscored(task.overrides)).data.sources:
            then = tuple(source.options.get(key, getattr(Retraining, key)) for key in ("held_out", "block"))
            if source.dataset != "bag" or (not source.root and then == (task.held_out, task.block)):
                continue
            if not source.root:
                raise TrainingError(
                    f"the {name} was trained on bags that its bundle does not name, held out in other blocks: give --held-out {then[0]:g} "
                    f"--block {then[1]:g} as then, or --data bag=FOLDER"
                )
            if both := held & (trained_on(source, then, here.bags) if Extraction.is_one(source.root) else set()):
                bags = ", ".join(sorted({bag for bag, _ in both}))
                cure = "take the same stretch of them as then, or leave them out"
                if then != (task.held_out, task.block):
                    cure = f"give --held-out {then[0]:g} --block {then[1]:g} as then, or leave these bags out"
                seen = f"the {name} was trained on {len(both)} frames of {bags}"
                raise TrainingError(f"{seen} that would be held out now, and judge what has seen them: {cure}")


def trained_on(source: Source, blocks: tuple[float, float], bags: Sequence[Mapping[str, Any]]) -> set[tuple[str, int]]:
    """The frames of an extraction that a run was trained on, as (bag, stamp), of bags that another extraction has too, and named as there.
    A bag is known by its fingerprint, or by its place, where it may have grown."""
    then = Extraction.open(source.root)
    names = {entry["name"]: bag["name"] for entry in then.bags for bag in bags if is_same_bag(entry, bag)}
    keys = [(frame.bag, frame.stamp) for frame in then.frames]
    places = split_places(keys, source.split, blocks[0], round(blocks[1] * NS))
    return {(names[keys[place][0]], keys[place][1]) for place in places if keys[place][0] in names}


def is_same_bag(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return entry["fingerprint"] == other["fingerprint"] or entry["path"] == other["path"]


def refuse_other_pseudo_labels(task: Retraining) -> None:
    """Raises TrainingError where the folder has pseudo-labels that somebody made in another way: they would be replaced."""
    folder = task.out / "extraction" / "pseudo"
    try:
        model = json.loads((folder / "pseudo.json").read_bytes())["model"]
        own = Path(model["path"]).resolve() == (task.out / f"old-teacher{SUFFIX}").resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return
    if not own:
        raise TrainingError(
            f"{folder} has pseudo-labels of {model['path']}, which those of {task.teacher} would replace: move them away, or name "
            "another folder"
        )


def refuse_other_bags(task: Retraining, outcomes: Sequence[BagOutcome]) -> None:
    """Raises TrainingError where the folder has frames of bags that were not named."""
    others = {bag["name"] for bag in Extraction.open(task.out / "extraction").bags} - {outcome.name for outcome in outcomes}
    if others:
        raise TrainingError(
            f"{task.out / 'extraction'} has frames of other bags too ({', '.join(sorted(others))}): name these as well, or another folder"
        )


def source_of(task: Retraining, split: str, kind: str, record: Record) -> Source:
    """The frames of a split with labels of a kind, for a configuration."""
    options = {"labels": kind, "held_out": task.held_out, "block": task.block, "classes": record.labels.to_dict()}
    return Source("bag", str(task.out / "extraction"), split, options)


def frames_of(task: Retraining, split: str, kind: str, record: Record) -> BagDataset:
    """The same as a data set. Raises DataError where there are none."""
    source = source_of(task, split, kind, record)
    return BagDataset(source.root, split, **source.options)


def known_judge(task: Retraining, record: Record) -> tuple[str, BagDataset] | None:
    """The held-out frames with the best labels that somebody knows to be right, and their kind; None where there are none.

    Raises DataError, LabelError where those labels cannot be used.
    """
    found = Extraction.open(task.out / "extraction")
    held = split_places([(frame.bag, frame.stamp) for frame in found.frames], "val", task.held_out, round(task.block * NS))
    for kind in TRUE_KINDS:
        if any(found.label_path(found.frames[place], kind) for place in held):
            return kind, frames_of(task, "val", kind, record)
    return None


def kind_of_labels(task: Retraining) -> tuple[str, bool]:
    """What the new frames are trained with, one kind where one does for all, and whether pseudo-labels are needed for it."""
    found = Extraction.open(task.out / "extraction")
    if not found.frames:
        raise TrainingError(f"the bags gave no frame; `lix bag check {' '.join(map(str, task.bags))}` says why")
    kinds = {task.labels}
    if task.labels == "auto":
        kinds = {next((kind for kind in TRUE_KINDS if found.label_path(frame, kind)), "pseudo") for frame in found.frames}
    return (BEST if len(kinds) > 1 else next(iter(kinds))), "pseudo" in kinds


def bundle_of(run: Path, path: Path, behind: Sequence[Path]) -> Bundle:
    """The bundle of a run, out of `path` where it is there and is of these weights; of a bundle, a copy."""
    mark = path.with_suffix(".sha256")
    digest = checksum(run)
    if not path.exists() or not mark.exists() or mark.read_text() != digest:
        bundle = Bundle.load(run) if is_bundle(run) else make_bundle(run, "best", "", [other for other in behind if other != run])[0]
        bundle.save(path)
        save(mark, digest.encode())
    return Bundle.load(path)


def tuned(task: Retraining, old: Lineage, new: Source, val: Source | None, steps: int, name: str, x: str = "") -> Config:
    """The configuration of an old run, for `steps` on its data and on new frames, which have their share of every batch. val: what
    chooses the checkpoint, if anything does. x: what its teacher sees, where the old run knew of no X.
    """
    config, first = overridden(old.record.config, unscored(task.overrides)), first_of(old).optim
    config.name, data, optim = f"{RETRAINED}{name}", config.data, config.optim
    batch = data.batch
    places = max(1, round(task.share * batch))
    if task.share < 1:
        places = min(places, batch - 1)
    if not places:
        raise TrainingError(f"a batch of {batch} has no room for new frames beside old ones; set data.batch=2 or more, or share to 1")
    data.x = data.x or x
    sources = [dataclasses.replace(source, per_batch=0) for source in data.sources] if places < batch else []
    data.sources = [*sources, dataclasses.replace(new, per_batch=places)]
    data.val, data.test = val, None
    optim.steps, optim.lr = steps, first.lr * task.lr
    optim.steps_per_epoch, optim.warmup = min(first.steps_per_epoch, steps), min(first.warmup, steps // 10)
    if name == "student" and config.distill.method == "none":
        config.distill.method = "lix"
    # Again, for what was set here since; but for the frames, which say what the old ones are.
    return overridden(config, [change for change in task.overrides if not change.startswith(FRAMES)])


def unscored(changes: Sequence[str]) -> list[str]:
    """Changes but for those of frames that were scored, which a run that was retrained may not have."""
    return [change for change in changes if not change.startswith(SCORED)]


def overridden(config: Config, changes: Sequence[str]) -> Config:
    tree = to_dict(config)
    for change in changes:
        override(tree, change)
    return from_dict(tree)


# Comparison.


def compare(task: Retraining, before: Bundle, after: Bundle, held: tuple[str, BagDataset], old: Any | None) -> Comparison:
    """Both models, as they run on the robot, on the same frames. held: kind of labels, and the frames. old: see `old_frames`."""
    found = Comparison(held[0])
    sets = {NEW: held[1], **({OLD: old} if old else {})}
    for which, bundle in (("before", before), ("after", after)):
        segmenter = Segmenter(bundle)
        getattr(found, which).update({name: score(segmenter, dataset) for name, dataset in sets.items()})
    found.better, found.why = verdict(task, found)
    return found


def score(segmenter: Segmenter, dataset: Any) -> dict[str, Any]:
    """Figures of a model on the labelled frames of a data set, in its classes."""
    matrix = ConfusionMatrix(len(dataset.labels))
    for index in range(len(dataset)):
        sample = dataset[index]
        if sample.labels is not None:
            matrix.update(sample.labels, answer(segmenter, sample.image, dataset.labels))
    return matrix.summary(dataset.labels.names)


def answer(segmenter: Segmenter, image: np.ndarray, labels: LabelSet) -> np.ndarray:
    """(H, W) uint8: what a model says of an image, in the ids of `labels`."""
    found = segmenter.segment(image)
    return found.mask if found.labels.names == labels.names else LabelMapping.by_name(found.labels, labels)(found.mask)


def verdict(task: Retraining, found: Comparison) -> tuple[bool, str]:
    if found.before[NEW]["miou"] is None:
        return False, f"no pixel of the {NEW} has a label of the models' classes, so nobody knows"
    # Figures have four digits: a difference of just what is asked for is that, whatever floats make of it.
    gain = round(found.after[NEW]["miou"] - found.before[NEW]["miou"], 4)
    words = f"{100 * gain:+.1f} mIoU points on {NEW}"
    if gain <= task.gain:
        return False, f"{words}: not more than {100 * task.gain:.1f}"
    if OLD in found.before and found.before[OLD]["miou"] is not None:
        lost = round(found.before[OLD]["miou"] - found.after[OLD]["miou"], 4)
        words += f", {-100 * lost:+.1f} on {OLD}"
        if lost > task.forgetting:
            return False, f"{words}: it may lose {100 * task.forgetting:.1f} there"
    return True, words


# Report.


def report(
    task: Retraining,
    outcomes: Sequence[BagOutcome],
    notes: Sequence[str],
    kind: str,
    found: Comparison,
    frames: BagDataset,
    student: RunResult,
    models: tuple[Bundle, Bundle],
) -> None:
    """report.md and report.jpg. notes: on the labels. models: before and after."""
    extraction = Extraction.open(task.out / "extraction")
    reasons = Counter(reason for frame in extraction.frames for reason in frame.reasons)
    taken = (
        f"**Better: {found.why}.** The new model is `model{SUFFIX}`."
        if found.better
        else f"**Not taken: {found.why}.** The old model stays."
    )
    judged = (
        "labels that are known"
        if found.kind in TRUE_KINDS
        else "pseudo-labels, which favour a model trained with them: look at the pictures"
    )
    data = student.config["data"]
    share = data["sources"][-1]["per_batch"] / data["batch"]
    lines = [
        "# Retraining",
        "",
        taken,
        "",
        "![Held-out frames](report.jpg)",
        "",
        "## Frames",
        "",
        "| bag | frames | with depth | with labels | left out |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {o.name} | {o.done + o.before} | {o.with_depth} | {o.with_labels} | {len(o.left_out)} |" for o in outcomes),
        "",
        *(f"- {outcome.name}: {text}" for outcome in outcomes for text in (*outcome.faults, *outcome.remarks)),
        *(f"- {outcome.name}: {count} frames: {text}" for outcome in outcomes for text, count in outcome.warnings.items()),
        *([f"- Why frames were recorded: {', '.join(f'{name} {count}' for name, count in reasons.most_common())}."] if reasons else []),
        *(f"- {text[:1].upper()}{text[1:]}." for text in notes),
        *([] if OLD in found.before else [f"- There are no {OLD}: what was forgotten was not looked at."]),
        f"- Trained with labels of kind `{kind}`; {len(frames)} held-out frames judged by `{found.kind}`: {judged}.",
        f"- Student: {student.steps} steps, {student.seconds / 60:.0f} min on {student.device}, {share:.0%} of each batch new frames.",
        "",
    ]
    for name in found.before:
        lines += [f"## IoU on {name}", "", *table(found.before[name], found.after[name]), ""]
    save(task.out / "report.md", "\n".join(lines).encode())
    save_image(task.out / "report.jpg", picture(models, frames))


def table(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    def row(name: str, old: float | None, new: float | None) -> str:
        change = "" if old is None or new is None else f"{100 * (new - old):+.1f}"
        return f"| {name} | {shown(old)} | {shown(new)} | {change} |"

    rows = [row(name, before["iou"][name], after["iou"][name]) for name in before["iou"]]
    return ["| class | before | after | points |", "| --- | --- | --- | --- |", *rows, row("**mean**", before["miou"], after["miou"])]


def shown(value: float | None) -> str:
    return "absent" if value is None else f"{value:.3f}"


def picture(models: tuple[Bundle, Bundle], frames: BagDataset) -> np.ndarray:
    """(H, W, 3) uint8: some held-out frames with their labels, and what the models before and after say and where they err."""
    before, after = map(Segmenter, models)
    cells = []
    for index in np.unique(np.linspace(0, len(frames) - 1, min(SHOWN, len(frames))).round().astype(int)):
        sample = frames[index]
        said = {name: answer(segmenter, sample.image, frames.labels) for name, segmenter in (("before", before), ("after", after))}
        row = {"RGB": sample.image, "labels": colorize(sample.labels, frames.labels)}
        for name, mask in said.items():
            row |= {name: colorize(mask, frames.labels), f"errors {name}": error_picture(sample.image, sample.labels, mask)}
        cells += [captioned(image, caption) for caption, image in row.items()]
    return contact_sheet(cells, frames.labels, columns=6, cell_width=cells[0].shape[1])
