"""The form of a model for serving: one matrix for the weights of all sources, and nothing that only training needs."""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import MultiSourceLinear

Module = TypeVar("Module", bound=nn.Module)


class ProductAndSum(nn.Module):
    """A linear layer as a matrix product and a separate sum, which a compiler fuses with the following operation.

    A single ``addmm`` would first fill its output with the bias, which takes a tenth of a compiled model's time.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    def forward(self, rows: Tensor) -> Tensor:
        weight = self.weight.t()
        # Inductor (2.13) compiles a matrix product over one input for the few rows of the example only.
        product = rows * weight if len(weight) == 1 else rows @ weight
        return product if self.bias is None else product + self.bias


class ConcatenatedLinear(ProductAndSum):
    """A :class:`~nasrec_torchrec.modules.linear.MultiSourceLinear` over its concatenated inputs: one matrix product."""

    def __init__(self, linear: MultiSourceLinear) -> None:
        super().__init__(torch.cat([linear.weight(source) for source in linear.in_features], dim=1), linear.bias)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat(list(inputs), dim=-1) if len(inputs) > 1 else inputs[0])


@torch.no_grad()
def fuse(model: Module) -> Module:
    """Copies a model for inference: in evaluation mode, without gradients, with one matrix product per linear layer.

    Args:
        model: NASRecNet or its interaction part; it is not changed.

    Returns:
        A module of the same kind, whose outputs differ only by rounding.
    """
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(fused.modules()):
        for name, child in module.named_children():
            if isinstance(child, MultiSourceLinear):
                setattr(module, name, ConcatenatedLinear(child))
            elif isinstance(child, nn.Linear):
                setattr(module, name, ProductAndSum(child.weight, child.bias))
    return fused
