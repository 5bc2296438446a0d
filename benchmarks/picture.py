"""The picture of README: a flow map's text, which comes about at once, beside a GPT-2's, token by token.

    python -m benchmarks.picture

writes `docs/images/one-step.svg` from the shipped `fmlm-tinystories` and the GPT-2 baseline. The animation counts
evaluations of the network, not seconds: `benchmarks/generation.md` has the times.
"""

import random
from collections.abc import Callable
from html import escape

import torch
from transformers import AutoModel, AutoTokenizer, GPT2LMHeadModel

from benchmarks.results import BASELINES, HUB, ROOT

PICTURE = ROOT / "docs" / "images" / "one-step.svg"
SEED = 0
LINE = 52  # characters of a line
PAUSE, EVALUATION, REST = 1.5, 0.08, 4.0  # seconds before the first evaluation, of each, and after the last
NOISE = "░▒▓"
PANEL, MARGIN, LINE_HEIGHT, TOP = 430, 16, 18, 62  # in pixels

Lines = list[list[tuple[str, int]]]  # of each line its tokens, each with the number of the evaluation that wrote it


def texts() -> tuple[list[str], list[str]]:
    """The tokens of a text of the flow map, in one evaluation, and of one of GPT-2's, in one evaluation each."""
    folder = HUB / "fmlm-tinystories"
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    flow_map = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    gpt2 = GPT2LMHeadModel.from_pretrained(BASELINES / "ar-tinystories").eval()
    at_once = flow_map.generate(num_steps=1, seed=SEED)[0]
    torch.manual_seed(SEED)
    one_by_one = gpt2.generate(torch.tensor([[tokenizer.bos_token_id]]))[0]
    special = set(tokenizer.all_special_tokens)

    def tokens(ids) -> list[str]:
        pieces = [tokenizer.decode([token]) for token in ids[1:]]  # behind BOS
        return ["" if piece in special else piece.replace("\n", " ").replace("\ufffd", "") for piece in pieces]

    return tokens(at_once), tokens(one_by_one)


def wrapped(tokens: list[str], evaluation_of: Callable[[int], int]) -> Lines:
    """The tokens in lines of at most `LINE` characters, broken before a token that begins with a space."""
    words: Lines = [[]]
    for i, token in enumerate(tokens):
        if token.startswith(" "):
            words.append([])
        words[-1].append((token, evaluation_of(i)))
    lines: Lines = [[]]
    width = LINE  # so that the first word begins a line, too
    for word in filter(None, words):
        length = sum(len(token) for token, _ in word)
        if width + length > LINE:
            lines.append([])
            word[0] = (word[0][0].lstrip(), word[0][1])
            width = -(length - sum(len(token) for token, _ in word))
        lines[-1] += word
        width += length
    return lines[1:]


def panel(x: int, title: str, lines: Lines, last: int) -> str:
    """A panel: its title, how far it is, and its text, which appears as it is written."""
    whole = PAUSE + EVALUATION * last + REST
    duration = f'dur="{whole:g}s" repeatCount="indefinite"'

    def at(evaluation: int) -> str:
        """When that evaluation is done, as a share of the time until the animation begins again."""
        return f"{(PAUSE + EVALUATION * evaluation) / whole:.4f}"

    done = max(evaluation for line in lines for _, evaluation in line)
    noise = random.Random(SEED)
    width, end = PANEL - 2 * MARGIN, at(done)
    parts = [
        f'<text class="title" x="{x}" y="26">{title}</text>',
        f'<rect class="track" x="{x}" y="38" width="{width}" height="4" rx="2"/>',
        f'<rect class="bar" x="{x}" y="38" width="{width}" height="4" rx="2"><animate attributeName="width" '
        f'values="0;0;{width};{width}" keyTimes="0;{at(0)};{end};1" {duration}/></rect>',
    ]
    for number, line in enumerate(lines):
        y = TOP + LINE_HEIGHT * (number + 1)
        if done == 1:
            symbols = "".join(noise.choice(NOISE) for token, _ in line for _ in token)
            parts.append(
                f'<text class="noise" x="{x}" y="{y}" fill-opacity="0">{symbols}<animate attributeName="fill-opacity" '
                f'calcMode="discrete" values="1;0" keyTimes="0;{end}" {duration}/></text>'
            )
        spans = [
            f'<tspan>{escape(token)}<animate attributeName="fill-opacity" calcMode="discrete" values="0;1" '
            f'keyTimes="0;{at(evaluation)}" {duration}/></tspan>'
            for token, evaluation in line
            if token
        ]
        parts.append(f'<text x="{x}" y="{y}" xml:space="preserve">{"".join(spans)}</text>')
    return "\n".join(parts)


STYLE = """
text { font: 12.5px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1f2328; }
.title { font: 600 14px system-ui, sans-serif; }
.noise { fill: #8c959f; }
.card { fill: #f6f8fa; stroke: #d1d9e0; }
.track { fill: #d1d9e0; }
.bar { fill: #4051b5; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .noise { fill: #7d8590; }
  .card { fill: #151b23; stroke: #3d444d; }
  .track { fill: #3d444d; }
  .bar { fill: #8c9eff; }
}
@media (prefers-reduced-motion: reduce) { tspan { fill-opacity: 1 !important; } .noise { display: none; } }
"""


def picture() -> str:
    """The picture, as SVG."""
    at_once, one_by_one = texts()
    last = len(one_by_one)
    sides = {
        "Flow map: 1 evaluation of the network": wrapped(at_once, lambda i: 1),
        f"GPT-2: {last} evaluations": wrapped(one_by_one, lambda i: i + 1),
    }
    height = TOP + LINE_HEIGHT * max(map(len, sides.values())) + MARGIN
    width = 2 * PANEL + MARGIN
    panels = []
    for left, (title, lines) in zip((0, PANEL + MARGIN), sides.items(), strict=True):
        card = f'<rect class="card" x="{left + 0.5}" y="0.5" width="{PANEL - 1}" height="{height - 1}" rx="8"/>'
        panels += [card, panel(left + MARGIN, title, lines, last)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="title">\n'
        '<title id="title">A flow map writes a text in one evaluation of its network, a GPT-2 token by token</title>\n'
        f"<style>{STYLE}</style>\n" + "\n".join(panels) + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
