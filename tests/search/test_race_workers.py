"""Races of several workers, of several ranks, and of a budget of seconds."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import forked, run_ranks
from torch.optim.optimizer import register_optimizer_step_post_hook

from nasrec_torchrec.search.race.config import RaceConfig
from nasrec_torchrec.search.race.run import auto

_CONFIG = RaceConfig(
    trials=8, seed=1, epochs=5, final_seeds=2, finalists=2, max_features=2, slice=("shop",), quiet=True
)


def _work(data: str, out: str) -> None:
    torch.set_num_threads(1)  # more than the cores in all make a step many times slower
    auto(Path(data), Path(out), _CONFIG)


@pytest.mark.slow
def test_workers_share_a_race(data: Path, tmp_path: Path):
    out = tmp_path / "out"
    workers = [forked().Process(target=_work, args=(str(data), str(out))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    results = json.loads((out / "results.json").read_text())
    assert len(results["trials"]) == 8
    for trial in results["trials"]:
        events = [json.loads(line) for line in _log(out, trial["number"], results).read_text().splitlines()]
        # Every epoch was trained by one worker, once.
        steps = [event["step"] for event in events if event["event"] == "validation"]
        assert len(steps) == len(set(steps)) == len(trial["losses"])
    hosts = {event["pid"] for t in results["trials"] for event in _starts(_log(out, t["number"], results))}
    assert len(hosts) == 2


def _log(out: Path, number: int, results: dict[str, Any]) -> Path:
    return (out if number == results["winner"] else out / "trials" / f"{number:04d}") / "log.jsonl"


def _starts(log: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return [event for event in events if event["event"] == "start"]


def _on_ranks(data: str, out: str) -> float:
    results = auto(Path(data), Path(out), replace(_CONFIG, trials=5, features=False))
    return -1.0 if results is None else float(len(results["trials"]))


@pytest.mark.extended
def test_ranks_train_every_trial_together(data: Path, tmp_path: Path):
    assert run_ranks(2, _on_ranks, str(data), str(tmp_path / "out")) == [5.0, -1.0]
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    starts = [s for t in document["trials"] for s in _starts(_log(tmp_path / "out", t["number"], document))]
    assert len(starts) >= 5


class _StepClock:
    """A clock that advances with optimizer steps alone, so that a race takes the same seconds on every machine."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, *_: Any) -> None:
        self.seconds += 0.015


@pytest.mark.slow
def test_a_budget_of_seconds_is_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = _StepClock()
    monkeypatch.setattr(time, "process_time", clock)
    hook = register_optimizer_step_post_hook(clock.advance)
    try:
        config = RaceConfig(budget="20s", clock="cpu", drop_columns=False, trees=False, quiet=True)
        results = auto(data, tmp_path / "out", config)
    finally:
        hook.remove()
    assert results is not None and 14 < clock.seconds <= 20
    phases = {trial["trial"]["phase"] for trial in results["trials"]}
    assert {"recipes", "features", "architectures"} <= phases
    # What no longer fits is replaced by what does.
    sources = {trial["trial"]["source"] for trial in results["trials"]}
    assert "finals" in phases or sources & {"shorter schedule", "student"}
