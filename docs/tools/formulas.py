"""The formula of each rule, as its op's docstring states it, and how it looks when typeset.

A docstring ends with lines such as

    da = dy @ b.mT
    dx = dy * (1 + t) / 2
    with t = tanh(x)

A formula is an expression of Python, which is turned into MathML, the language of formulas that
browsers show by themselves; what is no expression is words and stays as it is.
"""

import ast
import inspect
import re
from typing import NamedTuple

from tinygrad_nnfs.registry import Op

LINE = re.compile(r"(with )?(\w+)(\[[^\]]*\])? = (.+)")


class Formula(NamedTuple):
    """`target` is "dx", or "dx[n, c]"; `value` an expression, or words."""

    target: str
    value: str

    @property
    def name(self) -> str:
        return self.target.partition("[")[0]

    @property
    def expression(self) -> ast.expr | None:
        try:
            return ast.parse(self.value, mode="eval").body
        except SyntaxError:
            return None


class Block(NamedTuple):
    """What a docstring says: its text, the formula of each rule, and the names that these use."""

    text: str
    rules: list[Formula]
    definitions: list[Formula]


def read(op: Op[...]) -> Block:
    """Take an op's docstring to pieces. An indented line goes on with the line before."""
    rules: list[Formula] = []
    definitions: list[Formula] = []
    text = []
    doc = re.sub(r"\n +(?=\S)", " ", inspect.getdoc(op.reference) or "")
    expected = {"d" + name.strip("*") for name in inputs(op)}
    for line in doc.splitlines():
        match = LINE.fullmatch(line)
        if match and (match[1] or match[2] in expected):
            formula = Formula(match[2] + (match[3] or ""), match[4])
            (definitions if match[1] else rules).append(formula)
        else:
            text.append(line)
    return Block("\n".join(text).strip(), rules, definitions)


def inputs(op: Op[...]) -> list[str]:
    """The names of the positional inputs; `*xs` where there may be any number."""
    parameters = list(inspect.signature(op.reference).parameters.values())[1:]
    return [
        "*" * (p.kind is p.VAR_POSITIONAL) + p.name
        for p in parameters
        if p.kind is not p.KEYWORD_ONLY
    ]


# -- from an expression to MathML ------------------------------------------------------------------

GREEK = {"alpha": "&#945;", "beta": "&#946;", "eps": "&#949;", "pi": "&#960;"}
SIGNS: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "−",  # noqa: RUF001, the minus of formulas
    ast.Mult: "·",
    ast.MatMult: "\u2009",
    ast.BitAnd: "and",
    ast.Eq: "=",
    ast.NotEq: "≠",
    ast.Lt: "<",
    ast.LtE: "≤",
    ast.Gt: ">",
    ast.GtE: "≥",
}
# how tightly an operator binds: parentheses stand around what binds less
SUM, PRODUCT, SIGN, POWER, ATOM = range(5)


def mathml(formula: Formula) -> str:
    """The formula as a <math> element; one in words as text."""
    target, expression = _target(formula.target), formula.expression
    if expression is None:
        return f"<math>{target}</math> = {_escape(formula.value)}"
    return f'<math displaystyle="true">{target}<mo>=</mo>{_show(expression)}</math>'


def _show(node: ast.expr, around: int = SUM) -> str:
    """`node` as MathML, in parentheses if it binds less than `around`."""
    shown, binds = _typeset(node)
    return shown if binds >= around else f"<mrow>{_enclosed(shown)}</mrow>"


