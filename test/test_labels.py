"""Label sets and the mappings between them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lix_core.errors import LabelError, LixError
from lix_core.labels import STREET, UNLABELLED, Label, LabelMapping, LabelSet

COLOURS = st.tuples(*[st.integers(0, 255)] * 3)
NAMES = st.text(min_size=1).filter(str.strip)
LABEL_SETS = st.builds(
    lambda name, names, colour: LabelSet(name, tuple(Label(n, colour) for n in names)),
    st.text(),
    st.lists(NAMES, min_size=1, max_size=20, unique=True),
    COLOURS,
)
DRIVABLE = {
    "name": "drivable",
    "classes": [
        {"name": "free", "from": ["road", "pavement"], "color": [0, 255, 0]},
        {"name": "obstacle", "from": ["car", "pedestrian", "cyclist"]},
        {"name": "sky", "from": "sky"},
    ],
}


def test_street_has_the_eleven_camvid_classes_in_segnets_order():
    assert STREET.names == ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "cyclist")
    assert STREET.id_of("car") == 8
    assert tuple(STREET.palette[8]) == (0, 0, 142)


@given(LABEL_SETS)
def test_a_label_set_survives_json(labels):
    assert LabelSet.from_dict(json.loads(labels.to_json())) == labels


@given(LABEL_SETS)
def test_id_and_name_are_inverse(labels):
    assert [labels.id_of(name) for name in labels.names] == list(range(len(labels)))


@given(LABEL_SETS)
def test_the_palette_has_each_classs_colour_and_black_beyond(labels):
    assert labels.palette.shape == (256, 3) and labels.palette.dtype == np.uint8
    assert [tuple(row) for row in labels.palette[: len(labels)]] == [label.color for label in labels.labels]
    assert not labels.palette[len(labels) :].any()


def test_the_palette_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        STREET.palette[0] = 0


def test_255_labels_fit_and_256_do_not():
    labels = [Label(f"class {i}", (i % 256, 0, 0)) for i in range(256)]
    assert LabelSet("full", tuple(labels[:255])).id_of("class 254") == 254
    with pytest.raises(LabelError, match="256 labels; 1 to 255"):
        LabelSet("too many", tuple(labels))


def test_an_empty_label_set_is_refused():
    with pytest.raises(LabelError, match="'none' has 0 labels"):
        LabelSet("none", ())


def test_two_labels_of_one_name_are_refused_by_name():
    with pytest.raises(LabelError, match=r"\['road'\] more than once"):
        LabelSet("twice", (Label("road", (0, 0, 0)), Label("sky", (0, 0, 0)), Label("road", (1, 1, 1))))


@pytest.mark.parametrize("colour", [(0, 0), (0, 0, 0, 0), (0, 0, 256), (-1, 0, 0), "red", None, 7, ("a", "b", "c")])
def test_a_bad_colour_is_refused_with_its_label_and_value(colour):
    with pytest.raises(LabelError, match="colour of label 'road' must be three numbers 0..255, got"):
        Label("road", colour)


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_a_label_without_a_name_is_refused(name):
    with pytest.raises(LabelError, match="needs a name, got"):
        Label(name, (0, 0, 0))


def test_an_unknown_class_is_refused_with_the_known_ones():
    with pytest.raises(LabelError, match="no class 'lane' in label set 'street'; it has sky, building"):
        STREET.id_of("lane")


@pytest.mark.parametrize("ids", [[1, 2], [1, 0], [0, 0], [0, "1"]])
def test_ids_out_of_order_are_refused(ids):
    rows = [{"id": i, "name": f"class {n}", "color": [0, 0, 0]} for n, i in enumerate(ids)]
    with pytest.raises(LabelError, match=r"'odd' must be 0..1 in order, got \["):
        LabelSet.from_dict({"name": "odd", "labels": rows})


@pytest.mark.parametrize(
    "data",
    [None, 3, "labels", [], {}, {"name": "x"}, *({"name": "x", "labels": rows} for rows in (3, [1], [{"id": 0}], None))],
)
def test_what_is_no_label_set_is_refused(data):
    with pytest.raises(LabelError, match="not a label set"):
        LabelSet.from_dict(data)


def test_a_mapping_merges_renames_and_drops():
    mapping = LabelMapping.from_dict(STREET, DRIVABLE)
    mask = np.array([["road", "pavement", "car", "cyclist", "sky", "tree"]])
    ids = np.vectorize(STREET.id_of)(mask).astype(np.uint8)
    assert mapping(ids).tolist() == [[0, 0, 1, 1, 2, UNLABELLED]]
    assert mapping.target.name == "drivable" and mapping.target.names == ("free", "obstacle", "sky")


def test_a_target_without_a_colour_takes_that_of_its_first_source():
    target = LabelMapping.from_dict(STREET, DRIVABLE).target
    assert [label.color for label in target.labels] == [(0, 255, 0), STREET.labels[8].color, STREET.labels[0].color]


def test_unlabelled_stays_unlabelled_under_every_mapping():
    everything = {"classes": [{"name": "thing", "from": list(STREET.names)}]}
    mapping = LabelMapping.from_dict(STREET, everything)
    assert mapping(np.array([[0, 10, UNLABELLED]], np.uint8)).tolist() == [[0, 0, UNLABELLED]]
    assert mapping.target.name == "street-remapped"


@given(st.permutations(STREET.names))
def test_a_renaming_mapping_is_undone_by_its_inverse(order):
    forth = LabelMapping.from_dict(STREET, {"classes": [{"name": n, "from": n} for n in order]})
    back = LabelMapping.from_dict(forth.target, {"name": "street", "classes": [{"name": n, "from": n} for n in STREET.names]})
    mask = np.arange(len(STREET), dtype=np.uint8)
    assert np.array_equal(back(forth(mask)), mask)
    assert back.target == STREET


@pytest.mark.parametrize("data", [None, [], "classes", {}, {"classes": None}, {"classes": {"free": ["road"]}}])
def test_a_remap_without_a_list_of_classes_is_refused(data):
    with pytest.raises(LabelError, match="needs a list `classes` of {name, from, color}; see config/remap_example.yaml"):
        LabelMapping.from_dict(STREET, data)


@pytest.mark.parametrize(
    "row", ["free", {"name": "free"}, {"from": ["road"]}, {"name": "free", "from": []}, {"name": "free", "from": None}]
)
def test_a_remap_row_without_name_or_sources_is_refused(row):
    with pytest.raises(LabelError, match="class 0 of the remap needs `name` and a non-empty `from`, got"):
        LabelMapping.from_dict(STREET, {"classes": [row]})


def test_a_remap_of_an_unknown_class_is_refused():
    with pytest.raises(LabelError, match="no class 'lane'"):
        LabelMapping.from_dict(STREET, {"classes": [{"name": "free", "from": ["road", "lane"]}]})


@pytest.mark.parametrize("rows", [[["road"], ["sky", "road"]], [["road", "road"]]])
def test_a_source_class_used_twice_is_refused(rows):
    with pytest.raises(LabelError, match="uses source class 'road' twice"):
        LabelMapping.from_dict(STREET, {"classes": [{"name": f"class {i}", "from": row} for i, row in enumerate(rows)]})


@pytest.mark.parametrize("sources", [3, 1.5, True, {"road": 1}])
def test_sources_that_are_no_list_are_refused(sources):
    with pytest.raises(LabelError, match="class 0 of the remap needs a list of names in `from`, got"):
        LabelMapping.from_dict(STREET, {"classes": [{"name": "free", "from": sources}]})


def test_a_remap_is_read_from_yaml(tmp_path):
    path = tmp_path / "drivable.yaml"
    path.write_text(yaml.safe_dump(DRIVABLE))
    loaded, expected = LabelMapping.load(STREET, path), LabelMapping.from_dict(STREET, DRIVABLE)
    assert loaded.target == expected.target and np.array_equal(loaded.lut, expected.lut)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read class remap .*remap.yaml: No such file"),
        (b"classes: []\nclasses: []", "remap.yaml is not YAML: the key classes is there twice, in line 1 and in line 2"),
        (b"a: [", "class remap .*remap.yaml is not YAML"),
        (b"\xff\xfe\x80", "class remap .*remap.yaml is not YAML"),
        (b"", "class remap .*remap.yaml: a class remap needs a list `classes`"),
        (b"classes: [{name: free, from: lane}]", "class remap .*remap.yaml: no class 'lane'"),
    ],
)
def test_a_remap_file_that_cannot_be_used_is_named(tmp_path, text, message):
    path = tmp_path / "remap.yaml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(LabelError, match=message):
        LabelMapping.load(STREET, path)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.sampled_from(STREET.names),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "from", "color", "classes"]), inner, max_size=4),
    max_leaves=12,
)


@given(st.fixed_dictionaries({"name": PLAIN, "classes": st.lists(PLAIN, max_size=3) | PLAIN}))
def test_any_yaml_gives_a_mapping_or_an_error_of_lix(data):
    try:
        mapping = LabelMapping.from_dict(STREET, data)
    except LixError:
        return
    assert mapping.lut[UNLABELLED] == UNLABELLED
    assert set(mapping.lut.tolist()) - {UNLABELLED} == set(range(len(mapping.target)))


def test_mapping_by_name_keeps_what_both_sets_have_and_refuses_sets_without_a_common_name():
    ours = LabelSet("ours", (Label("road", (1, 1, 1)), Label("car", (2, 2, 2))))
    theirs = LabelSet("theirs", (Label("car", (3, 3, 3)), Label("sky", (4, 4, 4)), Label("road", (5, 5, 5))))
    mapping = LabelMapping.by_name(theirs, ours)
    assert mapping(np.array([[0, 1, 2, 7, 255]], np.uint8)).tolist() == [[1, 255, 0, 255, 255]]
    assert mapping.target == ours
    with pytest.raises(LabelError, match=r"'other' \(tree\) and 'ours' \(road, car\) share no class"):
        LabelMapping.by_name(LabelSet("other", (Label("tree", (0, 0, 0)),)), ours)


def test_mapping_by_name_compares_names_as_people_do_and_the_exact_name_wins():
    ours = LabelSet("ours", tuple(Label(name, (1, 1, 1)) for name in ("Car", "car", "traffic sign")))
    theirs = LabelSet("theirs", tuple(Label(name, (1, 1, 1)) for name in ("Traffic-Sign", "car", "CAR", "tree", "Car", "traffic_sign")))
    mapping = LabelMapping.by_name(theirs, ours)
    assert mapping.lut[:7].tolist() == [2, 1, 0, 255, 0, 2, 255] and mapping.lost == "left unlabelled, as no class has the name: tree"
