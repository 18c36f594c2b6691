import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference.conftest import build
from support import SMALL_SPACE, make_click_data, make_click_files, make_schema
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import JaggedTensor

from nasrec_torchrec import NASREC_2026, PUBLISHED, Architecture, NASRecNet
from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference import predictor as predictor_module
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.exporting import compare, export
from nasrec_torchrec.inference.fusion import ProductAndSum
from nasrec_torchrec.inference.predictor import Predictor, Request
from nasrec_torchrec.inference.scoring_model import ScoringModel, scoring_model, trace
from nasrec_torchrec.inference.tables import table_precisions
from nasrec_torchrec.models.config import BASELINES, Baseline
from nasrec_torchrec.models.description import ClickModel, ModelDescription
from nasrec_torchrec.modules.registry import OPERATORS
from nasrec_torchrec.runs.lock import lock

# A service has PyTorch, maybe FBGEMM, and a copy of the one file.
SCORE_ALONE = """
import json, sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None  # any import of it fails
import torch
from predictor import Predictor, Request
for line in sys.stdin:
    package, requests, outputs = json.loads(line)
    predictor = Predictor(package)
    requests = torch.load(requests, weights_only=True)
    torch.save([predictor.logits(Request(**request)) for request in requests], outputs)
    print("scored", flush=True)
"""
Services = Callable[[tuple[str, ...]], "subprocess.Popen[str]"]
WITH_FBGEMM, WITH_PYTORCH_ALONE = ("nasrec_torchrec", "torchrec"), ("nasrec_torchrec", "torchrec", "fbgemm_gpu")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Processes that cannot import some packages, one for each choice of them; they score what they read."""
    folder = tmp_path_factory.mktemp("services")
    (folder / "predictor.py").write_text(Path(predictor_module.__file__).read_text())
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": folder}
    with ExitStack() as stack:

        @cache
        def service(without: tuple[str, ...]) -> "subprocess.Popen[str]":
            return stack.enter_context(subprocess.Popen([sys.executable, "-c", SCORE_ALONE, ",".join(without)], **pipe))

        yield service


def as_request(model: ClickModel, schema: Schema, batch_size: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random rows, and the eager model's logits."""
    data = make_click_data(schema, batch_size, seed=batch_size)
    sparse = data.sparse
    request = {"ids": sparse.values(), "lengths": sparse.lengths().view(len(sparse.keys()), -1).long()}
    request |= {"dense": data.dense} if schema.dense else {}
    request |= {"weights": sparse.weights()} if schema.weighted else {}
    with torch.no_grad():
        return request, model(data.dense, sparse).flatten()


