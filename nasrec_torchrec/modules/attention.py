"""Attention (AT) among tokens."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasrec_torchrec.modules.kernels.self_attention import has_kernel, self_attention
from nasrec_torchrec.modules.linear import MultiSourceLinear, XavierLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operator, across_tokens, laid_across, norm

NUM_HEADS = 8
# The published networks start the LayerNorms of the residual branches at this weight.
INITIAL_NORM_WEIGHT = 0.17
# Of 2 ** x, highest power first, fitted for the least relative error (7.5e-8) between -1/2 and 1/2.
_POLYNOMIAL = (
    *(0.0013276471519700801, 0.009675541330674983, 0.05550713274960644),
    *(0.2402211972393411, 0.693146967063865, 1.000000071654656),
)


class ResidualNorm(nn.LayerNorm):
    """LayerNorm that starts at weight 0.17."""

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, INITIAL_NORM_WEIGHT)
        nn.init.zeros_(self.bias)


class Attention(Operator):
    """Linear across the tokens to ``width`` tokens, then one transformer layer with 8 heads and no dropout.

    Residual and LayerNorm follow the attention and the two linears E -> E. See :class:`Operator` for the arguments.

    Raises:
        ValueError: If E is not a multiple of the 8 heads.
    """

    num_heads = NUM_HEADS

    def __init__(
        self,
        shape: BlockShape,
        width: int,
        use_layernorm: Norm = False,
        shared: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(shape, width, use_layernorm, shared, device)
        embedding_dim = shape.embedding_dim
        if embedding_dim % self.num_heads:
            raise ValueError(
                f"attention needs an embedding_dim that is a multiple of {self.num_heads}, found {embedding_dim}"
            )
        self.head_dim = embedding_dim // self.num_heads
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
        exported = torch.compiler.is_exporting() and tokens_BEN.device.type == "cpu"
        heads = self._heads_pairwise(tokens_BEN) if exported else self._heads(tokens_BNE)
        attended = self.project_heads(heads)
        attended = self.attention_norm(attended + tokens_BNE)
        out_BNE = self.output_norm(attended + self.contract(torch.relu(self.expand(attended))))
        return laid_across(out_BNE)

    def _heads(self, tokens_BNE: Tensor) -> Tensor:
        qkv = self.project_qkv(tokens_BNE)
        if _ours_may_run(qkv) and has_kernel(
            self.head_dim, qkv.dtype == torch.float64, qkv.device.type, tokens_BNE.shape[1]
        ):
            return self_attention(qkv, self.num_heads)
        heads = qkv.unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, head_dim)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    def _heads_pairwise(self, tokens_BEN: Tensor) -> Tensor:
        """The same, written so that the export's compiler makes one loop of it; its default options make several.

        A head is two numbers wide where E is 16: matrix kernels then spend their time on overhead. In one loop over all
        pairs of tokens, with the tokens side by side in memory, this takes about a third of their time on a CPU.
        """
        weight, bias = self.project_qkv.weight, self.project_qkv.bias
        assert bias is not None
        # Scores in powers of two.
        width = self.num_heads * self.head_dim
        scale = torch.cat(
            [weight.new_full((width,), math.log2(math.e) / math.sqrt(self.head_dim)), weight.new_ones(2 * width)]
        )
        scaled = (weight * scale.unsqueeze(1)).expand(tokens_BEN.shape[0], -1, -1)
        qkv = torch.baddbmm((bias * scale).unsqueeze(1), scaled, tokens_BEN)
        # (B, heads, N) for each of the head's dimensions.
        parts = qkv.unflatten(1, (3, self.num_heads, self.head_dim)).unbind(1)
        query, key, value = ([part[:, :, i] for i in range(self.head_dim)] for part in parts)
        # The largest score of a query would take one more pass over all pairs. It lies between the mean score and
        # what the largest and smallest keys allow; in the middle nothing overflows or vanishes while these are less
        # than 220 powers of two apart. Beyond, which takes weights that have diverged, the result is finite but rough.
        pairs = list(zip(query, key, strict=True))
        most = _total(torch.maximum(q * k.amax(-1, True), q * k.amin(-1, True)) for q, k in pairs)
        mean = _total(q * k.mean(-1, keepdim=True) for q, k in pairs)
        middle = torch.maximum((most + mean) / 2, most - 110)
        scores = _total(q.unsqueeze(3) * k.unsqueeze(2) for q, k in pairs)
        weights = power_of_two(scores - middle.unsqueeze(3))
        total = weights.sum(3)
        heads = [(weights * v.unsqueeze(2)).sum(3) / total for v in value]  # each (B, heads, N)
        return torch.stack(heads, 2).flatten(1, 2).transpose(1, 2)


def _ours_may_run(tensor: Tensor) -> bool:
    """Returns whether an operator of our own may run: not in a graph that is to run elsewhere, without this package."""
    # torch.fx traces with stand-ins for tensors.
    return isinstance(tensor, Tensor) and not torch.compiler.is_exporting() and not torch.jit.is_tracing()


def power_of_two(exponents: Tensor) -> Tensor:
    """``2 ** exponents``, below -125 as there; float32 within 1e-7 of the result.

    A compiler makes fewer instructions of it than a library's exponential takes: a whole power of two is a number's
    exponent bits, and what is left, between -1/2 and 1/2, is a polynomial.
    """
    exponents = exponents.clamp(min=-125)
    if exponents.dtype != torch.float32:
        return torch.exp2(exponents)
    whole = exponents.round()
    rest = exponents - whole
    power = torch.full_like(rest, _POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        power = power * rest + coefficient
    return power * (whole.to(torch.int32) + 127).bitwise_left_shift(23).view(torch.float32)


def _total(parts: Iterable[Tensor]) -> Tensor:
    first, *rest = parts
    return sum(rest, start=first)
