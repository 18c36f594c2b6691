"""How much memory a process may use, and a check that tables fit into it before they are allocated."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# What a container uses is here beside its limit, without the pages of files that the kernel may drop.
_CGROUP_USED = {"/sys/fs/cgroup/memory.stat": "anon", "/sys/fs/cgroup/memory/memory.stat": "total_rss"}
_MEMORY, _AVAILABLE = "/proc/meminfo", "MemAvailable:"


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


def free_memory() -> int:
    """Returns the bytes of :func:`host_memory` that no process uses now, or all of it where that is not known."""
    limit = host_memory()
    used = [_numbers(file).get(name, 0) for file, name in _CGROUP_USED.items()]
    available = 1024 * _numbers(_MEMORY).get(_AVAILABLE, limit)
    return max(0, min(limit - max(used), available))


def _numbers(file: str) -> dict[str, int]:
    """Returns the numbers of a file of the kernel by their names; nothing if there is no such file."""
    try:
        words = [line.split() for line in Path(file).read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}


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
