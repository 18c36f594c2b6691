"""Packages whose tables are mapped into the memory of the processes that look rows up."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from inference.conftest import build, build_mlp, exported
from support import make_click_data, make_schema

from nasrec_torchrec import inference
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.inference.predictor import MANIFEST, PACKAGE, Predictor, manifest_sha256
from nasrec_torchrec.inference.scoring import requests
from nasrec_torchrec.inference.scoring_model import example_inputs, scoring_model, trace
from nasrec_torchrec.models.description import ClickModel

# Four tables of 16 columns: 128 MiB.
ROWS = 500_000
# Prints how much memory belongs to a process alone, before and after it has a package and has looked up many rows.
MEASURE = """
import sys
from pathlib import Path
import torch
from nasrec_torchrec.inference.predictor import Predictor, Request
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024
before = anonymous()
predictor = Predictor(sys.argv[1], runners=4)
ids, lengths = torch.randint(0, 500_000, (4 * 10_000,)), torch.ones(4, 10_000, dtype=torch.int64)
predictor.predict(Request(ids, lengths, torch.zeros(10_000, 3)))
print(anonymous() - before)
"""


def _model() -> tuple[ClickModel, Schema]:
    schema = make_schema(rows=ROWS)
    return build_mlp(schema), schema


@pytest.fixture(scope="module")
def mapped(packages: Path) -> Path:
    """A package with mapped tables, which tests must copy before they change it."""
    return exported(packages, "mapped", *_model(), ExportConfig(map_tables=True))


@pytest.mark.slow
def test_tables_are_mapped_and_take_no_memory_of_their_own(mapped: Path):
    tables = sum(file.stat().st_size for file in (mapped / "tables").iterdir())
    assert tables == 4 * ROWS * 16 * 4 and (mapped / PACKAGE).stat().st_size < 0.1 * tables
    model, schema = _model()
    data = make_click_data(schema, 300)
    predictor = Predictor(mapped)
    with torch.no_grad():
        expected = model(data.dense, data.sparse).flatten()
    torch.testing.assert_close(predictor.logits(next(requests(data, predictor, 300))), expected, rtol=0, atol=1e-5)
    done = subprocess.run([sys.executable, "-c", MEASURE, mapped], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 0.5 * tables / 2**20


@pytest.mark.slow
def test_a_loaded_package_outlives_its_folder(mapped: Path, tmp_path: Path):
    shutil.copytree(mapped, tmp_path / "served")
    predictor = Predictor(tmp_path / "served")
    request = predictor.request([{"f0": 7, "f1": 8, "f3": [1, 2], "d0": 0.5}])
    before = predictor.logits(request)
    shutil.rmtree(tmp_path / "served")
    assert torch.equal(predictor.logits(request), before)


@pytest.mark.slow
def test_damaged_tables_are_refused(mapped: Path, tmp_path: Path):
    folder = tmp_path / "package"
    shutil.copytree(mapped, folder)
    (table,) = (folder / "tables").iterdir()
    whole = table.read_bytes()
    table.write_bytes(whole[:-4])
    for verify in (True, False):
        with pytest.raises(ValueError, match=rf"{table.name}: expected 128,000,000 bytes, found 127,999,996"):
            Predictor(folder, verify=verify)
    table.write_bytes(whole[:-4] + bytes(4))
    with pytest.raises(ValueError, match=rf"{table.name}: its checksum is not that of model\.json"):
        Predictor(folder)
    table.unlink()
    with pytest.raises(ValueError, match=rf"{table.name}: cannot be read"):
        Predictor(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    for wrong in ({"file": "../secret"}, {"type": "object"}, {"shape": [-1, 16]}, {"shape": "all"}):
        document = manifest | {"mapped": [manifest["mapped"][0] | wrong]}
        document["sha256"][MANIFEST] = manifest_sha256(document)
        (folder / MANIFEST).write_text(json.dumps(document))
        with pytest.raises(ValueError, match="not the manifest of a package: mapped"):
            Predictor(folder)


@pytest.mark.extended  # for another package is compiled
def test_a_delta_of_mapped_tables_is_small(mapped: Path, tmp_path: Path):
    model, schema = _model()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "embedding_bags" in name:
                weights[5:25] += 1
    for name in ("old", "new"):
        shutil.copytree(mapped, tmp_path / name)
    served = Predictor(tmp_path / "old")
    request = served.request([{"f0": 7}])
    before = served.logits(request)
    new = export(model, schema, tmp_path / "new", ExportConfig(map_tables=True), delta=tmp_path / "new.delta")
    assert (tmp_path / "new.delta").stat().st_size < 2**20
    inference.patch(tmp_path / "old", tmp_path / "new.delta")
    assert torch.equal(Predictor(tmp_path / "old").logits(request), new.logits(request))
    assert torch.equal(served.logits(request), before) and not torch.equal(before, new.logits(request))


@pytest.mark.parametrize("config", [ExportConfig(), ExportConfig(tables="int8", table_precisions={"t_f1": "fp32"})])
def test_the_tables_of_all_forms_are_inputs(config: ExportConfig):
    schema = make_schema(weighted=True)
    model, other = (build(schema, seed, num_blocks=1) for seed in (0, 1))
    scoring = scoring_model(model, config, schema.feature_names, others=[other])
    weights = scoring.table_weights()
    assert len(weights) == 2 and sum(weight.nbytes for weight in weights.values()) > 1000
    inputs = example_inputs(scoring, 5)
    program = trace(scoring, with_tables=True).module()
    with torch.no_grad():
        torch.testing.assert_close(program(*inputs, *weights.values()), scoring(*inputs))
        zeros = [torch.zeros_like(weight) for weight in weights.values()]
        assert not torch.equal(program(*inputs, *zeros), scoring(*inputs))


def test_where_tables_cannot_be_mapped():
    with pytest.raises(ValueError, match="map_tables: tables are mapped into the memory of a CPU; the device is cuda"):
        ExportConfig(map_tables=True, device="cuda")
    with pytest.raises(ValueError, match="triton_backend: torch_aoti: Triton does not map tables"):
        ExportConfig(map_tables=True, triton="repository")
    ExportConfig(map_tables=True, triton="repository", triton_backend="python")
