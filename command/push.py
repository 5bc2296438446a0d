"""`flm push`: a model or a Space to the Hub."""

import argparse
import sys
from pathlib import Path


def add(commands) -> None:
    """Add the subcommand to those of the parser."""
    command = commands.add_parser(
        "push", help="upload a model or a Space to the Hub", description="Upload a model or a Space to the Hub."
    )
    command.add_argument(
        "folder",
        help="a model repository, such as hub_cards/fmlm-english-small, hub_cards/space or hub_cards/space-static",
    )
    command.add_argument("name", help="organisation/name; it is made if it is not there")
    command.add_argument(
        "--dry-run", action="store_true", help="only show what would be uploaded and shown there, without network"
    )
    command.add_argument("--create-pr", action="store_true", help="open a pull request instead of a commit")
    command.add_argument("--private", action="store_true", help="if it is made, make it private")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from hub_cards.push import card_in, check_name, described, push, remarks, to_upload

    folder = Path(options.folder)
    check_name(options.name)
    files = to_upload(folder)
    card = card_in(folder, options.name)
    sizes = {path: file.stat().st_size for path, file in files.items()} | {"README.md": len(card.encode())}
    for path, size in sizes.items():
        print(f"{size:>15,}  {path}")
    print(f"{sum(sizes.values()):>15,}  in {len(sizes)} files, to {options.name}")
    print(f"\nThe Hub shows of its card:\n\n{described(card)}\n")
    for remark in remarks(card, files, options.name):
        print(f"flm: warning: {remark}", file=sys.stderr)
    if not options.dry_run:
        print(push(folder, options.name, options.create_pr, options.private))
    return 0
