"""The contenders of train-step and inference: this library, and its peers where installed.

Each library has its module `in_<library>`, imported only when it is asked for, with

    trainer(model, momentum, **settings)    a network and its optimiser, as a function from a batch
                                            size to a `Step`: one training step on such a batch
    predictor(model, **settings)            a network, as a function from a number of images and a
                                            batch size to a `Step`: the logits of all the images
    gpu_trainer(model, momentum, **settings)    as `trainer`, for the benchmark `gpu`: all data lies
                                            on the GPU, and a Step does not wait for it

where `model` is "mlp" or "cnn", a Step takes nothing, and returns when all its results are there
(not so on a GPU).
"""

import argparse
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from benchmarks.report import fail

Step = Callable[[], object]
T = TypeVar("T")

INSTALL = {
    "numba": "pip install 'tinygrad_nnfs[fast]'",
    "torch": "pip install 'tinygrad_nnfs[bench]'",
    "jax": "pip install jax",
    "tinygrad": "pip install tinygrad",
}


@dataclass
class Contender:
    framework: str
    settings: dict[str, Any] = field(default_factory=dict)
    compiles: bool = False  # its code, with a compiler that the system may lack
    needs: str | None = None  # another package than the library

    @property
    def package(self) -> str:
        return self.needs or self.framework

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def trainer(self, model: str, momentum: float) -> Callable[[int], Step]:
        return self._module().trainer(model, momentum, **self.settings)

    def predictor(self, model: str) -> Callable[[int, int], Step]:
        return self._module().predictor(model, **self.settings)

    def gpu_trainer(self, model: str, momentum: float) -> Callable[[int], Step]:
        return self._module().gpu_trainer(model, momentum, **self.settings)

    def _module(self) -> Any:
        return importlib.import_module(f"benchmarks.in_{self.framework}")


OURS = "tinygrad_nnfs"
CONTENDERS = {
    OURS: Contender("tinygrad_nnfs"),
    "tinygrad_nnfs-numpy": Contender("tinygrad_nnfs", {"kernels": "numpy"}, needs="numba"),
    "tinygrad_nnfs-reference": Contender("tinygrad_nnfs", {"kernels": "reference"}),
    "torch": Contender("torch"),
    "torch-channels-last": Contender("torch", {"channels_last": True}),
    "torch-compile": Contender("torch", {"compiled": True}, compiles=True),
    "jax": Contender("jax"),
    "tinygrad": Contender("tinygrad", compiles=True),
}
PEERS = [name for name in CONTENDERS if name != OURS]
DEFAULT = {"mlp": ["torch"], "cnn": ["torch", "torch-channels-last"]}
LEGEND = [
    "ratio: tinygrad_nnfs's time over this one's, the median over the rounds of the ratio of",
    "their medians in a round; below 1, tinygrad_nnfs is faster",
    "tinygrad_nnfs-numpy: without numba; -reference: the plain ops, without their faster variants",
    "torch: NCHW, eager; torch-compile: NCHW; jax: jit, NHWC; tinygrad: TinyJit without BEAM",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=["mlp", "cnn"], default="cnn", help="(default: cnn)")
    parser.add_argument(
        "--against",
        nargs="*",
        choices=[*PEERS, "installed"],
        metavar="NAME",
        help=f"the peers: {', '.join(PEERS)}, or `installed`, all that can be imported "
        "(default: torch, and for the CNN torch-channels-last); without names, no peer",
    )


def names(options: argparse.Namespace) -> list[str]:
    """This library first, then the peers that were asked for. Exits if one is not installed."""
    wanted = DEFAULT[options.model] if options.against is None else options.against
    peers = []
    for name in wanted:
        peers += [p for p in PEERS if CONTENDERS[p].is_installed] if name == "installed" else [name]
    for name in peers:
        contender = CONTENDERS[name]
        if not contender.is_installed:
            fail(
                f"{name}: {contender.package} is not installed: {INSTALL[contender.package]} "
                "(or choose others by --against)"
            )
    return list(dict.fromkeys([OURS, *peers]))


def built(chosen: list[str], build: Callable[[str], T]) -> tuple[dict[str, T], list[str]]:
    """`build(name)` by name, and a note for each that is left out, for its compiler fails."""
    contenders, notes = {}, []
    for name in chosen:
        try:
            contenders[name] = build(name)
        except Exception as error:
            if not CONTENDERS[name].compiles:
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            notes.append(f"{name} is left out, it does not compile here: {reason}")
    return contenders, notes
