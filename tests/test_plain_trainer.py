"""transformers' own Trainer fine-tunes a saved checkpoint, with no class of ours but the model's."""

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from tiny import number_tokenizer
from training import (
    LENGTH,
    VOCABULARY,
    by_step,
    counting_rows,
    distance,
    fresh_model,
    history,
    padded_rows,
    plain_arguments,
    rows_of_different_lengths,
    same,
    weights,
)
from transformers import AutoModel, Trainer, default_data_collator

from modeling_flm import FMLMModel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    fresh_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return number_tokenizer(VOCABULARY, pad_token=str(VOCABULARY - 1))


def plain_trainer(checkpoint, folder, collator=default_data_collator, *, train=None, evaluation=None, **changes):
    args = plain_arguments(folder, **{"lr_scheduler_type": "constant"} | changes)
    model, train = AutoModel.from_pretrained(checkpoint), labelled(32) if train is None else train
    return Trainer(model, args, collator, train_dataset=train, eval_dataset=evaluation)


def labelled(rows: int) -> Dataset:
    return counting_rows(rows).map(lambda row: {"labels": row["input_ids"]})


def seeded(rows: int, prompt: int = 0) -> Dataset:
    """Rows with a `noise_seed` each; of every three one has a prompt of `prompt` tokens and one of twice as many."""

    def add(row, i):
        given = prompt * (i % 3)
        return {"noise_seed": 1000 + i, "labels": [-100] * given + row["labels"][given:]}

    return labelled(rows).map(add, with_indices=True)


def calls(model) -> list[dict]:
    """The inputs of the calls to come."""
    recorded: list[dict] = []

    def record(module, args, kwargs, output) -> None:
        recorded.append(kwargs | {"scored": output.scored})

    model.register_forward_hook(record, with_kwargs=True)
    return recorded


def collator_of_language_models(tokenizer) -> transformers.DataCollatorForLanguageModeling:
    return transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)


def test_with_noise_seeds_gradient_accumulation_equals_the_big_batch(checkpoint, tmp_path):
    """Also where prompts of different lengths are not scored."""
    runs = []
    for size, accumulated in ((8, 1), (4, 2), (2, 4)):
        layout = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        layout["adam_epsilon"] = 1e-4  # or Adam divides rounding errors by gradients that are nearly zero
        trainer = plain_trainer(checkpoint, tmp_path, train=seeded(32, prompt=4), **layout)
        trainer.train()
        runs.append((history(trainer, "loss"), history(trainer, "grad_norm"), weights(trainer.model)))
    for losses, norms, final in runs[1:]:
        assert losses == pytest.approx(runs[0][0], rel=1e-5)
        assert norms == pytest.approx(runs[0][1], rel=1e-4)
        assert distance(final, runs[0][2]) < 1e-5


def test_with_noise_seeds_the_evaluation_loss_is_the_same_again_and_in_other_batches(lively, tmp_path):
    losses = []
    for size in (4, 12):
        trainer = plain_trainer(lively, tmp_path, evaluation=seeded(12), per_device_eval_batch_size=size)
        losses.append([trainer.evaluate()["eval_loss"] for _ in range(2)])
        assert losses[-1][0] == losses[-1][1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_prompt_labelled_minus_100_conditions_and_is_not_scored(checkpoint, tmp_path):
    trainer = plain_trainer(checkpoint, tmp_path, train=seeded(8, prompt=4), max_steps=1)
    recorded = calls(trainer.model)
    trainer.train()
    [call] = recorded
    prompts = (call["labels"] == -100).sum(1).sort().values
    assert prompts.tolist() == [0, 0, 0, 4, 4, 4, 8, 8]
    assert torch.equal(call["scored"] == 1, call["labels"] != -100)
    assert int(call["num_items_in_batch"]) == 8 * LENGTH - int(prompts.sum())


def test_it_learns_and_the_collator_of_language_models_pads_what_is_not_scored(checkpoint, tmp_path, tokenizer):
    collator, dataset = collator_of_language_models(tokenizer), rows_of_different_lengths(32)
    trainer = plain_trainer(checkpoint, tmp_path, collator, train=dataset, evaluation=dataset, max_steps=150)
    recorded = calls(trainer.model)
    trainer.train()
    for call in recorded:
        assert torch.equal(call["scored"], call["attention_mask"])
        assert int(call["num_items_in_batch"]) == int(call["scored"].sum())
    losses = history(trainer, "loss")
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0]
    assert trainer.evaluate()["eval_loss"] < 0.6 * losses[0]


