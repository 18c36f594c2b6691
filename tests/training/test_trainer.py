import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support import SMALL_SPACE, in_step, make_click_files, make_schema, run_ranks
from torch.distributed._shard.sharded_tensor import ShardedTensor

from nasrec_torchrec import SearchSpace
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.modules.batch_norm import running_statistics
from nasrec_torchrec.runs.checkpoint import latest_checkpoint
from nasrec_torchrec.runs.record import COMMAND
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.guard import DivergedError
from nasrec_torchrec.training.trainer import Trainer

SCHEMA = make_schema()
SUPERNET = ModelDescription(SCHEMA, replace(SMALL_SPACE, num_blocks=2), use_layernorm=True)
NASRECNET = ModelDescription(SCHEMA, replace(SMALL_SPACE, num_blocks=2).sample(torch.Generator().manual_seed(3)))
_BATCHES = tuple(replace(block, normalization="batch") for block in NASRECNET.interaction.blocks)
BATCHES = ModelDescription(SCHEMA, replace(NASRECNET.interaction, blocks=_BATCHES))
DLRM = ModelDescription(SCHEMA, Baseline("dlrm", (32, 16), (16, 1)))
CONFIG = TrainConfig(epochs=2, batch_size=40, learning_rate=0.05, full_path_steps=10, log_every=1, checkpoint_every=4)
ROWS = 500  # 12 steps an epoch


def _make(run_dir: Path, description: ModelDescription = SUPERNET, config: TrainConfig = CONFIG) -> Trainer:
    return Trainer(description, config, run_dir, torch.device("cpu"))


def _events(run_dir: Path, event: str = "train") -> list[dict[str, float]]:
    events = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    return [entry for entry in events if entry["event"] == event]


def _losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in _events(run_dir)]


def _weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    state = {"model": trainer.dmp.state_dict(), "optimizer": trainer.step.optimizer.state_dict()["state"]}
    found = {}
    for name, value in state["model"].items():
        found[name] = value.local_shards()[0].tensor if isinstance(value, ShardedTensor) else value
    for name, values in state["optimizer"].items():
        for key, value in values.items():
            if isinstance(value, ShardedTensor):
                found[f"{name}/{key}"] = value.local_shards()[0].tensor
            elif isinstance(value, torch.Tensor):
                found[f"{name}/{key}"] = value
    return {name: value.detach().clone() for name, value in found.items()}


def test_adam_with_embedding_l2_is_torchs_adam_on_whole_tables(one_rank, tmp_path: Path):
    data = make_click_files(SCHEMA, 40)
    config = replace(CONFIG, epochs=1, optimizer="adam", embedding_l2=0.5, warmup_fraction=0, full_path_steps=0)
    deeper = SMALL_SPACE.sample(torch.Generator().manual_seed(3))  # no gradient of its rows is near zero
    trainer = _make(tmp_path, replace(NASRECNET, interaction=deeper), config)
    table = trainer.model.sparse_arch.embedding_bag_collection.embedding_bags["t_f0"].weight
    before = table.detach().clone()
    trainer.train(data)
    # In a first step Adam goes by the learning rate against the sign of the gradient, in every row that has one.
    moved = (before - table.detach()).abs()
    assert torch.allclose(moved[before.abs() > 1e-3], torch.tensor(config.learning_rate), rtol=1e-3)


def test_a_plateau_divides_the_learning_rate_and_ends_the_run(one_rank, tmp_path: Path):
    data, validation = make_click_files(SCHEMA, 80), make_click_files(SCHEMA, 40, seed=5)
    config = replace(CONFIG, epochs=200, schedule="plateau", patience=1, learning_rate=0.2, warmup_fraction=0)
    trainer = _make(tmp_path, NASRECNET, config)
    best = trainer.train(data, validation)
    seen = _events(tmp_path, "validation")
    assert len(seen) < 200 and best.log_loss == min(entry["log_loss"] for entry in seen)
    rates = {round(entry["learning_rate"], 6) for entry in _events(tmp_path)}
    assert rates == {0.2, 0.02, 0.002}
    with pytest.raises(ValueError, match="plateau needs a validation split"):
        _make(tmp_path / "b", NASRECNET, config).train(data)


