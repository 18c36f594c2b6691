"""Sums of matrix products, and ReLU, for the CPU: with fewer copies than PyTorch makes of the same formulas.

Forward, every product is added to the one before in place. Backward, the gradients of activations are written as the
products need them, and results whose rows are long and of an odd length get rows of a padded length: MKL takes up to
1.5 times as long to write rows that begin at odd addresses.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Columns above which rows are padded; the rows of shorter results are written about as fast as they are.
PADDED = 256
_MULTIPLE = 16


def runs_eagerly(tensor: Tensor) -> bool:
    """Returns whether a tensor is to be computed with now, on the CPU and as it is.

    It is not while a compiler, an exporter or a tracer looks on, which know better or need PyTorch's own operators, nor
    under autocast, which is to choose the precision.
    """
    return (
        isinstance(tensor, Tensor)  # torch.fx traces with stand-ins
        and tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
    )


def products(bias: Tensor | None, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """``inputs[0] @ weights[0].T + inputs[1] @ weights[1].T + ... + bias``, where :func:`runs_eagerly` is true.

    Args:
        bias: ``(columns,)`` or None.
        inputs: tensors ``(..., width)``, alike but for their last dimension.
        weights: a weight ``(columns, width)`` for each of them.

    Returns:
        Tensor: ``(..., columns)``, contiguous.
    """
    if torch.is_grad_enabled():
        found: Tensor = _Products.apply(bias, *inputs, *weights)
        return found
    return _sum(bias, inputs, weights)


def activated(activation: nn.Module, fresh: Tensor) -> Tensor:
    """Applies an activation to a tensor that nobody else reads, in its memory if that is possible."""
    if type(activation) is not nn.ReLU or fresh._base is not None or not runs_eagerly(fresh):
        found: Tensor = activation(fresh)
        return found
    if torch.is_grad_enabled() and fresh.requires_grad:
        rectified: Tensor = _Rectified.apply(fresh)
        return rectified
    return F.relu_(fresh)


def _sum(bias: Tensor | None, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    (first, *rest), (weight, *others) = inputs, weights
    out = first.new_empty(*first.shape[:-1], len(weight))
    rows = out.flatten(0, -2)
    if bias is None:
        torch.mm(first.flatten(0, -2), weight.t(), out=rows)
    else:
        torch.addmm(bias, first.flatten(0, -2), weight.t(), out=rows)
    for tensor, weight in zip(rest, others, strict=True):
        torch.addmm(rows, tensor.flatten(0, -2), weight.t(), out=rows)  # FLOP counters do not know addmm_
    return out


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bias: Tensor | None, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        count = len(tensors) // 2
        return _sum(bias, tensors[:count], tensors[count:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        count = len(tensors) // 2
        needed, *of_tensors = ctx.needs_input_grad
        rows = grad.contiguous().flatten(0, -2)
        found: list[Tensor | None] = [rows.sum(0) if needed else None]
        for tensor, weight, wanted in zip(tensors[:count], tensors[count:], of_tensors[:count], strict=True):
            found.append(_product(rows, weight).view(tensor.shape) if wanted else None)
        for tensor, wanted in zip(tensors[:count], of_tensors[count:], strict=True):
            found.append(_product(rows.t(), tensor.flatten(0, -2)) if wanted else None)
        return tuple(found)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiplies two matrices, with room behind the rows of the result where that makes it faster."""
    columns = right.shape[1]
    if columns <= PADDED or not columns % 8 or torch.is_grad_enabled():  # the last for second derivatives
        return left @ right
    padded = left.new_empty(len(left), (columns + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE)
    return torch.mm(left, right, out=padded[:, :columns])


class _Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.mark_dirty(values)
        F.relu_(values)
        ctx.save_for_backward(values)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            return grad * (values > 0)
        # In the order of the values, whatever that of the gradient is: the products that follow take it as it is.
        found = torch.empty_like(values)
        return torch.ops.aten.threshold_backward.grad_input(grad, values, 0, grad_input=found)
