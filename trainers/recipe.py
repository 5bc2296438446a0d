"""Recipes: what `flm train recipe.yaml` and `flm distill recipe.yaml` read.

    model: {type: flm, hidden_size: 768, ...}   fields of FLMConfig; vocabulary and special ids are the tokenizer's;
                                                attn_implementation: as in `from_pretrained`, of the teacher, too
    teacher: ../runs/lm1b                       to distil: a Hub name or a path; gives the model's fields, too
    tokenizer: bert-base-uncased                a Hub name or a path
    data: {train: ..., validation: ..., ...}    see [`DataRecipe`]
    training: {output_dir: runs/lm1b, ...}      fields of FLMTrainingArguments, to distil of FMLMTrainingArguments

A path begins with ./ ../ or / and is relative to the recipe's folder; `output_dir` is relative to where the command
runs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

SECTIONS = {"model", "teacher", "tokenizer", "data", "training"}
PACKING = ("wrap", "rows")


@dataclass
class DataRecipe:
    """The `data` section.

    Args:
        train: a file, a folder or a data set on the Hub, as [`DataSource.parse`] reads it.
        validation (*optional*): the same, for the evaluation loss.
        text_column (`str`): the column with the documents.
        packing (`str`): "wrap" joins the documents and cuts them into rows, as the paper does; "rows" makes each
            document one row, which its tokens must fill exactly.
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
    text_column: str = "text"
    packing: str = "wrap"
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
    content = _parse(content, f"the recipe {path}")
    if not isinstance(content, dict):
        raise ValueError(f"the recipe {path} must be a mapping with model, tokenizer, data and training.")
    for override in overrides:
        _apply(content, override)
    _check_keys(f"the recipe {path}", content, SECTIONS, {"tokenizer", "data"})
    data = content["data"]
    _check_keys("`data`", data, {f.name for f in fields(DataRecipe)}, {"train"})
    packing = data.get("packing", "wrap")
    if packing not in PACKING:
        raise ValueError(f"`data.packing` is {packing!r}, but it must be one of {', '.join(PACKING)}.")
    if packing == "rows" and (useless := sorted({"detokenizer", "bos_token", "eos_token"} & data.keys())):
        raise ValueError(f"`data` has entries that mean nothing with packing: rows: {', '.join(useless)}.")
    for section in ("model", "training"):
        if not isinstance(content.get(section) or {}, dict):
            raise ValueError(f"`{section}` is {content[section]!r}, but it must be a mapping.")
    teacher = content.get("teacher")
    return Recipe(
        folder=path.parent,
        model=content.get("model") or {},
        tokenizer=_located(str(content["tokenizer"]), path.parent),
        data=DataRecipe(**data),
        training=content.get("training") or {},
        teacher=None if teacher is None else _located(str(teacher), path.parent),
    )


def _located(name: str, folder: Path) -> str:
    """A Hub name as it is, a path seen from the recipe's folder."""
    return str(folder / name) if name.startswith(("./", "../", "/")) else name


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
    """YAML in which 1e-3 is a number, as in YAML 1.2; PyYAML by itself wants 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None
