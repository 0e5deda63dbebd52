"""What distillation adds to a student's training step, beside plain KD: time and peak memory.

    python bench/distill.py [--steps 30] [--batch 8] [--threads N] [--methods lix kd ...] [--out results/distill_cost]

One step is what a run does: normalise, teacher forward (two encoders, frozen, in eval mode), student forward, cross-entropy at full
resolution, the terms of the method, backward, AdamW. Networks: EfficientNet-Lite0 with FastFPN, coarse logits at stride 2, 11 classes,
X of 3 channels; images of 384x480, batch 8, a quarter of the frames without labels; random weights and images, on which the cost does
not depend. `control` has neither teacher nor terms.

Time: all methods in one process, each with a student of its own, taking turns step by step in an order that is shuffled each round;
the median over rounds of the ratio to KD's step of the same round, so that what else the machine does falls on both. The quartiles of
those ratios say how steady it was. Memory: each method in a process of its own, the peak of its resident set over some steps (the
kernel's ru_maxrss), less what it held before the first; so torch itself, the networks and the batch do not dilute the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lix_core.data.sample import Batch  # noqa: E402
from lix_core.distill.config import DistillConfig, LIXConfig  # noqa: E402
from lix_core.distill.objective import build_distiller  # noqa: E402
from lix_core.models.networks import Student, Teacher  # noqa: E402
from lix_core.training.cpu import keep_freed_memory  # noqa: E402
from lix_core.training.losses import HardLoss  # noqa: E402
from lix_core.training.module import full_logits, outputs  # noqa: E402

CLASSES, X_CHANNELS, HEIGHT, WIDTH = 11, 3, 384, 480
BASE = "kd"
DEEP = ["stage1", "stage2", "stage3", "stage4", "stage5", "decoder"]

METHODS: dict[str, DistillConfig | None] = {
    "control": None,
    "kd": DistillConfig("kd"),
    "dkd": DistillConfig("dkd"),
    "cwd": DistillConfig("cwd"),
    "cirkd": DistillConfig("cirkd"),
    "mgd": DistillConfig("mgd"),
    "pseudo": DistillConfig("pseudo"),
    "lix": DistillConfig("lix"),
    "lix, logits only": DistillConfig("lix", lix=LIXConfig(feature=0)),
    "lix, features only": DistillConfig("lix", lix=LIXConfig(logit=0)),
    "lix, every feature": DistillConfig("lix", lix=LIXConfig(features=DEEP)),
    "lix with X regression": DistillConfig("lix", lix=LIXConfig(x=1)),
}


def example(size: int) -> Batch:
    """`size` frames of noise, every fourth without labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (size, HEIGHT, WIDTH), generator=generator)
    labelled = torch.arange(size) % 4 != 3
    labels[~labelled] = 255
    return Batch(
        image=torch.randint(0, 256, (size, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8),
        labels=labels,
        x=torch.randn(size, X_CHANNELS, HEIGHT, WIDTH, generator=generator),
        known=torch.rand(size, HEIGHT, WIDTH, generator=generator) < 0.8,
        labelled=labelled,
        shown=torch.ones(size, HEIGHT, WIDTH, dtype=torch.bool),
        names=[str(i) for i in range(size)],
    )


def build_teacher() -> Teacher:
    return Teacher(CLASSES, X_CHANNELS, weights="none").to(memory_format=torch.channels_last).eval().requires_grad_(False)


def stepper(config: DistillConfig | None, teacher: Teacher, batch: Batch) -> Callable[[], None]:
    """One training step of a fresh student under a method."""
    torch.manual_seed(0)
    student = Student(CLASSES, weights="none").to(memory_format=torch.channels_last).train()
    hard, parameters, distiller = HardLoss(), list(student.parameters()), None
    if config is not None:
        distiller = build_distiller(config, student.feature_channels, teacher.feature_channels, CLASSES, X_CHANNELS).train()
        parameters += distiller.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        learned = outputs(student, batch)
        terms = hard(full_logits(learned.logits, batch.labels.shape[-2:]), batch.labels)
        if distiller is not None:
            with torch.no_grad():
                taught = outputs(teacher, batch)
            terms |= distiller(learned, taught, batch)
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def times(names: list[str], rounds: int, size: int) -> dict[str, dict[str, float]]:
    """Method -> median seconds of a step, and median and quartiles of its ratio to BASE's step of the same round."""
    teacher, batch = build_teacher(), example(size)
    steps = {name: stepper(METHODS[name], teacher, batch) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        print(f"\rround {max(number, 0)}/{rounds}", end="", file=sys.stderr, flush=True)
        for name in random.Random(number).sample(names, len(names)):
            seconds = timed(steps[name])
            if number >= 0:  # the first round warms up
                taken[name].append(seconds)
    print(file=sys.stderr)
    found = {}
    for name, seconds in taken.items():
        ratios = [own / base for own, base in zip(seconds, taken[BASE])]
        low, _, high = quantiles(ratios, n=4)
        found[name] = {"s": round(median(seconds), 3), "ratio": round(median(ratios), 3), "quartiles": [round(low, 3), round(high, 3)]}
    return found


def peak_mb(name: str, size: int, steps: int = 3) -> dict[str, float]:
    """Peak resident memory of some steps of a method [MB], in this process, which must be fresh: whole, and beyond what it held before."""
    step = stepper(METHODS[name], build_teacher(), example(size))
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    for _ in range(steps):
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": round(peak / 1e6, 1), "beyond": round((peak - before) / 1e6, 1)}


def memory(names: list[str], threads: int, size: int) -> dict[str, dict[str, float]]:
    """Method -> `peak_mb` in a process of its own, and the ratio of `beyond` to BASE's."""
    found = {}
    for name in names:
        print(f"\rmemory: {name}{'':30}", end="", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--memory-of", name, "--threads", str(threads), "--batch", str(size)]
        # Tensors then lie in pages of their own, given back when freed: no holes in a heap, whose size depends on chance.
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found[name] = json.loads(done.stdout)
    print(file=sys.stderr)
    for own in found.values():
        own["ratio"] = round(own["beyond"] / found[BASE]["beyond"], 3)
    return found


def table(record: dict) -> str:
    """Markdown: a row for each method."""
    rows = [["method", "step [s]", "ratio to KD (quartiles)", "peak memory of a step [MB]", "ratio to KD"], ["---"] * 5]
    for name, time_, memory_ in ((n, record["time"][n], record["memory"][n]) for n in record["time"]):
        low, high = time_["quartiles"]
        label = f"**{name}**" if name == "lix" else name
        ratio = f"{time_['ratio']:.3f} ({low:.3f} to {high:.3f})"
        rows.append([label, f"{time_['s']:.2f}", ratio, f"{memory_['beyond']:.0f}", f"{memory_['ratio']:.3f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each method")
    parser.add_argument("--batch", type=int, default=8, help="frames of a step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help=f"all by default; {BASE} is always among them")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "distill_cost")
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(peak_mb(args.memory_of, args.batch)))
        return
    keep_freed_memory()  # as a run does
    names = [name for name in METHODS if name in {BASE, *args.methods}]
    record = {
        "command": shlex.join(["python", "bench/distill.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__} with {args.threads} threads",
        "step": f"batch {args.batch}, {HEIGHT}x{WIDTH}, {CLASSES} classes; {args.steps} rounds",
        "memory": memory(names, args.threads, args.batch),
        "time": times(names, args.steps, args.batch),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    note = (
        "A training step with the teacher's forward in it (but for `control`). Time: median of the ratios to KD's step of the same round, "
        "methods taking turns in one process. Memory: peak resident set of three steps beyond what was held before, a process each."
    )
    text = "\n\n".join([f"`{record['command']}`", f"{record['step']}; {record['machine']}", note, table(record)]) + "\n"
    args.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
