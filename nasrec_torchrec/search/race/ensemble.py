"""Which models of a race predict better together than the best one alone."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn import functional as F

from nasrec_torchrec.metrics.click_metrics import centered, weight_shares
from nasrec_torchrec.models.mean_prediction import mean_prediction
from nasrec_torchrec.search.race.trial import Entry


def candidates(best: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """Returns the other trials whose models read the columns of the best one, as one package of them all must."""
    return [
        entry
        for entry in entries
        if entry.measured and entry.trial.columns == best.trial.columns and entry.number != best.number
    ]


def select(
    logits: Mapping[str, Tensor],
    labels: Tensor,
    first: str,
    most: int,
    weights: Tensor | None = None,
    center: bool = False,
) -> list[str]:
    """Adds, one after the other, the model that lowers the log loss of the mean probability most.

    The source is Caruana et al., "Ensemble selection from libraries of models" (ICML 2004), here without repetition.

    Args:
        logits: logits ``(N,)`` of every model for the rows that decide, by the model's name.
        labels: labels ``(N,)`` of these rows.
        first: name of the model to begin with.
        most: largest number of models.
        weights: weights ``(N,)`` of the rows, if they have them.
        center: whether losses do not count how far the mean prediction is from the click rate.

    Returns:
        list: names of the models; the first one alone if no other one helps.
    """
    known = {name: rows.double() for name, rows in logits.items()}
    clicks, shares = labels.double(), weight_shares(weights)

    def loss(names: Sequence[str]) -> float:
        mean = mean_prediction([known[name] for name in names])
        if center:
            mean = centered(mean, clicks, weights)
        return float(F.binary_cross_entropy_with_logits(mean, clicks, shares))

    chosen = [first]
    lowest = loss(chosen)
    while len(chosen) < most:
        losses = {name: loss([*chosen, name]) for name in known if name not in chosen}
        best = min(losses, key=lambda name: losses[name], default=None)
        if best is None or losses[best] >= lowest:
            break
        chosen.append(best)
        lowest = losses[best]
    return chosen
