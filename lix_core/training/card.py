"""The model card: what a bundle's manifest says, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lix_core.runtime.bundle import Manifest
from lix_core.training.weights import runs_behind

WEAK = 0.5
"""Classes with a lower IoU are named as weaknesses."""
MEANS = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
}


def model_card(manifest: Manifest, notes: str = "") -> str:
    """The model card, in Markdown. notes: what only people know of the model, above all where it fails."""
    parts = [
        f"# {manifest.name}",
        manifest.description,
        _terms(manifest),
        "## Data\n\nAll that went into the weights:",
        markdown_table(("use", "name", "licence", "source"), [[d[k] for k in ("use", "name", "licence", "source")] for d in manifest.data]),
        *_lineage(manifest.training),
        "## Quality",
        *(_quality(manifest) or ["Nothing was measured."]),
        "## Training",
        _training(manifest.training),
        "## Known weaknesses",
        notes.strip() or _weaknesses(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; a bar in a cell, which would end it, becomes a slash."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(' '.join(str(cell).replace('|', '/').split()) for cell in line)} |" for line in lines)


def _terms(manifest: Manifest) -> str:
    without = "it was never without" if manifest.needs_x else "a frame may be without"
    x = f"\n- **X:** {manifest.x.kind}, {manifest.x.channels} channels, at the image's size; {without}." if manifest.x else ""
    return (
        f"- **Licence of the weights:** {manifest.licence}.\n"
        f"- **Input:** RGB images of any size; larger ones are scaled to {manifest.size.max_pixels:,} pixels.{x}\n"
        f"- **Output:** ids of {len(manifest.labels)} classes ({', '.join(manifest.labels.names)}), 255 = unlabelled; confidence 0..1."
    )


def _lineage(training: dict[str, Any]) -> list[str]:
    told = _behind(training)
    return ["## Lineage", *told, "The licences of their data are above."] if told else []


def _behind(training: dict[str, Any]) -> list[str]:
    """A paragraph for each run behind one, the nearest first."""
    ways = f"distilled by the method `{training['method']}` from", "begun with the weights of"
    told = []
    for way, run in ((way, run) for way, runs in zip(ways, runs_behind(training)) for run in runs):
        model, data = run["config"]["model"], ", ".join(f"{s['dataset']} {s['split']}" for s in run["config"]["data"]["sources"])
        scores = "".join(f"; mIoU {m['miou']:.3f} on {name}" for name, m in run["metrics"].items() if m["miou"] is not None)
        sees = f"RGB and {run['x']}, joined by {model['fusion']}" if model["kind"] == "teacher" else "RGB"
        told += [
            f"`{training['run']}` was {way} the run `{run['run']}` (seed {run['seed']}, git {run['git_revision'][:12]}, SHA-256 of its "
            f"checkpoint or bundle {run['sha256'][:12]}): {model['encoder']} that sees {sees}, trained on {data}{scores}.",
            *_behind(run),
        ]
    return told


def _quality(manifest: Manifest) -> list[str]:
    training, sections = manifest.training, []
    data = training["config"]["data"]
    stretched = "{}x{} (stretched to it; a robot's keep their own shape)"
    scale = stretched.format(*data["eval_size"]) if data["eval_size"] else f"their own size ({_limit(manifest)})"
    chosen = f"{data['val']['dataset']} {data['val']['split']}" if data["val"] else ""
    for name, score in manifest.metrics.items():
        flattered = " The checkpoint was chosen on it: expect less elsewhere." if name == chosen else ""
        means = ", ".join(f"{text} {_number(score[key])}" for key, text in MEANS.items())
        sections.append(
            f"On {name}, the network in PyTorch in float32, images at {scale}, one confusion matrix over all pixels: "
            f"{means}.{flattered}\n\n"
            + markdown_table(("class", "IoU"), [(label, _number(value)) for label, value in score["iou"].items()])
        )
    return sections


def _limit(manifest: Manifest) -> str:
    """What a user of figures at the images' own size must know."""
    return f"a robot scales those of more than {manifest.size.max_pixels:,} pixels down, where the figures may be lower"


def _number(value: float | None) -> str:
    return "absent" if value is None else f"{value:.3f}"


def _training(training: dict[str, Any]) -> str:
    optim = training["config"]["optim"]
    cost = f" It took {training['seconds'] / 3600:.1f} h on {training['device']}." if "seconds" in training else ""
    return (
        f"Method `{training['method']}`, seed {training['seed']}, step {training['step']} of {optim['steps']}; git "
        f"{training['git_revision'][:12]}, torch {training['torch']}.{cost} {training['parameters']['total']:,} parameters. The whole "
        "configuration is in the manifest, under `training`."
    )


def _weaknesses(manifest: Manifest) -> str:
    lines = []
    for name, score in manifest.metrics.items():
        weak = [f"{label} ({value:.2f})" for label, value in score["iou"].items() if value is not None and value < WEAK]
        absent = [label for label, value in score["iou"].items() if value is None]
        lines += [f"- On {name} its weakest classes, by IoU: {', '.join(weak)}."] if weak else []
        lines += [f"- Not measured on {name}, where they do not occur: {', '.join(absent)}."] if absent else []
    return "\n".join(
        [
            *lines,
            "- What its data do not show (other cameras, weathers, places) it has not seen.",
            "- Confidence is the softmax of the winner and is not calibrated; look at it before using a threshold.",
            "- Not for decisions on which safety depends.",
        ]
    )
