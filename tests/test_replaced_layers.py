"""What loading may put in the place of layers: quantised ones, and weights that are elsewhere until a layer is called.

The quantiser is a stand-in: int8 weights with a scale per row, put into a model by `from_pretrained` as transformers'
quantisers are, with transformers' choice of what is left out.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload, disk_offload
from tiny import random_ids, tiny_model
from torch import Tensor, nn
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from evaluation.likelihood import log_likelihood
from modeling_flm import FLMModel, FMLMModel

TIMES = torch.arange(1000) / 1000
IDS = random_ids(3, 12)


class Int8Layer(nn.Module):
    """A linear layer or an embedding with an int8 weight, which computes in float32."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        weight = layer.weight.detach().float()
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 127)
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = getattr(layer, "bias", None)

    def whole(self) -> Tensor:
        return self.weight * self.scale


class Int8Linear(Int8Layer):
    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.whole(), bias).to(x.dtype)


class Int8Embedding(Int8Layer):
    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.whole())


@register_quantization_config("int8-stand-in")
@dataclass
class Int8Config(QuantizationConfigMixin):
    """`everything`: the embedding table, the output layer and the time network too, which none does by itself."""

    everything: bool = False
    modules_to_not_convert: list[str] | None = None
    quant_method: str = "int8-stand-in"


@register_quantizer("int8-stand-in")
class Int8Quantizer(HfQuantizer):
    def _process_model_after_weight_loading(self, model, **kwargs):
        config = self.quantization_config
        left_out = self.get_modules_to_not_convert(model, config.modules_to_not_convert, model._keep_in_fp32_modules)
        for name, module in list(model.named_modules()):
            if not config.everything and not should_convert_module(name, left_out):
                continue
            if isinstance(module, nn.Linear):
                model.set_submodule(name, Int8Linear(module))
            elif isinstance(module, nn.Embedding) and config.everything:
                model.set_submodule(name, Int8Embedding(module))
        return model

    def is_serializable(self):
        return False

    @property
    def is_trainable(self):
        return True


def a_map(**changes) -> FMLMModel:
    return tiny_model("fmlm", loss_weighting=True, learned_positions=True, **changes)


def load_int8(model: FLMModel, folder, **options) -> FLMModel:
    model.save_pretrained(folder)
    loading = {name: options.pop(name) for name in ("dtype",) if name in options}
    return type(model).from_pretrained(folder, quantization_config=Int8Config(**options), **loading)


