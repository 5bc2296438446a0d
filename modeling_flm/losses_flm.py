"""Cross entropy and distillation losses in chunks of tokens: no tensor of size tokens x V is ever alive.

The gradient is computed in the forward pass, chunk by chunk, while the probabilities of the chunk are there. What is
kept for the backward pass has the size of the inputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .vocabulary_flm import softcap_

_CHUNK = 1 << 24  # logits held at a time
_CPU_CHUNK, _CPU_ROWS = 1 << 20, 256  # the same on a CPU, where they should stay in the cache; and the fewest rows

LossOf = Callable[[Tensor, slice], tuple[Tensor, Tensor]]  # see [`_ChunkedLoss`]
Target = Callable[[slice], Tensor]  # from a slice of tokens to target probabilities (rows, V), or their logarithms


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    token_weights: Tensor,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the tokens' cross entropies, `-log softmax(c tanh((h W^T + b) / c))[label]` each.

    Args:
        hidden (`Tensor`): (tokens, d) hidden states h, floating point.
        weight, bias (`Tensor`): (V, d) and (V,), the output layer.
        labels (`Tensor`): (tokens,) int64 in [0, V).
        token_weights (`Tensor`): (tokens,) float32 weights, in which the sum is differentiable, too. A token of weight
            zero gets no gradient.
        softcap (`float`, *optional*): the soft cap c; None for plain logits.

    Returns:
        the weighted sum, a float32 scalar; and the unweighted loss of each token, (tokens,) float32 and detached.
    """

    def loss_of(scores: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        return _label_loss(scores, labels[part, None], bounded=softcap is not None)

    return _ChunkedLoss.apply(hidden, weight, bias, token_weights, softcap, loss_of, 1, torch.is_grad_enabled())


def chunked_distillation_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Target,
    token_weights: Tensor,
    softcap: float | None = None,
    loss_type: str = "ce",
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the tokens' losses of `p = softmax(c tanh((h W^T + b) / c))` against target distributions q.

    The target gets no gradient. Results and other arguments are those of [`chunked_cross_entropy`].

    Args:
        target (`Callable`): from a slice of tokens to their q, such as a [`posterior`] or a [`mixture`] of two.
        loss_type (`str`): "ce", the cross entropy `-sum_v q_v log p_v`; "mse", the squared distance
            `sum_v (p_v - q_v)^2`; "expectation", `sum_v p_v q_v`, where q may be any cost.
    """
    loss_of_log_prob = {"ce": _soft_cross_entropy, "mse": _squared_error, "expectation": _expectation}[loss_type]

    def loss_of(scores: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        return loss_of_log_prob(scores.log_softmax(-1), target(part))

    return _ChunkedLoss.apply(hidden, weight, bias, token_weights, softcap, loss_of, 2, torch.is_grad_enabled())


def posterior(hidden: Tensor, weight: Tensor, bias: Tensor, softcap: float | None = None) -> Target:
    """The predictions `softmax(c tanh((h W^T + b) / c))` of hidden states (tokens, d), as a target."""
    scores = _scores(hidden, weight, bias, softcap)
    return lambda part: scores(part).softmax(-1)


def log_posterior(
    hidden: Tensor, weight: Tensor, bias: Tensor, softcap: float | None = None, temperature: float = 1.0
) -> Target:
    """The logarithms of predictions at a temperature, `log_softmax(c tanh((h W^T + b) / c) / temperature)`."""
    scores = _scores(hidden, weight, bias, softcap)
    return lambda part: scores(part).div_(temperature).log_softmax(-1)


def _scores(hidden: Tensor, weight: Tensor, bias: Tensor, softcap: float | None) -> Target:
    """Soft-capped logits of hidden states (tokens, d), float32."""
    return lambda part: softcap_(torch.addmm(bias, hidden[part], weight.T).float(), softcap)


def mixture(share: Tensor, first: Target, second: Target) -> Target:
    """The target `share * first + (1 - share) * second`, with `share` (tokens,) in [0, 1]."""
    return lambda part: torch.lerp(second(part), first(part), share[part, None])


class _ChunkedLoss(torch.autograd.Function):
    """The sum of token weights times losses. `loss_of(scores, part)` gives those of a slice `part` of the tokens by
    their soft-capped logits, and the gradient in these; it may overwrite them. `held` tensors of the size of the
    logits are alive at a time."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, token_weights, cap, loss_of, held, with_gradient):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            h, w, b = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
            losses = torch.empty(len(h), device=h.device, dtype=torch.float32)
            if with_gradient:
                grad_hidden = torch.empty_like(h)
                grad_weight = torch.zeros_like(weight, dtype=torch.float32)
                grad_bias = torch.zeros_like(bias, dtype=torch.float32)
            rows = _rows_at_a_time(len(weight), device, held)
            for start in range(0, len(h), rows):
                part = slice(start, start + rows)
                logits = torch.addmm(b, h[part], w.T).float()
                losses[part], grad = _of_capped(logits, cap, loss_of, part)
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
        return (losses * token_weights).sum(), losses  # not a dot product, which autocast would round

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output, _):
        gradients = zip(ctx.saved_tensors, ctx.needs_input_grad[:4], strict=True)
        return *(grad * grad_output if wanted else None for grad, wanted in gradients), None, None, None, None


def _rows_at_a_time(vocab_size: int, device: str, held: int) -> int:
    """Size of a chunk, so that `held` tensors of it have at most so many entries. On a CPU, products with the output
    layer would be slow with fewer rows than _CPU_ROWS."""
    most, fewest = (_CPU_CHUNK, _CPU_ROWS) if device == "cpu" else (_CHUNK, held)
    return max(fewest, most // vocab_size) // held


def _of_capped(logits: Tensor, cap: float | None, loss_of: LossOf, part: slice) -> tuple[Tensor, Tensor]:
    """The losses (rows,) of a slice of the tokens by their logits (rows, V), which it caps and overwrites, and the
    gradient in the logits."""
    if cap is None:
        return loss_of(logits, part)
    bent = logits.div_(cap).tanh_()
    loss, grad = loss_of(bent * cap, part)
    return loss, grad.addcmul_(grad, bent.square_(), value=-1)  # d(c tanh(z / c)) / dz = 1 - tanh^2


def _label_loss(scores: Tensor, label: Tensor, bounded: bool) -> tuple[Tensor, Tensor]:
    """Cross entropy (rows,) of `scores` (rows, V) at `label` (rows, 1); its gradient in the scores overwrites them.
    The exponentials of `bounded` scores, which are capped, cannot overflow."""
    if not bounded:
        scores -= scores.amax(1, keepdim=True)
    at_label = scores.gather(1, label)
    prob = scores.exp_()
    total = prob.sum(1, keepdim=True)
    loss = (total.log() - at_label).squeeze(1)
    grad = prob.div_(total)
    grad.scatter_add_(1, label, torch.full_like(total, -1))
    return loss, grad


def _soft_cross_entropy(log_prob: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The cross entropy `-sum q log p` (rows,), and its gradient in the logits of p."""
    return -(target * log_prob).sum(-1), log_prob.exp() - target


def _squared_error(log_prob: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The squared distance `sum (p - q)^2` (rows,), and its gradient in the logits of p."""
    prob = log_prob.exp()
    error = prob - target
    return error.square().sum(-1), 2 * prob * (error - (prob * error).sum(-1, keepdim=True))


def _expectation(log_prob: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    """`sum p c` (rows,), and its gradient in the logits of p."""
    prob = log_prob.exp()
    mean = (prob * cost).sum(-1)
    return mean, prob * (cost - mean[:, None])
