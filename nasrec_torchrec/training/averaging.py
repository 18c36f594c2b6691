"""An exponential moving average of the dense weights, which is measured, kept and exported in their place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class DenseAverage:
    """Keeps the average of dense weights beside them, on the same device; every rank has the same.

    Args:
        weights: weights by name, which an optimizer updates.
        decay: share of the average that a step keeps; the rest comes from the weights.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self._weights = nn.ParameterList(weights.values())
        self._average = AveragedModel(self._weights, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {
            name: (weight.detach(), average.detach())
            for (name, weight), average in zip(weights.items(), self._average.parameters(), strict=True)
        }

    def update(self) -> None:
        """Takes in the weights after a step; the first ones are the average so far."""
        self._average.update_parameters(self._weights)

    def resume(self, steps: int) -> None:
        """Says how many steps the restored average has taken in."""
        self._average.n_averaged.fill_(steps)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Puts the average in the place of the weights until the end of the context."""
        weights = [weight for weight, _ in self.pairs.values()]
        trained = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, [average for _, average in self.pairs.values()])
        try:
            yield
        finally:
            torch._foreach_copy_(weights, trained)
