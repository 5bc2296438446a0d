"""The moving average of the weights: what it is, and where it takes the place of the weights."""

import pytest
import torch
from huggingface_hub import ModelCard
from training import distance, fresh_model, history, make_trainer, same, weights
from transformers import AutoModel, TrainerCallback

from modeling_flm import FLMModel


class _Record(TrainerCallback):
    """Keeps the weights after every step."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(weights(model))


def averaged(start: dict, steps: list[dict], decay: float) -> dict:
    """The average as its definition has it, in float64."""
    average = {name: tensor.double() for name, tensor in start.items()}
    for n, current in enumerate(steps, 1):
        d = min(decay, (1 + n) / (10 + n))
        average = {name: d * average[name] + (1 - d) * current[name].double() for name in average}
    return {name: tensor.float() for name, tensor in average.items()}


def test_what_is_saved_is_the_average_and_what_goes_on_is_not(tmp_path):
    record = _Record()
    start = weights(fresh_model())
    trainer = make_trainer(tmp_path, ema_decay=0.5, max_steps=12, callbacks=[record])
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    saved = weights(FLMModel.from_pretrained(tmp_path / "saved"))
    assert distance(saved, averaged(start, record.weights, decay=0.5)) < 1e-6
    assert distance(saved, record.weights[-1]) > 1e-3
    assert same(weights(trainer.model), record.weights[-1])


def test_a_checkpoint_is_a_model_folder_with_the_average(tmp_path):
    record = _Record()
    start = weights(fresh_model())
    trainer = make_trainer(tmp_path, max_steps=6, save_strategy="steps", save_steps=3, callbacks=[record])
    trainer.train()
    for step in (3, 6):
        model = AutoModel.from_pretrained(tmp_path / f"checkpoint-{step}")
        assert type(model) is FLMModel
        assert distance(weights(model), averaged(start, record.weights[:step], decay=0.9)) < 1e-6


def test_evaluation_takes_the_average_and_gives_the_weights_back(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=10)
    trainer.train()
    raw = weights(trainer.model)
    of_average = trainer.evaluate()["eval_loss"]
    assert same(weights(trainer.model), raw)

    trainer.save_model()
    reloaded = make_trainer(tmp_path, FLMModel.from_pretrained(tmp_path))
    assert reloaded.evaluate()["eval_loss"] == of_average
    trainer.ema = None
    assert abs(trainer.evaluate()["eval_loss"] - of_average) > 1e-3


def test_an_error_during_evaluation_gives_the_weights_back(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    raw = weights(trainer.model)
    with pytest.raises(RuntimeError, match="in between"), trainer.averaged_weights():
        assert not same(weights(trainer.model), raw)
        raise RuntimeError("in between")
    assert same(weights(trainer.model), raw)


def test_decay_zero_keeps_no_average(tmp_path):
    trainer = make_trainer(tmp_path, ema_decay=0.0, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    assert trainer.ema is None
    assert same(weights(FLMModel.from_pretrained(tmp_path)), weights(trainer.model))
    resumed = make_trainer(tmp_path, fresh_model(1), ema_decay=0.0, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights(resumed.model), weights(trainer.model))


@pytest.mark.parametrize("before, after", [(0.9, 0.0), (0.0, 0.9)])
def test_training_goes_on_from_the_raw_weights_when_the_average_is_given_up_or_begun(tmp_path, before, after):
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path, ema_decay=before, **saving)
    whole.train()
    resumed = make_trainer(tmp_path, fresh_model(1), ema_decay=after, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (resumed.ema is None) == (after == 0)
    assert history(resumed, "loss") == history(whole, "loss")
    assert same(weights(resumed.model), weights(whole.model))


class _Worsen(TrainerCallback):
    """Spoils the output layer after step 5."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 5:
            with torch.no_grad():
                model.lm_head.bias[::2] += 5


def test_the_best_checkpoint_is_what_is_saved_in_the_end(tmp_path):
    evaluating = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    options = {"max_steps": 8, "load_best_model_at_end": True}
    trainer = make_trainer(tmp_path, callbacks=[_Worsen()], **evaluating, **options)
    trainer.train()
    losses = history(trainer, "eval_loss")
    assert losses.index(min(losses)) == 1
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    trainer.save_model(tmp_path / "saved")
    saved, checkpoint = (weights(FLMModel.from_pretrained(tmp_path / d)) for d in ("saved", "checkpoint-4"))
    assert same(saved, checkpoint)
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert "steps taken: 4" in card.text and card.data.eval_results[0].metric_value == min(losses)
    assert trainer.evaluate()["eval_loss"] == min(losses)


def test_a_second_call_of_train_begins_an_average_of_its_own(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    start, record = weights(trainer.model), _Record()
    trainer.add_callback(record)
    trainer.train()
    assert distance(trainer.ema.average, averaged(start, record.weights, decay=0.9)) < 1e-6


def test_a_model_in_bfloat16_is_averaged_in_float32(tmp_path):
    trainer = make_trainer(tmp_path, fresh_model().bfloat16(), save_strategy="steps", save_steps=2)
    trainer.train()
    average = {name: tensor.clone() for name, tensor in trainer.ema.average.items()}
    assert all(tensor.dtype == torch.float32 for tensor in average.values())
    resumed = make_trainer(tmp_path, fresh_model(1).bfloat16(), save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(resumed.ema.average, average)
