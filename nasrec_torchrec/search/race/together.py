"""What the best models of a race, and a tree, predict together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.metrics.click_metrics import click_metrics, row_losses
from nasrec_torchrec.metrics.paired import difference
from nasrec_torchrec.models.mean_prediction import mean_prediction
from nasrec_torchrec.models.stored_trees import load_trees, read_record
from nasrec_torchrec.search.race.costs import latency_us
from nasrec_torchrec.search.race.ensemble import candidates, select
from nasrec_torchrec.search.race.predictions import Predictions
from nasrec_torchrec.search.race.training import RaceData
from nasrec_torchrec.search.race.tree import predict_tree, tree_folders
from nasrec_torchrec.search.race.trial import Entry, trial_folder

_LATENCY_ROWS = 512

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
    members |= {folder: _tree(folder, best, data) for folder in _trees_of(best, out, data)}
    names = {folder: folder.relative_to(out).as_posix() for folder in members}
    scored = {names[folder]: member.score("validation") for folder, member in members.items()}
    first = names[trial_folder(out, best.number)]
    _, labels, weights = scored[first]
    logits = {name: rows for name, (rows, *_) in scored.items()}
    chosen = select(logits, labels, first, most, weights, center=data.monitor == "centered_log_loss")
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
    for split in ("validation", "test"):
        if data.rows(split):
            each = [member.score(split) for member in together]
            mean = mean_prediction([rows.double() for rows, *_ in each]).float(), *each[0][1:]
            found[split] = asdict(click_metrics(*mean))
            losses = [row_losses(*mean)]
            found["difference"] = asdict(difference(losses, [row_losses(*each[0])]))
            trees = [row_losses(*rows) for rows in _trees_alone(best, out, data, split)]
            if trees:
                strictest = min(trees, key=lambda rows: float(rows.mean()))
                found["difference to the tree"] = asdict(difference(losses, [strictest]))
    return found


def _trees_alone(best: Entry, out: Path, data: RaceData, split: str) -> Iterator[_Predicted]:
    """What the yardstick, and the tree of the winner's columns if there is one, predict alone."""
    yardstick, beside = tree_folders(out)
    if read_record(yardstick) is not None:
        yield predict_tree(yardstick, open_split(data.folders[0], split))
    if beside in _trees_of(best, out, data):
        yield predict_tree(beside, data.open(split, best.trial))


def _trees_of(best: Entry, out: Path, data: RaceData) -> list[Path]:
    """Returns the folder of the tree that reads the winner's columns, if there is one."""
    schema = data.schema(best.trial)
    known = ((folder, read_record(folder)) for folder in tree_folders(out))
    return [folder for folder, record in known if record is not None and record.columns == schema][:1]


def _network(entry: Entry, predictions: Predictions) -> _Member:
    return _Member(entry.trial.title, lambda split: predictions.of(entry, split), lambda: entry.facts.get("latency_us"))


def _tree(folder: Path, best: Entry, data: RaceData) -> _Member:
    def latency() -> float:
        trees = load_trees(folder)
        return latency_us(trees, next(data.open("validation", best.trial).evaluation_batches(_LATENCY_ROWS)))

    return _Member("LightGBM", lambda split: predict_tree(folder, data.open(split, best.trial)), latency)
