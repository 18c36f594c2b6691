"""The low-rank cross layer of DCN-V2."""

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import MultiSourceLinear, XavierLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operand, Operator, norm, padded_width

# DCN-V2 (section 7.3) finds a quarter of the columns enough.
COLUMNS_PER_RANK = 4


class LowRankCross(Operator):
    """A cross layer with a weight of low rank (DCN-V2, arXiv 2008.13535, equation 2).

    Computes ``left * (U V right + b) + right`` and projects it to ``width`` columns. In the paper ``left`` is the input
    of the network, x0, and ``right`` is the output of the layer before. ``V`` maps to a quarter of ``width`` columns.
    The narrower operand is padded with zeros, and the projection is skipped if the operands are as wide as the output.
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
        padded = padded_width(shape.left, shape.right, shared)
        rank = max(1, width // COLUMNS_PER_RANK)
        self.left = Operand(shape.left, padded)
        self.right = Operand(shape.right, padded)
        self.compress = MultiSourceLinear(shape.right, rank, bias=False, device=device)
        self.expand = XavierLinear(rank, padded, device=device)
        self.project: nn.Module = nn.Identity()
        if shared or padded != width:
            self.project = XavierLinear(padded, width, bias=not use_layernorm, device=device)
        self.norm = norm(width, use_layernorm, device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        crossed = self.left(inputs.left) * self.expand(self.compress(inputs.right)) + self.right(inputs.right)
        return self.norm(self.project(crossed))
