"""The gated cross layer of GDCN."""

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import MultiSourceLinear, XavierLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operand, Operator, norm, padded_width


class GatedCross(Operator):
    """A cross layer whose products pass an information gate (GDCN, arXiv 2311.04635, equation 2).

    Computes ``left * (W_c right + b) * sigmoid(W_g right) + right`` and projects it to ``width`` columns. In the paper
    ``left`` is the input of the network and ``right`` the output of the layer before. The narrower operand is padded
    with zeros, and the projection is skipped if the operands are as wide as the output. See
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
        padded = padded_width(shape.left, shape.right, shared)
        self.left = Operand(shape.left, padded)
        self.right = Operand(shape.right, padded)
        self.cross = MultiSourceLinear(shape.right, padded, device=device)
        self.gate = MultiSourceLinear(shape.right, padded, bias=False, device=device)
        self.project: nn.Module = nn.Identity()
        if shared or padded != width:
            self.project = XavierLinear(padded, width, bias=not use_layernorm, device=device)
        self.norm = norm(width, use_layernorm, device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        crossed = self.left(inputs.left) * self.cross(inputs.right) * torch.sigmoid(self.gate(inputs.right))
        return self.norm(self.project(crossed + self.right(inputs.right)))
