"""A row of weight 2 counts as two rows: in the loss, in every metric and in whatever is fitted to rows."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score
from support import run_ranks

from nasrec_torchrec.cli.main import main
from nasrec_torchrec.datasets import reader
from nasrec_torchrec.datasets.click_data import ClickData, WeightedBatch, join
from nasrec_torchrec.datasets.prepared import open_split, read_manifest
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.row_weights import mean_weight, row_weights
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.recalibration import recalibrate
from nasrec_torchrec.metrics.calibration import calibration
from nasrec_torchrec.metrics.click_metrics import block_losses, click_metrics
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.search.config import EvaluationConfig
from nasrec_torchrec.search.evaluator import Evaluator
from nasrec_torchrec.search.race.tree import measure_tree, train_tree
from nasrec_torchrec.search.supernet import load_supernet
from nasrec_torchrec.search_space import SearchSpace
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.guard import StepGuard
from nasrec_torchrec.training.task import ClickTask, MicroBatches
from nasrec_torchrec.training.trainer import Trainer

CPU = torch.device("cpu")
ROWS, CLICK_WEIGHT, RATE = 6_000, 4, 0.2
# Share of the weight that lies on clicks.
WEIGHTED_RATE = RATE * CLICK_WEIGHT / (RATE * CLICK_WEIGHT + 1 - RATE)
SCHEMA = """
label: clicked
weight: worth
sparse:
- {name: item, ids: dictionary}
- {name: place, ids: dictionary}
embedding_dim: 8
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("weighted")
    random = np.random.default_rng(0)
    item, place = random.integers(0, 8, ROWS), random.integers(0, 3, ROWS)
    clicked = random.random(ROWS) < RATE * (0.25 + 1.5 * item / 7)
    worth = np.where(clicked, CLICK_WEIGHT, 1).astype(float).astype(str)
    worth[:4] = ["-1", "nan", "", "1e99"]
    pcsv.write_csv(
        pa.table({"clicked": clicked.astype(int), "worth": worth, "item": item, "place": place}), folder / "log.csv"
    )
    (folder / "schema.yaml").write_text(SCHEMA)
    sources = ["--source", str(folder / "log.csv"), "--schema", str(folder / "schema.yaml")]
    main(["prepare", "table", *sources, "--out", str(folder / "data")])
    yield folder / "data"


def test_a_row_without_a_usable_weight_is_rejected(data: Path):
    rejects = [json.loads(line)["reason"] for line in (data / "rejects.jsonl").read_text().splitlines()]
    found = [reason.rpartition("found ")[2] for reason in rejects[:3]]
    assert found == ["'-1'", "'nan'", "nothing"]
    assert all("column 'worth': expected a weight, a finite number of 0 or more" in reason for reason in rejects[:3])
    assert len(rejects) == 4 and "float32" in rejects[3]
    assert sum(part["rows"] for part in read_manifest(data)["splits"].values()) == ROWS - 4


def test_prepared_weights_are_read_in_the_order_of_the_rows(data: Path):
    files = open_split(data, "train")
    weights, labels = row_weights(files), files.load().labels
    assert weights is not None and torch.equal(weights, 1 + (CLICK_WEIGHT - 1) * labels)
    assert mean_weight(files) == pytest.approx(float(weights.double().mean()), rel=1e-12)
    assert mean_weight(replace(files, weights=None)) == mean_weight(files)
    both = files.followed_by(open_split(data, "test"))
    assert mean_weight(both) == mean_weight(replace(both, weights=None))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf"), None])
def test_damaged_weights_are_refused(tmp_path: Path, bad: float | None):
    schema = Schema.from_json(
        '{"label": "y", "weight": "w", "sparse": [{"name": "f", "num_embeddings": 9, "ids": "id"}]}'
    )
    weights = pa.array([1.0, bad], pa.float32())
    pq.write_table(pa.table({"y": [0, 1], "f": [1, 2], "w": weights}), tmp_path / "part.parquet")
    with pytest.raises(
        ValueError, match=r"column 'w': (expected finite weights of 0 or more, found .* in row 1|1 values)"
    ):
        ClickFiles.open(tmp_path, schema).load()


