"""MatchingTrainer: a map learns from its own texts which tokens go together."""

import pytest
import torch
from datasets import Dataset
from tiny import tiny_model
from training import arguments, fresh_model, history, same, weights

from benchmarks.baselines.mdlm import MDLMTrainer
from modeling_flm import FLMModel, FMLMModel
from modeling_flm.losses_flm import chunked_distillation_loss
from trainers import FLMTrainingArguments, MatchingTrainer, MatchingTrainingArguments
from trainers.matching_trainer import LARGEST_COST, log_ratio
from trainers.recipe import load_recipe
from trainers.train import build_distiller

PHRASES = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
SIZES = dict(vocab_size=10, max_position_embeddings=4, mask_token_id=9)
ROWS = Dataset.from_dict({"input_ids": PHRASES.repeat(64, 1).tolist()})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> FLMModel:
    """Masked diffusion of two phrases."""
    model = fresh_model(0, **SIZES)
    args = arguments(tmp_path_factory.mktemp("masked"), per_device_train_batch_size=32, max_steps=300)
    MDLMTrainer(model, args, train_dataset=ROWS).train()
    model.config.masked_diffusion = True
    return model


def matching(output_dir, teacher, model=None, **changes) -> MatchingTrainer:
    args = arguments(output_dir, kind=MatchingTrainingArguments, **changes)
    return MatchingTrainer(model or fresh_model(1, kind=FMLMModel, **SIZES), teacher, args, train_dataset=ROWS)


def shares_of_phrases(ids: torch.Tensor) -> torch.Tensor:
    return (ids[:, None] == PHRASES).all(-1).float().mean(0)


def test_one_step_and_several_write_the_phrases_whole(teacher, tmp_path):
    """Tokens drawn one by one would make a phrase in 1 of 8 texts."""
    trainer = matching(tmp_path, teacher, max_steps=500, per_device_train_batch_size=32, learning_rate=1e-3)
    trainer.train()
    assert trainer.model.generation_config.gamma == 1
    for steps in (1, 2):
        written = trainer.model.eval().generate(num_steps=steps, num_return_sequences=200, seed=5)
        shares = shares_of_phrases(written)
        assert shares.sum() > 0.9 and shares.min() > 0.2
    losses = history(trainer, "loss")
    assert sum(losses[-50:]) / 50 < 0.3 * sum(losses[:50]) / 50
    assert history(trainer, "auxiliary_loss")[-1] < 1


def test_given_tokens_are_kept_and_decide_the_others(teacher, tmp_path):
    trainer = matching(
        tmp_path, teacher, max_steps=300, per_device_train_batch_size=32, learning_rate=1e-3, conditioning_rate=1.0
    )
    trainer.train()
    given = PHRASES[1:, :2]
    written = trainer.model.eval().generate(given, num_steps=1, num_return_sequences=50, seed=5)
    assert shares_of_phrases(written)[1] > 0.9


def test_resuming_equals_never_having_stopped(teacher, tmp_path):
    more = dict(max_steps=4, save_strategy="steps", save_steps=2, conditioning_rate=0.5, renoised_fraction=0.5)
    whole = matching(tmp_path, teacher, **more)
    table = whole.model.embed_tokens.weight.clone()
    whole.train()
    assert torch.equal(whole.model.embed_tokens.weight, table)
    resumed = matching(tmp_path, teacher, fresh_model(2, kind=FMLMModel, **SIZES), **more)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name in ("loss", "auxiliary_loss"):
        assert history(resumed, name) == history(whole, name)
    assert same(weights(resumed.model), weights(whole.model))
    assert same(weights(resumed.auxiliary), weights(whole.auxiliary))


def test_the_loss_is_the_expected_cost_and_so_is_its_gradient():
    torch.manual_seed(0)
    hidden, weight, bias, cost = torch.randn(5, 4), torch.randn(7, 4), torch.randn(7), torch.randn(5, 7)
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    token_weights = torch.rand(5)
    loss, _ = chunked_distillation_loss(*leaves, lambda part: cost[part], token_weights, 2.0, "expectation")
    others = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    logits = 2 * torch.tanh((others[0] @ others[1].T + others[2]) / 2)
    expected = (token_weights * (logits.softmax(-1) * cost).sum(-1)).sum()
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, others), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_costs_are_bounded():
    first, second = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.75 - 1e-30, 1e-30]])
    ratio = log_ratio(lambda part: first[part], lambda part: second[part])(slice(0, 1))
    expected = torch.tensor([[2.0, 2 / 3]]).log()
    torch.testing.assert_close(ratio[:, :2], expected)
    assert ratio[0, 2] == -LARGEST_COST


def refused(message: str, **changes):
    return pytest.param(message, changes, id=message[:40])


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        refused("`args` must be MatchingTrainingArguments, but are FLMTrainingArguments", kind=FLMTrainingArguments),
        refused(r"`model` must be a two-time model \(FMLM\)", model=tiny_model()),
        refused("`teacher` must be a masked diffusion model, with `masked_diffusion`", teacher=tiny_model()),
        refused("`teacher` must be a masked diffusion model, with `masked_diffusion`", teacher=None),
        refused("the teacher has a vocabulary of 10 tokens and the map of 61", model=tiny_model("fmlm")),
        refused("`auxiliary_learning_rate` is 0, but it must be above 0", auxiliary_learning_rate=0),
        refused("`auxiliary_steps` is 0, but it must be at least 1", auxiliary_steps=0),
        refused(r"`renoised_fraction` is 1.5, but it must lie in \[0, 1\]", renoised_fraction=1.5),
    ],
)
def test_what_does_not_go_is_refused(message, changes, teacher, tmp_path):
    parts = {"kind": MatchingTrainingArguments, "model": tiny_model("fmlm", **SIZES), "teacher": teacher} | changes
    kind, model, given = parts.pop("kind"), parts.pop("model"), parts.pop("teacher")
    with pytest.raises(ValueError, match=message):
        MatchingTrainer(model, given, arguments(tmp_path, kind=kind, **parts), train_dataset=ROWS)


def test_several_processes_are_refused(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(MatchingTrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="runs in one process"):
        matching(tmp_path, teacher)


RECIPE = """
data: {{train: {rows}, packing: rows}}
tokenizer: {tokenizer}
training: {{output_dir: {output}, objective: distribution_matching, use_cpu: true, save_strategy: "no"}}
"""


def test_a_recipe_names_map_and_teacher(tmp_path):
    folder = "hub_cards/fmlm-shidoku"
    (tmp_path / "rows.txt").write_text("1 2 3 4\n")
    text = RECIPE.format(rows=tmp_path / "rows.txt", tokenizer=folder, output=tmp_path)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match="needs a `teacher`, a masked diffusion model, and `model: {from: ...}`"):
        build_distiller(load_recipe(tmp_path / "recipe.yaml"))
