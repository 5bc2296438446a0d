"""`flm generate`: write text with a model."""

import argparse
import sys
from pathlib import Path

from .options import check_device, integers

# Options that are arguments of `generate`, by the same name.
SAMPLERS = ("euler", "multistep", "flow_map", "bridge")
GENERATION_SETTINGS = (
    *("sampler", "temperature", "top_k", "top_p", "gamma", "renoise", "guidance_scale", "guidance_dropout"),
    *("refine_steps", "refine_fraction", "max_length", "window_overlap", "seed"),
)


def add(commands) -> None:
    """Add the subcommand to those of the parser."""
    command = commands.add_parser("generate", help="write text with a model", description="Write text with a model.")
    command.add_argument("model", help="a model folder or a name on the Hub")
    command.add_argument("--prompt", help="text that every sample begins with; mask tokens in it are blanks")
    command.add_argument(
        "--num-steps",
        type=integers,
        default=[None],
        metavar="N[,N...]",
        help="evaluations of the network (default: the model's own); several numbers with --html",
    )
    command.add_argument("--sampler", choices=SAMPLERS, help="default: the model's own")
    command.add_argument("--temperature", type=float, help="of the bridge sampler (default: 1)")
    command.add_argument("--top-k", type=int, help="of the bridge sampler: draw among so many likeliest tokens")
    command.add_argument(
        "--top-p", type=float, help="of the bridge sampler: draw among the fewest likeliest of this probability"
    )
    command.add_argument(
        "--gamma", type=float, help="of the flow_map sampler: noise put back, 0 to 1 (default: the model's own)"
    )
    command.add_argument("--renoise", choices=("official", "markov"), help="how --gamma does it (default: official)")
    command.add_argument(
        "--guidance-scale",
        type=float,
        help="1: none; with a prompt classifier-free, with --guidance-dropout autoguidance",
    )
    command.add_argument("--guidance-dropout", type=float, help="rate of dropout that makes the weaker prediction")
    command.add_argument("--refine-steps", type=int, help="times to rewrite the least certain tokens at the end")
    command.add_argument(
        "--refine-fraction",
        type=float,
        help="share that the first refinement rewrites; it falls evenly (default: 0.75)",
    )
    command.add_argument(
        "--window-overlap", type=int, help="for a --max-length beyond the context: tokens shared by its windows"
    )
    command.add_argument("--num-samples", type=int, default=1, help="default: %(default)s")
    command.add_argument("--max-length", type=int, help="tokens, prompt included (default: the model's context)")
    command.add_argument("--seed", type=int, help="the i-th sample takes seed + i (default: a random seed)")
    command.add_argument("--watch", action="store_true", help="show the draft of every step on the way")
    command.add_argument(
        "--html", metavar="FILE", help="write a page that plays how the samples come about, for each of --num-steps"
    )
    command.add_argument("--device", default="cpu", help="where it runs (default: %(default)s)")
    command.add_argument("--trust-remote-code", action="store_true", help="run a model type this package lacks")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    from flm_data.paths import reading
    from modeling_flm import DraftStreamer, prompt_ids
    from trainers.start import check_flow

    _check(options)
    check_device(options.device)
    logging.disable_progress_bar()
    trust = options.trust_remote_code
    with reading(options.model):
        try:
            model = AutoModel.from_pretrained(options.model, trust_remote_code=trust).eval().to(options.device)
            tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=trust)
        except ValueError as error:
            raise ValueError(f"{options.model} cannot be loaded: {error}") from error
    if not hasattr(model, "generate"):
        raise ValueError(f"{options.model} is a {type(model).__name__}, no flow language model.")
    check_flow(model.config, options.model)
    logging.enable_progress_bar()
    prompt = prompt_ids(options.prompt, tokenizer) if options.prompt else None
    steps = options.num_steps
    settings = {name: getattr(options, name) for name in GENERATION_SETTINGS}
    settings["num_return_sequences"] = options.num_samples
    if options.html:
        from hub_cards.page import write_page

        ids = write_page(options.html, model, tokenizer, steps, prompt, **settings)
    else:
        streamer = DraftStreamer(tokenizer, skip_special_tokens=True) if options.watch else None
        bar = sys.stderr.isatty() and streamer is None
        settings |= {"tokenizer": tokenizer, "streamer": streamer, "progress_bar": bar}
        ids = model.generate(prompt, num_steps=steps[0], **settings)
    for text in tokenizer.batch_decode(ids, skip_special_tokens=True):
        print(shown(text.strip()), end="\n\n")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, options that contradict each other."""
    if options.html and options.watch:
        raise ValueError("--watch shows drafts in the terminal, --html in a page: choose one.")
    if options.html and not Path(options.html).resolve().parent.is_dir():
        raise ValueError(f"there is no folder {Path(options.html).parent} for the page.")
    if options.html and options.window_overlap is not None:
        raise ValueError("--html shows one window: leave out --window-overlap, and a longer --max-length with it.")
    if not options.html and len(options.num_steps) > 1:
        raise ValueError("several --num-steps are for --html, which shows them side by side.")


def shown(text: str) -> str:
    """A text; a Sudoku, the digits of a square whose side is a square itself, row by row."""
    side = round(len(text) ** 0.5)
    if side**2 != len(text) or side not in (4, 9, 16) or not set(text) <= set(".0123456789"):
        return text
    return "\n".join(" ".join(text[row : row + side]) for row in range(0, len(text), side))
