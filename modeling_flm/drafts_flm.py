"""Drafts of a text, which show how `generate` writes it step by step."""

import sys
from dataclasses import dataclass
from typing import Any, TextIO

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer


class DraftStreamer(BaseStreamer):
    """A streamer for `generate` that shows the whole draft of every sequence at each step.

    In a terminal each draft replaces the one before; elsewhere they follow one another.

    ```python
    model.generate(num_steps=16, num_return_sequences=2, streamer=DraftStreamer(tokenizer))
    ```

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer of the model.
        file (`TextIO`, *optional*): where to write. Default: the standard output.
        decode_kwargs: arguments of `tokenizer.decode`, such as `skip_special_tokens=True`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, file: TextIO | None = None, **decode_kwargs):
        self.tokenizer, self.file, self.decode_kwargs = tokenizer, file or sys.stdout, decode_kwargs
        self._in_place = self.file.isatty()
        self._step = 0

    def put(self, value: Tensor) -> None:
        """Show the drafts of one step, ids (batch, length)."""
        self._step += 1
        if self._in_place:
            self.file.write("\x1b[2J\x1b[H")  # clear the screen, and go to its upper left corner
        self.file.write(f"step {self._step}\n\n")
        for ids in value:
            self.file.write(f"{self.tokenizer.decode(ids, **self.decode_kwargs)}\n\n")
        self.file.flush()

    def end(self) -> None:
        """Called after the last step: the next text begins at step 1 again."""
        self._step = 0


@dataclass
class Watch:
    """What follows a generation step by step: a streamer, a progress bar, and the drafts kept for the output."""

    streamer: BaseStreamer | None
    bar: Any  # a progress bar of tqdm
    drafts: list[tuple[Tensor, Tensor | None]] | None  # (draft, confidence) of each step; None if they are not kept

    @property
    def drafts_wanted(self) -> bool:
        return self.drafts is not None or self.streamer is not None

    def show(self, draft: Tensor, confidence: Tensor | None) -> None:
        """Keep and stream the draft of a step, ids (batch, length), with its confidence of the same shape."""
        if self.drafts is not None:
            self.drafts.append((draft, confidence))
        if self.streamer is not None:
            self.streamer.put(draft.cpu())

    def end(self) -> None:
        if self.streamer is not None:
            self.streamer.end()
