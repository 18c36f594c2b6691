"""Which validation loss decides a race: where the click rate drifts, one that does not reward a model for its mean.

A model learns the click rate of the training rows. If that of the validation rows is another one, models and epochs
whose predictions happen to be too low (or too high) in all have the lower log loss there, and on later rows, whose rate
is different again, the higher one. Choosing by the plain log loss then chooses for luck that does not last.
"""

import math
from collections.abc import Mapping
from typing import Any

from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.training.config import Monitor

# Standard errors beyond which a difference of click rates is not explained by which rows fell into which split.
_ERRORS = 3.0


def drift(splits: Mapping[str, Mapping[str, Any]], log_odds_added: float = 0.0) -> float:
    """Returns by how many standard errors the click rate of the validation split differs from that of training.

    Args:
        splits: numbers of ``rows`` and ``positives`` of the splits ``train`` and ``validation``, as in a manifest.
        log_odds_added: what the sampling of the training rows without a click added to their log-odds.
    """
    # Half a row of each kind keeps the log-odds finite.
    clicks, others = [], []
    for name in ("train", "validation"):
        clicks.append(splits[name]["positives"] + 0.5)
        others.append(splits[name]["rows"] - splits[name]["positives"] + 0.5)
    train, validation = (math.log(part / other) for part, other in zip(clicks, others, strict=True))
    return (validation - (train - log_odds_added)) / math.sqrt(sum(1 / count for count in (*clicks, *others)))


def deciding_loss(errors: float) -> Monitor:
    """Returns the loss that decides, for a :func:`drift` of so many standard errors."""
    return "centered_log_loss" if abs(errors) > _ERRORS else "log_loss"


def decisive(metrics: ClickMetrics | Mapping[str, Any], monitor: Monitor) -> float | None:
    """Returns the loss that decides, of metrics on the validation split."""
    found: Mapping[str, Any] = vars(metrics) if isinstance(metrics, ClickMetrics) else metrics
    return found["log_loss"] if monitor == "log_loss" or found.get(monitor) is None else found[monitor]
