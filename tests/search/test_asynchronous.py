"""Searches whose workers do not wait for each other."""

import json
import os
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import pytest
from support import SMALL_SPACE, fails_after, forked, make_candidate

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.search.asynchronous import Litters, evolve_asynchronously
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import EvolutionConfig, Objective
from nasrec_torchrec.search.storage import open_storage
from nasrec_torchrec.search.study import CandidateStudy

EVOLUTION = EvolutionConfig(population=14, generations=8, children=4, tournament=6, asynchronous=True)


def _open(journal: Path, objective: Objective | None = None) -> CandidateStudy:
    return CandidateStudy(journal, "search", SMALL_SPACE, {"steps": 3}, objective)


def _search(
    study: CandidateStudy, evaluate=make_candidate, objective: Objective | None = None, together: int = 1
) -> Iterator[Candidate]:
    litters = Litters(SMALL_SPACE, EVOLUTION, objective)
    with study.worker() as worker:
        yield from evolve_asynchronously(
            study, worker, lambda group, _: map(evaluate, group), "test", litters, together
        )


def _replayed(journal: Path, objective: Objective | None = None) -> None:
    """Draws every litter again from what the log says that it was drawn from."""
    study = _open(journal, objective)
    draw = Litters(SMALL_SPACE, EVOLUTION, objective).draw
    log = optuna.load_study(study_name="search.workers", storage=open_storage(journal)).trials
    drawn: dict[Architecture, None] = {}
    for batch in (trial.user_attrs for trial in log if "batch" in trial.user_attrs):
        number = int(batch["batch"].rpartition("/")[2])
        members = [Architecture.from_json(json.dumps(batch[f"member{index}"])) for index in range(_size(number))]
        finished, before = study.candidates[: batch["after"]], set(list(drawn)[: batch["drawn"]])
        assert draw(number, finished, before) == members
        drawn |= dict.fromkeys(member.canonical() for member in members)


def _size(number: int) -> int:
    return 2 if number == 3 else 4  # 14 founders are three litters and a half


@pytest.mark.parametrize("objective", [None, Objective(trade_off=("multiply_adds",))])
def test_one_worker_evaluates_each_network_once_and_its_log_repeats(tmp_path: Path, objective: Objective | None):
    found = list(_search(_open(tmp_path / "journal", objective), objective=objective, together=3))
    assert len(found) == len({one.architecture.canonical() for one in found}) == EVOLUTION.evaluations == 46
    if objective is None:  # else a front of two costs, on which no loss has to fall
        assert sum(one.loss for one in found[-8:]) < sum(one.loss for one in found[:8])
    _replayed(tmp_path / "journal", objective)


def test_a_search_that_failed_resumes_and_evaluates_nothing_twice(tmp_path: Path):
    evaluated: list[Architecture] = []

    for count in (5, 17, 31):
        with pytest.raises(OSError, match="no machine left"):
            list(_search(_open(tmp_path / "journal"), fails_after(evaluated, count)))
    assert len(list(_search(_open(tmp_path / "journal"), fails_after(evaluated, 1000)))) == EVOLUTION.evaluations
    assert len(set(evaluated)) == len(evaluated) == EVOLUTION.evaluations
    _replayed(tmp_path / "journal")


def _work(journal: Path) -> None:
    def slowly(architecture: Architecture) -> Candidate:
        time.sleep(0.03)
        return make_candidate(architecture, seconds=float(os.getpid()))

    list(_search(_open(journal), slowly))


def test_workers_that_are_killed_lose_no_candidate(tmp_path: Path):
    journal = tmp_path / "journal"
    _open(journal)

    def start() -> BaseProcess:
        process = forked().Process(target=_work, args=(journal,))
        process.start()
        return process

    killed, *others = [start() for _ in range(3)]
    while len(_open(journal).candidates) < 10:
        time.sleep(0.05)
    killed.kill()
    for process in (killed, *others):
        process.join()
    assert [process.exitcode for process in others] == [0, 0]
    candidates = _open(journal).candidates
    assert EVOLUTION.evaluations - 4 <= len(candidates) <= EVOLUTION.evaluations
    assert len({candidate.seconds for candidate in candidates}) >= 2, "several processes took part"
    trials = optuna.load_study(study_name="search", storage=open_storage(journal)).trials
    assert len(trials) <= len(candidates) + 4, "nothing is evaluated twice, but what two draw at the same moment"
    _replayed(journal)


def test_a_slow_worker_holds_nobody_up(tmp_path: Path):
    """One candidate takes as long as the other worker needs for the whole rest of the search."""
    journal, others_done = tmp_path / "journal", threading.Event()
    finished: list[int] = []

    def stuck(architecture: Architecture) -> Candidate:
        assert others_done.wait(60)
        return make_candidate(architecture)

    slow = threading.Thread(target=lambda: finished.append(len(list(_search(_open(journal), stuck)))))
    slow.start()
    study = _open(journal)
    quick = _search(study)
    for count, _ in enumerate(quick, start=1):
        if count == EVOLUTION.evaluations - 4:
            others_done.set()
    slow.join()
    assert count == EVOLUTION.evaluations and finished == [EVOLUTION.evaluations]
