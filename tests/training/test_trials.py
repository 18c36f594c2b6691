import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SMALL_SPACE, make_click_files, make_schema

from nasrec_torchrec.metrics.click_metrics import click_metrics, predict
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.runs.checkpoint import complete_checkpoints, kept_checkpoint
from nasrec_torchrec.runs.status import read_status
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer
from nasrec_torchrec.training.trials import Splits, Unreadable, train_best

SCHEMA = make_schema()
NASRECNET = ModelDescription(SCHEMA, SMALL_SPACE.sample(torch.Generator().manual_seed(3)))
DLRM = ModelDescription(SCHEMA, Baseline("dlrm", (32, 16), (16, 1)))
CONFIG = TrainConfig(epochs=1, batch_size=40, learning_rate=0.05, log_every=1, checkpoint_every=4)
ROWS = 500  # 12 steps an epoch


def _splits() -> Splits:
    return Splits(*(make_click_files(SCHEMA, rows, seed) for seed, rows in enumerate((ROWS, 100, 100))))


def test_finished_trials_are_not_repeated(one_rank, tmp_path: Path, monkeypatch):
    config, splits, device = CONFIG, _splits(), torch.device("cpu")
    arguments = ([NASRECNET, DLRM], (0.05, 0.1), (0, 1))
    expected = train_best(*arguments, config, tmp_path / "a", device, splits)
    started = []
    original = Trainer.train

    def train(self, *data):
        started.append(self.run_dir.name)
        if len(started) == 6:
            raise RuntimeError("killed")
        return original(self, *data)

    monkeypatch.setattr(Trainer, "train", train)
    with pytest.raises(RuntimeError, match="killed"):
        train_best(*arguments, config, tmp_path / "b", device, splits)
    best = train_best(*arguments, config, tmp_path / "b", device, splits)
    assert len(started) == 9 and started[5] == started[6] == "trial-03-seed-1"
    drop = {"training_seconds"}
    for found, wanted in zip(best["runs"], expected["runs"], strict=True):
        assert {k: v for k, v in found.items() if k not in drop} == {k: v for k, v in wanted.items() if k not in drop}
    assert train_best(*arguments, config, tmp_path / "b", device, splits) == best and len(started) == 9
    assert load_model(tmp_path / "b")[0] in (NASRECNET, DLRM)
    with pytest.raises(
        ValueError, match=r"other inputs \(models: .*; settings\.learning_rates: .* there, \[0.05\] here"
    ):
        train_best([NASRECNET], (0.05,), (0,), config, tmp_path / "b", device, splits)
    train_best([NASRECNET], (0.05,), (0,), replace(config, resume="never"), tmp_path / "b", device, splits)
    assert load_model(tmp_path / "b")[0] == NASRECNET


def test_a_finished_training_keeps_its_best_checkpoint_alone(one_rank, tmp_path: Path, monkeypatch):
    """Also where the process that finished it was killed before it had removed the others."""
    config, splits = replace(CONFIG, keep_checkpoints=3), _splits()

    def train() -> dict[str, Any]:
        return train_best([NASRECNET], (0.05,), (0,), config, tmp_path, torch.device("cpu"), splits)

    with monkeypatch.context() as patch:
        patch.setattr("nasrec_torchrec.training.trials.keep_best", lambda run_dir: None)
        best = train()
    assert len(complete_checkpoints(tmp_path)) == 3
    expected = kept_checkpoint(tmp_path)
    assert train() == best and complete_checkpoints(tmp_path) == [expected]
    assert not list(tmp_path.glob("trial-*/checkpoints"))
    _, model = load_model(tmp_path)
    validation = splits.validation
    assert asdict(click_metrics(*predict(model, validation, 64))) == pytest.approx(best["runs"][0]["validation"])


def test_a_diverging_trial_and_an_unreadable_model_spoil_no_other(one_rank, tmp_path: Path, capsys):
    config, splits, device = replace(CONFIG, max_skipped_steps=3), _splits(), torch.device("cpu")
    broken = Unreadable("b.json", "block 0: no such operator")
    for _ in range(2):  # the second time nothing is trained, and the same is found
        best = train_best([NASRECNET, broken], (1e30, 0.05), (0, 1), config, tmp_path, device, splits)
        assert best["learning_rate"] == 0.05 and best["model"] is not None
    text = (tmp_path / "metrics.json").read_text()
    found = json.loads(text)
    assert found["best"] == best and "NaN" not in text and "Infinity" not in text
    diverged, trained, *unreadable = found["trials"]
    assert diverged["mean_validation_log_loss"] is None and "not finite in 3 steps" in diverged["error"]
    assert [run["validation"] for run in diverged["runs"]] == [None, None]
    assert trained["mean_validation_log_loss"] < 1 and "error" not in trained
    assert [(trial["file"], trial["error"]) for trial in unreadable] == [(broken.file, broken.error)] * 2
    errors = capsys.readouterr().err
    assert "trial 1 of 4 failed: step " in errors and "trial 4 of 4 failed: block 0: no such operator" in errors
    assert read_status(tmp_path / "trial-01-seed-0").state == "failed"
    with pytest.raises(ValueError, match="all 2 trials failed; the first one: step 5: the loss or a gradient"):
        train_best([NASRECNET], (1e30, 1e29), (0,), config, tmp_path / "none", device, splits)


def test_splits_without_rows(one_rank, tmp_path: Path):
    splits, device, config = _splits(), torch.device("cpu"), CONFIG
    empty = make_click_files(SCHEMA, 0)
    with pytest.raises(ValueError, match="validation: the split has no rows"):
        train_best([DLRM], (0.05,), (0,), config, tmp_path, device, replace(splits, validation=empty))
    assert not list(tmp_path.iterdir())
    best = train_best([DLRM], (0.05,), (0,), config, tmp_path, device, replace(splits, test=empty))
    assert best["runs"][0]["test"] is None and best["mean_validation_log_loss"] < 1
