"""Runs a benchmark and keeps what it printed as a figure of the pages, with the command, the date and the machine.

    python benchmarks/record.py throughput python benchmarks/throughput.py
    python benchmarks/record.py --conditions "idle machine" scale python benchmarks/scale.py
    python docs/figures.py    # then shows it in the pages

Only standard output is kept; what a program prints to standard error, progress bars for instance, is not.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu")


def machine() -> str:
    """Returns the processor's name and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.partition(":")[2] for line in information.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0].strip() if names else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of an {name}"


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide about speed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Runs the command and writes ``docs/figures/NAME.json`` when it has succeeded."""
    parser = argparse.ArgumentParser(description="Run a benchmark and keep its output as a figure of the pages.")
    parser.add_argument("--conditions", default="", help="what else matters, such as other work on the machine")
    parser.add_argument(
        "--measured",
        type=json.loads,
        default={},
        help="date, machine and versions of results that the command only prints, as JSON",
    )
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder of the figures")
    parser.add_argument("name", help="the figure's name: pages show it between <!-- figure: NAME --> and <!-- end -->")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the benchmark, as one would type it")
    flags = parser.parse_args()
    if not flags.command:
        parser.error("command: expected a program to run, found nothing")
    flags.out.mkdir(parents=True, exist_ok=True)  # before the benchmark, whose output would be lost otherwise
    lines = []
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(flags.command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode:
        sys.exit(f"{shlex.join(flags.command)} failed with exit code {process.returncode}; nothing was written")
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    found = {
        "command": shlex.join(flags.command),
        "date": date.today().isoformat(),
        "machine": machine(),
        "conditions": flags.conditions,
        "versions": versions(),
        **flags.measured,
        "output": lines,
    }
    file = flags.out / f"{flags.name}.json"
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(file)
    print(f"\nWrote {file}; `python docs/figures.py` shows it in the pages.")


if __name__ == "__main__":
    main()
