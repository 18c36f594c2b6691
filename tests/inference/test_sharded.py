"""Evaluating and scoring by two ranks, straight from a checkpoint, beside the package and the unsharded model."""

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support import run_program, run_ranks

from nasrec_torchrec import inference, training
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.distributed.sharded_model import describe_memory, load_sharded
from nasrec_torchrec.inference.config import ScoringConfig

pytestmark = pytest.mark.slow
CONFIG = ScoringConfig(raw=True, batch_size=100, keep=("user",))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, Path]:
    """Raw rows, prepared data, a run on it, and its package."""
    folder = tmp_path_factory.mktemp("sharded")
    random = np.random.default_rng(0)
    lines = ["clicked,price,user,tags,shop"]
    for number in range(1001):
        tags = "|".join(random.choice(list("abcd"), random.integers(0, 4), replace=False))
        shop = random.integers(0, 60) if number % 7 else ""
        lines.append(f"{random.integers(0, 2)},{random.normal():.3f},u{random.integers(0, 50)},{tags},{shop}")
    raw, data, run, package = (folder / name for name in ("rows.csv", "data", "run", "package"))
    raw.write_text("\n".join(lines) + "\n")
    sparse = (
        SparseFeature("user", ids="dictionary", min_count=20),
        SparseFeature("tags", 30, ids="hash", multi_hot=True, pooling="mean", embedding_dim=8),
        SparseFeature("shop", 60, ids="id"),
    )
    prepare(RawData((str(raw),), Schema("clicked", (DenseFeature("price"),), sparse)), data)
    config = training.TrainConfig(batch_size=100, learning_rate=0.1)
    training.run(data, run, config, architecture="mlp")
    inference.export(run, package, data=data)
    return raw, data, run, package


def _score(run: str, rows: str, out: str, config: ScoringConfig, data: str) -> dict[str, int]:
    return inference.score_on_ranks(run, rows, out, config, words=data) or {}


def _memory(run: str) -> str:
    return describe_memory(load_sharded(Path(run), torch.device("cpu"), "row_wise")[1])


def _evaluate(run: str, data: str, sharding_type: str | None) -> dict[str, float]:
    found = training.evaluate(run, data, "train", 300, ("shop",), sharding_type)
    return {} if found is None else {"auc": found.auc, "log_loss": found.log_loss, "slices": len(found.slices["shop"])}


def test_two_ranks_score_as_the_package_does(trained: tuple[Path, Path, Path, Path], tmp_path: Path):
    raw, data, run, package = trained
    raw = raw.with_name("more.csv")
    raw.write_text(
        "price,user,tags,shop\n" + "".join(f"{n}.5,u{n},{'x|a' if n % 2 else ''},{3 * n}\n" for n in range(133))
    )
    expected = inference.score(package, str(raw), tmp_path / "package", CONFIG)
    counted = run_ranks(2, _score, str(run), str(raw), str(tmp_path / "ranks"), CONFIG, str(data))
    assert counted == [expected, {}] and expected["rows"] == 133
    mine, theirs = (pq.read_table(tmp_path / name).to_pydict() for name in ("ranks", "package"))
    scores = mine.pop("probability")
    assert scores == pytest.approx(theirs.pop("probability"), abs=1e-6) and len(set(scores)) > 50
    assert mine == theirs


@pytest.mark.parametrize("sharding_type", [None, "row_wise", "column_wise"])
def test_two_ranks_evaluate_as_one_process_does(trained: tuple[Path, Path, Path, Path], sharding_type: str | None):
    _, data, run, _ = trained
    expected = asdict(training.evaluate(run, data, "train", slices=("shop",)))
    first, second = run_ranks(2, _evaluate, str(run), str(data), sharding_type)
    assert second == {} and first["slices"] == len(expected["slices"]["shop"])
    assert first["auc"] == pytest.approx(expected["auc"], abs=1e-6)
    assert first["log_loss"] == pytest.approx(expected["log_loss"], abs=1e-6)


def test_no_rank_holds_the_whole_of_a_table(trained: tuple[Path, Path, Path, Path]):
    first, second = run_ranks(2, _memory, str(trained[2]))
    parts = re.findall(r"rank \d: (\S+) of (\S+) MiB of tables, peak memory \d+ MiB", first)
    assert first == second and len(parts) == 2, first


def test_the_command_takes_a_run_and_names_the_words_that_are_missing(
    trained: tuple[Path, Path, Path, Path], tmp_path: Path
):
    raw, data, run, _ = trained
    words = ["score", "--model", run, "--data", raw, "--out", tmp_path / "scores"]
    done = run_program("nasrec", *words, "--raw", "--words", data, terminal=True)
    assert (
        done.returncode == 0 and done.stdout == "1,001 rows scored, 0 rejected\n" and "MiB of tables" in done.stderr
    ), done.stderr
    lost = run_program("nasrec", *words, "--raw", "--words", tmp_path, "--overwrite")
    assert lost.returncode == 2 and "the words of its ids, is not in" in lost.stderr
    both = run_program("nasrec", *words, "--package", run)
    assert both.returncode == 2 and "either --package" in both.stderr


def test_ranks_map_ids_that_were_not_known_beforehand_as_the_package_does(tmp_path: Path):
    random = np.random.default_rng(0)
    raw, rows = tmp_path / "rows.csv", ["clicked,user,shop"]
    for number in range(601):
        user = random.integers(0, 40) if number % 2 else 1000 + number  # half of them come once
        rows.append(f"{int(user % 2 == 0)},u{user},s{random.integers(0, 9)}")
    raw.write_text("\n".join(rows) + "\n")
    sparse = SparseFeature("user", 64, "dynamic"), SparseFeature("shop", ids="dictionary")
    data, run, package = tmp_path / "data", tmp_path / "run", tmp_path / "package"
    prepare(RawData((str(raw),), Schema("clicked", (), sparse)), data)
    training.run(data, run, training.TrainConfig(batch_size=40, learning_rate=0.1), architecture="mlp")
    inference.export(run, package, data=data)
    config = ScoringConfig(raw=True, batch_size=100)
    expected = inference.score(package, str(raw), tmp_path / "alone", config)
    counted = run_ranks(2, _score, str(run), str(raw), str(tmp_path / "ranks"), config, str(data))
    assert counted == [expected, {}] and expected["rows"] == 601
    mine, theirs = (pq.read_table(tmp_path / name)["probability"].to_numpy() for name in ("ranks", "alone"))
    np.testing.assert_allclose(mine, theirs, atol=1e-6)
    seen = [float(theirs[number]) for number in range(1, 601, 2)]  # of users with a row of their own
    assert np.std(seen) > np.std(theirs[::2]), "the users that come once share rows"
    prepared = inference.score(package, str(data / "test"), tmp_path / "prepared", ScoringConfig())
    assert prepared["rows"] > 50
