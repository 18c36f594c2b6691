"""Sharding a model with TorchRec's planner and DistributedModelParallel."""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DataParallelWrapper, DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ModuleSharder, ShardingEnv, ShardingPlan, ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

SHARDING_TYPES: tuple[str, ...] = tuple(kind.value for kind in ShardingType if kind is not ShardingType.DATA_PARALLEL)


class AllTypesSharder(EmbeddingBagCollectionSharder):
    """Offers every model-parallel sharding type on the CPU too, where TorchRec's own sharder hides some that work."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(SHARDING_TYPES)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return [EmbeddingComputeKernel.FUSED.value]


class BroadcastWrapper(DataParallelWrapper):
    """Starts all ranks from rank 0's dense parameters and leaves gradients to the training loop.

    DistributedDataParallel knows the stored parameters only, and would send all of a supernet's gradients.
    """

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        module = dmp._dmp_wrapped_module
        sharded = set(DistributedModelParallel._sharded_parameter_names(module))
        module.to(device)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name not in sharded:
                    dist.broadcast(parameter.detach(), src=0, group=env.process_group)


def parallelize(model: nn.Module, device: torch.device, sharding_type: str | None = None) -> DistributedModelParallel:
    """Plans, shards and wraps a model over the current process group.

    Args:
        model: holds an EmbeddingBagCollection with an optimizer applied in backward.
        device: this rank's device.
        sharding_type: one of ``SHARDING_TYPES`` for all tables; None lets the planner choose.

    Returns:
        DistributedModelParallel: all of whose ranks hold the same dense parameters. Weights that are not on the
        meta device are kept, those of the tables too.

    Raises:
        ValueError: for an unknown sharding type, or when no plan fits the machine.
    """
    if sharding_type is not None and sharding_type not in SHARDING_TYPES:
        raise ValueError(f"sharding_type: expected one of {list(SHARDING_TYPES)}, found {sharding_type!r}")
    sharders: list[ModuleSharder[nn.Module]] = [AllTypesSharder()]
    weights = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    dmp = DistributedModelParallel(
        model,
        device=device,
        plan=make_plan(model, device, sharders, sharding_type),
        sharders=sharders,
        data_parallel_wrapper=BroadcastWrapper(),
    )
    _fill_shards(dmp, weights)
    return dmp


@torch.no_grad()
def _fill_shards(dmp: DistributedModelParallel, weights: dict[str, Tensor]) -> None:
    """Copies whole tables into this rank's shards: TorchRec initialises shards anew, whatever the module held."""
    for name, sharded in dmp.state_dict().items():
        if name in weights and isinstance(sharded, ShardedTensor):
            for shard in sharded.local_shards():
                slices = tuple(
                    slice(offset, offset + size)
                    for offset, size in zip(shard.metadata.shard_offsets, shard.metadata.shard_sizes, strict=True)
                )
                shard.tensor.copy_(weights[name][slices])


def make_plan(
    model: nn.Module,
    device: torch.device,
    sharders: list[ModuleSharder[nn.Module]],
    sharding_type: str | None,
) -> ShardingPlan:
    """The plan, made on every rank alike: if only one rank planned and failed, the others would wait for ever."""
    world_size = dist.get_world_size()
    constraints = {
        name: ParameterConstraints(sharding_types=[sharding_type] if sharding_type else None)
        for module in model.modules()
        if isinstance(module, EmbeddingBagCollection)
        for name in (config.name for config in module.embedding_bag_configs())
    }
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world_size, compute_device=device.type, local_world_size=local_world_size()),
        constraints=constraints,
    )
    try:
        return planner.plan(model, sharders)
    except PlannerError as error:
        raise ValueError(f"no sharding plan fits {world_size} ranks of {device.type}: {error}") from None


def local_world_size() -> int:
    """Ranks on this host, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
