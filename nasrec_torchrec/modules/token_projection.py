"""Projection of embeddings of different dimensions to the common width of the tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import XavierLinear


class TokenProjection(nn.Module):
    """Makes tokens of width E from embeddings whose tables have other dimensions.

    Each table whose dimension is not E has a matrix of its own, which all features of the table share. Table and matrix
    together are one table of width E and of lower rank (Ginart et al., arXiv 1909.11810), so that an id has the same
    token wherever it occurs. There is no bias: an empty bag stays zero, and projecting commutes with pooling.

    Args:
        tables: The name and the embedding dimension of the table of every token, in the order of the tokens.
        embedding_dim: Width E of a token.
        device: Device of the parameters; ``meta`` is allowed.
    """

    def __init__(
        self, tables: Sequence[tuple[str, int]], embedding_dim: int, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.tables = tuple(tables)
        self.embedding_dim = embedding_dim
        self.columns = sum(dim for _, dim in self.tables)
        self.project = nn.ModuleDict(
            {
                name: XavierLinear(dim, embedding_dim, bias=False, device=device)
                for name, dim in dict(self.tables).items()
                if dim != embedding_dim
            }
        )

    def forward(self, embedded_features: Tensor) -> Tensor:
        """Projects embeddings.

        Args:
            embedded_features: The embeddings of every token side by side, of shape ``(B, columns)``.

        Returns:
            Tokens of shape ``(B, N, E)``.
        """
        tokens, start = [], 0
        for name, dim in self.tables:
            token = embedded_features[:, start : start + dim]
            tokens.append(self.project[name](token) if name in self.project else token)
            start += dim
        return torch.stack(tokens, dim=1)