def _typeset(node: ast.expr) -> tuple[str, int]:
    """MathML, and how tightly its outermost operator binds."""
    match node:
        case ast.Name(id=name):
            return _name(name), ATOM
        case ast.Constant(value=value):
            return f"<mn>{value!r}</mn>", ATOM
        case ast.UnaryOp(op=ast.USub(), operand=x):
            return f"<mrow><mo>−</mo>{_show(x, PRODUCT)}</mrow>", SIGN  # noqa: RUF001
        case ast.BinOp(left=a, op=ast.Div(), right=b):
            return f"<mfrac>{_row(_show(a))}{_row(_show(b))}</mfrac>", PRODUCT
        case ast.BinOp(left=a, op=ast.Pow(), right=b):
            return f"<msup>{_row(_show(a, ATOM))}{_row(_show(b))}</msup>", POWER
        case ast.BinOp(left=a, op=ast.Mult() | ast.MatMult() as sign, right=b):
            return f"{_factor(a)}<mo>{SIGNS[type(sign)]}</mo>{_factor(b)}", PRODUCT
        case ast.BinOp(left=a, op=sign, right=b):
            tight = PRODUCT if isinstance(sign, ast.Sub) else SUM
            return f"{_term(a)}<mo>{SIGNS[type(sign)]}</mo>{_term(b, tight)}", SUM
        case ast.Compare(left=a, ops=[sign], comparators=[b]):
            return f"{_show(a)}<mo>{_escape(SIGNS[type(sign)])}</mo>{_show(b)}", SUM
        case ast.Attribute(value=x, attr="mT"):
            return f"<msup>{_row(_show(x, ATOM))}<mi>T</mi></msup>", POWER
        case ast.Attribute(value=x, attr=name):
            return f"<mrow><mtext>{name} of&#160;</mtext>{_show(x, ATOM)}</mrow>", ATOM
        case ast.Subscript(value=x, slice=place):
            return f"<mrow>{_show(x, ATOM)}{_enclosed(_show(place), '[]')}</mrow>", ATOM
        case ast.Tuple(elts=parts):
            listed = "<mo>,</mo>".join(map(_show, parts))
            return f"<mrow>{_enclosed(listed)}</mrow>", ATOM
        case ast.Call(func=ast.Name(id=function), args=arguments):
            return _call(function, arguments)
    raise ValueError(f"a formula uses what is not known how to typeset: {ast.unparse(node)}")


def _factor(node: ast.expr) -> str:
    """A factor of a product; a comparison in brackets, which make 1 or 0 of it."""
    return _bracketed(node) or _show(node, PRODUCT)


def _term(node: ast.expr, around: int = SUM) -> str:
    return _bracketed(node) or _show(node, around)


def _bracketed(node: ast.expr) -> str:
    is_number = isinstance(node, ast.Compare)
    return f"<mrow>{_enclosed(_show(node), '[]')}</mrow>" if is_number else ""


def _call(function: str, arguments: list[ast.expr]) -> tuple[str, int]:
    first, rest = arguments[0], arguments[1:]
    if function == "sqrt":
        return f"<msqrt>{_show(first)}</msqrt>", ATOM
    if function == "exp":
        return f"<msup><mi>e</mi>{_row(_show(first))}</msup>", POWER
    if function == "where":
        condition, a, b = map(_show, arguments)
        rows = [(a, "if", condition), (b, "otherwise", "")]
        table = "".join(
            f'<mtr><mtd style="text-align: left">{value}</mtd>'
            f'<mtd style="text-align: left"><mtext>{word}&#160;</mtext>{when}</mtd></mtr>'
            for value, word, when in rows
        )
        return f"<mrow><mo>{{</mo><mtable>{table}</mtable></mrow>", ATOM
    if function == "sum":
        return f"<munder><mo>∑</mo>{_row(_show(rest[0]))}</munder>{_factor(first)}", PRODUCT
    if function in ("mean", "var"):
        name = f"<munder><mo>{function}</mo>{_row(_show(rest[0]))}</munder>"
        return f"<mrow>{name}{_enclosed(_show(first))}</mrow>", ATOM
    listed = "<mo>,</mo>".join(map(_show, arguments))
    return f"<mrow><mi>{function}</mi>{_enclosed(listed)}</mrow>", ATOM


def _name(name: str) -> str:
    if name == "dy":
        return _gradient(name)
    return f"<mi>{GREEK.get(name, name)}</mi>"


def _gradient(name: str) -> str:
    """`dx` with an upright d."""
    return f'<mrow><mi mathvariant="normal">d</mi><mi>{name[1:]}</mi></mrow>'


def _target(target: str) -> str:
    """`dx`, `dx[k]`, or a name that is defined."""
    name, bracket, places = target.partition("[")
    shown = _gradient(name) if re.match("d[a-z]", name) else _name(name)
    return shown + (_enclosed(f"<mi>{places[:-1]}</mi>", "[]") if bracket else "")


def _enclosed(content: str, signs: str = "()") -> str:
    """In parentheses or brackets: high ones round a fraction, say, but not round an exponent."""
    high = any(tag in content for tag in ("<mfrac>", "<msqrt>", "<mtable>", "<munder>"))
    stretch = "" if high else ' stretchy="false"'
    return f"<mo{stretch}>{signs[0]}</mo>{content}<mo{stretch}>{signs[1]}</mo>"


def _row(content: str) -> str:
    return f"<mrow>{content}</mrow>"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
