"""Loads saved models as their users do, in a process that has nothing of this project but their directories.

Run as `python -I fresh_process.py DIRECTORY RESULTS THREADS`: DIRECTORY holds the models `flm` and `fmlm`, which are
saved again beside it, from their own code, as `flm-again` and `fmlm-again`, and removed.
"""

import importlib.abc
import shutil
import sys
from pathlib import Path

AUTO_CLASSES = ("AutoModel", "AutoModelForCausalLM")
NOT_HERE = {"modeling_flm", "trainers", "evaluation", "hub_cards"}


class NotHere(importlib.abc.MetaPathFinder):
    """Makes the packages of this project impossible to import, installed or not."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in NOT_HERE:
            raise ModuleNotFoundError(name)


def examine(model) -> dict:
    """What a model gives, as tensors, text and numbers."""
    import torch

    ids = torch.arange(20).reshape(2, 10) % model.config.vocab_size
    tau = torch.linspace(0, 1, 11)
    output = model(labels=ids, noise_seed=torch.tensor([3, 4]))
    return {
        "class": type(model).__name__,
        "config": type(model.config).__name__,
        "token_losses": output.token_losses,
        "times": output.timesteps,
        "samples": model.generate(seed=5, num_return_sequences=3),
        "clock": torch.stack([model.clock.t(tau), model.clock.tau(tau)]),
        "num_steps": model.generation_config.num_steps,
        "can_generate": model.can_generate(),
        "dtype": str(model.dtype),
        "training": model.training,
    }


def main(directory: Path, results: Path, threads: int) -> None:
    sys.meta_path.insert(0, NotHere())
    import torch
    import transformers

    torch.set_num_threads(threads)
    found, models = {}, {}

    def load(case: str, path: Path, auto: str = "AutoModel", **options):
        model, info = getattr(transformers, auto).from_pretrained(
            path, trust_remote_code=True, output_loading_info=True, **options
        )
        found[case] = examine(model) | {"loading": {key: sorted(value) for key, value in info.items()}}
        found[case]["module"] = type(model).__module__.split(".")[0]
        models[path.name] = model
        return model

    for name in ("flm", "fmlm"):
        path = directory / name
        for auto in AUTO_CLASSES:
            load(f"{name} {auto}", path, auto)
        load(f"{name} bfloat16", path, dtype=torch.bfloat16)
        load(f"{name} device_map=auto", path, device_map="auto")
        model = load(f"{name} device_map=cpu", path, device_map="cpu")
        again = directory / f"{name}-again"
        model.save_pretrained(again)
        shutil.rmtree(path)
        config = transformers.AutoConfig.from_pretrained(again, trust_remote_code=True)
        found[f"{name} AutoConfig"] = {"class": type(config).__name__, "values": config.to_dict()}
        for auto in AUTO_CLASSES:
            load(f"{name} again {auto}", again, auto)
    # Each repository's code is another module, with classes of its own.
    flow, flow_map = models["flm-again"], models["fmlm-again"]
    guided = flow_map.generate(sampler="euler", guidance_scale=2.0, guidance_model=flow, seed=5)
    found["guidance"] = {"samples": guided}
    torch.save(found, results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
