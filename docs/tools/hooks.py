"""What `mkdocs build` does besides Markdown: pages are made from the source, and links lead there.

- index.md is the README; ops/ is made from the ops (reference.py); the tutorial, the examples and
  the notebook are run, or shown, by literate.py; source/ shows every file of the library.
- A link that leads out of docs/, as all do on the pages that are also read in the repository,
  leads to the page of that file here.
"""

import logging
import posixpath
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import literate
import nbformat
import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# folders whose files have a page each
SHOWN = ("tinygrad_nnfs", "models", "tests", "benchmarks", "docs/examples", "docs/tools")
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)(#[^)]*)?(\))")
NOT_SEARCHED = "---\nsearch:\n  exclude: true\nhide: [toc]\n---\n"
log = logging.getLogger("mkdocs.hooks.tinygrad_nnfs")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made now."""

    def add(path: str, content: str | bytes) -> None:
        files.append(File.generated(config, path, content=content))

    add("index.md", (ROOT / "README.md").read_text())
    for name, text in reference.pages().items():
        add(f"ops/{name}.md", text)
    for path, text in source_pages().items():
        add(path, text)
    for path, content in (tutorial() | examples()).items():
        add(path, content)
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        text, _ = literate.page(nbformat.read(notebook, as_version=4), notebook.stem)
        add(
            f"notebooks/{notebook.stem}.md", f"[This notebook as a file]({notebook.name})\n\n{text}"
        )
    return files


def tutorial() -> dict[str, str | bytes]:
    """The tutorial's page, its pictures, and the notebook to download, freshly run."""
    log.info("Running the tutorial")
    with tempfile.TemporaryDirectory() as folder:
        notebook = literate.run(ROOT / "docs" / "tutorial.py", Path(folder))
    text, pictures = literate.page(notebook, "tutorial")
    return {"tutorial.md": text, "tutorial.ipynb": literate.to_json(notebook), **pictures}


def examples() -> dict[str, str | bytes]:
    """The page of docs/examples: what each program is, its code, and what it prints and draws."""
    parts = ["# Examples", "Each is a whole program, a file in `docs/examples`."]
    pictures: dict[str, str | bytes] = {}
    for path in sorted((ROOT / "docs" / "examples").glob("*.py")):
        log.info("Running %s", path.name)
        _, doc, code = path.read_text().split('"""', 2)
        title, _, rest = doc.partition("\n")
        parts += [f"## {title.rstrip('.')}", rest.strip("\n"), f"```python\n{code.strip()}\n```"]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, path], check=True, stdout=subprocess.PIPE, text=True, cwd=folder
            )
            if done.stdout:
                parts.append(f"It prints\n\n```text\n{done.stdout.rstrip()}\n```")
            for picture in sorted(Path(folder).glob("*.png")):
                pictures[picture.name] = picture.read_bytes()
                parts.append(f"![what {path.name} draws]({picture.name})")
    return {"examples.md": "\n\n".join(parts) + "\n", **pictures}


# -- the source ------------------------------------------------------------------------------------


def source_pages() -> dict[str, str]:
    """A page for each Python file, and one for each folder that lists what is in it."""
    pages = {}
    tops = []
    for top in SHOWN:
        folders: dict[Path, list[Path]] = {}
        for path in sorted((ROOT / top).rglob("*.py")):
            pages[f"source/{path.relative_to(ROOT)}.md"] = file_page(path)
            folders.setdefault(path.parent, []).append(path)
        for folder, paths in folders.items():
            pages[f"source/{folder.relative_to(ROOT)}/index.md"] = folder_page(
                folder, paths, folders
            )
        tops.append(f"- [{top}]({top}/index.md)")
    pages["source/index.md"] = f"{NOT_SEARCHED}# The source\n\n" + "\n".join(tops) + "\n"
    for name in ("LICENSE", "pyproject.toml"):
        text = (ROOT / name).read_text()
        pages[f"source/{name}.md"] = f"{NOT_SEARCHED}# {name}\n\n```text\n{text}```\n"
    return pages


def file_page(path: Path) -> str:
    code = f'````python linenums="1"\n{path.read_text()}````'
    return f"{NOT_SEARCHED}# {path.relative_to(ROOT)}\n\n{code}\n"


def folder_page(folder: Path, paths: list[Path], folders: Any) -> str:
    lines = [f"{NOT_SEARCHED}# {folder.relative_to(ROOT)}/", ""]
    for inner in folders:
        if inner.parent == folder:
            lines.append(f"- [`{inner.name}/`]({inner.name}/index.md)")
    for path in paths:
        about = re.match(r'"""(.*?)["\n]', path.read_text())
        lines.append(
            f"- [`{path.name}`]({path.name}.md) {reference.prose(about[1]) if about else ''}"
        )
    return "\n".join(lines) + "\n"


# -- links -----------------------------------------------------------------------------------------


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the repository lead to their pages."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    if page.parent is None:  # nothing to navigate among beside it
        page.meta.setdefault("hide", ["navigation"])
    # where the text lies in the repository, and what its links start from
    origin = "README.md" if page.file.src_uri == "index.md" else f"docs/{page.file.src_uri}"

    def lead(match: re.Match[str]) -> str:
        opening, target, anchor, closing = match.groups()
        if ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        found = site_path(path, files, page.file.src_uri)
        if found is None:
            return match[0]  # mkdocs says what is wrong with it
        relative = posixpath.relpath(found, posixpath.dirname(page.file.src_uri) or ".")
        return f"{opening}{relative}{anchor or ''}{closing}"

    outside_code = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        part if part.startswith("```") else LINK.sub(lead, part) for part in outside_code
    )


def site_path(path: str, files: Files, origin: str) -> str | None:
    """The site's file for one of the repository, linked from the page `origin`."""
    inside = path.removeprefix("docs/")
    name, ending = posixpath.splitext(inside)
    candidates = [f"source/{path}.md", f"source/{path}/index.md"]
    if path in ("docs", "README.md"):
        candidates = ["index.md"]
    elif path == "docs/examples":
        candidates = ["examples.md"]
    elif ending == ".ipynb" or path == "docs/tutorial.py":
        page = f"{name}.md"
        candidates = [inside if page == origin else page]  # a program's own page links to the file
    elif path.startswith("docs/"):
        candidates = [inside, *candidates]
    found = (files.get_file_from_path(candidate) for candidate in candidates)
    return next((f.src_uri for f in found if f and not f.inclusion.is_excluded()), None)


# -- no network ------------------------------------------------------------------------------------


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> None:
    """Warn, which ends a strict build, of whatever a browser would fetch from elsewhere."""
    loaded = r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=.?((?:https?:)?//[^\"'\s>]*)"
    for address in re.findall(loaded, output):
        log.warning("%s needs the network for %s", page.file.src_uri, address)
