"""The model that ships: what it says of itself, and that it sees a street where everybody sees one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lix_core.labels import STREET, UNLABELLED
from lix_core.pixels import to_rgb
from lix_core.runtime.bundle import SHIPPED, Bundle, find_bundle
from lix_core.runtime.segmenter import Segmenter
from lix_core.runtime.sources import open_source
from lix_ros.paths import sample_clip
from trees import write_image


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


def test_street_can_be_trained_on(bundle: Bundle, tmp_path: Path) -> None:
    """One step with a rate of zero: what may change is what the batch normalisations go by, which the bundle no longer has."""
    pytest.importorskip("lightning", reason="the extra `train` is not installed")
    from lix_core.cli.main import app
    from lix_core.data.sample import Sample, collate
    from lix_core.errors import TrainingError
    from lix_core.models.decoders import upsample
    from lix_core.training.module import outputs
    from lix_core.training.provenance import data_behind, line_of
    from lix_core.training.weights import load_network

    images = [to_rgb(*frame.load())[::2, ::2] for frame in list(open_source(sample_clip()))[::8]]
    for place, image in enumerate(images):
        write_image(tmp_path / "camvid" / "train" / "image" / f"{place}.png", image[..., ::-1])
        write_image(tmp_path / "camvid" / "train" / "label" / f"{place}.png", np.full(image.shape[:2], 3, np.uint8))
    options = ["optim.steps=1", "optim.lr=0", "optim.weight_decay=0", "optim.ema=0", "optim.warmup=0", "data.val=null", "data.workers=0"]
    run = [*options, "data.crop=[160, 192]", "data.batch=4", "data.scale=[1, 1]", "data.colour=0", "trainer.sheet_frames=0"]
    out, camvid = tmp_path / "run", f"camvid={tmp_path / 'camvid'}"
    done = CliRunner().invoke(app, ["train", "student", "street", *run, "--start", "street", "--data", camvid, "--out", str(out)])
    assert done.exit_code == 0, done.output
    (network, record), segmenter = load_network(out), Segmenter(bundle)
    assert record.start == hashlib.sha256((SHIPPED / "street.lix").read_bytes()).hexdigest()
    for image in images:
        image = image[: len(image) // 32 * 32, : image.shape[1] // 32 * 32]
        batch = collate([Sample("", image, None)])
        ours = upsample(outputs(network, batch).logits, network.output_stride).argmax(1)[0].numpy()
        assert (ours == segmenter.segment(image).mask).mean() > 0.97
    with pytest.raises(TrainingError, match="started from a run whose best.ckpt or bundle has the SHA-256 .*; none is named"):
        line_of(out, [])
    behind = data_behind(line_of(out, [SHIPPED / "street.lix"]))
    told = [{**entry, "use": f"{entry['use']} of the run it started from"} for entry in bundle.manifest.data]
    assert behind[-len(told) :] == told and [entry["name"] for entry in behind[: -len(told)]] == ["camvid train"]


def test_a_bundle_of_no_training_run_is_refused_with_the_reason(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="the extra `train` is not installed")
    from lix_core.errors import TrainingError
    from lix_core.training.compare import compare
    from lix_core.training.provenance import line_of, make_bundle
    from lix_core.training.weights import load_network

    training = bundle.manifest.training
    for changed, words in (
        ({}, "foreign.lix does not do for a run: its manifest does not tell of a training run as `lix export` does .'step' is missing"),
        ({**training, "step": None}, "does not tell of a training run as `lix export` does .int.. argument must be"),
        (
            {**training, "teacher": {"sha256": "0", **training}},
            "does not tell of a training run as `lix export` does .'metrics' is missing",
        ),
        ({**training, "config": {**training["config"], "sparkle": 1}}, "foreign.lix does not do for a run: unknown key sparkle"),
        (
            {**training, "config": {**training["config"], "model": {**training["config"]["model"], "encoder": "resnet18"}}},
            "foreign.lix does not do for a run: weights cannot be read out of this graph: it has .* in another form",
        ),
    ):
        path = replace(bundle, manifest=replace(bundle.manifest, training=changed)).save(tmp_path / "foreign.lix")
        with pytest.raises(TrainingError, match=words):
            load_network(path)
        with pytest.raises(TrainingError, match=words if "weights" not in words else "a bundle already"):
            line_of(path, []) if "weights" not in words else make_bundle(path)
    for changes, words in (
        ({"graph": b"nothing"}, "foreign.lix does not do for a run: its graph cannot be read"),
        ({"manifest": replace(bundle.manifest, data=({"name": "x"},))}, "its manifest does not tell name and licence of all that"),
    ):
        path = replace(bundle, **changes).save(tmp_path / "foreign.lix")
        with pytest.raises(TrainingError, match=words):
            load_network(path)
    with pytest.raises(TrainingError, match="street.lix is a bundle, which holds one checkpoint: there is no last one"):
        load_network(SHIPPED / "street.lix", "last")
    with pytest.raises(TrainingError, match="street.lix does not say where its data set camvid is: name it with --data camvid=FOLDER"):
        compare([SHIPPED / "street.lix"], "val")
    with pytest.raises(TrainingError, match="street.lix is a bundle already"):
        make_bundle(SHIPPED / "street.lix")
