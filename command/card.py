"""`flm card`: what a model folder lacks to be a repository."""

import argparse
from pathlib import Path


def add(commands) -> None:
    """Add the subcommand to those of the parser."""
    command = commands.add_parser(
        "card",
        help="make a model repository of the folder that a training left",
        description="Write what a model folder lacks to be a repository: the model's code, its generation "
        "configuration, and a card of what the folder tells, with samples that the model draws. A card that somebody "
        "wrote keeps its text.",
    )
    command.add_argument("folder", help="a model folder, such as transformers' own Trainer leaves")
    command.add_argument("--name", metavar="ORG/NAME", help="of the repository (default: that of the folder)")
    command.add_argument(
        "--dataset", action="append", default=[], metavar="ORG/NAME", help="what it was trained on; may be repeated"
    )
    command.add_argument("--license", help="its identifier on the Hub, such as apache-2.0")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from hub_cards.folder import complete, write_card
    from hub_cards.push import check_name

    for name in [*([options.name] if options.name else []), *options.dataset]:
        check_name(name)
    folder = Path(options.folder)
    written = complete(folder)
    print(f"README.md: {write_card(folder, options.name, options.dataset, options.license)}.")
    if written:
        print(f"Written, as they were missing: {', '.join(written)}.")
    return 0
