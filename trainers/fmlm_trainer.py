"""The Trainer that distils a flow into its map."""

import numpy as np
import torch
from torch import Tensor, nn

from modeling_flm import FLMModel
from modeling_flm.flow_flm import interpolate
from modeling_flm.losses_flm import chunked_cross_entropy, chunked_distillation_loss
from modeling_flm.modeling_flm import FLMOutput
from modeling_flm.noise_flm import NoiseLaw, embedded_noise, white_noise

from .flm_trainer import FLMTrainer
from .flow_map_times import draw_time_pairs
from .fmlm_arguments import FMLMTrainingArguments
from .networks import Network, States
from .objectives import OBJECTIVES, Jumps, Objective
from .sharding import in_autocast, whole, within_forward
from .start import USES_OF_WEIGHTS, check_flow, check_map, differing

COUNTED = ("loss_diagonal", "loss_off_diagonal", "loss_given", "projected")


class FMLMTrainer(FLMTrainer):
    """Distils the flow of a teacher into an [`FMLMModel`] (section 4 of arXiv 2602.16813): [`FLMTrainer`] with the
    losses

        diagonal        the student's delta_{s,s}(x_s) against the teacher's posterior D_s(x_s)
        off diagonal    its delta_{s,t}(x_s) against the target of `args.objective` (see `trainers.objectives`)
        given           with `args.unique_completion`, of sequences with given tokens: against the sequence itself

    Teacher and student see the same noise, each in its own table. Time pairs follow from the seed, the step and the
    place in the global batch, as times and noise do. `eval_loss` is the denoising loss on the diagonal.

    Args:
        model (`FMLMModel`): the student.
        teacher (`FLMModel`, *optional*): the flow; any flow language model of the same vocabulary. Of a flow map it
            is the flow on its diagonal, delta_{s,s}, alone that teaches. None for self-distillation: the data takes
            the place of the posterior, the student's diagonal that of the denoiser.
        args (`FMLMTrainingArguments`): how.

    Raises:
        ValueError: the student has one time only, or is its own teacher, the vocabularies differ, the teacher is one
            of masked diffusion, or its weights do not fit the student; or the student has a PEFT adapter, and
            `ema_target` is set, or there are a teacher and `initialize_from_teacher`.
    """

    args: FMLMTrainingArguments
    objective: Objective

    def __init__(
        self,
        model=None,
        teacher: FLMModel | None = None,
        args: FMLMTrainingArguments | None = None,
        **kwargs,
    ):
        if not isinstance(args, FMLMTrainingArguments):
            raise ValueError(f"`args` must be FMLMTrainingArguments, but are {type(args).__name__}.")
        check_map(model, teacher)
        if teacher is model:
            raise ValueError("`teacher` is the student itself: leave it out for self-distillation, or give a copy.")
        if teacher is not None:
            check_flow(teacher.config, "`teacher`")
        begins_anew = teacher is not None and args.initialize_from_teacher
        if hasattr(model, "peft_config") and (begins_anew or args.ema_target):
            raise ValueError(
                "the student has a PEFT adapter, which goes on from its own base model and is not averaged as a whole "
                "model: set `initialize_from_teacher=False` and `ema_target=False`."
            )
        if begins_anew:
            _take_weights(model, teacher)
        super().__init__(model=model, args=args, **kwargs)
        self.objective = OBJECTIVES[args.objective]()
        self.teacher = teacher
        if teacher is not None:
            teacher.requires_grad_(False).eval().to(args.device)
        self._sums: dict[str, Tensor] = {}
        self._whole_student: FLMModel | None = None  # of a sharded student: see `_gather_student`
        if self.is_fsdp_enabled:
            with torch.device("meta"):
                self._whole_student = type(model)(model.config).requires_grad_(False)
            in_autocast(self._whole_student, self.accelerator)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        self._law = NoiseLaw()  # one for all micro-batches: the tables do not change before the step ends
        if self._whole_student is not None:
            self._gather_student(self._whole_student)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _gather_student(self, student: FLMModel) -> None:
        """Give `student` the weights that the targets of this step are made with, whole.

        The shards would not do: to run them takes all processes at once, but there may be one without an example off
        the diagonal.
        """
        weights = dict(self.accelerator.unwrap_model(self.model).named_parameters()) | (self._target_weights or {})
        student.load_state_dict({name: whole(tensor) for name, tensor in weights.items()}, assign=True)

    @property
    def _target_weights(self) -> dict[str, Tensor] | None:
        """The averaged weights, by name, if it is they that make the targets."""
        return self.ema.average if self.args.ema_target and self.ema is not None else None

    def _draw(self, batch: dict, places: np.ndarray, global_batch_size: int) -> dict:
        batch = super()._draw(batch, places, global_batch_size)
        pairs = draw_time_pairs(
            self.args.seed,
            self.state.global_step,
            global_batch_size,
            places,
            self.args.diagonal_fraction,
            self.args.boundary_prob if self.objective.boundary else None,
            self.objective.latest,
        )
        device = batch["input_ids"].device
        names = ("timesteps", "middle_timesteps", "target_timesteps")
        for name, tau in zip(names, pairs[:3], strict=True):
            batch[name] = torch.from_numpy(tau).to(device, non_blocking=True)
        unique = _have_given(batch) if self.args.unique_completion else np.zeros(len(places), dtype=bool)
        if unique.any():
            rows, jumps = (torch.from_numpy(side).to(device) for side in (unique, ~pairs.diagonal))
            batch["timesteps"] = batch["timesteps"].masked_fill(rows, 0)
            batch["target_timesteps"] = torch.where(rows, jumps.float(), batch["target_timesteps"])
        batch["diagonal"], batch["unique"] = pairs.diagonal & ~unique, unique  # stay on the host
        return batch

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The distillation loss of a batch from `_draw`: the mean over the scored positions."""
        student = self.accelerator.unwrap_model(model)
        loss, output = within_forward(student, lambda: self._distil(model, student, inputs, num_items_in_batch))
        return (loss, output) if return_outputs else loss

    def _distil(
        self, model: nn.Module, student: FLMModel, inputs: dict, num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, FLMOutput]:
        """The loss, and the output of `model`, which is the student as it is wrapped for training."""
        start, middle, end = (inputs[name] for name in ("timesteps", "middle_timesteps", "target_timesteps"))
        scored = inputs["labels"] != -100
        averaged = self._target_weights
        own = Network(student, averaged) if self._whole_student is None else Network(self._whole_student)
        teacher = own if self.teacher is None else Network(self.teacher)
        other_tables = [own.table if averaged else None, teacher.table if self.teacher is not None else None]
        states, own_states, teacher_states = self._states(student, other_tables, inputs, scored)

        on, unique = inputs["diagonal"], inputs["unique"]
        groups = {"diagonal": on, "off_diagonal": ~(on | unique), "given": unique}
        output = model(
            inputs_embeds=states.value,
            timesteps=start,
            target_timesteps=end,
            attention_mask=states.attention_mask,
            output_logits=False,
        )
        weights, offset = student.loss_weights(scored, start, end)
        total = offset
        cap, output_layer = student.config.final_logit_softcapping, student.output_layer()
        for name, group in groups.items():
            if not group.any():
                continue
            index = torch.from_numpy(np.flatnonzero(group)).to(start.device, non_blocking=True)
            hidden, token_weights = output.last_hidden_state[index].flatten(0, 1), weights[index].flatten()
            head = (hidden, *output_layer)
            if name == "given" or (name == "diagonal" and self.teacher is None):
                labels = inputs["labels"][index].flatten().clamp(min=0)
                part, losses = chunked_cross_entropy(*head, labels, token_weights, cap)
            elif name == "diagonal":
                target = teacher.predictions(teacher.hidden(teacher_states.rows(index), start[index]))
                # Squared error is for targets that leave the simplex, and these do not.
                kind = self.args.loss_type if self.objective.on_simplex else "ce"
                part, losses = chunked_distillation_loss(*head, target, token_weights, cap, kind)
            else:
                both = own_states.rows(index), teacher_states.rows(index)
                jumps = Jumps(own, teacher, *both, start[index], middle[index], end[index])
                target = self.objective.target(jumps)
                part, losses = chunked_distillation_loss(*head, target, token_weights, cap, self.args.loss_type)
                if jumps.projected:
                    projected = torch.cat(jumps.projected).view_as(scored[index]) & scored[index]
                    self._count("projected", projected.sum(), scored[index].sum())
            self._count(f"loss_{name}", losses @ scored[index].flatten().float(), scored[index].sum())
            total = total + part
        count = scored.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = total / count.clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return loss, output

    def _states(
        self, student: FLMModel, other_tables: list[Tensor | None], inputs: dict, scored: Tensor
    ) -> tuple[States, ...]:
        """x_s of the same noise for the student, with gradient, and without for other tables, None being its own."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        tables = [student.vocabulary_table().float(), *(table for table in other_tables if table is not None)]
        longest = student.config.max_position_embeddings
        noises = iter(shared_noise(tables, inputs["noise_seed"], ids.shape[1], self._law, longest, mask))
        s = student.clock.t(inputs["timesteps"])

        def states(table: Tensor) -> States:
            clean = torch.nn.functional.embedding(ids, table)
            value = interpolate(next(noises), clean, s)
            return States(torch.where(scored[..., None], value, clean), clean, ~scored, mask)

        with_gradient = states(tables[0])
        plain = with_gradient.detached()
        return with_gradient, *(plain if table is None else states(table) for table in other_tables)

    def _count(self, name: str, amount: Tensor, out_of: Tensor | int) -> None:
        self._sums[name] = self._sums.get(name, 0) + torch.stack(
            [torch.as_tensor(x, device=self.args.device, dtype=torch.float32).detach() for x in (amount, out_of)]
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            none = torch.zeros(2, device=self.args.device)
            sums = torch.stack([self._sums.get(name, none) for name in COUNTED])  # a process may have seen none of one
            amounts, counts = self.accelerator.reduce(sums, "sum").T
            means = zip(COUNTED, (amounts / counts).tolist(), counts.tolist(), strict=True)
            logs |= {name: mean for name, mean, count in means if count > 0}
            self._sums.clear()
        super().log(logs, start_time)


def _have_given(batch: dict) -> np.ndarray:
    """Whether each row has given tokens, which are not scored and no padding: bool (rows,), on the host."""
    labels = batch["labels"]
    attended = batch.get("attention_mask", torch.ones_like(labels)) != 0
    return ((labels == -100) & attended).any(1).cpu().numpy()


def shared_noise(
    tables: list[Tensor],
    seeds: list[int],
    length: int,
    law: NoiseLaw | None,
    longest: int,
    attention_mask: Tensor | None,
) -> list[Tensor]:
    """The embeddings (batch, length, d_i) of the same Gaussian noise by tables (V, d_i), float32; `law` is theirs.

    As with one table, the dense product is formed where the vocabulary is no larger than what would be drawn instead.
    By `longest`, the model's context, and `attention_mask` the noise of a text does not depend on its padding.
    """
    vocab_size, device = len(tables[0]), tables[0].device
    width = sum(table.shape[1] for table in tables)
    with torch.autocast(device.type, enabled=False):
        dense = vocab_size <= width
        white, _ = white_noise(seeds, length, vocab_size if dense else width, device, longest, attention_mask)
        return [white @ table for table in tables] if dense else list(embedded_noise(white, *tables, law=law))


def _take_weights(student: FLMModel, teacher: FLMModel) -> None:
    """Copy the teacher's weights; only what a teacher lacks (the second time, the loss weight) keeps its own."""
    if different := differing(USES_OF_WEIGHTS, student.config, teacher.config):
        raise ValueError(
            f"the student would start as another function of the teacher's weights: they differ in "
            f"{', '.join(different)}. Take these from `teacher.config`, or set `initialize_from_teacher=False`."
        )
    try:
        keys = student.load_state_dict(teacher.state_dict(), strict=False)
    except RuntimeError as error:
        raise ValueError(f"the teacher's weights do not fit the student: {error}") from None
    extra = [name for name in keys.unexpected_keys if not name.startswith("loss_weighting.")]
    missing = [n for n in keys.missing_keys if not n.startswith(("target_time_embedding.", "loss_weighting."))]
    if extra or missing:
        raise ValueError(f"the teacher's weights do not fit the student: missing {missing}, unexpected {extra}.")
