"""One model trained day after day: measured as yesterday's package would score, resumed after a kill."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support import run_program, run_ranks

from nasrec_torchrec import training
from nasrec_torchrec.datasets.features import FIRST_WORD, UNKNOWN, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.words import DICTIONARIES, read_dictionary
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.training import incremental
from nasrec_torchrec.training.step import TrainingStep

CONFIG = training.TrainConfig(batch_size=50, learning_rate=0.1)
MLP = Baseline("mlp", over_layers=(8, 1))
DAYS = ("2026-11-01", "2026-11-02", "2026-11-03")


def _day(folder: Path, number: int) -> None:
    """Users from ``number`` on, so that every day has one that is new and lacks one of the day before."""
    rng = np.random.default_rng(number)
    user, shop = rng.integers(number, number + 8, 400), rng.integers(0, 90, 400)
    clicked = rng.random(400) < np.where(user % 2, 0.9, 0.1)
    raw = folder.parent.with_name("raw") / f"{folder.name}.parquet"
    raw.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"clicked": clicked.astype(int), "user": user, "shop": shop}), raw)
    sparse = (SparseFeature("user", ids="dictionary"), SparseFeature("shop", 50, ids="hash"))
    prepare(RawData((str(raw),), Schema("clicked", (), sparse, 8)), folder)


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("incremental") / "days"
    folder.mkdir()
    for number, day in enumerate(DAYS):
        _day(folder / day, number)
    return folder


@pytest.fixture(scope="module")
def finished(days: Path) -> tuple[Path, dict[str, Any]]:
    """A run over all days that nothing disturbed."""
    out = days.with_name("run")
    results = training.run_incremental(days, out, CONFIG, MLP)
    assert results is not None
    return out, results


def _weights(out: Path) -> dict[str, torch.Tensor]:
    return load_model(out)[1].state_dict()


def test_a_day_is_measured_as_the_model_of_the_day_before_would_score_it(
    days: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path
):
    only_first = tmp_path / "days"
    only_first.mkdir()
    (only_first / DAYS[0]).symlink_to(days / DAYS[0])
    training.run_incremental(only_first, tmp_path / "run", CONFIG, MLP)
    _, model = load_model(tmp_path / "run")
    first, second = (read_dictionary(days / day / DICTIONARIES / "t_user.parquet").to_pylist() for day in DAYS[:2])
    assert set(second) - set(first) and first[0] != second[0], "a new word, and words that have other ids"
    rows = [open_split(days / DAYS[1], split).load() for split in ("train", "validation", "test")]
    logits, labels = [], []
    for part in rows:
        ids = part.sparse.values().clone()
        for position in range(len(part.labels)):  # the users come before the shops
            word = second[int(ids[position]) - FIRST_WORD]
            ids[position] = FIRST_WORD + first.index(word) if word in first else UNKNOWN
        sparse = type(part.sparse)(part.sparse.keys(), ids, lengths=part.sparse.lengths())
        with torch.no_grad():
            logits.append(model(part.dense, sparse).flatten())
        labels.append(part.labels.float())
    expected = click_metrics(torch.cat(logits), torch.cat(labels))
    measured = finished[1]["days"][1]["progressive"]
    assert measured["rows"] == 400 and measured["auc"] == pytest.approx(expected.auc, abs=1e-6)
    assert measured["log_loss"] == pytest.approx(expected.log_loss, abs=1e-6)


def test_every_day_is_in_the_record_the_log_and_the_picture(finished: tuple[Path, dict[str, Any]]):
    out, results = finished
    assert json.loads((out / "results.json").read_text()) == results
    assert [day["day"] for day in results["days"]] == list(DAYS)
    first, *later = (day["progressive"] for day in results["days"])
    assert first is None and all(metrics["auc"] > 0.7 for metrics in later), results
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    logged = [event for event in events if event["event"] == "progressive"]
    assert [event["log_loss"] for event in logged] == [metrics["log_loss"] for metrics in later]
    assert (out / "progressive.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("killed_at", [("2026-11-02", 3), ("2026-11-03", 0)], ids=str)
def test_a_killed_run_ends_with_the_same_weights_and_metrics(
    days: Path,
    finished: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_at: tuple[str, int],
):
    out = tmp_path / "run"
    run_step = TrainingStep.run

    def killed(self: TrainingStep, step: int, *arguments: Any) -> Any:
        if step == killed_at[1] and (out / "days" / killed_at[0]).exists():
            raise KeyboardInterrupt  # nothing is saved in between
        return run_step(self, step, *arguments)

    config = replace(CONFIG, checkpoint_every=2)
    monkeypatch.setattr(TrainingStep, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        training.run_incremental(days, out, config, MLP)
    monkeypatch.undo()
    results = training.run_incremental(days, out, config, MLP)
    assert results is not None
    for mine, theirs in zip(results["days"], finished[1]["days"], strict=True):
        assert mine["progressive"] == theirs["progressive"]
    for name, value in _weights(out).items():
        assert torch.equal(value, _weights(finished[0])[name]), name


_AT_PUBLICATION = -1


def _run_days(days: str, out: str, day: str, step: int) -> None:
    """Trains on all days; the last rank kills itself at a step of one, or where its model becomes that of the run."""
    run_step, publish = TrainingStep.run, incremental.promote

    def die_in(now: int) -> None:
        if now == step and (Path(out) / "days" / day).exists() and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def killed_step(self: TrainingStep, now: int, *arguments: Any) -> Any:
        die_in(now)
        return run_step(self, now, *arguments)

    def killed_publication(*arguments: Any) -> None:
        die_in(_AT_PUBLICATION)
        publish(*arguments)

    if day:
        TrainingStep.run, incremental.promote = killed_step, killed_publication  # this process is a test's own
    training.run_incremental(days, out, replace(CONFIG, checkpoint_every=2), MLP)


@pytest.mark.slow
@pytest.mark.parametrize("ranks, day, step", [(1, DAYS[1], 3), (1, DAYS[1], _AT_PUBLICATION), (2, DAYS[2], 3)])
def test_after_a_sigkill_the_same_command_ends_as_an_undisturbed_run(
    days: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path, ranks: int, day: str, step: int
):
    out = tmp_path / "run"
    with pytest.raises(mp.ProcessExitedException) as died:
        run_ranks(ranks, _run_days, str(days), str(out), day, step)
    assert died.value.signal_name == "SIGKILL"
    known = json.loads((out / "results.json").read_text())["days"]
    assert [one["day"] for one in known] == list(DAYS[: DAYS.index(day) + 1])
    run_ranks(ranks, _run_days, str(days), str(out), "", 0)
    results = json.loads((out / "results.json").read_text())
    exact = ranks == 1  # two ranks add up in another order than the undisturbed one
    for mine, theirs in zip(results["days"], finished[1]["days"], strict=True):
        assert mine["training_seconds"] is not None
        assert mine["progressive"] == (
            theirs["progressive"] if exact else pytest.approx(theirs["progressive"], abs=1e-4)
        )
    expected = _weights(finished[0])
    for name, value in _weights(out).items():
        torch.testing.assert_close(value, expected[name], atol=0 if exact else 1e-4, rtol=0, msg=name)


def test_a_new_day_is_added_by_the_same_command_and_an_earlier_one_is_refused(days: Path, tmp_path: Path):
    some = tmp_path / "days"
    some.mkdir()
    for day in DAYS[1:]:
        (some / day).symlink_to(days / day)
    words = ["incremental", "--data", some, "--out", tmp_path / "run", "--kind", "mlp", "--batch_size", 50]
    done = run_program("nasrec", *words)
    assert done.returncode == 0 and "2026-11-03" in done.stdout, done.stderr
    before = _weights(tmp_path / "run")
    again = run_program("nasrec", *words)
    assert again.returncode == 0 and all(torch.equal(v, before[k]) for k, v in _weights(tmp_path / "run").items())
    refused = run_program("nasrec", *words, "--learning_rate", "0.3")
    assert refused.returncode == 2 and "settings.learning_rate" in refused.stderr
    _day(some / "2026-11-04", 3)
    added = run_program("nasrec", *words)
    assert added.returncode == 0 and "2026-11-04: before training: AUC" in added.stderr, added.stderr
    assert added.stderr.count("before training") == 1
    (some / DAYS[0]).symlink_to(days / DAYS[0])
    late = run_program("nasrec", *words)
    assert late.returncode == 2 and "a later day, 2026-11-04, was trained on already" in late.stderr, late.stderr


def test_folders_that_are_no_days_are_refused(days: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="one for each day, such as 2026-11-01/; found none"):
        training.run_incremental(tmp_path, tmp_path / "run", CONFIG, MLP)
    for name in ("day_2", "day_10"):
        (tmp_path / name).symlink_to(days / DAYS[0])
    with pytest.raises(ValueError, match=r"of the same length.*found day_10 and day_2"):
        training.run_incremental(tmp_path, tmp_path / "run", CONFIG, MLP)
    (tmp_path / "day_3").mkdir()
    with pytest.raises(ValueError, match="found day_3/, which holds none"):
        training.run_incremental(tmp_path, tmp_path / "run", CONFIG, MLP)
