"""The dense-to-sparse merger, which turns the dense output into 8 more tokens."""

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import XavierLinear
from nasrec_torchrec.modules.operator import Norm, laid_across, norm

NUM_MERGED_TOKENS = 8


class DenseToSparse(nn.Module):
    """Projects ``(B, dense_width)`` to 8 tokens of width E.

    The linear layer and its LayerNorm are skipped if the width already is 8 E.

    Args:
        dense_width: Number of columns of the dense output.
        embedding_dim: Width E of a token.
        use_layernorm: Whether to normalize after the linear layer, which then has no bias.
        shared: Whether to keep the linear layer even if the width fits, as a supernet's storage has to.
        device: Device of the parameters.
    """

    def __init__(
        self,
        dense_width: int,
        embedding_dim: int,
        use_layernorm: Norm = False,
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
        """Projects a dense output ``(B, dense_width)`` to tokens ``(B, 8, E)``."""
        merged_BNE = self.norm(self.project(dense)).unflatten(-1, (NUM_MERGED_TOKENS, self.embedding_dim))
        return laid_across(merged_BNE)
