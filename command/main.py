"""The `flm` command. What a subcommand needs is imported when it runs, so that `--help` answers at once."""

import argparse
import os
import select
import shlex
import sys
from collections.abc import Sequence
from typing import TextIO

from . import card, convert, demo, evaluate, export, export_official, finetune, generate, push, train

# In the order of `--help`.
SUBCOMMANDS = (train, finetune, generate, evaluate, convert, export, export_official, push, card, demo)
BROKEN_PIPE = 141  # as the shell has it of a command that its reader left: 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `flm`; the exit status: 0, 1 with one line on stderr for what went wrong, 130 when interrupted, 141, and
    nothing said, where nobody reads the output any more, as in `flm ... | head -1`."""
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # here, and not at the end of the process, where an error could not be caught
    except BrokenPipeError:
        if not any(_is_left(stream) for stream in (sys.stdout, sys.stderr)):
            raise  # another pipe, between processes
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        return BROKEN_PIPE


def _is_left(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads."""
    watch = select.poll()
    watch.register(stream.fileno(), 0)
    return any(state & select.POLLERR for _, state in watch.poll(0))


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if hasattr(options, "overrides"):  # argparse takes them only where the recipe stands: here also behind an option
        options.overrides += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.command = shlex.join(["flm", *(sys.argv[1:] if arguments is None else arguments)])
    if options.debug:
        return options.run(options)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("flm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        reason = str(error)
    except Exception as error:
        reason = f"{type(error).__name__}: {error} (flm --debug ... shows where)"
    print(f"flm: {' '.join(reason.split())}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flm", description="Flow language models: train, generate, try out.")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="command")
    for subcommand in SUBCOMMANDS:
        subcommand.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
