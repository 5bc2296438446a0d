"""FLMTrainer: it learns, and what it learns does not depend on how its batches are laid out."""

import math
import re
from inspect import Parameter, signature
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny import number_tokenizer
from training import (
    arguments,
    counting_rows,
    distance,
    fresh_model,
    history,
    make_trainer,
    padded_rows,
    padding_on,
    rows_of_different_lengths,
    weights,
)
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from modeling_flm import FLMModel, FMLMModel
from trainers import FLMTrainer, FMLMTrainer
from trainers.publishing import PublishingMixin

# -- learning ---------------------------------------------------------------------------------------------------------


def test_training_learns_what_the_corpus_has_to_teach(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=150)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    # Any token of a row gives the others away; of the token alone, uniform on 30, nothing below log 30 can be known.
    assert before == pytest.approx(math.log(61), abs=1e-4)
    assert after < 0.6 * math.log(30)
    assert history(trainer, "loss")[-1] < 0.6 * math.log(30)


def test_the_same_seed_trains_the_same_model_and_another_seed_another(tmp_path):
    runs = [make_trainer(tmp_path, seed=seed) for seed in (1, 1, 2)]
    for trainer in runs:
        trainer.train()
    losses = [history(trainer, "loss") for trainer in runs]
    assert losses[0] == losses[1] != losses[2]


def test_a_learned_loss_weighting_is_trained_averaged_and_saved_also_of_a_model_made_anew(tmp_path):
    args = arguments(tmp_path, learned_loss_weighting=True)
    trainer = FLMTrainer(args=args, model_init=lambda: fresh_model(), train_dataset=counting_rows(32))
    before = weights(trainer.model.loss_weighting)
    for _ in range(2):
        trainer.train()
        trainer.save_model()
        assert distance(before, weights(trainer.model.loss_weighting)) > 1e-4
        saved = FLMModel.from_pretrained(tmp_path)
        assert saved.loss_weighting is not None and distance(weights(saved), trainer.ema.average) == 0
        assert 1e-4 < distance(weights(trainer.model), trainer.ema.average) < 0.1


# -- batch layouts ----------------------------------------------------------------------------------------------------


def infilling_rows(rows: int) -> Dataset:
    """Counting rows of which different parts are given."""
    return counting_rows(rows).map(
        lambda _, i: {"conditioning_mask": [k % (2 + i % 3) == 0 for k in range(16)]}, with_indices=True
    )


CASES = {
    "plain": {},
    "infilling": {"train_dataset": infilling_rows(32)},
    "weighted": {"learned_loss_weighting": True, "train_dataset": padded_rows(32)},
    "with a last batch of four": {"train_dataset": counting_rows(12)},
}
for side in ("right", "left"):
    data = {"train_dataset": rows_of_different_lengths(32), "data_collator": padding_on(side)}
    CASES[f"as long as the longest, padded on the {side}"] = data | {"conditioning_rate": 0.7}


@pytest.mark.parametrize("case", CASES)
def test_gradient_accumulation_equals_the_big_batch(tmp_path, case):
    runs = []
    for size, accumulated in ((8, 1), (4, 2), (2, 4)):
        layout = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        layout["adam_epsilon"] = 1e-4  # or Adam divides rounding errors by gradients that are nearly zero
        trainer = make_trainer(tmp_path, max_steps=6, **layout, **CASES[case])
        trainer.train()
        runs.append((history(trainer, "loss"), history(trainer, "grad_norm"), weights(trainer.model)))
    for losses, norms, final in runs[1:]:
        assert losses == pytest.approx(runs[0][0], rel=1e-5)
        assert norms == pytest.approx(runs[0][1], rel=1e-4)
        assert distance(final, runs[0][2]) < 1e-5


# -- batches ----------------------------------------------------------------------------------------------------------


