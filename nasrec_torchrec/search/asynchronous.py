"""The evolution of a search without generations: no worker ever waits for another."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Any

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import EvolutionConfig, Objective
from nasrec_torchrec.search.evolution import Drawing, best_of
from nasrec_torchrec.search.limits import Fit, unchanged
from nasrec_torchrec.search.study import (
    POLL_SECONDS,
    CandidateStudy,
    EvaluateTogether,
    architectures_of,
    digest_of,
    documents_of,
)
from nasrec_torchrec.search.workers import Worker
from nasrec_torchrec.search_space import SearchSpace


class Litters:
    """Draws the litters of a search. Whoever is free draws the next one from the population as it is then.

    A litter has ``config.children`` members: random architectures until ``config.population`` are drawn, from then on
    children of one parent (or, if costs are traded off, of two for each). It follows from the seed, the litter's number
    and what was finished and drawn before, so a log of these reproduces it.

    The arguments are those of :class:`~nasrec_torchrec.search.evolution.Drawing`; by default the objective is the
    loss, and every architecture is allowed.

    Raises:
        ValueError: If the space holds fewer architectures than the search has evaluations.
    """

    def __init__(
        self,
        space: SearchSpace,
        config: EvolutionConfig,
        objective: Objective | None = None,
        allowed: Callable[[Architecture], bool] = lambda _: True,
        fit: Fit = unchanged,
    ) -> None:
        self._drawing = Drawing(space, config, objective or Objective(), allowed, fit)
        self._config = config

    def __len__(self) -> int:
        return self._founding + self._config.generations

    def draw(self, number: int, finished: list[Candidate], drawn: set[Architecture]) -> list[Architecture]:
        """Returns a litter.

        Args:
            number: of the litter, from 0.
            finished: candidates of the search so far, in the order in which they were recorded.
            drawn: canonical forms of all that was drawn so far.
        """
        children, population = self._config.children, self._config.population
        if number < self._founding:
            return self._drawing.at_random(number, min(children, population - number * children), drawn)
        if not finished:  # so many workers that all founders are still being evaluated
            return self._drawing.at_random(number, children, drawn)
        alive = self._drawing.survivors(finished)
        return self._drawing.children(number, number - self._founding, alive, children, drawn)

    @property
    def _founding(self) -> int:
        return -(-self._config.population // self._config.children)


def evolve_asynchronously(
    study: CandidateStudy,
    worker: Worker,
    evaluate: EvaluateTogether,
    search: Any,
    litters: Litters,
    together: int = 1,
) -> Iterator[Candidate]:
    """Evaluates the litters of a search beside all other workers.

    A worker takes a litter that a dead worker left unfinished, or draws the next one. What a litter was drawn from is
    stored with it: ``after``, how many candidates of the search were finished, and ``drawn``, how many were drawn. Two
    workers that draw at the same moment may draw the same candidate, which then counts once.

    Args:
        study: study that all workers share.
        worker: this process among the workers.
        evaluate: function that evaluates some candidates, given the best one so far.
        search: JSON values that distinguish this search from others in the same study.
        litters: what the search evaluates.
        together: largest number of candidates that this worker evaluates in one call.

    Yields:
        Candidate: Those of all workers, in the order in which they were recorded.
    """
    prefix = f"{digest_of(search)}/litter/"
    progress = _Progress()
    given = 0
    while True:
        progress.read(study, worker, prefix)
        yield from progress.finished[given:]
        given = len(progress.finished)
        left = [number for number in range(len(litters)) if progress.missing.get(number, True)]
        if not left:
            return
        claimed = worker.claimed()
        for number in left:
            claim = None if f"{prefix}{number}" in claimed else worker.claim(f"{prefix}{number}")
            if claim is not None:
                break
        else:
            time.sleep(POLL_SECONDS)
            continue
        try:
            progress.read(study, worker, prefix)  # whoever had the claim may have finished the litter
            if number not in progress.missing:
                facts = {"after": len(progress.finished), "drawn": len(progress.drawn)}
                propose = partial(litters.draw, number, progress.finished, progress.drawn)
                worker.agree(f"{prefix}{number}", partial(documents_of, propose), **facts)
                progress.read(study, worker, prefix)
            missing = list(progress.missing[number].values())
            for start in range(0, len(missing), together):
                clock = datetime.now()
                for candidate in evaluate(missing[start : start + together], best_of(progress.finished)):
                    clock = study.add(candidate, clock)
        finally:
            worker.release(claim)


class _Progress:
    """What is drawn and finished, read from the study piece by piece.

    ``drawn`` holds canonical forms, ``finished`` the candidates in the order in which they were recorded, and
    ``missing`` for every litter those that are not finished, by their canonical forms.
    """

    def __init__(self) -> None:
        self.drawn: set[Architecture] = set()
        self.finished: list[Candidate] = []
        self.missing: dict[int, dict[Architecture, Architecture]] = {}
        self._known: dict[Architecture, Candidate] = {}  # those of other searches in the study among them
        self._litters: dict[Architecture, int] = {}

    def read(self, study: CandidateStudy, worker: Worker, prefix: str) -> None:
        # The candidates first, so that each one that belongs to the search is in a litter.
        candidates = study.candidates[len(self._known) :]
        for number, documents in worker.batches(prefix).items():
            if number not in self.missing:
                self._add(number, architectures_of(documents))
        for candidate in candidates:
            form = candidate.architecture.canonical()
            self._known[form] = candidate
            if form in self._litters:
                self.finished.append(candidate)
                self.missing[self._litters[form]].pop(form)

    def _add(self, number: int, architectures: list[Architecture]) -> None:
        self.missing[number] = {}
        for architecture in architectures:
            form = architecture.canonical()
            if form in self.drawn:
                continue
            self.drawn.add(form)
            if form in self._known:
                self.finished.append(self._known[form])
            else:
                self._litters[form] = number
                self.missing[number][form] = architecture
