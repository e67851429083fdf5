"""Tensors: dtypes, operators, conversions and the errors of wrong input."""

import operator
import sys
import types

import numpy as np
import pytest

from tinygrad_nnfs import Parameter, Tensor, backend, from_dlpack, nn, ops

# -- dtypes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1, "float32"),
        (1.5, "float32"),
        ([1, 2], "float32"),
        ([[1.0], [2.0]], "float32"),
        ([True, False], "bool"),
        (np.arange(3), "int64"),
        (np.ones(2), "float64"),
        (np.float64(1), "float64"),
        (np.uint8([1]), "uint8"),
    ],
)
def test_dtype_of_a_new_tensor(data, dtype):
    assert Tensor(data).dtype == dtype


F32, F64, I64 = (Tensor(np.ones(2, d)) for d in (np.float32, np.float64, np.int64))


@pytest.mark.parametrize(
    ("result", "dtype"),
    [
        (lambda: F32 + 1, "float32"),
        (lambda: F32 * 1.5, "float32"),
        (lambda: 2 - F32, "float32"),
        (lambda: F32 * np.float64(2), "float32"),
        (lambda: F32 * np.ones(2), "float32"),
        (lambda: np.ones(2) * F32, "float32"),
        (lambda: F32 * [1, 2], "float32"),
        (lambda: F64 * [1, 2], "float64"),
        (lambda: F64 * np.ones(2, np.float32), "float64"),
        (lambda: F32 + np.arange(2), "float32"),
        (lambda: F32 + I64, "float32"),
        (lambda: I64 + 1, "int64"),
        (lambda: I64 * I64, "int64"),
        (lambda: I64 * 0.5, "float32"),
        (lambda: I64 / 2, "float32"),
        (lambda: I64 * np.ones(2), "float64"),
        (lambda: I64.exp(), "float32"),
        (lambda: I64.mean(), "float32"),
        (lambda: I64.sum(), "int64"),
        (lambda: I64 @ I64, "int64"),
        (lambda: F32**2, "float32"),
        (lambda: 2**F32, "float32"),
        (lambda: F32 < 1, "bool"),
        (lambda: ops.exp(np.ones(2)), "float64"),
        (lambda: ops.exp([1, 2]), "float32"),
        (lambda: ops.exp(1.0), "float32"),
        (lambda: ops.add(1, 2), "float32"),
        (lambda: ops.maximum(F32, 0), "float32"),
        (lambda: ops.where(F32 > 0, F32, 0), "float32"),
        (lambda: ops.where(F32 > 0, 1.0, 0.0), "float32"),
        (lambda: I64 * [1, 2], "int64"),
        (lambda: I64 * [0.5, 2], "float32"),
        (lambda: I64.clip(0.5), "float32"),
        (lambda: F32.clip(np.float64(0), np.float64(1)), "float32"),
        (lambda: ops.leaky_relu(F32, slope=np.float64(0.1)), "float32"),
        (lambda: Tensor(np.ones(2, ">f4")).exp(), "float32"),
    ],
)
def test_dtype_of_a_result(result, dtype):
    assert result().dtype == dtype


@pytest.mark.parametrize("power", [0, 1, 2, 0.5, -1])
def test_power_of_a_number_keeps_float32_in_the_gradient(power):
    x = Tensor(np.float32([0.5, 2]), requires_grad=True)
    (x**power).sum().backward()
    assert x.grad.dtype == np.float32


def test_number_to_the_power_of_a_tensor_keeps_float32_in_the_gradient():
    x = Tensor(np.float32([0.5, 2]), requires_grad=True)
    (3**x).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), np.log(3) * 3 ** x.numpy(), rtol=1e-6)
    assert x.grad.dtype == np.float32


def test_mixed_floating_dtypes_name_the_op():
    with pytest.raises(TypeError, match=r"^matmul\(.*inputs mix float32 and float64: use astype"):
        Tensor(np.ones((2, 2), np.float32)) @ Tensor(np.ones((2, 2)))


