"""A drive through simulated streets: frame after frame of every sensor, each a pure function of seed and index."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from lix_core.camera import Camera
from lix_core.errors import GeometryError
from lix_core.world.render import Renderer
from lix_core.world.scene import Scene
from lix_core.world.sensors import Lidar, develop, exposure_of
from lix_core.world.street import build_street
from lix_core.world.weather import check_weather

ROOM_M = 110.0
"""Length of every street's path that a drive may use."""
CAR_FROM_OPTICAL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""Axes of a camera that looks ahead (x right, y down, z forward) in the frame of the car (x forward, y left, z up)."""


@dataclass(frozen=True)
class Rig:
    """The sensors on the car.

    camera: the left camera, rectified, with no baseline of its own. baseline: of the stereo pair [m]. height: of the cameras above
    the road [m]. lidar, lidar_offset: the LiDAR and its place from the left camera in the car's axes, (forward, left, up) [m].
    """

    camera: Camera = Camera.pinhole(640, 192, 370.0)
    baseline: float = 0.54
    height: float = 1.65
    lidar: Lidar = field(default_factory=Lidar)
    lidar_offset: tuple[float, float, float] = (-0.27, 0.0, 0.08)

    def __post_init__(self) -> None:
        if not self.camera.is_rectified or self.camera.baseline:
            raise GeometryError("the camera of a rig must be rectified and the left one of its pair: Camera.pinhole makes such")
        if self.baseline <= 0 or self.height <= 0:
            raise GeometryError(f"baseline and height of a rig must be above 0 m, got {self.baseline} and {self.height}")

    @property
    def right_camera(self) -> Camera:
        """The right camera of the pair, its projection in the left one's frame."""
        c = self.camera
        return Camera.pinhole(c.width, c.height, c.fx, c.fy, c.cx, c.cy, self.baseline)

    @property
    def camera_from_lidar(self) -> np.ndarray:
        """(4, 4) float64 from the LiDAR's frame to the left camera's optical frame."""
        lidar_from_camera = CAR_FROM_OPTICAL.copy()
        lidar_from_camera[:3, 3] = -np.array(self.lidar_offset)
        return np.linalg.inv(lidar_from_camera)


@dataclass(frozen=True, eq=False)
class WorldFrame:
    """What every sensor says at one time.

    index: of the frame. time: [s] since the drive's first. scene_seed, weather: of the street. camera, right_camera: rectified.
    world_from_camera: (4, 4) float64 pose of the left camera's optical frame (world: x east, y north, z up) [m].
    rgb, right: (H, W, 3) uint8 RGB of the left and right camera. depth: (H, W) float32 z in the left camera [m], NaN = sky.
    normals: (H, W, 3) float32 unit, left optical frame, facing the camera, NaN = sky. labels: (H, W) uint8 ids in STREET.
    instances: (H, W) uint16, 0 = stuff. cloud: (N, 5) float32 x, y, z [m; LiDAR frame], intensity 0..1, ring.
    camera_from_lidar: (4, 4) float64.
    """

    index: int
    time: float
    scene_seed: int
    weather: str
    camera: Camera
    right_camera: Camera
    world_from_camera: np.ndarray
    rgb: np.ndarray
    right: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    cloud: np.ndarray
    camera_from_lidar: np.ndarray


