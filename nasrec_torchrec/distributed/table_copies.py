"""Several copies of the tables, each sharded over a group of ranks: TorchRec's DMPCollection, or 2D parallelism.

Sharding over all ranks sends ids and embeddings between all of them, which hundreds of GPUs pay for. With groups, the
ranks of a group exchange them among themselves, and the copies, which learn from different rows, are averaged now and
then, with the sums of their Adagrad. The dense part is averaged over all ranks in every step as before.
"""

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DataParallelWrapper, DistributedModelParallel, DMPCollection
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from nasrec_torchrec.distributed.fused_optimizers import optimizer_of

# DMPCollection asserts it.
DEVICE_TYPES: tuple[str, ...] = ("cuda",)
# Those whose state DMPCollection knows how to average.
_OPTIMIZERS = "adagrad", "rowwise_adagrad"


def require_copies(model: nn.Module, weights: dict[str, nn.Parameter], group_size: int, device: torch.device) -> None:
    """Checks that the tables can be held in several copies.

    Args:
        model: model that is to be sharded.
        weights: its tables by name.
        group_size: number of ranks that share a copy.
        device: device of this rank.

    Raises:
        ValueError: If the device, the number of ranks, the tables or their optimizers do not allow it.
    """
    if device.type not in DEVICE_TYPES:
        raise ValueError(
            f"sharding_group_size: expected none on {device.type}, found {group_size}: TorchRec's DMPCollection is for "
            "CUDA"
        )
    ranks = dist.get_world_size()
    if not 0 < group_size <= ranks or ranks % group_size:
        allowed = [size for size in range(1, ranks + 1) if ranks % size == 0]
        raise ValueError(f"sharding_group_size: expected one of {allowed} for {ranks} ranks, found {group_size}")
    if any(isinstance(module, ManagedCollisionEmbeddingBagCollection) for module in model.modules()):
        raise ValueError(
            f"sharding_group_size: expected none with dynamic ids, found {group_size}: each copy would give rows to "
            "other ids"
        )
    for name, weight in weights.items():
        if (found := optimizer_of(weight)) not in _OPTIMIZERS:
            raise ValueError(
                f"sharding_group_size: expected tables with {' or '.join(_OPTIMIZERS)}, whose state TorchRec averages, "
                f"found {found} for the table {name}"
            )


def parallelize_copies(
    model: nn.Module,
    device: torch.device,
    plan: ShardingPlan,
    group_size: int,
    sharders: list[ModuleSharder[nn.Module]],
    wrapper: DataParallelWrapper,
) -> DistributedModelParallel:
    """Shards a copy of the tables over each group of ranks.

    Args:
        model: model with tables.
        device: device of this rank.
        plan: plan for the ranks of one group.
        group_size: number of ranks of a group.
        sharders: sharders of the tables.
        wrapper: what is done with the dense part.
    """
    ranks = dist.group.WORLD
    assert ranks is not None
    return DMPCollection(
        model,
        device,
        plan,
        world_size=dist.get_world_size(),
        sharding_group_size=group_size,
        global_pg=ranks,
        sharders=sharders,
        data_parallel_wrapper=wrapper,
    )


def average_copies(dmp: DistributedModelParallel) -> None:
    """Averages the copies of the tables, where there are several, and the state of their optimizer; collective."""
    if isinstance(dmp, DMPCollection):
        dmp.sync()
