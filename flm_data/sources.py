"""Where a corpus is, and how its documents are read."""

import dataclasses
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from .paths import reading

# The builder of `datasets` that reads files of a suffix. A text file holds one document a line, unless said otherwise.
BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


@dataclasses.dataclass(frozen=True)
class DataSource:
    """One split of one corpus: the arguments of `datasets.load_dataset`.

    Args:
        path (`str`): a dataset on the Hub, a folder, or a builder of `datasets` (`parquet`, `text`, ...).
        name (`str`, *optional*): which of the dataset's configurations.
        data_files (`str`, list or mapping, *optional*): some of the dataset's files, relative to `path`.
        split (`str`): which split, or part of one (`train[:90%]`); a single file is its own `train` split.
        revision (`str`, *optional*): a branch, tag or commit of the dataset's repository.
    """

    path: str
    name: str | None = None
    data_files: str | list[str] | dict[str, Any] | None = None
    split: str = "train"
    revision: str | None = None

    @classmethod
    def parse(cls, value: str | Mapping[str, Any], base_dir: str | Path) -> "DataSource":
        """The source that a recipe names: a mapping with the fields above, or `path` alone as a string.

        A path that begins with `./`, `../` or `/` is a local file (.csv, .json, .jsonl, .parquet or .txt) or
        a folder of such files, relative to `base_dir`, the recipe's folder. Any other path goes to
        `load_dataset` as it is.

        Raises:
            ValueError: a key or suffix is unknown, `path` or what it points to is missing, a value is not a
                string, a local path comes with a field that means nothing for it, or what ends like a file does
                not begin like a path.
        """
        if not isinstance(value, str | Mapping):
            raise ValueError(f"A data source is a path or a mapping with a `path`, not {value!r}.")
        given = {"path": value} if isinstance(value, str) else value
        fields = {key: item for key, item in given.items() if item is not None}
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(str(key) for key in fields if key not in known):
            raise ValueError(f"Unknown keys {unknown} in a data source; the keys are {known}.")
        if not fields.get("path"):
            raise ValueError(f"A data source needs a `path`, but this one is {fields}.")
        for key in ("path", "name", "split", "revision"):
            if not isinstance(fields.get(key, ""), str):
                raise ValueError(f"`{key}` of a data source must be a string, not {fields[key]!r}.")
        if fields["path"].startswith(("./", "../", "/")):
            fields = _local(fields, Path(base_dir))
        elif Path(fields["path"]).suffix in BUILDERS and "://" not in fields["path"]:
            raise ValueError(
                f"`{fields['path']}` in a data source is a file by its end: a path begins with ./ ../ or /."
            )
        return cls(**fields)


def _local(fields: dict[str, Any], base_dir: Path) -> dict[str, Any]:
    """The fields of a source whose path is local, with what `load_dataset` wants in their place."""
    path = Path(os.path.abspath(base_dir / fields["path"]))  # a link keeps its own name, and so its suffix
    if not path.exists():
        raise ValueError(f"there is no file or folder {path} (`{fields['path']}` in a data source).")
    useless = {"revision"} if path.is_dir() else {"revision", "name", "data_files"}
    if present := sorted(useless & fields.keys()):
        raise ValueError(f"A local source takes no {', '.join(present)}: leave it out ({path}).")
    if path.is_dir():
        if "data_files" not in fields and not any(file.suffix in BUILDERS for file in path.rglob("*")):
            raise ValueError(f"The folder {path} holds no {', '.join(BUILDERS)} file.")
        return fields | {"path": str(path)}
    if path.suffix not in BUILDERS:
        raise ValueError(f"{path} is none of the files that can be read: {', '.join(BUILDERS)}.")
    return fields | {"path": BUILDERS[path.suffix], "data_files": str(path)}


def load_text(source: DataSource, streaming: bool = False, whole_files: bool = False) -> Dataset | IterableDataset:
    """The documents of `source`: on disk (and cached there), or read as they are needed with `streaming`. Of a .txt
    file each line is a document, or all of it with `whole_files`.

    Raises:
        ValueError: there is no such source, or it cannot be had offline; `streaming` with a part of a split, which
            cannot be found without reading all before it; `whole_files` with files of another kind; or a file is
            broken: cut off, not UTF-8, no JSON.
    """
    if streaming and "[" in source.split:
        raise ValueError(f"Only a whole split can be streamed, not a part of one (`{source.split}`).")
    is_builder = source.path in BUILDERS.values()
    if whole_files and is_builder and source.path != "text":
        raise ValueError(f"Whole files are documents where they are .txt, but here are others ({source.data_files}).")
    with nullcontext() if is_builder else reading(source.path):
        try:
            return load_dataset(
                source.path,
                name=source.name,
                data_files=source.data_files,
                split=source.split,
                revision=source.revision,
                streaming=streaming,
                **({"sample_by": "document"} if whole_files else {}),
            )
        except (DatasetGenerationError, ValueError) as error:
            what = source.data_files or source.path
            raise ValueError(f"{what} cannot be read: {error.__cause__ or error}") from error
