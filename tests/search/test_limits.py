"""Limits on the memory of the tables, which what is drawn is brought within."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from support import SMALL_SPACE, make_candidate, make_ebc, make_schema

from nasrec_torchrec import SuperNet
from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.search.asynchronous import Litters
from nasrec_torchrec.search.candidate import Candidate
from nasrec_torchrec.search.config import EvolutionConfig, Limits, Objective
from nasrec_torchrec.search.cost import cost_in_supernet
from nasrec_torchrec.search.evolution import evolve, one_by_one
from nasrec_torchrec.search.limits import narrowing, require_reachable
from nasrec_torchrec.search.race.recipe import Recipe
from nasrec_torchrec.search.race.sources import anything, mutated_architecture, random_architecture
from nasrec_torchrec.search.race.trial import Entry, Trial
from nasrec_torchrec.table_widths import table_bytes

# Of three tables of 10, 100 and 10,000 rows, the second has a width of its own, 16.
_SCHEMA = make_schema(num_features=3)
_TABLES = [replace(table, num_embeddings=rows) for table, rows in zip(_SCHEMA.tables(), (10, 100, 10_000), strict=True)]
_SPACE = replace(SMALL_SPACE, embedding_widths=(4, 8, 16, 32), width_tables=("t_f0", "t_f2"))
_LEAST = 4 * (10 * 4 + 100 * 16 + 10_000 * 4)
_NEXT = 4 * (10 * 32 + 100 * 16 + 10_000 * 8)


def _bytes(found: Architecture | Candidate) -> int:
    architecture = found.architecture if isinstance(found, Candidate) else found
    return table_bytes(_TABLES, dict(architecture.embedding_widths))


def _widths(found: Iterable[Architecture]) -> set[tuple[int, ...]]:
    return {tuple(width for _, width in architecture.embedding_widths) for architecture in found}


@pytest.mark.parametrize("objective", (Objective(), Objective(("table_bytes",))))
def test_a_search_finds_what_it_wants_within_a_tight_limit(objective: Objective):
    """A sixteenth of what is drawn at random is as narrow, and mutations widen tables again."""
    fit = narrowing(_SPACE, Limits(max_table_bytes=_LEAST), _TABLES)
    config = EvolutionConfig(population=20, generations=5, children=4, tournament=5)

    def evaluate(architecture: Architecture) -> Candidate:
        return make_candidate(architecture, table_bytes=_bytes(architecture))

    found = list(evolve(_SPACE, one_by_one(evaluate), config, objective, lambda one: _bytes(one) <= _LEAST, fit))
    assert len(found) == 40 and {_bytes(candidate) for candidate in found} == {_LEAST}
    litters = Litters(_SPACE, config, objective, lambda one: _bytes(one) <= _LEAST, fit)
    drawn = [*litters.draw(0, [], set()), *litters.draw(9, found, set())]
    assert len(drawn) == 8 and {_bytes(one) for one in drawn} == {_LEAST}


def test_a_race_draws_what_is_within_the_limit():
    fit = narrowing(_SPACE, Limits(max_table_bytes=_NEXT), _TABLES)
    generator = torch.Generator().manual_seed(0)
    drawn = [random_architecture(_SPACE, generator, set(), anything, fit) for _ in range(200)]
    known = [found for found in drawn if found is not None]
    assert len(known) == 200 and all(_bytes(found) <= _NEXT for found in known)
    assert _widths(known) == {(small, large) for small in (4, 8, 16, 32) for large in (4, 8)}
    trials = [Trial("architectures", "random", found, Recipe(1e-3, 1, 8)) for found in known[:9]]
    entries = [Entry(number, trial, (0.5,), (0.5,), (1.0,), "complete") for number, trial in enumerate(trials)]
    children = [mutated_architecture(_SPACE, generator, entries, set(), anything, fit) for _ in range(200)]
    assert all(child is not None and _bytes(child) <= _NEXT for child in children)
    assert _widths(child for child in children if child is not None) == _widths(known)


def test_a_large_table_may_be_widened_at_the_expense_of_others():
    """Two tables have the same number of rows, so that either may give way."""
    tables = [replace(table, num_embeddings=100) for table in _TABLES]
    fit = narrowing(_SPACE, Limits(max_table_bytes=4 * 100 * (16 + 32)), tables)
    generator = torch.Generator().manual_seed(0)
    wide = _SPACE.sample(generator, "full")
    assert _widths(fit(wide, generator) for _ in range(100)) >= {(8, 16), (16, 16), (16, 8)}


def test_what_is_within_the_limit_is_left_alone_and_draws_no_chance():
    generator = torch.Generator().manual_seed(0)
    wide = _SPACE.sample(generator, "full")
    before = generator.get_state()
    for limits in (Limits(), Limits(max_table_bytes=_bytes(wide))):
        assert narrowing(_SPACE, limits, _TABLES)(wide, generator) is wide
    assert torch.equal(generator.get_state(), before)
    beyond = narrowing(_SPACE, Limits(max_table_bytes=1), _TABLES)(wide, generator)
    assert _widths([beyond]) == {(4, 4)} and replace(beyond, embedding_widths=wide.embedding_widths) == wide


@pytest.mark.parametrize(("widths", "least"), (((4, 8), 4 * 3 * 50 * 4), ((), 4 * 3 * 50 * 8)))
def test_a_limit_that_the_narrowest_tables_exceed_is_refused(widths: tuple[int, ...], least: int):
    supernet = SuperNet(make_ebc(3, embedding_dim=8), 3, replace(SMALL_SPACE, embedding_widths=widths))
    space = supernet.search_space

    def cost(architecture: Architecture):
        return cost_in_supernet(supernet, architecture)

    message = rf"max_table_bytes {least - 1:,} \(the smallest architecture needs {least:,}\); raise it"
    with pytest.raises(ValueError, match=message):
        require_reachable(space, Limits(max_table_bytes=least - 1), cost)
    require_reachable(space, Limits(max_table_bytes=least), cost)
