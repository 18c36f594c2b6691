"""Buckets: a dense feature as a categorical one, so that a model learns an embedding for every range of its numbers.

The edges lie where the training rows do. A number that has as many rows as a whole bucket, such as the 0 of an amount
that most people never spend, gets a bucket of its own; the other buckets have about as many rows as each other. What is
below all training rows belongs to the first bucket. Buckets are computed from *prepared* numbers; since a missing
number is prepared as 0, it shares the bucket of 0.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from nasrec_torchrec.datasets.features import SparseFeature

# Values that are looked at; more of them move no edge by much.
_MOST_VALUES = 2_000_000


def buckets_of(feature: str) -> SparseFeature:
    """Returns a dense feature in buckets."""
    return SparseFeature(f"{feature}_buckets", ids="buckets", cross=(feature,))


def edged(feature: SparseFeature, numbers: np.ndarray) -> SparseFeature:
    """Returns a feature with increasing edges between its buckets, which are numbers of the training rows.

    Args:
        feature: a dense feature in buckets.
        numbers: prepared numbers ``(N,)`` of the training rows.
    """
    assert feature.num_embeddings is not None
    sample = numbers[:: max(1, -(-len(numbers) // _MOST_VALUES))]
    return replace(feature, edges=tuple(_starts(sample, feature.num_embeddings - 1)[1:]))


def _starts(numbers: np.ndarray, most: int) -> list[float]:
    """Returns the numbers with which buckets begin, at most so many."""
    found, counts = np.unique(numbers.astype(np.float32), return_counts=True)
    if len(found) <= most:
        return [float(number) for number in found]
    frequent = _frequent(counts, most)
    ends = counts.cumsum()
    others = np.where(frequent, 0, counts)[::-1].cumsum()[::-1]  # rows of other numbers, from each number on
    starts: list[float] = []
    first = 0
    while first < len(found) and len(starts) < most:
        starts.append(float(found[first]))
        first += 1
        if frequent[first - 1]:
            continue
        following = np.flatnonzero(frequent[first:])
        rows = others[first - 1] / max(1, most - len(starts) + 1 - len(following))
        full = int(np.searchsorted(ends, ends[first - 1] - counts[first - 1] + rows)) + 1
        first = min(full, first + int(following[0])) if len(following) else full
    return starts


def _frequent(counts: np.ndarray, buckets: int) -> np.ndarray:
    """Returns which numbers have as many rows as one of the buckets that the other numbers share."""
    frequent = np.zeros(len(counts), bool)
    while (left := buckets - int(frequent.sum())) > 0:
        more = ~frequent & (counts * left >= counts[~frequent].sum())
        if not more.any():
            break
        frequent |= more
    return frequent


def ids(numbers: np.ndarray, edges: Sequence[float]) -> pa.Array:
    """Returns the bucket of each number, from 1 on."""
    return pa.array((1 + np.searchsorted(np.asarray(edges, np.float32), numbers, side="right")).astype(np.int32))
