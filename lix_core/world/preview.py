"""One picture of every sensor of the world, for judging many frames at a glance."""

from __future__ import annotations

from typing import Callable, Sequence

import cv2
import numpy as np

from lix_core import viz
from lix_core.geometry.lidar import project_cloud
from lix_core.labels import STREET
from lix_core.world.drive import WorldFrame

BACKGROUND, INK = (24, 24, 24), (235, 235, 235)
FONT = cv2.FONT_HERSHEY_SIMPLEX
CELL_WIDTH, COLUMNS, GAP = 440, 4, 3
NAME_WIDTH, CAPTION_HEIGHT = 150, 26
NEAR_M, FAR_M = 3.0, 80.0
"""Ends of the depth colours."""
AHEAD_M, BEHIND_M = 62.0, 6.0
"""Reach of the view from above, along the road."""


def sheet(frames: Sequence[WorldFrame]) -> np.ndarray:
    """Frames in columns, sensors in rows, over a legend: (H, W, 3) uint8 RGB."""
    blocks = [block(frames[i : i + COLUMNS]) for i in range(0, len(frames), COLUMNS)]
    width = max(b.shape[1] for b in blocks)
    blocks = [cv2.copyMakeBorder(b, 0, 10, 0, width - b.shape[1], cv2.BORDER_CONSTANT, value=BACKGROUND) for b in blocks]
    return np.vstack([*blocks, depth_scale(width), viz.legend(STREET, width)])


def block(frames: Sequence[WorldFrame]) -> np.ndarray:
    columns = [[caption(f), *(cell(picture(f)) for picture in SENSORS.values())] for f in frames]
    names = [np.full((CAPTION_HEIGHT, NAME_WIDTH, 3), BACKGROUND, np.uint8)]
    names += [name_cell(name, below.shape[0]) for name, below in zip(SENSORS, columns[0][1:])]
    return np.hstack([np.vstack(rows) for rows in (names, *columns)])


def cell(image: np.ndarray) -> np.ndarray:
    height = max(1, round(image.shape[0] * CELL_WIDTH / image.shape[1]))
    shrinks = image.shape[1] > CELL_WIDTH
    small = cv2.resize(image, (CELL_WIDTH, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return cv2.copyMakeBorder(small, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=BACKGROUND)


def caption(frame: WorldFrame) -> np.ndarray:
    strip = np.full((CAPTION_HEIGHT, CELL_WIDTH + GAP, 3), BACKGROUND, np.uint8)
    return put(strip, f"{frame.weather}   street {frame.scene_seed}, frame {frame.index}", (4, 18))


def name_cell(name: str, height: int) -> np.ndarray:
    strip = np.full((height, NAME_WIDTH, 3), BACKGROUND, np.uint8)
    for line, text in enumerate(name.split("\n")):
        put(strip, text, (6, height // 2 + 18 * line))
    return strip


def put(image: np.ndarray, text: str, at: tuple[int, int], scale: float = 0.48, color: tuple[int, int, int] = INK) -> np.ndarray:
    return cv2.putText(image, text, at, FONT, scale, color, 1, cv2.LINE_AA)


def depth_scale(width: int) -> np.ndarray:
    """The colours of depth, with metres beneath them."""
    strip = np.full((44, width, 3), BACKGROUND, np.uint8)
    left, right = NAME_WIDTH, width - GAP
    depths = NEAR_M * (FAR_M / NEAR_M) ** np.linspace(0.0, 1.0, right - left, dtype=np.float32)
    strip[6:20, left:right] = viz.depth_color(depths[None], NEAR_M, FAR_M)
    put(strip, "depth [m]", (6, 18))
    for metres in (3, 5, 10, 20, 40, 80):
        x = left + round((right - left - 1) * np.log(metres / NEAR_M) / np.log(FAR_M / NEAR_M))
        text_width = cv2.getTextSize(str(metres), FONT, 0.45, 1)[0][0]
        put(strip, str(metres), (min(x, right - text_width), 38), 0.45)
    return strip


def instance_colors(frame: WorldFrame) -> np.ndarray:
    """A colour of its own for each countable thing, over a faint picture of the rest."""
    ids = frame.instances.astype(np.float32)
    hue = (ids * 0.618034 % 1.0 * 180.0).astype(np.uint8)  # the golden ratio keeps neighbouring ids apart
    vivid = cv2.cvtColor(cv2.merge([hue, np.full_like(hue, 200), np.full_like(hue, 255)]), cv2.COLOR_HSV2RGB)
    faint = cv2.cvtColor(cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2GRAY) // 3, cv2.COLOR_GRAY2RGB)
    return np.where((frame.instances > 0)[..., None], vivid, faint)


def lidar_over_image(frame: WorldFrame) -> np.ndarray:
    sparse = project_cloud(frame.cloud, frame.camera, frame.camera_from_lidar)
    faint = cv2.convertScaleAbs(frame.rgb, alpha=0.45)
    return viz.draw_depth_points(faint, sparse, NEAR_M, FAR_M)


def lidar_from_above(frame: WorldFrame) -> np.ndarray:
    """The cloud seen from above, driving to the right, coloured by height; strong echoes are brighter."""
    height, width = round(CELL_WIDTH * frame.camera.height / frame.camera.width), CELL_WIDTH
    scale = width / (AHEAD_M + BEHIND_M)
    x, y, z, intensity = frame.cloud[:, :4].T
    column, row = ((x + BEHIND_M) * scale).astype(int), (height / 2 - y * scale).astype(int)
    seen = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    order = np.flatnonzero(seen)[np.argsort(z[seen], kind="stable")]  # the highest on top
    # Heights from the road, about 1.7 m below the sensor, to 4 m above it; the map's dark ends are left out.
    level = (60 + 180 * np.clip((z[order] + 1.8) / 5.8, 0, 1)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(level[:, None], cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)[:, 0]
    picture = np.full((height, width, 3), BACKGROUND, np.uint8)
    picture[row[order], column[order]] = colours * (0.5 + 0.5 * np.sqrt(intensity[order]))[:, None]
    car = np.array([[2.0, 0.0], [-2.2, 0.9], [-2.2, -0.9]]) * scale + [BEHIND_M * scale, height / 2]
    return cv2.fillPoly(picture, [np.rint(car).astype(np.int32)], INK, cv2.LINE_AA)


SENSORS: dict[str, Callable[[WorldFrame], np.ndarray]] = {
    "left camera": lambda f: f.rgb,
    "right camera": lambda f: f.right,
    "depth": lambda f: viz.depth_color(f.depth, NEAR_M, FAR_M),
    "normals\nred: to the left\ngreen: up\nblue: to the eye": lambda f: viz.normals_color(f.normals),
    "labels": lambda f: viz.colorize(f.labels, STREET),
    "instances": instance_colors,
    "LiDAR\nover the camera": lidar_over_image,
    "LiDAR\nfrom above": lidar_from_above,
}
"""Name of each row -> its picture."""