def dequantised(model: FLMModel, quantised: FLMModel) -> FLMModel:
    """`model` with the weights that `quantised` computes with."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in quantised.named_modules():
            if isinstance(module, Int8Layer):
                model.get_submodule(name).weight.copy_(module.whole())
    return model


GENERATIONS = {
    "one step": {"num_steps": 1},
    "multistep": {"sampler": "multistep"},
    "flow map": {"sampler": "flow_map", "gamma": 0.5},
    "bridge": {"sampler": "bridge", "temperature": 0.8},
    "by the prompt": {"input_ids": IDS[:, :3], "guidance_scale": 2.0},
    "by dropout": {"guidance_scale": 2.0, "guidance_dropout": 0.2},
    "by a model": {"guidance_scale": 2.0, "guidance_model": a_map(weights_seed=1)},
    "by a reward": {"reward_fn": lambda ahead: ahead.probabilities[..., 5].sum(1) + ahead.embedding.sum((1, 2))},
    "restricted": {"suppress_tokens": [3, 7], "refine_steps": 1},
}


def assert_same(found: FLMModel, expected: FLMModel) -> None:
    """That two models compute the same in every way they can be asked."""
    ids = IDS % expected.config.vocab_size
    with torch.no_grad():
        for question in ({"input_ids": ids, "timesteps": 0.3}, {"labels": ids, "noise_seed": [1, 2, 3]}):
            for a, b in zip(found(**question).to_tuple(), expected(**question).to_tuple(), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    for name, settings in GENERATIONS.items():
        settings = {"num_steps": 3, "seed": 0} | settings
        if "input_ids" in settings:
            settings["input_ids"] = settings["input_ids"] % expected.config.vocab_size
        if "guidance_model" in settings and expected.config.vocab_size != settings["guidance_model"].config.vocab_size:
            continue
        assert torch.equal(found.generate(**settings), expected.generate(**settings)), name
    bounds = (log_likelihood(model, ids, num_steps=2).bound for model in (found, expected))
    torch.testing.assert_close(*bounds, rtol=0, atol=1e-3)


# -- quantised layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [None, ["o_proj"]], ids=["by default", "with a list of one's own"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantisers_leave_the_time_network_in_float32(tmp_path, dtype, skip):
    model = a_map()
    found = load_int8(model, tmp_path, dtype=dtype, modules_to_not_convert=skip)
    assert isinstance(found.layers[0].mlp.up_proj, Int8Linear)
    with torch.no_grad():
        for part in ("time_embedding", "target_time_embedding", "loss_weighting"):
            assert torch.equal(getattr(found, part)(TIMES), getattr(model, part)(TIMES)), part


def test_a_time_network_that_is_quantised_tells_times_apart(tmp_path):
    model = a_map()
    found = load_int8(model, tmp_path, everything=True)
    assert isinstance(found.time_embedding.linear_1, Int8Linear)
    with torch.no_grad():
        for part in ("time_embedding", "target_time_embedding"):
            embedded = getattr(found, part)(TIMES)
            assert embedded.dtype == torch.float32 and len(embedded.unique(dim=0)) == 1000
            torch.testing.assert_close(embedded, getattr(dequantised(model, found), part)(TIMES), rtol=0, atol=1e-6)


@pytest.mark.parametrize("vocab_size", [61, 23])
@pytest.mark.parametrize("everything", [False, True])
def test_a_quantised_model_computes_what_its_weights_say(tmp_path, everything, vocab_size):
    model = a_map(vocab_size=vocab_size)
    found = load_int8(model, tmp_path, everything=everything)
    assert isinstance(found.lm_head, Int8Linear) == isinstance(found.embed_tokens, Int8Embedding) == everything
    assert_same(found, dequantised(model, found))


def test_the_gradient_passes_a_quantised_output_layer(tmp_path):
    model = a_map()
    found = load_int8(model, tmp_path, everything=True)
    gradients = []
    for network in (found, dequantised(model, found)):
        network(labels=IDS, noise_seed=[1, 2, 3]).loss.backward()
        gradients.append(network.norm.weight.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


def test_a_bias_does_not_round_the_weights_of_an_output_layer(tmp_path):
    """In bfloat16 the sum of a weight and a bias of another size keeps little of the weight."""
    model = tiny_model().bfloat16()
    with torch.no_grad():
        model.lm_head.bias.mul_(100)
    weight, bias = model.output_layer()
    model.lm_head.register_forward_hook(lambda *_: None)  # what has a hook is asked, not read
    asked, of_zero = model.output_layer()
    assert weight is model.lm_head.weight and asked is not weight
    assert torch.equal(of_zero, bias)
    assert ((asked - weight).abs() <= 0.005 * (weight.abs() + bias.abs()[:, None] / 100)).all()


# -- weights that are elsewhere ---------------------------------------------------------------------------------------


def by_cpu_offload(model: FLMModel, folder) -> FLMModel:
    return cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))


def by_disk_offload(model: FLMModel, folder) -> FLMModel:
    model = copy.deepcopy(model)
    disk_offload(model, folder / "weights", execution_device=torch.device("cpu"))
    return model


def by_a_device_map(model: FLMModel, folder) -> FLMModel:
    model.save_pretrained(folder)
    places = {name: "disk" for name, _ in model.named_children() if name != "layers"}
    places |= {"layers.0": "cpu", "layers.1": "disk", "norm": "cpu"}
    return type(model).from_pretrained(folder, device_map=places, offload_folder=folder / "weights")


@pytest.mark.parametrize("vocab_size", [61, 23])
@pytest.mark.parametrize("way", [by_cpu_offload, by_disk_offload, by_a_device_map])
def test_offloaded_weights_are_brought_wherever_they_are_read(tmp_path, way, vocab_size):
    model = a_map(vocab_size=vocab_size)
    found = way(model, tmp_path)
    assert next(found.parameters()).is_meta and found.lm_head.weight.is_meta
    assert found.device == torch.device("cpu")
    assert_same(found, model)
    assert found.lm_head.weight.is_meta
