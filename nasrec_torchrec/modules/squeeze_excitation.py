"""Squeeze and excitation: tokens are weighted by what all tokens say."""

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import MultiSourceLinear, XavierLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operator, across_tokens, norm

REDUCTION = 4


class SqueezeExcitation(Operator):
    """Weights each token by a gate that reads the means of all tokens (SENET of FiBiNET, arXiv 1905.09433).

    Computes ``token_n * a_n`` with ``a = sigmoid(W_2 relu(W_1 z + b_1) + b_2)``, where ``z_n`` is the mean of token n
    and ``W_1`` maps to a quarter of the tokens. The paper leaves the second activation open; a sigmoid never closes for
    good. A linear across the tokens first brings them to ``width`` tokens and is skipped if they already are. See
    :class:`~nasrec_torchrec.modules.operator.Operator` for the arguments.
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
        self.linear: MultiSourceLinear | None = None
        self.norm: nn.Module = nn.Identity()
        if shared or sum(shape.tokens.values()) != width:
            self.linear = MultiSourceLinear(shape.tokens, width, bias=not use_layernorm, device=device)
            self.norm = norm(width, use_layernorm, device)
        reduced = max(1, width // REDUCTION)
        self.squeeze = XavierLinear(width, reduced, device=device)
        self.excite = XavierLinear(reduced, width, device=device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        tokens = [across_tokens(tokens_BNE) for tokens_BNE in inputs.tokens]
        tokens_BEN = torch.cat(tokens, dim=2) if self.linear is None else self.norm(self.linear(tokens))
        gate_BN = torch.sigmoid(self.excite(torch.relu(self.squeeze(tokens_BEN.mean(1)))))
        return (tokens_BEN * gate_BN.unsqueeze(1)).transpose(1, 2)
