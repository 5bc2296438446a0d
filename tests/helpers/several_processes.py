"""What test_distributed.py runs by one process, and by several under torchrun: `several_processes.py FOLDER whole`, or
`sharded`, with parameters sharded by FSDP2. With a checkpoint besides, the plain case alone goes on from there."""

import gc
import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from training import by_step, counting_rows, fresh_model, history, make_distiller, make_trainer, padded_rows

RESUMED_FROM = 2
GLOBAL_BATCH_SIZE = 8
CASES = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2, "train_dataset": counting_rows(64)},
    "padded and conditional": {"train_dataset": padded_rows(32), "conditioning_rate": 0.5},
    "weighted": {"learned_loss_weighting": True},
    "streamed": {
        "train_dataset": counting_rows(64).to_iterable_dataset(),
        "eval_dataset": counting_rows(11, start=40).to_iterable_dataset(num_shards=3),
    },
    "semigroup": {"objective": "semigroup"},
    "lagrangian": {"objective": "lagrangian", "gradient_accumulation_steps": 2},
    "eulerian": {"objective": "eulerian", "conditioning_rate": 0.5},
    "averaged targets": {"objective": "semigroup", "ema_target": True},
    "without a teacher": {"objective": "lagrangian", "teacher": None, "gradient_accumulation_steps": 2},
    "the best": {"load_best_model_at_end": True},
    "evaluated between checkpoints": {"eval_steps": 1, "learning_rate": 3e-2},
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    "compiled map": {"objective": "semigroup", "torch_compile": True, "torch_compile_backend": "aot_eager"},
}
LOGGED = ("loss", "grad_norm", "loss_diagonal", "loss_off_diagonal", "eval_loss", "eval_loss_tau_0.0_0.2")
COMPILED = ("compiled", "compiled map")  # with whole parameters only


def run(folder: Path, case: str, batch_size: int, resume: str | None = None, **changes) -> dict:
    """Train four steps, with evaluations and checkpoints; what was logged."""
    folder = folder / case
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    sizes = {"per_device_train_batch_size": batch_size, "per_device_eval_batch_size": batch_size}
    # Adam divides rounding errors by gradients that are nearly zero: not with this epsilon.
    others = {"num_samples": 1, "sample_num_steps": [2], "adam_epsilon": 1e-4}
    seed, settings = 1 if resume else 0, options | sizes | others | CASES[case] | changes
    if "objective" in settings:
        trainer = make_distiller(folder, seed, **settings)
    else:
        trainer = make_trainer(folder, fresh_model(seed), **settings)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    return {name: by_step(trainer, name) for name in LOGGED} | {
        "processes": trainer.accelerator.num_processes,
        "sharded": all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters()),
        "steps": len(history(trainer, "loss")),
    }


def run_all(folder: Path, batch_size: int, **changes) -> dict:
    """All cases, and the plain one resumed from its checkpoint."""
    cases = [case for case in CASES if case not in COMPILED or "fsdp" not in changes]
    results = {case: run(folder, case, batch_size, **changes) for case in cases}
    checkpoint = str(folder / "plain" / f"checkpoint-{RESUMED_FROM}")
    results["resumed"] = run(folder / "resumed", "plain", batch_size, checkpoint, **changes)
    return json.loads(json.dumps(results))


def let_accelerate_shard_on_a_cpu() -> None:
    """accelerate passes over FSDP on a CPU, though nothing in it or in torch needs an accelerator: `AcceleratorState`
    asks for one before it takes the plugin up. Here it takes it up, in the same way."""
    plain = AcceleratorState.__init__

    def with_plugin(self, *args, fsdp_plugin=None, **kwargs):
        plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = with_plugin


if __name__ == "__main__":
    gc.freeze()  # or each training looks through all that was imported
    folder, layout, *checkpoint = sys.argv[1:]
    folder, changes = Path(folder), {"ddp_backend": "gloo"}
    if layout == "sharded":
        let_accelerate_shard_on_a_cpu()
        changes["fsdp"] = True
    batch_size = GLOBAL_BATCH_SIZE // int(os.environ["WORLD_SIZE"])
    if checkpoint:
        results = run(folder, "plain", batch_size, *checkpoint, **changes)
    else:
        results = run_all(folder, batch_size, **changes)
        results["bf16"] = run(folder / "bf16", "averaged targets", batch_size, bf16=True, **changes)
    if dist.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()
