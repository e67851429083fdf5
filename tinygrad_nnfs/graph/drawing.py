"""`draw`: the tape as a picture."""

import dataclasses
import html
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from tinygrad_nnfs import nn
from tinygrad_nnfs.profiling import Call, Statistics, profile
from tinygrad_nnfs.registry import OPS, input_names
from tinygrad_nnfs.tensor import Node, Scope, Tensor

if TYPE_CHECKING:
    import graphviz

Detail: TypeAlias = Literal["ops", "parameters", "tensors"]

LIMIT = 500  # ops: more are neither laid out in a few seconds nor legible
EXPLODED = 100  # times as large as near the loss
FEW = 3  # uses of a leaf that are drawn as edges from one box
LONGEST = 60  # characters of a name

FONT = "Helvetica,Arial,sans-serif"
SMALL = 9  # points; other text has 10
INK, GREY, ALARM = "#1f2933", "#7b8794", "#c81e1e"
BLUE, YELLOW, WHITE = "#e8f0fa", "#fff4d1", "#ffffff"
HOT = (255, 158, 74)  # orange: black text is legible on it


def draw(
    loss: Tensor,
    *,
    detail: Detail = "parameters",
    stats: profile | None = None,
    names: Mapping[str, Tensor] | None = None,
    limit: int = LIMIT,
) -> "graphviz.Digraph":
    """The graph that `loss`, or any tensor on the tape, was computed by; the forward goes down.

    It is the same before and after `backward`. An op of a module is labelled with the module's
    name; modules of several ops are frames round them. A notebook shows the result, `save` writes
    it to a file.

    Args:
        detail: "ops" alone; with their "parameters" and other inputs; or also every result, in
            "tensors", and the names of the inputs.
        stats: a `profile(statistics=True)` that the forward, and perhaps the backward, ran in.
            Ops are then filled by the time that they took; bytes, GFLOP/s and mean ± std of
            outputs and gradients are shown. What is NaN, infinite or all zero, and gradients
            that have grown EXPLODED times on their way from the loss, are outlined in red.
        names: tensors on the tape by names of yours. Parameters of a module have theirs.
        limit: the largest number of ops to draw.

    Raises RuntimeError if nothing was recorded for `loss`, ValueError if the graph is larger than
    `limit`.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"draw: expected a Tensor, found {type(loss).__name__}")
    if not isinstance(stats, profile | None):
        raise TypeError(f"draw: stats must be a profile, found {type(stats).__name__}")
    if detail not in get_args(Detail):
        raise ValueError(f"draw: detail must be {_listed(get_args(Detail))}, found {detail!r}")
    if loss.node is None:
        raise RuntimeError(
            "draw: nothing was recorded for this tensor: none of its inputs requires a gradient, "
            "it was made under no_grad(), or detach() or numpy() came in between"
        )
    nodes = _reachable(loss.node)
    ops = sum(node.op is not None for node in nodes)
    if ops > limit:
        raise ValueError(
            f"draw: the graph has {ops:,} ops, too many for a picture: draw a part of it, or one "
            f"step of a loop, or say limit={ops}"
        )
    if stats is not None and not any(stats.call_of(node) for node in nodes):
        raise ValueError(
            "draw: stats knows none of these ops: run the forward, and the backward, inside "
            "`with profile(statistics=True) as p:`"
        )
    names = names or {}
    if not isinstance(names, Mapping):
        raise TypeError(
            f"draw: names must be a dict from names to Tensors, found a {type(names).__name__}"
        )
    wrong = [name for name, tensor in names.items() if not isinstance(tensor, Tensor)]
    if wrong:
        raise TypeError(f"draw: names must be of Tensors, {wrong[0]!r} is not")
    return _Drawing(nodes, detail, stats, names).picture()


def _reachable(root: Node) -> list[Node]:
    """All nodes that `root` was made from, and itself, in the order of the forward."""
    seen, waiting = {root}, [root]
    while waiting:
        for parent in waiting.pop().inputs:
            if isinstance(parent, Node) and parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    return sorted(seen, key=lambda node: -node.order)


def _enclosing(scope: Scope | None) -> Iterator[Scope]:
    """A scope and those around it, the innermost first."""
    while scope is not None:
        yield scope
        scope = scope[1]


@dataclasses.dataclass
class _Frame:
    """A part of the picture: the whole, or the frame round a module's call."""

    graph: Any  # graphviz.Digraph
    inner: "list[_Frame]" = dataclasses.field(default_factory=list)

    def closed(self) -> Any:
        for frame in self.inner:  # a subgraph is copied as it is at that moment
            self.graph.subgraph(frame.closed())
        return self.graph


