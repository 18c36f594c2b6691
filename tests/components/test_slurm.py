"""The components on a real Slurm cluster: submit, run two ranks, cancel, requeue after a failure and resume."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import component_program, launch, prepare_clicks
from torchx.runner import get_runner

from nasrec_torchrec.runs.checkpoint import latest_checkpoint
from nasrec_torchrec.runs.log import read_events

ROOT = Path(__file__).resolve().parents[2]


def _arguments(folder: Path, data: Path, *flags: str, retries: int = 0) -> list[str]:
    arguments = ["--data", str(data), "--out", str(folder / "run"), "-j", "1x2", "--architecture", "mlp"]
    return [*arguments, "--memory", "2000", "--retries", str(retries), "--", "--batch_size", "40", *flags]


def _submit(folder: Path, data: Path, *flags: str, retries: int = 0) -> str:
    """Slurm's number of a training on two ranks, submitted by torchx.

    By torchx's Python interface: its commands ask Slurm's accounting at once, which is not installed everywhere.
    """
    folder.mkdir()
    with get_runner() as runner:
        handle = runner.run_component(
            "components/nasrec.py:train",
            _arguments(folder, data, *flags, retries=retries),
            scheduler="slurm",
            cfg={"partition": "main", "job_dir": str(folder / "job")},
            workspace=f"file://{ROOT}",
        )
    return handle.rpartition("/")[2]


def _torchx(*words: str) -> str:
    """What torchx prints."""
    return subprocess.run(["torchx", *words], capture_output=True, text=True, timeout=180).stdout


def _logs(handle: str, wanted: str, seconds: float = 180) -> bool:
    """Whether torchx shows a text in the log of a job, which does not end while the job runs."""
    with subprocess.Popen(["torchx", "log", handle], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            return any(wanted in line for line in process.stdout)
        finally:
            timer.cancel()
            process.kill()


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job finds torchrun by name."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)


def _state(job: str) -> str:
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    return re.search(r"JobState=(\w+)", shown)[1]


def _completed(job: str) -> bool:
    """Whether a job is done; an error if it has ended otherwise.

    Slurm begins a requeued job when the credential of its first start has expired, see cred_expire in conftest.py. A
    node refuses a job that is told to begin earlier, and Slurm ends it.
    """
    state = _state(job)
    assert state in ("RUNNING", "PENDING", "COMPLETING", "COMPLETED"), state
    return state == "COMPLETED"


def _last(run: Path) -> dict[str, Any]:
    """The last event of a run; empty before there is one."""
    events = read_events(run) if (run / "log.jsonl").exists() else []
    return events[-1] if events else {}


def _until(condition, what: str, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@pytest.mark.extended
def test_two_ranks_run_fail_are_requeued_and_resume(slurm, programs, tmp_path: Path):
    data = prepare_clicks(tmp_path / "data")
    flags = "--epochs", "30", "--checkpoint_every", "20", "--log_every", "10"
    folder = tmp_path / "disturbed"
    job = _submit(folder, data, *flags, retries=1)
    run = folder / "run" / "trial-01-seed-0"
    _until(lambda: latest_checkpoint(run) is not None, "no checkpoint was written")
    (start,) = [event for event in read_events(run) if event["event"] == "start"]
    assert start["ranks"] == 2
    # The launcher on this node too, which would otherwise start the ranks again by itself.
    launcher = int(Path(f"/proc/{start['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    ranks = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for process in (launcher, *map(int, ranks)):
        os.kill(process, signal.SIGKILL)
    _until(lambda: _completed(job), "the job did not finish")
    starts = [event for event in read_events(run) if event["event"] == "start"]
    assert len(starts) == 2 and starts[1]["step"] > 0 and starts[1]["restart"] == 0
    word, *program = component_program("train", _arguments(tmp_path / "undisturbed", data, *flags))
    launch(word, 2, *program)
    first, second = (
        json.loads((tmp_path / name / "run" / "metrics.json").read_text())["best"]["runs"][0]["test"]
        for name in ("disturbed", "undisturbed")
    )
    assert first == second


@pytest.mark.extended
def test_a_cancelled_job_saves_where_it_was(slurm, programs, tmp_path: Path):
    data = prepare_clicks(tmp_path / "data")
    flags = "--epochs", "100000", "--checkpoint_every", "1000000", "--log_every", "10"
    job = _submit(tmp_path / "job", data, *flags)
    run = tmp_path / "job" / "run" / "trial-01-seed-0"
    _until(lambda: _last(run).get("step", 0) >= 10, "the run did not start")
    assert _state(job) == "RUNNING"
    if shutil.which("slurmdbd"):
        handle = f"slurm://torchx/{job}"
        assert "State: RUNNING" in _torchx("status", handle) and handle in _torchx("list", "-s", "slurm")
        assert _logs(handle, "1,000,000 steps")
        _torchx("cancel", handle)
    else:
        subprocess.run(["scancel", job], check=True)
    _until(lambda: _state(job) == "CANCELLED", "the job was not cancelled")
    _until(lambda: _last(run)["event"] == "asked_to_end", "the run did not end in order")
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None and int(checkpoint.name.removeprefix("step-")) >= 10
