"""Embedded noise is the dense noise: the same law, the same expected gradients, with less variance.

Statistics are seeded; bounds are in standard errors of the estimates.
"""

import pytest
import torch

from modeling_flm import FLMConfig, FLMModel
from modeling_flm.flow_flm import interpolate
from modeling_flm.noise_flm import NoiseLaw, embedded_noise, white_noise

DRAWS = 200_000


def table(vocab_size: int, width: int, seed: int = 0) -> torch.Tensor:
    """A table with a common direction and unequal columns, as trained ones have."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(vocab_size, width, generator=generator) * torch.linspace(0.1, 2, width)
    return rows + torch.randn(width, generator=generator)


def white(width: int, seed: int = 1, draws: int = DRAWS) -> torch.Tensor:
    return torch.randn(draws, width, generator=torch.Generator().manual_seed(seed))


def assert_covariance(a: torch.Tensor, b: torch.Tensor, expected: torch.Tensor, var_a, var_b) -> None:
    """The sample covariance of draws a (n, p) and b (n, q) of mean zero is `expected`, to 5 standard errors."""
    error = torch.sqrt((var_a[:, None] * var_b[None, :] + expected**2) / len(a))
    assert ((a.T @ b / len(a) - expected).abs() <= 5 * error + 1e-6).all()


def degenerate(kind: str) -> torch.Tensor:
    e = table(50, 8)
    if kind == "repeated columns":
        e[:, 3] = e[:, 5]
    elif kind == "zero column":
        e[:, 2] = 0
    elif kind == "rank one":
        e = e[:, :1] * torch.arange(1.0, 9)
    return e


@pytest.mark.parametrize("kind", ["regular", "repeated columns", "zero column", "rank one"])
def test_mean_and_covariance(kind):
    e = degenerate(kind)
    (noise,) = embedded_noise(white(8), e)
    gram, variance = e.T @ e, (e**2).sum(0)
    assert (noise.mean(0).abs() <= 5 * (variance / DRAWS).sqrt() + 5e-3 * variance.mean().sqrt()).all()
    ridge = 1e-5 * variance.mean()
    assert_covariance(noise, noise, gram, variance + ridge, variance + ridge)


def test_joint_noise_has_the_cross_covariance_of_shared_noise():
    a, b = table(50, 8, 0), table(50, 5, 7)
    noise_a, noise_b = embedded_noise(white(13), a, b)
    variances = [(e**2).sum(0) for e in (a, b)]
    assert_covariance(noise_a, noise_a, a.T @ a, variances[0], variances[0])
    assert_covariance(noise_b, noise_b, b.T @ b, variances[1], variances[1])
    assert_covariance(noise_a, noise_b, a.T @ b, *variances)


def test_equal_tables_get_equal_noise():
    a = table(50, 8)
    noise_a, noise_b = embedded_noise(white(16, draws=1000), a, a.clone())
    torch.testing.assert_close(noise_a, noise_b, rtol=0, atol=1e-3 * noise_a.std().item())


@pytest.mark.parametrize(("count", "width", "common"), [(2, 384, 0), (2, 384, 5), (3, 128, 2), (2, 512, 0.5)])
def test_the_law_is_exact_for_wide_tables_that_are_equal(count, width, common):
    a = torch.randn(3000, width, generator=torch.Generator().manual_seed(0)) + common
    matrix = torch.cat(embedded_noise(torch.eye(count * width), *[a.clone() for _ in range(count)]), dim=1).double()
    gram = (a.double().T @ a.double()).repeat(count, count)
    torch.testing.assert_close(matrix.T @ matrix, gram, rtol=0, atol=1e-5 * gram.max().item())


@pytest.mark.parametrize("rank", [1, 8])
def test_the_law_is_that_of_a_wide_table_of_low_rank(rank):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3000, rank, generator=generator) @ torch.randn(rank, 192, generator=generator)
    a = a * torch.logspace(0, -2, 192)
    matrix = embedded_noise(torch.eye(192), a)[0].double()
    gram = a.double().T @ a.double()
    torch.testing.assert_close(matrix.T @ matrix, gram, rtol=0, atol=2e-4 * gram.diagonal().mean().item())


@pytest.mark.parametrize("widths", [(8,), (8, 5)])
def test_a_law_that_is_kept_changes_neither_noise_nor_gradient(widths, monkeypatch):
    factorise, count = torch.linalg.cholesky_ex, []
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda x: count.append(1) or factorise(x))
    tables = [table(50, width, seed).requires_grad_() for seed, width in enumerate(widths)]
    law, some = NoiseLaw(), white(sum(widths), draws=20)
    drawn = []
    for given in (None, law, law):
        noise = torch.cat(embedded_noise(some, *tables, law=given), dim=1)
        drawn.append((noise, *torch.autograd.grad(noise.sin().sum(), tables)))
    for again in drawn[1:]:
        assert all(map(torch.equal, again, drawn[0]))
    assert len(count) == 2 * (2 if len(widths) == 1 else 1)  # without the law, and at its first use


def test_seeds_give_rows_of_their_own():
    noise, uniform = white_noise([5, 6, 7], 4, 3, torch.device("cpu"))
    alone, number = white_noise([6], 4, 3, torch.device("cpu"))
    assert torch.equal(noise[1], alone[0]) and uniform[1] == number[0]
    assert ((uniform >= 0) & (uniform < 1)).all()


def gradients(draw_embedding, model: FLMModel, draws: int = 150):
    """Mean and variance of every parameter's gradient over draws of noise at a fixed time and data, float64."""
    parameters = dict(model.named_parameters())
    ids = torch.tensor([[3, 17, 30]]).expand(64, -1)
    tau = torch.full((64,), 0.4)
    record = []
    for _ in range(draws):
        state = interpolate(draw_embedding(), model.embed_tokens(ids), model.clock.t(tau))
        model.zero_grad()
        model(inputs_embeds=state, timesteps=tau, labels=ids).loss.backward()
        record.append({name: p.grad.double() for name, p in parameters.items()})
    stacked = {name: torch.stack([grads[name] for grads in record]) for name in parameters}
    return {name: grad.mean(0) for name, grad in stacked.items()}, {
        name: grad.var(0) / draws for name, grad in stacked.items()
    }


