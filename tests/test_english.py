"""Prose is idiomatic English: phrases that were translated word by word are rejected, and examples can run."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

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


def test_every_example_can_run():
    """``tests/test_doctests.py`` runs what stands behind ``>>>``; an example without it would be run by nothing."""
    for file in (ROOT / "nasrec_torchrec").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                for example in re.findall(r"^ *Example:\s*(.*)", ast.get_docstring(node) or "", re.MULTILINE):
                    assert example.startswith(">>> "), f"{file}: {example}"
