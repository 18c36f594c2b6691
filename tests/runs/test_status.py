import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from support import SMALL_SPACE, in_step, make_click_files, make_schema, prepare_clicks, run_program

from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs.log import read_events
from nasrec_torchrec.runs.status import read_status, runs_under
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.profiling import parse_steps
from nasrec_torchrec.training.trainer import Trainer

SCHEMA = make_schema()
MODEL = ModelDescription(SCHEMA, SMALL_SPACE.sample(torch.Generator().manual_seed(3)))
CONFIG = TrainConfig(epochs=2, batch_size=40, learning_rate=0.05, log_every=2, checkpoint_every=4)  # 12 steps an epoch


def test_status_of_a_run_that_was_ended_and_went_on(one_rank, tmp_path: Path):
    data, validation = make_click_files(SCHEMA, 500), make_click_files(SCHEMA, 100, seed=5)
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="cannot be read"):
        read_status(folder)
    ended = Trainer(MODEL, CONFIG, folder, torch.device("cpu"))
    in_step(ended, 14, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        ended.train(data, validation)
    found = read_status(folder)
    assert (found.state, found.step, found.total_steps, found.starts) == ("asked to end", 15, 24, 1)
    assert found.checkpoint == "step-00000015" and found.seconds_left is None
    Trainer(MODEL, CONFIG, folder, torch.device("cpu")).train(data, validation)
    found = read_status(folder)
    assert (found.state, found.step, found.starts, found.ranks) == ("ended", 24, 2, 1)
    assert found.validation["step"] == 24 and found.checkpoint == "step-00000024"
    assert "ended, step 24 of 24 (100%), 1 rank(s), started 2 time(s)" in str(found)
    # While it ran.
    lines = (folder / "log.jsonl").read_text().splitlines()
    running = [line for line in lines[:-1] if json.loads(line)["step"] <= 18]
    (folder / "log.jsonl").write_text("\n".join(running) + '\n{"event": "tra')
    last = json.loads(running[-1])
    found = read_status(folder, patience=60, now=last["time"] + 30)
    assert found.state == "running" and found.step == last["step"]
    assert found.seconds_left == pytest.approx((24 - found.step) * 40 / found.samples_per_second)
    assert read_status(folder, patience=60, now=last["time"] + 90).state == "silent"
    assert runs_under(tmp_path) == [folder] == runs_under(folder)


@pytest.mark.parametrize(
    "damage", ["5", '{"event": "train"}', '{"event": 1, "step": 2, "time": 3}', "[" * 100_000, "\udcff"]
)
def test_a_damaged_line_of_a_log_is_no_event(one_rank, tmp_path: Path, damage: str):
    data = make_click_files(SCHEMA, 100)
    Trainer(MODEL, CONFIG, tmp_path, torch.device("cpu")).train(data)
    before = read_status(tmp_path, now=0)
    assert before.age == 0  # by a clock that was set back
    with (tmp_path / "log.jsonl").open("a", errors="surrogateescape") as file:
        file.write(damage + "\n")
    assert read_status(tmp_path, now=0) == before
    # Nor does it keep the run from going on.
    Trainer(MODEL, CONFIG, tmp_path, torch.device("cpu")).train(data)
    assert read_status(tmp_path).starts == 2
    (tmp_path / "log.jsonl").write_text('{"event": "start", "step": 0, "time": 0}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl: damaged: KeyError\('total_steps'\)"):
        read_status(tmp_path)


def test_a_start_is_recorded(one_rank, tmp_path: Path):
    Trainer(MODEL, CONFIG, tmp_path, torch.device("cpu")).train(make_click_files(SCHEMA, 100))
    (start,) = [event for event in read_events(tmp_path) if event["event"] == "start"]
    assert start["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0] and start["ranks"] == 1
    assert start["commit"] and start["command"] == "", "no command line made it start"


def test_steps_are_profiled_on_demand(one_rank, tmp_path: Path):
    data = make_click_files(SCHEMA, 500)
    trainer = Trainer(MODEL, replace(CONFIG, epochs=1, profile="3:5"), tmp_path, torch.device("cpu"))
    trainer.train(data)
    events = json.loads((tmp_path / "profile" / "steps-3-5-rank-0.json").read_text())["traceEvents"]
    # The dense optimizer steps once a training step.
    steps = [event for event in events if event.get("name", "").startswith("Optimizer.step#Adagrad")]
    assert len(steps) == 3
    assert "aten::addmm" in (tmp_path / "profile" / "steps-3-5-rank-0.txt").read_text()


@pytest.mark.parametrize("text", ["", "5", "5:3", "0:4", "a:b", "1:2:3"])
def test_wrong_ranges_of_steps(text: str):
    with pytest.raises(ValueError, match="profile: expected first:last"):
        parse_steps(text)


@pytest.mark.slow
def test_a_recorded_configuration_repeats_the_run(tmp_path: Path):
    prepared = prepare_clicks(tmp_path / "data")

    def train(*flags: str) -> dict[str, float]:
        done = run_program("-m", "apps.train", *flags, "--json")
        assert done.returncode == 0, done.stderr[-2000:]
        (run,) = json.loads(done.stdout.splitlines()[-1])["runs"]
        return run["validation"] | run["test"]

    first, second = tmp_path / "first", tmp_path / "second"
    flags = (
        "--data",
        str(prepared),
        "--batch_size",
        "40",
        "--epochs",
        "1",
        "--dropout",
        "0.3",
        "--seed",
        "7",
        "--architecture",
        "mlp",
    )
    metrics = train(*flags, "--out", str(first))
    text = (first / "config.yaml").read_text()
    assert (
        f"# command: python -m apps.train --data {prepared} " in text
        and "# commit: " in text
        and "# versions: " in text
    )
    assert yaml.safe_load(text)["dropout"] == 0.3
    assert train("--config", str(first / "config.yaml"), "--out", str(second)) == metrics
    status = run_program("-m", "apps.status", first)
    assert status.returncode == 0 and "ended, step 10 of 10 (100%)" in status.stdout, status
