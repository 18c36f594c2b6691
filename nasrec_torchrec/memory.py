"""How much memory a process may use, and a check that tables fit into it before they are allocated."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Table(Protocol):
    """An embedding table, such as a TorchRec ``EmbeddingBagConfig``."""

    name: str
    num_embeddings: int
    embedding_dim: int


def host_memory() -> int:
    """Returns the memory of this machine, or of the container that this process runs in, in bytes."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in map(Path, _CGROUP_LIMITS):
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
    return min(limits)


def gib(count: float) -> str:
    """Formats a number of bytes in GiB."""
    return f"{count / 2**30:,.3f} GiB"


def require_memory(tables: Iterable[Table], bytes_per_weight: float, limit: int, what: str) -> None:
    """Refuses tables that do not fit into memory.

    Args:
        tables: tables to allocate.
        bytes_per_weight: bytes that are allocated for each weight in total.
        limit: number of bytes that may be used.
        what: what the bytes are for, such as ``their weights``.

    Raises:
        ValueError: If they do not fit. The message gives the sum, the largest table and the limit.
    """
    needed = {table.name: table.num_embeddings * table.embedding_dim * bytes_per_weight for table in tables}
    total = sum(needed.values())
    if total <= limit:
        return
    largest = max(needed, key=lambda name: needed[name])
    raise ValueError(
        f"the tables do not fit into memory: they need {gib(total)} for {what}, of which {largest} "
        f"{gib(needed[largest])}; this process may use {gib(limit)}. Fewer num_embeddings, a smaller embedding_dim or "
        "more machines help"
    )