def test_a_collator_that_pads_labels_serves_prompts_of_different_lengths(checkpoint, tmp_path, tokenizer):
    dataset = rows_of_different_lengths(16).map(lambda row: {"labels": [-100] * 3 + row["input_ids"][3:]})
    collator = transformers.DataCollatorForTokenClassification(tokenizer)
    trainer = plain_trainer(checkpoint, tmp_path, collator, train=dataset)
    recorded = calls(trainer.model)
    trainer.train()
    for call in recorded:
        assert torch.equal(call["scored"][:, 3:], call["attention_mask"][:, 3:])
        assert not call["scored"][:, :3].any()


# -- what the loss is divided by --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lively(tmp_path_factory):
    """A checkpoint whose losses differ from position to position."""
    torch.manual_seed(5)
    model = fresh_model()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("lively")
    model.save_pretrained(folder)
    return folder


def fixed(dataset: Dataset) -> Dataset:
    """With the noise and the time of each row settled."""
    return dataset.map(lambda _, i: {"noise_seed": 50 + i, "timesteps": (0.3 + 0.17 * i) % 1}, with_indices=True)


def padded_before(rows: int) -> Dataset:
    """Rows of different lengths padded in the data set, the labels as well: `labels = input_ids`."""
    return padded_rows(rows).map(lambda row: {"labels": row["input_ids"]})


def losses_alone(model, call: dict) -> list[torch.Tensor]:
    """The losses of each row's tokens, without padding and batch."""
    found, columns = [], ("input_ids", "attention_mask", "noise_seed", "timesteps")
    for ids, mask, seed, tau in zip(*(call[name] for name in columns), strict=True):
        ids = ids[None, mask.bool()]
        found.append(model(labels=ids, noise_seed=[int(seed)], timesteps=tau[None]).token_losses[0])
    return found


COLLATORS = {
    "default_data_collator": lambda tokenizer: default_data_collator,
    "DataCollatorWithPadding": transformers.DataCollatorWithPadding,
    "DataCollatorForLanguageModeling": collator_of_language_models,
    "DataCollatorForSeq2Seq": transformers.DataCollatorForSeq2Seq,
}


@pytest.mark.parametrize("name, side", [*((name, "right") for name in COLLATORS), ("DataCollatorForSeq2Seq", "left")])
def test_the_loss_is_the_mean_over_what_is_scored(lively, tmp_path, tokenizer, monkeypatch, name, side):
    """The micro-batches of a step are weighted by their labels: where padding is labelled -100 as in one batch."""
    monkeypatch.setattr(tokenizer, "padding_side", side)
    padded = name in ("default_data_collator", "DataCollatorWithPadding")  # which pad no labels
    rows = fixed(padded_before(16) if padded else rows_of_different_lengths(16))
    if name == "DataCollatorForSeq2Seq":
        rows = rows.map(lambda row: {"labels": row["input_ids"]})
    for size, accumulated, workers in ((8, 1, 0), (2, 4, 2)):
        layout = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        layout |= {"dataloader_num_workers": workers, "learning_rate": 0.0, "max_steps": 2}
        trainer = plain_trainer(lively, tmp_path, COLLATORS[name](tokenizer), train=rows, **layout)
        recorded = calls(trainer.model)
        trainer.train()
        expected, of_all = [], []
        for step in range(2):
            micro = recorded[step * accumulated : (step + 1) * accumulated]
            alone = [torch.cat(losses_alone(trainer.model, call)) for call in micro]
            labels = torch.tensor([float((call["labels"] != -100).sum()) for call in micro])
            means = torch.stack([losses.mean() for losses in alone])
            expected.append(float((labels / labels.sum()) @ means))
            of_all.append(float(torch.cat(alone).mean()))
        assert history(trainer, "loss") == pytest.approx(expected, rel=1e-4)
        if accumulated == 1 or not padded:
            assert history(trainer, "loss") == pytest.approx(of_all, rel=1e-4)


def test_a_micro_batch_with_nothing_to_score_adds_nothing(lively, tmp_path):
    """Nor does a step: its gradient is zero. In evaluation such a batch is left out."""
    rows = fixed(labelled(4)).map(
        lambda row, i: {"labels": row["labels"] if i < 2 else [-100] * LENGTH}, with_indices=True
    )
    options = {"train_sampling_strategy": "sequential", "learning_rate": 0.0, "max_steps": 1, "num_train_epochs": 1}
    parts = {"evaluation": rows, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 2}
    whole = plain_trainer(lively, tmp_path, train=rows, per_device_train_batch_size=4, **options)
    parted = plain_trainer(lively, tmp_path, train=rows, per_device_train_batch_size=2, **parts, **options)
    nothing = plain_trainer(lively, tmp_path, train=rows.select([2, 3]), per_device_train_batch_size=2, **options)
    for trainer in (whole, parted, nothing):
        trainer.train()
    assert history(parted, "loss") == pytest.approx(history(whole, "loss"), rel=1e-5)
    assert history(parted, "loss")[0] > 1 and history(nothing, "loss") == history(nothing, "grad_norm") == [0]
    assert parted.evaluate()["eval_loss"] == pytest.approx(history(whole, "loss")[0], rel=1e-5)


