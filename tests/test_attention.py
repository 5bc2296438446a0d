"""The fast soft-capped attention against the reference: values, gradients, padding, memory."""

import pytest
import torch

from modeling_flm import attention_flm
from modeling_flm.attention_flm import eager_attention_forward, softcap_attention_forward


@pytest.fixture(params=[(1 << 18, 128), (1, 7), (500, 20)], ids=["usual slabs", "one head, 7 rows", "some heads"])
def slabs(request, monkeypatch):
    monkeypatch.setattr(attention_flm, "_CPU_SLAB", request.param[0])
    monkeypatch.setattr(attention_flm, "_CPU_ROWS", request.param[1])


def inputs(dtype=torch.float32, scale: float = 3.0):
    generator = torch.Generator().manual_seed(0)
    qkv = scale * torch.randn(2, 25, 3, 3, 8, generator=generator)
    return [x.to(dtype).requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4)]  # not contiguous


def padding(rows: int = 1) -> torch.Tensor:
    mask = torch.zeros(2, 1, rows, 25)
    mask[1, ..., 17:] = torch.finfo(torch.float32).min
    return mask


def causal() -> torch.Tensor:
    return torch.ones(1, 1, 25, 25, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    "mask",
    [None, padding(), padding(rows=25), padding() == 0, causal()],
    ids=["whole", "padded", "padded, a row per query", "bool", "causal"],
)
@pytest.mark.parametrize("cap", [50.0, 2.0])
def test_values_and_gradients(cap, mask, slabs):
    weights = torch.randn(2, 25, 3, 8, generator=torch.Generator().manual_seed(1))
    results = []
    for attend in (eager_attention_forward, softcap_attention_forward):
        qkv = inputs()
        out, _ = attend(None, *qkv, mask, scaling=0.7, softcap=cap)
        results.append((out, *torch.autograd.grad((out * weights).sum(), qkv)))
    for reference, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, reference, rtol=1e-4, atol=1e-4)


def test_gradients_by_finite_differences():
    mask = torch.zeros(1, 1, 1, 4)
    mask[..., 3] = torch.finfo(torch.float32).min
    qkv = [x.detach()[:1, :2, :4].double().requires_grad_() for x in inputs(scale=1.0)]
    assert torch.autograd.gradcheck(lambda *x: softcap_attention_forward(None, *x, mask, 0.7, 3.0)[0], qkv)


def test_bfloat16_is_near_float32():
    exact, _ = eager_attention_forward(None, *inputs(), None, scaling=0.35, softcap=50.0)
    out, _ = softcap_attention_forward(None, *inputs(torch.bfloat16), None, scaling=0.35, softcap=50.0)
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).square().mean().sqrt() < 0.02 * exact.square().mean().sqrt() + 0.02


def test_a_sequence_of_padding_alone_is_finite():
    mask = torch.full((2, 1, 1, 25), torch.finfo(torch.float32).min)
    qkv = inputs()
    out, _ = softcap_attention_forward(None, *qkv, mask, scaling=0.7, softcap=50.0)
    out.sum().backward()
    assert torch.isfinite(out).all() and all(torch.isfinite(x.grad).all() for x in qkv)


def test_scores_are_not_kept():
    length = 256
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        qkv = [torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3)]
        softcap_attention_forward(None, *qkv, None, scaling=0.3, softcap=50.0)
    assert 0 < max(kept) < length * length


def test_masks_mean_what_they_say():
    qkv = [x.detach() for x in inputs()]
    cut = [x[:, :, :17] for x in qkv]
    for attend in (eager_attention_forward, softcap_attention_forward):
        out, _ = attend(None, *qkv, padding() == 0, scaling=0.7, softcap=50.0)
        alone, _ = eager_attention_forward(None, qkv[0], *cut[1:], None, scaling=0.7, softcap=50.0)
        torch.testing.assert_close(out[1], alone[1], rtol=1e-4, atol=1e-4)
