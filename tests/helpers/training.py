"""What the tests of the trainers share: a tiny model, a corpus with structure, and short runs on it."""

from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainingArguments

from modeling_flm import FLMModel, FMLMModel
from trainers import FLMTrainer, FLMTrainingArguments, FMLMTrainer, FMLMTrainingArguments

VOCABULARY, LENGTH = 61, 16


def fresh_model(seed: int = 0, kind: type[FLMModel] = FLMModel, **changes) -> FLMModel:
    """A model as training begins with it (output layer and modulation at zero), the same for the same seed."""
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    sizes |= dict(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, conditioning_size=16, time_embedding_size=16)
    torch.manual_seed(seed)
    return kind(kind.config_class(**sizes | dict(hidden_dropout=0.0, initializer_range=0.1) | changes))


def counting_rows(rows: int, start: int = 0) -> Dataset:
    """Rows that count up modulo 30 from different numbers: any token gives all the others away."""
    places = range(start, start + rows)
    return Dataset.from_dict({"input_ids": [[(7 * row + i) % 30 for i in range(LENGTH)] for row in places]})


def padded_rows(rows: int) -> Dataset:
    """Counting rows of lengths 5 to 16, padded with token 60."""
    lengths = [5 + 3 * row % 12 for row in range(rows)]
    full = counting_rows(rows)["input_ids"]
    padded = [ids[:n] + [60] * (LENGTH - n) for ids, n in zip(full, lengths, strict=True)]
    masks = [[1] * n + [0] * (LENGTH - n) for n in lengths]
    return Dataset.from_dict({"input_ids": padded, "attention_mask": masks})


def rows_of_different_lengths(rows: int) -> Dataset:
    """Counting rows of lengths 5 to 16, not padded."""
    full = counting_rows(rows)["input_ids"]
    return Dataset.from_dict({"input_ids": [ids[: 5 + 3 * row % 12] for row, ids in enumerate(full)]})


def padding_on(side: str) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """A collator that pads the `input_ids` with token 60 to the longest of the batch; other columns are numbers."""

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = {name: torch.tensor([row[name] for row in examples]) for name in examples[0] if name != "input_ids"}
        lengths = [len(row["input_ids"]) for row in examples]
        padding = [[60] * (max(lengths) - n) for n in lengths]
        rows = zip(examples, padding, strict=True)
        ids = [row["input_ids"] + more if side == "right" else more + row["input_ids"] for row, more in rows]
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        mask = mask.long() if side == "right" else mask.flip(1).long()
        return batch | {"input_ids": torch.tensor(ids), "attention_mask": mask}

    return collate


SHORT = dict(max_steps=4, per_device_train_batch_size=8, learning_rate=3e-3, logging_steps=1, save_strategy="no")
QUIET = dict(report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False)


def arguments(output_dir: str | Path, kind=FLMTrainingArguments, **changes) -> FLMTrainingArguments:
    return kind(output_dir=str(output_dir), **SHORT | QUIET | dict(ema_decay=0.9) | changes)


def plain_arguments(output_dir: str | Path, **changes) -> TrainingArguments:
    """The same for the plain Trainer."""
    return TrainingArguments(output_dir=str(output_dir), **SHORT | QUIET | changes)


def make_trainer(output_dir: str | Path, model: FLMModel | None = None, *, callbacks=None, **changes) -> FLMTrainer:
    """A trainer of a fresh model on 32 counting rows, 8 of them for evaluation; `changes` go to the arguments."""
    datasets = _datasets(changes, rows=32)
    return FLMTrainer(model or fresh_model(), arguments(output_dir, **changes), callbacks=callbacks, **datasets)


def make_distiller(output_dir: str | Path, seed: int, **changes) -> FMLMTrainer:
    """A trainer that distils a fresh flow, whose output layer is no longer zero, on 64 counting rows."""
    teacher = fresh_model(seed=9)
    teacher.lm_head.weight.data.normal_(std=0.1)
    datasets, teacher = _datasets(changes, rows=64), changes.pop("teacher", teacher)
    args = arguments(output_dir, kind=FMLMTrainingArguments, **changes)
    return FMLMTrainer(fresh_model(seed, kind=FMLMModel), teacher, args, **datasets)


def _datasets(changes: dict, rows: int) -> dict:
    """Counting rows and the usual collator, or what `changes` has in their place and loses."""
    datasets = dict(train_dataset=counting_rows(rows), eval_dataset=counting_rows(11, start=40), data_collator=None)
    return datasets | {name: changes.pop(name) for name in datasets if name in changes}


def history(trainer, name: str) -> list[float]:
    """What was logged under `name`, in order."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def by_step(trainer, name: str) -> dict[int, float]:
    """What was logged under `name`, by step; a step that was trained again counts as it was the last time."""
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}


def weights(model: FLMModel) -> dict[str, torch.Tensor]:
    """A copy of the parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights agree bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)