def test_astype_carries_the_gradient():
    x = Tensor([1.0, 2.0], requires_grad=True)
    (x.astype("float64") * 2).sum().backward()
    assert x.grad.dtype == np.float32
    assert not x.astype(np.int64).requires_grad


@pytest.mark.parametrize("data", ["text", [None], np.array(["a"]), np.ones(1, complex), object()])
def test_elements_must_be_numbers(data):
    with pytest.raises(TypeError, match="elements must be bool, integer or floating, found"):
        Tensor(data)


def test_ragged_lists_and_lists_of_tensors_are_refused():
    with pytest.raises(ValueError, match="not of one shape"):
        Tensor([[1], [2, 3]])
    with pytest.raises(TypeError, match=r"use ops\.stack"):
        Tensor([Tensor(1), Tensor(2)])
    with pytest.raises(TypeError, match="detach"):
        Tensor(Tensor(1))


def test_integers_have_no_gradient():
    with pytest.raises(TypeError, match="only floating-point tensors have gradients, found int64"):
        Tensor(np.arange(3), requires_grad=True)


# -- operators and methods -------------------------------------------------------------------------

BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]
COMPARE = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


@pytest.mark.parametrize("symbol", BINARY + COMPARE)
@pytest.mark.parametrize("other", [2.0, np.array([1.0, 2.0, 3.0]), [3.0, 2.0, 1.0]])
def test_operators_in_both_orders(symbol, other):
    a = np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(symbol(Tensor(a), other).numpy(), symbol(a, np.array(other)))
    np.testing.assert_allclose(symbol(other, Tensor(a)).numpy(), symbol(np.array(other), a))


def test_matmul_in_both_orders():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(3, 2)
    for left, right in ((Tensor(a), b), (a, Tensor(b)), (Tensor(a), Tensor(b))):
        product = left @ right
        assert isinstance(product, Tensor)
        np.testing.assert_array_equal(product.numpy(), a @ b)


def test_unary_operators():
    x = np.array([-1.0, 2.0])
    np.testing.assert_array_equal((-Tensor(x)).numpy(), -x)
    np.testing.assert_array_equal(abs(Tensor(x)).numpy(), abs(x))
    np.testing.assert_array_equal(Tensor(x).abs().numpy(), abs(x))


def test_methods_take_options_by_position_and_name():
    x = Tensor(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(x.sum(0).numpy(), x.sum(axis=0).numpy())
    assert x.sum(0, True).shape == (1, 3)
    assert x.max((0, 1)).item() == 5
    assert x.clip(1, 4).numpy().tolist() == [[1, 1, 2], [3, 4, 4]]
    assert x.clip(high=2).max().item() == 2
    assert x.reshape(3, 2).shape == x.reshape((3, 2)).shape == x.reshape([3, 2]).shape == (3, 2)
    assert x.reshape(-1).shape == (6,)
    assert x.transpose().shape == x.T.shape == x.transpose(1, 0).shape == (3, 2)
    assert x.flatten().shape == (6,)
    assert Tensor(np.ones((2, 3, 4))).flatten(1).shape == (2, 12)
    assert Tensor(np.ones((0, 3, 4))).flatten(1).shape == (0, 12)
    assert Tensor(1.0).flatten().shape == (1,)
    turned = Tensor(x.numpy().T).flatten()  # in row-major order, wherever the elements lie
    np.testing.assert_array_equal(turned.numpy(), x.numpy().T.ravel())
    with pytest.raises(ValueError, match="there is no axis 2"):
        x.flatten(2)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum(0, True, 5),
        lambda x: x.sum(0, axis=0),
        lambda x: x.exp(1),
        lambda x: ops.add(x),
        lambda x: ops.leaky_relu(x, slop=1),
        lambda x: ops.linear(x, weights=x),
    ],
)
def test_wrong_arguments_name_the_op(call):
    with pytest.raises(TypeError, match=r"sum|exp|add|leaky_relu|linear"):
        call(Tensor([1.0]))


