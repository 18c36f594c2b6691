"""A guess of an architecture's loss from those that were trained: a small ensemble of ridge regressions."""

import math
from collections.abc import Sequence

import numpy as np

from nasrec_torchrec.architecture import DENSE_OPERATORS, SPARSE_OPERATORS, Architecture, BlockArchitecture
from nasrec_torchrec.search.race.trial import Entry

_MEMBERS = 16
_LEAST = 6
_RIDGE = 1.0


class Surrogate:
    """Ridge regressions on bootstrap samples; proposes what is best within their disagreement.

    Args:
        weights: weights of the members, ``(members, features + 1)``.
        mean: mean of each feature.
        deviation: likewise.
        operators: those that have a feature each.
    """

    def __init__(self, weights: np.ndarray, mean: np.ndarray, deviation: np.ndarray, operators: Sequence[str]) -> None:
        self._weights, self._mean, self._deviation, self._operators = weights, mean, deviation, operators

    @classmethod
    def fit(cls, entries: Sequence[Entry]) -> "Surrogate | None":
        """Fits trained architectures; None while there are too few.

        A training that was cut short is expected to gain as much until its end as those that were not.
        """
        trained = [e for e in entries if isinstance(e.trial.interaction, Architecture) and e.measured]
        if len(trained) < _LEAST:
            return None
        whole = [entry for entry in trained if entry.status == "complete"]

        def expected(entry: Entry) -> float:
            if entry.status == "complete" or not whole:
                return entry.loss
            share = entry.epochs / entry.trial.recipe.epochs
            gains = [e.loss / e.loss_at(max(1, round(share * e.trial.recipe.epochs))) for e in whole]
            return entry.loss * sum(gains) / len(gains)

        architectures = [e.trial.interaction for e in trained if isinstance(e.trial.interaction, Architecture)]
        operators = operators_of(architectures)
        rows = np.stack([features(architecture, operators) for architecture in architectures])
        target = np.array([expected(entry) for entry in trained])
        mean, deviation = rows.mean(0), rows.std(0)
        deviation[deviation == 0] = 1.0
        scaled = np.concatenate([(rows - mean) / deviation, np.ones((len(rows), 1))], 1)
        rng = np.random.default_rng(len(trained))
        members = []
        for _ in range(_MEMBERS):
            chosen = rng.integers(0, len(rows), len(rows))
            x, y = scaled[chosen], target[chosen]
            penalty = _RIDGE * x.shape[1] * np.eye(x.shape[1])
            penalty[-1, -1] = 1e-6
            members.append(np.linalg.solve(x.T @ x + penalty, x.T @ y))
        return cls(np.stack(members), mean, deviation, operators)

    def ranked(self, architectures: Sequence[Architecture]) -> list[Architecture]:
        """Sorts architectures by their expected loss less the members' disagreement, the lowest first."""
        if not architectures:
            return []
        table = np.stack([features(architecture, self._operators) for architecture in architectures])
        rows = (table - self._mean) / self._deviation
        guesses = np.concatenate([rows, np.ones((len(rows), 1))], 1) @ self._weights.T
        return [architectures[place] for place in np.argsort(guesses.mean(1) - guesses.std(1), kind="stable")]


def operators_of(architectures: Sequence[Architecture]) -> list[str]:
    """The paper's operators, and after them others, and what else is special, of blocks that architectures have."""
    known = [*DENSE_OPERATORS, *SPARSE_OPERATORS]
    used = {name for a in architectures for block in a.blocks for name in _used(block)}
    return [*known, *sorted(used.difference(known))]


def _used(block: BlockArchitecture) -> set[str]:
    return {*block.dense_operators, *block.sparse_operators, *block.special}


def features(architecture: Architecture, operators: Sequence[str]) -> np.ndarray:
    """An architecture as numbers: means over its blocks, the last one alone, and the widths of its tables."""
    blocks = []
    for block in architecture.blocks:
        used = _used(block)
        blocks.append(
            [
                *(float(name in used) for name in operators),
                math.log2(block.dense_width),
                math.log2(block.sparse_width),
                len(block.dense_inputs),
                len(block.sparse_inputs),
                float(0 in block.dense_inputs),
                float(0 in block.sparse_inputs),
                float(block.dense_to_sparse),
                float(block.sparse_to_dense),
            ]
        )
    table = np.array(blocks)
    widths = [math.log2(width) for _, width in architecture.embedding_widths]
    return np.concatenate([table.mean(0), table[-1], widths])
