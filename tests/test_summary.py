"""`summary`, `nnfs summary`, and the statistics that profiling keeps of every call."""

import json
import math
import threading
import time
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from tinygrad_nnfs.models import cli
from tinygrad_nnfs.models.cnn import CNN
from tinygrad_nnfs.models.mlp import MLP

from tinygrad_nnfs import (
    Parameter,
    Tensor,
    checkpoint,
    get_rng_state,
    nn,
    no_grad,
    ops,
    profile,
    reference_kernels,
)
from tinygrad_nnfs.graph import summary
from tinygrad_nnfs.profiling import Statistics
from tinygrad_nnfs.registry import observed_by

# -- summary ---------------------------------------------------------------------------------------


def test_the_cnn_by_hand():
    n = 3
    found = summary(CNN(), (1, 28, 28), batch=n)
    expected = [  # the output of one image, parameters, multiplications
        ((32, 26, 26), 32 * (9 + 1), 32 * 26 * 26 * 9),
        ((32, 26, 26), 0, 0),
        ((64, 24, 24), 64 * (32 * 9 + 1), 64 * 24 * 24 * 32 * 9),
        ((64, 24, 24), 0, 0),
        ((64, 12, 12), 0, 0),
        ((64, 12, 12), 0, 0),
        ((128, 10, 10), 128 * (64 * 9 + 1), 128 * 10 * 10 * 64 * 9),
        ((128, 10, 10), 0, 0),
        ((128, 5, 5), 0, 0),
        ((128, 5, 5), 0, 0),
        ((3200,), 0, 0),
        ((512,), 512 * 3201, 512 * 3200),
        ((512,), 0, 0),
        ((512,), 0, 0),
        ((10,), 10 * 513, 10 * 512),
    ]
    assert [(row.output, row.parameters, row.flops) for row in found.rows] == [
        ((n, *shape), parameters, 2 * n * products) for shape, parameters, products in expected
    ]
    assert found.rows[0].layer == "0: Conv2d(1, 32, kernel_size=3)"
    assert found.parameters == found.trainable == 1_736_714
    assert found.parameter_bytes == found.gradient_bytes == 4 * 1_736_714
    assert found.inputs == [(n, 1, 28, 28)]
    assert found.memory == found.kept + 2 * 4 * 1_736_714


class Tanh(nn.Module):
    def forward(self, x):
        return x.tanh()


@reference_kernels()
def test_what_is_kept_for_backward_by_hand():
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 5), Tanh(), nn.Linear(5, 4, bias=False), nn.Flatten()
    )
    assert [row.kept for row in summary(network, (2, 3), batch=7).rows] == [
        0,
        4 * 7 * 6,  # its input; the weights are counted as parameters
        4 * 7 * 5,  # its output
        0,  # its input is that same array
        0,
    ]


def test_parameters_and_operations_are_torchs():
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    ours = nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2), nn.ReLU(), nn.AvgPool2d(2),
        nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5), nn.LayerNorm(5),
    )  # fmt: skip
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2), torch.nn.ReLU(),
        torch.nn.AvgPool2d(2), torch.nn.BatchNorm2d(6), torch.nn.Flatten(),
        torch.nn.Linear(24, 5), torch.nn.LayerNorm(5),
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        theirs(torch.zeros(8, 4, 8, 7))
    found = summary(ours, (4, 8, 7), batch=8)
    assert found.flops == counter.get_total_flops()
    assert found.parameters == sum(p.numel() for p in theirs.parameters())


class Residual(nn.Module):
    """Ops and a parameter of its own beside a layer, which is called twice."""

    def __init__(self):
        self.scale = Parameter(np.ones(3, np.float32))
        self.layers = [nn.Linear(3, 3)]
        self.unused = nn.Linear(3, 2)

    def forward(self, x):
        y = self.layers[0](self.layers[0](x))
        return (x + y) * self.scale


