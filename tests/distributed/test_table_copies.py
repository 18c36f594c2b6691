"""Several copies of the tables, each sharded over two of four gloo ranks.

TorchRec's DMPCollection is for CUDA: it asserts so, names GPUs in its plans, and averages by an operation that gloo
does not have. These three apart, the ranks run the code that GPUs would.
"""

import inspect
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import make_click_files, make_ebc, make_schema, run_ranks
from torch import Tensor, nn
from torch.distributed import _remote_device
from torchrec.distributed import model_parallel
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from nasrec_torchrec.distributed import sharding, table_copies
from nasrec_torchrec.distributed.gather import gather_rows
from nasrec_torchrec.distributed.sharding import parallelize
from nasrec_torchrec.distributed.shards import shards_of
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer

SCHEMA = make_schema()
CPU = torch.device("cpu")
CONFIG = TrainConfig(
    epochs=2, batch_size=40, learning_rate=0.05, log_every=1, table_sync_every=3, sharding_type="row_wise"
)


def _without_assertions() -> type[model_parallel.DMPCollection]:
    names = dict(vars(model_parallel))
    exec(compile(inspect.getsource(model_parallel.DMPCollection), "DMPCollection", "exec", optimize=1), names)
    found: type[model_parallel.DMPCollection] = names["DMPCollection"]
    return found


class _OnCpu(_without_assertions()):  # type: ignore[misc]
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, custom_all_reduce=self._average, **options)

    def _average(self, tensors: list[Tensor]) -> None:
        group = self.device_mesh.get_group("replicate")
        for tensor in tensors:
            dist.all_reduce(tensor, group=group)
            tensor /= dist.get_world_size(group)

    def _remap_sharding_plan(self, plan: ShardingPlan, *arguments: Any, **options: Any) -> None:
        super()._remap_sharding_plan(plan, *arguments, **options)
        for module in plan.plan.values():
            for table in module.values():
                for shard in table.sharding_spec.shards:
                    shard.placement = _remote_device(f"rank:{shard.placement.rank()}/cpu")


@contextmanager
def _copies_on_cpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_copies, "DEVICE_TYPES", ("cuda", "cpu"))
        for module in (table_copies, sharding):
            patch.setattr(module, "DMPCollection", _OnCpu)
        yield


def _train(run_dir: str, group_size: int | None, epochs: int, pauses_after: float = 0.0) -> tuple[list[float], bool]:
    """Returns the losses of rank 0 so far, and whether all copies of the tables are alike."""
    with _copies_on_cpu():
        config = replace(CONFIG, epochs=epochs, sharding_group_size=group_size)
        description = ModelDescription(SCHEMA, Baseline("dlrm", (32, 16), (16, 1)))
        trainer = Trainer(description, config, Path(run_dir), CPU)
        rows = make_click_files(SCHEMA, 400)
        trainer.train(rows, make_click_files(SCHEMA, 100, seed=1), lambda done, _: done == pauses_after)
        parts = [shards_of(value) for name, value in trainer.dmp.state_dict().items() if "embedding_bags" in name]
        flat = torch.cat([shard.flatten() for part in parts for _, shard in part or ()])[None]
        same = [torch.equal(flat[0], other) for other in gather_rows(flat)] if group_size else []
    events = map(json.loads, (Path(run_dir) / "log.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["event"] == "train"], sum(same) == dist.get_world_size() // 2


@pytest.mark.slow
def test_copies_of_the_tables_learn_resume_and_continue_without_copies(tmp_path: Path):
    copies, alike = run_ranks(4, _train, str(tmp_path / "copies"), 2, 2)[0]
    assert alike and len(copies) == 20
    one_copy, _ = run_ranks(2, _train, str(tmp_path / "one"), None, 2)[0]
    assert copies == pytest.approx(one_copy, rel=0.02) and copies != one_copy
    plan = (tmp_path / "copies" / "plan.txt").read_text()
    assert "this is one of 2 copies" in plan and "rank 0: " in plan and "rank 2: " in plan and "rank 1: " not in plan

    paused, other = tmp_path / "paused", tmp_path / "other"
    run_ranks(4, _train, str(paused), 2, 2, 1.0)
    shutil.copytree(paused, other)
    resumed, alike = run_ranks(4, _train, str(paused), 2, 2)[0]
    assert resumed == copies and alike
    # The checkpoint of two copies is that of one.
    continued, _ = run_ranks(2, _train, str(other), None, 2)[0]
    assert continued[:10] == copies[:10] and continued == pytest.approx(copies, rel=0.02)


def _refused(change: dict[str, Any], optimizer: type[torch.optim.Optimizer]) -> str:
    with _copies_on_cpu(), pytest.raises(ValueError, match="sharding_group_size") as error:
        tables = make_ebc(2)
        apply_optimizer_in_backward(optimizer, tables.parameters(), {"lr": 0.1})
        parallelize(nn.ModuleDict({"tables": tables}), CPU, **change)
    return str(error.value)


def test_what_copies_cannot_be_is_refused(one_rank):
    with pytest.raises(ValueError, match="expected none on cpu, found 1: TorchRec's DMPCollection is for CUDA"):
        parallelize(nn.ModuleDict({"tables": make_ebc(2)}), CPU, sharding_group_size=1)
    adagrad = torch.optim.Adagrad
    assert "expected one of [1] for 1 ranks, found 2" in _refused({"sharding_group_size": 2}, adagrad)
    assert "found sgd for the table t0" in _refused({"sharding_group_size": 1}, torch.optim.SGD)
    cached = {"sharding_group_size": 1, "table_memory": "auto"}
    assert "table_memory: expected device with sharding_group_size 1, found 'auto'" in _refused(cached, adagrad)
    whole = {"sharding_group_size": 1, "replicated": ("t0",)}
    assert "expected none where every rank holds tables whole" in _refused(whole, adagrad)
