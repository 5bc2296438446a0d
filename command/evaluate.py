"""`flm evaluate`: compare samples of models."""

import argparse
import sys

from .generate import SAMPLERS
from .options import check_device, check_evaluation, integers, numbers, output_folder


def add(commands) -> None:
    """Add the subcommand to those of the parser."""
    command = commands.add_parser(
        "evaluate",
        help="compare samples of models, next to controls",
        description="Compare samples of models with each other and with controls: writes evaluation.json, "
        "evaluation.md and frontier.png. docs/evaluation.md says what is measured.",
    )
    command.add_argument(
        "model",
        help="a model folder or a name on the Hub (name@revision); its tokenizer measures all. flow:, causal: or "
        "masked: before it says what it is, where its configuration does not",
    )
    command.add_argument(
        "--against",
        nargs="+",
        action="extend",
        default=[],
        metavar="OTHER",
        help="other models, or files of samples (.txt, .parquet, .csv, .jsonl)",
    )
    command.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    command.add_argument(
        "--scorer",
        action="append",
        required=True,
        help='a causal language model, or "kneser-ney": an n-gram model of --training-text; may be repeated',
    )
    command.add_argument("--reference", required=True, metavar="TEXT", help="a file of real, held-out text")
    command.add_argument(
        "--training-text",
        metavar="TEXT",
        help="a file with the text that the models learned from",
    )
    command.add_argument("--num-samples", type=int, default=64, help="for each of --seeds (default: %(default)s)")
    command.add_argument("--seeds", type=integers, default=[0], metavar="N[,N...]", help="default: 0")
    command.add_argument(
        "--num-steps", type=integers, default=[], metavar="N[,N...]", help="default: the model's own, or 64"
    )
    command.add_argument(
        "--sampler", action="append", default=[], choices=SAMPLERS, help="of flows, may be repeated (default: its own)"
    )
    command.add_argument(
        "--temperature",
        type=numbers,
        default=[],
        metavar="T[,T...]",
        help="of causal and masked models, and of flows by the bridge sampler, which it adds (default: 1)",
    )
    command.add_argument(
        "--gamma",
        type=numbers,
        default=[],
        metavar="G[,G...]",
        help="of the flow_map sampler (default: the model's own)",
    )
    command.add_argument("--length", type=int, help="most tokens of a sample (default: the model's context)")
    command.add_argument("--device", default="cpu", help="where models and scorers run (default: %(default)s)")
    command.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the models")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    check_evaluation()
    try:
        from evaluation import report
        from evaluation.compare import compare
        from evaluation.writers import Sweep
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'flow-language-models[evaluation,plots]'.") from error
    from transformers.utils import logging

    check_device(options.device)
    output = output_folder(options.output)
    logging.disable_progress_bar()
    result = compare(
        [options.model, *options.against],
        scorers=options.scorer,
        reference=options.reference,
        training_text=options.training_text,
        sweep=Sweep(options.num_steps, options.sampler, options.temperature, options.gamma),
        num_samples=options.num_samples,
        seeds=options.seeds,
        length=options.length,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    result["protocol"] = {"command": options.command} | result["protocol"]
    report.write(result, output)
    print(f"The comparison is in {options.output}: evaluation.md, evaluation.json, frontier.png.")
    return 0
