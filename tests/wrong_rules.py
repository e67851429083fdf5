"""Wrong rules, made out of our own ops by changing one place each: does `check_op` catch them?

    python tests/wrong_rules.py                  # all; a table by kind; status 1 below 99 %
    python tests/wrong_rules.py --op conv2d -v   # those of one op, one line each

What is changed is the rules of `tinygrad_nnfs/ops` and the functions that only rules use. A module
with one changed place is compiled as a whole, so that the op, its samples and Tensor's methods are
as always, and the op is given to `checking.check_op`.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import inspect
import itertools
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tinygrad_nnfs import OPS, Tensor, registry
from tinygrad_nnfs.checking import CheckError, check_op

MODULES = (
    *("activation", "arithmetic", "convolution", "dropout", "linear", "loss", "normalization"),
    *("pooling", "reduce", "shape"),
)
# functions beside the ops that nothing but rules uses, whole or (the last) where they say dy
HELPERS = ("unbroadcast", "_restore", "_share_among_ties", "_through_statistics", "col2im")
PARTS = ("reduce_losses",)

# Changes that leave the rule right: (function, or op in function; the changed line) -> why.
AT_THE_KINK = "another slope between those of both sides; tests/test_conventions.py holds ours"
MEMORY_ORDER = "the memory order alone is another"
EQUIVALENT: dict[tuple[str, str], str] = {
    ("relu", "return xp.where(x >= 0, dy, 0)"): AT_THE_KINK,
    ("elu", "return xp.where(x >= 0, dy, dy * (y + alpha))"): AT_THE_KINK,
    ("elu", "return xp.where(y > 0, dy, dy * (y + alpha))"): "y > 0 just where x > 0",
    ("clip", "inside &= x > low"): AT_THE_KINK,
    ("clip", "inside &= x < high"): AT_THE_KINK,
    ("clip", "inside = x >= low"): "inside is all True before",
    (
        "unbroadcast",
        "return dy.sum(axis=(*range(added), *stretched), keepdims=False).reshape(shape)",
    ): "reshape gives the axes back",
    (
        "power",
        "return unbroadcast(dy * y * xp.log(a + (y == 0), dtype=dy.dtype), b.shape)",
    ): "a ** b is 0 just where a is, for the b > 0 that it has a derivative for",
    (
        "maximum",
        "return unbroadcast(xp.where(a == b, dy / 2, xp.where(a >= b, dy, 0)), a.shape)",
    ): "equal elements have been dealt with",
    (
        "maximum",
        "return unbroadcast(xp.where(a == b, dy / 2, xp.where(b >= a, dy, 0)), b.shape)",
    ): "equal elements have been dealt with",
    (
        "minimum",
        "return unbroadcast(xp.where(a == b, dy / 2, xp.where(a <= b, dy, 0)), a.shape)",
    ): "equal elements have been dealt with",
    (
        "minimum",
        "return unbroadcast(xp.where(a == b, dy / 2, xp.where(b <= a, dy, 0)), b.shape)",
    ): "equal elements have been dealt with",
    (
        "conv2d_naive",
        "gradient = pad_image(xp, xp.zeros_like(x), geometry.padding, 1)",
    ): "the padding is cropped away",
    (
        "softmax_cross_entropy",
        "gradient *= spread(dy).reshape(-2, 1)",
    ): "numpy takes any negative size for -1",
    (
        "soft_cross_entropy",
        "return gradient * spread(dy).reshape(-2, 1)",
    ): "numpy takes any negative size for -1",
    (
        "soft_cross_entropy",
        "return -log_softmax * spread(dy).reshape(-2, 1)",
    ): "numpy takes any negative size for -1",
    (
        "soft_cross_entropy",
        "gradient = xp.exp(log_softmax) * targets.sum(axis=-1, keepdims=True) - targets",
    ): "axis 1 is the last",
    (
        "matmul in unbroadcast",
        "return dy.sum(axis=(*range(added), *stretched), keepdims=True)",
    ): "matmul's rules end with reshape themselves",
    (
        "softmax_cross_entropy in reduce_losses",
        "lambda dy: dy.astype('float64')",
    ): "what it is multiplied into keeps its dtype",
    (
        "softmax_cross_entropy in reduce_losses",
        "lambda dy: (dy * share).astype('float64')",
    ): "what it is multiplied into keeps its dtype",
    (
        "_share_among_ties",
        "chosen = x == _restore(xp, y, x.shape, axis, keepdims)",
    ): "NaN alone, which has no derivative; tests/test_conventions.py holds it",
    (
        "max_pool2d",
        "first = padded[place] == y",
    ): "NaN alone, which has no derivative; tests/test_kernels.py holds it",
    (
        "max_pool2d",
        "padded = pad_image(xp, x, padding, xp.inf)",
    ): "the padding is not the largest of a window either way",
    (
        "reshape",
        "return dy.transpose(order).transpose([order.index(i) for i in range(dy.ndim)])",
    ): MEMORY_ORDER,
}


class Mutant(NamedTuple):
    """One wrong rule."""

    op: str
    function: str  # that was changed: the op itself, or a helper of its rules
    kind: str
    before: str
    after: str
    module: str
    source: str  # of the whole module

    def __str__(self) -> str:
        where = "" if self.function == self.op else f" in {self.function}"
        return f"{self.op}{where}, {self.kind}: {self.before}  ->  {self.after}"


# its kind, the line before, the line after (the same one if it changes inside), make it, undo it
Change = tuple[str, ast.AST | None, ast.AST, Callable[[], None], Callable[[], None]]


# -- changes ---------------------------------------------------------------------------------------


def expression(code: str, **parts: ast.expr) -> ast.expr:
    """An expression with names replaced by other expressions."""

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return copy.deepcopy(parts.get(node.id, node))

    return Fill().visit(ast.parse(code, mode="eval").body)


OPPOSITE = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
LOGIC = {ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr}
COMPARED = {
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
DROPPED = {  # methods that return their array in another form
    "swapaxes": "transposed",
    "transpose": "transposed",
    "reshape": "shape",
    "copy": "memory",
    "astype": "dtype",
}


def changed_result(value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """What may be wrong with the result of a rule as a whole."""
    for kind, code in (
        ("sign", "-(g)"),
        ("factor", "2 * (g)"),
        ("factor", "(g) / 2"),
        ("transposed", "transposed(g)"),
        ("dtype", "(g).astype('float64')"),
        ("one element", "all_but_the_last(g)"),
    ):
        yield kind, expression(code, g=value)


def changed_node(node: ast.AST, saved: list[str]) -> Iterator[tuple[str, ast.AST]]:
    """What may be wrong with one node of a rule's expressions."""
    match node:
        case ast.BinOp(left, op, right) if type(op) in OPPOSITE:
            kind = "sign" if isinstance(op, ast.Add | ast.Sub) else "factor"
            yield kind, ast.BinOp(left, OPPOSITE[type(op)](), right)
            yield "dropped term", left
            yield "dropped term", right
            if isinstance(op, ast.Sub | ast.Div):
                yield "swapped", ast.BinOp(right, op, left)
        case ast.BinOp(left, op, right) if type(op) in LOGIC:
            yield "ties", ast.BinOp(left, LOGIC[type(op)](), right)
            yield "ties", left
            yield "ties", right
        case ast.UnaryOp(ast.USub() | ast.Invert(), operand):
            yield "sign" if isinstance(node.op, ast.USub) else "ties", operand
        case ast.Compare(left, [op], right) if type(op) in COMPARED:
            for other in COMPARED[type(op)]:
                yield "ties", ast.Compare(left, [other()], right)
        case ast.Call(ast.Name("unbroadcast"), [inner, _]):
            yield "missing un-broadcast", inner
        case ast.Call(ast.Name("slice"), [start, stop]):
            for code in ("slice(a + 1, b)", "slice(a, b + 1)", "slice(a + 1, b + 1)"):
                yield "off by one", expression(code, a=start, b=stop)
        case ast.Call(ast.Attribute(_, "matmul"), [a, b]):
            yield "swapped", ast.Call(node.func, [b, a], node.keywords)
            yield "transposed", expression("(g).swapaxes(-1, -2)", g=node)
        case ast.Call(ast.Attribute(_, "where"), [condition, a, b]):
            yield "swapped", ast.Call(node.func, [condition, b, a], [])
            yield "dropped term", a
            yield "dropped term", b
        case ast.Call(ast.Attribute(_, "exp" | "log" | "sign"), [inner, *_]):
            yield "function", inner
        case ast.Call(ast.Attribute(inner, "sum" | "mean" as name), arguments):
            other = ast.Attribute(inner, "mean" if name == "sum" else "sum", ast.Load())
            yield "factor", ast.Call(other, arguments, node.keywords)
            if not node.keywords:
                yield "dropped term", inner
        case ast.Call(ast.Attribute(inner, name)) if name in DROPPED:
            yield DROPPED[name], inner
        case ast.Attribute(inner, "T"):
            yield "transposed", inner
        case ast.keyword("axis", value):
            for other in ("0", "-1", "None"):
                if ast.unparse(value) != other:
                    yield "axis", ast.keyword("axis", expression(other))
            if isinstance(value, ast.Tuple):
                yield "axis", ast.keyword("axis", ast.Tuple(value.elts[1:], ast.Load()))
                yield "axis", ast.keyword("axis", ast.Tuple(value.elts[:-1], ast.Load()))
        case ast.keyword("keepdims", ast.Constant(value=True)):
            yield "axis", ast.keyword("keepdims", ast.Constant(False))
        case ast.Constant(bool() | str() | None):
            pass
        case ast.Constant(value=value):
            yield "off by one", ast.Constant(value + 1)
            if value:
                yield "factor", ast.Constant(2 * value)
        case ast.Slice(start, None) if start is not None:
            yield "off by one", ast.Slice(expression("a + 1", a=start), None)
        case ast.Subscript(array, ast.Tuple(places)) if len(places) > 2:
            for i in range(len(places) - 1):
                turned = [*places[:i], places[i + 1], places[i], *places[i + 2 :]]
                if [*map(ast.dump, turned)] != [*map(ast.dump, places)]:
                    index = ast.Tuple(turned, ast.Load())
                    yield "axis", ast.Subscript(array, index, node.ctx)
        case ast.Name(name, ast.Load()) if name in saved:
            for other in saved:
                if other != name:
                    yield "wrong save", ast.Name(other, ast.Load())


