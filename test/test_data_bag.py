"""Bags as a data set: the same samples straight from a bag and from its extraction, labels of several makers, and splits by time."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
from torch.utils.data import DataLoader

from lix_core.bags.extract import extract
from lix_core.bags.index import NS, Options
from lix_core.bags.reader import Bag
from lix_core.bags.repair import repair
from lix_core.data.bag import BagDataset, split_places
from lix_core.data.registry import open_dataset
from lix_core.errors import DataError, LabelError
from lix_core.files import save, save_image
from lix_core.geometry.encodings import ENCODINGS
from lix_core.labels import STREET, Label, LabelSet
from recorded import PERIOD, START, data_file, drive, write
from trees import WORLD_CAMERA, world_frame

MAKERS = LabelSet("makers", (Label("car", (0, 0, 142)), Label("road", (128, 64, 128))))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of a bag and of its extraction, by geometry."""
    root = tmp_path_factory.mktemp("drive")
    write(root / "bag", drive(3, offsets={"points": 5_000_000}))
    for geometry in ("depth", "stereo", "lidar"):
        extract([root / "bag"], root / geometry, Options(geometry=geometry))
    return root


def same(one, other) -> None:
    assert (one.name, one.x_kind, one.camera) == (other.name, other.x_kind, other.camera)
    for what in ("image", "labels", "known"):
        left, right = getattr(one, what), getattr(other, what)
        assert (left is None) == (right is None) and (left is None or np.array_equal(left, right))
    # Of the same depth, normals differ in the last bit by where the arrays lie in memory.
    assert (one.x is None) == (other.x is None) and (one.x is None or np.allclose(one.x, other.x, atol=1e-6))


@pytest.mark.parametrize("geometry", ["depth", "stereo", "lidar"])
@pytest.mark.parametrize("kind", ["normals", "disparity"])
def test_a_bag_and_its_extraction_give_the_same_samples(places, geometry, kind):
    live = BagDataset(places / "bag", "all", x=kind, reading={"geometry": geometry})
    files = open_dataset("bag", places / geometry, "all", x=kind)
    assert live.names == files.names == [f"bag/{START + i * PERIOD}" for i in range(3)]
    assert live.labels == files.labels == STREET and live.x_channels == files.x_channels == ENCODINGS[kind].channels
    for one, other in zip(live, files, strict=True):
        same(one, other)


def test_samples_hold_what_the_drive_was(places):
    for kind, tolerance in (("depth", 0.01), ("normals", 0.01), ("disparity", 0.05)):
        for index, sample in enumerate(BagDataset(places / "depth", "all", x=kind)):
            truth = world_frame(index)
            assert np.array_equal(sample.image, truth.rgb) and np.array_equal(sample.labels, truth.labels)
            assert sample.camera == WORLD_CAMERA.rectified() and np.array_equal(sample.known, np.isfinite(truth.depth))
            values = ENCODINGS[kind].decode(sample.x, sample.known)[12:]
            disparity = WORLD_CAMERA.fx * 0.54 / truth.depth  # the drive's pair is 0.54 m wide
            expected = {"depth": truth.depth, "normals": truth.normals, "disparity": disparity}[kind][12:]
            assert np.nanmax(np.abs(values - expected)) < tolerance


def test_a_bag_is_read_by_several_workers_and_can_be_pickled(places):
    data = BagDataset(places / "bag", "all", x="depth")
    expected = [data[i] for i in range(3)]
    for sample, other in zip(DataLoader(data, batch_size=None, num_workers=2), expected, strict=True):
        same(sample, other)
    for sample, other in zip(pickle.loads(pickle.dumps(data)), expected, strict=True):
        same(sample, other)


@pytest.fixture
def labelled(tmp_path):
    """An extraction of a bag of 3 frames with labels: masks of the first by people, of all by a teacher."""
    extract([write(tmp_path / "bag", drive(3))], tmp_path / "out")
    for kind, frames, value in (("masks", 1, 0), ("pseudo", 3, 1)):
        folder = tmp_path / "out" / kind / "bag"
        folder.mkdir(parents=True)
        save(folder.parent / "labels.json", MAKERS.to_json().encode())
        for index in range(frames):
            save_image(folder / f"{START + index * PERIOD}.png", np.full((64, 160), value, np.uint8))
    return tmp_path / "out"


