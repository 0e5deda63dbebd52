"""The bundle file: round trips, damage, the search path, and how images are fitted to a network."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bundles import COLOURS, X, camera_bundle
from lix_core.errors import BundleError, LixError
from lix_core.labels import Label, LabelSet
from lix_core.runtime.bundle import (
    CARD,
    GRAPH,
    MANIFEST,
    SHIPPED,
    Bundle,
    Fit,
    InputSpec,
    Manifest,
    SizePolicy,
    XSpec,
    find_bundle,
    list_bundles,
)

SMALL = Bundle(Manifest("small", LabelSet("one", (Label("road", (1, 2, 3)),))), bytes(range(40)), "# card")
"""Its graph is no ONNX: reading a bundle does not look into the graph."""

POSITIVE = st.floats(1e-3, 1e3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.dictionaries(st.text(max_size=8), JSON, max_size=3)
LABELS = st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=4, unique=True).map(
    lambda names: LabelSet("set", tuple(Label(name, (i, 2 * i, 3 * i)) for i, name in enumerate(names)))
)
SPECS = st.builds(
    InputSpec,
    layout=st.sampled_from(["NHWC", "NCHW"]),
    dtype=st.sampled_from(["uint8", "float32"]),
    mean=st.tuples(*[POSITIVE] * 3),
    std=st.tuples(*[POSITIVE] * 3),
)
POLICIES = st.builds(
    lambda policy, canvas, multiple, extra: SizePolicy(policy, *canvas, multiple, multiple**2 + extra),
    st.sampled_from(["letterbox", "stretch"]),
    st.just((0, 0)) | st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.sampled_from([1, 2, 7, 32, 64]),
    st.integers(0, 300_000),
)
MANIFESTS = st.builds(
    Manifest,
    name=st.text(),
    labels=LABELS,
    description=st.text(),
    input=SPECS,
    size=POLICIES,
    outputs=st.sampled_from([("logits",), ("logits", "mask", "confidence"), ("mask", "logits")]),
    licence=st.text(),
    data=st.lists(st.dictionaries(st.text(), st.text(), max_size=2), max_size=2).map(tuple),
    training=RECORDS,
    metrics=RECORDS,
    x=st.none() | st.builds(XSpec, st.text(min_size=1), st.integers(1, 64)),
)
SIDES = st.integers(1, 3000)


def content(bundle: Bundle) -> tuple:
    return bundle.manifest, bundle.graph, bundle.card


def rewritten(path: Path, change) -> Path:
    """The bundle at `path` with `change(members)` applied to its members (name -> bytes), the checksums as they were."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def with_manifest(path: Path, **fields: object) -> Path:
    """The bundle at `path` with fields of its manifest replaced."""
    return rewritten(path, lambda members: members.update({MANIFEST: json.dumps({**json.loads(members[MANIFEST]), **fields}).encode()}))


# Round trips.


@given(MANIFESTS, st.binary(max_size=200), st.text())
def test_what_is_saved_is_what_is_loaded(tmp_path, manifest, graph, card):
    path = Bundle(manifest, graph, card).save(tmp_path / "x.lix")
    loaded = Bundle.load(path)
    assert content(loaded) == (manifest, graph, card)
    assert loaded.path == path


def test_the_same_model_is_the_same_file(tmp_path):
    one, other = (SMALL.save(tmp_path / name).read_bytes() for name in ("one.lix", "other.lix"))
    assert one == other


def test_the_manifest_carries_the_sha256_of_graph_and_card(tmp_path):
    with zipfile.ZipFile(SMALL.save(tmp_path / "small.lix")) as archive:
        assert archive.namelist() == [MANIFEST, GRAPH, CARD]
        digests = json.loads(archive.read(MANIFEST))["sha256"]
    assert digests == {GRAPH: hashlib.sha256(SMALL.graph).hexdigest(), CARD: hashlib.sha256(b"# card").hexdigest()}


