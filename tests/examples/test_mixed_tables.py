import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import run_process

ROOT = Path(__file__).resolve().parents[2]


SCRIPT = "examples/mixed_tables.py"


def launch(script: str, ranks: int, *words: object) -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), script]
    result = subprocess.run(
        [*launcher, *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def run(script: str, *words: object) -> str:
    done = run_process(script, *words, folder=ROOT, environment={})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_mixed_tables_from_two_ranks_to_a_package(tmp_path: Path):
    out = "--out", tmp_path
    printed = launch(SCRIPT, 2, "train", *out, "--steps", 40) + run(SCRIPT, "resume", *out)
    ranks, first, last = zip(*re.findall(r"on (\d) ranks: loss (\d\.\d+) to (\d\.\d+)", printed), strict=True)
    assert ranks == ("2", "1"), printed
    assert float(last[0]) < 0.9 * float(first[0]) and float(first[1]) < 0.9 * float(first[0]), printed
    quantized, package = map(float, re.findall(r"differ by (\S+)", run(SCRIPT, "package", *out)))
    assert quantized < 0.01 and package < 1e-5
