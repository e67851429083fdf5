"""The README's and the docs' Python runs, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(page):
    found = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    # what has a line of "..." is an excerpt
    return [code for code in found if not re.search(r"^\s*\.\.\.$", code, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # they may write files
    for code in snippets(page):
        exec(compile(code, page.name, "exec"), {"__name__": "snippet"})


def test_readme_has_snippets():
    assert len(snippets(ROOT / "README.md")) == 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith(("https://", "http://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholders_are_left(page):
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    left = set(re.findall(r"\b[A-Z]+_[A-Z]+\b|\bTODO\b", prose)) - {"NNFS_DATA"}
    assert not left
