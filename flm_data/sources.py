"""Data sources: where a corpus is, and how its documents are read."""

import dataclasses
import glob
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset, load_dataset_builder
from datasets.arrow_writer import SchemaInferenceError
from datasets.exceptions import DatasetGenerationError

from .paths import begins_as_path, reading

# The builder of `datasets` for each suffix. In a text file each line is a document, unless `whole_files` is true.
BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


@dataclasses.dataclass(frozen=True)
class DataSource:
    """One split of a corpus, by the arguments of `datasets.load_dataset`.

    Args:
        path (`str`): a data set on the Hub, a folder, or a builder of `datasets` (`parquet`, `text`, ...).
        name (`str`, *optional*): the configuration of the data set.
        data_files (`str`, list or mapping, *optional*): some of the data set's files, relative to `path`.
        split (`str`): a split, or a part of one (`train[:90%]`). A single file is a split `train`.
        revision (`str`, *optional*): branch, tag or commit of the data set's repository.
    """

    path: str
    name: str | None = None
    data_files: str | list[str] | dict[str, Any] | None = None
    split: str = "train"
    revision: str | None = None

    @classmethod
    def parse(cls, value: str | Mapping[str, Any], base_dir: str | Path) -> "DataSource":
        """Parse the source that a recipe names: a mapping with the fields above, or only a `path` as a string.

        A `path` that begins with `./`, `../` or `/` is a local file (.csv, .json, .jsonl, .parquet or .txt) or a
        folder of such files. It is relative to `base_dir`, the folder of the recipe. Any other `path` is given to
        `load_dataset` as it is.

        Raises:
            ValueError: if a key or suffix is unknown, `path` or what it points to is missing, a value is not a
                string, a local path has a field that means nothing for it, or `path` ends like a file but does not
                begin like one.
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
        if begins_as_path(fields["path"]):
            fields = _local(fields, Path(base_dir))
        elif Path(fields["path"]).suffix in BUILDERS and "://" not in fields["path"]:
            raise ValueError(
                f"`{fields['path']}` in a data source is a file by its end: a path begins with ./ ../ or /."
            )
        return cls(**fields)


def _local(fields: dict[str, Any], base_dir: Path) -> dict[str, Any]:
    """Replace the fields of a source with a local path by the arguments that `load_dataset` needs for it."""
    path = Path(os.path.abspath(base_dir / fields["path"]))  # links are not followed, since their own suffix counts
    if not path.exists():
        raise ValueError(f"there is no file or folder {path} (`{fields['path']}` in a data source).")
    useless = {"revision"} if path.is_dir() else {"revision", "name", "data_files"}
    if present := sorted(useless & fields.keys()):
        raise ValueError(f"A local source takes no {', '.join(present)}: leave it out ({path}).")
    if path.is_dir():
        if glob.has_magic(str(path)):
            raise ValueError(f"The name of the folder {path} would be read as a pattern: rename it, or name a file.")
        if "data_files" not in fields and not any(file.suffix in BUILDERS for file in path.rglob("*")):
            raise ValueError(f"The folder {path} holds no {', '.join(BUILDERS)} file.")
        return fields | {"path": str(path)}
    if path.suffix not in BUILDERS:
        raise ValueError(f"{path} is none of the files that can be read: {', '.join(BUILDERS)}.")
    return fields | {"path": BUILDERS[path.suffix], "data_files": str(path)}


def load_text(source: DataSource, streaming: bool = False, whole_files: bool = False) -> Dataset | IterableDataset:
    """Load the documents of `source`, cached on disk. With `streaming` they are read as they are needed. Each line of
    a .txt file is a document; with `whole_files` each file is one.

    Raises:
        ValueError: if there is no such source, or it cannot be had offline; if a file is broken (cut off, not UTF-8,
            no JSON); if `whole_files` is used with other files than .txt; or if `streaming` is used with a part of a
            split, which cannot be found without reading all before it.
    """
    if streaming and "[" in source.split:
        raise ValueError(f"Only a whole split can be streamed, not a part of one (`{source.split}`).")
    is_builder = source.path in BUILDERS.values()
    if whole_files and is_builder and source.path != "text":
        raise ValueError(f"Whole files are documents where they are .txt, but here are others ({source.data_files}).")
    with nullcontext() if is_builder else reading(source.path):
        try:
            if Path(source.path).is_dir() and source.data_files is None:
                _check_folder(source)
            files = source.data_files
            if is_builder and isinstance(files, str) and Path(files).is_file():
                files = glob.escape(files)  # a name, not a pattern
            return load_dataset(
                source.path,
                name=source.name,
                data_files=files,
                split=source.split,
                revision=source.revision,
                streaming=streaming,
                **({"sample_by": "document"} if whole_files else {}),
            )
        except (DatasetGenerationError, ValueError, StopIteration) as error:
            what = source.data_files or source.path
            if isinstance(error, StopIteration) or isinstance(error.__cause__, SchemaInferenceError):
                raise ValueError(f"{what} holds no document.") from error
            raise ValueError(f"{what} cannot be read: {error.__cause__ or error}") from error


def _check_folder(source: DataSource) -> None:
    """Refuse a folder of which `datasets` would leave files out: it takes one format, and where some names sound like
    those of splits ("train", "test"), only these files."""
    files = load_dataset_builder(source.path, name=source.name).config.data_files or {}
    taken = {Path(file) for of_split in files.values() for file in of_split}
    folder = Path(source.path).resolve()  # as `datasets` names its files, of which it reads no hidden ones
    readable = {file for file in folder.rglob("*") if file.suffix in BUILDERS.keys() - {".json"}}
    names = {str(file.relative_to(folder)) for file in readable - taken}
    # A .json beside other files is rather a tokenizer's or a configuration.
    if left := sorted(name for name in names if not any(part.startswith((".", "__")) for part in Path(name).parts)):
        raise ValueError(
            f"{', '.join(left[:5])} would be left out, since the files of a folder are read in one format, and where "
            "names have a split in them (train, test), only these. Name the files by `data_files`, or move these away."
        )
