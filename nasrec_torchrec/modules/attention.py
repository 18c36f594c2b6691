"""Attention (AT) among tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasrec_torchrec.modules.linear import MultiSourceLinear, XavierLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Operator, across_tokens, laid_across, norm

NUM_HEADS = 8
# The published networks start the LayerNorms of the residual branches at this weight.
INITIAL_NORM_WEIGHT = 0.17


class ResidualNorm(nn.LayerNorm):
    """LayerNorm that starts at weight 0.17."""

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, INITIAL_NORM_WEIGHT)
        nn.init.zeros_(self.bias)


class Attention(Operator):
    """Linear across the tokens to ``width`` tokens, then one transformer layer with 8 heads and no dropout.

    Residual and LayerNorm follow the attention and the two linears E -> E. See :class:`Operator` for the arguments.

    Raises:
        ValueError: when E is not a multiple of the 8 heads.
    """

    def __init__(
        self,
        shape: BlockShape,
        width: int,
        use_layernorm: bool = False,
        shared: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(shape, width, use_layernorm, shared, device)
        embedding_dim = shape.embedding_dim
        if embedding_dim % NUM_HEADS:
            raise ValueError(
                f"attention needs an embedding_dim that is a multiple of {NUM_HEADS}, found {embedding_dim}"
            )
        self.head_dim = embedding_dim // NUM_HEADS
        self.linear = MultiSourceLinear(shape.tokens, width, bias=not use_layernorm, device=device)
        self.tokens_norm = norm(width, use_layernorm, device)
        self.project_qkv = XavierLinear(embedding_dim, 3 * embedding_dim, device=device)
        self.project_heads = XavierLinear(embedding_dim, embedding_dim, device=device)
        self.attention_norm = ResidualNorm(embedding_dim, device=device)
        self.expand = XavierLinear(embedding_dim, embedding_dim, device=device)
        self.contract = XavierLinear(embedding_dim, embedding_dim, device=device)
        self.output_norm = ResidualNorm(embedding_dim, device=device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        tokens_BEN = self.tokens_norm(self.linear([across_tokens(tokens) for tokens in inputs.tokens]))
        tokens_BNE = tokens_BEN.transpose(1, 2).contiguous()
        qkv = self.project_qkv(tokens_BNE).unflatten(-1, (3, NUM_HEADS, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, head_dim)
        heads = F.scaled_dot_product_attention(query, key, value)
        attended = self.project_heads(heads.transpose(1, 2).flatten(2))
        attended = self.attention_norm(attended + tokens_BNE)
        out_BNE = self.output_norm(attended + self.contract(torch.relu(self.expand(attended))))
        return laid_across(out_BNE)
