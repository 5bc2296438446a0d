"""MatchingTrainer: a map learns from its own texts which tokens go together."""

import copy
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny import tiny_model
from training import arguments, fresh_model, history, same, weights

from benchmarks.baselines.mdlm import MDLMTrainer
from modeling_flm import FLMModel, FMLMModel
from modeling_flm.losses_flm import chunked_distillation_loss
from modeling_flm.noise_flm import step_seeds
from modeling_flm.vocabulary_flm import softcap
from trainers import (
    FLMTrainingArguments,
    FMLMTrainer,
    FMLMTrainingArguments,
    MatchingTrainer,
    MatchingTrainingArguments,
)
from trainers.matching_trainer import LARGEST_COST, log_ratio
from trainers.recipe import load_recipe
from trainers.train import build_distiller

ROOT = Path(__file__).parents[1]
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


@pytest.fixture(scope="module")
def distilled(tmp_path_factory) -> FMLMModel:
    """A map of the phrases, trained for a short time: its tokens hardly go together."""
    model = fresh_model(1, kind=FMLMModel, **SIZES)
    options = dict(per_device_train_batch_size=32, max_steps=600, boundary_prob=2, diagonal_fraction=0.25)
    args = arguments(tmp_path_factory.mktemp("map"), kind=FMLMTrainingArguments, **options)
    FMLMTrainer(model, None, args, train_dataset=ROWS).train()
    return model


def test_masked_diffusion_never_masks_given_tokens(tmp_path, monkeypatch):
    given = [[1, 0, 0, 1]] * len(ROWS)
    model, seen = fresh_model(0, **SIZES), []
    embed = model.embed_state
    monkeypatch.setattr(model, "embed_state", lambda ids: seen.append(ids) or embed(ids))
    args = arguments(tmp_path, per_device_train_batch_size=32, max_steps=4)
    MDLMTrainer(model, args, train_dataset=ROWS.add_column("conditioning_mask", given)).train()
    masked = torch.cat(seen) == SIZES["mask_token_id"]
    assert masked.any(0).tolist() == [False, True, True, False]


def matching(output_dir, teacher, model, **changes) -> MatchingTrainer:
    args = arguments(output_dir, kind=MatchingTrainingArguments, **changes)
    return MatchingTrainer(copy.deepcopy(model), teacher, args, train_dataset=ROWS)


