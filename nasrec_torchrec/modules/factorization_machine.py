"""The sparse-to-dense merger, a factorization machine (FM) over the tokens."""

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import XavierLinear
from nasrec_torchrec.modules.operator import Norm, norm


class FactorizationMachine(nn.Module):
    """Computes ``(sum of tokens)^2 - sum of squares`` and projects it to the dense width.

    The linear layer and its LayerNorm are skipped if the dense width is E.

    Args:
        embedding_dim: Width E of a token.
        dense_width: Number of columns of the dense output to which the result is added.
        use_layernorm: Whether to normalize after the linear layer, which then has no bias.
        shared: Whether to keep the linear layer even if the width fits, as a supernet's storage has to.
        device: Device of the parameters.
    """

    def __init__(
        self,
        embedding_dim: int,
        dense_width: int,
        use_layernorm: Norm = False,
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
        """Computes ``(B, dense_width)`` from tokens ``(B, N, E)``."""
        interactions = tokens_BNE.sum(dim=1).square() - tokens_BNE.square().sum(dim=1)
        return self.norm(self.project(interactions))
