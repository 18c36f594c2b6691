import re
from pathlib import Path

import pytest
from support import launch, run_script

SCRIPT = "examples/mixed_tables.py"


@pytest.mark.extended
def test_mixed_tables_from_two_ranks_to_a_package(tmp_path: Path):
    out = "--out", tmp_path
    printed = launch(SCRIPT, 2, "train", *out, "--steps", 40) + run_script(SCRIPT, "resume", *out)
    ranks, first, last = zip(*re.findall(r"on (\d) ranks: loss (\d\.\d+) to (\d\.\d+)", printed), strict=True)
    assert ranks == ("2", "1"), printed
    assert float(last[0]) < 0.9 * float(first[0]) and float(first[1]) < 0.9 * float(first[0]), printed
    quantized, package = map(float, re.findall(r"differ by (\S+)", run_script(SCRIPT, "package", *out)))
    assert quantized < 0.01 and package < 1e-5