def batches_of(folder, **changes) -> list[tuple[dict, object]]:
    """What the model was called with in a training, and what it answered."""
    model, calls = fresh_model(), []
    model.register_forward_hook(lambda _, args, kwargs, out: calls.append((kwargs, out)), with_kwargs=True)
    make_trainer(folder, model, **{"max_steps": 1} | changes).train()
    return calls


def test_padding_is_not_scored(tmp_path):
    [(inputs, output)] = batches_of(tmp_path, train_dataset=padded_rows(32))
    assert (inputs["attention_mask"] == 0).any()
    assert torch.equal(output.scored, inputs["attention_mask"])
    assert int(inputs["num_items_in_batch"]) == int(inputs["attention_mask"].sum())


def test_what_a_conditioning_mask_gives_is_not_scored(tmp_path):
    [(inputs, output)] = batches_of(tmp_path, train_dataset=infilling_rows(32))
    assert torch.equal(output.scored == 1, ~inputs["conditioning_mask"].bool())
    assert float(output.loss) == pytest.approx(math.log(61), abs=1e-4)


def test_labels_of_the_dataset_are_used_as_they_are(tmp_path):
    rows = counting_rows(8)["input_ids"]
    labels = [[-100] * 6 + ids[6:] for ids in rows]
    [(inputs, output)] = batches_of(tmp_path, train_dataset=Dataset.from_dict({"input_ids": rows, "labels": labels}))
    assert sorted(inputs["labels"].tolist()) == sorted(labels)
    assert not output.scored[:, :6].any() and output.scored[:, 6:].all()


def test_conditioning_keeps_the_ids_takes_the_labels_and_leaves_something_to_predict(tmp_path):
    calls = batches_of(tmp_path, conditioning_rate=1.0, per_device_train_batch_size=1, max_steps=60)
    kept = torch.cat([inputs["labels"] == -100 for inputs, _ in calls])
    assert 0.3 < kept.float().mean() < 0.7
    assert all((inputs["input_ids"] >= 0).all() for inputs, _ in calls)
    assert all(math.isfinite(output.loss) and output.loss > 0 for _, output in calls)


def test_a_collator_makes_a_row_of_an_example_or_none(tmp_path):
    def two_of_each(examples):
        return default_data_collator([example for example in examples for _ in range(2)])

    def some(examples):
        return default_data_collator([example for example in examples if example["input_ids"][0] % 3 > 0])

    with pytest.raises(ValueError, match=r"16 rows of at most 8 examples.*split examples in the data set"):
        make_trainer(tmp_path, data_collator=two_of_each).train()
    trainer = make_trainer(tmp_path, data_collator=some, gradient_accumulation_steps=2)
    trainer.train()
    assert history(trainer, "loss")[0] == pytest.approx(math.log(61), abs=1e-4)


# -- what goes wrong --------------------------------------------------------------------------------------------------