def largest_z(one, other, name: str) -> float:
    """The largest difference of two mean gradients, in standard errors."""
    return (
        ((one[0][name] - other[0][name]).abs() / (one[1][name] + other[1][name]).sqrt().clamp(min=1e-9)).max().item()
    )


def test_expected_gradients_equal_the_dense_ones_with_less_variance():
    torch.manual_seed(0)
    config = FLMConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=3,
        conditioning_size=4,
        time_embedding_size=4,
        hidden_dropout=0.0,
        initializer_range=0.5,
    )
    model = FLMModel(config)
    for parameter in model.parameters():  # the layers that start at zero too
        parameter.data += 0.3 * torch.randn_like(parameter)

    embedded = gradients(lambda: model.embed_white_noise(torch.randn(64, 3, 8)), model)
    dense = gradients(lambda: model.embed_white_noise(torch.randn(64, 3, 40)), model)
    for name in embedded[0]:
        assert largest_z(embedded, dense, name) < 5.5, name
    table = "embed_tokens.weight"
    assert embedded[1][table].sum() < 0.5 * dense[1][table].sum()
    without = gradients(lambda: model.embed_white_noise(torch.randn(64, 3, 8)).detach(), model)
    assert largest_z(without, dense, table) > 10  # the bound would show a gradient that is left out


@pytest.mark.parametrize("vocab_size, seeds, dense", [(50, [1, 2], False), (6, [1, 2], True), (50, None, True)])
def test_the_cheaper_way_is_taken(vocab_size, seeds, dense, monkeypatch):
    config = FLMConfig(vocab_size=vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    model, taken = FLMModel(config), []
    embed = model.embed_white_noise

    def noting(white: torch.Tensor) -> torch.Tensor:
        taken.append(white.shape[-1])
        return embed(white)

    monkeypatch.setattr(model, "embed_white_noise", noting)
    assert model.embed_noise(2, 4, seeds=seeds).shape == (2, 4, 8)
    assert taken == [vocab_size if dense else 8]


def by_data(weight: torch.Tensor) -> None:
    weight.data[7] += 1e-3  # which no version counter sees


def in_place(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.mul_(1.01)


@pytest.mark.parametrize("change", [by_data, in_place])
def test_what_is_kept_of_a_table_follows_its_changes(change):
    model = FLMModel(FLMConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))

    def drawn() -> torch.Tensor:
        with torch.no_grad():
            return model.embed_noise(4, 20, seeds=range(4))

    first = drawn()
    assert model._kept_law is not None and torch.equal(drawn(), first)
    change(model.embed_tokens.weight)
    changed = drawn()
    white, _ = white_noise(range(4), 20, 32, model.device, model.config.max_position_embeddings)
    torch.testing.assert_close(changed, embedded_noise(white, model.embed_tokens.weight.detach())[0])
    assert not torch.equal(changed, first)
