"""Samples and batches, the registry of data sets, and what readers share."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lix_core.camera import Camera
from lix_core.data.readers import FrameSet, IdMap, XCache, pairs, spans, subset
from lix_core.data.registry import DATASETS, difference, open_dataset
from lix_core.data.sample import Sample, collate
from lix_core.errors import DataError, LabelError
from lix_core.labels import STREET, Label, LabelSet
from trees import camvid_tree, noise, write_image

H, W = 4, 6


def sample(name: str = "a", **changes: object) -> Sample:
    rng = np.random.default_rng(len(name))
    x = rng.normal(size=(3, H, W)).astype(np.float32)
    parts = {"image": noise(1, (H, W)), "labels": rng.integers(0, 5, (H, W)).astype(np.uint8), "x": x}
    return Sample(**{"name": name, **parts, "known": x[0] > 0, "x_kind": "normals", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": noise(0, (H, W)).astype(np.float32)}, r"a: image must be uint8 of \(H, W, 3\), got float32 of \(4, 6, 3\)"),
        ({"image": np.zeros((H, W), np.uint8)}, r"a: image must be uint8 of \(H, W, 3\), got uint8 of \(4, 6\)"),
        (
            {"labels": np.zeros((W, H), np.uint8)},
            r"a: labels must be uint8 of \(4, 6\), got uint8 of \(6, 4\) \(its image is \(4, 6, 3\)\)",
        ),
        ({"labels": np.zeros((H, W), np.int64)}, r"a: labels must be uint8 of \(4, 6\), got int64"),
        ({"x": np.zeros((3, H, W + 1), np.float32)}, r"a: x must be float32 of \(Cx, 4, 6\), got float32 of \(3, 4, 7\)"),
        ({"x": np.zeros((H, W), np.float32)}, r"a: x must be float32 of \(Cx, 4, 6\), got float32 of \(4, 6\)"),
        ({"known": np.zeros((H, W), np.uint8)}, r"a: known must be bool of \(4, 6\), got uint8"),
        ({"known": None}, "a: x, known and x_kind come together or not at all, got x_kind 'normals'"),
        ({"x_kind": ""}, "a: x, known and x_kind come together or not at all, got x_kind ''"),
        ({"camera": Camera.pinhole(W + 1, H, 5.0)}, "a: the image is 6x4, its calibration is for 7x4"),
    ],
)
def test_a_sample_whose_parts_do_not_fit_names_itself_and_the_part(changes, message):
    with pytest.raises(DataError, match=message):
        sample(**changes)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backwards", [True, False])
def test_arrays_that_are_read_backwards_or_read_only_are_as_good_as_their_copies(backwards):
    plain = sample()
    given = {name: getattr(plain, name)[..., :: -1 if backwards else 1] for name in ("image", "labels", "x", "known")}
    for array in given.values():
        array.flags.writeable = backwards
    batch, copies = collate([sample(**given)]), collate([sample(**{name: array.copy() for name, array in given.items()})])
    for name in ("image", "labels", "x", "known"):
        assert getattr(batch, name).equal(getattr(copies, name)) and getattr(sample(**given), name).flags.writeable


def test_a_batch_holds_what_its_samples_hold():
    a, b = sample("a"), sample("bb")
    batch = collate([a, b])
    assert batch.image.dtype == torch.uint8 and batch.labels.dtype == torch.int64 and batch.x.dtype == torch.float32
    assert batch.known.dtype == torch.bool and batch.names == ["a", "bb"] and len(batch) == 2
    for i, one in enumerate((a, b)):
        assert np.array_equal(batch.image[i].permute(1, 2, 0).numpy(), one.image)
        assert np.array_equal(batch.labels[i].numpy(), one.labels)
        assert np.array_equal(batch.x[i].numpy(), one.x) and np.array_equal(batch.known[i].numpy(), one.known)
    assert batch.labelled.tolist() == [True, True] and batch.shown.all()
    left = np.tile(np.arange(W) < 3, (H, 1))
    assert np.array_equal(collate([a, sample("c", shown=left)]).shown.numpy(), [np.ones((H, W)), left])


def test_frames_without_labels_or_x_are_ignored_and_unknown_in_a_batch():
    batch = collate([sample("a"), sample("b", labels=None, x=None, known=None, x_kind="")])
    assert batch.labelled.tolist() == [True, False] and (batch.labels[1] == 255).all() and (batch.labels[0] != 255).all()
    assert batch.x.shape == (2, 3, H, W) and not batch.x[1].any() and not batch.known[1].any() and batch.known[0].any()
    # Labels that are all ignored are labels: nobody else's are put in their place.
    assert collate([sample("a", labels=np.full((H, W), 255, np.uint8))]).labelled.tolist() == [True]


def test_a_batch_in_which_no_frame_has_x_keeps_the_channels_of_the_run():
    bare = sample("b", x=None, known=None, x_kind="")
    assert collate([bare]).x.shape == (1, 0, H, W) and collate([bare], x_channels=3).x.shape == (1, 3, H, W)


def test_batches_that_cannot_be_say_why():
    with pytest.raises(DataError, match="at least one sample"):
        collate([])
    with pytest.raises(DataError, match=r"images of a batch differ in size: \[\(4, 6\), \(5, 6\)\]; crop or resize"):
        collate([sample(), Sample("b", noise(0, (5, 6)), None)])
    other = sample("b", x=np.zeros((1, H, W), np.float32), x_kind="depth")
    with pytest.raises(DataError, match=r"X of a batch differs: \[\('depth', 1\), \('normals', 3\)\]"):
        collate([sample(), other])
    with pytest.raises(DataError, match="1 channels are asked for"):
        collate([sample()], x_channels=1)


def test_a_batch_moves_to_another_device_as_a_whole():
    moved = collate([sample()]).to("meta")
    assert {t.device.type for t in (moved.image, moved.labels, moved.x, moved.known, moved.labelled)} == {"meta"}
    assert moved.names == ["a"]


# The registry.


def test_every_registered_data_set_can_be_imported_and_describes_itself():
    from importlib import import_module

    for module, name in DATASETS.values():
        kind = getattr(import_module(module), name)
        assert issubclass(kind, FrameSet) and len(kind.licence) > 2 and len(kind.source) > 10


def test_open_dataset_opens_by_name_and_refuses_what_is_not_there(tmp_path):
    camvid_tree(tmp_path)
    data = open_dataset("camvid", tmp_path, "train")
    assert len(data) == 2 and data.names == ["a", "b"] and data.x_kind == "" and data.x_channels == 0
    with pytest.raises(DataError, match="no data set 'camvidd' .did you mean camvid..; there are bag, camvid, cityscapes"):
        open_dataset("camvidd", tmp_path, "train")
    with pytest.raises(DataError, match="the data set camvid has no option 'fold'; it has none"):
        open_dataset("camvid", tmp_path, "train", fold=1)
    with pytest.raises(DataError, match="the data set pothole has no option 'folds'; it has fold, inner"):
        open_dataset("pothole", tmp_path, "train", folds=1)
    with pytest.raises(DataError, match="no folder /.*nowhere for the data set kitti: .* get it from https://www.cvlibs.net"):
        open_dataset("kitti", tmp_path / "nowhere", "train")


class Own(FrameSet):
    source = "https://example.org"

    def __init__(self, root, split, x="", *, area, step: int = 1, cities: Sequence[str] = (), every=1):
        super().__init__([f"{area}{i}" for i in range(0, 4, step)][::every] + len(cities) * ["more"])


def test_an_own_data_set_is_told_what_it_is_opened_with_and_its_bugs_are_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "own", (__name__, "Own"))
    assert open_dataset("own", tmp_path, "train", area="a", step=np.int64(2)).names == ["a0", "a2"]
    for options, words in (
        ({}, "own cannot be opened with root, split, x and no options: missing a required .*argument: 'area'"),
        ({"area": "a", "step": "2"}, "own does not understand step='2': it takes a whole number"),
        ({"area": "a", "step": 0.5}, "own does not understand step=0.5: it takes a whole number"),
        ({"area": "a", "cities": 5}, "own does not understand cities=5: it takes a list"),
    ):
        with pytest.raises(DataError, match=words):
            open_dataset("own", tmp_path, "train", **options)
    with pytest.raises(TypeError, match="slice indices must be integers"):
        open_dataset("own", tmp_path, "train", area="a", every=0.5)


def test_a_data_set_is_a_sequence(tmp_path):
    camvid_tree(tmp_path)
    data = open_dataset("camvid", tmp_path, "train")
    assert [s.name for s in data] == ["a", "b"] and data[-1].name == "b" and data[-2].name == "a"
    with pytest.raises(IndexError):
        data[2]


def test_label_sets_that_differ_say_in_what():
    ab, acd, ba = (
        LabelSet(title, tuple(Label(name, (0, 0, 0)) for name in names)) for title, names in (("set", "ab"), ("x", "acd"), ("y", "ba"))
    )
    assert difference(ab, acd) == "only 'set' has b; only 'x' has c, d"
    assert difference(ab, ba) == "a is 0 in 'set' and 1 in 'y'"


class Empty(FrameSet):
    source = "https://example.org"


def test_a_data_set_without_frames_is_refused():
    with pytest.raises(DataError, match="there are no frames: its options leave none, .* get them from https://example.org"):
        Empty([])


def test_the_data_set_of_the_documentation_reads_pairs_and_names_what_is_missing(tmp_path):
    text = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class MineDataset" in block)
    exec(code, names := {})
    for kind in ("image", "label"):
        for stem in "ab":
            write_image(tmp_path / "val" / kind / f"{stem}.png", np.full((H, W), 2, np.uint8))
    data = names["MineDataset"](tmp_path, "val")
    assert data.names == ["a", "b"] and (data[1].labels == 1).all() and (data[1].image == 2).all()
    for kind in ("label", "image"):
        (tmp_path / "val" / kind / "a.png").rename(tmp_path / "a.png")
        with pytest.raises(DataError, match=f"val/{kind}/a.png is missing; get it from https://example.org/mine"):
            names["MineDataset"](tmp_path, "val")
        (tmp_path / "a.png").rename(tmp_path / "val" / kind / "a.png")


# Readers.


def test_ids_are_mapped_and_those_that_do_not_occur_are_named_with_their_file_and_the_allowed_ones(tmp_path):
    ids = IdMap({7: 0, 8: 1, 0: 255, 255: 255})
    write_image(tmp_path / "m.png", np.array([[7, 8], [0, 255]], np.uint8))
    assert ids.read(tmp_path / "m.png").tolist() == [[0, 1], [255, 255]]
    write_image(tmp_path / "m.png", np.array([[7, 9], [9, 254]], np.uint8))
    with pytest.raises(DataError, match="label .*m.png has ids 9, 254; allowed are 0, 7..8, 255"):
        ids.read(tmp_path / "m.png")
    assert spans([]) == "" and spans([3]) == "3" and spans([0, 1, 2, 5]) == "0..2, 5"


def test_the_first_file_that_is_missing_is_named_whichever_folder_lacks_it(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    with pytest.raises(DataError, match=f"{a} is missing; get it"):
        pairs({a: "_a.png", b: "_b.png"}, "get it")
    for path in (a / "x" / "1_a.png", a / "x" / "2_a.png", b / "x" / "2_b.png", b / "x" / "3_b.png"):
        write_image(path, np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match="b/x/1_b.png is missing; get it"):
        pairs({a: "_a.png", b: "_b.png"}, "get it")
    (a / "x" / "1_a.png").unlink()
    with pytest.raises(DataError, match="a/x/3_a.png is missing; get it"):
        pairs({a: "_a.png", b: "_b.png"}, "get it")
    (b / "x" / "3_b.png").unlink()
    assert pairs({a: "_a.png", b: "_b.png"}, "get it") == ["x/2"]


def test_a_subset_of_classes_keeps_names_and_colours_in_the_order_given():
    labels, lut = subset(STREET, ["road", "sky"])
    assert labels.names == ("road", "sky") and labels.labels[0] == STREET.labels[3]
    assert (lut[3], lut[0], lut[1], lut[255]) == (0, 1, 255, 255)
    with pytest.raises(LabelError, match="no class 'boat' in label set 'street'"):
        subset(STREET, ["boat"])


def test_kept_x_is_what_was_given_first_and_a_damaged_file_is_made_again(tmp_path):
    x = np.random.default_rng(0).normal(size=(3, H, W)).astype(np.float32)
    known = x[1] > 0
    calls = []

    def make():
        calls.append(1)
        return np.where(known, x, 0).astype(np.float32), known

    shape, kept = (3, H, W), tmp_path / "x" / "a.npy"
    first, again = (XCache(tmp_path / "x").get("a", shape, make) for _ in range(2))
    assert len(calls) == 1 and np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert np.array_equal(first[1], known) and np.allclose(first[0], np.where(known, x, 0), rtol=2**-10) and first[0].dtype == np.float32
    bare = XCache(None).get("a", shape, make)
    assert np.array_equal(bare[0], first[0]) and np.array_equal(bare[1], known) and len(calls) == 2
    (tmp_path / "file").write_text("")
    assert np.array_equal(XCache(tmp_path / "file" / "x").get("a", shape, make)[0], first[0])
    whole = kept.read_bytes()
    for damage in (b"", b"\x93NUMPY", whole[:-5], b"PK\x03\x04" + whole, np.zeros((1, H, W), np.float16), np.zeros((3, H), np.float16), x):
        calls.clear()
        kept.write_bytes(damage) if isinstance(damage, bytes) else np.save(kept, damage)
        assert np.array_equal(XCache(tmp_path / "x").get("a", shape, make)[0], first[0]) and calls == [1] and kept.read_bytes() == whole


def test_processes_that_keep_one_file_at_a_time_and_a_folder_that_goes_do_not_end_the_keeping(tmp_path, monkeypatch):
    x, known = np.ones((1, H, W), np.float32), np.ones((H, W), bool)
    caches, replace, pid = [XCache(tmp_path / "x") for _ in range(2)], os.replace, os.getpid()

    def late(source, target):
        """Between this process's writing and its renaming, another one does both."""
        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        caches[1].get("a", x.shape, lambda: (x, known))
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    for _ in range(2):
        assert caches[0].get("a", x.shape, lambda: (x, known))[1].all() and all(cache.folder for cache in caches)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a.npy"]
    shutil.rmtree(tmp_path / "x")
    assert caches[0].get("a", x.shape, lambda: (x, known))[1].all() and caches[0].folder
    (tmp_path / "x").write_text("")
    assert caches[0].get("a", x.shape, lambda: (x, known))[1].all() and caches[0].folder is None
