"""How hard does each part of L_L pull at a student's logits, under each controller, beside the labels?

    python bench/pull.py --teacher RUN --student RUN [--data ROOT] [--frames 40] [--out results/pull]

RUN: folders of `lix train` and `lix distill`, of one label set; the `data.test` frames (else `data.val`) of the student's are looked at, at
their own size and in evaluation mode. A term's pull is sum |dL/dz| over the student's coarse logits, L the term's mean over the pixels that
count: 2 is the most that a cross-entropy can have. Targets are the labels; with --unlabelled the teacher's classes, as on frames without.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lix_core.distill.config import LIXConfig  # noqa: E402
from lix_core.distill.distiller import lesson_of, valid_mean  # noqa: E402
from lix_core.distill.logit import weighed  # noqa: E402
from lix_core.distill.objective import build_controller  # noqa: E402
from lix_core.labels import UNLABELLED  # noqa: E402
from lix_core.training.data import Frames, scoring_batches  # noqa: E402
from lix_core.training.module import outputs  # noqa: E402
from lix_core.training.weights import load_network  # noqa: E402

CONTROLLERS = ("coupled", "fixed", "dynamic", "dynamic_coupled", "entropy")


def pulls(teacher: torch.Tensor, student: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor, tau: float) -> dict[str, float]:
    """Term -> sum |dL/dz| of logits (B, C, h, w), targets and labels (B, h, w), 255 = not counted."""
    student = student.detach().requires_grad_()
    losses = {"labels": F.cross_entropy(student, labels, ignore_index=UNLABELLED)}
    for name in CONTROLLERS:
        maps = weighed(teacher, student, classes, build_controller(LIXConfig(controller=name, tau=tau)))
        valid = classes != UNLABELLED
        losses[f"{name}, target"] = valid_mean(maps.alpha * maps.tcld, valid)
        losses[f"{name}, others"] = valid_mean(maps.beta * maps.ncld, valid)
    return {name: float(torch.autograd.grad(loss, student, retain_graph=True)[0].abs().sum()) for name, loss in losses.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--data", help="root of the data set, where it has moved")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--tau", type=float, default=1.0)
    parser.add_argument("--unlabelled", action="store_true", help="as if the frames had no labels")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "pull")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    (teacher, teaching), (student, record) = load_network(args.teacher), load_network(args.student)
    config = record.config
    source = config.data.test or config.data.val
    frames = Frames(dataclasses.replace(source, root=args.data or source.root), teaching.x_kind)
    sums: dict[str, float] = {}
    seen = 0
    for batch in scoring_batches(frames, 4, config.data.eval_size, teaching.x_channels):
        with torch.no_grad():
            of_student, of_teacher = outputs(student, batch), outputs(teacher, batch)
        taught = dataclasses.replace(batch, labelled=torch.zeros_like(batch.labelled)) if args.unlabelled else batch
        labels, lesson = lesson_of(of_student, of_teacher, batch).classes, lesson_of(of_student, of_teacher, taught)
        for name, value in pulls(lesson.teacher, lesson.student, lesson.classes, labels, args.tau).items():
            sums[name] = sums.get(name, 0.0) + value * len(batch)
        seen += len(batch)
        if seen >= args.frames:
            break
    found = {name: round(value / seen, 4) for name, value in sums.items()}
    # As anybody can give it, with what the runs are instead of where they were.
    given = ["--teacher", "RUN", "--student", "RUN", *(["--data", "ROOT"] if args.data else []), "--frames", str(args.frames)]
    given += ["--tau", str(args.tau), *(["--unlabelled"] if args.unlabelled else []), "--out", os.path.relpath(args.out, ROOT)]
    command = shlex.join(["python", "bench/pull.py", *given])
    result = {"command": command, "frames": seen, "tau": args.tau, "pull": found}
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["| controller | target part | other classes | ratio |", "| --- " * 4 + "|"]
    for name in CONTROLLERS:
        target, others = found[f"{name}, target"], found[f"{name}, others"]
        lines.append(f"| {name} | {target:.3f} | {others:.3f} | {others / target:.1f} |")
    lines.append(f"| (cross-entropy of the labels) | {found['labels']:.3f} | | |")
    print("\n".join(lines))
    words = f"`{command}`, {seen} frames. Sum of |dL/dz| over the student's logits, L the mean of the term over the pixels that count."
    args.out.with_suffix(".md").write_text("\n\n".join(["# How hard the parts of L_L pull", words, "\n".join(lines)]) + "\n")


if __name__ == "__main__":
    main()