def test_saving_makes_the_folders_and_a_file_that_all_may_read(tmp_path):
    path = SMALL.save(tmp_path / "a" / "b" / "small.lix")
    assert path.stat().st_mode & 0o777 == 0o644


def test_saving_replaces_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "small.lix"
    path.write_text("old")
    SMALL.save(path)
    assert content(Bundle.load(path)) == content(SMALL)
    assert os.listdir(tmp_path) == ["small.lix"]


def test_saving_where_it_cannot_be_says_where_and_why_and_leaves_nothing(tmp_path):
    (tmp_path / "taken.lix").mkdir()
    with pytest.raises(BundleError, match="cannot write bundle .*taken.lix: Is a directory"):
        SMALL.save(tmp_path / "taken.lix")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot write bundle .*file/small.lix: "):
        SMALL.save(tmp_path / "file" / "small.lix")
    assert sorted(os.listdir(tmp_path)) == ["file", "taken.lix"]


@pytest.mark.parametrize("value", [np.float32(0.5), {1, 2}, Path("run")])
@pytest.mark.parametrize("field", ["training", "metrics"])
def test_records_that_json_cannot_hold_are_refused_and_nothing_is_written(tmp_path, field, value):
    bundle = replace(SMALL, manifest=replace(SMALL.manifest, **{field: {"test": {"miou": value}}}))
    with pytest.raises(BundleError, match=f"training or metrics of bundle .*small.lix hold what JSON cannot .*{type(value).__name__}"):
        bundle.save(tmp_path / "small.lix")
    assert os.listdir(tmp_path) == []


# Damage.


def loads_the_same_or_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        loaded = Bundle.load(path)
    except BundleError as error:
        assert str(path) in str(error) and "None" not in str(error)
        return
    assert content(loaded) == content(SMALL)


def test_every_flipped_byte_is_refused_or_harmless(tmp_path):
    path = SMALL.save(tmp_path / "small.lix")
    good = path.read_bytes()
    directory = good.index(b"PK\x01\x02")
    # In the archive's directory, other flips too: some of them turn `stored` into deflate, bzip2 or LZMA.
    for flip, start in ((0xFF, 0), (0x01, directory), (0x08, directory), (0x0C, directory), (0x0E, directory)):
        for position in range(start, len(good)):
            damaged = bytearray(good)
            damaged[position] ^= flip
            loads_the_same_or_is_refused(path, bytes(damaged))


@settings(max_examples=300)
@given(st.data())
def test_any_changed_region_is_refused_or_harmless(tmp_path, data):
    path = SMALL.save(tmp_path / "small.lix")
    good = path.read_bytes()
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 8)))
    loads_the_same_or_is_refused(path, good[:start] + data.draw(st.binary(max_size=8)) + good[end:])


@given(st.integers(0, 1000))
def test_a_truncated_bundle_is_refused(tmp_path, length):
    path = SMALL.save(tmp_path / "small.lix")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(BundleError, match="small.lix is damaged or not a bundle .*; copy or export it again"):
        Bundle.load(path)


@given(st.binary(max_size=100))
@example(b"")
def test_any_other_file_is_refused(tmp_path, data):
    path = tmp_path / "other.lix"
    path.write_bytes(data)
    with pytest.raises(BundleError, match="other.lix is damaged or not a bundle"):
        Bundle.load(path)


@pytest.mark.parametrize("member", [GRAPH, CARD])
def test_a_replaced_member_fails_its_checksum(tmp_path, member):
    path = rewritten(SMALL.save(tmp_path / "small.lix"), lambda members: members.update({member: b"another"}))
    with pytest.raises(BundleError, match=f"checksum of {member} in .*small.lix does not match its manifest; copy or export it again"):
        Bundle.load(path)


@pytest.mark.parametrize("digests", [None, "abc", {}, {GRAPH: 3}])
def test_a_manifest_without_checksums_is_refused(tmp_path, digests):
    with pytest.raises(BundleError, match=f"checksum of {GRAPH} in .* does not match"):
        Bundle.load(with_manifest(SMALL.save(tmp_path / "small.lix"), sha256=digests))