def test_inputs_can_be_given_by_name():
    logits, labels = np.zeros((2, 3)), np.array([0, 1])
    loss = ops.softmax_cross_entropy(logits=logits, labels=labels)
    assert loss.item() == pytest.approx(np.log(3))
    y = ops.linear(np.ones((1, 2)), weight=np.ones((3, 2)), bias=np.ones(3))
    assert y.numpy().tolist() == [[3, 3, 3]]


def test_index_with_tensors():
    x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    picked = x[Tensor(np.array([0, 0])), Tensor(np.array([1, 1]))]
    picked.sum().backward()
    assert x.grad.numpy().tolist() == [[0, 2, 0], [0, 0, 0]]
    assert x[x > 3].numpy().tolist() == [4, 5]
    with pytest.raises(IndexError, match=r"getitem\(x: float64 \(2, 3\)\)"):
        x[5]


def test_lists_of_tensors_for_stack_and_concatenate():
    a, b = Tensor([1.0], requires_grad=True), Tensor([2.0])
    assert ops.concatenate([a, b], axis=0).shape == ops.concatenate(a, b).shape == (2,)
    ops.stack([a, b]).sum().backward()
    assert a.grad.item() == 1
    with pytest.raises(ValueError, match="concatenate"):
        ops.concatenate([])


# -- what a Tensor is to Python --------------------------------------------------------------------


def test_hash_is_identity():
    a, b = Tensor([1.0]), Tensor([1.0])
    assert len({a, b, a}) == 2


def test_truth_length_iteration():
    assert Tensor(1.0)
    assert not Tensor([[0.0]])
    with pytest.raises(ValueError, match=r"truth of a tensor of shape \(2,\) is ambiguous"):
        bool(Tensor([1.0, 2.0]))
    assert len(Tensor([1.0, 2.0])) == 2
    with pytest.raises(TypeError, match=r"shape \(\) has no length"):
        len(Tensor(1.0))
    with pytest.raises(TypeError, match="not iterated"):
        list(Tensor([1.0]))


def test_to_python_and_numpy():
    x = Tensor(np.arange(3.0))
    assert x.numpy() is x.data
    np.testing.assert_array_equal(np.asarray(x), [0, 1, 2])
    assert np.asarray(x, dtype=np.float32).dtype == np.float32
    assert Tensor(2.5).item() == float(Tensor(2.5)) == 2.5
    assert int(Tensor(np.array([3]))) == 3
    with pytest.raises(ValueError, match=r"one element, found shape \(3,\)"):
        x.item()


def test_repr():
    x = Tensor([1.0, 2.0], requires_grad=True)
    assert repr(x) == "Tensor([1. 2.], shape=(2,), dtype=float32, leaf)"
    assert "op=multiply" in repr(x * 2)
    assert len(repr(Tensor(np.zeros((1000, 1000))))) < 300


def test_detach_shares_memory():
    x = Tensor([1.0], requires_grad=True)
    detached = x.detach()
    assert detached.data is x.data
    assert not detached.requires_grad


def test_requires_grad_can_be_switched():
    w = Parameter([1.0])
    w.requires_grad = False
    assert not (w * 2).requires_grad
    w.requires_grad = True
    (w * 2).sum().backward()
    assert w.grad.item() == 2
    with pytest.raises(RuntimeError, match="result of multiply follows from its inputs"):
        (w * 2).requires_grad = False


def test_grad_must_fit():
    w = Parameter([1.0, 2.0])
    w.grad = Tensor([3.0, 4.0])
    assert w.grad.numpy().tolist() == [3, 4]
    w.grad = None
    with pytest.raises(ValueError, match=r"float32 \(2,\) like its tensor, found float32 \(1,\)"):
        w.grad = Tensor([1.0])
    with pytest.raises(RuntimeError, match="leaf"):
        Tensor([1.0]).grad = Tensor([1.0])


