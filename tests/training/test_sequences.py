"""Lists in order: cut to a length, weighted by position or by attention, from raw rows to a scored request."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support import SMALL_SPACE, run_ranks
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

from nasrec_torchrec import inference
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.config import ExportConfig, ScoringConfig
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.inference.scoring_model import scoring_model
from nasrec_torchrec.metrics.click_metrics import predict
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer
from nasrec_torchrec.training.warm_start import WarmStart

CPU = torch.device("cpu")
ROWS, MOST = 1200, 3
ARCHITECTURE = SMALL_SPACE.sample(torch.Generator().manual_seed(3))
ITEM = SparseFeature("item", ids="dictionary", table="t_item")
SEEN = SparseFeature("seen", ids="dictionary", table="t_item", multi_hot=True, separator=" ", max_length=MOST)
SCHEMAS = {
    "attention": Schema(
        "clicked",
        (DenseFeature("hour", "standardize"),),
        (
            ITEM,
            replace(SEEN, pooling="attention", target="item"),
            SparseFeature("tags", 16, "hash", multi_hot=True, pooling="mean"),
        ),
    ),
    "position": Schema(
        "clicked",
        (DenseFeature("hour", "standardize"),),
        (
            ITEM,
            replace(SEEN, pooling="position"),
            SparseFeature("tags", 16, "hash", multi_hot=True, embedding_dim=8),
        ),
    ),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A click needs the item among the three that were seen last, which stand first."""
    random = np.random.default_rng(0)
    lines = ["clicked,hour,item,seen,tags"]
    for number in range(ROWS):
        item, seen = random.integers(0, 6), random.integers(0, 6, random.integers(0, 7))
        click = int(item in seen[:MOST]) if random.random() < 0.95 else random.integers(0, 2)
        tags = "|".join(random.choice(list("abc"), random.integers(0, 3), replace=False))
        lines.append(f"{click},{number},i{item},{' '.join(f'i{i}' for i in seen)},{tags}")
    file = tmp_path_factory.mktemp("sequences") / "rows.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module", params=["attention", pytest.param("position", marks=pytest.mark.extended)])
def data(request: pytest.FixtureRequest, raw: Path) -> Path:
    prepare(RawData((str(raw),), SCHEMAS[request.param]), raw.parent / request.param)
    return raw.parent / request.param


def _train(data: str, out: str, kind: str = "nasrecnet", epochs: int = 3, replicate_mib: float = 0.0) -> torch.Tensor:
    train, test = (open_split(Path(data), split) for split in ("train", "test"))
    interaction = {"nasrecnet": ARCHITECTURE, "supernet": SMALL_SPACE}.get(kind) or Baseline(kind, (16,), (16, 1))
    description = ModelDescription(train.schema, interaction, use_layernorm=kind == "supernet")
    config = TrainConfig(epochs=3, batch_size=40, learning_rate=0.1, log_every=1, replicate_mib=replicate_mib, seed=1)
    trainer = Trainer(description, config, Path(out), CPU)
    trainer.train(train, pause=lambda done, _: done >= epochs)
    return torch.tensor(trainer.evaluate(test).log_loss)


def test_lists_keep_their_beginning_in_order(raw: Path, data: Path):
    prepared = pq.read_table(data / "train").to_pylist()
    assert max(len(row["seen"]) for row in prepared) == MOST
    lines = [line.split(",") for line in raw.read_text().splitlines()[1:]]
    prepared.sort(key=lambda row: row["hour"])  # the number of the row, whatever it was standardized by
    words = dict(enumerate(pq.read_table(data / "dictionaries" / "t_item.parquet").column(0).to_pylist(), 2))
    kept = [[words[number] for number in row["seen"]] for row in prepared]
    given = iter([line[3].split()[:MOST] for line in lines])
    assert all(any(row == found for found in given) for row in kept), "the training rows, in their order"


def test_two_ranks_learn_as_one_and_a_package_scores_as_the_model(one_rank, raw: Path, data: Path, tmp_path: Path):
    alone = _train(str(data), str(tmp_path / "one"))
    run_ranks(2, _train, str(data), str(tmp_path / "two"), "nasrecnet", 1)  # and resumes on one
    resumed = _train(str(data), str(tmp_path / "two"))
    torch.testing.assert_close(resumed, alone, rtol=0, atol=2e-3)
    description, model = load_model(tmp_path / "one")
    kinds = {"attention": EmbeddingCollection, "position": FeatureProcessedEmbeddingBagCollection}
    assert isinstance(model.sparse_arch.embedding_bag_collection, kinds[data.name])
    learned = [p for name, p in model.named_parameters() if "position_weights" in name or "sparse_arch.pooling" in name]
    assert learned and all(p.std() > 0 for p in learned if p.numel() > 1), "they are trained too"
    assert description.schema == open_split(data, "train").schema

    rows = open_split(data, "test")
    logits, _ = predict(model, rows)
    package = tmp_path / "package"
    predictor = export(model, description.schema, package, dictionaries=data / "dictionaries")
    assert predictor.manifest["requires"] == ["torch"]
    counted = inference.score(package, str(data / "test"), tmp_path / "scores", ScoringConfig(batch_size=50))
    scores = pq.read_table(tmp_path / "scores")["probability"].to_numpy()
    assert counted["rows"] == len(rows)
    np.testing.assert_allclose(scores, torch.sigmoid(logits).numpy(), atol=1e-5)

    lines = [line.split(",") for line in raw.read_text().splitlines()]
    asked = [dict(zip(lines[0][1:], line[1:], strict=True)) for line in lines[1:40]]
    asked = [{**row, "hour": float(row["hour"])} for row in asked]
    cut = [{**row, "seen": row["seen"].split()[:MOST]} for row in asked]
    answers = [predictor.rows(some) for some in (asked, cut)]
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=0)
    turned = [{**row, "seen": row["seen"][::-1]} for row in cut]
    moved = (predictor.rows(turned) - answers[0]).abs().max()
    assert (moved > 1e-4) == (data.name == "position"), "attention does not look at the order"


