"""Sharding a model with TorchRec's planner and DistributedModelParallel."""

import os
from collections.abc import Collection, Mapping
from typing import cast, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.fp_embeddingbag import FeatureProcessedEmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DataParallelWrapper, DistributedModelParallel, DMPCollection
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    KeyValueParams,
    ModuleSharder,
    ParameterSharding,
    QuantizedCommCodecs,
    ShardingEnv,
    ShardingPlan,
    ShardingType,
)
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingBagCollectionInterface,
    EmbeddingCollection,
)
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from nasrec_torchrec.distributed.config import QuantizedComms, SharderMemory, TableMemory
from nasrec_torchrec.distributed.fused_optimizers import ON_SSDS, optimizer_of, state_bytes_of
from nasrec_torchrec.distributed.managed_tables import ManagedTableSharder
from nasrec_torchrec.distributed.process_group import rank_and_ranks
from nasrec_torchrec.distributed.shards import shards_of
from nasrec_torchrec.distributed.table_copies import parallelize_copies, require_copies
from nasrec_torchrec.memory import gib, host_memory
from nasrec_torchrec.modules.dynamic_ids import DynamicIds
from nasrec_torchrec.modules.table_collection import table_configs, table_weights

_WEIGHT_BYTES = 4  # float32
# It divides each shard's part of a bag by the number of ids in that shard instead of by the length of the bag.
_SUMS_ONLY = ShardingType.GRID_SHARD.value
SHARDING_TYPES: tuple[str, ...] = tuple(kind.value for kind in ShardingType if kind is not ShardingType.DATA_PARALLEL)


# Where the weights of a table may be, by the kernel that looks them up; those other than FUSED are for CUDA.
_KERNELS: dict[SharderMemory, tuple[EmbeddingComputeKernel, ...]] = {
    "device": (EmbeddingComputeKernel.FUSED,),
    "host": (EmbeddingComputeKernel.FUSED_UVM,),
    "host_cached": (EmbeddingComputeKernel.FUSED_UVM_CACHING,),
    "auto": (
        *(EmbeddingComputeKernel.FUSED, EmbeddingComputeKernel.FUSED_UVM_CACHING),
        EmbeddingComputeKernel.FUSED_UVM,
    ),
    "ssd": (EmbeddingComputeKernel.KEY_VALUE,),
}


class TableSharder(EmbeddingBagCollectionSharder):
    """Offers every model-parallel sharding type on the CPU too; TorchRec's own sharder hides some that work there.

    Args:
        qcomm_codecs_registry: How embeddings and gradients are sent.
        table_memory: Where tables may be, see :class:`~nasrec_torchrec.training.config.TrainConfig`. ``ssd`` keeps them
            on the hosts' SSDs behind caches on the devices, for a plan with ``ssd_directory``.
        replicated: Tables that every rank holds whole, which a planner has nothing to decide about.
    """

    def __init__(
        self,
        qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
        table_memory: SharderMemory = "device",
        replicated: Collection[str] = (),
    ) -> None:
        super().__init__(qcomm_codecs_registry=qcomm_codecs_registry)
        self._table_memory, self._replicated = table_memory, frozenset(replicated)

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(SHARDING_TYPES)

    def shardable_parameters(self, module: EmbeddingBagCollectionInterface) -> dict[str, nn.Parameter]:
        found: dict[str, nn.Parameter] = super().shardable_parameters(module)
        return {name: weight for name, weight in found.items() if name not in self._replicated}

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        memory = self._table_memory if compute_device_type == "cuda" else "device"
        return [kernel.value for kernel in _KERNELS[memory]]


