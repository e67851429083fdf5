"""Values and gradients of every op against PyTorch's, in float64."""

import numpy as np
import pytest
from hypothesis import given

from tinygrad_nnfs import OPS, Tensor, from_dlpack
from tinygrad_nnfs.testing import op_cases

torch = pytest.importorskip("torch", reason="PyTorch is one of the oracles; it is not installed")
F = torch.nn.functional


def dims(x, axis):
    """PyTorch takes dim=() for all axes, numpy for none."""
    return tuple(range(x.ndim)) if axis is None else axis


def reduced(function):
    def run(x, *, axis, keepdims, **options):
        if axis == () and not options:
            return x * 1.0
        return function(x, dim=dims(x, axis), keepdim=keepdims, **options) if x.ndim else x * 1.0

    return run


def torch_var(x, *, axis, keepdims, correction):
    if axis == () or not x.ndim:
        return x * 0.0
    return torch.var(x, dim=dims(x, axis), keepdim=keepdims, correction=correction)


def torch_getitem(x, *, index):
    picked = np.arange(x.numel()).reshape(x.shape)[index]  # PyTorch has no slices of negative step
    return x.flatten()[torch.from_numpy(np.array(picked, order="C"))]


def torch_dropout(x, *, p, key):
    words = np.random.Philox(key=np.array(key, np.uint64)).random_raw(-(-x.numel() // 4))
    bits = words.view(np.uint16)[: x.numel()]
    if x.ndim == 4:  # those of images lie channels last
        n, c, h, w = x.shape
        bits = bits.reshape(n, h, w, c).transpose(0, 3, 1, 2)
    bits = bits.reshape(x.shape)
    scale = 1 / (1 - p) if p < 1 else 0.0
    return x * torch.from_numpy(np.asarray(bits >= p * 2**16)) * scale


def torch_batch_norm(x, weight, bias, *, running=None, training=True):
    mean, variance = map(torch.from_numpy, running) if running else (None, None)
    return F.batch_norm(x, mean, variance, weight, bias, training)


def torch_pad(x, *, pad_width, value):
    return F.pad(x, [n for pair in reversed(pad_width) for n in pair], value=value)


ORACLES = {
    "abs": torch.abs,
    "add": torch.add,
    "astype": lambda x, *, dtype: x.to(getattr(torch, dtype)),
    "avg_pool2d": F.avg_pool2d,
    "batch_norm2d": torch_batch_norm,
    "clip": lambda x, *, low=None, high=None: torch.clamp(x, low, high),
    "concatenate": lambda *xs, axis=0: torch.cat(xs, dim=axis),
    "conv2d": F.conv2d,
    "conv2d_naive": F.conv2d,
    "divide": torch.div,
    "dropout": torch_dropout,
    "elu": F.elu,
    "embedding": F.embedding,
    "equal": torch.eq,
    "exp": torch.exp,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "getitem": torch_getitem,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "layer_norm": lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias),
    "leaky_relu": lambda x, *, slope: F.leaky_relu(x, slope),
    "less": torch.lt,
    "less_equal": torch.le,
    "linear": F.linear,
    "log": torch.log,
    "log_softmax": lambda x, *, axis=-1: F.log_softmax(x, dim=axis),
    "matmul": torch.matmul,
    "max": reduced(torch.amax),
    "max_pool2d": F.max_pool2d,
    "maximum": torch.maximum,
    "mean": reduced(torch.mean),
    "min": reduced(torch.amin),
    "minimum": torch.minimum,
    "mse_loss": F.mse_loss,
    "multiply": torch.mul,
    "negative": torch.neg,
    "not_equal": torch.ne,
    "pad": torch_pad,
    "power": torch.pow,
    "relu": F.relu,
    "reshape": torch.reshape,
    "sigmoid": torch.sigmoid,
    "soft_cross_entropy": F.cross_entropy,
    "softmax": lambda x, *, axis=-1: F.softmax(x, dim=axis),
    "softmax_cross_entropy": F.cross_entropy,
    "softplus": F.softplus,
    "sqrt": torch.sqrt,
    "stack": lambda *xs, axis: torch.stack(xs, dim=axis),
    "subtract": torch.sub,
    "sum": reduced(torch.sum),
    "tanh": torch.tanh,
    "to": lambda x, *, device: x.to(device),
    "transpose": lambda x, *, axes=None: x.permute(axes or tuple(reversed(range(x.ndim)))),
    "var": torch_var,
    "where": torch.where,
}


def test_every_op_has_an_oracle():
    assert set(ORACLES) == set(OPS)


@pytest.mark.parametrize("name", ORACLES)
def test_agrees_with_torch(name):
    op, oracle = OPS[name], ORACLES[name]

    @given(op_cases(op))
    def run(cases):
        for case in cases:
            compare(op, oracle, case)

    run()


def compare(op, oracle, case):
    floating = [isinstance(x, np.ndarray) and x.dtype.kind == "f" for x in case.inputs]
    pairs = list(zip(case.inputs, floating, strict=True))
    ours = [Tensor(x, requires_grad=True) if f else x for x, f in pairs]
    theirs = [  # torch knows no negative strides
        torch.tensor(np.array(x, order="C"), requires_grad=f) if isinstance(x, np.ndarray) else x
        for x, f in pairs
    ]
    y, expected = op(*ours, **case.params), oracle(*theirs, **case.params)
    np.testing.assert_allclose(
        y.numpy(), expected.detach().numpy(), rtol=1e-10, atol=1e-10, err_msg=str(case)
    )
    if not y.requires_grad:
        assert not expected.dtype.is_floating_point or not any(floating)
        return
    dy = np.random.default_rng(0).standard_normal(y.shape)
    y.backward(dy)
    expected.backward(torch.from_numpy(np.asarray(dy, y.dtype)))
    for x, t in zip(ours, theirs, strict=True):
        if isinstance(x, Tensor):
            gradient = torch.zeros_like(t) if t.grad is None else t.grad
            np.testing.assert_allclose(
                x.grad.numpy(), gradient.numpy(), rtol=1e-9, atol=1e-9, err_msg=str(case)
            )


def test_memory_is_shared_both_ways():
    theirs = torch.arange(6.0).reshape(2, 3).T
    ours = from_dlpack(theirs)
    theirs[0, 0] = 5
    assert (ours.shape, ours.data.strides, ours.data[0, 0]) == ((3, 2), (4, 12), 5)
    back = torch.from_dlpack(ours)
    back[2, 1] = 7
    assert theirs[2, 1] == ours.data[2, 1] == 7
    for refused, reason in (
        (torch.zeros(1, dtype=torch.bfloat16), "dtype"),
        (torch.zeros(1, requires_grad=True), "gradient"),
    ):
        with pytest.raises(TypeError, match=f"this Tensor cannot be shared: .*{reason}"):
            from_dlpack(refused)
