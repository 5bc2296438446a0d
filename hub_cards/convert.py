"""Converts official checkpoints to model repositories, and back: `flm convert` and `flm export-official`.

An official checkpoint is a Hub export (a folder with a nested `config.json` and `model.safetensors`) or a Lightning
checkpoint (`.ckpt`). It is converted as a whole or refused: every tensor is used or named as dropped, and every weight
of the model is filled. Then the written folder is loaded in a fresh process, and its logits are compared.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from flm_data.paths import is_repository, reading
from modeling_flm import FLMModel, FMLMConfig, FMLMModel
from trainers.model_card import model_card
from trainers.start import check_flow

from .official import COMPUTED, convert_config, convert_state_dict, official_logits, official_name

_RELOAD = """
import sys
from safetensors.torch import load_file, save_file
from transformers import AutoModel
folder, given, found = sys.argv[1:]
inputs = load_file(given)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
save_file({"logits": model(**inputs).logits.detach()}, found)
"""


@dataclass
class Source:
    """An official checkpoint, read from disk.

    Args:
        name (`str`): its name on the Hub, or that of its file or folder.
        config (`dict`): the nested official configuration.
        weights (`dict[str, Tensor]`): the weights of the network, by official names.
        dropped (`list[str]`): names of tensors that are no part of the network, such as those of a teacher.
    """

    name: str
    config: dict
    weights: dict[str, Tensor]
    dropped: list[str] = field(default_factory=list)


def read_source(path: Path, config: Path | None = None, averaged: bool = True) -> Source:
    """Read an official checkpoint.

    Args:
        path (`Path`): the folder of a Hub export, or a `.ckpt` file.
        config (`Path`, *optional*): a JSON file with the nested configuration, for a `.ckpt` without a readable one.
        averaged (`bool`): from a `.ckpt`, take the exponential moving average of the weights, not the raw weights.

    Raises:
        ValueError: if something is missing or damaged, or would run code when loaded. The message names it.
    """
    if path.is_dir():
        if config or not averaged:
            raise ValueError(f"{path} is an export: --config and --raw are for a .ckpt file.")
        return _read_export(path)
    if path.suffix == ".ckpt" and path.is_file():
        return _read_lightning(path, config, averaged)
    raise ValueError(f"{path} is neither a folder with config.json and model.safetensors nor a .ckpt file.")


def _read_export(folder: Path) -> Source:
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: it is not an official Hub export.")
    try:
        weights = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged: {error}.") from error
    return Source(folder.resolve().name, _read_config(folder / "config.json"), weights)


def _read_config(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error


class _Inert:
    """Stands for an object of a configuration library in a checkpoint: it has its attributes, but not its code."""

    def __setstate__(self, state) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


def _inert(*names: str) -> list:
    """Safe globals for `torch.load`: a class for each name, which only holds attributes."""
    return [(type(name.rsplit(".", 1)[-1], (_Inert,), {}), name) for name in names]


_ALLOWED = _inert(
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
)


def _read_lightning(path: Path, config: Path | None, averaged: bool) -> Source:
    with torch.serialization.safe_globals(_ALLOWED):
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # of many kinds, depending on what is wrong with the file
            reason = str(error).split("\n")[0]
            raise ValueError(
                f"{path} cannot be read without running code that it brings, or is damaged ({reason}): take the Hub "
                "export of the model."
            ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"{path} has no state_dict: it is not a Lightning checkpoint.")
    weights, dropped = {}, []
    for name, tensor in checkpoint["state_dict"].items():
        if name.startswith("teacher"):
            dropped.append(name)
        else:
            weights[name.removeprefix("backbone.").replace("_orig_mod.", "")] = tensor
    if averaged:
        weights |= _average(path, checkpoint, weights)
    if config is not None:
        nested = _read_config(config)
    else:
        nested = _plain(checkpoint.get("hyper_parameters", {}))
        nested = nested.get("config", nested)
    return Source(path.name, nested, weights, dropped)


def _average(path: Path, checkpoint: Mapping, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The moving average by parameter name. The checkpoint has it as a list, in the order of the parameters."""
    average = (checkpoint.get("ema") or {}).get("shadow_params")
    if average is None:
        raise ValueError(f"{path} holds no moving average (ema.shadow_params): convert its raw weights (--raw).")
    names = [name for name in weights if name != COMPUTED]
    if len(average) != len(names):
        raise ValueError(f"the moving average in {path} has {len(average)} tensors for {len(names)} parameters.")
    for name, tensor in zip(names, average, strict=True):
        if tensor.shape != weights[name].shape:
            raise ValueError(
                f"the moving average in {path} has {tuple(tensor.shape)} in the place of {name}, which is "
                f"{tuple(weights[name].shape)}."
            )
    return dict(zip(names, average, strict=True))


