"""The interaction part of a NASRecNet: everything between the embeddings and the logit."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.modules.choice_block import BlockOutputs, ChoiceBlock
from nasrec_torchrec.modules.dense_to_sparse import NUM_MERGED_TOKENS
from nasrec_torchrec.modules.linear import MultiSourceLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, laid_across
from nasrec_torchrec.modules.token_projection import TokenProjection


class InteractionArch(nn.Module):
    """Choice blocks and the final linear, after a projection of the embeddings if their dimensions differ.

    It holds no embedding table, so that TorchRec's pipelines, which trace a model only down to its sharded modules,
    treat it as a leaf.

    Args:
        architecture: what the blocks compute.
        dense_in_features: columns F_dense of the dense features; 0 when there are none.
        num_tokens: sparse features F_sparse.
        embedding_dim: width E of a token.
        use_layernorm: normalise after each linear. Off in the published networks, on in supernets.
        shared: allocate a supernet's storage, see :class:`~nasrec_torchrec.modules.operator.Operator`.
        device: where the parameters live; ``meta`` is allowed.
        tables: name and embedding dimension of the table of every token, if some of them differ from E or the
            architecture reads fewer columns. See :class:`~nasrec_torchrec.modules.token_projection.TokenProjection`.
        num_labels: labels T that are predicted; the final linear has a row of weights and a bias for each.
    """

    def __init__(
        self,
        architecture: Architecture,
        dense_in_features: int,
        num_tokens: int,
        embedding_dim: int,
        use_layernorm: bool = False,
        shared: bool = False,
        device: torch.device | None = None,
        tables: Sequence[tuple[str, int]] = (),
        num_labels: int = 1,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.dense_in_features = dense_in_features
        self.num_tokens = num_tokens
        self.embedding_dim = embedding_dim
        self.projection: TokenProjection | None = None
        if tables:
            self.projection = TokenProjection(
                tables, embedding_dim, device, dict(architecture.embedding_widths), shared
            )
        dense_widths = [dense_in_features]
        # Tokens of every output, by source name: its own, then those of its dense-to-sparse merger.
        token_widths = [{"0": num_tokens}]
        read = architecture.outputs_read()
        self.blocks = nn.ModuleList()
        for index, block in enumerate(architecture.blocks):
            shape = BlockShape(
                dense={str(i): dense_widths[i] for i in block.dense_inputs},
                left={str(i): dense_widths[i] for i in block.left_inputs},
                right={str(i): dense_widths[i] for i in block.right_inputs},
                tokens={name: width for i in block.sparse_inputs for name, width in token_widths[i].items()},
                embedding_dim=embedding_dim,
                activation=block.activation,
            )
            try:
                module = ChoiceBlock(block, shape, use_layernorm, *read[index + 1], shared=shared, device=device)
            except ValueError as error:
                raise ValueError(f"block {index}: {error}") from None
            self.blocks.append(module)
            name = str(index + 1)
            dense_widths.append(block.dense_width)
            token_widths.append(
                {name: block.sparse_width} | ({f"{name}_merged": NUM_MERGED_TOKENS} if block.dense_to_sparse else {})
            )
        dense_outputs, sparse_outputs = architecture.outputs
        last = len(architecture.blocks)
        features = {_feature("dense", index, last): dense_widths[index] for index in dense_outputs}
        for index in sparse_outputs:
            for (_, width), kind in zip(token_widths[index].items(), ("tokens", "merged"), strict=False):
                features[_feature(kind, index, last)] = width * embedding_dim
        self.over_arch = MultiSourceLinear(features, num_labels, device=device)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row of the embedded features: ``(F_sparse, E)``, or ``(columns,)`` if dimensions differ."""
        return (self.num_tokens, self.embedding_dim) if self.projection is None else (self.projection.columns,)

    def forward(self, dense_features: Tensor, embedded_features: Tensor) -> Tensor:
        """
        Args:
            dense_features: ``(B, F_dense)``.
            embedded_features: pooled embeddings ``(B, F_sparse, E)``, or ``(B, columns)`` if dimensions differ.

        Returns:
            Tensor: logits ``(B, T)``.
        """
        return self.over_arch(self.features(dense_features, embedded_features))

    def features(
        self, dense_features: Tensor, embedded_features: Tensor, known: dict[int, BlockOutputs] | None = None
    ) -> list[Tensor]:
        """Computes what the final linear reads, such as the last block's dense output and its flattened tokens.

        Args:
            dense_features: ``(B, F_dense)``.
            embedded_features: pooled embeddings ``(B, F_sparse, E)``, or ``(B, columns)`` if dimensions differ.
            known: outputs of blocks that need not be computed, by index. The outputs of the others are added.

        Returns:
            list[Tensor]: Features of shape ``(B, ...)``.
        """
        if isinstance(dense_features, Tensor):  # not while torch.fx traces through
            self._check(dense_features, embedded_features)
        dense: list[Any] = [dense_features]  # None where nobody reads a block's dense output
        # Tables may be of another precision than the maths on top of them.
        tokens_BNE = embedded_features.to(dense_features.dtype)
        if self.projection is not None:
            tokens_BNE = self.projection(tokens_BNE)
        tokens: list[list[Any]] = [[laid_across(tokens_BNE)]]
        for index, (block, choice) in enumerate(zip(self.blocks, self.architecture.blocks, strict=True)):
            outputs = None if known is None else known.get(index)
            if outputs is None:
                outputs = block(
                    BlockInputs(
                        dense=[dense[i] for i in choice.dense_inputs],
                        left=[dense[i] for i in choice.left_inputs],
                        right=[dense[i] for i in choice.right_inputs],
                        tokens=[group for i in choice.sparse_inputs for group in tokens[i]],
                    )
                )
                if known is not None:
                    known[index] = outputs
            dense.append(outputs.dense)
            tokens.append([outputs.tokens] if outputs.merged is None else [outputs.tokens, outputs.merged])
        dense_outputs, sparse_outputs = self.architecture.outputs
        flattened = [group.flatten(1) for index in sparse_outputs for group in tokens[index]]
        return [*(dense[index] for index in dense_outputs), *flattened]

    def _check(self, dense_features: Tensor, embedded_features: Tensor) -> None:
        if dense_features.dim() != 2 or dense_features.shape[1] != self.dense_in_features:
            raise ValueError(
                f"dense_features: expected shape (B, {self.dense_in_features}), found {tuple(dense_features.shape)}"
            )
        if tuple(embedded_features.shape[1:]) != self.row_shape:
            raise ValueError(
                f"embedded_features: expected shape (B, {', '.join(map(str, self.row_shape))}), "
                f"found {tuple(embedded_features.shape)}"
            )
        rows, others = dense_features.shape[0], embedded_features.shape[0]
        if rows != others:
            raise ValueError(
                f"dense_features and sparse_features: expected rows of one batch, found {rows} rows and {others}"
            )


def _feature(kind: str, index: int, last: int) -> str:
    """The name of an output in the final linear layer; the last block's have no number."""
    return kind if index == last else f"{kind}_{index}"
