"""The pages: links lead somewhere, commands name programs and flags that exist, the API reference can be built."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import component_program

from nasrec_torchrec.cli.main import JOBS, programs_of
from nasrec_torchrec.cli.program import SHARED_FLAGS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in map(_anchor, headings), f"{page.name}: {target}"


def _commands(page: Path) -> list[list[str]]:
    found = []
    for block in FENCE.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").split(" #")[0]
            if re.match(
                r"(nasrec |torchrun .*-m nasrec_torchrec|torchx run |python benchmarks/|python examples/)", line
            ):
                found.append(shlex.split(line))
    return found


def _check_program(words: list[str], where: str) -> None:
    """Checks the words behind ``nasrec``: job, subcommand, and flags as they are written."""
    job, *rest = words
    assert job in JOBS, where
    programs = programs_of(job)
    program = programs[""] if "" in programs else programs.get(rest[0]) if rest else None
    if program is None:  # the list of the subcommands is asked for, or flags of the same command as before
        assert "--help" in rest or "..." in rest or rest[0] in programs, where
        return
    known = {flag.name for flag in (*program.flags, *SHARED_FLAGS)} | {"config", "help"}
    for word in rest:
        if word.startswith("--"):
            assert word[2:].split("=")[0].replace("-", "_") in known, f"{where}: nasrec {job} {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_programs_components_and_flags_that_exist(page: Path):
    for words in _commands(page):
        where = f"{page.name}: {shlex.join(words)}"
        if words[0] == "torchx":
            start = next(number for number, word in enumerate(words) if word.startswith("nasrec."))
            # Parsed as torchx does, which leaves where it does not know an argument.
            program = component_program(words[start].removeprefix("nasrec."), words[start + 1 :])
            _check_program(program[2:], where)
        elif words[0] == "nasrec" or "-m" in words:
            _check_program(words[words.index("-m") + 2 if "-m" in words else 1 :], where)
        else:
            assert (ROOT / words[1]).exists(), where


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it; a link that leads nowhere, or an argument that does not exist, is an error."""
    folder = tmp_path_factory.mktemp("site")
    (recipe,) = re.findall(r"^docs:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (command,) = re.findall(r"-m mkdocs (.*)", recipe)
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", *command.split(), "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return folder


@pytest.mark.extended
def test_the_site_has_every_page_and_module(site: Path):
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").exists(), page
    for file in (ROOT / "nasrec_torchrec").rglob("[a-z]*.py"):
        assert (site / "reference" / file.relative_to(ROOT).with_suffix(".html")).exists(), file
    page = (site / "reference" / "nasrec_torchrec" / "models" / "nasrecnet.html").read_text()
    assert "embedding_bag_collection" in page and "one table per sparse feature" in page


@pytest.mark.extended
def test_links_to_sources_lead_to_pages_that_show_them(site: Path):
    page = (site / "supernet.html").read_text()
    assert 'href="reference/nasrec_torchrec/training/trainer.html"' in page
    home = (site / "index.html").read_text()
    assert 'href="source/examples/swap_dlrm.py.html"' in home and 'href="supernet.html#what-a-step-costs"' in home
    assert "DistributedModelParallel" in (site / "source" / "examples" / "swap_dlrm.py.html").read_text()
    # A role of Sphinx in a docstring becomes a link.
    reference = (site / "reference" / "nasrec_torchrec" / "models" / "supernet.html").read_text()
    assert '#nasrec_torchrec.training.optimizers.ActiveSliceAdagrad"><code>ActiveSliceAdagrad</code></a>' in reference
