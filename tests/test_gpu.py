"""What runs on a GPU gives what the CPU gives: here on a stand-in for cupy, on a GPU where one is.

The stand-in (cupy_stand_in.py) runs the kernels of cuda.cu themselves, compiled by g++, and refuses
what cupy and CUDA's capture refuse. `make test-gpu` runs these tests on a GPU.
"""

import contextlib
import functools
import gc
import sys
import threading
import weakref

import cuda_on_cpu
import cupy_stand_in
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinygrad_nnfs.models.gpu_training import GpuTraining
from tinygrad_nnfs.models.networks import NETWORKS
from tinygrad_nnfs.models.recipes import Recipe
from tinygrad_nnfs.models.training import Training, TrainingError

from tinygrad_nnfs import (
    OPS,
    Parameter,
    Tensor,
    backend,
    capture,
    from_dlpack,
    gpu_precision,
    manual_seed,
    nn,
    ops,
    optim,
    profile,
    reference_kernels,
)
from tinygrad_nnfs.checking import Draw, cases_of, requirements
from tinygrad_nnfs.kernels import cublas, cuda
from tinygrad_nnfs.testing import op_cases

load_cublas = cublas.load_cublas  # the stand-in has another in its place


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)], autouse=True)
def device(request):
    """The device "cuda", real or not, for one test; its name says which."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param == "stand-in":
            if not cuda_on_cpu.compiler_is_installed():
                pytest.skip(f"{cuda_on_cpu.COMPILER} is not installed")
            cupy_stand_in.install(monkeypatch)
        elif backend.cupy_if_installed() is None:
            pytest.skip("cupy finds no GPU")
        yield request.param


def on_gpu(value):
    """Arrays, also those in tuples, moved to the GPU."""
    if isinstance(value, tuple):
        return tuple(map(on_gpu, value))
    return backend.move(value, "cuda") if isinstance(value, np.ndarray) else value


def host(x):
    return backend.move(x.data if isinstance(x, Tensor) else x, "cpu")


def is_leaf(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


# -- ops -------------------------------------------------------------------------------------------


def through_the_tape(op, case, move):
    """The output and all gradients, on the CPU again."""
    inputs = [Tensor(move(x), requires_grad=True) if is_leaf(x) else move(x) for x in case.inputs]
    place = on_cpu if move is on_cpu else on_gpu
    y = op(*inputs, **{name: place(value) for name, value in case.params.items()})
    results = [host(y)]
    if y.requires_grad:
        dy = np.random.default_rng(1).standard_normal(y.shape).astype(host(y).dtype)
        y.backward(backend.move(dy, y.device))
        results += [host(x.grad) for x in inputs if isinstance(x, Tensor)]
    return results


def cast(value, dtype):
    if isinstance(value, tuple):
        return tuple(cast(part, dtype) for part in value)
    return value.astype(dtype) if is_leaf(value) else value


def on_cpu(x):
    return x


def channels_last(x):
    """Images as convolutions leave them."""
    if not isinstance(x, np.ndarray) or x.ndim != 4:
        return on_gpu(x)
    return on_gpu(np.ascontiguousarray(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)


def with_gaps(x):
    if not isinstance(x, np.ndarray) or x.ndim == 0:
        return on_gpu(x)
    return on_gpu(np.repeat(x, 2, axis=-1))[..., ::2]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("name", OPS)
def test_op(name, dtype, tolerance):
    """By the tape, in any memory order, and in float64 every implementation on its own."""
    op = OPS[name]

    @given(op_cases(op), st.sampled_from([on_gpu, channels_last, with_gaps]))
    def check(cases, move):
        for case in cases:
            if dtype == "float64":
                requirements.check_other_backend(op, case)
            inputs = tuple(cast(x, dtype) for x in case.inputs)
            params = {key: cast(value, dtype) for key, value in case.params.items()}
            moved = type(case)(inputs, params)
            with reference_kernels():
                expected = through_the_tape(op, moved, on_cpu)
            found = through_the_tape(op, moved, move)
            for a, b in zip(expected, found, strict=True):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)
                scale = max(1, abs(a).max(initial=0))
                np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * scale)

    check()


VARIANTS = [
    (op, when, variant)
    for op in OPS.values()
    for when, variant in op.variants.get(backend.cupy, ())
]


@pytest.mark.parametrize(("op", "when", "variant"), VARIANTS, ids=lambda value: value.__name__)
def test_samples_meet_the_condition_of_every_variant(op, when, variant):
    cases = [case for seed in range(20) for case in cases_of(op, Draw(seed))]
    inputs = [([on_gpu(x) for x in case.inputs], case.params) for case in cases]
    assert any(when(*arrays, **params) for arrays, params in inputs)


def test_rocm_gets_the_plain_ops(device, monkeypatch):
    x = on_gpu(np.ones((1, 1, 4, 4), np.float32))
    applies = {op.__name__: when for op, when, _ in VARIANTS}
    assert applies["leaky_relu"](x)
    monkeypatch.setattr(backend.cupy.cuda.runtime, "is_hip", True)
    assert not applies["leaky_relu"](x)


def test_tensors_go_to_the_gpu_and_back():
    for context in (contextlib.nullcontext, profile):  # which has a path of its own
        x = Tensor([1.0, 2.0], requires_grad=True)
        with context():
            y = x.to("cuda")
            z = (y * y).to("cpu")
        assert (y.device, z.device) == ("cuda", "cpu")
        z.sum().backward()
        assert x.grad.numpy().tolist() == [2, 4]


def test_devices_that_differ_are_named():
    with pytest.raises(ValueError, match=r"^add\(.*different devices \(cpu, cuda\): use to"):
        Tensor([1.0]) + Tensor([1.0]).to("cuda")


def test_labels_out_of_range_are_reported_when_a_result_is_read():
    logits = Tensor(np.zeros((2, 3), np.float32)).to("cuda")
    for context in (reference_kernels, contextlib.nullcontext):
        with context():
            loss = ops.softmax_cross_entropy(logits, Tensor(on_gpu(np.array([0, 3]))))
            with pytest.raises(ValueError, match=r"cross_entropy: labels must be in 0\.\.2"):
                loss.item()
            loss = ops.softmax_cross_entropy(logits, Tensor(on_gpu(np.array([0, 2]))))
            assert loss.item() == pytest.approx(np.log(3))
    table = Tensor(np.zeros((2, 3), np.float32)).to("cuda")
    with pytest.raises(ValueError, match=r"embedding: indices must be in 0\.\.1"):
        ops.embedding(on_gpu(np.array([2])), table).numpy()


# -- matrix products -------------------------------------------------------------------------------

matrices = st.tuples(*[st.integers(0, 4)] * 3)


@given(
    matrices,
    st.sampled_from(["", "2", "12", "32"]),
    st.sampled_from(["", "2", "12", "31"]),
    st.integers(0, 2**16),
)
def test_matmul(sizes, left, right, seed):
    random = np.random.default_rng(seed)
    (n, i, o), dtype = sizes, random.choice(["float32", "float64"])

    def stack(shape, rows, columns):
        # in any memory order, with steps and reversed axes
        x = random.standard_normal((*map(int, shape), rows, columns)).astype(dtype)
        kind = random.integers(4)
        if kind == 0:
            return x.swapaxes(-1, -2).copy().swapaxes(-1, -2)
        if kind == 1:
            return np.repeat(x, 2, -1)[..., ::2]
        return x[..., ::-1, :] if kind == 2 else x

    a, b = stack(left, n, i), stack(right, i, o)
    gpu_a, gpu_b = on_gpu(a), on_gpu(b)
    if random.integers(2):  # cupy gets the strides, too
        gpu_a = on_gpu(np.ascontiguousarray(a.swapaxes(-1, -2))).swapaxes(-1, -2)
        gpu_b = on_gpu(np.ascontiguousarray(np.repeat(b, 2, -2)))[..., ::2, :]
    found = host(backend.cupy.matmul(gpu_a, gpu_b))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, np.matmul(a, b), rtol=1e-5, atol=1e-5)


def test_matmul_into_memory_that_is_given():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    for out in (np.empty((2, 4)), np.empty((4, 2)).T):
        y = on_gpu(np.ascontiguousarray(out.T)).T if out.base is not None else on_gpu(out)
        assert backend.cupy.matmul(on_gpu(a), on_gpu(b), out=y) is y
        np.testing.assert_array_equal(host(y), a @ b)


def test_one_product_is_no_stack_of_products(device):
    """cuBLAS divides the long sum of one product among blocks."""
    if device == "gpu":
        pytest.skip("cuBLAS does not tell what it was called with")
    x = on_gpu(np.ones((2, 3, 3)))
    for a, b in ((x[0], x[1]), (x[:1], x[1]), (x, x)):
        backend.cupy.matmul(a, b)
    called = [name for name, _ in cublas.load_cublas().calls]
    assert called == ["cublasGemmEx", "cublasGemmEx", "cublasGemmStridedBatchedEx"]


def test_cublas_is_looked_for_by_name_where_there_is_no_pathfinder(monkeypatch):
    asked = []

    def library(name):
        asked.append(name)
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    monkeypatch.setattr(cublas.ctypes, "CDLL", library)
    with pytest.raises(RuntimeError, match=r"needs the library cuBLAS \(.*: cannot open .*\): pip"):
        load_cublas()
    assert asked == [f"libcublas.so.{backend.cupy.cuda.runtime.runtimeGetVersion() // 1000}"]


def test_large_arrays_have_indices_of_64_bits(device, monkeypatch):
    """Large means here: from 16 elements on."""
    if device == "gpu":
        pytest.skip("it would compile all kernels once more")
    compiled = []
    module = cuda._module.__wrapped__
    monkeypatch.setattr(cuda, "_module", lambda *key: compiled.append(key[-1]) or module(*key))
    monkeypatch.setattr(cuda, "LARGE", 16)
    cuda._kernel.cache_clear()
    shapes = (1, 2, 3, 3), (3, 2, 3, 3), (3,)
    y = ops.conv2d(*[Tensor(np.ones(shape, np.float32)).to("cuda") for shape in shapes])
    assert host(y).ravel().tolist() == [19, 19, 19]
    assert set(compiled) == {"unsigned", "size_t"}  # of 3 outputs, and of 18 in columns
    cuda._kernel.cache_clear()


def test_precision(device):
    a = np.float32([[1 + 2**-12]])
    product = functools.partial(backend.cupy.matmul, on_gpu(a), on_gpu(a.T))
    exact = float(a[0, 0]) ** 2
    found = {"default": host(product())[0, 0]}
    for name in cublas.PRECISIONS:
        with gpu_precision(name):
            found[name] = host(product())[0, 0]
    assert found["default"] == found["float32"] == np.float32(exact)
    if device == "stand-in":
        assert found["tf32"] == found["bf16"] == 1
    with pytest.raises(ValueError, match="one of float32, tf32, bf16, found 'half'"):
        gpu_precision("half").__enter__()


@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_an_exact_convolution_stays_exact(device, precision):
    x, weight = np.full((1, 1, 1, 1), 1 + 2**-12, np.float32), np.ones((1, 1, 1, 1), np.float32)
    with gpu_precision("tf32"):
        y = ops.conv2d(on_gpu(x), on_gpu(weight), precision=precision)
        if precision == "exact":
            assert y.item() == x.item()
        else:  # cuBLAS may round the factors, but need not
            assert y.item() == 1 or (device == "gpu" and y.item() == x.item())


# -- optimisers, seeds, layers ---------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": functools.partial(optim.SGD, lr=0.1),
    "momentum": functools.partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": functools.partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adam": functools.partial(optim.Adam, lr=0.1, weight_decay=0.1),
    "adamw": functools.partial(optim.AdamW, lr=0.1),
}


class OwnRule(optim.Optimizer):
    """A rule as a user writes one."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)

    def update(self, data, grad, state, group):
        data -= group["lr"] * grad * abs(grad)


