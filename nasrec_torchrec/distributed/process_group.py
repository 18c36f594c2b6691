"""One process group, whether a launcher started many processes or the user started one."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from nasrec_torchrec.stopping import LostRankError

# How gloo, NCCL and the store say that nobody answers any more.
_LOST = re.compile(
    r"connection (was )?(reset|closed|refused)|broken pipe|remote process exited|socket timeout|timed out waiting"
    r"|failed to recv|collective operation timeout",
    re.IGNORECASE,
)


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Joins the group that torchrun or torchx describes in the environment; alone, makes a group of one.

    Where the caller has made a group already, that one is used, and stays.

    Yields:
        torch.device: this rank's device, CUDA where there is one, else CPU.

    Raises:
        LostRankError: If another rank ended while this one waited for it.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if dist.is_initialized():
        yield device
        return
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield device
        # Without it a fast rank tears the group down while a slow one still talks to it.
        dist.barrier()
    except RuntimeError as error:
        if dist.get_world_size() == 1 or not _LOST.search(str(error)):
            raise
        rank, ranks = rank_and_ranks()
        raise LostRankError(
            f"rank {rank} of {ranks}: another rank ended, or cannot be reached; what it printed last says why"
        ) from error
    finally:
        dist.destroy_process_group()


def rank_and_ranks() -> tuple[int, int]:
    """This process's rank and how many there are; without a group it is alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def launched_ranks() -> int:
    """The number of ranks of the group, or of the one that a launcher describes in the environment."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
