"""A package of a model of several labels: its outputs are named by them wherever it is used."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient
from support import SMALL_SPACE, free_port, run_program, run_ranks

from nasrec_torchrec import inference, training
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.inference.config import ExportConfig, ScoringConfig, ServingConfig
from nasrec_torchrec.inference.messages import SERVICE, message
from nasrec_torchrec.inference.metrics import ServerMetrics
from nasrec_torchrec.inference.models import Models
from nasrec_torchrec.inference.predictor import Predictor, manifest_sha256, read_manifest
from nasrec_torchrec.inference.server import create_app
from nasrec_torchrec.inference.triton import configuration
from nasrec_torchrec.metrics.click_metrics import predict
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.training.config import TrainFlags

pytestmark = pytest.mark.slow  # for the packages are compiled first
FLAGS = TrainFlags(epochs=1, batch_size=100, learning_rate=0.1)
LABELS = ["clicked", "bought"]
SCHEMA = """
label: clicked
tasks:
- {name: bought, column: sale, label_values: {"y": 1, "n": 0}}
dense: [price]
sparse:
- {name: item, ids: dictionary}
- {name: tags, ids: hash, num_embeddings: 40, multi_hot: true}
embedding_dim: 8
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows.csv, data, the runs both and one, and their packages of the same names."""
    folder = tmp_path_factory.mktemp("labels")
    random = np.random.default_rng(0)
    lines = ["clicked,sale,price,item,tags"]
    for _ in range(1_500):
        item, clicked = random.integers(0, 9), random.integers(0, 2)
        sale = "" if not clicked else "y" if random.random() < item / 9 else "n"
        lines.append(f"{clicked},{sale},{random.normal():.2f},i{item},{'|'.join(random.choice(list('abcd'), 2))}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    (folder / "schema.yaml").write_text(SCHEMA)
    sources = ["--source", folder / "rows.csv", "--schema", folder / "schema.yaml"]
    assert run_program("nasrec", "prepare", "table", *sources, "--out", folder / "data").returncode == 0
    architecture = replace(SMALL_SPACE, num_blocks=1).sample(torch.Generator().manual_seed(5))
    training.run(folder / "data", folder / "run-both", FLAGS, architecture=architecture)
    training.run(folder / "data", folder / "run-one", FLAGS, architecture="mlp", loss_weights={"bought": 0})
    flags = ["--model", folder / "run-both", "--data", folder / "data", "--out", folder / "both"]
    done = run_program("nasrec", "export", *flags)
    assert done.returncode == 0 and "; bought, " in done.stdout, done.stderr
    inference.export(folder / "run-one", folder / "one", data=folder / "data")
    return folder


@pytest.fixture(scope="module")
def expected(made: Path) -> torch.Tensor:
    """What the trained model predicts of the test split."""
    description, model = load_model(made / "run-both")
    return predict(model, description.read(open_split(made / "data", "test", tasks=True)))[0].sigmoid()


def test_scores_have_a_column_for_each_label_and_equal_the_model(made: Path, expected: torch.Tensor, tmp_path: Path):
    inference.score(made / "both", str(made / "data" / "test"), tmp_path / "scores")
    table = pq.read_table(tmp_path / "scores")
    assert table.column_names == ["file", "line", *LABELS, "probability_clicked", "probability_bought"]
    found = torch.stack([torch.tensor(table.column(f"probability_{name}").to_pylist()) for name in LABELS], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    raw = ScoringConfig(raw=True)
    inference.score(made / "both", str(made / "rows.csv"), tmp_path / "raw", raw)
    scored = pq.read_table(tmp_path / "raw")
    assert scored.column_names[2:] == ["clicked", "sale", "probability_clicked", "probability_bought"]
    assert len(set(scored.column("probability_bought").to_pylist())) > 100
    with pytest.raises(ValueError, match=r"keep: \['probability_bought'\] are columns of the scores themselves"):
        inference.score(
            made / "both", str(made / "rows.csv"), tmp_path / "x", replace(raw, keep=("probability_bought",))
        )


def test_a_predictor_returns_a_column_for_each_label(made: Path):
    predictor = Predictor(made / "both")
    assert predictor.outputs == LABELS and Predictor(made / "one").outputs == ["probability"]
    rows = [{"item": "i3", "price": 0.5, "tags": ["a", "b"]}, {"item": "i8"}, {"price": 2}]
    together = predictor.rows(rows)
    assert together.shape == (3, 2)
    alone = torch.cat([predictor.rows([row]) for row in rows])
    torch.testing.assert_close(together, alone)
    assert predictor.rows([]).shape == (0, 2)


def test_the_server_answers_with_an_output_for_each_label(made: Path):
    port = free_port()
    predictor = Predictor(made / "both")
    rows = [{"item": "i3", "price": 0.5, "tags": ["a"]}, {"item": "i8"}]
    scores = predictor.rows(rows)
    inputs = [
        {"name": "item", "shape": [2], "datatype": "BYTES", "data": ["i3", "i8"]},
        {"name": "price", "shape": [2], "datatype": "FP64", "data": [0.5, None]},
    ]
    columns = predictor.rows([{"item": "i3", "price": 0.5}, {"item": "i8"}])
    with TestClient(create_app(made / "both", ServingConfig(reload_seconds=0, grpc_port=port))) as client:
        described = client.get("/v2/models/nasrec").json()["outputs"]
        assert [output["name"] for output in described] == LABELS
        answer = client.post("/v2/models/nasrec/rows", json={"rows": rows}).json()["outputs"]
        assert [output["name"] for output in answer] == LABELS
        assert answer[1]["data"] == pytest.approx(scores[:, 1].tolist(), abs=1e-6) and answer[0]["shape"] == [2]
        path = "/v2/models/nasrec/infer"
        answer = client.post(path, json={"inputs": inputs, "outputs": [{"name": "bought"}]}).json()["outputs"]
        assert [output["name"] for output in answer] == ["bought"]
        assert answer[0]["data"] == pytest.approx(columns[:, 1].tolist(), abs=1e-6)
        wanted = [{"name": "bought", "parameters": {"binary_data": True}}, {"name": "clicked"}]
        found = client.post(path, json={"inputs": inputs, "outputs": wanted})
        length = int(found.headers["inference-header-content-length"])
        bought, clicked = json.loads(found.content[:length])["outputs"]
        assert (bought["parameters"], clicked["name"]) == ({"binary_data_size": 8}, "clicked")
        assert np.frombuffer(found.content[length:], "<f4") == pytest.approx(columns[:, 1].numpy(), abs=1e-6)
        refused = client.post(path, json={"inputs": inputs, "outputs": [{"name": "probability"}]})
        assert refused.json() == {"error": "outputs: expected 'clicked' or 'bought', found 'probability'"}
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = message("ModelInferRequest")(model_name="nasrec")
            for part in inputs[:1]:
                added = request.inputs.add(name=part["name"], datatype="BYTES", shape=[2])
                added.contents.bytes_contents.extend(text.encode() for text in part["data"])
            call = channel.unary_unary(
                f"/{SERVICE}/ModelInfer",
                request_serializer=message("ModelInferRequest").SerializeToString,
                response_deserializer=message("ModelInferResponse").FromString,
            )
            outputs = call(request, timeout=30).outputs
        by_item = predictor.rows([{"item": "i3"}, {"item": "i8"}])
        assert [output.name for output in outputs] == LABELS
        assert list(outputs[1].contents.fp32_contents) == pytest.approx(by_item[:, 1].tolist(), abs=1e-6)


def test_models_of_other_labels_do_not_share_requests(made: Path):
    places = {"a": made / "both", "b": made / "one"}
    config = ServingConfig(models={name: str(place) for name, place in places.items()}, split={"a": 0.5, "b": 0.5})
    with pytest.raises(
        ValueError, match=r"split: b predicts \['probability'\], but a predicts \['clicked', 'bought'\]"
    ):
        Models(places, config, ServerMetrics())


def test_a_package_is_not_replaced_by_one_of_other_labels(made: Path, tmp_path: Path):
    folder = Path(shutil.copytree(made / "both", tmp_path / "served"))
    with TestClient(create_app(folder, ServingConfig(reload_seconds=0.05))) as client:
        shutil.rmtree(folder)
        shutil.copytree(made / "one", folder)
        for _ in range(600):
            origin = client.get("/v2/models/nasrec").json()["parameters"]["origin"][0]
            if "refused" in origin:
                break
        assert origin["refused"].startswith("its outputs are ['probability'], but clients get ['clicked', 'bought']")


def test_what_a_manifest_says_of_the_outputs_is_checked(made: Path, tmp_path: Path):
    folder = Path(shutil.copytree(made / "both", tmp_path / "package"))
    for outputs, said in (
        (["clicked"] * 2, "outputs: not as"),
        (["a", "b", "c"], r"expected logits of shape \(8, 3\)"),
    ):
        manifest = json.loads((made / "both" / "model.json").read_text()) | {"outputs": outputs}
        manifest["sha256"]["model.json"] = manifest_sha256(manifest)
        (folder / "model.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=said):
            Predictor(folder)


def test_triton_gets_the_outputs_too(made: Path):
    manifest = read_manifest(made / "both")
    assert 'name: "OUTPUT__0" data_type: TYPE_FP32 dims: [-1, 2]' in configuration(manifest, "m", "torch_aoti")
    text = configuration(manifest, "m", "python")
    assert all(f'name: "{name}" data_type: TYPE_FP32 dims: [-1]' in text for name in LABELS)


def test_several_labels_are_not_calibrated(made: Path, tmp_path: Path):
    config = ExportConfig(calibrate="platt")
    with pytest.raises(ValueError, match="calibrate: expected a model of one label, found clicked, bought"):
        inference.export(made / "run-both", tmp_path / "package", config, data=made / "data")
    with pytest.raises(ValueError, match=r"ensemble_with: .* reads other columns"):
        inference.export(made / "run-both", tmp_path / "package", ensemble_with=(made / "run-one",))


def _score(run: str, rows: str, out: str, data: str) -> dict[str, int]:
    return inference.score_on_ranks(run, rows, out, ScoringConfig(raw=True, batch_size=200), words=data) or {}


def test_two_ranks_score_every_label(made: Path, tmp_path: Path):
    given = str(made / "run-both"), str(made / "rows.csv")
    counted = run_ranks(2, _score, *given, str(tmp_path / "ranks"), str(made / "data"))
    assert counted == [{"rows": 1_500, "rejected": 0}, {}]
    inference.score(made / "both", given[1], tmp_path / "package", ScoringConfig(raw=True))
    ranks, package = (pq.read_table(tmp_path / name).to_pydict() for name in ("ranks", "package"))
    for name in LABELS:
        assert ranks.pop(f"probability_{name}") == pytest.approx(package.pop(f"probability_{name}"), abs=1e-5)
    assert ranks == package
