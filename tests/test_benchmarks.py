"""The benchmarks run and write what they measured; how fast is no test's business."""

import contextlib
import importlib
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import cuda_on_cpu
import cupy_stand_in
import pytest

from tinygrad_nnfs import backend, nn

ROOT = Path(__file__).parent.parent
TINY = ["--rounds", "2", "--calls", "1"]
ALONE = {  # quick, and without peers
    "train-step": ["--model", "mlp", "--against", "--batch-size", "4", *TINY],
    "inference": ["--model", "mlp", "--against", "--images", "10", "--batch-size", "4", *TINY],
    "conv": ["--case", "1,1,2,5", "--case", "2,16,16,6", *TINY],
    "scaling": ["--model", "mlp", "--largest-batch", "4", "--threads", "2", *TINY],
    "overhead": ["--ops", "20", "--rounds", "3"],
}
ROW_KEYS = {  # besides these, rows may have more
    "train-step": {"contender", "median_ms", "lower_quartile_ms", "ratio", "added_memory_mb"},
    "inference": {"contender", "batch_size", "median_ms", "ratio", "images_per_second"},
    "conv": {"case", "n", "c", "o", "size", "method", "skipped"},
    "scaling": {"series", "batch_size", "threads", "median_ms", "us_per_image"},
    "overhead": {"op", "with_tape_us", "functions_alone_us", "tape_us", "tape_fastest_us"},
}


def is_installed(package):
    return importlib.util.find_spec(package) is not None


def benchmark(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def measured(path, name, *arguments):
    """What `python -m benchmarks name arguments` wrote, and what it printed."""
    done = benchmark(name, *arguments, "--json", path)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout


def assert_one_line(done, status, *words):
    assert done.returncode == status
    assert done.stderr.count("\n") == 1
    for word in ("benchmarks:", *words):
        assert word in done.stderr


# -- all of them -----------------------------------------------------------------------------------


def test_help_lists_them():
    done = benchmark("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in [*ALONE, "gpu"])


def test_without_a_name_they_are_listed():
    done = benchmark()
    assert done.returncode == 2
    assert all(name in done.stderr for name in ALONE)


@pytest.mark.parametrize("name", ALONE)
def test_table_and_json(name, tmp_path):
    result, printed = measured(tmp_path / "made" / "figures.json", name, *ALONE[name])
    assert result["benchmark"] == name
    assert result["options"]["rounds"] in (2, 3)
    assert result["date"].startswith("20")
    assert result["machine"].keys() >= {"processor", "cores", "threads", "versions"}
    assert result["machine"]["versions"].keys() >= {"python", "numpy"}
    assert result["gemm_gflops"] > 0
    assert all(row.keys() >= ROW_KEYS[name] for row in result["rows"])
    assert result["machine"]["processor"] in printed
    assert "GEMM peak" in printed
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["figures.json"]


@pytest.mark.parametrize("name", ALONE)
def test_plot(name, tmp_path):
    pytest.importorskip("matplotlib")
    measured(tmp_path / "figures.json", name, *ALONE[name], "--plot")
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib_is_refused_at_once(tmp_path):
    if is_installed("matplotlib"):
        pytest.skip("matplotlib is installed")
    done = benchmark("overhead", "--json", tmp_path / "x.json", "--plot")
    assert_one_line(done, 1, "tinygrad_nnfs[bench]")
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["overhead", "--rounds", "1"], ["argument --rounds: 1 is less than 2"]),
        (["overhead", "--rounds", "x"], ["argument --rounds", "'x'"]),
        (["overhead", "--plot", "x.svg"], ["argument --plot: x.svg does not end in .png"]),
        (["train-step", "--momentum", "1"], ["argument --momentum: 1 is not in [0, 1)"]),
        (["train-step", "--against", "lua"], ["argument --against", "'lua'"]),
        (["train-step", "--model", "rnn"], ["argument --model", "'rnn'"]),
        (["inference", "--images", "0"], ["argument --images: 0 is less than 1"]),
        (["conv", "--case", "1,2,3"], ["1,2,3 is not n,c,o,size"]),
        (["conv", "--case", "1,2,3,2"], ["size >= 3"]),
        (["scaling", "--threads", "0"], ["argument --threads: 0 is less than 1"]),
        (["gpu", "--precision", "fp8"], ["argument --precision", "'fp8'"]),
        (["gpu", "--batch-size", "64", "0"], ["argument --batch-size: 0 is less than 1"]),
        (["gpu", "--rounds", "1"], ["argument --rounds: 1 is less than 2"]),
        (["gpu", "--models", "rnn"], ["argument --models", "'rnn'"]),
        (["gpu", "--against", "lua"], ["argument --against", "'lua'"]),
        (["speed"], ["'speed'"]),
    ],
)
def test_bad_flags_are_named_in_one_line(arguments, words):
    assert_one_line(benchmark(*arguments), 2, *words)


