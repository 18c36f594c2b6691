"""Rows in memory, decoded from Parquet, and batches that are cut from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.values import plain


@dataclass
class WeightedBatch(Batch):
    """A batch whose rows do not count alike.

    Args:
        row_weights: float32 weights ``(B,)``, 0 or more.
    """

    row_weights: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "WeightedBatch":
        return self._of(super().to(device, non_blocking), self.row_weights.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        super().record_stream(stream)
        self.row_weights.record_stream(cast(torch.cuda.Stream, stream))

    def pin_memory(self) -> "WeightedBatch":
        return self._of(super().pin_memory(), self.row_weights.pin_memory())

    @staticmethod
    def _of(batch: Batch, row_weights: Tensor) -> "WeightedBatch":
        return WeightedBatch(batch.dense_features, batch.sparse_features, batch.labels, row_weights)


def make_batch(dense: Tensor, sparse: KeyedJaggedTensor, labels: Tensor, row_weights: Tensor | None) -> Batch:
    """Returns rows as a batch, weighted if they have weights."""
    if row_weights is None:
        return Batch(dense, sparse, labels)
    return WeightedBatch(dense, sparse, labels, row_weights)


@dataclass(frozen=True)
class ClickData:
    """Rows of a data set.

    Args:
        dense: float32 features ``(N, F_dense)``.
        sparse: int32 or int64 ids of the N rows, feature by feature, with ``stride`` N. Batches have int64 ids.
        labels: float32 labels ``(N,)``, 0 or 1, or between them where they are soft. With tasks, ``(N, T)``: the label,
            and then that of each task, NaN where it is not known.
        one_id_each: whether every row is known to have exactly one id of every feature, which makes cutting cheaper.
        row_weights: float32 weights ``(N,)`` of the rows; None if they count alike.
    """

    dense: Tensor
    sparse: KeyedJaggedTensor
    labels: Tensor
    one_id_each: bool = False
    row_weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Tensor) -> Batch:
        """Returns the rows ``(B,)`` as a batch."""
        sparse = self.sparse
        features, count = len(sparse.keys()), rows.numel()
        weights = sparse.weights_or_none()
        if self.one_id_each:
            lengths = torch.ones(features * count, dtype=torch.int32)
            values = sparse.values().view(features, -1).index_select(1, rows).flatten()
            if weights is not None:
                weights = weights.view(features, -1).index_select(1, rows).flatten()
        else:
            # Bags lie feature by feature: bag f * N + row holds the row's ids of feature f.
            bags = (torch.arange(features).unsqueeze(1) * len(self) + rows).flatten()
            lengths = sparse.lengths()[bags]
            ends = lengths.cumsum(0)
            shifts = sparse.offsets()[bags] - (ends - lengths)
            total = int(ends[-1]) if count else 0
            positions = torch.repeat_interleave(shifts, lengths, output_size=total) + torch.arange(total)
            values = sparse.values()[positions]
            weights = None if weights is None else weights[positions]
        return make_batch(
            self.dense.index_select(0, rows),
            KeyedJaggedTensor(sparse.keys(), values.long(), lengths=lengths, weights=weights, stride=count),
            self.labels.index_select(0, rows),
            None if self.row_weights is None else self.row_weights.index_select(0, rows),
        )

    @classmethod
    def from_table(cls, table: pa.Table, schema: Schema, where: str, order: np.ndarray | None = None) -> "ClickData":
        """Decodes and checks prepared rows.

        Args:
            table: table with the columns of the schema.
            schema: schema of a prepared data set.
            where: origin of the rows, for error messages.
            order: order ``(N,)`` of the rows; by default that of the table.

        Raises:
            ValueError: If a value is missing but that of a task, a label is not 0 or 1, a weight is negative, a weight
                or a dense value is not finite, an id is outside its table, or a column has another type. The message
                names the column and the row.
        """
        rows = table.num_rows
        labels = torch.empty(rows, len(schema.labels))
        for index, name in enumerate(schema.labels):
            what = f"{where}: column '{name}'"
            array = _optional(table, name) if index else _array(table, name, where)
            raw = _copy(array, labels[:, index], what, order)
            _require((raw == 0) | (raw == 1) | (np.isnan(raw) if index else False), raw, f"{what}: expected 0 or 1")
        labels = labels if schema.tasks else labels.flatten()
        row_weights = None
        if schema.weight is not None:
            row_weights, what = torch.empty(rows), f"{where}: column '{schema.weight}'"
            raw = _copy(_array(table, schema.weight, where), row_weights, what, order)
            _require(np.isfinite(raw) & (raw >= 0), raw, f"{what}: expected finite weights of 0 or more")
        dense = torch.empty(rows, len(schema.dense))
        for index, feature in enumerate(schema.dense):
            what = f"{where}: column '{feature.name}'"
            raw = _copy(_array(table, feature.name, where), dense[:, index], what, order)
            _require_finite(raw, what)
        one_id_each = not any(feature.multi_hot for feature in schema.sparse)
        if not one_id_each:
            columns = [_bags(table, feature, where, order) for feature in schema.sparse]
            values = torch.cat([ids for ids, _, _ in columns])
            lengths = torch.cat([lengths for _, lengths, _ in columns])
            weights = torch.cat([weights for _, _, weights in columns]) if schema.weighted else None
        else:
            values = torch.empty(len(schema.sparse), rows, dtype=_id_type(schema))
            for ids, sparse in zip(values, schema.sparse, strict=True):
                what = f"{where}: column '{sparse.name}'"
                array = _array(table, sparse.name, where)
                _require_ids(array, sparse, what)
                _copy(array, ids, what, order)
            # One number that is read again and again.
            lengths = torch.ones((), dtype=torch.int32).expand(values.numel())
            values, weights = values.flatten(), None
        keyed = KeyedJaggedTensor(schema.feature_names, values, lengths=lengths, weights=weights, stride=rows)
        return cls(dense, keyed, labels, one_id_each, row_weights)


Rows = tuple[ClickData, int, int]  # rows first..last-1 of some data


def join(parts: Sequence[Rows]) -> Batch:
    """Concatenates consecutive rows of several pieces of data with the same features into one batch."""
    sparse = [data.sparse for data, _, _ in parts]
    keys = sparse[0].keys()

    def cut(tensors: Sequence[Tensor]) -> Tensor:
        """Selects rows from tensors with one number per feature and row."""
        views = [tensor.view(len(keys), -1) for tensor in tensors]
        return torch.cat([v[:, first:last] for v, (_, first, last) in zip(views, parts, strict=True)], dim=1).flatten()

    def cut_bags(tensors: Sequence[Tensor]) -> Tensor:
        """Selects the ids of the requested rows from tensors with one number per id."""
        if all(data.one_id_each for data, _, _ in parts):
            return cut(tensors)
        spans = [_spans(*part) for part in parts]
        return torch.cat(
            [tensor[slice(*span[f])] for f in range(len(keys)) for tensor, span in zip(tensors, spans, strict=True)]
        )

    lengths = cut([part.lengths() for part in sparse])
    weights = None if sparse[0].weights_or_none() is None else cut_bags([part.weights() for part in sparse])
    of_rows = [data.row_weights[first:last] for data, first, last in parts if data.row_weights is not None]
    return make_batch(
        torch.cat([data.dense[first:last] for data, first, last in parts]),
        KeyedJaggedTensor(
            keys,
            cut_bags([part.values() for part in sparse]).long(),
            lengths=lengths,
            weights=weights,
            stride=lengths.numel() // len(keys),
        ),
        torch.cat([data.labels[first:last] for data, first, last in parts]),
        torch.cat(of_rows) if of_rows else None,
    )


def _spans(data: ClickData, first: int, last: int) -> list[tuple[int, int]]:
    """Returns for each feature the range of positions of the ids of rows ``first`` to ``last - 1``."""
    start_of_feature = torch.arange(len(data.sparse.keys())) * len(data)
    starts, ends = (data.sparse.offsets()[start_of_feature + row].tolist() for row in (first, last))
    return list(zip(starts, ends, strict=True))


def _optional(table: pa.Table, name: str) -> pa.Array:
    """Returns a column in which a missing number is NaN."""
    column = plain(table.column(name))
    return pc.fill_null(column.cast(pa.float32()), math.nan) if column.null_count else column


def _array(table: pa.Table, name: str, where: str) -> pa.Array:
    column = table.column(name).combine_chunks()
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) and column.num_chunks else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.array([], array.type)
    _require_all(array, f"{where}: column '{name}'")
    return array


def _require_all(array: pa.Array, what: str) -> None:
    if array.null_count:
        raise ValueError(f"{what}: {array.null_count} values are missing")


def _copy(array: pa.Array, out: Tensor, what: str, order: np.ndarray | None = None) -> np.ndarray:
    """Writes a column's numbers in the given order to a tensor, and returns them in their own."""
    kind = array.type
    if not (pa.types.is_integer(kind) or (pa.types.is_floating(kind) and out.is_floating_point())):
        expected = "numbers" if out.is_floating_point() else "integers"
        raise ValueError(f"{what}: expected {expected}, found {kind}")
    raw = array.to_numpy()
    if order is None:
        out.numpy()[...] = raw
    elif raw.dtype == out.numpy().dtype and out.is_contiguous():
        np.take(raw, order, out=out.numpy(), mode="clip")
    else:
        out.numpy()[...] = np.take(raw, order)
    return raw


