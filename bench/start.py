"""What is a bundle worth as the start of a run, beside the weights of ImageNet?

    python bench/start.py --data camvid=ROOT --work FOLDER [--steps 90] [--out results/start]

The shipped `street` is read back into a network, and scored on the validation frames of its recipe: as it is, and with the batch
normalisations in training mode, each batch by its own statistics, before and after they have found what they normalise by
(`lix_core.export.renormalising`). Then the recipe is trained for a few steps from it, and from ImageNet's weights; runs are in FOLDER, and
one that is there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lix_core.cli.places import places_of  # noqa: E402
from lix_core.export import renormalising  # noqa: E402
from lix_core.metrics import ConfusionMatrix  # noqa: E402
from lix_core.models.networks import Network  # noqa: E402
from lix_core.runtime.bundle import find_bundle  # noqa: E402
from lix_core.training.config import Config, load_config  # noqa: E402
from lix_core.training.data import Frames, TrainingData, scoring_batches  # noqa: E402
from lix_core.training.module import outputs  # noqa: E402
from lix_core.training.run import NORM_VIEWS, device_name, fit, git_revision  # noqa: E402
from lix_core.training.scoring import confusion, evaluate, predict  # noqa: E402
from lix_core.training.weights import load_network  # noqa: E402


def in_training_mode(network: Network, frames: Frames, batch: int) -> float:
    """mIoU where every batch is normalised by itself, and nothing else is as in training: no dropout, no new statistics."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 0.0
    counts = sum(confusion(predict(network, some), some, len(frames.labels)) for some in scoring_batches(frames, batch, None, None))
    network.eval()
    return ConfusionMatrix.of(counts.numpy()).miou


def config_of(data: list[str], *changes: str) -> Config:
    config = load_config("street", ["model.kind=student", "distill.method=none", "trainer.accelerator=cpu", *changes])
    places = places_of(data, {source.dataset for source in config.data.all_sources})
    for source in config.data.all_sources:
        source.root = places.get(source.dataset, source.root)
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], help="camvid=ROOT")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "start")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    street, revision = find_bundle("street"), git_revision()
    config = config_of(args.data)
    data = TrainingData(config.data, config.seed)
    batch = config.trainer.val_batch
    found = {"`street`, read back": evaluate(load_network(street)[0], data.val, batch).miou}
    found["the same in training mode, as read"] = in_training_mode(load_network(street)[0], data.val, batch)
    network, _ = load_network(street)
    with renormalising(network), torch.no_grad():
        for views in data.first_batches(NORM_VIEWS):
            outputs(network, views)
    found[f"the same in training mode, once it has seen {NORM_VIEWS} views"] = in_training_mode(network, data.val, batch)
    rate = config.optim.lr
    for words, start, lr in (("ImageNet's weights", None, rate), ("`street`", street, rate), ("`street`", street, 0.3 * rate)):
        short = [f"optim.steps={args.steps}", f"optim.warmup={args.steps // 10}", f"optim.lr={lr:g}", "optim.ema=0.9", "data.workers=0"]
        run = fit(config_of(args.data, *short), args.work / f"{'street' if start else 'imagenet'}-{lr:g}-{args.steps}", start=start)
        found[f"{args.steps} steps from {words}, rate {lr:g}"] = run.val["miou"]
    found = {name: round(float(value), 4) for name, value in found.items()}
    command = shlex.join(["python", "bench/start.py", *sys.argv[1:]])
    facts = {"command": command, "git_revision": revision, "device": device_name(torch.device("cpu")), "frames": len(data.val)}
    args.out.with_suffix(".json").write_text(json.dumps({**facts, "miou": found}, indent=1) + "\n")
    rows = ["| CamVid val | mIoU |", "| --- | --- |", *(f"| {name} | {value:.3f} |" for name, value in found.items())]
    words = f"`{command}`, {facts['device']}. One seed; of each run its best epoch, chosen on these {facts['frames']} frames."
    args.out.with_suffix(".md").write_text("\n\n".join(["# A bundle as a start", words, "\n".join(rows)]) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