def test_a_file_that_cannot_be_written_is_named_at_once(tmp_path):
    (tmp_path / "file").touch()
    done = benchmark("overhead", "--json", tmp_path / "file" / "x.json")
    assert_one_line(done, 1, "cannot write")
    assert_one_line(benchmark("overhead", "--json", tmp_path), 1, "it is a directory")


# -- contenders ------------------------------------------------------------------------------------

PEERS = {
    "tinygrad_nnfs-reference": "numpy",
    "tinygrad_nnfs-numpy": "numba",
    "torch": "torch",
    "torch-channels-last": "torch",
    "jax": "jax",
    "tinygrad": "tinygrad",
}


@pytest.mark.parametrize("name", ["train-step", "inference"])
@pytest.mark.parametrize("peer, package", PEERS.items())
def test_peers(name, peer, package, tmp_path):
    arguments = [*ALONE[name], "--against", peer]
    if is_installed(package):
        result, printed = measured(tmp_path / "x.json", name, *arguments)
        # tinygrad needs a C compiler
        contenders = {row["contender"] for row in result["rows"]}
        assert contenders == {"tinygrad_nnfs", peer} or f"{peer} is left out" in printed
    else:
        done = benchmark(name, *arguments)
        assert_one_line(done, 1, peer, "not installed", "pip install")


def test_train_step_of_the_cnn(tmp_path):
    arguments = [*ALONE["train-step"], "--model", "cnn", "--against", "tinygrad_nnfs-reference"]
    result, _ = measured(tmp_path / "x.json", "train-step", *arguments, "--batch-size", "2")
    assert len(result["rows"]) == 2


def test_first_step_of_plain_sgd(tmp_path):
    arguments = [*ALONE["train-step"], "--batch-size", "1", "--momentum", "0", "--first-step"]
    result, _ = measured(tmp_path / "x.json", "train-step", *arguments)
    row = result["rows"][0]
    assert 0 < row["import_s"] < row["first_step_s"]


# -- one by one ------------------------------------------------------------------------------------


def test_conv_methods_agree(tmp_path):
    result, _ = measured(tmp_path / "x.json", "conv", *ALONE["conv"], "--case", "64,1,32,28")
    rows = {(row["case"], row["method"]): row for row in result["rows"]}
    for row in rows.values():
        if not row["skipped"]:
            assert row["forward_ms"] > 0
            assert max(row["output_error"], row["gradient_error"]) < 1e-4
    assert rows["2,16,16,6", "im2col"]["peak_memory_mb"] > 0
    assert rows["64,1,32,28", "naive loops"]["skipped"] == "skipped: too slow"
    assert rows["64,1,32,28", "Winograd"]["skipped"]
    winograd = rows["2,16,16,6", "Winograd"]["skipped"]
    assert winograd is None if is_installed("numba") else "numba" in winograd


def test_scaling_says_that_losses_do_not_depend_on_threads(tmp_path):
    result, printed = measured(tmp_path / "x.json", "scaling", *ALONE["scaling"])
    assert "bit-identical on 1 to 2 threads" in printed
    sizes = [row["batch_size"] for row in result["rows"] if row["series"] == "batch size"]
    assert sizes == [1, 2, 4]


# -- on a GPU, or what stands in for one -----------------------------------------------------------

needs_compiler = pytest.mark.skipif(
    not cuda_on_cpu.compiler_is_installed(), reason=f"{cuda_on_cpu.COMPILER} is not installed"
)


