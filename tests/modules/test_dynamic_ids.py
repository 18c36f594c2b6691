"""Ids that are not known beforehand: rows of a table that change hands."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import SMALL_SPACE, run_ranks
from torchrec.datasets.utils import Batch
from torchrec.distributed.planner import Topology
from torchrec.models.dlrm import DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from nasrec_torchrec import NASRecNet
from nasrec_torchrec.distributed.config import TableOptimizer
from nasrec_torchrec.distributed.fused_optimizers import TableSetting
from nasrec_torchrec.distributed.sharding import parallelize, plan_tables, table_sharders
from nasrec_torchrec.id_space import ID_SPACE
from nasrec_torchrec.modules.dynamic_ids import DynamicIds, with_dynamic_ids
from nasrec_torchrec.modules.table_collection import table_weights

ROWS, BUCKETS = 64, 8


def _rows(module: DynamicIds, ids: torch.Tensor) -> torch.Tensor:
    feature = JaggedTensor(ids, lengths=torch.ones(len(ids), dtype=torch.int64))
    return module({"f": feature})["f"].values()


def _random_ids(generator: torch.Generator, count: int, distinct: int = 10**6) -> torch.Tensor:
    """Ids that are spread over the whole range."""
    return 1 + torch.randint(0, distinct, (count,), generator=generator) * (ID_SPACE // distinct)


def test_ids_get_rows_of_their_own_keep_them_while_they_are_seen_and_lose_them_to_others():
    module, generator = DynamicIds(ROWS), torch.Generator().manual_seed(0)
    often = _random_ids(generator, 3)
    given: dict[int, int] = {}
    for _ in range(40):
        ids = torch.cat([often.repeat(4), _random_ids(generator, 30), torch.tensor([0])])
        rows = _rows(module, ids)
        assert rows[-1] == 0, "a missing value has the first row"
        assert torch.equal(rows // (ROWS // BUCKETS), ids // (ID_SPACE // BUCKETS)), "every id stays in its bucket"
        changed = module.evict()
        given |= {int(row): 1 for row in ([] if changed is None else changed)}
    known, places = module.id_map()
    assert torch.equal(known, known.sort().values) and len(known.unique()) == len(known) == len(places.unique())
    assert sorted(given) == sorted(places.tolist()), "rows are reset exactly where ids were given them"
    assert set(often.tolist()) <= set(known.tolist())
    found = module.counts()
    assert found["rows"] == len(known) == ROWS - 2 * BUCKETS and found["evictions"] > 100

    module.eval()
    assert torch.equal(_rows(module, known), places) and module.evict() is None
    new = _random_ids(generator, 50)
    shared = _rows(module, new)[~torch.isin(new, known)]
    assert (shared % (ROWS // BUCKETS) == 1).all() and module.counts() == found


def test_a_stronger_id_takes_the_row_of_the_weakest():
    module = DynamicIds(8, buckets=1, admit_every=1)
    first = torch.arange(1, 7)
    _rows(module, torch.cat([first, first[1:]]))  # the first id is seen once, the others twice
    _rows(module, torch.tensor([2, 3, 4, 5, 6]))
    assert _rows(module, torch.tensor([7])).item() == 7, "the row of the first id"
    assert _rows(module.eval(), torch.arange(1, 8)).tolist() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("parts", [2, 4])
def test_the_state_can_be_divided(parts: int):
    whole, generator = DynamicIds(ROWS), torch.Generator().manual_seed(0)
    for _ in range(9):
        _rows(whole, _random_ids(generator, 40, 200))
    whole.eval()
    ids, size = _random_ids(generator, 100, 200), ROWS // parts
    for part in range(parts):
        first = part * size
        rank = whole.rebuild_with_output_id_range((first, first + size), list(range(0, ROWS + 1, size)))
        state = whole.state_dict()
        rank.load_state_dict({k: v[first : first + size] if len(v) == ROWS else v for k, v in state.items()})
        mine = ids[ids // (ID_SPACE // parts) == part]
        assert torch.equal(_rows(rank.eval(), mine), _rows(whole, mine))
    with pytest.raises(ValueError, match="written for another number of buckets than 16"):
        DynamicIds(ROWS, buckets=16).load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match="expected a number of ranks that divides 8"):
        whole.rebuild_with_output_id_range((0, 22), [0, 22, 44, 64])


def test_rows_that_cannot_be_divided_are_one_clear_error():
    with pytest.raises(ValueError, match="found 9 rows in 4 buckets"):
        DynamicIds(9, buckets=4)
    model = _model()
    topology = Topology(world_size=3, compute_device="cpu", local_world_size=3)
    with pytest.raises(ValueError, match="64 rows has 8 buckets, which 3 ranks cannot share"):
        plan_tables(model, table_sharders(), topology)


def _model(optimizer: TableOptimizer = "adagrad") -> NASRecNet:
    tables = [
        EmbeddingBagConfig(name="u", embedding_dim=16, num_embeddings=ROWS, feature_names=["user", "friends"]),
        EmbeddingBagConfig(name="d", embedding_dim=8, num_embeddings=10, feature_names=["day"]),
    ]
    ebc = EmbeddingBagCollection(tables=tables)
    for weight in table_weights(ebc).values():
        TableSetting(optimizer, 0.05).fuse(weight, 1e-10)
    architecture = SMALL_SPACE.sample(torch.Generator().manual_seed(3))
    return NASRecNet(with_dynamic_ids(ebc, {"u": DynamicIds(ROWS)}), 3, architecture, interaction_dim=16)


def _batch(generator: torch.Generator, rows: int = 16) -> Batch:
    """This rank's share of the same rows for every number of ranks."""
    user, day = _random_ids(generator, rows, 60), torch.randint(0, 10, (rows,), generator=generator)
    friends = _random_ids(generator, 2 * rows).view(rows, 2)
    dense, labels = torch.randn(rows, 3, generator=generator), torch.rand(rows, generator=generator).round()
    share = rows // dist.get_world_size()
    mine = slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)
    lengths = torch.tensor([1, 1, 2]).repeat_interleave(share)
    kjt = KeyedJaggedTensor(
        ["day", "user", "friends"], torch.cat([day[mine], user[mine], friends[mine].flatten()]), lengths=lengths
    )
    return Batch(dense[mine], kjt, labels[mine])


