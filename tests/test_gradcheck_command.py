"""`nnfs gradcheck`: the table, a user's own file, and what is said of mistakes."""

import json
import sys

import pytest
from test_cli import nnfs

from tinygrad_nnfs.checking.reproduction import code_in

CUBE = """
from tinygrad_nnfs import op

@op
def cube(xp, x):
    return x**3, lambda dy: 3 * dy * x * x

@cube.samples
def _(draw):
    yield draw.case(draw.normal(*draw.shape()))
"""
WRONG = CUBE.replace("cube", "wrong_cube").replace("3 * dy", "2 * dy")


@pytest.fixture(autouse=True)
def _imports(monkeypatch):
    """What a command imports is forgotten again."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


@pytest.fixture(autouse=True)
def my_ops(tmp_path, monkeypatch):
    """Writes my_ops.py into the current folder."""
    monkeypatch.chdir(tmp_path)
    return (tmp_path / "my_ops.py").write_text


def test_ops_by_name(capsys):
    status, out, err = nnfs(capsys, "gradcheck", "matmul", "less", "stack", "--cases", "5")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["op", "input", "cases", "worst", "error", "time"]
    assert [row[:2] for row in rows[2:4]] == [["matmul", "a"], ["b", rows[3][1]]]
    assert rows[4][:4] == ["less", "5", "no", "gradient"]
    assert rows[5][:2] == ["stack", "*xs"]
    assert out.splitlines()[-1].startswith("All 3 pass, in ")


def test_a_users_file(capsys, my_ops):
    my_ops(CUBE)
    status, out, _ = nnfs(capsys, "gradcheck", "--module", "my_ops.py")
    assert status == 0
    assert "cube" in out
    assert "All 1 pass" in out


def test_a_wrong_rule_is_shown_with_code_that_fails(capsys, my_ops):
    my_ops(CUBE + WRONG)
    status, out, err = nnfs(capsys, "gradcheck", "--module", "my_ops.py")
    assert status == 1
    assert err == "nnfs: 1 of 2 ops failed: wrong_cube\n"
    assert "FAILED" in out
    assert "wrong_cube: the gradient by x" in out
    assert "from my_ops import wrong_cube" in out
    with pytest.raises(AssertionError, match="wrong_cube: the gradient by x"):
        exec(code_in(out), {})


def test_json(capsys, my_ops):
    my_ops(CUBE + WRONG)
    status, out, err = nnfs(capsys, "gradcheck", "--module", "my_ops.py", "--json")
    assert status == 1
    assert err == "nnfs: 1 of 2 ops failed: wrong_cube\n"
    right, wrong = json.loads(out)["ops"]
    assert (right["op"], right["passed"], right["cases"]) == ("cube", True, 25)
    assert 0 < right["inputs"]["x"]["worst_error"] < 1e-7
    assert (wrong["op"], wrong["passed"]) == ("wrong_cube", False)
    assert "to reproduce" in wrong["failure"]


def test_the_same_seed_draws_the_same_cases(capsys):
    found = [
        json.loads(nnfs(capsys, "gradcheck", "log", "--seed", seed, "--json")[1])["ops"][0]
        for seed in ("3", "3", "300")
    ]
    assert found[0]["inputs"] == found[1]["inputs"] != found[2]["inputs"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "my_ops.py: is no Python file"),
        ("x = (", "my_ops.py, line 1: '(' was never closed"),
        ("x = 1", "my_ops.py: defines no ops: decorate functions with @op of tinygrad_nnfs"),
        ("\n1 / 0", "my_ops.py, line 2: cannot be imported: ZeroDivisionError: division by zero"),
        ("exit(3)", "cannot be imported: SystemExit: 3"),
        ("import nothing_of_this_name", "line 1: cannot be imported: ModuleNotFoundError"),
        (CUBE.replace("cube", "exp"), "there is an op 'exp' in tinygrad_nnfs.ops.arithmetic"),
    ],
)
def test_mistakes_in_a_file_are_one_line(capsys, my_ops, text, message):
    if text is not None:
        my_ops(text)
    status, out, err = nnfs(capsys, "gradcheck", "--module", "my_ops.py")
    assert (status, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["conv2"], 1, "no op is called 'conv2': is it conv2d"),
        (["zzz"], 1, "no op is called 'zzz'"),
        (["--cases", "0"], 2, "'0' is not an integer >= 1"),
        (["--seed", "x"], 2, "'x' is not an integer >= 0"),
    ],
)
def test_mistakes_on_the_command_line(capsys, arguments, status, message):
    found, _, err = nnfs(capsys, "gradcheck", *arguments)
    assert found == status
    assert message in err.splitlines()[-1]


def test_an_op_without_samples_fails_with_what_to_do(capsys, my_ops):
    my_ops(CUBE.partition("@cube")[0])
    status, out, _ = nnfs(capsys, "gradcheck", "--module", "my_ops.py")
    assert status == 1
    assert "cube has no samples: add some with @cube.samples" in out


def test_an_op_that_exits_is_a_failure(capsys, my_ops):
    my_ops("import sys\n" + CUBE.replace("3 * dy", "sys.exit(3) * dy"))
    status, out, _ = nnfs(capsys, "gradcheck", "--module", "my_ops.py")
    assert status == 1
    assert "cube" in out


def test_an_op_that_raises_is_a_failure_with_its_case(capsys, my_ops):
    my_ops(CUBE.replace("3 * dy", "undefined * dy"))
    status, out, _ = nnfs(capsys, "gradcheck", "--module", "my_ops.py")
    assert status == 1
    assert "NameError: name 'undefined' is not defined" in out
    assert "check: nothing mutated" in out