def _with_labels(folder: Path, label: int) -> ClickFiles:
    """Rows of one class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(make_click_files(SCHEMA, 60, seed=5).files[0])
    labels = pa.array([label] * table.num_rows, table.schema.field("label").type)
    folder.mkdir()
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", labels), folder / "p.parquet")
    return ClickFiles.open(folder, SCHEMA)


def test_where_there_is_no_auc_the_log_loss_decides(one_rank, tmp_path: Path, capsys):
    data, validation = make_click_files(SCHEMA, 80), _with_labels(tmp_path / "data", 1)
    config = replace(CONFIG, epochs=4, monitor="auc", learning_rate=0.2)
    best = _make(tmp_path / "run", NASRECNET, config).train(data, validation)
    seen = [entry["log_loss"] for entry in _events(tmp_path / "run", "validation")]
    assert best.auc is None and best.log_loss == min(seen) < max(seen)
    assert "step 2: the validation split has no AUC" in capsys.readouterr().err
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text()


def test_dropout_changes_training_alone(one_rank, tmp_path: Path):
    data = make_click_files(SCHEMA, 80)
    plain, dropped = (_make(tmp_path / str(p), NASRECNET, replace(CONFIG, dropout=p)) for p in (0.0, 0.5))
    assert plain.evaluate(data) == dropped.evaluate(data)
    plain.train(data), dropped.train(data)
    assert _losses(tmp_path / "0.0")[0] != _losses(tmp_path / "0.5")[0]


@pytest.mark.parametrize(
    "description, changes, message",
    [
        (SUPERNET, {"dropout": 0.1}, "dropout: expected 0 for a supernet"),
        (SUPERNET, {"optimizer": "adam"}, "optimizer: a supernet is trained with adagrad"),
        (NASRECNET, {"embedding_l2": 0.1}, "embedding_l2: expected a positive number with optimizer adam"),
        (NASRECNET, {"optimizer": "adam", "sharding_type": "row_wise"}, "sharding_type: expected none"),
        (NASRECNET, {"accumulate": 0}, "accumulate: expected a positive number, found 0"),
        (BATCHES, {"ema_decay": 0.9}, "ema_decay: expected none with batch normalization, found 0.9"),
        (NASRECNET, {"dropout": 1.0}, "dropout: expected 0 or more and less than 1, found 1.0"),
    ],
)
def test_options_that_do_not_go_together(one_rank, tmp_path: Path, description, changes, message):
    with pytest.raises(ValueError, match=message):
        _make(tmp_path, description, replace(CONFIG, **changes))


def _ends_at(trainer: Trainer, step: int, number: int = signal.SIGTERM) -> Trainer:
    """The trainer gets a signal in the middle of a step."""
    in_step(trainer, step, lambda _: os.kill(os.getpid(), number))
    return trainer


@pytest.mark.parametrize("pipeline", ["sparse_dist", "base"])
@pytest.mark.parametrize(
    "description, changes",
    [
        pytest.param(SUPERNET, {}, id="supernet"),
        pytest.param(NASRECNET, {}, id="nasrecnet"),
        pytest.param(NASRECNET, {"optimizer": "adam", "embedding_l2": 0.01, "dropout": 0.2}, id="nasrecnet-adam"),
        pytest.param(NASRECNET, {"schedule": "plateau", "patience": 1, "monitor": "auc"}, id="nasrecnet-plateau"),
        pytest.param(DLRM, {"accumulate": 3}, id="dlrm-accumulate"),
        pytest.param(BATCHES, {}, id="batch-norm"),
        pytest.param(replace(DLRM, interaction=Baseline("dcn", (32, 16), (16, 1))), {"dropout": 0.2}, id="dcn"),
        pytest.param(replace(DLRM, interaction=Baseline("deepfm")), {"optimizer": "adam"}, id="deepfm-adam"),
    ],
)
def test_a_run_that_was_ended_goes_on_bit_by_bit(one_rank, tmp_path: Path, description, pipeline, changes):
    data, validation = make_click_files(SCHEMA, ROWS), make_click_files(SCHEMA, 100, seed=5)
    config = replace(CONFIG, pipeline=pipeline, **changes)
    undisturbed = _make(tmp_path / "a", description, config)
    best = undisturbed.train(data, validation)
    before = signal.getsignal(signal.SIGTERM)
    # In the first epoch, at its last steps that the pipeline already holds, at its end, and in the second one.
    for ends_at in (5, 10, 11, 12, 17):
        number = signal.SIGINT if ends_at == 11 else signal.SIGTERM
        trainer = _ends_at(_make(tmp_path / "b", description, config), ends_at, number)
        with pytest.raises(SystemExit) as ended:
            trainer.train(data, validation)
        assert ended.value.code == 128 + number and trainer.progress.step == ends_at + 1
    resumed = _make(tmp_path / "b", description, config)
    assert resumed.train(data, validation) == best
    assert _losses(tmp_path / "b") == _losses(tmp_path / "a") and len(_losses(tmp_path / "a")) == 24
    weights = _weights(resumed)
    for name, value in _weights(undisturbed).items():
        assert torch.equal(value, weights[name]), name
    assert resumed.paths.state_dict() == undisturbed.paths.state_dict()
    assert resumed.progress == undisturbed.progress
    assert signal.getsignal(signal.SIGTERM) == before
    # A finished run has nothing left to do.
    again = _make(tmp_path / "b", description, config)
    assert again.train(data, validation) == best and again.progress.step == 24


@pytest.mark.parametrize("description, changes", [(SUPERNET, {}), (NASRECNET, {"optimizer": "adam", "dropout": 0.2})])
def test_rungs_within_an_epoch_train_like_one_run(one_rank, tmp_path: Path, description, changes):
    data, validation = make_click_files(SCHEMA, ROWS), make_click_files(SCHEMA, 100, seed=5)
    config, rungs = replace(CONFIG, **changes), (0.5, 1.4)  # after 6 and 17 of 24 steps
    undisturbed = _make(tmp_path / "a", description, config)
    best = undisturbed.train(data, validation, validate_at=rungs)
    plain = _make(tmp_path / "c", description, config)
    plain.train(data, validation)
    racing = _make(tmp_path / "b", description, config)
    asked = []

    def pause(epochs: float, metrics: ClickMetrics) -> bool:
        asked.append((epochs, metrics))
        return True

    for steps in (6, 12, 17, 24):
        found = racing.train(data, validation, pause, rungs)
        ((epochs, metrics),) = asked
        asked.clear()
        assert racing.progress.step == steps == round(12 * epochs)
        assert racing.progress.validations[-1] == asdict(metrics) | {"step": steps}
        assert found.log_loss == min(measured["log_loss"] for measured in racing.progress.validations)
        # Another trainer of the folder resumes as well.
        racing = _make(tmp_path / "b", description, config) if steps == 12 else racing
    assert racing.train(data, validation, validate_at=rungs) == best
    assert racing.progress == undisturbed.progress
    assert _losses(tmp_path / "b") == _losses(tmp_path / "a") == _losses(tmp_path / "c")
    weights = _weights(racing)
    for name, value in _weights(undisturbed).items():
        assert torch.equal(value, weights[name]), name


def _part(world: str, folder: str, ends_at: int) -> float:
    trainer = _ends_at(_make(Path(folder), SUPERNET, replace(CONFIG, batch_size=48)), ends_at)
    try:
        trainer.train(make_click_files(SCHEMA, ROWS))
    except SystemExit:
        dist.barrier()
    return float(trainer.progress.step)


@pytest.mark.extended
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path):
    run_ranks(1, _part, "alone", str(tmp_path / "a"), -1)
    for world_size, ends_at in ((2, 6), (1, 13), (2, -1)):
        steps = run_ranks(world_size, _part, "changing", str(tmp_path / "b"), ends_at)
        assert set(steps) == {float(ends_at + 1 if ends_at > 0 else 20)}
    expected, found = _losses(tmp_path / "a"), _losses(tmp_path / "b")
    assert [step for step, _ in found] == [step for step, _ in expected] == list(range(1, 21))
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], abs=1e-5)
    first, second = (load_model(tmp_path / name)[1].state_dict() for name in ("a", "b"))
    differences = {name: float((value - second[name]).abs().max()) for name, value in first.items()}
    assert max(differences.values()) < 1e-4, differences


def test_the_last_and_the_best_checkpoints_are_kept(one_rank, tmp_path: Path):
    validation = make_click_files(SCHEMA, 300, seed=7)
    config = replace(CONFIG, epochs=6, batch_size=20, learning_rate=0.2, checkpoint_every=2)  # overfits at once
    trainer = _make(tmp_path, NASRECNET, config)
    trainer.train(make_click_files(SCHEMA, 100), validation)
    losses = {int(entry["step"]): entry["log_loss"] for entry in _events(tmp_path, "validation")}
    best = min(losses, key=lambda step: losses[step])
    assert best < 25
    folders = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert folders == sorted({f"step-{step:08d}" for step in (best, 28, 30)})
    assert latest_checkpoint(tmp_path).name == "step-00000030"


def _with_rows(folder: Path, values: dict[int, float]) -> ClickFiles:
    """The usual rows, with the first dense value of some replaced."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(make_click_files(SCHEMA, ROWS).files[0])
    column = table["d0"].to_numpy().copy()
    for row, value in values.items():
        column[row] = value
    folder.mkdir()
    pq.write_table(table.set_column(table.schema.get_field_index("d0"), "d0", pa.array(column)), folder / "p.parquet")
    return ClickFiles.open(folder, SCHEMA)


