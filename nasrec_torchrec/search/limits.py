"""A check that a search space holds an architecture within the limits, made before a search samples from it."""

from collections.abc import Callable, Iterator

from nasrec_torchrec.architecture import Architecture, BlockArchitecture
from nasrec_torchrec.search.config import Limits
from nasrec_torchrec.search.cost_values import Cost, Latency
from nasrec_torchrec.search_space import SearchSpace


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