def test_modules_with_ops_of_their_own():
    found = summary(nn.Sequential(Residual(), nn.Dropout(0)), (3,), batch=2)
    assert [(row.layer, row.output, row.parameters, row.flops) for row in found.rows] == [
        ("0.layers.0: Linear(3, 3)", (2, 3), 12, 36),
        ("0.layers.0: Linear(3, 3)", (2, 3), 0, 36),
        ("0: add", (2, 3), 3, 0),  # with its first op
        ("0: multiply", (2, 3), 0, 0),
        ("1: Dropout(0)", (2, 3), 0, 0),
        ("(parameters that no layer counts)", (), 8, 0),
    ]
    assert found.parameters == 23


def test_a_layer_that_is_there_twice():
    layer = nn.Linear(3, 3)
    found = summary(nn.Sequential(layer, nn.ReLU(), layer), (3,), batch=2)
    assert [(row.output, row.parameters, row.flops) for row in found.rows] == [
        ((2, 3), 12, 36), ((2, 3), 0, 0), ((2, 3), 0, 36),
    ]  # fmt: skip


def test_a_layer_alone_and_a_frozen_one():
    network = nn.Linear(3, 2)
    network.weight.requires_grad = False
    found = summary(network, (3,), batch=1)
    assert [(row.layer, row.parameters) for row in found.rows] == [("Linear(3, 2)", 8)]
    assert (found.trainable, found.parameter_bytes, found.gradient_bytes) == (2, 32, 8)
    assert "; 6 parameters are frozen" in str(found)


def test_nothing_is_changed_by_looking():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 2))
    network[1].training = False
    before, streams = network.state_dict(), get_rng_state()
    with no_grad():
        found = summary(network, (2, 2, 2))
        assert Tensor([1.0], requires_grad=True).exp().node is None
    assert found.kept > 0  # no_grad outside does not hide what training keeps
    assert [module.training for module in network] == [True, False, True, True]
    assert get_rng_state() == streams
    for name, array in network.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("shape", [784, (0, 3), (2.0,), None])
def test_wrong_shapes_are_one_line(shape):
    with pytest.raises(ValueError, match=r"^summary: expected the shape of one sample[^\n]*$"):
        summary(MLP(), shape)
    with pytest.raises(ValueError, match="batch=0"):
        summary(MLP(), (1, 28, 28), batch=0)


def test_a_shape_that_the_network_refuses_leaves_it_as_it_was():
    network = MLP().eval()
    with pytest.raises(ValueError, match="linear"):
        summary(network, (3, 3))
    assert not network.training
    assert not any(module._forward_hooks for module in network.modules())


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            self.table, self.layer = Parameter(np.ones((5, 3), np.float32)), nn.Linear(3, 2)

        def forward(self, x, indices):
            return self.layer(x + ops.embedding(indices, self.table))

    found = summary(Two(), (3,), np.zeros(4, int), batch=4)
    assert found.inputs == [(4, 3), (4,)]
    assert "a batch of (4, 3) and (4,), in" in str(found)
    assert str(found).splitlines()[1].split()[-3:] == ["kFLOPs", "kept,", "kB"]
    assert found.flops == 2 * 4 * 3 * 2


def test_the_table():
    lines = str(summary(MLP(), (1, 28, 28), batch=2)).splitlines()
    assert lines[0] == "MLP, a batch of (2, 1, 28, 28), in training"
    assert lines[1].split()[:3] == ["layer", "output", "parameters"]
    assert lines[4].split() == [
        "1:",
        "Linear(784,",
        "128)",
        "(2,",
        "128)",
        "100,480",
        "0.40",
        "6.27",
    ]
    assert lines[12].split()[:3] == ["total", "109,386", "0.44"]
    assert lines[13].startswith("memory: ")
    assert "counted as two" in lines[14]


# -- nnfs summary ----------------------------------------------------------------------------------