def shares_of_phrases(model: FMLMModel, steps: int, prompt: torch.Tensor | None = None) -> torch.Tensor:
    """How many of 200 texts are the first phrase, and how many the second."""
    ids = model.eval().generate(prompt, num_steps=steps, num_return_sequences=200, seed=5)
    return (ids[:, None] == PHRASES).all(-1).float().mean(0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_text(side, teacher, distilled, tmp_path):
    """The losses are the same whatever stands there."""
    mask = [1, 1, 1, 0] if side == "right" else [0, 1, 1, 1]
    losses = []
    for padding in (0, 8):
        rows = PHRASES.masked_fill(torch.tensor(mask) == 0, padding).repeat(16, 1).tolist()
        data = Dataset.from_dict({"input_ids": rows, "attention_mask": [mask] * 32})
        args = arguments(tmp_path, kind=MatchingTrainingArguments, conditioning_rate=0.5, second_step_fraction=0.5)
        trainer = MatchingTrainer(copy.deepcopy(distilled), copy.deepcopy(teacher), args, train_dataset=data)
        trainer.train()
        losses.append([history(trainer, name) for name in ("loss", "auxiliary_loss")])
    assert losses[0] == losses[1]


def test_the_map_writes_as_it_was_trained_to(teacher, tmp_path):
    model = tiny_model("fmlm", **SIZES)
    own = dict(sampler="bridge", temperature=0.8)
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    writes = matching(tmp_path, teacher, model, gamma=0.5).model.generation_config
    assert (writes.sampler, writes.temperature, writes.renoise, writes.gamma) == ("flow_map", None, None, 0.5)


def test_a_push_leaves_the_auxiliary_network_out(teacher, distilled, tmp_path, monkeypatch):
    trainer = matching(tmp_path, teacher, distilled, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    assert (tmp_path / "checkpoint-2" / "auxiliary.safetensors").exists()
    monkeypatch.setattr(trainer, "push_in_progress", None, raising=False)
    monkeypatch.setattr(trainer, "hub_model_id", "org/map", raising=False)
    monkeypatch.setattr(trainer, "_upload", lambda *args, **kwargs: Future())
    trainer._push_from_checkpoint(str(tmp_path / "checkpoint-2"))
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_choices_have_random_numbers_of_their_own(batch_size, teacher, distilled, tmp_path, monkeypatch):
    """Those of second steps, whose share is right on average, and of masks are not those of any noise."""
    seeds, second = [], []
    module = "trainers.matching_trainer"
    monkeypatch.setattr(f"{module}.noised_jump", lambda state, *rest: second.append(len(state)) or state)

    def recorded(*args):
        seeds.extend(drawn := step_seeds(*args))
        return drawn

    monkeypatch.setattr(f"{module}.step_seeds", recorded)
    trainer = matching(tmp_path, teacher, distilled, max_steps=200, per_device_train_batch_size=batch_size)
    trainer.train()
    assert sum(second) / (200 * 2 * batch_size) == pytest.approx(0.25, abs=0.07)
    assert len(seeds) > 200 * 3 * batch_size and len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_tokens_of_a_text_go_together(gamma, teacher, distilled, tmp_path):
    """Tokens drawn one by one would make a phrase in 1 of 8 texts."""
    options = dict(max_steps=400, per_device_train_batch_size=32, conditioning_rate=0.2, gamma=gamma)
    rates = dict(learning_rate=5e-4, auxiliary_learning_rate=5e-3)
    trainer = matching(tmp_path, teacher, distilled, **options, **rates)
    trainer.train()
    assert trainer.model.generation_config.gamma == gamma
    for steps in (1, 2):
        assert shares_of_phrases(distilled, steps).sum() < 0.4
        shares = shares_of_phrases(trainer.model, steps)
        assert shares.sum() > 0.7 and shares.min() > 0.1
    assert shares_of_phrases(trainer.model, 1, PHRASES[1:, :2])[1] > 0.8
    losses = history(trainer, "loss")
    assert sum(losses[-50:]) < 0.6 * sum(losses[:50])
    assert len(history(trainer, "auxiliary_loss")) == 400


def test_resuming_equals_never_having_stopped(teacher, distilled, tmp_path):
    more = dict(max_steps=4, save_strategy="steps", save_steps=2, conditioning_rate=0.5, second_step_fraction=0.5)
    whole = matching(tmp_path, teacher, distilled, **more)
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


@pytest.mark.parametrize("cap", [2.0, None])
def test_the_map_writes_at_a_temperature(cap, teacher, tmp_path):
    model = tiny_model("fmlm", **SIZES, final_logit_softcapping=cap)
    trainer = matching(tmp_path, teacher, model, writing_temperature=0.5)
    hidden = torch.randn(3, model.config.hidden_size)
    weight, bias, sharper = trainer._writing_layer()
    logits = torch.nn.functional.linear(hidden, weight, bias)
    torch.testing.assert_close(softcap(logits, sharper), trainer.model.logits(hidden) / 0.5)


def test_costs_are_bounded():
    first, second = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.75 - 1e-30, 1e-30]])
    ratio = log_ratio(lambda part: first[part].log(), lambda part: second[part].log())(slice(0, 1))
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
        refused("`teacher_temperature` is -1, but it must be above 0", teacher_temperature=-1),
        refused("`writing_temperature` is 0, but it must be above 0", writing_temperature=0),
        refused("`gradient_accumulation_steps` must be 1", gradient_accumulation_steps=2),
        refused("`learned_loss_weighting` weights losses of times", learned_loss_weighting=True),
        refused("`auxiliary_steps` is 0, but it must be an integer >= 1", auxiliary_steps=0),
        refused("`auxiliary_steps` is 1.5, but it must be an integer >= 1", auxiliary_steps=1.5),
        refused(r"`second_step_fraction` is 1.5, but it must lie in \[0, 1\]", second_step_fraction=1.5),
        refused(r"`gamma` is -1, but it must lie in \[0, 1\]", gamma=-1),
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
        matching(tmp_path, teacher, tiny_model("fmlm", **SIZES))


def test_a_recipe_names_map_and_teacher(tmp_path):
    recipe, folder = ROOT / "recipes" / "tinystories-matched.yaml", ROOT / "hub_cards" / "fmlm-shidoku"
    with pytest.raises(ValueError, match="needs a `teacher`, a masked diffusion model, and `model: {from: ...}`"):
        build_distiller(load_recipe(recipe, ["teacher=null"]))
    masked = FLMModel.from_pretrained(ROOT / "hub_cards" / "flm-shidoku")
    masked.config.masked_diffusion = True
    masked.save_pretrained(tmp_path / "masked")
    (tmp_path / "grids.txt").write_text("1234341221434321\n" * 8)
    overrides = [f"model={{from: {folder}}}", f"teacher={tmp_path / 'masked'}", f"training.output_dir={tmp_path}"]
    overrides += [f"tokenizer={folder}", f"data.train={tmp_path / 'grids.txt'}", "data.packing=rows"]
    trainer = build_distiller(load_recipe(recipe, overrides))
    assert isinstance(trainer, MatchingTrainer) and trainer.args.second_step_fraction == 0.35
    assert same(weights(trainer.auxiliary), weights(masked))
