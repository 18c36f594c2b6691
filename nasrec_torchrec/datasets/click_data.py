"""A split of a prepared data set in memory, and batches of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.datasets.schema import Schema, SparseFeature


@dataclass(frozen=True)
class ClickData:
    """All rows of a split.

    Args:
        dense: ``(N, F_dense)`` float32.
        sparse: ids of the N rows, feature by feature, ``stride`` N.
        labels: ``(N,)`` float32 of 0 and 1.
    """

    dense: Tensor
    sparse: KeyedJaggedTensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.numel()

    def select(self, rows: Tensor) -> Batch:
        """The rows ``(B,)`` of the split as a batch."""
        sparse = self.sparse
        # Bags lie feature by feature: bag f * N + row holds the row's ids of feature f.
        first_bag = torch.arange(len(sparse.keys())).unsqueeze(1) * len(self)
        bags = (first_bag + rows).flatten()
        lengths = sparse.lengths()[bags]
        ends = lengths.cumsum(0)
        shifts = sparse.offsets()[bags] - (ends - lengths)
        total = int(ends[-1])
        positions = torch.repeat_interleave(shifts, lengths, output_size=total) + torch.arange(total)
        weights = sparse.weights_or_none()
        return Batch(
            dense_features=self.dense[rows],
            sparse_features=KeyedJaggedTensor(
                sparse.keys(),
                sparse.values()[positions],
                lengths=lengths,
                weights=None if weights is None else weights[positions],
                stride=rows.numel(),
            ),
            labels=self.labels[rows],
        )

    def training_batches(
        self, batch_size: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """This rank's share of every global batch of a shuffled epoch.

        The global batches depend on the seed and the epoch only, not on the number of ranks. Rows that do not fill a
        last batch sit the epoch out, so that all ranks take equally many steps.

        Args:
            batch_size: rows of a global batch, a multiple of ``world_size``.
            seed: of the run.
            epoch: 0-based.
            rank: this rank.
            world_size: ranks.
        """
        check_batch_size(batch_size, world_size, len(self))
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(self)))
        share = batch_size // world_size
        for start in range(0, len(self) // batch_size * batch_size, batch_size):
            first = start + rank * share
            yield self.select(order[first : first + share])

    def evaluation_batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """This rank's share of all rows in order: rank r holds every ``world_size``-th row, r first.

        The shares are padded with repeated rows to equal lengths; :meth:`restore` drops those again.
        """
        per_rank = -(-len(self) // world_size)
        rows = (torch.arange(per_rank) * world_size + rank).clamp(max=len(self) - 1)
        for chunk in rows.split(max(1, batch_size // world_size)):
            yield self.select(chunk)

    def restore(self, gathered: Tensor, world_size: int = 1) -> Tensor:
        """Values of all ranks' evaluation rows, concatenated by rank, in the order of the split, each row once."""
        return gathered.reshape(world_size, -1).t().flatten()[: len(self)]

    @classmethod
    def from_parquet(cls, path: Path, schema: Schema) -> "ClickData":
        """Reads one split: a Parquet file, or a folder of them in the order of their names.

        Raises:
            ValueError: for a file that is missing, damaged or lacks a column, a label other than 0 and 1, a dense
                value that is not finite, or an id outside of its table; with file and row.
        """
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files or not files[0].exists():
            raise ValueError(f"{path}: no Parquet file found")
        parts = [_read_file(file, schema) for file in files]
        names = schema.feature_names
        by_feature = [[part[2][name] for part in parts] for name in names]
        weights = None
        if schema.weighted:
            weights = torch.cat([weights for columns in by_feature for _, _, weights in columns])
        sparse = KeyedJaggedTensor(
            names,
            values=torch.cat([values for columns in by_feature for values, _, _ in columns]),
            lengths=torch.cat([lengths for columns in by_feature for _, lengths, _ in columns]),
            weights=weights,
        )
        return cls(torch.cat([part[0] for part in parts]), sparse, torch.cat([part[1] for part in parts]))


