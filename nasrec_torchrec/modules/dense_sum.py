"""The sum of two dense operands."""

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import XavierLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operand, Operator, norm, padded_width


class DenseSum(Operator):
    """Computes ``left + right`` and projects it to ``width`` columns.

    The narrower operand is padded with zeros. See :class:`~nasrec_torchrec.modules.operator.Operator` for the
    arguments.
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
        self.left = Operand(shape.left, padded)
        self.right = Operand(shape.right, padded)
        self.project: nn.Module = nn.Identity()
        if shared or padded != width:
            self.project = XavierLinear(padded, width, bias=not use_layernorm, device=device)
        self.norm = norm(width, use_layernorm, device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        return self.norm(self.project(self.left(inputs.left) + self.right(inputs.right)))
