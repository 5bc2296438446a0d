"""Weights to start from: a flow's from masked diffusion, a deeper model's from one of fewer blocks or loops."""

import copy
from collections.abc import Iterable

import torch
from transformers import PreTrainedConfig

from modeling_flm import FLMModel
from modeling_flm.configuration_flm import is_integer

# What a network computes with its weights, though their shapes do not show it.
USES_OF_WEIGHTS = ("num_attention_heads", "rope_theta", "attn_logit_softcapping", "final_logit_softcapping")
ARCHITECTURE = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_loops", "intermediate_size", "conditioning_size"),
    *("time_embedding_size", "learned_positions", "max_position_embeddings", *USES_OF_WEIGHTS),
)


def differing(fields: Iterable[str], one: PreTrainedConfig, other: PreTrainedConfig) -> list[str]:
    """The fields in which two configurations differ."""
    return [name for name in fields if getattr(one, name) != getattr(other, name)]


@torch.no_grad()
def start_from_masked(model: FLMModel, masked: FLMModel) -> None:
    """Give a flow the weights of a masked diffusion model of the same architecture.

    That has learned to predict a token from those around it, some of which are hidden: what words go together. A flow
    learns it later, since it sees all tokens at once, each a little.

    Args:
        model (`FLMModel`): changed in place. Its time embedding becomes that of tau = 0 at all times, which is what
            the masked model was told; training tells them apart.
        masked (`FLMModel`): as `python -m benchmarks.baselines.mdlm` trains it.

    Raises:
        ValueError: the architectures differ (the message says in what), or the configuration of `masked` does not say
            that it is one of masked diffusion.
    """
    if not getattr(masked.config, "masked_diffusion", False):
        raise ValueError("`model.masked` is no masked diffusion model: its configuration lacks `masked_diffusion`.")
    if different := differing(ARCHITECTURE, model.config, masked.config):
        raise ValueError(f"the flow and the masked model it is to start from differ in {', '.join(different)}.")
    model.load_state_dict(masked.state_dict(), strict=False)  # a flow may have a loss weight of its own beside
    last = model.time_embedding.linear_2
    last.bias.copy_(masked.time_embedding(torch.zeros(1))[0])
    last.weight.zero_()


def check_flow(config, what: str) -> None:
    """Refuse masked diffusion where a flow is needed: its network is the same, and nothing else would tell.

    Raises:
        ValueError: the configuration says that it is one of masked diffusion. `what` names the model.
    """
    if getattr(config, "masked_diffusion", False):
        raise ValueError(
            f"{what} is a masked diffusion model, no flow. A flow can start from its weights (`model.masked`), a map "
            "be matched to it (`objective: distribution_matching`), and `flm evaluate` writes with it."
        )


def check_map(model, teacher) -> None:
    """Check that a student can be a flow map, of the vocabulary of its teacher, if there is one.

    Raises:
        ValueError: the student has one time only, or the vocabularies differ.
    """
    if model is None or not getattr(model.config, "two_times", False):
        raise ValueError("`model` must be a two-time model (FMLM): only it can be a flow map.")
    if teacher is not None and teacher.config.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the teacher has a vocabulary of {teacher.config.vocab_size} tokens and the map of "
            f"{model.config.vocab_size}: they must be the same."
        )


@torch.no_grad()
def deepened(model: FLMModel, num_hidden_layers: int | None = None, num_loops: int | None = None) -> FLMModel:
    """A model of more blocks or loops that computes what `model` does.

    With more blocks each is followed by copies of itself. With more loops the text goes through all blocks again. Both
    add nothing at first, since their gates are zero. Training opens them.

    Args:
        num_hidden_layers (`int`, *optional*): how many blocks, a multiple of the model's own. Default: as many.
        num_loops (`int`, *optional*): how many loops, not fewer than the model's own. Default: as many.

    Raises:
        ValueError: a number is not allowed.
    """
    config, width = copy.deepcopy(model.config), model.config.hidden_size
    own = config.num_hidden_layers
    if num_hidden_layers is not None:
        if not is_integer(num_hidden_layers) or num_hidden_layers < own or num_hidden_layers % own:
            raise ValueError(
                f"`num_hidden_layers` is {num_hidden_layers!r}, but it must be a multiple of the {own} there are."
            )
        config.num_hidden_layers = num_hidden_layers
    if num_loops is not None:
        if not is_integer(num_loops) or num_loops < config.num_loops:
            raise ValueError(f"`num_loops` is {num_loops!r}, but it must be an integer >= {config.num_loops}.")
        config.num_loops = num_loops
    deeper, copies = type(model)._from_config(config).train(model.training), config.num_hidden_layers // own
    weights = deeper.loop_gates.state_dict(prefix="loop_gates.") | model.state_dict()
    for i in range(config.num_hidden_layers):
        for name, weight in model.layers[i // copies].state_dict().items():
            weights[f"layers.{i}.{name}"] = weight
    deeper.load_state_dict(weights)
    deeper.generation_config = copy.deepcopy(model.generation_config)
    for i, block in enumerate(deeper.layers):
        if i % copies:
            for weight in block.modulation.parameters():
                weight.unflatten(0, (2, 3, width))[:, 2] = 0  # of shift, scale and gate, of the attention and the MLP
    return deeper
