"""Checks of the arguments of a model: shapes, times, ids and labels. Their error messages say what to do.

Values are checked on a CPU only, and not in compiled code: on an accelerator each check would make the host wait.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .configuration_flm import FLMConfig

NEFTUNE_RULE = "`neftune_noise_alpha` must be None: a flow brings its own noise to the embeddings."
LABELS_RULE = "`labels` must be the `input_ids` or -100 (neither shifted nor masked): the data is noised here."


def checkable(x: Tensor) -> bool:
    """Whether the values of `x` can be read without waiting for a device or breaking a compiled graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def check_unknown(name: str, given: dict) -> None:
    """Raise a `TypeError` for arguments that the class `name` does not know, unless they are None or False."""
    unknown = sorted(key for key, value in given.items() if value is not None and value is not False)
    if unknown:
        flattened = " Rows joined by DataCollatorWithFlattening would see each other: pad them."
        hint = flattened if "position_ids" in unknown else ""
        raise TypeError(f"{name}.forward() got unexpected arguments {unknown}.{hint}")


def check_trainer(model, labels: Tensor | None, num_items_in_batch: Tensor | int | None) -> None:
    """Check that the plain Trainer has done nothing to a model or its labels that a flow does not go with."""
    if getattr(model, "_is_replica", False):
        raise ValueError(
            "nn.DataParallel is not supported: run one process per GPU (torchrun), or show it one GPU alone "
            "(CUDA_VISIBLE_DEVICES)."
        )
    if labels is not None and hasattr(model.embed_tokens, "neftune_noise_alpha"):
        raise ValueError(NEFTUNE_RULE)
    if labels is None and num_items_in_batch is not None:
        raise ValueError(
            "the Trainer kept the `labels`, which are to be noised here, to itself: leave out "
            "`label_smoothing_factor` and `compute_loss_func`; the loss is the model's own."
        )


def check_shapes(
    config: FLMConfig,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    labels: Tensor | None,
    attention_mask: Tensor | None,
    conditioning_mask: Tensor | None,
) -> int:
    """Check that the arguments of `forward` fit together and have the right shapes; return the batch size."""
    width = config.hidden_size
    if input_ids is None and inputs_embeds is None and labels is None:
        raise ValueError("give `labels` (to train), or `input_ids` or `inputs_embeds` with `timesteps` (to predict).")
    if input_ids is not None and inputs_embeds is not None:
        raise ValueError("give `input_ids` or `inputs_embeds`, not both: either is the state.")
    if conditioning_mask is not None and labels is None:
        raise ValueError("`conditioning_mask` keeps clean what `labels` are noised, but there are no `labels`.")
    if inputs_embeds is not None and inputs_embeds.shape[2:] != (width,):
        raise ValueError(
            f"`inputs_embeds` has shape {tuple(inputs_embeds.shape)}, but an embedded state is (batch, length, "
            f"{width}); a dense state (batch, length, V) goes through `embed_state` first."
        )
    for name, ids in (("input_ids", input_ids), ("labels", labels)):
        if ids is None:
            continue
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dtype == torch.bool or ids.ndim != 2:
            found = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise ValueError(
                f"`{name}` must be an integer tensor (batch, length), but is {found}; a dense state (batch, "
                "length, V) goes through `embed_state` into `inputs_embeds`."
            )
    state = inputs_embeds if inputs_embeds is not None else input_ids if input_ids is not None else labels
    batch, length = state.shape[:2]
    if batch * length == 0:
        raise ValueError(f"the input is empty: it has shape {tuple(state.shape)}.")
    beside = {"labels": labels, "attention_mask": attention_mask, "conditioning_mask": conditioning_mask}
    for name, given in beside.items():
        if given is not None and not (isinstance(given, Tensor) and given.shape == (batch, length)):
            found = f"has shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"is {given!r}"
            raise ValueError(f"`{name}` {found}, but the input is (batch, length) = {(batch, length)}.")
    if length > config.max_position_embeddings:
        raise ValueError(
            f"the input has {length} positions, more than the model's max_position_embeddings = "
            f"{config.max_position_embeddings}: cut it."
        )
    return batch


