"""The form of a module for tools that know PyTorch's own layers alone."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import MultiSourceLinear

Module = TypeVar("Module", bound=nn.Module)


class JoinedLinear(nn.Module):
    """A :class:`~nasrec_torchrec.modules.linear.MultiSourceLinear` as a concatenation and one ``nn.Linear``."""

    def __init__(self, linear: MultiSourceLinear) -> None:
        super().__init__()
        weight = torch.cat([linear.weight(source) for source in linear.in_features], dim=1)
        self.linear = _linear(weight, linear.bias)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        return self.linear(torch.cat(inputs, dim=-1))


@torch.no_grad()
def fused(module: Module) -> Module:
    """Copies a module for inference, with an ``nn.Linear`` in place of every linear layer of ours.

    Tools such as ``torch.ao.quantization.quantize_dynamic`` look for ``nn.Linear`` by its type and leave out other
    layers without a word.

    Args:
        module: A model or a part of one that is not sharded; it is not changed.

    Returns:
        A module of the same kind in evaluation mode, whose outputs differ only by rounding.
    """
    copied = copy.deepcopy(module).eval()
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, MultiSourceLinear):
                setattr(parent, name, JoinedLinear(child))
            elif isinstance(child, nn.Linear) and type(child) is not nn.Linear:
                setattr(parent, name, _linear(child.weight, child.bias))
    return copied


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear.eval()
