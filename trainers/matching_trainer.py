"""The Trainer that teaches a flow map by its own texts: distribution matching."""

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeling_flm import FLMModel
from modeling_flm.flow_flm import beyond, noised_jump
from modeling_flm.losses_flm import Target, chunked_cross_entropy, chunked_distillation_loss, log_posterior
from modeling_flm.noise_flm import step_seeds, to_where_text_begins
from modeling_flm.samplers_flm import SETTINGS
from modeling_flm.vocabulary_flm import draw_token

from .checkpoints import AUXILIARY
from .flm_trainer import FLMTrainer
from .matching_arguments import MatchingTrainingArguments
from .start import check_map

LARGEST_COST = 10.0  # nats
# Numbers of draws beyond any number of auxiliary steps: those of choices, of fresh noise and of a share's rounding.
_CHOICES, _FRESH, _ROUNDING = 1 << 33, 1 << 34, 1 << 35


class MatchingTrainer(FLMTrainer):
    """Trains the jumps of an [`FMLMModel`] to the end, delta_{s,1}, so that its texts look to a masked diffusion model
    like the data: distribution matching distillation (arXiv 2311.18828; for discrete data arXiv 2503.15457).

    ```python
    args = MatchingTrainingArguments("runs/matched", max_steps=1500, learning_rate=1e-4)
    MatchingTrainer(flow_map, masked, args, train_dataset=rows).train()
    ```

    A distilled map imitates its teacher token by token: where the teacher is unsure, so is the map, and the tokens of
    one text need not go together. Here the map writes a text y, drawn from its prediction p = delta_{0,1}(noise),
    which `writing_temperature` sharpens. A random part m of y is masked. Of the masked tokens the teacher knows the
    probabilities in the data, `T(y_m | the rest)`, and an auxiliary network those in the texts of the map,
    `A(y_m | the rest)`: it is a second masked diffusion model, trained on these texts all along. The loss of the
    map is

        sum_v p_v (log A_v - log T_v),     the mean over the masked tokens of the batch, in nats.

    With a mean for each text, then over texts, it would estimate the Kullback-Leibler divergence of the map's texts
    from the data, per token. Here texts of which much is masked count more. Its gradient moves p towards tokens that
    fit the rest of the text, and away from those that the map writes too often. The data itself is only used for given
    tokens (`conditioning_rate`) and for the number of rows.

    Only jumps to the end are trained, from noise and from where a step of the map with fresh noise of strength `gamma`
    leads. A matched map then writes in several steps with this `gamma`, which its generation configuration says. The
    embedding table stays as it is.

    Args:
        model (`FMLMModel`): the map, best distilled already.
        teacher (`FLMModel`): a masked diffusion model of the same vocabulary, with `masked_diffusion` in its
            configuration, such as `python -m benchmarks.baselines.mdlm` trains. The auxiliary network starts as it.
        args (`MatchingTrainingArguments`): how.

    Raises:
        ValueError: if the model has one time only, the teacher is no masked diffusion model, the vocabularies differ,
            or there are several processes.
    """

    args: MatchingTrainingArguments

    def __init__(self, model=None, teacher: FLMModel | None = None, args=None, **kwargs):
        if not isinstance(args, MatchingTrainingArguments):
            raise ValueError(f"`args` must be MatchingTrainingArguments, but are {type(args).__name__}.")
        if teacher is None or not getattr(teacher.config, "masked_diffusion", False):
            raise ValueError(
                "`teacher` must be a masked diffusion model, with `masked_diffusion` in its configuration."
            )
        check_map(model, teacher)
        if args.world_size > 1:
            raise ValueError(
                "distribution matching runs in one process: its auxiliary network is trained in it alone."
            )
        super().__init__(model=model, args=args, **kwargs)
        self.flow_map: FLMModel = model
        self.auxiliary = copy.deepcopy(teacher).requires_grad_(True).train().to(args.device)
        self.teacher = teacher.requires_grad_(False).eval().to(args.device)
        self.auxiliary_optimizer = torch.optim.AdamW(
            self.auxiliary.parameters(), args.auxiliary_learning_rate, (0.9, args.adam_beta2), weight_decay=0.0
        )
        self._auxiliary_losses: list[Tensor] = []  # since the last line of the log
        writes = model.generation_config  # as the map is trained to write
        for name in SETTINGS:
            setattr(writes, name, None)
        writes.sampler, writes.gamma = "flow_map", args.gamma

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of the map, and `auxiliary_steps` steps of the auxiliary network, each on texts of its own."""
        ids, scored, attention_mask = inputs["input_ids"], inputs["labels"] != -100, inputs.get("attention_mask")
        generator = torch.Generator(ids.device).manual_seed(step_seeds(inputs["noise_seed"][:1], _CHOICES)[0])
        for step in reversed(range(self.args.auxiliary_steps)):
            with torch.set_grad_enabled(step == 0):
                seeds = step_seeds(inputs["noise_seed"], step)
                hidden, written = self._write(model, ids, scored, attention_mask, seeds, generator)
            chance, share = torch.rand(2, *ids.shape, generator=generator, device=ids.device)
            masked = scored & (chance < share[:, :1])
            rest = written.masked_fill(masked, self.teacher.config.mask_token_id)
            with torch.enable_grad():
                auxiliary = _last_layer(self.auxiliary, rest, masked, attention_mask)
            if step == 0:  # before the auxiliary network changes
                with torch.no_grad():
                    teacher = _last_layer(self.teacher, rest, masked, attention_mask)
                loss = self._map_loss(hidden[masked], auxiliary, teacher)
            self._train_auxiliary(*auxiliary, written[masked])
        return (loss, {}) if return_outputs else loss

    def _map_loss(self, hidden: Tensor, auxiliary: "LastLayer", teacher: "LastLayer") -> Tensor:
        """The loss of the map, whose last hidden states at the masked tokens are `hidden` (tokens, d), given what the
        predictions of the auxiliary network and of the teacher there are made of."""
        with torch.no_grad():
            cost = log_ratio(log_posterior(*auxiliary), log_posterior(*teacher, self.args.teacher_temperature))
        weights = torch.ones(len(hidden), device=hidden.device) / max(len(hidden), 1)
        weight, bias, cap = self._writing_layer()
        return chunked_distillation_loss(hidden, weight, bias, cost, weights, cap, "expectation")[0]

    def _writing_layer(self) -> tuple[Tensor, Tensor, float | None]:
        """The output layer of the map and its soft cap, by which logits come divided by `writing_temperature`."""
        (weight, bias), cap = self.flow_map.output_layer(), self.flow_map.config.final_logit_softcapping
        temperature = self.args.writing_temperature
        return weight / temperature, bias / temperature, None if cap is None else cap / temperature

    def _write(
        self,
        model,
        ids: Tensor,
        scored: Tensor,
        attention_mask: Tensor | None,
        seeds: list[int],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """The last hidden states (rows, length, d) of jumps to the end, and the texts (rows, length) drawn from them.

        Tokens that are not scored are given: they are those of `ids`.
        """
        own, (rows, length) = self.flow_map, ids.shape

        def jump(state: Tensor, start: Tensor, end: Tensor) -> Tensor:
            some = slice(len(state))
            state = torch.where(scored[some, :, None], state, own.embed_tokens(ids[some])).detach()
            times = dict(timesteps=start, target_timesteps=end)
            mask = None if attention_mask is None else attention_mask[some]
            return model(inputs_embeds=state, attention_mask=mask, **times, output_logits=False).last_hidden_state

        def noise(seeds: list[int]) -> Tensor:
            drawn = own.embed_noise(len(seeds), length, seeds=seeds).detach()
            return to_where_text_begins(drawn, None if attention_mask is None else attention_mask[: len(seeds)])

        state, tau = noise(seeds), torch.zeros(rows, device=ids.device)
        # Rounded at random, so that the mean is exact.
        second = int(self.args.second_step_fraction * rows + step_seeds(seeds[:1], _ROUNDING)[0] / 2**64)
        if second:
            gamma, start = self.args.gamma, tau[:second].clone()
            tau[:second] = torch.rand(second, generator=generator, device=ids.device)
            t = own.clock.t(tau[:second])
            fresh = noise(step_seeds(seeds[:second], _FRESH))
            with torch.no_grad():
                prediction = own.embed_prediction(jump(state[:second], start, own.clock.tau(beyond(t, gamma))))
                state[:second] = noised_jump(state[:second], prediction, fresh, start, t, gamma)
        hidden = jump(state, tau, torch.ones_like(tau))
        uniform = torch.rand(rows * length, generator=generator, device=ids.device)
        weight, bias, cap = self._writing_layer()
        drawn = draw_token(hidden.flatten(0, 1).detach(), weight, bias, uniform, cap).view(-1, length)
        return hidden, torch.where(scored, drawn, ids)

    def _train_auxiliary(
        self, hidden: Tensor, weight: Tensor, bias: Tensor, cap: float | None, tokens: Tensor
    ) -> None:
        weights = torch.ones(len(hidden), device=hidden.device) / max(len(hidden), 1)
        with torch.enable_grad():
            loss = chunked_cross_entropy(hidden, weight, bias, tokens, weights, cap)[0]
            loss.backward()
        self.auxiliary_optimizer.step()
        self.auxiliary_optimizer.zero_grad()
        self._auxiliary_losses.append(loss.detach())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._auxiliary_losses:
            logs["auxiliary_loss"] = torch.stack(self._auxiliary_losses).mean().item()
            self._auxiliary_losses.clear()
        super().log(logs, start_time)

    def _trained_auxiliary(self) -> list[tuple[str, Tensor]]:
        """The parameters of the auxiliary network that its loss depends on."""
        named = self.auxiliary.named_parameters()
        return [(name, parameter) for name, parameter in named if not name.startswith("loss_weighting.")]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._trained_auxiliary():
            state = self.auxiliary_optimizer.state[parameter]
            tensors |= {f"{key}.{name}": value for key, value in state.items()} | {
                f"weight.{name}": parameter.detach()
            }
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, Path(output_dir, AUXILIARY))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        tensors = load_file(Path(resume_from_checkpoint, AUXILIARY))
        for name, parameter in self._trained_auxiliary():
            parameter.data.copy_(tensors[f"weight.{name}"])
            moments = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
            self.auxiliary_optimizer.state[parameter] = {"step": tensors[f"step.{name}"], **moments}


# Hidden states (tokens, d), weight (V, d), bias (V,) and soft cap.
LastLayer = tuple[Tensor, Tensor, Tensor, float | None]


def _last_layer(model: FLMModel, ids: Tensor, places: Tensor, attention_mask: Tensor | None) -> LastLayer:
    """What the predictions of masked diffusion at some `places` (rows, length) of `ids` are made of."""
    state, times = model.embed_tokens(ids), torch.zeros(len(ids), device=ids.device)
    arguments = dict(inputs_embeds=state, timesteps=times, attention_mask=attention_mask)
    hidden = model(**arguments, output_logits=False).last_hidden_state
    return hidden[places], *model.output_layer(), model.config.final_logit_softcapping


def log_ratio(numerator: Target, denominator: Target) -> Target:
    """log(numerator / denominator) of two predictions, given by their logarithms, within +-LARGEST_COST, which rare
    tokens would exceed."""
    return lambda part: (numerator(part) - denominator(part)).clamp_(-LARGEST_COST, LARGEST_COST)
