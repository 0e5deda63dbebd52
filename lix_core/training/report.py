"""Pictures of a run: its curves, and a sheet of what the networks see and say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lix_core.data.sample import Sample, collate
from lix_core.data.transforms import eval_transform
from lix_core.distill.objective import LIX
from lix_core.files import save_image
from lix_core.geometry.encodings import ENCODINGS
from lix_core.labels import UNLABELLED, LabelSet
from lix_core.models.networks import Network
from lix_core.training.module import outputs
from lix_core.training.scoring import predict
from lix_core.viz import colorize, contact_sheet, depth_color, normals_color

CELL = 320
"""Width of one picture of the sheet [pixels]."""


def curves(rows: Sequence[dict[str, float]], path: Path, title: str) -> None:
    """Losses, validation mIoU and learning rate over the steps of a run, as PNG. Rows are those of `callbacks.Journal`."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    losses, scores, rates = figure.subplots(1, 3)
    known = {"epoch", "step", "lr", "seconds", "val_miou", "val_pixel_accuracy"}
    for key in dict.fromkeys(key for row in rows for key in row if key not in known):
        losses.plot(*columns(rows, key), label=key, linewidth=2 if key == "loss" else 1)
    scores.plot(*columns(rows, "val_miou"), marker=".", label="val mIoU")
    rates.plot(*columns(rows, "lr"), label="peak learning rate")
    for axes in (losses, scores, rates):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    save_figure(figure, path)


def gains(rows: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path, title: str) -> None:
    """Differences to the control as PNG: of each row its mean, its seeds and, faint, its folds. rows: name -> points of seeds, of folds."""
    figure = Figure(figsize=(9, 0.9 + 0.3 * len(rows)), layout="constrained", dpi=110)
    axes = figure.subplots()
    for place, (seeds, folds) in enumerate(rows.values()):
        mean = float(np.mean(seeds))
        colour = "tab:green" if mean > 0 else "tab:red"
        axes.barh(place, mean, height=0.62, color=colour, alpha=0.3)
        axes.scatter(folds, [place] * len(folds), s=12, color="grey", alpha=0.5, linewidths=0)
        axes.scatter(seeds, [place] * len(seeds), s=34, color=colour, edgecolors="black", linewidths=0.5, zorder=3)
    counted = (f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}" for seeds, _ in rows.values())
    names = [f"{name} ({count})  {np.mean(seeds):+.1f}" for (name, (seeds, _)), count in zip(rows.items(), counted)]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    folds = ", grey dots folds" if any(folds for _, folds in rows.values()) else ""
    axes.set_title(f"{title}: bars are means, dots seeds{folds}", fontsize=10)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    canvas = FigureCanvasAgg(figure)  # no pyplot: it would choose a display
    canvas.draw()
    save_image(path, np.asarray(canvas.buffer_rgba())[..., :3])


