"""Projection of embeddings of different dimensions to the common width of the tokens."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import XavierLinear
from nasrec_torchrec.table_widths import check_widths


class _PrefixLinear(nn.Linear):
    """A linear without bias that starts by keeping the first columns."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            nn.init.eye_(self.weight)


class TokenProjection(nn.Module):
    """Makes tokens of width E from embeddings whose tables have other dimensions.

    Each table whose dimension is not E has a matrix of its own, which all features of the table share. Table and matrix
    together are one table of width E and of lower rank (Ginart et al., arXiv 1909.11810), so that an id has the same
    token wherever it occurs. There is no bias: an empty bag stays zero, and projecting commutes with pooling.

    Of a table whose width is a choice, the first columns alone are read, and the first columns of its matrix multiply
    them. So a subnet's matrix is a plain prefix slice of the supernet's, and the table of an extracted model a prefix
    of the supernet's table. In a supernet these matrices start as the identity, cut off or filled with zeros: a path of
    width E reads the same columns without a matrix, and the widths have to agree on what a column means.

    Args:
        tables: The name and the embedding dimension of the table of every token, in the order of the tokens.
        embedding_dim: Width E of a token.
        device: Device of the parameters; ``meta`` is allowed.
        widths: Number of columns that are read of each table whose width is a choice.
        shared: Whether to allocate a supernet's storage: a matrix for each of these tables, also at width E.

    Raises:
        ValueError: If a table of ``widths`` does not exist or has fewer columns.
    """

    def __init__(
        self,
        tables: Sequence[tuple[str, int]],
        embedding_dim: int,
        device: torch.device | None = None,
        widths: Mapping[str, int] | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.tables = tuple(tables)
        self.embedding_dim = embedding_dim
        self.columns = sum(dim for _, dim in self.tables)
        widths = widths or {}
        check_widths(widths, dict(self.tables))
        self.widths = dict(self.tables) | dict(widths)
        self.project = nn.ModuleDict()
        for name, width in self.widths.items():
            stored = shared and name in widths
            if stored or width != embedding_dim:
                linear = _PrefixLinear if stored else XavierLinear
                self.project[name] = linear(width, embedding_dim, bias=False, device=device)

    def forward(self, embedded_features: Tensor) -> Tensor:
        """Projects embeddings.

        Args:
            embedded_features: The embeddings of every token side by side, of shape ``(B, columns)``.

        Returns:
            Tokens of shape ``(B, N, E)``.
        """
        tokens, start = [], 0
        for name, dim in self.tables:
            token = embedded_features[:, start : start + self.widths[name]]
            tokens.append(self.project[name](token) if name in self.project else token)
            start += dim
        return torch.stack(tokens, dim=1)
