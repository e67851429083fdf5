"""Programs with text in them, as notebooks that were run, and as pages of the site.

A program has its cells marked as editors know it: `# %%` begins code, `# %% [markdown]` text in
comments. jupytext makes a notebook of it, nbclient runs that.
"""

import base64
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDED = {"picture": "the code of this picture", "solution": "a solution"}  # by tags of cells
PICTURES = {"image/svg+xml": "svg", "image/png": "png"}


def run(path: Path, folder: Path) -> Any:
    """The notebook of a program, run from the beginning in `folder`, with its outputs."""
    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    client = NotebookClient(
        notebook,
        timeout=600,
        extra_arguments=[
            "--log-level=40"
        ],  # a kernel that serves this process alone warns of others
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def to_json(notebook: Any) -> str:
    return str(nbformat.writes(notebook))


def page(notebook: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """Its Markdown, and the pictures that this shows, as files beside it."""
    text: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            text.append(cell.source)
            continue
        code = f"```python\n{cell.source}\n```"
        for tag in FOLDED.keys() & cell.metadata.get("tags", []):
            code = f'??? note "{FOLDED[tag]}"\n' + indented(code)
        text.append(code)
        for output in joined(cell.get("outputs", [])):
            text.append(shown(output, f"{name}-{len(pictures)}", pictures))
    return "\n\n".join(part for part in text if part) + "\n", pictures


def joined(outputs: list[Any]) -> list[Any]:
    """Outputs with what was printed bit by bit in one piece."""
    whole: list[Any] = []
    for output in outputs:
        if whole and "text" in output and "text" in whole[-1]:
            whole[-1] = {**whole[-1], "text": whole[-1]["text"] + output["text"]}
        else:
            whole.append(output)
    return whole


def shown(output: Any, name: str, pictures: dict[str, bytes]) -> str:
    """An output as Markdown; a picture becomes a file of this name."""
    data = output.get("data", {})
    for kind, ending in PICTURES.items():
        if kind in data:
            is_text = kind.endswith("xml")
            content = data[kind].encode() if is_text else base64.b64decode(data[kind])
            pictures[f"{name}.{ending}"] = content
            width = output.get("metadata", {}).get(kind, {}).get("width")
            size = f'{{ width="{width}" }}' if width else ""
            return f"![what the cell above shows]({name}.{ending}){size}"
    text = output.get("text") or data.get("text/plain", "")
    return f"``` {{ .text .output }}\n{text.rstrip()}\n```" if text.strip() else ""


def indented(text: str) -> str:
    return "\n".join("    " + line if line else line for line in text.splitlines())
