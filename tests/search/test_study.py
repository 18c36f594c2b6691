import math
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import pytest
import torch
from support import SMALL_SPACE, fails_after, forked, make_candidate

from nasrec_torchrec import SearchSpace
from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import EvolutionConfig, Objective
from nasrec_torchrec.search.evolution import evolve, one_by_one
from nasrec_torchrec.search.pareto import fronts
from nasrec_torchrec.search.storage import open_storage
from nasrec_torchrec.search.study import CandidateStudy
from nasrec_torchrec.search.workers import Worker

EVOLUTION = EvolutionConfig(population=12, generations=6, children=4, tournament=6)


def open_study(storage: str | Path, **options) -> CandidateStudy:
    return CandidateStudy(storage, "search", SMALL_SPACE, options.pop("settings", {"steps": 3}), **options)


def search(study: CandidateStudy, evaluate=make_candidate, objective: Objective | None = None) -> Iterator[Candidate]:
    with study.worker() as worker:
        batches = study.evaluating(worker, lambda group, _: map(evaluate, group), "test")
        yield from evolve(SMALL_SPACE, batches, EVOLUTION, objective)


def _undisturbed(objective: Objective | None = None) -> list[Candidate]:
    return list(evolve(SMALL_SPACE, one_by_one(make_candidate), EVOLUTION, objective))


def test_candidates_have_the_times_of_their_evaluation(tmp_path: Path):
    study = open_study(tmp_path / "study.journal")
    before = datetime.now()
    with study.worker() as worker:
        timed = partial(make_candidate, seconds=2.5)
        batches = study.evaluating(worker, lambda group, _: list(map(timed, group)), "test", together=4)
        list(evolve(SMALL_SPACE, batches, EVOLUTION))
    trials = optuna.load_study(study_name="search", storage=open_storage(tmp_path / "study.journal")).trials
    times = [(trial.datetime_start, trial.datetime_complete) for trial in trials]
    assert all(start and end and (end - start).total_seconds() == 2.5 and start >= before for start, end in times)
    # Those that were evaluated together come one after the other.
    assert times[1][0] == times[0][1]


@pytest.fixture(params=("journal", "sqlite", pytest.param("postgresql", marks=pytest.mark.slow)))
def storage(request, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return f"postgresql+psycopg://{request.getfixturevalue('postgresql')}"
    return {"journal": f"{tmp_path}/study.journal", "sqlite": f"sqlite:///{tmp_path}/study.db"}[request.param]


def test_candidates_come_back_as_they_were(storage: str):
    study = open_study(storage, from_scratch=True)
    assert study.candidates == []
    generator = torch.Generator().manual_seed(0)
    added = [make_candidate(SMALL_SPACE.sample(generator), stopped=bool(n % 2), latency_us=1.5) for n in range(20)]
    for candidate in added:
        study.add(candidate)
    assert open_study(storage).candidates == study.candidates == added
    plain = optuna.load_study(study_name="search", storage=open_storage(storage))
    assert [trial.state.name for trial in plain.trials] == ["COMPLETE", "PRUNED"] * 10


def test_a_candidate_without_a_loss_is_a_failed_trial(storage: str):
    study = open_study(storage, from_scratch=True)
    failed = make_candidate(SMALL_SPACE.sample(torch.Generator().manual_seed(0)), math.inf)
    study.add(failed)
    assert open_study(storage).candidates == [failed]
    (trial,) = optuna.load_study(study_name="search", storage=open_storage(storage)).trials
    assert trial.state.name == "FAIL" and trial.values is None and trial.user_attrs["loss"] is None


def test_a_study_of_another_version_is_refused(tmp_path: Path):
    open_study(tmp_path / "journal")
    plain = optuna.load_study(study_name="search", storage=open_storage(tmp_path / "journal"))
    plain.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={"loss": 0.5}))
    with pytest.raises(ValueError, match=r"trial 0 was written by another version .*; choose another --out or --study"):
        open_study(tmp_path / "journal")


def test_a_search_that_failed_goes_on_where_it_was(tmp_path: Path):
    evaluated: list[Architecture] = []

    for count in (5, 12, 25):
        with pytest.raises(OSError, match="no machine left"):
            list(search(open_study(tmp_path / "journal"), fails_after(evaluated, count)))
    study = open_study(tmp_path / "journal")
    assert len(study.candidates) == 25
    assert list(search(study, fails_after(evaluated, 1000))) == _undisturbed()
    assert len(set(evaluated)) == len(evaluated) == EVOLUTION.evaluations == len(study.candidates)


