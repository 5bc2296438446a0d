"""An autoregressive baseline: transformers' GPT-2 of an FLM's width and size, on its data, tokenizer and steps.

    python -m benchmarks.baselines.ar recipes/english-small.yaml

One block more than the FLM, and no tied table, makes up for the parameters of the FLM's time modulation.
"""

import dataclasses
import sys

from transformers import (
    DataCollatorForLanguageModeling,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from trainers.checkpoints import last_whole_checkpoint
from trainers.recipe import load_recipe
from trainers.train import load_data, tokenizer_of


def main() -> None:
    recipe = load_recipe(sys.argv[1], sys.argv[2:])
    tokenizer = tokenizer_of(recipe)
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    settings = {name: value for name, value in recipe.training.items() if name in known}
    settings |= {"output_dir": settings["output_dir"] + "-ar", "eval_strategy": "no"}
    args = TrainingArguments(**settings)
    fields = recipe.model
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=fields["hidden_size"],
        n_layer=fields["num_hidden_layers"] + 1,
        n_head=fields["num_attention_heads"],
        n_positions=fields["max_position_embeddings"],
        activation_function="gelu_pytorch_tanh",  # GPT-2's, in one kernel
        resid_pdrop=fields["hidden_dropout"],
        embd_pdrop=fields["hidden_dropout"],
        attn_pdrop=fields["hidden_dropout"],
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,  # it stands between documents and at the end of a row: it stops nothing
        pad_token_id=tokenizer.pad_token_id,
    )
    set_seed(args.seed)
    model = GPT2LMHeadModel._from_config(config, attn_implementation="eager")  # the fastest here in bfloat16
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    data = load_data(recipe, tokenizer, config.n_positions, args)
    data["data_collator"] = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(model, args, **data)
    last = last_whole_checkpoint(args.output_dir)
    trainer.train(resume_from_checkpoint=last and str(last))
    # Plain sampling of whole rows. The Trainer has put the tokenizer's EOS into the configuration meanwhile.
    special = dict(bos_token_id=config.bos_token_id, pad_token_id=config.pad_token_id)
    model.generation_config = GenerationConfig(do_sample=True, top_k=0, max_length=config.n_positions, **special)
    trainer.save_model()


if __name__ == "__main__":
    main()
