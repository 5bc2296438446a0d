"""The drafts of a text while it comes about: shown, kept, counted."""

import sys
from dataclasses import dataclass
from typing import Any, TextIO

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer


class DraftStreamer(BaseStreamer):
    """Shows the whole draft of every sequence at each step of `generate(streamer=...)`, one in place of the other.

    ```python
    model.generate(num_steps=16, num_return_sequences=2, streamer=DraftStreamer(tokenizer))
    ```

    Args:
        tokenizer (`PreTrainedTokenizerBase`): that of the model.
        file (`TextIO`, *optional*): where to; default: standard output. In a terminal each draft takes the place of
            the one before; elsewhere they follow one another.
        decode_kwargs: for `tokenizer.decode`, such as `skip_special_tokens=True`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, file: TextIO | None = None, **decode_kwargs):
        self.tokenizer, self.file, self.decode_kwargs = tokenizer, file or sys.stdout, decode_kwargs
        self._in_place = self.file.isatty()
        self._step = 0

    def put(self, value: Tensor) -> None:
        """Show drafts, ids (batch, length)."""
        self._step += 1
        if self._in_place:
            self.file.write("\x1b[2J\x1b[H")  # clears the screen, and to its upper left corner
        self.file.write(f"step {self._step}\n\n")
        for ids in value:
            self.file.write(f"{self.tokenizer.decode(ids, **self.decode_kwargs)}\n\n")
        self.file.flush()

    def end(self) -> None:
        """The next text begins at step 1 again."""
        self._step = 0


@dataclass
class Watch:
    """What is told of the steps of a generation, while it goes on."""

    streamer: BaseStreamer | None
    bar: Any  # of tqdm
    drafts: list[tuple[Tensor, Tensor | None]] | None

    @property
    def drafts_wanted(self) -> bool:
        return self.drafts is not None or self.streamer is not None

    def show(self, draft: Tensor, confidence: Tensor | None) -> None:
        if self.drafts is not None:
            self.drafts.append((draft, confidence))
        if self.streamer is not None:
            self.streamer.put(draft.cpu())

    def end(self) -> None:
        if self.streamer is not None:
            self.streamer.end()
