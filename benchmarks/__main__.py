"""`python -m benchmarks NAME [options]`: run one benchmark."""

import argparse
import sys
from typing import NoReturn

from benchmarks import conv, gpu, inference, overhead, report, scaling, train_step


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        report.fail(f"{message} (see {self.prog} --help)", status=2)


def parser() -> Parser:
    top = Parser(
        prog="python -m benchmarks",
        description="Benchmarks of the library. Each prints a table and writes a JSON file.",
        epilog="example: python -m benchmarks train-step --model cnn --against installed --plot",
    )
    commands = top.add_subparsers(metavar="BENCHMARK")
    for module in (train_step, inference, conv, scaling, overhead, gpu):
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        summary = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        report.add_arguments(command, name)
        command.set_defaults(run=module.run, name=name)
    return top


def main() -> None:
    top = parser()
    options = top.parse_args()
    if not hasattr(options, "run"):
        top.print_help(sys.stderr)
        sys.exit(2)
    report.prepare(options)
    facts = report.machine()
    try:
        report.publish(options, facts, options.run(options))
    except KeyboardInterrupt:
        report.fail("interrupted", status=130)
    except OSError as error:  # the disk that the output goes to is full, say
        report.fail(str(error))


if __name__ == "__main__":
    main()
