"""What is computed over the vocabulary in blocks and chunks equals what is computed at once."""

import pytest
import torch

from modeling_flm import FLMConfig, FLMModel, FMLMConfig, FMLMModel, losses_flm, vocabulary_flm
from modeling_flm.losses_flm import chunked_cross_entropy, log_posterior, posterior
from modeling_flm.samplers_flm import SAMPLERS
from modeling_flm.vocabulary_flm import expected_embedding, most_likely_of_mixture, most_likely_token, softcap

CAPS = [None, 30.0, 2.0]


def layer(tokens: int = 37, width: int = 16, vocab_size: int = 101, scale: float = 2.0):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    labels = torch.randint(0, vocab_size, (tokens,), generator=generator)
    return scale * normal(tokens, width), normal(vocab_size, width), normal(vocab_size), labels, normal(vocab_size, 5)


@pytest.fixture(params=[1, 256, 1 << 22], ids=["smallest", "some", "one"])
def blocks(request, monkeypatch):
    """Blocks of one token or 64 entries of the vocabulary, of a few, and all at once."""
    monkeypatch.setattr(losses_flm, "_CPU_CHUNK", request.param)
    monkeypatch.setattr(losses_flm, "_CPU_ROWS", 2)
    monkeypatch.setattr(vocabulary_flm, "_CPU_BLOCK", request.param)
    monkeypatch.setattr(vocabulary_flm, "_COLUMNS", 64)


@pytest.mark.parametrize("cap", CAPS)
def test_cross_entropy_and_its_gradients(cap, blocks):
    hidden, weight, bias, labels, _ = layer()
    token_weights = torch.rand(len(labels), generator=torch.Generator().manual_seed(1))
    token_weights[::5] = 0
    ours = [x.clone().requires_grad_() for x in (hidden, weight, bias, token_weights)]
    total, losses = chunked_cross_entropy(*ours[:3], labels, ours[3], cap)
    (3 * total).backward()

    theirs = [x.double().requires_grad_() for x in (hidden, weight, bias, token_weights)]
    logits = softcap(theirs[0] @ theirs[1].T + theirs[2], cap)
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    (3 * (expected * theirs[3]).sum()).backward()

    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total.double(), (expected * theirs[3]).sum(), rtol=1e-5, atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-4)
    assert (ours[0].grad[::5] == 0).all()


@pytest.mark.parametrize("cap", CAPS)
def test_predictions_of_a_slice_of_tokens(cap):
    hidden, weight, bias, _, _ = layer()
    logits = softcap(hidden @ weight.T + bias, cap)
    torch.testing.assert_close(posterior(hidden, weight, bias, cap)(slice(3, 9)), logits[3:9].softmax(-1))
    cold = log_posterior(hidden, weight, bias, cap, temperature=0.5)(slice(3, 9))
    torch.testing.assert_close(cold, (logits[3:9] / 0.5).log_softmax(-1))


def test_cross_entropy_of_huge_logits_is_finite():
    hidden, weight, bias, labels, _ = layer(scale=1e4)
    weights = torch.ones(len(labels))
    for cap in CAPS:
        total, losses = chunked_cross_entropy(hidden, weight, bias, labels, weights, cap)
        assert torch.isfinite(losses).all() and torch.isfinite(total)


def test_cross_entropy_twice_backward_and_partial_gradients():
    hidden, weight, bias, labels, _ = layer()
    weight.requires_grad_()
    total, losses = chunked_cross_entropy(hidden, weight, bias, labels, torch.ones(len(labels)), 30.0)
    total.backward(retain_graph=True)
    once = weight.grad.clone()
    total.backward()
    torch.testing.assert_close(weight.grad, 2 * once)
    assert hidden.grad is None and not losses.requires_grad