OPTIMIZERS["own rule"] = OwnRule


class HalfSGD(optim.SGD):
    """A subclass whose rule is not its parent's, for which there is a kernel."""

    def update(self, data, grad, state, group):
        super().update(data, grad / 2, state, group)


OPTIMIZERS["subclass"] = functools.partial(HalfSGD, lr=0.1, momentum=0.9)


def trained(make, place, dtype, wrap=lambda step: step, steps=5, reference=False):
    """Parameters after some steps of descent on their squares, with a falling learning rate."""
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(n).astype(dtype) for n in (3, (2, 5), 1, 0, *[2] * 32)]
    parameters = [Parameter(backend.move(x, place)) for x in arrays]
    targets = [Tensor(backend.move(x, place)) for x in (x[::-1].copy() for x in arrays)]
    weights, biases = parameters[:2], parameters[2:]
    extra = {"weight_decay": 0.0} if "weight_decay" in make([Parameter([1.0])]).groups[0] else {}
    optimizer = make([{"params": weights}, {"params": biases, **extra}])

    def step():
        loss = functools.reduce(
            ops.add, [((p - t) ** 2).sum() for p, t in zip(parameters, targets)]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    step = wrap(step)
    losses = []
    for i in range(steps):
        optimizer.lr = 0.1 / (1 + i)
        losses.append(float(host(step())))
    return [host(p) for p in parameters], losses, optimizer


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name, dtype, tolerance):
    expected, losses, _ = trained(OPTIMIZERS[name], "cpu", dtype)
    found, gpu_losses, optimizer = trained(OPTIMIZERS[name], "cuda", dtype)
    np.testing.assert_allclose(gpu_losses, losses, rtol=tolerance * 10)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert {k: v.tolist() for k, v in optimizer.state_dict().items()} == {
        k: v.tolist() for k, v in state.items()
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_captured_optimizer_follows_the_learning_rate(name):
    expected, losses, _ = trained(OPTIMIZERS[name], "cuda", "float32")
    found, captured_losses, optimizer = trained(OPTIMIZERS[name], "cuda", "float32", wrap=capture)
    assert captured_losses == losses
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)
    if "adam" in name:
        assert {int(v) for k, v in optimizer.state_dict().items() if k.endswith(".t")} == {5}


