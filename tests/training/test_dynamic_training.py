"""A feature whose ids are not known beforehand, from raw rows to a scored request."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from support import SMALL_SPACE, run_ranks
from torch.distributed._shard.sharded_tensor import ShardedTensor

from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.id_space import ID_SPACE
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.predictor import Request
from nasrec_torchrec.inference.rows import RowReader
from nasrec_torchrec.inference.scoring_model import scoring_model, trace
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.modules.dynamic_ids import DynamicIds
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.recipes import fitted
from nasrec_torchrec.training.trainer import Trainer
from nasrec_torchrec.training.warm_start import WarmStart

ARCHITECTURE = SMALL_SPACE.sample(torch.Generator().manual_seed(3))
CONFIG = TrainConfig(epochs=2, batch_size=40, learning_rate=0.05, log_every=1)
SCHEMA = Schema(
    "clicked",
    (DenseFeature("hour"),),
    (
        SparseFeature("user", 64, "dynamic", embedding_dim=16),
        SparseFeature("shop", 8),
        SparseFeature("friends", 64, "dynamic", multi_hot=True, table="t_user", embedding_dim=16),
    ),
    embedding_dim=8,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Rows of many users, some of whom come often and click on every other shop."""
    folder, rng = tmp_path_factory.mktemp("dynamic"), np.random.default_rng(0)
    files = []
    for name, count in (("train", 240), ("validation", 80), ("test", 80)):
        user = np.where(rng.random(count) < 0.7, rng.integers(0, 20, count), rng.integers(100, 10**6, count))
        shop = rng.integers(1, 8, count)
        table = {
            "clicked": (rng.random(count) < np.where((user + shop) % 2, 0.9, 0.1)).astype(int),
            "user": [f"https://example.org/{number}" for number in user],
            "shop": shop,
            "hour": rng.random(count),
            "friends": [[f"https://example.org/{i}" for i in rng.integers(0, 99, rng.integers(0, 3))] for _ in user],
        }
        files.append(str(folder / f"{name}.parquet"))
        pq.write_table(pa.table(table), files[-1])
    prepare(RawData(tuple(files), SCHEMA, split=SplitConfig("given")), folder / "data")
    return folder / "data"


def _trainer(data: Path, out: Path, config: TrainConfig = CONFIG, initial: WarmStart | None = None) -> Trainer:
    description = ModelDescription(SCHEMA, ARCHITECTURE)
    return Trainer(description, config, out, torch.device("cpu"), initial)


def _train(data: str, out: str, stop: bool = False) -> dict[str, torch.Tensor]:
    """Trains to the end, or to the end of the first epoch; returns what this rank holds."""
    trainer = _trainer(Path(data), Path(out))
    trainer.train(open_split(Path(data), "train"), open_split(Path(data), "validation"), lambda *_: stop)
    metrics = trainer.evaluate(open_split(Path(data), "test"))
    state = trainer.dmp.state_dict().items()
    shards = {name: value.local_shards()[0].tensor.clone() for name, value in state if isinstance(value, ShardedTensor)}
    return shards | {"test loss": torch.tensor([metrics.log_loss])}


def test_a_training_on_two_ranks_resumes_on_four_as_if_it_had_been_on_one(one_rank, data: Path, tmp_path: Path):
    alone = _train(str(data), str(tmp_path / "one"))
    run_ranks(2, _train, str(data), str(tmp_path / "two"), True)
    shared = run_ranks(4, _train, str(data), str(tmp_path / "two"))
    for name, whole in alone.items():
        parts = shared[0][name] if name == "test loss" else torch.cat([rank[name] for rank in shared])
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4, msg=name)
    assert sum(name.endswith("_ids") for name in alone) == 1
    _, model = load_model(tmp_path / "two")
    module = next(part for part in model.modules() if isinstance(part, DynamicIds))
    assert module.counts()["evictions"] > 10 and torch.equal(module._ids, alone[_name(alone, "_ids")])


def _name(state: dict[str, torch.Tensor], end: str) -> str:
    return next(name for name in state if name.endswith(end))