def test_numpy_functions_do_not_take_it_off_the_tape_by_accident():
    x = Tensor([1.0], requires_grad=True)
    with pytest.raises(TypeError, match=r"off the tape without a word: use x\.numpy\(\)"):
        np.asarray(x)
    for call in (np.exp, np.mean, np.sum, lambda x: np.maximum(x, 0), lambda x: np.stack([x, x])):
        with pytest.raises(TypeError, match=r"np\.\w+ knows nothing of the tape: use an op"):
            call(x)
    with pytest.raises(TypeError, match=r"update its \.data with arrays"):
        x.data -= 0.1 * x
    with pytest.raises(TypeError, match=r"use ops\.stack"):
        Tensor([[x, x]])
    assert x.numpy().tolist() == [1]


def test_format():
    assert f"{Tensor(1.2345):.2f}" == "1.23"
    assert f"{Tensor([1.0])}".startswith("Tensor(")


def test_subclasses_with_arithmetic_of_their_own_become_plain():
    x = Tensor(np.ones((2, 2)).view(np.matrix))
    assert type(x.data) is np.ndarray


def test_gradient_arrays_take_the_tensors_dtype():
    x = Tensor([1.0, 2.0], requires_grad=True)
    (x * 2).backward(np.ones(2))
    (x * 2).backward([1, 1])
    assert x.grad.numpy().tolist() == [4, 4]
    assert x.grad.dtype == np.float32


def test_leaf_gradients_can_be_written_to():
    x = Tensor([1.0, 2.0], requires_grad=True)
    x.mean().backward()
    x.grad.data *= 2
    assert x.grad.numpy().tolist() == [1, 1]


def test_transpose_with_negative_axes():
    x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    dy = np.arange(6.0).reshape(3, 2)
    x.transpose(-1, 0).backward(dy)
    np.testing.assert_array_equal(x.grad.numpy(), dy.T)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Tensor(np.ones((2, 3))) + Tensor(np.ones(4)),
            r"add\(a: float64 \(2, 3\), b: float64 \(4,\)\): operands could not be broadcast",
        ),
        (
            lambda: Tensor(np.ones((2, 3))) @ Tensor(np.ones((2, 3))),
            r"matmul\(a: float64 \(2, 3\), b: float64 \(2, 3\)\): the last size of a must be",
        ),
        (
            lambda: Tensor(np.ones((2, 3))).reshape(5),
            r"reshape\(x: float64 \(2, 3\)\): cannot reshape array of size 6 into shape \(5,\)",
        ),
        (
            lambda: nn.Linear(9, 2)(np.ones((1, 1, 3, 3))),
            r"x must be \(\.\.\., 9\).*Flatten missing",
        ),
        (lambda: Tensor(np.ones(2)).sum(axis=3), r"sum\(x: float64 \(2,\)\): axis 3 is out of"),
        (
            lambda: ops.linear(np.ones((2, 3)), np.ones((4, 5))),
            r"linear\(x: .*, weight: .*, bias: None\): x must be \(\.\.\., 5\)",
        ),
        (
            lambda: ops.stack(np.ones(2), np.ones(3)),
            r"stack\(xs\[0\]: float64 \(2,\), xs\[1\]: float64 \(3,\)\)",
        ),
        (
            lambda: ops.mse_loss(np.ones(3), np.ones((3, 1))),
            "prediction and target must have one shape",
        ),
        (
            lambda: ops.soft_cross_entropy(np.ones((3, 2)), np.ones((3, 1))),
            r"logits and targets must both be \(n, classes\)",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x @ 2, r"^matmul\(a: float32 \(1,\), b: 2\): it needs an array where"),
        (lambda x: ops.linear(x, None), r"^linear\(x: float32 \(1,\), weight: None"),
        (lambda x: x + "abc", r"^add\(a: .*elements must be bool, integer or floating"),
        (lambda x: x.astype(complex), r"^astype\(.*must be bool, integer or floating"),
        (lambda x: x.mean(0, 1), "keepdims must be True or False, found 1: axes go in a tuple"),
        (lambda x: x.max(0, False, 3), r"Tensor\.max takes axis, keepdims, each once"),
        (lambda x: ops.conv2d(x, x, strides=2), r"^conv2d\(x, weight, bias=None, \*, stride=1"),
        (lambda x: setattr(x, "grad", np.ones(1)), "grad must be a Tensor or None"),
    ],
)
def test_wrong_types_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call(Tensor([1.0], requires_grad=True))


