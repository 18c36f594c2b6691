"""Measures rows per second and peak memory of preparing text in Criteo's format, for files of several sizes.

    python benchmarks/preparation.py

Each preparation is a separate process, so the seconds include its start-up, and the operating system counts its memory.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from criteo_shaped import write_text

from nasrec_torchrec.cli import run


def main(rows: tuple[int, ...] = (1_000_000, 8_000_000), dataset: str = "criteo") -> None:
    """Prepares generated rows and prints what it took.

    Args:
        rows: Numbers of rows of the files, which are prepared one after the other.
        dataset: Subcommand of `nasrec prepare` that reads Criteo's columns.
    """
    lines = []
    for count in rows:
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "train.txt"
            write_text(text, count)
            command = [sys.executable, "-m", "nasrec_torchrec", "prepare", dataset]
            started = time.perf_counter()
            process = subprocess.Popen([*command, "--source", str(text), "--out", f"{folder}/data"])
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
            if status:
                sys.exit(f"the preparation of {count:,} rows failed")
            size = sum(file.stat().st_size for file in Path(folder, "data").rglob("*.parquet"))
        lines.append(
            f"{count:>12,} {count / seconds:>12,.0f} {seconds:>9.1f} {usage.ru_maxrss / 1024:>12,.0f}"
            f" {size / count:>14.0f}"
        )
    print(f"{'rows':>12} {'rows/s':>12} {'seconds':>9} {'peak MiB':>12} {'bytes per row':>14}")
    print("\n".join(lines))


if __name__ == "__main__":
    run(main)
