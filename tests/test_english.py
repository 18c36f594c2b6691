"""Prose is idiomatic English: phrases that were translated word by word are rejected, and examples can run."""

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("nasrec_torchrec", "apps", "components", "tests", "benchmarks", "examples", "docs")
# Phrase -> what to write instead.
REJECTED = {
    r"\bgo(es)? on from\b": "resumes from",
    r"\bmends? it\b": "fixes it; to fix this, run",
    r"\banew\b(?!:)": "again, from scratch",
    r"\bthe whole road\b": "end to end",
    r"\bin which form a model leaves\b": "how a model is exported",
    r'^[rbuf]*"""(Of|Their) ': "a noun or a full sentence, such as: the learning rate of the dense part",
}


def _prose(file: Path) -> Iterator[tuple[int, str]]:
    """Yields the comments and strings of Python, and the lines of a page."""
    text = file.read_text()
    if file.suffix == ".md":
        yield from enumerate(text.splitlines(), 1)
        return
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            yield token.start[0], token.string


def _rejected(prose: str) -> list[str]:
    words = " ".join(prose.split())
    return [instead for phrase, instead in REJECTED.items() if re.search(phrase, words, re.IGNORECASE)]


def test_no_prose_is_translated_word_by_word():
    files = [file for folder in FOLDERS for kind in ("*.py", "*.md") for file in (ROOT / folder).rglob(kind)]
    found = [
        f"{file.relative_to(ROOT)}:{line}: write instead: {instead}"
        for file in [*files, *ROOT.glob("*.md")]
        if file != Path(__file__).resolve()
        for line, prose in _prose(file)
        for instead in _rejected(prose)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "prose",
    [
        "# A killed run goes on from its newest checkpoint.",
        '"""Of the learning rate."""',
        '"""Their logits."""',
        '"""In which form a model\n    leaves."""',
        "the exact command that mends it",
        "``never`` starts anew",
        "The whole road on MovieLens-100K",
    ],
)
def test_such_phrases_are_recognized(prose: str):
    assert _rejected(prose)


def _docstrings() -> Iterator[tuple[Path, str]]:
    for file in (ROOT / "nasrec_torchrec").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield file, ast.get_docstring(node) or ""


def test_every_example_can_run():
    """``tests/test_doctests.py`` runs what follows ``>>>``; nothing would run an example without it."""
    for file, docstring in _docstrings():
        for example in re.findall(r"^ *Example:(?!:)\s*(.*)", docstring, re.MULTILINE):
            assert example.startswith(">>> "), f"{file}: {example}"


def test_examples_that_need_a_data_set_call_what_exists():
    """They stand in a literal block, ``Example::``; every call of the package in them must fit its signature."""
    checked = 0
    for file, docstring in _docstrings():
        for block in re.findall(r"^Example::\n\n((?: {4}.*\n?)+)", docstring, re.MULTILINE):
            tree = ast.parse(textwrap.dedent(block))
            names: dict[str, Any] = {}
            imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), str(file), "exec"), names)
            for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                module, _, function = ast.unparse(call.func).partition(".")
                if module not in names or "." in function:
                    continue
                called = getattr(names[module], function) if function else names[module]
                inspect.signature(called).bind(*call.args, **{word.arg: word.value for word in call.keywords})
                checked += 1
    assert checked > 5