@pytest.mark.parametrize("name", ["momentum", "adam", "own rule"])
def test_a_captured_optimizer_takes_any_kind_of_number(name):
    results = []
    for wrap in (lambda step: step, capture):
        parameter = Parameter(on_gpu(np.float32([1, 2, 3])))
        optimizer = OPTIMIZERS[name]([parameter])

        def step(parameter=parameter, optimizer=optimizer):
            optimizer.zero_grad()
            (parameter * parameter).sum().backward()
            optimizer.step()

        step = wrap(step)
        for lr in (1, 1, 1, np.float32(0.25), 0.5, 0):
            optimizer.groups[0]["lr"] = lr
            step()
        results.append(host(parameter).tolist())
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_captured_optimizer_goes_on_from_a_loaded_state(name):
    results = []
    for wrap in (lambda step: step, capture):
        network, rule, step, batches = network_and_step("mlp", [4] * 10, wrap, name)
        for batch in batches[:4]:
            step(*batch)
        saved = network.state_dict(), rule.state_dict()
        for batch in batches[4:7]:
            step(*batch)
        network.load_state_dict(saved[0])
        rule.load_state_dict(saved[1])
        for batch in batches[7:]:
            step(*batch)
        state = {**network.state_dict(), **rule.state_dict()}
        results.append({key: value.tobytes() for key, value in state.items()})
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_one_kernel_updates_all_parameters_of_a_network(name, monkeypatch):
    network, _, step, batches = network_and_step(name, [2])
    launched = []
    monkeypatch.setattr(cuda, "momentum_step", lambda updates, rates: launched.append(len(updates)))
    step(*batches[0])
    assert launched == [len(list(network.parameters()))]
    for parameter in network.parameters():
        assert parameter.grad.data.flags.c_contiguous  # written in place by cuBLAS


