"""The ops: every differentiable function, one block each, one file a family.

A docstring ends with the formula of each rule: dy is the gradient by the output y, dx the one by
the input x. They are written as numpy would compute them, element by element, but that sums and
means over axes keep these with size 1, and that a comparison counts 1 where it holds, else 0. The
tests evaluate them.
"""

from tinygrad_nnfs.ops.activation import (
    elu,
    gelu,
    leaky_relu,
    log_softmax,
    relu,
    sigmoid,
    softmax,
    softplus,
    tanh,
)
from tinygrad_nnfs.ops.arithmetic import (
    abs,
    add,
    clip,
    divide,
    equal,
    exp,
    greater,
    greater_equal,
    less,
    less_equal,
    log,
    maximum,
    minimum,
    multiply,
    negative,
    not_equal,
    power,
    sqrt,
    subtract,
    where,
)
from tinygrad_nnfs.ops.convolution import conv2d, conv2d_naive
from tinygrad_nnfs.ops.dropout import dropout
from tinygrad_nnfs.ops.linear import embedding, linear, matmul
from tinygrad_nnfs.ops.loss import mse_loss, soft_cross_entropy, softmax_cross_entropy
from tinygrad_nnfs.ops.normalization import batch_norm2d, layer_norm
from tinygrad_nnfs.ops.pooling import avg_pool2d, max_pool2d
from tinygrad_nnfs.ops.reduce import max, mean, min, sum, var
from tinygrad_nnfs.ops.shape import (
    astype,
    concatenate,
    getitem,
    pad,
    reshape,
    stack,
    to,
    transpose,
)

__all__ = [
    "abs",
    "add",
    "astype",
    "avg_pool2d",
    "batch_norm2d",
    "clip",
    "concatenate",
    "conv2d",
    "conv2d_naive",
    "divide",
    "dropout",
    "elu",
    "embedding",
    "equal",
    "exp",
    "gelu",
    "getitem",
    "greater",
    "greater_equal",
    "layer_norm",
    "leaky_relu",
    "less",
    "less_equal",
    "linear",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "min",
    "minimum",
    "mse_loss",
    "multiply",
    "negative",
    "not_equal",
    "pad",
    "power",
    "relu",
    "reshape",
    "sigmoid",
    "soft_cross_entropy",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "sqrt",
    "stack",
    "subtract",
    "sum",
    "tanh",
    "to",
    "transpose",
    "var",
    "where",
]
