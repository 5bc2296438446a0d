"""The `flm` command. What a subcommand needs is imported when it runs, so that `--help` answers at once."""

import argparse
import importlib.util
import os
import select
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from .recipe import Recipe

# Options of `flm generate` that are arguments of `generate`, by the same name.
GENERATION_SETTINGS = (
    *("sampler", "temperature", "top_k", "top_p", "gamma", "renoise", "guidance_scale", "guidance_dropout"),
    *("refine_steps", "refine_fraction", "max_length", "window_overlap", "seed"),
)


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


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _number_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flm", description="Flow language models: train, generate, try out.")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="command")

    for name, what, run in (
        ("train", "train a model from a recipe", _train),
        ("distill", "distil a trained flow into its map, which writes in one step", _distill),
    ):
        command = commands.add_parser(name, help=what, description=what.capitalize() + ".")
        command.add_argument("recipe", help="a YAML file, such as recipes/english-small.yaml")
        _add_run(command)
        command.set_defaults(run=run)

    finetune = commands.add_parser(
        "finetune",
        help="go on training a flow with text of your own",
        description="Go on training a flow with text of your own: a recipe for `flm train` made from these options "
        "(trainers/recipe.py), any entry of which can be changed, such as training.learning_rate=1e-4 or "
        "data.packing=rows.",
    )
    finetune.add_argument("model", help="a model folder or a name on the Hub")
    _add_run(finetune)
    finetune.add_argument(
        "--data",
        required=True,
        metavar="TEXT",
        help="a file (.txt, .jsonl, .csv, .parquet), a folder of such files or a data set on the Hub. Each line of a "
        ".txt is a document; data.documents=files: each file is one",
    )
    finetune.add_argument("--output", required=True, metavar="DIR", help="the folder to write, a complete repository")
    finetune.add_argument(
        "--validation",
        default="0.05",
        metavar="TEXT|SHARE",
        help="held-out text to evaluate on, as --data; or the share of the rows to hold out, 0 for none "
        "(default: %(default)s)",
    )
    finetune.add_argument(
        "--text-column", default="text", metavar="NAME", help="the column with the documents (default: %(default)s)"
    )
    finetune.set_defaults(run=_finetune)

    generate = commands.add_parser("generate", help="write text with a model", description="Write text with a model.")
    generate.add_argument("model", help="a model folder or a name on the Hub")
    generate.add_argument("--prompt", help="text that every sample begins with")
    generate.add_argument(
        "--num-steps",
        type=_integers,
        default=[None],
        metavar="N[,N...]",
        help="evaluations of the network (default: the model's own); several numbers with --html",
    )
    samplers = ("euler", "multistep", "flow_map", "bridge")
    generate.add_argument("--sampler", choices=samplers, help="default: the model's own")
    generate.add_argument("--temperature", type=float, help="of the bridge sampler (default: 1)")
    generate.add_argument("--top-k", type=int, help="of the bridge sampler: draw among so many likeliest tokens")
    generate.add_argument("--top-p", type=float, help="of the bridge sampler: draw among the likeliest tokens only")
    generate.add_argument("--gamma", type=float, help="of the flow_map sampler: noise put back, 0 to 1 (default: 0)")
    generate.add_argument("--renoise", choices=("official", "markov"), help="how --gamma does it (default: official)")
    generate.add_argument(
        "--guidance-scale", type=float, help="away from a weaker prediction, 1: none; by the prompt, or by dropout"
    )
    generate.add_argument("--guidance-dropout", type=float, help="rate of dropout that makes the weaker prediction")
    generate.add_argument("--refine-steps", type=int, help="times to rewrite the least certain tokens at the end")
    generate.add_argument("--refine-fraction", type=float, help="part that is rewritten (default: 0.25)")
    generate.add_argument(
        "--window-overlap", type=int, help="for a --max-length beyond the context: tokens shared by its windows"
    )
    generate.add_argument("--num-samples", type=int, default=1, help="default: %(default)s")
    generate.add_argument("--max-length", type=int, help="tokens, prompt included (default: the model's context)")
    generate.add_argument("--seed", type=int, help="the i-th sample takes seed + i (default: a random seed)")
    generate.add_argument("--watch", action="store_true", help="show the draft of every step on the way")
    generate.add_argument(
        "--html", metavar="FILE", help="write a page that plays how the samples come about, for each of --num-steps"
    )
    generate.add_argument("--device", default="cpu", help="where it runs (default: %(default)s)")
    generate.add_argument("--trust-remote-code", action="store_true", help="run a model type this package lacks")
    generate.set_defaults(run=_generate)

    evaluate = commands.add_parser(
        "evaluate",
        help="compare samples of models, next to controls",
        description="Compare samples of models with each other and with controls: writes evaluation.json, "
        "evaluation.md and frontier.png. docs/evaluation.md says what is measured.",
    )
    evaluate.add_argument(
        "model",
        help="a model folder or a name on the Hub (name@revision); its tokenizer measures all. flow:, causal: or "
        "masked: before it says what it is, where its configuration does not",
    )
    evaluate.add_argument(
        "--against", nargs="+", default=[], metavar="OTHER", help="other models, or files of samples (.txt, .parquet)"
    )
    evaluate.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    evaluate.add_argument(
        "--scorer",
        action="append",
        required=True,
        help='a causal language model, or "kneser-ney": an n-gram model of --training-text; may be repeated',
    )
    evaluate.add_argument("--reference", required=True, metavar="TEXT", help="a file of real, held-out text")
    evaluate.add_argument("--training-text", metavar="TEXT", help="a file with the text that the models learned from")
    evaluate.add_argument("--num-samples", type=int, default=64, help="for each of --seeds (default: %(default)s)")
    evaluate.add_argument("--seeds", type=_integers, default=[0], metavar="N[,N...]", help="default: 0")
    evaluate.add_argument(
        "--num-steps", type=_integers, default=[], metavar="N[,N...]", help="default: the model's own, or 64"
    )
    evaluate.add_argument(
        "--sampler", action="append", default=[], choices=samplers, help="of flows, may be repeated (default: its own)"
    )
    evaluate.add_argument(
        "--temperature",
        type=_numbers,
        default=[],
        metavar="T[,T...]",
        help="of causal and masked models, and of flows by the bridge sampler, which it adds (default: 1)",
    )
    evaluate.add_argument(
        "--gamma", type=_numbers, default=[], metavar="G[,G...]", help="of the flow_map sampler (default: 0)"
    )
    evaluate.add_argument("--length", type=int, help="most tokens of a sample (default: the model's context)")
    evaluate.add_argument("--device", default="cpu", help="where models and scorers run (default: %(default)s)")
    evaluate.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the models")
    evaluate.set_defaults(run=_evaluate)

    convert = commands.add_parser(
        "convert",
        help="make a model repository of an official checkpoint",
        description="Make a model repository of an official checkpoint, a Hub export or a Lightning .ckpt file.",
    )
    convert.add_argument("source", help="a folder with config.json and model.safetensors, a .ckpt file, or a Hub name")
    convert.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    convert.add_argument("--tokenizer", help="folder or Hub name of the tokenizer to put in, such as gpt2")
    convert.add_argument(
        "--final-logit-softcapping",
        type=_number_or_none,
        default=30.0,
        metavar="CAP",
        help='"none" for models of the first published version (default: %(default)s)',
    )
    convert.add_argument("--raw", action="store_true", help="of a .ckpt: the raw weights, not their moving average")
    convert.add_argument("--config", metavar="FILE", help="of a .ckpt: its nested configuration as JSON")
    convert.add_argument("--push-to-hub", metavar="ORG/NAME", help="push it there, too; needs --tokenizer")
    convert.set_defaults(run=_convert)

    export = commands.add_parser(
        "export-official",
        help="write a model as the official code loads it",
        description="Write a model as the official code loads it: config.json and model.safetensors.",
    )
    export.add_argument("model", help="a model folder or a name on the Hub")
    export.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    export.set_defaults(run=_export_official)

    push = commands.add_parser(
        "push", help="upload a model or the Space to the Hub", description="Upload a model or the Space to the Hub."
    )
    push.add_argument("folder", help="a model repository, such as hub_cards/fmlm-english-small, or hub_cards/space")
    push.add_argument("name", help="organisation/name; it is made if it is not there")
    push.add_argument(
        "--dry-run", action="store_true", help="only show what would be uploaded and shown there, without network"
    )
    push.add_argument("--create-pr", action="store_true", help="open a pull request instead of a commit")
    push.add_argument("--private", action="store_true", help="if it is made, make it private")
    push.set_defaults(run=_push)

    card = commands.add_parser(
        "card",
        help="make a model repository of the folder that a training left",
        description="Write what a model folder lacks to be a repository: the model's code, its generation "
        "configuration, and a card of what the folder tells, with samples that the model draws. A card that somebody "
        "wrote keeps its text.",
    )
    card.add_argument("folder", help="a model folder, such as transformers' own Trainer leaves")
    card.add_argument("--name", metavar="ORG/NAME", help="of the repository (default: that of the folder)")
    card.add_argument(
        "--dataset", action="append", default=[], metavar="ORG/NAME", help="what it was trained on; may be repeated"
    )
    card.add_argument("--license", help="its identifier on the Hub, such as apache-2.0")
    card.set_defaults(run=_card)

    demo = commands.add_parser(
        "demo",
        help="watch the shipped models write English and Sudoku grids in one evaluation",
        description="Watch the shipped models write English and Sudoku grids in one evaluation of the network.",
    )
    demo.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    demo.add_argument("--web", action="store_true", help="as a page for the browser, to try them out with")
    demo.add_argument("--port", type=int, help="of --web (default: the first free one from 7860)")
    demo.set_defaults(run=_demo)
    return parser