def test_gpu_without_a_gpu(tmp_path):
    if backend.cupy_if_installed() is not None:
        pytest.skip("cupy finds a GPU")
    done = benchmark("gpu", "--json", tmp_path / "x.json")
    assert_one_line(done, 1, "device 'cuda'")
    assert not (tmp_path / "x.json").exists()


@pytest.fixture
def on_stand_in(tmp_path, monkeypatch, capsys):
    """`python -m benchmarks gpu` in this process, of small networks: what it wrote and printed."""
    monkeypatch.syspath_prepend(ROOT)
    cupy_stand_in.install(monkeypatch)
    in_tinygrad_nnfs = importlib.import_module("benchmarks.in_tinygrad_nnfs")
    for name, small in {"cnn": small_cnn, "mlp": small_mlp}.items():
        monkeypatch.setitem(in_tinygrad_nnfs.NETWORKS, name, small)
    report = importlib.import_module("benchmarks.report")
    monkeypatch.setattr(report, "gemm_gflops", lambda: 1.0)  # takes a second, and is timed above

    def call(*arguments):
        path = tmp_path / "figures.json"
        tiny = {"rounds": 2, "calls": 1, "steps": 2, "batch-size": 2, "kernel-batch-size": 2}
        tiny |= {"repetitions": 2, "megabytes": 1, "size": 16, "json": path}
        flags = [str(x) for name, value in tiny.items() for x in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", *flags, *arguments])
        importlib.import_module("benchmarks.__main__").main()
        return json.loads(path.read_text()), capsys.readouterr().out

    return call


def small_cnn():
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.01), nn.MaxPool2d(13), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(16, 10)),
    )


def small_mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 2), nn.Dropout(0.2), nn.Linear(2, 10))


@needs_compiler
def test_gpu(on_stand_in, tmp_path):
    pytest.importorskip("matplotlib")
    result, printed = on_stand_in("--against", "--plot")
    assert result["machine"]["gpu"]["name"] == "stand-in"
    assert [note for note in result["notes"] if "left out" in note] == []

    ceilings, calls = (table["rows"] for table in result["before"])
    assert all(row.get("gb_per_s") or row["tflop_per_s"] for row in ceilings)
    by_name = {row["call"].strip(): row for row in calls}
    assert all(row["microseconds"] > 0 for row in calls)
    images, weight, bias, y = 2 * 28 * 28, 4 * 3 * 3, 4, 2 * 4 * 26 * 26  # sizes
    assert by_name["conv2d 1"]["megabytes"] == pytest.approx(4e-6 * (images + weight + bias + y))
    assert by_name["leaky_relu 1, gradient by x"]["megabytes"] == pytest.approx(12e-6 * y)
    assert by_name["add_bias"]["megabytes"] == pytest.approx(4e-6 * (2 * y + bias))
    weights = weight + bias + 16 * 10 + 10
    assert by_name["momentum step"]["megabytes"] == pytest.approx(20e-6 * weights)
    product = by_name["product 1352 x 9 x 4"]
    flops = 1e3 * product["gflop_per_s"] * product["microseconds"]
    assert flops == pytest.approx(2 * 1352 * 9 * 4)
    assert by_name.keys() >= {
        *("im2col", "max_pool2d 1", "dropout 1", "linear 1", "softmax_cross_entropy 1"),
        *("linear 1, gradient by weight", "conv2d 1, gradient by weight", "all calls"),
    }

    steps = {(row["model"], row["contender"]): row for row in result["rows"]}
    assert len(steps) == 4
    for model in ("cnn", "mlp"):
        assert steps[model, "tinygrad_nnfs-captured"]["ratio"] == 1
        assert steps[model, "tinygrad_nnfs"]["loss"] > 0
    assert all(f"\n{part}" in printed for part in ("ceilings", "calls", "training steps")[1:])
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")


@needs_compiler
def test_gpu_goes_on_when_a_part_fails(on_stand_in, monkeypatch):
    gpu = importlib.import_module("benchmarks.gpu")

    def fail(*_, **__):
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr(gpu, "measure_ceilings", fail)
    monkeypatch.setattr(gpu.cuda, "momentum_step", fail)  # in each step, and as a kernel
    result, printed = on_stand_in("--models", "mlp", "--against")
    assert "the ceilings: left out, it failed: RuntimeError: out of luck\n" in printed
    assert "the kernels: left out" in printed
    assert "tinygrad_nnfs, mlp, batch 2: left out" in printed
    assert result["rows"] == []


