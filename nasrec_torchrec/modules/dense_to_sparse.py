"""Dense-to-sparse merger: the dense output as 8 more tokens."""

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import XavierLinear
from nasrec_torchrec.modules.operator import laid_across, norm

NUM_MERGED_TOKENS = 8


class DenseToSparse(nn.Module):
    """Projects ``(B, dense_width)`` to 8 tokens of width E.

    The linear and its LayerNorm are skipped when the width already is 8 E.

    Args:
        dense_width: columns of the dense output.
        embedding_dim: width E of a token.
        use_layernorm: normalise after the linear, which then has no bias.
        shared: keep the linear even where the width fits (a supernet's storage).
        device: where the parameters live.
    """

    def __init__(
        self,
        dense_width: int,
        embedding_dim: int,
        use_layernorm: bool = False,
        shared: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        width = NUM_MERGED_TOKENS * embedding_dim
        self.project: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if shared or dense_width != width:
            self.project = XavierLinear(dense_width, width, bias=not use_layernorm, device=device)
            self.norm = norm(width, use_layernorm, device)

    def forward(self, dense: Tensor) -> Tensor:
        """``(B, dense_width)`` to ``(B, 8, E)``."""
        merged_BNE = self.norm(self.project(dense)).unflatten(-1, (NUM_MERGED_TOKENS, self.embedding_dim))
        return laid_across(merged_BNE)
