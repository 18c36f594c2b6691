"""Buckets: a dense feature as a categorical one, so that a model learns an embedding for every range of its numbers.

The edges lie where the training rows do: each bucket has about as many of them as any other. Where one number takes
more than half of the rows, such as the 0 of an amount that most people never spend, it gets a bucket of its own, and
the edges lie where the other numbers do. Buckets are computed from *prepared* numbers; since a missing number is
prepared as 0, it shares the bucket of 0.
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
    return replace(feature, edges=_edges(sample, feature.num_embeddings - 2))


def _edges(numbers: np.ndarray, most: int) -> tuple[float, ...]:
    if not len(numbers):
        return ()
    found, counts = np.unique(numbers.astype(np.float32), return_counts=True)
    others = np.repeat(found, counts)
    if counts.max() > len(numbers) / 2:
        others = others[others != found[counts.argmax()]]
    if not len(others):
        return ()
    # The first edge is the smallest number, and divides it from the one that has a bucket of its own.
    quantiles = np.quantile(others, np.linspace(0, 1, most + 1)[:-1], method="lower")
    return tuple(map(float, np.unique(quantiles)))


def ids(numbers: np.ndarray, edges: Sequence[float]) -> pa.Array:
    """Returns the bucket of each number, from 1 on."""
    return pa.array((1 + np.searchsorted(np.asarray(edges, np.float32), numbers, side="right")).astype(np.int32))
