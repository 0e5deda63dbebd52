"""`lix evaluate`: score a bundle against labelled images, exactly as it runs on the robot; or the network of a training run on its data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Optional

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lix_core.cli.places import origin, places_of
from lix_core.cli.tables import print_table
from lix_core.cli.typed import typed
from lix_core.errors import DataError, SourceError, TrainingError
from lix_core.files import make_place, read_mask, save
from lix_core.metrics import ConfusionMatrix
from lix_core.progress import progress_bar
from lix_core.runtime.backends import BACKEND_HELP, DEFAULT_BACKEND, BackendOptions
from lix_core.runtime.bundle import DEFAULT_MODEL
from lix_core.runtime.segmenter import Segmenter
from lix_core.runtime.sources import open_source

OF_MODEL, OF_RUN = ("model", "backend", "precision", "max_pixels"), ("split", "checkpoint", "data")
"""Options of each kind of score, which the other has not."""
NAMED = 5
"""Labels that are missing and named, at most."""


def evaluate(
    context: typer.Context,
    images: Optional[Path] = typer.Argument(None, help="Folder of images."),
    labels: Optional[Path] = typer.Argument(
        None, help="Folder of 8-bit label PNGs `<stem>.png`; ids beyond the model's classes are ignored."
    ),
    model: str = typer.Option(DEFAULT_MODEL, help="Model name or path of a bundle."),
    backend: str = typer.Option(DEFAULT_BACKEND, help=BACKEND_HELP),
    precision: str = typer.Option("auto", help="auto, f32, bf16 or f16."),
    max_pixels: int = typer.Option(0, min=0, help="Largest image given to the network [pixels]; 0 keeps the model's own."),
    json_file: Optional[Path] = typer.Option(None, "--json", help="Also write the figures to this file."),
    run: Optional[Path] = typer.Option(None, help="Instead of a model and folders: a run folder, scored on the data of its configuration."),
    split: str = typer.Option("val", help="With --run: val or test, as its configuration has them."),
    checkpoint: str = typer.Option("best", help="With --run: best or last."),
    data: list[str] = typer.Option([], help="With --run: where its data set is now, as NAME=FOLDER."),
) -> None:
    """Score a model against labelled images, or a training run on its data: one confusion matrix over all pixels."""
    others, use = (OF_RUN, "with --run RUN") if run is None else (OF_MODEL, "for a model on folders, without --run")
    if given := typed(context, others):
        raise SourceError(f"leave out {', '.join(given)}: only {use}")
    if json_file:
        make_place(json_file)
    if run is not None:
        if images is not None:
            raise TrainingError("lix evaluate scores a model on folders, or a run on its own data: leave out --run or the folders")
        summary = of_run(origin(run), split, checkpoint, data)
    elif images is None or labels is None:
        raise SourceError("lix evaluate needs a folder of images and one of labels, or --run RUN")
    else:
        summary = of_bundle(images, labels, model, backend, precision, max_pixels)
    if json_file:
        save(json_file, (json.dumps(summary, indent=1) + "\n").encode())
    table = Table("class", "IoU")
    for name, value in summary["iou"].items():
        table.add_row(Text(name), "absent" if value is None else f"{value:.3f}")
    print_table(table)
    what = f"over {summary['images']} images ({summary['model']}, {summary['backend']})"
    miou, accuracy = (math.nan if summary[key] is None else summary[key] for key in ("miou", "pixel_accuracy"))
    Console().print(f"mIoU {miou:.4f}  pixel accuracy {accuracy:.4f}  {what}", highlight=False, soft_wrap=True, markup=False)


def of_run(run: Path, split: str, checkpoint: str, data: list[str]) -> dict[str, Any]:
    """Figures of a run's network on frames of its configuration, at the size they are scored at in training."""
    from lix_core.data.registry import DATASETS
    from lix_core.training.compare import compare

    places = places_of(data, DATASETS)
    with progress_bar() as progress:
        task = progress.add_task(f"{run} {split}", total=None, note="")
        found = compare([run], split, checkpoint, places, lambda count, total: progress.update(task, advance=count, total=total))
    ((name, record),) = found.records.items()
    matrix, backend = found.scores[name], f"PyTorch f32, step {record.step}"
    return {"images": len(found.frames), "model": record.config.name, "backend": backend, **matrix.summary(record.labels.names)}


def of_bundle(images: Path, labels: Path, model: str, backend: str, precision: str, max_pixels: int) -> dict[str, Any]:
    """Figures of a bundle on folders, through the whole path of the robot."""
    source = open_source(images)
    paths = [labels / f"{frame.stem}.png" for frame in source]
    if missing := [path.name for path in paths if not path.exists()]:
        names = ", ".join([*missing[:NAMED], *(["..."] if len(missing) > NAMED else [])])
        raise DataError(f"{len(missing)} of {len(paths)} labels are missing in {labels}: {names}")
    segmenter = Segmenter(model, backend, BackendOptions(precision=precision), max_pixels)
    names, manifest = segmenter.labels.names, segmenter.bundle.manifest
    if manifest.needs_x:
        raise TrainingError(f"{manifest.needs_x}; score its --run")
    matrix = ConfusionMatrix(len(names))
    with progress_bar() as progress:
        task = progress.add_task(source.name, total=len(source), note="")
        for frame, path in zip(source, paths, strict=True):
            image, order = frame.load()
            truth = read_mask(path)
            if truth.shape != image.shape[:2]:
                sizes = [f"{shape[1]}x{shape[0]}" for shape in (truth.shape, image.shape)]
                raise DataError(f"label {path} is {sizes[0]}, its image {sizes[1]}: they must be of one size")
            truth[truth >= len(names)] = 255
            matrix.update(truth, segmenter.segment(image, order).mask)
            progress.update(task, advance=1, note=f"mIoU {matrix.miou:.3f}")
    without = f", without {manifest.x.kind}" if manifest.x else ""
    record = {"images": len(paths), "model": manifest.name, "backend": f"{segmenter.description}{without}"}
    return {**record, **matrix.summary(names)}
