"""Recipes: what `flm train recipe.yaml` and `flm distill recipe.yaml` read, and `flm finetune` makes of its options.

    model: {type: flm, hidden_size: 768, ...}   fields of FLMConfig; vocabulary and special ids are the tokenizer's;
                                                attn_implementation: as in `from_pretrained`, of the teacher, too;
                                                masked: a masked diffusion model whose weights a flow starts from
           {from: org/model}                    or the weights to go on from, a Hub name or a path: to train, those of
                                                a flow; to distil, those of a map. Beside it, attn_implementation and
                                                num_hidden_layers or num_loops for a deeper one, see [`deepened`]
    teacher: ../runs/lm1b                       to distil: a Hub name or a path; gives the model's fields, too
    tokenizer: bert-base-uncased                a Hub name or a path; with `from`, that model's by default
    data: {train: ..., validation: ..., ...}    see [`DataRecipe`]
    training: {output_dir: runs/lm1b, ...}      fields of FLMTrainingArguments, to distil of FMLMTrainingArguments,
                                                by distribution_matching of MatchingTrainingArguments

A path begins with ./ ../ or / and is relative to the recipe's folder; `output_dir` is relative to where the command
runs.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from flm_data.paths import begins_as_path, check_path

SECTIONS = {"model", "teacher", "tokenizer", "data", "training"}
CHOICES = {"packing": ("wrap", "rows"), "documents": ("lines", "files")}
COUNTS = {"shuffle_buffer", "max_validation_rows", "num_proc"}
DEPTH = ("num_hidden_layers", "num_loops")  # what may change of a model to go on from
USELESS = {"wrap": ("given_column",), "rows": ("detokenizer", "bos_token", "eos_token")}  # entries, by packing
# What `flm finetune` trains with: for a small model and some thousand rows, on a CPU. Numbers of steps below 1 are
# shares of `max_steps`.
FINETUNING = {
    "max_steps": 300,
    "per_device_train_batch_size": 24,
    "per_device_eval_batch_size": 32,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "ema_decay": 0.99,  # an average over a hundred steps: most of a short run
    "conditioning_rate": 0.1,  # or it would unlearn to go on from a prompt
    "logging_steps": 0.05,
    "save_steps": 0.25,
    "save_total_limit": 1,
    "dataloader_pin_memory": False,  # no accelerator is assumed
}
EVALUATION = {
    "eval_strategy": "steps",
    "eval_steps": 0.25,
    "eval_on_start": True,
    "num_samples": 1,
    "sample_num_steps": [32],
}


@dataclass
class DataRecipe:
    """The `data` section.

    Args:
        train: a file, a folder or a data set on the Hub, as [`DataSource.parse`] reads it.
        validation (*optional*): the same, for the evaluation loss.
        validation_share (`float`, *optional*): instead of `validation`, hold out this share of the packed rows, in
            (0, 1), drawn by the run's seed. They are of the same documents: for a figure to quote, name a file.
        text_column (`str`): the column with the documents.
        documents (`str`): what a .txt file holds: "lines", a document on each line, or "files", one long text.
        packing (`str`): "wrap" joins the documents and cuts them into rows, as the paper does; "rows" makes each
            document one row, which its tokens must fill exactly.
        given_column (`str`, *optional*): with "rows", a column with the documents as far as they are given; mask
            tokens stand for what is to be written.
        detokenizer (`str`, *optional*): "lm1b" undoes the tokenisation of that corpus.
        bos_token, eos_token (`str`, *optional*): tokens at the ends of a row and after a document, instead of the
            tokenizer's own.
        streaming (`bool`): read while training, instead of packing everything first.
        shuffle_buffer (`int`): rows among which a streamed data set is shuffled.
        max_validation_rows (`int`, *optional*): how many rows to evaluate on.
        num_proc (`int`, *optional*): processes that pack.
    """

    train: Any
    validation: Any = None
    validation_share: float | None = None
    text_column: str = "text"
    documents: str = "lines"
    packing: str = "wrap"
    given_column: str | None = None
    detokenizer: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    streaming: bool = False
    shuffle_buffer: int = 10_000
    max_validation_rows: int | None = None
    num_proc: int | None = None


@dataclass
class Recipe:
    """A recipe, and the folder its paths are relative to."""

    folder: Path
    model: dict[str, Any]
    tokenizer: str
    data: DataRecipe
    training: dict[str, Any] = field(default_factory=dict)
    teacher: str | None = None


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as `training.max_steps=10` (the value is YAML).

    Raises:
        ValueError: the file cannot be read or has unknown or missing entries; the message names them.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"the recipe {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"the recipe {path} is not a text file.") from None
    return _recipe(_parse(content, f"the recipe {path}"), path.parent, overrides, f"the recipe {path}")


def finetuning_recipe(
    model: str,
    data: str,
    output_dir: str,
    validation: str = "0.05",
    text_column: str = "text",
    overrides: Sequence[str] = (),
) -> Recipe:
    """The recipe of `flm finetune`: `model` goes on with the text of `data`, by [`FINETUNING`] unless overridden.

    Args:
        model (`str`): a flow, a path or a Hub name.
        data (`str`): a file, a folder or a data set on the Hub. Unlike in a file, paths here are as the shell has
            them.
        output_dir (`str`): where the model goes.
        validation (`str`): the same as `data`, held-out text; or a number, the share of the rows to hold out, 0 for
            none.
        text_column (`str`): the column with the documents.
        overrides: as those of [`load_recipe`].

    Raises:
        ValueError: a path leads nowhere, or an override has unknown entries; the message names them.
    """
    share = _share(validation)
    content: dict[str, Any] = {
        "model": {"from": _absolute(model)},
        "data": {"train": {"path": _absolute(data)}, "text_column": text_column, "max_validation_rows": 512},
        "training": FINETUNING | {"output_dir": output_dir},
    }
    if share is None:
        content["data"]["validation"] = {"path": _absolute(validation)}
    elif share:
        content["data"]["validation_share"] = share
    if share != 0:
        content["training"] |= EVALUATION
    named = {override.split("=")[0] for override in overrides}
    if "training.num_train_epochs" in named and "training.max_steps" not in named:
        del content["training"]["max_steps"]  # which would count, not the epochs
    return _recipe(content, Path(), overrides, "`flm finetune`")


def _share(text: str) -> float | None:
    """The number that it is, if it is one."""
    try:
        return float(text)
    except ValueError:
        return None


def _absolute(name: str) -> str:
    """A path in full, which a recipe reads the same wherever it lies; a Hub name as it is."""
    check_path(name)
    return os.path.abspath(name) if Path(name).exists() else name


def _recipe(content: Any, folder: Path, overrides: Sequence[str], where: str) -> Recipe:
    """The recipe that `content` is once the overrides are in; `where` it is from, for the messages."""
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be a mapping with model, tokenizer, data and training.")
    for override in overrides:
        _apply(content, override)
    _check_keys(where, content, SECTIONS, {"data"})
    for section in ("model", "training"):
        if not isinstance(content.get(section) or {}, dict):
            raise ValueError(f"`{section}` is {content[section]!r}, but it must be a mapping.")
    model = _model(content.get("model") or {}, folder)
    tokenizer = content.get("tokenizer")
    if tokenizer is None and "from" not in model:
        raise ValueError(f"{where} has missing entries: tokenizer.")
    teacher = content.get("teacher")
    return Recipe(
        folder=folder,
        model=model,
        tokenizer=model["from"] if tokenizer is None else _located(str(tokenizer), folder),
        data=_data(content["data"]),
        training=content.get("training") or {},
        teacher=None if teacher is None else _located(str(teacher), folder),
    )


def _model(model: dict[str, Any], folder: Path) -> dict[str, Any]:
    if model.get("masked") is not None:
        model = model | {"masked": _located(str(model["masked"]), folder)}
    if model.get("from") is None:
        return {name: value for name, value in model.items() if name != "from"}
    if useless := sorted(model.keys() - {"from", "attn_implementation", *DEPTH}):
        raise ValueError(
            f"`model` has entries that `from` settles: {', '.join(useless)}. It goes with attn_implementation, "
            f"{' and '.join(DEPTH)}."
        )
    return model | {"from": _located(str(model["from"]), folder)}


def _data(data: Any) -> DataRecipe:
    _check_keys("`data`", data, {f.name for f in fields(DataRecipe)}, {"train"})
    for name, choices in CHOICES.items():
        if (value := data.get(name, choices[0])) not in choices:
            raise ValueError(f"`data.{name}` is {value!r}, but it must be one of {', '.join(choices)}.")
    for name in COUNTS & data.keys():
        value = data[name]
        if isinstance(value, float) and value.is_integer():  # such as 1e3
            data[name] = value = int(value)
        if value is not None and not (type(value) is int and value >= 1):
            raise ValueError(f"`data.{name}` is {value!r}, but it must be an integer >= 1.")
    if not isinstance(data.get("streaming", False), bool):
        raise ValueError(f"`data.streaming` is {data['streaming']!r}, but it must be true or false.")
    packing = data.get("packing", CHOICES["packing"][0])
    if useless := sorted(name for name in USELESS[packing] if data.get(name) is not None):
        raise ValueError(f"`data` has entries that mean nothing with packing: {packing}: {', '.join(useless)}.")
    share = data.get("validation_share")
    if share is not None:
        if not (isinstance(share, int | float) and 0 < share < 1):
            raise ValueError(f"`data.validation_share` is {share!r}, but it must lie between 0 and 1.")
        if data.get("validation") is not None or data.get("streaming"):
            raise ValueError(
                "`data.validation_share` goes neither with `validation` nor with `streaming` (`flm finetune "
                "--validation 0` leaves it out)."
            )
    return DataRecipe(**data)


def _located(name: str, folder: Path) -> str:
    """A Hub name as it is, a path seen from the recipe's folder."""
    return str(folder / name) if begins_as_path(name) else name


def _apply(content: dict, override: str) -> None:
    name, equals, value = override.partition("=")
    *sections, last = name.split(".")
    if not equals or not last:
        raise ValueError(f"{override!r} is not an override: write section.name=value, such as training.max_steps=10.")
    for section in sections:
        if content.get(section) is None:
            content[section] = {}
        content = content[section]
        if not isinstance(content, dict):
            raise ValueError(f"{override!r}: {section} is a value, not a section.")
    content[last] = _parse(value, repr(override))


def _check_keys(where: str, given: Any, known: set[str], needed: set[str]) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{where} must be a mapping with {', '.join(sorted(known))}.")
    for problem, names in (("unknown", given.keys() - known), ("missing", needed - given.keys())):
        if names:
            raise ValueError(f"{where} has {problem} entries: {', '.join(sorted(map(str, names)))}.")


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in YAML 1.2 (PyYAML by itself wants 1.0e-3), and a key stands once."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.YAMLError(f"{', '.join(twice)} stands there twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None