def _add_run(command: argparse.ArgumentParser) -> None:
    """What all commands that train take."""
    command.add_argument("overrides", nargs="*", metavar="section.name=value", help="such as training.max_steps=100")
    command.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint, if there is one")


# Recipes are read before torch is imported: mistakes in them show at once.


def _train(options: argparse.Namespace) -> int:
    from .recipe import load_recipe

    return _trained(load_recipe(options.recipe, options.overrides), "build_trainer", options.resume)


def _distill(options: argparse.Namespace) -> int:
    from .recipe import load_recipe

    return _trained(load_recipe(options.recipe, options.overrides), "build_distiller", options.resume)


def _finetune(options: argparse.Namespace) -> int:
    from .recipe import finetuning_recipe

    recipe = finetuning_recipe(
        options.model, options.data, options.output, options.validation, options.text_column, options.overrides
    )
    if options.data.endswith(".txt") and recipe.data.documents == "lines":
        print(f"{options.data}: each line is a document (data.documents=files: all of it is one long text).")
    return _trained(recipe, "build_trainer", options.resume)


def _trained(recipe: "Recipe", build: str, resume: bool) -> int:
    from . import train

    trainer = getattr(train, build)(recipe)
    train.run_training(trainer, resume)
    print(f"The model is in {trainer.args.output_dir}.")
    return 0


