"""Completes a model folder so that it can be pushed, with the model's code and a model card: `flm card`.

transformers' own Trainer saves no card, or one full of blanks, and its pushes during training lack the model's code.
"""

import filecmp
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import modeling_flm
from modeling_flm import FlowGenerationConfig
from trainers.model_card import Samples, is_stock, listed, model_card, training_results
from trainers.start import check_flow

from .push import OLD_CARD, card_in, weights

CODE = Path(modeling_flm.__file__).parent
SAMPLES = 2


def complete(folder: Path) -> list[str]:
    """Add the model's code and the generation configuration to a model folder, where they are missing.

    Returns:
        the names of the written files.

    Raises:
        ValueError: if the folder is not that of a flow language model with its tokenizer, if the model is one of
            masked diffusion, or if the folder has only a part of the code, from another version of this package.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder.")
    for name, help in (("config.json", ""), ("tokenizer.json", ": `tokenizer.save_pretrained` writes it")):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}, which a model repository needs{help}.")
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") not in ("flm", "fmlm"):
        raise ValueError(f"{folder} is a model of type {config.get('model_type')}, not a flow language model.")
    check_flow(SimpleNamespace(**config), str(folder))
    weights(folder)
    sources = sorted(CODE.glob("*_flm.py"))
    missing = [source for source in sources if not (folder / source.name).is_file()]
    if missing:
        for source in sources:
            if source not in missing and not filecmp.cmp(source, folder / source.name, shallow=False):
                raise ValueError(
                    f"{folder} has no {missing[0].name}, and its {source.name} is not that of this version: save the "
                    "model again, or remove its *_flm.py files to take those of this version."
                )
        for source in missing:
            shutil.copy(source, folder)
    written = [source.name for source in missing]
    if not (folder / "generation_config.json").is_file():
        FlowGenerationConfig.from_model_config(config).save_pretrained(folder)
        written.append("generation_config.json")
    return written


def write_card(folder: Path, name: str | None = None, datasets: Sequence[str] = (), license: str | None = None) -> str:
    """Write the model card of a complete folder (see [`complete`]), or add to the card that it has.

    A folder without a card, or with one of transformers that still has blanks, gets a new card, made of what the
    folder tells; the old one is kept as `README.old.md`. Any other card is changed only in what the arguments give.

    Args:
        folder (`Path`): the model folder.
        name (`str`, *optional*): name of the repository on the Hub, "organisation/name".
        datasets (`list[str]`): Hub names of the data sets that the model was trained on.
        license (`str`, *optional*): identifier of the licence on the Hub, such as "apache-2.0".

    Returns:
        what was done, in words, for the user.
    """
    readme = folder / "README.md"
    old = ModelCard(readme.read_text(encoding="utf-8") if readme.is_file() else "---\n{}\n---\n")
    known: Any = old.data
    if datasets:
        known.datasets = list(datasets)
    if license:
        known.license = license
    if not readme.is_file() or is_stock(old.text):
        card = _card(folder, name or folder.resolve().name, known)
        kept = f"; {readme.replace(folder / OLD_CARD).name} is that of transformers" if readme.is_file() else ""
        readme.write_text(card, encoding="utf-8")
        return f"a card of what the folder tells{kept}"
    if not (datasets or license or name):
        return "nothing: it has a card already"
    readme.write_text(str(old), encoding="utf-8")
    if name:
        readme.write_text(card_in(folder, name), encoding="utf-8")
    return "its card's metadata"


def _card(folder: Path, name: str, known: Any) -> str:
    """A new card, of what the folder tells and of `known`, the metadata that its old card or the user gives."""
    config = json.loads((folder / "config.json").read_text())
    datasets, bases = listed(known.datasets), listed(known.base_model)
    made = [f"Trained from: {', '.join(bases)}."] if bases else []
    if datasets:
        made.append(f"Data: {', '.join(datasets)}.")
    source, log = _log(folder)
    if log:
        made.append(f"Steps of training: {max(entry['step'] for entry in log)}, by {source}.")
        rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
        made += [f"Learning rate: at most {max(rates):g}, as it was logged."] if rates else []
    made += ["Recipe: `recipe.yaml`."] if (folder / "recipe.yaml").is_file() else []
    quality, results = training_results(log, datasets)
    return model_card(
        name=name,
        model_type=config["model_type"],
        parameters=size(folder),
        writes=f"up to {config['max_position_embeddings']} tokens",
        num_steps=json.loads((folder / "generation_config.json").read_text()).get("num_steps"),
        made=made or ["Its training is not recorded in this folder."],
        quality=quality,
        limits="Its samples were not measured when this card was written.",
        samples=[drawn(folder)],
        results=results,
        license=known.license,
        language=known.language,
        datasets=datasets or None,
        base_model=known.base_model,
    )


def size(folder: Path) -> int:
    """The number of parameters, counted in the weight files."""
    count = 0
    for file in weights(folder):
        with safe_open(file, framework="np") as tensors:
            count += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())
    return count


def drawn(folder: Path, num_steps: int | None = None) -> Samples:
    """Texts that the model writes from the first seeds, with its own settings; `num_steps` overrides theirs."""
    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(folder).eval()
    num_steps = num_steps or model.generation_config.num_steps
    ids = model.generate(num_steps=num_steps, num_return_sequences=SAMPLES, seed=0)
    texts = AutoTokenizer.from_pretrained(folder).batch_decode(ids, skip_special_tokens=True)
    return Samples(texts, num_steps, seed=0)


def _log(folder: Path) -> tuple[str, list[dict]]:
    """The Trainer's log of the training that made these weights, and the file that it was read from: that of the last
    checkpoint with the same weights, else that of the folder."""
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    for state in reversed(states):
        there = [state.with_name(file.name) for file in weights(folder)]
        if all(map(Path.is_file, there)) and all(map(_same, there, weights(folder))):
            return f"`{state.relative_to(folder)}`", json.loads(state.read_text())["log_history"]
    if (folder / "trainer_state.json").is_file():
        return "`trainer_state.json`", json.loads((folder / "trainer_state.json").read_text())["log_history"]
    if (folder / "training_log.jsonl").is_file():
        lines = (folder / "training_log.jsonl").read_text().splitlines()
        return "`training_log.jsonl`", [json.loads(line) for line in lines]
    return "", []


def _same(one: Path, other: Path) -> bool:
    return filecmp.cmp(one, other, shallow=False)
