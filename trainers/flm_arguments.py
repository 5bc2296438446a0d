"""Arguments of [`FLMTrainer`]."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import SchedulerType, TrainingArguments
from transformers.utils import strtobool

from modeling_flm.checks_flm import NEFTUNE_RULE
from modeling_flm.configuration_flm import is_integer, is_number


def require(args, name: str, rule: str, holds: Callable[[Any], bool]) -> None:
    """Check a number among training arguments.

    Raises:
        ValueError: it is no number, or `holds` says that it breaks the `rule`.
    """
    value = getattr(args, name)
    if not (is_number(value) and holds(value)):
        raise ValueError(f"`{name}` is {value!r}, but it must {rule}.")


@dataclass
class FLMTrainingArguments(TrainingArguments):
    """[`~transformers.TrainingArguments`] with arguments for training a flow and the defaults of the paper's recipe.

    Args:
        ema_decay (`float`): decay of the exponential moving average of the weights, in [0, 1); 0 for no average. At
            step n the decay is at most (1 + n) / (10 + n), so that the initial weights are soon forgotten.
        learned_loss_weighting (`bool`): weight the training loss by a learned function w of the time tau: a loss l at
            tau becomes exp(-w(tau)) l + w(tau). Evaluation losses stay unweighted. A model that has such a weight
            keeps it without this argument, too.
        conditioning_rate (`float`): share of the sequences, in [0, 1], that are trained with given tokens, as prompts
            and infilling need it. Of such a sequence a random share of the positions, uniform in [0, 1], is kept
            clean and carries no loss.
        sample_num_steps (`list[int]`): at each evaluation samples are drawn with each of these numbers of sampling
            steps, from fixed seeds. They are printed, and appended to `samples.jsonl` in the output directory.
        num_samples (`int`): number of samples for each entry of `sample_num_steps`; 0 for none.

    Raises:
        ValueError: if a value is out of range, DeepSpeed is enabled, or an argument is set that does not go with a
            flow: `label_smoothing_factor`, `neftune_noise_alpha`, batches of changing size, a schedule-free optimiser
            beside the average.
    """

    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate of AdamW."})
    lr_scheduler_type: SchedulerType | str = field(
        default="constant_with_warmup", metadata={"help": "Learning rate schedule."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide losses that are not finite from the log, instead of stopping at them."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Passed to DistributedDataParallel; every parameter is used in every step."}
    )
    ema_decay: float = field(
        default=0.9999, metadata={"help": "Decay of the moving average of the weights, in [0, 1); 0 for no average."}
    )
    learned_loss_weighting: bool = field(
        default=False, metadata={"help": "Train with a learned weight w(tau): loss l becomes exp(-w) l + w."}
    )
    conditioning_rate: float = field(
        default=0.0, metadata={"help": "Share of the sequences, in [0, 1], that are trained with given tokens."}
    )
    sample_num_steps: list[int] = field(
        default_factory=lambda: [1, 8, 64], metadata={"help": "Numbers of steps to sample with at each evaluation."}
    )
    num_samples: int = field(default=0, metadata={"help": "Samples for each number of steps; 0 for none."})

    def __post_init__(self):
        if self.deepspeed or strtobool(os.environ.get("ACCELERATE_USE_DEEPSPEED", "false")):
            raise ValueError(
                "DeepSpeed is not supported: it keeps weights, optimiser and checkpoints in its own engine, where "
                "neither the average nor the exact resumption would reach them. Use `fsdp=True` to shard a model."
            )
        if self.greater_is_better is None and "loss_tau_" in (self.metric_for_best_model or ""):
            self.greater_is_better = False  # a loss, though its name does not end so
        super().__post_init__()
        require(self, "ema_decay", "lie in [0, 1); 0 for no average", lambda x: 0 <= x < 1)
        require(self, "conditioning_rate", "lie in [0, 1]", lambda x: 0 <= x <= 1)
        if self.label_smoothing_factor != 0:
            raise ValueError("`label_smoothing_factor` must be 0: the loss of a flow needs the labels as they are.")
        if self.neftune_noise_alpha is not None:
            raise ValueError(NEFTUNE_RULE)
        if self.train_sampling_strategy == "batch_rebalance":
            raise ValueError(
                '`train_sampling_strategy` must not be "batch_rebalance": noise and times go by places in batches of '
                'one size. "group_by_length" saves padding, too.'
            )
        if "schedule_free" in str(self.optim).lower() and self.ema_decay > 0:
            raise ValueError(
                f"`ema_decay` is {self.ema_decay}, but it must be 0 with a schedule-free optimiser, which has an "
                "average of its own."
            )
        if not (is_integer(self.num_samples) and self.num_samples >= 0):
            raise ValueError(f"`num_samples` is {self.num_samples!r}, but it must be an integer >= 0.")
        steps = self.sample_num_steps
        if not (isinstance(steps, list) and all(is_integer(n) and n >= 1 for n in steps)):
            raise ValueError(f"`sample_num_steps` is {steps!r}, but it must be a list of integers >= 1.")

    @property
    def n_gpu(self) -> int:
        """At most 1, so that the Trainer never uses `nn.DataParallel`: run one process per GPU (`torchrun`)."""
        return min(1, super().n_gpu)