def _train() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    dmp = parallelize(DLRMTrain(_model()), torch.device("cpu"))
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(12):
        loss = dmp(_batch(generator))[0]
        loss.backward()
        losses.append(loss.detach().clone())
        dist.all_reduce(losses[-1])
    module = next(module for module in dmp.modules() if isinstance(module, DynamicIds))
    known, _ = module.id_map()
    dmp(_batch(generator))  # without a step of the optimizer
    ids, rows = module.id_map()
    new = (rows - module.first_row)[~torch.isin(ids, known)]
    weight, sums = (_shard(state, "u") for state in (dmp.state_dict(), dmp.fused_optimizer.state_dict()["state"]))
    assert len(new) and not sums[new].any() and torch.equal(weight[new], weight[module.unknown_rows(new)])
    return {
        "losses": torch.stack(losses) / dist.get_world_size(),
        "ids": ids,
        "rows": rows,
        "weight": weight.clone(),
        "sums": sums.clone(),
        "evictions": torch.tensor(module.counts()["evictions"]),
    }


def _shard(state: dict[str, Any], table: str) -> torch.Tensor:
    """This rank's part of a table, or of its optimizer's state."""
    found = next(value for name, value in state.items() if name.endswith(f"{table}.weight"))
    found = next(iter(found.values())) if isinstance(found, dict) else found
    return found.local_shards()[0].tensor


def test_one_rank_and_two_train_the_same():
    (alone,), both = run_ranks(1, _train), run_ranks(2, _train)
    for key in ("ids", "rows"):
        assert torch.equal(torch.cat([rank[key] for rank in both]), alone[key])
    assert sum(rank["evictions"] for rank in both) == alone["evictions"] > 20
    torch.testing.assert_close(both[0]["losses"], alone["losses"], atol=1e-6, rtol=0)
    for key in ("weight", "sums"):
        torch.testing.assert_close(torch.cat([rank[key] for rank in both]), alone[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize("optimizer", ("sgd", "rowwise_adagrad"))
def test_a_row_that_changes_hands_forgets_what_other_optimizers_know_of_it_too(one_rank, optimizer: TableOptimizer):
    dmp = parallelize(DLRMTrain(_model(optimizer)), torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    module = next(module for module in dmp.modules() if isinstance(module, DynamicIds))
    for _ in range(12):
        dmp(_batch(generator))[0].backward()
    known, _ = module.id_map()
    dmp(_batch(generator))  # without a step of the optimizer
    ids, rows = module.id_map()
    new = (rows - module.first_row)[~torch.isin(ids, known)]
    weight = _shard(dmp.state_dict(), "u")
    assert len(new) and torch.equal(weight[new], weight[module.unknown_rows(new)])
    for name, state in dmp.fused_optimizer.state_dict()["state"].items():
        for sums in (value.local_shards()[0].tensor for value in state.values() if name.endswith("u.weight")):
            assert sums.any() and not sums[new].any()
    assert (optimizer == "sgd") == (not any(map(len, dmp.fused_optimizer.state_dict()["state"].values())))
