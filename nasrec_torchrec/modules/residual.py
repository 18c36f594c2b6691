"""The residual connection of a choice block."""

from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Brings an input to the width of an output, so that both can be added (ResNet, arXiv 1512.03385).

    It has no parameters: a wider input is cut to its first columns, and a narrower one is padded with zeros, as ResNet
    does where shapes differ. So columns meet the same columns in every subnet of a supernet.

    Args:
        found: columns of the input.
        width: columns of the output.
    """

    def __init__(self, found: int, width: int) -> None:
        super().__init__()
        self.missing = width - found

    def forward(self, columns: Tensor) -> Tensor:
        """Maps ``(..., found)`` to ``(..., width)``."""
        return F.pad(columns, (0, self.missing)) if self.missing else columns  # a negative number cuts
