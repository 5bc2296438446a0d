"""What a card refuses to leave out, what it says to the Hub, and whose repository it names."""

import json
import re
import shutil
from difflib import SequenceMatcher
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import EvalResult, ModelCard
from tiny import number_tokenizer, random_ids, tiny_model
from training import arguments, counting_rows, fresh_model, plain_arguments
from transformers import AutoModel, Trainer

from benchmarks.cards import SAMPLES, card, draw, shipped
from benchmarks.few_step import RESULTS
from command.main import main
from hub_cards.push import card_in, remarks, to_upload
from trainers import FLMTrainer
from trainers.model_card import END, Samples, in_repository, model_card

LINK = re.compile(r"\]\(([^)\s]+)\)")
RESULT = EvalResult("text-generation", "text", "held-out rows", "perplexity", 71.25, metric_args={"steps": 8})
WHOLE = dict(name="org/map", model_type="fmlm", parameters=4_100_000, writes="four tokens", num_steps=1)
WHOLE |= dict(made=["Data: rows."], quality="Measured.", limits="Small.", results=[RESULT])


def test_a_card_is_read_back_as_it_was_written():
    text = model_card(**WHOLE, license="apache-2.0", base_model="org/flow", datasets=["org/rows"], tags=["sudoku"])
    card = ModelCard(text)
    assert card.data.eval_results[0].metric_value == 71.25 and card.data.eval_results[0].metric_args == {"steps": 8}
    assert (card.data.base_model, card.data.datasets) == ("org/flow", ["org/rows"])
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["flow-language-model", "fmlm", "one-step-generation", "sudoku"]
    assert "of 4.1 M parameters that writes four tokens" in text and "lee2026flow" in text and "{{" not in text
    assert yaml.safe_load(text.split("---\n")[1])["model-index"][0]["name"] == "map"


@pytest.mark.parametrize("missing", ["writes", "quality", "limits", "name"])
def test_nothing_is_left_blank(missing):
    with pytest.raises(ValueError, match=f"says nothing of `{missing}`"):
        model_card(**WHOLE | {missing: " "})
    with pytest.raises(TypeError, match=missing):
        model_card(**{name: value for name, value in WHOLE.items() if name != missing})


def test_what_is_not_finite_is_not_stated():
    result = EvalResult("text-generation", "text", "rows", "perplexity", float("nan"), metric_name="gPPL")
    with pytest.raises(ValueError, match="org/map would say that gPPL is nan"):
        model_card(**WHOLE | {"results": [result]})


def test_a_trainer_writes_the_card_beside_the_model(tmp_path):
    rows = Dataset.from_dict({"input_ids": random_ids(8, 12).tolist()})
    args = arguments(
        tmp_path / "run", max_steps=2, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=1, seed=7
    )
    trainer = FLMTrainer(tiny_model(), args, train_dataset=rows, eval_dataset=rows)
    trainer.trained_on = ["org/rows"]
    trainer.train()
    trainer.save_model()
    card = ModelCard.load(tmp_path / "run" / "README.md")
    (result,) = card.data.eval_results
    measured = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert result.metric_type == "loss" and result.metric_value == pytest.approx(measured[-1], abs=1e-6)
    assert card.data.datasets == ["org/rows"] and card.data.base_model is None
    for line in ("Trained from: fresh weights.", "Data: org/rows (8 rows).", "rows per step: 4", "seed: 7"):
        assert f"* {line}\n" in card.text
    assert re.search(r"Loss of the training, its own objective: \d\.\d{4}\.\n", card.text)
    assert re.search(r"\* eval loss: \d\.\d{4}", card.text) and str(Path.home()) not in card.text
    assert "* trainer: FLMTrainer\n" in card.text and "* max steps: 2\n" in card.text and "epochs" not in card.text


# -- the name of the repository ---------------------------------------------------------------------------------------


def test_on_the_hub_a_card_names_its_repository_and_its_base_there_and_nothing_else_changes():
    wild = f"```\n{END}\n---\n# map"
    said = WHOLE | {"name": "map", "samples": [Samples([wild, "plain"], 1, seed=3, said=", at dusk")]}
    local = model_card(**said, base_model="flow", license="mit") + "\nAdded by hand: [map](map.txt).\n"
    pushed = in_repository(local, "me/other", 1, {"flow": "me/flow"})
    before, after = ModelCard(local), ModelCard(pushed)
    assert after.data.to_dict()["model-index"][0].pop("name") == "other" and after.data.base_model == "me/flow"
    assert after.data.eval_results == before.data.eval_results and after.data.license == "mit"
    assert pushed.startswith("---\n") and "\n# other\n" in pushed
    assert pushed.count('"me/other"') == 3 and '"map"' not in pushed and '"map"' in local
    assert "[me/flow](https://huggingface.co/me/flow)" in pushed and "Base model: `flow`" in local
    assert after.text.split("## How it was made")[1] == before.text.split("## How it was made")[1]
    assert f"````text\n{wild}\n````" in pushed and "`generate(num_steps=1, seed=4)`, at dusk:" in pushed
    assert in_repository(pushed, "me/other", 1, {}) == pushed


