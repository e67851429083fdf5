"""`python -m benchmarks NAME [options]`: run one benchmark."""

import argparse

from benchmarks import overhead, train_step


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Benchmarks of the library through its public API.",
        epilog="example: python -m benchmarks train-step --model cnn --against torch",
    )
    commands = parser.add_subparsers(metavar="BENCHMARK", required=True)
    for module in (train_step, overhead):
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        summary = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
