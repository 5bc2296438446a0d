"""The ingredients of training: what each prototype changes, and that nothing else does; how texts are judged."""

import pytest
import torch
from tiny import SIZES, randomise
from transformers import AutoModel

from benchmarks import ingredients, sudoku_ingredients
from benchmarks.ingredients import Variant, in_tokens_of
from benchmarks.prototypes import (
    Focal,
    FocalConfig,
    MuonAndAdamW,
    SelfConditioned,
    SelfConditionedConfig,
    UnitRows,
    UnitRowsConfig,
)
from benchmarks.stories import LENGTH
from examples.train_tokenizer import train_tokenizer
from modeling_flm import FLMModel
from trainers.recipe import load_recipe


def unit_rows(**changes) -> UnitRows:
    return randomise(UnitRows(UnitRowsConfig(**SIZES | changes))).eval()


def self_conditioned() -> SelfConditioned:
    return randomise(SelfConditioned(SelfConditionedConfig(**SIZES))).eval()


def test_rows_and_noise_of_equal_norm():
    model = unit_rows()
    table = model.vocabulary_table()
    norm = model.embed_tokens.weight.norm(dim=-1).mean()
    torch.testing.assert_close(table.norm(dim=-1), norm.expand(61))
    noise = model.embed_noise(200, 12, seeds=list(range(200))).flatten(0, 1)
    covariance = noise.T @ noise / len(noise) / norm**2
    torch.testing.assert_close(covariance, torch.eye(32), atol=0.12, rtol=0)