class _Drawing:
    """One picture in the making. Boxes are called "n" and a number, frames "cluster_", likewise."""

    def __init__(
        self, nodes: list[Node], detail: str, stats: profile | None, names: Mapping[str, Tensor]
    ) -> None:
        self.nodes, self.detail = nodes, detail
        self.id = {node: f"n{i}" for i, node in enumerate(nodes)}
        self.others = 0  # boxes of inputs that have no node
        self.uses = Counter(parent for node in nodes for parent in node.inputs)
        self.placed: Counter[Node] = Counter()  # how many boxes a leaf has so far
        self.calls = {node: stats.call_of(node) for node in nodes} if stats else {}
        self.show_values = stats is not None
        self.gradients = {node: self.gradient(node) for node in nodes} if stats else {}
        # among numbers alone time is the interpreter's: what counts is the chain rule
        self.timed = bool(self.calls) and any(math.prod(node.shape) > 1 for node in nodes)
        times = [call.forward + call.backward for call in self.calls.values() if call]
        self.longest = max(times, default=0.0)
        of_ops = (self.gradients.get(node) for node in reversed(nodes) if node.op)
        self.near_loss = next((g.rms for g in of_ops if g and g.size > 1), 0.0)
        self.ops_in = Counter(
            id(scope) for node in nodes if node.op for scope in _enclosing(node.scope)
        )
        parameters = list(_parameters(nodes))
        self.of_module = {tensor.node for _, tensor in parameters}
        named = [*parameters, *names.items()]
        self.tensors = {tensor.node: tensor for _, tensor in named if tensor.node}
        self.names = {tensor.node: name for name, tensor in named if tensor.node}
        self.calls_of_module = _numbered(nodes)
        self.frames: dict[int, _Frame] = {}

    def picture(self) -> "graphviz.Digraph":
        from tinygrad_nnfs.graph.rendering import Picture

        graph = Picture("graph")
        graph.attr(rankdir="TB", ranksep="0.2", nodesep="0.15", fontname=FONT, fontsize="10")
        graph.attr(labelloc="b", fontcolor=INK, color=GREY, bgcolor="white")
        graph.attr(
            "node", shape="box", style="filled", fontname=FONT, fontsize="10", margin="0.06,0.04"
        )
        graph.attr("node", height="0.2", width="0.2", fontcolor=INK, color=GREY, fillcolor=WHITE)
        graph.attr("edge", arrowsize="0.6", color=GREY, fontname=FONT, fontsize=str(SMALL))
        if self.timed:
            graph.attr(label=self.caption())
        self.whole = _Frame(graph)
        for node in self.nodes:
            if node.op:
                self.place_op(node)
        if len(self.nodes) == 1 and self.nodes[0].op is None:
            self.place_leaf(self.nodes[0], self.whole)
        return self.whole.closed()

    def caption(self) -> str:
        legend = [
            f"filled by time, orange: {_time(self.longest)}; times: forward + backward",
            "mean ± std of the output, and of the gradient with respect to it",
        ]
        return f"<{_small(*legend)}>"

    # -- boxes -----------------------------------------------------------------------------------

    def place_op(self, node: Node) -> None:
        frame = self.frame(node.scope)
        call, box = self.calls.get(node), self.id[node]
        title, *under = self.op_title(node)
        figures, colour = self.figures(call), self.colour(call)
        result, problems = self.values(node), self.problems(node)
        if self.detail == "tensors":
            self.box(frame, box, title, [*under, *figures], [], fillcolor=colour)
            name = self.names.get(node)
            self.box(
                frame, f"t{box}", name, [_kind(node), *result], problems, style="filled,rounded"
            )
            self.whole.graph.edge(box, f"t{box}")
        else:
            details = [*under, *figures, *result]
            self.box(frame, box, title, details, problems, fillcolor=colour)
        self.connect(node, frame)

    def connect(self, node: Node, frame: _Frame) -> None:
        """The edges to an op from its inputs, and those inputs that stand beside it."""
        beside = 0
        several = self.detail == "tensors" and len(node.inputs) > 1
        names = _input_names(node) if several else []
        for i, parent in enumerate(node.inputs):
            label = {"label": f"<&#160;{_text(names[i])}>"} if names else {}
            if isinstance(parent, Node) and parent.op:
                source = self.id[parent]
                if self.detail == "tensors":
                    source = f"t{source}"
                # the way of the forward is straight
                self.whole.graph.edge(source, self.id[node], weight="8", **label)
            elif self.detail == "ops":
                pass
            elif isinstance(parent, Node):
                box = self.place_leaf(parent, frame)
                if parent in self.of_module and beside < 2:
                    beside += 1
                    self.put_beside(box, self.id[node], frame, left=beside == 1, **label)
                else:
                    self.whole.graph.edge(box, self.id[node], **label)
            elif parent[1] is not type(None):  # an option that was not given
                self.whole.graph.edge(self.place_untracked(*parent, frame), self.id[node], **label)

    def put_beside(self, leaf: str, op: str, frame: _Frame, *, left: bool, **label: str) -> None:
        """Weights stand to the left of their op, biases to the right: the forward goes down."""
        with frame.graph.subgraph() as row:
            row.attr(rank="same")
            row.node(leaf)
            row.node(op)
        if left:
            self.whole.graph.edge(leaf, op, **label)
        else:
            self.whole.graph.edge(op, leaf, dir="back", **label)

    def place_leaf(self, node: Node, frame: _Frame) -> str:
        """The box of a leaf. A module's parameter has one beside every op that uses it.

        So has what is used often: Graphviz takes minutes for a hundred edges from one box.
        """
        box, uses = self.id[node], self.uses[node]
        self.placed[node] += 1
        own = node in self.of_module
        repeated = own or uses > FEW
        if repeated:
            box += f"use{self.placed[node]}"
        elif self.placed[node] > 1:
            return box
        problems, tensor = self.problems(node), self.tensors.get(node)
        if self.show_values and tensor is not None:
            wrong = Statistics.of(tensor.data).problem
            problems += [f"value {wrong}"] if wrong in ("NaN", "inf") else []
        details = [_kind(node), *self.values(node)]
        details += [f"used {uses} times"] if repeated and uses > 1 else []
        where = frame if own else self.whole
        self.box(where, box, self.names.get(node), details, problems, fillcolor=YELLOW)
        return box

    def place_untracked(self, shape: tuple[int, ...], dtype: Any, frame: _Frame) -> str:
        """The box of an input without a gradient: data, from outside as a rule, or a number."""
        self.others += 1
        name = f"u{self.others}"
        number = isinstance(dtype, type)
        what = "number" if number else f"{dtype} {shape}"
        where = frame if number else self.whole
        self.box(where, name, None, [what], [], style="filled,dashed")
        return name

    def box(
        self,
        frame: _Frame,
        name: str,
        title: str | None,
        details: list[str],
        problems: list[str],
        **attributes: str,
    ) -> None:
        """A box: its title in bold, details in small, problems in red and with a red outline."""
        lines = [] if title is None else [f"<b>{_text(title)}</b>"]
        if details:
            lines.append(_small(*details))
        if problems:
            lines += [f'<font color="{ALARM}"><b>{_text(line)}</b></font>' for line in problems]
            attributes |= {"color": ALARM, "penwidth": "2.5"}
        frame.graph.node(name, label=f"<{'<br/>'.join(lines)}>", tooltip=" ", **attributes)

    # -- what stands in them ---------------------------------------------------------------------

    def op_title(self, node: Node) -> list[str]:
        """The module whose only op it is, and the op under it; or the op alone."""
        only = next((s for s in _enclosing(node.scope) if self.ops_in[id(s)] == 1), None)
        named = self.names.get(node)
        own = str(node.op)
        kind = []
        if self.detail != "tensors":
            own, kind = f"{named} = {own}" if named else own, [_kind(node)]
        if only is None:
            return [own, *kind]
        return [self.module_title(only), " → ".join([own, *kind])]

    def module_title(self, scope: Scope) -> str:
        """`0: Conv2d(1, 32, kernel_size=3)`: its name in the frame around it, and what it is."""
        module = scope[0]
        around = next((s for s in _enclosing(scope[1]) if self.ops_in[id(s)] > 1), scope[1])
        path = _path(module, around[0]) if around else None
        inside = module.describe()
        text = type(module).__name__ + (f"({inside})" if inside else "")
        number, calls = self.calls_of_module[id(scope)]
        text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
        return (f"{path}: " if path else "") + text + f", call {number} of {calls}" * (calls > 1)

    def figures(self, call: Call | None) -> list[str]:
        """Time, bytes and speed of an op."""
        if call is None or not self.timed:
            return []
        parts = [f"{_time(call.forward)} + {_time(call.backward)}", _bytes(call.bytes)]
        if call.forward_flops:
            rates = [_rate(call.forward_flops, call.forward)]
            if call.backward_flops:
                rates.append(_rate(call.backward_flops, call.backward))
            parts.append(" + ".join(rates) + " GFLOP/s")
        return [",  ".join(parts)]

    def values(self, node: Node) -> list[str]:
        """Mean and std of an output and of its gradient; of a single element, the element."""
        if not self.show_values:
            return []
        call, gradient = self.calls.get(node), self.gradients.get(node)
        output = call.output if call else None
        if output is None and node.shape == () and node in self.tensors:
            output = Statistics.of(self.tensors[node].data)
        parts = []
        if output:
            parts.append(f"{'value' if output.size == 1 else 'output'} {_figures(output)}")
        if gradient:
            parts.append(f"gradient {_figures(gradient)}")
        return [",  ".join(parts)] if parts else []

    def gradient(self, node: Node) -> Statistics | None:
        """That of an op as the profile has seen it, that of a leaf as it is now."""
        if node.op is None:
            return Statistics.of(node.grad.data) if node.grad is not None else None
        call = self.calls.get(node)
        return call.gradient if call else None

    def problems(self, node: Node) -> list[str]:
        """What is wrong with an op's output, or with a gradient, in words."""
        call, gradient = self.calls.get(node), self.gradients.get(node)
        found = []
        output = call.output if call else None
        # a single number, the loss say, may well be constant
        if output and output.problem and (output.size > 1 or output.problem in ("NaN", "inf")):
            found.append(f"output {output.problem}")
        if gradient and gradient.problem:
            found.append(f"gradient {gradient.problem}")
        elif gradient and node.op and gradient.size > 1 and self.near_loss:
            growth = gradient.rms / self.near_loss
            if growth > EXPLODED:
                found.append(f"gradient {_number(growth)} times that near the loss")
        return found

    def colour(self, call: Call | None) -> str:
        if not self.timed:
            return BLUE
        share = (call.forward + call.backward) / self.longest if call and self.longest else 0
        return "#" + "".join(f"{round(255 + share * (c - 255)):02x}" for c in HOT)

    # -- modules ---------------------------------------------------------------------------------

    def frame(self, scope: Scope | None) -> _Frame:
        """The frame of the innermost module that has several ops, made where it is missing."""
        around = [s for s in _enclosing(scope) if self.ops_in[id(s)] > 1]
        frame = self.whole
        for scope in reversed(around):
            if id(scope) not in self.frames:
                import graphviz

                inner = graphviz.Digraph(f"cluster_{len(self.frames)}")
                inner.attr(label=f"<<b>{_text(self.module_title(scope))}</b>>", labelloc="t")
                inner.attr(labeljust="l", margin="8", style="rounded", tooltip=" ")
                self.frames[id(scope)] = _Frame(inner)
                frame.inner.append(self.frames[id(scope)])
            frame = self.frames[id(scope)]
        return frame


