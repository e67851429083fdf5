"""Networks: a Module is parameters, buffers and other modules, plus one function of Tensors."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from tinygrad_nnfs import backend, ops
from tinygrad_nnfs.kernels import memory
from tinygrad_nnfs.ops.convolution import check_precision, pair
from tinygrad_nnfs.ops.pooling import pooling_geometry
from tinygrad_nnfs.replay import live
from tinygrad_nnfs.tensor import Parameter, Stored, Tensor, recording


class Buffer(Stored):
    """State of a module that is saved and moved with it but not trained (a running mean)."""

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        super().__init__(data)


class Module:
    """The base of every network.

    Assigning a Parameter, a Buffer or a Module to an attribute registers it, also in a list, tuple
    or dict. Subclasses write `forward`; call the module itself.
    """

    training = True
    _forward_hooks: tuple[Callable[..., Any], ...] = ()

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no forward method: write one")

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        outer = recording.scope
        recording.scope = (self, outer)
        try:
            y = self.forward(*inputs, **options)
        finally:
            recording.scope = outer
        for hook in self._forward_hooks:
            replacement = hook(self, inputs, y)
            if isinstance(replacement, Tensor):
                y = replacement
            elif replacement is not None:
                raise TypeError(
                    f"a forward hook of {type(self).__name__} must return a Tensor or None, found "
                    f"a {type(replacement).__name__}"
                )
        return y

    def register_forward_hook(self, hook: Callable[..., Any]) -> Callable[[], None]:
        """Call `hook(module, inputs, output)` after every call of this module.

        What the hook returns replaces the output, unless it is None. The result is a function that
        removes the hook. To keep activations: `lambda module, inputs, y: kept.append(y.numpy())`.
        """
        one = functools.partial(hook)  # so that a hook registered twice is removed once
        self._forward_hooks = (*self._forward_hooks, one)

        def remove() -> None:
            self._forward_hooks = tuple(h for h in self._forward_hooks if h is not one)

        return remove

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.requires_grad and not isinstance(value, Parameter):
            raise TypeError(
                f"{type(self).__name__}.{name}: a Tensor that requires a gradient would not be "
                "trained here: make it a Parameter, or detach() it"
            )
        registered = vars(self).get(name)
        kept = value is None or isinstance(value, type(registered))
        if isinstance(registered, Parameter | Buffer) and not kept:
            kind = type(registered).__name__
            raise TypeError(
                f"{type(self).__name__}.{name} is a {kind} and would no longer be one: assign a "
                f"{kind}, or change its .data in place"
            )
        super().__setattr__(name, value)

    def _members(self) -> Iterator[tuple[str, Any]]:
        """Everything registered here, by name; what is inside modules is theirs."""
        waiting = list(reversed(vars(self).items()))
        while waiting:
            name, value = waiting.pop()
            if isinstance(value, Parameter | Buffer | Module):
                yield name, value
            elif isinstance(value, list | tuple | dict):
                inner = value.items() if isinstance(value, dict) else enumerate(value)
                waiting += [(f"{name}.{key}", item) for key, item in reversed(list(inner))]

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """The modules directly inside this one, by name."""
        return ((name, item) for name, item in self._members() if isinstance(item, Module))

    def modules(self) -> Iterator["Module"]:
        """This module and every one inside it; a shared one comes once."""
        return (module for _, module in self.named_modules())

    def named_modules(self) -> Iterator[tuple[str, "Module"]]:
        """(name, module) pairs: ("", self), ("0", ...), ("3.1", ...); a shared one comes once."""
        seen, waiting = set(), [("", self)]
        while waiting:
            name, module = waiting.pop()
            if module not in seen:
                seen.add(module)
                yield name, module
                prefix = f"{name}." if name else ""
                waiting += [(prefix + n, child) for n, child in reversed([*module.children()])]

    def _named_tensors(
        self, prefix: str = "", around: tuple["Module", ...] = ()
    ) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers by their full names; a shared one under each of its names."""
        for name, item in self._members():
            if isinstance(item, Module):
                if item is not self and item not in around:  # a module may know the one around it
                    yield from item._named_tensors(f"{prefix}{name}.", (*around, self))
            else:
                yield prefix + name, item

    def _by_name(self) -> dict[str, Tensor]:
        """The same as a dict, for which every name must be another's."""
        tensors: dict[str, Tensor] = {}
        for name, tensor in self._named_tensors():
            if tensors.setdefault(name, tensor) is not tensor:
                raise ValueError(
                    f"{type(self).__name__} has two tensors of the name {name!r}: use keys of "
                    "dicts that differ as text and contain no dot"
                )
        return tensors

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, parameter) pairs such as ("0.weight", ...); a shared parameter comes once."""
        seen = set()
        for name, tensor in self._named_tensors():
            if isinstance(tensor, Parameter) and tensor not in seen:
                seen.add(tensor)
                yield name, tensor

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, those of modules inside too; a shared one comes once."""
        return (parameter for _, parameter in self.named_parameters())

    def buffers(self) -> Iterator[Buffer]:
        """All buffers, those of modules inside too; a shared one under each of its names."""
        return (tensor for _, tensor in self._named_tensors() if isinstance(tensor, Buffer))

    def state_dict(self) -> dict[str, np.ndarray]:
        """A snapshot of parameters and buffers: names to numpy arrays, copied."""
        return {name: tensor.numpy().copy() for name, tensor in self._by_name().items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy `state` (arrays or Tensors by name) into the parameters and buffers.

        Shapes and dtypes must be those of this module. With `strict`, so must the names; without,
        names that only one side has are left alone. Nothing is changed if anything does not fit.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"load_state_dict into {type(self).__name__}: expected arrays by name, found a "
                f"{type(state).__name__}; a file is read by checkpoint.load_weights(network, path)"
            )
        mine = self._by_name()
        arrays = {
            name: value.numpy() if isinstance(value, Tensor) else np.asarray(value)
            for name, value in state.items()
        }
        problems = []
        if strict:
            problems += [f"{name} is missing" for name in mine.keys() - arrays.keys()]
            problems += [f"{name} is unknown" for name in arrays.keys() - mine.keys()]
        common = [name for name in mine if name in arrays]
        first: dict[Tensor, str] = {}
        for name in common:
            found, wanted = arrays[name], mine[name]
            other = first.setdefault(wanted, name)
            if isinstance(wanted.data, np.ndarray) and not wanted.data.flags.writeable:
                problems.append(f"{name} is read-only here")
            if other != name and not np.array_equal(arrays[other], found):
                problems.append(f"{other} and {name} are one tensor here, but differ")
            if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
                problems.append(
                    f"{name} is {found.dtype} {found.shape}, expected {wanted.dtype} {wanted.shape}"
                )
        if problems:
            raise ValueError(
                f"load_state_dict into {type(self).__name__}: " + "; ".join(sorted(problems))
            )
        for name in common:
            mine[name].data[...] = backend.move(arrays[name], mine[name].device)

    def train(self, mode: bool = True) -> Self:
        """Training mode: dropout drops, batch norm uses the batch's statistics."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Evaluation mode."""
        return self.train(False)

    def to(self, device: str) -> Self:
        """Move parameters and buffers to "cpu" or "cuda"; they stay the same objects."""
        return self._replace_data(lambda data: backend.move(data, device))

    def astype(self, dtype: Any) -> Self:
        """Convert parameters and buffers to a floating dtype; they stay the same objects."""
        if np.dtype(dtype).kind != "f":
            raise TypeError(f"a network's parameters are floating-point, found {dtype}")
        return self._replace_data(lambda data: data.astype(dtype, copy=False))

    def _replace_data(self, change: Any) -> Self:
        for _, tensor in self._named_tensors():
            data = change(tensor.data)
            if data is tensor.data:
                continue
            tracked = tensor.requires_grad
            tensor.requires_grad = False  # the old gradient would be of the old device or dtype
            tensor.data = data
            tensor.requires_grad = tracked
        return self

    def __repr__(self) -> str:
        rows = [
            f"  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children()
        ]
        inside = "\n" + "\n".join(rows) + "\n" if rows else self.describe()
        return f"{type(self).__name__}({inside})"

    def describe(self) -> str:
        """The hyper-parameters, for `repr`."""
        return ""


