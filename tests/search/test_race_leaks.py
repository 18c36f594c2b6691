"""Histories that give away how the data was made, on rows that are made like real ones and like sampled ones."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import load_schema
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.search.race.features import Ranking, rank_features
from nasrec_torchrec.search.race.leaks import signs

_ROWS = 12_000


def _behaviour(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users who click at rates of their own, on any item."""
    user, item = rng.integers(1, 200, _ROWS), rng.integers(1, 60, _ROWS)
    return user, item, rng.random(_ROWS) < rng.beta(2, 4, 200)[user]


def _sampled(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clicks of users on few items of their own, each with two negatives for the same user, in a random order."""
    clicks = _ROWS // 3
    user = rng.integers(1, 800, clicks)
    liked = user * 7 % 59 + rng.integers(0, 3, clicks)
    others = (np.repeat(user, 2) * 7 % 59 + rng.integers(3, 59, 2 * clicks)) % 59
    order = rng.permutation(_ROWS)
    label = np.arange(_ROWS) < clicks
    return np.append(user, np.repeat(user, 2))[order], 1 + np.append(liked % 59, others)[order], label[order]


def _prepare(folder: Path, rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Schema:
    table = pa.table(dict(zip(("user", "item", "y"), (np.asarray(values, np.int32) for values in rows), strict=True)))
    half = _ROWS // 2
    raw = folder.with_name(f"{folder.name}-raw")
    raw.mkdir()
    files = [str(raw / f"{split}.parquet") for split in ("train", "validation", "test")]
    for file, part in zip(files, (table[:half], table[half:], table[half:]), strict=True):
        pq.write_table(part, file)
    sparse = tuple(SparseFeature(name, ids="dictionary") for name in ("user", "item"))
    prepare(RawData(tuple(files), Schema("y", (), sparse, 8), split=SplitConfig("given")), folder)
    return load_schema(folder)


def _ranking(folder: Path, rows: tuple[np.ndarray, np.ndarray, np.ndarray], **flags: bool) -> Ranking:
    schema = _prepare(folder, rows)
    return rank_features(folder, schema, np.full(_ROWS // 2, -0.7), 3, 12, **flags)


def test_histories_of_real_behaviour_are_chosen_without_a_warning(tmp_path: Path):
    ranking = _ranking(tmp_path / "data", _behaviour(np.random.default_rng(0)))
    assert ranking.chosen[0].columns == ("user",) and ranking.left_out == ()
    assert all(ranked.certain_rows == 0 for ranked in ranking.chosen)
    assert Ranking.from_json(ranking.to_json()) == ranking


def test_sampled_negatives_give_themselves_away(tmp_path: Path):
    rows = _sampled(np.random.default_rng(0))
    ranking = _ranking(tmp_path / "left", rows)
    assert ranking.chosen[0].columns == ("user", "item") and ranking.chosen[0].certain_rows > 200
    assert [ranked.columns for ranked in ranking.left_out] == [("user",)]
    assert ("user",) not in {ranked.columns for ranked in ranking.chosen}
    kept = _ranking(tmp_path / "kept", rows, reversed_too=True)
    assert kept.left_out == () and ("user",) in {ranked.columns for ranked in kept.chosen}


@pytest.mark.parametrize("labels", [np.zeros(6), np.ones(6)])
def test_a_split_without_two_labels_says_nothing(labels: np.ndarray):
    counts = np.arange(6)
    found = signs(counts, counts, counts[::-1], labels, float(labels.mean()))
    assert (found.trend, found.certain_rows, found.reversed) == (0.0, 0, False)
