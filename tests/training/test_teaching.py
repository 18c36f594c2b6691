"""A model that trained models teach: what it learns from, that it resumes, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import prepare_pairs
from torch import Tensor
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.cli.main import main
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.datasets.reader import ClickFiles, TrainingReader
from nasrec_torchrec.metrics.click_metrics import predict
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.search.race.tree import predict_tree, train_tree
from nasrec_torchrec.training import run
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.teaching import Teachers

_CONFIG = TrainConfig(2, 64, 0.01, optimizer="adam")
_STUDENT = TrainConfig(10, 64, 0.01, optimizer="adam")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_pairs(tmp_path_factory.mktemp("pairs") / "data", 3000)


@pytest.fixture(scope="module")
def teachers(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two trained models, the second one of fewer columns."""
    out = tmp_path_factory.mktemp("teachers")
    first = load_schema(data).sparse[0].name
    run(data, out / "dcn", _CONFIG, Baseline("dcn", (64, 8)))
    run(data, out / "mlp", _CONFIG, architecture="mlp", drop_features=(first,))
    return out / "dcn", out / "mlp"


@torch.inference_mode()
def _logits(run_dir: Path, batch: Batch) -> Tensor:
    description, model = load_model(run_dir)
    values = batch.sparse_features.to_dict()
    wanted = {name: values[name] for name in description.schema.feature_names}
    return model(batch.dense_features, KeyedJaggedTensor.from_jt_dict(wanted))[:, 0]


def _probabilities(run_dir: Path, files: ClickFiles) -> Tensor:
    description, model = load_model(run_dir)
    return torch.sigmoid(predict(model, description.read(files))[0].detach())


def test_the_soft_labels_are_the_mean_probability_of_networks_and_trees(data: Path, teachers, tmp_path: Path):
    tree = train_tree(data, load_schema(data), tmp_path / "tree", None, 0)
    files = open_split(data, "train")
    soft = Teachers((*teachers, tmp_path / "tree"), 0.75, files).soft_labels(tmp_path / "soft.npy")
    assert tree is not None and (soft.rows, soft.share) == (len(files), 0.75)
    each = [_probabilities(folder, files) for folder in teachers]
    each.append(torch.sigmoid(predict_tree(tmp_path / "tree", files)[0]))
    expected = sum(each) / 3
    torch.testing.assert_close(torch.from_numpy(np.load(soft.file)), expected, rtol=1e-4, atol=1e-6)
    # Every row of every epoch has its own, whatever the order; rows behind them keep their labels.
    taught = replace(files, soft_labels=soft)
    labels = files.load().labels
    mixed = 0.25 * labels + 0.75 * expected
    whole = torch.cat([batch.labels for batch in taught.evaluation_batches(500)])
    torch.testing.assert_close(whole, mixed, rtol=1e-4, atol=1e-6)
    shuffled, plain = (torch.cat([batch.labels for batch in TrainingReader(of, 100, seed=3)]) for of in (taught, files))
    torch.testing.assert_close(shuffled.sum(), mixed.sum(), rtol=1e-2, atol=0)
    assert ((shuffled > 0.5 * plain) & (shuffled < 1 - 0.0 * plain)).float().mean() > 0.5
    assert taught.digest != files.digest
    validation = open_split(data, "validation")
    behind = torch.cat([batch.labels for batch in taught.followed_by(validation).evaluation_batches(500)])
    assert torch.equal(behind[len(files) :], validation.load().labels)
    # Read again, they are not computed again.
    written = soft.file.stat().st_mtime_ns
    assert Teachers((*teachers, tmp_path / "tree"), 0.5, files).soft_labels(soft.file).sha256 == soft.sha256
    assert soft.file.stat().st_mtime_ns == written


def test_a_student_follows_its_teachers_and_a_finished_one_is_not_taught_again(data: Path, teachers, tmp_path, capsys):
    flags = ["--data", str(data), "--out", str(tmp_path / "student"), "--kind", "mlp", "--over_layers", "16,1"]
    flags += ["--epochs", "10", "--batch_size", "64", "--learning_rate", "0.01", "--optimizer", "adam"]
    flags += ["--teachers", ",".join(map(str, teachers))]
    main(["train", *flags, "--json", "true"])
    best = json.loads(capsys.readouterr().out)
    assert math.isfinite(best["runs"][0]["validation"]["log_loss"])
    files = open_split(data, "train")
    run(data, tmp_path / "alone", _STUDENT, Baseline("mlp", (64, 8), (16, 1)))
    every = [tmp_path / "student", tmp_path / "alone", *teachers]
    taught, alone, *both = (_probabilities(folder, files) for folder in every)
    teacher = sum(both) / 2
    assert float((taught - teacher).abs().mean()) < 0.9 * float((alone - teacher).abs().mean())
    # A finished training is left alone; with another share it is another training.
    main(["train", *flags])
    assert "these trainings are finished" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["train", *flags, "--teacher_share", "0.5"])
    assert "teacher_share: 0.9 there, 0.5 here" in capsys.readouterr().err


def test_a_student_may_read_fewer_columns_than_its_teachers(data: Path, teachers, tmp_path: Path):
    first = load_schema(data).sparse[0].name
    best = run(data, tmp_path / "out", _CONFIG, architecture="mlp", drop_features=(first,), teachers=teachers)
    assert best is not None and best["runs"][0]["error"] is None
    description, _ = load_model(tmp_path / "out")
    assert first not in description.schema.feature_names


def test_what_cannot_teach_is_refused(data: Path, teachers, tmp_path: Path):
    for share in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="teacher_share: expected a number above 0 and at most 1"):
            run(data, tmp_path / "out", _CONFIG, teachers=teachers, teacher_share=share)
    with pytest.raises(ValueError, match="no complete checkpoint found"):
        run(data, tmp_path / "out", _CONFIG, teachers=(tmp_path / "nothing",))
    other = prepare_pairs(tmp_path / "other", 2000)
    with pytest.raises(ValueError, match="the model was trained on data of another preparation"):
        run(other, tmp_path / "out", _CONFIG, teachers=teachers)
    assert not (tmp_path / "out").exists()
