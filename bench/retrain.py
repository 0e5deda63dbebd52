"""Does retraining pay? A robot trained by day alone records a drive that ends at night, and learns from its bag.

    python bench/retrain.py --work FOLDER [--seeds 0 1 2] [--arms NAME ...] [--out results/retrain_night] [--picture FILE]

Everything is simulated, so every held-out pixel has a true label. Teacher (RGB + normals of the LiDAR) and student are trained on streets
in clear weather. The drive goes through other towns, three quarters of it by day and the last quarter at night. The student looks at every
frame; one is a keyframe where the share of pixels of which it is not sure is above what 95 % of its own validation frames have: nothing is
tuned to the night. The other bag holds as many frames of the same drive, at a fixed rate. Both hold camera, calibration, LiDAR, TF and
labels. `lix retrain` makes a student of each bag, once with the bag's labels and once with the teacher's pseudo-labels, which never saw a
true one. Scored on night frames of towns that nobody saw, and on clear ones against forgetting.
  old data only   as many steps on the old data alone: what more training gives without the drive
Each seed is another drive and another order of training; the models to start from are the same. Runs that are in FOLDER are not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

import recorded  # noqa: E402
from lix_core.bags.index import Options  # noqa: E402
from lix_core.bags.keyframes import KeyframePolicy, KeyframeSettings  # noqa: E402
from lix_core.bags.pseudo import PseudoSettings  # noqa: E402
from lix_core.data.world import WorldDataset  # noqa: E402
from lix_core.files import save_image  # noqa: E402
from lix_core.labels import STREET  # noqa: E402
from lix_core.runtime.bundle import Bundle  # noqa: E402
from lix_core.runtime.segmenter import Segmenter  # noqa: E402
from lix_core.training.config import Config, from_dict, override  # noqa: E402
from lix_core.training.cpu import keep_freed_memory  # noqa: E402
from lix_core.training.report import captioned  # noqa: E402
from lix_core.training.retrain import Retraining, answer, bundle_of, retrain, score  # noqa: E402
from lix_core.training.run import fit  # noqa: E402
from lix_core.viz import colorize, contact_sheet  # noqa: E402
from lix_core.world.drive import Rig, WorldFrame  # noqa: E402
from lix_core.world.farm import render  # noqa: E402
from lix_core.world.folder import WorldFolder  # noqa: E402
from lix_core.world.source import LiveDrive  # noqa: E402

FOLDERS = {"day/train": ("clear", 201, 400), "day/val": ("clear", 202, 40), "night/test": ("night", 203, 60)}
"""Rendered frames: weather, seed, number."""
DRIVE = (("clear", 360), ("night", 120))
"""Of a recorded drive: weather and frames, one a second at 8 m/s."""
LEAST_CONFIDENCE, KNOWN_SHARE = 0.6, 0.95
NS = 10**9
BASE = {
    "data": {"x": "normals", "crop": [160, 256], "scale": [0.7, 1.4], "batch": 6, "workers": 0},
    "loss": {"dice": 0.5, "class_weight_power": 0.3},
    "optim": {"steps": 600, "steps_per_epoch": 100, "lr": 1.5e-3, "encoder_lr": 0.5, "warmup": 20, "ema": 0.95},
    "trainer": {"val_every": 0, "sheet_frames": 0},
    "distill": {"method": "none", "class_weights": True, "lix": {"tau": 1.0}},
}
STEPS = {"teacher": 150, "student": 250}
ARMS = {
    "labels of keyframes": ("keyframes", "bag"),
    "labels at a fixed rate": ("rate", "bag"),
    "pseudo-labels of keyframes": ("keyframes", "pseudo"),
    "pseudo-labels at a fixed rate": ("rate", "pseudo"),
    "old data only": ("", ""),
}


def base(work: Path, kind: str, *changes: str) -> Config:
    tree = json.loads(json.dumps(BASE))
    tree["data"]["sources"] = [{"dataset": "world", "root": str(work / "day"), "split": "train", "options": {"geometry": "lidar"}}]
    tree["data"]["test"] = {"dataset": "world", "root": str(work / "day"), "split": "val", "options": {"geometry": "lidar"}}
    for change in (f"model.kind={kind}", *changes):
        override(tree, change)
    return from_dict(tree)


def rendered(work: Path) -> None:
    from lix_core.world.drive import Drive

    for name, (weather, seed, frames) in FOLDERS.items():
        drive = Drive(seed, Rig(), weather, 4, 8.0, 10.0)
        render(WorldFolder.create(work / name, drive, frames), drive, 1, lambda: None)


def drive(seed: int) -> Iterator[tuple[str, WorldFrame]]:
    """Weather and frame after frame of a drive."""
    for part, (weather, frames) in enumerate(DRIVE):
        streets = LiveDrive(1000 + 10 * seed + part, Rig(), weather, 8.0, 1.0)
        for index in range(frames):
            yield weather, streets.frame(index, right=False)


def unsure_share(student: Segmenter, image: np.ndarray) -> float:
    """As the logger counts it out of the segmentation node's confidence."""
    return float((student.segment(image).confidence < LEAST_CONFIDENCE).mean())


