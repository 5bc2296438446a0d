"""A recipe, run: tokenizer, packed data, model, trainer."""

import dataclasses
import re

from transformers import AutoModel, default_data_collator, set_seed

from modeling_flm import FLMConfig, FLMModel, FMLMConfig, FMLMModel

from .checkpoints import last_whole_checkpoint
from .data import DataSource, load_text, load_tokenizer, one_row_each, pack
from .flm_arguments import FLMTrainingArguments
from .flm_trainer import FLMTrainer
from .fmlm_arguments import FMLMTrainingArguments
from .fmlm_trainer import FMLMTrainer
from .recipe import Recipe

_CLASSES = {"flm": (FLMConfig, FLMModel), "fmlm": (FMLMConfig, FMLMModel)}


def build_trainer(recipe: Recipe, trainer_class: type[FLMTrainer] = FLMTrainer) -> FLMTrainer:
    """Everything that a recipe for `flm train` names, put together; nothing is trained yet.

    Raises:
        ValueError: an entry of the recipe is unknown or not allowed.
    """
    if recipe.teacher is not None:
        raise ValueError("`teacher` is for distillation: use `flm distill` with this recipe.")
    args = FLMTrainingArguments(**_known("training", recipe.training, FLMTrainingArguments))
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.data.packing == "wrap")
    model = build_model(recipe.model, tokenizer, args.seed)
    trainer = trainer_class(
        model, args, **load_data(recipe, tokenizer, model.config.max_position_embeddings, args.seed)
    )
    trainer.trained_on = hub_datasets(recipe)
    return trainer


def build_distiller(recipe: Recipe) -> FMLMTrainer:
    """Everything that a recipe for `flm distill` names; without a teacher the map learns from the data alone.

    Raises:
        ValueError: an entry of the recipe is unknown or not allowed, or the teacher cannot be loaded.
    """
    args = FMLMTrainingArguments(**_known("training", recipe.training, FMLMTrainingArguments))
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.data.packing == "wrap")
    fields, teacher = recipe.model, None
    if recipe.teacher is not None:
        attention = recipe.model.get("attn_implementation")
        teacher = AutoModel.from_pretrained(recipe.teacher, attn_implementation=attention)
        if not isinstance(teacher, FLMModel):
            raise ValueError(f"the teacher {recipe.teacher} is a {type(teacher).__name__}, not a flow language model.")
        fields = {name: getattr(teacher.config, name) for name in FLMConfig.__annotations__} | fields
    model = build_model(fields | {"type": "fmlm"}, tokenizer, args.seed)
    data = load_data(recipe, tokenizer, model.config.max_position_embeddings, args.seed)
    trainer = FMLMTrainer(model, teacher, args, **data)
    trainer.trained_on = hub_datasets(recipe)
    return trainer


def build_model(fields: dict, tokenizer, seed: int) -> FLMModel:
    """A model with fresh weights for a recipe's `model` section and this tokenizer."""
    fields = dict(fields)
    kind = fields.pop("type", "flm")
    if kind not in _CLASSES:
        raise ValueError(f"`model.type` is {kind!r}, but it must be one of {', '.join(_CLASSES)}.")
    config_class, model_class = _CLASSES[kind]
    attention = fields.pop("attn_implementation", None)
    known = set(FLMConfig.__annotations__)
    if unknown := sorted(fields.keys() - known):
        raise ValueError(
            f"`model` has unknown entries: {', '.join(unknown)}. It takes type, attn_implementation and "
            f"{', '.join(sorted(known))}."
        )
    ids = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
    }
    config = config_class(**{"vocab_size": len(tokenizer)} | ids | fields)
    set_seed(seed)
    return model_class._from_config(config, attn_implementation=attention)


def run_training(trainer: FLMTrainer, resume: bool = False) -> None:
    """Train and save the model in the output directory; `resume` goes on where a run stopped.

    Raises:
        ValueError: there are checkpoints of an earlier run in the output directory, and `resume` is not set: a later
            `resume` might take up the wrong run.
    """
    last = last_whole_checkpoint(trainer.args.output_dir)
    if last is not None and not resume:
        raise ValueError(f"{last} is of an earlier run: resume it (--resume), or change training.output_dir.")
    trainer.train(resume_from_checkpoint=last is not None)
    trainer.save_model()
    trainer.save_state()  # the log


def hub_datasets(recipe: Recipe) -> list[str]:
    """The data sets on the Hub, "organisation/name", that a recipe trains on: none for local files."""
    path = DataSource.parse(recipe.data.train, recipe.folder).path
    return [path] if re.fullmatch(r"[\w.-]+/[\w.-]+", path) else []


def load_data(recipe: Recipe, tokenizer, length: int, seed: int) -> dict:
    """The trainer's arguments that have to do with data, in rows of `length` tokens."""
    train = _packed(recipe, recipe.data.train, tokenizer, length)
    if recipe.data.streaming:
        # One endless pass: a run can only be resumed within a pass over a stream.
        train = train.repeat(None).shuffle(seed=seed, buffer_size=recipe.data.shuffle_buffer)
    validation = None
    if recipe.data.validation is not None:
        validation = _packed(recipe, recipe.data.validation, tokenizer, length)
        rows = recipe.data.max_validation_rows
        if rows is not None:
            validation = validation.take(rows)
    return dict(
        data_collator=default_data_collator,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
    )


def _packed(recipe: Recipe, source, tokenizer, length: int):
    data = recipe.data
    documents = load_text(DataSource.parse(source, recipe.folder), data.streaming)
    if data.packing == "rows":
        return one_row_each(documents, tokenizer, length, data.text_column, data.num_proc)
    return pack(
        documents,
        tokenizer,
        length,
        text_column=data.text_column,
        detokenizer=data.detokenizer,
        bos_token=data.bos_token,
        eos_token=data.eos_token,
        num_proc=data.num_proc,
    )


def _known(section: str, given: dict, cls) -> dict:
    known = {f.name: f.default for f in dataclasses.fields(cls) if f.init}
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(f"`{section}` has unknown entries: {', '.join(unknown)}.")
    given = dict(given)
    for name, value in given.items():
        if name.endswith("_strategy") and value is False:
            given[name] = "no"  # which YAML reads as false
        if isinstance(known[name], (int, float)) and not isinstance(value, (int, float)):
            raise ValueError(f"`{section}.{name}` is {value!r}, but it must be a number, or true or false.")
    return given
