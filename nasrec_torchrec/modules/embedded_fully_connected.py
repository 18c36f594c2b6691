"""The embedded fully connected layer (EFC), a fully connected layer across tokens."""

import torch
from torch import Tensor

from nasrec_torchrec.modules.kernels.products import activated
from nasrec_torchrec.modules.linear import MultiSourceLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operator, across_tokens, activation, norm


class EmbeddedFullyConnected(Operator):
    """Applies a linear layer across the N tokens, LayerNorm over the tokens if it is used, and the activation.

    See :class:`~nasrec_torchrec.modules.operator.Operator` for the arguments.
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
        self.linear = MultiSourceLinear(shape.tokens, width, bias=not use_layernorm, device=device)
        self.norm = norm(width, use_layernorm, device)
        self.activation = activation(shape.activation, device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        tokens_BEN = self.linear([across_tokens(tokens_BNE) for tokens_BNE in inputs.tokens])
        return activated(self.activation, self.norm(tokens_BEN)).transpose(1, 2)