def check_task(
    config: FLMConfig,
    labels: Tensor | None,
    inputs_embeds: Tensor | None,
    timesteps: Tensor | Sequence[float] | float | None,
    noise_seed: Tensor | Sequence[int] | None,
    generator: torch.Generator | None,
    training: bool,
) -> None:
    """Check that `labels` do not train a flow map, and that a given state has a time and gets no noise."""
    noised = inputs_embeds is None and labels is not None
    if noised and config.two_times and training:
        raise ValueError(
            "`labels` train the diagonal of a flow map alone, which spoils its jumps: use FMLMTrainer, with a "
            "flow as its teacher or, to learn from the data, without one. (To evaluate: `model.eval()`.)"
        )
    if not noised and not (noise_seed is None and generator is None):
        raise ValueError("`noise_seed` and `generator` noise `labels`, but here the state is given.")
    if not noised and timesteps is None:
        raise ValueError(
            "`timesteps` is missing: the time tau in [0, 1] of the given state, shape (batch,). (To train, give "
            "`labels`.)"
        )


def check_times(
    name: str, tau: Tensor | Sequence[float] | float | None, batch: int, device: torch.device
) -> Tensor | None:
    """Check times, one per sequence or one for all, and return them as float32 (batch,); None stays None."""
    if tau is None:
        return None
    try:
        times = torch.as_tensor(tau)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`{name}` must be times in [0, 1], but is {tau!r}.") from None
    if times.shape not in ((), (batch,)):
        raise ValueError(f"`{name}` has shape {tuple(times.shape)}, but must be ({batch},), a time per sequence.")
    if checkable(times) and not ((times >= 0) & (times <= 1)).all():
        raise ValueError(f"`{name}` must lie in [0, 1] (times are tau), but reach {_furthest(times)}.")
    return times.to(device, torch.float32).expand(batch)


def check_target(labels: Tensor | None, timesteps: Tensor, target_timesteps: Tensor) -> None:
    """Check that a jump does not go back in time, and that there are no labels."""
    if labels is not None:
        raise ValueError(
            "`labels` train the denoiser, on the diagonal of the flow map; `target_timesteps` is for prediction."
        )
    if checkable(timesteps) and (target_timesteps < timesteps - 1e-6).any():
        raise ValueError("`target_timesteps` must not be less than `timesteps`: the flow runs from noise to data.")


def check_labels(
    config: FLMConfig,
    labels: Tensor,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    scored: Tensor,
) -> None:
    """Check that labels are ids or -100, agree with `input_ids` where they are scored, and leave no token unknown."""
    if not checkable(labels):
        return
    unlabelled = labels == -100
    check_ids(config, "labels", labels.masked_fill(unlabelled, 0))
    if input_ids is not None:
        check_ids(config, "input_ids", input_ids)
        if ((labels != input_ids) & scored).any():
            raise ValueError(LABELS_RULE)
    elif inputs_embeds is None:
        unknown = unlabelled if attention_mask is None else unlabelled & attention_mask.bool()
        if unknown.any():
            raise ValueError(
                "`labels` of -100 leave a token unknown: give `input_ids` too, or hide it (attention_mask 0)."
            )


def check_ids(config: FLMConfig, name: str, ids: Tensor) -> None:
    """Check that ids are in the vocabulary; the message calls them `name`."""
    if not checkable(ids) or ids.numel() == 0:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= config.vocab_size:
        raise ValueError(
            f"`{name}` contain the id {low if low < 0 else high}, outside the vocabulary [0, {config.vocab_size})."
        )


def _furthest(tau: Tensor) -> float:
    """The value that is furthest outside [0, 1]; a NaN counts as the furthest."""
    return float(tau.flatten()[(tau - 0.5).abs().nan_to_num(torch.inf).argmax()])