def columns(rows: Sequence[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have `key`."""
    having = [row for row in rows if key in row]
    return [row["step"] for row in having], [row[key] for row in having]


def sheet(network: Network, teacher: Network | None, samples: Sequence[Sample], labels: LabelSet, path: Path) -> None:
    """A row for each frame: RGB, X, truth, teacher, student, and where the network errs; columns that a run lacks are left out."""
    cells: list[np.ndarray] = []
    for sample in samples:
        row = pictures(network, teacher, sample, labels)
        cells += [captioned(picture, caption) for caption, picture in row.items()]
    save_image(path, contact_sheet(cells, labels, columns=len(cells) // len(samples), cell_width=CELL))


def pictures(network: Network, teacher: Network | None, sample: Sample, labels: LabelSet) -> dict[str, np.ndarray]:
    """Pictures of one frame by caption, each (H, W, 3) uint8 RGB."""
    said = answer(network, sample)
    row = given(sample, labels, bool(getattr(network, "x_channels", 0) or getattr(teacher, "x_channels", 0)))
    if teacher is not None:
        row["teacher"] = colorize(answer(teacher, sample), labels)
    row["student" if not getattr(network, "x_channels", 0) else "teacher"] = colorize(said, labels)
    row["errors"] = error_picture(sample.image, truth_of(sample), said)
    return row


def comparison(networks: Mapping[str, Network], samples: Sequence[Sample], labels: LabelSet, path: Path) -> None:
    """A row for each frame: RGB, X where a network sees it, truth, and the answer of each network under its name."""
    with_x = any(getattr(network, "x_channels", 0) for network in networks.values())
    rows = [
        {**given(sample, labels, with_x), **{name: colorize(answer(network, sample), labels) for name, network in networks.items()}}
        for sample in samples
    ]
    cells = [captioned(picture, caption) for row in rows for caption, picture in row.items()]
    save_image(path, contact_sheet(cells, labels, columns=len(cells) // len(samples), cell_width=CELL))


def given(sample: Sample, labels: LabelSet, with_x: bool) -> dict[str, np.ndarray]:
    """Pictures of what a data set gives of a frame, by caption: RGB, X and truth."""
    return {"RGB": sample.image, **({"X": x_picture(sample)} if with_x else {}), "truth": colorize(truth_of(sample), labels)}


def truth_of(sample: Sample) -> np.ndarray:
    """(H, W) uint8 labels of a frame, unlabelled everywhere where it has none."""
    return np.full(sample.image.shape[:2], UNLABELLED, np.uint8) if sample.labels is None else sample.labels


@torch.inference_mode()
def weights(student: Network, teacher: Network, distiller: LIX, samples: Sequence[Sample], path: Path) -> None:
    """What the controller of LIX does: a row for each frame with RGB, the weights of the target and of the non-target part of each pixel,
    and these parts themselves. White where a pixel does not count.

    Samples are seen as in scoring, padded to the networks' strides, with the networks in eval mode.
    """
    whole = eval_transform(multiple_of=math.lcm(student.stride, teacher.stride))
    samples = [whole(sample) for sample in samples]
    titles = ("RGB", "alpha: weight of TCLD", "beta: weight of NCLD", "TCLD", "NCLD")
    height, width = samples[0].image.shape[:2]
    figure = Figure(figsize=(20, (0.6 + 4 * height / width) * len(samples)), layout="constrained")
    for row, sample in zip(figure.subplots(len(samples), len(titles), squeeze=False), samples):
        batch = collate([sample], teacher.x_channels).to(next(teacher.parameters()).device)
        maps = distiller.maps(outputs(student, batch), outputs(teacher, batch), batch)
        row[0].imshow(sample.image)
        for axes, values, weight in zip(row[1:], maps, (True, True, False, False)):
            values = values[0].float().cpu().numpy()
            # Weights have mean 1 where the two parts are even; of divergences the few largest pixels would hide all others.
            top = 2.0 if weight else max(1e-6, float(np.nanpercentile(values, 99)))
            shown = axes.imshow(values, cmap="coolwarm" if weight else "magma", vmin=0, vmax=top, interpolation="nearest")
            figure.colorbar(shown, ax=axes, fraction=0.03)
        for axes, title in zip(row, titles):
            axes.set_title(title if axes is not row[0] else sample.name, fontsize=11)
            axes.set_axis_off()
    save_figure(figure, path)


@torch.inference_mode()
def answer(network: Network, sample: Sample) -> np.ndarray:
    """(H, W) uint8 class ids that a network in eval mode gives a frame."""
    device = next(network.parameters()).device
    batch = collate([sample], getattr(network, "x_channels", None)).to(device)
    return predict(network, batch)[0].to(torch.uint8).cpu().numpy()


def x_picture(sample: Sample) -> np.ndarray:
    """X as colours, black where it is unknown: normals as RGB, others from near in red to far in blue.

    Of a data set's own kind of X only the first channel is shown.
    """
    if sample.x is None:
        return np.zeros_like(sample.image)
    if sample.x_kind not in ENCODINGS:
        # X has about zero mean and unit spread: -3 to 3 is red to blue.
        return depth_color(np.where(sample.known, np.exp(sample.x[0].clip(-3, 3)), np.nan), np.exp(-3), np.exp(3))
    values = ENCODINGS[sample.x_kind].decode(sample.x, sample.known)
    quantity = ENCODINGS[sample.x_kind].quantity
    if quantity == "normals":
        return normals_color(values)
    # A disparity of a width's share d is shown as the depth 0.3 / d: red to blue over what cars' cameras see.
    return depth_color(values if quantity == "depth" else 0.3 * sample.image.shape[1] / np.maximum(values, 1e-3))


def error_picture(image: np.ndarray, truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """The image, darkened; red where the answer is wrong, black where there is no truth."""
    picture = image // 2
    picture[(truth != said) & (truth != UNLABELLED)] = (255, 40, 40)
    picture[truth == UNLABELLED] = 0
    return picture


def captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    """The picture at the width of a cell, with its caption above."""
    height = max(1, round(picture.shape[0] * CELL / picture.shape[1]))
    scaled = cv2.resize(picture, (CELL, height), interpolation=cv2.INTER_AREA)
    strip = np.full((20, CELL, 3), 24, np.uint8)
    cv2.putText(strip, caption, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
    return np.vstack([strip, scaled])
