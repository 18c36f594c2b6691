"""Two gloo ranks against one, sharded for real."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support import SMALL_SPACE, make_click_files, make_schema, run_ranks
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torchrec.distributed.planner import EmbeddingShardingPlanner

from nasrec_torchrec.distributed import sharding
from nasrec_torchrec.distributed.gradient_sync import average_gradients
from nasrec_torchrec.distributed.sharding import SHARDING_TYPES, describe_plan
from nasrec_torchrec.metrics.click_metrics import evaluate
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.optimizers import ActiveSliceAdagrad
from nasrec_torchrec.training.trainer import Trainer

SCHEMA = make_schema()
# Its tables have 1,600, 3,200, 6,400 and 800 bytes.
MIXED = replace(
    SCHEMA,
    sparse=tuple(replace(f, embedding_dim=dim) for f, dim in zip(SCHEMA.sparse, (8, None, 32, 4), strict=True)),
)
INTERACTIONS = {
    "supernet": SMALL_SPACE,
    "nasrecnet": SMALL_SPACE.sample(torch.Generator().manual_seed(3)),
    "dlrm": Baseline("dlrm", (32, 16), (16, 1)),
}


def _train(kind: str, sharding_type: str | None, run_dir: str) -> dict[str, float]:
    description = ModelDescription(SCHEMA, INTERACTIONS[kind], use_layernorm=kind == "supernet")
    config = TrainConfig(
        batch_size=50, learning_rate=0.02, full_path_steps=10, log_every=1, sharding_type=sharding_type, seed=1
    )
    trainer = Trainer(description, config, Path(run_dir), torch.device("cpu"))
    expected_bytes = []

    def count(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if not isinstance(optimizer, ActiveSliceAdagrad):
            return
        active = [view for _, view in trainer.model.interaction_arch.active_parameters()]
        expected_bytes.append(
            sum(p.grad.numel() * 4 for p in active if p.grad is not None) - trainer.step.bytes_reduced
        )

    if kind == "supernet":
        register_optimizer_step_pre_hook(count)
    trainer.train(make_click_files(SCHEMA, 1000))
    metrics = trainer.evaluate(make_click_files(SCHEMA, 333, seed=5))
    return {
        "log_loss": metrics.log_loss,
        "auc": metrics.auc,
        "rows": metrics.rows,
        "unexpected_bytes": float(sum(map(abs, expected_bytes))) if dist.get_world_size() > 1 else 0.0,
    }


def _losses(run_dir: Path) -> list[float]:
    events = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", INTERACTIONS)
def test_two_ranks_follow_the_loss_curve_of_one(kind: str, tmp_path: Path):
    alone = run_ranks(1, _train, kind, None, str(tmp_path / "one"))[0]
    curve = _losses(tmp_path / "one")
    assert len(curve) == 20
    for sharding_type in ("table_wise", "row_wise"):
        folder = tmp_path / sharding_type
        ranks = run_ranks(2, _train, kind, sharding_type, str(folder))
        assert _losses(folder) == pytest.approx(curve, abs=1e-5)
        for result in ranks:
            assert result["rows"] == 333
            assert result["log_loss"] == pytest.approx(alone["log_loss"], abs=1e-5)
            assert result["unexpected_bytes"] == 0, "more or less than the active slices was reduced"
        # One process reads what two ranks wrote, without a process group.
        _, model = load_model(folder)
        if kind != "supernet":
            read = evaluate(model, make_click_files(SCHEMA, 333, seed=5))
            assert read.log_loss == pytest.approx(alone["log_loss"], abs=1e-5)


def _local(value: torch.Tensor | ShardedTensor) -> torch.Tensor:
    return value.local_shards()[0].tensor if isinstance(value, ShardedTensor) else value


def _curves(sharding_types: list[str | None], weighted: bool, folder: str) -> torch.Tensor:
    """The loss curve with each sharding type."""
    schema = make_schema(weighted=weighted)
    description = ModelDescription(schema, INTERACTIONS["nasrecnet"])
    curves = []
    for kind in sharding_types:
        run_dir = Path(folder) / str(kind)
        config = TrainConfig(batch_size=50, learning_rate=0.05, log_every=1, sharding_type=kind, pipeline="base")
        Trainer(description, config, run_dir, torch.device("cpu")).train(make_click_files(schema, 500))
        dist.barrier()
        curves.append(_losses(run_dir))
    return torch.tensor(curves)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.extended), True])
def test_every_sharding_type_learns_the_same(weighted: bool, tmp_path: Path):
    """One table of the unweighted schema is pooled by mean."""
    kinds = [kind for kind in SHARDING_TYPES if weighted or kind != "grid_shard"]
    (alone,) = run_ranks(1, _curves, [None], weighted, str(tmp_path / "one"))
    for curves in run_ranks(2, _curves, [None, *kinds], weighted, str(tmp_path / "two")):
        assert len(curves) == len(kinds) + 1
        assert torch.allclose(curves, alone.expand_as(curves), atol=1e-5)


def _plan_of_rank_0(folder: str, memory: int) -> str:
    def plan(*arguments: object) -> object:
        assert dist.get_rank() == 0, "another rank could plan otherwise"
        return original(*arguments)

    original, EmbeddingShardingPlanner.plan = EmbeddingShardingPlanner.plan, plan
    sharding.rank_memory = lambda _: memory
    try:
        trainer = Trainer(
            ModelDescription(SCHEMA, INTERACTIONS["dlrm"]), TrainConfig(), Path(folder), torch.device("cpu")
        )
    except ValueError as error:
        return str(error)
    return describe_plan(trainer.dmp)


@pytest.mark.slow
def test_all_ranks_follow_one_plan_or_fail_together(tmp_path: Path):
    for memory, expected in ((2**30, "t_f0 "), (10_000, "no sharding plan fits 2 ranks of cpu: the tables need ")):
        first, second = run_ranks(2, _plan_of_rank_0, str(tmp_path), memory)
        assert expected in first and first == second


def test_grid_sharding_of_means_is_refused(one_rank, tmp_path: Path):
    description = ModelDescription(SCHEMA, INTERACTIONS["nasrecnet"])
    with pytest.raises(
        ValueError, match=r"grid_shard gives wrong means in TorchRec, and \['t_f3'\] are pooled by mean"
    ):
        Trainer(description, TrainConfig(sharding_type="grid_shard"), tmp_path, torch.device("cpu"))


def test_the_best_epoch_is_kept(one_rank, tmp_path: Path):
    description = ModelDescription(SCHEMA, INTERACTIONS["nasrecnet"])
    config = TrainConfig(epochs=6, batch_size=20, learning_rate=0.2)  # overfits at once
    trainer = Trainer(description, config, tmp_path, torch.device("cpu"))
    validation = make_click_files(SCHEMA, 300, seed=7)
    kept = trainer.train(make_click_files(SCHEMA, 100), validation)
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [event["log_loss"] for event in events if event["event"] == "validation"]
    assert kept.log_loss == min(losses) < losses[-1]
    assert trainer.evaluate(validation).log_loss == pytest.approx(kept.log_loss, rel=1e-5)
    assert evaluate(load_model(tmp_path)[1], validation).log_loss == pytest.approx(kept.log_loss, rel=1e-5)


def test_a_failed_run_leaves_the_last_checkpoint_loadable(one_rank, tmp_path: Path, monkeypatch):
    data = make_click_files(SCHEMA, 100)
    device = torch.device("cpu")
    Trainer(ModelDescription(SCHEMA, INTERACTIONS["nasrecnet"]), TrainConfig(batch_size=50), tmp_path, device).train(
        data
    )
    before = load_model(tmp_path)[1].state_dict()
    monkeypatch.setattr("torch.distributed.checkpoint.async_save", lambda *_, **__: 1 / 0)
    config = TrainConfig(batch_size=50, resume="never")
    other = Trainer(ModelDescription(SCHEMA, INTERACTIONS["dlrm"]), config, tmp_path, device)
    with pytest.raises(ZeroDivisionError):
        other.train(data)
    description, model = load_model(tmp_path)
    assert description.interaction == INTERACTIONS["nasrecnet"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_unknown_sharding_type_is_refused(one_rank, tmp_path: Path):
    description = ModelDescription(SCHEMA, INTERACTIONS["nasrecnet"])
    with pytest.raises(ValueError, match=r"sharding_type: expected one of .*found 'diagonal'"):
        Trainer(description, TrainConfig(sharding_type="diagonal"), tmp_path, torch.device("cpu"))


def _train_mixed(run_dir: str) -> dict[str, torch.Tensor]:
    """The projections of a supernet over tables of different dimensions, and the model's losses."""
    description = ModelDescription(MIXED, SMALL_SPACE, use_layernorm=True)
    config = TrainConfig(batch_size=50, learning_rate=0.05, log_every=1, seed=1, sharding_type="row_wise")
    trainer = Trainer(description, config, Path(run_dir), torch.device("cpu"))
    trainer.train(make_click_files(description.schema, 500))
    projection = trainer.model.interaction_arch.storage.projection
    return {name: parameter.detach() for name, parameter in projection.named_parameters()}


