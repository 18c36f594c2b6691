"""Averaging the gradients of the active path over all ranks."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


@torch.no_grad()
def average_gradients(gradients: Sequence[Tensor], group: dist.ProcessGroup | None = None) -> int:
    """Replaces each gradient by its mean over the ranks, in one all-reduce.

    Every rank must pass gradients of the same shapes in the same order, which holds because all ranks draw the same
    architecture.

    Args:
        gradients: gradients of this rank.
        group: process group to average over; None means all ranks.

    Returns:
        int: Number of bytes that this rank contributed to the all-reduce.
    """
    if dist.get_world_size(group) == 1 or not gradients:
        return 0
    flat = _flatten_dense_tensors(gradients)
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for gradient, mean in zip(gradients, _unflatten_dense_tensors(flat, gradients), strict=True):
        gradient.copy_(mean)
    return flat.numel() * flat.element_size()
