"""How a search proceeds: regularized evolution for one objective (NASRec, section 4.2), NSGA-II for several.

Regularized evolution (E. Real et al., arXiv 1802.01548) removes the oldest members of the population, not the worst.
"""

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import EvolutionConfig, Objective
from nasrec_torchrec.search.limits import Fit, unchanged
from nasrec_torchrec.search.pareto import standing
from nasrec_torchrec.search_space import SearchSpace

_ATTEMPTS = 2000
_CROSSOVER = 0.9

Propose = Callable[[], list[Architecture]]
EvaluateBatch = Callable[[Propose, Candidate | None], Iterable[Candidate]]


def evolve(
    space: SearchSpace,
    evaluate: EvaluateBatch,
    config: EvolutionConfig,
    objective: Objective | None = None,
    allowed: Callable[[Architecture], bool] = lambda _: True,
    fit: Fit = unchanged,
) -> Iterator[Candidate]:
    """Searches, and yields each candidate as soon as it is evaluated.

    No network is evaluated twice, however it is written. With no generations this is random search. What a generation
    draws is determined by the seed, its number and the candidates of the generations before, not by the order in which
    they were finished, so a search is the same for any number of workers.

    Args:
        evaluate: function of another function, which draws the next batch, and of the best candidate of the batches
            before. It yields the evaluated candidates in the order in which they were drawn; they belong to that batch
            or to another one that replaces it. :func:`one_by_one` creates it from the evaluation of one candidate.

    The other arguments are those of :class:`~nasrec_torchrec.search.evolution.Drawing`.

    Yields:
        Candidate: The next evaluated candidate.

    Raises:
        ValueError: If the space holds fewer architectures than the search has evaluations, or no further architecture
            is found that is new and allowed.
    """
    drawing = Drawing(space, config, objective or Objective(), allowed, fit)
    seen: set[Architecture] = set()
    alive: list[Candidate] = []
    best: Candidate | None = None

    def draw(batch: int) -> list[Architecture]:
        if batch == 0:
            return drawing.at_random(batch, config.population, seen)
        return drawing.children(batch, batch - 1, alive, config.children, seen)

    for batch in range(1 + config.generations):
        found = []
        for candidate in evaluate(partial(draw, batch), best):
            found.append(candidate)
            yield candidate
        seen.update(candidate.architecture.canonical() for candidate in found)
        alive = drawing.survivors(alive + found)
        best = best_of([*([best] if best else []), *found])


def best_of(candidates: Iterable[Candidate]) -> Candidate | None:
    """Returns the candidate with the lowest loss among those that saw all rows they were to see."""
    sound = (candidate for candidate in candidates if not candidate.stopped and not candidate.failed)
    return min(sound, key=lambda candidate: candidate.loss, default=None)


