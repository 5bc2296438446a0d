"""`flm convert`: a model repository of an official checkpoint."""

import argparse
from pathlib import Path

from flm_data.paths import check_path, reading

from .options import output_folder


def add(commands) -> None:
    """Add the subcommand to those of the parser."""
    command = commands.add_parser(
        "convert",
        help="make a model repository of an official checkpoint",
        description="Make a model repository of an official checkpoint, a Hub export or a Lightning .ckpt file.",
    )
    command.add_argument("source", help="a folder with config.json and model.safetensors, a .ckpt file, or a Hub name")
    command.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    command.add_argument("--tokenizer", help="folder or Hub name of the tokenizer to put in, such as gpt2")
    command.add_argument(
        "--final-logit-softcapping",
        type=number_or_none,
        default=30.0,
        metavar="CAP",
        help='"none" for models of the first published version (default: %(default)s)',
    )
    command.add_argument("--raw", action="store_true", help="of a .ckpt: the raw weights, not their moving average")
    command.add_argument("--config", metavar="FILE", help="of a .ckpt: its nested configuration as JSON")
    command.add_argument("--push-to-hub", metavar="ORG/NAME", help="push it there, too; needs --tokenizer")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from huggingface_hub import snapshot_download

    from hub_cards.convert import convert, read_source
    from hub_cards.push import push

    if options.push_to_hub and not options.tokenizer:
        raise ValueError("a repository on the Hub needs a tokenizer: --push-to-hub goes with --tokenizer.")
    output = output_folder(options.output, options.source)
    path, config = Path(options.source), options.config and Path(options.config)
    for name in (options.tokenizer, options.config):
        if name:
            check_path(name)
    from_hub = not path.exists()
    if from_hub:
        with reading(options.source):
            path = Path(snapshot_download(options.source, allow_patterns=["config.json", "model.safetensors"]))
    source = read_source(path, config, averaged=not options.raw)
    if from_hub:
        source.name = options.source
    model = convert(source, output, options.tokenizer, options.final_logit_softcapping)
    kind = "a flow map (FMLM)" if model.config.two_times else "a flow (FLM)"
    if source.dropped:
        print(f"Dropped: {', '.join(source.dropped)}.")
    print(f"{options.output} is {kind} of {model.num_parameters() / 1e6:.1f} M parameters, loaded again and compared.")
    if options.push_to_hub:
        print(push(output, options.push_to_hub))
    return 0


def number_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)
