"""Optimizers, learning rates and weight decay of single tables."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import SMALL_SPACE, make_click_files, make_schema, run_ranks
from torch.distributed._shard.sharded_tensor import ShardedTensor

from nasrec_torchrec.distributed.fused_optimizers import TableSetting
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.training.config import TrainConfig, TrainFlags, settings_of
from nasrec_torchrec.training.recipes import fitted
from nasrec_torchrec.training.trainer import Trainer

SCHEMA = make_schema()
DESCRIPTION = ModelDescription(SCHEMA, SMALL_SPACE.sample(torch.Generator().manual_seed(3)))
CONFIG = TrainConfig(epochs=1, batch_size=40, learning_rate=0.05, log_every=1, warmup_fraction=0, seed=1)


def _trained(folder: Path, config: TrainConfig, epochs: int = 1) -> Trainer:
    data = make_click_files(SCHEMA, 80)
    trainer = Trainer(DESCRIPTION, config, folder, torch.device("cpu"))
    trainer.train(data, pause=lambda done, _: done >= epochs)
    return trainer


def _tables(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The tables of a single rank."""
    found = {}
    for name, value in trainer.dmp.state_dict().items():
        if "embedding_bags" in name:
            assert isinstance(value, ShardedTensor)
            found[name.split(".")[-2]] = value.local_shards()[0].tensor.clone()
    return found


def _states(trainer: Trainer) -> dict[str, tuple[int, ...]]:
    states = trainer.dmp.fused_optimizer.state_dict()["state"]
    return {key: tuple(value.size()) for state in states.values() for key, value in state.items()}


def test_each_table_has_its_own_optimizer_and_rate(one_rank, tmp_path: Path):
    """One step, against what the formulas give for the gradients that a plain Adagrad leaves in its sums."""
    schema = make_schema()
    names = [table.name for table in schema.tables()]
    first, second, third = names[:3]
    data = make_click_files(schema, 40)
    moved = {}
    for kind, changes in {
        "plain": {},
        "own": {
            "table_optimizers": {first: "sgd", second: "rowwise_adagrad"},
            "table_learning_rates": {first: 0.5, third: 0.2},
        },
    }.items():
        trainer = Trainer(DESCRIPTION, replace(CONFIG, **changes), tmp_path / kind, torch.device("cpu"))
        before = _tables(trainer)
        trainer.train(data)
        moved[kind] = {name: table - before[name] for name, table in _tables(trainer).items()}
        if kind == "plain":
            sums = trainer.dmp.fused_optimizer.state_dict()["state"]
            squares = {k.split(".")[0]: v.local_shards()[0].tensor for s in sums.values() for k, v in s.items()}
    gradients = {name: squares[name].sqrt() * -moved["plain"][name].sign() for name in squares}
    eps = CONFIG.adagrad_eps
    rows = gradients[second].square().mean(1, keepdim=True).sqrt()
    expected = {
        first: -0.5 * gradients[first],
        second: -0.05 * gradients[second] / (rows + eps),
        third: -0.2 * gradients[third] / (gradients[third].abs() + eps),
    }
    for name, delta in expected.items():
        assert delta.any() and torch.allclose(moved["own"][name], delta, rtol=1e-3, atol=1e-6), name
    for name in names[3:]:
        assert torch.equal(moved["own"][name], moved["plain"][name])
    assert _states(trainer)[f"{second}.momentum1"] == (50,) and f"{first}.momentum1" not in _states(trainer)


def test_adam_above_fused_tables(one_rank, tmp_path: Path):
    config = replace(CONFIG, optimizer="adam", learning_rate=1e-3)
    config = replace(config, table_optimizers={"*": "rowwise_adagrad"}, table_learning_rates={"*": 0.05}, accumulate=2)
    trainer = _trained(tmp_path, config)
    assert isinstance(trainer.step.dense_optimizer._optimizer, torch.optim.Adam)
    assert len(_states(trainer)) == len(SCHEMA.tables())
    rates = [group["lr"] for group in trainer.step.optimizer.param_groups]
    assert max(rates) == pytest.approx(50 * min(rates))
    assert "row" in (tmp_path / "plan.txt").read_text()


