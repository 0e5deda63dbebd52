"""`lix bag label`: labels for the frames of an extraction, out of people's masks or a model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import typer
from rich.table import Table
from rich.text import Text

from lix_core.cli.tables import print_table
from lix_core.cli.typed import typed
from lix_core.errors import SourceError
from lix_core.progress import FrameCount, progress_bar
from lix_core.runtime.backends import BACKEND_HELP, DEFAULT_BACKEND
from lix_core.runtime.bundle import DEFAULT_MODEL
from lix_core.workers import cores

MAKING = ("remap", "flip", "scales", "confidence", "share", "floor", "geometry", "flat", "standing", "rows", "jobs")
OF = {
    "--masks": ("format", "replace", "labels"),
    "--export": ("out", "frames", "held_out", "block", "start_from", "labels", "model", "backend"),
    "--pseudo": (*MAKING, "model", "backend"),
}
"""What is done -> the parameters that are read for it."""


def label(
    context: typer.Context,
    extraction: Path = typer.Argument(..., help="Folder of `lix bag extract`."),
    masks: Optional[Path] = typer.Option(
        None, help="Import masks that people made: a folder, a zip or a COCO file; which frame each is of is told by the stamp in its name."
    ),
    export: str = typer.Option("", help="Export frames for people to label: png, cvat or coco."),
    pseudo: bool = typer.Option(False, "--pseudo", help="Make pseudo-labels of what --model is sure of."),
    out: Optional[Path] = typer.Option(None, "--out", "-o", help="With --export: folder for images and masks."),
    frames: int = typer.Option(0, min=0, help="With --export: N frames, from the first to the last at even distances; 0: all."),
    held_out: float = typer.Option(
        0.0, min=0.0, max=1.0, help="With --export: only the frames that `lix retrain` holds out with this --held-out; 0: all."
    ),
    block: float = typer.Option(10.0, help="With --held-out: the --block of `lix retrain` [s]."),
    start_from: str = typer.Option(
        "", "--start-from", help="With --export, what people start from: model, masks, bag or pseudo; empty: nothing."
    ),
    format: str = typer.Option("", help="With --masks: png, cvat or coco; left out, it is told by what is there."),
    replace: bool = typer.Option(False, "--replace", help="With --masks: where a frame has another mask already, take the new one."),
    labels: str = typer.Option(
        "", "--label-set", help="With --masks or --export: the label set: a labels.json, or the name or path of a model that has it."
    ),
    model: str = typer.Option(DEFAULT_MODEL, help="Teacher (RGB + X) or student: a model's name or the path of a bundle."),
    backend: str = typer.Option(DEFAULT_BACKEND, help=BACKEND_HELP),
    remap: Optional[Path] = typer.Option(None, help="With --pseudo: YAML file that renames and merges the model's classes."),
    flip: bool = typer.Option(True, help="With --pseudo: average with the mirrored image."),
    scales: str = typer.Option("0.75 1 1.25", help="With --pseudo: average over these scales of what the network sees."),
    confidence: float = typer.Option(0.9, min=0.0, max=1.0, help="With --pseudo: a pixel that is this sure is kept, whatever its class."),
    share: float = typer.Option(
        0.0,
        "--class-share",
        min=0.0,
        max=1.0,
        help="With --pseudo: of a class with less above that, its surest pixels are kept, up to this share of them.",
    ),
    floor: float = typer.Option(0.5, min=0.0, max=1.0, help="With --class-share: no pixel less sure than this is kept."),
    geometry: bool = typer.Option(
        True, "--ground/--no-ground", help="With --pseudo: drop what the ground plane of the frame's depth contradicts."
    ),
    flat: str = typer.Option("", help="Classes that cannot stand above the ground, by name, with commas; empty: the usual ones."),
    standing: str = typer.Option("", help="Classes that cannot lie on the ground, by name, with commas; empty: the usual ones."),
    rows: int = typer.Option(8, "--sheet", min=1, max=64, help="With --pseudo: frames on the contact sheet."),
    jobs: int = typer.Option(0, min=0, help="With --pseudo: processes; 0 takes one per core. The files are the same."),
) -> None:
    """Give frames labels: import masks that people made, export frames for them, or make pseudo-labels with a model."""
    from lix_core.bags.extract import Extraction

    chosen = [name for name, given in (("--masks", masks), ("--export", export), ("--pseudo", pseudo)) if given]
    if len(chosen) != 1:
        raise SourceError(
            f"lix bag label does one thing at a time: give one of --masks, --export, --pseudo; got {', '.join(chosen) or 'none'}"
        )
    every = dict.fromkeys(name for names in OF.values() for name in names)
    if wrong := typed(context, (name for name in every if name not in OF[chosen[0]])):
        raise SourceError(f"leave out {', '.join(wrong)}: {chosen[0]} does not read {'it' if len(wrong) == 1 else 'them'}")
    for options, idle, why in (
        (("block",), not held_out, "without --held-out"),
        (("floor",), not share, "without --class-share"),
        (("flat", "standing"), not geometry, "with --no-ground"),
    ):
        if idle and (wrong := typed(context, options)):
            raise SourceError(f"leave out {', '.join(wrong)}: {why} nothing reads {'it' if len(wrong) == 1 else 'them'}")
    opened = Extraction.open(extraction)
    if masks:
        import_from(opened, masks, labels, format, replace)
    elif export:
        if held_out:
            keep_held_out(opened, held_out, block)
        export_to(opened, out, export, start_from, labels, model, backend, frames)
    else:
        given = {"flip": flip, "confidence": confidence, "share": share, "floor": floor, "geometry": geometry}
        make_pseudo(opened, settings_of(given, scales, flat, standing), model, backend, remap, jobs, rows)


def keep_held_out(extraction: Any, share: float, block: float) -> None:
    """Leave out the frames that a retraining trains on. Raises DataError, SourceError where none is left."""
    from lix_core.data.bag import check_blocks, split_places
    from lix_core.pairing import NS

    check_blocks(share, block)
    places = split_places([(frame.bag, frame.stamp) for frame in extraction.frames], "val", share, round(block * NS))
    if not places:
        raise SourceError(f"no frame is held out of blocks of {block:g} s: make --block shorter")
    extraction.frames = [extraction.frames[place] for place in places]


def label_set(text: str) -> Any:
    """The label set that an option names: a JSON file's, or a model's; None for none. Raises LabelError, BundleError."""
    from lix_core.labels import LabelSet
    from lix_core.runtime.bundle import Bundle, find_bundle

    if not text:
        return None
    return LabelSet.load(Path(text).expanduser()) if text.endswith(".json") else Bundle.load(find_bundle(text)).manifest.labels


def import_from(extraction: Any, path: Path, labels: str, form: str, replace: bool) -> None:
    from lix_core.bags.masks import import_masks

    with progress_bar() as progress:
        task = progress.add_task("importing", total=None, note="")
        report = import_masks(extraction, path, label_set(labels), form, replace, lambda n: progress.update(task, advance=1, total=n))
    total = report.pixels.sum()
    names = (*report.labels.names, "unlabelled")
    shares = ", ".join(f"{name} {100 * n / total:.3g} %" for name, n in zip(names, report.pixels) if n)
    having = sum(extraction.label_path(frame, "masks") is not None for frame in extraction.frames)
    print(
        f"{having} of {len(extraction.frames)} frames have masks now, in {extraction.root / 'masks'}; "
        f"{len(report.imported)} taken: {shares}"
    )
    for line in report.notes:
        print(f"  note: {line}")
    for line in report.left_out:
        print(f"  left out {line}")
    if report.left_out:
        raise typer.Exit(1)


def export_to(extraction: Any, out: Path | None, form: str, start_from: str, labels: str, model: str, backend: str, count: int) -> None:
    from lix_core.bags.masks import export_masks, ready_masks

    if out is None:
        raise SourceError("--export needs --out FOLDER")
    found, mask_of, remark = ready_masks(extraction, start_from, label_set(labels), model, backend)
    with progress_bar() as progress:
        task = progress.add_task("exporting", total=min(count or len(extraction.frames), len(extraction.frames)), note="")
        frames = export_masks(extraction, out, form, found, mask_of, count, lambda: progress.update(task, advance=1))
    where = {"png": "masks/", "cvat": "annotations.zip (CVAT: Segmentation mask 1.1)", "coco": "annotations.json"}[form]
    print(
        f"{len(frames)} frames in {out}: images/, {where}, labels.json" + (f"; from {start_from}" if start_from else ", nothing labelled")
    )
    if note := remark(frames):
        print(f"  note: {note}")
    print(f"back again: lix bag label {extraction.root} --masks FILE_OR_FOLDER")


def settings_of(given: dict[str, Any], scales: str, flat: str, standing: str) -> Any:
    """The settings of pseudo-labels that the options make. Raises SourceError, LabelError."""
    from lix_core.bags.pseudo import PseudoSettings

    try:
        given["scales"] = tuple(float(number) for number in scales.replace(",", " ").split())
    except ValueError:
        raise SourceError(f"--scales takes numbers, such as '0.75 1 1.25'; got {scales!r}") from None
    for name, text in (("flat", flat), ("standing", standing)):
        if text:
            given[name] = tuple(part.strip() for part in text.split(",") if part.strip())
    return PseudoSettings(**given)


def make_pseudo(extraction: Any, settings: Any, model: str, backend: str, remap: Path | None, jobs: int, rows: int) -> None:
    from lix_core.bags.pseudo import make_pseudo_labels
    from lix_core.labels import LabelMapping

    mapping = (lambda source: LabelMapping.load(source, remap)) if remap else None
    half = len(extraction.frames)
    with progress_bar() as progress:
        made = FrameCount(progress, "teaching")

        def on_step() -> None:
            made.count(description="teaching" if made.done < half else "checking")

        def on_start(steps: int) -> None:
            nonlocal half
            half = steps // 2
            made.update(total=steps)

        report = make_pseudo_labels(
            extraction,
            model,
            settings,
            mapping,
            backend,
            jobs or cores(),
            rows,
            on_start,
            on_step,
        )
    print_table(table_of(report))
    print(
        f"{report.frames} of {len(extraction.frames)} frames have pseudo-labels; {report.with_depth} have depth, "
        f"{report.ground} a ground plane"
    )
    for line in [*(f"note: {n}" for n in report.notes), *(f"left out {name}: {why}" for name, why in report.left_out.items())]:
        print(f"  {line}")
    print(f"look at {extraction.root / 'pseudo' / 'sheet.jpg'} before you train on them")
    if report.left_out:
        raise typer.Exit(1)


def table_of(report: Any) -> Table:
    """Of each class: its share of what the teacher said, the threshold, and the shares of it by what became of them."""
    from lix_core.bags.pseudo import REASONS

    table = Table("class", "of all", "threshold", *REASONS.names)
    total = max(1, int(report.counts.sum()))
    for row in report.rows():
        shares = [f"{100 * row[reason]:.1f} %" if row["pixels"] else "" for reason in REASONS.names]
        table.add_row(Text(row["class"]), f"{100 * row['pixels'] / total:.2f} %", f"{row['threshold']:.2f}", *shares)
    return table
