import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SMALL_SPACE, make_click_data, make_schema

from nasrec_torchrec import PUBLISHED, Architecture, NASRecNet
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.export import ScoringModel, export, trace
from nasrec_torchrec.inference.scoring import score_parquet
from nasrec_torchrec.models.description import ModelDescription

SCORE_ALONE = """
import sys
for name in ("nasrec_torchrec", "torchrec", "fbgemm_gpu"):
    sys.modules[name] = None  # any import of it fails
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
model = torch._inductor.aoti_load_package(sys.argv[1])
inputs = torch.load(sys.argv[2], weights_only=True)
torch.save([model(*batch) for batch in inputs], sys.argv[3])
"""


def _inputs(model: NASRecNet, schema: Schema, batch_size: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Package inputs of random rows, and the eager model's logits."""
    data = make_click_data(schema, batch_size, seed=batch_size)
    sparse = data.sparse
    inputs = [data.dense] if schema.dense else []
    inputs += [sparse.values(), sparse.lengths().view(len(sparse.keys()), -1).long()]
    inputs += [sparse.weights()] if schema.weighted else []
    with torch.no_grad():
        return tuple(inputs), model(data.dense, sparse).flatten()


def _model(schema: Schema, architecture: Architecture, use_layernorm: bool = False) -> NASRecNet:
    torch.manual_seed(0)
    model = ModelDescription(schema, architecture, use_layernorm).build()
    assert isinstance(model, NASRecNet)
    return model.eval()


CASES = {
    "published": (make_schema(), PUBLISHED["criteo-full"], False),
    "without dense features": (make_schema(num_dense=0), SMALL_SPACE.sample(torch.Generator().manual_seed(1)), True),
    "weighted": (make_schema(weighted=True), SMALL_SPACE.sample(torch.Generator().manual_seed(2)), False),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_package_equals_the_model_in_a_process_without_this_package(case: str, tmp_path: Path):
    schema, architecture, use_layernorm = CASES[case]
    model = _model(schema, architecture, use_layernorm)
    exported = export(model, schema, tmp_path)
    inputs, expected = zip(*(_inputs(model, schema, batch_size) for batch_size in (1, 7, 300)), strict=True)
    torch.save(list(inputs), tmp_path / "inputs.pt")
    files = [str(exported.package), str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt")]
    subprocess.run([sys.executable, "-c", SCORE_ALONE, *files], check=True, capture_output=True, cwd=tmp_path)
    for output, logits in zip(torch.load(files[2], weights_only=True), expected, strict=True):
        assert logits.numel() == 1 or float(logits.std()) > 1e-3
        torch.testing.assert_close(output, logits, rtol=0, atol=1e-5)
    manifest = json.loads(exported.manifest.read_text())
    assert Architecture.from_json(json.dumps(manifest["architecture"])) == architecture
    assert Schema.from_json(json.dumps(manifest["schema"])) == schema
    assert not list(tmp_path.glob(".*"))


@settings(max_examples=6)
@given(st.integers(0, 2**40), st.booleans(), st.integers(0, 3))
def test_any_architecture_exports(seed: int, use_layernorm: bool, num_dense: int):
    schema = make_schema(num_dense=num_dense)
    generator = torch.Generator().manual_seed(seed)
    model = _model(schema, SMALL_SPACE.sample(generator, "any_operator_any_connection"), use_layernorm)
    program = trace(ScoringModel(model).eval()).module()
    for batch_size in (1, 9):
        inputs, logits = _inputs(model, schema, batch_size)
        torch.testing.assert_close(program(*inputs), logits, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_unknown_ids_are_the_missing_id_and_rows_are_scored_in_order(tmp_path: Path):
    schema = make_schema(num_dense=1, num_features=2, rows=5)
    model = _model(schema, SMALL_SPACE.sample(torch.Generator().manual_seed(4)))
    exported = export(model, schema, tmp_path)
    package = torch._inductor.aoti_load_package(str(exported.package))
    lengths = torch.tensor([[1, 1, 1], [2, 0, 1]])
    wild = package(torch.zeros(3, 1), torch.tensor([5, -1, 2**40, 3, -7, 99]), lengths)
    tame = package(torch.zeros(3, 1), torch.tensor([0, 0, 0, 3, 0, 0]), lengths)
    assert torch.equal(wild, tame)

    ids, lists = [0, 4, 2, 1, 3], [[1, 2], [], [3], [4, 4, 4], [0]]
    rows = {"label": [0, 1, 0, 1, 1], "d0": [0.1, 0.2, 0.3, 0.4, 0.5], "f0": ids, "f1": lists}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    assert score_parquet(tmp_path, tmp_path / "rows.parquet", tmp_path / "scores.parquet", batch_size=2) == 5
    scores = pq.read_table(tmp_path / "scores.parquet")
    flat = torch.tensor(ids + [i for row in lists for i in row])
    both = torch.tensor([[1] * 5, [len(row) for row in lists]])
    expected = torch.sigmoid(package(torch.tensor(rows["d0"]).unsqueeze(1), flat, both))
    assert scores["probability"].to_pylist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert scores["label"].to_pylist() == rows["label"]
    (tmp_path / "model.pt2").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"model.pt2: cannot be loaded"):
        score_parquet(tmp_path, tmp_path / "rows.parquet", tmp_path / "more.parquet")
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model.json: expected a manifest of format"):
        score_parquet(tmp_path, tmp_path / "rows.parquet", tmp_path / "more.parquet")
    assert not (tmp_path / "more.parquet").exists()


def test_a_schema_of_other_features_is_refused(tmp_path: Path):
    model = _model(make_schema(), SMALL_SPACE.sample(torch.Generator().manual_seed(1)))
    with pytest.raises(ValueError, match="the schema has"):
        export(model, make_schema(num_features=3), tmp_path)
    assert not list(tmp_path.iterdir())