def _poisoned(trainer: Trainer) -> Trainer:
    """The trainer meets a number that is none in its sixth step, on the last rank."""

    def poison(dense_features: torch.Tensor) -> None:
        if trainer.rank == trainer.world_size - 1:
            dense_features[0, 0] = float("nan")

    in_step(trainer, 5, poison)
    return trainer


def _unchanged_steps(trainer: Trainer, data: ClickFiles) -> list[int]:
    """Trains, and returns the steps that changed no weight and no state of an optimizer."""
    unchanged = []
    before = _weights(trainer)

    def compare(*_: object) -> None:
        now = _weights(trainer)
        same = all(torch.equal(value, now[name]) for name, value in before.items() if not name.endswith("step"))
        if same and trainer.progress.step:
            unchanged.append(trainer.progress.step)
        before.update(now)

    # Before each step's forward pass, and after the last step, the weights are those of the step before.
    handle = trainer.task.register_forward_pre_hook(compare)
    trainer.train(data)
    handle.remove()
    compare()
    assert all(value.isfinite().all() for value in before.values())
    return unchanged


@pytest.mark.parametrize(
    "description", [SUPERNET, NASRECNET, DLRM, BATCHES], ids=["supernet", "nasrecnet", "dlrm", "batch-norm"]
)
def test_a_step_that_is_not_finite_changes_nothing(one_rank, tmp_path: Path, description):
    trainer = _poisoned(_make(tmp_path, description, replace(CONFIG, epochs=1)))
    assert _unchanged_steps(trainer, make_click_files(SCHEMA, ROWS)) == [6]
    assert trainer.progress.skipped_steps == 1 and _events(tmp_path)[-1]["skipped_steps"] == 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_path_that_reads_no_embedding_trains_what_it_reads(one_rank, tmp_path: Path, accumulate: int):
    space = SearchSpace(1, ("fully_connected",), ("embedded_fully_connected",), (16,), (4,), outputs="any")
    config = replace(CONFIG, epochs=1, full_path_steps=0, accumulate=accumulate)
    trainer = _make(tmp_path, ModelDescription(SCHEMA, space, use_layernorm=True), config)
    (table, *_) = trainer.dmp.module.model.sparse_arch.parameters()
    before, unchanged = table.detach().clone(), []

    def note(*_: object) -> None:
        unchanged.append(table.equal(before))
        before.copy_(table.detach())

    trainer.model.register_forward_pre_hook(note)
    trainer.train(make_click_files(SCHEMA, ROWS))
    assert trainer.progress.step == 12 and trainer.progress.skipped_steps == 0 and {True, False} <= set(unchanged[1:])


