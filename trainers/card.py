"""The model card that a trainer writes beside the model it saves: what was trained, how, on what."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult
from transformers import Trainer

from hub_cards.card import model_card

# Arguments of a training that a card states, where the trainer has them.
_STATED = (
    *("max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "seed"),
    *("ema_decay", "conditioning_rate", "objective", "loss_type", "diagonal_fraction", "boundary_prob", "ema_target"),
)


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
        model_name (`str`): of the repository.
        base_model (`str`, *optional*): what it was trained from, if that is not what the model was loaded from.
        datasets (`list[str]`): names on the Hub of what it was trained on.
        tags, head: see [`model_card`].
    """
    config, args = trainer.model.config, trainer.args
    teacher = getattr(trainer, "teacher", None)
    teacher_name = "" if teacher is None else teacher.config._name_or_path
    base = base_model or config._name_or_path or teacher_name
    shown = _shown(base)
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    stated = {name: getattr(args, name) for name in _STATED if getattr(args, name, None) is not None}
    stated = {"rows per step": batch, "steps taken": trainer.state.global_step} | stated
    measured: dict[str, float] = {}
    for entry in trainer.state.log_history:
        measured |= {name: value for name, value in entry.items() if name == "loss" or name.startswith("eval_loss")}
    rows = trainer.train_dataset
    size = f"{len(rows):,} rows" if hasattr(rows, "__len__") else "a stream of rows"
    lines = [f"* {name.replace('_', ' ')}: {value:.4f}" for name, value in measured.items()]
    return model_card(
        name=model_name,
        model_type=config.model_type,
        parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        writes=f"up to {config.max_position_embeddings} tokens",
        num_steps=trainer.model.generation_config.num_steps,
        made=[
            f"Trained from: {shown or 'fresh weights'}.",
            *([f"Teacher: {_shown(teacher_name) or 'a model that was never saved'}."] if teacher is not None else []),
            f"Data: {', '.join(datasets) or 'not on the Hub'} ({size}).",
            *(f"{name.replace('_', ' ')}: {getattr(value, 'value', value)}" for name, value in stated.items()),
        ],
        quality="Losses in nats per token, of the denoiser at uniform tau: no bound of a perplexity.\n\n"
        + ("\n".join(lines) or "None was measured."),
        limits="Its samples were not measured when this card was written.",
        results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=", ".join(datasets) or "text",
                dataset_name=", ".join(datasets) or "held-out rows",
                metric_type="loss",
                metric_name="cross entropy of the denoiser at uniform tau, nats per token",
                metric_value=measured["eval_loss"],
            )
        ]
        if "eval_loss" in measured
        else [],
        adapter_of=shown if hasattr(trainer.model, "peft_config") else None,
        tags=tags,
        datasets=list(datasets) or None,
        base_model=base if base and not Path(base).exists() else None,
        **head,
    )


def _shown(name: str) -> str:
    """A name on the Hub as it is; of a local folder, whose place is its owner's business, the last part."""
    return Path(name).resolve().name if name and Path(name).exists() else name
