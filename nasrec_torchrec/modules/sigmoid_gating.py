"""Sigmoid gating (SG), in which the left dense operand decides how much of the right one passes."""

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import MultiSourceLinear, XavierLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operand, Operator, norm, padded_width


class SigmoidGating(Operator):
    """Computes ``sigmoid(linear(left)) * right`` and projects it to ``width`` columns.

    The narrower operand is padded with zeros, and the linear layer maps the left operand to the padded width. In the
    research code that layer is square. The columns that are only ever multiplied by padding are left out here, which
    does not change any output. See :class:`~nasrec_torchrec.modules.operator.Operator` for the arguments.
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
        padded = padded_width(shape.left, shape.right, shared)
        self.right = Operand(shape.right, padded)
        self.gate = MultiSourceLinear(shape.left, padded, bias=True, device=device)
        self.project: nn.Module = nn.Identity()
        if shared or padded != width:
            self.project = XavierLinear(padded, width, device=device)
        self.norm = norm(width, use_layernorm, device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        gate = torch.sigmoid(self.gate(inputs.left))
        return self.norm(self.project(gate * self.right(inputs.right)))
