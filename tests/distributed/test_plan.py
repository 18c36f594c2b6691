"""Plans on paper: what the planner would do on machines that are not here."""

import pytest
import torch
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from nasrec_torchrec import NASRecNet
from nasrec_torchrec.distributed.config import TableMemory
from nasrec_torchrec.distributed.sharding import TableSharder, parallelize, plan_tables, table_sharders

GIB = 2**30


def _plan(rows: int, tables: int, gpus: int, table_memory: TableMemory) -> set[str]:
    """Plans tables of 128 columns with an element-wise Adagrad, and returns the kernels of the plan."""
    configs = [
        EmbeddingBagConfig(name=f"t{i}", embedding_dim=128, num_embeddings=rows, feature_names=[f"f{i}"])
        for i in range(tables)
    ]
    meta = torch.device("meta")
    ebc = EmbeddingBagCollection(tables=configs, device=meta)
    apply_optimizer_in_backward(torch.optim.Adagrad, ebc.parameters(), {"lr": 0.1})
    topology = Topology(gpus, "cuda", hbm_cap=80 * GIB, ddr_cap=192 * GIB, local_world_size=min(8, gpus))
    model = NASRecNet(ebc, 13, "criteo-small", dense_device=meta, interaction_dim=16)
    plan = plan_tables(model, [TableSharder(table_memory=table_memory)], topology)
    return {sharding.compute_kernel for module in plan.plan.values() for sharding in module.values()}


def test_tables_beyond_the_memory_of_the_devices_are_planned_into_that_of_the_hosts():
    """Weights of 4 TB, and as much for Adagrad, on 64 GPUs that have 5 TiB."""
    rows = round(4e12 / (32 * 128 * 4))
    needed = r"fits 64 ranks of cuda: the tables need 7,450\.\d+ GiB .*--table_memory auto"
    with pytest.raises(ValueError, match=needed):
        _plan(rows, 32, 64, "device")
    assert _plan(rows, 32, 64, "host_cached") == {"fused_uvm_caching"}
    assert _plan(rows, 32, 64, "host") == {"fused_uvm"}


def _on_ssds(optimizer: type[torch.optim.Optimizer], gpus: int) -> set[str]:
    """Plans 4 TB of weights for GPUs whose hosts have 1 TiB of SSD for each."""
    rows, meta = round(4e12 / (32 * 128 * 4)), torch.device("meta")
    configs = [
        EmbeddingBagConfig(name=f"t{i}", embedding_dim=128, num_embeddings=rows, feature_names=[f"f{i}"])
        for i in range(32)
    ]
    ebc = EmbeddingBagCollection(tables=configs, device=meta)
    apply_optimizer_in_backward(optimizer, ebc.parameters(), {"lr": 0.1})
    topology = Topology(gpus, "cuda", hbm_cap=80 * GIB, ddr_cap=192 * GIB, local_world_size=gpus, ssd_cap=1024 * GIB)
    model = NASRecNet(ebc, 13, "criteo-small", dense_device=meta, interaction_dim=16)
    plan = plan_tables(model, [TableSharder(table_memory="ssd")], topology, ssd_directory="/ssd")
    shardings = [sharding for module in plan.plan.values() for sharding in module.values()]
    assert {sharding.key_value_params.ssd_storage_directory for sharding in shardings} == {"/ssd"}
    return {sharding.compute_kernel for sharding in shardings}


def test_tables_beyond_the_memory_of_the_hosts_are_planned_onto_their_ssds():
    assert _on_ssds(RowWiseAdagrad, 8) == {"key_value"}
    with pytest.raises(ValueError, match=r"expected tables with rowwise_adagrad, adam, .* table t0"):
        _on_ssds(torch.optim.Adagrad, 8)
    with pytest.raises(ValueError, match=r"fits 2 ranks of cuda: the tables need 3,754\.\d+ GiB"):
        _on_ssds(RowWiseAdagrad, 2)
    with pytest.raises(ValueError, match=r"table_memory: expected one of device, .* found 'ssd'; .* for plan_tables"):
        parallelize(torch.nn.Linear(1, 1), torch.device("cpu"), table_memory="ssd")


def test_what_fits_stays_on_the_devices():
    assert _plan(100_000, 4, 2, "auto") == {"fused"}


@pytest.mark.parametrize("sharding_type", (None, "row_wise"))
def test_the_plan_of_one_rank_is_the_best_of_all_combinations(sharding_type: str | None):
    """It is planned without trying them, of which these tables have 625."""
    rows = 40, 10_000, 7, 1_000_000
    ebc = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=f"t{i}", embedding_dim=8 * (1 + i), num_embeddings=n, feature_names=[f"f{i}"])
            for i, n in enumerate(rows)
        ],
        device=torch.device("meta"),
    )
    apply_optimizer_in_backward(torch.optim.Adagrad, ebc.parameters(), {"lr": 0.1})
    model, topology = torch.nn.ModuleDict({"tables": ebc}), Topology(1, "cpu", ddr_cap=16 * GIB, local_world_size=1)
    only = ParameterConstraints(sharding_types=[sharding_type])
    constraints = {f"t{i}": only for i in range(len(rows))} if sharding_type else None
    best = EmbeddingShardingPlanner(topology=topology, constraints=constraints).plan(model, table_sharders())
    assert str(plan_tables(model, table_sharders(), topology, sharding_type)) == str(best)


def test_the_memory_of_hosts_is_for_cuda():
    with pytest.raises(ValueError, match="table_memory: expected 'device' or 'auto' on cpu, found 'host'"):
        parallelize(torch.nn.Linear(1, 1), torch.device("cpu"), table_memory="host")
    assert TableSharder(table_memory="auto").compute_kernels("row_wise", "cpu") == ["fused"]