@pytest.mark.slow
def test_projections_of_mixed_dimensions_train_alike_on_one_and_two_ranks(tmp_path: Path):
    (alone,) = run_ranks(1, _train_mixed, str(tmp_path / "one"))
    first, second = run_ranks(2, _train_mixed, str(tmp_path / "two"))
    assert len(alone) == 3
    for name in alone:
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], alone[name], rtol=1e-3, atol=1e-5)
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), abs=1e-5)
    _, model = load_model(tmp_path / "two")
    assert model.interaction_arch.storage.projection.project["t_f2"].weight.shape == (16, 32)


def _replicated(kind: str, replicate_mib: float, folder: str, epochs: int) -> dict[str, torch.Tensor]:
    """Trains with tables of 800 to 6,400 bytes; returns the whole ones that this rank has, and the loss."""
    config = TrainConfig(epochs=2, batch_size=50, learning_rate=0.05, full_path_steps=10, log_every=1, seed=1)
    config = replace(config, replicate_mib=replicate_mib)
    description = ModelDescription(MIXED, INTERACTIONS[kind], use_layernorm=kind == "supernet")
    trainer = Trainer(description, config, Path(folder), torch.device("cpu"))
    trainer.train(make_click_files(SCHEMA, 500), pause=lambda done, _: done >= epochs)
    loss = trainer.evaluate(make_click_files(SCHEMA, 333, seed=5)).log_loss
    plan = describe_plan(trainer.dmp)
    found = {"loss": torch.tensor(loss), "replicated": torch.tensor(plan.count("data_parallel"))}
    return found | {
        name: weight.clone()
        for name, weight in trainer.dmp.state_dict().items()
        if "embedding_bags" in name and not isinstance(weight, ShardedTensor)
    }


