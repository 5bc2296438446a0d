"""`flm finetune`: go on training a flow with text of your own."""

import argparse

from trainers.recipe import finetuning_recipe

from .train import add_run, trained


def add(commands) -> None:
    """Add the subcommand to those of the parser."""
    command = commands.add_parser(
        "finetune",
        help="go on training a flow with text of your own",
        description="Go on training a flow with text of your own: a recipe for `flm train` made from these options "
        "(trainers/recipe.py), any entry of which can be changed, such as training.learning_rate=1e-4 or "
        "data.packing=rows.",
    )
    command.add_argument("model", help="a flow (FLM): a model folder or a name on the Hub")
    add_run(command)
    command.add_argument(
        "--data",
        required=True,
        metavar="TEXT",
        help="a file (.txt, .jsonl, .csv, .parquet), a folder of such files or a data set on the Hub. Each line of a "
        ".txt is a document; data.documents=files: each file is one",
    )
    command.add_argument("--output", required=True, metavar="DIR", help="the folder to write, a complete repository")
    command.add_argument(
        "--validation",
        default="0.05",
        metavar="TEXT|SHARE",
        help="held-out text to evaluate on, as --data; or the share of the rows to hold out, 0 for none "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--text-column", default="text", metavar="NAME", help="the column with the documents (default: %(default)s)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    recipe = finetuning_recipe(
        options.model, options.data, options.output, options.validation, options.text_column, options.overrides
    )
    if options.data.endswith(".txt") and recipe.data.documents == "lines":
        print(f"{options.data}: each line is a document (data.documents=files: all of it is one long text).")
    return trained(recipe, "build_trainer", options.resume)
