"""What a card refuses to leave out, and what it says to the Hub."""

import re
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from huggingface_hub import EvalResult, ModelCard
from tiny import random_ids, tiny_model

from hub_cards.card import model_card
from trainers import FLMTrainer, FLMTrainingArguments

RESULT = EvalResult("text-generation", "text", "held-out rows", "perplexity", 71.25, metric_args={"steps": 8})
WHOLE = dict(
    name="org/map",
    model_type="fmlm",
    parameters=4_100_000,
    writes="four tokens",
    num_steps=1,
    made=["Data: rows."],
    quality="Measured.",
    limits="Small.",
    results=[RESULT],
)


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
    args = FLMTrainingArguments(
        str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=4, logging_steps=1, use_cpu=True,
        report_to="none", eval_strategy="steps", eval_steps=1, seed=7,
    )  # fmt: skip
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
    assert re.search(r"\* loss: \d\.\d{4}", card.text) and str(Path.home()) not in card.text
