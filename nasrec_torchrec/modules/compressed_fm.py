"""A factorization machine block beside a linear compression, the layer of Wukong."""

from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasrec_torchrec.modules.linear import MultiSourceLinear, XavierLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operator, across_tokens, laid_across

RANK = 8
HIDDEN = 128


class CompressedFM(Operator):
    """A Wukong layer (arXiv 2403.02545, section 3.4), ``LayerNorm([FMB(X); LCB(X)] + X)`` over N tokens X.

    The first half of the ``width`` output tokens come from the factorization machine block,
    ``FMB(X) = MLP(LayerNorm(flatten(X X^T Y)))``, where the learned ``Y`` compresses the N products of a token to 8 and
    the MLP has one hidden layer of 128 columns. The others are the linear compression ``LCB(X) = W X`` across the
    tokens. As in the paper, a linear across the tokens adapts the residual ``X`` where the number of tokens differs.
    As the operator's own, the LayerNorms are there even if ``use_layernorm`` is off; the first one needs no weights
    because a linear layer follows. See :class:`~nasrec_torchrec.modules.operator.Operator` for the arguments.
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
        self.embedding_dim = shape.embedding_dim
        self.tokens_read = list(shape.tokens.values())
        interacting = (width + 1) // 2
        self.compress = MultiSourceLinear(shape.tokens, RANK, bias=False, device=device)
        products = {name: count * RANK for name, count in shape.tokens.items()}
        self.hidden = MultiSourceLinear(products, HIDDEN, device=device)
        self.emit = XavierLinear(HIDDEN, interacting * self.embedding_dim, device=device)
        self.linear = MultiSourceLinear(shape.tokens, width - interacting, bias=False, device=device)
        self.residual: MultiSourceLinear | None = None
        if shared or sum(self.tokens_read) != width:
            self.residual = MultiSourceLinear(shape.tokens, width, bias=False, device=device)
        self.norm = nn.LayerNorm(self.embedding_dim, device=device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        across = [across_tokens(tokens_BNE) for tokens_BNE in inputs.tokens]
        compressed_BEK = self.compress(across)
        # X (X^T Y), without the N x N products.
        products = torch.bmm(torch.cat(inputs.tokens, dim=1), compressed_BEK).flatten(1)
        products = F.layer_norm(products, (RANK * sum(self.tokens_read),))
        ends = accumulate(RANK * count for count in self.tokens_read)
        # Not by split, whose result torch.fx cannot iterate over.
        sources = [products[:, end - RANK * count : end] for count, end in zip(self.tokens_read, ends, strict=True)]
        hidden = torch.relu(self.hidden(sources))
        interacting_BNE = self.emit(hidden).unflatten(1, (-1, self.embedding_dim))
        residual_BEN = torch.cat(across, dim=2) if self.residual is None else self.residual(across)
        tokens_BNE = torch.cat([interacting_BNE, self.linear(across).transpose(1, 2)], dim=1)
        return laid_across(self.norm(tokens_BNE + residual_BEN.transpose(1, 2)))
