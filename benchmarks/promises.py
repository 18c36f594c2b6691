"""Counts what the tests that docs/reliability.md names have shown in a run of the suite.

python -m pytest -n 2 --dist loadfile --junitxml build/tests.xml
python benchmarks/record.py promises python benchmarks/promises.py --junit build/tests.xml
python docs/figures.py
"""

import argparse
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tabulate import tabulate

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)`")


def main() -> None:
    """Prints a table: a line for each test file that the page names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--junit", type=Path, required=True, nargs="+", help="files that pytest wrote by --junitxml")
    cases: dict[str, list[str]] = {}
    files = parser.parse_args().junit
    for case in (case for file in files for case in ElementTree.parse(file).iter("testcase")):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        cases.setdefault(case.get("classname", "").replace(".", "/") + ".py", []).append(outcome)
    page = re.sub("<!-- figure: promises -->.*?<!-- end -->", "", PAGE.read_text(), flags=re.DOTALL)
    named = sorted(set(NAMED.findall(page)))
    # Chaos is no part of the suite; it has a table of its own.
    rows = [[f"`{file}`", *_counts(cases.get(file, []))] for file in named if not file.startswith("tests/chaos/")]
    rows.append(["all of them", *(sum(row[column] for row in rows) for column in (1, 2, 3))])
    print(tabulate(rows, ["test", "passed", "failed", "skipped"], "pipe"))


def _counts(outcomes: list[str]) -> list[int]:
    return [outcomes.count(kind) for kind in ("passed", "failed", "skipped")]


if __name__ == "__main__":
    main()
