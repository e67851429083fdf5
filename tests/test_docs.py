"""What the docs show runs: snippets, tutorial, examples and notebook; and links lead somewhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
NOT_RUN = "<!-- not run -->"  # on the line before a snippet that is an excerpt


def snippets(page):
    """The page's Python, with as many empty lines before each that errors name its own line."""
    text = page.read_text()
    found = []
    for match in re.finditer(r"^([^\n]*)\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if match[1].strip() != NOT_RUN:
            found.append("\n" * text.count("\n", 0, match.start(2)) + match[2])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page, capsys, tmp_path, monkeypatch):
    """In order, as a reader would: what one defines the next may use."""
    monkeypatch.chdir(tmp_path)  # they may write files
    namespace = {"__name__": "snippet"}
    for code in snippets(page):
        exec(compile(code, page, "exec"), namespace)


def test_readme_has_snippets():
    assert len(snippets(ROOT / "README.md")) == 4


def test_only_a_mark_keeps_a_snippet_from_running(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"```python\na\n```\n\n{NOT_RUN}\n```python\nb\n```\nc\n```python\n...\n```\n")
    page.write_text("text\n" + page.read_text())
    assert [code.strip() for code in snippets(page)] == ["a", "..."]


# -- programs: each in a process and a folder of its own, as a reader runs it ----------------------


def python(*arguments, folder, **variables):
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg", **variables},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tutorial_runs(tmp_path):
    pytest.importorskip("IPython")
    said = python(DOCS / "tutorial.py", folder=tmp_path)
    by_hand, by_backward = re.search(r"by hand (\S+), by backward (\S+)", said).groups()
    assert float(by_hand) == pytest.approx(float(by_backward))
    assert "wrong_swish: the gradient by x" in said
    first, last = re.findall(r"test accuracy (\S+)%|epoch 4,.*validation_accuracy (\S+)", said)
    assert float(first[0]) > 93
    assert float(last[1]) > 0.93
    # the loops' output is im2col's and conv2d's, and col2im's image the gradient
    assert said.count("True") == 3 and "False" in said  # the one of no_grad


def test_test_file_of_the_tutorial_runs(tmp_path):
    """What it says of a file of ops: pytest, and the table of `nnfs gradcheck`."""
    page = (DOCS / "tutorial.py").read_text()
    cells = [cell for cell in re.split(r"^# %%.*\n", page, flags=re.MULTILINE) if "@" in cell]
    mine = [c for c in cells if re.search(r"^(def|@)(swish|prelu)|^def (swish|prelu)\(", c, re.M)]
    assert len(mine) == 3
    imports = "import numpy as np\nfrom tinygrad_nnfs import Tensor, op\n"
    imports += "from tinygrad_nnfs.checking import check_op\n"
    (tmp_path / "my_ops.py").write_text(imports + "\n".join(mine))
    lines = page.split("# # test_my_ops.py\n")[1].split("# ```")[0].splitlines()
    (tmp_path / "test_my_ops.py").write_text("\n".join(line[2:] for line in lines) + "\n")
    assert "2 passed" in python("-m", "pytest", "test_my_ops.py", folder=tmp_path)
    command = "-m", "tinygrad_nnfs.models.cli", "gradcheck", "--module", "my_ops.py"
    rows = re.compile(r"(swish|prelu)? +(x|slope) +(\d+) +\d\.\de")
    table = page.split("worst error     time\n")[1].split("# ```")[0]
    assert rows.findall(python(*command, folder=tmp_path)) == rows.findall(table)
    assert len(rows.findall(table)) == 3


def test_example_of_a_custom_op(tmp_path):
    said = python(DOCS / "examples" / "custom_op.py", folder=tmp_path)
    errors = {name: float(beyond) for name, beyond in re.findall(r"(\w+) +squared.*d (\S+)", said)}
    assert errors["Snake"] < errors["ReLU"] / 2


def test_example_of_fine_tuning(tmp_path):
    said = python(DOCS / "examples" / "fine_tuning.py", folder=tmp_path)
    tuned, scratch = map(float, re.findall(r"(\S+)% of 360", said))
    assert tuned > scratch + 2


def test_example_of_a_regression(tmp_path):
    said = python(DOCS / "examples" / "regression.py", folder=tmp_path)
    found = dict(re.findall(r"(mean|range|period|phase) ([\d.]+)", said.splitlines()[-1]))
    expected = {"mean": 3.1, "range": 1.7, "period": 12.4, "phase": 0.6}
    assert {k: float(v) for k, v in found.items()} == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("name", ["custom_op", "fine_tuning", "regression"])
def test_worked_examples_are_short(name):
    assert len((DOCS / "examples" / f"{name}.py").read_text().splitlines()) < 60


RUN_NOTEBOOK = """
import sys, nbformat
from nbclient import NotebookClient
nbformat.write(NotebookClient(nbformat.read(sys.argv[1], 4), timeout=300).execute(), "run.ipynb")
"""


def test_notebook_runs_on_a_cpu(tmp_path):
    """In its quick form: two epochs of the digits."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = DOCS / "notebooks" / "train-cnn-on-gpu.ipynb"
    python("-c", RUN_NOTEBOOK, notebook, folder=tmp_path, NNFS_QUICK="1")
    cells = json.loads((tmp_path / "run.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    said = "".join("".join(output.get("text", [])) for output in outputs)
    assert "training on the " in said
    assert "epoch   2: loss" in said
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert (tmp_path / "runs" / "cnn" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "place", ["wheel beside", "wheel among inputs", "clone around", "clone beside"]
)
def test_notebook_finds_the_package(place, tmp_path, monkeypatch):
    inputs, here = tmp_path / "input", tmp_path / "work" / "notebooks"
    expected = {
        "wheel beside": here / "tinygrad_nnfs-1.whl",
        "wheel among inputs": inputs / "mine" / "tinygrad_nnfs-1.whl",
        "clone around": tmp_path / "work",
        "clone beside": here / "clone",
    }[place]
    core = expected / "tinygrad_nnfs" / "tensor.py" if "clone" in place else expected
    for path in (here, core.parent):
        path.mkdir(parents=True, exist_ok=True)
    core.touch()
    monkeypatch.chdir(here)
    notebook = json.loads((DOCS / "notebooks" / "train-cnn-on-gpu.ipynb").read_text())
    code = next(
        "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"
    )
    namespace = {}
    exec(code.replace("/kaggle/input", str(inputs)), namespace)
    assert namespace["package"]() == expected
    core.unlink()
    with pytest.raises(SystemExit, match="upload its wheel"):
        namespace["package"]()


def test_notebook_is_kept_without_outputs():
    for path in (DOCS / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith(("https://", "http://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholders_are_left(page):
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    left = set(re.findall(r"\b[A-Z]+_[A-Z]+\b|\bTODO\b", prose)) - {"NNFS_DATA"}
    assert not left