def test_a_gradient_that_overflows_alone_changes_nothing(one_rank, tmp_path: Path):
    # The loss is finite, and so is the gradient that reaches the tables: relu lets nothing of the number through.
    data = _with_rows(tmp_path / "data", {123: 3e38})
    trainer = _make(tmp_path / "run", NASRECNET, replace(CONFIG, epochs=1))
    (step,) = _unchanged_steps(trainer, data)
    assert trainer.progress.skipped_steps == 1 and torch.tensor(_events(tmp_path / "run")[step - 1]["loss"]).isfinite()


def test_too_many_bad_steps_end_the_run_with_the_batch_saved(one_rank, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ClickFiles, "digest", "the same")  # so that the rows can turn bad on the way
    good = make_click_files(SCHEMA, ROWS)
    config = replace(CONFIG, max_skipped_steps=3)
    ended = _ends_at(_make(tmp_path / "run", NASRECNET, config), 5)
    with pytest.raises(SystemExit):
        ended.train(good)
    bad = _with_rows(tmp_path / "data", dict.fromkeys(range(ROWS), 3e38))
    with pytest.raises(
        DivergedError, match=r"step 9: .*not finite in 3 steps in a row; the last batch is in .*rank-0\.pt"
    ):
        _make(tmp_path / "run", NASRECNET, config).train(bad)
    batch = torch.load(tmp_path / "run" / "skipped-batch-rank-0.pt", weights_only=True)
    assert batch["dense_features"].shape == (40, 3) and batch["dense_features"].max() > 1e38
    assert latest_checkpoint(tmp_path / "run").name in ("step-00000006", "step-00000008")
    assert all(value.isfinite().all() for value in load_model(tmp_path / "run")[1].state_dict().values())


