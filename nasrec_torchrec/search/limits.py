"""Limits on a search space: a check that it holds an architecture within them, and what brings others within them."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch

from nasrec_torchrec.architecture import Architecture, BlockArchitecture
from nasrec_torchrec.memory import Table
from nasrec_torchrec.search.config import Limits
from nasrec_torchrec.search.cost_values import Cost, Latency
from nasrec_torchrec.search_space import SearchSpace
from nasrec_torchrec.table_widths import table_bytes

# Brings an architecture within a limit, with what chance it needs from a generator.
Fit: TypeAlias = Callable[[Architecture, torch.Generator], Architecture]


def unchanged(architecture: Architecture, generator: torch.Generator) -> Architecture:
    """Leaves an architecture as it is."""
    return architecture


def narrowing(space: SearchSpace, limits: Limits, tables: Sequence[Table]) -> Fit:
    """Returns a function that narrows the tables of an architecture until they are within the limit.

    Few architectures that are drawn at random are within a tight limit. A table gets its next smaller width with a
    probability that is proportional to the bytes that this saves, again and again. So a large table gives way most
    often; but not always, or no search could widen it at the expense of others.

    Args:
        space: search space, which knows the tables whose width is a choice.
        limits: limits on its architectures.
        tables: all tables; those whose width is no choice have the embedding dimension that is theirs here.

    Returns:
        The function. It leaves alone what is within the limit, and returns the narrowest tables if none are.
    """
    most = limits.max_table_bytes
    rows = {table.name: table.num_embeddings for table in tables}
    if most is None or not space.width_tables:
        return unchanged

    def narrow(architecture: Architecture, generator: torch.Generator) -> Architecture:
        widths = dict(architecture.embedding_widths)
        if table_bytes(tables, widths) <= most:
            return architecture
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        while table_bytes(tables, widths) > most:
            smaller = {
                name: max(narrower)
                for name, width in widths.items()
                if (narrower := [other for other in space.embedding_widths if other < width])
            }
            if not smaller:
                break
            saved = [rows[name] * (widths[name] - width) for name, width in smaller.items()]
            (name,) = rng.choices(list(smaller), saved)
            widths[name] = smaller[name]
        return replace(architecture, embedding_widths=tuple(widths.items()))

    return narrow


def smallest(space: SearchSpace) -> Iterator[Architecture]:
    """Yields for every pair of operators an architecture in which only the last block computes, at minimal width."""
    for dense in space.dense_operators:
        for sparse in space.sparse_operators:
            block = BlockArchitecture(
                dense_operators=(dense,),
                sparse_operators=(sparse,),
                dense_width=min(space.dense_widths),
                sparse_width=min(space.sparse_widths),
                dense_inputs=(0,),
                sparse_inputs=(0,),
                left_inputs=(0,),
                right_inputs=(0,),
                dense_to_sparse=False,
                sparse_to_dense=False,
                **{name: values[0] for name, values in space.block_choices.items()},
            )
            widths = tuple((name, min(space.embedding_widths)) for name in space.width_tables)
            yield Architecture((block,) * space.num_blocks, embedding_widths=widths)


def require_reachable(
    space: SearchSpace,
    limits: Limits,
    cost: Callable[[Architecture], Cost],
    latency: Callable[[Architecture], Latency] | None = None,
) -> None:
    """Refuses limits that even the smallest architectures exceed.

    Args:
        space: search space.
        limits: limits on its architectures.
        cost: function that counts the cost of an architecture.
        latency: function that measures how long one takes, called only where the latency is limited. None leaves that
            limit out.

    Raises:
        ValueError: If a limit is out of reach. The message names each such limit and the smallest cost found.
    """
    least: dict[str, float] = {}
    for number, architecture in enumerate(smallest(space)):
        measured = None if latency is None or limits.max_latency_us is None else latency(architecture)
        excess = limits.excess(cost(architecture), measured)
        if number:
            excess = {name: min(value, least[name]) for name, value in excess.items() if name in least}
        least = excess
        if not least:
            return
    found = ", ".join(
        f"{name} {getattr(limits, name):,} (the smallest architecture needs {value:,.0f})"
        for name, value in least.items()
    )
    raise ValueError(f"no architecture of the search space is within the limit {found}; raise it")