@pytest.mark.extended
@pytest.mark.parametrize("kind", INTERACTIONS)
def test_small_tables_that_every_rank_holds_learn_as_sharded_ones_do(kind: str, tmp_path: Path):
    size = 3200 / 2**20  # the largest of three tables of four
    (sharded,) = run_ranks(1, _replicated, kind, 0.0, str(tmp_path / "sharded"), 2)
    run_ranks(2, _replicated, kind, size, str(tmp_path / "replicated"), 1)
    (resumed,) = run_ranks(1, _replicated, kind, size, str(tmp_path / "replicated"), 2)
    first, second = run_ranks(2, _replicated, kind, size, str(tmp_path / "both"), 2)
    assert sharded["replicated"] == 0 and first["replicated"] == 3
    assert len(first) == 2 + int(first["replicated"]) and first.keys() == second.keys() == resumed.keys()
    whole = {f"model.{name}": weight for name, weight in load_model(tmp_path / "sharded")[1].state_dict().items()}
    for name in first.keys() - {"loss", "replicated"}:
        assert torch.equal(first[name], second[name]), name
        for found in (first[name], resumed[name]):
            torch.testing.assert_close(found, whole[name], rtol=1e-3, atol=1e-4)
    assert first["loss"] == second["loss"]
    for found in (first, resumed):
        torch.testing.assert_close(found["loss"], sharded["loss"], rtol=0, atol=1e-4)
    _, model = load_model(tmp_path / "both")  # its checkpoint is one like all others
    if kind != "supernet":  # which then has another path
        loss = evaluate(model, make_click_files(SCHEMA, 333, seed=5)).log_loss
        assert loss == pytest.approx(float(first["loss"]), abs=1e-5)


def test_all_tables_may_be_held_by_every_rank(one_rank, tmp_path: Path):
    for number, mib in enumerate((0.0, 100.0)):
        config = TrainConfig(batch_size=50, learning_rate=0.05, log_every=1, seed=1, replicate_mib=mib)
        description = ModelDescription(SCHEMA, INTERACTIONS["dlrm"])
        trainer = Trainer(description, config, tmp_path / str(number), torch.device("cpu"))
        trainer.train(make_click_files(SCHEMA, 500))
    assert _losses(tmp_path / "1") == pytest.approx(_losses(tmp_path / "0"), abs=1e-5)
    with pytest.raises(ValueError, match="replicate_mib: expected 0 with optimizer adam"):
        replace(config, optimizer="adam")


def _mean_of_ranks() -> torch.Tensor:
    gradients = [torch.full((2, 3), float(dist.get_rank())), torch.full((1,), 10.0 * dist.get_rank())]
    count = average_gradients(gradients)
    return torch.cat([g.flatten() for g in gradients] + [torch.tensor([float(count)])])


def test_gradients_are_averaged_in_one_all_reduce():
    for result in run_ranks(2, _mean_of_ranks):
        assert result.tolist() == [0.5] * 6 + [5.0, 28.0]


def test_adagrad_has_no_negative_learning_rate():
    with pytest.raises(ValueError, match="expected 0 or more"):
        ActiveSliceAdagrad([nn.Parameter(torch.ones(1))], lambda: [], lr=-1.0)
