"""Arguments of [`FMLMTrainer`]."""

from dataclasses import dataclass, field

from .flm_arguments import FLMTrainingArguments, require
from .objectives import OBJECTIVES

CHOICES = {"objective": OBJECTIVES, "loss_type": ("ce", "mse")}


@dataclass
class FMLMTrainingArguments(FLMTrainingArguments):
    """[`FLMTrainingArguments`] with arguments for distilling a flow and the defaults of the official runs.

    Args:
        objective (`str`): the target of a jump from s to t: "semigroup" (two shorter jumps; forward evaluations only),
            "lagrangian" (from the derivative in t) or "eulerian" (from the derivative in s along the flow). The
            equations are in `trainers.objectives`.
        loss_type (`str`, *optional*): "ce", cross entropy to the target, or "mse", squared distance of probabilities.
            Default: "mse" with the eulerian objective, whose targets are no probabilities, else "ce". The eulerian
            objective on the diagonal, and tokens of the data as targets, always take cross entropy.
        diagonal_fraction (`float`): share of the global batch on the diagonal s = t, in [0, 1]. Its target is the
            teacher's prediction, or the data if there is no teacher.
        boundary_prob (`int`): N, if one in N of the other examples is at (s, t) = (0, 1), the jump of one-step
            generation; at least 1. The eulerian objective has no such examples.
        ema_target (`bool`): make the targets of the semigroup objective with the averaged weights, not the current
            ones.
        initialize_from_teacher (`bool`): start the student from the teacher's weights.
        unique_completion (`bool`): given tokens leave one way to write the others, as the clues of a puzzle do. Then
            these others are the exact value of delta_{s,t} at all times. So a sequence with given tokens is trained on
            them, without the teacher: on the diagonal at (0, 0), which refinements take, else at (0, 1).

    Raises:
        ValueError: if a value is out of range, is not among the choices or does not go with the objective.
    """

    adam_beta2: float = field(default=0.95, metadata={"help": "Second moment decay of AdamW."})
    objective: str = field(default="semigroup", metadata={"help": "semigroup, lagrangian or eulerian."})
    loss_type: str | None = field(default=None, metadata={"help": "ce or mse; default: mse for eulerian, else ce."})
    diagonal_fraction: float = field(default=0.5, metadata={"help": "Share of the global batch on the diagonal."})
    boundary_prob: int = field(default=32, metadata={"help": "N, if one in N of the other examples is at (0, 1)."})
    ema_target: bool = field(default=False, metadata={"help": "Semigroup targets from the averaged weights."})
    initialize_from_teacher: bool = field(default=True, metadata={"help": "Start from the teacher's weights."})
    unique_completion: bool = field(default=False, metadata={"help": "Given tokens decide the others (puzzles)."})

    def __post_init__(self):
        super().__post_init__()
        leaves_simplex = self.objective in OBJECTIVES and not OBJECTIVES[self.objective].on_simplex
        if self.loss_type is None:
            self.loss_type = "mse" if leaves_simplex else "ce"
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}, but it must be one of {', '.join(choices)}.")
        if leaves_simplex and self.loss_type != "mse":
            raise ValueError(
                f'`loss_type` must be "mse" with the {self.objective} objective: its targets leave the simplex.'
            )
        require(self, "diagonal_fraction", "lie in [0, 1]", lambda x: 0 <= x <= 1)
        require(self, "boundary_prob", "be at least 1", lambda x: x >= 1)
        if self.ema_target and (self.objective != "semigroup" or self.ema_decay == 0):
            raise ValueError("`ema_target` needs the semigroup objective and an `ema_decay` above 0.")
