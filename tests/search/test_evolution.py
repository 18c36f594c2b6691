from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SMALL_SPACE, make_candidate

from nasrec_torchrec import SearchSpace
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import EvolutionConfig, EvolutionFlags, Objective
from nasrec_torchrec.search.evolution import evolve, num_mutations, one_by_one
from nasrec_torchrec.search.pareto import crowding, first_front, fronts, standing


def test_evolution_evaluates_each_network_once_and_climbs():
    config = EvolutionConfig(population=20, generations=30, children=5, tournament=10)
    found = list(evolve(SMALL_SPACE, one_by_one(make_candidate), config))
    assert len(found) == config.evaluations == 170
    assert len({candidate.architecture.canonical() for candidate in found}) == 170
    at_random = [make_candidate(SMALL_SPACE.sample(torch.Generator().manual_seed(seed))).loss for seed in range(170)]
    assert sum(candidate.loss for candidate in found[-20:]) / 20 < sum(at_random) / 170 - 0.003


def test_the_same_seed_searches_the_same_way():
    config = EvolutionConfig(population=8, generations=4, children=3, tournament=4, seed=5)
    first, second = (list(evolve(SMALL_SPACE, one_by_one(make_candidate), config)) for _ in range(2))
    assert [c.architecture for c in first] == [c.architecture for c in second]


def test_the_oldest_die():
    """Once the first population is gone, nobody descends from its best any more."""
    parents: list[Candidate | None] = []

    def evaluate(propose, best):
        parents.append(best)
        for architecture in propose():
            yield make_candidate(architecture, loss=0.1 if len(parents) == 1 else 0.9 - 0.001 * len(parents))

    config = EvolutionConfig(population=4, generations=30, children=4, tournament=4)
    generations = [*evolve(SMALL_SPACE, evaluate, config)]
    assert parents[0] is None and all(best is not None and best.loss == 0.1 for best in parents[1:])
    founders = {block for candidate in generations[:4] for block in candidate.architecture.blocks}
    shared = [
        sum(
            block in founders for candidate in generations[start : start + 4] for block in candidate.architecture.blocks
        )
        for start in range(4, len(generations), 4)
    ]
    assert shared[0] > 0 and shared[0] > shared[-1]


def test_stopped_candidates_are_never_the_incumbent():
    incumbents: list[Candidate | None] = []

    def evaluate(propose, best):
        incumbents.append(best)
        for index, architecture in enumerate(propose()):
            yield make_candidate(architecture, loss=0.1 if index else 0.5, stopped=bool(index))

    list(evolve(SMALL_SPACE, evaluate, EvolutionConfig(population=4, generations=3, children=4, tournament=4)))
    assert [best and best.loss for best in incumbents] == [None, 0.5, 0.5, 0.5]


def test_what_is_not_allowed_is_not_drawn():
    config = EvolutionConfig(population=10, generations=5, children=4, tournament=5)

    def narrow(architecture) -> bool:
        return sum(block.dense_width for block in architecture.blocks) <= 64

    found = list(evolve(SMALL_SPACE, one_by_one(make_candidate), config, allowed=narrow))
    assert len(found) == 30 and all(narrow(candidate.architecture) for candidate in found)
    with pytest.raises(ValueError, match="2000 draws found no further architecture that is new and within the limits"):
        list(evolve(SMALL_SPACE, one_by_one(make_candidate), config, allowed=lambda _: False))


def test_nsga2_spreads_over_the_front_and_beats_random_draws():
    """Loss and multiply-adds contradict each other, but for what does not matter to either."""
    objective = Objective(trade_off=("multiply_adds",))
    space = SearchSpace(num_blocks=6, dense_widths=(8, 16, 32, 64), sparse_widths=(4, 8, 16, 32))

    def score(architecture) -> Candidate:
        width = sum(block.dense_width for block in architecture.blocks) / 384
        waste = sum(block.sparse_width for block in architecture.blocks) / 192
        return make_candidate(
            architecture, loss=1 - 0.5 * width + 0.1 * waste, multiply_adds=int(1000 * (width + waste))
        )

    config = EvolutionConfig(population=24, generations=25, children=8, tournament=8)
    found = list(evolve(space, one_by_one(score), config, objective))
    assert len({candidate.architecture.canonical() for candidate in found}) == config.evaluations
    at_random = EvolutionConfig(population=config.evaluations, generations=0, tournament=8)
    drawn = list(evolve(space, one_by_one(score), at_random, objective))
    volumes = [_volume([objective.values(c) for c in candidates]) for candidates in (found, drawn)]
    assert volumes[0] > 1.02 * volumes[1]
    first = [found[i] for i in fronts([objective.values(c) for c in found])[0]]
    assert len({candidate.cost.multiply_adds for candidate in first}) >= 5


