"""`make lint` rejects misspelled words and the phrases of .codespell-phrases."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _codespell(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "codespell_lib", "--toml", "pyproject.toml", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("line", (ROOT / ".codespell-phrases").read_text().splitlines())
def test_a_phrase_that_reads_as_translated_is_rejected(line: str, tmp_path: Path):
    phrase = line.partition("->")[0]
    # Those that are sentences are rejected as such.
    text = phrase.capitalize() if phrase.endswith(".") or phrase.startswith("in which") else f"This {phrase} 40"
    (tmp_path / "page.md").write_text(f"{text}\n")
    found = _codespell(tmp_path / "page.md")
    assert found.returncode and phrase in found.stdout.lower(), found


def test_plain_english_passes(tmp_path: Path):
    (tmp_path / "page.md").write_text("It resumes from step 40 and compares their logits. To fix this, run it again.\n")
    assert _codespell(tmp_path / "page.md").returncode == 0
