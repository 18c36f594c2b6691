"""Which validation loss decides: where the click rate drifts, one that does not reward a model for its mean.

A model learns the click rate of the training rows. If that of the validation rows is another one, models and epochs
whose predictions happen to be too low (or too high) in all have the lower log loss there, and on later rows, whose rate
is different again, the higher one. Choosing by the plain log loss then chooses for luck that does not last.
"""

import math
from collections.abc import Mapping
from typing import Any

from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.training.config import Monitor

# Standard errors beyond which a difference of click rates is not explained by which rows fell into which split.
_ERRORS = 3.0


def drift(train: ClickFiles, validation: ClickFiles) -> float:
    """Returns by how many standard errors the log-odds of a click differ between the splits; 0 if they are not known.

    What the sampling of the training rows without a click added to their log-odds is taken off.
    """
    odds, variance = [], 0.0
    for split in (train, validation):
        if split.clicks is None or not len(split):
            return 0.0
        clicks, others = split.clicks + 0.5, len(split) - split.clicks + 0.5  # half a row keeps the log-odds finite
        odds.append(math.log(clicks / others) - split.log_odds_added)
        variance += 1 / clicks + 1 / others
    return (odds[1] - odds[0]) / math.sqrt(variance)


def deciding_loss(errors: float) -> Monitor:
    """Returns the loss that decides, for a :func:`drift` of so many standard errors."""
    return "centered_log_loss" if abs(errors) > _ERRORS else "log_loss"


def decisive(metrics: ClickMetrics | Mapping[str, Any], monitor: Monitor) -> float | None:
    """Returns the loss that decides, of metrics on the validation split."""
    found: Mapping[str, Any] = vars(metrics) if isinstance(metrics, ClickMetrics) else metrics
    return found["log_loss"] if monitor == "log_loss" or found.get(monitor) is None else found[monitor]
