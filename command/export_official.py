"""`flm export-official`: a model as the official code loads it."""

import argparse

from flm_data.paths import reading

from .options import output_folder


def add(commands) -> None:
    """Add the subcommand to those of the parser."""
    command = commands.add_parser(
        "export-official",
        help="write a model as the official code loads it",
        description="Write a model as the official code loads it: config.json and model.safetensors.",
    )
    command.add_argument("model", help="a model folder or a name on the Hub")
    command.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from transformers import AutoModel

    import modeling_flm
    from hub_cards.convert import export_official

    output = output_folder(options.output, options.model)
    with reading(options.model):
        model = AutoModel.from_pretrained(options.model)
    if not isinstance(model, modeling_flm.FLMModel):
        raise ValueError(f"{options.model} is a {type(model).__name__}, no flow language model.")
    export_official(model, output)
    print(f"{options.output} is in the official form.")
    return 0
