"""The benchmarks run and write what they measured; how fast is no test's business."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert all(name in done.stdout for name in ALONE)


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
