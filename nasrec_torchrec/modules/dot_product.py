"""Dot product (DP): pairwise products between tokens and the projected dense input."""

import math

import torch
from torch import Tensor, fx, nn

from nasrec_torchrec.modules.kernels.pair_products import SCALARS, has_kernel, pair_products
from nasrec_torchrec.modules.kernels.products import runs_eagerly
from nasrec_torchrec.modules.linear import MultiSourceLinear, XavierLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operator, across_tokens, norm


def num_projected_tokens(width: int) -> int:
    """Tokens after operator balancing (NASRec, section 3.3): as many as give about ``width`` products."""
    return round(math.sqrt(2 * width))


@fx.wrap
def lower_triangle(gram_BKK: Tensor) -> Tensor:
    """Entries below the diagonal, row by row: ``(B, K, K)`` to ``(B, K * (K - 1) / 2)``.

    In this order the products among the first tokens come first, so a smaller set of tokens yields a prefix.
    """
    size = gram_BKK.shape[-1]
    below = torch.tril_indices(size, size, offset=-1, device=gram_BKK.device)
    # TorchScript, which TorchRec's quantized models are made of, cannot unpack a tensor.
    return gram_BKK.flatten(1).index_select(1, below[0] * size + below[1])


class DotProduct(Operator):
    """Products of all pairs among the tokens and the dense input, projected to ``width``.

    The dense input is projected to a token of width E (skipped when it is that wide), the tokens are projected to
    ``round(sqrt(2 * width))`` tokens (skipped when there are as many); the dense token comes first.
    See :class:`Operator` for the arguments.
    """

    def __init__(
        self,
        shape: BlockShape,
        width: int,
        use_layernorm: Norm = False,
        shared: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(shape, width, use_layernorm, shared, device)
        bias = not use_layernorm
        embedding_dim = shape.embedding_dim
        num_tokens = num_projected_tokens(width)
        self.project_dense: MultiSourceLinear | None = None
        if shared or sum(shape.dense.values()) != embedding_dim:
            self.project_dense = MultiSourceLinear(shape.dense, embedding_dim, bias, device)
            self.dense_norm = norm(embedding_dim, use_layernorm, device)
        self.project_tokens: MultiSourceLinear | None = None
        if shared or sum(shape.tokens.values()) != num_tokens:
            self.project_tokens = MultiSourceLinear(shape.tokens, num_tokens, bias, device)
            self.tokens_norm = norm(num_tokens, use_layernorm, device)
        num_products = num_tokens * (num_tokens + 1) // 2
        self.project: nn.Module = nn.Identity()
        if shared or num_products != width:
            self.project = XavierLinear(num_products, width, bias=bias, device=device)
        self.norm = norm(width, use_layernorm, device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        if self.project_dense is None:
            dense_BE = torch.cat(inputs.dense, dim=1)
        else:
            dense_BE = self.dense_norm(self.project_dense(inputs.dense))
        tokens = [across_tokens(tokens_BNE) for tokens_BNE in inputs.tokens]
        if self.project_tokens is None:
            tokens_BEN = torch.cat(tokens, dim=2)
        else:
            tokens_BEN = self.tokens_norm(self.project_tokens(tokens))
        all_BEK = torch.cat([dense_BE.unsqueeze(2), tokens_BEN], dim=2)
        return self.norm(self.project(_of_pairs(all_BEK)))


def _of_pairs(all_BEK: Tensor) -> Tensor:
    if runs_eagerly(all_BEK) and all_BEK.dtype in SCALARS and has_kernel(all_BEK.dtype == torch.float64):
        return pair_products(all_BEK)
    return lower_triangle(torch.bmm(all_BEK.transpose(1, 2), all_BEK))
