"""Recipes: what is read, what an override changes, and what is said about a mistake."""

from pathlib import Path

import pytest

from trainers.recipe import finetuning_recipe, load_recipe

RECIPE = """
model: {type: flm, hidden_size: 32}
tokenizer: ./tokenizer
data: {train: ./text.txt}
training: {max_steps: 4, learning_rate: 1e-3}
"""


def write(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_paths_belong_to_the_folder_of_the_recipe(tmp_path):
    recipe = load_recipe(write(tmp_path))
    assert recipe.folder == tmp_path
    assert Path(recipe.tokenizer) == tmp_path / "tokenizer"
    assert load_recipe(write(tmp_path), ["tokenizer=gpt2"]).tokenizer == "gpt2"


def test_a_recipe_reached_from_a_folder_beside_it_has_the_same_paths(tmp_path, monkeypatch):
    (tmp_path / "beside").mkdir()
    monkeypatch.chdir(tmp_path / "beside")
    write(tmp_path, "model: {from: ../flow}\ndata: {train: a}\n")
    recipe = load_recipe("../recipe.yaml", ["tokenizer=null"])
    assert recipe.tokenizer == recipe.model["from"] == "../../flow"


def test_counts_of_the_data_may_be_written_as_floats(tmp_path):
    data = load_recipe(write(tmp_path), ["data.max_validation_rows=1e3", "data.num_proc=null"]).data
    assert type(data.max_validation_rows) is int and data.max_validation_rows == 1000 and data.num_proc is None


def test_overrides_change_add_and_nest_and_their_values_are_yaml(tmp_path):
    overrides = ["training.max_steps=9", "training.sample_num_steps=[1, 8]", "data.train.path=./b", "model.x=null"]
    recipe = load_recipe(write(tmp_path), ["data.train={split: test}", *overrides])
    assert recipe.training == {"max_steps": 9, "learning_rate": 1e-3, "sample_num_steps": [1, 8]}
    assert recipe.data.train == {"split": "test", "path": "./b"}
    assert recipe.model == {"type": "flm", "hidden_size": 32, "x": None}


def test_the_tokenizer_is_that_of_the_model_to_go_on_from(tmp_path):
    text = "model: {from: ./flow, attn_implementation: eager}\ndata: {train: a}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.model == {"from": str(tmp_path / "flow"), "attn_implementation": "eager"}
    assert recipe.tokenizer == str(tmp_path / "flow")
    assert load_recipe(write(tmp_path, text), ["model.from=org/flow"]).tokenizer == "org/flow"
    assert load_recipe(write(tmp_path, text), ["tokenizer=gpt2"]).tokenizer == "gpt2"


def test_fine_tuning_is_a_recipe_made_of_its_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.txt", "held.csv"):
        (tmp_path / name).touch()
    recipe = finetuning_recipe("org/flow", "mine.txt", "runs/x", overrides=["training.max_steps=9"])
    assert (recipe.model, recipe.tokenizer, recipe.teacher) == ({"from": "org/flow"}, "org/flow", None)
    assert recipe.data.train == {"path": str(tmp_path / "mine.txt")} and recipe.data.validation_share == 0.05
    assert recipe.training["output_dir"] == "runs/x" and recipe.training["eval_strategy"] == "steps"
    assert recipe.training["max_steps"] == 9 and recipe.training["conditioning_rate"] == 0.1
    held_out = finetuning_recipe(
        "org/flow", "org/rows", "x", "held.csv", "body", ["data.train.split=train[:50%]"]
    ).data
    assert held_out.train == {"path": "org/rows", "split": "train[:50%]"} and held_out.text_column == "body"
    assert (held_out.validation, held_out.validation_share) == ({"path": str(tmp_path / "held.csv")}, None)
    epochs = finetuning_recipe("org/flow", "mine.txt", "x", overrides=["training.num_train_epochs=3"])
    assert epochs.training["num_train_epochs"] == 3 and "max_steps" not in epochs.training
    nothing = finetuning_recipe("org/flow", "mine.txt", "x", "0")
    assert nothing.data.validation is nothing.data.validation_share is None
    assert "eval_strategy" not in nothing.training and "num_samples" not in nothing.training


@pytest.mark.parametrize("text, value", [("1e-3", 1e-3), ("1.0e-3", 1e-3), ("3E+2", 300.0), ("5", 5), (".5", 0.5)])
def test_numbers_are_numbers_however_they_are_written(tmp_path, text, value):
    recipe = load_recipe(write(tmp_path, RECIPE.replace("1e-3", text)), [f"training.weight_decay={text}"])
    assert recipe.training["learning_rate"] == recipe.training["weight_decay"] == value
    assert type(recipe.training["learning_rate"]) is type(value)


def test_an_empty_section_is_an_empty_mapping(tmp_path):
    text = "tokenizer: gpt2\ndata: {train: a}\nmodel:\ntraining:\n"
    recipe = load_recipe(write(tmp_path, text), ["training.max_steps=3"])
    assert (recipe.model, recipe.training) == ({}, {"max_steps": 3})


MISTAKES = {
    "unknown packing": (RECIPE, ["data.packing=cut"], "`data.packing` is 'cut', but it must be one of wrap, rows"),
    "rows that are not wrapped": (
        RECIPE,
        ["data.packing=rows", "data.bos_token=x"],
        "mean nothing with packing: rows: bos_token",
    ),
    "given tokens of wrapped text": (RECIPE, ["data.given_column=given"], "nothing with packing: wrap: given_column"),
    "an unknown section": (RECIPE + "modle: {}\n", [], "modle"),
    "an unknown data entry": (RECIPE, ["data.trian=x"], "trian"),
    "a section that is missing": ("tokenizer: gpt2\n", [], "data"),
    "data without train": (RECIPE, ["data={}"], "train"),
    "a section that is a word": (RECIPE, ["model=flm"], "`model` is 'flm'"),
    "training as a list": (RECIPE, ["training=[1]"], "`training` is [1]"),
    "an entry that is a number": (RECIPE + "7: 8\n", [], "7"),
    "fields beside the weights": (RECIPE, ["model.from=./x"], "`model` has entries that `from` settles: hidden_size"),
    "no tokenizer": (RECIPE.replace("tokenizer", "teacher"), [], "missing entries: tokenizer"),
    "a share above one": (
        RECIPE,
        ["data.validation_share=2"],
        "`data.validation_share` is 2, but it must lie between",
    ),
    "two held-out texts": (RECIPE, ["data.validation_share=0.1", "data.validation=a"], "neither with `validation`"),
    "a share of a stream": (RECIPE, ["data.validation_share=0.1", "data.streaming=true"], "nor with `streaming`"),
    "no validation rows": (RECIPE, ["data.max_validation_rows=-1"], "is -1, but it must be an integer >= 1"),
    "a part of a process": (RECIPE, ["data.num_proc=1.5"], "`data.num_proc` is 1.5, but it must be an integer"),
    "a buffer that is a word": (RECIPE, ["data.shuffle_buffer=big"], "is 'big', but it must be an integer >= 1"),
    "a stream that may be": (RECIPE, ["data.streaming=maybe"], "`data.streaming` is 'maybe', but it must be true"),
    "neither weights nor a tokenizer": (
        RECIPE.replace("tokenizer: ./tokenizer", ""),
        ["model={from: null}"],
        "missing entries: tokenizer",
    ),
    "unknown documents": (RECIPE, ["data.documents=paragraphs"], "`data.documents` is 'paragraphs', but it must be"),
    "a section that stands twice": (RECIPE + "training: {seed: 1}\n", [], "training stands there twice"),
    "bad YAML": ("model: {type: flm\n", [], "recipe.yaml is not valid YAML"),
    "a list": ("- 1\n", [], "must be a mapping"),
    "nothing": ("", [], "must be a mapping"),
    "an override without a value": (RECIPE, ["training.max_steps"], "'training.max_steps' is not an override"),
    "an override without a name": (RECIPE, ["=3"], "'=3' is not an override"),
    "an override of a value's part": (RECIPE, ["tokenizer.x=3"], "tokenizer is a value"),
    "an override that is bad YAML": (RECIPE, ["training.max_steps=[1"], "training.max_steps=[1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(tmp_path, mistake):
    text, overrides, named = MISTAKES[mistake]
    with pytest.raises(ValueError) as raised:
        load_recipe(write(tmp_path, text), overrides)
    assert named in str(raised.value)


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.yaml", "binary.yaml", ""):
        with pytest.raises(ValueError) as raised:
            load_recipe(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value)