@needs_compiler
def test_gpu_without_ceilings_has_times(on_stand_in, monkeypatch):
    gpu = importlib.import_module("benchmarks.gpu")
    monkeypatch.setattr(gpu, "measure_ceilings", None)
    result, _ = on_stand_in("--models", "mlp", "--against", "--precision", "float32")
    rows = result["before"][1]["rows"]
    assert all(row["microseconds"] > 0 and not row.get("copy_percent") for row in rows)


@needs_compiler
def test_gpu_in_bf16_leaves_pytorch_out(on_stand_in):
    result, printed = on_stand_in("--models", "mlp", "--precision", "bf16")
    assert "PyTorch is left out: its bf16 (autocast)" in printed
    assert {row["contender"] for row in result["rows"]} == {
        "tinygrad_nnfs",
        "tinygrad_nnfs-captured",
    }


@pytest.fixture
def torch_without_gpu(monkeypatch):
    """PyTorch on the CPU, with as much of torch.cuda as lets the steps run."""
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(ROOT)
    in_torch = importlib.import_module("benchmarks.in_torch")
    monkeypatch.setattr(in_torch, "DEVICE", "cpu")
    layers = torch.nn
    monkeypatch.setitem(
        in_torch.NETWORKS,
        "cnn",
        lambda: layers.Sequential(
            layers.Conv2d(1, 4, 3), layers.MaxPool2d(13), layers.Flatten(), layers.Linear(16, 10)
        ),
    )
    compile_to = torch.compile

    def quick_compile(function, *, mode, dynamic):
        assert mode in ("reduce-overhead", "default")
        return compile_to(function, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", quick_compile)

    class Event:
        def __init__(self, enable_timing=False):
            assert enable_timing

        def record(self):
            pass

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 1.0

    class CUDAGraph:
        def replay(self):
            pass

    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": contextlib.nullcontext,
        "graph": contextlib.nullcontext,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    gpu = importlib.import_module("benchmarks.gpu")
    monkeypatch.setattr(gpu, "torch_sees_the_gpu", lambda: True)
    settings = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    precision = torch.get_float32_matmul_precision()
    yield torch
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = settings
    torch.set_float32_matmul_precision(precision)


quiet_torch = pytest.mark.filterwarnings("ignore")  # of its own deprecations, as it is imported


@needs_compiler
@quiet_torch
def test_gpu_against_pytorch(on_stand_in, torch_without_gpu):
    gpu = importlib.import_module("benchmarks.gpu")
    result, _ = on_stand_in()
    assert [note for note in result["notes"] if "left out" in note] == []
    found = [(row["model"], row["contender"]) for row in result["rows"]]
    assert found == [
        (model, name)
        for model in ("cnn", "mlp")
        for name in gpu.CONTENDERS
        if model == "cnn" or "channels-last" not in name
    ]
    assert all(row["ratio"] > 0 and row["loss"] > 0 for row in result["rows"])
    assert "product by PyTorch" in result["before"][0]["rows"][-1]["what"]
    assert torch_without_gpu.get_float32_matmul_precision() == "high"


@needs_compiler
@quiet_torch
def test_gpu_against_a_pytorch_that_cannot_compile(on_stand_in, torch_without_gpu, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(torch_without_gpu, "compile", refuse)
    result, printed = on_stand_in("--models", "mlp", "--against", "torch-compile", "torch")
    assert "torch-compile, mlp, batch 2: left out, it failed: RuntimeError: Failed to" in printed
    assert result["rows"][-1]["contender"] == "torch"
    assert "torch-compile" not in {row["contender"] for row in result["rows"]}


@needs_compiler
def test_gpu_without_pytorch(on_stand_in, monkeypatch):
    gpu = importlib.import_module("benchmarks.gpu")
    if is_installed("torch"):
        _, printed = on_stand_in("--models", "mlp", "--against", "torch")
        assert "PyTorch is left out: it finds no GPU" in printed
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    _, printed = on_stand_in("--models", "mlp", "--against", "torch")
    assert "PyTorch is left out: it is not installed: pip install" in printed