def changed_statement(node: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    """What may be wrong with one statement of a rule."""
    match node:
        case ast.Return(value) if value is not None and not isinstance(value, ast.Tuple):
            for kind, other in changed_result(value):
                yield kind, ast.Return(other)
        case ast.AugAssign(target, op, value):
            yield "accumulation", ast.Assign([target], value)
            yield "dropped term", ast.Pass()
            if type(op) in OPPOSITE:
                yield "sign", ast.AugAssign(target, OPPOSITE[type(op)](), value)
            if type(op) in LOGIC:
                yield "ties", ast.AugAssign(target, LOGIC[type(op)](), value)
        case ast.Expr(
            ast.Call(ast.Attribute(ast.Attribute(_, "add"), "at"), [array, index, value])
        ):
            place = ast.Subscript(array, index, ast.Store())
            yield "accumulation", ast.AugAssign(place, ast.Add(), value)
        case ast.For(target, iterable, body):
            for code in ("list(a)[1:]", "list(a)[:-1]"):
                yield "off by one", ast.For(target, expression(code, a=iterable), body, [])


def children(node: ast.AST) -> Iterator[tuple[ast.AST, Callable[[ast.AST], None]]]:
    """Each child of a node, and the function that puts another in its place."""
    for name, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            yield value, lambda other, name=name: setattr(node, name, other)
        elif isinstance(value, list):
            for i, part in enumerate(value):
                if isinstance(part, ast.AST):
                    yield part, lambda other, value=value, i=i: value.__setitem__(i, other)


def changes(node: ast.AST, saved: list[str], line: ast.AST) -> Iterator[Change]:
    """Every change below a node: its kind, the line before and after, how to make and undo it."""
    if isinstance(node, ast.Lambda):
        for kind, other in changed_result(node.body):
            yield kind, line, line, *swap(lambda new: setattr(node, "body", new), node.body, other)
    for child, put in children(node):
        if isinstance(child, ast.arguments | ast.Global):
            continue
        # the line that a report shows: a simple statement, or the head of a compound one
        inner = child if isinstance(child, ast.stmt) else line
        if isinstance(child, ast.stmt):
            for kind, other in changed_statement(child):
                yield kind, child, other, *swap(put, child, other)
        else:
            for kind, other in changed_node(child, saved):
                yield kind, inner, inner, *swap(put, child, other)
        yield from changes(child, saved, inner)


def swap(
    put: Callable[[ast.AST], None], old: ast.AST, new: ast.AST
) -> tuple[Callable[[], None], Callable[[], None]]:
    return lambda: put(new), lambda: put(old)


# -- where rules are -------------------------------------------------------------------------------


def arguments(function: ast.FunctionDef | ast.Lambda) -> list[str]:
    args = function.args
    return [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]


def functions_in(node: ast.AST) -> Iterator[Any]:
    """The outermost functions and lambdas below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda):
            yield child
        else:
            yield from functions_in(child)


def is_rule(function: ast.AST) -> bool:
    """It takes dy, or makes a function that does."""
    return any(
        "dy" in arguments(f)
        for f in ast.walk(function)
        if isinstance(f, ast.FunctionDef | ast.Lambda)
    )


def saved_by(op: ast.FunctionDef) -> list[str]:
    """The arrays that the rules of an op may have saved: its inputs, and what is called y."""
    inputs = [a.arg for a in op.args.args if a.arg != "xp"]
    return inputs + sorted(names(op, ast.Store) & {"y"})


def names(node: ast.AST, context: type = ast.expr_context) -> set[str]:
    """The names below a node: all, or those that are assigned to (ast.Store)."""
    found = (n for n in ast.walk(node) if isinstance(n, ast.Name))
    return {n.id for n in found if isinstance(n.ctx, context)}


def below_op(op: ast.FunctionDef) -> Iterator[Change]:
    """Every change of the rules of an op."""
    saved = saved_by(op)
    rules = [f for f in functions_in(op) if is_rule(f)]
    for rule in rules:
        yield from changes(rule, saved, rule)
        if isinstance(rule, ast.FunctionDef) and "dy" in arguments(rule):
            yield from insertions(rule, saved)
    yield from at_return(op, rules, saved)


def insertions(rule: ast.FunctionDef, saved: list[str]) -> Iterator[Change]:
    """In-place changes of dy and of what was saved."""
    used = names(rule)
    for name in ["dy", *(s for s in saved if s in used)]:
        (line,) = ast.parse(f"xp.multiply({name}, 2, out={name})").body
        yield "in-place mutation", None, line, *insert(rule.body, 0, line)


def at_return(op: ast.FunctionDef, rules: list[Any], saved: list[str]) -> Iterator[Change]:
    """Forgotten and exchanged rules, and rules whose arrays are those of the call before."""
    last = op.body[-1]
    if not isinstance(last, ast.Return) or not isinstance(last.value, ast.Tuple):
        return
    parts = last.value.elts
    put = parts.__setitem__
    known = {getattr(f, "name", None) for f in rules}
    for i, part in enumerate(parts[1:], 1):
        if isinstance(part, ast.Name):
            nothing = ast.Constant(None)
            yield "forgotten rule", last, last, *swap(lambda new, i=i: put(i, new), part, nothing)
            if part.id not in known:  # it is the forward, too: wrong as a rule alone
                for kind, result in changed_result(expression("rule(dy)", rule=part)):
                    wrapped = expression("lambda dy: g", g=result)
                    yield kind, last, last, *swap(lambda new, i=i: put(i, new), part, wrapped)
    if len(parts) > 2 and isinstance(parts[1], ast.Name) and isinstance(parts[2], ast.Name):
        turned = [parts[0], parts[2], parts[1], *parts[3:]]
        yield (
            "swapped",
            last,
            last,
            *swap(
                lambda new: setattr(last, "value", new), last.value, ast.Tuple(turned, ast.Load())
            ),
        )
    inside = set().union(*(names(rule) - names(rule, ast.Store) for rule in rules))
    for name in sorted(inside & ({*saved} | names(op, ast.Store))):
        (line,) = ast.parse(f"{name} = of_the_last_call({name!r}, {name})").body
        yield "stale save", None, line, *insert(op.body, len(op.body) - 1, line)


def insert(
    body: list[ast.stmt], place: int, line: ast.stmt
) -> tuple[Callable[[], None], Callable[[], None]]:
    return lambda: body.insert(place, line), lambda: body.remove(line)


def used_by(op: ast.FunctionDef, functions: dict[str, ast.FunctionDef]) -> set[str]:
    """The functions of the module that an op uses, directly or not."""
    found: set[str] = set()
    stack: list[ast.AST] = [op]
    while stack:
        for node in ast.walk(stack.pop()):
            if isinstance(node, ast.Name) and node.id in functions and node.id not in found:
                found.add(node.id)
                stack.append(functions[node.id])
    return found


def mutants() -> Iterator[Mutant]:
    """All wrong rules, in the order of the source."""
    for name in MODULES:
        module = importlib.import_module(f"tinygrad_nnfs.ops.{name}")
        text = inspect.getsource(module)
        if "unbroadcast" in vars(module):  # a definition of its own hides what it imports
            text += "\nfrom tinygrad_nnfs.backend import Array\n"
            text += inspect.getsource(registry.unbroadcast)
        tree = ast.parse(text)
        functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}
        ops = [n for n in functions if n in OPS and OPS[n].reference.__module__ == module.__name__]
        for op in ops:
            yield from written(below_op(functions[op]), text, functions[op], module.__name__, op)
            for helper in sorted(used_by(functions[op], functions) & {*HELPERS, *PARTS}):
                function = functions[helper]
                parts = [function] if helper in HELPERS else filter(is_rule, functions_in(function))
                found = itertools.chain.from_iterable(changes(part, [], part) for part in parts)
                yield from written(found, text, function, module.__name__, op)


def written(
    found: Iterator[Change], text: str, function: ast.FunctionDef, module: str, op: str
) -> Iterator[Mutant]:
    """The mutants that changes of a function make, each with the module's source."""
    lines = text.splitlines()
    first = min(node.lineno for node in (function, *function.decorator_list)) - 1
    head, tail = "\n".join(lines[:first]), "\n".join(lines[function.end_lineno :])
    seen = set()
    for kind, old, new, make, undo in found:
        before = shown(old) if old else ""
        make()
        try:
            changed = ast.unparse(ast.fix_missing_locations(function))
            after = shown(new)
        finally:
            undo()
        if changed not in seen:
            seen.add(changed)
            source = f"{head}\n{changed}\n{tail}\n"
            yield Mutant(op, function.name, kind, before, after, module, source)


def shown(line: ast.AST) -> str:
    """The first line of a statement's source."""
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(line))).partition("\n")[0]


