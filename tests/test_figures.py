"""The figures in the pages are what the benchmarks wrote."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from figures import BLOCK, FIGURES, VALUE, VALUES, fill, pages, record, value
from support import run_script

ROOT = Path(__file__).resolve().parents[1]
PAGES = list(pages())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_what_the_benchmarks_wrote(page: Path):
    text = page.read_text()
    assert fill(text) == text, "to fix this, run: python docs/figures.py"


def test_every_figure_is_shown_and_says_where_it_was_measured():
    text = "".join(page.read_text() for page in PAGES)
    shown = {name for _, name, *_ in BLOCK.findall(text)}
    assert {file.stem for file in FIGURES.glob("*.json")} == shown
    for name in shown:
        found = record(name)
        assert found["command"] and found["date"] and found["machine"] and found["output"], name
    assert {(name, key) for name, keys in VALUES.items() for key in keys} == {
        (name, key) for _, _, name, key in VALUE.findall(text)
    }


def test_a_figure_that_drifted_is_filled_again():
    sentence = "It takes 9.99<!-- supernet-step-512.ratio --> times as long."
    assert (
        fill(sentence)
        == f"It takes {value('supernet-step-512', 'ratio')}<!-- supernet-step-512.ratio --> times as long."
    )
    block = "<!-- figure: races -->\n| old |\n<!-- end -->\n"
    assert "| old |" not in fill(block) and record("races")["output"][0] in fill(block)


def test_figures_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"figure 'guess': no file docs/figures/guess\.json"):
        fill("<!-- figure: guess -->\n<!-- end -->")
    with pytest.raises(ValueError, match="figure 'races': value 'best' is not in VALUES"):
        fill("It is 3<!-- races.best --> times better.")


def test_a_benchmark_writes_its_figure(tmp_path: Path):
    program = [sys.executable, str(ROOT / "benchmarks" / "record.py"), "--out", str(tmp_path), "--conditions", "idle"]
    benchmark = [sys.executable, "-c", "import sys; print('a  1.5'); print('progress', file=sys.stderr)"]
    subprocess.run([*program, "tiny", *benchmark], check=True, capture_output=True)
    found = json.loads((tmp_path / "tiny.json").read_text())
    assert found["output"] == ["a  1.5"] and found["conditions"] == "idle" and "torch" in found["versions"]
    failing = subprocess.run(
        [*program, "tiny", sys.executable, "-c", "print('b'); raise SystemExit(3)"], capture_output=True
    )
    assert failing.returncode and json.loads((tmp_path / "tiny.json").read_text()) == found


def test_the_operators_are_drawn_as_they_are_registered(tmp_path: Path):
    # In a process of its own, in which no test has registered operators.
    run_script("docs/operator_drawings.py", tmp_path / "operators.svg")
    assert (tmp_path / "operators.svg").read_text() == (ROOT / "docs" / "operators.svg").read_text()
