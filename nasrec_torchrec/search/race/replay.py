"""A race over known curves: how its decisions fare without training anything, in moments instead of hours."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TypeAlias

from nasrec_torchrec.search.race.planner import Continue, New, Planner
from nasrec_torchrec.search.race.situation import Situation
from nasrec_torchrec.search.race.trial import Entry, Trial

# Validation log loss, AUC and seconds of every epoch.
Curve: TypeAlias = Sequence[tuple[float, float, float]]


def replay(
    planner: Planner,
    curve_of: Callable[[Trial], Curve],
    seconds: float | None = None,
    trials: int | None = None,
    features: Sequence[Sequence[str]] = (),
    crosses: Collection[str] = (),
    combinations: int = 0,
    buckets: Sequence[str] = (),
) -> list[Entry]:
    """Races one worker.

    Args:
        planner: decides.
        curve_of: function that returns what the training of a trial yields, epoch by epoch.
        seconds: budget of trainings, or
        trials: number of them.
        features: ranked before the race.
        crosses: those of them that are crosses by dictionary.
        combinations: number of combinations of columns among which they were chosen.
        buckets: names of the buckets of dense features.

    Returns:
        list[Entry]: all trials.
    """
    if (seconds is None) == (trials is None):
        raise ValueError(f"expected seconds or trials, found {seconds} and {trials}")
    entries: list[Entry] = []
    spent = 0.0
    while True:
        left: float | None
        if seconds is None:
            share, left = len(entries) / (trials or 1), None
        else:
            left = seconds - spent
            share = spent / seconds if left > 0 else 1.0
        situation = Situation(entries, share, (), left, features, crosses, combinations, buckets)
        match planner.next(situation):
            case New(trial):
                entries.append(Entry(len(entries), trial))
            case Continue(entry, until):
                for loss, auc, took in curve_of(entry.trial)[entry.epochs : until]:
                    entry = replace(
                        entry,
                        losses=(*entry.losses, loss),
                        aucs=(*entry.aucs, auc),
                        seconds=(*entry.seconds, took),
                        status="running",
                    )
                    spent += took
                    if planner.status_of(entry) == "complete" or (seconds is not None and seconds - spent < took):
                        break
                entries[entry.number] = replace(entry, status=planner.status_of(entry))
            case _:
                return entries