def test_candidates_are_evaluated_together_in_equal_shares(tmp_path: Path):
    study = open_study(tmp_path / "journal")
    groups: list[int] = []

    def evaluate(architectures: list[Architecture], _: Candidate | None) -> list[Candidate]:
        groups.append(len(architectures))
        return [make_candidate(architecture) for architecture in architectures]

    with study.worker() as worker:
        batches = study.evaluating(worker, evaluate, "test", together=3)
        found = list(evolve(SMALL_SPACE, batches, EVOLUTION))
        assert found == _undisturbed() and groups == [3] * 4 + [3, 1] * 6
        with study.worker():  # one that has not claimed anything yet
            batches = study.evaluating(worker, evaluate, "other", together=8)
            twelve = [SMALL_SPACE.sample(torch.Generator().manual_seed(seed)) for seed in range(100, 112)]
            list(batches(lambda: twelve, None))
    assert groups[16:] == [6, 3, 2, 1]


def test_other_candidates_are_not_mixed_in(tmp_path: Path):
    open_study(tmp_path / "journal").add(make_candidate(SMALL_SPACE.sample(torch.Generator().manual_seed(0))))
    with pytest.raises(ValueError, match="holds candidates of another steps; choose another --out"):
        open_study(tmp_path / "journal", settings={"steps": 4})
    with pytest.raises(ValueError, match="holds candidates of another objective"):
        open_study(tmp_path / "journal", objective=Objective(trade_off=("parameters",)))
    with pytest.raises(ValueError, match="holds candidates of another space"):
        CandidateStudy(tmp_path / "journal", "search", SearchSpace(2), {"steps": 3})
    assert len(open_study(tmp_path / "journal").candidates) == 1
    assert open_study(tmp_path / "journal", settings={"steps": 4}, from_scratch=True).candidates == []


@pytest.mark.parametrize(
    "storage",
    ("nodatabase://me:secret@host/db", "sqlite:////nowhere/at/all.db", "post-gres://host/db", "memory://study.journal"),
)
def test_a_storage_that_cannot_be_opened(storage: str):
    with pytest.raises(ValueError, match=f"storage: {storage.replace('me:secret', '[*]{3}')} cannot be opened: "):
        open_study(storage)


def test_damaged_journals(tmp_path: Path):
    journal = tmp_path / "journal"
    study = open_study(journal)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        study.add(make_candidate(SMALL_SPACE.sample(generator)))
    added = study.candidates
    # Killed in the middle of a line: what was whole is kept, and what follows is not glued to the rest.
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-40])
    again = open_study(journal)
    assert again.candidates == added[:2]
    again.add(added[2])
    assert open_study(journal).candidates == added
    for garbage in (b"not a journal\n", b"\x00\xff" * 50 + b"\n", b"[1]\n"):
        journal.write_bytes(garbage)
        with pytest.raises(ValueError, match="journal cannot be opened: line 1 is not an entry"):
            open_study(journal)


def test_optuna_reads_the_choices(tmp_path: Path):
    study = open_study(f"sqlite:///{tmp_path}/study.db")
    generator = torch.Generator().manual_seed(0)
    architectures = [SMALL_SPACE.sample(generator) for _ in range(60)]
    for architecture in architectures:
        study.add(make_candidate(architecture))
    plain = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/study.db")
    block = architectures[7].blocks[1]
    parameters = plain.trials[7].params
    assert parameters["block1.dense_width"] == block.dense_width
    assert parameters["block1.sparse_reads_0"] == (0 in block.sparse_inputs)
    assert plain.best_value == min(candidate.loss for candidate in study.candidates)
    importances = optuna.importance.get_param_importances(
        plain, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
    )
    assert all(name.endswith("_width") for name in list(importances)[:2]), importances


def test_optuna_reads_the_widths_of_tables(tmp_path: Path):
    space = replace(SMALL_SPACE, embedding_widths=(4, 8, 16), width_tables=("t_shop",))
    study = CandidateStudy(tmp_path / "journal", "search", space, {})
    architecture = space.sample(torch.Generator().manual_seed(0))
    study.add(make_candidate(architecture))
    (trial,) = optuna.load_study(study_name="search", storage=open_storage(tmp_path / "journal")).trials
    assert trial.params["embedding_width.t_shop"] == dict(architecture.embedding_widths)["t_shop"]
    assert trial.distributions["embedding_width.t_shop"].choices == (4, 8, 16)
    assert trial.user_attrs["table_bytes"] == 400


