"""Fills the figures in the pages from the files that the benchmarks wrote.

    python docs/figures.py            # fill
    python docs/figures.py --check    # name what differs and exit with 1, as the tests do

``python benchmarks/record.py NAME COMMAND...`` runs a benchmark and writes ``docs/figures/NAME.json``: its output, the
command, the date and the machine. A page shows them in two ways:

- ``<!-- figure: NAME -->`` to ``<!-- end -->`` holds the whole output and where it was measured. Text between the
  markers is overwritten.
- A number in a sentence stands in front of ``<!-- NAME.value -->``. ``VALUES`` says where the value is in the output.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"
BLOCK = re.compile(r"(<!-- figure: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
VALUE = re.compile(r"([\w.,]*\w)(\s?<!-- ([\w-]+)\.([\w-]+) -->)")

# Figure -> value -> a pattern with one group, searched for in the figure's output.
VALUES: dict[str, dict[str, str]] = {
    "auto-frappe-parts": {
        "shipped-auc": r"the shipped model \| ([\d.]+)",
        "shipped-log-loss": r"the shipped model \| [^|]+\| ([\d.]+)",
        "tree-auc": r"\| LightGBM \| ([\d.]+)",
        "tree-log-loss": r"\| LightGBM \| [^|]+\| ([\d.]+)",
        "tree-features-auc": r"same added features \| ([\d.]+)",
        "tree-features-log-loss": r"same added features \| [^|]+\| ([\d.]+)",
    },
    "data-loading": {"decode-ratio": r"a / b = ([\d.]+)"},
    # Rows per second of one core, as compiled.
    "inference": {
        f"{model}-{batch}": rf"(?s){title}, batch {batch}:.*?\n  AOTInductor  +[\d.]+ +[\d.]+ +([\d,]+)"
        for model, title in (("full", "criteo-full"), ("small", "criteo-small"), ("dlrm", r"DLRM \([^)]*\)"))
        for batch in (1, 64, 512)
    },
    "preparation": {"seconds": r"45,000,000 +[\d,]+ +([\d.]+)", "mib": r"45,000,000 +[\d,]+ +[\d.]+ +([\d,]+)"},
    "quality-frappe": {
        "searched-auc": r"searched NASRecNet \| ([\d.]+)",
        "searched-log-loss": r"searched NASRecNet \| [^|]+\| ([\d.]+)",
        "dcn-auc": r"DLRM_DCN \| ([\d.]+)",
        "dcn-log-loss": r"DLRM_DCN \| [^|]+\| ([\d.]+)",
    },
    "rank-correlation": {"scratch-tau": r"seed 0 against seed 1 from scratch: tau ([\d.]+)"},
    "supernet-step-512": {
        "ratio": r"supernet / alone +([\d.]+)",
        "step": r"\n  step +([\d.]+)",
    },
}


def record(name: str) -> dict[str, Any]:
    """What a benchmark wrote.

    Args:
        name: the figure.

    Returns:
        The record: ``output``, ``command``, ``date``, ``machine``, ``conditions`` and ``versions``.

    Raises:
        ValueError: when there is no such file.
    """
    file = FIGURES / f"{name}.json"
    if not file.exists():
        raise ValueError(f"figure {name!r}: no file {file.relative_to(ROOT)}; benchmarks/record.py writes it")
    return json.loads(file.read_text())


def value(name: str, key: str) -> str:
    """One value of a figure, as its output prints it.

    Raises:
        ValueError: for a value that is not declared in ``VALUES``, or that the output does not have.
    """
    if key not in VALUES.get(name, {}):
        raise ValueError(f"figure {name!r}: value {key!r} is not in VALUES, which has {sorted(VALUES.get(name, {}))}")
    found = re.search(VALUES[name][key], "\n".join(record(name)["output"]))
    if found is None:
        raise ValueError(f"figure {name!r}: {VALUES[name][key]!r} matches nothing in its output")
    return found[1]


def block(name: str) -> str:
    """The output as Markdown, followed by a line that says how and where it was measured."""
    found = record(name)
    output = "\n".join(found["output"])
    measured = date.fromisoformat(found["date"])
    torch = found["versions"].get("torch")
    facts = [
        f"Measured on {measured.day} {measured:%B %Y}",
        f"on {found['machine']}" + (f" with torch {torch}" if torch else ""),
    ]
    caption = " ".join(facts) + "".join(f"; {text}" for text in [found.get("conditions")] if text)
    text = output if output.startswith("|") else f"```\n{output}\n```"
    return f"\n{text}\n\n*{caption}. Command: `{found['command']}`*\n\n"


def fill(text: str) -> str:
    """A page with every figure as the files have it.

    Args:
        text: of the page.

    Returns:
        The page's new text.
    """
    text = BLOCK.sub(lambda match: match[1] + block(match[2]) + match[4], text)
    return VALUE.sub(lambda match: _rounded(value(match[3], match[4]), match[1]) + match[2], text)


def _rounded(exact: str, shown: str) -> str:
    """The value with as many decimals as the page shows, and with or without the leading zero, as there."""
    number = float(exact.replace(",", ""))
    decimals = len(shown.partition(".")[2])
    written = f"{number:,.{decimals}f}"
    return written.removeprefix("0") if shown.startswith(".") else written


def pages() -> Iterator[Path]:
    """Every page that may show figures."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").glob("*.md"))


def main() -> None:
    """Fills or checks all pages."""
    parser = argparse.ArgumentParser(description="Fill the figures in the pages from docs/figures.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page would change")
    check = parser.parse_args().check
    changed = []
    for page in pages():
        old = page.read_text()
        new = fill(old)
        if new != old:
            changed.append(page.relative_to(ROOT).as_posix())
            if not check:
                page.write_text(new)
    if changed:
        print(("These pages do not show what docs/figures has: " if check else "Filled ") + ", ".join(changed))
    if check and changed:
        sys.exit("To fix this, run: python docs/figures.py")


if __name__ == "__main__":
    main()
