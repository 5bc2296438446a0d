"""Uploads a model folder, or a Space, to the Hub: `flm push`."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, SpaceCard
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from flm_data.paths import check_links, checkout, sha256, weights_sha256
from trainers.model_card import BEGIN, END, in_repository, is_stock, listed
from trainers.pushes import PICKLED, reason

WRITTEN = ("README.md", "generation_config.json", "modeling_flm.py", "pipeline_flm.py")  # `flm card` writes them
NEEDED = ("config.json", "tokenizer.json", *WRITTEN)
SPACE_NEEDED = ("README.md", "app.py", "requirements.txt")
# The files of this repository that the Space imports or reads. On the Hub it has them at the same paths.
SPACE_TAKES = (
    "evaluation/sudoku.py",
    "hub_cards/page.py",
    "hub_cards/page.html",
    "examples/sudoku/9x9/puzzles.txt",
)
STATIC_NEEDED = ("README.md", "index.html")
MANIFEST = "models/manifest.json"  # by `make space-static`: the checksum of every file that it made
OLD_CARD = "README.old.md"  # where `flm card` keeps a card that it replaces
LEFT_OUT = (".*", OLD_CARD, *PICKLED)
LARGE = 5 * 10**9  # bytes
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def to_upload(folder: Path) -> dict[str, Path]:
    """The files to upload, by their paths on the Hub: all at the top of the folder, but no hidden or pickled ones.
    A Space also has the files that it uses from elsewhere in this repository, or those that were built for it.

    Raises:
        ValueError: if a file that the repository needs is missing or damaged. The message names it.
    """
    if not folder.exists():
        raise ValueError(f"there is no file or folder {folder}.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder.")
    sdk = _head(folder).get("sdk")
    is_space = sdk is not None
    needed = NEEDED if not is_space else STATIC_NEEDED if sdk == "static" else SPACE_NEEDED
    for name in needed:
        if not (folder / name).is_file():
            what = "Space" if is_space else "model repository"
            help = ": `flm card` writes it" if name in WRITTEN and not is_space else ""
            raise ValueError(f"{folder} has no {name}, which a {what} needs{help}.")
    if not is_space:
        weights(folder)
        check_links(folder)
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    files = {name: path for name, path in files.items() if not any(path.match(left) for left in LEFT_OUT)}
    if sdk == "static":
        files |= built(folder)
    elif is_space:
        root = checkout()
        files |= {name: root / name for name in SPACE_TAKES}
    return files


def built(folder: Path) -> dict[str, Path]:
    """The files that `make space-static` made in the folder of the static Space, by their paths on the Hub.

    Raises:
        ValueError: if the Space has not been built, or one of the files or a model that it was built of has changed.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} has not been built: `make space-static` makes its models and libraries.")
    files = {MANIFEST: folder / MANIFEST}
    manifest, anew = json.loads(files[MANIFEST].read_text()), "`make space-static` makes it anew."
    for about in manifest["models"].values():
        source = folder.parent / about["name"]
        if source.is_dir() and weights_sha256(source) != about["source_sha256"]:
            raise ValueError(f"{folder} was built of other weights than {source} has: {anew}")
    for name, made in manifest["files"].items():
        files[name] = folder / name
        if not files[name].is_file() or sha256(files[name]) != made["sha256"]:
            raise ValueError(f"{files[name]} is not as it was built: {anew}")
    return files


