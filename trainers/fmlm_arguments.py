"""Arguments of [`FMLMTrainer`]."""

from dataclasses import dataclass, field

from .flm_arguments import FLMTrainingArguments

CHOICES = {
    "objective": ("semigroup", "lagrangian", "eulerian"),
    "loss_type": ("ce", "mse"),
}


@dataclass
class FMLMTrainingArguments(FLMTrainingArguments):
    """[`FLMTrainingArguments`] with how a flow is distilled into its map; defaults are those of the official runs.

    Args:
        objective (`str`): what the map is held to off the diagonal: "semigroup" (two jumps make one; forward
            evaluations only), "lagrangian" (the derivative in the end time) or "eulerian" (the derivative in the
            start).
        loss_type (`str`): "ce", cross entropy to the target, or "mse", squared distance of the probabilities. The
            eulerian objective needs "mse", since its targets leave the simplex; on the diagonal, where they do not,
            it has cross entropy all the same.
        diagonal_fraction (`float`): share of the global batch on the diagonal s = t, in [0, 1], held to the teacher's
            posterior (to the data without a teacher).
        boundary_prob (`int`): no probability but its inverse: one in `boundary_prob` of the other examples is, on
            average, at (s, t) = (0, 1), the jump of one-step generation. The Eulerian objective takes none there.
        ema_target (`bool`): take the semigroup target from the averaged weights instead of the current ones.
        initialize_from_teacher (`bool`): begin with the teacher's weights.

    Raises:
        ValueError: a value outside its range or choices.
    """

    adam_beta2: float = field(default=0.95, metadata={"help": "Second moment decay of AdamW."})
    objective: str = field(default="semigroup", metadata={"help": "semigroup, lagrangian or eulerian."})
    loss_type: str | None = field(default=None, metadata={"help": "ce or mse; default ce, mse for eulerian."})
    diagonal_fraction: float = field(default=0.5, metadata={"help": "Share of the global batch on the diagonal."})
    boundary_prob: int = field(default=32, metadata={"help": "One in so many of the other examples is at (0, 1)."})
    ema_target: bool = field(default=False, metadata={"help": "Semigroup targets from the averaged weights."})
    initialize_from_teacher: bool = field(default=True, metadata={"help": "Begin with the teacher's weights."})

    def __post_init__(self):
        super().__post_init__()
        if self.loss_type is None:
            self.loss_type = "mse" if self.objective == "eulerian" else "ce"
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}, but it must be one of {', '.join(choices)}.")
        if self.objective == "eulerian" and self.loss_type != "mse":
            raise ValueError('`loss_type` must be "mse" with the eulerian objective: its targets leave the simplex.')
        if not 0 <= self.diagonal_fraction <= 1:
            raise ValueError(f"`diagonal_fraction` is {self.diagonal_fraction}, but it must lie in [0, 1].")
        if self.boundary_prob < 1:
            raise ValueError(f"`boundary_prob` is {self.boundary_prob}, but it must be at least 1.")
        if self.ema_target and (self.objective != "semigroup" or self.ema_decay == 0):
            raise ValueError("`ema_target` needs the semigroup objective and an `ema_decay` above 0.")
