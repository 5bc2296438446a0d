"""The text-generation pipeline that travels with a model repository."""

from collections.abc import Sequence

import torch
from transformers import Pipeline


class FLMPipeline(Pipeline):
    """Text from a flow language model: from nothing, after a prompt, or in the blanks of a text.

    ```python
    write = pipeline("text-generation", model="org/fmlm", trust_remote_code=True)
    write(num_steps=1, num_return_sequences=4)                       # from nothing
    write(["Once", "In the beginning"], num_steps=4)                 # after prompts
    write("He said [MASK] [MASK] the king.", num_steps=4)            # in blanks: the tokenizer's mask token
    ```

    It takes the arguments of the model's `generate`, in the call or when it is made, and of its own `return_full_text`
    (default True: the prompt and what follows) and `skip_special_tokens` (default True). For each text it gives a list
    of `{"generated_text": ...}`, one for each of `num_return_sequences`.
    """

    _load_tokenizer = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_processor = False
    _pipeline_calls_generate = False  # the model has a generation configuration of its own kind

    def __call__(self, text_inputs: str | Sequence[str] | None = None, **kwargs):
        """Write for each of `text_inputs`, a text or several; None or "" to write from nothing.

        Raises:
            ValueError: an input is no text, or an argument is not one of `generate`.
        """
        return super().__call__("" if text_inputs is None else text_inputs, **kwargs)

    def _sanitize_parameters(
        self, return_full_text: bool | None = None, skip_special_tokens: bool | None = None, **generate_kwargs
    ):
        after = {"return_full_text": return_full_text, "skip_special_tokens": skip_special_tokens}
        return {}, generate_kwargs, {name: value for name, value in after.items() if value is not None}

    def preprocess(self, inputs: str) -> dict[str, torch.Tensor]:
        if not isinstance(inputs, str):
            raise ValueError(f"a prompt must be a text, but is {inputs!r}.")
        ids = self.tokenizer(inputs, add_special_tokens=False).input_ids
        if ids and self.tokenizer.bos_token_id is not None:  # rows of training text begin with it
            ids = [self.tokenizer.bos_token_id, *ids]
        ids = torch.tensor([ids], dtype=torch.long)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _forward(self, model_inputs: dict[str, torch.Tensor], **generate_kwargs) -> dict[str, torch.Tensor]:
        sequences = self.model.generate(**model_inputs, **generate_kwargs)
        batch = len(model_inputs["input_ids"])
        prompt_length = model_inputs["attention_mask"].sum(1)
        return {"sequences": sequences.view(batch, -1, sequences.shape[1]), "prompt_length": prompt_length}

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], return_full_text: bool = True, skip_special_tokens: bool = True
    ) -> list[dict[str, str]]:
        start = 0 if return_full_text else int(model_outputs["prompt_length"])
        (sequences,) = model_outputs["sequences"]
        texts = (self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens) for ids in sequences[:, start:])
        return [{"generated_text": text} for text in texts]