class SequenceSharder(EmbeddingCollectionSharder):
    """The sharder of tables of sequences, which stay on their device."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [kind for kind in super().sharding_types(compute_device_type) if kind in SHARDING_TYPES]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return [EmbeddingComputeKernel.FUSED.value]


def table_sharders(
    qcomm_codecs_registry: dict[str, QuantizedCommCodecs] | None = None,
    table_memory: SharderMemory = "device",
    replicated: Collection[str] = (),
) -> list[ModuleSharder[nn.Module]]:
    """Returns the sharders of the collections of tables that our trainings know, see :class:`TableSharder`."""
    tables = TableSharder(qcomm_codecs_registry, table_memory, replicated)
    processed = FeatureProcessedEmbeddingBagCollectionSharder(tables)
    sequences = SequenceSharder(qcomm_codecs_registry=qcomm_codecs_registry)
    every = tables, ManagedTableSharder(tables), processed, sequences
    return [cast(ModuleSharder[nn.Module], sharder) for sharder in every]


class BroadcastWrapper(DataParallelWrapper):
    """Starts all ranks with rank 0's dense parameters and leaves gradients to the training loop.

    DistributedDataParallel only knows the stored parameters and would send all gradients of a supernet.
    """

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        module = dmp._dmp_wrapped_module
        sharded = set(DistributedModelParallel._sharded_parameter_names(module))
        module.to(device)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name not in sharded:
                    dist.broadcast(parameter.detach(), src=0, group=env.process_group)


def parallelize(
    model: nn.Module,
    device: torch.device,
    sharding_type: str | None = None,
    quantized_comms: QuantizedComms = "none",
    replicate: bool = False,
    table_memory: TableMemory = "device",
    replicated: Collection[str] = (),
    sharding_group_size: int | None = None,
) -> DistributedModelParallel:
    """Plans, shards and wraps a model over the current process group.

    Args:
        model: model with an EmbeddingBagCollection whose optimizer is applied in the backward pass.
        device: device of this rank.
        sharding_type: one of ``SHARDING_TYPES`` for all tables; None lets the planner choose.
        quantized_comms: how embeddings and their gradients are sent between ranks.
        replicate: whether to shard nothing, so that every rank holds all tables whole, as parameters of the dense part.
        table_memory: where the tables may be: in the memory of the devices, or of their hosts, see
            :class:`~nasrec_torchrec.training.config.TrainConfig`.
        replicated: tables that every rank holds whole (``data_parallel``) while the others are sharded. They are
            parameters of the dense part, whose gradients TorchRec averages over the ranks in the backward pass.
        sharding_group_size: number of ranks that share a copy of the tables, of which there are then several, see
            :mod:`~nasrec_torchrec.distributed.table_copies`; all ranks share one by default.

    Returns:
        DistributedModelParallel: The wrapped model, with the same dense parameters on all ranks. Weights that are not
        on the meta device are kept, including those of the tables.

    Raises:
        ValueError: If the sharding type is unknown; quantized communication, memory beside the device's or copies of
            the tables are requested on the CPU; or no plan fits the machine.
    """
    if table_memory not in get_args(TableMemory):
        raise ValueError(
            f"table_memory: expected one of {', '.join(get_args(TableMemory))}, found {table_memory!r}; tables on "
            "SSDs are for plan_tables, since our trainings cannot write checkpoints of them"
        )
    if table_memory not in ("device", "auto") and device.type != "cuda":
        raise ValueError(
            f"table_memory: expected 'device' or 'auto' on {device.type}, found {table_memory!r}: it is for CUDA"
        )
    if sharding_type is not None and sharding_type not in SHARDING_TYPES:
        raise ValueError(f"sharding_type: expected one of {list(SHARDING_TYPES)}, found {sharding_type!r}")
    means = [config.name for config in _configs(model) if getattr(config, "pooling", None) is PoolingType.MEAN]
    if sharding_type == _SUMS_ONLY and means:
        raise ValueError(
            f"sharding_type: {_SUMS_ONLY} gives wrong means in TorchRec, and {means} are pooled by mean; choose another"
        )
    codecs = None
    if quantized_comms != "none":
        if device.type != "cuda":
            raise ValueError(
                f"quantized_comms: expected 'none' on {device.type}, found {quantized_comms!r}: it is for CUDA"
            )
        kind = CommType(quantized_comms)
        codecs = get_qcomm_codecs_registry(QCommsConfig(forward_precision=kind, backward_precision=kind), device)
    sharders = table_sharders(codecs, table_memory, replicated)
    managed = any(isinstance(module, ManagedCollisionEmbeddingBagCollection) for module in model.modules())
    if managed and replicate:
        raise ValueError("optimizer: adam holds all tables on every rank, which dynamic ids cannot be; choose adagrad")
    if replicated and any(isinstance(module, EmbeddingCollection) for module in model.modules()):
        raise ValueError(
            "replicate_mib: expected 0 with attention over lists, whose embeddings TorchRec mixes up in data_parallel; "
            f"every rank would hold {sorted(replicated)}"
        )
    if managed and replicated:
        raise ValueError(
            "replicate_mib: expected 0 with dynamic ids, with which TorchRec shards every table by rows; every rank "
            f"would hold {sorted(replicated)}"
        )
    if managed and sharding_type not in (None, ShardingType.ROW_WISE.value):
        raise ValueError(f"sharding_type: expected row_wise, which dynamic ids need, or none; found {sharding_type!r}")
    if replicate and sharding_type is not None:
        raise ValueError(f"sharding_type: expected none where every rank holds all tables, found {sharding_type!r}")
    if sharding_group_size is not None:
        if replicate or replicated:
            raise ValueError(
                f"sharding_group_size: expected none where every rank holds tables whole, found {sharding_group_size}"
            )
        if table_memory != "device":  # TorchRec averages what is behind a cache, not what is in it
            raise ValueError(
                f"table_memory: expected device with sharding_group_size {sharding_group_size}, found {table_memory!r}"
            )
        require_copies(model, _weights(model), sharding_group_size, device)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    ranks = sharding_group_size or dist.get_world_size()
    plan = ShardingPlan({}) if replicate else make_plan(model, device, sharders, sharding_type, ranks)
    plan = _with_replicated(plan, model, replicated)
    wrapper = BroadcastWrapper()
    if sharding_group_size is None:
        dmp = DistributedModelParallel(
            model, device=device, plan=plan, sharders=sharders, data_parallel_wrapper=wrapper
        )
    else:
        dmp = parallelize_copies(model, device, plan, sharding_group_size, sharders, wrapper)
    _fill_shards(dmp, weights)
    return dmp


def _with_replicated(plan: ShardingPlan, model: nn.Module, replicated: Collection[str]) -> ShardingPlan:
    """Adds tables that every rank holds whole to the plan of the others."""
    whole = ParameterSharding(
        sharding_type=ShardingType.DATA_PARALLEL.value,
        compute_kernel=EmbeddingComputeKernel.DENSE.value,
        ranks=list(range(dist.get_world_size())),
    )
    for path, module in model.named_modules() if replicated else ():
        if isinstance(module, EmbeddingBagCollection):
            of_module = plan.plan.setdefault(_planned_path(model, path), EmbeddingModuleShardingPlan())
            assert isinstance(of_module, EmbeddingModuleShardingPlan)
            of_module.update({c.name: whole for c in module.embedding_bag_configs() if c.name in replicated})
    return plan


def _planned_path(model: nn.Module, path: str) -> str:
    """Returns the path of the module that is sharded for a collection: itself, or what is around it."""
    around = path.rpartition(".")[0]
    return around if isinstance(model.get_submodule(around), FeatureProcessedEmbeddingBagCollection) else path


@torch.no_grad()
def _fill_shards(dmp: DistributedModelParallel, weights: dict[str, Tensor]) -> None:
    """Copies whole tables into this rank's shards, because TorchRec initializes shards whatever the module held."""
    for name, sharded in dmp.state_dict().items():
        if name not in weights:
            continue
        shards = shards_of(sharded)
        if shards is None:
            sharded.copy_(weights[name])  # a replicated table; anything else is where it was
        for offsets, shard in shards or []:
            slices = tuple(slice(offset, offset + size) for offset, size in zip(offsets, shard.shape, strict=True))
            shard.copy_(weights[name][slices])


