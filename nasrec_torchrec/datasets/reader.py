"""Streams a split from Parquet: batches for every rank, in an order that a few numbers describe.

Think of the rows of an epoch as one line: the row groups in an order drawn from the seed and the epoch, and the rows of
each row group in an order drawn from these and the row group. The line is cut into equal *streams*, and a global batch
takes equally many rows from each stream. A rank serves whole streams. Therefore

- every rank reads its own row groups; only the one at each cut is opened on both sides, for different rows,
- all ranks take the same number of steps,
- the global batches are the same for every number of ranks that divides the number of streams, and
- the rows that are left are a list of intervals, whatever the numbers of ranks were until then.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.datasets.checksums import known_sha256
from nasrec_torchrec.datasets.click_data import ClickData, Rows, WeightedBatch, join, make_batch
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.soft_labels import SoftLabels
from nasrec_torchrec.datasets.split_counts import SplitCounts
from nasrec_torchrec.datasets.stage import Stage, number_of_streams
from nasrec_torchrec.runs.files import local_copies
from nasrec_torchrec.runs.fingerprint import digest

# Number of batches that the background process may be ahead.
_PREFETCH = 4


@dataclass(frozen=True)
class ClickFiles:
    """The Parquet files of a split.

    Args:
        schema: schema of a prepared data set.
        files: files in order.
        groups: file, number in that file, and number of rows of every row group.
        checksums: SHA-256 checksum of every file, None if it is not known.
        dictionaries: name and checksum of each dictionary that the ids come from.
        clicks: number of rows whose label is 1; None if it is not known.
        keep_negatives: share of the rows without a click that preparation kept.
        weights: sum of the rows' weights; None if it is not known, or the rows count alike.
        soft_labels: probabilities that :meth:`read` mixes with the labels, to train a model on them.
        warnings: what the preparation of the data set has warned of.
    """

    schema: Schema
    files: tuple[Path, ...]
    groups: tuple[tuple[int, int, int], ...]
    checksums: tuple[str | None, ...]
    dictionaries: tuple[tuple[str, str], ...] = ()
    clicks: int | None = None
    keep_negatives: float = 1.0
    weights: float | None = None
    soft_labels: SoftLabels | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path, schema: Schema, checksums: Mapping[str, str] | None = None) -> "ClickFiles":
        """Reads the metadata of a Parquet file, or of a folder of them in the order of their names.

        Remote files are first copied to this machine, once each.

        Args:
            path: path of the file or folder.
            schema: schema of the prepared rows.
            checksums: SHA-256 checksums of the files by name, each verified before the file's first row is read.

        Raises:
            ValueError: If a file is missing or damaged, or lacks a column.
        """
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files or not files[0].exists():
            raise ValueError(f"{path}: no Parquet file found")
        groups = []
        known = tuple((checksums or {}).get(file.name) for file in files)
        files = local_copies(files)
        for index, file in enumerate(files):
            with _reading(file), pq.ParquetFile(file) as opened:
                available = opened.schema_arrow.names
                missing = [name for name in schema.columns if name not in available]
                if missing:
                    raise ValueError(f"{file}: missing columns {missing}; found {available}")
                doubled = [name for name in schema.columns if available.count(name) > 1]
                if doubled:
                    raise ValueError(f"{file}: expected every column once, found {doubled} more than once")
                for group in range(opened.num_row_groups):
                    groups.append((index, group, opened.metadata.row_group(group).num_rows))
        return cls(schema, tuple(files), tuple(groups), known)

    def without(self, features: Collection[str]) -> "ClickFiles":
        """The same rows without some features, see :meth:`~nasrec_torchrec.datasets.schema.Schema.without`."""
        return replace(self, schema=self.schema.without(features))

    def weighing(self, loss_weights: Mapping[str, float]) -> "ClickFiles":
        """The same rows, see :meth:`~nasrec_torchrec.datasets.schema.Schema.with_loss_weights`."""
        return replace(self, schema=self.schema.with_loss_weights(loss_weights))

    def followed_by(self, other: "ClickFiles") -> "ClickFiles":
        """The rows of this split and then those of another one of the same data set.

        Raises:
            ValueError: If only one of them has all rows without a click.
        """
        if self.keep_negatives != other.keep_negatives:
            raise ValueError(
                f"{self.files[0].parent} has {self.keep_negatives:g} of its rows without a click and "
                f"{other.files[0].parent} {other.keep_negatives:g} of them (keep_negatives): rows of both cannot be "
                "trained on together"
            )
        shift = len(self.files)
        return replace(
            self,
            files=(*self.files, *other.files),
            groups=(*self.groups, *((index + shift, number, rows) for index, number, rows in other.groups)),
            checksums=(*self.checksums, *other.checksums),
            clicks=None if self.clicks is None or other.clicks is None else self.clicks + other.clicks,
            weights=None if self.weights is None or other.weights is None else self.weights + other.weights,
        )

    def __len__(self) -> int:
        return sum(rows for _, _, rows in self.groups)

    @property
    def counts(self) -> SplitCounts | None:
        """Rows and clicks, if they are known; of the rows that were not kept, about how many there were."""
        return None if self.clicks is None else SplitCounts(len(self), self.clicks).before_sampling(self.keep_negatives)

    @property
    def log_odds_added(self) -> float:
        """By how much the log-odds of a click are higher in these rows than before rows without one were left out.

        Training adds it to the logits, so that the logits of the model itself are those of all rows.
        """
        return -math.log(self.keep_negatives)

    @property
    def digest(self) -> str:
        """Tells these rows from others: a checksum of the files' contents, wherever they lie, and of soft labels."""
        taught = [] if self.soft_labels is None else [self.soft_labels.sha256, self.soft_labels.share]
        return digest([*(known_sha256(file) for file in self.files), *taught])

    def read(self, group: int, order: np.ndarray | None = None) -> ClickData:
        """Decodes and checks a row group.

        Args:
            group: index of the row group.
            order: order of its rows; by default that of the file.

        Raises:
            ValueError: If the file is damaged or holds what the schema does not allow. Rows are counted from the first
                row of the row group.
        """
        index, number, _ = self.groups[group]
        file = self.files[index]
        self._verify(index)
        with _reading(file), pq.ParquetFile(file, memory_map=True, page_checksum_verification=True) as opened:
            table = opened.read_row_group(number, columns=self.schema.columns, use_threads=False)
        data = ClickData.from_table(table, self.schema, f"{file}: row group {number}", order)
        if self.soft_labels is None:
            return data
        first = sum(rows for _, _, rows in self.groups[:group])
        return replace(data, labels=self.soft_labels.mixed(data.labels, first, order))

    def load(self) -> ClickData:
        """Reads all rows into memory.

        Raises:
            ValueError: See :meth:`read`.
        """
        tables = []
        for index, file in enumerate(self.files):
            self._verify(index)
            with _reading(file):
                tables.append(pq.read_table(file, columns=self.schema.columns))
        name = self.files[0] if len(self.files) == 1 else self.files[0].parent
        return ClickData.from_table(pa.concat_tables(tables), self.schema, str(name))

    def verify(self) -> None:
        """Compares all files with their checksums, for what reads them by other means than :meth:`read`.

        Raises:
            ValueError: If one was changed or is damaged.
        """
        for index in range(len(self.files)):
            self._verify(index)

    def _verify(self, index: int) -> None:
        """Raises ValueError if a file does not match its checksum; a process checks each file once."""
        file, expected = self.files[index], self.checksums[index]
        if expected is None:
            return
        with _reading(file):
            found = known_sha256(file)
        if found != expected:
            raise ValueError(f"{file}: was changed or is damaged: its checksum is not that of the manifest")

    def evaluation_batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Yields this rank's share of all rows in order, where each rank has one contiguous part.

        Every rank yields the same number of batches of the same sizes. If there are not enough rows, the last one is
        repeated; :meth:`restore` drops the repetitions.

        Args:
            batch_size: number of rows in a global batch.
            rank: this rank.
            world_size: number of ranks.
        """
        if not len(self):
            return
        per_rank = math.ceil(len(self) / world_size)
        share = max(1, batch_size // world_size)
        rows = _Line(self, None)
        for start in range(0, per_rank, share):
            first = rank * per_rank + start
            wanted = min(share, per_rank - start)
            last = min(first + wanted, len(self))
            parts = list(rows.read(first, last))
            if first + wanted > last:
                parts += list(rows.read(len(self) - 1, len(self))) * (first + wanted - max(first, last))
            rows.forget()
            yield join(parts)

    def restore(self, gathered: Tensor) -> Tensor:
        """Drops the values of repeated rows from the evaluation results of all ranks, concatenated by rank."""
        return gathered[: len(self)]


class TrainingReader:
    """Shuffled batches of one rank, epoch after epoch.

    Rows that do not fill a last global batch are left out of that epoch, and other rows are left out of the next.

    Args:
        files: files of the split.
        batch_size: number of rows in a global batch, a multiple of ``world_size``.
        seed: seed of the order.
        rank: this rank.
        world_size: number of ranks.
        background: whether to decode in a separate process, which may be some batches ahead. If it dies, the next batch
            raises RuntimeError; an error in it is raised here with its traceback.
        pin_memory: whether to return batches in page-locked memory, for CUDA.

    Raises:
        ValueError: If the ranks cannot share the batch size, or there are fewer rows than that.
    """

    def __init__(
        self,
        files: ClickFiles,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        background: bool = False,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size: expected a positive multiple of the {world_size} ranks, found {batch_size}")
        if len(files) < batch_size:
            raise ValueError(f"batch_size: {batch_size} rows do not fit into a split of {len(files)} rows")
        self.files, self.batch_size, self.seed = files, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.background, self.pin_memory = background, pin_memory
        self.streams = number_of_streams(batch_size, world_size)
        self.epoch = 0
        self._stage = self._finished = self._first_stage()

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch that is read with this number of ranks from its beginning."""
        return self._first_stage().total_steps

    @property
    def steps_left(self) -> int:
        """Number of steps until the current epoch ends."""
        return self._stage.total_steps - self._stage.steps

    def __iter__(self) -> Iterator[Batch]:
        """Yields the rest of the current epoch; at its end the next epoch begins."""
        for batch in self._batches():
            self._stage = replace(self._stage, steps=self._stage.steps + 1)
            yield batch
        self._finished = self._stage
        self.epoch += 1
        self._stage = self._first_stage()

    def state_dict(self, ahead: int = 0) -> dict[str, Any]:
        """Returns the position, which is the same on every rank and can be restored on any number of ranks.

        Args:
            ahead: number of batches that were yielded but do not count yet, because a pipeline still holds them.
        """
        stage, epoch = self._stage, self.epoch
        if ahead and not stage.steps:
            stage, epoch = self._finished, epoch - 1
        assert 0 <= ahead <= stage.steps, f"only {stage.steps} batches were handed out in this epoch, not {ahead}"
        return {
            "seed": self.seed,
            "rows": len(self.files),
            "epoch": epoch,
            "intervals": [list(interval) for interval in stage.rows],
            "batch_size": stage.batch_size,
            "streams": stage.streams,
            "steps": stage.steps - ahead,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes at the position of another reader of the same split and seed.

        With the same number of streams, the batches are those that it would have read. Otherwise all rows that it did
        not reach are distributed again.

        Raises:
            ValueError: If the position belongs to another split or seed.
        """
        for key, mine in (("seed", self.seed), ("rows", len(self.files))):
            if state[key] != mine:
                raise ValueError(f"position in the data: expected {key} {mine}, found {state[key]}")
        self.epoch = state["epoch"]
        rows = tuple((int(first), int(last)) for first, last in state["intervals"])
        stage = Stage(rows, state["batch_size"], state["streams"], state["steps"])
        if stage.batch_size != self.batch_size or stage.streams % self.world_size:
            stage = Stage(stage.left(), self.batch_size, self.streams)
        self._stage = stage

    def _first_stage(self) -> Stage:
        return Stage(((0, len(self.files)),), self.batch_size, self.streams)

    def _batches(self) -> Iterator[Batch]:
        plan = _Plan(self.files, self._stage, (self.seed, self.epoch), self.rank, self.world_size)
        if not self.background:
            yield from plan.batches()
            return
        # A fork would copy the locks that other threads of this process hold; a fork server has no such threads. Our
        # programs let it import this module once, see cli/program.py; otherwise each epoch waits for the imports.
        loader = DataLoader(
            plan,
            batch_size=None,
            num_workers=1,
            prefetch_factor=_PREFETCH,
            pin_memory=self.pin_memory,
            multiprocessing_context="forkserver",
        )
        batches = iter(loader)
        while True:
            try:
                dense, values, lengths, weights, labels, row_weights = next(batches)
            except StopIteration:
                return
            except (ConnectionError, EOFError, FileNotFoundError) as error:
                # The process died while it was sending a tensor, before the loader noticed.
                raise RuntimeError(f"the process that reads {self.files.files[0].parent} died: {error!r}") from error
            sparse = KeyedJaggedTensor(self.files.schema.feature_names, values, weights, lengths, stride=len(labels))
            yield make_batch(dense, sparse, labels, row_weights)


@dataclass(frozen=True)
class _Plan(IterableDataset):
    """What a rank reads in the rest of an epoch, small enough to be sent to another process."""

    files: ClickFiles
    stage: Stage
    key: tuple[int, int]
    rank: int
    world_size: int

    def batches(self) -> Iterator[Batch]:
        stage, line = self.stage, _Line(self.files, self.key)
        mine = stage.streams // self.world_size
        for step in range(stage.steps, stage.total_steps):
            parts: list[Rows] = []
            for stream in range(self.rank * mine, (self.rank + 1) * mine):
                for first, last in stage.step(stream, step):
                    parts += line.read(first, last)
            line.forget()
            yield join(parts)

    def __iter__(self) -> Iterator[tuple[Tensor | None, ...]]:
        torch.set_num_threads(1)
        for batch in self.batches():
            sparse, labels = batch.sparse_features, batch.labels
            row_weights = batch.row_weights if isinstance(batch, WeightedBatch) else None
            yield batch.dense_features, sparse.values(), sparse.lengths(), sparse.weights_or_none(), labels, row_weights


class _Line:
    """The rows of an epoch in their order, decoded on demand, one row group at a time.

    Args:
        files: files of the split.
        key: seed and epoch of the order; None for the order of the files.
    """

    def __init__(self, files: ClickFiles, key: tuple[int, int] | None) -> None:
        self._files, self._key = files, key
        self._groups = np.arange(len(files.groups))
        if key is not None:
            self._groups = _shuffled(len(files.groups), *key)
        sizes = [files.groups[group][2] for group in self._groups]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._held: dict[int, ClickData] = {}
        self._used: set[int] = set()

    def read(self, first: int, last: int) -> Iterator[Rows]:
        """Returns rows ``first`` to ``last - 1`` of the line."""
        place = int(np.searchsorted(self._starts, first, side="right")) - 1
        while first < last:
            start, end = int(self._starts[place]), int(self._starts[place + 1])
            until = min(last, end)
            if until > first:
                yield self._group(place), first - start, until - start
            first, place = until, place + 1

    def forget(self) -> None:
        """Drops the row groups that were not read since the last call."""
        self._held = {place: data for place, data in self._held.items() if place in self._used}
        self._used = set()

    def _group(self, place: int) -> ClickData:
        self._used.add(place)
        if place not in self._held:
            group = int(self._groups[place])
            order = None
            if self._key is not None:
                order = _shuffled(self._files.groups[group][2], *self._key, group)
            self._held[place] = self._files.read(group, order)
        return self._held[place]


def _shuffled(count: int, *key: int) -> np.ndarray:
    """Returns 0..count-1 in an order that depends only on the key."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable Parquet file: {error}") from None
