"""transformers' own Trainer fine-tunes a saved checkpoint, with no class of ours but the model's."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from training import LENGTH, VOCABULARY, by_step, counting_rows, distance, fresh_model, history, same, weights
from transformers import (
    AutoModel,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

PAD = VOCABULARY - 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    fresh_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    words = {f"w{i}": i for i in range(VOCABULARY)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), pad_token=f"w{PAD}")


def plain_trainer(checkpoint, folder, collator=default_data_collator, *, train=None, evaluation=None, **changes):
    values = dict(
        max_steps=4,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    args = TrainingArguments(output_dir=str(folder), **values | changes)
    model = AutoModel.from_pretrained(checkpoint)
    return Trainer(
        model, args, collator, train_dataset=train if train is not None else labelled(32), eval_dataset=evaluation
    )


def labelled(rows: int) -> Dataset:
    return counting_rows(rows).map(lambda row: {"labels": row["input_ids"]})


def seeded(rows: int, prompt: int = 0) -> Dataset:
    """Rows with a `noise_seed` each; of every three one has a prompt of `prompt` tokens and one of twice as many."""

    def add(row, i):
        given = prompt * (i % 3)
        return {"noise_seed": 1000 + i, "labels": [-100] * given + row["labels"][given:]}

    return labelled(rows).map(add, with_indices=True)


def different_lengths(rows: int) -> Dataset:
    ids = counting_rows(rows)["input_ids"]
    return Dataset.from_dict({"input_ids": [row[: 6 + i % 9] for i, row in enumerate(ids)]})


def calls(model) -> list[dict]:
    """The inputs of the calls to come."""
    recorded: list[dict] = []
    model.register_forward_hook(
        lambda _, args, kwargs, output: recorded.append(kwargs | {"scored": output.scored}), with_kwargs=True
    )
    return recorded


def test_it_learns(checkpoint, tmp_path):
    trainer = plain_trainer(checkpoint, tmp_path, max_steps=150)
    trainer.train()
    losses = history(trainer, "loss")
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0]


@pytest.mark.parametrize("prompt", [0, 4])
def test_with_noise_seeds_gradient_accumulation_equals_the_big_batch(checkpoint, tmp_path, prompt):
    runs = []
    for size, accumulated in ((8, 1), (4, 2), (2, 4)):
        layout = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        layout["adam_epsilon"] = 1e-4  # or Adam divides rounding errors by gradients that are nearly zero
        trainer = plain_trainer(checkpoint, tmp_path, train=seeded(32, prompt), **layout)
        trainer.train()
        runs.append((history(trainer, "loss"), history(trainer, "grad_norm"), weights(trainer.model)))
    for losses, norms, final in runs[1:]:
        assert losses == pytest.approx(runs[0][0], rel=1e-5)
        assert norms == pytest.approx(runs[0][1], rel=1e-4)
        assert distance(final, runs[0][2]) < 1e-5


def test_with_noise_seeds_the_evaluation_loss_is_the_same_again_and_in_other_batches(checkpoint, tmp_path):
    losses = []
    for size in (4, 4, 12):
        trainer = plain_trainer(checkpoint, tmp_path, evaluation=seeded(12), per_device_eval_batch_size=size)
        trainer.train()
        losses += [trainer.evaluate()["eval_loss"] for _ in range(2)]
    assert losses[0] == losses[1] == losses[2] == losses[3]
    assert losses[4] == losses[5] == pytest.approx(losses[0], rel=1e-5)


def test_a_prompt_labelled_minus_100_conditions_and_is_not_scored(checkpoint, tmp_path):
    trainer = plain_trainer(checkpoint, tmp_path, train=seeded(8, prompt=4), max_steps=1)
    recorded = calls(trainer.model)
    trainer.train()
    [call] = recorded
    prompts = (call["labels"] == -100).sum(1).sort().values
    assert prompts.tolist() == [0, 0, 0, 4, 4, 4, 8, 8]
    assert torch.equal(call["scored"], call["labels"] != -100)
    assert int(call["num_items_in_batch"]) == 8 * LENGTH - int(prompts.sum())


def test_the_collator_of_language_models_pads_what_is_then_not_scored(checkpoint, tmp_path, tokenizer):
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    dataset = different_lengths(32)
    trainer = plain_trainer(checkpoint, tmp_path, collator, train=dataset, evaluation=dataset, max_steps=30)
    recorded = calls(trainer.model)
    trainer.train()
    for call in recorded:
        assert torch.equal(call["scored"], call["attention_mask"].bool())
        assert int(call["num_items_in_batch"]) == int(call["scored"].sum())
    losses = history(trainer, "loss")
    assert sum(losses[-5:]) / 5 < losses[0] - 0.2
    assert trainer.evaluate()["eval_loss"] < losses[0] - 0.2


def test_a_collator_that_pads_labels_serves_prompts_of_different_lengths(checkpoint, tmp_path, tokenizer):
    dataset = different_lengths(16).map(lambda row: {"labels": [-100] * 3 + row["input_ids"][3:]})
    trainer = plain_trainer(checkpoint, tmp_path, DataCollatorForTokenClassification(tokenizer), train=dataset)
    recorded = calls(trainer.model)
    trainer.train()
    for call in recorded:
        assert torch.equal(call["scored"][:, 3:], call["attention_mask"][:, 3:].bool())
        assert not call["scored"][:, :3].any()


def test_a_collator_that_only_pads_serves_rows_of_one_length(checkpoint, tmp_path, tokenizer):
    trainer = plain_trainer(checkpoint, tmp_path, DataCollatorWithPadding(tokenizer))
    trainer.train()
    assert len(history(trainer, "loss")) == 4


def test_its_checkpoints_load_and_training_goes_on_from_them(checkpoint, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    whole = plain_trainer(checkpoint, tmp_path, **saving)
    whole.train()
    assert same(weights(AutoModel.from_pretrained(tmp_path / "checkpoint-6")), weights(whole.model))
    resumed = plain_trainer(checkpoint, tmp_path / "resumed", **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert by_step(resumed, "loss") == by_step(whole, "loss")
    assert same(weights(resumed.model), weights(whole.model))
