"""An operator of one's own: the cross layer of DCN-V2 (arXiv 2008.13535), x0 * (W x + b) + x."""

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import MultiSourceLinear, XavierLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Operand, Operator, norm, padded_width
from nasrec_torchrec.modules.registry import register_operator


@register_operator("cross", side="dense", reads=["operands"], caption="CN")
class Cross(Operator):
    """``left * linear(right) + right``, the narrower operand padded with zeros, projected to ``width``."""

    def __init__(
        self,
        shape: BlockShape,
        width: int,
        use_layernorm: bool = False,
        shared: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(shape, width, use_layernorm, shared, device)
        padded = padded_width(shape.left, shape.right, shared)
        self.left = Operand(shape.left, padded)
        self.right = Operand(shape.right, padded)
        self.weigh = MultiSourceLinear(shape.right, padded, bias=True, device=device)
        # Left out where the width fits already; a supernet stores it for the subnets where it does not.
        self.project: nn.Module = nn.Identity()
        if shared or padded != width:
            self.project = XavierLinear(padded, width, bias=not use_layernorm, device=device)
        self.norm = norm(width, use_layernorm, device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        crossed = self.left(inputs.left) * self.weigh(inputs.right) + self.right(inputs.right)
        return self.norm(self.project(crossed))