def _generate(options: argparse.Namespace) -> int:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    from modeling_flm import DraftStreamer, prompt_ids

    from .paths import reading

    _check_device(options.device)
    logging.disable_progress_bar()
    trust = options.trust_remote_code
    with reading(options.model):
        try:
            model = AutoModel.from_pretrained(options.model, trust_remote_code=trust).eval().to(options.device)
            tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=trust)
        except ValueError as error:
            raise ValueError(f"{options.model} cannot be loaded: {error}") from error
    logging.enable_progress_bar()
    prompt = prompt_ids(options.prompt, tokenizer) if options.prompt else None
    steps = options.num_steps
    settings = {name: getattr(options, name) for name in GENERATION_SETTINGS}
    settings["num_return_sequences"] = options.num_samples
    if options.html:
        from .page import write_page

        ids = write_page(options.html, model, tokenizer, steps, prompt, **settings)
    elif len(steps) > 1:
        raise ValueError("several --num-steps are for --html, which shows them side by side.")
    else:
        streamer = DraftStreamer(tokenizer, skip_special_tokens=True) if options.watch else None
        bar = sys.stderr.isatty() and streamer is None
        settings |= {"tokenizer": tokenizer, "streamer": streamer, "progress_bar": bar}
        ids = model.generate(prompt, num_steps=steps[0], **settings)
    for text in tokenizer.batch_decode(ids, skip_special_tokens=True):
        print(_shown(text.strip()), end="\n\n")
    return 0


