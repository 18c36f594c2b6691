"""How busy a cluster's workers are during a search, in generations and asynchronously.

    python benchmarks/many_workers.py

The workers are threads of one process that sleep for the time of an evaluation, which varies from candidate to
candidate as measured ones do. All else is real: they share an Optuna study, claim candidates, draw and record.
"""

import random
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from optuna.storages import InMemoryStorage
from tabulate import tabulate

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.cli import run
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.search.asynchronous import Litters, evolve_asynchronously
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import EvolutionConfig
from nasrec_torchrec.search.cost_values import Cost
from nasrec_torchrec.search.evolution import evolve
from nasrec_torchrec.search.study import CandidateStudy
from nasrec_torchrec.search_space import SearchSpace

_SPACE = SearchSpace(num_blocks=3)
# Standard deviation of the logarithm of the time of an evaluation.
_SPREAD = 0.25


@dataclass
class _Cluster:
    """Workers that search one study."""

    config: EvolutionConfig
    seconds: float
    study: InMemoryStorage = field(default_factory=InMemoryStorage)
    slept: list[float] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def search(self, workers: int) -> float:
        """Runs them all, and returns the seconds that they took."""
        CandidateStudy(self.study, "search", _SPACE, {})
        threads = [threading.Thread(target=self._work) for _ in range(workers)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        return time.monotonic() - started

    def _work(self) -> None:
        try:
            study = CandidateStudy(self.study, "search", _SPACE, {})
            with study.worker() as worker:
                if self.config.asynchronous:
                    litters = Litters(_SPACE, self.config)
                    found: Any = evolve_asynchronously(study, worker, self._evaluate, "", litters)
                else:
                    found = evolve(_SPACE, study.evaluating(worker, self._evaluate, ""), self.config)
                for _ in found:
                    pass
        except BaseException as error:
            self.errors.append(error)

    def _evaluate(self, architectures: list[Architecture], _: Candidate | None) -> list[Candidate]:
        return [self._sleep(architecture) for architecture in architectures]

    def _sleep(self, architecture: Architecture) -> Candidate:
        seconds = self.seconds * random.Random(architecture.to_json()).lognormvariate(0, _SPREAD)
        time.sleep(seconds)
        self.slept.append(seconds)
        loss = 1 / 3 - sum(block.dense_width + block.sparse_width for block in architecture.blocks) / 20_000
        return Candidate(architecture, ClickMetrics(0.7, loss, loss / 0.6, 1000), loss, Cost(1, 1, 1), seconds=seconds)


def main(workers: list[int] | None = None, rounds: int = 12, rate: float = 16, quick: bool = False) -> None:
    """Prints, for every number of workers, how busy they were.

    Args:
        workers: numbers of workers; unset, 4, 16, 64 and 256.
        rounds: evaluations for every worker that can be busy at a time; the first ones found the population.
        rate: evaluations per second of all that are busy, at most. An evaluation takes two seconds or more.
        quick: two and eight workers and short evaluations, to see that it works.
    """
    if quick:
        workers, rate = [2, 8], 64
    rows = []
    for count in workers or [4, 16, 64, 256]:
        for title, asynchronous, children in _ways(count):
            busy = count if asynchronous else min(count, children)
            generations = (rounds - 1) * (busy if asynchronous else 1)
            population = max(busy, children)
            config = EvolutionConfig(population, generations, children, population // 2, 0, asynchronous)
            cluster = _Cluster(config, max(busy / rate, 0.1 if quick else 2.0))
            seconds = cluster.search(count)
            rows.append(
                {
                    "workers": count,
                    "search": title,
                    "an evaluation, s": f"{statistics.mean(cluster.slept):.2f}",
                    "evaluations": len(cluster.slept),
                    "seconds": f"{seconds:.0f}",
                    "busy": f"{sum(cluster.slept) / (count * seconds):.0%}",
                }
            )
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


def _ways(workers: int) -> Iterator[tuple[str, bool, int]]:
    """Yields titles, whether the search is asynchronous, and children of a generation or litter."""
    if workers <= 16:  # so many that wait would keep this machine's processor busy, which is not that of a cluster
        yield "generations of 8", False, 8
    yield "asynchronous", True, 1


if __name__ == "__main__":
    run(main)