def test_a_request_is_mapped_as_training_mapped_it(one_rank, data: Path, tmp_path: Path):
    _train(str(data), str(tmp_path))
    _, model = load_model(tmp_path)
    module = next(part for part in model.modules() if isinstance(part, DynamicIds))
    rows = pq.read_table(data / "test")
    raw = pq.read_table(data.parent / "test.parquet").drop_columns("clicked").to_pylist()
    read = RowReader(SCHEMA, {}).read(raw).request
    assert read.ids[: len(raw)].tolist() == rows["user"].to_pylist(), "raw values become the ids of preparation"

    known = torch.isin(read.ids[: len(raw)], module.id_map()[0])
    assert 10 < int(known.sum()) < len(raw) - 10, "some users have lost their rows, or never had one"
    outside = torch.tensor([-1, 0, ID_SPACE, torch.iinfo(torch.int64).max])
    read.ids[: len(outside)] = outside
    plain = Request(read.ids.clone(), read.lengths, read.dense)
    plain.ids[: len(outside)] = 0
    expected = _eager(model, plain)
    for config in (ExportConfig(), ExportConfig(tables="int8")):
        scoring = scoring_model(model, config, SCHEMA.feature_names)
        with torch.no_grad():
            found = scoring(read.dense, read.ids, read.lengths)
        torch.testing.assert_close(found, expected, atol=1e-5 if config.tables == "fp32" else 0.05, rtol=0)
    scoring = scoring_model(model, ExportConfig(), SCHEMA.feature_names)
    torch.testing.assert_close(trace(scoring).module()(read.dense, read.ids, read.lengths), expected, atol=1e-5, rtol=0)


def _eager(model: torch.nn.Module, request: Request) -> torch.Tensor:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    kjt = KeyedJaggedTensor(SCHEMA.feature_names, request.ids, lengths=request.lengths.flatten())
    with torch.no_grad():
        return model(request.dense, kjt).flatten()


def test_a_warm_start_keeps_the_rows_of_all_ids(
    one_rank, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = _train(str(data), str(tmp_path / "first"))
    trainer = _trainer(data, tmp_path / "second", initial=WarmStart(tmp_path / "first", data))
    found = {name: value.local_shards()[0].tensor for name, value in trainer.dmp.state_dict().items() if name in before}
    for name in before:
        if ".t_user." in name:
            assert torch.equal(found[name], load_state(tmp_path / "first")[name]), name
    trainer.train(open_split(data, "train"))
    assert "table t_user: 64 of 64 rows copied, 0 new" in capsys.readouterr().err.splitlines()


def load_state(run: Path) -> dict[str, torch.Tensor]:
    return {f"model.{name}": value for name, value in load_model(run)[1].state_dict().items()}


@pytest.mark.parametrize("kind", ["dlrm", "dcn", "deepfm", "finalnet", "wukong"])
def test_baselines_take_dynamic_ids(kind: str):
    schema = replace(SCHEMA, embedding_dim=16)
    for widths in (schema, SCHEMA):
        layers = (32, widths.embedding_dim)
        model = ModelDescription(widths, Baseline(kind, layers, (16, 1))).build().eval()
        lengths = torch.ones(3, 2, dtype=torch.int64)
        request = Request(torch.tensor([ID_SPACE - 1, 5, 1, 2, 3, 2**61]), lengths, torch.zeros(2, 1))
        found = scoring_model(model, ExportConfig(), SCHEMA.feature_names)(request.dense, request.ids, lengths)
        torch.testing.assert_close(found, _eager(model, request))


def test_what_dynamic_ids_cannot_do(one_rank, data: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="user: num_embeddings: dynamic ids need 16 rows or more, found 8"):
        SparseFeature("user", 8, "dynamic")
    with pytest.raises(ValueError, match="adam holds all tables on every rank"):
        _trainer(data, tmp_path, replace(CONFIG, optimizer="adam"))
    with pytest.raises(ValueError, match="sharding_type: expected row_wise, which dynamic ids need"):
        _trainer(data, tmp_path, replace(CONFIG, sharding_type="table_wise"))
    assert fitted(replace(CONFIG), 240, SCHEMA)[0].optimizer == "adagrad" and dist.get_world_size() == 1
    model = ModelDescription(SCHEMA, ARCHITECTURE).build()
    with pytest.raises(ValueError, match=rf"feature 'user': id {ID_SPACE} is outside of 0..{ID_SPACE - 1}"):
        _eager(model, Request(torch.tensor([ID_SPACE, 1]), torch.tensor([[1], [1], [0]]), torch.zeros(1, 1)))
