"""The examples in docstrings run, and print what they show."""

import doctest
import importlib
import re
from pathlib import Path
from types import ModuleType

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
