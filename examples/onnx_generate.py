"""Generate text with an exported flow map, by onnxruntime, numpy and tokenizers: without torch or transformers.

    flm export hub_cards/fmlm-english-small --output exported
    python examples/onnx_generate.py exported --num-steps 4 --seed 0
    python examples/onnx_generate.py exported --prompt "In the beginning" --count 3

A seed gives the same ids as `model.generate`, since `white_noise` draws the numbers that torch draws on a CPU.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class FlowMap:
    """An exported flow map.

    ```python
    flow_map = FlowMap("exported")
    ids = flow_map.generate(seeds=[0, 1], num_steps=1)  # (2, length)
    ```

    Args:
        folder (`str` or `Path`): the folder that `flm export` wrote.
        threads (`int`): number of threads that compute; 0 for one per core.
    """

    def __init__(self, folder: str | Path, threads: int = 0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        path = str(Path(folder) / "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.about = self.session.get_modelmeta().custom_metadata_map
        self.steps = json.loads(self.about["steps"])
        self.length, self.refine_fraction = int(self.about["length"]), float(self.about["refine_fraction"])
        shapes = {entry.name: entry.shape for entry in self.session.get_inputs()}
        self.state_width, self.noise_width = shapes["state"][2], shapes["noise"][2]

    def generate(
        self,
        seeds: list[int],
        num_steps: int = 1,
        input_ids: np.ndarray | None = None,
        given: np.ndarray | None = None,
        length: int | None = None,
        refine_steps: int = 0,
    ) -> np.ndarray:
        """Generate a sequence for each seed. Returns ids (batch, length).

        Args:
            seeds (`list[int]`): the seed of each sequence, in [0, 2**64).
            num_steps (`int`): number of steps (evaluations of the network), one of those that were exported.
            input_ids (`np.ndarray`, *optional*): (P,) ids of a prompt, the beginning of every sequence.
            given (`np.ndarray`, *optional*): (P,) bool, which of them to keep; the others are filled in. Default: all.
            length (`int`, *optional*): ids per sequence, with the prompt. Default: the model's own.
            refine_steps (`int`): number of refinements after these steps. Each writes the least certain tokens again,
                given the others: a share `refine_fraction` of them at first, then fewer, as `model.generate` does.
        """
        if str(num_steps) not in self.steps:
            raise ValueError(f"exported were {', '.join(self.steps)} steps, not {num_steps} (flm export --num-steps).")
        length = length or self.length
        if not 1 <= length <= self.length:
            raise ValueError(f"`length` is {length}, but must lie in [1, {self.length}].")
        if not seeds:
            raise ValueError("`seeds` are none, but each sequence has one.")
        if input_ids is not None and len(input_ids) > length:
            raise ValueError(f"the prompt has {len(input_ids)} ids, but a sequence has {length}.")
        ids, kept = np.zeros((len(seeds), length), np.int64), np.zeros((len(seeds), length), bool)
        if input_ids is not None:
            ids[:, : len(input_ids)] = input_ids
            kept[:, : len(input_ids)] = True if given is None else given
        state = np.zeros((len(seeds), length, self.state_width), np.float32)
        drawn = 0  # how many times noise was, with gamma 0 only once by the steps

        def run(row: list[float], state: np.ndarray, ids: np.ndarray, kept: np.ndarray) -> list[np.ndarray]:
            nonlocal drawn
            noise = np.zeros((len(seeds), length, self.noise_width), np.float32)
            if row[0] > 0:
                # As in `generate`, later draws have one number more per position: other samplers need it for tokens.
                width = self.noise_width + (drawn > 0)
                rows = [white_noise(step_seed(seed, drawn), self.length, width)[:length] for seed in seeds]
                noise, drawn = np.stack(rows)[..., : self.noise_width], drawn + 1
            step = np.array(row, np.float32)
            feed = {"state": state, "noise": noise, "input_ids": ids, "given": kept, "step": step}
            return self.session.run(None, feed)

        nothing = state
        for row in self.steps[str(num_steps)]:
            tokens, state, confidence = run(row, state, ids, kept)
        free = (~kept).sum(1, keepdims=True)
        for number in range(refine_steps):
            share = np.float32(self.refine_fraction * (1 - number / refine_steps))
            count = np.ceil(free.astype(np.float32) * share)  # in float32, as torch does
            order = np.where(kept, np.inf, confidence).argsort(1, kind="stable").argsort(1)
            again = (order < count) & ~kept
            tokens, _, new = run([1, 0, 0, 0, 0], nothing, tokens, ~again)
            confidence = np.where(again, new, confidence)
        return tokens


def white_noise(seed: int, length: int, width: int) -> np.ndarray:
    """Standard normal numbers (length, width), float32, as torch's CPU generator draws them with this seed.

    The generator is a Mersenne Twister. Sixteen uniform numbers, eight u and then eight v, make sixteen normal ones by
    the Box-Muller transform: first sqrt(-2 log(1 - u)) cos(2 pi v), then the same with sin. If the size is no multiple
    of sixteen, the last sixteen numbers are made again, of new uniform ones.
    """
    size = length * width
    if size < 16:
        raise ValueError(f"torch draws fewer than 16 numbers in another way, and here are {size}.")
    twister = np.random.RandomState(seed % 2**32)
    uniform = _uniform(twister, size)
    whole = size // 16 * 16
    numbers = np.empty(size, np.float32)
    numbers[:whole] = _box_muller(uniform[:whole].reshape(-1, 16)).reshape(-1)
    if whole < size:
        numbers[-16:] = _box_muller(_uniform(twister, 16)[None])[0]
    return numbers.reshape(length, width)


def _uniform(twister: np.random.RandomState, size: int) -> np.ndarray:
    """Uniform numbers in [0, 1), (size,), of 24 random bits each."""
    bits = twister.randint(0, 2**32, size, dtype=np.uint32) & np.uint32(2**24 - 1)
    return bits.astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """Turn uniform numbers (n, 16) into normal ones (n, 16)."""
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - uniform[:, :8]))
    angle = np.float32(2 * np.pi) * uniform[:, 8:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's noise: the sequence's own in the first, a hash of it and the step later (SplitMix64)."""
    return seed if step == 0 else _mix((_mix(seed % 2**64) + step * 0x9E3779B97F4A7C15) % 2**64)


