"""Sharding of tables whose ids are mapped to rows in training (TorchRec's managed collision), on the CPU too."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionSharder,
    ShardedManagedCollisionEmbeddingBagCollection,
)
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from nasrec_torchrec.modules.dynamic_ids import DynamicIds


class ShardedManagedTables(ShardedManagedCollisionEmbeddingBagCollection):
    """TorchRec's sharded collection, which resets a row completely where it is given to another id.

    TorchRec's own keeps the optimizer's state of the row, except that of a row-wise Adagrad, whose reset exists on CUDA
    alone.
    """

    @torch.no_grad()
    def _evict(self, evictions_per_table: dict[str, Tensor | None]) -> None:
        for table, rows in evictions_per_table.items():
            if rows is None or not rows.numel():
                continue
            kernel, index = self._table_to_tbe_and_index[table]
            if kernel.lxu_cache_weights.numel():  # rows may be in the cache, which only TorchRec's way knows of
                super()._evict({table: rows})
                continue
            weight = kernel.split_embedding_weights()[int(index)]
            ids = cast(nn.Module, self._managed_collision_collection._managed_collision_modules[table])
            if isinstance(ids, DynamicIds):
                # An id begins with what it was looked up as until now.
                weight[rows] = weight[ids.unknown_rows(rows)]
            else:
                init: Any = self._embedding_module._table_name_to_config[table].init_fn
                weight[rows] = init(weight[rows])
            states = kernel.split_optimizer_states()  # nothing with SGD
            for state in states[int(index)] if states else ():
                if state.ndim and len(state) == len(weight):
                    state[rows] = 0


class ManagedTableSharder(ManagedCollisionEmbeddingBagCollectionSharder):
    """Shards such a collection by rows; TorchRec's own sharder has no way to shard it on the CPU.

    Args:
        ebc_sharder: The sharder of the tables, such as :class:`~nasrec_torchrec.distributed.sharding.TableSharder`.
    """

    def __init__(self, ebc_sharder: EmbeddingBagCollectionSharder) -> None:
        super().__init__(ebc_sharder=ebc_sharder)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return self._e_sharder.compute_kernels(sharding_type, compute_device_type)

    def shard(
        self,
        module: ManagedCollisionEmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedManagedTables:
        assert isinstance(self._e_sharder, EmbeddingBagCollectionSharder)
        return ShardedManagedTables(
            module, params, self._e_sharder, self._mc_sharder, env, device or torch.device("cuda")
        )
