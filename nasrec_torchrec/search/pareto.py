"""Pareto fronts, the values that no other value dominates (K. Deb et al., "A fast and elitist multiobjective genetic
algorithm: NSGA-II", IEEE Transactions on Evolutionary Computation 6 (2), 2002)."""

import math
from collections.abc import Sequence

import optuna
from optuna.trial import create_trial

Values = tuple[float, ...]


def dominates(one: Values, other: Values) -> bool:
    """Returns whether ``one`` is worse in no value and better in at least one; lower is better."""
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def first_front(values: Sequence[Values]) -> list[int]:
    """Returns the positions of the nondominated values in ascending order. Optuna does this fast for thousands."""
    study = optuna.create_study(directions=["minimize"] * len(values[0]))
    study.add_trials([create_trial(values=list(value)) for value in values])
    return [trial.number for trial in study.best_trials]


def fronts(values: Sequence[Values]) -> list[list[int]]:
    """Returns positions by front: the first front is nondominated, the next one only by the first, and so on."""
    left = list(range(len(values)))
    result = []
    while left:
        front = [i for i in left if not any(dominates(values[j], values[i]) for j in left)]
        result.append(front)
        left = [i for i in left if i not in set(front)]
    return result


def crowding(values: Sequence[Values]) -> list[float]:
    """Returns how far apart the neighbours of each member are, per objective as a fraction of the front's extent."""
    distances = [0.0] * len(values)
    for objective in zip(*values, strict=True):
        order = sorted(range(len(values)), key=lambda i: objective[i])
        extent = objective[order[-1]] - objective[order[0]]
        distances[order[0]] = distances[order[-1]] = math.inf
        if 0 < extent < math.inf:
            for before, i, after in zip(order, order[1:], order[2:], strict=False):
                distances[i] += (objective[after] - objective[before]) / extent
    return distances


def standing(values: Sequence[Values]) -> list[tuple[int, float]]:
    """Returns for each position its front, then how crowded it is there; lower is better."""
    result: list[tuple[int, float]] = [(0, 0.0)] * len(values)
    for number, front in enumerate(fronts(values)):
        for position, distance in zip(front, crowding([values[i] for i in front]), strict=True):
            result[position] = (number, -distance)
    return result
