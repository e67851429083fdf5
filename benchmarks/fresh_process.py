"""Figures of a training step that need a process of their own: the memory it adds, and its start.

`python -m benchmarks.fresh_process` is that process: it prints its figures as JSON.
"""

import importlib
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS


def added_memory(name: str, model: str, batch_size: int, momentum: float) -> float | None:
    """MB by which ten steps raise the peak memory of a process that made one step at batch size 1.

    None where the system does not tell (not Linux).
    """
    return _figure("memory", name, model, batch_size, momentum)


def first_step(name: str, model: str, batch_size: int, momentum: float) -> tuple[float, float]:
    """Seconds from the start of a process to the end of `import`, and to that of its first step.

    Medians of three processes, after one that brings the library's files into memory.
    """
    runs = [_figure("start", name, model, batch_size, momentum) for _ in range(4)][1:]
    imported, stepped = (statistics.median(times) for times in zip(*runs, strict=True))
    return imported, stepped


def _figure(which: str, *arguments: Any) -> Any:
    command = [sys.executable, "-m", "benchmarks.fresh_process", which, *map(str, arguments)]
    done = subprocess.run(
        [*command, str(time.time())],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    return json.loads(done.stdout.splitlines()[-1])


# -- in the process --------------------------------------------------------------------------------


def main() -> None:
    which, name, model, batch_size, momentum, started = sys.argv[1:]
    measure = {"memory": _measure_memory, "start": _measure_start}[which]
    print(json.dumps(measure(name, model, int(batch_size), float(momentum), float(started))))


def _measure_memory(
    name: str, model: str, batch_size: int, momentum: float, _: float
) -> float | None:
    on_batches_of = CONTENDERS[name].trainer(model, momentum)
    on_batches_of(1)()
    step = on_batches_of(batch_size)
    if not _reset_peak():
        return None
    before = _memory("VmRSS")
    for _ in range(10):
        step()
    return _memory("VmHWM") - before


def _reset_peak() -> bool:
    """Let the peak of this process's memory begin anew: importing may have needed more."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _memory(field: str) -> float:
    """This process's resident memory in MB: VmRSS now, VmHWM at its peak."""
    # getrusage's figure is no use here: a child inherits its parent's
    kibibytes = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert kibibytes
    return int(kibibytes[1]) * 1024 / 1e6


def _measure_start(
    name: str, model: str, batch_size: int, momentum: float, started: float
) -> tuple[float, float]:
    contender = CONTENDERS[name]
    importlib.import_module(contender.framework)
    imported = time.time() - started
    contender.trainer(model, momentum)(batch_size)()
    return imported, time.time() - started


if __name__ == "__main__":
    main()