def test_the_same_seed_gives_the_same_numbers_on_both():
    manual_seed(5)
    cpu = NETWORKS["mlp"]()
    manual_seed(5)
    gpu = NETWORKS["mlp"]().to("cuda")
    for (name, a), (_, b) in zip(cpu.named_parameters(), gpu.named_parameters(), strict=True):
        assert b.device == "cuda"
        np.testing.assert_array_equal(host(b), host(a), err_msg=name)
    x = np.ones((2, 3, 5, 5), np.float32)
    for key in ((0, 0), (2**64 - 1, 7)):
        expected = ops.dropout(x, p=0.3, key=key)
        np.testing.assert_array_equal(host(ops.dropout(on_gpu(x), p=0.3, key=key)), host(expected))
        with reference_kernels():
            found = ops.dropout(on_gpu(x), p=0.3, key=key)
        np.testing.assert_array_equal(host(found), host(expected))


def test_dlpack(device):
    if device == "stand-in":
        pytest.skip("the stand-in has no DLPack")
    x = on_gpu(np.arange(3.0))
    shared = from_dlpack(x)
    assert shared.device == "cuda"
    x += 1
    np.testing.assert_array_equal(host(shared), [1, 2, 3])
    np.testing.assert_array_equal(host(backend.cupy.from_dlpack(shared)), [1, 2, 3])


