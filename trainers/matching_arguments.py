"""Arguments of [`MatchingTrainer`]."""

from dataclasses import dataclass, field

from modeling_flm.configuration_flm import is_integer

from .flm_arguments import FLMTrainingArguments, require


@dataclass
class MatchingTrainingArguments(FLMTrainingArguments):
    """[`FLMTrainingArguments`] with arguments for distribution matching.

    Args:
        auxiliary_learning_rate (`float`): constant learning rate of the auxiliary network, above 0. It has to follow
            the map closely, so it should be several times that of the map.
        auxiliary_steps (`int`): steps of the auxiliary network for each step of the map, at least 1.
        second_step_fraction (`float`): share of the sequences, in [0, 1], that are not written from pure noise. They
            start from the state that a step of the map to a random time leads to, as in generation in several steps.
        gamma (`float`): strength of the fresh noise in these steps, in [0, 1], and then in `generate`: 0 for none, 1
            for noise that is all new.
        teacher_temperature (`float`): the map is to write like the teacher at this temperature, above 0. Masked
            diffusion that was trained for a short time writes with too high an entropy at 1.
        writing_temperature (`float`): temperature at which the map draws the tokens of its texts, above 0. The last
            step of generation takes the likeliest tokens; below 1 the texts of training are nearer to these.

    Raises:
        ValueError: if a value is out of range, or gradients are to be accumulated or losses to be weighted.
    """

    adam_beta2: float = field(default=0.95, metadata={"help": "Second moment decay of AdamW."})
    auxiliary_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the auxiliary network."})
    auxiliary_steps: int = field(default=2, metadata={"help": "Steps of the auxiliary network for one of the map."})
    second_step_fraction: float = field(default=0.25, metadata={"help": "Share of the sequences in a second step."})
    gamma: float = field(default=1.0, metadata={"help": "Strength of the fresh noise of these steps, in [0, 1]."})
    teacher_temperature: float = field(default=1.0, metadata={"help": "Temperature of the teacher's predictions."})
    writing_temperature: float = field(default=1.0, metadata={"help": "Temperature of the map's texts in training."})

    def __post_init__(self):
        super().__post_init__()
        if self.gradient_accumulation_steps > 1:
            raise ValueError(
                "`gradient_accumulation_steps` must be 1: the auxiliary network would take its steps in each part of "
                "a batch. Lower `per_device_train_batch_size`, and the learning rates with it."
            )
        if self.learned_loss_weighting:
            raise ValueError("`learned_loss_weighting` weights losses of times: distribution matching has none.")
        for name in ("auxiliary_learning_rate", "teacher_temperature", "writing_temperature"):
            require(self, name, "be above 0", lambda x: x > 0)
        require(self, "auxiliary_steps", "be an integer >= 1", lambda x: is_integer(x) and x >= 1)
        for name in ("second_step_fraction", "gamma"):
            require(self, name, "lie in [0, 1]", lambda x: 0 <= x <= 1)
