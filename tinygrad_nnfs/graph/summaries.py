"""A network as a table: layers, output shapes, parameters, operations and memory of a batch."""

import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from tinygrad_nnfs import backend, nn
from tinygrad_nnfs.registry import Op, captured_memory, observed_by
from tinygrad_nnfs.tensor import Node, Scope, Tensor, recording

CONVENTION = (
    "FLOPs: of the forward, by the ops' definitions, a multiplication and an addition counted as "
    "two; ops without products count as none."
)
UNITS = {"k": 1e3, "M": 1e6}


def _unit(total: int) -> str:
    """In which a column with this sum is legible in two decimals."""
    return "M" if total >= 1e5 else "k"


def _in(unit: str, number: int) -> str:
    return f"{number / UNITS[unit]:,.2f}"


@dataclass
class Row:
    """One call of a layer, or of an op outside any layer. Sizes in bytes."""

    layer: str  # its name, such as "0" or "block.1", and what it is
    output: tuple[int, ...]
    parameters: int = 0  # numbers, each counted with the first layer that has it
    flops: int = 0
    kept: int = 0  # of arrays kept for backward that no layer before has counted


@dataclass
class Summary:
    """What `summary` finds. `str` and notebooks show it as a table. Sizes in bytes."""

    network: str
    inputs: list[tuple[int, ...]]  # their shapes
    rows: list[Row] = field(default_factory=list)
    trainable: int = 0  # parameters that require a gradient
    parameter_bytes: int = 0
    gradient_bytes: int = 0

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def flops(self) -> int:
        return sum(row.flops for row in self.rows)

    @property
    def kept(self) -> int:
        return sum(row.kept for row in self.rows)

    @property
    def memory(self) -> int:
        """What a training step holds at least: kept for backward, parameters and gradients."""
        return self.kept + self.parameter_bytes + self.gradient_bytes

    def as_dict(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        names = ("parameters", "flops", "kept", "memory")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}

    def cells(self) -> list[tuple[str, ...]]:
        """The table: its header, a line for each row, and the total."""
        flops, kept = _unit(self.flops), _unit(self.kept)
        header = ("layer", "output", "parameters", f"{flops}FLOPs", f"kept, {kept}B")

        def numbers(row: Row | Summary) -> tuple[str, ...]:
            return f"{row.parameters:,}", _in(flops, row.flops), _in(kept, row.kept)

        lines = [(row.layer, str(row.output), *numbers(row)) for row in self.rows]
        return [header, *lines, ("total", "", *numbers(self))]

    def notes(self) -> list[str]:
        """What stands above and below the table."""
        frozen, unit = self.parameters - self.trainable, _unit(self.memory)
        return [
            f"{self.network}, a batch of {' and '.join(map(str, self.inputs))}, in training",
            f"memory: {_in(unit, self.memory)} {unit}B = {_in(unit, self.kept)} kept for backward "
            f"+ {_in(unit, self.parameter_bytes)} parameters + "
            f"{_in(unit, self.gradient_bytes)} gradients"
            + f"; {frozen:,} parameters are frozen"
            * (frozen > 0),
            CONVENTION,
        ]

    def __str__(self) -> str:
        cells = self.cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        first, *others = self.notes()
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([first, lines[0], rule, *lines[1:-1], rule, lines[-1], *others])

    __repr__ = __str__


