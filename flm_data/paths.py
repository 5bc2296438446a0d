"""Files: tells paths from names on the Hub, says what is missing, digests, and finds the checkout with the shipped
models."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Suffixes of the files that commands read. Any other, as in "model-2.5", may be the end of a name on the Hub.
_SUFFIXES = {".ckpt", ".csv", ".json", ".jsonl", ".parquet", ".safetensors", ".txt", ".yaml", ".yml"}
_ON_THE_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@[\w./-]+)?")


def is_path(name: str) -> bool:
    """Whether `name` means a file or folder, which need not exist. Otherwise it is a model or data set on the Hub
    ("gpt2", "organisation/model", "organisation/model@revision") or an address ("hf://...").

    It is a path if it exists, begins with `./`, `../`, `/` or `~`, has more than one slash, or a file's suffix.
    """
    if Path(name).exists():
        return True
    if "://" in name:
        return False
    return Path(name).suffix in _SUFFIXES or not _ON_THE_HUB.fullmatch(name)


def begins_as_path(name: str) -> bool:
    """Whether `name` is a path in a recipe, where the folder that it is seen from makes "data/train" no path."""
    return name.startswith(("./", "../", "/")) or Path(name).is_absolute()


def is_repository(name: str) -> bool:
    """Whether `name` has the form of a repository on the Hub, "organisation/name"."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def check_path(name: str) -> None:
    """Raise a `ValueError` if `name` is a path (see [`is_path`]) that does not exist."""
    if is_path(name) and not Path(name).exists():
        raise ValueError(f"there is no file or folder {name}.")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """A context in which `name`, a path or a name on the Hub, is read. If it is neither, one line says so.

    Raises:
        ValueError: if `name` is a path that does not exist, or cannot be had from the Hub or its cache.
    """
    check_path(name)
    try:
        yield
    except OSError as error:  # from whichever library was reading
        if is_path(name) or _is_cached(name):
            raise
        from huggingface_hub.constants import HF_HUB_OFFLINE

        why = "in offline mode (HF_HUB_OFFLINE) it cannot be had from the Hub" if HF_HUB_OFFLINE else str(error)
        raise ValueError(f"there is no file or folder {name}, and it is not in the Hub's cache: {why}.") from error


def sha256(*files: Path) -> str:
    """The SHA-256 digest of files, one after another, in hexadecimal digits."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the weights of a model folder: of its files *model*.safetensors, one after another in the order of
    their names."""
    return sha256(*sorted(folder.glob("*model*.safetensors")))


def checkout() -> Path:
    """The folder of a checkout, which has the shipped models: the one of this package, or the current folder.

    Raises:
        ValueError: if neither is a checkout, as when the package is installed by itself, without the models.
    """
    for folder in (Path(__file__).parent.parent, Path.cwd()):
        if (folder / "examples" / "sudoku" / "9x9" / "validation.parquet").is_file():
            return folder
    raise ValueError(
        "the shipped models and what they are shown with lie in a checkout of the repository, not in the installed "
        "package: run this in the folder of a checkout. `flm generate` takes any model folder or name on the Hub."
    )


def check_links(folder: Path) -> None:
    """Raise a `ValueError` if a model folder has the text of links in place of its code: shipped models have links to
    modeling_flm/, and a checkout without symbolic links (Windows, some archives) has files with their text."""
    for file in folder.glob("*_flm.py"):
        if file.read_bytes().startswith(b"../"):
            raise ValueError(
                f"{file} should be a link to modeling_flm/, but this checkout has none: `git config core.symlinks "
                "true`, then `git checkout -- hub_cards`; or copy modeling_flm/*_flm.py into the folder."
            )


def _is_cached(name: str) -> bool:
    """Whether the Hub's cache has any files of `name`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = name.partition("@")[0].replace("/", "--")
    return any(Path(HF_HUB_CACHE, f"{kind}--{repository}", "snapshots").is_dir() for kind in ("models", "datasets"))