# -- capture ---------------------------------------------------------------------------------------


SMALL = {
    "mlp": lambda: nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 16), nn.LeakyReLU(), nn.Dropout(0.2), nn.Linear(16, 10))
    ),
    "cnn": lambda: nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.LeakyReLU(), nn.Conv2d(8, 4, 3), nn.LeakyReLU()),
        *(nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(), nn.Linear(16, 10)),
    ),
}


def network_and_step(name, batch, wrap=lambda step: step, optimizer="momentum"):
    manual_seed(1)
    network = SMALL[name]().to("cuda")
    rule = OPTIMIZERS[optimizer](network.parameters())

    def step(images, labels):
        loss = ops.softmax_cross_entropy(network(images), labels)
        rule.zero_grad()
        loss.backward()
        rule.step()
        return loss, images

    random = np.random.default_rng(0)
    batches = [
        (
            Tensor(random.random((n, 1, 8, 8), np.float32)).to("cuda"),
            Tensor(random.integers(0, 10, n)).to("cuda"),
        )
        for n in batch
    ]
    return network, rule, wrap(step), batches


@pytest.mark.parametrize(
    ("name", "batch"), [("mlp", [4, 4, 4, 4, 3, 4, 3, 3, 3, 3, 4]), ("cnn", [4] * 5)]
)
def test_replays_are_steps(name, batch):
    """Losses and weights, dropout included, are the same to the last bit."""
    results = []
    for wrap in (lambda step: step, capture):
        network, rule, step, batches = network_and_step(name, batch, wrap)
        losses = []
        for i, (images, labels) in enumerate(batches):
            rule.lr = 0.05 / (1 + i)
            losses.append(step(images, labels)[0].item())
        results.append((losses, {k: v.tobytes() for k, v in network.state_dict().items()}))
    assert results[0] == results[1]
    assert len(set(results[0][0])) == len(batch)  # new masks and weights in every step


def test_results_are_off_the_tape_and_overwritten():
    _, _, step, batches = network_and_step("mlp", [4] * 5, capture)
    results = [step(*batch) for batch in batches]
    assert not any(loss.requires_grad for loss, _ in results)
    assert results[3] is results[4]
    assert results[4][0] is not results[1][0]
    np.testing.assert_array_equal(host(results[3][1]), host(batches[4][0]))


