"""The reference of the ops: a page for each family, made of OPS, the docstrings and the source."""

import ast
import inspect
import re
import sys
from collections.abc import Iterator

from formulas import Formula, mathml, read
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from tinygrad_nnfs import OPS, Tensor, ops
from tinygrad_nnfs.registry import Op


def pages() -> dict[str, str]:
    """The pages in Markdown, by their names: "index" and one for each file of ops."""
    families = by_family()
    found = {"index": index(families)}
    for family, members in families.items():
        doc = prose(module_doc(f"tinygrad_nnfs.ops.{family}"))
        others = " · ".join(
            name.capitalize() if name == family else f"[{name.capitalize()}]({name}.md)"
            for name in families
        )
        sections = "\n\n".join(section(op) for op in members)
        here = " · ".join(f"[{op.__name__}](#{op.__name__})" for op in members)
        found[family] = (
            f"---\nhide: [navigation, toc]\n---\n# {family.capitalize()}\n\n"
            f"[All ops](index.md): {others}\n\n{doc}\n\n{here}\n\n{sections}\n"
        )
    return found


def by_family() -> dict[str, list[Op[...]]]:
    """The library's ops, in the order of their source."""
    families: dict[str, list[Op[...]]] = {}
    for name in ops.__all__:
        family = OPS[name].reference.__module__.rpartition(".")[2]
        families.setdefault(family, []).append(OPS[name])
    for members in families.values():
        members.sort(key=lambda op: inspect.getsourcelines(op.reference)[1])
    return dict(sorted(families.items()))


def module_doc(name: str) -> str:
    return inspect.getdoc(sys.modules[name]) or ""


def index(families: dict[str, list[Op[...]]]) -> str:
    lines = [
        "# The ops",
        "",
        prose(module_doc("tinygrad_nnfs.ops")),
        "",
        "These pages are made from the source whenever the site is built: on the left the formula "
        "of each rule, typeset from the docstring, on the right the op's block as it stands. "
        "All are functions of `tinygrad_nnfs.ops`.",
    ]
    for family, members in families.items():
        lines += ["", f"## [{family.capitalize()}]({family}.md)", "", "| op | |", "| --- | --- |"]
        for op in members:
            first = prose(re.split(r"(?<=[.:;])\s", read(op).text)[0].rstrip(".:;"))
            lines.append(f"| [`{op.__name__}`]({family}.md#{op.__name__}) | {escape_cell(first)} |")
    return "\n".join(lines) + "\n"


def section(op: Op[...]) -> str:
    """One op: how it is called, what it does, and its block with the formulas beside the rules."""
    block = read(op)
    called = [f"`{op.__name__}{inspect.signature(op)}`", *(f"`{m}`" for m in methods(op))]
    *before, (_, end) = parts(op)
    rows = [row(beside, [], code) for beside, code in before] + [row([], block.definitions, end)]
    return f"""## {op.__name__} {{ #{op.__name__} }}

{", also ".join(called)}

{prose(block.text)}

<div class="block">
{"".join(rows)}
</div>"""


def methods(op: Op[...]) -> list[str]:
    """How else it is written: `x.sum()`, `a @ b`."""
    symbols = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "pow": "**", "matmul": "@"}
    symbols |= {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
    special = {"__neg__": "-x", "__abs__": "abs(x)", "__getitem__": "x[index]"}
    found = []
    for name in vars(Tensor):
        method = vars(Tensor)[name]
        wrapped = getattr(method, "__wrapped__", None)
        if wrapped not in (op, op.reference) or name.startswith("__r"):
            continue
        symbol = symbols.get(name.strip("_"))
        if name in special:
            found.append(special[name])
        elif symbol:
            found.append(f"a {symbol} b")
        elif not name.startswith("_"):
            found.append(f"x.{name}(...)" if op.kinds and len(names(op)) > 1 else f"x.{name}()")
    return found


def names(op: Op[...]) -> list[str]:
    return list(inspect.signature(op).parameters)


def parts(op: Op[...]) -> Iterator[tuple[list[Formula], str]]:
    """The source of the op in consecutive parts, each with the formulas that stand beside it.

    Blank lines begin a part: a browser does not show them at its end.
    """
    source = inspect.getsource(op.reference)
    lines = source.splitlines()
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    inner = [node for node in function.body if isinstance(node, ast.FunctionDef)]
    beside: dict[ast.FunctionDef, list[Formula]] = {}
    for formula in read(op).rules:
        own = [node for node in inner if node.name == formula.name]
        # an op of many inputs makes all its rules in one place
        beside.setdefault((own or inner)[-1], []).append(formula)
    start = 0
    for rule in sorted(beside, key=lambda node: node.lineno):
        first = rule.lineno - 1
        while not lines[first - 1]:
            first -= 1
        if first > start:
            yield [], "\n".join(lines[start:first])
        start = rule.end_lineno or 0
        yield beside[rule], "\n".join(lines[first:start])
    yield [], "\n".join(lines[start:])


def row(beside: list[Formula], definitions: list[Formula], code: str) -> str:
    shown = "".join(f"<p>{mathml(formula)}</p>" for formula in beside)
    if definitions:
        shown += "".join(
            f"<p>{'and' if i else 'with'} {mathml(d)}</p>" for i, d in enumerate(definitions)
        )
    coloured = highlight(code, PythonLexer(stripall=False, stripnl=False), FORMATTER)
    return (
        f'<div class="formulas">{shown}</div>'
        f'<div class="highlight"><pre><code>{coloured.rstrip()}</code></pre></div>'
    )


FORMATTER = HtmlFormatter(nowrap=True)


def prose(docstring: str) -> str:
    """Docstrings are Markdown but for signs that would be taken for emphasis or tags."""
    pieces = re.split(r"(`[^`]*`)", docstring)
    return (
        "".join(
            piece if piece.startswith("`") else re.sub(r"([*_<>\[\]^])", r"\\\1", piece)
            for piece in pieces
        )
        .replace("\\<", "&lt;")
        .replace("\\>", "&gt;")
        .replace("\\^", "^")
    )


def escape_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