def _one_bad_rank(folder: str) -> torch.Tensor:
    trainer = _poisoned(_make(Path(folder), NASRECNET, replace(CONFIG, epochs=1)))
    return torch.tensor(_unchanged_steps(trainer, make_click_files(SCHEMA, ROWS)))


@pytest.mark.slow
def test_ranks_skip_a_step_together(tmp_path: Path):
    assert [steps.tolist() for steps in run_ranks(2, _one_bad_rank, str(tmp_path))] == [[6], [6]]


def _statistics_of_a_rank(folder: str) -> torch.Tensor:
    trainer = _make(Path(folder), BATCHES, replace(CONFIG, epochs=1))
    trainer.train(make_click_files(SCHEMA, ROWS))
    return torch.cat(running_statistics(trainer.task))


@pytest.mark.slow
def test_ranks_that_normalize_their_own_rows_evaluate_alike(tmp_path: Path):
    one, other = run_ranks(2, _statistics_of_a_rank, str(tmp_path))
    assert torch.equal(one, other) and one.isfinite().all()
    fresh = torch.cat(running_statistics(BATCHES.build(torch.device("cpu"))))
    assert not torch.equal(one, fresh)


def test_another_run_is_not_continued(one_rank, tmp_path: Path, monkeypatch):
    data = make_click_files(SCHEMA, ROWS)
    config = replace(CONFIG, epochs=1)
    _make(tmp_path, NASRECNET, config).train(data)
    with pytest.raises(
        ValueError, match=r"other inputs \(settings\.learning_rate: 0\.05 there, 0\.1 here\); choose another folder"
    ):
        _make(tmp_path, NASRECNET, replace(config, learning_rate=0.1)).train(data)
    with pytest.raises(ValueError, match=r"other inputs \(model\.kind: Architecture there, Baseline here; model"):
        _make(tmp_path, DLRM, config).train(data)
    other = make_click_files(SCHEMA, ROWS, seed=1)  # as many rows
    with pytest.raises(ValueError, match=r"other inputs \(data\.train: \w+ there, \w+ here\)"):
        _make(tmp_path, NASRECNET, config).train(other)
    monkeypatch.setattr(COMMAND, "plugins", ("json",))
    with pytest.raises(ValueError, match=r"other inputs \(code\.json: nothing there, \w+ here\)"):
        _make(tmp_path, NASRECNET, config).train(data)
    monkeypatch.undo()
    for checkpoint in (tmp_path / "checkpoints").glob("step-*"):
        (checkpoint / "progress.json").write_text("{")
    with pytest.raises(ValueError, match=r"progress\.json: damaged"):
        _make(tmp_path, NASRECNET, config).train(data)
    fresh = _make(tmp_path, DLRM, replace(config, resume="never", log_every=2))
    fresh.train(data)
    assert fresh.progress.step == 12 and load_model(tmp_path)[0] == DLRM
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) <= 2


def test_rows_of_another_preparation_are_neither_trained_nor_measured(one_rank, tmp_path: Path):
    schema = make_schema()
    swapped = replace(schema, sparse=(*reversed(schema.sparse[:2]), *schema.sparse[2:]))
    data, other = make_click_files(schema, ROWS), make_click_files(swapped, ROWS)
    trainer = _make(tmp_path, NASRECNET, replace(CONFIG, epochs=1))
    for attempt in (
        lambda: trainer.train(other),
        lambda: trainer.train(data, other),
        lambda: trainer.evaluate(other),
    ):
        with pytest.raises(ValueError, match=r"another preparation: the sparse features are \['f0', 'f1'"):
            attempt()
    trainer.train(data)
    words = replace(data, dictionaries=(("t.parquet", "one"),))
    trainer.description = replace(trainer.description, dictionaries=(("t.parquet", "another"),))
    with pytest.raises(ValueError, match=r"the dictionary t\.parquet gives other ids to the words"):
        trainer.evaluate(words)


