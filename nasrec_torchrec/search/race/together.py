"""What the best models of a race, and a tree, predict together."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nasrec_torchrec.metrics.click_metrics import click_metrics, row_losses
from nasrec_torchrec.metrics.paired import difference
from nasrec_torchrec.models.mean_prediction import mean_prediction
from nasrec_torchrec.models.stored_trees import load_trees
from nasrec_torchrec.search.race.costs import LATENCY_ROWS, latency_us
from nasrec_torchrec.search.race.ensemble import candidates, select
from nasrec_torchrec.search.race.predictions import Predictions
from nasrec_torchrec.search.race.training import RaceData
from nasrec_torchrec.search.race.trial import Entry, trial_folder

# Logits, labels and weights of a split.
_Predicted = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class _Member:
    """A model that may predict together with others: its name, and functions that score a split and time a batch."""

    title: str
    score: Callable[[str], _Predicted]
    latency: Callable[[], float | None]


def predict_together(
    best: Entry, entries: Sequence[Entry], most: int, data: RaceData, predictions: Predictions
) -> dict[str, Any] | None:
    """Chooses the models that predict better with the winner, on the validation rows, and measures their mean.

    Args:
        best: the winner.
        entries: trials that may belong to them.
        most: largest number of models.
        data: rows of the race.
        predictions: predictions of the trials.

    Returns:
        dict: folders of the models, the winner first, their titles, latency and metrics, and the differences of their
        log loss from that of the winner alone and of the yardstick, as JSON values; None if no other model helps.
    """
    out = predictions.out
    others = [entry for entry in candidates(best, entries) if predictions.exist(entry)]
    members = {trial_folder(out, entry.number): _network(entry, predictions) for entry in (best, *others)}
    schema, trees = data.schema(best.trial), predictions.trees(best)
    fitting = [folder for folder, record in trees.items() if record.columns == schema]
    members |= {folder: _tree(folder, best, data, predictions) for folder in fitting[:1]}
    names = {folder: folder.relative_to(out).as_posix() for folder in members}
    scored = {names[folder]: member.score("validation") for folder, member in members.items()}
    first = names[trial_folder(out, best.number)]
    _, labels, weights = scored[first]
    logits = {name: rows for name, (rows, *_) in scored.items()}
    chosen = select(logits, labels, first, most, weights, center=data.centers)
    if len(chosen) == 1:
        return None
    together = [members[out / name] for name in chosen]
    latencies = [member.latency() for member in together]
    found: dict[str, Any] = {
        "folders": chosen,
        "titles": [member.title for member in together],
        "latency_us": None if None in latencies else sum(filter(None, latencies)),
        "latency_us of the winner": latencies[0],
    }
    for split in filter(data.rows, ("validation", "test")):
        each = [member.score(split) for member in together]
        mean = mean_prediction([rows.double() for rows, *_ in each]).float(), *each[0][1:]
        found[split] = asdict(click_metrics(*mean))
    # On the split that is read last.
    losses = [row_losses(*mean)]
    found["difference"] = asdict(difference(losses, [row_losses(*each[0])]))
    if alone := [row_losses(*predictions.of_tree(folder, best, split)) for folder in trees]:
        strictest = min(alone, key=lambda rows: float(rows.mean()))
        found["difference to the tree"] = asdict(difference(losses, [strictest]))
    return found


def _network(entry: Entry, predictions: Predictions) -> _Member:
    return _Member(entry.trial.title, lambda split: predictions.of(entry, split), lambda: entry.facts.get("latency_us"))


def _tree(folder: Path, best: Entry, data: RaceData, predictions: Predictions) -> _Member:
    def latency() -> float:
        trees = load_trees(folder)
        return latency_us(trees, next(data.open("validation", best.trial).evaluation_batches(LATENCY_ROWS)))

    return _Member("LightGBM", lambda split: predictions.of_tree(folder, best, split), latency)
