"""The command line: `nnfs COMMAND`. The commands are in `commands/`."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from tinygrad_nnfs.models.commands import (
    evaluate,
    export,
    gradcheck,
    graph,
    predict,
    recipes,
    reproduce,
    summary,
    train,
)
from tinygrad_nnfs.models.commands.arguments import CommandError
from tinygrad_nnfs.models.evaluation import EvaluationError
from tinygrad_nnfs.models.training import TrainingError

from tinygrad_nnfs import __version__, num_threads
from tinygrad_nnfs.checkpoint import CheckpointError
from tinygrad_nnfs.data import DataError
from tinygrad_nnfs.interop import InteropError

COMMANDS = (train, recipes, evaluate, predict, graph, summary, gradcheck, export, reproduce)
ERRORS = (CheckpointError, DataError, EvaluationError, InteropError, TrainingError)
MODELS = ("filelock", "matplotlib", "PIL", "rich", "safetensors", "sklearn")
# the extra that each optional package is of
PACKAGES = {
    **dict.fromkeys(MODELS, "models"),
    "graphviz": "draw",
    "onnx": "onnx",
    "tensorboardX": "tensorboard",
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `nnfs` with `arguments` (the process's own if None) and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments, argparse.Namespace(arguments=arguments))
    try:
        num_threads()  # is the environment's NNFS_NUM_THREADS a number?
    except ValueError as error:
        fail(str(error), status=2)
    try:
        options.run(options)
    except KeyboardInterrupt:
        fail("interrupted", status=130)
    except RuntimeError as error:
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        fail("interrupted", status=130)  # while a class was made, as imports do
    except CommandError as error:
        fail(str(error), error.status)
    except ERRORS as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in PACKAGES:
            raise
        fail(f"this needs {package}: pip install 'tinygrad_nnfs[{PACKAGES[package]}]'")
    except OSError as error:  # the disk or device that the output goes to is full, say
        fail(str(error))
    sys.exit(0)


def fail(message: str, status: int = 1) -> NoReturn:
    """One line on standard error, and out."""
    print(f"nnfs: {message}", file=sys.stderr)
    sys.exit(status)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(f"{message} (see {self.prog} --help)", status=2)


def parser() -> Parser:
    top = Parser(
        prog="nnfs",
        description="Train, evaluate and use the networks of tinygrad_nnfs.",
        epilog="example: nnfs train cnn --data fashion-mnist --epochs 3",
    )
    top.add_argument("--version", action="version", version=f"nnfs {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


if __name__ == "__main__":
    main()
