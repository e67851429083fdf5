"""Pictures of graphs as bytes and files: SVG, PNG and PDF, with Graphviz's `dot` or without it.

Graphviz does the layout: its program `dot` where it is installed, or else the same library as
pygraphviz >= 2 brings it in its wheels. Either runs in a process of its own, so that neither its
warnings nor its crashes are the caller's.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

try:
    import graphviz
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}: pip install 'tinygrad_nnfs[draw]'", name=error.name
    ) from None

from tinygrad_nnfs.checkpoint import write_file

FORMATS = ("svg", "png", "pdf")  # that an engine makes; .dot needs none
INSTALL = "pip install 'tinygrad_nnfs[draw]', or install Graphviz, whose program is dot"
PATIENCE = 60  # seconds
OPTIONS = {
    "svg": {},
    "png": {"dpi": "144"},
    "pdf": {"size": "7.2,10.6"},  # inches: a larger one is scaled to A4, less half an inch around
}
PYGRAPHVIZ = """
import sys, pygraphviz
graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode())
sys.stdout.buffer.write(graph.draw(format=sys.argv[1], prog="dot"))
"""


class GraphError(Exception):
    """A picture cannot be drawn or written; the message says why, in one line."""


class NoEngineError(GraphError):
    """Neither `dot` nor pygraphviz is installed."""


class Picture(graphviz.Digraph):  # type: ignore[misc, unused-ignore]
    """A `graphviz.Digraph` that notebooks show without the program `dot`, too."""

    def _repr_mimebundle_(
        self,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        **_: object,
    ) -> dict[str, bytes | str]:
        try:
            return {"image/svg+xml": render(self, "svg").decode()}
        except GraphError as error:
            return {"text/plain": str(error)}


def render(picture: graphviz.Digraph, form: str) -> bytes:
    """A picture as SVG, PNG or PDF: `form` is one of FORMATS. Raises GraphError."""
    copy = picture.copy()
    copy.attr(**OPTIONS[form])
    problem = ""
    for command in _commands(form):
        try:
            done = subprocess.run(
                command, input=copy.source.encode(), capture_output=True, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            raise GraphError(
                f"Graphviz has not laid out this graph in {PATIENCE} s: draw a part of it, or less "
                'detail (detail="ops")'
            ) from None
        except OSError as error:  # it is there, but cannot be started
            problem = f"{command[0]} cannot be started: {error.strerror or error}"
            continue
        if done.returncode == 0 and done.stdout:
            picture_bytes: bytes = done.stdout
            return picture_bytes
        said = done.stderr.decode(errors="replace").split("\n")
        reason = next((line for line in reversed(said) if line), f"status {done.returncode}")
        problem = f"{os.path.basename(command[0])} cannot draw this graph as {form}: {reason:.200}"
    if problem:
        raise GraphError(problem)
    raise NoEngineError(f"nothing is installed that draws graphs: {INSTALL}")


def _commands(form: str) -> Iterable[list[str]]:
    """The commands that make a picture of a graph in the dot language, the best first."""
    dot = shutil.which("dot")
    if dot:
        yield [dot, f"-T{form}"]
    if importlib.util.find_spec("pygraphviz"):
        yield [sys.executable, "-P", "-c", PYGRAPHVIZ, form]  # -P: nothing from the current folder


def save(picture: graphviz.Digraph, path: str | os.PathLike[str]) -> None:
    """Write a picture to a file whose suffix says how: .svg, .png, .pdf, or .dot for its source.

    The file is replaced in one step. Raises GraphError; where nothing is installed that draws, a
    NoEngineError, and the source is in a .dot file beside.
    """
    if not isinstance(picture, graphviz.Digraph):
        raise TypeError(
            f"save: expected a picture by draw, and a path, found {type(picture).__name__}"
        )
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"save: expected a picture and the path of its file, found {type(path).__name__}"
        )
    path = Path(path)
    form = check_suffix(path)
    try:
        if form == "dot":
            write_file(path, picture.source.encode())
            return
        try:
            content = render(picture, form)
        except NoEngineError:
            source = path.with_suffix(".dot")
            write_file(source, picture.source.encode())
            raise NoEngineError(
                f"{path}: nothing is installed that draws it; wrote {source} instead: {INSTALL}"
            ) from None
        write_file(path, content)
    except OSError as error:
        raise GraphError(f"{path}: cannot be written: {error.strerror or error}") from None


def check_suffix(path: Path) -> str:
    """The format that a file's name asks for. Raises GraphError."""
    form = path.suffix.removeprefix(".").lower()
    if form not in (*FORMATS, "dot"):
        raise GraphError(f"{path}: must end in .svg, .png, .pdf or .dot")
    return form