class _Poison(TrainerCallback):
    """Makes a weight NaN at the end of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                model.lm_head.bias[3] = torch.nan


@pytest.mark.parametrize(
    "step, logging, message",
    [
        (3, {}, r"`loss` is nan at step 4.*checkpoint-2"),
        (3, {"logging_steps": 100}, r"step 4.*checkpoint-2"),
        (2, {"logging_steps": 5, "save_strategy": "no"}, "at step 5: .* that of the batch of step 3.* whole .* none"),
        (1, {"logging_strategy": "no", "save_strategy": "no", "max_steps": 4}, "step 4"),
    ],
)
def test_a_poisoned_weight_stops_training_and_is_never_saved(tmp_path, step, logging, message):
    """At the next step that is logged, is saved or is the last; the batch where it began is named."""
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8} | logging
    with pytest.raises(FloatingPointError, match=message):
        make_trainer(tmp_path, callbacks=[_Poison(step)], **options).train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} <= {"checkpoint-2"}


def test_one_process_takes_one_gpu_of_several(tmp_path):
    args = arguments(tmp_path)
    args._n_gpu = 4
    assert args.n_gpu == 1
    assert args.train_batch_size == args.eval_batch_size == 8


def test_what_it_cannot_train_with_is_refused(tmp_path, monkeypatch):
    def function(outputs, labels, num_items_in_batch=None):
        return outputs.loss

    with pytest.raises(ValueError, match="FLMTrainingArguments"):
        FLMTrainer(fresh_model(), TrainingArguments(output_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="`compute_loss_func` would keep the labels"):
        FLMTrainer(fresh_model(), arguments(tmp_path), compute_loss_func=function)
    with pytest.raises(ValueError, match="diagonal of a flow map alone.*use FMLMTrainer"):
        make_trainer(tmp_path, fresh_model(kind=FMLMModel)).train()
    with pytest.raises(ValueError, match="DeepSpeed is not supported.*`fsdp=True`"):
        arguments(tmp_path, deepspeed={"zero_optimization": {"stage": 2}})
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed is not supported"):
        arguments(tmp_path)


BAD_VALUES = {
    "ema_decay": [1.0, -0.1, float("nan"), "0.9x"],
    "conditioning_rate": [1.5, -0.5],
    "num_samples": [-1, "1"],
    "label_smoothing_factor": [0.1],
    "neftune_noise_alpha": [5.0],
    "train_sampling_strategy": ["batch_rebalance"],
    "sample_num_steps": [8, [0], [8, -1], ["many"]],
}


@pytest.mark.parametrize("name, value", [(name, value) for name in BAD_VALUES for value in BAD_VALUES[name]])
def test_a_bad_argument_is_refused_by_name(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        arguments(tmp_path, **{name: value})


def test_a_loss_of_some_times_is_better_if_it_is_less(tmp_path):
    chosen = dict(metric_for_best_model="eval_loss_tau_0.8_1.0")
    assert arguments(tmp_path, **chosen).greater_is_better is False
    assert arguments(tmp_path, **chosen, greater_is_better=True).greater_is_better is True


def test_a_schedule_free_optimiser_averages_by_itself(tmp_path):
    with pytest.raises(ValueError, match="`ema_decay` is 0.9, but it must be 0 with a schedule-free optimiser"):
        arguments(tmp_path, optim="schedule_free_adamw")
    assert arguments(tmp_path, optim="schedule_free_adamw", ema_decay=0).ema_decay == 0


def test_a_line_of_samples_that_was_cut_off_is_left_out_of_the_card(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"step": 2, "num_st\n')
    sampled = dict(eval_strategy="steps", eval_steps=4, num_samples=1, sample_num_steps=[2])
    trainer = make_trainer(tmp_path, **sampled)
    trainer.processing_class = number_tokenizer()
    trainer.train()
    trainer.save_model()
    assert "after 4 steps of training" in (tmp_path / "README.md").read_text()


def test_what_is_overridden_of_the_trainer_takes_what_it_gives_and_the_private_methods_are_known():
    """docs/architecture.md lists them with the version of transformers that they were read in."""
    overridden = set()
    for kind in (FLMTrainer, FMLMTrainer, PublishingMixin):
        for name in vars(kind).keys() & {name for name in vars(Trainer) if not name.startswith("__")}:
            overridden.add(name)
            ours, theirs = ([*signature(vars(one)[name]).parameters.values()] for one in (kind, Trainer))
            if ours[-1].kind == Parameter.VAR_KEYWORD:  # what is not named is passed on
                ours = [
                    parameter
                    for parameter in ours
                    if parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
                ]
                theirs = theirs[: len(ours)]
            found, expected = ([(p.name, p.kind, p.default) for p in one] for one in (ours, theirs))
            assert found == expected, name
    page = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text()
    listed = set(re.findall(r"`(_\w+)`", page.split("Private methods of transformers' Trainer")[1].split("\n* ")[0]))
    assert {name for name in overridden if name.startswith("_")} == listed
