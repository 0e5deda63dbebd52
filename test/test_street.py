"""The model that ships: what it says of itself, and that it sees a street where everybody sees one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lix_core.labels import STREET, UNLABELLED
from lix_core.runtime.bundle import SHIPPED, Bundle, find_bundle
from lix_core.runtime.segmenter import Segmenter
from lix_core.runtime.sources import open_source
from lix_ros.paths import sample_clip


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(SHIPPED / "street.lix")


def test_street_is_small_and_tells_its_classes_licences_and_scores(bundle: Bundle) -> None:
    assert (SHIPPED / "street.lix").stat().st_size <= 10_000_000
    manifest = bundle.manifest
    assert manifest.labels == STREET
    assert "non-commercial" in manifest.licence
    assert all({"name", "licence", "source"} <= d.keys() for d in manifest.data)
    score = manifest.metrics["camvid val"]
    assert score["miou"] == pytest.approx(np.mean(list(score["iou"].values())), abs=1e-3)
    assert set(score["iou"]) == set(STREET.names)
    for word in ("Licence", "Known weaknesses", *STREET.names):
        assert word in bundle.card


def test_the_name_finds_the_shipped_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIX_MODEL_PATH", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert find_bundle("street") == SHIPPED / "street.lix"
    assert Segmenter().bundle.manifest.name == "street"


@pytest.mark.parametrize("max_pixels", [0, 480_000])
def test_street_sees_cars_road_and_trees_in_the_clip(bundle: Bundle, max_pixels: int) -> None:
    image, order = next(iter(open_source(sample_clip()))).load()
    result = Segmenter(bundle, max_pixels=max_pixels).segment(image, order)
    seen = {"car": [(235, 290), (250, 640)], "road": [(340, 580), (300, 520)], "tree": [(130, 610), (40, 30)]}
    for name, points in seen.items():
        for row, column in points:
            patch = result.mask[row - 4 : row + 5, column - 4 : column + 5]
            assert np.bincount(patch.ravel()).argmax() == STREET.id_of(name), (name, row, column)
    assert not (result.mask == UNLABELLED).any()
    share = np.bincount(result.mask.ravel(), minlength=len(STREET)) / result.mask.size
    assert share[STREET.id_of("car")] > 0.2 and share[STREET.id_of("road")] > 0.1 and share[STREET.id_of("pedestrian")] < 0.03
