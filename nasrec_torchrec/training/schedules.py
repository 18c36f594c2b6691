"""Schedules of the learning rate and of path sampling over the steps of a run."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from nasrec_torchrec.training.config import TrainConfig


def cosine_with_warmup(
    step: int, total_steps: int, max_lr: float, warmup_fraction: float = 0.1, min_lr: float = 1e-8
) -> float:
    """Computes the learning rate of a step: linear from ``min_lr`` to ``max_lr``, then half a cosine back.

    Args:
        step: number of the step, counted from 0.
        total_steps: number of steps of the run; later steps keep ``min_lr``.
        max_lr: learning rate at the end of the warm-up.
        warmup_fraction: fraction of the steps that belong to the warm-up.
        min_lr: learning rate at the start and at the end.

    Returns:
        float: The learning rate.
    """
    warmup_steps = round(total_steps * warmup_fraction)
    if step < warmup_steps:
        return warmup(step, total_steps, max_lr, warmup_fraction, min_lr)
    if step >= total_steps:
        return min_lr
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + (max_lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


def warmup(step: int, total_steps: int, max_lr: float, warmup_fraction: float = 0.1, min_lr: float = 1e-8) -> float:
    """Computes the warm-up alone: linear from ``min_lr``, then ``max_lr``. See :func:`cosine_with_warmup`."""
    warmup_steps = round(total_steps * warmup_fraction)
    return min_lr + (max_lr - min_lr) * min(1.0, step / warmup_steps) if warmup_steps else max_lr


@dataclass
class Plateau:
    """Divides the learning rate by ten when epochs stop improving, and ends the run instead of a third division.

    Args:
        patience: number of epochs in a row without a new best after which to act.
        waited: number of such epochs since the last best or the last division.
        drops: number of times that ``patience`` ran out.
    """

    patience: int
    waited: int = 0
    drops: int = 0

    def see(self, improved: bool) -> None:
        """Records that an epoch has ended, and whether it is the best so far."""
        self.waited = 0 if improved else self.waited + 1
        if self.waited == self.patience:
            self.waited, self.drops = 0, self.drops + 1

    @property
    def factor(self) -> float:
        """Factor by which the learning rate is multiplied."""
        return 0.1**self.drops

    @property
    def ended(self) -> bool:
        return self.drops == 3


class LearningRate:
    """The learning rate over the steps of a run.

    Args:
        config: configuration with the name and the parameters of the schedule.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._plateau = Plateau(config.patience)

    def at(self, step: int, total_steps: int) -> float:
        """Returns the learning rate of a step, counted from 0, in a run of ``total_steps`` steps."""
        config = self._config
        arguments = step, total_steps, config.learning_rate, config.warmup_fraction, config.min_learning_rate
        if config.schedule == "plateau":
            return self._plateau.factor * warmup(*arguments)
        return cosine_with_warmup(*arguments)

    def end_epoch(self, improved: bool) -> None:
        """Records that an epoch has ended, and whether it is the best so far."""
        self._plateau.see(improved)

    @property
    def ended(self) -> bool:
        """Whether the schedule ends the run before its last step."""
        return self._config.schedule == "plateau" and self._plateau.ended

    def state_dict(self) -> dict[str, Any]:
        return {"plateau": asdict(self._plateau)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._plateau = Plateau(**state["plateau"])


def full_path_probability(step: int, full_path_steps: int) -> float:
    """Returns the probability that a supernet step takes the full path; it decays linearly from 1 to 0."""
    return max(0.0, 1.0 - step / full_path_steps) if full_path_steps > 0 else 0.0
