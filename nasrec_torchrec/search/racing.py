"""Races of a candidate against a rival: it is given up when it is behind for certain on the rows seen so far."""

import math
import statistics

import torch
from torch import Tensor

from nasrec_torchrec.distributed.gather import sum_over_ranks

# Shares of the validation rows after which a race is looked at.
_LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
# Fewer rows than these stop nobody: their mean is not near enough to a normal distribution.
_ENOUGH_ROWS = 500


def looks(rows: int) -> list[int]:
    """Numbers of rows after which a race is looked at; the last is all of them.

    Args:
        rows: that this rank holds.
    """
    return [math.ceil(share * rows) for share in (*_LOOKS, 1)]


def behind(differences: Tensor, confidence: float) -> float | None:
    """By how much a candidate's mean loss is above its rival's, if it is for certain; collective.

    Args:
        differences: of the losses of candidate and rival, on this rank's rows.
        confidence: that the candidate is worse, over all looks of a race together.

    Returns:
        float | None: the mean difference over the rows of all ranks; None while it is not certain.
    """
    values = differences.double()
    count, total, squares = sum_over_ranks(
        torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])
    ).tolist()
    if count < _ENOUGH_ROWS:
        return None
    mean = total / count
    error = math.sqrt(max(0.0, squares / count - mean * mean) / count)
    # Every look is a chance to be wrong.
    quantile = statistics.NormalDist().inv_cdf(1 - (1 - confidence) / len(_LOOKS))
    return mean if mean > quantile * error else None
