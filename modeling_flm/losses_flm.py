"""Vocabulary losses in chunks of tokens: no tensor of size tokens x V is ever alive.

The gradient is formed in the forward pass, chunk by chunk, while the chunk's probabilities are at hand; what is kept
for the backward pass has the size of the inputs.
"""

import torch
from torch import Tensor

_CHUNK = 1 << 24  # logits held at a time


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    token_weights: Tensor,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the cross entropies `-log softmax(c tanh((h W^T + b) / c))[label]`.

    Args:
        hidden (`Tensor`): (tokens, d) floating point.
        weight, bias (`Tensor`): (V, d) and (V,), the output layer.
        labels (`Tensor`): (tokens,) int64 in [0, V).
        token_weights (`Tensor`): (tokens,) float32; a token of weight zero costs nothing and receives no gradient. The
            result is differentiable in the weights too.
        softcap (`float`, *optional*): c; None for plain logits.

    Returns:
        the weighted sum (scalar, float32), and the unweighted loss of each token (tokens,), float32 and detached.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, bias, labels, token_weights, softcap, torch.is_grad_enabled())


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, token_weights, softcap, with_gradient):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            h, w, b = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
            losses = torch.empty(len(h), device=h.device)
            if with_gradient:
                grad_hidden = torch.empty_like(h)
                grad_weight = torch.zeros_like(weight, dtype=torch.float32)
                grad_bias = torch.zeros_like(bias, dtype=torch.float32)
            rows = max(1, _CHUNK // len(weight))
            for start in range(0, len(h), rows):
                part = slice(start, start + rows)
                label = labels[part, None]
                losses[part], grad = _cross_entropy(torch.addmm(b, h[part], w.T).float(), label, softcap)
                if with_gradient:
                    grad *= token_weights[part, None]
                    grad_bias += grad.sum(0)
                    grad = grad.to(dtype)
                    torch.mm(grad, w, out=grad_hidden[part])
                    if dtype == torch.float32:
                        grad_weight.addmm_(grad.T, h[part])
                    else:
                        grad_weight += grad.T @ h[part]
        if with_gradient:
            ctx.save_for_backward(
                grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), losses
            )
        ctx.mark_non_differentiable(losses)
        return losses @ token_weights, losses

    @staticmethod
    def backward(ctx, grad_output, _):
        grad_hidden, grad_weight, grad_bias, losses = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            grad_hidden * grad_output if wanted[0] else None,
            grad_weight * grad_output if wanted[1] else None,
            grad_bias * grad_output if wanted[2] else None,
            None,
            losses * grad_output if wanted[4] else None,
            None,
            None,
        )


def _cross_entropy(logits: Tensor, label: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Loss (rows,) of `logits` (rows, V) at `label` (rows, 1), and its gradient in the logits, written over them."""
    if softcap is None:
        logits -= logits.amax(1, keepdim=True)
        at_label = logits.gather(1, label)
        prob = logits.exp_()
    else:  # capped logits lie in [-softcap, softcap]: their exponentials need no maximum taken out
        bent = logits.div_(softcap).tanh_()
        at_label = bent.gather(1, label) * softcap
        prob = (bent * softcap).exp_()
    total = prob.sum(1, keepdim=True)
    loss = (total.log() - at_label).squeeze(1)
    grad = prob.div_(total)
    grad.scatter_add_(1, label, torch.full_like(total, -1))
    if softcap is not None:
        grad.addcmul_(grad, bent.square_(), value=-1)  # d(c tanh(z / c)) / dz = 1 - tanh^2
    return loss, grad