@pytest.mark.parametrize("member", [MANIFEST, GRAPH, CARD])
def test_a_missing_member_is_named(tmp_path, member):
    path = rewritten(SMALL.save(tmp_path / "small.lix"), lambda members: members.pop(member))
    with pytest.raises(BundleError, match=f"damaged or not a bundle .*{member}"):
        Bundle.load(path)


@pytest.mark.parametrize("member", [MANIFEST, GRAPH, CARD])
def test_a_compressed_member_is_refused_before_it_is_unpacked(tmp_path, member):
    path = rewritten(SMALL.save(tmp_path / "small.lix"), lambda members: members.pop(member))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, bytes(1 << 24), zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(BundleError, match=f"{member} in .*small.lix is compressed; a bundle is stored uncompressed, export it again"):
        Bundle.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size < 1 << 20 and peak < 1 << 20


def test_a_missing_bundle_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(BundleError, match="no bundle at .*none.lix"):
        Bundle.load(tmp_path / "none.lix")
    with pytest.raises(BundleError, match="cannot read bundle .*: Is a directory"):
        Bundle.load(tmp_path)


# Manifests that cannot be.


@pytest.mark.parametrize("version", [0, 3, "1", None, []])
def test_another_format_is_refused_with_both_versions(tmp_path, version):
    with pytest.raises(BundleError, match="small.lix: bundle format is .*; this version of lix reads formats 1 and 2") as caught:
        Bundle.load(with_manifest(SMALL.save(tmp_path / "small.lix"), format=version))
    assert f"format is {version!r};" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("outputs", ["mask"], "outputs must be logits and maybe mask and confidence, got mask"),
        ("outputs", ["logits", "depth"], "outputs must be logits .*, got logits, depth"),
        ("outputs", 3, "manifest is incomplete or has unknown fields"),
        ("labels", {"name": "x", "labels": []}, "label set 'x' has 0 labels"),
        ("labels", None, "not a label set"),
        ("input", {"layout": "HWC"}, "NHWC or NCHW of uint8 or float32, got HWC of uint8"),
        ("input", {"dtype": "int8"}, "NHWC or NCHW of uint8 or float32, got NHWC of int8"),
        ("input", {"mean": [1, 2]}, "mean and std need three finite numbers each"),
        ("input", {"std": [1, 0, 1]}, "std above 0; got"),
        ("input", {"mean": [1, 2, "x"]}, "manifest is incomplete or has unknown fields"),
        ("input", {"mean": [1, 2, 10**400]}, "manifest is incomplete or has unknown fields"),
        ("input", {"gamma": 2}, "unknown fields: .*gamma"),
        ("size", {"policy": "crop"}, "size policy must be letterbox or stretch, got 'crop'"),
        ("size", {"height": 100}, r"both sides or none \(0, 0\), got 100x0"),
        ("size", {"height": -1, "width": -1}, "both sides or none"),
        ("size", {"multiple_of": 0}, "multiple_of >= 1"),
        ("size", {"max_pixels": 100}, "max_pixels >= its square, got 32 and 100"),
        ("size", {"height": "a", "width": "b"}, "sizes must be whole numbers up to"),
        ("size", {"height": 480.0, "width": 640.0}, "sizes must be whole numbers up to"),
        ("size", {"height": 10**6, "width": 10**6}, "sizes must be whole numbers up to"),
        ("licence", 5, "wrong type in licence"),
        ("metrics", [], "wrong type in metrics"),
        ("data", [3], "wrong type in data"),
        ("speed", 3, "unknown fields: .*speed"),
        ("x", {"kind": "depth", "channels": 1}, "a bundle of format 1 has no X; that is format 2"),
        ("format", 2, "manifest is incomplete or has unknown fields: 'x'"),
    ],
)
def test_an_impossible_field_is_refused_with_its_value(tmp_path, field, value, message):
    with pytest.raises(BundleError, match=f"small.lix: .*{message}"):
        Bundle.load(with_manifest(SMALL.save(tmp_path / "small.lix"), **{field: value}))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (None, "incomplete"),
        (3, "incomplete"),
        ({"kind": "depth"}, "incomplete .*channels"),
        ({"kind": "depth", "channels": 1, "unit": "m"}, "unknown fields: .*unit"),
        ({"kind": "", "channels": 1}, "X needs a kind and 1 to 64 channels, got '' and 1"),
        ({"kind": 5, "channels": 1}, "X needs a kind"),
        ({"kind": "depth", "channels": 0}, "got 'depth' and 0"),
        ({"kind": "depth", "channels": 65}, "got 'depth' and 65"),
        ({"kind": "depth", "channels": 1.0}, "got 'depth' and 1.0"),
        ({"kind": "depth", "channels": True}, "got 'depth' and True"),
    ],
)
def test_an_impossible_x_is_refused_with_its_value(tmp_path, x, message):
    with pytest.raises(BundleError, match=f"small.lix: .*{message}"):
        Bundle.load(with_manifest(SMALL.save(tmp_path / "small.lix"), format=2, x=x))


