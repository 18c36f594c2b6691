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
from support import click_table, forked, make_click_data, make_schema
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from nasrec_torchrec.cli.main import main
from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.training.guard import TERMINATED

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
KILLS = 5
# What our torchx components give a launcher: without the second one, gloo often finds no peer after a restart.
VARIABLES = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("restarts")
    schema = make_schema()
    pq.write_table(click_table(make_click_data(schema, 1000), schema), folder / "log.parquet")
    split = SplitConfig("time", validation_share=0, test_share=0)
    prepare(RawData((str(folder / "log.parquet"),), schema, split=split), folder / "data")
    return folder / "data"


class _Run:
    """What ``torchrun --max-restarts`` does, by its own agent, with ranks that are forked and need import nothing."""

    def __init__(self, data: Path, out: Path) -> None:
        self.folder = out.with_name(f"{out.name}-launch-{len(list(out.parent.glob(f'{out.name}-launch-*')))}")
        self.folder.mkdir()
        self.process = forked().Process(target=_launch, args=(self.folder, _flags(data, out)))
        self.process.start()

    def ranks(self) -> list[int]:
        """The processes of the ranks that were started last."""
        return [int(file.read_text()) for file in self.folder.glob("*.pid")]

    def output(self) -> str:
        return (self.folder / "output").read_text()

    def wait(self, seconds: float) -> int:
        self.process.join(seconds)
        assert self.process.exitcode is not None, self.output()[-3000:]
        return self.process.exitcode

    def wait_for_step(self, out: Path, step: int) -> None:
        while max(_logged(out), default=0) < step:
            assert self.process.is_alive(), self.output()[-3000:]
            time.sleep(0.03)


def _launch(folder: Path, flags: list[str]) -> None:
    os.environ |= VARIABLES
    _print_into(folder)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=KILLS,
        start_method="fork",  # of this process, which has made the slow imports; a fork server would repeat them
        local_addr="localhost",
    )
    try:
        elastic_launch(config, _rank)(folder, flags)
    except SignalException:
        sys.exit(1)


def _rank(folder: Path, flags: list[str]) -> None:
    (folder / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    _print_into(folder)
    torch.set_num_threads(1)
    main(["supernet", *flags])


def _print_into(folder: Path) -> None:
    with (folder / "output").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _flags(data: Path, out: Path) -> list[str]:
    flags = ["--data", str(data), "--out", str(out), "--epochs", str(STEPS // 20)]
    flags += ["--num_blocks", "2", "--dense_widths", "[16,32]", "--sparse_widths", "[4,8]", "--batch_size", "50"]
    return [*flags, "--learning_rate", "0.05", "--full_path_steps", "50", "--log_every", "1", "--checkpoint_every", "4"]


def _torchrun(data: Path, out: Path) -> subprocess.Popen[str]:
    """One rank, started as a user does."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "--max-restarts", "1"]
    return subprocess.Popen(
        [sys.executable, *command, "-m", "apps.train_supernet", *_flags(data, out)],
        cwd=ROOT,
        env=os.environ | VARIABLES,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _logged(out: Path) -> dict[int, float]:
    file = out / "log.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    return {entry["step"]: entry["loss"] for entry in entries if entry["event"] == "train"}


@pytest.fixture(scope="module")
def undisturbed(data: Path) -> Path:
    out = data.with_name("undisturbed")
    run = _Run(data, out)
    assert run.wait(300) == 0, run.output()[-3000:]
    assert len(_logged(out)) == STEPS
    return out


@pytest.mark.extended
def test_killed_ranks_cost_nothing_but_time(data: Path, undisturbed: Path):
    out = data.with_name("killed")
    run = _Run(data, out)
    rng = random.Random(0)
    step = 3  # before the first checkpoint
    for _ in range(KILLS):
        run.wait_for_step(out, step)
        os.kill(rng.choice(run.ranks()), signal.SIGKILL)
        for folder in sorted((out / "checkpoints").glob("step-*"))[-1:]:  # older ones may be on their way out
            assert (folder / ".metadata").exists(), "a checkpoint has its name before it is complete"
        step = max(_logged(out)) + rng.randrange(5, 10)  # of the ranks that are started next
    assert run.wait(300) == 0, run.output()[-3000:]
    assert "resumes from step" in run.output(), run.output()[-3000:]
    assert "another rank ended" in run.output() and "third_party/gloo" not in run.output(), run.output()[-3000:]
    assert _logged(out) == _logged(undisturbed)
    weights, expected = (load_model(folder)[1].state_dict() for folder in (out, undisturbed))
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())


@pytest.mark.extended
def test_sigterm_saves_and_the_next_start_goes_on(data: Path, undisturbed: Path):
    out = data.with_name("preempted")
    run = _Run(data, out)
    run.wait_for_step(out, 30)
    run.process.terminate()
    assert run.wait(120) != 0 and "asked to end; step" in run.output(), run.output()[-3000:]
    assert "Traceback" not in run.output().split("asked to end")[0]
    saved = json.loads((sorted((out / "checkpoints").glob("step-*"))[-1] / "progress.json").read_text())["step"]
    assert 30 <= saved < STEPS and saved == max(_logged(out))
    run = _Run(data, out)
    assert run.wait(300) == 0 and f"resumes from step {saved} of {STEPS}" in run.output(), run.output()[-3000:]
    assert _logged(out) == _logged(undisturbed)


@pytest.mark.extended
@pytest.mark.skipif(sys.platform != "linux", reason="finds the rank in /proc")
def test_one_process_ends_with_the_code_of_sigterm(data: Path):
    out = data.with_name("alone")
    process = _torchrun(data, out)
    while max(_logged(out), default=0) < 5:
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.03)
    (rank,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(rank), signal.SIGTERM)
    # The launcher takes it for a failure, and starts the rank again: it finishes.
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert f"exitcode: {TERMINATED}" in output.replace("exit code", "exitcode"), output[-3000:]
    assert len(_logged(out)) == STEPS
