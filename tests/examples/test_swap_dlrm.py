import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import launch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "examples/swap_dlrm.py"


def _torchrun(script: str, ranks: int, *words: str) -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), script]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.extended
@pytest.mark.parametrize(("model", "start"), [("dlrm", launch), ("nasrec", _torchrun)], ids=["dlrm", "nasrec"])
def test_the_same_script_trains_both_models_on_two_ranks(model: str, start):
    printed = start(SCRIPT, 2, "--model", model, "--steps", "6", "--batch_size", "64")
    losses = [float(loss) for loss in re.findall(rf"^{model}: step \d, loss (\d+\.\d+)$", printed, re.MULTILINE)]
    assert len(losses) == 2 and all(0.1 < loss < 3 for loss in losses), printed
