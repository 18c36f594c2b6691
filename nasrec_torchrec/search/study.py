"""Storage for the candidates of a search: an Optuna study with a finished trial for each candidate."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState, create_trial

from nasrec_torchrec.architecture import Architecture, recorded
from nasrec_torchrec.runs.redaction import redact
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import Objective
from nasrec_torchrec.search.evolution import EvaluateBatch, Propose
from nasrec_torchrec.search.storage import WORKERS, open_storage, open_study
from nasrec_torchrec.search.workers import Worker
from nasrec_torchrec.search_space import SearchSpace

EvaluateTogether = Callable[[list[Architecture], Candidate | None], Iterable[Candidate]]

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
POLL_SECONDS = 0.2


class CandidateStudy:
    """The candidates of a search, in an Optuna study that outlives a killed process and that several processes share.

    Every candidate is one finished trial: a pruned one if it lost a race, a failed one if its loss is not a number. The
    values of a trial are what the search minimizes and its parameters are the choices of each block, so Optuna's
    dashboard, parameter importances and plots can read them. Through a second study, ``<name>.workers``, the workers
    agree on who evaluates what.

    Args:
        storage: path of a journal file, any database URL that Optuna supports (``sqlite:///...``,
            ``postgresql://...``), or an open storage of Optuna's.
        name: name of the study.
        space: search space of the candidates.
        settings: JSON values that all candidates of a study must share for their losses to be comparable.
        objective: objective that yields the values.
        from_scratch: whether to delete the candidates in the study first.

    Raises:
        ValueError: If the storage cannot be opened, or the study holds candidates with other settings.
    """

    def __init__(
        self,
        storage: str | Path | BaseStorage,
        name: str,
        space: SearchSpace,
        settings: dict[str, Any],
        objective: Objective | None = None,
        from_scratch: bool = False,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._objective = space, objective or Objective()
        self.place = redact(str(storage))
        self._storage = open_storage(storage)
        self._workers = name + WORKERS
        settings = settings | {"space": recorded(space), "objective": asdict(self._objective)}
        self._study, differing = open_study(self._storage, name, settings, self._objective.names, from_scratch)
        if differing:
            raise ValueError(
                f"{self.place}: the study {name!r} holds candidates of another {', '.join(differing)}; "
                "choose another --out or --study, or --resume never to start from scratch"
            )
        self._known: dict[Architecture, Candidate] = {}
        self._read_numbers: set[int] = set()
        self._read()

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates in the order in which they were recorded, each once."""
        self._read()
        return list(self._known.values())

    def describe(self, evaluations: int, warnings: Sequence[str]) -> None:
        """Records how many candidates the search draws, and what to warn of, for whoever looks at it while it runs."""
        self._study.set_user_attr("evaluations", evaluations)
        self._study.set_user_attr("warnings", list(warnings))

    def evaluating(self, worker: Worker, evaluate: EvaluateTogether, search: Any, together: int = 1) -> EvaluateBatch:
        """Evaluates the batches of a search together with all other workers of the same search.

        A candidate that the study holds is not evaluated again, and one that another live worker is evaluating is
        waited for. Since the draws of a search depend only on its seed and its candidates, running it again resumes
        where it was killed and evaluates nothing twice.

        Args:
            worker: this process among the workers.
            evaluate: function that evaluates some candidates, given the best candidate of the batches before.
            search: JSON values that distinguish this search from others in the same study.
            together: largest number of candidates that this worker evaluates in one call. It takes fewer where there
                are more workers than such groups.
        """
        digest = digest_of(search)
        numbers = count()

        def batch(propose: Propose, incumbent: Candidate | None) -> Iterator[Candidate]:
            agreed = worker.agree(f"{digest}/{next(numbers)}", partial(documents_of, propose))
            waiting = {architecture.canonical(): architecture for architecture in architectures_of(agreed)}
            order = list(waiting)
            while order:
                self._read()
                if order[0] in self._known:
                    yield self._known[order.pop(0)]
                    continue
                left = [waiting[form] for form in order if form not in self._known]
                share = min(together, math.ceil(len(left) / worker.count())) if together > 1 else 1
                if not self._evaluate(worker, left, share, evaluate, incumbent):
                    time.sleep(POLL_SECONDS)

        return batch

    def worker(self) -> Worker:
        """Returns this process as one of the workers that search the study."""
        return Worker(self._storage, self._workers)

    def add(self, candidate: Candidate, started: datetime | None = None) -> datetime:
        """Records an evaluated candidate, which is in the storage when this returns.

        Args:
            candidate: the candidate.
            started: when its evaluation began; unset, its seconds ago.

        Returns:
            When its evaluation ended.
        """
        took = timedelta(seconds=candidate.seconds)
        started = datetime.now() - took if started is None else started
        parameters, distributions = parameters_of(candidate.architecture, self._space)
        attributes = candidate.to_record()
        state = TrialState.PRUNED if candidate.stopped else TrialState.COMPLETE
        trial = create_trial(
            state=TrialState.FAIL if candidate.failed else state,
            values=None if candidate.failed else list(self._objective.values(candidate)),
            params=parameters,
            distributions=distributions,
            user_attrs=attributes,
        )
        # Optuna would take the time at which it is told, as if no candidate had taken any.
        trial.datetime_start, trial.datetime_complete = started, started + took
        self._study.add_trial(trial)
        self._read()
        return started + took

    def _evaluate(
        self,
        worker: Worker,
        architectures: list[Architecture],
        share: int,
        evaluate: EvaluateTogether,
        incumbent: Candidate | None,
    ) -> bool:
        """Evaluates and records up to ``share`` candidates that no other worker evaluates; returns whether any was."""
        claims: dict[int, Architecture] = {}
        try:
            for architecture in architectures:
                form = architecture.canonical()
                claim = worker.claim(hashlib.sha256(form.to_json(None).encode()).hexdigest())
                if claim is not None:
                    claims[claim] = architecture
                if len(claims) == share:
                    break
            self._read()
            mine = [architecture for architecture in claims.values() if architecture.canonical() not in self._known]
            # Candidates that were evaluated together have equal shares of the time, one after the other.
            clock = datetime.now()
            for candidate in evaluate(mine, incumbent) if mine else ():
                clock = self.add(candidate, clock)
        finally:
            for claim in claims:
                worker.release(claim)
        return bool(claims)

    def _read(self) -> None:
        for trial in self._study.get_trials(deepcopy=False, states=_FINISHED):
            if trial.number not in self._read_numbers:
                self._read_numbers.add(trial.number)
                candidate = _candidate(trial)
                # If a worker that was presumed dead finishes after all, the first record counts.
                self._known.setdefault(candidate.architecture.canonical(), candidate)


def digest_of(search: Any) -> str:
    """Returns what distinguishes a search, given as JSON values, from others in the same study."""
    return hashlib.sha256(json.dumps(search, sort_keys=True).encode()).hexdigest()[:16]


def documents_of(propose: Propose) -> list[Any]:
    """Returns proposed architectures as JSON values."""
    return [json.loads(architecture.to_json()) for architecture in propose()]


def architectures_of(documents: Iterable[Any]) -> list[Architecture]:
    """Returns the architectures that :func:`documents_of` has made JSON values of."""
    return [Architecture.from_json(json.dumps(document)) for document in documents]


def _candidate(trial: optuna.trial.FrozenTrial) -> Candidate:
    try:
        return Candidate.from_record(trial.user_attrs)
    except ValueError as error:
        raise ValueError(
            f"the study's trial {trial.number} was written by another version ({error}); choose another --out or "
            "--study, or --resume never to start from scratch"
        ) from None


def parameters_of(architecture: Architecture, space: SearchSpace) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Returns the choices of every block, and the values that each could have taken."""
    values: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}

    def choose(name: str, value: Any, choices: tuple[Any, ...]) -> None:
        values[name], distributions[name] = value, CategoricalDistribution(choices)

    for table, width in architecture.embedding_widths:
        choose(f"embedding_width.{table}", width, space.embedding_widths)
    for index, block in enumerate(architecture.blocks):
        prefix = f"block{index}"
        sources = tuple(range(index + 1))
        for side, operators, widths in (
            ("dense", space.dense_operators, space.dense_widths),
            ("sparse", space.sparse_operators, space.sparse_widths),
        ):
            (operator,) = getattr(block, f"{side}_operators")  # a search draws one per side
            choose(f"{prefix}.{side}_operator", operator, operators)
            choose(f"{prefix}.{side}_width", getattr(block, f"{side}_width"), widths)
            for source in sources:
                reads = source in getattr(block, f"{side}_inputs")
                choose(f"{prefix}.{side}_reads_{source}", reads, (False, True))
        for operand in ("left", "right"):
            (source,) = getattr(block, f"{operand}_inputs")
            choose(f"{prefix}.{operand}_input", source, sources)
        for merger in ("dense_to_sparse", "sparse_to_dense"):
            choose(f"{prefix}.{merger}", getattr(block, merger), (False, True))
        for name, choices in space.block_choices.items():
            if len(choices) > 1:
                choose(f"{prefix}.{name}", getattr(block, name), choices)
    return values, distributions