def test_options_of_training_agree_with_the_plain_way(one_rank, tmp_path: Path):
    data = make_click_files(SCHEMA, ROWS)
    config = replace(CONFIG, epochs=1)
    _make(tmp_path / "plain", NASRECNET, config).train(data)
    plain = [loss for _, loss in _losses(tmp_path / "plain")]
    for name, options, tolerance in (
        ("base", {"pipeline": "base"}, 0.0),
        ("reader", {"background_reader": True}, 0.0),
        ("bf16", {"precision": "bf16"}, 2e-2),
    ):
        _make(tmp_path / name, NASRECNET, replace(config, **options)).train(data)
        assert [loss for _, loss in _losses(tmp_path / name)] == pytest.approx(plain, abs=tolerance), name
    assert [loss for _, loss in _losses(tmp_path / "bf16")] != plain
    with pytest.raises(ValueError, match="compile: a supernet's paths change"):
        _make(tmp_path / "c", SUPERNET, replace(config, compile=True))
    with pytest.raises(ValueError, match="quantized_comms: expected 'none' on cpu, found 'bf16'"):
        _make(tmp_path / "q", NASRECNET, replace(config, quantized_comms="bf16"))


@pytest.mark.extended
def test_a_compiled_model_learns_the_same(one_rank, tmp_path: Path):
    data = make_click_files(SCHEMA, 200)
    for name, compiled in (("plain", False), ("compiled", True)):
        _make(tmp_path / name, NASRECNET, replace(CONFIG, epochs=1, compile=compiled)).train(data)
    plain, compiled = (dict(_losses(tmp_path / name)) for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, abs=1e-4)


def test_what_is_logged(one_rank, tmp_path: Path):
    trainer = _make(tmp_path, SUPERNET, replace(CONFIG, epochs=1))
    trainer.train(make_click_files(SCHEMA, ROWS))
    (*_, last) = _events(tmp_path)
    expected = {
        "loss",
        "learning_rate",
        "gradient_norm",
        "samples_per_second",
        "waits_for_data",
        "skipped_steps",
        "memory_mib",
        "ne",
        "auc",
    }
    assert expected <= set(last)
    paths = json.loads((tmp_path / "paths.json").read_text())
    assert paths["paths"] == 12
    for block in paths["blocks"]:
        assert sum(block["dense_width"].values()) == 12 and sum(block["dense_to_sparse"].values()) == 12
        assert sum(block["dense_operators"].values()) >= 12
    plan = (tmp_path / "plan.txt").read_text()
    assert "t_f0" in plan and "fused" in plan and "rank 0: 0.000 GiB" in plan


def test_tables_that_fit_nowhere_are_one_clear_error(one_rank, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("nasrec_torchrec.distributed.sharding.rank_memory", lambda _: 10_000)
    with pytest.raises(ValueError, match=r"no sharding plan fits 1 ranks of cpu: the tables need .* GiB .*a rank has"):
        _make(tmp_path)


def test_tables_larger_than_the_memory_are_refused_before_they_are_allocated(one_rank, tmp_path: Path):
    huge = replace(DLRM, schema=make_schema(rows=10**12))
    message = r"do not fit into memory: they need .* GiB for .*, of which t_f0 .* GiB; this process may use .* GiB"
    with pytest.raises(ValueError, match=message):
        _make(tmp_path, huge)
    with pytest.raises(ValueError, match=message):
        huge.build(torch.device("cpu"))
    assert huge.build(torch.device("meta"))


@pytest.mark.parametrize("description", [SUPERNET, DLRM])
def test_a_paused_training_goes_on_bit_by_bit(one_rank, tmp_path: Path, description):
    data, validation = make_click_files(SCHEMA, ROWS), make_click_files(SCHEMA, 100, seed=1)
    config = replace(CONFIG, epochs=3)
    undisturbed = _make(tmp_path / "whole", description, config)
    undisturbed.train(data, validation)
    seen = []

    def pause(epochs: int, metrics) -> bool:
        assert latest_checkpoint(tmp_path / "paused").name == f"step-{12 * epochs:08d}"
        seen.append((epochs, metrics.log_loss))
        return True

    for _ in range(2):
        _make(tmp_path / "paused", description, config).train(data, validation, pause)
    last = _make(tmp_path / "paused", description, config)
    last.train(data, validation)
    expected = [event["log_loss"] for event in _events(tmp_path / "whole", "validation")]
    assert seen == [(1, expected[0]), (2, expected[1])]
    assert _losses(tmp_path / "paused") == _losses(tmp_path / "whole")
    for name, value in _weights(undisturbed).items():
        assert torch.equal(value, _weights(last)[name]), name
