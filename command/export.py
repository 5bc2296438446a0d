"""`flm export`: a flow map as an ONNX graph."""

import argparse
from pathlib import Path

from flm_data.paths import reading

from .options import integers, output_folder


def add(commands) -> None:
    """Add the subcommand to those of the parser."""
    command = commands.add_parser(
        "export",
        help="write a flow map as an ONNX graph, to run without Python",
        description="Write a flow map as an ONNX graph, with its tokenizer, to run with onnxruntime. What is exported "
        "is a step of the flow_map sampler, which makes refinements, too; guidance, rewards and other samplers are "
        "not. docs/deploy.md says how to run it.",
    )
    command.add_argument("model", help="a flow map (FMLM): a model folder or a name on the Hub")
    command.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    command.add_argument(
        "--num-steps",
        type=integers,
        default=[1, 2, 4],
        metavar="N[,N...]",
        help="numbers of evaluations that the graph is told the times of (default: 1,2,4)",
    )
    command.add_argument("--gamma", type=float, help="noise put back after a jump, 0 to 1 (default: the model's own)")
    command.add_argument(
        "--dtype", choices=("float32", "float16", "int8"), default="float32", help="of the weights (default: float32)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        import onnxscript  # noqa: F401  whether it is there
    except ImportError as error:
        raise ValueError(f"{error}: pip install 'flow-language-models[onnx]'.") from error
    from huggingface_hub import snapshot_download

    from hub_cards.export import export

    output = output_folder(options.output, options.model)
    folder, source = Path(options.model), None
    with reading(options.model):
        if not folder.exists():
            folder, source = Path(snapshot_download(options.model)), options.model
        path = export(folder, output, options.num_steps, options.gamma, options.dtype, source)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB) writes in {', '.join(map(str, options.num_steps))} steps.")
    return 0
