"""Students: models that learn from what the best trials of a race predict, and so get more of a small network."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.runs import names
from nasrec_torchrec.search.race.sources import Interaction, small_mlp
from nasrec_torchrec.search.race.training import RaceData
from nasrec_torchrec.search.race.trial import Entry, Trial, trial_folder
from nasrec_torchrec.training.teaching import Teachers, stored_soft_labels

# Weight of what the teachers of a student predict, beside the labels.
_SHARE = 0.9
# Trials that teach, and the share of the best one's latency up to which a model counts as faster.
_TEACHERS, _FASTER = 3, 0.5


def taught(trial: Trial, data: RaceData, out: Path) -> RaceData:
    """Returns the rows of a race, the training rows with what the teachers of a trial predict for them.

    Args:
        trial: trial to be trained; one that has no teachers needs nothing.
        data: rows of the race.
        out: run folder of the race, which keeps the predictions.

    Raises:
        ValueError: If they are not there yet, and a teacher has no checkpoint any more.
    """
    if not trial.teachers:
        return data
    file = _soft_labels_file(out, trial)
    if (known := stored_soft_labels(file, _SHARE)) is None:
        rows = open_split(data.folders[-1], "train")  # with all columns, those that were added too
        known = Teachers(tuple(trial_folder(out, number) for number in trial.teachers), _SHARE, rows).soft_labels(file)
    return replace(data, soft_labels=known)


def _soft_labels_file(out: Path, trial: Trial) -> Path:
    return out / names.RACE_TEACHERS / f"{'-'.join(f'{number:04d}' for number in trial.teachers)}.npy"


def teachers_of(near: Sequence[Entry]) -> list[Entry]:
    """Returns the best whole trainings, of different configurations, that read the columns of the best one.

    Args:
        near: trials that still have a checkpoint, the best first.
    """
    whole = [entry for entry in near if entry.status == "complete" and not entry.trial.teachers]
    distinct: dict[str, Entry] = {}
    for entry in whole:
        if entry.trial.columns == whole[0].trial.columns:
            distinct.setdefault(entry.trial.configuration, entry)
    return list(distinct.values())[:_TEACHERS]


def students(best: Entry, entries: Sequence[Entry], embedding_dim: int) -> Iterator[Interaction]:
    """Yields what to teach: a small MLP, the best model that takes half of the best one's latency, that one itself.

    A small budget has time for one or two of them. An MLP is trained fastest, and gains most from teachers.

    Args:
        best: the best teacher.
        entries: trials, the best first.
        embedding_dim: embedding dimension of the tables.
    """
    yield small_mlp(embedding_dim)
    for entry in entries:
        if not entry.trial.teachers and entry.latency_us <= _FASTER * best.latency_us < math.inf:
            yield entry.trial.interaction
            break
    yield best.trial.interaction
