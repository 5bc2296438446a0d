"""Models that start from the weights of others: of masked diffusion, and of fewer blocks."""

from pathlib import Path

import pytest
import torch
from tiny import random_ids, tiny_config, tiny_model

from modeling_flm import FLMModel, FMLMModel
from trainers.recipe import load_recipe
from trainers.start import deepened, start_from_masked
from trainers.train import build_distiller, build_trainer

ROOT = Path(__file__).parents[1]


def masked_model(**changes) -> FLMModel:
    model = tiny_model(weights_seed=1, mask_token_id=3, **changes)
    model.config.masked_diffusion = True
    return model


def test_the_flow_is_the_masked_model_at_every_time_and_can_learn_to_tell_times_apart():
    masked, flow = masked_model(), FLMModel(tiny_config(loss_weighting=True)).eval()
    start_from_masked(flow, masked)
    ids = random_ids(3, 12)
    expected = masked(input_ids=ids, timesteps=torch.zeros(3)).logits
    torch.testing.assert_close(flow(input_ids=ids, timesteps=torch.tensor([0.0, 0.4, 1.0])).logits, expected)
    flow(labels=ids, timesteps=torch.tensor([0.1, 0.4, 0.9])).loss.backward()
    assert flow.time_embedding.linear_2.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("masked", "message"),
    [
        (tiny_model(), "`model.masked` is no masked diffusion model: its configuration lacks `masked_diffusion`."),
        (masked_model(hidden_size=36, num_hidden_layers=1), "differ in hidden_size, num_hidden_layers."),
        (masked_model(rope_theta=100.0, final_logit_softcapping=None), "differ in rope_theta, final_logit_softcap"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(masked, message):
    with pytest.raises(ValueError, match=message):
        start_from_masked(tiny_model(), masked)


def test_a_recipe_names_the_masked_model(tmp_path):
    folder = ROOT / "hub_cards" / "flm-shidoku"
    masked = FLMModel.from_pretrained(folder)
    masked.config.masked_diffusion = True
    masked.save_pretrained(tmp_path / "masked")
    overrides = [f"model.masked={tmp_path / 'masked'}", f"training.output_dir={tmp_path / 'run'}"]
    flow = build_trainer(load_recipe(ROOT / "recipes" / "shidoku.yaml", overrides)).model
    assert torch.equal(flow.lm_head.weight, masked.lm_head.weight)


def test_a_deeper_model_computes_the_same_and_learns_with_all_its_blocks():
    model = tiny_model("fmlm")
    deeper = deepened(model, 3 * model.config.num_hidden_layers)
    assert deeper.config.num_hidden_layers == 3 * model.config.num_hidden_layers and not deeper.training
    ids, times = random_ids(3, 12), {"timesteps": torch.rand(3), "target_timesteps": torch.ones(3)}
    outputs = [some(input_ids=ids, **times) for some in (model, deeper)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits)
    outputs[1].logits.square().sum().backward()
    for block in deeper.layers:
        assert block.modulation.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("loops", [1, 2])
def test_a_model_of_more_loops_computes_the_same_and_learns_with_all_of_them(loops):
    model = tiny_model("fmlm", num_loops=loops)
    deeper = deepened(model, num_loops=3)
    assert deeper.config.num_loops == 3 and len(deeper.layers) == len(model.layers)
    ids, times = random_ids(3, 12), {"timesteps": torch.rand(3), "target_timesteps": torch.ones(3)}
    outputs = [some(input_ids=ids, **times) for some in (model, deeper)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits)
    outputs[1].logits.square().sum().backward()
    for gate in deeper.loop_gates:
        assert gate.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("depth", [1, 3, "four"])
def test_a_depth_that_is_no_multiple_is_refused(depth):
    with pytest.raises(
        ValueError, match=f"`num_hidden_layers` is {depth!r}, but it must be a multiple of the 2 there are"
    ):
        deepened(tiny_model(), depth)


@pytest.mark.parametrize("loops", [1, True, 2.5])
def test_fewer_loops_are_refused(loops):
    with pytest.raises(ValueError, match=f"`num_loops` is {loops!r}, but it must be an integer >= 2"):
        deepened(tiny_model(num_loops=2), num_loops=loops)


def test_a_recipe_starts_from_fewer_blocks_and_loops(tmp_path):
    shipped = ROOT / "hub_cards" / "fmlm-shidoku"
    overrides = [
        f"model={{from: {shipped}, num_hidden_layers: 24, num_loops: 4}}",
        f"teacher={ROOT / 'hub_cards' / 'flm-shidoku'}",
    ]
    overrides += [f"training.output_dir={tmp_path / 'run'}"]
    flow_map = build_distiller(load_recipe(ROOT / "recipes" / "shidoku-fmlm.yaml", overrides)).model
    asked = dict(num_steps=1, num_return_sequences=8, seed=1)
    assert torch.equal(flow_map.generate(**asked), FMLMModel.from_pretrained(shipped).generate(**asked))
    assert len(flow_map.layers) == 24 and flow_map.config.num_loops == 4
