"""The configuration of training runs: files, recipes, overrides, and what is said of wrong ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lix_core.errors import TrainingError
from lix_core.files import from_yaml
from lix_core.training.config import (
    Config,
    Source,
    differences,
    from_dict,
    load_config,
    override,
    recipe_names,
    reference,
    to_dict,
    to_yaml,
    with_reference,
)

ROOT = Path(__file__).resolve().parents[1]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load_config(write(tmp_path / "a.yaml", "")) == Config()


def test_what_is_written_is_read_back(tmp_path):
    config = Config(name="a", seed=7)
    config.data.sources = [Source("world", "~/w", options={"geometry": "stereo", "frames": 3}), Source("camvid", per_batch=2)]
    config.data.val = Source("world", split="val")
    config.optim.lr = 1e-3
    assert load_config(write(tmp_path / "a.yaml", to_yaml(config))) == config
    assert from_dict(to_dict(config)) == config


def test_overrides_reach_into_lists_options_and_sections_that_the_file_lacks(tmp_path):
    path = write(tmp_path / "a.yaml", "data: {sources: [{dataset: world}, {dataset: camvid}]}")
    config = load_config(path, ["data.sources.1.root=/x", "data.sources.0.options.frames=5", "optim.lr=1e-3", "data.val.dataset=world"])
    assert config.data.sources[1].root == "/x" and config.data.sources[0].options == {"frames": 5}
    assert config.optim.lr == 0.001 and config.data.val == Source("world")
    assert load_config(path, ["data.eval_size=[64, 96]", "optim.lr=1"]).data.eval_size == [64, 96]
    assert load_config(path, ["data.val=null"]).data.val is None


def test_a_base_is_taken_from_beside_the_file_and_lists_are_replaced_whole(tmp_path):
    write(tmp_path / "base.yaml", "optim: {lr: 0.1, steps: 5}\ndata: {crop: [32, 32], sources: [{dataset: world}]}")
    config = load_config(write(tmp_path / "a.yaml", "base: base.yaml\noptim: {steps: 9}\ndata: {crop: [64, 96]}"))
    assert (config.optim.lr, config.optim.steps, config.data.crop) == (0.1, 9, [64, 96])
    assert config.data.sources == [Source("world")]


def test_bases_in_a_circle_are_refused(tmp_path):
    write(tmp_path / "a.yaml", "base: b.yaml")
    with pytest.raises(TrainingError, match="based on each other"):
        load_config(write(tmp_path / "b.yaml", "base: a.yaml"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optim.learning_rate=1", r"unknown key optim.learning_rate; known are steps, steps_per_epoch, lr"),
        ("optim.step=1", r"unknown key optim.step \(did you mean optim.steps\?\)"),
        ("data.sources.0.datset=a", r"unknown key data.sources.0.datset \(did you mean data.sources.0.dataset\?\)"),
        ("data.sources.0.options.x=depth", "data.sources.0: options.x is set elsewhere, as data.x"),
        ("data.test={dataset: world, options: {split: test}}", "data.test: options.split is set elsewhere, as split of the source"),
        ("data.sources.0.options.root=a", "options.root is set elsewhere, as root of the source"),
        ("data.sources.0.options.name=a", "options.name is set elsewhere, as dataset of the source"),
        ("data.sources.0.options={1: a}", "data.sources.0: options has the key 1; options of a data set are named by texts"),
        ("optin.lr=1", r"unknown key optin \(did you mean optim\?\)"),
        ("distill.lix.tua=1", r"unknown key distill.lix.tua \(did you mean distill.lix.tau\?\)"),
        ("optim.steps=many", "optim.steps must be a whole number, got 'many'"),
        ("optim.steps=1.5", "optim.steps must be a whole number, got 1.5"),
        ("optim.steps=true", "optim.steps must be a whole number, got True"),
        ("optim.lr=fast", "optim.lr must be a number, got 'fast'"),
        ("optim.lr=null", "optim.lr must be a number, got None"),
        ("optim.lr=-1", "optim.lr must be at least 0, got -1"),
        ("optim.lr=.nan", "optim.lr must be finite, got nan"),
        ("distill.lix.logit=.inf", "distill.lix.logit must be finite, got inf"),
        ("data.crop.0.1=5", "data.crop.0 is 32, and has no 1"),
        ("data.crop.0.a.b=1", "data.crop.0 is 32, and has no a"),
        ("data.flip=2", "data.flip must be 0 to 1, got 2"),
        ("data.crop=[32]", r"data.crop must be 2 numbers, got \[32\]"),
        ("data.crop=[0, 32]", r"data.crop must be at least 1, got \[0, 32\]"),
        ("data.crop=32", "data.crop must be a list of whole numbers, got 32"),
        ("data.eval_size=32", "data.eval_size must be a list of whole numbers, got 32"),
        ("data.val=3", r"data.val must be `key: value` pairs of dataset, root"),
        ("data.sources.2.root=a", "data.sources is a list of 1: name an element as data.sources.0, got data.sources.2"),
        ("data.sources.1.root=a", "data.sources is a list of 1: name an element as data.sources.0, got data.sources.1"),
        ("model.kind=techer", r"model.kind must be one of teacher, student; got 'techer' \(did you mean teacher\?\)"),
        ("trainer.deterministic=maybe", "trainer.deterministic must be true or false, got 'maybe'"),
        ("optim.lr", r"an override is written key=value, for example optim.lr=0.001; got 'optim.lr'"),
        ("optim={lr: 1, lr: 2}", "the value of optim is not YAML: the key lr is there twice, in line 1"),
        ("optim.lr=[", "the value of optim.lr is not YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_the_cure(tmp_path, change, words):
    path = write(tmp_path / "a.yaml", "data: {sources: [{dataset: world}], crop: [32, 32]}")
    with pytest.raises(TrainingError, match=words):
        load_config(path, [change])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {steps: 4}\nname: a\noptim: {warmup: 1}", "a.yaml is not YAML: the key optim is there twice, in line 1 and in line 3"),
        ("optim: {steps: 4, lr: 1, steps: 5}", "a.yaml is not YAML: the key steps is there twice, in line 1"),
        ("a: [", "is not YAML"),
        ("- 1", "must hold `key: value` pairs, got list"),
        ("optim: 3", "optim must be `key: value` pairs"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, words):
    with pytest.raises(TrainingError, match=words):
        load_config(write(tmp_path / "a.yaml", text))


def test_an_unknown_recipe_lists_those_there_are():
    near = recipe_names()[0][:-1]
    with pytest.raises(TrainingError, match=f"no file {near} and no recipe of that name .did you mean {recipe_names()[0]}"):
        load_config(near)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_configuration_with_data(name):
    config = load_config(name)
    assert config.data.sources and config.data.val


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4), lambda inner: st.dictionaries(st.text(max_size=3), inner))
)
def test_a_wrong_tree_is_never_met_by_a_foreign_error(tree):
    for wrong in ({"data": tree}, {"optim": {"steps": tree}}, {"data": {"sources": [tree]}}, tree):
        try:
            from_dict(wrong)
        except TrainingError:
            pass


def test_differences_are_named_by_their_whole_path():
    old, new = to_dict(Config()), to_dict(Config(seed=3))
    new["optim"]["lr"] = 1.0
    assert differences(old, old) == {}
    assert differences(old, new) == {"seed": (0, 3), "optim.lr": (0.002, 1.0)}
    assert differences({"a": [{"b": 1}, 2]}, {"a": [{"b": 3}, 2], "c": 4}) == {"a.0.b": (1, 3), "c": (None, 4)}
    assert differences([1], [1, 2], "a") == {"a": ([1], [1, 2])}


def test_the_value_of_an_override_is_yaml():
    tree = {}
    for change in ("a.b=[1, x]", "a.c='1'", "d="):
        override(tree, change)
    assert tree == {"a": {"b": [1, "x"], "c": "1"}, "d": None}
    assert from_dict({"data": {"x": None}}).data.x == "" and from_dict({"data": {"val": None}}).data.val is None


def test_the_reference_in_the_docs_is_that_of_the_dataclasses():
    page = (ROOT / "docs" / "training.md").read_text()
    assert with_reference(page) == page, "run python -m lix_core.training.config"


def test_the_reference_has_every_option_once():
    def keys(cls, path=""):
        for f in dataclasses.fields(cls):
            yield f"{path}{f.name}"

    text = reference()
    for key in [*keys(type(Config().optim), "optim."), *keys(type(Config().trainer), "trainer."), *keys(Source, "data.sources.N.")]:
        assert text.count(f"| `{key}` |") == 1, key


def test_recipes_are_plain_yaml_without_repeated_keys():
    for path in (ROOT / "lix_core" / "training" / "recipes").glob("*.yaml"):
        assert isinstance(from_yaml(path.read_text()), dict)