def record(work: Path, seed: int, student: Segmenter) -> dict[str, Any]:
    """Write the two bags of a seed; what is in them."""
    note = work / f"bags{seed}" / "bags.json"
    if note.exists():
        return json.loads(note.read_text())
    days = WorldDataset(work / "day", "val")
    shares = [unsure_share(student, days[index].image) for index in range(len(days))]
    limit = float(np.quantile(shares, KNOWN_SHARE))
    policy = KeyframePolicy(KeyframeSettings(uncertainty=limit, view=0.0, interval=0.0))
    frames, kept = [], []
    for second, (weather, frame) in enumerate(drive(seed)):
        frames.append((weather, frame))
        if policy.image(second * NS, uncertainty=unsure_share(student, frame.rgb)):
            kept.append(second)
    rate = np.linspace(0, len(frames) - 1, len(kept)).round().astype(int).tolist()
    found = {"frames": len(frames), "kept": len(kept), "limit": round(limit, 4)}
    for name, chosen in (("keyframes", kept), ("rate", rate)):
        shutil.rmtree(work / f"bags{seed}" / name, ignore_errors=True)  # of a time that was interrupted
        recorded.write(work / f"bags{seed}" / name, messages([(second, frames[second][1]) for second in chosen]))
        found[f"{name} at night"] = sum(frames[second][0] == "night" for second in chosen)
    note.write_text(json.dumps(found))
    return found


def messages(frames: list[tuple[int, WorldFrame]]) -> Iterator[recorded.Recorded]:
    first = recorded.START + frames[0][0] * NS
    yield recorded.Recorded("/label_names", first, recorded.text(STREET.to_json()))
    yield recorded.Recorded("/tf_static", first, recorded.transform("camera", "lidar", frames[0][1].camera_from_lidar))
    for second, frame in frames:
        stamp = recorded.START + second * NS
        yield recorded.Recorded("/camera_info", stamp, recorded.camera_info(stamp, frame.camera))
        yield recorded.Recorded("/image", stamp, recorded.image(stamp, frame.rgb, "rgb8"))
        yield recorded.Recorded("/points", stamp, recorded.cloud(stamp, frame.cloud))
        yield recorded.Recorded("/labels", stamp, recorded.image(stamp, frame.labels, "mono8"))


def scores(work: Path, bundle: Bundle) -> dict[str, Any]:
    """mIoU and IoU on night frames and on clear ones, of the model as the robot runs it."""
    segmenter = Segmenter(bundle)
    night, day = score(segmenter, WorldDataset(work / "night", "test")), score(segmenter, WorldDataset(work / "day", "val"))
    return {"night": night["miou"], "day": day["miou"], "iou": night["iou"]}