def _parameters(nodes: Iterable[Node]) -> Iterator[tuple[str, Tensor]]:
    """The parameters of all outermost modules, with their names there."""
    modules: dict[int, nn.Module] = {}
    for node in nodes:
        for scope in _enclosing(node.scope):
            if scope[1] is None:
                modules[id(scope[0])] = scope[0]
    for module in modules.values():
        yield from module.named_parameters()


def _numbered(nodes: Iterable[Node]) -> dict[int, tuple[int, int]]:
    """For each scope, which call of its module it is, in the call around it: (2, 3), 2nd of 3."""
    calls: dict[tuple[int, int], list[int]] = {}
    for node in nodes:
        for scope in _enclosing(node.scope):
            of_module = calls.setdefault((id(scope[0]), id(scope[1])), [])
            if node.op and id(scope) not in of_module:
                of_module.append(id(scope))
    return {
        scope: (i, len(scopes)) for scopes in calls.values() for i, scope in enumerate(scopes, 1)
    }


def _path(module: nn.Module, outer: nn.Module) -> str | None:
    """The name of a module inside another, such as "block.0"; None if it is not registered."""
    return next((name for name, found in outer.named_modules() if found is module), None)


def _input_names(node: Node) -> list[str]:
    """The names of an op's inputs, as in its definition; of `*xs`, xs[0] and so on."""
    op = OPS.get(node.op or "")
    return input_names(op, len(node.inputs)) if op else []  # a test's op, say, that is gone


