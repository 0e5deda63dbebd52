"""`lix world`: the simulated street, rendered into files or shown on one sheet."""

from __future__ import annotations

from pathlib import Path

import typer

from lix_core.files import make_picture_folder, save_image
from lix_core.progress import FrameCount, progress_bar
from lix_core.workers import cores

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="A small simulated street that knows the truth: render or preview it.")
SIZE = typer.Option("640x192", help="Width x height of the cameras [pixels]; the horizontal field of view stays.")
SEED = typer.Option(0, min=0, help="Of everything: the same seed gives the same bytes.")
WEATHER = typer.Option("", help="One weather for every street (an unknown name lists them); empty draws one for each.")


@app.command()
def render(
    out: Path = typer.Option(
        ..., "--out", "-o", help="Folder for the frames, in the layout of Virtual KITTI 2; goes on with one that was begun."
    ),
    frames: int = typer.Option(32, min=1, help="Number of frames."),
    seed: int = SEED,
    size: str = SIZE,
    weather: str = WEATHER,
    frames_per_scene: int = typer.Option(4, min=1, help="Frames along one street before the next."),
    spacing: float = typer.Option(8.0, help="Distance driven between two frames [m]."),
    jobs: int = typer.Option(0, min=0, help="Processes; 0 takes one per core. The files are the same."),
) -> None:
    """Render every sensor of a drive into a folder. Run again, it goes on where it was stopped."""
    from lix_core.world import farm
    from lix_core.world.drive import Drive
    from lix_core.world.folder import WorldFolder
    from lix_core.world.source import rig_of

    drive = Drive(seed, rig_of(size), weather, frames_per_scene, spacing)
    if not WorldFolder.is_one(out):
        drive.scene_of(0)  # what cannot be built is told before the folder is made
    folder = WorldFolder.create(out, drive, frames)
    left = sum(map(len, folder.missing().values()))
    with progress_bar() as progress:
        rendered = FrameCount(progress, "rendering", total=frames, completed=frames - left)
        farm.render(folder, drive, jobs or cores(), rendered.count)
    speed = f"{rendered.done} rendered, {rendered.rate:.1f} frames/s" if rendered.done else "all were there"
    print(f"{frames} frames of {folder.scenes} streets in {out} ({speed})")


@app.command()
def preview(
    out: Path = typer.Option(Path("world.png"), "--out", "-o", help="The picture (PNG or JPEG by its suffix)."),
    frames: int = typer.Option(8, min=1, max=64, help="Number of streets on the sheet."),
    seed: int = SEED,
    size: str = SIZE,
    weather: str = typer.Option("", help="One weather for every street; empty goes through all of them."),
) -> None:
    """Draw every sensor of a few streets on one sheet."""
    from lix_core.world.drive import Drive
    from lix_core.world.preview import sheet
    from lix_core.world.source import rig_of
    from lix_core.world.weather import WEATHERS

    make_picture_folder(out)
    weathers = [weather] if weather else list(WEATHERS)
    drives = [Drive(seed, rig_of(size), weathers[i % len(weathers)], frames_per_scene=1) for i in range(frames)]
    pictures = []
    with progress_bar() as progress:
        task = progress.add_task("rendering", total=frames, note="")
        for index, drive in enumerate(drives):
            pictures.append(drive.frame(index))
            progress.update(task, advance=1, note=pictures[-1].weather)
    save_image(out, sheet(pictures))
    print(f"{frames} streets on {out}")