class Sequential(Module):
    """Modules one after the other, named "0", "1", ...; indexed and counted like a list."""

    def __init__(self, *layers: Module) -> None:
        for i, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise TypeError(f"Sequential: layer {i} is not a Module but {layer!r}")
            setattr(self, str(i), layer)

    def __len__(self) -> int:
        return len(self._layers())

    def __iter__(self) -> Iterator[Module]:
        return iter(self._layers().values())

    def _layers(self) -> dict[str, Module]:
        """What `forward` calls, by name; modules in a list, say, are children and no layers."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Module)}

    def __getitem__(self, i: Any) -> Any:
        layers = list(self)[i]
        return Sequential(*layers) if isinstance(i, slice) else layers

    def forward(self, x: Any) -> Tensor:
        for layer in self:
            x = layer(x)
        return x  # type: ignore[no-any-return]


def he_normal(shape: tuple[int, ...]) -> Parameter:
    """Weights of shape (outputs, inputs, ...): normal with std sqrt(2 / inputs) (He et al., 2015).

    The inputs of one output are counted: fan_in = prod(shape[1:]).
    """
    if not all(hasattr(size, "__index__") and size >= 1 for size in shape):
        raise ValueError(f"weights must have integer sizes >= 1, found shape {shape}")
    std = math.sqrt(2 / math.prod(shape[1:]))
    return Parameter(backend.random_normal(shape) * np.float32(std))


def _unusual(module: Module, **defaults: Any) -> str:
    """The options of a module that are not the default, for `describe`: ", stride=2"."""
    options = {name: _plain(getattr(module, name)) for name in defaults}
    return "".join(f", {name}={v}" for name, v in options.items() if v != defaults[name])


def _plain(value: Any) -> Any:
    """A pair of equal numbers as that number, which is how users write it."""
    pair = isinstance(value, tuple) and len(value) == 2
    return value[0] if pair and value[0] == value[1] else value


def _zeros(size: int) -> np.ndarray:
    return np.zeros(size, np.float32)


def _ones(size: int) -> np.ndarray:
    return np.ones(size, np.float32)


class Linear(Module):
    """x weight^T + bias: (..., inputs) -> (..., outputs). Parameters: weight (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        # input by input in memory, from a cache line's begin on: x weight^T takes a third less time
        weight = he_normal((outputs, inputs)).data
        self.weight = Parameter(memory.aligned(weight.shape, weight.dtype, "F"))
        self.weight.data[...] = weight
        self.bias = Parameter(_zeros(outputs)) if bias else None

    def forward(self, x: Any) -> Tensor:
        return ops.linear(x, self.weight, self.bias)

    def describe(self) -> str:
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}" + ", bias=False" * (self.bias is None)


