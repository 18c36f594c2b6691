"""The form of a model that serves: the weights of every source in one matrix, nothing that only training needs."""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import MultiSourceLinear

Module = TypeVar("Module", bound=nn.Module)


class ConcatenatedLinear(nn.Module):
    """A :class:`~nasrec_torchrec.modules.linear.MultiSourceLinear` over its concatenated inputs: one matrix product."""

    def __init__(self, linear: MultiSourceLinear) -> None:
        super().__init__()
        weight = torch.cat([linear.weight(source).detach() for source in linear.in_features], dim=1)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias: nn.Parameter | None
        bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        self.register_parameter("bias", bias)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        joined = torch.cat(list(inputs), dim=-1) if len(inputs) > 1 else inputs[0]
        return nn.functional.linear(joined, self.weight, self.bias)


@torch.no_grad()
def fuse(model: Module) -> Module:
    """A copy for inference alone: in evaluation mode, without gradients, one matrix product for each linear.

    Args:
        model: a NASRecNet or its interaction part; it is not changed.

    Returns:
        The same kind of module; outputs differ by rounding.
    """
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(fused.modules()):
        for name, child in module.named_children():
            if isinstance(child, MultiSourceLinear):
                setattr(module, name, ConcatenatedLinear(child))
    return fused