# -- text ------------------------------------------------------------------------------------------


def _text(text: str) -> str:
    """Any text for a label: printable, not too long, escaped, and never empty."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    text = text if len(text) <= 2 * LONGEST else text[: 2 * LONGEST - 1] + "…"
    escaped = html.escape(text if text.strip() else repr(text), quote=False)
    return escaped.replace("\\", "\\\\")  # \N would be the box's name


def _small(*lines: str) -> str:
    """Lines of small text. A line is as high as the largest font in it: a space makes it higher.

    Otherwise the underscores of one line touch the brackets of the next.
    """
    heights = [SMALL + 2.5, *[SMALL + 1] * len(lines)]
    return "<br/>".join(
        f'<font point-size="{height}"> <font point-size="{SMALL}">{_text(line)}</font> </font>'
        for line, height in zip(lines, heights, strict=False)
    )


def _kind(node: Node) -> str:
    return f"{node.dtype} {node.shape}"


def _figures(x: Statistics) -> str:
    if x.size == 1:
        return "NaN" if x.nan else "infinite" if x.inf else f"{x.mean:.4g}"
    if math.isnan(x.mean):
        return "not finite" if x.size else "empty"
    zeros = f" ({100 * x.zeros:.0f} % zero)" if 0.005 < x.zeros < 1 else ""
    return f"{_number(x.mean)} ± {_number(x.std)}{zeros}"


def _number(x: float) -> str:
    return f"{x:,.0f}" if 100 <= abs(x) < 1e6 else f"{x:.2g}"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _rate(flops: int, seconds: float) -> str:
    return f"{flops / seconds / 1e9:.3g}" if seconds else "-"


def _listed(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names)
