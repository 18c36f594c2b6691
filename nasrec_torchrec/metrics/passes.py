"""How many rows a forward pass without gradients takes at once: what suits the device, if its memory holds that."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.memory import free_memory, gib

# More rows at once make no pass faster: on a CPU, whose caches they leave, and on a GPU, which so many keep busy.
_MOST_ON_CPU, _MOST_ELSEWHERE = 4096, 8192
_LEAST = 64
# Part of the free memory that a pass may take.
_SHARE = 0.5


class ActivationBytes(TorchDispatchMode):
    """Sums the bytes that every operation allocates."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            outputs = result if isinstance(result, tuple | list) else (result,)
            self.total += sum(output.nbytes for output in outputs if isinstance(output, Tensor))
        return result


def free_bytes(device: torch.device, ranks: int = 1) -> int:
    """Returns the bytes that are free now on a device; of a host's memory, the share of one of its ranks."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory() // ranks


def rows_at_once(bytes_per_row: float, memory: int, most: int) -> int:
    """Returns how many rows a pass takes.

    Args:
        bytes_per_row: bytes that all operations allocate for a row.
        memory: free bytes, of which a pass takes half at most.
        most: rows beyond which a pass gets no faster.

    Returns:
        ``most``, halved until the rows fit; 64 at least.
    """
    while most > _LEAST and most * bytes_per_row > _SHARE * memory:
        most //= 2
    return most


@torch.no_grad()
def evaluation_rows(model: nn.Module, schema: Schema) -> tuple[int, str]:
    """Chooses the rows of a forward pass of an unsharded model.

    Args:
        model: model that takes dense and sparse features.
        schema: features that it reads.

    Returns:
        The number of rows, and a line for people that says why.
    """
    device = next(chain(model.parameters(), model.buffers())).device  # trees have buffers alone
    names = schema.feature_names
    ones = torch.ones(len(names), device=device)
    sparse = KeyedJaggedTensor(names, ones.long(), weights=ones if schema.weighted else None, lengths=ones.long())
    with ActivationBytes() as counted:
        model.eval()(torch.zeros(1, len(schema.dense), device=device), sparse)
    memory = free_bytes(device)
    rows = rows_at_once(counted.total, memory, _MOST_ON_CPU if device.type == "cpu" else _MOST_ELSEWHERE)
    return rows, f"{rows:,} rows a pass: {counted.total / 2**10:,.1f} KiB each, {gib(memory)} of memory are free"
