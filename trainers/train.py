"""A recipe, run: tokenizer, packed data, model, trainer."""

import dataclasses

from transformers import (
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from flm_data import DataSource, load_text, load_tokenizer, one_row_each, pack
from flm_data.paths import is_repository, reading
from modeling_flm import FLMConfig, FLMModel, FMLMConfig, FMLMModel

from .checkpoints import last_whole_checkpoint
from .flm_arguments import FLMTrainingArguments
from .flm_trainer import FLMTrainer
from .fmlm_arguments import FMLMTrainingArguments
from .fmlm_trainer import FMLMTrainer
from .matching_arguments import MatchingTrainingArguments
from .matching_trainer import MatchingTrainer
from .recipe import DEPTH, Recipe
from .start import check_flow, deepened, start_from_masked

MATCHING = "distribution_matching"  # the objective that has a trainer of its own
# The kinds of models that `model.type` of a recipe can name.
MODEL_CLASSES: dict[str, tuple[type[FLMConfig], type[FLMModel]]] = {
    "flm": (FLMConfig, FLMModel),
    "fmlm": (FMLMConfig, FMLMModel),
}


def build_trainer(recipe: Recipe, trainer_class: type[FLMTrainer] = FLMTrainer) -> FLMTrainer:
    """Everything that a recipe for `flm train` names, put together; nothing is trained yet.

    Raises:
        ValueError: an entry of the recipe is unknown or not allowed.
    """
    if recipe.teacher is not None:
        raise ValueError("`teacher` is for distillation: use `flm distill` with this recipe.")
    args = _arguments(FLMTrainingArguments, recipe.training)
    tokenizer = tokenizer_of(recipe)
    if "from" in recipe.model:
        model = _first_model(recipe, tokenizer)
        if trainer_class is FLMTrainer:
            check_flow(model.config, recipe.model["from"])
        if model.config.two_times:
            raise ValueError(
                f"{recipe.model['from']} is a flow map, whose jumps this would leave behind: fine-tune its flow, then "
                "distil the map from that (flm distill, with `teacher:` the flow and `model: {from: ...}` the map)."
            )
    else:
        fields = dict(recipe.model)
        masked = fields.pop("masked", None)
        model = build_model(fields, tokenizer, args.seed)
        if masked is not None:
            start_from_masked(model, load_model(masked, None, tokenizer))
            model.config._name_or_path = masked  # which the card tells
    return _with_data(trainer_class, recipe, args, tokenizer, model)


def build_distiller(recipe: Recipe) -> FLMTrainer:
    """Everything that a recipe for `flm distill` names; without a teacher the map learns from the data alone. With
    `model: {from: ...}` a map goes on from its own weights, else from the teacher's (`initialize_from_teacher`).

    Raises:
        ValueError: an entry of the recipe is unknown or not allowed, or a model cannot be loaded or is of the wrong
            kind.
    """
    if recipe.training.get("objective") == MATCHING:
        return _build_matcher(recipe)
    training, goes_on = recipe.training, "from" in recipe.model
    if goes_on:
        if training.get("initialize_from_teacher"):
            raise ValueError("`initialize_from_teacher` and `model.from` both name the weights to begin with.")
        training = training | {"initialize_from_teacher": False}
    args = _arguments(FMLMTrainingArguments, training)
    tokenizer = tokenizer_of(recipe)
    attention = recipe.model.get("attn_implementation")
    teacher = None if recipe.teacher is None else load_model(recipe.teacher, attention, tokenizer)
    if goes_on:
        model = _first_model(recipe, tokenizer)
        if not model.config.two_times:
            raise ValueError(f"{recipe.model['from']} is a flow, no flow map: to distil it, name it as `teacher`.")
    else:
        known = FLMConfig.__annotations__.keys() - {"loss_weighting"}  # which belongs to a training, not to a model
        fields = {} if teacher is None else {name: getattr(teacher.config, name) for name in known}
        model = build_model(fields | recipe.model | {"type": "fmlm"}, tokenizer, args.seed)
    return _with_data(FMLMTrainer, recipe, args, tokenizer, model, teacher=teacher)


def _build_matcher(recipe: Recipe) -> FLMTrainer:
    """The trainer for a recipe with `objective: distribution_matching`: the map is `model.from`, `teacher` the masked
    diffusion model whose texts it is to write."""
    if recipe.teacher is None or "from" not in recipe.model:
        raise ValueError(
            f"`objective: {MATCHING}` needs a `teacher`, a masked diffusion model, and `model: {{from: ...}}`, a map."
        )
    training = {name: value for name, value in recipe.training.items() if name != "objective"}
    args = _arguments(MatchingTrainingArguments, training)
    tokenizer = tokenizer_of(recipe)
    model = _first_model(recipe, tokenizer)
    teacher = load_model(recipe.teacher, recipe.model.get("attn_implementation"), tokenizer)
    return _with_data(MatchingTrainer, recipe, args, tokenizer, model, teacher=teacher)


def _with_data(kind: type[FLMTrainer], recipe: Recipe, args, tokenizer, model: FLMModel, **networks) -> FLMTrainer:
    """The trainer of a recipe, with its data and what its card says of them."""
    data = load_data(recipe, tokenizer, model.config.max_position_embeddings, args)
    trainer = kind(model=model, args=args, **networks, **data)
    trainer.trained_on = hub_datasets(recipe)
    return trainer


def tokenizer_of(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The tokenizer that a recipe names, with the ends of rows that it names."""
    with reading(recipe.tokenizer):
        if recipe.data.packing == "rows":
            return AutoTokenizer.from_pretrained(recipe.tokenizer)
        return load_tokenizer(recipe.tokenizer, recipe.data.bos_token, recipe.data.eos_token)


def _first_model(recipe: Recipe, tokenizer) -> FLMModel:
    """The model that `model.from` names, of more blocks or loops if the recipe says so."""
    model = load_model(recipe.model["from"], recipe.model.get("attn_implementation"), tokenizer)
    depth = {name: value for name, value in recipe.model.items() if name in DEPTH}
    return deepened(model, **depth) if depth else model


def load_model(name: str, attention: str | None, tokenizer) -> FLMModel:
    """The flow or flow map `name`, a path or a Hub name, for rows of this tokenizer's ids.

    Raises:
        ValueError: it cannot be loaded, is another kind of model, or lacks some of the tokens.
    """
    with reading(name):
        model = AutoModel.from_pretrained(name, attn_implementation=attention)
    if not isinstance(model, FLMModel):
        raise ValueError(f"{name} is a {type(model).__name__}, not a flow language model.")
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, but {name} has {model.config.vocab_size}: take its own."
        )
    return model


def build_model(fields: dict, tokenizer, seed: int) -> FLMModel:
    """A model with fresh weights for a recipe's `model` section and this tokenizer."""
    fields = dict(fields)
    kind = fields.pop("type", "flm")
    if kind not in MODEL_CLASSES:
        raise ValueError(f"`model.type` is {kind!r}, but it must be one of {', '.join(MODEL_CLASSES)}.")
    config_class, model_class = MODEL_CLASSES[kind]
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
    """Train and save the model in the output directory; `resume` goes on where a run stopped. A checkpoint that
    `training.resume_from_checkpoint` names is gone on from in any case.

    Raises:
        ValueError: there are checkpoints of an earlier run in the output directory, and `resume` is not set: a later
            `resume` might take up the wrong run.
    """
    named = trainer.args.resume_from_checkpoint
    last = last_whole_checkpoint(trainer.args.output_dir)
    if last is not None and not resume and named is None:
        raise ValueError(f"{last} is of an earlier run: resume it (--resume), or change training.output_dir.")
    trainer.train(resume_from_checkpoint=named or last is not None)
    trainer.save_model()
    trainer.save_state()  # the log


def hub_datasets(recipe: Recipe) -> list[str]:
    """The data sets on the Hub, "organisation/name", that a recipe trains on: none for local files."""
    path = DataSource.parse(recipe.data.train, recipe.folder).path
    return [path] if is_repository(path) else []


def load_data(recipe: Recipe, tokenizer, length: int, args: TrainingArguments) -> dict:
    """The trainer's arguments that have to do with data, in rows of `length` tokens. Of several processes on a machine
    the first one packs, and the others read what it has packed."""
    with args.main_process_first(desc="packing"):
        return _load_data(recipe, tokenizer, length, args.seed)


def _load_data(recipe: Recipe, tokenizer, length: int, seed: int) -> dict:
    data = recipe.data
    train, validation = _packed(recipe, data.train, tokenizer, length), None
    if data.validation_share is not None:
        if len(train) < 2:
            raise ValueError(f"the text fills {len(train)} row of {length} tokens: there is nothing to hold out.")
        share = max(1, round(data.validation_share * len(train)))
        parts = train.train_test_split(test_size=min(share, data.max_validation_rows or share), seed=seed)
        train, validation = parts["train"], parts["test"]
    elif data.validation is not None:
        validation = _packed(recipe, data.validation, tokenizer, length)
    if validation is not None and data.max_validation_rows is not None:
        validation = validation.take(data.max_validation_rows)
    if data.streaming:
        if next(iter(train), None) is None:  # which an endless repetition would not show
            raise ValueError(f"The corpus is too small: it does not fill a row of {length} tokens.")
        # One endless pass: a run can only be resumed within a pass over a stream.
        train = train.repeat(None).shuffle(seed=seed, buffer_size=data.shuffle_buffer)
    return dict(
        data_collator=default_data_collator,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
    )


def _packed(recipe: Recipe, source, tokenizer, length: int):
    data = recipe.data
    documents = load_text(DataSource.parse(source, recipe.folder), data.streaming, data.documents == "files")
    if data.packing == "rows":
        return one_row_each(
            documents,
            tokenizer,
            length,
            text_column=data.text_column,
            num_proc=data.num_proc,
            given_column=data.given_column,
        )
    return pack(
        documents,
        tokenizer,
        length,
        text_column=data.text_column,
        detokenizer=data.detokenizer,
        num_proc=data.num_proc,
    )


def _arguments(kind, given: dict):
    """The training arguments of this kind that a recipe gives.

    Raises:
        ValueError: an entry is unknown, or no number, or no whole one, where such a one is needed.
    """
    known = {f.name: f.default for f in dataclasses.fields(kind) if f.init}
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(f"`training` has unknown entries: {', '.join(unknown)}.")
    given = dict(given)
    for name, value in given.items():
        if name.endswith("_strategy") and value is False:
            given[name] = "no"  # which YAML reads as false
        if isinstance(known[name], (int, float)) and not isinstance(value, (int, float)):
            raise ValueError(f"`training.{name}` is {value!r}, but it must be a number, or true or false.")
        # YAML reads 1e3 as a float. Below 1 it is a share of the steps.
        if type(known[name]) is int and isinstance(value, float) and value >= 1:
            if not value.is_integer():
                raise ValueError(f"`training.{name}` is {value!r}, but it must be a whole number.")
            given[name] = int(value)
    return kind(**given)
