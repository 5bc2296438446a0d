"""A masked diffusion language model (MDLM, arXiv 2406.07524) on the backbone, data, tokenizer and steps of an FLM.

    python -m benchmarks.baselines.mdlm recipes/english-small.yaml

Log-linear schedule: at time t a token is masked with probability t, and the loss is the cross entropy of the masked
tokens, weighted by 1 / t. The network is not told the time (its time condition is held at 0), as in the paper's
default.
"""

import sys

import torch
from torch import Tensor

from evaluation.masked import sample_masked
from modeling_flm import FLMModel
from modeling_flm.losses_flm import chunked_cross_entropy
from trainers import FLMTrainer
from trainers.recipe import Recipe, load_recipe
from trainers.train import build_trainer, run_training

SMALLEST_TIME = 1e-3


class MDLMTrainer(FLMTrainer):
    """[`FLMTrainer`] with the loss of masked diffusion, in nats per token (an upper bound of the text's). What is
    not scored stays: padding, and tokens that the data gives, such as the clues of a puzzle."""

    def write_card(self, *args, **kwargs) -> None:
        """None: the card of a flow would be false."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids, time = inputs["input_ids"], inputs["timesteps"].clamp(min=SMALLEST_TIME)
        noise = torch.stack(
            [torch.rand(ids.shape[1], generator=torch.Generator().manual_seed(seed)) for seed in inputs["noise_seed"]]
        )
        masked = (noise.to(ids.device) < time[:, None]) & (inputs["labels"] != -100)
        state = self.model.embed_state(ids.masked_fill(masked, self.model.config.mask_token_id))
        mask, at_zero = inputs.get("attention_mask"), torch.zeros_like(time)
        output = model(inputs_embeds=state, timesteps=at_zero, attention_mask=mask, output_logits=False)
        hidden = output.last_hidden_state
        weights = (1 / time)[:, None].expand_as(ids)[masked]
        head, cap = self.model.output_layer(), self.model.config.final_logit_softcapping
        loss = chunked_cross_entropy(hidden[masked], *head, ids[masked].long(), weights, cap)[0] / num_items_in_batch
        return (loss, {}) if return_outputs else loss


def sample(model: FLMModel, num_steps: int, count: int, temperature: float, seed: int) -> Tensor:
    """Ids (count, length) in `num_steps` evaluations of the network."""
    mask, length = model.config.mask_token_id, model.config.max_position_embeddings
    return sample_masked(model, torch.full((count, length), mask), mask, num_steps, temperature, seed)


@torch.no_grad()
def log_likelihood(model: FLMModel, ids: Tensor, num_draws: int, seed: int) -> Tensor:
    """A lower bound of log p in nats of all but the first token, given that: (count,) float64 for ids (count, length).

    It is the integral over time of the loss, in its any-order form: with n of the N tokens masked, n uniform in 1..N,

        log p(ids) >= N E_n[ mean of log p(token | the others) over the masked ],

    here over `num_draws` values of n, evenly spread with a common random shift for each sequence.
    """
    generator = torch.Generator().manual_seed(seed)
    count, scored = len(ids), ids.shape[1] - 1
    total = torch.zeros(count, dtype=torch.float64)
    shift = torch.rand(count, generator=generator)
    for draw in range(num_draws):
        n = 1 + ((draw + shift) / num_draws * scored).long().clamp(max=scored - 1)
        order = torch.rand(count, scored, generator=generator).argsort(dim=1).argsort(dim=1)
        masked = torch.cat([torch.zeros(count, 1, dtype=torch.bool), order < n[:, None]], dim=1)
        state = model.embed_state(ids.masked_fill(masked, model.config.mask_token_id))
        logits = model.logits(model.denoise(state, torch.zeros(count)))
        logits[..., model.config.mask_token_id] = -torch.inf  # as in `sample`
        log_p = logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1).double()
        total += scored * (log_p * masked).sum(1) / n
    return total / num_draws


def build(recipe: Recipe) -> FLMTrainer:
    """The trainer of a masked diffusion model with the data, tokenizer and network of a flow's recipe."""
    recipe.training |= {"eval_strategy": "no", "conditioning_rate": 0.0}  # a masked model is conditional anyway
    recipe.model.pop("masked", None)  # what a flow of this recipe starts from is trained here
    trainer = build_trainer(recipe, MDLMTrainer)
    model = trainer.model
    assert isinstance(model, FLMModel)
    model.config.masked_diffusion = True  # for whoever loads it: the network alone does not show it
    return trainer


def main() -> None:
    recipe = load_recipe(sys.argv[1], sys.argv[2:])
    recipe.training["output_dir"] += "-mdlm"
    run_training(build(recipe), resume=True)


if __name__ == "__main__":
    main()
