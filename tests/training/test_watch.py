"""Trainings that go wrong: what is said, when, how often, and where one finds it later."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import SMALL_SPACE, make_click_files, make_schema, prepare_clicks, run_program, run_ranks

from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.split_counts import SplitCounts, split_warnings
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs.status import read_status
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer
from nasrec_torchrec.training.watch import TrainingWatch

SCHEMA = make_schema()
MODEL = ModelDescription(SCHEMA, SMALL_SPACE.sample(torch.Generator().manual_seed(3)))
CONFIG = TrainConfig(epochs=2, batch_size=40, learning_rate=0.05, log_every=5)


def _rows(count: int, seed: int) -> ClickFiles:
    files = make_click_files(SCHEMA, count, seed)
    return replace(files, clicks=int(files.load().labels.sum()))


def _train(folder: Path, config: TrainConfig, train: ClickFiles, validation: ClickFiles | None) -> tuple[str, ...]:
    model = MODEL if validation else ModelDescription(SCHEMA, SMALL_SPACE, use_layernorm=True)
    Trainer(model, config, folder, torch.device("cpu")).train(train, validation)
    return read_status(folder).warnings


def test_a_training_that_goes_well_says_nothing(one_rank, tmp_path: Path, capsys):
    assert _train(tmp_path, CONFIG, _rows(2000, 0), _rows(1000, 5)) == ()
    assert "warning" not in capsys.readouterr().err


def test_what_the_preparation_warned_of_is_in_the_log_of_a_training(one_rank, tmp_path: Path, capsys):
    train = replace(_rows(2000, 0), warnings=("validation: 'shop': 64.9% of 1,000 values are unknown",))
    validation = _rows(60, 5)
    warnings = _train(tmp_path / "run", replace(CONFIG, epochs=1), train, validation)
    assert warnings[0] == train.warnings[0] and "too few" not in warnings[0]
    assert len([warning for warning in warnings if "of 60 rows are" in warning]) == 1
    assert "64.9%" not in capsys.readouterr().err  # trials say it once for all
    assert _train(tmp_path / "supernet", replace(CONFIG, epochs=1), train, None).count(train.warnings[0]) == 1
    assert capsys.readouterr().err.count("warning: supernet: validation: 'shop': 64.9%") == 1


def test_a_learning_rate_a_hundred_times_too_high_is_said_after_a_tenth_of_the_run(one_rank, tmp_path: Path, capsys):
    warnings = _train(tmp_path, replace(CONFIG, learning_rate=5.0), _rows(2000, 0), _rows(1000, 5))
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    first = next(event for event in events if event["event"] == "warning")
    assert first["step"] <= 30  # of 100, of which the warm-up takes 10
    assert "worse than always predicting their click rate" in first["message"]
    assert "learning_rate 5 is probably too high: try a tenth" in first["message"]
    assert any("on the validation split the model is worse" in warning for warning in warnings)
    printed = capsys.readouterr().err
    assert all(printed.count(f"warning: {tmp_path.name}: {warning}") == 1 for warning in warnings)


def test_an_auc_of_guessing_is_said(one_rank, tmp_path: Path):
    config = replace(CONFIG, learning_rate=1e-6, min_learning_rate=0, epochs=1)
    warnings = _train(tmp_path, config, _rows(400, 0), _rows(300, 5))
    assert any("cannot be told from guessing (0.5 ± " in warning for warning in warnings)


def test_a_model_that_predicts_the_same_for_all_rows_is_said_at_once():
    watch = TrainingWatch(replace(CONFIG, learning_rate=0.1), False, 1000, SplitCounts(900, 300), said := {})
    assert watch.after_validation(100, ClickMetrics(0.5004, 0.7, 1.1, 900)) == []
    (warning,) = watch.after_validation(200, ClickMetrics(0.5, 0.7, 1.1, 900))
    assert warning.startswith("step 200: all validation rows get the same prediction (AUC exactly 0.5)")
    assert "it is 0.1 now; try a tenth" in warning and set(said) == {"collapsed"}
    # It is said once, and a higher learning rate is not proposed beside it.
    assert len(watch.after_validation(600, ClickMetrics(0.5, 0.7, 1.1, 900))) == 1
    assert set(said) == {"collapsed", "validation_loss"}
    few = TrainingWatch(CONFIG, False, 1000, SplitCounts(900, 3), {})
    assert few.after_validation(200, ClickMetrics(0.5, 0.1, 1.0, 900)) == []


def _without_ids(files: ClickFiles, folder: Path) -> ClickFiles:
    """The same rows, whose last feature, which is multi-hot, has no id in any of them."""
    table = pq.read_table(files.files[0])
    empty = pa.array([[]] * table.num_rows, table.schema.field("f3").type)
    folder.mkdir()
    pq.write_table(table.set_column(table.schema.get_field_index("f3"), "f3", empty), folder / files.files[0].name)
    return ClickFiles.open(folder, SCHEMA)


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_a_table_that_never_received_a_gradient_is_said_once(one_rank, tmp_path: Path, optimizer):
    # Adam's penalty moves the rows of the table all the same.
    config = replace(CONFIG, optimizer=optimizer, learning_rate=0.01, embedding_l2=0.01 * (optimizer == "adam"))
    warnings = _train(tmp_path / "run", config, _without_ids(_rows(1000, 0), tmp_path / "rows"), _rows(1000, 5))
    (warning,) = [one for one in warnings if "gradient" in one]
    assert warning.startswith(
        "step 25: no row of these tables has received a gradient yet: t_f3 (column f3): the model"
    )
    assert "leave them out of the schema" in warning


def test_a_table_that_no_rank_trains_is_said_by_ranks_that_share_the_tables(tmp_path: Path):
    files = _without_ids(_rows(400, 0), tmp_path / "rows"), _rows(200, 5)
    said = run_ranks(2, _idle_tables, files, tmp_path / "run")
    assert said[0] == said[1] and ["t_f3 (column f3): the" in one for one in said[0]].count(True) == 1


def _idle_tables(files: tuple[ClickFiles, ClickFiles], folder: Path) -> list[str]:
    config = replace(CONFIG, epochs=1, sharding_type="table_wise")
    trainer = Trainer(MODEL, config, folder, torch.device("cpu"))
    trainer.train(*files)
    return list(trainer.progress.warnings.values())


def test_labels_that_are_reversed_in_validation_are_said(one_rank, tmp_path: Path):
    table = pq.read_table(_rows(1000, 5).files[0])
    reversed_labels = pa.array(1 - np.asarray(table["label"]))
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", reversed_labels), tmp_path / "p")
    validation = ClickFiles.open(tmp_path / "p", SCHEMA)
    validation = replace(validation, clicks=int(validation.load().labels.sum()))
    warnings = _train(tmp_path / "run", CONFIG, _rows(2000, 0), validation)
    assert any("below that of guessing by more than chance" in warning for warning in warnings)


def test_a_full_path_that_lasts_longer_than_the_run_is_said_at_its_start(one_rank, tmp_path: Path):
    warning, *_ = _train(tmp_path, replace(CONFIG, full_path_steps=15_000, epochs=1), _rows(2000, 0), None)
    assert "decays over 15,000 steps, but the run has only 50" in warning and "set it to 12" in warning


@pytest.mark.parametrize(
    "train, validation, expected",
    [
        (SplitCounts(8000, 1600), SplitCounts(1000, 210), []),
        (SplitCounts(8000, 1600), SplitCounts(1000, 20), ["20 of 1,000 rows are clicks: an AUC", "2.00% of the rows"]),
        (SplitCounts(8000, 7800), SplitCounts(1000, 975), ["25 of 1,000 rows are no clicks"]),
        (SplitCounts(800, 40), SplitCounts(100, 0), ["too few to learn from", "the split has no AUC"]),
        (
            SplitCounts(8000, 800),
            SplitCounts(4000, 800),
            ["20.00% of the rows are clicks, in the training"],
        ),
        (SplitCounts(8000, 800), SplitCounts(0, 0), []),
    ],
)
def test_splits_that_cannot_judge_a_model_are_said(train: SplitCounts, validation: SplitCounts, expected: list[str]):
    found = split_warnings({"train": train, "validation": validation})
    assert len(found) == len(expected)
    assert all(text in warning for text, warning in zip(expected, found, strict=True))


@pytest.mark.slow
def test_the_command_line_says_what_goes_wrong_and_keeps_it(tmp_path: Path):
    data = prepare_clicks(tmp_path / "data")
    words = ["--data", data, "--out", tmp_path / "run", "--architecture", "mlp", "--seeds", "0,1"]
    run = run_program("nasrec", "train", *words, "--learning_rate", 20, "--epochs", 3)
    assert "400 training rows" in run.stderr and "batch 32 = 36 steps; adagrad, learning rate 20" in run.stderr
    assert run.stderr.count("warning: validation: ") == 1  # too few clicks, once for all trials
    runs = json.loads((tmp_path / "run" / "metrics.json").read_text())["best"]["runs"]
    for record, line in zip(runs, run.stdout.splitlines()[-2:], strict=True):
        kept, entropy = record["kept"], record["validation"]["normalized_entropy"]
        assert kept["epochs"] == 3 and kept["steps"] == 36 and kept["step"] == 12 * kept["epoch"]
        than = "better" if entropy < 1 else "worse"
        assert line == (
            f"the weights of seed {record['seed']} are those after epoch {kept['epoch']} of 3 (step {kept['step']} of "
            f"36): validation normalized entropy {entropy:.4g}, {than} than always predicting the click rate; the "
            "warnings above are about the whole training"
        )
    record = runs[0]
    assert any("worse than always predicting" in warning for warning in record["warnings"])
    assert "warning: step" in run_program("nasrec", "status", tmp_path / "run").stdout