def test_what_it_cannot_train_with_is_refused_in_a_line(checkpoint, tmp_path, tokenizer):
    def attempt(message: str, *args, error=ValueError, loss=None, model=checkpoint, **changes):
        trainer = plain_trainer(model, tmp_path, *args, **changes)
        trainer.compute_loss_func = loss
        with pytest.raises(error, match=message):
            trainer.train()
        return trainer

    smoothing = "`label_smoothing_factor` and `compute_loss_func`"
    attempt(smoothing, label_smoothing_factor=0.1)
    attempt(smoothing, train=fixed(labelled(8)), label_smoothing_factor=0.1)
    attempt(smoothing, loss=lambda outputs, labels, num_items_in_batch=None: outputs.loss)
    attempt("To train, give `labels`", train=counting_rows(8))
    joined = transformers.DataCollatorWithFlattening()
    attempt("DataCollatorWithFlattening .* pad them", joined, per_device_train_batch_size=1, error=TypeError)
    unequal = rows_of_different_lengths(8).map(lambda row: {"labels": row["input_ids"]})
    attempt("`labels` in this case", transformers.DataCollatorWithPadding(tokenizer), train=unequal)

    fresh_model(kind=FMLMModel).save_pretrained(tmp_path / "map")  # which is evaluated all the same
    diagonal = "diagonal of a flow map alone.*use FMLMTrainer"
    trainer = attempt(diagonal, model=tmp_path / "map", evaluation=labelled(8))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(np.log(VOCABULARY), rel=1e-5)


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_the_evaluation_loss_is_the_same_again_without_seeds(lively, tmp_path, tokenizer, monkeypatch):
    losses, collator = [], collator_of_language_models(tokenizer)
    for size, side, workers in ((12, "right", 0), (12, "left", 2), (1, "left", 0)):
        monkeypatch.setattr(tokenizer, "padding_side", side)
        changes = {"per_device_eval_batch_size": size, "dataloader_num_workers": workers}
        rows = rows_of_different_lengths(12)
        if size == 1:  # where a row's mean is a batch's mean: rows of one length
            rows = rows.filter(lambda row: len(row["input_ids"]) == 8)
        trainer = plain_trainer(lively, tmp_path, collator, evaluation=rows, **changes)
        losses.append([trainer.evaluate()["eval_loss"] for _ in range(2)])
        assert losses[-1][0] == losses[-1][1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_is_scored_can_be_told_in_batches_of_different_lengths(lively, tmp_path, tokenizer):
    """The Trainer joins them, and fills up with -100."""
    seen = {}

    def by_hand(evaluated) -> dict:
        losses, scored, times = evaluated.predictions
        seen["scored"], seen["times"] = scored, times
        return {"mean": losses[scored == 1].mean()}

    rows, collator = rows_of_different_lengths(12), collator_of_language_models(tokenizer)
    trainer = plain_trainer(lively, tmp_path, collator, evaluation=rows, per_device_eval_batch_size=2)
    trainer.compute_metrics = by_hand
    found = trainer.evaluate()["eval_mean"]
    lengths = [len(ids) for ids in rows["input_ids"]]
    assert (seen["scored"] == 1).sum(1).tolist() == lengths and seen["times"].shape == (12,)
    trainer.model.eval()
    losses = [trainer.model(labels=torch.tensor([ids])).token_losses[0] for ids in rows["input_ids"]]
    assert found == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


# -- going on ---------------------------------------------------------------------------------------------------------


def test_its_checkpoints_load_and_training_goes_on_from_them(checkpoint, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    whole = plain_trainer(checkpoint, tmp_path, **saving)
    whole.train()
    assert same(weights(AutoModel.from_pretrained(tmp_path / "checkpoint-6")), weights(whole.model))
    resumed = plain_trainer(checkpoint, tmp_path / "resumed", **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert by_step(resumed, "loss") == by_step(whole, "loss")
    assert same(weights(resumed.model), weights(whole.model))
