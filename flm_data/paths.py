"""Whether a name is a path or that of something on the Hub, what to say where it is neither, and where the checkout is
that holds what is shipped."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Of the files that a command takes. Any other, as in "model-2.5", may end a name on the Hub.
_SUFFIXES = {".ckpt", ".csv", ".json", ".jsonl", ".parquet", ".safetensors", ".txt", ".yaml", ".yml"}
_ON_THE_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@[\w./-]+)?")


def is_path(name: str) -> bool:
    """Whether `name` is that of a file or a folder, there or not, rather than of a model or a data set on the Hub
    ("gpt2", "organisation/model", "organisation/model@revision") or an address ("hf://...").

    It is one if it exists, begins with `./`, `../`, `/` or `~`, has more than one slash, or ends like a file.
    """
    if Path(name).exists():
        return True
    if "://" in name:
        return False
    return Path(name).suffix in _SUFFIXES or not _ON_THE_HUB.fullmatch(name)


def check_path(name: str) -> None:
    """Raises a `ValueError` if `name` is a path and there is nothing."""
    if is_path(name) and not Path(name).exists():
        raise ValueError(f"there is no file or folder {name}.")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Around whatever reads `name`, a path or a name on the Hub: says in one line that it is neither.

    Raises:
        ValueError: `name` is a path and there is nothing; or it cannot be had from the Hub, offline or not.
    """
    check_path(name)
    try:
        yield
    except OSError as error:  # that of whichever library was reading
        if is_path(name) or _is_cached(name):
            raise
        from huggingface_hub.constants import HF_HUB_OFFLINE

        why = "in offline mode (HF_HUB_OFFLINE) it cannot be had from the Hub" if HF_HUB_OFFLINE else str(error)
        raise ValueError(f"there is no file or folder {name}, and it is not in the Hub's cache: {why}.") from error


def checkout() -> Path:
    """The checkout of the repository, with the shipped models: the one this package lies in, or the current folder.

    Raises:
        ValueError: neither is one, as where the package is installed by itself: its models are not part of it.
    """
    for folder in (Path(__file__).parent.parent, Path.cwd()):
        if (folder / "examples" / "sudoku" / "9x9" / "validation.parquet").is_file():
            return folder
    raise ValueError(
        "the shipped models and what they are shown with lie in a checkout of the repository, not in the installed "
        "package: run this in the folder of a checkout. `flm generate` takes any model folder or name on the Hub."
    )


def check_links(folder: Path) -> None:
    """Raises a `ValueError` if the code of a model folder should be links to modeling_flm/, as that of the shipped
    models is, but is the text of such links: what a checkout leaves where there are none (Windows, some archives)."""
    for file in folder.glob("*_flm.py"):
        if file.read_bytes().startswith(b"../"):
            raise ValueError(
                f"{file} should be a link to modeling_flm/, but this checkout has none: `git config core.symlinks "
                "true`, then `git checkout -- hub_cards`; or copy modeling_flm/*_flm.py into the folder."
            )


def _is_cached(name: str) -> bool:
    """Whether something of `name` was downloaded before."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = name.partition("@")[0].replace("/", "--")
    return any(Path(HF_HUB_CACHE, f"{kind}--{repository}", "snapshots").is_dir() for kind in ("models", "datasets"))
