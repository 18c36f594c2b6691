"""Averaging gradients over ranks, of the active path only."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


@torch.no_grad()
def average_gradients(gradients: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> int:
    """Replaces each gradient by its mean over the ranks, in one all-reduce.

    Every rank must pass gradients of the same shapes in the same order: they draw the same architecture.

    Args:
        gradients: this rank's gradients.
        group: ranks to average over; None means all.

    Returns:
        int: bytes that this rank put into the all-reduce.
    """
    if dist.get_world_size(group) == 1 or not gradients:
        return 0
    flat = _flatten_dense_tensors(gradients)
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for gradient, mean in zip(gradients, _unflatten_dense_tensors(flat, gradients), strict=True):
        gradient.copy_(mean)
    return flat.numel() * flat.element_size()