def test_optuna_finds_the_same_front(tmp_path: Path):
    objective = Objective(trade_off=("multiply_adds",))

    def score(architecture: Architecture) -> Candidate:
        width = sum(block.dense_width for block in architecture.blocks)
        return make_candidate(architecture, multiply_adds=100 * width + len(architecture.blocks[0].dense_inputs))

    study = open_study(f"sqlite:///{tmp_path}/study.db", objective=objective)
    assert len(list(search(study, score, objective))) == EVOLUTION.evaluations
    plain = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/study.db")
    assert plain.metric_names == ["log_loss", "multiply_adds"]
    values = [objective.values(candidate) for candidate in study.candidates]
    assert sorted(tuple(trial.values) for trial in plain.best_trials) == sorted(values[i] for i in fronts(values)[0])


def test_the_first_batch_and_the_first_claim_count(storage: str):
    study = open_study(storage, from_scratch=True)
    with study.worker() as one, study.worker() as other:
        assert one.agree("batch", lambda: [{"a": 1}, 2]) == [{"a": 1}, 2]
        assert other.agree("batch", lambda: pytest.fail("there is one already")) == [{"a": 1}, 2]
        mine = one.claim("x")
        assert mine is not None and other.claim("x") is None and other.claim("y") is not None
        one.release(mine)
        assert other.claim("x") is not None


def _hold(storage: Path, claimed: Connection) -> None:
    with Worker(open_storage(storage), "w", lease=0.6) as worker:
        claimed.send(worker.claim("x"))
        time.sleep(600)


def test_claims_of_workers_without_a_heartbeat_are_free(tmp_path: Path):
    """A stopped process holds its lock, as one on another machine does as far as this one can tell."""
    received, claimed = forked().Pipe(duplex=False)
    there = forked().Process(target=_hold, args=(tmp_path / "journal", claimed))
    there.start()
    try:
        assert received.recv() is not None
        with Worker(open_storage(tmp_path / "journal"), "w", lease=0.6) as here:
            time.sleep(1.0)
            assert here.claim("x") is None, "it gave signs of life"
            os.kill(there.pid, signal.SIGSTOP)
            assert here.claim("x") is None
            # A heartbeat that it was writing may still arrive.
            deadline = time.monotonic() + 10
            while here.claim("x") is None:
                assert time.monotonic() < deadline
                time.sleep(0.7)
    finally:
        there.kill()
        there.join()


def _work(storage: str, found: Connection) -> None:
    def slowly(architecture: Architecture) -> Candidate:
        time.sleep(0.08)
        return make_candidate(architecture, seconds=float(os.getpid()))

    for candidate in search(open_study(storage), slowly):
        found.send(candidate.architecture)


def _start(storage: str) -> tuple[BaseProcess, Connection]:
    received, found = forked().Pipe(duplex=False)
    process = forked().Process(target=_work, args=(storage, found))
    process.start()
    found.close()
    return process, received


def _received(connection: Connection) -> Iterator[Architecture]:
    with suppress(EOFError):
        while True:
            yield connection.recv()


@pytest.mark.extended
def test_two_workers_killed_again_and_again_lose_no_candidate(storage: str):
    open_study(storage, from_scratch=True)
    rng = random.Random(0)
    reported: set[Architecture] = set()
    for _ in range(3):
        for process, received in [_start(storage), _start(storage)]:
            reported |= {received.recv() for _ in range(rng.randint(1, 8))}
            process.kill()
            process.join()
    held = [candidate.architecture for candidate in open_study(storage).candidates]
    assert reported <= set(held) and len(held) < EVOLUTION.evaluations
    workers = [_start(storage), _start(storage)]
    found = [list(_received(received)) for _, received in workers]
    for process, _ in workers:
        process.join()
        assert process.exitcode == 0
    undisturbed = [candidate.architecture for candidate in _undisturbed()]
    # Both report the whole search, which is the one that a single worker would have made.
    assert found == [undisturbed] * 2
    study = open_study(storage)
    trials = optuna.load_study(study_name="search", storage=open_storage(storage)).trials
    assert len(trials) == len(study.candidates) == EVOLUTION.evaluations, "each candidate once"
    assert {candidate.architecture for candidate in study.candidates} == set(undisturbed)
    assert len({candidate.seconds for candidate in study.candidates}) >= 4, "several processes took part"
