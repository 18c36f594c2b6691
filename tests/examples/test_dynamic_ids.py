import re
from pathlib import Path

from support import run_process

ROOT = Path(__file__).resolve().parents[2]


def test_ids_stream_through_a_table_of_fixed_size():
    words = ("--ids", 40_000, "--rows", 2048, "--batch_size", 1024)
    done = run_process("examples/dynamic_ids.py", *words, folder=ROOT, environment={})
    assert done.returncode == 0, done.stderr[-3000:]
    used, evictions, _ = zip(*re.findall(r"([\d,]+) rows in use, ([\d,]+) evictions(.*)", done.stdout), strict=True)
    assert used[-1] == f"{2048 - 2 * 64:,}" and int(evictions[-1].replace(",", "")) > 5_000
    assert "204 of 204 ids that came back have a row of their own" in done.stdout
