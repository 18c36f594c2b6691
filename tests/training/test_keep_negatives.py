"""Models that are trained on a share of the rows without a click predict the click rate of all rows."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pytest
import torch

from nasrec_torchrec.cli.main import main
from nasrec_torchrec.datasets.prepared import open_split, read_manifest
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.search.config import EvaluationConfig
from nasrec_torchrec.search.evaluator import Evaluator
from nasrec_torchrec.search.race.config import RaceConfig
from nasrec_torchrec.search.race.predictions import predict
from nasrec_torchrec.search.race.run import auto
from nasrec_torchrec.search.race.tree import measure_tree, train_tree
from nasrec_torchrec.search.supernet import load_supernet
from nasrec_torchrec.search_space import SearchSpace
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer

CPU = torch.device("cpu")
ROWS, KEPT, RATE = 20_000, 0.1, 0.04
SCHEMA = """
label: clicked
sparse:
- {name: item, ids: dictionary}
- {name: place, ids: dictionary}
embedding_dim: 8
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sampled")
    random = np.random.default_rng(0)
    item, place = random.integers(0, 8, ROWS), random.integers(0, 3, ROWS)
    clicked = random.random(ROWS) < RATE * (0.25 + 1.5 * item / 7)
    table = pa.table({"clicked": clicked.astype(int), "item": item, "place": place})
    pcsv.write_csv(table, folder / "log.csv")
    (folder / "schema.yaml").write_text(SCHEMA)
    sources = ["--source", str(folder / "log.csv"), "--schema", str(folder / "schema.yaml")]
    main(["prepare", "table", *sources, "--out", str(folder / "data"), "--keep_negatives", str(KEPT)])
    yield folder / "data"


def test_only_training_rows_without_a_click_are_left_out(data: Path):
    train, validation, test = (open_split(data, split) for split in ("train", "validation", "test"))
    assert (train.keep_negatives, validation.keep_negatives, test.keep_negatives) == (KEPT, 1, 1)
    assert len(validation) == len(test) == ROWS / 10
    assert train.clicks is not None and train.counts is not None
    assert len(train) - train.clicks == pytest.approx(KEPT * 0.8 * ROWS * (1 - RATE), rel=0.1)
    assert train.counts.rows == pytest.approx(0.8 * ROWS, rel=0.1)
    assert read_manifest(data)["rows"] == len(train) + len(validation) + len(test)


def test_a_description_says_what_was_left_out(data: Path, capsys: pytest.CaptureFixture[str]):
    main(["prepare", "describe", str(data), "--json"])
    found = json.loads(capsys.readouterr().out)
    train = open_split(data, "train")
    assert train.counts is not None
    assert (found["keep_negatives"], found["left_out"]) == (KEPT, round(0.8 * ROWS) - len(train))
    assert found["splits"]["train"]["rows"] == len(train) and found["sparse"][0]["top"]
    main(["prepare", "describe", str(data)])
    assert f"left out by --keep-negatives 0.1: {found['left_out']:,} training rows" in capsys.readouterr().out


def test_a_network_predicts_the_click_rate_of_all_rows(data: Path, one_rank: None, tmp_path: Path):
    train, test = open_split(data, "train"), open_split(data, "test")
    config = TrainConfig(epochs=6, batch_size=64, learning_rate=0.01, optimizer="adam")
    description = ModelDescription(train.schema, Baseline("mlp", (8,), (8, 1)))
    Trainer(description, config, tmp_path, CPU).train(train, open_split(data, "validation"))
    logits, labels = predict(tmp_path, test)
    assert float(logits.sigmoid().mean()) == pytest.approx(float(labels.mean()), rel=0.25)
    assert_calibrated(asdict(click_metrics(logits, labels)))


def test_a_candidate_is_fine_tuned_to_the_click_rate_of_all_rows(data: Path, one_rank: None, tmp_path: Path):
    train, validation = open_split(data, "train"), open_split(data, "validation")
    space = SearchSpace(num_blocks=1, dense_widths=(8,), sparse_widths=(4,))
    config = TrainConfig(epochs=2, batch_size=64, learning_rate=0.05, full_path_steps=5)
    Trainer(ModelDescription(train.schema, space, use_layernorm=True), config, tmp_path, CPU).train(train, None)
    architecture = space.sample(torch.Generator().manual_seed(0))
    evaluation = EvaluationConfig(60, 256)
    with Evaluator(load_supernet(tmp_path, CPU), train, validation, evaluation) as evaluator:
        assert_calibrated(asdict(evaluator(architecture).metrics))


def test_a_tree_predicts_the_click_rate_of_all_rows(data: Path, tmp_path: Path):
    train_tree(data, open_split(data, "train").schema, tmp_path, None)
    assert_calibrated(measure_tree(tmp_path, open_split(data, "test")))


def test_rows_of_both_kinds_are_not_trained_on_together(data: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"0\.1 of its rows without a click .* rows of both cannot be trained on"):
        open_split(data, "train").followed_by(open_split(data, "validation"))
    with pytest.raises(ValueError, match=r"final_fit: .* cannot be trained on together"):
        auto(data, tmp_path, RaceConfig(trials=1, final_fit=True, trees=False))


def assert_calibrated(metrics: dict[str, float | None]) -> None:
    """Checks a metric that exceeds 2 where the click rate of the rows that were kept is predicted."""
    assert metrics["normalized_entropy"] is not None and metrics["normalized_entropy"] < 1.02