def _volume(points: list[tuple[float, ...]], loss: float = 1.2, cost: float = 2500.0) -> float:
    """What a front of two objectives dominates below a point."""
    total, left = 0.0, loss
    for mine, its_cost in sorted(points, key=lambda point: (point[1], point[0])):
        if mine < left and its_cost < cost:
            total += (left - mine) * (cost - its_cost)
            left = mine
    return total


_POINTS = st.lists(st.tuples(*[st.integers(0, 6).map(float)] * 3), min_size=1, max_size=25)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


@given(_POINTS)
def test_fronts_are_those_of_the_definition(points):
    numbered = fronts(points)
    assert sorted(i for front in numbered for i in front) == list(range(len(points)))
    for front in numbered:
        assert not any(_dominates(points[i], points[j]) for i in front for j in front)
    for better, worse in pairwise(numbered):
        assert all(any(_dominates(points[i], points[j]) for i in better) for j in worse)
    assert first_front(points) == numbered[0]
    ranks = standing(points)
    assert all(ranks[i][0] == number for number, front in enumerate(numbered) for i in front)


def test_ends_of_a_front_are_never_crowded():
    assert crowding([(0.0, 4.0), (1.0, 2.0), (1.5, 1.0), (4.0, 0.0)]) == [
        float("inf"),
        1.5 / 4 + 3 / 4,
        3 / 4 + 2 / 4,
        float("inf"),
    ]


def test_mutations_become_fewer():
    assert [num_mutations(generation, 240) for generation in (0, 120, 239)] == [6, 3, 1]
    assert num_mutations(0, 8) == 1


@pytest.mark.parametrize(
    ("flags", "rows", "fitted"),
    [
        (EvolutionFlags(), 1_228_800, EvolutionConfig()),  # those of Criteo, for which the paper's are
        (EvolutionFlags(seed=3), 7_285, EvolutionConfig(21, 18, 8, 10, 3)),
        (EvolutionFlags(), 10, EvolutionConfig(8, 3, 8, 4)),
        (EvolutionFlags(tournament=30, children=4), 7_285, EvolutionConfig(30, 35, 4, 30)),
        (EvolutionFlags(population=200), 7_285, EvolutionConfig(200, 0, 8, 100)),
        (EvolutionFlags(6, 2), 7_285, EvolutionConfig(6, 2, 8, 3)),
        (EvolutionConfig(), 7_285, EvolutionConfig()),
    ],
)
def test_a_search_is_as_large_as_its_rows_can_tell_candidates_apart(
    flags: EvolutionFlags, rows: int, fitted: EvolutionConfig
):
    assert flags.fitted(rows) == fitted
    assert EvolutionFlags(children=4).as_paper() == EvolutionConfig(children=4)


def test_impossible_searches_are_refused():
    tiny = SearchSpace(1, ("fully_connected",), ("attention",), (16,), (4,))
    config = EvolutionConfig(population=4, generations=1, children=1, tournament=2)
    with pytest.raises(ValueError, match="holds 4 architectures, the search wants"):
        list(evolve(tiny, one_by_one(make_candidate), config))
    with pytest.raises(ValueError, match="tournament: expected at most the population of 4, found 8"):
        EvolutionConfig(population=4, tournament=8)
    with pytest.raises(ValueError, match=r"trade_off: expected some of .*each once, found \['speed'\]"):
        Objective(trade_off=("speed",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not go with trade_off"):
        Objective(trade_off=("parameters",), latency_target_us=10.0)


def test_latency_is_a_penalty_on_the_loss():
    architecture = SMALL_SPACE.sample(torch.Generator().manual_seed(0))
    candidate = make_candidate(architecture, loss=0.4, latency_us=150.0)
    assert Objective(latency_target_us=100.0, latency_weight=0.2).values(candidate) == (pytest.approx(0.5),)
    assert Objective(trade_off=("latency_us", "parameters")).values(candidate) == (0.4, 150.0, 10)
