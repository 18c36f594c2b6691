"""The difference of two models on the same rows, and what can be said of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Of a normal distribution, for an interval of 95 %.
_ERRORS = 1.96


@dataclass(frozen=True)
class Difference:
    """The log loss of a model minus that of another one on the same rows, with a 95 % interval.

    Args:
        mean: difference of the mean log losses; below 0 the first model is better.
        low: lower end of the interval.
        high: upper end of the interval.
        rows: number of rows.
        seeds: number of trainings of each of the two models.
    """

    mean: float
    low: float
    high: float
    rows: int
    seeds: tuple[int, int]


def difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> Difference:
    """Compares two models by the log losses of the same rows.

    The interval counts two sources of chance: which rows were measured (paired, for both models saw the same ones), and
    which seeds the models were trained with, where a model has several.

    Args:
        first: losses ``(N,)`` of the rows, for each seed of the first model.
        second: the same of the second one.
    """
    each = torch.stack(list(first)).mean(0) - torch.stack(list(second)).mean(0)
    variance = float(each.var(correction=0)) / len(each)
    for losses in (first, second):
        if len(losses) > 1:
            variance += float(torch.stack([seed.mean() for seed in losses]).var()) / len(losses)
    mean, error = float(each.mean()), _ERRORS * variance**0.5
    return Difference(mean, mean - error, mean + error, len(each), (len(first), len(second)))