class Drawing:
    """Draws architectures that are allowed and new.

    Args:
        space: search space to sample from.
        config: how the search proceeds.
        objective: what it minimizes.
        allowed: whether an architecture may be a candidate at all.
        fit: what brings a drawn architecture within a limit, where something can.

    Raises:
        ValueError: If the space holds fewer architectures than the search has evaluations.
    """

    def __init__(
        self,
        space: SearchSpace,
        config: EvolutionConfig,
        objective: Objective,
        allowed: Callable[[Architecture], bool],
        fit: Fit = unchanged,
    ) -> None:
        if space.cardinality < config.evaluations:
            raise ValueError(
                f"the search space holds {space.cardinality} architectures, the search wants {config.evaluations}"
            )
        self._space, self._config, self._objective, self._allowed = space, config, objective, allowed
        self._fit = fit

    def at_random(self, number: int, count: int, seen: Collection[Architecture]) -> list[Architecture]:
        """Returns random architectures, which follow from the number, and whose canonical forms are not in ``seen``."""
        generator = self._generators(number)[1]
        return _novel(lambda _: self._fit(self._space.sample(generator), generator), count, seen, self._allowed)

    def children(
        self, number: int, generation: int, alive: list[Candidate], count: int, seen: Collection[Architecture]
    ) -> list[Architecture]:
        """Returns children of the population ``alive``, with the mutations of a generation."""
        rng, generator = self._generators(number)
        breed = from_fronts if self._objective.trade_off else _from_tournament
        parents = breed(alive, self._objective, self._config, rng)
        mutations = num_mutations(generation, self._config.generations)

        def child(attempt: int) -> Architecture:
            architecture = parents()
            # Mutate further when the neighbourhood is exhausted.
            for _ in range(mutations + attempt // 10):
                architecture = self._space.mutate(architecture, generator)
            return self._fit(architecture, generator)

        return _novel(child, count, seen, self._allowed)

    def survivors(self, members: list[Candidate]) -> list[Candidate]:
        """Returns the population: the youngest members or, if costs are traded off, the best."""
        return _survivors(members, self._objective, self._config.population)

    def _generators(self, number: int) -> tuple[random.Random, torch.Generator]:
        rng = random.Random(f"{self._config.seed} {number}")
        return rng, torch.Generator().manual_seed(rng.getrandbits(62))


def one_by_one(evaluate: Callable[[Architecture], Candidate]) -> EvaluateBatch:
    """Returns a function that evaluates batches in this process and stores nothing."""
    return lambda propose, _: map(evaluate, propose())


def num_mutations(generation: int, generations: int) -> int:
    """Returns the number of mutations: more at the start, one at the end, as in the research code."""
    return max(0, generations - generation) // max(20, generations // 5) + 1


def _novel(
    draw: Callable[[int], Architecture],
    count: int,
    seen: Collection[Architecture],
    allowed: Callable[[Architecture], bool],
) -> list[Architecture]:
    """Returns ``count`` architectures that are allowed, new, and different from each other."""
    found: dict[Architecture, Architecture] = {}
    for _ in range(count):
        for attempt in range(_ATTEMPTS):
            architecture = draw(attempt)
            form = architecture.canonical()
            if form not in seen and form not in found and allowed(architecture):
                found[form] = architecture
                break
        else:
            raise ValueError(
                f"{_ATTEMPTS} draws found no further architecture that is new and within the limits, after "
                f"{len(seen) + len(found)}; widen the limits or the search space, or ask for fewer candidates"
            )
    return list(found.values())


def _from_tournament(
    alive: Sequence[Candidate], objective: Objective, config: EvolutionConfig, rng: random.Random
) -> Callable[[], Architecture]:
    """Returns a function that mutates one parent, which is the same for the whole generation."""
    parent = min(rng.sample(alive, min(config.tournament, len(alive))), key=objective.values)
    return lambda: parent.architecture


def from_fronts(
    alive: Sequence[Candidate], objective: Objective, config: EvolutionConfig, rng: random.Random
) -> Callable[[], Architecture]:
    """Returns a function that draws two parents for every child.

    It takes each block, and the width of each table, from one of the two, and what its last layer reads from the first.
    """
    rank = standing([objective.values(member) for member in alive])

    def parent() -> Architecture:
        pair = rng.sample(range(len(alive)), 2) if len(alive) > 1 else [0]
        return alive[min(pair, key=lambda member: rank[member])].architecture

    def cross() -> Architecture:
        one, other = parent(), parent()
        if rng.random() > _CROSSOVER:
            return one
        # Block i reads outputs 0..i in both parents, so any mixture of their blocks is an architecture.
        blocks = tuple(rng.choice(pair) for pair in zip(one.blocks, other.blocks, strict=True))
        pairs = zip(one.embedding_widths, other.embedding_widths, strict=True)
        return replace(one, blocks=blocks, embedding_widths=tuple(rng.choice(pair) for pair in pairs))

    return cross


def _survivors(members: list[Candidate], objective: Objective, population: int) -> list[Candidate]:
    if not objective.trade_off:
        return members[-population:]
    rank = standing([objective.values(member) for member in members])
    kept = sorted(range(len(members)), key=lambda member: rank[member])[:population]
    return [members[member] for member in sorted(kept)]
