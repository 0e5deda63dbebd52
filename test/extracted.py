"""Small extractions written by hand: frames on disk as `lix bag extract` leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lix_core.bags.extract import Extraction
from lix_core.bags.sensors import to_file
from lix_core.camera import Camera
from lix_core.files import save_image
from lix_core.labels import LabelSet

CAMERA = Camera.pinhole(96, 64, 60.0)
Frames = Mapping[int, "dict[str, np.ndarray]"]
"""Stamp -> image (64, 96, 3) uint8 RGB, and maybe depth (64, 96) [m] and labels (64, 96) uint8."""


def write_extraction(root: Path, bags: Mapping[str, Frames], camera: Camera | None = CAMERA, labels: LabelSet | None = None) -> Extraction:
    for bag, frames in bags.items():
        folder = root / bag
        for kind in ("image", "depth", "labels"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        rows = []
        for stamp, arrays in frames.items():
            row = {"stamp": stamp, "reasons": ["interval"], "partners": {}, "geometry": "depth" if "depth" in arrays else "none"}
            for kind in ("image", "depth", "labels"):
                row[kind] = f"{kind}/{stamp}.png" if kind in arrays else None
                if kind in arrays:
                    save_image(folder / row[kind], to_file(arrays[kind]) if kind == "depth" else arrays[kind])
            rows.append(row)
        (folder / "frames.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        k = list(camera.k) if camera else None
        content = {"width": 96, "height": 64, "k": k, "baseline": 0.0, "frame_id": "camera", "rectified": "as it came"}
        (folder / "camera.json").write_text(json.dumps(content))
        if labels:
            (folder / "labels.json").write_text(labels.to_json())
    entries = [{"name": bag, "path": f"/{bag}", "fingerprint": bag} for bag in bags]
    (root / "extraction.json").write_text(json.dumps({"format": 1, "lix": "0", "options": {}, "bags": entries}))
    return Extraction.open(root)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8)


def patchwork(seed: int, classes: int) -> np.ndarray:
    """(64, 96) uint8 ids in squares of 8 pixels, some unlabelled."""
    ids = np.random.default_rng(seed).integers(0, classes + 1, (8, 12))
    return np.repeat(np.repeat(np.where(ids == classes, 255, ids), 8, 0), 8, 1).astype(np.uint8)
