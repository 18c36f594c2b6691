"""Histories: how often a value or a combination of values was seen with and without a click in the training split.

A history is a categorical feature of 12 x 12 buckets of the two counts, so that a model learns how much each is worth
instead of trusting a rate from two rows as much as one from two thousand. A training row must not know its own label.
If the data was split by time, it only counts the training rows of earlier times, as it would have been counted then:
rows of the same time, such as those of one page, do not count for each other. Otherwise, it counts the training rows
before it in a shuffled order (the ordered target statistics of CatBoost, arXiv 1706.09516). All other rows, including
those that are scored later, count the whole training split.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nasrec_torchrec.datasets.features import HISTORY_LEVELS

# Counts at which a new bucket begins.
_EDGES = np.array([1, 2, 3, 4, 6, 10, 20, 50, 100, 300, 1000])
assert len(_EDGES) + 1 == HISTORY_LEVELS
_SHUFFLE_SEED = 2018


def bucket(clicks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the ids of pairs of counts, with and without a click; 1 is the id of a combination never seen."""
    return (1 + HISTORY_LEVELS * _level(clicks) + _level(others)).astype(np.int32)


def look_up(values: pa.Array, counts: pa.StructArray) -> pa.Array:
    """Returns the ids of rows outside the training split.

    Args:
        values: values as text.
        counts: counts with the fields ``word``, ``clicks`` and ``others``.
    """
    found = pc.fill_null(pc.index_in(values, value_set=counts.field("word")), -1).to_numpy(zero_copy_only=False)
    clicks, others = (np.append(counts.field(name).to_numpy(), 0) for name in ("clicks", "others"))
    return pa.array(bucket(clicks[found], others[found]))


def count(parts: Iterator[tuple[pa.Array, np.ndarray]]) -> pa.StructArray:
    """Counts the training split.

    Args:
        parts: values as text, and labels.

    Returns:
        pa.StructArray: The fields ``word``, ``clicks`` and ``others``, in the order of the words.
    """
    columns = ["word", "clicks", "others"]
    types = (pa.string(), pa.int64(), pa.int64())
    total = pa.table([pa.array([], kind) for kind in types], columns)
    for values, labels in parts:
        clicks = (labels > 0).astype(np.int64)
        part = pa.table({"word": values, "clicks": clicks, "others": 1 - clicks})
        merged = pa.concat_tables([total, part]).group_by("word", use_threads=False)
        total = merged.aggregate([("clicks", "sum"), ("others", "sum")]).rename_columns(columns)
    return total.sort_by("word").combine_chunks().to_struct_array().combine_chunks()


def earlier_ids(
    read: Callable[[int], tuple[pa.Array, np.ndarray]],
    parts: int,
    counts: pa.StructArray,
    times: Callable[[int], np.ndarray] | None = None,
) -> dict[int, pa.Array]:
    """Returns the ids of the training rows by part, each from the rows of earlier times.

    All training rows are sorted in memory, at some 40 bytes a row.

    Args:
        read: function that returns a part's values as text, and its labels.
        parts: number of parts.
        counts: counts that :func:`count` returned.
        times: function that returns the time of each row of a part; if unset, the rows are in chronological order, and
            no two have the same time.
    """
    words, found = counts.field("word"), [read(part) for part in range(parts)]
    ends = np.cumsum([len(labels) for _, labels in found])
    index = [
        pc.index_in(values, value_set=words).to_numpy(zero_copy_only=False).astype(np.int64) for values, _ in found
    ]
    word, clicked = np.concatenate(index), np.concatenate([labels for _, labels in found]) > 0
    when = np.arange(len(word)) if times is None else np.concatenate([times(part) for part in range(parts)])
    order = np.lexsort((when, word))
    word, when, clicked = word[order], when[order], clicked[order]
    new_word = np.append(True, word[1:] != word[:-1])[: len(word)]
    new_time = new_word | np.append(True, when[1:] != when[:-1])[: len(word)]
    # For every row: where the rows of its combination begin, and where among them those of its time do.
    begin, now = (np.maximum.accumulate(np.where(new, np.arange(len(word)), 0)) for new in (new_word, new_time))
    clicks_before = np.append(0, np.cumsum(clicked))
    clicks, rows = clicks_before[now] - clicks_before[begin], now - begin
    ids = np.empty(len(word), np.int32)
    ids[order] = bucket(clicks, rows - clicks)
    return {part: pa.array(of_part) for part, of_part in enumerate(np.split(ids, ends[:-1]))}


def shuffled_ids(
    read: Callable[[int], tuple[pa.Array, np.ndarray]], parts: int, counts: pa.StructArray
) -> dict[int, pa.Array]:
    """Returns the ids of the training rows by part, each from the rows before it in a shuffled order.

    Args:
        read: function that returns a part's values as text, and its labels.
        parts: number of parts.
        counts: counts that :func:`count` returned.
    """
    rng = np.random.default_rng(_SHUFFLE_SEED)
    words = counts.field("word")
    clicks, others = np.zeros(len(words), np.int64), np.zeros(len(words), np.int64)
    found = {}
    for part in rng.permutation(parts):
        values, labels = read(int(part))
        index = pc.index_in(values, value_set=words).to_numpy(zero_copy_only=False).astype(np.int64)
        order = rng.permutation(len(index))
        order = order[np.argsort(index[order], kind="stable")]
        word, clicked = index[order], (labels[order] > 0).astype(np.int64)
        first = np.flatnonzero(np.append(True, word[1:] != word[:-1])) if len(word) else np.array([], np.int64)
        length = np.diff(np.append(first, len(word)))
        before = np.cumsum(clicked) - clicked
        before -= np.repeat(before[first], length)
        rows_before = np.arange(len(word)) - np.repeat(first, length)
        ids = np.empty(len(word), np.int32)
        ids[order] = bucket(clicks[word] + before, others[word] + rows_before - before)
        found[int(part)] = pa.array(ids)
        clicks += np.bincount(word, weights=clicked, minlength=len(words)).astype(np.int64)
        others += np.bincount(word, weights=1 - clicked, minlength=len(words)).astype(np.int64)
    return found


def _level(counts: np.ndarray) -> np.ndarray:
    return np.searchsorted(_EDGES, counts, side="right")