@pytest.mark.parametrize("autocast", [True, False])
def test_cross_entropy_in_bfloat16(autocast):
    hidden, weight, bias, labels, _ = layer()
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, labels, reduction="none")
    inputs = [x.requires_grad_() if autocast else x.bfloat16().requires_grad_() for x in (hidden, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total, losses = chunked_cross_entropy(*inputs, labels, torch.ones(len(labels)))
    total.backward()
    assert losses.dtype == total.dtype == torch.float32
    torch.testing.assert_close(total, losses.sum())
    torch.testing.assert_close(losses, expected, rtol=0.05, atol=0.5)
    assert all(x.grad.dtype == x.dtype for x in inputs)


@pytest.mark.parametrize("cap", CAPS)
def test_embedding_of_a_prediction(cap, blocks):
    hidden, weight, bias, _, values = layer()
    expected = softcap(hidden.double() @ weight.double().T + bias.double(), cap).softmax(-1) @ values.double()
    torch.testing.assert_close(
        expected_embedding(hidden, weight, bias, values, cap).double(), expected, rtol=1e-4, atol=1e-5
    )


def test_a_second_derivative_of_a_loss_is_refused(blocks):
    hidden, weight, bias, labels, _ = layer()
    loss, _ = chunked_cross_entropy(hidden.requires_grad_(), weight, bias, labels, torch.ones(len(labels)))
    (gradient,) = torch.autograd.grad(loss.square(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_embedding_of_a_prediction_with_huge_logits():
    hidden, weight, bias, _, values = layer(scale=1e4)
    out = expected_embedding(hidden, weight, bias, values)
    torch.testing.assert_close(out, values[(hidden @ weight.T + bias).argmax(-1)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cap", CAPS)
def test_gradient_of_the_embedding_of_a_prediction(cap, blocks):
    hidden, weight, bias, _, values = layer()
    exact = hidden.double().requires_grad_()
    direction = torch.randn(values.shape[1], generator=torch.Generator().manual_seed(0))
    logits = softcap(exact @ weight.double().T + bias.double(), cap)
    (logits.softmax(-1) @ values.double() @ direction.double()).square().sum().backward()
    hidden = hidden.clone().requires_grad_()
    (expected_embedding(hidden, weight, bias, values, cap) @ direction).square().sum().backward()
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("share", [0.5, 3.0, 50.0])
def test_most_likely_token_of_a_mixture(share, cap, blocks):
    hidden, weight, bias, _, _ = layer()
    other, strong = hidden.flip(0), softcap(hidden @ weight.T + bias, cap).softmax(-1)
    weak = softcap(other @ weight.T + bias, cap).softmax(-1)
    token = most_likely_of_mixture([(share, hidden, weight, bias, cap), (1 - share, other, weight, bias, cap)])
    entries = share * strong + (1 - share) * weak
    taken = entries.gather(1, token[:, None]).squeeze(1)
    torch.testing.assert_close(taken, entries.amax(1), rtol=1e-4, atol=1e-5)


def test_most_likely_token(blocks):
    hidden, weight, bias, _, _ = layer()
    assert torch.equal(most_likely_token(hidden, weight, bias), (hidden @ weight.T + bias).argmax(-1))


def test_most_likely_token_of_equal_logits_is_the_first(blocks):
    hidden, weight, bias, _, _ = layer()
    assert (most_likely_token(hidden, torch.zeros_like(weight), torch.ones_like(bias)) == 0).all()


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().size() // tensor.element_size())
        return out


def test_nothing_of_size_length_times_vocabulary_is_made():
    vocab_size, length = 50_257, 1024
    sizes = dict(
        vocab_size=vocab_size,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=length,
        hidden_dropout=0.0,
    )
    model, flow = FMLMModel(FMLMConfig(**sizes)), FLMModel(FLMConfig(**sizes))
    ids = torch.randint(0, vocab_size, (1, length))
    with Largest() as dense:  # the watch itself works
        model(input_ids=ids, timesteps=0.5).logits.sum()
    assert dense.elements >= length * vocab_size
    with Largest() as training:
        flow(labels=ids, noise_seed=[0]).loss.backward()
    assert 0 < training.elements < length * vocab_size / 2
    more = {"bridge": {"temperature": 0.8, "top_p": 0.9}, "flow_map": {"gamma": 0.5}}
    for sampler in SAMPLERS:
        with Largest() as sampling:
            model.eval().generate(
                num_steps=2, sampler=sampler, seed=0, output_trajectory=True, **more.get(sampler, {})
            )
        assert 0 < sampling.elements < length * vocab_size / 2, sampler
    for control in (
        {"guidance_scale": 2, "guidance_model": FMLMModel(model.config)},
        {"reward_fn": lambda ahead: ahead.embedding.sum((1, 2))},
        {"refine_steps": 1, "suppress_tokens": [3]},
    ):
        with Largest() as sampling:
            model.generate(num_steps=2, seed=0, **control)
        assert 0 < sampling.elements < length * vocab_size / 2, control
