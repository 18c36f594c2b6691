"""Pareto fronts: the values that no other value dominates, where lower is better (K. Deb et al., "A fast and elitist
multiobjective genetic algorithm: NSGA-II", IEEE Transactions on Evolutionary Computation 6 (2), 2002)."""

import math
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.trial import create_trial

Values = tuple[float, ...]


def first_front(values: Sequence[Values]) -> list[int]:
    """Returns the positions of the nondominated values in ascending order. Optuna does this fast for thousands."""
    study = optuna.create_study(directions=["minimize"] * len(values[0]))
    study.add_trials([create_trial(values=list(value)) for value in values])
    return [trial.number for trial in study.best_trials]


def fronts(values: Sequence[Values]) -> list[list[int]]:
    """Returns positions by front: the first front is nondominated, the next one only by the first, and so on."""
    if not values:
        return []
    table = np.array(values)
    no_worse = np.all(table[:, None] <= table[None], axis=-1)
    dominated = no_worse & ~no_worse.T  # [i, j]: by i, which is no worse than j and not equal to it
    left = np.arange(len(table))
    result = []
    while len(left):
        beaten = np.any(dominated[np.ix_(left, left)], axis=0)
        result.append(left[~beaten].tolist())
        left = left[beaten]
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