def test_a_schema_without_weights_is_written_as_before():
    schema = Schema.from_json('{"label": "y", "sparse": [{"name": "f", "num_embeddings": 9, "ids": "id"}]}')
    assert "weight" not in schema.to_dict() and schema.columns == schema.raw_columns == ["y", "f"]
    weighted = replace(schema, weight="w")
    assert Schema.from_json(weighted.to_json()) == weighted and weighted.raw_columns == ["y", "f", "w"]
    assert weighted.difference(schema) is None
    with pytest.raises(ValueError, match=r"columns named more than once: \['f'\]"):
        replace(schema, weight="f")


def test_batches_carry_the_weights_of_their_rows(data: Path, monkeypatch: pytest.MonkeyPatch):
    # The process in the background, which takes seconds to start, sends what iterating over its plan yields.
    monkeypatch.setattr(reader, "DataLoader", lambda plan, **_options: plan)
    for background in (False, True):
        for batch in reader.TrainingReader(open_split(data, "train"), 512, 0, background=background):
            assert isinstance(batch, WeightedBatch)
            assert torch.equal(batch.to(CPU).row_weights, 1 + (CLICK_WEIGHT - 1) * batch.labels)


def test_the_loss_and_its_gradient_are_those_of_repeated_rows():
    schema = Schema.from_json(
        '{"label": "y", "sparse": [{"name": "f", "num_embeddings": 9, "ids": "id"}], "embedding_dim": 8}'
    )
    weights, labels = torch.tensor([2.0, 0, 1, 3]), torch.tensor([1, 0, 0, 1])
    table = pa.table({"y": labels.numpy(), "f": [1, 2, 3, 4], "w": weights.numpy()})
    data = ClickData.from_table(table, replace(schema, weight="w"), "rows")
    repeated = ClickData.from_table(table.take([0, 0, 2, 3, 3, 3]), schema, "rows")
    torch.manual_seed(0)
    task = ClickTask(ModelDescription(schema, Baseline("mlp", (8,), (8, 1))).build(), CPU)
    found = []
    guard = StepGuard()
    divided = ClickTask(task.model, CPU, micro_batches=MicroBatches(3, guard))
    for computed_by, rows, mean in (
        (task, repeated, 1.0),
        (task, data, float(weights.mean())),
        (divided, data, float(weights.mean())),
    ):
        computed_by.mean_weight = mean
        task.zero_grad()
        loss, _ = computed_by(join([(rows, 0, len(rows))]))
        loss.backward()
        guard.finish_backward()
        found.append([loss.detach(), *(p.grad for p in task.parameters())])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
    assert found[0][0] > 0


def test_metrics_are_those_of_repeated_rows():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, generator=generator).round(decimals=1)  # with ties
    labels = (logits + torch.randn(500, generator=generator) > 0.5).float()
    weights = torch.randint(0, 4, (500,), generator=generator)
    rows = torch.arange(500).repeat_interleave(weights)
    found, expected = click_metrics(logits, labels, weights), click_metrics(logits[rows], labels[rows])
    for name in ("auc", "log_loss", "normalized_entropy"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6), name
    assert found.auc == pytest.approx(roc_auc_score(labels, logits, sample_weight=weights), rel=1e-9)
    assert np.mean(block_losses(logits, labels, weights, blocks=50)) == pytest.approx(found.log_loss, rel=1e-9)
    measured, repeated = calibration(logits, labels, weights), calibration(logits[rows], labels[rows])
    assert (measured.click_rate, measured.prediction) == pytest.approx((repeated.click_rate, repeated.prediction))
    for method in ("platt", "isotonic"):
        fitted = [
            recalibrate(method, *some).module()(logits).sigmoid()
            for some in ((logits, labels, weights), (logits[rows], labels[rows]))
        ]
        # Both keep away from 0 and 1, by the number of rows that they were fitted to.
        torch.testing.assert_close(*fitted, atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="found 0 in all 500 rows"):
        click_metrics(logits, labels, torch.zeros(500))


