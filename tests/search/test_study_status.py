"""What `nasrec status` says of a search while it runs, and afterwards."""

import json
import math
import os
import re
import time
from pathlib import Path

import pytest
import torch
from support import SMALL_SPACE, make_candidate, run_program

from nasrec_torchrec.runs.names import CONFIG, JOURNAL, RACE_JOURNAL, RESULTS
from nasrec_torchrec.search.race.book import Book
from nasrec_torchrec.search.race_warnings import race_warnings
from nasrec_torchrec.search.study import CandidateStudy
from nasrec_torchrec.search.study_status import read_study_status


def test_a_search_is_shown_while_it_runs_and_afterwards(tmp_path: Path):
    assert read_study_status(tmp_path) is None
    study = CandidateStudy(tmp_path / JOURNAL, "search", SMALL_SPACE, {"steps": 3})
    drawn = [SMALL_SPACE.sample(torch.Generator().manual_seed(seed)) for seed in range(4)]
    for architecture, loss in zip(drawn, (0.5, 0.4, math.inf, 0.45), strict=True):
        study.add(make_candidate(architecture, loss))
    study.describe(10, ["validation: 16.60% of the rows are clicks"])
    stopped = read_study_status(tmp_path)
    assert stopped is not None and (stopped.kind, stopped.state) == ("search", "stopped")
    assert (stopped.finished, stopped.failed, stopped.total, stopped.best) == (3, 1, 10, 0.4)
    assert stopped.seconds_left is None and not stopped.workers
    with study.worker() as worker:
        claim = worker.claim("a network")
        running = run_program("nasrec", "status", tmp_path).stdout
        assert claim is not None
        worker.release(claim)
        between = json.loads(run_program("nasrec", "status", tmp_path, "--json").stdout)[str(tmp_path)]
    assert f"{tmp_path}: search, running, 4 of 10 trials (1 failed), " in running and " left" in running
    assert "best validation loss so far 0.40000: trial 1" in running and re.search(r"a network, for \d+ s\b", running)
    assert "\n  warning: validation: 16.60% of the rows are clicks" in running
    assert between["state"] == "running" and between["workers"][0]["claims"] == []
    (tmp_path / RESULTS).write_text('{"evaluated": 4}')  # asked to end before the others were drawn
    partial = read_study_status(tmp_path)
    assert partial is not None and partial.state == "stopped"
    (tmp_path / RESULTS).write_text('{"evaluated": 10}')
    ended = read_study_status(tmp_path)
    assert ended is not None and ended.state == "ended"
    for flag in ("--follow", "--watch"):
        assert run_program("nasrec", "status", tmp_path, flag).stdout.count("search, ended") == 1
    os.utime(tmp_path / RESULTS, (time.time() - 60,) * 2)
    with study.worker():  # resumes what was stopped a minute ago
        resumed = read_study_status(tmp_path)
    assert resumed is not None and resumed.state == "running"
    # Four candidates took a quarter of a second each. What passed between two processes does not count.
    assert resumed.seconds_left == pytest.approx(6 * 0.25)


def test_the_time_left_of_a_race_follows_from_its_budget(tmp_path: Path):
    book = Book(tmp_path / RACE_JOURNAL, {}, from_scratch=False)
    book.spend(600)
    (tmp_path / CONFIG).write_text("budget: 30min\n")
    with book.worker():
        running = read_study_status(tmp_path)
    assert running is not None and (running.kind, running.state) == ("race", "running")
    assert running.seconds_left == pytest.approx(1200)


def test_a_race_says_each_warning_once():
    data = ["validation: 16.60% of the rows are clicks"]
    dlrm = {"validation_loss": "step 9: worse than always predicting", "splits_0": data[0]}
    dcn = {"validation_loss": "step 7: worse than always predicting", "auc": "step 7: guessing"}
    trainings: list[tuple[str, dict[str, str]]] = [("dlrm 64", dlrm), ("dcn 64", dcn), ("mlp 64", {})]
    assert race_warnings(data, trainings, dlrm) == [
        *data,
        "2 of 3 trainings (the winner's among them): step 9: worse than always predicting",
        "1 of 3 trainings (not the winner's, but such as dcn 64): step 7: guessing",
    ]
    assert race_warnings((), trainings)[-1] == "1 of 3 trainings (such as dcn 64): step 7: guessing"
    assert race_warnings((), [("mlp 64", {})]) == []
