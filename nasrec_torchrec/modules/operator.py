"""What every operator of a choice block has in common: what it may read and what it must emit."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from nasrec_torchrec.block_architecture import Activation
from nasrec_torchrec.modules.batch_norm import BatchNorm

# Whether a LayerNorm follows each linear, or that batches are normalised there.
Norm: TypeAlias = bool | Literal["batch"]


@dataclass(frozen=True)
class BlockShape:
    """Widths of everything a choice block reads, by source name, in the order in which it is read.

    Args:
        dense: columns of each dense input.
        left: columns of each left operand of the binary operators.
        right: columns of each right operand.
        tokens: tokens of each sparse input. The 8 tokens that a dense-to-sparse merger appends are a source of their
            own, so that they meet the same weights in every subnet.
        embedding_dim: width E of a token.
        activation: what operators that end in an activation apply, see :func:`activation`.
    """

    dense: dict[str, int]
    left: dict[str, int]
    right: dict[str, int]
    tokens: dict[str, int]
    embedding_dim: int
    activation: Activation = "relu"


class BlockInputs(NamedTuple):
    """The tensors behind a :class:`BlockShape`: dense ones ``(B, width)``, sparse ones ``(B, tokens, E)``."""

    dense: list[Tensor]
    left: list[Tensor]
    right: list[Tensor]
    tokens: list[Tensor]


class Operator(nn.Module, ABC):
    """Base class of the operators, those of users too (``docs/extending.md``).

    A subclass knows all its shapes when it is constructed. In a supernet the largest form of an operator is stored,
    made with ``shared=True``, and every subnet's parameters are prefix slices of the stored ones, of the same names.
    So a smaller operator must be what is left of a larger one when parameters are cut, as with linears (use
    :class:`~nasrec_torchrec.modules.linear.MultiSourceLinear` over what the block reads); with ``shared`` no
    parameter that another width or other inputs need may be missing.

    Args:
        shape: what the block reads.
        width: columns (dense operators) or tokens (sparse operators) of the output.
        use_layernorm: normalise after each linear with :func:`norm`; such a linear has no bias.
        shared: allocate what any subnet of a supernet may need, not just this architecture: no projection is left
            out because a width happens to fit, and binary operators read one input a side.
        device: where the parameters live; ``meta`` is allowed.
    """

    def __init__(
        self, shape: BlockShape, width: int, use_layernorm: Norm, shared: bool, device: torch.device | None
    ) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, inputs: BlockInputs) -> Tensor:
        """
        Args:
            inputs: what the block reads.

        Returns:
            Tensor: ``(B, width)`` from a dense operator, ``(B, width, E)`` from a sparse one.
        """


def across_tokens(tokens_BNE: Tensor) -> Tensor:
    """``(B, N, E)`` as ``(B, E, N)``, so that a linear acts across the tokens.

    Operators hand tokens on in the memory order of the result: between them this is free, and a linear across the
    tokens is one matrix product.
    """
    return tokens_BNE.transpose(1, 2)


def laid_across(tokens_BNE: Tensor) -> Tensor:
    """The same ``(B, N, E)`` in the memory order that makes :func:`across_tokens` free: one copy, not one a reader."""
    return across_tokens(tokens_BNE).contiguous().transpose(1, 2)


def norm(width: int, use_layernorm: Norm, device: torch.device | None) -> nn.Module:
    """LayerNorm over the width, BatchNorm of its columns, or nothing."""
    if use_layernorm == "batch":
        return BatchNorm(width, device)
    return nn.LayerNorm(width, device=device) if use_layernorm else nn.Identity()


def activation(name: Activation, device: torch.device | None) -> nn.Module:
    """ReLU, PReLU with one learned slope that starts at 1/4 (arXiv 1502.01852), or GELU (arXiv 1606.08415)."""
    return {"relu": nn.ReLU(), "prelu": nn.PReLU(device=device), "gelu": nn.GELU()}[name]


class Operand(nn.Module):
    """One side of a binary operator: its inputs concatenated and padded with zeros to the wider side's width.

    Args:
        inputs: width of each input.
        width: columns of the result, at least those of the inputs.
    """

    def __init__(self, inputs: dict[str, int], width: int) -> None:
        super().__init__()
        self.missing = width - sum(inputs.values())

    def forward(self, inputs: list[Tensor]) -> Tensor:
        operand = torch.cat(inputs, dim=-1) if len(inputs) > 1 else inputs[0]
        return nn.functional.pad(operand, (0, self.missing)) if self.missing else operand


def joint_width(operand: dict[str, int], shared: bool) -> int:
    """Columns of one operand: of all its inputs, or, in a supernet's storage, of the widest one."""
    return max(operand.values()) if shared else sum(operand.values())


def padded_width(left: dict[str, int], right: dict[str, int], shared: bool) -> int:
    """Width at which the binary operators combine their operands; the narrower one is padded with zeros."""
    return max(joint_width(left, shared), joint_width(right, shared))
