"""The factorized interaction layer of FINAL."""

import torch
from torch import Tensor

from nasrec_torchrec.modules.linear import MultiSourceLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operator, activation, norm


class FactorizedInteraction(Operator):
    """Replaces the linear layer of an FC by a quadratic one (FINAL, Zhu et al., SIGIR 2023, section 3.1).

    Computes ``relu(h + h * f)`` with ``h = W_h x + b_h`` and ``f = W_f x + b_f`` over the concatenated dense inputs
    ``x``, with a LayerNorm before the ReLU if it is used. A stack of L such layers has interactions of up to 2^L
    columns. See :class:`~nasrec_torchrec.modules.operator.Operator` for the arguments.
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
        self.linear = MultiSourceLinear(shape.dense, width, device=device)
        self.factor = MultiSourceLinear(shape.dense, width, device=device)
        self.norm = norm(width, use_layernorm, device)
        self.activation = activation(shape.activation, device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        hidden = self.linear(inputs.dense)
        return self.activation(self.norm(hidden + hidden * self.factor(inputs.dense)))
