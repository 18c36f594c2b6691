import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dlrm", "nasrec"])
def test_the_same_script_trains_both_models_on_two_ranks(model: str):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["examples/swap_dlrm.py", "--model", model, "--steps", "6", "--batch_size", "64"]
    result = subprocess.run(
        launcher + script, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    losses = [float(loss) for loss in re.findall(rf"^{model}: step \d, loss (\d+\.\d+)$", result.stdout, re.MULTILINE)]
    assert len(losses) == 2 and all(0.1 < loss < 3 for loss in losses), result.stdout