def _inputs(request: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [request[name] for name in ("dense", "ids", "lengths", "weights") if name in request]


@pytest.mark.slow
def test_the_package_equals_the_model_in_a_process_with_pytorch_alone(tmp_path: Path, services: Services):
    schema, architecture = _mixed_schema(), PUBLISHED["criteo-small"]
    torch.manual_seed(0)
    model = ModelDescription(schema, architecture).build().eval()
    assert isinstance(model, NASRecNet)
    predictor = export(model, schema, tmp_path / "package", metrics={"auc": 0.8})
    assert predictor.manifest["requires"] == ["torch"] and predictor.manifest["metrics"] == {"auc": 0.8}
    _score_alone(services(WITH_PYTORCH_ALONE), tmp_path / "package", model, schema, 1e-5)
    assert Architecture.from_json(json.dumps(predictor.manifest["architecture"])) == architecture
    assert Schema.from_json(json.dumps(predictor.manifest["schema"])) == schema


@pytest.mark.extended
@pytest.mark.parametrize(
    ("schema", "config", "tolerance"),
    [
        (make_schema(weighted=True), ExportConfig(tables="int4"), 0.5),
        (make_schema(num_dense=0), ExportConfig(tables="fp16", dense="bf16"), 0.05),
    ],
)
def test_other_forms_in_a_process_without_this_package(tmp_path: Path, services: Services, schema, config, tolerance):
    model = build(schema, 2, num_blocks=1)
    export(model, schema, tmp_path / "package", config)
    _score_alone(services(WITH_FBGEMM), tmp_path / "package", model, schema, tolerance)


@pytest.mark.slow
def test_a_product_over_one_input_in_a_process_with_pytorch_alone(services: Services, product):
    package, model, schema = product
    _score_alone(services(WITH_PYTORCH_ALONE), package, model, schema, 1e-5)


def make_baseline(kind: str, num_dense: int = 3) -> tuple[ClickModel, Schema]:
    """A baseline whose first and last feature share a table, so that the model stacks them side by side."""
    schema = make_schema(num_dense=num_dense)
    first, *between, last = schema.sparse
    shared = replace(first, table="t_both", pooling="mean"), *between, replace(last, table="t_both")
    schema = replace(schema, sparse=shared)
    torch.manual_seed(0)
    return ModelDescription(schema, Baseline(kind, (8, 16), (16, 1))).build().eval(), schema  # type: ignore[arg-type]


def _of_every_operator(num_blocks: int) -> Architecture:
    """Blocks with every operator that there is, and a logit that reads all of them."""
    space = replace(NASREC_2026, num_blocks=num_blocks, dense_widths=(24,), sparse_widths=(8,))
    architecture = space.sample(torch.Generator().manual_seed(0), "full")
    own = {name for name, kind in OPERATORS.items() if kind.__module__.startswith("nasrec_torchrec.")}
    assert {*architecture.blocks[0].dense_operators, *architecture.blocks[0].sparse_operators} == own
    return architecture


def test_every_operator_leaves_as_it_computes():
    schema = make_schema(num_dense=3)
    model = ModelDescription(schema, _of_every_operator(2)).build().eval()
    program = trace(scoring_model(model, ExportConfig(), schema.feature_names)).module()
    for batch_size in (1, 9):
        request, logits = as_request(model, schema, batch_size)
        # Logits of such a network are in the hundreds, and one near 0 is no more exact than the others.
        size = logits.abs().max()
        torch.testing.assert_close(program(*_inputs(request)) / size, logits / size, rtol=0, atol=1e-6)


@pytest.mark.extended
def test_every_operator_is_compiled(tmp_path: Path):
    schema = make_schema(num_dense=3)
    model = ModelDescription(schema, _of_every_operator(1)).build().eval()
    predictor = export(model, schema, tmp_path / "package")
    for batch_size in (1, 9):
        request, logits = as_request(model, schema, batch_size)
        torch.testing.assert_close(predictor.logits(Request(**request)), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.extended
def test_ten_architectures_of_2026_are_traced():
    space = replace(NASREC_2026, num_blocks=2, dense_widths=(16, 64), sparse_widths=(8, 16))
    schema = make_schema(num_dense=3)
    for seed in range(10):
        architecture = space.sample(torch.Generator().manual_seed(seed))
        model = ModelDescription(schema, architecture).build().eval()
        program = trace(scoring_model(model, ExportConfig(), schema.feature_names)).module()
        request, logits = as_request(model, schema, 9)
        torch.testing.assert_close(program(*_inputs(request)), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", BASELINES)
@pytest.mark.parametrize("tables", ("fp32", "int8"))
def test_baselines_in_the_form_that_serves(kind, tables):
    model, schema = make_baseline(kind)
    scoring = scoring_model(model, ExportConfig(tables=tables), schema.feature_names)
    program = trace(scoring).module()
    for batch_size in (1, 9):
        request, logits = as_request(model, schema, batch_size)
        error = 1e-5 if tables == "fp32" else 2e-2
        torch.testing.assert_close(program(*_inputs(request)), logits, rtol=0, atol=error)
    drift = compare(model, ExportConfig(), make_click_files(schema, 200))
    assert drift.exported.log_loss == pytest.approx(drift.trained.log_loss, abs=1e-6)


def test_a_folder_that_is_no_package_is_refused_before_anything_is_compiled(tmp_path: Path):
    schema = make_schema()
    model = build(schema)
    training = '{"format": "nasrec-torchrec/folder/1", "kind": "training"}'
    for name, marker in (("notes.txt", None), ("metrics.json", training)):
        place = tmp_path / name
        place.mkdir()
        (place / name).write_text("mine")
        if marker:
            (place / ".nasrec.json").write_text(marker)
        with pytest.raises(ValueError, match=f"{name}: holds "):
            export(model, schema, place)
        assert (place / name).read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="expected a folder, found a file"):
        export(model, schema, tmp_path / "file")
    with pytest.raises(ValueError, match=r"process .* is writing here"), lock(tmp_path / ".p.export.nasrec-tmp"):
        export(model, schema, tmp_path / "p")
    assert not (tmp_path / "p").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("dcn", "deepfm"))
def test_a_baseline_replaces_an_earlier_package_and_what_is_not_ours_stays(
    tmp_path: Path, services: Services, product, kind
):
    place = tmp_path / "package"
    first = Predictor(shutil.copytree(product[0], place))
    (place / "notes.txt").write_text("mine")
    # What a killed export leaves.
    left = tmp_path / ".package.export.nasrec-tmp" / "package"
    left.mkdir(parents=True)
    (left / "model.pt2").write_text("half")
    model, schema = make_baseline(kind)
    second = export(model, schema, place, origin={"run": "baseline", "loss": float("nan")})
    assert first.version != second.version == Predictor(place).version
    assert second.manifest["origin"] == {"parent": first.version, "run": "baseline", "loss": None}
    assert (place / "notes.txt").read_text() == "mine" and list(tmp_path.iterdir()) == [place]
    assert second.manifest["architecture"] is None
    assert second.manifest["model"] == {"dcn": "DLRM_DCN", "deepfm": "FlatModel"}[kind]
    _score_alone(services(WITH_PYTORCH_ALONE), place, model, schema, 1e-5)


@pytest.mark.slow
def test_a_package_that_takes_few_rows_only_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ProductAndSum, "forward", lambda self, rows: rows @ self.weight.t() + self.bias)
    schema = make_schema(num_dense=1)
    with pytest.raises(ValueError, match=r"does not take the request: .*dim value is too large"):
        export(build(schema, 2, num_blocks=1), schema, tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


def _score_alone(
    service: "subprocess.Popen[str]", package: Path, model: ClickModel, schema: Schema, tolerance: float
) -> None:
    requests, expected = zip(*(as_request(model, schema, batch_size) for batch_size in (1, 7, 300)), strict=True)
    assert service.stdin is not None and service.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        files = f"{folder}/requests.pt", f"{folder}/outputs.pt"
        torch.save(list(requests), files[0])
        service.stdin.write(json.dumps([str(package), *files]) + "\n")
        service.stdin.flush()
        assert service.stdout.readline() == "scored\n", "the process failed, see above"
        outputs = torch.load(files[1], weights_only=True)
    for output, logits in zip(outputs, expected, strict=True):
        assert logits.numel() == 1 or float(logits.std()) > 1e-3
        torch.testing.assert_close(output, logits, rtol=0, atol=tolerance)
    assert sorted(path.name for path in package.parent.iterdir() if path.name.startswith(".")) == []


@settings(max_examples=5)
@given(st.integers(0, 2**40), st.booleans(), st.integers(0, 3), st.sampled_from(("fp32", "fp16", "int8", "int4")))
def test_any_architecture_exports(seed: int, use_layernorm: bool, num_dense: int, tables):
    schema = make_schema(num_dense=num_dense)
    architecture = SMALL_SPACE.sample(torch.Generator().manual_seed(seed), "any_operator_any_connection")
    torch.manual_seed(0)
    model = ModelDescription(schema, architecture, use_layernorm).build().eval()
    assert isinstance(model, NASRecNet)
    scoring = scoring_model(model, ExportConfig(tables=tables))
    program = trace(scoring).module()
    for batch_size in (1, 9):
        request, logits = as_request(model, schema, batch_size)
        outputs = program(*_inputs(request))
        with torch.no_grad():
            torch.testing.assert_close(outputs, scoring(*_inputs(request)), rtol=0, atol=1e-5)
        if tables == "fp32":
            torch.testing.assert_close(outputs, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("tables", "error"), [("fp32", 1e-5), ("fp16", 2e-3), ("int8", 0.02), ("int4", 0.4)])
def test_quantized_tables_are_near_the_float_ones(tables, error):
    schema = make_schema()
    model = build(schema)
    for parameter in model.sparse_arch.parameters():
        torch.nn.init.normal_(parameter)
    scoring = scoring_model(model, ExportConfig(tables=tables))
    data = make_click_data(schema, 200)
    with torch.no_grad():
        pooled = scoring.tables(data.sparse.values(), data.sparse.lengths().view(4, -1).long(), None)
        difference = float((pooled - model.sparse_arch(data.sparse)).abs().max())
    assert difference <= error and (tables == "fp32" or difference > error / 100)
    per_row = {"fp32": 64, "fp16": 32, "int8": 16 + 4, "int4": 8 + 4}[tables]
    assert scoring.tables.nbytes() == pytest.approx(200 * per_row, abs=256), "tables begin at round addresses"


@pytest.mark.parametrize("tables", ("fp32", "int8"))
@given(st.integers(0, 1000))
def test_no_id_reads_outside_of_its_table(tables, seed: int):
    schema = make_schema(num_dense=1, num_features=2, rows=5)
    scoring = scoring_model(build(schema, 4), ExportConfig(tables=tables))
    generator = torch.Generator().manual_seed(seed)
    wild = torch.randint(-(2**62), 2**62, (6,), generator=generator)
    wild[torch.rand(6, generator=generator) < 0.4] %= 7
    known = torch.where((wild >= 0) & (wild < 5), wild, 0)
    lengths = torch.tensor([[1, 1, 1], [2, 0, 1]])
    with torch.no_grad():
        assert torch.equal(scoring(torch.zeros(3, 1), wild, lengths), scoring(torch.zeros(3, 1), known, lengths))


def test_drift_is_measured_before_anything_is_compiled():
    schema = make_schema()
    files, model = make_click_files(schema, 600), build(schema)
    none = compare(model, ExportConfig(), files)
    assert none.exported.log_loss == pytest.approx(none.trained.log_loss, abs=1e-6)
    assert none.table_bytes == none.float_table_bytes
    coarse = compare(model, ExportConfig(tables="int4", table_precisions={"t_f0": "fp16"}), files, batch_size=70)
    assert coarse.trained.log_loss == pytest.approx(none.trained.log_loss) and coarse.exported != none.exported
    assert coarse.table_bytes < 0.3 * coarse.float_table_bytes
    assert "600 rows: AUC 0." in str(coarse)


def test_what_cannot_be_exported(tmp_path: Path):
    model = build(make_schema())
    with pytest.raises(ValueError, match=r"reads the features .*, the schema has \['f0', 'f1', 'f2'\]"):
        export(model, make_schema(num_features=3), tmp_path / "p")
    with pytest.raises(ValueError, match="the model reads 3 dense features, the schema has 2"):
        export(model, make_schema(num_dense=2), tmp_path / "p")
    with pytest.raises(ValueError, match="expected a NASRecNet or a baseline, found a SuperNet"):
        export(ModelDescription(make_schema(), SMALL_SPACE).build(), make_schema(), tmp_path / "p")
    ebc = model.sparse_arch.embedding_bag_collection
    with pytest.raises(ValueError, match=r"unknown tables \['x'\]; the model has \['t_f0'"):
        table_precisions(ebc, "fp32", {"x": "int8"})
    with pytest.raises(ValueError, match=r"t_f0: expected one of .*found 'int3'"):
        table_precisions(ebc, "fp32", {"t_f0": "int3"})
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: cuda needs such a device"):
            export(model, make_schema(), tmp_path / "p", ExportConfig(device="cuda"))
    assert not list(tmp_path.iterdir())


def test_the_model_stays_as_it_was():
    schema = make_schema()
    model = build(schema)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ScoringModel(model, bf16=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _mixed_schema() -> Schema:
    """Tables of 8, 16 and 32 columns, a shared one, one that is pooled by mean, in an order that is not the model's."""
    schema = make_schema(num_features=5)
    dims = (8, None, 32, 8, 32)
    sparse = [replace(feature, embedding_dim=dim) for feature, dim in zip(schema.sparse, dims, strict=True)]
    sparse[3] = replace(sparse[3], table="t_f0")
    return replace(schema, sparse=(*sparse,))


@pytest.mark.parametrize("tables", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["nasrecnet", "dlrm", "dcn", "deepfm", "mlp", "wukong"])
def test_tables_of_different_dimensions_are_looked_up_alike(kind: str, tables: str):
    schema = _mixed_schema()
    torch.manual_seed(0)
    interaction = SMALL_SPACE.sample(torch.Generator().manual_seed(0)) if kind == "nasrecnet" else Baseline(kind)
    model = ModelDescription(schema, interaction).build().eval()
    request, expected = as_request(model, schema, 40)
    scoring = scoring_model(model, ExportConfig(tables=tables), schema.feature_names)
    tolerance = {"fp32": 1e-5, "fp16": 1e-3, "int8": 0.02, "int4": 0.3}[tables]
    with torch.no_grad():
        torch.testing.assert_close(scoring(*_inputs(request)), expected, rtol=0, atol=tolerance)
    whole = 50 * (8 + 16 + 32 + 32) * 4
    assert scoring.tables.nbytes() == whole if tables == "fp32" else scoring.tables.nbytes() < 0.6 * whole


def test_weights_by_position_are_part_of_the_package():
    schema = _mixed_schema()
    schema = replace(schema, sparse=tuple(replace(f, multi_hot=True, pooling="sum") for f in schema.sparse))
    tables = EmbeddingBagCollection(tables=schema.tables(), is_weighted=True)
    weights = PositionWeightedModuleCollection({feature: 3 + i % 2 for i, feature in enumerate(schema.feature_names)})
    for weight in weights.parameters():
        nn.init.uniform_(weight)
    architecture = SMALL_SPACE.sample(torch.Generator().manual_seed(0))
    collection = FeatureProcessedEmbeddingBagCollection(tables, weights)
    model = NASRecNet(collection, 3, architecture, interaction_dim=16).eval()
    request, expected = as_request(model, schema, 40)
    scoring = scoring_model(model, ExportConfig(), schema.feature_names)
    assert scoring.input_names == ["dense", "ids", "lengths"]
    with torch.no_grad():
        torch.testing.assert_close(scoring(*_inputs(request)), expected)
        torch.testing.assert_close(trace(scoring).module()(*_inputs(request)), expected)


def test_sequences_that_are_pooled_by_their_mean_are_exported():
    tables = [
        EmbeddingConfig(name=f"t{i}", embedding_dim=16, num_embeddings=50, feature_names=[f"f{i}"]) for i in (0, 1)
    ]
    model = NASRecNet(EmbeddingCollection(tables=tables), 3, SMALL_SPACE.sample(torch.Generator().manual_seed(0)))
    sparse = tuple(SparseFeature(f"f{i}", 50, multi_hot=True, pooling="mean") for i in (0, 1))
    request, expected = as_request(model.eval(), replace(make_schema(), sparse=sparse), 40)
    for precision, tolerance in (("fp32", 1e-5), ("int8", 0.02)):
        scoring = scoring_model(model, ExportConfig(tables=precision))
        with torch.no_grad():
            torch.testing.assert_close(scoring(*_inputs(request)), expected, rtol=0, atol=tolerance)


def test_what_cannot_be_exported_is_one_type_error():
    class Doubled(nn.Module):
        def forward(self, features: JaggedTensor) -> JaggedTensor:
            return features

    tables = [EmbeddingBagConfig(name="t", embedding_dim=16, num_embeddings=5, feature_names=["f"])]
    bags = EmbeddingBagCollection(tables=tables, is_weighted=True)
    collection = FeatureProcessedEmbeddingBagCollection(bags, {"f": Doubled()})
    model = NASRecNet(collection, 3, SMALL_SPACE.sample(torch.Generator().manual_seed(0)))
    with pytest.raises(TypeError, match="only position weights can be exported, found a"):
        scoring_model(model, ExportConfig())