class Drive:
    """An endless drive: some frames along one street, then on to the next.

    seed: of everything. weather: one of lix_core.world.weather.WEATHERS; empty draws one for each street. frames_per_scene: frames in
    one street, fewer where its length does not hold them. spacing: between frames [m]. rate: frames per second [Hz], for their times.

    Raises:
        GeometryError: an unknown weather, or numbers that are not above 0.
    """

    def __init__(
        self, seed: int, rig: Rig | None = None, weather: str = "", frames_per_scene: int = 4, spacing: float = 8.0, rate: float = 10.0
    ):
        if seed < 0 or frames_per_scene < 1 or not 0 < spacing < math.inf or not 0 < rate < math.inf:
            raise GeometryError(
                f"a drive needs a seed of at least 0, and frames per scene, spacing and rate above 0; got seed {seed}, "
                f"{frames_per_scene} frames, {spacing} m, {rate} Hz"
            )
        check_weather(weather)
        self.seed, self.rig, self.weather, self.spacing, self.rate = seed, rig or Rig(), weather, spacing, rate
        self.frames_per_scene = 1 + int(min(frames_per_scene - 1, ROOM_M // spacing))
        self._built: tuple[int, Renderer] | None = None

    def scene_of(self, index: int) -> tuple[int, Renderer]:
        """The seed of the street in which frame `index` lies, and the street; the last one is kept."""
        state = np.random.SeedSequence([self.seed, index // self.frames_per_scene]).generate_state(1)
        scene_seed = int(state[0])
        if self._built is None or self._built[0] != scene_seed:
            self._built = scene_seed, Renderer(build_street(scene_seed, self.weather))
        return self._built

    def frame(self, index: int, right: bool = True, cloud: bool = True) -> WorldFrame:
        """Frame `index` (from 0). Without `right` or `cloud` those are empty arrays, and the rest is the same, sooner."""
        if index < 0:
            raise GeometryError(f"frames of a drive count from 0, got {index}")
        scene_seed, renderer = self.scene_of(index)
        pose = self.pose(renderer.scene, scene_seed, index)
        streams = [np.random.default_rng([self.seed, index, stream]) for stream in range(3)]
        rig, weather = self.rig, renderer.scene.weather
        shifted = pose.copy()
        shifted[:3, 3] += pose[:3, 0] * rig.baseline
        # Each sensor from a thread of its own, so that what one does alone falls beside the rays of another.
        with ThreadPoolExecutor(3, thread_name_prefix="sensors") as sensors:
            left_view = sensors.submit(renderer.view, rig.camera, pose)
            right_view = sensors.submit(renderer.view, rig.camera, shifted) if right else None
            points = sensors.submit(rig.lidar.scan, renderer, pose @ rig.camera_from_lidar, streams[2]) if cloud else None
            left = left_view.result()
            exposure = exposure_of(left.radiance, weather)
            rgb = sensors.submit(develop, left.radiance, exposure, weather, streams[0])
            second = develop(right_view.result().radiance, exposure, weather, streams[1]) if right else np.zeros((0, 0, 3), np.uint8)
        return WorldFrame(
            index,
            index / self.rate,
            scene_seed,
            weather.name,
            rig.camera,
            rig.right_camera,
            pose,
            rgb.result(),
            second,
            left.depth,
            left.normals,
            left.labels,
            left.instances,
            points.result() if cloud else np.zeros((0, 5), np.float32),
            rig.camera_from_lidar,
        )

    def pose(self, scene: Scene, scene_seed: int, index: int) -> np.ndarray:
        """(4, 4) float64 world_from_camera of frame `index`: on the street's path, swaying a little as a car does."""
        rng = np.random.default_rng([scene_seed, 1])
        room = max(0.0, scene.path_length - (self.frames_per_scene - 1) * self.spacing)
        start = rng.uniform(0.0, min(room, ROOM_M))
        phase = rng.uniform(0.0, 2.0 * math.pi, 2)
        distance = start + (index % self.frames_per_scene) * self.spacing
        pitch, roll = math.radians(0.4) * math.sin(distance / 7.0 + phase[0]), math.radians(0.3) * math.sin(distance / 11.0 + phase[1])
        sway = np.eye(4)
        sway[:3, :3] = rotation_y(pitch) @ rotation_x(roll)
        sway[2, 3] = self.rig.height
        return scene.pose_at(distance) @ sway @ CAR_FROM_OPTICAL


def rotation_x(angle: float) -> np.ndarray:
    """(3, 3) rotation about x [rad]."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1.0, 0, 0], [0, c, -s], [0, s, c]])


def rotation_y(angle: float) -> np.ndarray:
    """(3, 3) rotation about y [rad]."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1.0, 0], [-s, 0, c]])
