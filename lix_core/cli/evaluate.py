"""`lix evaluate`: score a bundle against labelled images, exactly as it runs on the robot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional

import typer
from rich.console import Console
from rich.table import Table

from lix_core.cli.progress import progress_bar
from lix_core.files import make_folder, read_mask, save
from lix_core.metrics import ConfusionMatrix
from lix_core.runtime.backends import DEFAULT_BACKEND, BackendOptions
from lix_core.runtime.segmenter import Segmenter
from lix_core.runtime.sources import open_source


def evaluate(
    images: Path = typer.Argument(..., help="Folder of images."),
    labels: Path = typer.Argument(..., help="Folder of 8-bit label PNGs `<stem>.png`; ids beyond the model's classes are ignored."),
    model: str = typer.Option("street", help="Model name or path of a bundle."),
    backend: str = typer.Option(DEFAULT_BACKEND, help="onnxruntime, openvino, torch or auto."),
    precision: str = typer.Option("auto", help="auto, f32, bf16 or f16."),
    max_pixels: int = typer.Option(0, min=0, help="Largest image given to the network [pixels]; 0 keeps the model's own."),
    json_file: Optional[Path] = typer.Option(None, "--json", help="Also write the figures to this file."),
) -> None:
    """Score a model against labelled images: one confusion matrix over all pixels."""
    source = open_source(images)
    segmenter = Segmenter(model, backend, BackendOptions(precision=precision), max_pixels)
    names = segmenter.labels.names
    if json_file:
        make_folder(json_file.parent)
    matrix = ConfusionMatrix(len(names))
    with progress_bar() as progress:
        task = progress.add_task(source.name, total=len(source), note="")
        for frame in source:
            image, order = frame.load()
            truth = read_mask(labels / f"{frame.stem}.png")
            truth[truth >= len(names)] = 255
            matrix.update(truth, segmenter.segment(image, order).mask)
            progress.update(task, advance=1, note=f"mIoU {matrix.miou:.3f}")
    summary = matrix.summary(names)
    table = Table("class", "IoU")
    for name, value in summary["iou"].items():
        table.add_row(name, "absent" if value is None else f"{value:.3f}")
    Console().print(table)
    Console().print(
        f"mIoU {matrix.miou:.4f}  pixel accuracy {matrix.pixel_accuracy:.4f}  over {len(source)} images ({segmenter.description})",
        highlight=False,
        soft_wrap=True,
    )
    if json_file:
        record = {"images": len(source), "model": segmenter.bundle.manifest.name, "backend": segmenter.description, **summary}
        save(json_file, (json.dumps(record, indent=1) + "\n").encode())
