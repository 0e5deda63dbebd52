"""`lix bag`: what is in bags, what they are good for, and their frames as files to learn from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional

import typer

from lix_core.cli.label import label
from lix_core.errors import SourceError
from lix_core.progress import FrameCount, progress_bar
from lix_core.workers import cores

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Bags: what is in them, and their frames to learn from.")
BAGS = typer.Argument(..., help="Bags (folders, .mcap, .db3 or .bag files), or folders of bags.")
TOPIC = "Found by itself where left out; `none`: do without."
IMAGE = typer.Option("", "--image", help="Image topic of the camera. Found by itself where left out.")
CAMERA_INFO = typer.Option("", "--camera-info", help=f"Its calibration. {TOPIC}")
RIGHT_IMAGE = typer.Option("", "--right-image", help=f"Image topic of the pair's right camera. {TOPIC}")
RIGHT_CAMERA_INFO = typer.Option("", "--right-camera-info", help=f"Its calibration. {TOPIC}")
DEPTH = typer.Option("", "--depth", help=f"Depth images, registered to the camera. {TOPIC}")
POINTS = typer.Option("", "--points", help=f"Clouds of the LiDAR. {TOPIC}")
LABEL_TOPIC = typer.Option("", "--label-topic", help=f"Class ids of the image's pixels (mono8). {TOPIC}")
LABEL_NAMES = typer.Option("", "--label-names", help=f"What the ids mean (std_msgs/String, JSON). {TOPIC}")
GEOMETRY = typer.Option("auto", help="What depth is made of: depth, stereo, lidar, none; auto takes the first that the bag has.")
EVERY = typer.Option(1, min=1, help="Keep one image in N.")
BEGIN = typer.Option(0.0, "--from", min=0.0, help="Begin here, in seconds since the bag's first message.")
END = typer.Option(0.0, "--to", min=0.0, help="End before, in seconds since the bag's first message; 0: the bag's end.")
SLOP = typer.Option(0.02, min=0.0, help="Largest difference between the stamps of an image and its partner [s].")
OFFSET = typer.Option(0.0, help="By how much the stamps of the depth's sensor are late [s].")
CLOCK = typer.Option("header", help="Whose stamps count: header (the sensors') or recorded (the recorder's).")
EXTRINSICS = typer.Option("", help="Pose of the LiDAR in the camera's optical frame, 'x y z qx qy qz qw'; left out: the bag's TF.")
MAX_DISPARITY = typer.Option(128, help="Largest disparity searched in stereo pairs [pixels], a multiple of 16.")


def options_of(**given: object) -> "Options":  # noqa: F821
    """The options of a command, checked. Raises SourceError."""
    from lix_core.bags.index import Options
    from lix_core.bags.topics import ROLES

    topics = {role: str(given.pop(role)) for role in ROLES if role in given}
    text = str(given.pop("extrinsics"))
    try:
        extrinsics = tuple(float(number) for number in text.replace(",", " ").split())
    except ValueError:
        raise SourceError(f"--extrinsics takes seven numbers, x y z qx qy qz qw; got {text!r}") from None
    return Options(topics={role: topic for role, topic in topics.items() if topic}, extrinsics=extrinsics, **given)


def found_bags(paths: list[Path]) -> list[Path]:
    """The bags that the arguments name, each once. Raises SourceError."""
    from lix_core.bags.reader import bags_in

    return list(dict.fromkeys(bag for path in paths for bag in bags_in(path)))


def each(bags: list[Path], tell: Callable[[Path], Sequence[str]]) -> None:
    """Tell of each bag, and what is at fault with it; a bag that cannot be read does not keep the others from being told of.

    Raises SourceError where all of them cannot be read, typer.Exit(1) where anything is at fault.
    """
    failed, faults = [], 0
    for bag in bags:
        try:
            faults += len(tell(bag))
        except SourceError as error:
            failed.append(str(error))
    if len(failed) == len(bags):
        raise SourceError("; ".join(failed))
    for error in failed:
        print(f"fault: {error}")
    if failed or faults:
        raise typer.Exit(1)


@app.command()
def info(bags: list[Path] = BAGS) -> None:
    """List the topics of bags: types, messages, and the role that each would have."""
    from lix_core.bags.reader import Bag, whole_of
    from lix_core.bags.topics import find_topics

    def tell(bag: Bag) -> list[str]:
        seconds = (bag.end - bag.start) / 1e9
        print(f"{bag.path}: {bag.count} messages in {seconds:.1f} s" + (", damaged" if bag.faults else ""))
        roles, remarks = find_topics(bag)
        for topic in sorted(bag.topics, key=lambda t: t.name):
            rate = f"{(topic.count - 1) / seconds:.1f} Hz" if topic.count > 1 and seconds > 0 else ""
            latched = "latched" if topic.latched else ""
            print(f"  {topic.name:40} {topic.type:34} {topic.count:7} {rate:>9} {latched:7} {roles.role_of(topic.name)}".rstrip())
        for line in [*(f"remark: {r}" for r in remarks), *(f"fault: {f}" for f in bag.faults)]:
            print(f"  {line}")
        return bag.faults

    each(found_bags(bags), lambda path: whole_of(path, tell))


@app.command()
def check(
    bags: list[Path] = BAGS,
    image: str = IMAGE,
    camera_info: str = CAMERA_INFO,
    right_image: str = RIGHT_IMAGE,
    right_camera_info: str = RIGHT_CAMERA_INFO,
    depth: str = DEPTH,
    points: str = POINTS,
    labels: str = LABEL_TOPIC,
    label_names: str = LABEL_NAMES,
    geometry: str = GEOMETRY,
    every: int = EVERY,
    begin: float = BEGIN,
    end: float = END,
    slop: float = SLOP,
    offset: float = OFFSET,
    clock: str = CLOCK,
    extrinsics: str = EXTRINSICS,
    max_disparity: int = MAX_DISPARITY,
    json_file: Optional[Path] = typer.Option(None, "--json", help="Write the reports into this file too."),
) -> None:
    """Report rates, gaps, offsets between sensors, frames without partner, and the frames that would be extracted."""
    options = options_of(**{name: value for name, value in locals().items() if name not in ("bags", "json_file")})
    from lix_core.bags.check import check_all, lines_of
    from lix_core.files import make_place, save

    if json_file:
        make_place(json_file)
    reports = check_all(found_bags(bags), options)
    if json_file:
        save(json_file, (json.dumps([report.to_dict() for report in reports], indent=1) + "\n").encode())
    for report in reports:
        print("\n".join(lines_of(report, options)))
    if all(report.faults and not report.streams for report in reports):
        raise typer.Exit(2)
    if any(report.faults for report in reports):
        raise typer.Exit(1)


@app.command()
def extract(
    bags: list[Path] = BAGS,
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the frames; goes on with one that the same options began."),
    image: str = IMAGE,
    camera_info: str = CAMERA_INFO,
    right_image: str = RIGHT_IMAGE,
    right_camera_info: str = RIGHT_CAMERA_INFO,
    depth: str = DEPTH,
    points: str = POINTS,
    labels: str = LABEL_TOPIC,
    label_names: str = LABEL_NAMES,
    geometry: str = GEOMETRY,
    every: int = EVERY,
    begin: float = BEGIN,
    end: float = END,
    slop: float = SLOP,
    offset: float = OFFSET,
    clock: str = CLOCK,
    extrinsics: str = EXTRINSICS,
    max_disparity: int = MAX_DISPARITY,
    jobs: int = typer.Option(0, min=0, help="Processes; 0 takes one per core."),
) -> None:
    """Write the frames of bags into files: rectified image, depth, labels. Run again, it goes on where it was stopped."""
    options = options_of(**{name: value for name, value in locals().items() if name not in ("bags", "out", "jobs")})
    from lix_core.bags.extract import extract as run

    with progress_bar() as progress:
        made = FrameCount(progress, "extracting")

        def on_start(frames: int, done: int) -> None:
            made.update(total=frames, completed=done)

        outcomes = run(found_bags(bags), out, options, jobs or cores(), on_start, made.count)
    for outcome in outcomes:
        frames = outcome.done + outcome.before
        print(f"{outcome.name}: {frames} frames ({outcome.done} new), {outcome.with_depth} with depth, {outcome.with_labels} with labels")
        print("".join(f"  {line}\n" for line in outcome.lines()), end="")
    print(f"in {out}")
    if any(outcome.faults or outcome.left_out for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def repair(
    bags: list[Path] = BAGS,
    out: Optional[Path] = typer.Option(
        None, "--out", "-o", help="Folder of the new bag, where one is needed; for one bag. Left out: BAG_repaired."
    ),
) -> None:
    """Make bags whole: add the metadata.yaml that is missing, or copy every whole message to a new bag."""
    from lix_core.bags.repair import repair as run

    found = found_bags(bags)
    if out and len(found) > 1:
        raise SourceError(f"--out is the folder of one new bag, got {len(found)} bags; repair them one by one, or leave it out")

    def tell(bag: Path) -> list[str]:
        report = run(bag, out)
        print("\n".join([str(report), *(f"  fault: {fault}" for fault in report.faults)]))
        return report.faults

    each(found, tell)


app.command()(label)