def _kernels(optimizer: Any) -> list[Any]:
    if hasattr(optimizer, "optimizers"):
        return [kernel for _, inner in optimizer.optimizers for kernel in _kernels(inner)]
    return [optimizer._emb_module]


def _ranks(folder: str, epochs: int) -> dict[str, torch.Tensor]:
    tables = {SCHEMA.tables()[0].name: "sgd", "*": "rowwise_adagrad"}
    rates = {SCHEMA.tables()[0].name: 0.3}
    config = replace(CONFIG, epochs=2, optimizer="adam", table_optimizers=tables, table_learning_rates=rates)
    trainer = _trained(Path(folder), replace(config, sharding_type="row_wise"), epochs)
    if dist.get_world_size() > 1:
        return {}
    counts = [int(kernel.iter[0]) for kernel in _kernels(trainer.dmp.fused_optimizer)]
    return _tables(trainer) | {"counted": torch.tensor(counts)}


@pytest.mark.slow
def test_two_ranks_train_as_one_and_go_on_as_one(tmp_path: Path):
    (one,) = run_ranks(1, _ranks, str(tmp_path / "one"), 2)
    run_ranks(2, _ranks, str(tmp_path / "two"), 1)
    (resumed,) = run_ranks(1, _ranks, str(tmp_path / "two"), 2)
    assert max(resumed.pop("counted")) == max(one.pop("counted")) == 4  # steps, also of those before the pause
    for name, table in one.items():
        assert torch.allclose(table, resumed[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize(
    "changes, message",
    (
        ({"table_optimizers": {"t_f0": "lion"}}, "t_f0: expected one of sgd, adagrad, .*found 'lion'"),
        ({"table_learning_rates": {"t_f0": 0.0}}, "table_learning_rates: t_f0: expected a positive number, found 0.0"),
        ({"table_weight_decay": {"t_f0": -1.0}}, "table_weight_decay: t_f0: expected 0 or a positive number"),
        ({"table_learning_rates": {"t_f0": 0.1}, "optimizer": "adam"}, "expected none with optimizer adam"),
        ({"table_learning_rates": {"t_f0": 0.1}, "replicate_mib": 1.0}, "replicate_mib: expected 0 with table_"),
        (
            {"table_optimizers": {"*": "adagrad"}, "optimizer": "adam", "embedding_l2": 0.1},
            "embedding_l2: .*with table_optimizers",
        ),
    ),
)
def test_settings_that_contradict_each_other(changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(
    "changes, message",
    (
        ({"table_optimizers": {"usr": "sgd"}}, r"there is no table usr; the tables are t_f0, .*'\*' stands"),
        ({"table_optimizers": {"*": "lamb"}}, "expected one of sgd, adagrad, rowwise_adagrad, .* on cpu, found lamb"),
        ({"table_optimizers": {"t_f0": "sgd"}, "optimizer": "adam"}, "on cpu, found adam for the table t_f1"),
        ({"table_weight_decay": {"t_f0": 0.1}}, "table_weight_decay: expected none on cpu"),
    ),
)
def test_what_the_tables_or_the_device_lack(one_rank, changes: dict[str, object], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        Trainer(DESCRIPTION, replace(CONFIG, **changes), tmp_path, torch.device("cpu"))


def test_weight_decay_needs_a_kernel_that_decays():
    TableSetting("lamb", 0.1, 1e-4).require_kernel("user", "cuda")
    with pytest.raises(ValueError, match=r"an optimizer among rowwise_adagrad, .* found sgd for the table user"):
        TableSetting("sgd", 0.1, 1e-4).require_kernel("user", "cuda")


def test_settings_of_tables_ask_for_fused_tables_and_are_part_of_a_run():
    flags = TrainFlags(table_learning_rates={"t_f0": 0.1})
    config, _ = fitted(flags, 1000, SCHEMA)
    assert config.optimizer == "adagrad" and fitted(TrainFlags(), 1000, SCHEMA)[0].optimizer == "adam"
    assert settings_of(config)["table_learning_rates"] == {"t_f0": 0.1}
    assert "table_learning_rates" not in settings_of(CONFIG)
    own, _ = fitted(TrainFlags(optimizer="adam", table_optimizers={"*": "sgd"}), 1000, SCHEMA)
    assert own.embedding_l2 == 0 and not own.whole_tables
