"""Train a tokenizer on a corpus: a byte-level BPE, like those of the shipped text models.

    python examples/train_tokenizer.py ./examples/corpus/train.parquet --vocab-size 4096 --output my-tokenizer
    python examples/train_tokenizer.py roneneldan/TinyStories --vocab-size 8192 --output my-tokenizer

The corpus is named as in the `data` of a recipe: a file or folder that begins with ./ ../ or /, or a data set on the
Hub. Every run writes the same bytes.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from flm_data import DataSource, load_text

SPECIAL_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "mask_token": "<mask>"}


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer of `vocab_size` tokens, of which the special tokens are the first. Nothing is normalised and
    all 256 bytes are tokens, so every text decodes to itself.

    An encoded text begins with BOS, as rows of training text do. Packing asks for no special tokens and adds its own.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    bos = SPECIAL_TOKENS["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a byte-level BPE on a corpus.")
    parser.add_argument("corpus")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    documents = load_text(DataSource.parse(options.corpus, "."))[options.text_column]
    train_tokenizer(documents, options.vocab_size).save_pretrained(options.output)


if __name__ == "__main__":
    main()