def test_axes_out_of_range_are_named():
    for call in (lambda x: x.mean(axis=5), lambda x: x.sum(axis=(0, 2)), lambda x: x.var(-3)):
        with pytest.raises(ValueError, match="is out of range for 2 axes"):
            call(Tensor(np.ones((2, 2))))
    assert Tensor(np.ones((2, 2))).mean([0, 1]).item() == 1


def test_devices():
    x = Tensor([1.0])
    assert x.device == "cpu"
    assert x.to("cpu").data is x.data
    with pytest.raises(ValueError, match="device 'tpu' is not known: use one of cpu, cuda"):
        x.to("tpu")


class Runtime:
    """CUDA's runtime on a machine where `error` comes of asking for GPUs."""

    def __init__(self, error):
        self.error = error

    def getDeviceCount(self):
        if self.error:
            raise self.error
        return 0

    def runtimeGetVersion(self):
        return 13020


class Driver:
    """NVIDIA's driver, which knows CUDA up to a version."""

    def __init__(self, version):
        self.version = version

    def cuDriverGetVersion(self, place):
        place._obj.value = self.version
        return 0


TOO_OLD = RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")


@pytest.mark.parametrize(
    ("error", "driver", "message"),
    [
        (None, None, "this machine has no NVIDIA GPU"),
        (TOO_OLD, None, r"there is no NVIDIA driver \(libcuda\): install one, or use device 'cpu'"),
        (
            TOO_OLD,
            Driver(12080),
            "driver knows CUDA 12, cupy was built for CUDA 13: update the driver, or pip install "
            "cupy-cuda12x in place of cupy-cuda13x",
        ),
        (RuntimeError("cudaErrorUnknown:\nwhat"), Driver(13000), "cudaErrorUnknown: what"),
    ],
)
def test_cuda_that_cannot_be_used_says_why(monkeypatch, error, driver, message):
    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(runtime=Runtime(error))

    def load_library(name):
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr("ctypes.CDLL", load_library)
    monkeypatch.setattr(backend, "load_cupy", backend.load_cupy.__wrapped__)
    with pytest.raises(RuntimeError, match=f"^device 'cuda' cannot be used: .*{message}$"):
        Tensor([1.0]).to("cuda")


def test_cuda_without_cupy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(backend, "load_cupy", backend.load_cupy.__wrapped__)
    with pytest.raises(RuntimeError, match=r"device 'cuda' needs cupy .* pip install"):
        Tensor([1.0]).to("cuda")


def test_memory_is_shared_with_other_libraries():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    seen = np.from_dlpack(x)
    seen[0, 0] = 9
    assert x.data[0, 0] == 9
    array = np.arange(6).reshape(2, 3).T
    shared = from_dlpack(array)
    array[0, 0] = 7
    assert (shared.dtype, shared.shape, shared.data[0, 0]) == (array.dtype, (3, 2), 7)
    with pytest.raises(BufferError, match=r"behind the tape: share x\.detach\(\)"):
        np.from_dlpack(Tensor([1.0], requires_grad=True))
    with pytest.raises(TypeError, match="expected an array that has __dlpack__, found a list"):
        from_dlpack([1.0])
    with pytest.raises(TypeError, match="this ndarray cannot be shared: elements must be bool, in"):
        from_dlpack(np.array([1j]))
