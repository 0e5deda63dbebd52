"""`lix predict`: segment an image, a folder, a video or a bag into files."""

from __future__ import annotations

import enum
import io
import os
import sys
import time
from pathlib import Path
from typing import Optional

import numpy as np
import typer

from lix_core import viz
from lix_core.errors import ImageError, LixError, SourceError
from lix_core.files import expanded, make_folder, save, save_image
from lix_core.labels import LABELS_FILE, LabelMapping, LabelSet
from lix_core.pixels import to_rgb
from lix_core.progress import progress_bar
from lix_core.runtime.backends import BACKEND_HELP, DEFAULT_BACKEND, BackendOptions
from lix_core.runtime.bundle import DEFAULT_MODEL
from lix_core.runtime.segmenter import Segmentation, Segmenter
from lix_core.runtime.sources import ImageSource, open_source


class Output(str, enum.Enum):
    mask = "mask"
    color = "color"
    overlay = "overlay"
    npz = "npz"


SUFFIXES = {Output.mask: ".png", Output.color: ".png", Output.overlay: ".jpg", Output.npz: ".npz"}


def predict(
    input: Path = typer.Argument(..., help="Image, folder of images, video file, or rosbag2 bag."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the results, one file per frame."),
    output: Output = typer.Option(
        Output.overlay,
        help="mask: 8-bit ids, 255 unlabelled (PNG); color: class colours (PNG); overlay: colours over the image "
        "(JPEG); npz: arrays `mask` and `confidence`.",
    ),
    model: str = typer.Option(DEFAULT_MODEL, help="Model name (see `lix models`) or path of a bundle."),
    backend: str = typer.Option(DEFAULT_BACKEND, help=BACKEND_HELP),
    threads: int = typer.Option(0, help="CPU threads, up to 256; 0 uses every core."),
    precision: str = typer.Option("auto", help="auto, f32, bf16 or f16."),
    max_pixels: int = typer.Option(0, min=0, help="Largest image given to the network [pixels]; 0 keeps the model's own."),
    min_confidence: float = typer.Option(0.0, min=0.0, max=1.0, help="Pixels below become unlabelled."),
    alpha: float = typer.Option(0.5, min=0.0, max=1.0, help="Opacity of the colours in overlays."),
    remap: Optional[Path] = typer.Option(None, help="YAML file that renames and merges classes."),
    topic: str = typer.Option("", help="Image topic of a bag that has several."),
) -> None:
    """Segment an image, a folder, a video or a bag into files `<stem>.png` (.jpg, .npz)."""
    source = open_source(input, topic)
    if isinstance(source, ImageSource):
        refuse_inputs(source, input, out, SUFFIXES[output])
    segmenter = Segmenter(model, backend, BackendOptions(threads, precision), max_pixels)
    if why := segmenter.bundle.manifest.needs_x:
        print(f"lix: {why}", file=sys.stderr)
    mapping = LabelMapping.load(segmenter.labels, remap) if remap else None
    make_folder(out)
    if output in (Output.mask, Output.npz):
        # Ids say nothing without their names.
        labels = mapping.target if mapping else segmenter.labels
        refuse_masks(out, SUFFIXES[output], labels)
        labels.save(out / LABELS_FILE)
    unreadable: list[str] = []
    busy = 0.0
    with progress_bar() as progress:
        task = progress.add_task(source.name, total=len(source) or None, note="")
        done = 0
        for frame in source:
            try:
                image, order = frame.load()
                started = time.perf_counter()
                result = segmenter.segment(image, order).rejecting(min_confidence)
                busy += time.perf_counter() - started
            except ImageError as error:
                unreadable.append(f"{frame.stem}: {error}")
                progress.console.print(f"left out {unreadable[-1]}", markup=False, highlight=False, soft_wrap=True)
            else:
                if mapping:
                    result = result.remapped(mapping)
                write(out / f"{frame.stem}{SUFFIXES[output]}", output, image, order, result, alpha)
                done += 1
            progress.update(task, advance=1, note=f"{1e3 * busy / max(1, done):.0f} ms/frame")
        progress.update(task, total=done + len(unreadable))
    print(f"{done} frames segmented into {out} ({segmenter.description})")
    if unreadable:
        why = f"{len(unreadable)} of {done + len(unreadable)} frames could not be read"
        if not done:
            raise SourceError(why)
        print(f"lix: {why}; the others are done", file=sys.stderr)
        raise typer.Exit(1)


def refuse_inputs(source: ImageSource, input: Path, out: Path, suffix: str) -> None:
    """Raises SourceError where a result would take the place of an image of the source, or be one the next time."""
    if expanded(input).is_dir() and out.resolve() == expanded(input).resolve():
        raise SourceError(f"--out {out} is the folder of the images, whose results would be segmented the next time; give another --out")
    images = set(map(os.path.realpath, source.paths))  # which takes links that lead to themselves as well
    for stem in source.stems:
        if os.path.realpath(target := out / f"{stem}{suffix}") in images:
            raise SourceError(f"a result would overwrite {target}, which is an image to segment; give another --out")


def refuse_masks(out: Path, suffix: str, labels: LabelSet) -> None:
    """Raises SourceError where a folder has masks of other classes, or such as people made, which results would replace or be among."""
    held = out / LABELS_FILE
    if held.exists():
        try:
            same = LabelSet.load(held) == labels
        except LixError:
            same = False
        if not same:
            raise SourceError(f"{held} tells of other classes than these results have; give another --out")
    elif any(out.glob(f"*{suffix}")):
        raise SourceError(f"{out} holds {suffix} files and no {LABELS_FILE}: it is no folder of results; give another --out")


def write(path: Path, output: Output, image: np.ndarray, order: str, result: Segmentation, alpha: float) -> None:
    """One result file, whole or not at all."""
    if output is Output.mask:
        save_image(path, result.mask)
    elif output is Output.color:
        save_image(path, viz.colorize(result.mask, result.labels))
    elif output is Output.overlay:
        save_image(path, viz.overlay(to_rgb(image, order), result.mask, result.labels, alpha))
    else:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, mask=result.mask, confidence=result.confidence.astype(np.float16))
        save(path, buffer.getvalue(), synced=False)