class Conv2d(Module):
    """`ops.conv2d`: (n, inputs, h, w) -> (n, outputs, oh, ow).

    Parameters: weight (outputs, inputs / groups, kh, kw), bias (outputs).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        precision: str = "fast",
    ) -> None:
        check_precision(precision)
        for channels, of in ((inputs, "input"), (outputs, "output")):
            if groups < 1 or channels % groups:
                raise ValueError(
                    f"Conv2d: {channels} {of} channels do not divide into {groups} groups"
                )
        self.weight = he_normal((outputs, inputs // groups, *pair("kernel_size", kernel_size, 1)))
        self.bias = Parameter(_zeros(outputs)) if bias else None
        self.stride = pair("stride", stride, 1)
        self.padding = pair("padding", padding, 0)
        self.dilation = pair("dilation", dilation, 1)
        self.groups = groups
        self.precision = precision

    def forward(self, x: Any) -> Tensor:
        return ops.conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            precision=self.precision,
        )

    def describe(self) -> str:
        outputs, inputs, *kernel = self.weight.shape
        sizes = f"{inputs * self.groups}, {outputs}, kernel_size={_plain(tuple(kernel))}"
        options = _unusual(self, stride=1, padding=0, dilation=1, groups=1, precision="fast")
        return sizes + options + ", bias=False" * (self.bias is None)


class _Pool2d(Module):
    """What pooling layers have in common: `stride` is the kernel's size unless given."""

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        pooling_geometry(kernel_size, stride, padding)  # a wrong one is refused here, not in use
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def describe(self) -> str:
        return f"{self.kernel_size}" + _unusual(self, stride=None, padding=0)


