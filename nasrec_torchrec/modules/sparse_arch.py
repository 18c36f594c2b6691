"""The embedding tables, whose pooled embeddings become tokens."""

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class SparseArch(nn.Module):
    """Looks up and pools each sparse feature, as the collection is configured.

    Args:
        embedding_bag_collection: Tables with a common embedding dimension. Features may be multi-hot or weighted.

    Raises:
        ValueError: If the collection has no table, its embedding dimensions differ, or it is not an
            EmbeddingBagCollection.
    """

    def __init__(self, embedding_bag_collection: EmbeddingBagCollection) -> None:
        super().__init__()
        if not hasattr(embedding_bag_collection, "embedding_bag_configs"):
            raise ValueError(
                "embedding_bag_collection: expected an EmbeddingBagCollection, found "
                f"{type(embedding_bag_collection).__name__}, which is not supported"
            )
        configs = list(embedding_bag_collection.embedding_bag_configs())
        dims = {config.name: config.embedding_dim for config in configs}
        if len(set(dims.values())) != 1:
            raise ValueError(f"embedding_bag_collection: expected one embedding_dim for all tables, found {dims}")
        self.embedding_bag_collection = embedding_bag_collection
        self.embedding_dim: int = configs[0].embedding_dim
        self.feature_names: list[str] = [name for names in get_embedding_names_by_table(configs) for name in names]
        self._rows: dict[str, int] = _rows_by_feature(configs)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Looks up a batch.

        Args:
            features: Ids of each sparse feature for B rows.

        Returns:
            Pooled embeddings of shape ``(B, F_sparse, E)``, in the order of the collection's configuration.
        """
        pooled = self.embedding_bag_collection(features).to_dict()
        # By name: the order of the columns depends on the sharding plan.
        columns = torch.cat([pooled[name] for name in self.feature_names], dim=1)
        return columns.reshape(-1, len(self.feature_names), self.embedding_dim)

    def check(self, features: KeyedJaggedTensor) -> None:
        """Checks that a batch has every feature and, on the CPU, that every id has a row in its table.

        Args:
            features: Ids of each sparse feature.

        Raises:
            ValueError: If a feature is missing or an id is outside of its table.
        """
        missing = [name for name in self._rows if name not in features.keys()]
        if missing:
            raise ValueError(f"sparse_features: missing {missing}; found the keys {features.keys()}")
        if features.values().device.type != "cpu" or torch.compiler.is_compiling():
            return  # there the check would stall the device, or cannot be traced
        rows = torch.tensor([self._rows.get(key, torch.iinfo(torch.int64).max) for key in features.keys()])
        ids = features.values()
        limit = torch.repeat_interleave(rows, torch.tensor(features.length_per_key()), output_size=ids.numel())
        outside = (ids < 0) | (ids >= limit)
        if outside.any():
            position = int(outside.nonzero()[0])
            ends = torch.tensor(features.offset_per_key()[1:])
            key = features.keys()[int(torch.searchsorted(ends, position, right=True))]
            raise ValueError(
                f"sparse_features: feature '{key}': id {int(ids[position])} is outside of 0..{self._rows[key] - 1}"
            )


def _rows_by_feature(configs: list[BaseEmbeddingConfig]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for config in configs:
        for name in config.feature_names:
            rows[name] = min(rows.get(name, config.num_embeddings), config.num_embeddings)
    return rows