def one_arm(work: Path, arm: str, seed: int) -> dict[str, Any]:
    bag, labels = ARMS[arm]
    out, begun = work / f"{arm.replace(' ', '-')}-{seed}", time.monotonic()
    if not bag:
        changes = [f"optim.steps={STEPS['student']}", f"optim.lr={0.3 * BASE['optim']['lr']}", f"seed={seed}", "optim.steps_per_epoch=50"]
        run = fit(base(work, "student", *changes), out, quiet=True, start=work / "student")
        bundle = bundle_of(Path(run.folder), work / f"{out.name}.lix", (work / "student",))
    else:
        task = Retraining(
            bags=(work / f"bags{seed}" / bag,),
            out=out,
            teacher=work / "teacher",
            student=work / "student",
            labels=labels,
            # Pseudo-labels are the teacher's own opinion, from which it learns nothing.
            teacher_steps=STEPS["teacher"] if labels == "bag" else 0,
            student_steps=STEPS["student"],
            held_out=0.05,
            forgetting=1.0,
            extraction=Options(geometry="lidar"),
            pseudo=PseudoSettings(),
            overrides=(f"seed={seed}", "optim.steps_per_epoch=50"),
        )
        retrain(task, quiet=True)
        bundle = Bundle.load(out / "candidate.lix")
    return {"arm": arm, "seed": seed, **scores(work, bundle), "minutes": round((time.monotonic() - begun) / 60, 1)}


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def written(out: Path, before: dict[str, Any], bags: dict[int, dict[str, Any]], rows: list[dict[str, Any]], teacher: float) -> None:
    command = shlex.join(["python", "bench/retrain.py", *sys.argv[1:]])
    protocol = {
        "command": command,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, one thread",
        "rendered": {name: dict(zip(("weather", "seed", "frames"), what)) for name, what in FOLDERS.items()},
        "steps": {"base": BASE["optim"]["steps"], **STEPS},
        "bags": bags,
        "teacher on clear val frames": teacher,
    }
    out.with_suffix(".json").write_text(json.dumps({"before": before, "rows": rows, "protocol": protocol}, indent=1) + "\n")
    lines = [
        "# Retraining from a drive that ends at night",
        "",
        f"`{command}`, which tells what is done. mIoU, mean and standard deviation over seeds; points are against the student before.",
        "",
        "| student | seeds | night (held out) | points | clear (old) | points |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| before, trained by day | | {before['night']:.3f} | | {before['day']:.3f} | |",
    ]
    for arm in ARMS:
        found = [row for row in rows if row["arm"] == arm]
        if not found:
            continue
        cells = []
        for key in ("night", "day"):
            values = [row[key] for row in found]
            cells += [spread(values), f"{100 * (mean(values) - before[key]):+.1f}"]
        lines.append(f"| {arm} | {len(found)} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Bags",
        "",
        "| seed | frames of the drive | keyframes | of them at night | at a fixed rate | of them at night |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {seed} | {bag['frames']} | {bag['kept']} | {bag['keyframes at night']} | {bag['kept']} | {bag['rate at night']} |"
            for seed, bag in bags.items()
        ),
    ]
    classes = list(before["iou"])
    lines += ["", "## IoU at night", "", "| student | " + " | ".join(classes) + " |", "| --- |" + " --- |" * len(classes)]
    for name, found in {"before": [before], **{arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}}.items():
        if found:
            lines.append(f"| {name} | " + " | ".join(f"{mean(row['iou'][c] or 0.0 for row in found):.2f}" for c in classes) + " |")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def picture(work: Path, seed: int, frames: tuple[int, ...] = (4, 20, 36, 52)) -> np.ndarray:
    """(H, W, 3) uint8: night frames that nobody saw, their labels, and what the student says before and after."""
    data = WorldDataset(work / "night", "test")
    students = {"before": work / "before.lix"}
    for arm in ("pseudo-labels of keyframes", "labels of keyframes"):
        students[f"after, {arm}"] = work / f"{arm.replace(' ', '-')}-{seed}" / "candidate.lix"
    segmenters = {name: Segmenter(bundle) for name, bundle in students.items()}
    cells = []
    for index in frames:
        sample = data[index]
        cells += [captioned(sample.image, "RGB"), captioned(colorize(sample.labels, data.labels), "labels")]
        cells += [captioned(colorize(answer(s, sample.image, data.labels), data.labels), name) for name, s in segmenters.items()]
    return contact_sheet(cells, data.labels, columns=5, cell_width=320)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "retrain_night")
    parser.add_argument("--picture", type=Path, help="write some night frames, before and after, into this file")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    torch.set_num_threads(1)
    rendered(args.work)
    teacher = fit(base(args.work, "teacher"), args.work / "teacher", quiet=True)
    fit(base(args.work, "student"), args.work / "student", quiet=True)
    start = bundle_of(args.work / "student", args.work / "before.lix", ())
    before, bags, rows = scores(args.work, start), {}, []
    print(f"before: night {before['night']:.3f}, day {before['day']:.3f}; teacher by day {teacher.test['miou']:.3f}", flush=True)
    for seed in args.seeds:
        bags[seed] = record(args.work, seed, Segmenter(start))
        print(bags[seed], flush=True)
        for arm in args.arms:
            done = args.work / f"{arm.replace(' ', '-')}-{seed}.json"
            if not done.exists():
                done.write_text(json.dumps(one_arm(args.work, arm, seed)))
            rows.append(json.loads(done.read_text()))
            print(f"{arm}, seed {seed}: night {rows[-1]['night']:.3f}, day {rows[-1]['day']:.3f}", flush=True)
            written(args.out, before, bags, rows, round(teacher.test["miou"], 4))
    if args.picture:
        save_image(args.picture, picture(args.work, args.seeds[0]))


if __name__ == "__main__":
    main()
