"""Rows of the validation or test split that are also training rows, by hashes of what they hold."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nasrec_torchrec.datasets import values
from nasrec_torchrec.datasets.schema import Schema

# Rows of a split that are looked up among the training rows, evenly spread over it.
_SAMPLED = 50_000
# Shares of repeated rows from which on they are worth a warning, and rows below which they are not.
_SHARE, _FEWEST = 0.1, 200


def fingerprints(table: pa.Table, schema: Schema) -> np.ndarray:
    """Returns a hash ``(N,)`` in uint64 of every prepared row, the same for rows with the same label and features."""
    found = np.zeros(table.num_rows, np.uint64)
    # Products with random numbers, one for each column: rows that differ agree by chance once in 2 ** 63 pairs.
    names = [name for name in schema.columns if name != schema.weight]
    factors = np.random.default_rng(0).integers(1, 2**63, len(names), np.uint64) * np.uint64(2) + np.uint64(1)
    for name, factor in zip(names, factors, strict=True):
        column = values.plain(table.column(name))
        numbers = _of_lists(column, factor) if values.is_list(column.type) else _integers(column)
        found += numbers * factor
    return found


def repeated(rows: Sequence[np.ndarray], train: Iterable[np.ndarray]) -> tuple[int, int]:
    """Counts rows that are also training rows.

    Args:
        rows: fingerprints of a split, in parts.
        train: those of the training rows.

    Returns:
        The number of rows that were looked up, and how many of them are training rows.
    """
    every = np.concatenate(list(rows)) if rows else np.zeros(0, np.uint64)
    step = max(1, -(-len(every) // _SAMPLED))
    looked_up = np.sort(every[::step])
    seen = np.zeros(len(looked_up), bool)
    for part in train:
        seen |= np.isin(looked_up, part)
    return len(looked_up), int(seen.sum())


def repetition_warnings(split: str, rows: int, found: int) -> list[str]:
    """Returns a sentence if many rows of a split are also training rows."""
    if rows < _FEWEST or found < _SHARE * rows:
        return []
    return [
        f"{split}: {found / rows:.0%} of {rows:,} rows are also training rows, with the same values in all columns: "
        "metrics of this split then show what the model remembers; if events were logged more than once, leave out the "
        "repetitions, or split by time; with few columns it may be chance"
    ]


def _integers(column: pa.Array) -> np.ndarray:
    numbers = pc.fill_null(column, -1).to_numpy(zero_copy_only=False)  # labels of tasks may be missing
    if numbers.dtype.kind == "f":
        # -0.0 equals 0.0.
        return (numbers.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64)
    return numbers.astype(np.int64).view(np.uint64)


def _of_lists(column: pa.Array, factor: np.uint64) -> np.ndarray:
    """A number of each list: its length, and the values with their places."""
    lengths = values.lengths(column)
    ends = np.cumsum(lengths)
    inner = _integers(values.plain(column.flatten()))
    places = np.arange(len(inner), dtype=np.int64) - np.repeat(ends - lengths, lengths)
    mixed = (inner + np.uint64(1)) * (places.view(np.uint64) * factor + np.uint64(2 * 31 + 1))
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    return total[ends] - total[ends - lengths] + lengths.view(np.uint64)
