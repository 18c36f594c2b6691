"""Linear layers with the research code's initialisation: Xavier uniform weights, zero bias."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nasrec_torchrec.modules.kernels.products import PADDED, products, runs_eagerly


class XavierLinear(nn.Linear):
    """``nn.Linear`` that starts as the research code's linears do."""

    def reset_parameters(self) -> None:
        if self.weight.is_meta:  # nothing to start yet, and a supernet binds hundreds of these in every step
            return
        if self.in_features:  # a model without dense features has linears over nothing, which emit their bias
            nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if self.in_features > PADDED and self.in_features % 8 and runs_eagerly(input):
            return products(self.bias, [input], [self.weight])
        return super().forward(input)


class MultiSourceLinear(nn.Module):
    """A linear layer over the concatenation of several inputs, with one weight per input.

    Equal to ``Linear(torch.cat(inputs, -1))``. The weight is kept in pieces so that a subnet's weight, whatever inputs
    it reads and however wide they are, is a plain prefix slice of each piece in the supernet. It also saves the
    concatenation: the pieces accumulate into one output.

    Args:
        in_features: width of each input, by the name of its source, in the order in which they are passed.
        out_features: columns of the output.
        bias: whether a bias is added.
        device: where the parameters live; ``meta`` is allowed.
    """

    def __init__(
        self,
        in_features: Mapping[str, int],
        out_features: int,
        bias: bool = True,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.in_features = dict(in_features)
        self.out_features = out_features
        for source, width in self.in_features.items():
            weight = nn.Parameter(torch.empty(out_features, width, device=device))
            self.register_parameter(f"weight_{source}", weight)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, device=device)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if any(weight.is_meta for weight in self.parameters()):
            return
        # The bound is that of the whole weight, not of each piece.
        bound = math.sqrt(6.0 / max(1, sum(self.in_features.values()) + self.out_features))
        with torch.no_grad():
            for source in self.in_features:
                self.weight(source).uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.zero_()

    def weight(self, source: str) -> nn.Parameter:
        """Returns the weight ``(out_features, in_features[source])`` that reads one source."""
        return getattr(self, f"weight_{source}")

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """
        Args:
            inputs: one tensor ``(..., in_features[source])`` per source, in order.

        Returns:
            Tensor: ``(..., out_features)``.
        """
        first, *rest = inputs
        if runs_eagerly(first):
            return products(self.bias, inputs, [self.weight(source) for source in self.in_features])
        name, *names = self.in_features
        rows = first.flatten(0, -2)
        weight = self.weight(name).t()
        out = rows @ weight if self.bias is None else torch.addmm(self.bias, rows, weight)
        for name, source in zip(names, rest, strict=True):
            out = torch.addmm(out, source.flatten(0, -2), self.weight(name).t())
        return out.view(first.shape[:-1] + (self.out_features,))
