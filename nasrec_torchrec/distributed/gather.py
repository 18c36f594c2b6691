"""Collecting values from all ranks; a process without a process group counts as one rank."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from nasrec_torchrec.distributed.process_group import rank_and_ranks


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenates the rows of all ranks on every rank, in rank order. Every rank must pass the same number."""
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def gather_uneven(values: Tensor) -> Tensor:
    """Concatenates the values ``(N,)`` of all ranks on every rank, in rank order. N may differ between ranks."""
    rank, ranks = rank_and_ranks()
    if ranks == 1:
        return values
    counts = torch.zeros(ranks, dtype=torch.int64, device=values.device)
    counts[rank] = len(values)
    longest = int(sum_over_ranks(counts).max())
    padded = gather_rows(F.pad(values, (0, longest - len(values))))
    return torch.cat([part[:count] for part, count in zip(padded.split(longest), counts.tolist(), strict=True)])


def sum_over_ranks(values: Tensor) -> Tensor:
    """Replaces values by their sum over all ranks."""
    if rank_and_ranks()[1] > 1:
        dist.all_reduce(values)
    return values