def test_a_card_by_hand_keeps_its_text():
    local = '---\nlicense: mit\nbase_model:\n- flow\n- other/flow\n---\n\n# Mine\n\n`from_pretrained("mine")`\n'
    pushed = in_repository(local, "me/mine", 1, {"flow": "me/flow"})
    assert pushed == local.replace("- flow\n", "- me/flow\n")
    (said,) = [remark for remark in remarks(pushed, {}, "me/mine") if "examples" in remark]
    assert "do not load me/mine" in said


def test_the_cards_of_the_shipped_models_resolve_in_any_organisation(tmp_path):
    measured = json.loads(RESULTS.read_text())
    names = {folder.name for folder in shipped()}
    for folder in shipped():
        copy = tmp_path / folder.name
        copy.mkdir()
        for name in ("config.json", "generation_config.json"):
            shutil.copy(folder / name, copy)
        (copy / "README.md").write_text(card(folder, measured))
    for name in sorted(names):
        text = card_in(tmp_path / name, f"org/{name}")
        data, flow = ModelCard(text).data, name.replace("fmlm-", "flm-")
        assert data.base_model == (f"org/{flow}" if name != flow else None) and flow in names
        assert all(link.startswith("https://") for link in LINK.findall(text))
        assert set(re.findall(r'(?:from_pretrained\(|model=)"([^"]+)"', text)) == {f"org/{name}"}
        assert "## Samples" in text and text.count("`generate(num_steps=") == (4 if name != flow else 2)
        unnamed = ["the card names no data set on the Hub (flm card --dataset org/name)."]
        assert remarks(text, {}, f"org/{name}") == ([] if "stories" in name else unnamed)


@pytest.mark.parametrize("folder", shipped(), ids=lambda folder: folder.name)
def test_the_samples_of_the_shipped_models_are_theirs(folder):
    """Nearly: another processor may round a token to another."""
    shown = json.loads(SAMPLES.read_text())[folder.name]
    drawn, shown = ("\n".join(text for samples in both for text in samples["texts"]) for both in (draw(folder), shown))
    assert SequenceMatcher(None, drawn, shown, autojunk=False).ratio() > 0.9


# -- what a training leaves -------------------------------------------------------------------------------------------


TOKENIZER = number_tokenizer(pad_token="60")


def written(text: str) -> list[tuple[int, int, str]]:
    """The samples in a card: evaluations, seed, text."""
    found = re.findall(r"`generate\(num_steps=(\d+), seed=(\d+)\)`[^\n]*\n\n```text\n(.*)\n```", text)
    return [(int(steps), int(seed), sample) for steps, seed, sample in found]


def are_of(folder: Path, samples: list[tuple[int, int, str]]) -> bool:
    """Whether the model in a folder writes these samples."""
    model = AutoModel.from_pretrained(folder).eval()
    return all(TOKENIZER.decode(model.generate(num_steps=n, seed=seed)[0]) == text for n, seed, text in samples)


