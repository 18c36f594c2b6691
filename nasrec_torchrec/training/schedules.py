"""Learning rate and path sampling over the steps of a run."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from nasrec_torchrec.training.config import TrainConfig


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
        """What the learning rate is multiplied by."""
        return 0.1**self.drops

    @property
    def ended(self) -> bool:
        return self.drops == 3


class LearningRate:
    """The learning rate of a run.

    Args:
        config: names the schedule and its numbers.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._plateau = Plateau(config.patience)

    def at(self, step: int, total_steps: int) -> float:
        """The rate in force at a step, counted from 0, of a run of so many steps."""
        config = self._config
        arguments = step, total_steps, config.learning_rate, config.warmup_fraction, config.min_learning_rate
        if config.schedule == "plateau":
            return self._plateau.factor * warmup(*arguments)
        return cosine_with_warmup(*arguments)

    def end_epoch(self, improved: bool) -> None:
        """Takes note of an epoch, and whether it is the best so far."""
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
    """Chance that a supernet step takes the full path: decays linearly from 1 to 0 over the first steps."""
    return max(0.0, 1.0 - step / full_path_steps) if full_path_steps > 0 else 0.0
