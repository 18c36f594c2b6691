"""One process group, whether a launcher started many processes or the user started one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Joins the group that torchrun or torchx describes in the environment; alone, makes a group of one.

    Where the caller has made a group already, that one is used, and stays.

    Yields:
        torch.device: this rank's device, CUDA where there is one, else CPU.
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
    finally:
        dist.destroy_process_group()


def rank_and_ranks() -> tuple[int, int]:
    """This process's rank and how many there are; without a group it is alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
