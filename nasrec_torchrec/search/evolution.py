"""Regularized evolution over the architectures of a supernet (NASRec, section 4.2).

The algorithm is that of E. Real et al., arXiv 1802.01548: the oldest die, not the worst.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.search.evaluator import Candidate
from nasrec_torchrec.search_space import SearchSpace

_ATTEMPTS = 2000


@dataclass(frozen=True)
class EvolutionConfig:
    """How the search proceeds. The defaults are the paper's, 2,048 evaluations.

    Args:
        population: architectures drawn at random to begin with; as many stay alive.
        generations: rounds of children.
        children: architectures per generation; they replace the oldest.
        tournament: members drawn for each generation, the best of whom is the parent.
        seed: of the whole search.
    """

    population: int = 128
    generations: int = 240
    children: int = 8
    tournament: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("population", "children", "tournament"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive integer, found {getattr(self, name)}")
        if self.tournament > self.population:
            raise ValueError(
                f"tournament: expected at most the population of {self.population}, found {self.tournament}"
            )

    @property
    def evaluations(self) -> int:
        return self.population + self.generations * self.children


def evolve(
    space: SearchSpace,
    evaluate: Callable[[Architecture], Candidate],
    config: EvolutionConfig,
    allowed: Callable[[Architecture], bool] = lambda _: True,
) -> Iterator[Candidate]:
    """Searches, and yields each candidate as soon as it is evaluated; no network is
    evaluated twice, however it is written.

    With no generations this is random search.

    Args:
        space: to draw and mutate in.
        evaluate: lower ``metrics.log_loss`` is better.
        config: how to proceed.
        allowed: says whether an architecture may be a candidate at all.

    Raises:
        ValueError: when the space holds fewer architectures than the search has evaluations, or none that is new and
            allowed is found.
    """
    if space.cardinality < config.evaluations:
        raise ValueError(
            f"the search space holds {space.cardinality} architectures, the search wants {config.evaluations}"
        )
    generator = torch.Generator().manual_seed(config.seed)
    rng = random.Random(config.seed)
    seen: set[Architecture] = set()

    def novel(draw: Callable[[int], Architecture]) -> Architecture:
        for attempt in range(_ATTEMPTS):
            architecture = draw(attempt)
            form = architecture.canonical()
            if form not in seen and allowed(architecture):
                seen.add(form)
                return architecture
        raise ValueError(
            f"{_ATTEMPTS} draws found no further architecture that is new and within the limits, after {len(seen)}; "
            "widen the limits or the search space, or ask for fewer candidates"
        )

    alive: deque[Candidate] = deque(maxlen=config.population)
    for _ in range(config.population):
        candidate = evaluate(novel(lambda _: space.sample(generator)))
        alive.append(candidate)
        yield candidate
    for generation in range(config.generations):
        parent = min(rng.sample(list(alive), config.tournament), key=lambda member: member.metrics.log_loss)
        mutations = num_mutations(generation, config.generations)

        def mutant(attempt: int, of: Architecture = parent.architecture, mutations: int = mutations) -> Architecture:
            # Further away when the neighbourhood is exhausted.
            for _ in range(mutations + attempt // 10):
                of = space.mutate(of, generator)
            return of

        children = []
        for _ in range(config.children):
            children.append(evaluate(novel(mutant)))
            yield children[-1]
        alive.extend(children)


def num_mutations(generation: int, generations: int) -> int:
    """More mutations at the start, one at the end, as in the research code."""
    return (generations - generation) // max(20, generations // 5) + 1