def _plain(node: Any) -> Any:
    """Turn a configuration object into plain dicts, lists and values."""
    if isinstance(node, _Inert):
        held = vars(node)
        return _plain(held["_content"] if "_content" in held else held.get("_val"))
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value) for value in node]
    return node


def convert(
    source: Source, output: Path, tokenizer: str | None = None, final_logit_softcapping: float | None = 30.0
) -> FLMModel:
    """Write a checkpoint as a model repository: an FMLM if its weights have a second time embedding, else an FLM.

    Args:
        source (`Source`): the checkpoint, from [`read_source`].
        output (`Path`): the folder to write.
        tokenizer (`str`, *optional*): folder or Hub name of a tokenizer to save with the model. Its special ids go
            into the configuration. gpt2 on the Hub has no padding token: it gets the [PAD] of the official one.
        final_logit_softcapping (`float`, *optional*): 30 for the second published version, None for the first.

    Raises:
        ValueError: if a weight is missing, unexpected, of a wrong shape or not finite, if the configuration does not
            fit the weights, or if the written folder does not load or has other logits than the source.
    """
    weights = convert_state_dict(source.weights)
    config = convert_config(source.config, source.weights, final_logit_softcapping)
    for name, tensor in source.weights.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has entries that are not finite.")
    if tokenizer is not None:
        words = _load_tokenizer(tokenizer, config.vocab_size)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id"):
            setattr(config, name, getattr(words, name))
    with torch.device("meta"):
        model = FMLMModel(config) if isinstance(config, FMLMConfig) else FLMModel(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        name = min(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise ValueError(
            f"the weight {official_name(name)} is {found.get(name, 'missing')}, but the network of the others has "
            f"{expected.get(name, 'none of that name')}."
        )
    model.load_state_dict({name: tensor.float().contiguous() for name, tensor in weights.items()}, assign=True)
    model.generation_config = model.generation_config_class.from_model_config(config)
    model.eval().save_pretrained(output)
    if tokenizer is not None:
        words.save_pretrained(output)
    difference = _compare(source, model.config, output)
    (output / "README.md").write_text(_card(source, model, output.resolve().name, difference))
    return model


def _card(source: Source, model: FLMModel, name: str, difference: float) -> str:
    config = model.config
    cap = config.final_logit_softcapping
    on_hub = is_repository(source.name)
    return model_card(
        name=name,
        model_type=config.model_type,
        parameters=model.num_parameters(),
        writes=f"up to {config.max_position_embeddings} tokens",
        num_steps=model.generation_config.num_steps,
        made=[
            f"Converted from the official checkpoint `{source.name}` by `flm convert`; its training is told there.",
            f"Attention scores capped at {config.attn_logit_softcapping:g}, logits "
            + ("not capped." if cap is None else f"at {cap:g}."),
            *([f"Left out, being no part of the network: {', '.join(source.dropped)}."] if source.dropped else []),
        ],
        quality="Its samples were not measured when this card was written. Its logits, loaded from this repository, "
        f"are those of the official equations on the official weights, within {difference:.1g} (2 x 16 tokens).",
        limits="Those of the original.",
        base_model=source.name if on_hub else None,
    )


def _load_tokenizer(name: str, vocab_size: int):
    try:
        with reading(name):
            tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"the tokenizer {name} cannot be loaded: {error}") from error
    # The official code takes [CLS] for both ends of the rows of BERT's tokenizer, which names neither.
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.cls_token
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    if len(tokenizer) != vocab_size:
        raise ValueError(f"the tokenizer {name} has {len(tokenizer)} tokens, but the model {vocab_size}.")
    return tokenizer


def _compare(source: Source, config, folder: Path) -> float:
    """The largest difference between the logits of the written folder and those of the official equations on the
    source's weights. The folder is loaded in a fresh process, by its own code."""
    length = min(16, config.max_position_embeddings)
    state = torch.randn(2, length, config.vocab_size, generator=torch.Generator().manual_seed(0))
    tau = torch.tensor([0.2, 0.7])
    target_tau = torch.tensor([0.6, 1.0]) if config.two_times else None
    expected = official_logits(
        source.weights, config.num_attention_heads, state, tau, target_tau, config.final_logit_softcapping
    )
    inputs = {"inputs_embeds": state @ source.weights["vocab_embed.embedding"].float(), "timesteps": tau}
    if target_tau is not None:
        inputs["target_timesteps"] = target_tau
    with tempfile.TemporaryDirectory() as between:
        given, found = Path(between) / "inputs.safetensors", Path(between) / "logits.safetensors"
        save_file(inputs, given)
        arguments = [sys.executable, "-P", "-c", _RELOAD, str(folder.resolve()), str(given), str(found)]
        done = subprocess.run(arguments, cwd=between, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"its process ended with status {done.returncode}"]
            raise ValueError(f"what was written to {folder} does not load: {said[-1]}")
        difference = (load_file(found)["logits"] - expected).abs().max().item()
    if not difference < 1e-4:
        raise ValueError(f"what was written to {folder} has other logits than the source, by up to {difference:.2g}.")
    return difference


def export_official(model: FLMModel, output: Path) -> None:
    """Write a model as an official Hub export, which the official evaluation can read.

    Raises:
        ValueError: if the model has a weight or a setting that the official network does not have, or is one of masked
            diffusion.
    """
    config = model.config
    check_flow(config, "the model")
    if config.attn_logit_softcapping != 50.0:
        raise ValueError(
            f"the official network caps attention scores at 50, but `attn_logit_softcapping` is "
            f"{config.attn_logit_softcapping}."
        )
    if config.final_logit_softcapping not in (None, 30.0):
        raise ValueError(
            "the official network caps logits at 30, or in its first version not at all, but "
            f"`final_logit_softcapping` is {config.final_logit_softcapping}."
        )
    if config.rope_theta != 10_000.0:
        raise ValueError(f"the official network has `rope_theta` 10,000, but here it is {config.rope_theta}.")
    weights = {
        official_name(name): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("loss_weighting.target_time_embedding.")  # the official one ignores the second time
    }
    half = config.hidden_size // config.num_attention_heads // 2
    weights[COMPUTED] = config.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    nested = {
        "algo": {"name": config.model_type, "backbone": "dit", "learnable_loss_weighting": config.loss_weighting},
        "model": {
            "type": "ddit",
            "hidden_size": config.hidden_size,
            "cond_dim": config.conditioning_size,
            "length": config.max_position_embeddings,
            "n_blocks": config.num_hidden_layers,
            "n_heads": config.num_attention_heads,
            "dropout": config.hidden_dropout,
            "scale_by_sigma": True,
            "tie_word_embeddings": False,
        },
        "vocab_size": config.vocab_size,
    }
    output.mkdir(parents=True, exist_ok=True)
    save_file(weights, output / "model.safetensors")
    (output / "config.json").write_text(json.dumps(nested, indent=2) + "\n")
