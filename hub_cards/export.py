"""Exports a flow map as an ONNX graph, which generates text without Python: `flm export`.

The graph is one step of sampling, with one evaluation of the network. It is run once for each step:

    x          = state + sigma * (noise @ factor)             embedded noise; after the first step only with gamma > 0
    x          = E[input_ids] where given
    delta      = the flow map's prediction for x, from tau to target_tau
    token_ids  = input_ids where given, else argmax delta
    confidence = 1 where given, else max delta
    next_state = a * x + b * embedding(delta)

The metadata of the file has a table for each number of steps, with the numbers (sigma, tau, target_tau, a, b) of each
step. So a program that runs the graph needs neither the clock nor its inverse:

```python
for row in json.loads(session.get_modelmeta().custom_metadata_map["steps"])["4"]:
    token_ids, state, confidence = session.run(None, {"state": state, "noise": noise, "step": row, ...})
```

A refinement is one more run: with fresh noise, zeros as state, the draft as `input_ids`, of which the surest tokens
are `given`, and the step (1, 0, 0, 0, 0), which asks for the denoiser.

`examples/onnx_generate.py` is a complete program.
"""

import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import onnx
import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

import modeling_flm  # noqa: F401  registers the model types
from flm_data.paths import weights_sha256
from modeling_flm import FMLMModel
from modeling_flm.flow_flm import beyond
from modeling_flm.generation_config_flm import REFINE_FRACTION

from .push import weights

INPUTS = ("state", "noise", "input_ids", "given", "step")
OUTPUTS = ("token_ids", "next_state", "confidence")
DTYPES = ("float32", "float16", "int8")
OPSET = 20  # has an operator for GELU in its tanh form
# Settings that the graph does not support: a model whose generation configuration has one is refused.
NOT_EXPORTED = (
    *("guidance_scale", "guidance_dropout", "refine_steps", "timesteps", "temperature", "top_k", "top_p"),
    *("suppress_tokens", "bad_words_ids", "window_overlap", "max_length", "max_new_tokens", "pad_after_eos"),
)


