"""The fully connected layer (FC)."""

import torch
from torch import Tensor

from nasrec_torchrec.modules.kernels.products import activated
from nasrec_torchrec.modules.linear import MultiSourceLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operator, activation, norm


class FullyConnected(Operator):
    """Applies a linear layer to the concatenated dense inputs, LayerNorm if it is used, and the activation.

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
        self.linear = MultiSourceLinear(shape.dense, width, bias=not use_layernorm, device=device)
        self.norm = norm(width, use_layernorm, device)
        self.activation = activation(shape.activation, device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        return activated(self.activation, self.norm(self.linear(inputs.dense)))
