"""Token mixing with a feed-forward network for each token, the block of RankMixer."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasrec_torchrec.modules.linear import MultiSourceLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operator, across_tokens, laid_across, norm

EXPANSION = 4


class PerTokenLinear(nn.Module):
    """A linear layer E_in -> E_out with a weight and a bias of its own for each of N tokens."""

    def __init__(self, tokens: int, in_features: int, out_features: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, in_features, out_features, device=device))
        self.bias = nn.Parameter(torch.empty(tokens, 1, out_features, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight.is_meta:
            return
        bound = math.sqrt(6.0 / sum(self.weight.shape[1:]))  # Xavier's for the weight of one token
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, tokens_NBE: Tensor) -> Tensor:
        """Maps ``(N, B, E_in)`` to ``(N, B, E_out)``."""
        return torch.baddbmm(self.bias, tokens_NBE, self.weight)


class TokenMixing(Operator):
    """A RankMixer block (arXiv 2507.15551): tokens exchange parts of themselves, then each one passes a network.

    A linear across the tokens brings them to ``width`` tokens X. With ``S = LayerNorm(X + mix(X))`` the output is
    ``LayerNorm(S + FFN_n(S_n))``. ``mix`` has no parameters: it splits each token into H heads and concatenates the
    h-th heads of all tokens to the h-th new one; H is the largest divisor of E that is at most ``width``, and where the
    paper's H = width is impossible the result is cut into ``width`` tokens again. ``FFN_n`` is a linear E -> 4 E, GELU
    and a linear 4 E -> E with weights of its own for every token. As the operator's own, the LayerNorms are there even
    if ``use_layernorm`` is off. See :class:`~nasrec_torchrec.modules.operator.Operator` for the arguments.
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
        dim = shape.embedding_dim
        self.heads = max(heads for heads in range(1, min(width, dim) + 1) if dim % heads == 0)
        self.head_dim = dim // self.heads
        self.linear = MultiSourceLinear(shape.tokens, width, bias=not use_layernorm, device=device)
        self.tokens_norm = norm(width, use_layernorm, device)
        self.mixed_norm = nn.LayerNorm(dim, device=device)
        self.expand = PerTokenLinear(width, dim, EXPANSION * dim, device)
        self.contract = PerTokenLinear(width, EXPANSION * dim, dim, device)
        self.output_norm = nn.LayerNorm(dim, device=device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        tokens_BEN = self.tokens_norm(self.linear([across_tokens(tokens) for tokens in inputs.tokens]))
        tokens_BNE = tokens_BEN.transpose(1, 2)
        heads_BNHD = tokens_BNE.unflatten(2, (self.heads, self.head_dim))
        # As many entries as before: with as many heads as tokens, row h is the h-th head of all tokens.
        mixed_BNE = heads_BNHD.transpose(1, 2).reshape(tokens_BNE.shape)
        mixed_NBE = self.mixed_norm(tokens_BNE + mixed_BNE).transpose(0, 1)
        computed_NBE = self.contract(F.gelu(self.expand(mixed_NBE)))
        return laid_across(self.output_norm(mixed_NBE + computed_NBE).transpose(0, 1))