class SamplingStep(nn.Module):
    """One step of the `flow_map` sampler as a module, from which the graph is made (see the module's docstring).

    Args:
        model (`FMLMModel`): the flow map, with eager attention.
    """

    factor: Tensor

    def __init__(self, model: FMLMModel):
        super().__init__()
        self.model = model
        self.noise_width = model.white_width
        with torch.no_grad():
            factor = model.embed_white_noise(torch.eye(self.noise_width))
        self.register_buffer("factor", factor)

    def forward(
        self, state: Tensor, noise: Tensor, input_ids: Tensor, given: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            state (`Tensor`): (batch, length, d) float32, the `next_state` of the step before; zeros in the first step.
            noise (`Tensor`): (batch, length, n) float32, standard normal numbers, where n is the smaller of V and d.
            input_ids (`Tensor`): (batch, length) int64, the ids of given tokens; not read elsewhere.
            given (`Tensor`): (batch, length) bool, True at given tokens.
            step (`Tensor`): (5,) float32: sigma, tau, target_tau, a, b. See [`step_table`].

        Returns:
            token_ids (batch, length) int64, next_state (batch, length, d) float32, and confidence (batch, length)
            float32, the probability of each token.
        """
        model = self.model
        sigma, tau, target_tau, a, b = step.unbind()
        x = state + sigma * (noise @ self.factor)
        x = torch.where(given[..., None], model.embed_tokens(input_ids), x)
        batch = x.shape[0]
        hidden = model.denoise(x, tau.expand(batch), target_tau.expand(batch))
        logits = model.logits(hidden)
        delta = logits.softmax(-1)
        highest, likeliest = delta.max(-1)
        token_ids, confidence = torch.where(given, input_ids, likeliest), highest.masked_fill(given, 1)
        return token_ids, a * x + b * (delta @ model.embed_tokens.weight), confidence


def step_table(model: FMLMModel, num_steps: int, gamma: float = 0.0) -> list[list[float]]:
    """The numbers of each step (sigma, tau, target_tau, a, b) on an even grid of tau: (num_steps, 5).

    Args:
        gamma (`float`): in [0, 1], how much noise is put back after each jump, as with `renoise="official"`.
    """
    tau = torch.cat([torch.arange(num_steps) / num_steps, torch.ones(1)])
    t = model.clock.t(tau)
    past = beyond(t[1:], gamma)
    target = model.clock.tau(past) if gamma else tau[1:]
    share = (past - t[:-1]) / (1 - t[:-1])
    sigma = torch.cat([torch.ones(1), gamma * (1 - t[1:-1])])
    return torch.stack([sigma, tau[:-1], target, 1 - share, share + t[1:] - past], dim=1).tolist()


def load_map(folder: Path) -> FMLMModel:
    """Load the flow map of a folder for export: in float32, with eager attention.

    Raises:
        ValueError: if it is no flow map, its weights are damaged, or it has a setting that is not supported.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: it is no model folder.")
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in ("flm", "fmlm"):
        raise ValueError(f"{folder} is a model of type {config.model_type}, not a flow language model.")
    if not config.two_times:
        raise ValueError(f"{folder} is a flow (FLM), which does not write in one step: distil it, and export its map.")
    weights(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    settings = model.generation_config
    asked = [name for name in NOT_EXPORTED if getattr(settings, name) not in (None, 0)]
    asked += [f"sampler={settings.sampler}"] * (settings.sampler not in (None, "flow_map"))
    asked += ["renoise=markov"] * (settings.renoise == "markov")
    if asked:
        raise ValueError(
            f"{folder} is to be generated from with {', '.join(asked)} (generation_config.json), which cannot be "
            "exported: a graph is a step of the flow_map sampler, without guidance, rewards or refinement."
        )
    return model


def export(
    folder: Path,
    output: Path,
    num_steps: Sequence[int] = (1, 2, 4),
    gamma: float | None = None,
    dtype: str = "float32",
    source: str | None = None,
) -> Path:
    """Export a flow map to `model.onnx`, with the model's configuration and tokenizer beside it.

    Args:
        folder (`Path`): the model folder of the flow map.
        output (`Path`): the folder to write.
        num_steps (`list[int]`): the numbers of steps for which the metadata gets a table.
        gamma (`float`, *optional*): in [0, 1], see [`step_table`]. Default: the generation configuration's, or 0.
        dtype (`str`): precision of the weights: "float32", "float16" or "int8". The last is dynamic quantisation:
            matrices per column, activations while the graph runs, and nothing else.
        source (`str`, *optional*): what the metadata calls the model. Default: the name of the folder.

    Returns:
        the path of `model.onnx`.

    Raises:
        ValueError: if an argument is outside its range, the model is refused by [`load_map`], or has no tokenizer.
    """
    if not num_steps or min(num_steps) < 1:
        raise ValueError(f"`num_steps` must be numbers >= 1, but are {list(num_steps)}.")
    if gamma is not None and not 0 <= gamma <= 1:
        raise ValueError(f"`gamma` must be a number in [0, 1], but is {gamma}.")
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, but is {dtype!r}.")
    model = load_map(folder)
    if gamma is None:
        gamma = getattr(model.generation_config, "gamma", None) or 0.0
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no tokenizer, which goes with a graph: save it there. ({error})") from error
    output.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(output)
    model.generation_config.save_pretrained(output)
    # What a call has left there would be done to every prompt, by programs that read the file without transformers.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(output)
    graph = _graph(model)
    graph = _converted(graph, dtype)
    source = source or folder.resolve().name
    for name, value in _metadata(folder, model, tokenizer, num_steps, gamma, dtype, source).items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = name, value
    path = output / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    return path


def _graph(model: FMLMModel):
    """The step as an ONNX model, for any batch size and any length that the model takes."""
    step = SamplingStep(model).eval()
    batch, length, width = 2, model.config.max_position_embeddings, model.config.hidden_size
    example = (
        torch.zeros(batch, length, width),
        torch.zeros(batch, length, step.noise_width),
        torch.zeros(batch, length, dtype=torch.long),
        torch.zeros(batch, length, dtype=torch.bool),
        torch.tensor(step_table(model, 1)[0]),
    )
    rows = torch.export.Dim("batch", min=1)
    columns = torch.export.Dim("length", min=1, max=model.config.max_position_embeddings)
    shapes = tuple({0: rows, 1: columns} for _ in INPUTS[:-1]) + ({},)
    with torch.no_grad():
        program = torch.onnx.export(
            step,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _converted(graph, dtype: str):
    """The graph with its weights in another precision. Its inputs and outputs keep their types."""
    if dtype == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        # Angles and times stay in float32: float16 rounds the fourth digit, which matters far on and near tau = 1.
        kept = _before(graph.graph, ("Cos", "Sin"))
        graph = convert_float_to_float16(graph, keep_io_types=True, node_block_list=[node.name for node in kept])
        _take_back_rounding(graph.graph)
        return graph
    if dtype == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory() as folder:
            whole, folded, quantised = (Path(folder, f"{name}.onnx") for name in ("whole", "folded", "quantised"))
            whole.write_bytes(graph.SerializeToString())
            # Transposes are folded into the matrices, else those that are used in several loops would not be found.
            quant_pre_process(whole, folded, skip_symbolic_shape=True)
            quantize_dynamic(folded, quantised, weight_type=QuantType.QInt8, per_channel=True)
            return onnx.load(quantised)
    return graph


def _before(graph, kinds: Sequence[str]) -> list:
    """The nodes of these kinds, and all from which they are computed."""
    makers = {output: node for node in graph.node for output in node.output}
    found: dict[str, onnx.NodeProto] = {}
    waiting = [node for node in graph.node if node.op_type in kinds]
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found[node.name] = node
            waiting += [makers[name] for name in node.input if name in makers]
    return list(found.values())


def _take_back_rounding(graph) -> None:
    """Where float32 is made float16 and float32 again, take what there was before."""
    casts = {node.output[0]: (node.input[0], _cast_to(node)) for node in graph.node if node.op_type == "Cast"}
    before = {}
    for name, (rounded, kind) in casts.items():
        exact, between = casts.get(rounded, ("", None))
        if (between, kind) == (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT):
            before[name] = exact
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = before.get(name, name)


def _cast_to(node) -> int:
    return next(attribute.i for attribute in node.attribute if attribute.name == "to")


def _metadata(
    folder: Path,
    model: FMLMModel,
    tokenizer: PreTrainedTokenizerBase,
    num_steps: Sequence[int],
    gamma: float,
    dtype: str,
    source: str,
) -> dict[str, str]:
    """The metadata of the file: where the model comes from, and what is needed to run it. All values are strings."""
    config = model.config
    ids = {"mask_token_id": model._blank(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    readme = folder / "README.md"
    card = ModelCard.load(readme) if readme.is_file() else None
    return {
        "model_type": config.model_type,
        "dtype": dtype,
        "vocab_size": str(config.vocab_size),
        "length": str(config.max_position_embeddings),
        **{name: "" if value is None else str(value) for name, value in ids.items()},
        "clock": f"tau(t) of a vocabulary of {config.vocab_size}, arXiv 2602.16813, section 3.2",
        "gamma": str(gamma),
        "refine_fraction": str(REFINE_FRACTION),
        "steps": json.dumps({str(n): step_table(model, n, gamma) for n in num_steps}),
        "tokenizer": "tokenizer.json",
        "license": (card.data.license if card else None) or "not stated",
        "source": source,
        "source_sha256": weights_sha256(folder),
        "made_by": f"flow-language-models {version('flow-language-models')}",
    }
