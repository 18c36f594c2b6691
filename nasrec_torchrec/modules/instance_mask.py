"""The instance-guided mask of MaskNet."""

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import MultiSourceLinear, XavierLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operand, Operator, activation, joint_width


class InstanceMask(Operator):
    """A MaskBlock (MaskNet, arXiv 2102.07619, section 3.3): a mask from one operand is multiplied with the other one.

    Computes ``relu(LayerNorm(W (right * mask)))`` with ``mask = W_2 relu(W_1 left + b_1) + b_2``, where ``W_1`` maps to
    ``width`` columns. In the paper ``left`` is the vector of all embeddings and ``right`` that vector or the MaskBlock
    before. As the operator's own, the LayerNorm is there even if ``use_layernorm`` is off. See
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
        masked = joint_width(shape.right, shared)
        self.right = Operand(shape.right, masked)
        self.aggregate = MultiSourceLinear(shape.left, width, device=device)
        self.mask = XavierLinear(width, masked, device=device)
        self.project = XavierLinear(masked, width, bias=False, device=device)
        self.norm = nn.LayerNorm(width, device=device)
        self.activation = activation(shape.activation, device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        mask = self.mask(torch.relu(self.aggregate(inputs.left)))
        return self.activation(self.norm(self.project(self.right(inputs.right) * mask)))