def test_on_the_cpu_a_step_stays_what_it_is():
    def step():
        pass

    assert capture(step, "cpu") is step


def test_constants_have_graphs_of_their_own():
    @capture
    def scaled(x, factor, name):
        return x * factor

    x = Tensor([1.0, 2.0]).to("cuda")
    for _ in range(4):
        for factor in (2.0, 3.0):
            np.testing.assert_array_equal(host(scaled(x, factor, "a")), [factor, 2 * factor])
    with pytest.raises(TypeError, match="input 2 is a list: it takes Tensors, arrays, and con"):
        scaled(x, 1.0, ["a"])


def test_inputs_that_cannot_be_captured():
    @capture
    def double(x):
        return x + x

    with pytest.raises(ValueError, match="input 0 is on the CPU: move it to 'cuda'"):
        double(Tensor([1.0]))
    with pytest.raises(ValueError, match="input 0 requires a gradient"):
        double(Parameter(on_gpu(np.ones(1, np.float32))))
    with pytest.raises(ValueError, match="warm_up must be at least 1, found 0"):
        capture(double, warm_up=0)
    with pytest.raises(ValueError, match="device 'tpu' is not known: use one of cpu, cuda"):
        capture(double, "tpu")


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.numpy(),
        lambda x: bool((x > 0).sum()),
        lambda x: x.to("cpu"),
        lambda x: x + Tensor([1.0]).to("cuda"),
        lambda x: x[np.array([True, False])],
    ],
)
def test_a_step_that_waits_for_the_gpu_cannot_be_captured(read):
    @capture
    def step(x):
        read(x)
        return x * 2

    x = Tensor([1.0, 2.0]).to("cuda")
    for _ in range(2):
        step(x)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="capture: this step cannot be captured: it waits"):
            step(x)
    np.testing.assert_array_equal(host(x * 2), [2, 4])  # the GPU is still there


def test_an_error_of_the_step_itself_is_shown_as_it_is():
    calls = []

    @capture
    def step(x):
        calls.append(0)
        return x @ x if len(calls) > 2 else x

    x = Tensor([1.0, 2.0]).to("cuda").reshape(1, 2)
    for _ in range(2):
        step(x)
    with pytest.raises(ValueError, match=r"^matmul\(a: float32 \(1, 2\), b"):
        step(x)


def test_a_captured_step_gives_back_its_memory(device):
    if device == "gpu":
        pytest.skip("cupy does not tell what a pool that is gone has kept")
    step = capture(lambda x: (x @ x).sum())
    x = Tensor(np.ones((64, 64), np.float32)).to("cuda")
    for _ in range(4):
        step(x)
    lost = cupy_stand_in.MemoryPool._lost
    del step
    gc.collect()
    assert cupy_stand_in.MemoryPool._lost == lost


def test_a_graph_outlives_the_thread_that_captured_it():
    x, handles = Tensor(np.ones((2, 2), np.float32)).to("cuda"), []
    step = capture(lambda x: x @ x)

    def work():
        for _ in range(3):
            step(x)
        handles.append(weakref.ref(cublas._here.handle))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    gc.collect()
    assert handles[0]() is not None  # with the memory that its products work in
    assert host(step(x)).tolist() == [[2, 2], [2, 2]]


def test_an_interrupted_capture_is_ended():
    calls = []

    @capture
    def step(x):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return x * 2

    x = Tensor([1.0, 2.0]).to("cuda")
    for _ in range(2):
        step(x)
    with pytest.raises(KeyboardInterrupt):
        step(x)
    for _ in range(2):
        assert host(step(x)).tolist() == [2, 4]


def test_a_captured_step_may_call_another():
    @capture
    def inner(x):
        return x + 1

    @capture
    def outer(x):
        return inner(x) * 2

    x = Tensor([1.0]).to("cuda")
    for i in range(5):
        assert outer(x + i).item() == (2 + i) * 2


