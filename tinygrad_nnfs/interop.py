"""Networks for other programs: ONNX, which onnxruntime and browsers run.

PyTorch needs no code: names and shapes of `state_dict()` are those of the same layers in a
`torch.nn.Sequential`, so that `theirs.load_state_dict({k: torch.from_numpy(v) for k, v in
ours.state_dict().items()})` and `ours.load_state_dict(theirs.state_dict())` are all there is to it.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tinygrad_nnfs import __version__, nn, no_grad
from tinygrad_nnfs.checkpoint import write_file
from tinygrad_nnfs.ops.convolution import pair
from tinygrad_nnfs.tensor import Tensor

OPSET, IR_VERSION = 17, 8  # of 2022: any onnxruntime from 1.12 on runs them

Shape: TypeAlias = tuple[int | str, ...]
# an ONNX operator, the weights that follow its input, and its attributes
Node: TypeAlias = tuple[str, Mapping[str, Tensor | np.ndarray | None], Mapping[str, Any]]
Export: TypeAlias = Callable[[Any], Iterator[Node]]

_EXPORTS: dict[type[nn.Module], Export] = {}


class InteropError(Exception):
    """A network cannot be exported; the message says which layer or file is the reason."""


def to_onnx(
    network: nn.Module, path: str | os.PathLike[str], input_shape: tuple[int, ...] = (1, 28, 28)
) -> dict[str, Shape]:
    """Write a Sequential, as in evaluation, to an ONNX file: "images" -> "logits", float32.

    `input_shape` is that of one image; batches may have any size. Returns the shapes of both:
    {"images": ("batch", 1, 28, 28), "logits": ("batch", 10)}. A file at `path` is replaced in one
    step. Raises InteropError. Needs the package onnx, of the extra `onnx`.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    path = Path(path)
    nodes, weights, value = [], [], "images"
    for name, layer in _layers(network):
        for i, (operator, constants, attributes) in enumerate(_EXPORTS[type(layer)](layer)):
            inputs = [value]
            for part, constant in constants.items():
                if constant is not None:
                    array = constant.numpy() if isinstance(constant, Tensor) else constant
                    inputs.append(f"{name}.{part}")
                    weights.append(
                        numpy_helper.from_array(
                            np.asarray(array, np.float32, order="C"), inputs[-1]
                        )
                    )
            value = f"{name}.{operator}" + f".{i}" * (i > 0)
            nodes.append(helper.make_node(operator, inputs, [value], name=value, **attributes))
    if not nodes:  # nothing but dropout, say
        nodes.append(helper.make_node("Identity", ["images"], [""]))
    nodes[-1].output[0] = "logits"
    shapes: dict[str, Shape] = {
        "images": ("batch", *input_shape),
        "logits": ("batch", *_output_shape(network, input_shape)),
    }
    images, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    graph = helper.make_graph(nodes, type(network).__name__, [images], [logits], weights)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tinygrad_nnfs",
        producer_version=__version__,
    )
    onnx.checker.check_model(model, full_check=True)
    try:
        write_file(path, model.SerializeToString())
    except OSError as error:
        raise InteropError(f"{path}: cannot be written: {error.strerror or error}") from None
    return shapes


def _layers(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of a Sequential by name, those of inner ones included. Each can be exported."""
    if not isinstance(network, nn.Sequential) or (
        type(network).forward is not nn.Sequential.forward
    ):
        raise InteropError(
            f"a {type(network).__name__} cannot be exported to ONNX: its forward may be any "
            "function; only a Sequential's is known"
        )
    for name, layer in network._layers().items():
        if isinstance(layer, nn.Sequential):
            yield from _layers(layer, f"{prefix}{name}.")
        elif type(layer) in _EXPORTS:
            yield prefix + name, layer
        else:
            known = ", ".join(sorted(kind.__name__ for kind in _EXPORTS))
            raise InteropError(
                f"layer {prefix}{name} is a {type(layer).__name__}, which cannot be exported to "
                f"ONNX: known are {known}"
            )


@no_grad()
def _output_shape(network: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the network makes of one image."""
    modes = [(module, module.training) for module in network.modules()]
    like = next(network.parameters(), Tensor(np.zeros(1, np.float32)))
    try:
        images = Tensor(np.zeros((1, *input_shape), like.dtype)).to(like.device)
        logits = network.eval()(images)
    except (TypeError, ValueError) as error:
        raise InteropError(
            f"images of shape {input_shape} do not fit the network: {error}"
        ) from None
    finally:
        for module, mode in modes:
            module.training = mode
    return tuple(logits.shape[1:])


# -- one block a layer -----------------------------------------------------------------------------


def _exports(kind: type[nn.Module]) -> Callable[[Export], Export]:
    """Register what a layer of this very class becomes."""

    def register(function: Export) -> Export:
        _EXPORTS[kind] = function
        return function

    return register


@_exports(nn.Linear)
def _linear(layer: nn.Linear) -> Iterator[Node]:
    yield "MatMul", {"weight": layer.weight.numpy().T}, {}  # Gemm would take (n, inputs) alone
    if layer.bias is not None:
        yield "Add", {"bias": layer.bias}, {}


@_exports(nn.Conv2d)
def _conv2d(layer: nn.Conv2d) -> Iterator[Node]:
    attributes = {
        "kernel_shape": layer.weight.shape[2:],
        "strides": layer.stride,
        "pads": layer.padding * 2,
        "dilations": layer.dilation,
        "group": layer.groups,
    }
    yield "Conv", {"weight": layer.weight, "bias": layer.bias}, attributes


@_exports(nn.MaxPool2d)
def _max_pool2d(layer: nn.MaxPool2d) -> Iterator[Node]:
    yield "MaxPool", {}, _windows(layer)


@_exports(nn.AvgPool2d)
def _avg_pool2d(layer: nn.AvgPool2d) -> Iterator[Node]:
    yield "AveragePool", {}, {**_windows(layer), "count_include_pad": 1}


def _windows(layer: nn.MaxPool2d | nn.AvgPool2d) -> dict[str, tuple[int, ...]]:
    kernel = pair("kernel_size", layer.kernel_size, 1)
    return {
        "kernel_shape": kernel,
        "strides": kernel if layer.stride is None else pair("stride", layer.stride, 1),
        "pads": pair("padding", layer.padding, 0) * 2,
    }


@_exports(nn.BatchNorm2d)
def _batch_norm2d(layer: nn.BatchNorm2d) -> Iterator[Node]:
    constants = {
        "weight": layer.weight,
        "bias": layer.bias,
        "running_mean": layer.running_mean,
        "running_var": layer.running_var,
    }
    yield "BatchNormalization", constants, {"epsilon": layer.eps}


@_exports(nn.ReLU)
def _relu(layer: nn.ReLU) -> Iterator[Node]:
    yield "Relu", {}, {}


@_exports(nn.LeakyReLU)
def _leaky_relu(layer: nn.LeakyReLU) -> Iterator[Node]:
    yield "LeakyRelu", {}, {"alpha": layer.slope}


@_exports(nn.Flatten)
def _flatten(layer: nn.Flatten) -> Iterator[Node]:
    yield "Flatten", {}, {"axis": 1}


@_exports(nn.Dropout)
def _dropout(layer: nn.Dropout) -> Iterator[Node]:
    yield from ()  # does nothing in evaluation
