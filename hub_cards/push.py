"""A model folder, or the Space, to the Hub: `flm push`."""

from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, SpaceCard
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from trainers.paths import checkout

NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "README.md", "modeling_flm.py", "pipeline_flm.py")
SPACE_NEEDED = ("README.md", "app.py", "requirements.txt")
# What the Space imports and reads of this repository, and finds at the same paths on the Hub.
SPACE_TAKES = (
    "evaluation/sudoku.py",
    "trainers/page.py",
    "trainers/page.html",
    "examples/sudoku/9x9/validation.parquet",
)
LEFT_OUT = (".*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "checkpoint-*", "__pycache__")


def to_upload(folder: Path) -> dict[str, Path]:
    """The files that go to the Hub, by their paths there: those at the top of the folder that are neither hidden nor
    pickled, and with the Space what it takes from elsewhere in this repository.

    Raises:
        ValueError: something that a repository needs is missing or damaged; the message names it.
    """
    if not folder.exists():
        raise ValueError(f"there is no file or folder {folder}.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder.")
    is_space = "sdk" in _head(folder)
    for name in SPACE_NEEDED if is_space else NEEDED:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}, which a {'Space' if is_space else 'model repository'} needs.")
    if not is_space:
        try:
            with safe_open(folder / "model.safetensors", framework="np"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{folder / 'model.safetensors'} is damaged: {error}.") from error
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    files = {name: path for name, path in files.items() if not any(path.match(left) for left in LEFT_OUT)}
    if is_space:
        root = checkout()
        files |= {name: root / name for name in SPACE_TAKES}
    return files


def _head(folder: Path) -> dict:
    """The YAML at the head of the folder's README."""
    readme = folder / "README.md"
    if not readme.is_file():
        raise ValueError(f"{folder} has no README.md, which a repository needs.")
    card = readme.read_text(encoding="utf-8").split("---\n")
    try:
        head = yaml.safe_load(card[1]) if len(card) > 2 and not card[0] else None
    except yaml.YAMLError as error:
        raise ValueError(f"the YAML at the head of {readme} is broken: {error}") from error
    if not isinstance(head, dict):
        raise ValueError(f"{readme} has no YAML between two lines of --- at its head.")
    return head


def push(folder: Path, name: str, create_pr: bool = False, private: bool = False) -> str:
    """Upload a model repository, or the Space, in one commit. The models that the card of a Space names without an
    organisation are those of the Space's own.

    Args:
        folder (`Path`): the repository; it is a Space where the head of its README names an `sdk`.
        name (`str`): "organisation/name"; it is made if it is not there.
        create_pr (`bool`): open a pull request instead of committing to its main branch.
        private (`bool`): if it is made, make it private.

    Returns:
        the address of the commit, or of the pull request.

    Raises:
        ValueError: see [`to_upload`]; or `name` is none that the Hub allows.
        RuntimeError: the Hub failed or refused; the repository there is as it was, or all of the new one.
    """
    files: dict[str, Path | bytes] = {**to_upload(folder)}
    try:
        return _commit(folder, files, name, create_pr, private)
    except HFValidationError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"the push to {name} failed: {reason(error)}. The repository is as it was (or all new, if only the Hub's "
            "last answer was lost). Push again once the reason is gone."
        ) from error


def reason(error: BaseException) -> str:
    """Why a push failed, in one line: of an upload huggingface_hub says so only in the cause of its error."""
    cause = error.__cause__ if type(error) is RuntimeError else None
    return " ".join((f"{error} {type(cause).__name__}: {cause}" if cause else f"{error}").split()).rstrip(".")


def _commit(folder: Path, files: dict[str, Path | bytes], name: str, create_pr: bool, private: bool) -> str:
    sdk, api = _head(folder).get("sdk"), HfApi()
    kind = "space" if sdk else "model"
    made = api.create_repo(name, repo_type=kind, space_sdk=sdk, exist_ok=True, private=private or None)
    if sdk:
        card = SpaceCard((folder / "README.md").read_text(encoding="utf-8"))
        models = card.data.to_dict().get("models", [])
        card.data["models"] = [model if "/" in model else f"{made.namespace}/{model}" for model in models]
        files["README.md"] = str(card).encode()
    operations = [CommitOperationAdd(path, file) for path, file in files.items()]
    done = api.create_commit(
        made.repo_id, operations, repo_type=kind, commit_message=f"Upload {folder.name}", create_pr=create_pr
    )
    return done.pr_url or done.commit_url
