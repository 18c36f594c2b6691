from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nasrec_torchrec.datasets.buckets import buckets_of, edged


def _edges(numbers: np.ndarray, most: int) -> tuple[float, ...]:
    feature = buckets_of("price")
    edges = edged(replace(feature, num_embeddings=most + 2), numbers.astype(np.float32)).edges
    assert edges is not None
    return edges


@given(st.lists(st.integers(0, 60), min_size=1), st.integers(1, 20))
def test_edges_are_numbers_of_the_rows(numbers: list[int], most: int):
    edges = _edges(np.array(numbers), most)
    assert list(edges) == sorted(set(edges)) and set(edges) <= set(numbers) - {min(numbers)}
    assert len(edges) == min(most, len(set(numbers)) - 1)


def test_frequent_numbers_have_buckets_of_their_own_and_the_others_share_the_rest():
    others = np.arange(1000, 3000)
    edges = _edges(np.concatenate([np.zeros(50_000), np.full(8_000, 1500), others]), 21)
    assert len(edges) == 21 and edges[0] == 1000 and {1500, 1501} <= set(edges)
    rows = np.histogram(others[others != 1500], [*edges, np.inf])[0]
    assert rows.max() < 2 * 2000 / 19
