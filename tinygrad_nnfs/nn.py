"""Networks: a Module is parameters, buffers and other modules, plus one function of Tensors."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from tinygrad_nnfs import backend, ops
from tinygrad_nnfs.tensor import Parameter, Tensor


class Buffer(Tensor):
    """State of a module that is saved and moved with it but not trained (a running mean)."""

    __slots__ = ()


class Module:
    """The base of every network.

    Assigning a Parameter, a Buffer, a Module or a list of Modules to an attribute registers it.
    Subclasses write `forward`; call the module itself.
    """

    training = True

    def forward(self, *inputs: Any) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no forward method: write one")

    def __call__(self, *inputs: Any) -> Tensor:
        return self.forward(*inputs)

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """The modules directly inside this one, by name."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list | tuple):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item

    def modules(self) -> Iterator["Module"]:
        """This module and every one inside it."""
        yield self
        for _, child in self.children():
            yield from child.modules()

    def _named_tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers by their full names; a shared one under each of its names."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter | Buffer):
                yield prefix + name, value
        for name, child in self.children():
            yield from child._named_tensors(f"{prefix}{name}.")

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, parameter) pairs such as ("0.weight", ...); a shared parameter comes once."""
        seen = set()
        for name, tensor in self._named_tensors():
            if isinstance(tensor, Parameter) and tensor not in seen:
                seen.add(tensor)
                yield name, tensor

    def parameters(self) -> Iterator[Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def buffers(self) -> Iterator[Buffer]:
        return (tensor for _, tensor in self._named_tensors() if isinstance(tensor, Buffer))

    def state_dict(self) -> dict[str, np.ndarray]:
        """A snapshot of parameters and buffers: names to numpy arrays, copied."""
        return {name: tensor.numpy().copy() for name, tensor in self._named_tensors()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy `state` (arrays or Tensors by name) into the parameters and buffers.

        Shapes and dtypes must be those of this module. With `strict`, so must the names; without,
        names that only one side has are left alone. Nothing is changed if anything does not fit.
        """
        mine = dict(self._named_tensors())
        arrays = {
            name: value.numpy() if isinstance(value, Tensor) else np.asarray(value)
            for name, value in state.items()
        }
        problems = []
        if strict:
            problems += [f"{name} is missing" for name in mine.keys() - arrays.keys()]
            problems += [f"{name} is unknown" for name in arrays.keys() - mine.keys()]
        common = mine.keys() & arrays.keys()
        for name in common:
            found, wanted = arrays[name], mine[name]
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
        return self._replace_data(lambda data: data.astype(dtype))

    def _replace_data(self, change: Any) -> Self:
        for _, tensor in self._named_tensors():
            tracked = tensor.requires_grad
            tensor.requires_grad = False  # the old gradient would be of the old device or dtype
            tensor.data = change(tensor.data)
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
                raise TypeError(f"Sequential: layer {i} is no Module but {layer!r}")
            setattr(self, str(i), layer)

    def __len__(self) -> int:
        return len(list(self.children()))

    def __iter__(self) -> Iterator[Module]:
        return (layer for _, layer in self.children())

    def __getitem__(self, i: int) -> Module:
        return list(self)[i]

    def forward(self, x: Any) -> Tensor:
        for layer in self:
            x = layer(x)
        return x  # type: ignore[no-any-return]


def he_normal(shape: tuple[int, ...]) -> Parameter:
    """Weights of shape (outputs, inputs, ...): normal with std sqrt(2 / inputs) (He et al., 2015).

    The inputs of one output are counted: fan_in = prod(shape[1:]).
    """
    return Parameter(backend.random_normal(shape) * np.float32(math.sqrt(2 / math.prod(shape[1:]))))


def _zeros(size: int) -> np.ndarray:
    return np.zeros(size, np.float32)


def _ones(size: int) -> np.ndarray:
    return np.ones(size, np.float32)


class Linear(Module):
    """x weight^T + bias: (..., inputs) -> (..., outputs). Parameters: weight (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        self.weight = he_normal((outputs, inputs))
        self.bias = Parameter(_zeros(outputs)) if bias else None

    def forward(self, x: Any) -> Tensor:
        return ops.linear(x, self.weight, self.bias)

    def describe(self) -> str:
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}, bias={self.bias is not None}"


class Conv2d(Module):
    """`ops.conv2d`: (n, inputs, h, w) -> (n, outputs, oh, ow).

    Parameters: weight (outputs, inputs / groups, kh, kw), bias (outputs).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        if inputs % groups:
            raise ValueError(f"Conv2d: {inputs} input channels do not divide into {groups} groups")
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.weight = he_normal((outputs, inputs // groups, height, width))
        self.bias = Parameter(_zeros(outputs)) if bias else None
        self.groups = groups
        self.options = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
        }

    def forward(self, x: Any) -> Tensor:
        return ops.conv2d(x, self.weight, self.bias, **self.options)

    def describe(self) -> str:
        outputs, inputs, *kernel = self.weight.shape
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{inputs * self.groups}, {outputs}, kernel_size={tuple(kernel)}, {options}"


class MaxPool2d(Module):
    """`ops.max_pool2d`: the largest element of each window."""

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        self.options = {"kernel_size": kernel_size, "stride": stride, "padding": padding}

    def forward(self, x: Any) -> Tensor:
        return ops.max_pool2d(x, **self.options)

    def describe(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())


class AvgPool2d(MaxPool2d):
    """`ops.avg_pool2d`: the mean of each window."""

    def forward(self, x: Any) -> Tensor:
        return ops.avg_pool2d(x, **self.options)


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
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p is the probability to drop, in [0, 1], found {p}")
        self.p = p

    def forward(self, x: Any) -> Tensor:
        if not self.training or self.p == 0:
            return x  # type: ignore[no-any-return]
        return ops.dropout(x, p=self.p, key=backend.random_key())

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
        return f"{len(self.weight)}, momentum={self.momentum}, eps={self.eps}"


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
        return f"{self.weight.shape}, eps={self.eps}"
