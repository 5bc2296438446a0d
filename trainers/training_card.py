"""The model card that a trainer writes beside the model it saves: what was trained, how, on what."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from transformers import Trainer
from transformers.utils import logging

from .model_card import Samples, model_card, training_results

# Arguments of a training that a card states, where the trainer has them.
_STATED = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "seed", "ema_decay", "conditioning_rate"),
    *("objective", "loss_type", "diagonal_fraction", "boundary_prob", "ema_target", "gamma", "second_step_fraction"),
    *("teacher_temperature", "writing_temperature", "auxiliary_steps", "auxiliary_learning_rate"),
    *("unique_completion", "learned_loss_weighting"),
)
logger = logging.get_logger(__name__)

_SHOWN = 2  # samples for each number of steps


def training_card(
    trainer: Trainer,
    model_name: str,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
    **head,
) -> str:
    """The card of what `trainer` has trained so far, a model or a PEFT adapter.

    Args:
        trainer (`Trainer`): with its model, arguments, data and log.
        model_name (`str`): of the repository: "organisation/name" on the Hub.
        base_model (`str`, *optional*): what it was trained from, if that is not what the model was loaded from.
        datasets (`list[str]`): names on the Hub of what it was trained on.
        tags, head: see [`model_card`].
    """
    config, args = trainer.model.config, trainer.args
    teacher = getattr(trainer, "teacher", None)
    teacher_name = "" if teacher is None else teacher.config._name_or_path
    starts = getattr(args, "initialize_from_teacher", False)
    base = base_model or config._name_or_path or (teacher_name if starts else "")
    shown = _shown(base)
    on_hub = bool(base) and not Path(base).exists()
    if base and not on_hub and "/" in model_name:
        logger.warning_once(
            f"the card of {model_name} names no base model: {shown} is a folder here. If it is on the Hub, "
            "`push_to_hub(finetuned_from='organisation/name')` says where."
        )
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    stated = {name: getattr(args, name) for name in _STATED if getattr(args, name, None) is not None}
    wanted = {"max steps": args.max_steps} if args.max_steps > 0 else {"epochs": args.num_train_epochs}
    # With `load_best_model_at_end` the weights can be those of an earlier step.
    step = getattr(trainer, "restored", None) or trainer.state.global_step
    log = [entry for entry in trainer.state.log_history if entry["step"] <= step]
    taken = {"trainer": type(trainer).__name__, "rows per step": batch, "steps taken": step}
    stated = taken | wanted | stated
    quality, results = training_results(log, datasets)
    rows = trainer.train_dataset
    size = f" ({len(rows):,} rows)" if hasattr(rows, "__len__") else " (a stream of rows)" if rows is not None else ""
    return model_card(
        name=model_name,
        model_type=config.model_type,
        parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        writes=f"up to {config.max_position_embeddings} tokens",
        num_steps=trainer.model.generation_config.num_steps,
        made=[
            f"Trained from: {shown or 'fresh weights'}.",
            *([f"Teacher: {_shown(teacher_name) or 'a model that was never saved'}."] if teacher is not None else []),
            f"Data: {', '.join(datasets) or 'not on the Hub'}{size}.",
            *(f"{name.replace('_', ' ')}: {getattr(value, 'value', value)}" for name, value in stated.items()),
        ],
        quality=quality,
        limits="Its samples were not measured when this card was written.",
        samples=_drawn(trainer, log),
        results=results,
        adapter_of=shown if hasattr(trainer.model, "peft_config") else None,
        tags=tags,
        datasets=list(datasets) or None,
        base_model=base if on_hub else None,
        **head,
    )


def _drawn(trainer: Trainer, log: Sequence[Mapping]) -> list[Samples]:
    """The first of the samples that the trainer drew at the last evaluation in `log`, for each number of steps."""
    file = Path(trainer.args.output_dir, "samples.jsonl")
    evaluated = [e["step"] for e in log if any(name.startswith("eval_") for name in e)]
    if not evaluated or trainer.args.num_samples == 0 or trainer.processing_class is None or not file.exists():
        return []
    # Of an earlier run in the same folder there may be some of the same step: those of this one come later.
    drawn = {
        record["num_steps"]: Samples(
            record["samples"][:_SHOWN],
            record["num_steps"],
            trainer.args.seed,
            f", after {record['step']} steps of training",
        )
        for record in _records(file)
        if record["step"] == evaluated[-1]
    }
    return list(drawn.values())


def _records(file: Path) -> Iterator[dict]:
    """The lines of a JSONL file; one that an interruption cut off is left out."""
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            logger.warning_once(f"a line of {file} was cut off, and is left out.")


def _shown(name: str) -> str:
    """A name on the Hub as it is; of a local folder, whose place is its owner's business, the last part."""
    return Path(name).resolve().name if name and Path(name).exists() else name
