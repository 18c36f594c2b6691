"""Races of a candidate against a rival: the candidate is stopped once it is almost certainly behind."""

import math
import statistics

import torch
from torch import Tensor

from nasrec_torchrec.distributed.gather import sum_over_ranks

# Fractions of the validation rows after which a race is examined.
_LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
# Fewer rows than this never stop a candidate, since their mean is not close enough to a normal distribution.
_ENOUGH_ROWS = 500


def looks(rows: int) -> list[int]:
    """Returns the numbers of rows after which a race is examined; the last one is all rows.

    Args:
        rows: number of rows that this rank holds.
    """
    return [math.ceil(share * rows) for share in (*_LOOKS, 1)]


def behind(differences: Tensor, confidence: float) -> float | None:
    """Returns by how much a candidate's mean loss exceeds its rival's, if that is certain. This call is collective.

    Args:
        differences: loss of the candidate minus that of its rival, for each row of this rank.
        confidence: required confidence that the candidate is worse, over all examinations of a race together.

    Returns:
        float | None: The mean difference over the rows of all ranks; None as long as it is not certain.
    """
    values = differences.double()
    count, total, squares = sum_over_ranks(
        torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])
    ).tolist()
    if count < _ENOUGH_ROWS:
        return None
    mean = total / count
    error = math.sqrt(max(0.0, squares / count - mean * mean) / count)
    # Every examination is another chance to be wrong.
    quantile = statistics.NormalDist().inv_cdf(1 - (1 - confidence) / len(_LOOKS))
    return mean if mean > quantile * error else None
