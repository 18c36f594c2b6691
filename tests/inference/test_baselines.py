"""The server answers for every baseline, so that a NASRecNet can be compared with what it replaces."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from inference.test_exporting import as_request, make_baseline

from nasrec_torchrec.inference import predictor
from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.inference.server import create_app
from nasrec_torchrec.models.config import BASELINES


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Replaces compiled programs by the traced ones, which take no time; test_exporting.py compiles some baselines."""
    programs: list[Any] = []

    def compile_none(program: torch.export.ExportedProgram, package_path: str, **_: object) -> None:
        programs.append(program.module())
        Path(package_path).write_bytes(b"traced")

    def load(*_: object) -> tuple[Any, tuple[Path, Any]]:
        folder = tmp_path / "unpacked"
        folder.mkdir(exist_ok=True)
        return programs[-1], (folder, (tmp_path / "lock").open("w"))

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_none)
    monkeypatch.setattr(predictor, "_load", load)


@pytest.mark.parametrize("kind", BASELINES)
def test_every_baseline_is_served(traced: None, tmp_path: Path, kind: str):
    model, schema = make_baseline(kind)
    export(model, schema, tmp_path / "package")
    request, logits = as_request(model, schema, 9)
    kinds = {torch.float32: "FP32", torch.int64: "INT64"}
    inputs = [
        {"name": name, "shape": list(part.shape), "datatype": kinds[part.dtype], "data": part.flatten().tolist()}
        for name, part in request.items()
    ]
    with TestClient(create_app(tmp_path / "package", ServingConfig(reload_seconds=0))) as client:
        answer = client.post("/v2/models/nasrec/infer", json={"inputs": inputs})
        found = torch.tensor(answer.json()["outputs"][0]["data"])
        torch.testing.assert_close(found, torch.sigmoid(logits), rtol=0, atol=1e-5)
        answer = client.post("/v2/models/nasrec/rows", json={"shared": {"f0": 3}, "rows": [{"f1": 1}, {"f3": [1, 2]}]})
        assert answer.status_code == 200 and all(0 < score < 1 for score in answer.json()["outputs"][0]["data"])