def test_with_few_tokens_the_noise_is_that_of_the_space_of_the_rows():
    model = unit_rows(vocab_size=10)
    table, norm = model.vocabulary_table(), model.embed_tokens.norm
    noise = model.embed_noise(200, 12, seeds=list(range(200))).flatten(0, 1)
    within = noise @ torch.linalg.pinv(table) @ table
    torch.testing.assert_close(within, noise, atol=1e-4, rtol=1e-3)
    variances = torch.linalg.eigvalsh(noise.T @ noise / len(noise))[-10:] / norm**2
    torch.testing.assert_close(variances, torch.ones(10), atol=0.2, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(labels=torch.arange(10)[None], noise_seed=[4]).loss.backward()
    assert model.embed_tokens.weight.grad.abs().sum() > 0
    assert model.eval().generate(num_steps=3, refine_steps=2, seed=0).shape == (1, 12)


def test_a_saved_prototype_writes_the_same(tmp_path):
    for model in (unit_rows(), self_conditioned()):
        model.save_pretrained(tmp_path)
        again = AutoModel.from_pretrained(tmp_path)
        assert type(again) is type(model)
        asked = dict(num_steps=4, num_return_sequences=2, seed=3)
        assert torch.equal(again.generate(**asked), model.generate(**asked))


def test_a_self_conditioned_model_is_told_its_last_prediction():
    model = self_conditioned()
    state = model.embed_noise(2, 12, seeds=[1, 2])
    with torch.no_grad():
        first = model.denoise(state, torch.zeros(2))
        shown = state + model.previous(model.embed_prediction(first))
        expected = FLMModel.denoise(model, shown, torch.full((2,), 0.5))
        after = model.denoise(state, torch.full((2,), 0.5))
        torch.testing.assert_close(after, expected)
    told: list[bool] = []
    model.previous.register_forward_pre_hook(lambda layer, inputs: told.append(bool(inputs[0].any())))
    for _ in range(2):  # also in refinement; each text begins without
        model.generate(num_steps=2, refine_steps=2, seed=0)
    assert told == 2 * [False, True, True, True]
    asked = dict(num_steps=2, num_return_sequences=100)  # more than are evaluated at a time
    whole = model.generate(**asked | {"num_return_sequences": 200}, seed=0)
    halves = [model.generate(**asked, seed=seed) for seed in (0, 100)]
    assert torch.equal(whole, torch.cat(halves))
    model.train()
    losses = [model(labels=torch.arange(12)[None], noise_seed=[seed]).loss for seed in (4, 5)]
    assert all(loss.requires_grad for loss in losses)  # told, and not told


GRIDS = {name: variant for name, (_, variant) in sudoku_ingredients.VARIANTS.items()}


@pytest.mark.parametrize(
    ("recipe", "variants"),
    [(ingredients.RECIPE, ingredients.VARIANTS), (sudoku_ingredients.RECIPE, GRIDS)],
    ids=["stories", "sudoku"],
)
def test_a_variant_changes_what_it_says_and_nothing_else(recipe, variants, monkeypatch, tmp_path):
    commands: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", lambda command, **_: commands.append(command))

    def entries(overrides: list[str]) -> dict[str, object]:
        read = load_recipe(recipe, overrides)
        sections = {"model": read.model, "training": read.training}
        return {f"{section}.{name}": value for section in sections for name, value in sections[section].items()}

    def told(variant: Variant) -> dict[str, object]:
        variant.train(recipe, tmp_path / "model", [])
        return entries([word for word in commands.pop() if "=" in word])

    for name, variant in variants.items():
        wanted, says = entries(variant.overrides), [override.split("=")[0] for override in variant.overrides]
        plain = told(Variant(variant.kind, prototype=variant.prototype))
        assert told(variant) == plain | {entry: wanted[entry] for entry in says}, name


def test_focal_weights_leave_what_is_known():
    model = randomise(Focal(FocalConfig(**SIZES, hidden_dropout=0.0)))
    ids = torch.arange(24).view(2, 12)
    labels = ids.clone()
    labels[:, :4] = -100
    asked = dict(input_ids=ids, labels=labels, timesteps=torch.full((2,), 0.5), noise_seed=[1, 2])
    loss = model.train()(**asked).loss
    (gradient,) = torch.autograd.grad(loss, model.lm_head.bias)
    plain = model.eval()(**asked)
    torch.testing.assert_close(plain.loss, plain.token_losses[:, 4:].mean())  # no weights in evaluation
    weights = (1 - torch.exp(-plain.token_losses[:, 4:])).square()
    torch.testing.assert_close(loss, (weights * plain.token_losses[:, 4:]).mean())
    state, times = model._corrupt(ids, asked["timesteps"], labels == -100, None, [1, 2], None)
    log_p = model(inputs_embeds=state, timesteps=times).logits.log_softmax(-1)
    right = log_p.gather(-1, ids[..., None]).squeeze(-1)[:, 4:]
    (expected,) = torch.autograd.grad(-(weights * right).mean(), model.lm_head.bias)
    torch.testing.assert_close(gradient, expected)


def test_muon_for_matrices_goes_on_from_its_state():
    torch.manual_seed(0)
    target = torch.randn(8, 4)

    def run(steps, state=None):
        torch.manual_seed(1)
        matrix, vector = torch.nn.Parameter(torch.randn(8, 4)), torch.nn.Parameter(torch.zeros(4))
        optimizer = MuonAndAdamW([matrix], [vector], 0.05, (0.9, 0.95))
        if state is not None:
            matrix.data, vector.data = state[0].clone(), state[1].clone()
            optimizer.load_state_dict(state[2])
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (matrix + vector - target).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item(), (matrix.data.clone(), vector.data.clone(), optimizer.state_dict())

    first, _ = run(1)
    whole, _ = run(200)
    _, half = run(100)
    assert whole < 0.2 * first
    assert run(100, half)[0] == whole


def test_texts_of_longer_tokens_are_judged_in_shorter_ones():
    text = " the little bird flew to the tree and sang" * 20
    short, long = train_tokenizer([], 260), train_tokenizer([text], 300)
    ids = long(text, return_tensors="pt").input_ids[:, :LENGTH]
    ids[0, 3] = long.eos_token_id
    (judged,) = in_tokens_of(short, ids, long)
    assert len(judged) == LENGTH
    assert long.decode(ids[0]).startswith(short.decode(judged))