def check_batch_size(batch_size: int, world_size: int, rows: int) -> None:
    """Raises ValueError for a batch size that the ranks cannot share or the data cannot fill."""
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch_size: expected a positive multiple of the {world_size} ranks, found {batch_size}")
    if rows < batch_size:
        raise ValueError(f"batch_size: {batch_size} rows do not fit into a split of {rows} rows")


_Column = tuple[Tensor, Tensor, Tensor]  # ids, lengths, weights (empty when unweighted)


def _read_file(file: Path, schema: Schema) -> tuple[Tensor, Tensor, dict[str, _Column]]:
    weights = [f"{feature.name}_weights" for feature in schema.sparse if feature.weighted]
    columns = [schema.label, *schema.dense, *schema.feature_names, *weights]
    try:
        available = pq.read_schema(file).names
        missing = [name for name in columns if name not in available]
        if missing:
            raise ValueError(f"{file}: missing columns {missing}; found {available}")
        table = pq.read_table(file, columns=columns).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable Parquet file: {error}") from None
    labels = _floats(table, schema.label, file)
    _require((labels == 0) | (labels == 1), labels, f"{file}: column '{schema.label}': expected 0 or 1")
    dense = np.empty((table.num_rows, len(schema.dense)), np.float32)
    for index, name in enumerate(schema.dense):
        dense[:, index] = _floats(table, name, file)
        _require(np.isfinite(dense[:, index]), dense[:, index], f"{file}: column '{name}': expected finite numbers")
    sparse = {feature.name: _ids(table, feature, file) for feature in schema.sparse}
    return torch.from_numpy(dense), torch.from_numpy(labels), sparse


def _array(table: pa.Table, name: str, file: Path) -> pa.Array:
    column = table.column(name)
    array = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    if array.null_count:
        raise ValueError(f"{file}: column '{name}': {array.null_count} values are missing")
    return array


def _numbers(array: pa.Array, kind: type, what: str) -> np.ndarray:
    wanted = pa.types.is_integer if kind is np.int64 else lambda t: pa.types.is_integer(t) or pa.types.is_floating(t)
    if not wanted(array.type):
        raise ValueError(f"{what}: expected {'integers' if kind is np.int64 else 'numbers'}, found {array.type}")
    return array.to_numpy(zero_copy_only=False).astype(kind)


def _floats(table: pa.Table, name: str, file: Path) -> np.ndarray:
    return _numbers(_array(table, name, file), np.float32, f"{file}: column '{name}'")


def _ids(table: pa.Table, feature: SparseFeature, file: Path) -> _Column:
    what = f"{file}: column '{feature.name}'"
    array = _array(table, feature.name, file)
    is_list = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
    if is_list != feature.multi_hot:
        raise ValueError(
            f"{what}: expected {'lists of ids' if feature.multi_hot else 'one id a row'}, found {array.type}"
        )
    if is_list:
        lengths = np.diff(array.offsets.to_numpy()).astype(np.int32)
        ids = _numbers(array.flatten(), np.int64, what)
    else:
        lengths = np.ones(len(array), np.int32)
        ids = _numbers(array, np.int64, what)
    inside = (ids >= 0) & (ids < feature.num_embeddings)
    if not inside.all():
        position = int(np.argmin(inside))
        row = int(np.searchsorted(np.cumsum(lengths), position, side="right"))
        raise ValueError(f"{what}: row {row}: id {ids[position]} is outside of 0..{feature.num_embeddings - 1}")
    weights = np.empty(0, np.float32)
    if feature.weighted:
        name = f"{feature.name}_weights"
        weight_lists = _array(table, name, file)
        if not np.array_equal(np.diff(weight_lists.offsets.to_numpy()), lengths):
            raise ValueError(f"{file}: column '{name}': expected as many weights as ids in every row")
        weights = _numbers(weight_lists.flatten(), np.float32, f"{file}: column '{name}'")
    return torch.from_numpy(ids), torch.from_numpy(lengths), torch.from_numpy(weights)


def _require(good: np.ndarray, values: np.ndarray, message: str) -> None:
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(f"{message}, found {values[row]} in row {row}")