def _id_type(schema: Schema) -> torch.dtype:
    """Returns the ids as int32 where that suffices, since it halves the bytes to shuffle."""
    return torch.int32 if max(feature.id_limit for feature in schema.sparse) <= 2**31 else torch.int64


def _bags(
    table: pa.Table, feature: SparseFeature, where: str, order: np.ndarray | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ids, lengths, and weights (empty if unweighted) of a feature."""
    array = _array(table, feature.name, where)
    what = f"{where}: column '{feature.name}'"
    if _is_list(array) != feature.multi_hot:
        expected = "lists of ids" if feature.multi_hot else "one id a row"
        raise ValueError(f"{what}: expected {expected}, found {array.type}")
    lists = _array(table, feature.weights_column, where) if feature.weights_column else None
    if lists is not None and (not _is_list(lists) or not torch.equal(_lengths(lists), _lengths(array))):
        raise ValueError(f"{where}: column '{feature.weights_column}': expected as many weights as ids in every row")
    _require_all(_flat(array), what)
    ends = _lengths(array).cumsum(0).numpy()
    _require_ids(_flat(array), feature, what, ends)
    if lists is not None:
        what = f"{where}: column '{feature.weights_column}'"
        _require_all(_flat(lists), what)
        _require_finite(_copy(_flat(lists), torch.empty(len(_flat(lists))), what), what)
    if order is not None:
        places = pa.array(order)
        array, lists = array.take(places), None if lists is None else lists.take(places)
    ids = torch.empty(len(_flat(array)), dtype=torch.int64)
    _copy(_flat(array), ids, what)
    weights = torch.empty(0 if lists is None else len(ids))
    if lists is not None:
        _copy(_flat(lists), weights, what)
    return ids, _lengths(array), weights


def _flat(array: pa.Array) -> pa.Array:
    return array.flatten() if _is_list(array) else array


def _is_list(array: pa.Array) -> bool:
    return bool(pa.types.is_list(array.type) or pa.types.is_large_list(array.type))


def _lengths(array: pa.Array) -> Tensor:
    if not _is_list(array):
        return torch.ones(len(array), dtype=torch.int32)
    return torch.from_numpy(np.diff(array.offsets.to_numpy()).astype(np.int32))


def _require_ids(array: pa.Array, feature: SparseFeature, what: str, ends: np.ndarray | None = None) -> None:
    if not pa.types.is_integer(array.type):
        raise ValueError(f"{what}: expected integers, found {array.type}")
    raw = array.to_numpy()
    if len(raw) and (raw.min() < 0 or raw.max() >= feature.id_limit):
        position = int(np.argmax((raw < 0) | (raw >= feature.id_limit)))
        row = position if ends is None else int(np.searchsorted(ends, position, side="right"))
        raise ValueError(f"{what}: row {row}: id {raw[position]} is outside of 0..{feature.id_limit - 1}")


def _require_finite(raw: np.ndarray, what: str) -> None:
    # Finite float32 numbers cannot add up to anything else in float64.
    if raw.dtype != np.float32 or not np.isfinite(raw.sum(dtype=np.float64)):
        _require(np.isfinite(raw), raw, f"{what}: expected finite numbers")


def _require(good: np.ndarray, values: np.ndarray, message: str) -> None:
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(f"{message}, found {values[row]} in row {row}")