def make_plan(
    model: nn.Module,
    device: torch.device,
    sharders: list[ModuleSharder[nn.Module]],
    sharding_type: str | None,
    ranks: int,
) -> ShardingPlan:
    """Returns rank 0's plan for so many ranks on every rank. This call is collective.

    If rank 0 fails, its error is sent in place of the plan; otherwise the other ranks would wait forever.

    Raises:
        ValueError: If no plan fits.
    """
    decided: list[ShardingPlan | ValueError | None] = [None]
    if dist.get_rank() == 0:
        try:
            decided[0] = _plan(model, device, sharders, sharding_type, ranks)
        except ValueError as error:
            decided[0] = error
    dist.broadcast_object_list(decided, src=0)
    if isinstance(decided[0], ValueError):
        raise decided[0]
    assert decided[0] is not None
    return decided[0]


def _collections(model: nn.Module) -> list[EmbeddingBagCollection | EmbeddingCollection]:
    return [module for module in model.modules() if isinstance(module, EmbeddingBagCollection | EmbeddingCollection)]


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for module in _collections(model) for name, weight in table_weights(module).items()}


def _configs(model: nn.Module) -> list[BaseEmbeddingConfig]:
    return [config for module in _collections(model) for config in table_configs(module)]


def _plan(
    model: nn.Module,
    device: torch.device,
    sharders: list[ModuleSharder[nn.Module]],
    sharding_type: str | None,
    ranks: int,
) -> ShardingPlan:
    memory = rank_memory(device)
    caps = {"hbm_cap": memory, "ddr_cap": host_memory() // local_world_size()}
    copies = dist.get_world_size() // ranks
    return plan_tables(
        model,
        sharders,
        Topology(
            world_size=ranks,
            compute_device=device.type,
            # TorchRec puts the ranks that hold the same shard of different copies on neighbouring devices.
            local_world_size=max(1, local_world_size() // copies),
            **(caps if device.type == "cuda" else {"ddr_cap": memory}),
        ),
        sharding_type,
    )


def plan_tables(
    model: nn.Module,
    sharders: list[ModuleSharder[nn.Module]],
    topology: Topology,
    sharding_type: str | None = None,
    ssd_directory: str | None = None,
) -> ShardingPlan:
    """Plans the tables of a model for any machines; it needs neither them nor a process group.

    Args:
        model: model with EmbeddingBagCollections, which may be on the meta device.
        sharders: sharders that say what the plan may use, such as :class:`TableSharder`.
        topology: number of ranks, and the memory of each.
        sharding_type: one of ``SHARDING_TYPES`` for all tables; None lets the planner choose.
        ssd_directory: folder on every host in which the tables will be, with sharders whose ``table_memory`` is
            ``ssd``. The topology's ``ssd_cap`` says how much a rank may put there.

    Returns:
        The plan.

    Raises:
        ValueError: If none fits the machines. It says how much the tables need. Also if tables are to be on SSDs and
            have another optimizer than FBGEMM has kernels for there.
    """
    for module in model.modules():
        if isinstance(module, DynamicIds) and module.buckets() % topology.world_size:
            raise ValueError(
                f"dynamic ids: a table of {module.rows:,} rows has {module.buckets()} buckets, which "
                f"{topology.world_size} ranks cannot share; expected a number of ranks that divides it, or "
                "num_embeddings that a larger power of two divides"
            )
    # No constraint where none is asked for: with several types in one the planner tries them in the order of a set, and
    # plans differ from run to run. It takes grid_shard, wrong for means, only where a constraint names it.
    only = ParameterConstraints(sharding_types=[sharding_type] if sharding_type else None)
    if ssd_directory is not None:
        _require_optimizers_on_ssds(model)
        only.compute_kernels = [kernel.value for kernel in _KERNELS["ssd"]]
        only.key_value_params = KeyValueParams(ssd_storage_directory=ssd_directory)
    # On one rank the tables do not compete for places, so that the best choice for each is the best plan: the planner
    # need not try every combination, of which five tables have thousands.
    alone = [GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer()]
    planner = EmbeddingShardingPlanner(
        topology=topology,
        proposer=alone if topology.world_size == 1 else None,
        constraints={config.name: only for config in _configs(model)} if sharding_type or ssd_directory else None,
    )
    try:
        return planner.plan(model, sharders)
    except PlannerError as error:
        tables = {
            name: weight.numel() * (_WEIGHT_BYTES + state_bytes_of(weight)) for name, weight in _weights(model).items()
        }
        largest = max(tables, key=lambda name: tables[name])
        storage = topology.devices[0].storage
        cuda = topology.compute_device == "cuda"
        has = f"{gib(storage.hbm)} and {gib(storage.ddr)} of its host" if cuda else gib(storage.ddr)
        host = ", --table_memory auto, which uses the hosts' memory too," if cuda else ","
        raise ValueError(
            f"no sharding plan fits {topology.world_size} ranks of {topology.compute_device}: the tables need "
            f"{gib(sum(tables.values()))} with their optimizer's state, of which {largest} {gib(tables[largest])}; a "
            f"rank has {has}, of which the planner keeps a part free. More ranks, row_wise sharding of the largest "
            f"tables{host} a smaller embedding_dim or fewer num_embeddings help. TorchRec's planner says: "
            f"{str(error).splitlines()[0]}"
        ) from None


def _require_optimizers_on_ssds(model: nn.Module) -> None:
    for name, weight in _weights(model).items():
        if (found := optimizer_of(weight)) not in ON_SSDS:
            raise ValueError(
                f"ssd_directory: expected tables with {', '.join(ON_SSDS)}, for which FBGEMM has kernels there, "
                f"found {found} for the table {name}"
            )


def rank_memory(device: torch.device) -> int:
    """Returns the bytes that one rank may use: the memory of its GPU, or its share of the host's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return host_memory() // local_world_size()


def describe_plan(dmp: DistributedModelParallel, state_bytes: Mapping[str, float] | None = None) -> str:
    """Formats the current plan as a table: how and where each table is sharded, and what every rank holds.

    Args:
        dmp: sharded model.
        state_bytes: bytes of the optimizer's state for each weight of a table, by its name; by default, those of
            Adagrad.
    """
    rows: list[tuple[str, ...]] = [("table", "sharding", "kernel", "rows", "columns", "bytes per rank")]
    held: dict[int, int] = {}
    for plan in dmp.plan.plan.values():
        assert isinstance(plan, dict)
        for name, parameter in plan.items():
            if parameter.sharding_spec is None:  # every rank has all of it
                rows.append((name, parameter.sharding_type, parameter.compute_kernel, "", "", "the whole table"))
                continue
            shards = parameter.sharding_spec.shards
            size = [max(s.shard_offsets[axis] + s.shard_sizes[axis] for s in shards) for axis in (0, 1)]
            here: dict[int, int] = {}
            for shard in shards:
                rank = shard.placement.rank()
                of_weight = _WEIGHT_BYTES + (state_bytes or {}).get(name, _WEIGHT_BYTES)
                here[rank] = here.get(rank, 0) + round(shard.shard_sizes[0] * shard.shard_sizes[1] * of_weight)
            for rank, count in here.items():
                held[rank] = held.get(rank, 0) + count
            places = ", ".join(f"{rank}: {count:,}" for rank, count in sorted(here.items()))
            rows.append((name, parameter.sharding_type, parameter.compute_kernel, f"{size[0]:,}", str(size[1]), places))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", "tables and their optimizer's state, in all:"]
    lines += [f"  rank {rank}: {gib(count)}" for rank, count in sorted(held.items())]
    if isinstance(dmp, DMPCollection):
        lines += [f"this is one of {dmp.device_mesh.shape[0]} copies; the other ranks hold the others alike"]
    return "\n".join(lines) + "\n"


def local_world_size() -> int:
    """Returns the number of ranks on this host, as the launcher reports it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", rank_and_ranks()[1]))
