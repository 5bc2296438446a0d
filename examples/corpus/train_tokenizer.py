"""Train the corpus's tokenizer: a byte-level BPE with 4,096 tokens, from train.parquet.

    python examples/corpus/train_tokenizer.py

writes the folder `tokenizer/` next to this file. A second run writes the same bytes.
"""

from pathlib import Path

from datasets import load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = Path(__file__).parent
VOCAB_SIZE = 4096
SPECIAL_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "mask_token": "<mask>"}


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Nothing is normalised and all 256 bytes are tokens, so every text decodes to what was encoded.

    A text begins with BOS, as a row of training text does; packing, which places special tokens itself, asks for none.
    """
    documents = load_dataset("parquet", data_files=str(CORPUS / "train.parquet"), split="train")["text"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
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


if __name__ == "__main__":
    train_tokenizer().save_pretrained(CORPUS / "tokenizer")