def weights(folder: Path) -> list[Path]:
    """The weight files of a model folder: `model.safetensors`, or the shards that its index names.

    Raises:
        ValueError: if there are none, or one is missing or damaged.
    """
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file() and not (folder / "model.safetensors").is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
    for name in sorted(names):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}, which a model repository needs.")
        try:
            with safe_open(folder / name, framework="np"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is damaged: {error}.") from error
    return [folder / name for name in sorted(names)]


def _head(folder: Path) -> dict:
    """The metadata of the folder's README.md: the YAML at its head."""
    readme = folder / "README.md"
    if not readme.is_file():
        raise ValueError(f"{folder} has no README.md, which a repository needs: `flm card` writes it for a model.")
    card = readme.read_text(encoding="utf-8").split("---\n")
    try:
        head = yaml.safe_load(card[1]) if len(card) > 2 and not card[0] else None
    except yaml.YAMLError as error:
        raise ValueError(f"the YAML at the head of {readme} is broken: {error}") from error
    if not isinstance(head, dict):
        raise ValueError(f"{readme} has no YAML between two lines of --- at its head.")
    return head


def check_name(name: str) -> None:
    """Check that the Hub allows a repository of that name, and that the name has an owner ("organisation/name").

    Raises:
        ValueError: if not.
    """
    validate_repo_id(name)
    if "/" not in name:
        raise ValueError(f"{name} does not say whose it is: write organisation/{name}, or your own name before it.")


def card_in(folder: Path, name: str) -> str:
    """The folder's card, as it is uploaded to the repository `name`. Where it names models without an organisation,
    those of a Space and base models that lie beside the folder get the organisation of `name`."""
    card, organisation = (folder / "README.md").read_text(encoding="utf-8"), name.split("/")[0]
    if "sdk" in _head(folder):
        space = SpaceCard(card)
        models = space.data.to_dict().get("models", [])
        space.data["models"] = [model if "/" in model else f"{organisation}/{model}" for model in models]
        return str(space)
    beside = {path.parent.name for path in folder.resolve().parent.glob("*/config.json")}
    steps = json.loads((folder / "generation_config.json").read_text()).get("num_steps")
    return in_repository(card, name, steps, {base: f"{organisation}/{base}" for base in beside})


def described(card: str) -> str:
    """The metadata of a card as YAML, with its evaluation results summarised."""
    head = yaml.safe_load(card.split("---\n")[1])
    for model in head.pop("model-index", []):
        metrics = [metric["type"] for result in model["results"] for metric in result["metrics"]]
        head["results"] = f"{len(metrics)} ({', '.join(dict.fromkeys(metrics))})"
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip()


def remarks(card: str, files: Mapping[str, Path], name: str) -> list[str]:
    """What should be mended in the model repository `name` with this card and these files, a sentence each. None of it
    prevents a push."""
    parsed = ModelCard(card)
    data: Any = parsed.data
    said = []
    if "sdk" in data:
        return []
    if not data.datasets:
        said.append("the card names no data set on the Hub (flm card --dataset org/name).")
    if not data.license:
        said.append("the card names no license (flm card --license apache-2.0).")
    if not data.eval_results:
        said.append("the card has no evaluation results.")
    for base in listed(data.base_model):
        if "/" not in base:
            said.append(
                f"base_model {base} has no organisation, and no model of that name lies beside the folder: on the Hub "
                "it leads nowhere. Name it in full in README.md."
            )
    if is_stock(card):
        said.append("the card is that of transformers, with blanks: `flm card` writes one of what the folder tells.")
    elif not (BEGIN in card and END in card or f'"{name}"' in card):
        said.append(f"the examples of the card do not load {name}, and there are no comments for `flm push` to fill.")
    for link in _LINK.findall(parsed.text):
        if not link.startswith(("https://", "http://", "#", "mailto:")) and link.split("#")[0] not in files:
            said.append(f"the card links {link}, which is not in the repository.")
    for path, file in files.items():
        if file.stat().st_size > LARGE:
            said.append(
                f"{path} has more than 5 GB: `save_pretrained(..., max_shard_size='5GB')` writes smaller files."
            )
    return said


def push(folder: Path, name: str, create_pr: bool = False, private: bool = False) -> str:
    """Upload a model folder, or a Space, in one commit. Its card is adapted to the repository (see [`card_in`]).
    Weights that the repository has in other files than the folder are removed from it.

    Args:
        folder (`Path`): the folder to upload; a Space if the head of its README.md names an `sdk`.
        name (`str`): name of the repository, "organisation/name". It is created if it does not exist.
        create_pr (`bool`): open a pull request instead of committing to the main branch.
        private (`bool`): if the repository is created, make it private.

    Returns:
        the URL of the commit, or of the pull request.

    Raises:
        ValueError: as in [`to_upload`] and [`check_name`].
        RuntimeError: if the Hub fails or refuses. The repository there is unchanged, or wholly new; never in between.
    """
    check_name(name)
    files: dict[str, Path | bytes] = to_upload(folder) | {"README.md": card_in(folder, name).encode()}
    sdk, api = _head(folder).get("sdk"), HfApi()
    kind = "space" if sdk else "model"
    operations: list[CommitOperationAdd | CommitOperationDelete]
    operations = [CommitOperationAdd(path, file) for path, file in files.items()]
    try:
        made = api.create_repo(name, repo_type=kind, space_sdk=sdk, exist_ok=True, private=private or None)
        if not sdk:  # a single file of weights would be loaded before several, and the other way round
            there = set(filter(_WEIGHTS.fullmatch, api.list_repo_files(made.repo_id)))
            operations += [CommitOperationDelete(path) for path in sorted(there - files.keys())]
        done = api.create_commit(
            made.repo_id,
            operations,
            repo_type=kind,
            commit_message=f"Upload {folder.resolve().name}",
            create_pr=create_pr,
        )
    except Exception as error:
        raise RuntimeError(
            f"the push to {name} failed: {reason(error)}. The repository is as it was (or all new, if only the Hub's "
            "last answer was lost). Push again once the reason is gone."
        ) from error
    return done.pr_url or done.commit_url