def test_the_card_of_a_training_holds_its_own_samples(tmp_path):
    stale = {"step": 4, "num_steps": 1, "samples": ["of an earlier run"]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(stale) + "\n")
    data = dict(train_dataset=counting_rows(16), eval_dataset=counting_rows(4, 40), processing_class=TOKENIZER)
    for num_samples in (0, 3):
        args = arguments(
            tmp_path, num_samples=num_samples, sample_num_steps=[1, 2], eval_strategy="steps", eval_steps=2
        )
        trainer = FLMTrainer(fresh_model(), args, **data)
        trainer.train()
        trainer.save_model()
        text = (tmp_path / "README.md").read_text()
        assert "of an earlier run" not in text and ("## Samples" in text) == (num_samples > 0)
    samples = written(text)
    assert [(steps, seed) for steps, seed, _ in samples] == [(1, 42), (1, 43), (2, 42), (2, 43)]
    assert are_of(tmp_path, samples) and text.count(", after 4 steps of training:") == 4


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """What the plain Trainer leaves: without a card, its log in a checkpoint."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    saved = dict(save_strategy="steps", save_steps=2, per_device_train_batch_size=4)
    args = plain_arguments(folder, **saved, eval_strategy="steps", eval_steps=2)
    rows = counting_rows(8).map(lambda row: {"labels": row["input_ids"]})
    trainer = Trainer(fresh_model(), args, train_dataset=rows, eval_dataset=rows, processing_class=TOKENIZER)
    trainer.train()
    trainer.save_model()
    return folder


def test_flm_card_writes_what_the_folder_tells(plain, tmp_path, capsys):
    folder = shutil.copytree(plain, tmp_path / "model")
    code = {path.name: path.read_bytes() for path in folder.glob("*_flm.py")}
    generation = json.loads((folder / "generation_config.json").read_text())
    for name in [*code, "generation_config.json"]:
        (folder / name).unlink()
    assert main(["push", str(folder), "me/plain", "--dry-run"]) == 1
    assert "has no README.md, which a repository needs: `flm card` writes it" in capsys.readouterr().err
    assert main(["card", str(folder), "--name", "me/plain", "--dataset", "me/rows", "--license", "mit"]) == 0
    assert "modeling_flm.py" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.glob("*_flm.py")} == code
    assert json.loads((folder / "generation_config.json").read_text()) == generation
    text = (folder / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.license, data.datasets, data.base_model) == ("mit", ["me/rows"], None)
    (result,) = data.eval_results
    log = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert result.metric_value == [entry["eval_loss"] for entry in log if "eval_loss" in entry][-1]
    for line in ("Data: me/rows.", "Steps of training: 4, by `checkpoint-4/trainer_state.json`."):
        assert f"* {line}\n" in text
    assert "at most 0.003," in text and 'from_pretrained("me/plain"' in text and "0.0 M parameters" in text
    samples = written(text)
    assert [(steps, seed) for steps, seed, _ in samples] == [(64, 0), (64, 1)] and are_of(folder, samples)
    assert main(["push", str(folder), "me/plain", "--dry-run"]) == 0 and capsys.readouterr().err == ""


def test_the_log_is_that_of_the_weights(plain, tmp_path, capsys):
    """Of the best checkpoint, not the last; and none at all where no file tells."""
    folder = shutil.copytree(plain, tmp_path / "best")
    shutil.copy(folder / "checkpoint-2" / "model.safetensors", folder)
    assert main(["card", str(folder)]) == 0
    text = (folder / "README.md").read_text()
    assert "Steps of training: 2, by `checkpoint-2/trainer_state.json`." in text
    bare = shutil.copytree(plain, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoint-*"))
    assert main(["card", str(bare)]) == 0
    text = (bare / "README.md").read_text()
    assert "Its training is not recorded in this folder." in text and "No held-out loss was measured." in text
    assert ModelCard(text).data.eval_results is None
    for name in ("recipe.yaml", "README.md"):
        (bare / name).unlink(missing_ok=True)
    shutil.copy(folder / "checkpoint-4" / "trainer_state.json", bare)
    assert main(["card", str(bare)]) == 0
    assert "Steps of training: 4, by `trainer_state.json`." in (bare / "README.md").read_text()


def test_flm_card_keeps_a_text_that_somebody_wrote_and_what_transformers_knew(plain, tmp_path, capsys):
    folder = shutil.copytree(plain, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    stock = "This model card has been generated automatically according to the information the Trainer had access to."
    head = "---\nlicense: mit\nbase_model: me/flow\ndatasets:\n- me/rows\ntags:\n- generated_from_trainer\n---\n"
    (folder / "README.md").write_text(f"{head}\n<!-- {stock} -->\n\n# model\n\nMore information needed\n")
    assert main(["push", str(folder), "me/model", "--dry-run"]) == 0
    assert "that of transformers, with blanks" in capsys.readouterr().err
    assert main(["card", str(folder)]) == 0
    assert stock in (folder / "README.old.md").read_text() and "README.old.md" not in to_upload(folder)
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.base_model, card.data.datasets) == ("mit", "me/flow", ["me/rows"])
    assert "More information needed" not in card.text and "generated_from_trainer" not in card.data.tags
    with open(folder / "README.md", "a") as file:
        file.write(f"\nBy hand.\n<!-- {stock} -->\n")  # without blanks it is somebody's
    before = (folder / "README.md").read_text()
    assert main(["card", str(folder)]) == 0 and (folder / "README.md").read_text() == before
    assert main(["card", str(folder), "--license", "apache-2.0", "--name", "me/model"]) == 0
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0" and "By hand." in card.text and '"me/model"' in card.text


def masked(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"masked_diffusion": True}))


def old(folder: Path) -> None:
    (folder / "flow_flm.py").write_text("old")
    (folder / "modeling_flm.py").unlink()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'), "not a flow language model"),
        (masked, "is a masked diffusion model, no flow"),
        (old, "its flow_flm.py is not that of this version"),
        (shutil.rmtree, "is no folder"),
    ],
)
def test_flm_card_refuses(plain, tmp_path, capsys, change, message):
    folder = shutil.copytree(plain, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    change(folder)
    assert main(["card", str(folder)]) == 1
    assert message in capsys.readouterr().err and not (folder / "README.md").exists()
