"""The embedding tables, whose pooled embeddings become tokens."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.modules.sequence_pooling import SequencePooling
from nasrec_torchrec.modules.table_collection import describe_collection


class SparseArch(nn.Module):
    """Looks up and pools each sparse feature, as the collection is configured.

    The embeddings of a sequence, from an ``EmbeddingCollection``, are pooled by their mean or by attention.

    Args:
        embedding_bag_collection: The tables, see :func:`~nasrec_torchrec.modules.table_collection.describe_collection`.
            Features may be multi-hot or weighted.
        interaction_dim: Width E of the tokens that are to be made of the embeddings. By default, the common embedding
            dimension, or the largest one if they differ.
        attention: For sequences, see :class:`~nasrec_torchrec.modules.sequence_pooling.SequencePooling`.
        device: Device of the attention; ``meta`` is allowed.
        side_by_side: Whether the embeddings are returned side by side even if all dimensions are E, for those who read
            some columns of each.

    Raises:
        TypeError: If the collection is of an unsupported kind, or has no sequences to attend to.
        ValueError: If the collection has no table, the width is not a positive integer, or a feature of the attention
            is none of the collection's.
    """

    def __init__(
        self,
        embedding_bag_collection: nn.Module,
        interaction_dim: int | None = None,
        attention: Mapping[str, str] | None = None,
        device: torch.device | None = None,
        side_by_side: bool = False,
    ) -> None:
        super().__init__()
        collection = describe_collection(embedding_bag_collection)
        configs = collection.configs
        if not configs:
            raise ValueError("embedding_bag_collection: expected at least one table, found none")
        if interaction_dim is not None and (not isinstance(interaction_dim, int) or interaction_dim < 1):
            raise ValueError(f"interaction_dim: expected a positive integer or None, found {interaction_dim!r}")
        self.embedding_bag_collection: Any = collection.module
        self.embedding_dim: int = interaction_dim or max(config.embedding_dim for config in configs)
        by_table = list(zip(configs, get_embedding_names_by_table(configs), strict=True))
        self.feature_names: list[str] = [name for _, names in by_table for name in names]
        self.configs = configs
        self.dims: dict[str, int] = {config.name: config.embedding_dim for config in configs}
        # The table of every token and its embedding dimension, where they have to be projected.
        self.tables: tuple[tuple[str, int], ...] = ()
        if side_by_side or any(config.embedding_dim != self.embedding_dim for config in configs):
            self.tables = tuple((config.name, config.embedding_dim) for config, names in by_table for _ in names)
        if attention and not collection.sequences:
            raise TypeError(
                f"attention: expected an EmbeddingCollection, which looks up every id of a sequence, found a "
                f"{type(embedding_bag_collection).__name__}"
            )
        self.pooling: SequencePooling | None = None
        if collection.sequences:
            self.pooling = SequencePooling(self.feature_names, configs, attention or {}, device)
        self._managed, self._longest = collection.managed, collection.longest
        self._limits = dict.fromkeys(self.feature_names, torch.iinfo(torch.int64).max) | dict(collection.limits)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one row of the output: ``(F_sparse, E)``, or ``(columns,)`` if dimensions differ."""
        if self.tables:
            return (sum(dim for _, dim in self.tables),)
        return (len(self.feature_names), self.embedding_dim)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Looks up a batch.

        Args:
            features: Ids of each sparse feature for B rows.

        Returns:
            Pooled embeddings of shape ``(B, F_sparse, E)``, in the order of the collection's configuration. If some
            tables have another dimension than E, all embeddings side by side, of shape ``(B, columns)``.
        """
        found = self.embedding_bag_collection(features)
        if self._managed:
            found = found[0]
        # By name: the order of the columns depends on the sharding plan.
        if self.pooling is not None:
            pooled = self.pooling(found)
        else:
            by_name = found.to_dict()
            pooled = [by_name[name] for name in self.feature_names]
        columns = torch.cat(pooled, dim=1)
        return columns if self.tables else columns.reshape(-1, len(self.feature_names), self.embedding_dim)

    def check(self, features: KeyedJaggedTensor) -> None:
        """Checks that a batch has every feature and, on the CPU, that every id has a row in its table.

        Ids that are not known beforehand may be any in their range. Bags that are weighted by position must not be too
        long.

        Args:
            features: Ids of each sparse feature.

        Raises:
            ValueError: If a feature is missing, an id is outside of its table, or a bag has more ids than positions.
        """
        missing = [name for name in self._limits if name not in features.keys()]
        if missing:
            raise ValueError(f"sparse_features: missing {missing}; found the keys {features.keys()}")
        if features.values().device.type != "cpu" or torch.compiler.is_compiling():
            return  # there the check would stall the device, or cannot be traced
        self._check_lengths(features)
        rows = torch.tensor([self._limits.get(key, torch.iinfo(torch.int64).max) for key in features.keys()])
        ids = features.values()
        limit = torch.repeat_interleave(rows, torch.tensor(features.length_per_key()), output_size=ids.numel())
        outside = (ids < 0) | (ids >= limit)
        if outside.any():
            position = int(outside.nonzero()[0])
            ends = torch.tensor(features.offset_per_key()[1:])
            key = features.keys()[int(torch.searchsorted(ends, position, right=True))]
            raise ValueError(
                f"sparse_features: feature '{key}': id {int(ids[position])} is outside of 0..{self._limits[key] - 1}"
            )

    def _check_lengths(self, features: KeyedJaggedTensor) -> None:
        for key, most in self._longest.items():
            longest = int(features[key].lengths().amax()) if features[key].lengths().numel() else 0
            if longest > most:
                raise ValueError(
                    f"sparse_features: feature '{key}': a bag has {longest} ids, and its feature processor has weights "
                    f"for {most} positions"
                )
