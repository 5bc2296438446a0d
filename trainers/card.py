"""The model card that a trainer writes when it pushes: what was trained, how, on what, and what was measured."""

from pathlib import Path

import yaml
from transformers import Trainer

BIBTEX = """@article{lee2026flow,
  title   = {Flow Map Language Models: One-step Language Modeling via Continuous Denoising},
  author  = {Lee, Chanhyuk and Yoo, Jaehoon and Agarwal, Manan and Shah, Sheel and Huang, Jerry and
             Raghunathan, Aditi and Hong, Seunghoon and Boffi, Nicholas M. and Kim, Jinwoo},
  journal = {arXiv preprint arXiv:2602.16813},
  year    = {2026}
}"""

_USE = """from transformers import pipeline

write = pipeline("text-generation", model="{name}", trust_remote_code=True)
print(write(num_steps={num_steps}))"""

_ADAPTER_USE = """from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

model = PeftModel.from_pretrained(AutoModel.from_pretrained("{base}", trust_remote_code=True), "{name}")
ids = model.merge_and_unload().eval().generate(num_steps={num_steps})
print(AutoTokenizer.from_pretrained("{name}").batch_decode(ids))"""

# Arguments of a training that a card states, where the trainer has them.
_STATED = (
    *("max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "seed"),
    *("ema_decay", "conditioning_rate", "objective", "loss_type", "diagonal_fraction", "boundary_prob", "ema_target"),
)


def training_card(
    trainer: Trainer,
    model_name: str,
    base_model: str | None = None,
    dataset: str | list[str] | None = None,
    language: str | None = None,
    license: str | None = None,
    tags: list[str] | None = None,
) -> str:
    """The card of what `trainer` has trained so far, a model or a PEFT adapter; what was not given or measured is
    named as such. Of a `base_model` that is a local folder the card has the folder's name, and no link."""
    config, args = trainer.model.config, trainer.args
    is_adapter = hasattr(trainer.model, "peft_config")
    is_map = config.model_type == "fmlm"
    teacher = getattr(trainer, "teacher", None)
    base = base_model or (None if teacher is None else teacher.config._name_or_path or None)
    is_local = base is not None and Path(base).is_dir()
    if is_local:
        base = Path(base).resolve().name
    datasets = [dataset] if isinstance(dataset, str) else list(dataset or [])
    head = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["flow-language-model", config.model_type, *(tags or [])],
        **({"license": license} if license else {}),
        **({"language": language} if language else {}),
        **({"datasets": datasets} if datasets else {}),
        **({"base_model": base} if base and not is_local else {}),
    }
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    stated = {name: getattr(args, name) for name in _STATED if getattr(args, name, None) is not None}
    stated = {"rows per step": batch, "steps taken": trainer.state.global_step} | stated
    measured: dict[str, float] = {}
    for entry in trainer.state.log_history:
        measured |= {name: value for name, value in entry.items() if name == "loss" or name.startswith("eval_loss")}
    size = sum(parameter.numel() for parameter in trainer.model.parameters()) / 1e6
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        "",
        f"# {model_name}",
        "",
        f"A {'flow map' if is_map else 'flow'} language model ({'FMLM' if is_map else 'FLM'}, arXiv 2602.16813) of "
        f"{size:.1f} M parameters that writes up to {config.max_position_embeddings} tokens"
        + (" in one forward pass or a few." if is_map else " by a continuous flow over one-hot tokens."),
        "",
        *(["This is an adapter (PEFT) for it, to be used with its base model.", ""] if is_adapter else []),
        "```python",
        *(_ADAPTER_USE if is_adapter else _USE)
        .format(name=model_name, base=base, num_steps=trainer.model.generation_config.num_steps)
        .splitlines(),
        "```",
        "",
        "## How it was made",
        "",
        f"* Trained from: {base or 'fresh weights'}.",
        f"* Data: {', '.join(datasets) or 'not named by who trained it'}.",
        *(f"* {name.replace('_', ' ')}: {getattr(value, 'value', value)}" for name, value in stated.items()),
        "",
        "## Losses",
        "",
        "In nats per token, of the denoiser at uniform tau: no bound of a perplexity.",
        "",
        *(f"* {name.replace('_', ' ')}: {value:.4f}" for name, value in measured.items()),
        *(["* None was measured."] if not measured else []),
        "",
        "## Cite",
        "",
        "```bibtex",
        BIBTEX,
        "```",
    ]
    return "\n".join(lines) + "\n"
