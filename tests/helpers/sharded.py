"""A training loop of one's own over parameters sharded by `fully_shard` (FSDP2): what test_sharded.py runs, in one
process as it is, in two under torchrun."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from training import counting_rows, fresh_model

STEPS, BATCH = 4, 8


def sharded(model):
    """The model with its blocks, and what is around them, sharded over all processes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "generate")
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def train(model, rank: int = 0, processes: int = 1) -> tuple[list[float], dict, torch.Tensor]:
    """The losses of a few steps on each process's share of the rows, averaged; the weights; what the model writes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4)
    ids = torch.tensor(counting_rows(BATCH * STEPS)["input_ids"]).view(STEPS, processes, -1, 16)
    losses = []
    for step in range(STEPS):
        own = range(rank * BATCH // processes, (rank + 1) * BATCH // processes)
        times = torch.tensor([(i + 0.5) / BATCH for i in own])
        loss = model(labels=ids[step, rank], timesteps=times, noise_seed=[BATCH * step + i for i in own]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if processes > 1:
            dist.all_reduce(mean)
        losses.append(mean.item() / processes)
    drawn = model.eval().generate(num_steps=2, num_return_sequences=2, seed=0)
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return losses, weights, drawn


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    results = train(sharded(fresh_model(num_loops=2)), dist.get_rank(), dist.get_world_size())
    if dist.get_rank() == 0:
        torch.save(results, Path(sys.argv[1]))
    dist.destroy_process_group()
