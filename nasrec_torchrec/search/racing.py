"""Races of a candidate against a rival: they end once it is almost certainly behind, or known well enough."""

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from nasrec_torchrec.distributed.gather import sum_over_ranks

# Fractions of the validation rows after which a race is examined.
_LOOKS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
# Fewer rows than this never stop a candidate, since their mean is not close enough to a normal distribution.
_ENOUGH_ROWS = 500


def looks(rows: int) -> list[int]:
    """Returns the numbers of rows after which a race is examined; the last one is all rows.

    Args:
        rows: number of rows that this rank holds.
    """
    return [math.ceil(share * rows) for share in (*_LOOKS, 1)]


@dataclass(frozen=True)
class Verdict:
    """Why a candidate sees no more rows.

    Args:
        difference: by how much its mean loss exceeds its rival's on the rows that it has seen.
        certain: whether it is behind with the required confidence. Otherwise the difference is known well enough.
    """

    difference: float
    certain: bool


def judge(differences: Tensor, tolerance: float, confidence: float | None) -> Verdict | None:
    """Decides whether a candidate is worse than its rival, and by how much. This call is collective.

    Args:
        differences: loss of the candidate minus that of its rival, for each row of this rank.
        tolerance: standard error of the mean difference at which it is known well enough; 0 for never.
        confidence: required confidence that the candidate is worse, over all examinations of a race together; None if
            certainty is no reason to end.

    Returns:
        Verdict | None: The verdict over the rows of all ranks; None if more rows are needed. A candidate that seems to
        be better always needs all rows.
    """
    values = differences.double()
    count, total, squares = sum_over_ranks(
        torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])
    ).tolist()
    if count < _ENOUGH_ROWS:
        return None
    mean = total / count
    error = math.sqrt(max(0.0, squares / count - mean * mean) / count)
    if confidence is not None:
        # Every examination is another chance to be wrong.
        quantile = statistics.NormalDist().inv_cdf(1 - (1 - confidence) / len(_LOOKS))
        if mean > quantile * error:
            return Verdict(mean, certain=True)
    return Verdict(mean, certain=False) if mean > 0 and error < tolerance else None
