"""Sum of two dense operands."""

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import XavierLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Operator, norm, pad, padded_width


class DenseSum(Operator):
    """``left + right``, the narrower padded with zeros, projected to ``width``; see :class:`Operator`."""

    def __init__(
        self,
        shape: BlockShape,
        width: int,
        use_layernorm: bool = False,
        shared: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(shape, width, use_layernorm, shared, device)
        self.padded_width = padded_width(shape.left, shape.right, shared)
        self.project: nn.Module = nn.Identity()
        if shared or self.padded_width != width:
            self.project = XavierLinear(self.padded_width, width, bias=not use_layernorm, device=device)
        self.norm = norm(width, use_layernorm, device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        total = pad(inputs.left, self.padded_width) + pad(inputs.right, self.padded_width)
        return self.norm(self.project(total))
