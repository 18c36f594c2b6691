"""A killed rank of a torchx run on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import component_program, launch, prepare_clicks

from nasrec_torchrec.runs.checkpoint import latest_checkpoint
from nasrec_torchrec.runs.log import read_events

ROOT = Path(__file__).resolve().parents[2]


def _flags(data: Path, out: Path, retries: int) -> list[str]:
    flags = ["--data", str(data), "--out", str(out), "-j", "1x2", "--architecture", "mlp", "--retries", str(retries)]
    return [*flags, "--", "--batch_size", "40", "--epochs", "30", "--checkpoint_every", "20", "--log_every", "10"]


def _start(data: Path, out: Path) -> subprocess.Popen[str]:
    folder = Path(sys.executable).parent
    command = [str(folder / "torchx"), "run", "--scheduler", "local_cwd", "--wait", "components/nasrec.py:train"]
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        [*command, *_flags(data, out, 1)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.extended
def test_a_run_whose_rank_was_killed_restarts_by_itself(tmp_path: Path):
    data = prepare_clicks(tmp_path / "data")
    word, *program = component_program("train", _flags(data, tmp_path / "undisturbed", 0))
    launch(word, 2, *program)
    launched, run = _start(data, tmp_path / "disturbed"), tmp_path / "disturbed" / "trial-01-seed-0"
    end = time.monotonic() + 120
    while latest_checkpoint(run) is None:
        assert time.monotonic() < end and launched.poll() is None, launched.communicate()[0][-3000:]
        time.sleep(0.1)
    os.kill(read_events(run)[0]["pid"], signal.SIGKILL)
    output, _ = launched.communicate(timeout=300)
    assert launched.returncode == 0, output[-3000:]
    first, second = (
        json.loads((tmp_path / name / "metrics.json").read_text())["best"]["runs"][0]["test"]
        for name in ("disturbed", "undisturbed")
    )
    assert first == second
    starts = [event for event in read_events(run) if event["event"] == "start"]
    assert [start["restart"] for start in starts] == [0, 1] and starts[1]["step"] > 0
