"""FinalNet and FinalMLP, whose logit comes from two streams of layers over the same columns."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.mlp import MLP

from nasrec_torchrec.modules.batch_norm import BatchNorm

_HEADS = 2


class FactorizedLayer(nn.Module):
    """A layer of FINAL that is as large as a linear one (Zhu et al., SIGIR 2023): half of its outputs are products.

    Computes ``relu(norm([h, h * f]))`` with ``[h, f] = W x + b``. The published recipes normalize batches; a LayerNorm
    needs no statistics that ranks would have to exchange.

    Args:
        in_features: Number of columns of the input.
        out_features: Number of columns of the output.
        device: Device of the parameters.
        batch_norm: Whether the norm is a BatchNorm instead of a LayerNorm.
    """

    def __init__(
        self, in_features: int, out_features: int, device: torch.device | None = None, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.products = out_features // 2
        self.linear = nn.Linear(in_features, out_features, device=device)
        self.norm = BatchNorm(out_features, device) if batch_norm else nn.LayerNorm(out_features, device=device)

    def forward(self, columns: Tensor) -> Tensor:
        """Maps ``(B, in_features)`` to ``(B, out_features)``."""
        hidden = self.linear(columns)
        kept, factor = hidden[:, self.products :], hidden[:, : self.products]
        return torch.relu(self.norm(torch.cat([kept, kept[:, : self.products] * factor], dim=1)))


class FinalNetInteraction(nn.Module):
    """FinalNet (Zhu et al., SIGIR 2023): the mean of two stacks of factorized interactions, each taught by that mean.

    The first stack also reads every embedding times a gate, ``W e + b`` across the fields. In training, each stack
    gets the gradient of its binary cross entropy against the predicted click rate on top, as if that were in the loss,
    which has to be a mean over the rows.

    Args:
        dense_in_features: Number of dense features.
        num_fields: Number of sparse features.
        embedding_dim: Width of an embedding.
        hidden: Layer widths of the first stack. The second one has all but the last, or the only one.
        device: Device of the parameters.
        batch_norm: Whether the layers normalize batches.
        label_weights: Weight of the loss of each label that is predicted, with which its mean teaches both stacks too;
            on all rows, also where the label is not known.
    """

    def __init__(
        self,
        dense_in_features: int,
        num_fields: int,
        embedding_dim: int,
        hidden: Sequence[int],
        device: torch.device | None = None,
        batch_norm: bool = False,
        label_weights: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self.dense_in_features = dense_in_features
        columns = dense_in_features + num_fields * embedding_dim
        self.gate = nn.Linear(num_fields, num_fields, device=device)
        self.label_weights = tuple(label_weights)
        last = len(self.label_weights), device, batch_norm
        self.first = _stack(columns + num_fields * embedding_dim, hidden, *last)
        self.second = _stack(columns, hidden[:-1] or hidden, *last)

    def forward(self, dense_features: Tensor, embedded_features: Tensor) -> Tensor:
        """Computes logits ``(B, T)`` from ``(B, F_dense)`` and ``(B, F_sparse, E)``."""
        gates = self.gate(embedded_features.transpose(1, 2)).transpose(1, 2)
        columns = torch.cat([dense_features, embedded_features.flatten(1)], dim=1)
        gated = torch.cat([columns, (embedded_features * gates).flatten(1)], dim=1)
        logits = self.first(gated), self.second(columns)
        return _TaughtMean.apply(*logits, self.label_weights) if self.training else (logits[0] + logits[1]) / 2


class FinalMLPInteraction(nn.Module):
    """FinalMLP (arXiv 2304.00902): a bilinear function of two MLPs that read the same columns by different gates.

    ``logit = b + w_1 o_1 + w_2 o_2 + sum_h o_1h W_h o_2h`` for two heads h, the halves of the streams' outputs o_1 and
    o_2. No field is named as the context of a gate, whose network then is a constant: two learned numbers between 0 and
    2 for each column.

    Args:
        dense_in_features: Number of dense features.
        num_fields: Number of sparse features.
        embedding_dim: Width of an embedding.
        hidden: Layer widths of each MLP.
        device: Device of the parameters.
        num_labels: Number of labels that are predicted, each by a bilinear function of its own.
    """

    def __init__(
        self,
        dense_in_features: int,
        num_fields: int,
        embedding_dim: int,
        hidden: Sequence[int],
        device: torch.device | None = None,
        num_labels: int = 1,
    ) -> None:
        super().__init__()
        self.dense_in_features = dense_in_features
        columns = dense_in_features + num_fields * embedding_dim
        self.gates = ColumnGates(2, columns, device)
        self.first = MLP(columns, list(hidden), device=device)
        self.second = MLP(columns, list(hidden), device=device)
        width = hidden[-1]
        self.heads = _HEADS if width % _HEADS == 0 else 1
        self.bilinear = nn.ModuleList(
            nn.Linear(width // self.heads, width // self.heads, bias=False, device=device)
            for _ in range(num_labels * self.heads)
        )
        self.over_arch = nn.Linear(2 * width, num_labels, device=device)

    def forward(self, dense_features: Tensor, embedded_features: Tensor) -> Tensor:
        """Computes logits ``(B, T)`` from ``(B, F_dense)`` and ``(B, F_sparse, E)``."""
        columns = torch.cat([dense_features, embedded_features.flatten(1)], dim=1)
        first_gate, second_gate = self.gates()
        first, second = self.first(columns * first_gate), self.second(columns * second_gate)
        # A tracer can index the chunks but not iterate over them.
        left, right = first.chunk(self.heads, 1), second.chunk(self.heads, 1)
        products = [
            weigh(left[place % self.heads]) * right[place % self.heads] for place, weigh in enumerate(self.bilinear)
        ]
        of_labels = [
            torch.cat(products[place : place + self.heads], dim=1).sum(1, keepdim=True)
            for place in range(0, len(products), self.heads)
        ]
        pairs = of_labels[0] if len(of_labels) == 1 else torch.cat(of_labels, dim=1)
        return self.over_arch(torch.cat([first, second], dim=1)) + pairs


class ColumnGates(nn.Module):
    """Learned numbers between 0 and 2 for each column, in several sets; all of them start at 1."""

    def __init__(self, sets: int, columns: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sets, columns, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self) -> Tensor:
        """Returns the gates ``(sets, columns)``."""
        return 2 * torch.sigmoid(self.weight)


def _stack(
    columns: int, hidden: Sequence[int], labels: int, device: torch.device | None, batch_norm: bool
) -> nn.Sequential:
    layers = [FactorizedLayer(*widths, device, batch_norm) for widths in pairwise([columns, *hidden])]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], labels, device=device))


class _TaughtMean(torch.autograd.Function):
    """The mean of two logits; backward adds the gradient of each one's cross entropy against the mean's probability."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, label_weights: tuple[float, ...]) -> Tensor:
        ctx.save_for_backward(first, second)
        ctx.label_weights = label_weights
        return (first + second) / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        logits = ctx.saved_tensors
        target = torch.sigmoid((logits[0] + logits[1]) / 2)
        first, second = (
            gradient / 2 + _weighted((torch.sigmoid(logit) - target) / len(logit), ctx.label_weights)
            for logit in logits
        )
        return first, second, None


def _weighted(columns: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Multiplies every column by its weight; numbers need no copy to the device, which a CUDA graph cannot contain."""
    if all(weight == 1.0 for weight in weights):
        return columns
    parts = zip(columns.split(1, dim=1), weights, strict=True)
    return torch.cat([column * weight for column, weight in parts], dim=1)
