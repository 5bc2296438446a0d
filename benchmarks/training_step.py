"""Time and peak memory of a training step, in ways that share the transformer.

    python -m benchmarks.training_step             # or one size: python -m benchmarks.training_step lm1b-32

    ours          FLMModel(labels=...): embedded noise, loss in chunks
    no caps       the same, of a model whose attention scores and logits are not soft-capped
    dense         the same loss as the paper writes it: noise and state of size batch x length x V, all logits at once
    masked LM     what a masked language model of this transformer costs, as those of transformers are: no noise, no
                  caps, attention by torch's sdpa, all logits at once
    distillation  FMLMTrainer with the paper's split, semigroup objective; compared with ours

Memory is what two steps need beyond the loaded model, gradients and optimiser states included. Useful products are
those of the masked-LM step, which all losses have in common.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from modeling_flm import FLMConfig, FLMModel, FMLMConfig, FMLMModel
from modeling_flm.flow_flm import interpolate
from trainers import FLMTrainer, FLMTrainingArguments, FMLMTrainer, FMLMTrainingArguments

from .results import ROOT, Row, measure_parts, page, sections
from .timing import DEVICE, compared, growth, in_its_own_process, in_turn, matmul_flops, transformer

RESULTS = ROOT / "benchmarks" / "training_step.json"
WIDTH, BLOCKS = 512, 8
TURNS = 3


@dataclass(frozen=True)
class Size:
    vocab_size: int
    length: int
    batch_size: int

    @property
    def tokens(self) -> int:
        return self.batch_size * self.length

    def __str__(self) -> str:
        return f"V {self.vocab_size:,}, {self.batch_size} x {self.length:,} = {self.tokens:,} tokens"

    def config(self) -> dict:
        return transformer(self.vocab_size, self.length, WIDTH, BLOCKS)


SIZES = {
    **{f"lm1b-{batch}": Size(30_522, 128, batch) for batch in (8, 32, 64)},
    **{f"owt-{batch}": Size(50_257, 1024, batch) for batch in (1, 4)},
}


def ours(model: FLMModel, ids: Tensor) -> Tensor:
    return model(labels=ids).loss


def dense(model: FLMModel, ids: Tensor) -> Tensor:
    one_hot = F.one_hot(ids, model.config.vocab_size).float()
    tau = (torch.rand((), device=ids.device) + torch.arange(len(ids), device=ids.device) / len(ids)) % 1
    state = interpolate(torch.randn_like(one_hot), one_hot, model.clock.t(tau))
    log_prob = _all_logits(model, model.embed_state(state), tau).log_softmax(-1)
    return -(one_hot * log_prob).sum(-1).mean()


def masked_lm(model: FLMModel, ids: Tensor) -> Tensor:
    masked = torch.where(torch.rand(ids.shape, device=ids.device) < 0.5, 0, ids)
    tau = torch.ones(len(ids), device=ids.device)
    return F.cross_entropy(_all_logits(model, model.embed_tokens(masked), tau).flatten(0, 1), ids.flatten())


def _all_logits(model: FLMModel, state: Tensor, tau: Tensor) -> Tensor:
    return model.logits(model.denoise(state, tau)).float()


LOSSES = {"ours": ours, "no caps": ours, "dense": dense, "masked LM": masked_lm}
WITHOUT_CAPS = {"attn_logit_softcapping": None, "final_logit_softcapping": None}


def step_of_a_flow(size: Size, way: str) -> Callable[[], None]:
    """A training step with one of the losses."""
    torch.manual_seed(0)
    changes = WITHOUT_CAPS if way in ("no caps", "masked LM") else {}
    model = FLMModel(FLMConfig(**size.config() | changes)).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, size.vocab_size, (size.batch_size, size.length), device=DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            loss = LOSSES[way](model, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def trainer(kind: str, size: Size, folder: str, micro_batches: int = 1) -> FLMTrainer:
    """That of a "flow", or of a "map" and a teacher of the same size, with the data of one step and its optimiser."""
    torch.manual_seed(0)
    rows = torch.randint(0, size.vocab_size, (micro_batches * size.batch_size, size.length)).tolist()
    data = {"train_dataset": Dataset.from_dict({"input_ids": rows})}
    settings = dict(per_device_train_batch_size=size.batch_size, gradient_accumulation_steps=micro_batches)
    settings |= dict(report_to="none", use_cpu=DEVICE == "cpu", bf16=DEVICE == "cuda", ema_decay=0)
    flow = FLMModel(FLMConfig(**size.config()))
    if kind == "flow":
        made = FLMTrainer(flow, FLMTrainingArguments(folder, **settings), **data)
    else:
        student = FMLMModel(FMLMConfig(**size.config()))
        made = FMLMTrainer(student, flow, FMLMTrainingArguments(folder, **settings), **data)
    made.create_optimizer()
    made.current_gradient_accumulation_steps = micro_batches
    return made


def step_of_a_map(size: Size, folder: str) -> Callable[[], None]:
    made = trainer("map", size, folder)
    batch = next(iter(made.get_train_dataloader()))

    def step() -> None:
        (drawn,), _ = made.get_batch_samples(iter([dict(batch)]), 1, made.args.device)
        made.training_step(made.model, drawn)
        made.optimizer.step()
        made.optimizer.zero_grad()

    return step


def memory(size: Size, way: str) -> float:
    """GiB that two steps need beyond the loaded model."""
    with tempfile.TemporaryDirectory() as folder:
        step = step_of_a_map(size, folder) if way == "distillation" else step_of_a_flow(size, way)
        return growth(lambda: [step() for _ in range(2)])


def measure(name: str) -> list[Row]:
    size = SIZES[name]
    with tempfile.TemporaryDirectory() as folder:
        ways = {way: step_of_a_flow(size, way) for way in LOSSES} | {"distillation": step_of_a_map(size, folder)}
        with FlopCounterMode(display=False) as counter:
            ways["masked LM"]()
        peak = matmul_flops()
        seconds = in_turn(ways, TURNS)
    del ways
    masked, flow = (statistics.median(seconds[way]) for way in ("masked LM", "ours"))

    def more(way: str, median: float) -> Row:
        of_a_flow = way != "distillation"
        row: Row = {"x masked LM": median / masked if of_a_flow else None}
        row |= {"x ours": None if of_a_flow else median / flow, "tokens a second": size.tokens / median}
        if of_a_flow and DEVICE == "cpu":
            row["utilisation"] = counter.get_total_flops() / median / peak
        return row | {"peak GiB": in_its_own_process(memory, size, way)}

    return compared(seconds, more)


ABOUT = f"""
# A training step

`python -m benchmarks.training_step` measures everything here anew. Forward, backward and AdamW, float32 on
a CPU; d {WIDTH}, {BLOCKS} blocks; median of {TURNS}, run in turn. Memory: beyond the loaded model.
Utilisation: useful products per second against those of one large product.
"""


def report(results: dict[str, list[Row]]) -> str:
    return page(ABOUT, *sections(results, {name: str(size) for name, size in SIZES.items()}))


if __name__ == "__main__":
    measure_parts({name: partial(measure, name) for name in SIZES}, RESULTS, report)