def test_labels_are_taken_from_the_maker_that_is_asked_for(labelled):
    masks = BagDataset(labelled, "all", labels="masks")
    assert (masks.names, masks.labels) == ([f"bag/{START}"], MAKERS) and not masks[0].labels.any()
    pseudo = BagDataset(labelled, "all", labels="pseudo")
    assert len(pseudo) == 3 and (pseudo[2].labels == 1).all()
    none = BagDataset(labelled, "all", labels="none")
    assert len(none) == 3 and none[0].labels is None and none.labels == STREET


def test_the_best_labels_of_each_frame_share_the_classes_that_are_kept(labelled):
    with pytest.raises(
        DataError, match="label sets differ; name the classes to keep in `classes`. bag of bag: sky, building, .*; masks of"
    ):
        BagDataset(labelled, "all", labels="best")
    data = BagDataset(labelled, "all", labels="best", classes=["road", "car"])
    assert data.labels.names == ("road", "car")
    assert (data[0].labels == 1).all()  # a mask of cars
    truth = world_frame(1).labels
    expected = np.where(truth == STREET.id_of("road"), 0, np.where(truth == STREET.id_of("car"), 1, 255))
    assert np.array_equal(data[1].labels, expected)
    with pytest.raises(DataError, match="no label set here has the classes boat; there are sky, building"):
        BagDataset(labelled, "all", labels="best", classes=["boat"])


def test_a_whole_label_set_may_have_classes_that_nobody_labelled(labelled):
    wanted = LabelSet("robot", (Label("boat", (1, 2, 3)), Label("road", (4, 5, 6)), Label("car", (7, 8, 9))))
    data = BagDataset(labelled, "all", labels="masks", classes=wanted.to_dict())
    assert data.labels == wanted and (data[0].labels == 2).all()
    best = BagDataset(labelled, "all", labels="best", classes=wanted.to_dict())
    assert [set(np.unique(sample.labels).tolist()) for sample in best] == [{2}, {1, 2, 255}, {1, 2, 255}]
    assert BagDataset(labelled, "all", labels="none", classes=wanted.to_dict()).labels == wanted
    with pytest.raises(LabelError, match="'robot' .boat. share no class"):
        BagDataset(labelled, "all", labels="masks", classes=LabelSet("robot", wanted.labels[:1]).to_dict())


def test_labels_of_other_people_go_into_classes_by_name_whatever_its_case_and_what_has_none_is_noted(labelled):
    drawn = LabelSet("masks", (Label("Road", (1, 2, 3)), Label("Lane_Marking", (4, 5, 6)), Label("gate", (7, 8, 9))))
    save(labelled / "masks" / "labels.json", drawn.to_json().encode())
    save_image(labelled / "masks" / "bag" / f"{START}.png", np.resize(np.uint8([0, 1, 2]), (64, 160)))
    wanted = LabelSet("robot", (Label("lane marking", (1, 1, 1)), Label("road", (2, 2, 2))))
    save(labelled / "bag" / "labels.json", wanted.to_json().encode())
    for classes in (wanted.to_dict(), ["lane marking", "road"]):
        data = BagDataset(labelled, "all", labels="masks", classes=classes)
        assert np.array_equal(data[0].labels, np.resize(np.uint8([1, 0, 255]), (64, 160)))
        assert data.notes == ["labels 'masks': left unlabelled, as no class has the name: gate"]
    assert BagDataset(labelled, "all", labels="masks", classes=["Road", "Lane_Marking", "gate"]).notes == []


def test_frames_without_labels_or_depth_are_told_apart(tmp_path):
    messages = [m for m in drive(4) if not (m.topic in ("/labels", "/depth") and m.time > START + 2 * PERIOD)]
    extract([write(tmp_path / "bag", messages)], tmp_path / "out", Options(geometry="depth"))
    assert len(BagDataset(tmp_path / "out", "all")) == 2
    every = BagDataset(tmp_path / "out", "all", x="normals", labels="none")
    assert [sample.x is not None for sample in every] == [True, True, False, False] and every.x_kind == "normals"
    with pytest.raises(DataError, match="no frame of .*out has labels 'masks'; `lix bag label` makes some, and 'none' does without"):
        BagDataset(tmp_path / "out", "all", labels="masks")


