"""`flm demo`: the shipped models at work."""

import argparse

from flm_data.paths import checkout

from .options import check_evaluation


def add(commands) -> None:
    """Add the subcommand to those of the parser."""
    command = commands.add_parser(
        "demo",
        help="watch the shipped models write stories in one evaluation and solve Sudoku in eight",
        description="Watch the shipped models write stories in one evaluation and solve Sudoku in eight.",
    )
    command.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    command.add_argument("--web", action="store_true", help="as a page for the browser, to try them out with")
    command.add_argument("--port", type=int, help="of --web (default: the first free one from 7860)")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    check_evaluation()
    checkout()  # before torch is imported: the shipped models may not be there
    if options.web:
        try:
            import gradio  # noqa: F401  whether it is there
        except ImportError as error:
            raise ValueError('the page needs gradio: pip install "flow-language-models[space]"') from error

        from hub_cards.space.app import serve

        serve(options.port, options.seed)
        return 0
    if options.port is not None:
        raise ValueError("--port is that of the page: give --web, too.")

    from .demonstration import run_demo

    run_demo(options.seed)
    return 0
