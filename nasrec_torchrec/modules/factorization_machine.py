"""Sparse-to-dense merger: a factorization machine (FM) over the tokens."""

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import XavierLinear
from nasrec_torchrec.modules.operator import norm


class FactorizationMachine(nn.Module):
    """``(sum of tokens)^2 - sum of squares``, projected to the dense width.

    The linear and its LayerNorm are skipped when the dense width is E.

    Args:
        embedding_dim: width E of a token.
        dense_width: columns of the dense output to which the result is added.
        use_layernorm: normalise after the linear, which then has no bias.
        shared: keep the linear even where the width fits (a supernet's storage).
        device: where the parameters live.
    """

    def __init__(
        self,
        embedding_dim: int,
        dense_width: int,
        use_layernorm: bool = False,
        shared: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.project: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if shared or dense_width != embedding_dim:
            self.project = XavierLinear(embedding_dim, dense_width, bias=not use_layernorm, device=device)
            self.norm = norm(dense_width, use_layernorm, device)

    def forward(self, tokens_BNE: Tensor) -> Tensor:
        """``(B, N, E)`` to ``(B, dense_width)``."""
        interactions = tokens_BNE.sum(dim=1).square() - tokens_BNE.square().sum(dim=1)
        return self.norm(self.project(interactions))
