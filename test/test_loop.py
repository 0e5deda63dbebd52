"""The loop closes: a drive is recorded over Fast DDS, extracted, learned from, and the segmentation node runs what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2: neither an installation is sourced nor are the wheels installed")
pytest.importorskip("embreex", reason="the extra `sim` is not installed")
torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from sensor_msgs.msg import Image  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from lix_core.bags.extract import Extraction  # noqa: E402
from lix_core.bags.reader import bags_in  # noqa: E402
from lix_core.cli.main import app  # noqa: E402
from lix_core.data.bag import BagDataset  # noqa: E402
from lix_core.geometry.poses import pose_from_matrix  # noqa: E402
from lix_core.labels import STREET  # noqa: E402
from lix_core.world.drive import Rig  # noqa: E402
from ros import Peer, exchange, image_message, node_starter, pixels_of, wait_for  # noqa: E402

FRAMES = 12
RUN = """
data:
  sources: [{{dataset: bag, root: {root}, split: all}}]
  x: normals
  crop: [64, 96]
  scale: [1.0, 1.0]
  batch: 2
  workers: 0
model: {{encoder: mobilenetv3_small_050, weights: none}}
optim: {{steps: 4, steps_per_epoch: 2, warmup: 1}}
trainer: {{accelerator: cpu, val_every: 0, sheet_frames: 0, teacher_frames: 2}}
distill: {{method: lix}}
"""


def lix(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_recorded_drive_becomes_a_model_that_the_segmentation_node_runs(peer: Peer, tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "recordings"
    with node_starter("logger_node", tmp_path, diagnostics_period=0.1, mode="everything", disk_floor=0) as record:
        logger, told = record(folder=str(folder)), peer.diagnostics("logger")
        with node_starter("replay_node", tmp_path, input="world:4", world_size="96x64", rate=5.0) as replay:
            player = replay()
            wait_for(
                lambda: told.latest and int(told.value("/labels received").split()[0] or 0) >= FRAMES,
                lambda: f"the last was {told.latest}",
                90.0,
            )
            assert player.stop() == 0
        assert logger.stop() == 0
    (bag,) = bags_in(folder)
    lix("bag", "extract", bag, "--out", tmp_path / "frames", "--geometry", "stereo")
    frames = Extraction.open(tmp_path / "frames").frames
    assert len(frames) >= FRAMES - 1 and all(frame.depth and frame.labels for frame in frames)
    data = BagDataset(tmp_path / "frames", "all", x="normals")
    assert data.labels.names == STREET.names and len(np.unique(data[5].labels)) >= 3
    # LiDAR and the true depth are in the bag too. Where the LiDAR is, TF says where tf2_msgs is installed.
    pose = " ".join(f"{value:.9f}" for value in pose_from_matrix(Rig().camera_from_lidar))
    for geometry, options in (("lidar", ("--extrinsics", pose)), ("depth", ())):
        lix("bag", "extract", bag, "--out", tmp_path / geometry, "--geometry", geometry, "--to", "1.5", *options)
    depths = {g: BagDataset(tmp_path / g, "all", x="depth")[1] for g in ("frames", "lidar", "depth")}
    truth, known = depths.pop("depth").x[0], depths["lidar"].known & depths["frames"].known
    for name, limit in (("lidar", 0.15), ("frames", 0.3)):  # in units of X; at this size, cars are a pixel or two of disparity
        assert known.sum() > 200 and np.median(np.abs(depths[name].x[0] - truth)[known]) < limit, name
    # Two epochs of so few steps leave a teacher at chance, which is refused with good reason.
    monkeypatch.setattr("lix_core.training.run.Run._check_teacher", lambda *_: None)
    (tmp_path / "run.yaml").write_text(RUN.format(root=tmp_path / "frames"))
    lix("train", "teacher", tmp_path / "run.yaml", "--out", tmp_path / "teacher")
    lix("distill", tmp_path / "run.yaml", "--teacher", tmp_path / "teacher", "--out", tmp_path / "student")
    lix("export", tmp_path / "student", "--teacher", tmp_path / "teacher", "--out", tmp_path / "student.lix")
    with node_starter("segmentation_node", tmp_path, model=str(tmp_path / "student.lix")) as segment:
        segment()
        masks = peer.listen(Image, "/segmentation/mask")
        mask = exchange(peer.publisher(Image, "/image"), masks, image_message(data[0].image, "rgb8"))
    assert pixels_of(mask).shape == data[0].image.shape[:2] and pixels_of(mask).max() < len(STREET)
