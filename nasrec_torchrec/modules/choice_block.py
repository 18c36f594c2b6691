"""A choice block with the operators and mergers that one block of an architecture selects."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nasrec_torchrec.architecture import BlockArchitecture
from nasrec_torchrec.block_architecture import Normalization
from nasrec_torchrec.modules.dense_to_sparse import DenseToSparse
from nasrec_torchrec.modules.factorization_machine import FactorizationMachine
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, across_tokens
from nasrec_torchrec.modules.registry import OPERATORS
from nasrec_torchrec.modules.residual import Residual


class BlockOutputs(NamedTuple):
    """The outputs of a block. An output that nobody reads is None.

    Attributes:
        dense: Dense output of shape ``(B, dense_width)``.
        tokens: Tokens of shape ``(B, sparse_width, E)``.
        merged: Tokens of the dense-to-sparse merger, of shape ``(B, 8, E)``.
    """

    dense: Tensor | None
    tokens: Tensor | None
    merged: Tensor | None


class ChoiceBlock(nn.Module):
    """One block of NASRec (arXiv 2207.07187, figure 2).

    The outputs of the dense operators are added, and so are those of the sparse operators. The dense-to-sparse merger
    reads the dense output before the factorization machine is added to it, and after the residual is.

    Args:
        architecture: Operators, widths, mergers and further choices of the block.
        shape: Widths of what the block reads.
        use_layernorm: Whether to normalize after each linear layer, unless the block chooses that.
        dense_is_read: Whether a later block or the final layer reads the dense output. As in the published networks,
            parts that nobody reads keep their parameters, but they are not computed.
        sparse_is_read: Whether a later block or the final layer reads the sparse output.
        shared: Whether to allocate a supernet's storage, see :class:`~nasrec_torchrec.modules.operator.Operator`.
        device: Device of the parameters; ``meta`` is allowed.
    """

    def __init__(
        self,
        architecture: BlockArchitecture,
        shape: BlockShape,
        use_layernorm: bool = False,
        dense_is_read: bool = True,
        sparse_is_read: bool = True,
        shared: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        dense_width, sparse_width = architecture.dense_width, architecture.sparse_width
        normalize: Norm = use_layernorm
        if architecture.normalization is not None:
            chosen: dict[Normalization, Norm] = {"none": False, "layer": True, "batch": "batch"}
            normalize = chosen[architecture.normalization]
        self.dense_operators = nn.ModuleDict(
            {
                name: OPERATORS[name](shape, dense_width, normalize, shared, device)
                for name in architecture.dense_operators
            }
        )
        self.sparse_operators = nn.ModuleDict(
            {
                name: OPERATORS[name](shape, sparse_width, normalize, shared, device)
                for name in architecture.sparse_operators
            }
        )
        self.dense_to_sparse: DenseToSparse | None = None
        if architecture.dense_to_sparse:
            self.dense_to_sparse = DenseToSparse(dense_width, shape.embedding_dim, normalize, shared, device)
        self.sparse_to_dense: FactorizationMachine | None = None
        if architecture.sparse_to_dense:
            self.sparse_to_dense = FactorizationMachine(shape.embedding_dim, dense_width, normalize, shared, device)
        self.dense_residual: Residual | None = None
        self.sparse_residual: Residual | None = None
        if architecture.residual:
            newest, tokens = (str(inputs[-1]) for inputs in (architecture.dense_inputs, architecture.sparse_inputs))
            self.dense_residual = Residual(shape.dense[newest], dense_width)
            self.sparse_residual = Residual(shape.tokens[tokens], sparse_width)
            self._newest_tokens = list(shape.tokens).index(tokens)
        self.dense_is_read = dense_is_read
        self.sparse_is_read = sparse_is_read
        self.computes_dense, self.computes_tokens = architecture.computes(dense_is_read, sparse_is_read)

    def forward(self, inputs: BlockInputs) -> BlockOutputs:
        """Computes the outputs of the block that are read.

        Args:
            inputs: What the block reads.

        Returns:
            The outputs that later blocks read.
        """
        dense = self._total(self.dense_operators, inputs) if self.computes_dense else None
        tokens = self._total(self.sparse_operators, inputs) if self.computes_tokens else None
        if dense is not None and self.dense_residual is not None:
            dense = dense + self.dense_residual(inputs.dense[-1])
        if tokens is not None and self.sparse_residual is not None:
            newest_BEN = across_tokens(inputs.tokens[self._newest_tokens])
            tokens = tokens + self.sparse_residual(newest_BEN).transpose(1, 2)
        merged = None
        if self.dense_to_sparse is not None and self.sparse_is_read:
            merged = self.dense_to_sparse(dense)
        if self.sparse_to_dense is not None and self.dense_is_read:
            dense = dense + self.sparse_to_dense(tokens)
        return BlockOutputs(dense, tokens, merged)

    @staticmethod
    def _total(operators: nn.ModuleDict, inputs: BlockInputs) -> Tensor:
        first, *rest = (operator(inputs) for operator in operators.values())
        return sum(rest, start=first)
