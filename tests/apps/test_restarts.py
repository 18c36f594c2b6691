"""Ranks that die, and launchers that start them again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from support import click_table, make_click_data, make_schema

from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.training.guard import TERMINATED

ROOT = Path(__file__).resolve().parents[2]
STEPS = 120
KILLS = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("restarts")
    schema = make_schema()
    pq.write_table(click_table(make_click_data(schema, 1000), schema), folder / "log.parquet")
    split = SplitConfig("time", validation_share=0, test_share=0)
    prepare(RawData((str(folder / "log.parquet"),), schema, split=split), folder / "data")
    return folder / "data"


def _start(data: Path, out: Path, ranks: int = 2) -> subprocess.Popen[str]:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["--max-restarts", str(KILLS)]
    command += ["-m", "apps.train_supernet", "--data", str(data), "--out", str(out), "--epochs", str(STEPS // 20)]
    command += ["--num_blocks", "2", "--dense_widths", "[16,32]", "--sparse_widths", "[4,8]", "--batch_size", "50"]
    command += ["--learning_rate", "0.05", "--full_path_steps", "50", "--log_every", "1", "--checkpoint_every", "7"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _ranks(launcher: int) -> list[int]:
    """Processes that the launcher started as ranks."""
    found = []
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if "apps.train_supernet" in Path(f"/proc/{child}/cmdline").read_text():
            found.append(int(child))
    return found


def _logged(out: Path) -> dict[int, float]:
    file = out / "log.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    return {entry["step"]: entry["loss"] for entry in entries if entry["event"] == "train"}


def _wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    while max(_logged(out), default=0) < step:
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(data: Path) -> Path:
    out = data.with_name("undisturbed")
    process = _start(data, out)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert len(_logged(out)) == STEPS
    return out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_killed_ranks_cost_nothing_but_time(data: Path, undisturbed: Path):
    out = data.with_name("killed")
    process = _start(data, out)
    rng = random.Random(0)
    step = 3  # before the first checkpoint
    for _ in range(KILLS):
        _wait_for_step(process, out, step)
        os.kill(rng.choice(_ranks(process.pid)), signal.SIGKILL)
        for folder in sorted((out / "checkpoints").glob("step-*"))[-1:]:  # older ones may be on their way out
            assert (folder / ".metadata").exists(), "a checkpoint has its name before it is complete"
        step = max(_logged(out)) + rng.randrange(10, 20)  # of the ranks that are started next
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert "resumes from step" in output, output[-3000:]
    assert "another rank ended" in output and "third_party/gloo" not in output, output[-3000:]
    assert _logged(out) == _logged(undisturbed)
    weights, expected = (load_model(folder)[1].state_dict() for folder in (out, undisturbed))
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_sigterm_saves_and_the_next_start_goes_on(data: Path, undisturbed: Path):
    out = data.with_name("preempted")
    process = _start(data, out)
    _wait_for_step(process, out, 60)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and "asked to end; step" in output, output[-3000:]
    assert "Traceback" not in output.split("asked to end")[0]
    saved = json.loads((sorted((out / "checkpoints").glob("step-*"))[-1] / "progress.json").read_text())["step"]
    assert 60 <= saved < STEPS and saved == max(_logged(out))
    process = _start(data, out)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and f"resumes from step {saved} of {STEPS}" in output, output[-3000:]
    assert _logged(out) == _logged(undisturbed)


@pytest.mark.slow
def test_one_process_ends_with_the_code_of_sigterm(data: Path):
    out = data.with_name("alone")
    process = _start(data, out, ranks=1)
    _wait_for_step(process, out, 5)
    (rank,) = _ranks(process.pid)
    os.kill(rank, signal.SIGTERM)
    # The launcher takes it for a failure, and starts the rank again: it finishes.
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and f"exitcode: {TERMINATED}" in output.replace("exit code", "exitcode"), output[
        -3000:
    ]
    assert len(_logged(out)) == STEPS