def test_x_makes_a_format_of_its_own_and_rgb_alone_is_written_as_ever():
    fields = ["format", "name", "description", "input", "size", "outputs", "licence", "data", "training", "metrics", "labels"]
    plain, seeing = SMALL.manifest.to_dict(), camera_bundle(x=X).manifest.to_dict()
    assert plain["format"] == 1 and sorted(plain) == sorted(fields)
    assert seeing["format"] == 2 and sorted(seeing) == sorted([*fields, "x"]) and seeing["x"] == {"kind": "two", "channels": 2}


@pytest.mark.skipif(not list(SHIPPED.glob("*.lix")), reason="no shipped bundle")
def test_a_shipped_bundle_saved_again_is_the_same_file(tmp_path):
    for path in SHIPPED.glob("*.lix"):
        assert Bundle.load(path).save(tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("field", ["name", "labels", "input", "size"])
def test_a_missing_field_is_named(field):
    data = SMALL.manifest.to_dict()
    del data[field]
    with pytest.raises(BundleError, match=f"manifest is incomplete .*{field}"):
        Manifest.from_dict(data)


@given(st.sampled_from(["name", "labels", "input", "size", "outputs", "data", "training"]), JSON)
def test_any_value_of_a_field_gives_a_manifest_or_an_error_of_lix(field, value):
    try:
        Manifest.from_dict({**SMALL.manifest.to_dict(), field: value})
    except LixError:
        pass


def test_nan_in_the_normalisation_is_refused():
    with pytest.raises(BundleError, match="finite"):
        InputSpec(mean=(float("nan"), 0, 0))


# The search path.


def saved(folder: Path, name: str, description: str = "") -> Path:
    return Bundle(Manifest(name, COLOURS, description), b"", "").save(folder / f"{name}.lix")


def test_folders_are_searched_in_order_and_the_first_of_a_name_wins(tmp_path, model_folder, monkeypatch):
    second, user, shipped = tmp_path / "second", tmp_path / "data_home" / "lix" / "models", tmp_path / "shipped"
    monkeypatch.setenv("LIX_MODEL_PATH", f"{model_folder}{os.pathsep}{second}")
    everywhere = [saved(folder, "both") for folder in (model_folder, second, user, shipped)]
    others = [saved(second, "a"), saved(user, "b"), saved(shipped, "c")]
    assert list(list_bundles()) == [everywhere[0], *others]
    for folder, path in zip((second, user, shipped), everywhere[1:]):
        everywhere[0].unlink()
        everywhere[0] = path
        assert find_bundle("both") == folder / "both.lix"


def test_a_path_is_taken_as_it_is(tmp_path, model_folder, monkeypatch):
    saved(model_folder, "x", "found by name")
    path = saved(tmp_path, "x", "given by path")
    monkeypatch.chdir(tmp_path)
    assert find_bundle(path) == path and find_bundle(str(path)) == path
    assert Bundle.load(find_bundle("x.lix")).manifest.description == "given by path"
    assert Bundle.load(find_bundle("x")).manifest.description == "found by name"


def test_a_home_relative_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = saved(tmp_path, "x")
    assert find_bundle("~/x.lix") == path


def test_an_unknown_name_is_refused_with_the_known_ones(model_folder):
    with pytest.raises(BundleError, match=r"no model 'city'; known are none \(or give the path of a .lix file\)"):
        find_bundle("city")
    saved(model_folder, "street"), saved(model_folder, "indoor")
    with pytest.raises(BundleError, match="no model 'city'; known are indoor, street"):
        find_bundle("city")


@pytest.mark.parametrize("model", ["missing.lix", "folder/missing"])
def test_a_path_that_is_not_there_is_refused(model, model_folder):
    with pytest.raises(BundleError, match=f"no bundle at {model}"):
        find_bundle(model)


# Fitting images to the network.


@given(POLICIES, SIDES, SIDES)
@example(SizePolicy(), 480, 640)
@example(SizePolicy(), 1, 1_000_000)
@example(SizePolicy(max_pixels=1024), 3, 200_000)
def test_content_lies_within_the_canvas_and_the_bound(policy, height, width):
    fit = policy.fit(height, width)
    assert all(1 <= inner <= outer for inner, outer in zip(fit.content, fit.canvas))
    if policy.height:
        assert fit.canvas == (policy.height, policy.width)
        return
    assert all(side % policy.multiple_of == 0 for side in fit.canvas)
    if policy.policy == "letterbox":
        assert fit.content[0] * fit.content[1] <= policy.max_pixels
        assert all(outer - inner < policy.multiple_of for inner, outer in zip(fit.content, fit.canvas))


@given(st.integers(32, 3000), st.integers(32, 3000), st.integers(10_000, 500_000))
def test_letterbox_keeps_the_aspect_to_within_a_pixel(height, width, max_pixels):
    rows, columns = SizePolicy(max_pixels=max_pixels).fit(height, width).content
    scale = min(1, (max_pixels / (height * width)) ** 0.5)
    assert abs(rows - height * scale) <= 1 and abs(columns - width * scale) <= 1


@given(SIDES, SIDES, st.integers(1, 500), st.integers(1, 500))
def test_letterbox_on_a_fixed_canvas_touches_both_sides_of_one_axis(height, width, canvas_height, canvas_width):
    fit = SizePolicy(height=canvas_height, width=canvas_width).fit(height, width)
    assert fit.content[0] == canvas_height or fit.content[1] == canvas_width
    scale = min(canvas_height / height, canvas_width / width)
    assert abs(fit.content[0] - height * scale) <= 1 and abs(fit.content[1] - width * scale) <= 1


@given(POLICIES.filter(lambda policy: policy.policy == "stretch"), SIDES, SIDES)
def test_stretch_fills_the_canvas(policy, height, width):
    fit = policy.fit(height, width)
    assert fit.content == fit.canvas


def test_an_image_within_the_bound_is_not_scaled():
    assert SizePolicy().fit(360, 480) == Fit((384, 480), (360, 480))
    assert SizePolicy(max_pixels=32 * 32).fit(32, 32) == Fit((32, 32), (32, 32))
    assert SizePolicy().fit(1, 1) == Fit((32, 32), (1, 1))


def test_a_large_image_is_scaled_down_by_one_factor():
    assert SizePolicy(max_pixels=160_000).fit(800, 800) == Fit((416, 416), (400, 400))
    assert SizePolicy(max_pixels=1024).fit(96, 96) == Fit((32, 32), (32, 32))


def test_a_tiny_bundle_with_a_real_graph_survives_the_file(tmp_path):
    bundle = camera_bundle()
    assert content(Bundle.load(bundle.save(tmp_path / "tiny.lix"))) == content(bundle)
