"""A model folder to the Hub: `flm push`."""

from pathlib import Path

import yaml
from huggingface_hub import HfApi
from safetensors import SafetensorError, safe_open

NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "README.md", "modeling_flm.py", "pipeline_flm.py")
LEFT_OUT = (".*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "checkpoint-*", "__pycache__")


def to_upload(folder: Path) -> list[Path]:
    """The files of a model repository that go to the Hub: those at its top that are neither hidden nor pickled.

    Raises:
        ValueError: something that a repository needs is missing or damaged; the message names it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder.")
    for name in NEEDED:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}, which a model repository needs.")
    try:
        with safe_open(folder / "model.safetensors", framework="np"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged: {error}.") from error
    card = (folder / "README.md").read_text().split("---\n")
    try:
        head = yaml.safe_load(card[1]) if len(card) > 2 and not card[0] else None
    except yaml.YAMLError as error:
        raise ValueError(f"the YAML at the head of {folder / 'README.md'} is broken: {error}") from error
    if not isinstance(head, dict):
        raise ValueError(f"{folder / 'README.md'} has no YAML between two lines of --- at its head.")
    return sorted(
        path for path in folder.iterdir() if path.is_file() and not any(path.match(left) for left in LEFT_OUT)
    )


def push(folder: Path, name: str, create_pr: bool = False, private: bool = False) -> str:
    """Upload a model repository, in one commit.

    Args:
        folder (`Path`): the repository.
        name (`str`): "organisation/model"; it is made if it is not there.
        create_pr (`bool`): open a pull request instead of committing to its main branch.
        private (`bool`): if it is made, make it private.

    Returns:
        the address of the commit, or of the pull request.

    Raises:
        ValueError: see [`to_upload`].
    """
    files = [path.name for path in to_upload(folder)]
    api = HfApi()
    api.create_repo(name, exist_ok=True, private=private or None)
    done = api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=files, create_pr=create_pr)
    return done.pr_url or done.commit_url
