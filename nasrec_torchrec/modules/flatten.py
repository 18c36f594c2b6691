"""Flattening: all dense inputs and all tokens side by side as dense columns."""

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.linear import MultiSourceLinear
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape, Norm, Operator, norm


class Flatten(Operator):
    """Concatenates the dense inputs and the flattened tokens and projects them to ``width`` columns.

    Computes ``W [dense; token_1; ...; token_N] + b``, without an activation. The projection is skipped if the columns
    already are ``width``. Deep and cross networks start from this vector, ``x0`` in DCN-V2 (arXiv 2008.13535, section
    3.1). See :class:`~nasrec_torchrec.modules.operator.Operator` for the arguments.
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
        columns = {f"dense_{name}": columns for name, columns in shape.dense.items()}
        columns |= {f"tokens_{name}": count * shape.embedding_dim for name, count in shape.tokens.items()}
        self.project: MultiSourceLinear | None = None
        self.norm: nn.Module = nn.Identity()
        if shared or sum(columns.values()) != width:
            self.project = MultiSourceLinear(columns, width, bias=not use_layernorm, device=device)
            self.norm = norm(width, use_layernorm, device)

    def forward(self, inputs: BlockInputs) -> Tensor:
        columns = [*inputs.dense, *(tokens_BNE.flatten(1) for tokens_BNE in inputs.tokens)]
        if self.project is None:
            return torch.cat(columns, dim=1)
        return self.norm(self.project(columns))