def test_straight_from_a_bag_bad_labels_are_unlabelled_and_a_bad_image_is_an_error(tmp_path):
    messages = drive(3)
    (labels,) = (m.message for m in messages if m.topic == "/labels" and m.time == START + PERIOD + 5_000_000)
    (image,) = (m.message for m in messages if m.topic == "/image" and m.time == START + 2 * PERIOD + 5_000_000)
    labels.encoding, image.data = "mono16", image.data[:100]
    path = write(tmp_path / "bag", messages)
    live = BagDataset(path, "all")
    assert np.array_equal(live[0].labels, world_frame(0).labels) and (live[1].labels == 255).all() and len(live) == 3
    assert BagDataset(path, "all", labels="none")[1].labels is None
    with pytest.raises(DataError, match=f"frame bag/{START + 2 * PERIOD}: .* is it truncated"):
        live[2]
    extract([path], tmp_path / "out")
    assert BagDataset(tmp_path / "out", "all").names == [f"bag/{START}"]


def test_bags_without_depth_have_no_x_and_no_pair_has_no_disparity(tmp_path):
    path = write(tmp_path / "bag", drive(2, ("image", "labels", "label_names")))
    data = BagDataset(path, "all", x="normals")
    assert (data.x_kind, data.x_channels, data[0].x) == ("", 0, None) and data[0].camera is None
    path = write(tmp_path / "mono", drive(2, ("image", "camera_info", "depth", "labels", "label_names")))
    assert BagDataset(path, "all", x="inverse_depth")[0].x is not None
    with pytest.raises(DataError, match="bag mono has no stereo pair, so no baseline"):
        BagDataset(path, "all", x="disparity")


def test_a_kind_of_x_that_another_data_set_has_alone_is_not_there(places):
    for root in ("bag", "depth"):
        data = BagDataset(places / root, "all", x="transformed_disparity")
        assert (data.x_kind, data.x_channels, data[0].x) == ("", 0, None)


def test_a_folder_of_bags_is_one_data_set_of_which_a_few_bags_are_open(tmp_path, monkeypatch):
    for number, name in enumerate(("a", "b")):
        write(tmp_path / "bags" / name, drive(2, start=START + number * 100 * NS))
    opened, begin, end = set(), Bag.__init__, Bag.__exit__
    monkeypatch.setattr(Bag, "__init__", lambda bag, *args: (begin(bag, *args), opened.add(bag))[0])
    monkeypatch.setattr(Bag, "__exit__", lambda bag, *args: (opened.discard(bag), end(bag, *args))[0])
    monkeypatch.setattr("lix_core.data.bag.OPEN_BAGS", 1)
    data = BagDataset(tmp_path / "bags", "all", reading={"every": 2})
    assert data.names == [f"a/{START}", f"b/{START + 100 * NS}"]
    for place in (1, 0, 1, 1):
        assert np.array_equal(data[place].image, world_frame(0).rgb) and len(opened) == 1


