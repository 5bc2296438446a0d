"""What `mkdocs build` does besides.

Formulas become MathML, links that leave docs/ paths of the repository, and names in docstrings links.
`<!-- files of modeling_flm/ -->` becomes the list of that folder's files, and on the page of the method the name of a
function is preceded by that of its file.

Browsers draw MathML themselves, so a page needs no script and no font for its formulas. On GitHub the same pages are
read as they are: there `$...$` is a formula, and `../benchmarks/few_step.md` a link.
"""

import ast
import html
import os
import re
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[2]
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
NAME = re.compile(r"\[<code>~?([\w.]+)</code>\]")  # transformers' way to refer to an object: [`Name`]
FILES = re.compile(r"<!-- files of (\w+)/ -->")
CODE = re.compile(r"(?<!`)`([A-Za-z_]\w*)((?:\.\w+)?)`(?!`)")
TYPE = re.compile(r"<code>(`[^<]*)</code>")  # of a parameter, as transformers writes it: (`int`, *optional*)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page, **_) -> str:
    """Write a link to a file outside docs/ as its text and its path: the site holds no copy of such files.

    Raises:
        ValueError: there is no such file.
    """

    def to_path(match: re.Match) -> str:
        target = Path(os.path.normpath(Path(page.file.abs_src_path).parent / match[2]))
        if not target.exists():
            raise ValueError(f"{page.file.src_path}: {match[2]} leads nowhere.")
        path = f"`{target.relative_to(ROOT)}`"
        return path if match[1].strip("`") in path else f"{match[1]} ({path})"

    markdown = FILES.sub(lambda match: files(match[1]), LINK.sub(to_path, markdown))
    if page.file.src_path != "method.md":
        return markdown
    places = definitions("modeling_flm", "trainers")
    return CODE.sub(lambda match: f"`{places.get(match[1], '')}{match[1]}{match[2]}`", markdown)


def definitions(*folders: str) -> dict[str, str]:
    """Of each function and class of some folders, the file it is in: `flow_flm.`"""
    places = {}
    for file in [file for folder in folders for file in (ROOT / folder).glob("*.py")]:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                places[node.name] = f"{file.stem}."
    return places


def files(folder: str) -> str:
    """A table of the Python files of a folder, with the first sentence of each."""
    rows = ["| file | what it is |", "| --- | --- |"]
    for file in sorted((ROOT / folder).glob("*.py")):
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        first = said.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        if file.name != "__init__.py":
            rows.append(f"| `{file.name}` | {first} |")
    return "\n".join(rows)


def on_page_content(content: str, **_) -> str:
    """Replace the formulas that `pymdownx.arithmatex` has found, and the names of objects that this page describes."""
    anchors = {anchor.rpartition(".")[2]: anchor for anchor in re.findall(r'id="([\w.]+)"', content)}

    def to_mathml(match: re.Match) -> str:
        display = "block" if match[1] == "div" else "inline"
        return convert(html.unescape(match[2]).strip(), display=display)

    def to_link(match: re.Match) -> str:
        name = match[1].rpartition(".")[2]
        code = f"<code>{name}</code>"
        return f'<a href="#{anchors[name]}">{code}</a>' if name in anchors else code

    content = TYPE.sub(lambda match: re.sub("[`*]", "", match[0]), content)
    return NAME.sub(to_link, FORMULA.sub(to_mathml, content))