def test_a_network_predicts_by_weight_and_its_package_never_asks_for_one(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = "--epochs 4 --batch_size 64 --learning_rate 0.01 --optimizer adam --embedding_l2 0"
    model = f"--kind mlp --dense_layers 8 --over_layers 8,1 {recipe}".split()
    main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *model])
    capsys.readouterr()
    main(["evaluate", "--model", str(tmp_path / "run"), "--data", str(data), "--slice", "item", "--json"])
    found = json.loads(capsys.readouterr().out)["test"]
    assert found["weight"] == "worth" and found["normalized_entropy"] < 1
    assert found["calibration"]["click_rate"] == pytest.approx(WEIGHTED_RATE, abs=0.05)
    assert found["calibration"]["prediction"] == pytest.approx(WEIGHTED_RATE, abs=0.05)
    assert found["slices"]["item"][0]["prediction"] > 0.2
    recorded = json.loads((tmp_path / "run" / "metrics.json").read_text())["best"]["runs"][0]["test"]
    assert found["log_loss"] == pytest.approx(recorded["log_loss"], rel=1e-6)
    main(["evaluate", "--model", str(tmp_path / "run"), "--data", str(data)])
    assert "all metrics are weighted by 'worth'" in capsys.readouterr().out

    main(["export", "--model", str(tmp_path / "run"), "--data", str(data), "--out", str(tmp_path / "package")])
    package = json.loads((tmp_path / "package" / "model.json").read_text())
    assert "weight" not in package["schema"]
    validation = json.loads((tmp_path / "run" / "metrics.json").read_text())["best"]["runs"][0]["validation"]
    assert f"log loss {validation['log_loss']:.6f}" in capsys.readouterr().out
    pcsv.write_csv(pa.table({"item": [1, 2], "place": [0, 1]}), tmp_path / "raw.csv")
    out = tmp_path / "scores"
    main(
        [
            "score",
            "--package",
            str(tmp_path / "package"),
            "--data",
            str(tmp_path / "raw.csv"),
            "--raw",
            "true",
            "--out",
            str(out),
        ]
    )
    assert pq.read_table(out).num_rows == 2


def _train(data: str, out: str) -> dict[str, float]:
    train, validation = open_split(Path(data), "train"), open_split(Path(data), "validation")
    description = ModelDescription(train.schema, Baseline("mlp", (8,), (8, 1)))
    trainer = Trainer(description, TrainConfig(epochs=2, batch_size=64, learning_rate=0.1), Path(out), CPU)
    trainer.train(train, validation)
    return asdict(trainer.evaluate(validation))


def test_two_ranks_weigh_rows_as_one_does(data: Path, one_rank: None, tmp_path: Path):
    alone = _train(str(data), str(tmp_path / "one"))
    assert_weighted(alone["normalized_entropy"])
    for found in run_ranks(2, _train, str(data), str(tmp_path / "two")):
        for name in ("log_loss", "normalized_entropy", "auc"):
            assert found[name] == pytest.approx(alone[name], rel=1e-5), name


def test_a_candidate_is_fine_tuned_and_measured_by_weight(data: Path, one_rank: None, tmp_path: Path):
    train, validation = open_split(data, "train"), open_split(data, "validation")
    space = SearchSpace(num_blocks=1, dense_widths=(8,), sparse_widths=(4,))
    config = TrainConfig(epochs=2, batch_size=64, learning_rate=0.05, full_path_steps=5)
    Trainer(ModelDescription(train.schema, space, use_layernorm=True), config, tmp_path, CPU).train(train, None)
    architecture = space.sample(torch.Generator().manual_seed(0))
    with Evaluator(load_supernet(tmp_path, CPU), train, validation, EvaluationConfig(60, 256)) as evaluator:
        assert_weighted(evaluator(architecture).metrics.normalized_entropy)


def test_a_tree_is_trained_and_measured_by_weight(data: Path, tmp_path: Path):
    train_tree(data, open_split(data, "train").schema, tmp_path, None)
    assert_weighted(measure_tree(tmp_path, open_split(data, "test"))["normalized_entropy"])


def assert_weighted(normalized_entropy: float | None) -> None:
    """Checks a metric that is about 1.4 where rows are learned from, but not measured, as if they counted alike."""
    assert normalized_entropy is not None and normalized_entropy < 1.02
