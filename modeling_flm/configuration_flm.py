"""The configurations of a flow language model (FLM) and of its flow map (FMLM)."""

import math
import numbers

from transformers.configuration_utils import PreTrainedConfig


def _require(condition: bool, field: str, value, rule: str) -> None:
    if not condition:
        raise ValueError(f"`{field}` is {value!r}, but it must be {rule}.")


class FLMConfig(PreTrainedConfig):
    """Configuration of [`FLMModel`], the denoiser of a flow language model (arXiv 2602.16813).

    ```python
    model = FLMModel(FLMConfig(vocab_size=4096, hidden_size=192, num_hidden_layers=4, num_attention_heads=4))
    ```

    Args:
        vocab_size (`int`): number of tokens V, at least 2. The clock (the scale of time) depends on it.
        hidden_size (`int`): width d of the hidden states; a multiple of `2 * num_attention_heads`, since rotary
            positions need an even head size.
        num_hidden_layers (`int`): number of transformer blocks.
        num_loops (`int`): how many times the hidden states go through all blocks, with the same weights: depth that no
            weights are needed for. What a further pass changes is gated, by gates that start at zero.
        num_attention_heads (`int`): number of attention heads.
        intermediate_size (`int`): width of the MLP.
        max_position_embeddings (`int`): length of the longest sequence (the context). `generate` writes as many tokens
            by default.
        conditioning_size (`int`): width of the time condition, which modulates every block (adaLN).
        time_embedding_size (`int`): number of sinusoidal time features, even.
        attn_logit_softcapping (`float`, *optional*): soft cap c of the attention scores, in (0, 80]: a score s becomes
            c tanh(s / c). None for no cap.
        final_logit_softcapping (`float`, *optional*): soft cap of the output logits, likewise. The first published
            models have none, later ones 30.
        hidden_dropout (`float`): dropout after attention and MLP, in [0, 1).
        rope_theta (`float`): base of the rotary positions.
        learned_positions (`bool`): whether to add a learned vector per position to the state. It suits data in which a
            position has a meaning of its own, such as the cells of a Sudoku. The paper's models have none: rotary
            positions are relative, so that in pure noise nothing tells one position from another.
        initializer_range (`float`): standard deviation of the initial embedding table. The output layer and adaLN
            start at zero, other linear layers uniform in +-1 / sqrt(fan-in), as in the published code.
        loss_weighting (`bool`): whether the model has a learned loss weight w(tau). In training it turns the loss l of
            a sequence into exp(-w) l + w; it has no other use.
        bos_token_id, eos_token_id, pad_token_id, mask_token_id (`int`, *optional*): special ids, in [0, V). A list
            gives several for EOS.

    Raises:
        ValueError: if a value is not allowed. The message names the field, the value and the rule.
    """

    model_type = "flm"
    two_times = False  # whether the network is told a second time, that at which a jump ends
    model_class = "FLMModel"  # the class that the Auto classes build from a repository's own code

    vocab_size: int = 50258
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_loops: int = 1
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 1024
    conditioning_size: int = 128
    time_embedding_size: int = 256
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0
    hidden_dropout: float = 0.1
    rope_theta: float = 10000.0
    learned_positions: bool = False
    initializer_range: float = 0.02
    loss_weighting: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    mask_token_id: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self._check()
        vars(self).pop("model_type", None)  # that of the class holds: an FMLM may start from the files of an FLM
        self.auto_map = dict(getattr(self, "auto_map", None) or {})
        if self.auto_map.get("AutoModelForMaskedLM", "").endswith((".FLMModel", ".FMLMModel")):
            del self.auto_map["AutoModelForMaskedLM"]  # earlier versions set it, but these are no masked LMs
        for auto in ("AutoModel", "AutoModelForCausalLM"):
            module, _, name = self.auto_map.get(auto, "modeling_flm.").rpartition(".")
            if name in ("", "FLMModel", "FMLMModel"):
                self.auto_map[auto] = f"{module}.{self.model_class}"
        if getattr(self, "custom_pipelines", None) is None:  # the class that `pipeline("text-generation")` builds
            own = {"impl": "pipeline_flm.FLMPipeline", "pt": ["AutoModel"], "type": "text"}
            self.custom_pipelines = {"text-generation": own}

    def _check(self) -> None:
        sizes = ["hidden_size", "num_hidden_layers", "num_loops", "num_attention_heads", "intermediate_size"]
        sizes += ["max_position_embeddings", "conditioning_size", "time_embedding_size"]
        for field, least in [("vocab_size", 2)] + [(size, 1) for size in sizes]:
            value = getattr(self, field)
            _require(is_integer(value) and value >= least, field, value, f"an integer >= {least}")
        heads, width = self.num_attention_heads, self.hidden_size
        rule = f"a multiple of 2 * num_attention_heads (= {2 * heads}), since rotary positions turn pairs"
        _require(width % (2 * heads) == 0, "hidden_size", width, rule)
        _require(self.time_embedding_size % 2 == 0, "time_embedding_size", self.time_embedding_size, "even")
        for field in ("attn_logit_softcapping", "final_logit_softcapping"):
            value = getattr(self, field)
            valid = value is None or (is_number(value) and 0 < value <= 80)
            _require(valid, field, value, "None or a number in (0, 80], so that its exponential fits float32")
        dropout = self.hidden_dropout
        _require(is_number(dropout) and 0 <= dropout < 1, "hidden_dropout", dropout, "a number in [0, 1)")
        for field in ("rope_theta", "initializer_range"):
            value = getattr(self, field)
            _require(is_number(value) and 0 < value < math.inf, field, value, "a positive number")
        for field in ("learned_positions", "loss_weighting"):
            _require(isinstance(getattr(self, field), bool), field, getattr(self, field), "true or false")
        for field in ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id"):
            value, lists = getattr(self, field), field == "eos_token_id"
            ids = value if lists and isinstance(value, list) and value else [value]
            valid = value is None or all(is_integer(x) and 0 <= x < self.vocab_size for x in ids)
            several = " or a list of some" if lists else ""
            _require(valid, field, value, f"None or an id in [0, vocab_size = {self.vocab_size}){several}")


class FMLMConfig(FLMConfig):
    """Configuration of [`FMLMModel`], the flow map of a flow language model. Its fields are those of [`FLMConfig`]."""

    model_type = "fmlm"
    two_times = True
    model_class = "FMLMModel"


def is_integer(value) -> bool:
    """Whether a value is an integer; a bool does not count as one."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether a value is a real number; a bool does not count as one."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


FLMConfig.register_for_auto_class()
FMLMConfig.register_for_auto_class()