class MaxPool2d(_Pool2d):
    """`ops.max_pool2d`: the largest element of each window."""

    def forward(self, x: Any) -> Tensor:
        return ops.max_pool2d(
            x, kernel_size=self.kernel_size, stride=self.stride, padding=self.padding
        )


class AvgPool2d(_Pool2d):
    """`ops.avg_pool2d`: the mean of each window."""

    def forward(self, x: Any) -> Tensor:
        return ops.avg_pool2d(
            x, kernel_size=self.kernel_size, stride=self.stride, padding=self.padding
        )


class ReLU(Module):
    """`ops.relu`."""

    def forward(self, x: Any) -> Tensor:
        return ops.relu(x)


class LeakyReLU(Module):
    """`ops.leaky_relu`."""

    def __init__(self, slope: float = 0.01) -> None:
        self.slope = slope

    def forward(self, x: Any) -> Tensor:
        return ops.leaky_relu(x, slope=self.slope)

    def describe(self) -> str:
        return str(self.slope)


class Dropout(Module):
    """`ops.dropout` with a fresh mask at each call in training, nothing in evaluation."""

    def __init__(self, p: float = 0.5) -> None:
        if not (hasattr(p, "__float__") and 0 <= p <= 1):
            raise ValueError(f"Dropout: p is the probability to drop, in [0, 1], found {p}")
        self.p = p

    def forward(self, x: Any) -> Tensor:
        if not self.training or self.p == 0:
            return x if isinstance(x, Tensor) else Tensor(x)
        return ops.dropout(x, p=self.p, key=live(backend.random_key))

    def describe(self) -> str:
        return str(self.p)


class Flatten(Module):
    """(n, ...) -> (n, everything else)."""

    def forward(self, x: Any) -> Tensor:
        return (x if isinstance(x, Tensor) else Tensor(x)).flatten(1)


class BatchNorm2d(Module):
    """`ops.batch_norm2d` over the channels of (n, channels, h, w).

    Parameters: weight, bias (channels). Buffers: running_mean, running_var.
    """

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        self.weight = Parameter(_ones(channels))
        self.bias = Parameter(_zeros(channels))
        self.running_mean = Buffer(_zeros(channels))
        self.running_var = Buffer(_ones(channels))
        self.momentum, self.eps = momentum, eps

    def forward(self, x: Any) -> Tensor:
        return ops.batch_norm2d(
            x,
            self.weight,
            self.bias,
            running=(self.running_mean.data, self.running_var.data),
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )

    def describe(self) -> str:
        return f"{len(self.weight)}" + _unusual(self, momentum=0.1, eps=1e-5)


class LayerNorm(Module):
    """`ops.layer_norm` over the last axes, `shape`. Parameters: weight, bias (shape)."""

    def __init__(self, shape: int | tuple[int, ...], *, eps: float = 1e-5) -> None:
        sizes = (shape,) if isinstance(shape, int) else shape
        self.weight = Parameter(np.ones(sizes, np.float32))
        self.bias = Parameter(np.zeros(sizes, np.float32))
        self.eps = eps

    def forward(self, x: Any) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)

    def describe(self) -> str:
        return f"{self.weight.shape}" + _unusual(self, eps=1e-5)
