"""The text-generation pipeline of a model repository."""

import types
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import Pipeline

from .generation_flm import prompt_ids


class FLMPipeline(Pipeline):
    """The text-generation pipeline of flow language models: it writes from nothing, after a prompt, or in its blanks.

    ```python
    write = pipeline("text-generation", model="org/fmlm", trust_remote_code=True)
    write(num_steps=1, num_return_sequences=4)                       # from nothing
    write(["Once", "In the beginning"], num_steps=4)                 # after prompts
    blank = write.tokenizer.mask_token
    write(f"He said{blank}{blank} the king.", num_steps=4)           # in blanks
    ```

    It takes the arguments of the model's `generate`, when it is called or when it is made, and two of its own:
    `return_full_text` (default True) to return the prompt before what follows, and `skip_special_tokens` (default
    True). For each text it returns a list of `{"generated_text": ...}`, one for each of `num_return_sequences`.

    The sequences of all texts in a call are numbered in order, and the i-th takes the seed `seed + i`, or `seed[i]`.
    What is written does not depend on `batch_size`.
    """

    _load_tokenizer = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_processor = False
    _pipeline_calls_generate = False  # the model has a generation configuration of its own kind

    def __call__(self, text_inputs: str | Sequence[str] | None = None, **kwargs):
        """Write for a text, or for each of a list, generator or data set of texts; None or "" writes from nothing. For
        a generator or data set an iterator is returned.

        Raises:
            ValueError: if an input is not a text, or an argument is not one of `generate`.
        """
        inputs = _numbered("" if text_inputs is None else text_inputs)
        if isinstance(inputs, list) and not inputs:
            return []
        seed, count = (self._forward_params | kwargs).get("seed"), len(inputs) if isinstance(inputs, list) else 1
        if isinstance(inputs, list | _Text) and _is_list(seed):
            wanted = count * self._per_text(self._forward_params | kwargs)
            if len(seed) != wanted:
                raise ValueError(f"`seed` has {len(seed)} entries for {wanted} sequences: one each is needed.")
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self, return_full_text: bool | None = None, skip_special_tokens: bool | None = None, **generate_kwargs
    ):
        after = {"return_full_text": return_full_text, "skip_special_tokens": skip_special_tokens}
        return {}, generate_kwargs, {name: value for name, value in after.items() if value is not None}

    def _per_text(self, generate_kwargs: dict[str, Any]) -> int:
        """The number of sequences that are written for each text."""
        configs = (generate_kwargs.get("generation_config"), self.model.generation_config)
        counts = (getattr(config, "num_return_sequences", None) for config in configs)
        return next((count for count in (generate_kwargs.get("num_return_sequences"), *counts) if count), 1)

    def preprocess(self, inputs: "_Text") -> dict[str, torch.Tensor]:
        if not isinstance(inputs.text, str):
            raise ValueError(f"a prompt must be a text, but is {inputs.text!r}.")
        tokenizer: Any = self.tokenizer
        ids = prompt_ids(inputs.text, tokenizer)
        mask = torch.ones_like(ids)
        if ids.shape[1] == 0:  # no prompt is given as a single padding token, so that it fits a batch
            ids, mask = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": mask, "number": torch.tensor([inputs.number])}

    def _forward(self, model_inputs: dict[str, torch.Tensor], **generate_kwargs) -> dict[str, torch.Tensor]:
        numbers, count = model_inputs.pop("number").tolist(), self._per_text(generate_kwargs)
        seed: Any = generate_kwargs.get("seed")
        if isinstance(seed, Integral) and not isinstance(seed, bool):
            generate_kwargs["seed"] = [int(seed) + number * count + i for number in numbers for i in range(count)]
        elif _is_list(seed):
            generate_kwargs["seed"] = [x for number in numbers for x in seed[number * count : (number + 1) * count]]
        settings = {"tokenizer": self.tokenizer} | generate_kwargs | {"return_dict_in_generate": True}
        out = self.model.generate(**model_inputs, **settings)
        batch = len(numbers)
        return {
            "sequences": out.sequences.view(batch, -1, out.sequences.shape[1]),
            "kept": out.attention_mask.bool().view(batch, -1, out.sequences.shape[1]),
            "prompt_length": model_inputs["attention_mask"].sum(1),
        }

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], return_full_text: bool = True, skip_special_tokens: bool = True
    ) -> list[dict[str, str]]:
        start = 0 if return_full_text else int(model_outputs["prompt_length"])
        (sequences,), (kept,) = model_outputs["sequences"], model_outputs["kept"]
        own = (ids[start:][real[start:]] for ids, real in zip(sequences, kept, strict=True))
        texts = (self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens) for ids in own)
        return [{"generated_text": text} for text in texts]


@dataclass
class _Text:
    """A prompt, and its number among the prompts of a call."""

    number: int
    text: Any


class _NumberedDataset(Dataset):
    def __init__(self, texts):
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, number: int) -> _Text:
        return _Text(number, self.texts[number])


def _is_list(seed: Any) -> bool:
    """Whether these are seeds, one for each sequence."""
    return isinstance(seed, Sequence) or (isinstance(seed, torch.Tensor | np.ndarray) and seed.ndim > 0)


def _numbered(texts: Any):
    """The prompts with their numbers, in a container of the same kind, as transformers' pipelines expect it."""
    if isinstance(texts, Dataset) and not isinstance(texts, IterableDataset):
        return _NumberedDataset(texts)
    if isinstance(texts, IterableDataset | types.GeneratorType):
        return (_Text(number, text) for number, text in enumerate(texts))
    if isinstance(texts, Sequence) and not isinstance(texts, str):
        return [_Text(number, text) for number, text in enumerate(texts)]
    return _Text(0, texts)
