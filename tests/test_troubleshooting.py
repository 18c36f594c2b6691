"""The messages that docs/troubleshooting.md explains are those that the programs print."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
# Of PyTorch and torchx.
OTHERS = ("OSError: Could not load this library", "connectFullMesh failed", "does not exist or has been removed")


def _messages() -> list[str]:
    return re.findall(r"^\| `([^`]+)`", PAGE.read_text().partition("## Installation")[0], re.MULTILINE)


@cache
def _texts() -> str:
    """Every string of the package, with its placeholders as ``...``."""
    found = []
    for file in (ROOT / "nasrec_torchrec").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize("message", _messages())
def test_the_message_is_one_of_the_programs(message: str):
    if message.startswith(OTHERS):
        return
    pattern = r"[^\n]*".join(re.escape(part) for part in message.strip(". ").split("..."))
    assert re.search(pattern, _texts()), f"nothing prints {message!r} any more"


def test_there_are_messages_of_ours():
    assert len([message for message in _messages() if not message.startswith(OTHERS)]) > 8
