"""From a run folder to a bundle: what it says of its data, licences, teacher and figures, and `lix export`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("timm", reason="the extra `train` is not installed")
pytest.importorskip("onnx", reason="the extra `train` is not installed")
pytest.importorskip("lightning", reason="the extra `train` is not installed")

import typer  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import bundles  # noqa: E402
from lix_core.cli.export import export  # noqa: E402
from lix_core.data.registry import DATASETS  # noqa: E402
from lix_core.errors import LixError, TrainingError  # noqa: E402
from lix_core.labels import Label, LabelSet  # noqa: E402
from lix_core.metrics import ConfusionMatrix  # noqa: E402
from lix_core.runtime.bundle import Bundle  # noqa: E402
from lix_core.runtime.segmenter import Segmenter  # noqa: E402
from lix_core.training.card import model_card  # noqa: E402
from lix_core.training.config import Config, from_dict, to_dict  # noqa: E402
from lix_core.training.module import build_network  # noqa: E402
from lix_core.training.provenance import Lineage, data_behind, data_of, licence_of, line_of_bundle, lineage, manifest_of, training_of  # noqa: E402
from lix_core.training.run import RunResult, summary  # noqa: E402
from lix_core.training.weights import Record, checksum, load_network, record_of  # noqa: E402
from test_export import Stages, use_small_parts  # noqa: E402

LABELS = LabelSet("three", (Label("road", (1, 2, 3)), Label("sky", (4, 5, 6)), Label("kerb", (7, 8, 9))))
VAL, TEST = np.diag([90, 50, 0]) + np.diag([10, 0], 1), np.diag([3, 2, 1])
HERE = "/somewhere/of/mine"


class Open:
    licence, source = "CC0-1.0", "drawn here"


class Bought:
    licence, source = "CC BY-NC-SA 4.0", "https://example.org/bought"


class Silent:
    pass


@pytest.fixture(autouse=True)
def data_sets_and_small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Open", "Bought", "Silent"):
        monkeypatch.setitem(DATASETS, name.lower(), (__name__, name))
    use_small_parts(monkeypatch)


def source(dataset: str, split: str = "train", **options: object) -> dict:
    return {"dataset": dataset, "root": HERE, "split": split, **options}


def configuration(kind: str = "student", dataset: str = "open", method: str = "none", **model: object) -> Config:
    data = {"sources": [source(dataset)], "val": source(dataset, "val"), "test": source(dataset, "test"), "eval_size": [64, 96]}
    model = {"kind": kind, "weights": "none", "decoder": "thin", **model}
    return from_dict({"name": f"{kind}-on-{dataset}", "seed": 7, "data": data, "model": model, "distill": {"method": method}})


def make_run(
    folder: Path, config: Config, teacher: Path | list[Path] | None = None, finished: bool = True, start: Path | None = None
) -> Path:
    """A run folder as `fit` leaves it, with random weights."""
    torch.manual_seed(config.seed)
    x_kind, x_channels = ("normals", 3) if config.model.kind == "teacher" else ("", 0)
    network = build_network(config.model, len(LABELS), x_channels)
    teachers = [teacher] if isinstance(teacher, Path) else teacher or []
    digest, first = "+".join(map(checksum, teachers)), "" if start is None else checksum(start)
    record = Record(config, LABELS, x_kind, x_channels, 30, "abc123def4567890", "2.9.9", digest, VAL.tolist(), first)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"network": network.state_dict(), "record": record.to_dict()}, folder / "checkpoints" / "best.ckpt")
    later = dataclasses.replace(record, step=40, val_counts=None)
    torch.save({"network": network.state_dict(), "record": later.to_dict()}, folder / "checkpoints" / "last.ckpt")
    if finished:
        count = sum(p.numel() for p in network.parameters())
        run = (config.name, to_dict(config), record.git_revision, record.torch, "an old CPU", 5400.0, 40, "best", 30, count, digest)
        RunResult(*run, test=summary(ConfusionMatrix.of(TEST.tolist()), LABELS)).save(folder)
    return folder


def entries(config: Config) -> list[tuple[str, str, str]]:
    return [(e["use"], e["name"], e["licence"]) for e in data_of(config)]


# Data and licences.


def test_every_source_and_every_pretrained_weight_is_named_once_with_its_licence():
    config = configuration("teacher", "bought", weights="auto", encoder="tf_efficientnet_lite0", x_encoder="convnextv2_tiny")
    config.data.sources.append(dataclasses.replace(config.data.sources[0], options={"fold": 2}))
    imagenet = "Apache-2.0; images under ImageNet's terms of access"
    assert entries(config) == [
        ("training", "bought train", "CC BY-NC-SA 4.0"),
        ("choice of the checkpoint", "bought val", "CC BY-NC-SA 4.0"),
        ("initial weights", "pretrained tf_efficientnet_lite0", imagenet),
        ("initial weights", "pretrained convnextv2_tiny", "cc-by-nc-4.0; images under the terms of their data set"),
    ]


def test_weights_of_an_encoder_of_ones_own_are_of_unknown_licence(monkeypatch):
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda name: None)
    (entry,) = [e for e in data_of(configuration(weights="auto", encoder="mine")) if e["name"] == "pretrained mine"]
    assert (entry["licence"], entry["source"]) == ("unknown; images under the terms of their data set", "timm, mine")


def test_a_student_names_no_weights_of_an_x_encoder_and_a_network_from_scratch_none_at_all():
    student = configuration("student", "open", weights="auto", x_encoder="convnextv2_tiny")
    assert [name for _, name, _ in entries(student)] == ["open train", "open val", "pretrained tf_efficientnet_lite0"]
    assert [name for _, name, _ in entries(configuration())] == ["open train", "open val"]


@pytest.mark.parametrize(
    ("keep", "name"),
    [
        ("all", "open train (0.05 of its frames with labels)"),
        ("labelled", "open train (only the 0.05 of its frames with labels)"),
        ("unlabelled", "open train (without labels, and without the 0.05 of its frames with labels)"),
    ],
)
def test_a_share_of_labels_is_told(keep, name):
    config = configuration()
    config.data.sources[0] = dataclasses.replace(config.data.sources[0], labelled=0.05, keep=keep)
    assert entries(config)[0][1] == name
    config.data.sources[0] = dataclasses.replace(config.data.sources[0], labelled=1.0, keep="all", part="2/3")
    assert entries(config)[0][1] == "open train (part 2/3)"


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["CC0-1.0", "MIT"], "made from data under CC0-1.0; MIT"),
        (["CC0-1.0", "CC BY-NC-SA 3.0"], "made from data under CC BY-NC-SA 3.0 (1): for non-commercial use"),
        (["some terms: Non-Commercial research"], "made from data under some terms: Non-Commercial research (0): for non-commercial use"),
        (
            ["noncommercial", "unknown"],
            "unknown: made from 1, whose licence is not known; and from data under noncommercial (0), for non-commercial use",
        ),
        (["MIT", "unknown; images under others"], "unknown: made from 1, whose licence is not known"),
        (["licence of Vancouver, synchronised"], "made from data under licence of Vancouver, synchronised"),
    ],
)
def test_one_source_for_non_commercial_use_makes_the_weights_so(licences, expected):
    data = [{"use": "training", "name": str(i), "licence": licence, "source": ""} for i, licence in enumerate(licences)]
    assert licence_of(data) == expected


def test_a_data_set_that_says_nothing_of_its_licence_makes_it_unknown():
    assert licence_of(data_of(configuration(dataset="silent"))) == "unknown: made from silent train, silent val, whose licence is not known"


# Lineage.


@pytest.fixture
def family(tmp_path: Path) -> dict[str, Path]:
    """An RGB + X teacher on bought data, a student of it on open data, and a student of that student."""
    teacher = make_run(tmp_path / "teacher", configuration("teacher", "bought"))
    student = make_run(tmp_path / "student", configuration("student", "open", "lix"), teacher)
    grandchild = make_run(tmp_path / "grandchild", configuration("student", "open", "kd"), student)
    return {"teacher": teacher, "student": student, "grandchild": grandchild}


def described(run: Path, *teachers: Path):
    network, record = load_network(run)
    return manifest_of("x", network, lineage(record, teachers), RunResult.load(run))


def test_a_distilled_student_inherits_data_and_licence_of_its_teacher(family):
    manifest = described(family["student"], family["teacher"])
    assert [(d["use"], d["name"]) for d in manifest.data] == [
        ("training", "open train"),
        ("choice of the checkpoint", "open val"),
        ("training of the teacher", "bought train"),
        ("choice of the checkpoint of the teacher", "bought val"),
    ]
    assert manifest.licence == "made from data under CC BY-NC-SA 4.0 (bought train, bought val): for non-commercial use"
    teacher = manifest.training["teacher"]
    assert (teacher["run"], teacher["x"], manifest.training["method"], teacher["method"]) == (
        "teacher-on-bought",
        "normals",
        "lix",
        "supervised",
    )
    assert teacher["sha256"] == hashlib.sha256((family["teacher"] / "checkpoints" / "best.ckpt").read_bytes()).hexdigest()


def test_the_teacher_of_the_teacher_counts_too_whatever_the_order_in_which_they_are_given(family):
    for order in (("student", "teacher"), ("teacher", "student")):
        manifest = described(family["grandchild"], *(family[name] for name in order))
        assert "bought train" in [d["name"] for d in manifest.data] and "non-commercial" in manifest.licence
        assert manifest.training["teacher"]["teacher"]["run"] == "teacher-on-bought"


def test_all_of_several_teachers_count(family, tmp_path):
    other = make_run(tmp_path / "other", configuration("teacher", "open"))
    pupil = make_run(tmp_path / "pupil", configuration("student", "open", "lix"), [family["teacher"], other])
    manifest = described(pupil, other, family["teacher"])
    assert [manifest.training[key]["run"] for key in ("teacher", "teacher 2")] == ["teacher-on-bought", "teacher-on-open"]
    assert "bought train" in [d["name"] for d in manifest.data] and "taught by 2 RGB + normals teachers (lix)" in manifest.description
    assert "distilled by the method `lix` from the run `teacher-on-open`" in model_card(manifest, "")
    record = record_of(manifest)
    assert record.teacher == load_network(pupil)[1].teacher and len(record.teacher.split("+")) == 2
    again = line_of_bundle(manifest)
    assert [line.record.config.name for line in again.teachers] == ["teacher-on-bought", "teacher-on-open"]
    assert training_of(dataclasses.replace(again, manifest=None))["teacher 2"]["sha256"] == manifest.training["teacher 2"]["sha256"]


@pytest.mark.parametrize(("student", "given"), [("student", []), ("student", ["grandchild"]), ("grandchild", ["student"])])
def test_a_teacher_that_is_not_named_is_asked_for(family, student, given):
    with pytest.raises(TrainingError, match="was taught by a run whose best.ckpt or bundle has the SHA-256 .*name its folder"):
        described(family[student], *(family[name] for name in given))


def test_a_folder_without_a_run_is_no_teacher(family, tmp_path):
    with pytest.raises(TrainingError, match="is no run folder: there is no checkpoints/best.ckpt"):
        described(family["student"], tmp_path)


def test_the_run_that_a_run_started_from_is_behind_it_too_with_its_data_and_what_taught_it(family, tmp_path):
    tuned = make_run(tmp_path / "tuned", configuration("student", "silent"), start=family["student"])
    with pytest.raises(TrainingError, match="started from a run whose best.ckpt or bundle has the SHA-256"):
        described(tuned)
    manifest = described(tuned, family["teacher"], family["student"])
    uses = {d["use"]: d["name"] for d in manifest.data}
    assert (uses["training of the run it started from"], uses["training of the teacher of the run it started from"]) == (
        "open train",
        "bought train",
    )
    assert manifest.training["method"] == "supervised" and manifest.training["start"]["teacher"]["run"] == "teacher-on-bought"
    assert [source.dataset for source in record_of(manifest).sources] == ["silent", "open"]
    card = model_card(manifest)
    assert "was begun with the weights of the run `student-on-open`" in card
    assert "`student-on-open` was distilled by the method `lix` from the run `teacher-on-bought`" in card


def test_pretrained_weights_are_those_of_the_run_that_began_with_them():
    record = Record(configuration(weights="pypi"), LABELS, "", 0, 30, "abc", "2.9.9")
    first = Lineage(record)
    uses = [[entry["use"] for entry in data_behind(line) if "weights" in entry["use"]] for line in (first, Lineage(record, start=first))]
    assert uses == [["initial weights"], ["initial weights of the run it started from"]]


# What the manifest says of the run.


def test_the_figures_are_those_of_the_exported_checkpoint(tmp_path):
    run = make_run(tmp_path / "run", configuration())
    best = described(run).metrics
    assert set(best) == {"open val", "open test"} and "counts" not in best["open test"]
    assert best["open val"]["iou"] == {"road": 0.9, "sky": 0.8333, "kerb": None} and best["open test"]["miou"] == 1.0
    other = dataclasses.replace(configuration().data.test, split="val", root=f"{HERE}/test")  # another place with a split of that name
    config = dataclasses.replace(configuration(), data=dataclasses.replace(configuration().data, test=other))
    both = described(make_run(tmp_path / "both", config)).metrics
    assert both["open val"] == best["open val"] and both["open val (test)"]["miou"] == 1.0
    network, record = load_network(run, "last")
    assert manifest_of("x", network, Lineage(record), RunResult.load(run)).metrics == {}


def test_the_record_tells_the_run_but_not_the_folders_of_the_machine(tmp_path):
    teacher = make_run(tmp_path / "teacher", configuration("teacher", "bought"))
    manifest = described(make_run(tmp_path / "run", configuration(method="lix"), teacher), teacher)
    training = manifest.training
    assert (training["seed"], training["git_revision"], training["step"], training["seconds"]) == (7, "abc123def4567890", 30, 5400.0)
    assert training["config"]["optim"] == to_dict(configuration())["optim"]
    assert HERE not in json.dumps(manifest.to_dict()) and str(tmp_path) not in json.dumps(manifest.to_dict())


def test_the_configuration_of_the_run_is_left_as_it_was():
    record = Record(configuration(), LABELS, "", 0, 1, "abc", "2")
    training_of(Lineage(record))
    assert record.config.data.sources[0].root == HERE


@pytest.mark.parametrize(("eval_size", "max_pixels"), [([64, 96], 6144), ([1, 1], 64), (None, 220_000)])
def test_images_are_given_to_the_network_at_the_size_it_was_scored_at(eval_size, max_pixels):
    config = configuration()
    config.data.eval_size = eval_size
    record = Record(config, LABELS, "", 0, 1, "abc", "2")
    size = manifest_of("x", build_network(config.model, 3, 0), Lineage(record)).size
    assert (size.multiple_of, size.max_pixels, size.height) == (8, max_pixels, 0)
    if max_pixels == 6144:
        assert size.fit(128, 192).content == tuple(eval_size)  # of that shape, it is what was learned
        rows, columns = size.fit(480, 640).content
        assert columns / rows == pytest.approx(640 / 480, rel=0.02) and rows * columns == pytest.approx(max_pixels, rel=0.05)


# The card.


def test_the_card_says_licence_data_lineage_figures_and_weaknesses(family):
    card = model_card(described(family["student"], family["teacher"]))
    assert "- **Licence of the weights:** made from data under CC BY-NC-SA 4.0 (bought train, bought val): for non-commercial use." in card
    assert "| training of the teacher | bought train | CC BY-NC-SA 4.0 | https://example.org/bought |" in card
    assert (
        "was distilled by the method `lix` from the run `teacher-on-bought` (seed 7" in card
        and "that sees RGB and normals, joined by sum" in card
    )
    assert "trained on bought train; mIoU 0.867 on bought val." in card
    assert (
        "images at 64x96 (stretched to it; a robot's keep their own shape), one confusion matrix over all pixels: mIoU 0.867" in card
        and "| kerb | absent |" in card
    )
    assert "On open val" in card and "The checkpoint was chosen on it" in card.split("On open val")[1].split("On open test")[0]
    assert "The checkpoint was chosen on it" not in card.split("On open test")[1]
    assert "- Not measured on open val, where they do not occur: kerb." in card and "an old CPU" in card and "1.5 h" in card
    assert "Lineage" not in model_card(described(family["teacher"]))


def test_what_people_wrote_takes_the_place_of_what_follows_from_the_figures(tmp_path):
    manifest = described(make_run(tmp_path / "run", configuration()))
    card = model_card(manifest, "- Snow is taken for sky.\n")
    assert card.endswith("## Known weaknesses\n\n- Snow is taken for sky.\n") and "Not measured on" not in card


def test_a_weak_class_is_named(tmp_path):
    manifest = described(make_run(tmp_path / "run", configuration()))
    scores = {**manifest.metrics["open val"], "iou": {"road": 0.9, "sky": 0.31, "kerb": None}}
    card = model_card(dataclasses.replace(manifest, metrics={"open val": scores}))
    assert "- On open val its weakest classes, by IoU: sky (0.31)." in card


# The command.


def lix_export(*arguments: object):
    app = typer.Typer()
    app.command()(export)
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_a_teacher_is_exported_to_a_bundle_that_takes_its_x(family, tmp_path):
    done = lix_export(family["teacher"], "--out", tmp_path / "out" / "deep.lix", "--name", "deep-teacher")
    assert done.exit_code == 0, done.output
    assert "MB; parameters in millions: encoder 0.00" in done.output and "licence: made from data under CC BY-NC-SA 4.0" in done.output
    agreed = float(done.output.partition("random images: ")[2].partition("%")[0])
    assert agreed > 95
    bundle = Bundle.load(tmp_path / "out" / "deep.lix")
    assert (bundle.manifest.name, bundle.manifest.x.kind, bundle.manifest.x.channels) == ("deep-teacher", "normals", 3)
    assert bundle.card.startswith("# deep-teacher\n") and bundle.manifest.labels == LABELS
    assert "- **X:** normals, 3 channels, at the image's size; it was never without." in bundle.card
    assert np.allclose(bundle.manifest.input.mean, Stages.mean)
    x, known = np.zeros((3, 20, 30), np.float32), np.ones((20, 30), bool)
    assert Segmenter(bundle).segment(bundles.random_image(20, 30), x=x, known=known).mask.shape == (20, 30)


def test_a_student_is_exported_with_its_teacher_and_notes_under_the_name_of_the_file(family, tmp_path):
    (tmp_path / "notes.md").write_text("- Fears fog.")
    out = tmp_path / "small.lix"
    done = lix_export(
        family["student"], "--out", out, "--teacher", family["teacher"], "--notes", tmp_path / "notes.md", "--checkpoint", "last"
    )
    assert done.exit_code == 0, done.output
    bundle = Bundle.load(out)
    assert (bundle.manifest.name, bundle.manifest.x, bundle.manifest.training["step"]) == ("small", None, 40)
    assert "Fears fog." in bundle.card and "teacher-on-bought" in bundle.card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.onnx"], "a bundle is named NAME.lix, got x.onnx"),
        (["--out", "x.lix", "--checkpoint", "first"], "--checkpoint is best or last, got 'first'"),
        (["--out", "x.lix", "--notes", "missing.md"], "cannot read notes missing.md: No such file"),
        (["--out", "/proc/x.lix"], "cannot write to output folder /proc"),
        (["--out", "x.lix"], "there is no run folder nowhere, and no model 'nowhere'; known are "),
    ],
)
def test_what_cannot_be_exported_is_refused_before_the_work(arguments, message):
    done = lix_export("nowhere", *arguments)
    assert isinstance(done.exception, LixError) and message in str(done.exception)
