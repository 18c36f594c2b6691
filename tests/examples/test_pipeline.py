"""A TorchRec pipeline with all kinds of tables: two ranks train it, four and one resume it, and it is exported."""

import re
from pathlib import Path

import pytest
from support import launch, run_script

SCRIPT = "examples/pipeline.py"


@pytest.mark.extended
def test_a_pipeline_from_two_ranks_over_four_and_one_to_a_package(tmp_path: Path):
    out = "--out", tmp_path
    printed = launch(SCRIPT, 2, "train", *out, "--steps", 40)
    printed += launch(SCRIPT, 4, "resume", *out) + run_script(SCRIPT, "resume", *out)
    found = re.findall(r"on (\d) ranks: loss (\S+) to (\S+), (\d+) of 1024 rows in use, (\d+) evictions", printed)
    ranks, first, last, used, evictions = zip(*found, strict=True)
    assert ranks == ("2", "4", "1") and set(used) == {"896"}, printed
    assert float(last[0]) < 0.8 * float(first[0]) and float(first[2]) < 0.8 * float(first[0]), printed
    assert int(evictions[0]) < int(evictions[1]) < int(evictions[2]), printed
    quantized, package = map(float, re.findall(r"differ by (\S+)", run_script(SCRIPT, "package", *out)))
    assert quantized < 0.05 and package < 1e-5
