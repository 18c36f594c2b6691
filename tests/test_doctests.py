"""The examples in docstrings run, and print what they show."""

import ast
import doctest
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("nasrec_torchrec", "components", "docs")


def _modules() -> list[str]:
    """Modules with an example."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py")) if ">>> " in file.read_text()]
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)
    return [re.sub(r"^docs\.|\.__init__$", "", name) for name in names]


@pytest.mark.parametrize("name", _modules())
def test_examples_run(name: str):
    module: ModuleType = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert results.attempted and not results.failed


def test_the_main_classes_have_examples():
    assert {"nasrec_torchrec.models.nasrecnet", "nasrec_torchrec.models.supernet", "nasrec_torchrec.search_space"} <= {
        *_modules()
    }


def _docstrings() -> Iterator[tuple[Path, str]]:
    for file in (ROOT / "nasrec_torchrec").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield file, ast.get_docstring(node) or ""


def test_every_example_can_run():
    """Only what follows ``>>>`` is run."""
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