def _mix(number: int) -> int:
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write text with an exported flow map, by onnxruntime.")
    parser.add_argument("folder", help="what `flm export` wrote")
    parser.add_argument("--num-steps", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--refine-steps", type=int, default=0, help="refinements after them (default: %(default)s)")
    parser.add_argument("--prompt", help="text that every sample begins with; its blanks (<mask>) are filled in")
    parser.add_argument("--count", type=int, default=1, help="samples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample (default: %(default)s)")
    options = parser.parse_args()
    flow_map, tokenizer = FlowMap(options.folder), Tokenizer.from_file(str(Path(options.folder, "tokenizer.json")))
    ids = given = None
    if options.prompt:
        bos, blank = flow_map.about["bos_token_id"], flow_map.about["mask_token_id"]
        prompt = tokenizer.encode(options.prompt, add_special_tokens=False).ids
        if bos and prompt[:1] != [int(bos)]:
            prompt = [int(bos), *prompt]  # as rows of training text begin
        ids = np.array(prompt)
        given = ids != int(blank) if blank else None
    before = time.perf_counter()
    seeds = list(range(options.seed, options.seed + options.count))
    tokens = flow_map.generate(seeds, options.num_steps, ids, given, refine_steps=options.refine_steps)
    seconds = time.perf_counter() - before
    for text in tokenizer.decode_batch(tokens.tolist()):
        print(text.strip(), end="\n\n")
    evaluations = options.num_steps + options.refine_steps
    print(f"{tokens.size} tokens in {1000 * seconds:.0f} ms, {evaluations} evaluations of the network.")


if __name__ == "__main__":
    main()
