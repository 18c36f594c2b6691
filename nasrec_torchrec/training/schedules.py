"""Learning rate and path sampling over the steps of a run."""

import math
from dataclasses import dataclass


def cosine_with_warmup(
    step: int, total_steps: int, max_lr: float, warmup_fraction: float = 0.1, min_lr: float = 1e-8
) -> float:
    """Learning rate in force at a step: linear from ``min_lr`` to ``max_lr``, then half a cosine back.

    Args:
        step: 0-based.
        total_steps: steps of the run; later steps keep ``min_lr``.
        max_lr: reached at the end of the warm-up.
        warmup_fraction: share of the steps that warm up.
        min_lr: where it starts and ends.
    """
    warmup_steps = round(total_steps * warmup_fraction)
    if step < warmup_steps:
        return warmup(step, total_steps, max_lr, warmup_fraction, min_lr)
    if step >= total_steps:
        return min_lr
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + (max_lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


def warmup(step: int, total_steps: int, max_lr: float, warmup_fraction: float = 0.1, min_lr: float = 1e-8) -> float:
    """The warm-up alone: linear from ``min_lr``, then ``max_lr``; arguments as of :func:`cosine_with_warmup`."""
    warmup_steps = round(total_steps * warmup_fraction)
    return min_lr + (max_lr - min_lr) * min(1.0, step / warmup_steps) if warmup_steps else max_lr


@dataclass
class Plateau:
    """Divides the learning rate by ten when epochs stop to improve, and ends the run the third time.

    Args:
        patience: epochs in a row without a new best.
        waited: such epochs since the last best or the last division.
        drops: times that this happened.
    """

    patience: int
    waited: int = 0
    drops: int = 0

    def see(self, improved: bool) -> None:
        """An epoch is over."""
        self.waited = 0 if improved else self.waited + 1
        if self.waited == self.patience:
            self.waited, self.drops = 0, self.drops + 1

    @property
    def factor(self) -> float:
        """Of the learning rate."""
        return 0.1**self.drops

    @property
    def ended(self) -> bool:
        return self.drops == 3


def full_path_probability(step: int, full_path_steps: int) -> float:
    """Chance that a supernet step takes the full path: decays linearly from 1 to 0 over the first steps."""
    return max(0.0, 1.0 - step / full_path_steps) if full_path_steps > 0 else 0.0
