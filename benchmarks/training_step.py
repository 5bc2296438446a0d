"""Time and peak memory of one training step, in three ways that share the transformer.

    python benchmarks/training_step.py [--vocab-size 30522 --length 128 --batch-size 32 ...]

    ours         FLMModel(labels=...): embedded noise, loss in chunks
    dense        the same loss as the paper writes it: noise and state of size batch x length x V, all logits at once
    masked LM    what a masked language model of this transformer costs: no noise, all logits at once

A step is forward, backward and AdamW. The three run in turn, in one process; times are medians and their ratios to the
masked LM. Memory is the growth of the resident set over the loaded model, each way in a process of its own; on a GPU,
what the allocator held at most.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from modeling_flm import FLMConfig, FLMModel
from modeling_flm.flow_flm import interpolate, softcap


def ours(model: FLMModel, ids: torch.Tensor) -> torch.Tensor:
    return model(labels=ids).loss


def dense(model: FLMModel, ids: torch.Tensor) -> torch.Tensor:
    one_hot = F.one_hot(ids, model.config.vocab_size).float()
    tau = (torch.rand((), device=ids.device) + torch.arange(len(ids), device=ids.device) / len(ids)) % 1
    state = interpolate(torch.randn_like(one_hot), one_hot, model.clock.t(tau))
    log_prob = all_logits(model, state @ model.embed_tokens.weight, tau).log_softmax(-1)
    return -(one_hot * log_prob).sum(-1).mean()


def masked_lm(model: FLMModel, ids: torch.Tensor) -> torch.Tensor:
    masked = torch.where(torch.rand(ids.shape, device=ids.device) < 0.5, 0, ids)
    tau = torch.ones(len(ids), device=ids.device)
    return F.cross_entropy(all_logits(model, model.embed_tokens(masked), tau).flatten(0, 1), ids.flatten())


def all_logits(model: FLMModel, state: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    return softcap(model.lm_head(model.denoise(state, tau)), model.config.final_logit_softcapping).float()


WAYS = {"ours": ours, "dense": dense, "masked LM": masked_lm}


def build(options: argparse.Namespace) -> tuple[FLMModel, torch.optim.Optimizer, torch.Tensor]:
    config = FLMConfig(
        vocab_size=options.vocab_size,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden_size // 64,
        intermediate_size=4 * options.hidden_size,
        max_position_embeddings=options.length,
    )
    torch.manual_seed(0)
    model = FLMModel(config).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, options.vocab_size, (options.batch_size, options.length), device=options.device)
    return model, optimizer, ids


def step(way: str, model: FLMModel, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> None:
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        loss = WAYS[way](model, ids)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def times(options: argparse.Namespace) -> dict[str, list[float]]:
    model, optimizer, ids = build(options)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(options.repeats + 1):
        for way in WAYS:
            start = time.perf_counter()
            step(way, model, optimizer, ids)
            if ids.is_cuda:
                torch.cuda.synchronize()
            if repeat > 0:  # the first round warms up
                seconds[way].append(time.perf_counter() - start)
    return seconds


def peak_memory(options: argparse.Namespace) -> float:
    """GiB that two steps of `options.memory_of` need beyond the loaded model."""
    model, optimizer, ids = build(options)
    if ids.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for _ in range(2):
        step(options.memory_of, model, optimizer, ids)
    if ids.is_cuda:
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=30_522)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory-of", choices=WAYS, help="only print the peak memory of one way, in GiB")
    options = parser.parse_args()
    if options.memory_of:
        print(f"{peak_memory(options):.3f}")
        return
    memory = {
        way: float(subprocess.check_output([sys.executable, *sys.argv, "--memory-of", way], text=True)) for way in WAYS
    }
    seconds = times(options)
    tokens = options.batch_size * options.length
    print(
        f"V {options.vocab_size:,}, {options.batch_size} x {options.length} = {tokens:,} tokens, "
        f"d {options.hidden_size}, {options.layers} blocks, {options.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| way | s / step (median) | min - max | x masked LM | tokens / s | peak GiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    baseline = statistics.median(seconds["masked LM"])
    for way, values in seconds.items():
        median = statistics.median(values)
        print(
            f"| {way} | {median:.3f} | {min(values):.3f} - {max(values):.3f} | {median / baseline:.2f} | "
            f"{tokens / median:,.0f} | {memory[way]:.2f} |"
        )


if __name__ == "__main__":
    main()
