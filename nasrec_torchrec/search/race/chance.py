"""Whether added features are better than chance explains.

A set of added features is accepted only if it lowers the validation log loss by more than chance would, beside every
accepted smaller set of which it is an extension. Three kinds of chance count:

- *rows*: the two trainings are compared block by block, in consecutive blocks of the validation split. The deviation
  of these differences covers single rows, and with rows in the order of time also a gain that comes and goes;
- *seeds*: one training is a draw. How far repeated trainings of the race deviate is pooled with a prior;
- *choice*: the features are the best of many combinations that the same validation rows ranked. The level is divided
  by their number (Bonferroni), which is also right for combinations that resemble each other.

The gain must be positive in both halves of the split too. If the rows alone speak for a set but seeds are too few to
know, its verdict is open: further seeds can decide it.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nasrec_torchrec.search.race.trial import Entry

# Of consecutive validation rows.
BLOCKS = 64
# Probability that chance alone passes for a gain, over all combinations together.
_LEVEL = 0.05
# Deviation between seeds relative to the loss, and how many repeated trainings that prior is worth.
_PRIOR_DEVIATION, _PRIOR_WEIGHT = 0.005, 2
# Trainings of a set, and of what it is compared with, after which an open verdict is a rejection.
MOST_SEEDS = 3

Features = frozenset[str]


@dataclass(frozen=True)
class Judgement:
    """The verdict on a set of added features.

    Args:
        features: names of the set.
        beside: the accepted smaller set that it is compared with; of several, the one that it is closest to failing.
        gain: by how much the set lowers the validation log loss.
        needed: what chance explains; a larger gain is accepted.
        halves: the gain in the first and in the second half of the validation split.
        seeds: number of trainings with the set and without it.
        verdict: ``accepted``, ``rejected``, or ``open`` if further seeds could show the gain.
    """

    features: tuple[str, ...]
    beside: tuple[str, ...]
    gain: float
    needed: float
    halves: tuple[float, float]
    seeds: tuple[int, int]
    verdict: Literal["accepted", "rejected", "open"]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def whole_trainings(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Returns the trainings of every configuration that ran to their end."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.status == "complete" and entry.measured:
            groups.setdefault(entry.trial.configuration, []).append(entry)
    return groups


def seed_deviation(entries: Sequence[Entry]) -> float:
    """Returns how far the losses of repeated trainings deviate, relative to their mean.

    Repeats within the race are pooled with a prior of half a percent that is worth two of them.
    """
    squares, count = _PRIOR_WEIGHT * _PRIOR_DEVIATION**2, float(_PRIOR_WEIGHT)
    for seeds in whole_trainings(entries).values():
        losses = [entry.loss for entry in seeds]
        mean = statistics.fmean(losses)
        squares += sum((loss / mean - 1) ** 2 for loss in losses) if mean > 0 else 0.0
        count += len(losses) - 1
    return math.sqrt(squares / count)


def judgements(entries: Sequence[Entry], combinations: int) -> list[Judgement]:
    """Judges every set of added features that was trained beside a smaller set, the smaller sets first.

    Args:
        entries: trials of the race.
        combinations: number of combinations of columns that were ranked.
    """
    measured = [entry for entry in entries if entry.measured]
    whole = {entry.number for entry in measured if entry.status == "complete"}
    # Trainings that differ in nothing but their added features and the seed.
    groups: dict[str, dict[Features, list[Entry]]] = {}
    for entry in measured:
        alike = groups.setdefault(entry.trial.without_features().configuration, {})
        alike.setdefault(frozenset(entry.trial.features), []).append(entry)
    names = {frozenset(entry.trial.features): entry.trial.features for entry in reversed(measured)}
    sets = sorted((found for found in names if found), key=len)
    threshold = _threshold(combinations + len(sets))
    deviation = seed_deviation(entries)
    accepted: list[Features] = [frozenset()]
    found: list[Judgement] = []
    for candidate in sets:
        comparisons = []
        for smaller in accepted:
            if not smaller < candidate:
                continue
            # A training that was cut short proves nothing for what is compared with it.
            pairs = [
                (without, group[candidate])
                for group in groups.values()
                if candidate in group and (without := [e for e in group.get(smaller, ()) if e.number in whole])
            ]
            if pairs:
                # What the better of several models gains is what matters.
                without, with_it = min(pairs, key=lambda pair: min(entry.loss for entry in pair[1]))
                comparisons.append(_compared(without, with_it, threshold, deviation))
        if comparisons:
            worst = min(comparisons, key=lambda judgement: judgement.gain - judgement.needed)
            found.append(worst)
            if worst.verdict == "accepted":
                accepted.append(candidate)
    return found


def accepted_sets(judged: Iterable[Judgement]) -> set[Features]:
    """Returns the sets of added features that a model may have, the empty one among them."""
    return {frozenset(), *(frozenset(one.features) for one in judged if one.verdict == "accepted")}


def explained_by_rows(gains: Sequence[float], combinations: int) -> float:
    """Returns the mean gain that the noise of validation rows alone explains.

    Args:
        gains: gain in each of some blocks of consecutive rows.
        combinations: number of combinations of which this is the best.
    """
    return _threshold(combinations) * math.sqrt(_rows_variance(gains))


def _threshold(combinations: int) -> float:
    """Returns how many standard errors a gain must have, if it is the best of so many."""
    return statistics.NormalDist().inv_cdf(1 - _LEVEL / max(1, combinations))


def _rows_variance(gains: Sequence[float]) -> float:
    """Returns the squared standard error of the mean of the gains of blocks."""
    return statistics.variance(gains) / len(gains) if len(gains) > 1 else 0.0


def eligible(entries: Sequence[Entry], combinations: int) -> list[Entry]:
    """Returns the trials that may win: those whose added features are accepted, or that have none."""
    accepted = accepted_sets(judgements(entries, combinations))
    return [entry for entry in entries if frozenset(entry.trial.features) in accepted]


def about_as_good(entries: Sequence[Entry], others: Sequence[Entry], deviation: float) -> bool:
    """Returns whether the mean loss of some trainings is at most one standard error above that of others.

    Args:
        entries: trainings that differ in nothing but the seed.
        others: the same of another configuration.
        deviation: how far seeds deviate, as a share of the loss.
    """
    gains, rows, seeds = _gains(others, entries, deviation)
    return statistics.fmean(gains) >= -math.sqrt(rows + seeds)


def _compared(without: Sequence[Entry], with_it: Sequence[Entry], threshold: float, deviation: float) -> Judgement:
    gains, rows, seeds = _gains(without, with_it, deviation)
    gain = statistics.fmean(gains)
    half = max(1, len(gains) // 2)
    halves = statistics.fmean(gains[:half]), statistics.fmean(gains[half:] or gains)
    needed = threshold * math.sqrt(rows + seeds)
    verdict: Literal["accepted", "rejected", "open"] = "rejected"
    if min(halves) > 0 and gain > threshold * math.sqrt(rows):
        undecided = min(len(without), len(with_it)) < MOST_SEEDS
        verdict = "accepted" if gain > needed else "open" if undecided else "rejected"
    features, beside = with_it[0].trial.features, without[0].trial.features
    return Judgement(features, beside, gain, needed, halves, (len(with_it), len(without)), verdict)


def _gains(without: Sequence[Entry], with_it: Sequence[Entry], deviation: float) -> tuple[list[float], float, float]:
    """The gain in each block of rows, and the squared standard errors of its mean that are due to rows and to seeds."""
    before, after = _mean_blocks(without), _mean_blocks(with_it)
    if not before or len(before) != len(after):  # some training is known by its mean loss alone
        before, after = ([statistics.fmean(entry.loss for entry in part)] for part in (without, with_it))
    gains = [one - other for one, other in zip(before, after, strict=True)]
    seeds = (deviation * statistics.fmean(before)) ** 2 * (1 / len(without) + 1 / len(with_it))
    return gains, _rows_variance(gains), seeds


def _mean_blocks(entries: Sequence[Entry]) -> list[float]:
    """The losses of blocks of validation rows, each the mean over the seeds; empty if one of them is not known."""
    known: list[Mapping[str, Any]] = [entry.facts for entry in entries]
    blocks = [facts.get("block_losses") or () for facts in known]
    if not all(blocks) or len({len(one) for one in blocks}) > 1:
        return []
    return [statistics.fmean(losses) for losses in zip(*blocks, strict=True)]
