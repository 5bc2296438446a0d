"""The Trainer of flow language models."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from modeling_flm.checks_flm import LABELS_RULE
from modeling_flm.noise_flm import to_where_text_begins

from .checkpoints import RAW_WEIGHTS, discard, is_whole, last_whole_checkpoint
from .ema import EMA
from .flm_arguments import FLMTrainingArguments
from .noise import WithFixedNoise, draw_conditioning, draw_times_and_seeds, with_fixed_noise
from .publishing import PublishingMixin
from .sharding import sharded_by_blocks, whole

logger = logging.get_logger(__name__)

TAU_BINS = 5


class FLMTrainer(PublishingMixin, Trainer):
    """[`~transformers.Trainer`] for flow language models: trains [`FLMModel`] with L_FLM of arXiv 2602.16813.

    ```python
    args = FLMTrainingArguments("runs/flow", max_steps=1000, eval_strategy="steps")
    trainer = FLMTrainer(model, args, train_dataset=rows, eval_dataset=held_out, processing_class=tokenizer)
    trainer.train()
    ```

    * **Noise.** The time and the noise of an example depend only on the run's seed, the step and the example's place
      in the global batch (see [`draw_times_and_seeds`]). So gradient accumulation, several processes and a resumed
      run give the losses of the plain run, unless there is dropout, which only a resumed run repeats.
    * **Average.** An exponential moving average of the weights is evaluated, saved and pushed. A checkpoint folder is
      a model with the averaged weights; the raw weights, optimiser and random states, from which training resumes,
      lie beside it. With a PEFT model only the adapter is averaged and saved.
    * **Evaluation.** Each row has a fixed time and fixed noise. `eval_loss` is the mean over all scored positions, in
      nats per token; `eval_loss_tau_0.2_0.4` is that of the rows with tau in [0.2, 0.4). `compute_metrics` gets the
      rows' summed losses and numbers of scored positions as `predictions`, and their times tau as `label_ids`.
    * **Publishing.** `save_model` and `push_to_hub` write a model card. Pushes during training bring the card and the
      model's code, too; if one fails, training goes on with a warning.
    * **Resuming.** `train(resume_from_checkpoint=True)` starts from the last whole checkpoint, past unfinished ones.
    * **Sharding.** With `fsdp=True` weights, average and optimiser are sharded over the processes (docs/scaling.md).

    The arguments are those of [`~transformers.Trainer`], without `compute_loss_func`: override `compute_loss` instead.
    Data sets have a column `input_ids` and, optionally, `labels` (the ids by default; -100 where nothing is scored),
    `attention_mask` (0 at padding) and `conditioning_mask` (1 at given tokens). A collator may drop examples, but must
    not make several rows of one. For rows of different lengths it pads all columns: the one by default pads no labels.

    Raises:
        ValueError: if `args` is of another class, `compute_loss_func` is given, a collator makes more rows than it got
            examples, or masks or shifts the labels; when training starts, if the model is a flow map, which
            [`FMLMTrainer`] trains, or cannot be sharded as asked (see [`sharded_by_blocks`]).
        FloatingPointError: if a loss or a weight is not finite. The message names the step and the last whole
            checkpoint.
    """

    args: FLMTrainingArguments

    def __init__(self, model=None, args: FLMTrainingArguments | None = None, *, eval_dataset=None, **kwargs):
        args = args or FLMTrainingArguments(output_dir="tmp_trainer")
        if not isinstance(args, FLMTrainingArguments):
            raise ValueError(f"`args` must be FLMTrainingArguments, but are {type(args).__name__}.")
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("`compute_loss_func` would keep the labels from the model: override `compute_loss`.")
        if model is not None:
            _ready(model, args)
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: _fixed(dataset) for name, dataset in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = _fixed(eval_dataset)
        super().__init__(model=model, args=args, eval_dataset=eval_dataset, **kwargs)
        self._name_blank(self.model)
        self.ema: EMA | None = None
        self._labels_checked = False
        self._first_bad: torch.Tensor | None = None  # the first step whose loss is not finite, or inf
        self._evaluated: list[tuple[torch.Tensor, ...]] = []  # by batch: each row's summed loss, count and time
        self.trained_on: list[str] = []  # Hub names of the data sets, for the model card
        self.restored: int | None = None  # the step whose weights `load_best_model_at_end` put back
        self.add_callback(_FlowCallback(self))

    def call_model_init(self, trial=None):
        model = _ready(super().call_model_init(trial), self.args)
        self._name_blank(model)
        return model

    def _name_blank(self, model) -> None:
        """Tell the model which token is a blank. The Trainer itself sets the other special ids from the tokenizer."""
        mask_id = getattr(getattr(self, "processing_class", None), "mask_token_id", None)
        if model.config.mask_token_id is None and mask_id is not None and mask_id < model.config.vocab_size:
            model.config.mask_token_id = mask_id

    # -- times, noise and conditioning --------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """The micro-batches of one optimiser step, noised, and the number of positions that are scored in them."""
        return super().get_batch_samples(self._noised(epoch_iterator, num_batches), num_batches, device)

    def _noised(self, epoch_iterator, num_batches: int) -> Iterator[dict]:
        """Give each micro-batch the times and the noise of its places in the global batch."""
        per_device, processes = self._train_batch_size, self.accelerator.num_processes
        # The last step of an epoch may have fewer examples: they take the first places of a full global batch.
        global_batch_size = self.args.gradient_accumulation_steps * processes * per_device
        for micro, batch in enumerate(islice(epoch_iterator, num_batches)):
            batch = _with_labels(batch)
            if not self._labels_checked:  # of one batch: on an accelerator the host waits for it
                _check_labels(batch)
                self._labels_checked = True
            first = (micro * processes + self.accelerator.process_index) * per_device
            rows = _at_most(per_device, batch)
            yield self._draw(batch, first + np.arange(rows), global_batch_size)

    def _draw(self, batch: dict, places: np.ndarray, global_batch_size: int) -> dict:
        """Add times, noise seeds and conditioning to a batch; `places` (rows,) are its rows' in the global batch."""
        ids = batch["input_ids"]
        times, seeds = draw_times_and_seeds(self.args.seed, self.state.global_step, global_batch_size, places)
        batch["timesteps"] = torch.from_numpy(times).to(ids.device, non_blocking=True)
        batch["noise_seed"] = seeds  # a list, since generators take their seeds from the host
        if self.args.conditioning_rate > 0:
            # Drawn for the longest row there can be, so that the draw does not depend on the padding.
            longest = max(ids.shape[1], self.model.config.max_position_embeddings)
            drawn = draw_conditioning(seeds, longest, self.args.conditioning_rate)[:, : ids.shape[1]]
            kept = torch.from_numpy(drawn).to(ids.device, non_blocking=True)
            labels = batch["labels"].masked_fill(to_where_text_begins(kept, batch.get("attention_mask")), -100)
            # A row of which nothing would be scored is trained without given tokens.
            batch["labels"] = labels.where((labels != -100).any(1, keepdim=True), batch["labels"])
        return batch

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._first_bad is None:
            self._first_bad = torch.full((), torch.inf, device=loss.device)
        # Kept on the device and read only when an error is raised: the host never waits for it.
        step = torch.where(loss.isfinite(), torch.inf, self.state.global_step + 1)
        self._first_bad = torch.minimum(self._first_bad, step)
        return loss

    # -- averaged weights ---------------------------------------------------------------------------------------------

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """A context in which the model has the averaged weights, if there are any."""
        with self.ema.applied() if self.ema is not None else nullcontext():
            yield

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model with its averaged weights, for `from_pretrained`; called by a user, also its model card."""
        with self.averaged_weights():
            super().save_model(output_dir, _internal_call)
        if not _internal_call:
            self.write_card(Path(output_dir or self.args.output_dir))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.restored = self.state.best_global_step
        if self.ema is not None:
            self.ema.load(self.ema.parameters)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Train, from a checkpoint folder if one is named; True names the last whole one in the output directory.

        Raises:
            ValueError: if the checkpoint is not whole or has no state of the optimiser, or True is given and there is
                none.
        """
        if resume_from_checkpoint is True:
            last = last_whole_checkpoint(self.args.output_dir)
            if last is None:
                raise ValueError(f"there is no whole checkpoint in {self.args.output_dir} to resume from.")
            resume_from_checkpoint = str(last)
        elif resume_from_checkpoint and not is_whole(Path(resume_from_checkpoint)):
            raise ValueError(f"{resume_from_checkpoint} is not a whole checkpoint: it is missing or was cut off.")
        if resume_from_checkpoint and not any(Path(resume_from_checkpoint).glob("optimizer*")):
            raise ValueError(
                f"{resume_from_checkpoint} has no state of the optimiser to go on with: `save_only_model` leaves it "
                "out."
            )
        self.ema, self._first_bad, self.restored = None, None, None  # forget an earlier call
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _prepare_for_training(self, *args, **kwargs):
        with sharded_by_blocks(self.model, self.accelerator) if self.is_fsdp_enabled else nullcontext():
            return super()._prepare_for_training(*args, **kwargs)

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:  # the run was resumed at its end, where the Trainer would take one more step
            self.control.should_training_stop = True

    def _save_checkpoint(self, model, trial) -> None:
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise self._not_finite("a weight is not finite")
        if self.args.should_save:
            discard(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self.averaged_weights() if self.is_fsdp_enabled else nullcontext():  # of a sharded model it saves weights
            super()._save_optimizer_and_scheduler(output_dir)
        if self.ema is not None:
            weights = {f"raw.{name}": p.detach() for name, p in self.ema.parameters.items()}
            weights |= {f"ema.{name}": average for name, average in self.ema.average.items()}
            for name, tensor in weights.items():
                tensor = whole(tensor)
                if self.args.should_save:
                    weights[name] = tensor.contiguous().cpu()
            if self.args.should_save:
                save_file(weights, Path(output_dir, RAW_WEIGHTS))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # `trainer_state.json`, written next, stands for all processes' files

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint, RAW_WEIGHTS)
        if path.exists():
            weights = load_file(path)
            ema = EMA(model or self.model, self.args.ema_decay)
            ema.load({name.removeprefix("ema."): x for name, x in weights.items() if name.startswith("ema.")})
            ema.write({name.removeprefix("raw."): x for name, x in weights.items() if name.startswith("raw.")})
            self.ema = ema if self.args.ema_decay > 0 else None

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """The evaluation data, with a fixed time and noise seed for each row (see [`with_fixed_noise`])."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = _fixed(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        return super().get_test_dataloader(_fixed(test_dataset))

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        self._evaluated = []
        # Forked, since data loaders draw from the global generator, and would change the dropout of later steps.
        with torch.random.fork_rng(devices=[]), self.averaged_weights():
            output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        if not self._evaluated:
            without = ", or too few for a batch (`dataloader_drop_last`)" if self.args.dataloader_drop_last else ""
            raise ValueError(f"there is nothing to evaluate: the data set has no rows{without}.")
        losses, counts, times = (torch.cat(parts).cpu().numpy() for parts in zip(*self._evaluated, strict=True))
        self._evaluated = []
        if not counts.sum():
            raise ValueError("there is nothing to evaluate: all tokens are given or padding.")
        edges = np.linspace(0, 1, TAU_BINS + 1)
        bins = np.minimum(np.digitize(times, edges) - 1, TAU_BINS - 1)
        output.metrics[f"{metric_key_prefix}_loss"] = float(losses.sum() / counts.sum())
        for b in np.unique(bins[counts > 0]):
            name = f"{metric_key_prefix}_loss_tau_{edges[b]:.1f}_{edges[b + 1]:.1f}"
            output.metrics[name] = float(losses[bins == b].sum() / counts[bins == b].sum())
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss of a batch, the rows' summed losses and numbers of scored positions, and the rows' times."""
        inputs = self._prepare_inputs(_with_labels(inputs))
        _at_most(self.args.eval_batch_size, inputs)
        count = inputs["labels"].ne(-100).sum().clamp(min=1)  # with a count, a batch may score nothing
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs, num_items_in_batch=count)
        per_example = output.token_losses.sum(1), output.scored.sum(1)
        evaluated = (*per_example, output.timesteps)
        # With several processes the last batch may repeat rows: `gather_for_metrics` drops them.
        several = self.accelerator.num_processes > 1
        self._evaluated.append(self.accelerator.gather_for_metrics(evaluated) if several else evaluated)
        return output.loss, per_example, output.timesteps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for name, value in logs.items():
            if name.endswith("loss") and not math.isfinite(value):
                raise self._not_finite(f"`{name}` is {value}")
        super().log(logs, start_time)

    def _not_finite(self, what: str) -> FloatingPointError:
        last = last_whole_checkpoint(self.args.output_dir)
        first = math.inf if self._first_bad is None else self._first_bad.item()
        since = "" if first == math.inf else f" The first such loss is that of the batch of step {first:.0f}."
        return FloatingPointError(
            f"{what} at step {self.state.global_step}: training stopped.{since} The last whole checkpoint is "
            f"{last or 'none'}; lower the learning rate or look at the data from there on."
        )

    @torch.no_grad()
    def sample(self) -> None:
        """Draw `num_samples` samples with each of `sample_num_steps`, print them and append them to `samples.jsonl`.

        All processes draw the same samples, since sharded parameters need every process; the first one writes them.
        """
        model = self.accelerator.unwrap_model(self.model)
        for steps in self.args.sample_num_steps:
            ids = model.generate(num_steps=steps, num_return_sequences=self.args.num_samples, seed=self.args.seed)
            if not self.is_world_process_zero():
                continue
            texts = ids.tolist() if self.processing_class is None else self.processing_class.batch_decode(ids)
            record = {"step": self.state.global_step, "num_steps": steps, "samples": texts}
            with open(Path(self.args.output_dir, "samples.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            for text in texts:
                print(f"\n[after {self.state.global_step} training steps, {steps} sampling steps] {text}", flush=True)


class _FlowCallback(TrainerCallback):
    """Updates the trainer's moving average and draws its samples."""

    def __init__(self, trainer: FLMTrainer):
        self.trainer = trainer
        self.sampled_after: int | None = None  # the last step at which samples were drawn

    def on_train_begin(self, args, state, control, **kwargs):
        self.sampled_after = None
        if args.ema_decay > 0 and self.trainer.ema is None:
            self.trainer.ema = EMA(self.trainer.accelerator.unwrap_model(self.trainer.model), args.ema_decay)

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.ema is not None:
            self.trainer.ema.update(state.global_step + 1)

    def on_evaluate(self, args, state, control, **kwargs):
        if args.num_samples > 0 and state.global_step != self.sampled_after:  # once for all data sets
            self.sampled_after = state.global_step
            with self.trainer.averaged_weights():
                self.trainer.sample()


def _ready(model, args: FLMTrainingArguments):
    """Add the learned loss weight to the model, if the arguments ask for it."""
    if args.learned_loss_weighting:
        model.add_loss_weighting()
    return model


def _fixed(dataset) -> Dataset | IterableDataset | torch.utils.data.IterableDataset:
    """The data set with fixed times and noise. Streams, and data sets with a column `noise_seed`, stay as they are."""
    if isinstance(dataset, (IterableDataset, torch.utils.data.IterableDataset)):
        return dataset
    if not isinstance(dataset, Dataset):
        return WithFixedNoise(dataset)
    return dataset if "noise_seed" in (dataset.column_names or []) else with_fixed_noise(dataset)


def _check_labels(batch: dict) -> None:
    """Refuse labels that are not the ids, such as a collator of masked or of shifted language models makes."""
    labels, ids = batch["labels"], batch["input_ids"]
    if ((labels != ids) & (labels != -100)).any():
        raise ValueError(f"{LABELS_RULE} DataCollatorForLanguageModeling needs `mlm=False`.")


def _at_most(examples: int, batch: dict) -> int:
    """The number of rows of a batch. A `ValueError` if it is above `examples`, those that the collator got at most."""
    rows = len(batch["input_ids"])
    if rows > examples:
        raise ValueError(
            f"the collator made {rows} rows of at most {examples} examples, but noise and times are given by example: "
            "split examples in the data set (`dataset.map(..., batched=True)`), not in the collator."
        )
    return rows


def _with_labels(batch: dict) -> dict:
    """A copy of the batch with `input_ids` and `labels`; labels are -100 at padding and at given tokens."""
    batch = dict(batch)
    if "input_ids" not in batch:
        batch["input_ids"] = batch["labels"]
    if "labels" not in batch:
        batch["labels"] = batch["input_ids"]
    if "attention_mask" in batch:
        batch["labels"] = batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)
    if "conditioning_mask" in batch:
        batch["labels"] = batch["labels"].masked_fill(batch["conditioning_mask"] != 0, -100)
    return batch
