"""A recipe, run: tokenizer, packed data, model, trainer."""

import dataclasses

from transformers import default_data_collator

from modeling_flm import FLMConfig, FLMModel, FMLMConfig, FMLMModel

from .checkpoints import last_whole_checkpoint
from .data import DataSource, load_text, load_tokenizer, pack
from .flm_arguments import FLMTrainingArguments
from .flm_trainer import FLMTrainer
from .recipe import Recipe

_CLASSES = {"flm": (FLMConfig, FLMModel), "fmlm": (FMLMConfig, FMLMModel)}


def build_trainer(recipe: Recipe) -> FLMTrainer:
    """Everything a recipe names, put together; nothing is trained yet.

    Raises:
        ValueError: an entry of the recipe is unknown or not allowed.
    """
    args = FLMTrainingArguments(**_known("training", recipe.training, FLMTrainingArguments))
    tokenizer = load_tokenizer(recipe.tokenizer)
    model = build_model(recipe, tokenizer, args.seed)
    length = model.config.max_position_embeddings
    train = _packed(recipe, recipe.data.train, tokenizer, length)
    if recipe.data.streaming:
        # One endless pass: a run can only be resumed within a pass over a stream.
        train = train.repeat(None).shuffle(seed=args.seed, buffer_size=recipe.data.shuffle_buffer)
    validation = None
    if recipe.data.validation is not None:
        validation = _packed(recipe, recipe.data.validation, tokenizer, length)
        rows = recipe.data.max_validation_rows
        if rows is not None:
            validation = validation.take(rows)
    return FLMTrainer(
        model,
        args,
        data_collator=default_data_collator,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
    )


def build_model(recipe: Recipe, tokenizer, seed: int) -> FLMModel:
    """A model with fresh weights for the recipe's `model` section and this tokenizer."""
    from transformers import set_seed

    fields = dict(recipe.model)
    kind = fields.pop("type", "flm")
    if kind not in _CLASSES:
        raise ValueError(f"`model.type` is {kind!r}, but it must be one of {', '.join(_CLASSES)}.")
    config_class, model_class = _CLASSES[kind]
    known = set(FLMConfig.__annotations__)
    if unknown := sorted(fields.keys() - known):
        raise ValueError(f"`model` has unknown entries: {', '.join(unknown)}. It takes {', '.join(sorted(known))}.")
    ids = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
    }
    config = config_class(**{"vocab_size": len(tokenizer)} | ids | fields)
    set_seed(seed)
    return model_class(config)


def run_training(recipe: Recipe, resume: bool = False) -> FLMTrainer:
    """Train as the recipe says and save the model in its output directory; `resume` goes on where a run stopped.

    Raises:
        ValueError: there are checkpoints of an earlier run in the output directory, and `resume` is not set: a later
            `resume` might take up the wrong run.
    """
    trainer = build_trainer(recipe)
    last = last_whole_checkpoint(trainer.args.output_dir)
    if last is not None and not resume:
        raise ValueError(f"{last} is of an earlier run: resume it (--resume), or change training.output_dir.")
    trainer.train(resume_from_checkpoint=last is not None)
    trainer.save_model()
    return trainer


def _packed(recipe: Recipe, source, tokenizer, length: int):
    data = recipe.data
    documents = load_text(DataSource.parse(source, recipe.folder), data.streaming)
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
    for name, value in given.items():
        if isinstance(known[name], (int, float)) and not isinstance(value, (int, float)):
            raise ValueError(f"`{section}.{name}` is {value!r}, but it must be a number, or true or false.")
    return given
