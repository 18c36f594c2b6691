"""Rows whose embeddings were looked up once and are kept in memory or, beyond a limit, in a memory-mapped file."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from nasrec_torchrec.datasets.click_data import WeightedBatch
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.distributed.gather import sum_over_ranks
from nasrec_torchrec.distributed.process_group import rank_and_ranks
from nasrec_torchrec.distributed.sharding import local_world_size
from nasrec_torchrec.memory import gib
from nasrec_torchrec.metrics.passes import free_bytes
from nasrec_torchrec.modules.sparse_arch import SparseArch
from nasrec_torchrec.progress import progress_bar
from nasrec_torchrec.search.config import EvaluationConfig

# Part of the free memory that the rows may take.
_SHARE = 4
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class CachedRows:
    """This rank's share of some rows.

    Args:
        dense: dense features ``(rows, F_dense)``.
        embedded: pooled embeddings ``(rows, ...)``, as the sparse part returns them; possibly of lower precision or
            mapped from a file.
        labels: labels ``(rows,)``.
        total: number of rows over all ranks.
        weights: weights ``(rows,)``, of mean 1 over all ranks; None if the rows count alike.
    """

    dense: Tensor
    embedded: Tensor
    labels: Tensor
    total: int
    weights: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.numel()

    @property
    def nbytes(self) -> int:
        return self.dense.nbytes + self.embedded.nbytes + self.labels.nbytes

    def chunks(self, size: int, first: int = 0, last: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields dense features and float32 embeddings of rows ``first`` to ``last - 1``, up to ``size`` at a time."""
        parts = (tensor[first:last].split(size) for tensor in (self.dense, self.embedded))
        for dense, embedded in zip(*parts, strict=True):
            yield dense, embedded.to(dense.device, torch.float32)

    def select(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns dense features and float32 embeddings of the rows ``(B,)`` in any order."""
        return self.dense[rows], self.embedded[rows].to(self.dense.device, torch.float32)


@dataclass(frozen=True)
class FinetuningRows:
    """This rank's share of the rows on which the last layer is fine-tuned.

    Args:
        cached: the rows, each once, however many steps use it.
        steps: for each step, the positions of its rows in ``cached``.
        log_odds_added: see :attr:`~nasrec_torchrec.datasets.reader.ClickFiles.log_odds_added`.
    """

    cached: CachedRows
    steps: tuple[Tensor, ...]
    log_odds_added: float


class RowCache:
    """Looks up the embeddings of rows on all ranks together, and keeps them.

    Rows that exceed the configuration's ``cache_memory``, or a quarter of the free memory, are mapped from a file in
    the folder for temporary files (``TMPDIR``). Such a file has no name and is deleted with the process.

    Args:
        sparse_arch: module that looks up embeddings; it may be sharded over the ranks.
        config: configuration with the numbers of rows, their precision and the memory limit.
    """

    def __init__(self, sparse_arch: SparseArch, config: EvaluationConfig) -> None:
        self._sparse_arch, self._config = sparse_arch, config
        self._type = _TYPES[config.cache_precision]
        device = next(sparse_arch.parameters()).device
        free = free_bytes(device, local_world_size())
        self._left = free // _SHARE if config.cache_memory is None else config.cache_memory
        self._limit = (
            f"{gib(self._left)} that --cache_memory allows"
            if config.cache_memory is not None
            else f"a quarter of {gib(free)} that are free (--cache_memory)"
        )
        self._kept = self._mapped = 0

    def finetuning_rows(self, files: ClickFiles, generator: torch.Generator) -> FinetuningRows | None:
        """Draws the rows of every fine-tuning step; returns None if there is no step. This call is collective."""
        config = self._config
        wanted = config.finetune_steps * config.finetune_batch_size
        if not wanted:
            return None
        rank, ranks = rank_and_ranks()
        if config.finetune_rows is None or config.finetune_rows >= min(wanted, len(files)):
            pool = torch.arange(len(files))
        else:
            pool = torch.randperm(len(files), generator=generator)[: config.finetune_rows]
        epochs = -(-wanted // len(pool))
        drawn = torch.cat([pool[torch.randperm(len(pool), generator=generator)] for _ in range(epochs)])
        rows, positions = drawn[:wanted].unique(return_inverse=True)
        steps = tuple(step[step % ranks == rank] // ranks for step in positions.split(config.finetune_batch_size))
        return FinetuningRows(self._look_up(files, rows, torch.arange(len(rows))), steps, files.log_odds_added)

    def __str__(self) -> str:
        kept, mapped = (f"{size / 2**20:,.1f} MiB" for size in (self._kept, self._mapped))
        beyond = f" and {mapped} in a file" if self._mapped else ""
        return f"{kept} of embeddings kept in memory{beyond}, of {self._limit}"

    def validation_rows(self, files: ClickFiles, generator: torch.Generator) -> CachedRows:
        """Returns the first rows of a split in random order, so that any prefix is a fair sample."""
        rows = torch.arange(min(len(files), self._config.evaluation_rows))
        return self._look_up(files, rows, torch.randperm(len(rows), generator=generator))

    @torch.no_grad()
    def _look_up(self, files: ClickFiles, rows: Tensor, places: Tensor) -> CachedRows:
        """Looks up the embeddings of rows, with one row group in memory at a time.

        Args:
            files: files to read from, the same on every rank.
            rows: ascending positions ``(N,)`` in ``files``.
            places: order ``(N,)`` in which the rows are dealt to the ranks, one by one.
        """
        sparse_arch, chunk_size = self._sparse_arch, self._config.pass_rows
        rank, ranks = rank_and_ranks()
        device = next(sparse_arch.parameters()).device
        count = len(range(rank, len(rows), ranks))
        dense, labels = torch.empty(count, len(files.schema.dense)), torch.empty(count)
        weights = None if files.schema.weight is None else torch.empty(count)
        embedded = self._allocate((count, *sparse_arch.output_shape), device)
        ends = torch.tensor(list(accumulate(rows_of_group for _, _, rows_of_group in files.groups)))
        per_group = torch.searchsorted(rows, ends).diff(prepend=torch.tensor([0]))
        start = 0
        with progress_bar(len(rows), "look-up", "row", scale=True, leave=False) as bar:
            for group, wanted in enumerate(per_group.tolist()):
                if not wanted:
                    continue
                data = files.read(group)
                inside = rows[start : start + wanted] - (int(ends[group]) - len(data))
                place = places[start : start + wanted]
                mine = place % ranks == rank
                most = max(int((place % ranks == other).sum()) for other in range(ranks))
                inside, local = inside[mine], place[mine] // ranks
                # A sharded look-up is collective: every rank must call it equally often, even if it has no rows left.
                for first in range(0, most, chunk_size):
                    part, target = inside[first : first + chunk_size], local[first : first + chunk_size]
                    batch = data.select(part if len(part) else torch.tensor([0]))
                    pooled = sparse_arch(batch.sparse_features.to(device))[: len(part)]
                    embedded[target.to(embedded.device)] = pooled.to(embedded.device, self._type)
                    dense[target] = batch.dense_features[: len(part)]
                    labels[target] = batch.labels[: len(part)]
                    if weights is not None and isinstance(batch, WeightedBatch):
                        weights[target] = batch.row_weights[: len(part)]
                start += wanted
                bar.update(wanted)
        if weights is not None:
            total = float(sum_over_ranks(weights.double().sum().to(device)))
            if not total > 0:
                raise ValueError(f"{files.files[0].parent}: column '{files.schema.weight}': all weights are 0")
            weights = (weights * (len(rows) / total)).to(device)
        return CachedRows(dense.to(device), embedded, labels.to(device), len(rows), weights)

    def _allocate(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        count = torch.Size(shape).numel()
        size = count * self._type.itemsize
        if size <= self._left:
            self._left -= size
            self._kept += size
            return torch.empty(shape, dtype=self._type, device=device)
        self._mapped += size
        with tempfile.NamedTemporaryFile(prefix="nasrec-rows-") as file:
            return torch.from_file(file.name, shared=True, size=count, dtype=self._type).view(shape)
