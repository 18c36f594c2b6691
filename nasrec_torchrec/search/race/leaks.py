"""Signs that a history gives away how the data was made, so that a model would do worse on live traffic.

Both come from negatives that were sampled and rows that were split at random:

- *Reversed*: rows whose values had more clicks in the training split are clicked less. If each click in a context came
  with a fixed number of negatives, then a context that has many clicks among the training rows has few left over.
- *Certain*: every row whose values were mostly clicked in the training split is a click. Negatives were drawn among
  what was never clicked.
"""

from dataclasses import dataclass

import numpy as np

_LEAST_GROUPS, _LEAST_ROWS = 30, 100
# Standard deviations below zero at which a trend counts as reversed.
_REVERSED = -4.0


@dataclass(frozen=True)
class Signs:
    """What the validation split says about a history.

    Args:
        trend: how the label depends on the past share of clicks, in standard deviations; 0 if too little is known.
        certain_rows: number of validation rows that were mostly clicked before and are clicks without exception.
    """

    trend: float
    certain_rows: int

    @property
    def reversed(self) -> bool:
        """Whether more clicks in the past mean less clicks later."""
        return self.trend < _REVERSED


def signs(groups: np.ndarray, clicks: np.ndarray, others: np.ndarray, labels: np.ndarray, rate: float) -> Signs:
    """Looks for signs that a history knows too much.

    Args:
        groups: a number for the combination of values of every validation row.
        clicks: for every validation row the number of training rows with its values and a click.
        others: the same without a click.
        labels: labels of the validation rows.
        rate: share of clicks in the training split.

    Returns:
        Signs: The trend, whose deviation counts rows of one group as one observation, and the certain rows.
    """
    rows = clicks + others
    seen = rows > 0
    mostly = seen & (clicks > others)
    certain = int(mostly.sum()) if mostly.sum() >= _LEAST_ROWS and labels[mostly].min() > 0 else 0
    if not 0 < rate < 1:
        return Signs(0.0, certain)
    surplus = (clicks - rate * rows)[seen] / np.sqrt(rows[seen] * rate * (1 - rate))
    errors = labels[seen] - labels.mean()
    numbers, group = np.unique(groups[seen], return_inverse=True)
    if len(numbers) < _LEAST_GROUPS:
        return Signs(0.0, certain)
    scores = np.bincount(group, weights=np.clip(surplus, -3, 3) * errors)
    deviation = float(np.sqrt(np.square(scores).sum()))
    return Signs(float(scores.sum()) / deviation if deviation else 0.0, certain)
