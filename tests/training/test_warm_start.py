"""A training that begins with yesterday's weights: tables that grew, features that came, ids that were renumbered."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import SMALL_SPACE, run_program

from nasrec_torchrec.datasets.buckets import buckets_of
from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.features import FIRST_WORD, DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.words import DICTIONARIES, read_dictionary
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer
from nasrec_torchrec.training.warm_start import WarmStart

ARCHITECTURE = SMALL_SPACE.sample(torch.Generator().manual_seed(3))
SPARSE = (
    SparseFeature("user", ids="dictionary"),
    SparseFeature("shop", 8),
    SparseFeature("page", 50, ids="hash"),
    SparseFeature("user_shop", 100, ids="hash", cross=("user", "shop")),
)


def _day(
    folder: Path, first: int, shops: int, pages: int, more: tuple[SparseFeature, ...] = (), dense: tuple[str, ...] = ()
) -> Path:
    """A prepared day: users from ``first`` on, the last ones the most frequent, who click on every other shop."""
    rng = np.random.default_rng(first)
    files = []
    raw = folder.with_name(f"{folder.name}-raw")
    raw.mkdir()
    for name, count in (("train", 600), ("validation", 200), ("test", 200)):
        user = first + rng.choice(12, count, p=np.arange(1, 13) / 78)
        shop = rng.integers(1, 8, count)
        clicked = rng.random(count) < np.where((user + shop) % 2, 0.95, 0.05)
        columns = {"clicked": clicked.astype(int), "user": user, "shop": shop, "page": rng.integers(0, 90, count)}
        columns |= {"hour": rng.integers(0, 24, count)}
        columns |= {"since": columns["hour"] + 100 * first}
        files.append(str(raw / f"{name}.parquet"))
        pq.write_table(pa.table(columns), files[-1])
    sparse = (
        SPARSE[0],
        replace(SPARSE[1], num_embeddings=shops),
        replace(SPARSE[2], num_embeddings=pages),
        *SPARSE[3:],
    )
    schema = Schema("clicked", tuple(map(DenseFeature, dense)), (*more, *sparse), 8)
    prepare(RawData(tuple(files), schema, split=SplitConfig("given")), folder)
    return folder


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path, Path]:
    """Two days, the run of the first one, and the file of its architecture."""
    folder = tmp_path_factory.mktemp("days")
    architecture = folder / "architecture.json"
    architecture.write_text(ARCHITECTURE.to_json())
    first = _day(folder / "monday", 0, 8, 50)
    second = _day(folder / "tuesday", 4, 10, 60, (SparseFeature("hour", 24),))
    words = ["--data", first, "--out", folder / "run", "--architecture", architecture, "--epochs", 3]
    done = run_program("nasrec", "train", *words, "--batch_size", 100, "--learning_rate", 0.1)
    assert done.returncode == 0, done.stderr
    return first, second, folder / "run", architecture


def test_rows_of_known_ids_are_bitwise_those_of_yesterday(days: tuple[Path, Path, Path, Path]):
    first, second, run, _ = days
    description = ModelDescription(load_schema(second), ARCHITECTURE)
    model = description.build()
    untouched = {name: value.clone() for name, value in model.state_dict().items()}
    lines = WarmStart(run, second).copy_into(model, description)
    _, earlier = load_model(run)
    tables, old = (m.sparse_arch.embedding_bag_collection.embedding_bags for m in (model, earlier))
    words = [read_dictionary(day / DICTIONARIES / "t_user.parquet").to_pylist() for day in (first, second)]
    assert words[0] != words[1][: len(words[0])], "the same user has another id on the second day"
    initial = untouched["sparse_arch.embedding_bag_collection.embedding_bags.t_user.weight"]
    for row, word in enumerate(words[1], start=FIRST_WORD):
        kept = old["t_user"].weight[FIRST_WORD + words[0].index(word)] if word in words[0] else initial[row]
        assert torch.equal(tables["t_user"].weight[row], kept), word
    known = len(set(words[0]) & set(words[1]))
    assert torch.equal(tables["t_shop"].weight[:8], old["t_shop"].weight)
    assert lines[1:] == [
        "table t_hour: new",
        f"table t_user: {known + 2} of {len(words[1]) + 2} rows copied, {len(words[1]) - known} new",
        "table t_shop: 8 of 10 rows copied, 2 new",
        "table t_page: new, because its ids are taken modulo 59 and were modulo 49",
        "table t_user_shop: new, because it crosses user, whose ids have changed",
        *[line for line in lines if line.startswith("dense part")],
    ]


def test_a_new_feature_changes_nothing_until_it_is_learnt(days: tuple[Path, Path, Path, Path]):
    first, _, run, _ = days
    theirs, earlier = load_model(run)
    schema = load_schema(first)
    grown = replace(schema, sparse=(SparseFeature("hour", 24), *schema.sparse))
    description = replace(theirs, schema=grown)
    model = description.build().eval()
    lines = WarmStart(run, first).copy_into(model, description)
    embedded = torch.randn(6, len(schema.sparse), 8)
    names = [list(m.sparse_arch.feature_names) for m in (model, earlier)]
    assert names[0] == ["hour", *names[1]]
    with_hour = torch.cat([torch.randn(6, 1, 8), embedded], dim=1)
    dense = torch.empty(6, 0)
    assert lines[-1].startswith("dense part: ") and "new: " not in lines[-1], lines
    torch.testing.assert_close(model.interaction_arch(dense, with_hour), earlier.interaction_arch(dense, embedded))


def test_buckets_with_other_edges_begin_from_scratch(tmp_path: Path):
    """The same id stands for another range of numbers."""
    buckets = buckets_of("hour"), buckets_of("since")
    first, second = (_day(tmp_path / str(day), day, 8, 50, buckets, ("hour", "since")) for day in (0, 4))
    words = ["--data", first, "--out", tmp_path / "run", "--architecture", "mlp", "--epochs", 1, "--batch_size", 100]
    done = run_program("nasrec", "train", *words, "--learning_rate", 0.1)
    assert done.returncode == 0, done.stderr
    theirs, _ = load_model(tmp_path / "run")
    description = replace(theirs, schema=load_schema(second))
    lines = WarmStart(tmp_path / "run", second, first).copy_into(description.build(), description)
    assert "table t_hour_buckets: 66 of 66 rows copied, 0 new" in lines
    assert "table t_since_buckets: new, because its buckets have other edges" in lines


def test_the_command_begins_where_yesterday_ended_and_remembers_it(days: tuple[Path, Path, Path, Path], tmp_path: Path):
    first, second, run, architecture = days
    words = ["train", "--data", second, "--architecture", architecture, "--batch_size", 100, "--learning_rate", 0.02]
    words += ["--out", tmp_path / "warm"]
    done = run_program("nasrec", *words, "--init_from", run)
    assert done.returncode == 0 and "table t_shop: 8 of 10 rows copied, 2 new" in done.stderr, done.stderr
    again = run_program("nasrec", *words)
    assert again.returncode == 2 and "init_from" in again.stderr, again.stderr
    first.rename(first.with_name("moved"))
    try:
        lost = run_program("nasrec", *words[:-1], tmp_path / "lost", "--init_from", run)
        assert lost.returncode == 2 and "pass --init_data with its folder" in lost.stderr, lost.stderr
    finally:
        first.with_name("moved").rename(first)


@pytest.mark.parametrize("part", ["tables", "interaction"])
@pytest.mark.parametrize("changes", [{}, {"accumulate": 3}, {"optimizer": "adam", "embedding_l2": 0.01}], ids=str)
def test_a_frozen_part_stays_and_the_other_one_learns(
    days: tuple[Path, Path, Path, Path], one_rank: None, tmp_path: Path, part: str, changes: dict[str, Any]
):
    first, _, run, _ = days
    config = TrainConfig(epochs=1, batch_size=100, learning_rate=0.01, freeze=part, **changes)
    description = ModelDescription(load_schema(first), ARCHITECTURE)
    trainer = Trainer(description, config, tmp_path, torch.device("cpu"), WarmStart(run, first))
    trainer.train(open_split(first, "train"), open_split(first, "validation"))
    before, after = (load_model(folder)[1].state_dict() for folder in (run, tmp_path))
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    frozen = {name for name in before if ("sparse_arch." in name) == (part == "tables")}
    assert frozen <= same < set(before)
    assert "idle_tables" not in trainer.progress.warnings


def test_what_is_new_is_not_frozen(days: tuple[Path, Path, Path, Path], one_rank: None, tmp_path: Path):
    first, second, run, _ = days
    for part, interaction, message in (
        ("tables", ARCHITECTURE, r"freeze: tables would keep random .* that .*run has not trained: table t_hour: new"),
        (
            "interaction",
            Baseline("mlp", over_layers=(8, 1)),
            r"freeze: interaction would keep .*: dense part: new, because it is another model",
        ),
    ):
        description = ModelDescription(load_schema(second), interaction)
        with pytest.raises(ValueError, match=message):
            WarmStart(run, second).copy_into(description.build(), description, part)
    config = TrainConfig(freeze="tables")
    with pytest.raises(ValueError, match="freeze: tables needs init_from, the earlier run whose weights are kept"):
        Trainer(ModelDescription(load_schema(first), ARCHITECTURE), config, tmp_path, torch.device("cpu"))
    with pytest.raises(ValueError, match="ema_decay: expected none with freeze interaction"):
        TrainConfig(freeze="interaction", ema_decay=0.9)
    with pytest.raises(ValueError, match="freeze: expected tables or interaction, found 'dense'"):
        TrainConfig(freeze="dense")
