"""`lix export`: from the folder of a training run to a bundle, with all that it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional

import typer
from rich.console import Console

from lix_core.cli.places import origin
from lix_core.errors import TrainingError
from lix_core.files import make_place
from lix_core.runtime.bundle import SUFFIX


def export(
    run: Path = typer.Argument(..., help="Folder of a run of `lix train` or `lix distill`."),
    out: Path = typer.Option(..., "--out", "-o", help=f"The bundle to write, NAME{SUFFIX}."),
    checkpoint: str = typer.Option("best", help="best or last."),
    name: str = typer.Option("", help="Name of the model; left out, that of the file."),
    teacher: Optional[List[Path]] = typer.Option(
        None, help="Runs behind this one, folders or models: its teacher, the one that it started from, and those behind them."
    ),
    notes: Optional[Path] = typer.Option(None, help="Markdown for the card: known weaknesses, in the words of people who looked."),
) -> None:
    """Make a bundle of a trained network, with its licences, figures and model card, and compare it with the network."""
    if out.suffix != SUFFIX:
        raise TrainingError(f"a bundle is named NAME{SUFFIX}, got {out}")
    if checkpoint not in ("best", "last"):
        raise TrainingError(f"--checkpoint is best or last, got {checkpoint!r}")
    words = read_notes(notes)
    make_place(out)
    from lix_core.training.provenance import make_bundle

    bundle, found = make_bundle(origin(run), checkpoint, name or out.stem, [origin(other) for other in teacher or []], words)
    path = bundle.save(out)
    counts = bundle.manifest.training["parameters"]
    parts = ", ".join(f"{part} {count / 1e6:.2f}" for part, count in counts.items())
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"{path}: {path.stat().st_size / 1e6:.2f} MB; parameters in millions: {parts}")
    console.print(
        f"graph against network, {found.images} random images: {found.ids:.2%} of the ids agree, "
        f"logits differ by at most {found.logits:.2%} of the largest"
    )
    console.print(f"licence: {bundle.manifest.licence}")


def read_notes(path: Path | None) -> str:
    try:
        return path.read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"cannot read notes {path}: {getattr(error, 'strerror', None) or error}") from None
