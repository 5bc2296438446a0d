"""Small models whose every weight matters: nothing in them is left at zero."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from modeling_flm import FLMConfig, FLMModel, FMLMConfig, FMLMModel

SIZES = dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
SIZES |= dict(max_position_embeddings=12, conditioning_size=16, time_embedding_size=16)


def tiny_config(model_type: str = "flm", **changes) -> FLMConfig:
    """V = 61 > d = 32, so that noise takes the embedded path; `vocab_size=23` takes the dense one."""
    return (FMLMConfig if model_type == "fmlm" else FLMConfig)(**SIZES | changes)


def tiny_model(
    model_type: str = "flm", *, weights_seed: int = 0, attn_implementation: str | None = None, **changes
) -> FLMModel:
    """A model in eval mode, every parameter drawn from `weights_seed`."""
    config = tiny_config(model_type, **changes)
    model_class = FMLMModel if model_type == "fmlm" else FLMModel
    model = model_class._from_config(config, attn_implementation=attn_implementation)
    return randomise(model, weights_seed).eval()


def randomise(model: FLMModel, seed: int = 0) -> FLMModel:
    """Every parameter N(0, 0.2^2), the scales of the layer norms around 1, parameter by parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + ("norm" in name))
    return model


def random_ids(batch: int, length: int, seed: int = 0, vocab_size: int = 61) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def number_tokenizer(vocab_size: int = 61, **special: str) -> PreTrainedTokenizerFast:
    """Its words are the numbers below `vocab_size`, each its own id; `special` are tokens such as `eos_token="3"`."""
    words = Tokenizer(WordLevel({str(i): i for i in range(vocab_size)}, unk_token="0"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)
