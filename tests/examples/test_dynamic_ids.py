import re

from support import run_script


def test_ids_stream_through_a_table_of_fixed_size():
    words = ("--ids", 40_000, "--rows", 2048, "--batch_size", 1024)
    printed = run_script("examples/dynamic_ids.py", *words)
    used, evictions, _ = zip(*re.findall(r"([\d,]+) rows in use, ([\d,]+) evictions(.*)", printed), strict=True)
    assert used[-1] == f"{2048 - 2 * 64:,}" and int(evictions[-1].replace(",", "")) > 5_000
    assert "204 of 204 ids that came back have a row of their own" in printed