def _shown(text: str) -> str:
    """A text; a Sudoku, the digits of a square whose side is a square itself, row by row."""
    side = round(len(text) ** 0.5)
    if side**2 != len(text) or side not in (4, 9, 16) or not set(text) <= set(".0123456789"):
        return text
    return "\n".join(" ".join(text[row : row + side]) for row in range(0, len(text), side))


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
        raise ValueError(f"--device {name} cannot be used here: {error}") from error


def _check_evaluation() -> None:
    """Other projects have a package `evaluation`, too: one that Python finds first would be taken for this one."""
    here, spec = Path(__file__).parent.parent, importlib.util.find_spec("evaluation")
    found = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    if found and here / "evaluation" not in found:
        raise ValueError(
            f"the package `evaluation` in {found[0].parent} hides that of flow-language-models in {here}."
        )


def _evaluate(options: argparse.Namespace) -> int:
    _check_evaluation()
    try:
        from evaluation import report
        from evaluation.compare import compare
        from evaluation.writers import Sweep
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'flow-language-models[evaluation,plots]'.") from error
    from transformers.utils import logging

    _check_device(options.device)
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
    report.write(result, Path(options.output))
    print(f"The comparison is in {options.output}: evaluation.md, evaluation.json, frontier.png.")
    return 0


def _convert(options: argparse.Namespace) -> int:
    from huggingface_hub import snapshot_download

    from hub_cards.convert import convert, read_source
    from hub_cards.push import push

    from .paths import check_path, reading

    if options.push_to_hub and not options.tokenizer:
        raise ValueError("a repository on the Hub needs a tokenizer: --push-to-hub goes with --tokenizer.")
    path, config = Path(options.source), options.config and Path(options.config)
    for name in (options.tokenizer, options.config):
        if name:
            check_path(name)
    if path.exists():
        source = read_source(path, config, averaged=not options.raw)
    else:
        with reading(options.source):
            path = Path(snapshot_download(options.source, allow_patterns=["config.json", "model.safetensors"]))
        source = read_source(path)
        source.name = options.source
    model = convert(source, Path(options.output), options.tokenizer, options.final_logit_softcapping)
    kind = "a flow map (FMLM)" if model.config.model_type == "fmlm" else "a flow (FLM)"
    if source.dropped:
        print(f"Dropped: {', '.join(source.dropped)}.")
    print(f"{options.output} is {kind} of {model.num_parameters() / 1e6:.1f} M parameters, loaded again and compared.")
    if options.push_to_hub:
        print(push(Path(options.output), options.push_to_hub))
    return 0


def _export_official(options: argparse.Namespace) -> int:
    from transformers import AutoModel

    import modeling_flm  # noqa: F401  registers the model types
    from hub_cards.convert import export_official

    from .paths import reading

    with reading(options.model):
        model = AutoModel.from_pretrained(options.model)
    export_official(model, Path(options.output))
    print(f"{options.output} is in the official form.")
    return 0


def _push(options: argparse.Namespace) -> int:
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


def _card(options: argparse.Namespace) -> int:
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


def _demo(options: argparse.Namespace) -> int:
    from .paths import checkout

    _check_evaluation()
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

    from .demo import run_demo

    run_demo(options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
