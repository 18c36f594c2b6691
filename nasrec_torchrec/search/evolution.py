"""How a search proceeds: regularized evolution of one objective (NASRec, section 4.2), NSGA-II of several.

Regularized evolution is that of E. Real et al., arXiv 1802.01548: the oldest die, not the worst.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import EvolutionConfig, Objective
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
) -> Iterator[Candidate]:
    """Searches, and yields each candidate as soon as it is evaluated; no network is
    evaluated twice, however it is written.

    With no generations this is random search. What a generation draws follows from the seed, its number and the
    candidates of the generations before, not from the order in which they were finished: a search is the same
    whatever the number of workers.

    Args:
        space: to draw and mutate in.
        evaluate: takes a function that draws the next batch, and the best candidate of the batches before; gives the
            evaluated candidates in the order in which they were drawn, of that batch or of another that takes its
            place. :func:`one_by_one` makes it from the evaluation of one candidate.
        config: how to proceed.
        objective: what to minimize; unset, the loss.
        allowed: says whether an architecture may be a candidate at all.

    Raises:
        ValueError: when the space holds fewer architectures than the search has evaluations, or none that is new and
            allowed is found.
    """
    if space.cardinality < config.evaluations:
        raise ValueError(
            f"the search space holds {space.cardinality} architectures, the search wants {config.evaluations}"
        )
    objective = objective or Objective()
    seen: set[Architecture] = set()
    alive: list[Candidate] = []
    best: Candidate | None = None

    def draw(batch: int) -> list[Architecture]:
        rng = random.Random(f"{config.seed} {batch}")
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        if batch == 0:
            return _novel(lambda _: space.sample(generator), config.population, seen, allowed)
        breed = _from_fronts if objective.trade_off else _from_tournament
        parents = breed(alive, objective, config, rng)
        mutations = num_mutations(batch - 1, config.generations)

        def child(attempt: int) -> Architecture:
            architecture = parents()
            # Further away when the neighbourhood is exhausted.
            for _ in range(mutations + attempt // 10):
                architecture = space.mutate(architecture, generator)
            return architecture

        return _novel(child, config.children, seen, allowed)

    for batch in range(1 + config.generations):
        found = []
        for candidate in evaluate(partial(draw, batch), best):
            found.append(candidate)
            yield candidate
        seen.update(candidate.architecture.canonical() for candidate in found)
        alive = _survivors(alive + found, objective, config.population)
        sound = [one for one in (best, *found) if one is not None and not one.stopped and not one.failed]
        best = min(sound, key=lambda candidate: candidate.loss, default=None)


def one_by_one(evaluate: Callable[[Architecture], Candidate]) -> EvaluateBatch:
    """Evaluates batches in this process, and remembers nothing."""
    return lambda propose, _: map(evaluate, propose())


def num_mutations(generation: int, generations: int) -> int:
    """More mutations at the start, one at the end, as in the research code."""
    return (generations - generation) // max(20, generations // 5) + 1


def _novel(
    draw: Callable[[int], Architecture],
    count: int,
    seen: set[Architecture],
    allowed: Callable[[Architecture], bool],
) -> list[Architecture]:
    """As many architectures that are new, also to each other, and allowed."""
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
    """One parent for the whole generation."""
    parent = min(rng.sample(alive, config.tournament), key=objective.values)
    return lambda: parent.architecture


def _from_fronts(
    alive: Sequence[Candidate], objective: Objective, config: EvolutionConfig, rng: random.Random
) -> Callable[[], Architecture]:
    """Two parents for every child, which has each block of one or the other."""
    rank = standing([objective.values(member) for member in alive])

    def parent() -> Architecture:
        pair = rng.sample(range(len(alive)), 2) if len(alive) > 1 else [0]
        return alive[min(pair, key=lambda member: rank[member])].architecture

    def cross() -> Architecture:
        one, other = parent(), parent()
        if rng.random() > _CROSSOVER:
            return one
        # Block i reads outputs 0..i in both, so that any mixture of blocks is an architecture.
        return Architecture(tuple(rng.choice(pair) for pair in zip(one.blocks, other.blocks, strict=True)))

    return cross


def _survivors(members: list[Candidate], objective: Objective, population: int) -> list[Candidate]:
    if not objective.trade_off:
        return members[-population:]
    rank = standing([objective.values(member) for member in members])
    kept = sorted(range(len(members)), key=lambda member: rank[member])[:population]
    return [members[member] for member in sorted(kept)]