def test_labels_out_of_range_are_found_in_a_captured_step():
    _, _, step, batches = network_and_step("mlp", [4] * 5, capture)
    for images, labels in batches[:4]:
        step(images, labels)
    loss, _ = step(batches[4][0], Tensor(on_gpu(np.array([0, 1, 2, 10]))))
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.9"):
        loss.item()


# -- training --------------------------------------------------------------------------------------

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 10, 50).astype(np.uint8)
RECIPES = {
    "plain": Recipe(epochs=4, batch_size=16, lr=0.05),
    "augmented": Recipe(
        epochs=4,
        batch_size=16,
        lr=0.01,
        optimizer="adamw",
        shift=2,
        mirror=True,
        average=0.9,
        dropout_until=0.5,
        schedule="one-cycle",
        label_smoothing=0.1,
    ),
    "clipped": Recipe(epochs=2, batch_size=16, lr=0.05, clip=0.1),
}


def finished(training, stop_at=None):
    progress = []
    for seen in training.steps():
        progress.append(seen)
        if stop_at and training.at.step >= stop_at:
            break
    return progress


@pytest.mark.parametrize("name", RECIPES)
def test_training_is_that_of_the_cpu(name):
    validation = IMAGES[:20], LABELS[:20].astype(np.int64)
    expected = Training(RECIPES[name], IMAGES, LABELS, seed=3, validation=validation)
    found = GpuTraining(RECIPES[name], IMAGES, LABELS, seed=3, validation=validation)
    epochs = [p for p in finished(expected) if p.end_of_epoch]
    on_gpu_epochs = [p for p in finished(found) if p.end_of_epoch]
    assert [p.epoch for p in on_gpu_epochs] == [p.epoch for p in epochs]
    for a, b in zip(epochs, on_gpu_epochs, strict=True):
        assert (a.step, a.samples, a.lr) == (b.step, b.samples, b.lr)
        for measure in ("loss", "accuracy", "validation_loss"):
            assert getattr(b, measure) == pytest.approx(getattr(a, measure), rel=1e-3)
    for name, array in expected.weights().items():
        np.testing.assert_allclose(found.weights()[name], array, rtol=0, atol=2e-4)


def test_images_in_any_memory_order_are_learnt():
    recipe = Recipe(epochs=1, batch_size=16)
    results = []
    for images in (IMAGES, np.asfortranarray(IMAGES)):
        training = GpuTraining(recipe, images, LABELS)
        finished(training)
        results.append({name: array.tobytes() for name, array in training.weights().items()})
    assert results[0] == results[1]


def test_training_goes_on_within_an_epoch(monkeypatch):
    monkeypatch.setattr("tinygrad_nnfs.models.gpu_training.SECONDS", 0)
    recipe = RECIPES["augmented"]
    whole = GpuTraining(recipe, IMAGES, LABELS)
    assert len(finished(whole)) == 16
    first = GpuTraining(recipe, IMAGES, LABELS)
    finished(first, stop_at=6)
    assert first.at.samples == 32
    second = GpuTraining(recipe, IMAGES, LABELS)
    second.restore(*first.state())
    finished(second)
    for name, array in whole.weights().items():
        np.testing.assert_array_equal(second.weights()[name], array)


def test_a_loss_that_is_not_finite_is_found_with_its_step():
    training = GpuTraining(Recipe(epochs=4, batch_size=16, lr=1e20), IMAGES, LABELS)
    with pytest.raises(TrainingError, match=r"not finite in epoch 1, step 2: try a smaller"):
        finished(training)


def test_steps_and_settings_that_end_a_training():
    training = GpuTraining(Recipe(epochs=4, batch_size=16, max_steps=6), IMAGES, LABELS)
    assert finished(training)[-1].step == 6
    with pytest.raises(TrainingError, match="erase is not there on device 'cuda'"):
        GpuTraining(Recipe(erase=0.5), IMAGES, LABELS)
