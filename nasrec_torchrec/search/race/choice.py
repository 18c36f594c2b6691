"""Which trials of a race are the best, where single trainings may owe their lead to luck."""

import math
import sys
from collections.abc import Callable, Sequence

from nasrec_torchrec.search.race.chance import about_as_good, seed_deviation, whole_trainings
from nasrec_torchrec.search.race.trial import Entry

# Deviations of the seeds within which a configuration may be better than the one that looks best.
_CONTENDERS = 4.0


def finalists(entries: Sequence[Entry], count: int) -> list[Entry]:
    """Returns the best trials, one of each configuration, including what :func:`regularized` prefers to the first.

    The best baseline is among them too.
    """
    ranked: dict[str, Entry] = {}
    proposed = sorted((e for e in entries if e.measured and e.trial.phase != "finals"), key=lambda e: e.loss)
    for entry in (*[regularized(entry, proposed) for entry in proposed[:1]], *proposed):
        ranked.setdefault(entry.trial.configuration, entry)
    best = list(ranked.values())
    chosen = best[:count]
    baseline = next((entry for entry in best if entry.trial.is_baseline), None)
    if baseline is not None and baseline not in chosen:
        chosen.append(baseline)
    return chosen


def mean_losses(entries: Sequence[Entry]) -> dict[str, tuple[float, int]]:
    """For every configuration the mean of its seeds' losses, and how many there are."""
    losses: dict[str, list[float]] = {}
    for entry in entries:
        if entry.measured:
            losses.setdefault(entry.trial.configuration, []).append(entry.loss)
    return {key: (math.fsum(values) / len(values), len(values)) for key, values in losses.items()}


def regularized(best: Entry, entries: Sequence[Entry]) -> Entry:
    """Returns the trial of a model whose recipe has the strongest L2, if it is about as good as the best one.

    This is the one-standard-error rule of Breiman et al. (Classification and Regression Trees, 1984): of what the
    validation rows cannot tell apart, the least complex. A weaker recipe owes its lead to an early epoch of a training
    that overfits, and the rows that are scored later differ from the training rows more than the validation rows do.

    Args:
        best: the best trial.
        entries: trials that may take its place; the rule looks at those that differ from it in recipe and seed alone.
    """
    groups = whole_trainings(entry for entry in entries if entry.trial.model == best.trial.model)
    own = groups.get(best.trial.configuration, [best])
    deviation = seed_deviation(entries)
    stronger = [seeds for seeds in groups.values() if seeds[0].trial.recipe.decay > best.trial.recipe.decay]
    good = [seeds for seeds in stronger if about_as_good(seeds, own, deviation)]
    seeds = max(good, key=lambda seeds: seeds[0].trial.recipe.decay, default=None)
    return best if seeds is None else min(seeds, key=lambda entry: entry.loss)


def winner(entries: Sequence[Entry], kept: Callable[[Entry], bool] = lambda entry: True) -> Entry | None:
    """Returns the best seed of the configuration that is best, or better regularized and about as good.

    The best of many single trainings owes part of its lead to luck, so each mean over seeds is drawn towards the mean
    of all that seeds may have put ahead, the fewer the seeds the more. See :func:`regularized` for what may take the
    place of the best one.

    Args:
        entries: trials that may win.
        kept: whether a trial still has a checkpoint, without which it takes no other's place.
    """
    means = mean_losses(entries)
    if not means:
        return None
    lowest = min(mean for mean, _ in means.values())
    deviation = seed_deviation(entries) * lowest
    near = {key: found for key, found in means.items() if found[0] <= lowest + _CONTENDERS * deviation}
    centre = math.fsum(mean for mean, _ in near.values()) / len(near)
    luck = deviation**2
    # How much the contenders really differ: their spread beyond that of the seeds, but never nothing.
    spread = math.fsum((mean - centre) ** 2 - luck / seeds for mean, seeds in near.values()) / len(near)
    spread = max(spread, luck / 4, sys.float_info.min)

    def expected(key: str) -> float:
        mean, seeds = near[key]
        return centre + (mean - centre) * spread / (spread + luck / seeds)

    key = min(near, key=expected)
    best = min((e for e in entries if e.trial.configuration == key and e.measured), key=lambda e: e.loss)
    return regularized(best, [entry for entry in entries if entry.trial.configuration == key or kept(entry)])


def compared(entries: Sequence[Entry], kept: Callable[[Entry], bool]) -> dict[str, Entry]:
    """Returns what a verdict names: the winner, and what it is compared with.

    Beside the winner these are the best baseline, the best baseline on the data's own columns, and the fastest model
    that is about as good as the latter, if it is faster than the winner.

    Args:
        entries: trials that may win.
        kept: whether a trial still has a checkpoint, without which it cannot be the fastest.
    """
    baselines = [entry for entry in entries if entry.trial.is_baseline]
    found = {
        "winner": winner(entries, kept),
        "baseline": winner(baselines, kept),
        "baseline without added features": winner([e for e in baselines if not e.trial.features], kept),
    }
    named = {name: entry for name, entry in found.items() if entry is not None}
    if (usual := named.get("baseline without added features")) is not None:
        best, fast = named["winner"], _fastest(entries, usual, kept)
        # Another seed of the winner is as fast, whatever was measured.
        is_other = fast is not None and fast.trial.configuration != best.trial.configuration
        if fast is not None and is_other and fast.latency_us < best.latency_us:
            named["fastest"] = fast
    return named


def _fastest(entries: Sequence[Entry], baseline: Entry, kept: Callable[[Entry], bool]) -> Entry | None:
    """The fastest whole training of a configuration whose mean loss is at most about that of a baseline."""
    groups = whole_trainings(entries)
    if (others := groups.get(baseline.trial.configuration)) is None:
        return None
    deviation = seed_deviation(entries)
    good = (seeds for seeds in groups.values() if about_as_good(seeds, others, deviation))
    stored = [entry for seeds in good for entry in seeds if kept(entry)]
    return min(stored, key=lambda entry: (entry.latency_us, entry.loss), default=None)
