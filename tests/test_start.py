"""A flow that starts from the weights of masked diffusion."""

from pathlib import Path

import pytest
import torch
from helpers.tiny import random_ids, tiny_config, tiny_model

from modeling_flm import FLMModel
from trainers.recipe import load_recipe
from trainers.start import start_from_masked
from trainers.train import build_trainer

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