@pytest.mark.parametrize("kind", ["supernet", "dlrm", "dcn", "deepfm", "finalnet", "wukong"])
def test_all_models_take_lists_in_order(one_rank, data: Path, tmp_path: Path, kind: str):
    whole = 0.001 if kind == "dcn" and data.name == "position" else 0.0
    assert _train(str(data), str(tmp_path), kind, replicate_mib=whole) < 0.7
    description, model = load_model(tmp_path)
    if kind == "supernet":
        model = model.extract(ARCHITECTURE)
    model = model.eval()
    scoring = scoring_model(model, ExportConfig(), description.schema.feature_names)
    (batch,) = open_split(data, "test").evaluation_batches(1000)
    sparse = batch.sparse_features
    with torch.no_grad():
        expected = model(batch.dense_features, sparse).flatten()
        found = scoring(batch.dense_features, sparse.values(), sparse.lengths().view(3, -1).long())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_tables_of_sequences_are_not_replicated(one_rank, data: Path, tmp_path: Path):
    if data.name == "attention":
        with pytest.raises(ValueError, match="replicate_mib: expected 0 with attention over lists"):
            _train(str(data), str(tmp_path), replicate_mib=1.0)


def test_a_warm_start_copies_how_lists_are_weighted(one_rank, data: Path, tmp_path: Path):
    _train(str(data), str(tmp_path / "first"), epochs=1)
    description, earlier = load_model(tmp_path / "first")
    model = description.build()
    WarmStart(tmp_path / "first", data).copy_into(model, description)
    theirs = earlier.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_what_lists_in_order_cannot_be():
    for changes, message in (
        ({"pooling": "position", "max_length": None}, "seen: pooling position: expected max_length"),
        ({"pooling": "attention"}, "seen: target: expected the name of a feature with pooling attention"),
        ({"target": "item"}, "seen: target: expected the name of a feature with pooling attention, and none otherwise"),
        ({"max_length": 0}, "seen: max_length: expected a positive integer, found 0"),
        ({"multi_hot": False}, "seen: max_length: is for lists, which multi_hot features have"),
        ({"pooling": "last"}, "seen: pooling: expected one of"),
        ({"pooling": "position", "weighted": True}, "seen: pooling position: expected unweighted ids"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(SEEN, **changes)
    attended = replace(SEEN, pooling="attention", target="item")
    for features, message in (
        (
            (ITEM, replace(attended, target="shop")),
            r"seen: target: expected one of the features \['item'\], found 'shop'",
        ),
        ((ITEM, attended, replace(attended, name="x", pooling="position", target="")), "attention or position, found"),
        (
            (ITEM, replace(SEEN, pooling="position"), SparseFeature("tags", 9, multi_hot=True, pooling="mean")),
            "tags: pooling: expected sum or position",
        ),
        ((ITEM, attended, SparseFeature("tags", 9, multi_hot=True)), "tags: pooling: expected mean or attention"),
        ((ITEM, attended, SparseFeature("tags", 9, embedding_dim=8)), "TorchRec needs tables of one width, 16; found"),
        ((ITEM, attended, SparseFeature("user", 64, "dynamic")), "pooling attention: .* but ids are dynamic"),
    ):
        with pytest.raises(ValueError, match=message):
            Schema("clicked", (), features)
    schema = SCHEMAS["attention"]
    assert Schema.from_json(schema.to_json()) == schema
    plain = Schema("clicked", (), (SparseFeature("user", 9),))
    assert not {"max_length", "target"} & set(plain.to_dict()["sparse"][0]), "it is written as before"
    model = ModelDescription(
        replace(schema, sparse=tuple(replace(f, num_embeddings=16) for f in schema.sparse)), ARCHITECTURE
    ).build()
    with pytest.raises(ValueError, match="tables: expected fp32 for a model with attention"):
        scoring_model(model, ExportConfig(tables="int8"))
