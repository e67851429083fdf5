"""What the site is made by: the reference of the ops, and programs as pages."""

import ast
import html
import inspect
import re
import textwrap

import formulas
import pytest
import reference

from tinygrad_nnfs import OPS, ops

PICTURE = "iVBORw0KGgoAAAANSUhEUg=="


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", "", page))


@pytest.fixture(scope="module")
def pages():
    return reference.pages()


@pytest.mark.parametrize("name", ops.__all__)
def test_every_op_is_in_the_reference_with_its_block_as_it_stands(name, pages):
    op = OPS[name]
    family = op.reference.__module__.rpartition(".")[2]
    assert f"]({family}.md#{name})" in pages["index"]
    section = pages[family].split(f"## {name} {{")[1].split("\n## ")[0]
    code = "\n".join(re.findall(r"<pre><code>(.*?)</code></pre>", section, re.DOTALL))
    assert text_of(code).strip() == inspect.getsource(op.reference).strip()


@pytest.mark.parametrize("name", ops.__all__)
def test_each_formula_stands_beside_its_rule(name):
    beside = [(f, code) for stated, code in reference.parts(OPS[name]) for f in stated]
    assert [f for f, _ in beside] == formulas.read(OPS[name]).rules
    for formula, code in beside:
        has_own = f"def {formula.name}(" in inspect.getsource(OPS[name].reference)
        assert code.lstrip().startswith(f"def {formula.name}(" if has_own else "def ")
        (rule,) = ast.parse(textwrap.dedent(code)).body
        assert isinstance(rule.body[-1], ast.Return)  # to its end


def test_other_ways_to_call_an_op_are_named():
    assert reference.methods(OPS["matmul"]) == ["a @ b"]
    assert reference.methods(OPS["sigmoid"]) == ["x.sigmoid()"]
    assert "x.sum(...)" in reference.methods(OPS["sum"])
    assert reference.methods(OPS["getitem"]) == ["x[index]"]
    assert reference.methods(OPS["conv2d"]) == []


def test_docstrings_are_shown_as_they_are_written():
    assert reference.prose("a * b, x[i] < `y * z`") == r"a \* b, x\[i\] &lt; `y * z`"


def test_a_notebook_as_a_page():
    pytest.importorskip("jupytext")
    import literate
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    printed = [new_output("stream", text="one\n"), new_output("stream", text="two\n")]
    picture = new_output(
        "display_data", data={"image/png": PICTURE}, metadata={"image/png": {"width": 80}}
    )
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell("print()", outputs=printed),
        new_code_cell("draw()", outputs=[picture], metadata={"tags": ["picture"]}),
    ]
    text, pictures = literate.page(new_notebook(cells=cells), "name")
    assert text.startswith("# Title\n\n```python\nprint()\n```\n\n")
    assert "\none\ntwo\n```" in text
    assert "\n    draw()\n" in text.partition("???")[2]
    assert '(name-0.png){ width="80" }' in text
    assert list(pictures) == ["name-0.png"]


@pytest.mark.parametrize(
    "tag, fetched",
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ("<link rel=stylesheet href='//fonts.example/x.css'>", True),
        ('<img src="http://pictures.example/x.png">', True),
        ('<a href="https://example.org">a link to follow</a>', False),
        ('<link rel="stylesheet" href="site.css">', False),
    ],
)
def test_what_needs_the_network_is_noticed(tag, fetched, caplog):
    pytest.importorskip("mkdocs")
    pytest.importorskip("jupytext")
    from types import SimpleNamespace

    import hooks

    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    hooks.on_post_page(f"<html>{tag}</html>", page, None)
    assert bool(caplog.records) == fetched