def test_a_damaged_bag_beside_the_repaired_one_is_in_the_data_set_once(tmp_path):
    path = write(tmp_path / "bags" / "drive", drive(4, ("image",)))
    content = data_file(path).read_bytes()
    data_file(path).write_bytes(content[: len(content) * 3 // 4])
    damaged = BagDataset(path, "all", labels="none")
    repair(path)
    both = BagDataset(tmp_path / "bags", "all", labels="none")
    assert len(damaged) in (2, 3) and both.names == [name.replace("drive/", "drive_repaired/") for name in damaged.names]


def test_damaged_files_of_an_extraction_are_named(labelled):
    data = BagDataset(labelled, "all", x="depth")
    (labelled / f"bag/image/{START}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=f"image/{START}.png cannot be read .*; delete it, and extract the bag again"):
        data[0]
    cv2.imwrite(str(labelled / f"bag/depth/{START + PERIOD}.png"), np.zeros((64, 160), np.uint8))
    with pytest.raises(DataError, match=f"depth/{START + PERIOD}.png is no 16-bit image of 160x64; delete it, and extract the bag again"):
        data[1]
    cv2.imwrite(str(labelled / f"bag/depth/{START + PERIOD}.png"), np.zeros((64, 161), np.uint16))
    with pytest.raises(DataError, match=f"depth/{START + PERIOD}.png is no 16-bit image of 160x64; delete it, and extract the bag again"):
        data[1]


@pytest.mark.parametrize("lost", ["frames.jsonl", *(f"{kind}/{START + PERIOD}.png" for kind in ("image", "depth", "labels"))])
def test_an_extraction_that_is_half_there_names_the_first_missing_file(labelled, lost):
    (labelled / "bag" / lost).unlink()
    for options in ({"labels": "none"}, {"labels": "masks", "x": "depth"}):
        with pytest.raises(DataError, match=f"bag/{lost} is missing; extract the bag again"):
            BagDataset(labelled, "all", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "test"}, "there is no split 'test'; there are 'train', 'val', 'all'"),
        ({"labels": "mine"}, "there is no kind of labels 'mine'"),
        ({"x": "hha"}, "there is no kind of X 'hha'"),
        ({"held_out": 1.5}, "held_out is a share from 0 to 1"),
        *(({"block": block}, "block a finite time of at least 1e-09 s") for block in (0.0, 1e-10, 1e300, float("inf"), float("nan"))),
        ({"split": "val"}, "split 'val' of .* has none of its 3 frames: 20 % of the blocks of 10.0 s are held out; make block shorter"),
        ({"reading": {"evry": 2}}, "options of reading bags: .*evry"),
    ],
)
def test_options_that_cannot_be_are_refused(places, options, words):
    with pytest.raises(DataError, match=words):
        BagDataset(places / "bag", **{"split": "all", **options})


# Splits.

KEYS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 300)), min_size=1, max_size=60, unique=True)


@given(keys=KEYS, held_out=st.floats(0.05, 0.6), block=st.integers(5, 40))
def test_whole_blocks_are_held_out_and_neighbours_are_on_one_side(keys, held_out, block):
    train, val = (split_places(keys, split, held_out, block) for split in ("train", "val"))
    assert split_places(keys, "all", held_out, block) == list(range(len(keys)))
    blocks = {name: {(keys[p][0], keys[p][1] // block) for p in group} for name, group in (("train", train), ("val", val))}
    assert not blocks["train"] & blocks["val"]
    for bag in "ab":
        number = len({stamp // block for b, stamp in keys if b == bag})
        held = len({n for b, n in blocks["val"] if b == bag})
        assert held == (max(1, round(held_out * number)) if number > 1 else round(held_out * number))
    # Bags may be parts of one drive, or copies: whatever was recorded near a held-out frame.
    assert all(abs(keys[t][1] - keys[v][1]) > round(0.1 * block) for t in train for v in val)


@given(keys=KEYS, more=KEYS)
def test_a_bag_is_split_alike_whatever_other_bags_there_are(keys, more):
    others = [("c", stamp) for _, stamp in more]
    alone, together = (split_places(every, "val", 0.3, 20) for every in (keys, [*keys, *others]))
    assert alone == [place for place in together if place < len(keys)]


def test_a_drive_in_many_bags_is_split_as_one():
    keys = [(f"drive_{i // 250}", START + i * NS // 10) for i in range(2000)]
    train, val = ({keys[p][1] for p in split_places(keys, split, 0.2, 10 * NS)} for split in ("train", "val"))
    assert min(abs(t - v) for t in train for v in val) > NS
    copies = [(bag, stamp) for bag in ("drive", "drive_repaired") for _, stamp in keys]
    train, val = ({copies[p][1] for p in split_places(copies, split, 0.2, 10 * NS)} for split in ("train", "val"))
    assert not train & val and len(val) == 400


def test_bags_of_one_clock_hold_out_the_same_and_leave_the_rest_to_train_on():
    # Simulated drives of a minute, that all begin at 0.
    keys = [(f"run {number}", i * NS // 10) for number in range(10) for i in range(600)]
    assert len(split_places(keys, "val", 0.2, 10 * NS)) == 1000 and len(split_places(keys, "train", 0.2, 10 * NS)) > 4500


def test_no_share_holds_out_nothing():
    keys = [("a", stamp) for stamp in range(100)]
    assert split_places(keys, "val", 0.0, 10) == [] and len(split_places(keys, "train", 0.0, 10)) == 100
    assert len(split_places(keys, "val", 0.2, 10)) == 20
