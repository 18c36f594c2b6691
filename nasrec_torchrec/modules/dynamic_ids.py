"""Ids that are not known beforehand (ZCH, zero collision hashing): rows of a table of fixed size change hands."""

from typing import Any

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection, ManagedCollisionModule
from torchrec.sparse.jagged_tensor import JaggedTensor

from nasrec_torchrec.id_space import ID_BITS, ID_SPACE, RESERVED_ROWS, UNKNOWN_ROW, buckets_of

_EMPTY = torch.iinfo(torch.int64).max
# Rows among which a new id looks for the weakest one, once its bucket is full.
_PROBES = 16


class DynamicIds(ManagedCollisionModule):
    """Gives rows of a table to the ids that are seen in training, and takes them from ids that are seen less.

    Unlike TorchRec's ``MCHManagedCollisionModule``, it maps an id to the same row whatever the number of ranks, because
    the buckets of a table do not depend on it (see :mod:`nasrec_torchrec.id_space`), and its state can be read by
    another number of ranks. In evaluation mode it changes nothing.

    An id without a row shares one with the others of its bucket. In every ``admit_every``-th step these ids get rows of
    their own: free ones, and then those of weaker ids. The strength of an id is the number of its occurrences while it
    had its row, divided by the number of steps since the last one; that of a new id is the number of its occurrences in
    the step. The new id looks at 16 rows, and takes the weakest if it is weaker than itself. An id that has lost its
    row is like one that never had one.

    Args:
        rows: Number of rows of the table, or of this rank's part of it.
        device: Device of the state.
        admit_every: Number of steps from one admission to the next. The steps between them train the shared rows, which
            unknown ids are looked up in when the model is used.
        buckets: Number of buckets of the whole table; by default :func:`~nasrec_torchrec.id_space.buckets_of` its rows.
        first_row: The first of this rank's rows.
        bucket_rows: Number of rows of a bucket, where ``rows`` are a rank's part.

    Raises:
        ValueError: If the rows are no multiple of the buckets' size, or a bucket has no rows for ids.
    """

    _ids: Tensor
    _counts: Tensor
    _seen: Tensor
    _evictions: Tensor
    _current_iter_tensor: Tensor

    def __init__(
        self,
        rows: int,
        device: torch.device | None = None,
        admit_every: int = 2,
        buckets: int | None = None,
        first_row: int = 0,
        bucket_rows: int | None = None,
    ) -> None:
        device = device or torch.device("cpu")
        buckets = buckets or buckets_of(rows)
        size = bucket_rows or rows // buckets
        if size <= RESERVED_ROWS or buckets & (buckets - 1) or (bucket_rows is None and rows % buckets):
            raise ValueError(
                f"dynamic ids: expected buckets of {RESERVED_ROWS + 1} rows or more, in a number that is a power of "
                f"two and divides the rows of the table; found {rows:,} rows in {buckets} buckets"
            )
        if admit_every < 1:
            raise ValueError(f"admit_every: expected a positive number of steps, found {admit_every}")
        if rows % size or first_row % size:
            raise ValueError(
                f"dynamic ids: a table in {buckets} buckets of {size:,} rows cannot be divided after {first_row:,} "
                f"rows and {first_row + rows:,}; expected a number of ranks that divides {buckets}"
            )
        super().__init__(device, [bucket * size for bucket in range(buckets + 1)])
        self.rows, self.first_row, self.bucket_rows, self.admit_every = rows, first_row, size, admit_every
        self._buckets, self.shift = buckets, ID_BITS - (buckets.bit_length() - 1)
        self.register_buffer("_ids", torch.full((rows,), _EMPTY, dtype=torch.int64, device=device))
        for name in ("_counts", "_seen", "_evictions"):
            self.register_buffer(name, torch.zeros(rows, dtype=torch.int64, device=device))
        self._changed: Tensor | None = None
        # The ids of the rows in order, the row of each, and how many rows every bucket uses.
        self._index: tuple[Tensor, Tensor, Tensor] | None = None
        self._indexed = -1

    def extra_repr(self) -> str:
        return f"rows={self.rows}, buckets={self._buckets}, admit_every={self.admit_every}, first_row={self.first_row}"

    def counts(self) -> dict[str, int]:
        """Returns how many rows have an id, and how many times an id has lost its row so far."""
        return {"rows": int((self._ids != _EMPTY).sum()), "evictions": int(self._evictions.sum())}

    def id_map(self) -> tuple[Tensor, Tensor]:
        """Returns the ids that have a row, in ascending order, and their rows ``(N,)`` in the whole table."""
        ids, rows, _ = self._indexes()
        return ids[:-1].clone(), rows[:-1] + self.first_row

    def unknown_rows(self, rows: Tensor) -> Tensor:
        """Returns for each of this rank's rows the one that the unknown ids of its bucket share."""
        return rows - rows % self.bucket_rows + UNKNOWN_ROW

    def preprocess(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        return features

    @torch.no_grad()
    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Counts the ids of a training step, and admits new ones if it is time."""
        if not self.training:
            return features
        self._current_iter_tensor += 1
        step = int(self._current_iter_tensor)
        values = torch.cat([feature.values() for feature in features.values()])
        ids, counts = torch.unique(values[values > 0], return_counts=True)
        rows, known = self._find(ids)
        self._counts[rows[known]] += counts[known]
        self._seen[rows[known]] = step
        if (step - 1) % self.admit_every == 0 and not known.all():
            self._admit(ids[~known], counts[~known], step)
        return features

    def remap(
        self, features: dict[str, JaggedTensor], mutate_miss_lengths: bool = True, write_weights: Tensor | None = None
    ) -> dict[str, JaggedTensor]:
        """Replaces ids by rows of the whole table."""
        return {
            name: JaggedTensor(
                values=self._find(feature.values())[0] + self.first_row,
                lengths=feature.lengths(),
                offsets=feature.offsets(),
                weights=feature.weights_or_none(),
            )
            for name, feature in features.items()
        }

    def forward(self, features: dict[str, JaggedTensor], mutate_miss_lengths: bool = True) -> dict[str, JaggedTensor]:
        return self.remap(self.profile(features))

    def evict(self) -> Tensor | None:
        """Returns the rows of the whole table that ids were given since the last call."""
        changed, self._changed = self._changed, None
        return changed

    def output_size(self) -> int:
        return self.rows

    def input_size(self) -> int:
        return ID_SPACE

    def buckets(self) -> int:
        return self._buckets

    def open_slots(self) -> Tensor:
        used = self._indexes()[2]
        return (used.numel() * (self.bucket_rows - RESERVED_ROWS) - used.sum()).reshape(1)

    def validate_state(self) -> None:
        """Checks a state that was loaded.

        Raises:
            ValueError: If an id is in the part of another bucket.
        """
        self._index = None
        rows = torch.nonzero(self._ids != _EMPTY).flatten()
        if not torch.equal(self._bucket(self._ids[rows]), rows // self.bucket_rows):
            raise ValueError(
                f"dynamic ids: the state was written for another number of buckets than {self._buckets}, or is damaged"
            )

    def rebuild_with_output_id_range(
        self, output_id_range: tuple[int, int], output_segments: list[int], device: torch.device | None = None
    ) -> "DynamicIds":
        """Returns the module of a rank that has a range of the rows."""
        first, end = output_id_range
        part = DynamicIds(
            end - first, device or self.device, self.admit_every, self._buckets, first, bucket_rows=self.bucket_rows
        )
        if not self._current_iter_tensor.is_meta:
            part._current_iter_tensor.copy_(self._current_iter_tensor)
        return part

    def _bucket(self, ids: Tensor) -> Tensor:
        """Returns the bucket of each id, counted from this rank's first one."""
        return (ids >> self.shift) - self.first_row // self.bucket_rows

    def _find(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns this rank's row for each id, and whether it is the id's own."""
        sorted_ids, rows, _ = self._indexes()
        place = torch.searchsorted(sorted_ids, ids)
        known = sorted_ids[place] == ids
        shared = torch.where(ids > 0, self._bucket(ids) * self.bucket_rows + UNKNOWN_ROW, 0)
        return torch.where(known, rows[place], shared), known

    def _indexes(self) -> tuple[Tensor, Tensor, Tensor]:
        # The state also changes where a checkpoint is read into it.
        if self._index is None or self._indexed != self._ids._version:
            ids, rows = torch.sort(self._ids, stable=True)
            used = int((ids != _EMPTY).sum())
            end = ids.new_full((1,), _EMPTY)
            per_bucket = (self._ids != _EMPTY).view(-1, self.bucket_rows).sum(1)
            self._index = torch.cat([ids[:used], end]), torch.cat([rows[:used], torch.zeros_like(end)]), per_bucket
            self._indexed = self._ids._version
        return self._index

    def _admit(self, ids: Tensor, counts: Tensor, step: int) -> None:
        """Gives rows to new, distinct ids."""
        _, _, used = self._indexes()
        order = torch.argsort(counts, descending=True, stable=True)
        order = order[torch.argsort(self._bucket(ids[order]), stable=True)]
        ids, counts = ids[order], counts[order]  # by bucket, the strongest first
        bucket = self._bucket(ids)
        place = used[bucket] + torch.arange(len(ids), device=ids.device) - torch.searchsorted(bucket, bucket)
        free = place < self.bucket_rows - RESERVED_ROWS
        fresh = (bucket * self.bucket_rows + RESERVED_ROWS + place)[free]
        self._counts[fresh], self._seen[fresh] = counts[free], step  # nobody takes them in this step
        taken, takers = self._weakest(ids[~free], counts[~free], bucket[~free], step)
        rows = torch.cat([fresh, taken])
        ids = torch.cat([ids[free], ids[~free][takers]])
        self._reindex(rows, ids, self._ids[taken], bucket[free])
        self._ids[rows] = ids
        self._indexed = self._ids._version
        self._counts[taken], self._seen[taken] = counts[~free][takers], step
        self._evictions[taken] += 1
        changed = rows + self.first_row
        self._changed = changed if self._changed is None else torch.cat([self._changed, changed])

    def _weakest(self, ids: Tensor, counts: Tensor, bucket: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns rows of weaker ids, each once, and which of the given ids take them."""
        slots = self.bucket_rows - RESERVED_ROWS
        window = torch.arange(min(_PROBES, slots), device=ids.device)
        probed = (ids.unsqueeze(1) + step * _PROBES + window) % slots
        probed += (bucket * self.bucket_rows + RESERVED_ROWS).unsqueeze(1)
        strength = self._counts[probed] / (step - self._seen[probed])  # infinite for ids of this step
        weakest, column = strength.min(dim=1)
        rows = probed.gather(1, column.unsqueeze(1)).flatten()
        stronger = torch.nonzero(counts > weakest).flatten()
        distinct, place = torch.unique(rows[stronger], return_inverse=True)
        first = stronger.new_full((len(distinct),), len(ids)).scatter_reduce(0, place, stronger, "amin")
        return distinct, first

    def _reindex(self, rows: Tensor, ids: Tensor, lost: Tensor, filled: Tensor) -> None:
        """Replaces ids in the index; sorting all of them again would take far longer."""
        old_ids, old_rows, used = self._indexes()
        keep = torch.ones_like(old_ids, dtype=torch.bool)
        keep[torch.searchsorted(old_ids, lost)] = False
        old_ids, old_rows = old_ids[keep], old_rows[keep]
        ids, order = torch.sort(ids)
        places = torch.searchsorted(old_ids, ids) + torch.arange(len(ids), device=ids.device)
        old = torch.ones(len(old_ids) + len(ids), dtype=torch.bool, device=ids.device)
        old[places] = False
        merged: list[Tensor] = []
        for new, before in ((ids, old_ids), (rows[order], old_rows)):
            whole = new.new_empty(len(old))
            whole[places], whole[old] = new, before
            merged.append(whole)
        self._index = merged[0], merged[1], used + torch.bincount(filled, minlength=len(used))


class KnownIds(ManagedCollisionModule):
    """Leaves ids as they are: they are the rows of a table beside others whose ids are dynamic.

    Args:
        rows: Number of rows of the whole table.
        device: Device of the table.
        parts: Number of ranks that share the table; 0 before it is known, since any number can.
        held: Number of this rank's rows; by default all.
    """

    def __init__(self, rows: int, device: torch.device, parts: int = 0, held: int | None = None) -> None:
        super().__init__(device, [0, rows])
        del self._output_segments_tensor, self._current_iter_tensor  # there is no state
        self.rows, self._parts, self._held = rows, parts, rows if held is None else held

    def preprocess(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        return features

    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        return features

    def remap(self, features: dict[str, JaggedTensor], *_: Any, **__: Any) -> dict[str, JaggedTensor]:
        return features

    def forward(self, features: dict[str, JaggedTensor], *_: Any, **__: Any) -> dict[str, JaggedTensor]:
        return features

    def evict(self) -> Tensor | None:
        return None

    def output_size(self) -> int:
        return self._held

    def input_size(self) -> int:
        return self.rows

    def buckets(self) -> int:
        return self._parts

    def open_slots(self) -> Tensor:
        return torch.zeros(1, dtype=torch.int64)

    def validate_state(self) -> None:
        """Does nothing, since there is no state."""

    def rebuild_with_output_id_range(
        self, output_id_range: tuple[int, int], output_segments: list[int], device: torch.device | None = None
    ) -> "KnownIds":
        first, end = output_id_range
        return KnownIds(self.rows, device or self.device, len(output_segments) - 1, end - first)


def with_dynamic_ids(
    embedding_bag_collection: EmbeddingBagCollection, dynamic: dict[str, DynamicIds]
) -> ManagedCollisionEmbeddingBagCollection:
    """Puts maps from ids to rows in front of some tables of a collection.

    Args:
        embedding_bag_collection: The tables.
        dynamic: The maps of the tables whose ids are not known beforehand, by table. The ids of the others are rows.

    Returns:
        TorchRec's collection for it, which a model can be built on. On several ranks, all of its tables are sharded by
        rows.
    """
    configs: list[EmbeddingBagConfig] = embedding_bag_collection.embedding_bag_configs()
    modules = {
        config.name: dynamic.get(config.name) or KnownIds(config.num_embeddings, embedding_bag_collection.device)
        for config in configs
    }
    # Without preprocessing, since TorchRec's sharded collection loses the weights of ids where there is one.
    return ManagedCollisionEmbeddingBagCollection(
        embedding_bag_collection, ManagedCollisionCollection(modules, configs, need_preprocess=False)
    )
