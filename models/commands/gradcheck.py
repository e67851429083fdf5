"""`nnfs gradcheck`."""

import argparse
import contextlib
import difflib
import importlib.util
import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinygrad_nnfs.models.commands.arguments import CommandError, Commands, whole

from tinygrad_nnfs import OPS
from tinygrad_nnfs.checking import CheckError, Report, check_op
from tinygrad_nnfs.registry import Op


def add(commands: Commands) -> None:
    command = commands.add_parser(
        "gradcheck",
        help="check the backward rules of ops: ours, or yours",
        description="Hold each op to all that is asked of one, on cases drawn from its samples: "
        "gradients against finite differences (and the complex step, where the forward allows it), "
        "shapes, dtypes, memory. The worst error is relative to the gradient; 1e-7 fails. "
        "The smallest case that fails is printed with code that shows it again.",
        epilog="example: nnfs gradcheck --module my_ops.py, or nnfs gradcheck conv2d max_pool2d",
    )
    command.add_argument(
        "ops", nargs="*", metavar="OP", help="names of ops (default: all, or all of the module)"
    )
    command.add_argument(
        "--module", type=Path, metavar="FILE", help="a Python file of yours with ops to check"
    )
    command.add_argument(
        "--cases",
        type=whole(low=1),
        default=25,
        metavar="N",
        help="how often the samples are drawn from (default: %(default)s)",
    )
    command.add_argument(
        "--seed",
        type=whole(low=0),
        default=0,
        metavar="N",
        help="what they are drawn by (default: %(default)s)",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object instead")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from rich.console import Console

    known = ops_of(options.module) if options.module else dict(OPS)
    ops = chosen(options.ops, known)
    reports: dict[str, Report] = {}
    failures: dict[str, str] = {}
    with Console(stderr=True).status("") as status:
        for i, (name, op) in enumerate(ops.items(), 1):
            status.update(f"{name} ({i} of {len(ops)})")
            try:
                with contextlib.redirect_stdout(sys.stderr):  # what a user's op prints
                    reports[name] = check_op(op, cases=options.cases, seed=options.seed)
            except (Exception, SystemExit) as error:  # whatever a user's op raises
                failures[name] = message(error)
    if options.json:
        print(json.dumps({"ops": [as_dict(name, reports, failures) for name in ops]}))
    else:
        print_table(ops, reports, failures)
    if failures:
        raise CommandError(f"{len(failures)} of {len(ops)} ops failed: {', '.join(failures)}")


def chosen(names: Sequence[str], known: Mapping[str, Op[...]]) -> dict[str, Op[...]]:
    """The ops of these names, each once; all of them if there are no names."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known)
            guess = f": is it {' or '.join(near)}?" if near else ";"
            raise CommandError(
                f"no op is called {name!r}{guess} `nnfs gradcheck` checks all there are, one of "
                "your own needs --module FILE"
            )
    return {name: known[name] for name in names or known}


def ops_of(path: Path) -> dict[str, Op[...]]:
    """The ops that a Python file defines."""
    before = dict(OPS)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.exists():
        raise CommandError(f"{path}: is no Python file: there is no such file")
    if not path.is_file() or spec is None or spec.loader is None:
        raise CommandError(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # it may import its neighbours
    sys.modules.setdefault(path.stem, module)
    try:
        # what it prints must not get between the lines of --json
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except CheckError:
        pass  # it checks its ops itself, and one is wrong: the table will say which and why
    except SyntaxError as error:
        raise CommandError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        here = [f for f in frames if Path(f.filename).resolve() == path.resolve()]
        line = f", line {here[-1].lineno}" if here else ""
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CommandError(f"{path}{line}: cannot be imported: {reason}") from None
    found = {name: op for name, op in OPS.items() if op is not before.get(name)}
    if not found:
        raise CommandError(f"{path}: defines no ops: decorate functions with @op of tinygrad_nnfs")
    return found


def message(error: Exception) -> str:
    text = str(error) if isinstance(error, CheckError) else f"{type(error).__name__}: {error}"
    return "\n".join([text, *getattr(error, "__notes__", [])]).rstrip()


def as_dict(
    name: str, reports: Mapping[str, Report], failures: Mapping[str, str]
) -> dict[str, Any]:
    if name in failures:
        return {"op": name, "passed": False, "failure": failures[name]}
    report = reports[name]
    inputs = {key: vars(checked) for key, checked in report.inputs.items()}
    rounded = round(report.seconds, 4)
    return {
        "op": name,
        "passed": True,
        "cases": report.cases,
        "seconds": rounded,
        "inputs": inputs,
    }


def print_table(
    ops: Mapping[str, Op[...]], reports: Mapping[str, Report], failures: Mapping[str, str]
) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, soft_wrap=True)  # code stays as it is
    table = Table(box=SIMPLE, show_edge=False)
    table.add_column("op", no_wrap=True)
    table.add_column("input", no_wrap=True)
    for title in ("cases", "worst error", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in ops:
        if name in failures:
            table.add_row(name, "", "", "FAILED", "")
            continue
        report = reports[name]
        time = f"{report.seconds:.2f} s"
        if not report.inputs:
            table.add_row(name, "", f"{report.cases}", "no gradient", time)
        for i, (key, found) in enumerate(report.inputs.items()):
            row = key, f"{found.cases}", f"{found.worst_error:.1e}"
            table.add_row("" if i else name, *row, "" if i else time)
    console.print(table)
    for failure in failures.values():
        console.print(f"\n{failure}")
    if not failures:
        seconds = sum(report.seconds for report in reports.values())
        console.print(f"\nAll {len(ops)} pass, in {seconds:.1f} s.")