def nnfs_summary(capsys, *arguments):
    """Exit status, standard output and standard error of `nnfs summary arguments`."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["summary", *map(str, arguments)])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = nnfs_summary(capsys, "cnn", "--batch", 2)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 23  # no row of the table is broken into two
    assert lines[3].split()[-3:] == ["320", "0.78", "0.01"]
    assert lines[-4].split()[:2] == ["total", "1,736,714"]


def test_command_as_json(capsys, tmp_path):
    model = tmp_path / "model.safetensors"
    checkpoint.save(model, MLP().state_dict(), {"format": checkpoint.MODEL_FORMAT})
    status, out, _ = nnfs_summary(capsys, model, "--json", "--batch", 5)
    assert status == 0
    found = json.loads(out)
    expected = summary(MLP(), (1, 28, 28), batch=5)
    assert found == json.loads(json.dumps(expected.as_dict()))
    assert found["parameters"] == 109_386
    assert found["rows"][1]["output"] == [5, 128]


def test_command_mistakes_are_one_line(capsys, tmp_path):
    for arguments, status, message in (
        (
            ("alexnet",),
            1,
            "'alexnet' is neither a network, which are mlp and cnn, nor a model file",
        ),
        (("missing.safetensors",), 1, "missing.safetensors: there is no such model file"),
        ((tmp_path,), 1, "has no model.safetensors"),
        (("mlp", "--batch", "-1"), 2, "'-1' is not"),
        ((), 2, "required: NETWORK"),
    ):
        found, out, err = nnfs_summary(capsys, *arguments)
        assert (found, out) == (status, "")
        assert message in err.splitlines()[-1]
        assert status == 2 or len(err.splitlines()) == 1
    assert "example: nnfs summary cnn" in nnfs_summary(capsys, "--help")[1]


# -- profile(statistics=True) ----------------------------------------------------------------------


NUMBERS = st.floats(width=32) | st.sampled_from([0.0, math.nan, math.inf, -math.inf])


@given(arrays(np.float32, array_shapes(min_dims=0, min_side=0), elements=NUMBERS))
def test_statistics_are_those_of_the_finite_elements(x):
    found = Statistics.of(x)
    finite = [float(v) for v in x.ravel() if math.isfinite(v)]
    assert found.size == x.size
    assert found.nan == sum(math.isnan(v) for v in x.ravel())
    assert found.inf == x.size - len(finite) - found.nan
    assert found.zeros * x.size == pytest.approx(finite.count(0.0))
    if finite:
        mean = math.fsum(finite) / len(finite)
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in finite) / len(finite))
        largest = max(map(abs, finite))
        assert found.mean == pytest.approx(mean, abs=1e-9 * largest)
        assert found.std == pytest.approx(std, abs=1e-7 * largest)
        assert found.rms == pytest.approx(math.hypot(mean, std), abs=1e-7 * largest)
    else:
        assert math.isnan(found.mean)
    bad = "NaN" if found.nan else "inf" if found.inf else ""
    assert found.problem == (bad or ("all zero" if x.size and not x.any() else ""))


def test_statistics_of_other_dtypes():
    assert Statistics.of(np.array([True, False])).mean == 0.5
    assert Statistics.of(np.array([1, 2, 3])).std == pytest.approx(np.std([1, 2, 3]))
    assert Statistics.of(np.float32(3)).mean == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Statistics.of(np.array([1e308, -1e308])).problem == ""


@given(st.integers(1, 4), st.booleans())
def test_calls_are_the_rows_one_by_one(n, retain):
    random = np.random.default_rng(n)
    x = Tensor(random.normal(size=(n, 3)), requires_grad=True)
    w = Parameter(random.normal(size=(2, 3)))
    with profile(statistics=True) as p:
        h = ops.linear(x, w)
        y = h.tanh()
        constant = ops.exp(np.ones(2))  # nothing that a gradient goes through
        loss = (y * y).sum()
        h.retain_grad()
        y.retain_grad()
        loss.backward(retain_graph=retain)
    assert [call.op for call in p.calls] == ["linear", "tanh", "exp", "multiply", "sum"]
    assert constant.node is None
    assert p.calls[2].gradient is None
    for tensor in (h, y):
        call = p.call_of(tensor.node)
        assert call is p.calls[0 if tensor is h else 1]
        assert call.output == Statistics.of(tensor.data)
        assert call.gradient == Statistics.of(tensor.grad.data)
        assert call.backward > 0
    assert p.calls[0].forward_flops == 2 * n * 3 * 2
    assert p.calls[0].backward_flops == 2 * 2 * n * 3 * 2
    assert p.calls[1].bytes == 2 * 8 * n * 2
    for row in p.rows:
        calls = [call for call in p.calls if (call.op, call.variant) == (row.op, row.variant)]
        for figure in ("calls", "bytes", "forward_flops", "backward_flops"):
            assert getattr(row, figure) == sum(getattr(call, figure) for call in calls)
        assert row.forward == pytest.approx(sum(call.forward for call in calls))
        assert row.backward == pytest.approx(sum(call.backward for call in calls))


def test_without_statistics_no_call_is_kept():
    x = Tensor([1.0], requires_grad=True)
    with profile() as p:
        y = x * 2
        y.backward()
    assert p.calls == []
    assert p.call_of(y.node) is None
    assert [row.op for row in p.rows] == ["multiply"]


def test_the_time_for_statistics_is_not_the_ops(monkeypatch):
    slow = Statistics.of

    def of(array):
        time.sleep(0.05)
        return slow(array)

    monkeypatch.setattr(Statistics, "of", staticmethod(of))
    x = Tensor([1.0], requires_grad=True)
    with profile(statistics=True) as p:
        (x * 2).backward()
    (call,) = p.calls
    assert call.output.mean == 2
    assert call.gradient.mean == 1
    assert max(call.forward, call.backward, p.rows[0].forward, p.rows[0].backward) < 0.04
    assert p.elapsed > 0.1


class Meeting:
    """An observer that lets two threads go on together once each has made its call."""

    def __init__(self):
        self.barrier = threading.Barrier(2)

    def call(self, op, variant, run, xp, /, *arrays, **params):
        return run(xp, *arrays, **params)

    def recorded(self, node):
        self.barrier.wait()


def test_threads_keep_their_calls_apart():
    results = {}

    def work(value):
        x = Tensor(np.full(2, value), requires_grad=True)
        for _ in range(5):
            x = x.abs()
        results[value] = x

    with observed_by(Meeting()), profile(statistics=True) as p:
        threads = [threading.Thread(target=work, args=(float(i),)) for i in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for value, x in results.items():
        node = x.node
        while node.op:
            assert p.call_of(node).output.mean == value
            (node,) = node.inputs
    assert len(p.calls) == 10


def test_a_profile_does_not_keep_the_graph_alive():
    x = Tensor([1.0], requires_grad=True)
    with profile(statistics=True) as p:
        y = x * 2
    assert len(p._call_of) == 1
    del y
    assert len(p._call_of) == 0
    assert len(p.calls) == 1


def test_other_threads_are_left_alone():
    layer, x, failures = nn.Linear(4, 4), np.ones((2, 4), np.float32), []

    def work():
        try:
            while not done.is_set():
                layer(x).sum().backward()
        except Exception as error:
            failures.append(error)

    done = threading.Event()
    worker = threading.Thread(target=work)
    worker.start()
    tables = {str(summary(nn.Sequential(nn.Linear(3, 2)), (3,))) for _ in range(30)}
    done.set()
    worker.join()
    assert not failures
    assert len(tables) == 1


def test_a_layer_with_two_names_has_the_one_of_its_parameters():
    class Twice(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(3, 2)
            self.again = [self.layer]

        def forward(self, x):
            return self.layer(x)

    assert summary(Twice(), (3,)).rows[0].layer.startswith("layer: Linear")