# -- checking them ---------------------------------------------------------------------------------


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """OPS and Tensor's methods are put back at the end."""
    ops, methods = dict(OPS), dict(vars(Tensor))
    try:
        yield
    finally:
        OPS.clear()
        OPS.update(ops)
        for name, value in methods.items():
            if vars(Tensor).get(name) is not value:
                setattr(Tensor, name, value)


class Tricks:
    """What changed rules call. `changed` says whether it ever made a difference."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        self.changed = False

    def transposed(self, gradient: Any) -> Any:
        self.changed = self.changed or gradient.ndim > 1
        return gradient.T

    def all_but_the_last(self, gradient: Any) -> Any:
        """The gradient, with another last element."""
        self.changed = True
        gradient = gradient.copy()
        if gradient.size:
            gradient[(-1,) * gradient.ndim] *= 1.5
        return gradient

    def of_the_last_call(self, name: str, value: Any) -> Any:
        """An array as it was in the call before, if it had that shape."""
        before, self.last[name] = self.last.get(name), copy.copy(value)
        same = isinstance(value, np.ndarray) and isinstance(before, np.ndarray)
        if not same or (before.shape, before.dtype) != (value.shape, value.dtype):
            return value
        self.changed = self.changed or not np.array_equal(before, value, equal_nan=True)
        return before


def caught(mutant: Mutant, cases: int = 25) -> str | None:
    """The first line of what `check_op` says of a mutant: "" if it finds it right.

    None if it is no mutant: what it would transpose is a vector, or save from the call before no
    array.
    """
    code = compile(mutant.source, f"<{mutant.op}>", "exec")
    tricks = Tricks()
    used = [name for name in vars(Tricks) if f"{name}(" in mutant.after]
    namespace = {"__name__": mutant.module, **{name: getattr(tricks, name) for name in used}}
    with as_before(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(code, namespace)
        try:
            check_op(OPS[mutant.op], cases=cases)
        except CheckError as error:
            return str(error).partition("\n")[0]
        except Exception as error:  # it cannot even be run
            return f"{type(error).__name__}: {error}".partition("\n")[0]
    return "" if tricks.changed or not used else None


def why_equivalent(mutant: Mutant) -> str | None:
    whole = (mutant.function, mutant.after)
    return EQUIVALENT.get(whole) or EQUIVALENT.get((f"{mutant.op} in {whole[0]}", whole[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--op", help="only the wrong rules of this op")
    parser.add_argument("--kind", help="only those of this kind")
    parser.add_argument("-v", action="store_true", help="a line for each")
    options = parser.parse_args()

    start = time.perf_counter()
    total, found, crashed, equivalent = Counter(), Counter(), Counter(), Counter()
    missed, wrongly_excused = [], []
    for mutant in mutants():
        if options.op not in (None, mutant.op) or options.kind not in (None, mutant.kind):
            continue
        reason = why_equivalent(mutant)
        message = caught(mutant)
        if message is None:
            continue
        total[mutant.kind] += 1
        if message and reason:
            wrongly_excused.append(f"{mutant}\n    {message}")
        if message:
            found[mutant.kind] += 1
            crashed[mutant.kind] += not message.startswith(mutant.op)
        elif reason:
            equivalent[mutant.kind] += 1
        else:
            missed.append(str(mutant))
        if options.v:
            print(f"{mutant}\n    {message or reason or 'MISSED'}", flush=True)

    print(f"{'kind':24}{'rules':>7}{'caught':>8}{'equivalent':>12}{'missed':>8}")
    for kind in sorted(total):
        left = total[kind] - found[kind] - equivalent[kind]
        print(f"{kind:24}{total[kind]:7}{found[kind]:8}{equivalent[kind]:12}{left:8}")
    wrong = total.total() - equivalent.total()
    share = found.total() / wrong if wrong else 1.0
    print(f"{'all':24}{total.total():7}{found.total():8}{equivalent.total():12}{len(missed):8}")
    print(
        f"\n{found.total()} of {wrong} wrong rules caught: {share:.2%}, {crashed.total()} of them "
        f"because they raised; {time.perf_counter() - start:.0f} s"
    )
    for line in missed:
        print(f"missed: {line}")
    for line in wrongly_excused:
        print(f"said to be equivalent, but caught: {line}")
    sys.exit(share < 0.99 or bool(wrongly_excused))


if __name__ == "__main__":
    main()