def summary(network: nn.Module, *inputs: Any, batch: int = 64) -> Summary:
    """Layers, output shapes, parameters, FLOPs and memory of a training step's forward.

    `inputs` are what the network is called with: the shape of one sample, (1, 28, 28), stands for a
    batch of zeros of the first parameter's dtype; a Tensor or an array, such as indices, is taken
    as it is. The network is in training mode; afterwards its buffers, mode and the random streams
    are as they were. Layers are modules without modules inside. The memory is that of the kernels
    that ran: not of the optimiser's state, nor of what comes and goes within an op.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"summary: expected a Module, found {type(network).__name__}")
    like = next(network.parameters(), Tensor(np.zeros(1, np.float32)))
    values = [_input(given, batch, like) for given in inputs]
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.data.copy()) for buffer in network.buffers()]
    streams = backend.get_rng_state()
    walk = _Walk(network)
    removers = [
        module.register_forward_hook(walk.layer)
        for module in set(network.modules())  # one hook each, also if it is there twice
        if not list(module.children())
    ]
    recorded, recording.on = recording.on, True  # what is kept for backward is found on the tape
    try:
        with observed_by(walk):
            network.train()(*values)
    finally:
        recording.on = recorded
        for remove in removers:
            remove()
        for module, mode in modes:
            module.training = mode
        for buffer, data in buffers:
            buffer.data[...] = data
        backend.set_rng_state(streams)
    parameters = list(network.parameters())
    found = Summary(
        type(network).__name__,
        [value.shape for value in values],
        walk.rows(),
        trainable=sum(p.size for p in parameters if p.requires_grad),
        parameter_bytes=sum(p.data.nbytes for p in parameters),
        gradient_bytes=sum(p.data.nbytes for p in parameters if p.requires_grad),
    )
    unused = sum(p.size for p in parameters) - found.parameters
    if unused:
        found.rows.append(Row("(parameters that no layer counts)", (), unused))
    return found


def _input(given: Any, batch: int, like: Tensor) -> Any:
    if isinstance(given, Tensor) or backend.is_array(given):
        return given
    sizes = (batch, *given) if isinstance(given, tuple | list) else (batch, None)
    if not all(isinstance(n, int) and n >= 1 for n in sizes):
        raise ValueError(
            "summary: expected the shape of one sample, such as (1, 28, 28), and batch >= 1, or a "
            f"Tensor or an array; found {given!r}, batch={batch!r}"
        )
    return Tensor(np.zeros(sizes, like.dtype)).to(like.device)


@dataclass
class _Event:
    """A call of an op, or of a layer with its ops' figures added up."""

    name: str
    scope: Scope | None
    output: tuple[int, ...] = ()
    flops: int = 0
    nodes: list[Node] = field(default_factory=list)
    module: nn.Module | None = None  # whose parameters are counted here


class _Walk:
    """Watches a forward: an observer of the ops and a hook of the layers."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.path = {id(module): name for name, module in network.named_modules()}
        self.thread = threading.get_ident()  # others may be at work on networks of their own
        self.events: list[_Event] = []

    def call(
        self,
        op: Op[...],
        variant: str,
        run: Any,
        xp: ModuleType,
        /,
        *arrays: Any,
        **params: Any,
    ) -> Any:
        result = run(xp, *arrays, **params)
        if threading.get_ident() != self.thread:
            return result
        output = result[0]
        flops = op.flops(output, *arrays, **params) if op.flops else 0
        scope = recording.scope
        module = scope[0] if scope else None
        path = self.path.get(id(module), type(module).__name__)
        name = f"{path}: {op.__name__}" if path and module else op.__name__
        self.events.append(_Event(name, scope, tuple(output.shape), flops, [], module))
        return result

    def recorded(self, node: Node) -> None:
        if threading.get_ident() == self.thread:
            self.events[-1].nodes.append(node)

    def layer(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Make one event of a layer and of its ops, which are the last ones."""
        kind = type(module).__name__
        inside = module.describe()
        path = self.path[id(module)]
        name = (f"{path}: " if path else "") + kind + (f"({inside})" if inside else "")
        one = _Event(name, None, tuple(getattr(output, "shape", ())), module=module)
        while self.events and (scope := self.events[-1].scope) and scope[0] is module:
            event = self.events.pop()
            one.flops += event.flops
            one.nodes = event.nodes + one.nodes
        self.events.append(one)

    def rows(self) -> list[Row]:
        parameters = {id(p): p.size for p in self.network.parameters()}
        # memory that is no activation's
        counted = {id(x) for p in self.network.parameters() for x in captured_memory([p.data])}
        rows = []
        for event in self.events:
            size = sum(parameters.pop(id(p), 0) for p in _own_parameters(event.module))
            kept = [
                array
                for node in event.nodes
                for array in captured_memory([rule for rule in node.rules or () if rule])
                if id(array) not in counted
            ]
            kept = list({id(array): array for array in kept}.values())
            counted.update(map(id, kept))
            rows.append(
                Row(event.name, event.output, size, event.flops, sum(x.nbytes for x in kept))
            )
        return rows


def _own_parameters(module: nn.Module | None) -> Iterable[Tensor]:
    """The parameters of a module that are not of the modules inside it."""
    if module is None:
        return []
    inside = {p for _, child in module.children() for p in child.parameters()}
    return [p for p in module.parameters() if p not in inside]
