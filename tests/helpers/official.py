"""The recorded inputs and outputs of the official implementation, and models that carry its recorded weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from hub_cards.official import convert_config, convert_state_dict
from modeling_flm import FLMModel, FMLMModel

PARITY = Path(__file__).parents[1] / "parity"


def record(name: str) -> dict[str, torch.Tensor]:
    return load_file(PARITY / f"{name}.safetensors")


def about(name: str) -> dict:
    return json.loads((PARITY / f"{name}.json").read_text())


def official_model(name: str, cap: float | None, attn_implementation: str | None = None) -> FLMModel:
    """`dit_flm` or `dit_fmlm` with the recorded weights, every one of them used."""
    weights = record(name)
    config = convert_config(about(name)["config"], weights, final_logit_softcapping=cap)
    config._attn_implementation = attn_implementation
    model = (FMLMModel if name == "dit_fmlm" else FLMModel)(config)
    model.load_state_dict(convert_state_dict(weights), strict=True)
    return model.eval()
